"""Load balancers, listeners and target groups."""

from __future__ import annotations

from .kind import Context, Failed, Kind, Made, Properties, only, without

_ONLY = {
    "application": (
        "load_balancing.algorithm.", "slow_start.", "stickiness.app_cookie.", "stickiness.lb_cookie.",
        "target_group_health.unhealthy_state_routing.",
    ),
    "network": (
        "deregistration_delay.connection_termination.", "preserve_client_ip.", "proxy_protocol_v2.", "target_health_state.",
    ),
}  # fmt: skip
"""Attributes of a target group that one kind of load balancer alone knows (API reference, TargetGroupAttribute)."""


def _create_balancer(context: Context, properties: Properties) -> Made:
    made = context.call(
        "elbv2", "CreateLoadBalancer",
        **without(properties, "Name", "LoadBalancerAttributes", "Tags"),
        Name=properties.get("Name") or context.name(32),
        Tags=properties.get("Tags"),
    )["LoadBalancers"][0]  # fmt: skip
    arn = made["LoadBalancerArn"]
    _set_balancer_attributes(context, arn, properties)
    return Made(
        arn,
        {
            "LoadBalancerArn": arn,
            "DNSName": made["DNSName"],
            "LoadBalancerFullName": arn.split(":loadbalancer/", 1)[1],
            "LoadBalancerName": made["LoadBalancerName"],
            "CanonicalHostedZoneID": made.get("CanonicalHostedZoneId"),
            "SecurityGroups": made.get("SecurityGroups", []),
        },
    )


def _set_balancer_attributes(context: Context, arn: str, properties: Properties) -> None:
    if attributes := properties.get("LoadBalancerAttributes"):
        context.call("elbv2", "ModifyLoadBalancerAttributes", LoadBalancerArn=arn, Attributes=attributes)


def _update_balancer(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    _set_balancer_attributes(context, made.id, new)
    if old.get("Subnets") != new.get("Subnets"):
        context.call("elbv2", "SetSubnets", LoadBalancerArn=made.id, Subnets=new.get("Subnets"))
    if old.get("SecurityGroups") != new.get("SecurityGroups"):
        context.call("elbv2", "SetSecurityGroups", LoadBalancerArn=made.id, SecurityGroups=new.get("SecurityGroups"))
    return made


def _delete_balancer(context: Context, made: Made, _: Properties) -> None:
    context.call("elbv2", "DeleteLoadBalancer", LoadBalancerArn=made.id)


def _create_group(context: Context, properties: Properties) -> Made:
    _check_group_attributes(properties)
    made = context.call(
        "elbv2", "CreateTargetGroup",
        **without(properties, "Name", "TargetGroupAttributes", "Targets"),
        Name=properties.get("Name") or context.name(32),
    )["TargetGroups"][0]  # fmt: skip
    arn = made["TargetGroupArn"]
    _set_group_attributes(context, arn, properties)
    if targets := properties.get("Targets"):
        context.call("elbv2", "RegisterTargets", TargetGroupArn=arn, Targets=targets)
    full_name = "targetgroup/" + arn.split(":targetgroup/", 1)[1]
    return Made(
        arn, {"TargetGroupArn": arn, "TargetGroupFullName": full_name, "TargetGroupName": made["TargetGroupName"]}
    )


def _check_group_attributes(properties: Properties) -> None:
    """moto takes any of them for any group."""
    protocol = properties.get("Protocol", "")
    other = "network" if protocol in ("HTTP", "HTTPS") else "application"
    forbidden = [a["Key"] for a in properties.get("TargetGroupAttributes", []) if a["Key"].startswith(_ONLY[other])]
    if protocol == "UDP":
        # Same page: of an UDP group's unhealthy targets, connections cannot be terminated; the client's address stays.
        never = ("target_health_state.unhealthy.connection_termination.enabled", "preserve_client_ip.enabled")
        forbidden += [a["Key"] for a in properties.get("TargetGroupAttributes", []) if a["Key"] in never]
    if forbidden:
        raise Failed(f"Target group attribute key '{forbidden[0]}' is not recognized (Error Code: ValidationError)")


def _set_group_attributes(context: Context, arn: str, properties: Properties) -> None:
    if attributes := properties.get("TargetGroupAttributes"):
        context.call("elbv2", "ModifyTargetGroupAttributes", TargetGroupArn=arn, Attributes=attributes)


def _update_group(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    _check_group_attributes(new)
    health = only(
        new, "HealthCheckProtocol", "HealthCheckPort", "HealthCheckPath", "HealthCheckEnabled", "Matcher",
        "HealthCheckIntervalSeconds", "HealthCheckTimeoutSeconds", "HealthyThresholdCount", "UnhealthyThresholdCount",
    )  # fmt: skip
    context.call("elbv2", "ModifyTargetGroup", TargetGroupArn=made.id, **health)
    _set_group_attributes(context, made.id, new)
    return made


def _delete_group(context: Context, made: Made, _: Properties) -> None:
    context.call("elbv2", "DeleteTargetGroup", TargetGroupArn=made.id)


def _create_listener(context: Context, properties: Properties) -> Made:
    made = context.call("elbv2", "CreateListener", **without(properties, "ListenerAttributes"))
    arn = made["Listeners"][0]["ListenerArn"]
    _set_listener_attributes(context, arn, properties)
    return Made(arn, {"ListenerArn": arn})


def _set_listener_attributes(context: Context, arn: str, properties: Properties) -> None:
    if attributes := properties.get("ListenerAttributes"):
        context.call("elbv2", "ModifyListenerAttributes", ListenerArn=arn, Attributes=attributes)


def _update_listener(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    _set_listener_attributes(context, made.id, new)
    context.call(
        "elbv2", "ModifyListener", ListenerArn=made.id, **without(new, "LoadBalancerArn", "ListenerAttributes")
    )
    return made


def _delete_listener(context: Context, made: Made, _: Properties) -> None:
    context.call("elbv2", "DeleteListener", ListenerArn=made.id)


KINDS = [
    Kind(
        "AWS::ElasticLoadBalancingV2::LoadBalancer", _create_balancer, _delete_balancer, _update_balancer,
        replaces=("Name", "Scheme", "Type"), gone=("LoadBalancerNotFound",),
    ),
    Kind(
        "AWS::ElasticLoadBalancingV2::TargetGroup", _create_group, _delete_group, _update_group,
        replaces=("Name", "Port", "Protocol", "TargetType", "VpcId", "IpAddressType"), gone=("TargetGroupNotFound",),
    ),
    Kind(
        "AWS::ElasticLoadBalancingV2::Listener", _create_listener, _delete_listener, _update_listener,
        replaces=("LoadBalancerArn",), gone=("ListenerNotFound",),
    ),
]  # fmt: skip

"""Load balancers, listeners and target groups."""

from __future__ import annotations

from .kind import Context, Kind, Made, Properties, only, without


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


def _set_group_attributes(context: Context, arn: str, properties: Properties) -> None:
    if attributes := properties.get("TargetGroupAttributes"):
        context.call("elbv2", "ModifyTargetGroupAttributes", TargetGroupArn=arn, Attributes=attributes)


def _update_group(context: Context, made: Made, _: Properties, new: Properties) -> Made:
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
    return Made(arn, {"ListenerArn": arn})


def _update_listener(context: Context, made: Made, _: Properties, new: Properties) -> Made:
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

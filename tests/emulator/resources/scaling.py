"""Auto Scaling groups, hooks and policies.

What a CreationPolicy or a rolling update waits for: see emulator.signals.
"""

from __future__ import annotations

from typing import Any

from .kind import Context, Failed, HalfMade, Kind, Made, Properties, only, seconds, without
from .rolling import Roll, rolling

_NOT_IN_THE_CALL = (
    "AutoScalingGroupName", "VPCZoneIdentifier", "Tags", "MetricsCollection", "LaunchTemplate", "MixedInstancesPolicy",
)  # fmt: skip


def _arguments(name: str, properties: Properties) -> dict[str, Any]:
    """What Create and Update share; the API has the subnets as one text."""
    subnets = properties.get("VPCZoneIdentifier")
    return {
        "AutoScalingGroupName": name,
        "VPCZoneIdentifier": ",".join(subnets) if subnets else None,
        **only(properties, "LaunchTemplate", "MixedInstancesPolicy"),
    }


def _tags(name: str, properties: Properties) -> list[dict[str, Any]] | None:
    return [
        {"ResourceId": name, "ResourceType": "auto-scaling-group", **tag} for tag in properties.get("Tags", [])
    ] or None


def _create_group(context: Context, properties: Properties) -> Made:
    name = properties.get("AutoScalingGroupName") or context.name()
    with context.signals.opened(context.stack_id, context.logical_id) as box:
        context.call(
            "autoscaling", "CreateAutoScalingGroup",
            **without(properties, *_NOT_IN_THE_CALL), **_arguments(name, properties), Tags=_tags(name, properties),
        )  # fmt: skip
        for collection in properties.get("MetricsCollection", []):
            context.call("autoscaling", "EnableMetricsCollection", AutoScalingGroupName=name, **collection)
        try:
            _wait_for_signals(context, box)
        except Failed as failed:
            raise HalfMade(str(failed), name) from None
    running = len(_instances(context, name))
    wanted = int(properties.get("DesiredCapacity") or properties["MinSize"])
    if running < wanted:
        raise Failed(f"Received 0 SUCCESS signal(s) out of {wanted}: {running} instances of {name} run")
    return Made(name)


def _wait_for_signals(context: Context, box: Any) -> None:
    """CreationPolicy: ``Count`` is 1 and ``Timeout`` five minutes where they are not given."""
    policy = context.policies.get("CreationPolicy")
    if not policy or not context.signals.waited_for:
        return
    wanted = policy.get("ResourceSignal") or {}
    percent = float((policy.get("AutoScalingCreationPolicy") or {}).get("MinSuccessfulInstancesPercent", 100))
    context.signals.require(box, int(wanted.get("Count", 1)), seconds(str(wanted.get("Timeout", "PT5M"))), percent)


def _update_group(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    left_alone = ["TargetGroupARNs", "LoadBalancerNames", *_NOT_IN_THE_CALL]
    if rolls := rolling(context, old, new):
        # The roll sets them at its end: until then others hold.
        left_alone += ["MinSize", "DesiredCapacity"]
    context.call("autoscaling", "UpdateAutoScalingGroup", **without(new, *left_alone), **_arguments(made.id, new))
    _move(context, made.id, set(old.get("TargetGroupARNs", [])), set(new.get("TargetGroupARNs", [])))
    if tags := _tags(made.id, new):
        context.call("autoscaling", "CreateOrUpdateTags", Tags=tags)
    if rolls:
        Roll(context, made.id, old, new, rolls).carry_out()
    return made


def _move(context: Context, name: str, old: set[str], new: set[str]) -> None:
    """The group's instances, and those to come, from target groups to others."""
    for operation, arns in (("Attach", new - old), ("Detach", old - new)):
        if arns:
            arguments = {"AutoScalingGroupName": name, "TargetGroupARNs": sorted(arns)}
            context.call("autoscaling", f"{operation}LoadBalancerTargetGroups", **arguments)


def _instances(context: Context, name: str) -> list[str]:
    groups = context.call("autoscaling", "DescribeAutoScalingGroups", AutoScalingGroupNames=[name])["AutoScalingGroups"]
    return [i["InstanceId"] for group in groups for i in group["Instances"] if i["LifecycleState"] == "InService"]


def _delete_group(context: Context, made: Made, _: Properties) -> None:
    if not context.call("autoscaling", "DescribeAutoScalingGroups", AutoScalingGroupNames=[made.id])[
        "AutoScalingGroups"
    ]:
        return
    context.call("autoscaling", "UpdateAutoScalingGroup", AutoScalingGroupName=made.id, MinSize=0, DesiredCapacity=0)
    context.call("autoscaling", "DeleteAutoScalingGroup", AutoScalingGroupName=made.id, ForceDelete=True)


def _create_hook(context: Context, properties: Properties) -> Made:
    name = properties.get("LifecycleHookName") or context.name()
    context.call("autoscaling", "PutLifecycleHook", **without(properties, "LifecycleHookName"), LifecycleHookName=name)
    return Made(name)


def _update_hook(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("autoscaling", "PutLifecycleHook", **without(new, "LifecycleHookName"), LifecycleHookName=made.id)
    return made


def _delete_hook(context: Context, made: Made, properties: Properties) -> None:
    context.call(
        "autoscaling", "DeleteLifecycleHook",
        LifecycleHookName=made.id, AutoScalingGroupName=properties["AutoScalingGroupName"],
    )  # fmt: skip


def _create_policy(context: Context, properties: Properties) -> Made:
    return _put_policy(context, context.name(), properties)


def _put_policy(context: Context, name: str, properties: Properties) -> Made:
    context.call("autoscaling", "PutScalingPolicy", PolicyName=name, **properties)
    # moto leaves the ARN out of its answer.
    group = properties["AutoScalingGroupName"]
    (found,) = context.call("autoscaling", "DescribePolicies", AutoScalingGroupName=group, PolicyNames=[name])[
        "ScalingPolicies"
    ]
    return Made(found["PolicyARN"], {"Arn": found["PolicyARN"], "PolicyName": name})


def _update_policy(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    return _put_policy(context, made.attributes["PolicyName"], new)


def _delete_policy(context: Context, made: Made, properties: Properties) -> None:
    context.call(
        "autoscaling", "DeletePolicy",
        PolicyName=made.attributes["PolicyName"], AutoScalingGroupName=properties["AutoScalingGroupName"],
    )  # fmt: skip


KINDS = [
    Kind(
        "AWS::AutoScaling::AutoScalingGroup", _create_group, _delete_group, _update_group,
        replaces=("AutoScalingGroupName",), gone=("ValidationError",),
    ),
    Kind(
        "AWS::AutoScaling::LifecycleHook", _create_hook, _delete_hook, _update_hook,
        replaces=("AutoScalingGroupName", "LifecycleHookName"),
    ),
    Kind(
        "AWS::AutoScaling::ScalingPolicy", _create_policy, _delete_policy, _update_policy,
        replaces=("AutoScalingGroupName",),
    ),
]  # fmt: skip

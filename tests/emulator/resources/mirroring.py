"""Traffic Mirroring: target, filter, rules, session."""

from __future__ import annotations

from typing import Any

from .kind import Context, Kind, Made, Properties, without


def _tagged(resource: str, context: Context, properties: Properties) -> list[dict[str, Any]] | None:
    # EC2 takes no aws: tags from a caller, so the stack's own are not set here.
    tags = properties.get("Tags")
    return [{"ResourceType": resource, "Tags": tags}] if tags else None


def _create_target(context: Context, properties: Properties) -> Made:
    made = context.call(
        "ec2", "CreateTrafficMirrorTarget",
        **without(properties, "Tags"), TagSpecifications=_tagged("traffic-mirror-target", context, properties),
    )  # fmt: skip
    target_id = made["TrafficMirrorTarget"]["TrafficMirrorTargetId"]
    return Made(target_id, {"Id": target_id})


def _delete_target(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteTrafficMirrorTarget", TrafficMirrorTargetId=made.id)


def _create_filter(context: Context, properties: Properties) -> Made:
    made = context.call(
        "ec2", "CreateTrafficMirrorFilter",
        **without(properties, "Tags", "NetworkServices"),
        TagSpecifications=_tagged("traffic-mirror-filter", context, properties),
    )  # fmt: skip
    filter_id = made["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    if properties.get("NetworkServices"):
        context.call(
            "ec2", "ModifyTrafficMirrorFilterNetworkServices",
            TrafficMirrorFilterId=filter_id, AddNetworkServices=properties["NetworkServices"],
        )  # fmt: skip
    return Made(filter_id, {"Id": filter_id})


def _update_filter(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    before, after = set(old.get("NetworkServices", [])), set(new.get("NetworkServices", []))
    context.call(
        "ec2", "ModifyTrafficMirrorFilterNetworkServices",
        TrafficMirrorFilterId=made.id,
        AddNetworkServices=sorted(after - before) or None,
        RemoveNetworkServices=sorted(before - after) or None,
    )  # fmt: skip
    _retag(context, made.id, old, new)
    return made


def _delete_filter(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteTrafficMirrorFilter", TrafficMirrorFilterId=made.id)


def _create_rule(context: Context, properties: Properties) -> Made:
    made = context.call("ec2", "CreateTrafficMirrorFilterRule", **without(properties, "Tags"))
    rule_id = made["TrafficMirrorFilterRule"]["TrafficMirrorFilterRuleId"]
    return Made(rule_id, {"Id": rule_id})


_RULE_FIELDS = {
    "DestinationPortRange": "destination-port-range",
    "SourcePortRange": "source-port-range",
    "Protocol": "protocol",
    "Description": "description",
}


def _update_rule(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    context.call(
        "ec2", "ModifyTrafficMirrorFilterRule",
        TrafficMirrorFilterRuleId=made.id,
        **without(new, "Tags", "TrafficMirrorFilterId"),
        RemoveFields=[field for name, field in _RULE_FIELDS.items() if name in old and name not in new] or None,
    )  # fmt: skip
    return made


def _delete_rule(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteTrafficMirrorFilterRule", TrafficMirrorFilterRuleId=made.id)


def _create_session(context: Context, properties: Properties) -> Made:
    made = context.call(
        "ec2", "CreateTrafficMirrorSession",
        **without(properties, "Tags"), TagSpecifications=_tagged("traffic-mirror-session", context, properties),
    )  # fmt: skip
    session_id = made["TrafficMirrorSession"]["TrafficMirrorSessionId"]
    return Made(session_id, {"Id": session_id})


def _update_session(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    fields = without(new, "NetworkInterfaceId", "Tags")
    context.call("ec2", "ModifyTrafficMirrorSession", TrafficMirrorSessionId=made.id, **fields)
    _retag(context, made.id, old, new)
    return made


def _delete_session(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteTrafficMirrorSession", TrafficMirrorSessionId=made.id)


def _retag(context: Context, resource: str, old: Properties, new: Properties) -> None:
    if old.get("Tags") == new.get("Tags"):
        return
    kept = {tag["Key"] for tag in new.get("Tags", [])}
    if gone := [{"Key": tag["Key"]} for tag in old.get("Tags", []) if tag["Key"] not in kept]:
        context.call("ec2", "DeleteTags", Resources=[resource], Tags=gone)
    if new.get("Tags"):
        context.call("ec2", "CreateTags", Resources=[resource], Tags=new["Tags"])


KINDS = [
    Kind(
        "AWS::EC2::TrafficMirrorTarget", _create_target, _delete_target,
        gone=("InvalidTrafficMirrorTargetId.NotFound",),
    ),
    Kind(
        "AWS::EC2::TrafficMirrorFilter", _create_filter, _delete_filter, _update_filter,
        replaces=("Description",), gone=("InvalidTrafficMirrorFilterId.NotFound",),
    ),
    Kind(
        "AWS::EC2::TrafficMirrorFilterRule", _create_rule, _delete_rule, _update_rule,
        replaces=("TrafficMirrorFilterId",),
        gone=("InvalidTrafficMirrorFilterRuleId.NotFound",),
    ),
    Kind(
        "AWS::EC2::TrafficMirrorSession", _create_session, _delete_session, _update_session,
        replaces=("NetworkInterfaceId",), gone=("InvalidTrafficMirrorSessionId.NotFound",),
    ),
]  # fmt: skip

"""The EC2 API of Traffic Mirroring: requests in, ``mirroring.Mirrors`` asked, answers in EC2's shapes out."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2 import utils as ec2_utils
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_network_interfaces import NetworkInterfaceBackend
from moto.ec2.responses import EC2Response
from moto.elbv2.models import elbv2_backends

from .mirroring import DIRECTIONS, Filter, Mirrors, Refused, Rule, Session, Target

# Families whose interfaces cannot be mirrored (Traffic Mirroring limits, read 2025-08). EC2 keeps a list of what is
# allowed; the emulator refuses only what is named as unsupported, so that a test may use any other type.
UNSUPPORTED_FAMILIES = ("t2", "m8", "c8", "r8")

PAGE_SIZES = range(5, 1001)
DEFAULT_PAGE = 1000

_first_use = threading.Lock()


def mirrors_of(backend: EC2Backend) -> Mirrors:
    """The mirroring of one region; it lives and dies with moto's backend of that region."""
    with _first_use:
        if not hasattr(backend, "mirrors"):
            backend.mirrors = Mirrors(_Region(backend))
        return backend.mirrors


class _Region:
    def __init__(self, backend: EC2Backend):
        self._backend = backend

    def unsupported_because(self, eni: str) -> str | None:
        interface = self._backend.enis[eni]
        if interface.interface_type != "interface":
            return f"it is of type {interface.interface_type}"
        kind = interface.instance.instance_type if interface.instance else ""
        family, _, size = kind.partition(".")
        if family.startswith(UNSUPPORTED_FAMILIES) or size.startswith("metal"):
            return f"its instance is of type {kind}"
        return None

    def load_balancer_exists(self, arn: str) -> bool:
        balancers = elbv2_backends[self._backend.account_id][self._backend.region_name].load_balancers
        return arn in balancers and balancers[arn].type == "network"


def install() -> None:
    """Puts these calls in place of moto's own, and ties an interface's sessions to its life."""
    # moto's made-up prefixes ("traf-mir-fil") would reach tags and clients that check the ids.
    for resource, prefix in (("traffic-mirror-filter", "tmf"), ("traffic-mirror-target", "tmt")):
        ec2_utils.EC2_PREFIX_TO_RESOURCE.pop(ec2_utils.EC2_RESOURCE_TO_PREFIX[resource], None)
        ec2_utils.EC2_RESOURCE_TO_PREFIX[resource] = prefix
        ec2_utils.EC2_PREFIX_TO_RESOURCE[prefix] = resource
    ec2_utils.EC2_RESOURCE_TO_PREFIX["traffic-mirror-filter-rule"] = "tmfr"
    ec2_utils.EC2_PREFIX_TO_RESOURCE["tmfr"] = "traffic-mirror-filter-rule"

    for action in (
        _create_traffic_mirror_target,
        _delete_traffic_mirror_target,
        _describe_traffic_mirror_targets,
        _create_traffic_mirror_filter,
        _delete_traffic_mirror_filter,
        _describe_traffic_mirror_filters,
        _modify_traffic_mirror_filter_network_services,
        _create_traffic_mirror_filter_rule,
        _modify_traffic_mirror_filter_rule,
        _delete_traffic_mirror_filter_rule,
        _describe_traffic_mirror_filter_rules,
        _create_traffic_mirror_session,
        _modify_traffic_mirror_session,
        _delete_traffic_mirror_session,
        _describe_traffic_mirror_sessions,
    ):
        setattr(EC2Response, action.__name__.removeprefix("_"), _answering(action))

    delete_interface = NetworkInterfaceBackend.delete_network_interface

    def delete_network_interface(self: EC2Backend, eni_id: str) -> None:
        delete_interface(self, eni_id)
        for session_id in mirrors_of(self).interface_deleted(eni_id):
            self.tags.pop(session_id, None)

    NetworkInterfaceBackend.delete_network_interface = delete_network_interface


def _answering(action: Callable[[_Call], dict[str, Any]]) -> Callable[[EC2Response], ActionResult]:
    def respond(self: EC2Response) -> ActionResult:
        try:
            return ActionResult(action(_Call(self)))
        except Refused as refused:
            raise EC2ClientError(refused.code, refused.message) from None

    return respond


class _Call:
    """One request: its parameters as Python values, and the region that it is for."""

    def __init__(self, request: EC2Response):
        self._request = request
        self.backend = request.ec2_backend
        self.mirrors = mirrors_of(self.backend)
        self.dry_run = str(self.get("DryRun", "")).lower() == "true"
        self.token = self.get("ClientToken")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._request._get_param(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value in (None, ""):
            raise Refused("MissingParameter", f"The request must contain the parameter {name}")
        return value

    def number(self, name: str, *, needed: bool = False) -> int | None:
        value = self.need(name) if needed else self.get(name)
        return None if value is None else int(value)

    def ports(self, name: str) -> tuple[int, int] | None:
        value = self.get(name)
        if not value:
            return None
        low = int(value.get("FromPort", 0))
        return low, int(value.get("ToPort", low))

    def given(self, **names: str) -> dict[str, Any]:
        """The parameters that the request carries, under the model's field names."""
        return {field: value for field, name in names.items() if (value := self.get(name)) is not None}

    def tags(self, resource: str) -> dict[str, str]:
        tags: dict[str, str] = {}
        for specification in self.get("TagSpecifications", []):
            kind = specification.get("ResourceType")
            if kind != resource:
                raise Refused(
                    "InvalidParameterValue", f"'{kind}' is not a valid taggable resource type for this operation."
                )
            tags.update({tag["Key"]: tag.get("Value", "") for tag in specification.get("Tags", [])})
        reserved = [key for key in tags if key.lower().startswith("aws:")]
        if reserved:
            raise Refused("InvalidParameterValue", f"Tag keys starting with 'aws:' are reserved: {reserved[0]}")
        return tags

    def creation(self, resource: str) -> dict[str, Any]:
        """What every Create call shares."""
        return {
            "description": self.get("Description"),
            "dry_run": self.dry_run,
            "token": self.token,
            "extra": self.tags(resource),
        }

    def tagged(self, resource: str, made_id: str) -> None:
        tags = self.tags(resource)
        # A repeated token finds the tags in place, and must not undo what happened to them since.
        if tags and made_id not in self.backend.tags:
            self.backend.create_tags([made_id], tags)

    def tag_list(self, made_id: str) -> list[dict[str, str]]:
        return [{"Key": key, "Value": value} for key, value in self.backend.tags.get(made_id, {}).items()]

    def untagged(self, gone_id: str) -> None:
        self.backend.tags.pop(gone_id, None)

    def page(self, key: str, rows: list[dict[str, Any]], filters: dict[str, str]) -> dict[str, Any]:
        """One page of a Describe: ``filters`` maps each documented filter to the field that it looks at."""
        for wanted in self.get("Filters", []):
            name, values = wanted.get("Name"), [str(v) for v in wanted.get("Values", [])]
            if name not in filters:
                raise Refused("InvalidParameterValue", f"The filter '{name}' is invalid")
            field = filters[name]
            rows = [r for r in rows if any(fnmatch.fnmatchcase(str(r.get(field, "")), v) for v in values)]
        size = self.number("MaxResults")
        if size is not None and size not in PAGE_SIZES:
            raise Refused("InvalidParameterValue", f"Value ({size}) for parameter MaxResults is invalid.")
        token = self.get("NextToken")
        start = 0
        if token:
            if not str(token).isdecimal() or int(token) > len(rows):
                raise Refused("InvalidParameterValue", f"Invalid value '{token}' for NextToken.")
            start = int(token)
        end = start + (size or DEFAULT_PAGE)
        answer: dict[str, Any] = {key: rows[start:end]}
        if end < len(rows):
            answer["NextToken"] = str(end)
        return answer


# -- targets -------------------------------------------------------------------------------------------------------


def _create_traffic_mirror_target(call: _Call) -> dict[str, Any]:
    target = call.mirrors.create_target(
        eni=call.get("NetworkInterfaceId"),
        nlb_arn=call.get("NetworkLoadBalancerArn"),
        gwlb_endpoint=call.get("GatewayLoadBalancerEndpointId"),
        **call.creation("traffic-mirror-target"),
    )
    call.tagged("traffic-mirror-target", target.id)
    return {"TrafficMirrorTarget": _target(call, target), "ClientToken": call.token}


def _delete_traffic_mirror_target(call: _Call) -> dict[str, Any]:
    target_id = call.need("TrafficMirrorTargetId")
    call.mirrors.delete_target(target_id, call.dry_run)
    call.untagged(target_id)
    return {"TrafficMirrorTargetId": target_id}


def _describe_traffic_mirror_targets(call: _Call) -> dict[str, Any]:
    found = call.mirrors.listed(
        call.mirrors.targets, call.get("TrafficMirrorTargetIds"), "InvalidTrafficMirrorTargetId.NotFound"
    )
    return call.page(
        "TrafficMirrorTargets",
        [_target(call, t) for t in found],
        {
            "description": "Description",
            "network-interface-id": "NetworkInterfaceId",
            "network-load-balancer-arn": "NetworkLoadBalancerArn",
            "owner-id": "OwnerId",
            "traffic-mirror-target-id": "TrafficMirrorTargetId",
        },
    )


def _target(call: _Call, target: Target) -> dict[str, Any]:
    return _without_none(
        {
            "TrafficMirrorTargetId": target.id,
            "NetworkInterfaceId": target.eni,
            "NetworkLoadBalancerArn": target.nlb_arn,
            "GatewayLoadBalancerEndpointId": target.gwlb_endpoint,
            "Type": target.kind,
            "Description": target.description,
            "OwnerId": call.backend.account_id,
            "Tags": call.tag_list(target.id),
        }
    )


# -- filters and rules ---------------------------------------------------------------------------------------------


def _create_traffic_mirror_filter(call: _Call) -> dict[str, Any]:
    made = call.mirrors.create_filter(**call.creation("traffic-mirror-filter"))
    call.tagged("traffic-mirror-filter", made.id)
    return {"TrafficMirrorFilter": _filter(call, made), "ClientToken": call.token}


def _delete_traffic_mirror_filter(call: _Call) -> dict[str, Any]:
    filter_id = call.need("TrafficMirrorFilterId")
    call.mirrors.delete_filter(filter_id, call.dry_run)
    call.untagged(filter_id)
    return {"TrafficMirrorFilterId": filter_id}


def _describe_traffic_mirror_filters(call: _Call) -> dict[str, Any]:
    found = call.mirrors.listed(
        call.mirrors.filters, call.get("TrafficMirrorFilterIds"), "InvalidTrafficMirrorFilterId.NotFound"
    )
    return call.page(
        "TrafficMirrorFilters",
        [_filter(call, f) for f in found],
        {"description": "Description", "traffic-mirror-filter-id": "TrafficMirrorFilterId"},
    )


def _modify_traffic_mirror_filter_network_services(call: _Call) -> dict[str, Any]:
    changed = call.mirrors.modify_services(
        call.need("TrafficMirrorFilterId"),
        call.get("AddNetworkServices", []),
        call.get("RemoveNetworkServices", []),
        call.dry_run,
    )
    return {"TrafficMirrorFilter": _filter(call, changed)}


def _create_traffic_mirror_filter_rule(call: _Call) -> dict[str, Any]:
    rule = call.mirrors.create_rule(
        filter_id=call.need("TrafficMirrorFilterId"),
        direction=call.need("TrafficDirection"),
        number=call.number("RuleNumber", needed=True) or 0,
        action=call.need("RuleAction"),
        source_cidr=call.need("SourceCidrBlock"),
        destination_cidr=call.need("DestinationCidrBlock"),
        protocol=call.number("Protocol"),
        source_ports=call.ports("SourcePortRange"),
        destination_ports=call.ports("DestinationPortRange"),
        **call.creation("traffic-mirror-filter-rule"),
    )
    call.tagged("traffic-mirror-filter-rule", rule.id)
    return {"TrafficMirrorFilterRule": _rule(rule), "ClientToken": call.token}


def _modify_traffic_mirror_filter_rule(call: _Call) -> dict[str, Any]:
    changes = call.given(
        direction="TrafficDirection",
        action="RuleAction",
        source_cidr="SourceCidrBlock",
        destination_cidr="DestinationCidrBlock",
        description="Description",
    )
    for field, name in (("number", "RuleNumber"), ("protocol", "Protocol")):
        if (value := call.number(name)) is not None:
            changes[field] = value
    for field, name in (("source_ports", "SourcePortRange"), ("destination_ports", "DestinationPortRange")):
        if (ports := call.ports(name)) is not None:
            changes[field] = ports
    rule = call.mirrors.modify_rule(
        call.need("TrafficMirrorFilterRuleId"), changes, call.get("RemoveFields", []), call.dry_run
    )
    return {"TrafficMirrorFilterRule": _rule(rule)}


def _delete_traffic_mirror_filter_rule(call: _Call) -> dict[str, Any]:
    rule_id = call.need("TrafficMirrorFilterRuleId")
    call.mirrors.delete_rule(rule_id, call.dry_run)
    call.untagged(rule_id)
    return {"TrafficMirrorFilterRuleId": rule_id}


def _describe_traffic_mirror_filter_rules(call: _Call) -> dict[str, Any]:
    filter_id = call.get("TrafficMirrorFilterId")
    owners = call.mirrors.listed(
        call.mirrors.filters, [filter_id] if filter_id else None, "InvalidTrafficMirrorFilterId.NotFound"
    )
    rules = {rule.id: rule for owner in owners for rule in owner.rules.values()}
    found = call.mirrors.listed(
        rules, call.get("TrafficMirrorFilterRuleIds"), "InvalidTrafficMirrorFilterRuleId.NotFound"
    )
    return call.page(
        "TrafficMirrorFilterRules",
        [_rule(r) for r in found],
        {
            "traffic-mirror-filter-rule-id": "TrafficMirrorFilterRuleId",
            "traffic-mirror-filter-id": "TrafficMirrorFilterId",
            "rule-number": "RuleNumber",
            "rule-action": "RuleAction",
            "traffic-direction": "TrafficDirection",
            "protocol": "Protocol",
            "source-cidr-block": "SourceCidrBlock",
            "destination-cidr-block": "DestinationCidrBlock",
            "description": "Description",
        },
    )


def _filter(call: _Call, found: Filter) -> dict[str, Any]:
    ingress, egress = ([_rule(r) for r in found.ordered(direction)] for direction in DIRECTIONS)
    return _without_none(
        {
            "TrafficMirrorFilterId": found.id,
            "IngressFilterRules": ingress,
            "EgressFilterRules": egress,
            "NetworkServices": list(found.services),
            "Description": found.description,
            "Tags": call.tag_list(found.id),
        }
    )


def _rule(rule: Rule) -> dict[str, Any]:
    def ports(pair: tuple[int, int] | None) -> dict[str, int] | None:
        return {"FromPort": pair[0], "ToPort": pair[1]} if pair else None

    return _without_none(
        {
            "TrafficMirrorFilterRuleId": rule.id,
            "TrafficMirrorFilterId": rule.filter_id,
            "TrafficDirection": rule.direction,
            "RuleNumber": rule.number,
            "RuleAction": rule.action,
            "Protocol": rule.protocol,
            "SourceCidrBlock": rule.source_cidr,
            "DestinationCidrBlock": rule.destination_cidr,
            "SourcePortRange": ports(rule.source_ports),
            "DestinationPortRange": ports(rule.destination_ports),
            "Description": rule.description,
        }
    )


# -- sessions ------------------------------------------------------------------------------------------------------


def _create_traffic_mirror_session(call: _Call) -> dict[str, Any]:
    session = call.mirrors.create_session(
        eni=call.need("NetworkInterfaceId"),
        target_id=call.need("TrafficMirrorTargetId"),
        filter_id=call.need("TrafficMirrorFilterId"),
        number=call.number("SessionNumber", needed=True) or 0,
        packet_length=call.number("PacketLength"),
        vni=call.number("VirtualNetworkId"),
        **call.creation("traffic-mirror-session"),
    )
    call.tagged("traffic-mirror-session", session.id)
    return {"TrafficMirrorSession": _session(call, session), "ClientToken": call.token}


def _modify_traffic_mirror_session(call: _Call) -> dict[str, Any]:
    changes = call.given(
        target_id="TrafficMirrorTargetId", filter_id="TrafficMirrorFilterId", description="Description"
    )
    for field, name in (("packet_length", "PacketLength"), ("number", "SessionNumber"), ("vni", "VirtualNetworkId")):
        if (value := call.number(name)) is not None:
            changes[field] = value
    session = call.mirrors.modify_session(
        call.need("TrafficMirrorSessionId"), changes, call.get("RemoveFields", []), call.dry_run
    )
    return {"TrafficMirrorSession": _session(call, session)}


def _delete_traffic_mirror_session(call: _Call) -> dict[str, Any]:
    session_id = call.need("TrafficMirrorSessionId")
    call.mirrors.delete_session(session_id, call.dry_run)
    call.untagged(session_id)
    return {"TrafficMirrorSessionId": session_id}


def _describe_traffic_mirror_sessions(call: _Call) -> dict[str, Any]:
    found = call.mirrors.listed(
        call.mirrors.sessions, call.get("TrafficMirrorSessionIds"), "InvalidTrafficMirrorSessionId.NotFound"
    )
    return call.page(
        "TrafficMirrorSessions",
        [_session(call, s) for s in found],
        {
            "description": "Description",
            "network-interface-id": "NetworkInterfaceId",
            "owner-id": "OwnerId",
            "packet-length": "PacketLength",
            "session-number": "SessionNumber",
            "traffic-mirror-filter-id": "TrafficMirrorFilterId",
            "traffic-mirror-session-id": "TrafficMirrorSessionId",
            "traffic-mirror-target-id": "TrafficMirrorTargetId",
            "virtual-network-id": "VirtualNetworkId",
        },
    )


def _session(call: _Call, session: Session) -> dict[str, Any]:
    return _without_none(
        {
            "TrafficMirrorSessionId": session.id,
            "TrafficMirrorTargetId": session.target_id,
            "TrafficMirrorFilterId": session.filter_id,
            "NetworkInterfaceId": session.eni,
            "OwnerId": call.backend.account_id,
            "PacketLength": session.packet_length,
            "SessionNumber": session.number,
            "VirtualNetworkId": session.vni,
            "Description": session.description,
            "Tags": call.tag_list(session.id),
        }
    )


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}

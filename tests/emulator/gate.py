"""Whether a function's role allows a call: what each call asks for, judged by the policies that moto's IAM holds."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.iam.models import ManagedPolicy, iam_backends

from .calls import Answer, Call, failure
from .iam import Ask, Decision, Permission, Unknown, decide

log = logging.getLogger("emulator.gate")

Tags = Callable[[str], Mapping[str, str]]
"""The tags of an EC2 resource, by its id."""

WITHOUT_RESOURCES = re.compile(
    r"(ec2|autoscaling|elasticloadbalancing):Describe\w+|ecs:List(Clusters|Tasks)|lambda:ListLayerVersions"
)
"""Actions for which these services know no resource (service authorization reference), as far as functions use them."""


def asks_of(call: Call, tags_of: Tags) -> list[Ask]:
    """What a call must be allowed, each part of it on its own. Raises ``Unknown`` for a call that is not known."""
    name, given = call.name, call.given
    facts = {"aws:RequestedRegion": call.region}
    arn = f"arn:aws:{call.service}:{call.region}:{DEFAULT_ACCOUNT_ID}:"

    def on(kind: str, resource_id: str) -> Ask:
        known = {f"aws:ResourceTag/{k}": v for k, v in tags_of(resource_id).items()}
        return Ask(name, f"{arn}{kind}/{resource_id}", {**facts, **known})

    if WITHOUT_RESOURCES.fullmatch(name):
        return [Ask(name, "*", facts)]
    mirrored = {
        "traffic-mirror-target": given.get("TrafficMirrorTargetId"),
        "traffic-mirror-filter": given.get("TrafficMirrorFilterId"),
    }
    if name == "ec2:CreateTrafficMirrorSession":
        asked = {f"aws:RequestTag/{k}": v for k, v in _request_tags(given).items()}
        session = f"{arn}traffic-mirror-session/*"
        mirrored["network-interface"] = given.get("NetworkInterfaceId")
        asks = [on(kind, held) for kind, held in mirrored.items() if held]
        asks.append(Ask(name, session, {**facts, **asked}))
        if asked:
            created = {"ec2:CreateAction": call.action}
            asks.append(Ask("ec2:CreateTags", session, {**facts, **asked, **created}))
        return asks
    if name in ("ec2:ModifyTrafficMirrorSession", "ec2:DeleteTrafficMirrorSession"):
        mirrored["traffic-mirror-session"] = given.get("TrafficMirrorSessionId")
        return [on(kind, held) for kind, held in mirrored.items() if held]
    if name in ("autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"):
        group = given.get("AutoScalingGroupName", "")
        # The id in a group's ARN is random; a policy can only have a wildcard there.
        return [
            Ask(name, f"{arn}autoScalingGroup:5e1f0c7e-0000-4000-8000-000000000000:autoScalingGroupName/{group}", facts)
        ]
    if name == "elasticloadbalancing:DeregisterTargets":
        return [Ask(name, given.get("TargetGroupArn", ""), facts)]
    if name in ("cloudformation:DescribeStacks", "cloudformation:SignalResource"):
        stack = given.get("StackName", "*")
        return [Ask(name, stack if stack.startswith("arn:") else f"{arn}stack/{stack}/*", facts)]
    if name == "lambda:InvokeFunction":
        function = given["FunctionName"]
        return [Ask(name, function if function.startswith("arn:") else f"{arn}function:{function}", facts)]
    if name == "lambda:GetLayerVersion":
        return [Ask(name, given["Arn"], facts)]
    if name == "lambda:DeleteLayerVersion":
        return [Ask(name, f"{arn}layer:{given['LayerName']}:{given['VersionNumber']}", facts)]
    if name == "cloudwatch:PutMetricData":
        return [Ask(name, "*", {**facts, "cloudwatch:namespace": json.loads(given["Namespace"])})]
    if name == "ecs:DescribeTasks":
        return [Ask(name, task, facts) for task in json.loads(given["tasks"])]
    raise Unknown(f"the resources of {name}")


def _request_tags(given: Mapping[str, str]) -> dict[str, str]:
    tags = {}
    for key, value in given.items():
        if re.fullmatch(r"TagSpecification\.\d+\.Tag\.\d+\.Key", key):
            tags[value] = given.get(key.removesuffix("Key") + "Value", "")
    return tags


class Gate:
    """Judges calls, and keeps what was used, denied and not understood."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        """What each role may do, and its boundary. Who runs while its role is deleted may do it for some time yet."""
        self._used: set[Permission] = set()
        self._denied: list[dict[str, str]] = []
        self._errors: list[str] = []

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {
                "used": sorted([p.policy, p.sid, p.action, p.resource] for p in self._used),
                "denied": list(self._denied),
                "errors": list(self._errors),
            }

    def judge(self, role_arn: str, asks: list[Ask]) -> tuple[Ask, Decision] | None:
        """The first ask that the role does not allow, or None. Raises ``Unknown``, and remembers it."""
        policies, boundary = self.remember(role_arn)
        for ask in asks:
            decision = decide(policies, ask, boundary)
            with self._lock:
                if decision.allowed:
                    self._used.update(decision.by)
                else:
                    self._denied.append({"role": role_arn.rsplit("/", 1)[1], "action": ask.action, "resource": ask.resource})
                    return ask, decision
        return None

    def allows(self, role_arn: str, ask: Ask) -> bool:
        """For what AWS tries by itself as the role: a refusal is nobody's mistake."""
        policies, boundary = self.remember(role_arn)
        decision = decide(policies, ask, boundary)
        with self._lock:
            self._used.update(decision.by)
        return decision.allowed

    def remember(self, role_arn: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the role may do, or what it could do when it was there."""
        name = role_arn.rsplit("/", 1)[1]
        role = next((r for r in iam_backends[DEFAULT_ACCOUNT_ID]["aws"].roles.values() if r.name == name), None)
        if role is not None:
            boundary = None
            policies = {**role.policies, **{a: _document(p) for a, p in role.managed_policies.items()}}
            if arn := role.permissions_boundary_arn:
                boundary = {arn: _document(iam_backends[DEFAULT_ACCOUNT_ID]["aws"].managed_policies[arn])}
            self._known[name] = policies, boundary
        return self._known.get(name, ({}, None))

    def refusal(self, role_arn: str, call: Call) -> Answer | None:
        """The answer to a call that the role does not allow; None for one that may go on."""
        tags = ec2_backends[DEFAULT_ACCOUNT_ID][call.region].tags
        try:
            denied = self.judge(role_arn, asks_of(call, lambda held: dict(tags.get(held, {}))))
        except Unknown as unknown:
            log.error("%s: the emulator does not know %s", call.name, unknown)
            with self._lock:
                self._errors.append(f"{call.name}: {unknown}")
            return failure(call.service, 403, "EmulatorDoesNotKnow", str(unknown))
        if denied is None:
            return None
        ask, decision = denied
        message = f"{role_arn} is not authorized to perform: {ask.action} on resource: {ask.resource} {decision.why}"
        log.warning("%s", message)
        if call.service == "ec2":
            message = f"You are not authorized to perform this operation. {message}"
            return failure("ec2", 403, "UnauthorizedOperation", message)
        # JSON services call it an exception and answer 400, Lambda 403.
        query = call.service in ("autoscaling", "elasticloadbalancing", "cloudformation")
        code = "AccessDenied" if query else "AccessDeniedException"
        return failure(call.service, 403 if query or call.service == "lambda" else 400, code, message)


def _document(policy: ManagedPolicy) -> str:
    """The version of a managed policy that is in force."""
    return next(v.document for v in policy.versions if v.is_default)

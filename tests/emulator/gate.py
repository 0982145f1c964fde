"""Who calls, and whether the caller's role allows it: the hook between HTTP and moto.

Each environment of a function has an access key of its own, which belongs to the function's role, as on Lambda. A call
with any other key is the account's owner, who may do everything.
"""

from __future__ import annotations

import io
import itertools
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends

from .iam import Ask, Decision, Permission, Unknown, decide
from .server import as_json

log = logging.getLogger("emulator.gate")

Tags = Callable[[str], Mapping[str, str]]
"""The tags of an EC2 resource, by its id."""

WITHOUT_RESOURCES = re.compile(r"(ec2|autoscaling|elasticloadbalancing):Describe\w+|ecs:List(Clusters|Tasks)")
"""Actions for which these services know no resource (service authorization reference), as far as functions use them."""


def asks_of(service: str, action: str, given: Mapping[str, str], region: str, tags_of: Tags) -> list[Ask]:
    """What a call must be allowed, each part of it on its own. Raises ``Unknown`` for a call that is not known."""
    name = f"{service}:{action}"
    facts = {"aws:RequestedRegion": region}
    arn = f"arn:aws:{service}:{region}:{DEFAULT_ACCOUNT_ID}:"

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
            created = {"ec2:CreateAction": action}
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
    if name == "cloudformation:DescribeStacks":
        stack = given.get("StackName", "*")
        return [Ask(name, stack if stack.startswith("arn:") else f"{arn}stack/{stack}/*", facts)]
    if name == "lambda:InvokeFunction":
        function = given["FunctionName"]
        return [Ask(name, function if function.startswith("arn:") else f"{arn}function:{function}", facts)]
    raise Unknown(f"the resources of {name}")


def _request_tags(given: Mapping[str, str]) -> dict[str, str]:
    tags = {}
    for key, value in given.items():
        if re.fullmatch(r"TagSpecification\.\d+\.Tag\.\d+\.Key", key):
            tags[value] = given.get(key.removesuffix("Key") + "Value", "")
    return tags


def called(environ: Mapping[str, Any], body: bytes) -> tuple[str, str, str, dict[str, str]]:
    """Service, region, action and parameters of a signed request."""
    _, _, region, service, _ = environ["HTTP_AUTHORIZATION"].split("Credential=")[1].split(",")[0].split("/")
    path = urllib.parse.unquote(environ.get("PATH_INFO", ""))
    if service == "lambda":
        invoked = re.fullmatch(r"/2015-03-31/functions/([^/]+)/invocations", path)
        return service, region, "InvokeFunction" if invoked else path, {"FunctionName": invoked[1] if invoked else ""}
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return service, region, target.rsplit(".", 1)[1], {}
    given = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
    return service, region, given.get("Action", ""), given


class Gate:
    """Issues keys, judges calls that carry them, and keeps what was used, denied and not understood."""

    def __init__(self) -> None:
        self._roles: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._used: set[Permission] = set()
        self._denied: list[dict[str, str]] = []
        self._errors: list[str] = []

    def issue(self, role_arn: str) -> str:
        """A new access key of that role."""
        key = f"ASIA{next(self._numbers):016d}"
        self._roles[key] = role_arn
        return key

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {
                "used": sorted([p.policy, p.sid, p.action, p.resource] for p in self._used),
                "denied": list(self._denied),
                "errors": list(self._errors),
            }

    def judge(self, role_arn: str, asks: list[Ask]) -> tuple[Ask, Decision] | None:
        """The first ask that the role does not allow, or None. Raises ``Unknown``, and remembers it."""
        name = role_arn.rsplit("/", 1)[1]
        role = next((r for r in iam_backends[DEFAULT_ACCOUNT_ID]["aws"].roles.values() if r.name == name), None)
        policies: dict[str, Any] = {}
        boundary = None
        if role is not None:
            policies = {**role.policies, **{a: p.document for a, p in role.managed_policies.items()}}
            if arn := role.permissions_boundary_arn:
                boundary = {arn: iam_backends[DEFAULT_ACCOUNT_ID]["aws"].managed_policies[arn].document}
        for ask in asks:
            decision = decide(policies, ask, boundary)
            with self._lock:
                if decision.allowed:
                    self._used.update(decision.by)
                else:
                    self._denied.append({"role": name, "action": ask.action, "resource": ask.resource})
                    return ask, decision
        return None

    def refusal(self, environ: dict[str, Any]) -> tuple[int, bytes, str] | None:
        """The answer to a call that is not allowed; None for one that may go on."""
        found = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        role = self._roles.get(found[1]) if found else None
        if role is None:
            return None
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        service, region, action, given = called(environ, body)
        tags = ec2_backends[DEFAULT_ACCOUNT_ID][region].tags
        try:
            denied = self.judge(role, asks_of(service, action, given, region, lambda held: dict(tags.get(held, {}))))
        except Unknown as unknown:
            log.error("%s:%s: the emulator does not know %s", service, action, unknown)
            with self._lock:
                self._errors.append(f"{service}:{action}: {unknown}")
            return refused(service, "EmulatorDoesNotKnow", str(unknown))
        if denied is None:
            return None
        ask, decision = denied
        message = f"{role} is not authorized to perform: {ask.action} on resource: {ask.resource} {decision.why}"
        log.warning("%s", message)
        if service == "ec2":
            return refused(service, "UnauthorizedOperation", f"You are not authorized to perform this operation. {message}")
        return refused(service, "AccessDenied", message)


def refused(service: str, code: str, message: str) -> tuple[int, bytes, str]:
    """A service's own form of an error."""
    if service == "ec2":
        error = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>gate</RequestID></Response>"
        return 403, text.encode(), "text/xml"
    if service in ("autoscaling", "elasticloadbalancing", "cloudformation"):
        error = f"<Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message>"
        text = f"<ErrorResponse><Error>{error}</Error><RequestId>gate</RequestId></ErrorResponse>"
        return 403, text.encode(), "text/xml"
    status = 403 if service == "lambda" else 400
    return as_json({"__type": f"{code}Exception", "message": message, "Message": message}, status)

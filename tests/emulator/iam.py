"""IAM's decision about one call, from the policies of the caller's role. Pure: nothing here knows moto or HTTP.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html, as far as identity-based
policies and a permissions boundary go. What a policy says and this module does not know is an error (``Unknown``),
never a permission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

DOCUMENT = {"Version", "Id", "Statement"}
ELEMENTS = {"Sid", "Effect", "Action", "Resource", "Condition"}
KEYS = ("aws:RequestTag/", "aws:ResourceTag/", "ec2:CreateAction", "aws:RequestedRegion", "cloudwatch:namespace")
"""Condition keys that a call's facts hold; those that end in a slash are families."""


class Unknown(Exception):
    """The policy uses what is not emulated: the test is wrong, or the emulator has to learn it."""


@dataclass(frozen=True)
class Ask:
    """One of the things that a call needs: an action on a resource. All asks of a call must be allowed."""

    action: str
    resource: str
    """An ARN, or ``*`` where the action knows no resources."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Condition keys that the call carries; one that is missing here is absent from the call."""


@dataclass(frozen=True)
class Permission:
    """One action on one resource, as a policy's statement wrote them."""

    policy: str
    sid: str
    action: str
    resource: str


@dataclass(frozen=True)
class Decision:
    allowed: bool
    why: str
    by: tuple[Permission, ...] = ()
    """What allowed it."""


def decide(
    policies: Mapping[str, str | Mapping[str, Any]],
    ask: Ask,
    boundary: Mapping[str, str | Mapping[str, Any]] | None = None,
) -> Decision:
    """A Deny anywhere wins; otherwise the policies must allow it and, where there is one, the boundary."""
    allowing: list[Permission] = []
    bounded = boundary is None
    for is_boundary, documents in ((False, policies), (True, boundary or {})):
        for name, document in documents.items():
            for effect, permission in _matching(name, document, ask):
                if effect == "Deny":
                    return Decision(False, f"with an explicit deny in {permission.policy} {permission.sid}")
                if is_boundary:
                    bounded = True
                else:
                    allowing.append(permission)
    if not allowing:
        return Decision(False, f"because no identity-based policy allows the {ask.action} action")
    if not bounded:
        return Decision(False, f"because no permissions boundary allows the {ask.action} action")
    return Decision(True, "", tuple(allowing))


def _statements(document: str | Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    held = json.loads(document) if isinstance(document, str) else document
    if unknown := held.keys() - DOCUMENT:
        raise Unknown(f"a policy has {', '.join(sorted(unknown))}")
    for number, statement in enumerate(_list(held["Statement"])):
        if unknown := statement.keys() - ELEMENTS:
            raise Unknown(f"a policy's statement has {', '.join(sorted(unknown))}")
        if statement["Effect"] not in ("Allow", "Deny"):
            raise Unknown(f"a policy's effect is {statement['Effect']}")
        yield statement.get("Sid", str(number)), statement


def _matching(name: str, document: str | Mapping[str, Any], ask: Ask) -> Iterable[tuple[str, Permission]]:
    for sid, statement in _statements(document):
        # Conditions are read even where the rest does not match, so that what is unknown shows at the first call.
        holds = conditions_hold(statement.get("Condition", {}), ask.facts)
        for action in _list(statement["Action"]):
            for resource in _list(statement["Resource"]):
                if holds and like(ask.action.lower(), action.lower()) and _covers(resource, ask.resource):
                    yield statement["Effect"], Permission(name, sid, action, resource)


def _covers(pattern: str, resource: str) -> bool:
    # A call that knows no resources is matched by "*" alone, whatever ARN a policy names.
    return pattern == "*" if resource == "*" else like(resource, pattern)


def conditions_hold(conditions: Mapping[str, Mapping[str, Any]], facts: Mapping[str, str]) -> bool:
    """Whether every operator holds for every one of its keys. Raises ``Unknown`` for one that is not known."""
    results = []
    for operator, wanted in conditions.items():
        base = operator.removesuffix("IfExists")
        if base not in _OPERATORS and operator != "Null":
            raise Unknown(f"the condition operator {operator}")
        for key, values in wanted.items():
            if not any(key.startswith(known) if known.endswith("/") else key == known for known in KEYS):
                raise Unknown(f"the condition key {key}")
            value = facts.get(key)
            if operator == "Null":
                results.append((value is None) == (str(_list(values)[0]).lower() == "true"))
            elif value is None:
                # A negated operator holds for a key that is absent.
                results.append(operator.endswith("IfExists") or "Not" in base)
            else:
                found = any(_OPERATORS[base](value, str(v)) for v in _list(values))
                results.append(found != ("Not" in base))
    return all(results)


def like(value: str, pattern: str) -> bool:
    """``*`` is any text, ``?`` any character; nothing else is special."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def arn_like(value: str, pattern: str) -> bool:
    """Each of an ARN's six parts is compared on its own: a wildcard does not reach over a colon, but in the last."""
    have, want = value.split(":", 5), pattern.split(":", 5)
    return len(have) == len(want) and all(map(like, have, want))


def _equal(value: str, wanted: str) -> bool:
    return value == wanted


_OPERATORS = {
    "StringEquals": _equal,
    "StringNotEquals": _equal,
    "StringLike": like,
    "StringNotLike": like,
    "ArnEquals": arn_like,
    "ArnLike": arn_like,
}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

"""Least privilege from the other side: what the template allows and no test of this directory used. Runs last."""

from __future__ import annotations

from typing import Any

import product
import pytest
import yaml
from conftest import RAN, USED

product.need_a_build()

NOT_USED_HERE = {
    ("start", "*", "*"): "the rebuilders' instances do not boot in the emulator; the role is theirs",
    ("continue", "Continue", "lambda:InvokeFunction"): "only a removal of more than 14 minutes continues in another run",
    ("*", "Log", "*"): "Lambda itself writes the log, with the role; the emulator writes it to a file",
}
"""(policy, Sid, action), with a star for each: why no test can use it."""


def of_the_template() -> set[tuple[str, str, str]]:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda *_: "intrinsic")
    with open(product.BUILD / "template.yaml") as file:
        resources = yaml.load(file, loader)["Resources"]
    policies: list[dict[str, Any]] = []
    for resource in resources.values():
        held = resource.get("Properties", {})
        if resource["Type"] == "AWS::IAM::Role":
            policies += held.get("Policies", [])
        elif resource["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            policies.append(held)
    found = set()
    for policy in policies:
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            for action in actions if isinstance(actions, list) else [actions]:
                found.add((policy["PolicyName"], statement["Sid"], action))
    return found


def excepted(permission: tuple[str, str, str]) -> bool:
    return any(all(e in ("*", p) for e, p in zip(exception, permission, strict=True)) for exception in NOT_USED_HERE)


def test_every_permission_of_the_template_was_used() -> None:
    if missing := {"test_attach", "test_permissions", "test_stack"} - RAN:
        pytest.skip(f"NOT RUN: it needs what {', '.join(sorted(missing))} used; run all of tests/cloud")
    assert sorted(p for p in of_the_template() - USED if not excepted(p)) == []


def test_no_exception_is_out_of_date() -> None:
    known = of_the_template()
    for exception in NOT_USED_HERE:
        assert any(all(e in ("*", p) for e, p in zip(exception, q, strict=True)) for q in known), exception

"""Least privilege from the other side: what the template allows and no test of this directory used.

Judged when all have ended, because none of them can; ``conftest`` calls it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

NOT_USED_HERE = {
    ("start", "SayThatItIsThere", "*"): "no agent of Systems Manager runs on the hosts of the lab",
    ("start", "OpenAShell", "*"): "no agent of Systems Manager runs on the hosts of the lab",
    ("node", "*", "*"): "no Wallarm node boots in the emulator; the role is theirs",
    ("continue", "*", "*"): "only a removal of more than 14 minutes continues in another run",
}
"""(policy, Sid, action), with a star for each: why no test can use it."""
NEEDED = {"test_attach", "test_boot", "test_leaving", "test_permissions", "test_selectors", "test_stack"}
"""The files whose tests together use everything."""
SAID: list[str] = []
"""For the end of pytest's report."""


def of_the_template(template: Path) -> set[tuple[str, str, str]]:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda *_: "intrinsic")
    with open(template) as file:
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


def _is(exception: tuple[str, str, str], permission: tuple[str, str, str]) -> bool:
    return all(e in ("*", p) for e, p in zip(exception, permission, strict=True))


def excepted(permission: tuple[str, str, str]) -> bool:
    return any(_is(exception, permission) for exception in NOT_USED_HERE)


def judge(session: pytest.Session, used: set[tuple[str, str, str]], ran: set[str]) -> None:
    """Fails the session where a permission was not used, or an exception not needed."""
    from product import BUILD  # which needs conftest

    if not ran & NEEDED:
        return
    if missing := NEEDED - ran:
        SAID.append(f"SKIPPED unused permissions: it needs what {', '.join(sorted(missing))} use too")
        return
    allowed = of_the_template(BUILD / "template.yaml")
    unused = sorted(p for p in allowed - used if not excepted(p))
    needless = [e for e in NOT_USED_HERE if not any(_is(e, p) for p in allowed - used)]
    SAID.extend(f"FAILED permission that nothing used: {' '.join(p)}" for p in unused)
    SAID.extend(f"FAILED exception that is not needed: {' '.join(e)}" for e in needless)
    if unused or needless:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

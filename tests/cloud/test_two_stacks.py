"""Two stacks in one region, each with its own selection: neither touches the other's sessions, not even by asking to
(`conftest.Cloud.stop` looks into the account's log), and neither is in the other's way.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import event, interface_of, invoke, sessions

product.need_a_build()


@pytest.fixture(scope="module")
def stacks(cloud: Cloud) -> dict[str, SimpleNamespace]:
    source = product.template(cloud)
    made = {}
    for name, key in (("first", "One"), ("second", "Two")):
        out = product.create(cloud, source, name, Selection=f"tag:{key}", MutationsPerSecond="5")
        made[name] = SimpleNamespace(out=out, key=key)
    return made


def launch(cloud: Cloud, *keys: str) -> dict[str, Any]:
    tags = [{"Key": key, "Value": "yes"} for key in keys]
    return cloud.run_instance(**({"TagSpecifications": [{"ResourceType": "instance", "Tags": tags}]} if tags else {}))


def whose(cloud: Cloud, stacks: dict[str, SimpleNamespace], eni: str) -> list[str]:
    """The stacks whose target the interface's sessions lead to."""
    targets = {stack.out["MirrorTargetId"]: name for name, stack in stacks.items()}
    return sorted(targets[s["target"]["id"]] for s in sessions(cloud, eni))


@pytest.fixture(scope="module")
def enis(cloud: Cloud, stacks: dict[str, SimpleNamespace]) -> dict[str, str]:
    """Launched with both stacks listening."""
    instances = {
        "one": launch(cloud, "One"),
        "two": launch(cloud, "Two"),
        "both": launch(cloud, "One", "Two"),
        "none": launch(cloud),
    }
    found = {name: interface_of(instance) for name, instance in instances.items()}
    wait_until(lambda: len(sessions(cloud)) == 4, 20, "four sessions")
    return {**found, "id of both": instances["both"]["InstanceId"]}


def sweep(cloud: Cloud, stacks: dict[str, SimpleNamespace]) -> list[Any]:
    answers = [invoke(cloud, s.out["ReconcileFunction"], event("scheduled", "")) for s in stacks.values()]
    return [a[field] for a in answers for field in ("created", "modified", "deleted", "failed")]


def test_each_mirrors_what_it_selects(cloud: Cloud, stacks: dict[str, SimpleNamespace], enis: dict[str, str]) -> None:
    assert whose(cloud, stacks, enis["one"]) == ["first"]
    assert whose(cloud, stacks, enis["two"]) == ["second"]
    assert whose(cloud, stacks, enis["both"]) == ["first", "second"]
    assert whose(cloud, stacks, enis["none"]) == []
    assert sorted(s["number"] for s in sessions(cloud, enis["both"])) == [100, 101]


def test_a_sweep_of_each_changes_nothing(
    cloud: Cloud, stacks: dict[str, SimpleNamespace], enis: dict[str, str]
) -> None:
    before = sessions(cloud)
    assert sweep(cloud, stacks) == [[]] * 8
    assert sessions(cloud) == before


def test_who_loses_interest_removes_its_own_session_only(
    cloud: Cloud, stacks: dict[str, SimpleNamespace], enis: dict[str, str]
) -> None:
    ec2 = cloud.client("ec2")
    (kept,) = [
        s["id"] for s in sessions(cloud, enis["both"]) if s["target"]["id"] == stacks["second"].out["MirrorTargetId"]
    ]
    ec2.delete_tags(Resources=[enis["id of both"]], Tags=[{"Key": "One"}])
    wait_until(lambda: len(sessions(cloud, enis["both"])) == 1, 15, "the first stack to let go")
    assert [s["id"] for s in sessions(cloud, enis["both"])] == [kept]
    ec2.create_tags(Resources=[enis["id of both"]], Tags=[{"Key": "One", "Value": "yes"}])
    wait_until(lambda: len(sessions(cloud, enis["both"])) == 2, 15, "the first stack to come back")


def test_one_can_be_removed_and_the_other_stays_whole(
    cloud: Cloud, stacks: dict[str, SimpleNamespace], enis: dict[str, str]
) -> None:
    client = cloud.client("cloudformation")
    (first,) = client.describe_stacks(StackName="first")["Stacks"]
    client.delete_stack(StackName="first")
    wait_until(lambda: product.status(cloud, first["StackId"]) != "DELETE_IN_PROGRESS", 60, "the first to go")
    assert product.status(cloud, first["StackId"]) == "DELETE_COMPLETE"
    del stacks["first"]
    assert whose(cloud, stacks, enis["both"]) == whose(cloud, stacks, enis["two"]) == ["second"]
    assert sessions(cloud, enis["one"]) == []
    assert sweep(cloud, stacks) == [[]] * 4
    assert product.outputs(cloud, "second") == stacks["second"].out

"""The policies of the template are enforced: take something away from them, and the service says no."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import product
import pytest
from conftest import Cloud
from product import event, interface_of, sessions, tagged

product.need_a_build()

CREATE = "ec2:CreateTrafficMirrorSession"
Statements = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def reconcile(cloud: Cloud) -> str:
    cloud.may_deny = True
    product.deploy(cloud, MutationsPerSecond="5")
    for mapping in cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]:
        cloud.client("lambda").update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    return product.outputs(cloud)["ReconcileFunction"]


def sweep(cloud: Cloud, function: str) -> None:
    """Its answer is not looked at: a refused call may well be told as an error."""
    cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event("scheduled", "")))["Payload"].read()


def without_creating(held: Statements) -> None:
    del held["MirrorAnyInterface"]


def another_filter(held: Statements) -> None:
    held["PointSessionsAtOurTarget"]["Resource"][1] += "0"


def another_tag(held: Statements) -> None:
    held["MakeSessionsWithOurTag"]["Condition"]["StringEquals"] = {"aws:RequestTag/mirrorfleet:stack": "another"}


def without_tagging(held: Statements) -> None:
    del held["TagThemWhileMakingThem"]


@pytest.mark.parametrize(
    ("change", "action", "resource"),
    [
        (without_creating, CREATE, ":network-interface/"),
        (another_filter, CREATE, ":traffic-mirror-filter/"),
        (another_tag, CREATE, ":traffic-mirror-session/*"),
        (without_tagging, "ec2:CreateTags", ":traffic-mirror-session/*"),
    ],
)
def test_a_policy_that_says_less_denies_the_session(
    cloud: Cloud, reconcile: str, change: Callable[[Statements], None], action: str, resource: str
) -> None:
    iam = cloud.client("iam")
    role = cloud.client("lambda").get_function_configuration(FunctionName=reconcile)["Role"].rsplit("/", 1)[1]
    given = iam.get_role_policy(RoleName=role, PolicyName="reconcile")["PolicyDocument"]
    less = copy.deepcopy(given)
    held = {s["Sid"]: s for s in less["Statement"]}
    change(held)
    less["Statement"] = list(held.values())
    eni = interface_of(cloud.run_instance(**tagged()))
    denied_before = len(cloud.lab("iam")["denied"])
    iam.put_role_policy(RoleName=role, PolicyName="reconcile", PolicyDocument=json.dumps(less))
    try:
        sweep(cloud, reconcile)
        assert sessions(cloud, eni) == []
        denied = cloud.lab("iam")["denied"][denied_before:]
        assert {d["action"] for d in denied} == {action}
        assert all(resource in d["resource"] for d in denied)
        name = reconcile.rsplit(":", 1)[1]
        assert "UnauthorizedOperation" in cloud.lab(f"logs/{name}")
    finally:
        iam.put_role_policy(RoleName=role, PolicyName="reconcile", PolicyDocument=json.dumps(given))
    sweep(cloud, reconcile)
    assert len(sessions(cloud, eni)) == 1


@pytest.mark.parametrize("name", ["AttachFunction", "ReconcileFunction"])
def test_a_session_that_somebody_changed_is_put_right(cloud: Cloud, reconcile: str, name: str) -> None:
    """A session that points at another filter is told where to point again: Modify, on session, target and filter."""
    ec2 = cloud.client("ec2")
    instance = cloud.run_instance(**tagged())
    sweep(cloud, reconcile)
    (made,) = sessions(cloud, interface_of(instance))
    other = ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    changed = {"TrafficMirrorSessionId": made["id"], "TrafficMirrorFilterId": other, "PacketLength": 100}
    ec2.modify_traffic_mirror_session(**changed)
    function = product.outputs(cloud)[name]
    what = event("instance-running", instance["InstanceId"]) if name == "AttachFunction" else event("scheduled", "")
    cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(what))["Payload"].read()
    (after,) = sessions(cloud, interface_of(instance))
    assert (after["id"], after["filter"]["id"], after["packet_length"]) == (made["id"], made["filter"]["id"], 8500)

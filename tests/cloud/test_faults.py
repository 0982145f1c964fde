"""What goes wrong on request between a function and the account does so, once, where it was asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Cloud, function, wait_until

# Does what the event says with an EC2 client that never repeats a call; tells how it went.
CALLER = function(
    """
import boto3
from botocore.config import Config
hasty, patient = (
    boto3.client("ec2", config=Config(retries={"total_max_attempts": 1}, read_timeout=seconds)) for seconds in (1, 60)
)

def handle(event, context):
    ec2 = patient if event.get("patient") else hasty
    try:
        return getattr(ec2, event["call"])(**event.get("given", {})).get(event.get("key"))
    except Exception as failed:
        answer = getattr(failed, "response", None) or {}
        return {"failed": answer.get("Error", {}).get("Code") or type(failed).__name__}
"""
)
LIST = {"call": "describe_traffic_mirror_sessions", "key": "TrafficMirrorSessions"}
DESCRIBE = "ec2:DescribeTrafficMirrorSessions"


@pytest.fixture(scope="module")
def caller(cloud: Cloud) -> str:
    cloud.create_function("caller", CALLER)
    cloud.invoke("caller", LIST)
    return "caller"


@pytest.fixture(scope="module")
def made(cloud: Cloud) -> list[dict[str, Any]]:
    """Eight sessions, four interfaces."""
    ec2 = cloud.client("ec2")
    target = ec2.create_traffic_mirror_target(NetworkLoadBalancerArn=cloud.balancer())["TrafficMirrorTarget"]
    chosen = ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]
    enis = [cloud.interface() for _ in range(4)]
    return [
        ec2.create_traffic_mirror_session(
            NetworkInterfaceId=eni, TrafficMirrorTargetId=target["TrafficMirrorTargetId"],
            TrafficMirrorFilterId=chosen["TrafficMirrorFilterId"], SessionNumber=number,
        )["TrafficMirrorSession"]
        for eni in enis for number in (1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"do": "refuse"}, "RequestLimitExceeded"),
        ({"do": "refuse", "status": 500, "code": "InternalError"}, "InternalError"),
        ({"do": "drop"}, "ConnectionClosedError"),
        ({"do": "cut"}, "IncompleteReadError"),
        ({"do": "hang"}, "ReadTimeoutError"),
        ({"do": "slow", "seconds": 1.5}, "ReadTimeoutError"),
    ],
)
def test_a_call_goes_wrong_once(cloud: Cloud, caller: str, fault: dict[str, Any], outcome: str) -> None:
    with cloud.faults({**fault, "function": caller, "call": DESCRIBE}):
        assert cloud.invoke(caller, LIST)["failed"] in (outcome, "ResponseParserError")
        assert "failed" not in cloud.invoke(caller, LIST)


def test_calls_before_it_go_through_and_others_do_not_count(cloud: Cloud, caller: str) -> None:
    with cloud.faults({"do": "refuse", "call": DESCRIBE, "after": 1}):
        cloud.invoke(caller, {"call": "describe_vpcs", "key": "Vpcs"})
        assert "failed" not in cloud.invoke(caller, LIST)
        assert "failed" in cloud.invoke(caller, LIST)


def test_the_owner_is_spared(cloud: Cloud, caller: str) -> None:
    with cloud.faults({"do": "refuse", "call": DESCRIBE}):
        cloud.client("ec2").describe_traffic_mirror_sessions()
        assert "failed" in cloud.invoke(caller, LIST)


@pytest.mark.parametrize(("carried_out", "left"), [(False, 8), (True, 7)])
def test_an_answer_can_be_lost_before_and_after_the_deed(
    cloud: Cloud, caller: str, made: list[dict[str, Any]], carried_out: bool, left: int
) -> None:
    delete = {
        "call": "delete_traffic_mirror_session",
        "given": {"TrafficMirrorSessionId": made[-1]["TrafficMirrorSessionId"]},
    }
    with cloud.faults({"do": "drop", "call": "ec2:Delete*", "carried_out": carried_out}):
        assert cloud.invoke(caller, delete) == {"failed": "ConnectionClosedError"}
    assert len(cloud.lab("network")["sessions"]) == left


@pytest.mark.parametrize(("carried_out", "left"), [(False, 7), (True, 6)])
def test_a_function_is_killed_before_and_after_the_deed(
    cloud: Cloud, caller: str, made: list[dict[str, Any]], carried_out: bool, left: int
) -> None:
    delete = {
        "call": "delete_traffic_mirror_session",
        "given": {"TrafficMirrorSessionId": made[-2]["TrafficMirrorSessionId"]},
    }
    with cloud.faults({"do": "kill", "call": "ec2:Delete*", "carried_out": carried_out}):
        assert "signal: SIGKILL" in cloud.invoke(caller, delete)["errorMessage"]
    assert len(cloud.lab("network")["sessions"]) == left
    cloud.invoke(caller, LIST)


def test_a_page_holds_what_it_is_told_to(cloud: Cloud, caller: str, made: list[dict[str, Any]]) -> None:
    everything = cloud.invoke(caller, LIST)
    with cloud.faults({"do": "page", "items": 5, "call": DESCRIBE}):
        assert cloud.invoke(caller, LIST) == everything[:5]
    assert len(everything) > 5


def test_pages_of_interfaces_are_pages(cloud: Cloud, made: list[dict[str, Any]]) -> None:
    """moto would give them all at once."""
    ec2 = cloud.client("ec2")
    while len(everything := ec2.describe_network_interfaces()["NetworkInterfaces"]) < 12:
        cloud.interface()
    pages = list(ec2.get_paginator("describe_network_interfaces").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(p["NetworkInterfaces"]) for p in pages] == [5, 5, len(everything) - 10]
    assert [i for p in pages for i in p["NetworkInterfaces"]] == everything


def test_an_answer_can_be_out_of_date(cloud: Cloud, caller: str) -> None:
    states = {"call": "describe_network_interfaces", "key": "NetworkInterfaces"}
    with cloud.faults(
        {"do": "rewrite", "old": ">available<", "new": ">in-use<", "call": "ec2:DescribeNetworkInterfaces"}
    ):
        assert {i["Status"] for i in cloud.invoke(caller, states)} == {"in-use"}
    assert {i["Status"] for i in cloud.invoke(caller, states)} == {"available"}


def test_two_callers_can_be_held_and_let_go_at_once(cloud: Cloud, caller: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        with cloud.faults({"do": "hold", "times": 2, "call": DESCRIBE}) as look:
            both = [pool.submit(cloud.invoke, caller, {**LIST, "patient": True}) for _ in range(2)]
            wait_until(lambda: look()[0]["holding"] == 2, 20, "both to be held")
            assert not any(b.done() for b in both)
        assert [len(b.result()) for b in both] == [6, 6]


def test_a_fault_that_is_none_is_refused(cloud: Cloud) -> None:
    with pytest.raises(Exception, match="500"):
        cloud.lab("faults", "POST", {"do": "explode"})


def test_the_log_tells_who_called_what(cloud: Cloud, caller: str) -> None:
    cloud.invoke(caller, LIST)
    last = cloud.calls(caller)[-1]
    assert (last["call"], last["status"], last["session"]) == (DESCRIBE, 200, None)

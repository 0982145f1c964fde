"""A rolling update of a group: in batches, with so many in service, each new instance signalling; and back again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Cloud, wait_until
from groups import begin, instances, launched, said, signal, status, template, why

ROLLING = {
    "MinInstancesInService": 2,
    "MaxBatchSize": 1,
    "WaitOnResourceSignals": True,
    "PauseTime": "PT15M",
    "SuspendProcesses": ["HealthCheck", "ReplaceUnhealthy", "AlarmNotification"],
}


@pytest.fixture(autouse=True)
def signals_are_waited_for(cloud: Cloud) -> Iterator[None]:
    cloud.lab("signals", "POST", {"wait": True, "second": 1})
    yield
    cloud.lab("signals", "POST", {"wait": False, "second": 1})


def made(cloud: Cloud, name: str, rolling: dict[str, Any], count: int = 2, **more: Any) -> set[str]:
    """A stack whose instances have signalled; gives those."""
    begin(cloud, name, template(cloud, count, rolling=rolling, **more))
    first = launched(cloud, name, count)
    for instance in first:
        signal(cloud, name, instance)
    wait_until(lambda: status(cloud, name) == "CREATE_COMPLETE", 10, "the stack")
    return set(first)


def update(cloud: Cloud, name: str, rolling: dict[str, Any], count: int = 2, **more: Any) -> None:
    source = template(cloud, count, rolling=rolling, image="ami-87654321", **more)
    call = cloud.client("cloudformation").update_stack
    threading.Thread(target=call, kwargs={"StackName": name, "TemplateBody": source}).start()
    wait_until(lambda: status(cloud, name) != "CREATE_COMPLETE", 10, "the update to begin")


def fresh(cloud: Cloud, name: str, known: set[str], count: int = 1) -> list[str]:
    """Waits for so many instances that are not known."""
    return wait_until(
        lambda: (new := [i for i in instances(cloud, name) if i not in known]) and len(new) >= count and new,
        20, f"{count} new instances",
    )  # fmt: skip


def group(cloud: Cloud, name: str) -> dict[str, Any]:
    found = cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    return next(g for g in found if g["AutoScalingGroupName"].startswith(f"{name}-Group-"))


def image(cloud: Cloud, instance: str) -> str:
    found = cloud.client("ec2").describe_instances(InstanceIds=[instance])
    return found["Reservations"][0]["Instances"][0]["ImageId"]


def test_each_old_instance_goes_only_when_a_new_one_has_signalled(cloud: Cloud) -> None:
    old = made(cloud, "roll", ROLLING)
    update(cloud, "roll", ROLLING)
    (third,) = fresh(cloud, "roll", old)
    # One more for the time being, so that two stay in service; nothing can come between.
    assert (group(cloud, "roll")["MinSize"], group(cloud, "roll")["DesiredCapacity"]) == (3, 3)
    suspended = {p["ProcessName"] for p in group(cloud, "roll")["SuspendedProcesses"]}
    assert suspended == set(ROLLING["SuspendProcesses"])
    time.sleep(0.5)
    assert set(instances(cloud, "roll")) == old | {third}
    signal(cloud, "roll", third)
    (fourth,) = fresh(cloud, "roll", old | {third})
    time.sleep(0.5)
    left = old & set(instances(cloud, "roll"))
    assert len(left) == 1, "the second one waits for its own replacement"
    signal(cloud, "roll", fourth)
    wait_until(lambda: status(cloud, "roll") == "UPDATE_COMPLETE", 10, "the update")
    assert set(instances(cloud, "roll")) == {third, fourth}
    assert {image(cloud, i) for i in (third, fourth)} == {"ami-87654321"}
    after = group(cloud, "roll")
    assert (after["MinSize"], after["DesiredCapacity"], after["SuspendedProcesses"]) == (2, 2, [])
    first, second = (old - left).pop(), left.pop()
    pause = "Waiting on 1 resource signal(s) with a timeout of PT15M."
    assert said(cloud, "roll") == [
        "Rolling update initiated. Terminating 2 obsolete instance(s) in batches of 1, while keeping at least 2 "
        "instance(s) in service. Waiting on resource signals with a timeout of PT15M when new instances are added to "
        "the autoscaling group.",
        "Temporarily setting autoscaling group MinSize and DesiredCapacity to 3.",
        f"New instance(s) added to autoscaling group - {pause}",
        f"Terminating instance(s) [{first}]; replacing with 1 new instance(s).",
        f"New instance(s) added to autoscaling group - {pause}",
        f"Successfully terminated instance(s) [{first}] (Progress 50%).",
        f"Terminating instance(s) [{second}]; replacing with 0 new instance(s).",
        f"Successfully terminated instance(s) [{second}] (Progress 100%).",
    ]


def test_a_failure_puts_everything_back(cloud: Cloud) -> None:
    old = made(cloud, "back", ROLLING)
    update(cloud, "back", ROLLING)
    (third,) = fresh(cloud, "back", old)
    signal(cloud, "back", third)
    (fourth,) = fresh(cloud, "back", old | {third})
    signal(cloud, "back", fourth, "FAILURE")
    wait_until(lambda: status(cloud, "back") == "UPDATE_ROLLBACK_IN_PROGRESS", 10, "the rollback")
    assert "Received 1 FAILURE signal(s) out of 2. Unable to satisfy 100%" in why(cloud, "back", "UPDATE_FAILED")
    # The rollback rolls too: what is of the old kind stays, what is new goes, and what comes has to signal.
    known = old | {third, fourth}
    while status(cloud, "back") != "UPDATE_ROLLBACK_COMPLETE":
        for instance in set(instances(cloud, "back")) - known:
            signal(cloud, "back", instance)
            known.add(instance)
        time.sleep(0.1)
    after = set(instances(cloud, "back"))
    assert len(after) == 2
    assert not after & {third, fourth}
    assert {image(cloud, i) for i in after} == {"ami-12345678"}
    assert len(after & old) == 1


def test_who_does_not_signal_in_time_has_failed(cloud: Cloud) -> None:
    rolling = {**ROLLING, "PauseTime": "PT10S"}
    old = made(cloud, "late", rolling)
    cloud.lab("signals", "POST", {"second": 0.05})
    update(cloud, "late", rolling)
    (third,) = fresh(cloud, "late", old)
    wait_until(lambda: "ROLLBACK" in status(cloud, "late"), 10, "the rollback")
    cloud.lab("signals", "POST", {"second": 1})
    assert any("Each resource signal timeout is counted as a FAILURE" in line for line in said(cloud, "late"))
    wait_until(lambda: status(cloud, "late") == "UPDATE_ROLLBACK_COMPLETE", 20, "its end")
    assert third not in instances(cloud, "late")


def test_batches_and_a_share_that_may_fail(cloud: Cloud) -> None:
    rolling = {**ROLLING, "MinInstancesInService": 2, "MaxBatchSize": 2, "MinSuccessfulInstancesPercent": 75}
    old = made(cloud, "four", rolling, count=4)
    update(cloud, "four", rolling, count=4)
    first = fresh(cloud, "four", old, 2)
    # Of four two stay: no more than four are needed at any time.
    assert group(cloud, "four")["DesiredCapacity"] == 4
    assert len(set(instances(cloud, "four")) & old) == 2
    signal(cloud, "four", first[0])
    signal(cloud, "four", first[1], "FAILURE")
    second = fresh(cloud, "four", old | set(first), 2)
    for instance in second:
        signal(cloud, "four", instance)
    wait_until(lambda: status(cloud, "four") == "UPDATE_COMPLETE", 10, "the update")
    assert set(instances(cloud, "four")) == {*first, *second}


def test_a_group_that_cannot_keep_so_many_is_refused(cloud: Cloud) -> None:
    old = made(cloud, "full", ROLLING, most=2)
    update(cloud, "full", ROLLING, most=2)
    wait_until(lambda: status(cloud, "full") == "UPDATE_ROLLBACK_COMPLETE", 10, "the refusal")
    assert "MinInstancesInService must be less than" in why(cloud, "full", "UPDATE_FAILED")
    assert set(instances(cloud, "full")) == old


def test_without_a_policy_instances_stay_as_they_are(cloud: Cloud) -> None:
    old = made(cloud, "none", {})
    source = template(cloud, 2, image="ami-87654321").replace('"AutoScalingRollingUpdate": {}', "")
    cloud.client("cloudformation").update_stack(StackName="none", TemplateBody=source)
    wait_until(lambda: status(cloud, "none") == "UPDATE_COMPLETE", 10, "the update")
    assert set(instances(cloud, "none")) == old


def test_where_nobody_asks_for_signals_it_rolls_at_once(cloud: Cloud) -> None:
    old = made(cloud, "quick", ROLLING)
    cloud.lab("signals", "POST", {"wait": False})
    update_at_once = template(cloud, 2, rolling=ROLLING, image="ami-87654321")
    cloud.client("cloudformation").update_stack(StackName="quick", TemplateBody=update_at_once)
    wait_until(lambda: status(cloud, "quick") == "UPDATE_COMPLETE", 10, "the update")
    assert len(instances(cloud, "quick")) == 2
    assert not old & set(instances(cloud, "quick"))

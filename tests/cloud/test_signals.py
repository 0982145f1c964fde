"""CloudFormation waits for the signals of a group's instances where it is told to, and takes none at other times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, wait_until
from groups import begin, instances, launched, signal, status, template, why


@pytest.fixture(autouse=True)
def signals_are_waited_for(cloud: Cloud) -> Iterator[None]:
    cloud.lab("signals", "POST", {"wait": True, "second": 1})
    yield
    cloud.lab("signals", "POST", {"wait": False})


def test_a_group_is_made_when_so_many_instances_have_signalled(cloud: Cloud) -> None:
    stack = begin(cloud, "two", template(cloud, 2))
    first, second = launched(cloud, "two", 2)
    signal(cloud, stack, first)
    signal(cloud, stack, first)  # the same id counts once
    assert status(cloud, stack) == "CREATE_IN_PROGRESS"
    signal(cloud, stack, second)
    wait_until(lambda: status(cloud, stack) == "CREATE_COMPLETE", 10, "the stack")
    # Now nobody waits any more.
    with pytest.raises(ClientError, match="Group is in CREATE_COMPLETE state and cannot be signaled"):
        signal(cloud, stack, first)
    taken = [(s["id"], s["taken"]) for s in cloud.lab("signals")["signals"] if s["stack"] == stack]
    assert taken == [(first, True), (first, True), (second, True), (first, False)]


def test_one_failure_fails_the_group_and_the_rollback_removes_it(cloud: Cloud) -> None:
    stack = begin(cloud, "bad", template(cloud, 2))
    first, second = launched(cloud, "bad", 2)
    signal(cloud, stack, first)
    signal(cloud, stack, second, "FAILURE")
    wait_until(lambda: status(cloud, stack) == "ROLLBACK_COMPLETE", 10, "the rollback")
    assert "Received 1 FAILURE signal(s) out of 2. Unable to satisfy 100% MinSuccessfulInstancesPercent" in why(
        cloud, stack
    )
    assert instances(cloud, "bad") == []


def test_so_many_may_fail_as_the_policy_allows(cloud: Cloud) -> None:
    policy = {"AutoScalingCreationPolicy": {"MinSuccessfulInstancesPercent": 50}}
    stack = begin(cloud, "half", template(cloud, 2, **policy))
    first, second = launched(cloud, "half", 2)
    signal(cloud, stack, first, "FAILURE")
    assert status(cloud, stack) == "CREATE_IN_PROGRESS"
    signal(cloud, stack, second)
    wait_until(lambda: status(cloud, stack) == "CREATE_COMPLETE", 10, "the stack")


def test_a_group_that_does_not_signal_in_time_fails(cloud: Cloud) -> None:
    cloud.lab("signals", "POST", {"second": 0.03})
    stack = begin(cloud, "late", template(cloud, 2, "PT1M30S"))
    (first, _) = launched(cloud, "late", 2)
    signal(cloud, stack, first)
    wait_until(lambda: status(cloud, stack) == "ROLLBACK_COMPLETE", 10, "the rollback")
    assert "Received 1 SUCCESS signal(s) out of 2. Failed to receive 1 resource signal(s) within" in why(cloud, stack)


def test_a_stack_that_is_deleted_waits_no_longer(cloud: Cloud) -> None:
    stack = begin(cloud, "gone", template(cloud, 1, "PT1H"))
    launched(cloud, "gone", 1)
    cloud.client("cloudformation").delete_stack(StackName=stack)
    wait_until(lambda: status(cloud, stack) == "DELETE_COMPLETE", 10, "the removal")
    assert instances(cloud, "gone") == []


def test_a_signal_to_nothing_is_refused(cloud: Cloud) -> None:
    stack = begin(cloud, "none", template(cloud, 1))
    (only,) = launched(cloud, "none", 1)
    signals = cloud.client("cloudformation").signal_resource
    with pytest.raises(ClientError, match="Resource Other does not exist for stack none"):
        signals(StackName=stack, LogicalResourceId="Other", UniqueId=only, Status="SUCCESS")
    with pytest.raises(ClientError, match="Member must satisfy enum value set"):
        signals(StackName=stack, LogicalResourceId="Group", UniqueId=only, Status="MAYBE")
    signal(cloud, stack, only)
    wait_until(lambda: status(cloud, stack) == "CREATE_COMPLETE", 10, "the stack")


def test_where_nobody_asks_for_signals_none_are_waited_for(cloud: Cloud) -> None:
    cloud.lab("signals", "POST", {"wait": False})
    stack = begin(cloud, "quick", template(cloud, 2))
    wait_until(lambda: status(cloud, stack) == "CREATE_COMPLETE", 10, "the stack")

"""CloudFormation waits for the signals of a group's instances where it is told to, and takes none at other times."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, wait_until


@pytest.fixture(autouse=True)
def signals_are_waited_for(cloud: Cloud) -> Iterator[None]:
    cloud.lab("signals", "POST", {"wait": True, "second": 1})
    yield
    cloud.lab("signals", "POST", {"wait": False})


def template(cloud: Cloud, count: int, timeout: str = "PT1M", **policy: Any) -> str:
    group = {
        "Type": "AWS::AutoScaling::AutoScalingGroup",
        "CreationPolicy": {"ResourceSignal": {"Count": count, "Timeout": timeout}, **policy},
        "Properties": {
            "MinSize": "0",
            "MaxSize": "6",
            "DesiredCapacity": str(count),
            "VPCZoneIdentifier": cloud.subnets()[:1],
            "LaunchTemplate": {
                "LaunchTemplateId": {"Ref": "Template"},
                "Version": {"Fn::GetAtt": ["Template", "LatestVersionNumber"]},
            },
        },
    }
    data = {"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    launch = {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}}
    return json.dumps({"Resources": {"Group": group, "Template": launch}})


def begin(cloud: Cloud, name: str, source: str) -> str:
    """Does not wait for the answer, for which the account takes some seconds while the stack is not made."""
    client = cloud.client("cloudformation")
    threading.Thread(target=client.create_stack, kwargs={"StackName": name, "TemplateBody": source}).start()
    (stack,) = wait_until(lambda: [s for s in client.describe_stacks()["Stacks"] if s["StackName"] == name], 10, name)
    return stack["StackId"]


def instances(cloud: Cloud, stack: str) -> list[str]:
    """Of the stack's group, by its name."""
    found = [i for i in cloud.lab("network")["instances"] if (i["asg"] or "").startswith(f"{stack}-Group-")]
    return sorted(i["id"] for i in found)


def launched(cloud: Cloud, stack: str, count: int) -> list[str]:
    wait_until(lambda: len(instances(cloud, stack)) == count, 20, f"{count} instances")
    return instances(cloud, stack)


def signal(cloud: Cloud, stack: str, unique: str, status: str = "SUCCESS") -> None:
    cloud.client("cloudformation").signal_resource(
        StackName=stack, LogicalResourceId="Group", UniqueId=unique, Status=status
    )


def status(cloud: Cloud, stack: str) -> str:
    return cloud.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]


def why(cloud: Cloud, stack: str) -> str:
    events = cloud.client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
    return next(
        e["ResourceStatusReason"] for e in events
        if (e["LogicalResourceId"], e["ResourceStatus"]) == ("Group", "CREATE_FAILED")
    )  # fmt: skip


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

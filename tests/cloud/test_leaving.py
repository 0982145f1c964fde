"""A rebuilder leaves: the terminate hook of the group, and the real ``drain`` that answers it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import product
import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, wait_until

product.need_a_build()

DELAY = 3
"""Seconds that a deregistered target drains here; the template's 30 would make long tests."""
SETTLE = 10
"""Seconds that the function gives the load balancer to move the flows after that."""


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    product.deploy(cloud, MinSize="2", MaxSize="4")
    out = product.outputs(cloud)
    elb = cloud.client("elbv2")
    (target_group,) = [g["TargetGroupArn"] for g in elb.describe_target_groups()["TargetGroups"]]
    drains_for(cloud, target_group, DELAY)
    return SimpleNamespace(group=out["RebuilderGroup"], drain=out["DrainFunction"], target_group=target_group)


@pytest.fixture(autouse=True)
def three_rebuilders(cloud: Cloud, stack: SimpleNamespace) -> Iterator[None]:
    cloud.lab("deregister/first", "POST")
    drains_for(cloud, stack.target_group, DELAY)
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName=stack.group, DesiredCapacity=3)
    wait_until(lambda: len(running(cloud, stack)) == 3 and not leaving(cloud, stack), 30, "three rebuilders")
    yield
    wait_until(lambda: not leaving(cloud, stack), 30, "nobody to leave any more")


def drains_for(cloud: Cloud, target_group: str, seconds: int) -> None:
    attribute = {"Key": "deregistration_delay.timeout_seconds", "Value": str(seconds)}
    cloud.client("elbv2").modify_target_group_attributes(TargetGroupArn=target_group, Attributes=[attribute])


def running(cloud: Cloud, stack: SimpleNamespace) -> set[str]:
    return {i["id"] for i in cloud.lab("network")["instances"] if i["asg"] == stack.group}


def leaving(cloud: Cloud, stack: SimpleNamespace) -> list[dict[str, str]]:
    return [a for a in cloud.lab("leaving") if a["group"] == stack.group]


def health(cloud: Cloud, stack: SimpleNamespace, instance: str) -> str:
    (found,) = cloud.client("elbv2").describe_target_health(
        TargetGroupArn=stack.target_group, Targets=[{"Id": instance}]
    )["TargetHealthDescriptions"]
    return found["TargetHealth"]["State"]


def ended(cloud: Cloud, stack: SimpleNamespace, instance: str) -> list[str]:
    """How each run of the function for this instance ended, by its metrics."""
    lines = cloud.lab(f"logs/{stack.drain.rsplit(':', 1)[1]}").splitlines()
    figures = [json.loads(line) for line in lines if '"_aws"' in line]
    return [f["ended"] for f in figures if f["instance"] == instance]


def scale_in(cloud: Cloud, stack: SimpleNamespace) -> dict[str, str]:
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName=stack.group, DesiredCapacity=2)
    (action,) = leaving(cloud, stack)
    return action


def event(action: dict[str, str]) -> dict[str, Any]:
    document = json.loads((product.ROOT / "events" / "drain-terminate.json").read_text())
    document["detail"] |= {
        "LifecycleActionToken": action["token"],
        "AutoScalingGroupName": action["group"],
        "LifecycleHookName": action["hook"],
        "EC2InstanceId": action["instance"],
    }
    return document


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_rebuilder_goes_only_when_the_load_balancer_has_moved_its_flows(
    cloud: Cloud, stack: SimpleNamespace, order: str
) -> None:
    # Whether Auto Scaling deregisters it before its hook or after it.
    cloud.lab(f"deregister/{order}", "POST")
    begun = time.monotonic()
    instance = scale_in(cloud, stack)["instance"]
    seen = {health(cloud, stack, instance)}
    while instance in running(cloud, stack):
        state = health(cloud, stack, instance)
        seen.add(state)
        time.sleep(0.05)
        assert time.monotonic() - begun < 30, f"it stays, {state}"
    took = time.monotonic() - begun
    assert health(cloud, stack, instance) == "unused"
    assert "draining" in seen
    # The first look is at once, the next five seconds later; and ten more until the flows have surely moved.
    assert DELAY + SETTLE <= took < DELAY + SETTLE + 8, took
    wait_until(lambda: ended(cloud, stack, instance) == ["drained"], 5, "its metrics")


def test_the_same_event_twice_lets_it_go_once(cloud: Cloud, stack: SimpleNamespace) -> None:
    action = scale_in(cloud, stack)
    # While the bus' own invocation waits, and when all is over.
    first = cloud.invoke(stack.drain, event(action))
    assert action["instance"] not in running(cloud, stack)
    second = cloud.invoke(stack.drain, event(action))
    assert second["ended"] == "over"
    wait_until(lambda: len(ended(cloud, stack, action["instance"])) == 3, 20, "three runs")
    assert sorted(ended(cloud, stack, action["instance"])) == ["drained", "over", "over"]
    assert first["ended"] in ("drained", "over")


def test_a_dead_instance_does_not_hang_and_is_replaced(cloud: Cloud, stack: SimpleNamespace) -> None:
    before = running(cloud, stack)
    dead = min(before)
    cloud.client("ec2").terminate_instances(InstanceIds=[dead])
    (action,) = leaving(cloud, stack)
    assert action["instance"] == dead
    wait_until(lambda: not leaving(cloud, stack), DELAY + SETTLE + 10, "its action to be over")
    wait_until(lambda: len(running(cloud, stack)) == 3, 10, "another in its place")
    assert dead not in running(cloud, stack)
    wait_until(lambda: ended(cloud, stack, dead) == ["drained"], 5, "its metrics")


@pytest.mark.parametrize(
    "call",
    [
        "elasticloadbalancing:DeregisterTargets",
        "elasticloadbalancing:DescribeTargetHealth",
        "autoscaling:CompleteLifecycleAction",
    ],
)
def test_a_function_that_dies_at_a_call_is_called_again_and_lets_the_rebuilder_go(
    cloud: Cloud, stack: SimpleNamespace, call: str
) -> None:
    function = stack.drain.rsplit(":", 1)[1]
    with cloud.faults({"do": "kill", "function": function, "call": call, "carried_out": True}):
        instance = scale_in(cloud, stack)["instance"]
        wait_until(lambda: instance not in running(cloud, stack), 40, "it to go")
    assert health(cloud, stack, instance) == "unused"
    # The run that died left no metrics; the one that Lambda began after it did.
    (how,) = wait_until(lambda: ended(cloud, stack, instance), 10, "its metrics")
    assert how == ("over" if call.endswith("CompleteLifecycleAction") else "drained")


def test_a_delay_beyond_the_hooks_time_is_waited_for(cloud: Cloud, stack: SimpleNamespace) -> None:
    scaling = cloud.client("autoscaling")
    (hook,) = scaling.describe_lifecycle_hooks(AutoScalingGroupName=stack.group)["LifecycleHooks"]
    name = {"AutoScalingGroupName": stack.group, "LifecycleHookName": hook["LifecycleHookName"]}
    same = {"LifecycleTransition": hook["LifecycleTransition"], "DefaultResult": hook["DefaultResult"]}
    assert (hook["HeartbeatTimeout"], hook["DefaultResult"]) == (300, "CONTINUE")
    drains_for(cloud, stack.target_group, 70)
    scaling.put_lifecycle_hook(**name, **same, HeartbeatTimeout=65)
    try:
        instance = scale_in(cloud, stack)["instance"]
        begun = time.monotonic()
        wait_until(lambda: instance not in running(cloud, stack), 100, "it to go")
        assert time.monotonic() - begun >= 79
        wait_until(lambda: ended(cloud, stack, instance) == ["drained"], 5, "its metrics")
    finally:
        scaling.put_lifecycle_hook(**name, **same, HeartbeatTimeout=300)


def test_another_groups_instances_are_not_our_affair(cloud: Cloud, stack: SimpleNamespace) -> None:
    ec2, scaling = cloud.client("ec2"), cloud.client("autoscaling")
    ec2.create_launch_template(
        LaunchTemplateName="theirs", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    )
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="theirs", LaunchTemplate={"LaunchTemplateName": "theirs"}, MinSize=0, MaxSize=1,
        DesiredCapacity=1, VPCZoneIdentifier=cloud.subnets()[0],
    )  # fmt: skip
    scaling.put_lifecycle_hook(
        AutoScalingGroupName="theirs", LifecycleHookName="theirs", HeartbeatTimeout=300,
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
    )  # fmt: skip
    scaling.set_desired_capacity(AutoScalingGroupName="theirs", DesiredCapacity=0)
    (action,) = [a for a in cloud.lab("leaving") if a["group"] == "theirs"]
    time.sleep(1)
    assert ended(cloud, stack, action["instance"]) == []
    assert [a["instance"] for a in cloud.lab("leaving") if a["group"] == "theirs"] == [action["instance"]]
    # What the hook of Auto Scaling does, on the way: a heartbeat, another's token, the end, and no second end.
    name = {"AutoScalingGroupName": "theirs", "LifecycleHookName": "theirs"}
    scaling.record_lifecycle_action_heartbeat(**name, LifecycleActionToken=action["token"])
    for arguments in (
        {**name, "LifecycleActionToken": "0" * 36},
        {**name, "InstanceId": "i-0000000000000000"},
        {**name, "LifecycleHookName": "no-such"},
    ):
        with pytest.raises(ClientError, match="ValidationError.*(No active Lifecycle Action|No Lifecycle Hook)"):
            scaling.complete_lifecycle_action(**arguments, LifecycleActionResult="CONTINUE")
    scaling.complete_lifecycle_action(**name, InstanceId=action["instance"], LifecycleActionResult="CONTINUE")
    with pytest.raises(ClientError, match="No active Lifecycle Action found with instance ID"):
        scaling.complete_lifecycle_action(**name, InstanceId=action["instance"], LifecycleActionResult="CONTINUE")


def test_a_hook_that_nobody_answers_ends_by_itself(cloud: Cloud, stack: SimpleNamespace) -> None:
    scaling = cloud.client("autoscaling")
    name = {"AutoScalingGroupName": "theirs", "LifecycleHookName": "theirs"}
    scaling.put_lifecycle_hook(
        **name, HeartbeatTimeout=2, LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING"
    )
    scaling.set_desired_capacity(AutoScalingGroupName="theirs", DesiredCapacity=1)
    scaling.set_desired_capacity(AutoScalingGroupName="theirs", DesiredCapacity=0)
    (action,) = [a for a in cloud.lab("leaving") if a["group"] == "theirs"]
    time.sleep(1.5)
    scaling.record_lifecycle_action_heartbeat(**name, LifecycleActionToken=action["token"])
    time.sleep(1.5)
    assert [a["instance"] for a in cloud.lab("leaving") if a["group"] == "theirs"], "the heartbeat gave it no more time"
    wait_until(lambda: not [a for a in cloud.lab("leaving") if a["group"] == "theirs"], 5, "it to go on")


def test_an_event_that_is_no_lifecycle_action_is_refused_in_one_line(cloud: Cloud, stack: SimpleNamespace) -> None:
    answer = cloud.client("lambda").invoke(
        FunctionName=stack.drain, Payload=json.dumps(product.event("instance-terminated", "i-1"))
    )
    refused = json.loads(answer["Payload"].read())
    assert answer["FunctionError"] == "Unhandled"
    assert refused["errorType"] == "Event"
    assert "EC2 Instance-terminate Lifecycle Action" in refused["errorMessage"]
    assert "\n" not in refused["errorMessage"]


def test_the_stack_goes_although_a_rebuilder_waits(cloud: Cloud, stack: SimpleNamespace) -> None:
    drains_for(cloud, stack.target_group, 600)
    instance = scale_in(cloud, stack)["instance"]
    time.sleep(1)
    assert instance in running(cloud, stack)
    product.sam(cloud, "delete", "--stack-name", product.STACK, "--no-prompts", "--region", product.REGION)
    assert running(cloud, stack) == set()
    assert leaving(cloud, stack) == []

"""IAM's decision, without an account: what allows, what denies, what is not known."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import REGION  # also puts the emulator on the path

from emulator.calls import Call
from emulator.gate import asks_of
from emulator.iam import Ask, Unknown, decide

STACK = "arn:aws:cloudformation:us-east-1:123456789012:stack/mirrorfleet/1"
SESSION = "arn:aws:ec2:us-east-1:123456789012:traffic-mirror-session/tms-1"
DELETE = "ec2:DeleteTrafficMirrorSession"
OURS = {"aws:ResourceTag/mirrorfleet:stack": STACK}


def policy(action: Any = DELETE, resource: Any = SESSION, effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Statement": [{"Sid": "It", "Effect": effect, "Action": action, "Resource": resource, **more}]}


def allowed(*policies: dict[str, Any], ask: Ask | None = None) -> bool:
    return decide({str(i): p for i, p in enumerate(policies)}, ask or Ask(DELETE, SESSION, OURS)).allowed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"action": "EC2:deletetrafficmirrorsession"}, True),
        ({"action": "ec2:Delete*"}, True),
        ({"action": ["ec2:CreateTags", "ec2:DeleteTrafficMirrorSessio?"]}, True),
        ({"action": "ec2:CreateTags"}, False),
        ({"resource": SESSION[:-1] + "*"}, True),
        ({"resource": SESSION + "2"}, False),
        ({"resource": SESSION.replace("us-east-1", "us-east-2")}, False),
        ({"Condition": {"StringEquals": {"aws:ResourceTag/mirrorfleet:stack": STACK}}}, True),
        ({"Condition": {"StringEquals": {"aws:ResourceTag/mirrorfleet:stack": STACK + "2"}}}, False),
        ({"Condition": {"StringEquals": {"aws:ResourceTag/other": STACK}}}, False),
        ({"Condition": {"StringEqualsIfExists": {"aws:ResourceTag/other": STACK}}}, True),
        ({"Condition": {"StringEqualsIfExists": {"aws:ResourceTag/mirrorfleet:stack": "x"}}}, False),
        ({"Condition": {"StringLike": {"aws:ResourceTag/mirrorfleet:stack": "*:stack/mirrorfleet/*"}}}, True),
        ({"Condition": {"StringEquals": {"aws:ResourceTag/mirrorfleet:stack": "*"}}}, False),
        ({"Condition": {"ArnLike": {"aws:ResourceTag/mirrorfleet:stack": "arn:*:*:*:*:stack/mirror*"}}}, True),
        ({"Condition": {"ArnLike": {"aws:ResourceTag/mirrorfleet:stack": "arn:*:stack/mirrorfleet/1"}}}, False),
        ({"Condition": {"StringNotEquals": {"aws:ResourceTag/mirrorfleet:stack": STACK}}}, False),
        ({"Condition": {"StringNotEquals": {"aws:ResourceTag/other": "x"}}}, True),
        ({"Condition": {"Null": {"aws:ResourceTag/other": "true"}}}, True),
        ({"Condition": {"Null": {"aws:ResourceTag/other": "false"}}}, False),
    ],
)
def test_a_statement_allows_what_it_says(given: dict[str, Any], expected: bool) -> None:
    assert allowed(policy(**given)) is expected


def test_a_deny_wins_over_every_allow() -> None:
    assert not allowed(policy("*", "*"), policy("ec2:*", "*", "Deny"))
    assert allowed(policy("*", "*"), policy("ec2:Create*", "*", "Deny"))


def test_nothing_is_allowed_by_nothing() -> None:
    assert not allowed()


def test_a_boundary_must_allow_it_too() -> None:
    ask = Ask(DELETE, SESSION)
    assert decide({"p": policy()}, ask, {"b": policy("ec2:*", "*")}).allowed
    assert not decide({"p": policy()}, ask, {"b": policy("s3:*", "*")}).allowed


def test_a_document_may_have_an_id_and_nothing_that_is_not_known() -> None:
    assert allowed({**policy(), "Version": "2012-10-17", "Id": "mine"})
    with pytest.raises(Unknown, match="Statements"):
        allowed({**policy(), "Statements": []})


def test_a_call_without_resources_takes_a_star() -> None:
    ask = Ask("ec2:DescribeInstances", "*")
    assert allowed(policy("ec2:DescribeInstances", "*"), ask=ask)
    assert not allowed(policy("ec2:DescribeInstances", "arn:aws:ec2:*:*:instance/*"), ask=ask)


@pytest.mark.parametrize(
    "more",
    [
        {"Condition": {"NumericEquals": {"aws:ResourceTag/a": "1"}}},
        {"Condition": {"StringEquals": {"aws:PrincipalTag/a": "1"}}},
        {"NotAction": "ec2:*"},
    ],
)
def test_what_is_not_known_is_an_error_and_no_permission(more: dict[str, Any]) -> None:
    with pytest.raises(Unknown):
        allowed(policy("*", "*", **more))


CREATE = {
    "NetworkInterfaceId": "eni-1", "TrafficMirrorTargetId": "tmt-1", "TrafficMirrorFilterId": "tmf-1",
    "TagSpecification.1.Tag.1.Key": "mirrorfleet:stack", "TagSpecification.1.Tag.1.Value": STACK,
}  # fmt: skip


def test_a_create_asks_for_each_resource_and_for_its_tags() -> None:
    asks = asks_of(Call("ec2", REGION, "CreateTrafficMirrorSession", CREATE), lambda _: {})
    assert {(a.action, a.resource.rsplit(":", 1)[1]) for a in asks} == {
        ("ec2:CreateTrafficMirrorSession", "network-interface/eni-1"),
        ("ec2:CreateTrafficMirrorSession", "traffic-mirror-target/tmt-1"),
        ("ec2:CreateTrafficMirrorSession", "traffic-mirror-filter/tmf-1"),
        ("ec2:CreateTrafficMirrorSession", "traffic-mirror-session/*"),
        ("ec2:CreateTags", "traffic-mirror-session/*"),
    }
    (tagging,) = (a for a in asks if a.action == "ec2:CreateTags")
    assert tagging.facts["ec2:CreateAction"] == "CreateTrafficMirrorSession"
    assert tagging.facts["aws:RequestTag/mirrorfleet:stack"] == STACK


GROUP = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/rebuilders/1"
TASK = "arn:aws:ecs:us-east-1:123456789012:task/batch/1"


@pytest.mark.parametrize(
    ("service", "action", "given", "resource"),
    [
        ("ec2", "DescribeInstances", {}, "*"),
        ("ecs", "ListTasks", {"cluster": '"batch"'}, "*"),
        ("ecs", "DescribeTasks", {"tasks": f'["{TASK}"]'}, TASK),
        ("elasticloadbalancing", "DescribeTargetHealth", {"TargetGroupArn": GROUP}, "*"),
        ("elasticloadbalancing", "DeregisterTargets", {"TargetGroupArn": GROUP}, GROUP),
        ("cloudformation", "DescribeStacks", {"StackName": STACK}, STACK),
        ("cloudformation", "DescribeStacks", {"StackName": "mirrorfleet"}, STACK[:-1] + "*"),
        ("lambda", "InvokeFunction", {"FunctionName": "f"}, "arn:aws:lambda:us-east-1:123456789012:function:f"),
    ],
)
def test_each_call_asks_for_the_resource_that_its_service_knows(
    service: str, action: str, given: dict[str, str], resource: str
) -> None:
    """Service authorization reference; ListTasks as ECS' own refusals have it."""
    (ask,) = asks_of(Call(service, REGION, action, given), lambda _: {})
    assert (ask.action, ask.resource) == (f"{service}:{action}", resource)


def test_a_lifecycle_action_is_the_groups_by_name() -> None:
    call = Call("autoscaling", REGION, "CompleteLifecycleAction", {"AutoScalingGroupName": "g"})
    (ask,) = asks_of(call, lambda _: {})
    pattern = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:*:autoScalingGroupName/"
    assert allowed(policy("autoscaling:CompleteLifecycleAction", f"{pattern}g"), ask=ask)
    assert not allowed(policy("autoscaling:CompleteLifecycleAction", f"{pattern}h"), ask=ask)


def test_a_call_that_is_not_known_is_an_error() -> None:
    with pytest.raises(Unknown, match="ec2:TerminateInstances"):
        asks_of(Call("ec2", REGION, "TerminateInstances", {}), lambda _: {})

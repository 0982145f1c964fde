"""The real functions under real event traffic: one session an interface, whatever arrives, however often, at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import event, interface_of, sessions, tagged

product.need_a_build()


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    product.deploy(cloud, MutationsPerSecond="5")
    (mapping,) = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    return SimpleNamespace(out=product.outputs(cloud), mapping=mapping["UUID"])


def send(cloud: Cloud, stack: SimpleNamespace, *bodies: Any) -> None:
    entries = [{"Id": str(i), "MessageBody": b if isinstance(b, str) else json.dumps(b)} for i, b in enumerate(bodies)]
    cloud.client("sqs").send_message_batch(QueueUrl=stack.out["EventQueueUrl"], Entries=entries)


def left(cloud: Cloud, stack: SimpleNamespace, queue: str = "EventQueueUrl") -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    held = cloud.client("sqs").get_queue_attributes(QueueUrl=stack.out[queue], AttributeNames=names)["Attributes"]
    return sum(map(int, held.values()))


def quiet(cloud: Cloud, stack: SimpleNamespace) -> None:
    """Waits until everything that was told has been handled."""
    time.sleep(0.4)  # the events of a launch are told within a quarter of a second
    wait_until(lambda: left(cloud, stack) == 0, 15, "the queue to be empty")


@contextmanager
def deaf(cloud: Cloud, stack: SimpleNamespace) -> Iterator[None]:
    """Nothing is taken from the queue meanwhile, and what came is forgotten: only the test calls the functions."""
    client = cloud.client("lambda")
    client.update_event_source_mapping(UUID=stack.mapping, Enabled=False)
    time.sleep(0.5)
    try:
        yield
    finally:
        time.sleep(0.4)
        _empty(cloud, stack.out["EventQueueUrl"])
        client.update_event_source_mapping(UUID=stack.mapping, Enabled=True)


def _empty(cloud: Cloud, queue: str) -> None:
    sqs = cloud.client("sqs")
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])


def sweep(cloud: Cloud, stack: SimpleNamespace) -> Any:
    return invoke(cloud, stack.out["ReconcileFunction"], event("scheduled", ""))


def invoke(cloud: Cloud, function: str, payload: Any) -> Any:
    answer = cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(payload))
    body = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, body
    return body


def test_a_launch_is_mirrored_by_itself(cloud: Cloud, stack: SimpleNamespace) -> None:
    eni = interface_of(cloud.run_instance(**tagged()))
    (session,) = wait_until(lambda: sessions(cloud, eni), 10, "its session")
    assert session["target"]["id"] == stack.out["MirrorTargetId"]


def test_what_is_not_selected_is_not_mirrored(cloud: Cloud, stack: SimpleNamespace) -> None:
    eni = interface_of(cloud.run_instance(**tagged("false")))
    quiet(cloud, stack)
    assert sessions(cloud, eni) == []


def test_the_same_event_three_times_makes_one_session(cloud: Cloud, stack: SimpleNamespace) -> None:
    instance = cloud.run_instance(**tagged())
    launched = event("instance-running", instance["InstanceId"])
    for _ in range(3):
        send(cloud, stack, launched)
        time.sleep(0.3)
    wait_until(lambda: sessions(cloud, interface_of(instance)), 10, "a session")
    quiet(cloud, stack)
    assert len(sessions(cloud, interface_of(instance))) == 1


def test_two_different_events_at_once_make_one_session_an_interface(cloud: Cloud, stack: SimpleNamespace) -> None:
    with deaf(cloud, stack):
        for _ in range(4):
            instance = cloud.run_instance(**tagged())
            events = [event("instance-running", instance["InstanceId"]), event("asg-launch", instance["InstanceId"])]
            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda e: invoke(cloud, stack.out["AttachFunction"], e), events))
            assert len(sessions(cloud, interface_of(instance))) == 1
            assert all(a["failed"] == [] for a in answers), answers
    assert cloud.lab(f"environments/{stack.out['AttachFunction'].rsplit(':', 1)[1]}")["environments"] >= 2, (
        "never at once"
    )


def test_a_group_that_grows_is_mirrored_with_nobodys_help(cloud: Cloud, stack: SimpleNamespace) -> None:
    ec2, scaling = cloud.client("ec2"), cloud.client("autoscaling")
    ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    )
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="web", LaunchTemplate={"LaunchTemplateName": "web"}, MinSize=1, MaxSize=3,
        VPCZoneIdentifier=",".join(cloud.subnets()[:2]),
        Tags=[{"Key": "Mirror", "Value": "true", "PropagateAtLaunch": True}],
    )  # fmt: skip

    def mirrored() -> list[int]:
        members = [i for i in cloud.lab("network")["instances"] if i["asg"] == "web"]
        return [len(sessions(cloud, e["id"])) for i in members for e in i["enis"]]

    wait_until(lambda: mirrored() == [1], 10, "the first instance")
    scaling.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=2)
    wait_until(lambda: mirrored() == [1, 1], 10, "the second one")
    quiet(cloud, stack)
    assert mirrored() == [1, 1]
    scaling.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    known = {e["id"] for i in cloud.lab("network")["instances"] for e in i["enis"]}
    wait_until(lambda: {s["eni"] for s in sessions(cloud)} <= known, 5, "the session of the terminated one to go")


def test_a_tag_that_comes_or_goes_makes_or_ends_the_session(cloud: Cloud, stack: SimpleNamespace) -> None:
    instance, ec2 = cloud.run_instance(), cloud.client("ec2")
    mirror = [{"Key": "Mirror", "Value": "true"}]
    ec2.create_tags(Resources=[instance["InstanceId"]], Tags=mirror)
    wait_until(lambda: len(sessions(cloud, interface_of(instance))) == 1, 10, "a session")
    ec2.delete_tags(Resources=[instance["InstanceId"]], Tags=[{"Key": "Mirror"}])
    wait_until(lambda: sessions(cloud, interface_of(instance)) == [], 10, "it to go")


def test_the_stacks_own_instances_are_never_mirrored(cloud: Cloud, stack: SimpleNamespace) -> None:
    own = [i for i in cloud.lab("network")["instances"] if i["asg"] == stack.out["RebuilderGroup"]]
    assert len(own) == 2
    cloud.client("ec2").create_tags(Resources=[i["id"] for i in own], Tags=[{"Key": "Mirror", "Value": "true"}])
    quiet(cloud, stack)
    sweep(cloud, stack)
    assert [sessions(cloud, e["id"]) for i in own for e in i["enis"]] == [[], []]


def test_a_dry_run_tells_and_does_nothing(cloud: Cloud, stack: SimpleNamespace) -> None:
    with deaf(cloud, stack):
        eni = interface_of(cloud.run_instance(**tagged()))
        before = sessions(cloud)
        answer = invoke(cloud, stack.out["ReconcileFunction"], {"dry_run": True})
        assert eni in [c["eni"] for c in answer["created"]]
        assert answer["monthly_cost"] > 0
        assert sessions(cloud) == before


def test_the_sweep_finds_what_no_event_told(cloud: Cloud, stack: SimpleNamespace) -> None:
    with deaf(cloud, stack):
        eni = interface_of(cloud.run_instance(**tagged()))
        cloud.lab("tick", "POST")
        wait_until(lambda: len(sessions(cloud, eni)) == 1, 10, "the sweep to mirror it")


def test_another_teams_sessions_are_left_alone_and_a_full_interface_is_skipped(
    cloud: Cloud, stack: SimpleNamespace
) -> None:
    ec2 = cloud.client("ec2")
    with deaf(cloud, stack):
        eni = interface_of(cloud.run_instance(**tagged()))
        for number in (1, 2, 3):
            ec2.create_traffic_mirror_session(
                NetworkInterfaceId=eni, TrafficMirrorTargetId=stack.out["MirrorTargetId"],
                TrafficMirrorFilterId=stack.out["MirrorFilterId"], SessionNumber=number,
            )  # fmt: skip
        answer = sweep(cloud, stack)
        assert {"eni": eni, "reason": "interface_full"} in [
            {k: s[k] for k in ("eni", "reason")} for s in answer["skipped"]
        ]
        assert sorted(s["number"] for s in sessions(cloud, eni)) == [1, 2, 3]


def test_a_malformed_event_ends_in_the_dlq_and_its_neighbours_do_not(cloud: Cloud, stack: SimpleNamespace) -> None:
    with deaf(cloud, stack):
        first, second = (cloud.run_instance(**tagged()) for _ in range(2))
    sqs = cloud.client("sqs")
    # Five receives three minutes apart would be a long test: the same mechanism, sooner.
    held = sqs.get_queue_attributes(QueueUrl=stack.out["EventQueueUrl"], AttributeNames=["All"])["Attributes"]
    soon = {**json.loads(held["RedrivePolicy"]), "maxReceiveCount": 2}
    sqs.set_queue_attributes(
        QueueUrl=stack.out["EventQueueUrl"], Attributes={"VisibilityTimeout": "3", "RedrivePolicy": json.dumps(soon)}
    )
    malformed = json.dumps(json.loads((product.ROOT / "events" / "malformed.json").read_text()))
    send(
        cloud, stack,
        event("instance-running", first["InstanceId"]), malformed, "{not json",
        event("asg-launch", second["InstanceId"]),
    )  # fmt: skip
    for instance in (first, second):
        wait_until(lambda i=instance: len(sessions(cloud, interface_of(i))) == 1, 10, "the neighbours' sessions")
    wait_until(lambda: left(cloud, stack, "DeadLetterQueueUrl") == 2, 40, "both malformed ones in the DLQ")
    dead = sqs.receive_message(QueueUrl=stack.out["DeadLetterQueueUrl"], MaxNumberOfMessages=10)["Messages"]
    assert {m["Body"] for m in dead} == {malformed, "{not json"}
    assert left(cloud, stack) == 0


def test_an_unknown_selection_is_one_clear_line(cloud: Cloud, stack: SimpleNamespace) -> None:
    client = cloud.client("lambda")
    name = stack.out["ReconcileFunction"]
    variables = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    wrong = {**variables, "MIRRORFLEET_SELECTION": "tag:Mirror=true, colour:red"}
    client.update_function_configuration(FunctionName=name, Environment={"Variables": wrong})
    try:
        answer = client.invoke(FunctionName=name, Payload=json.dumps(event("scheduled", "")))
        assert answer["FunctionError"] == "Unhandled"
        message = json.loads(answer["Payload"].read())["errorMessage"]
        assert "\n" not in message
        assert "colour" in message
        assert "Selection" in message or "MIRRORFLEET_SELECTION" in message
    finally:
        client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})

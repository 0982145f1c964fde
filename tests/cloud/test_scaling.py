"""The deployed stack's policies and alarms under a recorded load: quiet, ten times as much, quiet, then a drop.

The recording (recordings/README.md) is of one rebuilder. It is played by a fleet that shares the same work: each of n
instances has 2/n of the recorded load, from the minute after n was decided. Simulated minutes take milliseconds.

The expected decisions are worked out by hand from AWS's documentation, beside each test.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import TESTS, Cloud

product.need_a_build()

sys.path.insert(0, str(TESTS / "template"))
import stack  # noqa: E402
import test_template_watch as watch  # noqa: E402

RECORDED = json.loads((Path(__file__).parent / "recordings" / "load.json").read_text())
LEVELS = {"Load", "Flows", "HeldBytes", "QueueBytes", "RequestsInFlight"}
ZERO = {n: [1, 0, 0, 0] for _, _, n, dimensions in watch.by_alarms(stack.Evaluated()) if dimensions == {"Stack"} and n not in LEVELS}
"""What the recording leaves out. A publisher puts zeros too, and so an alarm is over with the next minute."""
START = 1_800_000_000 - 1_800_000_000 % 3600
"""Of the simulated time: no test depends on today, and periods of five minutes begin with it."""


@pytest.fixture(scope="module")
def fleet(cloud: Cloud) -> SimpleNamespace:
    product.deploy(cloud, MinSize="2", MaxSize="10")
    out = product.outputs(cloud)
    (targets,) = [g["TargetGroupArn"] for g in cloud.client("elbv2").describe_target_groups()["TargetGroups"]]
    soon = {"Key": "deregistration_delay.timeout_seconds", "Value": "1"}
    cloud.client("elbv2").modify_target_group_attributes(TargetGroupArn=targets, Attributes=[soon])
    queue = cloud.client("sqs").create_queue(QueueName="inbox")["QueueUrl"]
    arn = cloud.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    cloud.client("sns").subscribe(TopicArn=out["AlarmTopic"], Protocol="sqs", Endpoint=arn)
    return SimpleNamespace(group=out["RebuilderGroup"], queue=queue, now=START)


@pytest.fixture
def play(cloud: Cloud, fleet: SimpleNamespace) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Plays calls of the recording, each for so many minutes. Gives what happened, minutes counted from the test's first."""
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName=fleet.group, DesiredCapacity=2)
    # Time enough that no alarm, warm-up or cooldown of the test before is left.
    fleet.now += 6 * 3600
    begun = fleet.now

    def played(calls: list[dict[str, list[float]]], minutes: int, telling: Callable[[int], int] = lambda n: n) -> Any:
        seen = []
        for call in calls:
            for _ in range(minutes):
                put(cloud, fleet, call, telling)
                fleet.now += 60
                happened = cloud.lab("minute", "POST", {"now": fleet.now})
                for what in happened["decisions"] + happened["alarms"]:
                    seen.append({**what, "minute": (fleet.now - begun) // 60})
        return seen

    yield played


def put(cloud: Cloud, fleet: SimpleNamespace, call: dict[str, list[float]], telling: Callable[[int], int]) -> None:
    """A minute of the fleet: each instance puts its share in the middle of it, and AWS tells how many there are."""
    at = datetime.datetime.fromtimestamp(fleet.now + 30, datetime.UTC)
    held = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[fleet.group])
    n = held["AutoScalingGroups"][0]["DesiredCapacity"]

    def datum(name: str, values: list[float], dimension: str, value: str) -> dict[str, Any]:
        count, *rest = values
        share = 2 / n if name in LEVELS else 1
        sums = dict(zip(("Sum", "Minimum", "Maximum"), (r * share for r in rest), strict=True))
        return {"MetricName": name, "Dimensions": [{"Name": dimension, "Value": value}], "Timestamp": at,
                "StatisticValues": {"SampleCount": count, **sums}}  # fmt: skip

    minute = {**ZERO, **call, "Heartbeat": [1, 60, 60, 60]}
    data = [datum(name, values, "Stack", product.STACK) for name, values in minute.items()]
    for instance in range(n):
        # Losses were those of one.
        of_it = [d for d in data if instance == 0 or d["MetricName"] != "PacketsDropped"]
        of_it = [d for d in of_it if instance < telling(n) or d["MetricName"] != "Heartbeat"]
        cloud.client("cloudwatch").put_metric_data(Namespace="mirrorfleet", MetricData=of_it)
    group = [datum("GroupInServiceInstances", [1, n, n, n], "AutoScalingGroupName", fleet.group)]
    cloud.client("cloudwatch").put_metric_data(Namespace="AWS/AutoScaling", MetricData=group)


def decisions(seen: list[dict[str, Any]]) -> list[tuple[int, str, int, int]]:
    return [(s["minute"], s["policy"].split("-")[1], s["from"], s["to"]) for s in seen if "policy" in s]


def changes(seen: list[dict[str, Any]], alarm: str) -> list[tuple[int, str]]:
    return [(s["minute"], s["to"]) for s in seen if "alarm" in s and f"-{alarm}-" in s["alarm"]]


def mean_load(phase: str) -> list[float]:
    return [call["Load"][1] / call["Load"][0] for call in RECORDED[phase]]


def test_the_recording_is_quiet_ten_times_as_much_and_quiet() -> None:
    # What the expectations below rest on; another recording would need others.
    assert all(5 < load < 14 for load in mean_load("quiet") + mean_load("quiet_again"))
    assert [round(load) for load in mean_load("busy")] == [86, 90, 69, 54, 57]
    packets = [sum(call["Packets"][1] for call in RECORDED[phase]) for phase in ("quiet", "busy", "quiet_again")]
    assert 9.5 < packets[1] / packets[0] < 10.5 and 9.5 < packets[1] / packets[2] < 10.5


def test_the_fleet_follows_the_load(play) -> None:
    seen = play(RECORDED["quiet"], 4) + play(RECORDED["busy"], 6) + play(RECORDED["quiet_again"], 24)
    assert decisions(seen) == [
        # Minutes 21 to 23 are the first three above the target of 50 %, with 85.8 %. Target tracking: 2 * 85.8 / 50 = 3.43,
        # rounded up. Four have 42.9 % and never more than 2/4 of 90.3 %: nothing more to do. Nor to take away, since even
        # 2/4 of 53.5 % is above 25 %.
        (23, "RebuilderScaling", 2, 4),
        # From minute 51 on it is quiet again. Six periods of five minutes below 25 % end with minute 80: one less.
        (80, "RebuilderScalingIn", 4, 3),
        # It is still idle, and the policy acts again when its cooldown of 900 seconds is over. Then MinSize holds.
        (95, "RebuilderScalingIn", 3, 2),
    ]
    # Nobody was woken: no packet was lost, every instance told its figures.
    assert [state for _, state in changes(seen, "PacketsDroppedAlarm")] in ([], ["OK"])
    assert all(minute <= 5 for minute, _ in changes(seen, "HeartbeatAlarm"))


def test_a_drop_triggers_the_step_and_the_alarm(cloud: Cloud, fleet: SimpleNamespace, play) -> None:
    inbox(cloud, fleet)
    dropped = RECORDED["stall"][0]["PacketsDropped"][1]
    assert dropped == 112900
    seen = play(RECORDED["quiet"][:1], 3) + play(RECORDED["stall"][:1], 1) + play(RECORDED["quiet"][:1], 10)
    # The alarm's threshold is 0, so the value is its own distance: above 10,000, the step is 100 % of two. The load was 2.8 %.
    assert decisions(seen) == [(4, "RebuilderScalingOnDrops", 2, 4)]
    assert changes(seen, "PacketsDroppedAlarm")[-2:] == [(4, "ALARM"), (5, "OK")]
    told = [(m["NewStateValue"], m["AlarmDescription"]) for m in inbox(cloud, fleet) if "PacketsDropped" in m["AlarmName"]]
    assert [state for state, _ in told][-2:] == ["ALARM", "OK"]
    assert told[-1][1].endswith("Runbook: README.md#alarm-packets-dropped")


def test_few_dropped_packets_add_a_quarter(play) -> None:
    # The same recording, with one packet in a thousand of those that were lost: 113. A quarter of two is less than one.
    few = {**RECORDED["stall"][0], "PacketsDropped": [1, 113, 113, 113]}
    seen = play(RECORDED["quiet"][:1], 3) + play([few], 1) + play(RECORDED["quiet"][:1], 3)
    assert decisions(seen) == [(4, "RebuilderScalingOnDrops", 2, 3)]


def test_a_rebuilder_that_tells_nothing_is_missed(play) -> None:
    seen = play(RECORDED["quiet"][:1], 10)
    seen += play(RECORDED["quiet"][:1], 10, lambda n: n - 1)
    seen += play(RECORDED["quiet"][:1], 10)
    # Five minutes of which one of two is missing: minutes 11 to 15. And it is over with the first that has both.
    assert changes(seen, "HeartbeatAlarm")[-2:] == [(15, "ALARM"), (21, "OK")]
    assert decisions(seen) == []


def inbox(cloud: Cloud, fleet: SimpleNamespace) -> list[dict[str, Any]]:
    """What the topic has told since the last look."""
    found, sqs = [], cloud.client("sqs")
    while messages := sqs.receive_message(QueueUrl=fleet.queue, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            found.append(json.loads(json.loads(message["Body"])["Message"]))
            sqs.delete_message(QueueUrl=fleet.queue, ReceiptHandle=message["ReceiptHandle"])
    return found

"""A queue feeds a function: batches, window, partial failures, redrive, concurrency."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, function, wait_until

# Notes each batch as one line. A body {"fail": true} is reported, {"crash": true} raises, {"sleep": s} takes its time.
WORKER = function(
    """
def handle(event, context):
    records = [dict(json.loads(r["body"]), id=r["messageId"], count=r["attributes"]["ApproximateReceiveCount"])
               for r in event["Records"]]
    batch = {"at": time.time(), "records": records, "raw": event["Records"]}
    for record in records:
        time.sleep(record.get("sleep", 0))
    print("BATCH " + json.dumps({**batch, "until": time.time()}), flush=True)
    if any(r.get("crash") for r in records): raise ValueError("crash")
    if any(r.get("nonsense") for r in records): return {"batchItemFailures": [{"itemIdentifier": "no such id"}]}
    return {"batchItemFailures": [{"itemIdentifier": r["id"]} for r in records if r.get("fail")]}
"""
)


class Line:
    """A queue, its dead-letter queue, a function and the mapping between them."""

    def __init__(self, cloud: Cloud, receives: int, visibility: int, **mapping: Any):
        self.cloud = cloud
        self.sqs = cloud.client("sqs")
        self.name = f"line-{uuid.uuid4().hex[:8]}"
        self.dlq = self.sqs.create_queue(QueueName=f"{self.name}-dlq")["QueueUrl"]
        redrive = {"deadLetterTargetArn": self._arn(f"{self.name}-dlq"), "maxReceiveCount": receives}
        attributes = {"VisibilityTimeout": str(visibility), "RedrivePolicy": json.dumps(redrive)}
        self.queue = self.sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]
        cloud.create_function(self.name, WORKER, Timeout=visibility)
        settings = {"FunctionResponseTypes": ["ReportBatchItemFailures"], **mapping}
        made = cloud.client("lambda").create_event_source_mapping(
            FunctionName=self.name, EventSourceArn=self._arn(self.name), **settings
        )
        self.mapping = made["UUID"]

    @staticmethod
    def _arn(name: str) -> str:
        return f"arn:aws:sqs:us-east-1:123456789012:{name}"

    def send(self, *bodies: dict[str, Any]) -> None:
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(i), "MessageBody": json.dumps(b)} for i, b in enumerate(bodies[start : start + 10])]
            self.sqs.send_message_batch(QueueUrl=self.queue, Entries=entries)

    def batches(self) -> list[dict[str, Any]]:
        lines = self.cloud.lab(f"logs/{self.name}").splitlines()
        found = [json.loads(line.removeprefix("BATCH ")) for line in lines if line.startswith("BATCH ")]
        return sorted(found, key=lambda b: b["at"])

    def seen(self) -> list[Any]:
        return [r["n"] for b in self.batches() for r in b["records"]]

    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        held = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(map(int, held.values()))

    def dead(self) -> list[Any]:
        found = self.sqs.receive_message(QueueUrl=self.dlq, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [json.loads(m["Body"])["n"] for m in found.get("Messages", [])]


@pytest.fixture
def line(cloud: Cloud) -> Any:
    made: list[Line] = []

    def make(receives: int = 2, visibility: int = 1, **mapping: Any) -> Line:
        made.append(Line(cloud, receives, visibility, **mapping))
        return made[-1]

    yield make
    for each in made:
        cloud.client("lambda").delete_event_source_mapping(UUID=each.mapping)


def test_a_message_reaches_the_function_as_sqs_shapes_it_and_is_deleted(line: Callable[..., Line]) -> None:
    one = line()
    one.send({"n": 1})
    (batch,) = wait_until(one.batches, 5, "the batch")
    (record,) = batch["raw"]
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"].endswith(f":{one.name}")
    assert record["awsRegion"] == "us-east-1"
    assert json.loads(record["body"]) == {"n": 1}
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert int(record["attributes"]["SentTimestamp"]) / 1000 == pytest.approx(time.time(), abs=10)
    wait_until(lambda: one.left() == 0, 5, "it to be deleted")


def test_only_what_is_reported_comes_again_and_then_ends_in_the_dlq(line: Callable[..., Line]) -> None:
    one = line(receives=2, visibility=2, BatchSize=10, MaximumBatchingWindowInSeconds=1)
    one.send({"n": 1}, {"n": 2, "fail": True}, {"n": 3})
    wait_until(lambda: one.dead() == [2], 15, "the message in the DLQ")
    assert sorted(one.seen()) == [1, 2, 2, 3], "the neighbours are handled once, the failing one maxReceiveCount times"
    assert one.left() == 0


def test_a_crash_brings_the_whole_batch_again(line: Callable[..., Line]) -> None:
    one = line(receives=2, visibility=2, BatchSize=10, MaximumBatchingWindowInSeconds=1)
    one.send({"n": 1, "crash": True}, {"n": 2})
    wait_until(lambda: sorted(one.dead()) == [1, 2], 15, "both messages in the DLQ")
    assert sorted(one.seen()) == [1, 1, 2, 2]


def test_a_report_that_names_an_unknown_message_fails_the_whole_batch(line: Callable[..., Line]) -> None:
    one = line(receives=1)
    one.send({"n": 1, "nonsense": True})
    wait_until(lambda: one.dead() == [1], 15, "the message in the DLQ")


def test_a_failed_message_waits_for_its_visibility_timeout(line: Callable[..., Line]) -> None:
    one = line(receives=2, visibility=2)
    one.send({"n": 1, "fail": True})
    first, second = wait_until(lambda: b if len(b := one.batches()) == 2 else None, 15, "the second attempt")
    received = int(first["raw"][0]["attributes"]["ApproximateFirstReceiveTimestamp"]) / 1000
    assert 2 <= second["at"] - received < 4
    assert [b["records"][0]["count"] for b in (first, second)] == ["1", "2"]


def test_the_window_gathers_a_burst_into_few_batches(line: Callable[..., Line]) -> None:
    one = line(visibility=5, BatchSize=100, MaximumBatchingWindowInSeconds=1)
    one.send(*({"n": n} for n in range(40)))
    wait_until(lambda: len(one.seen()) == 40, 15, "all of them")
    assert sorted(one.seen()) == list(range(40))
    assert len(one.batches()) <= 2


def test_a_batch_is_never_larger_than_its_size(line: Callable[..., Line]) -> None:
    one = line(visibility=5, BatchSize=3)
    one.send(*({"n": n} for n in range(10)))
    wait_until(lambda: len(one.seen()) == 10, 15, "all of them")
    assert max(len(b["records"]) for b in one.batches()) <= 3


def test_no_more_batches_run_at_once_than_allowed(line: Callable[..., Line]) -> None:
    one = line(visibility=5, BatchSize=1, ScalingConfig={"MaximumConcurrency": 2})
    one.send(*({"n": n, "sleep": 0.3} for n in range(8)))
    wait_until(lambda: len(one.seen()) == 8, 15, "all of them")
    batches = one.batches()
    at_once = [sum(b["at"] <= a["at"] < b["until"] for b in batches) for a in batches]
    assert max(at_once) == 2


def test_nothing_is_lost_or_doubled_when_many_send_at_once(line: Callable[..., Line]) -> None:
    one = line(visibility=30, BatchSize=10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda s: one.send(*({"n": s * 10 + n} for n in range(10))), range(20)))
    wait_until(lambda: len(one.seen()) >= 200 and one.left() == 0, 20, "all of them")
    assert sorted(one.seen()) == list(range(200))


def test_two_readers_never_get_the_same_message(cloud: Cloud) -> None:
    sqs = cloud.client("sqs")
    queue = sqs.create_queue(QueueName="shared", Attributes={"VisibilityTimeout": "60"})["QueueUrl"]
    for n in range(100):
        sqs.send_message(QueueUrl=queue, MessageBody=str(n))

    def drain(_: int) -> list[str]:
        found: list[str] = []
        while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
            found += [m["Body"] for m in messages]
        return found

    with ThreadPoolExecutor(6) as pool:
        got = [n for part in pool.map(drain, range(6)) for n in part]
    assert sorted(got, key=int) == [str(n) for n in range(100)]


def test_a_disabled_mapping_takes_nothing_and_a_deleted_one_neither(cloud: Cloud, line: Callable[..., Line]) -> None:
    one = line(visibility=5)
    cloud.client("lambda").update_event_source_mapping(UUID=one.mapping, Enabled=False)
    time.sleep(0.3)
    one.send({"n": 1})
    time.sleep(0.5)
    assert one.seen() == []
    cloud.client("lambda").update_event_source_mapping(UUID=one.mapping, Enabled=True)
    wait_until(lambda: one.seen() == [1], 5, "it to be enabled")


def test_setting_an_attribute_keeps_the_queues_policy(cloud: Cloud) -> None:
    sqs = cloud.client("sqs")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    queue = sqs.create_queue(QueueName="policy", Attributes={"Policy": policy})["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "7"})
    held = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["Policy"])["Attributes"]
    assert json.loads(held["Policy"])["Statement"] == [statement]


@pytest.mark.parametrize(
    ("mapping", "visibility", "said"),
    [
        ({}, 5, "Queue visibility timeout: 5 seconds is less than Function timeout: 10 seconds"),
        ({"BatchSize": 11}, 60, "Maximum batch window in seconds must be greater than 0"),
        ({"ScalingConfig": {"MaximumConcurrency": 1001}}, 60, "MaximumConcurrency must be between 2 and 1000"),
    ],
)
def test_a_mapping_that_lambda_would_refuse_is_refused(
    cloud: Cloud, mapping: dict[str, Any], visibility: int, said: str
) -> None:
    name = f"refused-{uuid.uuid4().hex[:8]}"
    cloud.client("sqs").create_queue(QueueName=name, Attributes={"VisibilityTimeout": str(visibility)})
    cloud.create_function(name, WORKER, Timeout=10)
    arn = f"arn:aws:sqs:us-east-1:123456789012:{name}"
    with pytest.raises(ClientError, match=said):
        cloud.client("lambda").create_event_source_mapping(FunctionName=name, EventSourceArn=arn, **mapping)

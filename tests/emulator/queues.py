"""SQS, safe for several readers, and Lambda's event source mapping: batches, window, partial failures, concurrency.

moto keeps the messages. Its own mapping calls the function once for each message, inside SendMessage: it is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import EventSourceMapping, LambdaBackend
from moto.sqs.exceptions import QueueDoesNotExist, ReceiptHandleIsInvalid
from moto.sqs.models import Message, Queue, SQSBackend, sqs_backends

from . import functions
from .gate import Gate
from .iam import Ask
from .runtime import Outcome, Throttled

log = logging.getLogger("emulator.queues")

POLLERS = 5
"""Batches of one mapping at once without ScalingConfig: with so many Lambda starts; it would scale further."""
RECEIVE_LIMIT = 10
IDLE = 0.2
"""Seconds after which an empty queue is looked at again, for messages whose visibility timeout has passed."""


def install(gate: Gate) -> None:
    _make_queues_safe()
    create, delete = LambdaBackend.create_event_source_mapping, LambdaBackend.delete_event_source_mapping
    update = LambdaBackend.update_event_source_mapping
    pollers: dict[str, Poller] = {}

    def created(self: LambdaBackend, spec: dict[str, Any]) -> EventSourceMapping:
        _check(self, spec)
        _check_role(gate, self, spec)
        mapping = create(self, spec)
        if ":sqs:" in mapping.event_source_arn:
            # moto's own delivery, from inside SendMessage, is not wanted.
            _queue_of(mapping).lambda_event_source_mappings.clear()
            pollers[mapping.uuid] = Poller(mapping)
            pollers[mapping.uuid].start()
        return mapping

    def updated(self: LambdaBackend, uuid: str, spec: dict[str, Any]) -> EventSourceMapping | None:
        if mapping := self.get_event_source_mapping(uuid):
            known = {
                "FunctionName": mapping.function_arn,
                "EventSourceArn": mapping.event_source_arn,
                "BatchSize": mapping.batch_size,
                "MaximumBatchingWindowInSeconds": mapping.max_batch_window,
                "ScalingConfig": mapping.scaling_config,
            }
            _check(self, {**known, **spec})
        return update(self, uuid, spec)

    def deleted(self: LambdaBackend, uuid: str) -> EventSourceMapping | None:
        if poller := pollers.pop(uuid, None):
            poller.stop()
        return delete(self, uuid)

    LambdaBackend.create_event_source_mapping = created
    LambdaBackend.update_event_source_mapping = updated
    LambdaBackend.delete_event_source_mapping = deleted


def _check(backend: LambdaBackend, spec: dict[str, Any]) -> None:
    """What Lambda refuses of a mapping of a queue (CreateEventSourceMapping, and the guide on SQS)."""
    arn = spec.get("EventSourceArn") or ""
    if ":sqs:" not in arn:
        return
    queue = sqs_backends[backend.account_id][backend.region_name].queues.get(arn.rsplit(":", 1)[1])
    if queue is None:
        raise _invalid("Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue.")
    function = backend.get_function(spec["FunctionName"])
    if int(queue.visibility_timeout) < int(function.timeout):
        raise _invalid(
            f"Queue visibility timeout: {queue.visibility_timeout} seconds is less than "
            f"Function timeout: {function.timeout} seconds"
        )
    if int(spec.get("BatchSize") or 10) > 10 and not int(spec.get("MaximumBatchingWindowInSeconds") or 0):
        raise _invalid(
            "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than 10"
        )
    limit = (spec.get("ScalingConfig") or {}).get("MaximumConcurrency")
    if limit is not None and not 2 <= int(limit) <= 1000:
        raise _invalid(f"MaximumConcurrency must be between 2 and 1000, not {limit}")


def _check_role(gate: Gate, backend: LambdaBackend, spec: dict[str, Any]) -> None:
    """Lambda polls with the function's role, and refuses a mapping of a queue that the role may not read."""
    arn = spec.get("EventSourceArn") or ""
    if ":sqs:" not in arn:
        return
    role = backend.get_function(spec["FunctionName"]).role
    for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"):
        if gate.judge(role, [Ask(f"sqs:{action}", arn, {"aws:RequestedRegion": backend.region_name})]):
            raise _invalid(f"The function execution role does not have permissions to call {action} on SQS")


def _invalid(message: str) -> LambdaClientError:
    return LambdaClientError("InvalidParameterValueException", message)


class Poller:
    """One mapping at work: a thread that gathers batches, and one thread for each batch that runs."""

    def __init__(self, mapping: EventSourceMapping):
        self._mapping = mapping
        self._stopped = False
        self._running = 0
        self._freed = threading.Condition()

    def start(self) -> None:
        threading.Thread(target=self._poll, name=f"mapping {self._mapping.uuid}", daemon=True).start()

    def stop(self) -> None:
        """No further batch begins; those that run are not waited for."""
        self._stopped = True
        with self._freed:
            self._freed.notify_all()

    def _poll(self) -> None:
        while not self._stopped:
            with self._freed:
                self._freed.wait_for(lambda: self._stopped or self._running < self._limit())
            if not self._mapping.enabled:
                time.sleep(IDLE)
                continue
            try:
                batch = self._gather()
            except QueueDoesNotExist:
                time.sleep(IDLE)
                continue
            if batch:
                with self._freed:
                    self._running += 1
                threading.Thread(target=self._run, args=(batch,), daemon=True).start()

    def _limit(self) -> int:
        return int((self._mapping.scaling_config or {}).get("MaximumConcurrency") or POLLERS)

    def _gather(self) -> list[Message]:
        """Up to a batch: what the window, which opens with the first message, brings."""
        batch = self._receive(IDLE)
        closes = time.monotonic() + float(self._mapping.max_batch_window or 0)
        while batch and len(batch) < self._mapping.batch_size and not self._stopped:
            left = closes - time.monotonic()
            if left <= 0:
                break
            batch += self._receive(min(left, IDLE), self._mapping.batch_size - len(batch))
        return batch

    def _receive(self, wait: float, room: int | None = None) -> list[Message]:
        count = min(RECEIVE_LIMIT, self._mapping.batch_size if room is None else room)
        backend = _backend_of(self._mapping)
        queue = _queue_of(self._mapping)
        return receive(backend, queue, count, wait, int(queue.visibility_timeout), lambda: self._stopped)

    def _run(self, batch: list[Message]) -> None:
        try:
            self._settle(batch, self._invoke(batch))
        except Exception:
            log.exception("a batch of %s", self._mapping.function_arn)
        finally:
            with self._freed:
                self._running -= 1
                self._freed.notify_all()

    def _invoke(self, batch: list[Message]) -> Outcome | None:
        event = {"Records": [self._record(message) for message in batch]}
        mapping = self._mapping
        try:
            return functions.run(mapping.account_id, mapping.region, mapping.function_arn, json.dumps(event).encode())
        except Throttled:
            return None

    def _settle(self, batch: list[Message], outcome: Outcome | None) -> None:
        """Deletes what was handled; the rest shows again when its visibility timeout has passed."""
        failed = {message.id for message in batch}
        if outcome and outcome.error is None:
            failed = self._failed(batch, outcome.payload)
        queue = _queue_of(self._mapping)
        for message in batch:
            if message.id not in failed:
                with contextlib.suppress(ReceiptHandleIsInvalid):
                    queue.delete_message(message.receipt_handle)

    def _failed(self, batch: list[Message], payload: bytes) -> set[str]:
        """The ids that the function reports as failed. An answer that makes no sense fails the whole batch."""
        if "ReportBatchItemFailures" not in (self._mapping.function_response_types or []):
            return set()
        everything = {message.id for message in batch}
        try:
            answer = json.loads(payload or b"null")
            reported = (answer or {}).get("batchItemFailures") or []
            ids = {item["itemIdentifier"] for item in reported}
        except (ValueError, TypeError, KeyError, AttributeError):
            return everything
        return ids if ids <= everything else everything

    def _record(self, message: Message) -> dict[str, Any]:
        attributes = {
            "ApproximateReceiveCount": str(message.approximate_receive_count),
            "SentTimestamp": str(message.sent_timestamp),
            "SenderId": message.sender_id,
            "ApproximateFirstReceiveTimestamp": str(message.approximate_first_receive_timestamp),
        }
        if message.group_id:
            attributes["MessageGroupId"] = message.group_id
        return {
            "messageId": message.id,
            "receiptHandle": message.receipt_handle,
            "body": message.body,
            "attributes": attributes,
            "messageAttributes": {},
            "md5OfBody": hashlib.md5(message.body.encode(), usedforsecurity=False).hexdigest(),
            "eventSource": "aws:sqs",
            "eventSourceARN": self._mapping.event_source_arn,
            "awsRegion": self._mapping.region,
        }


def _backend_of(mapping: EventSourceMapping) -> SQSBackend:
    return sqs_backends[mapping.account_id][mapping.region]


def _queue_of(mapping: EventSourceMapping) -> Queue:
    return _backend_of(mapping).get_queue(mapping.event_source_arn.rsplit(":", 1)[1])


# -- queues that several threads may use ---------------------------------------------------------------------------

_receive_now = SQSBackend.receive_message


def receive(
    backend: SQSBackend,
    queue: Queue,
    count: int,
    wait: float,
    visibility: int,
    ended: Callable[[], bool] = lambda: False,
    attributes: list[str] | None = None,
) -> list[Message]:
    """Takes up to ``count`` messages, waiting up to ``wait`` seconds for the first."""
    deadline = time.monotonic() + wait
    with queue._messages_lock:
        while True:
            # With a wait of 0 moto looks once: at what is visible, moving what was received too often to the DLQ.
            found = _receive_now(backend, queue.name, count, 0, visibility, attributes)
            left = deadline - time.monotonic()
            if found or left <= 0 or ended():
                return found
            queue._messages_lock.wait(min(left, IDLE))


def _make_queues_safe() -> None:
    """moto reads and replaces a queue's list of messages without its lock: under load messages would be lost."""
    for name in ("add_message", "delete_message"):
        setattr(Queue, name, _under_lock(getattr(Queue, name)))

    change = SQSBackend.change_message_visibility

    def change_message_visibility(
        self: SQSBackend, queue_name: str, receipt_handle: str, visibility_timeout: int
    ) -> None:
        queue = self.get_queue(queue_name)
        with queue._messages_lock:
            change(self, queue_name, receipt_handle, visibility_timeout)
            queue._messages_lock.notify_all()

    def receive_message(
        self: SQSBackend,
        queue_name: str,
        count: int,
        wait_seconds_timeout: int,
        visibility_timeout: int,
        message_attribute_names: list[str] | None = None,
    ) -> list[Message]:
        queue = self.get_queue(queue_name)
        return receive(
            self, queue, count, wait_seconds_timeout or 0, visibility_timeout, attributes=message_attribute_names
        )

    set_attributes = Queue._set_attributes

    def _set_attributes(self: Queue, attributes: dict[str, Any], now: float | None = None) -> None:
        # Setting another attribute would drop the policy.
        if "Policy" not in attributes and getattr(self, "_policy_json", None):
            attributes = {**attributes, "Policy": self.policy}
        set_attributes(self, attributes, now)

    Queue._set_attributes = _set_attributes
    SQSBackend.change_message_visibility = change_message_visibility
    SQSBackend.receive_message = receive_message


def _under_lock(call: Callable[..., Any]) -> Callable[..., Any]:
    def locked(self: Queue, *args: Any) -> Any:
        with self._messages_lock:
            return call(self, *args)

    return locked

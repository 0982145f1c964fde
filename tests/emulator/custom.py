"""Custom resources: the request to the function, and the answer that it puts at ResponseURL.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref.html
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from typing import Any

from . import functions
from .resources.kind import Context, Failed, HalfMade, Made, Properties
from .server import as_json

log = logging.getLogger("emulator.custom")

ROUTE = "/_cloudformation/response/"
LONGEST_ANSWER = 4096
"""Bytes."""
DEFAULT_TIMEOUT = 3600
"""Seconds, and the most that ServiceTimeout may ask for."""


@dataclass
class _Request:
    type: str
    stack_id: str
    request_id: str
    logical_id: str
    function: str
    answers: queue.Queue[dict[str, Any] | str]


class FailedAnswer(HalfMade):
    """The function answered FAILED, or never. A rollback must send it Delete."""


class CustomResources:
    """Sends requests to functions and waits for their answers."""

    def __init__(self, endpoint: str):
        self._endpoint = endpoint
        self._waiting: dict[str, _Request] = {}
        self._over: set[str] = set()
        """URLs of requests that nobody waits for any more. An answer is still taken: it only goes into a bucket."""
        self._lock = threading.Lock()

    def create(self, context: Context, kind: str, properties: Properties) -> Made:
        # CloudFormation has a name ready for the case that no answer gives one.
        spare = context.name()
        return self._ask(context, "Create", kind, properties, spare)

    def update(self, context: Context, kind: str, made: Made, old: Properties, new: Properties) -> Made:
        more = {"PhysicalResourceId": made.id, "OldResourceProperties": as_text(old)}
        return self._ask(context, "Update", kind, new, made.id, more)

    def delete(self, context: Context, kind: str, made: Made, properties: Properties) -> None:
        self._ask(context, "Delete", kind, properties, made.id, {"PhysicalResourceId": made.id})

    def cancel(self, stack_id: str) -> None:
        """Waits no longer for what a stack makes, because it is to go. What was asked of the function goes on."""
        with self._lock:
            gone = {
                token: request
                for token, request in self._waiting.items()
                if request.stack_id == stack_id and request.type == "Create"
            }
            for token in gone:
                del self._waiting[token]
                self._over.add(token)
        for request in gone.values():
            request.answers.put("Resource creation cancelled")

    def asked(self, path: str) -> str:
        """Name of the function that was asked for the answer; empty for an unknown URL."""
        with self._lock:
            request = self._waiting.get(path.split("?", maxsplit=1)[0])
        return request.function if request else ""

    def answered(self, path: str, body: bytes) -> tuple[int, bytes, str]:
        """What a PUT at a ResponseURL does: the first one counts; an unknown URL is refused as an expired one is."""
        token = path.split("?", maxsplit=1)[0]
        with self._lock:
            if token in self._over:
                return as_json({})
            if request := self._waiting.pop(token, None):
                self._over.add(token)
        if request is None:
            return (
                403,
                b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
                "application/xml",
            )
        request.answers.put(_read(request, body))
        return as_json({})

    def _ask(
        self, context: Context, request_type: str, kind: str, properties: Properties, physical_id: str,
        more: dict[str, Any] | None = None,
    ) -> Made:  # fmt: skip
        token, service = secrets.token_urlsafe(24), properties["ServiceToken"]
        if ":lambda:" not in service:
            raise Failed(f"ServiceToken {service}: only functions are emulated")
        request = _Request(
            request_type,
            context.stack_id,
            str(uuid.uuid4()),
            context.logical_id,
            service.rsplit(":", 1)[1],
            queue.Queue(),
        )
        with self._lock:
            self._waiting[token] = request
        event = {
            "RequestType": request_type,
            "ServiceToken": service,
            "ResponseURL": self._url(token),
            "StackId": context.stack_id,
            "RequestId": request.request_id,
            "LogicalResourceId": context.logical_id,
            "ResourceType": kind,
            "ResourceProperties": as_text(properties),
            **(more or {}),
        }
        timeout = min(float(properties.get("ServiceTimeout", DEFAULT_TIMEOUT)), DEFAULT_TIMEOUT)
        try:
            functions.run_later(
                context.account, context.region, service, json.dumps(event).encode(),
                # AWS would wait for the timeout even so. Nobody is left to answer, so this does not.
                lost=lambda error: request.answers.put(f"the function failed and left no answer: {error}"),
            )  # fmt: skip
            answer = request.answers.get(timeout=timeout)
        except queue.Empty:
            answer = (
                "CloudFormation did not receive a response from your Custom Resource. Please check your logs for "
                f"requestId [{request.request_id}]."
            )
        finally:
            with self._lock:
                self._waiting.pop(token, None)
        if isinstance(answer, str):
            raise FailedAnswer(answer, physical_id)
        found = answer.get("PhysicalResourceId") or physical_id
        if answer["Status"] == "FAILED":
            raise FailedAnswer(
                f"Received response status [FAILED] from custom resource. Message returned: {answer.get('Reason')}",
                found,
            )
        return Made(found, answer.get("Data") or {})

    def _url(self, token: str) -> str:
        # Of the form of a presigned URL, so that a client which drops the query is found out.
        query = {
            "AWSAccessKeyId": "emulated",
            "Expires": str(int(time.time()) + 7200),
            "Signature": secrets.token_urlsafe(20),
        }
        return f"{self._endpoint}{ROUTE}{token}?{urllib.parse.urlencode(query)}"


def _read(request: _Request, body: bytes) -> dict[str, Any] | str:
    """The answer, or what is wrong with it."""
    if len(body) > LONGEST_ANSWER:
        return "Response object is too long."
    try:
        answer = json.loads(body)
    except ValueError:
        return "Invalid Response object: it is not JSON"
    if not isinstance(answer, dict) or answer.get("Status") not in ("SUCCESS", "FAILED"):
        return "Invalid Response object: Value of property Status must be SUCCESS or FAILED"
    expected = {"StackId": request.stack_id, "RequestId": request.request_id, "LogicalResourceId": request.logical_id}
    wrong = [name for name, value in expected.items() if answer.get(name) != value]
    if wrong:
        return f"Invalid Response object: {', '.join(wrong)} is not that of the request"
    if answer["Status"] == "FAILED" and not answer.get("Reason"):
        return "Invalid Response object: Reason is required when Status is FAILED"
    if not answer.get("PhysicalResourceId"):
        return "Invalid PhysicalResourceId"
    if not isinstance(answer.get("Data", {}), dict):
        return "Invalid Response object: Value of property Data must be an object"
    return answer


def as_text(value: Any) -> Any:
    """Properties as a function gets them: every scalar is text."""
    if isinstance(value, dict):
        return {key: as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_text(item) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) or value is None else str(value)

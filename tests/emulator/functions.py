"""The Lambda service: moto keeps the functions, ``runtime`` runs them.

Synchronous calls wait for the answer; asynchronous ones (invocation type Event) are answered at once and repeated
twice when the function fails, as Lambda's own queue does, only sooner.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import LambdaBackend, LambdaFunction
from moto.awslambda.utils import get_backend

from .runtime import Function, Outcome, Runtimes, Throttled

log = logging.getLogger("emulator.functions")

ASYNC_RETRIES = 2
ASYNC_RETRY_DELAY = 1.0
"""Seconds before an asynchronous event is tried again (on AWS: one minute, then two)."""

_runtimes: Runtimes


def install(runtimes: Runtimes) -> None:
    global _runtimes
    _runtimes = runtimes
    LambdaFunction.invoke = _invoke

    delete_function = LambdaBackend.delete_function

    def delete(self: LambdaBackend, function_name: str, qualifier: str | None = None) -> None:
        name = self.get_function(function_name).function_name
        delete_function(self, function_name, qualifier)
        if not qualifier:
            runtimes.forget(name)

    LambdaBackend.delete_function = delete


def run(account: str, region: str, arn: str, payload: bytes) -> Outcome:
    """One synchronous invocation by ARN or name. Raises moto's error when there is no such function."""
    return _runtimes.invoke(_described(get_backend(account, region).get_function(arn)), payload)


def run_later(
    account: str, region: str, arn: str, payload: bytes, lost: Callable[[str], None] = lambda _error: None
) -> None:
    """One asynchronous invocation. ``lost`` is called with the last error when no attempt succeeded."""
    _start_async(get_backend(account, region).get_function(arn), payload, lost)


def _described(function: LambdaFunction) -> Function:
    if function.layers:
        log.warning("%s has layers: the emulator does not mount them", function.function_name)
    reserved = function.reserved_concurrency
    return Function(
        name=function.function_name,
        arn=function.function_arn,
        region=function.region,
        role=function.role,
        version="$LATEST" if function.version in (1, "1", "$LATEST") else str(function.version),
        handler=function.handler or "bootstrap",
        timeout=float(function.timeout or 3),
        memory=int(function.memory_size or 128),
        code_sha=function.code_sha_256,
        variables=tuple(sorted((k, str(v)) for k, v in function.environment_vars.items())),
        code=function.code_bytes,
        reserved=None if reserved in (None, "") else int(reserved),
    )


def _invoke(self: LambdaFunction, body: Any, request_headers: Any, response_headers: dict[str, str]) -> bytes:
    """In place of LambdaFunction.invoke: moto would start a container."""
    kind = request_headers.get("X-Amz-Invocation-Type") or "RequestResponse"
    payload = body if isinstance(body, bytes) else (body or "{}").encode()
    if kind == "DryRun":
        return b""
    if kind == "Event":
        _start_async(self, payload)
        return b""
    try:
        outcome = _runtimes.invoke(_described(self), payload)
    except Throttled:
        raise LambdaClientError("TooManyRequestsException", "Rate Exceeded.") from None
    if outcome.error:
        response_headers["x-amz-function-error"] = outcome.error
    response_headers["x-amz-log-result"] = base64.b64encode(outcome.log_tail.encode()).decode()
    response_headers["x-amzn-RequestId"] = outcome.request_id
    response_headers["X-Amz-Executed-Version"] = "$LATEST"
    return outcome.payload


def _start_async(function: LambdaFunction, payload: bytes, lost: Callable[[str], None] = lambda _error: None) -> None:
    config = next(iter(function.event_invoke_config), None)
    retries = ASYNC_RETRIES
    if config and config.config.get("MaximumRetryAttempts") is not None:
        retries = int(config.config["MaximumRetryAttempts"])
    threading.Thread(target=_run_async, args=(function, payload, retries, lost), daemon=True).start()


def _run_async(function: LambdaFunction, payload: bytes, retries: int, lost: Callable[[str], None]) -> None:
    attempt = 0
    while True:
        try:
            outcome = _runtimes.invoke(_described(function), payload)
        except Throttled:
            time.sleep(ASYNC_RETRY_DELAY)  # Lambda keeps a throttled event for hours; it is no attempt
            continue
        if outcome.error is None:
            return None
        if attempt == retries:
            error = outcome.payload.decode(errors="replace")
            log.error("asynchronous event of %s is lost: %s", function.function_name, error)
            return lost(error)
        attempt += 1
        time.sleep(ASYNC_RETRY_DELAY)

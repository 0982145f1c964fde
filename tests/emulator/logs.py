"""What functions write, in CloudWatch Logs: Lambda delivers it a moment later, as the function's role.

So it may come after the function, its role and its log group are gone. Whether it makes the group again is up to the role.
Source: Lambda developer guide, "Sending Lambda function logs to CloudWatch Logs".
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from moto.awslambda.models import LambdaBackend, LambdaFunction
from moto.core import DEFAULT_ACCOUNT_ID
from moto.logs.models import logs_backends

from .gate import Gate
from .iam import Ask
from .runtime import Function, Outcome, Runtimes

log = logging.getLogger("emulator.logs")

DELAY = 1.5
"""Seconds from the end of an invocation to the delivery of its log."""


class Delivery:
    def __init__(self, gate: Gate):
        self._gate = gate
        self._lock = threading.Lock()
        self._groups: dict[str, str] = {}
        self._pending = 0

    def pending(self) -> int:
        with self._lock:
            return self._pending

    def configured(self, name: str, spec: dict[str, Any]) -> None:
        """The function's LoggingConfig."""
        if group := spec.get("LoggingConfig", {}).get("LogGroup"):
            with self._lock:
                self._groups[name] = group

    def later(self, function: Function, outcome: Outcome) -> None:
        with self._lock:
            self._pending += 1
            group = self._groups.get(function.name, f"/aws/lambda/{function.name}")
        threading.Thread(target=self._deliver, args=(function, group, outcome), daemon=True).start()

    def _deliver(self, function: Function, group: str, outcome: Outcome) -> None:
        try:
            time.sleep(DELAY)
            self._write(function, group, outcome)
        except Exception:
            log.exception("the log of %s", function.name)
        finally:
            with self._lock:
                self._pending -= 1

    def _write(self, function: Function, group: str, outcome: Outcome) -> None:
        backend = logs_backends[DEFAULT_ACCOUNT_ID][function.region]
        arn = f"arn:aws:logs:{function.region}:{DEFAULT_ACCOUNT_ID}:log-group:{group}"
        stream = function.version

        def may(action: str, resource: str) -> bool:
            return self._gate.allows(function.role, Ask(f"logs:{action}", resource))

        if group not in backend.groups:
            # Lambda tries; without the permission the lines are lost.
            if not may("CreateLogGroup", arn):
                log.info("the log of %s is lost: there is no group %s", function.name, group)
                return
            backend.create_log_group(group, {})
        if stream not in backend.groups[group].streams:
            if not may("CreateLogStream", f"{arn}:log-stream:{stream}"):
                return
            backend.create_log_stream(group, stream)
        if may("PutLogEvents", f"{arn}:log-stream:{stream}"):
            now = int(time.time() * 1000)
            lines = outcome.log_tail.splitlines() or ["-"]
            backend.put_log_events(group, stream, [{"timestamp": now, "message": line or "-"} for line in lines])


def install(gate: Gate, runtimes: Runtimes) -> Delivery:
    delivery = Delivery(gate)
    create, configure = LambdaBackend.create_function, LambdaBackend.update_function_configuration
    invoke = runtimes.invoke

    def created(self: LambdaBackend, spec: dict[str, Any]) -> LambdaFunction:
        made = create(self, spec)
        delivery.configured(made.function_name, spec)
        return made

    def configured(self: LambdaBackend, function_name: str, qualifier: str, body: dict[str, Any]) -> Any:
        delivery.configured(self.get_function(function_name).function_name, body)
        return configure(self, function_name, qualifier, body)

    def invoked(function: Function, payload: bytes) -> Outcome:
        # Its policies are looked at now, while the role is there: what it may do, it may do for some time after.
        gate.remember(function.role)
        outcome = invoke(function, payload)
        delivery.later(function, outcome)
        return outcome

    LambdaBackend.create_function, LambdaBackend.update_function_configuration = created, configured
    runtimes.invoke = invoked  # type: ignore[method-assign]
    return delivery

"""What functions ask of the account: who asks, whether it may, what goes wrong on the way, and a log of it all.

Each environment of a function has an access key of its own, which belongs to the function's role, as on Lambda. A call
with any other key is the account's owner, who may do everything, and whom nothing goes wrong for.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

from .calls import ANSWER, Answer, Call, called, key_of, with_parameters
from .faults import Faults
from .gate import Gate
from .runtime import Function

STACK_TAG = "mirrorfleet:stack"
"""The tag whose value the log gives of each session that a function changes or deletes."""
STACK_VARIABLE = "MIRRORFLEET_STACK_ARN"
"""The variable that tells which stack a function belongs to."""


@dataclass(frozen=True)
class Caller:
    name: str
    role: str
    stack: str | None
    kill: Callable[[], None]


@dataclass
class Entry:
    """One call of a function."""

    function: str
    call: str
    at: float
    """Seconds since the epoch."""
    stack: str | None = None
    """The function's STACK_VARIABLE."""
    session: str | None = None
    """The mirror session that it names."""
    tag: str | None = None
    """That session's tag STACK_TAG at that moment; None where it had none, or did not exist."""
    exists: bool | None = None
    """Whether there was such a session at that moment."""
    status: int | None = None
    """Of the answer; None where none was given."""


class Traffic:
    def __init__(self, gate: Gate, faults: Faults):
        self._gate = gate
        self._faults = faults
        self._callers: dict[str, Caller] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._log: list[Entry] = []

    def issue(self, function: Function, kill: Callable[[], None]) -> str:
        """A new access key of the function's role, for one environment of it."""
        key = f"ASIA{next(self._numbers):016d}"
        stack = dict(function.variables).get(STACK_VARIABLE)
        self._callers[key] = Caller(function.name, function.role, stack, kill)
        return key

    def credentials(self, role: str) -> dict[str, str]:
        """What the metadata service gives an instance with this role. For the log and for faults it is called by it."""
        key = f"ASIA{next(self._numbers):016d}"
        self._callers[key] = Caller(role, f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{role}", None, lambda: None)
        return {
            "Code": "Success", "LastUpdated": "2020-01-01T00:00:00Z", "Type": "AWS-HMAC",
            "AccessKeyId": key, "SecretAccessKey": "emulated", "Token": "emulated", "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip

    def log(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(entry) for entry in self._log]

    def answer(self, environ: dict[str, Any], service: Callable[[dict[str, Any]], Answer]) -> Answer | None:
        """What a function's call is answered; None for a call of the owner. Raises ``Dropped`` where nothing is."""
        caller = self._callers.get(key_of(environ) or "")
        if caller is None:
            return None
        call = called(environ)

        def carry_out(changed: dict[str, str]) -> Answer:
            # Something may have happened to it while the call was on its way.
            self._look_at_session(entry, call)
            if refused := self._gate.refusal(caller.role, call):
                return refused
            if changed:
                with_parameters(environ, changed)
            return service(environ)

        name = caller.name
        entry = self._noted(name, call)
        entry.stack = caller.stack
        given = self._faults.around(name, call, caller.kill, carry_out)
        entry.status = given[0]
        return given

    def answering(
        self, function: str, kill: Callable[[], None], take: Callable[[], tuple[int, bytes, str]]
    ) -> tuple[int, bytes, str]:
        """A custom resource's answer on its way to CloudFormation."""
        service, _, action = ANSWER.partition(":")
        call = Call(service, "", action, {})
        entry = self._noted(function, call)

        def carry_out(_: dict[str, str]) -> Answer:
            status, body, kind = take()
            return status, [("Content-Type", kind)], body

        status, headers, body = self._faults.around(function, call, kill, carry_out)
        entry.status = status
        return status, body, headers[0][1]

    def _noted(self, function: str, call: Call) -> Entry:
        entry = Entry(function, call.name, time.time())
        self._look_at_session(entry, call)
        with self._lock:
            self._log.append(entry)
        return entry

    @staticmethod
    def _look_at_session(entry: Entry, call: Call) -> None:
        if call.action in ("ModifyTrafficMirrorSession", "DeleteTrafficMirrorSession"):
            backend = ec2_backends[DEFAULT_ACCOUNT_ID][call.region]
            entry.session = call.given.get("TrafficMirrorSessionId", "")
            entry.exists = entry.session in backend.mirrors.sessions
            entry.tag = backend.tags.get(entry.session, {}).get(STACK_TAG)

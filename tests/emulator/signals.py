"""Signals to resources that wait for them: ``CreationPolicy``, and a rolling update that waits.

A test that has real hosts, or signals in their place, has them waited for (``POST /_lab/signals``); for all others an
instance in service is taken for its signal. Sources: AWS CloudFormation user guide, "CreationPolicy attribute" and
"UpdatePolicy attribute"; API reference, SignalResource.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import pace
from .records import Refused
from .resources.kind import Failed


@dataclass
class Box:
    """The signals of one resource while it is made or changed: unique id to status."""

    stack_id: str
    logical_id: str
    held: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False

    def of(self, instances: set[str], status: str) -> set[str]:
        return {unique for unique in instances if self.held.get(unique) == status}


class Signals:
    """Takes signals for the resources that are just made or changed; to all others a signal is refused."""

    def __init__(self) -> None:
        self.waited_for = False
        self._changed = threading.Condition()
        self._open: dict[tuple[str, str], Box] = {}
        self._log: list[dict[str, Any]] = []

    def set(self, body: bytes) -> dict[str, Any]:
        """``{"wait": true, "second": 0.1}``; for the second see emulator.pace."""
        wanted = json.loads(body)
        with self._changed:
            self.waited_for = bool(wanted.get("wait", self.waited_for))
            pace.second = float(wanted.get("second", pace.second))
        return self.view()

    def view(self) -> dict[str, Any]:
        """All signals so far, also those that were refused."""
        with self._changed:
            return {"wait": self.waited_for, "second": pace.second, "signals": list(self._log)}

    @contextmanager
    def opened(self, stack_id: str, logical_id: str) -> Iterator[Box]:
        """Takes signals to this resource meanwhile."""
        box = Box(stack_id, logical_id)
        with self._changed:
            self._open[stack_id, logical_id] = box
        try:
            yield box
        finally:
            with self._changed:
                del self._open[stack_id, logical_id]

    def give(self, stack_id: str, logical_id: str, unique: str, status: str, state: Callable[[], str]) -> None:
        """``state`` gives the resource's status, for the refusal of a signal that nobody waits for."""
        if status not in ("SUCCESS", "FAILURE"):
            raise Refused(
                f"1 validation error detected: Value '{status}' at 'status' failed to satisfy constraint: "
                "Member must satisfy enum value set: [SUCCESS, FAILURE]"
            )
        with self._changed:
            box = self._open.get((stack_id, logical_id))
            self._log.append(
                {
                    "stack": stack_id, "resource": logical_id, "id": unique, "status": status, "taken": box is not None,
                    "at": time.time(),
                }  # fmt: skip
            )
            if box:
                # Each further signal of a resource needs another id; of two with one the first counts.
                box.held.setdefault(unique, status)
                self._changed.notify_all()
                return
        raise Refused(f"Resource {logical_id} is in {state()} state and cannot be signaled")

    def cancel(self, stack_id: str) -> None:
        """Waits no longer for what a stack makes, because it is to go."""
        with self._changed:
            for box in self._open.values():
                if box.stack_id == stack_id:
                    box.cancelled = True
            self._changed.notify_all()

    def wait(self, box: Box, done: Callable[[], bool], limit: float) -> bool:
        """Until ``done``; false after ``limit`` seconds of a policy."""
        deadline = time.monotonic() + limit * pace.second
        with self._changed:
            while not done():
                if box.cancelled:
                    raise Failed("Resource creation cancelled")
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def require(self, box: Box, count: int, limit: float, percent: float) -> None:
        """A CreationPolicy: ``count`` signals, of which ``percent`` are SUCCESS."""
        needed = -(-count * percent // 100)

        def statuses(status: str) -> int:
            return sum(1 for held in box.held.values() if held == status)

        def hopeless() -> bool:
            return count - statuses("FAILURE") < needed

        in_time = self.wait(box, lambda: hopeless() or len(box.held) >= count, limit)
        if hopeless():
            raise Failed(
                f"Received {statuses('FAILURE')} FAILURE signal(s) out of {count}. Unable to satisfy "
                f"{percent:g}% MinSuccessfulInstancesPercent requirement"
            )
        if not in_time and statuses("SUCCESS") < needed:
            raise Failed(
                f"Received {statuses('SUCCESS')} SUCCESS signal(s) out of {count}. Failed to receive "
                f"{count - len(box.held)} resource signal(s) within the specified duration"
            )

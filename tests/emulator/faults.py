"""What can go wrong between a function and the account, on request: throttles, errors, lost and slow answers, small
pages, answers that are out of date, two callers at once, and a function that is killed between any two calls.

A fault is a JSON object, put in force by ``POST /_lab/faults``; ``DELETE /_lab/faults`` ends all of them and lets go
whatever is held. ``GET /_lab/faults`` tells of each how often it struck and how many calls it holds.
"""

from __future__ import annotations

import fnmatch
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .calls import Answer, Call, failure

HANG = 90.0
"""Seconds after which the connection of a call that gets no answer ends: no client waits for so long."""


@dataclass
class Fault:
    do: str
    """
    ``refuse``: an error of the service, the call is not carried out (``status``, ``code``);
    ``drop``: the connection ends without an answer; ``hang``: it stays open without one; ``cut``: half of the answer;
    ``slow``: ``seconds`` pass before the call is carried out; ``hold``: it waits until the faults end;
    ``page``: a page holds ``items`` items at most; ``rewrite``: ``old`` in the answer becomes ``new``;
    ``kill``: the calling function's process ends.
    """
    function: str = "*"
    call: str = "*"
    """Which calls: patterns for the function's name and for ``service:Action``."""
    after: int = 0
    """So many matching calls go through first."""
    times: int = 1
    """So many are struck; 0 is all."""
    carried_out: bool = False
    """Whether the account did what it was asked before it struck: for ``drop``, ``hang``, ``hold``, ``kill``."""
    status: int = 503
    code: str = "RequestLimitExceeded"
    seconds: float = 0.0
    items: int = 5
    old: str = ""
    new: str = ""
    met: int = 0
    struck: int = 0
    holding: int = 0
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        if self.do not in _KINDS:
            raise ValueError(f"no fault is called {self.do}; there are {', '.join(_KINDS)}")

    def strikes(self, function: str, call: Call) -> bool:
        """Counts a call, and says whether it is one of those. Called under the lock of all faults."""
        if not (fnmatch.fnmatchcase(function, self.function) and fnmatch.fnmatchcase(call.name, self.call)):
            return False
        self.met += 1
        if self.met <= self.after or (self.times and self.struck >= self.times):
            return False
        self.struck += 1
        return True


class Dropped(ConnectionError):
    """The caller gets no answer, or only ``part`` of one."""

    def __init__(self, part: Answer | None = None):
        super().__init__("dropped by a fault")
        self.part = part


CarryOut = Callable[[dict[str, str]], Answer]
"""Has the account do what the call asks, with some of its parameters changed."""


class Faults:
    """All that are in force."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, body: bytes) -> dict[str, int]:
        given = json.loads(body)
        made = [Fault(**one) for one in (given if isinstance(given, list) else [given])]
        with self._lock:
            self._faults += made
        return {"faults": len(made)}

    def shown(self) -> list[dict[str, Any]]:
        names = ("do", "function", "call", "met", "struck", "holding")
        with self._lock:
            return [{name: getattr(fault, name) for name in names} for fault in self._faults]

    def end(self) -> list[dict[str, Any]]:
        """Ends all, and lets go what they hold. Gives what they were."""
        shown = self.shown()
        with self._lock:
            gone, self._faults = self._faults, []
        for fault in gone:
            fault.ended.set()
        return shown

    def around(self, function: str, call: Call, kill: Callable[[], None], carry_out: CarryOut) -> Answer:
        """The answer to a call, with whatever strikes it. Raises ``Dropped`` where there is none."""
        with self._lock:
            struck = [fault for fault in self._faults if fault.strikes(function, call)]
        changed: dict[str, str] = {}
        for fault in struck:
            if fault.do == "page":
                changed["MaxResults"] = str(fault.items)
            elif fault.do == "slow":
                time.sleep(fault.seconds)
            elif fault.do == "refuse":
                return failure(call.service, fault.status, fault.code, "a fault of the test")
            elif not fault.carried_out:
                self._lose(fault, kill)
        answer = carry_out(changed)
        for fault in struck:
            if fault.do == "rewrite":
                answer = _with_body(answer, answer[2].replace(fault.old.encode(), fault.new.encode()))
            elif fault.do == "cut":
                raise Dropped(answer)
            elif fault.carried_out:
                self._lose(fault, kill)
        return answer

    def _lose(self, fault: Fault, kill: Callable[[], None]) -> None:
        if fault.do in ("hold", "hang"):
            with self._lock:
                fault.holding += 1
            fault.ended.wait(HANG)
            with self._lock:
                fault.holding -= 1
        if fault.do == "kill":
            kill()
        if fault.do in ("kill", "drop", "hang"):
            raise Dropped


_KINDS = ("refuse", "drop", "hang", "cut", "slow", "hold", "page", "rewrite", "kill")


def _with_body(answer: Answer, body: bytes) -> Answer:
    status, headers, _ = answer
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    return status, [*kept, ("Content-Length", str(len(body)))], body

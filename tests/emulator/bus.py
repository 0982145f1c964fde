"""The event bus: rules match events and deliver them to queues and functions; schedules fire when told to.

A delivery needs what it needs on AWS: a queue policy, or a function's permission, that admits EventBridge from that
very rule. Without it the event is lost, with one line in the log, as on AWS (FailedInvocations).
"""

from __future__ import annotations

import collections
import copy
import datetime
import fnmatch
import heapq
import itertools
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from jsonpath_ng.ext import parse as parse_path
from moto.awslambda.utils import get_backend
from moto.events.models import EventsBackend, Rule, events_backends
from moto.scheduler.models import scheduler_backends
from moto.sqs.models import sqs_backends

from . import functions

log = logging.getLogger("emulator.bus")

DELIVERY_DELAY = 0.02
"""Seconds between PutEvents and the delivery."""
_UNITS = {"minute": 60, "hour": 3600, "day": 86400}


class Refused(Exception):
    """A target cannot be reached, and no repetition would help."""


class Bus:
    """Delivers in the order of due time, from one thread, after whoever caused the event has been answered."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._counts: collections.Counter[str] = collections.Counter()
        self._fired: dict[str, float] = {}

    def start(self, second: float | None) -> None:
        """``second`` is how long one second of the schedules' clock takes; None: that clock stands."""
        threading.Thread(target=self._deliver, name="bus", daemon=True).start()
        if second:
            threading.Thread(target=self._keep_time, args=(second,), name="clock", daemon=True).start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """Events by kind as they were told, and deliveries as they ended."""
        with self._changed:
            return dict(self._counts)

    def tell(
        self,
        account: str,
        region: str,
        *,
        source: str,
        kind: str,
        resources: list[str],
        detail: dict[str, Any],
        delay: float,
    ) -> None:
        """An event that AWS itself sends on the default bus, ``delay`` seconds from now."""
        event = {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": kind,
            "source": source,
            "account": account,
            "time": _iso(time.time() + delay),
            "region": region,
            "resources": resources,
            "detail": detail,
        }
        with self._changed:
            self._counts[f"told:{kind}"] += 1

        def deliver() -> None:
            for rule in list(events_backends[account][region].event_buses["default"].rules.values()):
                self.offer(rule, event)

        self.later(delay, deliver)

    def offer_to_all(self, event: dict[str, Any]) -> int:
        """Gives an event, as AWS would send it, to all rules of the default bus; gives how many of them match it."""
        rules = list(events_backends[event["account"]][event["region"]].event_buses["default"].rules.values())
        matching = [r for r in rules if r.event_pattern.dump() and r.event_pattern.matches_event(event)]
        for rule in matching:
            self.later(DELIVERY_DELAY, lambda rule=rule: self.offer(rule, event))
        return len(matching)

    def later(self, delay: float, what: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay, next(self._order), what))
            self._changed.notify_all()

    def offer(self, rule: Rule, event: dict[str, Any]) -> None:
        """Gives an event to the targets of a rule that matches it. A rule with a schedule alone matches no event."""
        if rule.state != "DISABLED" and rule.event_pattern.dump() and rule.event_pattern.matches_event(event):
            self._send_to_all(rule, event)

    def tick(self) -> int:
        """Fires every enabled schedule once; gives how many there were."""
        schedules = list(_schedules())
        for _, _, fire in schedules:
            fire(self)
        return len(schedules)

    # --------------------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                _, _, what = heapq.heappop(self._due)
            try:
                what()
            except Exception:
                log.exception("a delivery failed")

    def _keep_time(self, second: float) -> None:
        """Fires ``rate(...)`` schedules on their own clock; a new one first one period after it is seen."""
        while not self._closed:
            time.sleep(0.5 * second)
            now = time.monotonic() / second
            for key, expression, fire in _schedules():
                period = rate_seconds(expression)
                if period is None:
                    if key not in self._fired:
                        log.warning("%s: %s is not emulated; fire it with POST /_lab/tick", key, expression)
                        self._fired[key] = now
                elif now - self._fired.setdefault(key, now) >= period:
                    self._fired[key] = now
                    fire(self)

    def _send_to_all(self, rule: Rule, event: dict[str, Any]) -> None:
        for target in list(rule.targets):
            self._send(target, _input_for(target, event), rule.account_id, rule.region_name, rule.arn)

    def _send(self, target: dict[str, Any], body: str, account: str, region: str, source: str | None) -> None:
        """``source`` is the ARN that the target's policy must admit; None when a role's policy decides."""
        try:
            deliver(target["Arn"], body, account, region, source)
            outcome = "delivered"
        except Refused as refused:
            log.error("no delivery from %s to %s: %s", source or "a schedule", target["Arn"], refused)
            outcome = "failed"
        with self._changed:
            self._counts[outcome] += 1


def install(bus: Bus) -> None:
    """moto calls each rule for each event of PutEvents; what the rule does then is ours, and happens a little later."""

    def send_to_targets(self: Rule, original_event: dict[str, Any], transform_input: bool = True) -> None:
        event = {key: value for key, value in original_event.items() if key != "ingestion-time"}
        if isinstance(event["time"], (int, float)):
            event["time"] = _iso(event["time"])
        bus.later(DELIVERY_DELAY, lambda: bus.offer(self, event))

    Rule.send_to_targets = send_to_targets


def rate_seconds(expression: str) -> float | None:
    """The period of ``rate(5 minutes)``; None for any other expression."""
    found = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", expression)
    return int(found[1]) * _UNITS[found[2]] if found else None


def _schedules() -> Iterable[tuple[str, str, Callable[[Bus], None]]]:
    """Every enabled schedule of EventBridge rules and of EventBridge Scheduler: ARN, expression, what it does."""
    for regions in list(events_backends.values()):
        for backend in list(regions.values()):
            yield from _scheduled_rules(backend)
    for account, regions in list(scheduler_backends.items()):
        for region, backend in list(regions.items()):
            for group in list(backend.schedule_groups.values()):
                for schedule in list(group.schedules.values()):
                    if schedule.state == "ENABLED":
                        target = schedule.target

                        def fire(bus: Bus, target: dict[str, Any] = target, a: str = account, r: str = region) -> None:
                            bus._send(target, target.get("Input") or "{}", a, r, None)

                        yield schedule.arn, schedule.schedule_expression, fire


def _scheduled_rules(backend: EventsBackend) -> Iterable[tuple[str, str, Callable[[Bus], None]]]:
    for rule in list(backend.event_buses["default"].rules.values()):
        if rule.scheduled_expression and rule.state != "DISABLED":

            def fire(bus: Bus, rule: Rule = rule) -> None:
                event = {
                    "version": "0",
                    "id": str(uuid.uuid4()),
                    "detail-type": "Scheduled Event",
                    "source": "aws.events",
                    "account": rule.account_id,
                    "time": _iso(time.time()),
                    "region": rule.region_name,
                    "resources": [rule.arn],
                    "detail": {},
                }
                bus._send_to_all(rule, event)

            yield rule.arn, rule.scheduled_expression, fire


def deliver(arn: str, body: str, account: str, region: str, source: str | None) -> None:
    """One event to one target. Raises Refused when the target is missing or does not admit the source."""
    service, resource = arn.split(":")[2], arn.split(":", 5)[5]
    if service == "sqs":
        queue = sqs_backends[account][region].queues.get(resource)
        if queue is None:
            raise Refused("there is no such queue")
        statements = json.loads(queue.policy)["Statement"] if queue.policy else []
        if source and not admits(statements, "sqs:SendMessage", arn, source):
            raise Refused("its policy does not let events.amazonaws.com send for this rule")
        sqs_backends[account][region].send_message(resource, body)
    elif service == "lambda":
        function = get_backend(account, region).get_function_by_arn(arn)
        if function is None:
            raise Refused("there is no such function")
        if source and not admits(function.policy.statements, "lambda:InvokeFunction", arn, source):
            raise Refused("it has no permission for events.amazonaws.com and this rule")
        functions.run_later(account, region, arn, body.encode())
    else:
        raise Refused(f"targets of {service} are not emulated")


def admits(statements: Iterable[dict[str, Any]], action: str, resource: str, source: str) -> bool:
    """Whether a resource's policy lets EventBridge do ``action`` for the rule ``source``."""
    allowed = False
    for statement in statements:
        principal = statement.get("Principal")
        services = (
            principal
            if isinstance(principal, str)
            else (principal or {}).get("Service") or (principal or {}).get("AWS")
        )
        if not any(p in ("*", "events.amazonaws.com") for p in _listed(services)):
            continue
        if not any(fnmatch.fnmatchcase(action.lower(), a.lower()) for a in _listed(statement.get("Action"))):
            continue
        if not any(fnmatch.fnmatchcase(resource, r) for r in _listed(statement.get("Resource", "*"))):
            continue
        if not _conditions_hold(statement.get("Condition") or {}, source):
            continue
        if statement.get("Effect") == "Deny":
            return False
        allowed = True
    return allowed


def _conditions_hold(conditions: dict[str, Any], source: str) -> bool:
    account = source.split(":")[4]
    known = {"aws:sourcearn": source, "aws:sourceaccount": account}
    for operator, tests in conditions.items():
        for key, values in tests.items():
            value = known.get(key.lower())
            if value is None or operator not in ("ArnEquals", "ArnLike", "StringEquals", "StringLike"):
                return False  # a condition that cannot be judged admits nobody
            exact = operator == "StringEquals"
            if not any(value == v if exact else fnmatch.fnmatchcase(value, v) for v in _listed(values)):
                return False
    return True


def _input_for(target: dict[str, Any], event: dict[str, Any]) -> str:
    """What a target gets: a constant, a part of the event, a template filled from it, or all of it."""
    if target.get("Input"):
        return target["Input"]
    if target.get("InputPath"):
        found = parse_path(target["InputPath"]).find(event)
        return json.dumps(found[0].value if found else None)
    transformer = target.get("InputTransformer")
    if not transformer:
        return json.dumps(event)
    values: dict[str, Any] = {"aws.events.event.json": copy.deepcopy(event)}
    for name, path in (transformer.get("InputPathsMap") or {}).items():
        found = parse_path(path).find(event)
        values[name] = found[0].value if found else ""

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[1], match[0])
        return value if isinstance(value, str) else json.dumps(value)

    return re.sub(r"<([\w.-]+)>", fill, transformer["InputTemplate"])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _iso(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

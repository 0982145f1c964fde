"""CloudWatch's clock: what moto keeps (metrics, alarms, scaling policies) and never looks at is evaluated once a minute, when a
test says that a minute has passed.

An alarm's actions are carried out on each change of state; scaling policies also each minute for as long as the state
lasts, as EC2 Auto Scaling has it. Topics get the message, groups their new capacity.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, FakeScalingPolicy, autoscaling_backends
from moto.autoscaling.responses import AutoScalingResponse
from moto.cloudwatch.models import Alarm, CloudWatchBackend, cloudwatch_backends
from moto.core import DEFAULT_ACCOUNT_ID
from moto.sns.models import sns_backends

from .alarms import ALARM, INSUFFICIENT, LOOKED_AT, OK, Datum, Point, Rule, calculate, state, statistic
from .scaling import TRACKED_PERIODS, Group, simple, stepped, tracked

MINUTE = 60
DEFAULT_WARMUP = 300.0
"""Seconds, where a group sets none: the default cooldown counts then."""

_warmup: dict[str, float] = {}
"""DefaultInstanceWarmup of each group, which moto does not keep."""


def install() -> None:
    for name in ("create_auto_scaling_group", "update_auto_scaling_group"):
        setattr(AutoScalingResponse, name, _remembering(getattr(AutoScalingResponse, name)))


def _remembering(call: Callable[[AutoScalingResponse], Any]) -> Callable[[AutoScalingResponse], Any]:
    def remembered(self: AutoScalingResponse) -> Any:
        if (seconds := self._get_param("DefaultInstanceWarmup")) is not None:
            _warmup[self._get_param("AutoScalingGroupName")] = float(seconds)
        return call(self)

    return remembered


Key = tuple[str, str, frozenset[tuple[str, str]]]


class Watch:
    """The clock of one region."""

    def __init__(self, region: str):
        self._region = region
        self._taken = 0
        self._series: dict[Key, list[Datum]] = defaultdict(list)
        self._ordered: list[tuple[Key, Datum]] = []
        self._groups: dict[str, Group] = {}
        self._seen: dict[str, str] = {}
        """The state of each alarm. A new one has none of moto's, but INSUFFICIENT_DATA."""

    @property
    def _metrics(self) -> CloudWatchBackend:
        return cloudwatch_backends[DEFAULT_ACCOUNT_ID][self._region]

    @property
    def _scaling(self) -> AutoScalingBackend:
        return autoscaling_backends[DEFAULT_ACCOUNT_ID][self._region]

    def minute(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """The minute that ends ``now``: alarms that changed, and groups that were given another capacity."""
        self._take_in()
        changes: list[dict[str, Any]] = []
        decisions: list[dict[str, Any]] = []
        for alarm in list(self._metrics.alarms.values()):
            points = self._points(alarm, now)
            before = self._seen.get(alarm.name, INSUFFICIENT)
            after = state(_rule(alarm), points, before)
            self._seen[alarm.name] = after
            if after != before:
                alarm.update_state(f"{len(points)} data points", json.dumps(points), after)
                changes.append({"at": now, "alarm": alarm.name, "from": before, "to": after})
            for arn in _actions(alarm, after):
                if ":scalingPolicy:" in arn:
                    policy = next(p for p in self._scaling.policies.values() if p.arn == arn)
                    latest = next((p for p in reversed(points) if p is not None), None)
                    decisions += self._act(policy, latest, float(alarm.threshold), now)
                elif after != before:
                    self._tell(alarm, arn, before, after)
        for policy in self._scaling.policies.values():
            if policy.policy_type == "TargetTrackingScaling":
                decisions += self._track(policy, now)
        return {"alarms": changes, "decisions": decisions}

    def data(self) -> list[dict[str, Any]]:
        """All that was put, in order."""
        self._take_in()
        return [
            {"namespace": space, "name": name, "dimensions": dict(dimensions), **asdict(datum)}
            for (space, name, dimensions), datum in self._ordered
        ]

    # -- data ------------------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        data = self._metrics.metric_data
        for d in data[self._taken :]:
            key = d.namespace, d.name, frozenset((x.name, x.value) for x in d.dimensions)
            at = d.timestamp.replace(tzinfo=datetime.UTC).timestamp()
            one = getattr(d, "value", None)
            datum = Datum(at, d.sample_count, d.sum, d.min, d.max) if one is None else Datum(at, 1, one, one, one)
            self._series[key].append(datum)
            self._ordered.append((key, datum))
        self._taken = len(data)

    def _statistic(self, key: Key, name: str, start: float, end: float) -> Point:
        return statistic([d for d in self._series.get(key, []) if start <= d.at < end], name)

    def _points(self, alarm: Alarm, now: float) -> list[Point]:
        queries = [q for q in alarm.metric_data_queries if q.metric_stat]
        period = int(queries[0].metric_stat.period if queries else alarm.period)
        last = now - now % period
        found: list[Point] = []
        for back in range(int(alarm.evaluation_periods) + LOOKED_AT, 0, -1):
            start = last - back * period
            if not queries:
                key = alarm.namespace, alarm.metric_name, frozenset((d.name, d.value) for d in alarm.dimensions)
                found.append(self._statistic(key, alarm.statistic, start, start + period))
                continue
            values = {}
            for query in queries:
                metric = query.metric_stat.metric
                key = metric.namespace, metric.metric_name, frozenset((d.name, d.value) for d in metric.dimensions)
                values[query.id] = self._statistic(key, query.metric_stat.stat, start, start + period)
            (expression,) = [q.expression for q in alarm.metric_data_queries if q.expression]
            found.append(calculate(expression, values))
        return found

    # -- actions ---------------------------------------------------------------------------------------------------

    def _group(self, name: str) -> tuple[FakeAutoScalingGroup, Group]:
        held = self._scaling.autoscaling_groups[name]
        known = self._groups.setdefault(name, Group(0, 0, held.desired_capacity, _warmup.get(name, DEFAULT_WARMUP)))
        known.minimum, known.maximum, known.desired = held.min_size, held.max_size, held.desired_capacity
        return held, known

    def _act(self, policy: FakeScalingPolicy, value: Point, threshold: float, now: float) -> list[dict[str, Any]]:
        _, group = self._group(policy.auto_scaling_group_name)
        given = {
            "AdjustmentType": policy.adjustment_type,
            "MinAdjustmentMagnitude": policy.min_adjustment_magnitude,
            "ScalingAdjustment": policy.scaling_adjustment,
            "StepAdjustments": policy.step_adjustments,
            "Cooldown": policy.cooldown,
        }
        if policy.policy_type == "SimpleScaling":
            return self._set(policy, simple(group, policy.name, given, now), now)
        if value is None:
            return []
        return self._set(policy, stepped(group, given, value, threshold, now), now)

    def _track(self, policy: FakeScalingPolicy, now: float) -> list[dict[str, Any]]:
        configuration = policy.target_tracking_configuration
        # moto keeps it as it was given.
        given = vars(configuration)
        metric = given.get("CustomizedMetricSpecification")
        if not metric:
            return []  # of AWS' own metrics nobody puts any here
        dimensions = frozenset((d["Name"], d["Value"]) for d in metric["Dimensions"])
        key = metric["Namespace"], metric["MetricName"], dimensions
        last = now - now % MINUTE
        points = [
            self._statistic(key, metric["Statistic"], last - n * MINUTE, last - (n - 1) * MINUTE)
            for n in range(TRACKED_PERIODS, 0, -1)
        ]
        target = float(given["TargetValue"])
        if any(p is None or p <= target for p in points):
            return []
        _, group = self._group(policy.auto_scaling_group_name)
        return self._set(policy, tracked(group, points[-1], target, now), now)

    def _set(self, policy: FakeScalingPolicy, capacity: int, now: float) -> list[dict[str, Any]]:
        held, group = self._group(policy.auto_scaling_group_name)
        before = held.desired_capacity
        if capacity == before:
            return []
        group.set(capacity, now)
        self._scaling.set_desired_capacity(held.name, capacity)
        return [{"at": now, "group": held.name, "policy": policy.name, "from": before, "to": capacity}]

    def _tell(self, alarm: Alarm, arn: str, before: str, after: str) -> None:
        message = {"AlarmName": alarm.name, "AlarmDescription": alarm.description, "OldStateValue": before, "NewStateValue": after}
        sns_backends[DEFAULT_ACCOUNT_ID][self._region].publish(
            message=json.dumps(message), arn=arn, subject=f'{after}: "{alarm.name}" in {self._region}'[:100]
        )


def _rule(alarm: Alarm) -> Rule:
    periods = int(alarm.evaluation_periods)
    return Rule(
        alarm.comparison_operator, float(alarm.threshold), periods, int(alarm.datapoints_to_alarm or periods),
        alarm.treat_missing_data or "missing",
    )  # fmt: skip


def _actions(alarm: Alarm, value: str) -> list[str]:
    if not alarm.actions_enabled:
        return []
    return {ALARM: alarm.alarm_actions or [], OK: alarm.ok_actions, INSUFFICIENT: alarm.insufficient_data_actions}[value]

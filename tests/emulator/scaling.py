"""What a scaling policy makes of a metric's value. Pure.

https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-scaling-target-tracking.html, .../as-scaling-simple-step.html,
.../ec2-auto-scaling-default-instance-warmup.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRACKED_PERIODS = 3
"""Minutes above its target after which a tracked metric adds capacity: the alarm that AWS makes has three data points."""


@dataclass
class Group:
    minimum: int
    maximum: int
    desired: int
    warmup: float
    """Seconds."""
    added: list[tuple[float, int]] = field(default_factory=list)
    """When how many were added."""
    cooled: dict[str, float] = field(default_factory=dict)
    """When each simple policy may act again."""

    def warm(self, now: float) -> int:
        """Instances that count: those that warm up do not yet."""
        return max(1, self.desired - sum(n for at, n in self.added if now < at + self.warmup))

    def within(self, capacity: int) -> int:
        return min(self.maximum, max(self.minimum, capacity))

    def set(self, capacity: int, now: float) -> None:
        if capacity > self.desired:
            self.added.append((now, capacity - self.desired))
        else:
            self.added.clear()
        self.desired = capacity


def tracked(group: Group, value: float, target: float, now: float) -> int:
    """Out: as many as bring the metric back to its target if it falls as they are more, rounded up. What warms up already is
    part of them. In is not done here: no policy of the product leaves it to target tracking."""
    return group.within(max(group.desired, math.ceil(group.warm(now) * value / target)))


def stepped(group: Group, policy: Mapping[str, Any], value: float, threshold: float, now: float) -> int:
    """The step whose bounds, counted from the alarm's threshold, hold the value. Instances that warm up are part of what it
    adds, and not of what it is a percentage of."""
    adjustment = _step(policy["StepAdjustments"], value - threshold)
    if adjustment is None:
        return group.desired
    base = group.warm(now)
    change = float(adjustment)
    if policy["AdjustmentType"] == "PercentChangeInCapacity":
        change = base * change / 100
        # Above 1 down, between 0 and 1 up to 1; below 0 likewise.
        change = math.copysign(1, change) if 0 < abs(change) < 1 else math.trunc(change)
        least = int(policy.get("MinAdjustmentMagnitude") or 0)
        if 0 < abs(change) < least:
            change = math.copysign(least, change)
    elif policy["AdjustmentType"] == "ExactCapacity":
        change = change - base
    wanted = base + int(change)
    return group.within(max(group.desired, wanted) if change > 0 else min(group.desired, wanted))


def _step(steps: Sequence[Mapping[str, Any]], distance: float) -> Any:
    for step in steps:
        low, high = step.get("MetricIntervalLowerBound"), step.get("MetricIntervalUpperBound")
        # A value at a bound belongs to the step above it, on the side of a breach upwards.
        if (low is None or float(low) <= distance) and (high is None or distance < float(high)):
            return step["ScalingAdjustment"]
    return None


def simple(group: Group, name: str, policy: Mapping[str, Any], now: float) -> int:
    """A change, and then none by this policy until its cooldown has passed."""
    if now < group.cooled.get(name, 0):
        return group.desired
    wanted = group.within(group.desired + int(policy["ScalingAdjustment"]))
    if wanted != group.desired:
        group.cooled[name] = now + float(policy.get("Cooldown") or 300)
    return wanted

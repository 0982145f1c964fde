"""What an alarm says of its data points. Pure: numbers in, a state out.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/AlarmThatSendsEmail.html, "Evaluating an alarm", and
.../alarms-and-missing-data.html.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"

Point = float | None
"""A statistic of one period; None where there were no data."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}

LOOKED_AT = 2
"""Periods that are looked at beyond those that are evaluated: five where three are, in the page's examples."""


@dataclass(frozen=True)
class Rule:
    comparison: str
    threshold: float
    periods: int
    datapoints: int
    missing: str = "missing"

    def breaches(self, value: float) -> bool:
        return COMPARISONS[self.comparison](value, self.threshold)


def state(rule: Rule, points: Sequence[Point], before: str) -> str:
    """The state after these points, the latest last: ``rule.periods + LOOKED_AT`` of them, or fewer.

    Where there are data for all periods that are evaluated, though older ones, nothing is filled in.
    """
    real = [rule.breaches(p) for p in points if p is not None][-rule.periods :]
    if len(real) == rule.periods:
        return ALARM if sum(real) >= rule.datapoints else OK
    absent = rule.periods - len(real)
    if rule.missing in ("breaching", "notBreaching"):
        breaching = sum(real) + (absent if rule.missing == "breaching" else 0)
        return ALARM if breaching >= rule.datapoints else OK
    if not real:
        return before if rule.missing == "ignore" else INSUFFICIENT
    if sum(real) >= rule.datapoints:
        return ALARM
    if all(real):
        # All that is known breaches, and what is missing might.
        return before if rule.missing == "ignore" else ALARM
    return OK


@dataclass(frozen=True)
class Datum:
    """What one call put for a metric."""

    at: float
    """Seconds since the epoch."""
    count: float
    sum: float
    min: float
    max: float


def statistic(data: Sequence[Datum], name: str) -> Point:
    """Of all that was put in a period."""
    if not data:
        return None
    count, total = sum(d.count for d in data), sum(d.sum for d in data)
    return {
        "SampleCount": count,
        "Sum": total,
        "Average": total / count,
        "Minimum": min(d.min for d in data),
        "Maximum": max(d.max for d in data),
    }[name]


class Unsupported(Exception):
    """Metric math that is not known here."""


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str, values: Mapping[str, Point]) -> Point:
    """Metric math at one moment, as far as alarms here use it: + - * /, IF(a > b, then, else), FILL(id, number).

    Where a value is missing, so is the result.
    """
    return _value(ast.parse(expression, mode="eval").body, values)


def _value(node: ast.AST, values: Mapping[str, Point]) -> Point:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, values), _value(node.right, values)
        if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
            return None
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "FILL":
            found = _value(node.args[0], values)
            return _value(node.args[1], values) if found is None else found
        if node.func.id == "IF" and isinstance(node.args[0], ast.Compare) and isinstance(node.args[0].ops[0], ast.Gt):
            left, right = (_value(side, values) for side in (node.args[0].left, node.args[0].comparators[0]))
            if left is None or right is None:
                return None
            return _value(node.args[1] if left > right else node.args[2], values)
    raise Unsupported(ast.dump(node))

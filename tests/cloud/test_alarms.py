"""The emulated alarms and policies, against the tables and examples of AWS's own pages. No process is started here."""

import conftest  # noqa: F401 - puts the emulator on the path
import pytest

from emulator.alarms import ALARM, INSUFFICIENT, OK, Datum, Rule, calculate, state, statistic
from emulator.scaling import Group, simple, stepped, tracked

BEFORE = "what it was"


def points(text):
    """`0 - X`: within the threshold, missing, breaching."""
    return [{"0": 0.0, "-": None, "X": 9.0}[word] for word in text.split()]


# "Configuring how CloudWatch alarms treat missing data": three of three, five data points looked at. The columns are
# missing, ignore, breaching, notBreaching.
THREE_OF_THREE = [
    ("0 - X - X", (OK, OK, OK, OK)),
    ("- - - - 0", (OK, OK, OK, OK)),
    ("- - - - -", (INSUFFICIENT, BEFORE, ALARM, OK)),
    ("0 X X - X", (ALARM, ALARM, ALARM, ALARM)),
    ("- - X - -", (ALARM, BEFORE, ALARM, OK)),
]
# The same page's second table: two of three.
TWO_OF_THREE = [
    ("0 - X - X", (ALARM, ALARM, ALARM, ALARM)),
    ("0 0 X 0 X", (ALARM, ALARM, ALARM, ALARM)),
    ("0 - X - -", (OK, OK, ALARM, OK)),
    ("- - - - 0", (OK, OK, ALARM, OK)),
    ("- - - X -", (ALARM, BEFORE, ALARM, OK)),
]


@pytest.mark.parametrize("column", range(4), ids=["missing", "ignore", "breaching", "notBreaching"])
@pytest.mark.parametrize(
    ("needed", "text", "expected"),
    [(3, *row) for row in THREE_OF_THREE] + [(2, *row) for row in TWO_OF_THREE],
)
def test_missing_data_are_treated_as_the_page_says(needed, text, expected, column):
    treatment = ("missing", "ignore", "breaching", "notBreaching")[column]
    rule = Rule("GreaterThanThreshold", 5, 3, needed, treatment)
    assert state(rule, points(text), BEFORE) == expected[column]


def test_a_value_at_the_threshold_breaches_where_the_comparison_says_so():
    for comparison, expected in [
        ("GreaterThanThreshold", OK),
        ("GreaterThanOrEqualToThreshold", ALARM),
        ("LessThanThreshold", OK),
        ("LessThanOrEqualToThreshold", ALARM),
    ]:
        assert state(Rule(comparison, 1, 1, 1), [1.0], OK) == expected


def test_statistics_are_of_all_that_was_put():
    data = [Datum(0, 30, 900, 10, 80), Datum(30, 10, 100, 5, 20)]
    found = {name: statistic(data, name) for name in ("SampleCount", "Sum", "Average", "Minimum", "Maximum")}
    assert found == {"SampleCount": 40, "Sum": 1000, "Average": 25, "Minimum": 5, "Maximum": 80}
    assert statistic([], "Sum") is None


def test_metric_math_knows_missing_values():
    assert calculate("in_service - FILL(heartbeat, 0) / 60", {"in_service": 3, "heartbeat": 120}) == 1
    assert calculate("in_service - FILL(heartbeat, 0) / 60", {"in_service": 3, "heartbeat": None}) == 3
    assert calculate("in_service - heartbeat / 60", {"in_service": 3, "heartbeat": None}) is None
    share = "IF(a + b > 0, 100 * a / (a + b), 0)"
    assert [calculate(share, {"a": a, "b": b}) for a, b in ((1, 3), (0, 5), (0, 0))] == [25, 0, 0]
    assert calculate(share, {"a": 1, "b": None}) is None


# ---- Policies --------------------------------------------------------------------------------------------------------


def fleet(desired, maximum=10):
    return Group(minimum=2, maximum=maximum, desired=desired, warmup=120)


def test_target_tracking_adds_in_proportion_and_rounds_up():
    # Twice the target on two instances: four. 51 % at a target of 50 %: one more.
    assert tracked(fleet(2), 100, 50, 0) == 4
    assert tracked(fleet(2), 51, 50, 0) == 3
    assert tracked(fleet(4), 100, 50, 0) == 8
    # Never beyond the maximum, and never in.
    assert tracked(fleet(8), 100, 50, 0) == 10
    assert tracked(fleet(4), 10, 50, 0) == 4


def test_what_warms_up_is_not_added_twice():
    group = fleet(2)
    group.set(tracked(group, 100, 50, 0), 0)
    assert group.desired == 4
    # A minute later the load is still that of two.
    assert tracked(group, 100, 50, 60) == 4
    # The same load again, when the new ones count: they did not suffice.
    assert tracked(group, 100, 50, 120) == 8


STEPS = {
    "AdjustmentType": "PercentChangeInCapacity",
    "MinAdjustmentMagnitude": 1,
    "StepAdjustments": [
        {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 10, "ScalingAdjustment": 0},
        {"MetricIntervalLowerBound": 10, "MetricIntervalUpperBound": 20, "ScalingAdjustment": 10},
        {"MetricIntervalLowerBound": 20, "ScalingAdjustment": 30},
    ],
}


def test_steps_as_in_the_user_guides_example():
    # "Step and simple scaling policies": threshold 50, ten instances. 60: 10 % of 10, eleven. 70 while that one warms up:
    # 30 % of the ten, of which one is there, so thirteen. When they are warm, 70 is 30 % of 13: 3.9, rounded down, 16.
    group = fleet(10, maximum=30)
    assert stepped(group, STEPS, 59, 50, 0) == 10
    group.set(stepped(group, STEPS, 60, 50, 0), 0)
    assert group.desired == 11
    group.set(stepped(group, STEPS, 70, 50, 60), 60)
    assert group.desired == 13
    assert stepped(group, STEPS, 70, 50, 300) == 16


def test_less_than_one_is_one():
    # A quarter of two is a half.
    steps = {**STEPS, "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 25}]}
    assert stepped(fleet(2), steps, 1, 0, 0) == 3
    # 12.7 becomes 12: a quarter of seven is one.
    assert stepped(fleet(7), steps, 1, 0, 0) == 8


def test_a_simple_policy_rests_and_stops_at_the_minimum():
    group, policy = fleet(4), {"ScalingAdjustment": -1, "Cooldown": 900}
    group.set(simple(group, "in", policy, 0), 0)
    assert group.desired == 3
    assert simple(group, "in", policy, 899) == 3
    group.set(simple(group, "in", policy, 900), 900)
    assert group.desired == 2
    assert simple(group, "in", policy, 10_000) == 2

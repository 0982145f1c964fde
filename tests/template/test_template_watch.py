"""What is to be seen and who complains: the dashboard is whole, each alarm has a runbook, and nothing names a metric that
nobody emits. What is really emitted, the emulated account sees: tests/cloud/test_metrics.py."""

import json
import re
import sys

import dashboard
import pytest
import stack

sys.path.append(str(stack.ROOT / "tests"))  # where the emulator is

README = (stack.ROOT / "README.md").read_text()
FUNCTIONS = {"attach", "reconcile", "drain"}

# What AWS' services emit, of what is named here: (namespace, metric) -> the sets of dimensions that it has.
# Sources: the services' own pages "CloudWatch metrics for your ...".
BALANCER = frozenset({"LoadBalancer"})
TARGETS = frozenset({"LoadBalancer", "TargetGroup"})
GROUP = frozenset({"AutoScalingGroupName"})
OF_AWS = {
    ("AWS/AutoScaling", "GroupDesiredCapacity"): {GROUP},
    ("AWS/AutoScaling", "GroupInServiceInstances"): {GROUP},
    ("AWS/EC2", "NetworkPacketsMirrorIn"): {frozenset({"InstanceId"})},
    ("AWS/EC2", "NetworkPacketsMirrorOut"): {frozenset({"InstanceId"})},
    ("AWS/EC2", "NetworkPacketsSkipMirrorIn"): {frozenset({"InstanceId"})},
    ("AWS/EC2", "NetworkPacketsSkipMirrorOut"): {frozenset({"InstanceId"})},
    ("AWS/Lambda", "Errors"): {frozenset({"FunctionName"})},
    ("AWS/NetworkELB", "ActiveFlowCount_TCP"): {BALANCER},
    ("AWS/NetworkELB", "HealthyHostCount"): {TARGETS},
    ("AWS/NetworkELB", "NewFlowCount_TCP"): {BALANCER},
    ("AWS/NetworkELB", "ProcessedPackets"): {BALANCER},
    ("AWS/NetworkELB", "TCP_Client_Reset_Count"): {BALANCER},
    ("AWS/NetworkELB", "TCP_ELB_Reset_Count"): {BALANCER},
    ("AWS/NetworkELB", "TCP_Target_Reset_Count"): {BALANCER},
    ("AWS/NetworkELB", "UnHealthyHostCount"): {TARGETS},
    ("AWS/ApplicationELB", "DesyncMitigationMode_NonCompliant_Request_Count"): {BALANCER},
    ("AWS/ApplicationELB", "HTTPCode_ELB_4XX_Count"): {BALANCER},
    ("AWS/ApplicationELB", "HTTPCode_ELB_5XX_Count"): {BALANCER},
    ("AWS/ApplicationELB", "HTTPCode_Target_2XX_Count"): {BALANCER, TARGETS},
    ("AWS/ApplicationELB", "HTTPCode_Target_4XX_Count"): {BALANCER, TARGETS},
    ("AWS/ApplicationELB", "HTTPCode_Target_5XX_Count"): {BALANCER, TARGETS},
    ("AWS/ApplicationELB", "HealthyHostCount"): {TARGETS},
    ("AWS/ApplicationELB", "RequestCount"): {BALANCER, TARGETS},
    ("AWS/ApplicationELB", "TargetResponseTime"): {BALANCER, TARGETS},
    ("AWS/ApplicationELB", "UnHealthyHostCount"): {TARGETS},
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): {frozenset({"QueueName"})},
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): {frozenset({"QueueName"})},
}


def every_mode():
    return pytest.mark.parametrize("mode", dashboard.MODES.values(), ids=dashboard.MODES)


def alarms(evaluated):
    return {n: r["Properties"] for n, r in evaluated.resources("AWS::CloudWatch::Alarm").items()}


def published():
    """What `rebuilder publish` puts, by the table that a test of the program holds against it."""
    text = (stack.ROOT / "rebuilder" / "README.md").read_text()
    section = text.split("\n## rebuilder publish\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \| \w+ \|", section, re.M))


def told_by_functions():
    """Names in the code that writes the functions' metrics."""
    mirror = stack.ROOT / "functions" / "mirror" / "src"
    code = "".join(f.read_text().split("#[cfg(test)]")[0] for f in mirror.glob("**/*.rs") if "test" not in f.stem)
    code += "".join(f.read_text() for f in (stack.ROOT / "functions").glob("*/src/main.rs"))
    return set(re.findall(r'"((?:Sessions|Interfaces|Events|Messages|Quota|Drain|Session)[A-Za-z]+)"', code))


def by_alarms(evaluated):
    for name, alarm in alarms(evaluated).items():
        asked = [alarm] if "MetricName" in alarm else [q["MetricStat"]["Metric"] for q in alarm["Metrics"] if "MetricStat" in q]
        for metric in asked:
            yield name, metric["Namespace"], metric["MetricName"], frozenset(d["Name"] for d in metric["Dimensions"])


def by_policies(evaluated):
    for name, policy in evaluated.resources("AWS::AutoScaling::ScalingPolicy").items():
        metric = policy["Properties"].get("TargetTrackingConfiguration", {}).get("CustomizedMetricSpecification")
        if metric:
            yield name, metric["Namespace"], metric["MetricName"], frozenset(d["Name"] for d in metric["Dimensions"])


def named(evaluated):
    return [*dashboard.named(evaluated), *by_alarms(evaluated), *by_policies(evaluated)]


# ---- Metrics ---------------------------------------------------------------------------------------------------------


@every_mode()
def test_every_metric_that_is_named_is_one_that_somebody_emits(mode):
    of_ours = {(name, frozenset({"Stack"})) for name in published()}
    of_ours |= {(name, frozenset({"Stack", "Function"})) for name in told_by_functions()}
    of_ours |= {("InterfacesSkippedByReason", frozenset({"Stack", "Function", "Reason"}))}
    for where, namespace, name, dimensions in named(stack.Evaluated(**mode)):
        if namespace == "mirrorfleet":
            assert (name, dimensions) in of_ours, where
        else:
            assert dimensions in OF_AWS[namespace, name], where


def test_every_metric_that_a_rebuilder_puts_is_to_be_seen():
    seen = {name for where, namespace, name, _ in named(stack.Evaluated()) if namespace == "mirrorfleet"}
    assert published() - seen == set()
    assert len(published()) > 30


def test_nothing_is_listed_of_aws_that_nobody_names():
    used = {(n, m) for mode in dashboard.MODES.values() for _, n, m, _ in named(stack.Evaluated(**mode)) if n != "mirrorfleet"}
    assert used == OF_AWS.keys()


@every_mode()
def test_dimensions_have_the_values_that_the_emitters_give(mode):
    evaluated = stack.Evaluated(**mode)
    for widget in dashboard.body(evaluated)["widgets"]:
        for namespace, _, dimensions, _ in dashboard.rows(widget):
            if namespace == "mirrorfleet":
                assert dimensions["Stack"] == "first"
                assert dimensions.get("Function", "attach") in FUNCTIONS
            else:
                # A reference that was not resolved would stay as it is written.
                assert not [v for v in (dimensions or {}).values() if "${" in v]
    for alarm in alarms(evaluated).values():
        for dimension in alarm.get("Dimensions", []):
            if dimension["Name"] == "Stack":
                assert dimension["Value"] == "first"
            if dimension["Name"] == "Function":
                assert dimension["Value"] in FUNCTIONS


# ---- Dashboard -------------------------------------------------------------------------------------------------------


@every_mode()
def test_widgets_lie_within_the_grid_and_none_on_another(mode):
    widgets = dashboard.body(stack.Evaluated(**mode))["widgets"]
    taken = set()
    for widget in widgets:
        assert widget["width"] > 0 and widget["height"] > 0
        assert widget["x"] >= 0 and widget["x"] + widget["width"] <= dashboard.COLUMNS
        cells = {(x, y) for x in range(widget["x"], widget["x"] + widget["width"])
                 for y in range(widget["y"], widget["y"] + widget["height"])}  # fmt: skip
        assert not taken & cells, widget["properties"]["title"]
        taken |= cells
    # Nor is there a hole, in any mode.
    assert len(taken) == dashboard.COLUMNS * max(w["y"] + w["height"] for w in widgets)
    titles = [w["properties"]["title"] for w in widgets]
    assert len(set(titles)) == len(titles)


@every_mode()
def test_widgets_say_what_cloudwatch_needs(mode):
    for widget in dashboard.body(stack.Evaluated(**mode))["widgets"]:
        properties = widget["properties"]
        if widget["type"] == "alarm":
            assert 1 <= len(properties["alarms"]) <= 100
            continue
        assert widget["type"] == "metric"
        assert properties["region"] == stack.PSEUDO["AWS::Region"]
        assert properties["period"] in (60, 300)
        ids = [options["id"] for *_, options in dashboard.rows(widget) if "id" in options]
        assert len(set(ids)) == len(ids)
        for _, name, _, options in dashboard.rows(widget):
            expression = options.get("expression")
            assert (name is None) == (expression is not None)
            # An id begins with a small letter; an expression names ids of its own widget.
            assert re.fullmatch(r"[a-z][a-zA-Z0-9_]*", options.get("id", "a"))
            if expression:
                # Functions are written in capitals.
                words = set(re.findall(r"\b[a-z]\w*\b", re.sub(r"SEARCH\('[^']*'", "", expression)))
                assert words <= set(ids), expression
            assert options.get("yAxis", "left") in ("left", "right")
            assert options.get("stat", "Sum") in ("Sum", "Average", "Minimum", "Maximum", "SampleCount", "p50", "p99")


@every_mode()
def test_every_alarm_is_on_the_dashboard_and_has_its_text(mode):
    evaluated = stack.Evaluated(**mode)
    (widget,) = [w for w in dashboard.body(evaluated)["widgets"] if w["type"] == "alarm"]
    names = alarms(evaluated).keys() - {"FleetIdle"}
    assert set(widget["properties"]["alarms"]) == {f"<{name}.Arn>" for name in names}


def test_the_picture_in_the_readme_is_the_dashboards():
    drawn = dashboard.picture(stack.Evaluated(**dashboard.MODES["nodes behind an ALB"]))
    assert f"```text\n{drawn}\n```\n" in README, f"README.md lacks this picture:\n{drawn}"


# ---- Alarms ----------------------------------------------------------------------------------------------------------


def anchors():
    """Of README.md's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", README, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_alarm_names_its_runbook_and_every_runbook_its_alarm():
    every = {}
    for mode in dashboard.MODES.values():
        every |= alarms(stack.Evaluated(**mode))
    named_in = {}
    for name, alarm in every.items():
        if name != "FleetIdle":
            (anchor,) = re.findall(r" Runbook: README\.md#([a-z-]+)$", alarm["AlarmDescription"])
            named_in[anchor] = name
    assert named_in.keys() == {a for a in anchors() if a.startswith("alarm-")}
    for anchor, name in named_in.items():
        # By its name people find it in the console.
        heading = next(h for h in re.findall(r"^#### (.*)$", README, re.M) if h.lower().replace(":", "").replace(" ", "-") == anchor)
        section = README.split(f"#### {heading}\n")[1].split("\n#")[0]
        assert f"`{name}`" in section, heading


@every_mode()
def test_every_alarm_tells_the_topic_and_says_when_it_is_over(mode):
    for name, alarm in alarms(stack.Evaluated(**mode)).items():
        if name == "FleetIdle":
            assert alarm["AlarmActions"] == ["<RebuilderScalingIn>"]
            continue
        news = "InsufficientDataActions" if alarm["TreatMissingData"] == "missing" else "AlarmActions"
        assert alarm[news][0] == alarm["OKActions"][0] == "<AlarmTopic>", name


def test_an_alarms_expression_names_its_own_metrics_and_gives_the_share_that_fails():
    from emulator.alarms import calculate

    for name, alarm in alarms(stack.Evaluated()).items():
        for expression in [q["Expression"] for q in alarm.get("Metrics", []) if "Expression" in q]:
            ids = {q["Id"] for q in alarm["Metrics"] if "MetricStat" in q}
            assert set(re.findall(r"\b[a-z]\w*\b", expression)) == ids, name
    (expression,) = [q["Expression"] for q in alarms(stack.Evaluated())["AnalyserAlarm"]["Metrics"] if "Expression" in q]
    nothing = dict.fromkeys(re.findall(r"\b[a-z]\w*\b", expression), 0.0)
    assert calculate(expression, nothing) == 0
    # Of 100: 90 well answered, 4 with 5xx, 5 not in time, one without a connection.
    assert calculate(expression, nothing | {"answer_2xx": 90.0, "answer_5xx": 4.0, "timeout": 5.0, "connect": 1.0}) == 10


@every_mode()
def test_alarms_look_back_no_longer_than_a_day(mode):
    # Periods times evaluation periods: a day at most. Source: PutMetricAlarm.
    for minutes in (1, 480):
        for name, alarm in alarms(stack.Evaluated(SweepMinutes=str(minutes), **mode)).items():
            period = alarm.get("Period") or max(q["MetricStat"]["Period"] for q in alarm["Metrics"] if "MetricStat" in q)
            assert int(period) * int(alarm["EvaluationPeriods"]) <= 86400, name


def test_an_address_for_mail_subscribes_and_none_does_not():
    assert "Subscription" not in stack.Evaluated().properties("AlarmTopic")
    (mail,) = stack.Evaluated(AlarmEmail="a@b.example").properties("AlarmTopic")["Subscription"]
    assert mail == {"Protocol": "email", "Endpoint": "a@b.example"}


@every_mode()
def test_every_log_group_forgets(mode):
    groups = stack.Evaluated(**mode).resources("AWS::Logs::LogGroup")
    assert groups
    assert all(g["Properties"]["RetentionInDays"] == 30 for g in groups.values())


# ---- Scaling ---------------------------------------------------------------------------------------------------------


def test_the_fleet_grows_by_its_load_and_by_any_drop_and_shrinks_slowly():
    evaluated = stack.Evaluated()
    policies = {n: r["Properties"] for n, r in evaluated.resources("AWS::AutoScaling::ScalingPolicy").items()}
    tracking = policies["RebuilderScaling"]["TargetTrackingConfiguration"]
    assert tracking["CustomizedMetricSpecification"]["MetricName"] == "Load"
    assert tracking["CustomizedMetricSpecification"]["Statistic"] == "Average"
    assert tracking["DisableScaleIn"] is True
    triggers = {n for n, a in alarms(evaluated).items() if "<RebuilderScalingOnDrops>" in a.get("AlarmActions", [])}
    assert triggers == {"PacketsDroppedAlarm", "NicLimitedAlarm"}
    assert all(alarms(evaluated)[n]["Threshold"] == 0 for n in triggers)
    steps = policies["RebuilderScalingOnDrops"]["StepAdjustments"]
    # Without a hole, from the threshold to infinity.
    assert steps[0]["MetricIntervalLowerBound"] == 0 and "MetricIntervalUpperBound" not in steps[-1]
    assert [s.get("MetricIntervalUpperBound") for s in steps[:-1]] == [s["MetricIntervalLowerBound"] for s in steps[1:]]
    # Who goes does not bring the fleet above its target, from the smallest fleet that has one to spare (3 of them).
    idle = alarms(evaluated)["FleetIdle"]["Threshold"]
    assert idle * 3 / 2 < tracking["TargetValue"]
    assert policies["RebuilderScalingIn"]["ScalingAdjustment"] == -1
    assert int(policies["RebuilderScalingIn"]["Cooldown"]) >= 900


def test_json_is_json_whatever_the_stacks_name():
    # Names of stacks are letters, digits and hyphens: nothing that JSON would have to escape.
    assert json.loads(stack.Evaluated(stack_name="a-B-9").properties("Dashboard")["DashboardBody"])["widgets"]

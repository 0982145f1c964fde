"""Alarms, dashboards, log groups."""

from __future__ import annotations

from .kind import Context, Kind, Made, Properties, document, without


def _create_alarm(context: Context, properties: Properties) -> Made:
    return _put_alarm(context, properties.get("AlarmName") or context.name(), properties)


def _put_alarm(context: Context, name: str, properties: Properties) -> Made:
    context.call("cloudwatch", "PutMetricAlarm", **without(properties, "AlarmName"), AlarmName=name)
    return Made(name, {"Arn": context.arn("cloudwatch", f"alarm:{name}")})


def _update_alarm(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    return _put_alarm(context, made.id, new)


def _delete_alarm(context: Context, made: Made, _: Properties) -> None:
    context.call("cloudwatch", "DeleteAlarms", AlarmNames=[made.id])


def _create_dashboard(context: Context, properties: Properties) -> Made:
    name = properties.get("DashboardName") or context.name()
    context.call("cloudwatch", "PutDashboard", DashboardName=name, DashboardBody=document(properties["DashboardBody"]))
    return Made(name)


def _update_dashboard(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("cloudwatch", "PutDashboard", DashboardName=made.id, DashboardBody=document(new["DashboardBody"]))
    return made


def _delete_dashboard(context: Context, made: Made, _: Properties) -> None:
    context.call("cloudwatch", "DeleteDashboards", DashboardNames=[made.id])


def _create_log_group(context: Context, properties: Properties) -> Made:
    name = properties.get("LogGroupName") or context.name()
    context.call("logs", "CreateLogGroup", logGroupName=name)
    _set_retention(context, name, properties)
    return Made(name, {"Arn": context.arn("logs", f"log-group:{name}:*")})


def _set_retention(context: Context, name: str, properties: Properties) -> None:
    if days := properties.get("RetentionInDays"):
        context.call("logs", "PutRetentionPolicy", logGroupName=name, retentionInDays=days)


def _update_log_group(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    _set_retention(context, made.id, new)
    return made


def _delete_log_group(context: Context, made: Made, _: Properties) -> None:
    context.call("logs", "DeleteLogGroup", logGroupName=made.id)


KINDS = [
    Kind("AWS::CloudWatch::Alarm", _create_alarm, _delete_alarm, _update_alarm, replaces=("AlarmName",)),
    Kind(
        "AWS::CloudWatch::Dashboard", _create_dashboard, _delete_dashboard, _update_dashboard,
        replaces=("DashboardName",),
    ),
    Kind(
        "AWS::Logs::LogGroup", _create_log_group, _delete_log_group, _update_log_group,
        replaces=("LogGroupName",), gone=("ResourceNotFoundException",),
    ),
]  # fmt: skip

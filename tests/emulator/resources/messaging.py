"""Queues, event rules, schedules, topics."""

from __future__ import annotations

from .kind import Context, Kind, Made, Properties, document, only, tag_map, without


def _queue_attributes(properties: Properties) -> dict[str, str]:
    attributes = without(properties, "QueueName", "Tags")
    return {
        name: document(value)
        if isinstance(value, dict)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
        for name, value in attributes.items()
    }


def _create_queue(context: Context, properties: Properties) -> Made:
    name = properties.get("QueueName") or context.name(80)
    made = context.call(
        "sqs", "CreateQueue", QueueName=name, Attributes=_queue_attributes(properties),
        tags=tag_map(properties.get("Tags", [])) or None,
    )  # fmt: skip
    url = made["QueueUrl"]
    return Made(url, {"Arn": context.arn("sqs", name), "QueueName": name, "QueueUrl": url})


def _update_queue(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("sqs", "SetQueueAttributes", QueueUrl=made.id, Attributes=_queue_attributes(new))
    return made


def _delete_queue(context: Context, made: Made, _: Properties) -> None:
    context.call("sqs", "DeleteQueue", QueueUrl=made.id)


def _create_queue_policy(context: Context, properties: Properties) -> Made:
    _put_queue_policy(context, properties, document(properties["PolicyDocument"]))
    return Made(context.name())


def _update_queue_policy(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    _put_queue_policy(context, {"Queues": [q for q in old["Queues"] if q not in new["Queues"]]}, "")
    _put_queue_policy(context, new, document(new["PolicyDocument"]))
    return made


def _put_queue_policy(context: Context, properties: Properties, policy: str) -> None:
    for url in properties["Queues"]:
        context.call("sqs", "SetQueueAttributes", QueueUrl=url, Attributes={"Policy": policy})


def _delete_queue_policy(context: Context, _: Made, properties: Properties) -> None:
    _put_queue_policy(context, properties, "")


def _create_rule(context: Context, properties: Properties) -> Made:
    return _put_rule(context, properties.get("Name") or context.name(64), properties)


def _put_rule(context: Context, name: str, properties: Properties) -> Made:
    pattern = properties.get("EventPattern")
    arn = context.call(
        "events", "PutRule",
        Name=name,
        EventPattern=document(pattern) if pattern else None,
        **only(properties, "ScheduleExpression", "State", "Description", "RoleArn", "EventBusName"),
    )["RuleArn"]  # fmt: skip
    if targets := properties.get("Targets"):
        context.call("events", "PutTargets", Rule=name, Targets=targets, **only(properties, "EventBusName"))
    return Made(name, {"Arn": arn})


def _update_rule(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    kept = {target["Id"] for target in new.get("Targets", [])}
    if gone := [target["Id"] for target in old.get("Targets", []) if target["Id"] not in kept]:
        context.call("events", "RemoveTargets", Rule=made.id, Ids=gone, **only(old, "EventBusName"))
    return _put_rule(context, made.id, new)


def _delete_rule(context: Context, made: Made, properties: Properties) -> None:
    bus = only(properties, "EventBusName")
    if ids := [target["Id"] for target in properties.get("Targets", [])]:
        context.call("events", "RemoveTargets", Rule=made.id, Ids=ids, **bus)
    context.call("events", "DeleteRule", Name=made.id, **bus)


def _create_schedule(context: Context, properties: Properties) -> Made:
    name = properties.get("Name") or context.name(64)
    made = context.call("scheduler", "CreateSchedule", **without(properties, "Name"), Name=name)
    return Made(name, {"Arn": made["ScheduleArn"]})


def _update_schedule(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("scheduler", "UpdateSchedule", **without(new, "Name"), Name=made.id)
    return made


def _delete_schedule(context: Context, made: Made, properties: Properties) -> None:
    context.call("scheduler", "DeleteSchedule", Name=made.id, **only(properties, "GroupName"))


def _create_topic(context: Context, properties: Properties) -> Made:
    name = properties.get("TopicName") or context.name()
    arn = context.call("sns", "CreateTopic", Name=name, Tags=properties.get("Tags"))["TopicArn"]
    for subscription in properties.get("Subscription", []):
        context.call("sns", "Subscribe", TopicArn=arn, **subscription)
    return Made(arn, {"TopicArn": arn, "TopicName": name})


def _delete_topic(context: Context, made: Made, _: Properties) -> None:
    context.call("sns", "DeleteTopic", TopicArn=made.id)


_NO_QUEUE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")

KINDS = [
    Kind(
        "AWS::SQS::Queue", _create_queue, _delete_queue, _update_queue,
        replaces=("QueueName", "FifoQueue"), gone=_NO_QUEUE,
    ),
    Kind("AWS::SQS::QueuePolicy", _create_queue_policy, _delete_queue_policy, _update_queue_policy, gone=_NO_QUEUE),
    Kind(
        "AWS::Events::Rule", _create_rule, _delete_rule, _update_rule,
        replaces=("Name", "EventBusName"), gone=("ResourceNotFoundException",),
    ),
    Kind(
        "AWS::Scheduler::Schedule", _create_schedule, _delete_schedule, _update_schedule,
        replaces=("Name", "GroupName"), gone=("ResourceNotFoundException",),
    ),
    Kind("AWS::SNS::Topic", _create_topic, _delete_topic, gone=("NotFound",)),
]  # fmt: skip

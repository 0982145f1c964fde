"""Lambda: functions, layers, permissions, queue mappings."""

from __future__ import annotations

from typing import Any

from .kind import Context, Kind, Made, Properties, only, tag_map, without

_APART = ("FunctionName", "Tags", "ReservedConcurrentExecutions", "Code", "Architectures", "RecursiveLoop", "SnapStart")


def _create_function(context: Context, properties: Properties) -> Made:
    name = properties.get("FunctionName") or context.name(64)
    made = context.call(
        "lambda", "CreateFunction",
        **without(properties, *_APART),
        FunctionName=name,
        Code=_code(properties["Code"]),
        Architectures=properties.get("Architectures"),
        Tags=tag_map(properties.get("Tags", [])),
    )  # fmt: skip
    _reserve(context, name, properties)
    return Made(name, {"Arn": made["FunctionArn"]})


def _code(code: dict[str, Any]) -> dict[str, Any]:
    # In a template ZipFile is source text, which only runtimes that are not emulated can take.
    return only(code, "S3Bucket", "S3Key", "S3ObjectVersion", "ImageUri")


def _reserve(context: Context, name: str, properties: Properties) -> None:
    if (reserved := properties.get("ReservedConcurrentExecutions")) is not None:
        context.call("lambda", "PutFunctionConcurrency", FunctionName=name, ReservedConcurrentExecutions=reserved)


def _update_function(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    if old["Code"] != new["Code"]:
        context.call("lambda", "UpdateFunctionCode", FunctionName=made.id, **_code(new["Code"]))
    configuration = without(new, *_APART, "PackageType", "CodeSigningConfigArn")
    context.call("lambda", "UpdateFunctionConfiguration", FunctionName=made.id, **configuration)
    if "ReservedConcurrentExecutions" in old and "ReservedConcurrentExecutions" not in new:
        context.call("lambda", "DeleteFunctionConcurrency", FunctionName=made.id)
    _reserve(context, made.id, new)
    return made


def _delete_function(context: Context, made: Made, _: Properties) -> None:
    context.call("lambda", "DeleteFunction", FunctionName=made.id)


def _create_layer(context: Context, properties: Properties) -> Made:
    made = context.call(
        "lambda", "PublishLayerVersion",
        **without(properties, "LayerName"), LayerName=properties.get("LayerName") or context.name(64),
    )  # fmt: skip
    return Made(made["LayerVersionArn"], {"LayerVersionArn": made["LayerVersionArn"]})


def _delete_layer(context: Context, made: Made, _: Properties) -> None:
    arn, version = made.id.rsplit(":", 1)
    context.call("lambda", "DeleteLayerVersion", LayerName=arn.rsplit(":", 1)[1], VersionNumber=int(version))


def _create_permission(context: Context, properties: Properties) -> Made:
    statement = context.name(100)
    context.call("lambda", "AddPermission", **properties, StatementId=statement)
    return Made(statement, {"Id": statement})


def _delete_permission(context: Context, made: Made, properties: Properties) -> None:
    context.call("lambda", "RemovePermission", FunctionName=properties["FunctionName"], StatementId=made.id)


def _create_mapping(context: Context, properties: Properties) -> Made:
    made = context.call("lambda", "CreateEventSourceMapping", **without(properties, "Tags"))
    return Made(made["UUID"], {"Id": made["UUID"], "EventSourceMappingArn": made.get("EventSourceMappingArn")})


def _update_mapping(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("lambda", "UpdateEventSourceMapping", UUID=made.id, **without(new, "Tags", "EventSourceArn"))
    return made


def _delete_mapping(context: Context, made: Made, _: Properties) -> None:
    context.call("lambda", "DeleteEventSourceMapping", UUID=made.id)


def _create_invoke_config(context: Context, properties: Properties) -> Made:
    context.call("lambda", "PutFunctionEventInvokeConfig", **without(properties, "Qualifier"))
    return Made(context.name())


def _update_invoke_config(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    context.call("lambda", "PutFunctionEventInvokeConfig", **without(new, "Qualifier"))
    return made


def _delete_invoke_config(context: Context, made: Made, properties: Properties) -> None:
    context.call("lambda", "DeleteFunctionEventInvokeConfig", FunctionName=properties["FunctionName"])


_GONE = ("ResourceNotFoundException", "ResourceNotFound")

KINDS = [
    Kind(
        "AWS::Lambda::Function", _create_function, _delete_function, _update_function,
        replaces=("FunctionName", "PackageType"), gone=_GONE,
    ),
    Kind("AWS::Lambda::LayerVersion", _create_layer, _delete_layer, gone=_GONE),
    Kind("AWS::Lambda::Permission", _create_permission, _delete_permission, gone=_GONE),
    Kind(
        "AWS::Lambda::EventSourceMapping", _create_mapping, _delete_mapping, _update_mapping,
        replaces=("EventSourceArn",), gone=_GONE,
    ),
    Kind(
        "AWS::Lambda::EventInvokeConfig", _create_invoke_config, _delete_invoke_config, _update_invoke_config,
        replaces=("FunctionName", "Qualifier"), gone=_GONE,
    ),
]  # fmt: skip

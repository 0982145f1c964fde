"""What a resource type must say of itself, and the tools to say it with."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import Shape

Properties = dict[str, Any]


class Failed(Exception):
    """The resource could not be made, changed or removed; the text is the reason that the stack shows."""


class HalfMade(Failed):
    """It failed, and something of it exists: ``physical_id`` is what a rollback must remove."""

    def __init__(self, reason: str, physical_id: str):
        super().__init__(reason)
        self.physical_id = physical_id


@dataclass
class Made:
    """A resource that exists: what Ref gives, and what Fn::GetAtt gives."""

    id: str
    attributes: dict[str, Any] = field(default_factory=dict)


class Calls:
    """Clients for the emulator itself. Values become what each call's model wants: templates hold numbers as text."""

    def __init__(self, endpoint: str, region: str):
        self._endpoint = endpoint
        self._region = region
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(retries={"total_max_attempts": 1}, parameter_validation=True, max_pool_connections=20)
            self._clients[service] = boto3.client(
                service, region_name=self._region, endpoint_url=self._endpoint, config=config
            )
        return self._clients[service]

    def __call__(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """``operation`` is the API's own name, such as ``CreateRole``. None means: not given."""
        client = self.client(service)
        model = client.meta.service_model.operation_model(operation)
        given = {key: value for key, value in arguments.items() if value is not None}
        shaped = as_shape(given, model.input_shape) if model.input_shape else given
        method = next(name for name, op in client.meta.method_to_api_mapping.items() if op == operation)
        try:
            return getattr(client, method)(**shaped)
        except ParamValidationError as wrong:
            raise Failed(f"Properties validation failed: {' '.join(str(wrong).split())}") from None


def as_shape(value: Any, shape: Shape) -> Any:
    """Text as number or truth value and the other way round, where the API wants that. Unknown keys stay."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        return {
            key: as_shape(item, shape.members[key]) if key in shape.members else item for key, item in value.items()
        }
    if kind == "list" and isinstance(value, list):
        return [as_shape(item, shape.member) for item in value]
    if kind == "map" and isinstance(value, dict):
        return {key: as_shape(item, shape.value) for key, item in value.items()}
    if kind in ("integer", "long") and isinstance(value, str):
        return int(value) if value.lstrip("-").isdecimal() else value
    if kind in ("float", "double") and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    if kind == "boolean" and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind == "string" and isinstance(value, bool):
        return "true" if value else "false"
    if kind == "string" and isinstance(value, int | float):
        return str(value)
    return value


@dataclass
class Context:
    """Where a resource is made: its stack, its name there, and the API."""

    stack_name: str
    stack_id: str
    account: str
    region: str
    logical_id: str
    call: Calls
    policies: dict[str, Any] = field(default_factory=dict)
    """Its CreationPolicy and its UpdatePolicy."""
    signals: Any = None
    say: Callable[[str], None] = lambda _text: None
    """Writes a line into the stack's events, under the resource's present status."""

    def name(self, longest: int = 255, *, lower: bool = False) -> str:
        """A physical name of CloudFormation's form: stack, logical id, twelve random characters."""
        tail = "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(12))
        room = longest - len(tail) - 1
        head = f"{self.stack_name}-{self.logical_id}"
        if len(head) > room:
            half = room // 2
            head = f"{self.stack_name[: room - half - 1]}-{self.logical_id[:half]}"[:room]
        name = f"{head.rstrip('-')}-{tail}"
        return name.lower() if lower else name

    def arn(self, service: str, resource: str) -> str:
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"


Create = Callable[[Context, Properties], Made]
Update = Callable[[Context, Made, Properties, Properties], Made]
Delete = Callable[[Context, Made, Properties], None]


@dataclass(frozen=True)
class Kind:
    """One type. Without ``update``, or when one of ``replaces`` changed, a change makes a new resource.

    ``update`` takes the old properties and the new ones.
    """

    type: str
    create: Create
    delete: Delete
    update: Update | None = None
    replaces: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    """Error codes that say on deletion that there is nothing left to delete."""

    def must_replace(self, old: Properties, new: Properties) -> bool:
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        return self.update is None or bool(changed & set(self.replaces))

    def remove(self, context: Context, made: Made, properties: Properties) -> None:
        try:
            self.delete(context, made, properties)
        except ClientError as refused:
            if refused.response["Error"]["Code"] not in self.gone:
                raise


def reason(failed: Exception) -> str:
    """Why, in CloudFormation's words."""
    if isinstance(failed, ClientError):
        error = failed.response["Error"]
        return f"{error.get('Message', '')} (Service: {failed.operation_name}; Error Code: {error.get('Code', '')})"
    if isinstance(failed, KeyError):
        return f"Properties validation failed: required key {failed} not found"
    return str(failed) or type(failed).__name__


_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?")


def seconds(duration: str) -> float:
    """Of an ISO 8601 duration as CloudFormation's policies take it: hours, minutes and seconds."""
    found = _DURATION.fullmatch(duration)
    if not found or not any(found.groups()):
        raise Failed(f"Invalid time format: {duration}")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest


def without(properties: Properties, *names: str) -> Properties:
    return {key: value for key, value in properties.items() if key not in names}


def only(properties: Properties, *names: str) -> Properties:
    return {key: properties[key] for key in names if key in properties}


def document(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def tag_map(tags: Iterable[dict[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}

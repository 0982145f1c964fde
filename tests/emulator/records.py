"""What a stack is made of: its template as planned, its resources as they are, its events and change sets."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass, field
from typing import Any

from .resources import Made
from .resources.kind import Properties


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Refused(Exception):
    """CloudFormation refuses the call itself."""

    def __init__(self, message: str, code: str = "ValidationError"):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Event:
    stack_id: str
    stack_name: str
    logical_id: str
    physical_id: str
    type: str
    status: str
    reason: str | None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: datetime.datetime = field(default_factory=now)


@dataclass
class Resource:
    """A resource of a stack as it is, with what it was made from."""

    logical_id: str
    type: str
    made: Made
    properties: Properties
    needs: set[str]
    policy: str
    """Its DeletionPolicy."""
    status: str
    at: datetime.datetime = field(default_factory=now)
    reason: str | None = None


@dataclass
class Plan:
    """A template with its parameters, ready to be carried out."""

    source: str
    """As the user gave it."""
    template: dict[str, Any]
    """After the transform."""
    given: dict[str, str]
    parameters: dict[str, Any]
    conditions: dict[str, bool]
    included: set[str]
    graph: dict[str, set[str]]

    def same_as(self, other: Plan | None) -> bool:
        return other is not None and (self.template, self.parameters) == (other.template, other.parameters)


@dataclass
class ChangeSet:
    id: str
    name: str
    kind: str
    plan: Plan
    status: str = "CREATE_COMPLETE"
    execution: str = "AVAILABLE"
    reason: str | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)
    at: datetime.datetime = field(default_factory=now)
    description: str | None = None
    tags: list[dict[str, str]] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)


@dataclass
class Stack:
    name: str
    id: str
    status: str
    reason: str | None = None
    plan: Plan | None = None
    resources: dict[str, Resource] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    change_sets: dict[str, ChangeSet] = field(default_factory=dict)
    outputs: list[dict[str, str]] = field(default_factory=list)
    tags: list[dict[str, str]] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    disable_rollback: bool = False
    cancelled: bool = False
    """It is to be deleted although it was still being made."""
    created: datetime.datetime = field(default_factory=now)
    updated: datetime.datetime | None = None
    deleted: datetime.datetime | None = None

    @property
    def busy(self) -> bool:
        return self.status.endswith("_IN_PROGRESS") and self.status != "REVIEW_IN_PROGRESS"

"""The CloudFormation API: requests in, ``stacks.Stacks`` asked, answers in CloudFormation's shapes out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moto.cloudformation.exceptions import CloudFormationError
from moto.cloudformation.responses import CloudFormationResponse
from moto.cloudformation.utils import get_stack_from_s3_url
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ssm.models import ssm_backends

from .custom import CustomResources
from .records import ChangeSet, Event, Refused, Resource, Stack
from .resources.kind import Calls
from .signals import Signals
from .stacks import Stacks
from .templates import Lookups, TemplateError, as_text, parse

PAGE = 100


class _Service:
    """The stacks of every region that was used."""

    def __init__(self, endpoint: str, custom: CustomResources, signals: Signals):
        self._endpoint = endpoint
        self._custom = custom
        self._signals = signals
        self._regions: dict[tuple[str, str], Stacks] = {}
        self._lock = threading.Lock()

    def of(self, account: str, region: str) -> Stacks:
        with self._lock:
            if (account, region) not in self._regions:
                self._regions[account, region] = Stacks(
                    account,
                    region,
                    Calls(self._endpoint, region),
                    self._custom,
                    self._signals,
                    _lookups(account, region),
                    lambda zones_of: sorted(
                        z.name for z in ec2_backends[account][zones_of].describe_availability_zones()
                    ),
                )
            return self._regions[account, region]


def _lookups(account: str, region: str) -> Lookups:
    ec2 = ec2_backends[account][region]

    def find(kind: str, value: str) -> Any:
        held = {
            "AWS::EC2::VPC::Id": lambda: ec2.vpcs.get(value),
            "AWS::EC2::Subnet::Id": lambda: next((z[value] for z in ec2.subnets.values() if value in z), None),
            "AWS::EC2::SecurityGroup::Id": lambda: ec2.get_security_group_from_id(value),
        }
        return held[kind]() if kind in held else None

    def attribute(kind: str, value: str, name: str) -> str | None:
        names = {"VpcId": "vpc_id", "AvailabilityZone": "availability_zone", "CidrBlock": "cidr_block"}
        found = find(kind, value)
        return getattr(found, names[name], None) if found is not None and name in names else None

    def exists(kind: str, value: str) -> bool:
        checked = ("AWS::EC2::VPC::Id", "AWS::EC2::Subnet::Id", "AWS::EC2::SecurityGroup::Id")
        return kind not in checked or find(kind, value) is not None

    def ssm_parameter(name: str) -> str | None:
        found = ssm_backends[account][region].get_parameter(name)
        return found.value if found else None

    return Lookups(ssm_parameter, attribute, exists)


def install(endpoint: str, custom: CustomResources, signals: Signals) -> None:
    service = _Service(endpoint, custom, signals)
    # moto's own models need reshaping on the way out; what is answered here has CloudFormation's shapes already.
    CloudFormationResponse.RESPONSE_KEY_PATH_TO_TRANSFORMER = {}
    for action in (
        _create_stack, _update_stack, _delete_stack, _describe_stacks, _list_stacks,
        _describe_stack_events, _describe_stack_resource, _describe_stack_resources, _list_stack_resources,
        _create_change_set, _describe_change_set, _execute_change_set, _delete_change_set, _list_change_sets,
        _get_template, _get_template_summary, _validate_template, _list_exports, _signal_resource,
    ):  # fmt: skip
        setattr(CloudFormationResponse, action.__name__.removeprefix("_"), _answering(service, action))


class _Call:
    """One request: its parameters, and the stacks of its region."""

    def __init__(self, request: CloudFormationResponse, service: _Service):
        self._request = request
        self.stacks = service.of(request.current_account, request.region)

    def get(self, name: str, default: Any = None) -> Any:
        value = self._request._get_param(name)
        return default if value is None else value

    def flag(self, name: str) -> bool:
        return str(self.get(name, False)).lower() == "true"

    def source(self) -> str | None:
        """The template of the request; None when it names none."""
        if url := self.get("TemplateURL"):
            return get_stack_from_s3_url(url, self._request.current_account, self._request.partition)
        return self.get("TemplateBody")

    def template_for(self, stack: Stack | None) -> str:
        if self.flag("UsePreviousTemplate") and stack and stack.plan:
            return stack.plan.source
        source = self.source()
        if source is None:
            raise Refused("Either Template URL or Template Body must be specified.")
        return source

    def parameters(self, stack: Stack | None) -> dict[str, str]:
        before = stack.plan.given if stack and stack.plan else {}
        found = {}
        for parameter in self.get("Parameters", []):
            name = parameter["ParameterKey"]
            if str(parameter.get("UsePreviousValue", False)).lower() != "true":
                found[name] = parameter.get("ParameterValue", "")
            elif name in before:
                found[name] = before[name]
        return found

    def options(self) -> dict[str, Any]:
        return {"tags": self.get("Tags", []), "capabilities": self.get("Capabilities", [])}

    def page(self, key: str, rows: list[Any]) -> dict[str, Any]:
        start = int(self.get("NextToken") or 0)
        answer: dict[str, Any] = {key: rows[start : start + PAGE]}
        if len(rows) > start + PAGE:
            answer["NextToken"] = str(start + PAGE)
        return answer

    def existing(self) -> Stack | None:
        try:
            return self.stacks.find(self.get("StackName"))
        except Refused:
            return None


def _answering(
    service: _Service, action: Callable[[_Call], dict[str, Any]]
) -> Callable[[CloudFormationResponse], ActionResult]:
    def respond(self: CloudFormationResponse) -> ActionResult:
        try:
            return ActionResult(action(_Call(self, service)))
        except Refused as refused:
            raise CloudFormationError(refused.code, str(refused)) from None

    return respond


# -- stacks --------------------------------------------------------------------------------------------------------


def _create_stack(call: _Call) -> dict[str, Any]:
    keep = call.flag("DisableRollback") or call.get("OnFailure") == "DO_NOTHING"
    options = {**call.options(), "disable_rollback": keep}
    stack = call.stacks.create(call.get("StackName"), call.template_for(None), call.parameters(None), options)
    return {"StackId": stack.id}


def _update_stack(call: _Call) -> dict[str, Any]:
    held = call.stacks.find(call.get("StackName"))
    stack = call.stacks.update(held.id, call.template_for(held), call.parameters(held), call.options())
    return {"StackId": stack.id}


def _delete_stack(call: _Call) -> dict[str, Any]:
    call.stacks.delete(call.get("StackName"))
    return {}


def _describe_stacks(call: _Call) -> dict[str, Any]:
    name = call.get("StackName")
    found = [call.stacks.find(name)] if name else [s for s in call.stacks.all() if s.status != "DELETE_COMPLETE"]
    return call.page("Stacks", [_stack(s) for s in found])


def _list_stacks(call: _Call) -> dict[str, Any]:
    wanted = call.get("StackStatusFilter", [])
    return call.page("StackSummaries", [_stack(s) for s in call.stacks.all() if not wanted or s.status in wanted])


def _stack(stack: Stack) -> dict[str, Any]:
    plan = stack.plan
    parameters = [] if plan is None else [
        {"ParameterKey": name, "ParameterValue": plan.given.get(name, _joined(value))}
        for name, value in plan.parameters.items()
    ]  # fmt: skip
    return {
        "StackId": stack.id,
        "StackName": stack.name,
        "Description": plan.template.get("Description") if plan else None,
        "TemplateDescription": plan.template.get("Description") if plan else None,
        "Parameters": parameters,
        "CreationTime": stack.created,
        "LastUpdatedTime": stack.updated,
        "DeletionTime": stack.deleted,
        "StackStatus": stack.status,
        "StackStatusReason": stack.reason,
        "DisableRollback": stack.disable_rollback,
        "EnableTerminationProtection": False,
        "Capabilities": stack.capabilities,
        "Outputs": stack.outputs,
        "Tags": stack.tags,
    }


def _joined(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _describe_stack_events(call: _Call) -> dict[str, Any]:
    events = list(call.stacks.find(call.get("StackName")).events)
    return call.page("StackEvents", [_event(e) for e in reversed(events)])


def _event(event: Event) -> dict[str, Any]:
    return {
        "StackId": event.stack_id,
        "StackName": event.stack_name,
        "EventId": event.id,
        "LogicalResourceId": event.logical_id,
        "PhysicalResourceId": event.physical_id,
        "ResourceType": event.type,
        "Timestamp": event.at,
        "ResourceStatus": event.status,
        "ResourceStatusReason": event.reason,
    }


def _describe_stack_resource(call: _Call) -> dict[str, Any]:
    stack = call.stacks.find(call.get("StackName"))
    return {"StackResourceDetail": _resource(stack, _of(stack, call.get("LogicalResourceId")))}


def _describe_stack_resources(call: _Call) -> dict[str, Any]:
    stack = call.stacks.find(call.get("StackName"))
    wanted = call.get("LogicalResourceId")
    found = [_of(stack, wanted)] if wanted else list(stack.resources.values())
    return {"StackResources": [_resource(stack, r) for r in found]}


def _list_stack_resources(call: _Call) -> dict[str, Any]:
    stack = call.stacks.find(call.get("StackName"))
    return call.page("StackResourceSummaries", [_resource(stack, r) for r in list(stack.resources.values())])


def _of(stack: Stack, logical_id: str) -> Resource:
    if logical_id not in stack.resources:
        raise Refused(f"Resource {logical_id} does not exist for stack {stack.name}")
    return stack.resources[logical_id]


def _resource(stack: Stack, resource: Resource) -> dict[str, Any]:
    return {
        "StackId": stack.id,
        "StackName": stack.name,
        "LogicalResourceId": resource.logical_id,
        "PhysicalResourceId": resource.made.id,
        "ResourceType": resource.type,
        "Timestamp": resource.at,
        "LastUpdatedTimestamp": resource.at,
        "ResourceStatus": resource.status,
        "ResourceStatusReason": resource.reason,
    }


def _signal_resource(call: _Call) -> dict[str, Any]:
    call.stacks.signal(call.get("StackName"), call.get("LogicalResourceId"), call.get("UniqueId"), call.get("Status"))
    return {}


def _list_exports(call: _Call) -> dict[str, Any]:
    return call.page(
        "Exports",
        [
            {"ExportingStackId": stack.id, "Name": output["ExportName"], "Value": output["OutputValue"]}
            for stack in call.stacks.all()
            for output in stack.outputs
            if "ExportName" in output
        ],
    )


# -- change sets ---------------------------------------------------------------------------------------------------


def _create_change_set(call: _Call) -> dict[str, Any]:
    kind = call.get("ChangeSetType", "UPDATE")
    held = call.existing() if kind == "UPDATE" else None
    stack, made = call.stacks.create_change_set(
        call.get("StackName"), call.get("ChangeSetName"), kind, call.template_for(held), call.parameters(held),
        call.options(), call.get("Description"),
    )  # fmt: skip
    return {"Id": made.id, "StackId": stack.id}


def _describe_change_set(call: _Call) -> dict[str, Any]:
    stack, made = call.stacks.find_change_set(call.get("ChangeSetName"), call.get("StackName"))
    return {
        **_change_set(stack, made),
        "Parameters": [{"ParameterKey": k, "ParameterValue": v} for k, v in made.plan.given.items()],
        "Capabilities": made.capabilities,
        "Tags": made.tags,
        **call.page("Changes", made.changes),
    }


def _change_set(stack: Stack, made: ChangeSet) -> dict[str, Any]:
    return {
        "ChangeSetId": made.id,
        "ChangeSetName": made.name,
        "StackId": stack.id,
        "StackName": stack.name,
        "Description": made.description,
        "CreationTime": made.at,
        "Status": made.status,
        "StatusReason": made.reason,
        "ExecutionStatus": made.execution,
    }


def _execute_change_set(call: _Call) -> dict[str, Any]:
    call.stacks.execute_change_set(call.get("ChangeSetName"), call.get("StackName"), call.flag("DisableRollback"))
    return {}


def _delete_change_set(call: _Call) -> dict[str, Any]:
    call.stacks.delete_change_set(call.get("ChangeSetName"), call.get("StackName"))
    return {}


def _list_change_sets(call: _Call) -> dict[str, Any]:
    stack = call.stacks.find(call.get("StackName"))
    return {"Summaries": [_change_set(stack, c) for c in stack.change_sets.values()]}


# -- templates -----------------------------------------------------------------------------------------------------


def _get_template(call: _Call) -> dict[str, Any]:
    stack = call.stacks.find(call.get("StackName"))
    plan = stack.plan or next((c.plan for c in stack.change_sets.values()), None)
    if plan is None:
        raise Refused(f"Stack {stack.name} has no template")
    processed = call.get("TemplateStage") == "Processed"
    body = as_text(plan.template) if processed else plan.source
    return {"TemplateBody": body, "StagesAvailable": ["Original", "Processed"]}


def _get_template_summary(call: _Call) -> dict[str, Any]:
    source = call.source()
    if source is None:
        stack = call.stacks.find(call.get("StackName"))
        source = stack.plan.source if stack.plan else None
    return _summary(source)


def _validate_template(call: _Call) -> dict[str, Any]:
    return _summary(call.source())


def _summary(source: str | None) -> dict[str, Any]:
    if source is None:
        raise Refused("Either Template URL or Template Body must be specified.")
    try:
        template = parse(source)
    except TemplateError as wrong:
        raise Refused(str(wrong)) from None
    parameters = [
        {
            "ParameterKey": name,
            "DefaultValue": None if "Default" not in p else str(p["Default"]),
            "ParameterType": p.get("Type", "String"),
            "NoEcho": str(p.get("NoEcho", False)).lower() == "true",
            "Description": p.get("Description"),
        }
        for name, p in (template.get("Parameters") or {}).items()
    ]
    declared = template.get("Transform")
    return {
        "Parameters": parameters,
        "Description": template.get("Description"),
        "ResourceTypes": sorted({r["Type"] for r in template["Resources"].values()}),
        "DeclaredTransforms": declared if isinstance(declared, list) else [declared] if declared else [],
    }

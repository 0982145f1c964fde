"""Stacks: resources made in dependency order, rolled back when one fails, removed in the reverse order.

What depends on nothing unfinished is worked on at once, as CloudFormation does it: an order that the template does not
ask for does not come about by luck.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from . import sam, templates
from .custom import CustomResources
from .records import ChangeSet, Event, Plan, Refused, Resource, Stack, now
from .resources import TYPES, Context, Failed, Kind, Made
from .resources.kind import Calls, HalfMade, Properties, reason
from .signals import Signals
from .templates import Lookups, Scope, TemplateError

log = logging.getLogger("emulator.stacks")

WORKERS = 8
"""Resources of one stack worked on at once."""
PATIENCE = 5.0
"""Seconds that a call waits for its own work to end before it is answered. Clients look every 5 to 30 seconds: what is
done sooner they then see at their first look."""
NEEDS_CAPABILITY = ("AWS::IAM::Role", "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::IAM::InstanceProfile")
NOTHING_CHANGED = (
    "The submitted information didn't contain changes. Submit different information to create a change set."
)
"""The words by which `sam deploy` knows that there is nothing to do."""
STACK = "AWS::CloudFormation::Stack"


class Stacks:
    """All stacks of one region of one account."""

    def __init__(
        self,
        account: str,
        region: str,
        call: Calls,
        custom: CustomResources,
        signals: Signals,
        lookups: Lookups,
        zones: Callable[[str], list[str]],
    ):
        self._account = account
        self._region = region
        self._call = call
        self._custom = custom
        self._signals = signals
        self._lookups = lookups
        self._zones = zones
        self._lock = threading.RLock()
        self._stacks: dict[str, Stack] = {}

    # -- what the API asks -----------------------------------------------------------------------------------------

    def all(self) -> list[Stack]:
        with self._lock:
            return list(self._stacks.values())

    def find(self, name_or_id: str) -> Stack:
        """By id, or by name among those that are not deleted."""
        with self._lock:
            if name_or_id in self._stacks:
                return self._stacks[name_or_id]
            for stack in self._stacks.values():
                if stack.name == name_or_id and stack.status != "DELETE_COMPLETE":
                    return stack
        raise Refused(f"Stack with id {name_or_id} does not exist")

    def plan(self, source: str, given: dict[str, str], name: str, stack_id: str) -> Plan:
        """Everything that can be refused before anything is made."""
        try:
            parsed = templates.parse(source)
            parameters = templates.parameters(parsed, given, self._lookups)
            scope = self._scope(name, stack_id, parameters)
            templates.check_rules(parsed, scope, self._lookups)
            template = sam.transformed(parsed, {**_defaults(parsed), **parameters})
            templates.parse(templates.as_text(template))
            scope.mappings = template.get("Mappings") or {}
            conditions = templates.conditions(template, scope)
            included = templates.included(template, conditions)
            graph = templates.dependencies(template["Resources"], included, conditions)
        except TemplateError as wrong:
            raise Refused(str(wrong)) from None
        return Plan(source, template, dict(given), parameters, conditions, included, graph)

    def create(self, name: str, source: str, given: dict[str, str], options: dict[str, Any]) -> Stack:
        with self._lock:
            self._must_be_free(name)
            stack = Stack(name, self._new_id(name), "CREATE_IN_PROGRESS", **options)
            plan = self.plan(source, given, name, stack.id)
            _check_capabilities(plan, stack.capabilities, direct=True)
            self._stacks[stack.id] = stack
        self._begin(stack, lambda: self._create(stack, plan))
        return stack

    def update(self, name: str, source: str, given: dict[str, str], options: dict[str, Any]) -> Stack:
        stack = self.find(name)
        with self._lock:
            _must_be_updatable(stack)
            plan = self.plan(source, given, stack.name, stack.id)
            _check_capabilities(plan, options["capabilities"], direct=True)
            if plan.same_as(stack.plan):
                raise Refused("No updates are to be performed.")
            _adopt(stack, options)
            stack.status = "UPDATE_IN_PROGRESS"
        self._begin(stack, lambda: self._update(stack, plan))
        return stack

    def delete(self, name: str) -> None:
        """A stack that does not exist is no error, as on AWS."""
        try:
            stack = self.find(name)
        except Refused:
            return
        with self._lock:
            if stack.status == "DELETE_COMPLETE":
                return
            if stack.status == "CREATE_IN_PROGRESS":
                # Nothing new begins, custom resources are not waited for, and what was made goes.
                stack.cancelled = True
                self._turn(stack, "DELETE_IN_PROGRESS", "User Initiated")
                self._cancel(stack)
                return
            if stack.busy:
                raise Refused(f"Stack:{stack.id} is in {stack.status} state and can not be deleted.")
            stack.status = "DELETE_IN_PROGRESS"
        self._begin(stack, lambda: self._delete(stack))

    # -- change sets -----------------------------------------------------------------------------------------------

    def create_change_set(
        self,
        name: str,
        change_set: str,
        kind: str,
        source: str | None,
        given: dict[str, str],
        options: dict[str, Any],
        description: str | None,
    ) -> tuple[Stack, ChangeSet]:
        with self._lock:
            if kind == "UPDATE":
                stack = self.find(name)
                _must_be_updatable(stack)
            else:
                stack = next(
                    (s for s in self._stacks.values() if s.name == name and s.status == "REVIEW_IN_PROGRESS"), None
                )
                if stack is None:
                    self._must_be_free(name)
                    stack = Stack(name, self._new_id(name), "REVIEW_IN_PROGRESS")
            if change_set in stack.change_sets:
                raise Refused(f"ChangeSet [{change_set}] already exists", "AlreadyExistsException")
            text = source if source is not None else stack.plan.source if stack.plan else ""
            plan = self.plan(text, given, stack.name, stack.id)
            _check_capabilities(plan, options["capabilities"], direct=False)
            made = ChangeSet(
                id=f"arn:aws:cloudformation:{self._region}:{self._account}:changeSet/{change_set}/{uuid.uuid4()}",
                name=change_set,
                kind=kind,
                plan=plan,
                changes=list(_changes(stack.plan, plan)),
                description=description,
                tags=options["tags"],
                capabilities=options["capabilities"],
            )
            if kind == "UPDATE" and plan.same_as(stack.plan):
                made.status, made.execution = "FAILED", "UNAVAILABLE"
                made.reason = NOTHING_CHANGED
            if stack.id not in self._stacks:
                self._stacks[stack.id] = stack
                self._say(stack, stack.name, stack.id, STACK, "REVIEW_IN_PROGRESS", "User Initiated")
            stack.change_sets[change_set] = made
            return stack, made

    def find_change_set(self, name_or_id: str, stack_name: str | None) -> tuple[Stack, ChangeSet]:
        with self._lock:
            for stack in [self.find(stack_name)] if stack_name else self._stacks.values():
                for made in stack.change_sets.values():
                    if name_or_id in (made.id, made.name):
                        return stack, made
        raise Refused(f"ChangeSet [{name_or_id}] does not exist", "ChangeSetNotFound")

    def execute_change_set(self, name_or_id: str, stack_name: str | None, disable_rollback: bool) -> None:
        stack, made = self.find_change_set(name_or_id, stack_name)
        with self._lock:
            if made.execution != "AVAILABLE" or stack.busy:
                raise Refused(
                    f"ChangeSet [{made.id}] cannot be executed in its current status of [{made.status}]",
                    "InvalidChangeSetStatus",
                )
            made.execution = "EXECUTE_IN_PROGRESS"
            _adopt(stack, {"tags": made.tags, "capabilities": made.capabilities, "disable_rollback": disable_rollback})
            stack.status = f"{made.kind}_IN_PROGRESS"
        carry_out = self._create if made.kind == "CREATE" else self._update

        def run() -> None:
            carry_out(stack, made.plan)
            # Executed, whatever came of it: the change sets of a stack go with the execution of one.
            made.execution = "EXECUTE_COMPLETE"
            with self._lock:
                stack.change_sets = {made.name: made}

        self._begin(stack, run)

    def delete_change_set(self, name_or_id: str, stack_name: str | None) -> None:
        try:
            stack, made = self.find_change_set(name_or_id, stack_name)
        except Refused:
            return
        with self._lock:
            stack.change_sets.pop(made.name, None)

    # -- carrying out ----------------------------------------------------------------------------------------------

    def _begin(self, stack: Stack, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except Exception as failed:
                log.exception("stack %s", stack.name)
                operation = stack.status.removesuffix("_IN_PROGRESS")
                self._turn(stack, f"{operation}_FAILED", f"internal failure of the emulator: {failed}")

        worker = threading.Thread(target=run, name=f"stack {stack.name}", daemon=True)
        worker.start()
        worker.join(PATIENCE)

    def _create(self, stack: Stack, plan: Plan) -> None:
        stack.plan = plan
        with self._lock:
            if not stack.cancelled:
                self._turn(stack, "CREATE_IN_PROGRESS", "User Initiated")
        failed = self._walk(
            plan.graph, lambda name: self._make(stack, plan, name), stop=lambda: self._cancel(stack),
            halted=lambda: stack.cancelled,
        )  # fmt: skip
        with self._lock:
            if not stack.cancelled and not failed:
                return self._finish(stack, plan, "CREATE_COMPLETE")
        if stack.cancelled:
            return self._delete(stack)
        why = f"The following resource(s) failed to create: [{', '.join(sorted(failed))}]. "
        if stack.disable_rollback:
            return self._turn(stack, "CREATE_FAILED", why)
        self._turn(stack, "ROLLBACK_IN_PROGRESS", f"{why}Rollback requested by user.")
        left = self._remove(stack, stack.resources, undoing=True)
        if left:
            return self._turn(
                stack, "ROLLBACK_FAILED", f"The following resource(s) failed to delete: [{', '.join(left)}]. "
            )
        return self._turn(stack, "ROLLBACK_COMPLETE")

    def _update(self, stack: Stack, plan: Plan) -> None:
        self._turn(stack, "UPDATE_IN_PROGRESS", "User Initiated")
        before, old = stack.plan, dict(stack.resources)
        replaced: dict[str, Resource] = {}
        attempted: dict[str, Properties] = {}
        failed = self._walk(
            plan.graph, lambda name: self._change(stack, plan, name, replaced, attempted), stop=lambda: None
        )
        if failed:
            why = f"The following resource(s) failed to update: [{', '.join(sorted(failed))}]. "
            return self._undo(stack, before, old, attempted, why)
        stack.plan = plan
        stack.updated = now()
        obsolete = {name: old[name] for name in old if name not in plan.included}
        self._turn(stack, "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")
        self._remove(stack, replaced, forget=False)
        self._remove(stack, obsolete)
        return self._finish(stack, plan, "UPDATE_COMPLETE")

    def _undo(
        self, stack: Stack, before: Plan | None, old: dict[str, Resource], attempted: dict[str, Properties], why: str
    ) -> None:
        self._turn(stack, "UPDATE_ROLLBACK_IN_PROGRESS", why)
        failed: dict[str, Exception] = {}
        if before:
            failed = self._walk(before.graph, lambda name: self._restore(stack, before, name, old, attempted))
        new = {n: r for n, r in stack.resources.items() if n not in old or r.made.id != old[n].made.id}
        left = self._remove(stack, new, forget=False, undoing=True)
        stack.resources = {name: old[name] for name in old}
        if failed or left:
            names = ", ".join(sorted({*failed, *left}))
            return self._turn(
                stack, "UPDATE_ROLLBACK_FAILED", f"The following resource(s) failed to update: [{names}]. "
            )
        return self._turn(stack, "UPDATE_ROLLBACK_COMPLETE")

    def _delete(self, stack: Stack) -> None:
        self._turn(stack, "DELETE_IN_PROGRESS", "User Initiated")
        left = self._remove(stack, stack.resources)
        if left:
            return self._turn(
                stack, "DELETE_FAILED", f"The following resource(s) failed to delete: [{', '.join(left)}]. "
            )
        stack.deleted = now()
        stack.resources, stack.outputs = {}, []
        return self._turn(stack, "DELETE_COMPLETE")

    def _finish(self, stack: Stack, plan: Plan, status: str) -> None:
        try:
            stack.outputs = list(self._outputs(stack, plan))
        except (TemplateError, Failed) as wrong:
            return self._turn(stack, status.replace("COMPLETE", "FAILED"), str(wrong))
        return self._turn(stack, status)

    def _outputs(self, stack: Stack, plan: Plan) -> Iterator[dict[str, str]]:
        scope = self._scope_of(stack, plan)
        for name, output in (plan.template.get("Outputs") or {}).items():
            if "Condition" in output and not plan.conditions[output["Condition"]]:
                continue
            shown = {"OutputKey": name, "OutputValue": str(templates.resolve(output["Value"], scope))}
            if "Description" in output:
                shown["Description"] = output["Description"]
            if "Export" in output:
                shown["ExportName"] = templates.resolve(output["Export"]["Name"], scope)
            yield shown

    # -- one resource ----------------------------------------------------------------------------------------------

    def _make(self, stack: Stack, plan: Plan, name: str) -> None:
        declared = plan.template["Resources"][name]
        kind = declared["Type"]
        self._say(stack, name, "", kind, "CREATE_IN_PROGRESS")
        made, properties = Made(""), {}
        try:
            properties = templates.resolve(declared.get("Properties") or {}, self._scope_of(stack, plan))
            made = self._made(self._context(stack, name, plan, "CREATE_IN_PROGRESS"), kind, properties)
        except Exception as failed:
            why = _expected(failed)
            self._say(stack, name, "", kind, "CREATE_FAILED", why)
            if isinstance(failed, HalfMade):
                with self._lock:
                    stack.resources[name] = _resource(
                        plan, name, Made(failed.physical_id), properties, "CREATE_FAILED", why
                    )
            raise Failed(why) from failed
        with self._lock:
            stack.resources[name] = _resource(plan, name, made, properties, "CREATE_COMPLETE")
        self._say(stack, name, made.id, kind, "CREATE_COMPLETE")

    def _change(
        self, stack: Stack, plan: Plan, name: str, replaced: dict[str, Resource], attempted: dict[str, Properties]
    ) -> None:
        held = stack.resources.get(name)
        if held is None:
            return self._make(stack, plan, name)
        declared = plan.template["Resources"][name]
        kind = declared["Type"]
        try:
            properties = templates.resolve(declared.get("Properties") or {}, self._scope_of(stack, plan))
        except TemplateError as wrong:
            self._say(stack, name, held.made.id, kind, "UPDATE_FAILED", str(wrong))
            raise Failed(str(wrong)) from None
        if kind == held.type and properties == held.properties:
            with self._lock:
                stack.resources[name] = _resource(plan, name, held.made, properties, held.status)
            return None
        self._say(stack, name, held.made.id, kind, "UPDATE_IN_PROGRESS")
        try:
            context = self._context(stack, name, plan, "UPDATE_IN_PROGRESS")
            made = self._changed(context, kind, held, properties)
        except Exception as failed:
            why = _expected(failed)
            with self._lock:
                attempted[name] = properties
            self._say(stack, name, held.made.id, kind, "UPDATE_FAILED", why)
            raise Failed(why) from failed
        with self._lock:
            if made.id != held.made.id:
                replaced[name] = held
            stack.resources[name] = _resource(plan, name, made, properties, "UPDATE_COMPLETE")
        self._say(stack, name, made.id, kind, "UPDATE_COMPLETE")
        return None

    def _restore(
        self, stack: Stack, plan: Plan, name: str, old: dict[str, Resource], attempted: dict[str, Properties]
    ) -> None:
        """Puts a changed resource back to what it was; a replaced one still exists as it was.

        One whose update failed may have done half of it, so it is changed back too.
        """
        current, before = stack.resources.get(name), old.get(name)
        if before and name in attempted:
            context = self._context(stack, name, plan, "UPDATE_IN_PROGRESS")
            if _is_custom(before.type):
                self._custom.update(context, before.type, before.made, attempted[name], before.properties)
            elif not _known(before.type).must_replace(before.properties, attempted[name]):
                self._changed(context, before.type, replace(before, properties=attempted[name]), before.properties)
            return
        if (
            current is None
            or before is None
            or current.made.id != before.made.id
            or current.properties == before.properties
        ):
            return
        context = self._context(stack, name, plan, "UPDATE_IN_PROGRESS")
        self._changed(context, before.type, current, before.properties)

    def _made(self, context: Context, kind: str, properties: Properties) -> Made:
        if _is_custom(kind):
            return self._custom.create(context, kind, properties)
        return _known(kind).create(context, properties)

    def _changed(self, context: Context, kind: str, held: Resource, properties: Properties) -> Made:
        if kind == held.type and _is_custom(kind) and held.properties["ServiceToken"] == properties["ServiceToken"]:
            return self._custom.update(context, kind, held.made, held.properties, properties)
        if kind != held.type or _is_custom(kind) or _known(kind).must_replace(held.properties, properties):
            return self._made(context, kind, properties)
        update = _known(kind).update
        return update(context, held.made, held.properties, properties) if update else held.made

    def _remove(
        self, stack: Stack, resources: dict[str, Resource], *, forget: bool = True, undoing: bool = False
    ) -> list[str]:
        """Removes resources, each after those that need it. Gives those that stay because a removal was refused."""
        held = dict(resources)
        graph = templates.reversed_graph({name: r.needs & held.keys() for name, r in held.items()})

        def remove(name: str) -> None:
            resource = held[name]
            if resource.policy == "Retain" or (resource.policy == "RetainExceptOnCreate" and not undoing):
                self._say(stack, name, resource.made.id, resource.type, "DELETE_SKIPPED")
            else:
                self._unmake(stack, resource)
            if forget:
                with self._lock:
                    stack.resources.pop(name, None)

        failed = self._walk(graph, remove)
        # What a failed one needs was not touched, and stays too; only the failed ones are named.
        return sorted(failed)

    def _unmake(self, stack: Stack, resource: Resource) -> None:
        name, kind, made = resource.logical_id, resource.type, resource.made
        self._say(stack, name, made.id, kind, "DELETE_IN_PROGRESS")
        try:
            context = self._context(stack, name)
            if _is_custom(kind):
                self._custom.delete(context, kind, made, resource.properties)
            else:
                _known(kind).remove(context, made, resource.properties)
        except Exception as failed:
            why = _expected(failed)
            resource.status, resource.reason, resource.at = "DELETE_FAILED", why, now()
            self._say(stack, name, made.id, kind, "DELETE_FAILED", why)
            raise Failed(why) from failed
        self._say(stack, name, made.id, kind, "DELETE_COMPLETE")

    # -- tools -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _walk(
        graph: dict[str, set[str]],
        work: Callable[[str], None],
        *,
        stop: Callable[[], None] | None = None,
        halted: Callable[[], bool] = lambda: False,
    ) -> dict[str, Exception]:
        """Works on every node after those that it needs, many at once. Gives what failed.

        After a failure nothing new begins with ``stop``, which is called once then; without it only what needs the
        failed one is left out. Nothing new begins when ``halted`` either.
        """
        done: set[str] = set()
        failed: dict[str, Exception] = {}
        running: dict[Future[None], str] = {}
        waiting = dict(graph)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="resource") as pool:
            while True:
                if not (stop and failed) and not halted():
                    for name in [n for n, needs in waiting.items() if needs <= done]:
                        del waiting[name]
                        running[pool.submit(work, name)] = name
                if not running:
                    return failed
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    if error := future.exception():
                        if stop and not failed:
                            stop()
                        failed[name] = error if isinstance(error, Exception) else Failed(str(error))
                    else:
                        done.add(name)

    def _scope(self, name: str, stack_id: str, parameters: dict[str, Any]) -> Scope:
        pseudo = {
            "AccountId": self._account,
            "Region": self._region,
            "StackId": stack_id,
            "StackName": name,
            "Partition": "aws",
            "URLSuffix": "amazonaws.com",
            "NotificationARNs": [],
        }
        return Scope(pseudo=pseudo, parameters=parameters, zones=self._zones, imported=self._imported)

    def _scope_of(self, stack: Stack, plan: Plan) -> Scope:
        scope = self._scope(stack.name, stack.id, plan.parameters)
        scope.mappings, scope.conditions = plan.template.get("Mappings") or {}, plan.conditions

        def held(name: str) -> Resource:
            if name not in stack.resources:
                raise TemplateError(f"Template error: unresolved resource dependency {name}")
            return stack.resources[name]

        def attribute(name: str, wanted: str) -> Any:
            attributes = held(name).made.attributes
            if wanted not in attributes:
                raise TemplateError(
                    f"Template error: resource {name} does not support attribute type {wanted} in Fn::GetAtt"
                )
            return attributes[wanted]

        scope.resource, scope.attribute = lambda name: held(name).made.id, attribute
        return scope

    def _imported(self, name: str) -> str:
        for stack in self.all():
            for output in stack.outputs:
                if output.get("ExportName") == name:
                    return output["OutputValue"]
        raise TemplateError(f"No export named {name} found.")

    def _context(self, stack: Stack, logical_id: str, plan: Plan | None = None, status: str = "") -> Context:
        """With the policies that the plan gives the resource, where there is one."""
        declared = plan.template["Resources"][logical_id] if plan else {}
        policies = {key: declared[key] for key in ("CreationPolicy", "UpdatePolicy") if key in declared}

        def say(text: str) -> None:
            held = stack.resources.get(logical_id)
            self._say(stack, logical_id, held.made.id if held else "", declared.get("Type", ""), status, text)

        return Context(
            stack.name, stack.id, self._account, self._region, logical_id, self._call,
            templates.resolve(policies, self._scope_of(stack, plan)) if plan else {}, self._signals, say,
        )  # fmt: skip

    def _cancel(self, stack: Stack) -> None:
        self._custom.cancel(stack.id)
        self._signals.cancel(stack.id)

    def signal(self, name: str, logical_id: str, unique: str, status: str) -> None:
        stack = self.find(name)
        if stack.plan is None or logical_id not in stack.plan.included:
            raise Refused(f"Resource {logical_id} does not exist for stack {stack.name}")

        def state() -> str:
            held = stack.resources.get(logical_id)
            return held.status if held else "CREATE_IN_PROGRESS"

        self._signals.give(stack.id, logical_id, unique, status, state)

    def _turn(self, stack: Stack, status: str, why: str | None = None) -> None:
        with self._lock:
            stack.status, stack.reason = status, why
        self._say(stack, stack.name, stack.id, STACK, status, why)

    def _say(
        self, stack: Stack, logical_id: str, physical_id: str, kind: str, status: str, why: str | None = None
    ) -> None:
        level = logging.WARNING if status.endswith("FAILED") else logging.INFO
        log.log(level, "%s %s %s%s", stack.name, logical_id, status, f": {why}" if why else "")
        with self._lock:
            stack.events.append(Event(stack.id, stack.name, logical_id, physical_id, kind, status, why))

    def _new_id(self, name: str) -> str:
        return f"arn:aws:cloudformation:{self._region}:{self._account}:stack/{name}/{uuid.uuid4()}"

    def _must_be_free(self, name: str) -> None:
        if any(s.name == name and s.status != "DELETE_COMPLETE" for s in self._stacks.values()):
            raise Refused(f"Stack [{name}] already exists", "AlreadyExistsException")


def _is_custom(kind: str) -> bool:
    return kind.startswith("Custom::") or kind == "AWS::CloudFormation::CustomResource"


def _known(kind: str) -> Kind:
    if kind not in TYPES:
        raise Failed(f"Resource type {kind} is not emulated: add it to tests/emulator/resources")
    return TYPES[kind]


def _resource(
    plan: Plan, name: str, made: Made, properties: Properties, status: str, why: str | None = None
) -> Resource:
    declared = plan.template["Resources"][name]
    policy = str(declared.get("DeletionPolicy", "Delete"))
    return Resource(name, declared["Type"], made, properties, set(plan.graph[name]), policy, status, reason=why)


def _expected(failed: Exception) -> str:
    """The reason that the stack shows; a fault of the emulator itself is logged with its trace."""
    if not isinstance(failed, Failed | TemplateError | KeyError) and not hasattr(failed, "response"):
        log.exception("a resource failed in an unforeseen way")
    return reason(failed)


def _defaults(template: dict[str, Any]) -> dict[str, Any]:
    return {name: p["Default"] for name, p in (template.get("Parameters") or {}).items() if "Default" in p}


def _adopt(stack: Stack, options: dict[str, Any]) -> None:
    for name, value in options.items():
        setattr(stack, name, value)


def _must_be_updatable(stack: Stack) -> None:
    if stack.status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        raise Refused(f"Stack:{stack.id} is in {stack.status} state and can not be updated.")


def _check_capabilities(plan: Plan, held: list[str], *, direct: bool) -> None:
    resources = [plan.template["Resources"][name] for name in plan.included]
    roles = [r for r in resources if r["Type"] in NEEDS_CAPABILITY]
    named = [
        r
        for r in roles
        if {"RoleName", "ManagedPolicyName", "InstanceProfileName"} & (r.get("Properties") or {}).keys()
    ]
    wanted = "CAPABILITY_NAMED_IAM" if named else "CAPABILITY_IAM" if roles else None
    if wanted and wanted not in held and "CAPABILITY_NAMED_IAM" not in held:
        raise Refused(f"Requires capabilities : [{wanted}]", "InsufficientCapabilitiesException")
    if direct and "Transform" in templates.parse(plan.source) and "CAPABILITY_AUTO_EXPAND" not in held:
        raise Refused("Requires capabilities : [CAPABILITY_AUTO_EXPAND]", "InsufficientCapabilitiesException")


def _changes(old: Plan | None, new: Plan) -> Iterator[dict[str, Any]]:
    """What a change set shows: by comparing templates, before anything is resolved."""
    both = old.parameters.keys() & new.parameters.keys() if old else set()
    turned = {c for c in new.conditions if old and new.conditions[c] != old.conditions.get(c)}
    changed = turned | {p for p in both if old and old.parameters[p] != new.parameters[p]}

    def touched(resource: dict[str, Any]) -> bool:
        text = templates.as_text(resource)
        return any(f'"{name}"' in text or f"${{{name}}}" in text for name in changed)

    had = {name: old.template["Resources"][name] for name in old.included} if old else {}
    gets = {name: new.template["Resources"][name] for name in new.included}
    for name in [*gets, *(n for n in had if n not in gets)]:
        action = "Remove" if name not in gets else "Add" if name not in had else None
        if action is None:
            if had[name] == gets[name] and not touched(gets[name]):
                continue
            action = "Modify"
        change = {"Action": action, "LogicalResourceId": name, "ResourceType": (gets.get(name) or had[name])["Type"]}
        if action == "Modify":
            change["Replacement"] = "Conditional"
        yield {"Type": "Resource", "ResourceChange": change}

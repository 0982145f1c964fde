"""Terminate hooks of Auto Scaling groups: an instance that leaves waits in ``Terminating:Wait`` until it is let go on.

moto keeps hooks and does nothing with them. Source: Amazon EC2 Auto Scaling user guide, "Lifecycle hooks", and the API
reference of CompleteLifecycleAction, RecordLifecycleActionHeartbeat and DeleteLifecycleHook.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass

from moto.autoscaling.exceptions import AutoscalingClientError
from moto.autoscaling.models import (
    AutoScalingBackend,
    FakeAutoScalingGroup,
    InstanceState,
    LifecycleHook,
    TerminateInstanceActivity,
    autoscaling_backends,
)
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult
from moto.elbv2.exceptions import TargetGroupNotFoundError

from . import pace
from .bus import Bus
from .compute import group_lock

TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
WAITING = "Terminating:Wait"

# Seconds between a call and the event of the action.
DELAY = 0.1


@dataclass
class Action:
    """One instance that waits."""

    token: str
    hook: LifecycleHook
    group: FakeAutoScalingGroup
    state: InstanceState
    until: float


class Actions:
    """All that wait, by token. ``first``: whether Auto Scaling deregisters an instance before its hook or after it."""

    def __init__(self, bus: Bus):
        self._bus = bus
        self._waiting: dict[str, Action] = {}
        self.first = True

    def view(self) -> list[dict[str, str]]:
        with group_lock:
            return [
                {"instance": a.state.instance.id, "group": a.group.name, "hook": a.hook.name, "token": a.token}
                for a in self._waiting.values()
            ]

    def deregister(self, order: str) -> None:
        self.first = {"first": True, "last": False}[order]

    def hook(self, group: FakeAutoScalingGroup) -> LifecycleHook | None:
        hooks = group.autoscaling_backend.lifecycle_hooks.values()
        of = (h for h in hooks if (h.auto_scaling_group_name, h.lifecycle_transition) == (group.name, TERMINATING))
        return next(of, None)

    def wait(self, hook: LifecycleHook, group: FakeAutoScalingGroup, state: InstanceState) -> None:
        state.lifecycle_state = WAITING
        if self.first:
            _deregister(group, state.instance.id)
        action = Action(str(uuid.uuid4()), hook, group, state, 0)
        self._waiting[action.token] = action
        self._beat(action)
        # Shape: "Amazon EC2 Auto Scaling events and patterns", EC2 Instance-terminate Lifecycle Action.
        self._bus.tell(
            group.account_id,
            group.region,
            source="aws.autoscaling",
            kind="EC2 Instance-terminate Lifecycle Action",
            resources=[group.arn],
            detail={
                "LifecycleActionToken": action.token,
                "AutoScalingGroupName": group.name,
                "LifecycleHookName": hook.name,
                "EC2InstanceId": state.instance.id,
                "LifecycleTransition": TERMINATING,
                "Origin": "AutoScalingGroup",
                "Destination": "EC2",
            },
            delay=DELAY,
        )

    def beat(self, request: AutoScalingResponse) -> None:
        with group_lock:
            self._beat(self._of(request))

    def complete(self, request: AutoScalingResponse) -> None:
        with group_lock:
            # CONTINUE or ABANDON: a termination goes on either way.
            self._go_on(self._of(request))

    def hook_deleted(self, group: str, name: str) -> None:
        """What waits for a hook that is deleted goes on."""
        for action in list(self._waiting.values()):
            if (action.hook.auto_scaling_group_name, action.hook.name) == (group, name):
                self._go_on(action)

    def _of(self, request: AutoScalingResponse) -> Action:
        group, hook = request._get_param("AutoScalingGroupName"), request._get_param("LifecycleHookName")
        token, instance = request._get_param("LifecycleActionToken"), request._get_param("InstanceId")
        if f"{group}_{hook}" not in request.autoscaling_backend.lifecycle_hooks:
            raise AutoscalingClientError(
                "ValidationError", f"No Lifecycle Hook found for Auto Scaling group {group} with name: {hook}"
            )
        for action in self._waiting.values():
            if (action.group.name, action.hook.name) != (group, hook):
                continue
            if action.token == token or (not token and action.state.instance.id == instance):
                return action
        by = f"token {token}" if token else f"instance ID {instance}"
        raise AutoscalingClientError("ValidationError", f"No active Lifecycle Action found with {by}")

    def _beat(self, action: Action) -> None:
        timeout = float(action.hook.heartbeat_timeout)
        action.until = time.monotonic() + timeout
        self._bus.later(timeout, lambda: self._expire(action))

    def _expire(self, action: Action) -> None:
        with group_lock:
            if self._waiting.get(action.token) is action and time.monotonic() >= action.until:
                self._go_on(action)

    def _go_on(self, action: Action) -> None:
        del self._waiting[action.token]
        group, instance = action.group, action.state.instance
        _deregister(group, instance.id)
        group.instance_states = [s for s in group.instance_states if s is not action.state]
        group.ec2_backend.terminate_instances([instance.id])


def replace_unhealthy(target_group: str, instances: list[str]) -> None:
    """Replaces the instances of groups that go by a load balancer's health, once their grace period is over.
    Source: Amazon EC2 Auto Scaling user guide, "Health checks for instances"."""
    _, _, _, region, account, _ = target_group.split(":", 5)
    backend = autoscaling_backends[account][region]
    with group_lock:
        for instance in instances:
            found = _found(backend, instance)
            if not found:
                continue
            group, state = found
            suspended = {process["ProcessName"] for process in group.suspended_processes}
            grace = float(group.health_check_grace_period or 0) * pace.second
            age = time.time() - state.instance.launch_time.timestamp()
            if (
                group.health_check_type == "ELB"
                and target_group in group.target_group_arns
                and state.lifecycle_state == "InService"
                and not suspended & {"HealthCheck", "ReplaceUnhealthy", "Terminate"}
                and age > grace
            ):
                state.health_status = "Unhealthy"
                backend.terminate_instance(instance, should_decrement=False)


def _deregister(group: FakeAutoScalingGroup, instance: str) -> None:
    for arn in group.target_group_arns:
        with contextlib.suppress(TargetGroupNotFoundError):
            group.autoscaling_backend.elbv2_backend.deregister_targets(arn, [{"Id": instance}])


def install(bus: Bus) -> Actions:
    actions = Actions(bus)
    _install_calls(actions)
    _install_ways_out(actions)
    return actions


def _install_calls(actions: Actions) -> None:
    def record_lifecycle_action_heartbeat(self: AutoScalingResponse) -> EmptyResult:
        actions.beat(self)
        return EmptyResult()

    def complete_lifecycle_action(self: AutoScalingResponse) -> EmptyResult:
        actions.complete(self)
        return EmptyResult()

    AutoScalingResponse.record_lifecycle_action_heartbeat = record_lifecycle_action_heartbeat
    AutoScalingResponse.complete_lifecycle_action = complete_lifecycle_action

    delete = AutoScalingBackend.delete_lifecycle_hook

    def delete_lifecycle_hook(self: AutoScalingBackend, as_name: str, name: str) -> None:
        with group_lock:
            delete(self, as_name, name)
            actions.hook_deleted(as_name, name)

    AutoScalingBackend.delete_lifecycle_hook = delete_lifecycle_hook


def _install_ways_out(actions: Actions) -> None:
    """How an instance comes to leave its group: scaling in, a call, its own end, the end of the group."""
    set_capacity = FakeAutoScalingGroup.set_desired_capacity

    def set_desired_capacity(self: FakeAutoScalingGroup, new_capacity: int | None) -> None:
        hook = actions.hook(self)
        wanted = self.min_size if new_capacity is None else new_capacity
        if hook:
            free = [s for s in self.active_instances() if not s.protected_from_scale_in]
            for state in free[: max(0, len(self.active_instances()) - int(wanted or 0))]:
                actions.wait(hook, self, state)
        before = {s.instance.id for s in self.instance_states}
        set_capacity(self, new_capacity)
        # moto leaves who goes without a hook behind the load balancer. Likewise below.
        for gone in before - {s.instance.id for s in self.instance_states}:
            _deregister(self, gone)

    FakeAutoScalingGroup.set_desired_capacity = set_desired_capacity

    terminate = AutoScalingBackend.terminate_instance

    def terminate_instance(
        self: AutoScalingBackend, instance_id: str, should_decrement: bool
    ) -> TerminateInstanceActivity:
        with group_lock:
            found = _found(self, instance_id)
            hook = found and actions.hook(found[0])
            if found and not hook:
                _deregister(found[0], instance_id)
            if not found or not hook:
                return terminate(self, instance_id, should_decrement)
            group, state = found
            before = group.desired_capacity
            if state.lifecycle_state != WAITING:
                actions.wait(hook, group, state)
                group.set_desired_capacity(before - 1 if should_decrement else before)
            return TerminateInstanceActivity(state.instance, before)

    AutoScalingBackend.terminate_instance = terminate_instance

    ended = AutoScalingBackend.notify_terminate_instances

    def notify_terminate_instances(self: AutoScalingBackend, instance_ids: list[str]) -> None:
        """An instance that somebody ends is found unhealthy, and leaves through its hook as any other."""
        with group_lock:
            for instance_id in instance_ids:
                found = _found(self, instance_id)
                hook = found and actions.hook(found[0])
                if found and hook and found[1].lifecycle_state != WAITING:
                    actions.wait(hook, *found)
                    found[0].set_desired_capacity(found[0].desired_capacity)
            waiting = {row["instance"] for row in actions.view()}
            ended(self, [i for i in instance_ids if i not in waiting])

    AutoScalingBackend.notify_terminate_instances = notify_terminate_instances

    delete = AutoScalingBackend.delete_auto_scaling_group

    def delete_auto_scaling_group(self: AutoScalingBackend, group_name: str) -> None:
        """Deleting a group by force waits for no hook."""
        with group_lock:
            for hook in [h for h in self.lifecycle_hooks.values() if h.auto_scaling_group_name == group_name]:
                self.delete_lifecycle_hook(group_name, hook.name)
            delete(self, group_name)

    AutoScalingBackend.delete_auto_scaling_group = delete_auto_scaling_group

    def update_attached_target_groups(self: AutoScalingBackend, group_name: str) -> None:
        """In place of moto's, which would register those again that leave."""
        group = self.autoscaling_groups[group_name]
        for arn in group.target_group_arns:
            target_group = self.elbv2_backend.target_groups.get(arn)
            if target_group is None:
                raise TargetGroupNotFoundError()
            targets = [{"Id": s.instance.id, "Port": target_group.port} for s in group.active_instances()]
            self.elbv2_backend.register_targets(arn, targets)

    AutoScalingBackend.update_attached_target_groups = update_attached_target_groups


def _found(backend: AutoScalingBackend, instance_id: str) -> tuple[FakeAutoScalingGroup, InstanceState] | None:
    for group in backend.autoscaling_groups.values():
        for state in group.instance_states:
            if state.instance.id == instance_id:
                return group, state
    return None

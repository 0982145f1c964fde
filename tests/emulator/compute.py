"""EC2 instances and Auto Scaling groups, where moto differs from AWS in what mirroring sees.

Launched interfaces lie in the default VPC, get IPv6 addresses, are deleted with their instance; groups spread over
their subnets and launch the version that they name; and every change of state is told on the event bus.
"""

from __future__ import annotations

import collections
import copy
import datetime
import threading
import uuid
from collections.abc import Callable
from typing import Any

from moto.autoscaling.models import ASG_NAME_TAG, AutoScalingBackend, FakeAutoScalingGroup, InstanceState
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instances import Instance, InstanceBackend, Reservation
from moto.ec2.responses import EC2Response

from .bus import Bus

_bus: Bus

# Seconds between a call and the event of each state: told in order, and after the call was answered.
FIRST, SECOND, THIRD = 0.05, 0.15, 0.25

group_lock = threading.RLock()
"""Held by whoever changes a group: moto's are not safe to change from two calls at once."""


def install(bus: Bus) -> None:
    global _bus
    _bus = bus
    _install_instances()
    _install_interfaces()
    _install_tags()
    _install_groups()


# -- instances -----------------------------------------------------------------------------------------------------


def _install_instances() -> None:
    run, start, stop, terminate = (
        InstanceBackend.run_instances, Instance.start, Instance.stop, Instance.terminate,
    )  # fmt: skip

    def run_instances(
        self: EC2Backend, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        template = {}
        if kwargs.get("launch_template"):
            template = self._get_template_from_args(kwargs["launch_template"]).data
        nics = kwargs["nics"] = list(kwargs.get("nics") or template.get("NetworkInterfaces") or [])
        tags = _tags_of(kwargs, template)
        if not kwargs.get("subnet_id") and not any("SubnetId" in n or "NetworkInterfaceId" in n for n in nics):
            kwargs["subnet_id"] = _default_subnet(self, kwargs.get("placement"))
        made = run(self, image_id, count, user_data, security_group_names, **kwargs)
        for instance in made.instances:
            _finish_interfaces(self, instance, nics, tags)
            _tell_state(instance, "pending", FIRST)
            _tell_state(instance, "running", SECOND)
        return made

    def started(self: Instance) -> Any:
        before = start(self)
        if before.name != "running":
            _tell_state(self, "pending", FIRST)
            _tell_state(self, "running", SECOND)
        return before

    def stopped(self: Instance) -> Any:
        before = stop(self)
        if before.name != "stopped":
            _tell_state(self, "stopping", FIRST)
            _tell_state(self, "stopped", SECOND)
        return before

    def terminated(self: Instance) -> Any:
        if self.state == "terminated":
            return copy.copy(self._state)  # a second time moto would miss the interfaces
        group = _group_of(self)
        before = terminate(self)
        _tell_state(self, "shutting-down", FIRST)
        _tell_state(self, "terminated", SECOND)
        if group:
            _tell_group(group, self, launched=False)
        return before

    InstanceBackend.run_instances = run_instances
    Instance.start, Instance.stop, Instance.terminate = started, stopped, terminated
    # A terminated instance shows none of the interfaces that went with it.
    Instance.network_interfaces = property(
        lambda self: [n for n in self.nics.values() if n.id in self.ec2_backend.enis]
    )


def _default_subnet(backend: EC2Backend, zone: str | None) -> str | None:
    """EC2 launches into the default VPC when no subnet is named; moto would give an address of no subnet."""
    subnets = backend.get_default_subnets()
    if not subnets:
        return None
    chosen = subnets.get(zone) if zone else None
    return (chosen or subnets[min(subnets)]).id


def _tags_of(kwargs: dict[str, Any], template: dict[str, Any]) -> dict[str, str]:
    """Tags that the launch gives its interfaces: the call's over the template's."""
    tags: dict[str, str] = {}
    for specification in template.get("TagSpecifications", []):
        if specification.get("ResourceType") == "network-interface":
            tags.update({t["Key"]: t.get("Value", "") for t in specification.get("Tags", [])})
    tags.update((kwargs.get("tags") or {}).get("network-interface", {}))
    return tags


def _finish_interfaces(
    backend: EC2Backend, instance: Instance, asked: list[dict[str, Any]], tags: dict[str, str]
) -> None:
    by_index = {int(n.get("DeviceIndex", 0)): n for n in asked}
    for index, eni in instance.nics.items():
        specification = by_index.get(index, {})
        if specification.get("NetworkInterfaceId"):
            continue  # it existed before, and belongs to whoever made it
        # The primary interface goes with its instance unless the call says otherwise; so do others made with it.
        eni.delete_on_termination = str(specification.get("DeleteOnTermination", True)).lower() != "false"
        if eni.subnet.ipv6_cidr_block_associations and not eni.ipv6_addresses:
            backend.assign_ipv6_addresses(eni.id, ipv6_count=1)
        if tags:
            backend.create_tags([eni.id], tags)


def _tell_state(instance: Instance, state: str, delay: float) -> None:
    backend = instance.ec2_backend
    _bus.tell(
        backend.account_id,
        backend.region_name,
        source="aws.ec2",
        kind="EC2 Instance State-change Notification",
        resources=[_arn(backend, instance.id)],
        detail={"instance-id": instance.id, "state": state},
        delay=delay,
    )


def _arn(backend: EC2Backend, instance_id: str) -> str:
    return f"arn:{backend.partition}:ec2:{backend.region_name}:{backend.account_id}:instance/{instance_id}"


# -- interfaces ----------------------------------------------------------------------------------------------------


def _install_interfaces() -> None:
    delete = EC2Response.delete_network_interface

    def delete_network_interface(self: EC2Response) -> Any:
        eni = self.ec2_backend.enis.get(self._get_param("NetworkInterfaceId"))
        if eni and eni.attachment_id:
            raise EC2ClientError(
                "InvalidNetworkInterface.InUse",
                f"Network interface '{eni.id}' is currently in use by {eni.instance.id}.",
            )
        return delete(self)

    EC2Response.delete_network_interface = delete_network_interface

    def describe_network_interfaces(self: EC2Response) -> ActionResult:
        """In place of moto's, which knows no pages."""
        self.error_on_dryrun()
        found = self.ec2_backend.get_all_network_interfaces(
            self._get_param("NetworkInterfaceIds", []), self._filters_from_querystring()
        )
        size, token = self._get_param("MaxResults"), self._get_param("NextToken")
        start = int(token or 0)
        end = start + int(size or len(found) or 1)
        answer: dict[str, Any] = {"NetworkInterfaces": found[start:end]}
        if end < len(found):
            answer["NextToken"] = str(end)
        return ActionResult(answer)

    EC2Response.describe_network_interfaces = describe_network_interfaces

    value_of = NetworkInterface.get_filter_value
    more: dict[str, Callable[[NetworkInterface], Any]] = {
        "attachment.status": lambda eni: "attached" if eni.attachment_id else "detached",
        "attachment.device-index": lambda eni: str(eni.device_index),
        "attachment.delete-on-termination": lambda eni: str(bool(eni.delete_on_termination)).lower(),
        "requester-managed": lambda eni: str(bool(eni.requester_managed)).lower(),
    }

    def get_filter_value(self: NetworkInterface, filter_name: str, method_name: str | None = None) -> Any:
        if filter_name in more:
            return more[filter_name](self)
        return value_of(self, filter_name, method_name)

    NetworkInterface.get_filter_value = get_filter_value


# -- tags ----------------------------------------------------------------------------------------------------------


def _install_tags() -> None:
    """``Tag Change on Resource`` for instances, after CreateTags and DeleteTags."""

    def telling(name: str) -> None:
        change = getattr(EC2Response, name)

        def changed(self: EC2Response) -> Any:
            backend = self.ec2_backend
            ids = [i for i in self._get_param("Resources", []) if i.startswith("i-")]
            before = {i: dict(backend.tags.get(i, {})) for i in ids}
            answer = change(self)
            for instance_id in ids:
                _tell_tags(backend, instance_id, before[instance_id])
            return answer

        setattr(EC2Response, name, changed)

    telling("create_tags")
    telling("delete_tags")


_tag_versions: collections.Counter[str] = collections.Counter()


def _tell_tags(backend: EC2Backend, instance_id: str, before: dict[str, str]) -> None:
    after = dict(backend.tags.get(instance_id, {}))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if not changed:
        return
    _tag_versions[instance_id] += 1
    _bus.tell(
        backend.account_id,
        backend.region_name,
        source="aws.tag",
        kind="Tag Change on Resource",
        resources=[_arn(backend, instance_id)],
        detail={
            "changed-tag-keys": changed,
            "service": "ec2",
            "resource-type": "instance",
            "version": _tag_versions[instance_id],
            "tags": {key: value for key, value in after.items() if not key.startswith("aws:")},
        },
        delay=FIRST,
    )


# -- groups --------------------------------------------------------------------------------------------------------


def _install_groups() -> None:
    for name in (
        "create_auto_scaling_group", "update_auto_scaling_group", "delete_auto_scaling_group", "set_desired_capacity",
        "attach_instances", "detach_instances", "notify_terminate_instances",
    ):  # fmt: skip
        setattr(AutoScalingBackend, name, _one_at_a_time(getattr(AutoScalingBackend, name)))

    terminate = AutoScalingBackend.terminate_instance

    def terminate_instance(self: AutoScalingBackend, instance_id: str, should_decrement: bool) -> Any:
        with group_lock:
            group = next(
                (
                    g
                    for g in self.autoscaling_groups.values()
                    if any(s.instance.id == instance_id for s in g.instance_states)
                ),
                None,
            )
            activity = terminate(self, instance_id, should_decrement)
            # moto takes it out of the group before it ends, so its own end cannot tell whose it was.
            if group:
                _tell_group(group, self.ec2_backend.get_instance(instance_id), launched=False)
            return activity

    AutoScalingBackend.terminate_instance = terminate_instance

    update = FakeAutoScalingGroup.update

    def updated(self: FakeAutoScalingGroup, **given: Any) -> None:
        # An update that names none keeps the one that there is; moto forgets it.
        named = any(given.get(k) for k in ("mixed_instances_policy", "launch_template", "launch_config_name"))
        if self.mixed_instances_policy and not named:
            kept = copy.deepcopy(self.mixed_instances_policy)
            # moto added it to what it shows, and refuses it beside the id.
            kept["LaunchTemplate"]["LaunchTemplateSpecification"].pop("LaunchTemplateName", None)
            given["mixed_instances_policy"] = kept
        update(self, **given)

    FakeAutoScalingGroup.update = updated

    launch = FakeAutoScalingGroup.replace_autoscaling_group_instances

    def launched(self: FakeAutoScalingGroup, count_needed: int, propagated_tags: dict[str, str]) -> None:
        before = {state.instance.id for state in self.instance_states}
        if self.ec2_launch_template:
            _launch(self, count_needed, propagated_tags)
        else:
            launch(self, count_needed, propagated_tags)
        for state in self.instance_states:
            if state.instance.id not in before:
                _tell_group(self, state.instance, launched=True)

    FakeAutoScalingGroup.replace_autoscaling_group_instances = launched


def _one_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with group_lock:
            return call(*args, **kwargs)

    return locked


def _launch(group: FakeAutoScalingGroup, count: int, propagated_tags: dict[str, str]) -> None:
    """Launches from the version that the group names, into the subnet that holds the fewest of its instances."""
    backend = group.autoscaling_backend.ec2_backend
    tags = {**propagated_tags, **group.instance_tags, ASG_NAME_TAG: group.name}
    for _ in range(count):
        subnet = _emptiest_subnet(group)
        made = backend.run_instances(
            group.image_id,
            1,
            None,  # the template's: moto's own way to it fails on all versions but the first
            [],
            instance_type=_instance_type(group),
            is_instance_type_default=False,
            region_name=group.region,
            tags={"instance": dict(tags)},
            placement=None if subnet else group.availability_zones[0],
            launch_template={
                "LaunchTemplateId": group.ec2_launch_template.id,
                "Version": group.launch_template_version,
            },
            subnet_id=subnet,
        )
        (instance,) = made.instances
        instance.autoscaling_group = group
        group.instance_states.append(
            InstanceState(instance, protected_from_scale_in=group.new_instances_protected_from_scale_in)
        )


def _instance_type(group: FakeAutoScalingGroup) -> str:
    overrides = ((group.mixed_instances_policy or {}).get("LaunchTemplate") or {}).get("Overrides") or []
    first = next((o["InstanceType"] for o in overrides if o.get("InstanceType")), None)
    return first or group.instance_type or "m5.large"


def _emptiest_subnet(group: FakeAutoScalingGroup) -> str | None:
    if not group.vpc_zone_identifier:
        return None
    held = collections.Counter(state.instance.subnet_id for state in group.instance_states)
    return min(group.vpc_zone_identifier.split(","), key=lambda subnet: held[subnet])


def _group_of(instance: Instance) -> FakeAutoScalingGroup | None:
    """The group that the instance belongs to now: a detached one keeps moto's attribute, but loses the tag."""
    group = getattr(instance, "autoscaling_group", None)
    tags = instance.ec2_backend.tags.get(instance.id, {})
    return group if group and tags.get(ASG_NAME_TAG) == group.name else None


def _tell_group(group: FakeAutoScalingGroup, instance: Instance, launched: bool) -> None:
    """Shapes: Amazon EC2 Auto Scaling user guide, "Auto Scaling events and patterns for EventBridge"."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    activity = str(uuid.uuid4())
    _bus.tell(
        group.account_id,
        group.region,
        source="aws.autoscaling",
        kind=f"EC2 Instance {'Launch' if launched else 'Terminate'} Successful",
        resources=[group.arn, _arn(instance.ec2_backend, instance.id)],
        detail={
            "StatusCode": "InProgress",
            "Description": f"{'Launching a new' if launched else 'Terminating'} EC2 instance: {instance.id}",
            "AutoScalingGroupName": group.name,
            "ActivityId": activity,
            "Details": {"Availability Zone": instance.availability_zone, "Subnet ID": instance.subnet_id},
            "RequestId": activity,
            "StatusMessage": "",
            "StartTime": now,
            "EndTime": now,
            "EC2InstanceId": instance.id,
            "Cause": f"At {now} the group's capacity was changed.",
            "Origin": "EC2" if launched else "AutoScalingGroup",
            "Destination": "AutoScalingGroup" if launched else "EC2",
        },
        delay=THIRD,
    )

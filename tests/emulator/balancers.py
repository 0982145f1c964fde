"""Load balancers: a network load balancer's ARN says so, as clients and metrics expect; moto writes ``app`` in all. A
target that is deregistered drains for the delay of its group, which moto leaves out. Where the lab's load balancer
carries a group's packets (``POST /_lab/health``), its targets are as that one finds them; else all are healthy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from moto.ec2.models import ec2_backends
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeLoadBalancer, FakeTargetGroup, elbv2_backends

from . import pace


def install() -> None:
    _install_network_balancers()
    _install_draining()


def _install_network_balancers() -> None:
    create = ELBv2Backend.create_load_balancer

    def create_load_balancer(self: ELBv2Backend, *args: Any, **kwargs: Any) -> FakeLoadBalancer:
        made = create(self, *args, **kwargs)
        if made.type == "network":
            tags = self.tagging_service.get_tag_dict_for_resource(made.arn)
            self.tagging_service.delete_all_tags_for_resource(made.arn)
            del self.load_balancers[made.arn]
            made.arn = made.arn.replace(":loadbalancer/app/", ":loadbalancer/net/")
            made.dns_name = f"{made.name}-{made.arn.rsplit('/', 1)[1]}.elb.{self.region_name}.amazonaws.com"
            self.load_balancers[made.arn] = made
            self.tagging_service.tag_resource(made.arn, [{"Key": k, "Value": v} for k, v in tags.items()])
        return made

    ELBv2Backend.create_load_balancer = create_load_balancer


def _install_draining() -> None:
    """``draining`` until the deregistration delay is over, then ``unused``. To deregister what is no target is no error
    (API reference, DeregisterTargets)."""
    register, health_for = FakeTargetGroup.register, FakeTargetGroup.health_for

    def registered(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
        register(self, targets)
        for target in targets:
            _draining(self).pop(target["Id"], None)

    def deregister(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
        delay = float(self.attributes.get("deregistration_delay.timeout_seconds") or 300) * pace.second
        for target in targets:
            if self.targets.pop(target["Id"], None):
                _draining(self)[target["Id"]] = time.monotonic() + delay

    def deregister_terminated_instances(self: FakeTargetGroup, instance_ids: list[str]) -> None:
        deregister(self, [{"Id": instance} for instance in instance_ids])

    def health(self: FakeTargetGroup, target: dict[str, Any], ec2_backend: Any) -> FakeHealthStatus:
        if target["Id"] not in self.targets and time.monotonic() < _draining(self).get(target["Id"], 0):
            return FakeHealthStatus(
                target["Id"], target.get("Port", self.port), self.health_check_port, "draining",
                "Target.DeregistrationInProgress", "Target deregistration is in progress",
            )  # fmt: skip
        reported = getattr(self, "reported", None)
        if reported is None or target["Id"] not in self.targets:
            return health_for(self, target, ec2_backend)
        state, why = reported.get(target["Id"], ("initial", None))
        return FakeHealthStatus(
            target["Id"], self.targets[target["Id"]].get("Port", self.port), self.health_check_port, state,
            *_REASONS[state], *([why] if why and state != "healthy" else []),
        )  # fmt: skip

    FakeTargetGroup.register, FakeTargetGroup.deregister = registered, deregister
    FakeTargetGroup.deregister_terminated_instances = deregister_terminated_instances
    FakeTargetGroup.health_for = health


_REASONS: dict[str, tuple[str, ...]] = {
    "healthy": (),
    "initial": ("Elb.InitialHealthChecking",),
    "unhealthy": ("Target.FailedHealthChecks",),
}
"""Reason codes: API reference, TargetHealth."""


SHORTLY_AFTER = 3.0
"""Seconds from the end of a deregistration delay to that of the flows: "shortly after" is all that the Network Load
Balancers user guide says."""


def view() -> list[dict[str, Any]]:
    """The target groups of network load balancers for UDP, for the lab's load balancer (tests/src/balancer)."""
    return [
        _group(group)
        for regions in list(elbv2_backends.values())
        for backend in list(regions.values())
        for group in list(backend.target_groups.values())
        if group.protocol == "UDP"
    ]


def _group(group: FakeTargetGroup) -> dict[str, Any]:
    ends = "deregistration_delay.connection_termination.enabled"
    now = time.monotonic()
    # What is shown as the end of the delay is not yet the end of the flows.
    left = {target: until + SHORTLY_AFTER * pace.second - now for target, until in _draining(group).copy().items()}
    leaving = {target: seconds for target, seconds in left.items() if seconds > 0}
    standing = {**{target: None for target in group.targets.copy()}, **leaving}
    port = group.health_check_port
    return {
        "arn": group.arn,
        "check": {
            "port": int(group.port if port in (None, "traffic-port") else port),
            "path": group.health_check_path or "/",
            "interval": float(group.health_check_interval_seconds) * pace.second,
            "timeout": float(group.health_check_timeout_seconds) * pace.second,
            "healthy_threshold": int(group.healthy_threshold_count),
            "unhealthy_threshold": int(group.unhealthy_threshold_count),
            "codes": (getattr(group, "matcher", None) or {}).get("HttpCode", "200"),
        },
        "connection_termination": group.attributes.get(ends) == "true",
        "targets": [
            {"id": target, "address": address, "leaves_in": left}
            for target, left in standing.items()
            if (address := _address(group, target))
        ],
    }


def _address(group: FakeTargetGroup, target: str) -> str | None:
    """Also of an instance that is terminated already: the load balancer does not look at that while a target drains."""
    reservations = list(ec2_backends[group.account_id][group.region_name].reservations.values())
    found = (i for r in reservations for i in r.instances if i.id == target)
    return next((i.private_ip for i in found), None)


def report(body: bytes, unhealthy: Callable[[str, list[str]], None]) -> dict[str, Any]:
    """``{"target_group": arn, "targets": {id: {"state": …, "reason": …}}}``. Those that are found unhealthy are told on."""
    told = json.loads(body)
    _, _, _, region, account, _ = told["target_group"].split(":", 5)
    group = elbv2_backends[account][region].target_groups[told["target_group"]]
    group.reported = {target: (how["state"], how.get("reason")) for target, how in told["targets"].items()}
    unhealthy(group.arn, [target for target, (state, _) in group.reported.items() if state == "unhealthy"])
    return {}


def _draining(group: FakeTargetGroup) -> dict[str, float]:
    """Until when each target drains."""
    if not hasattr(group, "draining"):
        group.draining = {}
    return group.draining

"""Load balancers: a network load balancer's ARN says so, as clients and metrics expect; moto writes ``app`` in all. And a
target that is deregistered drains for the delay of its group, which moto leaves out."""

from __future__ import annotations

import time
from typing import Any

from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeLoadBalancer, FakeTargetGroup


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
        delay = float(self.attributes.get("deregistration_delay.timeout_seconds") or 300)
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
        return health_for(self, target, ec2_backend)

    FakeTargetGroup.register, FakeTargetGroup.deregister = registered, deregister
    FakeTargetGroup.deregister_terminated_instances = deregister_terminated_instances
    FakeTargetGroup.health_for = health


def _draining(group: FakeTargetGroup) -> dict[str, float]:
    """Until when each target drains."""
    if not hasattr(group, "draining"):
        group.draining = {}
    return group.draining

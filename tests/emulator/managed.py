"""Interfaces that AWS services make and own: those of load balancers, and of tasks in network mode ``awsvpc``.

moto makes none for load balancers, and those of tasks look like anybody's. Descriptions: Elastic Load Balancing writes
``ELB app/NAME/HASH`` and ``ELB NAME``, ECS the ARN of the attachment.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.models import EC2Backend, ec2_backends
from moto.ecs.models import EC2ContainerServiceBackend, Task
from moto.elb.models import ELBBackend
from moto.elbv2.models import ELBv2Backend

from .bus import Bus

_bus: Bus

# Seconds between a call and the event that tells of it.
DELAY = 0.1


def install(bus: Bus) -> None:
    global _bus
    _bus = bus
    _install_classic_balancers()
    _install_application_balancers()
    _install_tasks()


def _own(backend: EC2Backend, subnet: str, groups: list[str], description: str) -> None:
    made = backend.create_network_interface(backend.get_subnet(subnet), [], group_ids=groups, description=description)
    made.requester_managed, made.status = True, "in-use"


def _disown(backend: EC2Backend, description: str) -> None:
    for eni in [e for e in backend.enis.values() if e.requester_managed and e.description == description]:
        backend.delete_network_interface(eni.id)


# -- load balancers ------------------------------------------------------------------------------------------------


def _install_classic_balancers() -> None:
    create, delete = ELBBackend.create_load_balancer, ELBBackend.delete_load_balancer

    def create_load_balancer(self: ELBBackend, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        for subnet in made.subnets:
            _own(_ec2(self), subnet, list(made.security_groups), f"ELB {made.name}")
        return made

    def delete_load_balancer(self: ELBBackend, load_balancer_name: str) -> None:
        delete(self, load_balancer_name)
        _disown(_ec2(self), f"ELB {load_balancer_name}")

    ELBBackend.create_load_balancer, ELBBackend.delete_load_balancer = create_load_balancer, delete_load_balancer


def _install_application_balancers() -> None:
    create, delete = ELBv2Backend.create_load_balancer, ELBv2Backend.delete_load_balancer

    def create_load_balancer(self: ELBv2Backend, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        if made.type == "application":
            for subnet in made.subnets:
                _own(_ec2(self), subnet.id, list(made.security_groups or []), _described(made.arn))
        return made

    def delete_load_balancer(self: ELBv2Backend, arn: str) -> None:
        delete(self, arn)
        _disown(_ec2(self), _described(arn))

    ELBv2Backend.create_load_balancer, ELBv2Backend.delete_load_balancer = create_load_balancer, delete_load_balancer


def _described(arn: str) -> str:
    return f"ELB {arn.split(':loadbalancer/')[1]}"


def _ec2(backend: Any) -> EC2Backend:
    return ec2_backends[backend.account_id][backend.region_name]


# -- tasks ---------------------------------------------------------------------------------------------------------


def _install_tasks() -> None:
    run, stop = EC2ContainerServiceBackend.run_task, EC2ContainerServiceBackend.stop_task

    def run_task(self: EC2ContainerServiceBackend, *args: Any, **kwargs: Any) -> list[Task]:
        tasks = run(self, *args, **kwargs)
        for task in tasks:
            for eni, attachment in _interfaces(self, task):
                place = f"arn:aws:ecs:{self.region_name}:{self.account_id}:attachment/{attachment['id']}"
                eni.description, eni.requester_managed = place, True
            _tell_task(self, task, "ATTACHED")
        return tasks

    def stop_task(self: EC2ContainerServiceBackend, *args: Any, **kwargs: Any) -> Task:
        task = stop(self, *args, **kwargs)
        for eni, _ in _interfaces(self, task):
            _ec2(self).delete_network_interface(eni.id)
        _tell_task(self, task, "DELETED")
        return task

    EC2ContainerServiceBackend.run_task, EC2ContainerServiceBackend.stop_task = run_task, stop_task


def _interfaces(backend: EC2ContainerServiceBackend, task: Task) -> list[tuple[Any, dict[str, Any]]]:
    enis = _ec2(backend).enis
    named = [(a, d["value"]) for a in task.attachments for d in a["details"] if d["name"] == "networkInterfaceId"]
    return [(enis[eni], attachment) for attachment, eni in named if eni in enis]


def _tell_task(backend: EC2ContainerServiceBackend, task: Task, attachments: str) -> None:
    """Shape: Amazon ECS developer guide, "Amazon ECS task state change events"."""
    _bus.tell(
        backend.account_id,
        backend.region_name,
        source="aws.ecs",
        kind="ECS Task State Change",
        resources=[task.task_arn],
        detail={
            # In events the type is called so; DescribeTasks says ElasticNetworkInterface.
            "attachments": [{**a, "type": "eni", "status": attachments} for a in task.attachments],
            "clusterArn": task.cluster_arn,
            "desiredStatus": task.desired_status,
            "lastStatus": "RUNNING" if attachments == "ATTACHED" else "STOPPED",
            "launchType": task.launch_type or "FARGATE",
            "group": task.group,
            "taskArn": task.task_arn,
            "version": 4,
        },
        delay=DELAY,
    )

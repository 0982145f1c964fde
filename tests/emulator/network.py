"""The lab's view: which interfaces exist, and what is mirrored from them to where.

The Rust lab polls it ten times a second and programs kernel mirroring from it, so it walks the models directly and
builds nothing that it does not show.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.models import EC2Backend, ec2_backends

from . import balancers
from .mirroring import Filter, Mirrors, Rule, Session
from .mirroring_api import mirrors_of

GROUP_TAG = "aws:autoscaling:groupName"
"""What tells an instance's group, even of one that was attached or detached later."""


def view() -> dict[str, Any]:
    """All running instances and all mirror sessions, of every account and region that was used so far."""
    backends = [backend for regions in list(ec2_backends.values()) for backend in list(regions.values())]
    return {
        "instances": [row for backend in backends for row in _instances(backend)],
        "sessions": [row for backend in backends for row in _sessions(mirrors_of(backend))],
        "target_groups": balancers.view(),
    }


def _instances(backend: EC2Backend) -> list[dict[str, Any]]:
    return [
        {
            "id": instance.id,
            "state": instance.state,
            "asg": backend.tags.get(instance.id, {}).get(GROUP_TAG),
            "launched_at": instance.launch_time.timestamp(),
            "tags": dict(backend.tags.get(instance.id, {})),
            "enis": [
                {
                    "id": eni.id,
                    "device_index": index,
                    "private_ip": eni.private_ip_address,
                    "ipv6": list(eni.ipv6_addresses),
                    "subnet": eni.subnet.id,
                    "mac": eni.mac_address,
                }
                for index, eni in sorted(instance.nics.copy().items())
            ],
        }
        for reservation in list(backend.reservations.values())
        for instance in list(reservation.instances)
        if instance.state == "running"
    ]


def _sessions(mirrors: Mirrors) -> list[dict[str, Any]]:
    # A copy under the lock, so that a session never shows without its target or filter.
    with mirrors.lock:
        return [_session(mirrors, session) for session in mirrors.sessions.values()]


def _session(mirrors: Mirrors, session: Session) -> dict[str, Any]:
    target = mirrors.targets[session.target_id]
    return {
        "id": session.id,
        "eni": session.eni,
        "number": session.number,
        "vni": session.vni,
        "packet_length": session.packet_length,
        "created_at": session.created_at,
        "target": {"id": target.id, "nlb_arn": target.nlb_arn, "eni": target.eni},
        "filter": _filter(mirrors.filters[session.filter_id]),
    }


def _filter(found: Filter) -> dict[str, Any]:
    return {
        "id": found.id,
        "ingress": [_rule(r) for r in found.ordered("ingress")],
        "egress": [_rule(r) for r in found.ordered("egress")],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "number": rule.number,
        "action": rule.action,
        "protocol": rule.protocol,
        "source_cidr": rule.source_cidr,
        "destination_cidr": rule.destination_cidr,
        "source_ports": rule.source_ports,
        "destination_ports": rule.destination_ports,
    }

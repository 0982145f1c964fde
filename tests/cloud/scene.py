"""Interfaces in every relation to a stack that a run of its functions can find, put back as often as a test likes."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import product
from botocore.exceptions import ClientError
from conftest import Cloud

BOTH = ["attach", "reconcile"]
CREATE, MODIFY, DELETE = (f"ec2:{verb}TrafficMirrorSession" for verb in ("Create", "Modify", "Delete"))
MUTATIONS = (CREATE, MODIFY, DELETE)
STACK_TAG = "mirrorfleet:stack"
BASE = 100
"""The product's SessionNumberBase, unless it is told another."""


class Scene:
    """What a run has to do: make two sessions (one beside two foreign ones), change one, remove one, leave the rest."""

    def __init__(self, cloud: Cloud, stack: str, outputs: dict[str, str]):
        self.cloud = cloud
        self.ec2 = cloud.client("ec2")
        self.stack = stack
        self.target, self.filter = outputs["MirrorTargetId"], outputs["MirrorFilterId"]
        self.other_filter = self.ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
        self.instances = {
            name: cloud.run_instance(**product.tagged("false" if name == "unselected" else "true"))
            for name in ("bare", "drifted", "unselected", "shared", "full", "right")
        }
        self.enis = {name: product.interface_of(instance) for name, instance in self.instances.items()}
        numbers = {"shared": (1, BASE), "full": (1, 2, BASE)}
        self.foreign = {self.add(name, n, ours=False) for name, held in numbers.items() for n in held}

    def add(self, name: str, number: int, *, ours: bool, **more: Any) -> str:
        tags = [{"Key": STACK_TAG, "Value": self.stack}] if ours else [{"Key": "team", "Value": "other"}]
        made = self.ec2.create_traffic_mirror_session(
            **{
                "NetworkInterfaceId": self.enis[name],
                "TrafficMirrorTargetId": self.target,
                "TrafficMirrorFilterId": self.filter,
                "SessionNumber": number,
                "VirtualNetworkId": 4789,
                "PacketLength": 8500,
                "TagSpecifications": [{"ResourceType": "traffic-mirror-session", "Tags": tags}],
                **more,
            }
        )
        return made["TrafficMirrorSession"]["TrafficMirrorSessionId"]

    def set(self) -> None:
        """Everything that a run has to do is to be done again."""
        # A create of a function that was killed may still be carried out when everything has been cleared.
        for _ in range(5):
            self.clear()
            try:
                self.kept = self.add("drifted", BASE, ours=True, TrafficMirrorFilterId=self.other_filter)
                self.add("unselected", BASE, ours=True)
                self.add("right", BASE, ours=True)
                return
            except ClientError as e:
                taken = e
                time.sleep(0.5)
        raise taken

    def clear(self) -> None:
        """No session of ours is left."""
        for session in self.sessions():
            if session["id"] not in self.foreign:
                self.ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=session["id"])

    def sessions(self) -> list[dict[str, Any]]:
        """All of the account, with their tags."""
        shown = self.ec2.describe_traffic_mirror_sessions()["TrafficMirrorSessions"]
        return [
            {
                "id": s["TrafficMirrorSessionId"],
                "eni": s["NetworkInterfaceId"],
                "number": s["SessionNumber"],
                "filter": s["TrafficMirrorFilterId"],
                "ours": {"Key": STACK_TAG, "Value": self.stack} in s["Tags"],
            }
            for s in shown
        ]

    def ours(self) -> list[tuple[str, int, str]]:
        """(interface's name, number, filter) of each session of ours; one elsewhere is named by its interface's id."""
        names = {eni: name for name, eni in self.enis.items()}
        found = [s for s in self.sessions() if s["ours"]]
        return sorted((names.get(s["eni"], s["eni"]), s["number"], s["filter"]) for s in found)

    def wanted(self) -> list[tuple[str, int, str]]:
        """What ``ours`` has to be after a run."""
        numbers = {"bare": BASE, "drifted": BASE, "right": BASE, "shared": BASE + 1}
        return sorted((name, number, self.filter) for name, number in numbers.items())

    def converged(self) -> bool:
        return self.ours() == self.wanted() and self.foreign_is_there()

    def foreign_is_there(self) -> bool:
        return self.foreign <= {s["id"] for s in self.sessions() if not s["ours"]}

    def batch(self) -> dict[str, Any]:
        """One batch of the queue that names all of these instances."""
        bodies = [product.event("instance-running", i["InstanceId"]) for i in self.instances.values()]
        return {"Records": [_record(number, body) for number, body in enumerate(bodies)]}


def _record(number: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "messageId": f"message-{number}",
        "receiptHandle": "handle",
        "body": json.dumps(body),
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "md5OfBody": "",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:queue",
        "awsRegion": "us-east-1",
    }


def staged(cloud: Cloud) -> SimpleNamespace:
    """A stack that hears of nothing by itself, and its scene."""
    out = product.create(cloud, product.template(cloud))
    product.deaf(cloud)
    for name in ("AttachFunction", "ReconcileFunction"):
        # The pace is proven elsewhere; here it would be most of the time.
        product.settings(cloud, out[name], MIRRORFLEET_MUTATIONS_PER_SECOND="1000")
    arn = cloud.client("cloudformation").describe_stacks(StackName=product.STACK)["Stacks"][0]["StackId"]
    return SimpleNamespace(scene=Scene(cloud, arn, out), out=out)


def name_of(stack: SimpleNamespace, which: str) -> str:
    """Of the function `attach` or `reconcile`."""
    return stack.out[f"{which.title()}Function"].rsplit(":", 1)[1]


def what(stack: SimpleNamespace, which: str) -> Any:
    """What it is called with: a batch that names the whole scene, or the schedule."""
    return stack.scene.batch() if which == "attach" else product.event("scheduled", "")


def run(cloud: Cloud, stack: SimpleNamespace, which: str) -> Any:
    return product.invoke(cloud, name_of(stack, which), what(stack, which))


def mutations(cloud: Cloud, since: int) -> list[str]:
    """Those among the calls after so many."""
    return [c["call"] for c in cloud.calls()[since:] if c["call"] in MUTATIONS]

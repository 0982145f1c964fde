"""What ``explain`` and ``dry_run`` of the real function say for each reason; the README shows the same words.

What EC2 says on the way only (an interface that is just being detached) is put into its answers by a fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud
from product import event, interface_of, invoke, settings, tagged

product.need_a_build()

README = (product.ROOT / "README.md").read_text()
INTERFACES, INSTANCES = "ec2:DescribeNetworkInterfaces", "ec2:DescribeInstances"


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    out = product.create(cloud, product.template(cloud))
    product.deaf(cloud)
    return SimpleNamespace(out=out, function=out["ReconcileFunction"])


class Place:
    """One interface, which is selected and could be mirrored, and ways to put something in its way."""

    def __init__(self, cloud: Cloud, stack: SimpleNamespace):
        self.cloud, self.stack, self.ec2 = cloud, stack, cloud.client("ec2")

    def launched(self, **more: Any) -> str:
        self.instance = self.cloud.run_instance(**tagged(), **more)
        self.id = self.instance["InstanceId"]
        return interface_of(self.instance)

    def alone(self, **more: Any) -> str:
        tags = [{"ResourceType": "network-interface", "Tags": [{"Key": "Mirror", "Value": "true"}]}]
        made = self.ec2.create_network_interface(
            SubnetId=self.cloud.subnets()[0], TagSpecifications=tags, **more
        )["NetworkInterface"]  # fmt: skip
        return made["NetworkInterfaceId"]

    def foreign(self, eni: str, *numbers: int) -> None:
        for number in numbers:
            self.ec2.create_traffic_mirror_session(
                NetworkInterfaceId=eni, TrafficMirrorTargetId=self.stack.out["MirrorTargetId"],
                TrafficMirrorFilterId=self.stack.out["MirrorFilterId"], SessionNumber=number,
            )  # fmt: skip

    @contextmanager
    def set(self, **variables: str) -> Iterator[None]:
        before = settings(self.cloud, self.stack.function, **{f"MIRRORFLEET_{k}": v for k, v in variables.items()})
        try:
            yield
        finally:
            self.cloud.client("lambda").update_function_configuration(
                FunctionName=self.stack.function, Environment={"Variables": before}
            )

    @contextmanager
    def seen(self, call: str, *changes: tuple[str, str]) -> Iterator[None]:
        faults = [{"do": "rewrite", "times": 0, "call": call, "old": old, "new": new} for old, new in changes]
        # A process does not ask at once again what it has just been told.
        product.anew(self.cloud, self.stack.function)
        with self.cloud.faults(*faults):
            yield

    # -- one for each reason: what is asked about, while it holds --------------------------------------------------

    @contextmanager
    def mirroring_off(self) -> Iterator[str]:
        with self.set(MIRRORING="off"):
            yield self.launched()

    @contextmanager
    def not_attached(self) -> Iterator[str]:
        yield self.alone()

    @contextmanager
    def changing(self) -> Iterator[str]:
        eni = self.launched()
        with self.seen(INTERFACES, ("<status>in-use<", "<status>detaching<")):
            yield eni

    @contextmanager
    def instance_stopped(self) -> Iterator[str]:
        eni = self.launched()
        self.ec2.stop_instances(InstanceIds=[self.id])
        yield eni

    @contextmanager
    def instance_unknown(self) -> Iterator[str]:
        eni = self.launched()
        with self.seen(INSTANCES, (f"<instanceId>{self.id}<", "<instanceId>i-00000000<")):
            yield eni

    @contextmanager
    def interface_type(self) -> Iterator[str]:
        eni = self.launched()
        with self.seen(INTERFACES, ("<interfaceType>interface<", "<interfaceType>trunk<")):
            yield eni

    @contextmanager
    def requester_managed(self) -> Iterator[str]:
        eni = self.alone(Description="Interface for a service")
        with self.seen(INTERFACES, ("<requesterManaged>false<", "<requesterManaged>true<")):
            yield eni

    @contextmanager
    def load_balancer(self) -> Iterator[str]:
        eni = self.alone(Description="ELB app/web/50dc6c495c0c9188")
        with self.seen(INTERFACES, ("<requesterManaged>false<", "<requesterManaged>true<")):
            yield eni

    @contextmanager
    def mirror_target(self) -> Iterator[str]:
        eni = self.launched()
        made = self.ec2.create_traffic_mirror_target(NetworkInterfaceId=eni)["TrafficMirrorTarget"]
        product.anew(self.cloud, self.stack.function)  # targets are listed only now and then
        yield eni
        self.ec2.delete_traffic_mirror_target(TrafficMirrorTargetId=made["TrafficMirrorTargetId"])

    @contextmanager
    def stack_leaving(self) -> Iterator[str]:
        eni = self.launched()
        with self.seen("cloudformation:DescribeStacks", (">CREATE_COMPLETE<", ">DELETE_IN_PROGRESS<")):
            yield eni

    @contextmanager
    def refused(self) -> Iterator[str]:
        eni = self.launched(InstanceType="t2.micro")
        answer = invoke(self.cloud, self.stack.function, event("scheduled", ""))
        assert "NetworkInterfaceNotSupported" in {f["eni"]: f["error"] for f in answer["failed"]}[eni]
        yield eni

    @contextmanager
    def ipv6_only(self) -> Iterator[str]:
        eni = self.launched()
        address = self.instance["PrivateIpAddress"]
        with self.seen(INTERFACES, (f">{address}<", "><"), ("<publicIp>", "<publicIp>none")):
            yield eni

    @contextmanager
    def own_interface(self) -> Iterator[str]:
        shown = self.cloud.lab("network")["instances"]
        own = next(i for i in shown if i["asg"] == self.stack.out["RebuilderGroup"])
        self.ec2.create_tags(Resources=[own["id"]], Tags=[{"Key": "Mirror", "Value": "true"}])
        yield own["enis"][0]["id"]

    @contextmanager
    def analyzer_interface(self) -> Iterator[str]:
        eni = self.launched()
        with self.set(ANALYZER_URL=f"http://{self.instance['PrivateIpAddress']}:8080"):
            yield eni

    @contextmanager
    def analyzer_unresolved(self) -> Iterator[str]:
        with self.set(ANALYZER_URL="http://waf.invalid:8080"):
            yield self.launched()

    @contextmanager
    def interface_full(self) -> Iterator[str]:
        eni = self.launched()
        self.foreign(eni, 1, 2, 3)
        yield eni

    @contextmanager
    def no_free_number(self) -> Iterator[str]:
        eni = self.launched()
        self.foreign(eni, 32766)
        with self.set(SESSION_NUMBER_BASE="32766"):
            yield eni

    @contextmanager
    def account_quota(self) -> Iterator[str]:
        with self.set(SESSION_HEADROOM="10000"):
            yield self.launched()


EXPLAINED = [name for name, held in vars(Place).items() if hasattr(held, "__wrapped__") and name not in ("set", "seen")]
IN_PASSING = ["interface_gone", "left_to_sweep"]
"""Reasons that come up only while a plan is carried out."""


def general(text: str) -> str:
    """With the ids of the documentation in place of those of this run."""
    return re.sub(r"\b(eni|i|tms)-[0-9a-f]{8,17}\b", r"\1-0123456789abcdef0", text)


def in_the_readme(answer: Any) -> None:
    """As the function wrote it, ids apart."""
    line = general(json.dumps(answer, separators=(",", ":"), ensure_ascii=False))
    assert f"\n{line}\n" in README, f"README.md lacks the line\n{line}"


def test_the_dry_run_of_the_readme_is_real(cloud: Cloud, stack: SimpleNamespace) -> None:
    """The first of all: one interface that would be mirrored, and one that would not."""
    place = Place(cloud, stack)
    coming = place.launched()
    with place.instance_stopped() as stopped:
        answer = invoke(cloud, stack.function, {"dry_run": True})
    assert [c["eni"] for c in answer["created"]] == [coming]
    assert answer["skipped"] == [{"eni": stopped, "reason": "instance_stopped"}]
    in_the_readme(answer)


@pytest.mark.parametrize("reason", EXPLAINED)
def test_explain_and_the_dry_run_name_the_reason(cloud: Cloud, stack: SimpleNamespace, reason: str) -> None:
    place = Place(cloud, stack)
    arrange: Callable[[], Any] = getattr(place, reason)
    with arrange() as eni:
        before = product.sessions(cloud)
        (answer,) = invoke(cloud, stack.function, {"explain": eni})
        planned = invoke(cloud, stack.function, {"dry_run": True})
        assert (answer["eni"], answer["mirrored"], answer["reason"]) == (eni, False, reason)
        assert {"eni": eni, "reason": reason} in planned["skipped"]
        assert eni not in {c["eni"] for c in planned["created"]}
        assert product.sessions(cloud) == before, "nothing was done"
    in_the_readme(answer)


def test_explain_tells_of_what_is_mirrored_or_will_be_or_is_not_meant_to(cloud: Cloud, stack: SimpleNamespace) -> None:
    place = Place(cloud, stack)
    eni = place.launched()
    (coming,) = invoke(cloud, stack.function, {"explain": place.id})
    assert (coming["eni"], coming["mirrored"], coming["reason"]) == (eni, False, "selected")
    invoke(cloud, stack.function, event("scheduled", ""))
    (there,) = invoke(cloud, stack.function, {"explain": place.id})
    assert (there["mirrored"], there["reason"]) == (True, "selected")
    other = interface_of(cloud.run_instance(**tagged("false")))
    (unselected,) = invoke(cloud, stack.function, {"explain": other})
    assert (unselected["mirrored"], unselected["reason"]) == (False, "not_selected")
    with place.set(SELECTION="tag:Mirror=true, !tag:Name=db*"):
        database = place.launched()
        cloud.client("ec2").create_tags(Resources=[place.id], Tags=[{"Key": "Name", "Value": "db1"}])
        (excluded,) = invoke(cloud, stack.function, {"explain": database})
        assert excluded["reason"] == "excluded"
    (nothing,) = invoke(cloud, stack.function, {"explain": "eni-0123456789abcdef0"})
    assert nothing["reason"] == "not_found"
    for answer in (coming, there, unselected, excluded, nothing):
        in_the_readme(answer)


def test_a_sweep_without_time_leaves_the_rest_to_the_next(cloud: Cloud, stack: SimpleNamespace) -> None:
    place = Place(cloud, stack)
    eni = place.launched()
    with place.set(MUTATIONS_PER_SECOND="0.001"):
        answer = invoke(cloud, stack.function, event("scheduled", ""))
    (skipped,) = [s for s in answer["skipped"] if s["eni"] == eni]
    assert skipped["reason"] == "left_to_sweep"
    in_the_readme(skipped)
    assert product.sessions(cloud, eni) == []


def test_every_reason_of_the_readme_is_one_that_a_test_brings_about() -> None:
    table = README.split("is skipped for one of these reasons:")[1].split("###")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert told == {*EXPLAINED, *IN_PASSING}

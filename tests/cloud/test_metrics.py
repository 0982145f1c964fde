"""The real `rebuilder publish` beside a real rebuilder: what reaches the account is what was counted. And what the real
functions tell, in the words in which the dashboard asks for it."""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import product
import pytest
import rebuilders
from conftest import TESTS, Cloud, free_port, wait_until

product.need_a_build()

sys.path.insert(0, str(TESTS / "template"))
import dashboard  # noqa: E402
import stack  # noqa: E402
import test_template_watch as watch  # noqa: E402

REFUSED = b"HTTP/1.1 463 \r\nServer: awselb/2.0\r\nContent-Length: 0\r\n\r\n"


def requests(count: int) -> list[bytes]:
    return [f"GET /{n} HTTP/1.1\r\nHost: shop.example\r\nX-Pad: {'p' * 300}\r\n\r\n".encode() for n in range(count)]


def test_what_a_rebuilder_counts_is_what_the_account_has(cloud: Cloud, tmp_path: Path) -> None:
    rebuilders.capture(tmp_path / "load.pcap", requests(200))
    with rebuilders.analyser(REFUSED) as port:
        rebuilder = rebuilders.Rebuilder(port)
        publisher = rebuilder.publisher(cloud, "alpha", "1s", tmp_path / "state")
        rebuilder.replay(tmp_path / "load.pcap")
        wait_until(lambda: rebuilder.counted("rebuilder_requests_total") == 200, 30, "all requests to have an outcome")
        wait_until(lambda: total(cloud, "alpha", "RequestsDelivered4xx") == 200, 30, "them to be put")
        # It ends, and another one goes on: nothing is put twice, and nothing left out.
        publisher.terminate()
        assert publisher.wait(20) == 0
        publisher = rebuilder.publisher(cloud, "alpha", "1s", tmp_path / "state")
        rebuilder.replay(tmp_path / "load.pcap")
        wait_until(lambda: rebuilder.counted("rebuilder_packets_total") == 800, 30, "all packets to be read")
        wait_until(lambda: total(cloud, "alpha", "Packets") == 800, 30, "them to be put")
        publisher.terminate()
        publisher.wait(20)
        names = {d["name"] for d in rebuilders.put(cloud, "alpha")}
        # Each metric of the list, and no other. Of the Application Load Balancer's own answers, by their mark.
        assert names == watch.published()
        assert total(cloud, "alpha", "BalancerAnswers463") == 200
        assert total(cloud, "alpha", "RequestsDelivered4xx") == rebuilder.counted("rebuilder_requests_total") == 200
        assert total(cloud, "alpha", "Bytes") == rebuilder.counted("rebuilder_received_bytes_total") > 0
        assert total(cloud, "alpha", "Restarts") == total(cloud, "alpha", "PacketsDropped") == 0
        loads = [d for d in rebuilders.put(cloud, "alpha") if d["name"] == "Load"]
        assert all(0 <= d["min"] <= d["sum"] / d["count"] <= d["max"] <= 100 for d in loads)
        rebuilder.stop()


def test_what_could_not_be_put_is_put_later(tmp_path: Path) -> None:
    rebuilders.capture(tmp_path / "load.pcap", requests(50))
    port = free_port()
    nobody = SimpleNamespace(endpoint=f"http://localhost:{port}")
    with rebuilders.analyser(REFUSED) as analyser:
        rebuilder = rebuilders.Rebuilder(analyser)
        publisher = rebuilder.publisher(nobody, "beta", "1s", tmp_path / "state")
        rebuilder.replay(tmp_path / "load.pcap")
        wait_until(lambda: rebuilder.counted("rebuilder_packets_total") == 100, 30, "all packets to be read")
        # A put has failed when it is remembered what is left.
        state = tmp_path / "state"
        wait_until(lambda: state.exists() and '"Packets":100' in state.read_text(), 60, "a put to have failed")
        account = Cloud(port, tmp_path)
        try:
            wait_until(lambda: total(account, "beta", "Packets") == 100, 30, "them to be put")
            first = next(d for d in rebuilders.put(account, "beta") if d["name"] == "Heartbeat")
            # Seconds that nobody was told of stay untold, or the alarm on them would be deceived afterwards.
            assert first["sum"] < 10
        finally:
            publisher.terminate()
            publisher.wait(20)
            account.stop()
        rebuilder.stop()


def test_the_readme_names_every_flag() -> None:
    said = subprocess.run([rebuilders.PROGRAM, "publish", "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"--(\w+)", said)) - {"help"}
    readme = (stack.ROOT / "rebuilder" / "README.md").read_text().split("\n## rebuilder publish\n")[1]
    assert flags == set(re.findall(r"^\| `--(\w+) ", readme, re.M))
    assert all(f"REBUILDER_PUBLISH_{flag.upper()}" in said for flag in flags)


def total(cloud: Cloud, stack_name: str, metric: str) -> float:
    return sum(float(d["sum"]) for d in rebuilders.put(cloud, stack_name) if d["name"] == metric)


# ---- What the functions tell -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(cloud: Cloud) -> dict[str, set[frozenset[str]]]:
    """Metric -> its sets of dimensions, out of the lines that attach, reconcile and drain wrote."""
    product.deploy(cloud, Selection="tag:Mirror=true")
    outputs = product.outputs(cloud)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Mirror", "Value": "true"}]}]
    cloud.run_instance(TagSpecifications=tags)
    elb = cloud.client("elbv2")
    (targets,) = [g["TargetGroupArn"] for g in elb.describe_target_groups()["TargetGroups"]]
    soon = {"Key": "deregistration_delay.timeout_seconds", "Value": "1"}
    elb.modify_target_group_attributes(TargetGroupArn=targets, Attributes=[soon])
    for rebuilders_wanted in (3, 2):
        cloud.client("autoscaling").set_desired_capacity(
            AutoScalingGroupName=outputs["RebuilderGroup"], DesiredCapacity=rebuilders_wanted
        )
    names = {f: outputs[f"{f}Function"].rsplit(":", 1)[1] for f in ("Attach", "Reconcile", "Drain")}

    def lines() -> dict[str, set[frozenset[str]]]:
        found: dict[str, set[frozenset[str]]] = collections.defaultdict(set)
        for name in names.values():
            for line in cloud.lab(f"logs/{name}").splitlines():
                if '"_aws"' in line and line.startswith("{"):
                    for directive in json.loads(line)["_aws"]["CloudWatchMetrics"]:
                        assert directive["Namespace"] == "mirrorfleet"
                        for metric in directive["Metrics"]:
                            found[metric["Name"]] |= {frozenset(d) for d in directive["Dimensions"]}
        return found

    # First who is woken by the launch, or the sweep would make the session.
    wait_until(lambda: "SessionLatency" in lines(), 60, "attach to have told")
    cloud.lab("tick", "POST")
    wait_until(lambda: {"QuotaHeadroom", "DrainTime"} <= lines().keys(), 60, "sweep and drain to have told")
    return lines()


def test_every_metric_of_the_functions_that_is_named_is_told_with_these_dimensions(told) -> None:
    asked = {(n, d) for _, space, n, d in watch.named(stack.Evaluated()) if space == "mirrorfleet" and "Function" in d}
    # Told only where there is one, which nothing here brings about; its line is tested in functions/mirror.
    asked -= {("InterfacesSkippedByReason", frozenset({"Stack", "Function", "Reason"}))}
    assert {(n, d) for n, d in asked if d not in told.get(n, set())} == set()


def test_every_metric_that_the_functions_tell_is_on_the_dashboard_or_in_the_readme(told) -> None:
    readme = (stack.ROOT / "README.md").read_text()
    seen = {n for _, space, n, _ in dashboard.named(stack.Evaluated()) if space == "mirrorfleet"}
    assert {n for n in told if n not in seen and f"`{n}`" not in readme} == set()

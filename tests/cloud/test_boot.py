"""The user data of the deployed launch template, run for real on hosts of the lab, up to the signal."""

from __future__ import annotations

import base64
import io
import socket
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labhost
import product
import pytest
from conftest import Cloud, wait_until
from labhost import INSIDE, OUTSIDE, Analyser, Host

product.need_a_build()
labhost.need_namespaces()

LAYER = f"{product.STACK}-rebuilder"
CAP_NET_RAW = 1 << 13


@pytest.fixture(scope="module")
def deploying(cloud: Cloud) -> str:
    """The stack's ARN, while CloudFormation waits for the signals of its two instances."""
    cloud.lab("signals", "POST", {"wait": True})
    source = product.template(cloud)
    cloud_formation = cloud.client("cloudformation")
    stack = product.begin(cloud, source, AnalyzerUrl=f"http://{OUTSIDE}:8080", TrustedProxyCidrs="10.0.0.0/8")
    assert cloud_formation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"] == "CREATE_IN_PROGRESS"
    return stack


@pytest.fixture(scope="module")
def instances(cloud: Cloud, deploying: str) -> list[str]:
    def running() -> list[str]:
        groups = cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        return [i["InstanceId"] for g in groups for i in g["Instances"]]

    return wait_until(lambda: len(running()) == 2 and running(), 60, "the group's instances")


@pytest.fixture(scope="module")
def launched(cloud: Cloud, instances: list[str]) -> dict[str, Any]:
    """What an instance is launched with."""
    ec2 = cloud.client("ec2")
    (template,) = ec2.describe_launch_templates()["LaunchTemplates"]
    (version,) = ec2.describe_launch_template_versions(
        LaunchTemplateId=template["LaunchTemplateId"], Versions=["$Latest"]
    )["LaunchTemplateVersions"]
    return version["LaunchTemplateData"]


@pytest.fixture(scope="module")
def user_data(launched: dict[str, Any]) -> str:
    return base64.b64decode(launched["UserData"]).decode()


@pytest.fixture(scope="module")
def role(cloud: Cloud, launched: dict[str, Any]) -> str:
    name = launched["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1]
    (held,) = cloud.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    return held["RoleName"]


@pytest.fixture
def host(cloud: Cloud, tmp_path: Path, instances: list[str], role: str) -> Iterator[Host]:
    """For what fails: with an id that the group does not know."""
    with labhost.booted(tmp_path, cloud, "i-00000000000000bad", role) as made:
        yield made


def signals(cloud: Cloud, instance: str) -> list[tuple[str, bool]]:
    return [(s["status"], s["taken"]) for s in cloud.lab("signals")["signals"] if s["id"] == instance]


# ---- What an instance does ---------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mirrored(seq: int, flags: int, payload: bytes) -> bytes:
    """A VXLAN datagram with a segment of the connection 10.1.2.3:50000 -> 10.1.2.4:80 (RFC 7348, RFC 9293)."""
    addresses = socket.inet_aton("10.1.2.3") + socket.inet_aton("10.1.2.4")
    tcp = struct.pack("!HHIIBBHHH", 50000, 80, seq, 0, 5 << 4, flags, 65535, 0, 0) + payload
    whole = checksum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", whole) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return struct.pack("!II", 0x08000000, 4789 << 8) + bytes.fromhex("020000000002" "020000000001" "0800") + ip + tcp


def figures_reach_the_account(cloud: Cloud, host: Host) -> None:
    """By a service of their own, under the instance's role; the rebuilder has no way to the credentials."""
    unit = "rebuilder-metrics.service"
    assert host.shown(unit, "ActiveState") == "active"
    with (host.root / "etc/mirrorfleet/metrics.env").open("a") as settings:
        # What tells an SDK that this is no region of AWS; and not to wait for half a minute.
        settings.write(f"AWS_ENDPOINT_URL={cloud.endpoint}\nREBUILDER_PUBLISH_EVERY=1s\n")
    assert host.run("systemctl", "restart", unit).returncode == 0
    status = host.process(unit)
    assert 61184 <= int(status["Uid"].split()[0]) <= 65519
    assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(host.shown(unit, "MemoryMax")) == 96 << 20

    def told(metric: str) -> float:
        data = [d for d in cloud.lab("metrics")["data"] if d["dimensions"] == {"Stack": product.STACK}]
        return sum(d["sum"] for d in data if d["name"] == metric)

    wait_until(lambda: told("RequestsDelivered2xx") == 1, 60, "the request's outcome to be put")
    assert told("Packets") == 1 + 3  # a SYN, and three segments with the request


def test_an_instance_takes_traffic_under_the_units_user_and_says_so(
    cloud: Cloud, deploying: str, instances: list[str], user_data: str, role: str, tmp_path: Path
) -> None:
    instance = instances[0]
    with labhost.booted(tmp_path / "first", cloud, instance, role) as host:
        code, said = host.first_boot(user_data)
        assert code == 0, said + host.journal("rebuilder.service")
        assert signals(cloud, instance) == [("SUCCESS", True)]
        assert host.health() == 200
        assert "rebuilder setup: eth0: GRO is off" in said
        assert "net.ipv4.ip_local_port_range = 1024\t65535" in said

        # The self-test came before the service, both as the same user.
        log = host.journal("rebuilder.service")
        assert log.index("self-test:") < log.index(" ready ")
        assert "whole requests" in log and 'receive="ring"' in log

        status = host.process("rebuilder.service")
        user = int(status["Uid"].split()[0])
        assert 61184 <= user <= 65519, "the range of dynamic users, systemd.exec(5)"
        assert set(status["Uid"].split() + status["Gid"].split()) == {str(user)}
        assert status["Groups"] in ("", str(user))
        for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
            assert int(status[kind], 16) == CAP_NET_RAW, kind
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

        memory = int(host.shown("rebuilder.service", "MemoryMax"))
        total = next(int(x.split()[1]) for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
        assert memory == pytest.approx(0.7 * total * 1024, rel=0.02)
        limits = (host.root / "proc" / host.shown("rebuilder.service", "MainPID") / "limits").read_text()
        values = {x[:25].strip(): x[25:].split()[0] for x in limits.splitlines()}
        assert values["Max core file size"] == "0"
        # As far as this machine lets anybody raise it.
        hard = int((host.root / "proc/1/limits").read_text().split("Max open files")[1].split()[1])
        assert int(values["Max open files"]) == min(65536, hard)

        # A mirrored request comes over the wire, and out at the analyser.
        analyser = Analyser(labhost.listener(host.vpc, OUTSIDE, 8080))
        wire = labhost.in_network(host.vpc, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        body = bytes(range(256)) * 8
        head = b"POST /login?a=1 HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 198.51.100.7\r\n"
        head += b"Content-Length: 2048\r\n"
        captured = head + b"\r\n" + body
        wire.sendto(mirrored(1000, 0x02, b""), (INSIDE, 4789))
        for at in range(0, len(captured), 1000):
            wire.sendto(mirrored(1001 + at, 0x10, captured[at : at + 1000]), (INSIDE, 4789))
        wait_until(lambda: analyser.requests, 20, "the request")
        added = (
            b"X-Forwarded-For: 198.51.100.7\r\nX-Real-IP: 198.51.100.7\r\nX-Server-Addr: 10.1.2.4\r\nX-Server-Port: 80\r\n"
            b"X-Mirror-Flags: client-xff\r\n"
        )
        assert analyser.requests == [head + added + b"\r\n" + body]

        figures_reach_the_account(cloud, host)

        # What runs as the service reaches no metadata service, where the instance's credentials are; the host does.
        ask = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://{labhost.METADATA}/latest/meta-data/instance-id"
        assert host.run("sh", "-c", ask).stdout == "401"
        group = "for g in /sys/fs/cgroup/unified /sys/fs/cgroup; do test -d $g/system.slice && break; done"
        enter = f"{group}; echo $$ >$g/system.slice/rebuilder.service/cgroup.procs && exec {ask}"
        assert host.run("sh", "-c", enter).stdout == "000"

    # The group's other instance, on a host of its own.
    assert product.status(cloud, deploying) == "CREATE_IN_PROGRESS"
    with labhost.booted(tmp_path / "second", cloud, instances[1], role) as host:
        code, said = host.first_boot(user_data)
        assert code == 0, said
        wait_until(lambda: product.status(cloud, deploying) == "CREATE_COMPLETE", 60, "the stack")
        # It may be run again: the service that runs is replaced. And nobody waits for a signal any more, which is no failure
        # of an instance.
        code, said = host.first_boot(user_data)
        assert code == 0, said
        assert "CloudFormation took no signal" in said
    assert signals(cloud, instances[1]) == [("SUCCESS", True), ("SUCCESS", False)]


# ---- What fails is signalled, and the log says why ---------------------------------------------------------------------


def other_version(cloud: Cloud, user_data: str, change: dict[str, tuple[bytes, bytes]]) -> str:
    """User data that names a version of the layer with changed files."""
    held = io.BytesIO()
    built = product.BUILD / "RebuilderLayer"
    with zipfile.ZipFile(held, "w") as package:
        for file in sorted(f for f in built.rglob("*") if f.is_file()):
            name, content = str(file.relative_to(built)), file.read_bytes()
            if name in change:
                old, new = change[name]
                assert content.count(old) == 1
                content = content.replace(old, new)
            package.writestr(name, content)
    arn = cloud.client("lambda").publish_layer_version(LayerName=LAYER, Content={"ZipFile": held.getvalue()})[
        "LayerVersionArn"
    ]
    first = f"{arn.rsplit(':', 1)[0]}:1"
    assert first in user_data
    return user_data.replace(first, arn)


def fails(cloud: Cloud, host: Host, user_data: str) -> str:
    """What it says where it fails."""
    before = len(signals(cloud, "i-00000000000000bad"))
    code, said = host.first_boot(user_data)
    assert code != 0, said
    assert [status for status, _ in signals(cloud, "i-00000000000000bad")[before:]] == ["FAILURE"]
    return said


def test_a_damaged_download_is_never_run(cloud: Cloud, host: Host, user_data: str) -> None:
    cloud.lab("layer/", "POST", {"damage": True})
    try:
        said = fails(cloud, host, user_data)
    finally:
        cloud.lab("layer/", "POST", {"damage": False})
    assert said.count("the layer has SHA-256") == 4
    assert "FAILED while checking the layer" in said
    assert not (host.root / "opt/mirrorfleet").exists()


def test_a_program_for_the_other_processor_is_named(cloud: Cloud, host: Host, user_data: str) -> None:
    other = other_version(cloud, user_data, {"machine": (b"x86_64", b"aarch64")})
    said = fails(cloud, host, other)
    assert "the layer's program is for aarch64, and this instance is x86_64: name aarch64 types in InstanceTypes" in said
    assert "REBUILDER_ARCH=x86_64 sam build" in said


def test_a_sandbox_that_breaks_the_ring_is_found_before_the_service_runs(
    cloud: Cloud, host: Host, user_data: str
) -> None:
    other = other_version(cloud, user_data, {"service/rebuilder.service": (b"AF_NETLINK AF_PACKET\n", b"AF_NETLINK\n")})
    said = fails(cloud, host, other)
    assert "the service did not start" in said
    assert "rebuilder: self-test: starting: " in said and "packet socket" in said
    assert host.shown("rebuilder.service", "MainPID") == "0"


def test_no_secret_of_the_instance_is_in_what_it_says(cloud: Cloud, host: Host, user_data: str) -> None:
    # The address of a download carries its own permission, and the role's keys are the instance's.
    said = fails(cloud, host, other_version(cloud, user_data, {"machine": (b"x86_64", b"aarch64")}))
    assert "/_lab/layer/" not in said and "ASIA" not in said

"""Starts the emulator once a module, on a free port, and gives clients for it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import unused
from botocore.config import Config

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))
REGION = "us-east-1"
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}


USED: set[tuple[str, str, str]] = set()
"""(policy, Sid, action) of each permission that allowed a call in an emulator that has ended."""
RAN: set[str] = set()
"""Test modules whose emulator has ended."""


class Cloud:
    """A running emulator."""

    def __init__(self, port: int, directory: Path, *arguments: str):
        self.port = port
        self.endpoint = f"http://localhost:{port}"
        self.log = directory / "emulator.log"
        self.may_deny = False
        """Whether it is part of the tests that a role does not allow something."""
        self._clients: dict[str, Any] = {}
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(directory)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "emulator", "--port", str(port), "--log", str(self.log), *arguments], env=environment
        )
        wait_until(self._answers, 120, "the emulator to start")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the emulator ended: {self.log.read_text()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def client(self, service: str) -> Any:
        """A boto3 client that never repeats a call by itself."""
        if service not in self._clients:
            config = Config(retries={"total_max_attempts": 1}, read_timeout=60, max_pool_connections=50)
            self._clients[service] = boto3.client(service, endpoint_url=self.endpoint, config=config, **KEYS)
        return self._clients[service]

    def lab(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/_lab/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers["Content-Type"] else body.decode()

    def stop(self) -> None:
        """Ends it, and looks at what its functions did altogether."""
        report, calls = self.lab("iam"), self.lab("calls")["calls"]
        self.process.terminate()
        self.process.wait(15)
        USED.update(tuple(p[:3]) for p in report["used"])
        assert report["errors"] == [], "calls or policies that the emulator's IAM does not know"
        # A policy that allows by tag does not allow what is done to a session that is gone.
        gone = {c["session"] for c in calls if c["exists"] is False}
        denied = [d for d in report["denied"] if d["resource"].rsplit("/", 1)[-1] not in gone]
        assert self.may_deny or denied == [], "calls that a role does not allow"
        # Asked for at all, whether or not IAM would have denied it.
        others = [c for c in calls if c["stack"] and c["exists"] and c["tag"] != c["stack"]]
        assert others == [], "a function asked to change or delete a session that is not its stack's"

    @contextmanager
    def faults(self, *faults: dict[str, Any]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        """Puts faults (tests/emulator/faults.py) in force meanwhile. Gives a look at them; each must have struck."""
        self.lab("faults", "POST", list(faults))
        try:
            yield lambda: self.lab("faults")["faults"]
        finally:
            ended = self.lab("faults", "DELETE")["faults"]
        assert all(fault["struck"] for fault in ended), ended

    def calls(self, function: str | None = None) -> list[dict[str, Any]]:
        """What functions asked of the account, in order."""
        return [c for c in self.lab("calls")["calls"] if function in (None, c["function"])]

    # -- what many tests need --------------------------------------------------------------------------------------

    def subnets(self) -> list[str]:
        return [s["SubnetId"] for s in self.client("ec2").describe_subnets()["Subnets"]]

    def run_instance(self, **more: Any) -> dict[str, Any]:
        arguments = {"ImageId": "ami-12345678", "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1, **more}
        return self.client("ec2").run_instances(**arguments)["Instances"][0]

    def interface(self) -> str:
        """A new interface that belongs to no instance."""
        created = self.client("ec2").create_network_interface(SubnetId=self.subnets()[0])
        return created["NetworkInterface"]["NetworkInterfaceId"]

    def balancer(self, name: str = "nlb") -> str:
        created = self.client("elbv2").create_load_balancer(Name=name, Subnets=self.subnets()[:2], Type="network")
        return created["LoadBalancers"][0]["LoadBalancerArn"]

    def create_function(self, name: str, code: str, **more: Any) -> str:
        """A function whose bootstrap is the given script. Gives its ARN."""
        role = f"role-{name}"
        iam = self.client("iam")
        role_arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        everything = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
        }
        iam.put_role_policy(RoleName=role, PolicyName="all", PolicyDocument=json.dumps(everything))
        arguments = {
            "FunctionName": name,
            "Runtime": "provided.al2023",
            "Handler": "bootstrap",
            "Role": role_arn,
            "Code": {"ZipFile": package(code)},
            "Timeout": 10,
            **more,
        }
        return self.client("lambda").create_function(**arguments)["FunctionArn"]

    def invoke(self, name: str, event: Any) -> Any:
        return json.loads(self.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event))["Payload"].read())


def package(code: str) -> bytes:
    """A function's zip with ``code`` as its bootstrap."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, code)
    return held.getvalue()


RUNTIME = f'''#!{sys.executable}
"""A function's bootstrap for tests: `handle(event, context)` is appended below, and called for each event."""
import json, os, sys, time, urllib.request

API = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime"

def post(path, body):
    urllib.request.urlopen(urllib.request.Request(API + path, json.dumps(body).encode(), method="POST")).read()

def serve(handle):
    while True:
        with urllib.request.urlopen(API + "/invocation/next") as answer:
            event, context = json.loads(answer.read()), dict(answer.headers.items())
        request = context["Lambda-Runtime-Aws-Request-Id"]
        try:
            result = handle(event, context)
        except Exception as failed:
            post(f"/invocation/{{request}}/error", {{"errorType": type(failed).__name__, "errorMessage": str(failed)}})
        else:
            post(f"/invocation/{{request}}/response", result)
'''


def function(body: str) -> str:
    """A bootstrap whose ``handle(event, context)`` is ``body``."""
    return f"{RUNTIME}\n{body}\nserve(handle)\n"


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits for something to become true, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    started = Cloud(free_port(), tmp_path_factory.mktemp("emulator"))
    yield started
    started.stop()
    RAN.add(request.module.__name__)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What all tests together have to show, and no single one can. A worker gives its part to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput.update(used=sorted(USED), ran=sorted(RAN))
        return
    unused.judge(session, USED, RAN)


def pytest_testnodedown(node: Any) -> None:
    """The main process, of several, gets a worker's part."""
    told = getattr(node, "workeroutput", {})
    USED.update(tuple(permission) for permission in told.get("used", []))
    RAN.update(told.get("ran", []))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What did not run is named, however quiet the run was asked to be."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}")
    for line in unused.SAID:
        terminalreporter.write_line(line)

"""A host of the lab that is all an instance's: root, processes, network, systemd, metadata service, a way to the account.

Its root is an overlay of this machine's, so what runs there is Debian's systemd, curl, OpenSSL and the AWS CLI of the test
environment, not Amazon Linux's. Two things are not as on an instance: ``sleep`` is ten times as fast (the boot script waits
for retries), and what the kernel allows no network namespace to set (``net.core.rmem_max``) stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import Cloud, wait_until

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
METADATA = "169.254.169.254"
NETWORK = "10.77.0"
OUTSIDE, INSIDE = f"{NETWORK}.1", f"{NETWORK}.2"
"""Addresses in the VPC: everybody else's, and the host's."""
GROUPS = Path("/sys/fs/cgroup")


def need_namespaces() -> None:
    """Skips, loudly, where no such host can be made."""
    missing = [p for p in ("unshare", "nsenter", "ip", "ethtool", "openssl", "curl", "aws") if shutil.which(p) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not Path("/lib/systemd/systemd").exists():
        missing.append("systemd")
    if "overlay" not in Path("/proc/filesystems").read_text():
        missing.append("overlayfs")
    if missing:
        pytest.skip(f"NOT RUN: a host of the lab needs {', '.join(missing)}", allow_module_level=True)


def in_network(pid: int, make: Callable[[], T]) -> T:
    """What ``make`` gives in a process's network namespace. A socket stays in the one in which it was made."""
    given: list[T] = []

    def run() -> None:
        with open(f"/proc/{pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        given.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert given, "it failed in the other namespace; the reason stands above"
    return given[0]


def listener(pid: int, address: str, port: int) -> socket.socket:
    return in_network(pid, lambda: socket.create_server((address, port)))


class Server(http.server.ThreadingHTTPServer):
    """On a socket that is there already."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, handler: type[http.server.BaseHTTPRequestHandler]):
        super().__init__(listening.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def server_bind(self) -> None:
        raise AssertionError("bound already")


def metadata_service(listening: socket.socket, instance: str, role: str, credentials: Callable[[], Any]) -> Server:
    """IMDSv2: whoever shows no token gets nothing. Source: EC2 user guide, "Instance metadata"."""
    paths = {
        "/latest/meta-data/instance-id": lambda: instance,
        "/latest/meta-data/placement/region": lambda: "us-east-1",
        "/latest/meta-data/placement/availability-zone": lambda: "us-east-1a",
        "/latest/meta-data/iam/security-credentials/": lambda: role,
        f"/latest/meta-data/iam/security-credentials/{role}": lambda: json.dumps(credentials()),
    }
    tokens: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silent."""

        def reply(self, status: int, text: str = "", **headers: str) -> None:
            body = text.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            if self.path != "/latest/api/token" or not seconds:
                return self.reply(400)
            tokens.add(token := os.urandom(16).hex())
            return self.reply(200, token, X_aws_ec2_metadata_token_ttl_seconds=seconds)

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in tokens:
                return self.reply(401)
            found = paths.get(self.path)
            return self.reply(200, found()) if found else self.reply(404)

    return Server(listening, Handler)


class Analyser:
    """Keeps each request as it came, and answers 200."""

    def __init__(self, listening: socket.socket):
        self.requests: list[bytes] = []
        self._listening = listening
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while line := stream.readline():
            request, length = line, 0
            while (line := stream.readline()) not in (b"\r\n", b""):
                request += line
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.requests.append(request + line + stream.read(length))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Host:
    """Booted, with its network; ``vpc`` is the network namespace of everybody else."""

    def __init__(self, directory: Path, cloud: Cloud, instance: str, role: str):
        self._closing = contextlib.ExitStack()
        try:
            self._boot(directory)
            self._connect()
            self._way_to_the_account(cloud)
            server = metadata_service(
                listener(self.pid, METADATA, 80), instance, role, lambda: cloud.lab(f"credentials/{role}", "POST")
            )
            self._closing.callback(server.server_close)
            self._closing.callback(server.shutdown)
            self.cloud = cloud
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closing.close()

    def _boot(self, directory: Path) -> None:
        name = f"mirrorfleet-lab-{os.getpid()}-{directory.name}"
        work = directory / "root"
        work.mkdir(parents=True)
        v2 = (GROUPS / "cgroup.controllers").exists()
        groups = [g / name for g in ([GROUPS] if v2 else [g for g in GROUPS.iterdir() if g.is_dir()])]

        def enter_groups() -> None:
            for group in groups:
                with contextlib.suppress(OSError):  # a cpuset takes nobody before it has processors
                    (group / "cgroup.procs").write_text(str(os.getpid()))

        for group in groups:
            with contextlib.suppress(FileExistsError):  # a link to one of the others
                group.mkdir()
        self._closing.callback(_remove_groups, groups)
        folders = sorted({sys.prefix, sys.base_prefix})
        unshare = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child=KILL",
             str(Path(__file__).with_name("boot-host")), str(work), *folders],
            preexec_fn=enter_groups, stdout=open(directory / "boot.log", "wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip

        def end() -> None:
            # The first process of a process namespace takes all others with it.
            with contextlib.suppress(AttributeError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            unshare.kill()
            unshare.wait()

        self._closing.callback(end)
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")

        def booted() -> bool:
            assert unshare.poll() is None, (directory / "boot.log").read_text()
            self.pid = int((children.read_text().split() or ["0"])[0])
            return self.pid != 0 and self.run("systemctl", "is-active", "--quiet", "lab.target").returncode == 0

        wait_until(booted, 60, "systemd")
        self.root = Path(f"/proc/{self.pid}/root")
        tools = self.root / "usr/local/bin"
        (tools / "aws").symlink_to(Path(sys.executable).parent / "aws")
        (tools / "sleep").write_text('#!/bin/sh\nexec /bin/sleep "$(echo "$1" | awk \'{ print $1 / 10 }\')"\n')
        (tools / "sleep").chmod(0o755)

    def _connect(self) -> None:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._closing.callback(holder.wait)
        self._closing.callback(holder.kill)
        self.vpc = holder.pid
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, 10, "a network namespace")
        for where, command in (
            (holder.pid, f"ip link add vpc0 type veth peer name eth0 netns {self.pid}"),
            (holder.pid, "ip link set lo up"),
            (holder.pid, f"ip address add {OUTSIDE}/24 dev vpc0"),
            (holder.pid, "ip link set vpc0 up"),
            (self.pid, "ip link set lo up"),
            (self.pid, f"ip address add {METADATA}/32 dev lo"),
            (self.pid, f"ip address add {INSIDE}/24 dev eth0"),
            (self.pid, "ip link set eth0 up"),
        ):
            subprocess.run(["nsenter", "-t", str(where), "--net", *command.split()], check=True)

    def _way_to_the_account(self, cloud: Cloud) -> None:
        """What a VPC endpoint is: the same address and port as out here leads to the account."""
        listening = listener(self.pid, "127.0.0.1", cloud.port)
        self._closing.callback(listening.close)

        def serve() -> None:
            while True:
                try:
                    inner, _ = listening.accept()
                except OSError:
                    return
                outer = socket.create_connection(("127.0.0.1", cloud.port))
                for pair in ((inner, outer), (outer, inner)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """As root on the host, with nothing of our environment."""
        enter = ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd"]
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        return subprocess.run(
            [*enter, *command], env={**clean, **environment}, capture_output=True, text=True, timeout=120, check=False
        )

    def first_boot(self, user_data: str) -> tuple[int, str]:
        """Runs user data as cloud-init does. Exit code and all that it said."""
        script = self.root / "var/tmp/part-001"
        script.write_text(user_data)
        script.chmod(0o700)
        # The one thing that tells the AWS CLI that this is no region of AWS.
        done = self.run("/bin/bash", "-c", "exec /var/tmp/part-001 2>&1", AWS_ENDPOINT_URL=self.cloud.endpoint)
        return done.returncode, done.stdout

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def shown(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()

    def process(self, unit: str) -> dict[str, str]:
        """/proc/PID/status of a service's main process."""
        text = (self.root / "proc" / self.shown(unit, "MainPID") / "status").read_text()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}

    def health(self) -> int:
        done = self.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9445/healthz")
        return int(done.stdout)


def _remove_groups(groups: list[Path]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [g for g in groups if g.exists() and not g.is_symlink()]
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # as long as a process ends in it
                    os.rmdir(folder)
        if not any(g.exists() for g in left):
            return
        time.sleep(0.05)


@contextlib.contextmanager
def booted(directory: Path, cloud: Cloud, instance: str, role: str) -> Iterator[Host]:
    host = Host(directory, cloud, instance, role)
    try:
        yield host
    finally:
        host.close()

"""Real rebuilders on this machine: the program of the built layer, a capture to send to it, an analyser, its publisher."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import KEYS, REGION, Cloud, free_port, wait_until
from product import BUILD

PROGRAM = Path(os.environ.get("REBUILDER_PUBLISHER_BIN") or BUILD / "RebuilderLayer" / "bin" / "rebuilder")
"""With the subcommand `publish`."""


def capture(path: Path, requests: list[bytes], each: int = 1) -> None:
    """A pcap file: a connection for each request, ``each`` packets with a part of it, only what the client sent."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        packets = 0
        for number, request in enumerate(requests):
            size = -(-len(request) // each)
            parts = [request[i : i + size] for i in range(0, len(request), size)]
            segments = [(1000, b"", 0x02)] + [(1001 + i * size, part, 0x18) for i, part in enumerate(parts)]
            for sequence, payload, flags in segments:
                frame = _frame(number, sequence, payload, flags)
                packets += 1
                file.write(struct.pack("<IIII", 1_700_000_000 + packets // 1000, packets % 1000, len(frame), len(frame)) + frame)


def _frame(number: int, sequence: int, payload: bytes, flags: int) -> bytes:
    source = socket.inet_aton(f"10.1.{number // 200}.{number % 200 + 1}")
    server = socket.inet_aton("10.2.0.1")
    tcp = struct.pack("!HHIIBBHHH", 40000 + number % 20000, 80, sequence, 0, 5 << 4, flags, 65535, 0, 0) + payload
    tcp = tcp[:16] + struct.pack("!H", _sum(source + server + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, source, server)
    ip = ip[:10] + struct.pack("!H", _sum(ip)) + ip[12:]
    return b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x08\0" + ip + tcp


def _sum(data: bytes) -> int:
    words = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return ~words & 0xFFFF


@contextmanager
def analyser(answer: bytes) -> Iterator[int]:
    """Answers each request that a head ends with the same bytes. Gives its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve(connection: socket.socket) -> None:
        with connection:
            left = b""
            while data := connection.recv(1 << 16):
                *heads, left = (left + data).split(b"\r\n\r\n")
                connection.sendall(answer * len(heads))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


class Rebuilder:
    """A rebuilder on loopback, with one worker and a socket: what it counts does not depend on who may have a ring."""

    def __init__(self, analyser_port: int, program: Path = PROGRAM):
        self.program, self.listen, self.admin = program, free_port(), free_port()
        self.process = subprocess.Popen(
            [program, "run", "--forward", f"http://127.0.0.1:{analyser_port}", "--listen", f"127.0.0.1:{self.listen}",
             "--admin", f"127.0.0.1:{self.admin}", "--workers", "1", "--receive", "socket", "--drain-timeout", "1s"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._ready, 30, "the rebuilder to be ready")

    def _ready(self) -> bool:
        try:
            return self.get("healthz") == "ready\n"
        except OSError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/{path}", timeout=5) as answer:
            return answer.read().decode()

    def counted(self, family: str) -> float:
        """The sum of a metric over its labels."""
        return sum(float(v) for v in re.findall(rf"^{family}(?:\{{.*\}})? (\S+)$", self.get("metrics"), re.M))

    def replay(self, file: Path, *arguments: str) -> None:
        command = [self.program, "replay", file, "--to", f"127.0.0.1:{self.listen}", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)

    def publisher(self, cloud: Cloud, stack: str, every: str, state: Path) -> subprocess.Popen[bytes]:
        environment = {
            "AWS_ENDPOINT_URL": cloud.endpoint, "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"], "AWS_SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"],
        }  # fmt: skip
        command = [self.program, "publish", "--stack", stack, "--admin", f"http://127.0.0.1:{self.admin}", "--every", every]
        return subprocess.Popen([*command, "--state", state], env=environment)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)


def put(cloud: Cloud, stack: str) -> list[dict[str, float | str]]:
    """Everything that was put for a stack, call by call and in order: name, count, sum, min, max, at."""
    return [d for d in cloud.lab("metrics")["data"] if d["dimensions"] == {"Stack": stack}]

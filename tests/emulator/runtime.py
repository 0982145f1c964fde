"""Lambda's side of a function: processes of its real ``bootstrap``, and the Runtime API that they talk to.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. An *environment* is one process with one Runtime API
server of its own; it handles one event at a time and is kept for the next one. A *pool* is all environments of one
function: two events at once get two environments. Nothing here knows moto.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

log = logging.getLogger("emulator.runtime")

API = "/2018-06-01/runtime"
INIT_TIMEOUT = 10.0
"""Seconds that a new environment may take until it asks for its first event, as on AWS."""
MAX_PAYLOAD = 6_291_556
"""Bytes of an answer (Lambda quotas: 6 MB)."""
MAX_LOG_TAIL = 4096
"""Bytes of log that Invoke gives back with LogType Tail."""
RESERVED_PREFIXES = ("AWS_LAMBDA_", "LAMBDA_")


@dataclass(frozen=True)
class Function:
    """What one environment is made of; a change of any field replaces the environments."""

    name: str
    arn: str
    region: str
    role: str
    """ARN of the role that its keys belong to."""
    version: str
    handler: str
    timeout: float
    memory: int
    code_sha: str
    variables: tuple[tuple[str, str], ...]
    code: bytes = field(repr=False, compare=False)
    reserved: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended. ``error`` is None, or what the header X-Amz-Function-Error says."""

    payload: bytes
    error: str | None
    request_id: str
    log_tail: str = ""


class Throttled(Exception):
    """The function's reserved concurrency is used up."""


@dataclass
class _Invocation:
    request_id: str
    payload: bytes
    handed_out: threading.Event = field(default_factory=threading.Event)
    answers: queue.Queue[tuple[bytes, str | None]] = field(default_factory=queue.Queue)

    def answer(self, payload: bytes, error: str | None) -> None:
        self.answers.put((payload, error))


def failure(kind: str, message: str) -> bytes:
    """The body that Lambda gives for a failure of its own."""
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


class Environment:
    """One process of the function. ``invoke`` must not be called twice at once."""

    def __init__(self, runtimes: Runtimes, function: Function, directory: Path, log_file: Path):
        self.function = function
        self._runtimes = runtimes
        self._pending: queue.Queue[_Invocation | None] = queue.Queue()
        self._current: _Invocation | None = None
        self._init_error: bytes | None = None
        self._closed = False
        self._init: float | None = None
        self._reported = False
        self._lock = threading.Lock()
        self._log_file = log_file
        self._output = open(log_file, "ab", buffering=0)  # closed by close()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._spawned = time.monotonic()
        try:
            self._process = runtimes.spawn(
                [str(directory / "bootstrap")], self._variables(directory), directory, self._output
            )
        except OSError as refused:
            self._server.shutdown()
            self._output.close()
            raise StartFailed(f"cannot start bootstrap of {function.name}: {refused}") from refused
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.poll() is None

    def invoke(self, payload: bytes) -> Outcome:
        """Runs one event to its end: an answer, an error, a timeout (which ends the process) or its exit."""
        call = _Invocation(str(uuid.uuid4()), payload)
        started = time.monotonic()
        log_start = self._log_file.stat().st_size
        with self._lock:
            self._current = call
            ended = not self.alive
        self._say(f"START RequestId: {call.request_id} Version: {self.function.version}")
        if ended:
            self._exited(call)
        self._pending.put(call)
        try:
            body, error = self._wait(call)
        finally:
            with self._lock:
                self._current = None
        spent = (time.monotonic() - started) * 1000
        self._say(f"END RequestId: {call.request_id}")
        report = f"REPORT RequestId: {call.request_id}\tDuration: {spent:.2f} ms\tMemory Size: {self.function.memory} MB"
        if self._init is not None and not self._reported:
            self._reported = True
            report += f"\tInit Duration: {self._init * 1000:.2f} ms"
        self._say(report)
        if error is None and len(body) > MAX_PAYLOAD:
            body = failure(
                "Function.ResponseSizeTooLarge",
                f"Response payload size ({len(body)} bytes) exceeded the maximum of {MAX_PAYLOAD} bytes.",
            )
            error = "Unhandled"
        return Outcome(body, error, call.request_id, self._tail(log_start))

    def close(self) -> None:
        """Ends the process and its Runtime API. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.kill()
        self._pending.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._output.close()

    def kill(self) -> None:
        """Ends the process in the middle of whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    # -- called by the Runtime API ---------------------------------------------------------------------------------

    def next(self) -> _Invocation | None:
        """The next event; waits for it. None when the environment ends."""
        if self._init is None:
            self._init = time.monotonic() - self._spawned
        call = self._pending.get()
        if call is None:
            self._pending.put(None)  # for whoever else waits
        else:
            call.handed_out.set()
        return call

    def answered(self, request_id: str, payload: bytes, error: str | None) -> bool:
        """Takes an answer; False when that request is not running (any more)."""
        with self._lock:
            call = self._current
        if call is None or call.request_id != request_id:
            return False
        call.answer(payload, error)
        return True

    def init_failed(self, payload: bytes) -> None:
        self._init_error = payload
        with self._lock:
            call = self._current
        if call:
            call.answer(payload, "Unhandled")

    # --------------------------------------------------------------------------------------------------------------

    def _wait(self, call: _Invocation) -> tuple[bytes, str | None]:
        deadline = time.monotonic() + INIT_TIMEOUT
        while not call.handed_out.wait(0.01):
            if not call.answers.empty():
                return call.answers.get()
            if time.monotonic() > deadline:
                threading.Thread(target=self.close, daemon=True).start()
                return failure(
                    "Sandbox.Timedout",
                    f"RequestId: {call.request_id} Error: Task timed out after {INIT_TIMEOUT:.2f} seconds",
                ), "Unhandled"
        try:
            return call.answers.get(timeout=self.function.timeout)
        except queue.Empty:
            self._say(f"{call.request_id} Task timed out after {self.function.timeout:.2f} seconds")
            threading.Thread(target=self.close, daemon=True).start()
            return failure(
                "Sandbox.Timedout",
                f"RequestId: {call.request_id} Error: Task timed out after {self.function.timeout:.2f} seconds",
            ), "Unhandled"

    def _watch(self) -> None:
        self._process.wait()
        with self._lock:
            call = self._current
        if call:
            self._exited(call)

    def _exited(self, call: _Invocation) -> None:
        code = self._process.poll()
        how = f"signal: {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        body = self._init_error or failure(
            "Runtime.ExitError", f"RequestId: {call.request_id} Error: Runtime exited with error: {how}"
        )
        call.answer(body, "Unhandled")

    def _say(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            self._output.write(f"{line}\n".encode())

    def _tail(self, start: int) -> str:
        with open(self._log_file, "rb") as written:
            written.seek(start)
            return written.read()[-MAX_LOG_TAIL:].decode(errors="replace")

    def _variables(self, directory: Path) -> dict[str, str]:
        function = self.function
        own = {k: v for k, v in function.variables if not k.startswith(RESERVED_PREFIXES)}
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "AWS_EXECUTION_ENV": "AWS_Lambda_provided.al2023",
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "AWS_ACCESS_KEY_ID": self._runtimes.issue(function, self.kill),
            "AWS_SECRET_ACCESS_KEY": "emulated",
            "AWS_SESSION_TOKEN": "emulated",
            "AWS_ENDPOINT_URL": self._runtimes.endpoint,
            **own,
            "_HANDLER": function.handler,
            "LAMBDA_TASK_ROOT": str(directory),
            "LAMBDA_RUNTIME_DIR": str(directory),
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": function.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": self._log_file.stem,
        }


class StartFailed(Exception):
    """The function's package cannot be run here."""


def _handler_for(environment: Environment) -> type[BaseHTTPRequestHandler]:
    class RuntimeApi(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The answer goes out in two writes; Nagle would hold the second one back for 40 ms.
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Silent: the function's own log tells what happens."""

        def do_GET(self) -> None:
            if self.path != f"{API}/invocation/next":
                return self._reply(404, b"{}")
            call = environment.next()
            if call is None:
                self.close_connection = True
                return None
            function = environment.function
            deadline = int((time.time() + function.timeout) * 1000)
            trace = f"Root=1-{int(time.time()):08x}-{call.request_id.replace('-', '')[:24]};Sampled=0"
            return self._reply(
                200,
                call.payload,
                {
                    "Content-Type": "application/json",
                    "Lambda-Runtime-Aws-Request-Id": call.request_id,
                    "Lambda-Runtime-Deadline-Ms": str(deadline),
                    "Lambda-Runtime-Invoked-Function-Arn": function.arn,
                    "Lambda-Runtime-Trace-Id": trace,
                },
            )

        def do_POST(self) -> None:
            body = self._body()
            if self.path == f"{API}/init/error":
                environment.init_failed(body)
                return self._reply(202, b'{"status":"OK"}')
            parts = self.path.removeprefix(f"{API}/invocation/").split("/")
            if len(parts) != 2 or parts[1] not in ("response", "error"):
                return self._reply(404, b"{}")
            request_id, what = parts
            if environment.answered(request_id, body, "Unhandled" if what == "error" else None):
                return self._reply(202, b'{"status":"OK"}')
            return self._reply(400, failure("InvalidRequestID", "Invalid request ID"))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers: how a streamed answer reports an error; not used by buffered functions
            return b"".join(chunks)

        def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return RuntimeApi


class Runtimes:
    """All environments of all functions."""

    def __init__(
        self,
        endpoint: str,
        state: Path,
        log_dir: Path,
        max_environments: int,
        issue: Callable[[Function, Callable[[], None]], str],
    ):
        self.endpoint = endpoint
        self.issue = issue
        """Gives a new access key for an environment, which the callable kills."""
        self._code = state / "code"
        self._log_dir = log_dir
        self._max = max_environments
        self._changed = threading.Condition()
        self._idle: dict[str, list[Environment]] = {}
        self._busy: dict[str, list[Environment]] = {}
        self._numbers: dict[str, int] = {}
        self._closed = False
        # The kernel ends a child when the *thread* that made it ends, so one thread that lives makes them all.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")

    def invoke(self, function: Function, payload: bytes) -> Outcome:
        """Runs one event in a free environment, in a new one, or (at the limit) in the next that gets free."""
        try:
            environment = self._acquire(function)
        except StartFailed as failed:
            log.error("%s", failed)
            return Outcome(failure("Runtime.InvalidEntrypoint", str(failed)), "Unhandled", str(uuid.uuid4()))
        try:
            return environment.invoke(payload)
        finally:
            self._release(environment)

    def forget(self, name: str) -> None:
        """The function is gone, and its environments as soon as they have nothing to do: what runs comes to its end."""
        with self._changed:
            gone = self._idle.pop(name, [])
        for environment in gone:
            environment.close()

    def kill(self, name: str) -> None:
        """Ends what runs of a function in the middle of it."""
        with self._changed:
            running = list(self._busy.get(name, []))
        for environment in running:
            environment.kill()

    def close(self) -> None:
        """Ends every process. Nothing starts afterwards."""
        with self._changed:
            self._closed = True
            gone = [e for kind in (self._idle, self._busy) for many in kind.values() for e in many]
            self._idle.clear()
            self._busy.clear()
        for environment in gone:
            environment.close()
        self._spawner.shutdown(wait=True)

    def logs(self, name: str) -> str:
        """What all environments of a function wrote, oldest environment first."""
        directory = self._log_dir / name
        files = sorted(directory.glob("*.log")) if directory.is_dir() else []
        return "".join(file.read_text(errors="replace") for file in files)

    def environments(self, name: str) -> int:
        with self._changed:
            return len(self._idle.get(name, [])) + len(self._busy.get(name, []))

    # -- for Environment -------------------------------------------------------------------------------------------

    def unpacked(self, function: Function) -> Path:
        """The directory of the function's package; unpacked once for each code digest."""
        directory = self._code / f"{function.name}-{function.code_sha.replace('/', '_')[:16]}"
        if not directory.exists():
            staging = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}")
            try:
                with zipfile.ZipFile(io.BytesIO(function.code)) as package:
                    package.extractall(staging)
            except zipfile.BadZipFile:
                raise StartFailed(f"the package of {function.name} is not a zip file") from None
            bootstrap = staging / "bootstrap"
            if not bootstrap.is_file():
                shutil.rmtree(staging, ignore_errors=True)
                raise StartFailed(
                    f"the package of {function.name} has no bootstrap: only runtimes provided.* are emulated"
                )
            bootstrap.chmod(0o755)
            with contextlib.suppress(OSError):  # another thread was faster
                staging.rename(directory)
            shutil.rmtree(staging, ignore_errors=True)
        return directory

    def spawn(
        self, command: list[str], variables: dict[str, str], directory: Path, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                # Should the emulator be killed outright, the kernel ends the function for it.
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                env=variables,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        return self._spawner.submit(start).result()

    # --------------------------------------------------------------------------------------------------------------

    def _acquire(self, function: Function) -> Environment:
        directory = self.unpacked(function)
        while True:
            with self._changed:
                stale = self._without_stale(function)
                environment = self._free_or_new(function, directory)
                if environment is None and not stale and function.reserved is None:
                    self._changed.wait(1)
            for old in stale:
                old.close()
            if environment:
                return environment
            if function.reserved is not None:
                raise Throttled(function.name)

    def _without_stale(self, function: Function) -> list[Environment]:
        """Takes out the idle environments that ended, or that an update of the function made old."""
        idle = self._idle.setdefault(function.name, [])
        stale = [e for e in idle if not e.alive or e.function != function]
        idle[:] = [e for e in idle if e not in stale]
        return stale

    def _free_or_new(self, function: Function, directory: Path) -> Environment | None:
        if self._closed:
            raise StartFailed("the emulator is shutting down")
        busy = self._busy.setdefault(function.name, [])
        if idle := self._idle[function.name]:
            environment = idle.pop()
        elif len(busy) < (self._max if function.reserved is None else function.reserved):
            self._numbers[function.name] = number = self._numbers.get(function.name, 0) + 1
            logs = self._log_dir / function.name
            logs.mkdir(parents=True, exist_ok=True)
            environment = Environment(self, function, directory, logs / f"{number:04}.log")
        else:
            return None
        busy.append(environment)
        return environment

    def _release(self, environment: Environment) -> None:
        name = environment.function.name
        with self._changed:
            busy = self._busy.get(name, [])
            known = environment in busy
            if known:
                busy.remove(environment)
                if environment.alive and not self._closed and name in self._idle:
                    self._idle[name].append(environment)
                    self._changed.notify()
                    return
                self._changed.notify()
        environment.close()

"""Functions run as real processes behind the Runtime API."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, free_port, function, package, wait_until


def test_an_event_goes_in_and_the_answer_comes_out(cloud: Cloud) -> None:
    cloud.create_function("echo", function("def handle(event, context): return {'got': event}"))
    assert cloud.invoke("echo", {"a": [1, "ü"]}) == {"got": {"a": [1, "ü"]}}


def test_a_shell_script_that_speaks_the_protocol_is_a_function(cloud: Cloud) -> None:
    script = """#!/bin/sh
while true; do
  curl -sS -D headers "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next" -o event || exit 1
  id=$(tr -d '\\r' <headers | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //ip')
  curl -sS -X POST --data-binary @event "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"
done
"""
    cloud.create_function("shell", script)
    assert cloud.invoke("shell", {"x": 1}) == {"x": 1}


def test_a_function_knows_its_deadline_its_request_and_itself(cloud: Cloud) -> None:
    code = function(
        "def handle(event, context): return {'headers': context, 'left': "
        "int(context['Lambda-Runtime-Deadline-Ms']) / 1000 - time.time(), 'variables': dict(os.environ)}"
    )
    arn = cloud.create_function("knows", code, Timeout=7, MemorySize=256, Environment={"Variables": {"MINE": "yes"}})
    answer = cloud.client("lambda").invoke(FunctionName="knows", Payload=b"{}")
    told = json.loads(answer["Payload"].read())
    assert 6 < told["left"] <= 7
    assert told["headers"]["Lambda-Runtime-Invoked-Function-Arn"] == arn
    assert told["headers"]["Lambda-Runtime-Aws-Request-Id"]
    variables = told["variables"]
    assert variables["MINE"] == "yes"
    assert variables["AWS_ENDPOINT_URL"] == cloud.endpoint
    assert variables["AWS_REGION"] == "us-east-1"
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == "knows"
    assert variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"


def test_an_error_is_told_apart_from_an_answer(cloud: Cloud) -> None:
    cloud.create_function("fails", function("def handle(event, context): raise ValueError('no ' + event['what'])"))
    answer = cloud.client("lambda").invoke(FunctionName="fails", Payload=b'{"what": "luck"}')
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read()) == {"errorType": "ValueError", "errorMessage": "no luck"}
    assert "FunctionError" not in cloud.client("lambda").invoke(FunctionName="fails", InvocationType="DryRun")


def test_a_function_that_exits_is_reported_with_its_status(cloud: Cloud) -> None:
    cloud.create_function("exits", function("def handle(event, context): os._exit(7)"))
    answer = cloud.client("lambda").invoke(FunctionName="exits")
    assert answer["FunctionError"] == "Unhandled"
    assert "exit status 7" in json.loads(answer["Payload"].read())["errorMessage"]


def test_a_function_that_cannot_start_says_why(cloud: Cloud) -> None:
    code = function(
        "post('/init/error', {'errorType': 'Config', 'errorMessage': 'X is not set'}); sys.exit(1)\nhandle = None"
    )
    cloud.create_function("misconfigured", code)
    answer = cloud.client("lambda").invoke(FunctionName="misconfigured")
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read())["errorMessage"] == "X is not set"


def test_a_package_without_bootstrap_is_refused_in_one_line(cloud: Cloud) -> None:
    held = package("").replace(b"bootstrap", b"something")
    cloud.create_function("empty", "", Code={"ZipFile": held})
    answer = cloud.client("lambda").invoke(FunctionName="empty")
    assert "has no bootstrap" in json.loads(answer["Payload"].read())["errorMessage"]


def test_a_timeout_ends_the_process_and_the_next_event_gets_a_new_one(cloud: Cloud) -> None:
    code = function("def handle(event, context):\n    if event.get('hang'): time.sleep(60)\n    return os.getpid()")
    cloud.create_function("slow", code, Timeout=1)
    first = cloud.invoke("slow", {})
    started = time.monotonic()
    answer = cloud.client("lambda").invoke(FunctionName="slow", Payload=b'{"hang": true}')
    assert 1 <= time.monotonic() - started < 3
    assert answer["FunctionError"] == "Unhandled"
    assert "Task timed out after 1.00 seconds" in json.loads(answer["Payload"].read())["errorMessage"]
    wait_until(lambda: not alive(first), 5, "the hanging process to be killed")
    assert cloud.invoke("slow", {}) != first


def test_an_environment_is_kept_for_the_next_event(cloud: Cloud) -> None:
    code = function("n = 0\ndef handle(event, context):\n    global n\n    n += 1\n    return [os.getpid(), n]")
    cloud.create_function("counts", code)
    (process, one), (again, two) = cloud.invoke("counts", {}), cloud.invoke("counts", {})
    assert (again, one, two) == (process, 1, 2)


def test_two_events_at_once_run_at_once(cloud: Cloud) -> None:
    code = function(
        "def handle(event, context):\n"
        "    started = time.time(); time.sleep(0.5)\n"
        "    return [os.getpid(), started, time.time()]"
    )
    cloud.create_function("both", code)
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: cloud.invoke("both", {}), range(2))
    assert a[0] != b[0]
    assert max(a[1], b[1]) < min(a[2], b[2]), "their times do not overlap"
    assert cloud.lab("environments/both") == {"environments": 2}


def test_reserved_concurrency_throttles(cloud: Cloud) -> None:
    cloud.create_function("one", function("def handle(event, context): time.sleep(1)"))
    cloud.client("lambda").put_function_concurrency(FunctionName="one", ReservedConcurrentExecutions=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cloud.invoke, "one", {})
        wait_until(lambda: cloud.lab("environments/one")["environments"] == 1, 5, "the first to run")
        with pytest.raises(ClientError, match="TooManyRequestsException"):
            cloud.invoke("one", {})
        running.result()


def test_an_update_replaces_the_environments(cloud: Cloud) -> None:
    code = "def handle(event, context): return ['%s', os.environ.get('MODE'), os.getpid()]"
    cloud.create_function("changes", function(code % "old"))
    old = cloud.invoke("changes", {})
    client = cloud.client("lambda")
    client.update_function_code(FunctionName="changes", ZipFile=package(function(code % "new")))
    client.update_function_configuration(FunctionName="changes", Environment={"Variables": {"MODE": "m"}})
    assert cloud.invoke("changes", {})[:2] == ["new", "m"]
    wait_until(lambda: not alive(old[2]), 5, "the old environment to end")


def test_deleting_a_function_ends_its_processes(cloud: Cloud) -> None:
    cloud.create_function("gone", function("def handle(event, context): return os.getpid()"))
    process = cloud.invoke("gone", {})
    cloud.client("lambda").delete_function(FunctionName="gone")
    wait_until(lambda: not alive(process), 5, "the process to end")


def test_an_asynchronous_event_is_answered_at_once_and_retried(cloud: Cloud, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    code = function(
        f"def handle(event, context):\n"
        f"    with open({str(marks)!r}, 'a') as f: f.write('x')\n"
        f"    time.sleep(0.3)\n"
        f"    if os.path.getsize({str(marks)!r}) < 2: raise ValueError('not yet')"
    )
    cloud.create_function("later", code)
    started = time.monotonic()
    assert cloud.client("lambda").invoke(FunctionName="later", InvocationType="Event")["StatusCode"] == 202
    assert time.monotonic() - started < 0.3
    wait_until(lambda: marks.exists() and marks.read_text() == "xx", 5, "the second attempt")


def test_what_a_function_writes_is_kept_and_given_back(cloud: Cloud) -> None:
    cloud.create_function("talks", function("def handle(event, context): print('hello', file=sys.stderr, flush=True)"))
    answer = cloud.client("lambda").invoke(FunctionName="talks", LogType="Tail")
    assert "hello\n" in base64.b64decode(answer["LogResult"]).decode()
    assert "hello\n" in cloud.lab("logs/talks")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_emulator(tmp_path: Path, number: signal.Signals) -> None:
    cloud = Cloud(free_port(), tmp_path)
    try:
        cloud.create_function("orphan", function("def handle(event, context): return os.getpid()"))
        process = cloud.invoke("orphan", {})
        cloud.create_function(
            "busy", function("def handle(event, context): print(os.getpid(), flush=True); time.sleep(60)"), Timeout=60
        )
        cloud.client("lambda").invoke(FunctionName="busy", InvocationType="Event")
        running = int(
            wait_until(
                lambda: [line for line in cloud.lab("logs/busy").split("\n") if line.isdecimal()], 5, "it to run"
            )[0]
        )
        assert alive(process) and alive(running)
        cloud.process.send_signal(number)
        code = cloud.process.wait(10)
        assert code == (-number if number == signal.SIGKILL else 0)
        wait_until(lambda: not alive(process) and not alive(running), 5, "the functions to end")
    finally:
        cloud.process.kill()


def test_a_port_in_use_is_one_clear_line(cloud: Cloud) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "emulator", "--port", str(cloud.port)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{cloud.port}" in result.stderr.strip().splitlines()[-1]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"

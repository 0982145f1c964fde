"""How large the functions are, and how long one takes from the start of its process to its first question for work."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud

product.need_a_build()

ZIP = 4_000_000
START_MS = 50
TRIES = 8
"""Cold starts of each function; the quickest counts, because this machine may be doing something else meanwhile."""

# Each is answered without a call of AWS.
EVENTS: dict[str, Any] = {
    "AttachFunction": product.event("scheduled", ""),
    "ReconcileFunction": {"explain": "neither"},
    "DrainFunction": product.event("instance-terminated", "i-1"),
}


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    product.deploy(cloud)
    return SimpleNamespace(out=product.outputs(cloud))


@pytest.mark.parametrize("name", EVENTS)
def test_a_function_is_small(name: str) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(product.BUILD / name / "bootstrap", "bootstrap")
    print(f"{name}: {len(held.getvalue()):,} bytes")
    assert 100_000 < len(held.getvalue()) < ZIP


@pytest.mark.parametrize("name", EVENTS)
def test_a_function_starts_at_once(cloud: Cloud, stack: SimpleNamespace, name: str) -> None:
    client, function = cloud.client("lambda"), stack.out[name]
    variables = client.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
    took = []
    for attempt in range(TRIES):
        # A changed configuration is a new environment.
        client.update_function_configuration(
            FunctionName=function, Environment={"Variables": {**variables, "ATTEMPT": str(attempt)}}
        )
        answer = client.invoke(FunctionName=function, Payload=json.dumps(EVENTS[name]), LogType="Tail")
        log = base64.b64decode(answer["LogResult"]).decode()
        (init,) = re.findall(r"Init Duration: ([0-9.]+) ms", log)
        took.append(float(init))
    print(f"{name}: {sorted(took)} ms")
    assert min(took) < START_MS

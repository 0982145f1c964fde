"""The real product, as ``sam build`` left it, deployed into the emulator."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import KEYS, REGION, TESTS, Cloud, wait_until  # also puts the emulator on the path

from emulator.templates import parse

ROOT = TESTS.parent
BUILD = Path(os.environ.get("MIRRORFLEET_SAM_BUILD", ROOT / ".aws-sam" / "build"))
STACK = "mirrorfleet"
ANALYZER = "http://127.0.0.1:8080"


def need_a_build() -> None:
    """Skips, loudly, where the application has not been built."""
    if not (BUILD / "template.yaml").is_file():
        pytest.skip(f"NOT RUN: {BUILD} has no built application; run `sam build` first", allow_module_level=True)


def sam(cloud: Cloud, *arguments: str, answers: str | None = None) -> str:
    """Runs the SAM command line against the emulator; fails with its whole output."""
    beside_python = Path(sys.executable).parent / "sam"
    program = str(beside_python) if beside_python.exists() else shutil.which("sam")
    assert program, "sam is not installed: pip install -r tests/requirements.txt"
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": cloud.endpoint,
        "AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"],
        "AWS_DEFAULT_REGION": REGION,
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "0.3",
    }
    environment.pop("AWS_PROFILE", None)
    done = subprocess.run(
        [program, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
        input=answers,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"sam {' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{cloud.log.read_text()[-5000:]}"
    )
    return done.stdout


def deploy(cloud: Cloud, **parameters: str) -> None:
    """The stack, by the quick way: packing and uploading takes SAM longer than most tests."""
    create(cloud, template(cloud), **parameters)


def sam_deploy(cloud: Cloud, **parameters: str) -> None:
    """As people do it: `--guided` asks for each parameter, and Return takes the default."""
    vpc = cloud.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {"VpcId": vpc, "SubnetIds": ",".join(cloud.subnets()[:2]), "AnalyzerUrl": ANALYZER, **parameters}
    declared = parse((BUILD / "template.yaml").read_text())["Parameters"]
    # Name, region, parameters; then: confirm changes, create roles, disable rollback, save the answers.
    answers = [STACK, REGION, *(given.get(name, "") for name in declared), "n", "y", "n", "n"]
    said = sam(
        cloud, "deploy", "--guided", "--template-file", str(BUILD / "template.yaml"), answers="\n".join(answers) + "\n"
    )
    asked = re.findall(r"Parameter (\w+) \[", said)
    assert asked == list(declared), said


def template(cloud: Cloud) -> dict[str, Any]:
    """The built application as `sam deploy` would hand it over: what it uploads is in S3. In a fraction of the time."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="application")
    found = parse((BUILD / "template.yaml").read_text())
    for resource in found["Resources"].values():
        for field in ("CodeUri", "ContentUri"):
            if field in resource.get("Properties", {}):
                folder = (BUILD / resource["Properties"][field]).resolve()
                held = io.BytesIO()
                with zipfile.ZipFile(held, "w") as package:
                    for file in sorted(folder.rglob("*")):
                        package.write(file, file.relative_to(folder))
                s3.put_object(Bucket="application", Key=f"{folder.name}.zip", Body=held.getvalue())
                resource["Properties"][field] = f"s3://application/{folder.name}.zip"
    return found


def create(cloud: Cloud, source: dict[str, Any], name: str = STACK, **parameters: str) -> dict[str, str]:
    """A stack of the template that `template` gave. Waits for it, and gives its outputs."""
    begin(cloud, source, name, **parameters)
    wait_until(lambda: status(cloud, name) == "CREATE_COMPLETE", 60, f"stack {name}")
    return outputs(cloud, name)


def begin(cloud: Cloud, source: dict[str, Any], name: str = STACK, **parameters: str) -> str:
    """As ``create``, but waits for nothing. Gives the stack's ARN."""
    vpc = cloud.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {"VpcId": vpc, "SubnetIds": ",".join(cloud.subnets()[:2]), "AnalyzerUrl": ANALYZER, **parameters}
    made = cloud.client("cloudformation").create_stack(
        StackName=name, TemplateBody=json.dumps(source), Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
    )  # fmt: skip
    return made["StackId"]


def settings(cloud: Cloud, function: str, **changed: str | None) -> dict[str, str]:
    """Changes variables of a function, as no parameter of the template could. Gives them as they were."""
    client = cloud.client("lambda")
    before = client.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
    after = {k: v for k, v in {**before, **changed}.items() if v is not None}
    client.update_function_configuration(FunctionName=function, Environment={"Variables": after})
    return before


def anew(cloud: Cloud, function: str) -> None:
    """The next event gets a process that knows nothing of earlier ones."""
    settings(cloud, function, UNUSED=uuid.uuid4().hex)


def deaf(cloud: Cloud) -> None:
    """From now on no function hears of any event: only the test calls them."""
    client = cloud.client("lambda")
    for mapping in client.list_event_source_mappings()["EventSourceMappings"]:
        client.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)


def invoke(cloud: Cloud, function: str, payload: Any) -> Any:
    """What a function answers; an error of it is a failure of the test."""
    answer = cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(payload))
    body = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, body
    return body


def outputs(cloud: Cloud, name: str = STACK) -> dict[str, str]:
    (stack,) = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE")
    return {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}


def update(cloud: Cloud, name: str = STACK, **changed: str) -> None:
    """Changes parameters of a deployed stack, and waits."""
    client = cloud.client("cloudformation")
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    names = [p["ParameterKey"] for p in stack["Parameters"]]
    parameters = [
        {"ParameterKey": n, "ParameterValue": changed[n]}
        if n in changed
        else {"ParameterKey": n, "UsePreviousValue": True}
        for n in names
    ]
    client.update_stack(
        StackName=name, UsePreviousTemplate=True, Parameters=parameters,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )  # fmt: skip
    wait_until(lambda: status(cloud, name) == "UPDATE_COMPLETE", 60, "the update")


def status(cloud: Cloud, name: str = STACK) -> str:
    """By name or, of one that is deleted, by ARN."""
    return cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]


def tagged(value: str = "true") -> dict[str, Any]:
    """Arguments of RunInstances for an instance that the default selection selects."""
    return {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Mirror", "Value": value}]}]}


def interface_of(instance: dict[str, Any]) -> str:
    return instance["NetworkInterfaces"][0]["NetworkInterfaceId"]


def sessions(cloud: Cloud, eni: str | None = None) -> list[dict[str, Any]]:
    return [s for s in cloud.lab("network")["sessions"] if eni in (None, s["eni"])]


def event(name: str, instance: str) -> dict[str, Any]:
    """A document of ``events/``, about another instance."""
    return json.loads((ROOT / "events" / f"{name}.json").read_text().replace("i-1234567890abcdef0", instance))

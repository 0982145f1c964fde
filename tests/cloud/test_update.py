"""A changed rebuilder is a new layer, a new version of the launch template, and a roll of the group; nothing else is
touched. Nothing changed is no change at all."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud

product.need_a_build()

LAYER = f"{product.STACK}-rebuilder"


def deploy(cloud: Cloud, build: Path = product.BUILD) -> str:
    """What SAM says. It uploads what is in a folder under the checksum of that."""
    vpc = cloud.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {"VpcId": vpc, "SubnetIds": ",".join(cloud.subnets()[:2]), "AnalyzerUrl": product.ANALYZER}
    return product.sam(
        cloud, "deploy", "--template-file", str(build / "template.yaml"), "--stack-name", product.STACK,
        "--region", product.REGION, "--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset",
        "--no-fail-on-empty-changeset", "--parameter-overrides", *(f"{k}={v}" for k, v in given.items()),
    )  # fmt: skip


def state(cloud: Cloud) -> SimpleNamespace:
    formation, ec2 = cloud.client("cloudformation"), cloud.client("ec2")
    resources = formation.describe_stack_resources(StackName=product.STACK)["StackResources"]
    events = formation.describe_stack_events(StackName=product.STACK)["StackEvents"]
    (group,) = cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    # The old ones still wait until their flows are moved (drain).
    serving = [i["InstanceId"] for i in group["Instances"] if i["LifecycleState"] == "InService"]
    (template,) = ec2.describe_launch_templates()["LaunchTemplates"]
    (layer,) = [r["LogicalResourceId"] for r in resources if r["ResourceType"] == "AWS::Lambda::LayerVersion"]
    versions = cloud.client("lambda").list_layer_versions(LayerName=LAYER)["LayerVersions"]
    return SimpleNamespace(
        physical={r["LogicalResourceId"]: r["PhysicalResourceId"] for r in resources},
        layer=layer,
        template=template["LatestVersionNumber"],
        named=int(group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]["Version"]),
        fetched={fetched(cloud, instance) for instance in serving},
        instances=set(serving),
        versions={v["Version"] for v in versions},
        events={e["EventId"]: e for e in events},
    )


def fetched(cloud: Cloud, instance: str) -> int:
    """The version of the layer that an instance's user data fetches."""
    shown = cloud.client("ec2").describe_instance_attribute(InstanceId=instance, Attribute="userData")
    text = base64.b64decode(shown["UserData"]["Value"]).decode()
    (version,) = set(re.findall(rf":layer:{LAYER}:(\d+)'", text))
    return int(version)


def changed(before: SimpleNamespace, after: SimpleNamespace) -> dict[str, set[str]]:
    """What CloudFormation did, by resource: the statuses that were new."""
    told: dict[str, set[str]] = {}
    for event in (e for key, e in after.events.items() if key not in before.events):
        if event["ResourceType"] != "AWS::CloudFormation::Stack":
            told.setdefault(event["LogicalResourceId"], set()).add(event["ResourceStatus"])
    return told


@pytest.fixture(scope="module")
def first(cloud: Cloud) -> SimpleNamespace:
    deploy(cloud)
    return state(cloud)


def rebuilt(folder: Path) -> Path:
    """The application, built from another rebuilder: one byte of its text differs."""
    build = folder / "build"
    shutil.copytree(product.BUILD, build, copy_function=shutil.copy)
    program = build / "RebuilderLayer/bin/rebuilder"
    content = bytearray(program.read_bytes())
    at = content.find(b"mirrored packets came by")
    assert at > 0
    content[at] ^= 0x20
    program.write_bytes(content)
    return build


def test_nothing_changed_is_no_change(cloud: Cloud, first: SimpleNamespace) -> None:
    assert "No changes to deploy" in deploy(cloud)
    after = state(cloud)
    assert changed(first, after) == {}
    assert vars(after) == vars(first)


def test_one_byte_of_the_program_rolls_the_group_and_touches_nothing_else(
    cloud: Cloud, first: SimpleNamespace, tmp_path: Path
) -> None:
    deploy(cloud, rebuilt(tmp_path))
    after = state(cloud)
    # SAM names a layer's version by what is in it.
    assert after.layer != first.layer and after.layer.startswith("RebuilderLayer")
    assert after.template == first.template + 1
    assert after.named == after.template
    assert len(after.instances) == len(first.instances) and not after.instances & first.instances
    assert (first.fetched, after.fetched) == (first.versions, {max(after.versions)})
    # The version before is kept, for instances that still have to be replaced.
    assert after.versions == first.versions | {max(first.versions) + 1}
    done = {name for name, statuses in changed(first, after).items() if statuses & {"CREATE_COMPLETE", "UPDATE_COMPLETE"}}
    assert done == {after.layer, "RebuilderTemplate", "RebuilderGroup"}
    kept: dict[str, Any] = {n: p for n, p in first.physical.items() if n != first.layer}
    assert {n: p for n, p in after.physical.items() if n != after.layer} == kept

"""Stacks with one Auto Scaling group each, for tests of what CloudFormation waits for."""

from __future__ import annotations

import json
import threading
from typing import Any

from conftest import Cloud, wait_until


def template(
    cloud: Cloud, count: int, timeout: str = "PT1M", *, image: str = "ami-12345678", rolling: Any = None,
    most: int = 6, **policy: Any,
) -> str:  # fmt: skip
    """Of a group of ``count`` instances; ``rolling`` is its AutoScalingRollingUpdate."""
    group = {
        "Type": "AWS::AutoScaling::AutoScalingGroup",
        "CreationPolicy": {"ResourceSignal": {"Count": count, "Timeout": timeout}, **policy},
        "UpdatePolicy": {"AutoScalingRollingUpdate": rolling or {}},
        "Properties": {
            "MinSize": str(count),
            "MaxSize": str(most),
            "DesiredCapacity": str(count),
            "VPCZoneIdentifier": cloud.subnets()[:1],
            "LaunchTemplate": {
                "LaunchTemplateId": {"Ref": "Template"},
                "Version": {"Fn::GetAtt": ["Template", "LatestVersionNumber"]},
            },
        },
    }
    data = {"ImageId": image, "InstanceType": "t3.micro"}
    launch = {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}}
    return json.dumps({"Resources": {"Group": group, "Template": launch}})


def begin(cloud: Cloud, name: str, source: str) -> str:
    """Does not wait for the answer, for which the account takes some seconds while the stack is not made."""
    client = cloud.client("cloudformation")
    threading.Thread(target=client.create_stack, kwargs={"StackName": name, "TemplateBody": source}).start()
    (stack,) = wait_until(lambda: [s for s in client.describe_stacks()["Stacks"] if s["StackName"] == name], 10, name)
    return stack["StackId"]


def instances(cloud: Cloud, stack: str) -> list[str]:
    """Of the stack's group, by its name."""
    found = [i for i in cloud.lab("network")["instances"] if (i["asg"] or "").startswith(f"{stack}-Group-")]
    return sorted(i["id"] for i in found)


def launched(cloud: Cloud, stack: str, count: int) -> list[str]:
    wait_until(lambda: len(instances(cloud, stack)) == count, 20, f"{count} instances")
    return instances(cloud, stack)


def signal(cloud: Cloud, stack: str, unique: str, status: str = "SUCCESS") -> None:
    cloud.client("cloudformation").signal_resource(
        StackName=stack, LogicalResourceId="Group", UniqueId=unique, Status=status
    )


def status(cloud: Cloud, stack: str) -> str:
    return cloud.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]


def said(cloud: Cloud, stack: str, status: str = "UPDATE_IN_PROGRESS") -> list[str]:
    """The stack's events of the group under this status, in order."""
    events = cloud.client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
    found = [e for e in reversed(events) if (e["LogicalResourceId"], e["ResourceStatus"]) == ("Group", status)]
    return [e["ResourceStatusReason"] for e in found if e.get("ResourceStatusReason")]


def why(cloud: Cloud, stack: str, status: str = "CREATE_FAILED") -> str:
    (reason,) = said(cloud, stack, status)
    return reason

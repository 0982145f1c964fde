"""A stack can be deleted at any moment: it goes, and none of its sessions stays. Others' do."""

from __future__ import annotations

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import event, sessions

product.need_a_build()

MIRRORED = 8


@pytest.fixture(scope="module")
def source(cloud: Cloud) -> dict[str, Any]:
    return product.template(cloud)


@pytest.fixture(scope="module")
def foreign(cloud: Cloud, source: dict[str, Any]) -> str:
    """Another team's session, on an interface that we mirror too."""
    ec2 = cloud.client("ec2")
    target = ec2.create_traffic_mirror_target(NetworkLoadBalancerArn=cloud.balancer())["TrafficMirrorTarget"]
    chosen = ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]
    instances = [cloud.run_instance(**product.tagged()) for _ in range(MIRRORED)]
    return ec2.create_traffic_mirror_session(
        NetworkInterfaceId=product.interface_of(instances[0]), SessionNumber=1,
        TrafficMirrorTargetId=target["TrafficMirrorTargetId"], TrafficMirrorFilterId=chosen["TrafficMirrorFilterId"],
    )["TrafficMirrorSession"]["TrafficMirrorSessionId"]  # fmt: skip


def delete(cloud: Cloud, stack: str, foreign: str) -> None:
    """Deletes the stack, by ARN, and looks at what is left."""
    client = cloud.client("cloudformation")

    def failures() -> list[tuple[str, str | None]]:
        return [
            (e["LogicalResourceId"], e.get("ResourceStatusReason"))
            for e in client.describe_stack_events(StackName=stack)["StackEvents"]
            if e["ResourceStatus"] == "DELETE_FAILED"
        ]

    earlier = failures()
    client.delete_stack(StackName=stack)
    wait_until(lambda: product.status(cloud, stack) != "DELETE_IN_PROGRESS", 120, "the removal")
    failed = [f for f in failures() if f not in earlier]
    assert (product.status(cloud, stack), failed) == ("DELETE_COMPLETE", [])
    assert [s["id"] for s in sessions(cloud)] == [foreign]
    # What the functions wrote last reaches CloudWatch Logs when their groups are gone.
    wait_until(lambda: cloud.lab("deliveries")["pending"] == 0, 30, "the last log lines")
    assert left(cloud, stack.split("/")[1]) == {}


def left(cloud: Cloud, name: str) -> dict[str, list[str]]:
    """What bears the stack's name, by kind. Every physical name begins with it; Lambda's own log groups hold it."""
    ec2, elb, group = cloud.client("ec2"), cloud.client("elbv2"), cloud.client("autoscaling")
    layer = f"{name}-rebuilder"
    found = {
        "layer": [v["LayerVersionArn"] for v in cloud.client("lambda").list_layer_versions(LayerName=layer)["LayerVersions"]],
        "log group": [g["logGroupName"] for g in cloud.client("logs").describe_log_groups()["logGroups"]],
        "function": [f["FunctionName"] for f in cloud.client("lambda").list_functions()["Functions"]],
        "role": [r["RoleName"] for r in cloud.client("iam").list_roles()["Roles"]],
        "profile": [p["InstanceProfileName"] for p in cloud.client("iam").list_instance_profiles()["InstanceProfiles"]],
        "queue": [q.rsplit("/", 1)[1] for q in cloud.client("sqs").list_queues().get("QueueUrls", [])],
        "rule": [r["Name"] for r in cloud.client("events").list_rules()["Rules"]],
        "alarm": [a["AlarmName"] for a in cloud.client("cloudwatch").describe_alarms()["MetricAlarms"]],
        "dashboard": [d["DashboardName"] for d in cloud.client("cloudwatch").list_dashboards()["DashboardEntries"]],
        "group": [g["AutoScalingGroupName"] for g in group.describe_auto_scaling_groups()["AutoScalingGroups"]],
        "template": [t["LaunchTemplateName"] for t in ec2.describe_launch_templates()["LaunchTemplates"]],
        "balancer": [b["LoadBalancerName"] for b in elb.describe_load_balancers()["LoadBalancers"]],
        "targets": [t["TargetGroupName"] for t in elb.describe_target_groups()["TargetGroups"]],
        "security group": [g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]],
        "parameter": [p["Name"] for p in cloud.client("ssm").describe_parameters()["Parameters"]],
        "topic": [t["TopicArn"].rsplit(":", 1)[1] for t in cloud.client("sns").list_topics()["Topics"]],
        "secret": [s["Name"] for s in cloud.client("secretsmanager").list_secrets()["SecretList"]],
    }
    ours = {kind: [n for n in names if name in n] for kind, names in found.items()}
    return {kind: names for kind, names in ours.items() if names}


def arn(cloud: Cloud, name: str) -> str:
    return cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]["StackId"]


def began(cloud: Cloud, source: dict[str, Any], name: str, **parameters: str) -> str:
    """The stack's ARN, while it is being made."""
    pool = ThreadPoolExecutor(1)  # the emulator takes its time to answer a call that makes a stack
    pool.submit(product.begin, cloud, source, name, **parameters)
    pool.shutdown(wait=False)
    client = cloud.client("cloudformation")

    def found() -> str | None:
        shown = client.describe_stacks()["Stacks"]
        return next((s["StackId"] for s in shown if s["StackName"] == name), None)

    return wait_until(found, 10, f"stack {name} to begin")


def ours(cloud: Cloud, foreign: str) -> int:
    return sum(s["id"] != foreign for s in sessions(cloud))


@pytest.mark.parametrize("made", [1, 3])
def test_a_stack_is_deleted_in_the_middle_of_its_first_pass(
    cloud: Cloud, source: dict[str, Any], foreign: str, made: int
) -> None:
    stack = began(cloud, source, f"midway-{made}", MutationsPerSecond="2")
    wait_until(lambda: ours(cloud, foreign) >= made, 30, "the first sessions")
    assert product.status(cloud, stack) == "CREATE_IN_PROGRESS"
    delete(cloud, stack, foreign)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.8])
def test_a_stack_is_deleted_when_hardly_anything_is_there(
    cloud: Cloud, source: dict[str, Any], foreign: str, seconds: float
) -> None:
    stack = began(cloud, source, f"early-{seconds}".replace(".", "-"))
    time.sleep(seconds)
    delete(cloud, stack, foreign)


@pytest.mark.parametrize("rate", ["1", "5"])
def test_a_stack_is_deleted_with_events_in_flight(
    cloud: Cloud, source: dict[str, Any], foreign: str, rate: str
) -> None:
    """A batch of launches is being worked on by `attach` when the removal begins."""
    name = f"flight-{rate}"
    out = product.create(cloud, source, name, MutationsPerSecond=rate, Mirroring="off")
    stack = arn(cloud, name)
    # On again for attach alone, so that all of them are its to make.
    product.settings(cloud, out["AttachFunction"], MIRRORFLEET_MIRRORING="on")
    instances = [i["id"] for i in cloud.lab("network")["instances"] if i["tags"].get("Mirror") == "true"]
    assert len(instances) == MIRRORED
    queue = out["EventQueueUrl"]
    for instance in instances:
        body = json.dumps(event("instance-running", instance))
        cloud.client("sqs").send_message(QueueUrl=queue, MessageBody=body)
    wait_until(lambda: ours(cloud, foreign), 30, "attach to be at work")
    assert ours(cloud, foreign) < MIRRORED
    delete(cloud, stack, foreign)


def test_every_version_of_the_layer_goes_also_those_that_updates_left(
    cloud: Cloud, source: dict[str, Any], foreign: str
) -> None:
    """CloudFormation keeps each version (RetentionPolicy); there are more of them than a page lists."""
    product.create(cloud, source, "versions", Mirroring="off")
    stack = arn(cloud, "versions")
    client = cloud.client("lambda")
    for _ in range(60):
        client.publish_layer_version(LayerName="versions-rebuilder", Content={"ZipFile": b"another"})
    client.publish_layer_version(LayerName="versions-rebuilder-of-others", Content={"ZipFile": b"theirs"})
    assert {"layer", "log group", "function", "role", "group"} <= left(cloud, "versions").keys()
    delete_others = client.list_layer_versions(LayerName="versions-rebuilder-of-others")["LayerVersions"]
    delete(cloud, stack, foreign)
    assert client.list_layer_versions(LayerName="versions-rebuilder-of-others")["LayerVersions"] == delete_others


def test_a_layer_that_cannot_be_removed_fails_the_removal_until_it_can(
    cloud: Cloud, source: dict[str, Any], foreign: str
) -> None:
    out = product.create(cloud, source, "kept", Mirroring="off")
    stack = arn(cloud, "kept")
    client = cloud.client("cloudformation")
    function = out["ReconcileFunction"].rsplit(":", 1)[1]
    refused = {"do": "refuse", "function": function, "call": "lambda:DeleteLayerVersion", "times": 0}
    with cloud.faults(refused):
        client.delete_stack(StackName=stack)
        wait_until(lambda: product.status(cloud, stack) == "DELETE_FAILED", 60, "the removal to fail")
    events = client.describe_stack_events(StackName=stack)["StackEvents"]
    (why,) = {e["ResourceStatusReason"] for e in events if e["ResourceStatus"] == "DELETE_FAILED" and "layer" in
              e.get("ResourceStatusReason", "")}  # fmt: skip
    assert "1 versions of the layer kept-rebuilder are left after 0 were removed" in why
    delete(cloud, stack, foreign)


def test_a_stack_is_deleted_whose_creation_failed(cloud: Cloud, source: dict[str, Any], foreign: str) -> None:
    """Something else fails after everything is mirrored, and CloudFormation takes the stack back by itself."""
    wrong = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "AllowedPattern": "^$", "Value": "wrong"}}
    late = {"Wrong": {**wrong, "DependsOn": "MirrorSessions"}}
    broken = {**source, "Resources": {**source["Resources"], **late}}
    stack = product.begin(cloud, broken, "failed", MutationsPerSecond="5")
    wait_until(lambda: product.status(cloud, stack) == "ROLLBACK_COMPLETE", 60, "the creation to be undone")
    assert [s["id"] for s in sessions(cloud)] == [foreign]
    assert "layer" not in left(cloud, "failed")
    delete(cloud, stack, foreign)


@pytest.mark.parametrize("after", ["RebuilderLayer", "RebuilderTemplate", "RebuilderGroup"])
def test_a_creation_that_fails_before_anything_is_mirrored_leaves_no_layer(
    cloud: Cloud, source: dict[str, Any], foreign: str, after: str
) -> None:
    wrong = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "AllowedPattern": "^$", "Value": "wrong"}}
    early = {"Wrong": {**wrong, "DependsOn": after}}
    first = {**source["Resources"]["MirrorSessions"], "DependsOn": ["RebuilderGroup", "ReconcileInvokesItself", "Wrong"]}
    broken = {**source, "Resources": {**source["Resources"], **early, "MirrorSessions": first}}
    name = f"early-{after.lower()}"
    stack = product.begin(cloud, broken, name)
    wait_until(lambda: product.status(cloud, stack) == "ROLLBACK_COMPLETE", 60, "the creation to be undone")
    assert "layer" not in left(cloud, name)
    delete(cloud, stack, foreign)


def test_a_stack_is_deleted_after_its_target_was_replaced(cloud: Cloud, source: dict[str, Any], foreign: str) -> None:
    """Another description is another target; every session moves to it before the old one goes."""
    out = product.create(cloud, source, "replaced", MutationsPerSecond="5")
    stack = arn(cloud, "replaced")
    product.deaf(cloud)
    before = {s["id"]: s["target"]["id"] for s in sessions(cloud) if s["id"] != foreign}
    assert len(before) == MIRRORED
    changed = copy.deepcopy(source)
    changed["Resources"]["MirrorTarget"]["Properties"]["Description"] = "another"
    client = cloud.client("cloudformation")
    names = [p["ParameterKey"] for p in client.describe_stacks(StackName="replaced")["Stacks"][0]["Parameters"]]
    client.update_stack(
        StackName="replaced", TemplateBody=json.dumps(changed),
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[{"ParameterKey": n, "UsePreviousValue": True} for n in names],
    )  # fmt: skip
    wait_until(lambda: not product.status(cloud, stack).endswith("IN_PROGRESS"), 60, "the update")
    after = product.outputs(cloud, "replaced")
    assert after["MirrorTargetId"] != out["MirrorTargetId"]
    moved = {s["id"]: s["target"]["id"] for s in sessions(cloud) if s["id"] != foreign}
    assert moved == {session: after["MirrorTargetId"] for session in before}
    delete(cloud, stack, foreign)

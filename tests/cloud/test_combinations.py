"""Every kind of stack that the parameters allow, deployed side by side: what its conditions select is there, nothing else
is, and of all of it nothing is left when they are removed.

What should be there is worked out by the evaluator of tests/template, not by the emulator's own; what is, by listing the
account.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import TESTS, Cloud, wait_until
from inventory import ATTACHED, LISTERS, NOTHING, inventory

sys.path.insert(0, str(TESTS / "template"))
import stack as static  # noqa: E402

product.need_a_build()

SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wallarm-AbCdEf"
TOKEN = "dG9rZW4tdGhhdC1ub2JvZHktbWF5LXNlZQ=="
BOUNDARY = "arn:aws:iam::123456789012:policy/Boundary"
NODES = {"AnalyzerUrl": "", "WallarmAmiId": "ami-12345678", "WallarmTokenSecretArn": SECRET}
GRAVITON = {
    "Architecture": "arm64",
    "InstanceTypes": "c7g.large,c6gn.large",
    "RebuilderImage": "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64",
}
STACKS: dict[str, dict[str, str]] = {
    "url": {"TrailEvents": "true", "HttpPorts": "80,81,82,83,8000-8100"},
    "alb": dict(NODES),
    "nlb": {**NODES, "AnalyzerBalancer": "nlb", "PermissionsBoundary": BOUNDARY},
    "graviton": {**GRAVITON, "MirrorEgress": "true", "Mirroring": "off"},
}
SPOKE = {"AnalyzerUrl": "", "PermissionsBoundary": BOUNDARY}


def expected(parameters: dict[str, str]) -> set[str]:
    """Logical ids of what the conditions select."""
    given = {k: v for k, v in {"AnalyzerUrl": product.ANALYZER, **parameters}.items() if k != "RebuilderImage"}
    return set(static.Evaluated(static.source(), **given).resources())


@pytest.fixture(scope="module")
def account(cloud: Cloud) -> SimpleNamespace:
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    cloud.client("iam").create_policy(PolicyName="Boundary", PolicyDocument=json.dumps(policy))
    source, before = product.template(cloud), inventory(cloud)
    secret = cloud.client("secretsmanager").create_secret(Name="wallarm-token", SecretString=TOKEN)["ARN"]
    for name, parameters in STACKS.items():
        if "WallarmTokenSecretArn" in parameters:
            parameters["WallarmTokenSecretArn"] = secret
        product.begin(cloud, source, name, Selection=f"tag:{name}", **parameters)
    for name in STACKS:
        wait_until(lambda: product.status(cloud, name) == "CREATE_COMPLETE", 120, f"stack {name}")
    outputs = {name: product.outputs(cloud, name) for name in STACKS}
    hub = {"ExistingTargetId": outputs["url"]["MirrorTargetId"], "HubSecurityGroups": outputs["url"]["OwnSecurityGroups"]}
    outputs["spoke"] = product.create(cloud, source, "spoke", **SPOKE, **hub)
    parameters = {**STACKS, "spoke": {**SPOKE, **hub}}
    shown = {name: described(cloud, name) for name in parameters}
    return SimpleNamespace(before=before, outputs=outputs, parameters=parameters, shown=shown, source=source)


def described(cloud: Cloud, name: str) -> dict[str, Any]:
    """Logical id -> what CloudFormation says of it. SAM adds to a layer's id."""
    found = cloud.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]
    layer = "AWS::Lambda::LayerVersion"
    return {"RebuilderLayer" if r["ResourceType"] == layer else r["LogicalResourceId"]: r for r in found}


def inline_policies(source: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """(role, policy) of a resource that brings any."""
    resource = source["Resources"].get(name, {"Type": ""})
    if resource["Type"] == "AWS::IAM::Role":
        return [(name, policy) for policy in resource["Properties"].get("Policies", [])]
    if resource["Type"] == "AWS::IAM::Policy":
        return [(role["Ref"], resource["Properties"]) for role in resource["Properties"]["Roles"]]
    return []


@pytest.mark.parametrize("name", [*STACKS, "spoke"])
def test_a_stack_has_what_its_conditions_select_and_nothing_else(account: SimpleNamespace, name: str) -> None:
    assert set(account.shown[name]) == expected(account.parameters[name])


def test_each_resource_is_in_the_account_and_there_is_no_other(cloud: Cloud, account: SimpleNamespace) -> None:
    there = {kind: ids - account.before[kind] for kind, ids in inventory(cloud).items()}
    made: dict[str, set[str]] = {}
    for shown in account.shown.values():
        for r in shown.values():
            made.setdefault(r["ResourceType"], set()).add(r["PhysicalResourceId"])
    # A type that cannot be listed is not believed to be there.
    assert made.keys() - LISTERS.keys() - ATTACHED.keys() - set(NOTHING) == set()
    for kind, ids in made.items():
        if kind in LISTERS:
            assert ids - there[kind] == set(), kind
    for kind in LISTERS:
        # Of a security group's rules only those are resources that name another group's.
        if kind != "AWS::EC2::SecurityGroupIngress":
            assert there[kind] - made.get(kind, set()) == set(), kind
    policies = {
        f"{shown[role]['PhysicalResourceId']}/{policy['PolicyName']}"
        for shown in account.shown.values()
        for name in shown
        for role, policy in inline_policies(account.source, name)
    }
    assert there["AWS::IAM::Policy"] == policies
    assert len(there["AWS::SQS::QueuePolicy"]) == len(account.shown)


def test_nodes_stand_behind_their_balancer_and_rebuilders_send_there(cloud: Cloud, account: SimpleNamespace) -> None:
    elb, autoscaling = cloud.client("elbv2"), cloud.client("autoscaling")
    for name, kind, protocol in (("alb", "application", "HTTP"), ("nlb", "network", "TCP")):
        address = account.outputs[name]["AnalyzerAddress"].removeprefix("http://")
        (balancer,) = [b for b in elb.describe_load_balancers()["LoadBalancers"] if b["DNSName"] == address]
        assert (balancer["Type"], balancer["Scheme"]) == (kind, "internal")
        (listener,) = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
        assert (listener["Protocol"], listener["Port"]) == (protocol, 80)
        group = account.outputs[name]["NodeGroup"]
        (shown,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
        assert shown["TargetGroupARNs"] == [listener["DefaultActions"][0]["TargetGroupArn"]]
        nodes = {i["InstanceId"] for i in shown["Instances"]}
        health = elb.describe_target_health(TargetGroupArn=shown["TargetGroupARNs"][0])["TargetHealthDescriptions"]
        assert len(nodes) == 2 and {t["Target"]["Id"] for t in health} == nodes
        policies = autoscaling.describe_policies(AutoScalingGroupName=group)["ScalingPolicies"]
        assert len(policies) == (2 if kind == "application" else 1)


def test_the_application_balancer_has_the_attributes_of_mirrored_traffic(cloud: Cloud, account: SimpleNamespace) -> None:
    elb = cloud.client("elbv2")
    address = account.outputs["alb"]["AnalyzerAddress"].removeprefix("http://")
    (arn,) = [b["LoadBalancerArn"] for b in elb.describe_load_balancers()["LoadBalancers"] if b["DNSName"] == address]
    shown = {a["Key"]: a["Value"] for a in elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]}
    assert shown["routing.http.desync_mitigation_mode"] == "monitor"
    assert shown["routing.http.preserve_host_header.enabled"] == "true"
    assert shown["routing.http.drop_invalid_header_fields.enabled"] == "false"


@pytest.mark.parametrize("name", ["nlb", "spoke"])
def test_every_role_of_the_stack_carries_the_boundary(cloud: Cloud, account: SimpleNamespace, name: str) -> None:
    roles = [r["PhysicalResourceId"] for r in account.shown[name].values() if r["ResourceType"] == "AWS::IAM::Role"]
    assert len(roles) >= 2
    for role in roles:
        shown = cloud.client("iam").get_role(RoleName=role)["Role"]
        assert shown["PermissionsBoundary"]["PermissionsBoundaryArn"] == BOUNDARY


def test_the_token_is_nowhere_but_in_its_secret(cloud: Cloud, account: SimpleNamespace) -> None:
    cloudformation, ec2 = cloud.client("cloudformation"), cloud.client("ec2")
    secret = STACKS["alb"]["WallarmTokenSecretArn"]
    assert cloud.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"] == TOKEN
    shown: list[Any] = [account.outputs, cloud.lab("calls"), cloud.log.read_text()]
    for name in account.shown:
        shown += [cloudformation.get_template(StackName=name), cloudformation.describe_stack_events(StackName=name)]
        shown.append(cloudformation.describe_stacks(StackName=name))
    for template in ec2.describe_launch_templates()["LaunchTemplates"]:
        versions = ec2.describe_launch_template_versions(LaunchTemplateId=template["LaunchTemplateId"])
        for version in versions["LaunchTemplateVersions"]:
            data = version["LaunchTemplateData"]
            shown += [data, base64.b64decode(data["UserData"]).decode()]
    shown += [f["Environment"] for f in cloud.client("lambda").list_functions()["Functions"]]
    text = str(shown)
    # What is looked through is what it seems to be: the secret's ARN is in user data, parameters and template.
    assert text.count(secret) >= 4 and TOKEN not in text


def test_nodes_are_never_mirrored(cloud: Cloud, account: SimpleNamespace) -> None:
    group = account.outputs["alb"]["NodeGroup"]
    (node, *_) = [i for i in cloud.lab("network")["instances"] if i["asg"] == group]
    cloud.client("ec2").create_tags(Resources=[node["id"]], Tags=[{"Key": "alb", "Value": "yes"}])
    (said,) = product.invoke(cloud, account.outputs["alb"]["ReconcileFunction"], {"explain": node["id"]})
    assert (said["mirrored"], said["reason"]) == (False, "own_interface")


def test_a_spoke_mirrors_to_the_hub_and_never_the_hub_itself(cloud: Cloud, account: SimpleNamespace) -> None:
    eni = product.interface_of(cloud.run_instance(**product.tagged()))
    wait_until(lambda: len(product.sessions(cloud, eni)) == 1, 20, "the spoke's session")
    (session,) = product.sessions(cloud, eni)
    assert session["target"]["id"] == account.outputs["url"]["MirrorTargetId"]
    assert session["filter"]["id"] == account.outputs["spoke"]["MirrorFilterId"]
    group = account.outputs["url"]["RebuilderGroup"]
    (rebuilder, *_) = [i for i in cloud.lab("network")["instances"] if i["asg"] == group]
    cloud.client("ec2").create_tags(Resources=[rebuilder["id"]], Tags=[{"Key": "Mirror", "Value": "true"}])
    (said,) = product.invoke(cloud, account.outputs["spoke"]["ReconcileFunction"], {"explain": rebuilder["id"]})
    assert (said["mirrored"], said["reason"]) == (False, "own_interface")


def members(cloud: Cloud, group: str) -> tuple[set[str], set[str]]:
    """Instances of a group, and those to which its load balancer forwards."""
    (shown,) = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
    health = cloud.client("elbv2").describe_target_health(TargetGroupArn=shown["TargetGroupARNs"][0])
    targets = {t["Target"]["Id"]: t["TargetHealth"]["State"] for t in health["TargetHealthDescriptions"]}
    return {i["InstanceId"] for i in shown["Instances"]}, {i for i, state in targets.items() if state == "healthy"}


def forwards_to(cloud: Cloud, name: str) -> str:
    versions = cloud.client("ec2").describe_launch_template_versions(LaunchTemplateName=f"{name}-rebuilder", Versions=["$Latest"])
    script = base64.b64decode(versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]).decode()
    return re.findall(r"REBUILDER_FORWARD=(\S+)", script)[0]


def test_the_analyser_can_be_changed(cloud: Cloud, account: SimpleNamespace) -> None:
    """Other balancer, then no nodes at all: what is needed no more goes, nodes move, rebuilders follow."""
    before, _ = members(cloud, account.outputs["alb"]["NodeGroup"])
    product.update(cloud, "alb", AnalyzerBalancer="nlb")
    outputs = product.outputs(cloud, "alb")
    nodes, behind = members(cloud, outputs["NodeGroup"])
    assert nodes == behind and len(nodes) == 2 and not nodes & before
    assert "-NodeNlb-" in outputs["AnalyzerAddress"] and forwards_to(cloud, "alb") == outputs["AnalyzerAddress"]
    now = {**STACKS["alb"], "AnalyzerBalancer": "nlb"}
    assert set(described(cloud, "alb")) == expected(now)
    product.update(cloud, "alb", AnalyzerUrl="http://10.0.0.10", WallarmAmiId="", WallarmTokenSecretArn="")
    assert forwards_to(cloud, "alb") == product.outputs(cloud, "alb")["AnalyzerAddress"] == "http://10.0.0.10"
    assert set(described(cloud, "alb")) == expected({"AnalyzerUrl": "http://10.0.0.10"})
    names = [b["LoadBalancerName"] for b in cloud.client("elbv2").describe_load_balancers()["LoadBalancers"]]
    assert [n for n in names if n.startswith("alb-Node")] == []


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"AnalyzerUrl": ""}, "Nobody analyses"),
        ({**NODES, "AnalyzerUrl": "http://waf"}, "Leave either AnalyzerUrl or WallarmAmiId empty"),
        ({**NODES, "WallarmTokenSecretArn": ""}, "WallarmTokenSecretArn is empty"),
        ({**NODES, "ExistingTargetId": "tmt-01234567"}, "A spoke (ExistingTargetId) has no nodes"),
    ],
    ids=["no-analyser", "two-analysers", "no-token", "spoke-with-nodes"],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(
    cloud: Cloud, account: SimpleNamespace, parameters: dict[str, str], remedy: str
) -> None:
    with pytest.raises(cloud.client("cloudformation").exceptions.ClientError, match="Rule") as refused:
        product.begin(cloud, account.source, "refused", **parameters)
    assert remedy in str(refused.value)


def test_instance_types_of_another_processor_fail_with_the_reason(cloud: Cloud, account: SimpleNamespace) -> None:
    product.begin(cloud, account.source, "mixed", InstanceTypes="c7g.large")
    wait_until(lambda: product.status(cloud, "mixed") == "ROLLBACK_COMPLETE", 60, "the rollback")
    events = cloud.client("cloudformation").describe_stack_events(StackName="mixed")["StackEvents"]
    reasons = [e["ResourceStatusReason"] for e in events if e["ResourceStatus"] == "CREATE_FAILED"]
    assert any("InstanceTypes (c7g.large) are not of the processor that Architecture names (x86_64)" in r for r in reasons)
    cloud.client("cloudformation").delete_stack(StackName="mixed")


def test_removal_of_all_leaves_nothing(cloud: Cloud, account: SimpleNamespace) -> None:
    client = cloud.client("cloudformation")
    arns = [s["StackId"] for s in client.describe_stacks()["Stacks"] if s["StackStatus"] != "DELETE_COMPLETE"]
    # A target goes when nobody mirrors to it any more: the spoke first, as the README says.
    spoke = next(arn for arn in arns if ":stack/spoke/" in arn)
    for group in ([spoke], [arn for arn in arns if arn != spoke]):
        for arn in group:
            client.delete_stack(StackName=arn)
        for arn in group:
            wait_until(lambda: product.status(cloud, arn) != "DELETE_IN_PROGRESS", 90, f"{arn} to go")
            assert product.status(cloud, arn) == "DELETE_COMPLETE"
    assert product.sessions(cloud) == []
    assert {kind: ids - account.before[kind] for kind, ids in inventory(cloud).items() if ids - account.before[kind]} == {}

"""`sam deploy` of the real template makes what it says, an update changes just that, `sam delete` leaves nothing.

Asserted by describing each resource: the exit code of `sam` says little.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until

product.need_a_build()


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    """The deployed stack, and an instance that ran before it."""
    before = cloud.run_instance(**product.tagged())
    product.sam_deploy(cloud)
    return SimpleNamespace(before=product.interface_of(before), out=product.outputs(cloud))


def resources(cloud: Cloud) -> dict[str, str]:
    found = cloud.client("cloudformation").describe_stack_resources(StackName=product.STACK)["StackResources"]
    return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in found}


def rules(cloud: Cloud, filter_id: str) -> list[tuple[str, int, int]]:
    """Each ingress rule as (destination block, first port, last port), in the order of their numbers."""
    (shown,) = cloud.client("ec2").describe_traffic_mirror_filters(TrafficMirrorFilterIds=[filter_id])[
        "TrafficMirrorFilters"
    ]
    assert all(r["RuleAction"] == "accept" and r["Protocol"] == 6 for r in shown["IngressFilterRules"])
    return [
        (r["DestinationCidrBlock"], r["DestinationPortRange"]["FromPort"], r["DestinationPortRange"]["ToPort"])
        for r in shown["IngressFilterRules"]
    ]


def test_every_output_is_there(stack: SimpleNamespace) -> None:
    wanted = {
        "MirrorTargetId", "MirrorFilterId", "RebuilderGroup", "EventQueueUrl", "DeadLetterQueueUrl",
        "AttachFunction", "ReconcileFunction", "DrainFunction",
    }  # fmt: skip
    assert wanted <= stack.out.keys()


def test_the_target_is_a_network_load_balancer_with_a_udp_listener(cloud: Cloud, stack: SimpleNamespace) -> None:
    ec2, elb = cloud.client("ec2"), cloud.client("elbv2")
    (target,) = ec2.describe_traffic_mirror_targets(TrafficMirrorTargetIds=[stack.out["MirrorTargetId"]])[
        "TrafficMirrorTargets"
    ]
    arn = target["NetworkLoadBalancerArn"]
    (balancer,) = elb.describe_load_balancers(LoadBalancerArns=[arn])["LoadBalancers"]
    assert (balancer["Type"], balancer["Scheme"]) == ("network", "internal")
    attributes = {
        a["Key"]: a["Value"] for a in elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    }
    assert attributes["load_balancing.cross_zone.enabled"] == "true"
    (listener,) = elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("UDP", 4789)
    (group,) = elb.describe_target_groups(TargetGroupArns=[listener["DefaultActions"][0]["TargetGroupArn"]])[
        "TargetGroups"
    ]
    assert (group["Protocol"], group["Port"]) == ("UDP", 4789)
    assert (group["HealthCheckProtocol"], group["HealthCheckPort"], group["HealthCheckPath"]) == (
        "HTTP",
        "9445",
        "/healthz",
    )


def test_the_filter_has_two_rules_for_each_port(cloud: Cloud, stack: SimpleNamespace) -> None:
    assert rules(cloud, stack.out["MirrorFilterId"]) == [
        ("0.0.0.0/0", 80, 80), ("::/0", 80, 80), ("0.0.0.0/0", 8080, 8080), ("::/0", 8080, 8080),
    ]  # fmt: skip


def test_the_group_runs_one_rebuilder_in_each_subnet_behind_the_balancer(cloud: Cloud, stack: SimpleNamespace) -> None:
    name = stack.out["RebuilderGroup"]
    (group,) = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])[
        "AutoScalingGroups"
    ]
    assert group["MinSize"] == 2
    members = [i for i in cloud.lab("network")["instances"] if i["asg"] == name]
    assert sorted(m["enis"][0]["subnet"] for m in members) == sorted(cloud.subnets()[:2])
    health = cloud.client("elbv2").describe_target_health(TargetGroupArn=group["TargetGroupARNs"][0])
    assert {t["Target"]["Id"] for t in health["TargetHealthDescriptions"]} == {m["id"] for m in members}
    assert name.startswith(product.STACK)


def test_the_functions_know_what_they_need(cloud: Cloud, stack: SimpleNamespace) -> None:
    arn = cloud.client("cloudformation").describe_stacks(StackName=product.STACK)["Stacks"][0]["StackId"]
    for name in ("AttachFunction", "ReconcileFunction"):
        shown = cloud.client("lambda").get_function_configuration(FunctionName=stack.out[name])
        assert shown["FunctionName"].startswith(product.STACK)
        assert shown["Runtime"] == "provided.al2023"
        variables = shown["Environment"]["Variables"]
        assert variables["MIRRORFLEET_STACK_ARN"] == arn
        assert variables["MIRRORFLEET_TARGET_ID"] == stack.out["MirrorTargetId"]
        assert variables["MIRRORFLEET_FILTER_ID"] == stack.out["MirrorFilterId"]
        assert variables["MIRRORFLEET_SELECTION"] == "tag:Mirror=true"


def test_the_queue_feeds_attach_in_batches_and_drains_into_the_dlq(cloud: Cloud, stack: SimpleNamespace) -> None:
    (mapping,) = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["FunctionArn"] == stack.out["AttachFunction"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": 2}
    sqs = cloud.client("sqs")
    queue, dlq = (
        sqs.get_queue_attributes(QueueUrl=stack.out[name], AttributeNames=["All"])["Attributes"]
        for name in ("EventQueueUrl", "DeadLetterQueueUrl")
    )
    assert queue["QueueArn"] == mapping["EventSourceArn"]
    assert json.loads(queue["RedrivePolicy"])["deadLetterTargetArn"] == dlq["QueueArn"]


def test_rules_and_the_schedule_point_at_the_queue_and_at_reconcile(cloud: Cloud, stack: SimpleNamespace) -> None:
    events = cloud.client("events")
    found = events.list_rules()["Rules"]
    assert all(r["Name"].startswith(product.STACK) for r in found)
    schedules = [r for r in found if r.get("ScheduleExpression")]
    assert [r["ScheduleExpression"] for r in schedules] == ["rate(5 minutes)"]
    (target,) = events.list_targets_by_rule(Rule=schedules[0]["Name"])["Targets"]
    assert target["Arn"] == stack.out["ReconcileFunction"]
    kinds = {k for r in found if r.get("EventPattern") for k in json.loads(r["EventPattern"])["detail-type"]}
    assert {"EC2 Instance State-change Notification", "EC2 Instance Launch Successful"} <= kinds


def test_what_ran_before_the_deployment_is_mirrored_by_it(cloud: Cloud, stack: SimpleNamespace) -> None:
    (session,) = product.sessions(cloud, stack.before)
    assert session["target"]["id"] == stack.out["MirrorTargetId"]
    assert session["filter"]["id"] == stack.out["MirrorFilterId"]
    assert (session["number"], session["vni"], session["packet_length"]) == (100, 4789, 8500)
    tags = {t["Key"]: t["Value"] for t in _described(cloud, session["id"])["Tags"]}
    assert tags["mirrorfleet:stack"].startswith(f"arn:aws:cloudformation:us-east-1:123456789012:stack/{product.STACK}/")
    assert "Name" in tags


def _described(cloud: Cloud, session: str) -> dict[str, Any]:
    found = cloud.client("ec2").describe_traffic_mirror_sessions(TrafficMirrorSessionIds=[session])
    return found["TrafficMirrorSessions"][0]


def test_changed_ports_change_the_filter_and_keep_the_sessions(cloud: Cloud, stack: SimpleNamespace) -> None:
    (before,) = product.sessions(cloud, stack.before)
    product.update(cloud, HttpPorts="80,9000-9010")
    assert product.outputs(cloud)["MirrorFilterId"] == stack.out["MirrorFilterId"]
    assert rules(cloud, stack.out["MirrorFilterId"])[2:] == [("0.0.0.0/0", 9000, 9010), ("::/0", 9000, 9010)]
    (after,) = product.sessions(cloud, stack.before)
    assert (after["id"], after["created_at"]) == (before["id"], before["created_at"])


def test_the_switch_removes_the_sessions_and_keeps_the_stack(cloud: Cloud, stack: SimpleNamespace) -> None:
    versions = cloud.client("lambda").list_layer_versions
    kept, layer = resources(cloud), versions(LayerName=f"{product.STACK}-rebuilder")["LayerVersions"]
    product.update(cloud, Mirroring="off")
    assert product.sessions(cloud) == []
    assert stack.out["MirrorTargetId"] in kept.values()
    assert resources(cloud) == kept
    assert layer and versions(LayerName=f"{product.STACK}-rebuilder")["LayerVersions"] == layer
    product.update(cloud, Mirroring="on")
    assert len(product.sessions(cloud, stack.before)) == 1


def test_price_and_headroom_are_those_of_the_parameters(cloud: Cloud, stack: SimpleNamespace) -> None:
    product.update(cloud, SessionHourUsd="0.5", SessionHeadroom="10000")
    answer = cloud.invoke(stack.out["ReconcileFunction"], {"dry_run": True})
    # One session, for the 730 hours that AWS counts for a month.
    assert (len(product.sessions(cloud)), answer["monthly_cost"]) == (1, 365.0)
    late = product.interface_of(cloud.run_instance(SubnetId=cloud.subnets()[2], **product.tagged()))
    answer = cloud.invoke(stack.out["ReconcileFunction"], {"dry_run": True})
    assert {"eni": late, "reason": "account_quota"} in answer["skipped"]
    product.update(cloud, SessionHourUsd="0.015", SessionHeadroom="100")
    wait_until(lambda: len(product.sessions(cloud)) == 2, 10, "its session")
    ec2 = cloud.client("ec2")
    (shown,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[late])["NetworkInterfaces"]
    ec2.terminate_instances(InstanceIds=[shown["Attachment"]["InstanceId"]])


def test_a_foreign_session_on_our_target_stops_the_removal_with_a_reason(cloud: Cloud, stack: SimpleNamespace) -> None:
    """Ours go; what carries no tag of ours is nobody's to delete, and CloudFormation says what is in the way."""
    ec2, client = cloud.client("ec2"), cloud.client("cloudformation")
    foreign = ec2.create_traffic_mirror_session(
        NetworkInterfaceId=cloud.interface(), TrafficMirrorTargetId=stack.out["MirrorTargetId"],
        TrafficMirrorFilterId=stack.out["MirrorFilterId"], SessionNumber=1,
    )["TrafficMirrorSession"]["TrafficMirrorSessionId"]  # fmt: skip
    client.delete_stack(StackName=product.STACK)
    wait_until(lambda: product.status(cloud) == "DELETE_FAILED", 30, "the removal to fail")
    assert [s["id"] for s in product.sessions(cloud)] == [foreign]
    failed = [
        e
        for e in client.describe_stack_events(StackName=product.STACK)["StackEvents"]
        if e["ResourceStatus"] == "DELETE_FAILED"
    ]
    assert any("TrafficMirrorTargetInUse" in e["ResourceStatusReason"] for e in failed)
    ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=foreign)


def test_sam_delete_leaves_nothing(cloud: Cloud, stack: SimpleNamespace) -> None:
    product.sam(cloud, "delete", "--no-prompts", "--stack-name", product.STACK, "--region", "us-east-1")
    ec2 = cloud.client("ec2")
    assert ec2.describe_traffic_mirror_sessions()["TrafficMirrorSessions"] == []
    assert ec2.describe_traffic_mirror_targets()["TrafficMirrorTargets"] == []
    assert ec2.describe_traffic_mirror_filters()["TrafficMirrorFilters"] == []
    assert cloud.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert cloud.client("elbv2").describe_target_groups()["TargetGroups"] == []
    assert cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []
    assert cloud.client("lambda").list_functions()["Functions"] == []
    assert cloud.client("lambda").list_layers()["Layers"] == []
    assert cloud.client("sqs").list_queues().get("QueueUrls", []) == []
    assert cloud.client("events").list_rules()["Rules"] == []
    assert [
        r["RoleName"] for r in cloud.client("iam").list_roles()["Roles"] if r["RoleName"].startswith(product.STACK)
    ] == []
    # The mirrored instance is none of the stack's business.
    assert [i["enis"][0]["id"] for i in cloud.lab("network")["instances"]] == [stack.before]

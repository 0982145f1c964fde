"""The event bus: patterns, targets and their permissions, schedules, and the events that AWS sends by itself."""

from __future__ import annotations

import ipaddress
import itertools
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import Cloud, free_port, function, wait_until

ACCOUNT = "123456789012"
_names = itertools.count()


class Ear:
    """A queue that listens to the bus through a rule."""

    def __init__(self, cloud: Cloud, pattern: dict[str, Any] | None = None, permit: bool = True, **target: Any):
        self.cloud = cloud
        self.sqs, self.events = cloud.client("sqs"), cloud.client("events")
        self.name = f"ear-{next(_names)}-{uuid.uuid4().hex[:6]}"
        self.queue = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        self.arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{self.name}"
        if pattern is not None:
            self.rule = self.events.put_rule(Name=self.name, EventPattern=json.dumps(pattern))["RuleArn"]
            if permit:
                self.permit(self.rule)
            self.events.put_targets(Rule=self.name, Targets=[{"Id": "queue", "Arn": self.arn, **target}])

    def permit(self, rule: str) -> None:
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": self.arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.sqs.set_queue_attributes(QueueUrl=self.queue, Attributes={"Policy": policy})

    def heard(self) -> list[Any]:
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [json.loads(m["Body"]) for m in found.get("Messages", [])]

    def hears(self, count: int = 1, seconds: float = 5) -> list[Any]:
        """Waits for so many events, and a little for one too many."""
        wait_until(lambda: len(self.heard()) >= count, seconds, f"{count} events")
        time.sleep(0.2)
        found = self.heard()
        assert len(found) == count, found
        return found

    def is_silent(self) -> bool:
        time.sleep(0.4)
        return self.heard() == []


def put(cloud: Cloud, source: str, kind: str = "Thing", **detail: Any) -> None:
    entry = {"Source": source, "DetailType": kind, "Detail": json.dumps(detail)}
    assert cloud.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 0


# -- rules and targets ---------------------------------------------------------------------------------------------


def test_a_matching_event_arrives_whole(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["a.test"], "detail": {"state": ["on"]}})
    put(cloud, "a.test", state="on", more=[1])
    put(cloud, "a.test", state="off")
    put(cloud, "another", state="on")
    (event,) = ear.hears()
    assert event.keys() == {
        "version",
        "id",
        "detail-type",
        "source",
        "account",
        "time",
        "region",
        "resources",
        "detail",
    }
    assert (event["source"], event["detail-type"], event["account"], event["region"]) == (
        "a.test",
        "Thing",
        ACCOUNT,
        "us-east-1",
    )
    assert event["detail"] == {"state": "on", "more": [1]}
    assert time.strptime(event["time"], "%Y-%m-%dT%H:%M:%SZ")


def test_without_a_queue_policy_nothing_arrives(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["b.test"]}, permit=False)
    before = cloud.lab("events").get("failed", 0)
    put(cloud, "b.test")
    assert ear.is_silent()
    assert cloud.lab("events")["failed"] == before + 1
    ear.permit("arn:aws:events:us-east-1:123456789012:rule/another")
    put(cloud, "b.test")
    assert ear.is_silent()
    ear.permit(ear.rule)
    put(cloud, "b.test")
    ear.hears()


def test_a_disabled_rule_is_deaf(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["c.test"]})
    cloud.client("events").disable_rule(Name=ear.name)
    put(cloud, "c.test")
    assert ear.is_silent()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"Input": '{"constant": 1}'}, {"constant": 1}),
        ({"InputPath": "$.detail"}, {"word": "x", "n": 2}),
        (
            {
                "InputTransformer": {
                    "InputPathsMap": {"w": "$.detail.word", "n": "$.detail.n"},
                    "InputTemplate": '{"said": "<w>", "n": <n>}',
                }
            },
            {"said": "x", "n": 2},
        ),
    ],
)
def test_a_target_may_get_something_else_than_the_event(cloud: Cloud, target: dict[str, Any], expected: Any) -> None:
    source = f"d.{uuid.uuid4().hex}"
    ear = Ear(cloud, {"source": [source]}, **target)
    put(cloud, source, word="x", n=2)
    assert ear.hears() == [expected]


def test_a_function_is_invoked_if_it_permits_the_rule(cloud: Cloud) -> None:
    arn = cloud.create_function(
        "listens", function("def handle(event, context): print('EVENT ' + json.dumps(event), flush=True)")
    )
    events = cloud.client("events")
    rule = events.put_rule(Name="to-function", EventPattern=json.dumps({"source": ["e.test"]}))["RuleArn"]
    events.put_targets(Rule="to-function", Targets=[{"Id": "f", "Arn": arn}])
    put(cloud, "e.test", n=1)
    time.sleep(0.4)
    assert "EVENT" not in cloud.lab("logs/listens")
    cloud.client("lambda").add_permission(
        FunctionName="listens",
        StatementId="s",
        Action="lambda:InvokeFunction",
        Principal="events.amazonaws.com",
        SourceArn=rule,
    )
    put(cloud, "e.test", n=2)
    wait_until(lambda: '"detail": {"n": 2}' in cloud.lab("logs/listens"), 5, "the event")
    assert '"detail": {"n": 1}' not in cloud.lab("logs/listens")


# -- schedules -----------------------------------------------------------------------------------------------------


def scheduled(cloud: Cloud, expression: str = "rate(1 minute)") -> Ear:
    ear = Ear(cloud)
    rule = cloud.client("events").put_rule(Name=ear.name, ScheduleExpression=expression)["RuleArn"]
    ear.permit(rule)
    cloud.client("events").put_targets(Rule=ear.name, Targets=[{"Id": "queue", "Arn": ear.arn}])
    return ear


def test_a_schedule_fires_on_a_tick_and_on_no_event(cloud: Cloud) -> None:
    ear = scheduled(cloud)
    put(cloud, "anything")
    assert ear.is_silent()
    assert cloud.lab("tick", "POST")["fired"] >= 1
    (event,) = ear.hears()
    assert (event["source"], event["detail-type"], event["detail"]) == ("aws.events", "Scheduled Event", {})
    assert event["resources"] == [f"arn:aws:events:us-east-1:{ACCOUNT}:rule/{ear.name}"]
    cloud.client("events").disable_rule(Name=ear.name)
    cloud.lab("tick", "POST")
    ear.hears(1)


def test_a_schedule_of_the_scheduler_fires_on_a_tick(cloud: Cloud) -> None:
    ear = Ear(cloud)
    cloud.client("scheduler").create_schedule(
        Name=ear.name,
        ScheduleExpression="rate(5 minutes)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": ear.arn, "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/x", "Input": '{"sweep": true}'},
    )
    cloud.lab("tick", "POST")
    assert ear.hears() == [{"sweep": True}]


def test_with_the_clock_on_a_schedule_fires_by_itself(tmp_path: Path) -> None:
    cloud = Cloud(free_port(), tmp_path, "--schedules", "on", "--second", "0.01")
    try:
        ear = scheduled(cloud)
        wait_until(lambda: len(ear.heard()) >= 2, 15, "it to fire twice")
    finally:
        cloud.stop()


# -- what AWS tells by itself ----------------------------------------------------------------------------------------


def states(ear: Ear, count: int) -> list[tuple[str, str]]:
    found = sorted(ear.hears(count), key=lambda e: e["time"])
    return [(e["detail"]["instance-id"], e["detail"]["state"]) for e in found]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("terminate_instances", {"shutting-down", "terminated"}),
        ("stop_instances", {"stopping", "stopped"}),
    ],
)
def test_the_states_of_an_instance_are_told(cloud: Cloud, call: str, expected: set[str]) -> None:
    ear = Ear(cloud, {"source": ["aws.ec2"], "detail-type": ["EC2 Instance State-change Notification"]})
    instance = cloud.run_instance()["InstanceId"]
    events = ear.hears(2)
    assert {e["detail"]["state"] for e in events} == {"pending", "running"}
    assert events[0]["resources"] == [f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/{instance}"]
    assert {e["detail"]["instance-id"] for e in events} == {instance}
    getattr(cloud.client("ec2"), call)(InstanceIds=[instance])
    assert {s for _, s in states(ear, 4)} == {"pending", "running"} | expected
    cloud.client("events").disable_rule(Name=ear.name)


def test_an_event_comes_after_the_call_was_answered(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["aws.ec2"], "detail": {"state": ["pending"]}})
    cloud.run_instance()
    assert ear.heard() == []
    ear.hears()
    cloud.client("events").disable_rule(Name=ear.name)


def group(cloud: Cloud, name: str, size: int, **more: Any) -> None:
    ec2 = cloud.client("ec2")
    ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro", **more}
    )
    cloud.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchTemplate={"LaunchTemplateName": name, "Version": "$Latest"},
        MinSize=0,
        MaxSize=9,
        DesiredCapacity=size,
        VPCZoneIdentifier=",".join(cloud.subnets()[:2]),
        Tags=[
            {
                "Key": "Mirror",
                "Value": "true",
                "PropagateAtLaunch": True,
                "ResourceId": name,
                "ResourceType": "auto-scaling-group",
            },
            {
                "Key": "Own",
                "Value": "x",
                "PropagateAtLaunch": False,
                "ResourceId": name,
                "ResourceType": "auto-scaling-group",
            },
        ],
    )


def members(cloud: Cloud, name: str) -> list[dict[str, Any]]:
    return [i for i in cloud.lab("network")["instances"] if i["asg"] == name]


def test_a_group_tells_its_launches_and_ends_and_its_instances_carry_its_tags(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["aws.autoscaling"], "detail": {"AutoScalingGroupName": ["web"]}})
    running = Ear(cloud, {"source": ["aws.ec2"], "detail": {"state": ["running"]}})
    group(cloud, "web", 2)
    launched = ear.hears(2)
    assert {e["detail-type"] for e in launched} == {"EC2 Instance Launch Successful"}
    instances = members(cloud, "web")
    assert {e["detail"]["EC2InstanceId"] for e in launched} == {i["id"] for i in instances}
    assert {e["detail"]["instance-id"] for e in running.hears(2)} == {i["id"] for i in instances}
    assert launched[0]["resources"][0].endswith(":autoScalingGroupName/web")
    assert launched[0]["resources"][1].endswith(launched[0]["detail"]["EC2InstanceId"])
    for instance in instances:
        assert instance["tags"]["Mirror"] == "true"
        assert "Own" not in instance["tags"]
        assert instance["enis"][0]["private_ip"].startswith("172.31.")
    assert len({i["enis"][0]["subnet"] for i in instances}) == 2, "the group spreads over its subnets"

    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    (ended,) = [e for e in ear.hears(3) if e["detail-type"] == "EC2 Instance Terminate Successful"]
    (left,) = members(cloud, "web")
    assert ended["detail"]["EC2InstanceId"] in {i["id"] for i in instances} - {left["id"]}
    cloud.client("events").disable_rule(Name=running.name)


def test_a_terminated_member_is_replaced(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["aws.autoscaling"], "detail": {"AutoScalingGroupName": ["heals"]}})
    group(cloud, "heals", 1)
    (before,) = members(cloud, "heals")
    cloud.client("ec2").terminate_instances(InstanceIds=[before["id"]])
    kinds = [e["detail-type"] for e in ear.hears(3)]
    assert sorted(kinds) == [
        "EC2 Instance Launch Successful",
        "EC2 Instance Launch Successful",
        "EC2 Instance Terminate Successful",
    ]
    (after,) = members(cloud, "heals")
    assert after["id"] != before["id"]


def test_a_group_launches_the_version_that_it_names(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    group(cloud, "versions", 0)
    secure = ec2.create_security_group(GroupName="second", Description="x")["GroupId"]
    ec2.create_launch_template_version(
        LaunchTemplateName="versions",
        LaunchTemplateData={
            "ImageId": "ami-12345678",
            "InstanceType": "m5.large",
            "SecurityGroupIds": [secure],
            "UserData": "aGk=",
        },
    )
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName="versions", DesiredCapacity=1)
    (member,) = members(cloud, "versions")
    (instance,) = ec2.describe_instances(InstanceIds=[member["id"]])["Reservations"][0]["Instances"]
    assert instance["InstanceType"] == "m5.large"
    assert [g["GroupId"] for g in instance["SecurityGroups"]] == [secure]


def test_a_tag_change_of_an_instance_is_told(cloud: Cloud) -> None:
    ear = Ear(cloud, {"source": ["aws.tag"]})
    instance, ec2 = cloud.run_instance()["InstanceId"], cloud.client("ec2")
    ec2.create_tags(Resources=[instance], Tags=[{"Key": "Mirror", "Value": "true"}])
    (event,) = ear.hears()
    assert event["detail-type"] == "Tag Change on Resource"
    assert event["resources"] == [f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/{instance}"]
    detail = event["detail"]
    assert (detail["service"], detail["resource-type"]) == ("ec2", "instance")
    assert detail["changed-tag-keys"] == ["Mirror"]
    assert detail["tags"] == {"Mirror": "true"}
    ec2.create_tags(Resources=[instance], Tags=[{"Key": "Mirror", "Value": "true"}])  # changes nothing
    ec2.delete_tags(Resources=[instance], Tags=[{"Key": "Mirror"}])
    gone = [e for e in ear.hears(2) if e["id"] != event["id"]]
    assert gone[0]["detail"]["tags"] == {}


def test_an_instance_in_a_subnet_with_ipv6_gets_an_address(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
    block = vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"].replace("/56", "/64")
    subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.7.1.0/24", Ipv6CidrBlock=block)["Subnet"]["SubnetId"]
    instance = cloud.run_instance(SubnetId=subnet)["InstanceId"]
    (row,) = [i for i in cloud.lab("network")["instances"] if i["id"] == instance]
    (address,) = row["enis"][0]["ipv6"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(block)
    assert row["enis"][0]["private_ip"].startswith("10.7.1.")


def test_a_terminated_instance_shows_no_interface_and_is_gone_from_the_lab(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    instance = cloud.run_instance()
    eni = instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    (shown,) = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])["Reservations"][0]["Instances"]
    assert shown["State"]["Name"] == "terminated"
    assert shown.get("NetworkInterfaces", []) == []
    assert eni not in [e["NetworkInterfaceId"] for e in ec2.describe_network_interfaces()["NetworkInterfaces"]]
    assert instance["InstanceId"] not in [i["id"] for i in cloud.lab("network")["instances"]]

"""What the lab's load balancer is told of target groups, and what it tells: the health of targets is as it finds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Cloud, wait_until


@pytest.fixture(scope="module")
def fleet(cloud: Cloud) -> SimpleNamespace:
    """A group of two instances behind a network load balancer."""
    vpc = cloud.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    made = cloud.client("elbv2").create_target_group(
        Name="targets", VpcId=vpc, Protocol="UDP", Port=4789, TargetType="instance", HealthCheckProtocol="HTTP",
        HealthCheckPort="9445", HealthCheckPath="/healthz", HealthCheckIntervalSeconds=5, HealthCheckTimeoutSeconds=3,
        HealthyThresholdCount=2, UnhealthyThresholdCount=3, Matcher={"HttpCode": "200"},
    )  # fmt: skip
    arn = made["TargetGroups"][0]["TargetGroupArn"]
    cloud.client("elbv2").modify_target_group_attributes(
        TargetGroupArn=arn,
        Attributes=[
            {"Key": "deregistration_delay.timeout_seconds", "Value": "2"},
            {"Key": "deregistration_delay.connection_termination.enabled", "Value": "true"},
        ],
    )
    cloud.client("ec2").create_launch_template(
        LaunchTemplateName="fleet", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    )
    cloud.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="fleet", LaunchTemplate={"LaunchTemplateName": "fleet"}, MinSize=0, MaxSize=4,
        DesiredCapacity=2, VPCZoneIdentifier=cloud.subnets()[0], TargetGroupARNs=[arn], HealthCheckType="ELB",
        HealthCheckGracePeriod=0,
    )  # fmt: skip
    return SimpleNamespace(arn=arn, group="fleet")


def shown(cloud: Cloud, fleet: SimpleNamespace) -> dict[str, Any]:
    (found,) = [g for g in cloud.lab("network")["target_groups"] if g["arn"] == fleet.arn]
    return found


def running(cloud: Cloud, fleet: SimpleNamespace) -> dict[str, str]:
    """Instances of the group and their addresses."""
    found = [i for i in cloud.lab("network")["instances"] if i["asg"] == fleet.group]
    return {i["id"]: i["enis"][0]["private_ip"] for i in found}


def health(cloud: Cloud, fleet: SimpleNamespace) -> dict[str, tuple[str, str | None]]:
    found = cloud.client("elbv2").describe_target_health(TargetGroupArn=fleet.arn)["TargetHealthDescriptions"]
    return {t["Target"]["Id"]: (t["TargetHealth"]["State"], t["TargetHealth"].get("Reason")) for t in found}


def report(cloud: Cloud, fleet: SimpleNamespace, **states: str) -> None:
    targets = {target.replace("_", "-"): {"state": state, "reason": "because"} for target, state in states.items()}
    cloud.lab("health", "POST", {"target_group": fleet.arn, "targets": targets})


def named(instance: str) -> str:
    return instance.replace("-", "_")


def test_the_load_balancer_sees_what_the_account_says(cloud: Cloud, fleet: SimpleNamespace) -> None:
    found = shown(cloud, fleet)
    assert found["check"] == {
        "port": 9445, "path": "/healthz", "interval": 5, "timeout": 3, "healthy_threshold": 2, "unhealthy_threshold": 3,
        "codes": "200",
    }  # fmt: skip
    assert found["connection_termination"] is True
    assert {t["id"]: t["address"] for t in found["targets"]} == running(cloud, fleet)
    assert [t["leaves_in"] for t in found["targets"]] == [None, None]


def test_targets_are_as_it_finds_them(cloud: Cloud, fleet: SimpleNamespace) -> None:
    first, second = running(cloud, fleet)
    assert set(health(cloud, fleet).values()) == {("healthy", None)}, "as long as there is no load balancer"
    report(cloud, fleet, **{named(first): "healthy"})
    assert health(cloud, fleet) == {first: ("healthy", None), second: ("initial", "Elb.InitialHealthChecking")}


def test_one_that_leaves_is_shown_until_its_delay_is_over(cloud: Cloud, fleet: SimpleNamespace) -> None:
    leaver = min(running(cloud, fleet))
    cloud.client("elbv2").deregister_targets(TargetGroupArn=fleet.arn, Targets=[{"Id": leaver}])
    (row,) = [t for t in shown(cloud, fleet)["targets"] if t["id"] == leaver]
    # Two seconds of delay, and what the flows go on after it.
    assert 3 < row["leaves_in"] <= 5
    wait_until(lambda: leaver not in [t["id"] for t in shown(cloud, fleet)["targets"]], 8, "its end")
    cloud.client("elbv2").register_targets(TargetGroupArn=fleet.arn, Targets=[{"Id": leaver}])


def test_an_unhealthy_instance_is_replaced_unless_that_is_suspended(cloud: Cloud, fleet: SimpleNamespace) -> None:
    scaling = cloud.client("autoscaling")
    before = set(running(cloud, fleet))
    ill, well = sorted(before)
    states = {named(well): "healthy", named(ill): "unhealthy"}
    scaling.suspend_processes(AutoScalingGroupName=fleet.group, ScalingProcesses=["ReplaceUnhealthy"])
    report(cloud, fleet, **states)
    assert health(cloud, fleet)[ill] == ("unhealthy", "Target.FailedHealthChecks")
    assert set(running(cloud, fleet)) == before
    scaling.resume_processes(AutoScalingGroupName=fleet.group, ScalingProcesses=["ReplaceUnhealthy"])
    scaling.update_auto_scaling_group(AutoScalingGroupName=fleet.group, HealthCheckGracePeriod=3600)
    report(cloud, fleet, **states)
    assert set(running(cloud, fleet)) == before, "its grace period is not over"
    scaling.update_auto_scaling_group(AutoScalingGroupName=fleet.group, HealthCheckGracePeriod=0)
    report(cloud, fleet, **states)
    after = set(running(cloud, fleet))
    assert ill not in after
    assert well in after
    assert len(after) == 2
    # Its flows go on although it is gone: that is what the load balancer does.
    assert ill in [t["id"] for t in shown(cloud, fleet)["targets"] if t["leaves_in"]]

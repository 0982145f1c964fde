"""One of each type that CloudFormation can make here: made, described through its own API, changed, removed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Cloud, function, package, wait_until
from test_cloudformation_order import deploy, outputs, reasons, remove

TRUSTED = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
TRUST = {"Version": "2012-10-17", "Statement": [TRUSTED]}
TAKES = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
MAY_TAKE = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": TAKES, "Resource": "*"}]}
SUB = "Fn::Sub"


def get(name: str, attribute: str) -> dict[str, Any]:
    return {"Fn::GetAtt": [name, attribute]}


def ref(name: str) -> dict[str, str]:
    return {"Ref": name}


def resource(kind: str, **properties: Any) -> dict[str, Any]:
    return {"Type": kind, "Properties": properties}


def everything(cloud: Cloud, word: str, size: str) -> dict[str, Any]:
    """A template with each type; ``word`` and ``size`` change what can be changed in place."""
    vpc = cloud.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = cloud.subnets()[:2]
    code = {"S3Bucket": "types", "S3Key": f"{word}.zip"}
    launch = {"ImageId": "ami-12345678", "InstanceType": "t3.micro", "UserData": {"Fn::Base64": word}}
    return {
        "Group": resource(
            "AWS::EC2::SecurityGroup",
            GroupDescription="x",
            VpcId=vpc,
            SecurityGroupIngress=[{"IpProtocol": "tcp", "FromPort": size, "ToPort": size, "CidrIp": "10.0.0.0/8"}],
            SecurityGroupEgress=[{"IpProtocol": "-1", "CidrIpv6": "::/0"}],
        ),
        "GroupIn": resource(
            "AWS::EC2::SecurityGroupIngress",
            GroupId=ref("Group"),
            IpProtocol="udp",
            FromPort=1,
            ToPort=2,
            SourceSecurityGroupId=ref("Group"),
        ),
        "GroupOut": resource(
            "AWS::EC2::SecurityGroupEgress",
            GroupId=ref("Group"),
            IpProtocol="udp",
            FromPort=3,
            ToPort=4,
            CidrIp="10.0.0.0/8",
        ),
        "Launch": resource(
            "AWS::EC2::LaunchTemplate", LaunchTemplateData={**launch, "SecurityGroupIds": [ref("Group")]}
        ),
        "Balancer": resource(
            "AWS::ElasticLoadBalancingV2::LoadBalancer",
            Type="network",
            Subnets=subnets,
            LoadBalancerAttributes=[{"Key": "load_balancing.cross_zone.enabled", "Value": "true"}],
        ),
        "Targets": resource(
            "AWS::ElasticLoadBalancingV2::TargetGroup",
            Protocol="UDP",
            Port=4789,
            VpcId=vpc,
            HealthCheckProtocol="HTTP",
            HealthCheckPort="9445",
            HealthCheckPath=f"/{word}",
        ),
        "Listener": resource(
            "AWS::ElasticLoadBalancingV2::Listener",
            LoadBalancerArn=ref("Balancer"),
            Protocol="UDP",
            Port=4789,
            DefaultActions=[{"Type": "forward", "TargetGroupArn": ref("Targets")}],
        ),
        "Fleet": resource(
            "AWS::AutoScaling::AutoScalingGroup",
            MinSize="1",
            MaxSize=size,
            VPCZoneIdentifier=subnets,
            LaunchTemplate={"LaunchTemplateId": ref("Launch"), "Version": get("Launch", "LatestVersionNumber")},
            TargetGroupARNs=[ref("Targets")],
            Tags=[{"Key": "Name", "Value": word, "PropagateAtLaunch": "true"}],
        )
        | {"UpdatePolicy": {"AutoScalingRollingUpdate": {}}},
        "Hook": resource(
            "AWS::AutoScaling::LifecycleHook",
            AutoScalingGroupName=ref("Fleet"),
            LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
            HeartbeatTimeout=size,
            DefaultResult="CONTINUE",
        ),
        "Policy": resource(
            "AWS::AutoScaling::ScalingPolicy",
            AutoScalingGroupName=ref("Fleet"),
            PolicyType="TargetTrackingScaling",
            TargetTrackingConfiguration={
                "PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
                "TargetValue": size,
            },
        ),
        "Target": resource(
            "AWS::EC2::TrafficMirrorTarget",
            NetworkLoadBalancerArn=ref("Balancer"),
            Tags=[{"Key": "Name", "Value": "x"}],
        ),
        "Filter": resource("AWS::EC2::TrafficMirrorFilter", Tags=[{"Key": "Name", "Value": word}]),
        "Rule": resource(
            "AWS::EC2::TrafficMirrorFilterRule",
            TrafficMirrorFilterId=ref("Filter"),
            TrafficDirection="egress",
            RuleNumber=size,
            RuleAction="accept",
            SourceCidrBlock="0.0.0.0/0",
            DestinationCidrBlock="0.0.0.0/0",
        ),
        "Session": resource(
            "AWS::EC2::TrafficMirrorSession",
            NetworkInterfaceId=cloud.lone,
            TrafficMirrorTargetId=ref("Target"),
            TrafficMirrorFilterId=ref("Filter"),
            SessionNumber=size,
        ),
        "Role": resource(
            "AWS::IAM::Role",
            AssumeRolePolicyDocument=TRUST,
            Policies=[{"PolicyName": word, "PolicyDocument": MAY_TAKE}],
        ),
        "RolePolicy": resource(
            "AWS::IAM::Policy", PolicyName="more", Roles=[ref("Role")], PolicyDocument={**MAY_TAKE, "Id": word}
        ),
        "Managed": resource("AWS::IAM::ManagedPolicy", Roles=[ref("Role")], PolicyDocument=MAY_TAKE),
        "Profile": resource("AWS::IAM::InstanceProfile", Roles=[ref("Role")]),
        "Function": resource(
            "AWS::Lambda::Function",
            Runtime="provided.al2023",
            Handler="bootstrap",
            Code=code,
            Role=get("Role", "Arn"),
            Timeout="7",
            MemorySize="256",
            Environment={"Variables": {"WORD": word}},
        ),
        "Layer": resource(
            "AWS::Lambda::LayerVersion",
            Content={"S3Bucket": "types", "S3Key": "old.zip"},
            CompatibleRuntimes=["provided.al2023"],
        ),
        "Permission": resource(
            "AWS::Lambda::Permission",
            FunctionName=ref("Function"),
            Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com",
            SourceArn=get("Event", "Arn"),
        ),
        "Invoke": resource(
            "AWS::Lambda::EventInvokeConfig",
            FunctionName=ref("Function"),
            Qualifier="$LATEST",
            MaximumRetryAttempts="0",
        ),
        "Mapping": resource(
            "AWS::Lambda::EventSourceMapping",
            FunctionName=ref("Function"),
            EventSourceArn=get("Queue", "Arn"),
            BatchSize=size,
            MaximumBatchingWindowInSeconds=1,
        ),
        "Queue": resource(
            "AWS::SQS::Queue",
            VisibilityTimeout="60",
            MessageRetentionPeriod=int(size) * 100,
            RedrivePolicy={"deadLetterTargetArn": get("Dead", "Arn"), "maxReceiveCount": 3},
        ),
        "Dead": resource("AWS::SQS::Queue"),
        "QueuePolicy": resource(
            "AWS::SQS::QueuePolicy",
            Queues=[ref("Queue")],
            PolicyDocument={
                "Version": "2012-10-17",
                "Id": word,
                "Statement": [
                    {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": get("Queue", "Arn")}
                ],
            },
        ),
        "Event": resource(
            "AWS::Events::Rule", EventPattern={"source": [word]}, Targets=[{"Id": "q", "Arn": get("Queue", "Arn")}]
        ),
        "Schedule": resource(
            "AWS::Scheduler::Schedule",
            ScheduleExpression=f"rate({size} minutes)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": get("Queue", "Arn"), "RoleArn": get("Role", "Arn")},
        ),
        "Topic": resource("AWS::SNS::Topic", Subscription=[{"Protocol": "sqs", "Endpoint": get("Dead", "Arn")}]),
        "Alarm": resource(
            "AWS::CloudWatch::Alarm",
            Namespace="N",
            MetricName="M",
            Statistic="Sum",
            Period="60",
            EvaluationPeriods=1,
            Threshold=size,
            ComparisonOperator="GreaterThanThreshold",
            AlarmActions=[ref("Topic")],
        ),
        "Dashboard": resource(
            "AWS::CloudWatch::Dashboard", DashboardBody={SUB: json.dumps({"widgets": [], "word": word})}
        ),
        "Logs": resource("AWS::Logs::LogGroup", RetentionInDays=size),
        "Parameter": resource("AWS::SSM::Parameter", Type="String", Value=word),
        "Secret": resource(
            "AWS::SecretsManager::Secret",
            GenerateSecretString={
                "PasswordLength": 12,
                "SecretStringTemplate": '{"user": "u"}',
                "GenerateStringKey": "password",
            },
        ),
        "Bucket": resource("AWS::S3::Bucket", VersioningConfiguration={"Status": "Enabled"}),
    }


NAMES = (
    "Group",
    "Launch",
    "Balancer",
    "Targets",
    "Fleet",
    "Hook",
    "Filter",
    "Session",
    "Role",
    "Function",
    "Layer",
    "Queue",
    "Event",
    "Schedule",
    "Alarm",
    "Dashboard",
    "Logs",
    "Parameter",
    "Secret",
    "Bucket",
    "Mapping",
    "Topic",
)
OUTPUTS = {name: {"Value": ref(name)} for name in NAMES}


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> dict[str, Any]:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="types")
    for word in ("old", "new"):
        code = package(function(f"def handle(event, context): return [{word!r}, os.environ['WORD']]"))
        s3.put_object(Bucket="types", Key=f"{word}.zip", Body=code)
    cloud.lone = cloud.interface()  # type: ignore[attr-defined]
    made = deploy(cloud, "types", everything(cloud, "old", "5"), template={"Outputs": OUTPUTS})
    assert made["StackStatus"] == "CREATE_COMPLETE", reasons(cloud, made, "CREATE_FAILED")
    return made


def look(cloud: Cloud, out: dict[str, str]) -> dict[str, Any]:
    """What the services themselves say of the resources."""
    ec2, elb, scaling = cloud.client("ec2"), cloud.client("elbv2"), cloud.client("autoscaling")
    sqs, function_client = cloud.client("sqs"), cloud.client("lambda")
    (group,) = ec2.describe_security_groups(GroupIds=[out["Group"]])["SecurityGroups"]
    queue = sqs.get_queue_attributes(QueueUrl=out["Queue"], AttributeNames=["All"])["Attributes"]
    role = cloud.client("iam").list_role_policies(RoleName=out["Role"])["PolicyNames"]
    (fleet,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[out["Fleet"]])["AutoScalingGroups"]
    (alarm,) = cloud.client("cloudwatch").describe_alarms(AlarmNames=[out["Alarm"]])["MetricAlarms"]
    (logs,) = cloud.client("logs").describe_log_groups(logGroupNamePrefix=out["Logs"])["logGroups"]
    (hook,) = scaling.describe_lifecycle_hooks(AutoScalingGroupName=out["Fleet"])["LifecycleHooks"]
    (policy,) = scaling.describe_policies(AutoScalingGroupName=out["Fleet"])["ScalingPolicies"]
    (session,) = ec2.describe_traffic_mirror_sessions(TrafficMirrorSessionIds=[out["Session"]])["TrafficMirrorSessions"]
    (shown,) = ec2.describe_traffic_mirror_filters(TrafficMirrorFilterIds=[out["Filter"]])["TrafficMirrorFilters"]
    (targets,) = elb.describe_target_groups(TargetGroupArns=[out["Targets"]])["TargetGroups"]
    return {
        "ingress": sorted((p["IpProtocol"], p["FromPort"]) for p in group["IpPermissions"]),
        "egress": sorted(p["IpProtocol"] for p in group["IpPermissionsEgress"]),
        "health": targets["HealthCheckPath"],
        "fleet": (fleet["MaxSize"], len(fleet["Instances"])),
        "hook": hook["HeartbeatTimeout"],
        "policy": policy["TargetTrackingConfiguration"]["TargetValue"],
        "filter": ([r["RuleNumber"] for r in shown["EgressFilterRules"]], shown["Tags"][0]["Value"]),
        "session": session["SessionNumber"],
        "role": sorted(role),
        "function": cloud.invoke(out["Function"], {}),
        "mapping": function_client.get_event_source_mapping(UUID=out["Mapping"])["BatchSize"],
        "queue": (queue["MessageRetentionPeriod"], json.loads(queue["Policy"])["Id"], "RedrivePolicy" in queue),
        "event": json.loads(cloud.client("events").describe_rule(Name=out["Event"])["EventPattern"]),
        "schedule": cloud.client("scheduler").get_schedule(Name=out["Schedule"])["ScheduleExpression"],
        "alarm": alarm["Threshold"],
        "logs": logs["retentionInDays"],
        "parameter": cloud.client("ssm").get_parameter(Name=out["Parameter"])["Parameter"]["Value"],
        "secret": sorted(
            json.loads(cloud.client("secretsmanager").get_secret_value(SecretId=out["Secret"])["SecretString"])
        ),
    }


def expected(word: str, size: int) -> dict[str, Any]:
    return {
        "ingress": [("tcp", size), ("udp", 1)],
        "egress": ["-1", "udp"],
        "health": f"/{word}",
        "fleet": (size, 1),
        "hook": size,
        "policy": float(size),
        "filter": ([size], word),
        "session": size,
        "role": sorted(["more", word]),
        "function": [word, word],
        "mapping": size,
        "queue": (str(size * 100), word, True),
        "event": {"source": [word]},
        "schedule": f"rate({size} minutes)",
        "alarm": float(size),
        "logs": size,
        "parameter": word,
        "secret": ["password", "user"],
    }


def test_each_type_is_what_the_template_says(cloud: Cloud, stack: dict[str, Any]) -> None:
    assert look(cloud, outputs(stack)) == expected("old", 5)


def test_each_type_changes_in_place(cloud: Cloud, stack: dict[str, Any]) -> None:
    changed = deploy(cloud, "types", everything(cloud, "new", "7"), update=True, template={"Outputs": OUTPUTS})
    assert changed["StackStatus"] == "UPDATE_COMPLETE", reasons(cloud, changed, "UPDATE_FAILED")
    assert outputs(changed) == outputs(stack), "no resource was replaced"
    # The instance of the old version waits for the hook, which nobody answers.
    wait_until(lambda: look(cloud, outputs(changed))["fleet"] == (7, 1), 20, "the old instance to go")
    assert look(cloud, outputs(changed)) == expected("new", 7)
    (member,) = [i for i in cloud.lab("network")["instances"] if i["asg"] == outputs(stack)["Fleet"]]
    assert member["tags"]["Name"] == "new", "the instance was replaced by one of the new version"


def test_each_type_is_removed(cloud: Cloud, stack: dict[str, Any]) -> None:
    gone = remove(cloud, stack)
    assert gone["StackStatus"] == "DELETE_COMPLETE", reasons(cloud, stack, "DELETE_FAILED")
    assert cloud.client("lambda").list_functions()["Functions"] == []
    assert cloud.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    assert cloud.client("scheduler").list_schedules()["Schedules"] == []
    assert cloud.client("sqs").list_queues().get("QueueUrls", []) == []
    assert [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]] == ["types"]
    assert cloud.lab("network")["sessions"] == []

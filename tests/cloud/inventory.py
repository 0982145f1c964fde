"""What is in an account, by listing it with each service's own calls, for every resource type of the template.

CloudFormation's word that it made a resource is not asked for here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from conftest import Cloud

Lister = Callable[[Any], Iterable[str]]
"""From a client of the service to the physical ids of what is there."""


def _inline_policies(iam: Any) -> Iterable[str]:
    for role in iam.list_roles()["Roles"]:
        for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
            yield f"{role['RoleName']}/{name}"


def _permissions(client: Any) -> Iterable[str]:
    for function in client.list_functions()["Functions"]:
        try:
            policy = json.loads(client.get_policy(FunctionName=function["FunctionName"])["Policy"])
        except client.exceptions.ResourceNotFoundException:
            continue
        yield from (s["Sid"] for s in policy["Statement"])


def _layers(client: Any) -> Iterable[str]:
    for layer in client.list_layers()["Layers"]:
        versions = client.list_layer_versions(LayerName=layer["LayerName"])["LayerVersions"]
        yield from (v["LayerVersionArn"] for v in versions)


def _listeners(elb: Any) -> Iterable[str]:
    for balancer in elb.describe_load_balancers()["LoadBalancers"]:
        shown = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
        yield from (listener["ListenerArn"] for listener in shown)


def _hooks(autoscaling: Any) -> Iterable[str]:
    for group in autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]:
        name = group["AutoScalingGroupName"]
        shown = autoscaling.describe_lifecycle_hooks(AutoScalingGroupName=name)["LifecycleHooks"]
        yield from (hook["LifecycleHookName"] for hook in shown)


def _filter_rules(ec2: Any) -> Iterable[str]:
    for shown in ec2.describe_traffic_mirror_filters()["TrafficMirrorFilters"]:
        for rule in shown["IngressFilterRules"] + shown["EgressFilterRules"]:
            yield rule["TrafficMirrorFilterRuleId"]


def _queue_policies(sqs: Any) -> Iterable[str]:
    for url in sqs.list_queues().get("QueueUrls", []):
        if sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]).get("Attributes", {}).get("Policy"):
            yield url


def _parameters(ssm: Any) -> Iterable[str]:
    for page in ssm.get_paginator("describe_parameters").paginate():
        # AWS's own show as soon as somebody has asked for one.
        yield from (p["Name"] for p in page["Parameters"] if not p["Name"].startswith("/aws/"))


def each(operation: str, key: str, field: str) -> Lister:
    """Of one call's answer."""
    return lambda client: [item[field] if field else item for item in getattr(client, operation)().get(key, [])]


LISTERS: dict[str, tuple[str, Lister]] = {
    "AWS::AutoScaling::AutoScalingGroup": (
        "autoscaling", each("describe_auto_scaling_groups", "AutoScalingGroups", "AutoScalingGroupName"),
    ),
    "AWS::AutoScaling::LifecycleHook": ("autoscaling", _hooks),
    "AWS::AutoScaling::ScalingPolicy": ("autoscaling", each("describe_policies", "ScalingPolicies", "PolicyARN")),
    "AWS::CloudWatch::Alarm": ("cloudwatch", each("describe_alarms", "MetricAlarms", "AlarmName")),
    "AWS::CloudWatch::Dashboard": ("cloudwatch", each("list_dashboards", "DashboardEntries", "DashboardName")),
    "AWS::EC2::LaunchTemplate": ("ec2", each("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId")),
    "AWS::EC2::SecurityGroup": ("ec2", each("describe_security_groups", "SecurityGroups", "GroupId")),
    "AWS::EC2::SecurityGroupIngress": (
        "ec2", each("describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId"),
    ),
    "AWS::EC2::TrafficMirrorFilter": (
        "ec2", each("describe_traffic_mirror_filters", "TrafficMirrorFilters", "TrafficMirrorFilterId"),
    ),
    "AWS::EC2::TrafficMirrorFilterRule": ("ec2", _filter_rules),
    "AWS::EC2::TrafficMirrorTarget": (
        "ec2", each("describe_traffic_mirror_targets", "TrafficMirrorTargets", "TrafficMirrorTargetId"),
    ),
    "AWS::ElasticLoadBalancingV2::Listener": ("elbv2", _listeners),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": (
        "elbv2", each("describe_load_balancers", "LoadBalancers", "LoadBalancerArn"),
    ),
    "AWS::ElasticLoadBalancingV2::TargetGroup": ("elbv2", each("describe_target_groups", "TargetGroups", "TargetGroupArn")),
    "AWS::Events::Rule": ("events", each("list_rules", "Rules", "Name")),
    "AWS::IAM::InstanceProfile": ("iam", each("list_instance_profiles", "InstanceProfiles", "InstanceProfileName")),
    "AWS::IAM::Role": ("iam", each("list_roles", "Roles", "RoleName")),
    "AWS::Lambda::EventSourceMapping": ("lambda", each("list_event_source_mappings", "EventSourceMappings", "UUID")),
    "AWS::Lambda::Function": ("lambda", each("list_functions", "Functions", "FunctionName")),
    "AWS::Lambda::LayerVersion": ("lambda", _layers),
    "AWS::Lambda::Permission": ("lambda", _permissions),
    "AWS::Logs::LogGroup": ("logs", each("describe_log_groups", "logGroups", "logGroupName")),
    "AWS::SNS::Topic": ("sns", each("list_topics", "Topics", "TopicArn")),
    "AWS::SQS::Queue": ("sqs", each("list_queues", "QueueUrls", "")),
    "AWS::SSM::Parameter": ("ssm", _parameters),
}  # fmt: skip

# What has no id that a service shows: found by what it is attached to. Type -> those that are there.
ATTACHED: dict[str, tuple[str, Lister]] = {
    "AWS::IAM::Policy": ("iam", _inline_policies),
    "AWS::SQS::QueuePolicy": ("sqs", _queue_policies),
}
# A custom resource is nothing of AWS's: what these stand for are mirror sessions, and versions of the layer.
NOTHING = ("Custom::MirrorSessions", "Custom::LayerVersions")


def inventory(cloud: Cloud) -> dict[str, set[str]]:
    """Type -> physical ids, or of what is attached some words, of all that is there."""
    return {kind: set(lister(cloud.client(service))) for kind, (service, lister) in (LISTERS | ATTACHED).items()}

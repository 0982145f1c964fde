"""What parliament, a linter for IAM policies with AWS's own list of actions and resources, finds in each policy.

A finding is fixed, or stands in the Metadata of the resource that holds the policy, with the reason why it is false.
Trust policies are left out: parliament takes a policy without Resource for malformed, and theirs have none.
"""

import json
import re

import parliament
import pytest
import stack
from node import NODES

HOLDERS = ("AWS::IAM::Role", "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::SQS::QueuePolicy")

# ARNs of what policies name by attribute: parliament looks at their form.
ARNS = {
    "AWS::AutoScaling::AutoScalingGroup": "autoscaling:eu-west-1:123456789012:autoScalingGroup:1:autoScalingGroupName/{0}",
    "AWS::ElasticLoadBalancingV2::TargetGroup": "elasticloadbalancing:eu-west-1:123456789012:targetgroup/{0}/1",
    "AWS::Events::Rule": "events:eu-west-1:123456789012:rule/{0}",
    "AWS::Lambda::Function": "lambda:eu-west-1:123456789012:function:{0}",
    "AWS::Logs::LogGroup": "logs:eu-west-1:123456789012:log-group:{0}:*",
    "AWS::SQS::Queue": "sqs:eu-west-1:123456789012:{0}",
}

EVALUATED = stack.Evaluated(**NODES)
SPOKE = stack.Evaluated(AnalyzerUrl="", ExistingTargetId="tmt-0123456789abcdef0")
TYPES = {name: r["Type"] for name, r in EVALUATED.template["Resources"].items()}


def named(value):
    """The value with a name or an ARN for each reference to a resource that does not exist yet."""
    if isinstance(value, dict):
        return {k: named(v) for k, v in value.items()}
    if isinstance(value, list):
        return [named(v) for v in value]
    if not isinstance(value, str):
        return value
    # A target group is referred to by its ARN without an attribute.
    attribute = re.sub(
        r"<(\w+)\.(?:Arn|TargetGroupArn)>", lambda m: "arn:aws:" + ARNS[TYPES[m[1]]].format(f"first-{m[1]}"), value
    )
    return re.sub(
        r"<(\w+)>",
        lambda m: "arn:aws:" + ARNS[TYPES[m[1]]].format(m[1]) if "TargetGroup" in TYPES[m[1]] else f"first-{m[1]}",
        attribute,
    )


def policies():
    """(holder, statement id or None for the whole, policy) of every policy in the stack."""
    for holder, resource in [*EVALUATED.resources().items(), *SPOKE.resources().items()]:
        if resource["Type"] not in HOLDERS:
            continue
        p = resource["Properties"]
        documents = [held["PolicyDocument"] for held in p.get("Policies", [])]
        for document in documents + ([p["PolicyDocument"]] if "PolicyDocument" in p else []):
            yield holder, None, named(document)
            for statement in document["Statement"]:
                yield holder, statement["Sid"], named({**document, "Statement": [statement]})


POLICIES = list(policies())


def as_list(value):
    return value if isinstance(value, list) else [value]


def findings(policy):
    return {f.issue for f in parliament.analyze_policy_string(json.dumps(policy), include_community_auditors=True).findings}


def excused(holder):
    """{(statement id, finding)} of those that the holder's Metadata declares false."""
    declared = EVALUATED.template["Resources"][holder].get("Metadata", {}).get("parliament", [])
    assert all(d["FalseBecause"] for d in declared)
    return {(sid, d["Finding"]) for d in declared for sid in d["Statements"]}


@pytest.mark.parametrize("holder", sorted({holder for holder, _, _ in POLICIES}))
def test_each_finding_is_fixed_or_declared_false_and_none_is_declared_that_is_not_found(holder):
    found = {(sid, f) for h, sid, policy in POLICIES if h == holder and sid for f in findings(policy)}
    assert found == excused(holder)
    # Seen as a whole, a policy may be worse than its statements one by one.
    whole = {f for h, sid, policy in POLICIES if h == holder and sid is None for f in findings(policy)}
    assert whole <= {f for _, f in found}


def test_parliament_finds_what_is_wrong():
    def allows(action, resource):
        return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": resource}]}

    assert findings(allows("ec2:DescribeInstances", "*")) == set()
    assert findings(allows("ec2:DescribeInstance", "*")) == {"UNKNOWN_ACTION"}
    assert findings(allows("sqs:SendMessage", "arn:aws:s3:::bucket")) == {"RESOURCE_MISMATCH"}
    assert findings(allows("sqs:SendMessage", "*")) == {"RESOURCE_STAR"}


def resource_types(action):
    """What resources IAM lets a policy name for an action, from AWS's list."""
    service, name = action.split(":")
    # Several services may share a prefix: both generations of load balancers do.
    found = [
        p
        for s in parliament.iam_definition
        if s["prefix"] == service
        for p in s["privileges"]
        if p["privilege"].lower() == name.lower()
    ]
    assert found, f"{action} is not known"
    return {r["resource_type"].rstrip("*") for p in found for r in p["resource_types"]} - {""}


def test_a_star_stands_only_where_no_resource_can_be_named():
    assert resource_types("ec2:DeleteTrafficMirrorSession") == {"traffic-mirror-session"}
    starred = {
        action
        for _, sid, policy in POLICIES
        if sid
        for statement in policy["Statement"]
        if "*" in as_list(statement["Resource"])
        for action in as_list(statement["Action"])
    }
    assert "ec2:DescribeInstances" in starred
    # ListTasks has the container instance that it is restricted to; ECS asks for * where it is restricted to none.
    assert {a: resource_types(a) for a in starred if resource_types(a)} == {"ecs:ListTasks": {"container-instance"}}

"""What each role may do. A wildcard stands only where the service knows no resources, and here is why for each."""

import re

import pytest
import stack
from node import NODES, SECRET

# Actions for which IAM knows no resource. Source: "Actions, resources, and condition keys" of the service authorization
# reference, where the row's resource column is empty.
WITHOUT_RESOURCES = {
    "cloudwatch:PutMetricData": "CloudWatch: metrics are no resources; its condition names the namespace",
    "ec2:DescribeInstances": "EC2: no Describe action takes a resource",
    "ec2:DescribeNetworkInterfaces": "EC2: no Describe action takes a resource",
    "ec2:DescribeTrafficMirrorSessions": "EC2: no Describe action takes a resource",
    "ec2:DescribeTrafficMirrorTargets": "EC2: no Describe action takes a resource",
    "ecs:ListClusters": "ECS: a list of clusters is of none of them",
    # Not by that reference, which names the container instance; but for a call that names none, ECS refuses who has not *.
    "ecs:ListTasks": "ECS: a list of a cluster's tasks is of none of its container instances",
    "elasticloadbalancing:DescribeLoadBalancers": "ELB: no Describe action takes a resource",
    "elasticloadbalancing:DescribeTargetHealth": "ELB: no Describe action takes a resource",
    "lambda:ListLayerVersions": "Lambda: a list is of no version",
    **dict.fromkeys(
        (f"ssmmessages:{verb}{channel}Channel" for verb in ("Create", "Open") for channel in ("Control", "Data")),
        "Session Manager: its channels are no resources",
    ),
}

# Resources that end in a wildcard, because the thing itself is not known beforehand.
OPEN_ENDED = {
    ":network-interface/*": "any interface may come to be selected",
    ":traffic-mirror-session/*": "sessions come and go; each use carries a condition on our tag",
    ":layer:first-rebuilder:*": "during an update two versions are in use",
    ":instance/*": "the group makes instances, and their ids with them",
    ":*:traffic-mirror-target/tmt-0123456789abcdef0": "of a target that is shared, the account is not known",
    ":task/*": "tasks come and go, and Selection may name any cluster",
    ":autoScalingGroup:*:autoScalingGroupName/<RebuilderGroup>": "the id in the ARN is nowhere to be had",
}

ROLES = sorted(stack.of_type(stack.transformed(), "AWS::IAM::Role"))


def as_list(value):
    return value if isinstance(value, list) else [value]


def statements(**parameters):
    """(where, statement) of every policy in the stack, trust policies apart."""
    evaluated = stack.Evaluated(**parameters)
    for name, resource in evaluated.resources().items():
        p = resource.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in p.get("Policies", [])] if "Role" in resource["Type"] else []
        if resource["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::SQS::QueuePolicy"):
            documents.append(p["PolicyDocument"])
        for document in documents:
            for statement in document["Statement"]:
                yield f"{name}.{statement['Sid']}", statement


STATEMENTS = list(statements(**NODES))
IN_A_SPOKE = list(statements(AnalyzerUrl="", ExistingTargetId="tmt-0123456789abcdef0"))


def test_the_policies_are_found():
    in_a_spoke = {"AttachRole", "ReconcileRole", "ReconcileInvokesItself", "EventQueuePolicy"}
    assert {where.split(".")[0] for where, _ in IN_A_SPOKE} == in_a_spoke
    assert {where.split(".")[0] for where, _ in STATEMENTS} == in_a_spoke | {
        "RebuilderRole",
        "DrainRole",
        "NodeRole",
    }


@pytest.mark.parametrize(
    ("where", "statement"),
    STATEMENTS + IN_A_SPOKE,
    ids=[where for where, _ in STATEMENTS] + [f"spoke-{where}" for where, _ in IN_A_SPOKE],
)
def test_actions_are_named_and_resources_too(where, statement):
    actions, resources = as_list(statement["Action"]), as_list(statement["Resource"])
    assert not [a for a in actions if "*" in a]
    assert "NotAction" not in statement and "NotResource" not in statement
    for resource in resources:
        if resource == "*":
            assert [a for a in actions if a not in WITHOUT_RESOURCES] == []
        elif "*" in resource:
            (ending,) = [ending for ending in OPEN_ENDED if resource.endswith(ending)]
            assert resource.count("*") == 1
            if ending == ":traffic-mirror-session/*":
                assert "Condition" in statement


def test_nothing_is_excused_that_does_not_occur():
    used = {a for _, s in STATEMENTS if "*" in as_list(s["Resource"]) for a in as_list(s["Action"])}
    assert used == WITHOUT_RESOURCES.keys()


@pytest.mark.parametrize("role", ["AttachRole", "ReconcileRole"])
def test_only_our_sessions_are_made_changed_and_deleted(role):
    ours = stack.PSEUDO["AWS::StackId"]
    conditions = {
        (action, str(statement["Condition"]))
        for where, statement in STATEMENTS
        if where.startswith(role) and "traffic-mirror-session/*" in str(statement["Resource"])
        for action in as_list(statement["Action"])
    }
    requested = str({"StringEquals": {"aws:RequestTag/mirrorfleet:stack": ours}})
    carried = str({"StringEquals": {"aws:ResourceTag/mirrorfleet:stack": ours}})
    assert conditions == {
        ("ec2:CreateTrafficMirrorSession", requested),
        ("ec2:ModifyTrafficMirrorSession", carried),
        ("ec2:DeleteTrafficMirrorSession", carried),
        ("ec2:CreateTags", str({"StringEquals": {"ec2:CreateAction": "CreateTrafficMirrorSession"}})),
    }


@pytest.mark.parametrize("role", ["AttachRole", "ReconcileRole"])
def test_the_functions_may_call_what_they_call_and_no_more(role):
    # The SDKs are used in the crate `cloud` alone, one method for each action, and but for EC2 one file for each service.
    called = set()
    for file in (stack.ROOT / "functions" / "cloud" / "src").glob("**/*.rs"):
        service = {"ecs": "ecs", "elb": "elasticloadbalancing", "stack": "cloudformation"}.get(file.stem, "ec2")
        if file.stem == "leave":
            continue
        for call in re.findall(r"\.((?:describe|list|create|modify|delete)_\w+)\(\)", file.read_text()):
            called.add(f"{service}:" + "".join(word.title() for word in call.split("_")))
    allowed = {
        action
        for where, statement in STATEMENTS
        if where.startswith(role)
        for action in as_list(statement["Action"])
        if action.split(":")[0] not in ("logs", "sqs")
    }
    # Tags are given in the creating call, which asks for this permission without being a call of it. Lambda's calls are no
    # SDK's (http.rs): tests/cloud shows that they are made.
    layers = {"lambda:ListLayerVersions", "lambda:DeleteLayerVersion"} if role == "ReconcileRole" else set()
    assert allowed == called | {"ec2:CreateTags"} | layers


def test_drain_may_call_what_it_calls_and_no_more():
    text = (stack.ROOT / "functions" / "cloud" / "src" / "leave.rs").read_text()
    calls = set(re.findall(r"\.((?:deregister|describe|record|complete)_\w+)\(\)", text))
    names = {"".join(word.title() for word in call.split("_")) for call in calls}
    allowed = {
        action
        for where, statement in STATEMENTS
        if where.startswith("DrainRole.")
        for action in as_list(statement["Action"])
        if not action.startswith("logs:")
    }
    assert {action.split(":")[1] for action in allowed} == names
    assert len(names) == 4


def test_a_node_reads_its_token_and_no_other_secret():
    (read,) = [s for where, s in STATEMENTS if "secretsmanager" in str(s["Action"])]
    assert (read["Action"], read["Resource"]) == ("secretsmanager:GetSecretValue", SECRET)
    assert [where for where, s in STATEMENTS if SECRET in str(s)] == ["NodeRole.FetchTheToken"]


def test_a_spoke_points_sessions_at_its_target_and_filter_alone():
    for role in ("AttachRole", "ReconcileRole"):
        (pointing,) = [s for where, s in IN_A_SPOKE if where == f"{role}.PointSessionsAtOurTarget"]
        assert pointing["Resource"] == [
            "arn:aws:ec2:eu-west-1:*:traffic-mirror-target/tmt-0123456789abcdef0",
            "arn:aws:ec2:eu-west-1:123456789012:traffic-mirror-filter/<MirrorFilter>",
        ]


@pytest.mark.parametrize("role", ["AttachRole", "ReconcileRole"])
def test_creating_a_session_names_all_four_resources(role):
    # EC2 asks for the session, the interface, the filter and the target; a missing one is UnauthorizedOperation.
    resources = {
        resource.rsplit(":", 1)[1].split("/")[0]
        for where, statement in STATEMENTS
        if where.startswith(role) and "ec2:CreateTrafficMirrorSession" in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    }
    assert resources == {
        "traffic-mirror-session",
        "network-interface",
        "traffic-mirror-filter",
        "traffic-mirror-target",
    }


def test_each_function_has_a_role_of_its_own():
    functions = stack.Evaluated().resources("AWS::Lambda::Function")
    roles = {name: f["Properties"]["Role"] for name, f in functions.items()}
    assert roles == {name: f"<{name.removesuffix('Function')}Role.Arn>" for name in functions}
    assert len(roles) == 3


@pytest.mark.parametrize("role", ROLES)
def test_every_role_carries_the_boundary_and_nothing_managed(role):
    boundary = "arn:aws:iam::123456789012:policy/Boundary"
    with_boundary = stack.Evaluated(**NODES, PermissionsBoundary=boundary).properties(role)
    assert with_boundary["PermissionsBoundary"] == boundary
    without = stack.Evaluated().properties(role)
    assert "PermissionsBoundary" not in without
    assert "ManagedPolicyArns" not in without


@pytest.mark.parametrize(("trail", "count"), [("false", 4), ("true", 5)])
def test_only_our_rules_may_send_to_the_queue(trail, count):
    evaluated = stack.Evaluated(TrailEvents=trail)
    (statement,) = evaluated.properties("EventQueuePolicy")["PolicyDocument"]["Statement"]
    senders = {
        f"<{name}.Arn>"
        for name, rule in evaluated.resources("AWS::Events::Rule").items()
        if any(t["Arn"] == "<EventQueue.Arn>" for t in rule["Properties"]["Targets"])
    }
    assert len(senders) == count
    assert set(statement["Condition"]["ArnEquals"]["aws:SourceArn"]) == senders
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}

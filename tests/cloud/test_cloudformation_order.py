"""CloudFormation makes in dependency order, asks custom resources and waits for them, undoes and removes in reverse."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, function, package, wait_until

# Answers every request as its properties `OnCreate`, `OnUpdate`, `OnDelete` say, and logs what it was asked.
ANSWERS = function(
    """
def handle(event, context):
    properties = event["ResourceProperties"]
    print("REQUEST " + json.dumps({"at": time.time(), **event}), flush=True)
    how = properties.get("On" + event["RequestType"], "SUCCESS")
    if how == "SILENCE": return
    if how == "CRASH": raise ValueError("crashed")
    time.sleep(float(properties.get("Delay", "0")))
    body = {"Status": how, "Reason": "because", "StackId": event["StackId"], "RequestId": event["RequestId"],
            "LogicalResourceId": event["LogicalResourceId"],
            "PhysicalResourceId": properties.get("Id", "constant"), "Data": {"Word": "told"}}
    if properties.get("Long"): body["Reason"] = "x" * 5000
    data = json.dumps(body).encode()
    request = urllib.request.Request(event["ResponseURL"], data, {"Content-Type": ""}, method="PUT")
    urllib.request.urlopen(request).read()
"""
)


@pytest.fixture(scope="module")
def service(cloud: Cloud) -> str:
    """ServiceToken of the function above."""
    return cloud.create_function("answers", ANSWERS, Timeout=30)


def requests(cloud: Cloud, stack: str) -> list[dict[str, Any]]:
    """What the function was asked for one stack."""
    lines = [
        json.loads(line.removeprefix("REQUEST "))
        for line in cloud.lab("logs/answers").splitlines()
        if line.startswith("REQUEST ")
    ]
    return sorted((r for r in lines if f":stack/{stack}/" in r["StackId"]), key=lambda r: r["at"])


def deploy(cloud: Cloud, name: str, resources: dict[str, Any], update: bool = False, **more: Any) -> dict[str, Any]:
    """Carries a template out and gives the stack as it ended."""
    client = cloud.client("cloudformation")
    body = json.dumps({"Resources": resources, **more.pop("template", {})})
    call = client.update_stack if update else client.create_stack
    stack = call(StackName=name, TemplateBody=body, Capabilities=["CAPABILITY_IAM"], **more)["StackId"]
    return settled(cloud, stack)


def settled(cloud: Cloud, name: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        (stack,) = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        return None if stack["StackStatus"].endswith("_IN_PROGRESS") else stack

    return wait_until(ended, 20, f"stack {name} to settle")


def remove(cloud: Cloud, stack: dict[str, Any]) -> dict[str, Any]:
    cloud.client("cloudformation").delete_stack(StackName=stack["StackName"])
    return settled(cloud, stack["StackId"])


def events(cloud: Cloud, stack: dict[str, Any]) -> list[tuple[str, str]]:
    found = cloud.client("cloudformation").describe_stack_events(StackName=stack["StackId"])["StackEvents"]
    return [(e["LogicalResourceId"], e["ResourceStatus"]) for e in reversed(found)]


def reasons(cloud: Cloud, stack: dict[str, Any], status: str) -> dict[str, str]:
    found = cloud.client("cloudformation").describe_stack_events(StackName=stack["StackId"])["StackEvents"]
    return {e["LogicalResourceId"]: e["ResourceStatusReason"] for e in found if e["ResourceStatus"] == status}


def before(cloud: Cloud, stack: dict[str, Any], first: tuple[str, str], second: tuple[str, str]) -> bool:
    seen = events(cloud, stack)
    return seen.index(first) < seen.index(second)


QUEUE = {"Type": "AWS::SQS::Queue"}
CHAIN = {
    # Written in the wrong order on purpose.
    "Last": {"Type": "AWS::SQS::Queue", "DependsOn": "Middle"},
    "Middle": {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": {"Fn::Sub": "<${First.Arn}>"}}},
    "First": QUEUE,
}


def test_what_is_needed_is_made_first_and_removed_last(cloud: Cloud) -> None:
    stack = deploy(cloud, "chain", CHAIN)
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    for earlier, later in (("First", "Middle"), ("Middle", "Last")):
        assert before(cloud, stack, (earlier, "CREATE_COMPLETE"), (later, "CREATE_IN_PROGRESS"))
    assert remove(cloud, stack)["StackStatus"] == "DELETE_COMPLETE"
    for earlier, later in (("Last", "Middle"), ("Middle", "First")):
        assert before(cloud, stack, (earlier, "DELETE_COMPLETE"), (later, "DELETE_IN_PROGRESS"))


def test_without_a_dependency_no_order_is_kept(cloud: Cloud, service: str) -> None:
    slow = {"Type": "Custom::Slow", "Properties": {"ServiceToken": service, "Delay": "0.5"}}
    stack = deploy(cloud, "free", {"Slow": slow, "Queue": QUEUE})
    remove(cloud, stack)
    assert before(cloud, stack, ("Queue", "DELETE_COMPLETE"), ("Slow", "DELETE_COMPLETE"))


def test_a_custom_resource_is_asked_and_its_answer_awaited_and_used(cloud: Cloud, service: str) -> None:
    custom = {
        "Type": "Custom::Thing",
        "Properties": {"ServiceToken": service, "Delay": "0.3", "Number": 7, "Truth": True},
    }
    told = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": {"Fn::GetAtt": ["Thing", "Word"]}}}
    stack = deploy(
        cloud, "custom", {"Thing": custom, "Told": told}, template={"Outputs": {"Id": {"Value": {"Ref": "Thing"}}}}
    )
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert stack["Outputs"][0]["OutputValue"] == "constant"
    assert before(cloud, stack, ("Thing", "CREATE_COMPLETE"), ("Told", "CREATE_IN_PROGRESS"))
    (asked,) = requests(cloud, "custom")
    assert asked["RequestType"] == "Create"
    assert asked["ResourceType"] == "Custom::Thing"
    assert asked["LogicalResourceId"] == "Thing"
    assert asked["StackId"] == stack["StackId"]
    assert asked["ResponseURL"].startswith(cloud.endpoint)
    # Every scalar arrives as text.
    assert asked["ResourceProperties"] == {"ServiceToken": service, "Delay": "0.3", "Number": "7", "Truth": "true"}

    assert remove(cloud, stack)["StackStatus"] == "DELETE_COMPLETE"
    _, gone = requests(cloud, "custom")
    assert (gone["RequestType"], gone["PhysicalResourceId"]) == ("Delete", "constant")
    assert before(cloud, stack, ("Told", "DELETE_COMPLETE"), ("Thing", "DELETE_IN_PROGRESS"))


def test_an_update_asks_with_the_old_properties_and_a_new_id_deletes_the_old_one(cloud: Cloud, service: str) -> None:
    def thing(**more: str) -> dict[str, Any]:
        return {"Thing": {"Type": "Custom::Thing", "Properties": {"ServiceToken": service, **more}}}

    deploy(cloud, "changes", thing(Colour="red"))
    deploy(cloud, "changes", thing(Colour="blue"), update=True)
    stack = deploy(cloud, "changes", thing(Colour="blue", Id="another"), update=True)
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    wait_until(lambda: len(requests(cloud, "changes")) == 4, 5, "the old one to be deleted")
    _, first, second, cleanup = requests(cloud, "changes")
    assert first["RequestType"] == "Update"
    assert first["OldResourceProperties"] == {"ServiceToken": service, "Colour": "red"}
    assert second["PhysicalResourceId"] == "constant"
    assert (cleanup["RequestType"], cleanup["PhysicalResourceId"]) == ("Delete", "constant")


def test_a_failed_update_asks_the_custom_resource_to_go_back(cloud: Cloud, service: str) -> None:
    def thing(**more: str) -> dict[str, Any]:
        return {"Thing": {"Type": "Custom::Thing", "Properties": {"ServiceToken": service, **more}}}

    deploy(cloud, "goes-back", thing(Colour="red"))
    stack = deploy(cloud, "goes-back", thing(Colour="blue", OnUpdate="FAILED"), update=True)
    assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    _, failed, back = requests(cloud, "goes-back")
    assert (failed["RequestType"], failed["ResourceProperties"]["Colour"]) == ("Update", "blue")
    assert (back["RequestType"], back["ResourceProperties"]["Colour"]) == ("Update", "red")
    assert back["OldResourceProperties"]["Colour"] == "blue"


def test_an_unchanged_custom_resource_is_not_asked(cloud: Cloud, service: str) -> None:
    thing = {"Thing": {"Type": "Custom::Thing", "Properties": {"ServiceToken": service}}}
    deploy(cloud, "same", thing)
    stack = deploy(cloud, "same", {**thing, "Queue": QUEUE}, update=True)
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    assert len(requests(cloud, "same")) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"OnCreate": "FAILED"}, "Message returned: because"),
        ({"OnCreate": "SILENCE", "ServiceTimeout": "1"}, "did not receive a response"),
        ({"Long": "yes"}, "Response object is too long"),
    ],
)
def test_a_failed_create_rolls_back_and_sends_delete(
    cloud: Cloud, service: str, how: dict[str, str], said: str
) -> None:
    name = f"fails-{next(iter(how.values())).lower()}"
    thing = {"Type": "Custom::Thing", "DependsOn": "Queue", "Properties": {"ServiceToken": service, **how}}
    stack = deploy(cloud, name, {"Queue": QUEUE, "Thing": thing})
    if "Long" not in how:  # that one answers its Delete too long as well
        assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
        assert before(cloud, stack, ("Thing", "DELETE_COMPLETE"), ("Queue", "DELETE_IN_PROGRESS"))
    assert said in reasons(cloud, stack, "CREATE_FAILED")["Thing"]
    assert [r["RequestType"] for r in requests(cloud, name)] == ["Create", "Delete"]


def test_a_stack_that_is_deleted_while_it_is_made_waits_for_nothing_and_sends_delete(
    cloud: Cloud, service: str
) -> None:
    """CloudFormation never learns the id of a creation that it cancels, and names one of its own."""
    slow = {"Type": "Custom::Slow", "Properties": {"ServiceToken": service, "Delay": "2"}}
    later = {"Type": "AWS::SQS::Queue", "DependsOn": "Slow"}
    client = cloud.client("cloudformation")
    resources = {"First": {"Type": "AWS::SQS::Queue"}, "Slow": {**slow, "DependsOn": "First"}, "Later": later}
    with ThreadPoolExecutor(1) as pool:  # the emulator takes its time to answer a call that makes a stack
        body = json.dumps({"Resources": resources})
        made = pool.submit(client.create_stack, StackName="hasty", TemplateBody=body)
        wait_until(lambda: requests(cloud, "hasty"), 5, "the creation to begin")
        client.delete_stack(StackName="hasty")
        (shown,) = client.describe_stacks(StackName="hasty")["Stacks"]
        assert shown["StackStatus"] == "DELETE_IN_PROGRESS"
        stack = made.result()["StackId"]
    gone = settled(cloud, stack)
    assert gone["StackStatus"] == "DELETE_COMPLETE"
    assert [r["RequestType"] for r in requests(cloud, "hasty")] == ["Create", "Delete"]
    assert requests(cloud, "hasty")[1]["PhysicalResourceId"].startswith("hasty-Slow-")
    assert ("Later", "CREATE_IN_PROGRESS") not in events(cloud, gone)
    assert ("First", "DELETE_COMPLETE") in events(cloud, gone)


def test_a_failure_cancels_a_custom_resource_that_is_being_made(cloud: Cloud, service: str) -> None:
    slow = {"Type": "Custom::Slow", "Properties": {"ServiceToken": service, "Delay": "3"}}
    wrong = {"Type": "Custom::Wrong", "Properties": {"ServiceToken": service, "OnCreate": "FAILED"}}
    stack = deploy(cloud, "cancels", {"Slow": slow, "Wrong": wrong})
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert reasons(cloud, stack, "CREATE_FAILED")["Slow"] == "Resource creation cancelled"
    deleted = {r["LogicalResourceId"]: r for r in requests(cloud, "cancels") if r["RequestType"] == "Delete"}
    assert deleted["Slow"]["PhysicalResourceId"].startswith("cancels-Slow-")


def test_a_function_that_crashes_fails_the_stack_with_its_own_words(cloud: Cloud, service: str) -> None:
    thing = {"Type": "Custom::Thing", "Properties": {"ServiceToken": service, "OnCreate": "CRASH"}}
    stack = deploy(cloud, "crash", {"Thing": thing})
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert "crashed" in reasons(cloud, stack, "CREATE_FAILED")["Thing"]


def test_a_failed_delete_keeps_what_it_needs_and_can_be_repeated(cloud: Cloud, service: str) -> None:
    thing = {
        "Type": "Custom::Thing",
        "DependsOn": "Queue",
        "Properties": {"ServiceToken": service, "OnDelete": "FAILED"},
    }
    stack = deploy(cloud, "stuck", {"Queue": QUEUE, "Thing": thing, "Free": QUEUE})
    left = remove(cloud, stack)
    assert left["StackStatus"] == "DELETE_FAILED"
    assert "[Thing]" in left["StackStatusReason"]
    assert "Message returned: because" in reasons(cloud, stack, "DELETE_FAILED")["Thing"]
    seen = events(cloud, stack)
    assert ("Free", "DELETE_COMPLETE") in seen
    assert ("Queue", "DELETE_IN_PROGRESS") not in seen
    # A second attempt asks again.
    assert remove(cloud, stack)["StackStatus"] == "DELETE_FAILED"
    assert [r["RequestType"] for r in requests(cloud, "stuck")] == ["Create", "Delete", "Delete"]


MIRROR = {
    "Nlb": {
        "Type": "AWS::ElasticLoadBalancingV2::LoadBalancer",
        "Properties": {"Type": "network", "Scheme": "internal"},
    },
    "Group": {
        "Type": "AWS::ElasticLoadBalancingV2::TargetGroup",
        "Properties": {
            "Protocol": "UDP",
            "Port": "4789",
            "HealthCheckProtocol": "HTTP",
            "HealthCheckPort": 9445,
            "TargetGroupAttributes": [{"Key": "deregistration_delay.connection_termination.enabled", "Value": "true"}],
        },
    },
    "Listener": {
        "Type": "AWS::ElasticLoadBalancingV2::Listener",
        "Properties": {
            "LoadBalancerArn": {"Ref": "Nlb"},
            "Protocol": "UDP",
            "Port": "4789",
            "DefaultActions": [{"Type": "forward", "TargetGroupArn": {"Ref": "Group"}}],
        },
    },
    "Target": {"Type": "AWS::EC2::TrafficMirrorTarget", "Properties": {"NetworkLoadBalancerArn": {"Ref": "Nlb"}}},
    "Filter": {"Type": "AWS::EC2::TrafficMirrorFilter", "Properties": {"NetworkServices": ["amazon-dns"]}},
    "Rule": {
        "Type": "AWS::EC2::TrafficMirrorFilterRule",
        "Properties": {
            "TrafficMirrorFilterId": {"Ref": "Filter"},
            "TrafficDirection": "ingress",
            "RuleNumber": "10",
            "RuleAction": "accept",
            "Protocol": "6",
            "SourceCidrBlock": "0.0.0.0/0",
            "DestinationCidrBlock": "0.0.0.0/0",
            "DestinationPortRange": {"FromPort": "80", "ToPort": "80"},
        },
    },
}  # fmt: skip


def mirror_stack(cloud: Cloud, name: str) -> dict[str, Any]:
    ec2 = cloud.client("ec2")
    resources = json.loads(json.dumps(MIRROR))
    resources["Nlb"]["Properties"]["Subnets"] = cloud.subnets()[:2]
    resources["Group"]["Properties"]["VpcId"] = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    outputs = {
        "Target": {"Value": {"Ref": "Target"}},
        "Filter": {"Value": {"Ref": "Filter"}},
        "Nlb": {"Value": {"Ref": "Nlb"}},
    }
    return deploy(cloud, name, resources, template={"Outputs": outputs})


def outputs(stack: dict[str, Any]) -> dict[str, str]:
    return {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}


def test_a_mirror_target_behind_a_udp_listener_is_made_and_removed(cloud: Cloud) -> None:
    stack = mirror_stack(cloud, "mirror")
    assert stack["StackStatus"] == "CREATE_COMPLETE", reasons(cloud, stack, "CREATE_FAILED")
    ec2, elb, made = cloud.client("ec2"), cloud.client("elbv2"), outputs(stack)
    (balancer,) = elb.describe_load_balancers(LoadBalancerArns=[made["Nlb"]])["LoadBalancers"]
    assert balancer["Type"] == "network"
    assert ":loadbalancer/net/" in balancer["LoadBalancerArn"]
    (listener,) = elb.describe_listeners(LoadBalancerArn=made["Nlb"])["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("UDP", 4789)
    (shown,) = ec2.describe_traffic_mirror_filters(TrafficMirrorFilterIds=[made["Filter"]])["TrafficMirrorFilters"]
    assert [r["DestinationPortRange"] for r in shown["IngressFilterRules"]] == [{"FromPort": 80, "ToPort": 80}]
    assert shown["NetworkServices"] == ["amazon-dns"]
    assert remove(cloud, stack)["StackStatus"] == "DELETE_COMPLETE"
    with pytest.raises(ClientError, match=r"InvalidTrafficMirrorTargetId\.NotFound"):
        ec2.describe_traffic_mirror_targets(TrafficMirrorTargetIds=[made["Target"]])


def test_a_target_in_use_leaves_the_stack_delete_failed_with_the_reason(cloud: Cloud) -> None:
    stack = mirror_stack(cloud, "in-use")
    made, ec2 = outputs(stack), cloud.client("ec2")
    session = ec2.create_traffic_mirror_session(
        NetworkInterfaceId=cloud.interface(), SessionNumber=1,
        TrafficMirrorTargetId=made["Target"], TrafficMirrorFilterId=made["Filter"],
    )["TrafficMirrorSession"]["TrafficMirrorSessionId"]  # fmt: skip
    left = remove(cloud, stack)
    assert left["StackStatus"] == "DELETE_FAILED"
    why = reasons(cloud, stack, "DELETE_FAILED")
    assert "TrafficMirrorTargetInUseException" in why["Target"]
    assert "TrafficMirrorFilterInUse" in why["Filter"]
    assert ec2.describe_traffic_mirror_targets(TrafficMirrorTargetIds=[made["Target"]])["TrafficMirrorTargets"]
    ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=session)
    assert remove(cloud, stack)["StackStatus"] == "DELETE_COMPLETE"


def test_a_type_that_nobody_emulates_fails_the_stack(cloud: Cloud) -> None:
    stack = deploy(cloud, "unknown", {"Queue": QUEUE, "Fleet": {"Type": "AWS::GameLift::Fleet", "DependsOn": "Queue"}})
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert reasons(cloud, stack, "CREATE_FAILED") == {
        "Fleet": "Resource type AWS::GameLift::Fleet is not emulated: add it to tests/emulator/resources"
    }


def test_a_property_that_the_api_does_not_know_fails_the_stack(cloud: Cloud) -> None:
    wrong = {"Type": "AWS::EC2::TrafficMirrorFilter", "Properties": {"Descripton": "x"}}
    stack = deploy(cloud, "misspelt", {"Filter": wrong})
    assert 'Unknown parameter in input: "Descripton"' in reasons(cloud, stack, "CREATE_FAILED")["Filter"]


def test_a_missing_property_fails_the_stack(cloud: Cloud) -> None:
    stack = deploy(cloud, "missing", {"Parameter": {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String"}}})
    why = reasons(cloud, stack, "CREATE_FAILED")["Parameter"]
    assert why == "Properties validation failed: required key 'Value' not found"


def test_a_failed_update_puts_everything_back(cloud: Cloud) -> None:
    def resources(seconds: int, **more: Any) -> dict[str, Any]:
        return {"Queue": {**QUEUE, "Properties": {"VisibilityTimeout": seconds}}, **more}

    stack = deploy(cloud, "back", resources(11), template={"Outputs": {"Url": {"Value": {"Ref": "Queue"}}}})
    broken = {"Type": "AWS::GameLift::Fleet", "DependsOn": "Queue"}
    ended = deploy(cloud, "back", resources(22, Fleet=broken), update=True)
    assert ended["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    url = outputs(stack)["Url"]
    attributes = cloud.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])[
        "Attributes"
    ]
    assert attributes == {"VisibilityTimeout": "11"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"A": {**QUEUE, "DependsOn": "B"}, "B": {**QUEUE, "DependsOn": "A"}},
            r"Circular dependency between resources: \[A, B\]",
        ),
        ({"A": {**QUEUE, "DependsOn": "Nobody"}}, r"Unresolved resource dependencies \[Nobody\]"),
        ({"A": {"Properties": {}}}, "must contain a Type member"),
        ({}, "At least one Resources member must be defined"),
    ],
)
def test_a_template_that_cannot_be_carried_out_is_refused(cloud: Cloud, body: dict[str, Any], said: str) -> None:
    with pytest.raises(ClientError, match=said):
        cloud.client("cloudformation").create_stack(StackName="refused", TemplateBody=json.dumps({"Resources": body}))


PARAMETERS = {
    "Size": {"Type": "Number", "MinValue": 2, "MaxValue": 9, "Default": 3},
    "Mode": {"Type": "String", "AllowedValues": ["on", "off"], "Default": "on"},
    "Ports": {
        "Type": "String",
        "AllowedPattern": "^[0-9,]+$",
        "ConstraintDescription": "must be ports",
        "Default": "80",
    },
    "Vpc": {"Type": "AWS::EC2::VPC::Id"},
    "Nets": {"Type": "List<AWS::EC2::Subnet::Id>"},
}
RULE = {
    "NetsInVpc": {
        "Assertions": [
            {
                "Assert": {
                    "Fn::EachMemberIn": [
                        {"Fn::ValueOfAll": ["AWS::EC2::Subnet::Id", "VpcId"]},
                        {"Fn::RefAll": "AWS::EC2::VPC::Id"},
                    ]
                },
                "AssertDescription": "a subnet is elsewhere",
            }
        ]
    }
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"Size": "1"}, "Parameter 'Size' is too small or too large"),
        ({"Size": "many"}, "Parameter 'Size' must be a number"),
        ({"Mode": "maybe"}, "must be one of AllowedValues: on, off"),
        ({"Ports": "http"}, "Parameter 'Ports' must be ports"),
        ({"Vpc": "vpc-00000000"}, "vpc-00000000 for parameter name Vpc does not exist"),
        ({"Nobody": "x"}, r"Parameters: \[Nobody\] do not exist in the template"),
        ({"Vpc": "OTHER"}, "a subnet is elsewhere"),
    ],
)
def test_a_wrong_parameter_is_refused(cloud: Cloud, wrong: dict[str, str], said: str) -> None:
    ec2 = cloud.client("ec2")
    given = {"Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"], "Nets": ",".join(cloud.subnets()[:2]), **wrong}
    if given["Vpc"] == "OTHER":
        given["Vpc"] = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    body = {"Parameters": PARAMETERS, "Rules": RULE, "Resources": {"Queue": QUEUE}}
    listed = [{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()]
    with pytest.raises(ClientError, match=said):
        cloud.client("cloudformation").create_stack(StackName="wrong", TemplateBody=json.dumps(body), Parameters=listed)


def test_roles_need_a_capability(cloud: Cloud) -> None:
    role = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}}}
    with pytest.raises(ClientError, match=r"Requires capabilities : \[CAPABILITY_IAM\]"):
        cloud.client("cloudformation").create_stack(
            StackName="role", TemplateBody=json.dumps({"Resources": {"Role": role}})
        )


SERVERLESS = """
AWSTemplateFormatVersion: 2010-09-09
Transform: AWS::Serverless-2016-10-31
Parameters:
  Word: {Type: String, Default: hello}
Conditions:
  Loud: !Equals [!Ref Word, HELLO]
Resources:
  Echo:
    Type: AWS::Serverless::Function
    Properties:
      Handler: bootstrap
      Runtime: provided.al2023
      CodeUri: {Bucket: code-bucket, Key: echo.zip}
      Environment:
        Variables:
          WORD: !Sub '${Word} from ${AWS::StackName}'
          LOUD: !If [Loud, 'yes', !Ref AWS::NoValue]
Outputs:
  Function: {Value: !Ref Echo}
"""


def test_a_serverless_template_makes_a_function_that_runs(cloud: Cloud) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="code-bucket")
    code = function("def handle(event, context): return [os.environ['WORD'], os.environ.get('LOUD')]")
    s3.put_object(Bucket="code-bucket", Key="echo.zip", Body=package(code))
    client = cloud.client("cloudformation")
    capabilities = ["CAPABILITY_IAM"]
    client.create_change_set(
        StackName="serverless",
        ChangeSetName="first",
        ChangeSetType="CREATE",
        TemplateBody=SERVERLESS,
        Capabilities=capabilities,
    )
    (review,) = client.describe_stacks(StackName="serverless")["Stacks"]
    assert review["StackStatus"] == "REVIEW_IN_PROGRESS"
    shown = client.describe_change_set(StackName="serverless", ChangeSetName="first")
    assert {c["ResourceChange"]["ResourceType"] for c in shown["Changes"]} == {
        "AWS::Lambda::Function",
        "AWS::IAM::Role",
    }
    client.execute_change_set(StackName="serverless", ChangeSetName="first")
    stack = settled(cloud, "serverless")
    assert stack["StackStatus"] == "CREATE_COMPLETE", reasons(cloud, stack, "CREATE_FAILED")
    assert cloud.invoke(outputs(stack)["Function"], {}) == ["hello from serverless", None]

    changed = [{"ParameterKey": "Word", "ParameterValue": "HELLO"}]
    for name, parameters, status in (("same", [], "FAILED"), ("other", changed, "CREATE_COMPLETE")):
        client.create_change_set(
            StackName="serverless",
            ChangeSetName=name,
            TemplateBody=SERVERLESS,
            Parameters=parameters,
            Capabilities=capabilities,
        )
        assert client.describe_change_set(StackName="serverless", ChangeSetName=name)["Status"] == status
    client.execute_change_set(StackName="serverless", ChangeSetName="other")
    stack = settled(cloud, "serverless")
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    assert cloud.invoke(outputs(stack)["Function"], {}) == ["HELLO from serverless", "yes"]
    assert remove(cloud, stack)["StackStatus"] == "DELETE_COMPLETE"


def test_an_answer_to_an_unknown_address_is_refused(cloud: Cloud) -> None:
    request = urllib.request.Request(f"{cloud.endpoint}/_cloudformation/response/none", b"{}", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)

"""The emulator refuses what EC2 refuses. Codes: EC2's list of error codes, and those seen by Terraform's provider."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from conftest import Cloud, wait_until


@pytest.fixture(scope="module")
def mirror(cloud: Cloud) -> SimpleNamespace:
    """A target and a filter to make sessions with."""
    ec2 = cloud.client("ec2")
    nlb = cloud.balancer()
    return SimpleNamespace(
        nlb=nlb,
        target=ec2.create_traffic_mirror_target(NetworkLoadBalancerArn=nlb)["TrafficMirrorTarget"][
            "TrafficMirrorTargetId"
        ],
        filter=ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"],
    )


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return refused.value.response["Error"]["Code"]


def session(cloud: Cloud, mirror: SimpleNamespace, eni: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return cloud.client("ec2").create_traffic_mirror_session(**ask(mirror, eni, number, **more))["TrafficMirrorSession"]


def ask(mirror: SimpleNamespace, eni: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "NetworkInterfaceId": eni,
        "TrafficMirrorTargetId": mirror.target,
        "TrafficMirrorFilterId": mirror.filter,
        "SessionNumber": number,
        **more,
    }


# -- sessions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "unknown", "code"),
    [
        ("NetworkInterfaceId", "eni-0123456789abcdef0", "InvalidNetworkInterfaceID.NotFound"),
        ("TrafficMirrorTargetId", "tmt-0123456789abcdef0", "InvalidTrafficMirrorTargetId.NotFound"),
        ("TrafficMirrorFilterId", "tmf-0123456789abcdef0", "InvalidTrafficMirrorFilterId.NotFound"),
    ],
)
def test_a_session_of_something_unknown_is_refused(
    cloud: Cloud, mirror: SimpleNamespace, field: str, unknown: str, code: str
) -> None:
    asked = ask(mirror, cloud.interface()) | {field: unknown}
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == code


def test_an_interface_has_at_most_three_sessions(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    for number in (1, 2, 3):
        session(cloud, mirror, eni, number)
    code = code_of(cloud.client("ec2").create_traffic_mirror_session, **ask(mirror, eni, 4))
    assert code == "TrafficMirrorSessionsPerInterfaceLimitExceeded"


def test_a_number_is_unique_on_an_interface_and_free_on_another(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    first = session(cloud, mirror, eni, 7)
    with pytest.raises(
        ClientError, match=f"session number 7 is already being used by {first['TrafficMirrorSessionId']}"
    ):
        session(cloud, mirror, eni, 7)
    assert session(cloud, mirror, cloud.interface(), 7)["SessionNumber"] == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"SessionNumber": 0},
        {"SessionNumber": 32767},
        {"VirtualNetworkId": -1},
        {"VirtualNetworkId": 1 << 24},
        {"PacketLength": 0},
        {"PacketLength": 8501},
    ],
)
def test_a_number_out_of_range_is_refused(cloud: Cloud, mirror: SimpleNamespace, wrong: dict[str, int]) -> None:
    asked = ask(mirror, cloud.interface()) | wrong
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == "InvalidParameterValue"


@pytest.mark.parametrize(
    "edge", [{"SessionNumber": 32766}, {"VirtualNetworkId": (1 << 24) - 1}, {"PacketLength": 8500}]
)
def test_the_last_number_of_a_range_is_accepted(cloud: Cloud, mirror: SimpleNamespace, edge: dict[str, int]) -> None:
    made = cloud.client("ec2").create_traffic_mirror_session(**(ask(mirror, cloud.interface()) | edge))
    assert edge.items() <= made["TrafficMirrorSession"].items()


def test_what_is_not_asked_for_gets_the_documented_default(cloud: Cloud, mirror: SimpleNamespace) -> None:
    made = session(cloud, mirror, cloud.interface())
    assert made["PacketLength"] == 8500
    assert 0 <= made["VirtualNetworkId"] < 1 << 24


def test_one_token_makes_one_session(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    tags = [{"ResourceType": "traffic-mirror-session", "Tags": [{"Key": "Name", "Value": "one"}]}]
    first = session(cloud, mirror, eni, ClientToken="token-1", TagSpecifications=tags)
    again = session(cloud, mirror, eni, ClientToken="token-1", TagSpecifications=tags)
    assert again == first
    assert len(sessions_on(cloud, eni)) == 1
    asked = ask(mirror, eni, 2, ClientToken="token-1", TagSpecifications=tags)
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == "IdempotentParameterMismatch"


def test_of_calls_for_one_number_at_once_exactly_one_succeeds(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    create = cloud.client("ec2").create_traffic_mirror_session

    def attempt(_: int) -> bool:
        try:
            create(**ask(mirror, eni, 5))
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert len(sessions_on(cloud, eni)) == 1


def test_a_dry_run_says_so_and_makes_nothing(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    asked = ask(mirror, eni, DryRun=True)
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == "DryRunOperation"
    assert sessions_on(cloud, eni) == []


def test_a_targets_interface_is_no_source(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    cloud.client("ec2").create_traffic_mirror_target(NetworkInterfaceId=eni)
    with pytest.raises(ClientError, match="is a traffic mirror target"):
        session(cloud, mirror, eni)


@pytest.mark.parametrize("kind", ["t2.micro", "m8g.large", "c5.metal"])
def test_an_unsupported_instance_type_is_no_source(cloud: Cloud, mirror: SimpleNamespace, kind: str) -> None:
    eni = cloud.run_instance(InstanceType=kind)["NetworkInterfaces"][0]["NetworkInterfaceId"]
    asked = ask(mirror, eni)
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == "NetworkInterfaceNotSupported"


def test_tags_come_with_the_session_and_can_be_changed(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    tags = [{"Key": "mirrorfleet:stack", "Value": "arn"}, {"Key": "Name", "Value": "x"}]
    specification = [{"ResourceType": "traffic-mirror-session", "Tags": tags}]
    made = session(cloud, mirror, cloud.interface(), TagSpecifications=specification)
    assert made["Tags"] == tags
    ec2.create_tags(Resources=[made["TrafficMirrorSessionId"]], Tags=[{"Key": "Name", "Value": "y"}])
    (found,) = ec2.describe_traffic_mirror_sessions(TrafficMirrorSessionIds=[made["TrafficMirrorSessionId"]])[
        "TrafficMirrorSessions"
    ]
    assert {t["Key"]: t["Value"] for t in found["Tags"]} == {"mirrorfleet:stack": "arn", "Name": "y"}


def test_tags_of_another_resource_are_refused(cloud: Cloud, mirror: SimpleNamespace) -> None:
    specification = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "x"}]}]
    asked = ask(mirror, cloud.interface(), TagSpecifications=specification)
    assert code_of(cloud.client("ec2").create_traffic_mirror_session, **asked) == "InvalidParameterValue"


def test_describe_filters_and_pages(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    made = {
        session(cloud, mirror, cloud.interface(), 4000, Description="paged")["TrafficMirrorSessionId"] for _ in range(7)
    }
    filters = [{"Name": "description", "Values": ["pag*"]}, {"Name": "session-number", "Values": ["4000"]}]
    pages = list(
        ec2.get_paginator("describe_traffic_mirror_sessions").paginate(
            Filters=filters, PaginationConfig={"PageSize": 5}
        )
    )
    assert [len(p["TrafficMirrorSessions"]) for p in pages] == [5, 2]
    assert {s["TrafficMirrorSessionId"] for p in pages for s in p["TrafficMirrorSessions"]} == made


def test_describe_knows_no_tag_filter(cloud: Cloud) -> None:
    filters = [{"Name": "tag:Name", "Values": ["x"]}]
    assert code_of(cloud.client("ec2").describe_traffic_mirror_sessions, Filters=filters) == "InvalidParameterValue"


def test_describe_of_an_unknown_id_is_an_error(cloud: Cloud) -> None:
    call = cloud.client("ec2").describe_traffic_mirror_sessions
    assert code_of(call, TrafficMirrorSessionIds=["tms-0"]) == "InvalidTrafficMirrorSessionId.NotFound"


def test_modify_changes_what_is_named_and_removes_to_the_default(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    made = session(cloud, mirror, cloud.interface(), VirtualNetworkId=9, PacketLength=100, Description="old")
    changed = ec2.modify_traffic_mirror_session(
        TrafficMirrorSessionId=made["TrafficMirrorSessionId"],
        SessionNumber=77,
        RemoveFields=["description", "packet-length"],
    )["TrafficMirrorSession"]
    assert (changed["SessionNumber"], changed["PacketLength"], changed["VirtualNetworkId"]) == (77, 8500, 9)
    assert "Description" not in changed


def test_modify_is_held_to_the_same_rules(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    session(cloud, mirror, eni, 1)
    second = session(cloud, mirror, eni, 2)["TrafficMirrorSessionId"]
    modify = cloud.client("ec2").modify_traffic_mirror_session
    assert code_of(modify, TrafficMirrorSessionId=second, SessionNumber=1) == "InvalidParameterValue"
    unknown = code_of(modify, TrafficMirrorSessionId=second, TrafficMirrorTargetId="tmt-0123456789abcdef0")
    assert unknown == "InvalidTrafficMirrorTargetId.NotFound"


def test_delete_frees_the_number_and_a_second_delete_finds_nothing(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    eni = cloud.interface()
    gone = session(cloud, mirror, eni, 1)["TrafficMirrorSessionId"]
    ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=gone)
    session(cloud, mirror, eni, 1)
    code = code_of(ec2.delete_traffic_mirror_session, TrafficMirrorSessionId=gone)
    assert code == "InvalidTrafficMirrorSessionId.NotFound"


def test_terminating_an_instance_deletes_its_sessions(cloud: Cloud, mirror: SimpleNamespace) -> None:
    instance = cloud.run_instance()
    eni = instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
    session(cloud, mirror, eni)
    cloud.client("ec2").terminate_instances(InstanceIds=[instance["InstanceId"]])
    wait_until(lambda: sessions_on(cloud, eni) == [], 5, "the sessions to go with the interface")


def test_deleting_an_interface_deletes_its_sessions(cloud: Cloud, mirror: SimpleNamespace) -> None:
    eni = cloud.interface()
    session(cloud, mirror, eni)
    cloud.client("ec2").delete_network_interface(NetworkInterfaceId=eni)
    assert sessions_on(cloud, eni) == []


# -- targets and filters -------------------------------------------------------------------------------------------


def test_a_target_needs_a_network_load_balancer_that_exists(cloud: Cloud) -> None:
    create = cloud.client("ec2").create_traffic_mirror_target
    missing = f"arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/net/none/{'0' * 16}"
    assert code_of(create, NetworkLoadBalancerArn=missing) == "InvalidNetworkLoadBalancerArn.NotFound"
    assert code_of(create) == "InvalidParameterCombination"


def test_targets_and_filters_in_use_stay(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    made = session(cloud, mirror, cloud.interface())["TrafficMirrorSessionId"]
    target = code_of(ec2.delete_traffic_mirror_target, TrafficMirrorTargetId=mirror.target)
    assert target == "TrafficMirrorTargetInUseException"
    assert code_of(ec2.delete_traffic_mirror_filter, TrafficMirrorFilterId=mirror.filter) == "TrafficMirrorFilterInUse"
    assert ec2.describe_traffic_mirror_sessions(TrafficMirrorSessionIds=[made])["TrafficMirrorSessions"]


def test_a_target_and_a_filter_that_nobody_uses_go(cloud: Cloud, mirror: SimpleNamespace) -> None:
    ec2 = cloud.client("ec2")
    target = ec2.create_traffic_mirror_target(NetworkLoadBalancerArn=mirror.nlb)["TrafficMirrorTarget"]
    target_id = target["TrafficMirrorTargetId"]
    assert target["Type"] == "network-load-balancer"
    ec2.delete_traffic_mirror_target(TrafficMirrorTargetId=target_id)
    gone = code_of(ec2.describe_traffic_mirror_targets, TrafficMirrorTargetIds=[target_id])
    assert gone == "InvalidTrafficMirrorTargetId.NotFound"
    filter_id = ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    ec2.delete_traffic_mirror_filter(TrafficMirrorFilterId=filter_id)
    gone = code_of(ec2.describe_traffic_mirror_filters, TrafficMirrorFilterIds=[filter_id])
    assert gone == "InvalidTrafficMirrorFilterId.NotFound"


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rules(cloud: Cloud) -> Any:
    """A new filter, and a function that adds a rule to it."""
    ec2 = cloud.client("ec2")
    filter_id = ec2.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]

    def add(number: int, direction: str = "ingress", **more: Any) -> dict[str, Any]:
        return ec2.create_traffic_mirror_filter_rule(
            **{
                "TrafficMirrorFilterId": filter_id,
                "TrafficDirection": direction,
                "RuleNumber": number,
                "RuleAction": "accept",
                "SourceCidrBlock": "10.0.0.0/8",
                "DestinationCidrBlock": "0.0.0.0/0",
                "Protocol": 6,
                **more,
            }
        )["TrafficMirrorFilterRule"]

    add.filter_id = filter_id  # type: ignore[attr-defined]
    return add


def test_a_filter_shows_its_rules_by_direction_in_order(cloud: Cloud, rules: Any) -> None:
    rules(20)
    rules(10, DestinationPortRange={"FromPort": 80, "ToPort": 81})
    rules(10, "egress")
    (shown,) = cloud.client("ec2").describe_traffic_mirror_filters(TrafficMirrorFilterIds=[rules.filter_id])[
        "TrafficMirrorFilters"
    ]
    assert [r["RuleNumber"] for r in shown["IngressFilterRules"]] == [10, 20]
    assert shown["IngressFilterRules"][0]["DestinationPortRange"] == {"FromPort": 80, "ToPort": 81}
    assert [r["RuleNumber"] for r in shown["EgressFilterRules"]] == [10]


def test_a_rule_number_is_unique_in_its_direction(rules: Any) -> None:
    rules(1)
    assert code_of(lambda: rules(1)) == "TrafficMirrorFilterRuleAlreadyExists"


def test_a_filter_holds_ten_rules(rules: Any) -> None:
    for number in range(1, 11):
        rules(number, "ingress" if number % 2 else "egress")
    assert code_of(lambda: rules(11)) == "TrafficMirrorFilterRuleLimitExceeded"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"SourceCidrBlock": "10.0.0.1/8"}, "InvalidParameterValue"),
        ({"SourceCidrBlock": "::/0"}, "InvalidParameterValue"),
        ({"Protocol": 256}, "InvalidParameterValue"),
        ({"Protocol": 1, "DestinationPortRange": {"FromPort": 1, "ToPort": 2}}, "InvalidParameterCombination"),
        ({"DestinationPortRange": {"FromPort": 2, "ToPort": 1}}, "InvalidParameterValue"),
        ({"RuleNumber": 32767}, "InvalidParameterValue"),
    ],
)
def test_a_wrong_rule_is_refused(rules: Any, wrong: dict[str, Any], code: str) -> None:
    number = wrong.pop("RuleNumber", 1)
    assert code_of(lambda: rules(number, **wrong)) == code


def test_a_rule_can_be_changed_and_deleted(cloud: Cloud, rules: Any) -> None:
    ec2 = cloud.client("ec2")
    rule_id = rules(1, DestinationPortRange={"FromPort": 80, "ToPort": 80})["TrafficMirrorFilterRuleId"]
    changed = ec2.modify_traffic_mirror_filter_rule(
        TrafficMirrorFilterRuleId=rule_id, RuleAction="reject", RemoveFields=["destination-port-range"]
    )["TrafficMirrorFilterRule"]
    assert changed["RuleAction"] == "reject"
    assert "DestinationPortRange" not in changed
    ec2.delete_traffic_mirror_filter_rule(TrafficMirrorFilterRuleId=rule_id)
    code = code_of(ec2.delete_traffic_mirror_filter_rule, TrafficMirrorFilterRuleId=rule_id)
    assert code == "InvalidTrafficMirrorFilterRuleId.NotFound"


def test_network_services_are_added_and_removed(cloud: Cloud, rules: Any) -> None:
    modify = cloud.client("ec2").modify_traffic_mirror_filter_network_services
    added = modify(TrafficMirrorFilterId=rules.filter_id, AddNetworkServices=["amazon-dns"])
    assert added["TrafficMirrorFilter"]["NetworkServices"] == ["amazon-dns"]
    removed = modify(TrafficMirrorFilterId=rules.filter_id, RemoveNetworkServices=["amazon-dns"])
    assert removed["TrafficMirrorFilter"].get("NetworkServices", []) == []


# -- the lab's view ------------------------------------------------------------------------------------------------


def test_the_lab_sees_an_instance_and_its_session_with_all_that_mirroring_needs(
    cloud: Cloud, mirror: SimpleNamespace, rules: Any
) -> None:
    before = time.time()
    instance = cloud.run_instance(
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Mirror", "Value": "true"}]}]
    )
    interface = instance["NetworkInterfaces"][0]
    rules(3, DestinationPortRange={"FromPort": 80, "ToPort": 80})
    asked = ask(mirror, interface["NetworkInterfaceId"], 100, VirtualNetworkId=4789) | {
        "TrafficMirrorFilterId": rules.filter_id
    }
    made = cloud.client("ec2").create_traffic_mirror_session(**asked)["TrafficMirrorSession"]

    seen = cloud.lab("network")
    (row,) = [i for i in seen["instances"] if i["id"] == instance["InstanceId"]]
    assert row["tags"]["Mirror"] == "true"
    assert row["asg"] is None
    assert before - 1 <= row["launched_at"] <= time.time()
    (eni,) = row["enis"]
    assert eni["id"] == interface["NetworkInterfaceId"]
    assert eni["private_ip"] == interface["PrivateIpAddress"]
    assert eni["private_ip"].startswith("172.31.")
    assert eni["device_index"] == 0
    assert eni["subnet"] == interface["SubnetId"]

    (shown,) = [s for s in seen["sessions"] if s["id"] == made["TrafficMirrorSessionId"]]
    assert (shown["eni"], shown["number"], shown["vni"], shown["packet_length"]) == (eni["id"], 100, 4789, 8500)
    assert shown["target"] == {"id": mirror.target, "nlb_arn": mirror.nlb, "eni": None}
    assert shown["filter"]["ingress"] == [
        {
            "number": 3,
            "action": "accept",
            "protocol": 6,
            "source_cidr": "10.0.0.0/8",
            "destination_cidr": "0.0.0.0/0",
            "source_ports": None,
            "destination_ports": [80, 80],
        }
    ]
    assert before <= shown["created_at"] <= time.time()


def sessions_on(cloud: Cloud, eni: str) -> list[dict[str, Any]]:
    filters = [{"Name": "network-interface-id", "Values": [eni]}]
    return cloud.client("ec2").describe_traffic_mirror_sessions(Filters=filters)["TrafficMirrorSessions"]

"""HttpPorts and MirrorEgress become filter rules without a loop; here is what comes out for given values."""

import pytest
import stack


def rules(**parameters):
    """What the filter accepts: {(direction, family, side of the port, from, to)}."""
    found = set()
    for rule in stack.Evaluated(**parameters).resources("AWS::EC2::TrafficMirrorFilterRule").values():
        p = rule["Properties"]
        assert (p["TrafficMirrorFilterId"], p["RuleAction"], p["Protocol"]) == ("<MirrorFilter>", "accept", 6)
        assert p["SourceCidrBlock"] == p["DestinationCidrBlock"]
        family = {"0.0.0.0/0": 4, "::/0": 6}[p["SourceCidrBlock"]]
        (side,) = [s for s in ("Source", "Destination") if f"{s}PortRange" in p]
        ports = p[f"{side}PortRange"]
        found.add((p["TrafficDirection"], family, side, int(ports["FromPort"]), int(ports["ToPort"])))
    return found


def ingress(*ranges):
    return {("ingress", family, "Destination", a, b) for family in (4, 6) for a, b in ranges}


def egress(*ranges):
    return {("egress", family, "Source", a, b) for family in (4, 6) for a, b in ranges}


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("80,8080", [(80, 80), (8080, 8080)]),
        ("443", [(443, 443)]),
        ("8000-8100", [(8000, 8100)]),
        ("80,8000-8100,3000", [(80, 80), (8000, 8100), (3000, 3000)]),
        ("1,2-3,4,5,65535", [(1, 1), (2, 3), (4, 4), (5, 5), (65535, 65535)]),
    ],
)
def test_each_port_has_a_rule_for_each_family(ports, expected):
    assert rules(HttpPorts=ports) == ingress(*expected)


def test_the_default_is_80_and_8080_inbound():
    assert rules() == ingress((80, 80), (8080, 8080))


@pytest.mark.parametrize(
    ("ports", "expected"), [("80", [(80, 80)]), ("80,8000-8100", [(80, 80), (8000, 8100)])]
)
def test_with_egress_the_answers_leave_from_the_same_ports(ports, expected):
    assert rules(HttpPorts=ports, MirrorEgress="true") == ingress(*expected) | egress(*expected)


@pytest.mark.parametrize(
    ("ports", "mirror_egress", "refused"),
    [("80,81", "true", False), ("80,81,82", "true", True), ("80,81,82,83,84", "false", False)],
)
def test_a_third_port_with_egress_is_refused_in_words(ports, mirror_egress, refused):
    evaluated = stack.Evaluated(HttpPorts=ports, MirrorEgress=mirror_egress)
    limit = evaluated.resources("AWS::SSM::Parameter")
    assert bool(limit) == refused
    if refused:
        (properties,) = [r["Properties"] for r in limit.values()]
        # A value that its own pattern cannot match is what makes Systems Manager refuse it, and quote it.
        assert properties["AllowedPattern"] == "^$"
        assert "2 ports at most while MirrorEgress" in properties["Value"]
    else:
        # What a filter holds.
        assert len(evaluated.resources("AWS::EC2::TrafficMirrorFilterRule")) <= 10


def test_rule_numbers_are_unique_in_each_direction():
    numbers = [
        (r["Properties"]["TrafficDirection"], r["Properties"]["RuleNumber"])
        for r in stack.Evaluated(HttpPorts="1,2,3,4,5", MirrorEgress="true")
        .resources("AWS::EC2::TrafficMirrorFilterRule")
        .values()
    ]
    assert len(numbers) == 14
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    "cidrs", ["10.0.0.0/8", "10.1.0.0/16,10.2.0.0/16", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10"]
)
def test_the_load_balancer_admits_vxlan_from_each_source_and_nothing_else(cidrs):
    group = stack.Evaluated(SourceCidrs=cidrs).properties("BalancerSecurityGroup")
    admitted = [(r["IpProtocol"], r["FromPort"], r["ToPort"], r["CidrIp"]) for r in group["SecurityGroupIngress"]]
    assert admitted == [("udp", 4789, 4789, cidr) for cidr in cidrs.split(",")]


@pytest.mark.parametrize(("before", "after"), [("80,81,82", "80,81"), ("80,81", "80,81"), ("80", "80")])
@pytest.mark.parametrize("on", [True, False])
def test_mirror_egress_can_be_switched_as_its_description_says(before, after, on):
    # CloudFormation makes new rules and changes those that stay before it removes any: all of them are there at once.
    assert "at most 3 HttpPorts at that time" in stack.source()["Parameters"]["MirrorEgress"]["Description"]
    without, egress_on = {"HttpPorts": before}, {"HttpPorts": after, "MirrorEgress": "true"}
    old, new = (without, egress_on) if on else (egress_on, without)
    kind = "AWS::EC2::TrafficMirrorFilterRule"
    names = stack.Evaluated(**old).resources(kind).keys() | stack.Evaluated(**new).resources(kind).keys()
    assert len(names) <= 10

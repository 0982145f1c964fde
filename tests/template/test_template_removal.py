"""The order of removal: events stop first, then our sessions go, then what the sessions need.

CloudFormation removes in the reverse order of its dependency graph, so the order is a property of the template, and this
holds the graph of the transformed template against it. Removed in another order, sessions are left behind: an event makes
one after the last pass, or the target of a session goes while the session is there.
"""

import pytest
import stack

SESSIONS = "MirrorSessions"
LAYER_VERSIONS = "LayerVersions"


def required(template):
    """(what, needs): each pair must be a *direct* edge, so that it hangs on no other resource's edges."""
    for kind in ("AWS::Events::Rule", "AWS::Lambda::EventSourceMapping"):
        for name in stack.of_type(template, kind):
            # This one makes no session, and is needed as long as an instance may wait.
            if name != "DrainRule":
                yield name, SESSIONS
    for hook in stack.of_type(template, "AWS::AutoScaling::LifecycleHook"):
        yield hook, SESSIONS
        for needed in ("RebuilderGroup", "DrainRule", "DrainPermission"):
            yield hook, needed
    yield SESSIONS, "MirrorListener"
    for kind in (
        "AWS::EC2::TrafficMirrorTarget",
        "AWS::EC2::TrafficMirrorFilter",
        "AWS::EC2::TrafficMirrorFilterRule",
    ):
        for name in stack.of_type(template, kind):
            yield SESSIONS, name
    yield SESSIONS, "ReconcileFunction"
    yield SESSIONS, "ReconcileInvokesItself"
    # The layer's versions are kept by CloudFormation and removed by the function: after every one was made, whatever failed.
    for layer in stack.of_type(template, "AWS::Lambda::LayerVersion"):
        yield layer, LAYER_VERSIONS
    yield LAYER_VERSIONS, "ReconcileFunction"
    # Beyond DESIGN: nobody is mirrored while nobody listens, and an instance can be asked how it is from its first second.
    yield SESSIONS, "RebuilderGroup"
    yield SESSIONS, "NodeGroup"
    # What was rebuilt can be handed over until the last rebuilder has gone.
    yield "RebuilderGroup", "NodeGroup"
    for name in ("NodeAlbListener", "NodeNlbListener", "NodesAdmitRequests", "NodesAdmitHealthChecks"):
        yield "NodeGroup", name
    yield "RebuilderGroup", "MirrorListener"
    yield "RebuilderGroup", "RebuildersAdmitMirroredPackets"
    yield "RebuilderGroup", "RebuildersAdmitHealthChecks"


def required_in_the_end(template):
    """(what, needs): these may hold through others."""
    # The function can still do its work, and write of it, while it is called for the last time.
    for needed in ("ReconcileRole", "ReconcileLogs"):
        yield SESSIONS, needed
        yield LAYER_VERSIONS, needed
    # Nobody fetches a version any more when they go.
    yield "RebuilderGroup", LAYER_VERSIONS
    # The target is removed before the load balancer behind it.
    yield "MirrorTarget", "Balancer"
    yield "AttachMapping", "AttachRole"
    # Whoever waits can still be let go on while the hook is there.
    for needed in ("DrainFunction", "DrainRole", "DrainLogs", "RebuilderTargets"):
        yield "RebuilderLeaves", needed
    for name in stack.of_type(template, "AWS::Events::Rule"):
        yield name, "MirrorTarget"


def violations(template):
    graph = stack.edges(template)
    wrong = [f"{what} must directly need {needs}" for what, needs in required(template) if needs not in graph[what]]
    for what, needs in required_in_the_end(template):
        if needs not in stack.reachable(graph, what):
            wrong.append(f"{what} must need {needs}")
    return wrong


def test_the_order_of_removal_holds():
    assert violations(stack.transformed()) == []


def test_every_kind_of_the_order_is_there():
    # An order over nothing holds too. So: how many of each there are.
    template = stack.transformed()
    counts = {
        "AWS::Events::Rule": 7,
        "AWS::AutoScaling::LifecycleHook": 1,
        "AWS::Lambda::EventSourceMapping": 1,
        "AWS::ElasticLoadBalancingV2::Listener": 3,
        "AWS::EC2::TrafficMirrorTarget": 1,
        "AWS::EC2::TrafficMirrorFilter": 1,
        "AWS::EC2::TrafficMirrorFilterRule": 14,
        "AWS::Lambda::LayerVersion": 1,
        "Custom::LayerVersions": 1,
        "Custom::MirrorSessions": 1,
    }
    assert {kind: len(stack.of_type(template, kind)) for kind in counts} == counts


def every_depends_on():
    template = stack.transformed()
    return [(name, needed) for name, r in template["Resources"].items() for needed in stack.depends_on(r)]


@pytest.mark.parametrize(("name", "needed"), every_depends_on(), ids="-".join)
def test_each_depends_on_is_needed(name, needed):
    template = stack.transformed()
    resource = template["Resources"][name]
    resource["DependsOn"] = [n for n in stack.depends_on(resource) if n != needed]
    assert f"{name} must directly need {needed}" in violations(template)


@pytest.mark.parametrize("key", ["ServiceToken", "TargetId", "FilterId", "Listener", "RebuilderGroup", "NodeGroup"])
def test_each_reference_of_the_custom_resource_is_needed(key):
    template = stack.transformed()
    properties = template["Resources"][SESSIONS]["Properties"]
    (needed,) = stack.references(properties.pop(key)) & template["Resources"].keys()
    assert f"{SESSIONS} must directly need {needed}" in violations(template)


def test_the_tag_that_orders_the_groups_is_needed():
    template = stack.transformed()
    tags = template["Resources"]["RebuilderGroup"]["Properties"]["Tags"]
    tags[:] = [tag for tag in tags if "NodeGroup" not in stack.references(tag)]
    assert "RebuilderGroup must directly need NodeGroup" in violations(template)


@pytest.mark.parametrize("index", range(14))
def test_each_filter_rule_is_named_by_the_custom_resource(index):
    template = stack.transformed()
    removed = template["Resources"][SESSIONS]["Properties"]["FilterRules"].pop(index)
    (needed,) = stack.references(removed) & stack.of_type(template, "AWS::EC2::TrafficMirrorFilterRule").keys()
    assert f"{SESSIONS} must directly need {needed}" in violations(template)


def test_nothing_needs_itself():
    graph = stack.edges(stack.transformed())
    assert [name for name in graph if name in stack.reachable(graph, name)] == []


def test_an_event_rule_added_without_the_edge_is_noticed():
    template = stack.transformed()
    template["Resources"]["NewRule"] = {"Type": "AWS::Events::Rule", "Properties": {"ScheduleExpression": "rate(1 day)"}}
    assert f"NewRule must directly need {SESSIONS}" in violations(template)


@pytest.mark.parametrize("name", ["MirrorFilter", "MirrorTarget", "BalancerSecurityGroup", "RebuilderSecurityGroup"])
def test_no_change_of_a_parameter_replaces_what_sessions_and_the_load_balancer_hang_on(name):
    # A new description is a new filter, target or group for CloudFormation, and every session would have to move.
    template = stack.transformed()
    properties = template["Resources"][name]["Properties"]
    description = properties["GroupDescription" if "Group" in name else "Description"]
    assert stack.references(description) == {"AWS::StackName"}


def test_references_are_found_in_every_form():
    # The graph is only as good as this: GetAtt as text and as list, Sub with and without variables, escapes, nesting.
    value = {
        "a": {"Ref": "A"},
        "b": [{"Fn::GetAtt": "B.Arn"}, {"Fn::GetAtt": ["C", "Arn"]}],
        "d": {"Fn::Sub": "${D.Arn}/${!NotThis}/${E}"},
        "f": {"Fn::Sub": ["${Local}-${F}", {"Local": {"Fn::If": ["X", {"Ref": "G"}, {"Ref": "AWS::NoValue"}]}}]},
    }
    assert stack.references(value) == {"A", "B", "C", "D", "E", "F", "G", "AWS::NoValue"}

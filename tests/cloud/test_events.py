"""Each document of ``events/``, told to the real functions through the template's own rules: the right interfaces, and no
others, end with a session. And all of them shuffled, doubled and with a third lost: after one sweep the same holds."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import interface_of, sessions, tagged

product.need_a_build()

SELECTION = "tag:Mirror=true,ecs:prod,asg:web"
MIRROR = [{"Key": "Mirror", "Value": "true"}]
# The ids in the documents.
INSTANCE, ENI = "i-1234567890abcdef0", "eni-0a1b2c3d4e5f60718"


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    product.deploy(cloud, MutationsPerSecond="5", Selection=SELECTION, TrailEvents="true")
    out = product.outputs(cloud)
    (mapping,) = cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    ec2 = cloud.client("ec2")
    ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    )
    cloud.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="web", LaunchTemplate={"LaunchTemplateName": "web"}, MinSize=0, MaxSize=9,
        VPCZoneIdentifier=cloud.subnets()[0],
    )  # fmt: skip
    ecs = cloud.client("ecs")
    ecs.register_task_definition(
        family="job", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
        containerDefinitions=[{"name": "job", "image": "job", "memory": 512}],
    )  # fmt: skip
    ecs.create_cluster(clusterName="prod")
    own_role = cloud.client("lambda").get_function_configuration(FunctionName=out["ReconcileFunction"])["Role"]
    return SimpleNamespace(out=out, mapping=mapping["UUID"], own_role=own_role.rsplit("/", 1)[1])


class World:
    """What one test makes happen, while nobody listens; ``tell`` then says it as AWS would."""

    def __init__(self, cloud: Cloud, stack: SimpleNamespace):
        self.cloud, self.stack = cloud, stack
        self.ec2 = cloud.client("ec2")

    def instance(self, **more: Any) -> tuple[str, str]:
        made = self.cloud.run_instance(**more)
        return made["InstanceId"], interface_of(made)

    def mirrored(self, eni: str) -> None:
        """Gives it the session that a sweep would have given it."""
        self.ec2.create_traffic_mirror_session(
            NetworkInterfaceId=eni, TrafficMirrorTargetId=self.stack.out["MirrorTargetId"],
            TrafficMirrorFilterId=self.stack.out["MirrorFilterId"], SessionNumber=100, VirtualNetworkId=4789,
            PacketLength=8500, TagSpecifications=[{
                "ResourceType": "traffic-mirror-session",
                "Tags": [{"Key": "mirrorfleet:stack", "Value": self._stack_id()}],
            }],
        )  # fmt: skip

    def _stack_id(self) -> str:
        return self.cloud.client("cloudformation").describe_stacks(StackName=product.STACK)["Stacks"][0]["StackId"]

    def second(self, instance: str, index: int = 1) -> tuple[str, str]:
        """A second interface of an instance, tagged; and its attachment."""
        eni = self.cloud.interface()
        self.ec2.create_tags(Resources=[eni], Tags=MIRROR)
        attached = self.ec2.attach_network_interface(NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=index)
        return eni, attached["AttachmentId"]

    def member(self) -> tuple[str, str]:
        """One more instance of the group."""
        scaling = self.cloud.client("autoscaling")
        before = self._members()
        scaling.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=len(before) + 1)
        (new,) = self._members().keys() - before.keys()
        return new, self._members()[new]

    def _members(self) -> dict[str, str]:
        return {i["id"]: i["enis"][0]["id"] for i in self.cloud.lab("network")["instances"] if i["asg"] == "web"}

    def terminate_member(self, instance: str) -> None:
        self.cloud.client("autoscaling").terminate_instance_in_auto_scaling_group(
            InstanceId=instance, ShouldDecrementDesiredCapacity=True
        )

    def task(self) -> tuple[str, str]:
        group = self.ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
        network = {"awsvpcConfiguration": {"subnets": [self.cloud.subnets()[0]], "securityGroups": [group]}}
        (task,) = self.cloud.client("ecs").run_task(
            cluster="prod", taskDefinition="job", launchType="FARGATE", networkConfiguration=network
        )["tasks"]
        (eni,) = [d["value"] for d in task["attachments"][0]["details"] if d["name"] == "networkInterfaceId"]
        return task["taskArn"], eni

    def stop_task(self, task: str) -> None:
        self.cloud.client("ecs").stop_task(cluster="prod", task=task)


def document(name: str, instance: str = INSTANCE, eni: str = ENI) -> dict[str, Any]:
    text = (product.ROOT / "events" / f"{name}.json").read_text().replace(INSTANCE, instance).replace(ENI, eni)
    told = json.loads(text)
    # Of now: what an event tells of may be invisible for a while, and this one is not from last year.
    told["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return told


# ---- What each event tells -----------------------------------------------------------------------------------------
# Each function makes it happen; gives the ids for the document, and who is mirrored when the event has been handled.

Told = tuple[str, str, set[str]]


def starts(world: World) -> Told:
    instance, eni = world.instance(**tagged())
    return instance, eni, {eni}


def starts_unselected(world: World) -> Told:
    instance, eni = world.instance(**tagged("false"))
    return instance, eni, set()


def stops(world: World) -> Told:
    instance, eni = world.instance(**tagged())
    world.mirrored(eni)
    world.ec2.stop_instances(InstanceIds=[instance])
    return instance, eni, set()


def ends(world: World) -> Told:
    instance, eni = world.instance(**tagged())
    world.mirrored(eni)
    world.ec2.terminate_instances(InstanceIds=[instance])
    return instance, eni, set()


def joins(world: World) -> Told:
    instance, eni = world.member()
    return instance, eni, {eni}


def leaves(world: World) -> Told:
    instance, eni = world.member()
    world.mirrored(eni)
    world.terminate_member(instance)
    return instance, eni, set()


def waits_in_its_hook(world: World) -> Told:
    # It runs, and is seen as long as it does.
    return joins(world)


def gets_the_tag(world: World) -> Told:
    instance, eni = world.instance()
    world.ec2.create_tags(Resources=[instance], Tags=MIRROR)
    return instance, eni, {eni}


def loses_the_tag(world: World) -> Told:
    instance, eni = world.instance(**tagged())
    world.mirrored(eni)
    world.ec2.delete_tags(Resources=[instance], Tags=[{"Key": "Mirror"}])
    return instance, eni, set()


def interface_gets_the_tag(world: World) -> Told:
    instance, eni = world.instance()
    world.ec2.create_tags(Resources=[eni], Tags=MIRROR)
    return instance, eni, {eni}


def task_starts(world: World) -> Told:
    _, eni = world.task()
    return INSTANCE, eni, {eni}


def task_stops(world: World) -> Told:
    task, eni = world.task()
    world.mirrored(eni)
    world.stop_task(task)
    return INSTANCE, eni, set()


def interface_is_made(world: World) -> Told:
    eni = world.cloud.interface()
    world.ec2.create_tags(Resources=[eni], Tags=MIRROR)
    return INSTANCE, eni, set()  # attached to nothing so far


def interface_is_attached(world: World) -> Told:
    instance, _ = world.instance()
    eni, _ = world.second(instance)
    return instance, eni, {eni}


def interface_is_deleted(world: World) -> Told:
    instance, _ = world.instance()
    eni, attachment = world.second(instance)
    world.mirrored(eni)
    world.ec2.detach_network_interface(AttachmentId=attachment, Force=True)
    world.ec2.delete_network_interface(NetworkInterfaceId=eni)
    return INSTANCE, eni, set()


CASES: list[tuple[str, Callable[[World], Told]]] = [
    ("instance-pending", starts),
    ("instance-running", starts),
    ("instance-running", starts_unselected),
    ("instance-stopping", stops),
    ("instance-stopped", stops),
    ("instance-terminated", ends),
    ("asg-launch", joins),
    ("asg-launch-lifecycle", joins),
    ("asg-terminate", leaves),
    ("asg-terminate-lifecycle", waits_in_its_hook),
    ("tag-change-instance", gets_the_tag),
    ("tag-change-instance", loses_the_tag),
    ("tag-change-interface", interface_gets_the_tag),
    ("ecs-task-running", task_starts),
    ("ecs-task-stopped", task_stops),
    ("trail-run-instances", starts),
    ("trail-create-interface", interface_is_made),
    ("trail-attach-interface", interface_is_attached),
    ("trail-delete-interface", interface_is_deleted),
    ("trail-create-tags", gets_the_tag),
    ("trail-delete-tags", loses_the_tag),
]
# Those that no rule sends: others tell the same sooner or better.
NOT_SENT = {"instance-pending", "asg-launch-lifecycle", "asg-terminate-lifecycle"}
# Those that name what is gone: then everything is looked at.
LOST = {"trail-delete-session", "trail-detach-interface"}


# ---- One by one ----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(cloud: Cloud, stack: SimpleNamespace) -> Iterator[World]:
    """Nobody listens until ``listen``; afterwards everything that the test made is gone."""
    _map(cloud, stack, False)
    before = {i["id"] for i in cloud.lab("network")["instances"]}
    yield World(cloud, stack)
    _map(cloud, stack, False)
    ec2 = cloud.client("ec2")
    made = [
        i["InstanceId"]
        for r in ec2.describe_instances()["Reservations"]
        for i in r["Instances"]
        if i["InstanceId"] not in before and i["State"]["Name"] != "terminated"
    ]
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=0)
    if made:
        ec2.terminate_instances(InstanceIds=made)
    ecs = cloud.client("ecs")
    for task in ecs.list_tasks(cluster="prod", desiredStatus="RUNNING")["taskArns"]:
        ecs.stop_task(cluster="prod", task=task)
    time.sleep(0.4)
    _empty(cloud, stack)
    sweep(cloud, stack)
    assert sessions(cloud) == []


def _map(cloud: Cloud, stack: SimpleNamespace, enabled: bool) -> None:
    cloud.client("lambda").update_event_source_mapping(UUID=stack.mapping, Enabled=enabled)
    if not enabled:
        time.sleep(0.5)


def _empty(cloud: Cloud, stack: SimpleNamespace) -> None:
    sqs, queue = cloud.client("sqs"), stack.out["EventQueueUrl"]
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])


def listen(cloud: Cloud, stack: SimpleNamespace) -> None:
    """Forgets what the emulated account itself told, and opens the queue."""
    time.sleep(0.4)
    _empty(cloud, stack)
    _map(cloud, stack, True)


def tell(cloud: Cloud, event: dict[str, Any]) -> int:
    """Puts an event on the bus as AWS would, and waits for its delivery; gives how many rules take it."""
    before = cloud.lab("events").get("delivered", 0)
    request = urllib.request.Request(f"{cloud.endpoint}/_lab/tell", json.dumps(event).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        rules = json.loads(answer.read())["rules"]
    wait_until(lambda: cloud.lab("events").get("delivered", 0) >= before + rules, 10, "the delivery")
    return rules


def quiet(cloud: Cloud, stack: SimpleNamespace) -> None:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    def left() -> int:
        held = cloud.client("sqs").get_queue_attributes(QueueUrl=stack.out["EventQueueUrl"], AttributeNames=names)
        return sum(map(int, held["Attributes"].values()))

    wait_until(lambda: left() == 0, 60, "the queue to be empty")


def sweep(cloud: Cloud, stack: SimpleNamespace) -> Any:
    return invoke(cloud, stack.out["ReconcileFunction"], document("scheduled"))


def invoke(cloud: Cloud, function: str, payload: Any) -> Any:
    answer = cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(payload))
    body = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, body
    return body


def mirrored(cloud: Cloud) -> list[str]:
    return sorted(s["eni"] for s in sessions(cloud))


IDS = [f"{name}, {happens.__name__.replace('_', ' ')}" for name, happens in CASES]


@pytest.mark.parametrize(("name", "happens"), CASES, ids=IDS)
def test_an_event_does_what_it_tells_and_nothing_else(
    cloud: Cloud, stack: SimpleNamespace, world: World, name: str, happens: Callable[[World], Told]
) -> None:
    _, bystander = world.instance(**tagged())  # selected, but nobody tells of it
    instance, eni, expected = happens(world)
    listen(cloud, stack)
    event = document(name, instance, eni)
    rules = tell(cloud, event)
    assert rules == (0 if name in NOT_SENT else 1)
    if rules:
        quiet(cloud, stack)
    else:
        invoke(cloud, stack.out["AttachFunction"], event)
    assert mirrored(cloud) == sorted(expected)
    # The same once more, and by itself, changes nothing.
    invoke(cloud, stack.out["AttachFunction"], event)
    assert mirrored(cloud) == sorted(expected)
    sweep(cloud, stack)
    assert mirrored(cloud) == sorted(expected | {bystander})


def test_a_session_that_somebody_removed_is_put_back(cloud: Cloud, stack: SimpleNamespace, world: World) -> None:
    _, eni = world.instance(**tagged())
    _, other = world.instance(**tagged("false"))
    listen(cloud, stack)
    event = document("trail-delete-session")
    own = json.loads(json.dumps(event).replace("assumed-role/admin/", f"assumed-role/{stack.own_role}/"))
    # What a function of this stack removed is no news: else each removal would wake us to look at everything.
    assert tell(cloud, own) == 1
    quiet(cloud, stack)
    assert mirrored(cloud) == []
    assert tell(cloud, event) == 1
    quiet(cloud, stack)
    assert mirrored(cloud) == [eni] and other not in mirrored(cloud)


def test_a_detached_interface_loses_its_session(cloud: Cloud, stack: SimpleNamespace, world: World) -> None:
    instance, _ = world.instance()
    eni, attachment = world.second(instance)
    stays, _ = world.second(instance, 2)
    world.mirrored(eni)
    world.mirrored(stays)
    world.ec2.detach_network_interface(AttachmentId=attachment, Force=True)
    listen(cloud, stack)
    assert tell(cloud, document("trail-detach-interface")) == 1
    quiet(cloud, stack)
    assert mirrored(cloud) == [stays]
    world.ec2.delete_network_interface(NetworkInterfaceId=eni)


def test_each_document_of_an_event_is_told_here() -> None:
    known = {name for name, _ in CASES} | LOST
    others = {"scheduled", "malformed", "dry-run", "explain-instance", "explain-interface", "drain-terminate"}
    there = {file.stem for file in (product.ROOT / "events").glob("*.json")}
    assert {name for name in there if not name.startswith("custom-")} == known | others


def test_a_refused_call_in_a_trail_is_no_event(cloud: Cloud, stack: SimpleNamespace, world: World) -> None:
    instance, eni = world.instance(**tagged())
    listen(cloud, stack)
    refused = document("trail-run-instances", instance, eni)
    refused["detail"] |= {"errorCode": "Client.UnauthorizedOperation", "errorMessage": "no"}
    tell(cloud, refused)
    quiet(cloud, stack)
    assert mirrored(cloud) == []


# ---- All of them, shuffled, doubled, a third lost ------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shuffled_doubled_and_a_third_lost_they_come_to_the_same_after_one_sweep(
    cloud: Cloud, stack: SimpleNamespace, world: World, seed: int
) -> None:
    chance = random.Random(seed)
    events, expected = [], set()
    for name, happens in chance.sample(CASES, len(CASES)):
        instance, eni, mirrored_then = happens(world)
        events.append(document(name, instance, eni))
        expected |= mirrored_then
    events += [document(name) for name in sorted(LOST)]
    events *= 2
    chance.shuffle(events)
    told = events[: len(events) * 2 // 3]
    listen(cloud, stack)
    for event in told:
        tell(cloud, event)
    quiet(cloud, stack)
    sweep(cloud, stack)
    assert mirrored(cloud) == sorted(expected), f"seed {seed}"

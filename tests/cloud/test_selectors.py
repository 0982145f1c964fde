"""Each term of Selection, by the real functions on an account that holds something of every kind: the right interfaces,
and no others, end with a session."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import interface_of, sessions

product.need_a_build()

MIRROR = {"Key": "Mirror", "Value": "true"}


def instance(cloud: Cloud, *tags: dict[str, str], **more: Any) -> dict[str, Any]:
    specification = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "some"}, *tags]}]
    return cloud.run_instance(TagSpecifications=specification, **more)


def second_interface(cloud: Cloud, instance_id: str, *tags: dict[str, str]) -> str:
    ec2 = cloud.client("ec2")
    eni = cloud.interface()
    ec2.attach_network_interface(NetworkInterfaceId=eni, InstanceId=instance_id, DeviceIndex=1)
    if tags:
        ec2.create_tags(Resources=[eni], Tags=list(tags))
    return eni


class Everything:
    """One of each kind. ``names`` says which interfaces each is."""

    def __init__(self, cloud: Cloud):
        self.cloud = cloud
        ec2 = cloud.client("ec2")
        self.names: dict[str, str] = {}
        tagged = instance(cloud, MIRROR)
        self.instance = tagged["InstanceId"]
        self.names["tagged"] = interface_of(tagged)
        self.names["tagged-second"] = second_interface(cloud, self.instance)
        self.names["tagged-dev"] = interface_of(instance(cloud, MIRROR, {"Key": "env", "Value": "dev"}))
        plain = instance(cloud)
        self.names["plain"] = interface_of(plain)
        self.names["plain-second-tagged"] = second_interface(cloud, plain["InstanceId"], MIRROR)
        self._groups()
        node = {"Key": "eks:cluster-name", "Value": "prod"}
        workers = instance(cloud, node, {"Key": "eks:nodegroup-name", "Value": "workers"})
        self.names["node"] = interface_of(workers)
        self.names["node-cni"] = second_interface(
            cloud, workers["InstanceId"], {"Key": "cluster.k8s.amazonaws.com/name", "Value": "prod"}
        )
        self.names["node-system"] = interface_of(instance(cloud, node, {"Key": "eks:nodegroup-name", "Value": "system"}))
        self.names["node-self-managed"] = interface_of(
            instance(cloud, {"Key": "kubernetes.io/cluster/staging", "Value": "owned"})
        )
        self._balancers()
        self._tasks()
        self.vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
        self.subnet = ec2.create_subnet(VpcId=self.vpc, CidrBlock="10.77.1.0/24")["Subnet"]["SubnetId"]
        self.names["elsewhere"] = interface_of(instance(cloud, SubnetId=self.subnet))
        # What each of these selects, and what is not to be mirrored all the same.
        detached = cloud.interface()
        ec2.create_tags(Resources=[detached], Tags=[MIRROR])
        stopped = instance(cloud, MIRROR, SubnetId=self.subnet)
        ec2.stop_instances(InstanceIds=[stopped["InstanceId"]])
        self.names["unsupported"] = interface_of(instance(cloud, MIRROR, InstanceType="t2.micro"))

    def _groups(self) -> None:
        ec2, scaling = self.cloud.client("ec2"), self.cloud.client("autoscaling")
        ec2.create_launch_template(
            LaunchTemplateName="any", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
        )
        for name in ("web-blue", "db"):
            scaling.create_auto_scaling_group(
                AutoScalingGroupName=name, LaunchTemplate={"LaunchTemplateName": "any"}, MinSize=1, MaxSize=1,
                VPCZoneIdentifier=self.cloud.subnets()[0],
            )  # fmt: skip
            (member,) = [i for i in self.cloud.lab("network")["instances"] if i["asg"] == name]
            self.names[name] = member["enis"][0]["id"]

    def _balancers(self) -> None:
        elb = self.cloud.client("elb")
        subnet = self.cloud.subnets()[0]
        for name in ("legacy", "legacy-2"):
            elb.create_load_balancer(
                LoadBalancerName=name, Subnets=[subnet],
                Listeners=[{"Protocol": "http", "LoadBalancerPort": 80, "InstancePort": 80}],
            )  # fmt: skip
            behind = instance(self.cloud)
            self.names[f"behind-{name}"] = interface_of(behind)
            elb.register_instances_with_load_balancer(
                LoadBalancerName=name, Instances=[{"InstanceId": behind["InstanceId"]}]
            )
            self.names[name] = self._managed(f"ELB {name}")
        made = self.cloud.client("elbv2").create_load_balancer(Name="shop", Subnets=[subnet], Type="application")
        arn = made["LoadBalancers"][0]["LoadBalancerArn"]
        self.names["shop"] = self._managed(f"ELB {arn.split(':loadbalancer/')[1]}")

    def _tasks(self) -> None:
        ecs = self.cloud.client("ecs")
        ecs.register_task_definition(
            family="job", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
            containerDefinitions=[{"name": "job", "image": "job", "memory": 512}],
        )  # fmt: skip
        for name in ("batch-1", "batch-2", "other"):
            ecs.create_cluster(clusterName=name)
            self.names[f"task-{name}"] = self.run_task(name)

    def run_task(self, cluster: str) -> str:
        """Gives the interface of the task."""
        group = self.cloud.client("ec2").describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
        network = {"awsvpcConfiguration": {"subnets": [self.cloud.subnets()[0]], "securityGroups": [group]}}
        (task,) = self.cloud.client("ecs").run_task(
            cluster=cluster, taskDefinition="job", launchType="FARGATE", networkConfiguration=network
        )["tasks"]
        (eni,) = [d["value"] for d in task["attachments"][0]["details"] if d["name"] == "networkInterfaceId"]
        return eni

    def _managed(self, description: str) -> str:
        (found,) = self.cloud.client("ec2").describe_network_interfaces(
            Filters=[{"Name": "description", "Values": [description]}]
        )["NetworkInterfaces"]
        return found["NetworkInterfaceId"]

    def mirrored(self) -> set[str]:
        names = {eni: name for name, eni in self.names.items()}
        enis = [s["eni"] for s in sessions(self.cloud)]
        assert len(enis) == len(set(enis)), "two sessions of one interface"
        return {names.get(eni, eni) for eni in enis}


@pytest.fixture(scope="module")
def everything(cloud: Cloud) -> Everything:
    product.deploy(cloud, MutationsPerSecond="5", Selection="tag:nothing-yet")
    made = Everything(cloud)
    # What the launches told is handled by the selection that was then, and must be done with before there is another.
    queue, names = product.outputs(cloud)["EventQueueUrl"], ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    time.sleep(0.5)

    def left() -> int:
        return sum(map(int, cloud.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"].values()))

    wait_until(lambda: left() == 0, 30, "the queue to be empty")
    return made


DEFAULT_VPC = {
    "tagged", "tagged-second", "tagged-dev", "plain", "plain-second-tagged", "web-blue", "db", "node", "node-cni", "node-system",
    "node-self-managed", "behind-legacy", "behind-legacy-2", "task-batch-1", "task-batch-2", "task-other",
}  # fmt: skip

# Selection -> who is mirrored. {…} are ids of the account.
SELECTIONS: list[tuple[str, set[str]]] = [
    ("tag:Mirror=true", {"tagged", "tagged-second", "tagged-dev", "plain-second-tagged"}),
    ("tag:Mirror", {"tagged", "tagged-second", "tagged-dev", "plain-second-tagged"}),
    ("tag:Mirror=true, !tag:env=dev", {"tagged", "tagged-second", "plain-second-tagged"}),
    ("tag:Mirror=true & interface:primary", {"tagged", "tagged-dev"}),
    ("tag:Mirror=true & tag:env=d*", {"tagged-dev"}),
    ("asg:web-*", {"web-blue"}),
    ("eks:prod", {"node", "node-cni", "node-system"}),
    ("eks:prod/workers", {"node", "node-cni"}),
    ("eks:staging", {"node-self-managed"}),
    ("elb:legacy", {"behind-legacy"}),
    ("elb:legacy*", {"behind-legacy", "behind-legacy-2"}),
    ("elb:app/shop", {"shop"}),
    ("elb:classic/legacy-2", {"legacy-2"}),
    ("ecs:batch-1", {"task-batch-1"}),
    ("ecs:batch-*", {"task-batch-1", "task-batch-2"}),
    ("ecs:nowhere", set()),
    ("vpc:{vpc}", {"elsewhere"}),
    ("subnet:{subnet}", {"elsewhere"}),
    ("instance:{instance}", {"tagged", "tagged-second"}),
    ("eni:{eni}, asg:db", {"plain", "db"}),
    ("vpc:{default}", DEFAULT_VPC),
    ("vpc:{default}, !ecs:*, !elb:legacy*, !eks:*, !asg:*, !tag:Mirror", {"plain"}),
]


def becomes(everything: Everything, expected: set[str]) -> None:
    deadline = time.monotonic() + 20
    while (mirrored := everything.mirrored()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mirrored == expected


@pytest.mark.parametrize(("selection", "expected"), SELECTIONS, ids=[s for s, _ in SELECTIONS])
def test_a_selection_mirrors_the_right_interfaces_and_no_others(
    cloud: Cloud, everything: Everything, selection: str, expected: set[str]
) -> None:
    default = cloud.client("ec2").describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    written = selection.format(
        vpc=everything.vpc, subnet=everything.subnet, instance=everything.instance, eni=everything.names["plain"],
        default=default,
    )  # fmt: skip
    product.update(cloud, Selection=written)
    becomes(everything, expected)


def test_a_task_that_starts_in_a_selected_cluster_is_mirrored_until_it_stops(cloud: Cloud, everything: Everything) -> None:
    product.update(cloud, Selection="ecs:batch-1")
    eni = everything.run_task("batch-1")
    cloud.lab("tick", "POST")
    wait_until(lambda: len(sessions(cloud, eni)) == 1, 10, "its session")
    ecs = cloud.client("ecs")
    for task in ecs.describe_tasks(cluster="batch-1", tasks=ecs.list_tasks(cluster="batch-1")["taskArns"])["tasks"]:
        if any(d["value"] == eni for d in task["attachments"][0]["details"]):
            ecs.stop_task(cluster="batch-1", task=task["taskArn"])
    becomes(everything, {"task-batch-1"})


def test_an_explanation_names_what_elastic_load_balancing_and_ecs_said(cloud: Cloud, everything: Everything) -> None:
    product.update(cloud, Selection="elb:legacy, ecs:batch-1")
    function = product.outputs(cloud)["ReconcileFunction"]
    for name, mirrored, reason in [
        ("behind-legacy", True, "selected"),
        ("task-batch-1", True, "selected"),
        ("task-other", False, "not_selected"),
        ("legacy", False, "not_selected"),
    ]:
        wait_until(lambda m=mirrored, n=name: (n in everything.mirrored()) == m, 10, name)
        (explained,) = cloud.invoke(function, {"explain": everything.names[name]})
        assert (explained["mirrored"], explained["reason"]) == (mirrored, reason), explained


def test_an_event_has_attach_ask_them_too(cloud: Cloud, everything: Everything) -> None:
    product.update(cloud, Selection="elb:legacy, ecs:batch-*")
    attach = product.outputs(cloud)["AttachFunction"]
    eni = everything.names["task-batch-2"]
    for session in sessions(cloud, eni):
        cloud.client("ec2").delete_traffic_mirror_session(TrafficMirrorSessionId=session["id"])
    tagged = (product.ROOT / "events" / "tag-change-interface.json").read_text()
    cloud.invoke(attach, json.loads(re.sub(r"eni-[0-9a-f]+", eni, tagged)))
    assert len(sessions(cloud, eni)) == 1

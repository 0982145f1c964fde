"""The template's contract: its parameters, outputs, names, functions, and what the build needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import stack

# DESIGN §5, "Template parameters": name -> type, default. None: no default.
PARAMETERS = {
    "VpcId": ("AWS::EC2::VPC::Id", None),
    "SubnetIds": ("List<AWS::EC2::Subnet::Id>", None),
    "AnalyzerUrl": ("String", ""),
    "WallarmAmiId": ("String", ""),
    "WallarmTokenSecretArn": ("String", ""),
    "WallarmHost": ("String", "api.wallarm.com"),
    "AnalyzerBalancer": ("String", "alb"),
    "NodeInstanceTypes": ("String", "t3.medium"),
    "NodeMinSize": ("Number", 2),
    "NodeMaxSize": ("Number", 6),
    "NodeRequestsPerMinute": ("Number", 30000),
    "Selection": ("String", "tag:Mirror=true"),
    "HttpPorts": ("String", "80,8080"),
    "MirrorEgress": ("String", "false"),
    "SourceCidrs": ("String", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"),
    "TrustedProxyCidrs": ("String", ""),
    "Vni": ("Number", 4789),
    "PacketLength": ("Number", 8500),
    "SessionNumberBase": ("Number", 100),
    "MutationsPerSecond": ("Number", 3),
    "SweepMinutes": ("Number", 5),
    "TrailEvents": ("String", "false"),
    "SessionHeadroom": ("Number", 100),
    "SessionHourUsd": ("String", "0.015"),
    "Mirroring": ("String", "on"),
    "Architecture": ("String", "x86_64"),
    "InstanceTypes": ("String", "c7i.large,c6i.large,m6i.large"),
    "MinSize": ("Number", 2),
    "MaxSize": ("Number", 10),
    "AlarmEmail": ("String", ""),
    "PermissionsBoundary": ("String", ""),
    "RebuilderImage": (
        "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
    ),
    "ExistingTargetId": ("String", ""),
    "HubSecurityGroups": ("String", ""),
}

ENVIRONMENT = {
    "MIRRORFLEET_STACK_ARN": stack.PSEUDO["AWS::StackId"],
    "MIRRORFLEET_TARGET_ID": "<MirrorTarget>",
    "MIRRORFLEET_FILTER_ID": "<MirrorFilter>",
    "MIRRORFLEET_SELECTION": "tag:Mirror=true",
    "MIRRORFLEET_VNI": "4789",
    "MIRRORFLEET_PACKET_LENGTH": "8500",
    "MIRRORFLEET_SESSION_NUMBER_BASE": "100",
    "MIRRORFLEET_MUTATIONS_PER_SECOND": "3",
    "MIRRORFLEET_SWEEP_MINUTES": "5",
    "MIRRORFLEET_MIRRORING": "on",
    "MIRRORFLEET_SESSION_HEADROOM": "100",
    "MIRRORFLEET_SESSION_HOUR_USD": "0.015",
    "MIRRORFLEET_OWN_SECURITY_GROUPS": "<BalancerSecurityGroup>,<RebuilderSecurityGroup>",
    "MIRRORFLEET_ANALYZER_URL": "http://waf.example:8080",
}

# Properties that set a physical name, for types whose generated names do or do not begin with the stack's.
NAME_PROPERTIES = (
    "Name", "FunctionName", "LayerName", "LaunchTemplateName", "RoleName", "QueueName", "AlarmName", "LogGroupName",
    "GroupName", "AutoScalingGroupName", "InstanceProfileName", "ManagedPolicyName",
)  # fmt: skip
# CloudFormation's own names for these do not begin with the stack's name, so they must be given.
NAMED_BY_US = {"AWS::EC2::LaunchTemplate": "LaunchTemplateName", "AWS::Lambda::LayerVersion": "LayerName"}


def test_parameters_are_as_agreed():
    found = {name: (p["Type"], p.get("Default")) for name, p in stack.source()["Parameters"].items()}
    assert found == PARAMETERS


def test_every_parameter_says_what_it_is_and_what_it_takes():
    for name, p in stack.source()["Parameters"].items():
        assert p.get("Description"), name
        # A pattern or a limit without words gives "Parameter X failed to satisfy constraint".
        if p.keys() & {"AllowedPattern", "MinValue", "MaxValue"}:
            assert name in p["ConstraintDescription"], name


def test_every_default_satisfies_its_own_constraint():
    for name, p in stack.source()["Parameters"].items():
        if "AllowedPattern" in p and "Default" in p:
            assert re.fullmatch(p["AllowedPattern"], p["Default"]), name


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "HttpPorts",
            ["80", "80,8080", "8000-8100", "1,2,3,4,65535", "65530-65535"],
            ["", "0", "080", "65536", "80,", ",80", "80, 8080", "80-", "80-90-100", "1,2,3,4,5,6", "http", "70000-70001"],
        ),
        (
            "AnalyzerUrl",
            ["", "http://waf", "http://waf.example:8080", "https://waf.example/", "http://10.0.0.1:80", "http://[fd00::1]:80"],
            ["waf.example", "ftp://waf", "http://waf/path", "http://user@waf", "http://waf example", "http://waf:", "http://-waf",
             "http://waf'$(id)", "http://waf:123456"],
        ),
        (
            "SourceCidrs",
            ["10.0.0.0/8", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10", "0.0.0.0/0"],
            ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/8", "10.0.0.0/8, 10.1.0.0/16", ",".join(["10.0.0.0/8"] * 5)],
        ),
        (
            "TrustedProxyCidrs",
            ["", "10.0.0.0/8", "10.0.0.0/8,fd00::/8"],
            ["10.0.0.1", "10.0.0.0/8,", "10.0.0.0/8 fd00::/8", "$(id)/8", "10.0.0.0/8\nREBUILDER_FORWARD=http://x"],
        ),
        (
            "InstanceTypes",
            ["c7i.large", "c7i-flex.large,m6a.xlarge,t3.medium,x2idn.16xlarge", "c7g.large", "t4g.micro,c7gn.large,im4gn.large"],
            ["", "c7i.large,c7gn.large", "c7g.large,c7i.large", "c7i", "c7g", "c7i.large, c6i.large",
             ",".join(["c7i.large"] * 5), ",".join(["c7g.large"] * 5)],
        ),
        (
            "NodeInstanceTypes",
            ["t3.medium", "m6i.large,m5.large"],
            ["", "t4g.medium", "m6i.large,m6g.large", "t3", "t3.medium,", "a1.b,c1.d,e1.f"],
        ),
        ("WallarmAmiId", ["", "ami-0123456789abcdef0", "ami-01234567"], ["ami", "ami-0123456789ABCDEF0", "ami-012345678", "tmt-01234567"]),
        (
            "WallarmTokenSecretArn",
            ["", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wallarm/node-AbCdEf"],
            # A token by mistake; and what would leave the quotes of the boot script.
            ["dGhpcyBpcyBhIHRva2Vu", "wallarm", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x'$(id)'",
             "arn:aws:secretsmanager:eu-west-1:123456789012:secret:*", "arn:aws:ssm:eu-west-1:123456789012:parameter/x"],
        ),
        ("WallarmHost", ["api.wallarm.com", "us1.api.wallarm.com"], ["", "https://api.wallarm.com", "a b", "x'", "-H", "api.wallarm.com/"]),
        ("ExistingTargetId", ["", "tmt-0123456789abcdef0", "tmt-01234567"], ["tmt-*", "tmf-0123456789abcdef0", "tmt-"]),
        (
            "HubSecurityGroups",
            ["", "sg-0123456789abcdef0", "sg-0123456789abcdef0,sg-01234567"],
            ["sg-", "sg-01234567,", "sg-01234567, sg-01234567", "default"],
        ),
        (
            "SessionHourUsd",
            ["0.015", ".02", "1", "1.5", "0.1", "10"],
            ["", "0", "0.0", "0.", "-1", "free", "0,015", "1e3", "1.", "00.1", "0.015 "],
        ),
        ("Selection", ["tag:Mirror=true", "a & b, !c", "x"], ["", " ", "tag:A=1 ", " tag:A=1"]),
        (
            "PermissionsBoundary",
            ["", "arn:aws:iam::123456789012:policy/Boundary", "arn:aws-cn:iam::123456789012:policy/path/B",
             "arn:aws:iam::aws:policy/PowerUserAccess"],
            ["Boundary", "arn:aws:iam::123456789012:role/Admin", "arn:aws:iam::12:policy/B"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_before_anything_is_made(name, good, bad):
    pattern = stack.source()["Parameters"][name]["AllowedPattern"]
    assert [v for v in good if not re.fullmatch(pattern, v)] == []
    assert [v for v in bad if re.fullmatch(pattern, v)] == []


SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wallarm-AbCdEf"
NODES = {"AnalyzerUrl": "", "WallarmAmiId": "ami-0123456789abcdef0", "WallarmTokenSecretArn": SECRET}
SPOKE = {"AnalyzerUrl": "", "ExistingTargetId": "tmt-0123456789abcdef0"}


def refusals(**parameters):
    """What the rules say against these values. Of AWS-specific parameters they would ask the account."""
    evaluated, found = stack.Evaluated(**parameters), []
    for name, rule in stack.source()["Rules"].items():
        if name != "SubnetsLieInTheVpc" and evaluated.value(rule.get("RuleCondition", True)):
            found += [a["AssertDescription"] for a in rule["Assertions"] if not evaluated.value(a["Assert"])]
    return found


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"AnalyzerUrl": "http://waf"}, None),
        (NODES, None),
        (SPOKE, None),
        ({**SPOKE, "AnalyzerUrl": "http://waf"}, None),
        ({"AnalyzerUrl": ""}, "Nobody analyses. Set AnalyzerUrl to"),
        ({**NODES, "AnalyzerUrl": "http://waf"}, "Leave either AnalyzerUrl or WallarmAmiId empty"),
        ({**NODES, "WallarmTokenSecretArn": ""}, "name the secret's ARN"),
        ({**NODES, **SPOKE}, "Leave WallarmAmiId empty, or ExistingTargetId"),
    ],
    ids=["url", "nodes", "spoke", "spoke-and-url", "none", "two", "no-token", "spoke-and-nodes"],
)
def test_one_analyser_is_asked_for_and_what_is_missing_is_said_with_the_remedy(parameters, remedy):
    found = refusals(**parameters)
    assert found == [] if remedy is None else len(found) == 1 and remedy in found[0]


@pytest.mark.parametrize(
    ("architecture", "types", "refused"),
    [
        ("x86_64", "c7i.large,c6i.large", False),
        ("x86_64", "g4dn.xlarge,g6.xlarge,p4de.24xlarge,u-6tb1.metal", False),
        ("x86_64", "c7g.large", True),
        ("arm64", "c7i.large", True),
        ("arm64", "c7g.large,c6gn.large,m8gd.large,i8ge.large", False),
        *(("arm64", f"{family}.large", False) for family in ("t4g", "x2gd", "g5g", "im4gn", "is4gen", "r9g", "c8gb", "hpc7g")),
    ],
)
def test_instance_types_of_another_processor_are_refused_in_words(architecture, types, refused):
    limit = stack.Evaluated(Architecture=architecture, InstanceTypes=types).resources("AWS::SSM::Parameter")
    assert bool(limit) == refused
    for p in (r["Properties"] for r in limit.values()):
        assert p["AllowedPattern"] == "^$"
        assert p["Value"] == f"InstanceTypes ({types}) are not of the processor that Architecture names ({architecture})"


def test_the_loop_through_a_balanced_analyser_is_warned_of():
    # The functions compare addresses, and a load balancer's are not those of what stands behind it.
    assert "!asg:" in stack.source()["Parameters"]["AnalyzerUrl"]["Description"]


def test_outputs_are_as_agreed():
    assert stack.Evaluated().outputs() == {
        "DashboardUrl": "https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1#dashboards/dashboard/<Dashboard>",
        "AlarmTopic": "<AlarmTopic>",
        "MirrorTargetId": "<MirrorTarget>",
        "MirrorTargetArn": "arn:aws:ec2:eu-west-1:123456789012:traffic-mirror-target/<MirrorTarget>",
        "MirrorFilterId": "<MirrorFilter>",
        "AnalyzerAddress": "http://waf.example:8080",
        "OwnSecurityGroups": "<BalancerSecurityGroup>,<RebuilderSecurityGroup>",
        "RebuilderGroup": "<RebuilderGroup>",
        "EventQueueUrl": "<EventQueue>",
        "DeadLetterQueueUrl": "<DeadLetterQueue>",
        "AttachFunction": "<AttachFunction.Arn>",
        "ReconcileFunction": "<ReconcileFunction.Arn>",
        "DrainFunction": "<DrainFunction.Arn>",
    }


def test_outputs_of_other_kinds_of_stack():
    nodes = stack.Evaluated(**NODES).outputs()
    assert nodes["AnalyzerAddress"] == "http://<NodeAlb.DNSName>"
    assert nodes["NodeGroup"] == "<NodeGroup>" and nodes["NodeRole"] == "<NodeRole.Arn>"
    assert len(nodes["OwnSecurityGroups"].split(",")) == 4
    assert stack.Evaluated(**NODES, AnalyzerBalancer="nlb").outputs()["AnalyzerAddress"] == "http://<NodeNlb.DNSName>"
    assert stack.Evaluated(**SPOKE).outputs() == {
        "DashboardUrl": "https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1#dashboards/dashboard/<Dashboard>",
        "AlarmTopic": "<AlarmTopic>",
        "MirrorTargetId": "tmt-0123456789abcdef0",
        "MirrorFilterId": "<MirrorFilter>",
        "EventQueueUrl": "<EventQueue>",
        "DeadLetterQueueUrl": "<DeadLetterQueue>",
        "AttachFunction": "<AttachFunction.Arn>",
        "ReconcileFunction": "<ReconcileFunction.Arn>",
    }


def test_the_readme_has_the_parameters_and_outputs_in_the_words_of_the_template():
    template = stack.source()
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    rows = []
    for name in (name for group in groups for name in group["Parameters"]):
        p = template["Parameters"][name]
        default = "" if "Default" not in p else f"`{p['Default']}`" if p["Default"] != "" else '`""`'
        rows.append(f"| `{name}` | {default} | {' '.join(p['Description'].split())} |")
    assert len(rows) == len(template["Parameters"])
    rows += [f"| `{name}` | {' '.join(o['Description'].split())} |" for name, o in template["Outputs"].items()]
    readme = (stack.ROOT / "README.md").read_text().splitlines()
    assert [row for row in rows if row not in readme] == []


def test_there_is_one_transform_and_no_nested_stack():
    template = stack.source()
    assert template["Transform"] == "AWS::Serverless-2016-10-31"
    text = stack.TEMPLATE.read_text()
    assert "Fn::ForEach" not in text and "AWS::Include" not in text
    assert not stack.of_type(template, "AWS::CloudFormation::Stack")


def test_two_stacks_in_one_region_coexist():
    given = {}
    for name, resource in stack.Evaluated(stack_name="second").resources().items():
        p = resource.get("Properties", {})
        given |= {f"{name}.{key}": p[key] for key in NAME_PROPERTIES if isinstance(p.get(key), str)}
    # A reference to a name that CloudFormation generates is no name that we give.
    given = {where: name for where, name in given.items() if not name.startswith("<")}
    assert given and [where for where, name in given.items() if not name.startswith("second-")] == []


def test_what_cloudformation_names_without_the_stack_is_named_here():
    for kind, key in NAMED_BY_US.items():
        for name, resource in stack.of_type(stack.transformed(), kind).items():
            assert key in resource["Properties"], name


# ---- The functions ---------------------------------------------------------------------------------------------------


def functions():
    return stack.Evaluated().resources("AWS::Lambda::Function")


FUNCTIONS = {
    "AttachFunction": ENVIRONMENT,
    "ReconcileFunction": ENVIRONMENT,
    "DrainFunction": {**ENVIRONMENT, "MIRRORFLEET_TARGET_GROUP_ARN": "<RebuilderTargets>"},
}


def test_each_function_has_all_of_its_configuration_and_there_is_no_other():
    assert {name: f["Properties"]["Environment"]["Variables"] for name, f in functions().items()} == FUNCTIONS


def test_every_variable_of_a_function_is_one_that_it_reads():
    code = "".join(file.read_text() for file in (stack.ROOT / "functions").glob("*/src/**/*.rs"))
    given = {variable for variables in FUNCTIONS.values() for variable in variables}
    assert given - set(re.findall(r"\bMIRRORFLEET_[A-Z_]+", code)) == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_runs_a_native_program(name):
    p = functions()[name]["Properties"]
    assert (p["Runtime"], p["Handler"], p["Architectures"]) == ("provided.al2023", "bootstrap", ["x86_64"])
    written = stack.source()["Resources"][name]
    assert written["Metadata"]["BuildMethod"] == "makefile"
    crate, folder = name.removesuffix("Function").lower(), stack.ROOT / written["Properties"]["CodeUri"]
    # What `sam build` calls, and what it would run.
    rehearsal = subprocess.run(
        ["make", "--dry-run", "--directory", folder, f"build-{name}", "ARTIFACTS_DIR=/artifacts"],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout.replace("$name", crate)  # fmt: skip
    assert f"cargo lambda build --profile function --package {crate} --bin {crate} " in rehearsal
    assert '"/artifacts/bootstrap"' in rehearsal
    package = tomllib.loads((folder / crate / "Cargo.toml").read_text())["package"]
    assert package["name"] == crate
    # Nothing passes the architecture on, and cargo-lambda's default is that of the machine it runs on.
    assert package["metadata"]["lambda"]["build"]["target"] == ["x86_64-unknown-linux-gnu"]


def test_every_log_group_forgets():
    groups = stack.Evaluated().resources("AWS::Logs::LogGroup")
    used = {f["Properties"]["LoggingConfig"]["LogGroup"] for f in functions().values()}
    assert used == {f"<{name}>" for name in groups}
    assert all(g["Properties"]["RetentionInDays"] > 0 for g in groups.values())


# ---- Events ----------------------------------------------------------------------------------------------------------


def test_the_queue_mapping_is_quick_and_reports_single_failures():
    ((_, mapping),) = stack.Evaluated().resources("AWS::Lambda::EventSourceMapping").items()
    p = mapping["Properties"]
    assert p["MaximumBatchingWindowInSeconds"] <= 2  # an instance is mirrored within seconds of its launch
    # Lambda: a batch above 10 needs a window of at least a second.
    assert p["BatchSize"] <= 10 or p["MaximumBatchingWindowInSeconds"] >= 1
    assert p["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    # Each poller takes a quarter of MutationsPerSecond, which holds for two.
    assert p["ScalingConfig"] == {"MaximumConcurrency": 2}


def test_a_message_is_not_seen_twice_while_it_is_handled():
    evaluated = stack.Evaluated()
    queue = evaluated.properties("EventQueue")
    timeout = functions()["AttachFunction"]["Properties"]["Timeout"]
    window = evaluated.properties("AttachMapping")["MaximumBatchingWindowInSeconds"]
    # Lambda asks for six times the timeout plus the window.
    assert queue["VisibilityTimeout"] >= 6 * timeout + window
    assert queue["RedrivePolicy"] == {"deadLetterTargetArn": "<DeadLetterQueue.Arn>", "maxReceiveCount": 5}


def test_the_sweep_has_the_time_that_lambda_can_give():
    assert functions()["ReconcileFunction"]["Properties"]["Timeout"] == 900


@pytest.mark.parametrize(("minutes", "expression"), [("1", "rate(1 minute)"), ("2", "rate(2 minutes)"), ("5", "rate(5 minutes)")])
def test_the_schedule_minds_the_plural(minutes, expression):
    # EventBridge refuses "rate(1 minutes)".
    assert stack.Evaluated(SweepMinutes=minutes).properties("SweepRule")["ScheduleExpression"] == expression


def listened_to(**parameters):
    """(source, kind, detail) of the rules that fill the queue."""
    return {
        (source, kind, str(p.get("detail", {})))
        for p in (
            r["Properties"]["EventPattern"]
            for r in stack.Evaluated(**parameters).resources("AWS::Events::Rule").values()
            if r["Properties"]["Targets"][0]["Arn"] == "<EventQueue.Arn>"
        )
        for source in p["source"]
        for kind in p["detail-type"]
    }


def test_the_rules_listen_for_what_comes_and_goes():
    patterns = listened_to()
    assert patterns == {
        ("aws.ec2", "EC2 Instance State-change Notification", "{'state': ['running', 'stopping', 'stopped', 'terminated']}"),
        ("aws.autoscaling", "EC2 Instance Launch Successful", "{}"),
        ("aws.autoscaling", "EC2 Instance Terminate Successful", "{}"),
        ("aws.ecs", "ECS Task State Change", "{'launchType': ['FARGATE'], 'lastStatus': ['RUNNING', 'STOPPED']}"),
        ("aws.tag", "Tag Change on Resource", "{'service': ['ec2'], 'resource-type': ['instance', 'network-interface']}"),
    }


def test_a_trail_is_listened_to_where_there_is_one():
    ((source, kind, detail),) = listened_to(TrailEvents="true") - listened_to()
    assert (source, kind) == ("aws.ec2", "AWS API Call via CloudTrail")
    # Each is one that the functions read, and they read no other.
    code = (stack.ROOT / "functions" / "mirror" / "src" / "event.rs").read_text()
    (calls,) = re.findall(r"const TRAIL_CALLS: .*?;", code, re.DOTALL)
    read = {*re.findall(r'"(\w+)"', calls), "DeleteTrafficMirrorSession"}
    (names,) = re.findall(r"'eventName': \[(.*?)\]", detail)
    assert set(re.findall(r"\w+", names)) == read


def test_the_terminate_hook_is_answered_and_waits_for_nobody_else():
    hook = stack.Evaluated().properties("RebuilderLeaves")
    assert hook["HeartbeatTimeout"] <= 300
    assert hook["DefaultResult"] == "CONTINUE"
    assert hook["AutoScalingGroupName"] == "<RebuilderGroup>"
    rule = stack.Evaluated().properties("DrainRule")
    assert rule["EventPattern"] == {
        "source": ["aws.autoscaling"],
        "detail-type": ["EC2 Instance-terminate Lifecycle Action"],
        "detail": {"AutoScalingGroupName": ["<RebuilderGroup>"]},
    }
    assert [t["Arn"] for t in rule["Targets"]] == ["<DrainFunction.Arn>"]
    # The function may wait for the whole deregistration delay, and goes on beating meanwhile.
    delay = {a["Key"]: a["Value"] for a in stack.Evaluated().properties("RebuilderTargets")["TargetGroupAttributes"]}
    assert int(delay["deregistration_delay.timeout_seconds"]) < functions()["DrainFunction"]["Properties"]["Timeout"] - 60


def test_a_change_of_what_is_mirrored_makes_cloudformation_ask_for_a_pass():
    def properties(**parameters):
        return stack.Evaluated(**parameters).properties("MirrorSessions")

    before = properties()
    for parameter, value in {
        "Selection": "tag:Other=1",
        "Vni": "7",
        "PacketLength": "1500",
        "SessionNumberBase": "200",
        "Mirroring": "off",
        "AnalyzerUrl": "http://other",
        "HttpPorts": "80,81,82",
    }.items():
        assert properties(**{parameter: value}) != before, parameter


# ---- Tools -----------------------------------------------------------------------------------------------------------


def test_cfn_lint_finds_nothing_in_three_regions():
    # Regions differ in types, properties and instance types.
    regions = ["us-east-1", "eu-central-1", "ap-southeast-2"]
    command = [Path(sys.executable).parent / "cfn-lint", "--regions", *regions, "--", stack.TEMPLATE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sam_is_set_up_and_knows_no_stack():
    settings = tomllib.loads((stack.ROOT / "samconfig.toml").read_text())
    assert settings["version"] == 0.1
    build = settings["default"]["build"]["parameters"]
    assert build == {"build_in_source": True, "parallel": False, "cached": False}
    # Named roles would need CAPABILITY_NAMED_IAM, and would collide between stacks.
    assert settings["default"]["deploy"]["parameters"] == {
        "capabilities": "CAPABILITY_IAM",
        "confirm_changeset": True,
        "resolve_s3": True,
    }

"""What an instance of the fleet is given: the script of its first boot, the service, the doors that are open."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import time
import zipfile

import pytest
import stack
from node import NODES

SERVICE = stack.ROOT / "rebuilder" / "service"


def tool(name):
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def user_data(**parameters):
    return stack.Evaluated(**parameters).properties("RebuilderTemplate")["LaunchTemplateData"]["UserData"]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "user-data"
    path.write_text(user_data())
    return path


def test_the_boot_script_is_bash(script):
    assert script.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", script], check=True)


def test_the_boot_script_is_small():
    # EC2 takes 16 KB; the longest that parameters can make it.
    networks = ",".join(["2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/128"] * 50)
    assert len(user_data(TrustedProxyCidrs=networks).encode()) < 8 << 10


@tool("shellcheck")
def test_shellcheck_finds_nothing(script):
    subprocess.run(["shellcheck", script, SERVICE / "install", SERVICE / "backoff"], check=True)


# ---- The boot script, run --------------------------------------------------------------------------------------------


class Machine:
    """The script run with `aws` and `curl` that answer from files and write down what they were asked."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.layer({"service/install": 'echo "installed with $(cat "$SETTINGS")"\n'})
        self.lambda_says(self.digest())
        self.command("sleep", "")
        self.command(
            "curl",
            """case "$*" in
               */api/token) echo TOKEN ;;
               */meta-data/instance-id) echo i-0123456789abcdef0 ;;
               *https://layer.example/*) while [[ $1 != -o ]]; do shift; done; cp "$FOLDER/layer.zip" "$2" ;;
               *) exit 22 ;;
               esac""",
        )

    def command(self, name, body):
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$FOLDER/calls"\n{body}\n')
        path.chmod(0o755)

    def layer(self, files):
        with zipfile.ZipFile(self.folder / "layer.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)

    def digest(self):
        return base64.b64encode(hashlib.sha256((self.folder / "layer.zip").read_bytes()).digest()).decode()

    def lambda_says(self, digest, balancer="echo healthy None"):
        self.command(
            "aws",
            f"""case "$1 $2" in
                'lambda get-layer-version-by-arn') printf '{digest}\\thttps://layer.example/zip\\n' ;;
                'elbv2 describe-target-health') {balancer} ;;
                'cloudformation signal-resource') ;;
                *) exit 252 ;;
                esac""",
        )

    def boot(self, **parameters):
        text = user_data(**parameters)
        for place in ("/opt/mirrorfleet", "/etc/mirrorfleet"):
            assert place in text
            text = text.replace(place, str(self.folder / place.strip("/")))
        env = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FOLDER": str(self.folder),
            "TMPDIR": str(self.temporary),
            "SETTINGS": str(self.folder / "etc/mirrorfleet/rebuilder.env"),
        }
        done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    def signals(self):
        return [
            call.split("--status ")[1]
            for call in self.calls.read_text().splitlines()
            if call.startswith("aws cloudformation signal-resource")
        ]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_good_layer_is_installed_and_success_is_signalled(machine):
    code, output = machine.boot()
    assert code == 0, output
    assert "installed with" in output
    assert machine.signals() == ["SUCCESS"]
    (signal,) = [c for c in machine.calls.read_text().splitlines() if "signal-resource" in c]
    assert "--unique-id i-0123456789abcdef0 " in signal
    assert f"--stack-name {stack.PSEUDO['AWS::StackId']} " in signal
    assert "--logical-resource-id RebuilderGroup " in signal


def test_the_settings_are_what_the_parameters_say(machine):
    machine.boot(AnalyzerUrl="https://waf.example", TrustedProxyCidrs="10.0.0.0/8,fd00::/8")
    settings = (machine.folder / "etc/mirrorfleet/rebuilder.env").read_text().split()
    assert settings == [
        "REBUILDER_LISTEN=0.0.0.0:4789",
        "REBUILDER_ADMIN=0.0.0.0:9445",
        "REBUILDER_RECEIVE=ring",
        "REBUILDER_FORWARD=https://waf.example",
        "REBUILDER_TRUST=10.0.0.0/8,fd00::/8",
    ]


def test_without_proxies_to_trust_the_setting_is_absent(machine):
    # Not empty: an empty list is not a list of addresses.
    machine.boot()
    assert "TRUST" not in (machine.folder / "etc/mirrorfleet/rebuilder.env").read_text()


def test_every_setting_is_one_that_the_program_reads(machine):
    machine.boot(TrustedProxyCidrs="10.0.0.0/8")
    written = {line.split("=")[0] for line in (machine.folder / "etc/mirrorfleet/rebuilder.env").read_text().split()}
    known = set(re.findall(r'env = "(REBUILDER_\w+)"', (stack.ROOT / "rebuilder/src/cli.rs").read_text()))
    assert written - known == set()


def test_the_publisher_is_told_its_stack_and_region_in_a_file_of_its_own(machine):
    # Not in the rebuilder's, which needs neither; and install starts the publisher where this file is.
    machine.boot()
    settings = (machine.folder / "etc/mirrorfleet/metrics.env").read_text().split()
    assert settings == [f"AWS_REGION={stack.PSEUDO['AWS::Region']}", f"REBUILDER_PUBLISH_STACK={stack.PSEUDO['AWS::StackName']}"]
    source = (stack.ROOT / "rebuilder/src/cli/publish.rs").read_text()
    assert 'env = "REBUILDER_PUBLISH_STACK"' in source
    assert "-f /etc/mirrorfleet/metrics.env" in (SERVICE / "install").read_text()


def test_a_damaged_layer_is_not_run_and_failure_is_signalled_with_the_reason(machine):
    machine.lambda_says(base64.b64encode(bytes(32)).decode())
    code, output = machine.boot()
    assert code != 0
    assert machine.signals() == ["FAILURE"]
    assert "the layer has SHA-256" in output
    assert "FAILED while checking the layer" in output
    assert "installed with" not in output
    # It was asked for again each time, since the address of a download does not hold for ever.
    asked = [call for call in machine.calls.read_text().splitlines() if "get-layer-version-by-arn" in call]
    assert len(asked) == 4


def test_a_download_that_was_damaged_once_is_tried_again(machine):
    curl = (machine.bin / "curl").read_text()
    machine.command(
        "curl",
        """case "$*" in
           *https://layer.example/*)
             if [[ ! -e $FOLDER/damaged ]]; then
               touch "$FOLDER/damaged"; while [[ $1 != -o ]]; do shift; done; echo half >"$2"; exit 0
             fi ;;
           esac\n""" + curl.split("\n", 2)[2],
    )  # fmt: skip
    code, output = machine.boot()
    assert code == 0, output
    assert "trying again in 5 s" in output
    assert machine.signals() == ["SUCCESS"]
    assert list(machine.temporary.iterdir()) == []


def test_it_may_be_run_again(machine):
    for _ in range(2):
        code, output = machine.boot()
        assert code == 0, output
    assert machine.signals() == ["SUCCESS", "SUCCESS"]


def test_no_way_to_the_api_is_failure_with_the_remedy(machine):
    machine.command("aws", '[[ $1 == cloudformation ]] || { echo "Could not connect" >&2; exit 255; }')
    code, output = machine.boot()
    assert code != 0
    assert machine.signals() == ["FAILURE"]
    assert "is there a way to the API from this subnet?" in output


def test_a_service_that_does_not_start_is_failure(machine):
    machine.layer({"service/install": "echo 'no luck'; exit 1\n"})
    machine.lambda_says(machine.digest())
    code, output = machine.boot()
    assert code == 1
    assert machine.signals() == ["FAILURE"]
    assert "no luck" in output
    assert "FAILED while starting the service" in output


def test_success_is_signalled_only_when_the_load_balancer_sends_it_traffic(machine):
    # What a rolling update waits for before it takes the next old instance away.
    machine.lambda_says(
        machine.digest(),
        """echo >>"$FOLDER/asked"
           case $(wc -l <"$FOLDER/asked") in
             1) printf 'unused\\tTarget.NotRegistered\\n' ;;
             2) printf 'initial\\tElb.RegistrationInProgress\\n' ;;
             3) printf 'unhealthy\\tTarget.FailedHealthChecks\\n' ;;
             *) printf 'healthy\\tNone\\n' ;;
           esac""",
    )
    code, output = machine.boot()
    assert code == 0, output
    calls = machine.calls.read_text().splitlines()
    assert [call.split()[2] for call in calls if call.startswith("aws")] == [
        "get-layer-version-by-arn",
        *["describe-target-health"] * 4,
        "signal-resource",
    ]
    asked = next(call for call in calls if "describe-target-health" in call)
    assert "--target-group-arn <RebuilderTargets> --targets Id=i-0123456789abcdef0 " in asked
    assert machine.signals() == ["SUCCESS"]


def test_a_load_balancer_that_never_finds_it_healthy_is_failure_with_its_reason(machine):
    machine.lambda_says(machine.digest(), "printf 'unhealthy\\tTarget.FailedHealthChecks\\n'")
    code, output = machine.boot()
    assert code == 1
    assert machine.signals() == ["FAILURE"]
    assert "which says: unhealthy\tTarget.FailedHealthChecks" in output
    # With all that comes before, it must be over before CloudFormation's own patience (15 minutes) is.
    assert 300 <= 5 * sum(call == "sleep 5" for call in machine.calls.read_text().splitlines()) <= 600


def test_no_way_to_the_load_balancers_api_is_failure_with_the_remedy(machine):
    machine.lambda_says(machine.digest(), "exit 255")
    code, output = machine.boot()
    assert code != 0
    assert machine.signals() == ["FAILURE"]
    assert "asking the load balancer about this instance (is there a way to its API from this subnet?)" in output


def test_a_signal_that_nobody_waits_for_is_no_failure(machine):
    # An instance that the group adds by itself: CloudFormation answers with a ValidationError.
    machine.lambda_says(machine.digest())
    aws = (machine.bin / "aws").read_text()
    (machine.bin / "aws").write_text(aws.replace("signal-resource') ;;", "signal-resource') exit 254 ;;"))
    code, output = machine.boot()
    assert code == 0
    assert "CloudFormation took no signal" in output


# ---- The service -----------------------------------------------------------------------------------------------------


@tool("systemd-analyze")
@pytest.mark.parametrize(("name", "command"), [("rebuilder", "run"), ("rebuilder-metrics", "publish --state %t/rebuilder-metrics/put")])
def test_systemd_understands_the_unit(tmp_path, name, command):
    # Verified where the program exists: systemd also checks that.
    unit = tmp_path / f"{name}.service"
    text = (SERVICE / f"{name}.service").read_text()
    assert f"\nExecStart=/usr/local/bin/rebuilder {command}\n" in text
    unit.write_text(re.sub(r"/usr/local/\S+( publish.*)?", "/bin/true", text))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@tool("systemd-analyze")
@pytest.mark.parametrize(("unit", "most"), [("rebuilder.service", 19), ("rebuilder-metrics.service", 14)])
def test_the_unit_exposes_little(unit, most):
    # 0 is locked away, 10 is open; a service without any of these settings has 9.6. The option counts in tenths. The
    # packet ring costs 0.4: CAP_NET_RAW, AF_PACKET, no user namespace of its own.
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager", SERVICE / unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_service_may_open_a_packet_ring_and_nothing_else_of_root_s():
    lines = (SERVICE / "rebuilder.service").read_text().splitlines()
    unit = dict(line.split("=", 1) for line in lines if "=" in line[1:])
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == "CAP_NET_RAW"
    assert "AF_PACKET" in unit["RestrictAddressFamilies"].split()
    # A capability in a user namespace of the service's own does not count for the machine's network.
    assert "PrivateUsers" not in unit


def test_a_rebuilder_starts_only_where_a_request_came_out_whole():
    # In this order, and with no sign (+, !, -) that would take a command out of the unit's sandbox or forgive it.
    lines = (SERVICE / "rebuilder.service").read_text().splitlines()
    assert [line for line in lines if line.startswith("ExecStart")] == [
        "ExecStartPre=/usr/local/libexec/rebuilder-backoff pause",
        "ExecStartPre=/usr/local/bin/rebuilder self-test",
        "ExecStart=/usr/local/bin/rebuilder run",
    ]


def test_the_rebuilders_own_caps_fit_below_the_units():
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    cli = (stack.ROOT / "rebuilder/src/cli.rs").read_text()
    caps = re.findall(r'env = "REBUILDER_(?:QUEUE|INFLIGHT|HELD)_BYTES", default_value = "(\d+)([KMG])"', cli)
    assert len(caps) == 3
    # A worker has 14 MiB besides (rebuilder/README.md), and the program itself takes some.
    most = sum(int(n) * units[unit] for n, unit in caps) + 2 * (14 << 20) + (64 << 20)
    unit = (SERVICE / "rebuilder.service").read_text()
    share = int(re.search(r"^MemoryMax=(\d+)%$", unit, re.M)[1]) / 100
    install = (SERVICE / "install").read_text()
    least = int(re.search(r"^least_memory_kb=(\d+)$", install, re.M)[1]) * 1024
    assert most < share * least


class Backoff:
    """The script that the unit runs before and after, with a `sleep` that only says how long."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "run").mkdir()
        (folder / "bin/sleep").write_text(f'#!/bin/sh\necho "$1" >>"{folder}/slept"\n')
        (folder / "bin/sleep").chmod(0o755)

    def run(self, word, result="success"):
        env = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "RUNTIME_DIRECTORY": str(self.folder / "run"),
               "SERVICE_RESULT": result}  # fmt: skip
        subprocess.run([SERVICE / "backoff", word], env=env, check=True)

    def pause(self):
        """Seconds before a start."""
        slept = self.folder / "slept"
        slept.write_text("")
        self.run("pause")
        return int(slept.read_text() or 0)


def test_restarts_come_at_growing_distances_until_one_is_good(tmp_path):
    backoff = Backoff(tmp_path)
    pauses = []
    for _ in range(9):
        pauses.append(backoff.pause())
        backoff.run("note", "exit-code")
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    backoff.run("note", "success")
    assert backoff.pause() == 0
    # Who ran for long begins anew.
    for _ in range(5):
        backoff.run("note", "signal")
    (tmp_path / "run/started").write_text(str(int(time.time()) - 700))
    backoff.run("note", "signal")
    assert backoff.pause() == 1


def test_a_pause_ends_before_systemd_loses_patience():
    unit = dict(line.split("=", 1) for line in (SERVICE / "rebuilder.service").read_text().splitlines() if "=" in line[1:])
    assert int(unit["TimeoutStartSec"]) > 60


def test_only_the_service_that_publishes_reaches_the_credentials_and_it_has_no_capability():
    def unit(name):
        lines = (SERVICE / name).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    publisher = unit("rebuilder-metrics.service")
    assert publisher["CapabilityBoundingSet"] == publisher["AmbientCapabilities"] == ""
    assert "IPAddressDeny" not in publisher
    assert unit("rebuilder.service")["IPAddressDeny"].split()[0] == "169.254.169.254/32"
    assert (publisher["DynamicUser"], publisher["MemoryMax"]) == ("yes", "96M")
    # What stops later starts earlier: the figures of the rebuilder's last second are put.
    assert publisher["Before"] == "rebuilder.service"


def test_draining_has_time_before_systemd_loses_patience():
    unit = dict(line.split("=", 1) for line in (SERVICE / "rebuilder.service").read_text().splitlines() if "=" in line[1:])
    assert int(unit["TimeoutStopSec"]) > 30  # rebuilder's --drain-timeout


def test_the_kernel_lets_a_rebuilder_receive_and_connect():
    lines = (SERVICE / "rebuilder.sysctl.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    assert int(settings["net.core.rmem_max"]) >= 64 << 20
    first, last = map(int, settings["net.ipv4.ip_local_port_range"].split())
    assert last - first > 60_000
    # Inside that range now, so they could be anybody's: what the rebuilder listens on.
    reserved = settings["net.ipv4.ip_local_reserved_ports"].split(",")
    doors = stack.Evaluated().resources("AWS::EC2::SecurityGroupIngress").values()
    assert {str(door["Properties"]["FromPort"]) for door in doors} <= set(reserved)


# ---- The instance and its doors --------------------------------------------------------------------------------------


def test_instances_are_closed():
    data = stack.Evaluated().properties("RebuilderTemplate")["LaunchTemplateData"]
    assert "KeyName" not in data
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert [d["Ebs"]["Encrypted"] for d in data["BlockDeviceMappings"]] == [True]
    assert data["SecurityGroupIds"] == ["<RebuilderSecurityGroup>"]


def test_only_the_load_balancer_reaches_a_rebuilder():
    evaluated = stack.Evaluated()
    assert "SecurityGroupIngress" not in evaluated.properties("RebuilderSecurityGroup")
    doors = {
        (p["IpProtocol"], p["FromPort"], p["ToPort"], p["SourceSecurityGroupId"])
        for p in (r["Properties"] for r in evaluated.resources("AWS::EC2::SecurityGroupIngress").values())
        if p["GroupId"] == "<RebuilderSecurityGroup>"
    }
    assert doors == {
        ("udp", 4789, 4789, "<BalancerSecurityGroup>"),
        ("tcp", 9445, 9445, "<BalancerSecurityGroup>"),
    }
    # And the load balancer may go there: its health checks obey its own outbound rules.
    ways = {
        (p["IpProtocol"], p["FromPort"], p["ToPort"], p["DestinationSecurityGroupId"])
        for p in evaluated.properties("BalancerSecurityGroup")["SecurityGroupEgress"]
    }
    assert ways == {
        ("udp", 4789, 4789, "<RebuilderSecurityGroup>"),
        ("tcp", 9445, 9445, "<RebuilderSecurityGroup>"),
    }


def test_a_rebuilder_may_ask_the_name_servers_of_its_vpc():
    # Security groups let Amazon's own name server through, but not one that the VPC's DHCP options name.
    ways = stack.Evaluated().properties("RebuilderSecurityGroup")["SecurityGroupEgress"]
    asked = {(w["IpProtocol"], w.get("CidrIp") or w.get("CidrIpv6")) for w in ways if w["FromPort"] <= 53 <= w["ToPort"]}
    assert asked == {(protocol, cidr) for protocol in ("udp", "tcp") for cidr in ("0.0.0.0/0", "::/0")}


def test_descriptions_of_security_groups_have_only_characters_that_ec2_takes():
    # EC2 API reference, IpRange: "Allowed characters are a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$*". An apostrophe
    # is none of them, and would end a deployment halfway. For UserIdGroupPair there is no & either.
    def descriptions(node):
        if isinstance(node, dict):
            own = [v for k, v in node.items() if k in ("Description", "GroupDescription")]
            return own + [d for v in node.values() for d in descriptions(v)]
        return [d for v in node for d in descriptions(v)] if isinstance(node, list) else []

    kinds = ("AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress")
    cidrs = "10.0.0.0/8,10.1.0.0/16,10.2.0.0/16,10.3.0.0/16"
    resources = [r for kind in kinds for r in stack.Evaluated(**NODES, SourceCidrs=cidrs).resources(kind).values()]
    found = descriptions([r["Properties"] for r in resources])
    assert len(found) >= 27
    assert [d for d in found if not re.fullmatch(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=;{}!$*]{1,255}", d)] == []


def test_the_health_check_asks_the_admin_port():
    p = stack.Evaluated().properties("RebuilderTargets")
    assert (p["Protocol"], p["Port"]) == ("UDP", 4789)
    assert (p["HealthCheckProtocol"], p["HealthCheckPort"], p["HealthCheckPath"]) == ("HTTP", "9445", "/healthz")


def test_a_new_program_is_a_new_launch_template_version_and_rolls():
    template = stack.transformed()
    (layer,) = stack.of_type(template, "AWS::Lambda::LayerVersion")
    # SAM names a layer version by what is in it; the launch template must name that very resource.
    assert layer.startswith("RebuilderLayer") and layer != "RebuilderLayer"
    assert layer in stack.references(template["Resources"]["RebuilderTemplate"])
    # An instance of the version before may still have to be replaced.
    assert template["Resources"][layer]["DeletionPolicy"] == "Retain"
    group = template["Resources"]["RebuilderGroup"]
    assert group["UpdatePolicy"]["AutoScalingRollingUpdate"]["WaitOnResourceSignals"] is True
    version = group["Properties"]["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]["Version"]
    assert version == {"Fn::GetAtt": ["RebuilderTemplate", "LatestVersionNumber"]}
    # The role may fetch it under whatever version number it gets.
    assert template["Resources"][layer]["Properties"]["LayerName"] == {"Fn::Sub": "${AWS::StackName}-rebuilder"}


@pytest.mark.parametrize("types", ["m7i.large", "c7i.large,c6i.large", "a.b,c.d,e.f,g.h"])
def test_the_group_takes_the_instance_types_in_their_order(types):
    policy = stack.Evaluated(InstanceTypes=types).properties("RebuilderGroup")["MixedInstancesPolicy"]
    assert [o["InstanceType"] for o in policy["LaunchTemplate"]["Overrides"]] == types.split(",")
    assert policy["InstancesDistribution"]["OnDemandAllocationStrategy"] == "prioritized"


# ---- The layer ---------------------------------------------------------------------------------------------------------


@tool("make")
@pytest.mark.parametrize("old", [False, True], ids=["make", "make-3.81"])
@pytest.mark.parametrize(
    "arch, flag, machine", [(None, "--x86-64", "x86_64"), ("x86_64", "--x86-64", "x86_64"), ("arm64", "--arm64", "aarch64")]
)
def test_the_layer_is_assembled_also_by_the_tools_of_macos(tmp_path, old, arch, flag, machine):
    # GNU make 3.81 takes .ONESHELL and .SHELLFLAGS for names like any other. BSD install's -D is not GNU's: it takes an
    # argument.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cargo").write_text(
        f"""#!/bin/sh
        case "$1" in
          metadata) echo '{{"target_directory": "{tmp_path}/target"}}' ;;
          lambda) echo "$*" >"{tmp_path}/asked"; mkdir -p "{tmp_path}/target/layer/rebuilder"
                  echo program >"{tmp_path}/target/layer/rebuilder/bootstrap" ;;
        esac
        """
    )
    (programs / "install").write_text(
        """#!/bin/sh
        for word in "$@"; do case "$word" in -D | -t | --*) echo "BSD install has another $word" >&2; exit 64 ;; esac; done
        exec /usr/bin/install "$@"
        """
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    text = (stack.ROOT / "rebuilder" / "Makefile").read_text()
    if old:
        text = "".join(line for line in text.splitlines(True) if not line.startswith((".ONESHELL", ".SHELLFLAGS")))
    makefile = tmp_path / "Makefile"
    makefile.write_text(text)
    done = subprocess.run(
        ["make", "-f", makefile, f"ARTIFACTS_DIR={tmp_path}/artifacts", "build-RebuilderLayer"],
        cwd=stack.ROOT / "rebuilder",
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **({"REBUILDER_ARCH": arch} if arch else {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A program for what was chosen, whatever this machine is.
    assert flag in (tmp_path / "asked").read_text().split()
    assert (tmp_path / "artifacts/machine").read_text() == f"{machine}\n"
    found = [f for f in (tmp_path / "artifacts").rglob("*") if f.is_file()]
    files = {str(f.relative_to(tmp_path / "artifacts")): os.access(f, os.X_OK) for f in found}
    assert files == {
        "machine": False,
        "bin/rebuilder": True,
        "service/backoff": True,
        "service/install": True,
        "service/rebuilder-metrics.service": False,
        "service/rebuilder.service": False,
        "service/rebuilder.sysctl.conf": False,
    }


@tool("make")
def test_no_other_processor_is_built_for(tmp_path):
    done = subprocess.run(
        ["make", f"ARTIFACTS_DIR={tmp_path}", "build-RebuilderLayer"],
        cwd=stack.ROOT / "rebuilder", env={**os.environ, "REBUILDER_ARCH": "riscv64"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "it must be x86_64 or arm64" in done.stderr

"""The Wallarm nodes: what they are given, the script of their first boot, and the configuration that it writes, in real
nginx (without the module's own directives, which only Wallarm's build knows)."""

import json
import os
import shutil
import socket
import struct
import subprocess
import time

import pytest
import stack
from nginx import MODSECURITY, NGINX, Nginx, free_ports
from node import KEYS, NODES, SECRET, TOKEN, Machine, user_data


def tool(name):
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.aws.shutdown()
    made.aws.server_close()


# ---- The boot script ---------------------------------------------------------------------------------------------------


@tool("shellcheck")
def test_shellcheck_finds_nothing(tmp_path):
    script = tmp_path / "user-data"
    script.write_text(user_data())
    subprocess.run(["shellcheck", script], check=True)


def test_the_script_fits_into_user_data():
    # EC2: 16 KB before base64.
    assert len(user_data()) < 16 << 10


def test_a_node_is_configured_started_and_told_of_when_the_load_balancer_finds_it_healthy(machine):
    machine.aws.health = ["initial", "unhealthy", "healthy"]
    code, output = machine.boot(WallarmHost="us1.api.wallarm.com")
    assert code == 0, output
    assert machine.aws.asked == ["secretsmanager", *["elasticloadbalancing"] * 3, "cloudformation"]
    assert machine.aws.signals == [("i-0123456789abcdef0", "SUCCESS")]
    etc = machine.folder / "etc"
    calls = [c for c in machine.calls() if not c.startswith(("sleep", "systemctl is-active"))]
    assert calls == [
        "systemctl stop nginx",
        f"cloud-init.py -t {TOKEN} -H us1.api.wallarm.com -p custom -m monitoring "
        f"--http-snippet {etc}/http.conf --server-snippet {etc}/server.conf",
        "nginx -t",
        "systemctl start nginx",
    ]


@pytest.mark.parametrize(("balancer", "targets"), [("alb", "NodeHttpTargets"), ("nlb", "NodeTcpTargets")])
def test_the_node_asks_about_itself_in_the_targets_that_it_is_one_of(machine, balancer, targets):
    machine.boot(AnalyzerBalancer=balancer)
    assert targets in machine.aws.targets
    assert stack.Evaluated(**NODES, AnalyzerBalancer=balancer).properties("NodeGroup")["TargetGroupARNs"] == [f"<{targets}>"]


def test_the_group_that_the_cloud_shows_is_named_after_the_stack(machine):
    machine.cloud_init('echo "labels $WALLARM_LABELS, umask $(umask)"')
    _, output = machine.boot()
    # And what it installs can be read by others than root.
    assert "labels group=first, umask 0022\n" in output


@pytest.mark.parametrize("registers", [True, False])
def test_the_token_is_in_no_output_and_in_no_file(machine, registers):
    # The image's script may say what it was called with.
    machine.cloud_init(f'echo "called with $*" >&2; exit {0 if registers else 1}')
    code, output = machine.boot()
    assert (code == 0) == registers
    assert "called with -t (the token) -H" in output
    assert TOKEN not in output
    assert [f for f in (machine.folder / "etc").iterdir() if TOKEN in f.read_text()] == []
    assert [oct(f.stat().st_mode & 0o077) for f in (machine.folder / "etc").iterdir()] == ["0o0"] * 3


def test_the_token_is_in_no_part_of_the_stack():
    # Only the secret's ARN is: a pattern admits nothing else, so that no token is given by mistake.
    text = str(stack.Evaluated(**NODES).resources()) + str(stack.Evaluated(**NODES).outputs())
    assert text.count(SECRET) == 2  # the role's policy and the script
    assert "{{resolve:secretsmanager" not in stack.TEMPLATE.read_text()


def failing(machine, **parameters):
    code, output = machine.boot(**parameters)
    assert code != 0
    assert [status for _, status in machine.aws.signals] == ["FAILURE"]
    return output


def test_a_secret_that_may_not_be_read_is_failure_with_the_reason(machine):
    machine.aws.refuse = {"secretsmanager"}
    output = failing(machine)
    assert "FAILED while reading the token (is there a way to Secrets Manager from this subnet?" in output
    assert "AccessDeniedException" in output


@pytest.mark.parametrize("secret", ['{"token": "abc"}', "two words", ""])
def test_a_secret_that_is_no_token_is_failure_and_is_not_shown(machine, secret):
    machine.aws.secret = secret
    output = failing(machine)
    assert "must be the token alone, as plain text" in output
    assert "abc" not in output and "two words" not in output


def test_a_token_that_the_cloud_refuses_is_failure(machine):
    machine.cloud_init("echo 'HTTP 403' >&2; exit 1")
    output = failing(machine)
    assert "HTTP 403" in output
    assert "FAILED while registering the node with api.wallarm.com" in output
    assert "systemctl start nginx" not in machine.calls()


def test_a_configuration_that_nginx_refuses_is_failure(machine):
    machine.command("nginx", "echo 'unknown directive' >&2; exit 1")
    output = failing(machine)
    assert "unknown directive" in output and "FAILED while starting nginx" in output


def test_a_node_that_stays_unhealthy_is_failure(machine):
    machine.aws.health = ["unhealthy"]
    assert "waiting for the load balancer, which says: unhealthy" in failing(machine)


def test_a_signal_that_nobody_waits_for_is_no_error(machine):
    machine.aws.refuse = {"cloudformation"}
    code, output = machine.boot()
    assert code == 0, output
    assert "CloudFormation took no signal" in output


def test_a_signature_that_is_wrong_would_be_noticed(machine):
    keys = json.dumps({**KEYS, "SecretAccessKey": "another"})
    machine.aws.metadata["iam/security-credentials/first-NodeRole"] = keys
    code, output = machine.boot()
    assert code != 0 and "AccessDenied" in output


# ---- The configuration, in nginx ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the script writes for nginx."""
    machine = Machine(tmp_path_factory.mktemp("node"))
    code, output = machine.boot()
    assert code == 0, output
    return (machine.folder / "etc/http.conf").read_text()


@pytest.fixture
def nginx(tmp_path, written):
    running = []

    def start(**more):
        running.append(Nginx(tmp_path, written, **more))
        return running[-1]

    yield start
    for one in running:
        one.stop()


real = pytest.mark.skipif(not NGINX.exists(), reason="nginx is not installed")


def request(line="GET / HTTP/1.1", *headers, body=b""):
    more = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([line, "Host: shop.example", *headers, *more, "", ""]).encode() + body


@real
def test_a_connection_goes_on_beyond_a_thousand_requests(nginx):
    server = nginx()
    assert server.talk(request() * 2500, 2500) == [200] * 2500
    assert len({line[4] for line in server.seen()}) == 1


@real
@pytest.mark.parametrize(
    "big",
    [
        request("GET / HTTP/1.1", "X-Big: " + "a" * 100_000),
        request("GET /" + "a" * 100_000 + " HTTP/1.1"),
        request("GET / HTTP/1.1", *(f"X-Big-{n}: " + "a" * 60_000 for n in range(6))),
        request("POST / HTTP/1.1", body=b"a" * 3_000_000),
        request("PUT / HTTP/1.1", "Transfer-Encoding: chunked") + (b"186a0\r\n" + b"a" * 100_000 + b"\r\n") * 30 + b"0\r\n\r\n",
    ],
    ids=["header", "line", "head", "body", "chunks"],
)
def test_what_is_large_is_taken_and_the_connection_goes_on(nginx, big):
    server = nginx()
    assert server.talk(big + request("GET /next HTTP/1.1"), 2) == [200, 200]


@real
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE"])
def test_every_method_is_answered_alike(nginx, method):
    assert nginx().talk(request(f"{method} /a?b=c HTTP/1.1"), 1) == [200]


@real
@pytest.mark.parametrize(
    ("headers", "client"),
    [
        (["X-Forwarded-For: 198.51.100.7", "X-Real-IP: 198.51.100.7"], "198.51.100.7"),
        # The load balancer appends the rebuilder; what the client wrote itself stands first.
        (["X-Forwarded-For: 203.0.113.66, 198.51.100.7, 127.0.0.1", "X-Real-IP: 198.51.100.7"], "198.51.100.7"),
        # A client within the VPC writes an address too.
        (["X-Forwarded-For: 203.0.113.66, 10.20.1.1, 127.0.0.1", "X-Real-IP: 10.20.1.1"], "10.20.1.1"),
        (["X-Real-IP: 2001:db8::7"], "2001:db8::7"),
    ],
)
def test_the_client_is_whom_the_rebuilder_names(nginx, headers, client):
    server = nginx()
    server.talk(request("GET / HTTP/1.1", *headers, "X-Server-Addr: 10.20.3.4", "X-Server-Port: 8080"), 1)
    assert [line[:3] for line in server.seen()] == [[client, "10.20.3.4", "8080"]]


def test_all_networks_of_the_vpc_are_believed_and_no_other(written):
    trusted = [line.split()[1] for line in written.splitlines() if "set_real_ip_from" in line]
    assert trusted == ["127.0.0.0/8;", "10.20.0.0/16;", "fd00:20::/56;"]


def test_a_vpc_without_ipv6_is_one_network_less(machine):
    own = "network/interfaces/macs/02:00:00:00:00:01/"
    machine.aws.metadata[own] = "device-number\nvpc-ipv4-cidr-blocks"
    del machine.aws.metadata[own + "vpc-ipv6-cidr-blocks"]
    code, output = machine.boot()
    assert code == 0, output
    assert "fd00" not in (machine.folder / "etc/http.conf").read_text()


@real
def test_headers_with_odd_names_are_kept(nginx):
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        server = nginx(upstream=upstream.getsockname()[1])
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request("GET / HTTP/1.1", "Under_Score: kept", "X.Dot: kept", "X@At: kept"))
            passed_on, _ = upstream.accept()
            with passed_on:
                head = passed_on.recv(1 << 16)
    assert [name for name in (b"Under_Score", b"X.Dot", b"X@At") if name + b": kept\r\n" not in head] == []


@real
@pytest.mark.skipif(not MODSECURITY.exists(), reason="libnginx-mod-http-modsecurity is not installed")
def test_a_module_sees_each_request_and_its_body_before_it_is_answered(nginx):
    server = nginx(engine=True)
    evil = request("POST / HTTP/1.1", "Content-Type: application/x-www-form-urlencoded", body=b"a=evil")
    assert server.talk(evil, 1) == [403]
    assert server.talk(request("GET /?a=evil HTTP/1.1"), 1) == [403]
    assert server.talk(request("POST / HTTP/1.1", body=b"a=good"), 1) == [200]
    # No path is the load balancer's alone, so none can be used to pass by.
    assert server.talk(request("GET /healthz?a=evil HTTP/1.1"), 1) == [403]


@real
@pytest.mark.parametrize(("module_answers", "status"), [(True, 200), (False, 502)])
def test_healthy_means_that_the_module_answers(nginx, module_answers, status):
    server = nginx(module_answers=module_answers)
    assert server.talk(b"GET /healthz HTTP/1.1\r\nHost: 10.20.1.1\r\nConnection: close\r\n\r\n", 1, server.health) == [status]
    assert server.talk(b"GET / HTTP/1.1\r\nHost: 10.20.1.1\r\nConnection: close\r\n\r\n", 1, server.health) == [404]


@real
def test_no_byte_of_a_request_is_logged(nginx):
    server = nginx()
    assert "access_log off" in server.written and server.written.count("error_log") == 1
    server.talk(request("GET /canary HTTP/1.1", "Cookie: canary"), 1)
    server.talk(b"GET /canary HTTP/1.1\r\nHost: a\r\nHost: b\r\nbroken canary\x00\r\n\r\n", 1)
    server.stop()
    logs = [f for f in server.folder.glob("*.log") if f.name != "access.log"]
    assert logs and [f for f in logs if "canary" in f.read_text()] == []


# ---- With the rebuilder -------------------------------------------------------------------------------------------------


def mirrored(payload, sequence, *, client="198.51.100.7", server="10.20.3.4"):
    """A TCP segment of a client, to port 8080, as AWS mirrors it: VXLAN, Ethernet, IPv4."""

    def checksum(data):
        total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
        return ~(total + (total >> 16) + ((total + (total >> 16)) >> 16)) & 0xFFFF

    ends = socket.inet_aton(client) + socket.inet_aton(server)
    tcp = struct.pack("!HHIIBBHHH", 40000, 8080, sequence, 1, 5 << 4, 0x18, 65535, 0, 0) + payload
    tcp = tcp[:16] + struct.pack("!H", checksum(ends + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return struct.pack("!II", 0x08000000, 4789 << 8) + bytes(12) + b"\x08\x00" + ip + tcp


@real
@pytest.mark.skipif("REBUILDER_BIN" not in os.environ, reason="NOT RUN: REBUILDER_BIN names no rebuilder; tests/check does")
def test_what_a_rebuilder_sends_reaches_the_node_whole_and_under_the_true_names(nginx):
    server = nginx()
    listen, admin = free_ports(2)
    command = [os.environ["REBUILDER_BIN"], "run", "--forward", f"http://127.0.0.1:{server.port}"]
    command += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}", "--receive", "socket", "--workers", "1"]
    rebuilder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", admin)):
            assert rebuilder.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        # A client that writes headers of its own: ours must win. More requests than nginx takes on a connection by default.
        asked = request("GET /shop HTTP/1.1", "X-Real-IP: 203.0.113.66", "X_Server_Addr: 203.0.113.66", "X-Forwarded-For: 127.0.0.1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mirror:
            for n in range(1200):
                mirror.sendto(mirrored(asked, 1000 + n * len(asked)), ("127.0.0.1", listen))
                if n % 50 == 0:
                    time.sleep(0.01)
        while len((server.folder / "access.log").read_text().splitlines()) < 1200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        rebuilder.terminate()
        rebuilder.wait(40)
    assert {tuple(line[:4]) for line in server.seen()} == {("198.51.100.7", "10.20.3.4", "8080", "200")}
    assert len(server.seen()) == 1200


# ---- What they are given -----------------------------------------------------------------------------------------------


def test_the_directives_are_those_of_mirrored_traffic():
    for directive in (
        "wallarm_mode monitoring;",
        "wallarm_force server_addr $http_x_server_addr;",
        "wallarm_force server_port $http_x_server_port;",
        *(f"wallarm_force response_{what} 0;" for what in ("status", "time", "size")),
    ):
        assert directive in user_data()


def test_instances_are_closed():
    evaluated = stack.Evaluated(**NODES)
    data = evaluated.properties("NodeTemplate")["LaunchTemplateData"]
    assert "KeyName" not in data
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert [d["Ebs"]["Encrypted"] for d in data["BlockDeviceMappings"]] == [True]
    assert data["SecurityGroupIds"] == ["<NodeSecurityGroup>"]


def test_only_rebuilders_reach_the_balancer_and_only_the_balancer_reaches_a_node():
    evaluated = stack.Evaluated(**NODES)

    def ends(rules, key):
        return {(r["IpProtocol"], r["FromPort"], r["ToPort"], r[key]) for r in rules}

    balancer = evaluated.properties("NodeBalancerSecurityGroup")
    assert ends(balancer["SecurityGroupIngress"], "SourceSecurityGroupId") == {("tcp", 80, 80, "<RebuilderSecurityGroup>")}
    both = {("tcp", port, port, "<NodeSecurityGroup>") for port in (8080, 8081)}
    assert ends(balancer["SecurityGroupEgress"], "DestinationSecurityGroupId") == both
    assert "SecurityGroupIngress" not in evaluated.properties("NodeSecurityGroup")
    doors = [
        r["Properties"]
        for r in evaluated.resources("AWS::EC2::SecurityGroupIngress").values()
        if r["Properties"]["GroupId"] == "<NodeSecurityGroup>"
    ]
    assert ends(doors, "SourceSecurityGroupId") == {("tcp", port, port, "<NodeBalancerSecurityGroup>") for port in (8080, 8081)}


@pytest.mark.parametrize(
    ("parameters", "forward"),
    [
        ({"AnalyzerUrl": "http://waf:81"}, "http://waf:81"),
        (NODES, "http://<NodeAlb.DNSName>"),
        ({**NODES, "AnalyzerBalancer": "nlb"}, "http://<NodeNlb.DNSName>"),
    ],
    ids=["url", "alb", "nlb"],
)
def test_rebuilders_send_to_the_analyser_that_is_there(parameters, forward):
    script = stack.Evaluated(**parameters).properties("RebuilderTemplate")["LaunchTemplateData"]["UserData"]
    assert f"REBUILDER_FORWARD={forward}\n" in script


def attributes(evaluated, name, key):
    return {a["Key"]: a["Value"] for a in evaluated.properties(name)[key]}


def test_the_application_load_balancer_changes_and_refuses_as_little_as_it_can():
    shown = attributes(stack.Evaluated(**NODES), "NodeAlb", "LoadBalancerAttributes")
    assert shown.items() >= {
        "routing.http.desync_mitigation_mode": "monitor",
        "routing.http.drop_invalid_header_fields.enabled": "false",
        "routing.http.preserve_host_header.enabled": "true",
        "routing.http.xff_header_processing.mode": "append",
    }.items()
    # Longer than a rebuilder keeps a connection (`rebuilder run --connection-age`).
    assert int(shown["idle_timeout.timeout_seconds"]) > 600


@pytest.mark.parametrize("balancer", ["alb", "nlb"])
def test_the_nodes_grow_with_cpu_and_with_requests_where_they_can_be_counted(balancer):
    evaluated = stack.Evaluated(**NODES, AnalyzerBalancer=balancer)
    metrics = {
        p["TargetTrackingConfiguration"]["PredefinedMetricSpecification"]["PredefinedMetricType"]: p
        for p in (r["Properties"] for r in evaluated.resources("AWS::AutoScaling::ScalingPolicy").values())
        if p["AutoScalingGroupName"] == "<NodeGroup>"
    }
    assert set(metrics) == {"ASGAverageCPUUtilization"} | ({"ALBRequestCountPerTarget"} if balancer == "alb" else set())
    if balancer == "alb":
        label = metrics["ALBRequestCountPerTarget"]["TargetTrackingConfiguration"]["PredefinedMetricSpecification"]["ResourceLabel"]
        assert label == "<NodeAlb.LoadBalancerFullName>/<NodeHttpTargets.TargetGroupFullName>"


@pytest.mark.parametrize("targets", ["NodeHttpTargets", "NodeTcpTargets"])
def test_the_health_check_asks_the_port_that_only_it_may_ask(targets):
    p = stack.Evaluated(**NODES).properties(targets)
    assert (p["Port"], p["HealthCheckProtocol"], p["HealthCheckPort"], p["HealthCheckPath"]) == (8080, "HTTP", "8081", "/healthz")


@pytest.mark.parametrize(
    ("parameters", "own"),
    [
        (NODES, ["BalancerSecurityGroup", "RebuilderSecurityGroup", "NodeBalancerSecurityGroup", "NodeSecurityGroup"]),
        ({}, ["BalancerSecurityGroup", "RebuilderSecurityGroup"]),
    ],
    ids=["nodes", "url"],
)
def test_no_interface_of_the_analyser_is_ever_mirrored(parameters, own):
    evaluated = stack.Evaluated(**parameters)
    variables = evaluated.properties("ReconcileFunction")["Environment"]["Variables"]
    assert variables["MIRRORFLEET_OWN_SECURITY_GROUPS"] == ",".join(f"<{name}>" for name in own)
    # A new group is a change of the custom resource, and so a pass.
    assert evaluated.properties("MirrorSessions")["OwnSecurityGroups"] == [f"<{name}>" for name in own]
    if parameters:
        assert variables["MIRRORFLEET_ANALYZER_URL"] == ""

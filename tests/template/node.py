"""A machine for the boot script of a Wallarm node: what it asks of AWS is answered here, what it calls is a fake."""

import http.server
import json
import os
import re
import subprocess
import threading

import stack
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wallarm-AbCdEf"
NODES = {"AnalyzerUrl": "", "WallarmAmiId": "ami-0123456789abcdef0", "WallarmTokenSecretArn": SECRET}
TOKEN = "dG9rZW4tdGhhdC1ub2JvZHktbWF5LXNlZQ=="
KEYS = {"AccessKeyId": "AKIAEXAMPLE", "SecretAccessKey": "secret/key+of=role", "Token": "session-token"}

CLOUD_INIT = "/opt/wallarm/usr/share/wallarm-common/cloud-init.py"


def user_data(**parameters):
    return stack.Evaluated(**{**NODES, **parameters}).properties("NodeTemplate")["LaunchTemplateData"]["UserData"]


class Aws(http.server.ThreadingHTTPServer):
    """Instance metadata (version 2 alone) and the three APIs, which check each signature with botocore's own."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.secret = TOKEN
        self.health = ["healthy"]
        self.refuse = set()
        self.signals = []
        self.asked = []
        self.metadata = {
            "instance-id": "i-0123456789abcdef0",
            "mac": "02:00:00:00:00:01",
            "iam/security-credentials/": "first-NodeRole",
            "iam/security-credentials/first-NodeRole": json.dumps(KEYS),
            "network/interfaces/macs/02:00:00:00:00:01/": "device-number\nvpc-ipv4-cidr-blocks\nvpc-ipv6-cidr-blocks",
            "network/interfaces/macs/02:00:00:00:00:01/vpc-ipv4-cidr-blocks": "127.0.0.0/8\n10.20.0.0/16",
            "network/interfaces/macs/02:00:00:00:00:01/vpc-ipv6-cidr-blocks": "fd00:20::/56",
        }
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        self.answer(200, "IMDS-TOKEN" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else "")

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != "IMDS-TOKEN":
            return self.answer(401, "")
        held = self.server.metadata.get(self.path.removeprefix("/latest/meta-data/"))
        return self.answer(404, "") if held is None else self.answer(200, held)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        service = self.headers["Host"].split(".")[0]
        self.server.asked.append(service)
        if not self.well_signed(service, body) or service in self.server.refuse:
            return self.answer(400, '{"__type": "AccessDeniedException", "Message": "not authorized"}')
        if service == "secretsmanager":
            assert self.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
            assert json.loads(body) == {"SecretId": SECRET}
            return self.answer(200, json.dumps({"Name": "wallarm", "SecretString": self.server.secret}))
        fields = dict(pair.split("=") for pair in body.decode().split("&"))
        if service == "elasticloadbalancing":
            assert (fields["Action"], fields["Targets.member.1.Id"]) == ("DescribeTargetHealth", "i-0123456789abcdef0")
            self.server.targets = fields["TargetGroupArn"]
            state = self.server.health.pop(0) if len(self.server.health) > 1 else self.server.health[0]
            return self.answer(200, f"<r><TargetHealth><State>{state}</State></TargetHealth></r>")
        assert (service, fields["Action"], fields["LogicalResourceId"]) == ("cloudformation", "SignalResource", "NodeGroup")
        self.server.signals.append((fields["UniqueId"], fields["Status"]))
        return self.answer(200, "<SignalResourceResponse/>")

    def well_signed(self, service, body):
        """As AWS judges: the same signature comes of the same request."""
        given = self.headers["Authorization"]
        signed = re.search(r"SignedHeaders=([^,]+)", given)[1].split(";")
        request = AWSRequest("POST", f"https://{self.headers['Host']}/", {n: self.headers[n] for n in signed}, body)
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        judge = SigV4Auth(Credentials(KEYS["AccessKeyId"], KEYS["SecretAccessKey"], KEYS["Token"]), service, "eu-west-1")
        expected = judge.signature(judge.string_to_sign(request, judge.canonical_request(request)), request)
        return self.headers["X-Amz-Security-Token"] == KEYS["Token"] and f"Signature={expected}" in given


class Machine:
    """The script, run."""

    def __init__(self, folder):
        self.folder, self.aws = folder, Aws()
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("systemctl", "nginx", "dpkg", "curl", "sleep"):
            self.command(name, "")
        self.cloud_init('echo "DEBUG registering with $*"')

    def command(self, name, body):
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.folder}/calls"\n{body}\n')
        path.chmod(0o755)

    def cloud_init(self, body):
        self.command("cloud-init.py", body)

    def boot(self, **parameters):
        port = self.aws.server_address[1]
        text = user_data(**parameters)
        for place, instead in {
            "/etc/mirrorfleet": f"{self.folder}/etc",
            CLOUD_INIT: f"{self.bin}/cloud-init.py",
            "http://169.254.169.254/": f"http://127.0.0.1:{port}/",
            "f'https://{host}/'": f"'http://127.0.0.1:{port}/'",
            "(1, 2, 4, 8, None)": "(0, 0, None)",
            "tries_left = 90": "tries_left = 3",
        }.items():
            assert place in text, place
            text = text.replace(place, instead)
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

"""A signed request to a service, as it is known before the service gets it."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""

ANSWER = "cloudformation:Answer"
"""What a custom resource's answer at its ResponseURL counts as: it is no call of an API, and carries no credentials."""


@dataclass(frozen=True)
class Call:
    service: str
    region: str
    action: str
    given: Mapping[str, str]
    """Parameters as they stand on the wire: of JSON services, each value is JSON."""

    @property
    def name(self) -> str:
        return f"{self.service}:{self.action}"


def key_of(environ: Mapping[str, Any]) -> str | None:
    """The access key that signed the request."""
    found = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found[1] if found else None


def body_of(environ: dict[str, Any]) -> bytes:
    """The request's body, which stays readable."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def called(environ: dict[str, Any]) -> Call:
    """Service, region, action and parameters of a signed request."""
    body = body_of(environ)
    _, _, region, service, _ = environ["HTTP_AUTHORIZATION"].split("Credential=")[1].split(",")[0].split("/")
    # IAM has another word for it than the signature.
    service = {"monitoring": "cloudwatch"}.get(service, service)
    path = urllib.parse.unquote(environ.get("PATH_INFO", ""))
    if service == "lambda":
        action, given = _of_lambda(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""))
        return Call(service, region, action, given)
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        held = json.loads(body or b"{}")
        return Call(service, region, target.rsplit(".", 1)[1], {k: json.dumps(v) for k, v in held.items()})
    given = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
    return Call(service, region, given.get("Action", ""), given)


def with_parameters(environ: dict[str, Any], changed: Mapping[str, str]) -> None:
    """Puts parameters of a call of a query service in place of those that it carries."""
    given = dict(urllib.parse.parse_qsl(body_of(environ).decode(), keep_blank_values=True))
    body = urllib.parse.urlencode({**given, **changed}).encode()
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))


def _of_lambda(method: str, path: str, query: str) -> tuple[str, dict[str, str]]:
    """Action and parameters; the path itself is the action of a call that nobody here makes."""
    if invoked := re.fullmatch(r"/2015-03-31/functions/([^/]+)/invocations", path):
        return "InvokeFunction", {"FunctionName": invoked[1]}
    layer = re.fullmatch(r"/2018-10-31/layers/([^/]+)/versions(?:/(\d+))?", path)
    if layer and method == "GET" and not layer[2]:
        return "ListLayerVersions", {"LayerName": layer[1]}
    if layer and method == "DELETE" and layer[2]:
        return "DeleteLayerVersion", {"LayerName": layer[1], "VersionNumber": layer[2]}
    asked = dict(urllib.parse.parse_qsl(query))
    if method == "GET" and path == "/2018-10-31/layers" and asked.get("find") == "LayerVersion":
        return "GetLayerVersion", {"Arn": asked["Arn"]}
    return f"{method} {path}", {}


def failure(service: str, status: int, code: str, message: str) -> Answer:
    """An error in the service's own form."""
    if service == "ec2":
        error = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>emulated</RequestID></Response>"
        kind = "text/xml"
    elif service in ("autoscaling", "elasticloadbalancing", "cloudformation"):
        error = f"<Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message>"
        text = f"<ErrorResponse><Error>{error}</Error><RequestId>emulated</RequestId></ErrorResponse>"
        kind = "text/xml"
    else:
        text = json.dumps({"__type": code, "message": message, "Message": message})
        kind = "application/json"
    body = text.encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    if service == "lambda":
        headers.append(("X-Amzn-ErrorType", code))
    return status, headers, body

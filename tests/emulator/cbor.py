"""Smithy RPC v2 CBOR, which the Rust SDK speaks to CloudWatch and moto does not: translated into JSON 1.0, which it knows.

https://smithy.io/2.0/additional-specs/protocols/smithy-rpc-v2.html
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import re
from collections.abc import Callable
from typing import Any

from botocore.parsers import RpcV2CBORParser
from moto.core.utils import unix_time

from .calls import Answer

_PATH = re.compile(r"/service/(\w+)/operation/(\w+)")


def is_cbor(environ: dict[str, Any]) -> bool:
    return environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor"


def answer(environ: dict[str, Any], service: Callable[[dict[str, Any]], Answer]) -> Answer:
    """What the service answers to the same call in JSON."""
    found = _PATH.fullmatch(environ["PATH_INFO"])
    if not found:
        return 404, [("Content-Type", "application/cbor")], b"\xa0"
    parser = RpcV2CBORParser()
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ.pop("HTTP_CONTENT_ENCODING", None) == "gzip":
        body = gzip.decompress(body)
    given = parser.parse_data_item(parser.get_peekable_stream_from_bytes(body)) if body else {}
    asked = json.dumps(given, default=_time).encode()
    status, _, told = service(
        environ
        | {
            "PATH_INFO": "/",
            "REQUEST_URI": "/",
            "RAW_URI": "/",
            "CONTENT_TYPE": "application/x-amz-json-1.0",
            "CONTENT_LENGTH": str(len(asked)),
            "HTTP_X_AMZ_TARGET": f"{found[1]}.{found[2]}",
            "wsgi.input": io.BytesIO(asked),
        }
    )
    return status, [("Content-Type", "application/cbor"), ("Smithy-Protocol", "rpc-v2-cbor")], _encode(json.loads(told or b"{}"))


def _time(value: Any) -> float:
    """JSON 1.0 has times as seconds of the epoch."""
    if isinstance(value, datetime.datetime):
        return unix_time(value.astimezone(datetime.UTC).replace(tzinfo=None))
    raise TypeError(f"{value!r} in a call")


def _encode(value: Any) -> bytes:
    """An answer's members, as far as answers have any that are read here: texts and maps (RFC 8949)."""
    if isinstance(value, str):
        text = value.encode()
        return _head(3, len(text)) + text
    if isinstance(value, dict):
        return _head(5, len(value)) + b"".join(_encode(k) + _encode(v) for k, v in value.items())
    raise NotImplementedError(f"{value!r} in an answer")


def _head(major: int, n: int) -> bytes:
    return bytes([major << 5 | n]) if n < 24 else bytes([major << 5 | 25]) + n.to_bytes(2, "big")

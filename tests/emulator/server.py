"""The HTTP side: moto's services, and the emulator's own paths beside them.

``/_lab/...`` is for the lab and for tests; ``/_cloudformation/...`` takes the answers of custom resources.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from . import cbor
from .calls import Answer
from .faults import Dropped

log = logging.getLogger("emulator.http")

Environ = dict[str, Any]
Handler = Callable[[str, bytes], tuple[int, bytes, str]]
"""Takes the path behind the route's prefix and the body; gives status, body and content type."""


def as_json(value: Any, status: int = 200) -> tuple[int, bytes, str]:
    return status, json.dumps(value, separators=(",", ":")).encode(), "application/json"


class Application:
    """Our routes by method and prefix; whatever matches none goes to moto."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._routes: dict[tuple[str, str], Handler] = {}
        self.traffic: Callable[[Environ, Callable[[Environ], Answer]], Answer | None] = lambda _environ, _service: None
        """Answers the calls of functions, with the help of the service that it is given; None for all others."""

    def route(self, method: str, prefix: str, handler: Handler) -> None:
        self._routes[(method, prefix)] = handler

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if not path.startswith("/_"):
            try:
                if cbor.is_cbor(environ):
                    answer = cbor.answer(environ, lambda same: self.traffic(same, self._asked) or self._asked(same))
                else:
                    answer = self.traffic(environ, self._asked)
            except Dropped as dropped:
                return _dropped(dropped, environ, start_response)
            if answer is None:
                return self._moto(environ, start_response)
            status, headers, body = answer
            start_response(f"{status} -", headers)
            return [body]
        for (method, prefix), handler in self._routes.items():
            if environ["REQUEST_METHOD"] == method and path.startswith(prefix):
                return self._answer(handler, path.removeprefix(prefix), environ, start_response)
        _, body, kind = as_json({"error": f"no such path: {path}"})
        start_response("404 Not Found", [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _asked(self, environ: Environ) -> Answer:
        """What moto answers, as a whole."""
        given: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
            given[:] = [int(status.split()[0]), headers]

        body = b"".join(self._moto(environ, start))
        return given[0], given[1], body

    @staticmethod
    def _answer(handler: Handler, rest: str, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            status, answer, kind = handler(urllib.parse.unquote(rest), body)
        except Dropped as dropped:
            return _dropped(dropped, environ, start_response)
        except Exception as failed:
            log.exception("%s", environ.get("PATH_INFO"))
            status, answer, kind = as_json({"error": str(failed)}, 500)
        start_response(f"{status} -", [("Content-Type", kind), ("Content-Length", str(len(answer)))])
        return [answer]


def _dropped(dropped: Dropped, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Half of an answer or nothing, and the end of the connection."""
    if dropped.part:
        status, headers, body = dropped.part
        start_response(f"{status} -", headers)
        yield body[: len(body) // 2]
    with contextlib.suppress(OSError):  # the caller has gone already
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise dropped


class RequestHandler(MotoRequestHandler):
    """Keeps connections open (a client that opens one a call costs the lab's two cores dearly), and logs one line a
    call of an AWS service, none for the lab's polls."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not self.path.startswith("/_lab/"):
            log.info("%s %s %s", self.command, self.path.split("?")[0], getattr(code, "value", code))

    def log(self, type: str, message: str, *args: Any) -> None:
        log.log(logging.ERROR if type == "error" else logging.INFO, message, *args)


def listen(host: str, port: int, application: Application) -> BaseWSGIServer:
    return make_server(host, port, application, threaded=True, request_handler=RequestHandler)

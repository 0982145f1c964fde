"""The account as a whole: installs every part and ties them together."""

from __future__ import annotations

import json
from pathlib import Path

from . import balancers, bus, cloudformation, compute, custom, functions, lifecycle, managed, mirroring_api, network, queues
from .bus import Bus
from .custom import CustomResources
from .runtime import Runtimes
from .server import Application, as_json


class Account:
    def __init__(self, *, endpoint: str, state: Path, function_logs: Path, environments: int, second: float | None):
        self.endpoint = endpoint
        self.application = Application()
        self._runtimes = Runtimes(endpoint, state, function_logs, environments)
        self._bus = Bus()
        self._second = second
        mirroring_api.install()
        functions.install(self._runtimes)
        bus.install(self._bus)
        queues.install()
        compute.install(self._bus)
        balancers.install()
        managed.install(self._bus)
        leaving = lifecycle.install(self._bus)
        answers = CustomResources(endpoint)
        cloudformation.install(endpoint, answers)
        route = self.application.route
        route("PUT", custom.ROUTE, answers.answered)
        route("GET", "/_lab/network", lambda _path, _body: as_json(network.view()))
        route("GET", "/_lab/logs/", lambda name, _: (200, self._runtimes.logs(name).encode(), "text/plain"))
        route(
            "GET", "/_lab/environments/", lambda name, _: as_json({"environments": self._runtimes.environments(name)})
        )

        route("GET", "/_lab/leaving", lambda _path, _body: as_json(leaving.view()))
        route("POST", "/_lab/deregister/", lambda order, _body: as_json(leaving.deregister(order)))
        route("POST", "/_lab/tell", lambda _path, body: as_json({"rules": self._bus.offer_to_all(json.loads(body))}))
        route("GET", "/_lab/events", lambda _path, _body: as_json(self._bus.counts()))
        route("POST", "/_lab/tick", lambda _path, _body: as_json({"fired": self._bus.tick()}))

    def start(self) -> None:
        """Starts what runs by itself; the account is already being served."""
        self._bus.start(self._second)

    def close(self) -> None:
        """Ends every process of every function."""
        self._bus.close()
        self._runtimes.close()

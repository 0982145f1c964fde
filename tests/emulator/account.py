"""The account as a whole: installs every part and ties them together."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import (
    balancers,
    bus,
    cloudformation,
    compute,
    custom,
    functions,
    layers,
    lifecycle,
    logs,
    managed,
    mirroring_api,
    network,
    queues,
    watching,
)
from .bus import Bus
from .custom import CustomResources
from .faults import Faults
from .gate import Gate
from .runtime import Runtimes
from .server import Application, as_json
from .signals import Signals
from .traffic import Traffic


class Account:
    def __init__(self, *, endpoint: str, state: Path, function_logs: Path, environments: int, second: float | None):
        self.endpoint = endpoint
        self.application = Application()
        gate, faults = Gate(), Faults()
        traffic = Traffic(gate, faults)
        self.application.traffic = traffic.answer
        self._runtimes = Runtimes(endpoint, state, function_logs, environments, traffic.issue)
        self._bus = Bus()
        self._second = second
        mirroring_api.install()
        functions.install(self._runtimes)
        downloads, delivery = layers.install(endpoint), logs.install(gate, self._runtimes)
        bus.install(self._bus)
        queues.install(gate)
        compute.install(self._bus)
        balancers.install()
        watching.install()
        managed.install(self._bus)
        leaving = lifecycle.install(self._bus)
        answers, signals = CustomResources(endpoint), Signals()
        cloudformation.install(endpoint, answers, signals)
        route = self.application.route

        def answered(path: str, body: bytes) -> tuple[int, bytes, str]:
            function = answers.asked(path)
            return traffic.answering(
                function, lambda: self._runtimes.kill(function), lambda: answers.answered(path, body)
            )

        route("PUT", custom.ROUTE, answered)
        route("GET", "/_lab/network", lambda _path, _body: as_json(network.view()))
        route("GET", "/_lab/logs/", lambda name, _: (200, self._runtimes.logs(name).encode(), "text/plain"))
        route(
            "GET", "/_lab/environments/", lambda name, _: as_json({"environments": self._runtimes.environments(name)})
        )

        route("GET", "/_lab/deliveries", lambda _path, _body: as_json({"pending": delivery.pending()}))
        route("GET", layers.ROUTE, lambda key, _body: downloads.get(key))
        route("POST", layers.ROUTE, lambda _path, body: as_json(downloads.set(body)))
        route("POST", "/_lab/credentials/", lambda role, _body: as_json(traffic.credentials(role)))
        route("GET", "/_lab/signals", lambda _path, _body: as_json(signals.view()))
        route("POST", "/_lab/signals", lambda _path, body: as_json(signals.set(body)))
        route("POST", "/_lab/health", lambda _path, body: as_json(balancers.report(body, lifecycle.replace_unhealthy)))
        route("GET", "/_lab/leaving", lambda _path, _body: as_json(leaving.view()))
        route("POST", "/_lab/deregister/", lambda order, _body: as_json(leaving.deregister(order)))
        route("POST", "/_lab/tell", lambda _path, body: as_json({"rules": self._bus.offer_to_all(json.loads(body))}))
        route("GET", "/_lab/calls", lambda _path, _body: as_json({"calls": traffic.log()}))
        route("GET", "/_lab/faults", lambda _path, _body: as_json({"faults": faults.shown()}))
        route("POST", "/_lab/faults", lambda _path, body: as_json(faults.add(body)))
        route("DELETE", "/_lab/faults", lambda _path, _body: as_json({"faults": faults.end()}))
        route("GET", "/_lab/iam", lambda _path, _body: as_json(gate.report()))
        route("GET", "/_lab/events", lambda _path, _body: as_json(self._bus.counts()))
        watch = watching.Watch(os.environ["AWS_DEFAULT_REGION"])
        route("GET", "/_lab/metrics", lambda _path, _body: as_json({"data": watch.data()}))
        route("POST", "/_lab/minute", lambda _path, body: as_json(watch.minute(json.loads(body)["now"])))
        route("POST", "/_lab/tick", lambda _path, _body: as_json({"fired": self._bus.tick()}))

    def start(self) -> None:
        """Starts what runs by itself; the account is already being served."""
        self._bus.start(self._second)

    def close(self) -> None:
        """Ends every process of every function."""
        self._bus.close()
        self._runtimes.close()

"""An AWS account on one machine, for the tests and the demo of mirrorfleet.

moto keeps the plain resources (instances, interfaces, queues, buckets, roles). This package adds what moto lacks and
what the product depends on: the rules of Traffic Mirroring, CloudFormation with dependency order and custom resources,
real Lambda processes behind the Runtime API, queue mappings, the event bus with the events that AWS sends by itself.

Start it with ``python -m emulator --port N`` and ``tests/`` on PYTHONPATH; see ``--help``.
"""

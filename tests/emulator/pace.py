"""How fast what AWS does in minutes goes here: pauses of updates, grace periods, deregistration delays, health checks."""

from __future__ import annotations

second = 1.0
"""How long a second of those is, in seconds."""

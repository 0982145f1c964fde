"""How each CloudFormation type is made, changed and removed: by the calls of its service's own API.

So CloudFormation gets what any client would get, refusals included. A type that is not in ``TYPES`` is not emulated,
and a property that the API does not know is an error: nothing is ignored in silence.
"""

from __future__ import annotations

from . import functions, identity, load_balancing, messaging, mirroring, network, observing, scaling, storage
from .kind import Context, Failed, Kind, Made

__all__ = ["TYPES", "Context", "Failed", "Kind", "Made"]

TYPES: dict[str, Kind] = {
    kind.type: kind
    for room in (functions, identity, load_balancing, messaging, mirroring, network, observing, scaling, storage)
    for kind in room.KINDS
}

"""Traffic Mirroring as EC2 enforces it: sessions, targets, filters and their rules.

A pure model of one region of one account: it knows neither moto nor HTTP, and it asks about interfaces and load
balancers through the ``World`` that it is given. ``mirroring_api`` puts it behind the EC2 API.

Error codes are those of the EC2 API's list of error codes, or those observed by Terraform's provider where the list
has none. The two that nobody documents are marked UNDOCUMENTED: do not build on their spelling.
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

SESSION_NUMBERS = range(1, 32767)
VIRTUAL_NETWORK_IDS = range(2**24)
RULE_NUMBERS = range(1, 32767)
PACKET_LENGTHS = range(1, 8501)
"""Bytes of each packet that are mirrored, for a load balancer as target (CreateTrafficMirrorSession)."""
DEFAULT_PACKET_LENGTH = 8500
DIRECTIONS = ("ingress", "egress")
TCP, UDP = 6, 17
SESSION_FIELDS = ("packet-length", "description", "virtual-network-id")
RULE_FIELDS = ("destination-port-range", "source-port-range", "protocol", "description")

# UNDOCUMENTED: what EC2 answers when the number is taken, and when the interface receives mirrored traffic itself.
NUMBER_IN_USE = "InvalidParameterValue"
SOURCE_IS_TARGET = "InvalidParameterValue"


class Refused(Exception):
    """EC2's refusal: ``code`` is what a client tells errors apart by."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """Quotas of one account and region (page traffic-mirroring-quotas)."""

    sessions: int = 10_000
    targets: int = 10_000
    filters: int = 10_000
    sessions_per_interface: int = 3
    rules_per_filter: int = 10


class World(Protocol):
    """What mirroring asks of the rest of the account."""

    def unsupported_because(self, eni: str) -> str | None:
        """Why the interface cannot be a source; None when it can. Raises KeyError when there is no such interface."""

    def load_balancer_exists(self, arn: str) -> bool:
        """Whether a network load balancer of that ARN exists."""


@dataclass
class Target:
    id: str
    description: str | None = None
    eni: str | None = None
    nlb_arn: str | None = None
    gwlb_endpoint: str | None = None

    @property
    def kind(self) -> str:
        if self.eni:
            return "network-interface"
        return "network-load-balancer" if self.nlb_arn else "gateway-load-balancer-endpoint"


@dataclass
class Rule:
    id: str
    filter_id: str
    direction: str
    number: int
    action: str
    source_cidr: str
    destination_cidr: str
    protocol: int | None = None
    source_ports: tuple[int, int] | None = None
    destination_ports: tuple[int, int] | None = None
    description: str | None = None


@dataclass
class Filter:
    id: str
    description: str | None = None
    services: list[str] = field(default_factory=list)
    rules: dict[str, Rule] = field(default_factory=dict)

    def ordered(self, direction: str) -> list[Rule]:
        """The rules of one direction in the order in which they are tried."""
        return sorted((r for r in self.rules.values() if r.direction == direction), key=lambda r: r.number)


@dataclass
class Session:
    id: str
    eni: str
    target_id: str
    filter_id: str
    number: int
    vni: int
    packet_length: int | None
    description: str | None
    created_at: float
    """Seconds since the epoch; not part of the API, the lab measures with it."""


Made = TypeVar("Made", Target, Filter, Rule, Session)


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(9)[:17]}"


class Mirrors:
    """Mirroring in one region of one account. Safe to call from several threads."""

    def __init__(self, world: World, limits: Limits = Limits(), clock: Callable[[], float] = time.time):
        self._world = world
        self._limits = limits
        self._clock = clock
        self.lock = threading.RLock()
        self._tokens: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.targets: dict[str, Target] = {}
        self.filters: dict[str, Filter] = {}
        self.sessions: dict[str, Session] = {}

    # -- targets ---------------------------------------------------------------------------------------------------

    def create_target(
        self,
        *,
        eni: str | None = None,
        nlb_arn: str | None = None,
        gwlb_endpoint: str | None = None,
        description: str | None = None,
        dry_run: bool = False,
        token: str | None = None,
        extra: Any = None,
    ) -> Target:
        """``extra`` is whatever else the request said (its tags): it belongs to what the token stands for."""

        def make() -> Target:
            if sum(bool(x) for x in (eni, nlb_arn, gwlb_endpoint)) != 1:
                raise Refused(
                    "InvalidParameterCombination",
                    "One of NetworkInterfaceId, NetworkLoadBalancerArn, GatewayLoadBalancerEndpointId is needed.",
                )
            if eni:
                self._interface(eni)
                if any(s.eni == eni for s in self.sessions.values()):
                    raise Refused(SOURCE_IS_TARGET, f"The network interface {eni} is the source of a session.")
            if nlb_arn and not self._world.load_balancer_exists(nlb_arn):
                raise Refused(
                    "InvalidNetworkLoadBalancerArn.NotFound", f"The load balancer '{nlb_arn}' does not exist."
                )
            self._room("TrafficMirrorTargetLimitExceeded", len(self.targets), self._limits.targets)
            return Target(new_id("tmt"), description, eni, nlb_arn, gwlb_endpoint)

        asked = (eni, nlb_arn, gwlb_endpoint, description, extra)
        return self._create("target", self.targets, token, asked, dry_run, make)

    def delete_target(self, target_id: str, dry_run: bool = False) -> None:
        with self.lock:
            self._target(target_id)
            users = [s.id for s in self.sessions.values() if s.target_id == target_id]
            if users:
                raise Refused(
                    "TrafficMirrorTargetInUseException",
                    f"The traffic mirror target {target_id} is in use by {_few(users)}.",
                )
            self._stop_here_if(dry_run)
            del self.targets[target_id]

    # -- filters and rules -----------------------------------------------------------------------------------------

    def create_filter(
        self, *, description: str | None = None, dry_run: bool = False, token: str | None = None, extra: Any = None
    ) -> Filter:
        def make() -> Filter:
            self._room("TrafficMirrorFilterLimitExceeded", len(self.filters), self._limits.filters)
            return Filter(new_id("tmf"), description)

        return self._create("filter", self.filters, token, (description, extra), dry_run, make)

    def delete_filter(self, filter_id: str, dry_run: bool = False) -> None:
        with self.lock:
            self._filter(filter_id)
            users = [s.id for s in self.sessions.values() if s.filter_id == filter_id]
            if users:
                raise Refused(
                    "TrafficMirrorFilterInUse", f"The traffic mirror filter {filter_id} is in use by {_few(users)}."
                )
            self._stop_here_if(dry_run)
            del self.filters[filter_id]

    def modify_services(
        self, filter_id: str, add: Iterable[str], remove: Iterable[str], dry_run: bool = False
    ) -> Filter:
        """Which AWS services are mirrored too; the API knows ``amazon-dns`` alone."""
        with self.lock:
            found = self._filter(filter_id)
            for service in (*add, *remove):
                if service != "amazon-dns":
                    raise Refused("InvalidParameterValue", f"Value ({service}) for a network service is invalid.")
            self._stop_here_if(dry_run)
            kept = [s for s in found.services if s not in set(remove)]
            found.services = kept + [s for s in add if s not in kept]
            return found

    def create_rule(
        self,
        *,
        filter_id: str,
        direction: str,
        number: int,
        action: str,
        source_cidr: str,
        destination_cidr: str,
        protocol: int | None = None,
        source_ports: tuple[int, int] | None = None,
        destination_ports: tuple[int, int] | None = None,
        description: str | None = None,
        dry_run: bool = False,
        token: str | None = None,
        extra: Any = None,
    ) -> Rule:
        rule = Rule(
            new_id("tmfr"), filter_id, direction, number, action, source_cidr, destination_cidr,
            protocol, source_ports, destination_ports, description,
        )  # fmt: skip

        def make() -> Rule:
            owner = self._filter(filter_id)
            self._room("TrafficMirrorFilterRuleLimitExceeded", len(owner.rules), self._limits.rules_per_filter)
            self._check_rule(owner, rule)
            return rule

        with self.lock:
            holder = self.filters[filter_id].rules if filter_id in self.filters else {}
            return self._create("rule", holder, token, (replace(rule, id=""), extra), dry_run, make)

    def modify_rule(self, rule_id: str, changes: dict[str, Any], remove: Iterable[str], dry_run: bool = False) -> Rule:
        """``changes`` names fields of ``Rule``; ``remove`` names the API's RemoveFields."""
        with self.lock:
            owner, rule = self._rule(rule_id)
            _known(remove, RULE_FIELDS)
            gone = {_RULE_FIELD[name]: None for name in remove}
            changed = replace(rule, **{**gone, **changes})
            self._check_rule(owner, changed)
            self._stop_here_if(dry_run)
            owner.rules[rule_id] = changed
            return changed

    def delete_rule(self, rule_id: str, dry_run: bool = False) -> None:
        with self.lock:
            owner, _ = self._rule(rule_id)
            self._stop_here_if(dry_run)
            del owner.rules[rule_id]

    # -- sessions --------------------------------------------------------------------------------------------------

    def create_session(
        self,
        *,
        eni: str,
        target_id: str,
        filter_id: str,
        number: int,
        packet_length: int | None = None,
        vni: int | None = None,
        description: str | None = None,
        dry_run: bool = False,
        token: str | None = None,
        extra: Any = None,
    ) -> Session:
        def make() -> Session:
            self._interface(eni)
            made = Session(
                id=new_id("tms"),
                eni=eni,
                target_id=target_id,
                filter_id=filter_id,
                number=number,
                # EC2 picks an id at random that is unique in the account.
                vni=secrets.randbelow(len(VIRTUAL_NETWORK_IDS)) if vni is None else vni,
                packet_length=packet_length,
                description=description,
                created_at=self._clock(),
            )
            self._check_session(made)
            if any(t.eni == eni for t in self.targets.values()):
                raise Refused(SOURCE_IS_TARGET, f"The network interface {eni} is a traffic mirror target.")
            reason = self._world.unsupported_because(eni)
            if reason:
                raise Refused("NetworkInterfaceNotSupported", f"{eni} cannot be a mirror source: {reason}.")
            on_interface = sum(s.eni == eni for s in self.sessions.values())
            self._room(
                "TrafficMirrorSessionsPerInterfaceLimitExceeded", on_interface, self._limits.sessions_per_interface
            )
            self._room("TrafficMirrorSessionLimitExceeded", len(self.sessions), self._limits.sessions)
            if made.packet_length is None and self.targets[target_id].kind != "network-interface":
                made.packet_length = DEFAULT_PACKET_LENGTH
            return made

        asked = (eni, target_id, filter_id, number, packet_length, vni, description, extra)
        return self._create("session", self.sessions, token, asked, dry_run, make)

    def modify_session(
        self, session_id: str, changes: dict[str, Any], remove: Iterable[str], dry_run: bool = False
    ) -> Session:
        """``changes`` names fields of ``Session``; ``remove`` names the API's RemoveFields."""
        with self.lock:
            session = self._session(session_id)
            _known(remove, SESSION_FIELDS)
            # A removed number goes back to what it is when nobody asks for one.
            defaults = {
                "packet-length": {"packet_length": DEFAULT_PACKET_LENGTH},
                "virtual-network-id": {"vni": secrets.randbelow(len(VIRTUAL_NETWORK_IDS))},
                "description": {"description": None},
            }
            gone = {k: v for name in remove for k, v in defaults[name].items()}
            changed = replace(session, **{**gone, **changes})
            self._check_session(changed)
            self._stop_here_if(dry_run)
            self.sessions[session_id] = changed
            return changed

    def delete_session(self, session_id: str, dry_run: bool = False) -> None:
        with self.lock:
            self._session(session_id)
            self._stop_here_if(dry_run)
            del self.sessions[session_id]

    def interface_deleted(self, eni: str) -> list[str]:
        """Deleting an interface deletes its sessions. Gives their ids."""
        with self.lock:
            gone = [s.id for s in self.sessions.values() if s.eni == eni]
            for session_id in gone:
                del self.sessions[session_id]
            return gone

    def listed(self, kind: dict[str, Made], ids: list[str] | None, code: str) -> list[Made]:
        """All of a kind, or those asked for; an unknown id is an error, as in every EC2 Describe."""
        with self.lock:
            if not ids:
                return list(kind.values())
            for wanted in ids:
                if wanted not in kind:
                    raise Refused(code, f"The id '{wanted}' does not exist.")
            return [kind[wanted] for wanted in ids]

    # -- what all of them share ------------------------------------------------------------------------------------

    def _create(
        self, what: str, kind: dict[str, Made], token: str | None, asked: Any, dry_run: bool, make: Callable[[], Made]
    ) -> Made:
        with self.lock:
            known = self._tokens.get((what, token)) if token else None
            if known:
                first_asked, first_made = known
                if first_asked != asked:
                    raise Refused(
                        "IdempotentParameterMismatch",
                        f"The client token {token} was used before, with other parameters.",
                    )
                # The first answer again, as it stands now; if it was deleted since, as it stood then.
                return kind.get(first_made.id, first_made)
            made = make()
            self._stop_here_if(dry_run)
            kind[made.id] = made
            if token:
                self._tokens[(what, token)] = (asked, made)
            return made

    @staticmethod
    def _stop_here_if(dry_run: bool) -> None:
        if dry_run:
            raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")

    @staticmethod
    def _room(code: str, held: int, limit: int) -> None:
        if held >= limit:
            raise Refused(code, f"The limit of {limit} has been reached.")

    def _interface(self, eni: str) -> None:
        try:
            self._world.unsupported_because(eni)
        except KeyError:
            raise Refused(
                "InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{eni}' does not exist"
            ) from None

    def _target(self, target_id: str) -> Target:
        return _get(self.targets, target_id, "InvalidTrafficMirrorTargetId.NotFound", "traffic mirror target")

    def _filter(self, filter_id: str) -> Filter:
        return _get(self.filters, filter_id, "InvalidTrafficMirrorFilterId.NotFound", "traffic mirror filter")

    def _session(self, session_id: str) -> Session:
        return _get(self.sessions, session_id, "InvalidTrafficMirrorSessionId.NotFound", "traffic mirror session")

    def _rule(self, rule_id: str) -> tuple[Filter, Rule]:
        for owner in self.filters.values():
            if rule_id in owner.rules:
                return owner, owner.rules[rule_id]
        raise Refused(
            "InvalidTrafficMirrorFilterRuleId.NotFound", f"The traffic mirror filter rule ID '{rule_id}' does not exist"
        )

    def _check_session(self, session: Session) -> None:
        target = self._target(session.target_id)
        self._filter(session.filter_id)
        _within("SessionNumber", session.number, SESSION_NUMBERS)
        _within("VirtualNetworkId", session.vni, VIRTUAL_NETWORK_IDS)
        if session.packet_length is not None and target.kind != "network-interface":
            _within("PacketLength", session.packet_length, PACKET_LENGTHS)
        for other in self.sessions.values():
            if other.id != session.id and other.eni == session.eni and other.number == session.number:
                raise Refused(
                    NUMBER_IN_USE,
                    f"The session number {session.number} is already being used by {other.id} on {session.eni}.",
                )

    @staticmethod
    def _check_rule(owner: Filter, rule: Rule) -> None:
        _within("RuleNumber", rule.number, RULE_NUMBERS)
        _one_of("TrafficDirection", rule.direction, DIRECTIONS)
        _one_of("RuleAction", rule.action, ("accept", "reject"))
        families = {_cidr("SourceCidrBlock", rule.source_cidr), _cidr("DestinationCidrBlock", rule.destination_cidr)}
        if len(families) > 1:
            raise Refused(
                "InvalidParameterValue", "SourceCidrBlock and DestinationCidrBlock are of different families."
            )
        if rule.protocol is not None:
            _within("Protocol", rule.protocol, range(256))
        for name, ports in (("SourcePortRange", rule.source_ports), ("DestinationPortRange", rule.destination_ports)):
            if ports is None:
                continue
            if rule.protocol not in (TCP, UDP):
                raise Refused("InvalidParameterCombination", f"{name} needs protocol {TCP} (TCP) or {UDP} (UDP).")
            low, high = ports
            if not 0 <= low <= high <= 65535:
                raise Refused("InvalidParameterValue", f"Value ({low}-{high}) for parameter {name} is invalid.")
        for other in owner.rules.values():
            if other.id != rule.id and (other.direction, other.number) == (rule.direction, rule.number):
                raise Refused(
                    "TrafficMirrorFilterRuleAlreadyExists",
                    f"The {rule.direction} rule number {rule.number} already exists in {owner.id}.",
                )


_RULE_FIELD = {
    "destination-port-range": "destination_ports",
    "source-port-range": "source_ports",
    "protocol": "protocol",
    "description": "description",
}


def _few(ids: list[str]) -> str:
    shown = ", ".join(ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"


def _get(kind: dict[str, Made], wanted: str, code: str, name: str) -> Made:
    if wanted not in kind:
        raise Refused(code, f"The {name} ID '{wanted}' does not exist")
    return kind[wanted]


def _known(names: Iterable[str], fields: tuple[str, ...]) -> None:
    for name in names:
        _one_of("RemoveFields", name, fields)


def _within(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise Refused(
            "InvalidParameterValue",
            f"Value ({value}) for parameter {name} is invalid. It must lie in {allowed.start}-{allowed.stop - 1}.",
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Refused("InvalidParameterValue", f"Value ({value}) for parameter {name} is invalid.")


def _cidr(name: str, text: str) -> int:
    """Checks a block as EC2 does (host bits are refused) and gives its family, 4 or 6."""
    try:
        return ipaddress.ip_network(text).version
    except ValueError:
        raise Refused("InvalidParameterValue", f"Value ({text}) for parameter {name} is invalid.") from None

"""What the DHCP core tells of, as events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Final

from fastboot._core import RESPONDER_COUNTERS, DhcpFacts
from fastboot.config import relay_id_text
from fastboot.model import BootRequest, Event, Node, Plan
from fastboot.services.links import Link

Fact = tuple[str, bytes, int, int, int, int, bytes]
TEXTS: Final = {
    "conflict": "a machine uses this address without a lease: take it out of the pools, or let the machine ask for"
    " one; nobody else gets it for {} s",
    "proxy_arp": "a machine answers for more addresses than one has, so it is not believed any more; is it a "
    "router with proxy ARP?",
}


@dataclass(frozen=True, slots=True)
class About:
    """What an event says of the machine that asked, beside its MAC."""

    stage: str
    architecture: int | None
    loader: str | None
    chain: str | None

    @classmethod
    def of(cls, request: BootRequest, plan: Plan) -> About:
        return cls(request.stage.value, request.architecture, plan.loader, plan.chain or None)

    def details(self) -> dict[str, object]:
        """Return what is known, as an event's details."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def unanswered(address: int, boots: int, reason: int) -> dict[str, object]:
    """Return the details of a request that gets no answer: the counter that says why, and the server, network,
    relay or address that this is about; whether firmware asked that wants to boot."""
    about = {"about": str(IPv4Address(address))} if address else {}
    return {"reason": RESPONDER_COUNTERS[reason], **about, **({"stage": "rom"} if boots else {})}


@dataclass(frozen=True, slots=True)
class DhcpEvents:
    """The events of one step of the service, a batch: each is made when somebody reads it.

    `about` knows the machines by the tags of their plans, `nodes` are those that the core knows by index; an
    address that is found in use is kept from others for `quarantine` seconds.
    """

    facts: DhcpFacts
    time: float
    links: Sequence[Link]
    about: Callable[[int], About | None]
    nodes: Sequence[Node]
    quarantine: int

    def __len__(self) -> int:
        return len(self.facts)

    def kind(self, at: int) -> str:
        return f"dhcp.{self.facts.kind(at)}"

    def kinds(self) -> Mapping[str, int]:
        return {f"dhcp.{kind}": count for kind, count in self.facts.kinds().items()}

    def __getitem__(self, at: int) -> Event:
        fact = self.facts[at]
        kind, mac = fact[0], fact[1].hex(":")
        details = {"interface": self.links[fact[2]].name} | self._details(fact)
        node = self.facts.node(at)
        return Event(self.time, f"dhcp.{kind}", mac, self.nodes[node].name if node >= 0 else None, details)

    def _details(self, fact: Fact) -> dict[str, object]:
        kind, _, _, address, tag, value, text = fact
        details: dict[str, object] = {"address": str(IPv4Address(address))} if address else {}
        if kind == "unanswered":
            return unanswered(address, tag, value)
        if about := self.about(tag):
            details |= about.details()
        if kind == "limit":
            relay = {"relay": details["address"]} if address else {}
            port = {"circuit_id": relay_id_text(text)} if text else {}
            return {"limit": RESPONDER_COUNTERS[value], **relay, **port}
        if kind in ("offer", "ack"):
            details["lease"] = value
        elif kind == "exhausted":
            details["network"] = str(IPv4Address(value))
        elif kind == "decline":
            details["conflict"] = bool(value)
        elif kind in TEXTS:
            details["text"] = TEXTS[kind].format(self.quarantine)
        if text:
            told = "text" if kind in ("nak", "decline") else "hostname"
            details[told] = text.decode("ascii", "backslashreplace")
        return details

"""DHCP: the native responder answers, this module decides for it what it has not met before."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

import structlog

from fastboot import config
from fastboot._core import Responder
from fastboot.model import BootRequest, Event, FastbootError, Lease, Node, Plan, Transfer
from fastboot.services.dhcp_commits import Commits
from fastboot.services.dhcp_conflicts import Conflicts, open_arp
from fastboot.services.dhcp_decisions import Decide, Decisions
from fastboot.services.dhcp_events import DhcpEvents
from fastboot.services.dhcp_import import Sieve, row_of
from fastboot.services.dhcp_network import MAX_ADDRESSES, Network
from fastboot.services.dhcp_plan import EncodedPlan, encode_plan, signs_of
from fastboot.services.dhcp_probe import find_rivals, open_probe, refuse
from fastboot.services.dhcp_watch import OtherServer, Watch
from fastboot.services.links import Link, enlarge, host_addresses, open_udp
from fastboot.state.foreign import ForeignLease
from fastboot.state.rows import LeaseRow
from fastboot.state.store import Store
from fastboot.watch.events import Batch, emit_each

log = structlog.get_logger(component="dhcp")

LeaseTuple = tuple[int, str, bytes, bytes, bytes, float, float, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Sockets:
    """The bound sockets of the service: one for each link, one for frames to clients without an address, and two
    for each Ethernet: to hear other servers, and for ARP. Without CAP_NET_RAW only the first are there."""

    udp: tuple[socket.socket, ...]
    raw: socket.socket | None = None
    probes: tuple[tuple[Link, socket.socket], ...] = ()
    arp: tuple[tuple[Link, socket.socket], ...] = ()

    def close(self) -> None:
        for each in (*self.udp, *([self.raw] if self.raw else []), *(each for _, each in self.probes + self.arp)):
            each.close()


def open_sockets(links: Sequence[Link], *, port: int = 67) -> Sockets:
    """Bind what the service needs. Raises FastbootError where the port is taken or forbidden."""
    with ExitStack() as undo:
        udp = tuple(undo.enter_context(open_udp("dhcp", port, link=link)) for link in links)
        raw: socket.socket | None = None
        probes: list[tuple[Link, socket.socket]] = []
        arp: list[tuple[Link, socket.socket]] = []
        try:
            # Protocol 0: it only sends.
            raw = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0))
            enlarge(raw)
            ethernets = [link for link in links if any(link.mac)]
            probes = [(link, undo.enter_context(open_probe(link))) for link in ethernets]
            arp = [(link, undo.enter_context(open_arp(link))) for link in ethernets]
        except PermissionError:
            log.warning(
                "dhcp.no_raw_socket",
                text="no CAP_NET_RAW: replies to clients without an address are broadcast, and nobody looks for "
                "other DHCP servers or for machines that use an address of a pool",
            )
        undo.pop_all()
    return Sockets(udp, raw, tuple(probes), tuple(arp))


class DhcpService:
    """Serves the links of one server.

    `decide` is asked about every machine or class that is new, or new since a reload; it may return an awaitable.
    `store` is started and closed by its owner. `sockets` stay the caller's, who closes them after `stop`; without
    any (tests) packets come in by `receive` and replies are collected by the responder.
    """

    def __init__(
        self,
        settings: config.Dhcp,
        links: Sequence[Link],
        nodes: Sequence[Node],
        store: Store,
        decide: Decide,
        emit: Callable[[Event], None],
        sockets: Sockets | None = None,
        *,
        emit_all: Callable[[Batch], None] | None = None,
    ) -> None:
        """Raises ConfigError for subnets that no link can serve.

        `emit_all` is given what storms of machines make many of, to read or not; without it, `emit` is given each.
        """
        self._links = tuple(links)
        self._clock = store.clock
        self._emit = emit
        self._emit_all = emit_all or partial(emit_each, emit)
        self._sockets = sockets
        self._responder = Responder(os.urandom(32))
        self._watch = Watch(emit)
        self._conflicts = Conflicts(self._responder, self._links, self.step, self._clock.now)
        self._decisions = Decisions(self._responder, links, decide, self._encode, emit, self.step, self._clock.now)
        self._commits = Commits(self._responder, store, emit, self.step)
        self._flushing: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # once started
        self._configure(settings, nodes)

    # ---- life

    async def start(self) -> None:
        """Load the leases, look for other servers, then serve. Raises FastbootError naming a server found."""
        self._loop = loop = asyncio.get_running_loop()
        if self._commits.load():
            self.doubt()
        if self._sockets is None:
            return
        await self._probe(self._sockets)
        self._watch.start(self._sockets.probes)
        self._conflicts.start(self._sockets.arp)
        self._responder.attach_raw(self._sockets.raw.fileno() if self._sockets.raw else -1)
        for at, each in enumerate(self._sockets.udp):
            self._responder.attach(at, each.fileno())
            loop.add_reader(each, self._readable, at)

    async def stop(self, drain: float = 10.0) -> None:
        """Take no more requests; let commits end and their acknowledgements leave. A second time does nothing."""
        self._watch.stop()
        self._conflicts.stop()
        if self._loop is not None and self._sockets is not None:
            for each in self._sockets.udp:
                if each.fileno() >= 0:
                    self._loop.remove_reader(each)
        await self._decisions.stop()
        self.step()
        # Not bounded by `drain`: a commit ends, well or badly, and a lease on disk whose ACK never left is a lie.
        await self._commits.settle()
        deadline = time.monotonic() + drain
        while self._sockets is not None and self._responder.flush() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # nothing tells when a packet socket has room
        if self._flushing:
            self._flushing.cancel()
        self._responder.attach_raw(-1)
        for at in range(len(self._links)):
            self._responder.attach(at, -1)
        self._sockets = None

    def reload(self, settings: config.Dhcp, nodes: Sequence[Node]) -> None:
        """Take other subnets, pools and nodes; leases stay. Raises ConfigError, and then nothing has changed."""
        self._tell()  # what has happened is of the nodes of before
        self._configure(settings, nodes)

    def forget(self) -> None:
        """Forget every decision: `decide` is asked again, for requests that are being decided too."""
        self._responder.forget()

    # ---- questions

    def leases(self) -> list[Lease]:
        """Return what is bound or declined now."""
        return leases_of(self.lease_tuples())

    def lease_tuples(self) -> list[LeaseTuple]:
        """Return the same as `leases_of` takes it: some thousands cost the loop a few milliseconds."""
        return self._responder.leases(self._clock.now(), time.time())

    def lease_at(self, address: IPv4Address) -> Lease | None:
        """Return who has an address, by a lease or by an offer (a Raspberry Pi boots from its offer)."""
        row = self._responder.lease_at(int(address), self._clock.now(), time.time())
        return None if row is None else _lease(row)

    def mac_of(self, address: IPv4Address) -> str | None:
        """Return the MAC of who has an address."""
        row = self._responder.lease_at(int(address), self._clock.now(), 0.0)
        return None if row is None else row[2].hex(":")

    def node_of(self, mac: str) -> Node | None:
        """Return whose a MAC is, by its port too where it has a lease."""
        at = self._responder.node_of_mac(bytes.fromhex(mac.replace(":", "")))
        return self._nodes[at] if at >= 0 else None

    def release(self, address: IPv4Address) -> bool:
        """Give a leased or declined address back to its pool. Returns whether it was one."""
        released = self._responder.release(int(address), self._clock.now())
        self.step()
        return released

    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]:
        """Take leases that another server gave, in one commit; return how many, and why the others were left out.

        Raises FastbootError where they can not be written; then none is taken.
        """
        here, own = self.lease_tuples(), host_addresses(self._links)

        def choose() -> tuple[list[LeaseRow], list[str]]:
            fit, left_out = Sieve(self._settings, self._nodes, own, leases_of(here)).sift(found)
            return [row_of(lease, self._clock) for lease in fit], left_out

        # Thousands take longer than the loop may be busy.
        rows, left_out = await asyncio.to_thread(choose)
        taken = await self._commits.adopt(rows)
        left_out += (f"{IPv4Address(address)}: it is being given to another machine" for address in taken)
        count = len(rows) - len(taken)
        self._emit(Event(time.time(), "dhcp.imported", details={"leases": count, "left_out": len(left_out)}))
        return count, left_out

    def counters(self) -> Mapping[str, int]:
        """Return how often everything happened; every silence has a name."""
        return {
            **self._responder.counters(),
            **self._decisions.counts,
            **self._watch.counters(),
            **self._conflicts.counters(),
        }

    def doubt(self, addresses: Iterable[IPv4Address] | None = None) -> int:
        """Take it that somebody may use these free addresses, None for all, as after a damaged store.

        No stranger gets one before nobody answers for it by ARP or, where that can not be asked, before ten
        minutes have passed and no other address is left. A machine that renews one has it. Returns how many there
        are.
        """
        listed = None if addresses is None else [int(address) for address in addresses]
        count = self._responder.doubt(listed, self._clock.now())
        self._conflicts.soon()
        return count

    def other_servers(self) -> list[OtherServer]:
        """Return the DHCP servers that are at work beside this one and not listed in `known_servers`."""
        return self._watch.present()

    def transfers(self) -> Sequence[Transfer]:
        return ()

    # ---- packets

    def _readable(self, link: int) -> None:
        self._responder.readable(link, self._clock.now())
        self.step()

    def step(self) -> None:
        """Bring everything forward that the responder waits with: decisions, commits, replies, events."""
        self._decisions.ask()
        self._commits.submit()
        if self._loop and self._sockets and self._responder.flush() and self._flushing is None:
            # A full socket buffer: a millisecond of a 1 Gb/s link takes 125 KB out of it.
            self._flushing = self._loop.call_later(0.001, self._flush)
        if self._responder.vacant:
            self._conflicts.soon()
        self._tell()

    def _flush(self) -> None:
        self._flushing = None
        self.step()

    # ---- plans

    def _encode(self, request: BootRequest, plan: Plan, tag: int) -> EncodedPlan:
        subnet, own = self._network.place(request.network, request.interface, plan.address)
        server = request.server if request.relay or own is None else own
        return encode_plan(plan, subnet, server, request.node, tag)

    # ---- events

    def _tell(self) -> None:
        facts = self._responder.events()
        for _, mac, link, _, _, server, _ in facts.take("other_server"):
            self._watch.named(self._links[link].name, IPv4Address(server), mac.hex(":"))
        if facts:
            about, nodes, quarantine = self._decisions.about, self._nodes, self._settings.quarantine
            self._emit_all(DhcpEvents(facts, time.time(), self._links, about, nodes, quarantine))

    # ---- configuration

    def _configure(self, settings: config.Dhcp, nodes: Sequence[Node]) -> None:
        own = host_addresses(self._links)
        network = Network(settings, self._links, nodes, frozenset(own))
        responder = self._responder
        responder.distinguish(*signs_of(settings))
        responder.configure(network.links, network.subnets, network.nodes, network.own, not settings.known_servers)
        responder.bootp, responder.snooping = settings.bootp, settings.snooping
        responder.max_per_port, responder.max_offers = settings.limits.per_port, settings.limits.offers
        responder.max_leases = settings.limits.leases or MAX_ADDRESSES
        responder.quarantine = settings.quarantine
        self._decisions.configure([subnet.network for subnet in settings.subnets], tuple(nodes))
        self._conflicts.configure(settings.arp_probes)
        self._watch.configure(settings.probe_every, own | set(settings.known_servers))
        self._settings, self._network, self._nodes = settings, network, tuple(nodes)

    async def _probe(self, sockets: Sockets) -> None:
        if not self._settings.probe or not sockets.probes:
            return
        try:
            rivals = await find_rivals(sockets.probes, self._settings.known_servers, self._settings.probe)
        except OSError as error:
            raise FastbootError(f"dhcp: can not look for other DHCP servers: {error.strerror}") from error
        if rivals:
            raise refuse(rivals)


def leases_of(tuples: Iterable[LeaseTuple]) -> list[Lease]:
    """Return leases of what `DhcpService.lease_tuples` gave, in any thread."""
    return [_lease(row) for row in tuples]


def _lease(row: LeaseTuple) -> Lease:
    address, state, mac, client_id, host, starts, expires, relay, circuit_id, remote_id = row
    return Lease(
        IPv4Address(address), mac.hex(":"), state, starts, expires,  # type: ignore[arg-type]
        host.decode("ascii", "backslashreplace"), client_id,
        IPv4Address(relay) if relay else None, circuit_id, remote_id,
    )  # fmt: skip

"""DHCP beside another server that gives the addresses: machines are told their boot file only (PXE 2.1, 2.2.3)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final
from urllib.parse import urlsplit

import structlog

from fastboot import config
from fastboot._core import Proxy
from fastboot.boot.elsewhere import advice
from fastboot.model import BootRequest, Event, FastbootError, Node, Plan, Transfer
from fastboot.services.dhcp import LeaseTuple
from fastboot.services.dhcp_decisions import SILENT, Decide, Decisions
from fastboot.services.dhcp_events import unanswered
from fastboot.services.dhcp_network import Network, SubnetTuple
from fastboot.services.dhcp_plan import EncodedPlan, encode_proxy_plan, signs_of
from fastboot.services.dhcp_probe import find_rivals, open_probe
from fastboot.services.dhcp_watch import OtherServer
from fastboot.services.links import Link, host_addresses, open_udp
from fastboot.services.neighbours import Neighbours, open_neighbours
from fastboot.state.foreign import ForeignLease

log = structlog.get_logger(component="dhcp")

BOOT_SERVER_PORT: Final = 4011
ANYWHERE: Final = IPv4Network("0.0.0.0/0")
"""The network of a relay that no subnet of the configuration holds: what is behind it is not ours to know."""
SAME_HOST: Final = (
    "in mode proxy the other DHCP server must be on another host. One on this host can name the boot files by"
    " itself: fastboot boot-options prints its settings; then leave out [dhcp]"
)


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of the service, for each link: of port 67, of port 4011, and where CAP_NET_RAW allows it one to
    look for the other server with; and one to ask the kernel for neighbours."""

    dhcp: tuple[socket.socket, ...]
    boot: tuple[socket.socket, ...]
    neighbours: socket.socket
    probes: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        for each in (*self.dhcp, *self.boot, *self.probes, self.neighbours):
            each.close()


def open_sockets(links: Sequence[Link]) -> Sockets:
    """Bind what the service needs. Raises FastbootError where a port is taken or forbidden."""
    with ExitStack() as undo:
        doors = [
            tuple(undo.enter_context(open_udp("dhcp", port, link=link, taken=SAME_HOST)) for link in links)
            for port in (67, BOOT_SERVER_PORT)
        ]
        neighbours = undo.enter_context(open_neighbours())
        probes: list[socket.socket] = []
        try:
            probes = [undo.enter_context(open_probe(link)) for link in links if any(link.mac)]
        except PermissionError:
            log.warning("dhcp.no_raw_socket", text="no CAP_NET_RAW: nobody looks for the other DHCP server")
        undo.pop_all()
    return Sockets(doors[0], doors[1], neighbours, tuple(probes))


class ProxyService:
    """Tells the PXE and HTTP clients of our links what to boot, and nobody anything else.

    `decide` is asked about every machine or class that is new, or new since a reload; it may return an awaitable.
    `fetched_here` says whether machines fetch their files from this process, so that one that never does is worth
    telling of. `sockets` stay the caller's, who closes them after `stop`; without any (tests) packets come in by
    `receive` and replies are collected by the proxy.
    """

    def __init__(
        self,
        settings: config.Dhcp,
        links: Sequence[Link],
        nodes: Sequence[Node],
        decide: Decide,
        emit: Callable[[Event], None],
        sockets: Sockets | None = None,
        *,
        fetched_here: bool = True,
    ) -> None:
        self._links = tuple(links)
        self._doors = self._links * 2  # those of port 67, then those of port 4011
        self._emit = emit
        self._sockets = sockets
        self._fetched_here = fetched_here
        self._proxy = Proxy(os.urandom(32))
        self._decisions = Decisions(self._proxy, self._doors, decide, self._encode, emit, self.step)
        self._neighbours = Neighbours(self._links, sockets.neighbours) if sockets else None
        self._counts = {"no_loader": 0}
        self._elsewhere: set[int] = set()
        self._servers: set[str] = set()
        self._flushing: asyncio.TimerHandle | None = None
        self._search: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # once started
        self.reload(settings, nodes)

    # ---- life

    async def start(self) -> None:
        """Serve, and look for the server that gives the addresses meanwhile."""
        self._loop = loop = asyncio.get_running_loop()
        if self._sockets is None:
            return
        for at, each in enumerate((*self._sockets.dhcp, *self._sockets.boot)):
            self._proxy.attach(at, each.fileno())
            loop.add_reader(each, self._readable, at)
        if self._settings.probe and self._sockets.probes:
            self._search = loop.create_task(self._look(self._sockets.probes))

    async def stop(self, drain: float = 0) -> None:
        """Take no more requests; what is answered leaves at once or never. A second time does nothing."""
        if self._search:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        if self._loop is not None and self._sockets is not None:
            for each in (*self._sockets.dhcp, *self._sockets.boot):
                if each.fileno() >= 0:
                    self._loop.remove_reader(each)
        await self._decisions.stop()
        self.step()
        if self._flushing:
            self._flushing.cancel()
        for at in range(len(self._doors)):
            self._proxy.attach(at, -1)
        self._sockets = self._neighbours = None

    def reload(self, settings: config.Dhcp, nodes: Sequence[Node]) -> None:
        """Take other subnets and nodes; who is who on the wire is kept."""
        subnets = list(settings.served())
        for own in (each for link in self._links for each in link.addresses):
            if not any(own.ip in subnet.network for subnet in subnets):
                subnets.append(config.Subnet.model_construct(network=own.network))
        here = settings.model_copy(update={"subnets": tuple(subnets)})
        network = Network(here, self._doors, nodes, frozenset(host_addresses(self._links)))
        anywhere: SubnetTuple = (int(ANYWHERE.network_address), int(ANYWHERE.netmask), 0, [], len(subnets), False)
        self._proxy.distinguish(*signs_of(settings))
        self._proxy.configure(network.links, [*network.subnets, anywhere], network.nodes, network.own, False)
        self._proxy.snooping = settings.snooping
        self._decisions.configure([*(subnet.network for subnet in subnets), ANYWHERE], tuple(nodes))
        self._settings, self._subnets, self._nodes = settings, settings.served(), tuple(nodes)

    def forget(self) -> None:
        """Forget every decision: `decide` is asked again, for requests that are being decided too."""
        self._proxy.forget()

    # ---- questions

    def lease_tuples(self) -> list[LeaseTuple]:
        """Return nothing: addresses are the other server's."""
        return []

    def release(self, address: IPv4Address) -> bool:
        return False

    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]:
        raise FastbootError("this server gives no addresses: another one does")

    def other_servers(self) -> list[OtherServer]:
        """Return nothing: another server is meant to be here."""
        return []

    def mac_of(self, address: IPv4Address) -> str | None:
        """Return the MAC of who asks for a file from an address: as it was seen to take the address from the
        other server, else as the kernel knows its neighbour. It heeds our offers, then."""
        mac = self._proxy.mac_of(int(address))
        if mac is None and self._neighbours:
            mac = self._neighbours.mac_of(address)
        if mac is None:
            return None
        self._proxy.heeded(mac)
        return mac.hex(":")

    def node_of(self, mac: str) -> Node | None:
        """Return whose a MAC is, by its port too where it was heard from there."""
        at = self._proxy.node_of_mac(bytes.fromhex(mac.replace(":", "")))
        return self._nodes[at] if at >= 0 else None

    def counters(self) -> Mapping[str, int]:
        """Return how often everything happened; every silence has a name."""
        return {**self._proxy.counters(), **self._decisions.counts, **self._counts}

    def transfers(self) -> Sequence[Transfer]:
        return ()

    # ---- packets

    def _readable(self, door: int) -> None:
        self._proxy.readable(door, time.monotonic_ns())
        self.step()

    def step(self) -> None:
        """Bring everything forward that the proxy waits with: decisions, replies, events."""
        self._decisions.ask()
        if self._loop and self._sockets and self._proxy.flush() and self._flushing is None:
            # A full socket buffer: a millisecond of a 1 Gb/s link takes 125 KB out of it.
            self._flushing = self._loop.call_later(0.001, self._flush)
        self._tell()

    def _flush(self) -> None:
        self._flushing = None
        self.step()

    def _encode(self, request: BootRequest, plan: Plan, tag: int) -> EncodedPlan | None:
        subnet = next((each for each in self._subnets if each.network == request.network), None)
        encoded = encode_proxy_plan(plan, subnet, request.server, request.vendor_class, tag)
        host = urlsplit(plan.loader).hostname if plan.loader and "://" in plan.loader else None
        elsewhere = plan.next_server or (subnet and subnet.next_server) or host not in (None, str(request.server))
        (self._elsewhere.add if elsewhere else self._elsewhere.discard)(tag)
        self._counts["no_loader"] += encoded is SILENT
        return encoded

    # ---- events

    def _tell(self) -> None:
        for kind, mac, door, address, tag, value, _ in self._proxy.events():
            link = self._doors[door]
            details: dict[str, object] = {"interface": link.name}
            if kind == "unanswered":
                details |= unanswered(address, tag, value)
            elif address:
                details["address"] = str(IPv4Address(address))
            if kind in ("offer", "ack", "offers_ignored") and (about := self._decisions.about(tag)):
                details |= about.details()
            if kind in ("request", "offers_ignored") and value:
                details["server"] = str(IPv4Address(value))
            if kind == "server_seen":
                self._seen(link, str(IPv4Address(value)), {"client": mac.hex(":")})
                continue
            if kind == "offers_ignored":
                if not self._fetched_here or tag in self._elsewhere:
                    continue
                details |= self._advice(link, details)
            self._emit(Event(time.time(), f"dhcp.{kind}", mac.hex(":"), details=details))

    def _seen(self, link: Link, server: str, details: Mapping[str, object], mac: str | None = None) -> None:
        """Tell of a server that gives addresses, once."""
        if server not in self._servers:
            self._servers.add(server)
            details = {"interface": link.name, "server": server, **details}
            self._emit(Event(time.time(), "dhcp.server_seen", mac, details=details))

    def _advice(self, link: Link, details: Mapping[str, object]) -> dict[str, object]:
        ours = link.server_for(IPv4Address(str(details.get("address") or link.addresses[0].ip)))
        servers = ", ".join(sorted(self._servers))
        if "address" in details:
            text = (
                f"took {details['address']} from {details['server']} and asked for no boot file: its firmware"
                f" ignores offers of a proxy, or {details['server']} names a boot file itself"
            )
        elif servers:
            text = (
                f"asks again and again though it is offered a boot file: its firmware ignores offers of a proxy,"
                f" or {servers} offers it no address"
            )
        else:
            return {
                "text": "asks again and again though it is offered a boot file: no DHCP server was seen that would"
                " give it an address"
            }
        loader, architecture = details.get("loader"), details.get("architecture")
        if not isinstance(loader, str) or not isinstance(architecture, int):
            return {"text": text}
        text += ". For such firmware the server that gives the addresses must name the boot file: settings below"
        if details["stage"] == "ipxe":
            return {"text": text, **advice(ours, {}, loader)}
        return {"text": text, **advice(ours, {architecture: loader})}

    async def _look(self, probes: Sequence[socket.socket]) -> None:
        """Tell whether there is a server that gives addresses: without one nothing boots here."""
        links = [link for link in self._links if any(link.mac)]
        await asyncio.gather(*(self._look_at(*each) for each in zip(links, probes, strict=True)))
        for each in probes:
            each.close()

    async def _look_at(self, link: Link, probe: socket.socket) -> None:
        try:
            found = await find_rivals([(link, probe)], (), self._settings.probe)
        except OSError as error:
            log.warning("dhcp.search_failed", text=f"can not look for the other server: {error.strerror}")
            return
        for server in found:
            self._seen(link, str(server.address), {}, server.mac)
        if not found:
            text = (
                f"no DHCP server answers on {link.name}, and mode proxy gives no addresses: machines there boot"
                ' when one does; to give addresses from here, write mode = "server" under [dhcp]'
            )
            self._emit(Event(time.time(), "dhcp.no_server", details={"interface": link.name, "text": text}))

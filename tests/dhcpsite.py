"""The DHCP service on real sockets in namespaces of its own, and stations that hear and send everything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import uvloop
from dhcpkit import DISCOVER, OFFER, REQUEST, Namespace, Wire, asking, message, need, number, wires

from fastboot import config
from fastboot._core import DhcpMessage, emit_dhcp, parse_dhcp, udp_packet
from fastboot.model import Event, Node, Plan
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.services.dhcp_decisions import Decide
from fastboot.services.links import Link
from fastboot.state.store import Store

ONE = config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.250",))
A, B = "52:54:00:aa:00:01", "52:54:00:aa:00:02"
ETH_P_ALL, ETH_P_IP = 3, 0x0800


@dataclass(frozen=True)
class Frame:
    """A DHCP reply as it came over the wire."""

    to_mac: str
    from_mac: str
    source: str
    destination: str
    source_port: int
    port: int
    message: DhcpMessage
    payload: bytes


class Station:
    """A client made of one packet socket: it hears every frame and can send any."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.inside():
            self.socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL)
            )
            self.socket.bind(("c0", ETH_P_ALL))
        self.mac = self.socket.getsockname()[4]

    def send(
        self, payload: bytes, source: str = "0.0.0.0", to: str = "255.255.255.255", mac: bytes = b"\xff" * 6
    ) -> None:
        packet = udp_packet(number(source), 68, number(to), 67, payload)
        self.socket.send(mac + self.mac + b"\x08\x00" + packet)

    async def hear(self, seconds: float = 5.0) -> Frame:
        """Return the next DHCP reply. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while True:
                frame = await loop.sock_recv(self.socket, 4096)
                if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] in (b"\0\x44", b"\0\x43"):
                    payload = frame[42 : 14 + int.from_bytes(frame[16:18])]
                    found = parse_dhcp(payload)
                    if isinstance(found, DhcpMessage) and found.op == 2:
                        return Frame(
                            frame[:6].hex(":"), frame[6:12].hex(":"), str(IPv4Address(frame[26:30])),
                            str(IPv4Address(frame[30:34])), int.from_bytes(frame[34:36]),
                            int.from_bytes(frame[36:38]), found, payload,
                        )  # fmt: skip

    async def ask(self, payload: bytes, **more: str) -> Frame:
        self.send(payload, **more)  # type: ignore[arg-type]
        return await self.hear()

    def close(self) -> None:
        self.socket.close()


@dataclass
class Site:
    service: DhcpService
    store: Store
    wire: Wire
    links: tuple[Link, ...]
    stations: list[Station]
    events: list[Event] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def site(
    state: Path,
    *addresses: tuple[str, ...],
    settings: config.Dhcp | None = None,
    nodes: tuple[Node, ...] = (),
    decide: Decide = lambda request: Plan(loader="pxelinux.0"),
    raw: bool = True,
    network: AbstractContextManager[Wire] | None = None,
) -> AsyncIterator[Site]:
    need("ip")
    events: list[Event] = []
    with network or wires(*(addresses or (("10.77.0.1/24",),))) as wire:
        links = wire.links()
        stations = [Station(client) for client in wire.clients]
        with wire.server.inside():
            sockets = open_sockets(links)
            if not raw and sockets.raw:
                sockets.raw.close()
                sockets = replace(sockets, raw=None)
            store = Store(state)
            service = DhcpService(
                settings or config.Dhcp(subnets=(ONE,), probe=0),
                links,
                nodes,
                store,
                decide,
                events.append,
                sockets,
            )
        store.start()
        try:
            await service.start()
            yield Site(service, store, wire, links, stations, events)
        finally:
            await service.stop()
            await service.stop()
            sockets.close()
            await asyncio.to_thread(store.close)
            for station in stations:
                station.close()


async def lease(station: Station, mac: str, xid: int = 1) -> Frame:
    offer = await station.ask(message(DISCOVER, mac, xid=xid))
    server = str(IPv4Address(offer.message.options[54]))
    return await station.ask(
        message(REQUEST, mac, xid=xid, options=asking(str(IPv4Address(offer.message.yiaddr)), server))
    )


Loop = Callable[[], asyncio.AbstractEventLoop]
# Both event loops: libuv looks no more at a descriptor that had an error.
on_every_loop = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def run_on(loop: Loop, test: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test)


def offer_by(server: str, type_: int = OFFER, *, giaddr: str = "0.0.0.0") -> bytes:
    """Return what another server tells a client of its own, as an IP packet."""
    request = message(DISCOVER, B, giaddr=giaddr)
    answer = emit_dhcp(request, type=type_, server=number(server), yiaddr=number("10.77.0.66"))
    return udp_packet(number(server), 67, number("255.255.255.255"), 68, answer)


@asynccontextmanager
async def dnsmasq(client: Namespace, directory: Path) -> AsyncIterator[None]:
    need("dnsmasq")
    client.ip("address", "add", "10.77.0.2/24", "dev", "c0")
    process = await asyncio.create_subprocess_exec(
        *client.command(
            "dnsmasq", "-k", "--port=0", "--conf-file=/dev/null", "--interface=c0", "--bind-interfaces",
            "--user=root",
            "--dhcp-range=10.77.0.50,10.77.0.60,1h", f"--dhcp-leasefile={directory / 'dnsmasq.leases'}",
            f"--pid-file={directory / 'dnsmasq.pid'}", "--log-facility=-", "--log-dhcp",
        ),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(10):
            while b"DHCP, IP range" not in await process.stderr.readline():
                pass
            await asyncio.sleep(0.1)  # it opens its socket before it says so, its packet filter after
        yield
    finally:
        process.kill()
        await process.communicate()

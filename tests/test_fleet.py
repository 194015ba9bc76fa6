"""The simulated machines: what they count is what happened, on a link and behind a relay."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from fastboot import config
from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.lab._fleet import DhcpClients
from fastboot.lab._sinks import dhcp_sink
from fastboot.lab.fleet import BIOS, FIRST_MAC, UEFI, Fleet, Kind
from fastboot.model import Plan
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.state.store import Store
from tests.dhcpkit import ACK, DISCOVER, NAK, OFFER, REQUEST, Wire, need, wires

SERVER, RELAY = "10.77.0.1", "10.77.0.2"


@pytest.fixture
def wire() -> Iterator[Wire]:
    need("ip")
    with wires((f"{SERVER}/16",)) as made:
        made.clients[0].ip("address", "add", f"{RELAY}/16", "dev", "c0")
        yield made


@contextmanager
def fleet_on(wire: Wire, way: str, kind: Kind = BIOS) -> Iterator[Fleet]:
    with wire.clients[0].inside():
        fleet = (
            Fleet.on_link("c0", kind)
            if way == "link"
            else Fleet.behind_relay(IPv4Address(RELAY), IPv4Address(SERVER), kind)
        )
    with fleet:
        yield fleet


@asynccontextmanager
async def serving(wire: Wire, state: Path, **settings: object) -> AsyncIterator[DhcpService]:
    subnet = config.Subnet(network="10.77.0.0/16", pools=("10.77.1.0-10.77.4.255",))
    with wire.server.inside():
        links = wire.links()
        sockets = open_sockets(links)
        service = DhcpService(
            config.Dhcp(subnets=(subnet,), probe=0), links, (), store := Store(state),
            lambda request: Plan(loader="pxelinux.0"), lambda event: None, sockets,
        )  # fmt: skip
    store.start()
    try:
        await service.start()
        yield service
    finally:
        await service.stop()
        sockets.close()
        await asyncio.to_thread(store.close)


@pytest.mark.parametrize(("way", "kind"), [("link", BIOS), ("link", UEFI), ("relay", BIOS)])
async def test_every_machine_is_bound_once(wire: Wire, tmp_path: Path, way: str, kind: Kind) -> None:
    async with serving(wire, tmp_path) as service:
        with fleet_on(wire, way, kind) as fleet:
            many = await asyncio.to_thread(fleet.run, 300, outstanding=50, patience=10)
            paced = await asyncio.to_thread(fleet.run, 100, rate=1000, patience=10)
        for outcome, count in ((many, 300), (paced, 100)):
            assert (outcome.begun, outcome.bound, outcome.lost, outcome.refused) == (count, count, 0, 0)
            assert (outcome.twice, outcome.strange, outcome.unsent, outcome.dropped) == (0, 0, 0, 0)
            assert len(outcome.latencies) == count and outcome.loss == 0
            assert 0 < outcome.quantile(0) <= outcome.quantile(0.5) <= outcome.quantile(1) < 10
        assert 0.095 < paced.seconds < 5
        leases = service.leases()
        assert {lease.mac for lease in leases} == {
            (FIRST_MAC + number).to_bytes(6).hex(":") for number in range(400)
        }
        counters = service.counters()
        assert (counters["discover"], counters["request"], counters["ack"]) == (400, 400, 400)


class Scripted:
    """A server that answers as a function of the request says: type and address, or silence."""

    def __init__(self, wire: Wire, answer: Callable[[bytes], tuple[int, str] | None]) -> None:
        with wire.server.inside():
            self.port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.port.bind((SERVER, 67))
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        while data := self.port.recv(2048):
            if told := self.answer(data):
                type_, address = told
                options = bytes((53, 1, type_, 54, 4)) + IPv4Address(SERVER).packed + b"\xff"
                reply = b"\x02" + data[1:16] + IPv4Address(address).packed + data[20:240] + options
                self.port.sendto(reply, (RELAY, 67))

    def __enter__(self) -> Scripted:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.port.sendto(b"", (SERVER, 67))
        self.thread.join(5)
        self.port.close()


def test_lost_refused_and_strange_are_told_apart(wire: Wire) -> None:
    def answer(data: bytes) -> tuple[int, str] | None:
        type_, number = data[242], int.from_bytes(data[28:34]) - FIRST_MAC
        if number == 0:  # two machines with one address
            return (OFFER if type_ == DISCOVER else ACK), "10.77.1.1"
        if number == 1:
            return (OFFER if type_ == DISCOVER else NAK), "10.77.1.2"
        if number == 2:
            return (OFFER, "10.77.1.3") if type_ == DISCOVER else None
        if number == 3:
            return None
        if number == 4:  # an ACK for another address than the one offered
            return (OFFER, "10.77.1.4") if type_ == DISCOVER else (ACK, "10.77.1.5")
        return (OFFER if type_ == DISCOVER else ACK), "10.77.1.1"

    with Scripted(wire, answer), fleet_on(wire, "relay") as fleet:
        outcome = fleet.run(6, outstanding=6, patience=0.3)
    assert (outcome.begun, outcome.bound, outcome.refused, outcome.lost) == (6, 2, 1, 3)
    assert (outcome.twice, outcome.strange) == (1, 1)
    assert outcome.loss == pytest.approx(4 / 6)


def test_a_request_names_the_address_and_the_server_offered(wire: Wire) -> None:
    seen: list[bytes] = []

    def answer(data: bytes) -> tuple[int, str]:
        seen.append(data)
        return (OFFER if data[242] == DISCOVER else ACK), "10.77.1.1"

    with Scripted(wire, answer), fleet_on(wire, "relay") as fleet:
        assert fleet.run(1, outstanding=1, patience=1).bound == 1
    discover, request = (parse_dhcp(data) for data in seen)
    assert isinstance(discover, DhcpMessage) and isinstance(request, DhcpMessage)
    assert (discover.type, request.type) == (DISCOVER, REQUEST)
    assert request.options[50] == IPv4Address("10.77.1.1").packed
    assert request.options[54] == IPv4Address(SERVER).packed
    assert request.giaddr == int(IPv4Address(RELAY))
    assert request.xid == discover.xid


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_wait_at_once_than_allowed(wire: Wire, at_once: int) -> None:
    with fleet_on(wire, "relay") as fleet:
        outcome = fleet.run(1000, outstanding=at_once, seconds=0.25, patience=0.1)
    assert outcome.begun == outcome.lost == 3 * at_once
    assert outcome.quantile(0.5) == float("inf")


def test_the_sink_answers_both_ways(wire: Wire) -> None:
    for way in ("relay", "link"):
        with wire.server.inside():
            if way == "link":
                port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
                port.bind(("s0", 0x0800))
            else:
                port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                port.bind((SERVER, 67))
        server = int(IPv4Address(SERVER))
        sink = threading.Thread(
            target=dhcp_sink,
            args=(port.fileno(),),
            kwargs={"frames": way == "link", "server": server, "seconds": 1},
        )
        with port, fleet_on(wire, way) as fleet:
            sink.start()
            outcome = fleet.run(2000, outstanding=64, patience=0.5)
            sink.join()
        assert (outcome.bound, outcome.twice, outcome.strange) == (2000, 0, 0)


def test_templates_are_whole_messages() -> None:
    discover, request = BIOS.message(DISCOVER), BIOS.message(REQUEST, (50, bytes(4)), (54, bytes(4)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        with pytest.raises(ValueError, match="whole DHCP message"):
            DhcpClients(port.fileno(), discover[:200], request, frames=False)
        with pytest.raises(ValueError, match="50 and 54"):
            DhcpClients(port.fileno(), discover, discover, frames=False)
        clients = DhcpClients(port.fileno(), discover, request, frames=False)
        with pytest.raises(ValueError, match="at a rate"):
            clients.run(FIRST_MAC, 1)
        with pytest.raises(ValueError, match="already"):
            clients.__init__(port.fileno(), discover, request, frames=False)  # type: ignore[misc]
    assert struct.unpack("!H", UEFI.message(DISCOVER)[10:12])[0] == 0x8000
    assert len(discover) >= 300

"""The DHCP service on real sockets, in namespaces of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest
from dhcpkit import ACK, DISCOVER, NAK, OFFER, REQUEST, asking, message, need, number, wires
from dhcpsite import ONE, A, B, Station, lease, site

from fastboot import config
from fastboot.model import IGNORE, BootRequest, ConfigError, FastbootError, Node, Plan, Scope, Verdict
from fastboot.services import dhcp_commits
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.state.foreign import ForeignLease
from fastboot.state.store import FILE, Store

TWO = config.Subnet(network="10.78.0.0/24", pools=("10.78.0.100-10.78.0.250",))


async def test_replies_go_where_they_belong(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        (station,) = here.stations
        own = here.links[0].mac.hex(":")
        offer = await station.ask(message(DISCOVER, A))
        assert (offer.to_mac, offer.from_mac) == (A, own), "a frame to the client, which answers no ARP yet"
        assert (offer.source, offer.destination, offer.source_port, offer.port) == (
            "10.77.0.1",
            "10.77.0.100",
            67,
            68,
        )
        offer = await station.ask(message(DISCOVER, A, flags=0x8000))
        assert (offer.to_mac, offer.destination, offer.source) == (
            "ff:ff:ff:ff:ff:ff",
            "255.255.255.255",
            "10.77.0.1",
        )
        ack = await lease(station, A)
        assert (ack.message.type, ack.to_mac) == (ACK, A)
        nak = await station.ask(message(REQUEST, A, options=asking("10.77.0.200")))
        assert (nak.message.type, nak.to_mac) == (NAK, "ff:ff:ff:ff:ff:ff")
        client = here.wire.clients[0]
        client.ip("address", "add", "10.77.0.100/24", "dev", "c0")
        renewed = await station.ask(
            message(REQUEST, A, ciaddr="10.77.0.100"), source="10.77.0.100", to="10.77.0.1", mac=here.links[0].mac
        )
        assert (renewed.message.type, renewed.destination, renewed.source) == (ACK, "10.77.0.100", "10.77.0.1")
        assert renewed.to_mac == station.mac.hex(":"), "an ordinary datagram, by ARP"


async def test_without_raw_frames_replies_are_broadcast(tmp_path: Path) -> None:
    async with site(tmp_path, raw=False) as here:
        offer = await here.stations[0].ask(message(DISCOVER, A))
        assert (offer.to_mac, offer.destination) == ("ff:ff:ff:ff:ff:ff", "255.255.255.255")


async def test_two_interfaces_and_an_alias(tmp_path: Path) -> None:
    settings = config.Dhcp(subnets=(ONE, TWO), probe=0)
    node = Node("n", (B,), IPv4Address("10.78.0.7"))
    async with site(
        tmp_path, ("10.77.0.1/24", "10.78.0.1/24"), ("10.78.0.2/25",), settings=settings, nodes=(node,)
    ) as here:
        first, second = here.stations
        ack = await lease(first, A)
        assert (ack.source, str(IPv4Address(ack.message.yiaddr))) == ("10.77.0.1", "10.77.0.100")
        ack = await lease(first, B)
        assert (ack.source, str(IPv4Address(ack.message.yiaddr))) == ("10.78.0.1", "10.78.0.7")
        assert ack.message.options[54] == IPv4Address("10.78.0.1").packed
        ack = await lease(second, A)
        assert (ack.source, ack.from_mac) == ("10.78.0.2", here.links[1].mac.hex(":"))
        assert ack.message.siaddr == number("10.78.0.2")
        broadcast = await second.ask(message(DISCOVER, A, flags=0x8000))
        assert broadcast.source == "10.78.0.2"
        with pytest.raises(TimeoutError):
            await first.hear(0.1)


async def test_decisions_may_take_their_time(tmp_path: Path) -> None:
    gate = asyncio.Event()
    seen: list[BootRequest] = []

    async def decide(request: BootRequest) -> Verdict:
        seen.append(request)
        await gate.wait()
        return Plan(loader="slow", scope=Scope.ONCE)

    async with site(tmp_path, decide=decide) as here:
        (station,) = here.stations
        for xid in (1, 2):
            station.send(message(DISCOVER, A, xid=xid, options=((93, b"\0\7"), (60, b"PXEClient:Arch:00007"))))
        while not seen:
            await asyncio.sleep(0.001)
        gate.set()
        offer = await station.hear()
        assert offer.message.xid == 2
        (request,) = seen
        assert (request.mac, request.interface, request.architecture) == (A, "s0", 7)
        assert (str(request.network), str(request.server), request.stage) == ("10.77.0.0/24", "10.77.0.1", "rom")


async def test_what_decide_raises_is_a_named_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def later() -> Verdict:
        raise KeyError("later")

    answers: list[Verdict | Awaitable[Verdict] | Exception] = [
        RuntimeError("broken"), RuntimeError("again"), later(), None, Plan(options=((54, b"x"),)), IGNORE,
        cast(Verdict, "pxelinux.0"), Plan(),
    ]  # fmt: skip

    def decide(request: BootRequest) -> Verdict | Awaitable[Verdict]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with site(tmp_path, decide=decide) as here:
        (station,) = here.stations
        for at in range(len(answers) - 1):
            station.send(message(DISCOVER, f"52:54:00:00:00:{at:02x}", options=((60, bytes([at + 1])),)))
        offer = await station.ask(message(DISCOVER, B))
        assert offer.message.type == OFFER
        counters = here.service.counters()
        assert counters["decide_failed"] == 5
        assert counters["undecided"] == 1
        assert counters["ignored"] == 1
        assert capsys.readouterr().out.count("dhcp.decide_failed") == 4, "once for each kind"


async def test_a_disk_that_is_full_stops_acknowledgements_and_nothing_else(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        (station,) = here.stations
        await lease(station, A)
        pages = here.store._writer.execute("PRAGMA page_count").fetchone()[0]
        here.store._writer.execute(f"PRAGMA max_page_count={pages}")
        here.store._writer.execute(
            "CREATE TRIGGER full BEFORE INSERT ON lease BEGIN SELECT raise(FAIL, 'disk full'); END"
        )
        offer = await station.ask(message(DISCOVER, B, xid=5))
        asked = message(REQUEST, B, xid=5, options=asking(str(IPv4Address(offer.message.yiaddr)), "10.77.0.1"))
        station.send(asked)
        while "dhcp.commit_failed" not in here.kinds():
            await asyncio.sleep(0.001)
        again = await station.ask(message(DISCOVER, A, xid=6))
        assert (again.message.type, again.message.xid) == (OFFER, 6), "offers go on, and no ACK came before"
        assert [each.mac for each in here.service.leases()] == [A]
        assert here.service.counters()["commit_failed"] == 1
        here.store._writer.execute("DROP TRIGGER full")
        here.store._writer.execute("PRAGMA max_page_count=1000000")
        ack = await station.ask(asked)
        assert (ack.message.type, ack.message.xid) == (ACK, 5)


async def test_a_disk_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp_commits, "STALLED_AFTER", 0.05)
    answers = threading.Event()
    async with site(tmp_path) as here:
        (station,) = here.stations
        here.store._jobs.put(lambda: bool(answers.wait(10)))  # type: ignore[arg-type]
        offer = await station.ask(message(DISCOVER, A))
        station.send(message(REQUEST, A, options=asking(str(IPv4Address(offer.message.yiaddr)), "10.77.0.1")))
        while "dhcp.commit_stalled" not in here.kinds():
            offer = await station.ask(message(DISCOVER, B))
            assert offer.message.type == OFFER, "no ACK comes, and everything else goes on"
        answers.set()
        assert (await station.hear()).message.type == ACK
        assert here.kinds().count("dhcp.commit_stalled") == 1


async def test_imports_at_once_all_end_and_one_that_is_given_up_holds_nothing_up(tmp_path: Path) -> None:
    def foreign(at: int) -> list[ForeignLease]:
        address = IPv4Address("10.77.0.100") + at
        return [ForeignLease(1, address, 1, bytes([2, 0, 0, 0, 0, at]), b"", b"", b"", b"", 0.0, 9e9)]

    answers = threading.Event()
    async with site(tmp_path) as here:
        here.store._jobs.put(lambda: bool(answers.wait(10)))  # type: ignore[arg-type]
        imports = [asyncio.create_task(here.service.adopt(foreign(at))) for at in range(5)]
        async with asyncio.timeout(10):
            while len(here.service.leases()) < 5:
                await asyncio.sleep(0.001)
            imports[0].cancel()
            imports[1].cancel()
            answers.set()
            given_up, *done = await asyncio.gather(*imports, return_exceptions=True)
            assert isinstance(given_up, asyncio.CancelledError) and isinstance(done[0], asyncio.CancelledError)
            assert done[1:] == [(1, [])] * 3
    with closing(Store(tmp_path)) as store:
        assert len(store.leases()) == 5


async def test_after_damage_no_address_is_given_to_a_stranger_unasked(tmp_path: Path) -> None:
    """A lease of before the damage that is no longer known: who has it may go on, nobody else gets its address."""
    async with site(tmp_path) as here:
        await lease(here.stations[0], A)
    (tmp_path / FILE).write_bytes(b"no database")
    async with site(tmp_path) as here:
        (station,) = here.stations
        (told,) = (event for event in here.events if event.kind == "store.damaged")
        assert "0 leases could be read" in str(told.details["text"])
        assert here.service.leases() == []
        station.send(message(DISCOVER, B))
        here.wire.clients[0].ip("address", "add", "10.77.0.100/24", "dev", "c0")
        renewal = message(REQUEST, A, ciaddr="10.77.0.100")
        ack = await station.ask(renewal, source="10.77.0.100", to="10.77.0.1", mac=here.links[0].mac)
        assert (ack.message.type, ack.message.yiaddr) == (ACK, number("10.77.0.100"))
        assert here.service.counters()["doubtful"] == 1
        while True:  # it is asked for by ARP, and nobody answers
            station.send(message(DISCOVER, B))
            try:
                offer = await station.hear(0.2)
            except TimeoutError:
                continue
            assert (offer.message.type, offer.message.yiaddr) == (OFFER, number("10.77.0.101"))
            break


async def test_leases_of_another_server_are_all_taken_or_none(tmp_path: Path) -> None:
    hardware = bytes.fromhex(A.replace(":", ""))
    found = [
        ForeignLease(
            at,
            IPv4Address(f"10.77.0.{at}"),
            1,
            hardware[:5] + bytes([at]),
            b"",
            b"",
            b"",
            b"",
            0,
            time.time() + 7000,
        )
        for at in range(100, 200)
    ]
    async with site(tmp_path) as here:
        await lease(here.stations[0], B)
        here.store._writer.execute(
            "CREATE TRIGGER full BEFORE INSERT ON lease WHEN new.address = 0x0A4D0096 "
            "BEGIN SELECT raise(ABORT, 'disk full'); END"
        )
        with pytest.raises(FastbootError, match="can not be written"):
            await here.service.adopt(found)
        assert len(here.service.leases()) == len(here.store.rows()) == 1
        here.store._writer.execute("DROP TRIGGER full")
        count, left_out = await here.service.adopt(found)
        assert (count, len(left_out)) == (99, 1)
        assert left_out == [f"line 100: 10.77.0.100 of 52:54:00:aa:00:64: the address is {B}"]
        assert len(here.service.leases()) == 100
        assert here.kinds().count("dhcp.imported") == 1
        (mac,) = (each.mac for each in here.service.leases() if str(each.address) == "10.77.0.177")
        ack = await here.stations[0].ask(message(REQUEST, mac, options=asking("10.77.0.177")))
        assert (ack.message.type, ack.message.yiaddr) == (ACK, number("10.77.0.177"))
    async with site(tmp_path) as here:
        assert len(here.service.leases()) == 100


async def test_leases_are_listed_found_released_and_outlive_the_server(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await lease(here.stations[0], A)
        await lease(here.stations[0], B)
        await here.stations[0].ask(message(DISCOVER, "52:54:00:aa:00:03"))
        assert sorted(str(each.address) for each in here.service.leases()) == ["10.77.0.100", "10.77.0.101"]
        found = here.service.lease_at(IPv4Address("10.77.0.101"))
        assert found is not None and (found.mac, found.state) == (B, "bound")
        assert abs(found.expires - time.time() - 3600) < 5
        offered = here.service.lease_at(IPv4Address("10.77.0.102"))
        assert offered is not None and offered.state == "offered"
        assert here.service.mac_of(IPv4Address("10.77.0.102")) == "52:54:00:aa:00:03"
        assert here.service.mac_of(IPv4Address("10.77.0.200")) is None
        assert here.service.release(IPv4Address("10.77.0.101"))
        assert not here.service.release(IPv4Address("10.77.0.101"))
    async with site(tmp_path) as here:
        (kept,) = here.service.leases()
        assert (kept.mac, str(kept.address)) == (A, "10.77.0.100")
        ack = await here.stations[0].ask(message(REQUEST, A, options=asking("10.77.0.100")))
        assert ack.message.type == ACK


async def test_an_acknowledgement_under_way_leaves_before_the_stop(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        (station,) = here.stations
        await station.ask(message(DISCOVER, A))
        here.service._responder.receive(
            message(REQUEST, A, options=asking("10.77.0.100", "10.77.0.1")), 0, 0, number("255.255.255.255"),
            time.monotonic_ns(),
        )  # fmt: skip
        await here.service.stop()
        assert (await station.hear()).message.type == ACK


async def test_a_service_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    need("ip")
    with wires(("10.77.0.1/24",)) as wire:
        links = wire.links()
        with wire.server.inside(), closing(Store(tmp_path)) as store:
            sockets = open_sockets(links)
            settings = config.Dhcp(subnets=(ONE,))
            service = DhcpService(settings, links, (), store, lambda request: None, lambda event: None, sockets)
            await service.stop()
            sockets.close()


async def test_reload(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        (station,) = here.stations
        await lease(station, A)
        other = config.Subnet(network="10.99.0.0/24", pools=("10.99.0.10-10.99.0.20",))
        with pytest.raises(ConfigError, match=r"dhcp\.subnets: none of 10\.99\.0\.0/24 .* 10\.77\.0\.1/24 \(s0\)"):
            here.service.reload(config.Dhcp(subnets=(other,)), ())
        node = Node("n", (A,), IPv4Address("10.77.0.7"))
        here.service.reload(config.Dhcp(subnets=(ONE,), lease=600), (node,))
        ack = await lease(station, A)
        assert str(IPv4Address(ack.message.yiaddr)) == "10.77.0.7"
        assert ack.message.options[12] == b"n"
        assert int.from_bytes(ack.message.options[51]) == 600


async def test_the_servers_own_addresses_are_in_no_pool(tmp_path: Path) -> None:
    tight = config.Subnet(network="10.77.0.0/29", pools=("10.77.0.0-10.77.0.7",), gateway="10.77.0.3")
    async with site(
        tmp_path, ("10.77.0.1/29", "10.77.0.4/29"), settings=config.Dhcp(subnets=(tight,), probe=0)
    ) as here:
        given = [
            str(IPv4Address((await lease(here.stations[0], f"52:54:00:00:00:{at:02x}")).message.yiaddr))
            for at in range(3)
        ]
        assert given == ["10.77.0.2", "10.77.0.5", "10.77.0.6"]
        here.stations[0].send(message(DISCOVER, "52:54:00:00:00:09"))
        with pytest.raises(TimeoutError):
            await here.stations[0].hear(0.2)
        assert here.kinds().count("dhcp.exhausted") == 1


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        with here.wire.server.inside(), pytest.raises(FastbootError, match="UDP port 67 on s0 is taken"):
            open_sockets(here.links)


async def test_many_at_once(tmp_path: Path) -> None:
    """300 machines ask in the same moment; every one gets an address of its own."""
    wide = config.Subnet(network="10.77.0.0/22", pools=("10.77.1.0-10.77.2.255",))
    asked: list[BootRequest] = []

    def decide(request: BootRequest) -> Verdict:
        asked.append(request)
        return Plan()

    settings = config.Dhcp(subnets=(wide,), probe=0)
    async with site(tmp_path, ("10.77.0.1/22",), settings=settings, decide=decide) as here:
        (station,) = here.stations
        station.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        macs = [f"52:54:00:01:{at >> 8:02x}:{at & 255:02x}" for at in range(300)]
        for mac in macs:
            station.send(message(DISCOVER, mac))
        bound: dict[str, int] = {}
        while len(bound) < 300:
            frame = await station.hear()
            mac = frame.message.chaddr[:6].hex(":")
            if frame.message.type == OFFER:
                address = str(IPv4Address(frame.message.yiaddr))
                station.send(message(REQUEST, mac, options=asking(address, "10.77.0.1")))
            else:
                assert frame.message.type == ACK
                bound[mac] = frame.message.yiaddr
        assert bound.keys() == set(macs) and len(set(bound.values())) == 300
        assert len(here.store.rows()) == 300
        assert len(asked) == 1, "one class, one decision"


# ---- killed under load

SERVER = """
import asyncio, sys
from pathlib import Path
from fastboot import config
from fastboot.model import Plan
from fastboot.services import dhcp_commits
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.services.links import find_links
from fastboot.state.foreign import ForeignLease
from fastboot.state.store import FILE, Store

async def main():
    links = find_links(["s0"])
    wide = config.Subnet(network="10.77.0.0/16", pools=("10.77.1.0-10.77.60.255",))
    store = Store(Path(sys.argv[1]))
    store.start()
    settings = config.Dhcp(subnets=(wide,), probe=0)
    sockets = open_sockets(links)
    service = DhcpService(settings, links, (), store, lambda request: Plan(), lambda event: None, sockets)
    await service.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killed_under_load_no_acknowledged_lease_is_lost(tmp_path: Path) -> None:
    need("ip")
    with wires(("10.77.0.1/16",)) as wire:
        station = Station(wire.clients[0])
        station.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        server = subprocess.Popen(
            wire.server.command(sys.executable, "-c", SERVER, str(tmp_path)), stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            acked: dict[str, str] = {}
            for at in range(1500):
                station.send(message(DISCOVER, f"52:54:00:02:{at >> 8:02x}:{at & 255:02x}"))
                if at % 50 == 0:
                    await asyncio.sleep(0)
            while True:
                frame = await station.hear()
                mac, address = frame.message.chaddr[:6].hex(":"), str(IPv4Address(frame.message.yiaddr))
                if frame.message.type == OFFER:
                    station.send(message(REQUEST, mac, options=asking(address, "10.77.0.1")))
                else:
                    acked[address] = mac
                    if len(acked) == 400:
                        server.send_signal(signal.SIGKILL)
                        break
            server.wait()
            while True:
                try:
                    frame = await station.hear(0.2)
                except TimeoutError:
                    break
                if frame.message.type == ACK:
                    acked[str(IPv4Address(frame.message.yiaddr))] = frame.message.chaddr[:6].hex(":")
        finally:
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()
            station.close()
    assert len(acked) >= 400
    store = Store(tmp_path)
    kept = {str(IPv4Address(row.address)): row.mac.hex(":") for row in store.rows()}
    store.close()
    assert acked.items() <= kept.items()

"""Other DHCP servers: the search before this one serves, and the watch while it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from dhcpkit import ACK, DISCOVER, INFORM, NAK, OFFER, REQUEST, asking, message, need, number, wires
from dhcpsite import ONE, A, B, Loop, Site, Station, dnsmasq, lease, offer_by, on_every_loop, run_on, site

from fastboot import config
from fastboot._core import DhcpMessage, emit_dhcp, parse_dhcp, udp_packet
from fastboot.model import Event, FastbootError, Plan
from fastboot.services import dhcp_watch
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.services.dhcp_probe import Rival, find_rivals, questions, server_in
from fastboot.services.dhcp_watch import ROOM, OtherServers
from fastboot.services.links import Link, find_links
from fastboot.state.store import Store

# ---- the search before serving


async def test_another_server_is_found_named_and_refused(tmp_path: Path) -> None:
    need("ip", "dnsmasq")
    with wires(("10.77.0.1/24",)) as wire:
        links = wire.links()
        async with dnsmasq(wire.clients[0], tmp_path):
            with wire.server.inside():
                sockets = open_sockets(links)
                store = Store(tmp_path)
                settings = config.Dhcp(subnets=(ONE,), probe=10)
                service = DhcpService(
                    settings, links, (), store, lambda request: None, lambda event: None, sockets
                )
            began = time.monotonic()
            with pytest.raises(FastbootError) as caught:
                await service.start()
            assert time.monotonic() - began < 3, "it returns at the first answer"
            for part in ("10.77.0.2", "52:54:00:c0:00:00", "s0", 'known_servers = ["10.77.0.2"]'):
                assert part in str(caught.value)
            await service.stop()
            sockets.close()
            with wire.server.inside():
                sockets = open_sockets(links)
                known = config.Dhcp(subnets=(ONE,), probe=1, known_servers=("10.77.0.2",))
                service = DhcpService(known, links, (), store, lambda request: None, lambda event: None, sockets)
            await service.start()
            await service.stop()
            sockets.close()
            store.close()


async def test_nobody_there_takes_the_whole_time(tmp_path: Path) -> None:
    began = time.monotonic()
    async with site(tmp_path, settings=config.Dhcp(subnets=(ONE,), probe=1)) as here:
        assert 1 <= time.monotonic() - began < 5
        assert (await here.stations[0].ask(message(DISCOVER, A))).message.type == OFFER


def test_questions_and_answers() -> None:
    link = Link("x", 1, bytes.fromhex("525400aa0001"), 1500, (IPv4Interface("10.77.0.1/24"),))
    inform, discover = (parse_dhcp(packet[28:]) for packet in questions(link, 77))
    assert isinstance(discover, DhcpMessage) and isinstance(inform, DhcpMessage)
    assert (discover.type, discover.flags, discover.ciaddr) == (DISCOVER, 0x8000, 0)
    assert (inform.type, inform.ciaddr) == (INFORM, number("10.77.0.1"))
    request = questions(link, 77)[0][28:]

    def packet(payload: bytes) -> bytes:
        return udp_packet(number("10.77.0.9"), 67, number("255.255.255.255"), 68, payload)

    reply = emit_dhcp(request, type=OFFER, server=number("10.77.0.8"), yiaddr=1)
    assert server_in(packet(reply)) == IPv4Address("10.77.0.8")
    assert server_in(packet(reply), 78) is None
    assert server_in(packet(request)) is None
    for n in range(len(packet(reply))):
        assert server_in(packet(reply)[:n]) in (None, IPv4Address("10.77.0.8"), IPv4Address("10.77.0.9"))
    assert "10.77.0.8 (aa) on x" in str(Rival(link, IPv4Address("10.77.0.8"), "aa"))


async def test_no_links_no_rivals() -> None:
    assert await find_rivals([], (), 1) == []


# ---- the watch, on a clock that stands still


def test_one_event_when_a_server_appears_and_one_when_it_is_gone() -> None:
    events: list[Event] = []
    servers = OtherServers(events.append)
    other = IPv4Address("10.77.0.2")
    servers.seen("s0", other, None, 100.0, client=A)
    servers.seen("s0", other, "52:54:00:00:00:02", 101.0)
    (present,) = servers.present()
    assert (present.interface, present.address, present.mac, present.since) == (
        "s0",
        other,
        "52:54:00:00:00:02",
        100,
    )
    servers.period_ends(400.0)
    servers.period_ends(700.0)
    servers.seen("s0", other, None, 710.0)
    for wall in (1000.0, 1300.0, 1600.0, 1900.0):
        servers.period_ends(wall)
    assert [(event.kind, event.mac, event.time) for event in events] == [
        ("dhcp.other_server", None, 100.0),
        ("dhcp.other_server_gone", "52:54:00:00:00:02", 1600.0),
    ]
    assert servers.present() == []
    servers.seen("s0", other, "52:54:00:00:00:02", 2000.0)
    assert [event.kind for event in events[2:]] == ["dhcp.other_server"], "it is back"
    assert 'known_servers = ["10.77.0.2"]' in str(events[2].details["text"])


def test_the_same_address_on_two_links_is_two_servers() -> None:
    events: list[Event] = []
    servers = OtherServers(events.append)
    for interface in ("s0", "s1", "s0"):
        servers.seen(interface, IPv4Address("10.77.0.2"), A, 1.0)
    assert [event.details["interface"] for event in events] == ["s0", "s1"]


def test_who_makes_servers_up_fills_neither_memory_nor_log() -> None:
    events: list[Event] = []
    servers = OtherServers(events.append)
    for at in range(1000):
        servers.seen("s0", IPv4Address(at + 1), A, 1.0)
    assert len(events) == len(servers.present()) == ROOM
    assert servers.untold == 1000 - ROOM


def test_a_server_that_is_listed_now_is_no_alarm_any_more() -> None:
    events: list[Event] = []
    servers = OtherServers(events.append)
    servers.seen("s0", IPv4Address("10.77.0.2"), A, 1.0)
    servers.allow({IPv4Address("10.77.0.2")}, 2.0)
    assert servers.present() == []
    assert [event.kind for event in events] == ["dhcp.other_server", "dhcp.other_server_gone"]


# ---- the watch, on a wire

EVERY_SECOND = config.Dhcp(subnets=(ONE,), probe=0).model_copy(update={"probe_every": 1})
ONLY_LISTENING = config.Dhcp(subnets=(ONE,), probe=0, probe_every=0)


def alarms(here: Site) -> list[tuple[str, str | None, object]]:
    return [(event.kind, event.mac, event.details["server"]) for event in here.events if "other" in event.kind]


async def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_dnsmasq_that_appears_later_is_an_alarm_and_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("dnsmasq")
    monkeypatch.setattr(dhcp_watch, "SILENCES", 4)  # dnsmasq is deaf for 3 s while it pings
    async with site(tmp_path, settings=EVERY_SECOND) as here:
        (station,) = here.stations
        await lease(station, A)
        async with dnsmasq(here.wire.clients[0], tmp_path):
            await until(lambda: bool(alarms(here)))
            asked = here.service.counters()["probes"]
            await until(lambda: here.service.counters()["probes"] > asked + 5)
            assert alarms(here) == [("dhcp.other_server", "52:54:00:c0:00:00", "10.77.0.2")]
            (other,) = here.service.other_servers()
            assert (other.interface, str(other.address), other.mac) == ("s0", "10.77.0.2", "52:54:00:c0:00:00")
            assert here.service.counters()["other_servers"] == 1
            offer = await station.ask(message(DISCOVER, B, xid=7))
            while offer.message.xid != 7:  # what dnsmasq tells us passes by here
                offer = await station.hear()
            assert (offer.message.type, str(IPv4Address(offer.message.yiaddr))) == (OFFER, "10.77.0.101")
        await until(lambda: len(alarms(here)) > 1)
        assert alarms(here)[1:] == [("dhcp.other_server_gone", "52:54:00:c0:00:00", "10.77.0.2")]
        assert here.service.other_servers() == []
        assert [each.mac for each in here.service.leases()] == [A], "the questions took no address"
        assert here.service.counters()["own_probe"] == 0, "and were not even heard: they left by a packet socket"


async def test_a_second_fastboot_is_an_alarm_for_the_first(tmp_path: Path) -> None:
    async with site(tmp_path, settings=EVERY_SECOND) as here:
        client = here.wire.clients[0]
        client.ip("address", "add", "10.77.0.2/24", "dev", "c0")
        (tmp_path / "second").mkdir()
        with client.inside():
            links = find_links(["c0"])
            sockets = open_sockets(links)
        store = Store(tmp_path / "second")
        store.start()
        second = DhcpService(
            config.Dhcp(subnets=(ONE,), probe=1, known_servers=("10.77.0.1",)), links, (), store,
            lambda request: Plan(), lambda event: None, sockets,
        )  # fmt: skip
        try:
            await second.start()
            await until(lambda: bool(alarms(here)))
            assert alarms(here) == [("dhcp.other_server", "52:54:00:c0:00:00", "10.77.0.2")]
            assert second.other_servers() == [], "it knows of the first"
        finally:
            await second.stop()
            sockets.close()
            await asyncio.to_thread(store.close)


async def test_what_a_server_tells_others_is_heard_without_asking(tmp_path: Path) -> None:
    settings = config.Dhcp(subnets=(ONE,), probe=0, probe_every=0, known_servers=("10.77.0.3",))
    async with site(tmp_path, settings=settings) as here:
        (station,) = here.stations
        silent = (
            offer_by("10.77.0.1"),
            offer_by("10.77.0.3"),
            offer_by("10.77.0.9", giaddr="10.77.0.9"),
            b"",
            b"\x45" * 20,
        )
        for packet in (*silent, offer_by("10.77.0.2", NAK), offer_by("10.77.0.2", ACK)):
            station.socket.send(b"\xff" * 6 + station.mac + b"\x08\x00" + packet)
        await until(lambda: here.service.counters()["foreign_reply"] == 2)
        assert alarms(here) == [("dhcp.other_server", station.mac.hex(":"), "10.77.0.2")]
        assert here.service.counters()["probes"] == 0
        here.service.reload(config.Dhcp(subnets=(ONE,), probe_every=0, known_servers=("10.77.0.2",)), ())
        assert here.service.other_servers() == []


async def test_a_request_that_names_another_server_has_it_asked_at_once(tmp_path: Path) -> None:
    need("dnsmasq")
    async with site(tmp_path, settings=ONLY_LISTENING) as here:
        async with dnsmasq(here.wire.clients[0], tmp_path):
            here.stations[0].send(message(REQUEST, A, options=asking("10.77.0.55", "10.77.0.2")))
            await until(lambda: bool(alarms(here)))
        assert alarms(here) == [("dhcp.other_server", "52:54:00:c0:00:00", "10.77.0.2")]
        assert here.events[-1].details["client"] == A


async def test_a_server_that_answers_nobody_but_its_own_is_told_without_its_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dhcp_watch, "ANSWER", 0.1)
    async with site(tmp_path, settings=ONLY_LISTENING) as here:
        (station,) = here.stations
        for xid in range(3):
            station.send(message(REQUEST, A, xid=xid, options=asking("10.77.0.55", "10.77.0.2")))
        await until(lambda: bool(alarms(here)))
        station.send(message(REQUEST, B, options=asking("10.77.0.56", "10.77.0.2")))
        await until(lambda: here.service.counters()["other_server"] == 4)
        assert alarms(here) == [("dhcp.other_server", None, "10.77.0.2")]
        (other,) = here.service.other_servers()
        assert other.mac is None


async def test_without_packet_sockets_a_request_still_tells(tmp_path: Path) -> None:
    async with site(tmp_path, settings=config.Dhcp(subnets=(ONE,), probe=0)) as here:
        here.service._watch.stop()
        here.service._watch.start(())
        here.stations[0].send(message(REQUEST, A, options=asking("10.77.0.55", "10.77.0.2")))
        await until(lambda: bool(alarms(here)))
        assert alarms(here) == [("dhcp.other_server", None, "10.77.0.2")]


@on_every_loop
def test_a_link_that_is_down_is_asked_again_when_it_is_up(tmp_path: Path, loop: Loop) -> None:
    run_on(loop, a_link_goes_down_and_up(tmp_path))


async def a_link_goes_down_and_up(tmp_path: Path) -> None:
    async with site(tmp_path, settings=EVERY_SECOND) as here:
        here.wire.server.ip("link", "set", "s0", "down")
        await until(lambda: here.service.counters()["probe_failed"] > 1)
        here.wire.server.ip("link", "set", "s0", "up")
        before = here.service.counters()["probes"]
        await until(lambda: here.service.counters()["probes"] > before)
        station = Station(here.wire.clients[0])
        station.socket.send(b"\xff" * 6 + station.mac + b"\x08\x00" + offer_by("10.77.0.2"))
        station.close()
        await until(lambda: bool(alarms(here)))

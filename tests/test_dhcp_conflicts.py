"""Addresses that machines use without a lease: asked for by ARP ahead of time (RFC 5227), on a clock that stands
still and on real wires."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import (
    ACK,
    DECLINE,
    DISCOVER,
    NAK,
    OFFER,
    OUR_MAC,
    RELEASE,
    REQUEST,
    SECOND,
    Office,
    asking,
    lan,
    message,
    need,
    number,
)
from dhcpsite import ONE, A, B, Loop, Site, lease, on_every_loop, run_on, site
from scapy.layers.l2 import ARP

from fastboot import config
from fastboot.model import Node
from fastboot.services import dhcp_conflicts
from fastboot.services.dhcp_conflicts import PER_TURN, arp_probe

C = "52:54:00:aa:00:03"
SQUATTER, OTHER = "52:54:00:bb:00:01", "52:54:00:bb:00:02"
OURS = "10.77.0.1"
TURN = 0.1


def small(*pools: str) -> tuple[config.Subnet, ...]:
    return (config.Subnet(network="10.77.0.0/24", pools=pools),)


def arp(address: str, mac: str, op: int = 2, target: str = "0.0.0.0") -> bytes:
    """Return what a machine says of itself by ARP."""
    return bytes(ARP(op=op, hwsrc=mac, psrc=address, hwdst=OUR_MAC, pdst=target))


@dataclass
class Wire(Office):
    """An office that asks by ARP, and the machines that answer for addresses."""

    users: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for link in range(len(self.links)):
            self.responder.speak_arp(link, True)

    def turn(self) -> list[tuple[int, str]]:
        """Ask once, as the service does every 0.1 s; users answer."""
        asks, _ = self.responder.probes(self.now, PER_TURN)
        asked = [(link, str(IPv4Address(address))) for link, address in asks]
        for link, address in asked:
            if address in self.users:
                self.responder.receive_arp(arp(address, self.users[address]), link, self.now)
        if self.disk:
            self.commit()
        return asked

    def ask_for(self, seconds: float) -> list[tuple[int, str]]:
        """Let time pass; return in which turn who was asked for."""
        asked = []
        for at in range(round(seconds / TURN)):
            asked += [(at, address) for _, address in self.turn()]
            self.pass_time(TURN)
        return asked

    def offer(self, mac: str, **more: object) -> str | None:
        """Return what a machine is offered at once."""
        offers = self.send(message(DISCOVER, mac, **more))  # type: ignore[arg-type]
        return offers[0].address if offers else None

    def told(self, *kinds: str) -> list[tuple[str, str, str]]:
        """Return the events of these kinds: kind, MAC, address."""
        return [
            (event[0], event[1].hex(":"), str(IPv4Address(event[3])))
            for event in self.responder.events()
            if event[0] in kinds
        ]

    def states(self) -> dict[str, tuple[str, str]]:
        leases = self.responder.leases(self.now, self.wall)
        return {str(IPv4Address(lease[0])): (lease[1], lease[2].hex(":")) for lease in leases}


# ---- who is asked, and when


def test_the_next_32_are_asked_for_three_times_a_second_apart_and_no_others() -> None:
    wire = Wire()
    asked = wire.ask_for(20)
    addresses = list(dict.fromkeys(address for _, address in asked))
    assert addresses == [f"10.77.0.{at}" for at in range(100, 132)], "the 32 that strangers get next"
    for address in addresses:
        first, second, third = (turn for turn, each in asked if each == address)
        assert second - first >= 10 and third - second >= 10, "turns of 0.1 s"
    assert max(Counter(turn for turn, _ in asked).values()) <= PER_TURN, "no storm"
    assert asked[-1][0] < 30


def test_an_answer_ages() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.101"))
    assert len(wire.ask_for(5)) == 6
    _, wait = wire.responder.probes(wire.now, PER_TURN)
    assert 290 * SECOND < wait <= 300 * SECOND, "until then there is nothing to do"
    assert wire.ask_for(290) == []
    assert len(wire.ask_for(15)) == 6
    wire.users["10.77.0.100"] = SQUATTER
    wire.ask_for(310)
    assert wire.offer(A) == "10.77.0.101"


def test_a_pool_of_65_thousand_costs_nothing_while_nobody_comes() -> None:
    wire = Wire(
        subnets=(config.Subnet(network="10.76.0.0/15", pools=("10.77.1.0-10.77.255.255",)),),
        links=(("10.77.0.1/15",),),
    )
    calls = asked = 0
    end = wire.now + 3600 * SECOND
    while wire.now < end:
        asks, wait = wire.responder.probes(wire.now, PER_TURN)
        calls, asked = calls + 1, asked + len(asks)
        wire.now += max(wait, SECOND // 10)
    assert asked <= 32 * 3 * 12, "one broadcast in three seconds"
    assert calls <= 12 * 40


def test_what_was_found_clear_is_given_first_and_no_offer_waits() -> None:
    wire = Wire()
    assert [wire.offer(mac) for mac in (A, B)] == ["10.77.0.100", "10.77.0.101"], "before anybody was asked"
    wire.ask_for(20)
    given = [wire.offer(f"52:54:00:00:01:{at:02x}") for at in range(98)]
    assert given == [f"10.77.0.{at}" for at in range(102, 200)], "the whole pool in one instant, 32 of it clear"


def test_who_takes_an_address_makes_room_for_the_next_question() -> None:
    wire = Wire()
    wire.ask_for(20)
    assert not wire.responder.vacant
    wire.lease_of(A)
    assert wire.responder.vacant
    assert {address for _, address in wire.ask_for(5)} == {"10.77.0.132"}
    assert not wire.responder.vacant


def test_every_link_of_a_subnet_is_asked_and_none_beyond_a_relay() -> None:
    far = config.Subnet(network="10.99.0.0/24", pools=("10.99.0.10-10.99.0.12",))
    wire = Wire(
        subnets=(*small("10.77.0.100-10.77.0.100"), far),
        links=(("10.77.0.1/24",), ("10.77.0.2/24",), ("10.5.0.1/8",)),
    )
    assert wire.turn() == [(0, "10.77.0.100"), (1, "10.77.0.100")]
    wire.responder.speak_arp(0, False)
    wire.pass_time(1)
    assert wire.turn() == [(1, "10.77.0.100")]
    assert wire.offer(A, giaddr="10.99.0.1") == "10.99.0.10"


def test_what_was_not_heard_is_asked_again() -> None:
    """A link that went down after the first question: the silence on it proves nothing."""
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"))
    wire.ask_for(2)
    wire.responder.speak_arp(0, False)
    assert wire.ask_for(10) == []
    wire.responder.speak_arp(0, True)
    assert len(wire.ask_for(5)) == 3


def test_a_probe_is_as_rfc_5227_says() -> None:
    probe = ARP(arp_probe(bytes.fromhex("525400aa0001"), IPv4Address("10.77.0.100")))
    assert (probe.op, probe.hwtype, probe.ptype, probe.hwlen, probe.plen) == (1, 1, 0x0800, 6, 4)
    assert (probe.hwsrc, probe.psrc, probe.hwdst, probe.pdst) == (A, "0.0.0.0", "00:00:00:00:00:00", "10.77.0.100")


# ---- who answers


def test_a_squatter_keeps_its_address_to_itself() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.102"), users={"10.77.0.101": SQUATTER})
    wire.ask_for(5)
    assert wire.told("conflict", "proxy_arp") == [("conflict", SQUATTER, "10.77.0.101")]
    assert [wire.offer(mac) for mac in (A, B, C)] == ["10.77.0.100", "10.77.0.102", None]
    assert wire.states() == {"10.77.0.101": ("declined", SQUATTER)}
    assert wire.counters["conflict"] == 1


def test_a_quarantine_is_on_disk_and_survives_a_restart() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.101"), users={"10.77.0.100": SQUATTER}, disk=False)
    wire.ask_for(1)
    (rows,) = wire.commit()
    assert [row.split(" ")[2:6] for row in json.loads(rows).values()] == [
        ["10.77.0.100", "declined", "1", SQUATTER]
    ]


def test_a_quarantine_that_can_not_be_written_holds_all_the_same() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.101"), users={"10.77.0.100": SQUATTER}, disk=False)
    wire.ask_for(1)
    wire.commit(ok=False)
    assert wire.offer(A) == "10.77.0.101"


def test_after_its_quarantine_an_address_is_asked_for_before_it_is_given() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"), users={"10.77.0.100": SQUATTER})
    wire.responder.quarantine = 600
    wire.ask_for(1)
    wire.pass_time(600)
    assert wire.offer(A) is None
    assert (wire.counters["doubtful"], wire.counters.get("exhausted", 0)) == (1, 0)
    wire.ask_for(5)
    assert wire.offer(A) is None
    assert wire.told("conflict") == [("conflict", SQUATTER, "10.77.0.100")], "told once: it never left"
    wire.users.clear()
    wire.pass_time(600)
    assert wire.offer(A) is None
    wire.ask_for(5)
    assert wire.offer(A) == "10.77.0.100"


def test_after_a_decline_likewise_and_for_as_long_as_configured() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"))
    wire.responder.quarantine = 120
    wire.lease_of(A)
    wire.send(message(DECLINE, A, options=asking("10.77.0.100", OURS)))
    for seconds in (0, 119):
        wire.pass_time(seconds)
        assert wire.offer(B) is None
    wire.pass_time(1)
    assert wire.offer(B) is None and wire.counters["doubtful"] == 1
    wire.ask_for(5)
    assert wire.offer(B) == "10.77.0.100"


def test_without_arp_a_quarantine_just_ends() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    office.lease_of(A)
    office.send(message(DECLINE, A, options=asking("10.77.0.100", OURS)))
    office.pass_time(3600)
    (offer,) = office.send(message(DISCOVER, B))
    assert offer.address == "10.77.0.100"


@pytest.mark.parametrize("op", [1, 2], ids=["request", "reply"])
def test_who_was_not_asked_is_heard_too(op: int) -> None:
    wire = Wire()
    assert wire.responder.receive_arp(arp("10.77.0.170", SQUATTER, op, "10.77.0.170"), 0, wire.now)
    assert not wire.responder.receive_arp(arp("10.77.0.170", SQUATTER, op), 0, wire.now), "once is enough"
    assert wire.told("conflict") == [("conflict", SQUATTER, "10.77.0.170")]
    assert wire.offer(A, options=asking("10.77.0.170")) == "10.77.0.100"


@pytest.mark.parametrize(
    "frame",
    [
        arp("0.0.0.0", SQUATTER, 1, "10.77.0.100"),
        arp("10.77.0.50", SQUATTER),
        arp("10.77.0.7", SQUATTER),
        arp("10.77.0.100", "ff:ff:ff:ff:ff:ff"),
        arp("10.77.0.100", "01:00:5e:00:00:01"),
        arp("10.77.0.100", "00:00:00:00:00:00"),
        arp("10.77.0.100", SQUATTER, 3),
        bytes(ARP(op=2, hwtype=6, hwsrc=SQUATTER, psrc="10.77.0.100")),
        b"\0\1\x86\xdd" + arp("10.77.0.100", SQUATTER)[4:],
        *(arp("10.77.0.100", SQUATTER)[:n] for n in range(28)),
    ],
)  # fmt: skip
def test_what_says_nothing_of_a_pool(frame: bytes) -> None:
    """A probe of another, addresses of no pool or of a node, senders that are no one machine, other hardware."""
    node = Node("n", ("52:54:00:00:00:07",), IPv4Address("10.77.0.7"))
    wire = Wire(subnets=small("10.77.0.5-10.77.0.10", "10.77.0.100-10.77.0.110"), nodes=(node,))
    assert not wire.responder.receive_arp(frame, 0, wire.now)
    assert wire.commit() == [] and wire.counters == {}


def test_a_subnet_is_heard_on_its_own_links_only() -> None:
    wire = Wire(
        subnets=(*small("10.77.0.100-10.77.0.110"), config.Subnet(network="10.78.0.0/24", pools=("10.78.0.9",))),
        links=(("10.77.0.1/24",), ("10.78.0.1/24",)),
    )
    assert not wire.responder.receive_arp(arp("10.78.0.9", SQUATTER), 0, wire.now)
    assert wire.responder.receive_arp(arp("10.78.0.9", SQUATTER), 1, wire.now)
    with pytest.raises(IndexError):
        wire.responder.receive_arp(b"", 2, wire.now)
    with pytest.raises(IndexError):
        wire.responder.speak_arp(-1, True)
    with pytest.raises(IndexError):
        wire.responder.readable_arp(2, -1, wire.now)


# ---- who may have it all the same


def test_who_has_a_lease_or_an_offer_uses_it_by_right() -> None:
    wire = Wire()
    bound, offered = wire.lease_of(A), wire.offer(B)
    assert offered is not None
    assert not wire.responder.receive_arp(arp(bound, A), 0, wire.now)
    assert not wire.responder.receive_arp(arp(bound, SQUATTER), 0, wire.now), "A will decline it"
    assert not wire.responder.receive_arp(arp(offered, B), 0, wire.now)
    assert wire.turn()[0] == (0, "10.77.0.102")
    offered = wire.offer(C)
    assert offered == "10.77.0.102", "while it was being asked for"
    assert not wire.responder.receive_arp(arp(offered, C), 0, wire.now)
    assert wire.counters.get("conflict", 0) == 0


def test_a_machine_with_two_interfaces_is_one() -> None:
    """Linux answers by any of its interfaces for an address of any other."""
    wire = Wire(nodes=(Node("n", (A, B)),))
    offered = wire.offer(A)
    assert offered is not None
    assert not wire.responder.receive_arp(arp(offered, B), 0, wire.now)


def test_an_offer_of_an_address_that_turns_out_to_be_in_use_is_withdrawn() -> None:
    wire = Wire()
    offered = wire.offer(A)
    assert offered is not None
    assert wire.responder.receive_arp(arp(offered, SQUATTER), 0, wire.now)
    (nak,) = wire.send(message(REQUEST, A, options=asking(offered, OURS)))
    assert nak.message.type == NAK
    assert wire.offer(A) == "10.77.0.101"


def test_a_machine_that_uses_its_address_beyond_its_lease_gets_it_back_and_nobody_else_does() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"))
    wire.lease_of(A)
    wire.users["10.77.0.100"] = A
    wire.pass_time(3601)
    wire.ask_for(5)
    assert wire.told("conflict") == [], "it is its own machine"
    assert wire.offer(B) is None
    wire.pass_time(301)
    wire.ask_for(5)
    assert wire.offer(B) is None
    assert wire.lease_of(A) == "10.77.0.100"


def test_the_last_frame_of_who_releases_is_no_answer() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"))
    wire.lease_of(A)
    wire.send(message(RELEASE, A, ciaddr="10.77.0.100", options=((54, IPv4Address(OURS).packed),)))
    assert wire.turn() == [], "it has a second to let go of it"
    wire.responder.receive_arp(arp("10.77.0.100", A, 1, OURS), 0, wire.now)
    assert wire.offer(B) is None
    wire.ask_for(5)
    assert wire.offer(B) == "10.77.0.100"


def test_a_squatter_that_asks_is_given_what_it_uses() -> None:
    """A system with a fixed address, whose firmware then boots from the network; leases that a store has lost."""
    wire = Wire(users={"10.77.0.107": SQUATTER})
    wire.ask_for(5)
    assert wire.offer(SQUATTER) == "10.77.0.107"
    wire.pass_time(121)
    assert wire.offer(OTHER, options=asking("10.77.0.107")) != "10.77.0.107", "its lapse makes it nobody else's"
    wire.ask_for(5)
    (ack,) = wire.send(message(REQUEST, SQUATTER, ciaddr="10.77.0.107"), destination=number(OURS))
    assert (ack.message.type, ack.address) == (ACK, "10.77.0.107")
    assert wire.states()["10.77.0.107"] == ("bound", SQUATTER)


def test_a_squatter_that_has_a_lease_keeps_that() -> None:
    wire = Wire()
    wire.lease_of(SQUATTER)
    wire.responder.receive_arp(arp("10.77.0.150", SQUATTER), 0, wire.now)
    wire.commit()
    assert wire.told("conflict") == [("conflict", SQUATTER, "10.77.0.150")]
    assert wire.offer(SQUATTER) == "10.77.0.100"
    assert wire.states()["10.77.0.150"] == ("declined", SQUATTER)


def test_a_squatter_is_not_told_that_an_address_is_not_its_own() -> None:
    """RFC 2131 4.3.2: of a client without a record the server is silent."""
    wire = Wire()
    wire.responder.receive_arp(arp("10.77.0.150", SQUATTER), 0, wire.now)
    wire.commit()
    assert wire.send(message(REQUEST, SQUATTER, options=asking("10.77.0.160"))) == []


def test_a_router_that_answers_for_everybody_is_not_believed() -> None:
    """Proxy ARP: every address of the pool would be set aside."""
    wire = Wire(users={f"10.77.0.{at}": SQUATTER for at in range(100, 200)})
    wire.ask_for(60)
    events = wire.told("conflict", "proxy_arp")
    assert [event[0] for event in events] == ["conflict"] * 32 + ["proxy_arp"]
    assert events[-1][1] == SQUATTER
    assert wire.states() == {}, "what was set aside for it is free again"
    assert wire.offer(A) is not None
    wire.users["10.77.0.199"] = OTHER
    wire.responder.receive_arp(arp("10.77.0.199", OTHER), 0, wire.now)
    assert wire.told("conflict") == [("conflict", OTHER, "10.77.0.199")], "others are"
    wire.users.clear()
    wire.pass_time(3601)
    wire.responder.receive_arp(arp("10.77.0.198", SQUATTER), 0, wire.now)
    assert wire.told("conflict") == [("conflict", SQUATTER, "10.77.0.198")], "and after an hour so is it"


# ---- doubt


def test_after_a_damaged_store_no_stranger_gets_an_address_before_it_is_found_clear() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.102"), users={"10.77.0.100": A})
    assert wire.responder.doubt(None, wire.now) == 3
    assert wire.offer(B) is None
    assert wire.offer(B, options=asking("10.77.0.101")) is None
    assert wire.counters["doubtful"] == 2
    wire.ask_for(5)
    assert wire.offer(B) == "10.77.0.101"
    assert wire.offer(A) == "10.77.0.100", "its own"


def test_doubt_is_about_free_addresses_of_pools() -> None:
    wire = Wire()
    bound, offered = wire.lease_of(A), wire.offer(B)
    assert offered is not None
    assert (
        wire.responder.doubt([number(each) for each in (bound, offered, "10.77.0.50", "10.1.1.1")], wire.now) == 0
    )
    assert wire.responder.doubt([number("10.77.0.102")] * 2, wire.now) == 2
    assert wire.offer(C) == "10.77.0.103"


def test_doubt_outlives_a_reload_and_ends_with_a_lease() -> None:
    wire = Wire(subnets=small("10.77.0.100-10.77.0.100"))
    wire.responder.doubt(None, wire.now)
    wire.configure()
    assert wire.offer(B) is None
    wire.ask_for(5)
    wire.lease_of(B)
    wire.pass_time(3601)
    assert wire.offer(C) == "10.77.0.100"


def test_where_nobody_can_be_asked_doubt_ends_after_ten_minutes_as_a_last_resort() -> None:
    far = config.Subnet(network="10.99.0.0/24", pools=("10.99.0.10-10.99.0.11",))
    wire = Wire(subnets=(*small("10.77.0.100-10.77.0.100"), far))
    wire.responder.doubt([number("10.99.0.10")], wire.now)
    assert wire.offer(A, giaddr="10.99.0.1") == "10.99.0.11"
    assert wire.offer(B, giaddr="10.99.0.1") is None
    wire.pass_time(599)
    assert wire.offer(B, giaddr="10.99.0.1") == "10.99.0.11", "an offer ends after two minutes"
    assert wire.offer(C, giaddr="10.99.0.1") is None
    wire.pass_time(1)
    assert wire.offer(C, giaddr="10.99.0.1") == "10.99.0.10"


@pytest.mark.parametrize("destination", [OURS, "255.255.255.255"], ids=["renewing", "rebinding"])
def test_who_renews_a_doubtful_address_has_it(destination: str) -> None:
    wire = Wire()
    lost = message(REQUEST, A, ciaddr="10.77.0.120")
    assert wire.send(lost, destination=number(destination)) == [], "without doubt there is no such lease"
    wire.responder.doubt(None, wire.now)
    assert wire.send(message(REQUEST, B, options=asking("10.77.0.121"))) == [], "RFC 2131 4.3.2"
    (ack,) = wire.send(lost, destination=number(destination))
    assert (ack.message.type, ack.address) == (ACK, "10.77.0.120")
    wire.pass_time(3601)
    assert wire.offer(B, options=asking("10.77.0.120")) == "10.77.0.120", "a lease ends all doubt"


# ---- on real wires

PAIR = (config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.101",)),)


async def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def conflicts(here: Site) -> list[tuple[str | None, object]]:
    return [(event.mac, event.details["address"]) for event in here.events if event.kind == "dhcp.conflict"]


async def test_a_machine_with_a_static_address_of_the_pool(tmp_path: Path) -> None:
    """Found before anybody asks, told with its MAC, listed, never offered, free for all when it has left."""
    async with site(tmp_path, network=lan("10.77.0.1/24", 2), settings=config.Dhcp(subnets=PAIR, probe=0)) as here:
        squatter, station = here.wire.clients[0], here.stations[1]
        squatter.ip("address", "add", "10.77.0.100/24", "dev", "c0")
        mac = here.stations[0].mac.hex(":")
        await until(lambda: bool(conflicts(here)))
        assert conflicts(here) == [(mac, "10.77.0.100")]
        assert here.events[-1].details["interface"] == "s0" and "3600 s" in str(here.events[-1].details["text"])
        await until(lambda: [row.state for row in here.store.rows()] == ["declined"])
        (aside,) = here.service.leases()
        assert (str(aside.address), aside.state, aside.mac) == ("10.77.0.100", "declined", mac)
        ack = await lease(station, A)
        assert str(IPv4Address(ack.message.yiaddr)) == "10.77.0.101"
        station.send(message(DISCOVER, B))
        with pytest.raises(TimeoutError):
            await station.hear(0.2)
        squatter.ip("address", "del", "10.77.0.100/24", "dev", "c0")
        assert here.service.release(IPv4Address("10.77.0.100"))
        await until(lambda: not here.service._responder.committing)
        offer = await station.ask(message(DISCOVER, B, xid=9))
        assert str(IPv4Address(offer.message.yiaddr)) == "10.77.0.100"


@pytest.mark.parametrize("probed", [True, False], ids=["probed", "found by the client"])
async def test_udhcpc_that_checks_its_address_gets_one_that_nobody_uses(tmp_path: Path, probed: bool) -> None:
    need("udhcpc")
    settings = config.Dhcp(subnets=(ONE,), probe=0, arp_probes=probed)
    async with site(tmp_path, network=lan("10.77.0.1/24", 2), settings=settings) as here:
        squatter, client = here.wire.clients
        squatter.ip("address", "add", "10.77.0.100/24", "dev", "c0")
        if probed:
            await until(lambda: bool(conflicts(here)))
        script = tmp_path / "script"
        script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && echo $ip > {tmp_path}/ip; exit 0\n')
        script.chmod(0o755)
        process = await asyncio.create_subprocess_exec(
            *client.command("udhcpc", "-f", "-q", "-a", "-A", "1", "-i", "c0", "-s", str(script)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, output.decode()
        assert (tmp_path / "ip").read_text() == "10.77.0.101\n"
        counters = here.service.counters()
        assert (counters["decline"], counters["conflict"]) == ((0, 1) if probed else (1, 0)), output.decode()


async def test_dhclient_that_uses_its_address_beyond_its_lease_gets_it_again(tmp_path: Path) -> None:
    need("dhclient")
    settings = config.Dhcp(subnets=PAIR, probe=0)
    async with site(tmp_path, network=lan("10.77.0.1/24", 1), settings=settings) as here:
        (client,) = here.wire.clients
        script = tmp_path / "script"
        script.write_text(
            '#!/bin/sh\n[ "$reason" = BOUND ] && ip address add $new_ip_address/24 dev $interface; exit 0\n'
        )
        script.chmod(0o755)
        for at in range(2):
            process = await asyncio.create_subprocess_exec(
                *client.command(
                    "dhclient", "-4", "-1", "-d", "-sf", str(script), "-lf", str(tmp_path / f"leases{at}"), "-pf",
                    str(tmp_path / "pid"), "-cf", "/dev/null", "c0",
                ),
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await until(lambda: "10.77.0.100/24" in client.ip("address", "show", "c0"))
                await until(lambda: [each.state for each in here.service.leases()] == ["bound"])
            finally:
                process.kill()
                await process.wait()
            (bound,) = here.service.leases()
            assert str(bound.address) == "10.77.0.100"
            assert here.service.release(bound.address)
            await until(lambda: [each.state for each in here.service.leases()] == ["declined"])
            offer = await here.stations[0].ask(message(DISCOVER, A, xid=1))
            while offer.message.xid != 1:  # what dhclient was told passes by here
                offer = await here.stations[0].hear()
            assert offer.message.yiaddr == number("10.77.0.101")
        assert conflicts(here) == [], "it is its own"


@on_every_loop
def test_a_link_that_goes_down_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    monkeypatch.setattr(dhcp_conflicts, "RETRY", 0.2)
    run_on(loop, a_link_goes_down_and_up(tmp_path))


async def a_link_goes_down_and_up(tmp_path: Path) -> None:
    async with site(tmp_path, settings=config.Dhcp(subnets=PAIR, probe=0)) as here:
        here.wire.server.ip("link", "set", "s0", "down")
        await until(lambda: here.service.counters()["arp_failed"] > 1)
        here.wire.clients[0].ip("address", "add", "10.77.0.100/24", "dev", "c0")
        here.wire.server.ip("link", "set", "s0", "up")
        await until(lambda: bool(conflicts(here)))


async def test_probes_can_be_switched_off_while_it_serves(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await until(lambda: here.service.counters()["arp_probes"] >= 8)
        here.service.reload(config.Dhcp(subnets=(ONE,), arp_probes=False), ())
        before = here.service.counters()["arp_probes"]
        here.service._conflicts._ask()
        assert here.service.counters()["arp_probes"] == before
        here.wire.clients[0].ip("address", "add", "10.77.0.100/24", "dev", "c0")
        here.service.reload(config.Dhcp(subnets=(ONE,), quarantine=60), ())
        await until(lambda: bool(conflicts(here)))
        assert here.service._responder.quarantine == 60


async def test_doubt(tmp_path: Path) -> None:
    """What the service does after a damaged store."""
    async with site(tmp_path) as here:
        (station,) = here.stations
        assert here.service.doubt([IPv4Address("10.77.0.100"), IPv4Address("10.9.9.9")]) == 1
        assert here.service.doubt() == 151
        here.wire.clients[0].ip("address", "add", "10.77.0.100/24", "dev", "c0")
        offer = None
        while offer is None:
            station.send(message(DISCOVER, A))
            with suppress(TimeoutError):
                offer = await station.hear(0.1)
        assert (offer.message.type, str(IPv4Address(offer.message.yiaddr))) == (OFFER, "10.77.0.101")
        assert here.service.counters()["doubtful"] > 10, "silence, for two seconds and more"


def test_arp_of_a_socket_is_read_in_batches() -> None:
    wire = Wire()
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        for at in range(100, 170):
            there.send(arp(f"10.77.0.{at}", f"52:54:00:cc:00:{at:02x}"))
        assert wire.responder.readable_arp(0, here.fileno(), wire.now) == 64
        assert wire.responder.readable_arp(0, here.fileno(), wire.now) == 6
        assert wire.responder.readable_arp(0, here.fileno(), wire.now) == 0

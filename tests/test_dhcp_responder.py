"""The DHCP server, state by state (RFC 2131, protocol-facts.md A2), on a virtual clock without a socket."""

from __future__ import annotations

import itertools
import json
import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import (
    ACK,
    ALL,
    DECLINE,
    DISCOVER,
    INFORM,
    NAK,
    OFFER,
    OUR_MAC,
    RELEASE,
    REQUEST,
    SECOND,
    Office,
    asking,
    message,
    number,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP

from fastboot import config
from fastboot._core import Responder
from fastboot.model import Node, Plan, Scope

A, B, C = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"
OURS, OTHERS = "10.77.0.1", "10.77.0.2"
FIRST, SECOND_ADDRESS = "10.77.0.100", "10.77.0.101"


def small(*pools: str) -> tuple[config.Subnet, ...]:
    return (config.Subnet(network="10.77.0.0/24", pools=pools),)


def kinds(office: Office) -> list[str]:
    return [event[0] for event in office.responder.events()]


# ---- DISCOVER


def test_a_stranger_is_offered_the_first_address_and_bound_to_it() -> None:
    office = Office()
    (offer,) = office.send(message(DISCOVER, A, xid=7))
    assert (offer.message.type, offer.message.xid, offer.address) == (OFFER, 7, FIRST)
    assert (offer.source, offer.message.options[54]) == (OURS, IPv4Address(OURS).packed)
    (ack,) = office.send(message(REQUEST, A, xid=7, options=asking(FIRST, OURS)))
    assert (ack.message.type, ack.address) == (ACK, FIRST)
    assert int.from_bytes(ack.message.options[51]) == 3600
    assert kinds(office) == ["offer", "ack"]


def test_addresses_free_longest_are_given_first() -> None:
    """DHCP starvation (D2): one that was just released is not the next that a stranger gets."""
    office = Office(subnets=small("10.77.0.100-10.77.0.102"))
    assert office.lease_of(A) == FIRST
    office.send(message(RELEASE, A, ciaddr=FIRST, options=((54, IPv4Address(OURS).packed),)))
    assert [office.lease_of(mac) for mac in (B, C, "52:54:00:aa:00:04")] == [
        "10.77.0.101",
        "10.77.0.102",
        "10.77.0.100",
    ]


def test_a_machine_gets_its_address_back() -> None:
    office = Office()
    office.lease_of(B)
    assert office.lease_of(A) == SECOND_ADDRESS
    office.pass_time(7200)
    assert office.responder.leases(office.now, office.wall) == []
    assert office.lease_of(C) == "10.77.0.102"
    assert office.lease_of(A) == SECOND_ADDRESS


def test_one_machine_with_three_identities_has_one_address() -> None:
    """B9: firmware sends no option 61, iPXE 01 + MAC, the installed system a DUID."""
    office = Office()
    found = set()
    for client_id in (
        None,
        b"\x01" + bytes.fromhex("525400aa0001"),
        b"\xff\x12\x34\x56\x78\x00\x02\x00\x00\xab\x11xyz",
    ):
        options = () if client_id is None else ((61, client_id),)
        (offer,) = office.send(message(DISCOVER, A, options=options))
        (ack,) = office.send(message(REQUEST, A, options=(*asking(offer.address, OURS), *options)))
        assert offer.message.options.get(61) == ack.message.options.get(61) == client_id, "RFC 6842"
        found.add(ack.address)
    assert found == {FIRST}


def test_without_a_hardware_address_option_61_is_the_identity() -> None:
    office = Office()

    def infiniband(type_: int, client_id: bytes, *more: tuple[int, bytes]) -> bytes:
        return message(type_, "", htype=32, flags=0x8000, options=((61, client_id), *more))

    offers = [office.send(infiniband(DISCOVER, client_id))[0].address for client_id in (b"\xffone", b"\xfftwo")]
    assert offers == [FIRST, SECOND_ADDRESS]
    (ack,) = office.send(infiniband(REQUEST, b"\xfftwo", *asking(SECOND_ADDRESS, OURS)))
    assert ack.address == SECOND_ADDRESS and ack.way == "all"
    assert office.send(message(DISCOVER, "", htype=32)) == []
    assert office.counters["no_identity"] == 1


@pytest.mark.parametrize(
    ("htype", "mac", "ends"),
    [
        (1, "00:00:00:00:00:00", "bad_chaddr"),
        (1, "ff:ff:ff:ff:ff:ff", "bad_chaddr"),
        (1, "01:00:5e:00:00:01", "bad_chaddr"),
        (1, "53:54:00:aa:00:01", "bad_chaddr"),
        (1, "00" * 16, "bad_chaddr"),  # EDK2 with SendGUID and no GUID
        (1, "4c4c4544" * 4, "offer"),  # EDK2 with SendGUID
        (1, "52:54:00:aa:00", "bad_hlen"),
        (1, "52:54:00:aa:00:01:00", "bad_hlen"),
        (1, "52:54:00:aa:00:01:00:00", "bad_hlen"),
        (1, "", "offer"),
        (8, "52415320" + "53" * 12, "offer"),  # Microsoft's RAS
        (24, "53:54:00:aa:00:01:02:03", "offer"),  # FireWire
        (32, "", "offer"),
    ],
)
def test_hardware_addresses_that_no_machine_has_get_nothing(htype: int, mac: str, ends: str) -> None:
    """A card whose memory is blank sends zeros or ones; every such machine would have the same lease."""
    office = Office()
    client_id = ((61, b"\xff0123"),)
    for packet in (
        message(DISCOVER, mac, htype=htype, flags=0x8000, options=client_id),
        message(REQUEST, mac, htype=htype, flags=0x8000, options=(*asking(FIRST, OURS), *client_id)),
    ):
        assert bool(office.send(packet)) == (ends == "offer")
    assert office.counters[ends] == (1 if ends == "offer" else 2)


def test_an_offer_holds_its_address_for_two_minutes() -> None:
    """A Raspberry Pi boots from its OFFER and never sends REQUEST (B7)."""
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    assert office.send(message(DISCOVER, A))[0].address == FIRST
    office.pass_time(119)
    assert office.responder.lease_at(number(FIRST), office.now, office.wall)[2].hex(":") == A  # type: ignore[index]
    assert office.send(message(DISCOVER, B)) == []
    office.pass_time(1)
    assert office.responder.lease_at(number(FIRST), office.now, office.wall) is None
    assert office.send(message(DISCOVER, B))[0].address == FIRST


def test_a_pool_without_free_addresses_is_told_once() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    office.lease_of(A)
    for mac in (B, C, B):
        assert office.send(message(DISCOVER, mac)) == []
    assert office.counters["exhausted"] == 3
    assert kinds(office).count("exhausted") == 1
    office.pass_time(3601)
    assert office.lease_of(B) == FIRST, "an expired lease is free again"
    assert office.send(message(DISCOVER, C)) == []
    assert kinds(office).count("exhausted") == 1


def test_the_requested_address_where_it_is_free() -> None:
    office = Office()
    (offer,) = office.send(message(DISCOVER, A, options=asking("10.77.0.150")))
    assert offer.address == "10.77.0.150"
    (offer,) = office.send(message(DISCOVER, B, options=asking("10.77.0.150")))
    assert offer.address == FIRST, "it is on offer to another"
    (offer,) = office.send(message(DISCOVER, C, options=asking("10.77.0.50")))
    assert offer.address == SECOND_ADDRESS, "it is in no pool"


def test_u_boot_changes_its_xid_at_every_discover() -> None:
    office = Office()
    offers = [office.send(message(DISCOVER, A, xid=xid))[0] for xid in range(1, 8)]
    assert [offer.message.xid for offer in offers] == list(range(1, 8))
    assert {offer.address for offer in offers} == {FIRST}
    assert kinds(office) == ["offer"], "one fact, one event"


def test_grub_gives_all_nodes_one_xid() -> None:
    office = Office()
    offers = [office.send(message(DISCOVER, mac, xid=0x69240000))[0] for mac in (A, B, C)]
    assert len({offer.address for offer in offers}) == 3
    acks = [
        office.send(message(REQUEST, mac, xid=0x69240001, options=asking(offer.address, OURS)))[0]
        for mac, offer in zip((A, B, C), offers, strict=True)
    ]
    assert [ack.address for ack in acks] == [offer.address for offer in offers]
    assert [ack.hardware for ack in acks] == [A, B, C]


# ---- REQUEST, by state (A2)


def test_selecting_another_server_frees_the_offer_in_silence() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    office.send(message(DISCOVER, A))
    assert office.send(message(REQUEST, A, options=asking("10.77.0.33", OTHERS))) == []
    assert office.counters["other_server"] == 1
    assert office.send(message(DISCOVER, B))[0].address == FIRST
    told = [event for event in office.responder.events() if event[0] == "other_server"]
    assert [IPv4Address(event[5]) for event in told] == [IPv4Address(OTHERS)]
    office.send(message(REQUEST, A, options=asking("10.77.0.33", OTHERS)))
    assert kinds(office) == [], "told once for each server"
    office.pass_time(60)
    office.send(message(REQUEST, A, options=asking("10.77.0.33", OTHERS)))
    assert sorted(kinds(office)) == ["other_server", "unanswered"], "and again in a minute: it is still there"


def test_who_makes_servers_up_makes_few_events() -> None:
    office = Office()
    for at in range(100):
        office.send(message(REQUEST, A, options=asking("10.77.0.33", f"10.88.0.{at}")))
    assert sorted(kinds(office)) == [*["other_server"] * 16, "unanswered"], "of servers, and of the machine once"
    assert office.counters["other_server"] == 100


@pytest.mark.parametrize("type_", [DISCOVER, INFORM])
def test_questions_of_our_own_that_come_back_are_dropped(type_: int) -> None:
    """By a relay, or by another link of ours on the same wire."""
    office = Office()
    for giaddr in ("0.0.0.0", "10.77.0.3"):
        assert (
            office.send(message(type_, OUR_MAC, giaddr=giaddr, ciaddr=OURS if type_ == INFORM else "0.0.0.0"))
            == []
        )
    assert office.counters == {"received": 2, "own_probe": 2}
    assert office.asked == 0
    assert office.lease_of(A) == FIRST, "they took no address"


def test_any_address_of_ours_is_our_identifier() -> None:
    office = Office(links=(("10.77.0.1/24", "192.168.5.1/24"),))
    (offer,) = office.send(message(DISCOVER, A))
    (ack,) = office.send(message(REQUEST, A, options=asking(offer.address, "192.168.5.1")))
    assert ack.message.type == ACK


@pytest.mark.parametrize("asked", ["10.77.0.101", "10.77.0.50", "10.99.0.7"])
def test_selecting_what_is_not_to_be_had_is_refused(asked: str) -> None:
    office = Office()
    office.lease_of(B)
    office.lease_of(C)
    (offer,) = office.send(message(DISCOVER, A))
    (nak,) = office.send(message(REQUEST, A, options=asking(asked, OURS)))
    assert (nak.message.type, nak.way, nak.address) == (NAK, "all", "0.0.0.0")
    (ack,) = office.send(message(REQUEST, A, options=asking(offer.address, OURS)))
    assert ack.message.type == ACK


def test_an_offer_of_before_a_restart_is_kept() -> None:
    office = Office()
    (ack,) = office.send(message(REQUEST, A, options=asking("10.77.0.120", OURS)))
    assert (ack.message.type, ack.address) == (ACK, "10.77.0.120")


def test_init_reboot() -> None:
    """Silent without a record; ACK where it is right; NAK where it is wrong."""
    office = Office()
    assert office.send(message(REQUEST, A, options=asking(FIRST))) == []
    assert office.counters["unknown_client"] == 1
    office.lease_of(A)
    (ack,) = office.send(message(REQUEST, A, options=asking(FIRST)))
    assert (ack.message.type, ack.address, ack.way) == (ACK, FIRST, "hardware")
    (nak,) = office.send(message(REQUEST, A, options=asking("10.77.0.150")))
    assert nak.message.type == NAK
    assert office.send(message(REQUEST, B, options=asking(FIRST))) == [], "no record of B, though A has it"


def test_init_reboot_after_the_lease_has_ended() -> None:
    office = Office()
    office.lease_of(A)
    office.pass_time(9999)
    (ack,) = office.send(message(REQUEST, A, options=asking(FIRST)))
    assert (ack.message.type, ack.address) == (ACK, FIRST)


def test_an_offer_is_no_record() -> None:
    office = Office()
    office.send(message(DISCOVER, A))
    assert office.send(message(REQUEST, A, options=asking("10.77.0.150"))) == []
    (ack,) = office.send(message(REQUEST, A, options=asking(FIRST)))
    assert ack.message.type == ACK, "a client that leaves option 54 out"


@pytest.mark.parametrize("authoritative", [True, False])
def test_an_address_of_another_network(authoritative: bool) -> None:
    """Only a server that is alone on the link knows that it is wrong."""
    office = Office(authoritative=authoritative)
    replies = office.send(message(REQUEST, A, options=asking("192.168.1.5")))
    assert [reply.message.type for reply in replies] == ([NAK] if authoritative else [])
    assert office.counters.get("other_network", 0) == (not authoritative)


def test_renewing_is_answered_to_its_address() -> None:
    office = Office()
    office.lease_of(A)
    office.pass_time(1800)
    (ack,) = office.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert (ack.message.type, ack.way, ack.destination, ack.port) == (ACK, "address", FIRST, 68)
    assert ack.message.ciaddr == number(FIRST)
    assert int.from_bytes(ack.message.options[51]) == 3600
    office.pass_time(3599)
    assert len(office.responder.leases(office.now, office.wall)) == 1
    office.pass_time(2)
    assert office.responder.leases(office.now, office.wall) == []


def test_renewing_what_another_has_is_refused_and_what_nobody_knows_is_not_answered() -> None:
    office = Office()
    office.lease_of(A)
    (nak,) = office.send(message(REQUEST, B, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert (nak.message.type, nak.way) == (NAK, "all")
    assert office.send(message(REQUEST, B, ciaddr="10.77.0.140"), destination=number(OURS)) == []
    assert office.send(message(REQUEST, B, ciaddr="192.168.1.9"), destination=number(OURS)) == []


def test_rebinding() -> None:
    """Silent without a record, for it may be another server's; ACK or NAK with one."""
    office = Office()
    assert office.send(message(REQUEST, A, ciaddr="10.77.0.140"), source=number("10.77.0.140")) == []
    office.lease_of(A)
    office.pass_time(3000)
    (ack,) = office.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST))
    assert (ack.message.type, ack.way, ack.destination) == (ACK, "address", FIRST)
    (nak,) = office.send(message(REQUEST, A, ciaddr="10.77.0.140"), source=number("10.77.0.140"))
    assert (nak.message.type, nak.way) == (NAK, "all")
    assert office.send(message(REQUEST, B, ciaddr=FIRST), source=number(FIRST)) == []


def test_a_request_without_an_address() -> None:
    office = Office()
    assert office.send(message(REQUEST, A)) == []
    assert office.counters["no_address_asked"] == 1


def test_whom_policy_ignores_gets_nothing_not_even_a_nak() -> None:
    office = Office(plan=None)
    for packet in (
        message(DISCOVER, A),
        message(REQUEST, A, options=asking("192.168.1.5")),
        message(REQUEST, A, options=asking("10.77.0.5", OURS)),
        message(INFORM, A, ciaddr="10.77.0.5"),
    ):
        assert office.send(packet) == []
    assert office.counters["ignored"] == 4
    assert office.asked == 1, "and policy is not asked again and again"


# ---- DECLINE, RELEASE, INFORM, BOOTP


def test_a_declined_address_is_out_for_an_hour() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.101"))
    office.lease_of(A)
    decline = message(DECLINE, A, options=asking(FIRST, OURS))
    assert office.send(decline) == []
    assert office.responder.leases(office.now, office.wall)[0][1] == "declined"
    assert office.lease_of(A) == SECOND_ADDRESS
    assert office.send(message(DISCOVER, B)) == []
    assert "decline" in kinds(office)
    office.pass_time(3601)
    assert office.lease_of(A) == SECOND_ADDRESS
    assert office.lease_of(B) == FIRST


def test_edk2_declines_what_it_does_not_understand() -> None:
    """B2: an ACK without option 1, or with another address. No conflict; the pool must not drain for it."""
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    for text in (b"Lease is denied upon entering bound.", b"Lease confirmed isn't the same as that in the offer."):
        office.lease_of(A)
        office.send(message(DECLINE, A, options=(*asking(FIRST, OURS), (56, text))))
        assert office.responder.leases(office.now, office.wall) == []
        told = [event for event in office.responder.events() if event[0] == "decline"]
        assert told[0][5] == 0 and told[0][6] == text[:64]
    assert office.lease_of(A) == FIRST


def test_only_who_has_an_address_can_give_it_up() -> None:
    office = Office()
    office.lease_of(A)
    server = ((54, IPv4Address(OURS).packed),)
    office.send(message(DECLINE, B, options=asking(FIRST, OURS)))
    office.send(message(DECLINE, A, options=asking("10.77.0.150", OURS)))
    office.send(message(DECLINE, A, options=asking(FIRST, OTHERS)))
    office.send(message(RELEASE, B, ciaddr=FIRST, options=server))
    office.send(message(RELEASE, A, ciaddr="10.77.0.150", options=server))
    office.send(message(RELEASE, A, ciaddr=FIRST, options=((54, IPv4Address(OTHERS).packed),)))
    assert [lease[1] for lease in office.responder.leases(office.now, office.wall)] == ["bound"]
    assert (office.counters["decline_by_stranger"], office.counters["release_by_stranger"]) == (3, 3)
    assert office.send(message(RELEASE, A, ciaddr=FIRST, options=server)) == []
    assert office.responder.leases(office.now, office.wall) == []


def test_inform() -> None:
    office = Office()
    office.lease_of(B)
    (ack,) = office.send(message(INFORM, A, ciaddr=FIRST), source=number(FIRST))
    assert (ack.message.type, ack.way, ack.destination) == (ACK, "address", FIRST)
    assert ack.message.yiaddr == 0 and 51 not in ack.message.options
    assert len(office.responder.leases(office.now, office.wall)) == 1, "no lease is looked at or made"
    (ack,) = office.send(message(INFORM, A), source=number("10.77.0.9"))
    assert ack.destination == "10.77.0.9", "ciaddr is 0: to where it came from"
    assert office.send(message(INFORM, A)) == []
    assert office.send(message(INFORM, A, ciaddr="8.8.8.8"), source=number("8.8.8.8")) == [], "no reflector"
    (ack,) = office.send(message(INFORM, A, giaddr="10.77.0.9"))
    assert (ack.destination, ack.port, ack.message.flags) == ("10.77.0.9", 67, 0x8000)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (message(0, A), "bootp"),
        (message(OFFER, A), "unknown_type"),
        (message(13, A), "unknown_type"),
        (b"\x02" + message(DISCOVER, A)[1:], "not_a_request"),
        (message(DISCOVER, A, giaddr="172.16.0.1"), "no_subnet"),
        (b"x", "short"),
    ],
)
def test_silence_has_a_name(packet: bytes, reason: str) -> None:
    office = Office()
    assert office.send(packet) == []
    assert office.counters == {"received": 1, reason: 1}


# ---- where replies go (RFC 2131 section 4.1)


def test_destinations() -> None:
    office = Office()
    (offer,) = office.send(message(DISCOVER, A))
    assert (offer.way, offer.destination, offer.port, offer.hardware) == ("hardware", FIRST, 68, A)
    packet = IP(offer.frame)
    assert (packet.src, packet.dst, packet[UDP].sport, packet[UDP].dport) == (OURS, FIRST, 67, 68)
    (offer,) = office.send(message(DISCOVER, A, flags=0x8000))
    assert (offer.way, offer.source) == ("all", OURS)
    (offer,) = office.send(message(DISCOVER, A, giaddr="10.77.0.9"), destination=number(OURS))
    assert (offer.way, offer.destination, offer.port) == ("address", "10.77.0.9", 67)
    office.responder.raw = False
    (offer,) = office.send(message(DISCOVER, A))
    assert offer.way == "all", "broadcast is permitted where frames are not"


def test_a_guid_as_hardware_address_is_no_ethernet_address() -> None:
    """B2: EDK2 with SendGUID has hlen 16; nothing can be sent to that."""
    office = Office()
    (offer,) = office.send(message(DISCOVER, bytes(range(16)).hex()))
    assert offer.way == "all"
    assert offer.message.chaddr == bytes(range(16))


def test_a_nak_through_a_relay_is_for_broadcast() -> None:
    office = Office()
    options = (*asking("10.77.0.150", OURS), (82, b"\x01\x04port"))
    office.lease_of(B)
    (nak,) = office.send(message(REQUEST, B, giaddr="10.77.0.9", options=options), destination=number(OURS))
    assert (nak.message.type, nak.destination, nak.port, nak.message.flags) == (NAK, "10.77.0.9", 67, 0x8000)
    assert nak.message.options[82] == b"\x01\x04port"


def test_a_relay_is_served_from_its_own_subnet() -> None:
    office = Office(
        subnets=(
            config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",)),
            config.Subnet(network="10.88.0.0/24", pools=("10.88.0.10-10.88.0.20",), gateway="10.88.0.1"),
        )
    )
    (offer,) = office.send(message(DISCOVER, A, giaddr="10.88.0.1"), destination=number(OURS))
    assert (offer.address, offer.source) == ("10.88.0.10", OURS)
    assert offer.message.options[3] == IPv4Address("10.88.0.1").packed


# ---- links and aliases

TWO = (
    config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.101",)),
    config.Subnet(network="10.78.0.0/24", pools=("10.78.0.100-10.78.0.101",)),
)


def test_two_interfaces_answer_each_for_itself() -> None:
    office = Office(subnets=TWO, links=(("10.77.0.1/24",), ("10.78.0.1/24",)))
    (one,) = office.send(message(DISCOVER, A), link=0)
    (two,) = office.send(message(DISCOVER, B), link=1)
    assert (one.address, one.source, one.message.siaddr) == (FIRST, OURS, number(OURS))
    assert (two.address, two.source, two.message.siaddr) == ("10.78.0.100", "10.78.0.1", number("10.78.0.1"))
    assert two.message.options[54] == IPv4Address("10.78.0.1").packed
    assert two.message.options[66] == b"10.78.0.1"
    (moved,) = office.send(message(DISCOVER, A), link=1)
    assert moved.address == "10.78.0.101", "another link, another lease"
    (nak,) = office.send(message(REQUEST, A, options=asking(FIRST)), link=1)
    assert nak.message.type == NAK


def test_an_alias_answers_as_the_address_of_the_clients_subnet() -> None:
    office = Office(
        subnets=TWO, links=(("10.77.0.1/24", "10.78.0.1/24"),), nodes=(Node("n", (C,), IPv4Address("10.78.0.7")),)
    )
    (node,) = office.send(message(DISCOVER, C))
    assert (node.address, node.source) == ("10.78.0.7", "10.78.0.1")
    assert node.message.options[1] == bytes((255, 255, 255, 0))
    assert [office.lease_of(mac) for mac in (A, B)] == [FIRST, SECOND_ADDRESS]
    (third,) = office.send(message(DISCOVER, "52:54:00:aa:00:09"))
    assert (third.address, third.source) == ("10.78.0.100", "10.78.0.1"), "the first pool is empty"
    (ack,) = office.send(message(REQUEST, "52:54:00:aa:00:09", options=asking("10.78.0.100", "10.78.0.1")))
    assert (ack.message.type, ack.source) == (ACK, "10.78.0.1")


def test_a_renewal_is_answered_from_the_address_that_was_asked() -> None:
    office = Office(links=(("10.77.0.1/24", "10.77.0.3/24"),))
    office.lease_of(A)
    office.pass_time(1800)
    (ack,) = office.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST), destination=number("10.77.0.3"))
    assert ack.source == "10.77.0.3"


# ---- nodes and fixed addresses

NODE = Node("node01", (A, B), IPv4Address("10.77.0.11"))


def test_a_fixed_address_is_its_nodes_alone() -> None:
    inside = Node("node01", (A,), IPv4Address(FIRST))
    office = Office(subnets=small("10.77.0.100-10.77.0.101"), nodes=(inside,))
    assert office.lease_of(B) == SECOND_ADDRESS
    assert office.send(message(DISCOVER, C, options=asking(FIRST))) == []
    (nak,) = office.send(message(REQUEST, C, options=asking(FIRST, OURS)))
    assert nak.message.type == NAK
    assert office.lease_of(A) == FIRST


def test_a_node_has_one_address_on_all_its_interfaces() -> None:
    office = Office(nodes=(NODE,))
    assert office.lease_of(A) == office.lease_of(B) == "10.77.0.11"


def test_a_node_that_asks_for_another_address_is_set_right() -> None:
    office = Office(nodes=(NODE,))
    (nak,) = office.send(message(REQUEST, A, options=asking("10.77.0.150")))
    assert nak.message.type == NAK
    (ack,) = office.send(message(REQUEST, A, options=asking("10.77.0.11")))
    assert ack.message.type == ACK, "no lease is on record, but the configuration is"


def test_a_new_fixed_address_takes_over_at_the_next_request() -> None:
    office = Office()
    assert office.lease_of(A) == FIRST
    office.nodes = (NODE,)
    office.configure()
    (nak,) = office.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert nak.message.type == NAK
    assert office.lease_of(A) == "10.77.0.11"
    assert [IPv4Address(lease[0]) for lease in office.responder.leases(office.now, office.wall)] == [
        IPv4Address("10.77.0.11")
    ]


def test_a_fixed_address_that_another_still_has_is_waited_for() -> None:
    office = Office()
    assert office.lease_of(B) == FIRST
    office.nodes = (Node("node01", (A,), IPv4Address(FIRST)),)
    office.configure()
    assert office.lease_of(A) == SECOND_ADDRESS, "booting from the pool beats not booting"
    assert "address_taken" in kinds(office)
    (nak,) = office.send(message(REQUEST, B, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert nak.message.type == NAK
    office.pass_time(3601)
    assert office.lease_of(A) == FIRST


def test_a_plan_can_name_the_address() -> None:
    office = Office(decide=lambda mac: Plan(address=IPv4Address("10.77.0.42"), scope=Scope.MACHINE))
    assert office.lease_of(A) == "10.77.0.42"
    assert office.lease_of(B) == FIRST, "it is taken"
    office = Office(decide=lambda mac: Plan(address=IPv4Address("192.168.9.9"), scope=Scope.MACHINE))
    assert office.lease_of(A) == FIRST, "it is not of this link"
    assert office.counters["address_off_link"] == 2


# ---- the plan table


def test_a_class_is_decided_once_a_node_always_for_itself() -> None:
    office = Office(nodes=(NODE,))
    for mac in (C, "52:54:00:aa:00:04", "52:54:00:aa:00:05"):
        office.lease_of(mac)
    assert office.asked == 1
    office.lease_of(A)
    assert office.asked == 2
    office.send(message(DISCOVER, "52:54:00:aa:00:06", options=((60, b"PXEClient"),)))
    office.send(message(DISCOVER, "52:54:00:aa:00:06", options=((77, b"iPXE"),)))
    office.send(message(DISCOVER, "52:54:00:aa:00:06", options=((93, b"\0\7"),)))
    office.send(message(DISCOVER, "52:54:00:aa:00:06", options=((175, b"\x13\x01\x01"),)))
    assert office.asked == 6


@pytest.mark.parametrize(("scope", "asked"), [(Scope.CLASS, 1), (Scope.MACHINE, 2), (Scope.ONCE, 4)])
def test_scopes(scope: Scope, asked: int) -> None:
    office = Office(decide=lambda mac: Plan(loader=mac[-2:], scope=scope))
    for mac in (A, B, A, B):
        (offer,) = office.send(message(DISCOVER, mac))
        assert scope is Scope.CLASS or offer.message.file.startswith(mac[-2:].encode())
    assert office.asked == asked


def test_forget_asks_again() -> None:
    office = Office()
    office.send(message(DISCOVER, A))
    office.plan = Plan(loader="other")
    (offer,) = office.send(message(DISCOVER, A))
    assert offer.message.options[67] == b"pxelinux.0"
    office.responder.forget()
    (offer,) = office.send(message(DISCOVER, A))
    assert offer.message.options[67] == b"other"


def plan(loader: bytes) -> tuple[int, int, int, int, bytes, bytes, bytes, bytes]:
    return (0, number(OURS), 0, 1, loader, b"\x01\x04\xff\xff\xff\x00", b"", b"")


def test_a_decision_of_before_a_reload_does_not_hold() -> None:
    office = Office()
    responder = office.responder
    responder.receive(message(DISCOVER, A), 0, 0, ALL, office.now)
    ((token, *_),) = responder.misses()
    responder.forget()
    responder.answer(token, plan(b"old"), "class", office.now)
    assert office.take() == [] and responder.asking == 1
    ((token, *_),) = responder.misses()
    responder.answer(token, plan(b"new"), "class", office.now)
    (offer,) = office.take()
    assert offer.message.file.startswith(b"new\0")


def test_the_last_packet_of_a_client_waits_for_the_decision() -> None:
    office = Office()
    responder = office.responder
    for xid in (1, 2, 3):
        responder.receive(message(DISCOVER, A, xid=xid), 0, 0, ALL, office.now)
    ((token, *_),) = responder.misses()
    responder.receive(message(DISCOVER, A, xid=4), 0, 0, ALL, office.now)
    assert responder.misses() == []
    responder.answer(token, plan(b"x"), "class", office.now)
    assert [reply.message.xid for reply in office.take()] == [4]
    assert office.counters["held_replaced"] == 3


def test_a_held_client_that_became_another_class_is_asked_about_again() -> None:
    office = Office()
    responder = office.responder
    responder.receive(message(DISCOVER, A), 0, 0, ALL, office.now)
    ((token, *_),) = responder.misses()
    responder.receive(message(DISCOVER, A, options=((77, b"iPXE"),)), 0, 0, ALL, office.now)
    responder.answer(token, plan(b"rom"), "class", office.now)
    assert office.take() == []
    ((token, *rest),) = responder.misses()
    assert rest[7] == b"iPXE"
    responder.answer(token, plan(b"script"), "class", office.now)
    assert [reply.message.file.rstrip(b"\0") for reply in office.take()] == [b"script"]


def test_late_decisions_hold_for_the_next_packet() -> None:
    office = Office()
    responder = office.responder
    responder.receive(message(DISCOVER, A), 0, 0, ALL, office.now)
    ((token, *_),) = responder.misses()
    office.pass_time(2.5)
    responder.receive(message(DISCOVER, B), 0, 0, ALL, office.now)
    assert office.counters["decision_late"] == 1
    responder.answer(token, plan(b"x"), "class", office.now)
    assert office.take() == [], "the packet is forgotten"
    assert responder.misses() == [], "B is of the same class, which is decided by now"
    assert [offer.hardware for offer in office.take()] == [B]
    assert len(office.send(message(DISCOVER, A))) == 1
    assert office.counters["miss"] == 2


def test_a_storm_of_one_class_is_decided_once() -> None:
    office = Office()
    for at in range(50):
        office.responder.receive(message(DISCOVER, f"52:54:00:00:00:{at:02x}"), 0, 0, ALL, office.now)
    office.answer()
    assert len(office.take()) == 50
    assert office.asked == 1


def test_4096_requests_wait_and_no_more() -> None:
    office = Office(
        subnets=(config.Subnet(network="10.64.0.0/12", pools=("10.65.0.0-10.65.31.255",)),),
        links=(("10.64.0.1/12",),),
    )
    responder = office.responder
    for at in range(4100):
        responder.receive(message(DISCOVER, f"52:54:00:00:{at >> 8:02x}:{at & 255:02x}"), 0, 0, ALL, office.now)
    assert office.counters["held_full"] == 4
    waiting = responder.misses()
    assert len(waiting) == 4096
    for token, *_ in waiting:
        responder.answer(token, plan(b"x"), "once", office.now)
    assert len(office.take()) == 4096
    assert len(office.send(message(DISCOVER, A))) == 1


def test_the_plan_table_forgets_the_oldest() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    responder = office.responder

    def knows(vendor: int) -> bool:
        responder.receive(message(DISCOVER, A, options=((60, vendor.to_bytes(4)),)), 0, 0, ALL, office.now)
        missed = responder.misses()
        for token, *_ in missed:
            responder.answer(token, None, "class", office.now)
        return not missed

    for vendor in range(65_536):
        assert not knows(vendor)
    assert knows(0) and knows(65_535)
    assert not knows(70_000)
    assert not knows(0), "the oldest is out"
    assert knows(65_535)


# ---- commits


def test_no_ack_before_its_lease_is_on_disk() -> None:
    office = Office(disk=False)
    office.send(message(DISCOVER, A))
    assert office.send(message(REQUEST, A, options=asking(FIRST, OURS))) == []
    number_, rows = office.responder.batch(1)  # type: ignore[misc]
    assert f'"{number(FIRST)}":"1 1 {FIRST} bound 1 {A}   0.0.0.0   ' in rows
    assert office.take() == []
    office.responder.durable(number_, True, office.now)
    (ack,) = office.take()
    assert (ack.message.type, ack.address) == (ACK, FIRST)
    assert office.responder.batch(1) is None


def test_one_batch_is_in_flight_and_rows_gather_meanwhile() -> None:
    office = Office(disk=False)
    offers = {mac: office.send(message(DISCOVER, mac))[0].address for mac in (A, B, C)}
    office.send(message(REQUEST, A, options=asking(offers[A], OURS)))
    first = office.responder.batch(1)
    for mac in (B, C):
        office.send(message(REQUEST, mac, options=asking(offers[mac], OURS)))
    assert office.responder.batch(1) is None
    with pytest.raises(ValueError, match="not in flight"):
        office.responder.durable(first[0] + 1, True, office.now)  # type: ignore[index]
    office.responder.durable(first[0], True, office.now)  # type: ignore[index]
    assert [ack.hardware for ack in office.take()] == [A]
    second = office.responder.batch(1)
    assert second is not None and second[1].count(" bound ") == 2
    office.responder.durable(second[0], True, office.now)
    assert [ack.hardware for ack in office.take()] == [B, C]


def test_a_batch_has_256_rows_at_most() -> None:
    office = Office(
        subnets=(config.Subnet(network="10.64.0.0/12", pools=("10.65.0.0-10.65.31.255",)),),
        links=(("10.64.0.1/12",),),
        disk=False,
    )
    macs = [f"52:54:00:00:{at >> 8:02x}:{at & 255:02x}" for at in range(600)]
    for mac in macs:
        (offer,) = office.send(message(DISCOVER, mac))
        assert office.send(message(REQUEST, mac, options=asking(offer.address, "10.64.0.1"))) == []
    sizes = []
    while batch := office.responder.batch(1):
        sizes.append(batch[1].count(" bound "))
        office.responder.durable(batch[0], True, office.now)
    assert sizes == [256, 256, 88]
    assert [ack.hardware for ack in office.take()] == macs


def test_a_request_that_meets_its_row_in_flight_joins_with_its_own_xid() -> None:
    office = Office(disk=False)
    office.send(message(DISCOVER, A))
    for xid in (1, 1, 2):
        assert office.send(message(REQUEST, A, xid=xid, options=asking(FIRST, OURS))) == []
    assert office.counters["already_waiting"] == 1
    written = office.commit()
    assert len(written) == 1 and written[0].count(" bound ") == 1
    assert [ack.message.xid for ack in office.take()] == [1, 2]


def test_a_commit_that_fails_acknowledges_nothing_and_the_service_goes_on() -> None:
    office = Office(disk=False, subnets=small("10.77.0.100-10.77.0.100"))
    office.send(message(DISCOVER, A))
    office.send(message(REQUEST, A, options=asking(FIRST, OURS)))
    office.commit(ok=False)
    assert office.take() == []
    assert office.counters["commit_failed"] == 1
    assert "ack" not in kinds(office)
    assert office.responder.leases(office.now, office.wall) == []
    assert office.send(message(DISCOVER, B)) == [], "the offer to A stands as it stood before"
    office.disk = True
    (ack,) = office.send(message(REQUEST, A, xid=2, options=asking(FIRST, OURS)))
    assert ack.message.type == ACK


def test_a_renewal_that_fails_leaves_the_lease_that_is_on_disk() -> None:
    office = Office()
    office.lease_of(A)
    before = office.responder.leases(office.now, office.wall)
    office.disk = False
    office.pass_time(1800)
    office.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    office.commit(ok=False)
    assert office.take() == []
    assert office.responder.leases(office.now, office.wall) == [pytest.approx(before[0])]
    office.pass_time(1801)
    assert office.responder.leases(office.now, office.wall) == []


def test_a_release_that_fails_leaves_the_lease() -> None:
    office = Office(disk=False)
    office.disk = True
    office.lease_of(A)
    office.disk = False
    office.send(message(RELEASE, A, ciaddr=FIRST))
    (offer,) = office.send(message(DISCOVER, B))
    assert offer.address == SECOND_ADDRESS, "not free before that is on disk"
    office.commit(ok=False)
    assert [lease[1] for lease in office.responder.leases(office.now, office.wall)] == ["bound"]
    (ack,) = office.send(message(REQUEST, A, xid=5, options=asking(FIRST)))
    assert ack.message.type == ACK


def test_a_conflict_stays_one_though_it_could_not_be_written() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.100"))
    office.lease_of(A)
    office.disk = False
    office.send(message(DECLINE, A, options=asking(FIRST, OURS)))
    office.commit(ok=False)
    assert office.send(message(DISCOVER, A)) == []


def test_the_first_quarter_of_a_lease_is_acknowledged_without_a_commit() -> None:
    """ROM, iPXE and installer each ask within seconds: one commit, and the rest of the lease that is on disk."""
    office = Office()
    office.lease_of(A)
    office.disk = False
    office.pass_time(899)
    (offer,) = office.send(message(DISCOVER, A, xid=2))
    (ack,) = office.send(message(REQUEST, A, xid=2, options=asking(FIRST, OURS)))
    for reply in (offer, ack):
        assert int.from_bytes(reply.message.options[51]) == 3600 - 899
        assert int.from_bytes(reply.message.options[58]) == (3600 - 899) // 2
    assert office.counters["renewed_without_commit"] == 1
    office.pass_time(1)
    assert office.send(message(REQUEST, A, xid=3, options=asking(FIRST, OURS))) == []
    assert len(office.commit()) == 1
    assert int.from_bytes(office.take()[0].message.options[51]) == 3600


def test_a_new_host_name_is_worth_a_commit() -> None:
    office = Office()
    office.lease_of(A)
    office.disk = False
    assert office.send(message(REQUEST, A, xid=2, options=(*asking(FIRST, OURS), (12, b'a"b\\\xff')))) == []
    (rows,) = office.commit()
    assert " a%22b%5c%ff " in rows
    assert office.take()[0].message.type == ACK
    (ack,) = office.send(message(REQUEST, A, xid=3, options=(*asking(FIRST, OURS), (12, b'a"b\\\xff'))))
    assert ack.message.type == ACK


def test_a_host_name_may_end_in_a_nul() -> None:
    office = Office()
    for xid, name in enumerate((b"node", b"node\0", b"node\0rest")):
        office.send(message(DISCOVER, A, xid=xid))
        assert len(office.send(message(REQUEST, A, xid=xid, options=(*asking(FIRST, OURS), (12, name))))) == 1
    assert office.counters["renewed_without_commit"] == 2
    assert office.responder.leases(office.now, office.wall)[0][4] == b"node"


def test_a_shorter_lease_is_not_outlived() -> None:
    office = Office()
    office.lease_of(A)
    office.lease = 600
    office.configure()
    (ack,) = office.send(message(REQUEST, A, xid=2, options=asking(FIRST, OURS)))
    assert int.from_bytes(ack.message.options[51]) == 600


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(60, 5000), min_size=1, max_size=60), st.lists(st.integers(1, 2000), max_size=8))
def test_leases_of_different_lengths_end_each_at_its_time(lengths: list[int], pauses: list[int]) -> None:
    """Against a list of ends: the heap of ends must hold for any order of beginnings, renewals and ends."""
    office = Office(decide=lambda mac: Plan(lease=lengths[int(mac[-2:], 16)], scope=Scope.MACHINE))
    ends: dict[str, int] = {}
    for pause in (0, *pauses):
        office.pass_time(pause)
        for at, length in enumerate(lengths):
            mac = f"52:54:00:00:00:{at:02x}"
            if pause == 0 or (at + pause) % 3 == 0:
                office.lease_of(mac)
                begun = ends.get(mac, 0) - length * SECOND
                if (office.now - begun) * 4 >= length * SECOND:
                    ends[mac] = office.now + length * SECOND
        # A tenth of a second longer than was told: the machine counts from its packet.
        alive = {mac for mac, end in ends.items() if end + SECOND // 10 > office.now}
        assert {lease[2].hex(":") for lease in office.responder.leases(office.now, office.wall)} == alive


def test_an_infinite_lease() -> None:
    office = Office(lease=config.FOREVER)
    office.lease_of(A)
    office.pass_time(10 * 365 * 86400)
    (lease,) = office.responder.leases(office.now, office.wall)
    assert lease[6] == float("inf")
    office.disk = False
    (ack,) = office.send(message(REQUEST, A, xid=2, options=asking(FIRST, OURS)))
    assert ack.message.options[51] == b"\xff" * 4, "and needs no second commit"


def test_release_by_the_administrator() -> None:
    office = Office()
    office.lease_of(A)
    assert not office.responder.release(number("10.77.0.150"), office.now)
    assert office.responder.release(number(FIRST), office.now)
    assert not office.responder.release(number(FIRST), office.now)
    assert " released " in office.commit()[0]


# ---- reload and restart


def test_leases_outlive_a_reload() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.110"))
    office.lease_of(A)
    office.lease_of(B)
    office.send(message(DISCOVER, C))
    office.subnets = small("10.77.0.101-10.77.0.120")
    office.configure()
    (ack,) = office.send(message(REQUEST, B, ciaddr=SECOND_ADDRESS), destination=number(OURS))
    assert ack.message.type == ACK
    (nak,) = office.send(message(REQUEST, A, ciaddr=FIRST), destination=number(OURS))
    assert nak.message.type == NAK, "no longer of any pool"
    assert office.lease_of(A) == "10.77.0.103", "102 is on offer to C"
    assert office.lease_of(C) == "10.77.0.102"


def test_a_reload_while_a_commit_is_in_flight() -> None:
    office = Office(disk=False)
    office.send(message(DISCOVER, A))
    office.send(message(REQUEST, A, options=asking(FIRST, OURS)))
    batch = office.responder.batch(1)
    office.subnets = small("10.77.0.50-10.77.0.250")
    office.configure()
    office.responder.durable(batch[0], True, office.now)  # type: ignore[index]
    assert [ack.address for ack in office.take()] == [FIRST]


Row = tuple[int, str, int, bytes, bytes, bytes, int, bytes, bytes, int, int | None]


def rows_of(office: Office) -> list[Row]:
    return [
        (address, state, 1, mac, client_id, host, *rest, int(starts * SECOND), int(expires * SECOND))
        for address, state, mac, client_id, host, starts, expires, *rest in office.responder.leases(
            office.now, office.now / SECOND
        )
    ]


def row(address: str, mac: str, starts: int, expires: int | None, state: str = "bound") -> Row:
    """Return a row of the store that begins and ends so many seconds from the start of the clock."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    return (
        number(address), state, 1, hardware, b"", b"", 0, b"", b"", starts * SECOND,
        None if expires is None else expires * SECOND,
    )  # fmt: skip


def test_a_restart_takes_the_leases_from_the_store() -> None:
    before = Office()
    for mac in (A, B):
        before.lease_of(mac)
    before.send(message(DECLINE, B, options=asking(SECOND_ADDRESS, OURS)))
    before.pass_time(600)
    after = Office()
    after.now = before.now
    rows = rows_of(before)
    assert after.responder.load([*rows, (number("192.168.1.1"), *rows[0][1:])], after.now, 7) == 1
    leases = after.responder.leases(after.now, before.wall)
    assert sorted(lease[1] for lease in leases) == ["bound", "bound", "declined"]
    (ack,) = after.send(message(REQUEST, A, options=asking(FIRST)))
    assert int.from_bytes(ack.message.options[51]) in (2999, 3000)
    assert after.lease_of(C) == "10.77.0.102", "the declined one is not given"
    after.pass_time(3001)
    assert after.lease_of("52:54:00:aa:00:09") == "10.77.0.103"


def test_the_numbers_of_batches_go_on_after_a_restart() -> None:
    office = Office(disk=False)
    office.responder.load([], office.now, 2**40)
    office.send(message(DISCOVER, A))
    office.send(message(REQUEST, A, options=asking(FIRST, OURS)))
    number_, rows = office.responder.batch(-5)  # type: ignore[misc]
    assert number_ == 2**40 + 1
    ((address, text),) = json.loads(rows).items()
    assert (int(address), text.split(" ")[:3]) == (number(FIRST), [str(number_), "-5", FIRST])
    office.responder.durable(number_, True, office.now)
    assert len(office.take()) == 1


def test_leases_of_a_subnet_that_comes_back_are_still_there() -> None:
    """A configuration that forgot a subnet, a restart, the configuration mended: who has an address keeps it."""
    office = Office(subnets=(config.Subnet(network="10.78.0.0/24"),), links=(("10.78.0.1/24",),))
    assert office.responder.load([row(FIRST, A, 0, 9000)], office.now) == 1
    office.subnets, office.links = Office().subnets, Office().links
    office.configure()
    assert office.lease_of(B) == SECOND_ADDRESS
    (ack,) = office.send(message(REQUEST, A, options=asking(FIRST)))
    assert (ack.message.type, ack.address) == (ACK, FIRST)


def test_leases_that_ended_while_we_were_away_are_remembered_and_given_last() -> None:
    office = Office(subnets=small("10.77.0.100-10.77.0.102"))
    office.pass_time(9000)
    rows = [row("10.77.0.100", A, 900, 9900), row("10.77.0.101", B, 9100, 9800, "released")]
    office.responder.load(rows, office.now)
    assert office.send(message(DISCOVER, C))[0].address == "10.77.0.102"
    assert office.send(message(DISCOVER, "52:54:00:aa:00:09"))[0].address == "10.77.0.101"
    assert office.send(message(DISCOVER, A))[0].address == "10.77.0.100"


# ---- leases of another server


def test_leases_of_another_server_are_taken_in_one_commit() -> None:
    wide = config.Subnet(network="10.77.0.0/16", pools=("10.77.1.0-10.77.4.255",))
    office = Office(subnets=(wide,), links=(("10.77.0.1/16",),), disk=False)
    rows = [row(f"10.77.{1 + at // 250}.{at % 250}", f"52:54:00:01:{at >> 8:02x}:{at & 255:02x}", 0, None)
            for at in range(600)]  # fmt: skip
    number_, taken = office.responder.adopt(rows, office.now)
    assert taken == []
    assert office.send(message(DISCOVER, A))[0].address == "10.77.1.250", "they are held before they are on disk"
    assert (batch := office.responder.batch(1)) and batch[0] == number_
    assert len(json.loads(batch[1])) == 600, "more than other batches have: all or none"
    office.responder.durable(number_, False, office.now)
    assert office.responder.leases(office.now, office.wall) == []
    number_, taken = office.responder.adopt(rows, office.now)
    office.commit()
    assert len(office.responder.leases(office.now, office.wall)) == 600
    office.disk = True
    (ack,) = office.send(message(REQUEST, "52:54:00:01:00:07", options=asking("10.77.1.7")))
    assert (ack.message.type, ack.address) == (ACK, "10.77.1.7")


def test_an_address_that_is_not_free_is_not_taken_from_anybody() -> None:
    office = Office()
    office.lease_of(A)
    office.send(message(DISCOVER, B))
    rows = [row(FIRST, C, 0, None), row(SECOND_ADDRESS, C, 0, None), row("10.77.0.150", C, 0, None)]
    _, taken = office.responder.adopt(rows, office.now)
    assert taken == [number(FIRST), number(SECOND_ADDRESS)]
    office.commit()
    assert [lease[2].hex(":") for lease in office.responder.leases(office.now, office.wall)] == [A, C]


# ---- anything at all

VECTORS = Path(__file__).parent / "vectors" / "dhcp"
PACKETS = [
    bytes.fromhex("".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    for path in sorted(VECTORS.glob("*.hex"))
]


@pytest.mark.parametrize("at", range(len(PACKETS)))
def test_every_vector_gets_its_answer(at: int) -> None:
    office = Office(links=(("10.77.0.1/24",),))
    packet = PACKETS[at]
    replies = office.send(packet, source=number(FIRST) if packet[12:16] != bytes(4) else 0)
    kind = replies[0].message.type if replies else None
    type_ = packet[242]
    assert kind == {DISCOVER: OFFER, REQUEST: None, INFORM: ACK}.get(type_) or kind == ACK
    if type_ == DISCOVER:
        assert kind == OFFER
        relayed = packet[24:28] != bytes(4)
        raw = not relayed and not packet[10] & 0x80 and packet[2] == 6
        assert replies[0].way == ("address" if relayed else "hardware" if raw else "all")


EVENTS = st.one_of(
    st.tuples(st.just("discover"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("request"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("reboot"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("renew"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("release"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("decline"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("arp"), st.integers(0, 5), st.integers(0, 8)),
    st.tuples(st.just("ask"), st.booleans(), st.just(0)),
    st.tuples(st.just("doubt"), st.just(0), st.integers(0, 8)),
    st.tuples(st.just("commit"), st.booleans(), st.just(0)),
    st.tuples(st.just("time"), st.sampled_from([1, 2, 60, 121, 1000, 4000]), st.just(0)),
    st.tuples(st.just("reload"), st.integers(0, 3), st.just(0)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=60))
def test_no_address_is_ever_acknowledged_to_two(story: list[tuple[str, int, int]]) -> None:
    """Any order of requests, commits that work or fail, time, reloads, ARP and doubt: who was told an address
    keeps it alone until its end, and what was told is what is on disk."""
    pools = [
        "10.77.0.100-10.77.0.104",
        "10.77.0.102-10.77.0.108",
        "10.77.0.100-10.77.0.101",
        "10.77.0.100-10.77.0.108",
    ]
    office = Office(subnets=small(pools[0]), disk=False)
    told: dict[str, tuple[str, int]] = {}
    disk: dict[str, str] = {}
    xids = itertools.count(1)

    def hear() -> None:
        for reply in office.take():
            if reply.message.type == ACK and reply.message.yiaddr:
                mac = reply.message.chaddr[:6].hex(":")
                holder = told.get(reply.address)
                assert holder is None or holder[0] == mac or holder[1] <= office.now, "one address, two machines"
                assert disk[reply.address] == mac, "acknowledged, but not on disk"
                told[reply.address] = (mac, office.now + int.from_bytes(reply.message.options[51]) * SECOND)

    for what, who, where in story:
        mac, address, xid = f"52:54:00:aa:00:{int(who) & 255:02x}", f"10.77.0.{100 + where}", next(xids)
        if what == "commit":
            if batch := office.responder.batch(1):
                if who:
                    for text in json.loads(batch[1]).values():
                        words = text.split(" ")
                        disk[words[2]] = words[5] if words[3] == "bound" else ""
                office.responder.durable(batch[0], bool(who), office.now)
        elif what == "arp":
            office.responder.receive_arp(bytes(ARP(op=2, hwsrc=mac, psrc=address)), 0, office.now)
        elif what == "ask":
            office.responder.speak_arp(0, bool(who))
            asks, _ = office.responder.probes(office.now, 8)
            assert all(
                at not in told or told[at][1] <= office.now for at in (str(IPv4Address(a)) for _, a in asks)
            )
        elif what == "doubt":
            office.responder.doubt([number(address)] if where else None, office.now)
        elif what == "time":
            office.pass_time(who)
        elif what == "reload":
            office.subnets = small(pools[who])
            office.configure()
        elif what == "discover":
            office.send(message(DISCOVER, mac, xid=xid, options=asking(address)))
        elif what == "request":
            office.send(message(REQUEST, mac, xid=xid, options=asking(address, OURS)))
        elif what == "reboot":
            office.send(message(REQUEST, mac, xid=xid, options=asking(address)))
        elif what == "renew":
            office.send(message(REQUEST, mac, xid=xid, ciaddr=address), destination=number(OURS))
        else:
            kind, mine = (RELEASE if what == "release" else DECLINE), told.get(address, ("", 0))[0] == mac
            options = asking(address, OURS) if what == "decline" else ()
            office.send(
                message(kind, mac, xid=xid, ciaddr=address if what == "release" else "0.0.0.0", options=options)
            )
            if mine:
                told.pop(address)
        hear()


def test_the_seed_is_32_octets() -> None:
    with pytest.raises(ValueError, match="32"):
        Responder(os.urandom(31))

"""protocol-facts.md A2 row by row (RFC 2131 section 4.3 and table 3), on our own wire and through a relay.

What else is known of each state is in test_dhcp_responder.py, of relays in test_dhcp_relay.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from dhcpkit import (
    ACK,
    ALL,
    ANY,
    DECLINE,
    DISCOVER,
    INFORM,
    NAK,
    OFFER,
    RELEASE,
    REQUEST,
    Office,
    Reply,
    asking,
    message,
    number,
)

from fastboot import config
from fastboot.model import Node

A, B = "52:54:00:aa:00:01", "52:54:00:aa:00:02"
OURS, OTHERS, RELAY = "10.77.0.1", "10.77.0.2", "10.88.0.1"
SUBNETS = (
    config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.102",), gateway="10.77.0.254"),
    config.Subnet(network="10.88.0.0/24", pools=("10.88.0.100-10.88.0.102",), gateway=RELAY, relayed=True),
)


@dataclass
class Way:
    """How a client's packets come to the server, and which addresses its network has."""

    here: Office
    relayed: bool

    def address(self, last: int) -> str:
        return f"10.{88 if self.relayed else 77}.0.{last}"

    def broadcast(self, type_: int, mac: str = A, **more: object) -> list[Reply]:
        """Send what a client broadcasts; a relay sends that on to our address."""
        packet = message(type_, mac, giaddr=RELAY if self.relayed else "0.0.0.0", **more)  # type: ignore[arg-type]
        source, destination = (number(RELAY), number(OURS)) if self.relayed else (ANY, ALL)
        return self.here.send(packet, source=source, destination=destination)

    def unicast(self, type_: int, mac: str = A, *, ciaddr: str, **more: object) -> list[Reply]:
        """Send what a client sends to us alone; no relay sees that, but routers may."""
        packet = message(type_, mac, ciaddr=ciaddr, **more)  # type: ignore[arg-type]
        return self.here.send(packet, source=number(ciaddr), destination=number(OURS))

    def bind(self, mac: str = A, xid: int = 1) -> str:
        (offer,) = self.broadcast(DISCOVER, mac, xid=xid)
        (ack,) = self.broadcast(REQUEST, mac, xid=xid, options=asking(offer.address, OURS))
        assert (ack.message.type, ack.address) == (ACK, offer.address)
        return ack.address

    def bound(self) -> dict[str, str]:
        leases = self.here.responder.leases(self.here.now, self.here.wall)
        return {str(IPv4Address(lease[0])): lease[2].hex(":") for lease in leases if lease[1] == "bound"}


@pytest.fixture(params=["local", "relayed"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(Office(subnets=SUBNETS), request.param == "relayed")


# ---- message / state


def test_discover_gets_the_current_binding(way: Way) -> None:
    way.bind(B)
    address = way.bind(A)
    (offer,) = way.broadcast(DISCOVER, A, options=asking(way.address(102)))
    assert (offer.message.type, offer.address) == (OFFER, address)


def test_discover_gets_the_previous_binding_if_it_is_free(way: Way) -> None:
    way.bind(B)
    address = way.bind(A)
    way.here.pass_time(3601)
    (offer,) = way.broadcast(DISCOVER, A, options=asking(way.address(102)))
    assert offer.address == address


def test_discover_gets_the_requested_address_if_it_is_valid_and_free(way: Way) -> None:
    assert way.broadcast(DISCOVER, A, options=asking(way.address(102)))[0].address == way.address(102)
    assert way.broadcast(DISCOVER, B, options=asking(way.address(102)))[0].address == way.address(100), "on offer"


def test_discover_gets_a_new_address_of_the_pool_of_giaddr_or_the_interface(way: Way) -> None:
    assert way.broadcast(DISCOVER)[0].address == way.address(100)


def test_discover_is_silent_without_a_free_address_or_where_policy_says_so(way: Way) -> None:
    for last in range(3):
        way.bind(f"52:54:00:bb:00:{last:02x}")
    assert way.broadcast(DISCOVER) == []
    way.here.plan = None
    way.here.responder.forget()
    assert way.broadcast(DISCOVER, "52:54:00:bb:00:00") == []
    assert (way.here.counters["exhausted"], way.here.counters["ignored"]) == (1, 1)


def test_request_selecting_of_another_server_is_silent_and_frees_the_offer(way: Way) -> None:
    (offer,) = way.broadcast(DISCOVER)
    assert way.broadcast(REQUEST, options=asking(offer.address, OTHERS)) == []
    assert way.here.responder.lease_at(number(offer.address), way.here.now, way.here.wall) is None
    assert way.here.counters["other_server"] == 1


def test_request_selecting_is_committed_then_acknowledged(way: Way) -> None:
    (offer,) = way.broadcast(DISCOVER)
    way.here.disk = False
    assert way.broadcast(REQUEST, options=asking(offer.address, OURS)) == []
    (rows,) = way.here.commit()
    assert f" {offer.address} bound " in rows
    assert [reply.message.type for reply in way.here.take()] == [ACK]


def test_request_selecting_that_is_impossible_is_refused(way: Way) -> None:
    taken = way.bind(B)
    (nak,) = way.broadcast(REQUEST, options=asking(taken, OURS))
    assert nak.message.type == NAK


def test_request_init_reboot_without_a_record_is_silent(way: Way) -> None:
    way.bind(B)
    assert way.broadcast(REQUEST, options=asking(way.address(100))) == []
    assert way.broadcast(REQUEST, options=asking(way.address(102))) == []
    assert way.here.counters["unknown_client"] == 2


def test_request_init_reboot_with_the_right_record_is_acknowledged(way: Way) -> None:
    address = way.bind()
    (ack,) = way.broadcast(REQUEST, options=asking(address))
    assert (ack.message.type, ack.address) == (ACK, address)


def test_request_init_reboot_with_another_record_is_refused(way: Way) -> None:
    way.bind()
    (nak,) = way.broadcast(REQUEST, options=asking(way.address(102)))
    assert nak.message.type == NAK
    assert bool(nak.message.flags & 0x8000) == way.relayed, "behind a relay it must be broadcast"


def test_request_init_reboot_on_the_wrong_network_is_refused(way: Way) -> None:
    (nak,) = way.broadcast(REQUEST, options=asking("192.168.7.7"))
    assert nak.message.type == NAK
    assert bool(nak.message.flags & 0x8000) == way.relayed


def test_request_renewing_extends_the_own_binding(way: Way) -> None:
    address = way.bind()
    way.here.pass_time(1800)
    (ack,) = way.unicast(REQUEST, ciaddr=address)
    assert (ack.message.type, ack.address, ack.message.ciaddr) == (ACK, address, number(address))
    assert (ack.way, ack.destination, ack.port) == ("address", address, 68)
    way.here.pass_time(3599)
    assert way.bound() == {address: A}


def test_request_renewing_never_acknowledges_what_another_has(way: Way) -> None:
    address = way.bind(B)
    assert [reply.message.type for reply in way.unicast(REQUEST, A, ciaddr=address)] == [NAK]
    assert way.bound() == {address: B}


def test_request_rebinding_is_verified(way: Way) -> None:
    address = way.bind()
    assert way.broadcast(REQUEST, B, ciaddr=way.address(101)) == [], "no record: another server may own it"
    (ack,) = way.broadcast(REQUEST, ciaddr=address)
    assert (ack.message.type, ack.address) == (ACK, address)
    (nak,) = way.broadcast(REQUEST, ciaddr=way.address(102))
    assert nak.message.type == NAK


def test_decline_makes_the_address_unavailable_and_tells_the_administrator(way: Way) -> None:
    address = way.bind()
    assert way.broadcast(DECLINE, B, options=asking(address, OURS)) == [], "of somebody else: nothing"
    assert way.bound() == {address: A}
    assert way.broadcast(DECLINE, options=asking(address, OURS)) == []
    assert way.bound() == {}
    assert [event[0] for event in way.here.responder.events()][-1] == "decline"
    assert way.bind(B) != address != way.bind(A, xid=2)


def test_release_frees_the_address_and_remembers_its_client(way: Way) -> None:
    way.bind(B)
    address = way.bind()
    server = ((54, IPv4Address(OURS).packed),)
    assert way.unicast(RELEASE, B, ciaddr=address, options=server) == [], "of somebody else: nothing"
    assert way.bound()[address] == A
    assert way.unicast(RELEASE, ciaddr=address, options=server) == []
    assert address not in way.bound()
    assert way.broadcast(DISCOVER)[0].address == address


def test_inform_gets_parameters_without_a_lease_and_without_a_check_for_one(way: Way) -> None:
    address = way.bind(B)
    for ciaddr in (address, way.address(50)):
        (ack,) = way.unicast(INFORM, A, ciaddr=ciaddr)
        assert (ack.message.type, ack.address, ack.destination, ack.port) == (ACK, "0.0.0.0", ciaddr, 68)
        assert not {51, 58, 59} & set(ack.message.options)
    assert way.bound() == {address: B}


def test_inform_without_ciaddr_is_answered_to_its_source_or_through_the_relay(way: Way) -> None:
    if way.relayed:
        (ack,) = way.broadcast(INFORM)
        assert (ack.destination, ack.message.flags) == (RELAY, 0x8000)
    else:
        (ack,) = way.here.send(message(INFORM, A), source=number(way.address(50)))
        assert (ack.destination, ack.port) == (way.address(50), 68)


@pytest.mark.parametrize("enabled", [False, True])
def test_bootp_only_if_enabled_and_static(way: Way, enabled: bool) -> None:
    way.here.nodes = (Node("old", (A,), IPv4Address(way.address(11))),)
    way.here.bootp = enabled
    way.here.configure()
    assert [reply.address for reply in way.broadcast(0)] == ([way.address(11)] if enabled else [])
    assert way.broadcast(0, B) == []


# ---- where each reply goes

EVERY = pytest.mark.parametrize("flags", [0, 0x8000], ids=["unicast", "broadcast"])


@EVERY
@pytest.mark.parametrize("kind", ["OFFER", "ACK", "NAK"])
def test_giaddr_gets_every_reply_at_port_67(flags: int, kind: str) -> None:
    way = Way(Office(subnets=SUBNETS), True)
    (reply,) = way.broadcast(DISCOVER, flags=flags)
    if kind != "OFFER":
        asked = reply.address if kind == "ACK" else "192.168.7.7"
        (reply,) = way.broadcast(REQUEST, flags=flags, options=asking(asked, OURS))
    assert reply.message.type == {"OFFER": OFFER, "ACK": ACK, "NAK": NAK}[kind]
    assert (reply.way, reply.destination, reply.port) == ("address", RELAY, 67)


@EVERY
@pytest.mark.parametrize("ciaddr", ["0.0.0.0", "10.77.0.100"])
def test_without_giaddr_a_nak_is_broadcast(flags: int, ciaddr: str) -> None:
    here = Office(subnets=SUBNETS)
    options = asking("192.168.7.7", OURS) if ciaddr == "0.0.0.0" else ()
    here.lease_of(B)
    (nak,) = here.send(
        message(REQUEST, A, flags=flags, ciaddr=ciaddr, options=options),
        source=number(ciaddr),
        destination=number(OURS),
    )
    assert (nak.message.type, nak.way, nak.destination, nak.port) == (NAK, "all", "255.255.255.255", 68)


@EVERY
def test_ciaddr_gets_an_ack(flags: int) -> None:
    here = Office(subnets=SUBNETS)
    address = here.lease_of(A)
    (ack,) = here.send(message(REQUEST, A, flags=flags, ciaddr=address), destination=ALL)
    assert (ack.message.type, ack.way, ack.destination, ack.port) == (ACK, "address", address, 68)


@pytest.mark.parametrize(("flags", "way"), [(0x8000, "all"), (0, "hardware")], ids=["broadcast", "frame"])
def test_without_any_address_the_broadcast_bit_decides(flags: int, way: str) -> None:
    here = Office(subnets=SUBNETS)
    (offer,) = here.send(message(DISCOVER, A, flags=flags))
    (ack,) = here.send(message(REQUEST, A, flags=flags, options=asking(offer.address, OURS)))
    destination = "255.255.255.255" if way == "all" else offer.address
    for reply in (offer, ack):
        assert (reply.way, reply.destination, reply.port, reply.hardware) == (way, destination, 68, A)


# ---- fields (table 3)


def fields(reply: Reply) -> dict[str, object]:
    m = reply.message
    return {
        "op": m.op,
        "htype": m.htype,
        "hlen": m.hlen,
        "xid": m.xid,
        "secs": m.secs,
        "chaddr": m.chaddr[:6].hex(":"),
    }


def test_headers_of_all_replies(way: Way) -> None:
    way.here.lease = config.FOREVER if way.relayed else 3600
    way.here.configure()
    (offer,) = way.broadcast(DISCOVER, xid=0xABCD1234)
    (ack,) = way.broadcast(REQUEST, xid=0xABCD1234, options=asking(offer.address, OURS))
    (nak,) = way.broadcast(REQUEST, xid=0xABCD1234, options=asking("192.168.7.7", OURS))
    copied = {"op": 2, "htype": 1, "hlen": 6, "xid": 0xABCD1234, "secs": 0, "chaddr": A}
    for reply in (offer, ack, nak):
        assert fields(reply) == copied
        assert reply.payload[3] == 0, "hops"
        assert reply.message.giaddr == (number(RELAY) if way.relayed else 0)
        assert reply.message.options[54] == IPv4Address(OURS).packed
        assert not {50, 55, 57} & set(reply.message.options)
    for reply in (offer, ack):
        assert reply.message.options[51] == way.here.lease.to_bytes(4)
        timers = (reply.message.options.get(58), reply.message.options.get(59))
        assert timers == ((None, None) if way.relayed else ((1800).to_bytes(4), (3150).to_bytes(4)))


def test_a_nak_has_a_reason_and_nothing_else(way: Way) -> None:
    client_id = (61, b"\x01" + bytes.fromhex(A.replace(":", "")))
    (nak,) = way.broadcast(REQUEST, options=(*asking("192.168.7.7", OURS), client_id, (55, b"\x01\x03\x06\x43")))
    m = nak.message
    assert (m.ciaddr, m.yiaddr, m.siaddr) == (0, 0, 0)
    assert not any(m.sname + m.file)
    assert set(m.options) == {53, 54, 56, 61}
    assert m.options[61] == client_id[1], "RFC 6842"


def test_an_ack_copies_ciaddr_and_an_offer_has_none(way: Way) -> None:
    address = way.bind()
    (ack,) = way.broadcast(REQUEST, ciaddr=address)
    assert ack.message.ciaddr == number(address)
    (offer,) = way.broadcast(DISCOVER, ciaddr=address)
    assert offer.message.ciaddr == 0


# ---- NAK or silence, in short


def test_who_is_not_alone_says_no_only_for_what_is_its_own(way: Way) -> None:
    """Another server is known to be here: an address of another network may be its."""
    way.here.authoritative = False
    way.here.configure()
    assert way.broadcast(REQUEST, options=asking("192.168.7.7")) == []
    assert way.broadcast(REQUEST, B, ciaddr="192.168.7.7") == []
    address = way.bind()
    (nak,) = way.broadcast(REQUEST, options=asking(way.address(102)))
    assert nak.message.type == NAK, "of our own network and our own client we know"
    assert way.bound() == {address: A}


def test_any_address_of_the_host_is_its_server_identifier(way: Way) -> None:
    way.here.links = (("10.77.0.1/24", "172.16.0.1/24"),)
    way.here.configure()
    (offer,) = way.broadcast(DISCOVER)
    (ack,) = way.broadcast(REQUEST, options=asking(offer.address, "172.16.0.1"))
    assert ack.message.type == ACK


@pytest.mark.parametrize("secs", [0, 4, 0xFFFF, 0x1234])
def test_secs_means_nothing(way: Way, secs: int) -> None:
    """iPXE packs metadata in it, GRUB the low bits of the time (B1, B3)."""
    packet = bytearray(message(DISCOVER, A, giaddr=RELAY if way.relayed else "0.0.0.0"))
    packet[8:10] = secs.to_bytes(2)
    (offer,) = way.here.send(bytes(packet), destination=number(OURS) if way.relayed else ALL)
    assert (offer.address, offer.message.secs) == (way.address(100), 0)


def test_equal_xids_of_many_machines_and_changing_xids_of_one(way: Way) -> None:
    """GRUB's xid is the time, the same on all (B3); U-Boot has another for each packet (B6)."""
    macs = [f"52:54:00:bb:00:{last:02x}" for last in range(3)]
    offers = [way.broadcast(DISCOVER, mac, xid=7)[0] for mac in macs]
    acks = [
        way.broadcast(REQUEST, mac, xid=8, options=asking(offer.address, OURS))[0]
        for mac, offer in zip(macs, offers, strict=True)
    ]
    assert [ack.address for ack in acks] == [offer.address for offer in offers]
    assert len(way.bound()) == 3
    assert {way.broadcast(DISCOVER, macs[0], xid=xid)[0].address for xid in range(20, 25)} == {acks[0].address}

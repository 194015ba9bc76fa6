"""Machines behind relays, and known by their ports: protocol-facts.md A3 row by row, and A2 through a relay."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from dhcpkit import (
    ACK,
    ALL,
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
from test_dhcp_responder import rows_of
from test_dhcp_wire import order

from fastboot import config
from fastboot.model import Node, Plan, Scope

A, B, C = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"
OURS, RELAY, SECOND_RELAY = "10.77.0.1", "10.88.0.1", "10.99.0.1"
FIRST = "10.88.0.100"
PORT_7, PORT_8 = b"Gi1/0/7", b"Gi1/0/8"
LEAF = b"\x00\x04\x00\x0b\x46\x01"
OPTION_118 = (118, IPv4Address("10.99.0.0").packed)
MASK, ROUTER, SERVER = 1, 3, 54

SUBNETS = (
    config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",), gateway="10.77.0.254"),
    config.Subnet(network="10.88.0.0/24", pools=("10.88.0.100-10.88.0.103",), gateway=RELAY, relayed=True),
    config.Subnet(network="10.99.0.0/16", pools=("10.99.1.100-10.99.1.199",), gateway=SECOND_RELAY, relayed=True),
)


def office(**more: object) -> Office:
    return Office(**{"subnets": SUBNETS, **more})  # type: ignore[arg-type]


def suboptions(*parts: tuple[int, bytes]) -> bytes:
    return b"".join(bytes((code, len(value))) + value for code, value in parts)


def relayed(
    here: Office,
    type_: int,
    mac: str = A,
    *,
    relay: str = RELAY,
    parts: tuple[tuple[int, bytes], ...] = (),
    options: tuple[tuple[int, bytes], ...] = (),
    source_port: int = 67,
    **more: object,
) -> list[Reply]:
    """Send what a relay makes of a client's packet to our address; return what leaves."""
    if parts:
        options = (*options, (82, suboptions(*parts)))
    packet = message(type_, mac, giaddr=relay, options=options, **more)  # type: ignore[arg-type]
    return here.send(packet, source=number(relay), destination=number(OURS), port=source_port)


def lease_through(here: Office, mac: str = A, *, xid: int = 1, **more: object) -> str:
    """Take a client behind a relay through DISCOVER and REQUEST; return its address."""
    (offer,) = relayed(here, DISCOVER, mac, xid=xid, **more)  # type: ignore[arg-type]
    (ack,) = relayed(here, REQUEST, mac, xid=xid, **{**more, "options": asking(offer.address, OURS)})  # type: ignore[arg-type]
    assert (ack.message.type, ack.address) == (ACK, offer.address)
    return ack.address


def option_82(reply: Reply) -> bytes | None:
    return reply.message.options.get(82)


# ---- whose subnet: giaddr, link selection, subnet selection


def test_a_relay_gets_the_reply_for_its_subnet() -> None:
    here = office()
    (offer,) = relayed(here, DISCOVER)
    assert (offer.message.type, offer.address) == (OFFER, FIRST)
    assert (offer.way, offer.destination, offer.port, offer.source) == ("address", RELAY, 67, OURS)
    assert offer.message.giaddr == number(RELAY) and offer.payload[3] == 0, "hops"
    assert offer.message.options[MASK] == IPv4Address("255.255.255.0").packed
    assert offer.message.options[ROUTER] == IPv4Address(RELAY).packed, "the gateway of its subnet"
    assert offer.message.options[SERVER] == offer.payload[20:24] == IPv4Address(OURS).packed, (
        "the receiving address"
    )
    (offer,) = relayed(here, DISCOVER, B, relay=SECOND_RELAY)
    assert (offer.address, offer.destination) == ("10.99.1.100", SECOND_RELAY)
    assert offer.message.options[MASK] == IPv4Address("255.255.0.0").packed


def test_a_relay_of_no_subnet_is_counted_and_not_answered() -> None:
    here = office()
    assert relayed(here, DISCOVER, relay="172.16.0.1") == []
    assert here.counters["no_subnet"] == 1


def test_82_5_link_selection_says_the_subnet_and_giaddr_gets_the_reply() -> None:
    """RFC 3527: also where the relay's own address is in no subnet."""
    here = office()
    parts = ((5, IPv4Address("10.99.0.0").packed),)
    for relay in (RELAY, "172.16.0.1"):
        (offer,) = relayed(here, DISCOVER, relay=relay, parts=parts)
        assert (offer.address, offer.destination) == ("10.99.1.100", relay)
        assert option_82(offer) == suboptions(*parts)
    assert relayed(here, DISCOVER, parts=((5, IPv4Address("172.16.0.0").packed),)) == []
    assert here.counters["no_subnet"] == 1


def test_118_subnet_selection_is_obeyed_and_sent_back() -> None:
    """RFC 3011, of a client on our wire too."""
    here = office()
    (offer,) = relayed(here, DISCOVER, options=(OPTION_118,))
    assert (offer.address, offer.destination) == ("10.99.1.100", RELAY)
    (local,) = here.send(message(DISCOVER, B, options=(OPTION_118,)))
    assert (local.address, local.source) == ("10.99.1.101", OURS)
    for reply in (offer, local):
        assert reply.message.options[118] == OPTION_118[1]


def test_118_is_lower_than_82_5() -> None:
    here = office()
    (offer,) = relayed(here, DISCOVER, options=(OPTION_118,), parts=((5, IPv4Address("10.88.0.0").packed),))
    assert offer.address == FIRST
    assert offer.message.options[118] == OPTION_118[1]


# ---- option 82 itself


@pytest.mark.parametrize(
    "value",
    [
        suboptions((1, PORT_7), (2, LEAF)),
        suboptions((1, PORT_7)) + b"\x02\xff\x00",  # its last sub-option runs over the end
        b"\x01",
        suboptions((1, b""), (151, b"\x00vrf-blue")),
        suboptions((1, b"x" * 250), (2, b"y" * 200)),  # in two parts on the wire (RFC 3396)
    ],
)
@pytest.mark.parametrize("type_", [DISCOVER, REQUEST, INFORM])
def test_82_comes_back_whole_unchanged_and_last(type_: int, value: bytes) -> None:
    here = office()
    lease_through(here)
    split = tuple((82, value[at : at + 255]) for at in range(0, len(value), 255))
    options = (*(asking(FIRST, OURS) if type_ == REQUEST else ()), (57, b"\x05\xc0"), *split)
    (reply,) = relayed(here, type_, options=options)
    assert option_82(reply) == value
    assert [code for code in order(reply.payload) if code][-len(split) :] == [82] * len(split)


def test_82_comes_back_in_a_nak() -> None:
    (nak,) = relayed(office(), REQUEST, options=asking("192.168.1.5"), parts=((1, PORT_7),))
    assert nak.message.type == NAK and option_82(nak) == suboptions((1, PORT_7))


def test_82_without_a_relay_is_the_clients_own_invention() -> None:
    """RFC 3046 2.1: anyone could write it; so it names no subnet and no node, and does not come back."""
    node = Node("node01", (), IPv4Address("10.77.0.11"), circuit_id=PORT_7)
    here = office(nodes=(node,))
    value = suboptions((1, PORT_7), (5, IPv4Address("10.99.0.0").packed), (11, IPv4Address("10.9.9.9").packed))
    (offer,) = here.send(message(DISCOVER, A, options=((82, value),)))
    assert (offer.address, option_82(offer)) == ("10.77.0.100", None)
    assert offer.message.options[SERVER] == IPv4Address(OURS).packed


def test_82_of_a_snooping_switch_is_believed_where_the_network_has_such() -> None:
    """Cisco `ip dhcp snooping information option`: giaddr 0. It tells the port, and takes 82 out of the reply."""
    node = Node("node01", (), IPv4Address("10.77.0.11"), circuit_id=PORT_7)
    here = office(nodes=(node,), snooping=True)
    value = suboptions((1, PORT_7), (5, IPv4Address("10.99.0.0").packed), (11, IPv4Address("10.9.9.9").packed))
    (offer,) = here.send(message(DISCOVER, A, options=((82, value),)))
    assert (offer.address, option_82(offer), offer.way) == ("10.77.0.11", value, "hardware")
    assert offer.message.options[SERVER] == IPv4Address(OURS).packed, "a switch selects no link and is no server"


def test_82_that_the_client_made_up_yields_to_what_its_relay_appends() -> None:
    """dhcrelay appends its own to an option 82 that is there already."""
    nodes = (
        Node("node07", (), IPv4Address("10.88.0.7"), circuit_id=PORT_7),
        Node("node08", (), IPv4Address("10.88.0.8"), circuit_id=PORT_8),
    )
    here = office(nodes=nodes)
    (offer,) = relayed(here, DISCOVER, parts=((1, PORT_7), (1, PORT_8)))
    assert offer.address == "10.88.0.8"


def test_82_11_server_identifier_override() -> None:
    """RFC 5107: the relay is the server in the client's eyes, so what the client says to it is said to us."""
    here = office()
    override = ((11, IPv4Address(RELAY).packed),)
    (offer,) = relayed(here, DISCOVER, parts=override)
    assert offer.message.options[SERVER] == IPv4Address(RELAY).packed
    assert (offer.source, offer.payload[20:24]) == (OURS, IPv4Address(OURS).packed), "files still come from here"
    (ack,) = relayed(here, REQUEST, options=asking(FIRST, RELAY), parts=override)
    assert (ack.message.type, ack.message.options[SERVER]) == (ACK, IPv4Address(RELAY).packed)
    assert "other_server" not in here.counters
    relayed(here, RELEASE, ciaddr=FIRST, options=((54, IPv4Address(RELAY).packed),), parts=override)
    assert here.responder.leases(here.now, here.wall) == []
    assert relayed(here, REQUEST, B, options=asking(FIRST, RELAY)) == [], "without it, that is another server"
    assert here.counters["other_server"] == 1


def test_82_19_the_reply_goes_to_the_relays_source_port() -> None:
    """RFC 8357; without it to port 67, wherever the relay sends from."""
    here = office()
    (offer,) = relayed(here, DISCOVER, parts=((19, b""),), source_port=40067)
    assert (offer.destination, offer.port) == (RELAY, 40067)
    (offer,) = relayed(here, DISCOVER, source_port=40067)
    assert (offer.destination, offer.port) == (RELAY, 67)


def test_a_decision_that_comes_later_still_knows_the_port() -> None:
    here = office()
    packet = message(DISCOVER, A, giaddr=RELAY, options=((82, suboptions((19, b""))),))
    here.responder.receive(packet, 0, number(RELAY), number(OURS), here.now, 40067)
    assert here.take() == []
    here.answer()
    assert [(offer.destination, offer.port) for offer in here.take()] == [(RELAY, 40067)]


@pytest.mark.parametrize("hops", [0, 4, 16, 255])
def test_hops_are_the_relays_business(hops: int) -> None:
    here = office()
    packet = bytearray(message(DISCOVER, A, giaddr=RELAY))
    packet[3] = hops
    (offer,) = here.send(bytes(packet), destination=number(OURS))
    assert offer.payload[3] == 0


# ---- the client's states, through a relay and a router


def test_a_nak_through_a_relay_is_broadcast_behind_it() -> None:
    (nak,) = relayed(office(), REQUEST, options=asking("192.168.1.5"))
    assert (nak.message.type, nak.destination, nak.message.flags) == (NAK, RELAY, 0x8000)


def test_init_reboot_through_a_relay() -> None:
    here = office()
    assert relayed(here, REQUEST, options=asking(FIRST)) == [], "no record"
    lease_through(here)
    (ack,) = relayed(here, REQUEST, options=asking(FIRST))
    assert (ack.message.type, ack.address, ack.destination) == (ACK, FIRST, RELAY)
    (nak,) = relayed(here, REQUEST, options=asking("10.88.0.103"))
    assert nak.message.type == NAK
    (nak,) = relayed(here, REQUEST, options=asking(FIRST), relay=SECOND_RELAY)
    assert nak.message.type == NAK, "moved to another wire"


def test_renewing_through_a_router() -> None:
    """giaddr 0, unicast, from a network that we have no address in."""
    here = office()
    lease_through(here)
    here.pass_time(1800)
    (ack,) = here.send(message(REQUEST, A, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert (ack.message.type, ack.way, ack.destination, ack.port, ack.source) == (ACK, "address", FIRST, 68, OURS)
    assert ack.message.options[ROUTER] == IPv4Address(RELAY).packed
    assert int.from_bytes(ack.message.options[51]) == 3600
    other = here.send(message(REQUEST, B, ciaddr=FIRST), source=number(FIRST), destination=number(OURS))
    assert [reply.message.type for reply in other] == [NAK], "another client's"
    assert here.send(message(REQUEST, B, ciaddr="172.16.0.5"), destination=number(OURS)) == []


def test_rebinding_through_a_relay() -> None:
    """To the client it is a broadcast, though the relay sends it to us alone: silence without a record."""
    here = office()
    lease_through(here)
    here.pass_time(3200)
    (ack,) = relayed(here, REQUEST, ciaddr=FIRST)
    assert (ack.message.type, ack.destination) == (ACK, RELAY)
    assert relayed(here, REQUEST, B, ciaddr=FIRST) == []
    (nak,) = relayed(here, REQUEST, ciaddr="10.88.0.103")
    assert nak.message.type == NAK


def test_82_10_a_renewal_that_a_relay_passes_on() -> None:
    """RFC 5010: the relay says that the client sent it to its server alone."""
    here = office()
    lease_through(here)
    (nak,) = relayed(here, REQUEST, B, ciaddr=FIRST, parts=((10, b"\x80"),))
    assert nak.message.type == NAK, "who renews what another has is wrong, and we know"
    assert relayed(here, REQUEST, B, ciaddr=FIRST, parts=((10, b"\x00"),)) == []


def test_release_through_a_router() -> None:
    here = office()
    lease_through(here)
    packet = message(RELEASE, A, ciaddr=FIRST, options=((54, IPv4Address(OURS).packed),))
    assert here.send(packet, source=number(FIRST), destination=number(OURS)) == []
    assert here.responder.leases(here.now, here.wall) == []
    assert [*here.responder.events()][-1][0] == "release"


def test_decline_through_a_relay() -> None:
    here = office()
    lease_through(here)
    assert relayed(here, DECLINE, options=asking(FIRST, OURS)) == []
    assert [lease[1] for lease in here.responder.leases(here.now, here.wall)] == ["declined"]


def test_inform_through_a_relay_and_through_a_router() -> None:
    here = office()
    (ack,) = relayed(here, INFORM, ciaddr="10.88.0.50")
    assert (ack.message.type, ack.destination, ack.message.flags, ack.address) == (ACK, RELAY, 0, "0.0.0.0")
    (ack,) = relayed(here, INFORM)
    assert (ack.destination, ack.message.flags) == (RELAY, 0x8000), (
        "it has no address yet: broadcast behind the relay"
    )
    (ack,) = here.send(
        message(INFORM, A, ciaddr="10.88.0.50"), source=number("10.88.0.50"), destination=number(OURS)
    )
    assert (ack.way, ack.destination) == ("address", "10.88.0.50")
    assert ack.message.options[ROUTER] == IPv4Address(RELAY).packed
    assert here.send(message(INFORM, A, ciaddr="172.16.0.5"), destination=number(OURS)) == []


def test_a_selecting_client_behind_a_relay_that_chose_another_server() -> None:
    here = office()
    relayed(here, DISCOVER)
    assert relayed(here, REQUEST, options=asking(FIRST, "10.88.0.9")) == []
    assert here.responder.lease_at(number(FIRST), here.now, here.wall) is None, "the offer is free again"


# ---- several subnets on one wire


WIRE = (
    config.Subnet(
        network="10.88.0.0/24",
        pools=("10.88.0.100-10.88.0.100",),
        gateway=RELAY,
        relayed=True,
        shared_network="rack",
    ),
    config.Subnet(
        network="10.88.1.0/25",
        pools=("10.88.1.100-10.88.1.101",),
        gateway="10.88.1.1",
        relayed=True,
        shared_network="rack",
    ),
    config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",)),
)


def test_subnets_on_one_wire_behind_a_relay_share_their_pools() -> None:
    here = office(subnets=WIRE)
    assert lease_through(here, A) == FIRST
    (offer,) = relayed(here, DISCOVER, B)
    assert (offer.address, offer.destination) == ("10.88.1.100", RELAY)
    assert offer.message.options[MASK] == IPv4Address("255.255.255.128").packed
    assert offer.message.options[ROUTER] == IPv4Address("10.88.1.1").packed
    (ack,) = relayed(here, REQUEST, B, options=asking("10.88.1.100", OURS))
    assert ack.message.type == ACK
    (ack,) = relayed(here, REQUEST, B, options=asking("10.88.1.100"), xid=9)
    assert ack.message.type == ACK, "INIT-REBOOT in the second subnet of the wire is no other network"
    assert lease_through(here, C, xid=3) == "10.88.1.101"
    assert relayed(here, DISCOVER, "52:54:00:aa:00:09") == []
    assert here.counters["exhausted"] == 1


def test_a_fixed_address_in_another_subnet_of_the_wire() -> None:
    node = Node("node01", (A,), IPv4Address("10.88.1.9"))
    here = office(subnets=WIRE, nodes=(node,))
    (offer,) = relayed(here, DISCOVER)
    assert offer.address == "10.88.1.9"
    assert offer.message.options[ROUTER] == IPv4Address("10.88.1.1").packed
    assert offer.message.options[MASK] == IPv4Address("255.255.255.128").packed


def test_a_second_subnet_on_our_own_wire_without_an_address_of_ours() -> None:
    subnets = (
        config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.100",), shared_network="lab"),
        config.Subnet(
            network="10.78.0.0/24", pools=("10.78.0.100-10.78.0.109",), gateway="10.78.0.1", shared_network="lab"
        ),
    )
    here = Office(subnets=subnets)
    assert here.lease_of(A) == "10.77.0.100"
    (offer,) = here.send(message(DISCOVER, B))
    assert (offer.address, offer.source) == ("10.78.0.100", OURS)
    assert offer.message.options[ROUTER] == IPv4Address("10.78.0.1").packed
    (ack,) = here.send(message(REQUEST, B, options=asking("10.78.0.100", OURS)))
    assert ack.message.type == ACK


def test_every_wire_of_ours_says_its_own_server() -> None:
    subnets = (
        config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",)),
        config.Subnet(network="10.78.0.0/24", pools=("10.78.0.100-10.78.0.199",)),
    )
    here = Office(subnets=subnets, links=(("10.77.0.1/24",), ("10.78.0.1/24",)))
    for link, server in enumerate(("10.77.0.1", "10.78.0.1")):
        (offer,) = here.send(message(DISCOVER, A), link=link)
        assert offer.source == server and offer.address.startswith(server[:6])
        assert offer.message.options[SERVER] == offer.payload[20:24] == IPv4Address(server).packed


# ---- nodes known by their port


NODE_1 = Node("node01", (A,), IPv4Address("10.88.0.11"), circuit_id=PORT_7)
NODE_2 = Node("node02", (), IPv4Address("10.88.0.12"), circuit_id=PORT_8, remote_id=LEAF)
NODE_3 = Node("node03", (), IPv4Address("10.88.0.13"), remote_id=b"leaf-3")


def test_a_node_is_known_by_circuit_id_remote_id_or_both() -> None:
    here = office(nodes=(NODE_1, NODE_2, NODE_3))
    for parts, address in (
        (((1, PORT_7),), "10.88.0.11"),
        (((1, PORT_7), (2, b"any")), "10.88.0.11"),
        (((1, PORT_8), (2, LEAF)), "10.88.0.12"),
        (((1, PORT_8), (2, b"leaf-3")), "10.88.0.13"),
        (((1, PORT_8),), FIRST),  # half of what node02 is known by
        (((2, LEAF),), FIRST),
    ):
        (offer,) = relayed(here, DISCOVER, B, parts=parts)
        assert offer.address == address


def test_a_machine_in_anothers_place_takes_over_its_address() -> None:
    """Also while the lease of the machine that was there goes on, and after a restart."""
    here = office(nodes=(NODE_1,))
    assert lease_through(here, A, parts=((1, PORT_7),)) == "10.88.0.11"
    assert lease_through(here, B, xid=2, parts=((1, PORT_7),)) == "10.88.0.11"
    assert [lease[2].hex(":") for lease in here.responder.leases(here.now, here.wall)] == [B]
    after = office(nodes=(NODE_1,))
    after.responder.load(rows_of(here), after.now)
    assert lease_through(after, C, xid=3, parts=((1, PORT_7),)) == "10.88.0.11"


def test_a_stranger_who_has_the_address_is_not_thrown_out_for_a_port() -> None:
    here = office()
    assert lease_through(here, B) == FIRST
    here.nodes = (Node("node01", (), IPv4Address(FIRST), circuit_id=PORT_7),)
    here.configure()
    assert lease_through(here, C, parts=((1, PORT_7),)) == "10.88.0.101"
    assert here.counters["address_taken"]


def test_a_machine_with_a_name_keeps_it_at_any_port() -> None:
    """A BMC or a guest behind the port of another node."""
    bmc = Node("bmc01", (B,), IPv4Address("10.88.0.21"))
    here = office(nodes=(NODE_1, bmc))
    assert lease_through(here, B, parts=((1, PORT_7),)) == "10.88.0.21"
    assert lease_through(here, A, xid=2, parts=((1, PORT_8),)) == "10.88.0.11"


def test_a_port_says_the_node_when_the_machine_renews_by_itself() -> None:
    """Through a router, without option 82: the lease remembers the port."""
    here = office(nodes=(NODE_1,))
    lease_through(here, B, parts=((1, PORT_7),))
    here.pass_time(1800)
    (ack,) = here.send(
        message(REQUEST, B, ciaddr="10.88.0.11"), source=number("10.88.0.11"), destination=number(OURS)
    )
    assert (ack.message.type, ack.destination) == (ACK, "10.88.0.11")
    assert ack.message.options[12] == b"node01"
    here.pass_time(1800)
    (ack,) = here.send(
        message(REQUEST, B, ciaddr="10.88.0.11"), source=number("10.88.0.11"), destination=number(OURS)
    )
    assert ack.message.type == ACK, "and remembers it after that"
    assert here.responder.leases(here.now, here.wall)[0][7:] == (number(RELAY), PORT_7, b"")


def test_a_machine_that_was_moved_is_written_down_at_once() -> None:
    here = office()
    lease_through(here, A, parts=((1, PORT_7),))
    here.disk = False
    assert relayed(here, REQUEST, xid=5, options=asking(FIRST, OURS), parts=((1, PORT_8),)) == []
    assert len(here.commit()) == 1
    assert here.take()[0].message.type == ACK
    assert here.responder.leases(here.now, here.wall)[0][8] == PORT_8


def test_policy_is_asked_again_for_a_machine_that_was_moved() -> None:
    here = office(plan=Plan(loader="x"))
    relayed(here, DISCOVER, parts=((1, PORT_7),))
    ((*_, relay, circuit, remote),) = missed(here, message_of(PORT_7))
    assert (relay, circuit, remote) == (number(RELAY), PORT_7, b"")


def message_of(port: bytes, mac: str = B) -> bytes:
    return message(DISCOVER, mac, giaddr=RELAY, options=((60, b"other"), (82, suboptions((1, port)))))


def missed(here: Office, packet: bytes) -> list[tuple[object, ...]]:
    here.responder.receive(packet, 0, number(RELAY), number(OURS), here.now)
    return list(here.responder.misses())


def test_a_plan_for_one_machine_ends_with_its_place() -> None:
    here = office()
    here.decide = lambda mac: Plan(loader="x", scope=Scope.MACHINE)
    for _ in range(2):
        relayed(here, DISCOVER, parts=((1, PORT_7),))
        relayed(here, DISCOVER, parts=((1, PORT_8),))
    assert here.asked == 2


# ---- identity by option 61


def test_client_id_tells_machines_apart_where_a_subnet_wants_it() -> None:
    """RFC 2131 4.2: one MAC and two identifiers are two clients; one identifier on two MACs is one."""
    here = Office(subnets=(replace_subnet(identity="client-id"),))
    one, two = ((61, b"\xff\0\0\0\1one"),), ((61, b"\xff\0\0\0\1two"),)

    def bound(mac: str, client_id: tuple[tuple[int, bytes], ...], xid: int) -> str:
        (offer,) = here.send(message(DISCOVER, mac, xid=xid, options=client_id))
        (ack,) = here.send(message(REQUEST, mac, xid=xid, options=(*asking(offer.address, OURS), *client_id)))
        assert ack.message.type == ACK
        return ack.address

    assert bound(A, one, 1) == "10.77.0.100"
    assert bound(A, two, 2) == "10.77.0.101"
    assert bound(B, one, 3) == "10.77.0.100"
    assert bound(A, (), 4) == "10.77.0.102", "without option 61 the MAC"
    assert bound(A, ((61, b"\1"),), 5) == "10.77.0.102", "one octet identifies nobody (RFC 2132 9.14)"


def test_a_reload_changes_what_tells_machines_apart_and_keeps_the_leases() -> None:
    here = Office()
    client_id = ((61, b"\xff\0\0\0\1one"),)
    here.send(message(DISCOVER, A, options=client_id))
    here.send(message(REQUEST, A, options=(*asking("10.77.0.100", OURS), *client_id)))
    here.subnets = (replace_subnet(identity="client-id"),)
    here.configure()
    (offer,) = here.send(message(DISCOVER, B, xid=2, options=client_id))
    assert offer.address == "10.77.0.100"
    here.subnets = (replace_subnet(identity="mac"),)
    here.configure()
    (offer,) = here.send(message(DISCOVER, A, xid=3))
    assert offer.address == "10.77.0.100"


def replace_subnet(**more: object) -> config.Subnet:
    return config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",), **more)  # type: ignore[arg-type]


# ---- BOOTP


def test_bootp_is_silent_unless_enabled() -> None:
    here = office(nodes=(Node("old", (A,), IPv4Address("10.77.0.11")),))
    assert here.send(message(0, A)) == []
    assert here.counters["bootp"] == 1


def test_bootp_gives_fixed_addresses_only() -> None:
    here = office(bootp=True, nodes=(Node("old", (A,), IPv4Address("10.77.0.11")), Node("older", (C,))))
    (reply,) = here.send(message(0, A, xid=7))
    assert (reply.message.op, reply.message.type, reply.message.xid, reply.address) == (2, 0, 7, "10.77.0.11")
    assert (reply.way, reply.hardware, reply.port) == ("hardware", A, 68)
    assert reply.message.file.rstrip(b"\0") == b"pxelinux.0"
    assert not {51, 53, 54, 58, 59} & set(reply.message.options), "DHCP's own options (RFC 1534 2)"
    assert reply.message.options[MASK] == IPv4Address("255.255.255.0").packed
    assert len(reply.payload) == 300, "64 octets of options (RFC 951)"
    assert here.send(message(0, B)) == [] and here.send(message(0, C)) == []
    assert (here.counters["bootp_reply"], here.counters["bootp_unknown"]) == (1, 2)
    told = [(kind, mac.hex(":")) for kind, mac, *_ in here.responder.events()]
    assert told == [("bootp", A), ("unanswered", B), ("unanswered", C)]


def test_bootp_waits_for_the_disk_and_is_known_by_its_address() -> None:
    here = office(bootp=True, disk=False, nodes=(Node("old", (A,), IPv4Address("10.77.0.11")),))
    assert here.send(message(0, A)) == []
    assert here.send(message(0, A)) == [] and here.counters["already_waiting"] == 1
    here.commit()
    assert [reply.address for reply in here.take()] == ["10.77.0.11"]
    assert here.responder.lease_at(number("10.77.0.11"), here.now, here.wall)[2].hex(":") == A  # type: ignore[index]
    (reply,) = here.send(message(0, A, xid=2))
    assert reply.address == "10.77.0.11", "again without a commit"


def test_bootp_through_a_relay() -> None:
    here = office(bootp=True, nodes=(Node("old", (A,), IPv4Address("10.88.0.11")),))
    (reply,) = relayed(here, 0, flags=0)
    assert (reply.destination, reply.port, reply.address) == (RELAY, 67, "10.88.0.11")


# ---- what a configuration may say


def test_relayed_subnets_alone_can_be_served() -> None:
    here = office(links=(("172.16.0.1/24",),), subnets=SUBNETS[1:])
    packet = message(DISCOVER, A, giaddr=RELAY)
    (offer,) = here.send(packet, source=number(RELAY), destination=number("172.16.0.1"))
    assert (offer.address, offer.source) == (FIRST, "172.16.0.1")
    assert here.send(message(DISCOVER, A), destination=ALL) == [], "nothing is known of our own wire"
    assert here.counters["no_subnet"] == 1


def test_leases_of_relayed_machines_outlive_a_reload() -> None:
    here = office(nodes=(NODE_1,))
    lease_through(here, B, parts=((1, PORT_7),))
    here.nodes = (replace(NODE_1, name="other"),)
    here.configure()
    assert lease_through(here, C, xid=2, parts=((1, PORT_7),)) == "10.88.0.11"

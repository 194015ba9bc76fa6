"""Starvation (protocol-facts.md D2): what machines that no node names may take, and that nodes never suffer."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from dhcpkit import ACK, DECLINE, DISCOVER, NAK, RELEASE, REQUEST, Office, Reply, asking, message, number
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dhcp_relay import OURS, PORT_7, PORT_8, RELAY, relayed
from test_dhcp_responder import rows_of

from fastboot import config
from fastboot.model import Node

SUBNETS = (
    config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",)),
    config.Subnet(network="10.88.0.0/24", pools=("10.88.0.100-10.88.0.199",), gateway=RELAY, relayed=True),
)


def mac(number_: int) -> str:
    return f"52:54:00:aa:00:{number_:02x}"


def office(*, per_port: int = 1000, offers: int = 1000, leases: int = 1000, **more: object) -> Office:
    here = Office(**{"subnets": SUBNETS, **more})  # type: ignore[arg-type]
    here.responder.max_per_port, here.responder.max_offers, here.responder.max_leases = per_port, offers, leases
    return here


def discover(here: Office, who: int, port: bytes | None = PORT_7, relay: str = RELAY) -> list[Reply]:
    return relayed(here, DISCOVER, mac(who), xid=who, relay=relay, parts=((1, port),) if port else ())


def bind(here: Office, who: int, port: bytes | None = PORT_7) -> Reply:
    (offer,) = discover(here, who, port)
    parts = ((1, port),) if port else ()
    (ack,) = relayed(here, REQUEST, mac(who), xid=who, options=asking(offer.address, OURS), parts=parts)
    assert ack.message.type == ACK
    return ack


def told(here: Office) -> list[tuple[object, ...]]:
    return [event for event in here.responder.events() if event[0] == "limit"]


# ---- behind one port


def test_one_port_gets_so_many_addresses_on_offer_or_leased() -> None:
    here = office(per_port=3)
    bind(here, 1)
    bind(here, 2)
    assert discover(here, 3)
    assert discover(here, 4) == []
    assert here.counters["port_limit"] == 1
    assert discover(here, 4, PORT_8), "the port beside it has its own"
    assert discover(here, 5, None), "and of a relay that names no port nothing is known"
    ((_, hardware, _, address, _, _, text),) = told(here)
    assert (hardware.hex(":"), address, text) == (mac(4), number(RELAY), PORT_7)  # type: ignore[attr-defined]


def test_the_same_circuit_id_of_another_relay_or_switch_is_another_port() -> None:
    here = office(per_port=1)
    assert discover(here, 1)
    assert relayed(here, DISCOVER, mac(2), parts=((1, PORT_7), (2, b"leaf-2")))
    assert relayed(here, DISCOVER, mac(3), relay="10.88.0.2", parts=((1, PORT_7),))
    assert discover(here, 4) == []


def test_what_a_port_gives_up_it_may_have_again() -> None:
    here = office(per_port=1)
    ack = bind(here, 1)
    assert discover(here, 2) == []
    relayed(here, RELEASE, mac(1), ciaddr=ack.address, options=((54, IPv4Address(OURS).packed),))
    assert bind(here, 2)
    here.pass_time(3601)
    assert bind(here, 3), "a lease that has ended counts no more"
    here.pass_time(3601)
    assert discover(here, 4)
    here.pass_time(121)
    assert discover(here, 5), "nor an offer"


def test_what_a_machine_has_is_left_to_it() -> None:
    here = office()
    ack = bind(here, 1)
    here.responder.max_per_port = here.responder.max_leases = here.responder.max_offers = 1
    assert discover(here, 2) == []
    here.pass_time(1800)
    (again,) = relayed(here, REQUEST, mac(1), ciaddr=ack.address, parts=((1, PORT_7),))
    assert again.message.type == ACK
    assert discover(here, 1), "and is offered to it"


def test_a_request_without_an_offer_is_no_way_round() -> None:
    here = office(per_port=1)
    bind(here, 1)
    (nak,) = relayed(here, REQUEST, mac(2), options=asking("10.88.0.150", OURS), parts=((1, PORT_7),))
    assert nak.message.type == NAK and nak.message.options[56] == b"there are too many machines here"
    here.responder.max_per_port = 2
    ack = bind(here, 2)
    relayed(here, RELEASE, mac(2), ciaddr=ack.address)
    bind(here, 3)
    assert relayed(here, REQUEST, mac(2), options=asking(ack.address), parts=((1, PORT_7),)) == [], "INIT-REBOOT"
    assert here.counters["port_limit"] == 1


def test_a_lease_counts_for_the_port_that_its_machine_moved_to() -> None:
    here = office(per_port=1)
    ack = bind(here, 1)
    (again,) = relayed(here, REQUEST, mac(1), xid=9, options=asking(ack.address, OURS), parts=((1, PORT_8),))
    assert again.message.type == ACK
    assert discover(here, 2, PORT_8) == []
    assert discover(here, 2, PORT_7)


def test_a_lease_counts_for_its_port_when_it_is_renewed_through_a_router() -> None:
    here = office(per_port=1)
    ack = bind(here, 1)
    here.pass_time(1800)
    source = number(ack.address)
    assert here.send(message(REQUEST, mac(1), ciaddr=ack.address), source=source, destination=number(OURS))
    assert discover(here, 2) == []


# ---- in all


def test_offers_that_nobody_takes_up_leave_the_rest_of_the_pool() -> None:
    here = office(offers=5)
    for who in range(20):
        here.send(message(DISCOVER, mac(who)))
    assert here.counters["offer"] == 5 and here.counters["offer_limit"] == 15
    assert len(told(here)) == 1, "told once a minute"
    here.pass_time(60)
    here.send(message(DISCOVER, mac(20)))
    assert len(told(here)) == 1
    here.pass_time(61)
    assert here.send(message(DISCOVER, mac(21))), "offers end"


def test_an_offer_taken_up_makes_room_for_the_next() -> None:
    here = office(offers=1)
    assert len({here.lease_of(mac(who)) for who in range(20)}) == 20


def test_who_comes_back_is_no_new_machine() -> None:
    here = office(offers=1)
    address = here.lease_of(mac(1))
    here.pass_time(3601)
    assert here.send(message(DISCOVER, mac(2)))
    (offer,) = here.send(message(DISCOVER, mac(1)))
    assert offer.address == address
    here.pass_time(121)
    assert here.send(message(DISCOVER, mac(3)))
    assert here.send(message(DISCOVER, mac(2))) == [], "to have been offered one is not to have had one"


def test_leases_of_strangers_in_all() -> None:
    here = office(leases=2)
    here.lease_of(mac(1))
    (offer,) = here.send(message(DISCOVER, mac(3)))
    here.lease_of(mac(2))
    assert here.send(message(DISCOVER, mac(4))) == []
    (nak,) = here.send(message(REQUEST, mac(3), options=asking(offer.address, OURS)))
    assert nak.message.type == NAK
    assert here.counters["lease_limit"] == 1
    here.pass_time(3601)
    assert here.lease_of(mac(4))


def test_a_node_is_always_served() -> None:
    nodes = (
        Node("fixed", (mac(1),), IPv4Address("10.88.0.11")),
        Node("pooled", (mac(2),)),
        Node("port", (), circuit_id=PORT_7),
    )
    here = office(per_port=1, offers=1, leases=1, nodes=nodes)
    here.lease_of(mac(9))
    assert here.send(message(DISCOVER, mac(8))) == []
    for who in (1, 2, 3, 4):
        bind(here, who)
    assert here.send(message(DISCOVER, mac(8))) == [], "and takes nothing of the strangers' share"
    here.responder.max_leases = 2
    assert here.lease_of(mac(8))


def test_limits_count_what_was_loaded_and_what_a_reload_makes_of_it() -> None:
    before = office()
    for who in range(3):
        before.lease_of(mac(who))
    after = office(leases=3)
    after.responder.load(rows_of(before), after.now)
    assert after.send(message(DISCOVER, mac(9))) == []
    after.nodes = (Node("one", (mac(1),)),)
    after.configure()
    assert after.send(message(DISCOVER, mac(9))), "one of the three is a node now"
    after.nodes = ()
    after.configure()
    assert after.send(message(DISCOVER, mac(8))) == []


def test_a_port_keeps_its_count_over_a_restart() -> None:
    before = office()
    bind(before, 1)
    after = office(per_port=1)
    after.responder.load(rows_of(before), after.now)
    assert discover(after, 2) == []
    assert discover(after, 2, PORT_8)


WHAT = (
    *("discover", "request", "commit", "discover", "request", "commit"),
    *("reboot", "renew", "release", "decline", "time", "reload"),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(WHAT), st.integers(0, 1), st.integers(0, 1), st.sampled_from([None, PORT_7, PORT_8])
    ),
    min_size=8,
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS)
def test_the_counts_are_those_of_the_leases(story: list[tuple[str, int, int, bytes | None]]) -> None:
    """At any time: one more is refused exactly where as many are held as the limit says."""
    here = office(disk=False)
    for at, (what, who, where, port) in enumerate(story):
        address, parts = f"10.88.0.{100 + where}", ((1, port),) if port else ()
        if what == "commit":
            if batch := here.responder.batch(1):
                here.responder.durable(batch[0], bool(who), here.now)
        elif what == "time":
            here.pass_time((121, 4000)[who])
        elif what == "reload":
            here.nodes = tuple(Node(f"n{each}", (mac(each),)) for each in range(who))
            here.configure()
        elif what == "renew":
            here.send(message(REQUEST, mac(who), xid=at, ciaddr=address), destination=number(OURS))
        elif what == "release":
            here.send(message(RELEASE, mac(who), xid=at, ciaddr=address), destination=number(OURS))
        else:
            type_ = {"discover": DISCOVER, "decline": DECLINE}.get(what, REQUEST)
            options = asking(address) if what in ("reboot", "discover") else asking(address, OURS)
            relayed(here, type_, mac(who), xid=at, options=options, parts=parts)
        here.take()
        check_counts(here)


def check_counts(here: Office) -> None:
    named = {hardware for node in here.nodes for hardware in node.macs}
    held = [
        lease
        for last in range(100, 112)
        if (lease := here.responder.lease_at(number(f"10.88.0.{last}"), here.now, here.wall))
        and lease[2].hex(":") not in named
    ]
    states = [lease[1] for lease in held]
    check(here, "max_leases", states.count("bound"), "lease_limit")
    check(here, "max_offers", states.count("offered"), "offer_limit")
    if "offered" not in states:
        check(here, "max_per_port", [lease[8] for lease in held].count(PORT_7), "port_limit")


def check(here: Office, limit: str, count: int, refused: str) -> None:
    """`count` is exact: at a limit of it the next is refused, and one above it is not refused for that."""
    before = here.counters.get(refused, 0)
    setattr(here.responder, limit, count)
    assert discover(here, 200) == []
    assert here.counters[refused] == before + 1
    setattr(here.responder, limit, 1000)


@pytest.mark.parametrize("limit", ["per_port", "offers", "leases"])
def test_a_limit_is_at_least_one(limit: str) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config.Limits(**{limit: 0})

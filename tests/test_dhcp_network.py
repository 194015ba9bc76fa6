"""What a configuration makes of subnets, wires and our links, and what it refuses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from dhcpkit import DISCOVER, Office, message

from fastboot import config
from fastboot.model import ConfigError, Node
from fastboot.services.dhcp_network import Network, wires_of
from fastboot.services.links import Link


def link(name: str, *addresses: str) -> Link:
    return Link(name, 1, bytes(6), 1500, tuple(map(IPv4Interface, addresses)))


def subnet(network: str, **more: object) -> config.Subnet:
    return config.Subnet(network=network, **more)  # type: ignore[arg-type]


def made(subnets: tuple[config.Subnet, ...], *links: Link, nodes: tuple[Node, ...] = ()) -> Network:
    own = frozenset(entry.ip for each in links for entry in each.addresses)
    return Network(config.Dhcp(subnets=subnets), links, nodes, own)


def test_subnets_are_on_one_wire_by_our_addresses_or_by_name() -> None:
    subnets = (
        subnet("10.1.0.0/24"),
        subnet("10.2.0.0/24", shared_network="a"),
        subnet("10.3.0.0/24"),
        subnet("10.4.0.0/24", shared_network="a"),
        subnet("10.5.0.0/24", shared_network="b"),
        subnet("10.6.0.0/24", shared_network="b"),
        subnet("10.7.0.0/24"),
    )
    links = (link("one", "10.1.0.1/24", "10.2.0.1/24"), link("two", "10.3.0.1/24"))
    assert wires_of(subnets, links) == [0, 0, 2, 0, 4, 4, 6]
    one, two = made(subnets, *links).links
    assert one[3] == [(0, int(IPv4Address("10.1.0.1"))), (1, int(IPv4Address("10.2.0.1"))), (3, one[2])]
    assert [at for at, _ in two[3]] == [2]


def test_a_plan_for_an_address_is_that_of_its_subnet_if_it_is_on_the_wire() -> None:
    subnets = (
        subnet("10.1.0.0/24", shared_network="a"),
        subnet("10.2.0.0/24", shared_network="a"),
        subnet("10.3.0.0/24", relayed=True, gateway="10.3.0.1"),
    )
    network = made(subnets, link("one", "10.1.0.1/24"))
    here = IPv4Network("10.1.0.0/24")
    assert network.place(here, "one", None) == (network.place(here, "one", IPv4Address("10.1.0.9")))
    found, own = network.place(here, "one", IPv4Address("10.2.0.9"))
    assert (str(found.network), own) == ("10.2.0.0/24", None)
    found, own = network.place(here, "one", IPv4Address("10.3.0.9"))
    assert (str(found.network), own) == ("10.1.0.0/24", IPv4Address("10.1.0.1"))


@pytest.mark.parametrize(
    ("subnets", "said"),
    [
        ((subnet("10.9.0.0/24"),), "10.2.0.1/24 .one.; where relays reach a subnet, write relayed = true"),
        (
            (subnet("10.1.0.0/24"), subnet("10.2.0.0/24", identity="client-id")),
            r"subnets\[0\].identity: must be the same in 10.1.0.0/24, 10.2.0.0/24, which share a wire",
        ),
        (
            tuple(subnet(f"10.1.{third}.0/24", shared_network="a") for third in range(17)),
            r"subnets\[0\].network: 16 subnets are the most on one wire",
        ),
        (
            (subnet("10.0.0.0/8", pools=("10.2.0.0-10.9.0.0",)),),
            "the pools hold more than 262144 addresses; make them smaller",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_served_is_refused(subnets: tuple[config.Subnet, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(subnets, link("one", "10.1.0.1/24", "10.2.0.1/24"))


def test_our_own_addresses_and_the_gateway_are_never_given() -> None:
    network = made(
        (subnet("10.1.0.0/29", pools=("10.1.0.1-10.1.0.6",), gateway="10.1.0.4"),), link("one", "10.1.0.2/29")
    )
    first = int(IPv4Address("10.1.0.0"))
    assert network.subnets[0][3] == [(first + 1, first + 1), (first + 3, first + 3), (first + 5, first + 6)]


def test_sixteen_subnets_on_one_wire_are_all_used() -> None:
    subnets = tuple(
        subnet(f"10.1.{third}.0/24", pools=(f"10.1.{third}.9",), shared_network="a") for third in range(16)
    )
    office = Office(subnets=subnets, links=(("10.1.0.1/24",),))
    found = {office.lease_of(f"52:54:00:00:00:{at:02x}") for at in range(16)}
    assert found == {f"10.1.{third}.9" for third in range(16)}
    assert office.send(message(DISCOVER, "52:54:00:00:01:00")) == []

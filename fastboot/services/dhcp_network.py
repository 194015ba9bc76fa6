"""The network as the native core takes it: which subnets are on which wire, and what machines are known by."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from fastboot.config import Dhcp, Subnet
from fastboot.model import ConfigError, Node
from fastboot.services.links import Link

LinkTuple = tuple[int, int, int, list[tuple[int, int]], bytes]
SubnetTuple = tuple[int, int, int, list[tuple[int, int]], int, bool]
NodeTuple = tuple[int, list[bytes], bytes, bytes]

MAX_ADDRESSES: Final = 262_144
"""Addresses of all pools together: 100 MB of lease table."""
MAX_SUBNETS: Final = 16
"""Subnets on one wire: as many are tried for a client that has no address yet."""


class Network:
    """What a configuration makes of the links of this host. Raises ConfigError where they can not serve it."""

    def __init__(
        self, settings: Dhcp, links: Sequence[Link], nodes: Sequence[Node], own: frozenset[IPv4Address]
    ) -> None:
        """`own` are all addresses of this host: none of them is ever given away."""
        self._links, self._subnets = links, subnets = tuple(links), settings.served()
        self._wires = wires = wires_of(subnets, links)
        if not any(subnet.relayed or attached(subnet, links) for subnet in subnets):
            have = ", ".join(f"{entry} ({link.name})" for link in links for entry in link.addresses)
            want = ", ".join(str(subnet.network) for subnet in subnets) or "none"
            raise ConfigError(
                f"dhcp.subnets: none of {want} holds an address of ours; those are {have}; where relays reach a"
                " subnet, write relayed = true"
            )
        for at in range(len(subnets)):
            self._check(at)
        if sum(len(pool) for subnet in subnets for pool in subnet.pools) > MAX_ADDRESSES:
            raise ConfigError(
                f"dhcp.subnets: the pools hold more than {MAX_ADDRESSES} addresses; make them smaller"
            )
        self.links = [_link(link, subnets, wires) for link in links]
        self.subnets: list[SubnetTuple] = [
            (
                int(subnet.network.network_address),
                int(subnet.network.netmask),
                subnet.lease or settings.lease,
                _ranges(subnet, own),
                wires[at],
                subnet.identity == "client-id",
            )
            for at, subnet in enumerate(subnets)
        ]
        self.nodes: list[NodeTuple] = [
            (
                int(node.address) if node.address else 0,
                [bytes.fromhex(mac.replace(":", "")) for mac in node.macs],
                node.circuit_id,
                node.remote_id,
            )
            for node in nodes
        ]
        self.own = sorted(int(each) for each in own)

    def place(
        self, network: IPv4Network, interface: str, address: IPv4Address | None
    ) -> tuple[Subnet, IPv4Address | None]:
        """Return the subnet that an address is in, if it is on the wire of `network`, else `network`'s; and our
        address there."""
        at = next((at for at, subnet in enumerate(self._subnets) if subnet.network == network), 0)
        for beside, subnet in enumerate(self._subnets):
            if self._wires[beside] == self._wires[at] and address and address in subnet.network:
                at = beside
        subnet = self._subnets[at]
        own = next(
            (
                entry.ip
                for link in self._links
                if link.name == interface
                for entry in link.addresses
                if entry.ip in subnet.network
            ),
            None,
        )
        return subnet, own

    def _check(self, at: int) -> None:
        subnet = self._subnets[at]
        beside = [other for number, other in enumerate(self._subnets) if self._wires[number] == self._wires[at]]
        if len(beside) > MAX_SUBNETS:
            raise ConfigError(f"dhcp.subnets[{at}].network: {MAX_SUBNETS} subnets are the most on one wire")
        if any(other.identity != subnet.identity for other in beside):
            wire = ", ".join(str(other.network) for other in beside)
            raise ConfigError(f"dhcp.subnets[{at}].identity: must be the same in {wire}, which share a wire")


def attached(subnet: Subnet, links: Sequence[Link]) -> bool:
    """Whether one of our addresses is in a subnet."""
    return any(entry.ip in subnet.network for link in links for entry in link.addresses)


def wires_of(subnets: Sequence[Subnet], links: Sequence[Link]) -> list[int]:
    """Return for each subnet a number that those on one wire have in common: those of one `shared_network`, and
    those that one link of ours has addresses in."""
    wires = list(range(len(subnets)))
    groups = [
        [at for at, subnet in enumerate(subnets) if any(entry.ip in subnet.network for entry in link.addresses)]
        for link in links
    ]
    for name in {subnet.shared_network for subnet in subnets if subnet.shared_network}:
        groups.append([at for at, subnet in enumerate(subnets) if subnet.shared_network == name])
    for group in groups:
        joined = {wires[at] for at in group}
        wires = [min(joined) if wire in joined else wire for wire in wires]
    return wires


def _link(link: Link, subnets: Sequence[Subnet], wires: Sequence[int]) -> LinkTuple:
    """Those that we have an address in come first: with another, clients reach us through a router only."""
    first = int(link.addresses[0].ip)
    near = [
        (at, int(own.ip))
        for at, subnet in enumerate(subnets)
        for own in [next((entry for entry in link.addresses if entry.ip in subnet.network), None)]
        if own is not None
    ]
    here = {at for at, _ in near}
    near += [
        (at, first)
        for at in range(len(subnets))
        if at not in here and any(wires[at] == wires[other] for other in here)
    ]
    return link.index, link.mtu, first, near, link.mac


def _ranges(subnet: Subnet, own: frozenset[IPv4Address]) -> list[tuple[int, int]]:
    """Return the pools of a subnet less the addresses of this host and of the gateway."""
    taken = {int(each) for each in own | ({subnet.gateway} if subnet.gateway else set())}
    taken |= {int(subnet.network.network_address), int(subnet.network.broadcast_address)}
    ranges = []
    for pool in subnet.pools:
        first = int(pool.first)
        for address in sorted(each for each in taken if int(pool.first) <= each <= int(pool.last)):
            if first < address:
                ranges.append((first, address - 1))
            first = address + 1
        if first <= int(pool.last):
            ranges.append((first, int(pool.last)))
    return ranges

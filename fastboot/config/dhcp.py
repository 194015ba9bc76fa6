"""The tables of DHCP, and where they contradict themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fastboot.config.fields import Lease, Pool, Seconds, Table


def _network(value: object) -> object:
    try:
        network = IPv4Network(str(value), strict=False)
    except ValueError:
        raise ValueError(f'{value!r} is no network; write one such as "10.77.0.0/24"') from None
    if str(network.network_address) != str(value).partition("/")[0]:
        raise ValueError(f'{value!r} is an address in a network; write "{network}"')
    if network.prefixlen > 30:
        raise ValueError(f"{network} has no room for machines; /30 is the smallest that has")
    return network


def _period(value: int) -> int:
    # A server that checks an address before its offer, as dnsmasq does for 3 s, must not be taken for gone.
    if 0 < value < 10:
        raise ValueError('is shorter than another server may take to answer; write at least "10s", or 0 for never')
    return value


class Subnet(Table):
    network: Annotated[IPv4Network, BeforeValidator(_network)]
    pools: tuple[Pool, ...] = ()
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")] | None = None
    lease: Lease | None = None


class Dhcp(Table):
    mode: Literal["server"] = "server"
    lease: Lease = 3600
    known_servers: tuple[IPv4Address, ...] = ()
    probe: Annotated[Seconds, Field(ge=0, le=60)] = 4
    """How long to look for another DHCP server before serving. dnsmasq pings for 3 s before its first OFFER."""
    probe_every: Annotated[Seconds, AfterValidator(_period), Field(le=86400)] = 300
    """How often to look for one while serving; 0 means never."""
    subnets: tuple[Subnet, ...] = ()


def subnet_faults(subnets: Sequence[Subnet]) -> Iterator[str]:
    for at, subnet in enumerate(subnets):
        key, network, gateway = f"dhcp.subnets[{at}]", subnet.network, subnet.gateway
        hosts = f"{network.network_address + 1} to {network.broadcast_address - 1}"
        reserved = {network.network_address: "network", network.broadcast_address: "broadcast"}
        if gateway is not None and (gateway not in network or gateway in reserved):
            yield f"{key}.gateway: {gateway} is no machine of {network}; write one of {hosts}"
        if gateway is not None:
            reserved[gateway] = "gateway"
        for number, pool in enumerate(subnet.pools):
            if pool.first not in network or pool.last not in network:
                yield f"{key}.pools[{number}]: {pool} is not inside {network}; write addresses of {hosts}"
                continue
            for address, what in reserved.items():
                if address in pool:
                    yield f"{key}.pools[{number}]: {pool} holds the {what} address {address}; leave it out"
        for one, other in pairwise(sorted(subnet.pools, key=lambda pool: pool.first)):
            if other.first <= one.last:
                yield f"{key}.pools: {one} and {other} overlap; join them"
    for (number, first), (at, second) in combinations(enumerate(subnets), 2):
        if first.network.overlaps(second.network):
            yield f"dhcp.subnets[{at}].network: {second.network} overlaps subnets[{number}], {first.network}"


def address_faults(address: IPv4Address, subnets: Sequence[Subnet]) -> Iterator[str]:
    for subnet in subnets:
        if address in subnet.network:
            if address in (subnet.network.network_address, subnet.network.broadcast_address, subnet.gateway):
                yield f"{address} is the network, broadcast or gateway address of {subnet.network}"
            return
    yield f"{address} is in no subnet; there are {', '.join(str(subnet.network) for subnet in subnets)}"

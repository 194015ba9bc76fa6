"""The tables of DHCP, and where they contradict themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fastboot.config.fields import Bool, Int, Lease, Line, MacPrefix, Name, Pool, Seconds, Table, like, one_or_more
from fastboot.config.options import Options, overlay
from fastboot.model import Settings, Transport


def _network(value: object) -> object:
    try:
        network = IPv4Network(str(value), strict=False)
    except ValueError:
        raise ValueError(f'{value!r} is no network; write one such as "10.77.0.0/24"') from None
    if str(network.network_address) != str(value).partition("/")[0]:
        raise ValueError(f'{value!r} is an address in a network; write "{network}"')
    for none, name in NO_MACHINES.items():
        if network.overlaps(none):
            text = f"is {name}" if network.subnet_of(none) else f"holds {none}, {name}"
            raise ValueError(f'{network} {text}; write the network of the machines, such as "10.77.0.0/24"')
    if network.prefixlen > 30:
        raise ValueError(f"{network} has no room for machines; /30 is the smallest that has")
    return network


Domain = Annotated[
    str, like(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", 'is no domain; write one such as "lab.example"')
]
ADDRESSES = 1 << 32
"""As many as IPv4 has."""
NO_MACHINES = {
    IPv4Network("0.0.0.0/8"): "an address of no network",
    IPv4Network("127.0.0.0/8"): "the loopback, where no machine but this one is",
    IPv4Network("224.0.0.0/4"): "multicast",
    IPv4Network("240.0.0.0/4"): "reserved",
}
"""Networks whose addresses no machine can have (RFC 6890)."""


def _period(value: int) -> int:
    # A server that checks an address before its offer, as dnsmasq does for 3 s, must not be taken for gone.
    if 0 < value < 10:
        raise ValueError('is shorter than another server may take to answer; write at least "10s", or 0 for never')
    return value


class Answer(Table):
    """What a noun of the configuration may say of the answer to its machines."""

    next_server: IPv4Address | None = None
    lease: Lease | None = None
    options: Options = ()

    def settings(self, loaders: Mapping[str, str] | None = None) -> Settings:
        return Settings(loaders or {}, self.next_server, self.lease, self.options)


class BootAnswer(Answer):
    """What may be said beside that of machines which are picked out."""

    transport: Transport | None = None
    """How their loaders fetch kernels and initrds."""

    def settings(self, loaders: Mapping[str, str] | None = None) -> Settings:
        return replace(super().settings(loaders), transport=self.transport)


class Subnet(Answer):
    network: Annotated[IPv4Network, BeforeValidator(_network)]
    pools: tuple[Pool, ...] = ()
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: Domain | None = None
    relayed: Bool = False
    """None of our addresses is in it: its machines are answered through relays."""
    shared_network: Name | None = None
    """Subnets with the same name are on one wire."""
    identity: Literal["mac", "client-id"] = "mac"


class ClassTable(BootAnswer):
    """Machines that firmware.py knows by a name, or those that match every key that is given."""

    name: Name
    firmware: Annotated[tuple[str, ...], one_or_more("ipxe", "uefi-x64")] = ()
    vendor_class: Annotated[tuple[Line, ...], one_or_more("PXEClient", "HTTPClient")] = ()
    user_class: Annotated[tuple[Line, ...], one_or_more("iPXE", "lab")] = ()
    macs: Annotated[tuple[MacPrefix, ...], one_or_more("b8:27:eb", "dc:a6:32")] = ()
    subnets: Annotated[
        tuple[Annotated[IPv4Network, BeforeValidator(_network)], ...],
        one_or_more("10.77.0.0/24", "10.78.0.0/24"),
    ] = ()

    @property
    def matches(self) -> bool:
        """Whether it says itself which machines it has."""
        return bool(self.firmware or self.vendor_class or self.user_class or self.macs or self.subnets)


class Limits(Table):
    """What machines that no node names may take; a node is always served."""

    per_port: Annotated[Int, Field(ge=1, le=ADDRESSES)] = 64
    """Addresses on offer to, or leased by, machines behind one port of one relay."""
    offers: Annotated[Int, Field(ge=1, le=ADDRESSES)] = 2048
    """Addresses on offer at the same time to machines that are new."""
    leases: Annotated[Int, Field(ge=1, le=ADDRESSES)] | None = None
    """Addresses leased; without a limit, what the pools hold."""


class Dhcp(Answer):
    mode: Literal["server", "proxy"] = "server"
    """"proxy": another server gives the addresses, we name the boot files."""
    lease: Lease = 3600
    known_servers: tuple[IPv4Address, ...] = ()
    probe: Annotated[Seconds, Field(ge=0, le=60)] = 4
    """How long to look for another DHCP server before serving. dnsmasq pings for 3 s before its first OFFER."""
    probe_every: Annotated[Seconds, AfterValidator(_period), Field(le=86400)] = 300
    """How often to look for one while serving; 0 means never."""
    bootp: Bool = False
    snooping: Bool = False
    """Option 82 is believed of switches that insert it and are no relays."""
    arp_probes: Bool = True
    """Whether to ask who uses a free address before it is given to a machine."""
    quarantine: Annotated[Seconds, Field(ge=60, le=7 * 86400)] = 3600
    """How long nobody gets an address that is in use. Kea's decline-probation-period is a day, ISC's as long."""
    limits: Limits = Limits()
    subnets: tuple[Subnet, ...] = ()
    classes: tuple[ClassTable, ...] = ()

    def served(self) -> tuple[Subnet, ...]:
        """Return the subnets, each with what is said for all of them filled in."""
        return tuple(
            subnet.model_copy(
                update={
                    "next_server": subnet.next_server or self.next_server,
                    "lease": subnet.lease or self.lease,
                    "options": overlay(self.options, subnet.options),
                }
            )
            for subnet in self.subnets
        )


def mode_faults(dhcp: Dhcp) -> Iterator[str]:
    if dhcp.mode == "server" and not dhcp.subnets:
        yield (
            'dhcp.subnets: is missing; add [[dhcp.subnets]] with network = "10.77.0.0/24", or write mode = "proxy"'
            " where another server gives the addresses"
        )
    for at, subnet in enumerate(dhcp.subnets if dhcp.mode == "proxy" else ()):
        if subnet.pools:
            yield f"dhcp.subnets[{at}].pools: has no effect in mode proxy, which gives no addresses; remove it"


def subnet_faults(subnets: Sequence[Subnet]) -> Iterator[str]:
    for at, subnet in enumerate(subnets):
        key, network, gateway = f"dhcp.subnets[{at}]", subnet.network, subnet.gateway
        hosts = f"{network.network_address + 1} to {network.broadcast_address - 1}"
        reserved = {network.network_address: "network", network.broadcast_address: "broadcast"}
        if gateway is not None and (gateway not in network or gateway in reserved):
            yield f"{key}.gateway: {gateway} is no machine of {network}; write one of {hosts}"
        if gateway is not None:
            reserved[gateway] = "gateway"
        elif subnet.relayed:
            yield f"{key}.gateway: is missing; machines behind a relay need it to reach this server"
        if subnet.shared_network and not any(
            other.shared_network == subnet.shared_network for other in subnets if other is not subnet
        ):
            yield f"{key}.shared_network: no other subnet is in {subnet.shared_network}; name two or more, or none"
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

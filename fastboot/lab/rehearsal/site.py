"""Two ends of a network: on one the server with the interfaces of its configuration, on the other the machines.

Each end is a network namespace of its own, so nothing of it reaches a real network.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

import psutil

from fastboot.config import Config, Subnet
from fastboot.lab import namespace
from fastboot.lab.fleet import open_link, open_relay
from fastboot.lab.namespace import LabError, Space
from fastboot.lab.network import claim, ip, silence


@dataclass(frozen=True, slots=True)
class Plug:
    """An interface of the server: its addresses, the networks whose machines are on it, and those behind relays
    with the relay's address."""

    interface: str
    addresses: tuple[IPv4Interface, ...]
    networks: tuple[IPv4Network, ...]
    relayed: tuple[tuple[IPv4Network, IPv4Address], ...] = ()

    @property
    def server(self) -> IPv4Address:
        return self.addresses[0].ip


def plugs_of(config: Config) -> tuple[Plug, ...]:
    """Return the interfaces of a configuration as they are on this host, or where they are not here, as the
    subnets need them. Raises LabError for a configuration that gives no addresses."""
    if config.dhcp is None or config.dhcp.mode != "server":
        raise LabError('machines need an address first: the configuration needs [dhcp] in mode "server"')
    here = {
        name: tuple(
            IPv4Interface(f"{each.address}/{each.netmask}") for each in found if each.family == socket.AF_INET
        )
        for name, found in psutil.net_if_addrs().items()
    }
    local = [subnet for subnet in config.dhcp.subnets if not subnet.relayed]
    taken = {node.address for node in config.all_nodes()}
    plugs: list[Plug] = []
    for name in config.interface:
        addresses = here.get(name, ())
        known = {subnet.network for plug in plugs for subnet in local if _has(plug.addresses, subnet)}
        if not any(_has(addresses, subnet) for subnet in local):
            free = [subnet for subnet in local if subnet.network not in known]
            addresses = tuple(_own(subnet, taken) for subnet in (free if len(config.interface) == 1 else free[:1]))
        if addresses:
            networks = tuple(subnet.network for subnet in local if _has(addresses, subnet))
            plugs.append(Plug(name, addresses, networks))
    if not plugs:
        raise LabError("no interface of the configuration is in one of its subnets")
    behind = tuple(
        (subnet.network, subnet.gateway) for subnet in config.dhcp.subnets if subnet.relayed and subnet.gateway
    )
    first = plugs[0]
    return (Plug(first.interface, first.addresses, first.networks, behind), *plugs[1:])


def _has(addresses: Sequence[IPv4Interface], subnet: Subnet) -> bool:
    return any(address.ip in subnet.network for address in addresses)


def _own(subnet: Subnet, taken: set[IPv4Address | None]) -> IPv4Interface:
    """Return an address for the server that nobody else is meant to have."""
    for host in subnet.network.hosts():
        pooled = any(pool.first <= host <= pool.last for pool in subnet.pools)
        if not pooled and host not in taken and host != subnet.gateway:
            return IPv4Interface(f"{host}/{subnet.network.prefixlen}")
    raise LabError(f"no address of {subnet.network} is left for the server")


ANYWHERE: Final = IPv4Network("0.0.0.0/0")


@dataclass(slots=True)
class Wire:
    """Where machines are plugged in, and through which socket their DHCP leaves. `network`: whose addresses they
    get; `source`: the MAC address that all their frames have, where not each its own."""

    port: socket.socket
    network: IPv4Network = ANYWHERE
    giaddr: IPv4Address | None = None
    source: bytes = b""


class Site:
    """Both ends. The process that makes it lives at the machines' end then."""

    def __init__(self, plugs: Sequence[Plug], rate: int | None = None) -> None:
        """`rate`: bits per second of every link, with the small buffer of a switch (32 ms). Raises LabError."""
        self.plugs = tuple(plugs)
        self.wires: list[Wire] = []
        namespace.enter()
        self._ends = [Space()]
        self._server_end(rate)
        self._ends.append(Space.new())
        with self.at_server():
            for number, _ in enumerate(self.plugs):
                ip("link", "set", f"machines{number}", "netns", self._ends[1].path)
        self._machines_end()

    @contextmanager
    def at_server(self) -> Iterator[None]:
        """What is started in here lives at the server's end."""
        self._ends[0].go()
        try:
            yield
        finally:
            self._ends[1].go()

    def close(self) -> None:
        """Forget both ends; they go when the last process in them does."""
        for wire in self.wires:
            wire.port.close()
        for end in self._ends:
            end.close()
        self.wires, self._ends = [], []

    def _server_end(self, rate: int | None) -> None:
        ip("link", "set", "lo", "up")
        for number, plug in enumerate(self.plugs):
            ip("link", "add", plug.interface, "type", "veth", "peer", "name", f"machines{number}")
            for end in (plug.interface, f"machines{number}"):
                ip(*silence(end)[1:])
            for address in plug.addresses:
                ip("address", "add", str(address), "dev", plug.interface)
            ip("link", "set", plug.interface, "up")
            for network, _ in plug.relayed:
                ip("route", "add", str(network), "dev", plug.interface, "src", str(plug.server))
            if rate:
                _shape(plug.interface, rate)

    def _machines_end(self) -> None:
        ip("link", "set", "lo", "up")
        for number, plug in enumerate(self.plugs):
            name = f"machines{number}"
            ip("link", "set", name, "up")
            servers = [address.ip for address in plug.addresses]
            for network in (*plug.networks, *(behind for behind, _ in plug.relayed)):
                claim(name, network, *(server for server in servers if server in network))
            for server in servers:
                if not any(server in network for network in plug.networks):
                    ip("route", "add", f"{server}/32", "dev", name, "scope", "link")
            self.wires += [Wire(open_link(name), network) for network in plug.networks]
            self.wires += [Wire(open_relay(relay, plug.server), network, relay) for network, relay in plug.relayed]


def _shape(interface: str, rate: int) -> None:
    limit, burst = max(rate // 8 * 32 // 1000, 1 << 16), max(rate // 8000, 1 << 17)
    words = ["tc", "qdisc", "add", "dev", interface, "root", "tbf", "rate", f"{rate}bit"]
    try:
        subprocess.run(
            [*words, "burst", str(burst), "limit", str(limit)], check=True, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise LabError("tc: no such program; install iproute2") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"{' '.join(words)}: {error.stderr.strip()}") from error

"""The network interfaces that the services listen on."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

import psutil

from fastboot.model import ConfigError


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as it was when the server started. `mac` is six octets, all zero on a loopback.

    `addresses` are in the kernel's order, aliases included; never empty.
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    addresses: tuple[IPv4Interface, ...]

    def server_for(self, peer: IPv4Address) -> IPv4Address:
        """Return the address of ours that a peer on this link should talk to."""
        for own in self.addresses:
            if peer in own.network:
                return own.ip
        return self.addresses[0].ip


def find_links(names: Sequence[str]) -> tuple[Link, ...]:
    """Look the interfaces up. Raises ConfigError for one that is missing, down or without an IPv4 address."""
    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    links = []
    for name in names:
        if name not in states:
            known = ", ".join(sorted(states))
            raise ConfigError(f"interface: there is no {name!r} here; there are {known}")
        if not states[name].isup:
            raise ConfigError(f"interface: {name} is down; bring it up with: ip link set {name} up")
        mac, own = bytes(6), []
        # An alias made with a label is listed as "eth0:1".
        for label in (key for key in addresses if key.partition(":")[0] == name):
            for entry in addresses[label]:
                if entry.family == socket.AF_INET:
                    own.append(IPv4Interface(f"{entry.address}/{entry.netmask}"))
                elif entry.family == psutil.AF_LINK:
                    mac = bytes.fromhex(entry.address.replace(":", ""))
        if not own:
            raise ConfigError(
                f"interface: {name} has no IPv4 address; give it one with: ip address add 10.77.0.1/24 dev {name}"
            )
        links.append(Link(name, socket.if_nametoindex(name), mac, states[name].mtu, tuple(own)))
    return tuple(links)

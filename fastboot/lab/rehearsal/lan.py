"""A real network, entered by one interface: machines get addresses there, and give them back.

They live in a namespace of their own on a child of the interface (macvlan) and share its MAC address on the wire;
each has its own in its DHCP messages alone. No address is theirs, or answered for by ARP, before it is leased.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import psutil

from fastboot._core import DhcpMessage
from fastboot.lab.fleet import open_link
from fastboot.lab.namespace import LabError, Space
from fastboot.lab.network import Routes, ip, setting
from fastboot.lab.rehearsal.kinds import Dhcp
from fastboot.lab.rehearsal.machine import Machine
from fastboot.lab.rehearsal.site import Wire

MOST_MACHINES: Final = 1000
"""More would not fit in the server's neighbour table (net.ipv4.neigh.default.gc_thresh3 is 1,024)."""
MOST_A_SECOND: Final = 100
"""Machines that are switched on."""
_CHILD: Final = "machines0"
_PAUSE: Final = 0.0005
"""Seconds between two releases, each of which a server writes to its disk."""


@dataclass(frozen=True, slots=True)
class _Lease:
    mac: bytes
    dhcp: Dhcp
    server: IPv4Address


class Lan:
    """The process that makes it lives in the machines' namespace then."""

    def __init__(self, interface: str) -> None:
        """Raises LabError, also where this process may not make it."""
        facts = psutil.net_if_stats().get(interface)
        if facts is None or not facts.isup:
            raise LabError(f"--interface: {interface} {'is down' if facts else 'is not there'}")
        self.rate = facts.speed * 1_000_000 or None
        """Bits per second of the interface, where it is known."""
        self.first_mac = _first_mac(interface)
        self._leases: dict[tuple[bytes, IPv4Address], _Lease] = {}
        outside = Space()
        inside = Space.new()
        outside.go()
        ip(
            "link",
            "add",
            "link",
            interface,
            "name",
            _CHILD,
            "netns",
            inside.path,
            "type",
            "macvlan",
            "mode",
            "bridge",
        )
        inside.go()
        outside.close()
        inside.close()
        setting(f"net/ipv6/conf/{_CHILD}/disable_ipv6", "1")  # it would speak for itself
        ip("link", "set", "lo", "up")
        ip("link", "set", _CHILD, "up")
        self._routes = Routes(_CHILD)
        port = open_link(_CHILD)
        self.wires = [Wire(port, source=port.getsockname()[4])]

    def leased(self, machine: Machine, dhcp: Dhcp, reply: DhcpMessage) -> None:
        """Make an address ours that a server has leased to a machine."""
        address = IPv4Address(reply.yiaddr)
        self._routes.claim(address)
        mask = int.from_bytes(reply.options.get(1, b"\xff\xff\xff\0"))
        self._routes.add(IPv4Network((int(address) & mask, mask.bit_count())))
        if gateway := reply.options.get(3, b"")[:4]:
            self._routes.add(IPv4Network("0.0.0.0/0"), IPv4Address(gateway))
        server = IPv4Address(reply.options.get(54, b"")[:4] or reply.siaddr)
        self._leases[machine.mac, address] = _Lease(machine.mac, dhcp, server)

    def release(self) -> Mapping[IPv4Address, int]:
        """Give all addresses back; returns to which servers how many. Nobody confirms that they have come."""
        given: dict[IPv4Address, int] = {}
        while self._leases:
            (_, address), lease = self._leases.popitem()
            with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
                port.bind((str(address), 68))
                port.sendto(lease.dhcp.release(lease.mac, address, lease.server), (str(lease.server), 67))
                given[lease.server] = given.get(lease.server, 0) + 1
            time.sleep(_PAUSE)
        return given

    def close(self) -> None:
        """Leave the network; the child of the interface goes with this process."""
        self._routes.close()
        for wire in self.wires:
            wire.port.close()


def _first_mac(interface: str) -> int:
    # Locally administered, the same each time here, so that its leases are, and others on another host.
    own = [each.address for each in psutil.net_if_addrs()[interface] if each.family == psutil.AF_LINK]
    host = bytes.fromhex(own[0].replace(":", ""))[-3:] if own else bytes(3)
    return int.from_bytes(b"\x02" + host + b"\0\1")

"""The network interfaces that the services listen on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import psutil

from fastboot.model import ConfigError, FastbootError

BUFFER = 8 << 20
"""Octets of each socket's buffers: what the default of 208 KiB holds is three segmented messages."""
ELSEWHERE = "stop that, or choose another port"

# linux/in.h and linux/socket.h; the socket module names them from Python 3.12 or not at all.
IP_PKTINFO, IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 8, 10, 0
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


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
        # `isup` also asks for a carrier: a switch that still boots is no reason not to start.
        if "up" not in states[name].flags.split(","):
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


def is_veth(name: str, root: Path = Path("/")) -> bool:
    """Whether an interface is one end of a veth pair: the network of a container, seen from inside."""
    facts = root / "sys/class/net" / name
    try:
        index, peer, about = ((facts / file).read_text() for file in ("ifindex", "iflink", "uevent"))
    except OSError:
        return False
    return index != peer and "DEVTYPE" not in about  # VLANs and macvlans, which name theirs, have a parent there


def host_addresses(links: Sequence[Link]) -> set[IPv4Address]:
    """Return every IPv4 address of this host, and those that the links had when the server started."""
    here = {
        IPv4Address(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    return here | {entry.ip for link in links for entry in link.addresses}


def open_udp(
    key: str, port: int, *, link: Link | None = None, shared: bool = False, taken: str = ELSEWHERE
) -> socket.socket:
    """Bind a UDP socket that tells to which of our addresses a packet was sent.

    `link` keeps it to one interface, so that the port is free on others; `shared` lets more sockets of ours have
    it; `taken` is what to do about a port that somebody has. Raises FastbootError, which begins with the
    configuration's `key`.
    """
    each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with _bound(each, f"{key}: UDP port {port}" + (f" on {link.name}" if link else ""), port, taken):
        each.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        # A path narrower than the interface may cut packets: many ROMs know nothing of path MTU discovery.
        each.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        enlarge(each)
        if shared:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if link is not None:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())
            each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        each.bind(("", port))
    return each


def open_tcp(key: str, address: IPv4Address, port: int) -> socket.socket:
    """Bind a TCP socket to one of our addresses. Raises FastbootError, which begins with `key`."""
    each = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with _bound(each, f"{key}: TCP port {port} of {address}", port):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind((str(address), port))
    return each


@contextmanager
def _bound(each: socket.socket, where: str, port: int, taken: str = ELSEWHERE) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = "udp4" if each.type == socket.SOCK_DGRAM else "tcp4"
        each.close()
        if error.errno == errno.EADDRINUSE:
            text = f"is taken by {_holder(kind, port)}; {taken}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            text = "needs root, or CAP_NET_BIND_SERVICE and CAP_NET_RAW"
        else:
            text = f"can not be bound: {os.strerror(error.errno or 0)}"
        raise FastbootError(f"{where} {text}") from error


def _holder(kind: str, port: int) -> str:
    """Name the program that has a port, where /proc tells us."""
    with suppress(psutil.Error):
        for entry in psutil.net_connections(kind):
            if entry.laddr and entry.laddr.port == port and entry.pid:
                return f"{psutil.Process(entry.pid).name()} (process {entry.pid})"
    return "another program"


def listen(loop: asyncio.AbstractEventLoop, each: socket.socket, heard: Callable[[], None]) -> None:
    """Call `heard` whenever a packet socket has something, from now on or, after an error of it, again.

    A link that goes down is an error of its packet sockets, and libuv looks no more at a descriptor that had one.
    """
    loop.remove_reader(each)
    loop.add_reader(each, heard)


def enlarge(each: socket.socket) -> None:
    """Give a socket big buffers, or the biggest that an ordinary user may have."""
    for forced, polite in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            each.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            each.setsockopt(socket.SOL_SOCKET, polite, BUFFER)

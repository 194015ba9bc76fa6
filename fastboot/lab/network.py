"""The lab's network: one bridge with the server's address on it, and a port for each machine.

A port is a veth pair: one end in the bridge, the other read and written by a packet socket. A tap would need
/dev/net/tun, which many machines keep from ordinary users and containers lack; this needs only the namespace.
Call `namespace.enter` first.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from fastboot.lab.namespace import LabError, permission_help

_ETH_P_ALL = 0x0003
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23
_FRAME = 65536
_NEWROUTE, _CREATE = 24, 0x405  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_TABLE_MAIN, _TABLE_LOCAL, _STATIC = 254, 255, 4
_ROUTE_UNICAST, _ROUTE_LOCAL = 1, 2
LINK_MAC: Final = "02:00:5e:00:53:01"
_BURST = 64


def ip(*arguments: str) -> None:
    """Run ip(8). Raises LabError with what it said."""
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LabError("ip: no such program; install iproute2") from error
    except subprocess.CalledProcessError as error:
        text = error.stderr.strip()
        hint = f"; {permission_help()}" if "not permitted" in text else ""
        raise LabError(f"ip {' '.join(arguments)}: {text}{hint}") from error


class _Scope(IntEnum):
    """How far away what a route leads to is, as linux/rtnetlink.h counts."""

    GLOBAL = 0
    LINK = 253
    HOST = 254


class Network:
    """A bridge in the current network namespace. It goes when the last process in the namespace does."""

    def __init__(self, address: IPv4Interface, name: str = "lab0") -> None:
        self.address, self.name = address, name
        self._ports = 0
        ip("link", "set", "lo", "up")
        ip("link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        # Without duplicate address detection the link-local address serves at once.
        setting(f"net/ipv6/conf/{name}/accept_dad", "0")
        setting(f"net/ipv6/conf/{name}/disable_ipv6", "0")
        ip("address", "add", str(address), "dev", name)
        ip("link", "set", name, "up")

    def plug(self) -> Cable:
        """Add a port and return the cable for a machine."""
        inside, outside = f"{self.name}p{self._ports}", f"{self.name}m{self._ports}"
        self._ports += 1
        ip("link", "add", inside, "type", "veth", "peer", "name", outside)
        ip("link", "set", inside, "master", self.name)
        # The machine's end must not speak for itself: no router solicitations, no multicast reports.
        for end in (inside, outside):
            setting(f"net/ipv6/conf/{end}/disable_ipv6", "1")
            _no_offload(end)
            ip("link", "set", end, "up")
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        port.bind((outside, _ETH_P_ALL))
        port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        try:
            port.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        except PermissionError:  # not root outside the namespace: the system's rmem_max is what we get
            port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return Cable(port)

    def extend(self, card: str, process: int) -> None:
        """Add a port whose other end is the network card of a host: the namespace that a process lives in."""
        inside = f"{self.name}p{self._ports}"
        self._ports += 1
        ip("link", "add", inside, "type", "veth", "peer", "name", card)
        ip("link", "set", inside, "master", self.name, "up")
        ip("link", "set", card, "netns", str(process))


class Cable:
    """Carries frames between a port of the bridge and a machine that holds `machine`'s other end.

    The machine's end is a Unix datagram socket, one frame each (`-netdev dgram` of QEMU 7.2). Neither
    direction drops: a full far side leaves the frames where they are, in the near side's buffer.
    """

    def __init__(self, port: socket.socket) -> None:
        self.frames = 0
        self._port = port
        self._near, self.machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._loop: asyncio.AbstractEventLoop | None = None
        for end in (port, self._near):
            end.setblocking(False)

    def connect(self) -> None:
        """Begin to carry frames in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._port, self._carry, self._port, self._near)
        self._loop.add_reader(self._near, self._carry, self._near, self._port)

    def close(self) -> None:
        """Stop and release the sockets; harmless a second time."""
        for end in (self._port, self._near):
            if self._loop and end.fileno() >= 0:
                self._loop.remove_reader(end)
                self._loop.remove_writer(end)
            end.close()
        self.machine.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                frame = source.recv(_FRAME)
            except BlockingIOError:
                return
            except OSError:  # the machine is off
                asyncio.get_running_loop().remove_reader(source)
                return
            self.frames += 1
            if not self._send(sink, frame):
                self._hold(source, sink, frame)
                return

    def _send(self, sink: socket.socket, frame: bytes) -> bool:
        try:
            sink.send(frame)
        except BlockingIOError:
            return False
        except OSError:  # the far side is down: the frame is lost, as on a cable
            return True
        return True

    def _hold(self, source: socket.socket, sink: socket.socket, frame: bytes) -> None:
        """Keep a frame that the sink has no room for, and read no more until it has."""
        loop = asyncio.get_running_loop()

        def resume() -> None:
            if self._send(sink, frame):
                loop.remove_writer(sink)
                loop.add_reader(source, self._carry, source, sink)

        loop.remove_reader(source)
        loop.add_writer(sink, resume)


class Router:
    """Answers IPv6 router solicitations on a bridge: "no DHCPv6 here, no prefix, no default route" (RFC 4861).

    iPXE waits for a router advertisement after its DHCP has ended, 13 s at every boot where none comes.
    """

    _SOLICITATION = 133
    # type, code, checksum (the kernel's), hop limit, no flags, router lifetime 0, reachable and retrans timers
    _ADVERTISEMENT = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 0, 0, 0)

    def __init__(self, name: str) -> None:
        self.answers = 0
        self._scope = socket.if_nametoindex(name)
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        group = socket.inet_pton(socket.AF_INET6, "ff02::2") + struct.pack("@I", self._scope)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self._scope)
        # Receivers drop what may have crossed a router (RFC 4861 section 6.1.2).
        for option in (socket.IPV6_MULTICAST_HOPS, socket.IPV6_UNICAST_HOPS):
            self._socket.setsockopt(socket.IPPROTO_IPV6, option, 255)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._answer)

    def _answer(self) -> None:
        packet = self._socket.recv(2048)
        if packet[:1] == bytes([self._SOLICITATION]):
            self._socket.sendto(self._ADVERTISEMENT, ("ff02::1", 0, 0, self._scope))
            self.answers += 1

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


def setting(name: str, value: str) -> None:
    """Set a kernel parameter of this namespace; a kernel without IPv6 has none to set."""
    path = Path("/proc/sys", name)
    if path.exists():
        path.write_text(value)


def _no_offload(name: str) -> None:
    """Have the kernel fill in checksums and cut segments to the MTU before a frame enters `name`.

    A packet socket sees frames as they are; a machine would drop the unfinished ones.
    """
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)


class Routes:
    """Routes of an interface, added by rtnetlink(7): hundreds in the time that ip(8) takes for one."""

    def __init__(self, interface: str) -> None:
        self._index = socket.if_nametoindex(interface)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._added: set[tuple[IPv4Network, _Scope]] = set()

    def claim(self, address: IPv4Address) -> None:
        """Make an address ours. Raises LabError."""
        self._ask(IPv4Network(address), _Scope.HOST)

    def add(self, network: IPv4Network, gateway: IPv4Address | None = None) -> None:
        """Reach a network, by a gateway or on the link. Raises LabError."""
        self._ask(network, _Scope.GLOBAL if gateway else _Scope.LINK, gateway)

    def close(self) -> None:
        self._socket.close()

    def _ask(self, network: IPv4Network, scope: _Scope, gateway: IPv4Address | None = None) -> None:
        if (network, scope) in self._added:
            return
        local = scope is _Scope.HOST
        table, kind = (_TABLE_LOCAL, _ROUTE_LOCAL) if local else (_TABLE_MAIN, _ROUTE_UNICAST)
        route = struct.pack("=8BI", socket.AF_INET, network.prefixlen, 0, 0, table, _STATIC, scope, kind, 0)
        for name, value in (
            (_RTA_DST, network.network_address.packed),
            (_RTA_OIF, self._index.to_bytes(4, sys.byteorder)),
            (_RTA_GATEWAY, gateway.packed if gateway else b""),
        ):
            route += struct.pack("=HH", 4 + len(value), name) + value if value else b""
        self._socket.send(struct.pack("=IHHII", 16 + len(route), _NEWROUTE, _CREATE, 0, 0) + route)
        (code,) = struct.unpack_from("=i", self._socket.recv(4096), 16)
        if code and -code != errno.EEXIST:
            raise LabError(f"no route to {network}: {os.strerror(-code)}")
        self._added.add((network, scope))


def claim(interface: str, network: IPv4Network, *others: IPv4Address) -> None:
    """Make every address of a network ours on an interface, but those of `others`, which are beyond it.

    Thousands of machines then send and receive by ordinary sockets, without thousands of addresses to add. Do
    `silence` to both ends of the link first.
    """
    ip("route", "add", "local", str(network), "dev", interface)
    for other in others:
        ip("route", "add", f"{other}/32", "dev", interface, "table", "local", "scope", "link")


def silence(interface: str) -> list[str]:
    """Return the command that makes an end of a veth pair deliver without ARP what both ends send.

    The kernel would answer ARP for every address that `claim` made ours, and a server that looks for a free one
    would find none; and its neighbour table holds 1,024 machines (net.ipv4.neigh.default.gc_thresh3), for all
    namespaces together. Without ARP frames bear the sender's own MAC address, so both ends have the same.
    """
    return ["ip", "link", "set", interface, "address", LINK_MAC, "arp", "off"]

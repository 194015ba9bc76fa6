"""A fleet of simulated machines: many at once, on a link or behind a relay.

Call `namespace.enter` first, or be sure of the network: the machines speak to whoever listens there.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from fastboot.lab._fleet import DhcpClients

_ETH_P_IP = 0x0800
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE, _SO_MEMINFO = 33, 32, 55
_BUFFER = 64 << 20
"""Octets: several seconds of 20,000 replies that the kernel counts at 768 octets each."""
_DISCOVER, _REQUEST = 1, 3
_COOKIE = b"\x63\x82\x53\x63"
_SO_ATTACH_FILTER = 26
_DHCP_REPLIES: Final = (  # linux/filter.h: UDP to port 68, as tcpdump -dd writes it
    (0x28, 0, 0, 12), (0x15, 0, 8, _ETH_P_IP), (0x30, 0, 0, 23), (0x15, 0, 6, 17), (0x28, 0, 0, 20),
    (0x45, 4, 0, 0x1FFF), (0xB1, 0, 0, 14), (0x48, 0, 0, 16), (0x15, 0, 1, 68), (6, 0, 0, 0xFFFF), (6, 0, 0, 0),
)  # fmt: skip
FIRST_MAC: Final = 0x02_00_00_00_00_00
"""Locally administered, so that no machine on earth has it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a machine says of itself, in DISCOVER and REQUEST alike. `broadcast`: it can not take a frame before it
    has an address."""

    options: tuple[tuple[int, bytes], ...]
    broadcast: bool = False

    def message(self, type_: int, *asked: tuple[int, bytes]) -> bytes:
        """Return a DHCP message as this machine sends it, without MAC, xid and addresses."""
        flags = 0x8000 if self.broadcast else 0
        head = struct.pack("!BBBBIHH16x16x64x128x", 1, 1, 6, 0, 0, 0, flags)
        options = ((53, bytes([type_])), *asked, *self.options)
        body = b"".join(bytes([code, len(value)]) + value for code, value in options)
        return (head + _COOKIE + body + b"\xff").ljust(300, b"\0")


_WANTED = (55, bytes((1, 3, 6, 15, 28, 43, 60, 66, 67)))
BIOS: Final = Kind(
    (
        (57, (1472).to_bytes(2)),
        (93, b"\0\0"),
        (94, b"\x01\x02\x01"),
        (60, b"PXEClient:Arch:00000:UNDI:002001"),
        _WANTED,
    )
)
"""A PXE ROM (RFC 4578) that takes the reply as a frame to its MAC."""
UEFI: Final = Kind(
    (
        (57, (1472).to_bytes(2)),
        (93, b"\0\x07"),
        (94, b"\x01\x03\x10"),
        (60, b"PXEClient:Arch:00007:UNDI:003016"),
        _WANTED,
    ),
    broadcast=True,
)
"""EDK2, which always sets the broadcast bit."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the machines of one run; see `DhcpClients.run`. `latencies` are seconds from when a machine
    was to be switched on to its ACK, ascending; `dropped` are replies that our own socket had no room for."""

    begun: int
    bound: int
    refused: int
    lost: int
    twice: int
    strange: int
    unsent: int
    late: float
    seconds: float
    latencies: array[float]
    dropped: int

    @property
    def rate(self) -> float:
        """Machines bound per second."""
        return self.bound / self.seconds if self.seconds else 0.0

    @property
    def loss(self) -> float:
        """The share of machines that were not bound."""
        return 1 - self.bound / self.begun if self.begun else 0.0

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the bound machines had at most, in seconds."""
        if not self.latencies:
            return float("inf")
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def open_link(interface: str) -> socket.socket:
    """Open a socket for the answers to DHCP clients on a link. Raises OSError (CAP_NET_RAW)."""
    code = b"".join(struct.pack("HBBI", *each) for each in _DHCP_REPLIES)
    memory = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(_DHCP_REPLIES), ctypes.addressof(memory))
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        port.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        port.bind((interface, _ETH_P_IP))
        port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    except BaseException:
        port.close()
        raise
    return roomy(port)


def open_relay(relay: IPv4Address, server: IPv4Address) -> socket.socket:
    """Open the socket of a relay that has an address of ours. Raises OSError."""
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        port.bind((str(relay), 67))
        port.connect((str(server), 67))
    except BaseException:
        port.close()
        raise
    return roomy(port)


def roomy(port: socket.socket) -> socket.socket:
    """Give a socket large buffers, and return it."""
    for forced, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        port.setsockopt(socket.SOL_SOCKET, polite, _BUFFER)
        with suppress(PermissionError):  # not root outside the namespace: the system's rmem_max is what we get
            port.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
    return port


def dropped(port: socket.socket) -> int:
    """Return how many packets a socket had no room for."""
    # The last of nine counters that linux/sock_diag.h numbers is SK_MEMINFO_DROPS.
    values: Sequence[int] = struct.unpack("9I", port.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
    return values[8]


class Fleet:
    """Machines that share a socket. Every machine of a fleet is a new one, counted up from the MAC `first`."""

    def __init__(self, port: socket.socket, kind: Kind, *, giaddr: IPv4Address | None, first: int) -> None:
        self._port, self._next = port, first
        self._clients = DhcpClients(
            port.fileno(), kind.message(_DISCOVER), kind.message(_REQUEST, (50, bytes(4)), (54, bytes(4))),
            frames=giaddr is None, giaddr=int(giaddr) if giaddr else 0,
        )  # fmt: skip

    @classmethod
    def behind_relay(
        cls, relay: IPv4Address, server: IPv4Address, kind: Kind = BIOS, *, first: int = FIRST_MAC
    ) -> Fleet:
        """Return machines behind a relay that has an address of ours. Raises OSError."""
        return cls(open_relay(relay, server), kind, giaddr=relay, first=first)

    @classmethod
    def on_link(cls, interface: str, kind: Kind = BIOS, *, first: int = FIRST_MAC) -> Fleet:
        """Return machines on the link of an interface of ours. Raises OSError (CAP_NET_RAW)."""
        return cls(open_link(interface), kind, giaddr=None, first=first)

    def run(
        self,
        count: int,
        *,
        rate: float = 0,
        seconds: float = 3600,
        outstanding: int = 0,
        patience: float = 1.0,
    ) -> Outcome:
        """Switch on `count` new machines and wait for all of them: see `DhcpClients.run`."""
        before = dropped(self._port)
        counts = self._clients.run(
            self._next, count, rate=rate, seconds=seconds, outstanding=outstanding, patience=patience
        )
        self._next += count
        latencies = array("d", sorted(counts.pop("latencies")))
        return Outcome(**counts, latencies=latencies, dropped=dropped(self._port) - before)

    def close(self) -> None:
        self._port.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""A switch and the hosts on it, each in a network namespace of its own; dnsmasq on one of them."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from dhcpkit import Namespace

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.services.links import Link, find_links


@dataclass
class Host:
    """A namespace with one interface, `e0`."""

    space: Namespace
    mac: str

    def links(self) -> tuple[Link, ...]:
        with self.space.inside():
            return find_links(["e0"])


@dataclass
class Lan:
    """A bridge in a namespace of its own, and hosts on it."""

    switch: Namespace = field(default_factory=Namespace)
    hosts: list[Host] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.switch.ip("link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
        self.switch.ip("link", "set", "br0", "up")

    def host(self, address: str | None = None) -> Host:
        space, port = Namespace(), f"p{len(self.hosts)}"
        host = Host(space, f"52:54:00:e0:00:{len(self.hosts):02x}")
        self.hosts.append(host)
        peer = ("peer", "name", "e0", "address", host.mac, "netns", space.name)
        self.switch.ip("link", "add", port, "type", "veth", *peer)
        self.switch.ip("link", "set", port, "master", "br0", "up")
        space.ip("link", "set", "e0", "up")
        if address:
            space.ip("address", "add", address, "dev", "e0")
        space.await_carrier("e0")
        return host


@contextmanager
def lan() -> Iterator[Lan]:
    made = Lan()
    try:
        yield made
    finally:
        for space in (made.switch, *(host.space for host in made.hosts)):
            space.delete()


@contextmanager
def daemon(host: Host, *command: str, log: Path) -> Iterator[None]:
    """Run a server on a host until it is no longer wanted."""
    with log.open("wb") as out:
        process = subprocess.Popen(host.space.command(*command), stdout=out, stderr=out)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def dnsmasq(host: Host, directory: Path, *settings: str) -> Iterator[Path]:
    """Give addresses 10.77.0.100 to 199 from a host that has 10.77.0.1, without a ping before. Yields the log."""
    file, log = directory / "dnsmasq.conf", directory / "dnsmasq.log"
    own = ("port=0", "no-ping", "log-dhcp", "interface=e0", "bind-interfaces", "leasefile-ro")
    pool = "dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h"
    file.write_text("\n".join((*own, pool, *settings)) + "\n")
    with daemon(host, "dnsmasq", "--no-daemon", "-C", str(file), log=log):
        wait_for(lambda: "sockets bound exclusively" in log.read_text(), f"dnsmasq: see {log}")
        yield log


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Listener:
    """A bare client's network card: sends packets without an address, hears whatever comes to its wire."""

    def __init__(self, host: Host) -> None:
        self.host = host
        with host.space.inside():
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            self.sock.bind(("e0", 0x0800))
        self.sock.settimeout(5)

    def broadcast(self, payload: bytes) -> None:
        with self.host.space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            out.setsockopt(socket.SOL_SOCKET, 25, b"e0")  # SO_BINDTODEVICE
            out.bind(("", 68))
            out.sendto(payload, ("255.255.255.255", 67))

    def replies(self, seconds: float = 1.0) -> dict[str, DhcpMessage]:
        """Return what DHCP servers say within so many seconds of silence, by their addresses."""
        heard = {}
        try:
            while True:
                server, found = self._hear(seconds)
                heard[server] = found
        except TimeoutError:
            return heard

    def first(self) -> DhcpMessage:
        """Return the next that a DHCP server says."""
        return self._hear(5)[1]

    def _hear(self, seconds: float) -> tuple[str, DhcpMessage]:
        self.sock.settimeout(seconds)
        while True:
            packet = self.sock.recv(4096)
            at = 4 * (packet[0] & 15)
            if packet[9] == 17 and struct.unpack_from("!HH", packet, at) == (67, 68):
                found = parse_dhcp(packet[at + 8 : int.from_bytes(packet[2:4])])
                if isinstance(found, DhcpMessage):
                    return str(IPv4Address(packet[12:16])), found

    def close(self) -> None:
        self.sock.close()

"""Networks, clients and packets for the DHCP tests."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from fastboot import config
from fastboot._core import DhcpMessage, Responder, parse_dhcp
from fastboot.model import Node, Plan
from fastboot.services.dhcp_network import Network
from fastboot.services.dhcp_plan import encode_plan
from fastboot.services.links import Link, find_links

CLONE_NEWNET = 0x40000000
ANY, ALL = 0, 0xFFFFFFFF
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
SECOND = 1_000_000_000
OUR_MAC = "02:00:00:00:00:01"
_numbers = itertools.count()


def number(address: str) -> int:
    return int(IPv4Address(address))


def need(*programs: str) -> None:
    """Skip loudly where something is missing; in CI fail."""
    missing = [program for program in programs if shutil.which(program) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        text = f"needs {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


TREE = Path(__file__).parent.parent / ".cache" / "debian"
"""Where tools/bootstrap.py unpacks what would start a server if it were installed."""


def unpacked(program: str) -> str:
    """Return where such a program is; skip loudly where it is missing, in CI fail."""
    found = shutil.which(program, path=f"{TREE / 'usr/sbin'}:{os.environ.get('PATH', '')}")
    if found is None:
        need(program)
        raise AssertionError
    return found


def libraries() -> str:
    """Return the directory of the libraries that such programs need."""
    return str(TREE / "usr/lib" / f"{os.uname().machine}-linux-gnu")


# ---- packets


def message(
    type_: int,
    mac: str = "52:54:00:aa:00:01",
    *,
    xid: int = 1,
    flags: int = 0,
    ciaddr: str = "0.0.0.0",
    giaddr: str = "0.0.0.0",
    htype: int = 1,
    options: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """Return a client's packet."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    head = struct.pack("!BBBBIHH", 1, htype, len(hardware), 0, xid, 0, flags)
    head += IPv4Address(ciaddr).packed + bytes(8) + IPv4Address(giaddr).packed + hardware.ljust(16, b"\0")
    body = bytes((53, 1, type_)) if type_ else b""
    body += b"".join(bytes((code, len(value))) + value for code, value in options)
    return head + bytes(192) + b"\x63\x82\x53\x63" + body + b"\xff"


def asking(address: str, server: str | None = None) -> tuple[tuple[int, bytes], ...]:
    """Return options 50 and 54."""
    asked = ((50, IPv4Address(address).packed),)
    return asked if server is None else ((54, IPv4Address(server).packed), *asked)


@dataclass(frozen=True)
class Reply:
    way: str
    source: str
    destination: str
    port: int
    hardware: str
    payload: bytes
    frame: bytes
    message: DhcpMessage

    @property
    def address(self) -> str:
        return str(IPv4Address(self.message.yiaddr))


def unwrap(reply: tuple[str, int, int, int, int, bytes, bytes]) -> Reply:
    way, _, source, destination, port, hardware, data = reply
    payload = data[28:] if way == "hardware" else data
    parsed = parse_dhcp(payload)
    assert isinstance(parsed, DhcpMessage), parsed
    return Reply(
        way,
        str(IPv4Address(source)),
        str(IPv4Address(destination)),
        port,
        hardware.hex(":"),
        payload,
        data,
        parsed,
    )


# ---- a responder on a virtual clock


@dataclass
class Office:
    """A responder with links and subnets, a clock that stands still, a disk that answers when told to."""

    subnets: tuple[config.Subnet, ...] = (
        config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",), gateway="10.77.0.254"),
    )
    links: tuple[tuple[str, ...], ...] = (("10.77.0.1/24",),)
    nodes: tuple[Node, ...] = ()
    authoritative: bool = True
    plan: Plan | None = field(default_factory=lambda: Plan(loader="pxelinux.0"))
    lease: int = 3600
    bootp: bool = False
    snooping: bool = False
    disk: bool = True
    decide: Callable[[str], Plan | None] | None = None

    def __post_init__(self) -> None:
        self.now = 1000 * SECOND
        self.asked = 0
        self.responder = Responder(os.urandom(32))
        self.configure()

    def configure(self) -> None:
        links = tuple(
            Link(
                f"eth{at}",
                at + 1,
                bytes.fromhex(OUR_MAC.replace(":", "")),
                1500,
                tuple(map(IPv4Interface, addresses)),
            )
            for at, addresses in enumerate(self.links)
        )
        own = frozenset(entry.ip for link in links for entry in link.addresses)
        settings = config.Dhcp(lease=self.lease, subnets=self.subnets)
        self.network = Network(settings, links, self.nodes, own)
        made = self.network
        self.responder.configure(made.links, made.subnets, made.nodes, made.own, self.authoritative)
        self.responder.bootp, self.responder.snooping = self.bootp, self.snooping

    def send(
        self, packet: bytes, *, link: int = 0, source: int = ANY, destination: int = ALL, port: int = 68
    ) -> list[Reply]:
        """Deliver a packet, decide what it asks, commit where the disk works; return what leaves."""
        self.responder.receive(packet, link, source, destination, self.now, port)
        self.answer()
        if self.disk:
            self.commit()
        return self.take()

    def answer(self) -> None:
        while self.responder.asking:
            for token, link, subnet, server, mac, node, *_ in self.responder.misses(1):
                self.asked += 1
                plan = self.decide(mac.hex(":")) if self.decide else self.plan
                encoded = None
                if plan is not None:
                    known = self.nodes[node] if node >= 0 else None
                    wanted = plan.address or (known.address if known else None)
                    place, _ = self.network.place(self.subnets[subnet].network, f"eth{link}", wanted)
                    encoded = encode_plan(plan, place, IPv4Address(server), known, self.asked)
                self.responder.answer(token, encoded, plan.scope.value if plan else "machine", self.now)

    def commit(self, ok: bool = True) -> list[str]:
        """Commit everything that waits; return the rows."""
        written = []
        while batch := self.responder.batch(1):
            written.append(batch[1])
            self.responder.durable(batch[0], ok, self.now)
        return written

    def take(self) -> list[Reply]:
        return [unwrap(reply) for reply in self.responder.replies()]

    def lease_of(self, mac: str = "52:54:00:aa:00:01", xid: int = 1, **more: object) -> str:
        """Take a client through DISCOVER and REQUEST; return its address."""
        (offer,) = self.send(message(DISCOVER, mac, xid=xid))
        assert offer.message.type == OFFER
        (ack,) = self.send(message(REQUEST, mac, xid=xid, options=asking(offer.address, offer.source)))
        assert ack.message.type == ACK and ack.address == offer.address
        return ack.address

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    @property
    def wall(self) -> float:
        return 1_700_000_000 + self.now / SECOND

    @property
    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.responder.counters().items() if count}


# ---- networks


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


class Namespace:
    """A named network namespace, so that clients can be started in it."""

    def __init__(self) -> None:
        self.name = f"fbt-{os.getpid()}-{next(_numbers)}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.name, *arguments)

    def await_carrier(self, name: str) -> None:
        """Wait until the kernel's link watch has seen that both ends of a veth pair are up."""
        for _ in range(200):
            if "state UP" in self.ip("link", "show", name):
                return
            time.sleep(0.01)
        raise AssertionError(f"{name} has no carrier")

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]

    def delete(self) -> None:
        run("ip", "netns", "delete", self.name)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread make its sockets in there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/thread-self/ns/net").open("rb") as here,
            Path("/run/netns", self.name).open("rb") as there,
        ):
            assert libc.setns(there.fileno(), CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert libc.setns(here.fileno(), CLONE_NEWNET) == 0


@dataclass
class Wire:
    """A server's namespace with `s0`, `s1`... and clients' namespaces whose ends are `c0`."""

    server: Namespace
    clients: list[Namespace]
    interfaces: tuple[str, ...]

    def links(self) -> tuple[Link, ...]:
        with self.server.inside():
            return find_links(self.interfaces)


@contextmanager
def wires(*addresses: tuple[str, ...]) -> Iterator[Wire]:
    """Make a wire for each tuple of addresses of the server on it."""
    made = [Namespace()]
    try:
        server = made[0]
        for at, own in enumerate(addresses):
            client = Namespace()
            made.append(client)
            mac = f"52:54:00:c0:00:{at:02x}"
            server.ip(
                "link", "add", f"s{at}", "type", "veth", "peer", "name", "c0", "address", mac, "netns", client.name
            )
            for address in own:
                server.ip("address", "add", address, "dev", f"s{at}")
            server.ip("link", "set", f"s{at}", "up")
            client.ip("link", "set", "c0", "up")
            server.await_carrier(f"s{at}")
        yield Wire(server, made[1:], tuple(f"s{at}" for at in range(len(addresses))))
    finally:
        for namespace in made:
            namespace.delete()


@contextmanager
def lan(address: str, clients: int) -> Iterator[Wire]:
    """Make one network: the server's `s0`, and the `c0` of each of so many clients' namespaces, on a switch."""
    made = [Namespace(), Namespace()]
    try:
        server, switch = made
        switch.ip("link", "add", "sw", "type", "bridge")
        switch.ip("link", "set", "sw", "up")
        for at in range(clients + 1):
            if at:
                made.append(Namespace())
            end, name, mac = made[-1] if at else server, "c0" if at else "s0", f"52:54:00:c0:01:{at:02x}"
            switch.ip(
                "link", "add", f"p{at}", "type", "veth", "peer", "name", name, "address", mac, "netns", end.name
            )
            switch.ip("link", "set", f"p{at}", "master", "sw", "up")
            if not at:
                server.ip("address", "add", address, "dev", "s0")
            end.ip("link", "set", name, "up")
            end.await_carrier(name)
        yield Wire(server, made[2:], ("s0",))
    finally:
        for namespace in made:
            namespace.delete()


def network(text: str) -> IPv4Network:
    return IPv4Network(text)

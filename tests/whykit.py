"""A real server in a namespace, whose `why` has a clock of its own, and machines made of packets in another."""

from __future__ import annotations

import http.client
import itertools
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dhcpkit import DISCOVER, REQUEST, Wire, asking, message, need, wires
from tftpkit import ACK, DATA, OACK, ack, op_of, rrq

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.services.control_client import ControlClient

HERE = Path(__file__).parent
SERVER = "10.77.0.1"
BIOS = ((60, b"PXEClient:Arch:00000:UNDI:002001"), (93, b"\0\0"), (55, b"\1\3\x42\x43"))
UEFI = ((60, b"PXEClient:Arch:00007:UNDI:003000"), (93, b"\0\7"), (55, b"\1\3\x42\x43"))
ARM = ((60, b"PXEClient:Arch:00011:UNDI:003000"), (93, b"\0\x0b"), (55, b"\1\3\x42\x43"))
RISCV = ((60, b"PXEClient:Arch:00027:UNDI:003000"), (93, b"\0\x1b"), (55, b"\1\3\x42\x43"))
ANACONDA = ((60, b"anaconda-Linux 5.14.0 x86_64"),)
BROADCAST = 0x8000
_numbers = itertools.count(1)


class Bench:
    """The server, and the wire to its machines."""

    def __init__(self, wire: Wire, directory: Path, clock: Path) -> None:
        self.wire, self.directory, self._clock = wire, directory, clock
        self.client = ControlClient(directory / "state")
        self.config = directory / "lab.toml"
        self.process: subprocess.Popen[str] | None = None
        self.later(0)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def later(self, seconds: float) -> None:
        """Let `why` take it that it is so much later."""
        self._clock.write_text(str(seconds))

    def why(self, *words: str, later: float = 0) -> list[dict[str, Any]]:
        self.later(later)
        found: list[dict[str, Any]] = self.client.get("/why?" + "&".join(f"of={word}" for word in words))
        return found

    def cause(self, word: str, later: float = 0) -> str | None:
        (found,) = self.why(word, later=later)
        cause: str | None = found["cause"]
        return cause

    def command(self, *words: str) -> str:
        """Return what the command line prints."""
        done = subprocess.run(
            [sys.executable, "-m", "fastboot", "why", *words, "-c", str(self.config)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def arm(self, node: str) -> str:
        """Let a node install; return its token."""
        assert self.process and self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{node}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # what the server logs comes there too
            if line.startswith("armed "):
                return line.split()[1]
        raise AssertionError(node)

    def machine(self, mac: str | None = None) -> PacketMachine:
        return PacketMachine(self, mac or f"52:54:00:bb:{next(_numbers) >> 8:02x}:{next(_numbers) & 255:02x}")


class PacketMachine:
    """A machine that sends what it is told to."""

    def __init__(self, bench: Bench, mac: str) -> None:
        self.bench, self.mac, self.address = bench, mac, ""
        self._xid = next(_numbers)
        self.held: list[ExitStack] = []

    def _socket(self, kind: socket.SocketKind, bind: tuple[str, int]) -> socket.socket:
        with self.bench.wire.clients[0].inside():
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(5)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.bind(bind)
        return made

    # ---- DHCP

    def send(self, *packets: bytes, answers: int = 1) -> list[DhcpMessage]:
        """Send packets; wait for so many answers to this machine."""
        found: list[DhcpMessage] = []
        with self._socket(socket.SOCK_DGRAM, ("0.0.0.0", 68)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"c0")
            for packet in packets:
                sock.sendto(packet, ("255.255.255.255", 67))
            while len(found) < answers:
                parsed = parse_dhcp(sock.recv(4096))
                if isinstance(parsed, DhcpMessage) and parsed.op == 2 and parsed.xid == self._xid:
                    found.append(parsed)
        return found

    def packet(self, type_: int, options: tuple[tuple[int, bytes], ...] = (), **more: Any) -> bytes:
        return message(type_, self.mac, xid=self._xid, flags=BROADCAST, options=options, **more)

    def silence(self, type_: int = DISCOVER, options: tuple[tuple[int, bytes], ...] = BIOS, **more: Any) -> None:
        """Ask, and be sure that the server has taken it: another machine that asks afterwards is answered."""
        probe = PacketMachine(self.bench, "52:54:00:cc:00:01")
        self.send(self.packet(type_, options, **more), answers=0)
        probe.send(probe.packet(DISCOVER))

    def offered(self, options: tuple[tuple[int, bytes], ...] = BIOS) -> str:
        (offer,) = self.send(self.packet(DISCOVER, options))
        return str(IPv4Address(offer.yiaddr))

    def lease(self, options: tuple[tuple[int, bytes], ...] = BIOS) -> str:
        """Take an address, as firmware or, by other options, what it starts."""
        self._xid = next(_numbers)
        address = self.offered(options)
        self.send(self.packet(REQUEST, (*options, *asking(address, SERVER))))
        if address != self.address:
            self.bench.wire.clients[0].ip("address", "replace", f"{address}/24", "dev", "c0")
        self.address = address
        return address

    # ---- files

    def tftp(
        self,
        path: str,
        *,
        end: bytes | None = None,
        blocks: int | None = None,
        hold: bool = False,
        **options: object,
    ) -> int:
        """Fetch a file; after so many blocks send `end`, or nothing more; `hold`: the port stays open.

        Returns the octets, -1 for an ERROR.
        """
        octets, expected = 0, 1
        with ExitStack() as closing:
            sock = self._socket(socket.SOCK_DGRAM, (self.address, 0))
            closing.callback(sock.close)
            sock.sendto(rrq(path, **options), (SERVER, 69))
            while True:
                packet, peer = sock.recvfrom(70_000)
                if blocks is not None and expected > blocks:
                    if end:
                        sock.sendto(end, peer)
                    if hold:
                        self.held.append(closing.pop_all())
                    return octets
                if op_of(packet) == OACK:
                    sock.sendto(ack(0), peer)
                elif op_of(packet) == DATA and struct.unpack_from("!H", packet, 2)[0] == expected:
                    octets += len(packet) - 4
                    sock.sendto(ack(expected), peer)
                    expected += 1
                    if len(packet) < 4 + int(str(options.get("blksize", 512))):
                        return octets
                elif op_of(packet) not in (DATA, ACK):
                    return -1

    def http(self, path: str) -> int:
        """Fetch a file; returns the status."""
        with self._socket(socket.SOCK_STREAM, (self.address, 0)) as sock:
            sock.connect((SERVER, 80))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {SERVER}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            answer.read()
            return answer.status


@contextmanager
def bench(directory: Path, more: str = "", *, proxy: bool = False) -> Iterator[Bench]:
    """Start a server with `more` at the end of its configuration."""
    need("ip")
    root = directory / "root"
    for name, size in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    (directory / "ks").mkdir()
    (directory / "ks" / "base.ks.j2").write_text("text\n%post\ncurl {{ done }}\n%end\n")
    (directory / "lab.toml").write_text((PROXY if proxy else CONFIG) + COMMON + more)
    clock = directory / "clock"
    with wires(("10.77.0.1/24",)) as wire:
        wire.clients[0].ip("address", "add", "10.77.0.2/24", "dev", "c0")
        here = Bench(wire, directory, clock)
        command = wire.server.command(
            sys.executable, str(HERE / "why_server.py"), str(directory / "lab.toml"), str(clock)
        )
        pipe = subprocess.PIPE
        here.process = process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            assert process.stdout and process.stderr
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            yield here
        finally:
            process.terminate()
            process.communicate(timeout=30)


FILES = {
    "pxelinux.0": 2000, "shimx64.efi": 3000, "grubx64.efi": 4000, "lab/linux": 9000,
    "lab/initrd.gz": 9000, "big/initrd.img": 600_000, "lab/install.img": 200_000, "lab/a.rpm": 100,
    "lab/huge/vmlinuz": 900_000,
}  # fmt: skip
CONFIG = """\
interface = "s0"
state = "state"
roots = ["root"]
drain = 0
[dhcp]
probe = 0
[[dhcp.subnets]]
network = "10.77.0.0/24"
pools = ["10.77.0.100-10.77.0.250"]
[[dhcp.subnets]]
network = "10.88.0.0/24"
gateway = "10.88.0.1"
pools = ["10.88.0.100-10.88.0.100"]
relayed = true
"""
PROXY = """\
interface = "s0"
state = "state"
roots = ["root"]
drain = 0
[dhcp]
mode = "proxy"
probe = 1
"""
COMMON = """\
[tftp]
max_file = 800000
[ftp]
[http]
[boot.loaders]
bios = "pxelinux.0"
uefi-x64 = "shimx64.efi"
uefi-arm64 = "none/shimaa64.efi"
[[profiles]]
name = "live"
kernel = "/lab/linux"
initrd = "/lab/initrd.gz"
installs = false
[[profiles]]
name = "lost"
kernel = "/lab/none"
initrd = "/lab/no-initrd.gz"
installs = false
[[profiles]]
name = "install"
kernel = "/lab/linux"
initrd = "/lab/initrd.gz"
[[profiles]]
name = "auto"
kernel = "/lab/linux"
initrd = "/lab/initrd.gz"
arguments = "inst.ks={{ answers }}/ks.cfg"
answers = "ks/base.ks.j2"
format = "kickstart"
[[profiles]]
name = "broken"
kernel = "/lab/linux"
arguments = "{{ node.variables.nothing }}"
installs = false
[[nodes]]
name = "live01"
macs = ["52:54:00:aa:00:01"]
profile = "live"
[[nodes]]
name = "lost01"
macs = ["52:54:00:aa:00:02"]
profile = "lost"
[[nodes]]
name = "install01"
macs = ["52:54:00:aa:00:03"]
profile = "install"
[[nodes]]
name = "broken01"
macs = ["52:54:00:aa:00:04"]
profile = "broken"
[[nodes]]
name = "bare01"
macs = ["52:54:00:aa:00:05"]
[[nodes]]
name = "asleep01"
macs = ["52:54:00:aa:00:06"]
[[nodes]]
name = "live02"
macs = ["52:54:00:aa:00:07"]
profile = "live"
[[nodes]]
name = "live03"
macs = ["52:54:00:aa:00:08"]
profile = "live"
[[nodes]]
name = "live04"
macs = ["52:54:00:aa:00:09"]
profile = "live"
[[nodes]]
name = "install02"
macs = ["52:54:00:aa:00:0a"]
profile = "install"
[[nodes]]
name = "auto01"
macs = ["52:54:00:aa:01:01"]
profile = "auto"
[[nodes]]
name = "auto02"
macs = ["52:54:00:aa:01:02"]
profile = "auto"
[[nodes]]
name = "auto03"
macs = ["52:54:00:aa:01:03"]
profile = "auto"
[[nodes]]
name = "auto04"
macs = ["52:54:00:aa:01:04"]
profile = "auto"
"""

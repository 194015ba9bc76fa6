"""A server that installs machines, on a wire of its own, and machines that boot from it packet by packet."""

from __future__ import annotations

import asyncio
import socket
import struct
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from dhcpkit import ACK, DISCOVER, REQUEST, Wire, asking, message, wires
from dhcpsite import Station

from fastboot.config import Config
from fastboot.model import Event
from fastboot.server import Server
from fastboot.sockets import open_sockets

SERVER = "10.77.0.1"
PXE = ((60, b"PXEClient:Arch:00000:UNDI:002001"), (93, b"\0\0"), (94, b"\1\2\1"), (97, bytes(17)))
IPXE = (*PXE, (77, b"iPXE"), (175, b"\x15\1\1\x16\1\1\x13\1\1"))
LINUX = ((60, b"dhcpcd"),)
ONE, TWO, THREE = (f"52:54:00:00:00:0{at}" for at in (1, 2, 3))

LAB = """
interface = "s0"
state = "state"
drain = 0
roots = ["root"]
[dhcp]
probe = 0
arp_probes = false
[[dhcp.subnets]]
network = "10.77.0.0/24"
pools = ["10.77.0.100-10.77.0.250"]
[tftp]
[http]
[ftp]
[boot.loaders]
bios = "pxelinux.0"
[[profiles]]
name = "rocky"
kernel = "/vmlinuz"
arguments = "inst.one"
[[profiles]]
name = "other"
kernel = "/vmlinuz"
arguments = "inst.two"
[[profiles]]
name = "rescue"
kernel = "/vmlinuz"
installs = false
[[nodes]]
name = "node01"
macs = ["52:54:00:00:00:01"]
profile = "rocky"
group = "rack7"
[[nodes]]
name = "node02"
macs = ["52:54:00:00:00:02"]
profile = "rocky"
group = "rack7"
[[nodes]]
name = "node03"
macs = ["52:54:00:00:00:03"]
"""


def configuration(directory: Path, text: str = LAB) -> Config:
    """Return a configuration whose paths are in a directory."""
    root = directory / "root"
    root.mkdir(exist_ok=True)
    for name in ("vmlinuz", "pxelinux.0"):
        (root / name).write_bytes(name.encode())
    text = text.replace('"state"', f'"{directory / "state"}"').replace('"root"', f'"{root}"')
    return Config.model_validate(tomllib.loads(text))


@dataclass
class Machine:
    """A machine on the wire: what it asks leaves from the address that it was given."""

    wire: Wire
    station: Station
    mac: str
    address: str = ""
    _xid: int = 0

    async def dhcp(self, options: tuple[tuple[int, bytes], ...] = PXE) -> str:
        """Get an address as its firmware does, or a loader with its own options; return the boot file."""
        self._xid += 1
        offer = await self.station.ask(message(DISCOVER, self.mac, xid=self._xid, options=options))
        ours = str(IPv4Address(offer.message.yiaddr))
        request = message(REQUEST, self.mac, xid=self._xid, options=(*asking(ours, SERVER), *options))
        ack = await self.station.ask(request)
        assert ack.message.type == ACK
        if self.address != ours:
            self.take(ours)
        return ack.payload[108:236].rstrip(b"\0").decode()

    def take(self, address: str) -> None:
        """Use an address that nobody gave."""
        self.address = address
        self.wire.clients[0].ip("address", "add", f"{address}/24", "dev", "c0")

    def name(self, language: str) -> str:
        """Return what a loader of this machine asks for."""
        mac = self.mac.replace(":", "-")
        return {
            "pxelinux": f"pxelinux.cfg/01-{mac}",
            "grub": f"grub/grub.cfg-01-{mac}",
            "ipxe": f"boot/01-{mac}.ipxe",
        }[language]

    async def tftp(self, name: str) -> str:
        """Fetch a small file by TFTP."""
        with self._socket(socket.SOCK_DGRAM) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(sock, b"\0\1" + name.encode() + b"\0octet\0", (SERVER, 69))
            data, block = b"", 1
            while True:
                async with asyncio.timeout(20):
                    packet, peer = await loop.sock_recvfrom(sock, 2048)
                opcode, number = struct.unpack_from("!HH", packet)
                if opcode == 5:
                    raise FileNotFoundError(packet[4:-1].decode())
                await loop.sock_sendto(sock, struct.pack("!HH", 4, number), peer)
                if number == block:
                    data, block = data + packet[4:], block + 1
                    if len(packet) < 516:
                        return data.decode()

    async def http(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Return the length that is told, and the body."""
        with self._socket(socket.SOCK_STREAM) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (SERVER, 80))
            request = f"{method} /{path} HTTP/1.1\r\nHost: boot\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(sock, request.encode())
            answer = b""
            async with asyncio.timeout(20):
                while octets := await loop.sock_recv(sock, 65536):
                    answer += octets
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert head.startswith(b"HTTP/1.1 200 "), head
        return int(fields[b"Content-Length"]), body.decode()

    async def boots(self, language: str = "pxelinux") -> str:
        """Let it be switched on and ask for its configuration; return what that boots."""
        await self.dhcp()
        return await self.asks(language)

    async def asks(self, language: str = "pxelinux") -> str:
        """Return what a configuration boots: the arguments of the kernel, or "local"."""
        return booted(await self.tftp(self.name(language)))

    @contextmanager
    def _socket(self, kind: socket.SocketKind) -> Iterator[socket.socket]:
        with self.wire.clients[0].inside():
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        with sock:
            sock.bind((self.address, 0))
            yield sock


def booted(text: str) -> str:
    """Return what a configuration boots: an argument of the kernel, or "local"."""
    return next((word for word in ("inst.one", "inst.two", "vmlinuz") if word in text), "local")


@dataclass
class House:
    """A server, and what it told."""

    server: Server
    wire: Wire
    station: Station
    events: list[Event] = field(default_factory=list)

    def machine(self, mac: str = ONE) -> Machine:
        return Machine(self.wire, self.station, mac)

    def told(self, prefix: str = "node.") -> list[str]:
        return [event.kind.removeprefix(prefix) for event in self.events if event.kind.startswith(prefix)]

    async def until(self, kind: str) -> Event:
        async with asyncio.timeout(20):
            while not (found := [event for event in self.events if event.kind == kind]):
                await asyncio.sleep(0.01)
        return found[-1]


@asynccontextmanager
async def serving(wire: Wire, config: Config) -> AsyncIterator[House]:
    """Run the server in the namespace of a wire."""
    with wire.server.inside():
        sockets = open_sockets(config)
    station = Station(wire.clients[0])
    server = Server(config, sockets=sockets)
    house = House(server, wire, station)

    async def follow() -> None:
        async for event in subscription:
            house.events.append(event)

    subscription = server.events()
    following = asyncio.create_task(follow())
    try:
        async with server:
            yield house
            await asyncio.sleep(0)
    finally:
        await following
        station.close()


@contextmanager
def wire() -> Iterator[Wire]:
    with wires((f"{SERVER}/24",)) as made:
        yield made

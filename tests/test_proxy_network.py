"""The proxy on a real network, beside dnsmasq on another host that gives the addresses."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import ACK, DISCOVER, OFFER, REQUEST, asking, message, need
from lankit import Host, Lan, Listener, dnsmasq, lan

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.config import Config, Dhcp
from fastboot.model import Event, FastbootError, Plan
from fastboot.server import Server
from fastboot.services import proxy
from fastboot.services.neighbours import Neighbours, open_neighbours
from fastboot.sockets import open_sockets

US = "10.77.0.2"
BIOS = ((60, b"PXEClient:Arch:00000:UNDI:002001"), (93, b"\0\0"), (94, b"\1\2\1"), (97, bytes(17)))


@pytest.fixture
def place() -> Iterator[Lan]:
    need("ip", "dnsmasq")
    with lan() as made:
        yield made


@dataclass
class Site:
    service: proxy.ProxyService
    events: list[Event] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def until(self, kind: str) -> Event:
        async with asyncio.timeout(15):
            while kind not in self.kinds():
                await asyncio.sleep(0.02)
        return next(event for event in self.events if event.kind == kind)


@asynccontextmanager
async def site(host: Host, *, probe: float = 0) -> AsyncIterator[Site]:
    events: list[Event] = []
    links = host.links()
    with host.space.inside():
        sockets = proxy.open_sockets(links)
        service = proxy.ProxyService(
            Dhcp(mode="proxy", probe=probe), links, (), lambda _: Plan("a.0"), events.append, sockets
        )
    try:
        await service.start()
        yield Site(service, events)
    finally:
        await service.stop()
        sockets.close()


async def test_a_pxe_client_has_its_address_from_there_and_its_boot_file_from_here(
    place: Lan, tmp_path: Path
) -> None:
    other, ours, bare = place.host("10.77.0.1/24"), place.host(f"{US}/24"), place.host()
    with closing(Listener(bare)) as card, dnsmasq(other, tmp_path):
        async with site(ours) as here:
            card.broadcast(message(DISCOVER, bare.mac, flags=0x8000, options=BIOS))
            heard = await asyncio.to_thread(card.replies)
            assert set(heard) == {"10.77.0.1", US}
            theirs, boot = heard["10.77.0.1"], heard[US]
            assert theirs.type == boot.type == OFFER
            assert boot.yiaddr == 0 and boot.options[67] == b"a.0" and boot.options[60] == b"PXEClient"
            address = str(IPv4Address(theirs.yiaddr))
            request = message(REQUEST, bare.mac, flags=0x8000, options=(*asking(address, "10.77.0.1"), *BIOS))
            card.broadcast(request)
            heard = await asyncio.to_thread(card.replies)
            assert {server: found.type for server, found in heard.items()} == {"10.77.0.1": ACK}
            told = await here.until("dhcp.request")
            assert told.details | {"interface": ""} == {
                "interface": "", "address": address, "server": "10.77.0.1",
            }  # fmt: skip
            assert here.service.mac_of(IPv4Address(address)) == bare.mac
            bare.space.ip("address", "add", f"{address}/24", "dev", "e0")
            reply, sender = await asyncio.to_thread(ask_boot_server, bare, address)
            assert sender == (US, 4011)
            assert (reply.type, reply.options[67], reply.yiaddr) == (ACK, b"a.0", 0)
            await here.until("dhcp.ack")
            assert here.kinds() == ["dhcp.offer", "dhcp.server_seen", "dhcp.request", "dhcp.ack"]


def ask_boot_server(host: Host, address: str) -> tuple[DhcpMessage, tuple[str, int]]:
    """Ask port 4011 from a free port of the host's."""
    with host.space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind((address, 0))
        sock.sendto(message(REQUEST, host.mac, ciaddr=address, options=BIOS), (US, 4011))
        data, sender = sock.recvfrom(2048)
    found = parse_dhcp(data)
    assert isinstance(found, DhcpMessage)
    return found, sender


@pytest.mark.parametrize("client", ["udhcpc", "dhclient"])
async def test_ordinary_clients_hear_nothing_from_us(place: Lan, tmp_path: Path, client: str) -> None:
    need("udhcpc", "dhclient", "tcpdump")
    other, ours, bare = place.host("10.77.0.1/24"), place.host(f"{US}/24"), place.host()
    script, said = tmp_path / "script", tmp_path / "said"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$reason $1 ${{ip:-$new_ip_address}} ${{serverid:-$new_dhcp_server_identifier}}" >> {said}\n'
    )
    script.chmod(0o755)
    commands = {
        "udhcpc": ["udhcpc", "-f", "-n", "-q", "-i", "e0", "-s", str(script)],
        "dhclient": [
            "dhclient", "-4", "-1", "-d", "-sf", str(script), "-lf", str(tmp_path / "leases"),
            "-pf", str(tmp_path / "pid"), "-cf", "/dev/null", "e0",
        ],
    }  # fmt: skip
    with closing(Listener(bare)) as card, dnsmasq(other, tmp_path):
        async with site(ours) as here:
            process = await asyncio.create_subprocess_exec(
                *bare.space.command(*commands[client]),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(20):
                while not said.exists() or "10.77.0.1\n" not in said.read_text():
                    await asyncio.sleep(0.05)
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
            assert set(card.replies(0.2)) == {"10.77.0.1"}
            counters = here.service.counters()
            assert (counters["offer"], counters["ack"], counters["nak"], counters["miss"]) == (0, 0, 0, 0)
            assert counters["no_boot_client"] >= 1 and counters["other_server"] >= 1
            assert here.kinds() == ["dhcp.server_seen"]


async def test_the_server_that_gives_addresses_is_looked_for(place: Lan, tmp_path: Path) -> None:
    other, ours = place.host("10.77.0.1/24"), place.host(f"{US}/24")
    async with site(ours, probe=1) as here:
        alone = await here.until("dhcp.no_server")
        assert 'mode = "server"' in str(alone.details["text"]) and alone.details["interface"] == "e0"
    with dnsmasq(other, tmp_path):
        async with site(ours, probe=4) as here:
            seen = await here.until("dhcp.server_seen")
            assert (seen.details["server"], seen.mac) == ("10.77.0.1", other.mac)
            await asyncio.sleep(0)
            assert "dhcp.no_server" not in here.kinds()


def test_a_server_on_this_host_is_told_what_it_can_do(place: Lan, tmp_path: Path) -> None:
    ours = place.host(f"{US}/24")
    with ours.space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 67))
        with pytest.raises(FastbootError, match=r"UDP port 67 on e0 is taken by .*boot-options"):
            proxy.open_sockets(ours.links())


def test_the_kernel_knows_the_neighbours(place: Lan) -> None:
    ours, bare = place.host(f"{US}/24"), place.host("10.77.0.50/24")
    with ours.space.inside():
        asked = open_neighbours()
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((US, 4000))
    neighbours = Neighbours(ours.links(), asked)
    assert neighbours.mac_of(IPv4Address("10.77.0.50")) is None
    with bare.space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (US, 4000))
    listener.settimeout(5)
    listener.recv(10)
    assert neighbours.mac_of(IPv4Address("10.77.0.50")) == bytes.fromhex(bare.mac.replace(":", ""))
    assert neighbours.mac_of(IPv4Address("10.88.0.50")) is None, "of no network of ours"
    ours.space.ip("neigh", "replace", "10.77.0.60", "dev", "e0", "nud", "failed")
    assert neighbours.mac_of(IPv4Address("10.77.0.60")) is None
    listener.close()
    asked.close()
    assert neighbours.mac_of(IPv4Address("10.77.0.50")) is None, "a kernel that can not say is no fault"


# ---- what a node gets


@dataclass
class Lab:
    server: Server
    node: Host
    stranger: Host

    async def get(self, host: Host, name: str) -> str:
        return await asyncio.to_thread(tftp_get, host, name)


def tftp_get(host: Host, name: str) -> str:
    with host.space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"\0\1" + name.encode() + b"\0octet\0", (US, 69))
        data = b""
        while True:
            packet, peer = sock.recvfrom(1024)
            if packet[:2] == b"\0\5":
                return f"ERROR {packet[3]}"
            data += packet[4:]
            sock.sendto(b"\0\4" + packet[2:4], peer)
            if len(packet) < 516:
                return data.decode()


@pytest.fixture
async def lab(place: Lan, tmp_path: Path) -> AsyncIterator[Lab]:
    ours, node, stranger = place.host(f"{US}/24"), place.host("10.77.0.50/24"), place.host("10.77.0.51/24")
    root = tmp_path / "root"
    root.mkdir()
    (root / "vmlinuz").write_bytes(b"kernel")
    settings = Config.model_validate(
        {
            "interface": "e0",
            "state": tmp_path / "state",
            "roots": [root],
            "drain": 0,
            "dhcp": {"mode": "proxy", "probe": 0},
            "tftp": {},
            "nodes": [{"name": "n1", "macs": [node.mac], "address": "10.99.0.1", "profile": "live"}],
            "profiles": [{"name": "live", "kernel": "/vmlinuz", "installs": False}],
        }
    )
    (tmp_path / "state").mkdir()
    with ours.space.inside():
        sockets = open_sockets(settings)
        server = Server(settings, sockets=sockets)
    async with server:
        yield Lab(server, node, stranger)


@pytest.mark.parametrize("name", ["boot/pxelinux.cfg/default", "grub/grub.cfg", "boot/boot.ipxe"])
async def test_rendered_files_are_the_nodes_own(lab: Lab, name: str) -> None:
    """Files whose name does not say who asks: by the kernel's neighbour table, with no DHCP seen at all."""
    assert "fastboot for n1: profile live" in await lab.get(lab.node, name)
    assert "fastboot for a machine that no node names" in await lab.get(lab.stranger, name)


async def test_rendered_files_follow_the_address_that_was_taken(lab: Lab) -> None:
    """What was seen on the wire comes before the neighbour table: the node was seen to take the stranger's address
    (behind a router every neighbour is the router)."""
    card = Listener(lab.node)
    card.broadcast(message(REQUEST, lab.node.mac, options=(*asking("10.77.0.51", "10.77.0.1"), *BIOS)))
    async for event in lab.server.events(replay=True):
        if event.kind == "dhcp.request":
            break
    card.close()
    assert (event.node, event.details["address"]) == ("n1", "10.77.0.51")
    assert "fastboot for n1" in await lab.get(lab.stranger, "grub/grub.cfg")


async def test_the_server_says_what_it_is(lab: Lab) -> None:
    assert await lab.server.leases() == [] and not lab.server.release(IPv4Address("10.77.0.50"))
    status = lab.server.status()
    assert "dhcp" in status["services"]  # type: ignore[operator]
    lab.server.forget()
    settings = lab.server._config
    changed = settings.model_copy(update={"nodes": ()})
    await lab.server.reload(changed)
    assert "no node names" in await lab.get(lab.node, "grub/grub.cfg")

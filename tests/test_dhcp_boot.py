"""What firmware is answered, octet by octet on a wire: the recipe for replies (protocol-facts.md B10) and more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import ACK, DISCOVER, OFFER, REQUEST, Office, message, need, number, wires
from dhcpsite import Frame, Site, Station, lease, site

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.boot.firmware import RASPBERRY_MENU, SCRIPT
from fastboot.boot.loaders import Loaders
from fastboot.boot.policy import Policy
from fastboot.config import Config, load
from fastboot.model import Plan
from fastboot.server import Server
from fastboot.services.dhcp_plan import signs_of

VECTORS = Path(__file__).parent / "vectors" / "dhcp"
LAB = """
interface = "s0"
[dhcp]
probe = 0
[[dhcp.subnets]]
network = "10.77.0.0/24"
pools = ["10.77.0.100-10.77.0.250"]
gateway = "10.77.0.254"
dns = ["10.77.0.1", "10.77.0.2"]
domain = "lab.test"
[boot.loaders]
uefi-arm64 = "grubaa64.efi"
http-x64 = "http://{server}/grubx64.efi"
http-arm64 = "http://{server}/grubaa64.efi"
"""
SYSTEM = {"bios": "boot/pxelinux.0", "uefi-x64": "boot/grubx64.efi", "ipxe": SCRIPT}
LOADERS = {
    "edk2-pxe": "boot/grubx64.efi",
    "edk2-guid": "boot/grubx64.efi",
    "edk2-http": "http://10.77.0.1/grubx64.efi",
    "edk2-arm64-http": "http://10.77.0.1/grubaa64.efi",
    "intel-rom": "boot/pxelinux.0",
    "odd-rom": "boot/grubx64.efi",
    "relayed": "boot/grubx64.efi",
    "relayed-leaf": "boot/grubx64.efi",
    "ipxe-rom": SCRIPT,
    "ipxe-undionly": SCRIPT,
    "uboot-pxe": "boot/grubx64.efi",
}
"""The boot file of each client that gets one."""


def octets(path: Path) -> bytes:
    return bytes.fromhex("".join(line for line in path.read_text().splitlines() if not line.startswith("#")))


CLIENTS = {path.stem.removesuffix("-discover"): octets(path) for path in sorted(VECTORS.glob("*-discover.hex"))}


def parsed(data: bytes) -> DhcpMessage:
    found = parse_dhcp(data)
    assert isinstance(found, DhcpMessage), found
    return found


def wire_options(data: bytes) -> list[tuple[int, bytes]]:
    """Return the options of a packet as they stand in it, PADs included."""
    found, at = [], 240
    while data[at] != 255:
        if data[at] == 0:
            found.append((0, b""))
            at += 1
        else:
            found.append((data[at], data[at + 2 : at + 2 + data[at + 1]]))
            at += 2 + data[at + 1]
    assert not any(data[at + 1 :]), "zero fill after END"
    return found


def policy_of(text: str = LAB) -> tuple[Config, Policy]:
    config = Config.model_validate(tomllib.loads(text))
    return config, Policy(config, config.all_nodes(), Loaders({**SYSTEM, **config.boot.loaders}))


@asynccontextmanager
async def lab(state: Path, text: str = LAB, *addresses: tuple[str, ...]) -> AsyncIterator[Site]:
    """Run the DHCP service of a configuration."""
    config, policy = policy_of(text)
    async with site(
        state, *addresses, settings=config.dhcp, nodes=config.all_nodes(), decide=policy.decide
    ) as here:
        yield here


def as_request(discover: bytes, offer: Frame) -> bytes:
    """Return the REQUEST that a client makes of its DISCOVER and an offer."""
    asked = ((53, bytes([REQUEST])), (50, offer.payload[16:20]), (54, offer.message.options[54]))
    kept = [(code, value) for code, value in wire_options(discover) if code not in (0, 50, 53)]
    return (
        discover[:240] + b"".join(bytes((code, len(value))) + value for code, value in (*asked, *kept)) + b"\xff"
    )


def check_recipe(request: bytes, reply: bytes, loader: str | None) -> None:
    """Check every point of B10."""
    asked, found, options = parsed(request), parsed(reply), wire_options(reply)
    codes = [code for code, _ in options]
    # 1
    assert reply[0] == 2 and reply[3] == 0 and reply[8:10] == b"\0\0"
    assert reply[1:3] == request[1:3] and reply[4:8] == request[4:8] and reply[10:12] == request[10:12]
    assert reply[24:44] == request[24:44], "giaddr and chaddr"
    assert reply[20:24] == bytes((10, 77, 0, 1)), "siaddr"
    assert reply[44:108] == bytes(64)
    assert reply[108:236] == (loader or "").encode().ljust(128, b"\0")
    # 2
    assert codes[:3] == [53, 54, 51]
    seconds, t1, t2 = (int.from_bytes(found.options[code]) for code in (51, 58, 59))
    assert t1 < t2 < seconds
    assert found.options[1] == bytes((255, 255, 255, 0))
    # 3
    classes = {b"HTTPClient", b"PXEClient"} & {found.options.get(60, b"")}
    if asked.options.get(60, b"").startswith(b"HTTPClient"):
        assert classes == {b"HTTPClient"} and codes[codes.index(60) + 1] == 0
    assert (43 in codes) == (found.options.get(60) == b"PXEClient")
    assert found.options.get(43, b"\xff").endswith(b"\xff")
    # 4
    if loader:
        assert found.options[66] == b"10.77.0.1"
        assert found.options[67] == loader.encode()
        assert codes[codes.index(67) + 1] == 0 and codes.count(0) == 1 + (60 in codes)
    else:
        assert 67 not in codes and 0 not in codes
    # 5
    guid = asked.options.get(97, b"")
    assert found.options.get(97) == (guid if len(guid) == 17 and guid[0] == 0 else None)
    assert found.options.get(61) == asked.options.get(61)
    assert found.options.get(175) == (b"\xb0\x01\x01" if loader == SCRIPT else None)
    # 6
    assert (codes[-1] == 82) == bool(82 in asked.options and asked.giaddr)
    limit = struct.unpack("!H", asked.options[57])[0] - 28 if 57 in asked.options else 548
    assert 300 <= len(reply) <= min(limit, 1472)
    # 7
    assert not {13, 50, 52, 55, 57} & set(codes)
    assert all(value for code, value in options if code), "an option without octets"
    inner = dict(suboptions(found.options.get(43, b"")))
    assert not {1, 2, 3, 4, 5} & inner.keys()
    assert len(set(codes) - {0}) == len([code for code in codes if code]), "an option twice"
    # 8
    assert {1, 3, 51, 54, 58, 59} <= set(codes)
    if 55 not in asked.options:
        assert {6, 15, 28} <= set(codes)
    else:
        assert ({6, 15, 28, 12} & set(codes)) <= set(asked.options[55])


def suboptions(value: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(value) and value[at] != 255:
        found.append((value[at], value[at + 2 : at + 2 + value[at + 1]]))
        at += 2 + value[at + 1]
    return found


async def test_the_recipe_for_every_client(tmp_path: Path) -> None:
    """Each DISCOVER of the vectors, and the REQUEST that would follow, on a wire."""
    async with lab(tmp_path) as here:
        (station,) = here.stations
        for relay in ("10.77.0.9/24", "10.99.0.2/24"):  # of some vectors
            here.wire.clients[0].ip("address", "add", relay, "dev", "c0")
        here.wire.server.ip("route", "add", "10.99.0.0/24", "dev", "s0")
        for name, discover in CLIENTS.items():
            try:
                offer = await station.ask(discover)
                ack = await station.ask(as_request(discover, offer))
                assert (offer.message.type, ack.message.type) == (OFFER, ACK)
                check_recipe(discover, offer.payload, LOADERS.get(name))
                check_recipe(as_request(discover, offer), ack.payload, LOADERS.get(name))
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(f"{name}: {str(error) or type(error).__name__}") from error


# ---- machines that a class does not tell apart

BIOS = ((93, b"\0\0"), (60, b"PXEClient:Arch:00000:UNDI:002001"))


def test_one_decision_is_enough_for_a_storm_and_a_raspberry_pi_is_no_bios() -> None:
    """Same classes, told apart by MAC address and machine id: a plan that needs these is still for a class."""
    config, _ = policy_of()
    assert config.dhcp
    office = Office(subnets=config.dhcp.served())
    office.responder.distinguish(*signs_of(config.dhcp))
    office.configure()
    rom = Plan("boot/pxelinux.0")
    office.decide = lambda mac: rom if mac.startswith("52:54") else Plan(options=((43, RASPBERRY_MENU),))
    for at in range(100):
        (offer,) = office.send(message(DISCOVER, f"52:54:00:00:00:{at:02x}", options=BIOS))
        assert 67 in offer.message.options and 43 not in offer.message.options
    assert office.asked == 1
    for at in range(30):
        (offer,) = office.send(message(DISCOVER, f"b8:27:eb:00:00:{at:02x}", options=BIOS))
        assert 43 in offer.message.options and 67 not in offer.message.options
    assert office.asked == 2
    office.decide = lambda mac: Plan(options=((43, RASPBERRY_MENU),))
    for at in range(10):
        machine_id = (97, b"\0RPi4" + bytes([at] * 12))
        office.send(message(DISCOVER, f"52:54:00:00:01:{at:02x}", options=(*BIOS, machine_id)))
    assert office.asked == 3
    (offer,) = office.send(message(DISCOVER, "52:54:00:00:02:00", options=(*BIOS, (97, bytes(17)))))
    assert 67 in offer.message.options, "a machine id that is none of those"
    assert office.asked == 3


def test_the_longest_beginning_of_a_mac_sets_apart() -> None:
    office = Office()
    office.responder.distinguish([b"\x52\x54", b"\x52\x54\x00\x01", b"\x02"], [])
    office.configure()
    for mac in ("52:54:00:01:00:00", "52:54:00:02:00:00", "02:00:00:00:00:00", "04:00:00:00:00:00"):
        asked = office.asked
        for last in range(3):
            office.send(message(DISCOVER, mac[:-1] + str(last)))
        assert office.asked == asked + 1, mac
    with pytest.raises(ValueError, match="more than 256"):
        office.responder.distinguish([bytes([1, at >> 8, at & 255]) for at in range(257)], [])
    for wrong in (b"", bytes(18)):
        with pytest.raises(ValueError, match="has not 1 to 17 octets"):
            office.responder.distinguish([], [wrong])


async def test_what_depends_on_a_node_is_asked_for_each_and_what_depends_on_a_class_once(tmp_path: Path) -> None:
    text = (
        LAB
        + """
[[dhcp.classes]]
name = "old"
macs = "52:54:01"
options = { 224 = { text = "old", always = true } }
[[groups]]
name = "rack7"
options = { 224 = { text = "rack", always = true } }
[[nodes]]
name = "n1"
macs = ["52:54:00:00:00:01"]
group = "rack7"
[[nodes]]
name = "n2"
macs = ["52:54:00:00:00:02"]
group = "rack7"
options = { 224 = { text = "n2" } }
"""
    )
    config, policy = policy_of(text)
    asked = []

    def decide(request):  # type: ignore[no-untyped-def]
        asked.append(request.mac)
        return policy.decide(request)

    async with site(tmp_path, settings=config.dhcp, nodes=config.all_nodes(), decide=decide) as here:
        (station,) = here.stations
        for mac, value in [
            ("52:54:00:00:00:01", b"rack"),
            ("52:54:00:00:00:02", b"n2"),
            *((f"52:54:01:00:00:{at:02x}", b"old") for at in range(20)),
            *((f"52:54:02:00:00:{at:02x}", None) for at in range(20)),
        ]:
            offer = await station.ask(message(DISCOVER, mac, options=BIOS))
            assert offer.message.options.get(224) == value, mac
        assert asked == ["52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:01:00:00:00", "52:54:02:00:00:00"]


# ---- boot files


async def test_a_url_that_no_header_holds_is_in_67(tmp_path: Path) -> None:
    url = "http://{server}/" + "d/" * 110 + "grubx64.efi"
    async with lab(tmp_path, LAB.replace("http://{server}/grubx64.efi", url)) as here:
        offer = await here.stations[0].ask(CLIENTS["edk2-http"])
        sent = url.replace("{server}", "10.77.0.1").encode()
        assert offer.message.options[67] == sent and len(sent) > 127
        assert offer.payload[108:236] == bytes(128)
        assert offer.message.options[60] == b"HTTPClient"


async def test_the_address_in_a_url_is_that_of_the_interface(tmp_path: Path) -> None:
    text = LAB + '[[dhcp.subnets]]\nnetwork = "10.78.0.0/24"\npools = ["10.78.0.100-10.78.0.110"]\n'
    async with lab(tmp_path, text, ("10.77.0.1/24",), ("10.78.0.1/24",)) as here:
        for station, address in zip(here.stations, ("10.77.0.1", "10.78.0.1"), strict=True):
            offer = await station.ask(CLIENTS["edk2-http"])
            assert offer.message.options[67] == f"http://{address}/grubx64.efi".encode()
            assert offer.message.siaddr == number(address)


async def test_another_machine_may_have_the_files(tmp_path: Path) -> None:
    text = (
        LAB.replace("domain =", 'next_server = "10.77.0.8"\ndomain =')
        + """
[[dhcp.classes]]
name = "uefi-arm64"
next_server = "10.77.0.9"
lease = "2m"
"""
    )
    async with lab(tmp_path, text) as here:
        (station,) = here.stations
        offer = await station.ask(CLIENTS["edk2-http"])
        assert offer.message.options[67] == b"http://10.77.0.8/grubx64.efi"
        assert (offer.message.siaddr, offer.message.options[66]) == (number("10.77.0.8"), b"10.77.0.8")
        arm = message(DISCOVER, options=((93, b"\0\x0b"), (60, b"PXEClient:Arch:00011")))
        ack = await lease_of(station, arm)
        assert (ack.message.siaddr, ack.message.options[66]) == (number("10.77.0.9"), b"10.77.0.9")
        assert ack.message.options[54] == bytes((10, 77, 0, 1))
        assert int.from_bytes(ack.message.options[51]) == 120
        (held,) = [each for each in here.service.leases() if each.mac == "52:54:00:aa:00:01"]
        assert held.expires - held.starts == pytest.approx(120, abs=0.2)


async def lease_of(station: Station, discover: bytes) -> Frame:
    offer = await station.ask(discover)
    return await station.ask(as_request(discover, offer))


async def test_what_gets_no_boot_file_is_told_once(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        (station,) = here.stations
        for at in range(3):
            for code in (0x40, 0x0A):
                mac = f"52:54:00:00:{code:02x}:{at:02x}"
                offer = await station.ask(
                    message(DISCOVER, mac, options=((93, bytes((0, code))), (60, bytes([at + 65]))))
                )
                assert offer.message.type == OFFER and 67 not in offer.message.options
        told = [event for event in here.events if event.kind == "dhcp.loader_warning"]
        assert [event.details["architecture"] for event in told] == [0x40, 0x0A]
        assert "0x0040 is unknown" in str(told[0].details["text"])
        assert "boot.loaders.uefi-arm32" in str(told[1].details["text"])
        assert [event.mac for event in told] == ["52:54:00:00:40:00", "52:54:00:00:0a:00"]
        here.service.reload(policy_of()[0].dhcp, ())  # type: ignore[arg-type]
        await station.ask(message(DISCOVER, options=((93, b"\0\x40"),)))
        assert [event.kind for event in here.events].count("dhcp.loader_warning") == 3, "again after a reload"


# ---- options as clients understand them

OPTIONS = """
[dhcp.options]
domain-search = ["lab.example", "deep.lab.example", "example"]
ntp-servers = ["10.77.0.5", "10.77.0.6"]
interface-mtu = 1400
time-offset = -3600
[[groups]]
name = "rack7"
options = { root-path = "{server}:/srv/root", domain-search = "rack7.example" }
[[nodes]]
name = "n1"
macs = ["52:54:00:c0:00:00"]
group = "rack7"
options = { host-name = "own-name" }
"""
ROUTES = 'options = { classless-routes = ["10.80.0.0/16 via 10.77.0.2", "default via 10.77.0.1"] }\ndomain ='


async def test_udhcpc_understands_the_options(tmp_path: Path) -> None:
    """busybox decodes 119 and 121 by code of its own."""
    need("udhcpc")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nenv\n")
    script.chmod(0o755)
    text = LAB.replace("domain =", ROUTES)
    for more, expected in [
        (
            OPTIONS.replace("52:54:00:c0:00:00", "52:54:00:c0:00:99"),
            {"search": "lab.example deep.lab.example example", "rootpath": None, "hostname": None},
        ),
        (OPTIONS, {"search": "rack7.example", "rootpath": "10.77.0.1:/srv/root", "hostname": "own-name"}),
    ]:
        async with lab(tmp_path, text + more) as here:
            client = here.wire.clients[0].command(
                "udhcpc", "-i", "c0", "-n", "-q", "-f", "-s", str(script),
                *(word for name in ("search", "staticroutes", "ntpsrv", "mtu", "timezone", "rootpath", "hostname")
                  for word in ("-O", name)),
            )  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                *client, stdout=asyncio.subprocess.PIPE, stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"]}
            )
            async with asyncio.timeout(20):
                said = (await process.communicate())[0].decode()
        bound = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        expected |= {
            "staticroutes": "10.80.0.0/16 10.77.0.2 0.0.0.0/0 10.77.0.1",
            "ntpsrv": "10.77.0.5 10.77.0.6",
            "mtu": "1400",
            "timezone": str((1 << 32) - 3600),
            "siaddr": "10.77.0.1",
        }
        assert {key: bound.get(key) for key in expected} == expected, said


async def test_options_are_sent_where_they_are_asked_for_or_always(tmp_path: Path) -> None:
    text = (
        LAB
        + """
[dhcp.options]
ntp-servers = "10.77.0.5"
224 = { u16 = 7, always = true }
pxelinux-config-file = "lab.cfg"
routers = ["10.77.0.253", "10.77.0.254"]
"""
    )
    async with lab(tmp_path, text) as here:
        (station,) = here.stations
        silent = await station.ask(message(DISCOVER, options=((55, b"\1\x0f"),)))
        assert not {42, 6} & silent.message.options.keys()
        assert {224, 209, 3, 15} <= silent.message.options.keys()
        assert silent.message.options[3] == bytes((10, 77, 0, 253, 10, 77, 0, 254)), "in place of the gateway"
        asking_ = await station.ask(message(DISCOVER, options=((55, b"\1\x2a"),)))
        assert asking_.message.options[42] == bytes((10, 77, 0, 5))
        grub = await station.ask(message(DISCOVER))
        assert {42, 6, 15, 224} <= grub.message.options.keys(), "it has no option 55"


async def test_a_reload_changes_what_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    (tmp_path / "state").mkdir()
    path.write_text('state = "state"\n' + LAB)
    with wires(("10.77.0.1/24",)) as wire, contextlib.closing(Station(wire.clients[0])) as station:
        with wire.server.inside():
            server = Server(load(path), load=lambda: load(path))
        async with server:
            asked = message(DISCOVER, options=((93, b"\0\x40"), (60, b"PXEClient:Arch:00064"), (55, b"\x2a")))
            offer = await station.ask(asked)
            assert not {67, 42} & offer.message.options.keys()
            path.write_text(
                path.read_text() + 'uefi-newcpu = "new.efi"\n[boot.architectures]\n0x0040 = "uefi-newcpu"\n'
                '[dhcp.options]\nntp-servers = "10.77.0.5"\n[[groups]]\nname = "g"\nlease = "2m"\n'
                '[[dhcp.classes]]\nname = "uefi-newcpu"\nlease = "90s"\n'
            )
            changed = await server.reload()
            assert set(changed) == {"boot.loaders", "boot.architectures", "dhcp.options", "dhcp.classes", "groups"}
            offer = await station.ask(asked)
            assert offer.message.options[67] == b"new.efi"
            assert offer.message.options[42] == bytes((10, 77, 0, 5))
            assert int.from_bytes(offer.message.options[51]) == 90


# ---- Raspberry Pi


PI = "b8:27:eb:12:34:56"


class Rom:
    """The boot ROM of a Raspberry Pi 3 as its documentation has it: DISCOVER, then TFTP by the OFFER alone."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client

    @staticmethod
    async def offer(station: Station) -> Frame | None:
        """Return the offer that it takes, by the words in option 43. It knows no PAD, and joins no options."""
        offer = await station.ask(CLIENTS["raspberry-pi3"])
        options = wire_options(offer.payload)
        taken = any(code == 43 and b"Raspberry Pi Boot" in value for code, value in options)
        return offer if taken and all(code for code, _ in options) else None

    async def read(self, server: str, name: str) -> bytes | None:
        """Fetch a file in blocks of 512 octets, without options; None where the server says that there is none."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendto(self.client, b"\0\1" + name.encode() + b"\0octet\0", (server, 69))
        got, block = b"", 1
        async with asyncio.timeout(5):
            while True:
                data, peer = await loop.sock_recvfrom(self.client, 2048)
                if data[:2] == b"\0\5":
                    assert data[2:4] == b"\0\1", data
                    return None
                assert data[:4] == struct.pack("!HH", 3, block)
                got += data[4:]
                await loop.sock_sendto(self.client, struct.pack("!HH", 4, block), peer)
                block += 1
                if len(data) < 516:
                    return got


async def test_a_raspberry_pi_boots_given_its_files(tmp_path: Path) -> None:
    """From the OFFER: it never sends a REQUEST, so the address is held for it."""
    need("ip")
    root = tmp_path / "root"
    files = {"bootcode.bin": b"b" * 52476, "1234abcd/start.elf": b"s" * 30000, "1234abcd/cmdline.txt": b"c" * 512}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    path = tmp_path / "lab.toml"
    (tmp_path / "state").mkdir()
    path.write_text('state = "state"\nroots = ["root"]\n' + LAB + "[tftp]\n")
    with wires(("10.77.0.1/24",)) as wire, contextlib.closing(Station(wire.clients[0])) as station:
        wire.clients[0].ip("link", "set", "c0", "address", PI)
        with wire.server.inside():
            server = Server(load(path))
        async with server:
            offer = await Rom.offer(station)
            assert offer is not None
            address = str(IPv4Address(offer.message.yiaddr))
            file_server = str(IPv4Address(offer.message.siaddr))
            assert offer.message.options[66].decode() == file_server == "10.77.0.1"
            wire.clients[0].ip("address", "add", f"{address}/24", "dev", "c0")
            with wire.clients[0].inside():
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with contextlib.closing(client):
                client.bind((address, 49152))
                client.setblocking(False)
                rom = Rom(client)
                assert await rom.read(file_server, "bootcode.bin") == files["bootcode.bin"]
                assert await rom.read(file_server, "bootsig.bin") is None
                for name in ("1234abcd/start.elf", "1234abcd/cmdline.txt"):
                    assert await rom.read(file_server, name) == files[name]
            other = await station.ask(message(DISCOVER, "52:54:00:aa:00:09", xid=9))
            assert str(IPv4Address(other.message.yiaddr)) != address, "the address is held"
            # What runs then asks as an operating system does, and keeps the address.
            ack = await lease(station, PI, xid=10)
            assert str(IPv4Address(ack.message.yiaddr)) == address
            assert not {43, 60, 66} & ack.message.options.keys()

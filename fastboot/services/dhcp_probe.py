"""Questions to other DHCP servers on a link, and what they answer; the search before this one serves."""

from __future__ import annotations

import asyncio
import ctypes
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from fastboot._core import DhcpMessage, parse_dhcp, udp_packet
from fastboot.model import FastbootError
from fastboot.services.links import Link

ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name it
ALL_STATIONS = b"\xff" * 6
BROADCAST = 0xFFFFFFFF
DISCOVER, OFFER, ACK, NAK, INFORM = 1, 2, 5, 6, 8
COOKIE = b"\x63\x82\x53\x63"
AGAIN = 1.0
"""Seconds between questions: one may be lost."""

# UDP to port 68, as `tcpdump -dd` writes it for a packet that begins with its IP header.
TO_CLIENTS: Final = (
    (0x30, 0, 0, 9),  # ldb [9]
    (0x15, 0, 4, 17),  # jeq udp
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)
    (0x48, 0, 0, 2),  # ldh [x+2]
    (0x15, 0, 1, 68),  # jeq 68
    (0x06, 0, 0, 0xFFFF),  # accept
    (0x06, 0, 0, 0),  # drop
)


@dataclass(frozen=True, slots=True)
class Rival:
    """Another DHCP server."""

    link: Link
    address: IPv4Address
    mac: str

    def __str__(self) -> str:
        return f"{self.address} ({self.mac}) on {self.link.name}"


def open_probe(link: Link) -> socket.socket:
    """Open a packet socket that hears what servers tell clients on a link. Raises OSError (CAP_NET_RAW)."""
    probe = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    try:
        program = b"".join(struct.pack("HBBI", *line) for line in TO_CLIENTS)
        buffer = ctypes.create_string_buffer(program, len(program))
        head = struct.pack(
            "HxxxxxxP" if struct.calcsize("P") == 8 else "HxxP", len(TO_CLIENTS), ctypes.addressof(buffer)
        )
        probe.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)
        probe.bind((link.name, ETH_P_IP))
    except OSError:
        probe.close()
        raise
    return probe


async def find_rivals(
    probes: Sequence[tuple[Link, socket.socket]], known: Sequence[IPv4Address], seconds: float
) -> list[Rival]:
    """Ask every link at once for `seconds`, or until a server answers that is not one of `known`."""
    tasks = [asyncio.create_task(_find(link, probe, known)) for link, probe in probes]
    if not tasks:
        return []
    done, pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return [task.result() for task in done]


def refuse(rivals: Sequence[Rival]) -> FastbootError:
    """Return the error for servers that are not allowed here."""
    found = ", ".join(map(str, rivals))
    listed = ", ".join(f'"{rival.address}"' for rival in rivals)
    return FastbootError(
        f"dhcp: another DHCP server is at work here: {found}. Two servers hand out the same addresses and boot "
        'machines at random: switch that one off; or let it give the addresses (mode = "proxy" under [dhcp]); '
        f"or, if it leaves these machines alone, write known_servers = [{listed}] there"
    )


async def _find(link: Link, probe: socket.socket, known: Sequence[IPv4Address]) -> Rival:
    loop = asyncio.get_running_loop()
    xid = secrets.randbits(32)
    found: asyncio.Future[Rival] = loop.create_future()

    def readable() -> None:
        try:
            data, sender = probe.recvfrom(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if not found.done():
                found.set_exception(error)
            return
        address = server_in(data, xid)
        if address and address not in known and not found.done():
            found.set_result(Rival(link, address, sender[4].hex(":")))

    loop.add_reader(probe, readable)
    try:
        while True:
            ask(link, probe, xid)
            done, _ = await asyncio.wait((found,), timeout=AGAIN)
            if done:
                return found.result()
    finally:
        loop.remove_reader(probe)


def ask(link: Link, probe: socket.socket, xid: int) -> None:
    """Ask every server of a link who it is. Raises OSError."""
    for question in questions(link, xid):
        probe.sendto(question, (link.name, ETH_P_IP, 0, 0, ALL_STATIONS))


def questions(link: Link, xid: int) -> list[bytes]:
    """Return what is asked, as IP packets: an INFORM, then a DISCOVER.

    dnsmasq pings for 3 s before an OFFER and hears nothing meanwhile; it answers an INFORM at once.
    """
    own = int(link.addresses[0].ip)
    return [
        udp_packet(own, 68, BROADCAST, 67, client_message(INFORM, link.mac, xid, address=own)),
        udp_packet(0, 68, BROADCAST, 67, client_message(DISCOVER, link.mac, xid, broadcast=True)),
    ]


def client_message(type_: int, mac: bytes, xid: int, *, address: int = 0, broadcast: bool = False) -> bytes:
    """Return a client's DHCP message with nothing in it but its type and what it wants to know."""
    head = struct.pack(
        "!BBBBIHH4I16s64x128x", 1, 1, len(mac), 0, xid, 0, 0x8000 * broadcast, address, 0, 0, 0, mac
    )
    return (head + COOKIE + bytes((53, 1, type_, 55, 3, 1, 3, 6, 255))).ljust(300, b"\0")


def server_in(packet: bytes, xid: int | None = None) -> IPv4Address | None:
    """Return which server speaks in an IP packet, to a question of ours or, without an `xid`, to any client; None
    where it is something else."""
    if len(packet) < 20 or packet[9] != socket.IPPROTO_UDP:
        return None
    message = parse_dhcp(packet[4 * (packet[0] & 15) + 8 : int.from_bytes(packet[2:4])])
    if not isinstance(message, DhcpMessage) or message.op != 2 or message.type not in (OFFER, ACK, NAK):
        return None
    if xid is not None and message.xid != xid:
        return None
    server = IPv4Address(message.options.get(54) or packet[12:16])
    # A relay that puts its own address there speaks for any server, us perhaps (RFC 5107).
    return None if message.giaddr and int(server) == message.giaddr else server

"""The kernel's neighbour table: which hardware address an address on a link has."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

from fastboot.services.links import Link

# linux/rtnetlink.h, linux/neighbour.h
RTM_NEWNEIGH, RTM_GETNEIGH, NLM_F_REQUEST = 28, 30, 1
NDA_DST, NDA_LLADDR = 1, 2  # the second is there only while the kernel holds it for valid
_HEAD = struct.Struct("=IHHII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")


def open_neighbours() -> socket.socket:
    """Open the socket that the kernel answers on. Takes no right."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)


class Neighbours:
    """Asks the kernel, which answers at once from memory (RTM_GETNEIGH of one entry, Linux 5.0).

    Whoever sends us a packet from an address on a link has asked for ours by ARP before, so it is known. `asked`
    is of `open_neighbours`, and stays the caller's.
    """

    def __init__(self, links: Sequence[Link], asked: socket.socket) -> None:
        self._links = tuple(links)
        self._socket = asked
        self._number = 0

    def mac_of(self, address: IPv4Address) -> bytes | None:
        """Return the hardware address of a neighbour, None where the kernel knows none."""
        for link in self._links:
            if any(address in own.network for own in link.addresses) and (mac := self._ask(link, address)):
                return mac
        return None

    def _ask(self, link: Link, address: IPv4Address) -> bytes | None:
        self._number += 1
        body = _NEIGHBOUR.pack(socket.AF_INET, link.index, 0, 0, 0) + _ATTRIBUTE.pack(8, NDA_DST) + address.packed
        head = _HEAD.pack(_HEAD.size + len(body), RTM_GETNEIGH, NLM_F_REQUEST, self._number, 0)
        try:
            self._socket.send(head + body)
            while True:
                answer = self._socket.recv(4096)
                if _HEAD.unpack_from(answer)[3] == self._number:
                    return _hardware_address(answer)
        except OSError:  # a kernel that can not say
            return None


def _hardware_address(answer: bytes) -> bytes | None:
    length, kind, *_ = _HEAD.unpack_from(answer)
    at = _HEAD.size + _NEIGHBOUR.size
    if kind != RTM_NEWNEIGH or length < at or length > len(answer):
        return None
    while at + _ATTRIBUTE.size <= length:
        size, code = _ATTRIBUTE.unpack_from(answer, at)
        if size < _ATTRIBUTE.size or at + size > length:
            return None
        if code == NDA_LLADDR and size == _ATTRIBUTE.size + 6:
            return answer[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return None

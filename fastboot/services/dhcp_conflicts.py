"""Who uses the addresses that strangers get next: asked by ARP ahead of time (RFC 5227), and heard unasked.

The native core says whom to ask for and judges what is heard; this module has the clock and the sockets.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Final, Protocol

from fastboot.services.links import Link, enlarge, listen

ETH_P_ARP = 0x0806
ALL_STATIONS = b"\xff" * 6
TURN: Final = 0.1
"""Seconds between turns of asking."""
PER_TURN: Final = 8
"""Addresses asked for in one turn: a /24 of listeners sees 80 broadcasts a second for 2 s, then one every 3 s."""
RETRY: Final = 10.0
"""Seconds until a link is tried again that could not send."""


class Core(Protocol):
    """What this module uses of a native core; see _core.pyi."""

    def speak_arp(self, link: int, on: bool, /) -> None: ...
    def probes(self, now: int, most: int, /) -> tuple[list[tuple[int, int]], int]: ...
    def readable_arp(self, link: int, fd: int, now: int, /) -> int: ...


def open_arp(link: Link) -> socket.socket:
    """Open a packet socket that speaks ARP on a link. Raises OSError (CAP_NET_RAW)."""
    each = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    try:
        enlarge(each)
        each.bind((link.name, ETH_P_ARP))
    except OSError:
        each.close()
        raise
    return each


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """Return an ARP Probe (RFC 5227 section 2.1.1): it asks for an address and changes no neighbour's table."""
    return struct.pack("!HHBBH6sI6s4s", 1, 0x0800, 6, 4, 1, mac, 0, bytes(6), address.packed)


class Conflicts:
    """Asks and listens on the links of one service. Sockets stay the caller's. The loop's thread calls it."""

    def __init__(
        self, core: Core, links: Sequence[Link], step: Callable[[], None], now: Callable[[], int]
    ) -> None:
        """`step` is called after an address was found in use; `now` is the clock that the core is driven by."""
        self._core, self._links, self._step, self._now = core, links, step, now
        self._sockets: dict[int, socket.socket] = {}
        self._resting: dict[int, asyncio.TimerHandle] = {}
        self._on = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._counts = {"arp_probes": 0, "arp_failed": 0}

    def configure(self, on: bool) -> None:
        """Say whether addresses are asked about at all."""
        self._on = on
        for at in self._sockets:
            self._speak(at)

    def start(self, sockets: Sequence[tuple[Link, socket.socket]]) -> None:
        """Begin, on the running loop. `sockets` are those of `open_arp`; they may hold old packets."""
        self._loop = asyncio.get_running_loop()
        for link, each in sockets:
            at = self._links.index(link)
            self._sockets[at] = each
            listen(self._loop, each, partial(self._readable, at, each))
            self._speak(at)

    def stop(self) -> None:
        """End; a second time does nothing."""
        for timer in (self._timer, *self._resting.values()):
            if timer is not None:
                timer.cancel()
        for at, each in self._sockets.items():
            self._core.speak_arp(at, False)
            if self._loop is not None and each.fileno() >= 0:
                self._loop.remove_reader(each)
        self._sockets.clear()
        self._resting.clear()
        self._loop = self._timer = None

    def soon(self) -> None:
        """Look at the free addresses soon: some have come or gone."""
        if self._loop is None or not self._sockets:
            return
        due = self._loop.time() + TURN
        if self._timer is None or due < self._due:
            self._schedule(due)

    def counters(self) -> Mapping[str, int]:
        return self._counts

    def _speak(self, at: int) -> None:
        self._core.speak_arp(at, self._on)
        self.soon()

    def _schedule(self, due: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, self._loop.call_at(due, self._ask)

    def _ask(self) -> None:
        assert self._loop is not None
        asks, wait = self._core.probes(self._now(), PER_TURN)
        self._schedule(self._loop.time() + max(wait / 1e9, TURN))
        for at, address in asks:
            if at in self._resting:
                continue
            link = self._links[at]
            try:
                to = (link.name, ETH_P_ARP, 0, 0, ALL_STATIONS)
                self._sockets[at].sendto(arp_probe(link.mac, IPv4Address(address)), to)
                self._counts["arp_probes"] += 1
            except OSError:  # the link is down: silence on it proves nothing
                self._counts["arp_failed"] += 1
                self._core.speak_arp(at, False)
                self._resting[at] = self._loop.call_later(RETRY, self._try_again, at)

    def _try_again(self, at: int) -> None:
        del self._resting[at]
        self._speak(at)

    def _readable(self, at: int, each: socket.socket) -> None:
        found = self._core.readable_arp(at, each.fileno(), self._now())
        if found > 0:
            self._step()
        elif found < 0:  # the link went down
            assert self._loop is not None
            self._counts["arp_failed"] += 1
            listen(self._loop, each, partial(self._readable, at, each))

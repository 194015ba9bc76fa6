"""Other DHCP servers that appear, and vanish, while this one serves: an alarm each time, and service goes on."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from fastboot.model import Event
from fastboot.services.dhcp_probe import AGAIN, ask, server_in
from fastboot.services.links import Link, listen

ANSWER: Final = 4.0
"""Seconds that an answer may take: dnsmasq pings for 3 s before an OFFER."""
PERIOD: Final = 300
"""Seconds after which silence is judged where nothing is asked."""
SILENCES: Final = 2
"""Periods without a sign of life after which a server is gone: one may be lost, or the server busy."""
ROOM: Final = 64
"""Servers that are told apart: a machine that forges them must not fill memory and log."""
BURST: Final = 64
"""Packets taken from a link before the loop has its turn."""


@dataclass(frozen=True, slots=True)
class OtherServer:
    """A DHCP server at work on a link beside ours, `since` seconds of the epoch. `mac` is None where it never
    answered us and is known from a client's REQUEST only."""

    interface: str
    address: IPv4Address
    mac: str | None
    since: float


class OtherServers:
    """Which other servers are at work: one event when one appears, one when it is gone. Does no I/O."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._present: dict[tuple[str, IPv4Address], OtherServer] = {}
        self._silent: dict[tuple[str, IPv4Address], int] = {}
        self.untold = 0
        """Signs of life of servers that there was no room for."""

    def present(self) -> list[OtherServer]:
        """Return those at work, the first to appear first."""
        return list(self._present.values())

    def seen(
        self, interface: str, address: IPv4Address, mac: str | None, wall: float, client: str | None = None
    ) -> None:
        """Take a sign of life; `client` is the machine whose REQUEST was it."""
        key = (interface, address)
        known = self._present.get(key)
        if known is not None:
            self._silent[key] = 0
            if mac is not None and mac != known.mac:
                self._present[key] = replace(known, mac=mac)
            return
        if len(self._present) >= ROOM:
            self.untold += 1
            return
        self._present[key], self._silent[key] = OtherServer(interface, address, mac, wall), 0
        text = (
            "another DHCP server is at work here, so machines boot at random from it or from us: switch it off, "
            f'or, if it leaves these machines alone, write known_servers = ["{address}"] under [dhcp]'
        )
        details: dict[str, object] = {"interface": interface, "server": str(address)}
        if client is not None:
            details["client"] = client
        self._emit(Event(wall, "dhcp.other_server", mac, details={**details, "text": text}))

    def has(self, interface: str, address: IPv4Address) -> bool:
        """Whether a server is known to be at work."""
        return (interface, address) in self._present

    def period_ends(self, wall: float) -> None:
        """Judge silence: who gave no sign of life for two periods is gone."""
        for key, server in list(self._present.items()):
            self._silent[key] += 1
            if self._silent[key] > SILENCES:
                self._gone(server, wall)

    def allow(self, known: Collection[IPv4Address], wall: float) -> None:
        """Let servers be here that the configuration lists now."""
        for server in self.present():
            if server.address in known:
                self._gone(server, wall, "it is one of known_servers now")

    def _gone(self, server: OtherServer, wall: float, text: str = "it is silent") -> None:
        key = (server.interface, server.address)
        del self._present[key], self._silent[key]
        details = {"interface": server.interface, "server": str(server.address), "text": text}
        self._emit(Event(wall, "dhcp.other_server_gone", server.mac, details=details))


class Watch:
    """Listens on every link for what other servers tell clients, and asks from time to time.

    Sockets stay the caller's. The loop's thread calls it.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._servers = OtherServers(emit)
        self._sockets: dict[str, tuple[Link, socket.socket]] = {}
        self._allowed: frozenset[IPv4Address] = frozenset()
        self._every = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._asking: dict[str, asyncio.TimerHandle] = {}
        self._suspects: dict[tuple[str, IPv4Address], tuple[str, asyncio.TimerHandle]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counts = {"probes": 0, "probe_failed": 0, "foreign_reply": 0}

    def configure(self, every: float, allowed: Collection[IPv4Address]) -> None:
        """Ask every so many seconds, 0 for never; servers at the `allowed` addresses are no alarm."""
        self._every, self._allowed = every, frozenset(allowed)
        self._servers.allow(self._allowed, time.time())
        if self._loop is not None:
            self._wait()

    def start(self, sockets: Sequence[tuple[Link, socket.socket]]) -> None:
        """Begin, on the running loop. `sockets` are those of `open_probe`; they may hold old packets."""
        self._loop = asyncio.get_running_loop()
        for link, each in sockets:
            self._sockets[link.name] = link, each
            listen(self._loop, each, partial(self._readable, link, each))
        self._wait()

    def stop(self) -> None:
        """End; a second time does nothing."""
        suspects = (timer for _, timer in self._suspects.values())
        for timer in (self._timer, *self._asking.values(), *suspects):
            if timer is not None:
                timer.cancel()
        if self._loop is not None:
            for _, each in self._sockets.values():
                if each.fileno() >= 0:
                    self._loop.remove_reader(each)
        self._sockets.clear()
        self._loop = None

    def named(self, interface: str, address: IPv4Address, client: str) -> None:
        """Take that a client chose a server that is not ours. It is asked at once, for its MAC."""
        if address in self._allowed or self._loop is None:
            return
        key = (interface, address)
        if self._servers.has(*key) or interface not in self._sockets:
            self._servers.seen(*key, None, time.time(), client)
        elif key not in self._suspects and len(self._suspects) < ROOM:
            self._suspects[key] = client, self._loop.call_later(ANSWER, self._convict, key)
            self._ask(interface)

    def present(self) -> list[OtherServer]:
        """Return the servers at work beside ours."""
        return self._servers.present()

    def counters(self) -> Mapping[str, int]:
        return {
            **self._counts,
            "other_servers": len(self._servers.present()),
            "other_servers_untold": self._servers.untold,
        }

    def _wait(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._every or PERIOD, self._period)

    def _period(self) -> None:
        self._servers.period_ends(time.time())
        if self._every:
            for interface in self._sockets:
                self._ask(interface)
        self._wait()

    def _ask(self, interface: str, again: bool = True) -> None:
        if again and interface in self._asking:
            return
        assert self._loop is not None
        link, each = self._sockets[interface]
        try:
            ask(link, each, secrets.randbits(32))
            self._counts["probes"] += 1
        except OSError:  # the link is down, its queue full: the next period asks again
            self._counts["probe_failed"] += 1
        if again:
            self._asking[interface] = self._loop.call_later(AGAIN, self._ask_again, interface)

    def _ask_again(self, interface: str) -> None:
        del self._asking[interface]
        self._ask(interface, again=False)

    def _convict(self, key: tuple[str, IPv4Address], mac: str | None = None) -> None:
        client, timer = self._suspects.pop(key)
        timer.cancel()
        self._servers.seen(*key, mac, time.time(), client)

    def _readable(self, link: Link, each: socket.socket) -> None:
        for _ in range(BURST):
            try:
                packet, sender = each.recvfrom(4096)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the link went down
                self._counts["probe_failed"] += 1
                assert self._loop is not None
                listen(self._loop, each, partial(self._readable, link, each))
                return
            address = server_in(packet)
            if address is None or address in self._allowed:
                continue
            self._counts["foreign_reply"] += 1
            key, mac = (link.name, address), sender[4].hex(":")
            if key in self._suspects:
                self._convict(key, mac)
            else:
                self._servers.seen(*key, mac, time.time())

"""HTTP connections: who has how many, and how long one may keep the server waiting."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from fastboot import config
from fastboot.services.descriptors import EXCESS, PER_CONNECTION
from fastboot.services.http_answer import unasked
from fastboot.services.http_message import ONE_HOST
from fastboot.services.pump import LEAST, RESET_ON_CLOSE, unacknowledged

if TYPE_CHECKING:
    from fastboot.services.http import HttpService


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds that a client must keep."""

    head: float = 60
    """From a connection, or from the last answer, to the end of the next request's header."""
    stall: float = 120
    """An answer of which the client takes less than `LEAST` octets in so long is ended."""


STANDARD: Final = Limits()
BODY: Final = re.compile(rb"\n(?:Content-Length|Transfer-Encoding)", re.IGNORECASE)
"""A field that announces a body."""
MAX_TARGET: Final = 8000
"""Octets of a request's target: what RFC 9112 section 3 asks for at least."""
MAX_FIELD: Final = 8190
"""Octets of a header field. Another number than that of a target: by it one knows which of them was too long."""


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once. What waits in the kernel is dropped: it would be kept for as long as the client
    likes, and a client that is told nothing could take a part for the whole."""
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


def heads(data: bytes) -> Iterator[bytes]:
    """Cut what came behind each end of a request's header. A request with a body goes on with all that follows."""
    begin = 0
    while (end := data.find(b"\r\n\r\n", begin) + 4) > 3 and not BODY.search(data, begin, end):
        yield data[begin:end]
        begin = end
    if begin < len(data) or not data:  # nothing at all has aiohttp look again at what it put aside
        yield data[begin:]


def refusal_of(fault: HttpProcessingError) -> tuple[str, int]:
    """Return what is told to who sent something that aiohttp does not take, and the status."""
    if isinstance(fault, LineTooLong):
        if fault.args[1] == MAX_TARGET:
            return f"more than {MAX_TARGET} octets", 414
        return f"a header field of more than {MAX_FIELD} octets", 431
    if "'Host'" in fault.message:
        return ONE_HOST, 400
    return "this is no HTTP", 400


class Crowd:
    """Which addresses have connections. What one has beyond its share takes nothing from the others."""

    def __init__(self, settings: config.Http) -> None:
        self.settings = settings
        self._by_address: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def enter(self, address: str) -> None:
        self._by_address[address] += 1
        self._total += 1

    def leave(self, address: str) -> None:
        self._by_address[address] -= 1
        self._total -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def excess(self, address: str) -> str | None:
        """Return why a connection of this address is one too many, None where it is not.

        Idle ones are closed in time, so it pays to come back.
        """
        most, each = self.settings.max_connections, self.settings.max_per_address
        if self._by_address[address] > each:
            return "too many connections of one address"
        if len(self) > most and sum(min(count, each) for count in self._by_address.values()) > most:
            return "too many connections"
        return None

    def is_flood(self, address: str) -> bool:
        """Whether an address has so many that an answer would be wasted on one more."""
        return self._by_address[address] >= 2 * self.settings.max_per_address


class Manager(web.Server):
    """aiohttp's server, with the connections of every address counted."""

    def __init__(self, service: HttpService, crowd: Crowd, limits: Limits) -> None:
        super().__init__(
            service.answer,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.head,
            lingering_time=2,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
        )
        self._service, self._crowd, self._limits = service, crowd, limits

    def __call__(self) -> Connection:
        return Connection(self, self._service, self._limits.stall, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        transport.set_write_buffer_limits(0)
        # A client that reset the connection before it was accepted has no address any more (ENOTCONN).
        peer = transport.get_extra_info("peername")
        if peer is None or self._crowd.is_flood(peer[0]):
            if peer is not None:
                self._service.count("refused_flood")
            reset(transport)
            return
        if not self._service.descriptors.has(PER_CONNECTION):
            self._service.count(f"refused_{EXCESS.replace(' ', '_')}")
            transport.write(unasked(503, EXCESS))
            transport.close()
            return
        handler.peer, handler.own = peer[0], transport.get_extra_info("sockname")[0]
        self._crowd.enter(handler.peer)
        self._service.descriptors.take(PER_CONNECTION)
        self._service.count("connections")

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        if handler.peer is not None:
            self._crowd.leave(handler.peer)
            self._service.descriptors.give_back(PER_CONNECTION)
            handler.peer = None
        super().connection_lost(handler, exc)


class Connection(web.RequestHandler):
    """aiohttp's connection: a client's nonsense is counted, a fault of ours is told, who reads nothing is cut."""

    def __init__(self, manager: Manager, service: HttpService, stall: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._service, self._stall = service, stall
        self._unread = 0
        self._ended = False
        self._deadline: asyncio.TimerHandle | None = None
        self.peer: str | None = None
        """The client's address while its connection is counted."""
        self.own = ""
        """The address of ours that it asked."""

    def data_received(self, data: bytes) -> None:
        # One head at a time: aiohttp forgets the sound requests in front of one that it does not take.
        for part in heads(data):
            super().data_received(part)
            if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
                break

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what was asked, though nothing more will be: nc and some firmware end their side at once."""
        self._ended = True
        self.answered()
        return bool(self._messages) or self._current_request is not None

    def answered(self) -> None:
        """Close after this answer, if it is the last that the client can ask for."""
        if self._ended and not self._messages:
            self.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.transport is not None:
            held = unacknowledged(self.transport.get_extra_info("socket"))
            self._unread = held + self.transport.get_write_buffer_size()
            self._deadline = self._loop.call_later(self._stall, self._look)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _look(self) -> None:
        before = self._unread
        self._watch()
        if self.transport is not None and before - self._unread < LEAST:
            self._service.count("stalled")
            reset(self.transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, HttpProcessingError):
            return self._service.malformed(request, *refusal_of(exc))
        return self._service.broken(request, exc)

"""HTTP connections: requests in, answers out; who has how many, and how long one may keep the server waiting.

aiohttp's parser reads the requests. Its server is not used: a task, futures and some ten objects for each request
were half of what a file of 2 KB cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from fastboot import config
from fastboot._core import http_target
from fastboot.services.descriptors import PER_CONNECTION, Descriptors
from fastboot.services.http_answer import Answer, Ready
from fastboot.services.http_message import ONE_HOST
from fastboot.services.pump import LEAST, RESET_ON_CLOSE, unacknowledged
from fastboot.services.turns import Turns

if TYPE_CHECKING:
    from fastboot.services.http import HttpService


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds that a client must keep."""

    head: float = 60
    """From a connection, or from the last answer, to the end of the next request's header."""
    stall: float = 120
    """An answer of which the client takes less than `LEAST` octets in so long is ended."""


Request = RawRequestMessage
STANDARD: Final = Limits()
BODY: Final = re.compile(rb"\n(?:Content-Length|Transfer-Encoding)", re.IGNORECASE)
"""A field that announces a body."""
MAX_TARGET: Final = 8000
"""Octets of a request's target: what RFC 9112 section 3 asks for at least."""
MAX_FIELD: Final = 8190
"""Octets of a header field. Another number than that of a target: by it one knows which of them was too long."""
AHEAD: Final = 32
"""Requests that wait for their turn before no more are read."""
SKIPPED: Final = 128 * 1024
"""Octets of a body that nobody asked for. A longer one ends the connection."""
LINGER: Final = 2.0
"""Seconds after the answer in which it has to be there, and the client's end of a connection that we ended."""
PARTING: Final = 32
"""Connections that nobody counts any more, and whose client has still to read that it was turned away. Each has an
open file of the reserve; half of them are for one address. Beyond them the answer may be lost."""

END: Final = b"\r\n\r\n"
CLOSING: Final = b"\r\nConnection: close" + END
"""Ends of a header."""
PLAIN: Final = CIMultiDictProxy(CIMultiDict[str]())
"""The fields of a request that has none which would change its answer."""


@lru_cache(4096)
def plain(target: str) -> Request:
    """Return the request that `http_target` has read."""
    url = URL.build(path=target, encoded=True)
    return RawRequestMessage("GET", target, HttpVersion11, PLAIN, (), False, None, False, False, url)


def heads(data: bytes, before: bytes = b"") -> Iterator[bytes]:
    """Cut what came behind each end of a request's header. A request with a body goes on with all that follows.
    `before` are the last octets of what came before, which an end may begin in."""
    begin, passed = 0, len(before)
    data = before + data
    while (end := data.find(END, begin) + 4) > 3 and not BODY.search(data, begin, end):
        yield data[max(begin, passed) : end]
        begin = end
    if (
        max(begin, passed) < len(data) or len(data) == passed
    ):  # nothing at all has aiohttp look at what it put aside
        yield data[max(begin, passed) :]


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
    """The connections of a service, and which addresses have them. What one has beyond its share takes nothing
    from the others."""

    def __init__(self, settings: config.Http, descriptors: Descriptors) -> None:
        self.settings, self._descriptors = settings, descriptors
        self._by_address: Counter[str] = Counter()
        self._connections: set[Connection] = set()
        self._parting: dict[Connection, str] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, connection: Connection) -> None:
        self._descriptors.take(PER_CONNECTION, connection.peer)
        self._by_address[connection.peer] += 1
        self._connections.add(connection)

    def part(self, connection: Connection) -> bool:
        """Count one no more, that goes when its client has read the answer. False where too many do so."""
        others = list(self._parting.values())
        if len(others) >= PARTING or others.count(connection.peer) >= PARTING // 2:
            return False
        self.leave(connection)
        self._parting[connection] = connection.peer
        return True

    def leave(self, connection: Connection) -> None:
        """Forget one, if it has entered."""
        self._parting.pop(connection, None)
        if connection in self._connections:
            self._descriptors.give_back(PER_CONNECTION, connection.peer)
            self._connections.remove(connection)
            self._by_address[connection.peer] -= 1
            if not self._by_address[connection.peer]:
                del self._by_address[connection.peer]

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

    def lacks(self, address: str) -> str | None:
        """Return why there is no descriptor for one more connection of an address, None where there is."""
        return self._descriptors.lacks(PER_CONNECTION, address)

    def is_flood(self, address: str) -> bool:
        """Whether an address has so many that an answer would be wasted on one more."""
        return self._by_address[address] >= 2 * self.settings.max_per_address

    def finish(self) -> None:
        """Take no more requests: who has an answer on its way gets that, all others are closed."""
        for connection in tuple(self._connections):
            connection.finish()

    async def end(self, seconds: float) -> None:
        """End all that is left, answers that take longer than so."""
        if tasks := [connection.task for connection in self._connections if connection.task]:
            await asyncio.wait(tasks, timeout=seconds)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for connection in (*self._connections, *self._parting):
            connection.close()


class Connection(BaseProtocol):
    """Reads requests and sends their answers in order: at once where that is at hand, from a task where not.

    The next is begun when the kernel has the last: who does not read is not to ask for more. Who reads nothing, or
    asks for nothing, is cut.
    """

    def __init__(self, service: HttpService, crowd: Crowd, limits: Limits, turns: Turns) -> None:
        loop = asyncio.get_running_loop()
        parser = HttpRequestParser(
            self, loop, SKIPPED // 2, max_line_size=MAX_TARGET, max_field_size=MAX_FIELD, auto_decompress=False
        )
        super().__init__(loop, parser)
        self._feed = parser.feed_data
        self._service, self._crowd, self._limits, self._turns = service, crowd, limits, turns
        self._asked = deque[tuple[Request | HttpProcessingError, StreamReader]]()
        self._last = b""
        """What the parser has seen last, in which the end of a header may begin."""
        self._is_between = True
        """The parser has seen every request to its end."""
        self._no_more = False
        """What the client sends from now on is no request."""
        self._body: StreamReader = EMPTY_PAYLOAD
        self._request: Request | None = None
        """What is answered now; None where it was no request."""
        self._due = self._is_full = self._is_blocked = self._begun = self._parted = self._has_ended = False
        self._skipped = 0
        self._keeps = True
        self._unread = 0
        self._quiet_since = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        """The answer that is waited for."""
        self.peer = ""
        """The client's address."""
        self.own = ""
        """The address of ours that it asked."""

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(0)
        # A client that reset the connection before it was accepted has no address any more (ENOTCONN).
        peer = transport.get_extra_info("peername")
        if peer is None or self._crowd.is_flood(peer[0]):
            if peer is not None:
                self._service.count("refused_flood")
            self.reset()
            return
        self.peer, self.own = peer[0], transport.get_extra_info("sockname")[0]
        if excess := self._crowd.lacks(self.peer):
            self.begin(self._service.excess(excess, self.peer))
            self.part()
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._crowd.enter(self)
        self._service.count("connections")
        self._quiet_since = self._loop.time()
        self._idle = self._loop.call_later(self._limits.head, self._look_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._crowd.leave(self)
        self._asked.clear()
        self._unwatch()
        self._forget_idle()
        if self.task:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._parted:
            self._skipped += len(data)
            if self._skipped > SKIPPED:
                self.close()
            return
        if self._is_between and not self._no_more and (target := http_target(data)):
            self._last = b""
            self._asked.append((plain(target), EMPTY_PAYLOAD))
        else:
            self._parse(data)
        if len(self._asked) >= AHEAD and not self._is_full and self.transport:
            self._is_full = True
            self.transport.pause_reading()
        self._go_on()

    def _parse(self, data: bytes) -> None:
        # One head at a time: aiohttp forgets the sound requests in front of one that it does not take.
        before, self._last = self._last, (self._last + data)[1 - len(END) :]
        for part in heads(data, before):
            if self._no_more:
                break
            try:
                messages, _, _ = self._feed(part)
            except HttpProcessingError as fault:
                self._asked.append((fault, EMPTY_PAYLOAD))
                self._no_more = True
                break
            self._asked += messages
            for request, _ in messages:
                # aiohttp's parser takes nothing that follows an offer of another protocol for a request.
                self._no_more = request.should_close or "Upgrade" in request.headers
            self._is_between = (
                part.endswith(b"\r\n\r\n") and len(messages) == 1 and messages[0][1] is EMPTY_PAYLOAD
            )

    def eof_received(self) -> bool:
        """Answer what was asked, though nothing more will be: nc and some firmware end their side at once."""
        self._no_more = self._has_ended = True
        return bool(self._asked) or self.task is not None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_blocked = True
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_blocked = False
        self._unwatch()
        self._quiet_since = self._loop.time()
        self._go_on()

    # --- requests

    def _go_on(self) -> None:
        if self._asked and not (self._due or self._is_blocked or self.task):
            self._due = True
            self._turns.run(self._next)

    def _next(self) -> None:
        self._due = False
        if not self._asked:  # the connection was lost meanwhile
            return
        request, body = self._asked.popleft()
        if self._is_full and not self._asked and self.transport is not None:
            self._is_full = False
            self.transport.resume_reading()
        self._request, self._body, self._begun = None, body, False
        try:
            if isinstance(request, HttpProcessingError):
                answer: Ready | Coroutine[Any, Any, Answer] = self._service.malformed(*refusal_of(request))
            else:
                self._request = request
                answer = self._service.answer(request, self)
        except Exception as fault:
            answer = self._service.broken(fault)
        if isinstance(answer, (Answer, bytes)) and body.is_eof():
            self._end(answer)
        else:
            self.task = self._loop.create_task(self._later(answer, body))
            if not isinstance(answer, (Answer, bytes)):
                # A connection that is lost in this turn of the loop cancels the task before it begins.
                self.task.add_done_callback(lambda _: answer.close())

    async def _later(self, answer: Ready | Coroutine[Any, Any, Answer], body: StreamReader) -> None:
        if not isinstance(answer, (Answer, bytes)):
            try:
                answer = await answer
            except Exception as fault:
                answer = self._service.broken(fault)
                if self._begun:
                    self.reset()
        self.begin(answer)
        try:
            async with asyncio.timeout(LINGER):
                await body.wait_eof()
        except TimeoutError:
            self._keeps = False
        self.task = None
        self._end(answer)

    def _end(self, answer: Ready) -> None:
        self.begin(answer)
        if self._keeps and (self._asked or not self._no_more):  # its end may have come while it was answered
            self._quiet_since = self._loop.time()
            self._go_on()
        else:
            self.part()

    # --- for the service

    def begin(self, answer: Ready) -> None:
        """Send the header of an answer to the request that is answered now, and the body that is at hand. Once.

        Octets are the whole answer to a request without fields (`PLAIN`), on a connection that is kept.
        """
        if self._begun or self.transport is None:
            return
        request = self._request
        self._begun = True
        if isinstance(answer, bytes):
            self._keeps = bool(self._asked) or not self._no_more
            self.transport.write(answer if self._keeps else answer.replace(END, CLOSING, 1))
            return
        self._keeps = not answer.closes and (bool(self._asked) or not self._no_more)
        head = answer.head(keeps=self._keeps, says_so=request is not None and request.version == HttpVersion10)
        self.transport.write(head if request is not None and request.method == "HEAD" else head + answer.body)

    async def received(self, most: int) -> bytes:
        """Wait for the first octets of the body of the request that is answered now."""
        if self.transport and self._request and "100-continue" in self._request.headers.get("Expect", "").lower():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while len(data) < most and not self._body.at_eof():
                    data += await self._body.readany()
        return data[:most]

    async def drained(self) -> asyncio.Transport:
        """Wait until the kernel has all that was written: there is no room for it elsewhere. Raises OSError where
        the connection is lost."""
        while self._is_blocked:
            await self._drain_helper()
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "the client closed the connection")
        return self.transport

    def finish(self) -> None:
        """Answer nothing more than what has begun."""
        self._no_more = True
        self._asked.clear()
        if self.task is None:
            self.close()

    def part(self) -> None:
        """Close when the client has: what it sends to a closed connection resets that, and takes what it has not
        read of the answer (RFC 9112 section 9.6). What it sends meanwhile is dropped."""
        self._no_more = True
        is_over = self._has_ended or self.transport is None or self.transport.is_closing()
        if is_over or not self._crowd.part(self):
            self.close()
            return
        assert self.transport is not None
        self._parted = True
        self._asked.clear()
        self._forget_idle()
        self._idle = self._loop.call_later(LINGER, self.close)
        self._resume_transport_reading()  # if a body has paused it
        self.transport.write_eof()

    def close(self) -> None:
        """Close when the kernel has all that was written."""
        self._no_more = True
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """End the connection at once. What waits in the kernel is dropped: it would be kept for as long as the
        client likes, and a client that is told nothing could take a part for the whole."""
        self._no_more = True
        self._asked.clear()
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
                )
            self.transport.abort()

    # --- who keeps us waiting

    def _forget_idle(self) -> None:
        if self._idle:
            self._idle.cancel()
            self._idle = None

    def _look_idle(self) -> None:
        if self._asked or self.task or self._is_blocked:
            self._quiet_since = self._loop.time()
        left = self._quiet_since + self._limits.head - self._loop.time()
        if left <= 0:
            self.close()
        else:
            self._idle = self._loop.call_later(left, self._look_idle)

    def _watch(self) -> None:
        if self.transport is not None:
            held = unacknowledged(self.transport.get_extra_info("socket"))
            self._unread = held + self.transport.get_write_buffer_size()
            self._deadline = self._loop.call_later(self._limits.stall, self._look)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _look(self) -> None:
        before = self._unread
        self._watch()
        if self.transport is not None and before - self._unread < LEAST:
            self._service.count("stalled")
            self.reset()

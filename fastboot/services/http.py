"""HTTP: the one namespace for loaders, installers and package managers (RFC 9110, 9112).

Requests are read by aiohttp's parser (`http_connections`). Bodies of files leave by sendfile (`pump`), small ones
in one write with their header. Clients that are strict are pleased: no redirects, every answer with its length,
connections kept open (`protocol-facts.md` A6 and A10).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Address
from typing import Any, Final, Protocol

import structlog

from fastboot import config, model
from fastboot._core import Source, http_answer
from fastboot.boot.catalog import SMALL
from fastboot.boot.tree import Entry
from fastboot.model import Client, Event, FastbootError, Reason, Refusal
from fastboot.services.descriptors import PER_TRANSFER, Descriptors
from fastboot.services.files_sent import Sent
from fastboot.services.http_answer import Answer, Ready, notice
from fastboot.services.http_body import Piece, at_hand, multipart
from fastboot.services.http_connections import PLAIN, STANDARD, Connection, Crowd, Limits, Request
from fastboot.services.http_message import (
    MAX_SAID,
    content_type,
    framing_fault,
    path_of,
    precondition,
    ranges,
    said_text,
    version_of,
)
from fastboot.services.http_pages import page, printable
from fastboot.services.links import Link, open_tcp
from fastboot.services.node_files import is_callback, is_of_nodes, masked
from fastboot.services.pump import Pump, Sending, start_pump
from fastboot.services.source_file import FAULTS
from fastboot.services.turns import Turns
from fastboot.watch.events import Batch, emit_each

BACKLOG: Final = 4096
"""Connections that wait to be accepted: a rack is switched on in one second. The kernel cuts it to somaxconn."""
LISTING: Final = 65_536
STOPPED: Final = "the server stopped"
LAST_ANSWERS: Final = 1.0
"""Seconds of a drain, at most, for answers that are no transfers: small ones, listings, files being opened."""
STATUS: Final[Mapping[Reason, int]] = {
    Reason.MISSING: 404,
    Reason.OUTSIDE: 404,
    Reason.FORBIDDEN: 403,
    Reason.SPECIAL: 403,
    Reason.DIRECTORY: 404,
    Reason.BROKEN: 500,
    Reason.BUSY: 503,
    Reason.CROWDED: 503,
}


class Catalog(Protocol):
    """The one namespace as HTTP sees it."""

    def resolve(self, path: str, client: Client) -> Source | Refusal | Awaitable[Source | Refusal]: ...
    def list(self, path: str, client: Client) -> Sequence[Entry] | Refusal:
        """Called in a thread of the service's own: a directory may be large."""


class Reports(Protocol):
    """Who takes what installers say of their end."""

    def report(self, path: str, client: Client, text: str) -> Awaitable[str] | Refusal: ...


@dataclass(slots=True)
class Asking:
    """Who asks for what."""

    connection: Connection
    request: Request
    client: Client
    path: str


@dataclass(slots=True)
class Transfer:
    """An answer on its way."""

    client: Client
    path: str
    size: int
    sent: int = 0
    sending: Sending | None = None

    @property
    def octets(self) -> int:
        return self.sent + (self.sending.octets if self.sending else 0)


def open_sockets(settings: config.Http, links: Sequence[Link]) -> list[socket.socket]:
    """Bind one TCP socket to each address of the links. Raises FastbootError."""
    with contextlib.ExitStack() as undo:
        addresses = dict.fromkeys(own.ip for link in links for own in link.addresses)
        sockets = [undo.enter_context(open_tcp("http.port", address, settings.port)) for address in addresses]
        undo.pop_all()
    return sockets


class HttpService:
    """Serves a catalog by HTTP. For the thread of one asyncio loop.

    Events: `http.sent` (a GET was answered with the whole or a part of a file; path, bytes, seconds),
    `http.missing` (path), `http.failed` (path, reason, and how much had left) and `http.refused` (a limit held,
    503; reason, at most one a second each). Everything else is counted.
    """

    def __init__(
        self,
        settings: config.Http,
        links: Sequence[Link],
        catalog: Catalog,
        emit: Callable[[Event], None],
        sockets: Sequence[socket.socket] | None = None,
        mac_of: Callable[[IPv4Address], str | None] = lambda address: None,
        limits: Limits = STANDARD,
        pump: Pump | None = None,
        descriptors: Descriptors | None = None,
        reports: Reports | None = None,
        emit_all: Callable[[Batch], None] | None = None,
    ) -> None:
        """`pump` stays its owner's, `descriptors` are shared; without them the service has its own.

        `emit_all` is given what storms of machines make many of, to read or not; without it, `emit` is given each.
        """
        self._reports = reports
        self._settings, self._links, self._catalog, self._emit = settings, links, catalog, emit
        self._sockets = list(sockets or ())
        self._mac_of, self._limits = mac_of, limits
        self._files_sent = Sent("http.sent", _shown, emit_all or partial(emit_each, emit))
        self._counters: Counter[str] = Counter()
        self._refused: dict[str, float] = {}
        self._descriptors = descriptors or Descriptors()
        self._crowd = Crowd(settings, self._descriptors)
        self._transfers: dict[int, Transfer] = {}
        self._servers: list[asyncio.Server] = []
        self._pump, self._own_pump = pump, pump is None
        self._lister: ThreadPoolExecutor | None = None
        self._gone = "the client closed the connection"
        self._log = structlog.get_logger(component="http")

    async def start(self) -> None:
        """Serve from now on. Raises FastbootError where a port is taken."""
        sockets = self._sockets or open_sockets(self._settings, self._links)
        loop = asyncio.get_running_loop()
        self._pump, turns = self._pump or start_pump(), Turns()
        self._lister = ThreadPoolExecutor(1, "http-list")

        def connection() -> Connection:
            return Connection(self, self._crowd, self._limits, turns)

        self._servers = [await loop.create_server(connection, sock=sock, backlog=BACKLOG) for sock in sockets]

    async def stop(self, drain: float = 0) -> None:
        """Refuse new clients, let answers on their way finish for `drain` seconds, then end all."""
        if self._lister is None or self._pump is None:
            return
        for server in self._servers:
            server.close()
        self._crowd.finish()
        deadline = time.monotonic() + drain
        while self._transfers and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._gone = STOPPED
        if self._own_pump:
            self._pump.close()
        await self._crowd.end(min(LAST_ANSWERS, max(0.0, deadline - time.monotonic())))
        self._files_sent.tell()
        self._lister.shutdown(wait=False, cancel_futures=True)
        self._lister = None

    def reload(self, settings: config.Http) -> None:
        """Take new limits; connections that are open stay. The port needs a restart."""
        self._settings = self._crowd.settings = settings

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the service listens."""
        return [sock.getsockname()[:2] for server in self._servers for sock in server.sockets]

    def counters(self) -> dict[str, int]:
        """Return counts since the start; `connections_open` and `transfers_open` are of now."""
        counts = dict(self._counters)
        counts["connections_open"] = len(self._crowd)
        counts["transfers_open"] = len(self._transfers)
        return counts

    def transfers(self) -> list[model.Transfer]:
        """Return the files that are on their way."""
        return [
            model.Transfer("http", each.client.address, each.path, each.octets, each.size, each.client.mac)
            for each in self._transfers.values()
        ]

    # --- connections

    def count(self, name: str) -> None:
        """Count what happened to a connection."""
        self._counters[name] += 1

    # --- requests

    def answer(self, request: Request, connection: Connection) -> Ready | Coroutine[Any, Any, Answer]:
        """Answer one request: at once where nothing has to be waited for."""
        self._counters["requests"] += 1
        path: str | None = request.path
        if request.headers is not PLAIN:
            if fault := _fault(request):
                return self.malformed(fault)
            path = path_of(request.path)
        if excess := self._crowd.excess(connection.peer):
            return self.excess(excess, connection.peer)
        takes = ("GET", "POST") if self._reports and path and is_callback(path) else ("GET", "HEAD")
        if request.method not in takes:
            self._counters["refused_method"] += 1
            return notice(405, f"this is for {' and '.join(takes)} only", {"Allow": ", ".join(takes)})
        if path is None:
            return self.malformed("this is no path")
        mac, peeks = self._mac_of(_address(connection.peer)), request.method == "HEAD"
        client = _client(connection.peer, connection.own, mac, peeks)
        if "POST" in takes:
            return self._report(Asking(connection, request, client, path))
        found = self._catalog.resolve(path, client)
        if (
            request.headers is PLAIN
            and isinstance(found, Source)
            and found.size <= SMALL
            and (kind := _plain_type(path))
        ):
            octets = http_answer(found, kind, int(time.time()))
            if octets is not None:
                self._counters["status_200"] += 1
                self._sent(connection.peer, client, path, found.size, 0.0)
                return octets
        asking = Asking(connection, request, client, path)
        return self._found(asking, found) if isinstance(found, (Source, Refusal)) else self._wait(asking, found)

    async def _wait(self, asking: Asking, found: Awaitable[Source | Refusal]) -> Answer:
        answer = self._found(asking, await found)
        return answer if isinstance(answer, Answer) else await answer

    def _found(self, asking: Asking, found: Source | Refusal) -> Answer | Coroutine[Any, Any, Answer]:
        if isinstance(found, Source):
            return self._send(asking, found)
        if found.reason is Reason.DIRECTORY:
            return self._list(asking)
        if found.reason is Reason.MISSING:  # installers look for files that need not be there
            self._counters["missing"] += 1
            self._tell("http.missing", asking)
        else:
            self._failed(asking, found.text)
        return notice(STATUS[found.reason], found.text)

    async def _report(self, asking: Asking) -> Answer:
        """Answer an installer that says how it ended: only when that is on disk."""
        assert self._reports is not None
        body = await asking.connection.received(MAX_SAID) if asking.request.method == "POST" else b""
        said = said_text(asking.request.path, asking.request.headers.get("Content-Type", ""), body)
        found = self._reports.report(asking.path, asking.client, said)
        if isinstance(found, Refusal):
            answer = self._found(asking, found)
            assert isinstance(answer, Answer)
            return answer
        try:
            answer = notice(200, await found)
        except FastbootError as error:
            self._failed(asking, str(error))
            return notice(503, "this can not be written now")
        self._counters["reports"] += 1
        return answer

    def excess(self, why: str, peer: str) -> Answer:
        """Turn away who would be one too many; tell of each reason at most once a second."""
        self.count(f"refused_{why.replace(' ', '_')}")
        now = time.monotonic()
        if now - self._refused.get(why, float("-inf")) >= 1:
            self._refused[why] = now
            details = {"peer": peer, "reason": why}
            self._emit(Event(time.time(), "http.refused", mac=self._mac_of(_address(peer)), details=details))
        return notice(503, why, closes=True)

    def malformed(self, text: str, status: int = 400) -> Answer:
        """Answer what is no request, and close: what follows may be part of it."""
        self._counters["malformed"] += 1
        return notice(status, text, closes=True)

    def broken(self, fault: BaseException) -> Answer:
        """Answer a request that a fault of ours ended."""
        self._log.error("fault in answering a request", exc_info=fault)
        return notice(500, "internal error", closes=True)

    async def _list(self, asking: Asking) -> Answer:
        # Beside the loop: half a second for the largest.
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._lister, self._page, asking.path, asking.client)
        if isinstance(body, Refusal):
            return notice(STATUS[body.reason], body.text)
        self._counters["listings"] += 1
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, body)

    def _page(self, path: str, client: Client) -> bytes | Refusal:
        entries = self._catalog.list(path, client)
        if isinstance(entries, Refusal):
            return entries
        if len(entries) > LISTING:
            return Refusal(Reason.BROKEN, f"more than {LISTING} entries")
        return "".join(page(path, entries)).encode("utf-8", "replace")

    # --- files

    def _send(self, asking: Asking, source: Source) -> Answer | Coroutine[Any, Any, Answer]:
        version, headers = version_of(source), asking.request.headers
        fields = {
            "ETag": version.tag,
            "Last-Modified": version.last_modified,
            "Accept-Ranges": "bytes",
            "Content-Type": content_type(asking.path),
        }
        if is_of_nodes(asking.path):
            fields["Cache-Control"] = "no-store"
        if status := precondition(headers, version):
            self._counters[f"status_{status}"] += 1
            return Answer(status, fields if status == 304 else {**fields, "Content-Type": "text/plain"})
        parts = ranges(headers, version, source.size) if asking.request.method == "GET" else None
        if parts is None:
            return self._transfer(asking, 200, fields, [source])
        if not parts:
            self._counters["status_416"] += 1
            return Answer(416, {"Content-Range": f"bytes */{source.size}", "Content-Type": "text/plain"})
        if len(parts) == 1:
            ((start, end),) = parts
            fields["Content-Range"] = f"bytes {start}-{end - 1}/{source.size}"
            return self._transfer(asking, 206, fields, [source.slice(start, end - start)])
        boundary = secrets.token_hex(12)
        pieces = list(multipart(source, parts, boundary, fields["Content-Type"]))
        fields["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        return self._transfer(asking, 206, fields, pieces)

    def _transfer(
        self, asking: Asking, status: int, fields: Mapping[str, str], pieces: Sequence[Piece]
    ) -> Answer | Coroutine[Any, Any, Answer]:
        size = sum([piece.size if isinstance(piece, Source) else len(piece) for piece in pieces])
        self._counters[f"status_{status}"] += 1
        if asking.request.method == "HEAD":
            return Answer(status, fields, size=size)
        if size > SMALL:
            return self._deliver(asking, Answer(status, fields, size=size), pieces, size)
        body = at_hand(pieces)
        if body is None:
            return self._deliver(asking, Answer(status, fields), pieces, size)
        self._sent(asking.connection.peer, asking.client, asking.path, size, 0.0)
        return Answer(status, fields, body)

    async def _deliver(self, asking: Asking, answer: Answer, pieces: Sequence[Piece], size: int) -> Answer:
        held = PER_TRANSFER if size > SMALL else 0
        if excess := self._descriptors.lacks(held, asking.connection.peer):
            return self.excess(excess, asking.connection.peer)
        self._descriptors.take(held, asking.connection.peer)
        began = time.monotonic()
        transfer = self._transfers[id(asking)] = Transfer(asking.client, _shown(asking.path), size)
        try:
            if size > SMALL:
                await self._stream(asking.connection, answer, pieces, transfer)
            else:
                answer.body = b"".join([await self._read(piece) for piece in pieces])
                transfer.sent = size
        except OSError as error:
            reason = self._reason(error)
            self._failed(asking, reason, bytes=transfer.octets)
            if size <= SMALL:
                return notice(503 if error.errno == errno.ESTALE else 500, reason)
            asking.connection.reset()
            return answer
        except asyncio.CancelledError:
            if transfer.octets < size:
                self._failed(asking, self._gone, bytes=transfer.octets)
                asking.connection.reset()
            else:  # it has the last octet, and did not wait until we hear of that
                self._sent(asking.connection.peer, asking.client, asking.path, size, time.monotonic() - began)
            raise
        finally:
            del self._transfers[id(asking)]
            self._descriptors.give_back(held, asking.connection.peer)
        self._sent(asking.connection.peer, asking.client, asking.path, size, time.monotonic() - began)
        return answer

    async def _read(self, piece: Piece) -> bytes:
        if isinstance(piece, bytes):
            return piece
        data = await asyncio.get_running_loop().run_in_executor(None, piece.read)
        if not piece.unchanged():
            raise OSError(errno.ESTALE, "changed")
        return data

    async def _stream(
        self, connection: Connection, answer: Answer, pieces: Sequence[Piece], transfer: Transfer
    ) -> None:
        assert self._pump is not None
        connection.begin(answer)
        for piece in pieces:
            transport = await connection.drained()
            if isinstance(piece, bytes):
                transport.write(piece)
                transfer.sent += len(piece)
                continue
            transfer.sending = self._pump.send(transport.get_extra_info("socket"), piece, self._limits.stall)
            try:
                await asyncio.shield(transfer.sending.done)
            except asyncio.CancelledError:
                transfer.sending.cancel()
                with contextlib.suppress(OSError):
                    await transfer.sending.done  # only then it is known how much has left
                raise
            transfer.sent, transfer.sending = transfer.sent + piece.size, None

    def _reason(self, error: OSError) -> str:
        if error.errno == errno.ETIMEDOUT:
            return "the client was too slow"
        if error.errno == errno.ECANCELED:
            return STOPPED
        return FAULTS.get(error.errno or 0, self._gone)

    def _sent(self, peer: str, client: Client, path: str, size: int, seconds: float) -> None:
        self._counters["sent"] += 1
        self._counters["bytes"] += size
        self._files_sent.add(peer, client.mac, path, size, seconds)

    def _failed(self, asking: Asking, reason: str, **facts: object) -> None:
        self._counters["failed"] += 1
        self._tell("http.failed", asking, reason=reason, **facts)

    def _tell(self, kind: str, asking: Asking, **details: object) -> None:
        self._files_sent.tell()  # which was before
        facts = {"peer": asking.connection.peer, "path": _shown(asking.path), **details}
        self._emit(Event(time.time(), kind, mac=asking.client.mac, details=facts))


_address = lru_cache(1024)(IPv4Address)


def _shown(path: str) -> str:
    return printable(masked(path))


def _fault(request: Request) -> str | None:
    headers = request.headers
    return framing_fault(request.version, headers.getall("Host", ()), "Transfer-Encoding" in headers)


@lru_cache(1024)
def _client(peer: str, own: str, mac: str | None, peeks: bool) -> Client:
    return Client(IPv4Address(peer), IPv4Address(own), "http", mac, peeks)


@lru_cache(4096)
def _plain_type(path: str) -> bytes | None:
    """Return the media type of a file; None for one of a node, of which more is said."""
    return None if is_of_nodes(path) else content_type(path).encode("ascii")

"""HTTP: the one namespace for loaders, installers and package managers (RFC 9110, 9112).

aiohttp speaks the protocol. Bodies of files leave by sendfile (`pump`), small ones in one write with their header.
Clients that are strict are pleased: no redirects, every answer with its length, connections kept open
(`protocol-facts.md` A6 and A10).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final, Protocol

import structlog
from aiohttp import HttpVersion11, web

from fastboot import config, model
from fastboot._core import Source
from fastboot.boot.tree import Entry
from fastboot.model import Client, Event, Reason, Refusal
from fastboot.services.descriptors import EXCESS, PER_TRANSFER, Descriptors
from fastboot.services.http_answer import Answer, notice
from fastboot.services.http_connections import STANDARD, Connection, Crowd, Limits, Manager, reset
from fastboot.services.http_message import content_type, framing_fault, path_of, precondition, ranges, version_of
from fastboot.services.http_pages import page, printable
from fastboot.services.links import Link, open_tcp
from fastboot.services.pump import Pump, Sending, start_pump
from fastboot.services.source_file import FAULTS, SMALL
from fastboot.services.turns import Turns

BACKLOG: Final = 4096
"""Connections that wait to be accepted: a rack is switched on in one second. The kernel cuts it to somaxconn."""
LISTING: Final = 65_536
STOPPED: Final = "the server stopped"
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
    `http.missing` (path) and `http.failed` (path, reason, and how much had left). Everything else is counted.
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
    ) -> None:
        """`pump` stays its owner's, `descriptors` are shared; without them the service has its own."""
        self._settings, self._links, self._catalog, self._emit = settings, links, catalog, emit
        self._sockets = list(sockets or ())
        self._mac_of, self._limits = mac_of, limits
        self._counters: Counter[str] = Counter()
        self._crowd = Crowd(settings)
        self.descriptors = descriptors or Descriptors()
        self._transfers: dict[int, Transfer] = {}
        self._servers: list[asyncio.Server] = []
        self._manager: Manager | None = None
        self._pump, self._own_pump = pump, pump is None
        self._lister: ThreadPoolExecutor | None = None
        self._turns: Turns | None = None
        self._gone = "the client closed the connection"
        self._log = structlog.get_logger(component="http")

    async def start(self) -> None:
        """Serve from now on. Raises FastbootError where a port is taken."""
        sockets = self._sockets or open_sockets(self._settings, self._links)
        loop = asyncio.get_running_loop()
        self._pump, self._turns = self._pump or start_pump(), Turns()
        self._lister = ThreadPoolExecutor(1, "http-list")
        self._manager = Manager(self, self._crowd, self._limits)
        self._servers = [await loop.create_server(self._manager, sock=sock, backlog=BACKLOG) for sock in sockets]

    async def stop(self, drain: float = 0) -> None:
        """Refuse new clients, let answers on their way finish for `drain` seconds, then end all."""
        if self._manager is None or self._pump is None:
            return
        for server in self._servers:
            server.close()
        self._manager.pre_shutdown()
        deadline = time.monotonic() + drain
        while self._transfers and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._gone = STOPPED
        if self._own_pump:
            self._pump.close()
        await self._manager.shutdown(1.0)
        if self._lister:
            self._lister.shutdown(wait=False, cancel_futures=True)
        self._manager = None

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

    async def answer(self, request: web.BaseRequest) -> Answer:
        """Answer one request. For aiohttp."""
        assert self._turns is not None  # there is no request before `start`
        await self._turns.wait()
        response = await self._answer(request)
        if "Upgrade" in request.headers:
            response.force_close()  # aiohttp's parser takes nothing that follows for a request
        assert isinstance(request.protocol, Connection)
        request.protocol.answered()
        return response

    async def _answer(self, request: web.BaseRequest) -> Answer:
        self._counters["requests"] += 1
        hosts = request.headers.getall("Host", ())
        if fault := framing_fault(request._version, hosts, "Transfer-Encoding" in request.headers):
            return self.malformed(request, fault)
        connection = request.protocol
        assert isinstance(connection, Connection)
        if connection.peer is None:
            raise ConnectionResetError(errno.ECONNRESET, "the client closed the connection")
        if excess := self._crowd.excess(connection.peer):
            return self._excess(excess)
        if request.method not in ("GET", "HEAD"):
            self._counters["refused_method"] += 1
            return notice(405, "this server is for reading", {"Allow": "GET, HEAD"})
        path = path_of(request.raw_path)
        if path is None:
            return self.malformed(request, "this is no path")
        address = _address(connection.peer)
        client = Client(address, _address(connection.own), "http", self._mac_of(address))
        found = await self._resolve(path, client)
        if isinstance(found, Source):
            return await self._send(request, path, client, found)
        if found.reason is Reason.DIRECTORY:
            return await self._list(path, client)
        if found.reason is Reason.MISSING:  # installers look for files that need not be there
            self._counters["missing"] += 1
            self._tell("http.missing", client, path)
        else:
            self._failed(client, path, found.text)
        return notice(STATUS[found.reason], found.text)

    def _excess(self, why: str) -> Answer:
        self.count(f"refused_{why.replace(' ', '_')}")
        response = notice(503, why)
        response.force_close()
        return response

    def malformed(self, request: web.BaseRequest, text: str, status: int = 400) -> Answer:
        """Answer what is no request, and close: what follows may be part of it."""
        self._counters["malformed"] += 1
        request._version = HttpVersion11  # aiohttp repeats in its answer whatever the client says it speaks
        response = notice(status, text)
        response.force_close()
        return response

    def broken(self, request: web.BaseRequest, fault: BaseException | None) -> Answer:
        """Answer a request that a fault of ours ended."""
        self._log.error("fault in answering a request", exc_info=fault)
        if request.writer.output_size:
            raise ConnectionResetError(errno.ECONNRESET, "the answer had begun")
        response = notice(500, "internal error")
        response.force_close()
        return response

    async def _resolve(self, path: str, client: Client) -> Source | Refusal:
        found = self._catalog.resolve(path, client)
        return found if isinstance(found, (Source, Refusal)) else await found

    async def _list(self, path: str, client: Client) -> Answer:
        # Beside the loop: half a second for the largest.
        body = await asyncio.get_running_loop().run_in_executor(self._lister, self._page, path, client)
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

    async def _send(self, request: web.BaseRequest, path: str, client: Client, source: Source) -> Answer:
        version = version_of(source)
        headers = {
            "ETag": version.tag,
            "Last-Modified": version.last_modified,
            "Accept-Ranges": "bytes",
            "Content-Type": content_type(path),
        }
        if status := precondition(request.headers, version):
            self._counters[f"status_{status}"] += 1
            return Answer(status, headers if status == 304 else {**headers, "Content-Type": "text/plain"})
        parts = ranges(request.headers, version, source.size) if request.method == "GET" else None
        if parts is None:
            return await self._transfer(request, path, client, 200, headers, [source])
        if not parts:
            self._counters["status_416"] += 1
            return Answer(416, {"Content-Range": f"bytes */{source.size}", "Content-Type": "text/plain"})
        if len(parts) == 1:
            ((start, end),) = parts
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{source.size}"
            return await self._transfer(request, path, client, 206, headers, [source.slice(start, end - start)])
        boundary = secrets.token_hex(12)
        pieces = list(_multipart(source, parts, boundary, headers["Content-Type"]))
        headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        return await self._transfer(request, path, client, 206, headers, pieces)

    async def _transfer(
        self, request: web.BaseRequest, path: str, client: Client, status: int, headers: Mapping[str, str],
        pieces: Sequence[Source | bytes],
    ) -> Answer:  # fmt: skip
        size = sum(piece.size if isinstance(piece, Source) else len(piece) for piece in pieces)
        self._counters[f"status_{status}"] += 1
        response = None if size <= SMALL else Answer(status, headers, size=size)
        if request.method == "HEAD":
            return response or Answer(status, headers, size=size)
        held = 0 if response is None else PER_TRANSFER
        if not self.descriptors.has(held):
            return self._excess(EXCESS)
        self.descriptors.take(held)
        began = time.monotonic()
        transfer = self._transfers[id(request)] = Transfer(client, printable(path), size)
        try:
            if response is None:
                body = b"".join([await self._read(piece) for piece in pieces])
                response = Answer(status, headers, body)
                transfer.sent = size
            else:
                await self._stream(request, response, pieces, transfer)
        except OSError as error:
            reason = self._reason(error)
            self._failed(client, path, reason, bytes=transfer.octets)
            if response is None or not response.prepared:
                return notice(503 if error.errno == errno.ESTALE else 500, reason)
            if request.transport is not None:
                reset(request.transport)
            return response
        except asyncio.CancelledError:
            if transfer.octets < size:
                self._failed(client, path, self._gone, bytes=transfer.octets)
            else:  # it has the last octet, and did not wait until we hear of that
                self._sent(client, path, size, began)
            raise
        finally:
            del self._transfers[id(request)]
            self.descriptors.give_back(held)
        self._sent(client, path, size, began)
        return response

    async def _read(self, piece: Source | bytes) -> bytes:
        if isinstance(piece, bytes):
            return piece
        data = piece.at_hand()
        if data is None:
            data = await asyncio.get_running_loop().run_in_executor(None, piece.read)
        if not piece.unchanged():
            raise OSError(errno.ESTALE, "changed")
        return data

    async def _stream(
        self, request: web.BaseRequest, response: Answer, pieces: Sequence[Source | bytes],
        transfer: Transfer,
    ) -> None:  # fmt: skip
        assert self._pump is not None
        writer = await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
                transfer.sent += len(piece)
                continue
            transport = request.transport
            # The connection's write buffer has no room at all (`Manager`), so drained means empty.
            while writer is not None and transport is not None and transport.get_write_buffer_size():
                await writer.drain()
            if transport is None or transport.is_closing():
                raise ConnectionResetError(errno.ECONNRESET, "the client closed the connection")
            transfer.sending = self._pump.send(transport.get_extra_info("socket"), piece, self._limits.stall)
            try:
                await asyncio.shield(transfer.sending.done)
            except asyncio.CancelledError:
                transfer.sending.cancel()
                with contextlib.suppress(OSError):
                    await transfer.sending.done  # only then it is known how much has left
                raise
            transfer.sent, transfer.sending = transfer.sent + piece.size, None
        await response.write_eof()

    def _reason(self, error: OSError) -> str:
        if error.errno == errno.ETIMEDOUT:
            return "the client was too slow"
        if error.errno == errno.ECANCELED:
            return STOPPED
        return FAULTS.get(error.errno or 0, self._gone)

    def _sent(self, client: Client, path: str, size: int, began: float) -> None:
        self._counters["sent"] += 1
        self._counters["bytes"] += size
        self._tell("http.sent", client, path, bytes=size, seconds=round(time.monotonic() - began, 3))

    def _failed(self, client: Client, path: str, reason: str, **facts: object) -> None:
        self._counters["failed"] += 1
        self._tell("http.failed", client, path, reason=reason, **facts)

    def _tell(self, kind: str, client: Client, path: str, **details: object) -> None:
        facts = {"peer": str(client.address), "path": printable(path), **details}
        self._emit(Event(time.time(), kind, mac=client.mac, details=facts))


_address = lru_cache(1024)(IPv4Address)


def _multipart(
    source: Source, parts: Sequence[tuple[int, int]], boundary: str, type_: str
) -> Iterator[Source | bytes]:
    for start, end in parts:
        fields = f"Content-Type: {type_}\r\nContent-Range: bytes {start}-{end - 1}/{source.size}"
        yield f"\r\n--{boundary}\r\n{fields}\r\n\r\n".encode()
        yield source.slice(start, end - start)
    yield f"\r\n--{boundary}--\r\n".encode()

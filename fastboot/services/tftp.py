"""TFTP: the native engine asks, this module answers with what the one namespace resolves to."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import quote

import structlog

from fastboot import config
from fastboot._core import Engine, Interfaces, Source, TftpEnd, TftpNotice, TftpRequest
from fastboot.boot.firmware import SERVER
from fastboot.boot.tree import refusal_of
from fastboot.model import Client, Event, FastbootError, Reason, Refusal, Transfer
from fastboot.services.links import Link, open_udp
from fastboot.services.node_files import masked
from fastboot.services.tftp_files import MAX_TEXT, Texts
from fastboot.services.tftp_windows import Windows

log = structlog.get_logger(component="tftp")

Resolve = Callable[[str, Client], Source | Refusal | Awaitable[Source | Refusal]]

DATA_SOCKETS = 4
"""Per engine: enough that consecutive transfers of a client differ, few enough that a batch holds many clients."""
READERS = 2
"""Threads per engine that read cold files: a slow disk is to hold up no file of another."""
ALARM_EVERY = 10.0
"""Seconds between two events about the same want of this host."""
# U-Boot starts its download over, for ever, at any ERROR but 1 and 2.
CODES: Final = {Reason.MISSING: 1, Reason.DIRECTORY: 1}
NOT_SERVED = 2
TOO_BIG: Final = Refusal(Reason.FORBIDDEN, "too big for TFTP here")
KINDS: Final = {
    "done": "tftp.sent",
    "unconfirmed": "tftp.sent",
    "probe": "tftp.probed",
    "cancelled": "tftp.cancelled",
    "replaced": "tftp.replaced",
    "stopped": "tftp.stopped",
    "evicted": "tftp.evicted",
    "gone": "tftp.gone",
}
"""The event for each outcome of a transfer; any other is `tftp.failed`."""
DROPPED: Final = (
    "requests came faster than they were taken, and the kernel dropped some;"
    " give the sockets more room: sysctl net.core.rmem_max=8388608, then a restart; or raise tftp.threads"
)
BUSY: Final = (
    "requests wait until machines ask again; where too many files are open, raise LimitNOFILE of the service"
)
SO_RXQ_OVFL = 40  # linux/socket.h: tell with each packet how many were dropped before it
IP_RECVERR = 11  # linux/in.h: keep what ICMP says of packets


@dataclass(frozen=True, slots=True)
class Sockets:
    """The bound sockets of one engine. `data` is empty where everything leaves from the listening port."""

    listen: socket.socket
    data: tuple[socket.socket, ...]

    def close(self) -> None:
        for each in (self.listen, *self.data):
            each.close()


def open_sockets(settings: config.Tftp) -> tuple[Sockets, ...]:
    """Bind the sockets of every engine. Raises FastbootError where a port is taken or forbidden."""
    ports = list(settings.data_ports) if settings.data_ports else None
    share = DATA_SOCKETS if ports is None else min(DATA_SOCKETS, max(1, len(ports) // settings.threads))
    engines = []
    with ExitStack() as undo:
        port = settings.port
        for number in range(settings.threads):
            listen = undo.enter_context(open_udp("tftp.port", port, shared=number > 0))
            # Not before it is bound: the first would share the port with another server of the same user.
            listen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = listen.getsockname()[1]
            data = []
            for _ in range(0 if settings.single_port else share):
                if (each := _udp_within(ports)) is None:
                    break
                data.append(undo.enter_context(each))
            if not data and not settings.single_port:
                raise FastbootError(
                    f"tftp.data_ports: no free port left in {settings.data_ports}; "
                    f"{settings.threads} threads want {settings.threads * DATA_SOCKETS} ports; "
                    "name more of them, or set tftp.threads"
                )
            for each in (listen, *data):
                each.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
                each.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            engines.append(Sockets(listen, tuple(data)))
        undo.pop_all()
    return tuple(engines)


def _udp_within(ports: list[int] | None) -> socket.socket | None:
    if ports is None:
        return open_udp("tftp.data_ports", 0)
    while ports:
        try:
            return open_udp("tftp.data_ports", ports.pop(0))
        except FastbootError:
            continue
    return None


@dataclass(slots=True)
class Asked:
    """One request, or the transfer that came of it; `path` is for people. Holding the source keeps its map shared
    with every other client of the file."""

    peer: str
    port: int
    client: Client
    path: str
    source: Source | None = None


address_of = lru_cache(maxsize=4096)(IPv4Address)
"""Parsing the text of an address costs as much as the rest of a request."""


class TftpService:
    """Serves what `resolve` gives to any TFTP client (RFC 1350, 2347, 2348, 2349, 7440).

    `resolve` may return an awaitable. `mac_of` names the machine behind an address where it is known. The sockets
    become the service's own and are closed by stop(). `http` is the URL of the same tree, where HTTP serves it.
    """

    def __init__(
        self,
        settings: config.Tftp,
        links: Sequence[Link],
        resolve: Resolve,
        emit: Callable[[Event], None],
        sockets: Sequence[Sockets],
        mac_of: Callable[[IPv4Address], str | None] = lambda address: None,
        *,
        http: str | None = None,
    ) -> None:
        self._settings = settings
        self._http = http
        self._resolve = resolve
        self._emit = emit
        self._mac_of = mac_of
        self._sockets = tuple(sockets)
        # A machine talks to its own addresses through the loopback interface.
        mtus = {socket.if_nametoindex("lo"): 65536} | {link.index: link.mtu for link in links}
        interfaces = Interfaces(list(mtus.items()))
        self._engines = tuple(
            Engine(
                [each.listen],
                each.data,
                interfaces,
                max_transfers=settings.max_transfers,
                max_blksize=settings.max_blksize,
                max_windowsize=settings.max_windowsize,
            )
            for each in self._sockets
        )
        self._threads: list[threading.Thread] = []
        self._readers: list[threading.Thread] = []
        self._under_way: dict[Engine, dict[int, Asked]] = {engine: {} for engine in self._engines}
        self._by_address: dict[str, int] = {}
        self._texts = Texts()
        self._windows = Windows()
        self._answers: set[asyncio.Task[None]] = set()
        self._drained: dict[Engine, asyncio.Event] = {}
        self._refused: Counter[str] = Counter()
        self._alarmed: dict[str, float] = {}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for number, engine in enumerate(self._engines):
            self._drained[engine] = asyncio.Event()
            loop.add_reader(engine.fileno(), self._take_events)
            self._threads.append(threading.Thread(target=engine.run, name=f"tftp-{number}", daemon=True))
            for reader in range(READERS):
                name = f"tftp-{number}-reader-{reader}"
                self._readers.append(threading.Thread(target=engine.read, name=name, daemon=True))
        for thread in (*self._threads, *self._readers):
            thread.start()

    async def stop(self, drain: float = 0) -> None:
        """Take no new requests, give the transfers under way `drain` seconds, then fall silent: U-Boot would
        start over at an ERROR."""
        for engine in self._engines:
            engine.drain()
        if drain and self._threads:
            waiting = [asyncio.ensure_future(each.wait()) for each in self._drained.values()]
            _, late = await asyncio.wait(waiting, timeout=drain)
            for each in late:
                each.cancel()
        for engine in self._engines:
            engine.halt()
        loop = asyncio.get_running_loop()
        for thread in self._threads:
            await loop.run_in_executor(None, thread.join)
        for thread in self._readers:  # one that waits for a dead disk goes when that does
            await loop.run_in_executor(None, thread.join, 1)
        for task in self._answers:
            task.cancel()
        if self._threads:
            self._take_events()
            for engine in self._engines:
                loop.remove_reader(engine.fileno())
        for sockets in self._sockets:
            sockets.close()
        self._threads.clear()
        self._readers.clear()

    def reload(self, resolve: Resolve, settings: config.Tftp | None = None) -> None:
        """From the next request on, ask `resolve` and keep new limits; running transfers keep their file."""
        self._resolve = resolve
        self._settings = settings or self._settings

    def counters(self) -> dict[str, int]:
        total = {f"refused_{reason}": count for reason, count in self._refused.items()}
        for engine in self._engines:
            for name, count in engine.counters().items():
                total[name] = total.get(name, 0) + count
        return total

    def transfers(self) -> list[Transfer]:
        """Return the transfers that are on their way."""
        return [
            Transfer("tftp", under_way.client.address, under_way.path, done, size, under_way.client.mac)
            for engine in self._engines
            for id, done, size in engine.transfers()
            if (under_way := self._under_way[engine].get(id))
        ]

    def _take_events(self) -> None:
        # Of all engines, whichever woke us: what the others have is not worth a wake of its own, then.
        for engine in self._engines:
            engine.take(partial(self._take_event, engine))

    def _take_event(self, engine: Engine, event: TftpRequest | TftpEnd | TftpNotice) -> None:
        if isinstance(event, TftpRequest):
            self._asked(engine, event)
        elif isinstance(event, TftpEnd):
            self._ended(engine, event)
        else:
            self._noticed(engine, event)

    def _asked(self, engine: Engine, request: TftpRequest) -> None:
        address = address_of(request.peer)
        client = Client(address, address_of(request.server), "tftp", self._mac_of(address))
        path = request.name.decode("utf-8", "surrogateescape")
        asked = Asked(request.peer, request.port, client, masked(path))
        most, under_way = self._settings.max_per_address, self._by_address.get(asked.peer, 0)
        if under_way >= most:
            text = f"{most} transfers are on their way to this address"
            self._refuse(engine, request, asked, Refusal(Reason.CROWDED, text))
            return
        self._by_address[asked.peer] = under_way + 1
        try:
            answer = self._resolve(path, client)
            if isinstance(answer, Source) and not request.netascii:
                self._start(engine, request, asked, answer)
                return
        except Exception as error:  # resolve may be an embedding program's: its fault must not end the service
            self._fail(engine, request, asked, error)
            return
        if isinstance(answer, Refusal):
            self._turn_away(engine, request, asked, answer)
        else:
            task = asyncio.get_running_loop().create_task(self._answer_later(engine, request, asked, answer))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer_later(
        self, engine: Engine, request: TftpRequest, asked: Asked, answer: Source | Awaitable[Source | Refusal]
    ) -> None:
        try:
            found = await answer if inspect.isawaitable(answer) else answer
            if isinstance(found, Source) and request.netascii:
                found = await self._text(found)
            if isinstance(found, Refusal):
                self._turn_away(engine, request, asked, found)
            else:
                self._start(engine, request, asked, found)
        except Exception as error:  # as in _asked
            self._fail(engine, request, asked, error)

    async def _text(self, source: Source) -> Source | Refusal:
        if source.size > MAX_TEXT:
            return Refusal(Reason.FORBIDDEN, "too big for netascii, ask for octet")
        text = await self._texts.of(source)
        return text or Refusal(Reason.FORBIDDEN, "too many texts are being sent, ask for octet")

    def _start(self, engine: Engine, request: TftpRequest, asked: Asked, source: Source) -> None:
        """Send a file, unless it is too big. Raises OSError."""
        if self._settings.max_file and source.size > self._settings.max_file:
            self._turn_away(engine, request, asked, TOO_BIG, **self._elsewhere(asked))
            return
        # RFC 2349 section 3: the size that travels is not the file's in netascii.
        window = self._windows.most(asked.peer, self._settings.max_windowsize)
        engine.start(request.id, source, tsize=not request.netascii, windowsize=window)
        asked.source = source
        self._under_way[engine][request.id] = asked
        self._tell("tftp.started", asked, size=source.size, options=request.options)

    def _fail(self, engine: Engine, request: TftpRequest, asked: Asked, error: Exception) -> None:
        """Answer, then log a fault: a traceback takes its time."""
        if isinstance(error, OSError):
            self._turn_away(engine, request, asked, refusal_of(error))
        else:
            self._turn_away(engine, request, asked, Refusal(Reason.BROKEN, "internal error"))
            log.error("resolve failed", path=asked.path, exc_info=error)

    def _elsewhere(self, asked: Asked) -> dict[str, str]:
        """Return where else a file is served, for an event."""
        if self._http is None:
            return {}
        path = "/".join(quote(part, errors="surrogateescape") for part in asked.path.split("/") if part)
        return {"http": f"{self._http.replace(SERVER, str(asked.client.server))}/{path}"}

    def _turn_away(
        self, engine: Engine, request: TftpRequest, asked: Asked, refusal: Refusal, **details: str
    ) -> None:
        self._leave(asked)
        self._refuse(engine, request, asked, refusal, **details)

    def _refuse(
        self, engine: Engine, request: TftpRequest, asked: Asked, refusal: Refusal, **details: str
    ) -> None:
        self._refused[refusal.reason] += 1
        if refusal.reason is Reason.BUSY:
            # All firmware asks again where it hears nothing, and gives up at an ERROR.
            engine.ignore(request.id)
            self._alarm("tftp.busy", f"{refusal.text}: {BUSY}", self._refused[Reason.BUSY])
            return
        code = CODES.get(refusal.reason, NOT_SERVED)
        engine.refuse(request.id, code, refusal.text)
        kind = "tftp.refused" if code == NOT_SERVED else "tftp.missing"
        self._tell(kind, asked, reason=str(refusal.reason), text=refusal.text, **details)

    def _ended(self, engine: Engine, end: TftpEnd) -> None:
        asked = self._under_way[engine].pop(end.id, None)
        if asked is None:
            return
        self._leave(asked)
        self._windows.learn(asked.peer, end)
        details = end._asdict()
        del details["id"]
        self._tell(KINDS.get(end.outcome, "tftp.failed"), asked, **details)

    def _leave(self, asked: Asked) -> None:
        left = self._by_address.pop(asked.peer) - 1
        if left:
            self._by_address[asked.peer] = left

    def _noticed(self, engine: Engine, notice: TftpNotice) -> None:
        if notice.kind == "drained":
            self._drained[engine].set()
        elif notice.kind == "dropped":
            self._alarm("tftp.dropped", DROPPED, self.counters()["dropped"])
        else:
            log.warning("UDP segmentation refused, sending block by block", error=os.strerror(notice.error))

    def _alarm(self, kind: str, text: str, times: int) -> None:
        """Say what this host is short of; `times` counts from the start of the service."""
        now = time.monotonic()
        if now - self._alarmed.get(kind, float("-inf")) >= ALARM_EVERY:
            self._alarmed[kind] = now
            self._emit(Event(time.time(), kind, details={"times": times, "text": text}))

    def _tell(self, kind: str, asked: Asked, **details: object) -> None:
        details = {"path": asked.path, "peer": asked.peer, "port": asked.port, **details}
        self._emit(Event(time.time(), kind, asked.client.mac, None, details))

"""TFTP: the native engine asks, this module answers with what the one namespace resolves to."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import structlog

from fastboot import config
from fastboot._core import Engine, Source, TftpEnd, TftpNotice, TftpRequest
from fastboot.model import Client, Event, FastbootError, Reason, Refusal, Transfer
from fastboot.services.links import Link, open_udp
from fastboot.services.tftp_files import MAX_TEXT, Files

log = structlog.get_logger(component="tftp")

Resolve = Callable[[str, Client], Source | Refusal | Awaitable[Source | Refusal]]

DATA_SOCKETS = 4
"""Per engine: enough that consecutive transfers of a client differ, few enough that a batch holds many clients."""
# U-Boot starts its download over, for ever, at any ERROR but 1 and 2.
CODES: Final = {Reason.MISSING: 1, Reason.DIRECTORY: 1}
NOT_SERVED = 2
KINDS: Final = {
    "done": "tftp.sent",
    "unconfirmed": "tftp.sent",
    "probe": "tftp.probed",
    "cancelled": "tftp.cancelled",
    "replaced": "tftp.replaced",
    "stopped": "tftp.stopped",
    "evicted": "tftp.evicted",
}
"""The event for each outcome of a transfer; any other is `tftp.failed`."""


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
    engines = []
    with ExitStack() as undo:
        port = settings.port
        for _ in range(settings.threads):
            listen = undo.enter_context(open_udp("tftp.port", port, shared=settings.threads > 1))
            port = listen.getsockname()[1]
            data = []
            for _ in range(0 if settings.single_port else DATA_SOCKETS):
                if (each := _udp_within(ports)) is None:
                    break
                data.append(undo.enter_context(each))
            if not data and not settings.single_port:
                raise FastbootError(
                    f"tftp.data_ports: no free port left in {settings.data_ports}; "
                    f"{settings.threads} threads want {settings.threads * DATA_SOCKETS} ports"
                )
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
    """One request under way. Holding the source keeps its map shared with every other client of the file."""

    request: TftpRequest
    client: Client
    path: str
    source: Source | None = None


class TftpService:
    """Serves what `resolve` gives to any TFTP client (RFC 1350, 2347, 2348, 2349, 7440).

    `resolve` may return an awaitable. `mac_of` names the machine behind an address where it is known. The sockets
    become the service's own and are closed by stop().
    """

    def __init__(
        self,
        settings: config.Tftp,
        links: Sequence[Link],
        resolve: Resolve,
        emit: Callable[[Event], None],
        sockets: Sequence[Sockets],
        mac_of: Callable[[IPv4Address], str | None] = lambda address: None,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._emit = emit
        self._mac_of = mac_of
        self._sockets = tuple(sockets)
        # A machine talks to its own addresses through the loopback interface.
        mtus = {socket.if_nametoindex("lo"): 65536} | {link.index: link.mtu for link in links}
        self._engines = tuple(
            Engine(
                [each.listen],
                each.data,
                list(mtus.items()),
                max_transfers=settings.max_transfers,
                max_blksize=settings.max_blksize,
                max_windowsize=settings.max_windowsize,
            )
            for each in self._sockets
        )
        self._threads: list[threading.Thread] = []
        self._under_way: dict[tuple[Engine, int], Asked] = {}
        self._files = Files()
        self._answers: set[asyncio.Task[None]] = set()
        self._drained: dict[Engine, asyncio.Event] = {}
        self._refused: dict[str, int] = {}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for number, engine in enumerate(self._engines):
            self._drained[engine] = asyncio.Event()
            loop.add_reader(engine.fileno(), self._take_events, engine)
            thread = threading.Thread(target=engine.run, name=f"tftp-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

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
        for task in self._answers:
            task.cancel()
        self._files.close()
        for engine in self._engines if self._threads else ():
            self._take_events(engine)
            loop.remove_reader(engine.fileno())
        for sockets in self._sockets:
            sockets.close()
        self._threads.clear()

    def reload(self, resolve: Resolve, settings: config.Tftp | None = None) -> None:
        """From the next request on, ask `resolve` and keep a new `max_file`; running transfers keep their file."""
        self._resolve = resolve
        self._settings = settings or self._settings
        self._files.forget()

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
            if (under_way := self._under_way.get((engine, id)))
        ]

    def _take_events(self, engine: Engine) -> None:
        for event in engine.events():
            if isinstance(event, TftpRequest):
                self._asked(engine, event)
            elif isinstance(event, TftpEnd):
                self._ended(engine, event)
            else:
                self._noticed(engine, event)

    def _asked(self, engine: Engine, request: TftpRequest) -> None:
        address = IPv4Address(request.peer)
        client = Client(address, IPv4Address(request.server), "tftp", self._mac_of(address))
        asked = Asked(request, client, request.name.decode("utf-8", "surrogateescape"))
        try:
            answer = self._resolve(asked.path, client)
        except Exception:  # resolve may be an embedding program's: its fault must not end the service
            self._fail(engine, asked)
            return
        if isinstance(answer, Refusal):
            self._refuse(engine, asked, answer)
        elif isinstance(answer, Source) and answer in self._files and not request.netascii:
            self._start(engine, asked, answer)
        else:
            task = asyncio.get_running_loop().create_task(self._answer_later(engine, asked, answer))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer_later(
        self, engine: Engine, asked: Asked, answer: Source | Refusal | Awaitable[Source | Refusal]
    ) -> None:
        try:
            source = await answer if inspect.isawaitable(answer) else answer
            if isinstance(source, Refusal):
                refusal: Refusal | None = source
            elif not isinstance(source, Source):
                raise TypeError(f"resolve gave {source!r}, neither a Source nor a Refusal")
            elif not (refusal := self._too_big(source, asked.request)):
                text = await self._files.text(source) if asked.request.netascii else source
                if text is not None:
                    await self._files.warm(text)
                    self._start(engine, asked, text)
                    return
                refusal = Refusal(Reason.FORBIDDEN, "too many texts are being sent, ask for octet")
        except OSError as error:
            refusal = Refusal(Reason.BROKEN, os.strerror(error.errno or 0))
        except Exception:  # as in _asked
            self._fail(engine, asked)
            return
        assert refusal is not None
        self._refuse(engine, asked, refusal)

    def _too_big(self, source: Source, request: TftpRequest) -> Refusal | None:
        if self._settings.max_file and source.size > self._settings.max_file:
            return Refusal(Reason.FORBIDDEN, "too big for TFTP here")
        if request.netascii and source.size > MAX_TEXT:
            return Refusal(Reason.FORBIDDEN, "too big for netascii, ask for octet")
        return None

    def _start(self, engine: Engine, asked: Asked, source: Source) -> None:
        if refusal := self._too_big(source, asked.request):
            self._refuse(engine, asked, refusal)
            return
        asked.source = source
        self._under_way[engine, asked.request.id] = asked
        # RFC 2349 section 3: the size that travels is not the file's in netascii.
        engine.start(asked.request.id, source, tsize=not asked.request.netascii)
        self._tell("tftp.started", asked, size=source.size, options=asked.request.options)

    def _refuse(self, engine: Engine, asked: Asked, refusal: Refusal) -> None:
        self._refused[refusal.reason] = self._refused.get(refusal.reason, 0) + 1
        engine.refuse(asked.request.id, CODES.get(refusal.reason, NOT_SERVED), refusal.text)
        kind = "tftp.missing" if refusal.reason in CODES else "tftp.refused"
        self._tell(kind, asked, reason=refusal.reason.value, text=refusal.text)

    def _fail(self, engine: Engine, asked: Asked) -> None:
        """Answer, then log the exception being handled: a traceback takes its time."""
        self._refuse(engine, asked, Refusal(Reason.BROKEN, "internal error"))
        log.exception("resolve failed", path=asked.path)

    def _ended(self, engine: Engine, end: TftpEnd) -> None:
        asked = self._under_way.pop((engine, end.id), None)
        if asked is None:
            return
        details = end._asdict()
        del details["id"]
        self._tell(KINDS.get(end.outcome, "tftp.failed"), asked, **details)

    def _noticed(self, engine: Engine, notice: TftpNotice) -> None:
        if notice.kind == "drained":
            self._drained[engine].set()
        else:
            log.warning("UDP segmentation refused, sending block by block", error=os.strerror(notice.error))

    def _tell(self, kind: str, asked: Asked, **details: object) -> None:
        request = asked.request
        details = {"path": asked.path, "peer": request.peer, "port": request.port, **details}
        self._emit(Event(time.time(), kind, asked.client.mac, None, details))

"""A TFTP service on a loop in a thread of its own, a blocking client that is not ours, a bad network between."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import uvloop

from fastboot import config
from fastboot._core import Source
from fastboot.model import Client as Asker
from fastboot.model import Event, Reason, Refusal
from fastboot.services.links import Link
from fastboot.services.tftp import Resolve, Sockets, TftpService, open_sockets

RRQ, WRQ, DATA, ACK, ERROR, OACK = range(1, 7)
HOST = "127.0.0.1"
LOOPBACK = Link("lo", 1, bytes(6), 65536, (IPv4Interface("127.0.0.1/8"),))
ENDS = (
    "tftp.sent",
    "tftp.probed",
    "tftp.cancelled",
    "tftp.replaced",
    "tftp.stopped",
    "tftp.evicted",
    "tftp.gone",
    "tftp.failed",
    "tftp.missing",
    "tftp.refused",
)

Address = tuple[str, int]


# ---- packets


def rrq(name: str | bytes, mode: str = "octet", op: int = RRQ, **options: object) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    texts = [raw, mode.encode()]
    for option, value in options.items():
        texts += [option.encode(), str(value).encode()]
    return struct.pack("!H", op) + b"".join(text + b"\0" for text in texts)


def ack(block: int) -> bytes:
    return struct.pack("!HH", ACK, block & 0xFFFF)


def error(code: int, text: bytes = b"bye") -> bytes:
    return struct.pack("!HH", ERROR, code) + text + b"\0"


def op_of(packet: bytes) -> int:
    return struct.unpack_from("!H", packet)[0]


def number_of(packet: bytes) -> int:
    """Block of a DATA or ACK, code of an ERROR."""
    return struct.unpack_from("!H", packet, 2)[0]


def options_of(packet: bytes) -> dict[str, str]:
    texts = packet[2:].decode("ascii").split("\0")
    assert texts.pop() == ""
    return dict(zip(texts[::2], texts[1::2], strict=True))


class TftpError(Exception):
    """An ERROR from the server."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class Client:
    """A client by RFC 1350, 2347 and 7440, one transfer after the other from one port."""

    def __init__(self, server: Address, *, bind: Address = (HOST, 0), wait: float = 0.5) -> None:
        self.server = server
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(bind)
        self.wait = wait
        self.oack: dict[str, str] | None = None
        self.peer: Address | None = None
        self.blocks = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]

    def send(self, packet: bytes, to: Address | None = None) -> None:
        self.socket.sendto(packet, to or self.peer or self.server)

    def forget(self) -> None:
        """Drop what has come: a server repeats what it sent to who is slow, and a busy machine makes slow."""
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(70_000)

    def ask(self, name: str | bytes, mode: str = "octet", **options: object) -> None:
        self.forget()
        self.peer = None
        self.socket.sendto(rrq(name, mode, **options), self.server)

    def receive(self, wait: float = 5) -> bytes:
        """Return the next packet. Raises TimeoutError."""
        self.socket.settimeout(wait)
        packet, self.peer = self.socket.recvfrom(70_000)
        return packet

    def hears_nothing(self, wait: float = 0.1) -> bool:
        try:
            self.receive(wait)
        except TimeoutError:
            return True
        return False

    def fetch(
        self,
        name: str | bytes,
        mode: str = "octet",
        tries: int = 20,
        retry: float | None = None,
        **options: object,
    ) -> bytes:
        """Return the file. Raises TftpError, TimeoutError after `tries` silences."""
        request = rrq(name, mode, **options)
        blksize, window, expected, since, silences = 512, 1, 1, 0, 0
        out: list[bytes] = []
        last: bytes = request
        self.peer, self.oack, self.blocks = None, None, 0
        self.forget()
        self.socket.sendto(request, self.server)
        in_gap = False
        while True:
            self.socket.settimeout(retry or self.wait)
            try:
                packet, peer = self.socket.recvfrom(70_000)
            except TimeoutError:
                silences += 1
                if silences == tries:
                    raise
                self.socket.sendto(last, self.peer or self.server)
                continue
            kind = op_of(packet)
            if self.peer is None and (kind != DATA or number_of(packet) == 1):  # else of the last transfer
                self.peer = peer
            if peer != self.peer:
                continue
            if kind == ERROR:
                raise TftpError(number_of(packet), packet[4:-1].decode())
            if kind == OACK:
                if expected == 1:
                    self.oack = options_of(packet)
                    blksize = int(self.oack.get("blksize", blksize))
                    window = int(self.oack.get("windowsize", window))
                    last = ack(0)
                    self.send(last)
                continue
            assert kind == DATA, packet[:20]
            if number_of(packet) != expected & 0xFFFF:
                if not in_gap or window == 1:
                    last = ack(expected - 1)
                    self.send(last)
                in_gap, since = True, 0
                continue
            in_gap = False
            out.append(packet[4:])
            self.blocks += 1
            assert len(out[-1]) <= blksize
            since += 1
            last = ack(expected)
            if len(out[-1]) < blksize:
                self.send(last)
                return b"".join(out)
            if since == window:
                self.send(last)
                since = 0
            expected += 1


def fetch_through(address: Address, name: str, **options: object) -> str:
    """Return the digest of what a client of its own gets."""
    with Client(address, wait=1.0) as client:
        return hashlib.sha256(client.fetch(name, **options)).hexdigest()


# ---- the server


class Files:
    """A tree in memory or on disk, as a resolve that remembers what was asked."""

    def __init__(self, files: dict[str, bytes | Source] | None = None, root: Path | None = None) -> None:
        self.files = {
            name: Source.of_bytes(name, data) if isinstance(data, bytes) else data
            for name, data in (files or {}).items()
        }
        self.dirfd = os.open(root, os.O_RDONLY | os.O_DIRECTORY) if root else -1
        self.asked: list[tuple[str, Asker]] = []

    def __call__(self, path: str, client: Asker) -> Source | Refusal:
        self.asked.append((path, client))
        if path in self.files:
            return self.files[path]
        if self.dirfd >= 0:
            with contextlib.suppress(OSError, ValueError):
                return Source.open(self.dirfd, path)
        return Refusal(Reason.MISSING, "no such file")


@dataclass
class Running:
    service: TftpService
    loop: asyncio.AbstractEventLoop
    port: int
    host: str = HOST
    events: list[Event] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.host, self.port

    def client(self, **more: Any) -> Client:
        return Client(self.address, **more)

    def wait(self, coroutine: Any, timeout: float = 30) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def counters(self) -> dict[str, int]:
        return self.service.counters()

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self.counters()} {[event.kind for event in self.events[-9:]]}"
            time.sleep(0.002)

    def is_idle(self) -> bool:
        """Whether every transfer that was told to start was told to have ended."""
        kinds = [event.kind for event in list(self.events)]
        ended = sum(kind in ENDS for kind in kinds) - kinds.count("tftp.missing") - kinds.count("tftp.refused")
        return kinds.count("tftp.started") == ended and not self.service.transfers()

    def counted(self, name: str, least: int = 1) -> int:
        """Wait until a counter is that high; return it."""
        self.until(lambda: self.counters().get(name, 0) >= least)
        return self.counters()[name]

    def ends(self, count: int = 1) -> list[Event]:
        """Wait for that many ends; return all there are."""

        def found() -> list[Event]:
            return [event for event in list(self.events) if event.kind in ENDS]

        self.until(lambda: len(found()) >= count)
        return found()


@contextmanager
def serving(
    resolve: Resolve,
    *,
    links: tuple[Link, ...] = (LOOPBACK,),
    inside: AbstractContextManager[None] | None = None,
    host: str = HOST,
    prepare: Callable[[tuple[Sockets, ...]], None] = lambda sockets: None,
    drain: float = 0,
    **settings: Any,
) -> Iterator[Running]:
    """Run a TFTP service. `inside` is entered while its sockets are made, which `prepare` gets."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="uvloop")
    thread.start()
    try:
        wanted = config.Tftp(**{"port": 0, "threads": 1, **settings})
        with inside or nullcontext():
            sockets = open_sockets(wanted)
        prepare(sockets)
        events: list[Event] = []
        service = TftpService(wanted, links, resolve, events.append, sockets)
        port = sockets[0].listen.getsockname()[1]
        running = Running(service, loop, port, host, events)
        running.wait(service.start())
        try:
            yield running
        finally:
            running.wait(service.stop(drain), drain + 30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


# ---- the network


@dataclass
class Relay:
    """Stands before a server and loses, repeats and delays what passes, with a seed. The first `after` packets of
    each flow and direction pass untouched."""

    server: Address
    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    seed: int = 1
    after: int = 1
    dropped: int = 0
    repeated: int = 0
    delayed: int = 0

    def __enter__(self) -> Relay:
        self._chance = random.Random(self.seed)
        self._front = self._socket()
        self._wake, self._bell = os.pipe()
        self._epoll = select.epoll()
        self._ways: dict[int, Callable[[], None]] = {}
        self._flows: dict[Address, socket.socket] = {}
        self._sockets = [self._front]
        self._later: list[tuple[float, int, socket.socket, bytes, Address]] = []
        self._order = 0
        self._watch(self._front, self._from_client)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._bell, b"x")
        self._thread.join(10)
        self._epoll.close()
        for each in self._sockets:
            each.close()
        os.close(self._wake)
        os.close(self._bell)

    @property
    def address(self) -> Address:
        return self._front.getsockname()

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.bind((HOST, 0))
        return made

    def _watch(self, each: socket.socket, way: Callable[[], None]) -> None:
        self._ways[each.fileno()] = way
        self._epoll.register(each, select.EPOLLIN)

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, each, packet, to = heapq.heappop(self._later)
                self._put(each, packet, to)
            wait = self._later[0][0] - now if self._later else -1
            for fd, _ in self._epoll.poll(wait):
                if fd == self._wake:
                    return
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._ways[fd]()

    def _from_client(self) -> None:
        packet, client = self._front.recvfrom(70_000)
        up = self._flows.get(client)
        if up is None:
            up = self._flows[client] = self._flow(client)
        up.sendto(packet, self.server)

    def _flow(self, client: Address) -> socket.socket:
        up, down = self._socket(), self._socket()
        self._sockets += [up, down]
        peer: list[Address] = []
        passed = {up: 0, down: 0}

        def to_client() -> None:
            packet, sender = up.recvfrom(70_000)
            peer[:] = [sender]
            passed[down] += 1
            self._pass(down, packet, client, passed[down])

        def to_server() -> None:
            packet, _ = down.recvfrom(70_000)
            passed[up] += 1
            self._pass(up, packet, peer[0], passed[up])

        self._watch(up, to_client)
        self._watch(down, to_server)
        return up

    def _pass(self, each: socket.socket, packet: bytes, to: Address, number: int) -> None:
        luck = self._chance.random()
        if number <= self.after or luck > self.loss + self.repeat + self.late:
            self._put(each, packet, to)
        elif luck < self.loss:
            self.dropped += 1
        elif luck < self.loss + self.repeat:
            self.repeated += 1
            self._put(each, packet, to)
            self._put(each, packet, to)
        else:
            self.delayed += 1
            self._order += 1
            when = time.monotonic() + self._chance.choice((0.0, 0.0003, 0.002))
            heapq.heappush(self._later, (when, self._order, each, packet, to))

    def _put(self, each: socket.socket, packet: bytes, to: Address) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            each.sendto(packet, to)

"""An FTP service on a uvloop in a thread of its own, over a tree held in memory, for blocking clients."""

from __future__ import annotations

import asyncio
import ftplib
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import uvloop

from fastboot import config
from fastboot._core import Source
from fastboot.model import Client, Event, Reason, Refusal
from fastboot.services.descriptors import Descriptors
from fastboot.services.ftp import FtpService, Limits
from fastboot.services.links import Link

LOOPBACK = Link("lo", 1, bytes(6), 65536, (IPv4Interface("127.0.0.1/8"),))
MTIME = 1_700_000_000.0


@dataclass(frozen=True)
class Item:
    name: str
    is_dir: bool
    size: int
    mtime: float


class Memory:
    """A tree as the catalog gives it; `files` maps absolute paths to sources."""

    def __init__(self, files: dict[str, bytes | Source] | None = None) -> None:
        self.files: dict[str, Source] = {}
        self.asked: list[tuple[str, Client]] = []
        for path, content in (files or {}).items():
            self.put(path, content)

    def put(self, path: str, content: bytes | Source) -> None:
        self.files[path] = Source.of_bytes(path, content) if isinstance(content, bytes) else content

    def resolve(self, path: str, client: Client) -> Source | Refusal:
        self.asked.append((path, client))
        if path in self.files:
            return self.files[path]
        return self._refusal(path)

    def stat(self, path: str, client: Client) -> Item | Refusal:
        name = path.rpartition("/")[2]
        if path in self.files:
            return Item(name, False, self.files[path].size, MTIME)
        return Item(name or "/", True, 0, MTIME) if self._is_dir(path) else self._refusal(path)

    def list(self, path: str, client: Client) -> list[Item] | Refusal:
        if not self._is_dir(path):
            return self._refusal(path)
        prefix = path.rstrip("/") + "/"
        names = {file[len(prefix) :].split("/")[0] for file in self.files if file.startswith(prefix)}
        return [item for name in sorted(names) if isinstance(item := self.stat(prefix + name, client), Item)]

    def _is_dir(self, path: str) -> bool:
        return path == "/" or any(file.startswith(path.rstrip("/") + "/") for file in self.files)

    def _refusal(self, path: str) -> Refusal:
        return (
            Refusal(Reason.DIRECTORY, "is a directory")
            if self._is_dir(path)
            else Refusal(Reason.MISSING, "no such file")
        )


class Running:
    """A service that runs; `call` runs a function on its loop."""

    def __init__(self, service: FtpService, loop: asyncio.AbstractEventLoop, events: list[Event]) -> None:
        self.service, self.loop, self.events = service, loop, events
        self.host, self.port = service.addresses[0]

    def call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return self.wait(run())

    def wait(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 30) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def client(self, login: bool = True, timeout: float = 20) -> ftplib.FTP:
        ftp = ftplib.FTP(timeout=timeout)
        ftp.connect(self.host, self.port)
        if login:
            ftp.login()
        return ftp

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Wait until a condition holds on the loop."""

        async def poll() -> None:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.005)

        self.wait(poll(), seconds + 5)

    def counters(self) -> dict[str, int]:
        return self.call(self.service.counters)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[Any]:
        return [event.details for event in self.events if event.kind == kind]


@contextmanager
def loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="uvloop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def serving(
    catalog: Any,
    limits: Limits | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    link: Link = LOOPBACK,
    descriptors: Descriptors | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Run a service on a high port of the loopback; on the given loop, or one of its own."""
    if loop is None:
        with loop_thread() as own, serving(catalog, limits, own, link, descriptors, **settings) as running:
            yield running
        return
    events: list[Event] = []
    table = config.Ftp(port=0, **settings)
    service = FtpService(table, [link], catalog, events.append, limits=limits or Limits(), descriptors=descriptors)
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(10)
    running = Running(service, loop, events)
    try:
        yield running
    finally:
        running.wait(service.stop())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

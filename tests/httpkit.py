"""An HTTP service on a uvloop in a thread of its own, and a client that shows the octets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastboot import config
from fastboot.model import Event
from fastboot.services.descriptors import Descriptors
from fastboot.services.http import HttpService
from fastboot.services.http_connections import STANDARD, Limits
from fastboot.services.links import Link
from fastboot.services.pump import Pump
from tests.ftpkit import LOOPBACK, Running, loop_thread


@dataclass(frozen=True)
class Answer:
    """An answer as it came: the status line, the fields in order, the body."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])

    def field(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key.lower() == name.lower()), None)


class Client:
    """One connection. `ask` sends octets and reads one answer by its Content-Length."""

    def __init__(self, address: tuple[str, int], timeout: float = 20) -> None:
        self.socket = socket.create_connection(address, timeout)
        self.file = self.socket.makefile("rb")

    def get(self, path: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> Answer:
        lines = [f"{method} {path} {version}", "Host: boot", *fields, "", ""]
        return self.ask("\r\n".join(lines).encode("latin-1"), head=method == "HEAD")

    def ask(self, octets: bytes, *, head: bool = False) -> Answer:
        self.socket.sendall(octets)
        return self.read(head=head)

    def read(self, *, head: bool = False) -> Answer:
        line = self.file.readline().rstrip(b"\r\n")
        if not line:
            raise ConnectionError("closed without an answer")
        fields = []
        while field := self.file.readline().rstrip(b"\r\n"):
            name, _, value = field.partition(b": ")
            fields.append((name, value))
        answer = Answer(line, fields, b"")
        length = 0 if head or answer.status == 304 else int(answer.field(b"Content-Length") or 0)
        body = self.file.read(length)
        if len(body) < length:
            raise ConnectionError(f"closed after {len(body)} of {length}")
        return Answer(line, fields, body)

    def closed(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def serving(
    catalog: Any,
    limits: Limits | None = None,
    link: Link = LOOPBACK,
    loop: Any = None,
    pump: Pump | None = None,
    descriptors: Descriptors | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Run a service on a high port of the loopback."""
    if loop is None:
        with loop_thread() as own, serving(catalog, limits, link, own, pump, descriptors, **settings) as running:
            yield running
        return
    events: list[Event] = []

    async def start() -> HttpService:
        service = HttpService(
            config.Http(port=0, **settings), [link], catalog, events.append,
            limits=limits or STANDARD, pump=pump, descriptors=descriptors,
        )  # fmt: skip
        await service.start()
        return service

    service = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    running = Running(service, loop, events)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.wait(service.stop())

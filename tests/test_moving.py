"""FTP and HTTP over either pump: the same octets from everywhere, and nothing left of clients that leave."""

from __future__ import annotations

import asyncio
import ftplib
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from fastboot import config
from fastboot.services.ftp import FtpService
from fastboot.services.http import HttpService
from fastboot.services.http_connections import Connection
from fastboot.services.pump import start_pump
from tests.ftpkit import LOOPBACK, Memory, descriptors
from tests.httpkit import Client

DATA = random.Random(7).randbytes(3_000_001)
OFFSETS = [0, 1, 65_535, 1_048_575, 1_048_576, 1_048_577, len(DATA) - 1]


@dataclass(frozen=True, slots=True)
class Both:
    """An HTTP and an FTP service on one pump."""

    http: HttpService
    ftp: FtpService

    def login(self) -> ftplib.FTP:
        session = ftplib.FTP(timeout=20)
        session.connect(*self.ftp.addresses[0])
        session.login()
        return session

    def open_now(self) -> int:
        counts = {**self.http.counters(), **self.ftp.counters()}
        return sum(counts[each] for each in ("connections_open", "sessions_open", "transfers_open"))

    async def nobody_left(self, before: int) -> None:
        async with asyncio.timeout(20):
            while self.open_now() or descriptors() > before:
                gc.collect()
                await asyncio.sleep(0.01)


@pytest.fixture(params=[0, 1, 2], ids=["loop", "thread", "threads"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Both]:
    pump = start_pump(request.param)
    files = Memory({"/data": DATA, "/large": DATA * 8})
    http = HttpService(config.Http(port=0), [LOOPBACK], files, lambda event: None, pump=pump)
    ftp = FtpService(config.Ftp(port=0), [LOOPBACK], files, lambda event: None, pump=pump)
    await http.start()
    await ftp.start()
    yield Both(http, ftp)
    await ftp.stop()
    await http.stop()
    pump.close()


async def test_a_connection_that_is_lost_before_its_answer_begins(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would have answered is told so: else Python warns of a coroutine that nobody awaited."""
    go_on = Connection._next

    def leave(connection: Connection) -> None:
        go_on(connection)
        assert connection.transport is not None
        connection.transport.abort()
        connection.connection_lost(None)

    before = descriptors()
    monkeypatch.setattr(Connection, "_next", leave)
    with socket.create_connection(both.http.addresses[0]) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.to_thread(client.recv, 1) == b""
    await both.nobody_left(before)


async def test_ranges(both: Both) -> None:
    def ask() -> None:
        with Client(both.http.addresses[0]) as client:
            for start in OFFSETS:
                assert client.get("/data", f"Range: bytes={start}-").body == DATA[start:]
                assert client.get("/data", f"Range: bytes={start}-{start + 70_000}").body == DATA[start:][:70_001]
            answer = client.get("/data", "Range: bytes=5-99999,1000000-1999999,-100000")
            for part in (DATA[5:100_000], DATA[1_000_000:2_000_000], DATA[-100_000:]):
                assert part in answer.body

    await asyncio.to_thread(ask)


async def test_restarts(both: Both) -> None:
    def ask() -> None:
        with both.login() as session:
            for start in OFFSETS:
                got = bytearray()
                session.retrbinary("RETR /data", got.extend, rest=start)
                assert got == DATA[start:]

    await asyncio.to_thread(ask)


def leave(sock: socket.socket, how: str) -> None:
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "half":
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
    sock.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_http_clients_that_leave_at_any_point(both: Both, how: str) -> None:
    head = b"GET /large HTTP/1.1\r\nHost: a\r\nRange: bytes=1-20000000,20000100-\r\n\r\n"

    def come_and_go(octets: bytes, take: int) -> None:
        with socket.create_connection(both.http.addresses[0], 20) as sock:
            sock.sendall(octets)
            while take > 0 and (part := sock.recv(min(take, 65536))):
                take -= len(part)
            leave(sock, how)

    await points(
        both, come_and_go, [(head[:0], 0), (head[:20], 0), (head, 0), (head, 1), (head, 300), (head, 9_000_000)]
    )
    await points(both, come_and_go, [(head, 20_000_001), (head * 2, 0), (head * 2, 24_000_300)])


@pytest.mark.parametrize("how", ["close", "reset", "half", "abort", "control"])
async def test_ftp_clients_that_leave_at_any_point(both: Both, how: str) -> None:
    def come_and_go(command: bytes, take: int) -> None:
        with both.login() as session:
            assert session.sock
            data = socket.create_connection(session.makepasv(), 20)
            session.sock.sendall(command)
            while take > 0 and (part := data.recv(min(take, 65536))):
                take -= len(part)
            if how == "abort":
                session.sock.sendall(b"ABOR\r\n")
                while session.getline()[:4] not in ("226 ", "225 "):
                    pass
            elif how == "control":
                leave(session.sock, "reset")
            leave(data, how)
            if how != "control":
                session.close()

    retrieve = b"TYPE I\r\nRETR /large\r\n"
    await points(both, come_and_go, [(b"", 0), (retrieve, 0), (retrieve, 1), (retrieve, 9_000_000)])
    await points(both, come_and_go, [(retrieve, len(DATA) * 8 - 1), (retrieve, len(DATA) * 8)])


async def points(both: Both, go: Callable[[bytes, int], None], cases: list[tuple[bytes, int]]) -> None:
    await both.nobody_left(1 << 20)
    before = descriptors()
    await asyncio.gather(*(asyncio.to_thread(go, *case) for case in cases))
    await both.nobody_left(before)
    await served_whole(both)


async def served_whole(both: Both) -> None:
    def ask() -> None:
        with Client(both.http.addresses[0]) as client:
            assert client.get("/data").body == DATA

    await asyncio.to_thread(ask)

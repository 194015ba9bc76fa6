"""An image that is replaced or rewritten while FTP and HTTP send from it: never a mix of two versions."""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from httpkit import Answer
from httpkit import Client as HttpClient
from test_media import look, make_iso, replace, serving

from fastboot.server import Server

OLD, NEW = os.urandom(40_000_000), b"new" * 1000
"""More than the buffers of a connection hold: its last octets are read when the client has read most of them."""
PATH = "/media/lab/images/install.img"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_iso(tmp_path_factory.mktemp("old") / "x.iso", {"images/install.img": OLD})


@pytest.fixture
def iso(original: Path, tmp_path: Path) -> Path:
    return shutil.copy(original, tmp_path / "x.iso")


@pytest.fixture
async def server(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    async with serving(tmp_path, monkeypatch, look_every=3600, lab=iso) as (server, _):
        yield server


class Slow:
    """A client that has begun to fetch the file and reads the rest when it is told to."""

    def __init__(self, server: Server, protocol: str) -> None:
        self._stack = contextlib.ExitStack()
        port = dict(server_ports(server))[protocol]
        if protocol == "http":
            http = self._stack.enter_context(HttpClient(("127.0.0.1", port)))
            http.socket.sendall(f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            self._finish: Callable[[], bytes] = lambda: http.read().body
            http.socket.recv(1, socket.MSG_PEEK)
            return
        ftp = ftplib.FTP()
        self._stack.callback(ftp.close)
        ftp.connect("127.0.0.1", port, timeout=20)
        ftp.login()
        ftp.voidcmd("TYPE I")
        data = self._stack.enter_context(ftp.transfercmd(f"RETR {PATH}"))
        data.recv(1, socket.MSG_PEEK)

        def finish() -> bytes:
            got = data.makefile("rb").read()
            data.close()
            try:
                ftp.voidresp()
            except ftplib.Error as error:
                raise ConnectionError(str(error)) from error
            return got

        self._finish = finish

    async def finish(self) -> bytes:
        """Return the whole file. Raises ConnectionError where the server said that it is none."""
        try:
            return await asyncio.to_thread(self._finish)
        finally:
            self._stack.close()


def server_ports(server: Server) -> list[tuple[str, int]]:
    config = server._config
    assert config.http and config.ftp
    return [("http", config.http.port), ("ftp", config.ftp.port)]


async def fetched(server: Server, protocol: str) -> bytes:
    return await (await asyncio.to_thread(Slow, server, protocol)).finish()


both = pytest.mark.parametrize("protocol", ["http", "ftp"])


@both
async def test_replaced_by_rename(server: Server, iso: Path, protocol: str) -> None:
    """Who fetches the old image gets all of it; the next gets the new one."""
    slow = await asyncio.to_thread(Slow, server, protocol)
    replace(iso, {"images/install.img": NEW})
    assert (await fetched(server, protocol)) == OLD
    await look(server, 2)
    assert await fetched(server, protocol) == NEW
    assert await slow.finish() == OLD
    assert await fetched(server, protocol) == NEW


async def test_a_download_is_not_resumed_with_another_image(server: Server, iso: Path) -> None:
    """One whose file has the same name, size, time and place: only its octets differ."""
    (_, http), _ = server_ports(server)
    before = await asyncio.to_thread(ask, http, PATH, "Range: bytes=0-9")
    new = shutil.copy(iso, iso.with_name("new.iso"))
    data = iso.read_bytes()
    write(new, data.index(OLD), other := OLD[:20_000_000] + bytes(20_000_000))
    times = iso.stat()
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.replace(iso)
    await look(server, 2)
    tag, date = (str(before.field(name), "ascii") for name in (b"ETag", b"Last-Modified"))
    after = await asyncio.to_thread(ask, http, PATH, method="HEAD")
    assert (after.field(b"Last-Modified"), after.field(b"Content-Length")) == (date.encode(), b"%d" % len(OLD))
    assert after.field(b"ETag") != tag.encode()
    tail = "Range: bytes=39999990-"
    assert (await asyncio.to_thread(ask, http, PATH, tail, f"If-Match: {tag}")).status == 412
    whole = await asyncio.to_thread(ask, http, PATH, tail, f"If-Range: {tag}")
    assert (whole.status, whole.body) == (200, other)


@both
async def test_written_in_place(server: Server, iso: Path, protocol: str) -> None:
    """Who fetches it ends in an error, though not an octet of the file itself was changed yet."""
    slow = await asyncio.to_thread(Slow, server, protocol)
    write(iso, 0, b"x")
    with pytest.raises(ConnectionError):
        await slow.finish()
    shutil.copyfile(make_iso(iso.with_name("new.iso"), {"images/install.img": NEW}), iso)
    await look(server, 2)
    assert await fetched(server, protocol) == NEW


async def test_while_it_is_written_clients_are_asked_to_come_back(server: Server, iso: Path) -> None:
    """iPXE waits as long as Retry-After says (httpcore.c); curl and wget try again after 450."""
    (_, http), (_, ftp) = server_ports(server)
    write(iso, 0, b"x")
    for path in (PATH, "/media/lab/images/", "/media/lab.iso"):
        answer = await asyncio.to_thread(ask, http, path)
        assert (answer.status, answer.field(b"Retry-After")) == (503, b"5")
    for command in (f"SIZE {PATH}", f"CWD {Path(PATH).parent}", f"RETR {PATH}"):
        assert (await asyncio.to_thread(command_to, ftp, command)).startswith("450 "), command
    # What was written is still an image, for its first 32 KiB mean nothing: read anew, it is served again.
    await look(server, 2)
    assert (await asyncio.to_thread(ask, http, PATH)).status == 200


async def test_what_came_to_no_good_is_not_waited_for(server: Server, iso: Path) -> None:
    (_, http), (_, ftp) = server_ports(server)
    write(iso, 0x8000, bytes(100_000))
    await look(server, 2)
    answer = await asyncio.to_thread(ask, http, PATH)
    assert (answer.status, answer.field(b"Retry-After")) == (500, None)
    assert (await asyncio.to_thread(command_to, ftp, f"SIZE {PATH}")).startswith("451 ")
    write(iso, 0, b"x")  # somebody tries again
    assert (await asyncio.to_thread(ask, http, PATH)).status == 503


async def test_small_files_of_an_image_that_changes(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of requests while an image is rewritten again and again: each answer is all old or all new."""
    first, second = (make_iso(tmp_path / f"{number}.iso", {"f": letter * 60_000}).read_bytes()
                     for number, letter in enumerate((b"a", b"b")))  # fmt: skip
    iso.write_bytes(first)
    async with serving(tmp_path, monkeypatch, lab=iso) as (server, _):
        (_, http), _ = server_ports(server)
        writing = asyncio.create_task(rewrite(iso, first, second))
        statuses = set()
        for _ in range(300):
            answer = await asyncio.to_thread(ask, http, "/media/lab/f")
            statuses.add(answer.status)
            assert answer.status == 503 or answer.body in (b"a" * 60_000, b"b" * 60_000)
        await writing
        assert 503 in statuses


async def rewrite(iso: Path, first: bytes, second: bytes) -> None:
    for data in (second, first) * 3:
        with iso.open("r+b") as file:
            for at in range(0, len(data), 4096):
                file.seek(at)
                file.write(data[at : at + 4096])
                file.flush()
                await asyncio.sleep(0)
        await asyncio.sleep(0.3)


def write(iso: Path, at: int, octets: bytes) -> None:
    with iso.open("r+b") as file:
        file.seek(at)
        file.write(octets)


def ask(port: int, path: str, *fields: str, method: str = "GET") -> Answer:
    with HttpClient(("127.0.0.1", port)) as client:
        return client.get(path, *fields, method=method)


def command_to(port: int, command: str) -> str:
    with ftplib.FTP() as ftp:
        ftp.connect("127.0.0.1", port, timeout=20)
        ftp.login()
        ftp.voidcmd("TYPE I")
        try:
            return ftp.sendcmd(command)
        except ftplib.Error as error:
            return str(error)

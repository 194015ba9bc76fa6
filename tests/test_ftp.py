"""The FTP service from outside: ftplib and raw sockets against a service on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import gc
import io
import logging
import os
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fastboot import config
from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.model import Client, FastbootError, Refusal
from fastboot.services import ftp_data
from fastboot.services.descriptors import Descriptors
from fastboot.services.ftp import FtpService, Limits, open_sockets
from fastboot.services.ftp_session import COMMANDS
from fastboot.services.links import Link
from tests.ftpkit import LOOPBACK, Item, Memory, Running, descriptors, loop_thread, serving

BIG = random.Random(1).randbytes(3_000_001)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(
        {
            "/README": b"one\ntwo\r\nthree\n",
            "/empty": b"",
            "/media/big": BIG,
            "/media/a b+c~d": b"spaces",
            "/media/Pakete/größe.rpm": b"utf-8",
            "/media/Pakete/\udce4.deb": b"latin-1",
            "/media/Pakete/evil\r\nname": b"never listed",
        }
    )


@pytest.fixture(scope="module")
def server(memory: Memory) -> Iterator[Running]:
    with serving(memory) as running:
        yield running


@pytest.fixture
def ftp(server: Running) -> Iterator[ftplib.FTP]:
    with server.client() as client:
        client.voidcmd("TYPE I")
        yield client


def fetch(ftp: ftplib.FTP, path: str, rest: int | None = None) -> bytes:
    data = io.BytesIO()
    assert ftp.retrbinary(f"RETR {path}", data.write, rest=rest).startswith("226")
    return data.getvalue()


def refusal(ftp: ftplib.FTP, command: str) -> str:
    with pytest.raises((ftplib.error_perm, ftplib.error_temp)) as caught:
        ftp.sendcmd(command)
    return str(caught.value)


class Raw:
    """A control connection, byte by byte."""

    def __init__(self, server: Running, login: bool = True, source: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection((server.host, server.port), 10, (source, 0))
        self.lines = self.sock.makefile("rb")
        assert self.reply().startswith("220")
        if login:
            assert self("USER ftp").startswith("331")
            assert self("PASS x").startswith("230")
            assert self("TYPE I").startswith("200")

    def __call__(self, command: str) -> str:
        self.sock.sendall(command.encode() + b"\r\n")
        return self.reply()

    def reply(self) -> str:
        """Return the next single-line reply, or "" at the end of the connection."""
        try:
            return self.lines.readline().decode().rstrip()
        except ConnectionError:
            return ""

    def passive(self) -> tuple[str, int]:
        numbers = re.findall(r"\d+", self("PASV"))[1:]
        return ".".join(numbers[:4]), int(numbers[4]) * 256 + int(numbers[5])

    def data(self, buffer: int | None = None, source: str = "127.0.0.1") -> socket.socket:
        sock = socket.socket()
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(10)
        sock.bind((source, 0))
        sock.connect(self.passive())
        return sock

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether the server says nothing for a while."""
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) is None
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(10)

    def close(self) -> None:
        self.lines.close()
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def everything(sock: socket.socket) -> bytes:
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def large(tmp_path: Path) -> Source:
    """A file larger than any socket buffer, hardly on disk."""
    with (tmp_path / "large").open("wb") as file:
        file.write(b"start")
        file.truncate(64 << 20)
    return opened(tmp_path, "large")


def opened(directory: Path, name: str) -> Source:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        return Source.open(fd, name)
    finally:
        os.close(fd)


# --- reading


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
def test_files_arrive_whole(ftp: ftplib.FTP, passive: bool) -> None:
    ftp.set_pasv(passive)
    assert fetch(ftp, "/media/big") == BIG
    assert fetch(ftp, "/empty") == b""
    assert fetch(ftp, "/media/a b+c~d") == b"spaces"


def test_extended_commands(ftp: ftplib.FTP) -> None:
    ftp.af = socket.AF_INET6  # ftplib then uses EPSV and EPRT
    port = int(ftp.sendcmd("EPSV 1").rpartition("|||")[2].rstrip("|)."))
    with socket.create_connection(("127.0.0.1", port), 5) as data:
        ftp.putcmd("RETR /README")
        assert everything(data) == b"one\ntwo\r\nthree\n"
    assert ftp.getresp().startswith("1") and ftp.getresp().startswith("226")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ftp.sendcmd(f"EPRT |1|127.0.0.1|{listener.getsockname()[1]}|").startswith("200")
        ftp.putcmd("RETR /README")
        assert everything(listener.accept()[0]) == b"one\ntwo\r\nthree\n"
    assert ftp.getresp().startswith("1") and ftp.getresp().startswith("226")
    assert refusal(ftp, "EPSV 2").startswith("522")
    assert refusal(ftp, "EPRT |2|::1|2000|").startswith("522")
    assert ftp.sendcmd("EPSV ALL").startswith("2")
    assert refusal(ftp, "PASV").startswith("501")


def test_many_clients_in_both_modes_at_once(server: Running) -> None:
    """pyftpdlib's active mode hangs here without the guard (its pull request 657)."""

    def client(number: int) -> None:
        for turn in range(4):
            with server.client() as ftp:
                ftp.set_pasv((number + turn) % 2 == 0)
                for _ in range(2):
                    assert fetch(ftp, "/media/big") == BIG

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(client, number) for number in range(12)]:
            done.result(60)


def test_text_type_ends_lines_with_crlf(ftp: ftplib.FTP) -> None:
    lines: list[str] = []
    assert ftp.retrlines("RETR /README", lines.append).startswith("226")
    assert lines == ["one", "two", "three"]
    with Raw.__new__(Raw) as raw:
        raw.sock, raw.lines = ftp.sock, ftp.sock.makefile("rb")
        raw("TYPE A")
        data = raw.data()
        raw("RETR /README")
        assert everything(data) == b"one\r\ntwo\r\nthree\r\n"


def test_restart(ftp: ftplib.FTP) -> None:
    assert fetch(ftp, "/media/big", rest=2_999_999) == BIG[2_999_999:]
    assert fetch(ftp, "/media/big", rest=len(BIG)) == b""
    assert fetch(ftp, "/media/big") == BIG, "a restart position holds for one RETR"
    ftp.voidcmd("PASV")
    assert ftp.sendcmd(f"REST {len(BIG) + 1}").startswith("350")
    assert refusal(ftp, "RETR /media/big").startswith("554")
    assert refusal(ftp, "REST -1").startswith("501")
    assert refusal(ftp, "REST x").startswith("501")
    assert refusal(ftp, "REST \u0661").startswith("501"), "a digit of Unicode, but none of FTP"
    assert fetch(ftp, "/media/big", rest=1) == BIG[1:]


def test_size_and_time(ftp: ftplib.FTP) -> None:
    assert ftp.size("/media/big") == len(BIG)
    assert ftp.sendcmd("MDTM /media/big") == "213 20231114221320"
    assert refusal(ftp, "SIZE /media").startswith("550")
    assert refusal(ftp, "MDTM /media").startswith("550")
    assert refusal(ftp, "SIZE /nope").startswith("550")
    ftp.voidcmd("TYPE A")
    assert refusal(ftp, "SIZE /media/big").startswith("550")
    assert refusal(ftp, "REST 5").startswith("501")


def test_directories(ftp: ftplib.FTP) -> None:
    assert ftp.pwd() == "/"
    ftp.cwd("media")
    ftp.cwd("Pakete")
    assert ftp.pwd() == "/media/Pakete"
    ftp.voidcmd("CDUP")
    assert ftp.pwd() == "/media"
    ftp.cwd("../../../..")
    assert ftp.pwd() == "/"
    assert refusal(ftp, "CWD README").startswith("550")
    assert refusal(ftp, "CWD nope").startswith("550")
    assert refusal(ftp, "RETR media").startswith("550")


def test_listings(ftp: ftplib.FTP) -> None:
    facts = dict(ftp.mlsd("/media"))
    assert facts["big"] == {"type": "file", "size": str(len(BIG)), "modify": "20231114221320", "perm": "r"}
    assert facts["Pakete"]["type"] == "dir"
    assert sorted(ftp.nlst("/media")) == ["Pakete", "a b+c~d", "big"]
    for command in ("LIST /media", "LIST -a /media", "LIST -la /media"):
        lines: list[str] = []
        ftp.retrlines(command, lines.append)
        assert [line[:10] for line in lines] == ["dr-xr-xr-x", "-r--r--r--", "-r--r--r--"]
        assert lines[2].split(None, 8)[4:] == [str(len(BIG)), "Nov", "14", "2023", "big"]
    assert ftp.nlst("-a") == ["README", "empty", "media"]
    assert ftp.nlst("README") == ["README"]
    assert "type=file;size=0;" in ftp.sendcmd("MLST /empty")
    ftp.sendcmd("OPTS MLST size;")
    assert dict(ftp.mlsd("/"))["empty"] == {"size": "0"}
    ftp.voidcmd("PASV")
    assert refusal(ftp, "MLSD /README").startswith("501")
    assert refusal(ftp, "LIST /nope").startswith("550")
    assert refusal(ftp, "LIST *").startswith("550"), "no globbing"


def test_names_of_any_encoding_round_trip(server: Running) -> None:
    for encoding in ("utf-8", "latin-1"):
        with ftplib.FTP(timeout=10, encoding=encoding) as ftp:
            ftp.connect(server.host, server.port)
            ftp.login()
            ftp.cwd("/media/Pakete")
            for name in ftp.nlst() if encoding == "latin-1" else ["größe.rpm"]:
                assert fetch(ftp, name) in (b"utf-8", b"latin-1")
            if encoding == "latin-1":
                assert len(ftp.nlst()) == 2, "a name with a line end would forge a line"


def test_features_are_those_that_work(ftp: ftplib.FTP) -> None:
    lines = [line.strip() for line in ftp.sendcmd("FEAT").splitlines()[1:-1]]
    assert lines == [
        "EPRT",
        "EPSV",
        "MDTM",
        "MLST type*;size*;modify*;perm*;",
        "REST STREAM",
        "SIZE",
        "TVFS",
        "UTF8",
    ]


@pytest.mark.parametrize(
    "command",
    ["STOR x", "APPE x", "STOU", "DELE README", "MKD x", "RMD media", "RNFR README", "RNTO x", "XMKD x", "XRMD x",
     "SITE CHMOD 777 README", "SITE HELP", "SITE EXEC ls", "MFMT 20200101000000 README", "ALLO 5", "REIN",
     "AUTH TLS"],
)  # fmt: skip
def test_nothing_can_be_written(ftp: ftplib.FTP, command: str) -> None:
    assert refusal(ftp, command).startswith("5")


def test_only_anonymous(server: Running) -> None:
    with server.client(login=False) as ftp:
        assert re.fullmatch(r"220 [^0-9]*", ftp.getwelcome()), "no version in the banner"
        assert refusal(ftp, "RETR /README").startswith("530")
        assert refusal(ftp, "PASS x").startswith("503")
        assert refusal(ftp, "USER root").startswith("530")
        assert ftp.login("ftp", "me@example.com").startswith("230")
        assert refusal(ftp, "USER root").startswith("530")
        assert fetch(ftp, "/README")
    with Raw(server, login=False) as raw:
        assert [raw("USER root")[:3] for _ in range(3)] == ["530"] * 3
        assert raw.reply() == ""


def test_catalog_is_asked_for_this_client(memory: Memory, server: Running) -> None:
    with server.client() as ftp:
        fetch(ftp, "/README")
    path, client = memory.asked[-1]
    assert path == "/README"
    assert client == Client(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"), "ftp")


# --- sources: slices, changes


def test_slices_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "iso").write_bytes(BIG)
    whole = opened(tmp_path, "iso")
    cuts = {"/a": (0, 700_000), "/b": (700_000, 1_000_001), "/c": (1_700_001, 5), "/d": (len(BIG) - 1, 1)}
    with serving(Memory({name: whole.slice(*cut) for name, cut in cuts.items()})) as server:

        def client(name: str) -> None:
            offset, size = cuts[name]
            part = BIG[offset : offset + size]
            with server.client() as ftp:
                for _ in range(5):
                    assert fetch(ftp, name) == part
                    assert fetch(ftp, name, rest=size // 2) == part[size // 2 :]
                assert ftp.size(name) == size
                with io.BytesIO() as text:
                    ftp.voidcmd("TYPE A")
                    with ftp.transfercmd(f"RETR {name}") as data:
                        text.write(everything(data))
                    assert ftp.voidresp().startswith("226")
                    assert text.getvalue().replace(b"\r\n", b"\n") == part.replace(b"\r\n", b"\n")

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(client, name) for name in cuts]:
                done.result(30)


@pytest.mark.parametrize("how", ["shrunk", "written", "touched"])
@pytest.mark.parametrize("kind", ["I", "A"])
def test_file_that_changes_is_never_completed(tmp_path: Path, how: str, kind: str) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(48 << 20))
    with serving(Memory({"/large": opened(tmp_path, "large"), "/ok": b"ok"})) as server, Raw(server) as raw:
        raw(f"TYPE {kind}")
        data = raw.data(buffer=8192)
        assert raw("RETR /large").startswith("150") or raw.lines
        data.recv(1000)
        if how == "shrunk":
            os.truncate(path, 20 << 20)
        elif how == "touched":
            os.utime(path)
        else:
            with path.open("r+b") as file:
                file.seek(40 << 20)
                file.write(b"new")
        received = 1000
        with pytest.raises(ConnectionResetError):
            while chunk := data.recv(1 << 20):
                received += len(chunk)
        data.close()
        assert received < 48 << 20
        assert raw.reply().startswith("451")
        server.until(lambda: server.of("ftp.failed"))
        assert server.of("ftp.failed")[0]["bytes"] < 48 << 20
        raw("TYPE I")
        data = raw.data()
        assert raw("RETR /ok")[:3] in ("125", "150")
        assert everything(data) == b"ok", "the session goes on"
        assert len(server.of("ftp.failed")) == 1
        assert server.of("ftp.failed")[0]["path"] == "/large"


def test_file_replaced_by_rename_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"old" * (8 << 20))
    with serving(Memory({"/large": opened(tmp_path, "large")})) as server, Raw(server) as raw:
        data = raw.data(buffer=8192)
        raw("RETR /large")
        first = data.recv(1000)
        (tmp_path / "new").write_bytes(b"new" * 100)
        (tmp_path / "new").rename(path)
        assert first + everything(data) == b"old" * (8 << 20)


def test_real_catalog(tmp_path: Path) -> None:
    root, media = tmp_path / "root", tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    media.mkdir()
    (root / "sub" / "file").write_bytes(BIG)
    (media / "vmlinuz").write_bytes(b"kernel")
    (root / "out").symlink_to("/etc/passwd")
    (root / "in").symlink_to("sub/file")
    os.mkfifo(root / "fifo")
    settings = config.Config(interface="lo", roots=(root,), media=({"name": "deb", "path": media},))
    catalog = Catalog(settings)
    try:
        with serving(catalog) as server, server.client() as ftp:
            ftp.voidcmd("TYPE I")
            assert fetch(ftp, "/sub/file") == BIG
            assert fetch(ftp, "in") == BIG
            assert fetch(ftp, "/media/deb/vmlinuz") == b"kernel"
            assert {"sub", "in", "media"} <= set(ftp.nlst("/"))
            assert ftp.nlst("/media/deb") == ["vmlinuz"]
            ftp.voidcmd("TYPE I")
            assert ftp.size("/media/deb/vmlinuz") == 6
            ftp.voidcmd("PASV")
            for path in ("/out", "/fifo", "/../etc/passwd", "/nope", "/sub", "/media/deb/../../../etc/passwd"):
                assert refusal(ftp, f"RETR {path}").startswith("550")
    finally:
        catalog.close()


class Later(Memory):
    """A catalog whose answers come when `go` is set; the one for /bug is a fault."""

    def __init__(self, files: dict[str, bytes | Source]) -> None:
        super().__init__(files)
        self.go = threading.Event()
        self.cancelled = 0

    async def _later(self, answer: Callable[[], Any]) -> Any:
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer()

    def resolve(self, path: str, client: Client) -> Any:
        if path == "/bug":
            return self._later(lambda: 1 / 0)
        return self._later(lambda: Memory.resolve(self, path, client))

    def stat(self, path: str, client: Client) -> Any:
        return self._later(lambda: Memory.stat(self, path, client))

    def list(self, path: str, client: Client) -> Any:
        return [Item("ok", False, 2, 0)]


def test_answers_that_come_later() -> None:
    catalog = Later({"/ok": b"okay", "/dir/ok": b"ok"})
    catalog.go.set()
    with serving(catalog) as server, server.client() as ftp:
        ftp.voidcmd("TYPE I")
        assert fetch(ftp, "/ok") == b"okay"
        assert ftp.size("/ok") == 4
        assert ftp.voidcmd("MDTM /ok") == "213 20231114221320"
        assert "size=4;" in ftp.sendcmd("MLST /ok")
        assert refusal(ftp, "SIZE /dir").startswith("550")
        ftp.cwd("/dir")
        assert ftp.nlst() == ["ok"]
        ftp.voidcmd("PASV")
        assert refusal(ftp, "RETR /bug").startswith("451")
        assert refusal(ftp, "RETR /none").startswith("550")
        assert fetch(ftp, "ok") == b"ok"


def test_no_command_overtakes_an_answer_that_comes_later() -> None:
    catalog = Later({"/ok": b"okay"})
    with serving(catalog) as server, Raw(server) as raw:
        raw("TYPE I")
        data = raw.data()
        raw.sock.sendall(b"REST 1\r\nRETR /ok\r\nSIZE /ok\r\nNOOP\r\n")
        assert raw.reply().startswith("350")
        assert raw.silent(), "replies keep the order of the commands"
        with server.client() as other:
            other.voidcmd("NOOP")
        catalog.go.set()
        assert raw.reply().startswith("125")
        assert everything(data) == b"kay"
        assert sorted(raw.reply()[:3] for _ in range(3)) == ["200", "213", "226"]


def test_a_session_that_ends_before_its_answer_comes() -> None:
    catalog = Later({"/ok": b"okay"})
    with serving(catalog) as server:
        with Raw(server) as raw:
            raw.sock.sendall(b"SIZE /ok\r\n")
            assert raw.silent()
            server.wait(server.service.stop())
            assert raw.reply() == ""
        server.until(lambda: catalog.cancelled == 1)


def test_a_stop_lets_an_answer_come_that_is_on_its_way() -> None:
    catalog = Later({"/ok": b"okay"})
    with serving(catalog) as server, Raw(server) as raw:
        raw("TYPE I")
        data = raw.data()
        raw.sock.sendall(b"RETR /ok\r\n")
        assert raw.silent()
        stopping = asyncio.run_coroutine_threadsafe(server.service.stop(10), server.loop)
        assert raw.silent()
        catalog.go.set()
        assert raw.reply().startswith("125")
        assert everything(data) == b"okay"
        assert raw.reply().startswith("226")
        stopping.result(5)


# --- transfers that end early


def test_abort(large: Source) -> None:
    with serving(Memory({"/large": large})) as server, Raw(server) as raw:
        assert raw("ABOR").startswith("225")
        data = raw.data(buffer=8192)
        raw("RETR /large")
        assert data.recv(5) == b"start"
        assert raw("ABOR").startswith("426")
        assert raw.reply().startswith("226")
        data.close()
        raw.passive()
        assert raw("RETR /large").startswith("150")
        assert raw("ABOR").startswith("426"), "nobody connected yet"
        assert raw.reply().startswith("226")
        raw.passive()
        assert raw("ABOR").startswith("225")
        data = raw.data(buffer=8192)
        raw("RETR /large")
        raw.sock.sendall(b"\xff\xf4\xff")
        raw.sock.send(b"\xf2", socket.MSG_OOB)
        assert raw("ABOR").startswith("426"), "Telnet IP and Synch before ABOR"
        assert raw.reply().startswith("226")
        data.close()
        assert [facts["reason"] for facts in server.of("ftp.failed")] == ["the client aborted"] * 2


def test_telnet_bytes_before_any_command(server: Running) -> None:
    with Raw(server) as raw:
        raw.sock.sendall(b"\xff\xfb\x01\xff\xfd\x03\xff\xf1")
        assert raw("NOOP").startswith("200")


def test_client_that_takes_nothing(large: Source) -> None:
    with serving(Memory({"/large": large}), Limits(stall=0.3)) as server, Raw(server) as raw:
        data = raw.data(buffer=8192)
        raw("RETR /large")
        assert raw.reply().startswith("421")
        assert raw.reply() == ""
        data.close()
        assert "took less than" in server.of("ftp.failed")[0]["reason"]


def test_resets_leak_nothing_and_disturb_nobody(large: Source) -> None:
    with serving(Memory({"/large": large, "/big": BIG})) as server:
        with server.client() as ftp:
            assert fetch(ftp, "/big") == BIG
        server.until(lambda: not server.service.counters()["sessions_open"])
        gc.collect()  # sockets that other tests left
        before = descriptors()
        for turn in range(20):
            raw = Raw(server)
            data = raw.data(buffer=8192)
            raw("RETR /large")
            data.recv(5)
            if turn % 3 == 0:
                reset(data)
                assert raw.reply().startswith("426")
            elif turn % 3 == 1:
                reset(raw.sock)
                raw.lines.close()
            raw.close()
            data.close()
        raws = [Raw(server) for _ in range(10)]
        for raw in raws:
            raw.data().close() if id(raw) % 2 else raw.passive()
            raw.close()
        server.until(lambda: not server.service.counters()["sessions_open"])
        assert descriptors() == before
        with server.client() as ftp:
            assert fetch(ftp, "/big") == BIG
        assert len(server.of("ftp.failed")) == 20


def test_clients_that_connect_and_reset_at_once(server: Running) -> None:
    """uvloop aborts the process where a watched descriptor is closed early."""
    for _ in range(300):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((server.host, server.port))
        reset(sock)
    for _ in range(50):
        with Raw(server) as raw:
            address = raw.passive()
            sock = socket.create_connection(address, 5)
            reset(sock)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Raw(server) as raw:
        assert raw(f"PORT 127,0,0,1,{port // 256},{port % 256}").startswith("200")
        reply = raw("RETR /README")
        assert (raw.reply() if reply.startswith("150") else reply).startswith("425")
    with server.client() as ftp:
        assert fetch(ftp, "/README")


def test_commands_without_a_data_connection(server: Running, large: Source) -> None:
    with Raw(server) as raw:
        assert raw("RETR /README").startswith("425")
        assert raw("LIST").startswith("425")
        data = raw.data()
        reset(data)
        assert raw.silent()
        assert raw("RETR /README").startswith("425")
    with serving(Memory({"/large": large, "/ok": b"ok"}), Limits(connect=0.2)) as server, Raw(server) as raw:
        data = raw.data(buffer=8192)
        raw("RETR /large")
        data.recv(5)
        assert raw("RETR /ok").startswith("503"), "one transfer at a time"
        assert raw("LIST").startswith("503")
        assert raw("ABOR").startswith("426")
        data.close()
        raw.reply()
        raw.passive()
        assert raw("RETR /ok").startswith("150")
        assert raw.reply().startswith("425"), "nobody connects"
        data = raw.data()
        assert raw.silent(), "the file of before must not come"
        assert raw("RETR /ok").startswith("125")
        assert everything(data) == b"ok"
        assert raw.reply().startswith("226")
        raw.passive()
        assert raw("RETR /large").startswith("150")
        data = raw.data()
        assert raw.silent(), "a new PASV drops what waited for the old one"
        assert raw("RETR /ok").startswith("125")
        assert everything(data) == b"ok"


# --- limits and guards


def test_500_sessions_at_once(memory: Memory) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    with serving(memory, max_per_address=500) as server:
        socks = []
        for _ in range(500):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((server.host, server.port))
            socks.append(sock)
        started = time.monotonic()
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(200).startswith(b"220")
        for words in (b"USER ftp\r\n", b"PASS x\r\n", b"TYPE I\r\n", b"PASV\r\n"):
            for sock in socks:
                sock.sendall(words)
            replies = [sock.recv(200) for sock in socks]
            assert all(reply[:1] in b"23" for reply in replies)
        datas = []
        for sock, reply in zip(socks, replies, strict=True):
            high, low = map(int, re.findall(rb"\d+", reply)[-2:])
            datas.append(socket.create_connection(("127.0.0.1", high * 256 + low), 10))
            sock.sendall(b"RETR /README\r\n")
        assert all(everything(data) == b"one\ntwo\r\nthree\n" for data in datas)
        assert time.monotonic() - started < 20
        assert server.counters()["sessions"] == 500 and server.counters()["sent"] == 500
        for sock in socks:
            sock.close()


def test_session_limit_counts_sessions_only(memory: Memory) -> None:
    with serving(memory, max_sessions=3) as server:
        clients = [Raw(server) for _ in range(3)]
        datas = [client.data() for client in clients]
        with socket.create_connection((server.host, server.port), 5) as late:
            assert everything(late).startswith(b"421 ")
        for client, data in zip(clients, datas, strict=True):
            assert client("RETR /README")[:3] in ("125", "150")
            assert everything(data)
        clients[0].close()
        server.until(lambda: server.service.counters()["sessions_open"] == 2)
        with server.client() as ftp:
            assert fetch(ftp, "/README")
        server.call(lambda: server.service.reload(config.Ftp(max_sessions=4)))
        more = [Raw(server), Raw(server)]
        for client in [*clients, *more]:
            client.close()
        assert server.of("ftp.refused") == [{"peer": "127.0.0.1", "reason": "too many sessions", "times": 1}]


def test_one_address_keeps_nobody_else_out(memory: Memory) -> None:
    with serving(memory, max_sessions=9, max_per_address=2) as server, ExitStack() as stack:
        address = (server.host, server.port)

        def greeting(source: str) -> bytes:
            sock = stack.enter_context(socket.create_connection(address, 10, source_address=(source, 0)))
            return sock.recv(4)

        assert [greeting("127.0.0.2") for _ in range(4)] == [b"220 ", b"220 ", b"421 ", b"421 "]
        assert greeting("127.0.0.3") == b"220 "
        stack.close()
        server.until(lambda: server.service.counters()["sessions_open"] == 0)
        assert greeting("127.0.0.2") == b"220 "
        assert server.of("ftp.refused")[0]["reason"] == "too many sessions of one address"


def test_one_address_has_half_of_the_descriptors(memory: Memory) -> None:
    """However many sessions the configuration allows to it: 1,024 open files are 512 for clients, five each."""
    few = Descriptors(1024)
    with serving(memory, descriptors=few, max_per_address=1000) as server, ExitStack() as stack:
        address = (server.host, server.port)
        greedy = [stack.enter_context(socket.create_connection(address, 10, ("127.0.0.2", 0))) for _ in range(100)]
        heads = [each.recv(4) for each in greedy]
        assert (heads.count(b"220 "), heads.count(b"421 ")) == (51, 49)
        assert server.service.counters()["refused_too_many_descriptors_of_one_address"] == 49
        for number in range(20):
            other = stack.enter_context(socket.create_connection(address, 10, (f"127.0.1.{1 + number}", 0)))
            assert other.recv(4) == b"220 "
        for each in greedy:
            each.close()
        server.until(lambda: few.lacks(255, "127.0.0.2") is None)


def test_a_small_file_and_its_replies_leave_at_once(server: Running) -> None:
    def packets(sock: socket.socket) -> int:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        return int.from_bytes(info[152:156], sys.byteorder)  # tcpi_data_segs_in

    with Raw(server) as raw, raw.data() as data:
        before = packets(raw.sock)
        assert raw("RETR /README").startswith("125")
        assert raw.reply().startswith("226")
        assert packets(raw.sock) == before + 1
        assert everything(data) == b"one\ntwo\r\nthree\n"


def test_a_small_file_that_changed_before_its_connection_came_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"as it was")
    with serving(Memory({"/small": opened(tmp_path, "small")})) as server, Raw(server) as raw:
        address = raw.passive()
        assert raw("RETR /small").startswith("150")
        (tmp_path / "small").write_bytes(b"as it is!")
        # It is reset: where this process is slow, before `connect` has told of it.
        with suppress(ConnectionError), socket.create_connection(address, 10) as data:
            assert data.recv(1) == b""
        assert raw.reply().startswith("451")


def test_what_the_kernel_does_not_take_of_a_small_file_follows(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftp_data, "SMALL", len(BIG))
    with Raw(server) as raw, raw.data(buffer=4096) as data:
        assert raw("REST 1000").startswith("350")
        assert raw("RETR /media/big").startswith("125")
        assert everything(data) == BIG[1000:]
        assert raw.reply().startswith("226")
    assert server.of("ftp.sent")[-1]["bytes"] == len(BIG) - 1000


def test_a_session_keeps_its_listener_for_the_next_small_file(memory: Memory) -> None:
    with serving(memory) as server, Raw(server) as raw:

        def fetched(address: tuple[str, int]) -> bytes:
            with socket.create_connection(address, 10) as data:
                assert raw("RETR /README").startswith(("125", "150"))
                content = everything(data)
            assert raw.reply().startswith("226")
            return content

        address = raw.passive()
        expected = fetched(address)
        for _ in range(3):
            assert raw.passive() == address
            assert fetched(address) == expected
        with socket.create_connection(address, 10) as uninvited:
            moved = raw.passive()
            assert moved != address, "others know it"
            assert everything(uninvited) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 10)
        assert fetched(moved) == expected
        stranger = socket.socket()
        stranger.bind(("127.0.0.9", 0))
        stranger.connect(moved)
        with stranger:
            assert everything(stranger) == b""
        assert raw.passive() != moved


def test_a_listener_that_rests_is_given_up_in_time(memory: Memory) -> None:
    with serving(memory, Limits(connect=0.2)) as server, Raw(server) as raw:
        address = raw.passive()
        with socket.create_connection(address, 10) as data:
            raw("RETR /README")
            everything(data)
            raw.reply()
        assert raw.silent(0.6), "nobody waits for a connection"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 10)


def test_a_port_that_rests_is_for_who_needs_one(memory: Memory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        ports = {key: free.getsockname()[1] for key in ("first", "last")}
    with serving(memory, passive_ports=ports) as server, Raw(server) as one, Raw(server) as two:
        for raw in (one, two, one):
            address = raw.passive()
            with socket.create_connection(address, 10) as data:
                raw("RETR /README")
                assert everything(data)
            assert raw.reply().startswith("226")


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def test_passive_range(memory: Memory) -> None:
    # Below the ports that clients get: one of those, ended less than a minute ago, would be a second one taken.
    first = next(port for port in range(20_000, 30_000, 3) if all(map(is_free, range(port, port + 3))))
    with socket.create_server(("127.0.0.1", first + 1)):
        middle = first + 1
        ports = {"first": middle - 1, "last": middle + 1}
        with serving(memory, passive_ports=ports) as server:
            with Raw(server) as one, Raw(server) as two, Raw(server) as three:
                assert {one.passive()[1], two.passive()[1]} == {middle - 1, middle + 1}
                assert three("PASV").startswith("425")
                assert three("EPSV").startswith("425")
                assert three("RETR /README").startswith("425")
                assert one("ABOR").startswith("225")
                data = three.data()
                assert three("RETR /README")[:3] in ("125", "150")
                assert everything(data)
            for _ in range(20):  # a port whose connections linger is used again
                with server.client() as ftp:
                    assert fetch(ftp, "/README")
            assert server.counters()["refused_no_passive_port"] == 2


def test_the_address_that_a_nat_has(memory: Memory) -> None:
    """PASV tells it; EPSV tells none (RFC 2428), so where clients use that it changes nothing."""
    with serving(memory, passive_address="203.0.113.7") as server, Raw(server) as raw:
        host, port = raw.passive()
        assert host == "203.0.113.7"
        with socket.create_connection((server.host, port), 5) as data:  # as the NAT sends it on
            assert raw("RETR /README")[:3] in ("125", "150")
            assert everything(data) == b"one\ntwo\r\nthree\n"
        assert raw.reply().startswith("226")
        assert re.fullmatch(r"229 [^(]+\(\|\|\|\d+\|\)\.", raw("EPSV"))
        server.call(lambda: server.service.reload(config.Ftp()))
        assert raw.passive()[0] == server.host


def test_ports_of_ended_connections_are_used_again() -> None:
    script = """
        import pathlib, socket, subprocess
        from fastboot.lab import namespace
        from fastboot.services.ftp_data import PassivePorts

        namespace.enter()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40003")
        ports = PassivePorts(None)
        for number in range(9):
            with socket.socket() as door, socket.socket() as client:
                port = ports.bind(door, "127.0.0.1")
                door.listen(1)
                client.bind(("127.0.0.1", 50000 + number))
                client.connect(("127.0.0.1", port))
                door.accept()[0].close()
                assert client.recv(1) == b""
            ports.give_back(port)
            print(port)
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == {"40000", "40001", "40002", "40003"}


def test_bounce_is_refused(server: Running) -> None:
    with socket.create_server(("127.0.0.2", 0)) as victim:
        port = victim.getsockname()[1]
        with Raw(server) as raw:
            assert raw(f"PORT 127,0,0,2,{port // 256},{port % 256}").startswith("501")
            assert raw(f"EPRT |1|127.0.0.2|{port}|").startswith("501")
            assert raw("PORT 127,0,0,1,0,25").startswith("501")
            assert raw("EPRT |1|127.0.0.1|1023|").startswith("501")
            assert raw(f"EPRT |2|::ffff:127.0.0.2|{port}|").startswith(("501", "522"))
            assert raw(f"PORT 0,0,0,0,{port // 256},{port % 256}").startswith("501")
            assert raw(f"EPRT |1|localhost|{port}|").startswith("501")
            for nonsense in (
                "PORT 1,2,3",
                "PORT 127,0,0,1,999,999",
                "EPRT",
                "EPRT |",
                "EPRT |1|x|9|",
                "PORT a,b,c,d,e,f",
            ):
                assert raw(nonsense).startswith("501"), nonsense
            assert raw("RETR /README").startswith("425")
        victim.settimeout(0.1)
        with pytest.raises(TimeoutError):
            victim.accept()


def test_stolen_data_connection_is_refused(server: Running) -> None:
    with Raw(server) as raw:
        address = raw.passive()
        with socket.create_connection(address, 5, ("127.0.0.2", 0)) as thief:
            assert everything(thief) == b""
        assert raw.silent(), "no stray reply"
        with socket.create_connection(address, 5) as data:
            assert raw("RETR /README")[:3] in ("125", "150")
            assert everything(data)


def test_login_deadline_is_not_moved_by_noop(memory: Memory) -> None:
    with serving(memory, Limits(login=0.4, commands_before_login=10_000)) as server:
        started = time.monotonic()
        with Raw(server) as quick, Raw(server, login=False) as slow:
            while (reply := slow("NOOP")).startswith("200"):
                time.sleep(0.02)
            assert reply.startswith("421") or reply == ""
            assert 0.3 < time.monotonic() - started < 5
            assert quick("NOOP").startswith("200")
        assert server.of("ftp.refused")[0]["reason"] == "no login in time"


def test_idle_session_ends(memory: Memory) -> None:
    with serving(memory, Limits(idle=0.3)) as server, Raw(server) as raw:
        assert raw.reply().startswith("421")
        assert raw.reply() == ""


def test_command_that_never_ends_is_cut(memory: Memory) -> None:
    """Slowloris: an octet now and then is no command."""
    with serving(memory, Limits(idle=0.5)) as server, Raw(server) as raw:
        with pytest.raises(OSError):  # while it still sends
            for _ in range(400):
                raw.sock.sendall(b"N")
                time.sleep(0.02)
        server.until(lambda: server.service.counters()["sessions_open"] == 0)


def test_listing_that_is_read_slowly_is_cut(memory: Memory) -> None:
    empty = Source.of_bytes("empty", b"")
    many = Memory({f"/{number:0200}": empty for number in range(30_000)})
    with serving(many, Limits(stall=0.5)) as server, Raw(server) as raw:
        data = raw.data(buffer=4096)
        raw("LIST")
        with data, suppress(OSError):
            while data.recv(100):
                time.sleep(0.02)
        assert raw.reply().startswith("421")
        server.until(lambda: server.service.counters()["sessions_open"] == 0)


def test_commands_before_login_are_limited(server: Running) -> None:
    with Raw(server, login=False) as raw:
        replies = [raw("NOOP") for _ in range(17)]
        assert [reply[:3] for reply in replies] == ["200"] * 16 + ["421"]
        assert raw.reply() == ""


def test_line_length(server: Running) -> None:
    with Raw(server) as raw:
        raw.sock.sendall(b"CWD " + b"x" * 300_000 + b"QUIT\r\n")
        assert raw.reply() == "500 Command too long."
        assert raw("NOOP").startswith("200"), "the rest of a long line is no command"
        assert raw("SIZE /" + "x" * 4090).startswith("550")


@pytest.mark.parametrize("middle", [b"\n", b"\r\0", b"\r", b"\0", b"\x1b", b"\x7f"])
def test_control_characters_do_not_split_commands(server: Running, middle: bytes) -> None:
    with Raw(server) as raw:
        raw.sock.sendall(b"CWD /media" + middle + b"PASV\r\n")
        assert raw.reply().startswith("501")
        assert raw.silent()


def test_client_that_reads_no_replies(memory: Memory) -> None:
    with serving(memory) as server, Raw(server) as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(OSError):
            for _ in range(3000):
                raw.sock.sendall(b"HELP\r\n" * 1000)
        server.until(lambda: server.service.counters()["sessions_open"] == 0)


def test_pipelined_commands_after_quit(memory: Memory) -> None:
    with capture_logs() as logs, serving(memory) as server, Raw(server) as raw:
        raw.sock.sendall(b"QUIT\r\nRETR /nope\r\nLIST\r\n")
        assert raw.reply().startswith("221")
        assert raw.reply() == ""
        server.until(lambda: not server.service.counters()["sessions_open"])
        assert server.of("ftp.failed") == []
    assert logs == []


@pytest.mark.parametrize("way", ["passive", "active", "not yet there"])
def test_quit_behind_a_transfer_waits_for_its_result(memory: Memory, large: Source, way: str) -> None:
    """RFC 959 section 4.1.1, QUIT: the connection remains open for result response."""
    memory.put("/large", large)
    with capture_logs() as logs, serving(memory) as server, Raw(server) as raw, socket.socket() as door:
        if way == "active":
            door.bind(("127.0.0.1", 0))
            door.listen()
            port = door.getsockname()[1]
            assert raw(f"PORT 127,0,0,1,{port // 256},{port % 256}").startswith("200")
        address = None if way == "active" else raw.passive()
        early = socket.create_connection(address, 10) if way == "passive" else None
        raw.sock.sendall(b"RETR /large\r\nQUIT\r\nNOOP\r\n")
        assert raw.reply()[:3] in ("125", "150")
        assert raw.silent(), "221 would say that the session is over"
        with early or (door.accept()[0] if way == "active" else socket.create_connection(address, 10)) as data:
            assert len(everything(data)) == large.size
        assert raw.reply().startswith("226")
        assert raw.reply() == "221 Goodbye."
        assert raw.reply() == ""
        server.until(lambda: not server.service.counters()["sessions_open"])
        assert len(server.of("ftp.sent")) == 1
    assert logs == []


def test_quit_behind_a_transfer_whose_client_never_comes(memory: Memory) -> None:
    with serving(memory, Limits(connect=0.3)) as server, Raw(server) as raw:
        raw.passive()
        raw.sock.sendall(b"RETR /README\r\nQUIT\r\n")
        assert [raw.reply()[:3] for _ in range(4)] == ["150", "425", "221", ""]
        server.until(lambda: not server.service.counters()["sessions_open"])


def test_abort_overtakes_a_transfer_and_quit_follows(memory: Memory, large: Source) -> None:
    memory.put("/large", large)
    with serving(memory) as server, Raw(server) as raw, raw.data(buffer=8192) as data:
        raw.sock.sendall(b"RETR /large\r\nABOR\r\nQUIT\r\n")
        with pytest.raises(ConnectionResetError):
            everything(data)
        assert [raw.reply()[:3] for _ in range(5)] == ["125", "426", "226", "221", ""]


class Vanishing(Memory):
    """The client goes between its command and the reply."""

    raw: Raw

    def resolve(self, path: str, client: Client) -> Any:
        self.raw.lines.close()
        reset(self.raw.sock)
        return super().resolve(path, client)


def test_client_that_is_gone_when_its_reply_comes(large: Source) -> None:
    vanishing = Vanishing({"/large": large})
    with capture_logs() as logs, serving(vanishing) as server:
        vanishing.raw = Raw(server)
        data = vanishing.raw.data(buffer=8192)
        vanishing.raw.sock.sendall(b"RETR /large\r\n")
        with data, pytest.raises(ConnectionResetError):
            everything(data)
        server.until(lambda: not server.service.counters()["sessions_open"])
    assert logs == []


class Slow(Memory):
    """A directory that takes long to read."""

    reading, go = threading.Event(), threading.Event()

    def list(self, path: str, client: Client) -> Any:
        self.reading.set()
        assert self.go.wait(10)
        if path == "/bug":
            raise ZeroDivisionError
        return super().list(path, client)


def test_slow_listing_holds_nobody_else_up() -> None:
    slow = Slow({"/a": b"a", "/bug/b": b"b"})
    with serving(slow) as server, Raw(server) as raw, Raw(server) as gone:
        data = raw.data()
        raw.sock.sendall(b"NLST\r\nNOOP\r\nSIZE /a\r\nNLST /bug\r\n")
        assert slow.reading.wait(5)
        with server.client() as ftp:
            assert fetch(ftp, "/a") == b"a"
        with gone.data():
            gone.sock.sendall(b"NLST\r\n")
            gone.close()
        assert raw.silent(), "replies keep the order of the commands"
        slow.go.set()
        assert raw.reply().startswith("125")
        assert everything(data) == b"a\r\nbug\r\n"
        replies = [raw.reply()[:3] for _ in range(4)]
        assert replies == ["200", "213", "503", "226"]
        server.until(lambda: server.service.counters()["sessions_open"] == 1)
        data = raw.data()
        assert raw("NLST /bug").startswith("451")
        assert raw("NLST /a").startswith("125")
        assert everything(data) == b"a\r\n"


def test_listing_limit(memory: Memory) -> None:
    with serving(memory, Limits(listing=2)) as server, server.client() as ftp:
        ftp.voidcmd("PASV")
        assert refusal(ftp, "LIST /media").startswith("451")
        assert refusal(ftp, "STAT /media").startswith("504")


def test_server_outlives_its_descriptors(tmp_path: Path) -> None:
    """pyftpdlib closes its listener at the first EMFILE."""
    script = textwrap.dedent("""
        import resource, socket, sys, time
        from tests.ftpkit import Memory, serving
        with serving(Memory({"/ok": b"ok"})) as server:
            with server.client() as ftp: ftp.retrbinary("RETR /ok", print)
            resource.setrlimit(resource.RLIMIT_NOFILE, (120, 4096))
            socks = []
            try:
                while True: socks.append(socket.create_connection((server.host, server.port)))
            except OSError: pass
            full = [s for s in socks]
            time.sleep(0.5)
            for sock in socks: sock.close()
            server.until(lambda: not server.service.counters()["sessions_open"])
            with server.client() as ftp: ftp.retrbinary("RETR /ok", print)
            assert "refused_no_descriptor_is_free" in server.counters(), server.counters()
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("b'ok'") == 2
    assert done.stderr == ""


def test_quit_with_an_open_data_connection_by_a_client_that_is_gone(memory: Memory) -> None:
    with capture_logs() as logs, serving(memory) as server, Raw(server) as raw, raw.data():
        (session,) = server.service._sessions
        server.call(lambda: session.socket.shutdown(socket.SHUT_WR))  # as after its reset: EPIPE
        raw.sock.sendall(b"QUIT\r\n")
        server.until(lambda: not server.service.counters()["sessions_open"])
    assert logs == []


def test_nonsense_ends_in_replies(memory: Memory) -> None:
    """Seeded nonsense, on the control connection and around the data connections: no fault, no session left."""
    chance = random.Random(3)
    words = [*COMMANDS, "STOR", "SITE", "XXXX", ""]
    arguments = [
        "",
        "/README",
        "/media",
        "1",
        "a,b",
        "127,0,0,1,9,9",
        "|1|127.0.0.1|9|",
        "MLST type;",
        "é",
        "-la /",
        "I",
    ]
    with capture_logs() as logs, serving(memory, Limits(connect=0.05)) as server:
        for _ in range(60):
            login = chance.random() < 0.9
            with Raw(server, login=login) as raw, contextlib.suppress(OSError), contextlib.ExitStack() as peers:
                raw.sock.settimeout(5)
                for _ in range(chance.randrange(60)):
                    if chance.random() < 0.1:
                        line = chance.randbytes(chance.choice([1, 10, 5000]))
                    else:
                        line = f"{chance.choice(words)} {chance.choice(arguments)}".strip().encode()
                    raw.sock.sendall(line + chance.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\0", b""]))
                    if chance.random() < 0.2:
                        raw.sock.sendall(b"\r\nPASV\r\n")
                        if match := re.findall(rb"\(127,0,0,1,(\d+),(\d+)\)", raw.sock.recv(100_000)):
                            address = "127.0.0.1", int(match[-1][0]) * 256 + int(match[-1][1])
                            with contextlib.suppress(ConnectionError):
                                peer = socket.create_connection(address, 5)
                                peers.callback(chance.choice([reset, socket.socket.close]), peer)
        server.until(lambda: not server.service.counters()["sessions_open"])
        with server.client() as ftp:
            assert fetch(ftp, "/README")
    assert logs == []


# --- the service


def test_progress_and_events(large: Source) -> None:
    def mac_of(address: IPv4Address) -> str:
        return "52:54:00:00:00:01"

    with loop_thread() as loop:
        events: list[Any] = []
        service = FtpService(
            config.Ftp(port=0), [LOOPBACK], Memory({"/large": large}), events.append, mac_of=mac_of
        )
        asyncio.run_coroutine_threadsafe(service.start(), loop).result(5)
        server = Running(service, loop, events)
        with Raw(server) as raw:
            data = raw.data(buffer=8192)
            raw("REST 1000")
            raw("RETR /large")
            data.recv(5)
            # The sending thread counts after the kernel took them.
            server.until(lambda: service.transfers()[0].bytes > 1000)
            (progress,) = server.call(service.transfers)
            assert (str(progress.peer), progress.mac, progress.path) == (
                "127.0.0.1",
                mac_of(progress.peer),
                "/large",
            )
            assert 1005 <= progress.bytes < progress.size == 64 << 20
            assert server.counters()["transfers_open"] == 1
            assert 5 + len(everything(data)) == (64 << 20) - 1000
            assert raw.reply().startswith("226")
            server.until(lambda: server.of("ftp.sent"))
            sent = server.of("ftp.sent")[0]
            assert sent["bytes"] == (64 << 20) - 1000 and sent["path"] == "/large" and sent["seconds"] >= 0
            assert events[-1].mac == mac_of(progress.peer)
            assert server.call(service.transfers) == []
        server.wait(service.stop())
        assert server.kinds() == ["ftp.session", "ftp.sent"]


def test_stop_lets_transfers_finish(large: Source) -> None:
    with serving(Memory({"/large": large})) as server, Raw(server) as raw, Raw(server) as idle:
        data = raw.data(buffer=8192)
        raw("RETR /large")
        data.recv(5)
        stopping = asyncio.run_coroutine_threadsafe(server.service.stop(20), server.loop)
        assert idle.reply().startswith("421")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port), 5)
        assert not stopping.done()
        assert 5 + len(everything(data)) == 64 << 20
        assert raw.reply().startswith("226")
        assert raw.reply() == ""
        stopping.result(5)


def test_stop_ends_what_does_not_finish(large: Source) -> None:
    gc.collect()  # sockets that other tests left
    before = descriptors()
    with serving(Memory({"/large": large})) as server, Raw(server) as raw:
        data = raw.data(buffer=8192)
        raw("RETR /large")
        data.recv(5)
        server.wait(server.service.stop(0.2))
        with data, pytest.raises(ConnectionResetError):
            everything(data)
        assert server.of("ftp.failed")[0]["reason"] == "the server stopped"
    assert descriptors() == before


def test_two_services_in_one_process(memory: Memory) -> None:
    other = Memory({"/README": b"other"})
    with loop_thread() as loop, serving(memory, loop=loop) as one:
        with serving(other, Limits(commands_before_login=1), loop=loop, max_sessions=1) as two:
            with one.client() as first, one.client() as second, Raw(two, login=False) as raw:
                assert fetch(first, "/README") == fetch(second, "/README") == b"one\ntwo\r\nthree\n"
                assert raw("NOOP").startswith("200")
                assert raw("NOOP").startswith("421")
            assert two.counters()["sessions"] == 1 and one.counters()["sessions"] == 2
        with one.client() as ftp:
            assert fetch(ftp, "/README") == b"one\ntwo\r\nthree\n", "the other one's end is not ours"


def test_data_comes_from_the_address_that_was_asked(memory: Memory) -> None:
    link = Link("lo", 1, bytes(6), 65536, (IPv4Interface("127.0.0.1/8"), IPv4Interface("127.0.0.3/8")))
    with serving(memory, link=link) as server:
        assert [host for host, _ in server.service.addresses] == ["127.0.0.1", "127.0.0.3"]
        host, port = server.service.addresses[1]
        ftp = ftplib.FTP(timeout=10)
        ftp.trust_server_pasv_ipv4_address = True
        ftp.connect(host, port)
        ftp.login()
        assert ftp.makepasv()[0] == "127.0.0.3"
        assert fetch(ftp, "/README")
        assert memory.asked[-1][1].server == IPv4Address("127.0.0.3")
        local = ftp.sock.getsockname()[0]
        with socket.create_server((local, 0)) as listener:
            data_port = listener.getsockname()[1]
            ftp.sendcmd(f"PORT {local.replace('.', ',')},{data_port // 256},{data_port % 256}")
            connection, peer = listener.accept()
            connection.close()
            assert peer[0] == "127.0.0.3"
        ftp.close()


def test_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        holder = rf"ftp\.port: TCP port {port} of 127\.0\.0\.1 is taken by .* \(process {os.getpid()}\)"
        with pytest.raises(FastbootError, match=holder):
            open_sockets(config.Ftp(port=port), [LOOPBACK])


def test_sockets_bound_before(memory: Memory) -> None:
    sockets = open_sockets(config.Ftp(port=0), [LOOPBACK])
    port = sockets[0].getsockname()[1]
    with loop_thread() as loop:
        service = FtpService(config.Ftp(port=1), [LOOPBACK], memory, lambda event: None, sockets=sockets)
        asyncio.run_coroutine_threadsafe(service.start(), loop).result(5)
        server = Running(service, loop, [])
        assert server.port == port
        with server.client() as ftp:
            assert fetch(ftp, "/README")
        server.wait(service.stop())


def test_logging_of_the_process_is_left_alone(memory: Memory, capfd: pytest.CaptureFixture[str]) -> None:
    handlers, theirs = list(logging.root.handlers), list(logging.getLogger("pyftpdlib").handlers)
    with serving(memory) as server:
        with server.client() as ftp, pytest.raises(ftplib.error_perm):
            ftp.retrbinary("RETR /nope", print)
        with Raw(server) as raw:
            raw("PORT 10,0,0,1,0,1")
    assert logging.root.handlers == handlers
    assert logging.getLogger("pyftpdlib").handlers == theirs
    assert logging._srcfile is not None  # type: ignore[attr-defined]
    assert capfd.readouterr().err == ""


def test_loop_is_idle_without_work(memory: Memory) -> None:
    with serving(memory) as server, Raw(server) as raw:
        raw.passive()
        before = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - before < 0.1


def test_refusals_are_told_once_a_second(memory: Memory) -> None:
    with serving(memory) as server, Raw(server) as raw:
        for _ in range(50):
            raw("PORT 10,0,0,1,9,9")
        assert server.counters()["refused_bounce"] == 50
        assert len(server.of("ftp.refused")) <= 2


def test_refusal_is_a_model_refusal() -> None:
    assert isinstance(Memory().resolve("/x", Client(IPv4Address(1), IPv4Address(2), "ftp")), Refusal)

"""Plain requests, which the core reads by itself: answered as by way of the parser, and no other taken for one."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastboot import config
from fastboot._core import Source, http_answer, http_target
from fastboot.boot.catalog import Catalog
from fastboot.services import http_connections
from fastboot.services.http import HttpService
from fastboot.services.http_connections import STANDARD, Connection
from fastboot.services.http_message import http_date
from fastboot.services.turns import Turns
from tests.ftpkit import LOOPBACK

FILES = {"small": b"0123456789", "empty": b"", "a/b.ks": b"text\n", "x+y~1:2.rpm": b"rpm", "page.html": b"<p>"}


class Wire(asyncio.Transport):
    """A connection of which the test holds the client's end: `sent` is what came."""

    def __init__(self) -> None:
        self.sent, self.closed = b"", False
        self._socket = socket.socket()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 9), "sockname": ("127.0.0.1", 80), "socket": self._socket}[name]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.sent += b"" if self.closed else data

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    root = tmp_path_factory.mktemp("root")
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [root]}))
    yield catalog
    catalog.close()


async def said(catalog: Catalog, pieces: Sequence[bytes], reads: Callable[[bytes], str | None]) -> bytes:
    """Return what a connection answers to octets that come in pieces, without dates; and whether it is closed."""
    pump: Any = object()  # nothing here is large
    service = HttpService(config.Http(port=0), [LOOPBACK], catalog, lambda event: None, pump=pump)
    await service.start()
    http_connections.http_target, before = reads, http_connections.http_target
    wire = Wire()
    try:
        connection = Connection(service, service._crowd, STANDARD, Turns(1_000_000))
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
            for _ in range(8):  # a task of it may begin its answer, and some end their wait for a body
                await asyncio.sleep(0)
        return re.sub(rb"\r\nDate: [^\r]*", b"", wire.sent) + (b"closed" if wire.closed else b"")
    finally:
        http_connections.http_target = before
        wire.close()
        if connection.task is not None:
            connection.task.cancel()
        await service.stop()


TARGETS = [
    *(f"/{name}" for name in FILES), "/none", "//small", "/../small", "/sm%61ll", "/small?x", "/a\\b.ks", "small",
    "*", "http://boot/small", "/small#x", "/sm all", "/gr\u00f6\u00dfe", "/" + "x" * 300,
]  # fmt: skip
HARMLESS = [
    "User-Agent: GRUB 2.06", "Accept: */*", "Accept: text/*", "Connection: keep-alive", "connection: Keep-Alive",
    "X-ZYpp-Id: 1", "X-: 1", "Cache-Control: no-cache", "Pragma: x", "Accept-Encoding: identity",
    "Accept-Language:de",
]  # fmt: skip
FIELDS = [
    *HARMLESS, "Connection: close", "Connection: keep-alive, close", "Connection: upgrade", "Upgrade: h2c",
    "Host: other", "Host : boot", " fold", "Range: bytes=1-2", "If-None-Match: *", "Content-Length: 0",
    "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", "Content-Length: 3", "Transfer-Encoding: chunked",
    "Expect: 100-continue", "TE: trailers", "Accept:\tx", "Accept: \xe9", "Accept: a\0b", "User-Agent:", ":x",
    "Accept", "Sec-WebSocket-Key1: x", "Keep-Alive: 5",
]  # fmt: skip
HOSTS = [
    "Host: 10.0.0.1:8080", "host:[::1]", "Host:", "Host: bo ot", "Host: b%40", "Host:  boot", "Host: boot ",
    "Accept: no",
]  # fmt: skip
OCTETS = b"\0\t\n\r :/%\x7f\x80aGE"


def mostly(usual: str, *others: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*[usual] * 6, *others])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, mostly a sound one, with the faults that smugglers are fond of."""
    method, version = (
        mostly("GET", "HEAD", "get", "POST"),
        mostly("HTTP/1.1", "HTTP/1.0", " HTTP/1.1", "HTTP/1.1 ", ""),
    )
    line = " ".join((draw(method), draw(st.sampled_from(TARGETS[:5]) | st.sampled_from(TARGETS)), draw(version)))
    more = draw(st.lists(st.sampled_from(HARMLESS) | st.sampled_from(FIELDS), max_size=4))
    fields = draw(st.permutations([draw(mostly("Host: boot", *HOSTS)), *more]))
    odd = draw(mostly("\r\n", "\n", "\r", "\r\r\n"))
    ends = [odd, *["\r\n"] * len(fields)]
    lines = zip((line, *fields), draw(st.permutations(ends)), strict=True)
    end = draw(mostly("\r\n", "\n", "", "\r\n\r\n", "\r\nabc"))
    octets = ("".join(part + end for part, end in lines) + end).encode("latin-1")
    if draw(st.integers(0, 3)) == 0:
        at, octet = draw(st.integers(0, len(octets))), draw(st.sampled_from(OCTETS))
        octets = octets[:at] + bytes([octet]) + octets[at + draw(st.integers(0, 1)) :]
    return octets


@settings(max_examples=600, deadline=None)
@given(asked=st.lists(requests(), min_size=1, max_size=3), cuts=st.lists(st.integers(1, 60), max_size=2))
def test_both_ways_give_the_same_octets(catalog: Catalog, asked: list[bytes], cuts: list[int]) -> None:
    """What comes in pieces may begin anywhere: within a request, in its body, behind one that is refused."""
    pieces = list(asked)
    for cut in cuts:
        last = pieces.pop()
        pieces += [part for part in (last[:cut], last[cut:]) if part]
    fast = asyncio.run(said(catalog, pieces, http_target))
    assert fast == asyncio.run(said(catalog, pieces, lambda data: None))


PLAIN = b"GET /a/b.ks HTTP/1.1\r\nHost: boot\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"


def test_what_installers_and_loaders_send_is_read() -> None:
    assert http_target(PLAIN) == "/a/b.ks"
    assert http_target(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == "/"
    fields = b"host:10.0.0.1:80\r\nConnection: Keep-Alive\r\nX-A: 1\r\nX-A: 2\r\nAccept-Encoding: identity\r\n"
    assert http_target(b"GET /x+y~1^2:3.rpm HTTP/1.1\r\n" + fields + b"\r\n") == "/x+y~1^2:3.rpm"


@pytest.mark.parametrize(
    "octets",
    [
        b"", b"GET", PLAIN[:-1], PLAIN[:-2], PLAIN + b"\r\n", b"\r\n" + PLAIN, PLAIN + PLAIN, b"get" + PLAIN[3:],
        PLAIN.replace(b"\r\n", b"\n"), PLAIN.replace(b"GET", b"HEAD"), PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"Host: boot\r\n", b""), PLAIN.replace(b"Accept", b"Host"),
        PLAIN.replace(b"Host:", b"Host :"),
        PLAIN.replace(b"Accept", b" Accept"), PLAIN.replace(b"Accept", b"Range"), PLAIN.replace(b"/a", b"http://boot"),
        PLAIN.replace(b"/a/", b"//a/"), PLAIN.replace(b"/a/", b"/%61/"), PLAIN.replace(b"/a/", b"/a?"),
        PLAIN.replace(b"/a/", b"/a#"), PLAIN.replace(b"/a/", b"/a\\"), PLAIN.replace(b"/a/", b"/\xe9/"),
        PLAIN.replace(b"*/*", b"\t*/*"), PLAIN.replace(b"*/*", b"\xe9"), PLAIN.replace(b"*/*", b"\0"),
        PLAIN.replace(b"*/*", b"a\rb"), PLAIN.replace(b"*/*", b"a\nb"), PLAIN.replace(b"Accept", b"Connection"),
        PLAIN.replace(b"Accept: */*", b"Connection: close"), PLAIN.replace(b"Accept: */*", b"Content-Length: 0"),
        PLAIN.replace(b"Accept: */*", b"Transfer-Encoding: chunked"), PLAIN.replace(b"Accept", b"Upgrade"),
        PLAIN.replace(b"boot", b"bo ot"), PLAIN.replace(b"boot", b""), PLAIN.replace(b"boot", b"b,c"),
        PLAIN.replace(b"curl", b"c" * 4096), b"GET /x HTTP/1.1\r\nHost: a\r\n" + b"X-A: 1\r\n" * 32 + b"\r\n",
    ],
)  # fmt: skip
def test_the_rest_is_for_the_parser(octets: bytes) -> None:
    assert http_target(octets) is None


@given(cut=st.integers(0, len(PLAIN)), more=st.binary(max_size=40))
def test_the_reader_stays_within_what_came(cut: int, more: bytes) -> None:
    """For a build with a sanitizer; and a request that is cut short is none."""
    assert http_target(PLAIN[:cut] + more) is None or PLAIN[:cut] + more == PLAIN


@pytest.mark.parametrize(
    "before",
    [
        b"POST / HTTP/1.1\r\nHost: boot\r\nContent-Length: %d\r\n\r\n" % len(PLAIN),
        b"POST / HTTP/1.1\r\nHost: boot\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PLAIN),
        b"GET /small HTTP/1.1\r\nHost: boot\r\nX-A:",
        b"G",
    ],
)
def test_what_goes_on_with_a_request_is_none(catalog: Catalog, before: bytes) -> None:
    pieces = [before, PLAIN, PLAIN]
    fast = asyncio.run(said(catalog, pieces, http_target))
    assert fast == asyncio.run(said(catalog, pieces, lambda data: None))
    assert fast.count(b"text\n") < 2


@pytest.mark.parametrize("broken", [b"GET\t/small HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\r\n\r\n"])
def test_wherever_it_is_cut_the_sound_request_in_front_is_answered(catalog: Catalog, broken: bytes) -> None:
    sound = b"GET //small HTTP/1.1\r\nHost: boot\r\n\r\n"
    for cut in range(1, len(sound + broken)):
        pieces = [(sound + broken)[:cut], (sound + broken)[cut:]]
        answers = asyncio.run(said(catalog, pieces, http_target))
        assert (answers.count(b"HTTP/1.1 200 "), answers.count(b"HTTP/1.1 400 ")) == (1, 1), cut


def test_an_answer_is_of_one_version(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    fd = os.open(tmp_path, os.O_PATH)
    source = Source.open(fd, "file")
    os.close(fd)
    answer = http_answer(source, b"text/plain", 1_700_000_000)
    assert answer is not None
    assert answer.endswith(b"\r\nContent-Length: 3\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\nold")
    (tmp_path / "file").write_bytes(b"new")
    os.utime(tmp_path / "file", (1, 1))
    assert http_answer(source, b"text/plain", 1_700_000_000) is None


@given(st.integers(0, 253_402_300_799))
def test_dates_are_those_of_http(seconds: int) -> None:
    answer = http_answer(Source.of_bytes("x", b""), b"text/plain", seconds)
    assert answer is not None
    assert f"Date: {http_date(seconds)}\r\n".encode() in answer


def test_times_that_no_date_can_say_are_not_written() -> None:
    source = Source.of_bytes("x", b"")
    assert http_answer(source.slice(0, 0, mtime=-1.0), b"text/plain", 0) is None
    assert http_answer(source.slice(0, 0, mtime=1e12), b"text/plain", 0) is None
    assert http_answer(source, b"x" * 64, 0) is None

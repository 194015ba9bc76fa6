"""HTTP on the wire: what loaders, installers and package managers rely on (protocol-facts.md A6, A10)."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from email.parser import BytesParser
from pathlib import Path

import pytest

from fastboot import config
from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.model import Client as Asker
from fastboot.model import Reason, Refusal
from fastboot.services.descriptors import Descriptors
from fastboot.services.http import Limits
from fastboot.services.http_message import Version, precondition, ranges
from fastboot.services.http_pages import page
from fastboot.services.pump import Pump, start_pump
from tests.ftpkit import Item, Memory, Running, descriptors, loop_thread
from tests.httpkit import Answer, Client, serving

BIG = random.Random(5).randbytes(3_000_001)
TREE = {
    "/big": BIG,
    "/small": b"0123456789",
    "/empty": b"",
    "/EFI/BOOT/shimx64.efi": b"MZ",
    "/EFI/disk.img": b"img",
    "/EFI/cd.iso": b"iso",
    "/pool/libstdc++ 6~rc[1]%20 gr\u00f6\u00dfe.deb": b"awkward",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for name, content in TREE.items():
        path = root / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[Running]:
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [tree]}))
    with serving(catalog) as running:
        yield running
    catalog.close()


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client((server.host, server.port)) as client:
        yield client


def test_the_status_line_and_lengths_that_grub_needs(client: Client) -> None:
    """GRUB compares `HTTP/1.1 ` and `Content-Length: ` octet by octet (grub-core/net/http.c)."""
    client.socket.sendall(b"GET /small HTTP/1.1\r\nHost: boot\r\nUser-Agent: GRUB 2.06\r\n\r\n")
    text = client.socket.recv(4096)
    assert text.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 10\r\n" in text
    assert b"chunked" not in text


@pytest.mark.parametrize("path", sorted(TREE))
def test_head_says_what_get_sends(client: Client, path: str) -> None:
    target = "".join(chr(each) if each in b"/abcdefghijklmnopqrstuvwxyzBEFIOT." else f"%{each:02X}"
                     for each in path.encode())  # fmt: skip
    head, got = client.get(target, method="HEAD"), client.get(target)
    assert got.body == TREE[path]
    assert head.body == b""
    assert head.status == got.status == 200
    assert [each for each in head.fields if each[0] != b"Date"] == [
        each for each in got.fields if each[0] != b"Date"
    ]


@pytest.mark.parametrize(
    "path", ["//small", "/./small", "/EFI/../small", "/EFI//..//./small", "/%2fsmall", "/small?x=1"]
)
def test_paths_are_made_plain_without_a_redirect(client: Client, path: str) -> None:
    """A redirect for `//` broke boots (tinkerbell/smee#229)."""
    assert client.get(path).body == b"0123456789"


def test_the_absolute_form_of_a_target(client: Client) -> None:
    assert client.get("http://boot:80/small").body == b"0123456789"
    assert client.get("http://boot").status == 200  # the top, listed


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/nothing", 404),
        ("/small/x", 404),
        ("/%00", 403),
    ],
)
def test_what_is_not_there(client: Client, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status == status
    assert b"passwd" not in answer.body
    assert client.get("/small").status == 200  # the connection goes on


def test_a_file_that_need_not_be_there_is_no_error() -> None:
    with serving(Memory({"/f": b"x"})) as server, Client((server.host, server.port)) as client:
        assert client.get("/product.img").status == 404
        assert server.of("http.missing") == [{"peer": server.host, "path": "/product.img"}]
        assert server.service.counters()["missing"] == 1
        assert not server.of("http.failed")


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/EFI/BOOT/shimx64.efi", b"application/efi"),
        ("/EFI/cd.iso", b"application/vnd.efi-iso"),
        ("/EFI/disk.img", b"application/vnd.efi-img"),
        ("/big", b"application/octet-stream"),
    ],
)
def test_the_types_that_uefi_goes_by(client: Client, path: str, type_: bytes) -> None:
    answer = client.get(path)
    assert answer.field(b"Content-Type") == type_
    assert answer.field(b"Content-Encoding") is None


def test_a_connection_serves_many_requests(client: Client, server: Running) -> None:
    assert client.get("/small").status == 200  # before it, the connection may not be accepted yet
    before = server.counters()["connections"]
    for _ in range(50):
        assert client.get("/small").status == 200
    assert client.get("/big").body == BIG
    assert server.counters()["connections"] == before


def test_requests_may_be_sent_ahead(client: Client) -> None:
    one = b"GET %s HTTP/1.1\r\nHost: boot\r\n\r\n"
    client.socket.sendall(b"".join(one % path for path in (b"/big", b"/small", b"/nothing", b"/big")))
    assert [client.read().body[:4] for _ in range(4)] == [BIG[:4], b"0123", b"404 ", BIG[:4]]


def test_a_thousand_requests_sent_ahead_are_answered_in_order(client: Client) -> None:
    targets = [b"/small", b"/empty", b"/nothing", b"/EFI/disk.img"] * 250
    octets = b"".join(b"GET %s HTTP/1.1\r\nHost: boot\r\n\r\n" % each for each in targets)
    client.socket.sendall(octets[:-7])  # the last waits for its end
    bodies = [client.read().body for _ in range(999)]
    client.socket.sendall(octets[-7:])
    bodies.append(client.read().body)
    assert [each[:4] for each in bodies] == [b"0123", b"", b"404 ", b"img"] * 250


def test_http_1_0(server: Running) -> None:
    with Client((server.host, server.port)) as client:
        client.socket.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        assert client.read().body == BIG
        assert client.closed()
    with Client((server.host, server.port)) as client:
        answer = client.get("/small", "Connection: keep-alive", version="HTTP/1.0")
        assert answer.field(b"Connection") == b"keep-alive"
        assert client.get("/small", version="HTTP/1.0").status == 200


# ---- ranges


@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, len(BIG)),
        ("bytes=100-199999", 100, 200_000),
        ("bytes=-5", len(BIG) - 5, len(BIG)),
        ("bytes=-99999999", 0, len(BIG)),
        (f"bytes={len(BIG) - 1}-", len(BIG) - 1, len(BIG)),
        ("bytes=5-99999999", 5, len(BIG)),
        (f"bytes=5-{'9' * 30}", 5, len(BIG)),
        (f"bytes=-{'9' * 5000}", 0, len(BIG)),
        (f"bytes={'0' * 30}7-{'0' * 5000}9", 7, 10),
        ("bytes= 7 - 9 ", 7, 10),
        ("bytes=0-9,5-20", 0, 21),
        ("bytes=50-60,0-9", 0, 61),  # nearer to each other than a part's header is long
    ],
)
def test_one_range(client: Client, range_: str, start: int, end: int) -> None:
    answer = client.get("/big", f"Range: {range_}")
    assert answer.line == b"HTTP/1.1 206 Partial Content"
    assert answer.field(b"Content-Range") == f"bytes {start}-{end - 1}/{len(BIG)}".encode()
    assert answer.body == BIG[start:end]


@pytest.mark.parametrize(
    "range_", ["bytes=3000001-", "bytes=9999999-99999999", "bytes=-0", f"bytes={'9' * 5000}-"]
)
def test_a_range_of_nothing(client: Client, range_: str) -> None:
    answer = client.get("/big", f"Range: {range_}")
    assert answer.status == 416
    assert answer.field(b"Content-Range") == b"bytes */3000001"


@pytest.mark.parametrize(
    "range_",
    [
        "bytes=5-1",
        "bytes=x-1",
        "bytes",
        "items=0-1",
        "bytes=",
        "bytes=-",
        "bytes=1-2;3",
        "bytes=\u0661-\u0662".encode().decode("latin-1"),  # digits of Unicode, but none of HTTP
        "bytes=" + "0-1," * 300,
    ],
)
def test_a_range_without_sense_gets_the_whole(client: Client, range_: str) -> None:
    answer = client.get("/big", f"Range: {range_}")
    assert answer.status == 200
    assert answer.body == BIG


def parts_of(answer: Answer) -> list[tuple[bytes, bytes]]:
    message = BytesParser().parsebytes(
        b"Content-Type: " + (answer.field(b"Content-Type") or b"") + b"\r\n" + answer.body
    )
    return [(each["Content-Range"].encode(), each.get_payload(decode=True)) for each in message.get_payload()]  # type: ignore[union-attr]


@pytest.mark.parametrize("far", [1000, 2_000_000])
def test_many_ranges(client: Client, far: int) -> None:
    """What zchunk repositories are read with. Small and large answers go different ways."""
    answer = client.get("/small", "Range: bytes=0-1")
    assert answer.status == 206
    answer = client.get("/big", f"Range: bytes={far}-{far + 99},0-99,{far}-{far + 49},-10")
    assert answer.status == 206
    text = BIG[far : far + 100], BIG[:100], BIG[-10:]
    got = re.findall(rb"Content-Range: bytes (\d+)-(\d+)/3000001\r\n\r\n", answer.body)
    assert got == [(b"0", b"99"), (str(far).encode(), str(far + 99).encode()), (b"2999991", b"3000000")]
    for each in text:
        assert each in answer.body
    assert (answer.field(b"Content-Type") or b"").startswith(b"multipart/byteranges; boundary=")


def test_a_multipart_answer_is_one(client: Client) -> None:
    text = client.get("/small", "Range: bytes=0-1")
    assert text.body == b"01"
    answer = client.get("/EFI/BOOT/shimx64.efi", "Range: bytes=0-0,1-1")
    assert answer.body == b"MZ"  # joined
    answer = client.get("/big", "Range: bytes=0-9,1000-1009")
    (first, _), (second, _) = parts_of(answer)
    assert (first, second) == (b"bytes 0-9/3000001", b"bytes 1000-1009/3000001")


# ---- conditions


def test_conditions_of_the_tag(client: Client) -> None:
    tag = (client.get("/big", method="HEAD").field(b"ETag") or b"").decode()
    assert tag.startswith('"')  # a strong one
    assert client.get("/big", f"If-None-Match: {tag}").status == 304
    assert client.get("/big", f'If-None-Match: "x", W/{tag}').status == 304
    assert client.get("/big", "If-None-Match: *").status == 304
    assert client.get("/big", 'If-None-Match: "other"').status == 200
    assert client.get("/big", f"If-Match: {tag}").status == 200
    assert client.get("/big", f"If-Match: W/{tag}").status == 412
    assert client.get("/big", 'If-Match: "other"').status == 412
    assert client.get("/big", f"If-Range: {tag}", "Range: bytes=0-9").status == 206
    assert client.get("/big", 'If-Range: "other"', "Range: bytes=0-9").body == BIG
    assert client.get("/big", f"If-Range: W/{tag}", "Range: bytes=0-9").status == 200


def test_conditions_of_the_date(client: Client) -> None:
    date = (client.get("/big", method="HEAD").field(b"Last-Modified") or b"").decode()
    old, new = "Tue, 01 Jan 2019 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    assert client.get("/big", f"If-Modified-Since: {date}").status == 304
    assert client.get("/big", f"If-Modified-Since: {old}").status == 200
    assert client.get("/big", "If-Modified-Since: yesterday").status == 200
    assert client.get("/big", f"If-Unmodified-Since: {date}").status == 200
    assert client.get("/big", f"If-Unmodified-Since: {old}").status == 412
    assert client.get("/big", f"If-Range: {date}", "Range: bytes=0-9").status == 206
    assert client.get("/big", f"If-Range: {new}", "Range: bytes=0-9").status == 200


def test_edk2_resumes(client: Client) -> None:
    """With Range and If-Match or If-Unmodified-Since; it needs the total in Content-Range (HttpBootClient.c)."""
    head = client.get("/big", method="HEAD")
    tag, date = head.field(b"ETag"), head.field(b"Last-Modified")
    assert tag and date
    for condition in (f"If-Match: {tag.decode()}", f"If-Unmodified-Since: {date.decode()}"):
        answer = client.get("/big", condition, "Range: bytes=1000000-")
        assert answer.status == 206
        assert answer.field(b"Content-Range") == b"bytes 1000000-3000000/3000001"
        assert answer.body == BIG[1_000_000:]


def test_the_tag_goes_before_the_date() -> None:
    """RFC 9110 section 13.2.2."""
    version = Version('"a"', 1000)
    old = {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}
    assert precondition({**old, "If-Match": '"a"'}, version) is None
    assert precondition(old, version) == 412
    seen = {"If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}
    assert precondition({**seen, "If-None-Match": '"b"'}, version) is None
    assert precondition(seen, version) == 304
    assert ranges({"Range": "bytes=0-1"}, version, 0) is None


# ---- what is refused


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_it_is_for_reading(client: Client, method: str) -> None:
    answer = client.get("/small", method=method)
    assert answer.status == 405
    assert answer.field(b"Allow") == b"GET, HEAD"


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"GET /small HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET /small HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts"),
        pytest.param(
            b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length and coding",
        ),
        pytest.param(
            b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
            id="two lengths",
        ),
        pytest.param(b"GET /small HTTP/1.1\r\nHost : a\r\n\r\n", id="blank before the colon"),
        pytest.param(b"GET /small HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", id="folded field"),
        pytest.param(b"GET /small HTTP/1.1\rHost: a\r\r", id="bare CR"),
        pytest.param(b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"GET /small HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", id="endless field"),
        pytest.param(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="endless path"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"GET ftp://x/small HTTP/1.1\r\nHost: a\r\n\r\n", id="another scheme"),
        pytest.param(b"GET /small HTTP/0.9\r\nHost: a\r\n\r\n", id="version before"),
        pytest.param(b"GET /small HTTP/2.0\r\nHost: a\r\n\r\n", id="version after"),
        *(
            pytest.param(b"GET /small HTTP/1.1\r\nHost: a\r\n" + rest, id=repr(rest)[2:40])
            for rest in (
                b"Content-Length: 3, 3\r\n\r\nabc",
                b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
                b"Content-Length: +3\r\n\r\nabc",
                b"Content-Length: 0x3\r\n\r\nabc",
                b"Content-Length: 3 3\r\n\r\nabc",
                b"Content-Length: \r\n\r\n",
                b"Content-Length: 99999999999999999999999\r\n\r\nabc",
                b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding: identity\r\n\r\n",
                b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n3;\nxx\r\nabc\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX0\r\n\r\n",
                b"X: a\0b\r\n\r\n",
                b"X: a\rb\r\n\r\n",
                b"X\0: b\r\n\r\n",
                b": b\r\n\r\n",
                b"X y: b\r\n\r\n",
                b"no colon\r\n\r\n",
                b"".join(b"X%d: y\r\n" % number for number in range(5000)) + b"\r\n",
            )
        ),
        pytest.param(
            b"GET /small HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="1.0 in chunks",
        ),
        pytest.param(b"GET /small HTTP/1.1\nHost: a\n\n", id="bare LF"),
        pytest.param(b"GET /small HTTP/1.1\r\n Host: a\r\n\r\n", id="folded first line"),
        pytest.param(b"GET /small HTTP/1.1\r\nHost: a/b\r\n\r\n", id="Host with a path"),
        pytest.param(b"GET /small HTTP/1.1x\r\nHost: a\r\n\r\n", id="version with more"),
        pytest.param(b"GET\t/small HTTP/1.1\r\nHost: a\r\n\r\n", id="tab"),
        pytest.param(b"\r\n\r\n\x00\x00\x00\r\n\r\n", id="nonsense"),
    ],
)
def test_malformed_requests_end_the_connection(server: Running, octets: bytes) -> None:
    """The shapes that request smuggling is made of, among them (RFC 9112 sections 5.1, 5.2, 6.1, 6.3)."""
    before = server.counters().get("malformed", 0)
    with Client((server.host, server.port)) as client:
        client.socket.sendall(octets + b"GET /small HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        text = b""
        try:
            while more := client.socket.recv(4096):
                text += more
        except ConnectionError:
            pass
    assert len(re.findall(rb"^HTTP/", text, re.MULTILINE)) == 1
    assert re.match(rb"HTTP/1\.1 4(00|14|31) ", text)
    assert server.counters()["malformed"] == before + 1
    assert not [event for event in server.events if event.kind == "http.sent" and "smuggled" in str(event)]


@pytest.mark.parametrize(
    ("octets", "line", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request", b"one Host field is needed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400 Bad Request", b"Host"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414 ", b"more than 8000 octets"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431 ", b"a header field of more than"),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", b"400 Bad Request", b"this is no HTTP/1"),
        (b"POST / HTTP/2.0\r\nHost: a\r\n\r\n", b"400 Bad Request", b"this is no HTTP/1"),
        (b"nonsense\r\n\r\n", b"400 Bad Request", b"this is no HTTP"),
    ],
)
def test_refusals_say_what_is_wrong(client: Client, octets: bytes, line: bytes, says: bytes) -> None:
    answer = client.ask(octets)
    assert answer.line.startswith(b"HTTP/1.1 " + line)
    assert says in answer.body
    assert client.closed()


def test_a_target_as_long_as_it_may_be(client: Client) -> None:
    assert client.get("/small?" + "x" * 7990).status == 200


def test_a_body_that_nobody_asked_for_is_skipped(client: Client) -> None:
    octets = b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET "
    assert client.ask(octets).body == b"0123456789"
    assert client.get("/small").body == b"0123456789"


def test_a_long_body_ends_the_connection(server: Running) -> None:
    with Client((server.host, server.port)) as client:
        client.socket.sendall(b"POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n")
        assert client.read().status == 405
        with suppress(ConnectionError):
            client.socket.sendall(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000)
            assert client.closed()


def test_a_body_in_chunks_is_skipped(client: Client) -> None:
    octets = b"GET /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nGET \r\n0\r\n\r\n"
    assert client.ask(octets).body == b"0123456789"
    assert client.get("/small").body == b"0123456789"


def test_who_offers_another_protocol_is_answered_in_this_one(server: Running) -> None:
    """Java's client and `curl --http2` offer h2c with their first request."""
    for path, body in (("/small", b"0123456789"), ("/big", BIG)):
        with Client((server.host, server.port)) as client:
            answer = client.get(
                path, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"
            )
            assert (answer.status, answer.body) == (200, body)
            assert client.closed()  # and not: the next request waits for ever


# ---- directories


def test_directories_are_listed(client: Client) -> None:
    for path in ("/EFI", "/EFI/", "//EFI//"):
        page = client.get(path)
        assert page.field(b"Content-Type") == b"text/html; charset=utf-8"
        assert re.findall(rb'href="([^"]*)"', page.body) == [b"/", b"/EFI/BOOT/", b"/EFI/cd.iso", b"/EFI/disk.img"]
    page = client.get("/pool")
    (link,) = re.findall(rb'href="(/pool/[^"]*)"', page.body)
    assert client.get(link.decode()).body == b"awkward"
    assert client.get("/", method="HEAD").status == 200


def test_a_large_directory_does_not_hold_up_the_loop() -> None:
    class Large(Memory):
        def list(self, path: str, client: Asker) -> list[Item] | Refusal:
            return [
                Item(f"package-{number}.rpm", False, 1, 0) for number in range(30_000 if path == "/d" else 70_000)
            ]

    works: list[float] = []

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            works.append(time.thread_time() - before)

    with serving(Large({"/d/f": b"", "/e/f": b""})) as server, Client((server.host, server.port), 60) as client:
        watching = asyncio.run_coroutine_threadsafe(watch(), server.loop)
        assert client.get("/d").body.count(b"package-") == 60_000
        answer = client.get("/e")
        assert (answer.status, answer.body) == (500, b"500 Internal Server Error: more than 65536 entries\n")
        watching.cancel()
    # Processor time of the loop's own thread, however busy the machine is: the answer is 3 MB to be copied.
    assert max(works) < 0.02


def test_files_of_a_time_that_no_date_can_tell() -> None:
    """The end of 9999 in an image, a zone west of Greenwich: it is served all the same."""
    late = Source.of_bytes("f", b"x").slice(0, 1, "f", 253402300800 + 80_000)
    with serving(Memory({"/d/f": late})) as server, Client((server.host, server.port)) as client:
        answer = client.get("/d/f")
        assert (answer.status, answer.field(b"Last-Modified")) == (200, b"Fri, 31 Dec 9999 23:59:59 GMT")
    text = "".join(page("/", [Item("f", False, 1, late.mtime)]))
    assert "9999-12-31" in text


def test_names_are_text_in_a_page() -> None:
    with (
        serving(Memory({"/d/<script>alert(1)<b>&\"'": b"x"})) as server,
        Client((server.host, server.port)) as client,
    ):
        page = client.get("/d").body
        assert b"<script>" not in page
        assert b"&lt;script&gt;" in page


# ---- faults


def test_a_file_that_shrinks_ends_the_connection(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 40_000_000)
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [tmp_path]}))
    with serving(catalog) as server, Client((server.host, server.port)) as client:
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(server.service.transfers)
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(ConnectionError):
            client.read()
        server.until(lambda: server.of("http.failed"))
        assert server.of("http.failed")[0]["reason"] == "the file changed while it was sent"
        with Client((server.host, server.port)) as other:
            assert other.get("/f").body == b"x" * 1000
    catalog.close()


def test_a_file_written_in_place_is_never_completed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 40_000_000)
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [tmp_path]}))
    with serving(catalog) as server, Client((server.host, server.port)) as client:
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(server.service.transfers)
        with path.open("r+b") as file:
            file.write(b"y" * 100)
        with pytest.raises(ConnectionError):
            client.read()
    catalog.close()


def test_a_file_replaced_by_rename_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 20_000_000)
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [tmp_path]}))
    with serving(catalog) as server, Client((server.host, server.port)) as client:
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(server.service.transfers)
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").rename(path)
        assert client.read().body == b"x" * 20_000_000
        assert client.get("/f").body == b"new"
    catalog.close()


def test_a_client_that_leaves_is_told_of() -> None:
    with serving(Memory({"/f": b"x" * 40_000_000})) as server:
        before = descriptors()
        with Client((server.host, server.port)) as client:
            client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
            server.until(server.service.transfers)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.until(lambda: not server.service.counters()["connections_open"])
        server.until(lambda: server.of("http.failed"))
        (failed,) = server.of("http.failed")
        assert failed["reason"] == "the client closed the connection"
        assert failed["bytes"] < 40_000_000
        assert not server.service.transfers()
        server.until(lambda: descriptors() <= before)


def test_a_client_that_leaves_with_the_last_octet_has_the_file() -> None:
    """lftp closes at once. Whether the sender or the connection is heard of first is chance."""
    size = 200_000
    with serving(Memory({"/f": b"x" * size})) as server:
        for _ in range(30):
            with Client((server.host, server.port)) as client:
                assert len(client.get("/f").body) == size
        server.until(lambda: len(server.of("http.sent") + server.of("http.failed")) == 30)
        assert not server.of("http.failed")


def test_a_connection_that_was_reset_before_it_was_accepted_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """It has no address any more, and must not be counted for ever."""
    with serving(Memory({"/f": b"x"}), max_per_address=2) as server:
        for octets in (b"", b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n") * 2:
            server.loop.call_soon_threadsafe(time.sleep, 0.1)
            with Client((server.host, server.port)) as client:
                client.socket.sendall(octets)
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with Client((server.host, server.port)) as client:
            assert client.get("/f").body == b"x"
        server.until(lambda: not server.service.counters()["connections_open"])
    assert not caplog.records


def test_a_client_that_stands_still_is_given_up() -> None:
    with (
        serving(Memory({"/f": b"x" * 40_000_000}), Limits(stall=0.4)) as server,
        Client((server.host, server.port)) as client,
    ):
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(lambda: server.of("http.failed"))
        assert server.of("http.failed")[0]["reason"] == "the client was too slow"


@pytest.mark.parametrize("octets", [b"", b"GET /sm", b"GET /small HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_header_that_never_ends_is_cut(octets: bytes) -> None:
    """Slowloris: a drop now and then does not keep the connection open."""
    limits = Limits(head=0.6)
    with serving(Memory({}), limits) as server, Client((server.host, server.port)) as client:
        client.socket.sendall(octets)
        began = time.monotonic()
        client.socket.settimeout(0.1)
        while time.monotonic() < began + 5:
            try:
                client.socket.sendall(octets[:1] and b"x")
                if client.socket.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert 0.4 < time.monotonic() - began < 3
        server.until(lambda: not server.service.counters()["connections_open"])


def test_a_body_that_never_ends_is_cut() -> None:
    with serving(Memory({"/f": b"x"})) as server, Client((server.host, server.port)) as client:
        answer = client.get("/f", "Content-Length: 1000000")
        assert answer.body == b"x"
        with pytest.raises(ConnectionError):  # while it still sends
            for _ in range(200):
                client.socket.sendall(b"y")
                time.sleep(0.05)
        server.until(lambda: not server.service.counters()["connections_open"])


def test_a_client_that_reads_no_answers_is_cut() -> None:
    """Small answers leave without the pump: what waits for a client has a deadline of its own."""
    with (
        serving(Memory({"/f": b"x" * 60_000}), Limits(stall=0.4)) as server,
        socket.socket() as sock,
        Client((server.host, server.port)) as other,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((server.host, server.port))
        sock.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        server.until(lambda: server.service.counters().get("stalled"))
        assert other.get("/f").body == b"x" * 60_000
        server.until(lambda: server.service.counters()["connections_open"] == 1)
        assert server.service.counters()["requests"] < 100


def test_a_client_that_reads_slowly_is_cut() -> None:
    """A few octets now and then do not hold a place for ever, however often."""
    with serving(Memory({"/f": b"x" * 40_000_000}), Limits(stall=1)) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((server.host, server.port))
        sock.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        with suppress(ConnectionError):
            while sock.recv(100):
                time.sleep(0.02)
        server.until(lambda: server.of("http.failed"))
        assert server.of("http.failed")[0]["reason"] == "the client was too slow"


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    with serving(Memory({"/f": BIG}), Limits(head=0.5)) as server, Client((server.host, server.port)) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got or len(got) - got.index(b"\r\n\r\n") - 4 < len(BIG):
            got += client.socket.recv(65536)
            time.sleep(0.02)  # 1.5 s in all: longer than an idle connection may last
        assert got.endswith(BIG)
        assert client.closed()


def test_too_many_connections_are_asked_to_come_back() -> None:
    """iPXE does so after the seconds of Retry-After (httpcore.c)."""
    with serving(Memory({"/f": b"x"}), max_per_address=3) as server:
        clients = [Client((server.host, server.port)) for _ in range(4)]
        for each in clients[:3]:
            server.until(lambda: server.service.counters()["connections_open"] == 4)
            each.socket.settimeout(10)
        answer = clients[3].get("/f")
        assert answer.line == b"HTTP/1.1 503 Service Unavailable"
        assert answer.field(b"Retry-After") == b"5"
        assert clients[3].closed()
        assert server.service.counters()["refused_too_many_connections_of_one_address"] == 1
        server.until(lambda: server.service.counters()["connections_open"] == 3)
        assert clients[0].get("/f").body == b"x"
        for each in clients:
            each.close()


def test_too_many_connections_of_all_are_asked_to_come_back() -> None:
    with serving(Memory({"/f": b"x"}), max_connections=2, max_per_address=2) as server, ExitStack() as stack:
        address = (server.host, server.port)
        for host in ("127.0.0.2", "127.0.0.3"):
            stack.enter_context(socket.create_connection(address, source_address=(host, 0)))
        server.until(lambda: server.service.counters()["connections_open"] == 2)
        with Client(address) as client:
            answer = client.get("/f")
            assert (answer.status, answer.field(b"Retry-After")) == (503, b"5")
            assert b"too many connections\n" in answer.body
            assert client.closed()
        assert server.service.counters()["refused_too_many_connections"] == 1
        server.until(lambda: server.service.counters()["connections_open"] == 2)


def test_one_address_keeps_nobody_else_out() -> None:
    """5,000 idle connections of one host were the 4,000 of everybody."""
    with serving(Memory({"/f": b"x"}), max_connections=5, max_per_address=2) as server, ExitStack() as stack:
        address = (server.host, server.port)
        for _ in range(4):
            stack.enter_context(socket.create_connection(address, source_address=("127.0.0.2", 0)))
        server.until(lambda: server.service.counters()["connections_open"] == 4)
        for _ in range(2):
            with suppress(ConnectionResetError):  # it may come before `connect` has returned
                one_more = socket.create_connection(address, 10, source_address=("127.0.0.2", 0))
                assert stack.enter_context(one_more).recv(1) == b""
        server.until(lambda: server.service.counters().get("refused_flood") == 2)
        with Client(address) as client, Client(address) as other:
            assert client.get("/f").body == b"x"
            assert other.get("/f").body == b"x"
            with socket.create_connection(address, 10, source_address=("127.0.0.3", 0)) as third:
                third.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
                assert third.recv(20).startswith(b"HTTP/1.1 200")


GET = b"GET /f HTTP/1.1\r\nHost: boot\r\n\r\n"


@pytest.mark.parametrize("why", ["descriptors", "address", "nonsense", "close"])
def test_the_last_answer_arrives_though_the_client_goes_on(why: str) -> None:
    """What is sent to a closed socket resets the connection, and takes the answer from who has not read it."""
    few, files = Descriptors(8 if why == "descriptors" else 1024), Memory({"/f": b"x" * 60_000})
    with serving(files, descriptors=few, max_per_address=3) as server, ExitStack() as stack:
        address = (server.host, server.port)
        for _ in range(3 if why == "address" else 2 if why == "descriptors" else 0):
            stack.enter_context(Client(address)).get("/f", method="HEAD")
        client = stack.enter_context(Client(address))
        said = {"nonsense": b"nonsense\r\n\r\n", "close": GET[:-2] + b"Connection: close\r\n\r\n"}.get(why, GET)
        for octets in (said, GET * 9, GET):
            client.socket.sendall(octets)
            time.sleep(0.1)
        answer = client.read()
        assert answer.status == {"nonsense": 400, "close": 200}.get(why, 503)
        assert client.socket.recv(1) == b"", "it ends, and is not reset"
        others = 0 if why in ("nonsense", "close") else 3 if why == "address" else 2
        server.until(lambda: server.service.counters()["connections_open"] == others)


@pytest.mark.parametrize("floods", [False, True])
def test_who_does_not_end_its_side_is_cut(floods: bool) -> None:
    """Two seconds, or 128 KiB, after the last answer."""
    with serving(Memory({})) as server, Client((server.host, server.port)) as client:
        assert client.ask(b"nonsense\r\n\r\n").status == 400
        before = descriptors()
        assert client.socket.recv(1) == b""
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + 10:
                client.socket.sendall(b"x" * 65_536 if floods else b"x")
                time.sleep(0.01 if floods else 0.1)
        assert time.monotonic() - began < 1 if floods else 1 < time.monotonic() - began < 4
        server.until(lambda: descriptors() < before)


def test_those_that_are_turned_away_take_few_descriptors() -> None:
    """Of 120 that do not go, of three addresses, at most 16 each and 32 in all are waited for."""
    with serving(Memory({}), descriptors=Descriptors(0)) as server, ExitStack() as stack:
        before = descriptors()
        peers = [
            stack.enter_context(
                socket.create_connection((server.host, server.port), 10, (f"127.0.0.{2 + number % 3}", 0))
            )
            for number in range(120)
        ]
        server.until(lambda: server.service.counters().get("refused_too_few_descriptors", 0) == 120)
        assert descriptors() - before <= 120 + 32
        for each in peers:
            assert each.recv(12) == b"HTTP/1.1 503"


def test_one_address_has_half_of_the_descriptors() -> None:
    """However many connections the configuration allows to it: 1,024 open files are 512 for clients."""
    body = b"x" * 8_000_000
    few = Descriptors(1024)
    with (
        serving(Memory({"/f": body}), descriptors=few, max_per_address=1000) as server,
        ExitStack() as stack,
    ):
        address = (server.host, server.port)

        def ask(source: str) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.bind((source, 0))
            client.connect(address)
            client.sendall(GET)
            return client

        greedy = [ask("127.0.0.2") for _ in range(100)]
        heads = [each.recv(12) for each in greedy]
        # A connection at work has four.
        assert heads.count(b"HTTP/1.1 200") == 64
        assert heads.count(b"HTTP/1.1 503") == 36
        assert server.service.counters()["refused_too_many_descriptors_of_one_address"] == 36
        for number in range(20):
            assert ask(f"127.0.1.{1 + number}").recv(12) == b"HTTP/1.1 200"
        for each in greedy:
            each.close()
        server.until(lambda: few.lacks(256, "127.0.0.2") is None)


def test_clients_share() -> None:
    """One that reads slowly holds up nobody, and nobody is starved."""
    body = b"x" * 8_000_000
    with serving(Memory({"/f": body})) as server:
        slow = Client((server.host, server.port))
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        results: list[bool] = []

        def fetch() -> None:
            with Client((server.host, server.port), 60) as client:
                results.append(client.get("/f").body == body)

        threads = [threading.Thread(target=fetch) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert results == [True] * 20
        slow.close()


def test_a_catalog_may_wait_or_fail() -> None:
    class Slow(Memory):
        async def _later(self, path: str) -> Source | Refusal:
            if path == "/bad":
                raise RuntimeError("no")
            return Source.of_bytes("later", b"later")

        def resolve(self, path: str, client: Asker) -> Source | Refusal:
            if path == "/worse":
                raise RuntimeError("never")
            return self._later(path)  # type: ignore[return-value]

    with serving(Slow()) as server:
        for path, status in (("/later", 200), ("/bad", 500), ("/worse", 500), ("/later", 200)):
            with Client((server.host, server.port)) as client:
                assert client.get(path).status == status


def test_stopping_drains() -> None:
    body = b"x" * 20_000_000
    memory = Memory({"/f": body})
    with serving(memory) as server, Client((server.host, server.port)) as client:
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(server.service.transfers)
        reader: list[Answer] = []
        thread = threading.Thread(target=lambda: reader.append(client.read()))
        thread.start()
        server.wait(server.service.stop(10))
        thread.join()
        assert reader[0].body == body
        with pytest.raises(ConnectionError):
            Client((server.host, server.port)).get("/f")


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_drain_cuts_is_not_laid_to_the_client(shared: bool) -> None:
    """Nor does it take what it has for the whole: the connection is reset, also where FTP shares the pump."""
    with loop_thread() as loop, ExitStack() as undo:
        pump = asyncio.run_coroutine_threadsafe(begun_pump(), loop).result(10) if shared else None
        if pump:
            undo.callback(loop.call_soon_threadsafe, pump.close)
        server = undo.enter_context(serving(Memory({"/f": b"x" * 40_000_000}), loop=loop, pump=pump))
        client = undo.enter_context(Client((server.host, server.port)))
        client.socket.sendall(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(server.service.transfers)
        before = time.monotonic()
        server.wait(server.service.stop(0.1))
        assert time.monotonic() - before < 0.8, "the drain was all that there was to wait for"
        assert [each["reason"] for each in server.of("http.failed")] == ["the server stopped"]
        with pytest.raises(ConnectionResetError):
            client.file.read()


async def begun_pump() -> Pump:
    return start_pump()


def test_refusals_have_names() -> None:
    class Refusing(Memory):
        def resolve(self, path: str, client: Asker) -> Source | Refusal:
            return Refusal(Reason(path[1:]), "no")

    expected = {"missing": 404, "outside": 404, "forbidden": 403, "special": 403, "broken": 500}
    with serving(Refusing()) as server, Client((server.host, server.port)) as client:
        for name, status in expected.items():
            assert client.get(f"/{name}").status == status

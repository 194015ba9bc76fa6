"""nginx as the oracle: the same requests to both, the same answers but for what is deliberate."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from dhcpkit import libraries, unpacked
from httpkit import Answer, Client, serving
from test_server import free_port

from fastboot import config
from fastboot.boot.catalog import Catalog

BIG = random.Random(5).randbytes(300_001)
MTIME = 1_700_000_000
FILES = {
    "big": BIG,
    "small": b"0123456789",
    "empty": b"",
    "dir/file": b"inside",
    "gtk+-1.2.3-4.el9.x86_64.rpm": b"plus",
    "blank space%20 gr\u00f6\u00dfe~[1]": b"awkward",
    ".treeinfo": b"hidden",
}
CONF = """
daemon off; user root; pid {work}/pid; error_log {work}/log error; worker_processes 1; master_process off;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; default_type application/octet-stream; autoindex on;
  client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u;
  scgi_temp_path {work}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


Address = tuple[str, int]
SINCE, BEFORE, AFTER = (
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Thu, 01 Jan 2015 00:00:00 GMT",
    "Fri, 01 Jan 2100 00:00:00 GMT",
)


@dataclass(frozen=True)
class Question:
    """A request. In its fields {tag} is the entity tag that the asked server gives the file."""

    path: str
    fields: tuple[str, ...] = ()
    method: str = "GET"
    version: str = "HTTP/1.1"

    def __str__(self) -> str:
        return " ".join((self.method, self.path, *self.fields, self.version))[:80]


def ask(path: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> Question:
    return Question(path, fields, method, version)


@dataclass(frozen=True)
class Said:
    """What counts of an answer. `parts` are (start, octets) of a multipart one; errors' bodies are for people."""

    status: int
    length: bytes | None = None
    range: bytes | None = None
    modified: bytes | None = None
    body: bytes | None = None
    parts: tuple[tuple[int, bytes], ...] | None = None
    is_open: bool = True


SAME = (
    # Names
    *map(ask, (
        "/small", "//small", "/./small", "/dir/../small", "/dir//file", "/dir%2Ffile", "/%73mall", "/small?x=1",
        "/empty", "/big",
        "/gtk+-1.2.3-4.el9.x86_64.rpm", "/gtk%2B-1.2.3-4.el9.x86_64.rpm", "/.treeinfo", "/nothing", "/small/x",
        "/blank%20space%2520%20gr%C3%B6%C3%9Fe~%5B1%5D", "http://boot/small", "/nothing/",
    )),
    *(ask(path, method="HEAD") for path in ("/small", "/empty", "/big", "/nothing")),
    *(ask("/small", method=method) for method in ("POST", "PUT", "DELETE", "OPTIONS", "get")),
    ask("*"), ask("/sm all"), ask("small"),
    # Connections
    ask("/small", "Connection: close"), ask("/small", "Connection: keep-alive"),
    ask("/small", version="HTTP/1.0"),
    ask("/small", "Connection: keep-alive", version="HTTP/1.0"), ask("/big", version="HTTP/1.0"),
    ask("/small", "Accept-Encoding: gzip, br"), ask("/small", "TE: trailers"), ask("/small", version="HTTP/0.9"),
    # One range
    *(ask("/small", f"Range: bytes={spec}") for spec in (
        "0-0", "0-", "9-", "-5", "-99", "5-99999", " 0-1", "0 - 1", "-0", "10-", "99999-",
        "99-100,101-", "99-,0-1",
    )),
    *(ask("/empty", f"Range: bytes={spec}") for spec in ("0-", "-1", "0-0")),
    ask("/big", "Range: bytes=299999-"), ask("/big", "Range: bytes=1-299999"), ask("/big", "Range: items=0-1"),
    ask("/big", "Range: BYTES=0-1"), ask("/big", "Range: bytes=0-1", "Range: bytes=2-3"),
    ask("/small", "Range: bytes"),
    # Many ranges
    *(ask("/big", f"Range: bytes={specs}") for specs in (
        "0-0,1000-1001", "0-9,1000-199999,-10", "0-9,299000-,1000-1001", "0-0,99999999-,1000-1001",
    )),
    # Conditions
    *(ask("/small", f"If-Range: {value}", "Range: bytes=0-1") for value in (
        "{tag}", "W/{tag}", '"x"', SINCE, BEFORE, AFTER, "x", "",
    )),
    *(ask("/small", f"If-None-Match: {value}") for value in ("{tag}", "W/{tag}", "*", '"x", {tag}', '"x"', "x")),
    *(ask("/small", f"If-Modified-Since: {value}") for value in (SINCE, BEFORE, "x", "")),
    *(ask("/small", f"If-Match: {value}") for value in ("{tag}", "*", '"x", {tag}')),
    *(ask("/small", f"If-Unmodified-Since: {value}") for value in (SINCE, AFTER)),
    ask("/small", "If-None-Match: {tag}", method="HEAD"),
    ask("/small", f"If-Modified-Since: {SINCE}", method="HEAD"),
    ask("/small", 'If-None-Match: "x"', f"If-Modified-Since: {SINCE}"),
    ask("/small", "If-None-Match: {tag}", "Range: bytes=0-1"),
    ask("/big", "If-Match: {tag}", "Range: bytes=100000-"),
    ask("/big", f"If-Unmodified-Since: {SINCE}", "Range: bytes=100000-"),
)  # fmt: skip


@dataclass(frozen=True)
class Both:
    """Where nginx and we serve the same directory."""

    nginx: Address
    ours: Address


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    work = tmp_path_factory.mktemp("nginx")
    root = work / "root"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (MTIME, MTIME))
    port = free_port(socket.SOCK_STREAM)
    (work / "conf").write_text(CONF.format(work=work, root=root, port=port))
    command = (unpacked("nginx"), "-p", str(work), "-c", str(work / "conf"), "-e", str(work / "log"))
    catalog = Catalog(config.Config.model_validate({"interface": "lo", "roots": [root]}))
    with (
        subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries()}) as nginx,
        serving(catalog) as ours,
    ):
        try:
            wait_for(port, work / "log")
            yield Both(("127.0.0.1", port), (ours.host, ours.port))
        finally:
            nginx.terminate()
    catalog.close()


def wait_for(port: int, log: Path) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(log.read_text())


def hear(address: Address, question: Question) -> Said:
    """Ask one server, and then once more on the same connection, to see whether it is open."""
    path = question.path if question.path in ("/big", "/empty") else "/small"
    with Client(address) as client:
        tag = (client.get(path, method="HEAD").field(b"ETag") or b"").decode()
    with Client(address) as client:
        fields = [field.replace("{tag}", tag) for field in question.fields]
        answer = client.get(question.path, *fields, method=question.method, version=question.version)
        assert answer.field(b"Transfer-Encoding") is None
        is_open = still_answers(client)
    said = Said(answer.status, is_open=is_open)
    if answer.status == 416:
        return replace(said, range=answer.field(b"Content-Range"))
    if answer.status == 304:
        return replace(said, modified=answer.field(b"Last-Modified"))
    if answer.status not in (200, 206):
        return said
    parts = parts_of(answer)
    return replace(
        said,
        length=None if parts else answer.field(b"Content-Length"),
        range=answer.field(b"Content-Range"),
        modified=answer.field(b"Last-Modified"),
        body=None if parts else answer.body,
        parts=parts,
    )


def still_answers(client: Client) -> bool:
    try:
        return client.get("/small").body == FILES["small"]
    except ConnectionError:
        return False


def parts_of(answer: Answer) -> tuple[tuple[int, bytes], ...] | None:
    """Return what is in a multipart answer, by where it begins."""
    kind = answer.field(b"Content-Type") or b""
    if not kind.startswith(b"multipart/byteranges"):
        return None
    message = BytesParser().parsebytes(b"Content-Type: " + kind + b"\r\n" + answer.body)
    parts = []
    for part in message.get_payload():
        spec = re.fullmatch(r"bytes (\d+)-(\d+)/\d+", part["Content-Range"])  # type: ignore[index, union-attr]
        assert spec
        content = part.get_payload(decode=True)  # type: ignore[union-attr]
        assert isinstance(content, bytes)
        assert len(content) == int(spec[2]) + 1 - int(spec[1])
        parts.append((int(spec[1]), content))
    return tuple(sorted(parts))


@pytest.mark.parametrize("question", SAME, ids=str)
def test_the_same_answers(both: Both, question: Question) -> None:
    assert hear(both.ours, question) == hear(both.nginx, question)


@pytest.mark.parametrize(
    ("question", "status", "theirs", "reason"),
    [
        (ask("/dir"), 200, 301, "a redirect has broken boots (tinkerbell/smee#229); the links are absolute"),
        (ask("/small/"), 200, 404, "a slash too many is no reason to fail a boot"),
        (ask("/../x"), 404, 400, "outside of the tree there is nothing; the connection goes on"),
        (ask("/%2e%2e/x"), 404, 400, "as above"),
        (ask("/small%00"), 403, 400, "as above, for a name with control characters"),
        (ask("/%zz"), 404, 400, "a name may hold a percent sign that was not encoded"),
        (ask("/small", "Range: bytes=5-1"), 200, 416, "a range without sense is ignored (RFC 9110 section 14.2)"),
        (ask("/small", "Range: bytes=x"), 200, 416, "as above"),
        (ask("/small", "Range: bytes=0-1,x"), 200, 416, "as above"),
        (ask("/small", "Range: bytes=,0-1"), 206, 416, "empty members of a list are (RFC 9110 section 5.6.1.2)"),
        (ask("/small", "Range: bytes=0-1", method="HEAD"), 200, 206, "it is for GET only (RFC 9110 section 14.2)"),
        (ask("/small", "Range: bytes=0-1,3-4"), 206, 206, "parts near to each other are sent as one"),
        (ask("/small", "Range: bytes=0-5,3-8"), 206, 200, "parts that overlap are joined, not refused"),
        (ask("/big", "Range: bytes=" + "0-0," * 200 + "5-5"), 206, 206, "as above: one part is sent, not 200"),
        (
            ask("/big", "Range: bytes=" + "0-0,1000-1000," * 200 + "5-5"),
            200,
            206,
            "at most 256 parts in a request",
        ),
        (
            ask("/small", f"If-Modified-Since: {AFTER}"),
            304,
            200,
            "later than the file is (RFC 9110 section 13.1.3)",
        ),
        (
            ask("/small", "If-Unmodified-Since: x"),
            200,
            412,
            "a date that is none counts as absent (section 13.1.4)",
        ),
        (
            ask("/small", "If-None-Match: {tag}", f"If-Modified-Since: {BEFORE}"),
            304,
            200,
            "where there is a tag, the date is not looked at (section 13.2.2)",
        ),
        (ask("/small", "If-Match: {tag}", f"If-Unmodified-Since: {BEFORE}"), 200, 412, "as above"),
        (ask("/small", method="TRACE"), 405, 405, "nginx closes the connection; nothing asks for that"),
        (ask("/small", 'If-Match: "x"'), 412, 412, "as above"),
        (ask("/small", "If-Match: W/{tag}"), 412, 412, "as above"),
        (ask("/small", f"If-Unmodified-Since: {BEFORE}"), 412, 412, "as above"),
        (ask("/gr\u00f6\u00dfe"), 400, 404, "such octets are to be percent-encoded (RFC 3986 section 2.1)"),
        (ask("/small", version="HTTP/1.2"), 400, 200, "there is no such version"),
        (ask("/small", version="HTTP/2.0"), 400, 505, "as above"),
    ],
    ids=str,
)
def test_what_is_another_answer_for_a_reason(
    both: Both, question: Question, status: int, theirs: int, reason: str
) -> None:
    ours, nginx = hear(both.ours, question), hear(both.nginx, question)
    assert (ours.status, nginx.status) == (status, theirs), reason
    assert ours != nginx, "no difference any more: it belongs to SAME"


def test_a_directory_has_its_length(both: Both) -> None:
    """nginx sends pages in chunks, which neither GRUB nor older firmware takes. What is in them is the same."""
    with Client(both.ours) as client:
        page = client.get("/dir/")
        assert client.get("/dir/", method="HEAD").field(b"Content-Length") == page.field(b"Content-Length")
    other = subprocess.run(
        ("curl", "-sS", f"http://{both.nginx[0]}:{both.nginx[1]}/"), capture_output=True, check=True, timeout=20
    )
    with Client(both.ours) as client:
        ours = {unquote(link) for link in re.findall(r'href="/([^"]+)"', client.get("/").body.decode())}
    theirs = {unquote(link) for link in re.findall(r'href="([^"]+)"', other.stdout.decode())} - {"../"}
    assert ours - {".treeinfo"} == theirs  # nginx shows no hidden files
    assert ".treeinfo" in ours


def test_the_version_of_an_answer(both: Both) -> None:
    """The server's own, whatever the request's (RFC 9110 section 2.5)."""
    for address in (both.ours, both.nginx):
        for version in ("HTTP/1.0", "HTTP/1.1"):
            with Client(address) as client:
                assert client.get("/small", version=version).line == b"HTTP/1.1 200 OK"


def test_every_answer_says_what_it_is_of(both: Both) -> None:
    """nginx leaves Accept-Ranges out of parts. Tags are strong in both, and change with the file."""
    for address in (both.ours, both.nginx):
        with Client(address) as client:
            tags = {client.get(path).field(b"ETag") or b"" for path in ("/small", "/big", "/empty", "/dir/file")}
            assert len(tags) == 4
            assert all(re.fullmatch(rb'"[^"]+"', tag) for tag in tags)
            assert client.get("/small").field(b"Accept-Ranges") == b"bytes"
    with Client(both.ours) as client:
        assert client.get("/small", "Range: bytes=0-1").field(b"Accept-Ranges") == b"bytes"


GET = b"GET /small HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("packet", "statuses"),
    [
        (GET * 3, [200] * 3),
        (GET * 3 + b"\0junk\r\n\r\n", [200, 200, 200, 400]),
        (GET + GET[:-2] + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + GET, [200, 400]),
        (GET[:-2] + b"Connection: close\r\n\r\n" + GET, [200]),
        (b"GET /small HTTP/1.0\r\n\r\n" + GET, [200]),
        (GET + b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n" + GET, [200, 200, 200]),
    ],
)
def test_requests_that_come_at_once(both: Both, packet: bytes, statuses: list[int], half: bool) -> None:
    """What came before a broken one is answered; and so is a client that ends its side when it has asked."""
    for address in (both.ours, both.nginx):
        with socket.create_connection(address, 10) as client:
            client.sendall(packet)
            if half or statuses[-1] == 200:
                client.shutdown(socket.SHUT_WR)
            whole = b"".join(iter(lambda: client.recv(65536), b""))
        assert [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", whole)] == statuses
        assert whole.count(FILES["small"]) >= statuses.count(200) - (BIG in whole)
        assert (BIG in whole) == (b"/big" in packet)


def test_a_client_that_ended_its_side_in_the_middle_of_a_file(both: Both) -> None:
    """nginx cuts it off; ours takes its time."""
    with socket.create_connection(both.ours, 10) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
        begin = client.recv(1000)
        client.shutdown(socket.SHUT_WR)
        assert (begin + b"".join(iter(lambda: client.recv(65536), b""))).endswith(BIG)

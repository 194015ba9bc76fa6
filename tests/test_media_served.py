"""One tree by three protocols, whatever the medium is: every name and octet, also beyond 4 GiB."""

from __future__ import annotations

import asyncio
import ftplib
import random
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from httpkit import Client as HttpClient
from isokit import GENISOIMAGE, XORRISO, bare_udf, files_below, put, run, sparse_image
from test_media import serving
from test_server import tftp_get

from fastboot.config import Config

FILES: dict[str, bytes | str] = {
    ".treeinfo": b"[general]\n",
    "empty": b"",
    "images/install.img": random.Random(5).randbytes(1_000_001),
    "Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm": b"plus",
    "Packages/l/libstdc++ 6~rc[1] & more.deb": b"awkward",
    "Packages/\u00fc/gr\u00f6\u00dfe \u4f60": b"unicode",
    "a/b/c/d/e/f/deep": b"deep",
}
FORMS: Mapping[str, tuple[str, ...]] = {
    "Rock Ridge": (*XORRISO, "-R"),
    "Joliet": (*GENISOIMAGE, "-J", "-joliet-long"),
    "UDF": (*GENISOIMAGE, "-udf"),
}
KINDS = {"directory": "", "Rock-Ridge": "Rock Ridge", "Joliet": "Joliet", "UDF": "UDF", "UDF-alone": "UDF"}
HUGE = 4300 << 20
MARKS = (0, (4 << 30) - 2049, (4 << 30) - 1, HUGE - 4)
"""Where the file of 4.2 GiB is not zero: in its first section, over the border of the second, at its end."""


@dataclass
class Served:
    config: Config

    def port(self, protocol: str) -> int:
        service = getattr(self.config, protocol)
        assert service
        port: int = service.port
        return port

    def http(self) -> HttpClient:
        return HttpClient(("127.0.0.1", self.port("http")), 60)

    def ftp(self) -> ftplib.FTP:
        ftp = ftplib.FTP(timeout=60)
        ftp.connect("127.0.0.1", self.port("ftp"))
        ftp.login()
        ftp.voidcmd("TYPE I")
        return ftp


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The same files as a directory and as images of every form."""
    base = tmp_path_factory.mktemp("media")
    tree = put(base / "tree", FILES)
    made: dict[str, object] = {"directory": {"path": tree}}
    for form, command in FORMS.items():
        path = base / form.replace(" ", "-") / "x.iso"
        path.parent.mkdir()
        run(*command, "-o", path, tree)
        made[path.parent.name] = path
    made["UDF-alone"] = bare_udf(base / "UDF/x.iso")
    return made


@pytest.fixture
async def served(
    media: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    async with serving(tmp_path, monkeypatch, **media) as (server, config):
        forms = {str(each["name"]): each["form"] or "" for each in server.media()}
        assert forms == KINDS
        yield Served(config)


async def by_http(served: Served, top: str) -> dict[str, bytes]:
    def walk() -> dict[str, bytes]:
        found, places = {}, [f"{top}/"]
        with served.http() as client:
            while places:
                place = places.pop()
                for link in re.findall(r'href="([^"]+)"', client.get(place).body.decode()):
                    if link.startswith(place) and link != place:
                        if link.endswith("/"):
                            places.append(link)
                        else:
                            found[unquote(link).removeprefix(f"{top}/")] = client.get(link).body
        return found

    return await asyncio.to_thread(walk)


async def by_ftp(served: Served, top: str) -> dict[str, bytes]:
    def walk() -> dict[str, bytes]:
        found, places = {}, [top]
        with served.ftp() as ftp:
            while places:
                place = places.pop()
                for name, facts in list(ftp.mlsd(place)):
                    if facts["type"] == "dir":
                        places.append(f"{place}/{name}")
                    elif facts["type"] == "file":
                        got = bytearray()
                        ftp.retrbinary(f"RETR {place}/{name}", got.extend)
                        assert len(got) == int(facts["size"])
                        found[f"{place}/{name}".removeprefix(f"{top}/")] = bytes(got)
        return found

    return await asyncio.to_thread(walk)


async def by_tftp(served: Served, top: str) -> dict[str, bytes]:
    """It has no listings: the names are those that FTP lists."""
    names = await by_ftp(served, top)
    return {name: await tftp_get(served.port("tftp"), f"{top}/{name}") for name in names}


@pytest.mark.parametrize("walk", [by_http, by_ftp, by_tftp])
async def test_every_protocol_has_the_same_tree(
    served: Served, media: dict[str, object], walk: Callable[[Served, str], Awaitable[dict[str, bytes]]]
) -> None:
    tree = media["directory"]["path"]  # type: ignore[index]
    for kind in KINDS:
        assert await walk(served, f"/media/{kind}") == files_below(tree), kind


# --- beyond 4 GiB


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A file of 4.2 GiB in sparse images: in two extents (ISO 9660 section 6.5.1), in UDF, and as it is."""
    base = tmp_path_factory.mktemp("huge")
    tree = put(base / "tree", {"file.img": b"", "after.img": b"after"})
    with (tree / "file.img").open("r+b") as file:
        file.truncate(HUGE)
        for at in MARKS:
            file.seek(at)
            file.write(b"mark")
    return {
        "directory": {"path": tree},
        "extents": sparse_image((*XORRISO, "-iso-level", "3", "-R", "-o", "-"), tree, base / "x.iso"),
        "udf": sparse_image(
            (*GENISOIMAGE, "-iso-level", "3", "-allow-limited-size", "-udf"), tree, base / "y.iso"
        ),
    }


async def test_beyond_4_gib(huge: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length by HTTP, FTP and TFTP, and what is before, over and behind the border."""
    async with serving(tmp_path, monkeypatch, **huge) as (server, config):
        assert [each["form"] for each in server.media()] == [None, "Rock Ridge", "UDF"]
        served = Served(config)
        for kind in huge:
            path = f"/media/{kind}/file.img"
            await asyncio.to_thread(http_beyond, served, path)
            await asyncio.to_thread(ftp_beyond, served, path)
            assert await asyncio.to_thread(tftp_size, served.port("tftp"), path) == HUGE
            assert await tftp_get(served.port("tftp"), f"/media/{kind}/after.img") == b"after"


def expected(start: int, size: int) -> bytes:
    octets = bytearray(size)
    for at in MARKS:
        for each in range(4):
            if start <= at + each < start + size:
                octets[at + each - start] = b"mark"[each]
    return bytes(octets)


def http_beyond(served: Served, path: str) -> None:
    with served.http() as client:
        assert client.get(path, method="HEAD").field(b"Content-Length") == str(HUGE).encode()
        for at in MARKS:
            start = max(0, at - 70_000)
            answer = client.get(path, f"Range: bytes={start}-{start + 139_999}")
            assert answer.status == 206
            assert answer.body == expected(start, min(140_000, HUGE - start))
        parts = ",".join(f"{at}-{at + 3}" for at in (MARKS[0], MARKS[1], MARKS[3]))
        answer = client.get(path, f"Range: bytes={parts}")
        assert answer.body.count(b"\r\n\r\nmark\r\n") == 3


def ftp_beyond(served: Served, path: str) -> None:
    with closing(served.ftp()) as ftp:
        assert ftp.size(path) == HUGE
        for at in (MARKS[1] - 70_000, MARKS[3] - 70_000):
            wanted = min(140_000, HUGE - at)
            with ftp.transfercmd(f"RETR {path}", rest=at) as data:
                data.settimeout(20)
                with data.makefile("rb") as file:
                    assert file.read(wanted) == expected(at, wanted)
            with suppress(ftplib.Error):  # that the client has left, where there was more
                ftp.voidresp()


def tftp_size(port: int, path: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.sendto(b"\0\1" + path.encode() + b"\0octet\0tsize\x000\0", ("127.0.0.1", port))
        answer, peer = sock.recvfrom(2048)
        sock.sendto(b"\0\5\0\x08enough\0", peer)
    assert answer.startswith(b"\0\6tsize\0")
    return int(answer[8:].rstrip(b"\0"))

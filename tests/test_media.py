"""Images as media: read by another process, served where they are, replaced and changed while they are served."""

from __future__ import annotations

import asyncio
import ftplib
import gc
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import uvloop
from isokit import XORRISO, files_below, put, run
from test_recognise import rhel
from test_server import free_port, tftp_get, until

from fastboot import server as server_module
from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.boot.disc import Disc
from fastboot.boot.image import Step
from fastboot.boot.index import Index, identity_of
from fastboot.boot.indexer import Indexer, MediaError
from fastboot.boot.shelf import Shelf
from fastboot.boot.tree import Entry
from fastboot.config import Config
from fastboot.model import Client, Event, Reason, Refusal
from fastboot.server import Server

CLIENT = Client(IPv4Address("10.0.0.9"), IPv4Address("10.0.0.1"), "tftp")
FILES: dict[str, bytes | str] = {
    ".treeinfo": b"[general]\n",
    "empty": b"",
    "images/kernel": os.urandom(200_000),
    "Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm": os.urandom(3000),
    "Packages/\u00e4": b"unicode",
    "link": "images/kernel",
    "dir": "Packages/g",
    "absolute": "/etc/passwd",
    "outside": "../../etc/passwd",
    "loop": "loop",
    "dangling": "nowhere",
}


def make_iso(path: Path, files: dict[str, bytes | str], *options: str) -> Path:
    tree = put(path.with_suffix(".tree"), files)
    run(*XORRISO, "-R", *options, "-o", path, tree)
    os.utime(tree / next(iter(files)), (1, 1))
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("media")
    tree = put(base / "x.tree", FILES)
    os.utime(tree / "images/kernel", (1_000_000_001, 1_000_000_001))
    run(*XORRISO, "-R", "-o", base / "x.iso", tree)
    return base / "x.iso"


@pytest.fixture
def iso(original: Path, tmp_path: Path) -> Path:
    return shutil.copy(original, tmp_path / "x.iso")


@pytest.fixture
def indexer(tmp_path: Path) -> Iterator[Indexer]:
    one = Indexer(tmp_path / "state/media")
    yield one
    one.close()


def ignore(step: Step) -> None:
    pass


def config_of(tmp_path: Path, services: dict[str, Any] | None = None, **media: Any) -> Config:
    """Return a configuration of media, each an image or what else a table of them may say."""
    (tmp_path / "state").mkdir(exist_ok=True)
    places = {name: {"iso": place} if isinstance(place, Path) else place for name, place in media.items()}
    table = [{"name": name, **place} for name, place in places.items()]
    rest = {"interface": "lo", "state": tmp_path / "state", "media": table}
    return Config.model_validate(rest | (services or {}))


async def prepared(config: Config, indexer: Indexer) -> tuple[Catalog, list[tuple[str, dict[str, object]]]]:
    told: list[tuple[str, dict[str, object]]] = []
    shelf = Shelf(config, indexer)
    await shelf.prepare(lambda kind, **details: told.append((kind, details)))
    return Catalog(config, shelf=shelf), told


def text_of(found: Source | Refusal) -> bytes:
    assert isinstance(found, Source), found
    return found.read()


# The namespace


async def test_an_image_is_a_tree_like_any_other(iso: Path, tmp_path: Path, indexer: Indexer) -> None:
    catalog, told = await prepared(config_of(tmp_path, lab=iso), indexer)
    for name, content in FILES.items():
        if isinstance(content, bytes):
            assert text_of(catalog.resolve(f"/media/lab/{name}", CLIENT)) == content
    assert told[0][0] == "media.ready"
    assert told[0][1]["files"] == 5
    assert catalog.stat("/media/lab/images/kernel", CLIENT) == Entry("kernel", False, 200_000, 1_000_000_001)
    assert catalog.stat("/media/lab/link", CLIENT) == Entry("link", False, 200_000, 1_000_000_001)
    listed = catalog.list("/media/lab", CLIENT)
    assert isinstance(listed, list)
    assert [entry.name for entry in listed] == [".treeinfo", "Packages", "dir", "empty", "images", "link"]
    assert [entry.name for entry in listed if entry.is_dir] == ["Packages", "dir", "images"]
    through = catalog.list("/media/lab/dir", CLIENT)
    assert isinstance(through, list)
    assert [entry.name for entry in through] == ["gtk+-1.2.3-4.el9.x86_64.rpm"]
    assert text_of(catalog.resolve("media/lab/dir/gtk+-1.2.3-4.el9.x86_64.rpm", CLIENT))
    catalog.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absolute", Reason.OUTSIDE),
        ("outside", Reason.OUTSIDE),
        ("loop", Reason.BROKEN),
        ("dangling", Reason.MISSING),
        ("nothing", Reason.MISSING),
        ("empty/below", Reason.MISSING),
        ("images", Reason.DIRECTORY),
        ("dir", Reason.DIRECTORY),
        ("", Reason.DIRECTORY),
        ("../../etc/passwd", Reason.MISSING),
        ("../../../etc/passwd", Reason.OUTSIDE),
        ("\ud800", Reason.MISSING),
        ("im\nages", Reason.FORBIDDEN),
    ],
)
async def test_names_that_are_refused(
    iso: Path, tmp_path: Path, indexer: Indexer, name: str, reason: Reason
) -> None:
    catalog, _ = await prepared(config_of(tmp_path, lab=iso), indexer)
    found = catalog.resolve(f"/media/lab/{name}", CLIENT)
    assert isinstance(found, Refusal)
    assert found.reason is reason
    catalog.close()


async def test_names_that_lead_out_of_an_image(tmp_path: Path, indexer: Indexer) -> None:
    """Rock Ridge may write anything as a name. What is none is neither listed nor found, and `check` says so."""
    iso = make_iso(
        tmp_path / "x.iso", {"d/dd": b"1", "d/a_b": b"2", "d/z": b"3", "d/new_line": b"4", "d/fine": b"5"}
    )
    data = iso.read_bytes()
    for old, new in ((b"dd", b".."), (b"a_b", b"a/b"), (b"z", b"."), (b"new_line", b"new\nline")):
        head = b"NM" + bytes((5 + len(old), 1, 0))
        assert data.count(head + old) == 1
        data = data.replace(head + old, head + new)
    iso.write_bytes(data)
    catalog, _ = await prepared(config_of(tmp_path, lab=iso), indexer)
    listed = catalog.list("/media/lab/d", CLIENT)
    assert isinstance(listed, list)
    assert [entry.name for entry in listed] == ["fine"]
    for path in ("d/..", "d/a/b", "d/new\nline", "d/dd", "d/./z"):
        assert isinstance(catalog.resolve(f"/media/lab/{path}", CLIENT), Refusal)
    said = [line.removeprefix(f"{iso}/d/") for line in catalog.check() if line.startswith(str(iso))]
    assert said == [f"{name}: is no name of a file; it is never served" for name in (".", "..", "a/b")]
    catalog.close()


async def test_directories_of_the_same_name(tmp_path: Path, indexer: Indexer) -> None:
    """The first is served; what is in the other is out of reach, and does not keep `check` for ever (fuzzed)."""
    files: dict[str, bytes | str] = {"aa/link": "/etc/passwd", "ab/deep/link": "/etc/passwd", "ab/file": b"x"}
    iso = make_iso(tmp_path / "x.iso", files)
    iso.write_bytes(iso.read_bytes().replace(b"NM\7\1\0ab", b"NM\7\1\0aa"))
    catalog, _ = await prepared(config_of(tmp_path, lab=iso), indexer)
    assert [line for line in catalog.check() if line.startswith(str(iso))] == [
        f"{iso}/aa/link: leaves the served tree; it is never served"
    ]
    assert isinstance(catalog.resolve("/media/lab/aa/file", CLIENT), Refusal)
    catalog.close()


async def test_check_names_what_is_not_served(iso: Path, tmp_path: Path, indexer: Indexer) -> None:
    (tmp_path / "bad.iso").write_bytes(b"no image" * 10_000)
    config = config_of(
        tmp_path, lab=iso, bad=tmp_path / "bad.iso", gone=tmp_path / "gone.iso", folder=tmp_path,
        far={"url": "http://192.0.2.1/media/x/"},
    )  # fmt: skip
    catalog, told = await prepared(config, indexer)
    complaints = catalog.check()
    assert [line.removeprefix(f"{iso}/") for line in complaints if line.startswith(str(iso))] == [
        "absolute: leaves the served tree; it is never served",
        "dangling: no such file; it is never served",
        "loop: can not be read; it is never served",
        "outside: leaves the served tree; it is never served",
    ]
    assert f"media gone: {tmp_path}/gone.iso: No such file or directory; create it or name another" in complaints
    assert f"media folder: {tmp_path}: is not an ISO file; name an ISO file" in complaints
    fault = f"{tmp_path}/bad.iso: volume descriptor at 0x8000: neither ISO 9660 nor UDF; is it an image of a disc?"
    assert f"media bad: {fault}" in complaints
    assert ("media.failed", {"media": "bad", "text": fault}) in told
    assert len(complaints) == 7
    found = catalog.resolve("/media/bad/x", CLIENT)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.BROKEN
    catalog.close()


@pytest.mark.parametrize(
    "table", [{}, {"iso": "x", "path": "x"}, {"path": "x", "url": "http://x/"}], ids=["none", "both", "url"]
)
def test_a_medium_is_in_one_place(table: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs one of iso"):
        Config.model_validate({"interface": "lo", "media": [{"name": "m", **table}]})


@pytest.mark.parametrize("url", ["nfs://x/y", "http://", "x", "http://x/a b", "http://x/?q", "http://x/a/../b"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"media\.0\.url"):
        Config.model_validate({"interface": "lo", "media": [{"name": "m", "url": url}]})


async def test_clients_of_one_file_share_it(iso: Path, tmp_path: Path, indexer: Indexer) -> None:
    catalog, _ = await prepared(config_of(tmp_path, lab=iso), indexer)
    one, other = (catalog.resolve("/media/lab/images/kernel", CLIENT) for _ in range(2))
    assert one is other
    rpm = catalog.resolve("/media/lab/dir/gtk+-1.2.3-4.el9.x86_64.rpm", CLIENT)
    assert isinstance(one, Source)
    assert isinstance(rpm, Source)
    assert rpm.fileno() == one.fileno()
    catalog.close()
    assert one.read() == FILES["images/kernel"]


# The index


async def test_an_index_is_kept_and_used_again(iso: Path, tmp_path: Path, indexer: Indexer) -> None:
    config = config_of(tmp_path, lab=iso)
    kept = tmp_path / "state/media/lab.index"
    await prepared(config, indexer)
    first = kept.stat()
    _, told = await prepared(config, indexer)
    assert told == []
    assert kept.stat() == first
    assert [path.name for path in kept.parent.iterdir()] == ["lab.index"]


@pytest.mark.parametrize("damage", ["other time", "empty", "noise", "page", "format"])
async def test_an_index_that_is_not_of_the_image_is_made_again(
    iso: Path, tmp_path: Path, indexer: Indexer, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, lab=iso)
    await prepared(config, indexer)
    kept = tmp_path / "state/media/lab.index"
    if damage == "other time":
        os.utime(iso, (1, 1))
    elif damage == "format":
        monkeypatch.setattr("fastboot.boot.index.FORMAT", 0)
        indexer = Indexer(kept.parent, keep=False)
    elif damage == "page":
        data = bytearray(kept.read_bytes())
        at = data.index(b"gtk+-1.2.3")
        page = at - at % 4096
        data[page : page + 100] = os.urandom(100)
        kept.write_bytes(data)
    else:
        kept.write_bytes(b"" if damage == "empty" else os.urandom(8192))
    if damage == "format":
        with pytest.raises(LookupError):
            indexer.find("lab", identity_of(iso.stat()))
        return
    catalog, told = await prepared(config, indexer)
    assert [kind for kind, _ in told] == ["media.ready"]
    assert text_of(catalog.resolve("/media/lab/images/kernel", CLIENT)) == FILES["images/kernel"]


async def test_others_than_the_server_leave_nothing_behind(iso: Path, tmp_path: Path) -> None:
    indexer = Indexer(tmp_path / "state/media", keep=False)
    catalog, _ = await prepared(config_of(tmp_path, lab=iso), indexer)
    indexer.close()
    assert text_of(catalog.resolve("/media/lab/.treeinfo", CLIENT)) == b"[general]\n"
    assert isinstance(catalog.list("/media/lab", CLIENT), list)
    assert not (tmp_path / "state/media").exists()


async def test_a_state_directory_that_takes_nothing_is_named(iso: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    indexer = Indexer(tmp_path / "file/media")
    with pytest.raises(MediaError, match=r"its index: .*Not a directory: .*file/media"):
        await Disc("lab", iso, indexer).prepare(ignore)
    indexer.close()


async def test_the_reader_that_was_killed_is_started_again(iso: Path, tmp_path: Path, indexer: Indexer) -> None:
    indexer.start()
    assert indexer._process is not None
    old = indexer._process.pid
    os.kill(old, signal.SIGKILL)
    os.waitid(os.P_PID, old, os.WEXITED | os.WNOWAIT)
    _, told = await prepared(config_of(tmp_path, lab=iso), indexer)
    assert [kind for kind, _ in told] == ["media.ready"]
    assert indexer._process.pid != old


async def test_a_reader_that_ends_without_a_word(
    iso: Path, tmp_path: Path, indexer: Indexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel does to one that takes too much time or memory."""

    def request(draft: Path, source: Source, answers: socket.socket) -> None:
        answers.sendall(b'{"step": [1, 2, 3]}\n')
        answers.close()

    monkeypatch.setattr(indexer, "_request", request)
    steps: list[Step] = []
    with pytest.raises(MediaError, match="was ended: by its limits"):
        await Disc("lab", iso, indexer).prepare(steps.append)
    assert steps == [Step(1, 2, 3)]


@pytest.mark.parametrize(
    "line", [b"x" * 200_000, b"nonsense\n", b"[1]\n", b'{"step": "abc"}\n', b'{"done": true}\n']
)
async def test_a_reader_that_a_hostile_image_has_taken_over(
    iso: Path, indexer: Indexer, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Whatever it says: a fault of the medium, and no more."""

    def request(draft: Path, source: Source, answers: socket.socket) -> None:
        answers.setblocking(False)
        answers.send(line)
        answers.close()

    monkeypatch.setattr(indexer, "_request", request)
    with pytest.raises(MediaError):
        await Disc("lab", iso, indexer).prepare(ignore)


async def test_an_index_that_breaks_while_it_is_used(tmp_path: Path, indexer: Indexer) -> None:
    files: dict[str, bytes | str] = {f"d/file-with-a-name-of-some-length-{number}": b"" for number in range(1000)}
    catalog, _ = await prepared(config_of(tmp_path, lab=make_iso(tmp_path / "many.iso", files)), indexer)
    kept = tmp_path / "state/media/lab.index"
    with kept.open("r+b") as file:
        file.write(os.urandom(kept.stat().st_size))
    name = "/media/lab/d/file-with-a-name-of-some-length-500"
    for found in (catalog.resolve(name, CLIENT), catalog.stat(name, CLIENT), catalog.list("/media/lab/d", CLIENT)):
        assert isinstance(found, Refusal)
        assert found.reason is Reason.BROKEN
    catalog.close()


async def test_limits_end_a_reader(iso: Path, tmp_path: Path) -> None:
    """The limits hold: a child with a second of processor time is ended by the kernel in an endless read."""
    pid = os.fork()
    if pid == 0:
        from fastboot.boot import indexer

        indexer.SECONDS = 1  # type: ignore[misc]
        indexer.MEMORY = resource.RLIM_INFINITY  # type: ignore[misc]  # this process may be larger already
        indexer.write_index = lambda *_: deque(iter(int, 1), maxlen=0)
        os._exit(indexer.work(os.open(iso, os.O_RDONLY), socket.socketpair()[0], tmp_path / "x"))
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL)


async def test_the_reader_ends_with_its_server(tmp_path: Path) -> None:
    indexer = Indexer(tmp_path)
    indexer.start()
    assert indexer._process is not None
    process = psutil.Process(indexer._process.pid)
    indexer.close()
    assert not process.is_running()


def test_a_reader_without_work_is_not_started(tmp_path: Path) -> None:
    config = config_of(tmp_path, folder={"path": tmp_path})
    indexer = Indexer(tmp_path)
    asyncio.run(Shelf(config, indexer).prepare(lambda kind, **details: None))
    assert indexer._process is None


# While it is served


@asynccontextmanager
async def serving(
    tmp_path: Path, patch: pytest.MonkeyPatch, look_every: float = 0.05, **media: Any
) -> AsyncIterator[tuple[Server, Config]]:
    patch.setattr(server_module, "MEDIA_LOOK", look_every)
    ports = {name: {"port": free_port(socket.SOCK_STREAM)} for name in ("ftp", "http")}
    ports["tftp"] = {"port": free_port(socket.SOCK_DGRAM)}
    config = config_of(tmp_path, ports | {"drain": 0}, **media)
    async with Server(config) as server:
        yield server, config


async def look(server: Server, times: int = 1) -> None:
    """Have the server look whether images were replaced, as it does every MEDIA_LOOK seconds."""
    for _ in range(times):
        await server._world.shelf.refresh(server._tell)


async def test_served_by_tftp_and_ftp(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original: Path
) -> None:
    async with serving(tmp_path, monkeypatch, lab=iso) as (_, config):
        assert config.tftp
        assert config.ftp
        rpm = "Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm"
        assert await tftp_get(config.tftp.port, f"/media/lab/{rpm}") == FILES[rpm]
        assert await tftp_get(config.tftp.port, "media/lab/empty") == b""
        url = f"ftp://127.0.0.1:{config.ftp.port}/media/lab"
        curl = await asyncio.to_thread(run, "curl", "-sS", "--disable-eprt", "-o", tmp_path / "got", f"{url}/link")
        assert curl == ""
        assert (tmp_path / "got").read_bytes() == FILES["images/kernel"]
        tail = ("curl", "-sS", "-C", "150000", "-o", tmp_path / "tail", f"{url}/images/kernel")
        await asyncio.to_thread(run, *tail)
        kernel = FILES["images/kernel"]
        assert isinstance(kernel, bytes)
        assert (tmp_path / "tail").read_bytes() == kernel[150_000:]
        mirror = f"set net:timeout 10; mirror --parallel=4 / {tmp_path / 'mirror'}; quit"
        await asyncio.to_thread(run, "lftp", "-c", f"open {url}; {mirror.replace(' / ', ' . ')}")
    mirrored = files_below(tmp_path / "mirror")
    assert {name: mirrored[name] for name in files_below(original.with_suffix(".tree"))} == files_below(
        original.with_suffix(".tree")
    )
    assert mirrored["link"] == FILES["images/kernel"]
    assert (tmp_path / "mirror/images/kernel").stat().st_mtime == 1_000_000_001


async def test_ftp_facts(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(port: int) -> tuple[object, ...]:
        with ftplib.FTP() as ftp:
            ftp.connect("127.0.0.1", port)
            ftp.login()
            ftp.cwd("/media/lab/images")
            facts = {name: facts for name, facts in ftp.mlsd("/media/lab") if name == "link"}
            ftp.voidcmd("TYPE I")
            return ftp.size("kernel"), ftp.sendcmd("MDTM kernel"), facts["link"]["size"], facts["link"]["modify"]

    async with serving(tmp_path, monkeypatch, lab=iso) as (_, config):
        assert config.ftp
        answers = await asyncio.to_thread(ask, config.ftp.port)
    assert answers == (200_000, "213 20010909014641", "200000", "20010909014641")


async def test_served_by_http(iso: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, {"http": {"port": free_port(socket.SOCK_STREAM)}}, lab=iso)
    assert config.http
    async with Server(config), aiohttp.ClientSession(f"http://127.0.0.1:{config.http.port}") as session:
        kernel = FILES["images/kernel"]
        async with session.get("/media/lab/link") as answer:
            assert answer.headers["Last-Modified"] == "Sun, 09 Sep 2001 01:46:41 GMT"
            assert await answer.read() == kernel
            tag = answer.headers["ETag"]
        async with session.get(
            "/media/lab/images/kernel", headers={"Range": "bytes=100-299", "If-Range": tag}
        ) as answer:
            assert answer.status == 206
            assert await answer.read() == kernel[100:300]
        async with session.get("/media/lab/Packages/g/gtk%2b-1.2.3-4.el9.x86_64.rpm") as answer:
            assert answer.headers["ETag"] != tag
            assert await answer.read() == FILES["Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm"]
        async with session.get("/media/lab/") as answer:
            assert "images/" in await answer.text()


def replace(iso: Path, files: dict[str, bytes | str]) -> None:
    """Put another image in the place of one, as `mv` does."""
    new = make_iso(iso.with_name("new.iso"), files)
    new.replace(iso)


async def test_replaced_by_rename(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers under way keep the old image, and so do new ones until the new one was read."""
    async with serving(tmp_path, monkeypatch, lab=iso) as (server, config):
        assert config.tftp
        held = server.catalog.resolve("/media/lab/images/kernel", CLIENT)
        events = server.events()
        replace(iso, {"images/kernel": b"new", "more": b"more"})
        assert text_of(server.catalog.resolve("/media/lab/images/kernel", CLIENT)) in (
            b"new",
            FILES["images/kernel"],
        )
        ready = await until(events, "media.ready")
        assert ready.details["media"] == "lab"
        assert ready.details["files"] == 2
        assert text_of(held) == FILES["images/kernel"]
        assert isinstance(held, Source)
        assert held.unchanged()
        assert await tftp_get(config.tftp.port, "/media/lab/images/kernel") == b"new"
        assert await tftp_get(config.tftp.port, "/media/lab/more") == b"more"


@pytest.mark.parametrize("in_place", [False, True], ids=["by rename", "in place"])
async def test_a_transfer_keeps_the_image_it_began_with(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """By TFTP. One that was written to is not kept: the transfer ends in an error before its last block."""
    async with serving(tmp_path, monkeypatch, look_every=3600, lab=iso) as (server, config):
        assert config.tftp
        loop = asyncio.get_running_loop()
        data, block, replaced = b"", 0, False
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(b"\0\1/media/lab/images/kernel\0octet\0", ("127.0.0.1", config.tftp.port))
            while True:
                async with asyncio.timeout(10):
                    packet, peer = await loop.sock_recvfrom(sock, 2048)
                if packet[1] == 5:
                    break
                if int.from_bytes(packet[2:4]) == block + 1:  # else one that was sent again
                    block += 1
                    data += packet[4:]
                if block == 100 and not replaced:
                    replaced = True
                    if in_place:
                        with iso.open("r+b") as file:
                            file.write(b"x")
                    else:
                        replace(iso, {"images/kernel": b"new"})
                    await look(server, 2)
                sock.sendto(b"\0\4" + packet[2:4], peer)
                if len(packet) < 516:
                    break
        if in_place:
            assert len(data) < len(FILES["images/kernel"])
            assert b"changed" in packet
        else:
            assert data == FILES["images/kernel"]


async def test_written_in_place(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way ends in an error, what is asked meanwhile is refused, what comes after is the new one."""
    async with serving(tmp_path, monkeypatch, look_every=3600, lab=iso) as (server, _):
        events = server.events()
        held = server.catalog.resolve("/media/lab/images/kernel", CLIENT)
        new = make_iso(tmp_path / "new.iso", {"images/kernel": b"new" * 100_000}).read_bytes()
        with iso.open("r+b") as file:
            file.write(new[: len(new) // 2])
            file.flush()
            refusal = server.catalog.resolve("/media/lab/images/kernel", CLIENT)
            assert refusal == Refusal(Reason.BUSY, "its medium is being replaced, ask again later")
            assert isinstance(held, Source)
            assert not held.unchanged()
            for at in range(5):  # each write is another file to whoever looks: it waits for the last
                os.utime(file.fileno(), (at, at))
                await look(server)
            assert events.take() == []
            file.write(new[len(new) // 2 :])
            file.truncate()
        await look(server, 2)
        ready: Event = await until(events, "media.ready")
        assert ready.details["files"] == 1
        assert text_of(server.catalog.resolve("/media/lab/images/kernel", CLIENT)) == b"new" * 100_000


async def test_replaced_by_something_else(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is told once, and the old image is served until there is another."""
    async with serving(tmp_path, monkeypatch, lab=iso) as (server, _):
        events = server.events()
        (tmp_path / "junk").write_bytes(b"junk" * 10_000)
        (tmp_path / "junk").replace(iso)
        failed = await until(events, "media.failed")
        assert "neither ISO 9660 nor UDF" in str(failed.details["text"])
        assert text_of(server.catalog.resolve("/media/lab/images/kernel", CLIENT)) == FILES["images/kernel"]
        await asyncio.sleep(0.3)
        assert events.take() == []
        iso.unlink()
        await asyncio.sleep(0.2)
        assert text_of(server.catalog.resolve("/media/lab/empty", CLIENT)) == b""
        replace(iso, {"images/kernel": b"new"})
        await until(events, "media.ready")


async def test_media_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server has the image; the other tells machines where that is, and serves nothing of it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    iso = make_iso(tmp_path / "rocky.iso", rhel("Rocky Linux", "9.4"))
    async with serving(tmp_path / "one", monkeypatch, rocky=iso) as (_, config):
        assert config.http
        url = f"http://127.0.0.1:{config.http.port}/media/rocky"
        profile = {
            "name": "p", "media": "rocky", "installs": False, "arguments": "inst.repo={{ media }}",
            "kernel": "images/pxeboot/vmlinuz", "initrd": "images/pxeboot/initrd.img",
        }  # fmt: skip
        http = {"http": {"port": free_port(socket.SOCK_STREAM)}, "profiles": [profile]}
        other = config_of(tmp_path / "two", http, rocky={"url": url + "/"})
        async with Server(other) as server, aiohttp.ClientSession() as session:
            assert other.http
            (facts,) = server.media()
            assert (facts["state"], facts["place"]) == ("elsewhere", url)
            async with session.get(f"http://127.0.0.1:{other.http.port}/boot/boot.ipxe") as answer:
                script = await answer.text()
            async with session.get(f"http://127.0.0.1:{other.http.port}/media/rocky/.treeinfo") as answer:
                assert answer.status == 404
            assert f"inst.repo={url}" in script
            (kernel,) = re.findall(r"^kernel (\S+) ", script, re.MULTILINE)
            assert kernel == f"{url}/images/pxeboot/vmlinuz"
            async with session.get(kernel) as answer:
                assert await answer.read() == b"k"


async def test_a_reload_starts_the_reader_beside_the_loop(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten milliseconds, in which no machine would get an answer."""
    threads: list[threading.Thread] = []
    popen = subprocess.Popen

    def watched(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        threads.append(threading.current_thread())
        return popen(*words, **options)

    async with serving(tmp_path, monkeypatch) as (server, config):
        monkeypatch.setattr(subprocess, "Popen", watched)
        await server.reload(
            config_of(tmp_path, config.model_dump(include={"tftp", "ftp", "http", "drain"}), lab=iso)
        )
        assert text_of(server.catalog.resolve("/media/lab/empty", CLIENT)) == b""
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def held(path: Path) -> int:
    """Return how many descriptors of this process are of a file."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(each.readlink())
    return links.count(path)


async def test_a_reload_lets_images_go(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, but for those that are in use."""
    gc.collect()
    gc.disable()
    try:
        async with serving(tmp_path, monkeypatch, lab=iso) as (server, config):
            source = server.catalog.resolve("/media/lab/empty", CLIENT)
            for _ in range(3):
                await server.reload(config)
            assert held(iso) == 2
            assert text_of(source) == b""
            del source
            assert held(iso) == 1
            await server.reload(config.model_copy(update={"media": ()}))
            assert held(iso) == 0
    finally:
        gc.enable()


async def test_a_reload_reads_new_media(iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch, lab=iso) as (server, config):
        more = make_iso(tmp_path / "more.iso", {"file": b"more"})
        media = (*config.media, type(config.media[0])(name="more", iso=more))
        assert await server.reload(config.model_copy(update={"media": media})) == ("media",)
        assert text_of(server.catalog.resolve("/media/more/file", CLIENT)) == b"more"
        assert text_of(server.catalog.resolve("/media/lab/empty", CLIENT)) == b""


async def test_a_server_that_is_stopped_while_it_reads(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, {"ftp": {"port": free_port(socket.SOCK_STREAM)}}, lab=iso)
    server = Server(config)
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    reader = server._indexer._process
    assert reader is None  # and with it, soon, who still reads: it finds that nobody wants to know
    async with asyncio.timeout(10):
        while list(tmp_path.rglob("*.new")):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.alone
def test_the_loop_is_free_while_an_image_is_read(tmp_path: Path) -> None:
    """An image of 10 GiB with 20,000 files is read in seconds, and its reading never holds up the loop."""
    tree = tmp_path / "tree"
    for number in range(20_000):
        if number % 1000 == 0:
            (tree / f"{number}").mkdir(parents=True)
        (tree / f"{number // 1000 * 1000}/package-{number}.rpm").touch()
    run(*XORRISO, "-R", "-J", "-o", tmp_path / "x.iso", tree)
    os.truncate(tmp_path / "x.iso", 10 << 30)
    works: list[float] = []

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            works.append(time.thread_time() - before)

    async def main() -> float:
        indexer = Indexer(tmp_path / "media")
        indexer.start()
        disc = Disc("x", tmp_path / "x.iso", indexer)
        watching = asyncio.create_task(watch())
        began = time.monotonic()
        try:
            await disc.prepare(ignore)
            return time.monotonic() - began
        finally:
            watching.cancel()
            indexer.close()

    seconds = uvloop.run(main())
    assert seconds < 5
    # Processor time: what the loop's own work takes, however busy the machine is.
    assert max(works) < 0.005
    size = (tmp_path / "media/x.index").stat().st_size
    assert size < 3_000_000
    assert Index(tmp_path / "media/x.index", identity_of((tmp_path / "x.iso").stat())).files == 20_000


async def test_what_is_not_needed_any_more_is_removed(
    iso: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "state/media"
    kept.mkdir(parents=True)
    for name in ("lab.index.123.new", "old.index", "lab.index"):
        (kept / name).write_bytes(b"old")
    async with serving(tmp_path, monkeypatch, lab=iso) as (server, _):
        assert [path.name for path in kept.iterdir()] == ["lab.index"]
        assert text_of(server.catalog.resolve("/media/lab/empty", CLIENT)) == b""


async def test_links_can_not_hold_up_the_loop(tmp_path: Path, indexer: Indexer) -> None:
    """Links of hundreds of names that lead to one another: the walk ends before the kernel would end it."""
    files: dict[str, bytes | str] = {"d/file": b"x", "fine": "d/../" * 180 + "d/file", "l39": "d/file"}
    files |= {f"l{number}": "d/../" * 180 + f"l{number + 1}" for number in range(39)}
    catalog, _ = await prepared(config_of(tmp_path, links=make_iso(tmp_path / "links.iso", files)), indexer)
    for name in ("fine", "l38", "l39"):
        assert text_of(catalog.resolve(f"/media/links/{name}", CLIENT)) == b"x"
    began = time.thread_time()
    found = catalog.resolve("/media/links/l0", CLIENT)
    assert time.thread_time() - began < 0.02
    assert isinstance(found, Refusal)
    catalog.close()

"""/node/TOKEN/ over the wire: who gets answers, when an arming is used up, how installers report their end."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from fastboot import config
from fastboot.boot.catalog import Catalog
from fastboot.boot.render import Renderer
from fastboot.config import Config, ProfileTable
from fastboot.model import Event, Install, InstallState, Node
from fastboot.services import tftp
from fastboot.services.ftp import FtpService
from fastboot.services.http import HttpService
from fastboot.services.namespace import Namespace
from fastboot.services.node_files import NodeFiles, masked
from fastboot.state.nodes import Installs
from fastboot.state.store import Store
from tests.ftpkit import LOOPBACK

ARMED, INSTALLING, INSTALLED, FAILED = InstallState
FIRST, SECOND = "52:54:00:00:00:01", "52:54:00:00:00:02"
MACS = {"127.0.0.11": FIRST, "127.0.0.12": SECOND, "127.0.0.13": "52:54:00:00:00:99"}
NODES = (Node("n1", (FIRST,), profile="p"), Node("n2", (SECOND,), profile="p"))
ANSWER = "#cloud-config\nhost: {{ node.name }}\ndone: {{ done }}\n" + "filler\n" * 20


@dataclass
class Site:
    """Services of one namespace on the loopback, where machines are told apart by their addresses."""

    installs: Installs
    store: Store
    nodes: NodeFiles
    events: list[Event] = field(default_factory=list)
    http: int = 0
    ftp: int = 0
    tftp: int = 0
    said: list[str] = field(default_factory=list)

    async def arm(self, node: str = "n1") -> str:
        (install,) = await self.installs.arm({node: "p"})
        return install.token

    def state(self, node: str = "n1") -> InstallState:
        install = self.installs.of(node)
        assert install
        return install.state

    async def curl(self, path: str, *options: str, by: str = "127.0.0.11", scheme: str = "http") -> str:
        """Return status (or curl's exit code) and body of one request."""
        port = {"http": self.http, "ftp": self.ftp, "tftp": self.tftp}[scheme]
        url = f"{scheme}://127.0.0.1:{port}/{path}"
        command = ["curl", "-sS", "--max-time", "20", "--interface", by, "-w", "\n%{response_code}", *options, url]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        out, errors = await process.communicate()
        self.said.append(errors.decode())
        body, _, status = out.decode().rpartition("\n")
        return f"{status if scheme == 'http' else process.returncode} {body}"

    def refusals(self) -> list[tuple[str | None, object, object]]:
        return [
            (each.node, each.details["reason"], each.details["path"])
            for each in self.events
            if each.kind == "node.refused"
        ]


@asynccontextmanager
async def site(
    tmp_path: Path, format_: str = "autoinstall", text: str = ANSWER, **more: object
) -> AsyncIterator[Site]:
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "x.j2").write_text(text)
    table = ProfileTable(name="p", kernel="/linux", arguments="{{ installer }}", answers=tmp_path / "x.j2",
                         format=format_)  # type: ignore[arg-type]  # fmt: skip
    settings = Config(interface="lo", state=tmp_path / "state", roots=(tmp_path / "root",), profiles=(table,))
    async with AsyncExitStack() as undo:
        store = undo.enter_context(closing(Store(tmp_path / "state")))
        store.start()
        events: list[Event] = []
        installs = Installs(events.append)
        installs.load(store)
        undo.push_async_callback(installs.settle)
        renderer = Renderer(NODES, [table.profile()], ports={"http": 80, "ftp": 21}, emit=events.append)
        catalog = Catalog(settings, renderer=renderer)
        undo.callback(catalog.close)
        owners = {mac: node for node in NODES for mac in node.macs}
        nodes = NodeFiles(
            installs, lambda: renderer, {node.name: node for node in NODES}.get, owners.get, events.append
        )
        files = Namespace(None, lambda: catalog, nodes=nodes)

        def mac_of(address: IPv4Address) -> str | None:
            return MACS.get(str(address))

        http = HttpService(config.Http(port=0), [LOOPBACK], files, events.append, mac_of=mac_of, reports=nodes)
        ftp = FtpService(config.Ftp(port=0), [LOOPBACK], files, events.append, mac_of=mac_of)
        bound = tftp.open_sockets(config.Tftp(port=0, threads=1))
        blocks = tftp.TftpService(
            config.Tftp(port=0, threads=1), [LOOPBACK], files.resolve, events.append, bound, mac_of
        )
        for service in (http, ftp, blocks):
            await service.start()
            undo.push_async_callback(service.stop)
        ports = http.addresses[0][1], ftp.addresses[0][1], bound[0].listen.getsockname()[1]
        here = Site(installs, store, nodes, events, *ports)
        yield here
        tokens = re.compile("[0-9a-f]{32}")
        told = json.dumps([(each.kind, dict(each.details)) for each in events], default=str)
        told += repr([http.transfers(), ftp.transfers(), blocks.transfers(), installs.of("n1")])
        assert not tokens.search(told), "no token is told"


# --- what installers do


@pytest.mark.parametrize(
    ("format_", "files"),
    [
        ("kickstart", [("ks.cfg", True), ("ks.cfg", True)]),
        ("preseed", [("preseed.cfg", True)]),
        ("autoinstall", [("meta-data", False), ("vendor-data", False), ("user-data", True), ("meta-data", True)]),
        ("autoyast", [("autoinst.xml", True)]),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "ftp", "tftp"])
async def test_an_installer_fetches_its_answers(
    format_: str, files: Sequence[tuple[str, bool]], scheme: str, tmp_path: Path
) -> None:
    files = [
        each for each in files if scheme != "tftp" or each[0] != "vendor-data"
    ]  # curl's TFTP fails on no octets
    async with site(tmp_path, format_) as here:
        token = await here.arm()
        for name, begun in files:
            answer = await here.curl(f"node/{token}/{name}", scheme=scheme)
            assert answer.startswith("200 " if scheme == "http" else "0 "), (answer, here.said)
            assert (here.state() is INSTALLING) == begun
            assert ("host: n1" in answer) == (name not in ("meta-data", "vendor-data"))
        assert Counter(each.kind for each in here.events)["node.installing"] == 1
        paths = [each.details["path"] for each in here.events if each.kind == f"{scheme}.sent"]
        assert [str(path).strip("/") for path in paths] == [f"node/.../{name}" for name, _ in files]
        await here.curl(f"node/{token}/done")
        assert here.state() is INSTALLED
        for name, _ in files:
            answer = await here.curl(f"node/{token}/{name}", scheme=scheme)
            assert answer.startswith(("404 ", "78 ", "9 ", "68 ")), "never again"


@pytest.mark.parametrize(
    "words", ["wget -q -O -", "busybox wget -q -O -", "curl -sSf --ftp-method nocwd", "python3 -c"], ids=str.split
)
async def test_every_client_gets_the_same(words: str, tmp_path: Path) -> None:
    async with site(tmp_path, "kickstart") as here:
        token = await here.arm()
        for scheme, port in (("http", here.http), ("ftp", here.ftp)):
            if "busybox" in words and scheme == "ftp":
                continue  # it knows port 21 only
            url = f"{scheme}://127.0.0.1:{port}/node/{token}/ks.cfg"
            python = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode(), end='')"
            command = [*words.split(), *([python] if "-c" in words else []), url]
            process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
            out, errors = await process.communicate()
            assert out.startswith(b"#cloud-config\nhost: n1\n") and out.endswith(b"filler\n"), errors


async def test_questions_about_it_begin_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, "kickstart") as here:
        token = await here.arm()
        assert "200 " in await here.curl(f"node/{token}/ks.cfg", "-I")
        assert "Content-Length" in await here.curl(f"node/{token}/ks.cfg", "-I", scheme="ftp")
        assert here.state() is ARMED
        head = await here.curl(f"node/{token}/ks.cfg", "-i")
        assert "Cache-Control: no-store\r\n" in head and here.state() is INSTALLING
        (tag,) = re.findall('ETag: (".*?")', head)
        assert (await here.curl(f"node/{token}/ks.cfg", "-H", f"If-None-Match: {tag}")).startswith("304 ")
        options = ("-r", "1-5", "-H", f"If-Range: {tag}")
        assert await here.curl(f"node/{token}/ks.cfg", *options) == "206 cloud"


# --- who gets them


async def test_others_are_told_that_there_is_no_such_file(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        token, other = await here.arm(), await here.arm("n2")
        (tmp_path / "root" / "node").mkdir()
        (tmp_path / "root" / "node" / "mine").write_text("of the administrator")
        nothing = await here.curl("nothing")
        asked = {
            f"node/{token}/user-data": ("127.0.0.12", "n1", "another machine", "/node/.../user-data"),
            f"node/{other}/meta-data": ("127.0.0.13", "n2", "another machine", "/node/.../meta-data"),
            f"node/{token}/done": ("127.0.0.12", "n1", "another machine", "/node/.../done"),
            f"node/{'0' * 32}/user-data": ("127.0.0.11", None, "no such token", "/node/.../user-data"),
            f"node/{token[:-1]}/user-data": ("127.0.0.11", None, "no such token", "/node/.../user-data"),
            f"node/{token}/passwd": ("127.0.0.11", "n1", "no such file", "/node/..."),
            f"//x/../node//./{token}/ks.cfg": ("127.0.0.11", "n1", "no such file", "/node/.../ks.cfg"),
        }
        for path, (by, *_) in asked.items():
            assert await here.curl(path, "--path-as-is", by=by) == nothing
        assert here.refusals() == [tuple(told) for _, *told in asked.values()]
        assert here.nodes.counts == {"another machine": 3, "no such token": 2, "no such file": 2}
        for path in (f"node/{token}", f"node/{token}/"):
            assert await here.curl(path) == nothing, "no listing"
            assert "HTTP" not in await here.curl(path, scheme="ftp")
        assert await here.curl("node/mine") == "200 of the administrator"
        assert "node" in await here.curl("", "-l", scheme="ftp"), "the administrator's own"
        assert (await here.curl(f"node/{token}/user-data", by="127.0.0.14")).startswith("200 "), "not our lease"
        assert (here.state("n1"), here.state("n2")) == (INSTALLING, ARMED)


async def test_a_token_counts_for_its_arming_only(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        first = await here.arm()
        second = await here.arm()
        assert (await here.curl(f"node/{first}/user-data")).startswith("404 ")
        await here.installs.disarm(["n1"])
        assert (await here.curl(f"node/{second}/user-data")).startswith("404 ")
        assert (await here.curl(f"node/{second}/done")).startswith("404 ") and here.installs.of("n1") is None


async def test_what_can_not_be_rendered_begins_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, text="{{ node.variables.oops }}") as here:
        token = await here.arm()
        assert (await here.curl(f"node/{token}/user-data")).startswith("500 ")
        assert here.state() is ARMED
        (told,) = [each.details["text"] for each in here.events if each.kind == "render.failed"]
        assert "x.j2 line 1: 'dict object' has no attribute 'oops'" in str(told)


# --- how it ends


@pytest.mark.parametrize(
    ("path", "options", "state", "text"),
    [
        ("done", (), INSTALLED, ""),
        ("done", ("-X", "POST"), INSTALLED, ""),
        ("done", ("-d", "all went well"), INSTALLED, ""),
        ("failed", (), FAILED, "the installer reported a failure"),
        ("failed?text=no%20disk", (), FAILED, "no disk"),
        ("failed", ("-d", "no disk"), FAILED, "no disk"),
        ("failed", ("--data-urlencode", "text=no disk & no \x1b[31mhope\n"), FAILED, "no disk & no [31mhope"),
        ("failed", ("--data-binary", "@long"), FAILED, "x" * 1024),
        ("failed", ("-H", "Transfer-Encoding: chunked", "-d", "no disk"), FAILED, "no disk"),
        ("failed", ("-H", "Expect: 100-continue", "-d", "no disk"), FAILED, "no disk"),
    ],
)
async def test_an_installer_reports_its_end(
    path: str, options: tuple[str, ...], state: InstallState, text: str, tmp_path: Path
) -> None:
    (tmp_path / "long").write_bytes(b"x" * 50_000)
    options = tuple(each.replace("@long", f"@{tmp_path / 'long'}") for each in options)
    async with site(tmp_path) as here:
        token = await here.arm()
        await here.curl(f"node/{token}/user-data")
        assert await here.curl(f"node/{token}/{path}", *options) == f"200 200 OK: n1 is {state}\n"
        ended = here.installs.of("n1")
        assert ended and (ended.state, ended.text) == (state, text)
        again = await here.curl(f"node/{token}/{path}", *options)
        assert again.startswith("200 "), "who did not hear the answer asks again"
        assert (await here.curl(f"node/{token}/failed")).startswith("200 ") and here.state() is state, (
            "the first counts"
        )
        assert Counter(each.kind for each in here.events)[f"node.{state}"] == 1


async def test_callbacks_are_for_get_and_post_by_http(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        token = await here.arm()
        for method in ("-I", "-XPUT", "-XDELETE"):
            answer = await here.curl(f"node/{token}/done", method, "-i")
            assert answer.startswith("405 ") and "Allow: GET, POST\r\n" in answer
        for scheme in ("ftp", "tftp"):
            assert not (await here.curl(f"node/{token}/done", scheme=scheme)).startswith("0 ")
        assert (await here.curl(f"node/{token}/user-data", "-XPOST")).startswith("405 ")
        assert (await here.curl("node/x/y", "-XPOST")).startswith("405 ")
        assert here.state() is ARMED


# --- the disk


async def test_nothing_leaves_before_it_is_on_disk(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        token = await here.arm()
        held: list[tuple[object, ...]] = []
        real, here.store.keep_installs = here.store.keep_installs, lambda *call: held.append(call)  # type: ignore[method-assign]
        asked = [
            asyncio.create_task(here.curl(f"node/{token}/user-data", scheme=scheme))
            for scheme in ("http", "ftp", "tftp")
        ]
        while not held:
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait(asked, timeout=0.5)
        assert not done and here.state() is ARMED and "http.sent" not in [each.kind for each in here.events]
        here.store.keep_installs = real  # type: ignore[method-assign]
        for call in held:
            real(*call)  # type: ignore[arg-type]
        assert [each.split()[0] for each in await asyncio.gather(*asked)] == ["200", "0", "0"]
        assert here.state() is INSTALLING


async def test_what_can_not_be_written_does_not_leave_and_is_not_confirmed(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        token = await here.arm()
        real, broken = here.store.keep_installs, OSError("the disk is full")
        here.store.keep_installs = lambda serial, rows, done: done(broken)  # type: ignore[method-assign]
        for scheme, refused in (("http", "503 "), ("ftp", "19 ")):
            assert (await here.curl(f"node/{token}/user-data", scheme=scheme)).startswith(refused)
        assert "Retry-After: 5\r\n" in await here.curl(f"node/{token}/user-data", "-i")
        assert here.state() is ARMED
        here.store.keep_installs = real  # type: ignore[method-assign]
        assert (await here.curl(f"node/{token}/user-data")).startswith("200 ")
        here.store.keep_installs = lambda serial, rows, done: done(broken)  # type: ignore[method-assign]
        answer = await here.curl(f"node/{token}/done", "-i", "-XPOST")
        assert answer.startswith("503 ") and "Retry-After: 5\r\n" in answer and here.state() is INSTALLING
        here.store.keep_installs = real  # type: ignore[method-assign]
        assert (await here.curl(f"node/{token}/done")).startswith("200 ") and here.state() is INSTALLED


async def test_a_restart_between_answers_and_end(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        token = await here.arm()
        first = await here.curl(f"node/{token}/user-data")
    async with site(tmp_path) as here:
        assert here.state() is INSTALLING
        assert (await here.curl(f"node/{token}/user-data")).split()[2:4] == first.split()[2:4]
        assert (await here.curl(f"node/{token}/done")).startswith("200 ")
    async with site(tmp_path) as here:
        assert here.state() is INSTALLED and (await here.curl(f"node/{token}/user-data")).startswith("404 ")


# --- what people read


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/node/TOKEN/ks.cfg", "/node/.../ks.cfg"),
        ("node//TOKEN\\ks.cfg\udcff", "/node/.../ks.cfg"),
        ("/a/../node/./TOKEN/", "/node/..."),
        ("/node/TOKEN", "/node/..."),
        ("/node/x/../TOKEN/TOKEN", "/node/..."),
        ("/node/TOKEN/\x07", "/node/..."),
        ("/../node/TOKEN/x", "/../node/..."),
        ("/media/node/x/y", "/media/node/x/y"),
        ("/nodes/x", "/nodes/x"),
        (f"/Node/{'0af1' * 8}/ks.cfg", "/Node/.../ks.cfg"),
        (f"xnodex//{'0af1' * 8}/y", "xnodex//.../y"),
        (f"/media/m/node/{'0af1' * 8}", "/media/m/node/..."),
        (f"/pool/by-hash/MD5Sum/{'0af1' * 8}", f"/pool/by-hash/MD5Sum/{'0af1' * 8}"),
        ("/node", "/node"),
    ],
)
def test_a_token_is_in_no_path_that_is_told(path: str, told: str) -> None:
    assert masked(path) == told


def test_an_install_does_not_show_its_token() -> None:
    assert "secret" not in repr(Install("n1", "p", ARMED, "secret", 0))

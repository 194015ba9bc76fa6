"""Real clients from Debian against the FTP service, each in the way installers use it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastboot import config
from fastboot.boot.catalog import Catalog
from fastboot.boot.indexer import Indexer
from fastboot.boot.shelf import Shelf
from tests import isokit
from tests.ftpkit import Running, serving


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed: apt-get install {program}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def run(*command: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [need(command[0]), *command[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media tree: directories four deep, 60 files from 0 octets to 3 MB, a name of every awkward kind."""
    root, seeded = tmp_path_factory.mktemp("media"), random.Random(2)
    for number in range(60):
        path = root / "pool" / f"d{number % 5}" / "x" / f"f{number}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seeded.randbytes(seeded.choice([0, 1, 1460, 65536, 262_144, 300_001])))
    (root / "vmlinuz").write_bytes(seeded.randbytes(3_000_000))
    (root / "pool" / "libstdc++ 6~rc[1]%20 größe.deb").write_bytes(b"awkward")
    return root


def catalog_of(tree: Path, work: Path | None = None) -> Catalog:
    """Return a namespace with a tree as the medium "deb"; where `work` is given, an image of the tree."""
    medium: dict[str, object] = {"name": "deb", "path": tree}
    if work:
        isokit.run(*isokit.XORRISO, "-R", "-J", "-joliet-long", "-o", work / "x.iso", tree)
        medium = {"name": "deb", "iso": work / "x.iso"}
    settings = config.Config.model_validate({"interface": "lo", "state": work or "/nowhere", "media": [medium]})
    indexer = Indexer(settings.state / "media")
    shelf = Shelf(settings, indexer)
    asyncio.run(shelf.prepare(lambda kind, **details: None))
    indexer.close()
    return Catalog(settings, shelf=shelf)


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[Running]:
    catalog = catalog_of(tree)
    try:
        with serving(catalog) as running:
            yield running
    finally:
        catalog.close()


@pytest.fixture
def url(server: Running) -> str:
    return f"ftp://{server.host}:{server.port}/media/deb"


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", [(), ("--disable-epsv",), ("-P", "-"), ("-P", "-", "--disable-eprt")], ids=str)
def test_curl(url: str, tree: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    run("curl", "-sS", *mode, "-o", "k", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "k").read_bytes() == (tree / "vmlinuz").read_bytes()


@pytest.mark.parametrize("method", ["multicwd", "singlecwd", "nocwd"])
def test_curl_ways_to_a_directory(url: str, tree: Path, tmp_path: Path, method: str) -> None:
    run("curl", "-sS", "--ftp-method", method, "-o", "f", f"{url}/pool/d1/x/f1.deb", cwd=tmp_path)
    assert (tmp_path / "f").read_bytes() == (tree / "pool/d1/x/f1.deb").read_bytes()


def test_curl_resumes_and_takes_ranges(url: str, tree: Path, tmp_path: Path) -> None:
    kernel = (tree / "vmlinuz").read_bytes()
    (tmp_path / "k").write_bytes(kernel[:1_234_567])
    run("curl", "-sS", "-C", "-", "-o", "k", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "k").read_bytes() == kernel
    run("curl", "-sS", "-r", "1000000-1999999", "-o", "r", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "r").read_bytes() == kernel[1_000_000:2_000_000]


def test_curl_asks_for_size_and_time(url: str, tmp_path: Path) -> None:
    text = run("curl", "-sSI", f"{url}/vmlinuz", cwd=tmp_path)
    assert "Content-Length: 3000000" in text and "Last-Modified:" in text and "Accept-ranges: bytes" in text


def test_curl_errors(url: str, tmp_path: Path) -> None:
    run("curl", "-sS", f"{url}/nope", cwd=tmp_path, code=78)
    run("curl", "-sS", f"{url}/nope/nope", cwd=tmp_path, code=9)
    (tmp_path / "up").write_bytes(b"x")
    run("curl", "-sS", "-T", "up", f"{url}/up", cwd=tmp_path, code=25)


def test_curl_many_files_in_one_session(url: str, tree: Path, tmp_path: Path) -> None:
    run("curl", "-sS", "--remote-name-all", f"{url}/pool/d0/x/f[0-55:5].deb", cwd=tmp_path)
    assert len(content(tmp_path)) == 12
    for name, data in content(tmp_path).items():
        assert data == (tree / "pool/d0/x" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "set ftp:passive-mode off;",
        "set ftp:use-mlsd yes;",
        "set ftp:sync-mode off;",
        "set ftp:passive-mode off; set ftp:sync-mode off;",
    ],
    ids=str,
)
def test_lftp_mirrors_with_parallel_connections(
    server: Running, url: str, tree: Path, tmp_path: Path, options: str
) -> None:
    script = f"set net:max-retries 1; {options} mirror --parallel=8 --use-pget-n=2 /media/deb got"
    run("lftp", "-e", f"{script}; quit", url, cwd=tmp_path)
    assert content(tmp_path / "got") == content(tree)


def test_lftp_mirrors_an_image(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    catalog = catalog_of(tree, tmp_path / "image")
    with serving(catalog) as server:
        script = "set net:max-retries 1; mirror --parallel=16 --use-pget-n=2 /media/deb got; quit"
        run("lftp", "-e", script, f"ftp://{server.host}:{server.port}", cwd=tmp_path)
    catalog.close()
    assert content(tmp_path / "got") == content(tree)


def test_lftp_fetches_one_file_in_parts(url: str, tree: Path, tmp_path: Path) -> None:
    run("lftp", "-e", "set net:max-retries 1; pget -n 4 vmlinuz; quit", url, cwd=tmp_path)
    assert (tmp_path / "vmlinuz").read_bytes() == (tree / "vmlinuz").read_bytes()


@pytest.mark.parametrize("mode", [(), ("--no-passive-ftp",)], ids=["passive", "active"])
def test_wget(url: str, tree: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    run("wget", "-q", "-r", "-nH", "--cut-dirs=2", *mode, f"{url}/pool/d2/", cwd=tmp_path)
    assert content(tmp_path / "pool/d2") == content(tree / "pool/d2")


def test_wget_resumes(url: str, tree: Path, tmp_path: Path) -> None:
    kernel = (tree / "vmlinuz").read_bytes()
    (tmp_path / "vmlinuz").write_bytes(kernel[:2_000_001])
    run("wget", "-q", "-c", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "vmlinuz").read_bytes() == kernel


def test_busybox(server: Running, url: str, tree: Path, tmp_path: Path) -> None:
    kernel = (tree / "vmlinuz").read_bytes()
    run("busybox", "wget", "-q", "-O", "w", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "w").read_bytes() == kernel
    run("busybox", "ftpget", "-P", str(server.port), server.host, "g", "/media/deb/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "g").read_bytes() == kernel
    (tmp_path / "g").write_bytes(kernel[:1_000_001])
    run("busybox", "ftpget", "-c", "-P", str(server.port), server.host, "g", "/media/deb/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "g").read_bytes() == kernel
    run("busybox", "wget", "-q", "-O", "n", f"{url}/nope", cwd=tmp_path, code=1)


def test_nothing_was_left_behind(server: Running) -> None:
    server.until(lambda: not server.service.counters()["sessions_open"])
    assert server.counters()["transfers_open"] == 0
    assert server.of("ftp.refused") == []

"""Real clients from Debian against the HTTP service, each in the way installers use it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from isokit import put

from tests.ftpkit import Memory
from tests.httpkit import serving
from tests.test_ftp_clients import catalog_of, run, tree  # noqa: F401 - a fixture


@pytest.fixture(scope="module", params=["directory", "image"])
def url(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    catalog = catalog_of(tree, tmp_path_factory.mktemp("image") if request.param == "image" else None)
    with serving(catalog) as running:
        yield f"http://{running.host}:{running.port}/media/deb"
        assert not running.of("http.failed")
        assert {each["path"] for each in running.of("http.missing")} <= {"/robots.txt"}
    catalog.close()


def test_curl_as_dracut_calls_it(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    """url-lib.sh: --location --retry 3 --retry-connrefused --fail."""
    run("curl", "-sS", "--location", "--retry", "3", "--fail", "-o", "k", f"{url}//vmlinuz", cwd=tmp_path)
    assert (tmp_path / "k").read_bytes() == (tree / "vmlinuz").read_bytes()


def test_curl_resumes_and_takes_ranges(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = (tree / "vmlinuz").read_bytes()
    (tmp_path / "k").write_bytes(whole[:1_000_000])
    run("curl", "-sS", "--fail", "-C", "-", "-o", "k", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "k").read_bytes() == whole
    run("curl", "-sS", "--fail", "-r", "5-9", "-o", "r", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "r").read_bytes() == whole[5:10]


def test_curl_fetches_only_what_is_newer(url: str, tmp_path: Path) -> None:
    run("curl", "-sSR", "--fail", "-o", "k", f"{url}/vmlinuz", cwd=tmp_path)
    code = run("curl", "-sS", "-z", "k", "-w", "%{http_code}", "-o", "n", f"{url}/vmlinuz", cwd=tmp_path)
    assert code == "304"


def test_wget_mirrors_a_tree(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    run("wget", "-nv", "-r", "-np", "-nH", "--cut-dirs=2", f"{url}/pool/", cwd=tmp_path)
    for path in tree.glob("pool/*/x/*.deb"):  # of %2520 in a link wget makes a blank
        assert (tmp_path / path.relative_to(tree)).read_bytes() == path.read_bytes()


def test_wget_resumes(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = (tree / "vmlinuz").read_bytes()
    (tmp_path / "vmlinuz").write_bytes(whole[:2_000_000])
    run("wget", "-q", "-c", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "vmlinuz").read_bytes() == whole


def test_busybox(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    run("busybox", "wget", "-q", "-O", "k", f"{url}/vmlinuz", cwd=tmp_path)
    assert (tmp_path / "k").read_bytes() == (tree / "vmlinuz").read_bytes()


def test_lftp_mirrors_with_parallel_connections(url: str, tree: Path, tmp_path: Path) -> None:  # noqa: F811
    run("lftp", "-c", f"set net:max-retries 1; open {url}/; mirror --parallel=8 pool got", cwd=tmp_path)
    for path in (tree / "pool").rglob("*.deb"):
        assert (tmp_path / "got" / path.relative_to(tree / "pool")).read_bytes() == path.read_bytes()


def test_aria2_with_sixteen_ranges(tmp_path: Path) -> None:
    """Straight from an image."""
    body = random.Random(7).randbytes(33_000_001)
    (tmp_path / "work").mkdir()
    catalog = catalog_of(put(tmp_path / "tree", {"images/f": body}), tmp_path / "work")
    with serving(catalog) as running:
        url = f"http://{running.host}:{running.port}/media/deb/images/f"
        run("aria2c", "-q", "-x16", "-s16", "-k", "1M", "-o", "k", url, cwd=tmp_path)
        assert (tmp_path / "k").read_bytes() == body
        assert running.counters()["status_206"] >= 15
        assert running.counters()["connections"] >= 15
    catalog.close()


def test_zchunk_fetches_what_is_new_in_many_ranges(tmp_path: Path) -> None:
    """As librepo does of Fedora's repositories: what changed in a file, by requests of up to 255 ranges."""
    dice = random.Random(8)
    old = b"".join(b"<package>" + dice.randbytes(3000).hex().encode() for _ in range(800))
    new = bytearray(old)
    for at in dice.sample(range(len(new)), 200):
        new[at] ^= 1
    for name, content in (("old", old), ("new", bytes(new))):
        (tmp_path / name).write_bytes(content)
        run("zck", "-s", "<package>", "-o", f"{name}.zck", name, cwd=tmp_path)
    whole = (tmp_path / "new.zck").read_bytes()
    (tmp_path / "got").mkdir()
    with serving(Memory({"/new.zck": whole})) as running:
        url = f"http://{running.host}:{running.port}/new.zck"
        run("zckdl", "--fail-no-ranges", "-s", str(tmp_path / "old.zck"), url, cwd=tmp_path / "got")
        sent = [event["bytes"] for event in running.of("http.sent")]
        assert running.counters()["status_206"] == len(sent)
    assert (tmp_path / "got/new.zck").read_bytes() == whole
    assert sum(sent) < len(whole) / 2
    assert len(sent) < 20  # for some 180 chunks that changed

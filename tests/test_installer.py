"""What simulated installers fetch: repositories are read packages come and are told."""

from __future__ import annotations

import bz2
import gzip
import lzma
import socket
import subprocess
import threading
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from dhcpkit import need
from test_rehearse import rehearse, site

from fastboot.lab._machines import Machines
from fastboot.lab.rehearsal import repository
from fastboot.lab.rehearsal.fetching import Fetcher
from fastboot.lab.rehearsal.machine import Machine, Place, Stopped
from fastboot.lab.rehearsal.repository import Contents, File, Unreadable

RPM = """<package type="rpm"><name>n</name><arch>{arch}</arch><version epoch="0" ver="1"/>
<size package="{size}" installed="9" archive="9"/><location xml:base="x" href="{name}"/></package>"""
PRIMARY = (
    '<?xml version="1.0"?><metadata packages="3">'
    + RPM.format(arch="x86_64", size=1000, name="Packages/a+1&amp;2.rpm")
    + RPM.format(arch="src", size=2000, name="Packages/a.src.rpm")
    + RPM.format(arch="noarch", size=3000, name="Packages/b.rpm")
    + RPM.format(arch="noarch", size=4000, name="Packages/evil&#10;DELE.rpm")
    + "</metadata>"
).encode()
RPMS = File("Packages/a+1&2.rpm", 1000), File("Packages/b.rpm", 3000)


def zstd(octets: bytes) -> bytes:
    need("zstd")
    return subprocess.run(["zstd", "-qc"], input=octets, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("form", "pack"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", zstd), ("", bytes)],
)
def test_an_index_is_read_however_it_is_packed(form: str, pack: Any) -> None:
    packed = pack(PRIMARY)
    index = File(f"repodata/primary.xml{form}", len(packed))
    assert repository.packages(index, packed) == RPMS
    if form:
        with pytest.raises(Unreadable, match="repodata/primary"):
            repository.packages(index, b"nonsense" + packed)


def test_what_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_LARGEST", 1000)
    for form, pack in (("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstd)):
        with pytest.raises(Unreadable, match="larger than any"):
            repository.unpack(f"x.{form}", pack(bytes(5000)))


def test_the_real_tool_is_read(tmp_path: Path) -> None:
    need("createrepo_c")
    subprocess.run(["createrepo_c", "-q", str(tmp_path)], check=True)
    contents = repository.repomd((tmp_path / "repodata/repomd.xml").read_bytes())
    assert contents.index.name.startswith("repodata/") and "primary.xml" in contents.index.name
    assert {file.name for file in contents.files} == {
        f"repodata/{path.name}" for path in (tmp_path / "repodata").iterdir() if path.name.count("-") == 1
        and ("primary.xml" in path.name or "filelists.xml" in path.name)
    }  # fmt: skip
    for file in contents.files:
        assert file.size == (tmp_path / file.name).stat().st_size
    assert repository.packages(contents.index, (tmp_path / contents.index.name).read_bytes()) == ()


def test_debian_is_read() -> None:
    release = b"""Suite: stable
SHA256:
 00  111 main/binary-all/Packages.gz
 00  222 main/binary-amd64/Packages
 00  333 main/binary-amd64/Packages.gz
 00  444 main/binary-amd64/Packages.xz
 00  555 main/binary-arm64/Packages.xz
 00  666 main/debian-installer/binary-amd64/Packages.gz
 00  777 contrib/binary-amd64/Packages.xz
"""
    index = File("dists/bookworm/main/binary-amd64/Packages.xz", 444)
    udebs = File("dists/bookworm/main/debian-installer/binary-amd64/Packages.gz", 666)
    assert repository.release(release, "bookworm") == Contents((udebs, index), index)
    text = b"Package: a\nFilename: pool/a.deb\nSize: 10\n\nPackage: b\nSize: 20\nFilename: pool/b.deb\n"
    assert repository.packages(index, lzma.compress(text)) == (File("pool/a.deb", 10), File("pool/b.deb", 20))
    with pytest.raises(Unreadable, match="no Packages"):
        repository.release(b"Suite: stable\n", "bookworm")
    with pytest.raises(Unreadable, match=r"no primary\.xml"):
        repository.repomd(b"<repomd/>")


def test_some_are_the_same_each_time_and_no_more_than_asked_for() -> None:
    packages = [File(f"{number}.rpm", 1 + number * 10) for number in range(100)]
    some = repository.some(packages, 10_000)
    assert some == repository.some(packages[::-1], 10_000)
    assert 9_900 < sum(file.size for file in some) <= 10_000
    assert set(repository.some(packages, 10**9)) == set(packages)


# ---- the connection


def serve(answers: list[bytes], most: int) -> tuple[int, list[int]]:
    """Answer HTTP requests in turn, `most` by each connection; returns the port, and the requests of each."""
    listener = socket.create_server(("127.0.0.1", 0))
    served: list[int] = []

    def run() -> None:
        left = iter(answers)
        with listener:
            while True:
                connection, _ = listener.accept()
                served.append(0)
                with connection:
                    while served[-1] < most and connection.recv(4096):
                        answer = next(left, None)
                        if answer is None:
                            return
                        served[-1] += 1
                        connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    return listener.getsockname()[1], served


def fetch_all(port: int, count: int) -> Machine:
    machines = Machines(1)
    machines.place(0, int(IPv4Address("127.0.0.2")))
    m = Machine(0, "new-001", "bios", bytes(6), 0)
    places = [Place("http", IPv4Address("127.0.0.1"), port, f"/{number}") for number in range(count)]
    way = Fetcher(machines).fetch_all(m, "packages", places, "libdnf")
    next(way)
    while True:
        for outcome in machines.turn():
            try:
                way.send(outcome)
            except StopIteration:
                return m


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_one_connection_is_kept_and_one_that_was_closed_is_made_anew() -> None:
    port, served = serve([GOOD] * 6, most=100)
    m = fetch_all(port, 6)
    assert (served, m.steps[-1].what, m.steps[-1].octets) == ([6], "6 files", 30)
    port, served = serve([GOOD] * 6, most=4)
    m = fetch_all(port, 6)
    assert (served, m.steps[-1].octets) == ([4, 2], 30)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n", "/1 by HTTP from 127.0.0.1: status 404"),
        (GOOD[:-2], "/1 by HTTP from 127.0.0.1: the connection ended after 3 octets of 5"),
    ],
)
def test_a_package_that_does_not_come_is_named(answer: bytes, told: str) -> None:
    port, _ = serve([GOOD, answer], most=2)
    with pytest.raises(Stopped, match=told) as caught:
        fetch_all(port, 3)
    assert caught.value.stage == "packages"


# ---- the whole way


def medium(directory: Path, form: str = "gz") -> None:
    for name, packages in (("BaseOS", 20), ("AppStream", 30)):
        folder = directory / name
        (folder / "Packages").mkdir(parents=True)
        (folder / "repodata").mkdir()
        texts = []
        for number in range(packages):
            (folder / f"Packages/{name}+{number}.rpm").write_bytes(bytes(10_000))
            texts.append(RPM.format(arch="noarch", size=10_000, name=f"Packages/{name}+{number}.rpm"))
        index = folder / f"repodata/primary.xml.{form}"
        index.write_bytes(gzip.compress(f"<metadata>{''.join(texts)}</metadata>".encode()))
        (folder / "repodata/repomd.xml").write_text(
            f'<repomd><data type="primary"><location href="repodata/{index.name}"/>'
            f"<size>{index.stat().st_size}</size></data></repomd>"
        )
    with (directory / ".treeinfo").open("a") as info:
        info.write("[variant-BaseOS]\nrepository = BaseOS\n[variant-AppStream]\nrepository = AppStream\n")


@pytest.mark.parametrize("arguments", ["inst.repo={{ media }}", "inst.ks=http://10.77.0.1/lab/ks.cfg"])
def test_every_machine_fetches_packages(tmp_path: Path, arguments: str) -> None:
    file = site(tmp_path)
    file.write_text(file.read_text().replace("inst.repo={{ media }}", arguments))
    (tmp_path / "root/lab/ks.cfg").write_text('text\nurl --url="http://10.77.0.1/media/rocky/BaseOS"\nreboot\n')
    medium(tmp_path / "media")
    code, facts = rehearse(file, "--nodes", "6", "--kinds", "ipxe=1", "--spread", "0", "--packages", "155k")
    assert (code, facts["booted"]) == (0, 6)
    assert facts["stages"]["packages"]["machines"] == 6
    assert [step["octets"] for step in facts["slowest"]["steps"] if step["what"] == "15 files"] == [150_000]
    of, scheme = ("15 of 50", "FTP") if "media" in arguments else ("15 of 20", "HTTP")
    assert facts["packages"][0].startswith(
        f"{of}, 0.1 MB for each machine, taken at random from /media/rocky/BaseOS/"
    )
    assert f"by {scheme} from" in facts["packages"][0]


def test_debian_machines_fetch_packages(tmp_path: Path) -> None:
    file, media = site(tmp_path), tmp_path / "media"
    words = "mirror/protocol=http"
    words += " mirror/suite=stable mirror/http/hostname=10.77.0.1 mirror/http/directory=/media/rocky"
    file.write_text(file.read_text().replace("inst.repo={{ media }}", words))
    folder = media / "dists/stable/main/binary-amd64"
    folder.mkdir(parents=True)
    (folder / "Packages").write_text("Package: a\nFilename: a+b.deb\nSize: 50000\n")
    (media / "a+b.deb").write_bytes(bytes(50_000))
    size = (folder / "Packages").stat().st_size
    (media / "dists/stable/Release").write_text(f"SHA256:\n 00 {size} main/binary-amd64/Packages\n")
    code, facts = rehearse(file, "--nodes", "2", "--kinds", "bios=1", "--spread", "0", "--packages", "1M")
    assert (code, facts["booted"]) == (0, 2)
    assert facts["packages"] == [
        "1 of 1, 0.1 MB for each machine, taken at random from /media/rocky/ by HTTP from 10.77.0.1"
    ]


def test_what_can_not_be_read_is_told_and_what_is_not_played(tmp_path: Path) -> None:
    file = site(tmp_path)
    words = "--nodes", "2", "--kinds", "ipxe=1", "--spread", "0"
    code, facts = rehearse(file, *words)
    assert code == 0 and facts["packages"][0].startswith("none: --packages SIZE")
    code, facts = rehearse(file, *words, "--packages", "1M")
    assert (code, facts["packages"]) == (
        0, ["none from /media/rocky/ by FTP from 10.77.0.1: there is no repodata/repomd.xml"],
    )  # fmt: skip
    medium(tmp_path / "media", form="xz")
    code, facts = rehearse(file, *words, "--packages", "1M")
    assert code == 0 and "primary.xml.xz: Input format not supported" in facts["packages"][0]


def test_an_installer_that_gets_no_second_stage_has_not_booted(tmp_path: Path) -> None:
    file = site(tmp_path)
    (tmp_path / "media/images/install.img").unlink()
    code, facts = rehearse(file, "--nodes", "2", "--kinds", "ipxe=1", "--spread", "0")
    assert (code, facts["booted"]) == (1, 0)
    assert {machine["stopped"] for machine in facts["failed"]} == {"media"}

"""`serve --root` and `serve --iso`: a lab from a few words, on a wire of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import psutil
import pytest
from dhcpkit import DISCOVER, Namespace, Wire, message, need, wires
from dhcpsite import Station
from isokit import XORRISO, put, run
from labkit import command_line
from lankit import Listener, dnsmasq, lan
from test_cli import is_mapped
from test_recognise import rhel

from fastboot import quick
from fastboot.model import ConfigError
from fastboot.quick import quick_config

FASTBOOT = (sys.executable, "-m", "fastboot")


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: that is closed to every other user, and servers here drop to one.
    with tempfile.TemporaryDirectory(prefix="fbt-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def wire() -> Iterator[Wire]:
    need("ip")
    with wires(("10.77.0.1/24",)) as wire:
        wire.clients[0].ip("address", "add", "10.77.0.9/24", "dev", "c0")
        yield wire


@contextmanager
def serving(space: Namespace, *words: str) -> Iterator[list[str]]:
    """Run a server in a namespace; give what it said before its log began."""
    command = space.command(*FASTBOOT, "serve", *words)
    if os.geteuid() == 0 and not is_mapped(pwd.getpwnam("nobody").pw_uid):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "for nobody: Invalid argument" in done.stderr
        pytest.xfail("a namespace without other users: it can not become nobody, and says so")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            if not line.startswith("{"):
                said.append(line.removeprefix("fastboot: ").rstrip())
            elif json.loads(line)["component"] == "server" and json.loads(line)["event"] == "ready":
                break
        try:
            yield said
        finally:
            process.terminate()
            process.stderr.read()
            process.wait(20)
    assert process.returncode == 0


def fetch(wire: Wire, url: str) -> bytes:
    command = wire.clients[0].command("curl", "-sSf", "--max-time", "20", url)
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


def test_serve_root(wire: Wire, place: Path) -> None:
    put(place / "root", {"file": b"from the root"})
    with serving(wire.server, "--root", str(place / "root"), "--state", str(place / "state")) as said:
        for scheme in ("tftp", "ftp", "http"):
            assert fetch(wire, f"{scheme}://10.77.0.1/file") == b"from the root"
    user = ", as user nobody" if os.geteuid() == 0 else ""
    assert said == [
        "TFTP, FTP and HTTP on 10.77.0.1 on s0",
        f"/ is {place}/root",
        "no DHCP: that takes --pool FIRST-LAST",
        f"state in {place}/state{user}",
    ]


async def test_serve_iso(wire: Wire, place: Path) -> None:
    """Every machine gets an address and a menu whose default is its disk; a person may choose the installer."""
    run(*XORRISO, "-R", "-o", place / "Rocky 9.iso", put(place / "tree", rhel("Rocky Linux", "9.4")))
    words = ("--iso", str(place / "Rocky 9.iso"), "--interface", "s0", "--pool", "10.77.0.100-10.77.0.150")
    with (
        serving(wire.server, *words, "--state", str(place / "state")) as said,
        closing(Station(wire.clients[0])) as station,
    ):
        station.send(message(DISCOVER, station.mac.hex(":"), options=((60, b"PXEClient:Arch:00000:UNDI:002001"),)))
        offer = await station.hear()
        assert IPv4Address(offer.message.yiaddr) in IPv4Network("10.77.0.96/27")
        menu = (await asyncio.to_thread(fetch, wire, "tftp://10.77.0.1/pxelinux.cfg/default")).decode()
        kernel = await asyncio.to_thread(fetch, wire, "http://10.77.0.1/media/Rocky-9/images/pxeboot/vmlinuz")
        whole = await asyncio.to_thread(fetch, wire, "http://10.77.0.1/media/Rocky-9.iso")
    assert "DEFAULT local\nPROMPT 1\nTIMEOUT 100\n" in menu
    assert "LABEL Rocky-9\n  LINUX ::/media/Rocky-9/images/pxeboot/vmlinuz\n" in menu
    assert "  APPEND inst.repo=ftp://10.77.0.1/media/Rocky-9 ip=dhcp\n" in menu
    assert kernel == b"k"
    assert whole == (place / "Rocky 9.iso").read_bytes()
    assert said[1:4] == [
        f"/media/Rocky-9 is what is in {place}/Rocky 9.iso",
        "machines get a menu: their local disk after 10 s, or Rocky-9 where somebody chooses it",
        "DHCP gives 10.77.0.100-10.77.0.150",
    ]


def test_serve_iso_of_ten_gigabytes(wire: Wire, place: Path) -> None:
    """20,000 files are served seconds after the command, a bar shows how far it is, only the index takes disk."""
    need("curl", "script")
    tree = put(place / "tree", rhel("Rocky Linux", "9.4"))
    for number in range(20_000):
        path = tree / f"Packages/{number // 1000:02}/package-{number}.rpm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    iso = place / "x.iso"
    run(*XORRISO, "-R", "-J", "-joliet-long", "-o", iso, tree)
    move_to(iso, b"package-19999.rpm", 10_600_000_000 // 2048)
    assert iso.stat().st_size > 10_500_000_000
    words = ("--iso", iso, "--interface", "s0", "--pool", "10.77.0.100-10.77.0.150", "--state", place / "state")
    command = " ".join(map(str, (*FASTBOOT, "serve", *words)))
    log = place / "log"
    began = time.monotonic()
    with subprocess.Popen(
        wire.server.command("script", "-qefc", command, str(log)), stdout=subprocess.DEVNULL
    ) as process:
        try:
            while not re.search(
                "ready.*version", shown := log.read_text(errors="replace") if log.exists() else ""
            ):
                assert process.poll() is None, shown
                assert time.monotonic() < began + 60
                time.sleep(0.05)
            took = time.monotonic() - began
            for number in (0, 9_999, 19_999):
                for scheme in ("ftp", "http", "tftp"):
                    got = fetch(
                        wire, f"{scheme}://10.77.0.1/media/x/Packages/{number // 1000:02}/package-{number}.rpm"
                    )
                    assert got == b"%d" % number
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
    assert "reading x" in shown
    assert re.search(r"\d+ files", shown)
    assert sum(path.stat().st_blocks * 512 for path in (place / "state").rglob("*")) < 8 << 20
    assert took < 20, shown  # of which DHCP looks for other servers for four seconds


def move_to(iso: Path, name: bytes, sector: int) -> None:
    """Move a file in an image: its data, and what its directory record says of them (ECMA-119 section 9.1)."""
    data = bytearray(iso.read_bytes())
    at = data.index(b"NM" + bytes((5 + len(name), 1, 0)) + name)
    record = at - at % 2048
    while record + data[record] <= at:
        record += data[record]
    start, size = struct.unpack_from("<I4xI", data, record + 2)
    with iso.open("r+b") as file:
        file.seek(record + 2)
        file.write(struct.pack("<I", sector))
        file.seek(sector * 2048)
        file.write(data[start * 2048 : start * 2048 + size])


def test_serve_iso_beside_another_dhcp_server(place: Path, tmp_path: Path) -> None:
    """Where another server gives the addresses, it only says what to boot; where none does, it needs a pool."""
    need("ip", "dnsmasq")
    run(*XORRISO, "-R", "-o", place / "x.iso", put(place / "tree", rhel("Rocky Linux", "9.4")))
    words = ("--iso", str(place / "x.iso"), "--interface", "e0", "--state", str(place / "state"))
    with lan() as wires:
        other, ours, bare = wires.host("10.77.0.1/24"), wires.host("10.77.0.2/24"), wires.host()
        command = ours.space.command(*FASTBOOT, "serve", *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "no other DHCP server answers here, so --pool FIRST-LAST is needed" in done.stderr
        with dnsmasq(other, tmp_path), serving(ours.space, *words) as said, closing(Listener(bare)) as card:
            assert said[3].startswith("10.77.0.1 (")
            assert said[3].endswith("gives the addresses, fastboot says what to boot (a proxy)")
            bios = ((60, b"PXEClient:Arch:00000:UNDI:002001"), (93, b"\0\0"), (94, b"\1\2\1"), (97, bytes(17)))
            card.broadcast(message(DISCOVER, bare.mac, flags=0x8000, options=bios))
            assert set(card.replies()) == {"10.77.0.1", "10.77.0.2"}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--root", "/nonexist"), "--root: /nonexist: No such file or directory; name a directory"),
        (("--root", __file__), "test_quick.py is no directory; name one"),
        (("--iso", "/nonexist"), "--iso: /nonexist: No such file or directory; name a file"),
        (("--iso", "/nonexist", "--interface", "lo"), "--iso: /nonexist: No such file or directory"),
        (("--iso", "/", "--interface", "lo"), "--iso: / is no file; name one"),
        (("--iso", __file__), "--iso: needs --interface NAME, the network of the machines"),
        (("--iso", "x.iso", "-c", "y"), "--config: is not for --root and --iso"),
        (("--root", ".", "--interface", "nosuch0"), "interface: there is no 'nosuch0' here"),
        (
            ("--root", ".", "--interface", "lo", "--pool", "10.77.0.1-10.77.0.9"),
            "is in no network of these interfaces",
        ),
        (
            ("--root", ".", "--interface", "lo", "--pool", "nonsense"),
            "--pool: 'nonsense' is no range; write 10.77.",
        ),
        (("--root", ".", "--interface", "lo", "--pool", "127.0.0.1-127.0.0.9"), "127.0.0.0/8 is the loopback"),
        (("--pool", "10.77.0.1-10.77.0.9"), "--install and --answers: are for --root and --iso"),
    ],
)
def test_what_is_wrong_is_one_clear_line(words: tuple[str, ...], fault: str) -> None:
    done = command_line("serve", *words)
    assert done.returncode == 2
    assert fault in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_root_with_the_state_in_it_is_refused(tmp_path: Path) -> None:
    """As a home directory has it, by default."""
    words = ("serve", "--root", tmp_path, "--interface", "lo", "--state", tmp_path / "x/state")
    done = subprocess.run([*FASTBOOT, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "roots[0]: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_names_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, name in (
        ("Rocky 9 (1).iso", "Rocky-9-1"),
        ("...iso", "iso"),
        ("\u4f60.iso", "iso"),
        ("x" * 99, "x" * 63),
    ):
        (tmp_path / file).touch()
        config, _ = quick_config(iso=tmp_path / file, interfaces=["lo"], look=lambda links: ["another"])
        assert config.dhcp and config.dhcp.mode == "proxy"
        assert config.media[0].name == name
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config, chosen = quick_config(roots=[tmp_path], interfaces=["lo"])
    assert config.state == tmp_path / "fastboot"
    assert config.user is None
    assert chosen[-1] == f"state in {tmp_path}/fastboot"


def test_no_interface_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick.psutil, "net_if_stats", dict)
    with pytest.raises(ConfigError, match="no interface is up and has an IPv4 address"):
        quick_config(roots=[Path()])

"""Real TFTP clients from Debian against the service."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dhcpkit import need as need_network
from dhcpkit import wires
from tftpkit import Address, Files, Relay, Running, serving

BIG = random.Random(3).randbytes(3_000_017)
SIZES = (0, 1, 511, 512, 513, 1428, 1468, 2 * 1468, 8 * 1428, 65464, 70_000)
PACKAGES = {"tftp": "tftp-hpa", "busybox": "busybox-static"}


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed: apt-get install {PACKAGES.get(program, program)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    files = {f"size-{size}": BIG[:size] for size in SIZES} | {
        "big": BIG,
        "text": b"one\ntwo\nthree\n",
        "wrapping": BIG[: 66_000 * 8 + 1],
    }
    with serving(Files(files), max_blksize=65464) as running:
        yield running


def run(*command: str, cwd: Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, need(command[0]), *command[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def curl(to: Address, name: str, *more: str) -> list[str]:
    return ["curl", "-sS", "-m", "30", "-o", "got", *more, f"tftp://{to[0]}:{to[1]}/{name}"]


def atftp(to: Address, name: str, *options: str) -> list[str]:
    asked = [word for option in options for word in ("--option", option)]
    return ["atftp", *asked, "-g", "-r", name, "-l", "got", to[0], str(to[1])]


def hpa(to: Address, name: str, mode: str = "binary") -> list[str]:
    return ["tftp", "-m", mode, to[0], str(to[1]), "-c", "get", name, "got"]


def busybox(to: Address, name: str, *more: str) -> list[str]:
    return ["busybox", "tftp", *more, "-g", "-r", name, "-l", "got", to[0], str(to[1])]


def fetch(command: list[str], cwd: Path) -> bytes:
    code, said = run(*command, cwd=cwd)
    assert code == 0, said
    got = (cwd / "got").read_bytes()
    (cwd / "got").unlink()
    return got


WAYS = {
    "curl": curl,
    "curl-512": lambda to, name: curl(to, name, "--tftp-blksize", "512"),
    "curl-1468": lambda to, name: curl(to, name, "--tftp-blksize", "1468"),
    "curl-65464": lambda to, name: curl(to, name, "--tftp-blksize", "65464"),
    "curl-no-options": lambda to, name: curl(to, name, "--tftp-no-options"),
    "atftp": atftp,
    "atftp-1428": lambda to, name: atftp(to, name, "blksize 1428", "tsize 0"),
    "atftp-window-8": lambda to, name: atftp(to, name, "blksize 1428", "windowsize 8"),
    "atftp-window-16": lambda to, name: atftp(to, name, "blksize 1428", "windowsize 16", "timeout 2"),
    "atftp-8192-window-16": lambda to, name: atftp(to, name, "blksize 8192", "windowsize 16"),
    "tftp-hpa": hpa,
    "busybox": busybox,
    "busybox-100": lambda to, name: busybox(to, name, "-b", "100"),
    "busybox-1468": lambda to, name: busybox(to, name, "-b", "1468"),
    "busybox-8192": lambda to, name: busybox(to, name, "-b", "8192"),
    "busybox-65464": lambda to, name: busybox(to, name, "-b", "65464"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_size(server: Running, tmp_path: Path, way: str) -> None:
    for size in SIZES:
        # Debian's curl 7.88 refuses an OACK with tsize 0: "invalid tsize -:0".
        if size == 0 and way.startswith("curl") and way != "curl-no-options":
            continue
        assert fetch(WAYS[way](server.address, f"size-{size}"), tmp_path) == BIG[:size], size


@pytest.mark.parametrize("way", [way for way in WAYS if way != "busybox-100"])
def test_a_big_file(server: Running, tmp_path: Path, way: str) -> None:
    server.until(server.is_idle, 15)
    del server.events[:]
    assert fetch(WAYS[way](server.address, "big"), tmp_path) == BIG
    (end,) = server.ends()
    assert end.kind == "tftp.sent"
    assert end.details["octets"] == len(BIG)
    assert end.details["seconds"] < 5  # atftp with window 16 and blocks of 8192: 6.1 s from atftpd


@pytest.mark.parametrize(
    "command",
    [
        lambda to: curl(to, "wrapping", "--tftp-blksize", "8"),
        lambda to: atftp(to, "wrapping", "blksize 8", "windowsize 64"),
    ],
    ids=["curl", "atftp"],
)
def test_block_numbers_wrap(server: Running, tmp_path: Path, command: Callable[[Address], list[str]]) -> None:
    assert fetch(command(server.address), tmp_path) == BIG[: 66_000 * 8 + 1]


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_file(server: Running, tmp_path: Path, way: str) -> None:
    code, said = run(*WAYS[way](server.address, "nothing"), cwd=tmp_path)
    assert code != 0 or way == "tftp-hpa", said
    if way == "curl":
        assert code == 68  # CURLE_TFTP_NOTFOUND
    if not way.startswith(("curl", "atftp")):
        assert "no such file" in said


def test_netascii(server: Running, tmp_path: Path) -> None:
    assert fetch(hpa(server.address, "text", "ascii"), tmp_path) == b"one\ntwo\nthree\n"
    assert fetch(curl(server.address, "text;mode=netascii"), tmp_path) == b"one\r\ntwo\r\nthree\r\n"


def test_writing_is_refused(server: Running, tmp_path: Path) -> None:
    (tmp_path / "loot").write_bytes(b"x")
    host, port = server.address
    for command in (
        ["curl", "-sS", "-T", "loot", f"tftp://{host}:{port}/loot"],
        ["busybox", "tftp", "-p", "-l", "loot", host, str(port)],
    ):
        code, said = run(*command, cwd=tmp_path)
        assert code != 0, said


@pytest.mark.parametrize("way", ["curl-1468", "atftp-1428", "atftp-window-8", "tftp-hpa", "busybox-1468"])
def test_on_a_bad_network(server: Running, tmp_path: Path, way: str) -> None:
    """1 % loss both ways: the server's timer, not the client's seconds, decides."""
    with Relay(server.address, loss=0.01, repeat=0.005, late=0.01, after=2) as relay:
        assert fetch(WAYS[way](relay.address, "size-70000"), tmp_path) == BIG[:70_000]


def test_all_at_once_across_a_wire(tmp_path: Path) -> None:
    """Each client in the other namespace, several times, together."""
    need_network("ip")
    with wires(("10.77.0.1/24",)) as wire:
        client = wire.clients[0]
        client.ip("address", "add", "10.77.0.50/24", "dev", "c0")
        with serving(Files({"big": BIG}), links=wire.links(), inside=wire.server.inside()) as server:
            running = []
            for number, way in enumerate(list(WAYS) * 2):
                if way == "busybox-100":
                    continue
                cwd = tmp_path / str(number)
                cwd.mkdir()
                command = WAYS[way](("10.77.0.1", server.port), "big")
                need(command[0])
                running.append(
                    (
                        cwd,
                        subprocess.Popen(
                            client.command(*command), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                        ),
                    )
                )
            for cwd, process in running:
                assert process.wait(60) == 0, process.args
                assert (cwd / "got").read_bytes() == BIG
            ends = server.ends(len(running))
            assert {event.kind for event in ends} == {"tftp.sent"}

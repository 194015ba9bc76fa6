"""Simulated TFTP clients: their octets are those of real ones, and what they count is what happened."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest
from tftpkit import ACK, DATA, ERROR, HOST, OACK, Files, number_of, op_of, serving

from fastboot.lab._machines import Machines, Outcome
from fastboot.lab._sinks import tftp_sink
from fastboot.lab.tftp import EDK2, GRUB, IPXE, PLAIN, PXELINUX, SHIM, Client, Receivers, open_ways

FIRST = IPv4Address("127.77.0.1")
SERVER = int(IPv4Address(HOST))
VECTORS = Path(__file__).parent / "vectors" / "tftp"
FILE = random.Random(1).randbytes(200_000)
QUICK = Client(("blksize",), (0.02, 0.02, 0.02), {"blksize": 1468})


@pytest.mark.parametrize(
    ("vector", "client", "path", "probe"),
    [
        ("pxelinux-core", PXELINUX, "ldlinux.c32", False),
        ("pxelinux-mac", PXELINUX, "pxelinux.cfg/01-52-54-00-12-34-56", False),
        ("edk2-probe", EDK2, "grubx64.efi", True),
        ("edk2-fetch", EDK2, "grubx64.efi", False),
        ("shim", SHIM, "sb/grubx64.efi", False),
        ("ipxe", IPXE, "pxelinux.0", False),
        ("grub", GRUB, "/grub/x86_64-efi/command.lst", False),
    ],
)
def test_requests_are_those_of_the_real_client(vector: str, client: Client, path: str, probe: bool) -> None:
    lines = (VECTORS / f"{vector}.hex").read_text().splitlines()
    assert client.request(path, probe=probe) == bytes.fromhex("".join(line.split("#")[0] for line in lines))


@contextmanager
def machines(count: int, **settings: float) -> Iterator[Machines]:
    made = Machines(count, **settings)  # type: ignore[arg-type]
    ways = open_ways()
    try:
        made.speak_through([way.fileno() for way in ways])
        for machine in range(count):
            made.place(machine, int(FIRST) + machine)
        yield made
    finally:
        for way in ways:
            way.close()


def finish(made: Machines, count: int) -> list[Outcome]:
    found: list[Outcome] = []
    for _ in range(600):
        found += made.turn(0.05)
        if len(found) >= count:
            return found
    raise AssertionError(f"only {found}")


def fetch(made: Machines, machine: int, port: int, client: Client, path: str, **how: int) -> None:
    probe = bool(how.pop("probe", False))
    made.fetch(
        machine, SERVER, port, client.request(path, probe=probe), client.manner(probe=probe), probe=probe, **how
    )


@pytest.mark.parametrize("client", [PXELINUX, EDK2, SHIM, IPXE, GRUB, PLAIN.asking(1468, 16), PLAIN])
def test_what_is_kept_is_the_file(client: Client) -> None:
    with serving(Files({"file": FILE})) as server, machines(3) as made:
        for machine, keep in enumerate((len(FILE), 1000, 0)):
            fetch(made, machine, server.port, client, "file", keep=keep)
        for outcome in finish(made, 3):
            assert (outcome.end, outcome.octets) == ("done", len(FILE))
            assert outcome.size in (-1, len(FILE))
            assert outcome.content == (FILE, FILE[:1000], None)[outcome.machine]
            assert 0 < outcome.began <= outcome.first <= outcome.ended
        assert sum(made.flow()) == 3 * len(FILE)


def test_one_request_after_the_other_from_new_ports() -> None:
    with serving(Files({"file": b"text", "empty": b"", "exact": bytes(1408)})) as server, machines(1) as made:
        for path, octets in (("file", 4), ("empty", 0), ("exact", 1408), ("file", 4), ("file", 4)):
            fetch(made, 0, server.port, PXELINUX, path, keep=4)
            (outcome,) = finish(made, 1)
            assert (outcome.end, outcome.octets) == ("done", octets)
        ports = [event.details["port"] for event in server.ends(5)]
        assert all(one != other for one, other in pairwise(ports))


def test_the_servers_words_are_told() -> None:
    with serving(Files({})) as server, machines(1) as made:
        fetch(made, 0, server.port, GRUB, "/boot/linux")
        (outcome,) = finish(made, 1)
    assert (outcome.end, outcome.code, outcome.content) == ("error", 1, b"no such file")


def test_the_size_is_asked_as_edk2_does() -> None:
    with serving(Files({"grubx64.efi": FILE})) as server, machines(1) as made:
        fetch(made, 0, server.port, EDK2, "grubx64.efi", probe=1)
        (outcome,) = finish(made, 1)
        assert (outcome.end, outcome.octets, outcome.size) == ("done", 0, len(FILE))
        assert [event.kind for event in server.ends()] == ["tftp.probed"]


@contextmanager
def scripted() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(5)
        yield server


def heard(server: socket.socket) -> tuple[int, int, tuple[str, int]]:
    packet, peer = server.recvfrom(2048)
    return op_of(packet), number_of(packet), peer


def test_silence_is_asked_as_often_as_the_client_does() -> None:
    with scripted() as server, machines(1) as made:
        fetch(made, 0, server.getsockname()[1], QUICK, "file")
        (outcome,) = finish(made, 1)
        assert (outcome.end, outcome.first) == ("silent", 0)
        assert outcome.ended - outcome.began >= 0.06e9
        requests = [server.recv(2048) for _ in QUICK.waits]
        assert set(requests) == {QUICK.request("file")}
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.recv(2048)


@pytest.mark.parametrize("oack", [b"windowsize\x004\0", b"blksize\x001469\0", b"blksize\x00many\0", b"blksize"])
def test_an_answer_that_firmware_refuses_is_refused(oack: bytes) -> None:
    with scripted() as server, machines(1) as made:
        fetch(made, 0, server.getsockname()[1], QUICK, "file")
        made.turn(0.01)
        _, _, peer = heard(server)
        assert peer[0] == str(FIRST)
        server.sendto(b"\0\x06" + oack, peer)
        (outcome,) = finish(made, 1)
        assert outcome.end == "nonsense"
        assert heard(server)[:2] == (ERROR, 8)


def test_blocks_in_disorder_are_counted_and_a_window_is_acknowledged_once() -> None:
    client = PLAIN.asking(8, 4)
    with scripted() as server, machines(1) as made:
        fetch(made, 0, server.getsockname()[1], client, "file", keep=100)
        made.turn(0.01)
        _, _, peer = heard(server)
        server.sendto(b"\0\x06blksize\x008\0windowsize\x004\0", peer)
        made.turn(0.05)
        assert heard(server)[:2] == (ACK, 0)
        for block, body in ((1, b"11111111"), (2, b"22222222"), (2, b"22222222"), (4, b"44444444")):
            server.sendto(bytes((0, DATA, 0, block)) + body, peer)
        made.turn(0.05)
        assert [heard(server)[1] for _ in range(2)] == [2, 2]
        for block in (3, 4, 5, 6):
            server.sendto(bytes((0, DATA, 0, block)) + b"12345678", peer)
        made.turn(0.05)
        assert heard(server)[1] == 6
        with scripted() as stranger:
            stranger.sendto(bytes((0, DATA, 0, 7)), peer)
            made.turn(0.05)
        assert made.strange == 1
        server.sendto(bytes((0, DATA, 0, 7)), peer)
        (outcome,) = finish(made, 1)
        assert (outcome.end, outcome.octets, outcome.again) == ("done", 48, 2)
        assert heard(server)[:2] == (ACK, 7)


def test_a_slow_client_answers_late() -> None:
    with (
        serving(Files({"file": bytes(10 * 1408)})) as server,
        Receivers(IPv4Address(HOST), 5, first=FIRST, port=server.port) as receivers,
    ):
        result = receivers.run(["file"], PXELINUX, slow=0.01)
    assert len(result.each) == 5 and result.each[0] > 0.1


def test_loss_costs_time_but_no_file() -> None:
    with (
        serving(Files({"file": FILE})) as server,
        Receivers(IPv4Address(HOST), 20, first=FIRST, port=server.port, loss=0.05) as receivers,
    ):
        result = receivers.run(["file", "absent", "file"], PLAIN.asking(1468, 4), spread=0.1)
    assert (result.unfinished, result.octets, len(result.requests)) == (20, 40 * len(FILE), 40)
    assert result.failures == {"ERROR 1: no such file": 20} and not result.each
    assert result.lost > 0 and result.blocks_again > 0


def test_the_sink_serves_every_window() -> None:
    with scripted() as server:
        for blksize, window in ((1408, 1), (1468, 4), (512, 64)):
            grant = f"blksize\0{blksize}\0" + (f"windowsize\0{window}\0" if window > 1 else "")
            sink = threading.Thread(
                target=tftp_sink,
                args=(server.fileno(),),
                kwargs={
                    "oack": bytes((0, OACK)) + grant.encode(), "blksize": blksize, "window": window,
                    "octets": 100_000, "seconds": 60.0,
                },
            )  # fmt: skip
            sink.start()
            with Receivers(IPv4Address(HOST), 10, first=FIRST, port=server.getsockname()[1]) as receivers:
                result = receivers.run(["file"], PLAIN.asking(blksize, window))
            server.sendto(b"", server.getsockname())
            sink.join()
            assert (result.unfinished, result.octets) == (0, 10 * 100_000)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="at least one machine"):
        Machines(0)
    with pytest.raises(ValueError, match="seconds"):
        Client((), ()).manner()
    with machines(1) as made:
        with pytest.raises(IndexError):
            made.place(1, 1)
        made.pause(0, 10)
        with pytest.raises(ValueError, match="busy"):
            made.pause(0, 1)
        with pytest.raises(ValueError, match="named once"):
            made.speak_through([0])

"""The TFTP service from outside: real sockets on loopback, a client that shares no code with it, bad networks."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tftpkit import (
    DATA,
    ERROR,
    HOST,
    LOOPBACK,
    OACK,
    Client,
    Files,
    Relay,
    Running,
    TftpError,
    ack,
    error,
    fetch_through,
    number_of,
    op_of,
    options_of,
    rrq,
    serving,
)

from fastboot._core import Source
from fastboot.model import Reason, Refusal, Transfer

BIG = random.Random(1).randbytes(1_000_003)
SMALL = BIG[:200_000]


@pytest.fixture(scope="module")
def files() -> Files:
    sizes = {f"size-{size}": BIG[:size] for size in (0, 1, 7, 8, 511, 512, 513, 1468, 4 * 1468, 64 * 1468, 65536)}
    return Files({"big": BIG, "small": SMALL, "text": b"one\ntwo\r\nthree\rfour\n", **sizes})


@pytest.fixture(scope="module")
def running(files: Files) -> Iterator[Running]:
    with serving(files) as running:
        yield running


@pytest.fixture
def server(running: Running) -> Running:
    """One for all tests, without a transfer under way."""
    running.until(running.is_idle, 15)
    del running.events[:]
    return running


@pytest.fixture
def lonely(files: Files) -> Iterator[Running]:
    """One that knows no port from before, whose transfers may be left without their last acknowledgement."""
    with serving(files) as running:
        yield running


# --- whole files ---


@pytest.mark.parametrize("window", [None, 1, 4, 16, 64])
@pytest.mark.parametrize("blksize", [None, 1428, 1468])
def test_files_arrive_whole(server: Running, window: int | None, blksize: int | None) -> None:
    wanted = {"windowsize": window, "blksize": blksize}
    options = {name: value for name, value in wanted.items() if value}
    with server.client() as client:
        assert client.fetch("small", **options) == SMALL
        assert client.oack == ({name: str(value) for name, value in options.items()} or None)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 511, 512, 513, 1468, 4 * 1468, 64 * 1468, 65536])
@pytest.mark.parametrize(
    "options", [{}, {"blksize": 512, "windowsize": 4}, {"blksize": 1468, "windowsize": 64}], ids=str
)
def test_sizes_at_the_edges(server: Running, size: int, options: dict[str, int]) -> None:
    with server.client() as client:
        assert client.fetch(f"size-{size}", **options) == BIG[:size]
        blksize = options.get("blksize", 512)
        assert client.blocks == size // blksize + 1


@pytest.mark.parametrize("window", [1, 16, 64])
def test_blocks_of_8_octets(server: Running, window: int) -> None:
    with server.client() as client:
        assert client.fetch("size-65536", blksize=8, windowsize=window) == BIG[:65536]


def test_block_numbers_wrap_to_0() -> None:
    data = BIG[: 70_000 * 8 + 3]
    with serving(Files({"f": data})) as server, server.client() as client:
        assert client.fetch("f", blksize=8, windowsize=64) == data


def test_a_slice_in_the_middle_of_a_file() -> None:
    whole = Source.of_bytes("iso", BIG)
    with serving(Files({"part": whole.slice(12_345, 100_001)})) as server, server.client() as client:
        assert client.fetch("part", windowsize=16, blksize=1468, tsize=0) == BIG[12_345 : 12_345 + 100_001]
        assert client.oack and client.oack["tsize"] == "100001"


@pytest.mark.parametrize("window", [1, 4, 16, 64])
def test_a_bad_network(lonely: Running, window: int) -> None:
    """2 % lost, 1 % twice, 2 % late, both ways. The client repeats its last ACK once, after a second of silence:
    where that and the one answer of u-root's kind to a repeated window are both lost, nothing else ends it."""
    with Relay(lonely.address, loss=0.02, repeat=0.01, late=0.02, seed=window) as relay:
        got = fetch_through(relay.address, "small", tries=2, blksize=1428, windowsize=window)
        assert got == hashlib.sha256(SMALL).hexdigest()
        assert relay.dropped + relay.delayed + relay.repeated > 0


@pytest.mark.parametrize("window", [1, 8])
def test_a_terrible_network(lonely: Running, window: int) -> None:
    with Relay(lonely.address, loss=0.15, repeat=0.1, late=0.1, seed=window, after=0) as relay:
        got = fetch_through(relay.address, "size-65536", blksize=1428, windowsize=window)
        assert got == hashlib.sha256(BIG[:65536]).hexdigest()
        assert relay.dropped > 10


@pytest.mark.parametrize("threads", [1, 2])
def test_many_clients_at_once(files: Files, threads: int) -> None:
    windows = [1, 4, 16, 64, None]
    with serving(files, threads=threads) as server, ThreadPoolExecutor(50) as pool:

        def one(number: int) -> str:
            window = windows[number % len(windows)]
            options = {"blksize": 1468} | ({"windowsize": window} if window else {})
            return fetch_through(server.address, "small", **options)

        assert set(pool.map(one, range(50))) == {hashlib.sha256(SMALL).hexdigest()}
        ends = server.ends(50)
        assert {event.kind for event in ends} == {"tftp.sent"}
        assert {event.details["octets"] for event in ends} == {len(SMALL)}
        assert server.counters()["requests"] == 50
        assert server.service.transfers() == []


def test_many_clients_on_a_bad_network(lonely: Running) -> None:
    with Relay(lonely.address, loss=0.01, repeat=0.01, late=0.01) as relay, ThreadPoolExecutor(30) as pool:

        def one(number: int) -> str:
            return fetch_through(relay.address, "size-65536", blksize=1428, windowsize=(1, 4, 16)[number % 3])

        assert set(pool.map(one, range(30))) == {hashlib.sha256(BIG[:65536]).hexdigest()}


def test_what_is_told_of_a_transfer(server: Running) -> None:
    before = server.counters()["blocks"]
    with server.client() as client:
        client.fetch("small", blksize=1000, windowsize=4)
        port = client.port
        (end,) = server.ends()
    started = next(event for event in server.events if event.kind == "tftp.started")
    assert started.details["size"] == 200_000
    assert started.details["options"] == {"blksize": 1000, "windowsize": 4}
    details = dict(end.details)
    assert end.kind == "tftp.sent"
    assert 0 < details.pop("seconds") < 5
    sent = server.counters()["blocks"] - before
    assert details.pop("repeats") == sent - 202, "an OACK and 201 blocks"
    assert details == {
        "path": "small",
        "peer": HOST,
        "port": port,
        "outcome": "done",
        "code": 0,
        "octets": 200_000,
        "blocks": 201,
        "blksize": 1000,
        "windowsize": 4,
    }


def test_progress_is_told(server: Running) -> None:
    with server.client() as client:
        client.ask("small", windowsize=4)
        client.receive()
        client.send(ack(0))
        for _ in range(4):
            client.receive()
        client.send(ack(4))
        server.until(lambda: any(each.bytes == 2048 for each in server.service.transfers()))
        assert server.service.transfers() == [Transfer("tftp", IPv4Address(HOST), "small", 2048, 200_000)]
        client.send(error(0))
    server.until(server.is_idle)


# --- options ---


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ([("tsize", "0"), ("blksize", "1468")], [("tsize", "200000"), ("blksize", "1468")]),
        ([("blksize", "1468"), ("tsize", "0")], [("blksize", "1468"), ("tsize", "200000")]),
        ([("BlkSize", "1024"), ("TSIZE", "0")], [("BlkSize", "1024"), ("TSIZE", "200000")]),
        (
            [("timeout", "5"), ("tsize", "0"), ("blksize", "1468"), ("windowsize", "8")],
            [("timeout", "5"), ("tsize", "200000"), ("blksize", "1468"), ("windowsize", "8")],
        ),
        ([("windowsize", "65535")], [("windowsize", "64")]),
        ([("windowsize", "1")], [("windowsize", "1")]),
        ([("blksize", "65464")], [("blksize", "1468")]),
        ([("blksize", "8")], [("blksize", "8")]),
        ([("timeout", "255")], [("timeout", "255")]),
        ([("tsize", "99")], [("tsize", "200000")]),
        ([("msftwindow", "31416"), ("blksize", "1456"), ("multicast", "")], [("blksize", "1456")]),
        ([("blksize", "0"), ("timeout", "300"), ("windowsize", "0"), ("tsize", "0")], [("tsize", "200000")]),
        ([("blksize", "600"), ("blksize", "700")], [("blksize", "600")]),
    ],
    ids=str,
)
def test_only_what_was_asked_in_the_clients_order_and_spelling(
    server: Running, asked: list[tuple[str, str]], granted: list[tuple[str, str]]
) -> None:
    packet = rrq("small") + b"".join(f"{name}\0{value}\0".encode() for name, value in asked)
    with server.client() as client:
        client.send(packet)
        answer = client.receive()
        client.send(error(8))
    assert answer == b"\0\6" + b"".join(f"{name}\0{value}\0".encode() for name, value in granted)


@pytest.mark.parametrize(
    "options", [{}, {"msftwindow": 1}, {"blksize": 7}, {"timeout": 0}, {"tsize": "x"}], ids=str
)
def test_nothing_granted_is_no_oack(server: Running, options: dict[str, object]) -> None:
    with server.client() as client:
        client.ask("small", **options)
        assert client.receive() == b"\0\3\0\1" + SMALL[:512]
        client.send(error(0))


@pytest.mark.parametrize(
    ("mtu", "max_blksize", "granted"), [(1500, 9000, 1468), (1400, 1468, 1368), (9000, 1468, 1468)]
)
def test_a_block_fits_the_interface(files: Files, mtu: int, max_blksize: int, granted: int) -> None:
    links = (replace(LOOPBACK, mtu=mtu),)
    with serving(files, links=links, max_blksize=max_blksize) as server, server.client() as client:
        assert client.fetch("small", blksize=65464, windowsize=4) == SMALL
        assert client.oack == {"blksize": str(granted), "windowsize": "4"}


def test_jumbo_blocks(files: Files) -> None:
    with serving(files, max_blksize=65464, max_windowsize=1024) as server, server.client() as client:
        for options in (
            {"blksize": 65464},
            {"blksize": 65464, "windowsize": 2},
            {"blksize": 32000, "windowsize": 4},
        ):
            assert client.fetch("big", **options) == BIG
            assert client.oack == {name: str(value) for name, value in options.items()}


def test_netascii(server: Running) -> None:
    with server.client() as client:
        expected = b"one\r\ntwo\r\0\r\nthree\r\0four\r\n"
        assert client.fetch("text", "netascii") == expected
        assert client.fetch("text", "NetASCII", blksize=8, tsize=0, windowsize=4) == expected
        assert client.oack == {"blksize": "8", "windowsize": "4"}, "the size that travels is not the file's"
        client.ask("text", "netascii", tsize=0)
        assert op_of(client.receive()) == DATA
        client.send(ack(1))


def test_a_huge_text_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate((16 << 20) + 1)
    with serving(Files(root=tmp_path)) as server, server.client() as client:
        with pytest.raises(TftpError, match=r"^2 .*netascii"):
            client.fetch("huge", "netascii")
        client.ask("huge", tsize=0)
        assert options_of(client.receive()) == {"tsize": str((16 << 20) + 1)}
        client.send(error(8))


# --- requests ---


def test_a_repeated_request_is_one_transfer(server: Running, files: Files) -> None:
    requests = server.counters()["requests"]
    asked = len(files.asked)
    with server.client() as client:
        for _ in range(3):
            client.ask("small", blksize=1468, windowsize=4)
        first = client.receive()
        copies = 0
        while not client.hears_nothing(0.03):
            copies += 1
        assert op_of(first) == OACK
        assert copies <= 3
        client.ask("small", blksize=1468, windowsize=4)
        assert client.receive() == first, "answered the same"
        assert server.counters()["requests"] == requests + 1
        assert len(files.asked) == asked + 1
        client.send(ack(0))
        assert [number_of(client.receive()) for _ in range(4)] == [1, 2, 3, 4]
        data_port = client.peer
        client.send(rrq("small", blksize=1468, windowsize=4), server.address)  # a copy that comes late
        while not client.hears_nothing(0.003):
            assert client.peer == data_port
        client.send(error(0), data_port)
    assert server.counters()["requests"] == requests + 1
    assert server.counters()["duplicate_request"] >= 3


def test_a_request_for_something_else_replaces(server: Running) -> None:
    """U-Boot and ROMs that always ask from the same port."""
    with server.client() as client:
        client.ask("small", blksize=1468, windowsize=4)
        client.receive()
        client.send(ack(0))
        client.receive()
        while not client.hears_nothing(0.002):
            pass
        assert client.fetch("size-512", tsize=0) == BIG[:512]
        assert client.oack == {"tsize": "512"}
    ends = server.ends(2)
    assert [event.kind for event in ends] == ["tftp.replaced", "tftp.sent"]


def test_the_same_request_after_progress_replaces(server: Running) -> None:
    with server.client() as client:
        client.ask("small", blksize=1468)
        client.receive()
        client.send(ack(0))
        time.sleep(1.1)
        while not client.hears_nothing(0.001):
            pass
        assert client.fetch("small", blksize=1468) == SMALL
    assert [event.kind for event in server.ends(2)] == ["tftp.replaced", "tftp.sent"]


def test_one_port_one_file_after_the_other(server: Running) -> None:
    stray = server.counters()["stranger"]
    with server.client() as client:
        for size in (0, 511, 512, 1468, 513, 1, 512):
            assert client.fetch(f"size-{size}") == BIG[:size]
    assert server.counters()["stranger"] == stray


def test_a_missing_file_is_error_1_at_once(server: Running) -> None:
    with server.client() as client:
        took = []
        for number in range(11):
            began = time.monotonic()
            with pytest.raises(TftpError, match=r"^1 no such file$"):
                client.fetch(f"grub/grub.cfg-{number}", tsize=0, blksize=1024)
            took.append(time.monotonic() - began)
        assert min(took) < 0.02
        assert client.hears_nothing(0.3), "said once"


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.BUSY])
def test_a_refusal_never_makes_uboot_start_over(reason: Reason) -> None:
    """It does at every code but 1 and 2."""
    with serving(lambda path, client: Refusal(reason, "because")) as server, server.client() as client:
        with pytest.raises(TftpError, match="because") as caught:
            client.fetch("x")
        assert caught.value.code == (1 if reason in (Reason.MISSING, Reason.DIRECTORY) else 2)
        assert server.counters()[f"refused_{reason}"] == 1


def test_who_is_to_ask_again_hears_nothing() -> None:
    answers = [Refusal(Reason.BUSY, "not now"), Refusal(Reason.BUSY, "not now"), Source.of_bytes("x", b"later")]
    with serving(lambda path, client: answers.pop(0)) as server, server.client() as client:
        assert client.fetch("x", retry=0.1) == b"later"
        assert server.counters()["refused_busy"] == 2
        assert [event.kind for event in server.events].count("tftp.busy") == 1


def test_a_long_refusal_is_cut() -> None:
    with serving(lambda path, client: Refusal(Reason.BROKEN, "ü" * 500)) as server, server.client() as client:
        with pytest.raises(TftpError) as caught:
            client.fetch("x")
        assert caught.value.text == "?" * 87


@pytest.mark.parametrize(
    "name", [b"../../etc/passwd", b"/small", b"a\\b", b"x" * 400, b"\xff\xfe", b"%00", b"\x1b[31m"]
)
def test_names_reach_resolve_as_they_are(files: Files, server: Running, name: bytes) -> None:
    with server.client() as client, pytest.raises(TftpError):
        client.fetch(name)
    path, asker = files.asked[-1]
    assert os.fsencode(path) == name
    assert (str(asker.address), str(asker.server), asker.protocol) == (HOST, HOST, "tftp")


# --- strangers, ends ---


def test_a_stranger_gets_error_5_and_harms_nobody(lonely: Running) -> None:
    with lonely.client() as client, lonely.client() as stranger:
        client.ask("small", blksize=1468, windowsize=4)
        client.receive()
        before = lonely.counters()["stranger"]
        for packet in (ack(0), ack(4), b"\0\3\0\1data", b"\0\6blksize\x008\0"):
            stranger.send(packet, client.peer)
            answer = stranger.receive()
            assert (op_of(answer), number_of(answer)) == (ERROR, 5)
            assert stranger.peer == client.peer
            stranger.peer = None
        stranger.send(error(0), client.peer)
        lonely.counted("stranger", before + 5)
        assert stranger.hears_nothing(0.02)
        client.send(ack(0))
        assert [number_of(client.receive()) for _ in range(4)] == [1, 2, 3, 4]
        client.send(error(0))


def test_an_ack_at_the_wrong_port_is_a_strangers(lonely: Running) -> None:
    with lonely.client() as client:
        client.ask("small", blksize=1468, windowsize=4)
        client.receive()
        data_port = client.peer
        client.send(ack(0), lonely.address)
        answer = client.receive()
        assert (op_of(answer), number_of(answer)) == (ERROR, 5)
        client.send(ack(0), data_port)
        assert number_of(client.receive()) == 1
        client.send(error(0), data_port)


def test_a_late_ack_is_not_answered(server: Running) -> None:
    """U-Boot starts its download over at an ERROR 5."""
    with server.client() as client:
        client.fetch("size-513", windowsize=4)
        server.until(server.is_idle)
        client.forget()
        late = server.counters()["late"]
        for _ in range(3):
            client.send(ack(2))
        server.counted("late", late + 3)
        assert client.hears_nothing(0.02)


def test_the_size_probe_of_edk2(server: Running) -> None:
    with server.client() as client:
        client.ask("small", tsize=0, blksize=1468, windowsize=4)
        assert options_of(client.receive())["tsize"] == "200000"
        client.send(error(8, b"User aborted the transfer"))
        (end,) = server.ends()
        client.forget()
        assert end.kind == "tftp.probed"
        assert client.hears_nothing(0.3)
        assert client.fetch("small", blksize=1468, windowsize=4) == SMALL


@pytest.mark.parametrize(("code", "options", "acks"), [(0, {}, 0), (8, {"blksize": 600}, 0), (3, {"tsize": 0}, 1)])
def test_a_client_that_gives_up(server: Running, code: int, options: dict[str, int], acks: int) -> None:
    """GRUB, PXELINUX and iPXE with code 0; shim with 3 where its buffer is too small."""
    with server.client() as client:
        client.ask("small", **options)
        client.receive()
        for number in range(acks):
            client.send(ack(number))
            client.receive()
        client.send(error(code))
        (end,) = server.ends()
        client.forget()
        assert (end.kind, end.details["code"]) == ("tftp.cancelled", code)
        assert client.hears_nothing(0.3)


def test_nothing_but_a_few_oacks_goes_to_an_unproven_address(server: Running) -> None:
    with server.client() as client:
        client.ask("big", blksize=1468, windowsize=64)
        packets = []
        end = time.monotonic() + 1
        while time.monotonic() < end:
            if not client.hears_nothing(0.2):
                packets.append(1)
        assert 2 <= len(packets) <= 4  # 0, 250 and 750 ms
        client.send(error(0))


# --- files that change ---


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Path, Running]]:
    (tmp_path / "file").write_bytes(BIG)
    (tmp_path / "other").write_bytes(SMALL)
    with serving(Files(root=tmp_path)) as running:
        yield tmp_path, running


def begin(client: Client, window: int = 4) -> None:
    """Fetch the first window and leave it unacknowledged."""
    client.ask("file", blksize=1468, windowsize=window)
    client.receive()
    client.send(ack(0))
    for number in range(1, window + 1):
        assert number_of(client.receive()) == number


def go_on(client: Client, window: int = 4) -> tuple[bytes, int]:
    """Acknowledge windows until the server ends it or the file does; return the last packet, and its number."""
    expected = window
    client.send(ack(expected))
    while True:
        packet = client.receive(3)
        if op_of(packet) == ERROR or len(packet) < 1472:
            return packet, expected
        if number_of(packet) == (expected + 1) & 0xFFFF:
            expected += 1
            if expected % window == 0:
                client.send(ack(expected))


def check_changed(server: Running, client: Client) -> None:
    packet, _ = go_on(client)
    assert (op_of(packet), number_of(packet)) == (ERROR, 0)
    assert b"changed" in packet
    end = server.ends()[-1]
    assert (end.kind, end.details["outcome"]) == ("tftp.failed", "changed")
    assert client.hears_nothing(0.05)
    with server.client() as other:
        assert other.fetch("other", blksize=1468, windowsize=16) == SMALL


@pytest.mark.parametrize("size", [0, 100, 4096, 500_000, len(BIG) - 1])
def test_a_file_that_shrinks_ends_its_transfer_only(tree: tuple[Path, Running], size: int) -> None:
    root, server = tree
    with server.client() as client:
        begin(client)
        os.truncate(root / "file", size)
        check_changed(server, client)


@pytest.mark.parametrize("where", [0, 500_000, len(BIG) - 10])
def test_a_file_written_in_place_never_completes(tree: tuple[Path, Running], where: int) -> None:
    root, server = tree
    with server.client() as client:
        begin(client)
        with (root / "file").open("r+b") as file:
            file.seek(where)
            file.write(b"new")
        check_changed(server, client)


def test_a_change_with_its_time_set_back_is_seen(tree: tuple[Path, Running]) -> None:
    root, server = tree
    before = (root / "file").stat()
    with server.client() as client:
        begin(client)
        with (root / "file").open("r+b") as file:
            file.write(b"new")
        os.utime(root / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
        check_changed(server, client)


def test_a_file_that_grows_never_completes(tree: tuple[Path, Running]) -> None:
    root, server = tree
    with server.client() as client:
        begin(client)
        with (root / "file").open("ab") as file:
            file.write(b"more")
        check_changed(server, client)


def test_a_file_replaced_by_rename_completes_as_it_was(tree: tuple[Path, Running]) -> None:
    root, server = tree
    with server.client() as client, server.client() as other:
        begin(client)
        (root / "new").write_bytes(SMALL)
        (root / "new").rename(root / "file")
        packet, blocks = go_on(client)
        assert packet[4:] == BIG[blocks * 1468 :]
        client.send(ack(blocks + 1))
        (end,) = server.ends()
        assert (end.kind, end.details["octets"]) == ("tftp.sent", len(BIG))
        assert other.fetch("file", blksize=1468, windowsize=4) == SMALL


def test_a_deleted_file_completes(tree: tuple[Path, Running]) -> None:
    root, server = tree
    with server.client() as client:
        begin(client)
        (root / "file").unlink()
        packet, blocks = go_on(client)
        assert packet[4:] == BIG[blocks * 1468 :]
        client.send(ack(blocks + 1))


def held(root: Path) -> tuple[int, int]:
    """Count what this process holds of a tree: descriptors and maps of its files, deleted ones too."""
    gc.collect()
    links = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(root in link.parents for link in links), sum(f"{root}/" in line for line in maps)


def test_no_end_leaves_a_descriptor_a_map_or_a_transfer(tree: tuple[Path, Running]) -> None:
    root, server = tree
    for _ in range(3):
        (root / "file").write_bytes(BIG)
        with ExitStack() as stack:
            cut, deleted, gone, cancelled, replaced = (stack.enter_context(server.client()) for _ in range(5))
            for client in (cut, deleted, gone, cancelled, replaced):
                begin(client)
            assert held(root) == (5, 5)
            cancelled.send(error(0))
            gone.socket.close()
            replaced.ask("nothing")
            os.truncate(root / "file", 100_000)
            (root / "file").unlink()
            for client in (cut, deleted):
                assert op_of(go_on(client)[0]) == ERROR
            server.until(server.is_idle)
        server.until(lambda: held(root) == (0, 0))


# --- clients that have gone ---


def in_the_middle(client: Client) -> None:
    client.ask("small", blksize=1468, windowsize=4)
    client.receive()
    client.send(ack(0))
    while number_of(client.receive()) < 4:
        pass


def go_on_to_the_end(client: Client) -> None:
    last = len(SMALL) // 1468 + 1
    had = 4
    client.send(ack(had))
    while had < last:
        number = number_of(client.receive(10))
        had = number if number == had + 1 else had
        if number % 4 == 0 or number == last:
            client.send(ack(had))


@pytest.mark.parametrize("single_port", [False, True])
def test_a_client_whose_port_is_closed_has_gone(files: Files, single_port: bool) -> None:
    """And those who share its socket notice nothing: what ICMP says of one packet is an error of the next."""
    with serving(files, single_port=single_port) as server, ExitStack() as stack:
        staying = [stack.enter_context(server.client()) for _ in range(8)]
        leaving = [stack.enter_context(server.client()) for _ in range(8)]
        for client in (*staying, *leaving):
            in_the_middle(client)
        for client in leaving:
            client.socket.close()
        for client in staying:
            go_on_to_the_end(client)
        server.until(lambda: [event.kind for event in server.events].count("tftp.gone") == len(leaving))
        server.until(server.is_idle)
        assert server.counters()["send_failed"] == 0


def test_a_port_that_closes_after_the_last_block_is_no_failure(server: Running) -> None:
    with server.client() as client:
        client.ask("size-513")
        client.receive()
        client.send(ack(1))
        client.receive()
    (end,) = server.ends()
    assert (end.kind, end.details["outcome"]) == ("tftp.sent", "unconfirmed")

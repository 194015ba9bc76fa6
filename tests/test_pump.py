"""The pumps: the native one in threads, and the one on the loop as its oracle."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastboot import _core
from fastboot._core import Source
from fastboot.services.pump import LEAST, Pump, Sending, SlowWatch, start_pump
from fastboot.services.source_file import TCP_NOTSENT_LOWAT
from tests.ftpkit import descriptors

DATA = random.Random(3).randbytes(5_000_001)


@pytest.fixture(params=[0, 1, 3], ids=["loop", "thread", "threads"])
async def pump(request: pytest.FixtureRequest) -> AsyncIterator[Pump]:
    pump = start_pump(request.param)
    yield pump
    pump.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, Source]]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    yield path, opened(path)


def opened(path: Path) -> Source:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        return Source.open(directory, path.name)
    finally:
        os.close(directory)


def pair(window: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection; ours does not block, theirs has so much room for what comes in."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.socket()
        if window:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    theirs.settimeout(20)
    return ours, theirs


def drain(sock: socket.socket) -> bytes:
    got = bytearray()
    while part := sock.recv(1 << 16):
        got += part
    return bytes(got)


async def test_packets_are_full_until_the_end_which_waits_for_nothing(file: tuple[Path, Source]) -> None:
    pump = start_pump(1)
    ours, theirs = pair(4096)
    with ours, theirs:
        sending = pump.send(ours, file[1], 20)
        while not sending.octets:
            await asyncio.sleep(0)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        got = asyncio.create_task(asyncio.to_thread(drain, theirs))
        await sending.done
        assert not ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        ours.shutdown(socket.SHUT_WR)
        assert await got == DATA
    pump.close()


@pytest.mark.parametrize(
    ("buffers", "option"),
    [(True, (socket.SOL_SOCKET, socket.SO_SNDBUF)), (False, (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT))],
)
def test_each_has_its_share_of_what_the_kernel_holds(
    tmp_path: Path, buffers: bool, option: tuple[int, int]
) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    source = opened(path)
    pump = _core.Pump(unsent=1 << 20, least=1 << 17, most=1 << 18, buffers=buffers)
    threads = [threading.Thread(target=run) for run in (pump.run, pump.run, pump.read)]
    pairs = [pair(4096) for _ in range(8)]

    def share_is(octets: int) -> None:
        deadline = time.monotonic() + 20
        while any(ours.getsockopt(*option) != octets for ours, _ in pairs[:number]):
            assert time.monotonic() < deadline
            for _, theirs in pairs[:number]:
                theirs.recv(65536)  # makes room, so that there is another turn
            time.sleep(0.001)

    for thread in threads:
        thread.start()
    for number, (ours, _) in enumerate(pairs, 1):
        pump.send(ours.fileno(), source, 0, source.size)
        if number in (4, 8):
            share_is(1 << 18 if number == 4 else 1 << 17)
    pump.halt()
    for thread in threads:
        thread.join(20)
    for each in (end for both in pairs for end in both):
        each.close()


async def sent(pump: Pump, source: Source, offset: int = 0) -> bytes:
    ours, theirs = pair()
    with theirs:
        receiving = asyncio.create_task(asyncio.to_thread(drain, theirs))
        with ours:
            sending = pump.send(ours, source, 20, offset)
            await sending.done
            assert sending.octets == source.size - offset
        return await receiving


async def failed(sending: Sending) -> int:
    with pytest.raises(OSError) as caught:
        await asyncio.wait_for(sending.done, 20)
    assert caught.value.errno
    return caught.value.errno


@pytest.mark.parametrize("offset", [0, 1, 131_071, 131_072, 1_048_577, 4_999_999, 5_000_001])
async def test_every_octet_from_everywhere(pump: Pump, file: tuple[Path, Source], offset: int) -> None:
    _, source = file
    assert await sent(pump, source, offset) == DATA[offset:]


@pytest.mark.parametrize(
    ("start", "size"), [(0, 0), (0, 1), (17, 4096), (524_288, 524_288), (1_048_575, 2_000_000)]
)
async def test_a_part_of_a_file(pump: Pump, file: tuple[Path, Source], start: int, size: int) -> None:
    """What an ISO's file is: a range of the ISO. Nothing beside it leaves."""
    _, source = file
    part = source.slice(start, size)
    assert await sent(pump, part) == DATA[start : start + size]
    assert await sent(pump, part, size // 2) == DATA[start + size // 2 : start + size]


async def test_what_is_not_in_memory_is_read(pump: Pump, file: tuple[Path, Source]) -> None:
    path, source = file
    with path.open("rb") as each:
        os.fsync(each.fileno())
        os.posix_fadvise(each.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    gc.collect()
    before = descriptors()
    assert await sent(pump, source, 5) == DATA[5:]
    assert descriptors() <= before


async def test_many_at_once(pump: Pump, file: tuple[Path, Source]) -> None:
    _, source = file
    before = descriptors()
    got = await asyncio.gather(*(sent(pump, source, offset * 1000) for offset in range(40)))
    assert got == [DATA[offset * 1000 :] for offset in range(40)]
    assert descriptors() <= before


async def test_one_that_reads_nothing_holds_up_nobody(pump: Pump, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    source = opened(path)
    ours, theirs = pair()
    with ours, theirs:
        still = pump.send(ours, source, 60)
        for _ in range(3):
            assert await sent(pump, source.slice(0, 1_000_000)) == DATA[:1_000_000]
        async with asyncio.timeout(20):
            while not still.octets:  # its thread may be behind those of the others
                await asyncio.sleep(0.01)
        assert still.octets < source.size
        still.cancel()
        assert await failed(still) == errno.ECANCELED


async def test_turns_are_fair(pump: Pump, tmp_path: Path) -> None:
    """When the first of many has all, everybody has a good part."""
    path = tmp_path / "big"
    path.write_bytes(DATA * 4)
    source = opened(path)
    pairs = [pair() for _ in range(12)]
    taking = selectors.DefaultSelector()
    for _, theirs in pairs:
        theirs.setblocking(False)
        taking.register(theirs, selectors.EVENT_READ)
    ended = threading.Event()

    def take() -> None:
        while not ended.is_set():
            for key, _ in taking.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                if not key.fileobj.recv(1 << 18):
                    taking.unregister(key.fileobj)

    taker = threading.Thread(target=take)
    taker.start()
    sendings = [pump.send(ours, source, 60) for ours, _ in pairs]
    await asyncio.wait([each.done for each in sendings], return_when=asyncio.FIRST_COMPLETED)
    assert min(each.octets for each in sendings) > source.size // 4
    await asyncio.gather(*(each.done for each in sendings))
    ended.set()
    taker.join()
    for each in (end for both in pairs for end in both):
        each.close()


@pytest.mark.parametrize("after", [0, 1, 200_000])
async def test_cancelled_at_any_point(pump: Pump, tmp_path: Path, after: int) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)  # more than the kernel takes
    source = opened(path)
    gc.collect()
    before = descriptors()
    ours, theirs = pair()
    with ours, theirs:
        sending = pump.send(ours, source, 60)
        if after:
            got = 0
            while got < after:
                got += len(await asyncio.to_thread(theirs.recv, 65536))
        sending.cancel()
        sending.cancel()
        assert await failed(sending) == errno.ECANCELED
        assert sending.octets < source.size
        sending.cancel(errno.EIO)  # it has ended: nothing happens
    assert descriptors() <= before


async def test_a_client_that_leaves(pump: Pump, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    ours, theirs = pair()
    with ours:
        sending = pump.send(ours, opened(path), 60)
        await asyncio.to_thread(theirs.recv, 1000)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        assert await failed(sending) in (errno.ECONNRESET, errno.EPIPE)


async def test_the_connection_may_be_closed_by_its_owner(pump: Pump, tmp_path: Path) -> None:
    """The pump has a descriptor of its own: a number that is given out again is never written to."""
    path = tmp_path / "big"
    path.write_bytes(DATA * 2)
    ours, theirs = pair()
    with theirs:
        sending = pump.send(ours, opened(path), 60)
        ours.close()
        other, far = pair()  # takes the number
        with other, far:
            receiving = asyncio.create_task(asyncio.to_thread(drain, theirs))
            await sending.done
            assert await receiving == DATA * 2
            far.settimeout(0.05)
            with pytest.raises(TimeoutError):
                far.recv(1)


async def test_who_stands_still_is_given_up(pump: Pump, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    ours, theirs = pair()
    with ours, theirs:
        assert await failed(pump.send(ours, opened(path), 0.2)) == errno.ETIMEDOUT


async def test_who_takes_next_to_nothing_is_given_up(pump: Pump, tmp_path: Path) -> None:
    """A client that reads a little now and then, and one that reads what it must."""
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    source = opened(path)
    with ExitStack() as stack:
        ours, theirs = zip(*(map(stack.enter_context, pair(4096)) for _ in range(2)), strict=True)
        slow, steady = (pump.send(each, source, 1) for each in ours)
        began, ended = time.monotonic(), False
        while not ended and time.monotonic() < began + 30:
            await asyncio.to_thread(theirs[0].recv, 100)
            await asyncio.to_thread(theirs[1].recv, LEAST)
            await asyncio.sleep(0.02)
            ended = slow.done.done()
        assert await failed(slow) == errno.ETIMEDOUT
        assert not steady.done.done()
        steady.cancel()


async def test_who_still_takes_what_went_before_is_not_given_up(pump: Pump, tmp_path: Path) -> None:
    """A part of many, on a slow link: the kernel holds the parts before it for longer than `stall`."""
    path = tmp_path / "big"
    path.write_bytes(DATA)
    ours, theirs = pair(1 << 17)
    with ours, theirs:
        before = 0
        with pytest.raises(BlockingIOError):
            while True:
                before += ours.send(bytes(LEAST))
        sending = pump.send(ours, opened(path), 1)
        for _ in range(15):
            before -= len(await asyncio.to_thread(theirs.recv, 4 * LEAST))
            await asyncio.sleep(0.2)
        assert before > 0
        assert not sending.done.done()
        sending.cancel()


async def test_who_has_all_that_there_is_waits_for_us() -> None:
    class Sent:
        """A file on a disk that does not answer."""

        octets, stall = 0, 0.1

        def __init__(self) -> None:
            self.done = asyncio.get_running_loop().create_future()

        def cancel(self, error: int = errno.ECANCELED) -> None:
            if not self.done.done():
                self.done.set_result(error)

    watch = SlowWatch(asyncio.get_running_loop())
    ours, theirs = pair(4096)
    with ours, theirs:
        sending = watch.over(Sent(), ours)
        await asyncio.sleep(0.5)
        assert not sending.done.done()
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(LEAST))
        async with asyncio.timeout(20):
            assert await sending.done == errno.ETIMEDOUT  # type: ignore[func-returns-value]
    watch.close()


@pytest.mark.parametrize("change", ["shrink", "write", "touch"])
async def test_a_file_that_changes_is_never_completed(pump: Pump, tmp_path: Path, change: str) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    ours, theirs = pair()
    with theirs:
        with ours:
            sending = pump.send(ours, opened(path), 60)
            await asyncio.to_thread(theirs.recv, 1000)
            with path.open("r+b") as each:
                if change == "shrink":
                    each.truncate(len(DATA) * 7)
                elif change == "write":
                    each.write(b"x")
                else:
                    os.utime(each.fileno())
            receiving = asyncio.create_task(asyncio.to_thread(drain, theirs))
            assert await failed(sending) == errno.ESTALE
        assert len(await receiving) < len(DATA) * 8 - 1000


async def test_a_file_replaced_by_rename_is_finished(
    pump: Pump, file: tuple[Path, Source], tmp_path: Path
) -> None:
    path, source = file
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(path)
    assert await sent(pump, source) == DATA


@pytest.mark.parametrize("threads", [0, 2])
async def test_closing_ends_everything(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA * 8)
    gc.collect()
    before = descriptors()
    pump = start_pump(threads)
    pairs = [pair() for _ in range(5)]
    sendings = [pump.send(ours, opened(path), 60) for ours, _ in pairs]
    pump.close()
    assert [await failed(each) for each in sendings] == [errno.ECANCELED] * 5
    for each in (end for both in pairs for end in both):
        each.close()
    del sendings
    gc.collect()
    assert descriptors() <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastboot-pump")]


def test_the_native_door(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    source = opened(path)
    for capacity in (0, 1 << 21):
        with pytest.raises(ValueError, match="capacity"):
            _core.Pump(capacity)
    pump = _core.Pump(1)
    ours, theirs = pair()
    with ours, theirs:
        for offset, size in ((-1, 1), (0, -1), (0, len(DATA) + 1), (len(DATA) + 1, 0), (1, 1 << 62)):
            with pytest.raises(ValueError, match="within"):
                pump.send(ours.fileno(), source, offset, size)
        with pytest.raises(OSError, match="Bad file descriptor"):
            pump.send(999_999, source, 0, 1)
        job = pump.send(ours.fileno(), source, 0, 10)
        with pytest.raises(BlockingIOError):
            pump.send(ours.fileno(), source, 0, 10)
        with pytest.raises(IndexError):
            pump.sent(1)
        with pytest.raises(IndexError):
            pump.cancel(-1, errno.EIO)
        pump.halt()
        assert pump.ends() == [(job, errno.ECANCELED, 0)]
        with pytest.raises(OSError, match=os.strerror(errno.ECANCELED)):
            pump.send(ours.fileno(), source, 0, 10)
        for _ in range(2):
            pump.run()
        pump.read()
    unstarted = _core.Pump(4)
    before = descriptors()
    ours, theirs = pair()
    unstarted.send(ours.fileno(), source, 0, 1)
    ours.close()
    theirs.close()
    del unstarted
    gc.collect()
    assert descriptors() < before


async def test_ends_of_all_kinds_at_any_moment(file: tuple[Path, Source]) -> None:
    """Several senders, the reader and the loop meet at the same jobs, whose places are given again at once."""
    path, source = file
    with path.open("rb") as each:
        os.fsync(each.fileno())
    gc.collect()
    before, chance = descriptors(), random.Random(7)
    pump = start_pump(3)

    async def transfer(number: int) -> None:
        offset = chance.randrange(len(DATA))
        ours, theirs = pair(chance.choice((0, 4096)))
        with theirs:
            got = bytearray()
            taking = asyncio.create_task(asyncio.to_thread(lambda: got.extend(drain(theirs))))
            with ours:
                sending = pump.send(ours, source, 60, offset)
                if number % 3:
                    await asyncio.sleep(chance.random() / 100)
                    if number % 3 == 1:
                        sending.cancel()
                    else:
                        ours.shutdown(socket.SHUT_RDWR)  # as a connection that fails
                if number % 20 == 0:
                    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                with contextlib.suppress(OSError):
                    await asyncio.wait_for(asyncio.shield(sending.done), 20)
            await taking
        assert got == DATA[offset : offset + sending.octets]
        assert sending.octets == len(DATA) - offset or number % 3

    waiting = iter(range(600))

    async def client() -> None:
        for number in waiting:
            await transfer(number)

    await asyncio.gather(*(client() for _ in range(12)))
    pump.close()
    gc.collect()
    assert descriptors() <= before

"""The TFTP service from outside: limits, decisions that take time or fail, ports, start and stop."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tftpkit import (
    DATA,
    HOST,
    LOOPBACK,
    OACK,
    Address,
    Client,
    Files,
    TftpError,
    ack,
    error,
    fetch_through,
    number_of,
    op_of,
    rrq,
    serving,
)

from fastboot import config
from fastboot._core import Engine, Interfaces, Source
from fastboot.model import Client as Asker
from fastboot.model import Event, FastbootError, Reason, Refusal
from fastboot.services import tftp_files
from fastboot.services.tftp import Resolve, Sockets, TftpService, open_sockets

SMALL = random.Random(1).randbytes(200_000)


@pytest.fixture
def files() -> Files:
    sizes = {f"size-{size}": SMALL[:size] for size in (0, 1, 7, 8, 512, 513, 65536)}
    return Files({"small": SMALL, "text": b"one\ntwo\n", **sizes})


# --- limits ---


GRACE = 0.1
"""Seconds in which a client may answer before its transfer makes room for another."""


def begin(client: Client) -> None:
    """Prove the client's address, and leave its first window unacknowledged."""
    client.ask("small", blksize=1468, windowsize=4)
    client.receive()
    client.send(ack(0))
    while op_of(client.receive()) == OACK:
        pass


def go_on(client: Client) -> None:
    """Acknowledge the first window and see the second begin, whatever was repeated of the first."""
    client.send(ack(4))
    while number_of(client.receive()) <= 4:
        pass
    client.send(error(0))


def until_granted(client: Client) -> bytes:
    """Fetch the small file, as often as it takes: who was too slow starts over."""
    for _ in range(100):
        with suppress(TimeoutError):
            return client.fetch("small", retry=0.02, tries=10, blksize=1468, windowsize=16)
    raise TimeoutError


def test_full_is_counted_and_harms_nobody(files: Files) -> None:
    with serving(files, max_transfers=2) as server, server.client() as one, server.client() as two:
        for client in (one, two):
            begin(client)
        with server.client() as third:
            end = time.monotonic() + 2 * GRACE
            while time.monotonic() < end:
                third.ask("small")
                assert third.hears_nothing(0.02)
            assert server.counters()["full"] > 0
            assert server.counters()["evicted"] == 0
            for client in (one, two):
                go_on(client)
            server.until(server.is_idle)
            assert third.fetch("small", blksize=1468) == SMALL
            with pytest.raises(TftpError, match=r"^1 "):
                third.fetch("nothing")


def test_slots_come_back(files: Files) -> None:
    """Every way to end, many more times than there are slots."""
    with serving(files, max_transfers=4) as server, server.client() as client:
        for _ in range(25):
            assert client.fetch("size-513") == SMALL[:513]
            with pytest.raises(TftpError, match=r"^1 "):
                client.fetch("nothing")
            client.ask("small", tsize=0)
            client.receive()
            client.send(error(8))
            client.ask("small", blksize=600)
            client.ask("size-1")
            while op_of(client.receive()) != DATA:
                pass
            client.send(ack(1))
            server.until(server.is_idle)
        assert server.counters()["full"] == 0


def test_a_storm_of_replacing_requests_loses_no_answer(files: Files) -> None:
    """One port asks for ever something else: an answer is due for each, most of them to nobody."""
    with serving(files, max_transfers=2) as server, server.client() as client:
        for number in range(3000):
            client.send(rrq(f"size-{(1, 7, 8)[number % 3]}"), server.address)
        client.send(error(0), server.address)
        with server.client() as other:
            assert other.fetch("size-65536", blksize=1468, tries=40) == SMALL[:65536]
        client.send(rrq("nothing"), server.address)
        server.until(server.is_idle)


def test_a_flood_keeps_nobody_out(files: Files) -> None:
    """Requests from many ports, none of which ever answers."""
    stop = threading.Event()
    with serving(files, max_transfers=16) as server, ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        crowd = [stack.enter_context(server.client()) for _ in range(64)]
        client = stack.enter_context(server.client())

        def flood() -> None:
            while not stop.wait(0.02):
                for each in crowd:
                    each.ask("small", blksize=1468, windowsize=64)

        flooding = pool.submit(flood)
        try:
            server.counted("full")
            for _ in range(3):
                assert until_granted(client) == SMALL
        finally:
            stop.set()
        flooding.result(10)
        assert server.counters()["evicted"] > 0


def test_a_transfer_whose_client_answered_is_never_evicted(files: Files) -> None:
    with serving(files, max_transfers=2) as server, ExitStack() as stack:
        crowd = [stack.enter_context(server.client()) for _ in range(8)]
        client = stack.enter_context(server.client())
        begin(client)
        for number in range(1, 6):

            def another() -> bool:
                for each in crowd:
                    each.ask("small", tsize=0)
                return server.counters()["evicted"] >= number  # noqa: B023

            server.until(another)
        go_on(client)
        assert client.port not in {
            event.details["port"] for event in server.ends(6) if event.kind == "tftp.evicted"
        }


def test_the_oldest_makes_room(files: Files) -> None:
    with serving(files, max_transfers=3) as server, ExitStack() as stack:
        first, second, third, fourth = (stack.enter_context(server.client()) for _ in range(4))
        for client in (first, second, third):
            client.ask("small", blksize=1468, windowsize=4)
            assert op_of(client.receive()) == OACK
        fourth.ask("small", blksize=1468, windowsize=4)
        while fourth.hears_nothing(0.02):
            fourth.ask("small", blksize=1468, windowsize=4)
        (end,) = server.ends()
        assert (end.kind, end.details["port"]) == ("tftp.evicted", first.port)
        while not first.hears_nothing(0.02):  # OACKs from before
            pass
        first.send(ack(0))
        server.counted("late")
        assert first.hears_nothing(0.1), "U-Boot starts over, for ever, at any ERROR"
        for client in (second, third, fourth):
            client.send(ack(0))
            while op_of(client.receive()) == OACK:
                pass
            client.send(error(0))
        assert until_granted(first) == SMALL


def test_nobody_is_evicted_before_he_can_have_answered(files: Files) -> None:
    with serving(files, max_transfers=1) as server, server.client() as client, server.client() as other:

        def decided() -> tuple[int, int]:
            counters = server.counters()
            return counters["full"], counters["evicted"]

        for _ in range(100):
            began = time.monotonic()
            client.ask("small", blksize=1468, windowsize=4)
            client.receive()
            before = decided()
            other.ask("small")
            server.until(lambda: decided() != before)  # noqa: B023
            full, evicted = decided()
            client.send(error(0))
            if time.monotonic() - began < GRACE:  # else this machine was too slow to tell
                assert (full, evicted) == (before[0] + 1, before[1])
                break
            if evicted > before[1]:
                other.receive()
                other.send(error(0))
            server.until(server.is_idle)
        else:
            pytest.fail("this machine never took less than 0.1 s")


def test_what_is_still_being_decided_is_never_evicted(files: Files) -> None:
    """Were requests quicker than `resolve`, every answer would come too late."""
    gate = threading.Event()

    async def resolve(path: str, client: Asker) -> Source | Refusal:
        await asyncio.get_running_loop().run_in_executor(None, gate.wait)
        return files(path, client)

    with serving(resolve, max_transfers=2) as server, ExitStack() as stack:
        one, two, other = (stack.enter_context(server.client()) for _ in range(3))
        for client in (one, two):
            client.ask("small", blksize=1468)
        end = time.monotonic() + 2 * GRACE
        while time.monotonic() < end:
            other.ask("small")
            assert other.hears_nothing(0.02)
        gate.set()
        for client in (one, two):
            assert op_of(client.receive()) == OACK
            client.send(error(0))
        assert server.counters()["evicted"] == 0


def test_max_file(files: Files) -> None:
    with serving(files, max_file=512) as server, server.client() as client:
        assert client.fetch("size-512") == SMALL[:512]
        for _ in range(2):
            with pytest.raises(TftpError, match=r"^2 too big"):
                client.fetch("size-513", tsize=0)


def test_an_address_has_its_share(files: Files) -> None:
    with serving(files, max_per_address=2) as server, server.client() as one, server.client() as two:
        for client in (one, two):
            begin(client)
        with server.client() as third, server.client(bind=("127.0.0.2", 0)) as other:
            with pytest.raises(TftpError, match=r"^2 2 transfers are on their way to this address"):
                third.fetch("small")
            assert other.fetch("small", blksize=1468) == SMALL
            assert server.counters()["refused_crowded"] == 1
            assert server.events[-1].kind != "tftp.refused"
            go_on(one)
            server.ends(3)
            for _ in range(5):
                assert third.fetch("small", blksize=1468) == SMALL
                with pytest.raises(TftpError, match=r"^1 "):
                    third.fetch("nothing")
            server.service.reload(files, config.Tftp(port=0, max_per_address=1))
            with pytest.raises(TftpError, match=r"^2 1 transfers"):
                third.fetch("small")


# --- more at once than are taken ---


def crowd(sockets: tuple[Sockets, ...], clients: list[Client], name: str) -> None:
    """Send a request of every client before the server takes any."""
    for client in clients:
        client.send(rrq(name), (HOST, sockets[0].listen.getsockname()[1]))


def test_a_thousand_requests_at_once_are_all_answered(files: Files) -> None:
    """Nobody repeats: what found no room is lost. Half of them miss, as loaders that look for their files do."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client((HOST, 0))) for _ in range(1000)]

        def ask(sockets: tuple[Sockets, ...]) -> None:
            crowd(sockets, clients[::2], "size-7")
            crowd(sockets, clients[1::2], "nothing")

        with serving(files, prepare=ask, threads=2, max_per_address=1000) as server:
            for client in clients[::2]:
                assert client.receive(20)[4:] == SMALL[:7]
                client.send(ack(1))
            for client in clients[1::2]:
                assert number_of(client.receive(20)) == 1
            server.until(server.is_idle)
            counters = server.counters()
        assert (counters["requests"], counters["dropped"], counters["full"]) == (1000, 0, 0)


def test_dropped_requests_are_counted_and_told_once(files: Files) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client((HOST, 0))) for _ in range(200)]

        def ask(sockets: tuple[Sockets, ...]) -> None:
            sockets[0].listen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            crowd(sockets, clients, "nothing")

        with serving(files, prepare=ask) as server, server.client() as client:
            with pytest.raises(TftpError):
                client.fetch("nothing")  # the kernel tells with the next packet
            # 201, and one more for each time that the client had to ask again
            server.until(lambda: server.counters()["requests"] + server.counters()["dropped"] >= 201)
            assert server.counters()["dropped"] > 100
            server.until(lambda: "tftp.dropped" in [event.kind for event in server.events])
            crowd(server.service._sockets, clients, "nothing")
            with pytest.raises(TftpError):
                client.fetch("nothing")
            told = [event for event in server.events if event.kind == "tftp.dropped"]
        assert len(told) == 1
        assert "net.core.rmem_max" in str(told[0].details["text"])


# --- resolve ---


def copies() -> int:
    """Count the files in memory that this process holds."""
    links = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return sum("memfd:fastboot" in str(link) for link in links)


def test_a_text_is_held_once_for_all(tmp_path: Path) -> None:
    """A request of 40 octets must not cost a copy of the file each: 300 from one host took 3 GB."""
    (tmp_path / "text").write_bytes(b"line\n" * 1000)
    with serving(Files(root=tmp_path)) as server, ExitStack() as stack:
        before = copies()
        for _ in range(8):
            client = stack.enter_context(server.client())
            client.ask("text", "netascii")
            assert client.receive()[4:15] == b"line\r\nline\r"
        assert copies() == before + 1


def test_texts_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: name.encode() * 600 for name in ("a", "b", "c")}
    monkeypatch.setattr(tftp_files, "MAX_TEXTS", 1200)
    with serving(Files(dict(texts))) as server, ExitStack() as stack:
        one, two, three = (stack.enter_context(server.client()) for _ in texts)
        for client, name in ((one, "a"), (two, "b")):
            client.ask(name, "netascii")
            client.receive()
        with pytest.raises(TftpError, match=r"^2 .*ask for octet"):
            three.fetch("c", "netascii")
        assert three.fetch("c") == texts["c"]
        one.send(error(0))
        server.ends(2)
        gc.collect()
        assert three.fetch("c", "netascii") == texts["c"]


def test_resolve_may_take_its_time(files: Files) -> None:
    gate = threading.Event()
    asked: list[str] = []

    async def resolve(path: str, client: Asker) -> Source | Refusal:
        asked.append(path)
        await asyncio.get_running_loop().run_in_executor(None, gate.wait)
        return files(path, client)

    with serving(resolve) as server, server.client() as client, server.client() as other:
        for _ in range(3):
            client.ask("small", blksize=1468)
        server.counted("duplicate_request", 2)
        assert client.hears_nothing(0.02)
        gate.set()
        assert op_of(client.receive()) == OACK
        client.send(error(0))
        assert asked == ["small"]
        assert other.fetch("size-513") == SMALL[:513]
        with pytest.raises(TftpError, match=r"^1 "):
            other.fetch("nothing")


def test_a_client_that_went_while_resolve_thought(files: Files) -> None:
    gate = threading.Event()

    async def resolve(path: str, client: Asker) -> Source | Refusal:
        if path == "small":
            await asyncio.get_running_loop().run_in_executor(None, gate.wait)
        return files(path, client)

    with serving(resolve) as server, server.client() as client:
        client.ask("small", blksize=1468)
        client.ask("size-513")
        assert op_of(client.receive()) == DATA
        gate.set()
        client.send(ack(1))
        while (packet := client.receive()) == b"\0\3\0\1" + SMALL[:512]:
            pass
        assert packet == b"\0\3\0\2" + SMALL[512:513]
        client.send(ack(2))
        server.until(server.is_idle)
        client.forget()
        assert client.hears_nothing(0.05)


def test_a_resolve_that_fails(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    def resolve(path: str, client: Asker) -> Source | Refusal:
        if path == "bad":
            raise RuntimeError("an embedder's fault")
        return files(path, client)

    with serving(resolve) as server, server.client() as client:
        for _ in range(3):
            with pytest.raises(TftpError, match=r"^2 internal error$"):
                client.fetch("bad")
            assert client.fetch("size-512") == SMALL[:512]
    assert "an embedder's fault" in capsys.readouterr().out


def test_an_awaited_resolve_that_fails(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    async def resolve(path: str, client: Asker) -> Source | Refusal:
        if path == "bad":
            raise RuntimeError("an embedder's fault")
        if path == "io":
            raise OSError(5, "the disk")
        return files(path, client)

    with serving(resolve) as server, server.client() as client:
        with pytest.raises(TftpError, match=r"^2 internal error$"):
            client.fetch("bad")
        with pytest.raises(TftpError, match=r"^2 can not be read$"):
            client.fetch("io")
        assert client.fetch("size-512") == SMALL[:512]
    assert "an embedder's fault" in capsys.readouterr().out


def test_reload_asks_the_new_resolve(files: Files) -> None:
    with serving(files) as server, server.client() as client, server.client() as other:
        client.ask("small", blksize=1468)
        client.receive()

        async def reload() -> None:
            server.service.reload(Files({"small": b"new"}), config.Tftp(max_file=100))

        server.wait(reload())
        assert other.fetch("small") == b"new"
        client.send(ack(0))
        assert client.receive() == b"\0\3\0\1" + SMALL[:1468]
        client.send(error(0))


# --- ports ---


def test_a_single_port(files: Files) -> None:
    with serving(files, single_port=True) as server, ThreadPoolExecutor(10) as pool:
        assert set(pool.map(lambda _: fetch_through(server.address, "small", windowsize=4), range(10))) == {
            hashlib.sha256(SMALL).hexdigest()
        }
        with server.client() as client:
            for name, size in (("size-513", 513), ("size-512", 512), ("size-0", 0)):
                assert client.fetch(name) == SMALL[:size]
                assert client.peer == server.address
            with pytest.raises(TftpError, match=r"^1 "):
                client.fetch("nothing")
            assert client.peer == server.address
            server.until(server.is_idle)
            client.forget()
            client.send(ack(1))
            assert client.hears_nothing(0.02)


def free_ports(count: int) -> int:
    """Return the first of that many ports in a row that nobody has."""
    for first in range(20_000 + os.getpid() % 1000, 60_000, count):
        taken = []
        try:
            for port in range(first, first + count):
                each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                taken.append(each)
                each.bind(("", port))
        except OSError:
            continue
        finally:
            for each in taken:
                each.close()
        return first
    raise AssertionError("no free ports")


def test_data_ports(files: Files) -> None:
    first = free_ports(6)
    with serving(files, data_ports=f"{first}-{first + 2}") as server:
        seen = set()
        for _ in range(9):
            with server.client() as client:
                client.fetch("size-513")
                assert client.peer is not None
                seen.add(client.peer[1])
        assert seen == {first, first + 1, first + 2}


def test_transfers_of_one_client_take_turns_at_four_data_sockets(files: Files) -> None:
    with serving(files, threads=1) as server, server.client() as client:
        ports = []
        for _ in range(8):
            assert client.fetch("size-513") == SMALL[:513]
            assert client.peer is not None
            ports.append(client.peer[1])
    assert len(set(ports)) == 4
    assert all(one != next_ for one, next_ in pairwise(ports))
    assert server.port not in ports


def test_threads_share_the_port_and_the_data_ports(files: Files) -> None:
    first = free_ports(6)
    with serving(files, threads=3, data_ports=f"{first}-{first + 5}") as server:
        shares = [{each.getsockname()[1] for each in one.data} for one in server.service._sockets]
        assert [len(share) for share in shares] == [2, 2, 2]
        assert set.union(*shares) == set(range(first, first + 6))
        for _ in range(30):
            with server.client() as client:
                assert client.fetch("size-513") == SMALL[:513]
        used = [engine.counters()["requests"] for engine in server.service._engines]
        assert sum(used) == 30
        assert sum(count > 0 for count in used) > 1, "all in one of three is a chance of 1 in 10^14"


def test_another_server_of_the_same_user_does_not_share_the_port() -> None:
    port = free_ports(1)
    made = open_sockets(config.Tftp(port=port, threads=2))
    for threads in (1, 2):
        with pytest.raises(FastbootError, match=f"tftp.port: UDP port {port} is taken"):
            open_sockets(config.Tftp(port=port, threads=threads))
    for sockets in made:
        sockets.close()


def test_as_many_threads_as_processors_but_four_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for have, wanted in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, have=have: set(range(have)))
        assert config.Tftp().threads == wanted


def test_ports_that_are_taken_are_named() -> None:
    first = free_ports(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("", first))
        with pytest.raises(FastbootError, match=f"tftp.port: UDP port {first} is taken"):
            open_sockets(config.Tftp(port=first))
        with pytest.raises(FastbootError, match=r"tftp.data_ports: no free port left"):
            open_sockets(config.Tftp(port=0, threads=1, data_ports=f"{first}-{first}"))
        for sockets in (made := open_sockets(config.Tftp(port=0, threads=1, data_ports=f"{first}-{first + 2}"))):
            assert {each.getsockname()[1] for each in sockets.data} == {first + 1, first + 2}
            sockets.close()
        assert len(made) == 1


def test_two_services_in_one_process() -> None:
    with serving(Files({"f": b"one"})) as one, serving(Files({"f": b"two"})) as two:
        with one.client() as client, two.client() as other:
            assert (client.fetch("f"), other.fetch("f")) == (b"one", b"two")
        assert one.counters()["requests"] == two.counters()["requests"] == 1
        assert one.events[0].details["port"] != two.events[0].details["port"]


# --- start and stop ---


async def start(resolve: Resolve, **more: Any) -> tuple[TftpService, Address, list[Event]]:
    settings = config.Tftp(**{"port": 0, "threads": 1, **more})
    sockets = open_sockets(settings)
    address = (HOST, sockets[0].listen.getsockname()[1])
    events: list[Event] = []
    service = TftpService(settings, (LOOPBACK,), resolve, events.append, sockets)
    await service.start()
    return service, address, events


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_stop_lets_transfers_finish(files: Files) -> None:
    service, address, events = await start(files)
    with Client(address) as client, Client(address) as late:
        await asyncio.to_thread(client.fetch, "size-1")
        client.ask("size-65536", blksize=1468, windowsize=4)
        await asyncio.to_thread(client.receive)
        began = time.monotonic()
        stopping = asyncio.create_task(service.stop(drain=8))
        await asyncio.sleep(0.05)
        late.ask("small")
        await until(lambda: service.counters()["draining"] == 1)
        assert await asyncio.to_thread(late.hears_nothing, 0.05)
        assert not stopping.done()
        client.send(ack(0))
        blocks = 0
        while blocks < 65536 // 1468 + 1:
            packet = await asyncio.to_thread(client.receive)
            blocks = number_of(packet)
            if blocks % 4 == 0 or len(packet) < 1472:
                client.send(ack(blocks))
        await stopping
        assert time.monotonic() - began < 4
        assert [event.kind for event in events if event.kind == "tftp.sent"] == ["tftp.sent"] * 2
        client.forget()
        assert client.hears_nothing(0.02)


async def test_stop_is_silent_to_who_is_too_slow(files: Files) -> None:
    """U-Boot would start over at an ERROR."""
    service, address, events = await start(files)
    with Client(address) as client:
        client.ask("small", blksize=1468, windowsize=4)
        await asyncio.to_thread(client.receive)
        client.send(ack(0))
        for _ in range(4):
            await asyncio.to_thread(client.receive)
        began = time.monotonic()
        await service.stop(drain=0.2)
        assert 0.15 < time.monotonic() - began < 2
        assert events[-1].kind == "tftp.stopped"
        while True:
            try:
                packet = client.receive(0.2)
            except (TimeoutError, ConnectionRefusedError):
                break
            assert op_of(packet) == DATA


async def test_stop_while_resolve_thinks(files: Files) -> None:
    async def resolve(path: str, client: Asker) -> Source | Refusal:
        await asyncio.sleep(3600)
        return files(path, client)

    service, address, _ = await start(resolve)
    with Client(address) as client:
        client.ask("small")
        await until(lambda: service.counters()["requests"] == 1)
        await asyncio.wait_for(service.stop(), 5)


async def test_stop_without_a_start(files: Files) -> None:
    settings = config.Tftp(port=0)
    sockets = open_sockets(settings)
    service = TftpService(settings, (LOOPBACK,), files, lambda event: None, sockets)
    await service.stop(drain=5)
    assert sockets[0].listen.fileno() == -1


async def test_nothing_leaks(files: Files) -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    async def once() -> None:
        service, address, _ = await start(files)
        with Client(address) as client:
            assert await asyncio.to_thread(client.fetch, "size-513", windowsize=4) == SMALL[:513]
            client.ask("small", tsize=0)  # left in the middle
            await asyncio.to_thread(client.receive)
            client.ask("text", "netascii")
            await service.stop()

    await once()
    before = count()
    for _ in range(20):
        await once()
    # A thread of the executor may hold the text of the last one for a moment.
    await until(lambda: count()[0] <= before[0])
    assert count()[1] <= before[1] + 5


async def test_files_are_closed_after_their_last_transfer(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(SMALL)
    resolve = Files(root=tmp_path)
    service, address, events = await start(resolve, max_transfers=1)

    def open_files() -> int:
        gc.collect()
        links = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        return sum(tmp_path in link.parents for link in links)

    with Client(address) as client, Client(address) as silent:
        for _ in range(5):
            assert await asyncio.to_thread(until_granted, client) == SMALL
            await until(lambda: not service.transfers())
            silent.ask("small", blksize=1468)  # evicted by the next
            assert op_of(await asyncio.to_thread(silent.receive)) == OACK
        silent.ask("nothing")  # replaces it
        await until(lambda: not open_files())
    kinds = [event.kind for event in events if event.kind != "tftp.missing"]
    assert kinds.count("tftp.evicted") == service.counters()["evicted"] == 4
    assert kinds.count("tftp.started") == len(kinds) / 2, "one end for each"
    await service.stop()
    os.close(resolve.dirfd)


def test_every_counter_is_documented(files: Files) -> None:
    text = (
        (Path(__file__).parent.parent / "docs" / "counters.md")
        .read_text()
        .split("\n## TFTP\n")[1]
        .split("\n## ")[0]
    )
    documented = {
        name
        for line in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", line)
    }
    with serving(files) as server:
        assert {*server.counters(), *(f"refused_{reason}" for reason in Reason)} == documented


# --- how often Python is woken ---


REQUESTS = 600
AT_ONCE = 16
"""Wakes that need not be a millisecond apart."""


def test_dense_requests_wake_python_once_for_many() -> None:
    """A wake for each of thousands of requests a second would cost more than they do."""
    (sockets,) = open_sockets(config.Tftp(port=0, threads=1))
    engine = Engine([sockets.listen], sockets.data, Interfaces([(LOOPBACK.index, LOOPBACK.mtu)]))
    thread = threading.Thread(target=engine.run)
    thread.start()
    with ExitStack() as stack:
        stack.callback(sockets.close)
        stack.callback(thread.join)
        stack.callback(engine.halt)
        clients = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(1 + REQUESTS)
        ]
        clients[0].sendto(rrq("alone"), (HOST, sockets.listen.getsockname()[1]))
        assert select.select([engine.fileno()], [], [], 5)[0]
        assert [event.name for event in engine.events()] == [b"alone"]
        wakes, names = 0, []
        before = time.monotonic()
        for number, client in enumerate(clients[1:]):
            client.sendto(rrq(f"name-{number}"), (HOST, sockets.listen.getsockname()[1]))
            if select.select([engine.fileno()], [], [], 0.0001)[0]:
                wakes += 1
                names += [event.name for event in engine.events()]
        milliseconds = (time.monotonic() - before) * 1000
        while len(names) < REQUESTS:
            assert select.select([engine.fileno()], [], [], 5)[0]
            names += [event.name for event in engine.events()]
    assert names == [b"name-%d" % number for number in range(REQUESTS)]
    assert wakes <= AT_ONCE + milliseconds + 1

"""TFTP where the network matters: several interfaces and addresses, narrow paths, full queues, no UDP_SEGMENT."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dhcpkit import Namespace, Wire, need, wires
from tftpkit import (
    ERROR,
    OACK,
    Address,
    Client,
    Files,
    Running,
    TftpError,
    ack,
    error,
    number_of,
    op_of,
    rrq,
    serving,
)

from fastboot.services.tftp import Sockets

DATA = random.Random(1).randbytes(1_000_003)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Two links of the server: s0 with two addresses of one network and one of another, s1 with one."""
    need("ip", "tc")
    with wires(("10.77.0.1/24", "10.77.0.2/24", "10.99.0.1/24"), ("10.78.0.1/24",)) as made:
        for at, own in enumerate((("10.77.0.50/24", "10.99.0.50/24"), ("10.78.0.50/24",))):
            for address in own:
                made.clients[at].ip("address", "add", address, "dev", "c0")
        yield made


@contextmanager
def served(wire: Wire, links: slice = slice(None), **settings: Any) -> Iterator[Running]:
    with serving(
        Files({"f": DATA}), links=wire.links()[links], inside=wire.server.inside(), **settings
    ) as running:
        yield running


@contextmanager
def client_in(namespace: Namespace, server: Address, bind: str = "0.0.0.0") -> Iterator[Client]:
    with namespace.inside():
        client = Client(server, bind=(bind, 0))
    with client:
        yield client


@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize(("at", "asked"), [(0, "10.77.0.1"), (0, "10.77.0.2"), (0, "10.99.0.1"), (1, "10.78.0.1")])
def test_replies_come_from_the_address_that_was_asked(wire: Wire, at: int, asked: str, single_port: bool) -> None:
    """NIC ROMs and EDK2 drop all others: files, and every kind of error."""
    with (
        served(wire, single_port=single_port) as server,
        client_in(wire.clients[at], (asked, server.port)) as client,
    ):
        assert client.fetch("f", blksize=1468, windowsize=16) == DATA
        assert client.peer is not None and client.peer[0] == asked
        data_port = client.peer
        client.send(ack(7), data_port)  # too late: no answer
        with pytest.raises(TftpError, match=r"^1 "):
            client.fetch("nothing")
        assert client.peer[0] == asked
        for packet in (rrq("f", op=2), rrq("f", "mail"), b"\0\1no end"):
            client.send(packet, server_address := (asked, server.port))
            assert op_of(client.receive()) == ERROR
            assert client.peer == server_address
        with client_in(wire.clients[at], (asked, server.port)) as stranger:
            stranger.send(ack(7), data_port)
            assert number_of(stranger.receive()) == 5
            assert stranger.peer == data_port


def test_the_client_sees_which_address_resolve_is_told(wire: Wire) -> None:
    files = Files({"f": b"x"})
    with serving(files, links=wire.links(), inside=wire.server.inside()) as server:
        for at, asked in ((0, "10.77.0.2"), (0, "10.99.0.1"), (1, "10.78.0.1")):
            with client_in(wire.clients[at], (asked, server.port)) as client:
                client.fetch("f")
    assert [str(asker.server) for _, asker in files.asked] == ["10.77.0.2", "10.99.0.1", "10.78.0.1"]
    assert [str(asker.address) for _, asker in files.asked] == ["10.77.0.50", "10.99.0.50", "10.78.0.50"]


def test_other_interfaces_get_silence(wire: Wire) -> None:
    with served(wire, slice(1)) as server:
        with client_in(wire.clients[1], ("10.78.0.1", server.port)) as client:
            client.ask("f")
            client.send(rrq("f", op=2))
            client.send(b"\0\1no end")
            server.counted("foreign_interface", 3)
            client.send(ack(1))
            client.send(b"\0\7\0\0")
            assert client.hears_nothing(0.1)
        with client_in(wire.clients[0], ("10.77.0.1", server.port)) as client:
            assert client.fetch("f", blksize=1468) == DATA
        assert server.counters()["requests"] == 1


@pytest.mark.parametrize("target", ["10.77.0.255", "255.255.255.255"])
def test_a_broadcast_request_is_ignored(wire: Wire, target: str) -> None:
    """RFC 1123 section 4.2.3.5."""
    with served(wire) as server, client_in(wire.clients[0], (target, server.port), "10.77.0.50") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with wire.clients[0].inside():
            wire.clients[0].ip("route", "add", "255.255.255.255", "dev", "c0")
            client.ask("f")
        server.counted("broadcast_request")
        assert client.hears_nothing(0.1)
        assert server.counters()["requests"] == 0


def test_a_block_fits_the_interface_it_leaves_by(wire: Wire) -> None:
    for end, name in ((wire.server, "s1"), (wire.clients[1], "c0")):
        end.ip("link", "set", name, "mtu", "1000")
    with served(wire) as server:
        for at, asked, granted in ((0, "10.77.0.1", "1468"), (1, "10.78.0.1", "968")):
            with client_in(wire.clients[at], (asked, server.port)) as client:
                assert client.fetch("f", blksize=1468, windowsize=4) == DATA
                assert client.oack and client.oack["blksize"] == granted


def test_a_path_narrower_than_the_interface(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    """A route with a small MTU refuses segments: that client's blocks travel in fragments, others' as before."""
    wire.server.ip("route", "add", "10.77.0.50/32", "dev", "s0", "mtu", "700")
    with served(wire) as server:
        for at, asked in ((0, "10.77.0.1"), (1, "10.78.0.1")):
            with client_in(wire.clients[at], (asked, server.port)) as client:
                assert client.fetch("f", blksize=1468, windowsize=16) == DATA
        before = server.counters()
        with client_in(wire.clients[1], ("10.78.0.1", server.port)) as client:
            assert client.fetch("f", blksize=1468, windowsize=16) == DATA
        assert server.counters()["send_failed"] == 0
        blocks = server.counters()["blocks"] - before["blocks"]
        assert blocks >= 682
    assert "segmentation" not in capsys.readouterr().out


def test_no_route_for_a_moment(wire: Wire) -> None:
    with served(wire) as server, client_in(wire.clients[0], ("10.77.0.1", server.port)) as client:
        client.ask("f", blksize=1468, windowsize=4)
        client.receive()
        wire.server.ip("route", "add", "unreachable", "10.77.0.50/32")
        client.send(ack(0))
        server.counted("send_failed", 2)
        wire.server.ip("route", "del", "unreachable", "10.77.0.50/32")
        assert number_of(client.receive(3)) == 1
        client.send(error(0))


def slow_down(wire: Wire, rate: str) -> None:
    shape = ["tc", "qdisc", "replace", "dev", "s0", "root", "tbf", "rate", rate, "burst", "16k", "latency", "2s"]
    subprocess.run(wire.server.command(*shape), check=True, timeout=20)


def small_buffers(sockets: tuple[Sockets, ...]) -> None:
    for each in sockets[0].data:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)


def begin_slowly(clients: list[Client]) -> None:
    """Wait for the third repeat of the OACK: no round trip is seen then (Karn), and timers stay at 2 s."""
    for client in clients:
        client.ask("f", blksize=1468, windowsize=64)
    for client in clients:
        assert [op_of(client.receive(5)) for _ in range(4)] == [OACK] * 4


def blocks(client: Client, count: int) -> list[int]:
    return [number_of(client.receive(5)) for _ in range(count)]


def test_the_rest_of_a_window_goes_as_soon_as_there_is_room(wire: Wire) -> None:
    """And not when the timer comes, which would repeat what was sent of it."""
    slow_down(wire, "20mbit")
    with (
        served(wire, prepare=small_buffers) as server,
        client_in(wire.clients[0], ("10.77.0.1", server.port)) as client,
    ):
        begin_slowly([client])
        client.send(ack(0))
        assert blocks(client, 64) == list(range(1, 65))
        assert server.counters()["socket_full"] > 0
        client.send(error(0))


def test_a_full_socket_forgets_nobody(wire: Wire) -> None:
    slow_down(wire, "20mbit")
    with served(wire, prepare=small_buffers) as server, ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        address = ("10.77.0.1", server.port)
        clients = [stack.enter_context(client_in(wire.clients[0], address)) for _ in range(8)]
        begin_slowly(clients)
        timeouts = server.counters()["timeouts"]
        for client in clients:
            client.send(ack(0))
        assert [blocks(client, 64) for client in clients] == [list(range(1, 65))] * 8
        assert server.counters()["timeouts"] == timeouts
        assert server.counters()["socket_full"] >= 4, "of every data socket"
        for client in clients:
            client.send(error(0))
        server.until(server.is_idle)
        slow_down(wire, "100mbit")
        got = list(pool.map(lambda client: client.fetch("f", blksize=1468, windowsize=16), clients))
        assert got == [DATA] * 8


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

static int segmented(struct msghdr *h) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == 17 && c->cmsg_type == 103)
            return 1;
    return 0;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned n, int flags) {
    int (*real)(int, struct mmsghdr *, unsigned, int) = dlsym(RTLD_NEXT, "sendmmsg");
    for (unsigned i = 0; i < n; i++)
        if (segmented(&messages[i].msg_hdr)) {
            if (i)
                return real(fd, messages, i, flags);
            errno = atoi(getenv("SHIM_ERRNO"));
            return -1;
        }
    return real(fd, messages, n, flags);
}
"""

CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from tftpkit import Files, fetch_through, serving
data = bytes(range(256)) * 4000
with serving(Files({"f": data})) as server, ThreadPoolExecutor(6) as pool:
    windows = (1, 4, 64, 64, 4, 1)
    got = pool.map(lambda n: fetch_through(server.address, "f", blksize=1468, windowsize=n), windows)
    print(json.dumps([list(got), server.counters()]))
"""


@pytest.mark.parametrize(
    ("name", "said"), [("EIO", True), ("EOPNOTSUPP", True), ("EINVAL", False), ("EMSGSIZE", False)]
)
def test_without_udp_segment(tmp_path: Path, name: str, said: bool) -> None:
    """An interface without checksum offload says EIO: it goes on block by block, and says so once. What is one
    path's trouble is not said."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("needs a C compiler")
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c", "-ldl"],
        check=True,
        timeout=60,
    )
    env = os.environ | {
        "LD_PRELOAD": str(tmp_path / "shim.so"),
        "SHIM_ERRNO": str(getattr(errno, name)),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)]),
    }
    child = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    *log, last = child.stdout.splitlines()
    got, counters = json.loads(last)
    assert set(got) == {hashlib.sha256(bytes(range(256)) * 4000).hexdigest()}
    assert counters["send_failed"] == 0
    assert sum("UDP segmentation refused" in line for line in log) == said, child.stdout

"""TFTP where the disk is slow, descriptors are short, the server ends: a process, and what its clients see."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from labkit import FASTBOOT, Lab, Serve, wait_for
from tftpkit import DATA, HOST, OACK, Client, TftpError, ack, error, number_of, op_of, rrq

from fastboot.services.control_client import ControlClient
from fastboot.services.links import IP_PKTINFO

MIB = 1 << 20
PIECE = MIB
"""What is read at once of a file that is not in memory."""
SLOW_SIZE = 6 * MIB + 1
SLOW = random.Random(2).randbytes(SLOW_SIZE)
FAST = random.Random(3).randbytes(2 * MIB)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def tftp_counters(lab: Lab) -> dict[str, int]:
    counters: dict[str, int] = ControlClient(lab.state).get("/status")["services"]["tftp"]["counters"]
    return counters


@dataclass
class Disk:
    """A disk that answers when the gate is open. Every file of SLOW_SIZE octets is on it."""

    preload: Path
    folder: Path

    def words(self, how: str = "") -> tuple[str, ...]:
        """What comes before a command, so that it runs with this disk."""
        gate, log = self.folder / "gate", self.folder / "log"
        return (
            "env", f"LD_PRELOAD={self.preload}", f"SLOW_SIZE={SLOW_SIZE}", f"SLOW_GATE={gate}", f"SLOW_LOG={log}",
            f"SLOW_HOW={how}",
        )  # fmt: skip

    def open_gate(self) -> None:
        (self.folder / "gate").touch()

    def pieces(self) -> list[int]:
        """Octets of every piece that was read."""
        log = self.folder / "log"
        return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    preload = tmp_path / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", preload, source, "-ldl"], check=True)
    return Disk(preload, tmp_path)


def put(lab: Lab, name: str, data: bytes) -> Path:
    path = lab.path.parent / "root" / name
    path.write_bytes(data)
    return path


# --- a disk that is slow


@pytest.mark.parametrize("how", ["", "nfs", "5.10"])
def test_only_who_waits_for_a_slow_disk_notices(lab: Lab, serve: Serve, disk: Disk, how: str) -> None:
    put(lab, "slow", SLOW)
    put(lab, "fast", FAST)
    serve(*disk.words(how))
    with Client((HOST, lab.tftp)) as waiting, Client((HOST, lab.tftp)) as other:
        waiting.ask("slow", blksize=1468, windowsize=4)
        assert op_of(waiting.receive()) == OACK, "no disk is needed to say what was agreed to"
        waiting.send(ack(0))
        assert other.fetch("fast", blksize=1468, windowsize=4) == FAST
        assert waiting.hears_nothing()
        disk.open_gate()
        assert number_of(waiting.receive(20)) == 1
        waiting.send(error(0))
        assert waiting.fetch("slow", blksize=1468, windowsize=16) == SLOW


def test_a_client_that_goes_costs_a_piece_of_the_file(lab: Lab, serve: Serve, disk: Disk) -> None:
    put(lab, "slow", SLOW)
    disk.open_gate()
    serve(*disk.words())
    with Client((HOST, lab.tftp)) as client:
        client.ask("slow", blksize=1468, windowsize=4)
        client.receive()
        client.send(ack(0))
        assert number_of(client.receive()) == 1
        client.send(error(0))
        until(lambda: "tftp.cancelled" in ControlClient(lab.state).get("/status")["events"]["counts"])
        assert 0 < sum(disk.pieces()) <= 2 * PIECE
        assert client.fetch("slow", blksize=1468, windowsize=16) == SLOW
    assert SLOW_SIZE <= sum(disk.pieces()) <= SLOW_SIZE + 4096 * len(disk.pieces())
    assert max(disk.pieces()) <= PIECE + 4096


def test_a_file_cut_short_while_it_is_waited_for(lab: Lab, serve: Serve, disk: Disk) -> None:
    path = put(lab, "slow", SLOW)
    process = serve(*disk.words())
    with Client((HOST, lab.tftp)) as client:
        client.ask("slow", blksize=1468, windowsize=4)
        client.receive()
        client.send(ack(0))
        until(lambda: tftp_counters(lab)["cold"])
        os.truncate(path, 100_000)
        disk.open_gate()
        with pytest.raises(TimeoutError):
            while True:
                packet = client.receive(2)
                if op_of(packet) == 5:
                    break
                client.send(ack(number_of(packet)))
            assert b"changed" in packet
            client.receive(0.2)
        assert wait_for(process, "tftp", "failed")["outcome"] == "changed"
        assert client.fetch("slow") == SLOW[:100_000]


def test_a_bad_disk_is_told_from_a_changed_file(lab: Lab, serve: Serve, disk: Disk) -> None:
    put(lab, "slow", SLOW)
    put(lab, "fast", FAST)
    disk.open_gate()
    process = serve(*disk.words("broken"))
    with Client((HOST, lab.tftp)) as client:
        with pytest.raises(TftpError, match=r"^0 file can not be read"):
            client.fetch("slow", blksize=1468)
        assert wait_for(process, "tftp", "failed")["outcome"] == "broken"
        assert client.fetch("fast", blksize=1468, windowsize=16) == FAST


def test_the_server_ends_whatever_the_disk_does(lab: Lab, serve: Serve, disk: Disk) -> None:
    put(lab, "slow", SLOW)
    process = serve(*disk.words())
    with Client((HOST, lab.tftp)) as client:
        client.ask("slow")
        until(lambda: tftp_counters(lab)["cold"])
        process.send_signal(signal.SIGTERM)
        wait_for(process, "server", "stopping")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM


# --- descriptors


def test_without_descriptors_requests_wait_and_transfers_go_on(lab: Lab, serve: Serve) -> None:
    """Silence makes every firmware ask again; an ERROR makes it give up."""
    files = {f"file-{number}": SLOW[number : number + 5000] for number in range(240)}
    for name, data in files.items():
        put(lab, name, data)
    process = serve("prlimit", "--nofile=256:256")
    with ExitStack() as stack:
        clients = {name: stack.enter_context(Client((HOST, lab.tftp))) for name in files}
        for name, client in clients.items():
            client.ask(name, blksize=1000)
        entry = wait_for(process, "tftp", "busy")
        assert entry["text"].startswith("Too many open files")
        assert "LimitNOFILE" in entry["text"]
        assert entry["level"] == "warning"
        for name, client in clients.items():
            assert client.fetch(name, blksize=1000, retry=0.3) == files[name]
    until(lambda: psutil.Process(process.pid).num_fds() < 70)
    counters = tftp_counters(lab)
    assert counters["refused_busy"] > 0
    assert (
        sum(value for name, value in counters.items() if name.startswith("refused_")) == counters["refused_busy"]
    )


def spare() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("service", ["http", "ftp"])
@pytest.mark.parametrize("works", [False, True], ids=["idle", "at-work"])
def test_clients_of_http_and_ftp_leave_descriptors_for_tftp(
    lab: Lab, serve: Serve, service: str, works: bool
) -> None:
    """300 connections where 270 files may be open: some are turned away, and all machines get their loaders."""
    put(lab, "fast", FAST)
    put(lab, "large", FAST * 8)
    http = spare()
    lab.path.write_text(lab.path.read_text() + f"[http]\nport = {http}\nmax_per_address = 1000\n")
    lab.edit("[ftp]\n", "[ftp]\nmax_per_address = 1000\n")
    process = serve("prlimit", "--nofile=270:270")
    port, answer, asks = (
        (http, b"HTTP/1.1 503", b"GET /large HTTP/1.1\r\nHost: boot\r\n\r\n")
        if service == "http"
        else (lab.ftp, b"421 ", b"USER ftp\r\nPASS x\r\nTYPE I\r\nPASV\r\n")
    )
    with ExitStack() as stack:
        # The second half of them comes when the first is at work.
        crowd = []
        for number in range(300):  # of thirty addresses, for one has half of all at most
            source = (f"127.0.0.{2 + number % 30}", 0)
            crowd.append(each := stack.enter_context(socket.create_connection((HOST, port), 10, source)))
            if works:
                with suppress(OSError):
                    each.sendall(asks)
        for number in range(20):
            with Client((HOST, lab.tftp)) as client:
                name = f"own-{number}"
                put(lab, name, SLOW[number : number + 5000])
                assert client.fetch(name, blksize=1000) == SLOW[number : number + 5000]
        said = turned_away(crowd, answer)
        assert 100 < len(said) < 300
        if service == "http":
            assert all(b"\r\nRetry-After: 5\r\n" in each for each in said)
        assert psutil.Process(process.pid).num_fds() < 240
        assert tftp_counters(lab).get("refused_busy", 0) == 0
        counters = ControlClient(lab.state).get("/status")["services"][service]["counters"]
        assert counters["refused_too_few_descriptors"] >= len(said)
    until(lambda: psutil.Process(process.pid).num_fds() < 100)
    with socket.create_connection((HOST, port), 10) as late:
        if service == "http":
            late.sendall(b"GET /file HTTP/1.1\r\nHost: boot\r\n\r\n")
        assert late.recv(4096).startswith(b"HTTP/1.1 200" if service == "http" else b"220 ")


def turned_away(crowd: list[socket.socket], answer: bytes) -> list[bytes]:
    """Return what those were told that were turned away."""
    said = []
    for each in crowd:
        each.settimeout(0.01)
        with suppress(OSError):
            if (head := each.recv(2048)).startswith(answer):
                said.append(head)
    return said


def test_too_few_descriptors_are_told_at_the_start(lab: Lab, serve: Serve) -> None:
    lab.path.write_text(lab.path.read_text() + f"[http]\nport = {spare()}\n")
    command = ["prlimit", "--nofile=1024:1024", *FASTBOOT]
    checked = subprocess.run([*command, "check", "-c", lab.path], capture_output=True, text=True, timeout=60)
    process = subprocess.Popen([*command, "serve", "-c", lab.path], stderr=subprocess.PIPE, text=True)
    try:
        entry = wait_for(process, "server", "limit")
    finally:
        process.kill()
        process.communicate()
    assert entry["level"] == "warning"
    assert entry["text"] == (
        "ftp.max_sessions and http.max_connections: 26512 open files may be needed, 1024 are allowed: of more than"
        " 512 for clients of FTP and HTTP, half of them for one address, the last are turned away (421, 503);"
        " raise LimitNOFILE of the service"
    )
    assert entry["text"] in " ".join(checked.stdout.split())


# --- many at once


class Crowd:
    """Machines of 127.1.0.0/16, one for each address and socket: no process may open a socket for each of them."""

    def __init__(self, sockets: int, server: tuple[str, int]) -> None:
        self.server = server
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(sockets)]
        self.peers: dict[tuple[int, int], tuple[str, int]] = {}
        self.blocks: dict[tuple[int, int], int] = {}
        for each in self.sockets:
            each.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            each.settimeout(30)
            each.bind(("", 0))

    def close(self) -> None:
        for each in self.sockets:
            each.close()

    def send(self, number: int, at: int, packet: bytes) -> None:
        own = struct.pack("=iII", 0, socket.htonl(0x7F010000 + number), 0)
        to = self.peers.get((number, at), self.server)
        self.sockets[at].sendmsg([packet], [(socket.IPPROTO_IP, IP_PKTINFO, own)], 0, to)

    def wait_for(self, block: int, number: int, at: int) -> None:
        """Wait until a machine has a block, whoever else's come meanwhile."""
        while self.blocks.get((number, at), 0) < block:
            packet, (control, *_), _, _ = self.sockets[at].recvmsg(2048, 64)
            to = socket.ntohl(struct.unpack("=iII", control[2])[2]) - 0x7F010000
            if op_of(packet) == DATA:
                self.blocks[to, at] = max(number_of(packet), self.blocks.get((to, at), 0))

    def open(self, numbers: range) -> None:
        """Begin a transfer at every address and socket, and be heard of."""
        for number in numbers:
            for at in range(len(self.sockets)):
                self.send(number, at, rrq("fast", blksize=1408, tsize=0))
            for at, each in enumerate(self.sockets):
                while (number, at) not in self.peers:
                    packet, (control, *_), _, peer = each.recvmsg(2048, 64)
                    to = struct.unpack("=iII", control[2])[2]
                    if op_of(packet) == OACK:
                        self.peers[socket.ntohl(to) - 0x7F010000, at] = peer
                self.send(number, at, ack(0))


def test_one_call_sends_what_is_due_to_all_who_acknowledged(lab: Lab, serve: Serve) -> None:
    put(lab, "fast", FAST)
    lab.edit("[tftp]", "[tftp]\nthreads = 1")
    process = serve()
    crowd = Crowd(12, (HOST, lab.tftp))
    try:
        crowd.open(range(1, 5))
        before = tftp_counters(lab)
        for block in range(1, 9):
            for number, at in crowd.peers:
                crowd.wait_for(block, number, at)
            process.send_signal(signal.SIGSTOP)  # so that all of them wait to be read at once
            for number, at in crowd.peers:
                crowd.send(number, at, ack(block))
            process.send_signal(signal.SIGCONT)
        after = tftp_counters(lab)
    finally:
        crowd.close()
    blocks, batches = (after[name] - before[name] for name in ("blocks", "batches"))
    assert blocks >= 7 * 48
    assert blocks / batches > 6, "48 clients on four sockets"


@pytest.mark.long
def test_twenty_thousand_transfers_are_open_and_cost_two_kibibytes_each(lab: Lab, serve: Serve) -> None:
    put(lab, "fast", FAST)
    server = psutil.Process(serve().pid)
    crowd = Crowd(200, (HOST, lab.tftp))
    try:
        crowd.open(range(1, 6))
        before, descriptors = server.memory_info().rss, server.num_fds()
        crowd.open(range(6, 101))
        each = (server.memory_info().rss - before) / (95 * 200)
        transfers = ControlClient(lab.state).get("/status")["transfers"]
        print(f"{len(transfers)} transfers, {each:.0f} octets each")
        assert len(transfers) == 20_000
        assert each < 2048
        assert server.num_fds() == descriptors
        with Client((HOST, lab.tftp)) as one_more:
            assert one_more.fetch("fast", blksize=1408) == FAST
        for number, at in crowd.peers:
            crowd.send(number, at, error(0))
        until(lambda: not ControlClient(lab.state).get("/status")["transfers"], 60)
    finally:
        crowd.close()


# --- the end


def test_what_is_under_way_when_the_server_ends_arrives_whole(lab: Lab, serve: Serve) -> None:
    put(lab, "fast", FAST)
    process = serve()
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        clients = [stack.enter_context(Client((HOST, lab.tftp))) for _ in range(8)]
        going = [pool.submit(client.fetch, "fast", blksize=1024) for client in clients]
        until(lambda: all(client.blocks > 10 for client in clients))
        process.send_signal(signal.SIGTERM)
        assert all(each.result(60) == FAST for each in going)
    assert process.wait(40) == 0

"""TFTP: many small requests, as loaders make them while they look for their files.

    .venv/bin/python -m bench.probes            or, beside dnsmasq:      ... --peers

PXELINUX, GRUB and shim ask for a dozen names of which most are missing, then for small files. First a stream: so
many requests a second, each at its appointed time, and how long after that its answer came; a hit counts when its
last block was acknowledged. Then a burst: so many machines ask at once, each once, and none of them asks again.
Clients and server are in namespaces of their own, on the same machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import socket
import statistics
import struct
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from bench.host import Host, cpu_seconds, running
from bench.tftp import CLIENT, SERVER, servers
from fastboot.lab import namespace

UUID, MAC, ADDRESS = "4c4c4544-0042-3510-8053-b4c04f4e4d31", "01-52-54-00-12-34-56", "0A630002"
HITS = {"shim/revocations.txt": 300, "pxelinux.cfg/common": 900, "grub/x86_64-efi/command.lst": 4000}
"""Small files that are there, and their sizes."""
MISSES = (
    *(f"pxelinux.cfg/{name}" for name in (UUID, MAC, *(ADDRESS[:size] for size in range(8, 0, -1)))),
    *(f"grub/grub.cfg-{name}" for name in (MAC, *(ADDRESS[:size] for size in range(8, 0, -1)))),
    *(f"shim/shim_certificate_{number}.efi" for number in range(10)),
)
NAMES = [*MISSES, *(3 * list(HITS))]
OPTIONS = b"\0octet\0tsize\x000\0blksize\x001408\0"
PATIENCE = 3.0
"""Seconds until a request counts as lost."""


@dataclass(slots=True)
class Machine:
    """One socket that asks for one file at a time, as plain as they come."""

    socket: socket.socket
    due: float = 0.0
    peer: tuple[str, int] | None = None
    blksize: int = 512

    def ask(self, name: str, due: float) -> None:
        self.due, self.peer, self.blksize = due, None, 512
        self.socket.sendto(b"\0\x01" + name.encode() + OPTIONS, (SERVER, 69))

    def hear(self) -> bool:
        """Take one packet; return whether the request has its answer."""
        packet, peer = self.socket.recvfrom(2048)
        op, number = struct.unpack_from("!HH", packet)
        if op == 6:
            self.blksize = 1408
            number = 0
        elif op == 5:
            return True
        self.socket.sendto(struct.pack("!HH", 4, number), peer)
        return op == 3 and len(packet) < self.blksize + 4


@dataclass
class Fleet:
    machines: list[Machine]
    poll: select.epoll = field(default_factory=select.epoll)
    took: list[float] = field(default_factory=list)
    by_fd: dict[int, Machine] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int) -> Fleet:
        fleet = cls([])
        for _ in range(count):
            each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            each.bind((CLIENT, 0))
            fleet.machines.append(Machine(each))
            fleet.poll.register(each, select.EPOLLIN)
        fleet.by_fd = {each.socket.fileno(): each for each in fleet.machines}
        return fleet

    def close(self) -> None:
        self.poll.close()
        for each in self.machines:
            each.socket.close()

    def hear(self, wait: float) -> list[Machine]:
        """Return the machines whose request was answered."""
        answered = []
        for fd, _ in self.poll.poll(wait):
            machine = self.by_fd[fd]
            with suppress(BlockingIOError):
                if machine.due and machine.hear():
                    self.took.append(time.monotonic() - machine.due)
                    machine.due = 0.0
                    answered.append(machine)
        return answered

    def stream(self, rate: int, seconds: float) -> int:
        """Ask at a constant rate, whatever the answers. Returns how many requests were sent."""
        idle, sent, began = deque(self.machines), 0, time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            while idle and began + sent / rate <= now:
                idle.popleft().ask(NAMES[sent % len(NAMES)], began + sent / rate)
                sent += 1
            idle.extend(self.hear(max(0.0, began + sent / rate - time.monotonic()) if idle else 0.01))
        self.wait(sent)
        return sent

    def burst(self) -> int:
        for machine, name in zip(self.machines, cycle(NAMES), strict=False):
            machine.ask(name, time.monotonic())
        self.wait(len(self.machines))
        return len(self.machines)

    def wait(self, sent: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.took) < sent and time.monotonic() < end:
            self.hear(0.05)


def figures(sent: int, took: list[float], cpu: float) -> dict[str, float]:
    took = sorted(took) or [PATIENCE]
    return {
        "requests": sent,
        "lost": sent - len(took),
        "p50_ms": 1e3 * statistics.median(took),
        "p99_ms": 1e3 * took[int(0.99 * (len(took) - 1))],
        "worst_ms": 1e3 * took[-1],
        "cpu_us": 1e6 * cpu / sent,
    }


def measure(pid: int, settings: argparse.Namespace) -> dict[str, dict[str, float]]:
    out = {}
    for kind, count in (("stream", 2000), ("burst", settings.burst)):
        fleet = Fleet.of(count)
        try:
            before = cpu_seconds(pid)
            sent = fleet.stream(settings.rate, settings.seconds) if kind == "stream" else fleet.burst()
            out[kind] = figures(sent, fleet.took, cpu_seconds(pid) - before)
        finally:
            fleet.close()
    return out


def until_served() -> None:
    fleet = Fleet.of(1)
    end = time.monotonic() + 20
    while not fleet.took:
        if time.monotonic() > end:
            raise SystemExit("the server does not answer")
        fleet.machines[0].ask(NAMES[0], time.monotonic())
        fleet.hear(0.2)
    fleet.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=5000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--burst", type=int, default=1000, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="dnsmasq too")
    settings = parser.parse_args()
    namespace.enter()
    host = Host(f"{CLIENT}/24", f"{SERVER}/24")
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="fastboot-bench-") as folder:
            work = Path(folder)
            work.chmod(0o755)
            root = work / "root"
            for name, size in HITS.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(os.urandom(size))
            for _ in range(settings.rounds):
                for name, command in servers(work, root).items():
                    if name == "fastboot" or settings.peers:
                        with running(host, command, work / f"{name}.log") as pid:
                            until_served()
                            rounds.setdefault(name, []).append(measure(pid, settings))
    finally:
        host.close()
    report(rounds, settings)


def report(rounds: dict[str, list[dict[str, dict[str, float]]]], settings: argparse.Namespace) -> None:
    heads = f"{'p50 ms':>8} {'p99 ms':>8} {'worst ms':>9} {'CPU us':>7}"
    print(f"{'server':10} {'what':8} {'requests':>9} {'lost':>6} {heads}")
    for name, each in rounds.items():
        for kind in ("stream", "burst"):
            middle = {key: statistics.median(one[kind][key] for one in each) for key in each[0][kind]}
            print(
                f"{name:10} {kind:8} {middle['requests']:9.0f} {middle['lost']:6.0f} {middle['p50_ms']:8.2f} "
                f"{middle['p99_ms']:8.2f} {middle['worst_ms']:9.2f} {middle['cpu_us']:7.1f}"
            )
    machine = {"kernel": platform.release(), "cores": os.cpu_count()}
    print(json.dumps({"settings": vars(settings), "machine": machine, "rounds": rounds}))


if __name__ == "__main__":
    main()

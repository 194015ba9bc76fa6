"""A second machine, as far as the network can tell, to run servers on, and what they cost there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
KEEPER = """
import ctypes, os, signal, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
server = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
while os.wait()[0] != server.pid:
    pass
"""
"""Runs a server and adopts what that leaves behind: vsftpd's sessions outlive their parents, and would be counted
nowhere."""


class Host:
    """A second network namespace, joined to ours by a veth pair: `bench0` here, `bench1` there.

    Enter a namespace of your own first (`fastboot.lab.namespace.enter`). It goes when the process does.
    """

    def __init__(self, ours: str, theirs: str, rate: str | None = None) -> None:
        """Addresses with their prefixes. `rate` shapes what the server sends, with a switch's small buffer (4 MB
        at 1 Gb/s is 32 ms)."""
        self.holder = subprocess.Popen([*DIES_WITH_US, "unshare", "--net", "sleep", "infinity"])
        here = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{self.holder.pid}/ns/net").readlink() == here:
            time.sleep(0.01)
        ip = ["ip"]
        for command in (
            [*ip, "link", "set", "lo", "up"],
            [*ip, "link", "add", "bench0", "type", "veth", "peer", "name", "bench1"],
            [*ip, "link", "set", "bench1", "netns", str(self.holder.pid)],
            [*ip, "address", "add", ours, "dev", "bench0"],
            [*ip, "link", "set", "bench0", "up"],
            self.inside([*ip, "link", "set", "lo", "up"]),
            self.inside([*ip, "address", "add", theirs, "dev", "bench1"]),
            self.inside([*ip, "link", "set", "bench1", "up"]),
        ):
            subprocess.run(command, check=True)
        if rate:
            shape = ["tc", "qdisc", "add", "dev", "bench1", "root", "tbf", "rate", rate, "burst", "128k"]
            subprocess.run(self.inside([*shape, "limit", "4mb"]), check=True)

    def inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command]

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


@contextlib.contextmanager
def running(
    host: Host, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server inside the host; give the pid of its keeper, for `cpu_seconds` and `family`."""
    keeper = [*DIES_WITH_US, sys.executable, "-c", KEEPER]
    with log.open("ab") as out:
        child = subprocess.Popen(
            [*keeper, *DIES_WITH_US, *host.inside(command)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def family(pid: int) -> Iterator[Path]:
    """Yield /proc/PID of what `running` started and of all its descendants."""
    process = Path(f"/proc/{pid}")
    yield process
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in (process / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def cpu_seconds(pid: int) -> float:
    """Sum what the scheduler charged to a server and its descendants, user and kernel: of every thread
    (nanoseconds, /proc/PID/task/*/schedstat) and of the children that ended (ticks, proc(5)). A thread that ended
    before its process counts no more."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ended = (process / "stat").read_text().rpartition(")")[2].split()[13:15]
            total += sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
            for task in (process / "task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total

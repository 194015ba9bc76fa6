"""A second machine, as far as the network can tell, to run servers on, and what they cost there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import groups

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
CPUCLOCK_SCHED = 2
"""linux/posix-timers.h: of the clocks that every process has, the one of nanoseconds on a processor."""
KEEPER = """
import ctypes, os, signal, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
if sys.argv[1]:
    with open(sys.argv[1] + "/cgroup.procs", "w") as group:
        group.write("0")
server = subprocess.Popen(sys.argv[2:])
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

    def __init__(self, ours: str, theirs: str, rate: str | None = None, *, offload: bool = True) -> None:
        """Addresses with their prefixes. `rate` shapes what the server sends, with a switch's small buffer (4 MB
        at 1 Gb/s is 32 ms). Without `offload`, what UDP_SEGMENT puts together is cut by the server's kernel, as
        for a network card that can not do it."""
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
        if not offload:
            subprocess.run(self.inside(["ethtool", "-K", "bench1", "tx-udp-segmentation", "off"]), check=True)
        if rate:
            shape = ["tc", "qdisc", "add", "dev", "bench1", "root", "tbf", "rate", rate, "burst", "128k"]
            subprocess.run(self.inside([*shape, "limit", "4mb"]), check=True)

    def inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command]

    def sent(self) -> tuple[int, int]:
        """Return how many packets its IPv4 has sent, and their octets. What is cut up later counts as one."""
        counters = {}
        for name in ("snmp", "netstat"):
            lines = Path(f"/proc/{self.holder.pid}/net/{name}").read_text().splitlines()
            for head, values in zip(lines[::2], lines[1::2], strict=True):
                counters.update(zip(head.split(), values.split(), strict=True))
        return int(counters["OutRequests"]), int(counters["OutOctets"])

    def close(self) -> None:
        # The namespace goes some time after its last process, and its interface's name may be wanted at once.
        subprocess.run(["ip", "link", "delete", "bench0"], check=True)
        self.holder.kill()
        self.holder.wait()


@contextlib.contextmanager
def running(
    host: Host, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server inside the host; give the pid of its keeper, for `cpu_seconds` and `family`."""
    group = groups.make()
    keeper = [*DIES_WITH_US, sys.executable, "-c", KEEPER, str(group or "")]
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
        if group:
            groups.end(group)


def family(pid: int) -> Iterator[Path]:
    """Yield /proc/PID of what `running` started and of all its descendants."""
    process = Path(f"/proc/{pid}")
    yield process
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in (process / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def cpu_seconds(pid: int) -> float:
    """Return what the scheduler charged to a server and its descendants, user and kernel, ended ones too. Where
    `running` could make no control group, children that ended count in ticks, and only if somebody waited."""
    if group := groups.of(pid):
        return groups.cpu_seconds(group)
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(OSError):
            ended = (process / "stat").read_text().rpartition(")")[2].split()[13:15]
            total += sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
            total += time.clock_gettime((~int(process.name) << 3) | CPUCLOCK_SCHED)
    return total


def memory(pid: int) -> int:
    """Return the octets that a server and its children have in memory for themselves, files left out (PSS)."""
    total = 0
    for process in family(pid):
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss_Anon:\s+(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) << 10 if found else 0
    return total

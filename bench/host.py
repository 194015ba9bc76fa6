"""A second machine, as far as the network can tell, to run servers on, and what they cost there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


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
    """Run a server inside the host; setpriv and nsenter exec it, so the child's pid is the server's."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            [*DIES_WITH_US, *host.inside(command)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
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


def cpu_seconds(pid: int) -> float:
    """Sum what the scheduler charged to every thread of a process and of its children, user and kernel
    (nanoseconds, /proc/PID/task/*/schedstat). A thread that has ended counts no more."""
    total, processes = 0, [pid]
    while processes:
        for task in Path(f"/proc/{processes.pop()}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text().split()[0])
                processes += map(int, (task / "children").read_text().split())
    return total / 1e9

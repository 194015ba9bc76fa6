"""Control groups (version 2): they count the CPU of all that a server started, also of children that nobody waited
for, as those of tftpd-hpa."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from pathlib import Path

PREFIX = "fastboot-bench-"


def top() -> Path | None:
    """Return where the groups are."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


def of(pid: int, name: str = PREFIX) -> Path | None:
    """Return the group of a process if it is one of those made here."""
    found = re.search(rf"^0::/(.*{name}.*)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
    place = top()
    return place / found[1] if found and place else None


def make() -> Path | None:
    """Make a group, which a process joins by writing 0 to its `cgroup.procs`: before it starts others, which then
    belong to it too. None where we may not: without root."""
    ours = of(os.getpid(), "")
    if ours is None:
        return None
    try:
        group = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ours))
    except OSError:
        return None
    if os.access(group / "cgroup.procs", os.W_OK):
        return group
    group.rmdir()
    return None


def end(group: Path) -> None:
    """End what is left in a group, and the group. Raises OSError where that can not be done within ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:  # busy while the last one is on its way out
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def cpu_seconds(group: Path) -> float:
    found = re.search(r"^usage_usec (\d+)", (group / "cpu.stat").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1e6

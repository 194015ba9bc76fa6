"""The processors while a morning is played: the server's, and those of the simulated machines."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at `at` seconds. `busiest` is the share of its time that the server's busiest thread, `thread`, ran
    or waited for a processor, `own` that of the simulated machines; `server`: the processors that it took."""

    at: float
    running: int
    busiest: float
    thread: str
    server: float
    own: float


@dataclass(frozen=True, slots=True)
class Spent:
    """The seconds that a thread ran, and those that it waited for a processor."""

    name: str
    ran: float
    waited: float


@dataclass(slots=True)
class Watch:
    """Looks at the server, where its process `pid` is here, and at ourselves while the machines are under way."""

    pid: int | None
    samples: list[Sample] = field(default_factory=list)
    dropped: int = 0
    """Packets that the server's UDP sockets had no room for."""
    began: float = field(default_factory=time.monotonic)
    _then: tuple[float, dict[str, Spent], dict[str, Spent]] | None = None

    def look(self, running: int) -> None:
        """Take a sample."""
        now, server, own = time.monotonic(), (self.pid and spent_by(self.pid)) or {}, spent_by(os.getpid())
        if self._then:
            past, server_then, own_then = self._then
            took = [_since(each, server_then.get(task)) for task, each in server.items()]
            busiest = max(took, key=lambda each: each.ran + each.waited, default=Spent("", 0, 0))
            ours = max((_since(each, own_then.get(task)) for task, each in own.items()), key=lambda each: each.ran)
            wall = now - past
            self.samples.append(
                Sample(
                    now - self.began,
                    running,
                    (busiest.ran + busiest.waited) / wall,
                    busiest.name,
                    sum(each.ran for each in took) / wall,
                    (ours.ran + ours.waited) / wall,
                )
            )
        self._then = now, server, own

    def end(self) -> None:
        """Take what is told at the end only."""
        with suppress(OSError):
            lines = Path(f"/proc/{self.pid}/net/udp").read_text().splitlines()[1:]
            self.dropped = sum(int(line.split()[-1]) for line in lines)


def spent_by(pid: int) -> dict[str, Spent]:
    """Return what every thread of a process has spent, user and kernel."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            ran, waited, _ = (task / "schedstat").read_text().split()
            found[task.name] = Spent((task / "comm").read_text().strip(), int(ran) / 1e9, int(waited) / 1e9)
    return found


def _since(now: Spent, then: Spent | None) -> Spent:
    return Spent(now.name, now.ran - then.ran, now.waited - then.waited) if then else now

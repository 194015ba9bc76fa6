"""What a rehearsal found: figures of the machines and the server, and what held the morning up."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastboot.lab.morning import STAGES, Machine, Stage

BUSY: Final = 0.85
"""The share of its time from which on a thread, or a link, is at its limit."""


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
    """Looks at the server and at ourselves while the machines are under way."""

    pid: int
    samples: list[Sample] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _then: tuple[float, dict[str, Spent], dict[str, Spent]] | None = None

    def look(self, running: int) -> None:
        """Take a sample."""
        now, server, own = time.monotonic(), spent_by(self.pid), spent_by(os.getpid())
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

    def dropped(self) -> int:
        """Return how many packets the server's UDP sockets had no room for."""
        with suppress(OSError):
            lines = Path(f"/proc/{self.pid}/net/udp").read_text().splitlines()[1:]
            return sum(int(line.split()[-1]) for line in lines)
        return 0


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


@dataclass(frozen=True, slots=True)
class Tally:
    """A morning that is over. `link`: bits per second of the links, where they have a limit. `counters`: those of
    the server's DHCP that tell why it was silent."""

    machines: Sequence[Machine]
    flow: Sequence[int]
    samples: Sequence[Sample]
    link: int | None
    lost: int
    server_dropped: int
    own_dropped: int
    counters: Mapping[str, int]

    @property
    def booted(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.booted]

    @property
    def failed(self) -> list[Machine]:
        return [machine for machine in self.machines if not machine.booted]

    @property
    def seconds(self) -> float:
        """From the first power-on to the end of the last machine."""
        ends = [machine.steps[-1].ended for machine in self.machines if machine.steps]
        starts = [machine.switched_on for machine in self.machines if machine.switched_on]
        return (max(ends) - min(starts)) / 1e9 if ends else 0.0

    @property
    def octets(self) -> int:
        return sum(self.flow)

    @property
    def best_second(self) -> int:
        """The most octets that came in one second."""
        return max((sum(self.flow[at : at + 10]) for at in range(max(1, len(self.flow) - 9))), default=0)

    def stages(self) -> dict[Stage, dict[str, float]]:
        """Return p50, p99 and the worst of the seconds that machines spent in each stage."""
        found = {}
        for stage in STAGES:
            spent = sorted(took for machine in self.machines if (took := machine.took(stage)) is not None)
            if spent:
                found[stage] = {
                    "machines": len(spent),
                    "p50": round(statistics.median(spent), 3),
                    "p99": round(spent[min(int(len(spent) * 0.99), len(spent) - 1)], 3),
                    "worst": round(spent[-1], 3),
                }
        return found

    def limits(self) -> list[str]:
        """Return what held the machines up, the most likely first."""
        found = []
        busy = [sample for sample in self.samples if sample.running]
        if self.link and (share := 8 * self.best_second / self.link) > BUSY:
            found.append(f"the link: files took {share:.0%} of its {self.link / 1e9:g} Gb/s in the best second")
        hot = [sample for sample in busy if sample.busiest > BUSY]
        if len(hot) * 4 > len(busy):
            name = Counter(sample.thread for sample in hot).most_common(1)[0][0]
            share = statistics.median(sample.busiest for sample in hot)
            found.append(f"the server's processor: its thread {name} ran or waited for it {share:.0%} of the time")
        if self.server_dropped:
            found.append(f"the server's sockets: {self.server_dropped} packets found no room (net.core.rmem_max)")
        own = statistics.median(sample.own for sample in busy) if busy else 0.0
        if own > BUSY or self.own_dropped:
            found.append(
                f"the simulated machines themselves: they ran or waited for a processor {own:.0%} of the time"
                f" and dropped {self.own_dropped} packets; beside real ones the server can do more"
            )
        if self.lost:
            again = sum(machine.again for machine in self.machines)
            found.append(f"loss: {self.lost} packets lost on purpose, {again} blocks came again or in disorder")
        return found or ["the machines' own pace: waits of their firmware, and one block or window at a time"]

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON knows it; times in seconds."""
        slowest = max(self.booted, key=lambda machine: machine.seconds, default=None)
        return {
            "machines": len(self.machines),
            "booted": len(self.booted),
            "results": dict(Counter(machine.result for machine in self.booted)),
            "seconds": round(self.seconds, 3),
            "slowest": story(slowest) if slowest else None,
            "stages": self.stages(),
            "octets": self.octets,
            "octets_a_second": round(self.octets / self.seconds) if self.seconds else 0,
            "best_second": self.best_second,
            "flow": list(self.flow),
            "limits": self.limits(),
            "server_cpu": [round(sample.server, 2) for sample in self.samples],
            "server_dropped": self.server_dropped,
            "own_dropped": self.own_dropped,
            "lost": self.lost,
            "silence": dict(self.counters),
            "failed": [story(machine) for machine in self.failed],
            "boot_seconds": [round(machine.seconds, 3) for machine in self.booted],
        }


def story(machine: Machine) -> dict[str, Any]:
    """Return what a machine did, step by step; times since it was switched on."""
    return {
        "name": machine.name,
        "kind": machine.kind,
        "mac": machine.mac.hex(":"),
        "address": str(machine.address) if machine.address else None,
        "seconds": round(machine.seconds, 3),
        "result": machine.result or None,
        "stopped": machine.stopped,
        "fault": machine.fault or None,
        "steps": [
            {
                "at": round((step.began - machine.switched_on) / 1e9, 3),
                "took": round((step.ended - step.began) / 1e9, 3),
                "stage": step.stage,
                "what": step.what,
                "octets": step.octets,
            }
            for step in machine.steps
        ],
    }

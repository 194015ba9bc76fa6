"""What a rehearsal found: figures of the machines and the server, and what held the morning up."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from fastboot.lab.rehearsal.kinds import KINDS
from fastboot.lab.rehearsal.machine import STAGES, Machine, Stage
from fastboot.lab.rehearsal.watch import Watch
from fastboot.watch.log import printable
from fastboot.wording import counted

BUSY: Final = 0.85
"""The share of its time from which on a thread, or a link, is at its limit."""
_GROUPS, _LAST_STEPS = 5, 8


@dataclass(frozen=True, slots=True)
class Report:
    """A morning that is over. `link`: bits per second of the links, where they have a limit. `counters`: those of
    the server's DHCP that tell why it was silent. `packages`: what was assumed of them."""

    machines: Sequence[Machine]
    flow: Sequence[int]
    watch: Watch
    link: int | None
    lost: int
    own_dropped: int
    counters: Mapping[str, int] = field(default_factory=dict)
    packages: Sequence[str] = ()

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
        busy = [sample for sample in self.watch.samples if sample.running]
        if self.link and (share := 8 * self.best_second / self.link) > BUSY:
            found.append(f"the link: files took {share:.0%} of its {self.link / 1e9:g} Gb/s in the best second")
        hot = [sample for sample in busy if sample.busiest > BUSY]
        if len(hot) * 4 > len(busy):
            name = Counter(sample.thread for sample in hot).most_common(1)[0][0]
            share = statistics.median(sample.busiest for sample in hot)
            found.append(f"the server's processor: its thread {name} ran or waited for it {share:.0%} of the time")
        if dropped := self.watch.dropped:
            found.append(f"the server's sockets: {dropped} packets found no room (net.core.rmem_max)")
        own = statistics.median(sample.own for sample in busy) if busy else 0.0
        if own > BUSY or self.own_dropped:
            found.append(
                f"the simulated machines themselves: they ran or waited for a processor {own:.0%} of the time"
                f" and dropped {self.own_dropped} packets; beside real ones the server can do more"
            )
        if self.lost:
            again = sum(machine.again for machine in self.machines)
            found.append(f"loss: {self.lost} packets lost on purpose, {again} blocks came again or in disorder")
        pace = "the machines' own pace: waits of their firmware, and one block or window at a time"
        return found or [pace if self.watch.pid else f"{pace}; or the server, which can not be seen from here"]

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
            "packages": list(self.packages),
            "server_cpu": [round(sample.server, 2) for sample in self.watch.samples],
            "server_dropped": self.watch.dropped,
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


def through(report: Report) -> str:
    """Say how many machines booted, and in what time."""
    machines = counted(len(report.machines), "machine")
    return f"{len(report.booted)} of {machines} booted in {report.seconds:.1f} s"


def show(report: Report, console: Console) -> None:
    """Print the report."""
    booted = sorted(report.booted, key=lambda machine: machine.seconds)
    console.print(
        through(report) + (f"; the slowest, {_who(booted[-1])}, took {booted[-1].seconds:.1f} s" if booted else "")
    )
    for result, count in Counter(machine.result for machine in booted).most_common():
        console.print(f"  {count} came to: {printable(result)}")
    table = Table("stage", "machines", "p50", "p99", "worst", box=None, pad_edge=False)
    for stage, figures in report.stages().items():
        seconds = [f"{figures[name]:.2f} s" for name in ("p50", "p99", "worst")]
        table.add_row(stage, f"{figures['machines']:.0f}", *seconds)
    console.print(table)
    rate = report.octets / report.seconds if report.seconds else 0
    console.print(
        f"{report.octets / 1e6:,.0f} MB of files, {rate / 1e6:,.1f} MB/s on average,"
        f" {report.best_second / 1e6:,.1f} MB in the best second"
    )
    for text in report.packages:
        console.print(f"packages: {printable(text)}")
    for limit in report.limits():
        console.print(f"what held it up: {limit}")
    _show_failed(report, console)


def _show_failed(report: Report, console: Console) -> None:
    groups: dict[tuple[str, str], list[Machine]] = {}
    for machine in report.failed:
        groups.setdefault((machine.stopped or "", machine.fault), []).append(machine)
    for (stage, fault), machines in sorted(groups.items(), key=lambda each: -len(each[1]))[:_GROUPS]:
        console.print(f"\n{len(machines)} stopped in {stage}: {printable(fault)}")
        facts = story(machines[0])
        console.print(f"  {_who(machines[0])}, {facts['mac']}, {facts['address'] or 'no address'}:")
        for step in facts["steps"][-_LAST_STEPS:]:
            console.print(
                f"  {step['at']:8.2f} s  {step['stage']:13} {printable(step['what'])}, {step['octets']:,} octets"
            )
    if len(groups) > _GROUPS:
        console.print(f"\nand {counted(len(groups) - _GROUPS, 'other reason')}: see --json")
    if report.failed and report.counters:
        told = ", ".join(f"{name} {value}" for name, value in report.counters.items())
        console.print(f"\nwhat the server's DHCP counted beside answers: {told}")


def _who(machine: Machine) -> str:
    return f"{machine.name} ({KINDS[machine.kind].title})"

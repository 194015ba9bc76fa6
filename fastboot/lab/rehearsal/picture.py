"""A rehearsal as a picture. Needs matplotlib, which nothing else does: `pip install fastboot[pictures]`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastboot.lab.namespace import LabError
from fastboot.lab.rehearsal.report import Report, through

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise LabError("a picture needs matplotlib: pip install 'fastboot[pictures]'") from error

_TENTH = 0.1


def probe(path: Path) -> None:
    """Raise LabError where no picture can be written."""
    new = not os.path.lexists(path)
    with _written(path):
        path.open("ab").close()
        if new:
            path.unlink()


def draw(report: Report, path: Path) -> None:
    """Write a PNG: machines that are through, throughput, processors, and the seconds of each stage. Raises
    LabError."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(f"{through(report)}\n{report.limits()[0]}")
    (count, rate), (stages, cores) = figure.subplots(2, 2)
    start = min((machine.switched_on for machine in report.machines if machine.switched_on), default=0)
    on = sorted((machine.switched_on - start) / 1e9 for machine in report.machines if machine.switched_on)
    done = sorted((machine.steps[-1].ended - start) / 1e9 for machine in report.booted)
    count.step(on, range(1, len(on) + 1), where="post", label="switched on")
    count.step(done, range(1, len(done) + 1), where="post", label="booted")
    count.set(xlabel="seconds", ylabel="machines", ylim=(0, None))
    count.legend()
    seconds = [_TENTH * at for at in range(len(report.flow))]
    rate.plot(seconds, [octets / _TENTH / 1e6 for octets in report.flow])
    if report.link:
        rate.axhline(report.link / 8e6, linestyle="--", color="gray", label="the link")
        rate.legend()
    rate.set(xlabel="seconds", ylabel="MB/s of files", ylim=(0, None))
    named = list(report.stages())[::-1]
    spent = [[took for m in report.machines if (took := m.took(stage)) is not None] for stage in named]
    stages.boxplot(spent, orientation="horizontal", whis=(0, 100))
    stages.set_yticks(range(1, len(named) + 1), named)
    stages.set(xlabel="seconds of each machine")
    at = [sample.at for sample in report.watch.samples]
    cores.plot(at, [sample.server for sample in report.watch.samples], label="server")
    cores.plot(at, [sample.busiest for sample in report.watch.samples], label="its busiest thread, with waits")
    cores.plot(at, [sample.own for sample in report.watch.samples], label="simulated machines, with waits")
    cores.set(xlabel="seconds", ylabel="cores", ylim=(0, None))
    cores.legend()
    with _written(path):
        figure.savefig(path, format="png", dpi=110)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LabError(f"--picture: {path}: {error.strerror}") from error

"""DHCP: exchanges a second, CPU for each and latency of fastboot beside Kea, ISC dhcpd and dnsmasq.

    make bench-dhcp       or            .venv/bin/python -m bench.dhcp --rounds 3

An exchange is a new machine's DISCOVER, OFFER, REQUEST, ACK; no machine comes twice. Each server is started anew
for every figure, in a network namespace of its own across a veth pair from the machines, with an empty lease file
on this disk. Rounds are interleaved; the table shows medians with the least and most of them. CPU is what the
scheduler charged to the server's threads. fastboot runs with its defaults, its leases fsynced; the others as
bench/dhcp_servers.py says (Kea's and dnsmasq's leases are not fsynced).

held      the highest rate at which at most 1 % of the machines had no address after a quarter of a second,
          behind a relay; found to about 6 %
at RATE   p50 and p99 from DISCOVER to ACK at a fixed rate, behind a relay
busy      the same while fastboot's loop serves FTP logins, as many as it can, and 50 status questions a second
link      machines on the server's own link without a relay, 64 of them at once, as fast as they are served
perfdhcp  Kea's own load generator behind a relay, at the fixed rate, for comparison with ours

Our generator's own limit is measured against a sink that only turns packets round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench.dhcp_servers import (
    ADDRESSES,
    DHCPD_ADDRESSES,
    PREFIX,
    RELAY,
    SERVER,
    SERVERS,
    Command,
    libraries,
    program,
)
from bench.host import DIES_WITH_US, Host, cpu_seconds, running
from fastboot.lab import namespace
from fastboot.lab.fleet import Fleet, Outcome

SECONDS = 2.5
PATIENCE = 0.25
"""Short beside SECONDS: a queue that is still full at the end of a trial counts as loss."""
LOSS = 0.01
FINE = 1.06
"""A search ends when the rate that is lost is so near to the one that is held."""
AT_ONCE = 64

Figures = dict[str, Any]


@dataclass(slots=True)
class Served:
    """A server that answers, and new machines for it."""

    name: str
    pid: int
    fleet: Fleet
    work: Path
    acknowledged: int = 0

    def trial(self, *, rate: float = 0, at_once: int = 0, patience: float = PATIENCE) -> Figures:
        """Run machines for some seconds, at a rate or so many at once; return what they and the CPU say."""
        room = (DHCPD_ADDRESSES if self.name == "dhcpd" else ADDRESSES) - 100
        count = min(room, int(rate * SECONDS)) if rate else room
        before = cpu_seconds(self.pid)
        outcome = self.fleet.run(
            max(count, 10), rate=rate, seconds=SECONDS, outstanding=at_once, patience=patience
        )
        cpu = cpu_seconds(self.pid) - before
        self.acknowledged += outcome.bound
        return figures_of(outcome, rate) | {"cpu_us": cpu * 1e6 / max(1, outcome.bound)}


def figures_of(outcome: Outcome, rate: float) -> Figures:
    return {
        "offered": rate,
        "rate": outcome.rate,
        "loss": outcome.loss,
        "refused": outcome.refused,
        "p50_ms": outcome.quantile(0.5) * 1e3,
        "p99_ms": outcome.quantile(0.99) * 1e3,
        "worst_ms": outcome.quantile(1) * 1e3,
        "late_ms": outcome.late * 1e3,
        "faults": outcome.twice + outcome.strange + outcome.unsent + outcome.dropped,
    }


class Bench:
    """The two namespaces; starts servers and measures them."""

    def __init__(self, host: Host, folder: Path, rate: float) -> None:
        self.host, self.folder, self.rate = host, folder, rate

    @contextlib.contextmanager
    def serving(self, name: str, *, frames: bool = False, command: Command | None = None) -> Iterator[Served]:
        """Start a server from nothing and wait until it gives addresses.

        When it has ended, every lease that fastboot acknowledged must be on disk.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            work = Path(folder)
            command = command or SERVERS[name](work, frames=frames)
            with (
                running(self.host, command.words, work / "log", command.environment) as pid,
                (
                    Fleet.on_link("bench0")
                    if frames
                    else Fleet.behind_relay(IPv4Address(RELAY), IPv4Address(SERVER))
                ) as fleet,
            ):
                deadline = time.monotonic() + 20
                while not fleet.run(1, outstanding=1, patience=0.1).bound:
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{name} does not answer:\n{(work / 'log').read_text()[-2000:]}")
                served = Served(name, pid, fleet, work)
                yield served
            if name == "fastboot" and stored(work / "state") < served.acknowledged:
                raise SystemExit("fastboot acknowledged leases that are not on disk")

    def own_limit(self, *, frames: bool) -> Figures:
        """What the generator does against a sink."""
        sink = Command([sys.executable, "-m", "bench.sink", "link" if frames else "relay"])
        with self.serving("sink", frames=frames, command=sink) as served:
            return served.trial(at_once=256)

    def held(self, name: str, start: float | None) -> tuple[float, Figures]:
        """Search the highest rate that is held, from one that is probably near; return it and its trial."""
        if start is None:
            with self.serving(name) as served:
                start = served.trial(at_once=AT_ONCE, patience=1.0)["rate"] or 100.0
        low, high, best = 0.0, float("inf"), {}
        rate, step = start, 1.2
        while not best or high / low > FINE:
            with self.serving(name) as served:
                trial = served.trial(rate=rate)
            if trial["loss"] <= LOSS:
                low, best = rate, trial
            else:
                high = rate
            if low and high < float("inf"):
                rate = (low * high) ** 0.5
            else:
                rate, step = (rate * step if low else rate / step), step**1.4
            if rate < 1:
                raise SystemExit(f"{name} holds no rate at all: {trial}")
        return low, best

    def at_rate(self, name: str) -> Figures:
        with self.serving(name) as served:
            return served.trial(rate=self.rate, patience=1.0)

    def busy(self) -> Figures:
        """fastboot at the fixed rate while its loop serves FTP logins and status questions."""
        with self.serving("fastboot") as served:
            words = [sys.executable, "-m", "bench.busy", SERVER, str(served.work / "state/control.sock"), "8"]
            with subprocess.Popen([*DIES_WITH_US, *words], stdout=subprocess.PIPE, text=True) as load:
                time.sleep(1.0)
                trial = served.trial(rate=self.rate, patience=1.0)
                load.send_signal(signal.SIGTERM)
                said, _ = load.communicate(timeout=10)
            if load.returncode:
                raise SystemExit("the FTP logins failed")
            return trial | json.loads(said)

    def on_link(self, name: str) -> Figures:
        with self.serving(name, frames=True) as served:
            return served.trial(at_once=AT_ONCE, patience=1.0)

    def perfdhcp(self, name: str) -> Figures:
        """The same fixed rate from Kea's generator."""
        with self.serving(name) as served:
            served.fleet.close()  # it has the relay's port
            words = [
                program("perfdhcp"), "-4", "-l", RELAY, "-r", str(int(self.rate)), "-R", str(ADDRESSES),
                "-p", str(int(SECONDS)), "-W", "500000", SERVER,
            ]  # fmt: skip
            before = cpu_seconds(served.pid)
            done = subprocess.run(
                [*DIES_WITH_US, *words], capture_output=True, text=True, env={**os.environ, **libraries()}
            )
            cpu = cpu_seconds(served.pid) - before
            return read_perfdhcp(done.stdout + done.stderr, cpu)


def read_perfdhcp(text: str, cpu: float) -> Figures:
    """Return the figures of perfdhcp's report, which is one for DISCOVER-OFFER and one for REQUEST-ACK."""
    rate = re.search(r"^Rate: ([\d.]+) 4-way exchanges/second", text, re.MULTILINE)
    received = [int(each) for each in re.findall(r"^received packets: (\d+)", text, re.MULTILINE)]
    drops = [float(each) for each in re.findall(r"^drops ratio: ([\d.]+) %", text, re.MULTILINE)]
    delays = [float(each) for each in re.findall(r"^avg delay: ([\d.]+) ms", text, re.MULTILINE)]
    if rate is None or len(received) < 2:
        raise SystemExit(f"perfdhcp says nothing that we understand:\n{text}")
    return {
        "rate": float(rate[1]),
        "loss": max(drops) / 100,
        "mean_ms": sum(delays[:2]),
        "cpu_us": cpu * 1e6 / max(1, received[1]),
    }


def stored(state: Path) -> int:
    with contextlib.closing(sqlite3.connect(state / "fastboot.sqlite")) as file:
        return int(file.execute("SELECT count(*) FROM lease WHERE row LIKE '% bound %'").fetchone()[0])


def measure(bench: Bench, names: list[str], rounds: int) -> dict[str, dict[str, list[Figures]]]:
    """Return the figures of every round by measure and server."""
    found: dict[str, dict[str, list[Figures]]] = {}

    def keep(measure: str, name: str, figures: Figures) -> None:
        found.setdefault(measure, {}).setdefault(name, []).append(figures)
        shown = {key: round(value, 2) for key, value in figures.items() if value}
        print(f"round {number + 1} {measure:8} {name:8} {shown}", flush=True)

    starts: dict[str, float] = {}
    for number in range(rounds):  # noqa: B007 - `keep` uses it
        for name in names:
            starts[name], trial = bench.held(name, starts.get(name))
            keep("held", name, trial)
        for name in names:
            if starts[name] >= bench.rate:
                keep("at rate", name, bench.at_rate(name))
                keep("perfdhcp", name, bench.perfdhcp(name))
                keep("link", name, bench.on_link(name))
        if "fastboot" in names:
            keep("busy", "fastboot", bench.busy())
    return found


def report(found: dict[str, dict[str, list[Figures]]], rate: float) -> None:
    columns = {
        "held": ("rate", "cpu_us", "p50_ms", "p99_ms"),
        "at rate": ("rate", "cpu_us", "p50_ms", "p99_ms"),
        "busy": ("rate", "cpu_us", "p50_ms", "p99_ms"),
        "link": ("rate", "cpu_us", "p50_ms", "p99_ms"),
        "perfdhcp": ("rate", "cpu_us", "mean_ms", "loss"),
    }
    units = {"rate": "exchanges/s", "cpu_us": "CPU us each", "p50_ms": "p50 ms", "p99_ms": "p99 ms",
             "mean_ms": "mean ms", "loss": "loss"}  # fmt: skip
    for measure, servers in found.items():
        title = f"at {rate:.0f}/s" if measure == "at rate" else measure
        print(f"\n{title:10}" + "".join(f"{units[column]:>28}" for column in columns[measure]))
        for name, rounds in servers.items():
            faults = sum(each.get("faults", 0) for each in rounds)
            cells = [f"{spread(rounds, column):>28}" for column in columns[measure]]
            print(f"  {name:8}", *cells, f"  {faults} faults" if faults else "", sep="")


def spread(rounds: list[Figures], column: str) -> str:
    """Return the median, and the least and most in brackets."""
    values = sorted(each[column] for each in rounds)
    digits = 3 if column == "loss" else 2 if values[-1] < 1000 else 0
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def ratios(found: dict[str, dict[str, list[Figures]]]) -> Figures:
    """Return what fastboot does in parts of what Kea does."""
    return {
        f"{measure} {column}": statistics.median(each[column] for each in servers["fastboot"])
        / statistics.median(each[column] for each in servers["kea"])
        for measure, servers in found.items()
        for column in ("rate", "cpu_us")
        if {"fastboot", "kea"} <= set(servers)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5000, help="exchanges a second of the latency figures")
    parser.add_argument("--only", nargs="*", choices=list(SERVERS), default=list(SERVERS), help="these servers")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    namespace.enter()
    host = Host(f"{RELAY}/{PREFIX}", f"{SERVER}/{PREFIX}")
    try:
        # Not /tmp, which may be memory: what is fsynced must be.
        cache = Path(__file__).parent.parent / ".cache"
        with tempfile.TemporaryDirectory(prefix="bench-dhcp-", dir=cache) as folder:
            bench = Bench(host, Path(folder), settings.rate)
            own = {way: bench.own_limit(frames=way == "link") for way in ("relay", "link")}
            found = measure(bench, settings.only, settings.rounds)
    finally:
        host.close()
    report(found, settings.rate)
    parts = ratios(found)
    for key, value in parts.items():
        print(f"fastboot's {key} is {value:.3g} of Kea's")
    for way, figures in own.items():
        print(f"the generator alone ({way}): {figures['rate']:.0f} exchanges/s")
    machine = {"kernel": platform.release(), "cores": os.cpu_count()}
    print(
        json.dumps({"settings": vars(settings), "machine": machine, "own": own, "rounds": found, "ratios": parts})
    )


if __name__ == "__main__":
    main()

"""What the simulated machines can do at most: against servers that answer for free.

    .venv/bin/python -m bench.generator [--results FILE]

A figure of a real server means something as long as it is well below these, which the same machines reach here
over the same veth pair against a sink (fastboot/lab/_sinks.pyi). By TFTP as many processes of machines play as
there are cores. The sink takes cores from them: it does nothing but the system calls, and yet these are most of
what a block costs anybody, for over a veth pair the sender pays for most of the way of a packet. So two rates
are told apart:

seen      what came, with machines and sink on the same cores
computed  what the machines would do had they all cores for themselves, which nobody saw: cores / their CPU for a
          block. It takes for granted that one core more is as much more, and that nothing else becomes full

`machines_us` and `sink_us` are the CPU that each side took for a block, user and kernel; `busy` is the machines'
share of all cores. `seen_times` and `computed_times` are those rates beside the highest that FILE, by default
bench/results/tftp.json, has of any server with this window: for a comparison it has to be of this machine and this
hour (`make bench ARGS="--results FILE"`). DHCP is played by one process; `cpu_us` is its CPU for an exchange. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from bench.dhcp_servers import PREFIX, RELAY, SERVER
from bench.host import CPUCLOCK_SCHED, DIES_WITH_US, Host
from bench.tftp_scenarios import SCENARIOS
from fastboot.lab import namespace
from fastboot.lab.fleet import Fleet
from fastboot.lab.network import claim, silence
from fastboot.lab.tftp import PLAIN, Receivers

MACHINES = IPv4Network("10.66.0.0/18")
MEGABYTES = 16
SECONDS = 3.0
RESULTS = Path(__file__).parent / "results" / "tftp.json"


@contextmanager
def sink(host: Host, *words: object) -> Iterator[int]:
    """Run a sink; give its pid."""
    command = host.inside([sys.executable, "-m", "bench.sink", *map(str, words)])
    with subprocess.Popen([*DIES_WITH_US, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.terminate()


def dhcp(host: Host, way: str) -> dict[str, float]:
    fleet = (
        Fleet.on_link("bench0") if way == "link" else Fleet.behind_relay(IPv4Address(RELAY), IPv4Address(SERVER))
    )
    with fleet, sink(host, way):
        before = time.process_time()
        outcome = fleet.run(10_000_000, seconds=SECONDS, outstanding=1024)
        cpu = time.process_time() - before
    return {"rate": outcome.rate, "cpu_us": cpu * 1e6 / outcome.bound, "lost": outcome.lost}


class Played(NamedTuple):
    """What one process of machines did."""

    began: float
    ended: float
    cpu: float
    octets: int
    again: int
    unfinished: int


def play(ready: Barrier, told: SimpleQueue[Played], first: int, count: int, blksize: int, window: int) -> None:
    with Receivers(IPv4Address(SERVER), count, first=MACHINES[first]) as receivers:
        ready.wait(60)
        began, cpu = time.monotonic(), time.process_time()
        result = receivers.run(["file"], PLAIN.asking(blksize, window), limit=60)
        cpu = time.process_time() - cpu
    told.put(Played(began, began + result.seconds, cpu, result.octets, result.blocks_again, result.unfinished))


def tftp(host: Host, blksize: int, window: int, count: int, results: Path) -> dict[str, float]:
    octets = MEGABYTES * 1_000_000 // max(1, 4 // window)
    cores = os.cpu_count() or 1
    each = -(-count // cores)
    crew = get_context("fork")  # for the network is that of this process
    ready, told = crew.Barrier(cores), crew.SimpleQueue()
    players = [
        crew.Process(target=play, args=(ready, told, 1 + each * number, each, blksize, window), daemon=True)
        for number in range(cores)
    ]
    with sink(host, "tftp", blksize, window, octets) as pid:
        clock = (~pid << 3) | CPUCLOCK_SCHED
        before = time.clock_gettime(clock)
        for player in players:
            player.start()
        for player in players:
            player.join()
        served = time.clock_gettime(clock) - before
    if any(player.exitcode for player in players):
        raise SystemExit("a process of machines failed")
    parts = [told.get() for _ in players]
    whole, cpu = sum(part.octets for part in parts), sum(part.cpu for part in parts)
    if any(part.unfinished for part in parts) or whole != each * cores * octets:
        raise SystemExit(f"not whole: {parts}")
    seconds = max(part.ended for part in parts) - min(part.began for part in parts)
    blocks, most = whole / blksize, highest(window, results)
    seen, computed = whole / seconds / 1e6, cores * whole / cpu / 1e6
    return {
        "seen_mb_per_s": seen,
        "computed_mb_per_s": computed,
        "machines_us": cpu / blocks * 1e6,
        "sink_us": served / blocks * 1e6,
        "busy": cpu / seconds / cores,
        "again": sum(part.again for part in parts),
        **({"seen_times": seen / most, "computed_times": computed / most} if most else {}),
    }


def highest(window: int, results: Path) -> float:
    """Return the most MB/s that any server was seen to send with windows like this; 0: none was measured."""
    kept = json.loads(results.read_text())
    return max(
        (
            figures["mb_per_s"]
            for name, scenario in SCENARIOS.items()
            if scenario.window == window and name in kept
            for rounds in kept[name]["rounds"].values()
            for figures in rounds
            if "mb_per_s" in figures
        ),
        default=0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="figures of servers that these are set beside"
    )
    results = parser.parse_args().results
    namespace.enter()
    host = Host(f"{RELAY}/{PREFIX}", f"{SERVER}/{PREFIX}")
    found: dict[str, dict[str, float]] = {}
    try:
        for way in ("relay", "link"):
            found[f"DHCP, {way}"] = dhcp(host, way)
        for command in (silence("bench0"), host.inside(silence("bench1"))):
            subprocess.run(command, check=True)
        claim("bench0", MACHINES)
        for blksize, window in ((1408, 1), (1468, 4), (1468, 16), (1468, 44)):
            found[f"TFTP, {blksize} x {window}"] = tftp(host, blksize, window, 100, results)
    finally:
        host.close()
    for name, figures in found.items():
        print(f"{name:16}", "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    print(json.dumps({"machine": {"kernel": platform.release(), "cores": os.cpu_count()}, "found": found}))


if __name__ == "__main__":
    main()

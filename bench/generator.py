"""What the simulated machines can do at most: against servers that answer for free.

    .venv/bin/python -m bench.generator

A figure of a real server means something as long as it is well below these, which the same machines reach here
over the same veth pair against a sink (fastboot/lab/_sinks.pyi). CPU is what the machines' process took, user
and kernel; over a veth pair the sender pays for most of the way of a packet. `busy` is its share of the time: near
1 the machines are at their limit, below it the sink is at its own, and they could do 1 / busy times as much.
`times` is the rate beside the highest that bench/results/tftp.json has of any server. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.dhcp_servers import PREFIX, RELAY, SERVER
from bench.host import DIES_WITH_US, Host
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
def sink(host: Host, *words: object) -> Iterator[None]:
    command = host.inside([sys.executable, "-m", "bench.sink", *map(str, words)])
    with subprocess.Popen([*DIES_WITH_US, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
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


def tftp(host: Host, blksize: int, window: int, count: int) -> dict[str, float]:
    octets = MEGABYTES * 1_000_000 // max(1, 4 // window)
    client = PLAIN.asking(blksize, window)
    with (
        sink(host, "tftp", blksize, window, octets),
        Receivers(IPv4Address(SERVER), count, first=MACHINES[1]) as receivers,
    ):
        before = time.process_time()
        result = receivers.run(["file"], client, limit=60)
        cpu = time.process_time() - before
    if result.unfinished or result.octets != count * octets:
        raise SystemExit(f"not whole: {result}")
    most = highest(window)
    return {
        "mb_per_s": result.rate / 1e6,
        "cpu_s_per_gb": cpu / result.octets * 1e9,
        "busy": cpu / result.seconds,
        "again": result.blocks_again,
        **({"times": result.rate / 1e6 / most} if most else {}),
    }


def highest(window: int) -> float:
    """Return the most MB/s that any server was seen to send with windows like this; 0: none was measured."""
    kept = json.loads(RESULTS.read_text())
    return max(
        (
            figures["mb_per_s"]
            for name, scenario in SCENARIOS.items()
            if scenario.window == window and name in kept
            for rounds in kept[name]["rounds"].values()
            for figures in rounds
        ),
        default=0.0,
    )


def main() -> None:
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
            found[f"TFTP, {blksize} x {window}"] = tftp(host, blksize, window, 100)
    finally:
        host.close()
    for name, figures in found.items():
        print(f"{name:16}", "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    print(json.dumps({"machine": {"kernel": platform.release(), "cores": os.cpu_count()}, "found": found}))


if __name__ == "__main__":
    main()

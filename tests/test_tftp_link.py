"""A full link and a lossy one for real: a network behind `tc tbf`, many native clients. Minutes: make prove."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from dhcpkit import need, wires
from tftpkit import Files, serving

from fastboot.lab.tftp import PLAIN, Receivers

pytestmark = pytest.mark.long


def bench(results: Path, *scenarios: str) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of three rounds of each: one alone may have met a pause of the machine."""
    words = ["--only", *scenarios, "--servers", "fastboot", "--rounds", "3", "--results", str(results)]
    subprocess.run(
        [sys.executable, "-m", "bench.tftp", *words], cwd=Path(__file__).parent.parent, check=True, timeout=800
    )
    found = json.loads(results.read_text())
    return {name: found[name]["rounds"]["fastboot"] for name in scenarios}


def test_a_full_link_carries_every_block_once(tmp_path: Path) -> None:
    """DESIGN section 9, at 1 Gb/s. Lockstep takes this machine a core and a half: there only the repeats count."""
    for name, rounds in bench(tmp_path / "r.json", "link1", "link4", "link16").items():
        assert all(each["unfinished"] == 0 for each in rounds)
        assert median(each["twice"] for each in rounds) <= 0.02, name
        assert max(each["link_share"] for each in rounds) >= 0.95 or name == "link1", name


def test_one_percent_loss_stalls_nobody(tmp_path: Path) -> None:
    for name, rounds in bench(tmp_path / "r.json", "loss1", "loss4", "loss16").items():
        assert all(each["unfinished"] == 0 for each in rounds)
        assert median(each["p50_times"] for each in rounds) <= 3, name
        assert median(each["worst_times"] for each in rounds) <= 10, name


def test_a_lockstep_client_beside_a_hundred_of_window_64() -> None:
    """Their windows in turn, 6,400 blocks at 300 Mb/s, would let it send a block every quarter of a second. Its
    exact share is one in 4 ms; the queues of the budget and of tbf make that 6."""
    need("ip", "tc")
    files = Files({"big": bytes(1468) * 2000, "small": bytes(1468) * 100})
    with wires(("10.77.0.1/16",)) as wire:
        server, client = wire.server, wire.clients[0]
        client.ip("address", "add", "10.77.0.50/16", "dev", "c0")
        client.ip("route", "add", "local", "10.77.1.0/24", "dev", "lo")
        shape = ["tc", "qdisc", "add", "dev", "s0", "root", "tbf", "rate", "300mbit", "burst", "128k"]
        subprocess.run(server.command(*shape, "limit", "4mb"), check=True, timeout=20)
        with serving(files, links=wire.links(), inside=server.inside()) as running, client.inside():
            port, at = running.port, IPv4Address("10.77.0.1")
            many = Receivers(at, 100, first=IPv4Address("10.77.1.1"), port=port)
            one = Receivers(at, 1, first=IPv4Address("10.77.1.200"), port=port)
            with many, one, ThreadPoolExecutor(2) as pool:
                crowd = pool.submit(many.run, ["big"], PLAIN.asking(1468, 64), limit=60)
                running.until(lambda: running.counters()["held_back_us"] > 0)
                lone = pool.submit(one.run, ["small"], PLAIN.asking(1468), limit=60).result()
                full = crowd.result()
    assert lone.unfinished == full.unfinished == 0
    assert full.seconds > 2 * lone.seconds, "it was not beside them"
    assert lone.seconds < 100 * 0.012

"""bench/tftp.py: every kind of scenario, small, so that the benchmark does not rot; what its report says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import tftp_readme, tftp_report
from bench.kept import keep
from bench.tftp_scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent


def bench(results: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Run it in small; return the kept figures and what it printed."""
    command = [sys.executable, "-m", "bench.tftp", "--tiny", "--rounds", "1", "--results", str(results), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(results.read_text()), done.stdout


def test_each_kind_of_scenario_in_small(tmp_path: Path) -> None:
    names = ["loss4", "link4", "storm", "idle"]
    found, said = bench(tmp_path / "r.json", "--only", *names, "--servers", "fastboot", "limit")
    assert list(found) == names
    for name, entry in found.items():
        assert list(entry["rounds"]) == ["fastboot", *["limit"] * SCENARIOS[name].limited]
        for rounds in entry["rounds"].values():
            assert [each["unfinished"] for each in rounds] == [0]
            assert set(SCENARIOS[name].columns) <= set(rounds[0])
    assert found["loss4"]["rounds"]["fastboot"][0]["twice"] > 0.01, "the lost tenth is sent again"
    assert "█" in said
    assert json.loads(said.splitlines()[-1])["link4"]["limit"]["unfinished"] == 0


@pytest.mark.long
def test_every_scenario_with_every_server(tmp_path: Path) -> None:
    found, _ = bench(tmp_path / "r.json")
    assert set(found) == set(SCENARIOS)
    for name, entry in found.items():
        assert {"fastboot", "dnsmasq", "atftpd"} <= set(entry["rounds"]), name
        # At a tenth lost, others may need longer than a client waits: they ask again after one second, or two.
        bound = {"fastboot", "limit"} if SCENARIOS[name].loss else set(entry["rounds"])
        left = {
            server: [each["unfinished"] for each in entry["rounds"][server]]
            for server in bound & set(entry["rounds"])
        }
        assert not any(map(any, left.values())), (name, left)


def entry_of(**servers: list[float]) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "kernel": "6.1", "day": "2026-01-31"}
    rounds = {
        name: [{"cpu_per_gb": each, "mb_per_s": 100 / each, "unfinished": 0} for each in figures]
        for name, figures in servers.items()
    }
    return {"says": "what it is", "machine": machine, "rounds": rounds}


def test_ratios_are_of_pairs_of_the_same_round() -> None:
    entry = entry_of(fastboot=[1, 9, 2], limit=[1, 6, 1], dnsmasq=[8])
    assert tftp_report.ratio(entry, "limit", "cpu_per_gb") == 1.5
    assert tftp_report.ratio(entry, "dnsmasq", "cpu_per_gb") == 0.25, "too slow to be measured again: medians"
    assert tftp_report.ratio(entry, "atftpd", "cpu_per_gb") is None


def test_readme_names_the_best_of_the_others() -> None:
    entry = entry_of(fastboot=[1.0, 3.0, 2.0], dnsmasq=[4.0], atftpd=[5.0], limit=[0.9])
    text = "\n".join(tftp_readme.readme({"window16": entry}))
    assert "| what it is | 2.00 (1.00 to 3.00) | 4.00 (dnsmasq) | 0.90 | 50.0 | 25.0 (dnsmasq) |" in text
    assert "2 cores of a CPU, Linux 6.1, 2026-01-31: medians of 3 interleaved rounds" in text


def test_results_of_other_scenarios_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "some" / "r.json"
    keep(path, {"window16": entry_of(fastboot=[1])}, SCENARIOS)
    keep(path, {"window4": entry_of(fastboot=[2]), "window64": entry_of()}, SCENARIOS)
    keep(path, {"window16": entry_of(fastboot=[3])}, SCENARIOS)
    found = json.loads(path.read_text())
    assert {name: entry["rounds"]["fastboot"][0]["cpu_per_gb"] for name, entry in found.items()} == {
        "window4": 2,
        "window16": 3,
    }

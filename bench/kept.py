"""Files of results: the raw figures of every round, and the machine that they are of."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

Found = dict[str, dict[str, Any]]
"""Scenario -> says, machine, rounds: server -> figures of every round."""


ROOT = Path(__file__).parent.parent


def machine() -> dict[str, Any]:
    """Return what figures depend on: the machine, the commit, and the day."""
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "cpu": cpu,
        "commit": commit(),
        "day": date.today().isoformat(),
    }


def commit() -> str:
    """Return the last commit that changed fastboot, `+` behind it where it was changed since. A later one, of the
    figures themselves, gets another name when it is rebased."""
    git = ["git", "-C", str(ROOT)]
    last, changed = (
        subprocess.run([*git, *words, "--", "fastboot"], capture_output=True, text=True, check=False).stdout
        for words in (["log", "-1", "--format=%h"], ["status", "--porcelain"])
    )
    return last.strip() + "+" * bool(changed)


def origin(found: Found) -> str:
    """Say where and when results were measured, and how often."""
    machines = {
        "{cores} cores of {cpu}, Linux {kernel}, {day}".format(**entry["machine"]) for entry in found.values()
    }
    counts = sorted({len(entry["rounds"]["fastboot"]) for entry in found.values()})
    rounds = " or ".join(map(str, counts))
    return f"Measured on {' and '.join(sorted(machines))}: medians of {rounds} interleaved rounds, "


def keep(path: Path, found: Found, order: Iterable[str]) -> None:
    """Write what was found into a file of results, in place of what it had of the same scenarios.

    `order` is of all scenarios that there are.
    """
    path.parent.mkdir(exist_ok=True, parents=True)
    old: Found = json.loads(path.read_text()) if path.exists() else {}
    old |= {name: entry for name, entry in found.items() if entry["rounds"]}
    ordered = {name: old[name] for name in order if name in old}
    rounded = json.loads(json.dumps(ordered), parse_float=lambda text: float(f"{float(text):.6g}"))
    path.write_text(json.dumps(rounded, indent=1) + "\n")

"""README's part on TFTP, made of a file of results.

    python -m bench.tftp_readme bench/results/tftp.json README.md

writes it anew between its two marks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.kept import Found
from bench.tftp_report import HEADS, chart, median, number, spread

PEERS = ("dnsmasq", "tftpd-hpa", "atftpd")
BEGIN, END = "<!-- made by make bench-readme", "<!-- end of what make bench-readme makes -->"
TABLES = {
    ("lockstep100", "lockstep500", "window4", "window16", "window64", "cut16"): ("cpu_per_gb", "mb_per_s"),
    ("link1", "link4", "link16"): ("link_share", "twice"),
    ("loss1", "loss4", "loss16"): ("p50_s", "worst_s"),
    ("storm", "requests"): ("requests_per_s", "answer_p99_ms"),
    ("idle",): ("kib_each",),
}
TITLES = HEADS | {
    "cpu_per_gb": "CPU, s/GB",
    "twice": "sent twice",
    "p50_s": "median client, s",
    "worst_s": "slowest client, s",
    "answer_p99_ms": "99 % answered in, ms",
}
MORE_IS_BETTER = {"mb_per_s", "link_share", "requests_per_s"}
LIMITED = "cpu_per_gb"


def best_peer(entry: dict[str, Any], column: str) -> str:
    """Return the best figure of another server, and which that is."""
    values = {name: median(entry["rounds"][name], column) for name in PEERS if entry["rounds"].get(name)}
    if not values:
        return "-"
    best = (max if column in MORE_IS_BETTER else min)(values, key=lambda name: values[name])
    return f"{number(values[best], column)} ({best})"


def table(found: Found, names: list[str], columns: tuple[str, ...]) -> Iterator[str]:
    heads = [
        head
        for column in columns
        for head in (TITLES[column], "best other", *(["the limit"] if column == LIMITED else []))
    ]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for name in names:
        entry, cells = found[name], []
        for column in columns:
            ours = entry["rounds"]["fastboot"]
            cells += [spread(ours, column) if column == columns[0] else number(median(ours, column), column)]
            cells += [best_peer(entry, column)]
            if column == LIMITED:
                cells += [number(median(entry["rounds"]["limit"], column)) if "limit" in entry["rounds"] else "-"]
        yield f"| {entry['says']} | {' | '.join(cells)} |"
    yield ""


def readme(found: Found) -> Iterator[str]:
    """Yield README's part, marks included."""
    yield f"{BEGIN} of bench/results/tftp.json -->"
    for names, columns in TABLES.items():
        if chosen := [name for name in names if name in found]:
            yield from table(found, chosen, columns)
    if "window16" in found:
        yield "```"
        yield from "\n".join(chart({"window16": found["window16"]})).strip().split("\n")
        yield from ("```", "")
    machines = {
        "{cores} cores of {cpu}, Linux {kernel}, {day}".format(**entry["machine"]) for entry in found.values()
    }
    counts = sorted({len(entry["rounds"]["fastboot"]) for entry in found.values()})
    rounds = " or ".join(map(str, counts))
    yield (
        f"Measured on {' and '.join(sorted(machines))}: medians of {rounds} interleaved rounds, "
        "least and most in brackets; who took more than six seconds was measured once."
    )
    yield END


def main() -> None:
    results, page = map(Path, sys.argv[1:3])
    before, found, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise SystemExit(f"{page} has no marks")
    page.write_text(before + "\n".join(readme(json.loads(results.read_text()))) + after)


if __name__ == "__main__":
    main()

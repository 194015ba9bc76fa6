"""What was measured of the TFTP servers, for people: tables, a chart of text, README's part.

    python -m bench.tftp_report bench/results/tftp.json README.md

writes README's part anew, between its two marks.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.tftp_scenarios import SCENARIOS, Scenario

Found = dict[str, dict[str, Any]]
"""Scenario -> says, machine, rounds: server -> figures of every round."""
PEERS = ("dnsmasq", "tftpd-hpa", "atftpd")
BEGIN, END = "<!-- made by make bench-readme", "<!-- end of what make bench-readme makes -->"
BAR = 40
HEADS = {
    "cpu_per_gb": "CPU s/GB",
    "mb_per_s": "MB/s",
    "link_share": "of the link",
    "p50_s": "p50",
    "p99_s": "p99",
    "worst_s": "worst",
    "twice": "twice",
    "p50_times": "x p50",
    "worst_times": "x worst",
    "cpu_us_each": "CPU us each",
    "requests_per_s": "requests/s",
    "answer_p50_ms": "p50 ms",
    "answer_p99_ms": "p99 ms",
    "answer_worst_ms": "worst ms",
    "kib_each": "KiB each",
}


def number(value: float, column: str = "") -> str:
    if column in ("twice", "link_share"):
        return f"{value:.1%}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median(rounds: Sequence[Mapping[str, float]], column: str) -> float:
    return statistics.median(each[column] for each in rounds)


def ratio(entry: Mapping[str, Any], name: str, column: str) -> float | None:
    """Return the median of what fastboot's figure is in parts of a server's, round by round."""
    ours, theirs = (entry["rounds"].get(each, []) for each in ("fastboot", name))
    if not ours or not theirs:
        return None
    if len(theirs) < len(ours):  # it was too slow to be measured again
        return median(ours, column) / median(theirs, column)
    parts = [our[column] / their[column] for our, their in zip(ours, theirs, strict=False) if their[column]]
    return statistics.median(parts) if parts else None


def table(scenario: Scenario, entry: Mapping[str, Any]) -> Iterator[str]:
    first, *others = scenario.columns
    yield f"\n{entry['says']}"
    yield f"{'':10}{HEADS[first]:>26}" + "".join(f"{HEADS[each]:>12}" for each in others) + "   fastboot / this"
    for name, rounds in entry["rounds"].items():
        values = [each[first] for each in rounds]
        spread = f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"
        cells = "".join(f"{number(median(rounds, each), each):>12}" for each in others)
        part = ratio(entry, name, first) if name != "fastboot" else None
        lost = sum(each["unfinished"] for each in rounds)
        yield (
            f"{name:10}{spread:>26}{cells}"
            + (f"   {part:.3f}" if part is not None else "")
            + (f"   {lost:.0f} unfinished" if lost else "")
            + (f"   ({len(rounds)} round)" if len(rounds) == 1 else "")
        )


def chart(found: Found) -> Iterator[str]:
    """Bars of each scenario's first figure, each scenario to its own scale."""
    for name, entry in found.items():
        column = SCENARIOS[name].columns[0]
        means = {server: median(rounds, column) for server, rounds in entry["rounds"].items()}
        most = max(means.values()) or 1
        yield f"\n{entry['says']}: {HEADS[column]}"
        for server, value in means.items():
            yield f"  {server:10}{'█' * round(BAR * max(0.0, value) / most) or '▏'} {number(value, column)}"


def generator(found: Found) -> Iterator[str]:
    """What the clients alone would sustain on a core of their own, beside the most that was measured."""
    for cut in (False, True):
        rounds = [
            each
            for name, entry in found.items()
            for server in entry["rounds"].values()
            for each in server
            if SCENARIOS[name].cut == cut and "cpu_per_gb" in SCENARIOS[name].columns
        ]
        if rounds:
            best = max(rounds, key=lambda each: each["mb_per_s"])
            cost, what = best["generator_cpu_per_gb"], ", windows cut by the kernel," if cut else ""
            yield (
                f"\nthe most that was measured{what} is {best['mb_per_s']:.0f} MB/s; "
                f"the clients took {cost:.3f} s/GB then: alone on a core they do {1e3 / cost:.0f} MB/s"
            )


def medians(found: Found) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            server: {key: round(median(rounds, key), 6) for key in rounds[0]}
            for server, rounds in entry["rounds"].items()
        }
        for name, entry in found.items()
    }


def keep(path: Path, found: Found) -> None:
    """Write what was found into a file of results, in place of what it had of the same scenarios."""
    path.parent.mkdir(exist_ok=True, parents=True)
    old: Found = json.loads(path.read_text()) if path.exists() else {}
    old |= {name: entry for name, entry in found.items() if entry["rounds"]}
    ordered = {name: old[name] for name in SCENARIOS if name in old}
    rounded = json.loads(json.dumps(ordered), parse_float=lambda text: float(f"{float(text):.6g}"))
    path.write_text(json.dumps(rounded, indent=1) + "\n")


def best_peer(entry: Mapping[str, Any], column: str, *, most: bool = False) -> tuple[str, float] | None:
    values = {name: median(entry["rounds"][name], column) for name in PEERS if entry["rounds"].get(name)}
    if not values:
        return None
    return (max if most else min)(values.items(), key=lambda item: item[1])


def readme(found: Found) -> Iterator[str]:
    """Yield README's part."""
    yield f"{BEGIN} of bench/results/tftp.json -->"
    for title, column, most in (
        ("server CPU, s per GB", "cpu_per_gb", False),
        ("throughput, MB/s", "mb_per_s", True),
    ):
        chosen = {name: entry for name, entry in found.items() if column in SCENARIOS[name].columns}
        if not chosen:
            continue
        limit = " | the limit" if column == "cpu_per_gb" else ""
        yield f"| {title} | fastboot | best of the others{limit} |"
        yield f"|---|---|---|{'---|' if limit else ''}"
        for entry in chosen.values():
            ours = median(entry["rounds"]["fastboot"], column)
            peer = best_peer(entry, column, most=most)
            cells = [entry["says"], number(ours), f"{number(peer[1])} ({peer[0]})" if peer else "-"]
            if limit:
                cells.append(
                    number(median(entry["rounds"]["limit"], column)) if "limit" in entry["rounds"] else "-"
                )
            yield f"| {' | '.join(cells)} |"
        yield ""
    machines = {
        "{cpu}, {cores} cores, Linux {kernel}, {day}".format(**entry["machine"]) for entry in found.values()
    }
    yield f"Measured on {'; '.join(sorted(machines))}."
    yield END


def main() -> None:
    results, page = map(Path, sys.argv[1:3])
    text = page.read_text()
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise SystemExit(f"{page} has no marks")
    page.write_text(before + "\n".join(readme(json.loads(results.read_text()))) + after)


if __name__ == "__main__":
    main()

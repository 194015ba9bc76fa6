"""What was measured of the TFTP servers, for people and for a file: tables, a chart of text, medians."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.kept import Found
from bench.tftp_scenarios import SCENARIOS, Scenario

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


def spread(rounds: Sequence[Mapping[str, float]], column: str) -> str:
    """Return the median, and the least and most in brackets."""
    values = [each[column] for each in rounds]
    middle, least, most = (number(one(values), column) for one in (statistics.median, min, max))
    return f"{middle} ({least} to {most})" if len(values) > 1 else middle


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
        cells = "".join(f"{number(median(rounds, each), each):>12}" for each in others)
        part = ratio(entry, name, first) if name != "fastboot" else None
        lost = sum(each["unfinished"] for each in rounds)
        yield (
            f"{name:10}{spread(rounds, first):>26}{cells}"
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

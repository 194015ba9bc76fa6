"""README's part on TFTP, made of the results that are kept (`bench.readme`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.kept import Found, origin
from bench.tftp_report import HEADS, chart, median, number, spread

PEERS = ("dnsmasq", "tftpd-hpa", "atftpd")
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
    # Memory that atftpd had before and gave back meanwhile is none that a transfer takes.
    values = {name: value for name, value in values.items() if value >= 0}
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
    """Yield README's part."""
    for names, columns in TABLES.items():
        if chosen := [name for name in names if name in found]:
            yield from table(found, chosen, columns)
    if "window16" in found:
        yield "```"
        yield from "\n".join(chart({"window16": found["window16"]})).strip().split("\n")
        yield from ("```", "")
    yield f"{origin(found)}least and most in brackets; who took more than six seconds was measured once."

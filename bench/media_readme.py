"""README's part on HTTP and FTP, made of the results that are kept (`bench.readme`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.kept import Found, origin
from bench.media_servers import OTHERS
from bench.tftp_report import number

Figures = Mapping[str, Any]


class Column(NamedTuple):
    """A figure of a round, of which less is better; None where a server has none."""

    head: str
    figure: Callable[[Figures], float | None]
    of_rounds: Callable[[Sequence[float]], float] = statistics.median


def over_idle(figures: Figures) -> float | None:
    """Return how much longer than an idle loop's a server's answers took; who has no such loop has no lag."""
    return max(0.0, figures["lag"] - figures["idle_loop"]) if "lag" in figures else None


TABLES = {
    "bulk": (
        Column("CPU, s/GB", lambda each: each["cpu"]),
        Column("with the clients', s/GB", lambda each: each.get("both")),
        Column("slowest by fastest client", lambda each: each.get("fairness")),
        Column("lag above idle, ms", over_idle),
    ),
    "storm": (Column("CPU, ms/file", lambda each: each["cpu"]),),
    "sessions": (
        Column("slowest, ms", lambda each: each["slowest"] * 1e3),
        Column("CPU, ms each", lambda each: each["cpu"]),
    ),
    # Memory that a server got in one round is there in the next.
    "held": (Column("KiB each", lambda each: each["memory_kib"], max),),
}
"""By kind of a case."""


def values(rounds: Sequence[Figures], column: Column) -> list[float]:
    """Return the figures of a column. Who left a client without its file has none."""
    if any(each["failed"] for each in rounds):
        return []
    return [value for each in rounds if (value := column.figure(each)) is not None]


def best_other(entry: Mapping[str, Any], column: Column) -> str:
    """Return the best figure of another server, and which that is."""
    found = {name: values(entry["rounds"].get(name, []), column) for name in OTHERS}
    figures = {name: column.of_rounds(each) for name, each in found.items() if each}
    if not figures:
        return "-"
    best = min(figures, key=lambda name: figures[name])
    return f"{written(figures[best])} ({best})"


def ours(entry: Mapping[str, Any], column: Column, *, spread: bool) -> str:
    found = values(entry["rounds"]["fastboot"], column)
    if not found:
        return "-"
    figure = written(column.of_rounds(found))
    return f"{figure} ({written(min(found))} to {written(max(found))})" if spread and len(found) > 1 else figure


def written(value: float) -> str:
    return f"{value:.3f}" if value < 1 else number(value)


def readme(found: Found) -> Iterator[str]:
    """Yield README's part."""
    for kind, columns in TABLES.items():
        if entries := [entry for entry in found.values() if entry["kind"] == kind]:
            # Cases that were kept before a column came to be have nothing in it.
            shown = [
                column for column in columns if any(values(each["rounds"]["fastboot"], column) for each in entries)
            ]
            heads = [head for column in shown for head in (column.head, "best other")]
            yield f"| | {' | '.join(heads)} |"
            yield f"|---|{'---|' * len(heads)}"
            for entry in entries:
                cells = [
                    cell
                    for column in shown
                    for cell in (ours(entry, column, spread=column is columns[0]), best_other(entry, column))
                ]
                yield f"| {entry['says']} | {' | '.join(cells)} |"
            yield ""
    yield f"{origin(found)}least and most in brackets."

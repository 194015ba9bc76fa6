"""Which events of a storm become lines of the log: the first of each kind, and how many more there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from fastboot.model import Event
from fastboot.watch.events import Batch

LINES = 1000
"""Lines for each kind of event in a span. A morning of 300 machines stays below; systemd's journal drops what one
service writes beyond 10,000 lines in 30 s (RateLimitBurst in journald.conf)."""
SPAN = 10.0
"""Seconds."""


class Storm:
    """Bounds how many events of a kind are read in a span of time. Times are seconds of any clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._left: dict[str, int] = {}
        self._omitted: Counter[str] = Counter()

    def pick(self, batch: Batch, wanted: Mapping[str, int]) -> Iterator[Event]:
        """Yield those events of a batch that are to be written, in their order; the others are never made.

        `wanted` is how many there are of each kind that the log has a use for.
        """
        granted = {kind: min(count, self._left.get(kind, LINES)) for kind, count in wanted.items()}
        for kind, count in wanted.items():
            self._left[kind] = self._left.get(kind, LINES) - granted[kind]
            if omitted := count - granted[kind]:
                self._omitted[kind] += omitted
        left = sum(granted.values())
        at = 0
        while left:
            kind = batch.kind(at)
            if granted.get(kind):
                granted[kind] -= 1
                left -= 1
                yield batch[at]
            at += 1

    def omitted(self, now: float, *, end: bool = False) -> dict[str, int]:
        """Begin a new span where one is over, or at the `end`; return how many events of each kind it left out."""
        if now - self._since < SPAN and not end:
            return {}
        omitted = dict(self._omitted)
        self._since = now
        self._left.clear()
        self._omitted.clear()
        return omitted

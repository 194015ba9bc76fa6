"""The loop that plays a morning: machines are switched on, and each goes its way to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastboot.lab._machines import Machines, Outcome
from fastboot.lab.rehearsal.machine import Machine, Way
from fastboot.lab.rehearsal.walk import Walk


async def play(
    machines: Machines,
    cast: Sequence[Machine],
    walk: Walk,
    *,
    limit: float,
    every: float = 0.5,
    look: Callable[[int], None] = lambda running: None,
) -> None:
    """Switch the machines on, and go on until all have booted or stopped, or for `limit` seconds.

    `look` is called every so many seconds with the number of machines that are under way, and the event loop gets
    its turn then.
    """
    ways: dict[int, Way] = {}
    for m in cast:
        machines.pause(m.number, m.due)
    running, start = len(cast), machines.now
    seen = 0
    while running and machines.now - start < limit * 1e9:
        for outcome in machines.turn():
            m = cast[outcome.machine]
            if known := ways.get(m.number):
                running -= _has_ended(known, outcome)
            else:
                m.switched_on = outcome.ended
                way = ways[m.number] = walk.boot(m)
                running -= _has_ended(way, None)
        if machines.now - seen > every * 1e9:
            seen = machines.now
            look(running)
            await asyncio.sleep(0)
    for m in cast:
        if not m.booted and not m.fault:
            m.stopped, what = m.doing
            m.fault = f"was not done after {limit:.0f} s, but still at this: {what}"


def _has_ended(way: Way, outcome: Outcome | None) -> bool:
    try:
        way.send(outcome)  # type: ignore[arg-type]  # None begins a generator
    except StopIteration:
        return True
    return False

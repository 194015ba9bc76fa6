"""A lab that is interrupted tidies up: SIGINT and SIGTERM cancel what runs, the exit code tells which it was."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


class Interrupted(Exception):
    """What ran was cancelled by a signal and has tidied up. `code`: the exit code that tells which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


def run(work: Coroutine[Any, Any, Value]) -> Value:
    """Run in an event loop of its own, as `asyncio.run`. Raises Interrupted after SIGINT or SIGTERM; further ones
    change nothing: tidying up has begun."""
    heard: list[int] = []
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(work)

        # Not add_signal_handler, which takes three turns of the loop: those of a morning are half a second long.
        def hear(number: int, _: object) -> None:
            heard.append(number)
            if len(heard) == 1:
                task.cancel()
                loop.call_soon_threadsafe(lambda: None)

        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return loop.run_until_complete(task)
        except (asyncio.CancelledError, Exception):
            if not heard:
                raise
            # Whatever failed: Ctrl-C ends the programs that we run (ip, tc) as well.
            raise Interrupted(heard[0]) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""The windows that are granted: what repeats cost decides which window a client gets for its next file."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from fastboot._core import TftpEnd

REMEMBERED: Final = 8192
"""Addresses, those that lost something last."""
LEAST: Final = 4
"""Blocks. EDK2's; with fewer the timers decide the speed."""
TELLS: Final = 100
"""Blocks of a transfer. Fewer tell nothing of the path."""
MUCH, LITTLE = 0.1, 0.02
"""Repeats as a part of the blocks."""


class Windows:
    """Who loses much gets half the window next time, who loses little twice that again.

    A gap costs what of the window came after it. Clients acknowledge the whole window that they were granted, so
    nothing can be changed under way.
    """

    def __init__(self) -> None:
        self._most: OrderedDict[str, int] = OrderedDict()

    def most(self, address: str, limit: int) -> int:
        """Return how many blocks this address is granted, `limit` at most."""
        return min(limit, self._most.get(address, limit))

    def learn(self, address: str, end: TftpEnd) -> None:
        """Take what a transfer's end tells."""
        if end.blocks < TELLS:
            return
        lost = end.repeats / end.blocks
        if lost > MUCH and end.windowsize > LEAST:
            self._remember(address, max(LEAST, end.windowsize // 2))
        elif lost < LITTLE and end.windowsize == self._most.get(address):
            self._remember(address, 2 * end.windowsize)

    def _remember(self, address: str, most: int) -> None:
        self._most.pop(address, None)
        self._most[address] = most
        if len(self._most) > REMEMBERED:
            self._most.popitem(last=False)

"""Files as the TFTP engine takes them: in memory, for it must not wait for a disk, and as netascii has them."""

from __future__ import annotations

import asyncio
from weakref import WeakSet, WeakValueDictionary

from fastboot._core import Source

TURN: int = 16 << 20
"""Octets of a large file that are read at once: the firmware of others waits for its small file meanwhile."""
TURNS = 2
"""Large files that are read at the same time, of the threads that all of the loop's work has."""
MAX_TEXT = 16 << 20
"""Octets of the largest text that is converted: the copy is held in memory."""
MAX_TEXTS: int = 64 << 20
"""Octets of all texts that are held at the same time. One request of 40 octets makes a copy be held."""


class Files:
    """Reads files ahead, large ones in turns, and converts texts, once for all who ask. For one loop."""

    def __init__(self) -> None:
        self._warm: WeakSet[Source] = WeakSet()
        self._reading: dict[Source, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(TURNS)
        self._texts: WeakValueDictionary[tuple[int, ...], Source] = WeakValueDictionary()
        self._converting = asyncio.Lock()

    def __contains__(self, source: Source) -> bool:
        """Whether a file is in memory."""
        return source in self._warm

    def forget(self) -> None:
        """Read every file ahead once more when it is asked for next."""
        self._warm.clear()

    def close(self) -> None:
        """Stop reading."""
        for task in self._reading.values():
            task.cancel()

    async def warm(self, source: Source) -> None:
        """Have a file in memory. Raises OSError."""
        if (task := self._reading.get(source)) is None:
            task = self._reading[source] = asyncio.create_task(self._read(source))
            task.add_done_callback(lambda _: self._reading.pop(source))
        await asyncio.shield(task)

    async def text(self, source: Source) -> Source | None:
        """Return a file as netascii has it (RFC 764); None where too many texts are held. Raises OSError."""
        key = (*source.identity, source.offset, source.size)
        async with self._converting:
            text = self._texts.get(key)
            if text is None:
                if sum(each.size for each in self._texts.values()) + source.size > MAX_TEXTS:
                    return None
                text = await asyncio.get_running_loop().run_in_executor(None, source.netascii)
                self._texts[key] = text
        return text

    async def _read(self, source: Source) -> None:
        loop = asyncio.get_running_loop()
        if source.size <= TURN:
            await loop.run_in_executor(None, source.warm)
        else:
            for start in range(0, source.size, TURN):
                part = source.slice(start, min(TURN, source.size - start))
                async with self._turns:
                    await loop.run_in_executor(None, part.warm)
        self._warm.add(source)

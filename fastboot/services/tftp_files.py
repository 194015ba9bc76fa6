"""Files as netascii has them."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from fastboot._core import Source

MAX_TEXT = 16 << 20
"""Octets of the largest text that is converted: the copy is held in memory."""
MAX_TEXTS: int = 64 << 20
"""Octets of all texts that are held at the same time. One request of 40 octets makes a copy be held."""


class Texts:
    """Converts texts, once for all who ask. For one loop."""

    def __init__(self) -> None:
        self._texts: WeakValueDictionary[tuple[int, ...], Source] = WeakValueDictionary()
        self._converting = asyncio.Lock()

    async def of(self, source: Source) -> Source | None:
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

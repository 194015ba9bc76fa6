"""What HTTP and FTP tell of files that were sent, as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastboot.model import Event
from fastboot.watch.events import Batch

FileSent = tuple[float, str, str | None, str, int, float]
"""When, to which address, its MAC, the path, octets, seconds."""


@dataclass(frozen=True, slots=True)
class FilesSent:
    """A batch of `about` events: each is made when somebody reads it. `shown` makes a path one for people."""

    about: str
    shown: Callable[[str], str]
    files: Sequence[FileSent]

    def __len__(self) -> int:
        return len(self.files)

    def kind(self, at: int) -> str:
        return self.about

    def kinds(self) -> Mapping[str, int]:
        return {self.about: len(self.files)}

    def __getitem__(self, at: int) -> Event:
        when, peer, mac, path, size, seconds = self.files[at]
        facts = {"peer": peer, "path": self.shown(path), "bytes": size, "seconds": round(seconds, 3)}
        return Event(when, self.about, mac=mac, details=facts)


class Sent:
    """Files that were sent, told of in one batch for each turn of the loop."""

    def __init__(self, about: str, shown: Callable[[str], str], emit_all: Callable[[Batch], None]) -> None:
        self._about, self._shown, self._emit_all = about, shown, emit_all
        self._files: list[FileSent] = []

    def add(self, peer: str, mac: str | None, path: str, size: int, seconds: float) -> None:
        """Take it that so many octets of a file were sent in so many seconds."""
        if not self._files:
            asyncio.get_running_loop().call_soon(self.tell)
        self._files.append((time.time(), peer, mac, path, size, seconds))

    def tell(self) -> None:
        """Tell of them now: before what is told next."""
        if self._files:
            files, self._files = self._files, []
            self._emit_all(FilesSent(self._about, self._shown, files))

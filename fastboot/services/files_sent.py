"""What HTTP and FTP tell of files that were sent, as events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastboot.model import Event

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

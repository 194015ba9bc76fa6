"""What HTTP tells of files that were sent, as events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastboot.model import Event
from fastboot.services.http_pages import printable
from fastboot.services.node_files import masked

FileSent = tuple[float, str, str | None, str, int, float]
"""When, to which address, its MAC, the path, octets, seconds."""


@dataclass(frozen=True, slots=True)
class FilesSent:
    """A batch of `http.sent`: each is made when somebody reads it."""

    files: Sequence[FileSent]

    def __len__(self) -> int:
        return len(self.files)

    def kind(self, at: int) -> str:
        return "http.sent"

    def kinds(self) -> Mapping[str, int]:
        return {"http.sent": len(self.files)}

    def __getitem__(self, at: int) -> Event:
        when, peer, mac, path, size, seconds = self.files[at]
        facts = {"peer": peer, "path": printable(masked(path)), "bytes": size, "seconds": round(seconds, 3)}
        return Event(when, "http.sent", mac=mac, details=facts)

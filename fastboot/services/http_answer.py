"""HTTP answers: a header of ours, and in one piece with it the body where that is at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from fastboot.services.http_message import http_date

RETRY: Final = 5
"""Seconds after which a client that was turned away should ask again; iPXE does."""
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Answer:
    """A status, fields, of which none holds what a client said, and a body or, with `size`, the length of one that
    is written later, or that HEAD is told of."""

    status: int
    fields: Mapping[str, str]
    body: bytes = b""
    size: int | None = None
    closes: bool = False
    """Whether the connection ends with it."""

    def head(self, *, keeps: bool, says_so: bool) -> bytes:
        """Return the status line and the fields. `says_so`: a connection that is kept is not what the client takes
        for granted, as with HTTP/1.0."""
        lines = [f"HTTP/1.1 {self.status} {PHRASES[self.status]}"]
        lines += [f"{name}: {value}" for name, value in self.fields.items()]
        lines.append("Server: fastboot")
        if self.status != 304:
            lines.append(f"Content-Length: {len(self.body) if self.size is None else self.size}")
        lines.append(f"Date: {http_date(int(time.time()))}")
        if not keeps or says_so:
            lines.append("Connection: keep-alive" if keeps else "Connection: close")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("ascii")


Ready = Answer | bytes
"""What can be sent now: an Answer, or the octets of one to a request without fields, if the connection is kept."""


def notice(status: int, words: str, fields: Mapping[str, str] | None = None, *, closes: bool = False) -> Answer:
    """Return an answer for people."""
    retry = {"Retry-After": str(RETRY)} if status == 503 else {}
    plain = {"Content-Type": "text/plain; charset=utf-8", **retry, **(fields or {})}
    return Answer(status, plain, f"{status} {PHRASES[status]}: {words}\n".encode(), closes=closes)

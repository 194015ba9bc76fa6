"""Bodies of HTTP answers: parts of files, and the octets between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastboot._core import Source

Piece = Source | bytes


def at_hand(pieces: Sequence[Piece]) -> bytes | None:
    """Return a body that is in memory and that nobody changed."""
    body = b""
    for piece in pieces:
        part = piece if isinstance(piece, bytes) else piece.at_hand()
        if part is None or not (isinstance(piece, bytes) or piece.unchanged()):
            return None
        body += part
    return body


def multipart(source: Source, parts: Sequence[tuple[int, int]], boundary: str, type_: str) -> Iterator[Piece]:
    """Yield a body of several parts, (start, end) with `end` excluded (RFC 9110 section 14.6)."""
    for start, end in parts:
        fields = f"Content-Type: {type_}\r\nContent-Range: bytes {start}-{end - 1}/{source.size}"
        yield f"\r\n--{boundary}\r\n{fields}\r\n\r\n".encode()
        yield source.slice(start, end - start)
    yield f"\r\n--{boundary}--\r\n".encode()

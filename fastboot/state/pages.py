"""SQLite's files read without SQLite, for what it can not or will not read (sqlite.org/fileformat2.html).

Nothing here opens the database file while this process has a connection to it: closing any descriptor of a file
drops all locks that the process has on it. The write-ahead log carries no locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEAD = b"SQLite format 3\0"
WAL_HEAD, FRAME_HEAD = 32, 24
WAL_MAGIC = (0x377F0682, 0x377F0683)
INDEX_INTERIOR, INDEX_LEAF, TABLE_LEAF = 2, 10, 13


class Frame(NamedTuple):
    """A page in the write-ahead log; `commits` marks the last of a transaction."""

    at: int
    salts: bytes
    commits: bool


class Wal:
    """A write-ahead log as it lies on the disk."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        with path.open("rb") as file:
            head = file.read(WAL_HEAD)
            self.sound = _is_sound(head)
            self.salts = head[16:24]
            self.page = _page_size(int.from_bytes(head[8:12]))
            self.frames: list[Frame] = []
            if len(head) < WAL_HEAD:
                return
            step = FRAME_HEAD + self.page
            for at in range(WAL_HEAD, os.fstat(file.fileno()).st_size - step + 1, step):
                file.seek(at)
                frame = file.read(FRAME_HEAD)
                self.frames.append(Frame(at, frame[8:16], frame[4:8] != bytes(4)))

    def after(self, accepted: int) -> list[Frame]:
        """Return the frames of this log beyond those that SQLite took, not those of an earlier, finished one."""
        rest = self.frames[accepted:]
        if self.sound:
            return [frame for frame in rest if frame.salts == self.salts]
        return [frame for frame in rest if frame.salts == rest[0].salts]

    def pages(self, frames: list[Frame]) -> Iterator[bytes]:
        """Yield the pages of frames; one that can not be read is left out."""
        with self.path.open("rb") as file:
            for frame in frames:
                yield from _read(file.fileno(), frame.at + FRAME_HEAD, self.page)


def database_pages(path: Path) -> Iterator[bytes]:
    """Yield the pages of a database file; one that can not be read is left out. Raises OSError."""
    with path.open("rb") as file:
        page = _page_size(int.from_bytes(file.read(18)[16:18]))
        for at in range(0, os.fstat(file.fileno()).st_size, page):
            yield from _read(file.fileno(), at, page)


def records(page: bytes) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Yield the records of a page that holds any, each with its row number (0 in an index); texts are octets.

    Rubbish gives wrong records or none, never an error. A record that goes on in another page is left out.
    """
    head = 100 if page.startswith(HEAD) else 0
    kind = page[head] if len(page) > head + 12 else 0
    if kind not in (INDEX_INTERIOR, INDEX_LEAF, TABLE_LEAF):
        return
    pointers = head + (12 if kind == INDEX_INTERIOR else 8)
    for number in range(int.from_bytes(page[head + 3 : head + 5])):
        place = pointers + 2 * number
        try:
            yield _record(page, kind, int.from_bytes(page[place : place + 2]))
        except (ValueError, IndexError):
            continue


def _record(page: bytes, kind: int, at: int) -> tuple[int, tuple[object, ...]]:
    row = 0
    size, at = _varint(page, at + 4 if kind == INDEX_INTERIOR else at)
    if kind == TABLE_LEAF:
        row, at = _varint(page, at)
    local = len(page) - 35 if kind == TABLE_LEAF else (len(page) - 12) * 64 // 255 - 23
    if size > local or at + size > len(page):
        raise ValueError("it is not all here")
    end, at = at + size, at
    length, column = _varint(page, at)
    values, value = [], at + length
    while column < at + length:
        serial, column = _varint(page, column)
        octets = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[serial] if serial < 10 else (serial - 12) // 2
        if serial in (10, 11) or value + octets > end:
            raise ValueError("no such value")
        values.append(_value(serial, page[value : value + octets]))
        value += octets
    return row, tuple(values)


def _value(serial: int, octets: bytes) -> object:
    if serial == 0 or serial == 7:  # a NULL; a float, which no table of ours has
        return None
    if serial in (8, 9):
        return serial - 8
    return int.from_bytes(octets, signed=True) if serial < 7 else octets


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        octet = page[at + place]
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            return value, at + place + 1
    value = value << 8 | page[at + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, at + 9


def _read(fd: int, at: int, size: int) -> Iterator[bytes]:
    try:
        yield os.pread(fd, size, at)
    except OSError:  # a sector that the disk gives up
        return


def _page_size(number: int) -> int:
    size = 65536 if number == 1 else number
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else 4096


def _is_sound(head: bytes) -> bool:
    if len(head) < WAL_HEAD or (magic := int.from_bytes(head[:4])) not in WAL_MAGIC:
        return False
    one = two = 0
    for at in range(0, 24, 8):
        first, second = (
            int.from_bytes(head[place : place + 4], "big" if magic & 1 else "little") for place in (at, at + 4)
        )
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return (one, two) == (int.from_bytes(head[24:28]), int.from_bytes(head[28:32]))

"""What the readers of images share: reading in bounds, the names that they find, the errors that they raise."""

from __future__ import annotations

import calendar
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from fastboot.model import FastbootError

SECTOR: Final = 2048
"""Octets of a sector of every optical medium (ECMA-119 section 6.1.2)."""
MAX_ENTRIES: Final = 1_000_000
"""Entries of an image: sixteen times those of Debian's largest, on Blu-ray."""
MAX_DEPTH: Final = 255
"""Directories within directories. Linux ends a path at 4096 octets; no medium goes beyond twenty."""
MAX_DIRECTORY: Final = 256 << 20
"""Octets of one directory: what MAX_ENTRIES of the longest common names take."""
MAX_READ: Final = 2 << 30
"""Octets of all structures: what MAX_ENTRIES of UDF take, a sector each. In an image whose structures overlap they
would be read again and again."""


class ImageError(FastbootError):
    """An image that can not be read. Names the structure, its offset in the file, and what is wrong with it."""

    def __init__(self, structure: str, offset: int, fault: str) -> None:
        super().__init__(f"{structure} at {offset:#x}: {fault}")


class Kind(StrEnum):
    """What a name in an image stands for."""

    DIRECTORY = "directory"
    FILE = "file"
    LINK = "link"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Item:
    """A name in a directory of an image.

    `parent` is the number of its directory, `number` that of the directory it is; 0 is the top. A file is the
    `size` octets from `offset` of the image. `text` is a link's target, or why the name is refused.
    `mtime` is in seconds since the epoch.
    """

    parent: int
    name: bytes
    kind: Kind
    mtime: int
    offset: int = 0
    size: int = 0
    number: int = 0
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a walk is: directories read, of those known so far, and names found in them."""

    read: int
    known: int
    names: int


class Volume(Protocol):
    """One directory tree of an image."""

    form: str
    """"Rock Ridge", "Joliet", "ISO 9660" or "UDF"."""
    label: str
    mtime: int

    def walk(self) -> Iterator[Item | Step]:
        """Yield every name below the top, a directory before what is in it, and a step after each directory.

        Raises ImageError.
        """


class Image:
    """An open file that is read in bounds. The descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._left = MAX_READ

    def read(self, offset: int, length: int, structure: str) -> bytes:
        """Read exactly `length` octets of a named structure. Raises ImageError where there are not that many, or
        MAX_READ have been read."""
        self.check(offset, length, structure)
        self._left -= length
        if self._left < 0:
            raise ImageError(
                structure, offset, f"more than {MAX_READ >> 20} MiB of structures in one image; a loop?"
            )
        try:
            data = os.pread(self.fd, length, offset)
        except OSError as error:
            raise ImageError(structure, offset, os.strerror(error.errno or 0)) from error
        if len(data) != length:
            raise ImageError(structure, offset, "the file became shorter")
        return data

    def check(self, offset: int, length: int, structure: str | Callable[[], str]) -> None:
        """Raises ImageError unless the file holds these octets. What takes long to name is named only then."""
        if offset + length > self.size:
            name = structure if isinstance(structure, str) else structure()
            raise ImageError(
                name, offset, f"ends at {offset + length:#x}, the file at {self.size:#x}; is it whole?"
            )


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that a walk has yet to read: its number, where it begins, its octets, and where it is."""

    number: int
    offset: int
    size: int
    name: bytes = b""
    parent: Place | None = None
    depth: int = 0

    def path_of(self, name: bytes) -> str:
        """Return the path of a name in it, for messages."""
        parts, place = [name], self
        while place.parent is not None:
            parts.append(place.name)
            place = place.parent
        return ascii(b"/".join((b"", *reversed(parts))).decode("utf-8", "backslashreplace"))[1:-1]


class Queue:
    """The directories that a walk has yet to read. Keeps it finite: each one once, depth and names bounded."""

    def __init__(self, offset: int, size: int) -> None:
        self._places = [Place(0, offset, size)]
        self._seen = {offset}
        self._read = self._names = 0

    def __iter__(self) -> Iterator[Place]:
        """Yield each directory, those that `add` brings meanwhile too."""
        for place in self._places:
            yield place
            self._read += 1

    def add(self, parent: Place, name: bytes, offset: int, size: int, structure: str, at: int) -> int | None:
        """Return the number of a new directory, or None where the walk knows one at the same place (a loop).

        Raises ImageError where it is too large or too deep.
        """
        if offset in self._seen:
            return None
        if size > MAX_DIRECTORY:
            raise ImageError(structure, at, f"a directory of {size} octets")
        if parent.depth >= MAX_DEPTH:
            raise ImageError(structure, at, f"directories more than {MAX_DEPTH} deep")
        self._seen.add(offset)
        self._places.append(Place(len(self._places), offset, size, name, parent, parent.depth + 1))
        return len(self._places) - 1

    def count(self, structure: str, at: int) -> None:
        """Count a name. Raises ImageError at the limit."""
        self._names += 1
        if self._names > MAX_ENTRIES:
            raise ImageError(structure, at, f"more than {MAX_ENTRIES} names in one image")

    def step(self) -> Step:
        """To be yielded when a directory has been read."""
        return Step(self._read + 1, len(self._places), self._names)


def seconds_of(year: int, month: int, day: int, hour: int, minute: int, second: int, zone: int) -> int:
    """Return a date and time, `zone` minutes east of UTC, in seconds since the epoch; 0 for what is none."""
    if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31 and -1440 <= zone <= 1440):
        return 0
    return max(0, calendar.timegm((year, month, day, hour, minute, second)) - zone * 60)

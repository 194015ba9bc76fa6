"""UDF (ECMA-167, OSTA UDF 1.02 and later) as mastering programs write it: where in the image each file is.

Only plain partitions: those that films (metadata partitions) and discs written in pieces (virtual and sparable
ones, strategy 4096) have are refused by name.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fastboot.boot.image import (
    MAX_DIRECTORY,
    MAX_ENTRIES,
    SECTOR,
    Image,
    ImageError,
    Item,
    Kind,
    Place,
    Queue,
    Step,
    seconds_of,
)

SECTORS: Final = (2048, 512, 4096, 1024)
"""Sizes of a sector, the likely first: an anchor tells only by being where it is."""
ANCHOR: Final = 256
"""The sector of the anchor (UDF 2.2.3); the others are 256 before the end and the end itself."""
MAX_EXTENTS: Final = 65_536
"""Extents of one file: 64 TiB of them. Also what ends a loop of allocation descriptors."""
MAX_ALL_EXTENTS: Final = 4 * MAX_ENTRIES
"""Extents of all files."""
MAX_LINK: Final = 32_768
"""Octets of a link, with their heads (a target of PATH_MAX in names of one letter)."""
TAG: Final = 16
ANCHOR_TAG, PARTITION_TAG, LOGICAL_TAG, TERMINATOR_TAG = 2, 5, 6, 8
FILE_SET_TAG, NAME_TAG, EXTENT_TAG, FILE_TAG, EXTENDED_TAG = 256, 257, 258, 261, 266
DIRECTORY, REGULAR, LINK = 4, (0, 5), 12
"""Types of a file (ECMA-167 4/14.6.6)."""
NAME_HEAD: Final = 38
"""Octets of a file identifier before its variable parts (ECMA-167 4/14.4)."""
DELETED, PARENT = 4, 8
"""Characteristics of a name (ECMA-167 4/14.4.3)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Octets of the image in a row; `recorded` is False for a hole, which reads as zeros."""

    offset: int
    size: int
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """A file entry: what a name leads to. `at` is its offset in the image, `extents` its data."""

    at: int
    type: int
    size: int
    mtime: int
    extents: tuple[Extent, ...]


class UdfVolume:
    """The directory tree of a UDF image."""

    form = "UDF"

    def __init__(self, image: Image, sector: int, anchor: bytes) -> None:
        """Raises ImageError."""
        self._image, self._sector = image, sector
        self._partitions: list[Extent] = []
        self._extents_left = MAX_ALL_EXTENTS
        logical, partitions = self._descriptors(anchor)
        at, descriptor = logical
        size = struct.unpack_from("<I", descriptor, 212)[0]
        if size != sector:
            raise ImageError("logical volume descriptor", at, f"blocks of {size} octets on sectors of {sector}")
        self.label = _text(descriptor[84 : 84 + min(descriptor[211], 127)]).strip(" \0")
        self._map_partitions(at, descriptor, partitions)
        block, partition = struct.unpack_from("<IH", descriptor, 252)
        at = self._find(block, partition, "file set descriptor")
        files = self._descriptor(at, (FILE_SET_TAG,), "file set descriptor")
        block, partition = struct.unpack_from("<IH", files, 404)
        self._top = self._find(block, partition, "file entry")
        top = self._entry(self._top)
        if top.type != DIRECTORY:
            raise ImageError("file entry", self._top, "the top is no directory")
        self.mtime = top.mtime

    def walk(self) -> Iterator[Item | Step]:
        queue = Queue(self._top, 0)
        for place in queue:
            for at, name, target in self._names(place):
                queue.count("file identifier", at)
                yield self._item(place, name, target, queue, at)
            yield queue.step()

    # --- the volume

    def _descriptors(self, anchor: bytes) -> tuple[tuple[int, bytes], dict[int, Extent]]:
        """Return the logical volume descriptor with its offset, and the partitions by number."""
        length, start = struct.unpack_from("<II", anchor, 16)
        logical: tuple[int, bytes] | None = None
        partitions: dict[int, Extent] = {}
        for at in range(start * self._sector, start * self._sector + min(length, 4096 * SECTOR), self._sector):
            data = self._image.read(at, self._sector, "volume descriptor")
            tag = _tag(data, "volume descriptor", at)
            if tag == TERMINATOR_TAG:
                break
            if tag == PARTITION_TAG:
                number = struct.unpack_from("<H", data, 22)[0]
                first, count = struct.unpack_from("<II", data, 188)
                partitions[number] = Extent(first * self._sector, count * self._sector)
            elif tag == LOGICAL_TAG:
                logical = at, data
        if logical is None:
            raise ImageError(
                "volume descriptor sequence", start * self._sector, "has no logical volume descriptor"
            )
        return logical, partitions

    def _map_partitions(self, at: int, descriptor: bytes, partitions: dict[int, Extent]) -> None:
        start = 440
        for _ in range(min(struct.unpack_from("<I", descriptor, 268)[0], 64)):
            kind, length = descriptor[start : start + 2].ljust(2, b"\0")
            entry = descriptor[start : start + length]
            if kind != 1 or len(entry) != 6:
                name = ascii(entry[5:28].rstrip(b"\0").decode("latin-1"))
                raise ImageError("partition map", at + start, f"a partition of type {kind}, {name}: not read here")
            number = struct.unpack_from("<H", entry, 4)[0]
            if number not in partitions:
                raise ImageError("partition map", at + start, f"there is no partition {number}")
            self._partitions.append(partitions[number])
            start += length

    def _find(self, block: int, partition: int, structure: str) -> int:
        """Return the offset in the image of a block of a partition."""
        if partition >= len(self._partitions):
            raise ImageError(structure, block * self._sector, f"there is no partition {partition}")
        extent = self._partitions[partition]
        if block * self._sector >= extent.size:
            raise ImageError(structure, block * self._sector, f"block {block} is beyond partition {partition}")
        return extent.offset + block * self._sector

    def _descriptor(self, at: int, wanted: tuple[int, ...], structure: str) -> bytes:
        data = self._image.read(at, self._sector, structure)
        if (tag := _tag(data, structure, at)) not in wanted:
            raise ImageError(structure, at, f"is a descriptor of type {tag}")
        return data

    # --- files

    def _entry(self, at: int) -> Entry:
        data = self._descriptor(at, (FILE_TAG, EXTENDED_TAG), "file entry")
        strategy, flags = struct.unpack_from("<H12xH", data, 20)
        if strategy != 4:
            raise ImageError("file entry", at, f"strategy {strategy}, which is not read here")
        is_extended = struct.unpack_from("<H", data)[0] == EXTENDED_TAG
        size = struct.unpack_from("<Q", data, 56)[0]
        mtime = _time(data[92:104] if is_extended else data[84:96])
        attributes, length = struct.unpack_from("<II", data, 208 if is_extended else 168)
        start = (216 if is_extended else 176) + attributes
        if start + length > len(data):
            raise ImageError("file entry", at, f"{length} octets of allocation descriptors from octet {start}")
        form = flags & 7
        if form == 3:
            extents = [Extent(at + start, length)]
        elif form < 2:
            # A short descriptor has no partition of its own: it is that of the file entry.
            extents = list(self._extents(at, data[start : start + length], form, self._partition_of(at)))
        else:
            raise ImageError("file entry", at, f"allocation descriptors of type {form}, which is not read here")
        return Entry(at, data[27], size, mtime, tuple(_cut(extents, size, at)))

    def _partition_of(self, at: int) -> int:
        for number, extent in enumerate(self._partitions):
            if extent.offset <= at < extent.offset + extent.size:
                return number
        raise ImageError("file entry", at, "is in no partition")

    def _extents(self, at: int, data: bytes, form: int, partition: int) -> Iterator[Extent]:
        width = 16 if form else 8
        start = 0
        for _ in range(MAX_EXTENTS):
            if start + width > len(data):
                return
            word, block = struct.unpack_from("<II", data, start)
            where = struct.unpack_from("<H", data, start + 8)[0] if form else partition
            start += width
            size, kind = word & 0x3FFFFFFF, word >> 30
            if size == 0:
                return
            self._extents_left -= 1
            if self._extents_left < 0:
                raise ImageError("file entry", at, f"more than {MAX_ALL_EXTENTS} extents in one image")
            if kind == 3:
                # The descriptors go on in another extent (ECMA-167 4/14.5).
                more = self._find(block, where, "allocation extent")
                rest = self._descriptor(more, (EXTENT_TAG,), "allocation extent")
                data, start = rest[24 : 24 + struct.unpack_from("<I", rest, 20)[0]], 0
            elif kind:
                yield Extent(0, size, recorded=False)
            else:
                yield Extent(self._find(block, where, "extent"), size)
        raise ImageError("file entry", at, f"more than {MAX_EXTENTS} extents; a loop?")

    def _read(self, entry: Entry) -> bytes:
        """Return the data of a directory or a link."""
        if entry.size > MAX_DIRECTORY:
            raise ImageError("file entry", entry.at, f"a directory of {entry.size} octets")
        return b"".join(
            self._image.read(extent.offset, extent.size, "directory") if extent.recorded else bytes(extent.size)
            for extent in entry.extents
        )

    def _names(self, place: Place) -> Iterator[tuple[int, bytes, int]]:
        """Yield (offset of the directory's entry, name, offset of the file entry) of what is in a directory."""
        entry = self._entry(place.offset)
        data = self._read(entry)
        at = 0
        while at + NAME_HEAD <= len(data):
            traits, length, block, partition, extra = struct.unpack_from("<BB4xIH6xH", data, at + 18)
            end = at + NAME_HEAD + extra + length
            padded = (end + 3) & ~3
            if (tag := _tag(data[at:padded], "file identifier", place.offset)) != NAME_TAG:
                raise ImageError("file identifier", place.offset, f"is a descriptor of type {tag}")
            if not traits & (DELETED | PARENT):
                name = _text(data[end - length : end]).encode()
                yield place.offset, name, self._find(block, partition, "file entry")
            at = padded

    def _item(self, place: Place, name: bytes, target: int, queue: Queue, at: int) -> Item:
        entry = self._entry(target)
        if entry.type == DIRECTORY:
            number = queue.add(place, name, target, 0, "file identifier", at)
            if number is None:
                text = f"file entry at {target:#x}: it is another directory too".encode()
                return Item(place.number, name, Kind.REFUSED, entry.mtime, text=text)
            return Item(place.number, name, Kind.DIRECTORY, entry.mtime, number=number)
        if entry.type == LINK and entry.size > MAX_LINK:
            return Item(place.number, name, Kind.REFUSED, entry.mtime, text=b"is a link without a usable target")
        if entry.type == LINK:
            return Item(place.number, name, Kind.LINK, entry.mtime, text=_link(self._read(entry), target))
        if entry.type not in REGULAR:
            return Item(place.number, name, Kind.REFUSED, entry.mtime, text=b"is not a regular file")
        end = offset = entry.extents[0].offset if entry.extents else 0
        for extent in entry.extents:
            if not extent.recorded:
                return Item(place.number, name, Kind.REFUSED, entry.mtime, text=b"is stored with holes in it")
            if extent.offset != end:
                return Item(place.number, name, Kind.REFUSED, entry.mtime, text=b"is stored in pieces")
            end += extent.size
        self._image.check(offset, entry.size, lambda: f"file entry at {target:#x}: data of {place.path_of(name)}")
        return Item(place.number, name, Kind.FILE, entry.mtime, offset, entry.size)


def _tag(data: bytes, structure: str, at: int) -> int:
    """Return the type of a descriptor (ECMA-167 3/7.2). Raises ImageError where its sums are wrong."""
    if len(data) < TAG or (sum(data[:TAG]) - data[4]) & 0xFF != data[4]:
        raise ImageError(structure, at, "the sum of its tag is wrong")
    kind, crc, length = struct.unpack_from("<H6xHH", data)
    if length and (len(data) < TAG + length or binascii.crc_hqx(data[TAG : TAG + length], 0) != crc):
        raise ImageError(structure, at, "its checksum is wrong")
    return int(kind)


def _cut(extents: list[Extent], size: int, at: int) -> Iterator[Extent]:
    """Yield the extents, the last cut to the size of the file: what follows in its block is not its own."""
    for extent in extents:
        if extent.size and size:
            yield Extent(extent.offset, min(extent.size, size), extent.recorded)
            size -= min(extent.size, size)
    if size:
        raise ImageError("file entry", at, f"{size} octets of the file have no extent")


def _text(data: bytes) -> str:
    """Decode a name (UDF 2.1.1): of octets or of UTF-16, as its first octet says. What can not be is replaced."""
    if data[:1] in (b"\x08", b"\xfe"):
        return data[1:].decode("latin-1")
    return data[1:].decode("utf-16-be", "replace")


def _link(data: bytes, at: int) -> bytes:
    """Return the target of a link (ECMA-167 4/14.16)."""
    parts: list[str] = []
    start = 0
    while start + 4 <= len(data):
        kind, length = data[start], data[start + 1]
        parts.append({1: "/", 2: "/", 3: "..", 4: "."}.get(kind) or _text(data[start + 4 : start + 4 + length]))
        start += 4 + length
    if not parts:
        raise ImageError("file entry", at, "a link without a target")
    return "/".join(parts).replace("//", "/").encode()


def _time(data: bytes) -> int:
    """Return seconds since the epoch of a timestamp (ECMA-167 1/7.3); 0 for what is no time."""
    zone, year, month, day, hour, minute, second = struct.unpack_from("<Hh5B", data)
    offset = (zone & 0xFFF) - ((zone & 0x800) << 1)
    # -2047: none is given
    return seconds_of(year, month, day, hour, minute, second, 0 if offset == -2047 else offset)


def udf_volume(image: Image) -> UdfVolume | None:
    """Return the tree of a UDF image, or None where it is none. Raises ImageError."""
    for sector in SECTORS:
        last = image.size // sector - 1
        for number in (ANCHOR, last - ANCHOR, last):
            at = number * sector
            if number <= 0 or at + 512 > image.size:
                continue
            anchor = image.read(at, 512, "anchor")
            try:
                if _tag(anchor, "anchor", at) == ANCHOR_TAG and struct.unpack_from("<I", anchor, 12)[0] == number:
                    return UdfVolume(image, sector, anchor)
            except ImageError:
                if number != ANCHOR or anchor[:2] != b"\2\0":
                    continue
                raise
    return None

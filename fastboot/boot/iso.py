"""ISO 9660 (ECMA-119) with Rock Ridge (IEEE P1282) and Joliet: where in the image each file is.

Shows the names that Linux shows of a mounted image: Rock Ridge's where it has them, else Joliet's, else its own in
lower case without the version. Only little-endian numbers are read, as Linux does, and every one is checked.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from fastboot.boot.image import (
    MAX_DIRECTORY,
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

SYSTEM_AREA: Final = 16 * SECTOR
MAX_DESCRIPTORS: Final = 64
"""Volume descriptors before the terminator; real images have at most five."""
RECORD: Final = struct.Struct("<BBI4xI4x7sBBB")
"""Directory record (ECMA-119 section 9.1): length, attribute length, extent, size, date, flags, unit, gap."""
RECORD_HEAD: Final = 33
DIRECTORY, ASSOCIATED, NOT_LAST = 0x02, 0x04, 0x80
"""Flags of a directory record (ECMA-119 section 9.1.6)."""
JOLIET: Final = (b"%/@", b"%/C", b"%/E")
"""Escape sequences of UCS-2 levels 1 to 3 (Joliet specification, section 1)."""
MAX_CONTINUATIONS: Final = 32
"""Continuation areas of one record: Linux's own limit (RR_MAX_CE_ENTRIES)."""
MAX_LINK: Final = 4095
"""Octets of a link's target (PATH_MAX)."""


@dataclass(slots=True)
class Record:
    """A directory record. `at` is its own offset in the image; `parts` are (offset, octets) of its data."""

    at: int
    name: bytes
    flags: int
    mtime: int
    parts: list[tuple[int, int]]
    system: bytes
    interleaved: bool


@dataclass(slots=True)
class RockRidge:
    """What the system use fields of one record say."""

    name: bytes = b""
    own_name: bool = False
    mode: int = 0
    mtime: int | None = None
    target: list[bytes] = field(default_factory=list)
    target_continues: bool = False
    is_link: bool = False
    child: int | None = None
    relocated: bool = False
    refusal: bytes = b""


class IsoVolume:
    """A directory tree of an ISO 9660 image: the primary one, or Joliet's."""

    def __init__(self, image: Image, descriptor: bytes, at: int, joliet: bool = False) -> None:
        """`descriptor` is the volume descriptor at `at`. Raises ImageError."""
        self._image = image
        self._skip = 0
        self._block: int = struct.unpack_from("<H", descriptor, 128)[0]
        if self._block not in (512, 1024, 2048):
            raise ImageError("volume descriptor", at, f"blocks of {self._block} octets, not 512, 1024 or 2048")
        root = self._record(descriptor[156:190], at + 156)
        if not root.flags & DIRECTORY:
            raise ImageError("root directory record", at + 156, "is no directory")
        self._top, self._size = root.parts[0]
        if self._size > MAX_DIRECTORY:
            raise ImageError("root directory record", at + 156, f"a directory of {self._size} octets")
        self.mtime = root.mtime
        label = descriptor[40:72]
        self.label = (label.decode("utf-16-be", "replace") if joliet else label.decode("latin-1")).strip(" \0")
        self.form = "Joliet" if joliet else "Rock Ridge" if self._find_rock_ridge() else "ISO 9660"

    def walk(self) -> Iterator[Item | Step]:
        queue = Queue(self._top, self._size)
        for place in queue:
            for record in self._files(place):
                queue.count("directory record", record.at)
                if item := self._item(place, record, queue):
                    yield item
            yield queue.step()

    # --- records

    def _record(self, data: bytes, at: int) -> Record:
        length, attributes, extent, size, date, flags, unit, gap = RECORD.unpack_from(data)
        end = RECORD_HEAD + data[32]
        if length < end or len(data) < length:
            raise ImageError("directory record", at, f"a name of {data[32]} octets in a record of {length}")
        start = (extent + attributes) * self._block if size else 0
        system = data[end + (end & 1) : length]
        return Record(at, data[33:end], flags, _date(date), [(start, size)], system, bool(unit or gap))

    def _records(self, offset: int, size: int) -> Iterator[Record]:
        """Yield the records of a directory, those of itself and its parent first."""
        for start in range(offset, offset + size, SECTOR):
            sector = self._image.read(start, min(SECTOR, offset + size - start), "directory")
            at = 0
            # A record ends in the sector that it begins in; after the last one there are zeros (section 6.8.1.1).
            while at < len(sector) and (length := sector[at]):
                if length <= RECORD_HEAD or at + length > len(sector):
                    raise ImageError("directory record", start + at, f"a length of {length} octets")
                yield self._record(sector[at : at + length], start + at)
                at += length

    def _files(self, place: Place) -> Iterator[Record]:
        """Yield what is in a directory, the sections of a file joined."""
        whole: Record | None = None
        for record in self._records(place.offset, place.size):
            if record.name in (b"\0", b"\1") or record.flags & ASSOCIATED:
                continue
            if whole is None:
                whole = record
            elif record.name == whole.name:
                whole.parts += record.parts
                whole.interleaved |= record.interleaved
            else:
                break
            if not record.flags & NOT_LAST:
                yield whole
                whole = None
        if whole is not None:
            raise ImageError("directory record", whole.at, "the last section of the file is missing")

    def _item(self, place: Place, record: Record, queue: Queue) -> Item | None:
        try:
            rock = self._rock_ridge(record) if self.form == "Rock Ridge" else RockRidge()
        except ImageError as error:
            # Of genisoimage, for one: it spoils the fields of links that are longer than 230 octets.
            text = str(error).encode()
            return Item(place.number, self._own_name(record), Kind.REFUSED, record.mtime, text=text)
        if rock.relocated:
            return None
        name = rock.name if rock.own_name else self._own_name(record)
        mtime = record.mtime if rock.mtime is None else rock.mtime
        if record.flags & DIRECTORY or rock.child is not None:
            return self._directory(place, record, queue, name, mtime, rock.child)
        if rock.is_link or stat.S_ISLNK(rock.mode):
            return self._link(place, name, mtime, rock)
        if rock.mode and not stat.S_ISREG(rock.mode):
            return Item(place.number, name, Kind.REFUSED, mtime, text=b"is not a regular file")
        if rock.refusal:
            return Item(place.number, name, Kind.REFUSED, mtime, text=rock.refusal)
        return self._file(place, record, name, mtime)

    def _file(self, place: Place, record: Record, name: bytes, mtime: int) -> Item:
        parts = [part for part in record.parts if part[1]]
        if record.interleaved:
            return Item(place.number, name, Kind.REFUSED, mtime, text=b"is stored interleaved")
        size = 0
        offset = parts[0][0] if parts else 0
        for start, length in parts:
            self._image.check(
                start, length, lambda: f"directory record at {record.at:#x}: file {place.path_of(name)}"
            )
            if start != offset + size:
                return Item(place.number, name, Kind.REFUSED, mtime, text=b"is stored in pieces")
            size += length
        return Item(place.number, name, Kind.FILE, mtime, offset, size)

    def _directory(
        self, place: Place, record: Record, queue: Queue, name: bytes, mtime: int, child: int | None
    ) -> Item:
        offset, size = record.parts[0]
        if child is not None:
            # Moved away, for it is deeper than ISO 9660 allows (RRIP 4.1.5): its own first record has its size.
            offset = child * self._block
            size = self._first(offset).parts[0][1]
        if not size:
            return Item(place.number, name, Kind.REFUSED, mtime, text=b"is a directory without an extent")
        self._image.check(
            offset, size, lambda: f"directory record at {record.at:#x}: directory {place.path_of(name)}"
        )
        number = queue.add(place, name, offset, size, "directory record", record.at)
        if number is None:
            text = f"directory record at {record.at:#x}: its extent is another directory's".encode()
            return Item(place.number, name, Kind.REFUSED, mtime, text=text)
        return Item(place.number, name, Kind.DIRECTORY, mtime, number=number)

    def _link(self, place: Place, name: bytes, mtime: int, rock: RockRidge) -> Item:
        target = b"/".join(rock.target).replace(b"//", b"/") or b"/"
        if not rock.target or len(target) > MAX_LINK:
            return Item(place.number, name, Kind.REFUSED, mtime, text=b"is a link without a usable target")
        return Item(place.number, name, Kind.LINK, mtime, text=target)

    def _own_name(self, record: Record) -> bytes:
        if self.form == "Joliet":
            # Without an end that UCS-2 has: an odd octet, half of a pair. Nobody can ask for such a name.
            return record.name.decode("utf-16-be", "replace").removesuffix(";1").encode()
        raw = record.name.removesuffix(b";1")
        return (raw.removesuffix(b".") or raw).lower().replace(b";", b".")

    # --- Rock Ridge

    def _first(self, offset: int) -> Record:
        data = self._image.read(offset, SECTOR, "directory")
        if data[0] <= RECORD_HEAD:
            raise ImageError("directory record", offset, f"a length of {data[0]} octets")
        return self._record(data[: data[0]], offset)

    def _find_rock_ridge(self) -> bool:
        """Look for the marks in the first record of the top directory (SUSP 1.12 section 5.3)."""
        first = self._first(self._top)
        for skip in (0, 14):  # CD-ROM XA puts 14 octets of its own before them
            if first.system[skip : skip + 6] == b"SP\x07\x01\xbe\xef" and len(first.system) >= skip + 7:
                self._skip = skip
                signatures = {signature for signature, _ in self._fields(first)}
                self._skip = first.system[skip + 6]
                return not signatures.isdisjoint({b"ER", b"RR", b"PX"})
        return False

    def _fields(self, record: Record) -> Iterator[tuple[bytes, bytes]]:
        """Yield (signature, data after the head of four octets) of the system use fields (SUSP section 4)."""
        area, base = record.system[self._skip :], record.at
        for _ in range(MAX_CONTINUATIONS):
            at, more = 0, None
            while at + 4 <= len(area):
                length = area[at + 2]
                if area[at] == 0:
                    break
                if length < 4 or at + length > len(area):
                    raise ImageError("system use field", base, f"a length of {length} octets")
                signature, data = area[at : at + 2], area[at + 4 : at + length]
                if signature == b"ST":
                    break
                if signature == b"CE" and length >= 28:
                    more = struct.unpack_from("<I4xI4xI", data)
                else:
                    yield signature, data
                at += length
            if more is None:
                return
            base = more[0] * self._block + more[1]
            if more[2] > SECTOR:
                raise ImageError("continuation area", base, f"a length of {more[2]} octets")
            area = self._image.read(base, more[2], "continuation area")
        raise ImageError("continuation area", base, f"more than {MAX_CONTINUATIONS} for one record; a loop?")

    def _rock_ridge(self, record: Record) -> RockRidge:
        rock = RockRidge()
        for signature, data in self._fields(record):
            try:
                if read := _FIELDS.get(signature):
                    read(rock, data)
            except (IndexError, struct.error):
                text = f"Rock Ridge field {signature.decode('latin-1')}"
                raise ImageError(text, record.at, f"too short, with {len(data) + 4} octets") from None
        return rock


def _read_name(rock: RockRidge, data: bytes) -> None:
    # Flags 2 and 4 mean "." and ".." themselves, which only a directory's first two records are (RRIP 4.1.4).
    rock.own_name = True
    rock.name += {2: b".", 4: b".."}.get(data[0] & 6, data[1:])


def _read_mode(rock: RockRidge, data: bytes) -> None:
    rock.mode = struct.unpack_from("<I", data)[0]


def _read_times(rock: RockRidge, data: bytes) -> None:
    flags = data[0]
    width = 17 if flags & 0x80 else 7
    if flags & 2:
        start = 1 + width * (flags & 1)
        stamp = data[start : start + width]
        if len(stamp) < width:
            raise IndexError
        rock.mtime = _long_date(stamp) if width == 17 else _date(stamp)


def _read_link(rock: RockRidge, data: bytes) -> None:
    """RRIP section 4.1.3: components, each of which may go on in the next, also in the next field."""
    rock.is_link = True
    at = 1
    while at < len(data):
        flags, length = data[at], data[at + 1]
        text = data[at + 2 : at + 2 + length]
        if len(text) < length:
            raise IndexError
        text = {2: b".", 4: b"..", 8: b"/"}.get(flags & 14, text)
        if rock.target_continues:
            rock.target[-1] += text
        else:
            rock.target.append(text)
        rock.target_continues = bool(flags & 1)
        at += 2 + length


def _read_child(rock: RockRidge, data: bytes) -> None:
    rock.child = struct.unpack_from("<I", data)[0]


def _read_relocated(rock: RockRidge, data: bytes) -> None:
    rock.relocated = True


def _read_compressed(rock: RockRidge, data: bytes) -> None:
    rock.refusal = b"is compressed by zisofs"


def _read_sparse(rock: RockRidge, data: bytes) -> None:
    rock.refusal = b"is a sparse file of Rock Ridge"


_FIELDS: Final = {
    b"NM": _read_name,
    b"PX": _read_mode,
    b"TF": _read_times,
    b"SL": _read_link,
    b"CL": _read_child,
    b"RE": _read_relocated,
    b"ZF": _read_compressed,
    b"SF": _read_sparse,
}


@lru_cache(1024)
def _date(data: bytes) -> int:
    """Return seconds since the epoch of a date of seven octets (section 9.1.5); 0 for what is no date."""
    year, month, day, hour, minute, second, zone = struct.unpack("6Bb", data)
    return seconds_of(1900 + year, month, day, hour, minute, second, zone * 15)


@lru_cache(1024)
def _long_date(data: bytes) -> int:
    """Return seconds since the epoch of a date of seventeen octets (section 8.4.26.1); 0 for what is no date."""
    try:
        year, month, day = int(data[0:4]), int(data[4:6]), int(data[6:8])
        hour, minute, second = int(data[8:10]), int(data[10:12]), int(data[12:14])
        zone: int = struct.unpack_from("b", data, 16)[0]
    except ValueError:
        return 0
    return seconds_of(year, month, day, hour, minute, second, zone * 15)


def iso_volumes(image: Image) -> Iterator[IsoVolume]:
    """Yield the trees of an ISO 9660 image, the primary one first; none where it is no such image.

    Raises ImageError, for each tree not before it is asked for.
    """
    for number in range(MAX_DESCRIPTORS):
        at = SYSTEM_AREA + number * SECTOR
        if number == 0 and image.size < at + SECTOR:
            return
        descriptor = image.read(at, SECTOR, "volume descriptor")
        if descriptor[1:6] != b"CD001":
            if number == 0:
                return
            raise ImageError("volume descriptor", at, "CD001 is missing, and no terminator came before it")
        if descriptor[0] == 1:
            yield IsoVolume(image, descriptor, at)
        elif descriptor[0] == 2 and descriptor[88:120].strip(b"\0") in JOLIET:
            yield IsoVolume(image, descriptor, at, joliet=True)
        elif descriptor[0] == 255:
            return
    raise ImageError("volume descriptor", SYSTEM_AREA, f"more than {MAX_DESCRIPTORS} of them")

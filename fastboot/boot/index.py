"""The index of an image: what is where in it, in a SQLite file that is written once and then only read.

A server with many large images starts at once, holds none of them in memory, and looks a path up in some ten
microseconds.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote

from fastboot.boot.image import Image, ImageError, Item, Kind, Step, Volume
from fastboot.boot.iso import iso_volumes
from fastboot.boot.tree import MAX_LINKS, RefusedName
from fastboot.boot.udf import udf_volume

FORMAT: Final = 1
"""Of the file; another one is built anew."""
MAX_STEPS: Final = 500
"""Names looked up for one path, those of links included: what takes the loop as long as it may be busy."""
MAX_FOUND: Final = 8192
"""Paths that are remembered: hundreds of machines install the same files within minutes."""
MAX_LISTED: Final = 65_537
"""Names of a directory that are listed: one more than FTP and HTTP give to a client."""
MAX_NAME: Final = 255
"""Octets of a name (NAME_MAX)."""
SCHEMA: Final = """
PRAGMA journal_mode = off;
PRAGMA synchronous = off;
PRAGMA locking_mode = exclusive;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE names (
  parent INTEGER, name BLOB, kind TEXT, mtime INTEGER, start INTEGER, size INTEGER, number INTEGER, text BLOB,
  PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX directories ON names (number) WHERE number > 0;
"""
COLUMNS: Final = "parent, name, kind, mtime, start, size, number, text"

Identity = tuple[int, int, int, int, int]


class Index:
    """The names of one image, read-only, for any thread. Its file may be replaced or removed meanwhile."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open the index of the image that has this identity. Raises LookupError where there is none."""
        try:
            # Immutable: the file is replaced, never written, so it needs neither locks nor a look for a journal.
            uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
            self._names = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        except sqlite3.Error as error:
            raise LookupError(f"{path}: {error}") from error
        self._found: dict[str, Item] = {}
        try:
            facts = {key: json.loads(value) for key, value in self._names.execute("SELECT key, value FROM facts")}
            if facts["format"] != FORMAT or tuple(facts["identity"]) != identity:
                raise LookupError(f"{path}: is of another image")
            self.form: str = facts["form"]
            self.label: str = facts["label"]
            self.files: int = facts["files"]
            self._top = Item(0, b"", Kind.DIRECTORY, facts["mtime"])
        except (sqlite3.Error, LookupError, ValueError) as error:
            self._names.close()
            raise LookupError(f"{path}: {error}") from error

    def __del__(self) -> None:
        # Not before: a listing in another thread may still read.
        if names := getattr(self, "_names", None):
            names.close()

    def verify(self) -> None:
        """Raises LookupError where the file is damaged. Reads all of it."""
        try:
            found = [row[0] for row in self._names.execute("PRAGMA quick_check(1)")]
        except sqlite3.Error as error:
            found = [error]
        if found != ["ok"]:
            raise LookupError(f"the index is damaged: {found[0]}")

    def find(self, path: str) -> Item:
        """Return what a path leads to, over links that stay in the image: a file or a directory.

        Raises OSError as opening it in a mounted image would: ENOENT, ENOTDIR, ELOOP; EXDEV where a link leaves
        the image; RefusedName.
        """
        if (found := self._found.get(path)) is None:
            found = self._walk(path)
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            self._found[path] = found
        return found

    def _walk(self, path: str) -> Item:
        todo = deque(path.split("/"))
        way = [self._top]
        links = steps = 0
        while todo:
            part = todo.popleft()
            if (steps := steps + 1) > MAX_STEPS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if part in ("", "."):
                continue
            if part == "..":
                if len(way) == 1:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                way.pop()
                continue
            item = self._get(way[-1].number, part)
            if item.kind is Kind.DIRECTORY:
                way.append(item)
            elif item.kind is Kind.LINK:
                target = os.fsdecode(item.text)
                if target.startswith("/"):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                if (links := links + 1) > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                todo.extendleft(reversed(target.split("/")))
            elif item.kind is Kind.REFUSED:
                raise _refused(item)
            elif todo:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            else:
                return item
        return way[-1]

    def scan(self, path: str) -> list[tuple[str, Item]]:
        """Return the names in a directory and what each leads to, without those that are refused; the first
        MAX_LISTED of them.

        Raises OSError as `find`.
        """
        directory = self.find(path)
        if directory.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        found: list[tuple[str, Item]] = []
        for item in islice(self._select("parent = ?", directory.number), MAX_LISTED):
            name = os.fsdecode(item.name)
            if item.kind is Kind.LINK:
                with suppress(OSError):
                    found.append((name, self.find(f"{path}/{name}")))
            elif item.kind is not Kind.REFUSED:
                found.append((name, item))
        return found

    def refused(self) -> Iterator[tuple[str, OSError]]:
        """Yield each name of the image that is not served, as a path, with the reason."""
        for item in self._select("kind IN ('link', 'refused')"):
            path = self._path_of(item)
            if path is None:
                continue
            try:
                if item.kind is Kind.REFUSED:
                    raise _refused(item)
                self.find(path)
            except OSError as error:
                yield path, error

    def _get(self, parent: int, name: str) -> Item:
        for item in self._select("parent = ? AND name = ?", parent, os.fsencode(name)):
            return item
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _path_of(self, item: Item) -> str | None:
        """Return the path of a name; None in a directory beside which there is another of the same name."""
        parts = [item.name]
        parent = item.parent
        while parent:
            above = next(self._select("number = ? AND number > 0", parent), None)
            if above is None:
                return None
            parts.append(above.name)
            parent = above.parent
        return os.fsdecode(b"/".join(reversed(parts)))

    def _select(self, condition: str, *values: object) -> Iterator[Item]:
        try:
            for row in self._names.execute(f"SELECT {COLUMNS} FROM names WHERE {condition}", values):  # noqa: S608
                yield Item(row[0], row[1], Kind(row[2]), *row[3:])
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"the index is damaged: {error}") from error


def _refused(item: Item) -> RefusedName:
    return RefusedName(errno.EPERM, item.text.decode("utf-8", "replace"))


def read_volume(image: Image) -> Volume:
    """Return the tree of an image that shows its names best: what Linux takes, and UDF before shortened names.

    Raises ImageError.
    """
    trees = iso_volumes(image)
    primary = next(trees, None)
    if primary is not None and primary.form != "ISO 9660":
        return primary
    volume = udf_volume(image) or next(trees, None) or primary
    if volume is None:
        raise ImageError("volume descriptor", 0x8000, "neither ISO 9660 nor UDF; is it an image of a disc?")
    return volume


def write_index(fd: int, target: Path, tell: Callable[[Step], None]) -> None:
    """Read the image open as `fd` and write its index to a new file. Raises ImageError, OSError, sqlite3.Error."""
    identity = identity_of(os.fstat(fd))
    volume = read_volume(Image(fd))
    with closing(sqlite3.connect(target, isolation_level=None)) as names:
        names.executescript(SCHEMA)
        names.execute("BEGIN")
        names.executemany("INSERT OR IGNORE INTO names VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _rows(volume, tell))
        counts = dict(names.execute("SELECT kind, count(*) FROM names GROUP BY kind"))
        facts: dict[str, object] = {
            "format": FORMAT,
            "identity": identity,
            "form": volume.form,
            "label": volume.label,
            "mtime": volume.mtime,
            "files": counts.get(Kind.FILE, 0),
        }
        if identity_of(os.fstat(fd)) != identity:
            raise ImageError("image", 0, "it was changed while it was read")
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        names.executemany("INSERT INTO facts (key, value) VALUES (?, ?)", rows)
        names.execute("COMMIT")
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _rows(volume: Volume, tell: Callable[[Step], None]) -> Iterator[tuple[object, ...]]:
    for item in volume.walk():
        if isinstance(item, Step):
            tell(item)
        elif not _is_name(item.name):
            yield item.parent, item.name[:MAX_NAME], Kind.REFUSED, item.mtime, 0, 0, 0, b"is no name of a file"
        else:
            yield (
                item.parent, item.name, item.kind, item.mtime, item.offset, item.size, item.number, item.text
            )  # fmt: skip


def _is_name(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and {0, ord("/")}.isdisjoint(name) and len(name) <= MAX_NAME


def identity_of(facts: os.stat_result) -> Identity:
    """Return what tells an open file from any other, and from itself after a change, as `Source.identity`."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns

"""What a start does with a store that was damaged: never refuse, never delete, keep what can be read, say the
rest.

SQLite notices some damage (no database, malformed) and is silent about other: of a write-ahead log with one wrong
bit it drops everything behind that bit, and of a page it checks the structure but not the values. Each row
therefore has a check of its own and the number of the commit that wrote it, so that the newest sound row of an
address is found in any heap of pages; and the number of the last commit is kept in a second file. So it is with
installs. But where anything is wrong, what was armed is disarmed: an arming that was used up may have come back.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import structlog

from fastboot.model import InstallState
from fastboot.state import install_rows
from fastboot.state.install_rows import StoredInstall
from fastboot.state.pages import Frame, Wal, database_pages, records
from fastboot.state.rows import StoredRow, parse, texts
from fastboot.state.schema import (
    KEEP_INSTALLS,
    KEEP_LEASES,
    connect,
    last_batch,
    last_install,
    migrate,
    version_of,
)
from fastboot.wording import counted

log = structlog.get_logger(component="store")

UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
UNREADABLE_IO = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
"""Errors that are of the file; all others (no permission, no room) are of its surroundings."""
MOST_ROWS_TOLD = 20


class Numbers(NamedTuple):
    """The last commits of leases and of installs; None: nothing is known, though there may have been some."""

    leases: int
    installs: int | None


class Recovered(NamedTuple):
    """The number of the last commit of leases that may ever have been confirmed, a line for each damage, and the
    installs that were armed."""

    last: int
    damage: list[str]
    disarmed: list[StoredInstall]


class Found(NamedTuple):
    """Rows that were on disk and that SQLite does not see."""

    leases: list[StoredRow]
    installs: list[StoredInstall]


class Unreadable(sqlite3.DatabaseError):
    """SQLite's own check of the file failed."""


def recover(path: Path, committed: Numbers) -> Recovered:
    """Make the store file one that SQLite reads, of the newest schema, with every row that can be had.

    `committed` has the numbers of the last commits that were confirmed, as far as is known. The caller holds the
    lock, and this process has no connection to the file. Raises sqlite3.Error and OSError for what is not the
    file's fault, FastbootError for a file of a newer fastboot.
    """
    _finish(path)
    empty = path.exists() and path.stat().st_size == 0
    if (empty or not path.exists()) and (any(committed) or _wal(path)):
        return _rebuild(path, committed, "is empty" if empty else "is gone")
    try:
        return _examine(path, committed)
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if code & 0xFF not in UNREADABLE and code not in UNREADABLE_IO:
            raise
        return _rebuild(path, committed, f"can not be read by SQLite: {error}")


# ---- what SQLite can read


def _examine(path: Path, committed: Numbers) -> Recovered:
    version = _verify(path)
    with closing(connect(path)) as file:
        # Frames that SQLite drops are overwritten by the next commit: nothing is written before they are seen.
        accepted = _checkpoint(file)
        last = Numbers(last_batch(file) if version > 1 else 0, last_install(file) if version > 2 else 0)
        lost, damage = _dropped(path, accepted, last, committed)
        migrate(file, path)
        # In one step, for what was seen now may not be seen again.
        file.execute("BEGIN IMMEDIATE")
        if lost.leases:
            file.execute(KEEP_LEASES, (texts(lost.leases),))
        file.execute(KEEP_INSTALLS, (install_rows.texts(lost.installs),))
        damage += _leave_out_bad(file, path)
        disarmed = _disarm(file, committed.installs or 0) if damage else []
        file.execute("COMMIT")
        newest = max([last.leases, committed.leases, *(row.batch for row in lost.leases)])
        return Recovered(newest, damage, disarmed)


def _verify(path: Path) -> int:
    """Return the version of a file that SQLite finds whole; nothing is written, also not by the close."""
    if not path.exists():
        return 0
    # A file that was being made when the power failed has a journal, which only a writer may play back.
    mode = "rw" if path.with_name(f"{path.name}-journal").exists() else "ro"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as file:
        version = version_of(file, path)
        if (verdict := file.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise Unreadable(verdict.splitlines()[-1])
        if version > 1:
            last_batch(file)
        if version > 2:
            last_install(file)
        return version


def _checkpoint(file: sqlite3.Connection) -> int | None:
    """Bring the write-ahead log into the file; return of how many frames SQLite takes it to be, None: unknown."""
    try:
        accepted: int = file.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        return max(0, accepted)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
        log.warning(
            "store.disk_full", text="no room for a checkpoint; whether the store is whole was not looked at"
        )
        return None


def _dropped(path: Path, accepted: int | None, last: Numbers, committed: Numbers) -> tuple[Found, list[str]]:
    """Return the rows of the write-ahead log that SQLite dropped though they were confirmed, and what to say of
    it."""
    wal = _wal(path) if accepted is not None else None
    frames = wal.after(accepted or 0) if wal else []
    missing = list(_missing(path, last, committed))
    if wal is None or not frames:
        return Found([], []), missing
    if not _confirmed(wal, frames) and not missing:
        log.info("store.cut_off", frames=len(frames), text="the last commit was under way and never confirmed")
        return Found([], []), []
    versions = Versions(wal.pages(frames))
    leases = [row for row in versions.newest(committed.leases) if row.batch > last.leases]
    installs = [row for row in versions.installs if row.serial > (last.installs or 0)]
    there = max(committed.leases, versions.last)
    pages, found = counted(len(frames), "page"), _found(len(leases), len(installs))
    text = (
        f"{wal.path.name} is damaged: SQLite drops its end, {pages}, all that came after commit {last.leases}, but"
        f" commit {there} was there; {found} could be read all the same; the"
        f" file is kept as {_keep_copy(wal.path)}"
    )
    return Found(leases, installs), [text]


def _missing(path: Path, last: Numbers, committed: Numbers) -> Iterator[str]:
    """Yield a line for what the file should have, by the numbers of confirmed commits, and has not."""
    if committed.leases > last.leases:
        yield (
            f"{path.name} ends with commit {last.leases}, but commit {committed.leases} was confirmed: leases are"
            " missing"
        )
    if committed.installs is None:
        if last.installs:
            yield f"the number of the last commit of installs, beside {path.name}, is gone: some may be missing"
    elif committed.installs > (last.installs or 0):
        yield (
            f"{path.name} ends with commit {last.installs} of installs, but commit {committed.installs} was"
            " confirmed: installs are missing"
        )


def _confirmed(wal: Wal, frames: list[Frame]) -> bool:
    """Whether any of these frames was on disk for good: a commit is written when the one before it is."""
    commits = [at for at, frame in enumerate(frames) if frame.commits]
    return bool(frames and not wal.sound) or bool(commits and commits[0] < len(frames) - 1)


def _disarm(file: sqlite3.Connection, committed: int) -> list[StoredInstall]:
    """Disarm what is armed; return what that was."""
    file.text_factory = bytes
    rows = [install_rows.parse(row) for (row,) in file.execute("SELECT row FROM install").fetchall()]
    serial = max([committed, *(row.serial for row in rows)]) + 1
    armed = [row for row in rows if _is_armed(row)]
    file.execute(KEEP_INSTALLS, (install_rows.texts(_disarmed(row, serial) for row in armed),))
    return armed


def _is_armed(row: StoredInstall) -> bool:
    return row.install is not None and row.install.state is InstallState.ARMED


def _disarmed(row: StoredInstall, serial: int) -> StoredInstall:
    return StoredInstall(serial, row.node, None)


def _leave_out_bad(file: sqlite3.Connection, path: Path) -> Iterator[str]:
    """Take rows that make no sense out of the store; yield a line for each."""
    file.text_factory = bytes
    for key, row in file.execute("SELECT node, row FROM install").fetchall():
        try:
            if install_rows.parse(row).key != key:
                raise ValueError("it is of another node")
        except ValueError as error:  # what is in it stays untold: it has a secret
            yield f"a row of an install in {path.name} makes no sense and is left out: {error}"
            file.execute("DELETE FROM install WHERE node = ?", (key,))
    told = 0
    for key, row in file.execute("SELECT address, row FROM lease").fetchall():
        try:
            if int(parse(row).address) != key:
                raise Unreadable("its rows are out of order")
        except ValueError as error:
            told += 1
            if told <= MOST_ROWS_TOLD:
                yield f"a row of {path.name} makes no sense and is left out ({error}): {row!r}"
            gone = file.execute("DELETE FROM lease WHERE address = ?", (key,))
            if gone.rowcount != 1:
                raise Unreadable("its rows are out of order") from error
    if told > MOST_ROWS_TOLD:
        yield f"{told - MOST_ROWS_TOLD} more rows of {path.name} make no sense and are left out"


# ---- what it can not read


class Versions:
    """The sound rows in a heap of pages, and what they are counted from."""

    def __init__(self, pages: Iterable[bytes]) -> None:
        self.zeros: dict[int, int] = {}
        self._installs: dict[str, StoredInstall] = {}
        self._rows: dict[IPv4Address, dict[int, StoredRow]] = {}
        for page in pages:
            for number, columns in records(page):
                if len(columns) == 3 and columns[0] is None and type(columns[1]) is int:
                    self.zeros[number] = columns[1]
                    continue
                text = columns[-1] if len(columns) == 2 else None
                with suppress(ValueError):
                    row = parse(text)
                    self._rows.setdefault(row.address, {})[row.batch] = row
                    continue
                with suppress(ValueError):
                    install = install_rows.parse(text)
                    before = self._installs.setdefault(install.node, install)
                    self._installs[install.node] = max(before, install, key=lambda each: each.serial)

    @property
    def installs(self) -> list[StoredInstall]:
        """The newest row of each node, whether its commit was confirmed or not."""
        return list(self._installs.values())

    @property
    def last(self) -> int:
        """The number of the last commit that any row is of."""
        return max((batch for versions in self._rows.values() for batch in versions), default=0)

    def newest(self, committed: int) -> list[StoredRow]:
        """Return the newest row of each address. The last commit may never have been confirmed: what it took from
        somebody does not count."""
        confirmed = max(committed, self.last - 1)
        sure = (
            [row for row in versions.values() if row.batch <= confirmed or row.state != "released"]
            for versions in self._rows.values()
        )
        return [max(rows, key=lambda row: row.batch) for rows in sure if rows]


def _rebuild(path: Path, committed: Numbers, why: str) -> Recovered:
    """Make a new store of the rows that the pages of the old one have, which is kept under another name."""
    versions = Versions(_all_pages(path))
    rows, installs = versions.newest(committed.leases), versions.installs
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with closing(connect(new)) as file:
        migrate(file, new)
        boots = json.dumps(versions.zeros)
        file.execute("INSERT OR IGNORE INTO boot SELECT key, value, 0 FROM json_each(?)", (boots,))
        file.execute(KEEP_LEASES, (texts(rows),))
        file.execute(KEEP_INSTALLS, (install_rows.texts(installs),))
        disarmed = _disarm(file, committed.installs or 0)
        file.execute("PRAGMA journal_mode=DELETE").fetchone()  # the whole of it in one file
    new.replace(_salvaged(path))
    _sync(path.parent)
    kept = _finish(path)
    told = f"; what there is of it is kept as {' and '.join(kept)}" if kept else ""
    found = _found(len(rows), len(installs))
    text = f"{path.name} {why}; {found} could be read from its pages{told}"
    return Recovered(max(committed.leases, versions.last), [text], disarmed)


def _finish(path: Path) -> list[str]:
    """Put the store that `_rebuild` made in the place of the damaged one; return the names that this has now.

    Begun anew after a crash it ends the same.
    """
    salvaged, kept = _salvaged(path), []
    if not salvaged.exists():
        return []
    suffix = _suffix(salvaged.stat().st_mtime)
    log_of = _wal_of(path)
    for each in (path, log_of):
        aside = each.with_name(each.name + suffix)
        if each.exists() and not aside.exists():
            os.link(each, aside)
            kept.append(aside.name)
    _sync(path.parent)
    # The log first: SQLite would take it for the new file's.
    log_of.unlink(missing_ok=True)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    _sync(path.parent)
    salvaged.replace(path)
    _sync(path.parent)
    return kept


def _all_pages(path: Path) -> Iterator[bytes]:
    if path.exists():
        yield from database_pages(path)
    if wal := _wal(path):
        yield from wal.pages(wal.frames)


def _wal(path: Path) -> Wal | None:
    """Return the write-ahead log where it holds anything."""
    log_of = _wal_of(path)
    wal = Wal(log_of) if log_of.exists() else None
    return wal if wal and wal.frames else None


def _wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _salvaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.salvaged")


def _found(leases: int, installs: int) -> str:
    return counted(leases, "lease") + (f" and {counted(installs, 'install')}" if installs else "")


def _suffix(when: float) -> str:
    return time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime(when))


def _keep_copy(path: Path) -> str:
    """Copy a file that SQLite goes on writing to; return the name of the copy."""
    aside = path.with_name(path.name + _suffix(time.time()))
    shutil.copyfile(path, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    return aside.name


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

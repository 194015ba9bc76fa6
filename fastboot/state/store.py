"""What must survive a restart, in one SQLite file.

Memory is the truth while a server runs; this is its journal. One thread owns the only connection that writes, each
commit is one statement in WAL mode with synchronous=FULL, and checkpoints run on a second connection and thread so
that no acknowledgement waits for one.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from fastboot.model import FastbootError, Lease
from fastboot.state import install_rows
from fastboot.state.clock import Clock
from fastboot.state.install_rows import StoredInstall
from fastboot.state.recovery import Numbers, recover
from fastboot.state.rows import (
    MILLISECOND,
    LeaseRow,
    StoredRow,
    of_this_start,
    on_clock,
    parse,
    stored_row,
    texts,
)
from fastboot.state.schema import (
    BOOT,
    KEEP_INSTALLS,
    KEEP_LEASES,
    MIGRATIONS,
    connect,
    last_install,
    version_of,
)

log = structlog.get_logger(component="store")

FILE = "fastboot.sqlite"
COMMITTED = "fastboot.committed"
"""Holds the numbers of the last confirmed commits of leases and of installs, for what SQLite can not tell: that it
has lost one. That of leases is not synced, so after a power failure it may be behind, never ahead."""
NUMBER = b"%020d\n"
CHECKPOINT_EVERY = 256
"""Commits between checkpoints."""
LOG_PAGES = 4096
"""Pages of the write-ahead log, 16 MB, beyond which the committer itself ends a checkpoint: SQLite begins the log
anew only where all of it is in the file at the moment of a commit, which under load it never is."""
DATABASE_FILES = 4
"""Descriptors of one connection: the file, its log, the log's index and, to sync it, the directory."""
LOOK_EVERY = 10.0
"""Seconds between looks at the wall clock."""
JUMP = 1000
"""Milliseconds that the wall clock may drift before the store is told."""

Done = Callable[[Exception | None], None]


class Store:
    """The store of one state directory, whose lock the caller holds.

    `damage` has a line for each thing that was wrong with it, `disarmed` what was armed then, `last` is the number
    of the last batch before, `last_install` of the last commit of installs.
    """

    def __init__(self, state: Path, clock: Clock | None = None) -> None:
        """Open or make the file, repair what was damaged. Raises FastbootError where the directory can not be used
        or a newer fastboot wrote the file."""
        self.clock = clock or Clock()
        self._path = state / FILE
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._checkpoints: queue.Queue[bool] = queue.Queue(1)
        self._since = 0  # commits since the last checkpoint was asked for
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._zero: int | None = None
        self._looked = self.clock.now()
        with _named(self._path):
            self._committed = os.open(state / COMMITTED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                noted = Numbers(self._noted(0) or 0, self._noted(1))
                self.last, self.damage, self.disarmed = recover(self._path, noted)
                self._writer = connect(self._path)
                self.last_install = max(noted.installs or 0, last_install(self._writer))
                self._checkpointer = connect(self._path)
            except BaseException:
                os.close(self._committed)
                raise
            self._note(self.last)
            self._note(self.last_install, 1)
            os.fsync(self._committed)  # its place, so that later numbers need no more room
        try:
            move_leases(self._writer, self.clock)
        except sqlite3.Error as error:  # a full disk: the next start of the server tries again
            log.warning("store.leases_not_moved", path=str(self._path), text=str(error))
        self._look()

    def start(self) -> None:
        """Start the committer; `done` of `keep_leases` is called on the running event loop. Once only."""
        self._loop = asyncio.get_running_loop()
        for name, run in (("committer", self._commit), ("checkpointer", self._checkpoint)):
            thread = threading.Thread(target=run, name=f"fastboot-{name}")
            thread.start()
            self._threads.append(thread)

    def keep_leases(self, batch: int, rows: str, done: Done) -> None:
        """Commit what `Responder.batch` gave; then call `done` with None, or with why it is not on disk."""
        self._jobs.put(partial(self._execute, KEEP_LEASES, rows, done, partial(self._note, batch)))

    def keep_installs(self, serial: int, rows: Iterable[StoredInstall], done: Done) -> None:
        """Commit what became of nodes, as commit `serial`; then call `done` as `keep_leases` does."""
        noted = partial(self._note, serial, 1, sync=True)
        self._jobs.put(partial(self._execute, KEEP_INSTALLS, install_rows.texts(rows), done, noted))

    def write_leases(self, rows: Iterable[LeaseRow]) -> None:
        """Commit leases at once, where no server runs. Raises FastbootError."""
        self.last += 1
        stored = texts(stored_row(row, self.clock.boot, self.last) for row in rows)
        with _named(self._path):
            self._writer.execute(KEEP_LEASES, (stored,))
        self._note(self.last)

    def close(self) -> None:
        """Commit what was submitted, end the threads, close the file. Blocks; a second time does nothing."""
        if self._committed < 0:
            return
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._look()
        self._writer.close()
        self._checkpointer.close()
        os.close(self._committed)
        self._committed = -1

    def rows(self) -> list[LeaseRow]:
        """Return every lease that makes sense; those that do not are logged and skipped."""
        return read_rows(self._path, self.clock)

    def installs(self) -> list[StoredInstall]:
        """Return what is known of every node that was ever armed; rows that make no sense are logged and
        skipped."""
        return read_installs(self._path)

    def leases(self) -> list[Lease]:
        """Return what is bound or declined now. For when no server runs: a running one knows better."""
        return read_leases(self._path.parent, self.clock)

    # ---- the committer

    def _commit(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=LOOK_EVERY)
            except queue.Empty:
                job = self._look
            if job is None:
                break
            job()
            if self.clock.now() - self._looked > LOOK_EVERY * 1e9:
                self._look()
        self._checkpoints.put(False)

    def _execute(self, statement: str, argument: str, done: Done, note: Callable[[], None]) -> None:
        fault: Exception | None = None
        try:
            self._writer.execute(statement, (argument,))
            note()
        except Exception as error:  # whatever it is: no acknowledgement, and the thread goes on
            fault = error
        assert self._loop is not None
        self._loop.call_soon_threadsafe(done, fault)
        self._since += 1
        # After a failure too: what goes into the file makes room in the log on a disk that is full.
        if self._since >= CHECKPOINT_EVERY or fault is not None:
            with suppress(queue.Full):  # one is due already
                self._checkpoints.put_nowait(True)
            self._since = 0

    def _end_checkpoint(self) -> None:
        # Passive here too: a person who reads the file for hours must not hold up a commit.
        with suppress(sqlite3.Error):  # the next one is told
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _note(self, number: int, place: int = 0, *, sync: bool = False) -> None:
        with suppress(OSError):  # it only helps to notice damage
            os.pwrite(self._committed, NUMBER % number, place * len(NUMBER % 0))
            if sync:  # a lost install is noticed after any power failure: a machine must not install twice for it
                os.fdatasync(self._committed)

    def _noted(self, place: int) -> int | None:
        size = len(NUMBER % 0)
        octets = os.pread(self._committed, size, place * size).strip()
        return int(octets) if octets.isdigit() else None

    def _look(self) -> None:
        """See whether the wall clock was set, and keep what bridges from this start of the machine to the next."""
        self._looked, zero = self.clock.now(), self.clock.zero()
        moved = 0 if self._zero is None else zero - self._zero
        if self._zero is not None and abs(moved) <= JUMP:
            return
        try:
            self._writer.execute(
                "INSERT OR REPLACE INTO boot VALUES (?, ?, ?)", (self.clock.boot, zero, self.last)
            )
            unused = f"DELETE FROM boot WHERE id <> ? AND id NOT IN (SELECT {BOOT} FROM lease)"  # noqa: S608
            self._writer.execute(unused, (self.clock.boot,))
        except sqlite3.Error as error:  # the next look tries again
            log.warning("store.clock_not_kept", path=str(self._path), text=str(error))
            return
        self._zero = zero
        if moved:
            text = "the wall clock was set; no lease is longer or shorter for it"
            log.warning("store.clock_set", seconds=moved / 1000, text=text)

    # ---- the checkpointer

    def _checkpoint(self) -> None:
        failing = False
        while self._checkpoints.get():
            try:
                _, pages, _ = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                # The log grows until one succeeds; nothing is lost.
                if not failing:
                    log.warning("store.checkpoint_failed", path=str(self._path), text=str(error))
                failing = True
                continue
            failing = False
            if pages > LOG_PAGES:
                self._jobs.put(self._end_checkpoint)


def move_leases(file: sqlite3.Connection, clock: Clock) -> None:
    """Make leases that were given before the machine started leases of this start, as the server is about to take
    them: from here on no wall clock has a part in them. Raises sqlite3.Error.

    Those that seem to have ended stay as they are, for a clock that runs ahead until it is set may say so.
    """
    now, moved = clock.now() // MILLISECOND, []
    rows, zeros = _stored(file, but=clock.boot)
    for row in rows:
        here = of_this_start(row, clock, zeros)
        if here.expires is None or here.expires > now:
            moved.append(here)
    if moved:
        file.execute(KEEP_LEASES, (texts(moved),))


def read_rows(path: Path, clock: Clock) -> list[LeaseRow]:
    """Return the leases of a store file, read-only; those that make no sense are logged and skipped. Raises
    FastbootError where it is no store of this fastboot."""
    with _reading(path) as file:
        rows, zeros = _stored(file)
    return [on_clock(row, clock, zeros) for row in rows]


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with _named(path), closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as file:
        if version_of(file, path) < len(MIGRATIONS):
            raise FastbootError(
                f"{path} is of an older fastboot; the next start of the server leads it to this one"
            )
        yield file


def read_installs(path: Path) -> list[StoredInstall]:
    """Return the installs of a store file, read-only, as `Store.installs` does. Raises FastbootError."""
    with _reading(path) as file:
        file.text_factory = bytes
        found = file.execute("SELECT row FROM install").fetchall()
    rows = []
    for (text,) in found:
        try:
            rows.append(install_rows.parse(text))
        except ValueError as error:
            log.warning("store.bad_row", text=str(error))  # a row has a secret in it
    return rows


def _stored(file: sqlite3.Connection, but: int | None = None) -> tuple[list[StoredRow], dict[int, int]]:
    """Return the rows that make sense, but for those of one start, and the zeros of the starts they may be of."""
    factory = file.text_factory
    file.text_factory = bytes  # a row that was damaged must not hide the others
    try:
        zeros = dict(file.execute("SELECT id, zero FROM boot").fetchall())
        query = f"SELECT row FROM lease WHERE {BOOT} IS NOT ?"  # noqa: S608 - ours
        found = file.execute(query, (but,)).fetchall()
    finally:
        file.text_factory = factory
    rows = []
    for (text,) in found:
        try:
            rows.append(parse(text))
        except ValueError as error:
            log.warning("store.bad_row", text=str(error), row=repr(text))
    return rows, zeros


def read_leases(state: Path, clock: Clock | None = None) -> list[Lease]:
    """Return the current leases of a state directory that no server uses. Raises FastbootError."""
    if not (state / FILE).exists():
        return []
    clock = clock or Clock()
    now, zero = clock.now(), clock.zero() / 1000
    return [
        Lease(
            IPv4Address(row.address), row.mac.hex(":"), row.state, row.starts / 1e9 + zero,
            math.inf if row.expires is None else row.expires / 1e9 + zero,
            row.host.decode("ascii", "backslashreplace"), row.client_id,
            IPv4Address(row.relay) if row.relay else None, row.circuit_id, row.remote_id,
        )
        for row in sorted(read_rows(state / FILE, clock), key=lambda row: row.address)
        if row.state != "released" and (row.expires is None or row.expires > now)
    ]  # fmt: skip


class _named:
    """Turns SQLite's errors into one that says which file and what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise FastbootError(f"state: {self._path} can not be opened: {error.strerror}") from error
        if isinstance(error, sqlite3.Error):
            fault = f"{self._path} can not be used: {error}"
            raise FastbootError(f"state: {fault}; {self._help(error)}") from error

    def _help(self, error: sqlite3.Error) -> str:
        where = self._path.parent
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return f"no space left for {where}; make room on its disk"
            case sqlite3.SQLITE_CANTOPEN:
                return opening_fault(where) or f"is {where} writable?"
            case sqlite3.SQLITE_IOERR:
                return opening_fault(where) or f"is the disk of {where} full, or failing?"
        return "restore it from a copy, or move fastboot.* away to start without its leases"


def opening_fault(directory: Path) -> str | None:
    """Say why SQLite could not open its files here, which it does not; None where nothing is wrong by now."""
    with ExitStack() as undo:
        try:
            for _ in range(DATABASE_FILES):
                undo.callback(os.close, os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            help_ = "; allow more (ulimit -n, LimitNOFILE=)" if error.errno == errno.EMFILE else ""
            return f"{error.strerror}{help_}"
    return None

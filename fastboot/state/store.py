"""What must survive a restart, in one SQLite file.

Memory is the truth while a server runs; this is its journal. One thread owns the only connection that writes, each
commit is one statement in WAL mode with synchronous=FULL, and checkpoints run on a second connection and thread so
that no acknowledgement waits for one.
"""

from __future__ import annotations

import asyncio
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

import structlog

from fastboot.model import FastbootError, Lease

log = structlog.get_logger(component="store")

FILE = "fastboot.sqlite"
CHECKPOINT_EVERY = 256
"""Commits between checkpoints: the WAL stays at a few MB and is seldom in the way."""

MIGRATIONS: Final = (
    """
    CREATE TABLE lease (
        address TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('bound', 'released', 'declined')),
        htype INTEGER NOT NULL,
        mac TEXT NOT NULL,
        client_id TEXT NOT NULL,
        hostname TEXT NOT NULL,
        starts REAL NOT NULL,
        expires REAL
    ) WITHOUT ROWID;
    """,
)
"""The statements that lead from each numbered schema to the next; PRAGMA user_version counts them."""

# One statement for a whole batch: executemany waits for the GIL at every row (DESIGN section 4, measured).
# json_each keeps the order, so of two rows for one address the later wins.
KEEP_LEASES: Final = """
    INSERT INTO lease (address, state, htype, mac, client_id, hostname, starts, expires)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
           json_extract(value, '$[6]') / 1000.0, json_extract(value, '$[7]') / 1000.0
    FROM json_each(?) WHERE true
    ON CONFLICT (address) DO UPDATE SET
        state = excluded.state, htype = excluded.htype, mac = excluded.mac, client_id = excluded.client_id,
        hostname = excluded.hostname, starts = excluded.starts, expires = excluded.expires
"""
"""Keeps the rows that `Responder.batch` writes; their times are milliseconds."""

State = Literal["bound", "released", "declined"]
Done = Callable[[Exception | None], None]


class LeaseRow(NamedTuple):
    """One address as `Responder.load` takes it. Times are seconds since the epoch; `expires` may be `inf`."""

    address: int
    state: State
    htype: int
    mac: bytes
    client_id: bytes
    host: bytes
    starts: float
    expires: float


class Store:
    """The store of one state directory. Open it before privileges are dropped: its connections are made then."""

    def __init__(self, state: Path) -> None:
        """Open or make the file, and lead it to the newest schema. Raises FastbootError."""
        self._path = state / FILE
        self._jobs: queue.SimpleQueue[tuple[str, str, Done] | None] = queue.SimpleQueue()
        self._checkpoints: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        with _named(self._path):
            self._writer = _connect(self._path)
            self._checkpointer = _connect(self._path)
            self._writer.execute("PRAGMA journal_mode=WAL").fetchone()
            for connection in (self._writer, self._checkpointer):
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA wal_autocheckpoint=0")
            _migrate(self._writer, self._path)

    def start(self) -> None:
        """Start the committer; `done` of every `submit` is called on the running event loop. Once only."""
        self._loop = asyncio.get_running_loop()
        for name, run in (("committer", self._commit), ("checkpointer", self._checkpoint)):
            thread = threading.Thread(target=run, name=f"fastboot-{name}")
            thread.start()
            self._threads.append(thread)

    def submit(self, statement: str, argument: str, done: Done) -> None:
        """Execute and commit one statement; then call `done` with None, or with why it is not on disk."""
        self._jobs.put((statement, argument, done))

    def close(self) -> None:
        """Commit what was submitted, end the threads, close the file. Blocks; a second time does nothing."""
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for connection in (self._writer, self._checkpointer):
            connection.close()

    def rows(self) -> list[LeaseRow]:
        """Return every lease that makes sense; those that do not are logged and skipped."""
        return list(read_rows(self._path))

    def leases(self) -> list[Lease]:
        """Return what is bound or declined now. For when no server runs: a running one knows better."""
        return read_leases(self._path.parent)

    def _commit(self) -> None:
        since = 0
        assert self._loop is not None
        while (job := self._jobs.get()) is not None:
            statement, argument, done = job
            fault: Exception | None = None
            try:
                self._writer.execute(statement, (argument,))
            except Exception as error:  # whatever it is: no acknowledgement, and the thread goes on
                fault = error
            self._loop.call_soon_threadsafe(done, fault)
            since += 1
            if since >= CHECKPOINT_EVERY:
                self._checkpoints.put(True)
                since = 0
        self._checkpoints.put(False)

    def _checkpoint(self) -> None:
        while self._checkpoints.get():
            try:
                self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                # The WAL grows until one succeeds; nothing is lost.
                log.warning("store.checkpoint_failed", path=str(self._path), text=str(error))


def read_rows(path: Path) -> Iterator[LeaseRow]:
    """Yield the leases of a store file, read-only. Raises FastbootError where it is no store."""
    with (
        _named(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as file,
    ):
        # No text_factory: a row that was damaged must not hide the others.
        file.text_factory = bytes
        found = file.execute(
            "SELECT address, state, htype, mac, client_id, hostname, starts, expires FROM lease"
        ).fetchall()
    for row in found:
        try:
            yield _row(row)
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("store.bad_row", path=str(path), row=repr(row), text=str(error))


def read_leases(state: Path) -> list[Lease]:
    """Return the current leases of a state directory that no server uses. Raises FastbootError."""
    if not (state / FILE).exists():
        return []
    now = time.time()
    return [
        Lease(
            IPv4Address(row.address), row.mac.hex(":"), row.state, row.starts, row.expires,
            row.host.decode("ascii", "backslashreplace"), row.client_id,
        )
        for row in sorted(read_rows(state / FILE))
        if row.state != "released" and row.expires > now
    ]  # fmt: skip


def _row(row: tuple[object, ...]) -> LeaseRow:
    address, state, htype, mac, client_id, host, starts, expires = row
    if state not in (b"bound", b"released", b"declined"):
        raise ValueError(f"{state!r} is no state")
    texts = [cast(bytes, text).decode("utf-8") for text in (address, mac, client_id, host)]
    hardware = bytes.fromhex(texts[1].replace(":", ""))
    begin = float(cast(float, starts))
    end = math.inf if expires is None else float(cast(float, expires))
    if not isinstance(htype, int) or not 0 <= htype <= 255 or len(hardware) > 16:
        raise ValueError("no hardware address")
    if not math.isfinite(begin) or math.isnan(end) or end < begin or not 0 <= begin < 2**33:
        raise ValueError("no time")
    return LeaseRow(
        int(IPv4Address(texts[0])), cast(State, state.decode()), htype, hardware, bytes.fromhex(texts[2]),
        texts[3].encode("latin-1"), begin, end,
    )  # fmt: skip


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: every statement is its own transaction, and no `BEGIN` is slipped in.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise FastbootError(
            f"{path} was written by a newer fastboot (schema {version}, this one knows {len(MIGRATIONS)}); "
            "run that one, or move the file away to start without its leases"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")


class _named:
    """Turns SQLite's errors into one that says which file and what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError) and "open" in str(error):
            raise FastbootError(
                f"state: {self._path} can not be opened; is {self._path.parent} writable?"
            ) from error
        if isinstance(error, sqlite3.Error):
            raise FastbootError(
                f"state: {self._path} can not be used: {error}; restore it from a copy, or move it away to start "
                "without its leases"
            ) from error

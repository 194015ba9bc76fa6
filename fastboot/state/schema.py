"""The tables of the store, numbered, and how they are reached."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from fastboot.model import FastbootError
from fastboot.state.rows import StoredRow

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
    # Times were those of the wall clock: that is a start of the machine at the epoch, number 0.
    """
    ALTER TABLE lease RENAME TO old;
    CREATE TABLE boot (
        id INTEGER PRIMARY KEY,
        zero INTEGER NOT NULL,
        batch INTEGER NOT NULL
    );
    CREATE TABLE lease (
        address INTEGER PRIMARY KEY,
        row TEXT NOT NULL
    );
    INSERT INTO boot VALUES (0, 0, 0);
    INSERT INTO lease
        SELECT coalesce(old_key(address), -row_number() OVER ()),
            old_row(address, state, htype, mac, client_id, hostname, starts, expires)
        FROM old;
    DROP TABLE old;
    """,
    """
    CREATE TABLE install (
        node INTEGER PRIMARY KEY,
        row TEXT NOT NULL
    );
    """,
)
"""The statements that lead from each numbered schema to the next; PRAGMA user_version counts them."""

# One statement for a whole batch: executemany waits for the GIL at every row (DESIGN section 4, measured).
# json_each keeps the order, so of two rows for one address the later wins.
KEEP_LEASES: Final = """
    INSERT INTO lease (address, row) SELECT CAST(key AS INTEGER), value FROM json_each(?) WHERE true
    ON CONFLICT (address) DO UPDATE SET row = excluded.row
"""
"""Keeps the rows that `Responder.batch` writes."""
KEEP_INSTALLS: Final = """
    INSERT INTO install (node, row) SELECT CAST(key AS INTEGER), value FROM json_each(?) WHERE true
    ON CONFLICT (node) DO UPDATE SET row = excluded.row
"""
"""Keeps the rows that `install_rows.texts` writes."""
BATCH: Final = "CAST(row AS INTEGER)"
"""The first word of a row; a number ends where something else begins."""
BOOT: Final = "CAST(substr(row, instr(row, ' ') + 1) AS INTEGER)"
"""The second."""


def keep_private(path: Path) -> None:
    """Let nobody but its owner read the store: the secrets of machines that install are in it. SQLite gives its
    log and the index of that the mode of the file."""
    with suppress(OSError):  # whatever it is, who opens it next says so
        with suppress(FileExistsError):
            path.touch(0o600, exist_ok=False)
        for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with suppress(FileNotFoundError):
                # By its name: to close another descriptor of the file would end SQLite's locks (fcntl(2)).
                each.chmod(0o600)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection that commits to the disk. Raises sqlite3.Error."""
    keep_private(path)
    # isolation_level None: every statement is its own transaction, and no `BEGIN` is slipped in.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the number of the schema, 0 for an empty file. Raises FastbootError for one of a newer fastboot."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise FastbootError(
            f"{path} was written by a newer fastboot (schema {version}, this one knows {len(MIGRATIONS)}); "
            "run that one, or move fastboot.* away to start without its leases"
        )
    return version


def last_batch(connection: sqlite3.Connection) -> int:
    """Return the number of the last batch of leases, or of the last before the last start."""
    rows, starts = f"SELECT ifnull(max({BATCH}), 0) FROM lease", "SELECT ifnull(max(batch), 0) FROM boot"  # noqa: S608
    last: int = connection.execute(f"SELECT max(({rows}), ({starts}))").fetchone()[0]
    return last


def last_install(connection: sqlite3.Connection) -> int:
    """Return the number of the last commit of installs."""
    last: int = connection.execute(f"SELECT ifnull(max({BATCH}), 0) FROM install").fetchone()[0]  # noqa: S608
    return last


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Lead the file to the newest schema. Raises FastbootError for one of a newer fastboot, sqlite3.Error."""
    connection.create_function("old_key", 1, _old_key, deterministic=True)
    connection.create_function("old_row", 8, _old_row, deterministic=True)
    for number, script in enumerate(MIGRATIONS[version_of(connection, path) :], version_of(connection, path) + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")


def _old_key(address: str) -> int | None:
    with suppress(ValueError):
        return int(IPv4Address(address))
    return None


def _old_row(
    address: str, state: str, htype: int, mac: str, client_id: str, host: str, starts: float, expires: float | None
) -> str:
    """Return a row of the first schema as one of the second; without a check where it makes no sense."""
    with suppress(ValueError, TypeError, AttributeError):
        return StoredRow(
            IPv4Address(address), state, htype, bytes.fromhex(mac.replace(":", "")),  # type: ignore[arg-type]
            bytes.fromhex(client_id), host.encode("latin-1"), IPv4Address(0), b"", b"", 0, 0, int(starts * 1000),
            None if expires is None else int(expires * 1000),
        ).text()  # fmt: skip
    return f"0 0 {address} {state} {htype} {mac} {client_id} {host} {starts} {expires}"

"""The store: what is on disk stays, and nothing on disk can stop a start."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from fastboot.model import FastbootError
from fastboot.state import store as store_module
from fastboot.state.store import FILE, KEEP_LEASES, MIGRATIONS, LeaseRow, Store, read_leases


def row(
    address: str,
    state: str = "bound",
    *,
    expires: float | None = 4e9,
    host: str = "",
    mac: str = "52:54:00:aa:00:01",
) -> list[object]:
    return [address, state, 1, mac, "0102", host, 1e12, None if expires is None else expires * 1000]


async def keep(store: Store, *rows: list[object], statement: str = KEEP_LEASES) -> Exception | None:
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.submit(statement, json.dumps(rows), done.set_result)
    return await asyncio.wait_for(done, 10)


def rows_in(state: Path) -> list[LeaseRow]:
    with closing(Store(state)) as store:
        return store.rows()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


async def test_rows_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.start()
    assert await keep(store, row("10.0.0.1", host="a\u00ffb"), row("10.0.0.2", expires=None)) is None
    assert await keep(store, row("10.0.0.1", "released"), row("10.0.0.3"), row("10.0.0.3", "declined")) is None
    store.close()
    store.close()
    found = {row.address: row for row in rows_in(tmp_path)}
    assert [found[int(IPv4Address(f"10.0.0.{at}"))].state for at in (1, 2, 3)] == ["released", "bound", "declined"]
    second = found[int(IPv4Address("10.0.0.2"))]
    assert (second.starts, second.expires) == (1e9, math.inf)
    assert (second.mac, second.client_id) == (bytes.fromhex("525400aa0001"), b"\x01\x02")


async def test_host_names_are_octets(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.start()
    await keep(store, row("10.0.0.1", host="".join(map(chr, range(1, 256)))))
    assert store.rows()[0].host == bytes(range(1, 256))
    (lease,) = store.leases()
    assert "\\xff" in lease.hostname
    store.close()


async def test_leases_are_those_of_now(tmp_path: Path) -> None:
    assert read_leases(tmp_path) == []
    store = Store(tmp_path)
    store.start()
    await keep(
        store, row("10.0.0.2"), row("10.0.0.1"), row("10.0.0.3", "released"), row("10.0.0.4", expires=1e9 + 5),
        row("10.0.0.5", "declined", mac=""),
    )  # fmt: skip
    store.close()
    assert [(str(lease.address), lease.state) for lease in read_leases(tmp_path)] == [
        ("10.0.0.1", "bound"),
        ("10.0.0.2", "bound"),
        ("10.0.0.5", "declined"),
    ]


async def test_commits_are_in_wal_mode_and_synchronous(tmp_path: Path, path: Path) -> None:
    store = Store(tmp_path)
    for connection in (store._writer, store._checkpointer):
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    store.close()


async def test_a_commit_that_fails_is_told_and_the_next_works(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.start()
    fault = await keep(store, row("10.0.0.1"), row("10.0.0.2", "nonsense"))
    assert isinstance(fault, sqlite3.IntegrityError)
    assert store.rows() == [], "all of a batch or nothing"
    assert await keep(store, row("10.0.0.1")) is None
    store.close()


async def test_a_full_disk_is_told_and_the_next_works(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.start()
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count={pages + 1}")
    rows = [row(f"10.0.{at >> 8}.{at & 255}", host="h" * 60) for at in range(1000)]
    fault = await keep(store, *rows)
    assert isinstance(fault, sqlite3.OperationalError) and "full" in str(fault)
    assert await keep(store, rows[0]) is None
    store._writer.execute("PRAGMA max_page_count=100000")
    assert await keep(store, *rows) is None
    assert len(store.rows()) == 1000
    store.close()


async def test_checkpoints_keep_the_wal_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_EVERY", 4)
    store = Store(tmp_path)
    store.start()
    wal = tmp_path / f"{FILE}-wal"
    sizes = []
    for _ in range(40):
        await keep(store, *(row(f"10.0.0.{at}") for at in range(50)))
        sizes.append(wal.stat().st_size)
    assert max(sizes) < 20 * sizes[0], "without a checkpoint it only grows"
    store.close()


def test_bad_rows_are_skipped(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).close()
    good = ("10.0.0.9", "bound", 1, "52:54:00:aa:00:01", "", "", 1e9, 2e9)
    bad = [
        ("10.0.0.256", *good[1:]),
        ("x", *good[1:]),
        ("10.0.0.1", "bound", 700, *good[3:]),
        ("10.0.0.2", "bound", 1, "zz", *good[4:]),
        ("10.0.0.3", "bound", 1, "00" * 17, *good[4:]),
        ("10.0.0.4", *good[1:4], "f", *good[5:]),
        ("10.0.0.5", *good[1:6], "soon", 2e9),
        ("10.0.0.6", *good[1:6], 2e9, 1e9),
        ("10.0.0.7", *good[1:6], math.inf, None),
        (b"\xff\xfe", *good[1:]),
        ("10.0.0.8", *good[1:5], "\u20ac", 1e9, 2e9),
    ]
    with sqlite3.connect(path) as file:
        file.executemany("INSERT INTO lease VALUES (?,?,?,?,?,?,?,?)", [good, *bad])
    file.close()
    (found,) = rows_in(tmp_path)
    assert found.address == int(IPv4Address("10.0.0.9"))
    assert capsys.readouterr().out.count("store.bad_row") == len(bad)


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_every_older_schema_is_led_to_the_newest(tmp_path: Path, path: Path, version: int) -> None:
    with sqlite3.connect(path) as file:
        for script in MIGRATIONS[:version]:
            file.executescript(script)
        file.execute(f"PRAGMA user_version={version}")
    file.close()
    Store(tmp_path).close()
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        migrated = file.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    file.close()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Store(fresh).close()
    with sqlite3.connect(fresh / FILE) as file:
        assert file.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == migrated
    file.close()


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).close()
    broken = (*MIGRATIONS, "CREATE TABLE more (x); INSERT INTO nothing VALUES (1);")
    monkeypatch.setattr(store_module, "MIGRATIONS", broken)
    with pytest.raises(FastbootError, match=FILE):
        Store(tmp_path)
    monkeypatch.undo()
    assert rows_in(tmp_path) == []
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    file.close()


def test_the_file_of_a_newer_version_is_refused(tmp_path: Path, path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    file.close()
    with pytest.raises(FastbootError, match="newer fastboot"):
        Store(tmp_path)


def test_what_is_no_store_is_named(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(FastbootError, match=f"{FILE} can not be used"):
        Store(tmp_path)
    with pytest.raises(FastbootError, match=FILE):
        read_leases(tmp_path)
    with pytest.raises(FastbootError, match="writable"):
        Store(tmp_path / "missing")


WRITER = """
import asyncio, json, sys
from pathlib import Path
from fastboot.state.store import KEEP_LEASES, Store

async def main():
    store = Store(Path(sys.argv[1]))
    store.start()
    loop = asyncio.get_running_loop()
    for batch in range(1_000_000):
        place = f"10.{batch >> 8 & 255}.{batch & 255}"
        rows = [[f"{place}.{at}", "bound", 1, "", "", "", 1e12, 4e12] for at in range(20)]
        done = loop.create_future()
        store.submit(KEEP_LEASES, json.dumps(rows), done.set_result)
        assert await done is None
        print(batch, flush=True)

asyncio.run(main())
"""


def test_killed_in_the_middle_it_has_every_batch_that_it_confirmed(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.2)
        writer.send_signal(signal.SIGKILL)
        confirmed = [int(line) for line in writer.stdout.read().split()]
        writer.stdout.close()
        writer.wait()
        assert confirmed, "it had time to confirm some"
        found = {row.address for row in rows_in(tmp_path)}
        batch = confirmed[-1]
        for at in range(20):
            assert int(IPv4Address(f"10.{batch >> 8 & 255}.{batch & 255}.{at}")) in found
        assert len(found) % 20 == 0, "a batch is there whole or not at all"
        assert len(found) >= 20 * (batch + 1)

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
import zlib
from collections import deque
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest
from dhcpkit import Office, need
from hypothesis import given
from hypothesis import strategies as st

from fastboot.model import FastbootError
from fastboot.state import schema
from fastboot.state import store as store_module
from fastboot.state.clock import Clock, boot_number
from fastboot.state.rows import LeaseRow, State, StoredRow, parse, texts
from fastboot.state.schema import MIGRATIONS
from fastboot.state.store import COMMITTED, FILE, Store, read_leases

SECOND = 1_000_000_000


def test_nobody_else_reads_the_store(tmp_path: Path) -> None:
    def modes() -> set[int]:
        return {each.stat().st_mode & 0o777 for each in tmp_path.glob(f"{FILE}*")}

    with closing(Store(tmp_path)):
        assert len(list(tmp_path.glob(f"{FILE}*"))) == 3
        assert modes() == {0o600}
    (tmp_path / FILE).chmod(0o644)  # that of an older fastboot
    with closing(Store(tmp_path)):
        assert modes() == {0o600}


class TestClock(Clock):
    """A clock of a machine that started an hour ago."""

    __test__ = False

    def __init__(self, *, boot: int = 1, now: float = 3600, wall: float = 1e9) -> None:
        self.boot, self.seconds, self.epoch = boot, now, wall

    def now(self) -> int:
        return int(self.seconds * SECOND)

    def wall(self) -> float:
        return self.epoch

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.epoch += seconds

    def start_anew(self, off: float) -> None:
        """Let the machine be off for so many seconds, then start."""
        self.boot, self.seconds, self.epoch = self.boot + 1, 5, self.epoch + off


def row(
    address: str,
    state: str = "bound",
    *,
    starts: float = 1000,
    expires: float | None = 1e9,
    host: bytes = b"",
    mac: str = "52:54:00:aa:00:01",
    boot: int = 1,
    batch: int = 1,
) -> StoredRow:
    """Return a row whose times are in seconds from the start of the machine."""
    return StoredRow(
        IPv4Address(address), cast(State, state), 1, bytes.fromhex(mac.replace(":", "")), b"\1\2", host,
        IPv4Address("10.9.0.1"), b"\3", b"\4", boot, batch,
        int(starts * 1000), None if expires is None else int(expires * 1000),
    )  # fmt: skip


def commit(store: Store, batch: int, text: str) -> asyncio.Future[Exception | None]:
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.keep_leases(batch, text, done.set_result)
    return done


async def keep(store: Store, *rows: StoredRow, batch: int = 1) -> Exception | None:
    text = texts(each._replace(batch=batch) for each in rows)
    return await asyncio.wait_for(commit(store, batch, text), 10)


def rows_in(state: Path, clock: Clock | None = None) -> list[LeaseRow]:
    with closing(Store(state, clock)) as store:
        return store.rows()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


async def test_rows_come_back(tmp_path: Path) -> None:
    clock = TestClock()
    store = Store(tmp_path, clock)
    store.start()
    assert await keep(store, row("10.0.0.1", host=b"a\xffb"), row("10.0.0.2", expires=None)) is None
    more = (row("10.0.0.1", "released"), row("10.0.0.3"), row("10.0.0.3", "declined"))
    assert await keep(store, *more, batch=2) is None
    store.close()
    store.close()
    found = {each.address: each for each in rows_in(tmp_path, clock)}
    assert [found[int(IPv4Address(f"10.0.0.{at}"))].state for at in (1, 2, 3)] == ["released", "bound", "declined"]
    second = found[int(IPv4Address("10.0.0.2"))]
    assert (second.starts, second.expires) == (1000 * SECOND, None)
    assert (second.mac, second.client_id) == (bytes.fromhex("525400aa0001"), b"\x01\x02")
    with closing(Store(tmp_path, clock)) as store:
        assert (store.last, store.damage) == (2, [])


async def test_host_names_are_octets(tmp_path: Path) -> None:
    with closing(Store(tmp_path, TestClock())) as store:
        store.start()
        await keep(store, row("10.0.0.1", host=bytes(range(1, 256))))
        assert store.rows()[0].host == bytes(range(1, 256))
        (lease,) = store.leases()
        assert "\\xff" in lease.hostname


async def test_leases_are_those_of_now(tmp_path: Path) -> None:
    clock = TestClock()
    assert read_leases(tmp_path, clock) == []
    with closing(Store(tmp_path, clock)) as store:
        store.start()
        await keep(
            store, row("10.0.0.2"), row("10.0.0.1", expires=5000), row("10.0.0.3", "released"),
            row("10.0.0.4", expires=3599), row("10.0.0.5", "declined", mac="", expires=None),
        )  # fmt: skip
    found = read_leases(tmp_path, clock)
    assert [(str(lease.address), lease.state) for lease in found] == [
        ("10.0.0.1", "bound"),
        ("10.0.0.2", "bound"),
        ("10.0.0.5", "declined"),
    ]
    assert [lease.expires for lease in found] == [1e9 + 1400, 2e9 - 3600, math.inf]


def test_commits_are_in_wal_mode_and_synchronous(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        for connection in (store._writer, store._checkpointer):
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


async def test_a_commit_that_fails_is_told_and_the_next_works(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.start()
        wrong = texts([row("10.0.0.1")])[:-1] + ',"167772162":null}'
        assert isinstance(await commit(store, 1, wrong), sqlite3.IntegrityError)
        assert store.rows() == [], "all of a batch or nothing"
        assert (tmp_path / COMMITTED).read_text() == f"{0:020}\n{0:020}\n"
        assert await keep(store, row("10.0.0.1"), batch=2) is None
        assert (tmp_path / COMMITTED).read_text() == f"{2:020}\n{0:020}\n"


async def test_a_full_disk_is_told_and_the_next_works(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.start()
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count={pages + 1}")
        rows = [row(f"10.0.{at >> 8}.{at & 255}", host=b"h" * 60) for at in range(1000)]
        fault = await keep(store, *rows)
        assert isinstance(fault, sqlite3.OperationalError) and "full" in str(fault)
        assert await keep(store, rows[0]) is None
        store._writer.execute("PRAGMA max_page_count=100000")
        assert await keep(store, *rows) is None
        assert len(store.rows()) == 1000


async def test_checkpoints_keep_the_log_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is always a commit under way, so that SQLite by itself never begins the log anew."""
    monkeypatch.setattr(store_module, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(store_module, "LOG_PAGES", 40)
    wal = tmp_path / f"{FILE}-wal"
    with closing(Store(tmp_path, TestClock())) as store:
        store.start()
        batches = [texts(row(f"10.0.{batch % 100}.{at}", batch=batch) for at in range(20)) for batch in range(600)]
        waiting: deque[asyncio.Future[Exception | None]] = deque()
        for batch, text in enumerate(batches):
            waiting.append(commit(store, batch, text))
            if len(waiting) > 20:
                assert await waiting.popleft() is None
                assert wal.stat().st_size < 600 * 4096, "of 1,300 pages"
        for each in waiting:
            assert await each is None
        assert len(store.rows()) == 2000
    with closing(Store(tmp_path, TestClock())) as store:
        assert (store.damage, len(store.rows())) == ([], 2000)


# ---- what a row is


ROWS = st.builds(
    StoredRow,
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
    st.sampled_from(["bound", "released", "declined"]),
    st.integers(0, 255),
    st.binary(max_size=16),
    st.binary(max_size=255),
    st.binary(max_size=64),
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
    st.binary(max_size=255),
    st.binary(max_size=255),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(-(2**43), 0),
    st.none() | st.integers(0, 2**43),
)


@given(ROWS)
def test_a_row_is_what_was_written(kept: StoredRow) -> None:
    assert parse(kept.text().encode()) == kept


@given(ROWS, st.data())
def test_one_wrong_bit_anywhere_in_a_row_is_noticed(kept: StoredRow, data: st.DataObject) -> None:
    text = bytearray(kept.text().encode())
    text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match=r"."):
        parse(bytes(text))


@given(st.none() | st.integers() | st.text() | st.binary())
def test_nonsense_is_no_row(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_nonsense_with_a_check_is_no_row(words: list[bytes]) -> None:
    body = b" ".join(words)
    with pytest.raises(ValueError, match=r"."):
        parse(body + b" %d" % zlib.crc32(body))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"state": "offered"}, "no state"),
        ({"htype": 256}, "no hardware address"),
        ({"mac": bytes(17)}, "no hardware address"),
        ({"expires": 999_999}, "no time"),
        ({"starts": 2**44, "expires": None}, "no time"),
    ],
)
def test_a_row_that_can_not_be_is_none(words: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(row("10.0.0.1")._replace(**words).text().encode())


@given(
    st.binary(max_size=64), st.lists(st.binary(max_size=255), min_size=3, max_size=3),
    st.binary(min_size=1, max_size=16), st.integers(1, 255), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_native_core_writes_the_same(
    host: bytes, ids: list[bytes], mac: bytes, htype: int, relay: int
) -> None:
    office = Office()
    client_id, circuit, remote = ids
    address = int(IPv4Address("10.77.0.150"))
    taken = (address, "bound", htype, mac, client_id, host, relay, circuit, remote, -5_000_000, office.now + 1)
    office.responder.adopt([taken], office.now)
    batch = office.responder.batch(-9)
    assert batch is not None
    ((key, text),) = json.loads(batch[1]).items()
    assert int(key) == address
    assert parse(text.encode()) == StoredRow(
        IPv4Address(address), "bound", htype, mac, client_id, host, IPv4Address(relay), circuit, remote, -9,
        batch[0], -5, office.now // 1_000_000 + 1,
    )  # fmt: skip


# ---- clocks


async def test_a_wall_clock_that_is_set_neither_cuts_nor_lengthens_a_lease(tmp_path: Path) -> None:
    """While it runs, over a restart of the server, and over one of the machine."""
    clock = TestClock()
    for jump in (86400.0, -300.0, -1e9):
        with closing(Store(tmp_path, clock)) as store:
            store.start()
            ends = clock.seconds + 600
            kept = row("10.0.0.1", starts=clock.seconds, expires=ends, boot=clock.boot)
            await keep(store, kept, batch=store.last + 1)
            clock.epoch += jump
            store._look()
        clock.pass_time(100)
        with closing(Store(tmp_path, clock)) as store:
            assert store.rows()[0].expires == ends * SECOND, "the server started again"
            clock.epoch -= jump / 2
        clock.pass_time(50)
        clock.start_anew(off=60)
        (found,) = rows_in(tmp_path, clock)
        assert cast(int, found.expires) - clock.now() == (600 - 100 - 50 - 60) * SECOND, (
            "the machine started again"
        )


async def test_a_jump_that_nobody_saw_before_the_machine_went_down(tmp_path: Path) -> None:
    """A dead clock battery: whatever the new start says, no lease gets longer than it was given."""
    clock = TestClock()
    with closing(Store(tmp_path, clock)) as store:
        store.start()
        await keep(store, row("10.0.0.1", starts=3600, expires=4200), row("10.0.0.2", expires=None))
    clock.start_anew(off=-9e8)
    first, second = sorted(rows_in(tmp_path, clock))
    assert cast(int, first.expires) - clock.now() == 600 * SECOND
    assert second.expires is None


async def test_a_clock_that_was_set_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = TestClock()
    with closing(Store(tmp_path, clock)) as store:
        for step, told in ((0.5, 0), (0.4, 0), (3600, 1), (0, 1), (-7200, 2)):
            clock.epoch += step
            store._look()
            assert capsys.readouterr().out.count("store.clock_set") == (told if step in (3600, -7200) else 0) // (
                told or 1
            )


async def test_the_committer_looks_at_the_clock_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOOK_EVERY", 0.01)
    clock = TestClock()
    with closing(Store(tmp_path, clock)) as store:
        store.start()
        clock.epoch += 500
        zero = clock.zero()
        for _ in range(500):
            if store._zero == zero:
                break
            await asyncio.sleep(0.01)
        assert store._zero == zero
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT id, zero FROM boot").fetchall() == [(1, zero)]


async def test_starts_of_the_machine_that_no_lease_is_of_are_forgotten(tmp_path: Path) -> None:
    clock = TestClock()
    for _ in range(5):
        with closing(Store(tmp_path, clock)) as store:
            store.start()
            if clock.boot == 2:  # this one seems to have ended by the next start, and is kept as it was
                await keep(store, row("10.0.0.1", boot=2, starts=1, expires=3))
        clock.start_anew(off=10)
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT id FROM boot ORDER BY id").fetchall() == [(2,), (5,)]


@pytest.mark.parametrize("by", [-4000, 4000])
async def test_a_clock_set_after_a_start_of_the_machine_moves_no_lease(tmp_path: Path, by: float) -> None:
    """Found by the model: the machine starts anew, its clock is set, then the server starts once more."""
    clock = TestClock()
    with closing(Store(tmp_path, clock)) as store:
        store.start()
        await keep(store, row("10.0.0.1", boot=1, starts=clock.seconds, expires=clock.seconds + 3600))
    clock.start_anew(off=100)
    (before,) = rows_in(tmp_path, clock)
    clock.epoch += by
    (after,) = rows_in(tmp_path, clock)
    assert after == before
    assert after.expires and abs(after.expires / 1e9 - clock.seconds - 3500) < 10


def test_this_machine_has_a_clock() -> None:
    clock = Clock()
    assert abs(clock.zero() / 1000 + clock.now() / 1e9 - time.time()) < 1
    assert clock.boot == Clock().boot != 0
    assert boot_number("ffffffff-ffff-ffff-8000-000000000000\n") == -1
    assert boot_number("00000000-0000-0000-8000-000000000000\n") == 1


# ---- schemas


OLD = ("10.0.0.9", "bound", 1, "52:54:00:aa:00:01", "0102", "h\xff", 1e9 - 100, 1e9 + 200.25)
OLD_BAD = (
    ("10.0.0.256", *OLD[1:]),
    ("10.0.0.2", "bound", 700, *OLD[3:]),
    ("10.0.0.3", *OLD[1:3], "zz", *OLD[4:]),
    ("10.0.0.4", *OLD[1:4], "f", *OLD[5:]),
    ("10.0.0.5", *OLD[1:6], "soon", 2e9),
    ("10.0.0.6", *OLD[1:6], 2e9, 1e9),
    ("10.0.0.7", *OLD[1:5], "\u20ac", 1e9, 2e9),
    (b"\xff\xfe", *OLD[1:]),
)


def old_store(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        for name, arguments in (("old_key", 1), ("old_row", 8)):
            file.create_function(name, arguments, lambda *_: None)  # of no row
        for script in MIGRATIONS[:version]:
            file.executescript(script)
        file.execute(f"PRAGMA user_version={version}")


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_every_older_schema_is_led_to_the_newest(tmp_path: Path, path: Path, version: int) -> None:
    old_store(path, version)
    Store(tmp_path).close()
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        migrated = file.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Store(fresh).close()
    with closing(sqlite3.connect(fresh / FILE)) as file:
        assert file.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == migrated


def test_leases_of_the_first_schema_are_kept_and_bad_rows_left_out(tmp_path: Path, path: Path) -> None:
    old_store(path, 1)
    with closing(sqlite3.connect(path)) as file, file:
        file.executemany("INSERT INTO lease VALUES (?,?,?,?,?,?,?,?)", [OLD, *OLD_BAD])
    clock = TestClock()
    with closing(Store(tmp_path, clock)) as store:
        (found,) = store.rows()
        assert len(store.damage) == len(OLD_BAD)
        assert all("makes no sense" in text for text in store.damage)
    assert (found.address, found.host, found.client_id) == (0x0A000009, b"h\xff", b"\1\2")
    assert cast(int, found.expires) - clock.now() == int(200.25 * SECOND)
    with closing(Store(tmp_path, clock)) as store:
        assert store.damage == [], "told once"


def test_an_older_store_is_named_while_no_server_runs(tmp_path: Path, path: Path) -> None:
    old_store(path, 1)
    with pytest.raises(FastbootError, match="older fastboot"):
        read_leases(tmp_path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).close()
    broken = (*MIGRATIONS, "CREATE TABLE more (x); INSERT INTO lease SELECT 1;")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(FastbootError, match=FILE):
        Store(tmp_path)
    monkeypatch.undo()
    assert rows_in(tmp_path) == []
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)


def test_the_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE something (x)")
        file.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(FastbootError, match="newer fastboot"):
        Store(tmp_path)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT name FROM sqlite_master").fetchall() == [("something",)]
    assert len(path.read_bytes()) == len(before)


def test_a_directory_that_can_not_be_used_is_named(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FastbootError, match="can not be opened: No such file"):
        Store(tmp_path / "missing")
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(FastbootError, match=FILE):
        read_leases(tmp_path)


def test_a_disk_that_is_full_or_fails_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else somebody moves a good store away."""

    def fail(path: Path) -> sqlite3.Connection:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    monkeypatch.setattr(store_module, "connect", fail)
    with pytest.raises(FastbootError, match=r"disk I/O error; is the disk of .* full, or failing\?"):
        Store(tmp_path)


WRITER = """
import asyncio, sys
from ipaddress import IPv4Address
from pathlib import Path
from fastboot.state.rows import StoredRow, texts
from fastboot.state.store import Store

async def main():
    store = Store(Path(sys.argv[1]))
    store.start()
    loop = asyncio.get_running_loop()
    for batch in range(1, 1_000_000):
        place = f"10.{batch >> 8 & 255}.{batch & 255}"
        rows = [
            StoredRow(
                IPv4Address(f"{place}.{at}"), "bound", 1, b"", b"", b"", IPv4Address(0), b"", b"",
                1, batch, 0, None,
            )
            for at in range(20)
        ]
        done = loop.create_future()
        store.keep_leases(batch, texts(rows), done.set_result)
        assert await done is None
        print(batch, flush=True)

asyncio.run(main())
"""


def test_killed_in_the_middle_it_has_every_batch_that_it_confirmed(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        confirmed = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in writer.stdout.read().split()]
        writer.stdout.close()
        writer.wait()
        with closing(Store(tmp_path)) as store:
            assert store.damage == []
            found = {each.address for each in store.rows()}
        batch = confirmed[-1]
        for at in range(20):
            assert int(IPv4Address(f"10.{batch >> 8 & 255}.{batch & 255}.{at}")) in found
        assert len(found) % 20 == 0, "a batch is there whole or not at all"
        assert len(found) >= 20 * batch


FULL = """
import sys
from pathlib import Path
from fastboot.model import FastbootError
from fastboot.state.lock import StateLock
from fastboot.state.store import Store

state = Path(sys.argv[1])
with StateLock(state):
    try:
        Store(state)
    except FastbootError as error:
        print(error)
"""


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The lock holds without its text; the store says what it lacks."""
    need("unshare", "mount")
    mount, fill = 'mount -t tmpfs -o size=64k tmpfs "$1"', '! dd if=/dev/zero "of=$1/ballast" bs=4k'
    script = f'{mount} && {fill} && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "-", tmp_path, sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"no space left for {tmp_path}; make room on its disk" in done.stdout, done.stderr


FEW = """
import os, resource, sys
from pathlib import Path
from fastboot.model import FastbootError
from fastboot.state.clock import Clock
from fastboot.state.store import Store

clock = Clock()
state, (lowest, most) = Path(sys.argv[1]), (os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
for more in range(1, 64):
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, most))
    try:
        Store(state, clock).close()
        break
    except FastbootError as error:
        print(error)
"""


def test_too_few_descriptors_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    faults = done.stdout.splitlines()
    assert len(faults) > 3
    for fault in faults:
        assert "Too many open files" in fault

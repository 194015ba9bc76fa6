"""Damage of every kind to the files of the store: it starts, has what can be read, and says what it has not."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_store import TestClock, keep, row

from fastboot.model import FastbootError, Install, InstallState
from fastboot.state import recovery
from fastboot.state import store as store_module
from fastboot.state.install_rows import StoredInstall
from fastboot.state.pages import FRAME_HEAD, WAL_HEAD, Wal, records
from fastboot.state.rows import StoredRow
from fastboot.state.store import COMMITTED, FILE, Store
from fastboot.wording import counted

WAL = f"{FILE}-wal"
LEASES = 300


@dataclass
class Crashed:
    """The state directory of a server that was killed, whole, and copies of it to break."""

    whole: Path
    leases: dict[int, StoredRow]
    copies: Iterator[Path]

    def copy(self, *, without_number: bool = False) -> Path:
        """Return a fresh copy; without the number of the last commit it is as after a power failure."""
        state = next(self.copies)
        shutil.copytree(self.whole, state)
        if without_number:
            (state / COMMITTED).unlink()
        return state


def make_crashed(tmp_path: Path, batches: list[list[StoredRow]], *, checkpoint_after: int = 0) -> Crashed:
    """Commit batches, and take the files as they lie while the server runs."""
    live, whole = tmp_path / "live", tmp_path / "whole"
    live.mkdir()

    async def run() -> None:
        store = Store(live, TestClock())
        store.start()
        for number, rows in enumerate(batches, 1):
            assert await keep(store, *rows, batch=number) is None
            if number == checkpoint_after:
                store._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        shutil.copytree(live, whole)
        store.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHECKPOINT_EVERY", 10**9)  # only where the test wants one
        asyncio.run(run())
    leases = {int(each.address): each for rows in batches for each in rows if each.state == "bound"}
    return Crashed(whole, leases, (tmp_path / f"copy{at}" for at in itertools.count()))


def lease_number(at: int, **more: object) -> StoredRow:
    return row(
        f"10.0.{at >> 8}.{at & 255}", mac=f"52:54:00:00:{at >> 8:02x}:{at & 255:02x}", host=b"h" * 30, **more
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    return make_crashed(tmp_path_factory.mktemp("one"), [[lease_number(at)] for at in range(LEASES)])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    """The first half is in the database file, the second in the log only."""
    rows = [[lease_number(at)] for at in range(LEASES)]
    return make_crashed(tmp_path_factory.mktemp("half"), rows, checkpoint_after=LEASES // 2)


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 1 << bit]))


def start(state: Path) -> tuple[dict[int, StoredRow], list[str]]:
    """Start on a state directory; return its leases and what was told."""
    with closing(Store(state, TestClock())) as store:
        found = {each.address: each for each in store.rows()}
        damage = list(store.damage)
        for each in found.values():
            assert each.mac[4] << 8 | each.mac[5] == each.address & 0xFFFF, "no lease is made up"
    with closing(Store(state, TestClock())) as store:
        assert store.damage == [], "it is told once"
        assert {each.address: each for each in store.rows()} == found
    return found, damage  # type: ignore[return-value]


def kept_copies(state: Path) -> list[Path]:
    return sorted(path for path in state.iterdir() if ".damaged-" in path.name)


def test_what_was_not_damaged_is_not_touched(crashed: Crashed, half: Crashed) -> None:
    for each in (crashed, half):
        state = each.copy()
        found, damage = start(state)
        assert (len(found), damage, kept_copies(state)) == (LEASES, [], [])


# ---- the write-ahead log


def places(wal: Path) -> dict[str, int]:
    """Return an offset of each kind in the middle of a log."""
    found = Wal(wal)
    frame = found.frames[len(found.frames) // 2].at
    return {
        "page number": frame + 3,
        "size after commit": frame + 7,
        "salt": frame + 8,
        "other salt": frame + 15,
        "check": frame + 16,
        "other check": frame + 23,
        "head of the page": frame + FRAME_HEAD,
        "pointers in the page": frame + FRAME_HEAD + 9,
        "middle of the page": frame + FRAME_HEAD + 2000,
        "end of the page": frame + FRAME_HEAD + 4095,
        "magic of the log": 0,
        "salt of the log": 17,
        "check of the log": 25,
    }


@pytest.mark.parametrize(
    "where",
    ["page number", "size after commit", "salt", "other salt", "check", "other check", "head of the page",
     "pointers in the page", "middle of the page", "end of the page", "magic of the log", "salt of the log",
     "check of the log"],
)  # fmt: skip
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power failed"])
def test_one_wrong_bit_in_the_log_loses_nothing(crashed: Crashed, where: str, power: bool) -> None:
    """SQLite alone drops every later frame, without a word."""
    state = crashed.copy(without_number=power)
    flip(state / WAL, places(state / WAL)[where])
    alone = crashed.copy()
    flip(alone / WAL, places(alone / WAL)[where])
    with closing(sqlite3.connect(alone / FILE)) as file:
        try:
            (count,) = file.execute("SELECT count(*) FROM lease").fetchone()
        except sqlite3.OperationalError:  # the table was in the log only
            count = 0
        assert count < LEASES * 0.6
    found, damage = start(state)
    assert len(found) == LEASES
    assert any(f"{WAL} is damaged" in text or "is empty" in text for text in damage)
    (copy,) = (path for path in kept_copies(state) if path.name.startswith(WAL))
    assert copy.stat().st_size == (crashed.whole / WAL).stat().st_size
    assert copy.name in damage[0]


def test_a_log_whose_start_is_broken_keeps_what_is_in_the_file_too(half: Crashed) -> None:
    state = half.copy()
    flip(state / WAL, places(state / WAL)["salt of the log"])
    found, damage = start(state)
    assert len(found) == LEASES and damage


@pytest.mark.parametrize("seed", range(25))
def test_no_bit_of_the_log_is_lost_in_silence(crashed: Crashed, half: Crashed, seed: int) -> None:
    """Wherever it is: the server starts, and what is missing is told. One page is all that one bit can take."""
    chance = random.Random(seed)
    source = chance.choice([crashed, half])
    state = source.copy(without_number=chance.random() < 0.5)
    size = (state / WAL).stat().st_size
    # Not in the last transaction: whether that was confirmed is not known without the number.
    flip(state / WAL, chance.randrange(size - 8 * 4120), chance.randrange(8))
    found, damage = start(state)
    assert len(found) >= LEASES - 40
    if len(found) < LEASES:
        assert damage


def test_the_last_commit_is_missed_where_its_number_is_known(crashed: Crashed) -> None:
    state = crashed.copy()
    last = Wal(state / WAL).frames[-1]
    flip(state / WAL, last.at + FRAME_HEAD + 100)
    found, damage = start(state)
    assert len(found) == LEASES and "damaged" in damage[0]


def test_a_commit_that_was_cut_off_is_no_damage(crashed: Crashed, capsys: pytest.CaptureFixture[str]) -> None:
    """As the power fails in the middle of a commit: some of its pages are there, some are not."""
    state = crashed.copy(without_number=True)
    last = Wal(state / WAL).frames[-1]
    flip(state / WAL, last.at + FRAME_HEAD + 100)
    found, damage = start(state)
    assert len(found) == LEASES - 1 and damage == [] and kept_copies(state) == []
    assert "store.cut_off" in capsys.readouterr().out


def test_pages_behind_the_end_of_the_log_are_no_damage(crashed: Crashed) -> None:
    state = crashed.copy()
    with (state / WAL).open("ab") as file:
        file.write(bytes(10_000))
    assert start(state)[1] == []


def test_the_newest_row_of_an_address_counts(tmp_path: Path) -> None:
    """Its older ones are in the same log, before and behind the damage."""
    batches = [[lease_number(1, expires=5000 + at)] for at in range(50)]
    crashed = make_crashed(tmp_path, batches)
    state = crashed.copy()
    flip(state / WAL, places(state / WAL)["middle of the page"] + 1000)
    flip(state / WAL, Wal(state / WAL).frames[3].at + 10)
    found, damage = start(state)
    assert [each.expires for each in found.values()] == [5049 * 1_000_000_000] and damage


@pytest.mark.parametrize("known", [True, False])
def test_what_the_last_commit_took_from_somebody_counts_only_if_it_was_confirmed(
    tmp_path: Path, known: bool
) -> None:
    batches = [[lease_number(1)], [lease_number(2)], [lease_number(1, state="released"), lease_number(3)]]
    crashed = make_crashed(tmp_path, batches)
    state = crashed.copy(without_number=not known)
    (state / FILE).write_bytes(b"gone")
    found, _ = start(state)
    states = {at & 255: each.state for at, each in found.items()}
    assert states == {1: "released" if known else "bound", 2: "bound", 3: "bound"}


def test_a_log_that_was_removed_is_missed(crashed: Crashed) -> None:
    state = crashed.copy()
    (state / WAL).unlink()
    found, damage = start(state)
    assert found == {} and damage and str(LEASES) in damage[0]


def test_an_old_copy_of_the_file_is_noticed_and_numbers_go_on(crashed: Crashed, half: Crashed) -> None:
    state = half.copy()
    (state / WAL).unlink()
    (state / COMMITTED).write_text("5000")
    with closing(Store(state, TestClock())) as store:
        assert "ends with commit 150, but commit 5000 was confirmed" in store.damage[0]
        assert store.last == 5000
    with closing(Store(state, TestClock())) as store:
        assert (store.damage, store.last) == ([], 5000)


# ---- the database file


@pytest.mark.parametrize("seed", range(25))
def test_no_bit_of_the_file_is_lost_in_silence(half: Crashed, seed: int, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(half.whole, state)
    start(state)  # everything is in the file now
    chance = random.Random(seed)
    flip(state / FILE, chance.randrange((state / FILE).stat().st_size), chance.randrange(8))
    try:
        found, damage = start(state)
    except FastbootError as error:
        assert "newer fastboot" in str(error), "a bit of the schema's number"
        return
    assert len(found) >= LEASES - 60
    if len(found) < LEASES:
        assert damage


def test_one_wrong_bit_in_a_row_costs_that_row(half: Crashed) -> None:
    state = half.copy()
    start(state)
    at = (state / FILE).read_bytes().index(b"52:54:00:00:00:11")
    flip(state / FILE, at + 4)
    found, damage = start(state)
    assert len(found) == LEASES - 1
    assert "makes no sense" in damage[0] and "10.0.0.17" in damage[0]
    assert kept_copies(state) == []


def test_many_bad_rows_are_told_in_few_lines(half: Crashed) -> None:
    state = half.copy()
    start(state)
    with closing(sqlite3.connect(state / FILE)) as file, file:
        file.execute("UPDATE lease SET row = row || '1' WHERE address <> 0x0A000011")
    found, damage = start(state)
    assert len(found) == 1 and len(damage) == recovery.MOST_ROWS_TOLD + 1
    assert "279 more rows" in damage[-1]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: b"not a database" * 1000,
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[:8192] + b"\xff" * 4096 + data[12288:],
        lambda data: data[:10_000],
        lambda data: data[:100],
    ],
    ids=["nonsense", "empty", "zeros", "a page gone", "cut", "the head only"],
)
def test_a_file_that_sqlite_can_not_read(half: Crashed, break_it: Callable[[bytes], bytes]) -> None:
    state = half.copy()
    broken = break_it((state / FILE).read_bytes())
    (state / FILE).write_bytes(broken)
    found, damage = start(state)
    assert len(found) >= LEASES / 2, "those that were committed last are in the log"
    assert len(damage) == 1 and f"{counted(len(found), 'lease')} could be read" in damage[0]
    copies = kept_copies(state)
    assert [path.read_bytes() for path in copies] == [(half.whole / WAL).read_bytes(), broken]
    assert all(path.name in damage[0] for path in copies)


def test_a_file_that_was_removed(crashed: Crashed, half: Crashed) -> None:
    """Both of them is a wish to begin anew; SQLite would delete a log without its file."""
    for each, least in ((crashed, LEASES), (half, LEASES // 2)):
        state = each.copy()
        (state / FILE).unlink()
        found, damage = start(state)
        assert least <= len(found) < least + 20, "what the log has, in whole pages"
        assert "is gone" in damage[0] and f"{len(found)} leases" in damage[0]
    state = half.copy()
    for path in list(state.iterdir()):
        path.unlink()
    assert start(state) == ({}, [])


def test_what_the_log_has_too_need_not_be_in_the_file(half: Crashed) -> None:
    """SQLite reads its first page from the log, and so it is whole."""
    state = half.copy()
    (state / FILE).write_bytes(b"\xff" * 100 + (state / FILE).read_bytes()[100:])
    found, damage = start(state)
    assert (len(found), damage) == (LEASES, [])


def test_a_page_with_rows_is_lost_and_the_others_are_read(half: Crashed) -> None:
    state = half.copy()
    start(state)
    data = bytearray((state / FILE).read_bytes())
    pages = [at for at in range(4096, len(data), 4096) if data[at] == 13]
    data[pages[2] : pages[2] + 8] = b"\xff" * 8
    (state / FILE).write_bytes(data)
    found, damage = start(state)
    assert LEASES - 60 < len(found) < LEASES and damage


def test_a_sector_that_can_not_be_read(half: Crashed, monkeypatch: pytest.MonkeyPatch) -> None:
    state = half.copy()
    (state / FILE).write_bytes(bytes(8192) + (state / FILE).read_bytes()[8192:])
    (state / WAL).unlink()
    real, failed = os.pread, []

    def pread(fd: int, size: int, at: int) -> bytes:
        if size == 4096 and at == 16384:
            failed.append(at)
            raise OSError(5, "Input/output error")
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    found, damage = start(state)
    assert LEASES / 2 - 60 < len(found) < LEASES / 2 and damage and failed


def test_times_of_an_earlier_start_are_read_from_a_broken_file(tmp_path: Path) -> None:
    crashed = make_crashed(tmp_path, [[lease_number(1, starts=3600, expires=4200)], [lease_number(2, boot=77)]])
    state = crashed.copy()
    (state / FILE).write_bytes(b"gone")
    clock = TestClock()
    clock.pass_time(100)
    clock.start_anew(off=200)
    with closing(Store(state, clock)) as store:
        first, second = sorted(store.rows())
    assert first.expires is not None and first.expires - clock.now() == 300 * 1_000_000_000
    assert second.expires is not None and second.expires - clock.now() == (10**9 - 1000) * 1_000_000_000


@pytest.mark.parametrize("step", range(12))
def test_a_crash_while_the_new_store_is_put_in_place(
    half: Crashed, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last thing was that it did: the next start has every row that the first would have had."""
    state = half.copy()
    (state / FILE).write_bytes(bytes(10_000))
    steps = itertools.count()

    class Crash(BaseException):
        pass

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            if next(steps) == step:
                raise Crash
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", counted(os.link))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "replace", counted(Path.replace))
        try:
            Store(state, TestClock()).close()
        except Crash:
            pass
        else:
            assert step >= 10, "all its steps are tried"
    found, _ = start(state)
    assert len(found) >= LEASES / 2
    assert {path.name.partition(".damaged")[0] for path in kept_copies(state)} == {FILE, WAL}
    assert not [path for path in state.iterdir() if path.name.endswith((".new", ".salvaged"))]


def test_no_room_to_look_is_told_and_no_reason_not_to_start(
    half: Crashed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = half.copy()
    real = recovery.connect

    class Full:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self.connection, name)

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "text_factory":
                self.connection.text_factory = value

        def execute(self, statement: str, *more: object) -> object:
            if "wal_checkpoint" in statement:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return self.connection.execute(statement, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "connect", lambda path: Full(real(path)))
    with closing(Store(state, TestClock())) as store:
        assert len(store.rows()) == LEASES
    assert "store.disk_full" in capsys.readouterr().out


# ---- pages


@pytest.mark.parametrize("seed", range(30))
def test_rubbish_in_a_page_is_no_error(half: Crashed, seed: int) -> None:
    chance = random.Random(seed)
    data = (half.whole / FILE).read_bytes()
    page = bytearray(data[4096 * chance.randrange(len(data) // 4096) :][:4096])
    for _ in range(chance.choice([1, 10, 1000])):
        page[chance.randrange(len(page))] = chance.randrange(256)
    list(records(bytes(page)))
    list(records(bytes(page[: chance.randrange(4096)])))
    list(records(bytes([chance.choice([2, 10, 13])]) + chance.randbytes(4095)))


def test_records_of_every_kind_are_read_as_sqlite_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    values = [0, 1, -1, 127, -128, 300, -40000, 2**23, -(2**31), 2**40, -(2**47), 2**63 - 1, -(2**63), None]
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE one (number INTEGER PRIMARY KEY, a, b)")
        file.execute("CREATE TABLE two (number INTEGER PRIMARY KEY, a, b) WITHOUT ROWID")
        for table in ("one", "two"):
            for number, value in zip((-(2**63), -5, 0, 7, 300, 2**62), itertools.cycle(values), strict=False):
                file.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (number, value, f"text {value}"))
            file.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?)",
                [(1000 + at, value, b"") for at, value in enumerate(values)],
            )
        file.execute("INSERT INTO one VALUES (5, 'long', ?)", ("x" * 5000,))
        expected = file.execute("SELECT * FROM two ORDER BY number").fetchall()
    data = path.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    one, two = ([found for page in pages if page[0] == kind for found in records(page)] for kind in (13, 10))
    plain = [
        tuple(
            value.decode() if isinstance(value, bytes) and value.startswith(b"text") else value for value in found
        )
        for _, found in two
    ]
    assert plain == expected
    assert [number for number, _ in one] == [number for number, *_ in expected], "without the one that goes on"


def test_no_log_and_half_a_log(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    for head in (b"", b"x" * 20, struct.pack(">IIIIIIII", *range(8)), bytes(WAL_HEAD) + bytes(100)):
        path.write_bytes(head)
        assert Wal(path).frames == []


# ---- installs


def kept_install(node: str, state: InstallState = InstallState.ARMED, serial: int = 1) -> StoredInstall:
    return StoredInstall(serial, node, Install(node, "rocky", state, f"{serial:032x}", 1e9, ""))


def make_installs(tmp_path: Path, commits: list[list[StoredInstall]], *, checkpoint_after: int = 0) -> Path:
    """Commit installs, a lease before each; return the files as they lie while the server runs."""
    live, whole = tmp_path / "live", tmp_path / "whole"
    live.mkdir()

    async def run() -> None:
        store = Store(live, TestClock())
        store.start()
        for number, rows in enumerate(commits, 1):
            assert await keep(store, lease_number(number), batch=number) is None
            done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
            store.keep_installs(number, [row._replace(serial=number) for row in rows], done.set_result)
            assert await done is None
            if number == checkpoint_after:
                store._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        shutil.copytree(live, whole)
        store.close()

    asyncio.run(run())
    return whole


def installs_of(state: Path) -> tuple[dict[str, str | None], list[str], list[str]]:
    """Start on a state directory; return the state of each node, the damage, and who was disarmed."""
    with closing(Store(state, TestClock())) as store:
        found = {row.node: row.install and row.install.state.value for row in store.installs()}
        damage, disarmed = list(store.damage), [row.node for row in store.disarmed]
        last = store.last_install
    with closing(Store(state, TestClock())) as store:
        assert (store.damage, store.disarmed) == ([], []), "it is told once"
        assert {row.node: row.install and row.install.state.value for row in store.installs()} == found
        assert store.last_install >= last
    return found, damage, disarmed


BEGUN, DONE = InstallState.INSTALLING, InstallState.INSTALLED
COMMITS = [
    [kept_install("a"), kept_install("b"), kept_install("c")],
    [kept_install("d", DONE)],
    [kept_install("b", BEGUN)],
]


def test_a_whole_store_disarms_nobody(tmp_path: Path) -> None:
    state = make_installs(tmp_path, COMMITS)
    assert installs_of(state) == ({"a": "armed", "b": "installing", "c": "armed", "d": "installed"}, [], [])


@pytest.mark.parametrize(
    ("checkpoint_after", "least"), [(0, 60), (2, 10)]
)  # of an old log, only the new part counts
def test_no_bit_of_the_log_brings_an_arming_back(tmp_path: Path, checkpoint_after: int, least: int) -> None:
    """`b` is being installed: whatever bit is wrong, it is never armed again, and where it is lost all are not."""
    state = make_installs(tmp_path, COMMITS, checkpoint_after=checkpoint_after)
    size, chance, damaged = (state / WAL).stat().st_size, random.Random(8), 0
    for at in range(60):
        copy = tmp_path / f"copy{at}"
        shutil.copytree(state, copy)
        flip(copy / WAL, chance.randrange(size), chance.randrange(8))
        found, damage, disarmed = installs_of(copy)
        assert found.get("b") in (None, "installing")
        assert ("armed" in found.values()) is not bool(damage), "armed only where nothing is wrong"
        assert {*disarmed} == {name for name, state in found.items() if state is None}
        damaged += bool(damage)
    assert damaged >= least


def test_the_last_commit_of_installs_is_missed_when_the_log_is_gone(tmp_path: Path) -> None:
    state = make_installs(tmp_path, COMMITS, checkpoint_after=2)
    (state / WAL).unlink()
    numbers = (state / COMMITTED).read_bytes()
    (state / COMMITTED).write_bytes(b"%020d\n" % 2 + numbers[21:])  # only installs are missing
    found, damage, disarmed = installs_of(state)
    assert found == {"a": None, "b": None, "c": None, "d": "installed"}
    assert damage == [
        "fastboot.sqlite ends with commit 2 of installs, but commit 3 was confirmed: installs are missing"
    ]
    assert sorted(disarmed) == ["a", "b", "c"]


def test_where_the_numbers_are_gone_too_nobody_stays_armed(tmp_path: Path) -> None:
    state = make_installs(tmp_path, COMMITS, checkpoint_after=2)
    (state / WAL).unlink()
    (state / COMMITTED).unlink()
    found, damage, _ = installs_of(state)
    assert found == {"a": None, "b": None, "c": None, "d": "installed"}
    assert len(damage) == 1 and "is gone: some may be missing" in damage[0]


@pytest.mark.parametrize("name", [FILE, WAL])
def test_installs_are_read_from_the_pages_of_a_broken_file(tmp_path: Path, name: str) -> None:
    state = make_installs(tmp_path, COMMITS, checkpoint_after=2)
    data = (state / FILE).read_bytes()
    if name == FILE:
        (state / FILE).write_bytes(bytes(100) + data[100:])
    else:
        (state / FILE).unlink()
    found, damage, disarmed = installs_of(state)
    assert len(damage) == 1
    assert found["b"] == "installing"
    assert "armed" not in found.values()
    assert name != FILE or (found["d"] == "installed" and "4 installs could be read" in damage[0])
    assert set(disarmed) <= {"a", "c"}


def test_a_bad_row_of_an_install_is_left_out_and_its_token_untold(tmp_path: Path) -> None:
    state = make_installs(tmp_path, COMMITS)
    with closing(sqlite3.connect(state / FILE)) as file, file:
        file.execute("UPDATE install SET row = replace(row, ' armed a ', ' armed A ')")
    found, damage, disarmed = installs_of(state)
    assert found == {"b": "installing", "c": None, "d": "installed"}
    assert damage == [
        "a row of an install in fastboot.sqlite makes no sense and is left out: its check does not fit"
    ]
    assert disarmed == ["c"]


def test_a_crash_between_any_steps_of_a_repair_arms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is seen once: with it goes what it means, in one step."""
    state = make_installs(tmp_path, COMMITS)
    flip(state / WAL, (state / WAL).stat().st_size - 3000)
    real, at = recovery._disarm, itertools.count()

    def crash(*arguments: object) -> list[StoredInstall]:
        shutil.copytree(state, tmp_path / f"before{next(at)}")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "_disarm", crash)
    Store(state).close()
    monkeypatch.undo()
    found, damage, _ = installs_of(tmp_path / "before0")
    assert damage and "armed" not in found.values()

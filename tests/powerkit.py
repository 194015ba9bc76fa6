"""A power failure: what a killed process did not sync is taken back, and what a clock says can be set.

The shims (tests/shims) are preloaded into a real server; the real disk and the real clock stay as they are.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastboot.services.control_client import ControlClient, NotRunning

SHIMS = Path(__file__).parent / "shims"
WRITE, SYNC, CREATE, UNLINK, RENAME, LINK, SYNC_DIRECTORY = range(1, 8)
HEAD, NAME = struct.Struct("=7Q"), 256
SECTOR = 512

Left = Literal["nothing", "some"]
"""Of what was not synced: a disk may have written any of its sectors, or none."""


def compile_shim(name: str, directory: Path) -> Path:
    """Build one of the shims. Raises CalledProcessError."""
    library = directory / f"{name}.so"
    source = SHIMS / f"{name}.c"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@contextmanager
def serving(process: subprocess.Popen[bytes], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Wait until a server answers on directory/state; kill it at the end where it still runs."""
    control, deadline = ControlClient(directory / "state"), time.monotonic() + 30

    def serves() -> bool:
        with suppress(NotRunning):
            return bool(control.get("/status")["state"] == "running")
        return False

    try:
        while not serves():
            log = (directory / "log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, log[-3000:]
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait(10)


@dataclass(frozen=True)
class Record:
    at: int
    kind: int
    inode: int
    offset: int
    size: int
    grave: int
    name: str
    before: bytes = field(repr=False)
    after: bytes = field(repr=False)


class Power:
    """The power supply of one state directory."""

    def __init__(self, state: Path, directory: Path) -> None:
        """`directory` is on the file system of `state`, and not in it."""
        self._state, self._journal = state, directory / "journal"
        self._graves, self._broken = directory / "graves", directory / "broken"
        self._graves.mkdir()
        self._library = compile_shim("power", directory)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process must have in its environment, from its start."""
        return {
            "LD_PRELOAD": str(self._library),
            "POWER_DIRECTORY": str(self._state),
            "POWER_JOURNAL": str(self._journal),
            "POWER_GRAVES": str(self._graves),
            "POWER_BROKEN": str(self._broken),
        }

    def break_disk(self) -> None:
        """Let every fsync fail from now on."""
        self._broken.touch()

    def mend_disk(self) -> None:
        self._broken.unlink()

    def fail(self, left: Left, chance: random.Random) -> int:
        """Take back what the process, which was killed, had not synced; return how many octets were lost.

        Memory that SQLite shares (-shm) is left full of rubbish: that is what it is after a power failure.
        """
        records = self.records()
        synced, names_synced = _synced(records)
        lost = [each for each in records if each.kind == WRITE and each.at >= synced.get(each.inode, 0)]
        renamed = [each for each in records if each.kind not in (WRITE, SYNC) and each.at >= names_synced]
        if left == "some" and chance.random() < 0.5:
            renamed = []
        undone = {each.at: each for each in (*lost, *renamed)}
        for each in sorted(undone.values(), key=lambda each: -each.at):
            self._undo(each)
        if left == "some":
            for each in lost:
                self._write_some(each, chance)
        for memory in self._state.glob("*-shm"):
            memory.write_bytes(chance.randbytes(memory.stat().st_size))
        self._journal.unlink()
        shutil.rmtree(self._graves)
        self._graves.mkdir()
        return sum(len(each.after) for each in lost)

    def records(self) -> list[Record]:
        """Return what the process did, in its order."""
        data, records, at = self._journal.read_bytes(), [], 0
        while at + HEAD.size + NAME <= len(data):
            kind, inode, offset, before, after, size, grave = HEAD.unpack_from(data, at)
            name = data[at + HEAD.size : at + HEAD.size + NAME].rstrip(b"\0").decode()
            at += HEAD.size + NAME
            if at + before + after > len(data):
                break  # killed in the middle of it: what it tells of was not done
            octets = data[at : at + before], data[at + before : at + before + after]
            records.append(Record(len(records), kind, inode, offset, size, grave, name, *octets))
            at += before + after
        return records

    def _undo(self, each: Record) -> None:
        if each.kind == WRITE:
            if (path := self._find(each.inode)) is not None:
                with path.open("r+b") as file:
                    file.seek(each.offset)
                    file.write(each.before)
                    file.truncate(each.size)
            return
        name, _, to = each.name.partition("/")
        path = self._state / name
        if each.kind == RENAME:
            (self._state / to).rename(path)
            path = self._state / to
        elif each.kind in (CREATE, LINK):
            path.unlink(missing_ok=True)
        if each.grave and not path.exists():
            os.link(self._graves / str(each.grave), path)

    def _write_some(self, each: Record, chance: random.Random) -> None:
        path = self._find(each.inode)
        if path is None:
            return
        with path.open("r+b") as file:
            for at in range(0, len(each.after), SECTOR):
                if chance.random() < 0.5:
                    file.seek(each.offset + at)
                    file.write(each.after[at : at + SECTOR])

    def _find(self, inode: int) -> Path | None:
        there = (*self._state.iterdir(), *self._graves.iterdir())
        return next((path for path in there if path.lstat().st_ino == inode), None)


class Disk:
    """What is on a disk when the power fails, after any of a process's steps."""

    def __init__(self, state: Path) -> None:
        """`state` is as the process finds it."""
        self._names = {path.name: path.stat().st_ino for path in state.iterdir()}
        self._files = {path.stat().st_ino: path.read_bytes() for path in state.iterdir()}
        self._records: list[Record] = []

    def run(self, records: list[Record]) -> None:
        """Take what the process did."""
        self._records = records

    def after(self, step: int, left: Left, chance: random.Random) -> dict[str, bytes]:
        """Return the files that are there if only the first so many records were done."""
        done = self._records[:step]
        synced, names_synced = _synced(done)
        names = dict(self._names)
        files = {inode: bytearray(data) for inode, data in self._files.items()}
        names_left = left == "some" and chance.random() < 0.5
        for each in done:
            if each.kind == WRITE:
                sure = each.at < synced.get(each.inode, 0)
                _apply(files.setdefault(each.inode, bytearray()), each, None if sure else chance, left)
            elif each.at < names_synced or names_left:
                name, _, to = each.name.partition("/")
                if each.kind in (CREATE, LINK):
                    names[name] = each.inode
                elif each.kind == UNLINK:
                    names.pop(name, None)
                elif each.kind == RENAME:
                    names.pop(name, None)
                    names[to] = each.inode
        return {name: bytes(files.get(inode, b"")) for name, inode in names.items()}


def _synced(records: list[Record]) -> tuple[dict[int, int], int]:
    """Return for each inode, and for the directory, the record before which all is on the disk for good."""
    files: dict[int, int] = {}
    names = 0
    for each in records:
        if each.kind == SYNC:  # of two under way the one that began first may end last
            files[each.inode] = max(files.get(each.inode, 0), each.offset)
        elif each.kind == SYNC_DIRECTORY:
            names = max(names, each.offset)
    return files, names


def _apply(file: bytearray, each: Record, chance: random.Random | None, left: Left) -> None:
    if chance is not None and left == "nothing":
        return
    for at in range(0, len(each.after), SECTOR):
        if chance is None or chance.random() < 0.5:
            place, octets = each.offset + at, each.after[at : at + SECTOR]
            file.extend(bytes(max(0, place + len(octets) - len(file))))
            file[place : place + len(octets)] = octets


class SetClock:
    """The wall clock of a process, which can be set while it runs; and one since boot that is a day ahead."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self._path.write_bytes(bytes(8))
        self._library = compile_shim("clock", directory)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_FILE": str(self._path)}

    def set(self, seconds: int) -> None:
        """Put the wall clock so many seconds ahead of the real one."""
        with self._path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
            memory[:] = struct.pack("=q", seconds)

"""One process at a time owns a state directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from fastboot.model import FastbootError


class StateInUse(FastbootError):
    """Another process holds the state directory."""


class StateLock:
    """`flock` on DIRECTORY/lock: the kernel lets it go with the process that held it, however that ends."""

    def __init__(self, directory: Path) -> None:
        """Take the lock, of a directory that is made where there is none. Raises StateInUse naming the holder,
        FastbootError for a bad directory."""
        self._path = directory / "lock"
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise FastbootError(f"state: can not open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise StateInUse(f"state: {directory} is in use by process {holder or '?'}") from error
        self._name_holder(f"{os.getpid()}\n")

    def release(self) -> None:
        if self._fd >= 0:
            self._name_holder("")
            os.close(self._fd)
            self._fd = -1

    def _name_holder(self, text: str) -> None:
        with suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)

    def __enter__(self) -> StateLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

"""Reads images in a process of its own and keeps what it found.

Reading takes longer than the loop may be busy, and nobody knows what a hostile image does to its reader: that one
is bounded in memory and time, and ends alone. The process is started before privileges are dropped, for afterwards
Python itself may be out of reach (a checkout in the administrator's home). It becomes the server's user at once,
waits, and has a child of its own for each image.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fastboot._core import Source
from fastboot.boot.image import ImageError, Step
from fastboot.boot.index import Identity, Index, write_index
from fastboot.model import FastbootError

MEMORY: Final = 1 << 30
"""Octets of address space that a child may take; it takes 40 MiB for an image of 20,000 files (measured)."""
DISK: Final = 1 << 30
"""Octets of the largest index; that of 20,000 files takes 2 MB (measured)."""
SECONDS: Final = 120
"""Of processor time that a child may take; an image of 20,000 files takes less than one (measured)."""
PR_SET_NO_NEW_PRIVS: Final = 38
MAX_FAULT: Final = 2000
"""Characters of a fault: it may name a path as deep as a hostile image has one."""
PAUSE: Final = 0.05
"""Seconds between two steps that are told."""


class MediaError(FastbootError):
    """A medium that can not be served; says why."""


class Indexer:
    """Owns the indexes of images, by name, and the process that makes them. For one event loop and its threads."""

    def __init__(self, kept: Path, *, keep: bool = True) -> None:
        """`kept` is their directory. Without `keep` nothing is put there: for all but the process that owns it."""
        self._kept, self._keep = kept, keep
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.RLock()
        self._is_closed = False

    def start(self, user: tuple[int, int, Sequence[int]] | None = None) -> None:
        """Start the process; it becomes `user` (uid, gid, groups) where one is given. `read` does it otherwise.

        Raises MediaError.
        """
        with self._lock:
            if self._is_closed:
                raise MediaError("the server is stopping")
            if self._process is None:
                self._start(user)

    def _start(self, user: tuple[int, int, Sequence[int]] | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (sys.executable, "-P", "-m", "fastboot.boot.indexer", json.dumps(user))
            try:
                self._process = subprocess.Popen(command, stdin=theirs.fileno())
            except OSError as error:
                ours.close()
                raise MediaError(
                    f"can not start {sys.executable}: {error.strerror}; restart the server"
                ) from error
        self._channel = ours

    def close(self) -> None:
        """End the process, and what it reads, for good."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.wait()
        self._channel = self._process = None

    def prune(self, names: Collection[str]) -> None:
        """Remove what is kept of others than these, and what an indexer that was killed has left."""
        if self._keep and self._kept.exists():
            for path in self._kept.iterdir():
                if path.name.removesuffix(".index") not in names:
                    path.unlink(missing_ok=True)

    def find(self, name: str, identity: Identity) -> Index:
        """Return the index that was kept of an image. Raises LookupError."""
        index = Index(self._kept / f"{name}.index", identity)
        index.verify()
        return index

    async def read(self, name: str, source: Source, tell: Callable[[Step], None]) -> Index:
        """Have an image read, and keep its index in place of the one that was there. Raises MediaError."""
        try:
            if not self._keep:
                with TemporaryDirectory(prefix="fastboot-") as directory:
                    return await self._read(Path(directory) / name, source, tell)
            self._kept.mkdir(parents=True, exist_ok=True)
            return await self._read(self._kept / f"{name}.index", source, tell)
        except (OSError, LookupError, ValueError, TypeError) as error:  # also what no reader of ours would say
            raise MediaError(f"its index: {error}") from error

    async def _read(self, target: Path, source: Source, tell: Callable[[Step], None]) -> Index:
        draft = target.with_name(f"{target.name}.{os.getpid()}.new")
        draft.unlink(missing_ok=True)
        try:
            await self._ask(draft, source, tell)
            draft.replace(target)
            return Index(target, source.identity)
        finally:
            draft.unlink(missing_ok=True)

    async def _ask(self, draft: Path, source: Source, tell: Callable[[Step], None]) -> None:
        ours, theirs = socket.socketpair()
        try:
            # Beside the loop, for it may have to start a process: ten milliseconds.
            await asyncio.to_thread(self._request, draft, source, theirs)
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            async for line in reader:
                answer = json.loads(line)
                if "step" in answer:
                    tell(Step(*answer["step"]))
                elif "fault" in answer:
                    raise MediaError(str(answer["fault"]))
                else:
                    return
        finally:
            writer.close()  # whoever still reads the image notices, and ends
        limits = f"{SECONDS} s of processor time, {MEMORY >> 20} MiB of memory"
        raise MediaError(f"the process that read it was ended: by its limits ({limits}), or by somebody")

    def _request(self, draft: Path, source: Source, answers: socket.socket) -> None:
        with self._lock, answers:
            fds = [source.fileno(), answers.fileno()]
            for _ in range(2):
                self.start()
                assert self._channel is not None
                try:
                    socket.send_fds(self._channel, [os.fsencode(draft.absolute())], fds)
                except OSError:
                    self._end()  # the process was ended by somebody: another one is started
                else:
                    return
        raise MediaError("the process that reads images ends again and again")


def serve(channel: socket.socket) -> None:
    """Have a child for each request, until the other side is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the channel
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        target, fds, _, _ = socket.recv_fds(channel, 8192, 2)
        if not target:
            return
        if os.fork() == 0:
            channel.close()
            os._exit(work(fds[0], socket.socket(fileno=fds[1]), Path(os.fsdecode(target))))
        for fd in fds:
            os.close(fd)


def work(image: int, caller: socket.socket, target: Path) -> int:
    """Write the index of one image, and say how that goes on and ends, in lines of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    last = 0.0

    def say(**answer: object) -> None:
        caller.sendall(json.dumps(answer).encode() + b"\n")

    def tell(step: Step) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > PAUSE:
            last = now
            say(step=[step.read, step.known, step.names])

    try:
        say(**attempt(image, target, tell))
    except ConnectionError:
        target.unlink(missing_ok=True)  # nobody wants to know any more
    return 0


def attempt(image: int, target: Path, tell: Callable[[Step], None]) -> dict[str, object]:
    try:
        write_index(image, target, tell)
    except ImageError as error:
        return {"fault": str(error)[:MAX_FAULT]}
    except ConnectionError:
        raise
    except (OSError, sqlite3.Error) as error:
        return {"fault": f"its index can not be written: {error}"}
    except Exception as error:  # a fault of ours must not look like the limits
        return {"fault": f"reading it failed: {error!r}"}
    return {"done": True}


def main(user: tuple[int, int, Sequence[int]] | None) -> None:
    try:
        if user:
            uid, gid, groups = user
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError:
        sys.exit(1)  # the server, which becomes the same user, says it
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with socket.socket(fileno=os.dup(0)) as channel:
        serve(channel)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

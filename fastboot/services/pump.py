"""Moves files into TCP connections by sendfile, beside the transports that own these."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from fastboot import _core
from fastboot._core import Source
from fastboot.services.source_file import SLICE, TCP_NOTSENT_LOWAT, SourceFile
from fastboot.services.turns import Turns

UNSENT: Final = min(480 * 1024 * 1024, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 48)
"""Octets that the kernel is to hold for all connections: a third of what TCP has of memory before the kernel saves
it (tcp_mem), where each packet would be a few kilobytes."""
UNSENT_EACH: Final = (256 * 1024, 8 * 1024 * 1024)
"""Least and most of them for one. With 8 MiB 50 clients cost half the CPU per octet that they cost with the
kernel's own sizes: their sockets are always full."""
NICENESS: Final = 5
"""Of sending threads, so that the loop goes first where there are few cores: it serves those who wait to begin."""
BATCH: Final = 4
"""Connections served per turn of the loop by LoopPump; see `hosted.BATCH`."""
PATIENCE: Final = 5.0
"""Seconds that `close` waits for a thread that reads from a disk which does not answer."""
LEAST: Final = 32 * 1024
"""Octets that a client has to acknowledge in `stall` seconds, or it holds its place for ever: 273 a second with
HTTP's 120 s (IIS asks 240). docs/configuration.md has the rule."""
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER."""
CHECKS: Final = 4
"""How often a connection is looked at within `stall` seconds."""


class Sending(Protocol):
    """A file on its way.

    `octets` is how many the kernel has taken. `done` ends with None, or with the OSError that stopped it: ESTALE
    where the file changed, ETIMEDOUT where the client was too slow (`LEAST`), ECANCELED where `cancel`
    was called or the pump closed, else as the connection failed.
    """

    done: asyncio.Future[None]
    stall: float

    @property
    def octets(self) -> int: ...
    def cancel(self, error: int = errno.ECANCELED) -> None:
        """End it, unless it has ended."""


class Pump(Protocol):
    """Sends many files at once, a slice of each in turn. For the thread of one asyncio loop."""

    def send(self, sock: socket.socket, source: Source, stall: float, offset: int = 0) -> Sending:
        """Send a source from `offset` to its end. Nothing else may write to the connection meanwhile. A client is
        given up that acknowledges less than `LEAST` octets in `stall` seconds, unless nothing waits for it.

        Raises OSError where no descriptor or no place is free.
        """

    def close(self) -> None:
        """End everything that is on its way with ECANCELED."""


def start_pump(threads: int = 8) -> Pump:
    """Return a pump of so many sending threads; 0: the loop sends."""
    return ThreadPump(threads) if threads else LoopPump()


class ThreadPump:
    """The native core's, in threads of their own: nothing on the loop but the ends."""

    def __init__(self, threads: int) -> None:
        self._loop, self._turns = asyncio.get_running_loop(), Turns()
        self._sendings: dict[int, ThreadSending] = {}
        self._watch = SlowWatch(self._loop)
        least, most = UNSENT_EACH
        self._core = _core.Pump(unsent=UNSENT, least=least, most=most, buffers=buffers_of(most))
        self._threads = [
            threading.Thread(target=self._send, name=f"fastboot-pump-{number}", daemon=True)
            for number in range(threads)
        ]
        self._threads.append(threading.Thread(target=self._core.read, name="fastboot-pump-read", daemon=True))
        for thread in self._threads:
            thread.start()
        self._loop.add_reader(self._core.fileno(), self._ended)

    def send(self, sock: socket.socket, source: Source, stall: float, offset: int = 0) -> Sending:
        job = self._core.send(sock.fileno(), source, offset, source.size - offset)
        sending = self._sendings[job] = ThreadSending(self._core, job, stall, self._loop.create_future())
        return self._watch.over(sending, sock)

    def close(self) -> None:
        self._watch.close()
        self._core.halt()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._ended()
        self._loop.remove_reader(self._core.fileno())
        del self._core  # and with it its descriptors

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._core.run()

    def _ended(self) -> None:
        for job, error, octets in self._core.ends():
            sending = self._sendings.pop(job)
            sending.end(octets)
            self._turns.run(partial(finish, sending.done, error))


class ThreadSending:
    def __init__(self, core: _core.Pump, job: int, stall: float, done: asyncio.Future[None]) -> None:
        self._core: _core.Pump | None = core  # until it has ended
        self._job, self._cancelled, self._octets = job, False, 0
        self.stall, self.done = stall, done

    @property
    def octets(self) -> int:
        return self._core.sent(self._job) if self._core else self._octets

    def cancel(self, error: int = errno.ECANCELED) -> None:
        if self._core and not self._cancelled:
            self._cancelled = True
            self._core.cancel(self._job, error)

    def end(self, octets: int) -> None:
        """Let go of the core, where another has the place now."""
        self._core, self._octets = None, octets


class LoopPump:
    """The same on the loop itself: for a system that can not spare threads, and to measure the other against.

    It keeps an epoll of its own and the loop watches that one descriptor, as `hosted` does and why.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._sendings: dict[int, LoopSending] = {}
        self._watch = SlowWatch(self._loop)
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def send(self, sock: socket.socket, source: Source, stall: float, offset: int = 0) -> Sending:
        limit_unsent(sock, len(self._sendings) + 1)
        fd = os.dup(sock.fileno())  # one of our own: the transport may close its under us
        file = SourceFile(source, source.name)
        file.seek(offset)
        sending = self._sendings[fd] = LoopSending(self, fd, file, stall, self._loop.create_future())
        self._epoll.register(fd, select.EPOLLOUT)
        return self._watch.over(sending, sock)

    def close(self) -> None:
        self._watch.close()
        for sending in tuple(self._sendings.values()):
            sending.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def end(self, fd: int, error: int) -> None:
        self._epoll.unregister(fd)
        os.close(fd)
        finish(self._sendings.pop(fd).done, error)

    def _turn(self) -> None:
        # Level-triggered with a maximum: the kernel moves who was told to the end of its list.
        for fd, _ in self._epoll.poll(0, BATCH):
            file = self._sendings[fd].file
            try:
                file.send(fd, SLICE)
            except BlockingIOError:
                continue
            except OSError as error:
                self.end(fd, error.errno or errno.EIO)
                continue
            if file.position >= file.size:
                self.end(fd, 0)


class LoopSending:
    def __init__(
        self, pump: LoopPump, fd: int, file: SourceFile, stall: float, done: asyncio.Future[None]
    ) -> None:
        self._pump, self._fd, self._begin = pump, fd, file.position
        self.file, self.stall, self.done = file, stall, done

    @property
    def octets(self) -> int:
        return self.file.position - self._begin

    def cancel(self, error: int = errno.ECANCELED) -> None:
        if not self.done.done():
            self._pump.end(self._fd, error)


@dataclass(slots=True)
class Progress:
    """What a client had acknowledged, and when."""

    sock: socket.socket
    octets: int
    since: float = field(default_factory=time.monotonic)


class SlowWatch:
    """Gives up who takes next to nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seen: dict[Sending, Progress] = {}
        self._timer: asyncio.TimerHandle | None = None

    def over(self, sending: Sending, sock: socket.socket) -> Sending:
        """Watch one until it ends."""
        # Of an answer of many parts, what the kernel still holds of those before is no part of this one.
        self._seen[sending] = Progress(sock, sending.octets - unacknowledged(sock))
        sending.done.add_done_callback(lambda _: self._seen.pop(sending, None))
        if self._timer is None:
            self._arm(self._seen)
        return sending

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _arm(self, sendings: Iterable[Sending]) -> None:
        stalls = [sending.stall for sending in sendings]
        self._timer = self._loop.call_later(min(stalls) / CHECKS, self._look) if stalls else None

    def _look(self) -> None:
        now = time.monotonic()
        for sending, progress in tuple(self._seen.items()):
            octets, waiting = sending.octets, unacknowledged(progress.sock)
            # Where nothing waits for the client, it waits for our disk.
            if octets - waiting - progress.octets >= LEAST or not waiting:
                progress.octets, progress.since = octets - waiting, now
            elif now - progress.since >= sending.stall:
                sending.cancel(errno.ETIMEDOUT)
        self._arm(self._seen)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many octets the kernel holds of those it took for a client; 0 for a closed connection."""
    waiting = array("i", [0])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, waiting)
    return waiting[0]


def buffers_of(size: int) -> bool:
    """Whether we may have send buffers of so many octets (net.core.wmem_max)."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)  # the kernel doubles it
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= size


def limit_unsent(sock: socket.socket, sharers: int) -> None:
    least, most = UNSENT_EACH
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, min(max(UNSENT // sharers, least), most))


def finish(done: asyncio.Future[None], error: int) -> None:
    if not done.done():
        if error:
            done.set_exception(OSError(error, os.strerror(error)))
            done.exception()  # heard: who gave a transfer up has no more use for it
        else:
            done.set_result(None)

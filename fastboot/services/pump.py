"""Moves files into TCP connections by sendfile, beside the transports that own these."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket

from fastboot.services.source_file import SLICE, TCP_NOTSENT_LOWAT, SourceFile

BATCH = 4
"""Connections served per turn of the loop; see `hosted.BATCH`."""
CHECKS = 4
"""How often a connection is looked at within the time that it may stand still."""


class Sending:
    """A file on its way. `done` ends with None, or with the OSError that stopped it."""

    def __init__(self, file: SourceFile, done: asyncio.Future[None]) -> None:
        self.file = file
        self.done = done
        self.seen = file.position  # when `Pump` last looked whether it moves
        self.still = 0


class Pump:
    """Sends many files at once, a slice each in turn. For the thread of one asyncio loop.

    It keeps an epoll of its own and the loop watches that one descriptor, as `hosted` does and why.
    """

    def __init__(self, stall: float) -> None:
        """A client that takes nothing for `stall` seconds is given up with ETIMEDOUT."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._sendings: dict[int, Sending] = {}
        self._stall = stall
        self._checking: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    async def send(self, sock: socket.socket, file: SourceFile) -> None:
        """Send a file from its position to its end.

        The caller sees to it that nothing else writes to the connection meanwhile. Raises OSError: ESTALE where
        the file changed, ETIMEDOUT where the client stood still, else as the connection failed.
        """
        # A descriptor of our own: the transport may close its one under us.
        fd = os.dup(sock.fileno())
        sending = Sending(file, self._loop.create_future())
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, SLICE)
            self._sendings[fd] = sending
            self._epoll.register(fd, select.EPOLLOUT)
            if self._checking is None:
                self._checking = self._loop.call_later(self._stall / CHECKS, self._check)
            await sending.done
        finally:
            if self._sendings.pop(fd, None):
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)
            os.close(fd)

    def close(self) -> None:
        """End everything that is on its way with ECANCELED."""
        self._loop.remove_reader(self._epoll.fileno())
        if self._checking:
            self._checking.cancel()
        for sending in tuple(self._sendings.values()):
            self._end(sending, OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))
        self._epoll.close()
        self._sendings.clear()

    def _turn(self) -> None:
        # Level-triggered with a maximum: the kernel moves who was told to the end of its list.
        for fd, _ in self._epoll.poll(0, BATCH):
            sending = self._sendings[fd]
            if sending.done.done():
                self._epoll.unregister(fd)
                del self._sendings[fd]
                continue
            try:
                sending.file.send(fd, SLICE)
            except BlockingIOError:
                continue
            except OSError as error:
                self._end(sending, error)
                continue
            if sending.file.position >= sending.file.size:
                self._end(sending, None)

    def _end(self, sending: Sending, error: OSError | None) -> None:
        if sending.done.done():
            return
        if error is None:
            sending.done.set_result(None)
        else:
            sending.done.set_exception(error)

    def _check(self) -> None:
        self._checking = None
        for sending in self._sendings.values():
            sending.still = sending.still + 1 if sending.seen == sending.file.position else 0
            sending.seen = sending.file.position
            if sending.still >= CHECKS:
                self._end(sending, OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        if self._sendings:
            self._checking = self._loop.call_later(self._stall / CHECKS, self._check)

"""A Source on its way into a TCP connection, a slice at a time."""

from __future__ import annotations

import errno
import os
from typing import Final

from fastboot._core import Source

SLICE: Final = 128 * 1024
"""Octets per sendfile: nobody holds the loop longer than for these, and the kernel holds no more unsent."""
AHEAD: Final = 4 * 1024 * 1024
"""Octets that the kernel is asked to read before they are sent, so that sendfile seldom waits for a disk."""
FAULTS: Final = {errno.ESTALE: "the file changed while it was sent", errno.EIO: "the file can not be read"}
TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; the socket module names it from Python 3.12


class SourceFile:
    """A Source as the file object that pyftpdlib wants, with a position of its own: sources share descriptors."""

    def __init__(self, source: Source, name: str) -> None:
        self.source = source
        self.name = name
        self.size = source.size
        self.position = 0
        self.closed = False
        self._ahead = 0

    def fileno(self) -> int:
        return self.source.fileno()

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        self.position = self._ahead = position
        return position

    def read(self, count: int) -> bytes:
        """Return up to `count` octets. Raises OSError (ESTALE where the file changed)."""
        count = self._checked(count)
        data = os.pread(self.fileno(), count, self.source.offset + self.position)
        if len(data) < count:
            raise OSError(errno.ESTALE, "became shorter")
        self.position += count
        return data

    def send(self, peer: int, count: int) -> int:
        """Send up to `count` octets to a socket, return how many. Raises OSError as `read` does."""
        count = self._checked(count)
        if count == 0:
            return 0
        self._read_ahead()
        sent = os.sendfile(peer, self.fileno(), self.source.offset + self.position, count)
        if sent == 0:
            raise OSError(errno.ESTALE, "became shorter")
        self.position += sent
        return sent

    def _checked(self, count: int) -> int:
        """Return how much of `count` there is. The last part of a file that changed is never given away."""
        left = self.size - self.position
        if count >= left and not self.source.unchanged():
            raise OSError(errno.ESTALE, "changed")
        return min(count, left)

    def _read_ahead(self) -> None:
        if self._ahead < self.size and self.position + AHEAD // 2 >= self._ahead:
            length = min(AHEAD, self.size - self._ahead)
            os.posix_fadvise(self.fileno(), self.source.offset + self._ahead, length, os.POSIX_FADV_WILLNEED)
            self._ahead += length

    def close(self) -> None:
        self.closed = True

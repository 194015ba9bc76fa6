"""FTP data connections: how they come about (Passive, Active) and what is sent on them (Transfer)."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo loads it, when the server's user may not be able to read it
import errno
import random
import socket
import time
from asyncio import Future
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyftpdlib.exceptions import _FileReadWriteError
from pyftpdlib.handlers import DTPHandler
from pyftpdlib.handlers.ftp.dispatchers import ActiveDTP, PassiveDTP
from pyftpdlib.ioloop import Acceptor

from fastboot.boot.catalog import SMALL
from fastboot.services.pump import LEAST, RESET_ON_CLOSE, unacknowledged
from fastboot.services.source_file import FAULTS, SourceFile

if TYPE_CHECKING:
    from fastboot.services.ftp_session import Session
    from fastboot.services.pump import Sending
GONE = {
    errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE, errno.EBADF,
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN,
}  # fmt: skip
"""Errors of a connection to a client that is there no more."""


class Lines:
    """A producer of many short lines in chunks worth a packet."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)

    def more(self) -> bytes:
        chunk = bytearray()
        for line in self._lines:
            chunk += line
            if len(chunk) >= 16 * 1024:
                break
        return bytes(chunk)


class Transfer(DTPHandler):  # type: ignore[misc]
    """An open data connection: one Source, or one listing, on its way to a client."""

    _lastdata: int

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.timeout = session.service.limits.stall
        self.reason: str | None = None
        self._sending: Sending | None = None
        super().__init__(sock, session)

    def __repr__(self) -> str:
        return f"<Transfer of {self.cmd_channel!r}>"  # pyftpdlib writes it several times for each, for no reader

    @property
    def busy(self) -> bool:
        return bool(self._initialized)

    @property
    def octets(self) -> int:
        """How many have left."""
        return int(self.tot_bytes_sent) + (self._sending.octets if self._sending else 0)

    def push_with_producer(self, producer: Any) -> None:
        if not self.use_sendfile():
            super().push_with_producer(producer)
            return
        self._initialized = True
        file: SourceFile = self.file_obj
        # The connection is the pump's now: nothing here may look at it.
        self.del_channel()
        self.tot_bytes_sent = self._send_at_hand(file)
        position = file.position + self.octets
        if position == file.size:
            self._all_sent()
            return
        self.cmd_channel.keep(None)  # the pump has descriptors of its own
        try:
            self._sending = self.cmd_channel.service.pump.send(self.socket, file.source, self.timeout, position)
        except OSError as error:
            self.fail(f"the server can not send now: {error.strerror}")
            return
        self._sending.done.add_done_callback(self._sent)

    def _send_at_hand(self, file: SourceFile) -> int:
        """Send what is small and in memory, return how much of it the kernel took. What is wrong with the
        connection is the pump's to find."""
        left = file.size - file.position
        data = file.source.slice(file.position, left).at_hand() if left <= SMALL else None
        if data is None or not file.source.unchanged():
            return 0
        try:
            return int(self.socket.send(data))
        except OSError:
            return 0

    def _all_sent(self) -> None:
        self.discard_buffers()
        self.handle_close()

    def _sent(self, done: Future[None]) -> None:
        if self._closed:
            return
        error = done.exception()
        if error is None:
            self._all_sent()
        elif not isinstance(error, OSError):
            self.log.exception("fault in sending", exc_info=error)
            self.fail("internal error")
        elif error.errno in FAULTS:
            self.fail(FAULTS[error.errno])
        elif error.errno == errno.ETIMEDOUT:
            self._too_slow()
        else:
            self.handle_close()

    def fail(self, reason: str) -> None:
        """End the transfer with 451."""
        self.reason = reason
        self._resp = (f"451 {reason[0].upper()}{reason[1:]}.", None)
        self.close()

    def handle_close(self) -> None:
        if self._closed:
            return
        if not self.busy:  # gone before any command used it: there is nothing to reply to
            self.close()
            return
        file: SourceFile | None = self.file_obj
        if file is not None and not self.producer_fifo and not file.source.unchanged():
            self.fail(FAULTS[errno.ESTALE])
            return
        if self.producer_fifo:
            self.reason = "the client closed the data connection"
        super().handle_close()

    def handle_error(self) -> None:
        try:
            raise  # asyncore calls this while it handles the exception
        except _FileReadWriteError as error:
            self.fail(FAULTS.get(error.args[0].errno, FAULTS[errno.EIO]))
        except OSError as error:
            self.fail(f"the data connection failed: {error.strerror}")
        except Exception:
            self.log_exception(self)
            self.fail("internal error")

    def handle_timeout(self) -> None:
        if self._sending is not None:
            return  # the pump watches over it
        before, self._lastdata = self._lastdata, self.tot_bytes_sent - unacknowledged(self.socket)
        if self._lastdata - before < LEAST:
            self._too_slow()

    def _too_slow(self) -> None:
        self.reason = f"the client took less than {LEAST // 1024} KiB in {self.timeout:g} s"
        self._resp = ("421 Too slow.", None)
        self.close()
        self.cmd_channel.close_when_done()

    def close(self) -> None:
        if self._closed:
            return
        if self.busy and not self.transfer_finished:
            # Clients that ignore replies (busybox) would take the end of the connection for that of the file.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        if self._sending is not None:
            sending, self._sending = self._sending, None
            self.tot_bytes_sent += sending.octets
            sending.cancel()
        super().close()
        if self.file_obj is not None:
            self.cmd_channel.transfer_ended(self)


class PassivePorts:
    """The ports that passive data connections may use, each by one listener at a time; None: the system's own."""

    def __init__(self, ports: Iterable[int] | None) -> None:
        # A bind to port 0 takes none for a minute after its connection, and searches for 2 to 9 ms once half of
        # them have had one: 14,000 files.
        free = list(system_ports() if ports is None else ports)
        # The order is unpredictable, so that a port can not be guessed and taken before its client connects.
        random.SystemRandom().shuffle(free)
        self._free = deque(free)
        self.resting: dict[Passive, None] = {}
        """Listeners that wait for the next file of their session."""

    def bind(self, sock: socket.socket, address: str) -> int:
        """Bind to a free port; return it, to be given back. Raises OSError (EADDRINUSE)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            for _ in range(len(self._free)):
                port = self._free.popleft()
                try:
                    sock.bind((address, port))
                except OSError as error:
                    self._free.append(port)
                    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                        raise
                else:
                    return port
            if not self.resting:
                raise OSError(errno.EADDRINUSE, "no passive port is free")
            next(iter(self.resting)).close()

    def give_back(self, port: int) -> None:
        self._free.append(port)


def system_ports() -> range:
    """Return the ports that the kernel gives out itself (ip(7), ip_local_port_range)."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        first, last = "32768", "60999"
    return range(int(first), int(last) + 1)


class Passive(PassiveDTP):  # type: ignore[misc]
    """A listener for one data connection at a time, from the client's own address.

    It stays for the next file of its session, until another needs its port: to make one for each was a sixth of
    what a small file costs. Others may know the port then, so it is given up when somebody connects uninvited.
    """

    def __init__(self, session: Session, extmode: bool = False) -> None:
        """Raises OSError where no port or no descriptor is free."""
        self.cmd_channel = session
        self.log = session.log
        self.log_exception = session.log_exception
        self._ports = session.service.passive_ports
        self._port: int | None = None
        Acceptor.__init__(self, ioloop=session.ioloop)
        try:
            self.create_socket(socket.AF_INET, socket.SOCK_STREAM)
            self._port = self._ports.bind(self.socket, str(session.client.server))
            self.listen(8)
        except OSError:
            self.close()
            raise
        self._announce(extmode)
        self.call_later(session.service.limits.connect, self._look)

    def __repr__(self) -> str:
        return f"<Passive of {self.cmd_channel!r}>"

    def invites(self, extmode: bool) -> bool:
        """Wait for the next connection, unless the port can not be used any more."""
        self._ports.resting.pop(self, None)
        try:
            sock, _ = self.socket.accept()
        except BlockingIOError:
            self._announce(extmode)
            return True
        except OSError:  # it was closed meanwhile
            pass
        else:
            sock.close()
        self.close()
        return False

    def _announce(self, extmode: bool) -> None:
        self._expects, self._since = True, time.monotonic()
        session, port = self.cmd_channel, self._port or 0
        if extmode:
            session.respond(f"229 Entering extended passive mode (|||{port}|).")
        else:
            host = str(session.service.passive_address or session.client.server).replace(".", ",")
            session.respond(f"227 Entering passive mode ({host},{port // 256},{port % 256}).")

    def _look(self) -> None:
        left = self._since + self.cmd_channel.service.limits.connect - time.monotonic()
        if left > 0:
            self.call_later(left, self._look)
        elif self._expects:
            self.handle_timeout()
        else:
            self.close()

    def take_waiting(self) -> None:
        """Take the connection if it is there: with many sessions at work, the loop hears of the command first."""
        try:
            self.handle_accept()
        except OSError:
            self.handle_error()

    def handle_accepted(self, sock: socket.socket, addr: tuple[str, int]) -> None:
        session: Session = self.cmd_channel
        if addr[0] != session.remote_ip:
            # No reply: the client would take it for the answer to its next command.
            sock.close()
            session.service.refused("data connection of a stranger", addr[0])
            if not self._expects:
                self.close()
            return
        if not self._expects or not session.connected:
            sock.close()
            self.close()
            return
        self._expects = False
        self._ports.resting[self] = None
        session.keep(self)
        channel = session.dtp_handler(sock, session)
        if channel.connected:
            session.data_channel = channel
            session._on_dtp_connection()

    def handle_timeout(self) -> None:
        self.close()
        self.cmd_channel.no_data_connection("nobody connected to the passive port")

    def handle_error(self) -> None:
        self.close()
        self.cmd_channel.no_data_connection("no data connection could be made")

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        self._ports.resting.pop(self, None)
        if self._port is not None:
            self._ports.give_back(self._port)


class Active(ActiveDTP):  # type: ignore[misc]
    """A connection on its way to the address and port that a client named."""

    def __init__(self, ip: str, port: int, session: Session) -> None:
        self.timeout = session.service.limits.connect
        # pyftpdlib replies once it is connected: too late for a client that has sent its next command by then.
        session.respond("200 Active data connection accepted.")
        super().__init__(ip, port, session)

    def handle_connect(self) -> None:
        session: Session = self.cmd_channel
        self.del_channel()
        self._idler.cancel()
        session.data_channel = Transfer(self.socket, session)
        session._on_dtp_connection()
        # The socket is the Transfer's from here on. Without this, the end of the session unregisters a descriptor
        # number that is another client's by then (pyftpdlib PR 657: concurrent active transfers hang).
        self._closed, self._fileno = True, None

    def handle_timeout(self) -> None:
        self.handle_close()

    def handle_close(self) -> None:
        if not self._closed:
            self.close()
            self.cmd_channel.no_data_connection("the client's port can not be reached")

"""The FTP media server: read-only, anonymous, over the one namespace (RFC 959, 2428, 3659).

pyftpdlib speaks the protocol, driven by the running asyncio loop through its own epoll (`hosted`). What it leaves
open is closed in `ftp_session` (commands), `ftp_data` (data connections) and here (who may have a session).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Protocol

import structlog
from pyftpdlib.servers import FTPServer

from fastboot import config, model
from fastboot._core import Source
from fastboot.boot.tree import Entry
from fastboot.model import Client, Event, Refusal
from fastboot.services.descriptors import PER_SESSION, Descriptors
from fastboot.services.files_sent import Sent
from fastboot.services.ftp_data import PassivePorts, Transfer
from fastboot.services.ftp_names import printable, shown
from fastboot.services.ftp_session import Session
from fastboot.services.hosted import HostedLoop
from fastboot.services.links import Link, open_tcp
from fastboot.services.pump import Pump, start_pump
from fastboot.watch.events import Batch, emit_each

BACKLOG = 4096
"""Connections that wait to be accepted: a rack is switched on in one second. The kernel cuts it to somaxconn."""
ACCEPTS = 32


class Catalog(Protocol):
    """The one namespace as FTP sees it."""

    def resolve(self, path: str, client: Client) -> Source | Refusal | Awaitable[Source | Refusal]: ...
    def stat(self, path: str, client: Client) -> Entry | Refusal | Awaitable[Entry | Refusal]: ...
    def list(self, path: str, client: Client) -> Sequence[Entry] | Refusal:
        """Called in a thread of the service's own: a directory may be large."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, and counts, that a client must keep."""

    login: float = 30
    """From the connection to the login, whatever is sent in between."""
    idle: float = 300
    stall: float = 300
    """A transfer of which the client takes less than `LEAST` octets in so long is ended."""
    connect: float = 30
    """For a data connection to be made."""
    commands_before_login: int = 16
    """lftp sends at most six (FEAT, AUTH, OPTS, CLNT, USER, PASS)."""
    listing: int = 65_536
    """Entries of a directory that is listed."""


def open_sockets(settings: config.Ftp, links: Sequence[Link]) -> list[socket.socket]:
    """Bind one TCP socket to each address of the links. Raises FastbootError."""
    with contextlib.ExitStack() as undo:
        addresses = dict.fromkeys(own.ip for link in links for own in link.addresses)
        sockets = [undo.enter_context(open_tcp("ftp.port", address, settings.port)) for address in addresses]
        undo.pop_all()
    return sockets


class FtpService:
    """Serves a catalog by FTP. For the thread of one asyncio loop.

    Events: `ftp.session` (a login); `ftp.sent` and `ftp.failed` (a RETR ended; path, bytes, seconds, reason);
    `ftp.refused` (a limit or a guard held; reason, and how often since the last one: at most one a second each).
    """

    def __init__(
        self,
        settings: config.Ftp,
        links: Sequence[Link],
        catalog: Catalog,
        emit: Callable[[Event], None],
        sockets: Sequence[socket.socket] | None = None,
        mac_of: Callable[[IPv4Address], str | None] = lambda address: None,
        limits: Limits = Limits(),
        pump: Pump | None = None,
        descriptors: Descriptors | None = None,
        emit_all: Callable[[Batch], None] | None = None,
    ) -> None:
        """`pump` stays its owner's, `descriptors` are shared; without them the service has its own.

        `emit_all` is given what storms of machines make many of, to read or not; without it, `emit` is given each.
        """
        self._files_sent = Sent("ftp.sent", shown, emit_all or partial(emit_each, emit))
        self.catalog = catalog
        self.mac_of = mac_of
        self.limits = limits
        self.log = structlog.get_logger(component="ftp")
        self.passive_ports = PassivePorts(settings.passive_ports)
        self.ending: str | None = None
        self._settings, self._links, self._emit = settings, links, emit
        self._sockets = list(sockets or ())
        self._counters: Counter[str] = Counter()
        self._refusals: dict[str, tuple[float, int]] = {}
        self._sessions: set[Session] = set()
        self._by_address: Counter[str] = Counter()
        self._descriptors = descriptors or Descriptors()
        self._empty = asyncio.Event()
        self._listeners: list[Listener] = []
        self._ioloop: HostedLoop | None = None
        self._lister: ThreadPoolExecutor | None = None
        self._bridge = Bridge(self.log)
        self._pump, self._own_pump = pump, pump is None

    async def start(self) -> None:
        """Serve from now on. Raises ConfigError where a port is taken."""
        sockets = self._sockets or open_sockets(self._settings, self._links)
        logging.getLogger("pyftpdlib").addHandler(self._bridge)
        self._pump = self._pump or start_pump()
        self._ioloop = HostedLoop(asyncio.get_running_loop())
        self._lister = ThreadPoolExecutor(1, "ftp-list")
        self._listeners = [Listener(sock, self, self._ioloop) for sock in sockets]

    async def stop(self, drain: float = 0) -> None:
        """Refuse new clients, let transfers on their way finish for `drain` seconds, then end all."""
        if self._ioloop is None:
            return
        for listener in self._listeners:
            listener.close()
        for session in list(self._sessions):
            session.finish()
        try:
            if self._sessions and drain > 0:
                async with asyncio.timeout(drain):
                    await self._empty.wait()
        except TimeoutError:
            pass
        finally:
            self.ending = "the server stopped"
            for session in list(self._sessions):  # those that wait for an answer are not known to the loop
                session.close()
            self._ioloop.close()
            self._ioloop = None
            self._files_sent.tell()
            if self._own_pump and self._pump is not None:
                self._pump.close()
            if self._lister is not None:
                self._lister.shutdown(wait=False, cancel_futures=True)
            logging.getLogger("pyftpdlib").removeHandler(self._bridge)

    def reload(self, settings: config.Ftp) -> None:
        """Take new limits; sessions that are open stay. Port and passive ports need a restart."""
        self._settings = settings

    @property
    def passive_address(self) -> IPv4Address | None:
        """Where clients make data connections to, as a NAT has it; None: where they made that of the session."""
        return self._settings.passive_address

    @property
    def pump(self) -> Pump:
        assert self._pump is not None  # there is no session before `start`
        return self._pump

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the service listens."""
        return [listener.address for listener in self._listeners]

    def counters(self) -> dict[str, int]:
        """Return counts since the start; `sessions_open` and `transfers_open` are of now."""
        counts = dict(self._counters)
        counts["sessions_open"] = len(self._sessions)
        counts["transfers_open"] = len(self.transfers())
        return counts

    def transfers(self) -> list[model.Transfer]:
        """Return the transfers that are on their way."""
        return [
            model.Transfer(
                "ftp", who.address, shown(file.name), file.position + channel.octets, file.size, who.mac
            )
            for session in self._sessions
            if (channel := session.data_channel) is not None and (file := channel.file_obj) is not None
            for who in [session.client]
        ]

    # --- what sessions ask and report

    def list_beside(self, path: str, client: Client) -> asyncio.Future[Sequence[Entry] | Refusal]:
        """List a directory in the lister's thread: one at a time, so that no client's listings starve the loop."""
        return asyncio.get_running_loop().run_in_executor(self._lister, self.catalog.list, path, client)

    def full(self, address: str) -> str | None:
        """Return why an address may have no session more, None where it may."""
        if len(self._sessions) >= self._settings.max_sessions:
            return "too many sessions"
        if self._by_address[address] >= self._settings.max_per_address:
            return "too many sessions of one address"
        return self._descriptors.lacks(PER_SESSION, address)

    def session_opened(self, session: Session) -> None:
        self._sessions.add(session)
        self._descriptors.take(PER_SESSION, session.remote_ip)
        self._by_address[session.remote_ip] += 1
        self._empty.clear()
        self._counters["sessions"] += 1

    def session_closed(self, session: Session) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
            self._descriptors.give_back(PER_SESSION, session.remote_ip)
            self._by_address[session.remote_ip] -= 1
            if not self._by_address[session.remote_ip]:
                del self._by_address[session.remote_ip]
        if not self._sessions:
            self._empty.set()

    def logged_in(self, session: Session) -> None:
        self._counters["logins"] += 1
        self._tell("ftp.session", session.client.mac, peer=str(session.client.address))

    def refused(self, reason: str, peer: str) -> None:
        """Count a guard that held, and tell it at most once a second."""
        self._counters[f"refused_{reason.replace(' ', '_')}"] += 1
        now = time.monotonic()
        last, untold = self._refusals.get(reason, (float("-inf"), 0))
        if now - last < 1:
            self._refusals[reason] = last, untold + 1
            return
        self._refusals[reason] = now, 0
        mac = self.mac_of(IPv4Address(peer)) if peer else None  # nobody is refused by name where no file is free
        self._tell("ftp.refused", mac, peer=peer, reason=reason, times=untold + 1)

    def failed(self, client: Client, path: str, reason: str, **facts: object) -> None:
        self._counters["failed"] += 1
        self._tell("ftp.failed", client.mac, peer=str(client.address), path=shown(path), reason=reason, **facts)

    def transfer_ended(self, session: Session, transfer: Transfer) -> None:
        client, path = session.client, transfer.file_obj.name
        count, seconds = transfer.octets, transfer.get_elapsed_time()
        self._counters["bytes"] += count
        if transfer.transfer_finished:
            self._counters["sent"] += 1
            self._files_sent.add(session.remote_ip, client.mac, path, count, seconds)
        else:
            reason = transfer.reason or self.ending or "the client closed the data connection"
            self.failed(client, path, reason, bytes=count, seconds=round(seconds, 3))

    def _tell(self, kind: str, mac: str | None, **details: object) -> None:
        self._files_sent.tell()  # which was before
        self._emit(Event(time.time(), kind, mac=mac, details=details))


class Listener(FTPServer):  # type: ignore[misc]
    """A listening socket of one address."""

    def __init__(self, sock: socket.socket, service: FtpService, ioloop: HostedLoop) -> None:
        self.service = service
        super().__init__(sock, Session, ioloop=ioloop, backlog=BACKLOG)

    def _accept_new_cons(self) -> bool:
        return True  # pyftpdlib counts every socket of the loop, listeners and data connections too

    def handle_accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, addr = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._rest()
                    return
                continue  # accept(2): a connection that failed before it was accepted
            self.handle_accepted(sock, addr)

    def handle_accepted(self, sock: socket.socket, addr: tuple[str, int]) -> None:
        if reason := self.service.full(addr[0]):
            self.service.refused(reason, addr[0])
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(b"421 Too many sessions: try again later.\r\n")
            sock.close()
            return
        super().handle_accepted(sock, addr)

    def _rest(self) -> None:
        """Leave connections in the kernel's queue for a moment: descriptors may be free then."""
        self.service.refused("no descriptor is free", "")
        self.del_channel()
        self.call_later(0.2, self.add_channel)

    def handle_error(self) -> None:
        # pyftpdlib closes the listener here, for ever.
        self.service.log.exception("fault in accepting a client")


class Bridge(logging.Handler):
    """Takes what pyftpdlib still logs itself (its own faults) to the service's log, not to stderr."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        tell = self._log.warning if record.levelno >= logging.WARNING else self._log.debug
        tell(printable(record.getMessage()), logger=record.name)

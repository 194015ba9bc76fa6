"""One FTP client: its control connection, and the read-only commands over the one namespace."""

from __future__ import annotations

import inspect
import re
import socket
from asyncio import CancelledError, Future, ensure_future
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, ClassVar

from pyftpdlib.handlers import FTPHandler
from pyftpdlib.handlers.ftp.control import proto_cmds
from pyftpdlib.handlers.ftp.producers import FileProducer

from fastboot._core import Source
from fastboot.boot.tree import Entry
from fastboot.model import Client, Reason, Refusal
from fastboot.services.ftp_data import GONE, Active, Lines, Passive, Transfer
from fastboot.services.ftp_listing import FACTS, LIST_OPTIONS, facts, lines_of, stamp
from fastboot.services.ftp_names import Anonymous, Names, printable, shown
from fastboot.services.node_files import SECRET
from fastboot.services.source_file import SourceFile

if TYPE_CHECKING:
    from fastboot.services.ftp import FtpService, Listener

COMMANDS = (
    "ABOR", "CDUP", "CWD", "EPRT", "EPSV", "FEAT", "HELP", "LIST", "MDTM", "MLSD", "MLST", "MODE", "NLST", "NOOP",
    "OPTS", "PASS", "PASV", "PORT", "PWD", "QUIT", "REST", "RETR", "SIZE", "STAT", "STRU", "SYST", "TYPE", "USER",
    "XCUP", "XCWD", "XPWD",
)  # fmt: skip
MAX_LINE = 4200
"""Octets of a control line: a path of PATH_MAX (4096) and its command."""
MAX_UNREAD = 256
"""Replies that wait for a client that sends commands and does not read."""
TELNET = re.compile(rb"\xff(?:[\xfb-\xfe].?|[\xf0-\xfa])?", re.DOTALL)
"""Telnet commands (RFC 854), which clients send before ABOR (RFC 959 section 4.1.3)."""
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Session(FTPHandler):  # type: ignore[misc]
    """A control connection. What pyftpdlib keeps on the class is set on the instance: services do not share it."""

    abstracted_fs = Names
    active_dtp = Active
    authorizer: ClassVar[Anonymous] = Anonymous()
    banner = "fastboot media server, read-only."
    dtp_handler = Transfer
    passive_dtp = Passive
    proto_cmds: ClassVar[dict[str, Any]] = {name: proto_cmds[name] for name in COMMANDS}
    unicode_errors = "surrogateescape"
    ac_in_buffer_size = 4096
    _in_buffer: list[bytes]
    _in_buffer_len: int
    _out_dtp_queue: Any
    _restart_position: int
    data_channel: Transfer | None

    def __init__(self, conn: socket.socket, server: Listener, ioloop: Any = None) -> None:
        self.service: FtpService = server.service
        self.timeout = self.service.limits.idle
        self._before_login = 0
        self._too_long = False
        self._answer: Future[Any] | None = None
        self._gone = self._leaving = False
        self._later: deque[bytes] = deque()
        self._held: list[bytes] | None = None
        self._kept: Passive | None = None
        super().__init__(conn, server, ioloop=ioloop)
        self._available_facts = list(FACTS)
        self._current_facts = list(FACTS)

    def __repr__(self) -> str:
        return f"<Session {self.remote_ip}:{self.remote_port}>"

    # --- the life of a session

    def on_connect(self) -> None:
        self.service.session_opened(self)
        self._deadline = self.call_later(self.service.limits.login, self._login_expired)

    def _login_expired(self) -> None:
        self.service.refused("no login in time", self.remote_ip)
        self.respond("421 Log in sooner.")
        self.close_when_done()

    def on_login(self, username: str) -> None:
        self._deadline.cancel()
        self._tasks.remove(self._deadline)
        address = IPv4Address(self.remote_ip)
        server = IPv4Address(self.socket.getsockname()[0])
        self.client = Client(address, server, "ftp", self.service.mac_of(address))
        self.service.logged_in(self)

    def finish(self) -> None:
        """End the session: at once, or with the transfer that is on its way."""
        self._quit_pending = True
        if self._answer is not None:
            return
        if not self._transferring():
            self.respond("421 The server is stopping.")
            self.close_when_done()

    def ftp_QUIT(self, line: str) -> None:
        self._leaving = True
        if self._transferring():
            # RFC 959 section 4.1.1: the result comes first. No command is read any more.
            self._quit_pending = True
            self.del_channel()
            return
        self._end()

    def _end(self) -> None:
        """End a session whose transfer, if there was one, has its result."""
        if self._gone or self._closed:
            return
        if self._leaving:
            if self._quit_pending:
                self.add_channel(events=self._wanted_io_events)
            self.respond("221 Goodbye.")
        self.close_when_done()

    def _transferring(self) -> bool:
        """Whether a command has data to send, be it that the client has still to connect."""
        return self._out_dtp_queue is not None or (self.data_channel is not None and self.data_channel.busy)

    def _on_dtp_close(self) -> None:
        if not self._quit_pending:
            super()._on_dtp_close()
            return
        self.data_channel = None
        self._end()

    def handle_close(self) -> None:
        # At the end of this turn: a reply may find the client gone in the middle of a command, and pyftpdlib goes
        # on with that command, on attributes that `close` deletes.
        if not self._gone:
            self._gone = True
            self.ioloop.call_later(0, self.close)

    def del_channel(self, map: object = None) -> None:
        self._release()
        super().del_channel(map)

    def close_when_done(self) -> None:
        self._release()
        super().close_when_done()

    def close(self) -> None:
        if self._closed:
            return
        self._release()
        transfer = self.data_channel
        if transfer is not None and transfer.reason is None:
            transfer.reason = self.service.ending or "the client closed its session"
        self.keep(None)
        super().close()
        if self._answer is not None:
            self._answer.cancel()
        self.service.session_closed(self)

    def transfer_ended(self, transfer: Transfer) -> None:
        self.service.transfer_ended(self, transfer)

    def no_data_connection(self, why: str) -> None:
        """Answer the command that waits for a data connection, if one does, that there will be none."""
        if self._closed or self._out_dtp_queue is None:
            return
        file = self._out_dtp_queue[2]
        self._out_dtp_queue = None
        self.respond(f"425 Can't open data connection: {why}.")
        if file is not None:
            self.service.failed(self.client, file.name, why)
        if self._quit_pending:
            self._end()

    # --- the control connection

    def collect_incoming_data(self, data: bytes) -> None:
        self._in_buffer_len += len(data)
        if self._in_buffer_len <= MAX_LINE:
            self._in_buffer.append(data)
        elif not self._too_long:
            # The rest of the line is no command: only the end of the line ends it.
            self._too_long = True
            self._in_buffer = []

    def found_terminator(self) -> None:
        # What one command is answered leaves together: that a small file comes and that it is sent is one packet.
        self._held = []
        try:
            self._take_line()
        finally:
            self._release()

    def _take_line(self) -> None:
        line = b"".join(self._in_buffer)
        line = TELNET.sub(b"", line) if b"\xff" in line else line
        too_long, self._too_long = self._too_long, False
        self._in_buffer, self._in_buffer_len = [line], 0
        if self._gone or self._closed or self._closing or self._quit_pending:
            return
        if self._answer is not None:
            self._later.append(line)
            self._in_buffer = []
            return
        if not self.authenticated:
            self._before_login += 1
        if self._before_login > self.service.limits.commands_before_login or len(self.producer_fifo) > MAX_UNREAD:
            self.service.refused("too many commands", self.remote_ip)
            self.respond("421 Too many commands.")
            self.close()
        elif too_long:
            self._in_buffer = []
            self.respond("500 Command too long.")
        elif CONTROL.search(line):
            self._in_buffer = []
            self.respond("501 Control characters in a command.")
        else:
            super().found_terminator()

    def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
        if cmd in ("LIST", "NLST"):
            arg = LIST_OPTIONS.sub("", arg, count=1) if arg.startswith("-") else arg
        if cmd in ("REST", "PORT", "EPRT") and not arg.isascii():  # pyftpdlib takes all digits of Unicode
            self.respond("501 Write numbers in ASCII.")
            return
        super().pre_process_command(line, cmd, arg)

    def push(self, data: str) -> None:
        octets = data.encode(self.encoding, self.unicode_errors)
        if self._held is not None:
            self._held.append(octets)
        elif not self._gone:
            super(FTPHandler, self).push(octets)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held and not self._gone and not self._closed:
            super(FTPHandler, self).push(b"".join(held))

    def respond(self, resp: str, logfun: object = None) -> None:
        self._last_response = resp
        self.push(resp + "\r\n")
        self.logline(f"-> {resp}")

    def log(self, msg: str, logfun: object = None) -> None:
        """Drop pyftpdlib's own line: the service's events say it."""

    def log_cmd(self, cmd: str, arg: str, respcode: int, respstr: str) -> None:
        """As `log`."""

    def log_transfer(self, **facts: object) -> None:
        """As `log`."""

    def logline(self, msg: str, logfun: object = None) -> None:
        """Trace the dialogue where the logger "pyftpdlib" is set to DEBUG."""
        if self._log_debug:
            self.service.log.debug(printable(SECRET.sub("...", msg)), peer=self.remote_ip)

    def log_exception(self, instance: object) -> None:
        self.service.log.exception("fault in a session", peer=self.remote_ip)

    def handle_error(self) -> None:
        try:
            raise  # asyncore calls this while it handles the exception
        except OSError as error:
            if error.errno in GONE:
                self.close()
                return
        except Exception:  # noqa: S110 - reported below
            pass
        super().handle_error()

    # --- login

    def ftp_USER(self, line: str) -> None:
        if self.authenticated:
            self.respond("530 Can't change the user of a session.")
        elif line.lower() in ("anonymous", "ftp"):
            self.username = "anonymous"
            self.respond("331 Any password will do.")
        else:
            self.attempted_logins += 1
            self.respond("530 Log in as anonymous: this server has no other users.")
            if self.attempted_logins >= self.max_login_attempts:
                self.close_when_done()

    def ftp_PASS(self, line: str) -> None:
        if self.authenticated:
            self.respond("230 Already logged in.")
        elif not self.username:
            self.respond("503 Log in with USER first.")
        else:
            self.handle_auth_success("/", "", "Login successful.")

    # --- data connections

    def _make_epasv(self, extmode: bool = False) -> None:
        self._out_dtp_queue = None
        self._shutdown_connecting_dtp()
        if self.data_channel is not None:
            self.data_channel.close()
            self.data_channel = None
        kept, self._kept = self._kept, None
        if kept is not None and kept.invites(extmode):
            self._dtp_acceptor = kept
            return
        try:
            super()._make_epasv(extmode)
        except OSError as error:
            self.service.refused("no passive port", self.remote_ip)
            self.respond(f"425 Can't listen for a data connection: {error.strerror or error}.")

    def keep(self, listener: Passive | None) -> None:
        """Have a listener that has let its client in for the next transfer, or none."""
        if self._kept is not None:
            self._kept.close()
        if listener is not None:
            self._dtp_acceptor = None  # type: ignore[assignment]
        self._kept = listener

    def _make_eport(self, ip: str, port: int) -> None:
        self.keep(None)
        if ip != self.remote_ip or port < 1024:
            self.service.refused("bounce", self.remote_ip)
        self._out_dtp_queue = None
        try:
            super()._make_eport(ip, port)
        except OSError as error:
            self.respond(f"425 Can't open a data connection: {error.strerror or error}.")

    def push_dtp_data(self, data: object, isproducer: bool = False, file: Any = None, cmd: Any = None) -> None:
        if self._has_data_connection():
            super().push_dtp_data(data, isproducer, file, cmd)

    def _has_data_connection(self) -> bool:
        """Whether data can be sent or will be able to; where not, the command is answered here."""
        if self.data_channel is None and self._dtp_acceptor is not None:
            self._dtp_acceptor.take_waiting()
        doors = (self._dtp_acceptor, self._dtp_connector)
        if self._transferring():
            self.respond("503 A transfer is on its way in this session.")
        elif self.data_channel is None and all(door is None or door._closed for door in doors):
            self.respond("425 Use PASV, EPSV, PORT or EPRT first.")
        else:
            return True
        return False

    def ftp_ABOR(self, line: str) -> None:
        channel = self.data_channel
        busy = self._transferring()
        self._out_dtp_queue = None
        self._shutdown_connecting_dtp()
        if channel is not None:
            channel.reason = "the client aborted"
            channel.close()
        if busy:
            self.respond("426 Transfer aborted.")
        self.respond("226 ABOR command successful." if busy else "225 No transfer to abort.")

    # --- the namespace

    def _ask(self, question: Any, path: str, then: Callable[[Any], None]) -> None:
        """Give what the catalog says of a path to `then`. A refusal is answered here."""
        self._put(
            question,
            path,
            lambda answer: self._refuse(path, answer) if isinstance(answer, Refusal) else then(answer),
        )

    def _failed(self, path: str) -> Refusal:
        # A fault of ours (`resolve` is judged by Namespace) ends one command, not the session.
        self.service.log.exception("the catalog failed", path=shown(path))
        return Refusal(Reason.BROKEN, "can not be read")

    def _put(self, question: Any, path: str, then: Callable[[Any], None]) -> None:
        try:
            answer = question(path, self.client)
        except Exception:
            answer = self._failed(path)
        if inspect.isawaitable(answer):
            self._wait(ensure_future(answer), path, then)
        else:
            then(answer)

    def _wait(self, answer: Future[Any], path: str, then: Callable[[Any], None]) -> None:
        """Give an answer to `then` when it is there. This client waits until then: no command overtakes it."""
        self._answer = answer
        self.del_channel()
        answer.add_done_callback(lambda answer: self._answered(answer, path, then))

    def _answered(self, future: Future[Any], path: str, then: Callable[[Any], None]) -> None:
        if self._closed:
            return
        self._answer = None
        self.add_channel(events=self._wanted_io_events)
        try:
            answer = future.result()
        except (Exception, CancelledError):
            answer = self._failed(path)
        then(answer)
        if self._quit_pending:
            self.finish()
        while self._later and self._answer is None and not self._closed:
            self._in_buffer = [self._later.popleft()]
            self.found_terminator()

    def _refuse(self, path: str, refusal: Refusal) -> None:
        code = {Reason.BROKEN: 451, Reason.BUSY: 450, Reason.CROWDED: 450}.get(refusal.reason, 550)
        self.respond(f"{code} {path}: {refusal.text}.")

    def ftp_RETR(self, file: str) -> None:
        start, self._restart_position = self._restart_position, 0
        self._put(self.service.catalog.resolve, file, lambda found: self._send(file, start, found))

    def _send(self, file: str, start: int, source: Source | Refusal) -> None:
        if isinstance(source, Refusal):
            self._refuse(file, source)
            self.service.failed(self.client, file, source.text)
        elif start > source.size:
            self.respond(f"554 REST position {start} is behind the end of the file ({source.size}).")
        else:
            sent = SourceFile(source, file)
            sent.seek(start)
            self.push_dtp_data(FileProducer(sent, self._current_type), isproducer=True, file=sent, cmd="RETR")

    def ftp_SIZE(self, path: str) -> None:
        if self._current_type == "a":
            self.respond("550 SIZE is exact in TYPE I only.")
        else:
            self._ask_file(path, lambda entry: f"213 {entry.size}")

    def ftp_MDTM(self, path: str) -> None:
        self._ask_file(path, lambda entry: f"213 {stamp(entry.mtime)}")

    def _ask_file(self, path: str, reply: Callable[[Entry], str]) -> None:
        def answer(entry: Entry) -> None:
            if entry.is_dir:
                self._refuse(path, Refusal(Reason.DIRECTORY, "is a directory"))
            else:
                self.respond(reply(entry))

        self._ask(self.service.catalog.stat, path, answer)

    def ftp_CWD(self, path: str) -> None:
        self._ask(self.service.catalog.stat, path, lambda entry: self._enter(path, entry))

    def _enter(self, path: str, entry: Entry) -> None:
        if not entry.is_dir:
            self._refuse(path, Refusal(Reason.MISSING, "not a directory"))
            return
        self.fs.cwd = path
        self.respond('250 "{}" is the current directory.'.format(path.replace('"', '""')))

    def ftp_LIST(self, path: str) -> None:
        self._send_listing(path, "LIST")

    def ftp_NLST(self, path: str) -> None:
        self._send_listing(path, "NLST")

    def ftp_MLSD(self, path: str) -> None:
        self._send_listing(path, "MLSD")

    def _send_listing(self, path: str, cmd: str) -> None:
        if self._has_data_connection():
            self._ask(self.service.catalog.stat, path, lambda entry: self._list(entry, path, cmd))

    def _list(self, entry: Entry, path: str, cmd: str) -> None:
        if entry.is_dir:  # large ones take long: they are read beside the loop
            listed = self.service.list_beside
            self._ask(listed, path, lambda entries: self._push_entries(entries, path, cmd))
        elif cmd == "MLSD":
            self.respond(f"501 {path} is not a directory.")
        else:
            self._push_entries([entry], path, cmd)

    def _push_entries(self, entries: Sequence[Entry], path: str, cmd: str) -> None:
        if len(entries) > self.service.limits.listing:
            self.respond(f"451 {path} has more than {self.service.limits.listing} entries.")
            return
        lines = lines_of(cmd, entries, tuple(self._current_facts))
        encoded = (f"{line}\r\n".encode(self.encoding, self.unicode_errors) for line in lines)
        self.push_dtp_data(Lines(encoded), isproducer=True, cmd=cmd)

    def ftp_MLST(self, path: str) -> None:
        def answer(entry: Entry) -> None:
            self.push(f"250-Listing {path}\r\n {facts(entry, self._current_facts)} {path}\r\n")
            self.respond("250 End MLST.")

        self._ask(self.service.catalog.stat, path, answer)

    def ftp_STAT(self, path: str) -> None:
        if path:
            self.respond("504 STAT lists nothing here: use LIST or MLSD.")
        else:
            super().ftp_STAT(path)

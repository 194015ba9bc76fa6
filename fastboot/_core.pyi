"""The typed contract of the native core. Checked against the built module by stubtest."""

from collections.abc import Sequence
from socket import socket
from typing import NamedTuple

from typing_extensions import disjoint_base

class SpecialFileError(OSError): ...

def open_directory(dirfd: int, path: str) -> int:
    """Open a directory beneath a directory descriptor, confined like Source.open; the caller closes it.
    Raises OSError, ValueError (NUL in the path)."""

@disjoint_base
class Source:
    """A byte range of one open file. The descriptor and the map are shared by all slices and all threads that
    hold it, and are closed with the last of them. Immutable; safe to use from any thread."""

    offset: int
    size: int
    name: str
    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: see open, of_bytes and slice."""

    @staticmethod
    def open(dirfd: int, path: str) -> Source:
        """Open a regular file beneath a directory descriptor: openat2 with RESOLVE_BENEATH and
        RESOLVE_NO_MAGICLINKS, so the check is the open. Raises OSError (EXDEV: the path leaves the directory),
        IsADirectoryError, SpecialFileError, ValueError (NUL in the path)."""

    @staticmethod
    def of_bytes(name: str, data: bytes) -> Source:
        """Make a Source of bytes that no file holds (a rendered configuration), in a memfd."""

    def slice(self, offset: int, size: int, name: str | None = None) -> Source:
        """Return a part of this range, on the same open file. Raises ValueError outside of it."""

    @property
    def identity(self) -> tuple[int, int, int, int, int]:
        """(device, inode, size, mtime_ns, ctime_ns) of the whole file when it was opened."""

    @property
    def mtime(self) -> float:
        """Modification time in seconds since the epoch, when it was opened."""

    def fileno(self) -> int: ...
    def unchanged(self) -> bool:
        """Whether the file still has the size and times it was opened with."""

    def warm(self) -> None:
        """Map the file and read the range into memory, so that the engine never waits for a disk.
        Blocks without the GIL: call it in an executor. Raises OSError."""

    def netascii(self) -> Source:
        """Return a copy with line ends as RFC 764 has them: LF as CR LF, CR as CR NUL. For texts: it is held in
        memory. Blocks: call it in an executor. Raises OSError."""

    def read(self) -> bytes:
        """Return the whole range. Raises OSError (EIO) where the file became shorter."""

class TftpRequest(NamedTuple):
    """A client asks for a file; answer with Engine.start or Engine.refuse and this id. `options` are those that
    the engine will negotiate, with the values asked for."""

    id: int
    name: bytes
    netascii: bool
    peer: str
    port: int
    server: str
    interface: int
    options: dict[str, int]

class TftpEnd(NamedTuple):
    """A transfer ended. `outcome` is done, unconfirmed (all sent, the last ACK never came), silent (given up),
    probe (EDK2 asked for the size only), cancelled (the client sent ERROR `code`), changed (the file did while
    it was sent), replaced (the client began anew) or stopped. `octets` were acknowledged; `blocks` were sent,
    `repeats` of them again."""

    id: int
    outcome: str
    code: int
    octets: int
    blocks: int
    repeats: int
    seconds: float
    blksize: int
    windowsize: int

class TftpNotice(NamedTuple):
    """`drained`: the last transfer after Engine.drain ended. `no-segmentation`: the kernel or the interface
    refused UDP_SEGMENT with the errno `error`; blocks go one by one from now on."""

    kind: str
    interface: int
    error: int

@disjoint_base
class Engine:
    """Answers TFTP on its sockets, in the thread that calls run(). Requests go up as events, files come down by
    start(). The other methods are called from one other thread."""

    def __init__(
        self,
        listen: Sequence[socket],
        data: Sequence[socket],
        links: Sequence[tuple[int, int]],
        *,
        max_transfers: int = 4096,
        max_blksize: int = 1468,
        max_windowsize: int = 64,
    ) -> None:
        """Requests are read from `listen`; blocks leave from `data`, or from `listen` too where it is empty (a
        single port). The sockets are bound UDP sockets with IP_PKTINFO on. `links` are (interface index, MTU);
        requests from other interfaces are dropped and counted. Raises ValueError, OSError, MemoryError."""

    def run(self) -> None:
        """Serve until halt(). Once. Runs without the GIL."""

    def fileno(self) -> int:
        """An eventfd that is readable when events() has something."""

    def events(self) -> list[TftpRequest | TftpEnd | TftpNotice]: ...
    def start(self, id: int, source: Source, *, tsize: bool = True) -> None:
        """Answer a request with a file, which should be warm. `tsize=False` keeps its size out of the OACK.
        Without effect where the client has gone in the meantime. Raises OSError where the file can not be
        mapped."""

    def refuse(self, id: int, code: int, text: str) -> None:
        """Answer a request with an ERROR (RFC 1350 section 5); the text is cut to 87 octets of ASCII."""

    def drain(self) -> None:
        """Take no new requests; a `drained` notice comes when no transfer is left."""

    def halt(self) -> None:
        """End every transfer without a word to its client, and run()."""

    def counters(self) -> dict[str, int]: ...
    def transfers(self) -> list[tuple[int, int, int]]:
        """(id, octets acknowledged, octets in all) of the transfers under way, as of about now."""

def parse_tftp(packet: bytes) -> tuple[bytes, str, dict[str, int]] | None:
    """Parse a read or write request to its name, mode and the options that would be negotiated (RFC 1350
    section 5, RFC 2347). None where it is malformed."""

@disjoint_base
class TftpModel:
    """The sender of one transfer on a virtual clock (nanoseconds), as the engine uses it."""

    def __init__(
        self, size: int, *, blksize: int = 512, windowsize: int = 1, oack: bool = True, now: int = 0
    ) -> None: ...
    def send(self, now: int) -> range:
        """Send what may be sent; returns the block numbers, unwrapped. 0 is the OACK."""

    def ack(self, block: int, now: int) -> bool:
        """Take an ACK of a 16-bit block number. False where it acknowledges nothing in flight."""

    def timer(self, now: int) -> None:
        """Call at `deadline` or later."""

    @property
    def outcome(self) -> str: ...
    @property
    def base(self) -> int: ...
    @property
    def deadline(self) -> int: ...
    @property
    def srtt(self) -> int: ...
    @property
    def repeats(self) -> int: ...

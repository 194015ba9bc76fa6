"""The contract of the machines' native part: each does one thing at a time, Python says what is next."""

from array import array
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, final

ENDS: Final[tuple[str, ...]]

class Outcome(NamedTuple):
    """What became of what a machine did. Times are nanoseconds of CLOCK_MONOTONIC; `first`: the first answer, 0 is
    none.

    `end`: "done"; "error": the server refused, with `code` (of TFTP) and its words in `content`; "nonsense": an
    answer that this client refuses; "silent": no answer as often as it asks. `octets` came in order, of `size`
    that the server told (-1: it did not); `again` counts blocks that came twice or out of order. `content`: the
    first octets, as many as were to be kept; None where none were.
    """

    machine: int
    end: Literal["done", "error", "nonsense", "silent"]
    code: int
    octets: int
    size: int
    again: int
    began: int
    first: int
    ended: int
    content: bytes | None

@final
class Manner:
    """How a client receives by TFTP, besides the request itself.

    `waits` are the seconds of silence after which it asks again, in turn; after the last it gives up, and whatever
    comes starts them anew. Between blocks it then repeats its last acknowledgement, or with `insists` false waits
    only. `blksize` and `window` are what it asks for, `sized` whether it asks for the size. `slow`: seconds
    that it takes to acknowledge. Raises ValueError.
    """

    tries: int
    blksize: int
    window: int
    sized: bool
    insists: bool

    def __init__(
        self,
        waits: Sequence[float],
        *,
        blksize: int = 512,
        window: int = 1,
        sized: bool = False,
        insists: bool = True,
        slow: float = 0.0,
    ) -> None: ...

@final
class Machines:
    """Machines by number, from 0. One thread uses them; descriptors stay the caller's.

    `loss` is the share of UDP packets that get lost in each direction, by dice that `seed` determines.
    """

    count: int
    now: int
    strange: int
    """Packets that no machine waited for."""
    lost: int
    """Packets that were lost on purpose."""
    unsent: int
    """Packets that the kernel refused to send."""

    def __init__(self, count: int, *, loss: float = 0.0, seed: int = 1) -> None: ...
    def place(self, machine: int, address: int) -> None:
        """Give a machine an IPv4 address, which must be local here; 0 takes it away. Raises IndexError."""

    def pause(self, machine: int, seconds: float) -> None:
        """Let it do nothing for some time. Raises ValueError where it is busy, as all of these."""

    def turn(self, seconds: float = 0.1) -> list[Outcome]:
        """Let all go on until something has ended, or for so long. Without the GIL."""

    def flow(self) -> array[int]:
        """Return the octets of files that came in each tenth of a second since the beginning (an hour at most)."""

    def speak_through(self, fds: Sequence[int]) -> None:
        """Name the UDP sockets that all share, with IP_PKTINFO set; a machine's next file comes by the next."""

    def fetch(
        self,
        machine: int,
        server: int,
        port: int,
        request: bytes,
        manner: Manner,
        *,
        probe: bool = False,
        keep: int = 0,
    ) -> None:
        """Send a TFTP request and receive what it asks for. `probe`: leave with ERROR 8 once the size is told, as
        EDK2 does. `keep`: so many octets are handed over, the rest is only counted. Raises ValueError."""

    def wire(self, fd: int, *, frames: bool, giaddr: int = 0, source: int = 0) -> int:
        """Name where DHCP packets leave and come: a packet socket of a link (`frames`), or the UDP socket of a
        relay with the address `giaddr`, connected to the server. With `source` all frames have that MAC, and
        answers are asked for as broadcasts. Returns its number. Raises ValueError for a 17th."""

    def lease(
        self,
        machine: int,
        wire: int,
        discover: bytes,
        request: bytes,
        manner: Manner,
        *,
        collects: float = 0.0,
        hasty: bool = False,
    ) -> None:
        """Ask for an address by these messages; the first offer's address and server go into options 50 and 54 of
        the second. Of `manner` only `waits` count, anew for the REQUEST.

        `collects`: the seconds since the DISCOVER that it waits for more offers; with `hasty` not after one that
        says it is the only one. The outcome's `content` is the whole ACK, or with "error" the NAK; the machine
        then has the address. Raises ValueError.
        """

    def dial(self, machine: int, server: int, port: int, *, patience: float = 60.0) -> None:
        """Connect by TCP, after hanging up. `patience`: seconds without an octet that end whatever it waits
        for. The outcome's "error" has the errno as its `code`. Raises OSError."""

    def get(self, machine: int, request: bytes, *, head: bool = False, keep: int = 0) -> None:
        """Send an HTTP request; the outcome's `code` is the status, `size` the Content-Length. `head`: no body."""

    def say(self, machine: int, line: bytes) -> None:
        """Send a line of FTP, or none, and wait for a reply: `code` and `content`."""

    def retrieve(self, machine: int, port: int, line: bytes, *, keep: int = 0) -> None:
        """Send RETR, receive what comes by a connection to `port`, and the reply after it (`code`)."""

    def hang_up(self, machine: int) -> None: ...

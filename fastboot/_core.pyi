"""The typed contract of the native core. Checked against the built module by stubtest."""

from collections.abc import Callable, Iterator, Sequence
from socket import socket
from typing import NamedTuple, Self, final

from typing_extensions import disjoint_base

class SpecialFileError(OSError): ...

def open_directory(dirfd: int, path: str) -> int:
    """Open a directory beneath a directory descriptor, confined like Source.open; the caller closes it.
    Raises OSError, ValueError (NUL in the path)."""

def http_target(request: bytes) -> str | None:
    """Return the target of an HTTP request where the octets are one whole GET of the plainest kind, and nothing
    more: HTTP/1.1, one Host, a path that stands for itself (no escape, no query), no body, no condition, no range,
    a connection that is kept, all as one would write it. None: it is for a parser to say what it is."""

def http_answer(source: Source, media_type: bytes, now: int) -> bytes | None:
    """Return the answer 200 with a whole Source, head and body, at `now` seconds since the epoch; None where
    `Source.at_hand` gives none, or the file has changed. `media_type` has less than 64 octets."""

@disjoint_base
class Source:
    """A byte range of one open file. The descriptor and the map are shared by all slices and all threads that
    hold it, and are closed with the last of them. Immutable; safe to use from any thread."""

    offset: int
    size: int
    mtime: float
    """Modification time in seconds since the epoch, when it was opened."""
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

    def slice(self, offset: int, size: int, name: str | None = None, mtime: float | None = None) -> Source:
        """Return a part of this range, on the same open file; with a name and time of its own where given.
        Raises ValueError outside of it."""

    @property
    def identity(self) -> tuple[int, int, int, int, int]:
        """(device, inode, size, mtime_ns, ctime_ns) of the whole file when it was opened."""

    def fileno(self) -> int: ...
    def unchanged(self) -> bool:
        """Whether the file still has the size and times it was opened with."""

    def netascii(self) -> Source:
        """Return a copy with line ends as RFC 764 has them: LF as CR LF, CR as CR NUL. For texts: it is held in
        memory. Blocks: call it in an executor. Raises OSError."""

    def at_hand(self) -> bytes | None:
        """Return the whole range if it is in memory; None where somebody would have to wait for a disk, where the
        file became shorter, or where its file system can not tell. For small ranges."""

    def read(self) -> bytes:
        """Return the whole range. Raises OSError (EIO) where the file became shorter."""

@disjoint_base
class Pump:
    """Sends files over TCP connections by sendfile, a part of each in turn, without the GIL.

    `run` is to be called in as many threads as are to send, with one order of turns, and `read` in one; they
    return after `halt`. Everything else is for one thread (the loop's). Octets that are not in memory are read by
    `read`'s thread, so a slow disk holds up only who waits for it.
    """

    def __new__(
        cls,
        capacity: int = 16384,
        unsent: int = 1 << 28,
        least: int = 1 << 18,
        most: int = 1 << 21,
        buffers: bool = False,
    ) -> Self:
        """At most `capacity` transfers at once, 1 to 1048576, for all of which the kernel holds about `unsent`
        octets, and for each from `least` to `most`, the same for all, of which one turn takes half, 1 MiB at
        least. With `buffers` that is the size of their send buffers, otherwise of what they have not sent yet
        (TCP_NOTSENT_LOWAT). Raises ValueError, OSError."""

    def fileno(self) -> int:
        """A descriptor that is readable when `ends` has something to tell."""

    def send(self, fd: int, source: Source, offset: int, size: int) -> int:
        """Send a part of a source to a connected stream socket; return the number of the job, which is its until
        `ends` tells of it. The pump has a descriptor of its own, so `fd` may be closed meanwhile; nothing else may
        be written to the connection. Raises ValueError outside of the source, BlockingIOError where as many as
        `capacity` are on their way, OSError where no descriptor is free, the kernel can not watch it, or after
        `halt` (ECANCELED)."""

    def sent(self, job: int) -> int:
        """Return how many octets the kernel has taken."""

    def cancel(self, job: int, error: int) -> None:
        """End a job with this errno, unless it ended already. Once for each job, before `ends` told of it."""

    def ends(self) -> list[tuple[int, int, int]]:
        """Return (job, errno, octets) of what ended; errno 0: all was sent. ESTALE: the file was changed or became
        shorter, and its last octets did not leave."""

    def halt(self) -> None:
        """End every job with ECANCELED, then `run` and `read`."""

    def run(self) -> None: ...
    def read(self) -> None: ...

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
    it was sent), replaced (the client began anew), stopped, gone (ICMP: nobody listens at the client's port),
    broken (the file can not be read) or evicted (nothing ever came back from the client, and another needed its
    place). `octets` were acknowledged; `blocks` were sent, `repeats` of them again."""

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
    refused UDP_SEGMENT with the errno `error`; blocks go one by one from now on. `dropped`: packets found a socket
    full and are lost, counted as `dropped`; at most once in ten seconds."""

    kind: str
    interface: int
    error: int

@disjoint_base
class Crossing:
    """A bounded queue between Python and a native thread. Of the core's own use; it has no methods."""

    def __new__(cls, record: int, capacity: int) -> Self: ...

@disjoint_base
class Interfaces:
    """The interfaces that engines answer on. Engines that are given the same share the budget of blocks that are
    under way through each."""

    def __new__(cls, links: Sequence[tuple[int, int]]) -> Self:
        """Take them as (interface index, MTU). Raises ValueError, MemoryError."""

@disjoint_base
class Engine:
    """Answers TFTP on its sockets, in the thread that calls run(). Requests go up as events, files come down by
    start(). What is not in memory is read by the threads that call read(), a piece of 1 MiB at a time, before
    it is needed. The other methods are called from one other thread."""

    def __new__(
        cls,
        listen: Sequence[socket],
        data: Sequence[socket],
        interfaces: Interfaces,
        *,
        max_transfers: int = 32768,
        max_blksize: int = 1468,
        max_windowsize: int = 64,
    ) -> Self:
        """Requests are read from `listen`; blocks leave from `data`, or from `listen` too where it is empty (a
        single port). The sockets are bound UDP sockets with IP_PKTINFO on. Requests from other `interfaces` are
        dropped and counted. Raises ValueError, OSError, MemoryError."""

    def run(self) -> None:
        """Serve until halt(). Once. Runs without the GIL."""

    def read(self) -> None:
        """Read what is not in memory, until halt(); in one or more threads. Runs without the GIL."""

    def fileno(self) -> int:
        """An eventfd that is readable when events() has something."""

    def events(self) -> list[TftpRequest | TftpEnd | TftpNotice]: ...
    def take(self, handle: Callable[[TftpRequest | TftpEnd | TftpNotice], object]) -> None:
        """Give each of events() to `handle`, and the engine what that answers in a few pieces. What `handle`
        raises ends it, and the events after that one are lost."""

    def start(self, id: int, source: Source, *, tsize: bool = True, windowsize: int = 65535) -> None:
        """Answer a request with a file. `tsize=False` keeps its size out of the OACK; `windowsize` is the most
        blocks that are granted, within `max_windowsize`. Without effect where the client has gone in the meantime.
        Raises OSError where the file can not be mapped, ValueError where `windowsize` is 0."""

    def refuse(self, id: int, code: int, text: str) -> None:
        """Answer a request with an ERROR (RFC 1350 section 5); the text is cut to 87 octets of ASCII."""

    def ignore(self, id: int) -> None:
        """Answer a request with silence, so that the client asks again."""

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
class TftpEgress:
    """The interface that transfers share, on a virtual clock (nanoseconds), as the engine uses it."""

    def __new__(cls, capacity: int, beside: TftpEgress | None = None) -> Self:
        """One engine's part in an interface, for so many transfers; `beside` is another's part in the same."""

    def turn(self, now: int) -> int | None:
        """Return whose turn it is, as a number in the order that TftpModels were made with this egress. None where
        nobody has blocks to send or the budget is spent. Who has the turn sends."""

    @property
    def budget(self) -> int:
        """Blocks that may be under way."""

    @property
    def under_way(self) -> int: ...

@disjoint_base
class TftpModel:
    """The sender of one transfer on a virtual clock (nanoseconds), as the engine uses it."""

    def __init__(
        self,
        size: int,
        *,
        blksize: int = 512,
        windowsize: int = 1,
        oack: bool = True,
        now: int = 0,
        egress: TftpEgress | None = None,
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

class DhcpMessage(NamedTuple):
    """A DHCP message as it was received (RFC 2131 section 2). IPv4 addresses are integers; `type` is option 53, 0
    for BOOTP; `chaddr` is all 16 octets; `options` are joined over repeated and overloaded ones (RFC 3396)."""

    op: int
    type: int
    htype: int
    hlen: int
    xid: int
    secs: int
    flags: int
    ciaddr: int
    yiaddr: int
    siaddr: int
    giaddr: int
    chaddr: bytes
    sname: bytes
    file: bytes
    options: dict[int, bytes]

_EncodedPlan = tuple[int, int, int, int, bytes, bytes, bytes, bytes]
"""address (0: from the pools), siaddr, lease seconds (0: the subnet's), tag for events, boot file for the header,
then encoded options: 1 and 67, those always sent, those sent where option 55 asks for them."""

def parse_dhcp(data: bytes) -> DhcpMessage | str:
    """Parse a DHCP message, or say why it is none: one of RESPONDER_COUNTERS."""

def emit_dhcp(
    request: bytes,
    *,
    type: int,
    server: int,
    yiaddr: int = 0,
    lease: int = 0,
    message: bytes | None = None,
    plan: _EncodedPlan | None = None,
    mtu: int = 1500,
) -> bytes:
    """Return the reply to a request as the Responder sends it. Raises ValueError for a request that is none."""

def udp_packet(source: int, source_port: int, destination: int, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram, both checksums right (RFC 791, RFC 768). Raises ValueError."""

RESPONDER_COUNTERS: tuple[str, ...]
"""The counters' names, every reason for silence among them."""
FACT_NAMES: tuple[str, ...]
RESPONDER_WAYS: tuple[str, ...]
STATE_NAMES: tuple[str, ...]

_LeaseTuple = tuple[int, str, bytes, bytes, bytes, float, float, int, bytes, bytes]
"""address, state, MAC, client identifier, host name, start and end in seconds since the epoch, relay or 0,
circuit id, remote id."""

@disjoint_base
class Network:
    """Links, subnets, known machines and the addresses of this host. One thread calls it and what is built on it.
    `now` is monotonic nanoseconds, `wall` seconds since the epoch at that moment."""

    def __new__(cls, seed: bytes) -> Self:
        """`seed` is 32 random octets. Raises ValueError."""

    def configure(
        self,
        links: list[tuple[int, int, int, list[tuple[int, int]], bytes]],
        subnets: list[tuple[int, int, int, list[tuple[int, int]], int, bool]],
        nodes: list[tuple[int, list[bytes], bytes, bytes]],
        own: list[int],
        authoritative: bool,
    ) -> None:
        """Take links (interface index, MTU, first address, [(index of a subnet, our address there)], MAC), subnets
        (network, mask, lease seconds, [(first, last) address of a pool], number of its wire, whether option 61
        tells its clients apart), nodes (fixed address or 0, MACs, circuit id, remote id) and all addresses of this
        host.
        `authoritative`: no other DHCP server is meant to be here. Raises ValueError for more than 16 subnets on a
        link, MemoryError."""

@final
class DhcpFacts:
    """What happened, in this order. Each is made when it is read: kind, MAC, link, address, tag of the plan,
    value, text."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: see Replies.events."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> tuple[str, bytes, int, int, int, int, bytes]: ...
    def __iter__(self) -> Iterator[tuple[str, bytes, int, int, int, int, bytes]]: ...
    def kind(self, at: int) -> str:
        """Return the first of its items. Raises IndexError."""

    def node(self, at: int) -> int:
        """Return the index of the node that the machine was, or a negative number. Raises IndexError."""

    def kinds(self) -> dict[str, int]:
        """Return how many there are of each kind."""

    def take(self, kind: str) -> list[tuple[str, bytes, int, int, int, int, bytes]]:
        """Take out those of one kind. Raises ValueError for what is no kind."""

@disjoint_base
class Replies(Network):
    """What waits for the disk, for the sockets, and for Python."""

    raw: bool
    """Whether clients without an address get frames; else they get broadcasts."""
    def attach(self, link: int, fd: int) -> None:
        """Receive and send a link's datagrams by a bound socket, -1 for none. Raises IndexError."""

    def attach_raw(self, fd: int) -> None:
        """Send frames by an AF_PACKET SOCK_DGRAM socket, -1 for none (then `raw` is False)."""

    def flush(self) -> int:
        """Send what is ready; return how many replies the sockets did not take yet."""

    def replies(self) -> list[tuple[str, int, int, int, int, bytes, bytes]]:
        """Take the ready replies instead of sending them: way (RESPONDER_WAYS), link, source, destination, port,
        hardware address, payload; where the way is "hardware", the whole IP packet."""

    def events(self) -> DhcpFacts:
        """Take what happened since the last time."""

    def counters(self) -> dict[str, int]: ...

@disjoint_base
class Requests(Replies):
    """The request at hand. Works with or without sockets."""

    bootp: bool
    """Whether clients of BOOTP are answered (RFC 951)."""
    snooping: bool
    """Whether option 82 is believed, and sent back, where no relay has put its address beside it."""
    def distinguish(self, macs: list[bytes], machine_ids: list[bytes]) -> None:
        """Set machines apart by how their MAC address or option 97 begins: those of one class, in `answer`, begin
        with the same of these. Call it before `configure`. Raises ValueError for more than 256 of either."""

    def receive(self, data: bytes, link: int, source: int, destination: int, now: int, port: int = 68) -> None:
        """Take a packet that came in by a link, from an address and `port`, to an address. Raises IndexError."""

    def readable(self, link: int, now: int) -> int:
        """Take what a link's socket holds, at most 256 packets; return how many."""

@disjoint_base
class Decisions(Requests):
    """Which plan a request is answered by."""

    @property
    def asking(self) -> int:
        """How many requests `misses` would return."""

    def misses(
        self, most: int = 4096
    ) -> list[tuple[bytes, int, int, int, bytes, int, bytes, bytes, bytes, bytes, bytes, int, bytes, bytes]]:
        """Return at most so many of the requests that wait for a decision, each once: token, link, subnet, our
        address, MAC, node or -1, options 93, 60, 77, 175, 97, relay or 0, circuit id, remote
        id."""

    def answer(self, token: bytes, plan: _EncodedPlan | None, scope: str, now: int) -> None:
        """Decide a miss, None for silence; `scope` as model.Scope. Raises ValueError."""

    def drop(self, token: bytes) -> None:
        """Leave a miss without an answer, and without a plan for the next."""

    def forget(self) -> None:
        """Let no plan hold that was decided before."""

@disjoint_base
class Proxy(Decisions):
    """Names boot files where another server gives the addresses (PXE 2.1 section 2.2.3); see _native/proxy.pxi.

    `configure` takes every link twice: all of port 67, then all of port 4011, each in a subnet or more; the pools
    and leases of subnets are not looked at, nor is `authoritative`.
    """

    def mac_of(self, address: int) -> bytes | None:
        """Return the MAC of who was last seen to ask for an address, or to say that it has it."""

    def heeded(self, mac: bytes) -> None:
        """Tell that a machine has asked for a file, so that it does not ignore our offers."""

    def node_of_mac(self, mac: bytes) -> int:
        """Return the node that has a MAC, or whose switch port it was heard from; a negative number for none."""

@disjoint_base
class Addresses:
    """Who has each address, and which are free. Of the core's own use; it has no methods."""

@disjoint_base
class Leases(Addresses):
    """How that changes, and which of it is not on disk yet. Of the core's own use; it has no methods."""

_Row = tuple[int, str, int, bytes, bytes, bytes, int, bytes, bytes, int, int | None]
"""address, state, hardware type, MAC, client identifier, host name, relay or 0, circuit id, remote id, start and
end in nanoseconds of the clock that `now` is of; None: it never ends."""

@disjoint_base
class Prober:
    """Which free addresses somebody uses. Of the core's own use; it has no methods."""

@disjoint_base
class LeaseKeeper(Decisions):
    """The leases of a server. A new configuration leaves bindings as they are."""

    quarantine: int
    """Seconds that an address in use is set aside."""
    @property
    def vacant(self) -> bool:
        """Whether free addresses have come or gone since the last `probes`."""

    def speak_arp(self, link: int, on: bool) -> None:
        """Say whether ARP can be spoken on a link, of the first 64: then the free addresses of its subnets are
        asked about. Raises IndexError."""

    def probes(self, now: int, most: int) -> tuple[list[tuple[int, int]], int]:
        """Return whom to ask for now, at most so many addresses, as (link, address), and the nanoseconds until
        there is more to do. Each is asked for three times, a second apart (RFC 5227), and again after five
        minutes."""

    def receive_arp(self, data: bytes, link: int, now: int) -> bool:
        """Take an ARP packet of a link, without its Ethernet header. Return whether it sets an address aside.
        Raises IndexError."""

    def readable_arp(self, link: int, fd: int, now: int) -> int:
        """Take what a packet socket holds, at most 64; return how many addresses it sets aside, -1 for an error of
        the socket. Raises IndexError."""

    def doubt(self, addresses: list[int] | None, now: int) -> int:
        """Give these free addresses, None for all, to no stranger before they are found unused or, where ARP can
        not be spoken, for ten minutes. Return how many there are."""

    @property
    def committing(self) -> int:
        """How many rows are not on disk yet."""

    def load(self, rows: Sequence[_Row], now: int, last: int = 0) -> int:
        """Take the store's rows, and the number of its last batch: the next is one more. Return how many rows lie
        in no subnet; their addresses are given to nobody."""

    def adopt(self, rows: Sequence[_Row], now: int) -> tuple[int, list[int]]:
        """Take leases that another server gave, in one batch. Return its number and the addresses of those that
        were left out because they are not free."""

    def batch(self, boot: int) -> tuple[int, str] | None:
        """Return the rows to commit next as (number, JSON); None where there are none or one is in flight. `boot`
        goes into each: the start of the machine that its times are counted from."""

    def durable(self, number: int, ok: bool, now: int) -> None:
        """Say whether a batch is on disk. Raises ValueError where it is not in flight."""

    def leases(self, now: int, wall: float) -> list[_LeaseTuple]:
        """Return what is bound or declined."""

    def lease_at(self, address: int, now: int, wall: float) -> _LeaseTuple | None:
        """Return who has an address bound or on offer."""

    def node_of_mac(self, mac: bytes) -> int:
        """Return the index of the node that a MAC is of, by its lease too, or a negative number."""

    def release(self, address: int, now: int) -> bool:
        """Free a bound or declined address, durably. Returns whether it was one and no commit of it is due."""

@disjoint_base
class Responder(LeaseKeeper):
    """The DHCP server that gives leases (RFC 2131)."""

    max_per_port: int
    """Addresses that machines which are no nodes may have behind one port of a relay,"""
    max_offers: int
    """on offer without ever having had them,"""
    max_leases: int
    """and leased. Nodes are served beyond all three."""

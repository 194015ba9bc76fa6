"""TFTP clients as real ones are: what they ask for, in which order, how long they wait. Many at once, natively.

    with Receivers(server, 100, first=IPv4Address("10.77.1.0")) as receivers:
        result = receivers.run(["pxelinux.0"], PXELINUX)

All machines share a few sockets, and each has an address of its own, which must be local: any of 127.0.0.0/8, or
what `network.claim` makes local on an interface of ours.
"""

from __future__ import annotations

import socket
import struct
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Final

from fastboot.lab._machines import Machines, Manner, Outcome
from fastboot.lab.fleet import dropped, roomy

_IP_PKTINFO, _UDP_GRO = 8, 104
_WAYS: Final = 4
_RRQ: Final = 1


@dataclass(frozen=True, slots=True)
class Client:
    """A TFTP client. `options` are those of its request in its order, `probe` those of a request for the size
    alone that it sends first; `values` is what it asks for, where that is not 0. `waits`, `insists`: see
    `Manner`."""

    options: tuple[str, ...]
    waits: tuple[float, ...]
    values: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    probe: tuple[str, ...] = ()
    insists: bool = True

    def request(self, path: str, *, probe: bool = False) -> bytes:
        """Return the request for a file as it is on the wire."""
        words = [path, "octet"]
        for option in self.probe if probe else self.options:
            words += [option, str(self.values.get(option, 0))]
        return struct.pack("!H", _RRQ) + b"".join(word.encode() + b"\0" for word in words)

    def manner(self, *, probe: bool = False, slow: float = 0.0) -> Manner:
        """Return how it receives; `slow` are the seconds that its acknowledgements take."""
        asked = self.probe if probe else self.options
        return Manner(
            self.waits,
            blksize=self.values.get("blksize", 512) if "blksize" in asked else 512,
            window=self.values.get("windowsize", 1) if "windowsize" in asked else 1,
            sized="tsize" in asked,
            insists=self.insists,
            slow=slow,
        )

    def asking(self, blksize: int, windowsize: int = 1) -> Client:
        """Return one that is like this, but for what it asks for."""
        options = [option for option in self.options if option not in ("blksize", "windowsize")]
        options += ["blksize", *(("windowsize",) if windowsize > 1 else ())]
        return replace(self, options=tuple(options), values={"blksize": blksize, "windowsize": windowsize})


PXELINUX: Final = Client(
    ("tsize", "blksize"),
    # core/fs/pxe/tftp.c, TimeoutTable, in ticks of 55 ms
    tuple(
        ticks / 18.2
        for ticks in (
            2, 2, 3, 3, 4, 5, 6, 7, 9, 10, 12, 15, 18, 21, 26, 31, 37, 44, 53, 64, 77, 92, 110, 132, 159, 191, 229,
            255, 255, 255, 255,
        )
    ),
    {"blksize": 1408},
)  # fmt: skip
EDK2: Final = Client(
    ("blksize", "windowsize"),
    (4.0,) * 6,  # Mtftp4Dxe: MTFTP4_DEFAULT_TIMEOUT, MTFTP4_DEFAULT_RETRY
    {"blksize": 1468, "windowsize": 4},
    probe=("tsize", "blksize", "windowsize"),
)
SHIM: Final = Client(("blksize", "windowsize"), EDK2.waits, {"blksize": 512, "windowsize": 4})
"""rhboot/shim#618: through the firmware, but with blocks of 512 and without asking for the size."""
IPXE: Final = Client(("blksize", "tsize"), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), {"blksize": 1432})
"""net/retry.c: from a quarter of a second, doubled up to ten."""
GRUB: Final = Client(
    ("blksize", "tsize"),
    tuple(
        0.4 + 0.02 * turn for turn in range(40)
    ),  # GRUB_NET_INTERVAL, _ADDITION and _TRIES of include/grub/net.h
    {"blksize": 1024},
    insists=False,
)
PLAIN: Final = Client(("tsize",), (1.0,) * 30)
"""No firmware: a client that asks every second, for benchmarks to give a blksize and a window to."""


@dataclass(frozen=True, slots=True)
class Result:
    """What machines received. `seconds`: until the last had all its files; `each`: of every machine that got them
    all, from when it began, ascending; `requests`: of every file that came whole, ascending.

    `octets` are of all files; `blocks_again` came twice or out of order. `unfinished` machines did not get what
    they asked for, and `failures` counts why. `answers`: of every request, until something came. `flow`
    has the octets of each tenth of a second. `lost` packets were lost on purpose, `dropped` for want of room in
    our own sockets; `strange` ones nobody waited for.
    """

    seconds: float
    each: array[float]
    requests: array[float]
    answers: array[float]
    octets: int
    blocks_again: int
    unfinished: int
    failures: Mapping[str, int]
    flow: array[int]
    lost: int
    dropped: int
    strange: int

    @property
    def rate(self) -> float:
        """Octets a second."""
        return self.octets / self.seconds if self.seconds else 0.0


class _Course:
    """A run under way: where each machine is in its files, and what has come. Times in nanoseconds."""

    def __init__(self, machines: int, files: int, start: int) -> None:
        self.running, self.start = machines, start
        self._files, self._left = files, [files] * machines
        self._begun, self._last = [0] * machines, start
        self._failed: set[int] = set()
        self._failures: Counter[str] = Counter()
        self._each, self._whole, self._answers = array("d"), array("d"), array("d")
        self._octets = self._again = 0

    def take(self, outcome: Outcome) -> int | None:
        """Count what a machine has done; returns which file it fetches next, None after its last."""
        machine = outcome.machine
        if self._begun[machine]:
            self._left[machine] -= 1
            self._count(outcome)
        else:
            self._begun[machine] = outcome.ended
        if left := self._left[machine]:
            return self._files - left
        self.running -= 1
        if machine not in self._failed:
            self._each.append((outcome.ended - self._begun[machine]) / 1e9)
        return None

    def _count(self, outcome: Outcome) -> None:
        self._octets += outcome.octets
        self._again += outcome.again
        self._last = outcome.ended
        if outcome.first:
            self._answers.append((outcome.first - outcome.began) / 1e9)
        if reason := _failure(outcome):
            self._failed.add(outcome.machine)
            self._failures[reason] += 1
        else:
            self._whole.append((outcome.ended - outcome.began) / 1e9)

    def result(self, machines: Machines, dropped: int) -> Result:
        """Return what came of it; `dropped` packets found no room in our own sockets."""
        return Result(
            seconds=(self._last - self.start) / 1e9,
            each=array("d", sorted(self._each)),
            requests=array("d", sorted(self._whole)),
            answers=array("d", sorted(self._answers)),
            octets=self._octets,
            blocks_again=self._again,
            unfinished=len(self._failed | {machine for machine, left in enumerate(self._left) if left}),
            failures=self._failures,
            flow=machines.flow(),
            lost=machines.lost,
            dropped=dropped,
            strange=machines.strange,
        )


def open_ways() -> list[socket.socket]:
    """Open the sockets that machines share: as few as let the next file of each come by another port."""
    ways: list[socket.socket] = []
    try:
        for _ in range(_WAYS):
            way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ways.append(way)
            way.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            way.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            roomy(way).bind(("0.0.0.0", 0))
    except BaseException:
        for way in ways:
            way.close()
        raise
    return ways


class Receivers:
    """`count` machines with addresses from `first` on, which fetch files from one server."""

    def __init__(
        self,
        server: IPv4Address,
        count: int,
        *,
        first: IPv4Address,
        port: int = 69,
        loss: float = 0.0,
        seed: int = 1,
    ) -> None:
        """`loss` is the share of packets lost each way. Raises ValueError, OSError."""
        self._machines = Machines(count, loss=loss, seed=seed)
        self._server, self._port = int(server), port
        for machine in range(count):
            self._machines.place(machine, int(first) + machine)
        self._ways = open_ways()
        self._machines.speak_through([way.fileno() for way in self._ways])

    def run(
        self, paths: Sequence[str], client: Client, *, spread: float = 0.0, slow: float = 0.0, limit: float = 300.0
    ) -> Result:
        """Let every machine fetch the files, one after the other, and wait for all, or for `limit` seconds. One
        that does not get a file goes on with the next. They begin within `spread` seconds. Call it once."""
        machines, manner = self._machines, client.manner(slow=slow)
        requests = [client.request(path) for path in paths]
        for machine in range(machines.count):
            machines.pause(machine, spread * machine / machines.count)
        course = _Course(machines.count, len(requests), machines.now)
        while course.running and machines.now - course.start < limit * 1e9:
            for outcome in machines.turn():
                if (which := course.take(outcome)) is not None:
                    machines.fetch(outcome.machine, self._server, self._port, requests[which], manner)
        return course.result(machines, sum(map(dropped, self._ways)))

    def close(self) -> None:
        for way in self._ways:
            way.close()

    def __enter__(self) -> Receivers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failure(outcome: Outcome) -> str | None:
    if outcome.end == "error":
        return f"ERROR {outcome.code}: {(outcome.content or b'').decode('utf-8', 'replace')}"
    if outcome.end != "done":
        return outcome.end
    return None if outcome.size in (-1, outcome.octets) else "a part of the file"

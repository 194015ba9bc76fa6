"""How boot clients receive, one class per habit (protocol-facts A8 and B), and a wire on a virtual clock.

Times are nanoseconds. The payload of a block is its own number before it is cut to 16 bits, so that a receiver
which takes a block for another is found out.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fastboot._core import TftpModel

US, MS, S = 1_000, 1_000_000, 1_000_000_000
DOWN, UP = "down", "up"
RTT = 200 * US

Fate = Callable[[str, int], tuple[int, ...]]
"""Direction and number of a packet, 0 for the OACK and for ACK 0, to the delays of its copies; none: lost."""


class Receiver:
    """RFC 7440 to the letter, as u-root: one ACK at the end of a window, and one where a gap opens."""

    timeout = 1 * S
    repeats_acks = True
    """Whether an old block or silence makes it say again what it has, sooner than by `timeout`."""
    closes_silently = False

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.wrote: list[int] = []
        self.expected = 1
        self.since_ack = 0
        self.done = False
        self.deadline: int | None = None
        self._in_gap = False

    def on_oack(self, now: int) -> list[int]:
        if self.expected > 1:
            return []
        return self.say(0, now)

    def on_data(self, wire: int, payload: int, last: bool, now: int) -> list[int]:
        if wire != self.expected & 0xFFFF:
            return self.wrong(wire, now)
        self._in_gap = False
        self.wrote.append(payload)
        self.expected += 1
        self.since_ack += 1
        self.deadline = now + self.timeout
        if last:
            self.done, self.deadline = True, None
            return [] if self.closes_silently else [wire]
        if self.since_ack == self.window:
            return self.say(wire, now)
        return []

    def wrong(self, wire: int, now: int) -> list[int]:
        if self._in_gap:
            return []
        self._in_gap = True
        return self.say(self.expected - 1, now)

    def on_timer(self, now: int) -> list[int]:
        return self.say(self.expected - 1, now)

    def say(self, block: int, now: int) -> list[int]:
        self.since_ack = 0
        self.deadline = now + self.timeout
        return [block & 0xFFFF]

    @property
    def intact(self) -> bool:
        return self.wrote == list(range(1, len(self.wrote) + 1))


class Edk2(Receiver):
    """UEFI: an ACK for every packet out of order or repeated, each of which starts its window anew; keeps nothing
    that it did not expect; 4 s before it says anything by itself (Mtftp4RrqHandleData)."""

    timeout = 4 * S

    def wrong(self, wire: int, now: int) -> list[int]:
        return self.say(self.expected - 1, now)


class Pxelinux(Edk2):
    """PXELINUX and GRUB, in lockstep: a wrong block is acknowledged again at once."""

    timeout = 400 * MS

    def __init__(self, window: int = 1) -> None:
        super().__init__(1)


class SilentRom(Pxelinux):
    """A ROM that starts what it loaded without acknowledging its last block."""

    closes_silently = True


class Lwip(Pxelinux):
    """U-Boot on lwIP: the block before is acknowledged again, any other kills the transfer (its ERROR 5 counts as
    `failed`)."""

    timeout = 10 * S
    failed = False

    def wrong(self, wire: int, now: int) -> list[int]:
        if (wire + 1) & 0xFFFF == self.expected & 0xFFFF:
            return self.say(wire, now)
        self.failed = True
        return []


class Ipxe(Receiver):
    """iPXE: every DATA is acknowledged with its first gap; a block goes where its number seems to say
    (tftp_rx_data: the 64 K that the first gap is in)."""

    timeout = 250 * MS

    def __init__(self, window: int = 1) -> None:
        super().__init__(1)
        self.have: set[int] = set()

    def on_data(self, wire: int, payload: int, last: bool, now: int) -> list[int]:
        block = (self.expected & ~0xFFFF) + wire
        self.have.add(block)
        if block != payload:
            self.wrote.append(-payload)
        while self.expected in self.have:
            self.have.remove(self.expected)
            self.wrote.append(self.expected)
            self.expected += 1
        if last:
            self.done, self.deadline = True, None
            return [(self.expected - 1) & 0xFFFF]
        return self.say(self.expected - 1, now)


class UBoot(Receiver):
    """U-Boot: one NACK per gap, none when block 1 is missing, none for blocks from 32768 (a signed compare); an
    old block is never acknowledged again; its own timer after 5 s."""

    timeout = 5 * S
    repeats_acks = False

    def __init__(self, window: int = 1) -> None:
        super().__init__(window)
        self._nacked = 0

    def wrong(self, wire: int, now: int) -> list[int]:
        had = (self.expected - 1) & 0xFFFF
        signed = wire - 0x10000 if wire >= 0x8000 else wire
        if signed <= had or self._nacked == had:
            return []
        self._nacked = had
        return self.say(had, now)


class OldUBoot(UBoot):
    """U-Boot before that compare: any wrong block, an old one too, brings one NACK."""

    def wrong(self, wire: int, now: int) -> list[int]:
        had = (self.expected - 1) & 0xFFFF
        if self._nacked == had:
            return []
        self._nacked = had
        return self.say(had, now)


def clean(direction: str, number: int) -> tuple[int, ...]:
    return (0,)


def unlucky(fates: dict[tuple[str, int], tuple[int, ...]]) -> Fate:
    return lambda direction, number: fates.get((direction, number), (0,))


def losing(*packets: tuple[str, int]) -> Fate:
    return unlucky(dict.fromkeys(packets, ()))


def lossy(rate: float, seed: int) -> Fate:
    """Everything but the OACK and ACK 0 is lost at that rate."""
    chance = random.Random(seed)
    return lambda direction, number: () if number and chance.random() < rate else (0,)


@dataclass
class Run:
    """One transfer from end to end. `blocks` counts the last, short one."""

    receiver: Receiver
    blocks: int
    fate: Fate = clean
    blksize: int = 512
    oack: bool = True
    rtt: int = RTT
    gap: int = 2 * US
    jitter: float = 0.0
    skip: int = 0
    """Blocks that have travelled without an event before the run."""
    patience: int = 120 * S
    model: TftpModel = field(init=False)
    now: int = field(default=S, init=False)
    sent: list[int] = field(default_factory=list, init=False)
    """Blocks in the order sent, 0 for the OACK, while the receiver wanted any."""
    acks: list[int] = field(default_factory=list, init=False)
    seconds: float = field(default=0.0, init=False)
    """From the OACK until the receiver had everything."""

    def __post_init__(self) -> None:
        size = (self.blocks - 1) * self.blksize + self.blksize // 2
        self.model = TftpModel(
            size, blksize=self.blksize, windowsize=self.receiver.window, oack=self.oack, now=self.now
        )
        self._events: list[tuple[int, int, str, int]] = []
        self._order = 0
        self._numbers = {DOWN: 0, UP: 0}
        self._free = {DOWN: 0, UP: 0}
        self._chance = random.Random(1)
        if self.skip:
            self._fast_forward()

    def _fast_forward(self) -> None:
        while self.model.base <= self.skip:
            out = self.model.send(self.now)
            self.now += self.rtt
            self.model.ack(out[-1] & 0xFFFF, self.now)
        self.skip = self.model.base - 1
        self.receiver.expected = self.skip + 1
        self.receiver.wrote = list(range(1, self.skip + 1))

    def go(self) -> Run:
        start, end = self.now, self.now + self.patience
        self._send()
        while self.model.outcome == "sending" and self.now < end:
            self._step()
            if self.receiver.done and not self.seconds:
                self.seconds = (self.now - start) / S
        return self

    def _step(self) -> None:
        due = [self.model.deadline]
        if self._events:
            due.append(self._events[0][0])
        if self.receiver.deadline is not None:
            due.append(self.receiver.deadline)
        self.now = max(self.now, min(due))
        if self._events and self._events[0][0] <= self.now:
            _, _, direction, block = heapq.heappop(self._events)
            if direction == DOWN:
                self._arrive(block)
            else:
                self.model.ack(block, self.now)
                self._send()
        elif self.receiver.deadline is not None and self.receiver.deadline <= self.now:
            self._answer(self.receiver.on_timer(self.now))
        else:
            self.model.timer(self.now)
            self._send()

    def _arrive(self, block: int) -> None:
        if self.receiver.done:
            return
        if block == 0:
            self._answer(self.receiver.on_oack(self.now))
        else:
            self._answer(self.receiver.on_data(block & 0xFFFF, block, block == self.blocks, self.now))

    def _answer(self, acks: Iterable[int]) -> None:
        for ack in acks:
            self.acks.append(ack)
            self._travel(UP, ack)

    def _send(self) -> None:
        for block in self.model.send(self.now):
            if not self.receiver.done:
                self.sent.append(block)
            self._travel(DOWN, block)

    def _travel(self, direction: str, block: int) -> None:
        number = self._numbers[direction]
        self._numbers[direction] += 1
        leaves = max(self.now, self._free[direction] - self.rtt // 2)
        arrives = leaves + self.rtt // 2 + int(self._chance.random() * self.jitter * self.rtt / 2)
        arrives = max(arrives, self._free[direction])
        self._free[direction] = arrives + self.gap
        for delay in self.fate(direction, number):
            self._order += 1
            heapq.heappush(self._events, (arrives + delay, self._order, direction, block))

    @property
    def repeated(self) -> list[int]:
        """The blocks that went out again while the receiver wanted any, the OACK not counted."""
        seen: set[int] = set()
        again = []
        for block in self.sent:
            if block in seen and block > 0:
                again.append(block)
            seen.add(block)
        return again


def started(window: int = 4, size: int = 1 << 20) -> tuple[TftpModel, int]:
    """Return a transfer whose first window is out, and the time; its round trip is known."""
    model = TftpModel(size, windowsize=window, now=S)
    model.send(S)
    model.ack(0, S + RTT)
    model.send(S + RTT)
    return model, S + RTT

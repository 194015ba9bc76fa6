"""Many transfers over one link, on a virtual clock: a queue before a wire, and receivers behind it."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from tftp_receivers import MS, US, Receiver, S

from fastboot._core import TftpEgress, TftpModel

GIGABIT = 12_304
"""Nanoseconds that a block of 1468 octets takes at 1 Gb/s, with its headers and the gap between frames."""


@dataclass
class Crowd:
    """Transfers that begin at about the same time."""

    receivers: Sequence[Receiver]
    budget: bool = True
    engines: Sequence[int] = (0,)
    """For each of several engines, the first of its clients. Each engine's begin a second after those of the one
    before."""
    block: int = GIGABIT
    room: int = 2800
    """Blocks that the queue holds (4 MB); more are dropped."""
    trip: int = 200 * US
    turnaround: Sequence[int] = ()
    """Of each client, beside the round trip."""
    loss: float = 0.0
    pause: int = 0
    """So long the server hears nothing, as on a busy host,"""
    every: int = 50 * MS
    """again and again."""
    spread: int = 10 * MS
    """Within which they begin."""
    blocks: int = 1 << 20
    """Of each file."""
    seed: int = 1
    now: int = field(default=S, init=False)

    def __post_init__(self) -> None:
        self.egresses = [TftpEgress(len(self.receivers))]
        for _ in self.engines[1:]:
            self.egresses.append(TftpEgress(len(self.receivers), self.egresses[0]))
        self.chance = random.Random(self.seed)
        self.models: dict[int, TftpModel] = {}
        self.numbers: dict[TftpEgress | None, list[int]] = {}
        """Clients in the order that their egress knows them by."""
        self.events: list[tuple[int, int, str, int, int]] = []
        self.order = 0
        self.free = self.now
        """When the wire is free."""
        self.sent, self.dropped, self.repeats = 0, 0, 0
        self.ended: dict[int, int] = {}
        self.watched: dict[int, int] = {}
        """The next deadline that is looked at."""
        self.got = [0] * len(self.receivers)
        for client in range(len(self.receivers)):
            late = S * (bisect_right(self.engines, client) - 1)
            self._at(self.now + late + int(self.chance.random() * self.spread), "begin", client, 0)

    def _at(self, when: int, kind: str, client: int, block: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, kind, client, block))

    def run(self, time: int) -> Crowd:
        """Go on for `time`."""
        end = self.now + time
        while self.events and self.events[0][0] <= end:
            self.now, _, kind, client, block = heapq.heappop(self.events)
            getattr(self, f"_{kind}")(client, block)
        self.now = end
        return self

    def _begin(self, client: int, _: int) -> None:
        window = self.receivers[client].window
        size = (self.blocks - 1) * 1468 + 700
        way = self._way(client) if self.budget else None
        self.models[client] = TftpModel(size, blksize=1468, windowsize=window, now=self.now, egress=way)
        self.numbers.setdefault(way, []).append(client)
        self._send(client)
        self._watch(client)

    def _way(self, client: int) -> TftpEgress:
        return self.egresses[bisect_right(self.engines, client) - 1]

    def _watch(self, client: int) -> None:
        deadline = self.models[client].deadline
        if deadline < self.watched.get(client, deadline + 1):
            self.watched[client] = deadline
            self._at(deadline, "timer", client, 0)

    def _timer(self, client: int, _: int) -> None:
        model = self.models[client]
        if self.watched.get(client) != self.now:
            return
        del self.watched[client]
        if model.outcome == "sending":
            if self.now >= model.deadline:
                model.timer(self.now)
                self._send(client)
            self._watch(client)

    def _ack(self, client: int, block: int) -> None:
        if self.models[client].outcome == "sending":
            self.models[client].ack(block, self.now)
            self._send(client)
            self._watch(client)

    def _silence(self, client: int, _: int) -> None:
        receiver = self.receivers[client]
        if receiver.deadline is not None and receiver.deadline <= self.now:
            self._answer(client, receiver.on_timer(self.now))

    def _data(self, client: int, block: int) -> None:
        receiver = self.receivers[client]
        if receiver.done:
            return
        if block == 0:
            self._answer(client, receiver.on_oack(self.now))
            return
        expected = receiver.expected
        acks = receiver.on_data(block & 0xFFFF, block, block == self.blocks, self.now)
        self.got[client] += receiver.expected - expected
        receiver.wrote.clear()
        if receiver.done:
            self.ended[client] = self.now
        self._answer(client, acks)

    def _answer(self, client: int, acks: Sequence[int]) -> None:
        for ack in acks:
            if ack and self.chance.random() < self.loss:
                continue
            wait = self.turnaround[client] if self.turnaround else 0
            self._at(self._heard(self.now + self.trip // 2 + wait), "ack", client, ack)
        deadline = self.receivers[client].deadline
        if deadline is not None and acks:
            self._at(deadline, "silence", client, 0)

    def _heard(self, when: int) -> int:
        into = when % self.every
        return when if into > self.pause else when - into + self.pause

    def _send(self, client: int) -> None:
        if not self.budget:
            self._put(client)
            return
        way = self._way(client)
        while (turn := way.turn(self.now)) is not None:
            self._put(self.numbers[way][turn])

    def _put(self, client: int) -> None:
        model = self.models[client]
        before = model.repeats
        for block in model.send(self.now):
            self.sent += 1
            queued = self.free - self.now
            if queued > self.room * self.block:
                self.dropped += 1
                continue
            self.free = max(self.free, self.now) + (self.block if block else self.block // 10)  # the OACK is short
            if block and self.chance.random() < self.loss:
                continue
            self._at(self.free + self.trip // 2, "data", client, block)
        self.repeats += model.repeats - before

    @property
    def queue(self) -> int:
        return max(0, self.free - self.now)

    def measure(self, time: int) -> Share:
        """Go on for `time`, and see what the link carried meanwhile."""
        got, sent, repeats = list(self.got), self.sent, self.repeats
        self.run(time)
        each = [now - before for before, now in zip(got, self.got, strict=True)]
        return Share(sum(each) * self.block / time, (self.repeats - repeats) / (self.sent - sent), each)


@dataclass(frozen=True)
class Share:
    """What a link carried: of what it could, of it twice, and in blocks for each client."""

    carried: float
    repeated: float
    each: list[int]

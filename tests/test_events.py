"""Events on their way: nobody loses one that was not counted, and what nobody reads is never made."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from io import StringIO

from fastboot.model import Event
from fastboot.watch.events import Backlog, Events, Hub
from fastboot.watch.log import EventLog
from fastboot.watch.storm import LINES, SPAN
from tests.dhcpkit import DISCOVER, REQUEST, Office, asking, message


class Storm:
    """A batch that counts what is read of it; every `rare`-th event is of another kind."""

    def __init__(self, size: int, first: int = 0, *, rare: int = 0) -> None:
        self.size, self.first, self.rare = size, first, rare
        self.made: list[int] = []

    def __len__(self) -> int:
        return self.size

    def kind(self, at: int) -> str:
        return "dhcp.nak" if self.rare and (at + 1) % self.rare == 0 else "dhcp.ack"

    def kinds(self) -> Mapping[str, int]:
        rare = self.size // self.rare if self.rare else 0
        return {"dhcp.ack": self.size - rare, **({"dhcp.nak": rare} if rare else {})}

    def __getitem__(self, at: int) -> Event:
        self.made.append(self.first + at)
        return Event(self.first + at, self.kind(at))


def one(number: int) -> Events:
    return Events((Event(number, "test.event"),))


def times(backlog: Backlog) -> list[float]:
    return [event.time for event in backlog]


def test_a_backlog_drops_the_oldest_within_a_batch_too() -> None:
    backlog = Backlog(4)
    assert [backlog.put(one(0)), backlog.put(Storm(3, 1))] == [0, 0]
    assert (len(backlog), times(backlog)) == (4, [0, 1, 2, 3])
    assert backlog.put(one(4)) == 1 and times(backlog) == [1, 2, 3, 4]
    assert backlog.put(one(5)) == 1 and times(backlog) == [2, 3, 4, 5]
    assert backlog.pop().time == 2
    assert backlog.put(Storm(10, 6)) == 9 and times(backlog) == [12, 13, 14, 15]
    (batch,) = backlog.take()
    assert (len(batch), batch[0].time, batch.kind(3), dict(batch.kinds())) == (4, 12, "dhcp.ack", {"dhcp.ack": 4})
    assert len(backlog) == 0 and times(backlog) == []


def test_events_that_come_one_by_one_are_taken_together() -> None:
    backlog, given = Backlog(1000), Events((Event(0, "test.event"),))
    backlog.put(given)
    for number in range(1, 600):
        assert backlog.add(Event(number, "test.event")) == 0
    assert times(backlog) == list(range(600))
    taken = backlog.take()
    assert len(given) == 1 and len(taken) < 5 and sum(map(len, taken)) == 600
    backlog.add(Event(600, "test.event"))
    assert sum(map(len, taken)) == 600 and times(backlog) == [600]


def test_a_full_backlog_lets_go_of_what_it_dropped() -> None:
    backlog = Backlog(4)
    events = [Event(number, "test.event") for number in range(10_000)]
    assert sum(map(backlog.add, events)) == 9_996
    assert times(backlog) == [9_996, 9_997, 9_998, 9_999]
    held = [sys.getrefcount(event) for event in [*events, Event(0, "test.event")]]
    assert sum(count > held[-1] + 1 for count in held) < 1000
    assert backlog.put(one(10_000)) == 1 and backlog.add(events[0]) == 1
    assert times(backlog) == [9_998, 9_999, 10_000, 0]


async def test_what_nobody_reads_is_not_made() -> None:
    hub = Hub(replay=5)
    watcher = hub.subscribe(limit=100)
    storm = Storm(500)
    hub.emit_all(storm)
    assert (hub.counts["dhcp.ack"], hub.dropped, watcher.dropped, storm.made) == (500, 400, 400, [])
    late = hub.subscribe(replay=True)
    assert storm.made == [495, 496, 497, 498, 499]
    storm.made.clear()
    assert (await anext(watcher)).time == 400 and storm.made == [400]
    hub.close()
    assert [event.time async for event in late] == [495, 496, 497, 498, 499]
    assert [event.time for event in watcher.take()] == list(range(401, 500))
    assert [event async for event in watcher] == []


async def test_batches_wait_for_events_and_for_the_end() -> None:
    hub = Hub()
    events = hub.subscribe()
    assert await events.batches(0.01) == [] and not events.ended
    waiting = asyncio.create_task(events.batches(10))
    await asyncio.sleep(0)
    hub.emit_all(storm := Storm(3))
    assert await waiting == [storm]
    hub.emit(Event(1, "test.event"))
    hub.close()
    assert not events.ended
    assert [batch[0].time for batch in await events.batches(10)] == [1]
    assert events.ended and await events.batches(10) == []


def logged(stream: StringIO) -> list[tuple[str, int | None]]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    stream.truncate(0)
    stream.seek(0)
    return [(line.get("kind", line["event"]), line.get("events")) for line in lines]


def test_of_a_storm_the_log_writes_the_first_of_each_kind_and_counts_the_rest() -> None:
    stream, clock = StringIO(), [0.0]
    log = EventLog(stream, format="json", clock=lambda: clock[0])
    storm = Storm(3 * LINES, rare=1000)
    log.write_some([Storm(LINES - 1), storm])
    lines = logged(stream)
    assert lines.count(("ack", None)) == LINES and lines.count(("nak", None)) == 3, "the rare ones are all there"
    assert sorted(storm.made) == [0, 999, 1999, 2999], "no other event was made"
    log.write_some([Storm(5)])
    assert logged(stream) == []
    clock[0] = SPAN
    log.write_some([])
    assert logged(stream) == [("dhcp.ack", 3 * LINES - 3 - 1 + 5)]
    log.write_some([Storm(5)])
    assert logged(stream) == [("ack", None)] * 5, "a new span"
    log.write_some([Storm(LINES)])
    log.write_some([], end=True)
    assert logged(stream)[-1] == ("dhcp.ack", 5), "told at the end too"


def test_what_the_level_hides_is_neither_made_nor_counted() -> None:
    stream = StringIO()
    log = EventLog(stream, format="json", level="warning", clock=lambda: 0.0)
    storm = Storm(2 * LINES, rare=1000)
    log.write_some([storm], end=True)
    assert logged(stream) == [("nak", None)] * 2
    assert storm.made == [999, 1999]


def test_facts_are_taken_once_in_their_order() -> None:
    office = Office(disk=False)
    for number in range(100):
        mac = f"52:54:00:00:00:{number:02x}"
        (offer,) = office.send(message(DISCOVER, mac))
        office.send(message(REQUEST, mac, options=asking(offer.address, offer.source)))
    office.commit()
    office.send(message(REQUEST, options=asking("10.77.0.7", "192.0.2.1")))
    facts = office.responder.events()
    assert len(facts) == 202
    assert facts.kinds() == {"offer": 100, "ack": 100, "other_server": 1, "unanswered": 1}
    assert (facts.kind(0), facts[0][1].hex(":"), facts.kind(201)) == ("offer", "52:54:00:00:00:00", "other_server")
    assert [fact[0] for fact in facts] == ["offer"] * 100 + ["ack"] * 100 + ["unanswered", "other_server"]
    ((kind, _, _, _, _, server, _),) = facts.take("other_server")
    assert (kind, server) == ("other_server", 0xC0000201)
    assert facts.kinds() == {"offer": 100, "ack": 100, "unanswered": 1} and len(facts) == 201
    assert facts.take("other_server") == []
    assert len(office.responder.events()) == 0

"""Events on their way to whoever watches: the log, the control socket, an embedding program."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from fastboot.model import Event

REPLAY = 1000
"""Events kept for a late watcher: about 100 machine boots."""
QUEUE = 65536
"""Events that one watcher may be behind. A storm of 1,000 machines emits about 10,000 in its first seconds."""


GATHERED = 256
"""Events that came one by one and are a batch for who takes them: what is done for a batch is done for so many."""


class Batch(Protocol):
    """Events that happened together. Each is made when somebody reads it: nobody reads all of a storm."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> Event: ...
    def kind(self, at: int, /) -> str: ...
    def kinds(self) -> Mapping[str, int]:
        """Return how many there are of each kind."""


class Events(list[Event]):
    """A batch of events that are made already."""

    def kind(self, at: int) -> str:
        return self[at].kind

    def kinds(self) -> Mapping[str, int]:
        return Counter(event.kind for event in self)


class Rest:
    """What is left of a batch, from one of its events on."""

    def __init__(self, batch: Batch, first: int) -> None:
        self._batch, self._first = batch, first

    def __len__(self) -> int:
        return len(self._batch) - self._first

    def __getitem__(self, at: int) -> Event:
        return self._batch[self._first + at]

    def kind(self, at: int) -> str:
        return self._batch.kind(self._first + at)

    def kinds(self) -> Mapping[str, int]:
        return Counter(self.kind(at) for at in range(len(self)))


class Changed:
    """A batch of which each event is changed when it is made."""

    def __init__(self, batch: Batch, change: Callable[[Event], Event]) -> None:
        self._batch, self._change = batch, change
        self.kind, self.kinds = batch.kind, batch.kinds

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, at: int) -> Event:
        return self._change(self._batch[at])


def emit_each(emit: Callable[[Event], None], batch: Batch) -> None:
    """Give each event of a batch to one who takes them one by one."""
    for at in range(len(batch)):
        emit(batch[at])


class Backlog:
    """The newest events, `limit` at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: deque[Batch] = deque()
        self._open: Events | None = None
        """The last batch, where it is of our making."""
        self._passed = 0
        """Events of the first batch that are not in here any more."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Event]:
        first = self._passed
        for batch in self._batches:
            for at in range(first, len(batch)):
                yield batch[at]
            first = 0

    def add(self, event: Event) -> int:
        """Add an event. Returns how many older ones were dropped for it."""
        if self._open is not None and len(self._open) < GATHERED:
            self._open.append(event)
        else:
            self._open = Events((event,))
            self._batches.append(self._open)
        self._count += 1
        if self._count <= self._limit:
            return 0
        self._pass(1)
        return 1

    def put(self, batch: Batch) -> int:
        """Add events. Returns how many older ones were dropped for them."""
        self._open = None
        self._batches.append(batch)
        self._count += len(batch)
        dropped = max(0, self._count - self._limit)
        while self._count > self._limit:
            self._pass(min(self._count - self._limit, len(self._batches[0]) - self._passed))
        return dropped

    def pop(self) -> Event:
        """Take the oldest event. Raises IndexError where there is none."""
        event = self._batches[0][self._passed]
        self._pass(1)
        return event

    def take(self) -> list[Batch]:
        """Take all events."""
        batches = list(self._batches)
        if self._passed:
            batches[0] = Rest(batches[0], self._passed)
        self._batches.clear()
        self._open = None
        self._passed = self._count = 0
        return batches

    def _pass(self, count: int) -> None:
        self._passed += count
        self._count -= count
        if self._passed == len(self._batches[0]):
            self._batches.popleft()
            self._passed = 0
            if not self._batches:
                self._open = None


class Listener(Protocol):
    """Who is given every event at once; both say how many older ones they dropped for it."""

    def add(self, event: Event) -> int: ...
    def put(self, batch: Batch) -> int: ...
    def close(self) -> None: ...


class Hub:
    """Gives every event to every subscriber. Belongs to the loop thread; never blocks whoever emits."""

    def __init__(self, replay: int = REPLAY) -> None:
        self.counts: Counter[str] = Counter()
        """How many events of each kind there were."""
        self.dropped = 0
        """Events that some subscriber was too slow to take."""
        self._recent = Backlog(replay)
        self._listeners: set[Listener] = set()
        self._closed = False

    def emit(self, event: Event) -> None:
        self.counts[event.kind] += 1
        self._recent.add(event)
        for listener in self._listeners:
            self.dropped += listener.add(event)

    def emit_all(self, batch: Batch) -> None:
        self.counts.update(batch.kinds())
        self._recent.put(batch)
        for listener in self._listeners:
            self.dropped += listener.put(batch)

    def attach(self, listener: Listener) -> None:
        """Give a listener every event from now on, until the hub closes."""
        self._listeners.add(listener)

    def subscribe(self, *, replay: bool = False, limit: int = QUEUE) -> Subscription:
        """Return an async iterator over the events from now on, the recent ones first if `replay`.

        At most `limit` events wait in it; the oldest is dropped for a new one and counted in its `dropped`.
        """
        subscription = Subscription(limit, self._listeners.discard)
        for event in self._recent if replay else ():
            subscription.add(event)
        if self._closed:
            subscription.close()
        else:
            self._listeners.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription after the events that it holds."""
        self._closed = True
        for listener in tuple(self._listeners):
            listener.close()


class Subscription:
    """An async iterator over events, for one task. Ends when the hub closes or `close` is called."""

    def __init__(self, limit: int, leave: Callable[[Subscription], None]) -> None:
        self.dropped = 0
        self._events = Backlog(limit)
        self._leave = leave
        self._closed = False
        self._wake = asyncio.Event()

    def add(self, event: Event) -> int:
        """Queue an event. Returns how many older ones were dropped for it."""
        dropped = self._events.add(event)
        self.dropped += dropped
        self._wake.set()
        return dropped

    def put(self, batch: Batch) -> int:
        """Queue events. Returns how many older ones were dropped for them."""
        dropped = self._events.put(batch)
        self.dropped += dropped
        self._wake.set()
        return dropped

    def take(self) -> list[Event]:
        """Return what waits, without waiting."""
        events = list(self._events)
        self._events.take()
        return events

    async def batches(self, seconds: float) -> list[Batch]:
        """Wait for events, at most so long, and return all that wait; none of them is made yet."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._some()
        return self._events.take()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self._closed and not self._events

    def close(self) -> None:
        self._closed = True
        self._leave(self)
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        await self._some()
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop()

    async def _some(self) -> None:
        while not self._events and not self._closed:
            self._wake.clear()
            await self._wake.wait()

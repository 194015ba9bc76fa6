"""Events on their way to whoever watches: the log, the control socket, an embedding program."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from fastboot.model import Event

REPLAY = 1000
"""Events kept for a late watcher: about 100 machine boots."""
QUEUE = 65536
"""Events that one watcher may be behind. A storm of 1,000 machines emits about 10,000 in its first seconds."""


class Hub:
    """Gives every event to every subscriber. Belongs to the loop thread; never blocks whoever emits."""

    def __init__(self, replay: int = REPLAY) -> None:
        self.counts: Counter[str] = Counter()
        """How many events of each kind there were."""
        self.dropped = 0
        """Events that some subscriber was too slow to take."""
        self._recent: deque[Event] = deque(maxlen=replay)
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def emit(self, event: Event) -> None:
        self.counts[event.kind] += 1
        self._recent.append(event)
        for subscription in self._subscriptions:
            self.dropped += subscription.put(event)

    def subscribe(self, *, replay: bool = False, limit: int = QUEUE) -> Subscription:
        """Return an async iterator over the events from now on, the recent ones first if `replay`.

        At most `limit` events wait in it; the oldest is dropped for a new one and counted in its `dropped`.
        """
        subscription = Subscription(limit, self._subscriptions.discard)
        if replay:
            for event in self._recent:
                subscription.put(event)
        if self._closed:
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription after the events that it holds."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription.close()


class Subscription:
    """An async iterator over events, for one task. Ends when the hub closes or `close` is called."""

    def __init__(self, limit: int, leave: Callable[[Subscription], None]) -> None:
        self.dropped = 0
        self._events: deque[Event] = deque(maxlen=limit)
        self._leave = leave
        self._closed = False
        self._wake = asyncio.Event()

    def put(self, event: Event) -> bool:
        """Queue an event. Returns whether an older one was dropped for it."""
        full = len(self._events) == self._events.maxlen
        self.dropped += full
        self._events.append(event)
        self._wake.set()
        return full

    def take(self) -> list[Event]:
        """Return what waits, without waiting."""
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        self._closed = True
        self._leave(self)
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()

"""The way of leases to the disk and back: no acknowledgement leaves before its row is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from fastboot._core import Responder
from fastboot.model import Event, FastbootError
from fastboot.state.rows import LeaseRow
from fastboot.state.store import Store

log = structlog.get_logger(component="dhcp")

TELL_EVERY = 10.0
"""Seconds between two events of one outage."""
STALLED_AFTER = 5.0
"""Seconds that a commit may take before it is told. Clients ask again after 4 (RFC 2131 section 4.1)."""


class Commits:
    """Takes the responder's rows to the store, one batch at a time: while one is written the next one gathers.

    `step` is called when a batch is on disk, or failed to get there. Belongs to the loop's thread.
    """

    def __init__(
        self, responder: Responder, store: Store, emit: Callable[[Event], None], step: Callable[[], None]
    ) -> None:
        self._responder, self._store = responder, store
        self._emit, self._step = emit, step
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._since = 0.0
        """When the batch in flight was submitted."""
        self._stalled = False
        self._failed = 0
        """Batches that failed since one last got to the disk."""
        self._failing_since = self._told = 0.0

    def load(self) -> bool:
        """Give the store's leases to the responder; tell what was damaged, and return whether anything was."""
        for text in self._store.damage:
            self._tell("store.damaged", text=text)
        rows = self._store.rows()
        if outside := self._responder.load(rows, self._store.clock.now(), self._store.last):
            log.info(
                "dhcp.leases_outside", count=outside, text="leases of no configured subnet are kept, not served"
            )
        return bool(self._store.damage)

    def submit(self) -> None:
        """Begin the next commit where one is due and none under way."""
        batch = self._responder.batch(self._store.clock.boot)
        if batch is not None:
            number, rows = batch
            self._idle.clear()
            self._since, self._stalled = time.monotonic(), False
            self._store.keep_leases(number, rows, partial(self._durable, number))
        elif not self._responder.committing:
            self._idle.set()
        elif not self._stalled and time.monotonic() - self._since > STALLED_AFTER:
            self._stalled = True
            self._tell("dhcp.commit_stalled", text="the disk does not answer; until it does, no lease is given")

    async def adopt(self, rows: list[LeaseRow]) -> list[int]:
        """Take leases of another server, all in one commit; return the addresses that are not free.

        Raises FastbootError where they can not be written; then none is taken.
        """
        number, taken = self._responder.adopt(rows, self._store.clock.now())
        if len(taken) < len(rows):
            # Shared where another import is in the same batch, and no waiter's to cancel.
            waiting = self._waiting.setdefault(number, asyncio.get_running_loop().create_future())
            self._step()
            await asyncio.shield(waiting)
        return taken

    async def settle(self) -> None:
        """Wait until no row waits for the disk."""
        await self._idle.wait()

    def _durable(self, number: int, fault: Exception | None) -> None:
        self._responder.durable(number, fault is None, self._store.clock.now())
        if waiting := self._waiting.pop(number, None):
            if fault is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(FastbootError(f"the leases can not be written: {fault}"))
        if fault is not None:
            self._fail(fault)
        elif self._failed:
            seconds = round(time.monotonic() - self._failing_since, 1)
            self._tell(
                "dhcp.commit_restored", commits=self._failed, seconds=seconds, text="leases are given again"
            )
            self._failed = 0
        self._step()

    def _fail(self, fault: Exception) -> None:
        now = time.monotonic()
        self._failed += 1
        if self._failed == 1:
            self._failing_since = now
        elif now - self._told < TELL_EVERY:
            return
        self._told = now
        text = f"leases can not be written, so none is given: {fault}"
        self._tell("dhcp.commit_failed", commits=self._failed, text=text)

    def _tell(self, kind: str, **details: object) -> None:
        self._emit(Event(time.time(), kind, details=details))

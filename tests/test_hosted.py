"""pyftpdlib's loop inside asyncio's."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
import uvloop

from fastboot.services.hosted import HostedLoop


class Channel:
    """What the loop calls; closes and opens others when it is read."""

    _closed = False

    def __init__(self, loop: HostedLoop, sock: socket.socket, then: Any = None) -> None:
        self.sock, self.then, self.calls = sock, then, 0
        self._fileno = sock.fileno()
        loop.register(sock.fileno(), self, loop.READ)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self.calls += 1
        self.sock.recv(100)
        if self.then:
            self.then()

    def handle_error(self) -> None:
        self.calls += 100

    def close(self) -> None:
        self.sock.close()


def test_event_of_a_descriptor_that_was_given_out_again() -> None:
    async def test() -> None:
        loop = HostedLoop(asyncio.get_running_loop())
        (mine, far), (old, old_far), (new, new_far) = (socket.socketpair() for _ in range(3))
        born: list[Channel] = []

        def reuse() -> None:
            number = old.fileno()
            loop.unregister(number)
            old.close()
            fresh = socket.socket(fileno=os.dup2(new.fileno(), number))
            fresh.setblocking(False)
            born.append(Channel(loop, fresh))

        first = Channel(loop, mine, reuse)
        Channel(loop, old)
        far.send(b"x")
        old_far.send(b"stale")
        await asyncio.sleep(0.05)
        assert first.calls == 1
        assert born[0].calls == 0, "the event was the old channel's"
        new_far.send(b"x")
        await asyncio.sleep(0.05)
        assert born[0].calls == 1
        loop.close()
        for sock in (far, old_far, new, new_far):
            sock.close()

    uvloop.run(test())


def test_one_channel_that_fails_does_not_stop_the_others() -> None:
    async def test() -> None:
        loop = HostedLoop(asyncio.get_running_loop())
        (bad, bad_far), (good, good_far) = socket.socketpair(), socket.socketpair()

        def fail() -> None:
            raise ZeroDivisionError

        failing, working = Channel(loop, bad, fail), Channel(loop, good)
        bad_far.send(b"x")
        good_far.send(b"x")
        await asyncio.sleep(0.05)
        assert (failing.calls, working.calls) == (101, 1)
        loop.close()
        for sock in (bad_far, good_far):
            sock.close()

    uvloop.run(test())


@pytest.mark.alone
def test_timers() -> None:
    async def test() -> None:
        host = asyncio.get_running_loop()
        loop = HostedLoop(host)
        rung: list[tuple[str, float]] = []
        started = host.time()
        loop.call_later(0.2, lambda: rung.append(("late", host.time() - started)))
        loop.call_later(0.05, lambda: rung.append(("early", host.time() - started)))
        loop.call_later(0.1, lambda: rung.append(("never", 0))).cancel()
        every = loop.call_every(0.06, lambda: rung.append(("every", 0)))
        await asyncio.sleep(0.3)
        every.cancel()
        names = [name for name, _ in rung]
        assert names[0] == "early" and names.count("every") in (3, 4, 5) and "never" not in names
        times = {name: when for name, when in rung if when}
        assert 0.04 < times["early"] < 0.15 and 0.19 < times["late"] < 0.3
        turns = []
        loop.call_later(0.0001, lambda: [turns.append(1), loop.call_later(0, lambda: turns.append(2))])
        await asyncio.sleep(0.05)
        assert turns == [1, 2]
        loop.close()
        loop.close()

    uvloop.run(test())

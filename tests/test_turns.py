"""Work that comes in a burst is done in turns of the loop."""

from __future__ import annotations

import asyncio

from fastboot.services.turns import Turns


async def test_a_burst_lets_the_loop_go_on_in_between() -> None:
    turns = Turns(each=3)
    begun: list[int] = []
    at_turn: list[int] = []

    async def work(number: int) -> None:
        await turns.wait()
        begun.append(number)

    working = [asyncio.create_task(work(number)) for number in range(20)]
    while not all(each.done() for each in working):
        await asyncio.sleep(0)
        at_turn.append(len(begun))
    assert begun == list(range(20))
    assert all(after - before <= 3 for before, after in zip([0, *at_turn], at_turn, strict=False))


async def test_alone_nothing_waits() -> None:
    turns = Turns(each=2)
    for _ in range(3):
        done: list[int] = []
        turns.run(lambda done=done: done.append(1))  # type: ignore[misc]
        assert done == [1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_who_leaves_holds_up_nobody() -> None:
    turns = Turns(each=1)
    waiting = [asyncio.create_task(turns.wait()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting, return_exceptions=True)
    assert [each.cancelled() for each in waiting] == [False, False, True, False]

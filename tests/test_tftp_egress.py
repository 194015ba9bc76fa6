"""The budget of an egress and the turns of its transfers: many transfers over one link, on a virtual clock."""

from __future__ import annotations

from statistics import mean, median

import pytest
from tftp_link import GIGABIT, Crowd
from tftp_receivers import MS, US, Edk2, Pxelinux, Receiver, S

from fastboot._core import TftpEgress, TftpModel

PORT = 340
"""Blocks that an ordinary switch holds for one port: 512 KB."""


class Gone(Edk2):
    """A machine that is switched off when it has a few blocks."""

    def on_data(self, wire: int, payload: int, last: bool, now: int) -> list[int]:
        return super().on_data(wire, payload, last, now) if self.expected < 2 * self.window else []


def crowd(clients: int, window: int) -> list[Receiver]:
    return [Pxelinux() if window == 1 else Edk2(window) for _ in range(clients)]


MIXES = pytest.mark.parametrize(("clients", "window"), [(300, 4), (500, 1), (100, 16), (100, 64)])


@MIXES
@pytest.mark.parametrize(("room", "pause"), [(PORT, 0), (PORT, 2 * MS), (2800, 4 * MS)])
def test_a_full_link_carries_every_block_once(clients: int, window: int, room: int, pause: int) -> None:
    """DESIGN section 9: 95 % of the link, 2 % of blocks twice; here with a host that hears nothing for a while."""
    link = Crowd(crowd(clients, window), room=room, pause=pause).run(100 * MS)
    share = link.measure(300 * MS)
    assert share.carried >= 0.97
    assert share.repeated <= 0.02
    assert min(share.each) >= mean(share.each) / 8
    assert link.queue <= 5 * MS


@MIXES
def test_without_a_budget_it_does_not(clients: int, window: int) -> None:
    """What the budget is for: the same crowd with its timers alone."""
    share = Crowd(crowd(clients, window), budget=False, room=PORT).run(100 * MS).measure(300 * MS)
    assert min(share.each) <= mean(share.each) / 20
    assert share.repeated >= (0.02 if window == 1 else 0.15)


@MIXES
@pytest.mark.parametrize("speed", [1, 10])
@pytest.mark.parametrize("pause", [15 * MS, 60 * MS])
def test_after_a_pause_it_goes_on_as_before(clients: int, window: int, speed: int, pause: int) -> None:
    """Of a busy host or of a switch: all timers fire, and what they repeat may not make the next repeats."""
    every = 400 * MS
    link = Crowd(
        crowd(clients, window), block=GIGABIT // speed, room=2800 * speed, pause=pause, every=every, blocks=1 << 22
    )
    share = link.run(100 * MS).measure(every)
    assert share.carried >= 1 - pause / every - 0.03
    assert share.repeated <= 0.1


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize(
    "clients",
    [
        {"trip": 100 * US},
        {"trip": 20 * MS},
        {"turnaround": [5 * MS] * 100},
        {"turnaround": [0, MS, 5 * MS, 9 * MS] * 25},
    ],
    ids=["near", "far", "slow", "mixed"],
)
def test_where_nothing_queues_nobody_is_held(window: int, clients: dict[str, object]) -> None:
    """However long the clients take: only what they wait for beyond that is a queue."""
    settings = {"block": GIGABIT // 10, **clients}
    free = Crowd(crowd(100, window), budget=False, **settings).run(100 * MS).measure(60 * MS)
    held = Crowd(crowd(100, window), **settings).run(100 * MS).measure(60 * MS)
    assert held.carried >= 0.97 * free.carried


def test_it_takes_no_time_to_fill_a_link() -> None:
    """The budget begins at 64 blocks, 77 us of 10 Gb/s."""
    share = Crowd(crowd(100, 16), block=GIGABIT // 10, spread=MS).measure(20 * MS)
    assert share.carried >= 0.9


def test_the_queue_does_not_grow_with_every_file() -> None:
    """A transfer that begins behind the queue of others does not take that for its client's round trip."""
    link = Crowd(crowd(400, 4), spread=1900 * MS, room=2800).run(2000 * MS)
    assert link.queue <= 4 * MS
    assert link.measure(100 * MS).carried >= 0.97


def test_machines_that_are_switched_off_hold_back_nobody() -> None:
    """What they do not acknowledge is soon no longer counted; their repeats take little."""
    link = Crowd([Gone(16) for _ in range(100)] + crowd(20, 4), room=2800, spread=MS).run(800 * MS)
    share = link.measure(500 * MS)
    assert sum(share.each[100:]) * GIGABIT / (500 * MS) >= 0.8
    assert min(share.each[100:]) >= 0.8 * mean(share.each[100:])


# --- loss ---


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("kind", [Edk2, Receiver])
def test_one_percent_loss_stalls_nobody(window: int, kind: type[Receiver]) -> None:
    """DESIGN section 9: 50 clients, 1 % of blocks and acknowledgements after ACK 0 lost."""
    times = []
    for loss in (0.0, 0.01):
        link = Crowd([kind(window) for _ in range(50)], blocks=500, loss=loss).run(10 * S)
        times.append(sorted(end - S for end in link.ended.values()))
        assert len(times[-1]) == 50
    assert median(times[1]) <= 3 * median(times[0])
    assert times[1][-1] <= 10 * times[0][-1]


# --- turns ---


def test_a_lockstep_client_keeps_its_pace() -> None:
    """Beside a hundred of window 64, whose windows in turn would let it send a block every 79 ms."""
    link = Crowd([*crowd(100, 64), *crowd(1, 1)], room=2800).run(100 * MS)
    share = link.measure(400 * MS)
    assert share.each[-1] >= 400 / 6, "a round trip and the queue that the budget allows"
    assert share.carried >= 0.97


def test_every_window_gets_the_same() -> None:
    """Where the link is too small for all, each client has its part, whatever its window."""
    link = Crowd([*crowd(60, 4), *crowd(60, 16), *crowd(60, 64)], room=2800).run(200 * MS)
    share = link.measure(S)
    groups = [share.each[:60], share.each[60:120], share.each[120:]]
    fair = S / GIGABIT / 180
    assert all(0.75 * fair <= mean(group) <= 1.4 * fair for group in groups), [mean(group) for group in groups]


@pytest.mark.parametrize("late", [10, 100])
def test_engines_share_by_their_transfers(late: int) -> None:
    """An engine whose clients come when the link is full already gets its part."""
    link = Crowd(crowd(200 + late, 4), engines=(0, 200)).run(1200 * MS)
    share = link.measure(300 * MS)
    assert share.carried >= 0.97
    assert share.repeated <= 0.02
    assert mean(share.each[200:]) >= 0.6 * mean(share.each[:200])


def test_an_egress_has_room_for_so_many() -> None:
    with pytest.raises(ValueError, match="more transfers"):
        TftpModel(1, egress=TftpEgress(0))
    assert TftpEgress(1).turn(S) is None

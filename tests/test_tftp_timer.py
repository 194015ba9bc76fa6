"""The TFTP sender's timer, on a virtual clock: when it fires, what it repeats, and when a client is given up."""

from __future__ import annotations

import pytest
from tftp_receivers import MS, RTT, US, Edk2, Receiver, Run, S, lossy, started

from fastboot._core import TftpModel

# --- time ---


def deadline_after(model: TftpModel, sent: int) -> int:
    return model.deadline - sent


def test_the_timer_follows_the_round_trip() -> None:
    """SRTT + 4 RTTVAR, never under 5 ms (RFC 6298 section 2)."""
    model = TftpModel(1 << 20, now=S)
    model.send(S)
    assert deadline_after(model, S) == 250 * MS
    now = S + 20 * MS
    model.ack(0, now)
    assert model.srtt == 20 * MS
    model.send(now)
    assert deadline_after(model, now) == 60 * MS  # 20 + 4 * 10
    for _ in range(200):
        now += 20 * MS
        model.ack(model.base & 0xFFFF, now)
        model.send(now)
    assert 20 * MS <= deadline_after(model, now) < 21 * MS
    for _ in range(200):
        now += 100 * US
        model.ack(model.base & 0xFFFF, now)
        model.send(now)
    assert deadline_after(model, now) == 5 * MS


def test_a_repeated_block_gives_no_round_trip() -> None:
    """Karn: its ACK may belong to either copy."""
    model, _ = started(window=1)
    known = model.srtt
    late = model.deadline
    model.timer(late)
    assert list(model.send(late)) == [1]
    model.ack(1, late + 3 * S)
    assert model.srtt == known
    model.send(late + 3 * S)
    model.ack(2, late + 3 * S + 2 * RTT)
    assert model.srtt > known


def test_the_timer_backs_off_to_four_seconds_and_back() -> None:
    model, now = started(window=1)
    waits = []
    for _ in range(14):
        waits.append(model.deadline - now)
        now = model.deadline
        model.timer(now)
        assert list(model.send(now)) == [1]
    assert waits == [min(5 * MS * 2**n, 4 * S) for n in range(14)]
    model.ack(1, now + RTT)
    model.send(now + RTT)
    assert model.deadline - (now + RTT) == 4 * S  # no round trip seen yet
    model.ack(2, now + 2 * RTT)
    model.send(now + 2 * RTT)
    assert model.deadline - (now + 2 * RTT) == 5 * MS


@pytest.mark.parametrize(("kind", "window", "speed"), [(Edk2, 64, 9), (Receiver, 16, 2), (Receiver, 64, 1.5)])
def test_loss_that_goes_on_leaves_no_long_silences(kind: type[Receiver], window: int, speed: float) -> None:
    """2 %: most windows hold repeats and show no round trip; the timer may not go to seconds for that (Karn)."""
    for seed in range(4):
        run = Run(kind(window), 2000, fate=lossy(0.02, seed), blksize=1468, jitter=0.2).go()
        assert run.receiver.intact
        assert 2000 * 1468 / run.seconds / 1e6 > speed


def test_the_timer_does_nothing_early() -> None:
    model, now = started(window=4)
    model.timer(model.deadline - 1)
    assert list(model.send(now + RTT)) == []


def silence(model: TftpModel, now: int) -> tuple[float, list[int]]:
    """Let a transfer run out of patience; return the seconds that took and what was sent."""
    start, sent = now, list[int]()
    while model.outcome == "sending":
        now = model.deadline
        model.timer(now)
        sent += model.send(now)
    return (now - start) / S, sent


def test_patience_with_an_address_that_never_answered() -> None:
    model = TftpModel(1 << 20, windowsize=16, now=S)
    model.send(S)
    seconds, sent = silence(model, S)
    assert model.outcome == "silent"
    assert 10 <= seconds < 15
    assert set(sent) == {0}
    assert len(sent) <= 8  # amplification


def test_what_an_address_that_never_answered_gets_without_options() -> None:
    """No more than its first block of 512 octets, a few times."""
    model = TftpModel(1 << 20, oack=False, now=S)
    assert list(model.send(S)) == [1]
    _, sent = silence(model, S)
    assert set(sent) == {1}
    assert len(sent) <= 8


def test_what_an_address_that_only_acknowledged_the_options_gets() -> None:
    """Anybody can send that ACK 0 for another where our port is known; a client that is silent after one block and
    two windows more gets a small one, and says what it has."""
    model = TftpModel(1 << 20, windowsize=64, now=S)
    model.send(S)
    model.ack(0, S + RTT)
    sent = list(model.send(S + RTT))
    _, repeats = silence(model, S + RTT)
    assert repeats[0] == 1
    assert sent == list(range(1, 65)) == repeats[1:65] == repeats[65:129]
    assert set(repeats[129:]) == {1, 2, 3, 4} and len(repeats[129:]) < 100


def test_who_comes_back_after_that_gets_windows() -> None:
    model, now = started(window=8)
    for _ in range(4):
        now = model.deadline
        model.timer(now)
        sent = list(model.send(now))
    assert sent == [1, 2, 3, 4]
    model.ack(4, now + RTT)
    assert list(model.send(now + RTT)) == list(range(5, 13))


def test_patience_with_a_client_that_was_heard() -> None:
    """GRUB stops acknowledging while it unpacks."""
    model, now = started()
    seconds, _ = silence(model, now)
    assert model.outcome == "silent"
    assert 60 <= seconds < 65
    model, now = started(window=1)
    while model.deadline - now < 55 * S and now < 40 * S:
        model.timer(model.deadline)
        now = model.deadline
        model.send(now)
    assert model.outcome == "sending"
    assert model.ack(1, now + RTT)
    assert list(model.send(now + RTT)) == [2]


def test_the_last_acknowledgement_may_be_missing() -> None:
    model, now = started(window=4, size=1000)
    seconds, sent = silence(model, now)
    assert model.outcome == "unconfirmed"
    assert 10 <= seconds < 15
    assert set(sent) == {1, 2}
    assert not model.ack(2, now + 20 * S)


def test_after_the_end_nothing_is_sent() -> None:
    model, now = started(window=4, size=1000)
    assert model.ack(2, now + RTT)
    assert model.outcome == "done"
    assert list(model.send(now + RTT)) == []
    assert not model.ack(2, now + RTT)
    model.timer(now + 100 * S)
    assert model.outcome == "done"
    assert list(model.send(now + 100 * S)) == []


# --- silence ---


def silent_window() -> tuple[TftpModel, int]:
    """Return a transfer whose window of 64 was sent and brought nothing, and when its timer fired."""
    model, _ = started(window=64)
    model.timer(model.deadline)
    return model, model.deadline


def test_silence_is_asked_about_with_one_block() -> None:
    model, now = silent_window()
    assert list(model.send(now)) == [1]
    model.ack(40, now + RTT)
    assert list(model.send(now + RTT)) == list(range(41, 105))


def test_a_late_acknowledgement_repeats_nothing_more() -> None:
    """And the answer to the block that was repeated passes for no gap."""
    model, now = silent_window()
    assert list(model.send(now)) == [1]
    model.ack(64, now + RTT // 10)
    assert list(model.send(now + RTT // 10)) == list(range(65, 129))
    model.ack(64, now + RTT)
    assert list(model.send(now + RTT)) == []
    assert model.repeats == 1


def test_who_says_nothing_to_that_gets_the_window() -> None:
    """U-Boot acknowledges no block twice, and who lost all of the window has the first now and waits."""
    model, now = silent_window()
    assert list(model.send(now)) == [1]
    now = model.deadline
    model.timer(now)
    assert list(model.send(now)) == list(range(1, 65))


def test_an_answer_to_a_repeated_block_is_no_round_trip() -> None:
    """Karn: it may be about any copy, and block 64, which was sent once, is not what brought it."""
    model, now = silent_window()
    before = model.srtt
    model.send(now)
    model.ack(64, now + RTT)
    assert model.srtt == before


def test_who_reported_a_gap_gets_the_window_at_once() -> None:
    """Reported too soon to be believed; the silence after it is no lost acknowledgement."""
    model, now = started(window=64)
    model.ack(0, now + RTT // 2)
    now = model.deadline
    model.timer(now)
    assert len(model.send(now)) == 64
    assert model.deadline - now == 5 * MS, "it is loss, not a longer round trip"


def test_who_reports_the_same_gap_for_ever_is_asked_less_and_less() -> None:
    """A path that never lets one block through."""
    model, _ = started(window=64)
    sent = 0
    while (now := model.deadline) < 11 * S:
        model.timer(now)
        sent += len(model.send(now))
        model.ack(0, now + RTT // 2)
    assert sent < 19 * 64


def test_who_waits_for_blocks_that_are_held_back_is_not_silent() -> None:
    """The client has part of its window, and the budget of the link has not let the rest go."""
    model, now = started(window=4)
    model.ack(2, now + RTT // 2)
    for _ in range(3):
        model.timer(model.deadline)
    assert list(model.send(model.deadline)) == [5, 6]

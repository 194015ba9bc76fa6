"""The TFTP sender's state machine against every receiver we know, on a virtual clock (protocol-facts A8)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tftp_receivers import (
    DOWN,
    RTT,
    UP,
    US,
    Edk2,
    Fate,
    Ipxe,
    Lwip,
    OldUBoot,
    Pxelinux,
    Receiver,
    Run,
    S,
    SilentRom,
    UBoot,
    clean,
    losing,
    lossy,
    started,
    unlucky,
)

from fastboot._core import TftpModel

RECEIVERS = (
    *((kind, window) for kind in (Edk2, Receiver, UBoot, OldUBoot) for window in (1, 4, 16)),
    *((kind, 1) for kind in (Pxelinux, Ipxe, Lwip, SilentRom)),
)
each_receiver = pytest.mark.parametrize(
    ("kind", "window"), RECEIVERS, ids=lambda value: getattr(value, "__name__", value)
)

Packet = tuple[str, int]
Event = dict[Packet, tuple[int, ...]]


def blocks_for(window: int) -> int:
    """Three windows and a piece: short, but every position within a window is met in the middle too."""
    return 3 * window + 2 if window > 1 else 9


def packets(kind: type[Receiver], window: int) -> list[Packet]:
    """Every packet of a transfer without an event, and as many more as an event can bring."""
    sizes = {DOWN: len((run := Run(kind(window), blocks_for(window)).go()).sent), UP: len(run.acks)}
    return [*((DOWN, n) for n in range(sizes[DOWN] + window + 1)), *((UP, n) for n in range(sizes[UP] + 2))]


def losses(kind: type[Receiver], window: int) -> Iterator[Event]:
    every = packets(kind, window)
    for packet in every:
        yield {packet: ()}
    for one, other in itertools.combinations(every, 2):
        yield {one: (), other: ()}


def disorders(kind: type[Receiver], window: int) -> Iterator[Event]:
    """Every packet twice, at once or up to two round trips later; every packet late, past one or many others."""
    for packet in packets(kind, window):
        for later in (0, 3 * US, 50 * US, RTT, 2 * RTT):
            yield {packet: (0, later)}
        for late in (3 * US, 5 * US, 11 * US, 150 * US, 300 * US):
            yield {packet: (late,)}


def last_block_concerned(run: Run, event: Event) -> int:
    """The highest block that an event was about: the block itself, or the one after the ACK."""
    concerned = [0]
    for direction, number in event:
        log = run.sent if direction == DOWN else [(ack + 1) for ack in run.acks]
        if number < len(log):
            concerned.append(log[number])
    return max(concerned)


def patience_for(kind: type[Receiver], run: Run, event: Event) -> float:
    """Seconds that an event may cost. 250 ms and its double before a round trip is known; then milliseconds,
    except where the receiver never says again what was lost: then its own timer."""
    unknown_trip = any(number <= run.receiver.window for _, number in event)
    allowed = 0.8 if unknown_trip else 0.04
    lost_acks = sum(direction == UP for direction, _ in event)
    if not kind.repeats_acks or (kind in (Receiver, OldUBoot) and lost_acks > 1):
        # By then the interval is 4 s, and stays until a block that was sent once is acknowledged (Karn).
        allowed += lost_acks * kind.timeout / S + 4 * (len(event) - 1)
    return allowed


def check(kind: type[Receiver], window: int, event: Event) -> None:
    undisturbed = Run(kind(window), blocks_for(window)).go().seconds
    run = Run(kind(window), blocks_for(window), fate=unlucky(event)).go()
    assert run.receiver.done
    assert run.receiver.wrote == list(range(1, run.blocks + 1))
    assert run.model.outcome in ("done", "unconfirmed")
    assert run.seconds - undisturbed <= patience_for(kind, run, event)
    repeated = run.repeated
    waits_for_its_own_timer = any(direction == UP for direction, _ in event) and (
        not kind.repeats_acks or (kind in (Receiver, OldUBoot) and len(event) > 1)
    )
    if not waits_for_its_own_timer:
        assert len(repeated) <= 2 * window * len(event)
    if repeated:
        assert max(repeated) <= last_block_concerned(run, event) + 3 * window


@each_receiver
def test_undisturbed_nothing_is_sent_twice(kind: type[Receiver], window: int) -> None:
    run = Run(kind(window), 10 * window + 3).go()
    assert run.receiver.wrote == list(range(1, run.blocks + 1))
    assert run.sent == [0, *range(1, run.blocks + 1)]
    assert run.model.outcome == ("unconfirmed" if kind.closes_silently else "done")
    assert run.seconds < (run.blocks / window + 3) * 1.5 * RTT / S


@each_receiver
def test_every_loss_and_every_two(kind: type[Receiver], window: int) -> None:
    for event in losses(kind, window):
        check(kind, window, event)


@each_receiver
def test_every_repeat_and_every_swap(kind: type[Receiver], window: int) -> None:
    for event in disorders(kind, window):
        check(kind, window, event)


@pytest.mark.parametrize("kind", [Edk2, Receiver, OldUBoot, Pxelinux, Ipxe, Lwip, SilentRom])
def test_without_options(kind: type[Receiver]) -> None:
    """No OACK: DATA 1 opens the transfer, in lockstep."""
    for number in range(9):
        run = Run(kind(), 9, fate=losing((DOWN, number)), oack=False).go()
        assert run.receiver.wrote == list(range(1, 10))
        assert run.sent[0] == 1
        assert len(run.repeated) == 1


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("kind", [Edk2, Receiver, UBoot])
def test_three_losses_anywhere(kind: type[Receiver], window: int) -> None:
    """Not every triple, but every one that lies close together, where recoveries meet."""
    near = [(DOWN, n) for n in range(window, 3 * window + 3)] + [(UP, n) for n in range(1, 4)]
    for event in itertools.islice(itertools.combinations(near, 3), 0, None, 1 + window // 4 * 3):
        run = Run(kind(window), blocks_for(window), fate=losing(*event)).go()
        assert run.receiver.wrote == list(range(1, run.blocks + 1))


# --- the window, the number, the size ---


def test_nothing_but_the_oack_before_the_address_is_proven() -> None:
    model = TftpModel(1 << 20, windowsize=64, now=S)
    assert list(model.send(S)) == [0]
    for turn in range(1, 5):
        model.timer(S + turn * 10 * S)
        assert list(model.send(S + turn * 10 * S)) in ([0], [])
    model = TftpModel(1 << 20, windowsize=64, now=S)
    model.send(S)
    model.ack(0, S + RTT)
    assert list(model.send(S + RTT)) == list(range(1, 65))


@pytest.mark.parametrize(("size", "blocks"), [(0, 1), (1, 1), (511, 1), (512, 2), (513, 2), (1024, 3)])
@pytest.mark.parametrize("window", [1, 4, 16, 1024])
def test_exact_multiples_end_in_an_empty_block(size: int, blocks: int, window: int) -> None:
    model, now, sent = TftpModel(size, windowsize=window, now=S), S, []
    while model.outcome == "sending":
        out = model.send(now)
        assert len(out) <= window
        sent += out
        now += RTT
        assert model.ack(out[-1], now)
    assert sent == list(range(blocks + 1))
    assert model.outcome == "done"


@pytest.mark.parametrize("window", [1, 4, 16, 64])
def test_numbers_go_on_past_every_wrap(window: int) -> None:
    """65535 is followed by 0, and so is 131071."""
    run = Run(Receiver(window), 131072 + 2 * window + 1, blksize=8, skip=131072 - 2 * window - 1).go()
    assert run.receiver.intact
    assert len(run.receiver.wrote) == run.blocks
    assert run.sent == list(range(run.skip + 1, run.blocks + 1))
    assert {0xFFFF, 0, 1} <= {block & 0xFFFF for block in run.sent}


@each_receiver
def test_every_loss_at_the_wrap(kind: type[Receiver], window: int) -> None:
    skip = 65536 - 2 * window
    for packet in [(DOWN, n) for n in range(4 * window)] + [(UP, n) for n in range(4)]:
        run = Run(kind(window), 65536 + 3 * window, fate=losing(packet), skip=skip).go()
        assert run.receiver.intact, packet
        assert run.receiver.done, packet
        assert len(run.repeated) <= (2 if kind.repeats_acks else 11) * window


def test_the_block_that_ipxe_mistakes() -> None:
    """Once iPXE has 65535, a second one is block 131071 to it, so that one is not repeated for a second: iPXE
    says its ACK again after 250 ms. Only where that is lost too the file is ruined."""
    acknowledges_65535 = 65535 - 65530 - 1
    run = Run(Ipxe(), 65560, fate=losing((UP, acknowledges_65535)), skip=65530).go()
    assert run.acks.count(65535) == 2
    assert run.receiver.wrote == list(range(1, 65561))
    assert run.repeated == []


@pytest.mark.parametrize("block", [65535, 131071])
def test_a_wrapping_block_waits_a_second(block: int) -> None:
    run = Run(Pxelinux(), block + 20, fate=losing((DOWN, 9)), skip=block - 10).go()
    assert run.repeated == [block]
    assert 0.39 <= run.seconds < 1.1  # the client's own timer brings nothing: an ACK in lockstep repeats nothing
    assert Run(Pxelinux(), block + 20, fate=losing((DOWN, 10)), skip=block - 10).go().seconds < 0.05


# --- acknowledgements ---


def test_a_repeated_ack_in_lockstep_sends_nothing() -> None:
    """The Sorcerer's Apprentice, RFC 1123 section 4.2.3.1."""
    model, now = started(window=1)
    for turn in range(1, 100):
        model.ack(0, now + turn * RTT // 50)
        assert list(model.send(now + turn * RTT // 50)) == []
    model.ack(1, now + 3 * RTT)
    assert list(model.send(now + 3 * RTT)) == [2]
    model.ack(0, now + 4 * RTT)
    model.ack(1, now + 4 * RTT)
    assert list(model.send(now + 4 * RTT)) == []


@pytest.mark.parametrize("window", [1, 4, 16])
def test_an_ack_of_the_future_or_the_far_past_is_ignored(window: int) -> None:
    model, now = started(window)
    model.ack(window, now + RTT)
    model.send(now + RTT)
    base, deadline = model.base, model.deadline
    nonsense = [n for n in range(0, 0x10000, 97) if not base - 1 <= n < base + window]
    for number in [*nonsense, base - 2, base + window, 0x8000, 0xFFFF]:
        if base - 1 <= number & 0xFFFF < base + window:
            continue
        assert not model.ack(number & 0xFFFF, now + 2 * RTT)
        assert list(model.send(now + 2 * RTT)) == []
    assert (model.base, model.deadline) == (base, deadline)


def test_an_ack_of_what_the_timer_put_back_counts() -> None:
    """The ACK of the whole window crosses its repetition, or comes in one batch with the ACK that caused it."""
    model, now = started(window=4)
    model.ack(1, now + 2 * RTT)
    assert model.ack(4, now + 2 * RTT), "an acknowledgement of blocks that were sent is none of the future"
    assert list(model.send(now + 2 * RTT)) == [5, 6, 7, 8]
    assert model.repeats == 0


def test_a_gap_is_believed_once_a_round_trip() -> None:
    model, now = started(window=4)
    model.ack(1, now + RTT)
    assert list(model.send(now + RTT)) == [2, 3, 4, 5]
    for turn in range(3):  # EDK2: the same ACK for each of the rest, and for each repeated block
        model.ack(1, now + RTT + turn * 2 * US)
        assert list(model.send(now + RTT + turn * 2 * US)) == []


def test_a_gap_reported_too_soon_is_about_an_older_copy() -> None:
    model, now = started(window=4)
    model.ack(1, now + RTT // 2)
    assert list(model.send(now + RTT // 2)) == [5]


# --- speed under loss ---


def megabytes_per_second(window: int, fate: Fate, blocks: int = 4000) -> float:
    run = Run(Edk2(window), blocks, fate=fate, blksize=1468, jitter=0.2).go()
    assert run.receiver.intact
    return blocks * 1468 / run.seconds / 1e6


@pytest.mark.parametrize(("window", "clean_speed", "speed"), [(4, 20, 12), (16, 50, 30), (64, 60, 30)])
def test_one_percent_loss(window: int, clean_speed: float, speed: float) -> None:
    """The order of the table in A8.6: 17 and 60 MB/s at a floor of 5 ms; 0.3 and 1.1 at one of 1 s."""
    assert megabytes_per_second(window, clean) > clean_speed
    speeds = sorted(megabytes_per_second(window, lossy(0.01, seed)) for seed in range(5))
    assert speeds[2] > speed
    assert speeds[0] > speed / 2

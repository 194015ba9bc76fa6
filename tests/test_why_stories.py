"""Stories and diagnoses without a server: what strangers send, how much is kept, what it costs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastboot.model import Event, Install, InstallState
from fastboot.watch.case import Case, Machine, Site
from fastboot.watch.diagnose import Diagnosis, diagnose
from fastboot.watch.events import Events, Hub
from fastboot.watch.log import plain
from fastboot.watch.stories import KINDS, ROOM, WAITING, Stories, Story
from fastboot.why import lines

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02", None, "x\x1b[31m")


def case(stories: Stories, who: str, now: float, machine: Machine | None = None) -> Case:
    story = stories.of(who) or Story(0.0)
    own = stories.nodes.get("node01")
    return Case(
        machine or Machine((who,)), Site(0.0, ports={"tftp": 69}), story, own.marks if own else {}, stories.wide,
        stories.remarks, now, story.begun[0],
    )  # fmt: skip


def said(found: Diagnosis) -> str:
    facts: Any = json.loads(json.dumps(plain(found.facts())))
    return "\n".join(lines(facts))


texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["pxelinux.0", "lab/vmlinuz", "initrd.gz", "grub/grub.cfg", "a.rpm", "\x1b]0;x\x07", "{0}", "{text}", "²"]
    ),
)
details = st.dictionaries(
    st.sampled_from(
        ["path", "peer", "reason", "text", "code", "octets", "bytes", "outcome", "stage", "loader", "chain",
         "about",
         "architecture", "address", "server", "conflict", "profile", "name", "size", "interface", "network"]
    ),
    st.one_of(st.none(), texts, st.integers(), st.booleans(), st.floats(), st.lists(texts, max_size=2)),
    max_size=8,
)  # fmt: skip
events = st.builds(
    Event,
    time=st.floats(0, 1e10),
    kind=st.one_of(st.sampled_from(sorted(KINDS)), texts),
    mac=st.sampled_from(MACS),
    node=st.sampled_from(["node01", None, "\x1b"]),
    details=details,
)
installs = st.one_of(
    st.none(),
    st.builds(
        Install, node=st.just("node01"), profile=texts, state=st.sampled_from(InstallState), token=st.just("t"),
        since=st.floats(0, 1e10), text=texts,
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(events, max_size=40), installs, st.booleans(), st.floats(0, 2e10))
def test_no_events_break_it_or_a_terminal(
    happened: list[Event], install: Install | None, installs: bool, now: float
) -> None:
    stories = Stories()
    for event in happened[::2]:
        stories.add(event)
    stories.put(Events(happened[1::2]))
    stories.read(len(happened))
    for who in (MACS[0], MACS[1], "52:54:00:00:00:03"):
        assert who
        machine = Machine((who,), "node01", None, "p", installs, True, "m", install)
        for whose in (machine, None):
            told = said(diagnose(case(stories, who, now, whose)))
            assert told.replace("\n", "").isprintable() and told.isascii()


def boot(mac: str, at: float) -> list[Event]:
    """Return what a server emits while a machine boots: as seen in tests/test_why.py."""
    number = int(mac[-5:].replace(":", ""), 16)
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    dhcp: Mapping[str, object] = {
        "interface": "s0", "address": address, "stage": "rom", "architecture": 0, "loader": "pxelinux.0",
        "lease": 6
    }  # fmt: skip
    files = ("pxelinux.0", "ldlinux.c32", "pxelinux.cfg/default", "lab/linux", "lab/initrd.gz")
    return [
        Event(at, "dhcp.offer", mac, None, dhcp),
        Event(at + 1, "dhcp.ack", mac, None, dhcp),
        *(
            Event(at + 2 + n, kind, mac, None, {"path": path, "peer": address, "size": 9, "octets": 9})
            for n, path in enumerate(files)
            for kind in ("tftp.started", "tftp.sent")
        ),
        Event(at + 20, "dhcp.ack", mac, None, {**dhcp, "stage": "os", "loader": None}),
    ]


def mac_of(number: int) -> str:
    return (0x5254_0000_0000 + number).to_bytes(6).hex(":")


def test_memory_is_bounded() -> None:
    """100,000 machines: the oldest are forgotten; each costs some hundred octets, and 2 KB once it has booted."""
    kept = []
    for machines, events in ((100_000, 2), (2_000, 20)):
        stories = Stories()
        tracemalloc.start()
        try:
            for number in range(machines):
                for event in boot(mac_of(number), float(number))[:events]:
                    stories.add(event)
            kept.append(tracemalloc.get_traced_memory()[0] / len(stories))
        finally:
            tracemalloc.stop()
        assert len(stories) == min(ROOM, machines) and stories.forgotten == max(0, machines - ROOM)
        assert (stories.of(mac_of(0)) is None) == (machines > ROOM)
        assert stories.of(mac_of(machines - 1))
    assert kept[0] < 900 and kept[1] < 2000, kept


def test_batches_wait_and_the_oldest_are_lost() -> None:
    hub, stories = Hub(), Stories()
    hub.attach(stories)
    for number in range(10):
        batch = Events(
            Event(float(number), "dhcp.ack", MACS[0], None, {"stage": "rom"}) for _ in range(WAITING // 8)
        )
        hub.emit_all(batch)
    assert (stories.waiting, stories.lost) == (WAITING, 2 * (WAITING // 8))
    assert len(stories) == 0, "nothing was read"
    while stories.read(1000):
        pass
    assert len(stories) == 1 and stories.waiting == 0


def test_a_machine_that_goes_round_in_circles_is_not_on_its_way() -> None:
    """It asks for an address again every 30 s; the cause is that of the time before."""
    stories, mac = Stories(), "52:54:00:00:00:01"
    for at in (100.0, 130.0):
        for event in boot(mac, at)[:2]:
            stories.add(event)
        if at == 100.0:
            stories.add(Event(at + 2, "tftp.missing", mac, None, {"path": "pxelinux.0", "text": "no such file"}))
    found = diagnose(case(stories, mac, 133.0))
    assert (found.state, found.cause) == ("stuck", "loader-missing")
    assert found.summary.endswith("it has started anew since")

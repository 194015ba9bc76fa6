"""The log: one line per event, and nothing that a stranger sends gets out of its field."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import time
from typing import Literal

import pytest

from fastboot.model import Event
from fastboot.watch.events import Hub
from fastboot.watch.log import AHEAD, EventLog, LoggingHandler, printable

HOSTILE = 'a\nb\r\x1b[2J\x00\x7f\x9b "q" k=v\\\u202e\udcff'


def lines(format: Literal["console", "json"], *events: Event, level: str = "info") -> list[str]:
    stream = io.StringIO()
    EventLog(stream, format=format, level=level).write(events)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("format", ["console", "json"])
def test_hostile_values_stay_in_their_field(format: Literal["console", "json"]) -> None:
    event = Event(
        0,
        "tftp.missing",
        details={"path": HOSTILE, "list": [HOSTILE], "raw": HOSTILE.encode("latin-1", "replace")},
    )
    (line,) = lines(format, event)
    assert all(" " <= char <= "~" for char in line)
    if format == "json":
        assert json.loads(line)["path"] == printable(HOSTILE)
    else:
        assert r'path="a\x0ab\x0d\x1b[2J\x00\x7f\x9b \x22q\x22 k=v\x5c\u202e\xff"' in line


def test_a_detail_replaces_no_field_of_the_line() -> None:
    event = Event(0, "tftp.sent", "52:54:00:00:00:01", "node01", {"event": "x", "node": "y", "component": "z"})
    entry = json.loads(lines("json", event)[0])
    assert (entry["component"], entry["event"], entry["node"], entry["mac"]) == (
        "tftp", "sent", "node01", "52:54:00:00:00:01"
    )  # fmt: skip
    assert entry["node_"] == "y"


def test_levels() -> None:
    kinds = ("tftp.sent", "tftp.failed", "dhcp.commit_failed", "ftp.refused", "dhcp.other_server", "tftp.probed")
    events = [Event(0, kind) for kind in kinds]
    levels = [json.loads(line)["level"] for line in lines("json", *events, level="debug")]
    assert levels == ["info", "warning", "error", "warning", "warning", "debug"]
    assert [len(lines("json", *events, level=level)) for level in ("info", "warning", "error")] == [5, 4, 1]


async def test_losses_are_told() -> None:
    hub, stream = Hub(), io.StringIO()
    events = hub.subscribe(limit=2)
    for number in range(5):
        hub.emit(Event(number, "test.event"))
    hub.close()
    await EventLog(stream, format="json").follow(events)
    first, *rest = map(json.loads, stream.getvalue().splitlines())
    assert (first["component"], first["event"], first["events"]) == ("log", "dropped", 3)
    assert len(rest) == 2


def test_libraries_wait_for_no_stream() -> None:
    """Nobody reads what was written: who logs goes on, and of thousands of lines the last are lost."""
    reads, writes = os.pipe()
    with os.fdopen(reads), io.TextIOWrapper(io.FileIO(writes, "w"), write_through=True) as stream:
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
        handler = LoggingHandler(EventLog(stream, format="json"))
        record = logging.LogRecord("asyncio", logging.WARNING, "", 0, "x" * 1000, (), None)
        before = time.monotonic()
        for _ in range(3 * AHEAD):
            handler.emit(record)
        assert time.monotonic() - before < 5
        lines = [os.read(reads, 65536) for _ in range(3)]
        assert b"".join(lines).startswith(b'{"time"')
        while b"".join(lines).count(b"\n") < AHEAD:
            lines.append(os.read(reads, 65536))

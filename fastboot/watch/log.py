"""Events as log lines: one line per event, for a person at a terminal or as JSON.

What machines send us ends up in these lines, so every octet outside printable ASCII is escaped: no name of a
file or host can start a new line, recolour a terminal or pass for another field.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from time import time as now
from typing import Any, Final, Literal, TextIO

import structlog

from fastboot.model import Event
from fastboot.watch.events import Batch, Events, Subscription
from fastboot.watch.storm import SPAN, Storm

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
ALARMS = {
    "arp": 30,
    "busy": 30,
    "conflict": 30,
    "damaged": 40,
    "error": 40,
    "failed": 40,
    "decline": 30,
    "dropped": 30,
    "evicted": 30,
    "exhausted": 30,
    "ignored": 30,
    "limit": 30,
    "nak": 30,
    "no_server": 30,
    "other_server": 30,
    "refused": 30,
    "stalled": 30,
    "taken": 30,
    "unanswered": 10,
    "warning": 30,
    "probed": 10,
    # Transfers end so by what their clients do.
    "ftp.failed": 30,
    "http.failed": 30,
    "tftp.failed": 30,
}
"""Levels by the kind of an event or its last word; every other kind is "info"."""
GATHER = 0.05
"""Seconds between writes: waking the thread for each event would cost more than its line."""
AHEAD: Final = 1000
"""Lines of libraries that wait for the stream; more are lost."""
NUMBERS: Final = (bool, int, float)  # `bool | int | float` would be made at each call
COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


class Scribe(Executor):
    """One thread that nobody waits for, neither a server nor the end of its process: its stream may be held up."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def submit(self, task: Callable[..., Any], /, *args: Any, **settings: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, partial(task, *args, **settings)))
        return future

    def waiting(self) -> int:
        """Return how many tasks were not begun."""
        return self._tasks.qsize()

    def _work(self) -> None:
        while True:
            future, task = self._tasks.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(task())
                except BaseException as error:
                    future.set_exception(error)


class EventLog:
    """Writes events to a stream, in a thread: a terminal that was stopped never stops the server."""

    def __init__(
        self,
        stream: TextIO,
        *,
        format: Literal["console", "json"],
        level: str = "info",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self.processors = processors(stream, format)
        self.wrapper = structlog.make_filtering_bound_logger(LEVELS[level])
        self._level = LEVELS[level]
        self._clock = clock
        self._storm = Storm(clock())
        self._scribe = Scribe()
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(stream), processors=self.processors, wrapper_class=self.wrapper
        )

    def write(self, events: Iterable[Event]) -> None:
        """Write one line for each event whose level is high enough."""
        for event in events:
            component, _, rest = event.kind.partition(".")
            about = {"component": component, "node": event.node, "mac": event.mac}
            details = _renamed({key: value for key, value in event.details.items() if value is not None})
            fields = {key: value for key, value in about.items() if value is not None} | details
            self._log.log(level_of(event.kind), rest or component, _time=event.time, **fields)

    def write_aside(self, event: Event) -> None:
        """Have one line written by the thread that writes all; lose it where a thousand wait."""
        if self._scribe.waiting() < AHEAD:
            self._scribe.submit(self.write, [event])

    def write_some(self, batches: Iterable[Batch], *, end: bool = False) -> None:
        """Write events, but of a storm only the first of each kind; then how many more there were."""
        for batch in batches:
            kinds = batch.kinds()
            wanted = {kind: count for kind, count in kinds.items() if level_of(kind) >= self._level}
            self.write(self._storm.pick(batch, wanted))
        for kind, count in self._storm.omitted(self._clock(), end=end).items():
            self.write([Event(now(), "log.omitted", details={"kind": kind, "events": count})])

    async def follow(self, events: Subscription) -> None:
        """Write events until the subscription ends; tell when some were lost because the stream was slow."""
        dropped = 0
        while not events.ended:
            batches = await events.batches(SPAN)
            if lost := events.dropped - dropped:
                dropped = events.dropped
                batches.insert(0, Events((Event(now(), "log.dropped", details={"events": lost}),)))
            write = partial(self.write_some, batches, end=events.ended)
            await asyncio.get_running_loop().run_in_executor(self._scribe, write)
            if not events.ended:
                await asyncio.sleep(GATHER)


def processors(stream: TextIO, format: Literal["console", "json"]) -> list[Any]:
    """Return the steps from an entry to its line, the same for events and for what libraries log."""
    render = Json() if format == "json" else Console(stream)
    return [_stamp, structlog.processors.format_exc_info, _escape, render]


def install(log: EventLog, stream: TextIO) -> None:
    """Send every line that this process logs to `stream` in the form of `log`. For the owner of the process."""
    structlog.configure(
        processors=log.processors,
        wrapper_class=log.wrapper,
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[LoggingHandler(log)], level=logging.WARNING, force=True)


class LoggingHandler(logging.Handler):
    """Turns what libraries log (asyncio, aiohttp, pyftpdlib) into lines of the same log."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        kind = "error" if record.levelno >= logging.ERROR else "warning"
        details: dict[str, object] = {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            details["exception"] = "".join(logging.Formatter().formatException(record.exc_info))
        self._log.write_aside(Event(record.created, f"{record.name.partition('.')[0]}.{kind}", details=details))


def level_of(kind: str) -> int:
    """Return the log level of a kind of event, as a number of the standard library's `logging`."""
    last = kind.rpartition(".")[2]
    return ALARMS.get(kind) or ALARMS.get(last) or ALARMS.get(last.rpartition("_")[2], logging.INFO)


def printable(value: str | bytes) -> str:
    """Return the text with every octet outside printable ASCII, and the backslash, written as an escape."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(char if " " <= char <= "~" and char != "\\" else _code(ord(char)) for char in text)


def plain(value: object) -> object:
    """Return a value as JSON knows it, its texts printable."""
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, NUMBERS):
        return value
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return printable(value if isinstance(value, bytes) else str(value))


class Json:
    """Renders a line as a JSON object, of what `plain` has made of it."""

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(check_circular=False).encode  # json.dumps makes an encoder each time

    def __call__(self, logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
        return self._encode(entry)


class Console:
    """Renders a line for a person, coloured where the stream is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._colours = stream.isatty()

    def __call__(self, logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
        time, level = entry.pop("time"), entry.pop("level")
        head = f"{time.partition('T')[2][:12]} {self._paint(f'{level:7}', COLOURS[level])}"
        component, event = entry.pop("component", "fastboot"), entry.pop("event")
        name = self._paint(f"{component}{': ' if ' ' in event else '.'}{event}", "1")
        fields = (f"{self._paint(key, '2')}={_quoted(value)}" for key, value in entry.items())
        return " ".join((head, name, *fields))

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def _stamp(logger: object, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    time = datetime.fromtimestamp(entry.pop("_time", None) or now(), UTC).astimezone()
    head = {"time": time.isoformat(timespec="milliseconds"), "level": method}
    for key in ("component", "event"):
        if key in entry:
            head[key] = entry.pop(key)
    return {**head, **entry}


def _escape(logger: object, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: plain(value) for key, value in entry.items()}


def _renamed(details: Mapping[str, object]) -> dict[str, object]:
    """A detail must not replace a field of the line itself."""
    taken = ("time", "level", "component", "event", "node", "mac")
    return {f"{key}_" if key in taken else key: value for key, value in details.items()}


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(char in ' ="' for char in text):
        return text
    return '"{}"'.format(text.replace('"', r"\x22"))


def _code(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:  # what surrogateescape made of an octet that was no UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"

"""The process that serves: its log, its open files, its privileges and its signals, around one `Server`."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import uvloop

from fastboot.config import Config
from fastboot.model import FastbootError
from fastboot.privileges import account_of, become, identity_of, library_faults
from fastboot.server import Server
from fastboot.terminal import media_bar
from fastboot.watch.log import EventLog, install

LEAST_FILES = 256
"""Open files that are allowed: at rest the server has 80, and a few more for each further interface."""

LAST_LINES = 2.0
"""Seconds for the last lines of the log. A pipe that nobody reads, a terminal that was stopped: they are lost."""


Then = Callable[[Server], Awaitable[object]]
"""What is done once the server serves."""


def serve(settings: Config, read: Callable[[], Config] | None, then: Then | None = None) -> None:
    """Serve a configuration until a signal ends it; `read` reads it again, where it is of a file. Raises
    FastbootError."""
    log = start_log(settings)
    raise_descriptors()
    server = Server(settings, load=read)
    if any(medium.iso for medium in settings.media):
        server.start_reader(identity_of(account_of(settings)))
    become(settings)
    for text in library_faults():
        structlog.get_logger(component="server").warning("library_out_of_reach", text=text)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(server, log, then))


async def run(server: Server, log: EventLog, then: Then | None = None) -> None:
    """Serve until a signal says stop: the first lets transfers drain, a second ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def on_stop(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    def on_reload() -> None:
        task = loop.create_task(try_reload(server))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    following = loop.create_task(log.follow(server.events()))
    starting = loop.create_task(start(server, then))
    stopping = loop.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        starting.result()
        await stopping
        await server.stop()
    finally:
        stopping.cancel()
        written, _ = await asyncio.wait({following}, timeout=LAST_LINES)
        for each in written:
            each.result()


async def start(server: Server, then: Then | None = None) -> None:
    """Start the server, after a bar on a terminal while it reads new media."""
    try:
        with media_bar() as progress:
            await server.prepare(progress)
    except BaseException:
        await server.stop(drain=0)
        raise
    await server.start()
    if then:
        try:
            await then(server)
        except BaseException:
            await server.stop(drain=0)
            raise
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again and again stops the loop for 45 ms each time


async def try_reload(server: Server) -> None:
    """Reload on SIGHUP. A refusal is an event of the server, and the old configuration goes on."""
    with suppress(FastbootError):
        await server.reload()


def start_log(config: Config) -> EventLog:
    """Send all lines to standard error, for a person where that is a terminal."""
    form = config.log.format
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    # Without a buffer, whose lock a thread that hangs in a write keeps: the interpreter, which flushes at its end,
    # aborts for it.
    raw = io.FileIO(sys.stderr.fileno(), "w", closefd=False)
    stream = io.TextIOWrapper(raw, "ascii", "backslashreplace", write_through=True)
    log = EventLog(stream, format=form, level=config.log.level)
    install(log, stream)
    return log


def raise_descriptors() -> None:
    """Allow as many open files as the system lets us: FTP sessions and HTTP connections take several each.
    Raises FastbootError where that is too few to start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST_FILES:
        need = f"the server needs {LEAST_FILES} to start, and more for its clients"
        raise FastbootError(f"this system allows {hard} open files; {need}: raise ulimit -n, or LimitNOFILE=")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

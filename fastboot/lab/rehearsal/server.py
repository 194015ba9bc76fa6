"""The server of a rehearsal: a real one, on a configuration file and a copy of its state.

    python -m fastboot.lab.rehearsal.server FILE STATE [PROFILE NAME=MAC...]

With a profile, it is that of every machine: those of the configuration, and the machines NAME, which it lacks.
Nothing is written but in STATE. It ends at SIGTERM, as the real one.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import uvloop

from fastboot.config import Config, load
from fastboot.model import FastbootError, Node
from fastboot.server import Server
from fastboot.watch.log import EventLog, install


class Rehearsed(Config):
    """A configuration whose machines all have one profile."""

    guests: Mapping[str, str]
    chosen: str

    def all_nodes(self) -> tuple[Node, ...]:
        known = tuple(replace(node, profile=self.chosen) for node in super().all_nodes())
        return known + tuple(Node(name, (mac,), profile=self.chosen) for name, mac in self.guests.items())


def rehearsed(config: Config, state: Path, profile: str | None, guests: Mapping[str, str]) -> Config:
    """Return a configuration to be played: nobody else is looked for, and no privileges are dropped."""
    played: dict[str, object] = {"state": state, "user": None}
    if config.dhcp:
        played["dhcp"] = config.dhcp.model_copy(update={"probe": 0})
    if profile is None:
        return config.model_copy(update=played)
    values = {name: getattr(config, name) for name in Config.model_fields} | played
    return Rehearsed.model_construct(**values, guests=guests, chosen=profile)


async def serve(server: Server, log: EventLog) -> None:
    """Run until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    following = asyncio.ensure_future(log.follow(server.events()))
    try:
        await server.prepare(lambda name, step: None)
        await server.start()
        await ended.wait()
    finally:
        await server.stop()
        await following


def main(file: str, state: str, profile: str | None = None, *guests: str) -> int:
    log = EventLog(sys.stderr, format="json", level="info")
    install(log, sys.stderr)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        named = dict(guest.split("=", 1) for guest in guests)
        config = rehearsed(load(Path(file)), Path(state), profile, named)
        server = Server(config)
        if any(medium.iso for medium in config.media):
            server.start_reader(None)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(server, log))
    except FastbootError as error:
        print(f"fastboot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""A real server in a child process, watched through its control socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from fastboot.lab.namespace import LabError, spawn, stop

_START = 60.0
_POLL = 0.1


class ServerProcess:
    """A server; its log is `directory`/server.log, its state `directory`/state, which is made if it is not there.
    `words` are what Python runs (`-m fastboot ...`)."""

    def __init__(self, words: Sequence[str], directory: Path) -> None:
        self.log = directory / "server.log"
        self.state = directory / "state"
        self._words = words
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, configuration: str, directory: Path) -> ServerProcess:
        """Return `fastboot serve` on a configuration: TOML without the key `state`."""
        file = directory / "fastboot.toml"
        file.write_text(f"state = {json.dumps(str(directory / 'state'))}\n{configuration}", encoding="utf-8")
        return cls(["-m", "fastboot", "serve", "-c", str(file)], directory)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def start(self) -> None:
        """Return when the server is ready. Raises LabError when it ends or takes too long instead."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("wb") as log:
            # -P: as root, nothing is imported from the directory that somebody happens to be in.
            self._process = await spawn([sys.executable, "-P", *self._words], stdout=log)
        connector = aiohttp.UnixConnector(str(self.state / "control.sock"))
        self._session = aiohttp.ClientSession(
            "http://server", connector=connector, timeout=aiohttp.ClientTimeout()
        )
        deadline = asyncio.get_running_loop().time() + _START
        while (await self.status()).get("state") != "running":
            if self._process.returncode is not None:
                raise LabError(f"the server ended at once with exit code {self._process.returncode}")
            if asyncio.get_running_loop().time() > deadline:
                raise LabError(f"the server was not ready within {_START:.0f} s")
            await asyncio.sleep(_POLL)

    async def status(self) -> Mapping[str, Any]:
        """Return what GET /status answers; nothing while no server answers."""
        assert self._session
        try:
            async with self._session.get("/status") as response:
                facts: Mapping[str, Any] = await response.json()
                return facts
        except (aiohttp.ClientError, OSError):
            return {}

    async def arm(self, *nodes: str) -> None:
        """Let nodes install once, whatever their state, as `fastboot disarm` and `arm` do. Raises LabError."""
        assert self._session
        for change in ("disarm", "arm"):
            async with self._session.post(f"/{change}", json={"nodes": nodes}) as response:
                if response.status != 200:
                    raise LabError(f"the server does not {change} {' '.join(nodes)}: {await response.text()}")

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield every event since the server started, until it ends."""
        assert self._session
        try:
            async with self._session.get("/events?replay=1") as response:
                async for line in response.content:
                    yield json.loads(line)
        except aiohttp.ClientError:  # the server is gone
            return

    async def wait(self) -> int:
        """Wait until the server ends; returns its exit code."""
        assert self._process
        return await self._process.wait()

    async def stop(self, grace: float = 15) -> int | None:
        """End the server as an administrator would; returns its exit code, None where it never ran."""
        if self._session:
            await self._session.close()
        return await stop(self._process, grace) if self._process else None

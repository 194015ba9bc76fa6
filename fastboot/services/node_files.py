"""`/node/TOKEN/`: what a machine that installs asks for, and where it says how that ended.

The token is a secret of one arming. It leaves in boot configurations and answer files only: `masked` is what
events and logs are told of a path.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from fastboot._core import Source
from fastboot.boot.answers import CALLBACKS, FORMATS
from fastboot.boot.catalog import parts_of
from fastboot.boot.languages import RenderError
from fastboot.boot.tree import Entry, refuse
from fastboot.model import Client, Event, FastbootError, Install, InstallState, Node, Reason, Refusal

PLACE: Final = "node"
KEPT: Final = 64
"""Rendered files that are kept for who asks again; each is an open file."""
FILES: Final = frozenset((*CALLBACKS, *(name for each in FORMATS.values() for name in (each.file, *each.beside))))
"""What there may be in a directory: names that an event may repeat."""
SECRET: Final = re.compile(r"[0-9a-f]{32}")
"""What a token looks like."""
MISSPELT: Final = re.compile(rf"(?i)(node[^/\\]*[/\\]+){SECRET.pattern}")
"""One below a name that is almost the place."""
LIVE: Final = (InstallState.ARMED, InstallState.INSTALLING)
GONE: Final = "the installation has ended"
UNWRITTEN: Final = Refusal(Reason.BUSY, "the state of the installation can not be written now")

Found = Source | Refusal


class Installs(Protocol):
    """The installs of this server (`state.nodes.Installs`)."""

    def by_token(self, token: str) -> Install | None: ...
    async def begin(self, install: Install) -> Install: ...
    async def end(self, install: Install, failure: str | None = None) -> Install: ...


class Renders(Protocol):
    """What renders answer files (`boot.render.Renderer`)."""

    def answer(self, file: str, install: Install, node: Node, client: Client) -> tuple[bytes, bool] | None: ...


class NodeFiles:
    """Answers whoever knows a live token, from an address that we gave to another machine excepted. All others are
    told that there is no such file, and people are told why (`node.refused`, `counts`). For the thread of the
    loop.
    """

    def __init__(
        self,
        installs: Installs,
        renderer: Callable[[], Renders],
        node_named: Callable[[str], Node | None],
        node_of: Callable[[str], Node | None],
        emit: Callable[[Event], None],
    ) -> None:
        """`renderer` gives the one that counts now, `node_of` whose a MAC is."""
        self._installs, self._renderer, self._emit = installs, renderer, emit
        self._node_named, self._node_of = node_named, node_of
        self.counts: Counter[str] = Counter()
        """How often each reason to refuse was there."""
        self._sources: dict[tuple[str, str], tuple[bytes, Source]] = {}

    def resolve(self, path: str, client: Client) -> Found | Awaitable[Found]:
        """Open a file of a machine's directory. The answer file leaves only when it is on disk that the machine
        installs."""
        found = self._file(path, client)
        if isinstance(found, Refusal):
            return found
        install, source, begins = found
        return self._begin(install, source) if begins and not client.peeks else source

    def stat(self, path: str, client: Client) -> Entry | Refusal:
        """Say what a path is. Clients by FTP enter the directories on the way to a file."""
        parts = _parts(path)
        if parts == (PLACE,):
            return Entry(PLACE, True, 0, 0)
        if len(parts) == 2:
            admitted = self._admit(parts[1], client, path)
            return admitted if isinstance(admitted, Refusal) else Entry(parts[1], True, 0, admitted[0].since)
        found = self._file(path, client)
        return found if isinstance(found, Refusal) else Entry(parts[-1], False, found[1].size, found[1].mtime)

    def report(self, path: str, client: Client, text: str) -> Awaitable[str] | Refusal:
        """Take what an installer says of its end; what is awaited is told to it, when it is on disk. Raises
        FastbootError where it can not be written."""
        *_, token, word = _parts(path)
        admitted = self._admit(token, client, path, ended=True)
        if isinstance(admitted, Refusal):
            return admitted
        failure = None if word == "done" else text or "the installer reported a failure"
        return self._end(admitted[0], failure)

    async def _end(self, install: Install, failure: str | None) -> str:
        now = await self._installs.end(install, failure)
        return f"{now.node} is {now.state}"

    async def _begin(self, install: Install, source: Source) -> Found:
        try:
            await self._installs.begin(install)
        except FastbootError:
            now = self._installs.by_token(install.token)
            return UNWRITTEN if now and now.state in LIVE else refuse(Reason.MISSING)
        return source

    def _file(self, path: str, client: Client) -> tuple[Install, Source, bool] | Refusal:
        parts = _parts(path)
        if len(parts) != 3:
            return refuse(Reason.MISSING)
        _, token, name = parts
        admitted = self._admit(token, client, path)
        if isinstance(admitted, Refusal):
            return admitted
        install, node = admitted
        try:
            rendered = self._renderer().answer(name, install, node, client)
        except RenderError:
            return refuse(Reason.BROKEN)
        if rendered is None:
            return self._refuse("no such file", path, client, install)
        text, begins = rendered
        return install, self._source(token, name, text), begins

    def _source(self, token: str, name: str, text: bytes) -> Source:
        """Return the same source for the same octets: its entity tag and time are those of the source."""
        known = self._sources.get((token, name))
        if known and known[0] == text:
            return known[1]
        for each in [each for each in self._sources if not self._is_live(each[0])]:
            del self._sources[each]
        if len(self._sources) >= KEPT:
            del self._sources[next(iter(self._sources))]
        source = Source.of_bytes(name, text)
        self._sources[token, name] = text, source
        return source

    def _is_live(self, token: str) -> bool:
        install = self._installs.by_token(token)
        return install is not None and install.state in LIVE

    def _admit(
        self, token: str, client: Client, path: str, *, ended: bool = False
    ) -> tuple[Install, Node] | Refusal:
        install = self._installs.by_token(token)
        if install is None:
            return self._refuse("no such token", path, client)
        node = self._node_named(install.node)
        if node is None:
            return self._refuse("no such node", path, client, install)
        if client.mac is not None and client.mac not in node.macs:
            owner = self._node_of(client.mac)
            if owner is None or owner.name != node.name:
                return self._refuse("another machine", path, client, install)
        if not ended and install.state not in LIVE:
            return self._refuse(GONE, path, client, install)
        return install, node

    def _refuse(self, reason: str, path: str, client: Client, install: Install | None = None) -> Refusal:
        self.counts[reason] += 1
        details = {
            "reason": reason,
            "path": masked(path),
            "peer": str(client.address),
            "protocol": client.protocol,
        }
        node = install.node if install else None
        self._emit(Event(time.time(), "node.refused", client.mac, node, details))
        return refuse(Reason.MISSING)


def is_of_nodes(path: str) -> bool:
    """Whether a path leads to `/node` or into it."""
    return PLACE in path and _parts(path)[:1] == (PLACE,)


def is_callback(path: str) -> bool:
    """Whether a path is one that an installer reports its end at."""
    parts = _parts(path) if PLACE in path else ()
    return len(parts) == 3 and parts[0] == PLACE and parts[2] in CALLBACKS


def masked(path: str) -> str:
    """Return a path as people may read it: without the secret in it."""
    if PLACE not in path.lower():
        return path
    parts = parts_of(path)
    if isinstance(parts, Refusal):  # it holds control characters, or leaves the tree: nothing is where it seems
        return re.sub(r"(?is)node(?:[/\\]|%2f|%5c).*", "node/...", path)
    if parts[:1] != (PLACE,):  # who misspells has a secret all the same
        return MISSPELT.sub(r"\1...", path)
    if len(parts) == 1:
        return path
    return "/".join(("", PLACE, "...", *(parts[-1:] if len(parts) > 2 and parts[-1] in FILES else ())))


def _parts(path: str) -> tuple[str, ...]:
    parts = parts_of(path)
    return () if isinstance(parts, Refusal) else parts

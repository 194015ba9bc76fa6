"""The one namespace as services see it: what is configured now, and what an embedding program's `resolve` adds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.boot.tree import Entry
from fastboot.model import Client, Reason, Refusal
from fastboot.services.node_files import NodeFiles, is_of_nodes, masked

Found = Source | Refusal
Resolve = Callable[[str, Client], Found | Awaitable[Found | None] | None]
"""What a file name stands for; None means what the configuration says."""

PATIENCE: Final = 30.0
"""Seconds that `resolve` may take: as long as FTP clients have for a data connection."""


class Namespace:
    """Asks `resolve` first, then the catalog, then the directories of machines that install. What `resolve`
    answers is judged here, for every protocol alike: a fault of it is a Refusal (BROKEN), in the log with the
    path. For the thread of the loop but `list`."""

    def __init__(
        self,
        resolve: Resolve | None,
        catalog: Callable[[], Catalog],
        patience: float = PATIENCE,
        nodes: NodeFiles | None = None,
    ) -> None:
        """`catalog` gives the one that counts now."""
        self._resolve, self._catalog, self._patience, self._nodes = resolve, catalog, patience, nodes
        self._log = structlog.get_logger(component="resolve")

    def resolve(self, path: str, client: Client) -> Found | Awaitable[Found]:
        """Open what a path names for a client."""
        if self._resolve is None:
            found = self._look(path, client)
            return found if isinstance(found, Source | Refusal) else self._resolve_later(found, path, client)
        try:
            answer = self._resolve(path, client)
            if not inspect.isawaitable(answer):
                answer = self._judge(answer, path, client)
            return answer if isinstance(answer, Source | Refusal) else self._resolve_later(answer, path, client)
        except Exception:
            return self._broken(path)

    async def _resolve_later(self, answer: Awaitable[Found | None], path: str, client: Client) -> Found:
        try:
            async with asyncio.timeout(self._patience):
                found = self._judge(await answer, path, client)
                return found if isinstance(found, Source | Refusal) else await found
        except Exception:
            return self._broken(path)

    def _look(self, path: str, client: Client) -> Found | Awaitable[Found]:
        found = self._catalog().resolve(path, client)
        nodes = self._beyond(found, path)
        return nodes.resolve(path, client) if nodes else found

    def _beyond(self, found: object, path: str) -> NodeFiles | None:
        """Return who has what the catalog has not, where a path may lead there."""
        missing = isinstance(found, Refusal) and found.reason is Reason.MISSING
        return self._nodes if missing and is_of_nodes(path) else None

    def _judge(self, answer: Found | None, path: str, client: Client) -> Found | Awaitable[Found]:
        if answer is None:
            return self._look(path, client)
        if not isinstance(answer, Source | Refusal):
            raise TypeError(f"resolve gave {answer!r}, neither a Source nor a Refusal nor None")
        return answer

    def _broken(self, path: str) -> Refusal:
        self._log.exception("resolve failed", path=masked(path).encode("utf-8", "backslashreplace").decode())
        return Refusal(Reason.BROKEN, "can not be read")

    def stat(self, path: str, client: Client) -> Entry | Refusal | Awaitable[Entry | Refusal]:
        """Say what `resolve` would send, or what directory a path is."""
        if self._resolve is None:
            return self._stat(path, client)
        client = replace(client, peeks=True)
        found = self.resolve(path, client)
        if isinstance(found, Source | Refusal):
            return self._entry(found, path, client)
        return self._stat_later(found, path, client)

    async def _stat_later(self, found: Awaitable[Found], path: str, client: Client) -> Entry | Refusal:
        return self._entry(await found, path, client)

    def _entry(self, found: Found, path: str, client: Client) -> Entry | Refusal:
        if isinstance(found, Source):
            return Entry(path.rpartition("/")[2], False, found.size, found.mtime)
        is_here = found.reason is Reason.DIRECTORY or self._beyond(found, path)
        return self._stat(path, client) if is_here else found

    def _stat(self, path: str, client: Client) -> Entry | Refusal:
        found = self._catalog().stat(path, client)
        nodes = self._beyond(found, path)
        return nodes.stat(path, client) if nodes else found

    def list(self, path: str, client: Client) -> Sequence[Entry] | Refusal:
        """List a directory; what only `resolve` knows is not in it."""
        return self._catalog().list(path, client)

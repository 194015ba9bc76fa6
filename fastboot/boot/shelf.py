"""The media of a configuration: what is served under /media, opened, read and kept up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from fastboot.boot.disc import Disc
from fastboot.boot.image import Step
from fastboot.boot.indexer import Indexer, MediaError
from fastboot.boot.media import System, carried, recognise
from fastboot.boot.tree import Directory, Tree
from fastboot.config import Config, Media
from fastboot.wording import counted

Progress = Callable[[str, Step], None]
"""Called with the name of a medium while its image is read."""


class Tell(Protocol):
    """Takes an event: its kind and its details."""

    def __call__(self, kind: str, **details: object) -> None: ...


@dataclass(slots=True)
class Medium:
    """A medium of the configuration. `place` is the path or URL that is named there.

    `tree` is None where it could not be opened, for the reason in `fault`, or where another machine serves it.
    `system` is what was recognised when it was read, `loaders` the boot programs on it: paths in it by name, in
    one mapping for as long as the medium is there.
    """

    name: str
    place: str
    url: str | None = None
    tree: Tree | None = None
    fault: str | None = None
    system: System | None = None
    loaders: dict[str, str] = field(default_factory=dict)

    async def recognise(self, tree: Tree) -> None:
        """Say what is on it now."""
        self.system, loaders = await asyncio.to_thread(lambda: (recognise(tree), carried(tree)))
        self.loaders.clear()
        self.loaders.update(loaders)

    def facts(self) -> dict[str, object]:
        """Return the medium as commands print it."""
        disc = self.tree if isinstance(self.tree, Disc) else None
        index = disc.index if disc else None
        served = index or (self.tree and not disc)
        return {
            "name": self.name,
            "place": self.place,
            "state": "elsewhere" if self.url else "ready" if served else "failed",
            "fault": disc.fault if disc else self.fault,
            "form": index.form if index else None,
            "label": index.label if index else None,
            "files": index.files if index else None,
            "system": self.system.facts(self.name) if self.system else None,
            "loaders": sorted(self.loaders),
        }


class Shelf:
    """Every medium, by name. Opening comes first, with the caller's privileges; images are read by `prepare`."""

    def __init__(self, config: Config, indexer: Indexer) -> None:
        """The indexer stays the caller's: it outlives the shelves of one server."""
        self.linked: list[Directory] = []
        """The directories that absolute links may point into; Catalog adds to them."""
        self._indexer = indexer
        self._media = {item.name: self._open(item) for item in config.media}
        self.linked += [medium.tree for medium in self if isinstance(medium.tree, Directory)]

    def __iter__(self) -> Iterator[Medium]:
        return iter(self._media.values())

    def get(self, name: str) -> Medium | None:
        return self._media.get(name)

    def check(self) -> list[str]:
        """Return why media are not served, or not as they are now."""
        faults = ((medium, medium.facts()["fault"]) for medium in self)
        return [f"media {medium.name}: {medium.place}: {fault}" for medium, fault in faults if fault]

    def release(self) -> None:
        """Let go of the images. Directories stay open: a listing in a thread may still use them."""
        for medium in self:
            if isinstance(medium.tree, Disc):
                medium.tree.close()

    def close(self) -> None:
        for medium in self:
            if medium.tree:
                medium.tree.close()

    async def prepare(self, tell: Tell, progress: Progress = lambda name, step: None) -> None:
        """Have every image read that has no index yet, and everything recognised. Events: `media.ready` (an image
        was read), `media.failed`."""
        for medium in self:
            if isinstance(disc := medium.tree, Disc):
                await self._read(medium, disc, disc.prepare(partial(progress, medium.name)), tell)
            if medium.tree and medium.system is None:
                await medium.recognise(medium.tree)

    async def refresh(self, tell: Tell) -> bool:
        """Take images that were replaced since; return whether one was. To be called every few seconds. Events as
        `prepare`."""
        discs = [(medium, medium.tree) for medium in self if isinstance(medium.tree, Disc)]
        is_new = False
        for medium, disc in discs:
            is_new |= await self._read(medium, disc, disc.refresh(lambda step: None), tell)
        return is_new

    async def _read(self, medium: Medium, disc: Disc, reading: Awaitable[bool], tell: Tell) -> bool:
        """Return whether there is something else to serve."""
        began = time.monotonic()
        try:
            is_new = await reading
        except MediaError as error:
            tell("media.failed", media=medium.name, text=str(error))
            return False
        if is_new and disc.index:
            await medium.recognise(disc)
            facts = {"files": disc.index.files, "system": str(medium.system or "not recognised")}
            tell("media.ready", media=medium.name, **facts, seconds=round(time.monotonic() - began, 3))
        return is_new

    def _open(self, item: Media) -> Medium:
        medium = Medium(item.name, str(item.iso or item.path or item.url), item.url)
        kind = "an ISO file" if item.iso else "a directory"
        try:
            if item.iso:
                medium.tree = Disc(item.name, item.iso, self._indexer)
            elif item.path:
                medium.tree = Directory(item.path, self.linked)
        except (NotADirectoryError, IsADirectoryError):
            medium.fault = f"is not {kind}; name {kind}"
        except OSError as error:
            medium.fault = f"{error.strerror or error}; create it or name another"
        return medium


def describe(facts: Mapping[str, Any]) -> str:
    """Return in a few words what is on a medium, by its facts."""
    system = facts["system"]
    if system is None:
        return "not recognised" if facts["state"] == "ready" else "-"
    return " ".join(filter(None, (system["name"], system["version"], system["architecture"])))


def explain(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to say of a medium, line by line. Its facts, and the names in it that are `refused`."""
    system = facts["system"] or {}
    yield f"{facts['name']}: {facts['fault'] or describe(facts)}"
    if facts["state"] == "elsewhere":
        yield f"  another machine serves it: {facts['place']}"
    elif facts["state"] == "ready":
        about = f" ({facts['form']}, {counted(facts['files'], 'file')})" if facts["form"] else ""
        yield f"  {facts['place']}{about} is served as /media/{facts['name']}"
    if system.get("kernel"):
        yield f"  boots {system['kernel']} with {system['initrd'] or 'no initrd'}"
    if system.get("second_stage"):
        yield f"  then fetches {system['second_stage']}"
    for scheme, arguments in system.get("arguments", {}).items():
        note = " (where another server exports it)" if scheme == "nfs" else ""
        yield f"  told for {scheme}{note}: {arguments}"
    yield from (f"  not by {scheme}: {why}" for scheme, why in system.get("unable", {}).items())
    if shims := [name for name in facts["loaders"] if name.startswith("shim")]:
        yield f"  UEFI machines can start {', '.join(shims)} from it, served in /boot/{facts['name']}"
    yield from (f"  missing: {text}" for text in system.get("missing", ()))
    yield from (f"  refused: {text}" for text in facts["refused"])

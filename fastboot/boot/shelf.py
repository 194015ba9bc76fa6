"""The media of a configuration: what is served under /media, opened, read and kept up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastboot.boot.disc import Disc
from fastboot.boot.image import Step
from fastboot.boot.indexer import Indexer, MediaError
from fastboot.boot.tree import Directory, Tree
from fastboot.config import Config, Media

Progress = Callable[[str, Step], None]
"""Called with the name of a medium while its image is read."""


class Tell(Protocol):
    """Takes an event: its kind and its details."""

    def __call__(self, kind: str, **details: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium of the configuration. `tree` is None where it could not be opened, or another machine has it."""

    name: str
    place: str
    """The path or URL that the configuration gives."""
    tree: Tree | None
    url: str | None = None


class Shelf:
    """Every medium, by name. Opening comes first, with the caller's privileges; images are read by `prepare`."""

    def __init__(self, config: Config, indexer: Indexer) -> None:
        """The indexer stays the caller's: it outlives the shelves of one server."""
        self._faults: list[str] = []
        self.linked: list[Directory] = []
        """The directories that absolute links may point into; Catalog adds to them."""
        self._indexer = indexer
        self._media = {
            item.name: Medium(item.name, str(item.iso or item.path or item.url), self._open(item), item.url)
            for item in config.media
        }
        self.linked += [medium.tree for medium in self if isinstance(medium.tree, Directory)]

    def __iter__(self) -> Iterator[Medium]:
        return iter(self._media.values())

    def get(self, name: str | None) -> Medium | None:
        return self._media.get(name or "")

    def check(self) -> list[str]:
        """Return why media are not served."""
        unread = [f"media {name}: {disc.path}: {disc.fault}" for name, disc in self._discs() if disc.fault]
        return [*self._faults, *unread]

    def close(self) -> None:
        for medium in self:
            if medium.tree:
                medium.tree.close()

    async def prepare(self, tell: Tell, progress: Progress = lambda name, step: None) -> None:
        """Have every image read that has no index yet. Events: `media.ready`, `media.failed`."""
        for name, disc in self._discs():
            with _telling(name, disc, tell):
                await disc.prepare(partial(progress, name))

    async def refresh(self, tell: Tell) -> None:
        """Take images that were replaced since. To be called every few seconds. Events as `prepare`."""
        for name, disc in self._discs():
            with _telling(name, disc, tell):
                await disc.refresh(lambda step: None)

    def _discs(self) -> list[tuple[str, Disc]]:
        return [(medium.name, medium.tree) for medium in self if isinstance(medium.tree, Disc)]

    def _open(self, item: Media) -> Tree | None:
        kind = "an ISO file" if item.iso else "a directory"
        try:
            if item.iso:
                return Disc(item.name, item.iso, self._indexer)
            return Directory(item.path, self.linked) if item.path else None
        except (NotADirectoryError, IsADirectoryError):
            fault = f"is not {kind}; name {kind}"
        except OSError as error:
            fault = f"{error.strerror or error}; create it or name another"
        self._faults.append(f"media {item.name}: {item.iso or item.path}: {fault}")
        return None


@contextmanager
def _telling(name: str, disc: Disc, tell: Tell) -> Iterator[None]:
    """Tell what became of an image that was read in here; nothing where there was no need to."""
    began, before = time.monotonic(), disc.index
    try:
        yield
    except MediaError as error:
        tell("media.failed", media=name, text=str(error))
    if disc.index and disc.index is not before:
        tell("media.ready", media=name, files=disc.index.files, seconds=round(time.monotonic() - began, 3))

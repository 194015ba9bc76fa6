"""The one namespace that TFTP, FTP and HTTP serve.

Every open goes through `Catalog.resolve`. Confinement is that of the trees (`tree`, `disc`), never a check before.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from fastboot._core import Source
from fastboot.boot.disc import Disc, Whole
from fastboot.boot.indexer import Indexer
from fastboot.boot.loaders import Loaders
from fastboot.boot.shelf import Shelf
from fastboot.boot.tree import Directory, Entry, Tree, is_speakable, refusal_of, refuse
from fastboot.config import Config
from fastboot.model import Client, ConfigError, Reason, Refusal

Parts = tuple[str, ...]
Found = Source | Refusal

UNTERMINATED: Final = "\udcff"
"""What follows a name that was read as a C string from DHCP, which is what TFTP is asked for."""
SPELLINGS: Final = {"backslashes": "\\", "doubled-slashes": "//"}
"""Quirks of names (`firmware.QUIRKS`), by what is in such a name."""


OFTEN: Final = 128
"""Characters of the longest name that is remembered: 4,096 of these are a megabyte or two."""
REMEMBERED: Final = 4096
"""Names that are remembered."""
SMALL: Final = 64 * 1024
"""Octets that HTTP and FTP send at once where they are in memory: a package manager fetches thousands of such
files, and to hand one to a thread costs more than to send it."""


class Renders(Protocol):
    """What renders configuration files; `boot.render.Renderer` is one."""

    def render(self, parts: Parts, client: Client) -> bytes | Awaitable[bytes] | None:
        """Return the file for this client, or None where the path names none that is rendered for it. What peeks
        need not wait."""

    def check(self) -> list[str]:
        """Return what can not be rendered."""

    def paths(self) -> Iterable[tuple[str, str]]:
        """Yield what is booted: a key for messages, and a path in the namespace."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A tree mounted at a place of the namespace.

    `files` maps the only names it shows to paths in the tree, where it does not show all.
    """

    mount: Parts
    tree: Tree
    files: dict[str, str] | None = None


Entries = list[Entry]
Layers = list[Layer]
Strings = list[str]


def refuse_secrets(config: Config) -> None:
    """Raises ConfigError where the state directory or an answer file, which nobody is to read, is in a tree that
    is served."""
    places = [(f"roots[{at}]", path) for at, path in enumerate(config.roots)]
    places += [(f"allow_links[{at}]", path) for at, path in enumerate(config.allow_links)]
    places += [(f"media[{at}].path", item.path) for at, item in enumerate(config.media) if item.path]
    secrets = [(f"state = {config.state}", config.state)]
    secrets += [
        (f"profiles[{at}].answers = {profile.answers}", profile.answers)
        for at, profile in enumerate(config.profiles)
        if profile.answers
    ]
    if faults := [
        f"{key}: {path} holds {what}, so its secrets would be served; name another for one of them"
        for key, path in places
        for what, secret in secrets
        if is_below(secret, path)
    ]:
        raise ConfigError("\n".join(faults))


def is_below(path: Path, directory: Path) -> bool:
    """Whether a path leads to a directory or to what is in it, over any links."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


class Catalog:
    """The one namespace: `roots`, `/media/NAME` (and `NAME.iso`), `/boot` with the loaders of this system,
    `/boot/NAME` with those of a medium, and rendered files.

    `resolve` and `stat` are for one thread (the loop); `list` may also run in others. A reload is a new Catalog.
    A missing directory is left out and reported by `check`.
    """

    def __init__(
        self,
        config: Config,
        loaders: Loaders | None = None,
        renderer: Renders | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        """`shelf` has the media of the configuration; it is closed with the catalog."""
        self.quirks: Counter[str] = Counter()
        """How many names were asked for that were spelled so."""
        self._loaders, self._renderer = loaders, renderer
        self._faults: Strings = []
        self._born = time.time()
        self._live: WeakValueDictionary[tuple[int, ...], Source] = WeakValueDictionary()
        self._shelf = shelf or Shelf(config, Indexer(config.state / "media", keep=False))
        roots = [tree for path in config.roots if (tree := self._open(path, "roots"))]
        links = [tree for path in config.allow_links if (tree := self._open(path, "allow_links"))]
        # Links never point into the directories of the loaders, of which only some files are shown.
        self._linked = self._shelf.linked
        self._linked += [*roots, *links]
        boot = self._loader_layers(loaders)
        self._trees = [*roots, *links, *(layer.tree for layer in boot)]
        media = [Layer(("media", medium.name), medium.tree) for medium in self._shelf if medium.tree]
        images = [
            Layer(("media",), Whole(layer.tree), {f"{layer.mount[1]}.iso": "."})
            for layer in media
            if isinstance(layer.tree, Disc)
        ]
        carried = [Layer(("boot", each.name), each.tree, each.loaders) for each in self._shelf if each.tree]
        self._layers = [*media, *images, *(Layer((), tree) for tree in roots), *boot, *carried]
        self._places: dict[Parts, list[tuple[Layer, str]]] = {}

    def close(self) -> None:
        """Close the trees. Sources that are in use stay open until their last holder drops them."""
        for tree in self._trees:
            tree.close()
        self._shelf.close()
        self._trees, self._layers = [], []
        self._places.clear()
        self._linked.clear()

    def resolve(self, path: str, client: Client) -> Found | Awaitable[Found]:
        """Open what `path` names for this client. What uses an arming up has to wait for the disk.

        `path` is as the client sent it, undecodable octets as surrogates (PEP 383).
        """
        parts = self._parts(path, client)
        return parts if isinstance(parts, Refusal) else self._find(parts, client)

    def stat(self, path: str, client: Client) -> Entry | Refusal:
        """Say what `path` is: what `resolve` would send or `list` would list. The name of the top is "/"."""
        parts = self._parts(path, client)
        if isinstance(parts, Refusal):
            return parts
        name = parts[-1] if parts else "/"
        found = self._peek(parts, client)
        if isinstance(found, Source):
            return Entry(name, False, found.size, found.mtime)
        if found.reason is Reason.DIRECTORY:
            return Entry(name, True, 0, self._modified(parts))
        return found

    def list(self, path: str, client: Client) -> Entries | Refusal:
        """List a directory, sorted by name: only what `resolve` would open. Rendered files are not listed.

        Costs about 5 microseconds an entry (measured): run it beside the loop where directories are large.
        """
        parts = self._parts(path, client)
        if isinstance(parts, Refusal):
            return parts
        entries: dict[str, Entry] = {}
        found = not parts
        for layer, inside in self._lookups(parts):
            try:
                scanned = layer.tree.scan(inside)
            except (OSError, UnicodeEncodeError) as error:
                refusal = refusal_of(error)
                if not found and refusal.reason is not Reason.MISSING:
                    return refusal
                if not found and isinstance(error, NotADirectoryError):
                    return Refusal(Reason.MISSING, "not a directory")
                continue
            found = True
            for entry in scanned:
                entries.setdefault(entry.name, entry)
        for entry in self._below(parts):
            found = True
            entries.setdefault(entry.name, entry)
        return [entries[name] for name in sorted(entries)] if found else refuse(Reason.MISSING)

    def check(self) -> Strings:
        """Return what would fail, in words for the administrator: directories, links, loaders."""
        complaints = [*self._faults, *self._shelf.check()]
        if self._loaders:
            complaints += self._loaders.complaints
        trees = {str(layer.tree.path): layer.tree for layer in self._layers if layer.files is None}
        for tree in trees.values():
            complaints += tree.check()
        if self._renderer:
            complaints += self._renderer.check()
            complaints += [
                f"{key}: {path}: {refusal.text}; name a file in the media, or below a root with a leading /"
                for key, path in self._renderer.paths()
                if (refusal := self.lacks(path))
            ]
        return complaints

    def lacks(self, path: str) -> Refusal | None:
        """Return why nobody would get a file, None for one that is there."""
        found = self.public(path)
        return found if isinstance(found, Refusal) else None

    def public(self, path: str) -> Source | Refusal:
        """Open what a path names for anybody."""
        nobody = Client(IPv4Address(0), IPv4Address(0), "tftp")
        parts = self._parts(path, nobody)
        return parts if isinstance(parts, Refusal) else self._peek(parts, nobody)

    def _open(self, path: Path, key: str) -> Directory | None:
        try:
            return Directory(path, self._shelf.linked)
        except NotADirectoryError:
            self._faults.append(f"{key}: {path} is no directory; name a directory")
        except OSError as error:
            self._faults.append(f"{key}: {path}: {error.strerror or error}; create it or name another directory")
        return None

    def _loader_layers(self, loaders: Loaders | None) -> Layers:
        places: dict[tuple[Parts, Path], dict[str, str]] = {}
        if loaders:
            paths = {**{f"boot/{name}": path for name, path in loaders.files.items()}, **loaders.modules}
            for place, path in paths.items():
                *mount, name = place.split("/")
                places.setdefault((tuple(mount), path.parent), {})[name] = path.name
        return [
            Layer(mount, tree, files)
            for (mount, directory), files in places.items()
            if (tree := self._open(directory, "boot.loaders"))
        ]

    def _parts(self, path: str, client: Client) -> Parts | Refusal:
        read = _read_before if len(path) <= OFTEN else _read
        parts, quirks = read(path, client.protocol == "tftp")
        for quirk in quirks:
            self.quirks[quirk] += 1
        return parts

    def _peek(self, parts: Parts, client: Client) -> Found:
        found = self._find(parts, replace(client, peeks=True))
        assert isinstance(found, Source | Refusal)
        return found

    def _find(self, parts: Parts, client: Client) -> Found | Awaitable[Found]:
        found = self._file(parts, client.protocol != "tftp")
        if isinstance(found, Refusal) and found.reason is Reason.MISSING and (other := _other_name(parts)):
            beside = self._file(other)
            found = beside if isinstance(beside, Source) else found
        if isinstance(found, Source) or found.reason is not Reason.MISSING or self._renderer is None:
            return found
        text = self._renderer.render(parts, client)
        if text is None:
            return found
        if isinstance(text, bytes):
            return Source.of_bytes("/".join(parts), text)
        return self._find_later(parts, text)

    async def _find_later(self, parts: Parts, text: Awaitable[bytes]) -> Found:
        return Source.of_bytes("/".join(parts), await text)

    def _file(self, parts: Parts, fleeting: bool = False) -> Source | Refusal:
        for layer, inside in self._looked_up(parts):
            try:
                source = layer.tree.open(inside)
                # Nobody else will want to have what is sent and closed at once.
                return source if fleeting and source.size <= SMALL else self._share(source)
            except FileNotFoundError:
                continue  # what most requests of a storm come to
            except (OSError, UnicodeEncodeError) as error:
                refusal = refusal_of(error)
                if refusal.reason is not Reason.MISSING:
                    return refusal
        return refuse(Reason.DIRECTORY if not parts or self._below(parts) else Reason.MISSING)

    def _modified(self, parts: Parts) -> float:
        for layer, inside in self._lookups(parts):
            try:
                return layer.tree.entry(inside, "").mtime
            except OSError:
                continue
        return self._born

    def _lookups(self, parts: Parts) -> Iterator[tuple[Layer, str]]:
        """Yield where to look, in order of precedence: a layer and the path in its tree."""
        for layer in self._layers:
            depth = len(layer.mount)
            if parts[:depth] != layer.mount:
                continue
            inside = "/".join(parts[depth:]) or "."
            if layer.files is None:
                yield layer, inside
                if layer.mount[:1] == ("media",):
                    return
            elif inside in layer.files:
                yield layer, layer.files[inside]

    def _looked_up(self, parts: Parts) -> Sequence[tuple[Layer, str]]:
        """Return what `_lookups` yields, remembered: the layers stay what they are."""
        places = self._places.get(parts)
        if places is None:
            places = list(self._lookups(parts))
            if sum(map(len, parts)) <= OFTEN:
                if len(self._places) >= REMEMBERED:
                    self._places.clear()
                self._places[parts] = places
        return places

    def _below(self, parts: Parts) -> Entries:
        """Return what the mounts put into this directory, which no tree need have."""
        entries = {}
        depth = len(parts)
        for layer in self._layers:
            if layer.mount[:depth] != parts or layer.files == {}:
                continue
            if len(layer.mount) > depth:
                name = layer.mount[depth]
                entries[name] = Entry(name, True, 0, self._born)
            for name, inside in (layer.files or {}).items() if layer.mount == parts else ():
                try:
                    entries[name] = layer.tree.entry(inside, name)
                except OSError:
                    continue
        return list(entries.values())

    def _share(self, source: Source) -> Source:
        """Return the Source that others already hold of the same file, unless the file was changed since."""
        key = (*source.identity[:2], source.offset, source.size)
        live = self._live.get(key)
        if live is not None and live.identity == source.identity:
            return live
        self._live[key] = source
        return source


def _read(path: str, tftp: bool) -> tuple[Parts | Refusal, Strings]:
    """Return what a path names, and the quirks of its spelling."""
    quirks = []
    if tftp and path.endswith(UNTERMINATED):
        quirks.append("option-67-unterminated")
        path = path.rstrip(UNTERMINATED)
    quirks += [quirk for quirk, mark in SPELLINGS.items() if mark in path]
    if not is_speakable(path):
        return Refusal(Reason.FORBIDDEN, "control characters in the name"), quirks
    parts: Strings = []
    for part in path.replace("\\", "/").split("/"):
        if part == "..":
            if not parts:
                return refuse(Reason.OUTSIDE), quirks
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts), quirks


_read_before = lru_cache(maxsize=REMEMBERED)(_read)
"""A storm of machines asks for the same names."""


def parts_of(path: str) -> Parts | Refusal:
    """Return the names that a path is made of, whichever way it is written."""
    return (_read_before if len(path) <= OFTEN else _read)(path, True)[0]


def _other_name(parts: Parts) -> Parts:
    """Return under which other name a loader may have meant a file, () where under none."""
    if parts[:1] == ("boot",):
        # PXELINUX puts the directory it was loaded from before every relative name ("boot/vmlinuz"), so an
        # administrator's pxelinux.cfg works with the loader of this system only if the roots are asked too.
        return parts[1:]
    # A shim looks at the top where the header of the DHCP reply names no file, only option 67: dnsmasq's.
    return ("boot", *parts) if len(parts) == 1 else ()

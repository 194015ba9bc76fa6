"""The one namespace that TFTP, FTP and HTTP serve.

Every open goes through `Catalog.resolve`; confinement is the open itself (openat2 beneath a directory
descriptor that was opened at the start), never a check before it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from fastboot._core import Source, SpecialFileError, open_directory
from fastboot.boot.loaders import Loaders
from fastboot.config import Config
from fastboot.model import Client, Reason, Refusal

T = TypeVar("T")
Parts = tuple[str, ...]

MAX_LINKS = 40
"""Symbolic links followed for one path: the kernel's own limit (path_resolution(7))."""
MAX_CHECKED = 200_000
"""Directory entries that `check` looks at in each tree before it stops searching for bad links."""

TEXTS = {
    Reason.MISSING: "no such file",
    Reason.DIRECTORY: "is a directory",
    Reason.OUTSIDE: "leaves the served tree",
    Reason.FORBIDDEN: "permission denied",
    Reason.SPECIAL: "not a regular file",
    Reason.BROKEN: "can not be read",
}
REASONS = {
    errno.ENOENT: Reason.MISSING,
    errno.ENOTDIR: Reason.MISSING,
    errno.ENAMETOOLONG: Reason.MISSING,
    errno.EISDIR: Reason.DIRECTORY,
    errno.EXDEV: Reason.OUTSIDE,
    errno.EACCES: Reason.FORBIDDEN,
    errno.EPERM: Reason.FORBIDDEN,
    errno.ENXIO: Reason.SPECIAL,  # open(2) of a socket, or of a device without a driver
    errno.ENODEV: Reason.SPECIAL,
}


class Renders(Protocol):
    """What renders configuration files; `boot.render.Renderer` is one."""

    def render(self, parts: Parts, client: Client) -> bytes | None:
        """Return the file for this client, or None where the path names none that is rendered for it."""

    def check(self) -> list[str]:
        """Return what can not be rendered."""

    def paths(self) -> Iterable[tuple[str, str]]:
        """Yield what is booted: a key for messages, and a path in the namespace."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory as a client may see it. `size` in octets, `mtime` in seconds since the epoch."""

    name: str
    is_dir: bool
    size: int
    mtime: float


class Tree:
    """A directory that is served, held open from the start (before privileges are dropped)."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where there is no such directory."""
        self.path = path
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.bases = {path.absolute().parts[1:], Path(os.path.realpath(path)).parts[1:]}

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Layer:
    """A tree mounted at a place of the namespace.

    `files` maps the only names it shows to paths in the tree.
    """

    mount: Parts
    tree: Tree
    files: dict[str, str] | None = None


Entries = list[Entry]
Layers = list[Layer]
Strings = list[str]


class Catalog:
    """The one namespace: `roots`, `/media/NAME`, `/boot` and rendered files (DESIGN section 6).

    `resolve` and `stat` are for one thread (the loop); `list` may also run in others. A reload is a new Catalog.
    A missing directory is left out and reported by `check`.
    """

    def __init__(self, config: Config, loaders: Loaders | None = None, renderer: Renders | None = None) -> None:
        self.quirks: Counter[str] = Counter()
        self._loaders, self._renderer = loaders, renderer
        self._faults: Strings = []
        self._born = time.time()
        self._live: WeakValueDictionary[tuple[int, int], Source] = WeakValueDictionary()
        roots = [tree for path in config.roots if (tree := self._open(path, "roots"))]
        media = [
            Layer(("media", item.name), tree)
            for item in config.media
            if (tree := self._open(item.path, f"media {item.name}"))
        ]
        boot = self._loader_layers(loaders)
        links = [tree for path in config.allow_links if (tree := self._open(path, "allow_links"))]
        self._trees = [*roots, *(layer.tree for layer in media + boot), *links]
        # What links may point into: never the directories of the loaders, of which only some files are shown.
        self._bases = [*roots, *(layer.tree for layer in media), *links]
        self._layers = [*media, *(Layer((), tree) for tree in roots), *boot]

    def close(self) -> None:
        """Close the directories. Sources that are in use stay open until their last holder drops them."""
        for tree in self._trees:
            tree.close()
        self._trees = self._bases = []
        self._layers = []

    def resolve(self, path: str, client: Client) -> Source | Refusal:
        """Open what `path` names for this client.

        `path` is as the client sent it, undecodable octets as surrogates (PEP 383).
        """
        parts = self._parts(path)
        return parts if isinstance(parts, Refusal) else self._find(parts, client)

    def stat(self, path: str, client: Client) -> Entry | Refusal:
        """Say what `path` is: what `resolve` would send or `list` would list. The name of the top is "/"."""
        parts = self._parts(path)
        if isinstance(parts, Refusal):
            return parts
        name = parts[-1] if parts else "/"
        found = self._find(parts, client)
        if isinstance(found, Source):
            return Entry(name, False, found.size, found.mtime)
        if found.reason is Reason.DIRECTORY:
            return Entry(name, True, 0, self._modified(parts))
        return found

    def list(self, path: str, client: Client) -> Entries | Refusal:
        """List a directory, sorted by name: only what `resolve` would open. Rendered files are not listed.

        Costs about 5 microseconds an entry (measured): run it beside the loop where directories are large.
        """
        parts = self._parts(path)
        if isinstance(parts, Refusal):
            return parts
        entries: dict[str, Entry] = {}
        found = not parts
        for layer, inside in self._lookups(parts):
            try:
                fd = self._reach(layer.tree, inside, open_directory)
            except (OSError, UnicodeEncodeError) as error:
                refusal = _refusal(error)
                if not found and refusal.reason is not Reason.MISSING:
                    return refusal
                if not found and isinstance(error, NotADirectoryError):
                    return Refusal(Reason.MISSING, "not a directory")
                continue
            found = True
            try:
                for entry in self._scan(layer.tree, inside, fd):
                    entries.setdefault(entry.name, entry)
            finally:
                os.close(fd)
        for entry in self._below(parts):
            found = True
            entries.setdefault(entry.name, entry)
        return [entries[name] for name in sorted(entries)] if found else _refuse(Reason.MISSING)

    def check(self) -> Strings:
        """Return what would fail, in words for the administrator: directories, links, loaders."""
        complaints = list(self._faults)
        if self._loaders:
            complaints += self._loaders.complaints
        trees = {str(layer.tree.path): layer.tree for layer in self._layers if layer.files is None}
        for tree in trees.values():
            complaints += self._check_tree(tree)
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
        nobody = Client(IPv4Address(0), IPv4Address(0), "tftp")
        found = self.resolve(path, nobody)
        return found if isinstance(found, Refusal) else None

    def _open(self, path: Path, key: str) -> Tree | None:
        try:
            return Tree(path)
        except NotADirectoryError:
            self._faults.append(f"{key}: {path} is no directory; name a directory")
        except OSError as error:
            self._faults.append(f"{key}: {path}: {error.strerror or error}; create it or name another directory")
        return None

    def _loader_layers(self, loaders: Loaders | None) -> Layers:
        directories: dict[Path, dict[str, str]] = {}
        for name, path in (loaders.files if loaders else {}).items():
            directories.setdefault(path.parent, {})[name] = path.name
        return [
            Layer(("boot",), tree, files)
            for directory, files in directories.items()
            if (tree := self._open(directory, "boot.loaders"))
        ]

    def _parts(self, path: str) -> Parts | Refusal:
        if path.endswith("\udcff"):
            self.quirks["option-67-unterminated"] += 1
            path = path.rstrip("\udcff")
        if not _speakable(path):
            return Refusal(Reason.FORBIDDEN, "control characters in the name")
        parts: Strings = []
        for part in path.replace("\\", "/").split("/"):
            if part == "..":
                if not parts:
                    return _refuse(Reason.OUTSIDE)
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return tuple(parts)

    def _find(self, parts: Parts, client: Client) -> Source | Refusal:
        found = self._file(parts)
        if isinstance(found, Refusal) and found.reason is Reason.MISSING and parts[:1] == ("boot",):
            # PXELINUX puts the directory it was loaded from before every relative name ("boot/vmlinuz"), so an
            # administrator's pxelinux.cfg works with the loader of this system only if the roots are asked too.
            beside = self._file(parts[1:])
            found = beside if isinstance(beside, Source) else found
        if isinstance(found, Source) or found.reason is not Reason.MISSING or self._renderer is None:
            return found
        text = self._renderer.render(parts, client)
        return found if text is None else Source.of_bytes("/".join(parts), text)

    def _file(self, parts: Parts) -> Source | Refusal:
        for layer, inside in self._lookups(parts):
            try:
                return self._share(self._reach(layer.tree, inside, Source.open))
            except (OSError, UnicodeEncodeError) as error:
                refusal = _refusal(error)
                if refusal.reason is not Reason.MISSING:
                    return refusal
        return _refuse(Reason.DIRECTORY if not parts or self._below(parts) else Reason.MISSING)

    def _modified(self, parts: Parts) -> float:
        for layer, inside in self._lookups(parts):
            try:
                return self._entry(layer.tree, inside, "").mtime
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

    def _below(self, parts: Parts) -> Entries:
        """Return what the mounts put into this directory, which no tree need have."""
        entries = {}
        depth = len(parts)
        for layer in self._layers:
            if layer.mount[:depth] != parts:
                continue
            if len(layer.mount) > depth:
                name = layer.mount[depth]
                entries[name] = Entry(name, True, 0, self._born)
            for name, inside in (layer.files or {}).items() if layer.mount == parts else ():
                try:
                    entries[name] = self._entry(layer.tree, inside, name)
                except OSError:
                    continue
        return list(entries.values())

    def _share(self, source: Source) -> Source:
        """Return the Source that others already hold of the same file, unless the file was changed since."""
        key = source.identity[:2]
        live = self._live.get(key)
        if live is not None and live.identity == source.identity:
            return live
        self._live[key] = source
        return source

    def _entry(self, tree: Tree, inside: str, name: str) -> Entry:
        try:
            source = self._reach(tree, inside, Source.open)
        except IsADirectoryError:
            fd = self._reach(tree, inside, open_directory)
            try:
                return Entry(name, True, 0, os.fstat(fd).st_mtime_ns / 1e9)
            finally:
                os.close(fd)
        return Entry(name, False, source.size, source.mtime)

    def _scan(self, tree: Tree, inside: str, fd: int) -> Iterator[Entry]:
        with os.scandir(fd) as items:
            for item in items:
                if not _speakable(item.name) or "\\" in item.name or item.name.endswith("\udcff"):
                    continue  # a name that no client can ask for
                try:
                    if item.is_symlink():
                        yield self._entry(tree, f"{inside}/{item.name}", item.name)
                        continue
                    facts = item.stat(follow_symlinks=False)
                except OSError:
                    continue  # a refused link, or a file removed since
                if stat.S_ISDIR(facts.st_mode):
                    yield Entry(item.name, True, 0, facts.st_mtime_ns / 1e9)
                elif stat.S_ISREG(facts.st_mode):
                    yield Entry(item.name, False, facts.st_size, facts.st_mtime_ns / 1e9)

    def _reach(self, tree: Tree, inside: str, door: Callable[[int, str], T]) -> T:
        """Go through a confined door (Source.open, open_directory), over absolute links that are allowed."""
        for _ in range(MAX_LINKS):
            try:
                return door(tree.fd, inside)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            tree, inside = self._leap(tree, inside)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _leap(self, tree: Tree, inside: str) -> tuple[Tree, str]:
        """Return where the absolute link on this path leads, as a place in one of the trees.

        What it returns is opened confined, so a link that changes meanwhile gains nothing. Raises OSError (EXDEV).
        """
        done: Strings = []
        todo = deque(inside.split("/"))
        links = 0
        while todo:
            part = todo.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    break
                done.pop()
                continue
            target = _link_target(tree.fd, "/".join(done) or ".", part)
            if target is None:
                done.append(part)
            elif target.startswith("/"):
                return self._place((*target.split("/"), *todo))
            elif (links := links + 1) > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                todo.extendleft(reversed(target.split("/")))
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def _place(self, parts: Parts) -> tuple[Tree, str]:
        parts = tuple(part for part in parts if part not in ("", "."))
        matches = [(base, tree) for tree in self._bases for base in tree.bases if parts[: len(base)] == base]
        if not matches:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        base, tree = max(matches, key=lambda match: len(match[0]))
        return tree, "/".join(parts[len(base) :]) or "."

    def _check_tree(self, tree: Tree, most: int = 20) -> Strings:
        """Return complaints about the links of a tree and the directories that can not be read, `most` of them."""
        complaints: Strings = []
        left = MAX_CHECKED
        todo = [""]
        while todo and left > 0 and len(complaints) < most:
            directory = todo.pop()
            try:
                fd = self._reach(tree, directory or ".", open_directory)
            except OSError as error:
                complaints.append(f"{tree.path / directory}: {_refusal(error).text}; {_remedy(error)}")
                continue
            try:
                with os.scandir(fd) as items:
                    for item in items:
                        left -= 1
                        name = f"{directory}/{item.name}" if directory else item.name
                        try:
                            if item.is_dir(follow_symlinks=False):
                                todo.append(name)
                            elif item.is_symlink() or item.is_file(follow_symlinks=False):
                                self._entry(tree, name, item.name)
                        except (OSError, UnicodeEncodeError) as error:
                            complaints.append(f"{tree.path / name}: {_refusal(error).text}; {_remedy(error)}")
            finally:
                os.close(fd)
        return complaints[:most]


def _link_target(root: int, directory: str, name: str) -> str | None:
    fd = open_directory(root, directory)
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    finally:
        os.close(fd)


def _speakable(name: str) -> bool:
    return not any(character < " " or character == "\x7f" for character in name)


def _refuse(reason: Reason) -> Refusal:
    return Refusal(reason, TEXTS[reason])


def _refusal(error: OSError | UnicodeEncodeError) -> Refusal:
    if isinstance(error, UnicodeEncodeError):
        return _refuse(Reason.MISSING)  # a surrogate that no octet of a file name decodes to
    if isinstance(error, IsADirectoryError):
        return _refuse(Reason.DIRECTORY)
    if isinstance(error, SpecialFileError):
        return _refuse(Reason.SPECIAL)
    return _refuse(REASONS.get(error.errno or 0, Reason.BROKEN))


def _remedy(error: OSError | UnicodeEncodeError) -> str:
    return {
        Reason.OUTSIDE: "a link may point below a root, a media directory or one of allow_links",
        Reason.FORBIDDEN: "let the user that fastboot drops to read it",
        Reason.MISSING: "the link points nowhere",
    }.get(_refusal(error).reason, "it is never served")

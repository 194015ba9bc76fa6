"""Trees of files that are served, each confined by itself: a directory by the open (openat2 beneath it)."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from fastboot._core import Source, SpecialFileError, open_directory
from fastboot.model import Reason, Refusal

T = TypeVar("T")

MAX_LINKS: Final = 40
"""Symbolic links followed for one path: the kernel's own limit (path_resolution(7))."""
MAX_CHECKED: Final = 200_000
"""Directory entries that `check` looks at in each tree before it stops searching for bad links."""
MAX_COMPLAINTS: Final = 20
"""Complaints of `check` about one tree."""

TEXTS: Final = {
    Reason.MISSING: "no such file",
    Reason.DIRECTORY: "is a directory",
    Reason.OUTSIDE: "leaves the served tree",
    Reason.FORBIDDEN: "permission denied",
    Reason.SPECIAL: "not a regular file",
    Reason.BROKEN: "can not be read",
    Reason.BUSY: "its medium is being replaced, ask again later",
}
REFUSALS: Final = {reason: Refusal(reason, text) for reason, text in TEXTS.items()}
REASONS: Final = {
    errno.ENOENT: Reason.MISSING,
    errno.ENOTDIR: Reason.MISSING,
    errno.ENAMETOOLONG: Reason.MISSING,
    errno.EISDIR: Reason.DIRECTORY,
    errno.EXDEV: Reason.OUTSIDE,
    errno.EACCES: Reason.FORBIDDEN,
    errno.EPERM: Reason.FORBIDDEN,
    errno.ENXIO: Reason.SPECIAL,  # open(2) of a socket, or of a device without a driver
    errno.ENODEV: Reason.SPECIAL,
    errno.ESTALE: Reason.BUSY,
}
SHORT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of this host, not of the file: the same open may succeed a moment later."""

CONTROLS: Final = re.compile(r"[\0-\x1f\x7f]")


class RefusedName(OSError):
    """A name that its tree never serves; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory as a client may see it. `size` in octets, `mtime` in seconds since the epoch."""

    name: str
    is_dir: bool
    size: int
    mtime: float


class Tree(Protocol):
    """Files below one top, which is "."; paths have no leading slash. Every method but `check` raises OSError."""

    path: Path
    """The directory or the image that the files are in."""

    def open(self, inside: str) -> Source:
        """Open a file. Raises IsADirectoryError, and OSError (EXDEV) for what lies outside."""

    def entry(self, inside: str, name: str) -> Entry:
        """Say what a path is, under the given name."""

    def scan(self, inside: str) -> Sequence[Entry]:
        """List what `open` and `scan` would take in a directory. For any thread."""

    def check(self) -> list[str]:
        """Return what is in the tree and is not served: MAX_COMPLAINTS of it, and then that there is more."""

    def close(self) -> None: ...


class Directory:
    """A directory that is served, held open from the start (before privileges are dropped)."""

    def __init__(self, path: Path, open_to_links: Sequence[Directory] = ()) -> None:
        """`open_to_links` are the directories that absolute links may point into, filled in by the caller at any
        time. Raises OSError where there is no such directory."""
        self.path = path
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.bases = {path.absolute().parts[1:], Path(os.path.realpath(path)).parts[1:]}
        self._open_to_links = open_to_links

    def close(self) -> None:
        os.close(self.fd)

    def open(self, inside: str) -> Source:
        return self._reach(inside, Source.open)

    def entry(self, inside: str, name: str) -> Entry:
        try:
            source = self._reach(inside, Source.open)
        except IsADirectoryError:
            fd = self._reach(inside, open_directory)
            try:
                return Entry(name, True, 0, os.fstat(fd).st_mtime_ns / 1e9)
            finally:
                os.close(fd)
        return Entry(name, False, source.size, source.mtime)

    def scan(self, inside: str) -> list[Entry]:
        fd = self._reach(inside, open_directory)
        try:
            with os.scandir(fd) as items:
                return [entry for item in items if (entry := self._scanned(inside, item))]
        finally:
            os.close(fd)

    def _scanned(self, inside: str, item: os.DirEntry[str]) -> Entry | None:
        if not is_speakable(item.name) or "\\" in item.name or item.name.endswith("\udcff"):
            return None  # a name that no client can ask for
        try:
            if item.is_symlink():
                return self.entry(f"{inside}/{item.name}", item.name)
            facts = item.stat(follow_symlinks=False)
        except OSError:
            return None  # a refused link, or a file removed since
        if stat.S_ISDIR(facts.st_mode):
            return Entry(item.name, True, 0, facts.st_mtime_ns / 1e9)
        if stat.S_ISREG(facts.st_mode):
            return Entry(item.name, False, facts.st_size, facts.st_mtime_ns / 1e9)
        return None

    def check(self) -> list[str]:
        """Return complaints about links and about directories that can not be read."""
        complaints: list[str] = []
        left = MAX_CHECKED
        todo = [""]
        while todo and left > 0 and len(complaints) <= MAX_COMPLAINTS:
            directory = todo.pop()
            try:
                fd = self._reach(directory or ".", open_directory)
            except OSError as error:
                complaints.append(complaint(self.path / directory, error))
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
                                self.entry(name, item.name)
                        except (OSError, UnicodeEncodeError) as error:
                            complaints.append(complaint(self.path / name, error))
            finally:
                os.close(fd)
        if left <= 0:
            complaints.append(f"{self.path}: only the first {MAX_CHECKED} names in it were looked at")
        return shortened(complaints, self.path)

    def _reach(self, inside: str, door: Callable[[int, str], T]) -> T:
        """Go through a confined door (Source.open, open_directory), over absolute links that are allowed."""
        tree = self
        for _ in range(MAX_LINKS):
            try:
                return door(tree.fd, inside)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            tree, inside = tree._leap(inside)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _leap(self, inside: str) -> tuple[Directory, str]:
        """Return where the absolute link on this path leads, as a place in one of the trees.

        What it returns is opened confined, so a link that changes meanwhile gains nothing. Raises OSError (EXDEV).
        """
        done: list[str] = []
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
            target = _link_target(self.fd, "/".join(done) or ".", part)
            if target is None:
                done.append(part)
            elif target.startswith("/"):
                return self._place((*target.split("/"), *todo))
            elif (links := links + 1) > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                todo.extendleft(reversed(target.split("/")))
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def _place(self, parts: tuple[str, ...]) -> tuple[Directory, str]:
        parts = tuple(part for part in parts if part not in ("", "."))
        matches = [
            (base, tree) for tree in self._open_to_links for base in tree.bases if parts[: len(base)] == base
        ]
        if not matches:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        base, tree = max(matches, key=lambda match: len(match[0]))
        return tree, "/".join(parts[len(base) :]) or "."


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


def is_speakable(name: str) -> bool:
    """Whether a name has no control characters: others no client is to see or ask for."""
    return not CONTROLS.search(name)


def refuse(reason: Reason) -> Refusal:
    return REFUSALS[reason]


def refusal_of(error: OSError | UnicodeEncodeError) -> Refusal:
    """Return what a client is told of an error of a Tree."""
    if isinstance(error, UnicodeEncodeError):
        return refuse(Reason.MISSING)  # a surrogate that no octet of a file name decodes to
    if isinstance(error, IsADirectoryError):
        return refuse(Reason.DIRECTORY)
    if isinstance(error, RefusedName):
        return Refusal(Reason.SPECIAL, error.strerror or TEXTS[Reason.SPECIAL])
    if isinstance(error, SpecialFileError):
        return refuse(Reason.SPECIAL)
    if error.errno in SHORT:
        return Refusal(Reason.BUSY, f"{os.strerror(error.errno)}, ask again later")
    return refuse(REASONS.get(error.errno or 0, Reason.BROKEN))


def shortened(complaints: list[str], path: Path) -> list[str]:
    """Return the first MAX_COMPLAINTS about a tree, with a last one if there were more."""
    if len(complaints) <= MAX_COMPLAINTS:
        return complaints
    return [*complaints[:MAX_COMPLAINTS], f"{path}: there is more in it that is not served, and not listed here"]


def complaint(path: Path, error: OSError | UnicodeEncodeError) -> str:
    """Return what the administrator is told of a path that a Tree does not serve."""
    refusal = refusal_of(error)
    remedy = {
        Reason.OUTSIDE: "a link may point below a root, a media directory or one of allow_links",
        Reason.FORBIDDEN: "let the user that fastboot drops to read it",
        Reason.MISSING: "the link points nowhere",
    }.get(refusal.reason, "it is never served")
    return f"{path}: {refusal.text}; {remedy}"

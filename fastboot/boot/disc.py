"""An ISO file that is served in place: every file in it is a range of the one open file."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

from fastboot._core import Source, SpecialFileError
from fastboot.boot.image import Item, Kind, Step
from fastboot.boot.index import Index, identity_of
from fastboot.boot.indexer import Indexer, MediaError
from fastboot.boot.tree import MAX_COMPLAINTS, Entry, is_speakable, refusal_of, shortened

Tell = Callable[[Step], None]


class Disc:
    """The tree of files in an image. The image is held open from the start (before privileges are dropped).

    It serves once there is an index: `prepare` has it built, unless one was kept. An image that was replaced by
    rename goes on being served until `refresh` has read the new one. One that is written in place is not: what
    the index says of it is no longer true: who asks is to come back (ESTALE), until it proves to be none (EIO).
    """

    def __init__(self, name: str, path: Path, indexer: Indexer) -> None:
        """Raises OSError where the image can not be opened."""
        self.path = path
        self.fault: str | None = None
        self._name, self._indexer = name, indexer
        source = _open(path)
        self._source: Source | None = source
        self._index: Index | None = None
        try:
            self._index = indexer.find(name, source.identity)
        except LookupError:
            self.fault = "it has not been read yet"
        self._seen = self._tried = source.identity

    def close(self) -> None:
        """Let the image go: it is closed with the last transfer out of it. Who asks is to come back (ESTALE)."""
        self._source = self._index = None

    @property
    def index(self) -> Index | None:
        """What is known of the image; None where it was not read, for the reason that is in `fault`."""
        return self._index

    async def prepare(self, tell: Tell) -> bool:
        """Have an index; return whether it had to be built. Raises MediaError, whose text stays in `fault`."""
        if self._index is not None or self._source is None:
            return False
        await self._adopt(self._source, tell)
        return True

    async def refresh(self, tell: Tell) -> bool:
        """Serve what has the image's name now; return whether that is a new one. To be asked again and again.

        A file is left alone until it was the same twice, for before that it may still be written. Raises
        MediaError, once for each file; then what was served goes on being served.
        """
        try:
            found = identity_of(await asyncio.to_thread(os.stat, self.path))
        except OSError:
            return False
        settled, self._seen = found == self._seen, found
        if found == self._tried or not settled:
            return False
        self._tried = found
        try:
            source = await asyncio.to_thread(_open, self.path)
        except OSError as error:
            raise MediaError(f"{self.path}: {error.strerror or error}") from error
        await self._adopt(source, tell)
        return True

    async def _adopt(self, source: Source, tell: Tell) -> None:
        self._tried = source.identity
        try:
            index = await self._indexer.read(self._name, source, tell)
        except MediaError as error:
            self.fault = str(error)
            raise MediaError(f"{self.path}: {error}") from error
        if self._source is not None:  # else it was closed meanwhile
            self._source, self._index, self.fault = source, index, None

    def open(self, inside: str) -> Source:
        index, image = self._ready()
        item = index.find(inside)
        if item.kind is Kind.DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return image.slice(item.offset, item.size, inside, item.mtime)

    def entry(self, inside: str, name: str) -> Entry:
        index, _ = self._ready()
        return _entry(name, index.find(inside))

    def scan(self, inside: str) -> list[Entry]:
        index, _ = self._ready()
        return [_entry(name, item) for name, item in index.scan(inside) if is_speakable(name) and "\\" not in name]

    def check(self) -> list[str]:
        """Return complaints about names in the image; nothing where it could not be read, see `fault`."""
        complaints: list[str] = []
        if self._index is None:
            return complaints
        for name, error in self._index.refused():
            shown = "".join(letter if letter.isprintable() else "?" for letter in name)
            complaints.append(f"{self.path}/{shown}: {refusal_of(error).text}; it is never served")
            if len(complaints) > MAX_COMPLAINTS:
                break
        return shortened(complaints, self.path)

    def image(self) -> Source:
        """Return the image itself. Raises OSError: ESTALE while it is written, EIO where that came to no good."""
        image = self._source
        if image is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if not image.unchanged():
            is_lost = self.fault and identity_of(os.fstat(image.fileno())) == self._tried
            number = errno.EIO if is_lost else errno.ESTALE
            raise OSError(number, os.strerror(number))
        return image

    def _ready(self) -> tuple[Index, Source]:
        index = self._index  # before the image: the loop may close both while a listing asks in a thread
        image = self.image()
        if index is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return index, image


class Whole:
    """A tree of one file, ".": the image of a disc as it is, for installers that fetch all of it (casper)."""

    def __init__(self, disc: Disc) -> None:
        self._disc, self.path = disc, disc.path

    def open(self, inside: str) -> Source:
        return self._disc.image()

    def entry(self, inside: str, name: str) -> Entry:
        image = self._disc.image()
        return Entry(name, False, image.size, image.mtime)

    def scan(self, inside: str) -> list[Entry]:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def check(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing of its own is open."""


def _open(path: Path) -> Source:
    """Open a file that the administrator names, wherever it is. Raises OSError."""
    whole = Path(os.path.realpath(path))
    directory = os.open(whole.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Source.open(directory, whole.name)
    except SpecialFileError as error:
        raise OSError(errno.EINVAL, "is no regular file") from error
    finally:
        os.close(directory)


def _entry(name: str, item: Item) -> Entry:
    return Entry(name, item.kind is Kind.DIRECTORY, item.size, item.mtime)

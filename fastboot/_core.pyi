"""The typed contract of the native core. Checked against the built module by stubtest."""

class SpecialFileError(OSError): ...

def open_directory(dirfd: int, path: str) -> int:
    """Open a directory beneath a directory descriptor, confined like Source.open; the caller closes it.
    Raises OSError, ValueError (NUL in the path)."""

class Source:
    """A byte range of one open file. The descriptor and the map are shared by all slices and all threads that
    hold it, and are closed with the last of them. Immutable; safe to use from any thread."""

    offset: int
    size: int
    name: str
    @staticmethod
    def open(dirfd: int, path: str) -> Source:
        """Open a regular file beneath a directory descriptor: openat2 with RESOLVE_BENEATH and
        RESOLVE_NO_MAGICLINKS, so the check is the open. Raises OSError (EXDEV: the path leaves the directory),
        IsADirectoryError, SpecialFileError, ValueError (NUL in the path)."""

    @staticmethod
    def of_bytes(name: str, data: bytes) -> Source:
        """Make a Source of bytes that no file holds (a rendered configuration), in a memfd."""

    def slice(self, offset: int, size: int, name: str | None = None) -> Source:
        """Return a part of this range, on the same open file. Raises ValueError outside of it."""

    @property
    def identity(self) -> tuple[int, int, int, int, int]:
        """(device, inode, size, mtime_ns, ctime_ns) of the whole file when it was opened."""

    @property
    def mtime(self) -> float:
        """Modification time in seconds since the epoch, when it was opened."""

    def fileno(self) -> int: ...
    def unchanged(self) -> bool:
        """Whether the file still has the size and times it was opened with."""

    def warm(self) -> None:
        """Map the file and read the range into memory, so that the engine never waits for a disk.
        Blocks without the GIL: call it in an executor. Raises OSError."""

    def read(self) -> bytes:
        """Return the whole range. Raises OSError (EIO) where the file became shorter."""

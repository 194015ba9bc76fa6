"""A media tree in the shape of a distribution's, the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SEED = b"fastboot lab media 1\0"
_PIECE = 1 << 20

_ODD_NAMES = (
    "release notes.txt",
    "docs/Installation Guide (draft) +1.txt",
    "docs/100%25 sure & 50% off; really.txt",
    'docs/it\'s [quoted] "twice" #1.txt',
    "docs/übersicht – 概要.txt",
    "docs/-leading-dash",
    "docs/.hidden/.deeper/...three dots",
    "AppStream/Packages/l/libstdc++-12.3.1-4.el9.x86_64.rpm",
    "AppStream/Packages/g/gtk+ extra~rc1^git.rpm",
    "a/b/c/d/e/f/g/h/i/j/deep",
)
_EXACT = (0, 1, 511, 512, 1408, 1448, 1468, 4096, 8192, 65464, 65536, 1 << 20)
"""Sizes at which a block, a segment, a page or a buffer is just full."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a tree holds, as read from the disk: path (from the tree, in bytes' order) to (octets, sha256)."""

    files: dict[str, tuple[int, str]]

    @property
    def octets(self) -> int:
        return sum(size for size, _ in self.files.values())

    def listing(self) -> bytes:
        """Return the tree as `find . -type f -exec sha256sum {} + | LC_ALL=C sort` prints it."""
        lines = sorted(f"{digest}  ./{path}\n".encode() for path, (_, digest) in self.files.items())
        return b"".join(lines)

    def digest(self) -> str:
        """Return the sha256 of `listing`: one figure for every name and every octet of the tree."""
        return hashlib.sha256(self.listing()).hexdigest()


def recipe() -> Iterator[tuple[str, int]]:
    """Yield path and size of each file: 250 files, 68 MB, nested, some with odd names or exact sizes."""
    yield ".treeinfo", 1_900
    yield ".discinfo", 71
    yield "images/install.img", 24_000_001
    yield "images/pxeboot/modules.img", 9_437_184
    for name in _ODD_NAMES:
        yield name, 2_000 + 37 * len(name.encode())
    for size in _EXACT:
        yield f"exact/{size}.bin", size
    for repository, count in (("BaseOS", 140), ("AppStream", 76)):
        yield f"{repository}/repodata/repomd.xml", 3_000
        yield f"{repository}/repodata/primary.xml.gz", 750_000
        yield f"{repository}/repodata/filelists.xml.gz", 1_250_000
        for index in range(count):
            initial = chr(ord("a") + index % 13)
            name = f"{repository}/Packages/{initial}/{initial}pkg{index:03}-1.{index % 7}-2.el9.x86_64.rpm"
            yield name, 4_000 + (index * index * 9_973) % 260_000


def make(root: Path) -> Manifest:
    """Write the tree below `root`, which must not exist yet, and return what is then read from the disk."""
    for path, size in recipe():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for start in range(0, size, _PIECE):
                seed = _SEED + f"{path}\0{start}".encode()
                file.write(hashlib.shake_128(seed).digest(min(_PIECE, size - start)))
    return read(root)


def read(root: Path) -> Manifest:
    """Read every regular file below `root`."""
    files = {}
    for path in sorted(root.rglob("*"), key=lambda path: bytes(path.relative_to(root))):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[str(path.relative_to(root))] = (path.stat().st_size, digest)
    return Manifest(files)

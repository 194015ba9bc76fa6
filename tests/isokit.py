"""Images made by real mastering programs, what other programs read in them, and what we do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastboot.boot.image import Image, Item, Kind, Step, Volume
from fastboot.boot.index import read_volume

XORRISO = ("xorriso", "-as", "mkisofs", "-quiet", "-V", "Lab-9-4-x86_64-dvd")
GENISOIMAGE = ("genisoimage", "-quiet", "-input-charset", "utf-8", "-V", "LAB-9")
SECTOR = 2048


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def put(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Make a tree; a text is the target of a link."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return root


def files_below(root: Path) -> dict[str, bytes]:
    """Return what a directory holds, links not followed."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Image(fd)
    finally:
        os.close(fd)


@contextmanager
def image_of(data: bytes) -> Iterator[Image]:
    """An image in memory."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        yield Image(fd)
    finally:
        os.close(fd)


def names_of(volume: Volume) -> dict[str, Item]:
    """Return everything that a walk finds, by path."""
    above = {0: ""}
    found: dict[str, Item] = {}
    for item in volume.walk():
        if isinstance(item, Step):
            continue
        path = above[item.parent] + os.fsdecode(item.name)
        if item.kind is Kind.DIRECTORY:
            above[item.number] = path + "/"
        found[path] = item
    return found


def read_all(path: Path, volume: Volume | None = None) -> dict[str, bytes]:
    """Return the files that we find in an image, by the extents that we find."""
    with opened(path) as image:
        return {
            name: os.pread(image.fd, item.size, item.offset)
            for name, item in names_of(volume or read_volume(image)).items()
            if item.kind is Kind.FILE
        }

"""Images made by real mastering programs, what other programs read in them, and what we do."""

from __future__ import annotations

import binascii
import fcntl
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastboot.boot.image import Image, ImageError, Item, Kind, Step, Volume
from fastboot.boot.index import read_volume
from fastboot.boot.iso import iso_volumes
from fastboot.boot.udf import udf_volume

XORRISO = ("xorriso", "-as", "mkisofs", "-quiet", "-V", "Lab-9-4-x86_64-dvd")
GENISOIMAGE = ("genisoimage", "-quiet", "-input-charset", "utf-8", "-V", "LAB-9")
SECTOR = 2048
LONG = "a-name-that-is-rather-long-" * 9
TELLING = re.compile(r"^[a-z0-9 :'_./-]+ at 0x[0-9a-f]+: .", re.IGNORECASE)
"""What an error says of an image: a structure, where it is, what is wrong."""


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


def sparse_image(command: tuple[str, ...], root: Path, target: Path) -> Path:
    """Write an image to a file without the zeros in it."""
    zeros = bytes(1 << 20)
    with subprocess.Popen((*command, root), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as made:
        assert made.stdout is not None
        fcntl.fcntl(made.stdout, fcntl.F_SETPIPE_SZ, len(zeros))
        with target.open("wb") as file:
            while data := made.stdout.read(len(zeros)):
                if zeros.startswith(data):
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    file.write(data)
            file.truncate()
    assert made.returncode == 0
    return target


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


def bare_udf(path: Path) -> Path:
    """Take the ISO 9660 descriptors out of an image that has UDF too: what is left is UDF and nothing else."""
    data = bytearray(path.read_bytes())
    for at in range(16 * SECTOR, 32 * SECTOR, SECTOR):
        if data[at + 1 : at + 6] == b"CD001":
            data[at : at + SECTOR] = bytes(SECTOR)
    bare = path.with_name("bare.udf")
    bare.write_bytes(data)
    return bare


def tag_again(data: bytearray, at: int) -> None:
    """Make the sums of a UDF descriptor right again, so that a change in it is looked at."""
    length = struct.unpack_from("<H", data, at + 10)[0]
    struct.pack_into("<H", data, at + 8, binascii.crc_hqx(bytes(data[at + 16 : at + 16 + length]), 0))
    data[at + 4] = 0
    data[at + 4] = sum(data[at : at + 16]) & 0xFF


def mend(data: bytearray) -> None:
    """Make the sums of every UDF descriptor right again."""
    for at in range(16 * SECTOR, len(data) - SECTOR + 1, SECTOR):
        if struct.unpack_from("<H", data, at)[0] in (2, 5, 6, 256, 257, 261):
            tag_again(data, at)


def telling_places(data: bytes) -> list[int]:
    """Return the offsets where a change may mean something: what is not zero, behind the system area."""
    return [at for at in range(16 * SECTOR, len(data)) if data[at]]


def small_images(base: Path) -> list[bytes]:
    """Make images of every form, each with a few of everything, as small as can be."""
    root = put(base / "tree", {
        ".treeinfo": b"[general]\n", "empty": b"", "d/e/f": b"x" * 3000, f"d/{LONG}": b"long",
        "link": "d/e/../e/f", "far": "x/" * 120, "a/b/c/d/e/f/g/h/i/deep": b"deep",
    })  # fmt: skip
    images = []
    for number, command in enumerate(
        [(*XORRISO, "-R", "-J"), (*GENISOIMAGE, "-R"), (*GENISOIMAGE, "-J"), (*GENISOIMAGE, "-udf")]
    ):
        path = base / f"{number}.iso"
        run(*command, "-o", path, root)
        images.append(path.read_bytes().rstrip(b"\0"))
    images.append(bare_udf(path).read_bytes().rstrip(b"\0"))
    return images


def survives(data: bytes) -> None:
    """Whatever an image holds: files within it, or an error that names a structure and its offset, and soon."""
    began = time.thread_time()
    with image_of(data) as image:
        try:
            for volume in (*iso_volumes(image), udf_volume(image)):
                for item in volume.walk() if volume else ():
                    if isinstance(item, Item) and item.kind is Kind.FILE:
                        assert 0 <= item.offset <= item.offset + item.size <= len(data)
        except ImageError as error:
            assert TELLING.match(str(error)), error
    assert time.thread_time() - began < 5

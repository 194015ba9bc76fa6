"""A fuzzer of what reads images of discs: ISO 9660, Rock Ridge, Joliet, UDF, the index, and what is recognised.

    make fuzz        or            python tests/fuzz_images.py [SECONDS]

atheris drives it by the coverage of our own code. Images are too large to be inputs: an input is what is changed
in a small one, which a mastering program wrote, and stands for an image whatever a mutation does to it. It says
which image, whether its sums are made right again and where it is cut off; then changes, each a place, a length,
octets.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / ".cache" / "fuzz"
SECONDS = 30
HEAD = struct.Struct(">BBH")
CHANGE = struct.Struct(">HB")
MENDED, INDEXED = 1, 2
LONGEST = 32
"""Octets of a change: a structure's field, or some of them."""


def main(seconds: int) -> int:
    corpus = BUILT / "images"
    corpus.mkdir(parents=True, exist_ok=True)
    for which in range(5):
        for flags in range(4):
            head = HEAD.pack(which, flags, 0)
            (corpus / f"{which}-{flags}").write_bytes(head)
            # The first descriptors, whose every octet is a structure's: so that libFuzzer begins with them.
            for at in range(0, 200, 8):
                change = b"\xff" * 4
                (corpus / f"{which}-{flags}-{at}").write_bytes(head + CHANGE.pack(at, len(change)) + change)
    command = [
        sys.executable,
        __file__,
        "--inside",
        f"-max_total_time={seconds}",
        "-max_len=512",
        "-len_control=0",
    ]
    command += [
        "-timeout=10",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={BUILT}/",
        "-print_final_stats=1",
        str(corpus),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def changed(data: bytes, images: list[bytes], places: list[list[int]]) -> bytearray:
    """Return the image that an input stands for."""
    which, flags, cut = HEAD.unpack_from(data)
    image, meaning = bytearray(images[which % len(images)]), places[which % len(images)]
    for where, octets in changes(data[HEAD.size :]):
        at = meaning[where % len(meaning)]
        image[at : at + len(octets)] = octets
    if flags & MENDED:
        from isokit import mend

        mend(image)
    if cut:
        del image[len(image) * cut >> 16 :]
    return image


def changes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + CHANGE.size < len(data):
        where, length = CHANGE.unpack_from(data, at)
        at += CHANGE.size
        yield where, data[at : at + length % LONGEST]
        at += length % LONGEST


def inside() -> None:
    import atheris

    with atheris.instrument_imports(include=["fastboot.boot"]):
        from isokit import TELLING, small_images, survives, telling_places

        from fastboot.boot.disc import Disc
        from fastboot.boot.image import ImageError
        from fastboot.boot.index import Identity, Index, write_index
        from fastboot.boot.media import recognise

    class Kept:
        """In the place of an Indexer: the index that was just written."""

        def __init__(self, path: Path) -> None:
            self._path = path

        def find(self, name: str, identity: Identity) -> Index:
            return Index(self._path, identity)

    work = TemporaryDirectory(dir="/dev/shm")
    images = small_images(Path(work.name))
    places = [telling_places(image) for image in images]
    path, index = Path(work.name, "x.iso"), Path(work.name, "x.index")

    def serve(image: bytes) -> None:
        """Take an image as the server does: index it, list it, look at each name, say what is on it."""
        path.write_bytes(image)
        index.unlink(missing_ok=True)
        with path.open("rb") as file:
            try:
                write_index(file.fileno(), index, lambda step: None)
            except ImageError as error:
                assert TELLING.match(str(error)), error
                return
        kept: Any = Kept(index)
        disc = Disc("x", path, kept)
        recognise(disc)
        disc.check()
        for entry in disc.scan("."):
            if not entry.is_dir:
                assert disc.open(entry.name).size == entry.size

    def story(data: bytes) -> None:
        if len(data) < HEAD.size:
            return
        image = bytes(changed(data, images, places))
        survives(image)
        if data[1] & INDEXED:
            serve(image)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], story)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside()
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))

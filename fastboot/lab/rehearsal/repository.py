"""The packages of a repository as its own index tells them: repodata of RPMs, Debian's Release and Packages."""

from __future__ import annotations

import bz2
import gzip
import html
import io
import lzma
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Name = str
"""A path below the repository."""


class Unreadable(Exception):
    """An index that can not be read here; says why."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a repository and its octets."""

    name: Name
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What the top of a repository tells: what an installer fetches before it knows the packages, and which of
    these files has them."""

    files: tuple[File, ...]
    index: File


_RPM_METADATA: Final = ("primary", "filelists", "modules", "group_gz", "group_xz", "group_zst", "group")
_SOURCES: Final = frozenset({b"src", b"nosrc"})
_LARGEST: Final = 1 << 30
"""Octets of an unpacked index; Fedora's largest, of 70,000 packages, has 170 MB."""
_PACKED: Final = 1 << 27
"""Octets of a packed one."""


def repomd(text: bytes) -> Contents:
    """Read repodata/repomd.xml. Raises Unreadable."""
    found: dict[str, File] = {}
    for kind, body in re.findall(rb'<data\s+type="(\w+)"\s*>(.*?)</data>', text, re.DOTALL):
        name, size = _href(body), re.search(rb"<size>(\d+)</size>", body)
        if name:
            found[kind.decode()] = File(name, min(int(size[1]), _PACKED) if size else _PACKED)
    if "primary" not in found:
        raise Unreadable("its repomd.xml names no primary.xml")
    groups = [each for each in _RPM_METADATA if each.startswith("group") and each in found]
    wanted = [each for each in _RPM_METADATA if each in found and each not in groups[1:]]
    return Contents(tuple(found[each] for each in wanted), found["primary"])


def release(text: bytes, suite: str) -> Contents:
    """Read dists/SUITE/Release, for amd64 where that is there. Raises Unreadable."""
    listed = {
        path.decode(): int(size)
        for size, path in re.findall(rb"^ \S+ +(\d+) (main/\S*binary-\S+/Packages\S*)$", text, re.M)
        if int(size)
    }
    folders = sorted({path.rpartition("/")[0] for path in listed}, key=lambda each: "amd64" not in each)
    machine = next((each.rpartition("binary-")[2] for each in folders if not each.endswith("-all")), "")
    files = []
    for folder in (f"main/debian-installer/binary-{machine}", f"main/binary-{machine}"):
        for form in (".xz", ".gz", ""):
            if size := listed.get(f"{folder}/Packages{form}"):
                files.append(File(f"dists/{suite}/{folder}/Packages{form}", size))
                break
    if not files or "debian-installer" in files[-1].name:
        raise Unreadable("its Release names no Packages")
    return Contents(tuple(files), files[-1])


def packages(index: File, octets: bytes) -> tuple[File, ...]:
    """Read the index with the packages, packed as its name says. Raises Unreadable."""
    text = unpack(index.name, octets)
    read = _debs if "/Packages" in index.name else _rpms
    return tuple({file.name: file for file in read(text) if file.name}.values())


def some(packages: Sequence[File], most: int) -> tuple[File, ...]:
    """Return packages of at most so many octets together, the same each time, all sizes as often as they are."""
    chosen, left = [], most
    for file in sorted(packages, key=lambda file: zlib.crc32(file.name.encode())):
        if file.size <= left:
            chosen.append(file)
            left -= file.size
    return tuple(chosen)


def unpack(name: str, octets: bytes) -> bytes:
    """Return what is in a packed file. Raises Unreadable."""
    form = name.rpartition(".")[2]
    try:
        text = _FORMS.get(form, bytes)(octets)
        if len(text) == _LARGEST:
            raise ValueError("it is larger than any that is known")
        return text
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise Unreadable(f"{name}: {error}") from error


def _unzstd(octets: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise ValueError("there is no program zstd to unpack it")
    with tempfile.TemporaryFile() as packed:
        packed.write(octets)
        packed.seek(0)
        words = [program, "-dcq"]
        with subprocess.Popen(words, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            text = process.stdout.read(_LARGEST)
        if process.returncode and len(text) < _LARGEST:
            raise ValueError("it is damaged")
    return text


def _bounded(make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Callable[[bytes], bytes]:
    def unpacked(octets: bytes) -> bytes:
        return make().decompress(octets, _LARGEST)

    return unpacked


def _gunzip(octets: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(octets)) as file:
        return file.read(_LARGEST)


_FORMS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "gz": _gunzip,
    "xz": _bounded(lzma.LZMADecompressor),
    "bz2": _bounded(bz2.BZ2Decompressor),
    "zst": _unzstd,
}


def _rpms(text: bytes) -> Iterable[File]:
    for match in re.finditer(rb"<package\b.*?</package>", text, re.DOTALL):
        name = _href(match[0])
        size = re.search(rb'<size\b[^>]*\bpackage="(\d+)"', match[0])
        architecture = re.search(rb"<arch>(\w+)</arch>", match[0])
        if size and not (architecture and architecture[1] in _SOURCES):
            yield File(name, int(size[1]))


def _debs(text: bytes) -> Iterable[File]:
    for paragraph in text.split(b"\n\n"):
        fields = dict(re.findall(rb"^(Filename|Size): *(\S+)$", paragraph, re.MULTILINE))
        if len(fields) == 2 and fields[b"Size"].isdigit():
            yield File(_plain(fields[b"Filename"].decode("utf-8", "replace")), int(fields[b"Size"]))


def _href(text: bytes) -> Name:
    match = re.search(rb'<location\b[^>]*\bhref="([^"]+)"', text)
    return _plain(html.unescape(match[1].decode("utf-8", "replace"))) if match else ""


def _plain(name: Name) -> Name:
    """Return a name that can stand in a request; nothing of another."""
    return name if name.isprintable() else ""

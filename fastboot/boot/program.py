"""What a boot program says of itself: what it is, its version, who signed it, what it can fetch by.

The files may be a stranger's (a kernel on a medium): what is broken in them is left out.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from fastboot._core import Source

LARGEST: Final = 64 << 20
"""Octets of the largest file that is looked at."""

_SHA256: Final = bytes.fromhex("608648016503040201")
_COMMON_NAME, _ORGANISATION = bytes.fromhex("550403"), bytes.fromhex("55040a")
_MODULES: Final = b"mimg"
_ELF, _PREFIX = 0, 3
_CPUS: Final = {0x14C: "ia32", 0x8664: "x64", 0xAA64: "aa64"}
"""Machine types of PE, as names of boot programs have them."""
_IPXE_VERSION: Final = re.compile(rb"\0(\d+\.\d+\.\d+[+\-.~\w()]*(?: \([0-9a-f]+\))?)\0")
_GRUB_VERSION: Final = re.compile(rb"\0(\d\.\d\d[+\-.~\w]*)\0")
_LOADS: Final = re.compile(rb"\\\0((?:[\w.]\0)+?\.\0e\0f\0i\0)\0\0")
"""A name in a shim after a backslash, in UTF-16 (shim, DEFAULT_LOADER)."""
_PXELINUX: Final = re.compile(rb"PXELINUX (\d\.\d+) (PXE|lwIP)")


class Kind(StrEnum):
    """What a program is, by the name that people have for it."""

    SHIM = "shim"
    GRUB = "GRUB"
    IPXE = "iPXE"
    PXELINUX = "PXELINUX"
    LPXELINUX = "lpxelinux"
    LINUX = "Linux"


@dataclass(frozen=True, slots=True)
class Program:
    """A boot program.

    `signers` are the names of those that vouch for its signatures (the issuers of the certificates), `issuers` the
    same as X.509 has them. `altered`: it was changed after it had been signed. `modules` and `prefix` are built
    into GRUB: the names of its modules, and where it looks for its configuration. `trusted`: shim's certificates;
    `loads`: the file that it loads from beside itself. `cpu`: "x64", "aa64" or "ia32", of programs for UEFI.
    """

    kind: Kind | None = None
    version: str = ""
    signers: tuple[str, ...] = ()
    issuers: tuple[bytes, ...] = ()
    altered: bool = False
    modules: frozenset[str] = frozenset()
    prefix: str = ""
    trusted: bytes = b""
    loads: str = ""
    cpu: str = ""

    def trusts(self, other: Program) -> bool:
        """Whether this shim has a certificate of whoever signed the other program, unaltered since."""
        return not other.altered and any(issuer in self.trusted for issuer in other.issuers)

    def __str__(self) -> str:
        return f"{self.kind or 'a program'} {self.version}".strip()


class Programs:
    """What files are: each is looked at once, as long as it stays the same. For any thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Program] = {}

    def at(self, path: Path) -> Program:
        """Say what a file of this system is. Of one that can not be read nothing is known."""
        try:
            status = path.stat()
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            return self._look((*key, 0, status.st_size), path.read_bytes)
        except OSError:
            return Program()

    def of(self, source: Source) -> Program:
        """Say what a file of the one namespace is, as `at` does."""
        try:
            return self._look((*source.identity, source.offset, source.size), source.read)
        except OSError:
            return Program()

    def _look(self, key: tuple[int, ...], read: Callable[[], bytes]) -> Program:
        if key not in self._known:
            self._known[key] = recognise(read()) if key[-1] <= LARGEST else Program()
        return self._known[key]


def recognise(data: bytes) -> Program:
    """Say what a file is. Never raises: one that is none of those we know has no kind."""
    image = _Image.read(data)
    kind, version = _name(data, image)
    signatures = list(image.signatures()) if image else []
    issuers = tuple(dict.fromkeys(issuer for issuer, _ in signatures))
    modules, prefix = image.grub() if image and kind is Kind.GRUB else (frozenset[str](), "")
    return Program(
        kind,
        version,
        tuple(filter(None, map(_common_name, issuers))),
        issuers,
        bool(image and any(digest and digest != image.digest() for _, digest in signatures)),
        modules,
        prefix,
        _vendor(image.section(b".vendor_cert")) if image and kind is Kind.SHIM else b"",
        _loads(data) if kind is Kind.SHIM else "",
        image.cpu if image else "",
    )


def _name(data: bytes, image: _Image | None) -> tuple[Kind | None, str]:
    """Return kind and version."""
    sbat = _sbat(image.section(b".sbat")) if image else {}
    for kind, component in ((Kind.SHIM, "shim"), (Kind.GRUB, "grub")):
        if component in sbat:
            return kind, sbat[component]
    if data[0x202:0x206] == b"HdrS":  # Documentation/arch/x86/boot.rst
        at = int.from_bytes(data[0x20E:0x210], "little") + 0x200
        return Kind.LINUX, _text(data[at : at + 128]).split(" ")[0]
    if data[56:60] == b"ARM\x64" or data[4:8] == b"zimg":  # Documentation/arch/arm64/booting.rst; EFI zboot
        return Kind.LINUX, ""
    if b"GNU GRUB  version" in data:
        return Kind.GRUB, _first(_GRUB_VERSION, data)
    if found := _PXELINUX.search(data):
        return (Kind.LPXELINUX if found[2] == b"lwIP" else Kind.PXELINUX), found[1].decode()
    if b"iPXE" in data or b"PXE->EB:" in data:  # the latter: undionly.kpxe, whose rest is compressed
        return Kind.IPXE, _first(_IPXE_VERSION, data)
    return None, ""


def _vendor(section: bytes) -> bytes:
    """Return the certificates that a shim trusts, without those that it bans (shim, cert.S)."""
    if len(section) < 16:
        return b""
    size, _, start, _ = struct.unpack_from("<IIII", section)
    return section[start : start + size]


def _loads(shim: bytes) -> str:
    """Return the name of GRUB that is built into a shim: grubx64.efi and the like, SUSE's grub.efi."""
    names = (found[1].decode("utf-16-le") for found in _LOADS.finditer(shim))
    return next((name for name in names if name.startswith("grub")), "")


def _sbat(section: bytes) -> dict[str, str]:
    """Return the version of each component that a program lists (shim, SBAT.md): that of its last builder."""
    versions: dict[str, str] = {}
    for row in _text(section, keep="\n").splitlines():
        fields = row.split(",")
        if len(fields) >= 5 and fields[0] != "sbat":
            versions[fields[0].split(".")[0]] = fields[4]
    return versions


def _first(pattern: re.Pattern[bytes], data: bytes) -> str:
    return found[1].decode() if (found := pattern.search(data)) else ""


def _text(octets: bytes, keep: str = "") -> str:
    text = octets.split(b"\0")[0].decode("ascii", "replace")
    return "".join(each if each.isprintable() or each in keep else "?" for each in text)


@dataclass(frozen=True, slots=True)
class _Image:
    """A program for UEFI: a PE file ("PE Format" of Microsoft). `table` is where its certificates are and how many
    octets, `gaps` where the two fields are that its digest leaves out."""

    cpu: str

    data: bytes
    sections: Mapping[bytes, tuple[int, int]]
    table: tuple[int, int]
    gaps: tuple[int, int]

    @classmethod
    def read(cls, data: bytes) -> _Image | None:
        """Return what a file is, None where it is none or broken."""
        try:
            (header,) = struct.unpack_from("<I", data, 0x3C)
            if data[:2] != b"MZ" or data[header : header + 4] != b"PE\0\0":
                return None
            machine, count, symbols, symbol_count, size = struct.unpack_from("<HHxxxxIIH", data, header + 4)
            optional = header + 24
            (magic,) = struct.unpack_from("<H", data, optional)
            directory = optional + (112 if magic == 0x20B else 96) + 4 * 8
            table = struct.unpack_from("<II", data, directory)
            sections = {}
            for at in range(optional + size, optional + size + 40 * count, 40):
                name, virtual, raw, start = struct.unpack_from("<8sI4xII", data, at)
                name = name.rstrip(b"\0")
                if name[:1] == b"/":  # longer than 8 octets: where it is in the table after the symbols
                    place = symbols + 18 * symbol_count + int(name[1:])
                    name = data[place : place + 64].split(b"\0")[0]
                sections[name] = (start, min(virtual, raw))
        except (struct.error, ValueError):
            return None
        return cls(_CPUS.get(machine, ""), data, sections, table, (optional + 64, directory))

    def section(self, name: bytes) -> bytes:
        start, size = self.sections.get(name, (0, 0))
        return self.data[start : start + size]

    def digest(self) -> bytes:
        """Return what a signature vouches for ("Windows Authenticode Portable Executable Signature Format")."""
        checksum, directory = self.gaps
        end = self.table[0] or len(self.data)
        octets = memoryview(self.data)
        sha256 = hashlib.sha256(octets[:checksum])
        sha256.update(octets[checksum + 4 : directory])
        sha256.update(octets[directory + 8 : end])
        sha256.update(bytes(-end % 8))
        return sha256.digest()

    def signatures(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the issuer of each signer's certificate, and the digest that was signed, where it is SHA-256."""
        at, end = self.table[0], sum(self.table)
        while at and at + 8 <= min(end, len(self.data)):
            (size,) = struct.unpack_from("<I", self.data, at)
            try:
                yield from _signers(self.data[at + 8 : at + size])
            except (IndexError, ValueError):
                return
            at += max(8, size + -size % 8)

    def grub(self) -> tuple[frozenset[str], str]:
        """Return the names of the modules in GRUB's image, and its prefix (grub/kernel.h)."""
        area, names, prefix = self.section(b"mods"), set(), ""
        try:
            magic, at, end = struct.unpack_from("<4s4xQQ", area)
            if magic != _MODULES:  # 32 bits
                magic, at, end = struct.unpack_from("<4sII", area)
            while magic == _MODULES and at + 8 <= min(end, len(area)):
                kind, size = struct.unpack_from("<II", area, at)
                if kind == _ELF:
                    names.add(_module_name(area[at + 8 : at + size]))
                elif kind == _PREFIX:
                    prefix = _text(area[at + 8 : at + size])
                at += max(8, size)
        except struct.error:
            pass
        return frozenset(names), prefix


def _module_name(elf: bytes) -> str:
    """Return the name of one of GRUB's modules: section .modname."""
    wide = elf[4:5] == b"\2"
    (table,) = struct.unpack_from("<Q" if wide else "<I", elf, 0x28 if wide else 0x20)
    each, count, names = struct.unpack_from("<HHH", elf, 0x3A if wide else 0x2E)

    def place(number: int) -> tuple[int, int, int]:
        """Return name, start and size of a section."""
        name, start, size = struct.unpack_from("<I20xQQ" if wide else "<I12xII", elf, table + number * each)
        return name, start, size

    _, strings, _ = place(names)
    for number in range(count):
        name, start, size = place(number)
        if elf[strings + name : strings + name + 9] == b".modname\0":
            return _text(elf[start : start + size])
    return ""


def _signers(pkcs7: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read SignedData (RFC 2315 section 9.1): yield who issued the certificate of each signer, and the digest.

    Raises ValueError and IndexError for what is none.
    """
    fields = list(_members(_inside(pkcs7, 0, 1, 0)))
    signed = _inside(fields[2][1], 1, 0, 1)
    digest = _inside(signed, 1) if _inside(signed, 0, 0) == _SHA256 else b""
    for _, signer in _members(fields[-1][1]):
        yield _inside(signer, 1, 0), digest


def _inside(octets: bytes, *path: int) -> bytes:
    """Return the content of an element, by its place in each that holds it. Raises ValueError, IndexError."""
    for number in path:
        octets = list(_members(octets))[number][1]
    return octets


def _members(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element that DER has here (X.690). Raises ValueError, IndexError."""
    at = 0
    while at < len(octets):
        tag, size = octets[at], octets[at + 1]
        at += 2
        if size & 0x80:
            width = size & 0x7F
            size = int.from_bytes(octets[at : at + width], "big")
            at += width
        if not 0 <= size <= len(octets) - at:
            raise ValueError("an element is longer than what holds it")
        yield tag, octets[at : at + size]
        at += size


def _common_name(issuer: bytes) -> str:
    """Return what people call who is named: the common name, else the organisation."""
    names = {}
    try:
        for _, relative in _members(issuer):
            for _, pair in _members(relative):
                (_, kind), (_, value) = _members(pair)
                names[kind] = "".join(each for each in value.decode("utf-8", "replace") if each.isprintable())
    except (IndexError, ValueError):
        pass
    return names.get(_COMMON_NAME) or names.get(_ORGANISATION, "")

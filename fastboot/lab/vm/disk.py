"""What the lab's installer writes: the image of a disk that says whose it is, on the serial console, and no more.

A BIOS starts the boot sector; UEFI finds GRUB in the EFI system partition, a FAT16 volume (Microsoft's fatgen103).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SAYS: Final = "@lab disk "
"""What an installed machine writes to its console before its name."""
NAME: Final = b"nobody".ljust(32)
"""What stands in the image where the installer writes the machine's name, padded with blanks."""
GRUB: Final = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
"""A GRUB for disks, of Debian's package grub-efi-amd64-signed."""

_SECTOR, _FIRST, _SECTORS, _ROOT = 512, 64, 16384, 512
_FILE, _DIRECTORY = 0x20, 0x10

# Real mode, 0000:7C00: write the text at `si` to the first serial port, octet by octet when its line status says
# that there is room, then halt.
_CODE: Final = bytes.fromhex(
    "fa 31c0 8ed8 8ed0 bc007c fc be4b7c"  # cli; ds, ss = 0; sp = 7C00; cld; si = 7C4B
    "ac 84c0 7412 88c3"  # next: lodsb; is it the last? then stop; bl = al
    "bafd03 ec a820 74fb"  # wait: dx = 3FD; in al, dx; test al, 20; again
    "88d8 baf803 ee ebe9"  # al = bl; dx = 3F8; out dx, al; next
    "f4 ebfd"  # stop: hlt; stop
)
_TEXT_AT: Final = 0x4B


def image(grub: Path | None = None) -> bytes:
    """Return the image: 8 MB, the same octets every time. Without a GRUB only a BIOS starts it."""
    text = b"\r\n" + SAYS.encode() + NAME + b"\r\n\0"
    sector = (_CODE.ljust(_TEXT_AT, b"\0") + text).ljust(446, b"\0")
    # One active partition of type EF, an EFI system partition (UEFI 2.10 section 5.2).
    sector += struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0xEF, b"\xfe\xff\xff", _FIRST, _SECTORS) + bytes(48)
    config = f"set pager=0\necho\necho '{SAYS}{NAME.decode()}'\nhalt\n"
    files = {"EFI/BOOT/BOOTX64.EFI": grub.read_bytes(), "EFI/DEBIAN/GRUB.CFG": config.encode()} if grub else {}
    return (sector + b"\x55\xaa").ljust(_FIRST * _SECTOR, b"\0") + _fat16(files)


def places(disk: bytes) -> list[int]:
    """Return where in an image a machine's name belongs."""
    found, at = [], -1
    while (at := disk.find(NAME, at + 1)) >= 0:
        found.append(at)
    return found


def _fat16(files: Mapping[str, bytes]) -> bytes:
    """Return a volume with these files, whose names are of 8 and 3 upper-case letters; clusters are sectors."""
    per_fat = -(-_SECTORS * 2 // _SECTOR)
    table, data = [0xFFF8, 0xFFFF], bytearray()

    def store(content: bytes) -> int:
        """Append a file's clusters, one after the other; return the first, 0 for an empty file."""
        count = -(-len(content) // _SECTOR)
        first = len(table)
        table.extend([*range(first + 1, first + count), 0xFFFF] if count else [])
        data.extend(content.ljust(count * _SECTOR, b"\0"))
        return first if count else 0

    def entry(name: str, kind: int, first: int, size: int = 0) -> bytes:
        stem, _, end = (name, "", "") if name.startswith(".") else name.partition(".")
        return struct.pack("<8s3sB14xHI", f"{stem:8}".encode(), f"{end:3}".encode(), kind, first, size)

    tops: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        top, inner, name = path.split("/")
        assert top == "EFI"
        tops.setdefault(inner, {})[name] = content
    root = b""
    if tops:
        # Of a directory the first cluster is known before its entries are, so that those below can name it.
        efi = store(bytes(_SECTOR))
        below = [entry(".", _DIRECTORY, efi), entry("..", _DIRECTORY, 0)]
        for inner, content_of in tops.items():
            stored = {name: (store(content), len(content)) for name, content in content_of.items()}
            own = len(table)
            entries = [entry(".", _DIRECTORY, own), entry("..", _DIRECTORY, efi)]
            entries += [entry(name, _FILE, first, size) for name, (first, size) in stored.items()]
            assert store(b"".join(entries)) == own
            below.append(entry(inner, _DIRECTORY, own))
        at = (efi - 2) * _SECTOR
        data[at : at + _SECTOR] = b"".join(below).ljust(_SECTOR, b"\0")
        root = entry("EFI", _DIRECTORY, efi)
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(b"\xeb\x3c\x90", b"FASTBOOT", _SECTOR, 1, 1, 2, _ROOT, _SECTORS, 0xF8, per_fat, 32, 8, _FIRST, 0),
        *(0x80, 0, 0x29, 0x0FA57B07, b"LAB        ", b"FAT16   "),
    )
    fat = struct.pack(f"<{len(table)}H", *table).ljust(per_fat * _SECTOR, b"\0")
    volume = boot.ljust(510, b"\0") + b"\x55\xaa" + fat * 2 + root.ljust(_ROOT * 32, b"\0") + bytes(data)
    assert len(volume) <= _SECTORS * _SECTOR
    return volume.ljust(_SECTORS * _SECTOR, b"\0")

"""Firmware as tables: which class of machines asks, and what it wants beside a boot file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ARCHITECTURES: Final[Mapping[int, str]] = {
    0x00: "bios",
    0x01: "nec98",
    0x02: "uefi-ia64",
    0x03: "alpha",
    0x04: "arc-x86",
    0x05: "lean-client",
    0x06: "uefi-ia32",
    0x07: "uefi-x64",
    0x08: "uefi-xscale",
    0x09: "uefi-x64",  # EBC by number, but sent by real x64 machines (RFC 4578 erratum 4624, xcat2/xcat-core#7645)
    0x0A: "uefi-arm32",
    0x0B: "uefi-arm64",
    0x0C: "ppc-openfirmware",
    0x0D: "ppc-epapr",
    0x0E: "opal",
    0x0F: "http-ia32",
    0x10: "http-x64",
    0x11: "http-x64",
    0x12: "http-arm32",
    0x13: "http-arm64",
    0x14: "http-bios",
    0x15: "uboot-arm32",
    0x16: "uboot-arm64",
    0x17: "http-uboot-arm32",
    0x18: "http-uboot-arm64",
    0x19: "uefi-riscv32",
    0x1A: "http-riscv32",
    0x1B: "uefi-riscv64",
    0x1C: "http-riscv64",
    0x1D: "uefi-riscv128",
    0x1E: "http-riscv128",
    0x1F: "s390",
    0x20: "s390-extended",
    0x21: "uefi-mips32",
    0x22: "uefi-mips64",
    0x23: "uefi-sunway32",
    0x24: "uefi-sunway64",
    0x25: "uefi-loongarch32",
    0x26: "http-loongarch32",
    0x27: "uefi-loongarch64",
    0x28: "http-loongarch64",
    0x29: "rpiboot",
    0x100: "uboot",  # U-Boot before 0x15 and 0x16 were assigned (its config_distro_defaults.h)
}
"""Option 93 (IANA "Processor Architecture Types", RFC 4578 section 2.1) to the classes that `boot.loaders` names.

`boot.architectures` adds to it. A class that begins with http- is given URLs.
"""
NOT_SAID: Final = 0xFFFF
"""What U-Boot and iPXE for s390x send as architecture where they have none to tell."""
X86_BIOS: Final = 0x00
"""Also what clients send that have no code of their own."""
IPXE: Final = "ipxe"
"""The class of iPXE, on whatever firmware it runs."""
ONIE: Final = "onie"

VENDORS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"onie_vendor:", ONIE),
    (b"u-boot.armv8", "uboot-arm64"),
    (b"u-boot.arm", "uboot-arm32"),
    (b"u-boot", "uboot"),
)
"""How option 60 begins, in lower case, of clients whose architecture code says nothing. Boards write the name of
U-Boot in several ways, also with a space before it."""

ALONE: Final = frozenset({"opal", "rpiboot", ONIE, "uboot", "uboot-arm32", "uboot-arm64"})
"""Classes that boot without a boot file: petitboot and U-Boot look for pxelinux.cfg on the server of the header's
`siaddr`, a Raspberry Pi for its own files; ONIE is left alone unless `boot.loaders.onie` is set."""

PXE_CLIENT, HTTP_CLIENT = b"PXEClient", b"HTTPClient"
VENDOR_OPTIONS, VENDOR_CLASS, TFTP_SERVER, DEFAULT_URL, IPXE_OPTIONS = 43, 60, 66, 114, 175
PATH_PREFIX: Final = 210
"""What PXELINUX puts before the names of files (RFC 5071 section 5)."""
SERVER: Final = "{server}"
"""In boot files and in options it stands for the address of the machine's file server."""

SKIP_DISCOVERY: Final = b"\x06\x01\x08\x0a\x04\x00PXE\xff"
"""Option 43 under PXEClient (PXE 2.1 table 2-1): no search for boot servers, take the boot file of this offer; a
prompt "PXE" of 0 s. Without it, EDK2 takes an offer with option 60 for BINL and asks port 4011 next."""
RASPBERRY_MENU: Final = b"\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff"
"""Option 43 that the ROM of the Raspberry Pi 3 and the EEPROM of 4 and 5 search for their words (raspberrypi
documentation, "Network booting"; the same octets as dnsmasq's `pxe-service`)."""
NO_PXEDHCP: Final = b"\xb0\x01\x01"
"""Option 175 to iPXE: do not wait 2 s for proxy offers, for this server alone decides what boots."""

ANSWERS: Final[Mapping[str, tuple[tuple[int, bytes], ...]]] = {
    "rpiboot": (
        (TFTP_SERVER, SERVER.encode()),  # a bootcode.bin of 2017 passes over `siaddr` (raspberrypi/firmware#801)
        (VENDOR_OPTIONS, RASPBERRY_MENU),
        (VENDOR_CLASS, PXE_CLIENT),
    ),
}
"""Options that a class needs to boot at all, whether it asks for them or not."""

IPXE_SCHEMES: Final = {"http": 0x13, "https": 0x14, "tftp": 0x15, "ftp": 0x16, "nfs": 0x29}
"""The feature that iPXE lists in option 175 where it can fetch from such a URL."""
SCRIPT: Final = "boot/boot.ipxe"
"""What iPXE gets: a rendered script, never a loader (the chainload loop: boot-clients.md, capture 6)."""


@dataclass(frozen=True, slots=True)
class Device:
    """Machines that send another's architecture code, and what tells them from it.

    `macs` are how their MAC addresses begin, `machine_ids` how option 97 does.
    """

    class_: str
    sends: int
    macs: tuple[bytes, ...]
    machine_ids: tuple[bytes, ...]


DEVICES: Final[tuple[Device, ...]] = (
    Device(
        "rpiboot",
        X86_BIOS,
        # The registry's entries of Raspberry Pi Foundation, Trading Ltd and (Trading) Ltd.
        tuple(
            bytes.fromhex(prefix)
            for prefix in ("28cdc1", "2ccf67", "3a3541", "88a29e", "b827eb", "d83add", "dca632", "e45f01")
        ),
        # The ROM of the Pi 3 has one for all; the EEPROM of 4 and 5 begins with four letters for the board.
        (b"\x00" + b"\x44" * 16, b"\x00RPi"),
    ),
)


def class_of(
    architecture: int | None,
    vendor_class: bytes = b"",
    mac: bytes = b"",
    machine_id: bytes = b"",
    names: Mapping[int, str] = ARCHITECTURES,
) -> str | None:
    """Return the class of what asks, None where nothing tells (an operating system, a second-stage loader).

    `architecture` and `names` are codes of option 93; the rest is as sent (options 60 and 97). An unknown code has
    a class of its own, such as "arch-0x0040".
    """
    if architecture in (None, NOT_SAID) or (
        architecture == X86_BIOS and not vendor_class.startswith((PXE_CLIENT, HTTP_CLIENT))
    ):
        asked = vendor_class.lstrip().lower()
        named = next((class_ for prefix, class_ in VENDORS if asked.startswith(prefix)), None)
        if named or architecture != X86_BIOS:
            return named
    for device in DEVICES:
        if architecture == device.sends and (
            mac.startswith(device.macs) or machine_id.startswith(device.machine_ids)
        ):
            return device.class_
    class_ = names.get(architecture, f"arch-{architecture:#06x}") if architecture is not None else None
    if class_ and vendor_class.startswith(HTTP_CLIENT) and not class_.startswith("http-"):
        return f"http-{class_.removeprefix('uefi-')}"
    return class_


def is_ipxe(user_class: bytes, ipxe_options: bytes) -> bool:
    """Whether iPXE asks: by option 77, raw (as iPXE sends it) or length-prefixed (RFC 3004), or by option 175."""
    return bool(ipxe_options) or user_class == b"iPXE" or b"iPXE" in user_classes(user_class)


def user_classes(value: bytes) -> list[bytes]:
    """Split option 77 as RFC 3004 section 4 has it; nothing where it is not so."""
    strings, at = [], 0
    while at < len(value):
        end = at + 1 + value[at]
        if end > len(value):
            return []
        strings.append(value[at + 1 : end])
        at = end
    return strings

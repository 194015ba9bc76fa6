"""The kinds of machines, as data: what their firmware asks by DHCP and TFTP, and what each loader asks after it.

Sources: captures of OVMF, iPXE, PXELINUX, GRUB and shim of Debian 12 (tests/vectors), and the sources named beside
each figure.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Final

from fastboot.lab._machines import Manner
from fastboot.lab.tftp import EDK2, GRUB, IPXE, PXELINUX, SHIM, Client

_COOKIE: Final = b"\x63\x82\x53\x63"
DISCOVER, REQUEST, RELEASE = 1, 3, 7
OWN_ID: Final = b""
"""In option 61: the machine's MAC address, as type 1."""
_CHOICE: Final = (54, bytes(4)), (50, bytes(4))
Options = tuple[tuple[int, bytes], ...]
_ANY: Final = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class Dhcp:
    """How a client asks for its address. The options of each message stand in its order, after option 53; those
    of a REQUEST hold 50 and 54, into which the offer goes.

    `waits`: the seconds until it asks again, in turn; `collects`: how long it waits for more offers after the
    first, from when it asked; `hasty`: an offer that says it is the only one ends that. `seconds` is the
    header's field.
    """

    discover: Options
    request: Options
    waits: tuple[float, ...]
    broadcast: bool = False
    collects: float = 0.0
    hasty: bool = False
    seconds: tuple[int, int] = (0, 0)
    least: int = 0

    def message(self, type_: int, mac: bytes, xid: int) -> bytes:
        """Return DISCOVER or REQUEST as it is on the wire, without what an offer says."""
        options, seconds = (
            (self.discover, self.seconds[0]) if type_ == DISCOVER else (self.request, self.seconds[1])
        )
        return self._message(type_, options, mac, xid, seconds).ljust(self.least, b"\0")

    def release(self, mac: bytes, address: IPv4Address, server: IPv4Address) -> bytes:
        """Return the DHCPRELEASE of an address that this client leased (RFC 2131 section 4.4.4)."""
        own = [(61, value) for code, value in self.request if code == 61]
        return self._message(RELEASE, ((54, server.packed), *own), mac, 0, 0, address)

    def _message(
        self, type_: int, options: Options, mac: bytes, xid: int, seconds: int, address: IPv4Address = _ANY
    ) -> bytes:
        flags = 0x8000 if self.broadcast and type_ != RELEASE else 0
        head = struct.pack("!BBBBIHH4s12x", 1, 1, 6, 0, xid, seconds, flags, address.packed)
        body = b"".join(
            bytes([code, len(value)]) + value
            for code, value in (
                (53, bytes([type_])),
                *((code, b"\1" + mac if code == 61 and value == OWN_ID else value) for code, value in options),
            )
        )
        return head + mac.ljust(16, b"\0") + bytes(192) + _COOKIE + body + b"\xff"

    def manner(self) -> Manner:
        return Manner(self.waits)


def _asked(text: str) -> tuple[int, bytes]:
    return 55, bytes.fromhex(text)


_EDK2_WAITS: Final = (4.0, 8.0, 16.0, 32.0)
"""UefiPxeBcDxe/PxeBcImpl.c; it collects offers for all of the first (PxeBcDhcp4.h)."""
_IPXE_WAITS: Final = (1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0)
_ZERO_ID: Final = (97, bytes(17))


def _edk2(vendor_class: bytes, architecture: bytes, asks: str, largest: int) -> Dhcp:
    own = _ZERO_ID, (94, b"\1\3\0"), (93, architecture), (60, vendor_class)
    return Dhcp(
        ((57, b"\x05\xc0"), _asked(asks), *own),
        (*_CHOICE, (57, largest.to_bytes(2)), _asked(asks), *own),
        _EDK2_WAITS,
        broadcast=True,
        collects=4.0,
    )


_INTEL = (
    _asked("01020305060b0c0d0f10111216171c28292a2b3233363a3b3c42438081828384858687"),
    (57, b"\x04\xec"),
    (97, bytes(17)),
    (93, b"\0\0"),
    (94, b"\1\2\1"),
    (60, b"PXEClient:Arch:00000:UNDI:002001"),
)
_IPXE_OPTIONS = (
    (57, b"\x05\xc0"),
    (93, b"\0\0"),
    (94, b"\1\2\1"),
    (60, b"PXEClient:Arch:00000:UNDI:002001"),
    (77, b"iPXE"),
    _asked("010306070c0f111a2b3c4243778081828384858687afcb"),
    (175, bytes.fromhex("b105018086100eeb0301000017010122010113010111010127010119010129010110010221010115"
                        "0101180101120101")),
    (61, OWN_ID),
    _ZERO_ID,
)  # fmt: skip
_ANACONDA = (
    (61, OWN_ID),
    _asked("0102060c0f1a1c79032128292a77f9fc11"),
    (57, b"\xff\xff"),
    (60, b"anaconda-Linux 5.14.0 x86_64"),
)
_UDHCPC = (57, b"\x02\x40"), _asked("0103060c0f1c2a"), (60, b"udhcp 1.35.0"), (61, OWN_ID)

BIOS_DHCP: Final = Dhcp(_INTEL, (*_CHOICE, *_INTEL), _EDK2_WAITS, broadcast=True, seconds=(4, 4), least=548)
"""Intel Boot Agent, a PXE 2.1 ROM."""
EDK2_DHCP: Final = _edk2(
    b"PXEClient:Arch:00007:UNDI:003000",
    b"\0\7",
    "0102030405060c0d0f111216171c28292a2b3233363a3b3c4243618081828384858687",
    0xFF00,
)
EDK2_HTTP_DHCP: Final = _edk2(
    b"HTTPClient:Arch:00016:UNDI:003000",
    b"\0\x10",
    "0102030405060c0d0f111216171c28292a2b3233363a3b3ceb4361",
    1472,
)
IPXE_DHCP: Final = Dhcp(
    _IPXE_OPTIONS, (*_IPXE_OPTIONS, *_CHOICE), _IPXE_WAITS, collects=2.0, hasty=True, seconds=(4, 10)
)
"""net/udp/dhcp.c; DHCP_DISC_PROXY_TIMEOUT_SEC is 2."""
ANACONDA_DHCP: Final = Dhcp(_ANACONDA, (*_CHOICE, *_ANACONDA), (4.0, 8.0, 16.0, 32.0), seconds=(1, 1))
LINUX_DHCP: Final = Dhcp(
    _UDHCPC, (_CHOICE[1], _CHOICE[0], *_UDHCPC), (3.0, 3.0, 3.0, 20.0, 3.0, 3.0, 3.0), least=300
)
"""busybox udhcpc, as most initrds have it: three packets 3 s apart, then 20 s."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """What runs when a machine is switched on. It loads what DHCP names, by TFTP, or where `url` by HTTP."""

    title: str
    dhcp: Dhcp
    tftp: Client
    url: bool = False


_BIOS_TFTP: Final = Client(
    ("blksize",), EDK2.waits, MappingProxyType({"blksize": 1456}), probe=("tsize",)
)  # as Intel's ROMs have been seen to do: the size first, then without it
KINDS: Final[Mapping[str, Firmware]] = {
    "bios": Firmware("BIOS with a PXE ROM", BIOS_DHCP, _BIOS_TFTP),
    "uefi": Firmware("UEFI (EDK2)", EDK2_DHCP, EDK2),
    "ipxe": Firmware("iPXE in the network card", IPXE_DHCP, IPXE),
    "uefi-http": Firmware("UEFI (EDK2) that boots by HTTP", EDK2_HTTP_DHCP, EDK2, url=True),
}


@dataclass(frozen=True, slots=True)
class Loader:
    """A boot program, known by its file name.

    `files` it asks for first, `searches` for its configuration until one is there, in `language`; `modules` is how
    it asks for one that the configuration wants. Names are relative to the directory that it came from, or from
    the root with a leading slash; {mac} is 52-54-00-.., {hex} the address in hexadecimal. `again`: it asks
    for an address of its own; `next`: what it loads is another loader.
    """

    title: str
    names: re.Pattern[str]
    tftp: Client
    files: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    language: str = ""
    modules: str = ""
    again: Dhcp | None = None
    next: str | None = None

    def configurations(self, mac: str, address: IPv4Address) -> Iterator[str]:
        """Yield the names under which a machine looks for its configuration."""
        text = f"{int(address):08X}"
        for name in self.searches:
            if "{hex}" in name:
                yield from (name.replace("{hex}", text[:digits]) for digits in range(8, 0, -1))
            else:
                yield name.replace("{mac}", mac.replace(":", "-"))


LOADERS: Final[tuple[Loader, ...]] = (
    Loader(
        "PXELINUX",
        re.compile(r"l?pxelinux[\w.-]*"),
        PXELINUX,
        files=("ldlinux.c32",),
        searches=("pxelinux.cfg/01-{mac}", "pxelinux.cfg/{hex}", "pxelinux.cfg/default"),
        language="pxelinux",
    ),
    Loader(
        "shim",
        re.compile(r"shim[\w.-]*"),
        SHIM,
        files=("revocations_sku.efi", "revocations_sbat.efi", "shim_certificate_0.efi"),
        next="grubx64.efi",
    ),
    Loader(
        "GRUB",
        re.compile(r"(?:core|grub)[\w.-]*"),
        GRUB,
        # Debian's, whose prefix is /grub; those of RHEL's line look beside themselves and by MAC first.
        files=tuple(f"/grub/x86_64-efi/{name}.lst" for name in ("command", "fs", "crypto", "terminal")),
        searches=("/grub/grub.cfg",),
        language="grub",
        modules="/grub/x86_64-efi/{}.mod",
    ),
    Loader(
        "iPXE",
        re.compile(r"(?:ipxe|undionly|snponly)[\w.-]*"),
        IPXE,
        language="ipxe",
        again=IPXE_DHCP,
    ),
)
IPXE_LOADER: Final = LOADERS[-1]


def loader_of(path: str) -> Loader | None:
    """Return what a boot file is, by its name; None where nobody knows."""
    name = path.rstrip("/").rpartition("/")[2].lower()
    return next((loader for loader in LOADERS if loader.names.fullmatch(name)), None)


def mixed(parts: Mapping[str, int], count: int) -> list[str]:
    """Return the kind of each machine, evenly mixed by the shares of the kinds."""
    total = sum(parts.values())
    turns = sorted(((turn + 0.5) / share, kind) for kind, share in parts.items() for turn in range(share))
    return [turns[number % total][1] for number in range(count)]

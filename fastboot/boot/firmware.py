"""Firmware as tables: which class of machines asks, what it wants beside a boot file, and what it gets wrong."""

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


@dataclass(frozen=True, slots=True)
class Quirk:
    """Something that a client does against the book.

    `source` is where it was read or seen, `answer` what is done about it, `shown_by` the test that fails without.
    """

    device: str
    symptom: str
    source: str
    answer: str
    shown_by: str


QUIRKS: Final[Mapping[str, Quirk]] = {
    "architecture-in-class": Quirk(
        "ROMs that send option 93 empty or of odd length",
        "no architecture, though option 60 reads PXEClient:Arch:00007:...",
        "RFC 4578 section 2.1, against PXE 2.1 table 2-1",
        "the number in the text of option 60 is taken",
        "test_dhcp_wire.py::test_architecture",
    ),
    "option-67-unterminated": Quirk(
        "PXE ROMs that read option 67 as a C string",
        "they ask for the file's name with an octet 0xFF behind it, the END option that followed",
        "netbootxyz/netboot.xyz#1198",
        "a PAD follows option 67, and the octet is taken off",
        "test_catalog.py::test_spellings_of_a_name",
    ),
    "option-60-means-binl": Quirk(
        "EDK2 and its descendants",
        "an OFFER with option 60 PXEClient and no usable option 43 makes it ask port 4011: PXE-E16 after 10 s",
        "EDK2 PxeBcDhcp4.c, PxeBcParseDhcp4Packet",
        "option 60 never leaves for PXE clients without option 43",
        "test_dhcp_wire.py::test_option_60_of_pxe_never_leaves_without_43",
    ),
    "ipxe-class-raw": Quirk(
        "iPXE",
        "option 77 is the text iPXE without a length octet (RFC 3004 wants one)",
        "iPXE dhcp.c",
        "both forms are iPXE, and so is option 175",
        "test_dhcp_wire.py::test_ipxe_is_told_by_its_class_or_its_features",
    ),
    "ipxe-waits-for-proxy": Quirk(
        "iPXE",
        "waits 2 s for proxy offers after the first good one",
        "iPXE dhcp.c, dhcp_discovery_rx",
        "option 175.176 (no-pxedhcp), where no other server can be",
        "test_policy.py::test_ipxe_waits_for_other_servers_where_there_may_be_any",
    ),
    "raspberry-says-bios": Quirk(
        "Raspberry Pi 3, and 4 and 5 with old firmware",
        "sends the architecture of a BIOS, and passes over offers without its words in option 43",
        "raspberrypi/rpi-eeprom#182",
        "told by its MAC address or option 97, and given those words",
        "test_policy.py::test_a_raspberry_pi_gets_its_words",
    ),
    "raspberry-pad": Quirk(
        "Raspberry Pi 4 with firmware before 2020",
        "ignores a reply that holds a PAD",
        "raspberrypi/rpi-eeprom#82",
        "PADs only where there is a boot file, and a Raspberry Pi needs none",
        "test_dhcp_boot.py::test_a_raspberry_pi_boots_given_its_files",
    ),
    "localboot-hangs": Quirk(
        "BIOSes that can not go on after a PXE ROM returned to them",
        "LOCALBOOT 0 comes back to the network or hangs",
        "HP ProLiant Gen8",
        "the menu's second entry uses LOCALBOOT -1 (INT 18h: the next boot device)",
        "test_render.py::test_pxelinux",
    ),
    "size-probe": Quirk(
        "EDK2",
        "asks for the size only (tsize), answers the OACK with ERROR 8, then asks again",
        "EDK2 PxeBcMtftp.c, PxeBcMtftp4GetFileSize",
        "the event tftp.probed, which is no failure",
        "test_tftp_engine.py::test_the_size_probe_of_edk2",
    ),
    "unasked-options": Quirk(
        "PXELINUX, EDK2",
        "an option in the OACK that was not asked for: ERROR 8, or ERROR 4",
        "Syslinux tftp.c; EDK2 Mtftp4RrqOackValid",
        "the OACK holds what was asked for and nothing else, in the client's order",
        "test_tftp_engine.py::test_only_what_was_asked_in_the_clients_order_and_spelling",
    ),
    "names-of-options": Quirk(
        "GRUB, U-Boot on lwIP",
        "compares the names of options in an OACK by case, and reads numbers with a leading 0 as octal",
        "GRUB tftp.c; U-Boot lib/lwip tftp.c",
        "names are echoed as they were sent, numbers have no leading zeros",
        "test_tftp_engine.py::test_only_what_was_asked_in_the_clients_order_and_spelling",
    ),
    "reply-from-elsewhere": Quirk(
        "NIC ROMs, EDK2",
        "drop a reply that comes from another address of the server than the one they asked",
        "EDK2 Mtftp4RrqInput; pin/tftp#48",
        "every reply leaves from the address that was asked",
        "test_tftp_network.py::test_replies_come_from_the_address_that_was_asked",
    ),
    "asks-again-at-once": Quirk(
        "PXELINUX",
        "sends its request again after 110 ms",
        "Syslinux tftp.c",
        "a copy is answered again until the client is heard of, and starts nothing new",
        "test_tftp_engine.py::test_a_repeated_request_is_one_transfer",
    ),
    "one-port-for-all": Quirk(
        "U-Boot",
        "asks for the next file from the same port, for the last transfer is over for it",
        "U-Boot tftp.c, tftp_start",
        "another request from a port replaces its transfer; late packets of the old one are ignored",
        "test_tftp_engine.py::test_a_request_for_something_else_replaces",
    ),
    "every-error-restarts": Quirk(
        "U-Boot",
        "starts its download over, for ever, at any ERROR but 1 and 2",
        "U-Boot tftp.c, tftp_handler",
        "no other code refuses a file, and none goes to who has just finished",
        "test_tftp_engine.py::test_a_refusal_never_makes_uboot_start_over",
    ),
    "signed-blocks": Quirk(
        "U-Boot",
        "compares block numbers as signed: says nothing of a gap from block 32768 on; and never "
        "acknowledges an old block again",
        "U-Boot tftp.c, tftp_handler",
        "the timer of this server repeats a block, then the window; it follows the round trip, from 5 ms up",
        "test_tftp_model.py::test_every_loss_at_the_wrap",
    ),
    "acknowledges-everything": Quirk(
        "EDK2",
        "acknowledges every block out of order or repeated, and begins its window anew each time",
        "EDK2 Mtftp4RrqHandleData",
        "a gap is believed once a round trip",
        "test_tftp_model.py::test_a_gap_is_believed_once_a_round_trip",
    ),
    "block-65535": Quirk(
        "iPXE",
        "takes a repeated block 65535 for block 131071, which ruins the file",
        "iPXE tftp.c, tftp_rx_data",
        "in lockstep it is not repeated before 1 s",
        "test_tftp_model.py::test_the_block_that_ipxe_mistakes",
    ),
    "long-silence": Quirk(
        "GRUB",
        "acknowledges nothing while it unpacks what it has, with 50 packets queued",
        "GRUB tftp.c",
        "a client that was heard of is given up after 60 s only",
        "test_tftp_timer.py::test_patience_with_a_client_that_was_heard",
    ),
    "last-block-unacknowledged": Quirk(
        "ROMs that start what they loaded",
        "never acknowledge the last block",
        "dnsmasq tftp.c; RFC 1350 section 6",
        "such a transfer counts as sent",
        "test_tftp_timer.py::test_the_last_acknowledgement_may_be_missing",
    ),
    "gives-up-early": Quirk(
        "shim, Raspberry Pi, GRUB",
        "ends with ERROR 3 because its buffer is too small, or with ERROR 0 after the first block, to "
        "see whether a file is there",
        "shim netboot.c; rpi-eeprom",
        "the event tftp.cancelled, and nothing is sent to it any more",
        "test_tftp_engine.py::test_a_client_that_gives_up",
    ),
    "huge-window": Quirk(
        "u-root",
        "asks for a window of 65535 blocks",
        "u-root tftp package",
        "granted up to tftp.max_windowsize",
        "test_tftp_engine.py::test_only_what_was_asked_in_the_clients_order_and_spelling",
    ),
    "options-of-its-own": Quirk(
        "Windows boot manager",
        "asks for msftwindow and others",
        "seen booting",
        "what is not known is left out of the OACK (RFC 2347)",
        "test_tftp_wire.py::test_a_client_is_understood",
    ),
    "asks-the-broadcast": Quirk(
        "some ROMs",
        "send their request to the broadcast address",
        "pin/tftp#89; RFC 1123 section 4.2.3.5",
        "ignored and counted: every server would answer",
        "test_tftp_network.py::test_a_broadcast_request_is_ignored",
    ),
    "asks-for-a-directory": Quirk(
        "U-Boot",
        "asks for dtb/, a directory",
        "U-Boot distro boot, seen booting",
        "ERROR 1 at once, as for a missing file",
        "test_catalog.py::test_names_that_are_refused",
    ),
    "doubled-slashes": Quirk(
        "syslinux.efi, shim",
        "joins directory and name with two slashes: efi64//lab/linux, /sb//grubx64.efi",
        "seen booting",
        "one slash, without a redirect",
        "test_catalog.py::test_spellings_of_a_name",
    ),
    "backslashes": Quirk(
        "Windows boot manager, shim",
        "writes paths with backslashes",
        "shim netboot.c; seen booting",
        "each is a slash",
        "test_catalog.py::test_spellings_of_a_name",
    ),
    "probes-many-names": Quirk(
        "GRUB, PXELINUX, shim",
        "ask for a dozen names that are not there before the one that is",
        "GRUB net.c; Syslinux pxe.c; shim load_unbundled_trust",
        "ERROR 1 in microseconds; a counter and an event, no alarm",
        "test_tftp_service.py::test_a_thousand_requests_at_once_are_all_answered",
    ),
}
"""What clients get wrong, and what is done about it. docs/quirks.md shows it, a test holds it to the tests."""


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

"""What clients get wrong, and what is done about it, as a table. docs/quirks.md shows it, a test holds both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


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

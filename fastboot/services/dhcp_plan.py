"""What a request says to `decide`, and a Plan as the responder sends it. Pure functions on octets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from fastboot import config
from fastboot.boot.firmware import (
    DEVICES,
    HTTP_CLIENT,
    PXE_CLIENT,
    SKIP_DISCOVERY,
    TFTP_SERVER,
    VENDOR_CLASS,
    VENDOR_OPTIONS,
    is_ipxe,
)
from fastboot.config.options import PROTOCOL, overlay
from fastboot.model import ConfigError, Node, Option, Plan, Stage

EncodedPlan = tuple[int, int, int, int, bytes, bytes, bytes, bytes]
"""A plan as `Responder.answer` takes it."""

MASK, ROUTER, DNS, HOST_NAME, DOMAIN, BROADCAST = 1, 3, 6, 12, 15, 28
BOOT_FILE = 67
OF_ADDRESSES: Final = frozenset({MASK, ROUTER, BROADCAST})
"""What goes with an address, hence comes from who gives it."""
MAX_FILE = 127
"""Octets of the header's `file`, less its NUL (RFC 2131 section 2)."""
MAX_SIGNS: Final = 256
"""Beginnings of MAC addresses that are compared with every packet's."""
UNTERMINATED: Final = frozenset({60, 67})
"""A PAD follows these where there is a boot file: ROMs read on after 67 and ask for `file\\xff`, GRUB takes 60 as
a C string. Only there: a Raspberry Pi 4 of 2019 ignores replies with a PAD, and needs no boot file."""


def stage_of(vendor: bytes, user: bytes, ipxe: bytes) -> Stage:
    """Tell which program asks, by options 60, 77 and 175 as sent."""
    if is_ipxe(user, ipxe):
        return Stage.IPXE
    if vendor.startswith((b"PXEClient", b"HTTPClient")) or vendor.lstrip().lower().startswith(b"u-boot"):
        return Stage.ROM
    if vendor.startswith((b"anaconda", b"d-i", b"onie_vendor:")):
        return Stage.INSTALLER
    return Stage.OS


def architecture_of(codes: bytes, vendor: bytes) -> int | None:
    """Return the first code of option 93, or the one in the text of option 60 where 93 is none."""
    if codes and len(codes) % 2 == 0:
        return int.from_bytes(codes[:2])
    match = re.match(rb"(?:PXE|HTTP)Client:Arch:(\d{5})", vendor)
    return int(match[1]) if match and int(match[1]) <= 0xFFFF else None


def features_of(ipxe: bytes) -> frozenset[int]:
    """Return the codes of the sub-options of option 175; those before a malformed one count."""
    codes, at = set(), 0
    while at + 1 < len(ipxe) and at + 2 + ipxe[at + 1] <= len(ipxe):
        codes.add(ipxe[at])
        at += 2 + ipxe[at + 1]
    return frozenset(codes)


def signs_of(settings: config.Dhcp) -> tuple[list[bytes], list[bytes]]:
    """Return how the MAC addresses and machine ids begin that set machines apart within the classes they send.

    Raises ConfigError where there are too many.
    """
    macs = {mac for device in DEVICES for mac in device.macs} | {
        mac for each in settings.classes for mac in each.macs
    }
    if len(macs) > MAX_SIGNS:
        raise ConfigError(f"dhcp.classes: names {len(macs)} beginnings of MAC addresses; {MAX_SIGNS} is the most")
    return sorted(macs), [machine_id for device in DEVICES for machine_id in device.machine_ids]


def encode_plan(
    plan: Plan, subnet: config.Subnet, server: IPv4Address, node: Node | None, tag: int
) -> EncodedPlan:
    """Return a plan as `Responder.answer` takes it. Raises ValueError for one that can not be sent."""
    loader = plan.loader.encode() if plan.loader else b""
    siaddr = plan.next_server or subnet.next_server or server
    own = [Option(BOOT_FILE, loader, True), Option(TFTP_SERVER, str(siaddr).encode() if loader else b"", True)]
    options = {
        each.code: each
        for each in overlay(
            _subnet_options(subnet, node),
            own,
            subnet.options,
            (Option(code, value) for code, value in plan.asked),
            (Option(code, value, True) for code, value in plan.options),
        )
    }
    if VENDOR_CLASS in options and options[VENDOR_CLASS].value.startswith(PXE_CLIENT):
        # Without option 43 it would turn to port 4011, where nobody is who gives addresses.
        options.setdefault(VENDOR_OPTIONS, Option(VENDOR_OPTIONS, SKIP_DISCOVERY, options[VENDOR_CLASS].always))
    _check(plan, loader, options[BOOT_FILE].value)
    address = int(plan.address) if plan.address else 0
    return (address, int(siaddr), plan.lease or 0, tag, *_encoded(loader, options, (MASK, BOOT_FILE)))


def encode_proxy_plan(
    plan: Plan, subnet: config.Subnet | None, server: IPv4Address, vendor: bytes, tag: int
) -> EncodedPlan | None:
    """Return a plan as `Proxy.answer` takes it: what to boot, and nothing that belongs to an address. None where
    there is nothing to boot. Raises ValueError for one that can not be sent.

    `vendor` is option 60 of who asks: an HTTP client takes its URL from an offer of its own class only (UEFI 2.5
    section 24.7). `subnet` is that of the configuration, where one holds the machine.
    """
    loader = plan.loader.encode() if plan.loader else b""
    siaddr = plan.next_server or (subnet.next_server if subnet else None) or server
    http = vendor.startswith(HTTP_CLIENT)
    own = [
        Option(VENDOR_CLASS, HTTP_CLIENT if http else PXE_CLIENT, True),
        Option(VENDOR_OPTIONS, b"" if http else SKIP_DISCOVERY, True),
        Option(BOOT_FILE, loader, True),
        Option(TFTP_SERVER, str(siaddr).encode() if loader and not http else b"", True),
    ]
    given = overlay(
        subnet.options if subnet else (),
        (Option(code, value) for code, value in plan.asked),
        (Option(code, value, True) for code, value in plan.options),
    )
    options = {each.code: each for each in overlay(own, given) if each.code not in OF_ADDRESSES}
    _check(plan, loader, options[BOOT_FILE].value)
    if (b"://" not in loader) if http else not (loader or options[VENDOR_OPTIONS].value != SKIP_DISCOVERY):
        return None
    return (0, int(siaddr), 0, tag, *_encoded(loader, options, (BOOT_FILE,)))


def _encoded(
    loader: bytes, options: dict[int, Option], first: tuple[int, ...]
) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the header's boot file, and the options that come first, that are sent always, and when asked for."""
    ends = UNTERMINATED if options[BOOT_FILE].value else frozenset[int]()
    must = [options.pop(code) for code in first]
    always = [each for each in options.values() if each.always]
    asked = [each for each in options.values() if not each.always]
    blobs = [
        b"".join(option(each.code, each.value, each.code in ends) for each in part)
        for part in (must, always, asked)
    ]
    return (loader if len(loader) <= MAX_FILE else b"", blobs[0], blobs[1], blobs[2])


def _check(plan: Plan, loader: bytes, boot_file: bytes) -> None:
    if len(loader) > MAX_FILE and b"://" not in loader:
        raise ValueError(f"plan.loader: {plan.loader} is longer than {MAX_FILE} octets")
    if len(boot_file) > 255:
        # Firmware reads the first part of an option only.
        raise ValueError(f"plan.loader: {plan.loader} is longer than 255 octets")
    if plan.lease is not None and not 60 <= plan.lease <= config.FOREVER:
        raise ValueError(f"plan.lease: {plan.lease} is not between 60 and {config.FOREVER}")
    for code, value in (*plan.options, *plan.asked):
        if code in PROTOCOL or not 0 <= code <= 255:
            raise ValueError(f"plan.options: {code} is not a plan's to set")
        if not value:
            raise ValueError(
                f"plan.options: {code} has no octets; firmware drops a packet that holds such an option"
            )


def _subnet_options(subnet: config.Subnet, node: Node | None) -> Iterator[Option]:
    # EDK2 answers an ACK without option 1 with DECLINE.
    yield Option(MASK, subnet.network.netmask.packed, always=True)
    yield Option(ROUTER, subnet.gateway.packed if subnet.gateway else b"", always=True)
    yield Option(DNS, b"".join(server.packed for server in subnet.dns))
    yield Option(DOMAIN, (subnet.domain or "").encode())
    yield Option(HOST_NAME, node.name.encode() if node else b"")
    yield Option(BROADCAST, subnet.network.broadcast_address.packed)


def option(code: int, value: bytes, ends: bool = False) -> bytes:
    """Return an option as it is sent: in parts where it is long (RFC 3396), not at all where it is empty.

    `ends`: a PAD follows it.
    """
    parts = [value[at : at + 255] for at in range(0, len(value), 255)]
    return b"".join(bytes((code, len(part))) + part for part in parts) + b"\0" * (ends and bool(value))

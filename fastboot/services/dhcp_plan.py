"""What a request says to `decide`, and a Plan as the responder sends it. Pure functions on octets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from fastboot import config
from fastboot.model import Node, Plan, Stage

EncodedPlan = tuple[int, int, int, int, bytes, bytes, bytes, bytes]
"""A plan as `Responder.answer` takes it."""

MASK, ROUTER, DNS, HOST_NAME, DOMAIN, BROADCAST = 1, 3, 6, 12, 15, 28
TFTP_SERVER, BOOT_FILE = 66, 67
MAX_FILE = 127
"""Octets of the header's `file`, less its NUL (RFC 2131 section 2)."""
UNTERMINATED: Final = frozenset({60, 67})
"""A PAD follows these: ROMs read on after 67 and ask for `file\\xff`, GRUB takes 60 as a C string."""
OURS: Final = frozenset({0, 13, 50, 51, 52, 53, 54, 55, 57, 58, 59, 61, 82, 97, 255})
"""What a plan can not set: the protocol's own, and 13, whose wrong value EDK2 answers with PXE-E05."""


def stage_of(vendor: bytes, user: bytes, ipxe: bytes) -> Stage:
    """Tell which program asks, by options 60, 77 and 175 as sent."""
    # iPXE's user class has no length octet (protocol-facts.md A7); RFC 3004 wants one.
    if ipxe or user == b"iPXE" or b"\x04iPXE" in user:
        return Stage.IPXE
    if vendor.startswith((b"PXEClient", b"HTTPClient", b"U-Boot")):
        return Stage.ROM
    if vendor.startswith((b"anaconda", b"d-i")):
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


def encode_plan(
    plan: Plan, subnet: config.Subnet, server: IPv4Address, node: Node | None, tag: int
) -> EncodedPlan:
    """Return a plan as `Responder.answer` takes it. Raises ValueError for one that can not be sent."""
    loader = plan.loader.encode() if plan.loader else b""
    given = dict(plan.options)
    if len(loader) > MAX_FILE and b"://" not in loader:
        raise ValueError(f"plan.loader: {plan.loader} is longer than {MAX_FILE} octets")
    if len(given.get(BOOT_FILE, loader)) > 255:
        raise ValueError(
            f"plan.loader: {plan.loader} is longer than 255 octets"
        )  # firmware reads the first part only
    if plan.lease is not None and not 60 <= plan.lease <= config.FOREVER:
        raise ValueError(f"plan.lease: {plan.lease} is not between 60 and {config.FOREVER}")
    siaddr = plan.next_server or server
    for code, value in plan.options:
        if code in OURS or not 0 <= code <= 255:
            raise ValueError(f"plan.options: {code} is not a plan's to set")
        if not value:
            raise ValueError(
                f"plan.options: {code} has no octets; firmware drops a packet that holds such an option"
            )
    must = option(MASK, given.get(MASK, subnet.network.netmask.packed))
    must += option(BOOT_FILE, given.get(BOOT_FILE, loader))
    always = b""
    if loader and TFTP_SERVER not in given:
        always += option(TFTP_SERVER, str(siaddr).encode())
    if subnet.gateway and ROUTER not in given:
        always += option(ROUTER, subnet.gateway.packed)
    always += b"".join(option(code, value) for code, value in plan.options if code not in (MASK, BOOT_FILE))
    asked = b"".join(option(code, value) for code, value in _asked(subnet, node) if code not in given)
    return (
        int(plan.address) if plan.address else 0, int(siaddr), plan.lease or 0, tag,
        loader if len(loader) <= MAX_FILE else b"", must, always, asked,
    )  # fmt: skip


def _asked(subnet: config.Subnet, node: Node | None) -> Iterator[tuple[int, bytes]]:
    yield DNS, b"".join(server.packed for server in subnet.dns)
    yield DOMAIN, (subnet.domain or "").encode()
    yield HOST_NAME, node.name.encode() if node else b""
    yield BROADCAST, subnet.network.broadcast_address.packed


def option(code: int, value: bytes) -> bytes:
    """Return an option as it is sent: in parts where it is long (RFC 3396), not at all where it is empty."""
    parts = [value[at : at + 255] for at in range(0, len(value), 255)]
    return b"".join(bytes((code, len(part))) + part for part in parts) + b"\0" * (
        code in UNTERMINATED and bool(value)
    )

"""DHCP options by name and type: what is written in TOML, made into the octets that are sent.

[dhcp.options]
ntp-servers = ["10.77.0.5"]
domain-search = ["lab.example", "example"]
classless-routes = ["10.80.0.0/16 via 10.77.0.2", "default via 10.77.0.1"]
224 = { text = "an option without a name needs a type" }
root-path = { text = "nfs:10.77.0.5:/srv/root", always = true }
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import chain
from typing import Annotated, Final

from pydantic import BeforeValidator

from fastboot.config.faults import KeyFaults, unknown
from fastboot.model import Option

MAX_VALUE: Final = 1024
"""Octets of an option: EDK2 ignores replies over 1472 (PXEBC_DHCP4_PACKET_MAX_SIZE)."""
PROTOCOL: Final = frozenset({0, 13, 50, 51, 52, 53, 54, 55, 57, 58, 59, 61, 82, 97, 255})
"""What nobody can set: the protocol's own, and 13, whose wrong value EDK2 answers with PXE-E05."""
CLASSLESS_ROUTES: Final = 121
ELSEWHERE: Final = {51: "lease", 58: "lease", 59: "lease", 67: "loader, or boot.loaders for a class"}
"""Options that have a key of their own."""


# ---- types


def _ip(value: object) -> bytes:
    try:
        # A number would be an address too.
        return IPv4Address(str(value)).packed
    except ValueError:
        raise ValueError(f'{value!r} is no IPv4 address; write one such as "10.77.0.5"') from None


def _ips(value: object) -> bytes:
    return b"".join(_ip(each) for each in _several(value, '["10.77.0.5", "10.77.0.6"]'))


def _text(value: object) -> bytes:
    if not isinstance(value, str) or not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(f"{value!r} is no plain text; write one between quotes, or octets as hex")
    return value.encode()


def _hex(value: object) -> bytes:
    digits = re.sub(r"[\s:]", "", value) if isinstance(value, str) else ""
    if not digits or not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", digits):
        raise ValueError(f'{value!r} is no octets in hex; write them as "06 01 08 FF"')
    return bytes.fromhex(digits)


def _number(size: int, *, signed: bool = False) -> Callable[[object], bytes]:
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)

    def encode(value: object) -> bytes:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{value!r} is no number from {low} to {high}")
        return value.to_bytes(size, signed=signed)

    return encode


def _bool(value: object) -> bytes:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return bytes([value])


def _domains(value: object) -> bytes:
    """A search list (RFC 3397), its names compressed as RFC 1035 section 4.1.4 has it."""
    made, places = b"", dict[str, int]()
    for name in _several(value, '["lab.example", "example"]'):
        labels = name.rstrip(".").split(".")
        if len(name) > 253 or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}", each) for each in labels):
            raise ValueError(f'{name!r} is no domain name; write one such as "lab.example"')
        for at in range(len(labels)):
            rest = ".".join(labels[at:]).lower()
            if rest in places:
                made += (0xC000 | places[rest]).to_bytes(2)
                break
            if len(made) < 0x4000:
                places[rest] = len(made)
            made += bytes([len(labels[at])]) + labels[at].encode()
        else:
            made += b"\0"
    return made


def _routes(value: object) -> bytes:
    """Classless static routes (RFC 3442): the length of the prefix, as many of its octets as count, the router."""
    made = b""
    for route in _several(value, '["10.80.0.0/16 via 10.77.0.2", "default via 10.77.0.1"]'):
        match = re.fullmatch(r"\s*(\S+)\s+via\s+(\S+)\s*", route)
        if not match:
            raise ValueError(f'{route!r} is no route; write "10.80.0.0/16 via 10.77.0.2"')
        try:
            network = IPv4Network("0.0.0.0/0" if match[1] == "default" else match[1])
        except ValueError as error:
            raise ValueError(f'{route!r}: {error}; write "10.80.0.0/16 via 10.77.0.2"') from None
        octets = network.network_address.packed[: (network.prefixlen + 7) // 8]
        made += bytes([network.prefixlen]) + octets + _ip(match[2])
    return made


def has_default_route(value: bytes) -> bool:
    """Whether classless static routes, as sent, hold one of prefix length 0."""
    at = 0
    while at < len(value):
        if value[at] == 0:
            return True
        at += 1 + (value[at] + 7) // 8 + 4
    return False


def _several(value: object, example: str) -> list[str]:
    """Return one text or a list of them as a list."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(each, str) for each in values):
        raise ValueError(f"{value!r} is no list of texts; write {example}")
    return list(values)


TYPES: Final[Mapping[str, Callable[[object], bytes]]] = {
    "ip": _ip,
    "ips": _ips,
    "text": _text,
    "hex": _hex,
    "u8": _number(1),
    "u16": _number(2),
    "u32": _number(4),
    "i32": _number(4, signed=True),
    "bool": _bool,
    "domains": _domains,
    "routes": _routes,
}

NAMES: Final[Mapping[str, tuple[int, str]]] = {
    # RFC 2132 unless said. The names are those of the registry.
    "subnet-mask": (1, "ip"),
    "time-offset": (2, "i32"),
    "routers": (3, "ips"),
    "time-servers": (4, "ips"),
    "dns-servers": (6, "ips"),
    "log-servers": (7, "ips"),
    "lpr-servers": (9, "ips"),
    "host-name": (12, "text"),
    "domain-name": (15, "text"),
    "swap-server": (16, "ip"),
    "root-path": (17, "text"),
    "extensions-path": (18, "text"),
    "ip-forwarding": (19, "bool"),
    "default-ttl": (23, "u8"),
    "interface-mtu": (26, "u16"),
    "broadcast-address": (28, "ip"),
    "nis-domain": (40, "text"),
    "nis-servers": (41, "ips"),
    "ntp-servers": (42, "ips"),
    "vendor-options": (43, "hex"),
    "netbios-name-servers": (44, "ips"),
    "netbios-node-type": (46, "u8"),
    "netbios-scope": (47, "text"),
    "vendor-class": (60, "text"),
    "tftp-server-name": (66, "text"),
    "smtp-servers": (69, "ips"),
    "www-servers": (72, "ips"),
    "nds-servers": (85, "ips"),
    "posix-timezone": (100, "text"),  # RFC 4833
    "tzdb-timezone": (101, "text"),
    "ipv6-only-preferred": (108, "u32"),  # RFC 8925
    "default-url": (114, "text"),  # ONIE's installer; RFC 8910 gave the code to captive portals later
    "domain-search": (119, "domains"),  # RFC 3397
    "classless-routes": (CLASSLESS_ROUTES, "routes"),  # RFC 3442
    "vendor-specific": (125, "hex"),  # RFC 3925
    "tftp-servers": (150, "ips"),  # RFC 5859
    "ipxe-options": (175, "hex"),
    "pxelinux-magic": (208, "hex"),  # RFC 5071, this and the next three
    "pxelinux-config-file": (209, "text"),
    "pxelinux-path-prefix": (210, "text"),
    "pxelinux-reboot-time": (211, "u32"),
    "wpad": (252, "text"),
}
FOREIGN: Final[Mapping[str, str]] = {
    "domain-name-servers": "dns-servers",
    "dns-server": "dns-servers",
    "router": "routers",
    "ntp-server": "ntp-servers",
    "vendor-encapsulated-options": "vendor-options",
    "vendor-class-identifier": "vendor-class",
    "vivso-suboptions": "vendor-specific",
    "classless-static-route": "classless-routes",
    "rfc3442-classless-static-routes": "classless-routes",
    "mtu": "interface-mtu",
    "tftp-server-address": "tftp-servers",
    "v4-captive-portal": "default-url",
    "configfile": "pxelinux-config-file",
    "pathprefix": "pxelinux-path-prefix",
    "reboottime": "pxelinux-reboot-time",
    "boot-file-name": "67",
    "bootfile-name": "67",
    "filename": "67",
}
"""What ISC dhcpd, Kea and dnsmasq call them, for those who come from there."""
UNASKED: Final = frozenset({208, 209, 210, 211})
"""Sent always: PXELINUX reads them from the packets of its ROM, which asks for none of them."""
EXAMPLE: Final = 'such as { text = "..." }'
_TYPE_OF = dict(NAMES.values())


# ---- from TOML


def read(key: str, value: object) -> Option:
    """Make an option of a key (a name or a code) and its value. Raises ValueError saying what would be right."""
    if key in NAMES:
        code, type_ = NAMES[key]
    elif re.fullmatch(r"[0-9]{1,3}", key) and int(key) < 256:
        code, type_ = int(key), _TYPE_OF.get(int(key), "")
    elif key in FOREIGN and not FOREIGN[key].isdecimal():
        raise ValueError(f"is called {FOREIGN[key]} here")
    elif key in FOREIGN:
        code, type_ = int(FOREIGN[key]), ""
    else:
        raise ValueError(f"there is no option {unknown(key, tuple(NAMES))}; others are written by code, 1 to 254")
    if code in ELSEWHERE:
        raise ValueError(f"has a key of its own; write {ELSEWHERE[code]}")
    if code in PROTOCOL:
        raise ValueError("is the protocol's own and can not be set")
    always = code in UNASKED
    if isinstance(value, dict):
        given = dict(value)
        always = given.pop("always", always)
        if not isinstance(always, bool):
            raise ValueError("always: write true or false")
        if len(given) != 1 or not given.keys() <= TYPES.keys():
            raise ValueError(f"write one type and its value, {EXAMPLE}; types are {', '.join(TYPES)}")
        ((type_, value),) = given.items()
    elif not type_:
        raise ValueError(f"has no name, so say its type, {EXAMPLE}; types are {', '.join(TYPES)}")
    octets = TYPES[type_](value)
    if len(octets) > MAX_VALUE:
        raise ValueError(f"is {len(octets)} octets; {MAX_VALUE} is the most that fits a reply")
    return Option(code, octets, always)


def from_text(key: str, text: str) -> object:
    """Return a value as TOML would have it, from the text of a table of nodes: lists are joined by spaces."""
    code, type_ = NAMES.get(key, (int(key) if re.fullmatch(r"[0-9]{1,3}", key) else 0, ""))
    type_ = type_ or _TYPE_OF.get(code, "")
    if type_ in ("ips", "domains"):
        return text.split()
    if type_ in ("u8", "u16", "u32", "i32") and re.fullmatch(r"-?[0-9]{1,19}", text):
        return int(text)
    return text == "true" if type_ == "bool" and text in ("true", "false") else text


def _read_all(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, dict):
        raise ValueError("should be a table")
    made: dict[int, Option] = {}
    faults: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    for key, each in value.items():
        try:
            option = read(str(key), each)
        except ValueError as error:
            faults.append((str(key), str(error)))
            continue
        if option.code in made:
            faults.append((str(key), f"is option {option.code}, as {names[option.code]} is; keep one of them"))
        made[option.code], names[option.code] = option, str(key)
    if faults:
        raise KeyFaults(faults)
    return tuple(made.values())


Options = Annotated[tuple[Option, ...], BeforeValidator(_read_all)]
"""A table of options, by name or code."""


def overlay(*layers: Iterable[Option]) -> tuple[Option, ...]:
    """Return the options of all layers, later ones in place of earlier ones of the same code.

    What is sent always stays so, whoever sets it.
    """
    made: dict[int, Option] = {}
    for option in chain(*layers):
        held = made.get(option.code)
        made[option.code] = replace(option, always=option.always or (held is not None and held.always))
    return tuple(made.values())

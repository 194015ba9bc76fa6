"""The types of keys: what is written in TOML, checked and made into a value. An error says what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    model_validator,
)

MAX_NUMBER = (1 << 63) - 1
"""The largest number that TOML 1.0 has, and the largest size of a file."""
FOREVER = 0xFFFFFFFF
"""Seconds of an infinite lease (RFC 2131 section 3.3)."""
MAX_LOADER = 127
"""Octets of a boot file's name: the header's `file` field holds 128 with its end (RFC 2131 section 2)."""
MAX_URL = 255
"""Octets of a URL, which option 67 carries where `file` can not: firmware reads only its first part."""
SERVER = "{server}"
"""In a boot file it stands for the address of the machine's file server."""


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


Int = Annotated[int, Strict()]
"""A number of TOML: neither a text of digits nor `true`, which Python takes for 1."""
Bool = Annotated[bool, Strict()]


def seconds(value: object) -> object:
    if isinstance(value, str):
        if value == "forever":
            return FOREVER
        if match := re.fullmatch(r"([0-9]{1,12})\s*([smhd])", value):
            return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError('write a duration such as "90s", "10m", "1h", "7d" or "forever", or a number of seconds')


def mac(value: str) -> str:
    """Return a MAC address in its one spelling: lower-case octets joined by colons.

    Accepts colons, dashes, Cisco dots or none. Raises ValueError.
    """
    digits = re.sub(r"[:.\-]", "", value).lower()
    if not re.fullmatch(r"[0-9a-f]{12}", digits):
        raise ValueError(f'{value!r} is no MAC address; write it as "52:54:00:12:34:56"')
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


class Pool(Table):
    """Addresses from `first` to `last`, both included."""

    first: IPv4Address
    last: IPv4Address

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, str):
            first, _, last = (part.strip() for part in value.partition("-"))
            try:
                return {"first": IPv4Address(first), "last": IPv4Address(last or first)}
            except ValueError:
                raise ValueError(f'{value!r} is no range of addresses; write "10.77.0.100-10.77.0.250"') from None
        if not isinstance(value, dict | cls):
            raise ValueError('is no range of addresses; write "10.77.0.100-10.77.0.250"')
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.last < self.first:
            raise ValueError(f"{self} runs backwards; write {self.last}-{self.first}")
        return self

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1


def relay_id(value: object) -> object:
    """Return the octets of a circuit id or remote id: those of a text, or of hexadecimal digits behind 0x.

    The digits may be parted by colons, dashes or dots. Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    octets = value.encode()
    if value.startswith("0x"):
        try:
            octets = bytes.fromhex(re.sub(r"[:.\-]", "", value[2:]))
        except ValueError:
            raise ValueError(f'{value!r} is no number of octets; write it as "0x0004002a0107"') from None
    if not 1 <= len(octets) <= 255:
        raise ValueError(f"{value!r} is {len(octets)} octets; option 82 holds 1 to 255")
    return octets


def relay_id_text(value: bytes) -> str:
    """Return a circuit id or remote id as `relay_id` takes it."""
    text = value.decode("ascii", "replace")
    return (
        text if re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", text) and not text.startswith("0x") else f"0x{value.hex()}"
    )


def _machine_mac(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = mac(value)
    if int(text[:2], 16) & 1 or not text.strip("0:"):
        raise ValueError(f"{text} is the address of no one machine")
    return text


def _path(value: object) -> object:
    if value == "":
        raise ValueError("is empty; write a path")
    if "\0" in str(value):
        raise ValueError("holds a NUL, which no path can")
    return value


def _beside_the_file(value: Path, info: ValidationInfo) -> Path:
    return info.context["directory"] / value if info.context else value


def _served_path(value: str) -> str:
    """A path as a loader asks for it: words of a loader's configuration file, so without white space."""
    if not value.strip("/") or re.search(r"[^!-~]", value):
        raise ValueError(f"{value!r} is no path that a boot loader can ask for: no spaces, printable ASCII only")
    if "://" not in value and ".." in value.split("/"):
        raise ValueError(f'{value!r} leaves the served tree; write it without ".."')
    return value


def _url(value: str) -> str:
    """The URL of a tree of files, without a slash at its end."""
    parts = urlsplit(value)
    is_tree = not parts.query and ".." not in parts.path.split("/")
    if parts.scheme not in ("http", "https", "ftp") or not parts.hostname or not is_tree:
        raise ValueError(
            f'{value!r} is no URL of a tree of files; write one such as "http://10.77.0.2/media/rocky9"'
        )
    return _served_path(value.rstrip("/"))


def _loader(value: str) -> str:
    longest = value.replace(SERVER, "255.255.255.255")
    most = MAX_URL if "://" in value else MAX_LOADER
    if len(longest) > most:
        raise ValueError(f"is {len(longest)} octets; DHCP carries at most {most}")
    if re.search(r"[{}]", value.replace(SERVER, "")):
        raise ValueError(f"{value!r}: only {SERVER} is filled in")
    return _served_path(value)


def _mac_prefix(value: object) -> object:
    if not isinstance(value, str):
        return value
    digits = re.sub(r"[:.\-]", "", value)
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2}){1,6}", digits):
        raise ValueError(f'{value!r} is no beginning of MAC addresses; write it as "b8:27:eb"')
    return bytes.fromhex(digits)


def _text(value: str) -> str:
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", value):
        raise ValueError("holds a control character; write plain text")
    return value


def _one_line(value: str) -> str:
    if "\n" in value:
        raise ValueError("is more than one line")
    return _text(value)


def like(pattern: str, right: str) -> AfterValidator:
    """Return a check of a text by a regular expression, which a person is not shown, but what would be `right`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} {right}")
        return value

    return AfterValidator(check)


def one_or_more(*examples: str) -> BeforeValidator:
    """Return what takes a text alone for a list of it, and shows whoever wrote something else both forms."""

    def listed(value: object) -> object:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):
            raise ValueError(f"write {json.dumps(examples[0])} or {json.dumps(examples)}")
        return value

    return BeforeValidator(listed)


def _architecture(value: object) -> object:
    try:
        code = int(value, 0) if isinstance(value, str) and value.isascii() else value
    except ValueError:
        code = None
    if not isinstance(code, int) or not 0 <= code < 0xFFFF:
        raise ValueError(f"{value!r} is no code of option 93; write one such as 0x0040")
    return code


Seconds = Annotated[Int, BeforeValidator(seconds)]
Mac = Annotated[str, BeforeValidator(_machine_mac)]
RelayId = Annotated[bytes, BeforeValidator(relay_id)]
Lease = Annotated[Seconds, Field(ge=60, le=FOREVER)]
Port = Annotated[Int, Field(ge=0, le=65535)]
Name = Annotated[
    str,
    like(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        'is no name here; write letters, digits, ".", "_" and "-", at most 63, a letter or digit first',
    ),
]
FilePath = Annotated[Path, BeforeValidator(_path), AfterValidator(_beside_the_file)]
ServedPath = Annotated[str, AfterValidator(_served_path)]
Url = Annotated[str, AfterValidator(_url)]
LoaderPath = Annotated[str, AfterValidator(_loader)]
Loaders = Annotated[
    dict[str, LoaderPath], BeforeValidator(lambda value: {"*": value} if isinstance(value, str) else value)
]
"""Boot files by class of firmware; one alone is for any firmware, "*"."""
Architecture = Annotated[Int, BeforeValidator(_architecture)]
MacPrefix = Annotated[bytes, BeforeValidator(_mac_prefix)]
Text = Annotated[str, AfterValidator(_text)]
Line = Annotated[str, AfterValidator(_one_line)]
Variable = Annotated[
    str,
    like(
        r"[A-Za-z_][A-Za-z0-9_]{0,62}",
        'is no name of a variable; write letters, digits and "_", at most 63, no digit first',
    ),
]


class PortRange(Table):
    """Ports from `first` to `last`, both included."""

    first: Annotated[Int, Field(ge=1024, le=65535)]
    last: Annotated[Int, Field(ge=1024, le=65535)]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, str):
            match = re.fullmatch(r"\s*([0-9]{1,5})\s*(?:-\s*([0-9]{1,5})\s*)?", value)
            if not match:
                raise ValueError(f'{value!r} is no range of ports; write "40000-49999"')
            first, last = int(match[1]), int(match[2] or match[1])
            if not all(1024 <= port <= 65535 for port in (first, last)):
                raise ValueError(f'{value!r}: ports are 1024 to 65535 here; write "40000-49999"')
            return {"first": first, "last": last}
        if not isinstance(value, dict | cls):
            raise ValueError('is no range of ports; write "40000-49999"')
        return value

    @model_validator(mode="after")
    def _ordered(self) -> PortRange:
        if self.last < self.first:
            raise ValueError(f"{self.first}-{self.last} runs backwards; write {self.last}-{self.first}")
        return self

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(range(self.first, self.last + 1))

"""TOML to frozen models. An error names the key path, what is wrong and what would be right.

`load` reads a file; `Config` is what it returns and what an embedding program builds by hand.
Durations are written "90s", "10m", "1h", "7d" or "forever" and kept as seconds.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fastboot.model import ConfigError, Node, Profile

FOREVER = 0xFFFFFFFF
"""Seconds of an infinite lease (RFC 2131 section 3.3)."""


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _seconds(value: object) -> object:
    if isinstance(value, str):
        if value == "forever":
            return FOREVER
        if match := re.fullmatch(r"(\d+)\s*([smhd])", value):
            return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        raise ValueError('write a duration such as "90s", "10m", "1h", "7d" or "forever"')
    return value


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
            first, _, last = value.partition("-")
            return {"first": first.strip(), "last": (last or first).strip()}
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


Seconds = Annotated[int, BeforeValidator(_seconds)]
Mac = Annotated[str, BeforeValidator(lambda value: mac(value) if isinstance(value, str) else value)]
Lease = Annotated[Seconds, Field(ge=60, le=FOREVER)]
Port = Annotated[int, Field(ge=0, le=65535)]


class PortRange(Table):
    """Ports from `first` to `last`, both included."""

    first: Annotated[int, Field(ge=1024, le=65535)]
    last: Annotated[int, Field(ge=1024, le=65535)]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, str):
            first, _, last = value.partition("-")
            return {"first": first.strip(), "last": (last or first).strip()}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> PortRange:
        if self.last < self.first:
            raise ValueError(f"{self.first}-{self.last} runs backwards")
        return self

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(range(self.first, self.last + 1))


class Subnet(Table):
    network: IPv4Network
    pools: tuple[Pool, ...] = ()
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: str | None = None
    lease: Lease | None = None


class Dhcp(Table):
    mode: Literal["server"] = "server"
    lease: Lease = 3600
    known_servers: tuple[IPv4Address, ...] = ()
    probe: Annotated[Seconds, Field(ge=0, le=60)] = 4
    """How long to look for another DHCP server before serving. dnsmasq pings for 3 s before its first OFFER."""
    subnets: tuple[Subnet, ...] = ()


class Tftp(Table):
    port: Port = 69
    data_ports: PortRange | None = None
    single_port: bool = False
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    max_transfers: Annotated[int, Field(ge=1, le=65536)] = 4096
    max_blksize: Annotated[int, Field(ge=8, le=65464)] = 1468
    max_windowsize: Annotated[int, Field(ge=1, le=1024)] = 64
    max_file: Annotated[int, Field(ge=0)] = 0
    """Octets of the largest file served by TFTP; 0 means any."""


class Ftp(Table):
    port: Port = 21
    passive_ports: PortRange | None = None
    max_sessions: Annotated[int, Field(ge=1, le=100_000)] = 2000


class NodeTable(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    macs: Annotated[tuple[Mac, ...], Field(min_length=1)]
    address: IPv4Address | None = None
    group: str | None = None
    profile: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)

    def node(self) -> Node:
        return Node(self.name, self.macs, self.address, self.group, self.profile, self.variables)


class Media(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    path: Path


class ProfileTable(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    kernel: str
    initrd: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
    ] = ()
    arguments: str = ""
    media: str | None = None
    transport: Literal["ftp"] = "ftp"
    installs: bool = True

    def profile(self) -> Profile:
        return Profile(**self.model_dump())


class Boot(Table):
    unknown: Literal["menu", "local", "ignore"] = "menu"
    loaders: dict[str, str] = Field(default_factory=dict)
    """Overrides of what boot/firmware.py would choose, by its class names: bios, uefi-x64, ipxe, ..."""


class Log(Table):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(Table):
    """What `fastboot serve` runs: a service exists if and only if its table does."""

    interface: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(min_length=1),
    ]
    state: Path = Path("/var/lib/fastboot")
    roots: tuple[Path, ...] = ()
    allow_links: tuple[Path, ...] = ()
    user: str | None = None
    drain: Seconds = 10
    nodes_file: Path | None = None
    dhcp: Dhcp | None = None
    tftp: Tftp | None = None
    ftp: Ftp | None = None
    nodes: tuple[NodeTable, ...] = ()
    media: tuple[Media, ...] = ()
    profiles: tuple[ProfileTable, ...] = ()
    boot: Boot = Boot()
    log: Log = Log()

    def all_nodes(self) -> tuple[Node, ...]:
        """Return the nodes of the configuration, then those of `nodes_file`. Raises ConfigError."""
        listed = tuple(entry.node() for entry in self.nodes)
        return listed + (read_nodes(self.nodes_file) if self.nodes_file else ())


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Read a CSV file with the columns name, macs (joined by spaces), address, group, profile.

    Raises ConfigError with the line number.
    """
    nodes = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, strict=True):
                fields: dict[str, Any] = {key: value for key, value in row.items() if value}
                fields["macs"] = tuple(str(fields.get("macs", "")).split())
                nodes.append(NodeTable.model_validate(fields).node())
    except ValidationError as error:
        raise ConfigError(f"{path} line {len(nodes) + 2}: {_explain(error)}") from error
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"nodes_file: {path}: {error}") from error
    return tuple(nodes)


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        text = "no such key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        lines.append(f"{key}: {text}" if key else text)
    return "; ".join(lines)

"""TOML to frozen models. An error names the key path, what is wrong and what would be right.

`load` reads a file; `Config` is what it returns and what an embedding program builds by hand.
Durations are written "90s", "10m", "1h", "7d" or "forever" and kept as seconds. Relative paths in a file are
relative to that file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from fastboot.config.dhcp import Answer, ClassTable, Dhcp, Limits, Subnet, mode_faults, subnet_faults
from fastboot.config.faults import beyond, explain, repeated, unknown
from fastboot.config.fields import (
    FOREVER,
    MAX_NUMBER,
    Architecture,
    Bool,
    FilePath,
    Int,
    LoaderPath,
    Name,
    Pool,
    Port,
    PortRange,
    Seconds,
    ServedPath,
    Table,
    Text,
    Url,
    like,
    mac,
    one_or_more,
    relay_id_text,
)
from fastboot.config.nodes import GroupTable, NodeIndex, NodeTable, node_faults, read_nodes
from fastboot.model import AnswerFormat, ConfigError, Node, Profile, Transport

__all__ = [
    "FOREVER",
    "Answer",
    "Boot",
    "ClassTable",
    "Config",
    "Dhcp",
    "Ftp",
    "GroupTable",
    "Http",
    "Limits",
    "Log",
    "Media",
    "NodeIndex",
    "NodeTable",
    "Pool",
    "PortRange",
    "ProfileTable",
    "Subnet",
    "Table",
    "Tftp",
    "explain",
    "load",
    "mac",
    "relay_id_text",
]


def cores() -> int:
    """Return how many processors this process may use, four at most: as many engines fill 10 Gb/s."""
    return min(4, len(os.sched_getaffinity(0)))


class Tftp(Table):
    port: Port = 69
    data_ports: PortRange | None = None
    single_port: Bool = False
    threads: Annotated[Int, Field(ge=1, le=64, default_factory=cores)]
    max_transfers: Annotated[Int, Field(ge=1, le=65536)] = 32768
    max_per_address: Annotated[Int, Field(ge=1, le=100_000)] = 256
    """A machine has one or two under way; machines behind one NAT share an address."""
    max_blksize: Annotated[Int, Field(ge=8, le=65464)] = 1468
    max_windowsize: Annotated[Int, Field(ge=1, le=1024)] = 64
    max_file: Annotated[Int, Field(ge=0, le=MAX_NUMBER)] = 0
    """Octets of the largest file served by TFTP; 0 means any."""


class Ftp(Table):
    port: Port = 21
    passive_ports: PortRange | None = None
    passive_address: IPv4Address | None = None
    """What PASV tells clients to connect to, where they reach us through a NAT."""
    max_sessions: Annotated[Int, Field(ge=1, le=100_000)] = 2000
    max_per_address: Annotated[Int, Field(ge=1, le=100_000)] = 256


class Http(Table):
    port: Port = 80
    max_connections: Annotated[Int, Field(ge=1, le=100_000)] = 4000
    max_per_address: Annotated[Int, Field(ge=1, le=100_000)] = 256
    """A package manager opens about ten; machines behind one NAT share an address."""


class Media(Table):
    """What machines install or boot from: an ISO file, a directory, or what another machine serves."""

    name: Name
    iso: FilePath | None = None
    path: FilePath | None = None
    url: Url | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Media:
        if sum(place is not None for place in (self.iso, self.path, self.url)) != 1:
            raise ValueError('needs one of iso = "/srv/x.iso", path = "/srv/x" or url = "http://other/media/x"')
        return self


class ProfileTable(Table):
    name: Name
    kernel: ServedPath | None = None
    initrd: Annotated[tuple[ServedPath, ...], one_or_more("/rocky9/initrd.img", "/rocky9/more.img")] = ()
    arguments: Text = ""
    media: str | None = None
    transport: Literal["ftp", "http"] | None = None
    """How the installer fetches its media; None: by FTP where it can and there is [ftp], else by HTTP."""
    installs: Bool = True
    answers: FilePath | None = None
    format: AnswerFormat | None = None

    @model_validator(mode="after")
    def _answers(self) -> ProfileTable:
        if self.answers and not self.installs:
            raise ValueError("answers: is for an installer, and installs = false; remove one of them")
        if self.format and not self.answers:
            raise ValueError("format: is that of answers, and there are none; name their file")
        return self

    def profile(self) -> Profile:
        return Profile(**self.model_dump())


class Boot(Table):
    unknown: Literal["menu", "local", "ignore"] = "menu"
    transport: Transport = "auto"
    """How loaders fetch kernels and initrds."""
    loaders: dict[str, LoaderPath] = Field(default_factory=dict)
    """Overrides of what boot/loaders.py would choose, by class: bios, uefi-x64, ipxe, ..."""
    architectures: dict[Architecture, Name] = Field(default_factory=dict)
    """Codes of option 93 that boot/firmware.py does not know, or knows otherwise, and their classes."""


class Log(Table):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(Table):
    """What `fastboot serve` runs: a service exists if and only if its table does."""

    interface: Annotated[
        tuple[Annotated[str, like(r"[^\s/:]{1,15}", "is no name of an interface; `ip link` lists them")], ...],
        one_or_more("eno2", "eno3"),
        Field(min_length=1),
    ]
    state: FilePath = Path("/var/lib/fastboot")
    roots: tuple[FilePath, ...] = ()
    allow_links: tuple[FilePath, ...] = ()
    user: Annotated[str, Field(min_length=1)] | None = None
    drain: Annotated[Seconds, Field(ge=0, le=3600)] = 10
    senders: Annotated[Int, Field(ge=0, le=64)] = 8
    """Threads that send files by FTP and HTTP; 0: the loop sends."""
    nodes_file: FilePath | None = None
    dhcp: Dhcp | None = None
    tftp: Tftp | None = None
    ftp: Ftp | None = None
    http: Http | None = None
    groups: tuple[GroupTable, ...] = ()
    nodes: tuple[NodeTable, ...] = ()
    media: tuple[Media, ...] = ()
    profiles: tuple[ProfileTable, ...] = ()
    boot: Boot = Boot()
    log: Log = Log()

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        faults = [
            *repeated("interface", self.interface),
            *repeated("media", [item.name for item in self.media], ".name"),
            *repeated("profiles", [profile.name for profile in self.profiles], ".name"),
            *repeated("groups", [group.name for group in self.groups], ".name"),
            *subnet_faults(self.dhcp.subnets if self.dhcp else ()),
            *_port_faults(self.tftp, self.ftp, self.http),
        ]
        faults += mode_faults(self.dhcp) if self.dhcp else ()
        media = [item.name for item in self.media]
        for at, profile in enumerate(self.profiles):
            if profile.transport == "http" and self.http is None:
                faults.append(f'profiles[{at}].transport: is "http", and there is no [http]; add that table')
            if profile.media is not None and profile.media not in media:
                faults.append(f"profiles[{at}].media: there is no medium {unknown(profile.media, media)}")
            elsewhere = {item.name for item in self.media if item.url}
            if profile.kernel is None and (profile.media is None or profile.media in elsewhere):
                faults.append(
                    f"profiles[{at}].kernel: is missing; name one, or a medium of this machine that has one"
                )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def all_nodes(self) -> tuple[Node, ...]:
        """Return the nodes of the configuration, then those of `nodes_file`.

        Raises ConfigError where a line is wrong, a name, MAC or address is in two places, a profile does not
        exist or an address is in no subnet.
        """
        named = [(f"nodes[{at}]", entry.node()) for at, entry in enumerate(self.nodes)]
        if self.nodes_file:
            named += read_nodes(self.nodes_file)
        profiles = [profile.name for profile in self.profiles]
        subnets = self.dhcp.subnets if self.dhcp and self.dhcp.mode == "server" else None
        if faults := node_faults(named, profiles, subnets):
            raise ConfigError("\n".join(faults))
        return tuple(node for _, node in named)


def load(path: Path) -> Config:
    """Read and check a configuration file and the nodes file it names.

    Raises ConfigError with one line for each fault.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors begin a file with a BOM
    except FileNotFoundError as error:
        help_ = "write one (docs/configuration.md), or do without: fastboot serve --root DIR, or --iso FILE"
        raise ConfigError(f"{path}: {error.strerror}; {help_}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8: {error.reason} at octet {error.start}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # also of nesting beyond Python's limit
        raise ConfigError(f"{path}: this is no TOML: {error}") from error
    except ValueError as error:  # Python reads no more than 4300 digits, and says so in its own words
        raise ConfigError(f"{path}: this is no TOML: a number or a date in it is out of range") from error
    if faults := list(beyond(document)):
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    try:
        config = Config.model_validate(document, context={"directory": path.absolute().parent})
        config.all_nodes()
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in explain(error, Config))) from error
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error
    return config


def _port_faults(tftp: Tftp | None, ftp: Ftp | None, http: Http | None) -> Iterator[str]:
    if tftp and tftp.data_ports:
        if tftp.single_port:
            yield "tftp.data_ports: has no effect with single_port = true; remove one of them"
        if tftp.port in tftp.data_ports:
            yield f"tftp.data_ports: holds port {tftp.port}, where requests arrive; choose others"
    if ftp and ftp.passive_ports and ftp.port in ftp.passive_ports:
        yield f"ftp.passive_ports: holds port {ftp.port}, where sessions arrive; choose others"
    if ftp and http:
        if ftp.port == http.port and ftp.port:
            yield f"http.port: {http.port} is that of ftp too; choose another"
        if ftp.passive_ports and http.port in ftp.passive_ports:
            yield f"ftp.passive_ports: holds port {http.port}, which is that of http; choose others"

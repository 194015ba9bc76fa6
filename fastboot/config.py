"""TOML to frozen models. An error names the key path, what is wrong and what would be right.

`load` reads a file; `Config` is what it returns and what an embedding program builds by hand.
Durations are written "90s", "10m", "1h", "7d" or "forever" and kept as seconds. Relative paths in a file are
relative to that file.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from fastboot.model import ConfigError, Node, Profile

FOREVER = 0xFFFFFFFF
"""Seconds of an infinite lease (RFC 2131 section 3.3)."""
MAX_LOADER = 127
"""Octets of a boot file's name: the header's `file` field holds 128 with its end (RFC 2131 section 2)."""


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
            first, _, last = (part.strip() for part in value.partition("-"))
            try:
                return {"first": IPv4Address(first), "last": IPv4Address(last or first)}
            except ValueError:
                raise ValueError(f'{value!r} is no range of addresses; write "10.77.0.100-10.77.0.250"') from None
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


def _machine_mac(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = mac(value)
    if int(text[:2], 16) & 1 or not text.strip("0:"):
        raise ValueError(f"{text} is the address of no one machine")
    return text


def _network(value: object) -> object:
    try:
        network = IPv4Network(str(value), strict=False)
    except ValueError:
        raise ValueError(f'{value!r} is no network; write one such as "10.77.0.0/24"') from None
    if str(network.network_address) != str(value).partition("/")[0]:
        raise ValueError(f'{value!r} is an address in a network; write "{network}"')
    if network.prefixlen > 30:
        raise ValueError(f"{network} has no room for machines; /30 is the smallest that has")
    return network


def _beside_the_file(value: Path, info: ValidationInfo) -> Path:
    return info.context["directory"] / value if info.context else value


def _served_path(value: str) -> str:
    """A path as a loader asks for it: words of a loader's configuration file, so without white space."""
    if not value.strip("/") or re.search(r"[^!-~]", value):
        raise ValueError(f"{value!r} is no path that a boot loader can ask for: no spaces, printable ASCII only")
    if "://" not in value and ".." in value.split("/"):
        raise ValueError(f'{value!r} leaves the served tree; write it without ".."')
    return value


def _loader(value: str) -> str:
    if len(value) > MAX_LOADER:
        raise ValueError(f"is {len(value)} octets; DHCP carries at most {MAX_LOADER}")
    return _served_path(value)


def _text(value: str) -> str:
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", value):
        raise ValueError("holds a control character; write plain text")
    return value


def _one_line(value: str) -> str:
    if "\n" in value:
        raise ValueError("is more than one line")
    return _text(value)


Seconds = Annotated[int, BeforeValidator(_seconds)]
Mac = Annotated[str, BeforeValidator(_machine_mac)]
Lease = Annotated[Seconds, Field(ge=60, le=FOREVER)]
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
ServedPath = Annotated[str, AfterValidator(_served_path)]
Line = Annotated[str, AfterValidator(_one_line)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]


class PortRange(Table):
    """Ports from `first` to `last`, both included."""

    first: Annotated[int, Field(ge=1024, le=65535)]
    last: Annotated[int, Field(ge=1024, le=65535)]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", value)
            if not match:
                raise ValueError(f'{value!r} is no range of ports; write "40000-49999"')
            return {"first": int(match[1]), "last": int(match[2] or match[1])}
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


class Subnet(Table):
    network: Annotated[IPv4Network, BeforeValidator(_network)]
    pools: tuple[Pool, ...] = ()
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")] | None = None
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
    name: Name
    macs: Annotated[tuple[Mac, ...], Field(min_length=1)]
    address: IPv4Address | None = None
    group: Name | None = None
    profile: str | None = None
    variables: dict[Variable, Line] = Field(default_factory=dict)

    def node(self) -> Node:
        return Node(self.name, self.macs, self.address, self.group, self.profile, self.variables)


class Media(Table):
    name: Name
    path: FilePath


class ProfileTable(Table):
    name: Name
    kernel: ServedPath
    initrd: Annotated[
        tuple[ServedPath, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
    ] = ()
    arguments: Annotated[str, AfterValidator(_text)] = ""
    media: str | None = None
    transport: Literal["ftp"] = "ftp"
    installs: bool = True

    def profile(self) -> Profile:
        return Profile(**self.model_dump())


class Boot(Table):
    unknown: Literal["menu", "local", "ignore"] = "menu"
    loaders: dict[str, Annotated[str, AfterValidator(_loader)]] = Field(default_factory=dict)
    """Overrides of what boot/firmware.py would choose, by its class names: bios, uefi-x64, ipxe, ..."""


class Log(Table):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(Table):
    """What `fastboot serve` runs: a service exists if and only if its table does."""

    interface: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[^\s/:]{1,15}$")], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(min_length=1),
    ]
    state: FilePath = Path("/var/lib/fastboot")
    roots: tuple[FilePath, ...] = ()
    allow_links: tuple[FilePath, ...] = ()
    user: Annotated[str, Field(min_length=1)] | None = None
    drain: Annotated[Seconds, Field(ge=0, le=3600)] = 10
    nodes_file: FilePath | None = None
    dhcp: Dhcp | None = None
    tftp: Tftp | None = None
    ftp: Ftp | None = None
    nodes: tuple[NodeTable, ...] = ()
    media: tuple[Media, ...] = ()
    profiles: tuple[ProfileTable, ...] = ()
    boot: Boot = Boot()
    log: Log = Log()

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        faults = [
            *_repeated("interface", self.interface),
            *_repeated("media", [item.name for item in self.media], ".name"),
            *_repeated("profiles", [profile.name for profile in self.profiles], ".name"),
            *_subnet_faults(self.dhcp.subnets if self.dhcp else ()),
            *_port_faults(self.tftp, self.ftp),
        ]
        if self.dhcp and not self.dhcp.subnets:
            faults.append('dhcp.subnets: is missing; add [[dhcp.subnets]] with network = "10.77.0.0/24"')
        media = [item.name for item in self.media]
        for at, profile in enumerate(self.profiles):
            if profile.media is not None and profile.media not in media:
                faults.append(f"profiles[{at}].media: there is no medium {_unknown(profile.media, media)}")
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
        if faults := _node_faults(named, self):
            raise ConfigError("\n".join(faults))
        return tuple(node for _, node in named)


def load(path: Path) -> Config:
    """Read and check a configuration file and the nodes file it names.

    Raises ConfigError with one line for each fault.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: this is no TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8: {error.reason} at octet {error.start}") from error
    try:
        config = Config.model_validate(document, context={"directory": path.absolute().parent})
        config.all_nodes()
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _explain(error, Config))) from error
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error
    return config


def read_nodes(path: Path) -> list[tuple[str, Node]]:
    """Read a CSV file with the columns name, macs (joined by spaces), address, group, profile.

    Any other column is a variable of the node. Returns each node with the place it stands at, for errors.
    Raises ConfigError with the line number.
    """
    nodes: list[tuple[str, Node]] = []
    faults: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines, strict=True)
            if missing := {"name", "macs"} - set(rows.fieldnames or ()):
                raise ConfigError(f"nodes_file: {path} line 1: names no column {' and '.join(sorted(missing))}")
            for row in rows:
                place = f"{path} line {rows.line_num}"
                try:
                    nodes.append((place, _node_of(row)))
                except ValidationError as error:
                    faults += (f"nodes_file: {place}: {line}" for line in _explain(error, NodeTable))
                except ValueError as error:
                    faults.append(f"nodes_file: {place}: {error}")
    except OSError as error:
        raise ConfigError(f"nodes_file: {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"nodes_file: {path}: {error}") from error
    if faults:
        raise ConfigError("\n".join(faults))
    return nodes


def _node_of(row: dict[str | Any, Any]) -> Node:
    if None in row:
        raise ValueError("has more fields than the first line names")
    own = set(NodeTable.model_fields) - {"variables"}
    fields: dict[str, Any] = {key: value.strip() for key, value in row.items() if key in own and value}
    fields["macs"] = tuple(fields.get("macs", "").split())
    fields["variables"] = {key: value for key, value in row.items() if key not in own and value}
    return NodeTable.model_validate(fields).node()


def _subnet_faults(subnets: Sequence[Subnet]) -> Iterator[str]:
    for at, subnet in enumerate(subnets):
        key, network, gateway = f"dhcp.subnets[{at}]", subnet.network, subnet.gateway
        hosts = f"{network.network_address + 1} to {network.broadcast_address - 1}"
        reserved = {network.network_address: "network", network.broadcast_address: "broadcast"}
        if gateway is not None and (gateway not in network or gateway in reserved):
            yield f"{key}.gateway: {gateway} is no machine of {network}; write one of {hosts}"
        if gateway is not None:
            reserved[gateway] = "gateway"
        for number, pool in enumerate(subnet.pools):
            if pool.first not in network or pool.last not in network:
                yield f"{key}.pools[{number}]: {pool} is not inside {network}; write addresses of {hosts}"
                continue
            for address, what in reserved.items():
                if address in pool:
                    yield f"{key}.pools[{number}]: {pool} holds the {what} address {address}; leave it out"
        for one, other in pairwise(sorted(subnet.pools, key=lambda pool: pool.first)):
            if other.first <= one.last:
                yield f"{key}.pools: {one} and {other} overlap; join them"
    for (number, first), (at, second) in combinations(enumerate(subnets), 2):
        if first.network.overlaps(second.network):
            yield f"dhcp.subnets[{at}].network: {second.network} overlaps subnets[{number}], {first.network}"


def _port_faults(tftp: Tftp | None, ftp: Ftp | None) -> Iterator[str]:
    if tftp and tftp.data_ports:
        if tftp.single_port:
            yield "tftp.data_ports: has no effect with single_port = true; remove one of them"
        if tftp.port in tftp.data_ports:
            yield f"tftp.data_ports: holds port {tftp.port}, where requests arrive; choose others"
    if ftp and ftp.passive_ports and ftp.port in ftp.passive_ports:
        yield f"ftp.passive_ports: holds port {ftp.port}, where sessions arrive; choose others"


def _node_faults(named: Sequence[tuple[str, Node]], config: Config) -> list[str]:
    faults = []
    seen: dict[object, str] = {}
    profiles = [profile.name for profile in config.profiles]
    for place, node in named:
        for what, value in (
            ("name", node.name),
            *(("mac", mac) for mac in node.macs),
            *((("address", node.address),) if node.address else ()),
        ):
            if (what, value) in seen:
                faults.append(
                    f"{place}: {what} {value} is that of {seen[what, value]} too; it must be in one place"
                )
            seen[what, value] = f"{node.name} ({place})"
        if node.profile is not None and node.profile not in profiles:
            faults.append(f"{place}.profile: there is no profile {_unknown(node.profile, profiles)}")
        if node.address is not None and config.dhcp is not None:
            faults += (f"{place}.address: {text}" for text in _address_faults(node.address, config.dhcp.subnets))
    return faults


def _address_faults(address: IPv4Address, subnets: Sequence[Subnet]) -> Iterator[str]:
    for subnet in subnets:
        if address in subnet.network:
            if address in (subnet.network.network_address, subnet.network.broadcast_address, subnet.gateway):
                yield f"{address} is the network, broadcast or gateway address of {subnet.network}"
            return
    yield f"{address} is in no subnet; there are {', '.join(str(subnet.network) for subnet in subnets)}"


def _repeated(key: str, values: Sequence[str], suffix: str = "") -> Iterator[str]:
    for at, value in enumerate(values):
        if value in values[:at]:
            yield f"{key}[{at}]{suffix}: {value} is there twice; give each its own"


def _unknown(name: str, known: Sequence[str]) -> str:
    """Say what was written and what may have been meant."""
    if close := get_close_matches(name, known, 1):
        return f"{name!r}; did you mean {close[0]!r}?"
    return f"{name!r}; there are {', '.join(sorted(known))}" if known else f"{name!r}; there are none"


def _explain(error: ValidationError, model: type[Table]) -> Iterator[str]:
    found = error.errors(include_url=False)
    for fault in found:
        place = fault["loc"]
        if fault["type"] == "too_short" and any(
            place == each["loc"][: len(place)] for each in found if each is not fault
        ):
            continue  # pydantic counts only the items that are right
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        text, value = fault["msg"], fault["input"]
        if fault["type"] == "extra_forbidden":
            text = f"there is no key {_unknown(str(place[-1]), _keys(model, place[:-1]))}"
        elif fault["type"] == "missing":
            text = "is missing"
        elif fault["type"] == "too_short":
            text = "is empty; name at least one"
        elif fault["type"] == "value_error":
            text = text.removeprefix("Value error, ")
        elif fault["type"] == "string_pattern_mismatch":
            text = f"{value!r} should look like {fault['ctx']['pattern']}"
        else:
            was = f" (is {value!r})" if isinstance(value, str | int | float) else ""
            text = text.replace("Input should", "should") + was
        for line in text.splitlines():
            yield f"{key}: {line}" if key else line


def _keys(model: type[Table], place: Iterable[int | str]) -> list[str]:
    """Return the keys of the table at a place of the document."""
    for part in place:
        if isinstance(part, str):
            if part not in model.model_fields:
                return []
            inner = _table_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _table_in(annotation: object) -> type[Table] | None:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_in(part))), None)

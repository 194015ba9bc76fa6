"""Machines: their table, the file that names many of them, and where names and addresses collide."""

from __future__ import annotations

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from fastboot.config.dhcp import BootAnswer, Subnet, address_faults
from fastboot.config.faults import explain, unknown
from fastboot.config.fields import Line, Loaders, Mac, Name, RelayId, Variable, relay_id_text
from fastboot.config.options import from_text
from fastboot.model import ConfigError, Node

OPTION = "options."
"""How the name of a column begins that holds a DHCP option."""


class GroupTable(BootAnswer):
    """What the nodes of a group have in common."""

    name: Name
    loader: Loaders = Field(default_factory=dict)


class NodeTable(BootAnswer):
    name: Name
    macs: tuple[Mac, ...] = ()
    address: IPv4Address | None = None
    group: Name | None = None
    profile: str | None = None
    loader: Loaders = Field(default_factory=dict)
    variables: dict[Variable, Line] = Field(default_factory=dict)
    circuit_id: RelayId = b""
    remote_id: RelayId = b""

    @model_validator(mode="after")
    def _is_known_by_something(self) -> NodeTable:
        if not (self.macs or self.circuit_id or self.remote_id):
            raise ValueError("names no machine; write macs, circuit_id or remote_id")
        return self

    def node(self) -> Node:
        settings = self.settings(self.loader)
        known = self.circuit_id, self.remote_id
        return Node(self.name, self.macs, self.address, self.group, self.profile, self.variables, settings, *known)


class NodeIndex:
    """Finds nodes as the DHCP server does: a MAC comes first, then the port with both its ids, then one of them.

    Behind one port there may be a machine, its BMC and its guests: whoever is known by name is that one. What has
    no name there is the node of the port, so that a machine put in another's place is that node.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._found = {key: node for node in nodes for key in node_keys(node)}

    def find(self, mac: str, circuit_id: bytes = b"", remote_id: bytes = b"") -> Node | None:
        for key in (
            ("mac", mac),
            ("port", circuit_id, remote_id),
            ("port", circuit_id, b""),
            ("port", b"", remote_id),
        ):
            if node := self._found.get(key):
                return node
        return None


def node_keys(node: Node) -> Iterator[tuple[str | bytes, ...]]:
    """Yield what a node is known by, each of which belongs to one node only."""
    yield from (("mac", mac) for mac in node.macs)
    if node.circuit_id or node.remote_id:
        yield "port", node.circuit_id, node.remote_id


def read_nodes(path: Path) -> list[tuple[str, Node]]:
    """Read a CSV file: name, macs (joined by spaces), circuit_id, remote_id, address, group, profile, loader,
    next_server, lease, transport, and options.NAME for DHCP options. Any other column is a variable of the node.

    Returns each node with the place it stands at, for errors.
    Raises ConfigError with the line number.
    """
    nodes: list[tuple[str, Node]] = []
    faults: list[str] = []
    try:
        # Now, also where it is a FIFO that nobody writes to.
        now = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(now, newline="", encoding="utf-8-sig") as lines:
            if not stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
                raise ConfigError(f"nodes_file: {path}: is no regular file; name a CSV file")
            rows = csv.DictReader(lines, strict=True)
            columns = set(rows.fieldnames or ())
            if twice := [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]:
                raise ConfigError(
                    f"nodes_file: {path} line 1: names the column {', '.join(twice)} twice; leave one of them out"
                )
            if "name" not in columns or not columns & {"macs", "circuit_id", "remote_id"}:
                missing = "macs" if "name" in columns else "name" if "macs" in columns else "macs and name"
                raise ConfigError(f"nodes_file: {path} line 1: names no column {missing}")
            for row in rows:
                place = f"{path} line {rows.line_num}"
                try:
                    nodes.append((place, _node_of(row)))
                except ValidationError as error:
                    faults += (f"nodes_file: {place}: {line}" for line in explain(error, NodeTable))
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
    own = set(NodeTable.model_fields) - {"variables", "options"}
    fields: dict[str, Any] = {key: value.strip() for key, value in row.items() if key in own and value}
    fields["macs"] = tuple(fields.get("macs", "").split())
    others = {key: value for key, value in row.items() if key not in own and value}
    fields["options"] = {
        key.removeprefix(OPTION): from_text(key.removeprefix(OPTION), value.strip())
        for key, value in others.items()
        if key.startswith(OPTION)
    }
    fields["variables"] = {key: value for key, value in others.items() if not key.startswith(OPTION)}
    return NodeTable.model_validate(fields).node()


def node_faults(
    named: Sequence[tuple[str, Node]], profiles: Sequence[str], subnets: Sequence[Subnet] | None
) -> list[str]:
    faults = []
    seen: dict[object, str] = {}
    for place, node in named:
        for what, value in (
            ("name", node.name),
            *(("mac", mac) for mac in node.macs),
            *_port_name(node),
            *((("address", node.address),) if node.address else ()),
        ):
            if (what, value) in seen:
                faults.append(
                    f"{place}: {what} {value} is that of {seen[what, value]} too; it must be in one place"
                )
            seen[what, value] = f"{node.name} ({place})"
        if node.profile is not None and node.profile not in profiles:
            faults.append(f"{place}.profile: there is no profile {unknown(node.profile, profiles)}")
        if node.address is not None and subnets is not None:
            faults += (f"{place}.address: {text}" for text in address_faults(node.address, subnets))
    return faults


def _port_name(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the port of a node for an error, in words that tell all three kinds apart."""
    names = ("circuit_id", node.circuit_id), ("remote_id", node.remote_id)
    if text := " with ".join(f"{name} {relay_id_text(value)}" for name, value in names if value):
        yield "port", text

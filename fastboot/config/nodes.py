"""Machines: their table, the file that names many of them, and where names and addresses collide."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fastboot.config.dhcp import Answer, Subnet, address_faults
from fastboot.config.faults import explain, unknown
from fastboot.config.fields import Line, Loaders, Mac, Name, Variable
from fastboot.config.options import from_text
from fastboot.model import ConfigError, Node

OPTION = "options."
"""How the name of a column begins that holds a DHCP option."""


class GroupTable(Answer):
    """What the nodes of a group have in common."""

    name: Name
    loader: Loaders = Field(default_factory=dict)


class NodeTable(Answer):
    name: Name
    macs: Annotated[tuple[Mac, ...], Field(min_length=1)]
    address: IPv4Address | None = None
    group: Name | None = None
    profile: str | None = None
    loader: Loaders = Field(default_factory=dict)
    variables: dict[Variable, Line] = Field(default_factory=dict)

    def node(self) -> Node:
        settings = self.settings(self.loader)
        return Node(self.name, self.macs, self.address, self.group, self.profile, self.variables, settings)


def read_nodes(path: Path) -> list[tuple[str, Node]]:
    """Read a CSV file: name, macs (joined by spaces), address, group, profile, loader, next_server, lease, and
    options.NAME for DHCP options. Any other column is a variable of the node.

    Returns each node with the place it stands at, for errors.
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

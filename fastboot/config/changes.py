"""What differs between two configurations, and which of that a running server takes."""

from __future__ import annotations

from collections.abc import Iterable

from fastboot.config.fields import Table

RELOADABLE = (
    "allow_links",
    "boot.",
    "dhcp.arp_probes",
    "dhcp.bootp",
    "dhcp.classes",
    "dhcp.known_servers",
    "dhcp.lease",
    "dhcp.limits.",
    "dhcp.next_server",
    "dhcp.options",
    "dhcp.probe_every",
    "dhcp.quarantine",
    "dhcp.snooping",
    "dhcp.subnets",
    "drain",
    "ftp.max_per_address",
    "ftp.max_sessions",
    "ftp.passive_address",
    "groups",
    "http.max_connections",
    "http.max_per_address",
    "media",
    "nodes",
    "nodes_file",
    "profiles",
    "roots",
    "tftp.max_file",
    "tftp.max_per_address",
)
"""Keys, and tables ending in a dot, that a running server takes; a change of any other needs a restart."""


def changed_keys(old: Table, new: Table, prefix: str = "") -> tuple[str, ...]:
    """Return the key paths of what differs, down to the keys of tables."""
    keys: list[str] = []
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Table) and type(before) is type(after):
            keys += changed_keys(before, after, f"{prefix}{name}.")
        elif before != after:
            keys.append(prefix + name)
    return tuple(keys)


def needing_restart(keys: Iterable[str]) -> list[str]:
    """Return those keys that a running server does not take."""
    return [key for key in keys if not key.startswith(RELOADABLE)]

"""Leases and nodes as commands print them."""

from __future__ import annotations

import math

from fastboot.config import NodeIndex, relay_id_text
from fastboot.model import Install, Lease, Node


def lease_facts(lease: Lease, known: NodeIndex) -> dict[str, object]:
    """Return a lease as commands print it; an infinite one has no end in JSON."""
    node = known.find(lease.mac, lease.circuit_id, lease.remote_id)
    return {
        "address": lease.address,
        "mac": lease.mac,
        "node": node.name if node else None,
        "hostname": lease.hostname,
        "client_id": lease.client_id.hex(),
        "relay": lease.relay,
        "circuit_id": relay_id_text(lease.circuit_id) if lease.circuit_id else None,
        "remote_id": relay_id_text(lease.remote_id) if lease.remote_id else None,
        "state": lease.state,
        "starts": lease.starts,
        "expires": None if lease.expires == math.inf else lease.expires,
    }


def node_facts(node: Node, install: Install | None = None) -> dict[str, object]:
    """Return a node as commands print it, and how far its installation is: nothing of that is a secret."""
    return {
        "name": node.name,
        "macs": list(node.macs),
        "circuit_id": relay_id_text(node.circuit_id) if node.circuit_id else None,
        "remote_id": relay_id_text(node.remote_id) if node.remote_id else None,
        "address": node.address,
        "group": node.group,
        "profile": node.profile,
        "variables": node.variables,
        "install": install_facts(install) if install else None,
    }


def install_facts(install: Install) -> dict[str, object]:
    """Return an install as commands print it, without its token."""
    return {
        "node": install.node,
        "profile": install.profile,
        "state": install.state.value,
        "since": install.since,
        "text": install.text,
    }

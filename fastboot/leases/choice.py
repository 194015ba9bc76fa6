"""Sets of leases as people write them: a machine, its MAC, an address, a network, a host name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from fastboot.model import Node
from fastboot.nodeset import NodeSetError, expand, select

MAC = re.compile(r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")
NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+){1,3}(?:/[0-9]+)?")

Facts = dict[str, Any]


def choose(words: Iterable[str], state: str | None, leases: Sequence[Facts], nodes: Sequence[Node]) -> list[Facts]:
    """Return the leases that any of the words means, all for no words, and that are in a state.

    A word is a MAC, an address, a network, nodes (`node[01-16]`, a group, `@all`) or a host name. Raises
    NodeSetError for one that is none of these.
    """
    means = [_meaning(word, leases, nodes) for word in words]
    return [
        lease
        for lease in leases
        if (not means or any(mean(lease) for mean in means)) and state in (None, lease["state"])
    ]


def _meaning(word: str, leases: Sequence[Facts], nodes: Sequence[Node]) -> Callable[[Facts], bool]:
    if MAC.fullmatch(word):
        mac = word.lower().replace("-", ":")
        return lambda lease: bool(lease["mac"] == mac)
    if NUMBERS.fullmatch(word):
        try:
            network = IPv4Network(word, strict=False)
        except ValueError:
            raise NodeSetError(f"{word!r} is neither an address nor a network") from None
        return lambda lease: IPv4Address(lease["address"]) in network
    hosts = {name.lower() for name in expand(word)}
    known = any(lease["hostname"].lower() in hosts for lease in leases)
    try:
        names = {node.name for node in select([word], nodes)}
    except NodeSetError:
        if not known:
            raise
        names = set()
    return lambda lease: lease["node"] in names or lease["hostname"].lower() in hosts

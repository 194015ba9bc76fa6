"""Open files that clients of HTTP and FTP may have: the rest is for TFTP, DHCP, media and the store."""

from __future__ import annotations

import resource
from collections import Counter
from typing import Final

from fastboot.config import Config

RESERVE: Final = 512
"""Kept from them, or half of all where that is less: at rest the server has 80, each file by TFTP is one more."""
PER_SESSION: Final = 5
"""By FTP: control, data, file, and the pump's own of the last two."""
PER_CONNECTION: Final = 1
PER_TRANSFER: Final = 3
"""By HTTP: the file, and the pump's own of it and of the connection."""
EXCESS: Final = "too few descriptors"
SHARE: Final = "too many descriptors of one address"
"""Why somebody is turned away."""


def for_clients(limit: int) -> int:
    """Return how many of the files that may be open are for clients of HTTP and FTP."""
    return limit - min(RESERVE, limit // 2)


def shortage(config: Config, limit: int) -> str | None:
    """Say that so many open files are less than HTTP and FTP may need, None where they are enough.

    `limit` as in getrlimit(2), RLIM_INFINITY (-1) too.
    """
    clients = {
        "ftp.max_sessions": config.ftp.max_sessions * PER_SESSION if config.ftp else 0,
        "http.max_connections": config.http.max_connections * (PER_CONNECTION + PER_TRANSFER)
        if config.http
        else 0,
    }
    needed = sum(clients.values()) + RESERVE
    if limit < 0 or limit >= needed or not any(clients.values()):
        return None
    keys = " and ".join(key for key, files in clients.items() if files)
    return (
        f"{keys}: {needed} open files may be needed, {limit} are allowed: of more than {for_clients(limit)} for"
        " clients of FTP and HTTP, half of them for one address, the last are turned away (421, 503); raise"
        " LimitNOFILE of the service"
    )


class Descriptors:
    """How many the clients of HTTP and FTP together may open still, half of all by one address. For one thread."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` is the process's own by default."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
        self._all = self._left = for_clients(limit if limit >= 0 else 1 << 30)
        self._by_address: Counter[str] = Counter()

    def lacks(self, count: int, address: str) -> str | None:
        """Return why an address may not open so many more, None where it may."""
        if count > self._left:
            return EXCESS
        return SHARE if self._by_address[address] + count > self._all // 2 else None

    def take(self, count: int, address: str) -> None:
        """Set so many aside, to be given back."""
        self._left -= count
        self._by_address[address] += count

    def give_back(self, count: int, address: str) -> None:
        self._left += count
        self._by_address[address] -= count
        if not self._by_address[address]:
            del self._by_address[address]

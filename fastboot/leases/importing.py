"""Leases of another server, from its file into the store of a server that does not run."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from fastboot.config import Config
from fastboot.model import ConfigError, FastbootError
from fastboot.services.dhcp_import import Sieve, row_of
from fastboot.services.links import host_addresses
from fastboot.state.foreign import ForeignError, ForeignLease, ForeignLeases, read
from fastboot.state.lock import StateLock
from fastboot.state.store import Store


def read_file(path: Path) -> ForeignLeases:
    """Read a lease file of dnsmasq or ISC dhcpd. Raises FastbootError."""
    try:
        return read(path.read_bytes(), time.time())
    except OSError as error:
        raise FastbootError(f"{path}: {error.strerror}") from error
    except ForeignError as error:
        raise FastbootError(f"{path}: {error}") from error


def keep(config: Config, found: list[ForeignLease]) -> tuple[int, list[str]]:
    """Take leases into the store, in one commit; return how many, and why the others were left out.

    Raises FastbootError, StateInUse where a server runs.
    """
    if config.dhcp is None:
        raise ConfigError("dhcp: there is no such table, so no subnet that a lease could be of")
    with StateLock(config.state), closing(Store(config.state)) as store:
        sieve = Sieve(config.dhcp, config.all_nodes(), host_addresses(()), store.leases())
        fit, left_out = sieve.sift(found)
        store.write_leases([row_of(lease, store.clock) for lease in fit])
        return len(fit), [*store.damage, *left_out]

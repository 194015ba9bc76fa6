"""`fastboot leases`: who has which address; giving one back; taking those of another server."""

from __future__ import annotations

import os
import pwd
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fastboot.config import Config, NodeIndex, load
from fastboot.leases.choice import choose
from fastboot.leases.importing import keep, read_file
from fastboot.model import FastbootError
from fastboot.privileges import become, drop_to
from fastboot.services.control_client import ControlClient, NotRunning
from fastboot.services.facts import lease_facts
from fastboot.state.lock import StateLock
from fastboot.state.store import read_leases
from fastboot.terminal import DEFAULT, AsJson, ConfigFile, print_facts, print_json
from fastboot.watch.log import plain, printable
from fastboot.wording import counted


class LeaseState(StrEnum):
    """What an address may be that `leases` lists."""

    BOUND = "bound"
    DECLINED = "declined"


def leases(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHICH]", help="node[001-064], a group, @all, a MAC, an address, a network or a host name"
        ),
    ] = None,
    state: Annotated[LeaseState | None, typer.Option(help="Only those in this state.")] = None,
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
    release: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Give this address back to its pool.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Take the leases of dnsmasq or ISC dhcpd.")
    ] = None,
) -> None:
    """List the addresses that are leased."""
    settings = load(config)
    client = ControlClient(settings.state)
    if release is not None:
        print_json(client.post(f"/leases/{quote(release)}/release"))
        return
    if import_ is not None:
        import_leases(settings, import_, as_json)
        return
    try:
        facts = client.get("/leases")
    except NotRunning:
        facts = stored_leases(settings)
    chosen = choose(which or (), state, facts, settings.all_nodes())
    print_facts(chosen, ("address", "mac", "node", "hostname", "state", "expires"), as_json)


def import_leases(settings: Config, path: Path, as_json: bool) -> None:
    """Take the leases in a file of another server, by the running server or into its store."""
    found = read_file(path)
    try:
        facts = [lease.facts() for lease in found.leases]
        done = ControlClient(settings.state).post("/leases/import", facts)
        count, left_out = done["imported"], done["left_out"]
    except NotRunning:
        become(settings)
        count, left_out = keep(settings, found.leases)
    texts = [printable(text) for text in (*found.faults, *left_out)]
    if as_json:
        print_json({"imported": count, "left_out": texts, "passed_over": found.passed})
        return
    for text in texts:
        print(f"{path}: {text}", file=sys.stderr)
    passed = "".join(f", {number} {printable(reason)}" for reason, number in sorted(found.passed.items()))
    print(f"{path}: {counted(count, 'lease')} imported, {len(texts)} left out{passed}")


def stored_leases(config: Config) -> list[dict[str, Any]]:
    """Return the leases that a server which does not run has left behind. Raises FastbootError."""
    if not config.state.exists():
        return []
    # SQLite makes files beside its own to read it: they must belong to the server's user, not to root.
    if os.geteuid() == 0 and (owner := config.state.stat().st_uid):
        try:
            drop_to(pwd.getpwuid(owner))
        except KeyError:
            raise FastbootError(f"state: {config.state} belongs to a user that does not exist: {owner}") from None
    known = NodeIndex(config.all_nodes())
    with StateLock(config.state):
        leases = read_leases(config.state)
    return [{key: plain(value) for key, value in lease_facts(lease, known).items()} for lease in leases]

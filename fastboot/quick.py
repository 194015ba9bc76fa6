"""The configuration that `serve --root` and `serve --iso` stand for: a lab from a few words, without a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from fastboot.config import Config, explain
from fastboot.model import ConfigError
from fastboot.services.links import Link, find_links

STATE = Path("/var/lib/fastboot")


def quick_config(
    roots: Sequence[Path] = (),
    iso: Path | None = None,
    interfaces: Sequence[str] = (),
    pools: Sequence[str] = (),
    state: Path | None = None,
) -> tuple[Config, list[str]]:
    """Return a configuration and, in words for the person who gave so few, what was chosen.

    TFTP, FTP and HTTP serve the roots and the image. DHCP serves where there are pools, and gives machines a menu:
    the local disk, which is the default, and what the image boots. Raises ConfigError.
    """
    if iso is not None and not interfaces:
        raise ConfigError("--iso: needs --interface NAME, the network of the machines")
    links = find_links(interfaces or _interfaces())
    table: dict[str, Any] = {
        "interface": [link.name for link in links],
        "state": (state or _state()).absolute(),
        "roots": [root.absolute() for root in roots],
        "user": "nobody" if os.geteuid() == 0 else None,
        "tftp": {},
        "ftp": {},
        "http": {},
    }
    addresses = ", ".join(f"{own.ip} on {link.name}" for link in links for own in link.addresses)
    chosen = [f"TFTP, FTP and HTTP on {addresses}"]
    chosen += [f"/ is {root}" for root in table["roots"]]
    if iso is not None:
        name = _name_of(iso)
        table["media"] = [{"name": name, "iso": iso.absolute()}]
        table["profiles"] = [{"name": name, "media": name, "installs": False}]
        chosen.append(f"/media/{name} is what is in {iso.absolute()}")
    if pools:
        table["dhcp"] = {"subnets": _subnets(links, pools)}
        chosen.append(
            f"DHCP gives {', '.join(pools)}; machines get a menu that boots the local disk after 10 s"
            + (f", or {table['profiles'][0]['name']} where somebody chooses it" if iso else "")
        )
    else:
        chosen.append("no DHCP: that takes --pool FIRST-LAST")
    chosen.append(f"state in {table['state']}" + (f", as user {table['user']}" if table["user"] else ""))
    try:
        return Config.model_validate(table), chosen
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config))) from error


def _interfaces() -> list[str]:
    """Return every interface that is up and has an address, but the loopback."""
    stats, addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    names = [
        name
        for name, facts in stats.items()
        if facts.isup and name != "lo" and any(entry.family.name == "AF_INET" for entry in addresses.get(name, ()))
    ]
    if not names:
        raise ConfigError("no interface is up and has an IPv4 address; name one with --interface")
    return names


def _state() -> Path:
    if os.geteuid() == 0:
        return STATE
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "fastboot"


def _name_of(iso: Path) -> str:
    """Return the name of a medium for an image: that of its file, of what names may be made of."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", iso.stem).strip("._-")[:63]
    return name or "iso"


def _subnets(links: Sequence[Link], pools: Sequence[str]) -> list[dict[str, Any]]:
    """Return the networks of the interfaces that have a pool. Raises ConfigError for a pool that is in none."""
    networks: dict[IPv4Interface, list[str]] = {own: [] for link in links for own in link.addresses}
    for pool in pools:
        try:
            first = IPv4Address(pool.partition("-")[0].strip())
        except ValueError:
            raise ConfigError(f"--pool: {pool!r} is no range; write 10.77.0.100-10.77.0.250") from None
        own = next((own for own in networks if first in own.network), None)
        if own is None:
            known = ", ".join(str(own.network) for own in networks)
            raise ConfigError(f"--pool: {pool} is in no network of these interfaces; they are in {known}")
        networks[own].append(pool)
    return [{"network": str(own.network), "pools": list(found)} for own, found in networks.items() if found]

"""The configuration that `serve --root` and `serve --iso` stand for: a lab from a few words, without a file."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, Protocol

import psutil
import structlog
from pydantic import TypeAdapter, ValidationError

from fastboot.config import Config, explain
from fastboot.config.fields import Mac
from fastboot.model import ConfigError, FastbootError, Install, InstallState
from fastboot.services.dhcp_probe import Rival, find_rivals, open_probe
from fastboot.services.links import Link, find_links
from fastboot.wording import moment

log = structlog.get_logger(component="installs")

STATE = Path("/var/lib/fastboot")
LOOK = 4.0
"""Seconds to look for another DHCP server: dnsmasq pings for 3 s before its first OFFER."""


def other_servers(links: Sequence[Link]) -> list[Rival]:
    """Look for DHCP servers at work on the links, for LOOK seconds where there are none. Raises FastbootError."""
    with ExitStack() as undo:
        try:
            ethernets = [link for link in links if any(link.mac)]
            probes = [(link, undo.enter_context(open_probe(link))) for link in ethernets]
            return asyncio.run(find_rivals(probes, (), LOOK))
        except OSError as error:
            why = f"can not look for another DHCP server: {error.strerror}"
            raise FastbootError(f"--iso: {why}; be root, or give --pool FIRST-LAST") from error


def quick_config(
    roots: Sequence[Path] = (),
    iso: Path | None = None,
    interfaces: Sequence[str] = (),
    pools: Sequence[str] = (),
    state: Path | None = None,
    install: Sequence[str] = (),
    answers: Path | None = None,
    look: Callable[[Sequence[Link]], Sequence[object]] = other_servers,
) -> tuple[Config, list[str]]:
    """Return a configuration and, in words for the person who gave so few, what was chosen.

    TFTP, FTP and HTTP serve roots and image. Machines get a menu: the local disk, which is the default, and
    what boots from the image. Those whose MACs are in `install` are nodes, with a profile that installs from it,
    for `install_once` to arm, and `answers` as the template of its answers. They hear of it by DHCP with the
    pools, or beside the server that `look` finds. Raises ConfigError.
    """
    for root in roots:
        _must_be("--root", root, Path.is_dir, "directory")
    if iso is not None:
        _must_be("--iso", iso, lambda path: not path.is_dir(), "file")
        if not interfaces:
            raise ConfigError("--iso: needs --interface NAME, the network of the machines")
    links = find_links(interfaces or _interfaces())
    table: dict[str, Any] = {
        "interface": [link.name for link in links],
        "state": (state or default_state()).absolute(),
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
        chosen += _installing(table, name, install, answers) if install else []
        others = "other machines" if install else "machines"
        chosen.append(f"{others} get a menu: their local disk after 10 s, or {name} where somebody chooses it")
    elif install:
        raise ConfigError("--install: needs --iso FILE, what is to be installed")
    if answers and not install:
        raise ConfigError("--answers: needs --install MAC, whose installer it answers")
    if not pools and iso is None:
        chosen.append("no DHCP: that takes --pool FIRST-LAST")
    else:
        table["dhcp"], said = _dhcp(links, pools, look)
        chosen.append(said)
    chosen.append(f"state in {table['state']}" + (f", as user {table['user']}" if table["user"] else ""))
    try:
        return Config.model_validate(table), chosen
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config))) from error


def _installing(table: dict[str, Any], name: str, install: Sequence[str], answers: Path | None) -> list[str]:
    """Let machines install a medium; return that in words."""
    own = f"{name[:55]}-install"
    table["profiles"].append({"name": own, "media": name, "answers": answers and answers.absolute()})
    table["nodes"] = [{"name": node_name(mac), "macs": [mac], "profile": own} for mac in install]
    said = [f"machines that install {name}, each once: {', '.join(install)}"]
    return [*said, f"their installer asks nobody: its answers are made of {answers}"] if answers else said


def node_name(mac: str) -> str:
    """Return the name of a node that is known by its MAC alone: the same at every start."""
    return mac.lower().replace(":", "-")


class Arms(Protocol):
    """What arms nodes; `fastboot.Server` is one."""

    async def arm_new(self, names: Iterable[str]) -> Sequence[Install]: ...
    def nodes(self) -> Sequence[Mapping[str, Any]]: ...


def macs_of(words: Sequence[str]) -> list[str]:
    """Return MACs as `--install` is given them. Raises ConfigError."""
    try:
        return list(dict.fromkeys(TypeAdapter(list[Mac]).validate_python(list(words))))
    except ValidationError as error:
        raise ConfigError("\n".join(f"--install: {each['msg']}" for each in error.errors())) from error


async def install_once(server: Arms, macs: Sequence[str], state: Path) -> list[str]:
    """Arm the machines that this server has never armed, so that who is started again with the same words installs
    nothing twice. Return of the others, in words for a person, what each is; these are in the log too."""
    names = [node_name(mac) for mac in macs]
    armed = {install.node for install in await server.arm_new(names)}
    where = "" if state == STATE else f" --state {state}"
    told = []
    for node in server.nodes():
        name, install = node["name"], node["install"]
        if name in armed:
            continue
        again = f"fastboot arm {name}{where}"
        if install is None:
            was = "was armed before, or the store was damaged and nobody knows"
        elif install["state"] == InstallState.ARMED:
            told.append(f"{name} is armed since {moment(install['since'])}; it installs at its next boot, once")
            continue
        elif install["state"] == InstallState.INSTALLING:
            was = f"is being installed since {moment(install['since'])}"
            again = f"fastboot disarm {name}{where}, then {again}"
        else:
            was = f"{'was installed' if install['state'] == InstallState.INSTALLED else 'failed'} at"
            was = f"{was} {moment(install['since'])}"
        told.append(f"{name} {was}, so it is not installed again; to do that: {again}")
    for text in told:
        log.warning("not_armed_again", text=text)
    return told


def _must_be(option: str, path: Path, is_right: Callable[[Path], bool], kind: str) -> None:
    """Raise ConfigError for a path that is not there, or is something else."""
    try:
        path.stat()
    except OSError as error:
        raise ConfigError(f"{option}: {path}: {error.strerror}; name a {kind}") from None
    if not is_right(path):
        raise ConfigError(f"{option}: {path} is no {kind}; name one")


def _dhcp(
    links: Sequence[Link], pools: Sequence[str], look: Callable[[Sequence[Link]], Sequence[object]]
) -> tuple[dict[str, Any], str]:
    """Return the table `dhcp`, with the pools or beside the server that `look` finds, and say which."""
    if pools:
        return {"subnets": _subnets(links, pools)}, f"DHCP gives {', '.join(pools)}"
    if others := look(links):
        who = ", ".join(map(str, others))
        return {"mode": "proxy"}, f"{who} gives the addresses, fastboot says what to boot (a proxy)"
    raise ConfigError("--iso: no other DHCP server answers here, so --pool FIRST-LAST is needed")


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


def default_state() -> Path:
    """Return the state directory of who says nothing of it."""
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

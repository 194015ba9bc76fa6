"""The arguments of `fastboot rehearse`, which `cli` adds to its commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from fastboot.model import ConfigError

_USUAL: Final = Path("/etc/fastboot/fastboot.toml")
_ASKED: Final = """\
--interface {interface}: {nodes} made-up machines would ask whatever server is on this network for addresses \
within {spread:g} s, keep them until the end, and fetch what it tells them to, as fast as the link carries it: \
real machines there will notice. Say --yes to do that."""


def rehearse(
    nodes: Annotated[int, typer.Option(min=1, max=20000, help="How many machines are switched on.")] = 100,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help=f"The configuration, usually {_USUAL}.")
    ] = None,
    kinds: Annotated[
        str, typer.Option(metavar="KIND=N,...", help="The mix of machines: bios, uefi, ipxe, uefi-http.")
    ] = "bios=1,uefi=2,ipxe=1",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What all boot; without it, what each would get now. With --interface chosen in their menus.",
        ),
    ] = None,
    spread: Annotated[float, typer.Option(min=0, help="Seconds over which they are switched on.")] = 10.0,
    link: Annotated[str | None, typer.Option(metavar="RATE", help='The speed of the links, such as "1G".')] = None,
    loss: Annotated[float, typer.Option(min=0, max=50, help="Percent of UDP packets lost each way.")] = 0.0,
    slow: Annotated[float, typer.Option(min=0, help="Milliseconds that a machine takes for a block.")] = 0.0,
    media: Annotated[
        bool, typer.Option("--media/--no-media", help="Whether installers fetch their media.")
    ] = True,
    packages: Annotated[
        str | None, typer.Option(metavar="SIZE", help='Packages that each machine installs, such as "500M".')
    ] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which it ends in any case.")] = 900.0,
    interface: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Send on a real network, to the server that runs there. Needs root."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --interface: do send.")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, as PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rehearse a lab's morning with simulated machines, on a private network with a copy of the server's state."""
    from fastboot.lab.rehearsal.run import Plan, run

    rate, size = amount_of("--link", link, "bit"), amount_of("--packages", packages, "B") or 0
    if size and not media:
        raise ConfigError("--packages: with --no-media installers fetch nothing")
    if interface:
        agree(interface, nodes, spread, rate, yes)
    elif config is None:
        config = _USUAL
    plan = Plan(
        config, nodes, mix_of(kinds), spread, loss / 100, slow / 1000, rate, profile, media, size, limit, interface
    )
    sys.exit(run(plan, as_json=as_json, picture=picture))


def agree(interface: str, nodes: int, spread: float, rate: int | None, yes: bool) -> None:
    """Raise ConfigError for what would be sent on a real network and must not be, or not without a word."""
    from fastboot.lab.rehearsal.lan import MOST_A_SECOND, MOST_MACHINES

    if rate:
        raise ConfigError("--link: with --interface the link has the speed that it has")
    if nodes > MOST_MACHINES:
        raise ConfigError(f"--nodes: with --interface at most {MOST_MACHINES:,}")
    if spread < nodes / MOST_A_SECOND:
        raise ConfigError(f"--spread: with --interface at least {nodes / MOST_A_SECOND:g} for {nodes} machines")
    if not yes:
        raise ConfigError(_ASKED.format(interface=interface, nodes=nodes, spread=spread))


def mix_of(text: str) -> dict[str, int]:
    """Return the shares of each kind. Raises ConfigError."""
    from fastboot.lab.rehearsal.kinds import KINDS

    parts = {}
    for part in text.split(","):
        kind, _, share = part.strip().partition("=")
        if kind not in KINDS or not re.fullmatch(r"[0-9]{0,4}", share):
            raise ConfigError(f"--kinds: {part!r}: write {', '.join(KINDS)}, each with its share: bios=1,uefi=2")
        parts[kind] = int(share or 1)
    if not any(parts.values()):
        raise ConfigError("--kinds: no machine at all")
    return parts


def amount_of(option: str, text: str | None, unit: str) -> int | None:
    """Return the number that "1G", "100M" or "2.5g" with or without its unit stands for. Raises ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*([kmg])(?:{unit})?", text.strip(), re.IGNORECASE | re.ASCII)
    amount = int(float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]) if match else 0
    if not amount:
        raise ConfigError(f'{option}: {text!r}: write "1G" or "100M"')
    return amount

"""`fastboot rehearse`: a lab's morning with simulated machines.

It is played on the real configuration and a private network, or on a real one with the server that runs there.

Exit codes: 0 every machine booted, 1 some did not, 2 it can not be run here, 130 and 143 interrupted by
SIGINT and SIGTERM.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from fastboot.config import Config, load
from fastboot.lab import interrupt
from fastboot.lab._machines import Machines
from fastboot.lab.fleet import dropped
from fastboot.lab.interrupt import Interrupted
from fastboot.lab.namespace import LabError
from fastboot.lab.rehearsal.fetching import Fetcher, Leased, unminded
from fastboot.lab.rehearsal.installer import Installer
from fastboot.lab.rehearsal.kinds import mixed
from fastboot.lab.rehearsal.lan import Lan
from fastboot.lab.rehearsal.machine import Machine
from fastboot.lab.rehearsal.morning import play
from fastboot.lab.rehearsal.report import Report, show
from fastboot.lab.rehearsal.site import Site, Wire, plugs_of
from fastboot.lab.rehearsal.walk import Walk
from fastboot.lab.rehearsal.watch import Watch
from fastboot.lab.server import ServerProcess
from fastboot.lab.tftp import open_ways
from fastboot.model import FastbootError, Node
from fastboot.watch.log import printable
from fastboot.wording import counted

_FAILED, _CAN_NOT = 1, 2
_STATE_FILES: Final = ("fastboot.committed", "fastboot.sqlite", "fastboot.sqlite-wal")
_FIRST_MAC: Final = 0x02_00_00_00_00_01
_SPOKEN: Final = frozenset(
    {"received", "discover", "request", "offer", "ack", "miss", "renewed_without_commit", "held_replaced"}
)
"""DHCP's counters of a morning in which all is well."""
_GROUPS, _LAST_STEPS = 5, 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is rehearsed: the configuration `file` on a private network, or the server behind `interface`, of
    which the file only tells how many addresses it has.

    `spread`: seconds over which machines are switched on; `loss`: the share of UDP packets lost each way; `slow`:
    the seconds that each machine takes to acknowledge a block; `link`: bits per second of every link; `profile`:
    what all machines boot, on a real network by choosing it in their menus, else what each would get now; `media`:
    whether installers fetch theirs, and of `packages` so many octets for each machine.
    """

    file: Path | None
    nodes: int
    kinds: Mapping[str, int]
    spread: float = 1.0
    loss: float = 0.0
    slow: float = 0.0
    link: int | None = None
    profile: str | None = None
    media: bool = True
    packages: int = 0
    limit: float = 900.0
    interface: str | None = None


def run(plan: Plan, *, as_json: bool = False, picture: Path | None = None) -> int:
    """Rehearse and tell; returns the exit code.

    Moves this process into namespaces of its own: call it once, in a process with one thread.
    """
    console = paper(quiet=as_json)
    try:
        return interrupt.run(_run(plan, console, as_json, picture))
    except Interrupted as error:
        complain(f"{error}: the machines {'' if plan.interface else 'and the server '}are stopped")
        return error.code
    except FastbootError as error:
        if as_json:
            print(json.dumps({"error": printable(str(error))}))
        else:
            complain(error)
        return _CAN_NOT


async def _run(plan: Plan, console: Console, as_json: bool, picture: Path | None) -> int:
    if picture:
        from fastboot.lab.rehearsal.picture import draw, probe

        probe(picture)
    with tempfile.TemporaryDirectory(prefix="fastboot-rehearse-", ignore_cleanup_errors=True) as directory:
        report = await (_outside(plan, console) if plan.interface else _inside(plan, Path(directory), console))
    if as_json:
        print(json.dumps(report.facts(), indent=2))
    else:
        show(report, console)
    if picture:
        try:
            draw(report, picture)
        except LabError as error:  # the disk filled up meanwhile: what was found has been told
            complain(error)
            return _CAN_NOT
    return _FAILED if report.failed else 0


def complain(error: object) -> None:
    """Print each line of an error."""
    for line in str(error).splitlines():
        print(f"fastboot: {printable(line)}", file=sys.stderr)


async def _outside(plan: Plan, console: Console) -> Report:
    """Play the morning on a real network. Raises LabError, ConfigError."""
    assert plan.interface
    if plan.file:
        room = sum(_room(load(plan.file)).values())
        if plan.nodes > room:
            machines, addresses = counted(plan.nodes, "machine"), counted(room, "address", "addresses")
            raise LabError(f"{machines}: too many, for the pools of {plan.file} have {addresses}")
    lan = Lan(plan.interface)
    try:
        cast = [
            _newcomer(number, kind, lan.first_mac, 0, plan)
            for number, kind in enumerate(mixed(plan.kinds, plan.nodes))
        ]
        return await _play(replace(plan, link=lan.rate), lan.wires, None, cast, console, lan.leased)
    finally:
        for server, count in lan.release().items():
            complain(f"{counted(count, 'address', 'addresses')} given back to {server}")
        lan.close()


async def _inside(plan: Plan, directory: Path, console: Console) -> Report:
    """Play the morning in namespaces of our own; tell on `console` how far it is. Raises LabError, ConfigError."""
    assert plan.file
    config = load(plan.file)
    plugs = plugs_of(config)
    installs = {profile.name: profile.installs for profile in config.profiles}
    if plan.profile is not None and plan.profile not in installs:
        raise LabError(f"there is no profile {plan.profile!r} in {plan.file}")
    copy_state(config.state, directory / "state")
    site = Site(plugs, plan.link)
    try:
        cast = cast_of(plan, config, site.wires)
        new = {m.name: m.mac.hex(":") for m in cast if m.name.startswith("new-")}
        guests = [f"{name}={mac}" for name, mac in new.items()]
        words = ["-m", "fastboot.lab.rehearsal.server", str(plan.file.absolute()), str(directory / "state")]
        server = ServerProcess([*words, *([plan.profile, *guests] if plan.profile else [])], directory)
        try:
            with site.at_server():
                await server.start()
            if plan.profile and installs[plan.profile]:
                await server.arm(*(node.name for node in config.all_nodes()), *new)
            report = await _play(plan, site.wires, server.pid, cast, console)
            return replace(report, counters=_silence(await server.status()))
        except LabError as error:
            raise LabError(f"{error}\n{_last_lines(server.log)}") from error
        finally:
            await server.stop(grace=0)  # its transfers are nobody's any more, and its state is a copy
    finally:
        site.close()


async def _play(
    plan: Plan,
    wires: Sequence[Wire],
    server: int | None,
    cast: list[Machine],
    console: Console,
    leased: Leased = unminded,
) -> Report:
    """`server`: its process, where that is ours to look at."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machines = Machines(len(cast), loss=plan.loss)
    watch = Watch(server)
    # A status has a thread of its own, and namespaces may be made by a process with one thread only.
    with ways() as sockets, console.status("the machines are switched on") as status:
        machines.speak_through([each.fileno() for each in sockets])
        for wire in wires:
            machines.wire(
                wire.port.fileno(), frames=wire.giaddr is None, giaddr=int(wire.giaddr or 0),
                source=int.from_bytes(wire.source),
            )  # fmt: skip

        def look(running: int) -> None:
            watch.look(running)
            status.update(f"{len(cast) - running} of {counted(len(cast), 'machine')} through")

        fetcher = Fetcher(machines, slow=plan.slow, leased=leased)
        with closing(Installer(fetcher, plan.packages)) as installer:
            walk = Walk(fetcher, installer if plan.media else None, plan.profile if plan.interface else None)
            await play(machines, cast, walk, limit=plan.limit, look=look)
            assumed = installer.assumed()
        watch.end()
        own = sum(map(dropped, [*sockets, *(wire.port for wire in wires)]))
    return Report(cast, machines.flow(), watch, plan.link, machines.lost, own, packages=assumed)


def _silence(facts: Mapping[str, Any]) -> dict[str, int]:
    counters: Mapping[str, int] = facts.get("services", {}).get("dhcp", {}).get("counters", {})
    return {name: value for name, value in counters.items() if value and name not in _SPOKEN}


@contextmanager
def ways() -> Iterator[list[Any]]:
    sockets = open_ways()
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def copy_state(state: Path, to: Path) -> None:
    """Copy what a server keeps, as it lies there. Of one that runs the newest leases may be missing."""
    to.mkdir(mode=0o700)
    for name in _STATE_FILES:
        with suppress(OSError):
            shutil.copyfile(state / name, to / name)
    with suppress(OSError, shutil.Error):
        shutil.copytree(state / "media", to / "media")


def cast_of(plan: Plan, config: Config, wires: Sequence[Wire]) -> list[Machine]:
    """Return the machines: first those that the configuration names by a MAC address, then new ones.

    Each node is plugged in where its address is, all others where the pools have most room.
    """
    room = _room(config)
    named = [node for node in config.all_nodes() if node.macs]
    cast = []
    for number, kind in enumerate(mixed(plan.kinds, plan.nodes)):
        node = named[number] if number < len(named) else None
        wire = _wire_of(node, wires, room)
        room[wires[wire].network] -= not (node and node.address)
        machine = _newcomer(number, kind, _FIRST_MAC, wire, plan)
        if node:
            machine.name, machine.mac = node.name, bytes.fromhex(node.macs[0].replace(":", ""))
        cast.append(machine)
    return cast


def _newcomer(number: int, kind: str, first_mac: int, wire: int, plan: Plan) -> Machine:
    mac, due = (first_mac + number).to_bytes(6), plan.spread * number / plan.nodes
    return Machine(number, f"new-{number + 1:03}", kind, mac, wire, due)


def _room(config: Config) -> dict[IPv4Network, int]:
    """Return how many addresses the pools of each subnet have."""
    return {
        subnet.network: sum(int(pool.last) - int(pool.first) + 1 for pool in subnet.pools)
        for subnet in (config.dhcp.subnets if config.dhcp else ())
    }


def _wire_of(node: Node | None, wires: Sequence[Wire], room: Mapping[IPv4Network, int]) -> int:
    if node and node.address:
        for number, wire in enumerate(wires):
            if node.address in wire.network:
                return number
    return max(range(len(wires)), key=lambda number: room[wires[number].network])


def paper(**settings: Any) -> Console:
    """Return a console on which nothing is markup: names of files, nodes and settings have brackets too."""
    return Console(**settings, highlight=False, markup=False, emoji=False)


def _last_lines(log: Path) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_STEPS:])
    return ""

"""`fastboot arm`, `disarm` and `nodes`: which machines install, and how far each is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastboot.arming.place import Place, stored_installs
from fastboot.arming.stored import arm_stored, disarm_stored
from fastboot.model import FastbootError, InstallState
from fastboot.nodeset import select
from fastboot.services.control_client import NotRunning
from fastboot.services.facts import node_facts
from fastboot.terminal import CONFIG, AsJson, print_facts, print_json
from fastboot.watch.log import plain, printable
from fastboot.wording import moment

Words = Annotated[list[str], typer.Argument(metavar="NODES", help="node[001-064], a group, @all")]
Chosen = Annotated[list[str] | None, typer.Argument(metavar="[NODES]", help="node[001-064], a group, @all")]
ConfigOption = Annotated[Path | None, CONFIG]
StateDir = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="The state directory of a server without a configuration file."),
]


def arm(
    names: Words,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to install, instead of each node's own profile.")
    ] = None,
    config: ConfigOption = None,
    state: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Let machines install at their next boot from the network: once, and all of them or none."""
    place = Place.of(config, state)
    try:
        chosen = [node.name for node in select(names, place.nodes())]
        armed = place.client.post("/arm", {"nodes": chosen, "profile": profile})["armed"]
    except NotRunning:
        settings = place.settings()
        armed = arm_stored(settings, select(names, settings.all_nodes()), profile)
    if as_json:
        print_json(armed)
    for install in armed if not as_json else ():
        print(f"{install['node']}: armed, installs {install['profile']} at its next boot from the network")


def disarm(names: Words, config: ConfigOption = None, state: StateDir = None, as_json: AsJson = False) -> None:
    """Forget that machines are to install, or that they did: they boot their local disks.

    What an installer does that has begun already, this does not stop.
    """
    place = Place.of(config, state)
    try:
        chosen = [node.name for node in select(names, place.nodes())]
        found = place.client.post("/disarm", {"nodes": chosen})["disarmed"]
    except NotRunning:
        settings = place.settings()
        found = disarm_stored(settings, select(names, settings.all_nodes()))
    if as_json:
        print_json(found)
        return
    for install in found:
        print(f"{install['node']}: disarmed; it was {install['state']} since {moment(install['since'])}")
    if not found:
        print("none of them was armed")


def nodes(
    names: Chosen = None, config: ConfigOption = None, state: StateDir = None, as_json: AsJson = False
) -> None:
    """List the machines that the configuration names, and how far the installation of each is."""
    place = Place.of(config, state)
    try:
        facts = place.facts()
        wanted = {node.name for node in select(names or (), place.nodes(facts))}
        chosen = [each for each in facts if each["name"] in wanted]
    except NotRunning:
        chosen = _stored(place, names or ())
    except FastbootError as error:
        if place.config is None:
            raise
        _doubt(error)
        chosen = [plain(node_facts(node)) for node in select(names or (), place.settings().all_nodes())]
    rows = chosen if as_json else [{**each, **_columns(each)} for each in chosen]
    print_facts(rows, ("name", "macs", "address", "group", "profile", "state", "since", "text"), as_json)


def _stored(place: Place, words: list[str] | tuple[str, ...]) -> list[Any]:
    """Return the nodes of the configuration with what the store has of them."""
    settings = place.settings()
    chosen = select(words, settings.all_nodes())
    try:
        installs = stored_installs(settings.state)
    except FastbootError as error:
        _doubt(error)
        installs = {}
    return [plain(node_facts(node, installs.get(node.name))) for node in chosen]


def _doubt(error: FastbootError) -> None:
    print(f"fastboot: whether they are armed is not known: {error}", file=sys.stderr)


def _columns(node: dict[str, Any]) -> dict[str, Any]:
    install = node["install"]
    if install is None:
        return {"state": None, "since": None, "text": None}
    active = install["state"] in (InstallState.ARMED, InstallState.INSTALLING)
    profile = install["profile"] if active else node["profile"]
    return {
        "profile": profile,
        "state": install["state"],
        "since": moment(install["since"]),
        "text": printable(install["text"]) or None,
    }

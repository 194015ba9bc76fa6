"""`fastboot why`: how far machines came, why they got no further, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from fastboot.config import load
from fastboot.services.control_client import ControlClient
from fastboot.terminal import DEFAULT, AsJson, ConfigFile, print_json, print_table
from fastboot.watch.case import STEPS
from fastboot.wording import moment

COLUMNS = ("machine", "state", "heard", "cause", "text")


def why(
    machines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MACHINES]", help="node[001-064], a group, @all, a MAC or an address."),
    ] = None,
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say why machines do not boot: how far each came, the likely cause, the fix; of all that are stuck now, where
    none is named."""
    query = urlencode([("of", word) for word in machines or ()])
    found = ControlClient(load(config).state).get(f"/why?{query}" if query else "/why")
    if as_json:
        print_json(found)
    elif machines and len(found) == 1:
        print("\n".join(lines(found[0])))
    elif found:
        print_table([{**each, "heard": moment(each["heard"])} for each in found], COLUMNS)
    else:
        print("no machine is stuck")


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a diagnosis, as the control socket tells it, for a person."""
    names = [facts["machine"], *(mac for mac in facts["macs"] if mac != facts["machine"])]
    if facts["address"] and facts["address"] != facts["machine"]:
        names.append(facts["address"])
    yield f"{', '.join(names)}: {facts['state']}"
    yield f"  {facts['summary']}"
    width = max((len(STEPS[each["step"]]) for each in facts["steps"]), default=0)
    for each in facts["steps"]:
        yield f"  {moment(each['time'])}  {STEPS[each['step']]:{width}}  {each['what']}".rstrip()
    if facts["cause"]:
        yield f"  cause: {facts['text']} [{facts['cause']}]"
        yield f"  fix:   {facts['fix']}"

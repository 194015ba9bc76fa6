"""What all commands share: the arguments that mean the same everywhere, and how facts are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from fastboot.boot.image import Step
from fastboot.boot.shelf import Progress
from fastboot.wording import counted, moment

DEFAULT = Path("/etc/fastboot/fastboot.toml")
CONFIG: Any = typer.Option("--config", "-c", metavar="FILE", help="The configuration file.")
ConfigFile = Annotated[Path, CONFIG]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_facts(facts: Sequence[Any], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    elif facts:
        print_table(facts, columns)
    else:
        print("none")


def print_json(facts: object) -> None:
    print(json.dumps(facts, indent=2))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print a table for a person, or tab-separated lines where the output is no terminal."""
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    if not cells:
        return
    if not sys.stdout.isatty():
        print("\n".join("\t".join(line) for line in cells))
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def _cell(column: str, value: Any) -> str:
    if column == "expires":
        return moment(value)
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextmanager
def media_bar() -> Iterator[Progress]:
    """Show how far images are read, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, step: None
        return
    columns = TextColumn("reading {task.description}"), BarColumn(), TextColumn("{task.fields[names]}")
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, step: Step) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, names="")
            bars.update(tasks[name], total=step.known, completed=step.read, names=counted(step.names, "file"))

        yield show

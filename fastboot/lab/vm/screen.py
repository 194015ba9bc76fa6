"""A boot on the terminal: a live table where a person looks, plain lines where nobody does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fastboot.lab.vm.story import Step, Story

_MEGA = 1_000_000
_PLAIN_EVERY = 16 * _MEGA


@dataclass(frozen=True, slots=True)
class Moving:
    """A transfer under way, in octets."""

    what: str
    done: int
    size: int

    def __str__(self) -> str:
        return f"{self.what} {self.done / _MEGA:.1f} of {self.size / _MEGA:.1f} MB"


class Screen:
    """Shows how far a machine is. `update` is called a few times a second; use as a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._live: Live | None = None
        self._told: set[str] = set()
        self._told_octets = 0
        self._spinner = Spinner("dots")

    def __enter__(self) -> Screen:
        self._console.print(Text(self._title, style="bold"))
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def update(self, story: Story, now: float, moving: Moving | None) -> None:
        if self._live:
            self._live.update(Group(self._table(story, now, moving)), refresh=True)
            return
        for step, reached, _ in story.timeline():
            if step.name not in self._told:
                self._told.add(step.name)
                line = f"{reached.at - story.power_on:7.1f} s  {step.title}: {reached.detail}"
                self._console.print(Text(line), soft_wrap=True)
        if moving and story.octets - self._told_octets >= _PLAIN_EVERY:
            self._told_octets = story.octets
            self._console.print(Text(f"{now - story.power_on:7.1f} s  ... {moving}"), soft_wrap=True)

    def _table(self, story: Story, now: float, moving: Moving | None) -> Table:
        table = timeline(story)
        if not story.done and (current := story.current):
            table.add_row(self._spinner, *_waiting(current, story, now, moving))
            for step in story.steps[story.steps.index(current) + 1 :]:
                table.add_row("", Text(step.title, style="dim"), "", "", "")
        return table


def timeline(story: Story) -> Table:
    """Return what was reached, as a table: when since power-on, and how long each step took."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("step", min_width=32)
    table.add_column("at", justify="right", min_width=7)
    table.add_column("took", justify="right", min_width=7)
    table.add_column("what", overflow="fold", min_width=30)
    table.add_row("[green]✓[/]", "power on", "0.0 s", "", "")
    for step, reached, took in story.timeline():
        at = reached.at - story.power_on
        table.add_row("[green]✓[/]", step.title, f"{at:.1f} s", f"{took:.1f} s", escape(reached.detail))
    return table


def _waiting(step: Step, story: Story, now: float, moving: Moving | None) -> tuple[Any, ...]:
    began = max((reached.at for reached in story.reached.values()), default=story.power_on)
    what: Any = ""
    if moving:
        what = Group(Text(str(moving)), ProgressBar(total=moving.size, completed=moving.done, width=30))
    return Text(step.title, style="bold"), f"{now - story.power_on:.0f} s", f"{now - began:.0f} s", what


def moving_of(status: Mapping[str, Any], story: Story, octets: int) -> Moving | None:
    """Return the transfer to show: the media while the machine fetches it, else what TFTP sends."""
    if "first" in story.reached:
        return Moving(f"{story.files} files,", story.octets, octets) if "last" not in story.reached else None
    for transfer in status.get("transfers", ()):
        if transfer.get("protocol") == "tftp":
            return Moving(str(transfer["path"]), int(transfer["bytes"]), int(transfer["size"]))
    return None

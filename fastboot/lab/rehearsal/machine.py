"""A machine of the morning: what it is, what it did, and where what it wants lies."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Literal, get_args
from urllib.parse import quote, unquote, urlsplit

from fastboot.lab._machines import Outcome

Stage = Literal["address", "loader", "configuration", "system", "answers", "media", "packages", "report"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
Steps = Generator[None, Outcome, Outcome]
Way = Generator[None, Outcome, None]
"""What a machine does, one thing at a time: it yields for what came of each."""


class Stopped(Exception):
    """A machine got no further: where, and what it was told."""

    def __init__(self, stage: Stage, text: str) -> None:
        super().__init__(text)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a machine did. Times are nanoseconds of CLOCK_MONOTONIC."""

    stage: Stage
    what: str
    began: int
    ended: int
    octets: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is. `path` is as the client writes it."""

    scheme: str
    server: IPv4Address
    port: int
    path: str

    def beside(self, name: str) -> Place:
        """Return a file in the same directory, or from the root."""
        if name.startswith("/"):
            return Place(self.scheme, self.server, self.port, name)
        directory = self.path.rpartition("/")[0]
        return Place(self.scheme, self.server, self.port, f"{directory}/{name}" if directory else name)

    def find(self, name: str) -> Place:
        """Return what a configuration that came from here means by a name: a URL, `(tftp,server)/path` of GRUB,
        `::path` of PXELINUX, or a path. Raises ValueError."""
        if match := re.fullmatch(r"\((\w+),([^)]*)\)(.*)", name):
            name = f"{match[1]}://{match[2]}{quote(match[3])}"
        if "://" in name:
            parts = urlsplit(name)
            port = parts.port or {"http": 80, "ftp": 21, "tftp": 69}.get(parts.scheme, 0)
            path = parts.path if parts.scheme == "http" else unquote(parts.path)
            path = path.lstrip("/") if parts.scheme == "tftp" else path
            return Place(parts.scheme, IPv4Address(parts.hostname or ""), port, path)
        return self.beside(name.removeprefix("::"))

    def __str__(self) -> str:
        return f"{self.path} by {self.scheme.upper()} from {self.server}"


@dataclass(slots=True)
class Machine:
    """A machine of the morning and its story. `wire` is where it is plugged in, `due` when it is switched on, in
    seconds. `doing`: the stage, and what it waits for; `result`: what it came to; `fault`: why it did not boot."""

    number: int
    name: str
    kind: str
    mac: bytes
    wire: int
    due: float = 0.0
    switched_on: int = 0
    address: IPv4Address | None = None
    doing: tuple[Stage, str] = ("address", "power")
    steps: list[Step] = field(default_factory=list)
    result: str = ""
    fault: str = ""
    stopped: Stage | None = None
    again: int = 0

    @property
    def booted(self) -> bool:
        return bool(self.result)

    @property
    def seconds(self) -> float:
        """From power-on to the end."""
        return (self.steps[-1].ended - self.switched_on) / 1e9 if self.steps else 0.0

    def took(self, stage: Stage) -> float | None:
        """Return the seconds that it spent in a stage; None where it never came there."""
        spent = [step.ended - step.began for step in self.steps if step.stage == stage]
        return sum(spent) / 1e9 if spent else None

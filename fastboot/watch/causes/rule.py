"""A cause: what it is called, what it is known by, and what is to be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastboot.watch.case import Case, Step

Facts = Mapping[str, object] | None
"""What the words of a cause are filled with; None where it is not the cause."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause. It keeps a machine from `step`, so it is looked for where that was not reached. `evidence` says
    in words what it is known by, `kinds` are the events that this is made of, `cause` and `fix` are filled with
    what `find` returns. Not `fault`: the machine does what it was told to do."""

    name: str
    step: Step
    kinds: tuple[str, ...]
    evidence: str
    cause: str
    fix: str
    find: Callable[[Case], Facts]
    fault: bool = True

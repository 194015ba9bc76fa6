"""Why a machine does not boot: which step it reached, the likely cause, what to do. `now` is an argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from fastboot.model import InstallState
from fastboot.watch.case import ORDER, STEPS, Case, Step
from fastboot.watch.causes import RULES, Rule
from fastboot.watch.log import printable
from fastboot.wording import counted

State = Literal["well", "local disk", "on its way", "stuck", "never heard of"]
LATELY: Final = 900.0
"""Seconds within which a machine that starts anew is going round in circles."""
LOITERING: Final = 1800.0
"""Seconds without a sign after which a machine is not on its way any more, though no cause is known."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A step that a machine reached: when, in seconds since the epoch, and by what."""

    step: Step
    time: float
    what: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known of one machine. `state`: "well"; "local disk": it was told to boot that, for the `cause`; "on
    its way"; "stuck" for the `cause`; "never heard of". `heard`: the last sign of it, in seconds since the epoch.
    `cause` is a name of docs/why.md, `text` says it in words, `fix` what to do; all are None where there is none.
    """

    machine: str
    macs: tuple[str, ...]
    node: str | None
    address: str | None
    state: State
    summary: str
    heard: float | None
    steps: tuple[Reached, ...] = ()
    cause: str | None = None
    text: str | None = None
    fix: str | None = None

    def facts(self) -> dict[str, object]:
        """Return it as JSON knows it."""
        return {
            "machine": self.machine,
            "macs": list(self.macs),
            "node": self.node,
            "address": self.address,
            "state": self.state,
            "summary": self.summary,
            "heard": self.heard,
            "steps": [{"step": each.step, "time": each.time, "what": each.what} for each in self.steps],
            "cause": self.cause,
            "text": self.text,
            "fix": self.fix,
        }


def diagnose(case: Case) -> Diagnosis:
    """Say how a machine is, of what is known of it."""
    found = _find(case)
    before = None if found else _before(case)
    seen = before or case
    if found is None and before is not None:
        found = _find(before)
    rule, words = found or (None, ("", ""))
    reached = seen.reached
    state = _state(seen if found else case, rule)
    summary = _summary(case, seen, state, reached)
    return Diagnosis(
        printable(case.machine.name),
        case.machine.macs,
        case.machine.node,
        case.machine.address or case.story.address or None,
        state,
        summary,
        case.story.heard if case.story.marks else None,
        tuple(_steps(seen)),
        *((rule.name, *words) if rule else (None, None, None)),
    )


def _find(case: Case) -> tuple[Rule, tuple[str, str]] | None:
    """Return the first cause that keeps a machine from a step that it has not reached, and its words."""
    reached = case.reached
    at = ORDER.index(reached) if reached else -1
    for rule in RULES:
        if ORDER.index(rule.step) <= at:
            continue
        facts = rule.find(case)
        if facts is not None:
            return rule, (rule.cause.format(**facts), rule.fix.format(**facts))
    return None


def _before(case: Case) -> Case | None:
    """Return the time before, where a machine has just started anew and only asked for an address."""
    begun, earlier = case.story.begun
    if earlier is None or case.files or case.begun != begun or not begun - earlier < LATELY:
        return None
    seen = replace(case, begun=earlier, over=begun)
    return None if seen.reached is None or _is_well(seen) else seen


def _is_well(case: Case) -> bool:
    if case.state is InstallState.INSTALLED:
        return True
    if case.machine.installs or case.machine.install:
        return False
    return ORDER.index(case.reached or "heard") >= ORDER.index("installer")


def _state(case: Case, rule: Rule | None) -> State:
    if rule is not None:
        if not rule.fault:
            return "local disk"
        return "stuck" if case.last or rule.step != "heard" else "never heard of"
    if _is_well(case):
        return "well"
    if case.last is None and not case.machine.transfers:
        return "never heard of"
    return "on its way" if case.quiet < LOITERING else "stuck"


def _summary(case: Case, seen: Case, state: State, reached: Step | None) -> str:
    """Say in a line how a machine is."""
    last = seen.last
    if reached is None or last is None:
        return f"nothing was heard of it since the server started, {span(case.now - case.site.since)} ago"
    mark = seen.step(reached)
    shown = _what(seen, reached, mark.what, mark.number) if mark else ""
    what = f" ({shown})" if shown else ""
    text = f"it got as far as {STEPS[reached]}{what}; last heard of {span(case.now - case.story.heard)} ago"
    if state == "well" and case.state is InstallState.INSTALLED:
        text = f"installed; last heard of {span(case.now - case.story.heard)} ago"
    elif state == "well":
        text = f"it runs what it booted; last heard of {span(case.now - case.story.heard)} ago"
    for each in case.machine.transfers[:1]:
        share = f", {each.bytes * 100 // each.size} %" if each.size else ""
        text += f"; it is fetching {printable(each.path)} by {each.protocol.upper()}{share}"
    if seen is not case:
        text += "; it has started anew since"
    return text


def _steps(case: Case) -> Sequence[Reached]:
    found = [(step, mark) for step in ORDER if (mark := case.step(step))]
    return [Reached(step, mark.time, _what(case, step, mark.what, mark.number)) for step, mark in found]


def _what(case: Case, step: Step, what: str, number: int) -> str:
    if step == "heard":
        return ""
    if step in ("address", "installer"):
        return case.story.address or case.machine.address or ""
    return f"{counted(number, 'package')}, the last {what}" if step == "packages" else what


def span(seconds: float) -> str:
    """Return a span of time in words: "9 s", "12 min", "3 h", "2 days"."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{max(0, round(seconds / size))} {unit}"
    return "long" if seconds == math.inf else f"{round(seconds / 86400)} days"

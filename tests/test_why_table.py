"""The table of causes: what is documented, what events it is made of, and that nothing breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastboot
from fastboot.model import InstallState
from fastboot.watch.case import STEPS
from fastboot.watch.causes import RULES, Rule
from fastboot.watch.stories import KINDS

COMING = set[str]()
"""Events of what is not there yet."""
PACKAGE = Path(fastboot.__file__).parent
DOCUMENTED = PACKAGE.parent / "docs" / "why.md"


def row(rule: Rule) -> str:
    cells = (f"`{rule.name}`", STEPS[rule.step], rule.evidence, rule.cause, rule.fix)
    return (
        "| " + " | ".join(cell.replace("{{", "{").replace("}}", "}").replace("|", "\\|") for cell in cells) + " |"
    )


def test_the_table_is_in_the_documentation() -> None:
    rows = [line for line in DOCUMENTED.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row(rule) for rule in RULES]


def test_names_are_unique_words() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(?:-[a-z0-9]+)*", name) for name in names)


def emitted() -> set[str]:
    """Return the kinds of events that the source of the server can emit."""
    found = set[str]()
    for path in PACKAGE.rglob("*.py"):
        if "lab" in path.parts or path.is_relative_to(PACKAGE / "watch") or path.name == "why.py":
            continue
        found.update(kinds_in(path))
    facts = (PACKAGE / "_native" / "facts.pxi").read_text()
    names = re.search(r"FACT_NAMES = \((.*?)\)", facts, re.DOTALL)
    assert names
    return found | {f"dhcp.{name}" for name in re.findall(r'"(\w+)"', names[1])}


def kinds_in(path: Path) -> Iterator[str]:
    """Yield the literals that look like kinds; those of node events are made of the states of an install."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(?:dhcp|tftp|ftp|http|node|render|media)\.[a-z_]+", node.value):
                yield node.value
        elif isinstance(node, ast.JoinedStr) and ast.unparse(node).startswith("f'node."):
            yield from (f"node.{state.value}" for state in InstallState)
            yield from ("node.disarmed", "node.interrupted")


@pytest.mark.parametrize("kind", sorted(KINDS | {kind for rule in RULES for kind in rule.kinds}))
def test_rules_know_events_that_are_emitted(kind: str) -> None:
    assert kind in emitted() | COMING, f"nobody emits {kind}: was it renamed?"


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_rules_are_made_of_what_stories_know(rule: Rule) -> None:
    assert set(rule.kinds) <= KINDS

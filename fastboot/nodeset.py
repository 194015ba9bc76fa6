"""Sets of machines as people write them: `node[001-064,070]`, a group's name, `@all`, joined by commas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from fastboot.model import FastbootError, Node

MAX_NAMES = 65536
"""Names that one set may stand for: more is a slip of the finger."""


class NodeSetError(FastbootError):
    """A set that can not be read, or that names no machine."""


def select(words: Iterable[str], nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that any of the words stands for, in the order of `nodes`; all for no words.

    Raises NodeSetError for a name that is neither a node nor a group.
    """
    names = [name for word in words for name in expand(word)]
    if not names:
        return list(nodes)
    known = {node.name for node in nodes}
    groups = {node.group for node in nodes if node.group}
    wanted = set(names)
    if unknown := sorted(wanted - known - groups - {"@all"}):
        close = get_close_matches(unknown[0], known | groups, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise NodeSetError(f"there is no node or group {unknown[0]!r}{hint}")
    return [node for node in nodes if "@all" in wanted or node.name in wanted or node.group in wanted]


def expand(text: str) -> list[str]:
    """Return the names that a set stands for: "n[08-10],x" is n08, n09, n10, x. Raises NodeSetError."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\]|[\[\]])+", text):
        pieces = re.split(r"\[([^\]]*)\]", part)
        if any(char in piece for piece in pieces[::2] for char in "[]"):
            raise NodeSetError(f"{part!r} has a bracket without its partner; write node[01-16]")
        made = [""]
        for at, piece in enumerate(pieces):
            ends = list(_numbers(piece, part)) if at % 2 else [piece]
            if len(names) + len(made) * len(ends) > MAX_NAMES:
                raise NodeSetError(f"{text!r} stands for more than {MAX_NAMES} names")
            made = [start + end for start in made for end in ends]
        names += made
    return names


def _numbers(ranges: str, part: str) -> Iterator[str]:
    for piece in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", piece.strip())
        if not match:
            raise NodeSetError(f"{part!r}: {piece!r} is no range of numbers; write node[01-16]")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise NodeSetError(f"{part!r}: {piece} runs backwards")
        if int(last) - int(first) >= MAX_NAMES:
            raise NodeSetError(f"{part!r} stands for more than {MAX_NAMES} names")
        yield from (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))

"""How counts and times are told to people. Imports nothing of ours."""

from __future__ import annotations

import time


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: "1 error", "2 errors". `plural` is for nouns that add no s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def moment(seconds: float | None) -> str:
    """Return a time as people read it, that of this machine; "never" for None."""
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

"""The causes for which machines do not boot: a table, in the order in which they are looked for."""

from __future__ import annotations

from typing import Final

from fastboot.watch.causes import address, loader, system
from fastboot.watch.causes.rule import Facts, Rule

RULES: Final[tuple[Rule, ...]] = (*system.OUTCOMES, *address.RULES, *loader.RULES, *system.RULES)

__all__ = ["RULES", "Facts", "Rule"]

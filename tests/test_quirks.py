"""Every quirk of the table is answered: a test shows it, and the documentation says it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastboot.boot.firmware import QUIRKS, Quirk

TESTS = Path(__file__).parent


@pytest.mark.parametrize("quirk", QUIRKS.values(), ids=QUIRKS)
def test_a_quirk_has_a_test(quirk: Quirk) -> None:
    file, name = quirk.shown_by.split("::")
    assert re.search(rf"^(?:async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), quirk.shown_by


def test_the_table_is_in_the_documentation() -> None:
    rows = [
        f"| `{name}` | {each.device} | {each.symptom} | {each.source} | {each.answer} | `{each.shown_by}` |"
        for name, each in QUIRKS.items()
    ]
    text = (TESTS.parent / "docs" / "quirks.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `")] == rows

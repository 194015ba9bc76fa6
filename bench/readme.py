"""README's parts that are made of the results that are kept.

    python -m bench.readme README.md

writes each anew between its two marks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import media_readme, tftp_readme
from bench.kept import ROOT, Found

PARTS: dict[str, Callable[[Found], Iterator[str]]] = {
    "bench/results/tftp.json": tftp_readme.readme,
    "bench/results/media.json": media_readme.readme,
}
BEGIN, END = "<!-- made by make bench-readme of {} -->\n", "<!-- end of what make bench-readme makes -->\n"


def made_anew(page: str) -> str:
    """Return a page with its parts as the results have them now. Raises SystemExit where marks are missing."""
    for results, lines in PARTS.items():
        begin = BEGIN.format(results)
        before, found, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise SystemExit(f"the page has no marks for {results}")
        text = "".join(f"{line}\n" for line in lines(json.loads((ROOT / results).read_text())))
        page = before + begin + text + end + after
    return page


def main() -> None:
    page = Path(sys.argv[1])
    page.write_text(made_anew(page.read_text()))


if __name__ == "__main__":
    main()

"""cython-lint for a core whose door cimports for the parts that it includes.

cython-lint reads files one by one, so it calls each name unused that only a `.pxi` uses. Here these are taken
out of its report; a name that no part uses stays in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "fastboot"


def main() -> int:
    parts = "\n".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "_native").glob("*.pxi")))
    used = set(re.findall(r"\w+", parts))
    report = subprocess.run(["cython-lint", str(PACKAGE)], stdout=subprocess.PIPE, text=True)
    faults = []
    for line in report.stdout.splitlines():
        unused = re.search(r"_core\.pyx:.*'(\w+)' imported but unused", line)
        if not (unused and unused[1] in used):
            faults.append(line)
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults or report.returncode not in (0, 1) else 0


if __name__ == "__main__":
    sys.exit(main())

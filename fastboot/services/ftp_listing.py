"""How a directory's entries are written for FTP clients: as `ls -l` does, and as facts (RFC 3659 section 7)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fastboot.boot.tree import Entry
from fastboot.services.http_message import LAST_SECOND

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
HALF_A_YEAR: Final = 180 * 24 * 3600
LIST_OPTIONS: Final = re.compile(r"(?:-[A-Za-z1]+(?: +|$))+")
UNLISTABLE: Final = re.compile(r"[\x00-\x1f\x7f/]")
"""What a name with is not listed."""
FACTS: Final = ("type", "size", "modify", "perm")


def stamp(mtime: float) -> str:
    """Write a time as MDTM does, in UTC (RFC 3659 section 2.3)."""
    return time.strftime("%Y%m%d%H%M%S", _when(mtime))


def ls_line(entry: Entry) -> str:
    """Write a line as `ls -l` does: what every client that knows only LIST can parse."""
    when = _when(entry.mtime)
    day = f"{MONTHS[when.tm_mon - 1]} {when.tm_mday:02d}"
    old = abs(time.time() - entry.mtime) > HALF_A_YEAR
    clock = f" {when.tm_year:04d}" if old else f"{when.tm_hour:02d}:{when.tm_min:02d}"
    mode = "dr-xr-xr-x" if entry.is_dir else "-r--r--r--"
    return f"{mode}   1 ftp      ftp      {entry.size:>12} {day} {clock} {entry.name}"


def facts(entry: Entry, wanted: Sequence[str]) -> str:
    """Write those facts of `FACTS` that are wanted, in the order asked for."""
    known = {
        "type": "dir" if entry.is_dir else "file",
        "size": None if entry.is_dir else entry.size,
        "modify": stamp(entry.mtime),
        "perm": "el" if entry.is_dir else "r",
    }
    return "".join(f"{name}={known[name]};" for name in wanted if known[name] is not None)


def lines_of(cmd: str, entries: Iterable[Entry], wanted: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a directory as LIST, NLST or MLSD has them, the last with the facts that are wanted."""
    for entry in entries:
        if UNLISTABLE.search(entry.name):
            continue
        if cmd == "LIST":
            yield ls_line(entry)
        elif cmd == "NLST":
            yield entry.name
        else:
            yield f"{facts(entry, wanted)} {entry.name}"


def _when(mtime: float) -> time.struct_time:
    return time.gmtime(min(max(mtime, 0), LAST_SECOND))

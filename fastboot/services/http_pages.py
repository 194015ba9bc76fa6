"""Directories as pages for people, and for clients that follow links (wget, lftp, installers that look around)."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from fastboot.boot.tree import Entry
from fastboot.services.http_message import LAST_SECOND


def page(path: str, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a directory as HTML. Its links are absolute, for it is shown with and without a slash at its end."""
    base = "/" + "/".join(part for part in path.split("/") if part)
    title = html.escape(printable(base))
    yield f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1><pre>\n"
    if base != "/":
        yield f'<a href="{_link(base.rpartition("/")[0] + "/")}">../</a>\n'
    for entry in entries:
        name = entry.name + "/" * entry.is_dir
        link = _link(f"{base.rstrip('/')}/{name}")
        size = "-" if entry.is_dir else str(entry.size)
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(min(entry.mtime, LAST_SECOND)))
        pad = " " * max(1, 60 - len(name))
        yield f'<a href="{link}">{html.escape(printable(name))}</a>{pad}{when} {size:>12}\n'
    yield "</pre></body></html>\n"


def _link(path: str) -> str:
    return html.escape(quote(path, errors="surrogateescape"))


def printable(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)

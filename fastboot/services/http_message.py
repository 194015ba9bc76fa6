"""What the header fields of a request ask of a file (RFC 9110), as pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote

from fastboot._core import Source

MAX_RANGES: Final = 256
"""Ranges in one request: librepo asks zchunk repositories for 255 at once. More get the whole file."""
TYPES: Final[Mapping[str, str]] = {
    # UEFI takes what it boots over HTTP by these (protocol-facts.md A6).
    "efi": "application/efi",
    "iso": "application/vnd.efi-iso",
    "img": "application/vnd.efi-img",
    "cfg": "text/plain; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ipxe": "text/plain; charset=utf-8",
    "json": "application/json",
    "ks": "text/plain; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "xml": "application/xml",
    "yaml": "text/plain; charset=utf-8",
}
MAX_SAID: Final = 1024
"""Octets that are kept of what an installer says."""
LAST_SECOND: Final = 253402300799
"""The end of the year 9999, the last that a date of HTTP can write."""
OTHER: Final = "application/octet-stream"
ONE_HOST: Final = "one Host field is needed (RFC 9112 section 3.2)"
_HOST: Final = re.compile(r"[\w.~%!$&'()*+,;=:\[\]-]*", re.ASCII)
_RANGES: Final = re.compile(r"bytes\s*=\s*(?P<specs>[\d\s,-]+)", re.IGNORECASE | re.ASCII)
_SPEC: Final = re.compile(r"(\d*)\s*-\s*(\d*)", re.ASCII)
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class Version(NamedTuple):
    """Which version of a file there is: its strong entity tag, quotes included, and when it was modified, in
    whole seconds since the epoch."""

    tag: str
    modified: int

    @property
    def last_modified(self) -> str:
        return http_date(self.modified)


def framing_fault(version: tuple[int, int], hosts: Sequence[str], has_coding: bool) -> str | None:
    """Return why what follows a request may be part of it, or the request another server's; None for a sound one.

    `hosts` are its Host fields, `has_coding` whether it has Transfer-Encoding. What is wrong with its lines and
    lengths the parser has refused before.
    """
    if version not in ((1, 0), (1, 1)):
        return "this is no HTTP/1"
    if version == (1, 1) and (len(hosts) != 1 or not _HOST.fullmatch(hosts[0])):
        return ONE_HOST
    if version == (1, 0) and has_coding:
        return "HTTP/1.0 has no Transfer-Encoding (RFC 9112 section 6.1)"
    return None


@lru_cache(1024)
def http_date(seconds: int) -> str:
    """Return a time since the epoch as HTTP writes it (RFC 9110 section 5.6.7)."""
    return formatdate(seconds, usegmt=True)


def path_of(target: str) -> str | None:
    """Return the path that a request target names, percent-decoded, undecodable octets as surrogates (PEP 383)."""
    if not target.startswith("/"):
        scheme, _, rest = target.partition("://")  # the absolute form (RFC 9112 section 3.2.2)
        if scheme.lower() != "http" or not rest:
            return None
        target = "/" + rest.partition("/")[2]
    return unquote(target.partition("?")[0].partition("#")[0], errors="surrogateescape")


def said_text(target: str, type_: str, body: bytes) -> str:
    """Return what is said by a form field or a query `text`, or by a body as it is; printable, blanks joined."""
    text = body.decode("utf-8", "replace")
    if type_.startswith("application/x-www-form-urlencoded") and text.startswith("text="):
        text = parse_qs(text).get("text", [""])[0]
    if not text:
        text = parse_qs(target.partition("?")[2]).get("text", [""])[0]
    plain = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(plain.split()).encode()[:MAX_SAID].decode("utf-8", "ignore")


def version_of(source: Source) -> Version:
    """Return the version of a file that a Source was opened on."""
    # The change time can not be set back, so two versions never share a tag.
    _, inode, _, _, changed = source.identity
    tag = f'"{inode:x}-{changed:x}-{source.offset:x}-{source.size:x}"'
    return Version(tag, int(min(source.mtime, LAST_SECOND)))


def content_type(name: str) -> str:
    """Return the media type of a file by its name. Never a coding: an installer wants `.gz` as it is."""
    return TYPES.get(name.rpartition(".")[2].lower(), OTHER)


def precondition(headers: Mapping[str, str], version: Version) -> int | None:
    """Return the status that a conditional GET or HEAD ends with, 304 or 412; None where it goes on.

    RFC 9110 section 13.2.2 has the order.
    """
    if (match := headers.get("If-Match")) is not None:
        if not _matches(match, version.tag, weak=False):
            return 412
    elif (since := _date(headers.get("If-Unmodified-Since"))) is not None and version.modified > since:
        return 412
    if (none := headers.get("If-None-Match")) is not None:
        if _matches(none, version.tag, weak=True):
            return 304
    elif (since := _date(headers.get("If-Modified-Since"))) is not None and version.modified <= since:
        return 304
    return None


def ranges(headers: Mapping[str, str], version: Version, size: int) -> list[tuple[int, int]] | None:
    """Return which parts of a file are asked for, as (start, end) with `end` excluded, in rising order.

    None: the whole, because nothing else was asked, or nothing that makes sense (RFC 9110 section 14.2), or too
    many parts, or `If-Range` names another version, or the file is empty: some clients ask for a part of whatever
    they fetch. An empty list: no octet of it exists (416).
    Parts that touch, overlap or lie closer than the header between them is long are joined.
    """
    asked = _RANGES.fullmatch(headers.get("Range", "").strip())
    if asked is None or not size or not _still(headers.get("If-Range"), version):
        return None
    parts = []
    specs = [spec for each in asked["specs"].split(",") if (spec := each.strip())]
    if not specs or len(specs) > MAX_RANGES:
        return None
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or match[0].strip() == "-":
            return None
        first, last = match[1], match[2]
        if not first:
            start, end = max(0, size - _position(last)), size
        else:
            start, end = _position(first), _position(last) + 1 if last else size
            if last and end <= start:
                return None
        if start < min(end, size):
            parts.append((start, min(end, size)))
    return _joined(sorted(parts))


def _position(digits: str) -> int:
    """Return a position in a file. One of so many digits that no file has it is beyond all of them: RFC 9110
    section 14.1.2 sets no bound, and Python reads no number of over 4,300 digits."""
    return int(digits.lstrip("0")[:19] or 0)


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in parts:
        if joined and start <= joined[-1][1] + 80:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _still(condition: str | None, version: Version) -> bool:
    """Whether If-Range holds: a strong tag, or exactly the date that was sent (RFC 9110 section 13.1.5)."""
    if condition is None:
        return True
    condition = condition.strip()
    return condition in (version.tag, version.last_modified)


def _matches(condition: str, tag: str, *, weak: bool) -> bool:
    if condition.strip() == "*":
        return True
    return any(f'"{match[2]}"' == tag and (weak or not match[1]) for match in _TAG.finditer(condition))


def _date(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None  # RFC 9110 section 13.1.3: a date that is none counts as absent

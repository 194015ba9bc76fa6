"""An install as the store keeps it: a line of words, then a text, then a check of all before it.

A node that was disarmed keeps a row, so that no older one of it can come back from a damaged file.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from fastboot.model import Install, InstallState

DISARMED: Final = "disarmed"
MAX_TEXT: Final = 1024
"""Characters of a text."""
_TOKEN = re.compile(r"[0-9a-f]{32}")


class StoredInstall(NamedTuple):
    """What the store has of a node, None: it was disarmed. `serial` is the number of the commit that wrote it, and
    rises over all restarts."""

    serial: int
    node: str
    install: Install | None

    def text(self) -> str:
        """Return what the store writes."""
        one = self.install
        words = (
            (one.state.value, self.node, one.profile, one.token, round(one.since * 1000), one.text)
            if one
            else (DISARMED, self.node, "-", "-", 0, "")
        )
        body = f"{self.serial} {' '.join(map(str, words))}"
        return f"{body} {zlib.crc32(body.encode())}"

    @property
    def key(self) -> int:
        return key_of(self.node)


def key_of(node: str) -> int:
    """Return the number under which the store has a node: SQLite keeps rows by numbers in one place, and by names
    in two."""
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest()) >> 1


def parse(text: object) -> StoredInstall:
    """Read a row, in octets. Raises ValueError saying what is wrong with it."""
    if not isinstance(text, bytes):
        raise ValueError("it is no text")
    body, _, check = text.rpartition(b" ")
    if check != b"%d" % zlib.crc32(body):
        raise ValueError("its check does not fit")
    words = body.decode().split(" ", 6)
    if len(words) != 7:
        raise ValueError("it has other words")
    serial, state, node, profile, token, since, said = words
    if state == DISARMED:
        return StoredInstall(int(serial), node, None)
    if not _TOKEN.fullmatch(token):
        raise ValueError("it has no token")
    install = Install(node, profile, InstallState(state), token, int(since) / 1000, said)
    return StoredInstall(int(serial), node, install)


def texts(rows: Iterable[StoredInstall]) -> str:
    """Return rows as `Store.keep_installs` takes them."""
    return json.dumps({str(row.key): row.text() for row in rows})


def printable(text: str) -> str:
    """Return a text of at most `MAX_TEXT` characters that does nothing to a terminal, nor to a row."""
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_TEXT].strip())

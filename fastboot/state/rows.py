"""A lease as the store keeps it: a line of words, of which the last only fits those before it.

SQLite keeps it whole: with a column for each word a commit took four times as long.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Literal, NamedTuple, cast
from urllib.parse import unquote_to_bytes

from fastboot.state.clock import Clock

WORDS = 14
UNQUOTED = frozenset(char for char in map(chr, range(33, 127)) if char not in '"\\%')
"""What a host name holds as it is; every other octet is written as in a URL."""

State = Literal["bound", "released", "declined"]

MILLISECOND = 1_000_000
FARTHEST = 2**43
"""Milliseconds from any zero, 278 years: no time of a lease lies beyond."""
NANOSECONDS = 2**63 - 2
"""The last moment that a 64-bit clock knows, but one: the last stands for "never"."""


class LeaseRow(NamedTuple):
    """One address as `Responder.load` takes it. Times are nanoseconds of `Clock.now`, `expires` None: it never
    ends."""

    address: int
    state: State
    htype: int
    mac: bytes
    client_id: bytes
    host: bytes
    relay: int
    circuit_id: bytes
    remote_id: bytes
    starts: int
    expires: int | None


class StoredRow(NamedTuple):
    """One address as the store has it. Times are milliseconds since the start `boot` of the machine; `batch` is
    the number of the commit that wrote it, and rises over all restarts."""

    address: IPv4Address
    state: State
    htype: int
    mac: bytes
    client_id: bytes
    host: bytes
    relay: IPv4Address
    circuit_id: bytes
    remote_id: bytes
    boot: int
    batch: int
    starts: int
    expires: int | None

    def text(self) -> str:
        """Return what the store writes, as `Responder.batch` does: words, and a CRC-32 of all before it."""
        host = "".join(chr(octet) if chr(octet) in UNQUOTED else f"%{octet:02x}" for octet in self.host)
        expires = "never" if self.expires is None else self.expires
        body = (
            f"{self.batch} {self.boot} {self.address} {self.state} {self.htype} {self.mac.hex(':')} "
            f"{self.client_id.hex()} {host} {self.relay} {self.circuit_id.hex()} {self.remote_id.hex()} "
            f"{self.starts} {expires}"
        )
        return f"{body} {zlib.crc32(body.encode())}"


def parse(text: object) -> StoredRow:
    """Read a row, in octets. Raises ValueError saying what is wrong with it."""
    if not isinstance(text, bytes):
        raise ValueError("it is no text")
    body, _, check = text.rpartition(b" ")
    if check != b"%d" % zlib.crc32(body):
        raise ValueError("its check does not fit")
    words = body.decode("ascii").split(" ")
    if len(words) != WORDS - 1:
        raise ValueError("it has other words")
    batch, boot, address, state, htype, mac, client_id, host, relay, circuit_id, remote_id, starts, expires = words
    if state not in ("bound", "released", "declined"):
        raise ValueError(f"{state!r} is no state")
    row = StoredRow(
        _address(address), cast(State, state), int(htype), bytes.fromhex(mac.replace(":", "")),
        bytes.fromhex(client_id), unquote_to_bytes(host), _address(relay), bytes.fromhex(circuit_id),
        bytes.fromhex(remote_id), int(boot), int(batch), int(starts), None if expires == "never" else int(expires),
    )  # fmt: skip
    if not 0 <= row.htype <= 255 or len(row.mac) > 16:
        raise ValueError("no hardware address")
    if not (abs(row.starts) <= FARTHEST and (row.expires is None or row.starts <= row.expires <= FARTHEST)):
        raise ValueError("no time")
    return row


def texts(rows: Iterable[StoredRow]) -> str:
    """Return rows as `Responder.batch` gives them."""
    return "{" + ",".join(f'"{int(row.address)}":"{row.text()}"' for row in rows) + "}"


def on_clock(row: StoredRow, clock: Clock, zeros: Mapping[int, int]) -> LeaseRow:
    """Return a row on the clock of this start of the machine, as the responder takes it. `zeros` are those of
    earlier starts (`Clock.zero`)."""
    row = of_this_start(row, clock, zeros)
    expires = None if row.expires is None else _nanoseconds(row.expires)
    return LeaseRow(
        int(row.address), row.state, row.htype, row.mac, row.client_id, row.host, int(row.relay), row.circuit_id,
        row.remote_id, _nanoseconds(row.starts), expires,
    )  # fmt: skip


def of_this_start(row: StoredRow, clock: Clock, zeros: Mapping[int, int]) -> StoredRow:
    """Return a row as if it had been written since the machine started.

    A wall clock that was set back while the machine was off makes no lease longer than it was given; of a start
    that nothing is known of, a lease has all of its time before it.
    """
    now, starts = clock.now() // MILLISECOND, row.starts
    if row.boot != clock.boot:
        starts = starts + zeros[row.boot] - clock.zero() if row.boot in zeros else now
    starts = min(starts, now)
    expires = None if row.expires is None else starts + row.expires - row.starts
    return row._replace(boot=clock.boot, starts=starts, expires=expires)


def stored_row(row: LeaseRow, boot: int, batch: int) -> StoredRow:
    """Return what the store keeps of a lease. An end is rounded up: no restart takes anything from a lease."""
    expires = None if row.expires is None else -(-row.expires // MILLISECOND)
    return StoredRow(
        IPv4Address(row.address), row.state, row.htype, row.mac, row.client_id, row.host, IPv4Address(row.relay),
        row.circuit_id, row.remote_id, boot, batch, row.starts // MILLISECOND, expires,
    )  # fmt: skip


def _address(text: str) -> IPv4Address:
    # Three times as fast as IPv4Address(text); what else inet_aton takes does not pass the check.
    try:
        return IPv4Address(socket.inet_aton(text))
    except OSError as error:
        raise ValueError(f"{text!r} is no address") from error


def _nanoseconds(milliseconds: int) -> int:
    return max(-NANOSECONDS, min(milliseconds * MILLISECOND, NANOSECONDS))

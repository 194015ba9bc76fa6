"""A lease as the store keeps it: columns of which the last only fits those before it."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from typing import Literal, NamedTuple, cast

from fastboot.state.clock import Clock

COLUMNS = (
    "address", "state", "htype", "mac", "client_id", "hostname", "relay", "circuit_id", "remote_id",
    "boot", "batch", "starts", "expires", "crc",
)  # fmt: skip
TEXTS = 8
"""Columns of text, when the hardware type is left out."""

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

    def columns(self) -> tuple[str | int | None, ...]:
        """Return what the store writes."""
        texts = (
            str(self.address), self.state, self.mac.hex(":"), self.client_id.hex(), self.host.decode("latin-1"),
            str(self.relay), self.circuit_id.hex(), self.remote_id.hex(),
        )  # fmt: skip
        numbers = (self.boot, self.batch, self.starts, self.expires)
        return (*texts[:2], self.htype, *texts[2:], *numbers, check(texts, self.htype, numbers))


def parse(columns: Sequence[object]) -> StoredRow:
    """Read a row whose texts are octets. Raises ValueError saying what is wrong with it."""
    if len(columns) != len(COLUMNS):
        raise ValueError("it has other columns")
    try:
        texts = [cast(bytes, text).decode("utf-8") for text in (*columns[:2], *columns[3 : TEXTS + 1])]
    except AttributeError as error:
        raise ValueError("a text is none") from error
    htype, *numbers = (columns[2], *columns[TEXTS + 1 : -1])
    if not all(type(number) is int for number in (htype, *numbers[:3], numbers[3] or 0, columns[-1])):
        raise ValueError("a number is none")
    boot, batch, starts, expires = cast(tuple[int, int, int, int | None], tuple(numbers))
    if columns[-1] != check(texts, cast(int, htype), (boot, batch, starts, expires)):
        raise ValueError("its check does not fit")
    address, state, mac, client_id, host, relay, circuit_id, remote_id = texts
    if state not in ("bound", "released", "declined"):
        raise ValueError(f"{state!r} is no state")
    hardware = bytes.fromhex(mac.replace(":", ""))
    if not 0 <= cast(int, htype) <= 255 or len(hardware) > 16:
        raise ValueError("no hardware address")
    if not (abs(starts) <= FARTHEST and (expires is None or starts <= expires <= FARTHEST)):
        raise ValueError("no time")
    return StoredRow(
        _address(address), cast(State, state), cast(int, htype), hardware, bytes.fromhex(client_id),
        host.encode("latin-1"), _address(relay), bytes.fromhex(circuit_id), bytes.fromhex(remote_id),
        boot, batch, starts, expires,
    )  # fmt: skip


def check(texts: Sequence[str], htype: int, numbers: Sequence[int | None]) -> int:
    """Return the CRC-32 of a row: of the JSON that `Responder.batch` writes of it, up to the check itself. `texts`
    are its columns of text, `numbers` are boot, batch, start and end."""
    address, state, mac, client_id, host, *rest = texts
    plain = host.isascii() and host.isprintable() and '"' not in host and "\\" not in host
    escaped = (
        host
        if plain
        else "".join(
            char if " " <= char < "\x7f" and char not in '"\\' else f"\\u{ord(char):04x}" for char in host
        )
    )
    quoted = f'"{address}","{state}",{htype},' + ",".join(f'"{text}"' for text in (mac, client_id, escaped, *rest))
    tail = ",".join("null" if number is None else str(number) for number in numbers)
    return zlib.crc32(f"[{quoted},{tail}".encode())


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

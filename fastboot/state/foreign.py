"""Leases in the files of other DHCP servers: dnsmasq's, and those of ISC dhcpd (dhcpd.leases(5))."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import NamedTuple

from fastboot.model import FastbootError

HARDWARE = {"ethernet": 1, "token-ring": 6, "fddi": 8, "infiniband": 32}
"""Hardware types by the names that dhcpd has for them (RFC 1700)."""
SYMBOL = re.compile(r'(\s+|#[^\n]*)|("(?:[^"\\\n]|\\.)*")|([{};])|([^\s{};"#]+)|(.)', re.DOTALL)
ESCAPE = re.compile(r"\\(?:([0-3][0-7]{0,2})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
ESCAPED = {"t": "\t", "r": "\r", "n": "\n", "b": "\b"}
MOST = {"hardware address": 16, "client identifier": 255, "host name": 255, "circuit id": 255, "remote id": 255}
"""Octets that are kept; of a host name the first 64 are."""
LATEST = 2**33
"""Seconds since the epoch, the year 2242: what ends later never ends."""
DEEPEST = 16
"""Blocks within blocks. dhcpd writes two."""


class ForeignLease(NamedTuple):
    """A lease that another server gave, as line `line` of its file has it. Times are seconds since the epoch,
    `expires` may be `inf`."""

    line: int
    address: IPv4Address
    htype: int
    mac: bytes
    client_id: bytes
    host: bytes
    circuit_id: bytes
    remote_id: bytes
    starts: float
    expires: float

    def facts(self) -> list[object]:
        """Return it as JSON knows it."""
        octets = (self.mac, self.client_id, self.host, self.circuit_id, self.remote_id)
        expires = None if self.expires == math.inf else self.expires
        return [self.line, str(self.address), self.htype, *(each.hex() for each in octets), self.starts, expires]

    @classmethod
    def of_facts(cls, facts: Sequence[object]) -> ForeignLease:
        """Raises ValueError for what `facts` did not return."""
        match facts:
            case [int(line), str(address), int(htype), *texts, int() | float() as starts, expires]:
                octets = [bytes.fromhex(str(text)) for text in texts]
                end = math.inf if expires is None else float(str(expires))
                if len(octets) == 5 and 0 <= htype <= 255 and 0 <= starts <= LATEST and end >= 0:
                    mac, client_id, host, circuit_id, remote_id = octets
                    ids = (mac, client_id, host, circuit_id, remote_id)
                    return cls(line, IPv4Address(address), htype, *ids, float(starts), end).checked()
        raise ValueError("this is no lease")

    def checked(self) -> ForeignLease:
        """Return it if the store can keep it. Raises ValueError."""
        octets = (self.mac, self.client_id, self.host, self.circuit_id, self.remote_id)
        for (name, most), value in zip(MOST.items(), octets, strict=True):
            if len(value) > most:
                raise ValueError(f"the {name} is longer than {most} octets")
        return self._replace(
            starts=max(0, self.starts), expires=math.inf if self.expires > LATEST else self.expires
        )


@dataclass
class ForeignLeases:
    """What a file holds: `leases` of now, `faults` with the number of their line, and how many were passed over
    for each reason."""

    leases: list[ForeignLease] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)


class ForeignError(FastbootError):
    """The file is of no kind that is known."""


def read(data: bytes, now: float) -> ForeignLeases:
    """Read a lease file, whose kind is seen by what is in it. Raises ForeignError where it is of none."""
    text = data.decode("latin-1")
    if re.search(r"^lease\s+\S+\s*\{", text, re.MULTILINE):
        return _gather(_dhcpd(text, now), now)
    if re.search(r"^(?:\d+\s+\S+\s+\d+\.\d+\.\d+\.\d+\s|duid\s)", text, re.MULTILINE):
        return _gather(_dnsmasq(text, now), now)
    if not re.sub(r"#[^\n]*", "", text).strip():
        return ForeignLeases()
    raise ForeignError("this is no lease file of dnsmasq or of ISC dhcpd")


def _gather(found: Iterator[ForeignLease | tuple[IPv4Address | None, str]], now: float) -> ForeignLeases:
    """Keep of each address the last that is said of it: a lease, that it has none (a reason), or a fault."""
    result, last = ForeignLeases(), dict[IPv4Address, ForeignLease | str]()
    for each in found:
        if isinstance(each, ForeignLease):
            last[each.address] = each if each.expires > now else "expired"
        elif each[0] is None:
            result.faults.append(each[1])
        else:
            last[each[0]] = each[1]
    for value in last.values():
        if isinstance(value, ForeignLease):
            result.leases.append(value)
        else:
            result.passed[value] += 1
    return result


# ---- dnsmasq


def _dnsmasq(text: str, now: float) -> Iterator[ForeignLease | tuple[IPv4Address | None, str]]:
    """Lines are "expiry MAC address name client-id"; "*" stands for nothing, 0 for ever; IPv6 from "duid" on."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if words[0] == "duid":
            return
        try:
            if len(words) != 5:
                raise ValueError("has not five words")
            expiry, hardware, address, host, client_id = words
            # Another type than Ethernet comes first, in hex.
            kind, _, octets = hardware.rpartition("-")
            yield ForeignLease(
                number, IPv4Address(address), int(kind, 16) if kind else 1, _hex(octets),
                b"" if client_id == "*" else _hex(client_id), b"" if host == "*" else host.encode("latin-1"),
                b"", b"", now, math.inf if int(expiry) == 0 else float(int(expiry)),
            ).checked()  # fmt: skip
        except (ValueError, OverflowError) as error:
            yield None, f"line {number}: {_why(error, line)}"


# ---- ISC dhcpd


class Statement(NamedTuple):
    """A statement: its words, of which those that were quoted are octets, and the block behind them."""

    words: list[str | bytes]
    body: list[Statement]


def _dhcpd(text: str, now: float) -> Iterator[ForeignLease | tuple[IPv4Address | None, str]]:
    """Every record of a lease begins a line, so that a broken one does not break the next."""
    starts = [match.start() for match in re.finditer(r"^lease\s", text, re.MULTILINE)]
    line, at = 1, 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        line, at = line + text.count("\n", at, start), start
        try:
            yield _record(line, _statement(_symbols(text[start:end]), 0), now)
        except (ValueError, OverflowError) as error:
            yield None, f"line {line}: {_why(error, text[start:end].partition(chr(10))[0])}"


def _record(line: int, statement: Statement, now: float) -> ForeignLease | tuple[IPv4Address, str]:
    _, name, *rest = statement.words
    if rest:
        raise ValueError("more than an address")
    address = IPv4Address(str(name))
    said: dict[str, list[str | bytes]] = {}
    for words, _ in statement.body:
        keys = [word for word in words[:2] if isinstance(word, str)]
        two = " ".join(keys)
        if two in ("binding state", "option agent.circuit-id", "option agent.remote-id"):
            said[two] = words[2:]
        elif keys:
            said[keys[0]] = words[1:]
    state = said.get("binding state", ["abandoned" if "abandoned" in said else "active"])
    if state != ["active"]:
        return address, f"binding state {state[0]!s}" if state else "no binding state"
    if missing := {"ends", "hardware"} - said.keys():
        raise ValueError(f"says nothing of {' and '.join(sorted(missing))}")
    if len(said["hardware"]) != 2:
        raise ValueError("has no hardware address")
    kind, mac = map(str, said["hardware"])
    return ForeignLease(
        line, address, HARDWARE[kind] if kind in HARDWARE else _unknown(kind), _hex(mac), _octets(said.get("uid")),
        _octets(said.get("client-hostname")), _octets(said.get("option agent.circuit-id")),
        _octets(said.get("option agent.remote-id")), min(now, _date(said.get("starts", ["never"]))),
        _date(said["ends"]),
    ).checked()  # fmt: skip


def _symbols(text: str) -> Iterator[str | bytes]:
    for match in SYMBOL.finditer(text):
        blank, quoted, _, _, wrong = match.groups()
        if wrong:
            raise ValueError("has a quotation mark without its partner")
        if not blank:
            yield ESCAPE.sub(_escaped, quoted[1:-1]).encode("latin-1") if quoted else match[0]


def _escaped(match: re.Match[str]) -> str:
    octal, hexadecimal, other = match.groups()
    if octal or hexadecimal:
        return chr(int(octal, 8) if octal else int(hexadecimal, 16))
    return ESCAPED.get(other, other)


def _statement(symbols: Iterator[str | bytes], depth: int) -> Statement:
    """Return the next statement; one without words or body at the end of a block."""
    words: list[str | bytes] = []
    for symbol in symbols:
        if symbol == "{":
            if depth == DEEPEST:
                raise ValueError("has too many blocks in blocks")
            body = []
            while (inner := _statement(symbols, depth + 1)) != Statement([], []):
                body.append(inner)
            return Statement(words, body)
        if symbol == ";" and words:
            return Statement(words, [])
        if symbol == "}":
            return Statement([], [])
        if symbol != ";":
            words.append(symbol)
    raise ValueError("is cut off")


def _date(words: Sequence[str | bytes]) -> float:
    """Return seconds since the epoch of "never", "epoch N", or weekday, date, time and an offset from UTC."""
    match [str(word) for word in words]:
        case ["never"]:
            return math.inf
        case ["epoch", seconds]:
            return float(int(seconds))
        case [_, day, time, *offset] if len(offset) < 2:
            year, month, date = map(int, day.split("/"))
            hour, minute, second = map(int, time.split(":"))
            moment = datetime(year, month, date, hour, minute, min(second, 59), tzinfo=UTC)
            return moment.timestamp() + int(offset[0] if offset else 0)
    raise ValueError(f"{' '.join(map(str, words))!r} is no date")


def _octets(words: Sequence[str | bytes] | None) -> bytes:
    """Return what is quoted, or written in hex with colons."""
    if not words:
        return b""
    if len(words) > 1:
        raise ValueError(f"{' '.join(map(str, words))} is more than one value")
    (word,) = words
    return word if isinstance(word, bytes) else _hex(word)


def _hex(text: str) -> bytes:
    """Return octets in hex with colons, each of one digit or two."""
    return bytes(int(octet, 16) for octet in text.split(":")) if text else b""


def _unknown(kind: str) -> int:
    if match := re.fullmatch(r"unknown-(\d+)", kind):
        return int(match[1])
    raise ValueError(f"{kind!r} is no type of hardware that is known")


def _why(error: Exception, line: str) -> str:
    return f"{error}: {line.strip()[:100]!r}"

"""What a machine does at one time: an address, a file by TFTP, HTTP or FTP. The packets of it are `_machines`'.

Each is a generator that starts one thing and yields for its outcome. Raises Stopped where the machine gets no
further.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Sequence
from ipaddress import IPv4Address

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.lab._machines import Machines, Outcome
from fastboot.lab.rehearsal.kinds import DISCOVER, REQUEST, Dhcp
from fastboot.lab.rehearsal.machine import Machine, Place, Stage, Step, Steps, Stopped, Way
from fastboot.lab.tftp import Client
from fastboot.wording import counted

Words = Generator[None, Outcome, str]
Leased = Callable[[Machine, Dhcp, DhcpMessage], None]
"""Called with every lease, before the machine uses its address."""


def unminded(machine: Machine, dhcp: Dhcp, reply: DhcpMessage) -> None:
    """All addresses are ours already."""


class Fetcher:
    """Fetches for all machines."""

    def __init__(self, machines: Machines, *, slow: float = 0.0, leased: Leased = unminded) -> None:
        """`slow`: the seconds that every machine takes for a block."""
        self._machines, self._slow, self._leased = machines, slow, leased

    def lease(self, m: Machine, dhcp: Dhcp) -> Generator[None, Outcome, DhcpMessage]:
        """Ask for an address; returns the ACK."""
        xid = int.from_bytes(os.urandom(4))
        self._machines.lease(
            m.number, m.wire, dhcp.message(DISCOVER, m.mac, xid), dhcp.message(REQUEST, m.mac, xid),
            dhcp.manner(), collects=dhcp.collects, hasty=dhcp.hasty,
        )  # fmt: skip
        outcome = yield from self._await(m, "address", "an address by DHCP")
        reply = parse_dhcp(outcome.content or b"")
        if outcome.end == "done" and isinstance(reply, DhcpMessage):
            m.address = IPv4Address(reply.yiaddr)
            self._leased(m, dhcp, reply)
            return reply
        if outcome.end == "error" and isinstance(reply, DhcpMessage):
            raise Stopped("address", f"NAK: {reply.options.get(56, b'no reason').decode('utf-8', 'replace')}")
        what, without = ("REQUEST", "ACK") if outcome.first else ("DISCOVER", "OFFER")
        raise Stopped("address", f"{counted(len(dhcp.waits), what)} had no {without} in {sum(dhcp.waits):.0f} s")

    def load(
        self,
        m: Machine,
        stage: Stage,
        place: Place,
        client: Client | None = None,
        *,
        keep: int = 0,
        may_miss: bool = False,
    ) -> Steps:
        """Fetch a file; by TFTP as this client does. `keep`: so many octets are handed over;
        `may_miss`: it is no fault that it is not there."""
        if place.scheme in ("http", "ftp"):
            return (yield from self._stream(m, stage, place, "GET", "iPXE/1.21.1", keep, may_miss))
        if place.scheme != "tftp" or client is None:
            raise Stopped(stage, f"{place}: this machine does not speak {place.scheme}")
        if client.probe and stage == "loader":
            yield from self.tftp(m, stage, place, client, probe=True)
        return (yield from self.tftp(m, stage, place, client, keep=keep, may_miss=may_miss))

    def look(self, m: Machine, stage: Stage, place: Place, agent: str) -> Steps:
        """Ask by HTTP for the size of a file."""
        return (yield from self._stream(m, stage, place, "HEAD", agent, 0, False))

    def tftp(
        self,
        m: Machine,
        stage: Stage,
        place: Place,
        client: Client,
        *,
        keep: int = 0,
        may_miss: bool = False,
        probe: bool = False,
    ) -> Steps:
        """As `load`; with `probe` only the size is asked for."""
        request = client.request(place.path, probe=probe)
        if len(request) > 512:
            raise Stopped(stage, f"{place}: the request is longer than the 512 octets of RFC 2347")
        manner = client.manner(probe=probe, slow=self._slow)
        self._machines.fetch(m.number, int(place.server), place.port, request, manner, probe=probe, keep=keep)
        outcome = yield from self._await(m, stage, place.path)
        m.again += outcome.again
        if outcome.end == "done":
            if not probe and outcome.size not in (-1, outcome.octets):
                raise Stopped(stage, f"{place}: {outcome.octets} octets of {outcome.size}")
            return outcome
        if outcome.end == "error":
            if may_miss:
                return outcome
            words = (outcome.content or b"").decode("utf-8", "replace")
            raise Stopped(stage, f"{place}: ERROR {outcome.code}: {words}")
        if outcome.end == "nonsense":
            raise Stopped(stage, f"{place}: the server's answer is none that this client takes")
        when = f"after {counted(outcome.octets, 'octet')}" if outcome.first else "at all"
        asked = f"asked {counted(len(client.waits), 'time')} in {sum(client.waits):.0f} s"
        raise Stopped(stage, f"{place}: no answer {when}, {asked}")

    def fetch_all(self, m: Machine, stage: Stage, places: Sequence[Place], agent: str) -> Way:
        """Fetch many files of one server by HTTP or FTP over one connection that is kept open: one step."""
        if not places:
            return
        yield from self._connect(m, stage, places[0])
        began, octets = self._machines.now, 0
        for place in places:
            outcome = yield from self._request(m, stage, place, "GET", agent, 0)
            if outcome.end != "done" and not outcome.first:  # between two files servers may close: RFC 9112 9.6
                yield from self._connect(m, stage, place)
                outcome = yield from self._request(m, stage, place, "GET", agent, 0)
            octets += outcome.octets
            if not came(outcome):
                m.steps.append(self._step(m, outcome))
            _judge(stage, place, outcome, False)
        self._machines.hang_up(m.number)
        m.steps.append(Step(stage, counted(len(places), "file"), began, self._machines.now, octets))

    def wait(self, m: Machine, stage: Stage, what: str, seconds: float) -> Way:
        """Let the machine do nothing."""
        self._machines.pause(m.number, seconds)
        yield from self._hear(m, stage, what)

    def _stream(
        self, m: Machine, stage: Stage, place: Place, verb: str, agent: str, keep: int, may_miss: bool
    ) -> Steps:
        # One file by a connection of its own.
        yield from self._connect(m, stage, place)
        outcome = yield from self._request(m, stage, place, verb, agent, keep)
        m.steps.append(self._step(m, outcome))
        self._machines.hang_up(m.number)
        _judge(stage, place, outcome, may_miss)
        return outcome

    def _connect(self, m: Machine, stage: Stage, place: Place) -> Way:
        try:
            self._machines.dial(m.number, int(place.server), place.port)
        except OSError as error:
            raise Stopped(stage, f"{place}: {error.strerror}") from error
        outcome = yield from self._await(m, stage, f"connect {place.server}:{place.port}")
        if outcome.end != "done":
            reason = os.strerror(outcome.code) if outcome.code else "no answer"
            raise Stopped(stage, f"{place}: port {place.port}: {reason}")
        if place.scheme == "ftp":
            for line, good in (
                ("", (220,)), ("USER anonymous", (230, 331)), ("PASS lab@", (230,)), ("TYPE I", (200,)),
            ):  # fmt: skip
                yield from self._say(m, stage, place, line, good)

    def _say(self, m: Machine, stage: Stage, place: Place, line: str, good: Sequence[int]) -> Words:
        # A line of FTP; returns the words of the reply.
        self._machines.say(m.number, f"{line}\r\n".encode() if line else b"")
        reply = yield from self._hear(m, stage, line.split()[0] if line else "greeting")
        words = (reply.content or b"").decode("utf-8", "replace")
        if reply.end != "done" or reply.code not in good:
            m.steps.append(self._step(m, reply))
            raise Stopped(stage, f"{place}: {line or 'greeting'}: {words.strip() or _cut(reply)}")
        return words

    def _request(self, m: Machine, stage: Stage, place: Place, verb: str, agent: str, keep: int) -> Steps:
        # A file by the connection that is there; its step is the caller's.
        if place.scheme == "http":
            head = f"{verb} {place.path} HTTP/1.1\r\nHost: {place.server}\r\nUser-Agent: {agent}\r\nAccept: */*"
            self._machines.get(m.number, f"{head}\r\n\r\n".encode(), head=verb == "HEAD", keep=keep)
            return (yield from self._hear(m, stage, f"{verb} {place.path}"))
        words = yield from self._say(m, stage, place, "EPSV", (229,))
        port = re.search(r"\(\|\|\|(\d+)\|\)", words)
        if port is None:
            raise Stopped(stage, f"{place}: EPSV: {words.strip()}")
        self._machines.retrieve(m.number, int(port[1]), f"RETR {place.path}\r\n".encode(), keep=keep)
        return (yield from self._hear(m, stage, f"RETR {place.path}"))

    def _await(self, m: Machine, stage: Stage, what: str) -> Steps:
        outcome = yield from self._hear(m, stage, what)
        m.steps.append(self._step(m, outcome))
        return outcome

    def _hear(self, m: Machine, stage: Stage, what: str) -> Steps:
        m.doing = stage, what
        return (yield)

    def _step(self, m: Machine, outcome: Outcome) -> Step:
        return Step(*m.doing, outcome.began, outcome.ended, outcome.octets)


def came(outcome: Outcome) -> bool:
    """Whether the file came whole."""
    return outcome.end == "done" and outcome.code in (0, 200, 226)


def _judge(stage: Stage, place: Place, outcome: Outcome, may_miss: bool) -> None:
    if outcome.end != "done":
        raise Stopped(stage, f"{place}: {_cut(outcome)}")
    if not came(outcome) and not may_miss:
        raise Stopped(stage, f"{place}: {'status' if place.scheme == 'http' else 'reply'} {outcome.code}")


def _cut(outcome: Outcome) -> str:
    if outcome.end == "silent":
        return f"no more came after {outcome.octets} octets"
    return f"the connection ended after {outcome.octets} octets of {outcome.size}"

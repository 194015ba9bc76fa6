"""A lab's morning: many machines are switched on, and each does what its firmware, loader and installer do.

What a machine does next is a line of `Walk`; the packets of it are `_machines`'. A walk is a generator that
starts one thing and yields for its outcome.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Final, Literal
from urllib.parse import quote, urlsplit

from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.lab import bootfile
from fastboot.lab._machines import Machines, Outcome
from fastboot.lab.kinds import (
    ANACONDA_DHCP,
    DISCOVER,
    IPXE_LOADER,
    KINDS,
    LINUX_DHCP,
    REQUEST,
    Dhcp,
    Loader,
    loader_of,
)
from fastboot.lab.tftp import Client

Stage = Literal["address", "loader", "configuration", "system", "media"]
STAGES: Final[tuple[Stage, ...]] = ("address", "loader", "configuration", "system", "media")
_KEEP: Final = 1 << 16
_CHAINS: Final = 8
"""Loaders and scripts that follow each other; more go round in circles."""
_TREE_INFO: Final = 1 << 16

Steps = Generator[None, Outcome, Outcome]
Way = Generator[None, Outcome, None]
Loaded = Generator[None, Outcome, frozenset[str]]


class Stopped(Exception):
    """A machine got no further: where, and what it was told."""

    def __init__(self, stage: Stage, text: str) -> None:
        super().__init__(text)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a machine did. Times are nanoseconds of CLOCK_MONOTONIC."""

    stage: Stage
    what: str
    began: int
    ended: int
    octets: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is. `path` is as the client writes it."""

    scheme: str
    server: IPv4Address
    port: int
    path: str

    def beside(self, name: str) -> Place:
        """Return a file in the same directory, or from the root."""
        if name.startswith("/"):
            return Place(self.scheme, self.server, self.port, name)
        directory = self.path.rpartition("/")[0]
        return Place(self.scheme, self.server, self.port, f"{directory}/{name}" if directory else name)

    def find(self, name: str) -> Place:
        """Return what a configuration that came from here means by a name: a URL, `(tftp,server)/path` of GRUB,
        `::path` of PXELINUX, or a path. Raises ValueError."""
        if match := re.fullmatch(r"\((\w+),([^)]*)\)(.*)", name):
            name = f"{match[1]}://{match[2]}{quote(match[3])}"
        if "://" in name:
            parts = urlsplit(name)
            port = parts.port or {"http": 80, "ftp": 21, "tftp": 69}.get(parts.scheme, 0)
            path = parts.path if parts.scheme != "tftp" else parts.path.lstrip("/")
            return Place(parts.scheme, IPv4Address(parts.hostname or ""), port, path)
        return self.beside(name.removeprefix("::"))

    def __str__(self) -> str:
        return f"{self.path} by {self.scheme.upper()} from {self.server}"


@dataclass(slots=True)
class Machine:
    """A machine of the morning and its story. `wire` is where it is plugged in, `due` when it is switched on, in
    seconds. `doing`: the stage, and what it waits for; `result`: what it came to; `fault`: why it did not boot."""

    number: int
    name: str
    kind: str
    mac: bytes
    wire: int
    due: float = 0.0
    switched_on: int = 0
    address: IPv4Address | None = None
    doing: tuple[Stage, str] = ("address", "power")
    steps: list[Step] = field(default_factory=list)
    result: str = ""
    fault: str = ""
    stopped: Stage | None = None
    again: int = 0

    @property
    def booted(self) -> bool:
        return bool(self.result)

    @property
    def seconds(self) -> float:
        """From power-on to the end."""
        return (self.steps[-1].ended - self.switched_on) / 1e9 if self.steps else 0.0

    def took(self, stage: Stage) -> float | None:
        """Return the seconds that it spent in a stage; None where it never came there."""
        spent = [step.ended - step.began for step in self.steps if step.stage == stage]
        return sum(spent) / 1e9 if spent else None


class Walk:
    """What machines do, from power-on to the installer."""

    def __init__(self, machines: Machines, *, slow: float = 0.0, media: bool = True) -> None:
        """`slow`: the seconds that every machine takes for a block; `media`: installers fetch theirs."""
        self._machines, self._slow, self._media = machines, slow, media
        self._read: dict[tuple[str, bytes, frozenset[str]], bootfile.Boot] = {}

    def boot(self, m: Machine) -> Way:
        """Yield for each outcome, until the machine has booted or stopped."""
        try:
            yield from self._firmware(m)
        except Stopped as stop:
            m.stopped, m.fault = stop.stage, str(stop)

    def _firmware(self, m: Machine) -> Way:
        firmware = KINDS[m.kind]
        place = yield from self._told(m, firmware.dhcp)
        if firmware.url and place.scheme == "http":
            yield from self._http(m, "loader", place, "UefiHttpBoot/1.0", "HEAD")
        loaded = yield from self._load(m, "loader", place, firmware.tftp, keep=_KEEP)
        yield from self._run(m, place, loaded.content or b"")

    def _run(self, m: Machine, place: Place, content: bytes) -> Way:
        # The loader or script that came from `place`, and what it leads to.
        for _ in range(_CHAINS):
            if content.startswith(b"#!ipxe"):
                boot = self._parse("ipxe", place, content)
                if not boot.chain:
                    yield from self._system(m, IPXE_LOADER, place, boot)
                    return
                loader, place = IPXE_LOADER, self._find(place, boot.chain)
            else:
                known = loader_of(place.path)
                if known is None:
                    m.result = f"{PurePosixPath(place.path).name}, which is not followed further"
                    return
                loader = known
                if loader.again:
                    place = yield from self._told(m, loader.again)
                elif loader.next is None:
                    yield from self._configured(m, loader, place)
                    return
                else:
                    yield from self._extras(m, loader, place)
                    place = place.beside(loader.next)
            loaded = yield from self._load(m, "loader", place, loader.tftp, keep=_KEEP)
            content = loaded.content or b""
        raise Stopped("loader", f"{place}: loaders and scripts go round in circles")

    def _told(self, m: Machine, dhcp: Dhcp) -> Generator[None, Outcome, Place]:
        # Asks for an address; returns the boot file that came with it.
        reply = yield from self._lease(m, dhcp)
        name = reply.file.split(b"\0")[0] or reply.options.get(67, b"").rstrip(b"\0\xff")
        server = IPv4Address(reply.siaddr or int.from_bytes(reply.options.get(54, b"")))
        if not name:
            raise Stopped("loader", f"the answer of {server} names no boot file")
        try:
            return Place("tftp", server, 69, "").find(name.decode("utf-8", "replace"))
        except ValueError as error:
            raise Stopped("loader", f"boot file {name!r}: {error}") from error

    def _lease(self, m: Machine, dhcp: Dhcp) -> Generator[None, Outcome, DhcpMessage]:
        xid = int.from_bytes(os.urandom(4))
        self._machines.lease(
            m.number, m.wire, dhcp.message(DISCOVER, m.mac, xid), dhcp.message(REQUEST, m.mac, xid),
            dhcp.manner(), collects=dhcp.collects, hasty=dhcp.hasty,
        )  # fmt: skip
        outcome = yield from self._await(m, "address", "an address by DHCP")
        reply = parse_dhcp(outcome.content or b"")
        if outcome.end == "done" and isinstance(reply, DhcpMessage):
            m.address = IPv4Address(reply.yiaddr)
            return reply
        if outcome.end == "error" and isinstance(reply, DhcpMessage):
            raise Stopped("address", f"NAK: {reply.options.get(56, b'no reason').decode('utf-8', 'replace')}")
        what = "REQUESTs had no ACK" if outcome.first else "DISCOVERs had no OFFER"
        raise Stopped("address", f"{len(dhcp.waits)} {what} in {sum(dhcp.waits):.0f} s")

    def _extras(self, m: Machine, loader: Loader, place: Place) -> Way:
        for name in loader.files:
            yield from self._tftp(m, "loader", place.beside(name), loader.tftp, may_miss=True)

    def _configured(self, m: Machine, loader: Loader, place: Place) -> Way:
        # A loader that looks for its configuration by names of its own.
        yield from self._extras(m, loader, place)
        assert m.address
        for name in loader.configurations(m.mac.hex(":"), m.address):
            where = place.beside(name)
            found = yield from self._tftp(m, "configuration", where, loader.tftp, may_miss=True, keep=_KEEP)
            if found.end == "done":
                content = found.content or b""
                modules = yield from self._modules(m, loader, place, content)
                boot = self._parse(loader.language, where, content, modules)
                yield from self._system(m, loader, where if loader.language == "grub" else place, boot)
                return
        raise Stopped("configuration", f"{loader.title} found none of its files, the last {place.beside(name)}")

    def _modules(self, m: Machine, loader: Loader, place: Place, content: bytes) -> Loaded:
        # What of it a configuration wants and the server has.
        found = set()
        for name in bootfile.modules(loader.language, content.decode("utf-8", "replace")):
            where = place.beside(loader.modules.format(name))
            outcome = yield from self._tftp(m, "configuration", where, loader.tftp, may_miss=True)
            found |= {name} if outcome.end == "done" else set()
        return frozenset(found)

    def _parse(
        self, language: str, place: Place, content: bytes, modules: frozenset[str] = frozenset()
    ) -> bootfile.Boot:
        key = language, content, modules
        if key not in self._read:
            try:
                self._read[key] = bootfile.read(language, content.decode("utf-8", "replace"), modules)
            except bootfile.Unreadable as error:
                raise Stopped("configuration", f"{place}: {error}") from error
        return self._read[key]

    def _find(self, place: Place, name: str) -> Place:
        try:
            return place.find(name)
        except ValueError as error:
            raise Stopped("configuration", f"{place} names {name!r}: {error}") from error

    def _system(self, m: Machine, loader: Loader, place: Place, boot: bootfile.Boot) -> Way:
        # Kernel and initrds, then what an installer is told to fetch.
        if boot.local:
            m.result = bootfile.LOCAL
            return
        for name in (boot.kernel, *boot.initrds):
            yield from self._load(m, "system", self._find(place, name), loader.tftp)
        m.result = PurePosixPath(boot.kernel).name
        urls = list(_urls(boot.arguments))
        if urls and self._media:
            installer = ANACONDA_DHCP if "inst." in boot.arguments else LINUX_DHCP
            yield from self._lease(m, installer)
            for url in urls:
                yield from self._medium(m, self._find(place, url))

    def _medium(self, m: Machine, place: Place) -> Way:
        # A file; or a tree, of which the installer is fetched that .treeinfo names.
        if PurePosixPath(place.path).suffix:
            yield from self._load(m, "media", place)
            return
        tree = Place(place.scheme, place.server, place.port, place.path.rstrip("/") + "/")
        info = yield from self._load(m, "media", tree.beside(".treeinfo"), keep=_TREE_INFO, may_miss=True)
        text = (info.content or b"").decode("utf-8", "replace") if _came(info) else ""
        if image := re.search(r"^mainimage\s*=\s*(\S+)", text, re.MULTILINE):
            yield from self._load(m, "media", tree.beside(image[1]))

    def _load(
        self,
        m: Machine,
        stage: Stage,
        place: Place,
        client: Client | None = None,
        *,
        keep: int = 0,
        may_miss: bool = False,
    ) -> Steps:
        if place.scheme == "http":
            return (yield from self._http(m, stage, place, keep=keep, may_miss=may_miss))
        if place.scheme == "ftp":
            return (yield from self._ftp(m, stage, place, keep=keep, may_miss=may_miss))
        if place.scheme != "tftp" or client is None:
            raise Stopped(stage, f"{place}: this machine does not speak {place.scheme}")
        if client.probe and stage == "loader":
            yield from self._tftp(m, stage, place, client, probe=True)
        return (yield from self._tftp(m, stage, place, client, keep=keep))

    def _tftp(
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
        when = f"after {outcome.octets} octets" if outcome.first else "at all"
        raise Stopped(
            stage, f"{place}: no answer {when}, asked {len(client.waits)} times in {sum(client.waits):.0f} s"
        )

    def _http(
        self,
        m: Machine,
        stage: Stage,
        place: Place,
        agent: str = "iPXE/1.21.1",
        verb: str = "GET",
        *,
        keep: int = 0,
        may_miss: bool = False,
    ) -> Steps:
        yield from self._dial(m, stage, place)
        head = (
            f"{verb} {place.path} HTTP/1.1\r\nHost: {place.server}\r\nUser-Agent: {agent}\r\nAccept: */*\r\n\r\n"
        )
        self._machines.get(m.number, head.encode(), head=verb == "HEAD", keep=keep)
        outcome = yield from self._last(m, stage, place, verb)
        if outcome.code != 200 and not may_miss:
            raise Stopped(stage, f"{place}: status {outcome.code}")
        return outcome

    def _ftp(self, m: Machine, stage: Stage, place: Place, *, keep: int = 0, may_miss: bool = False) -> Steps:
        yield from self._dial(m, stage, place)
        port = 0
        for line, good in (
            ("", (220,)), ("USER anonymous", (230, 331)), ("PASS lab@", (230,)), ("TYPE I", (200,)),
            ("EPSV", (229,)),
        ):  # fmt: skip
            self._machines.say(m.number, f"{line}\r\n".encode() if line else b"")
            reply = yield from self._await(m, stage, line.split()[0] if line else "greeting")
            words = (reply.content or b"").decode("utf-8", "replace")
            if reply.end != "done" or reply.code not in good:
                raise Stopped(stage, f"{place}: {line or 'greeting'}: {words.strip() or _cut(reply)}")
            if match := re.search(r"\(\|\|\|(\d+)\|\)", words):
                port = int(match[1])
        self._machines.retrieve(m.number, port, f"RETR {place.path}\r\n".encode(), keep=keep)
        outcome = yield from self._last(m, stage, place, "RETR")
        if outcome.code != 226 and not may_miss:
            raise Stopped(stage, f"{place}: reply {outcome.code}")
        return outcome

    def _dial(self, m: Machine, stage: Stage, place: Place) -> Way:
        try:
            self._machines.dial(m.number, int(place.server), place.port)
        except OSError as error:
            raise Stopped(stage, f"{place}: {error.strerror}") from error
        outcome = yield from self._await(m, stage, f"connect {place.server}:{place.port}")
        if outcome.end != "done":
            reason = os.strerror(outcome.code) if outcome.code else "no answer"
            raise Stopped(stage, f"{place}: port {place.port}: {reason}")

    def _last(self, m: Machine, stage: Stage, place: Place, verb: str) -> Steps:
        outcome = yield from self._await(m, stage, f"{verb} {place.path}")
        self._machines.hang_up(m.number)
        if outcome.end != "done":
            raise Stopped(stage, f"{place}: {_cut(outcome)}")
        return outcome

    def _await(self, m: Machine, stage: Stage, what: str) -> Steps:
        m.doing = stage, what
        outcome = yield
        m.steps.append(Step(stage, what, outcome.began, outcome.ended, outcome.octets))
        return outcome


async def play(
    machines: Machines,
    cast: Sequence[Machine],
    walk: Walk,
    *,
    limit: float,
    every: float = 0.5,
    look: Callable[[int], None] = lambda running: None,
) -> None:
    """Switch the machines on, and go on until all have booted or stopped, or for `limit` seconds.

    `look` is called every so many seconds with the number of machines that are under way, and the event loop gets
    its turn then.
    """
    ways: dict[int, Way] = {}
    for m in cast:
        machines.pause(m.number, m.due)
    running, start = len(cast), machines.now
    seen = 0
    while running and machines.now - start < limit * 1e9:
        for outcome in machines.turn():
            m = cast[outcome.machine]
            if known := ways.get(m.number):
                running -= _has_ended(known, outcome)
            else:
                m.switched_on = outcome.ended
                way = ways[m.number] = walk.boot(m)
                running -= _has_ended(way, None)
        if machines.now - seen > every * 1e9:
            seen = machines.now
            look(running)
            await asyncio.sleep(0)
    for m in cast:
        if not m.booted and not m.fault:
            m.stopped, what = m.doing
            m.fault = f"was not done after {limit:.0f} s, but still at this: {what}"


def _has_ended(way: Way, outcome: Outcome | None) -> bool:
    try:
        way.send(outcome)  # type: ignore[arg-type]  # None begins a generator
    except StopIteration:
        return True
    return False


def _came(outcome: Outcome) -> bool:
    return outcome.end == "done" and outcome.code in (0, 200, 226)


def _cut(outcome: Outcome) -> str:
    if outcome.end == "silent":
        return f"no more came after {outcome.octets} octets"
    return f"the connection ended after {outcome.octets} octets of {outcome.size}"


def _urls(arguments: str) -> Iterator[str]:
    """Yield what a kernel command line has installers fetch."""
    for word in arguments.split():
        match = re.fullmatch(r"""[\w.-]+=["']?((?:http|ftp)://\d[^"']*)["']?""", word)
        if match:
            yield match[1]

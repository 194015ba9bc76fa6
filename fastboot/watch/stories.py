"""The story of every machine: of each kind of thing that happened to it, the last time.

Events in, marks out; no clock and no I/O. A story is bounded by the kinds of marks that there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

from fastboot.model import Event
from fastboot.watch.events import Backlog, Batch
from fastboot.watch.log import printable
from fastboot.watch.paths import OTHER, role_of

ROOM: Final = 65_536
"""Machines that are remembered; the one that was silent for longest makes room."""
WAITING: Final = 65_536
"""Events of batches that wait to be read: those of a storm of 10,000 machines."""
TEXT: Final = 160
"""Characters of a text of a stranger's that are kept."""
PATHS: Final = 8_192
"""Paths that are remembered with what they are: all machines of a lab ask for the same ones."""
ANEW: Final = 300.0
"""Seconds after which iPXE that asks for an address is no loader that firmware started, but a ROM."""
RETRIES: Final = 64.0
"""Seconds in which firmware asks again and again for its first address: EDK2 after 4, 8, 16 and 32."""
SILENCES: Final = frozenset(
    {
        "decide_failed", "decision_late", "doubtful", "exhausted", "held_full", "ignored", "lease_limit",
        "no_subnet", "offer_limit", "port_limit", "undecided",
    }
)  # fmt: skip
"""Reasons for which a machine gets no offer, so that it is at its very beginning."""


class Mark(NamedTuple):
    """Something that happened, the last time that it did. `what` is its file, address or server, `more` says more
    of it, `number` counts: octets, times, an architecture."""

    time: float
    what: str = ""
    more: str = ""
    number: int = 0


class Story:
    """What is known of one machine. `begun`: when it asked for its first address since it was switched on, the
    last time and the time before."""

    __slots__ = ("address", "begun", "first", "heard", "marks", "node")

    def __init__(self, time: float) -> None:
        self.first = self.heard = time
        self.begun: tuple[float, float | None] = (0.0, None)
        self.marks: dict[str, Mark] = {}
        self.address = self.node = ""


_TOLD: Final[Mapping[str, tuple[str, str]]] = {
    "dhcp.nak": ("address", "text"),
    "dhcp.decline": ("address", "text"),
    "dhcp.unanswered": ("reason", "about"),
    "dhcp.request": ("address", "server"),
    "dhcp.offers_ignored": ("address", "text"),
    "dhcp.conflict": ("address", "text"),
    "dhcp.address_taken": ("address", ""),
    "render.failed": ("profile", "text"),
    "node.armed": ("profile", ""),
    "node.installing": ("profile", ""),
    "node.begin_failed": ("profile", "text"),
    "node.installed": ("profile", "text"),
    "node.failed": ("profile", "text"),
    "node.interrupted": ("profile", "text"),
    "node.disarmed": ("profile", ""),
    "node.refused": ("path", "reason"),
    "ftp.refused": ("reason", "peer"),
    "http.refused": ("reason", "peer"),
}
"""What a mark keeps of an event about a machine: the detail that says what, and the one that says more."""
_WIDE: Final[Mapping[str, tuple[str, str]]] = {
    "dhcp.exhausted": ("network", ""),
    "dhcp.other_server": ("server", "text"),
    "dhcp.no_server": ("interface", "text"),
    "dhcp.commit_failed": ("text", ""),
    "ftp.refused": ("reason", "peer"),
    "http.refused": ("reason", "peer"),
    "media.failed": ("name", "text"),
    "tftp.busy": ("text", ""),
    "tftp.dropped": ("text", ""),
}
"""What concerns all machines, or nobody that can be told."""
_VERBS: Final[Mapping[str, str]] = {
    "tftp.started": "started",
    "tftp.probed": "probed",
    "tftp.sent": "sent",
    "tftp.missing": "missing",
    "tftp.refused": "refused",
    "tftp.failed": "failed",
    "tftp.evicted": "failed",
    "tftp.cancelled": "cancelled",
    "tftp.gone": "gone",
    "tftp.replaced": "replaced",
    "tftp.stopped": "replaced",
    "ftp.sent": "sent",
    "ftp.failed": "failed",
    "http.sent": "sent",
    "http.missing": "missing",
    "http.failed": "failed",
}
KINDS: Final = frozenset({"dhcp.offer", "dhcp.ack", "dhcp.bootp", "dhcp.loader_warning", *_TOLD, *_WIDE, *_VERBS})
"""The kinds of events that stories are made of."""
NODE: Final = frozenset(kind for kind in _TOLD if kind.startswith("node."))


class Stories:
    """The stories of all machines, by MAC, or by address where no MAC is known. For the thread of the loop.

    Single events are taken at once. Those of batches wait until `read`, so that a storm costs little when it
    comes.
    """

    def __init__(self) -> None:
        self.lost = 0
        """Events that there was no room for until they were read."""
        self.forgotten = 0
        """Machines that made room for others."""
        self.wide: dict[str, Mark] = {}
        self.remarks: dict[tuple[str, int], str] = {}
        """Why machines get no loader, by the stage and the architecture of who asks."""
        self.nodes: dict[str, Story] = {}
        """What happened to nodes by their name: arming, installing."""
        self._all: dict[str, Story] = {}
        self._by_address: dict[str, str] = {}
        self._waiting = Backlog(WAITING)
        self._wake = asyncio.Event()
        self._known: Mapping[str, str] = {}
        self._paths: dict[str, tuple[str, str]] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._all)

    def configure(self, known: Mapping[str, str]) -> None:
        """Take what files are by their paths, without a slash at either end, as the configuration says it."""
        self._known = known
        self._paths.clear()

    # ---- what a hub wants of who listens

    def add(self, event: Event) -> int:
        self._take(event)
        return 0

    def put(self, batch: Batch) -> int:
        self.lost += self._waiting.put(batch)
        self._wake.set()
        return 0

    def close(self) -> None:
        self._wake.set()

    # ---- reading

    @property
    def waiting(self) -> int:
        """How many events wait to be read."""
        return len(self._waiting)

    def read(self, most: int) -> int:
        """Take so many of the events that wait; return how many that were."""
        count = min(most, len(self._waiting))
        for _ in range(count):
            self._take(self._waiting.pop())
        return count

    async def some(self) -> None:
        """Wait until events wait."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()

    def of(self, who: str) -> Story | None:
        """Return the story of a MAC, or of an address that no MAC is known for."""
        return self._all.get(who)

    def mac_at(self, address: str) -> str | None:
        """Return the MAC of who was last given an address."""
        return self._by_address.get(address)

    def newest(self, most: int) -> list[str]:
        """Return who was heard of last, at most so many, the newest first."""
        return list(islice(reversed(self._all), most))

    def everybody(self) -> Iterator[tuple[str, Story]]:
        """Yield all machines that were heard of, the one that was silent for longest first."""
        yield from self._all.items()

    def strangers(self, known: Collection[str], most: int = 1024) -> list[str]:
        """Return MACs that were heard of and that are none of these, the newest first."""
        found = (who for who in reversed(self._all) if ":" in who and who not in known)
        return list(islice(found, most))

    # ---- taking

    def _take(self, event: Event) -> None:
        kind, details = event.kind, event.details
        if verb := _VERBS.get(kind):
            self._file(verb, event)
        elif kind in ("dhcp.offer", "dhcp.ack", "dhcp.bootp"):
            self._addressed(kind, event)
        elif kind == "dhcp.loader_warning":
            if len(self.remarks) < PATHS:
                key = (_text(details.get("stage")), _whole(details.get("architecture")))
                self.remarks[key] = _text(details.get("text"))
        else:
            self._told(kind, event)

    def _told(self, kind: str, event: Event) -> None:
        if kind in NODE and event.node is not None:
            story = self.nodes.pop(event.node, None) or Story(event.time)
            self.nodes[event.node] = story
            if len(self.nodes) > ROOM:
                del self.nodes[next(iter(self.nodes))]
            self._keep(story, kind, _TOLD[kind], event)
        elif kind in _TOLD and (who := event.mac or _peer(event)):
            story = self._story(who, event)
            new = event.details.get("stage") == "rom" and event.details.get("reason") in SILENCES
            if kind == "dhcp.unanswered" and new and event.time - story.begun[0] > RETRIES:
                self._begin(story, event.time)
            self._keep(story, kind, _TOLD[kind], event)
        if kind in _WIDE:
            what, more = _WIDE[kind]
            mark = Mark(event.time, _text(event.details.get(what)), _text(event.details.get(more)))
            self.wide[kind] = mark
            if kind == "media.failed":
                self.wide[f"{kind} {mark.what}"] = mark
                if len(self.wide) > 1024:
                    self.wide.clear()

    def _keep(self, story: Story, kind: str, parts: tuple[str, str], event: Event) -> None:
        what, more = (_text(event.details.get(part)) for part in parts)
        before = story.marks.get(kind)
        count = before.number + 1 if before and before.time >= story.begun[0] else 1
        number = int(bool(event.details.get("conflict"))) if kind == "dhcp.decline" else count
        story.marks[kind] = Mark(event.time, what, more, number)

    def _addressed(self, kind: str, event: Event) -> None:
        details = event.details
        if event.mac is None:
            return
        story = self._story(event.mac, event)
        stage = _text(details.get("stage")) or "os"
        verb = "ack" if kind == "dhcp.bootp" else kind.partition(".")[2]
        key = self._key(verb, stage)
        if verb == "offer" and (stage == "rom" or (stage == "ipxe" and event.time - story.begun[0] > ANEW)):
            self._begin(story, event.time)
        loader, chain = details.get("loader"), _text(details.get("chain"))
        architecture = _whole(details.get("architecture"), -1)
        story.marks[key] = Mark(event.time, self._path(loader)[0] if loader else "", chain, architecture)
        address = details.get("address")
        if verb == "ack":
            story.marks.pop(self._key("offer", stage), None)
        if verb == "ack" and isinstance(address, str):
            story.address = address
            self._by_address[address] = event.mac

    def _begin(self, story: Story, time: float) -> None:
        if time > story.begun[0]:
            story.begun = (time, story.begun[0] or None)

    def _file(self, verb: str, event: Event) -> None:
        details = event.details
        who = event.mac or _peer(event)
        if who is None:
            return
        story = self._story(who, event)
        path, role = self._path(details.get("path"))
        if verb in ("sent", "started", "probed"):
            more, number = event.kind.partition(".")[0], _whole(details.get("bytes", details.get("size")))
        elif verb == "failed":
            more = (
                "evicted" if event.kind == "tftp.evicted" else _text(details.get("reason", details.get("outcome")))
            )
            number = _whole(details.get("bytes", details.get("octets")))
        elif verb in ("cancelled", "gone", "replaced"):
            more, number = _text(details.get("code")), _whole(details.get("octets"))
        else:
            more, number = _text(details.get("text", details.get("reason"))), 0
        if verb in ("started", "probed"):  # one for all: its end comes under the name of the file's role
            story.marks["started"] = Mark(event.time, path, role, number)
            return
        key = self._key(verb, role)
        if verb == "missing" or role == "package":
            before = story.marks.get(key)
            number = before.number + 1 if before and before.time >= story.begun[0] else 1
        story.marks[key] = Mark(event.time, path, more, number)

    def _story(self, who: str, event: Event) -> Story:
        story = self._all.pop(who, None)
        if story is None:
            story = Story(event.time)
            if len(self._all) >= ROOM:
                self._forget()
        elif event.time > story.heard:
            story.heard = event.time
        self._all[who] = story
        if event.node:
            story.node = event.node
        return story

    def _forget(self) -> None:
        who = next(iter(self._all))
        story = self._all.pop(who)
        if self._by_address.get(story.address) == who:
            del self._by_address[story.address]
        self.forgotten += 1

    def _path(self, path: object) -> tuple[str, str]:
        if not isinstance(path, str):
            return "", OTHER
        found = self._paths.get(path)
        if found is None:
            text = _text(path)
            found = text, role_of(text, self._known)
            if len(self._paths) >= PATHS:
                self._paths.clear()
            if len(path) <= TEXT:
                self._paths[path] = found
        return found

    def _key(self, verb: str, role: str) -> str:
        key = self._keys.get((verb, role))
        if key is None:
            key = self._keys[verb, role] = f"{verb} {role}"
        return key


def _peer(event: Event) -> str | None:
    peer = event.details.get("peer")
    return peer if isinstance(peer, str) else None


def _text(value: object) -> str:
    return "" if value is None else printable(str(value))[:TEXT]


def _whole(value: object, otherwise: int = 0) -> int:
    return value if isinstance(value, int) else otherwise

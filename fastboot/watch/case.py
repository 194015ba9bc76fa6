"""What is known of one machine when somebody asks why: its story, what it is, what the server is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from fastboot.model import Install, InstallState, Transfer
from fastboot.watch import paths
from fastboot.watch.stories import Mark, Story

Step = Literal[
    "heard", "address", "loader", "configuration", "kernel", "initrd", "installer", "media", "answers",
    "packages", "done",
]  # fmt: skip
STEPS: Final[Mapping[Step, str]] = {
    "heard": "asking for an address",
    "address": "an address",
    "loader": "its loader",
    "configuration": "the loader's configuration",
    "kernel": "the kernel",
    "initrd": "the initrd",
    "installer": "an address for what it booted",
    "media": "the installer's second stage",
    "answers": "the answers",
    "packages": "packages",
    "done": "done",
}
"""The steps of a machine in their order, in words."""
ORDER: Final[tuple[Step, ...]] = tuple(STEPS)
_BY_FILE: Final[Mapping[Step, tuple[str, ...]]] = {
    "loader": (paths.LOADER,),
    "configuration": (paths.CONFIGURATION,),
    "kernel": (paths.KERNEL,),
    "initrd": (paths.INITRD,),
    "media": (paths.MEDIA, paths.INDEX),
    "answers": (paths.ANSWERS,),
    "packages": (paths.PACKAGE,),
}
FAULTS: Final = ("missing", "refused", "failed", "cancelled", "gone")
VERBS: Final = ("started", "sent", "replaced", *FAULTS)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the configuration and the store say of a machine. `installs`, `answers`: its profile does."""

    macs: tuple[str, ...] = ()
    node: str | None = None
    address: str | None = None
    profile: str | None = None
    installs: bool = False
    answers: bool = False
    media: str | None = None
    install: Install | None = None
    transfers: Sequence[Transfer] = ()

    @property
    def name(self) -> str:
        return self.node or (self.macs[0] if self.macs else self.address or "?")


@dataclass(frozen=True, slots=True)
class Site:
    """What the server is. `since`: when it started, in seconds since the epoch. `ports`: by protocol, those that
    it has. `packages`: which system packages have a loader. `others`: other DHCP servers at work. `strangers`:
    MACs that were heard of and that no node has."""

    since: float
    dhcp: Literal["server", "proxy"] | None = "server"
    ports: Mapping[str, int] = field(default_factory=dict)
    data_ports: str = ""
    single_port: bool = False
    unknown: str = "menu"
    others: Sequence[str] = ()
    strangers: Callable[[], Collection[str]] = tuple
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One machine at one time, `now`, in seconds since the epoch; `begun`: its marks from then on are looked at.

    `over`: it has started anew since, so that nothing of what is looked at goes on.
    """

    machine: Machine
    site: Site
    story: Story
    install: Mapping[str, Mark]
    wide: Mapping[str, Mark]
    remarks: Mapping[tuple[str, int], str]
    now: float
    begun: float = 0.0
    over: float = math.inf

    @cached_property
    def marks(self) -> Mapping[str, Mark]:
        """The marks of this time round. Where it has started anew, what it was told by DHCP then stands for what
        it was told before, which it has replaced."""
        found = {}
        for key, mark in self.story.marks.items():
            if mark.time >= self.over and key.startswith(("ack ", "offer ", "dhcp.request")):
                found[key] = mark._replace(time=self.begun)
            elif self.begun <= mark.time < self.over:
                found[key] = mark
        return found

    def mark(self, key: str) -> Mark | None:
        """Return a mark of this time round."""
        return self.marks.get(key)

    def newest(self, *keys: str) -> Mark | None:
        return max((mark for key in keys if (mark := self.mark(key))), key=lambda mark: mark.time, default=None)

    def of(self, verb: str, *roles: str) -> Mark | None:
        """Return the newest mark of a verb, of files of any of these roles."""
        return self.newest(*(f"{verb} {role}" for role in roles))

    def asked(self, *roles: str) -> Mark | None:
        """Return the newest mark of any kind, of files of any of these roles."""
        keys = [f"{verb} {role}" for verb in VERBS for role in roles]
        started = self.mark("started")
        return self.newest(*keys, *(["started"] if started and started.more in roles else []))

    def lacks(self, verb: str, role: str) -> Mark | None:
        """Return a mark of something that went wrong with such files, where none was sent after it."""
        mark, sent = self.of(verb, role), self.of("sent", role)
        return None if mark is None or (sent and sent.time >= mark.time) else mark

    def addressed(self, *stages: str) -> Mark | None:
        return self.newest(*(f"ack {stage}" for stage in stages))

    @property
    def firmware(self) -> Mark | None:
        """What firmware, or the first loader that asked, was told: the newest that names a loader."""
        marks = [self.mark(f"{verb} {stage}") for verb in ("ack", "offer") for stage in ("rom", "ipxe")]
        named = [mark for mark in marks if mark and mark.what]
        return max(named, key=lambda mark: mark.time, default=None)

    @property
    def loader(self) -> str:
        """The boot file that it was told of last."""
        return self.firmware.what if self.firmware else ""

    def is_loader(self, mark: Mark | None) -> bool:
        return mark is not None and bool(self.loader) and same_path(mark.what, self.loader)

    @property
    def sent_loader(self) -> Mark | None:
        mark, other = self.of("sent", paths.LOADER), self.of("sent", paths.OTHER)
        return mark or (other if self.is_loader(other) else None)

    @property
    def files(self) -> Mark | None:
        """The newest mark of any file."""
        marks = (mark for key, mark in self.marks.items() if key.partition(" ")[0] in VERBS)
        return max(marks, key=lambda mark: mark.time, default=None)

    @property
    def last(self) -> Mark | None:
        """The newest mark."""
        return max(self.marks.values(), key=lambda mark: mark.time, default=None)

    def after(self, mark: Mark) -> bool:
        """Whether anything happened after a mark, beside what is still of the same file."""
        last = max(
            (
                each.time
                for key, each in self.marks.items()
                if not (each.what == mark.what and key.partition(" ")[0] in VERBS)
                and not key.endswith(f" {paths.PROBE}")
            ),
            default=0.0,
        )
        return last > mark.time

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of it; endless where it has started anew."""
        if self.over < math.inf:
            return math.inf
        if self.machine.transfers:
            return 0.0
        return self.now - self.last.time if self.last else self.now - self.site.since

    def since(self, mark: Mark) -> float:
        return math.inf if self.over < math.inf else self.now - mark.time

    @property
    def state(self) -> InstallState | None:
        return self.machine.install.state if self.machine.install else None

    # ---- steps

    def step(self, step: Step) -> Mark | None:
        """Return when a step was reached, None where it was not."""
        if step == "heard":
            return min(self.marks.values(), key=lambda mark: mark.time, default=None)
        if step == "address":
            return self.addressed("rom", "ipxe", "os", "installer") or self.mark("dhcp.request")
        if step == "loader":
            return self.sent_loader
        if step == "installer":
            system = self.of("sent", paths.KERNEL)
            mark = self.addressed("installer", "os")
            return mark if mark and system and mark.time > system.time else self.addressed("installer")
        if step == "done":
            return self.install.get("node.installed") if self.state is InstallState.INSTALLED else None
        return self.of("sent", *_BY_FILE[step])

    @property
    def reached(self) -> Step | None:
        """The furthest step that it reached; None where nothing was heard of it."""
        return next((step for step in reversed(ORDER) if self.step(step)), None)


def same_path(one: str, other: str) -> bool:
    """Whether two names, or URLs, end in the same file of the same directory."""
    ends = [[part for part in text.replace("\\\\", "/").split("/") if part][-2:] for text in (one, other)]
    return ends[0] == ends[1] or (ends[0][-1:] == ends[1][-1:] and min(map(len, ends)) < 2)

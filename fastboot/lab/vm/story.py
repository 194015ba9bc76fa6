"""What happens between power-on and the last digest, or the installed system: facts in, where the machine is out.

No clock, no I/O: whoever feeds it events of the server and lines of the console brings the time along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `limit` is how many seconds may pass without news of it: four times what it takes an emulated
    machine on a busy two-core host. `cause` is what most likely went wrong when it does not come."""

    name: str
    title: str
    limit: float
    cause: str


STEPS: Final = (
    Step(
        "discover",
        "DHCPDISCOVER in, DHCPOFFER out",
        90,
        "the firmware found no network card that it can boot from, its frames do not reach the server, or the"
        " server has no address for it",
    ),
    Step(
        "ack",
        "address acknowledged",
        60,
        "the offer did not reach the machine or did not please it: see dhcp.* in the server's log",
    ),
    Step(
        "loader",
        "boot loader sent",
        60,
        "the firmware did not take the boot file: a wrong name or server address in the reply, or TFTP is silent",
    ),
    Step(
        "kernel",
        "kernel sent",
        120,
        "the loader did not find its configuration, or that names another kernel: see tftp.missing in the log",
    ),
    Step("initrd", "initrd sent", 60, "the loader's configuration names no initrd, or the transfer stalled"),
    Step(
        "linux",
        "Linux is up",
        120,
        "the kernel did not start or did not find its initrd: see the end of the console",
    ),
    Step(
        "address",
        "second DHCP: address in Linux",
        90,
        "the kernel has no driver for the network card, or DHCP without boot options is not answered",
    ),
    Step("connected", "FTP session open", 60, "FTP is not served, or its greeting or login is refused"),
    Step(
        "first", "first file of the media", 60, "listing the media by EPSV and MLSD failed, or the tree is empty"
    ),
    Step("last", "last file of the media", 60, "a file could not be fetched, or data connections stall"),
    Step(
        "digests",
        "digests checked by the machine",
        120,
        "the machine stopped while it was reading what it fetched",
    ),
)
_ANSWERS: Final = Step(
    "answers",
    "answer file fetched, arming used up",
    60,
    "the command line does not name the answer file, or the server refuses it: see node.refused in the log",
)
_INSTALLED: Final = (
    Step("written", "disk written", 120, "the installer found no disk, or wrote something else to it"),
    Step("done", "installer reports done", 60, "its callback did not reach the server, or was refused"),
    Step(
        "again",
        "network boot after the reboot",
        120,
        "the machine did not reboot, or its firmware left the network",
    ),
    Step("disk", "installed system up, from the disk", 120, "the loader was not told to boot the local disk"),
)
_AT: Final = next(index for index, step in enumerate(STEPS) if step.name == "connected")
INSTALL_STEPS: Final = (*STEPS[:_AT], _ANSWERS, *STEPS[_AT:], *_INSTALLED)
"""The steps of an installation."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A step that came, at seconds since the epoch."""

    at: float
    detail: str


@dataclass(slots=True)
class Checked:
    """What the machine reports of the media: files whose digest is right, files in all, digest of the tree."""

    matched: int
    files: int
    digest: str


@dataclass(slots=True)
class Story:
    """`kernel` and `initrd` are their paths in the served namespace; `power_on` seconds since the epoch; `name`
    is the machine's where it installs."""

    kernel: str
    initrd: str
    power_on: float
    name: str = ""
    reached: dict[str, Reached] = field(default_factory=dict)
    news: float = 0
    """When something last got further, seconds since the epoch."""
    files: int = 0
    octets: int = 0
    """Of the media, as the machine counts while it fetches."""
    acks: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    """Octets sent by FTP, by path, as the server tells it."""
    tftp: dict[str, int] = field(default_factory=dict)
    http: dict[str, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    """How many events there were of each kind, and how many times kernel, initrd and answer file were sent."""
    faults: list[str] = field(default_factory=list)
    """What went wrong, in the machine's or the server's words."""
    checked: Checked | None = None
    secure: bool = False
    """The machine's kernel says that Secure Boot is on."""
    failed: bool = False

    def __post_init__(self) -> None:
        self.news = self.power_on

    @property
    def steps(self) -> tuple[Step, ...]:
        return INSTALL_STEPS if self.name else STEPS

    @property
    def current(self) -> Step | None:
        """The step that is waited for; None after the last."""
        positions = (index for index, step in enumerate(self.steps) if step.name in self.reached)
        position = max(positions, default=-1) + 1
        return self.steps[position] if position < len(self.steps) else None

    @property
    def done(self) -> bool:
        return self.failed or self.current is None

    def timeline(self) -> Iterator[tuple[Step, Reached, float]]:
        """Yield what was reached, each with the seconds it took since the one before."""
        before = self.power_on
        for step in self.steps:
            if reached := self.reached.get(step.name):
                yield step, reached, max(0.0, reached.at - before)
                before = max(before, reached.at)

    def overdue(self, now: float) -> Step | None:
        """Return the step whose limit has passed, if one has."""
        step = self.current
        return step if step and not self.failed and now - self.news > step.limit else None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take an event of the server, as its control socket tells it."""
        kind, details, at = event["kind"], event.get("details", {}), float(event["time"])
        self.kinds[kind] += 1
        if kind == "dhcp.offer":
            self._reach("again" if "done" in self.reached else "discover", at, str(event.get("mac", "")))
        elif kind == "node.installing":
            self._reach("answers", at, f"{event.get('node')} is installing")
        elif kind == "node.installed":
            self._reach("done", at, f"{event.get('node')} is installed")
        elif kind in ("dhcp.ack", "dhcp.request"):  # from the server itself, or heard on its way to another
            self.acks += 1
            self._reach("ack", at, str(details.get("address", "")))
        elif kind == "tftp.sent":
            self._boot_file_sent(at, self.tftp, str(details["path"]), int(details["octets"]))
        elif kind == "http.sent":
            self._boot_file_sent(at, self.http, str(details["path"]), int(details["bytes"]))
        elif kind == "ftp.session":
            self._reach("connected", at, str(details.get("peer", "")))
        elif kind == "ftp.sent":
            self.sent[str(details["path"])] = int(details["bytes"])
            self._reach("first", at, str(details["path"]))
            self.news = max(self.news, at)
        elif kind in ("ftp.failed", "tftp.failed"):
            self.faults.append(f"{kind} {details.get('path')}: {details.get('reason') or details.get('outcome')}")

    def read(self, at: float, line: str) -> None:
        """Take a line of the machine's console; those of our init begin with "@lab"."""
        _, marker, rest = line.partition("@lab ")
        if not marker:
            return
        word, _, rest = rest.strip().partition(" ")
        if word in ("linux", "address", "connected"):
            self._reach(word, at, rest)
        elif word == "secure":
            self.secure = True
        elif word in ("fetching", "fetched"):
            self.files, self.octets = (int(number) for number in rest.split())
            self._reach("first" if word == "fetching" else "last", at, f"{self.files} files")
            self.news = max(self.news, at)
        elif word == "digests":
            matched, files, digest = rest.split()
            self.checked = Checked(int(matched), int(files), digest)
            self._reach("digests", at, f"{matched} of {files} files right")
        elif word == "written":
            self._reach("written", at, f"{_amount(int(rest))} on the disk, read back and compared")
        elif word == "disk":
            self._reach("disk", at, f"it says that it is {rest.strip()}")
            if rest.strip() != self.name:
                self.faults.append(f"the installed system says that it is {rest.strip()!r}")
        elif word == "wrong":
            self.faults.append(f"wrong digest on the machine: {rest}")
        elif word == "failed":
            self.faults.append(f"the machine says: {rest}")
            self.failed = True

    def _boot_file_sent(self, at: float, sent: dict[str, int], path: str, octets: int) -> None:
        path = path.strip("/")
        sent[path] = octets
        names = {self.kernel.strip("/"): "kernel", self.initrd.strip("/"): "initrd"}
        if path in names or path.startswith("node/"):
            self.kinds[path] += 1
        if not path.startswith("node/"):
            self._reach(names.get(path, "loader"), at, f"{path}, {_amount(octets)}")

    def _reach(self, name: str, at: float, detail: str) -> None:
        if name not in self.reached:
            self.reached[name] = Reached(at, detail)
            self.news = max(self.news, at)


def _amount(octets: int) -> str:
    return f"{octets / 1e6:.1f} MB" if octets >= 100_000 else f"{octets / 1e3:.1f} kB"

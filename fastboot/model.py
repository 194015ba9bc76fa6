"""The vocabulary. Frozen values without behaviour; this module imports nothing of ours.

Addresses are `ipaddress.IPv4Address`. A MAC is a string of six lower-case octets joined by colons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, Literal


class FastbootError(Exception):
    """Any failure that fastboot names; its text is meant for the person who runs it."""


class ConfigError(FastbootError):
    """A configuration that can not be served; names the key path and says what would be right."""


@dataclass(frozen=True, slots=True)
class Option:
    """A DHCP option, its value as sent. `always`: also to a client that does not ask for it (option 55)."""

    code: int
    value: bytes
    always: bool = False


Transport = Literal["auto", "tftp", "http"]
"""How loaders fetch kernels and initrds: "auto" by HTTP where they can, else by TFTP."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of the answer to some machines; None and empty say nothing.

    `loaders` are boot files by class of firmware ("uefi-x64", "ipxe", ...), "*" for any. Lease seconds: 60 to
    0xFFFFFFFF (infinite). "{server}" in a boot file or option is the address of the machine's file server.
    """

    loaders: Mapping[str, str] = field(default_factory=dict)
    next_server: IPv4Address | None = None
    lease: int | None = None
    options: tuple[Option, ...] = ()
    transport: Transport | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that the configuration names, known by its MAC addresses, or by the switch port that it is behind:
    what a relay says of it in option 82, `circuit_id`, `remote_id` or both together (RFC 3046 section 3)."""

    name: str
    macs: tuple[str, ...]
    address: IPv4Address | None = None
    group: str | None = None
    profile: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = Settings()
    circuit_id: bytes = b""
    remote_id: bytes = b""


AnswerFormat = Literal["kickstart", "preseed", "autoinstall", "autoyast"]
"""The languages of answer files."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What to run on a machine.

    `kernel` and `initrd` are paths in the one namespace, or relative to the profile's media. Without a kernel,
    those recognised in the media come first, and what its installer is told; `initrd` and `arguments` follow.
    `installs` is False for live, diskless and rescue systems: these boot at every power-on; a profile
    that installs boots only on a machine that was armed. `transport` is how the installer fetches its media; None:
    by FTP where it can and there is FTP, else by HTTP. `answers` is the template of what its installer asks for
    before it writes to the disk; without one, its boot configuration is the last that we know of.
    `format` is their language, where that does not follow from the medium.
    """

    name: str
    kernel: str | None = None
    initrd: tuple[str, ...] = ()
    arguments: str = ""
    media: str | None = None
    transport: Literal["ftp", "http"] | None = None
    installs: bool = True
    answers: Path | None = None
    format: AnswerFormat | None = None


class InstallState(StrEnum):
    """How far the installation of a machine is.

    ARMED: it may install, once. INSTALLING: what makes an installer write to the disk may have left us.
    """

    ARMED = "armed"
    INSTALLING = "installing"
    INSTALLED = "installed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Install:
    """One arming of a node, and what became of it; a node without one was never armed, or was disarmed.

    `profile` counts for the node, instead of its own, while it is armed or installing. `token` is a secret of 32
    hex digits, new for each arming: whoever knows it is taken for the node's installer. `since` is when `state`
    last changed, in seconds since the epoch. `text` is what the installer said, or why.
    """

    node: str
    profile: str
    state: InstallState
    token: str = field(repr=False)
    since: float
    text: str = ""


class Stage(StrEnum):
    """Which program of a boot chain is asking."""

    ROM = "rom"
    IPXE = "ipxe"
    INSTALLER = "installer"
    OS = "os"


class Scope(Enum):
    """For whom a Plan holds, hence when `decide` is asked again."""

    CLASS = "class"
    """Every machine of the same subnet and relay that sends the same classes and is no node."""
    MACHINE = "machine"
    """This machine, while it sends the same classes and is behind the same port."""
    ONCE = "once"
    """This request only: ask again for the next."""


@dataclass(frozen=True, slots=True)
class BootRequest:
    """What a firmware, loader or installer asks by DHCP.

    `architecture` is the first code of option 93 (RFC 4578 section 2.1), or the one named in the text of
    option 60 where 93 is missing or malformed; None where neither tells. `vendor_class` and `user_class` are
    options 60 and 77 as sent. `ipxe_features` are the sub-options of option 175 that iPXE lists. `machine_id` is
    option 97 as sent: a type, 0, and 16 octets of GUID (RFC 4578 section 2.3). `relay` is the address of the relay
    that sent it on; `circuit_id` and `remote_id` are what option 82 says, where it is believed (RFC 3046 section
    3). A plan that depends on one of `machine_id`, `circuit_id` and `remote_id` is for one machine.
    """

    mac: str
    interface: str
    network: IPv4Network
    server: IPv4Address
    stage: Stage
    architecture: int | None = None
    vendor_class: bytes = b""
    user_class: bytes = b""
    ipxe_features: frozenset[int] = frozenset()
    node: Node | None = None
    machine_id: bytes = b""
    relay: IPv4Address | None = None
    circuit_id: bytes = b""
    remote_id: bytes = b""


class Ignore(Enum):
    """The type of `IGNORE`."""

    IGNORE = "ignore"


IGNORE: Final = Ignore.IGNORE
"""The verdict that leaves a request without any answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a BootRequest.

    `address` None means one from the subnet's pools. `loader` is the boot file: a path in the one namespace
    (at most 127 octets, RFC 2131 section 2) or a URL; None gives an address only. `next_server` None means the
    address of the receiving interface. `options` are sent as given, in this order, beside those that the subnet
    and the protocol require; those of `asked` only to a client that asks for them or does not say what it wants
    (option 55). An option given here replaces one of the same code. Lease seconds: 60 to 0xFFFFFFFF (infinite);
    None means the subnet's. `remark` says why a machine gets less than it asked for; it is told once. `chain` says
    in events what is fetched from the boot file on, and by which protocol. `transport` is how the
    machine's loader is told to fetch the kernel, None as `boot.transport` says; one with it is for one machine.
    """

    loader: str | None = None
    address: IPv4Address | None = None
    next_server: IPv4Address | None = None
    lease: int | None = None
    options: tuple[tuple[int, bytes], ...] = ()
    scope: Scope = Scope.CLASS
    asked: tuple[tuple[int, bytes], ...] = ()
    remark: str = ""
    chain: str = ""
    transport: Transport | None = None


Verdict = Plan | Ignore | None
"""What a rule returns: a plan, IGNORE, or None for "ask the next rule"."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks for a file: its address, the address of ours that it asked, and by which protocol.

    `mac` is known where the DHCP service of this process gave the address. `peeks`: it gets no byte of the file,
    only what there is to know about it (HEAD, SIZE).
    """

    address: IPv4Address
    server: IPv4Address
    protocol: Literal["tftp", "ftp", "http"]
    mac: str | None = None
    peeks: bool = False


class Reason(StrEnum):
    """Why a path was refused. BUSY: not now, who asks again in some seconds may get it. CROWDED: the
    client's address has all that one may have."""

    MISSING = "missing"
    DIRECTORY = "directory"
    OUTSIDE = "outside"
    FORBIDDEN = "forbidden"
    SPECIAL = "special"
    BROKEN = "broken"
    BUSY = "busy"
    CROWDED = "crowded"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a path that gives no bytes. `text` is sent to the client: never a path of ours."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file on its way to a client, as of about now. `bytes` of `size` have arrived (TFTP) or left (FTP), counted
    from the start of the file: a resumed transfer is ahead."""

    protocol: Literal["tftp", "ftp", "http"]
    peer: IPv4Address
    path: str
    bytes: int
    size: int
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """An address bound to a client. Times are seconds since the epoch; an infinite lease ends at `inf`.

    `offered`: held for a client that has not asked for it yet; never on disk. `relay`, `circuit_id` and
    `remote_id` say where the client was when it last asked through a relay.
    """

    address: IPv4Address
    mac: str
    state: Literal["bound", "released", "declined", "offered"]
    starts: float
    expires: float
    hostname: str = ""
    client_id: bytes = b""
    relay: IPv4Address | None = None
    circuit_id: bytes = b""
    remote_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that happened. `time` is seconds since the epoch; `kind` is a dotted name such as `dhcp.ack`."""

    time: float
    kind: str
    mac: str | None = None
    node: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)

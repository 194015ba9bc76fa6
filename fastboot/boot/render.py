"""Configuration files of PXELINUX, GRUB and iPXE, rendered for the machine that asks, when it asks."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import quote as percent

from jinja2 import TemplateError, UndefinedError

from fastboot.boot.answer_faults import answer_fault
from fastboot.boot.answers import CALLBACKS, FORMATS, SAMPLE, Answers, Format
from fastboot.boot.gate import Gate
from fastboot.boot.languages import NAMES, VENDORS, RenderError, grub_url, load_templates, printable, quote
from fastboot.boot.profile_templates import ProfileTemplates
from fastboot.boot.sandbox import Sandbox
from fastboot.boot.shelf import Medium
from fastboot.model import (
    Client,
    ConfigError,
    Event,
    Install,
    InstallState,
    Node,
    Profile,
    Transport,
)
from fastboot.wording import moment

Parts = tuple[str, ...]

MENU_SECONDS: Final = 10
"""How long a menu waits before it boots the local disk."""
RETRY_SECONDS: Final = 10
"""How long a machine whose kernel did not come shows why, before it tries again."""
MAX_ARGUMENTS: Final = 2047
"""Octets of a kernel command line on x86 (COMMAND_LINE_SIZE, less its NUL)."""
WELL_KNOWN: Final[Mapping[str, int]] = {"ftp": 21, "http": 80}
"""Ports that a URL need not name."""
RESERVED: Final = ("local", "local-next", "local-hd0", "failed")
"""Labels of our own in the rendered files, which no profile may bear."""
REASONS: Final[Mapping[InstallState, str]] = {
    InstallState.INSTALLING: "profile {install.profile} is being installed since {since} and the machine starts"
    " again; where that did not end well: fastboot disarm {install.node}, then fastboot arm {install.node}",
    InstallState.INSTALLED: "profile {install.profile} was installed at {since}",
    InstallState.FAILED: "installing profile {install.profile} failed at {since}: {install.text:.120}",
}
"""Why a machine that was armed boots its local disk."""

# Those for documentation: RFC 5737, RFC 7042 section 2.1.2.
_SERVER: Final = IPv4Address("192.0.2.1")
_STRANGER: Final = "00:00:5e:00:53:00"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What a loader is told to boot: absolute paths in the one namespace, or URLs; `arguments` is one line."""

    name: str
    kernel: str
    initrd: tuple[str, ...]
    arguments: str


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for a file, and in which language: `mac` is the one in its name, else that of the client."""

    language: str
    node: Node | None
    mac: str | None
    client: Client

    @property
    def whom(self) -> str:
        return f"fastboot for {self.node.name}" if self.node else "fastboot for a machine that no node names"


class Renderer:
    """Renders the configuration of a machine by its node and profile; what it can not identify gets the default.

    An unknown machine, or a node without a profile, gets a file only under the last name of a probe sequence, so
    that every file of the administrator's comes first. A profile that installs is booted by a machine that is
    armed with it, and `gate` says how often.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        profiles: Sequence[Profile],
        unknown: Literal["menu", "local", "ignore"] = "menu",
        ports: Mapping[str, int] = MappingProxyType({}),
        node_of: Callable[[str], Node | None] = lambda mac: None,
        medium_of: Callable[[str], Medium | None] = lambda name: None,
        transport_of: Callable[[Node | None, str | None], Transport] = lambda node, mac: "auto",
        emit: Callable[[Event], None] = lambda event: None,
        gate: Gate | None = None,
    ) -> None:
        """`ports` are those of FTP and HTTP, by the name of their scheme, where these are served.
        `node_of` tells whose a MAC is that no node names, `medium_of` what is known of a medium, `transport_of`
        how the loader of a node, or else of a MAC, is to fetch its kernel. `emit` is told of what can not be
        rendered (`render.failed`). `gate` knows which nodes are armed; without it none is.

        Raises ConfigError for a profile that does not exist, or whose arguments are no template.
        """
        self._profiles = {profile.name: profile for profile in profiles}
        self._by_mac, self._node_of = {mac: node for node in nodes for mac in node.macs}, node_of
        self._by_address = {node.address: node for node in nodes if node.address}
        self._nodes, self._unknown = nodes, unknown
        self._served = [scheme for scheme in ("ftp", "http") if scheme in ports]
        self._ports = {
            scheme: "" if port == WELL_KNOWN[scheme] else f":{port}" for scheme, port in ports.items() if port
        }
        self._medium_of, self._transport_of, self._gate = medium_of, transport_of, gate or Gate()
        for node in nodes:
            if node.profile is not None and node.profile not in self._profiles:
                known = ", ".join(self._profiles) or "none"
                raise ConfigError(f"nodes {node.name}: profile: there is no {node.profile!r}; there are: {known}")
        self._templates = load_templates()
        self.failed: Counter[str] = Counter()
        """How many times machines were not given a profile, because it could not be rendered."""
        self._emit, sandbox = emit, Sandbox()
        self._arguments = ProfileTemplates("arguments", lambda error: str(error) or type(error).__name__)
        self._answers = Answers(profiles)
        for profile in profiles:
            if profile.name in RESERVED:
                raise ConfigError(f"profiles {profile.name}: name: means the local disk in menus; take another")
            try:
                template = sandbox.from_string(" ".join(profile.arguments.split("\n")))
            except TemplateError as error:
                raise ConfigError(f"profiles {profile.name}: arguments: {error}") from error
            self._arguments.add(profile.name, sandbox, template)

    @property
    def templates(self) -> Mapping[str, Mapping[str, str]]:
        """The texts of answer files, by profile and file, as they were read."""
        return self._answers.texts

    def render(self, parts: Parts, client: Client) -> bytes | Awaitable[bytes] | None:
        """Return the file that `parts` names for this client, or None where it names none that is rendered.

        It waits for the disk where it uses an arming up, which is never so for a client that peeks.
        """
        if parts[0] == "media":
            return None
        tail = "/".join(parts[-3:])
        for language, pattern in NAMES.items():
            if match := pattern.fullmatch(tail):
                mac = match["mac"].replace("-", ":").lower() if match["mac"] else None
                node = self._identify(mac, client)
                if mac is not None and (node is None or node.profile is None):
                    return None
                return self._render(Asking(language, node, mac or client.mac, client))
        return None

    def answer(self, file: str, install: Install, node: Node, client: Client) -> tuple[bytes, bool] | None:
        """Return a file of the directory of a machine that installs, and whether it is the answer file; None where
        it names none. Raises RenderError."""
        profile = self._profiles.get(install.profile)
        if profile is None or profile.answers is None:
            return None
        format_, _ = self._format(profile, self._medium_of(profile.media or ""))
        if file == format_.file:
            try:
                mac = client.mac or next(iter(node.macs), None)
                context = self._context(profile, node, mac, client, install.token)
                return self._answers.render(profile.name, context).encode(), True
            except RenderError as error:
                fault = RenderError(str(error).replace(install.token, SAMPLE))
                self._fail(profile, fault, node, client.mac)
                raise fault from error
        if file not in format_.beside:
            return None
        # What cloud-init has seen before it does not do again, so each arming is another instance.
        instance = hashlib.sha256(install.token.encode()).hexdigest()[:16]
        texts = {"meta-data": f"instance-id: {instance}\nlocal-hostname: {json.dumps(node.name)}\n"}
        return texts.get(file, "").encode(), False

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield what every profile boots from here: a key for messages, and the path in the namespace."""
        for profile in self._profiles.values():
            with suppress(RenderError):
                kernel, initrd = self._files(profile)
                for key, path in (("kernel", kernel), *(("initrd", path) for path in initrd)):
                    if "://" not in path:
                        yield f"profiles {profile.name}: {key}", path

    def kernels(self, profile: str | None) -> list[str]:
        """Return the kernels that a machine may be told to boot, as paths or URLs: that of its profile, or those
        of the menu."""
        own = self._profiles.get(profile or "")
        menu = [each for each in self._profiles.values() if not each.installs and self._unknown == "menu"]
        found = []
        for each in [own] if own else menu:
            with suppress(RenderError):
                found.append(self._files(each)[0])
        return found

    def check(self) -> list[str]:
        """Return what can not be rendered, in words for the administrator."""
        complaints = []
        for profile in self._profiles.values():
            client = Client(_SERVER, _SERVER, "tftp", _STRANGER)
            try:
                self._entry(profile, None, _STRANGER, client, SAMPLE)
                self._check_answers(profile, None, client)
            except RenderError as error:
                if not isinstance(error.__cause__, UndefinedError):  # that one is for nodes, which are asked below
                    complaints.append(f"profiles {str(error).removeprefix('profile ')}")
            complaints += self._transport_faults(profile)
        broken = {complaint.split(":")[0].removeprefix("profiles ") for complaint in complaints}
        for node in self._nodes:
            profile_of_node = self._profiles.get(node.profile or "")
            if profile_of_node is None or profile_of_node.name in broken:
                continue
            mac = next(iter(node.macs), _STRANGER)
            client = Client(node.address or _SERVER, _SERVER, "tftp", mac)
            try:
                entry = self._entry(profile_of_node, node, mac, client, SAMPLE)
                for language in NAMES:
                    self._fill(Asking(language, node, mac, client), entry.name, [entry], "check")
                self._check_answers(profile_of_node, node, client)
            except RenderError as error:
                complaints.append(f"nodes {node.name}: {error}")
        return complaints

    def _check_answers(self, profile: Profile, node: Node | None, client: Client) -> None:
        """Raises RenderError where an answer file can not be rendered, or no installer would read it."""
        if profile.answers is None:
            return
        medium = self._medium_of(profile.media or "")
        format_, _ = self._format(profile, medium)
        text = self._answers.render(profile.name, self._context(profile, node, client.mac, client, SAMPLE))
        if fault := answer_fault(format_, text, medium.system if medium else None):
            raise RenderError(f"profile {profile.name}: answers: {fault}")

    def _transport_faults(self, profile: Profile) -> Iterator[str]:
        medium = self._medium_of(profile.media or "")
        if medium is None or medium.url or medium.system is None:
            return
        system, scheme = medium.system, self._transport(profile, medium)
        if system.arguments and scheme not in system.arguments:
            able = next(iter(system.arguments))
            remedy = f'write transport = "{able}"' if able in self._served else f"add [{able}]"
            yield (
                f"profiles {profile.name}: transport: the installer of {system.name} can not fetch by {scheme};"
                f" {remedy}"
            )

    def _identify(self, mac: str | None, client: Client) -> Node | None:
        """Return whose file is asked for, with the profile that counts now."""
        found = (node for each in (mac, client.mac) if each and (node := self._owner(each)))
        node = next(found, None) or self._by_address.get(client.address)
        return self._gate.effective(node) if node else None

    def _owner(self, mac: str) -> Node | None:
        return self._by_mac.get(mac) or self._node_of(mac)

    def _render(self, asking: Asking) -> bytes | Awaitable[bytes]:
        node = asking.node
        if node and node.profile:
            profile = self._profiles.get(node.profile)
            if profile is None:  # armed with it, before a reload
                return self._local(asking, f"there is no profile {node.profile} any more")
            return self._install(asking, node, profile) if profile.installs else self._boot(asking, profile)
        menu = self._menu(node, asking.mac, asking.client) if self._unknown == "menu" else []
        what = "a menu" if self._unknown == "menu" else "local disk"
        try:
            return self._fill(asking, "local", menu, f"{asking.whom}: {what}")
        except RenderError as error:
            return self._local(asking, str(error))

    def _install(self, asking: Asking, node: Node, profile: Profile) -> bytes | Awaitable[bytes]:
        """Return the configuration of an installer where the machine may have it, else that of the local disk."""
        install, client = self._gate.of(node), asking.client
        if install is None:
            return self._local(asking, f"profile {profile.name} installs and the machine is not armed")
        if install.state is InstallState.ARMED:
            if client.mac and not self._is_of(client.mac, node):
                return self._local(asking, f"{client.mac} asks, which is another machine")
            if profile.answers or client.peeks:
                return self._boot(asking, profile)
            return self._begin(asking, node, profile, install)
        if install.state is InstallState.INSTALLING:
            if not profile.answers and self._gate.is_open(node):
                return self._boot(asking, profile)
            if not client.peeks:
                self._gate.interrupted(install)
        return self._local(asking, REASONS[install.state].format(install=install, since=moment(install.since)))

    async def _begin(self, asking: Asking, node: Node, profile: Profile, install: Install) -> bytes:
        """Use an arming up, then return the configuration of the installer."""
        try:
            text = self._fill_for(asking, profile)
        except RenderError as error:
            self._fail(profile, error, node, asking.mac)
            return self._local(asking, str(error))
        if await self._gate.begin(install):
            return text
        if self._gate.of(node) == install:
            return self._local(asking, "that it is being installed could not be written to the server's disk")
        again = self._render(replace(asking, node=self._gate.effective(node)))
        return again if isinstance(again, bytes) else await again

    def _is_of(self, mac: str, node: Node) -> bool:
        owner = self._owner(mac)
        return owner is not None and owner.name == node.name

    def _boot(self, asking: Asking, profile: Profile) -> bytes:
        try:
            return self._fill_for(asking, profile)
        except RenderError as error:
            # A machine that waits at a prompt for ever helps nobody: the local disk, and the reason in the file.
            self._fail(profile, error, asking.node, asking.mac)
            return self._local(asking, str(error))

    def _fill_for(self, asking: Asking, profile: Profile) -> bytes:
        install = self._gate.of(asking.node) if profile.answers and asking.node else None
        token = install.token if install else SAMPLE
        try:
            entry = self._entry(profile, asking.node, asking.mac, asking.client, token)
            return self._fill(asking, profile.name, [entry], f"{asking.whom}: profile {profile.name}")
        except RenderError as error:  # it may quote what it could not write
            raise RenderError(str(error).replace(token, SAMPLE)) from error

    def _local(self, asking: Asking, why: str) -> bytes:
        return self._fill(asking, "local", [], f"{asking.whom}: local disk, because {why}")

    def _files(self, profile: Profile) -> tuple[str, tuple[str, ...]]:
        """Return kernel and initrds of a profile as `_place` does: those that it names, or else those of
        its medium, and then the initrds that it names.

        Raises RenderError where there is no kernel.
        """
        own = tuple(self._place(profile, path) for path in profile.initrd)
        if profile.kernel is not None:
            return self._place(profile, profile.kernel), own
        medium = self._medium_of(profile.media or "")
        system = medium.system if medium else None
        if system is None or system.kernel is None:
            reasons = [text for text in system.missing if text.startswith("kernel")] if system else []
            why = "; ".join(reasons) or f"medium {profile.media} is not recognised, so name one"
            raise RenderError(f"profile {profile.name}: kernel: not given: {why}")
        initrd = (self._place(profile, system.initrd),) if system.initrd else ()
        return self._place(profile, system.kernel), (*initrd, *own)

    def _place(self, profile: Profile, path: str) -> str:
        """Return a path of a profile (kernel, initrd) as an absolute one in the namespace, or as a URL."""
        if path.startswith("/") or "://" in path:
            return path
        medium = self._medium_of(profile.media or "")
        if medium and medium.url:
            return f"{medium.url}/{percent(path)}"
        return f"/media/{profile.media}/{path}" if profile.media else f"/{path}"

    def _menu(self, node: Node | None, mac: str | None, client: Client) -> list[BootEntry]:
        entries = []
        for profile in self._profiles.values():
            if not profile.installs:
                try:
                    entries.append(self._entry(profile, node, mac, client))
                except RenderError as error:
                    if not isinstance(error.__cause__, UndefinedError):  # that one needs a node, and this is none
                        self._fail(profile, error, node, mac)
        return entries

    def _transport(self, profile: Profile, medium: Medium | None) -> str:
        """Return how the installer of a profile fetches its medium."""
        if profile.transport:
            return profile.transport
        system = medium.system if medium else None
        usable = [scheme for scheme in self._served if system is None or scheme in system.arguments]
        return (usable or self._served or ["ftp"])[0]

    def _entry(
        self, profile: Profile, node: Node | None, mac: str | None, client: Client, token: str = SAMPLE
    ) -> BootEntry:
        context = self._context(profile, node, mac, client, token)
        kernel, initrd = self._files(profile)
        arguments = self._arguments.render(profile.name, context).strip()
        if profile.kernel is None:
            arguments = f"{context.get('installer', '')} {arguments}".strip()
        if len(arguments.encode(errors="replace")) > MAX_ARGUMENTS:
            raise RenderError(f"profile {profile.name}: arguments: longer than the {MAX_ARGUMENTS} octets of x86")
        if profile.answers and f"{context['answers']}/" not in arguments:
            # It would ask at its console, and nothing would end its arming.
            text = "do not name the answer file; write {{ installer }}, or {{ answers }}/ and its name, in them"
            raise RenderError(f"profile {profile.name}: arguments: {text}")
        return BootEntry(profile.name, kernel, initrd, arguments)

    def _context(
        self, profile: Profile, node: Node | None, mac: str | None, client: Client, token: str
    ) -> dict[str, Any]:
        """Return what templates know. Raises RenderError where answers can not be fetched."""
        context: dict[str, Any] = {
            "profile": profile,
            "server": str(client.server),
            "address": str(client.address),
        }
        if node is not None:
            context["node"] = node
        if mac is not None:
            context["mac"] = mac
        medium = self._medium_of(profile.media or "")
        if profile.media is not None:
            here = f"{self._url(self._transport(profile, medium), client)}/media/{percent(profile.media)}"
            context["media"] = (medium and medium.url) or here
            if medium and medium.system and (told := medium.system.told(context["media"])):
                context["installer"] = told
        if profile.answers:
            context |= self._of_answers(profile, medium, client, token, context.get("installer", ""))
        return context

    def _of_answers(
        self, profile: Profile, medium: Medium | None, client: Client, token: str, installer: str
    ) -> dict[str, str]:
        format_, told = self._format(profile, medium)
        scheme = next((each for each in ("http", "ftp") if each in self._served and each in format_.schemes), None)
        if scheme is None:
            able = " or ".join(f"[{each}]" for each in format_.schemes)
            raise RenderError(f"profile {profile.name}: answers: nothing serves {format_.file}; add {able}")
        place = f"/node/{token}"
        answers = f"{self._url(scheme, client)}{place}"
        if format_ is FORMATS["preseed"]:
            installer = installer.replace("priority=high ", "")  # of two the installer may take either
        facts = {"answers": answers, "installer": f"{installer} {told.replace('{answers}', answers)}".strip()}
        if "http" in self._served:
            facts |= {name: f"{self._url('http', client)}{place}/{name}" for name in CALLBACKS}
        return facts

    def _format(self, profile: Profile, medium: Medium | None) -> tuple[Format, str]:
        """Return the language of a profile's answers, and what its installer is told of them.

        Raises RenderError."""
        system = medium.system if medium else None
        name = profile.format or (system.format if system else None)
        if name is None:
            known = ", ".join(f'"{each}"' for each in FORMATS)
            text = f"the medium does not tell what its installer reads, so write one of {known}"
            raise RenderError(f"profile {profile.name}: format: {text}")
        own = system.unattended if system and system.format == name else ""
        return FORMATS[name], own or FORMATS[name].told

    def _url(self, scheme: str, client: Client) -> str:
        """Return the URL of the one namespace as a client reaches it."""
        return f"{scheme}://{client.server}{self._ports.get(scheme, '')}"

    def _fail(self, profile: Profile, error: RenderError, node: Node | None, mac: str | None) -> None:
        self.failed[profile.name] += 1
        name = node.name if node else None
        self._emit(Event(time.time(), "render.failed", mac, name, {"profile": profile.name, "text": str(error)}))

    def _fill(self, asking: Asking, default: str, entries: list[BootEntry], note: str) -> bytes:
        """Return a loader's configuration. Raises RenderError for what can not be written in its language."""
        mac, client = asking.mac, asking.client
        # A loader fetches the rest as it fetched this file, unless it is told how: what came by HTTP goes on so.
        told = self._transport_of(asking.node, mac)
        protocol: str = client.protocol if told == "auto" else told
        server = f"{client.server}{self._ports.get(protocol, '')}"
        own = f"-01-{mac.replace(':', '-')}" if mac and default != "local" else ""
        by_http = (
            f"(http,{client.server}{self._ports['http']})/grub/grub.cfg{own}" if "http" in self._ports else ""
        )

        def url(path: str) -> str:
            return path if "://" in path else f"{protocol}://{server}{percent(path)}"

        text = self._templates[asking.language].render(
            note=printable(note),
            default=default,
            entries=entries,
            menu=default == "local" and bool(entries),
            timeout=MENU_SECONDS,
            retry=RETRY_SECONDS,
            vendors=VENDORS,
            mac=mac,
            url=url,
            grub=lambda path: grub_url(path) if "://" in path else f"({protocol},{server}){quote(path)}",
            by_http=by_http if protocol != "http" and told == "auto" else "",
            # By TFTP, `::` keeps a name from being joined to the directory of the loader.
            pxelinux=lambda path: f"::{path}" if protocol == "tftp" and "://" not in path else url(path),
        )
        return text.encode()

"""What a machine is answered: by its class, and by what the configuration says for it, the specific before all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from itertools import product
from typing import Final
from urllib.parse import urlsplit

from fastboot.boot.chain import Chain, Chains, path_here
from fastboot.boot.firmware import (
    ALONE,
    ANSWERS,
    ARCHITECTURES,
    DEFAULT_URL,
    HTTP_CLIENT,
    IPXE,
    IPXE_OPTIONS,
    IPXE_SCHEMES,
    NO_PXEDHCP,
    ONIE,
    PATH_PREFIX,
    PXE_CLIENT,
    SCRIPT,
    SERVER,
    SKIP_DISCOVERY,
    VENDOR_CLASS,
    VENDOR_OPTIONS,
    class_of,
    user_classes,
)
from fastboot.boot.loaders import CHOICES, COMMON, Loaders
from fastboot.boot.program import Kind
from fastboot.boot.shims import Shims
from fastboot.config import ClassTable, Config
from fastboot.config.faults import unknown
from fastboot.config.options import overlay
from fastboot.model import (
    IGNORE,
    BootRequest,
    ConfigError,
    Node,
    Option,
    Plan,
    Scope,
    Settings,
    Stage,
    Transport,
    Verdict,
)

ANY: Final = "*"
"""Under `loader` of a node or group: for firmware of any class."""
MAX_TOLD: Final = 65536
"""As many machines as the plan table holds."""
_PROGRAM = re.compile(r"\.(?:0|efi|k?kpxe|pxe|lkrn|krn|usb|iso)$", re.IGNORECASE)


class Told(dict[str, Transport]):
    """The transports of machines, by MAC, that DHCP gave another than is usual: their loaders ask later."""

    def keep(self, request: BootRequest, verdict: Verdict) -> Verdict:
        self.pop(request.mac, None)
        if isinstance(verdict, Plan) and verdict.transport:
            self[request.mac] = verdict.transport
            if len(self) > MAX_TOLD:
                del self[next(iter(self))]
        return verdict


def is_program(loader: str) -> bool:
    """Whether a boot file is a program, which iPXE would load and start for ever, and not a script."""
    return bool(_PROGRAM.search(urlsplit(loader).path))


class Policy:
    """Who gets which boot file and options. `decide` is a pure function of the request."""

    def __init__(
        self,
        config: Config,
        nodes: Sequence[Node],
        loaders: Loaders,
        chains: Chains | None = None,
        http: str | None = None,
        shims: Shims | None = None,
    ) -> None:
        """`nodes` are all that are known, `loaders` those of the system and of the configuration, `chains` what
        these go on with. `http` is the URL of the one namespace where it is served by HTTP. `shims` chooses where
        the configuration names no loader.

        Raises ConfigError for a class that there is not, and for a boot file that its class can not be given.
        """
        self._unknown, self._transport = config.boot.unknown, config.boot.transport
        self._names = {**ARCHITECTURES, **config.boot.architectures}
        self._loaders, self._nodes = loaders.by_class, tuple(nodes)
        self._chains, self._http, self._shims = chains, http, shims
        self._overrides, self._profiles = config.boot.loaders, [profile.name for profile in config.profiles]
        dhcp = config.dhcp
        self._classes = dhcp.classes if dhcp else ()
        self._groups = {group.name: group.settings(group.loader) for group in config.groups}
        self._servers = {subnet.network: subnet.next_server for subnet in dhcp.served()} if dhcp else {}
        self._prefixed = {
            subnet.network
            for subnet in (dhcp.served() if dhcp else ())
            if any(option.code == PATH_PREFIX for option in subnet.options)
        }
        self._elsewhere = dhcp is not None and dhcp.next_server is not None
        self._proxy = dhcp is not None and dhcp.mode != "server"
        self._sole = dhcp is not None and not self._proxy and not dhcp.known_servers
        if faults := [*self._class_faults(), *self._loader_faults(config), *self._transport_faults(config)]:
            raise ConfigError("\n".join(faults))

    @property
    def classes(self) -> frozenset[str]:
        """The names of all classes: those of firmware, and the configuration's own."""
        return frozenset({*self.firmware, *(entry.name for entry in self._classes)})

    @property
    def firmware(self) -> frozenset[str]:
        """The names of the classes of firmware."""
        return frozenset({*self._names.values(), *CHOICES, IPXE, ONIE, *ALONE})

    @property
    def architectures(self) -> Mapping[int, str]:
        """The classes of architectures, by their codes."""
        return self._names

    def transport(self, node: Node | None) -> Transport | None:
        """Return how the configuration wants the loader of a node to fetch its kernel; None where it says nothing
        of the node or its group."""
        if node is None:
            return None
        group = self._groups.get(node.group or "", Settings())
        return node.settings.transport or group.transport

    def boot_files(self) -> Iterator[tuple[str, str, Transport]]:
        """Yield every boot file that a machine may be told to fetch from here: its key, itself, and how what it
        starts is told to go on."""
        usual = {class_: loader for class_ in {**self._loaders, **CHOICES} if (loader := self.default(class_))}
        for key, profile in ("boot.loaders", None), *((f"profiles {name}", name) for name in self._profiles):
            for class_, loader in usual.items() if not self._elsewhere else ():
                own = self.default(class_, profile) if profile else loader
                if own and (own != loader or profile is None):
                    yield f"{key}.{class_}", own, self._class_transport(class_)
        for key, settings in self._named():
            told = settings.transport or self._transport
            for class_, loader in settings.loaders.items() if not settings.next_server else ():
                yield f"{key}.loader" if class_ == ANY else f"{key}.loader.{class_}", loader, told
        for key, settings in (*self._named(), *self._own_classes()):
            for class_ in (*COMMON, IPXE) if settings.transport and not settings.next_server else ():
                if class_ in usual and not {class_, ANY} & set(settings.loaders):
                    loader = self.default(class_, transport=settings.transport or "auto") or ""
                    yield f"{key}.transport.{class_}", loader, settings.transport or self._transport

    def starts(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield what machines with a profile start by: where that is said, "" where nowhere, class, boot file and
        profile."""
        for profile, class_ in product(self._profiles, CHOICES):
            if loader := self.default(class_, profile):
                yield "", class_, loader, profile
        for node in self._nodes if not self._elsewhere else ():
            group = (f"groups {node.group}.loader", self._groups.get(node.group or "", Settings()))
            for (key, settings), class_ in product((group, (f"nodes {node.name}.loader", node.settings)), CHOICES):
                loader = settings.loaders.get(class_) or settings.loaders.get(ANY)
                if node.profile and loader and _suits(class_, loader) and not settings.next_server:
                    yield key, class_, loader, node.profile

    def _class_transport(self, class_: str) -> Transport:
        said = [entry.transport for entry in self._classes if entry.name == class_ and entry.transport]
        return said[-1] if said else self._transport

    def _named(self) -> Iterator[tuple[str, Settings]]:
        """Yield what is said for groups and nodes, with their keys."""
        yield from ((f"groups {name}", settings) for name, settings in self._groups.items())
        yield from ((f"nodes {node.name}", node.settings) for node in self._nodes)

    def _own_classes(self) -> Iterator[tuple[str, Settings]]:
        yield from ((f"dhcp.classes {each.name}", each.settings()) for each in self._classes if each.matches)

    def decide(self, request: BootRequest) -> Verdict:
        """Return the plan for this request, or IGNORE. A node gets a plan of its own, with its address.

        What asks without a class gets an address, the node's where it has one, so that it does not change in the
        middle of a boot: installers, operating systems, GRUB, and the second DHCP of syslinux.efi (no class, no
        option 93: boot-clients.md, capture 7).
        """
        node = request.node
        if node is None and self._unknown == "ignore":
            return IGNORE
        class_ = self.class_of(request)
        layers = list(self._layers(request, class_))
        next_server = next((each.next_server for each in reversed(layers) if each.next_server), None)
        told = next((each.transport for each in reversed(layers) if each.transport), self._transport)
        server = str(next_server or self._servers.get(request.network) or request.server)
        elsewhere = server != str(request.server)
        own = told if told != self._transport else None
        loader, remark = self._loader(request, class_, layers, elsewhere, told)
        chain = self._chains.of(class_ or "", loader, told) if self._chains and loader and not elsewhere else None
        prefix = self._prefix(chain, loader, request.network) if told != "tftp" else ()
        needed = [*self._needed(request, class_, loader), *prefix]
        options = overlay(needed, *(each.options for each in layers))
        return Plan(
            loader.replace(SERVER, server) if loader and class_ != ONIE else None,
            node.address if node else None,
            next_server,
            next((each.lease for each in reversed(layers) if each.lease), None),
            _filled((each for each in options if each.always), server),
            Scope.MACHINE if node or own else Scope.CLASS,
            _filled((each for each in options if not each.always), server),
            remark,
            str(chain) if chain else "",
            own,
        )

    def class_of(self, request: BootRequest) -> str | None:
        """Return the class of firmware that asks, None where none does."""
        if request.stage is Stage.IPXE:
            # ROM and undionly.kpxe send the same classes (boot-clients.md, capture 6), so any program for iPXE
            # would come round again and again: it gets a script and nothing else, on every firmware.
            return IPXE
        mac = bytes.fromhex(request.mac.replace(":", ""))
        return class_of(request.architecture, request.vendor_class, mac, request.machine_id, self._names)

    def _layers(self, request: BootRequest, class_: str | None) -> Iterator[Settings]:
        """Yield what is said for this machine, the weakest first: classes in their order, its group, itself."""
        for entry in self._classes:
            if _holds(entry, request, class_):
                loader = self._loaders.get(entry.name) if entry.matches else None
                yield entry.settings({ANY: loader} if loader else None)
        if request.node is not None:
            if request.node.group in self._groups:
                yield self._groups[request.node.group]
            yield request.node.settings

    def default(
        self, class_: str, profile: str | None = None, elsewhere: bool = False, transport: Transport = "auto"
    ) -> str | None:
        """Return the boot file of a class where nothing is said for the machine. `elsewhere`: another machine than
        this has its files, which nothing is known of."""
        usual = self._loaders.get(class_)
        if class_ in self._overrides:
            return usual
        if class_ == IPXE and transport == "tftp":
            return SCRIPT
        if self._shims is None or elsewhere:
            return usual
        return self._shims.choose(class_, usual, profile)

    def common(self, class_: str) -> str | None:
        """Return the boot file for all machines of a class: that of the nodes where it is the same, else that of
        machines that no node names. For a DHCP server that tells them apart by nothing else."""
        of_nodes = {self.default(class_, profile) for profile, _ in self.users()}
        return of_nodes.pop() if len(of_nodes) == 1 else self.default(class_)

    def users(self) -> list[tuple[str, list[str]]]:
        """Return every profile that nodes have, with their names."""
        found: dict[str, list[str]] = {}
        for node in self._nodes:
            if node.profile:
                found.setdefault(node.profile, []).append(node.name)
        return list(found.items())

    def _loader(
        self, request: BootRequest, class_: str | None, layers: list[Settings], elsewhere: bool, told: Transport
    ) -> tuple[str | None, str]:
        """Return the boot file and, where there is none or another than was meant, why."""
        if class_ is None:
            return None, ""
        named = [(key, each.loaders.get(key)) for each in reversed(layers) for key in (class_, ANY)]
        profile = request.node.profile if request.node else None
        named.append((class_, self.default(class_, profile, elsewhere, told)))
        # A URL for firmware of any class is for those that fetch by HTTP, not for PXE.
        loader = next(
            (
                name
                for key, name in named
                if name and _suits(class_, name) and not (key == ANY and by_tftp_only(class_, name))
            ),
            None,
        )
        if class_ == IPXE:
            return _script(request, loader or SCRIPT)
        if loader or class_ in ALONE:
            return loader, ""
        if class_.startswith("arch-"):
            code = class_.removeprefix("arch-")
            return None, f"architecture {code} is unknown: give it a name in boot.architectures, then a loader"
        what = f'a URL, such as "http://{SERVER}/..."' if class_.startswith("http-") else "its boot program"
        gets = "no offer" if self._proxy else "an address only"
        return None, f"machines of class {class_} get {gets}; name {what} in boot.loaders.{class_}"

    def _needed(self, request: BootRequest, class_: str | None, loader: str | None) -> Iterator[Option]:
        """Yield the options without which this class does not boot."""
        needed: list[tuple[int, bytes]] = []
        if class_ is None:
            return
        if request.vendor_class.startswith(HTTP_CLIENT):
            # EDK2 and GRUB take no URL from an offer without this class (UEFI 2.5 section 24.7).
            needed = [(VENDOR_CLASS, HTTP_CLIENT)]
        elif self._proxy and request.vendor_class.startswith(PXE_CLIENT):
            needed = [(VENDOR_OPTIONS, SKIP_DISCOVERY), (VENDOR_CLASS, PXE_CLIENT)]
        # As the server of addresses, no option 60 to PXE clients: with it and without option 43, EDK2 asks port
        # 4011 next, and ends in PXE-E16 (protocol-facts.md A4, the option-60 trap).
        needed += ANSWERS.get(class_, ())
        if class_ == IPXE and self._sole:
            needed.append((IPXE_OPTIONS, NO_PXEDHCP))
        if class_ == ONIE and loader:
            # Its installer; as a boot file the same name would be tried at every server that it knows of.
            needed.append((DEFAULT_URL, loader.encode()))
        yield from (Option(code, value, always=True) for code, value in needed)

    def _prefix(self, chain: Chain | None, loader: str | None, network: IPv4Network) -> Iterator[Option]:
        """Yield what sends lpxelinux on by HTTP: a URL before the names of all that it fetches."""
        if self._http and loader and chain and chain.kind is Kind.LPXELINUX and network not in self._prefixed:
            directory = (path_here(loader) or "").strip("/").rpartition("/")[0]
            yield Option(PATH_PREFIX, f"{self._http}/{directory}/".encode(), always=True)

    def _class_faults(self) -> Iterator[str]:
        firmware = self.firmware
        for at, entry in enumerate(self._classes):
            key = f"dhcp.classes[{at}]"
            if entry.name in [each.name for each in self._classes[:at]]:
                yield f"{key}.name: {entry.name} is there twice; give each its own"
            if entry.matches and entry.name in firmware:
                yield f"{key}.name: {entry.name} is a class of firmware and has its machines; take another name"
            if not entry.matches and entry.name not in firmware and not entry.name.startswith("arch-0x"):
                yield (
                    f"{key}: has no machines (by firmware, vendor_class, user_class, macs or subnets), and"
                    f" there is no class of firmware {unknown(entry.name, sorted(firmware))}"
                )
            for name in entry.firmware:
                if name not in firmware and not name.startswith("arch-0x"):
                    yield f"{key}.firmware: there is no class of firmware {unknown(name, sorted(firmware))}"

    def _loader_faults(self, config: Config) -> Iterator[str]:
        classes = self.classes
        named = ((f"{key}.loader", settings) for key, settings in self._named())
        for key, settings in (("boot.loaders", Settings(config.boot.loaders)), *named):
            for class_, loader in settings.loaders.items():
                if class_ == ANY and key != "boot.loaders":
                    continue
                if class_ not in classes and not class_.startswith("arch-0x"):
                    yield f"{key}.{class_}: there is no class {unknown(class_, sorted(classes))}"
                elif class_ == IPXE and is_program(loader):
                    yield (
                        f"{key}.{class_}: {loader} is a boot program, which iPXE would load for ever;"
                        ' name a script such as "boot/boot.ipxe"'
                    )
                elif not _suits(class_, loader):
                    url = f"http://{SERVER}/{loader.lstrip('/')}"
                    yield f'{key}.{class_}: {loader} is no URL; write one such as "{url}"'

    def _transport_faults(self, config: Config) -> Iterator[str]:
        classes = ((f"dhcp.classes {each.name}", each.settings()) for each in self._classes)
        everywhere = ("boot", Settings(transport=config.boot.transport))
        for key, settings in (everywhere, *classes, *self._named()):
            for name, table in (("http", config.http), ("tftp", config.tftp)):
                if settings.transport == name and table is None:
                    yield f'{key}.transport: is "{name}", and there is no [{name}]; add that table'


def _holds(entry: ClassTable, request: BootRequest, class_: str | None) -> bool:
    if not entry.matches:
        return entry.name == class_
    mac = bytes.fromhex(request.mac.replace(":", ""))
    users = (request.user_class, *user_classes(request.user_class))
    return (
        (not entry.firmware or class_ in entry.firmware)
        and (not entry.vendor_class or request.vendor_class.startswith(_octets(entry.vendor_class)))
        and (not entry.user_class or any(user in _octets(entry.user_class) for user in users))
        and (not entry.macs or mac.startswith(entry.macs))
        and (not entry.subnets or any(request.network == subnet for subnet in entry.subnets))
    )


def _octets(texts: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


def _suits(class_: str, loader: str) -> bool:
    """Whether firmware of this class can use such a boot file at all."""
    if class_ == IPXE:
        return not is_program(loader)
    return "://" in loader or not (class_.startswith("http-") or class_ == ONIE)


def by_tftp_only(class_: str, loader: str) -> bool:
    """Whether firmware that speaks TFTP only is given a URL of something else."""
    return class_.startswith(("bios", "uefi-")) and urlsplit(loader).scheme not in ("", "tftp")


def _script(request: BootRequest, script: str) -> tuple[str, str]:
    scheme = urlsplit(script).scheme
    feature = IPXE_SCHEMES.get(scheme)
    if feature is None or not request.ipxe_features or feature in request.ipxe_features:
        return script, ""
    ours = urlsplit(script).path == f"/{SCRIPT}"
    return SCRIPT, "" if ours else f"an iPXE without {scheme} gets {SCRIPT} by TFTP, not {script}"


def _filled(options: Iterable[Option], server: str) -> tuple[tuple[int, bytes], ...]:
    return tuple((each.code, each.value.replace(SERVER.encode(), server.encode())) for each in options)

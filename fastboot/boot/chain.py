"""The chain of a boot: who fetches what, by which protocol, from the boot file to the kernel.

A chain follows from the boot file alone: from what the program is, and what it can speak. So it is known of the
loader that was chosen here and of one that the configuration names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from fastboot.boot.firmware import IPXE, SCRIPT, SERVER
from fastboot.boot.program import Kind, Program
from fastboot.model import Transport

Look = Callable[[str], Program | None]
"""What a file of the one namespace is, by its path; None for one that is not there."""

TFTP, HTTP = "TFTP", "HTTP"
SYSTEM: Final = "kernel, initrd"
COLUMNS: Final = ("for", "who", "fetches", "by", "which is", "signed by", "why")
"""Of `rows`."""
GRUB_TARGETS: Final = {"grubx64.efi": "x86_64-efi", "grubaa64.efi": "arm64-efi", "grubia32.efi": "i386-efi"}
"""What GRUB calls the platform of a file, and the directory of its modules."""
_REFUSED: Final = "machines with Secure Boot on do not start it"
_NOUNS: Final = {"profiles": "profile", "groups": "group", "nodes": "node", "dhcp.classes": "class"}
"""What the tables of the configuration hold."""
_CPU: Final = re.compile(r"(?:x64|aa64|ia32)(?=\.efi$)")


@dataclass(frozen=True, slots=True)
class Hop:
    """A step of a chain. `by` fetches `files` by `transport`; `why` it is so. `program` is what the file is."""

    by: str
    files: str
    transport: str
    why: str = ""
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """What happens after a boot file was named. `flaw` is why it ends before an operating system, `doubt` what
    Secure Boot will not like."""

    hops: tuple[Hop, ...]
    flaw: str = ""
    doubt: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{hop.files.rpartition('/')[2]} by {hop.transport}" for hop in self.hops)

    @property
    def kind(self) -> Kind | None:
        """What the boot file is."""
        program = self.hops[0].program
        return program.kind if program else None


class Chains:
    """The chains that boot files begin.

    `http`: files are served by HTTP too. `proxy`: another server gives the addresses.
    """

    def __init__(self, look: Look, http: bool = False, proxy: bool = False) -> None:
        self._look, self._http, self._proxy = look, http, proxy

    def of(self, class_: str, boot_file: str, told: Transport = "auto") -> Chain:
        """Return the chain of a boot file for a class of machines, "*" for any. `told` is what the configuration
        says of how kernels are fetched."""
        scheme, path = urlsplit(boot_file).scheme, path_here(boot_file)
        transport = scheme.upper() or TFTP
        if class_ == IPXE:
            ours = path is not None and path.strip("/") == SCRIPT
            hops = [Hop("iPXE", boot_file, transport, "iPXE can" if transport == HTTP else "")]
            hops += [Hop("iPXE", SYSTEM, *_told(told, transport, "as its script came"))] if ours else []
            return Chain(tuple(hops))
        program = self._look(path.strip("/")) if path is not None else None
        first = Hop("firmware", boot_file, transport, _why_first(class_, transport), program)
        if program is None or path is None:
            return Chain((first,))
        rest = {
            Kind.SHIM: self._shim,
            Kind.GRUB: self._grub,
            Kind.IPXE: self._ipxe,
            Kind.PXELINUX: self._pxelinux,
            Kind.LPXELINUX: self._lpxelinux,
        }.get(program.kind or Kind.LINUX)
        if rest is None:
            return Chain((first,))
        chain = rest(program, path.strip("/"), transport, told)
        return Chain((first, *chain.hops), chain.flaw, chain.doubt)

    def _shim(self, shim: Program, path: str, transport: str, told: Transport) -> Chain:
        cpu = found[0] if (found := _CPU.search(path)) else "x64"
        beside = f"{path.rpartition('/')[0]}/{shim.loads or f'grub{cpu}.efi'}".strip("/")
        grub = self._look(beside)
        if grub is None:
            return Chain((), f"{beside} is missing, which it loads next")
        chain = self._grub(grub, beside, transport, told)
        hop = Hop("shim", beside, transport, "from where shim came", grub)
        doubt = chain.doubt
        if altered := [file for file, each in ((path, shim), (beside, grub)) if each.altered]:
            doubt = f"{altered[0]} was altered after it had been signed, and {_REFUSED}"
        elif not shim.signers:
            doubt = f"{path} is not signed, and {_REFUSED}"
        elif not grub.signers:
            doubt = f"{beside} is not signed, so with Secure Boot {path} refuses it"
        elif not shim.trusts(grub):
            doubt = f"{beside} is signed by {' and '.join(grub.signers)}, whom {path} does not know"
        return Chain((hop, *chain.hops), chain.flaw, doubt)

    def _grub(self, grub: Program, path: str, transport: str, told: Transport) -> Chain:
        flaw = ""
        if transport == HTTP and "http" not in grub.modules:
            flaw = f"{grub} has no module http, so it would end at its prompt"
        elif transport == TFTP and grub.modules and "tftp" not in grub.modules:
            flaw = f"{grub} has no module tftp, so it would end at its prompt: it is made for discs"
        elif transport == TFTP and self._proxy and not _heeds_a_proxy(grub):
            flaw = (
                f"{grub} asks the server that gave the address for its files, not the proxy (2.12 and later ask"
                " the proxy). Where Secure Boot is on, name shim in boot.loaders and have the other server"
                " name fastboot as next-server: fastboot boot-options prints how"
            )
        doubt = "" if grub.signers else f"{path} is not signed, and {_REFUSED}"
        module = http_module(path, grub)
        loads = self._look(module) is not None
        system, why = transport, "as GRUB itself came"
        if told != "auto":
            system, why = _told(told)
            if told == "tftp" and "tftp" not in grub.modules:
                flaw = flaw or f"{grub} has no module tftp, and transport forbids HTTP"
            elif told == "http" and "http" not in grub.modules and not loads:
                flaw = flaw or f"{grub} has no module http, and transport forbids TFTP"
            elif told == "http" and "http" not in grub.modules:
                doubt = doubt or f"{path} loads /{module}, which Secure Boot forbids, and transport forbids TFTP"
        elif transport == TFTP and self._http:
            if "http" in grub.modules:
                system, why = HTTP, "it has the module http"
            elif loads:
                system, why = f"{HTTP}, with Secure Boot {TFTP}", f"it loads /{module}, which Secure Boot forbids"
            else:
                why = "it has no module http, nor is one served"
        hops = (Hop("GRUB", "grub.cfg", transport, "as GRUB itself came"), Hop("GRUB", SYSTEM, system, why))
        return Chain(hops, flaw, doubt)

    def _ipxe(self, ipxe: Program, path: str, transport: str, told: Transport) -> Chain:
        by, why = (HTTP, "iPXE can") if self._http else (TFTP, "there is no [http]")
        by, why = _told("auto" if told == "http" else told, by, why)
        unsigned = path.endswith(".efi") and not ipxe.signers
        hops = (Hop("iPXE", SCRIPT, by, why), Hop("iPXE", SYSTEM, *_told(told, by, "as its script came")))
        return Chain(hops, doubt=f"{path} is not signed, and {_REFUSED}" if unsigned else "")

    def _pxelinux(self, program: Program, path: str, transport: str, told: Transport) -> Chain:
        why = "pxelinux.0 speaks TFTP only"
        flaw = "it speaks TFTP only, which transport forbids; lpxelinux.0 speaks HTTP" if told == "http" else ""
        return Chain((Hop("PXELINUX", f"pxelinux.cfg, {SYSTEM}", TFTP, why),), flaw)

    def _lpxelinux(self, program: Program, path: str, transport: str, told: Transport) -> Chain:
        if told == "tftp":
            return Chain((Hop("lpxelinux", f"pxelinux.cfg, {SYSTEM}", *_told(told)),))
        if not self._http:
            hop = Hop("lpxelinux", f"pxelinux.cfg, {SYSTEM}", TFTP, "there is no [http]")
            return Chain((hop,), "there is no [http], and HTTP is all that it has over pxelinux.0")
        return Chain((Hop("lpxelinux", f"pxelinux.cfg, {SYSTEM}", HTTP, "DHCP option 210 sends it there"),))


def _told(told: Transport, by: str = "", why: str = "") -> tuple[str, str]:
    """Return the transport that the configuration demands, and why; what is given where it demands none."""
    return (by, why) if told == "auto" else (told.upper(), f'transport is "{told}"')


def http_module(path: str, grub: Program) -> str:
    """Return where a GRUB, by its path, looks for the module that speaks HTTP; "" where nobody knows."""
    target = GRUB_TARGETS.get(path.rpartition("/")[2])
    return f"{grub.prefix}/{target}/http.mod".strip("/") if target and grub.prefix else ""


def path_here(boot_file: str) -> str | None:
    """Return the path in the one namespace of a boot file, None where it is another machine's."""
    parts = urlsplit(boot_file)
    if not parts.scheme:
        return boot_file
    host = parts.netloc.partition(":")[0]
    return unquote(parts.path) if host == SERVER else None


def rows(key: str, chain: Chain) -> Iterator[dict[str, str]]:
    """Yield the hops of a chain for people; `key` is that of the configuration that names its boot file."""
    for at, hop in enumerate(chain.hops):
        program = hop.program
        cells = (
            "" if at else _whom(key),
            hop.by,
            hop.files.replace(SERVER, "SERVER"),
            hop.transport,
            str(program) if program and program.kind else "",
            _signed(program) if program and hop.files.endswith(".efi") else "",
            hop.why,
        )
        yield dict(zip(COLUMNS, cells, strict=True))


def _whom(key: str) -> str:
    """Return in words for which machines a boot file is that has this key."""
    table, _, rest = key.partition(" ")
    if not rest:
        return key.removeprefix("boot.loaders.")
    name, _, class_ = rest.rpartition(".")
    if class_ == "loader":
        return f"{_NOUNS[table]} {name}"
    return f"{class_} of {_NOUNS[table]} {name.removesuffix('.loader').removesuffix('.transport')}"


def _signed(program: Program) -> str:
    names = ", ".join(program.signers) or "not signed"
    return f"{names}, but altered since" if program.altered else names


def _why_first(class_: str, transport: str) -> str:
    if class_.startswith("http-"):
        return "UEFI HTTP Boot"
    return "PXE firmware speaks TFTP only" if transport == TFTP else ""


def _heeds_a_proxy(grub: Program) -> bool:
    numbers = re.findall(r"\d+", grub.version)[:2]
    return [int(number) for number in numbers] >= [2, 12]

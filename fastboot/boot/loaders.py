"""The loaders that this system has: where distributions install them, and which class of machines gets which."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastboot.boot.chain import GRUB_TARGETS, Chains, http_module
from fastboot.boot.firmware import IPXE, SCRIPT
from fastboot.boot.program import Kind, Program, Programs


@dataclass(frozen=True, slots=True)
class Loader:
    """A boot program: where distributions install it, best first ("*" stands for any name), and in which packages.

    `packages` are those of Debian, Fedora and SUSE, "" where one has none. `modules` are directories of files that
    the program loads by name, those that `pattern` matches; the first that exists is served beside it.
    """

    paths: tuple[str, ...]
    packages: tuple[str, str, str]
    modules: tuple[str, ...] = ()
    pattern: str = "*.c32"


def _pxelinux(name: str) -> Loader:
    return Loader(
        (
            f"/usr/lib/PXELINUX/{name}",  # Debian, Ubuntu
            f"/usr/share/syslinux/{name}",  # Fedora, SUSE
            f"/tftpboot/{name}",
            f"/usr/lib/syslinux/bios/{name}",  # Arch
        ),
        ("pxelinux syslinux-common", "syslinux-nonlinux", "syslinux"),
        ("/usr/lib/syslinux/modules/bios", "/usr/share/syslinux", "/tftpboot", "/usr/lib/syslinux/bios"),
    )


def _shim(name: str, cpu: str, packages: tuple[str, str, str]) -> Loader:
    """`cpu` is the name of the processor in paths of SUSE. Directories below /boot/efi are mostly root's alone."""
    suse = "shim.efi" if name.startswith("shim") else "MokManager.efi"
    return Loader(
        (
            f"/usr/lib/shim/{name}.signed",
            f"/usr/lib/efi/shim/*/EFI/*/{name}",
            f"/boot/efi/EFI/*/{name}",
            f"/usr/share/efi/{cpu}/{suse}",
        ),
        packages,
    )


def _grub(name: str, cpu: str, target: str, packages: tuple[str, str, str]) -> Loader:
    """`target` is the name of the processor and platform in GRUB's own paths."""
    net = f"grubnet{name.removeprefix('grub')}"
    return Loader(
        (
            f"/usr/lib/grub/{target}-signed/{net}.signed",
            f"/usr/lib/efi/grub2/*/EFI/*/{name}",
            f"/boot/efi/EFI/*/{name}",
            f"/usr/share/efi/{cpu}/grub.efi",
            f"/usr/share/grub2/{target}/grub.efi",
            f"/usr/lib/grub/{target}/monolithic/{net}",
        ),
        packages,
    )


def _ipxe(*names: str, packages: tuple[str, str, str]) -> Loader:
    """The first name is Debian's and Arch's, the others are those of Fedora and SUSE."""
    debian, *others = names
    return Loader((f"/usr/lib/ipxe/{debian}", *(f"/usr/share/ipxe/{name}" for name in others)), packages)


_IPXE_X86 = ("ipxe", "ipxe-bootimgs-x86", "ipxe-bootimgs")
_IPXE_ARM = ("ipxe", "ipxe-bootimgs-aarch64", "ipxe-bootimgs")
_SHIM_X64, _SHIM_ARM = ("shim-signed", "shim-x64", "shim"), ("shim-signed", "shim-aa64", "shim")
LOADERS: Final[Mapping[str, Loader]] = {
    "lpxelinux.0": _pxelinux("lpxelinux.0"),
    "pxelinux.0": _pxelinux("pxelinux.0"),
    "shimx64.efi": _shim("shimx64.efi", "x86_64", _SHIM_X64),
    "mmx64.efi": _shim("mmx64.efi", "x86_64", _SHIM_X64),
    "grubx64.efi": _grub(
        "grubx64.efi", "x86_64", "x86_64-efi", ("grub-efi-amd64-signed", "grub2-efi-x64", "grub2-x86_64-efi")
    ),
    "shimia32.efi": _shim("shimia32.efi", "i386", ("shim-signed", "shim-ia32", "")),
    "grubia32.efi": _grub("grubia32.efi", "i386", "i386-efi", ("grub-efi-ia32-signed", "grub2-efi-ia32", "")),
    "shimaa64.efi": _shim("shimaa64.efi", "aarch64", _SHIM_ARM),
    "mmaa64.efi": _shim("mmaa64.efi", "aarch64", _SHIM_ARM),
    "grubaa64.efi": _grub(
        "grubaa64.efi", "aarch64", "arm64-efi", ("grub-efi-arm64-signed", "grub2-efi-aa64", "grub2-arm64-efi")
    ),
    "grubarm.efi": _grub("grubarm.efi", "arm", "arm-efi", ("grub-efi-arm-bin", "", "grub2-arm-efi")),
    "grubriscv64.efi": _grub(
        "grubriscv64.efi", "riscv64", "riscv64-efi", ("grub-efi-riscv64-bin", "", "grub2-riscv64-efi")
    ),
    "grubloongarch64.efi": _grub(
        "grubloongarch64.efi", "loongarch64", "loongarch64-efi", ("grub-efi-loong64-bin", "", "")
    ),
    "snponly.efi": _ipxe("snponly.efi", "ipxe-snponly-x86_64.efi", "snp-x86_64.efi", packages=_IPXE_X86),
    "ipxe.efi": _ipxe("ipxe.efi", "ipxe-x86_64.efi", packages=_IPXE_X86),
    "undionly.kpxe": _ipxe("undionly.kpxe", "undionly.kpxe", packages=_IPXE_X86),
    "snponly-arm64.efi": _ipxe("arm64/snponly.efi", "arm64-efi/snponly.efi", "snp-arm64.efi", packages=_IPXE_ARM),
}
"""What is served under /boot where it is installed, by its name there."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "bios": ("lpxelinux.0", "pxelinux.0"),
    "uefi-x64": ("shimx64.efi", "grubx64.efi", "snponly.efi"),
    "uefi-ia32": ("shimia32.efi", "grubia32.efi"),
    "uefi-arm64": ("shimaa64.efi", "grubaa64.efi", "snponly-arm64.efi"),
    "uefi-arm32": ("grubarm.efi",),
    "uefi-riscv64": ("grubriscv64.efi",),
    "uefi-loongarch64": ("grubloongarch64.efi",),
    "http-x64": ("shimx64.efi", "grubx64.efi", "snponly.efi"),
    "http-arm64": ("shimaa64.efi", "grubaa64.efi", "snponly-arm64.efi"),
}
"""The loaders of each class where `boot.loaders` names no other, the best first: that is taken whose chain reaches
an operating system here."""
COMMON: Final = ("bios", "uefi-x64", "http-x64")
"""Classes that every lab has machines of."""

FAMILIES: Final = (
    ("Debian", "apt-get install", ("debian", "ubuntu")),
    ("Fedora", "dnf install", ("fedora", "rhel", "centos")),
    ("SUSE", "zypper install", ("suse", "opensuse", "sles")),
)
"""Distributions, in the order of `Loader.packages`: name, how packages are installed, how os-release(5) names them
and their kin."""


@dataclass(frozen=True, slots=True)
class Loaders:
    """What machines are given: a loader for each class, and the files under /boot.

    `by_class` are paths in the one namespace or URLs. `files` maps names under /boot to files of this system,
    `modules` paths in the namespace to the modules that GRUB looks for there. `complaints` name what is missing
    and the package that has it, `notes` why a better loader was not taken.
    """

    by_class: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    modules: Mapping[str, Path] = field(default_factory=dict)


def find_loaders(
    overrides: Mapping[str, str] | None = None,
    system: Path = Path("/"),
    http: str | None = None,
    *,
    proxy: bool = False,
    programs: Programs | None = None,
) -> Loaders:
    """Look for the loaders installed below `system`; `overrides` are `boot.loaders` of the configuration.

    `http` is the URL of the one namespace, where it is served by HTTP. `proxy`: another server gives the
    addresses. `programs` knows files that were looked at before.
    """
    overrides, programs = overrides or {}, programs or Programs()
    files = {name: path for name, loader in LOADERS.items() if (path := _first(system, loader.paths))}
    kinds = {name: programs.at(path) for name, path in files.items()}
    for name, kind in list(kinds.items()):
        grub = f"grub{name.removeprefix('shim')}"
        if name.startswith("shim") and kind.loads not in ("", grub) and grub in files:  # SUSE's asks for grub.efi
            files.setdefault(kind.loads, files[grub])
            kinds.setdefault(kind.loads, kinds[grub])
    complaints: list[str] = []
    notes: list[str] = []
    for name in ("lpxelinux.0", "pxelinux.0"):
        if name in files and not (beside := _modules(system, LOADERS[name])):
            complaints.append(
                f"boot.loaders.bios: the modules of {name} are missing, so it stops at ldlinux.c32;"
                f" {_install(system, LOADERS[name])}"
            )
        elif name in files:
            files |= beside
    modules = {path: file for name, kind in kinds.items() for path, file in _grub_modules(system, name, kind)}
    known = {**{f"boot/{name}": kind for name, kind in kinds.items()}, **dict.fromkeys(modules, Program())}
    chains = Chains(known.get, http is not None, proxy)
    by_class = {IPXE: f"{http}/{SCRIPT}" if http else SCRIPT}
    for class_, choices in CHOICES.items():
        if class_ in overrides or (class_.startswith("http-") and http is None):
            continue
        where = f"{http}/boot" if class_.startswith("http-") else "boot"
        here = {name: chains.of(class_, f"{where}/{name}") for name in choices if name in files}
        chosen = next((name for name, chain in here.items() if not chain.flaw), next(iter(here), None))
        if chosen:
            by_class[class_] = f"{where}/{chosen}"
        if class_ in COMMON:
            advise = _advice(system, class_, chosen, {name: chain.flaw for name, chain in here.items()})
            (notes if chosen and not here[chosen].flaw else complaints).extend(advise)
    return Loaders({**by_class, **overrides}, files, tuple(complaints), tuple(notes), modules)


def _advice(system: Path, class_: str, chosen: str | None, flaws: Mapping[str, str]) -> Iterator[str]:
    """Say why machines of a class get no loader, or not the best one. `flaws` are those of the loaders here."""
    key, choices = f"boot.loaders.{class_}", CHOICES[class_]
    if chosen is None:
        if not class_.startswith("http-"):
            wanted = choices[-1] if class_ == "bios" else choices[0]
            packages = dict.fromkeys(_package(system, LOADERS[name]) for name in choices[:2])
            yield (
                f"{key}: {wanted} is not installed, so such machines get an address only;"
                f" {_how(system, ' '.join(filter(None, packages)))}"
            )
        return
    if flaws[chosen]:
        yield f"{key}: {chosen}: {flaws[chosen]}"
    for name in choices[: choices.index(chosen)]:
        if name in flaws:
            yield f"{key}: {chosen} is taken, not {name}: {flaws[name]}"
            return
        elif name.startswith("shim"):
            yield f"{key}: without {name}, Secure Boot lets nothing start; {_install(system, LOADERS[name])}"


def _modules(system: Path, loader: Loader) -> dict[str, Path]:
    """Return the files that a loader loads by name, as they are to be called beside it."""
    for directory in loader.modules:
        if found := sorted((system / directory.lstrip("/")).glob(loader.pattern)):
            return {path.name: path.resolve() for path in found}
    return {}


def _grub_modules(system: Path, name: str, grub: Program) -> Iterator[tuple[str, Path]]:
    """Yield the module that lets GRUB speak HTTP, where it is that of the very same build; its path first."""
    if grub.kind is not Kind.GRUB or "http" in grub.modules or not (path := http_module(name, grub)):
        return
    directory = system / "usr/lib/grub" / GRUB_TARGETS[name]
    with suppress(OSError):
        about = (directory / "modinfo.sh").read_text(encoding="utf-8", errors="replace")
        if f'grub_package_version="{grub.version}"\n' in about and (directory / "http.mod").is_file():
            yield path, directory / "http.mod"


def _package(system: Path, loader: Loader) -> str:
    return loader.packages[_family(system)]


def _install(system: Path, loader: Loader) -> str:
    return _how(system, _package(system, loader))


def _how(system: Path, packages: str) -> str:
    distribution, command, _ = FAMILIES[_family(system)]
    return f"on {distribution}: {command} {packages}" if packages else f"{distribution} has no package of it"


def _family(system: Path) -> int:
    """Return which of FAMILIES this system is of, the first where it does not say."""
    try:
        text = (system / "etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    words = re.findall(r"[a-z]+", " ".join(re.findall(r"^ID(?:_LIKE)?=(.*)$", text, re.MULTILINE)))
    return next((at for at, (_, _, names) in enumerate(FAMILIES) if set(words) & set(names)), 0)


def _first(system: Path, paths: tuple[str, ...]) -> Path | None:
    for name in paths:
        for path in sorted(system.glob(name.lstrip("/")), reverse=True):
            # /boot/efi is closed to other users on Fedora: what can not be looked at is not there.
            try:
                if path.is_file():
                    return path.resolve()
            except OSError:
                continue
    return None

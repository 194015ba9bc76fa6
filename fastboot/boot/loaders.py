"""The loaders that this system has: where distributions install them, and which class of machines gets which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastboot.boot.firmware import SCRIPT


@dataclass(frozen=True, slots=True)
class Loader:
    """A boot program: the name it is served as under /boot, and where distributions install it, best first.

    `modules` are directories of files that the program loads by name; the first that exists is served beside it.
    """

    name: str
    paths: tuple[str, ...]
    package: str
    modules: tuple[str, ...] = ()
    pattern: str = "*.c32"


# In each list: Debian and Ubuntu, Fedora and RHEL, openSUSE and SLES, Arch.
_PXELINUX_MODULES = (
    "/usr/lib/syslinux/modules/bios",
    "/usr/share/syslinux",
    "/tftpboot",
    "/usr/lib/syslinux/bios",
)
_SNPONLY = ("/usr/lib/ipxe/snponly.efi", "/usr/share/ipxe/ipxe-snponly-x86_64.efi")
LOADERS: Final[Mapping[str, Loader]] = {
    "bios": Loader(
        "pxelinux.0",
        (
            "/usr/lib/PXELINUX/pxelinux.0",
            "/usr/share/syslinux/pxelinux.0",
            "/tftpboot/pxelinux.0",
            "/usr/lib/syslinux/bios/pxelinux.0",
        ),
        "pxelinux and syslinux-common",
        _PXELINUX_MODULES,
    ),
    "uefi-x64": Loader(
        "grubx64.efi",
        (
            "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
            "/boot/efi/EFI/fedora/grubx64.efi",
            "/boot/efi/EFI/redhat/grubx64.efi",
            "/boot/efi/EFI/rocky/grubx64.efi",
            "/boot/efi/EFI/almalinux/grubx64.efi",
            "/boot/efi/EFI/centos/grubx64.efi",
            "/usr/share/efi/x86_64/grub.efi",
            "/usr/share/grub2/x86_64-efi/grub.efi",
            "/usr/lib/grub/x86_64-efi/monolithic/grubnetx64.efi",
        ),
        "grub-efi-amd64-signed",
    ),
    "uefi-ia32": Loader(
        "grubia32.efi",
        (
            "/usr/lib/grub/i386-efi-signed/grubnetia32.efi.signed",
            "/usr/share/grub2/i386-efi/grub.efi",
            "/usr/lib/grub/i386-efi/monolithic/grubnetia32.efi",
        ),
        "grub-efi-ia32-signed",
    ),
    "uefi-arm64": Loader(
        "grubaa64.efi",
        (
            "/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed",
            "/boot/efi/EFI/fedora/grubaa64.efi",
            "/boot/efi/EFI/redhat/grubaa64.efi",
            "/boot/efi/EFI/rocky/grubaa64.efi",
            "/usr/share/efi/aarch64/grub.efi",
            "/usr/share/grub2/arm64-efi/grub.efi",
            "/usr/lib/grub/arm64-efi/monolithic/grubnetaa64.efi",
        ),
        "grub-efi-arm64-signed",
    ),
    "uefi-arm32": Loader(
        "grubarm.efi",
        ("/usr/lib/grub/arm-efi/monolithic/grubnetarm.efi", "/usr/share/grub2/arm-efi/grub.efi"),
        "grub-efi-arm-bin",
    ),
    "uefi-riscv64": Loader(
        "grubriscv64.efi",
        ("/usr/lib/grub/riscv64-efi/monolithic/grubnetriscv64.efi", "/usr/share/grub2/riscv64-efi/grub.efi"),
        "grub-efi-riscv64-bin",
    ),
    "uefi-loongarch64": Loader(
        "grubloongarch64.efi",
        ("/usr/lib/grub/loongarch64-efi/monolithic/grubnetloongarch64.efi",),
        "grub-efi-loong64-bin",
    ),
    # By HTTP iPXE: Debian's GRUB ends at its prompt there, without a driver for HTTP (boot-clients.md).
    "http-x64": Loader("snponly.efi", _SNPONLY, "ipxe"),
    "http-arm64": Loader(
        "snponly-arm64.efi", ("/usr/lib/ipxe/arm64/snponly.efi", "/usr/share/ipxe/arm64-efi/snponly.efi"), "ipxe"
    ),
}
"""The loader of each class where `boot.loaders` names no other."""

COMPANIONS: Final[tuple[Loader, ...]] = (
    Loader(
        "lpxelinux.0",
        (
            "/usr/lib/PXELINUX/lpxelinux.0",
            "/usr/share/syslinux/lpxelinux.0",
            "/usr/lib/syslinux/bios/lpxelinux.0",
        ),
        "pxelinux",
    ),
    Loader(
        "shimx64.efi",
        ("/usr/lib/shim/shimx64.efi.signed", "/boot/efi/EFI/fedora/shimx64.efi", "/usr/share/efi/x86_64/shim.efi"),
        "shim-signed",
    ),
    Loader(
        "shimaa64.efi",
        (
            "/usr/lib/shim/shimaa64.efi.signed",
            "/boot/efi/EFI/fedora/shimaa64.efi",
            "/usr/share/efi/aarch64/shim.efi",
        ),
        "shim-signed",
    ),
    Loader("undionly.kpxe", ("/usr/lib/ipxe/undionly.kpxe", "/usr/share/ipxe/undionly.kpxe"), "ipxe"),
    Loader("ipxe.efi", ("/usr/lib/ipxe/ipxe.efi", "/usr/share/ipxe/ipxe-x86_64.efi"), "ipxe"),
    Loader("snponly.efi", _SNPONLY, "ipxe"),
)
"""Served under /boot where they are installed, for `boot.loaders` to name."""

HEEDING: Final[Mapping[str, str]] = {"uefi-x64": "snponly.efi"}
"""Loaders, by class, that heed a proxy where the one in LOADERS does not: iPXE on the firmware's own driver."""


@dataclass(frozen=True, slots=True)
class Loaders:
    """What machines are given: a loader for each class, and the files under /boot.

    `by_class` are paths in the one namespace or URLs. `files` maps names under /boot to files of this system.
    `complaints` name what is missing and the Debian package that has it.
    """

    by_class: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()


def find_loaders(
    overrides: Mapping[str, str] | None = None, system: Path = Path("/"), http: str | None = None
) -> Loaders:
    """Look for the loaders installed below `system`; `overrides` are `boot.loaders` of the configuration.

    `http` is the URL of the one namespace, where it is served by HTTP. Whoever can speak it is sent there.
    """
    by_class = {"ipxe": f"{http}/{SCRIPT}" if http else SCRIPT}
    files, complaints = {}, []
    for class_, loader in LOADERS.items():
        if (path := _first(system, loader.paths)) is None:
            if class_ not in (overrides or {}) and class_ in ("bios", "uefi-x64"):
                complaints.append(
                    f"boot.loaders.{class_}: {loader.name} is not installed, so such machines get an address only;"
                    f" on Debian: apt-get install {loader.package.replace(' and ', ' ')}"
                )
            continue
        files[loader.name] = path
        if not class_.startswith("http-"):
            by_class[class_] = f"boot/{loader.name}"
        elif http:
            by_class[class_] = f"{http}/boot/{loader.name}"
        for directory in loader.modules:
            modules = sorted((system / directory.lstrip("/")).glob(loader.pattern))
            files.update({module.name: module.resolve() for module in modules})
            if modules:
                break
        else:
            if loader.modules:
                complaints.append(
                    f"boot.loaders.{class_}: the modules of {loader.name} are missing, so it stops at ldlinux.c32;"
                    f" on Debian: apt-get install {loader.package.replace(' and ', ' ')}"
                )
    for loader in COMPANIONS:
        if path := _first(system, loader.paths):
            files[loader.name] = path
    by_class.update(overrides or {})
    return Loaders(by_class, files, tuple(complaints))


def beside_another_server(loaders: Loaders, overrides: Mapping[str, str]) -> Loaders:
    """Return what machines are given whose addresses come from another server: iPXE in place of GRUB on UEFI.

    GRUB asks the server that gave the address for its files, before 2.12 (efinet, DHCP proxy support) whatever a
    proxy says; iPXE heeds the proxy. iPXE is not signed: Secure Boot needs GRUB, and a next-server that is ours.
    """
    by_class = dict(loaders.by_class)
    complaints = list(loaders.complaints)
    for class_, name in HEEDING.items():
        if class_ in overrides or class_ not in by_class:
            continue
        if name in loaders.files:
            by_class[class_] = f"boot/{name}"
        else:
            complaints.append(
                f"boot.loaders.{class_}: {by_class[class_]} asks who gave the address for its files, unless it is"
                " GRUB 2.12 or later; install iPXE (on Debian: apt-get install ipxe), or have that server name"
                " ours as next-server: fastboot boot-options prints how"
            )
    return Loaders(by_class, loaders.files, tuple(complaints))


def _first(system: Path, paths: tuple[str, ...]) -> Path | None:
    for name in paths:
        path = system / name.lstrip("/")
        # /boot/efi is closed to other users on Fedora: what can not be looked at is not there.
        try:
            if path.is_file():
                return path.resolve()
        except OSError:
            continue
    return None

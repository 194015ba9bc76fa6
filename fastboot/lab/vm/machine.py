"""A virtual machine in QEMU with an empty disk and nothing but its firmware.

Software emulation only: it is enough, and a /dev/kvm that opens is not always one that works.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fastboot.lab.namespace import LabError, spawn, stop

Firmware = Literal["bios", "uefi", "uefi-http", "uefi-secure"]

_DISK = 1 << 30
OVMF: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian 12 and later
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),  # SUSE
)
SECURE: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
    ("/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"),
)
"""The same with Microsoft's keys in the variables, so that Secure Boot is on."""
_CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-~])|[\x00-\x08\x0b-\x1f\x7f]")


def images(firmware: Firmware) -> tuple[tuple[str, str], ...]:
    """Return where distributions have a UEFI firmware: its code and its variables."""
    return SECURE if firmware == "uefi-secure" else OVMF


def plain(text: str) -> str:
    """Return what a console shows without the sequences that move its cursor, colour or clear it."""
    return _CONTROL.sub("", text)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the machine is made of. `memory` is in MiB; `nic` one of `initrd.NICS`."""

    firmware: Firmware = "bios"
    mac: str = "52:54:00:77:00:01"
    nic: str = "virtio-net-pci"
    memory: int = 1024


class Machine:
    """A machine whose files (disk, firmware variables, serial log) live in `directory`."""

    def __init__(self, hardware: Hardware, directory: Path, *, reboots: bool = False) -> None:
        """`reboots`: it starts again where it is told to; else it is off then."""
        self.hardware, self.directory, self._reboots = hardware, directory, reboots
        self.console = directory / "console.log"
        self._process: asyncio.subprocess.Process | None = None

    async def power_on(self, network: int) -> None:
        """Start the machine; `network` is the descriptor of a Unix datagram socket, one frame each.

        Raises LabError where QEMU or the firmware is missing.
        """
        with (self.directory / "disk.img").open("wb") as disk:
            disk.truncate(_DISK)
        self._process = await spawn(self._command(network), stdout=asyncio.subprocess.PIPE, fds=[network])

    async def lines(self) -> AsyncIterator[str]:
        """Yield what the machine writes to its serial console, line by line, until it is off.

        Everything goes to `console` as well, as it comes. Control sequences are left out of the lines.
        """
        assert self._process and self._process.stdout
        rest = ""
        with self.console.open("wb") as log:
            while piece := await self._process.stdout.read(65536):
                log.write(piece)
                log.flush()
                *whole, rest = re.split(r"[\r\n]+", rest + piece.decode("utf-8", "replace"))
                for line in whole:
                    yield plain(line)
        if rest:
            yield plain(rest)

    async def wait(self) -> int:
        """Wait until the machine is off; returns QEMU's exit code."""
        assert self._process
        return await self._process.wait()

    async def power_off(self) -> None:
        """Cut the power; harmless on a machine that is off."""
        if self._process:
            await stop(self._process, grace=2)

    def _command(self, network: int) -> list[str]:
        disk, rom = self.directory / "disk.img", ""
        machine = ["-machine", "pc,graphics=off"]
        if self.hardware.firmware != "bios":
            # An empty romfile leaves the NIC to the firmware's own PXE instead of iPXE's EFI ROM.
            machine, rom = self._uefi(), ",romfile="
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *(() if self._reboots else ("-no-reboot",)),
            *("-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", str(self.hardware.memory)),
            *machine,
            *("-serial", "stdio", "-monitor", "none"),
            *("-netdev", f"dgram,id=n0,local.type=fd,local.str={network}"),
            *("-device", f"{self.hardware.nic},netdev=n0,mac={self.hardware.mac},bootindex=1{rom}"),
            # Of all disks, Debian's netboot initrd has drivers for those behind USB only.
            *("-drive", f"file={disk},format=raw,if=none,id=d0", "-device", "qemu-xhci"),
            *("-device", "usb-storage,drive=d0,bootindex=2"),
            *("-device", "virtio-rng-pci"),
        ]

    def _uefi(self) -> list[str]:
        # Variables that only the firmware can write take system management mode (OvmfPkg/README).
        secure = ["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"]
        # Without PXE, HTTP Boot is what is left (OvmfPkg/PlatformPei). That by IPv6 comes first and may take 64 s.
        pxe = [f"name=opt/org.tianocore/{protocol}PXESupport,string=no" for protocol in ("IPv4", "IPv6")]
        http = ["-machine", "pc", "-fw_cfg", pxe[0], "-fw_cfg", pxe[1]]
        machine = {"uefi-secure": secure, "uefi-http": http}.get(self.hardware.firmware, ["-machine", "pc"])
        for code, variables in images(self.hardware.firmware):
            if Path(code).exists() and Path(variables).exists():
                own = self.directory / "uefi-variables.fd"
                shutil.copyfile(variables, own)
                return [
                    *machine,
                    *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
                    *("-drive", f"if=pflash,format=raw,unit=1,file={own}"),
                ]
        raise LabError("no UEFI firmware for virtual machines here; install the package ovmf")

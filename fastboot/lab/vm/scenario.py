"""One bare virtual machine boots from the real server on a private network: the whole way, and its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, Final

from fastboot.lab.namespace import LabError
from fastboot.lab.network import Network, Router
from fastboot.lab.server import ServerProcess
from fastboot.lab.vm import disk, initrd, media
from fastboot.lab.vm.machine import Firmware, Hardware, Machine, images
from fastboot.lab.vm.other import OtherServer
from fastboot.lab.vm.screen import Moving, Screen, moving_of
from fastboot.lab.vm.story import Story

ADDRESS: Final = IPv4Interface("10.77.0.1/24")
OTHER: Final = IPv4Interface("10.77.0.2/24")
KERNEL: Final = "lab/linux"
INITRD: Final = "lab/initrd.gz"
NODE: Final = "bare01"
IMAGE: Final = "images/disk.img"
ANSWERS: Final = f"""\
#cloud-config
# For {{{{ node.name }}}}: what the lab's installer writes to the disk, and where in it the machine's name belongs.
autoinstall:
  image: {IMAGE}
  places: PLACES
  done: {{{{ done }}}}
  failed: {{{{ failed }}}}
"""
_DEBIAN = Path("/usr/lib/debian-installer/images")
_TICK = 0.25
_SETTLE = 5.0
"""Seconds for the server's last events to arrive after the machine said its last word."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is rehearsed. `loaders` are `boot.loaders` of the server's configuration, `files` texts that its root
    holds besides kernel and initrd, `settings` TOML that ends its configuration. `proxy`: another host gives the
    addresses. `http`: files are served by HTTP too, as they must be where the firmware boots by it, and where the
    machine is to report. `install`: it is armed, installs itself, and boots from its disk."""

    hardware: Hardware
    proxy: bool = False
    loaders: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    http: bool = False
    install: bool = False

    @property
    def serves_http(self) -> bool:
        return self.http or self.install or self.hardware.firmware == "uefi-http"


@dataclass(slots=True)
class Result:
    """How it went. `faults` is empty if and only if everything worked."""

    scenario: Scenario
    directory: Path
    manifest: media.Manifest | None = None
    story: Story | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON knows it; times in seconds since power-on."""
        facts: dict[str, Any] = {
            "ok": self.ok,
            "firmware": self.scenario.hardware.firmware,
            "nic": self.scenario.hardware.nic,
            "faults": self.faults,
            "logs": None if self.ok else str(self.directory),
        }
        if story := self.story:
            facts["steps"] = [
                {
                    "step": step.name,
                    "title": step.title,
                    "at": round(reached.at - story.power_on, 2),
                    "took": round(took, 2),
                    "detail": reached.detail,
                }
                for step, reached, took in story.timeline()
            ]
            facts["failed_step"] = story.current.name if story.current else None
            facts["server"] = {
                "acks": story.acks,
                "tftp": story.tftp,
                "http": story.http,
                "ftp_files": len(story.sent),
                "ftp_octets": sum(story.sent.values()),
            }
            if self.scenario.install:
                facts["server"]["counts"] = {name: story.kinds[name] for name in _ONCE}
        if self.manifest:
            checked = self.story.checked if self.story else None
            facts["media"] = {
                "files": len(self.manifest.files),
                "octets": self.manifest.octets,
                "digest": self.manifest.digest(),
                "matched": checked.matched if checked else 0,
            }
        return facts


def missing(firmware: Firmware, proxy: bool = False) -> list[str]:
    """Return the Debian packages that a machine with this firmware needs and that are not here; with those of the
    other server where that gives the addresses."""
    needs: dict[str, bool] = {
        "qemu-system-x86": bool(shutil.which("qemu-system-x86_64")),
        "iproute2": bool(shutil.which("ip")),
        "busybox-static": _busybox() is not None,
        "debian-installer-12-netboot-amd64": _netboot() is not None,
    }
    if firmware == "bios":
        roms = ("/usr/lib/ipxe/qemu", "/usr/share/qemu", "/usr/share/ipxe/qemu")
        needs["ipxe-qemu"] = any(Path(rom, "pxe-virtio.rom").exists() for rom in roms)
    else:
        needs["ovmf"] = any(Path(code).exists() for code, _ in images(firmware))
        signed = {
            "shim-signed": "/usr/lib/shim/shimx64.efi.signed",
            "grub-efi-amd64-signed": "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        }
        ipxe = firmware == "uefi-http" or (proxy and firmware == "uefi")
        loaders = {"ipxe": "/usr/lib/ipxe/snponly.efi"} if ipxe else signed
        needs |= {package: Path(loader).exists() for package, loader in loaders.items()}
    if proxy:
        needs["dnsmasq-base"] = bool(shutil.which("dnsmasq"))
    return [package for package, here in needs.items() if not here]


def require(scenario: Scenario) -> None:
    """Raise LabError for a machine that can not be made here, saying what to install or to ask for instead."""
    hardware = scenario.hardware
    if hardware.nic not in initrd.NICS:
        raise LabError(f"NIC {hardware.nic}: write one of {', '.join(initrd.NICS)}")
    if hardware.firmware != "bios" and hardware.nic != "virtio-net-pci":
        raise LabError(f"NIC {hardware.nic}: the UEFI firmware has a driver for virtio-net-pci only")
    if lacking := missing(hardware.firmware, scenario.proxy):
        raise LabError(f"packages are missing here; on Debian: sudo apt-get install {' '.join(lacking)}")


async def boot(result: Result, screen: Screen) -> None:
    """Build the lab, boot the machine, and fill in `result`. In a namespace of our own and after `require`; leaves
    nothing running. Raises LabError where the lab can not be built.
    """
    directory, hardware = result.directory, result.scenario.hardware
    kernel_and_initrd, busybox = _netboot(), _busybox()
    assert kernel_and_initrd and busybox
    screen.say(f"making a media tree, an initrd and a private network with the server at {ADDRESS.ip}")
    result.manifest = manifest = media.make(directory / "media")
    install = result.scenario.install
    if install:
        result.manifest = manifest = _prepare_install(directory)
    files = {"digests": manifest.listing()}
    image = initrd.build(kernel_and_initrd[1], hardware.nic, files, busybox, disk=install)
    root = directory / "boot"
    (root / INITRD).parent.mkdir(parents=True)
    (root / INITRD).write_bytes(image)
    shutil.copyfile(kernel_and_initrd[0], root / KERNEL)
    for name, text in result.scenario.files.items():
        (root / name).write_text(text, encoding="utf-8")
    network = Network(ADDRESS)
    async with contextlib.AsyncExitStack() as lab:
        with contextlib.suppress(OSError):  # a kernel without IPv6: iPXE waits for nobody's answer
            lab.callback(Router(network.name).close)
        if result.scenario.proxy:
            screen.say(f"starting the DHCP server that gives the addresses: dnsmasq at {OTHER.ip}")
            other = OtherServer(network, OTHER, directory)
            lab.push_async_callback(other.stop)
            await other.start()
        server = ServerProcess.of(_configuration(result.scenario, network.name, directory), directory)
        lab.push_async_callback(_stop_server, server, result)
        screen.say("starting the server: fastboot serve")
        await server.start()
        cable = network.plug()
        lab.callback(cable.close)
        cable.connect()
        if install:
            await server.arm(NODE)
        machine = Machine(hardware, directory, reboots=install)
        lab.push_async_callback(machine.power_off)
        result.story = story = Story(KERNEL, INITRD, time.time(), NODE if install else "")
        await machine.power_on(cable.machine.fileno())
        screen.say("the machine is switched on")
        await _watch(result, server, machine, screen)
        if not story.done:
            result.faults.append(f"frames that the machine and the network exchanged: {cable.frames}")
        result.faults += disagreements(result)


def _prepare_install(directory: Path) -> media.Manifest:
    """Add what is installed to the media, and write the template of the answer file."""
    grub = Path(disk.GRUB)
    content = disk.image(grub if grub.exists() else None)
    (directory / "media" / IMAGE).write_bytes(content)
    places = " ".join(map(str, disk.places(content)))
    (directory / "answers").mkdir()
    (directory / "answers" / "lab.user-data.j2").write_text(ANSWERS.replace("PLACES", places), encoding="utf-8")
    return media.read(directory / "media")


async def _watch(result: Result, server: ServerProcess, machine: Machine, screen: Screen) -> None:
    """Feed the story until it is done, a step is overdue, or the machine or the server is gone."""
    story, manifest = result.story, result.manifest
    assert story and manifest
    moving: Moving | None = None

    async def console() -> None:
        async for line in machine.lines():
            story.read(time.time(), line)

    async def events() -> None:
        async for event in server.events():
            story.hear(event)

    async with _background(console(), events(), server.wait()) as (off, told, gone):
        while not story.done and not result.faults:
            screen.update(story, time.time(), moving)
            await asyncio.wait((off, gone), timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
            moving = moving_of(await server.status(), story, manifest.octets)
            if story.done:
                break
            if gone.done():
                result.faults.append(f"the server ended with exit code {gone.result()}")
            elif off.done():
                result.faults.append("the machine went off before it was done")
            elif late := story.overdue(time.time()):
                result.faults.append(f"nothing new for {late.limit:.0f} s; most likely {late.cause}")
        screen.update(story, time.time(), None)
        deadline = time.monotonic() + _SETTLE
        while story.checked and len(story.sent) < len(manifest.files) and time.monotonic() < deadline:
            await asyncio.wait((told,), timeout=_TICK)


@contextlib.asynccontextmanager
async def _background(*coroutines: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Run coroutines beside the body; those that still run after it are cancelled, faults are raised."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


_ONCE: Final = {
    **dict.fromkeys(("node.armed", "node.installing", "node.installed", KERNEL, INITRD), 1),
    "node.failed": 0,
    "node.refused": 0,
    "node/.../meta-data": 1,
    "node/.../user-data": 2,  # as installers do, the lab's asks twice
}
"""What there is in an installation: events, and files that were sent."""


def disagreements(result: Result) -> list[str]:
    """Return where machine, host and server do not tell the same: nothing after a success."""
    story, manifest = result.story, result.manifest
    assert story and manifest
    faults = list(story.faults)
    if (checked := story.checked) is None:
        return faults
    faults += [f"never seen: {step.title}" for step in story.steps if step.name not in story.reached]
    files = len(manifest.files)
    sent = {**story.tftp, **story.http}
    told = (
        ("files with the right digest on the machine", checked.matched, files),
        ("files on the machine", checked.files, files),
        ("octets of media on the machine", story.octets, manifest.octets),
        ("the digest of the whole tree on the machine", checked.digest, manifest.digest()),
        ("files that the server says it sent by FTP", len(story.sent), files),
        ("octets that the server says it sent by FTP", sum(story.sent.values()), manifest.octets),
        ("octets of the kernel that the server says it sent", sent.get(KERNEL), _size(result, KERNEL)),
        ("octets of the initrd that the server says it sent", sent.get(INITRD), _size(result, INITRD)),
        ("at least two DHCPACKs, to the firmware and to Linux", story.acks >= 2, True),
        ("Linux was started with Secure Boot", story.secure, result.scenario.hardware.firmware == "uefi-secure"),
    )
    faults += (
        []
        if not result.scenario.install
        else [
            f"{name}: {story.kinds[name]} times, expected {times}"
            for name, times in _ONCE.items()
            if story.kinds[name] != times
        ]
    )
    return faults + [f"{what}: {found}, expected {wanted}" for what, found, wanted in told if found != wanted]


def _size(result: Result, path: str) -> int:
    return (result.directory / "boot" / path).stat().st_size


async def _stop_server(server: ServerProcess, result: Result) -> None:
    code = await server.stop()
    if result.story and result.ok and code:
        result.faults.append(f"the server did not stop cleanly: exit code {code}")


def _configuration(scenario: Scenario, interface: str, directory: Path) -> str:
    hosts = ADDRESS.network
    dhcp = f'''\
probe = 1
[[dhcp.subnets]]
network = "{hosts}"
pools = ["{hosts[100]}-{hosts[199]}"]'''
    loaders = "".join(f"{name} = {json.dumps(path)}\n" for name, path in scenario.loaders.items())
    http = "\n[http]\n" if scenario.serves_http else ""
    told, installs = "", "installs = false"
    if scenario.install:
        told = " {{ installer }}"
        installs = 'answers = "answers/lab.user-data.j2"\nformat = "autoinstall"'
    return f"""\
interface = "{interface}"
roots = [{json.dumps(str(directory / "boot"))}]

[log]
format = "json"

[dhcp]
{'mode = "proxy"' if scenario.proxy else dhcp}

[tftp]

[ftp]
{http}
[[media]]
name = "demo"
path = {json.dumps(str(directory / "media"))}

[[profiles]]
name = "demo"
media = "demo"
kernel = "/{KERNEL}"
initrd = "/{INITRD}"
arguments = "console=ttyS0 quiet loglevel=3 panic=-1 lab.media={{{{ media }}}}{told}"
{installs}

[[nodes]]
name = "{NODE}"
macs = ["{scenario.hardware.mac}"]
profile = "demo"

[boot.loaders]
{loaders}
{scenario.settings}"""


def _netboot() -> tuple[Path, Path] | None:
    """Return Debian's netboot kernel and initrd, the newest installed."""
    for kernel in sorted(_DEBIAN.glob("*/amd64/text/debian-installer/amd64/linux"), reverse=True):
        if (image := kernel.with_name("initrd.gz")).exists():
            return kernel, image
    return None


def _busybox() -> Path | None:
    """Return a busybox that runs without shared libraries."""
    for name in ("/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"):
        path = Path(name)
        if path.exists() and b"/ld-linux" not in path.read_bytes()[:4096]:
            return path
    return None

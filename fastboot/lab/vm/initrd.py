"""The lab's initrd: busybox, the NIC's modules out of Debian's netboot initrd, and our `initrd/init`.

cpio in the "newc" form that the kernel reads (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import gzip
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO, Final

from fastboot.lab.namespace import LabError

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"

NICS: Final[Mapping[str, tuple[str, ...]]] = {
    "e1000": ("e1000",),
    "e1000e": ("e1000e",),
    # virtio_net reaches its device through virtio_pci, which no module names as a dependency.
    "virtio-net-pci": ("virtio_pci", "virtio_net"),
}
"""QEMU's NIC models that the lab can drive, each with its kernel modules."""
DISK: Final = ("xhci_pci", "usb_storage", "sd_mod")
"""The kernel modules of the machine's disk."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of an archive. `mode` has the file type in it; `device` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def pack(entries: Iterable[Entry]) -> bytes:
    """Return a newc archive, owned by root, all times 0: the same entries give the same bytes."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry(_TRAILER, 0)]):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        archive += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def unpack(stream: BinaryIO | gzip.GzipFile) -> Iterator[Entry]:
    """Yield the members of a newc archive. Raises LabError where it is none."""

    def read(count: int) -> bytes:
        data = stream.read(count)
        if len(data) != count:
            raise LabError("cpio archive ends early")
        return data

    while True:
        header = read(110)
        if header[:6] != _MAGIC:
            raise LabError(f"not a newc cpio archive: it has {header[:6]!r} where {_MAGIC!r} belongs")
        field = [int(header[at : at + 8], 16) for at in range(6, 110, 8)]
        mode, size, device, name_size = field[1], field[6], (field[9], field[10]), field[11]
        name = read(name_size)[:-1].decode("utf-8", "surrogateescape")
        read(-(110 + name_size) % 4)
        data = read(size)
        read(-size % 4)
        if name == _TRAILER:
            return
        yield Entry(name, mode, data, device)


def modules(archive: Iterable[Entry], wanted: Iterable[str]) -> list[Entry]:
    """Return the wanted kernel modules after those they depend on: the order in which to insert them.

    Raises LabError for one that the archive lacks.
    """
    found = {Path(entry.name).stem.replace("-", "_"): entry for entry in archive if entry.name.endswith(".ko")}
    ordered: dict[str, Entry] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in found:
            raise LabError(f"no kernel module {name} in Debian's netboot initrd")
        depends = re.search(rb"\0depends=([^\0]+)\0", found[name].data)
        for needed in depends[1].decode().split(",") if depends else ():
            add(needed.replace("-", "_"))
        ordered[name] = found[name]

    for name in wanted:
        add(name)
    return list(ordered.values())


def build(
    debian_initrd: Path,
    nic: str,
    files: Mapping[str, bytes],
    busybox: Path = Path("/bin/busybox"),
    *,
    disk: bool = False,
) -> bytes:
    """Return the gzipped initrd for a machine with this NIC model; `files` are added under their names. `disk`: it
    is to write to the machine's disk.

    Raises LabError for an unknown NIC, a missing file or a module that is not there.
    """
    if nic not in NICS:
        raise LabError(f"NIC {nic}: write one of {', '.join(NICS)}")
    try:
        with gzip.open(debian_initrd) as stream:
            drivers = modules(unpack(stream), (*NICS[nic], *(DISK if disk else ())))
        program = busybox.read_bytes()
    except OSError as error:
        raise LabError(f"{error.filename or debian_initrd}: {error.strerror or error}") from error
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "lib", "media", "proc", "run", "sys")]
    # The kernel gives init no standard streams without this node; no root is needed to write it here.
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, program))
    for script in resources.files("fastboot.lab.vm").joinpath("initrd").iterdir():
        entries.append(Entry(script.name, stat.S_IFREG | 0o755, script.read_bytes()))
    entries += [Entry(f"lib/{Path(driver.name).name}", stat.S_IFREG | 0o644, driver.data) for driver in drivers]
    order = "".join(f"{Path(driver.name).name}\n" for driver in drivers)
    for name, data in {**files, "lib/order": order.encode()}.items():
        entries.append(Entry(name, stat.S_IFREG | 0o644, data))
    return gzip.compress(pack(entries), 6, mtime=0)

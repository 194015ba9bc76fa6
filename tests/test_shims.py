"""The shim of a medium, for the kernels that the system's would refuse: what is found, chosen, served and told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from isokit import XORRISO, sparse_image
from programkit import grub_image, kernel_image, shim_image, signed_by

import fastboot.world
from fastboot._core import Source
from fastboot.boot.elsewhere import advice, boot_files, boot_remarks
from fastboot.boot.loaders import find_loaders
from fastboot.boot.media import carried
from fastboot.boot.tree import Directory
from fastboot.check import _loader_findings
from fastboot.config import Config
from fastboot.model import BootRequest, Client, Plan, Scope, Stage
from fastboot.world import World

Need = Callable[[bool, str], None]
SERVER = IPv4Address("10.77.0.1")
MACS = {"rocky": "52:54:00:00:00:01", "debian": "52:54:00:00:00:02", "new": "52:54:00:00:00:09"}
MEDIUM = "EFI/BOOT/grubx64.efi"
NETWORK = ("tftp", "http", "efinet", "normal")


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def grub(vendor: str, modules: tuple[str, ...] = NETWORK) -> bytes:
    return grub_image(modules, "/EFI/BOOT", signature=signed_by(vendor))


def rocky(vendor: str = "Rocky") -> dict[str, bytes]:
    """What matters here of an installation medium of RHEL's line."""
    return {
        ".treeinfo": b"[general]\nfamily = Rocky Linux\nversion = 9.4\narch = x86_64\n",
        "images/pxeboot/vmlinuz": kernel_image(vendor),
        "images/pxeboot/initrd.img": b"initrd",
        "images/install.img": b"stage 2",
        "repodata/repomd.xml": b"",
        "EFI/BOOT/BOOTX64.EFI": shim_image(vendor),
        "EFI/BOOT/grubx64.efi": grub(vendor),
        "EFI/BOOT/mmx64.efi": b"MokManager",
        "EFI/BOOT/grub.cfg": b"the menu of the disc",
    }


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """A world on a system with Debian's shim, and a medium of Rocky; `medium` and `system` change their files."""
    made: list[World] = []

    def build(
        medium: Mapping[str, bytes | None] = {}, system: Mapping[str, bytes] | None = None, **tables: Any
    ) -> World:
        here = {
            "usr/lib/shim/shimx64.efi.signed": shim_image("Debian"),
            "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed": grub("Debian"),
        }
        disc = {name: data for name, data in {**rocky(), **medium}.items() if data is not None}
        monkeypatch.setattr(
            fastboot.world,
            "find_loaders",
            partial(find_loaders, system=put(tmp_path / "system", here if system is None else system)),
        )
        put(tmp_path / "system", {"etc/os-release": b"ID=debian"})
        put(tmp_path / "root", {"debian/linux": kernel_image("Debian"), "own/shim.efi": b"own"})
        profiles = [
            {"name": "rocky", "media": "rocky"},
            {"name": "debian", "kernel": "/debian/linux"},
        ]
        table = {
            "interface": "lo",
            "state": tmp_path / "state",
            "roots": [tmp_path / "root"],
            "http": {"port": 80},
            "dhcp": {"subnets": [{"network": "10.77.0.0/24"}]},
            "media": [{"name": "rocky", "path": put(tmp_path / "rocky", disc)}],
            "profiles": profiles,
            "nodes": [
                {"name": name, "macs": [mac], "profile": name} for name, mac in MACS.items() if name != "new"
            ],
        }
        world = World(Config.model_validate({**table, **tables}))
        made.append(world)
        asyncio.run(world.prepare(lambda kind, **details: None))
        return world

    yield build
    for world in made:
        world.close()
        world.indexer.close()


def given(world: World, name: str = "rocky", architecture: int = 7) -> Plan:
    mac = MACS[name]
    vendor = b"HTTPClient" if architecture in (0x10, 0x13) else b"PXEClient"
    node = world.known.find(mac)
    network = IPv4Network("10.77.0.0/24")
    plan = world.policy.decide(BootRequest(mac, "lo", network, SERVER, Stage.ROM, architecture, vendor, node=node))
    assert isinstance(plan, Plan)
    return plan


def fetch(world: World, path: str, mac: str = MACS["rocky"]) -> bytes | str:
    found = world.catalog.resolve(path, Client(IPv4Address("10.77.0.9"), SERVER, "tftp", mac))
    return found.read() if isinstance(found, Source) else found.text


def notes(world: World) -> list[str]:
    return [each.text for each in _loader_findings(world)]


def test_another_dhcp_server_is_told_of_the_shim_of_a_medium(make: Callable[..., World]) -> None:
    """It tells machines apart by their class only: what is another for some nodes is a remark."""
    world = make()
    files, remarks = boot_files(world.policy), boot_remarks(world.policy)
    assert files[7] == files[9] == "boot/shimx64.efi", "nodes differ: that of machines that nobody names"
    assert remarks == [
        "class uefi-x64: boot/rocky/shimx64.efi for profile rocky (node rocky)",
        "class http-x64: http://{server}/boot/rocky/shimx64.efi for profile rocky (node rocky)",
    ]
    nodes = [
        {"name": f"n{number}", "macs": [f"52:54:00:00:00:0{number}"], "profile": "rocky"} for number in (1, 2)
    ]
    world = make(nodes=nodes)
    files = boot_files(world.policy)
    assert files[7] == files[9] == "boot/rocky/shimx64.efi"
    assert files[0x10] == "http://{server}/boot/rocky/shimx64.efi"
    assert boot_remarks(world.policy) == []
    assert all("boot/rocky/shimx64.efi" in text for text in advice(SERVER, files).values())


def test_each_kernel_gets_the_shim_that_knows_its_signer(make: Callable[..., World]) -> None:
    world = make()
    plan = given(world)
    assert (plan.loader, plan.scope) == ("boot/rocky/shimx64.efi", Scope.MACHINE)
    assert plan.chain.startswith(
        "shimx64.efi by TFTP, grubx64.efi by TFTP, grub.cfg by TFTP, kernel, initrd by HTTP"
    )
    assert given(world, architecture=0x10).loader == "http://10.77.0.1/boot/rocky/shimx64.efi"
    assert given(world, "debian").loader == "boot/shimx64.efi"
    assert (given(world, "new").loader, given(world, "new").scope) == ("boot/shimx64.efi", Scope.CLASS)
    assert ("profiles rocky.uefi-x64", "boot/rocky/shimx64.efi", "auto") in list(world.policy.boot_files())
    (told,) = (text for text in notes(world) if text.startswith("profiles "))
    assert told == (
        "profiles rocky: boot/rocky/shimx64.efi is handed out, not boot/shimx64.efi:"
        " it does not know Rocky CA, who signed /media/rocky/images/pxeboot/vmlinuz"
    )


def test_the_directory_has_what_the_chain_asks_for(make: Callable[..., World]) -> None:
    """The medium's own grub.cfg searches a disc; what is rendered in its place boots from here."""
    world = make()
    medium = rocky()
    assert fetch(world, "boot/rocky/shimx64.efi") == medium["EFI/BOOT/BOOTX64.EFI"]
    assert fetch(world, "/boot/rocky/grubx64.efi") == medium[MEDIUM]
    assert fetch(world, "boot\\rocky\\mmx64.efi") == medium["EFI/BOOT/mmx64.efi"]
    for directory in ("/boot/rocky", "/EFI/BOOT", "/EFI/rocky", "/grub"):
        own = fetch(world, f"{directory}/grub.cfg-01-52-54-00-00-00-01")
        assert isinstance(own, bytes) and b"fastboot for rocky" in own
    assert fetch(world, "media/rocky/EFI/BOOT/grub.cfg") == b"the menu of the disc"
    assert fetch(world, "boot/rocky/revocations.efi") == "no such file"
    listed = world.catalog.list("/boot/rocky", Client(SERVER, SERVER, "http"))
    assert isinstance(listed, list) and {"shimx64.efi", "grubx64.efi", "mmx64.efi"} <= {
        each.name for each in listed
    }


@pytest.mark.parametrize(
    ("tables", "loader"),
    [
        ({"boot": {"loaders": {"uefi-x64": "own/shim.efi"}}}, "own/shim.efi"),
        ({"groups": [{"name": "rack", "loader": "boot/shimx64.efi"}]}, "boot/shimx64.efi"),
        ({"nodes": [{"name": "rocky", "macs": [MACS["rocky"]], "profile": "rocky", "loader": "own/shim.efi"}]},
         "own/shim.efi"),
    ],
)  # fmt: skip
def test_what_the_configuration_names_is_taken(
    tables: dict[str, Any], loader: str, make: Callable[..., World]
) -> None:
    node = {"name": "rocky", "macs": [MACS["rocky"]], "profile": "rocky", "group": "rack"}
    assert given(make(**{"nodes": [node], **tables})).loader == loader


def test_a_medium_may_be_named_for_all(make: Callable[..., World]) -> None:
    world = make(boot={"loaders": {"uefi-x64": "boot/rocky/shimx64.efi"}})
    assert given(world, "new").loader == given(world, "debian").loader == "boot/rocky/shimx64.efi"
    (told,) = (text for text in notes(world) if text.startswith("profiles debian: "))
    assert "boot/rocky/shimx64.efi does not start its kernel: it does not know Debian CA" in told
    world = make(boot={"loaders": {"uefi-x64": "boot/shimx64.efi"}})
    (told, _) = (text for text in notes(world) if text.startswith("profiles rocky: "))
    assert told.endswith("who signed /media/rocky/images/pxeboot/vmlinuz; boot/rocky/shimx64.efi would")


def test_a_system_without_a_shim_hands_out_the_mediums(make: Callable[..., World]) -> None:
    world = make(system={"usr/lib/ipxe/snponly.efi": b"iPXE\x001.21.1+git\0"})
    assert given(world).loader == "boot/rocky/shimx64.efi"
    assert given(world, "debian").loader == "boot/snponly.efi"


def test_a_medium_without_boot_programs_has_no_directory_of_them(make: Callable[..., World]) -> None:
    bare = {name: None for name in rocky() if name.startswith("EFI/")}
    listed = make(medium=bare).catalog.list("/boot", Client(SERVER, SERVER, "http"))
    assert isinstance(listed, list) and "rocky" not in {each.name for each in listed}


def test_a_loader_that_is_named_for_a_group_is_judged_too(make: Callable[..., World]) -> None:
    node = {"name": "rocky", "macs": [MACS["rocky"]], "profile": "rocky", "group": "rack"}
    world = make(nodes=[node], groups=[{"name": "rack", "loader": "boot/shimx64.efi"}])
    assert [text for text in notes(world) if text.startswith("profiles rocky: with Secure Boot")] == [
        "profiles rocky: with Secure Boot, boot/shimx64.efi (groups rack.loader) does not start its kernel: it"
        " does not know Rocky CA, who signed /media/rocky/images/pxeboot/vmlinuz; boot/rocky/shimx64.efi would"
    ]


@pytest.mark.parametrize(
    ("medium", "why"),
    [
        ({MEDIUM: grub("Rocky", ("iso9660", "normal"))}, "has no module tftp"),
        ({MEDIUM: grub("SUSE")}, "is signed by SUSE CA, whom"),
        ({MEDIUM: None}, "boot/rocky/grubx64.efi is missing"),
        ({"EFI/BOOT/BOOTX64.EFI": shim_image("Alma")}, "is signed by Rocky CA, whom"),
        ({"EFI/BOOT/BOOTX64.EFI": grub("Rocky")}, "it is no shim"),
        ({"EFI/BOOT/BOOTX64.EFI": None}, "it is missing"),
    ],
)
def test_a_chain_that_would_not_reach_the_kernel_is_not_taken(
    medium: dict[str, bytes | None], why: str, make: Callable[..., World]
) -> None:
    world = make(medium=medium)
    assert given(world).loader == "boot/shimx64.efi"
    (told,) = (text for text in notes(world) if text.startswith("profiles rocky: "))
    assert "boot/shimx64.efi does not start its kernel: it does not know Rocky CA, who signed /media" in told
    assert why in told


def test_a_kernel_that_nobody_signed_changes_nothing(make: Callable[..., World]) -> None:
    world = make(medium={"images/pxeboot/vmlinuz": kernel_image(None)})
    assert given(world).loader == "boot/shimx64.efi"
    assert any("vmlinuz is not signed, so Secure Boot does not start it" in text for text in notes(world))


def test_the_menu_of_new_machines_counts_where_one_shim_starts_all_of_it(make: Callable[..., World]) -> None:
    live = {"name": "rocky", "media": "rocky", "installs": False}
    debian = {"name": "debian", "kernel": "/debian/linux", "installs": False}
    nodes: list[Any] = []
    alone = make(profiles=[live], nodes=nodes)
    assert (given(alone, "new").loader, given(alone, "new").scope) == ("boot/rocky/shimx64.efi", Scope.CLASS)
    assert given(make(profiles=[live, debian], nodes=nodes), "new").loader == "boot/shimx64.efi"


def test_a_medium_that_is_replaced_is_judged_anew(make: Callable[..., World], tmp_path: Path, need: Need) -> None:
    need(shutil.which("xorriso") is not None, "xorriso is not installed")
    images = []
    for name, files in (("first", rocky()), ("second", {**rocky(), MEDIUM: grub("SUSE")})):
        images.append(sparse_image(XORRISO, put(tmp_path / name, files), tmp_path / f"{name}.iso"))
    world = make(media=[{"name": "rocky", "iso": images[0]}])
    assert given(world).loader == "boot/rocky/shimx64.efi"
    assert fetch(world, "boot/rocky/grubx64.efi") == rocky()[MEDIUM]
    images[1].rename(images[0])

    async def refresh() -> list[bool]:
        return [await world.refresh(lambda kind, **details: None) for _ in range(3)]

    assert asyncio.run(refresh()).count(True) == 1
    assert given(world).loader == "boot/shimx64.efi"


def test_other_processors_have_their_own(make: Callable[..., World]) -> None:
    arm = {
        "images/pxeboot/vmlinuz": kernel_image("Rocky", cpu="aa64"),
        "EFI/BOOT/BOOTAA64.EFI": shim_image("Rocky", loads="grubaa64.efi", cpu="aa64"),
        "EFI/BOOT/grubaa64.efi": grub_image(NETWORK, "/EFI/BOOT", signature=signed_by("Rocky"), cpu="aa64"),
    }
    world = make(medium=arm)
    assert given(world, architecture=0x0B).loader == "boot/rocky/shimaa64.efi"
    assert given(world).loader == "boot/shimx64.efi"


def test_suses_names(tmp_path: Path) -> None:
    files = {
        f"EFI/BOOT/{name}": b""
        for name in ("bootx64.efi", "grub.efi", "MokManager.efi", "grub.cfg", "locale.efi.d")
    }
    tree = Directory(put(tmp_path, files), [])
    found = carried(tree)
    tree.close()
    assert found["shimx64.efi"] == found["bootx64.efi"] == "EFI/BOOT/bootx64.efi"
    assert {"grub.efi", "MokManager.efi"} <= set(found) and "grub.cfg" not in found


def test_debians_names(tmp_path: Path) -> None:
    tree = Directory(put(tmp_path, {"EFI/boot/bootx64.efi": b"", "EFI/boot/grubx64.efi": b""}), [])
    assert carried(tree)["shimx64.efi"] == "EFI/boot/bootx64.efi"
    tree.close()
    nothing = Directory(put(tmp_path / "other", {"EFI": b""}), [])
    assert carried(nothing) == {}
    nothing.close()

"""How loaders fetch kernels: what the configuration says, per class, group and node, is what their files say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

import pytest
from programkit import grub_image, shim_image, signed_by

import fastboot.world
from fastboot.boot.firmware import PATH_PREFIX
from fastboot.boot.loaders import find_loaders
from fastboot.boot.policy import MAX_TOLD, Told
from fastboot.check import _loader_findings
from fastboot.config import Config
from fastboot.config.nodes import read_nodes
from fastboot.model import BootRequest, Client, ConfigError, Plan, Scope, Stage
from fastboot.world import World

SERVER, MAC = IPv4Address("10.77.0.1"), "52:54:00:00:00:01"
NODE = {"name": "n", "macs": [MAC], "group": "g", "profile": "live"}
UEFI = {"name": "uefi-x64"}
OWN = {"name": "cards", "macs": ["52:54:00"]}
AUTO = "configfile (http,10.77.0.1)/grub/grub.cfg"
BY = {
    "auto": f"{AUTO}-01-52-54-00-00-00-01",
    "tftp": "linux (tftp,10.77.0.1)'/linux'",
    "http": "linux (http,10.77.0.1)'/linux'",
}
"""What is in a file of GRUB that came by TFTP."""


class Site:
    def __init__(self, system: Path, tables: dict[str, Any]) -> None:
        usual = {
            "interface": "lo",
            "state": system / "state",
            "roots": [system / "root"],
            "tftp": {},
            "http": {"port": 80},
            "dhcp": {"subnets": [{"network": "10.77.0.0/24"}]},
            "profiles": [{"name": "live", "kernel": "/linux", "installs": False}],
        }
        self.told = Told()
        self.world = World(Config.model_validate({**usual, **tables}), told=self.told)

    def ask(self, architecture: int = 7, stage: Stage = Stage.ROM) -> Plan:
        node, network = self.world.known.find(MAC), IPv4Network("10.77.0.0/24")
        request = BootRequest(MAC, "lo", network, SERVER, stage, architecture, b"PXEClient", node=node)
        plan = self.told.keep(request, self.world.policy.decide(request))
        assert isinstance(plan, Plan)
        return plan

    def file(self, path: str = "grub/grub.cfg", protocol: Literal["tftp", "http"] = "tftp") -> str:
        text = self.world.renderer.render(
            tuple(path.split("/")), Client(IPv4Address("10.77.0.9"), SERVER, protocol, MAC)
        )
        assert text is not None
        return text.decode()

    def notes(self) -> list[str]:
        return [each.text for each in _loader_findings(self.world)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    files = {
        "system/usr/lib/shim/shimx64.efi.signed": shim_image("Debian"),
        "system/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed": grub_image(
            ("tftp", "http"), "/grub", signature=signed_by("Debian")
        ),
        "system/usr/lib/PXELINUX/lpxelinux.0": b"PXELINUX 6.04 lwIP",
        "system/usr/lib/PXELINUX/pxelinux.0": b"PXELINUX 6.04 PXE",
        "system/usr/lib/syslinux/modules/bios/ldlinux.c32": b"",
        "root/linux": b"",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(fastboot.world, "find_loaders", partial(find_loaders, system=tmp_path / "system"))
    made: list[Site] = []

    def build(**tables: Any) -> Site:
        made.append(Site(tmp_path, tables))
        return made[-1]

    yield build
    for each in made:
        each.world.close()


@pytest.mark.parametrize(
    ("boot", "classes", "group", "node", "told"),
    [
        (None, [], None, None, "auto"),
        ("tftp", [], None, None, "tftp"),
        ("http", [], None, None, "http"),
        ("http", [{**UEFI, "transport": "tftp"}], None, None, "tftp"),
        (None, [{**OWN, "transport": "tftp"}], None, None, "tftp"),
        (None, [{**UEFI, "transport": "tftp"}, {**OWN, "transport": "http"}], None, None, "http"),
        (None, [{"name": "bios", "transport": "tftp"}], None, None, "auto"),
        (None, [{**OWN, "transport": "tftp"}], "http", None, "http"),
        ("tftp", [{**OWN, "transport": "tftp"}], "http", "auto", "auto"),
    ],
)
def test_the_specific_comes_first(
    boot: str | None, classes: list[Any], group: str | None, node: str | None, told: str, site: Callable[..., Site]
) -> None:
    lab = site(
        boot={"transport": boot} if boot else {},
        dhcp={"subnets": [{"network": "10.77.0.0/24"}], "classes": classes},
        groups=[{"name": "g", **({"transport": group} if group else {})}],
        nodes=[{**NODE, **({"transport": node} if node else {})}],
    )
    plan = lab.ask()
    assert BY[told] in lab.file()
    assert not [text for by, text in BY.items() if by != told and "auto" not in (by, told) and text in lab.file()]
    assert (AUTO in lab.file()) is (told == "auto")
    assert plan.chain.endswith("kernel, initrd by TFTP" if told == "tftp" else "kernel, initrd by HTTP")


def test_a_class_reaches_machines_that_no_node_names(site: Callable[..., Site]) -> None:
    """A plan for a class of machines does not say whose file is asked for, so this is one for the machine."""
    lab = site(dhcp={"subnets": [{"network": "10.77.0.0/24"}], "classes": [{**OWN, "transport": "tftp"}]})
    assert AUTO in lab.file(), "before it asked by DHCP"
    assert (lab.ask().scope, lab.ask().transport) == (Scope.MACHINE, "tftp")
    assert AUTO not in lab.file() and "(tftp,10.77.0.1)" in lab.file()
    everybody = site(boot={"transport": "tftp"})
    assert (everybody.ask().scope, everybody.ask().transport) == (Scope.CLASS, None)
    assert AUTO not in everybody.file()


@pytest.mark.parametrize(
    ("transport", "path", "protocol", "text"),
    [
        ("tftp", "boot/boot.ipxe", "http", "kernel tftp://10.77.0.1/linux"),
        ("auto", "boot/boot.ipxe", "http", "kernel http://10.77.0.1/linux"),
        ("http", "boot/boot.ipxe", "tftp", "kernel http://10.77.0.1/linux"),
        ("auto", "boot/boot.ipxe", "tftp", "kernel tftp://10.77.0.1/linux"),
        ("tftp", "boot/pxelinux.cfg/default", "http", "LINUX ::/linux"),
        ("http", "boot/pxelinux.cfg/default", "tftp", "LINUX http://10.77.0.1/linux"),
        ("tftp", "grub/grub.cfg", "http", "linux (tftp,10.77.0.1)'/linux'"),
    ],
)
def test_every_language(
    transport: str, path: str, protocol: Literal["tftp", "http"], text: str, site: Callable[..., Site]
) -> None:
    assert text in site(nodes=[{**NODE, "transport": transport}]).file(path, protocol)


def test_loaders_that_go_on_as_they_are_told_by_dhcp(site: Callable[..., Site]) -> None:
    """iPXE by the URL of its script, lpxelinux by option 210."""
    lab, slow = site(nodes=[NODE]), site(nodes=[{**NODE, "transport": "tftp"}])
    assert lab.ask(0, Stage.IPXE).loader == "http://10.77.0.1/boot/boot.ipxe"
    assert slow.ask(0, Stage.IPXE).loader == "boot/boot.ipxe"
    assert PATH_PREFIX in dict(lab.ask(0).options) and PATH_PREFIX not in dict(slow.ask(0).options)
    assert lab.ask(0).loader == slow.ask(0).loader == "boot/lpxelinux.0"
    own = site(boot={"transport": "tftp", "loaders": {"ipxe": "http://{server}/own.ipxe"}})
    assert own.ask(0, Stage.IPXE).loader == "http://10.77.0.1/own.ipxe"


def test_check_shows_it(site: Callable[..., Site]) -> None:
    lab = site(
        boot={"loaders": {"bios": "boot/pxelinux.0"}},
        dhcp={"subnets": [{"network": "10.77.0.0/24"}], "classes": [{**OWN, "transport": "http"}]},
        groups=[{"name": "g", "transport": "tftp"}],
        nodes=[NODE],
    )
    shown = {key: (file, told) for key, file, told in lab.world.policy.boot_files()}
    assert shown["groups g.transport.uefi-x64"] == ("boot/shimx64.efi", "tftp")
    assert shown["groups g.transport.ipxe"] == ("boot/boot.ipxe", "tftp")
    assert shown["dhcp.classes cards.transport.bios"] == ("boot/pxelinux.0", "http")
    assert shown["boot.loaders.uefi-x64"] == ("boot/shimx64.efi", "auto")
    assert [
        text for text in lab.notes() if text.startswith("dhcp.classes cards.transport.bios: ") and "HTTP" in text
    ]


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"boot": {"transport": "http"}, "http": None}, 'boot.transport: is "http", and there is no [http]'),
        ({"nodes": [{**NODE, "transport": "tftp"}], "tftp": None}, "nodes n.transport: "),
        ({"groups": [{"name": "g", "transport": "http"}], "http": None}, "groups g.transport: "),
    ],
)
def test_a_transport_that_is_not_served_is_refused(
    tables: dict[str, Any], text: str, site: Callable[..., Site]
) -> None:
    with pytest.raises(ConfigError) as caught:
        site(**tables)
    assert text in str(caught.value)


def test_a_column_of_the_nodes_file(tmp_path: Path) -> None:
    (tmp_path / "nodes.csv").write_text(f"name,macs,transport\nn,{MAC},tftp\n")
    ((_, node),) = read_nodes(tmp_path / "nodes.csv")
    assert node.settings.transport == "tftp" and not node.variables


def test_what_dhcp_told_is_bounded_and_forgotten(site: Callable[..., Site]) -> None:
    told, lab = Told(), site()
    request = BootRequest(MAC, "lo", IPv4Network("10.77.0.0/24"), SERVER, Stage.ROM, 7)
    for number in range(MAX_TOLD + 2):
        told.keep(replace(request, mac=str(number)), Plan(transport="tftp"))
    assert len(told) == MAX_TOLD and "0" not in told and str(MAX_TOLD + 1) in told
    told.keep(replace(request, mac="9"), lab.ask())
    assert "9" not in told

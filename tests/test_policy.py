"""Which machine is given what: requests as real firmware sends them, and the plans they get."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastboot.boot.chain import Chains
from fastboot.boot.firmware import ARCHITECTURES, NO_PXEDHCP, RASPBERRY_MENU, SCRIPT, SKIP_DISCOVERY, class_of
from fastboot.boot.loaders import CHOICES, Loaders, find_loaders
from fastboot.boot.policy import Policy
from fastboot.boot.program import Kind, Program
from fastboot.config import Config, Dhcp
from fastboot.model import IGNORE, BootRequest, ConfigError, Node, Plan, Scope, Stage, Verdict
from fastboot.services.dhcp_plan import architecture_of, features_of, signs_of, stage_of
from fastboot.world import http_url

LAB = IPv4Network("10.77.0.0/24")
BASE = """
interface = "lo"
[dhcp]
[[dhcp.subnets]]
network = "10.77.0.0/24"
"""
SYSTEM = Loaders({"bios": "boot/pxelinux.0", "uefi-x64": "boot/grubx64.efi", "ipxe": SCRIPT})
NODE = Node("n1", ("52:54:00:00:00:01",), address=IPv4Address("10.77.0.11"))
PXE60, HTTP60 = (60, b"PXEClient"), (60, b"HTTPClient")
SCRIPT_PLAN = Plan("boot/boot.ipxe", options=((175, NO_PXEDHCP),))
# The features of Debian's iPXE: no FTP (boot-clients.md).
FEATURES = bytes.fromhex("10010111010112010113010115010117010118010119010121010127 0101".replace(" ", ""))


def request(
    vendor_class: bytes = b"",
    architecture: int | None = None,
    user_class: bytes = b"",
    ipxe: bytes = b"",
    mac: str = "52:54:00:00:00:01",
    machine_id: bytes = b"",
    node: Node | None = None,
) -> BootRequest:
    """Return what the DHCP service makes of these options."""
    codes = b"" if architecture is None else architecture.to_bytes(2)
    return BootRequest(
        mac=mac,
        interface="eth0",
        network=LAB,
        server=IPv4Address("10.77.0.1"),
        stage=stage_of(vendor_class, user_class, ipxe),
        architecture=architecture_of(codes, vendor_class),
        vendor_class=vendor_class,
        user_class=user_class,
        ipxe_features=features_of(ipxe),
        machine_id=machine_id,
        node=node,
    )


BIOS_ROM = request(b"PXEClient:Arch:00000:UNDI:002001", 0)
OVMF = request(b"PXEClient:Arch:00007:UNDI:003016", 7)
OVMF_HTTP = request(b"HTTPClient:Arch:00016:UNDI:003001", 0x10)
IPXE = request(b"PXEClient:Arch:00000:UNDI:002001", 0, b"iPXE", FEATURES)
PI3 = request(b"PXEClient:Arch:00000:UNDI:002001", 0, mac="b8:27:eb:12:34:56")
PI5 = request(b"PXEClient:Arch:00041:UNDI:002001", 0x29, mac="d8:3a:dd:12:34:56")


def policy(more: str = "", loaders: Loaders = SYSTEM) -> Policy:
    """Return the policy of a configuration with `more` in it."""
    document = tomllib.loads(BASE)
    merge(document, tomllib.loads(more))
    config = Config.model_validate(document)
    by_class = {**loaders.by_class, **config.boot.loaders}
    return Policy(config, config.all_nodes(), replace(loaders, by_class=by_class))


def merge(base: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            merge(base.setdefault(key, {}), value)
        else:
            base[key] = value


def decide(asked: BootRequest, more: str = "", loaders: Loaders = SYSTEM) -> Plan:
    plan = policy(more, loaders).decide(asked)
    assert isinstance(plan, Plan)
    return plan


def node(name: str = "n1", more: str = "") -> Node:
    """Return a node as the configuration reads it."""
    text = f'interface = "lo"\n[[nodes]]\nname = "{name}"\nmacs = ["52:54:00:00:00:01"]\n{more}'
    return Config.model_validate(tomllib.loads(text)).all_nodes()[0]


# ---- who gets what


@pytest.mark.parametrize(
    ("asked", "plan"),
    [
        pytest.param(BIOS_ROM, Plan("boot/pxelinux.0"), id="BIOS ROM"),
        pytest.param(OVMF, Plan("boot/grubx64.efi"), id="UEFI x64"),
        pytest.param(
            request(b"PXEClient:Arch:00009:UNDI:003016", 9),
            Plan("boot/grubx64.efi"),
            id="x64 firmware that says EBC (xcat2/xcat-core#7645)",
        ),
        pytest.param(IPXE, SCRIPT_PLAN, id="iPXE in a ROM or undionly.kpxe (boot-clients.md, capture 6)"),
        pytest.param(request(b"PXEClient:Arch:00007", 7, b"iPXE"), SCRIPT_PLAN, id="iPXE on UEFI, by class 77"),
        pytest.param(request(b"PXEClient:Arch:00007", 7, b"\x04iPXE"), SCRIPT_PLAN, id="class 77 by RFC 3004"),
        pytest.param(request(b"PXEClient:Arch:00007", 7, b"\x02ab\x04iPXE"), SCRIPT_PLAN, id="the second class"),
        pytest.param(request(b"PXEClient:Arch:00000", 0, b"", FEATURES), SCRIPT_PLAN, id="iPXE by option 175"),
        pytest.param(request(b"", None, b"iPXE"), SCRIPT_PLAN, id="iPXE without an architecture"),
        pytest.param(request(b"", 0xFFFF, b"iPXE", FEATURES), SCRIPT_PLAN, id="iPXE for s390x"),
        pytest.param(request(), Plan(), id="syslinux.efi's second DHCP, or GRUB's net_bootp"),
        pytest.param(request(b"d-i"), Plan(), id="the installer of Debian"),
        pytest.param(request(b"anaconda-Linux 5.14.0 x86_64"), Plan(), id="Anaconda"),
        pytest.param(request(b"MSFT 5.0"), Plan(), id="an operating system"),
        pytest.param(request(b"HTTPClient", None), Plan(), id="HTTP boot without architecture"),
        pytest.param(request(b"PXEClient", 0xFFFF), Plan(), id="an architecture not said"),
        pytest.param(request(b"U-Boot.armv8"), Plan(), id="U-Boot looks for pxelinux.cfg itself"),
        pytest.param(request(b" U-boot.armv8.armada3700", 0x100), Plan(), id="U-Boot before it had a code"),
        pytest.param(request(b"U-Boot.x86", 0), Plan(), id="U-Boot is no BIOS, whatever its code"),
        pytest.param(request(b"Linux-4.19 petitboot", 0x0E), Plan(), id="petitboot looks for pxelinux.cfg itself"),
        pytest.param(request(b"onie_vendor:x86_64-acme_1-r0"), Plan(), id="ONIE is left alone"),
    ],
)
def test_the_plan_of_a_client(asked: BootRequest, plan: Plan) -> None:
    assert decide(asked) == plan


@pytest.mark.parametrize("asked", [BIOS_ROM, OVMF, IPXE, PI3, request()])
def test_a_node_keeps_its_address_in_every_stage(asked: BootRequest) -> None:
    plain = decide(asked)
    assert plain.scope is Scope.CLASS
    assert decide(replace(asked, node=NODE)) == replace(plain, address=NODE.address, scope=Scope.MACHINE)


def test_a_node_without_address_has_a_plan_of_its_own() -> None:
    assert decide(request(node=replace(NODE, address=None))) == Plan(scope=Scope.MACHINE)


@pytest.mark.parametrize("asked", [BIOS_ROM, OVMF, IPXE, request()])
def test_strangers_can_be_ignored(asked: BootRequest) -> None:
    ignore = 'boot.unknown = "ignore"'
    assert policy(ignore).decide(asked) is IGNORE
    assert isinstance(policy(ignore).decide(replace(asked, node=NODE)), Plan)
    assert decide(asked, 'boot.unknown = "local"') == decide(asked)


# ---- architectures


IANA = {code: name for code, name in ARCHITECTURES.items() if code <= 0x29}


def test_every_assigned_architecture_has_a_class() -> None:
    """protocol-facts.md A5: codes 0x00 to 0x29."""
    assert sorted(IANA) == list(range(0x2A))
    http = {code for code, name in IANA.items() if name.startswith("http-")}
    assert http == {0x0F, 0x10, 0x11, 0x12, 0x13, 0x14, 0x17, 0x18, 0x1A, 0x1C, 0x1E, 0x26, 0x28}
    shared = {name for name in IANA.values() if list(IANA.values()).count(name) > 1}
    assert shared == {"uefi-x64", "http-x64"}, "EBC is sent by x64 machines"
    assert set(CHOICES) <= set(IANA.values())


@pytest.mark.parametrize("code", [code for code, name in IANA.items() if not name.startswith("http-")])
def test_every_architecture_can_be_given_a_loader(code: int) -> None:
    class_ = ARCHITECTURES[code]
    plan = decide(
        request(f"PXEClient:Arch:{code:05}:UNDI:003016".encode(), code), f'boot.loaders.{class_} = "x.bin"'
    )
    assert plan.loader == "x.bin"
    assert not plan.remark
    assert plan.options == (decide(PI5).options if class_ == "rpiboot" else ())


@pytest.mark.parametrize("code", [code for code, name in IANA.items() if name.startswith("http-")])
def test_every_http_architecture_can_be_given_a_url(code: int) -> None:
    class_ = ARCHITECTURES[code]
    asked = request(f"HTTPClient:Arch:{code:05}:UNDI:003001".encode(), code)
    more = f'boot.loaders.{class_} = "http://{{server}}/x.efi"'
    assert decide(asked, more) == Plan("http://10.77.0.1/x.efi", options=(HTTP60,))
    without = decide(asked, loaders=Loaders({"ipxe": SCRIPT}))
    assert (without.loader, without.options) == (None, (HTTP60,))
    assert f"boot.loaders.{class_}" in without.remark


def test_an_unknown_architecture_gets_an_address_and_a_remark() -> None:
    asked = request(b"PXEClient:Arch:00064", 0x40)
    plan = decide(asked)
    assert plan == Plan(remark=plan.remark)
    assert plan.remark.startswith("architecture 0x0040 is unknown: ")
    assert class_of(0x40) == "arch-0x0040"
    assert decide(asked, 'boot.loaders.arch-0x0040 = "new.efi"') == Plan("new.efi")


def test_a_known_architecture_without_loader_says_which_key_is_missing() -> None:
    assert "boot.loaders.uefi-arm64" in decide(request(b"PXEClient:Arch:00011", 0x0B)).remark


def test_an_administrator_names_a_new_architecture() -> None:
    named = '[boot.architectures]\n0x0040 = "uefi-newcpu"\n65 = "http-newcpu"\n'
    more = named + '[boot.loaders]\nuefi-newcpu = "new.efi"\nhttp-newcpu = "http://{server}/new.efi"\n'
    assert decide(request(b"PXEClient:Arch:00064", 0x40), more) == Plan("new.efi")
    asked = request(b"HTTPClient:Arch:00065:UNDI:003001", 0x41)
    assert decide(asked, more) == Plan("http://10.77.0.1/new.efi", options=(HTTP60,))
    assert "boot.loaders.uefi-newcpu" in decide(request(b"PXEClient:Arch:00064", 0x40), named).remark
    with pytest.raises(ConfigError, match=r"boot\.loaders\.uefi-newcpu: there is no class 'uefi-newcpu'"):
        policy('[boot.loaders]\nuefi-newcpu = "new.efi"')
    # An assigned code may be meant otherwise: here EBC is EBC.
    assert "uefi-ebc" in decide(request(b"PXEClient:Arch:00009", 9), '[boot.architectures]\n9 = "uefi-ebc"').remark


def test_http_boot_with_the_architecture_of_pxe() -> None:
    more = '[boot.loaders]\nhttp-x64 = "http://10.77.0.1/g.efi"'
    assert decide(request(b"HTTPClient:Arch:00007:UNDI:003001", 7), more).loader == "http://10.77.0.1/g.efi"


def test_uboot_takes_a_boot_file_of_its_class() -> None:
    more = (
        '[boot.loaders]\nuboot-arm64 = "boot.scr.uimg"\nuboot = "any.img"\nhttp-uboot-arm64 = "http://{server}/x"'
    )
    assert decide(request(b"U-Boot.armv8"), more) == Plan("boot.scr.uimg")
    assert decide(request(b"U-Boot.armv8", 0x16), more) == Plan("boot.scr.uimg")
    assert decide(request(b"U-Boot.mips"), more) == Plan("any.img")
    # Its EFI asks for HTTP with U-Boot's class: the URL, and no class that it did not send.
    assert decide(request(b"U-Boot.armv8", 0x18), more) == Plan("http://10.77.0.1/x")


# ---- UEFI HTTP Boot


def test_the_address_in_a_url_is_that_of_the_receiving_interface() -> None:
    more = '[boot.loaders]\nhttp-x64 = "http://{server}:8080/g.efi"'
    assert decide(OVMF_HTTP, more).loader == "http://10.77.0.1:8080/g.efi"
    other = replace(OVMF_HTTP, interface="eth1", server=IPv4Address("10.78.0.1"))
    assert decide(other, more).loader == "http://10.78.0.1:8080/g.efi"
    assert decide(OVMF_HTTP, more + '\n[dhcp]\nnext_server = "10.77.0.9"').loader == "http://10.77.0.9:8080/g.efi"


def test_http_boot_is_never_given_a_path() -> None:
    with pytest.raises(
        ConfigError, match=r'http-x64: g\.efi is no URL; write one such as "http://\{server\}/g\.efi"'
    ):
        policy('[boot.loaders]\nhttp-x64 = "g.efi"')
    # One loader for whatever firmware a node has is for PXE; by HTTP it gets what its class gets.
    own = replace(OVMF_HTTP, node=node(more='loader = "own.efi"'))
    plan = decide(own, '[boot.loaders]\nhttp-x64 = "http://10.77.0.1/g.efi"')
    assert plan.loader == "http://10.77.0.1/g.efi"


def test_a_url_for_any_firmware_is_for_who_fetches_by_http() -> None:
    own = node(more='loader = "http://10.77.0.9/own.efi"')
    http = '[boot.loaders]\nhttp-x64 = "http://10.77.0.1/g.efi"'
    assert decide(replace(OVMF_HTTP, node=own), http).loader == "http://10.77.0.9/own.efi"
    assert decide(replace(OVMF, node=own), http).loader == "boot/grubx64.efi"
    assert decide(replace(BIOS_ROM, node=own), http).loader == "boot/pxelinux.0"
    assert decide(OVMF, '[boot.loaders]\nuefi-x64 = "http://10.77.0.1/g.efi"').loader == "http://10.77.0.1/g.efi"


# ---- iPXE


def test_ipxe_waits_for_other_servers_where_there_may_be_any() -> None:
    assert decide(IPXE).options == ((175, NO_PXEDHCP),)
    assert decide(IPXE, 'dhcp.known_servers = ["10.77.0.2"]').options == ()


def test_ipxe_gets_a_url_only_if_it_can_fetch_it() -> None:
    more = '[boot.loaders]\nipxe = "http://10.77.0.1/boot.ipxe"'
    assert decide(IPXE, more) == replace(SCRIPT_PLAN, loader="http://10.77.0.1/boot.ipxe")
    without = decide(replace(IPXE, ipxe_features=IPXE.ipxe_features - {0x13}), more)
    assert without.loader == SCRIPT
    assert "http" in without.remark
    # It lists nothing: unknown.
    assert decide(replace(IPXE, ipxe_features=frozenset()), more).loader == "http://10.77.0.1/boot.ipxe"


@pytest.mark.parametrize(
    "loader", ["boot/undionly.kpxe", "ipxe.efi", "http://10.77.0.1/snponly.efi?x=1", "pxelinux.0", "IPXE.LKRN"]
)
def test_ipxe_can_not_be_configured_into_a_loop(loader: str) -> None:
    for key in ("[boot.loaders]\nipxe", '[[groups]]\nname = "g"\nloader.ipxe'):
        with pytest.raises(ConfigError, match=r"\.ipxe: .* is a boot program.* name a script"):
            policy(f'{key} = "{loader}"')
    # A program for whatever firmware a node has is not for iPXE, which that program may be.
    assert decide(replace(IPXE, node=node(more=f'loader = "{loader}"'))).loader == SCRIPT


@given(
    vendor_class=st.sampled_from([b"", b"PXEClient:Arch:00007", b"HTTPClient:Arch:00016", b"d-i", b"U-Boot"])
    | st.binary(),
    architecture=st.none() | st.sampled_from(sorted(ARCHITECTURES)) | st.integers(0, 0xFFFF),
    user_class=st.sampled_from([b"", b"iPXE", b"\x04iPXE"]) | st.binary(),
    ipxe=st.binary(max_size=8),
    machine_id=st.sampled_from([b"", b"\0RPi4" + bytes(12), b"\0" + b"\x44" * 16]),
)
def test_whatever_is_asked(
    vendor_class: bytes, architecture: int | None, user_class: bytes, ipxe: bytes, machine_id: bytes
) -> None:
    by_class = {
        class_: f"http://h/{class_}" if class_.startswith("http-") else f"{class_}.efi"
        for class_ in ARCHITECTURES.values()
    }
    asked = request(vendor_class, architecture, user_class, ipxe, machine_id=machine_id)
    plan = decide(asked, loaders=Loaders({**by_class, "ipxe": SCRIPT}))
    options = dict(plan.options)
    if asked.stage is Stage.IPXE:
        assert plan.loader == SCRIPT
    elif plan.loader and plan.loader.startswith("http"):
        assert options.get(60) in (None, b"HTTPClient")
    assert (60 in options) == (vendor_class.startswith(b"HTTPClient") or plan.loader == "rpiboot.efi")
    assert (43 in options) == (plan.loader == "rpiboot.efi")


# ---- Raspberry Pi


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(PI3, id="Pi 3, by its MAC address"),
        pytest.param(PI5, id="Pi 5, by its code"),
        pytest.param(replace(BIOS_ROM, machine_id=b"\0" + b"\x44" * 16), id="Pi 3 with a MAC of its owner's"),
        pytest.param(replace(BIOS_ROM, machine_id=b"\0RPi4" + bytes(12)), id="Pi 4 with a MAC of its owner's"),
    ],
)
def test_a_raspberry_pi_gets_its_words(asked: BootRequest) -> None:
    assert decide(asked) == Plan(options=((66, b"10.77.0.1"), (43, RASPBERRY_MENU), PXE60))
    # protocol-facts.md B7: the value that works.
    assert (
        bytes.fromhex("0601030a0400505845 091400 0011".replace(" ", "")) + b"Raspberry Pi Boot\xff"
        == RASPBERRY_MENU
    )
    assert len(RASPBERRY_MENU) == 0x20


def test_other_programs_on_a_raspberry_pi_are_no_raspberry_pi() -> None:
    """UEFI for the Pi (pftf), U-Boot, iPXE and an operating system, with its MAC address."""
    for asked, loader in [
        (request(b"PXEClient:Arch:00011:UNDI:003000", 0x0B, mac=PI3.mac), "arm64.efi"),
        (request(b"U-Boot.armv8", mac=PI3.mac), None),
        (request(b"PXEClient:Arch:00011", 0x0B, b"iPXE", FEATURES, mac=PI3.mac), SCRIPT),
        (request(b"dhcpcd-9.4.1", mac=PI3.mac), None),
    ]:
        plan = decide(asked, '[boot.loaders]\nuefi-arm64 = "arm64.efi"')
        assert plan.loader == loader
        assert not {43, 60} & dict(plan.options).keys()


def test_what_tells_a_raspberry_pi_is_told_to_the_core() -> None:
    macs, machine_ids = signs_of(Dhcp())
    assert bytes.fromhex("b827eb") in macs
    assert any((b"\0RPi5" + bytes(12)).startswith(sign) for sign in machine_ids)


# ---- ONIE


def test_onie_gets_an_installer_where_it_is_asked_for() -> None:
    asked = request(b"onie_vendor:x86_64-acme_1-r0")
    url = "http://{server}/nos.bin"
    assert decide(asked, f'[boot.loaders]\nonie = "{url}"') == Plan(options=((114, b"http://10.77.0.1/nos.bin"),))
    by_option = f'[[dhcp.classes]]\nname = "onie"\noptions.default-url = "{url}"'
    assert decide(asked, by_option) == Plan(asked=((114, b"http://10.77.0.1/nos.bin"),))
    for other in (BIOS_ROM, OVMF, request()):
        assert 114 not in dict((*decide(other, by_option).options, *decide(other, by_option).asked))
    with pytest.raises(ConfigError, match=r"boot\.loaders\.onie: nos\.bin is no URL"):
        policy('[boot.loaders]\nonie = "nos.bin"')


# ---- what the configuration says: subnet < class < group < node

LAYERS = """
[boot.loaders]
uefi-x64 = "class.efi"
dell = "dell.efi"
[dhcp.options]
ntp-servers = "10.77.0.1"
[[dhcp.classes]]
name = "uefi-x64"
lease = "2m"
next_server = "10.77.0.2"
options = { ntp-servers = "10.77.0.2", root-path = "class", 224 = { text = "{server}", always = true } }
[[dhcp.classes]]
name = "dell"
macs = ["52:54:00"]
firmware = "uefi-x64"
options = { root-path = "dell" }
[[groups]]
name = "rack7"
lease = "3m"
next_server = "10.77.0.3"
loader = { uefi-x64 = "group.efi", bios = "group.0" }
options = { root-path = "group", ntp-servers = "10.77.0.3" }
"""


def test_the_more_specific_is_stronger() -> None:
    other = replace(OVMF, mac="02:00:00:00:00:01")
    plan = decide(other, LAYERS)
    assert (plan.loader, plan.lease, plan.next_server) == ("class.efi", 120, IPv4Address("10.77.0.2"))
    assert dict(plan.asked) == {42: bytes((10, 77, 0, 2)), 17: b"class"}
    assert plan.options == ((224, b"10.77.0.2"),)
    assert plan.scope is Scope.CLASS

    plan = decide(OVMF, LAYERS)
    assert (plan.loader, plan.lease, dict(plan.asked)[17]) == ("dell.efi", 120, b"dell")
    assert plan.scope is Scope.CLASS

    plan = decide(replace(OVMF, node=node(more='group = "rack7"')), LAYERS)
    assert (plan.loader, plan.lease, plan.next_server) == ("group.efi", 180, IPv4Address("10.77.0.3"))
    assert dict(plan.asked) == {42: bytes((10, 77, 0, 3)), 17: b"group"}
    assert plan.options == ((224, b"10.77.0.3"),)
    assert plan.scope is Scope.MACHINE

    own = 'group = "rack7"\nlease = "4m"\nnext_server = "10.77.0.4"\nloader = "node.efi"\n'
    plan = decide(replace(OVMF, node=node(more=own + 'options = { root-path = "node" }')), LAYERS)
    assert (plan.loader, plan.lease, plan.next_server) == ("node.efi", 240, IPv4Address("10.77.0.4"))
    assert dict(plan.asked) == {42: bytes((10, 77, 0, 3)), 17: b"node"}

    assert decide(replace(BIOS_ROM, node=node(more='group = "rack7"')), LAYERS).loader == "group.0"


def test_an_option_that_firmware_needs_stays_where_it_is_set_otherwise() -> None:
    plan = decide(PI3, '[[dhcp.classes]]\nname = "rpiboot"\noptions.vendor-options = "01 02"')
    assert dict(plan.options)[43] == b"\1\2"
    assert plan.asked == ()


@pytest.mark.parametrize(
    ("match", "held", "others"),
    [
        ('vendor_class = "Cisco"', request(b"Cisco AP c3700"), [request(b"cisco"), request()]),
        ('vendor_class = ["A", "B"]', request(b"Bx"), [request(b"Cx")]),
        ('user_class = "lab"', request(user_class=b"\x03lab"), [request(user_class=b"labs"), request()]),
        ('user_class = "lab"', request(user_class=b"lab"), [request(user_class=b"\x04labs")]),
        ('macs = "52-54"', OVMF, [replace(OVMF, mac="02:54:00:00:00:01")]),
        ('firmware = ["bios", "uefi-x64"]', OVMF, [IPXE, request(), PI3, OVMF_HTTP]),
        ('firmware = "ipxe"', IPXE, [OVMF, BIOS_ROM]),
        ('subnets = "10.77.0.0/24"', OVMF, [replace(OVMF, network=IPv4Network("10.78.0.0/24"))]),
        ('firmware = "uefi-x64"\nmacs = "52:54"', OVMF, [BIOS_ROM, replace(OVMF, mac="02:54:00:00:00:01")]),
    ],
)
def test_a_class_of_the_configuration(match: str, held: BootRequest, others: list[BootRequest]) -> None:
    more = f'[[dhcp.classes]]\nname = "own"\n{match}\noptions.224 = {{ u8 = 1 }}'
    assert decide(held, more).asked == ((224, b"\1"),)
    for other in others:
        assert decide(other, more).asked == ()


def test_the_macs_of_classes_are_told_to_the_core() -> None:
    config = Config.model_validate(
        tomllib.loads(BASE + '[[dhcp.classes]]\nname = "own"\nmacs = ["02:0a", "02:0b"]')
    )
    assert config.dhcp
    assert {b"\x02\x0a", b"\x02\x0b"} <= set(signs_of(config.dhcp)[0])
    many = [f"02:{number >> 8:02x}:{number & 255:02x}" for number in range(300)]
    with pytest.raises(ConfigError, match="256 is the most"):
        signs_of(Dhcp.model_validate({"classes": [{"name": "own", "macs": many}]}))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[boot.loaders]\nuefi = "x"', r"boot\.loaders\.uefi: there is no class 'uefi'; did you mean 'uefi-"),
        ('[[groups]]\nname = "g"\nloader = { uefi = "x" }', r"groups g\.loader\.uefi: there is no class"),
        (
            '[[nodes]]\nname = "n"\nmacs = ["52:54:00:00:00:01"]\nloader.x = "x"',
            r"nodes n\.loader\.x: there is no",
        ),
        (
            '[[dhcp.classes]]\nname = "phones"',
            r"dhcp\.classes\[0\]: has no machines .* no class of firmware 'phones'",
        ),
        ('[[dhcp.classes]]\nname = "bios"\nmacs = "52"', r"dhcp\.classes\[0\]\.name: bios is a class of firmware"),
        ('[[dhcp.classes]]\nname = "a"\nfirmware = "uefi-x46"', r"\[0\]\.firmware: .* did you mean 'uefi-x64'"),
        (
            '[[dhcp.classes]]\nname = "a"\nmacs = "52"\n[[dhcp.classes]]\nname = "a"\nmacs = "53"',
            r"dhcp\.classes\[1\]\.name: a is there twice",
        ),
    ],
)
def test_what_can_not_be_meant_is_refused(more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policy(more)


def test_the_boot_files_that_are_checked() -> None:
    more = """
    [boot.loaders]
    uefi-x64 = "a.efi"
    [[groups]]
    name = "g"
    loader = { bios = "b.0" }
    [[nodes]]
    name = "n"
    macs = ["52:54:00:00:00:01"]
    loader = "c.efi"
    [[nodes]]
    name = "elsewhere"
    macs = ["52:54:00:00:00:02"]
    loader = "d.efi"
    next_server = "10.77.0.9"
    """
    assert {key: file for key, file, _ in policy(more).boot_files()} == {
        "boot.loaders.bios": "boot/pxelinux.0",
        "boot.loaders.uefi-x64": "a.efi",
        "boot.loaders.ipxe": SCRIPT,
        "groups g.loader.bios": "b.0",
        "nodes n.loader": "c.efi",
    }


# ---- the loaders of this system


def test_loaders_of_this_system(tmp_path: Path) -> None:
    fedora = tmp_path / "usr/share/syslinux"
    fedora.mkdir(parents=True)
    for name in ("pxelinux.0", "lpxelinux.0", "ldlinux.c32", "menu.c32"):
        (fedora / name).touch()
    suse = tmp_path / "usr/share/efi/x86_64"
    suse.mkdir(parents=True)
    (suse / "grub.efi").touch()
    loaders = find_loaders({"bios": "lpxelinux.0"}, tmp_path)
    assert loaders.by_class == {"bios": "lpxelinux.0", "uefi-x64": "boot/grubx64.efi", "ipxe": SCRIPT}
    assert loaders.files == {
        "pxelinux.0": fedora / "pxelinux.0",
        "lpxelinux.0": fedora / "lpxelinux.0",
        "ldlinux.c32": fedora / "ldlinux.c32",
        "menu.c32": fedora / "menu.c32",
        "grubx64.efi": suse / "grub.efi",
    }
    assert loaders.complaints == ()


def test_who_speaks_http_is_sent_there_where_files_are_served_by_it(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/ipxe").mkdir(parents=True)
    (tmp_path / "usr/lib/ipxe/snponly.efi").touch()
    assert "http-x64" not in find_loaders({}, tmp_path).by_class
    served = find_loaders({}, tmp_path, http="http://{server}:8080")
    assert decide(IPXE, loaders=served).loader == "http://10.77.0.1:8080/boot/boot.ipxe"
    without = decide(replace(IPXE, ipxe_features=IPXE.ipxe_features - {0x13}), loaders=served)
    assert (without.loader, without.remark) == (SCRIPT, "")
    assert served.files["snponly.efi"] == tmp_path / "usr/lib/ipxe/snponly.efi"
    assert decide(OVMF_HTTP, loaders=served) == Plan("http://10.77.0.1:8080/boot/snponly.efi", options=(HTTP60,))
    own = find_loaders({"http-x64": "http://h/own.efi"}, tmp_path, http="http://{server}")
    assert own.by_class["http-x64"] == "http://h/own.efi"
    for port, url in ((80, "http://{server}"), (8080, "http://{server}:8080"), (0, None)):
        assert http_url(Config(interface="lo", http={"port": port})) == url  # type: ignore[arg-type]
    assert http_url(Config(interface="lo")) is None  # type: ignore[arg-type]


def test_lpxelinux_is_sent_on_by_http() -> None:
    """Option 210 is put before every name that it fetches: its modules, its configuration, the kernel."""
    programs = {"boot/lpxelinux.0": Program(Kind.LPXELINUX), "lab/l.0": Program(Kind.LPXELINUX)}

    def ask(more: str, http: str | None = "http://{server}:8080") -> Plan:
        document = tomllib.loads(BASE)
        merge(document, tomllib.loads(more))
        config = Config.model_validate(document)
        loaders = Loaders(config.boot.loaders)
        chains = Chains(programs.get, http is not None)
        plan = Policy(config, config.all_nodes(), loaders, chains, http).decide(BIOS_ROM)
        assert isinstance(plan, Plan)
        return plan

    plan = ask('boot.loaders.bios = "boot/lpxelinux.0"')
    assert plan.options == ((210, b"http://10.77.0.1:8080/boot/"),)
    assert plan.chain == "lpxelinux.0 by TFTP, pxelinux.cfg, kernel, initrd by HTTP"
    assert ask('boot.loaders.bios = "/lab/l.0"').options == ((210, b"http://10.77.0.1:8080/lab/"),)
    assert ask('boot.loaders.bios = "boot/pxelinux.0"').options == ()
    assert ask('boot.loaders.bios = "boot/lpxelinux.0"', http=None).options == ()
    own = ask('boot.loaders.bios = "boot/lpxelinux.0"\n[dhcp.options]\npxelinux-path-prefix = "tftp://h/"')
    assert own.options == (), "what is set for the subnet, and comes with it"
    elsewhere = ask('boot.loaders.bios = "boot/lpxelinux.0"\ndhcp.next_server = "10.77.0.9"')
    assert (elsewhere.options, elsewhere.chain) == ((), ""), "of another machine's files nothing is known"


def test_the_value_for_proxies_ends() -> None:
    """protocol-facts.md A4: the plain value, with which EDK2 and iPXE take the boot file of the offer."""
    assert bytes.fromhex("0601080a0400505845ff") == SKIP_DISCOVERY


def test_a_verdict_is_a_plan_or_silence() -> None:
    verdict: Verdict = policy().decide(OVMF)
    assert isinstance(verdict, Plan)

"""Which machine is given what: requests as real firmware sends them, and the plans they get."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastboot.boot.firmware import ARCHITECTURES, LOADERS, SCRIPT, Loaders, class_of, find_loaders
from fastboot.boot.policy import NO_PXEDHCP, Policy, is_ipxe
from fastboot.config import Boot
from fastboot.model import IGNORE, BootRequest, ConfigError, Node, Plan, Scope, Stage, Verdict

MENU = Boot()
LOADERS_HERE = Loaders({"bios": "boot/pxelinux.0", "uefi-x64": "boot/grubx64.efi", "ipxe": SCRIPT})
NODE = Node("n1", ("52:54:00:00:00:01",), address=IPv4Address("10.77.0.11"))
SCRIPT_PLAN = Plan("boot/boot.ipxe", options=(NO_PXEDHCP,))


def request(
    vendor_class: bytes = b"",
    architecture: int | None = None,
    user_class: bytes = b"",
    features: frozenset[int] = frozenset(),
    node: Node | None = None,
    stage: Stage = Stage.ROM,
) -> BootRequest:
    return BootRequest(
        mac="52:54:00:00:00:01",
        interface="eth0",
        network=IPv4Network("10.77.0.0/24"),
        server=IPv4Address("10.77.0.1"),
        stage=stage,
        architecture=architecture,
        vendor_class=vendor_class,
        user_class=user_class,
        ipxe_features=features,
        node=node,
    )


BIOS_ROM = request(b"PXEClient:Arch:00000:UNDI:002001", 0)
OVMF = request(b"PXEClient:Arch:00007:UNDI:003016", 7)
# The features of Debian's iPXE: no FTP (boot-clients.md).
IPXE_FEATURES = frozenset({0x10, 0x11, 0x12, 0x13, 0x15, 0x17, 0x18, 0x19, 0x21, 0x27})
IPXE = replace(BIOS_ROM, user_class=b"iPXE", ipxe_features=IPXE_FEATURES)


def decide(asked: BootRequest, loaders: Loaders = LOADERS_HERE, boot: Boot = MENU) -> Verdict:
    return Policy(boot, loaders).decide(asked)


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
        pytest.param(replace(OVMF, user_class=b"iPXE"), SCRIPT_PLAN, id="iPXE on UEFI, by class 77 alone"),
        pytest.param(replace(OVMF, user_class=b"\x04iPXE"), SCRIPT_PLAN, id="iPXE with a class by RFC 3004"),
        pytest.param(replace(OVMF, user_class=b"\x02ab\x04iPXE"), SCRIPT_PLAN, id="iPXE as the second class"),
        pytest.param(
            replace(BIOS_ROM, ipxe_features=IPXE_FEATURES), SCRIPT_PLAN, id="iPXE without class, by option 175"
        ),
        pytest.param(request(user_class=b"iPXE"), SCRIPT_PLAN, id="iPXE without an architecture"),
        pytest.param(request(), Plan(), id="syslinux.efi's second DHCP, or GRUB's net_bootp"),
        pytest.param(request(b"U-Boot"), Plan(), id="U-Boot's first DHCP"),
        pytest.param(request(b"d-i"), Plan(), id="the installer of Debian"),
        pytest.param(request(b"anaconda-Linux 5.14.0 x86_64"), Plan(), id="Anaconda"),
        pytest.param(request(b"MSFT 5.0"), Plan(), id="an operating system"),
        pytest.param(request(b"PXEClient:Arch:00011", 0x0B), Plan(), id="an architecture without loader"),
        pytest.param(request(b"PXEClient:Arch:00064", 0x40), Plan(), id="an unknown architecture"),
        pytest.param(request(b"PXEClient:Arch:65535", 0xFFFF), Plan(), id="an architecture not given"),
        pytest.param(request(b"HTTPClient:Arch:00016:UNDI:003001", 0x10), Plan(), id="HTTP boot without a URL"),
        pytest.param(request(b"HTTPClient", None), Plan(), id="HTTP boot without architecture"),
    ],
)
def test_the_plan_of_a_client(asked: BootRequest, plan: Plan) -> None:
    assert decide(asked) == plan


@pytest.mark.parametrize("asked", [BIOS_ROM, OVMF, IPXE, request()])
def test_a_node_keeps_its_address_in_every_stage(asked: BootRequest) -> None:
    plain = decide(asked)
    assert isinstance(plain, Plan)
    assert decide(replace(asked, node=NODE)) == replace(plain, address=NODE.address, scope=Scope.MACHINE)


def test_a_node_without_address_has_a_plan_of_its_own() -> None:
    assert decide(request(node=replace(NODE, address=None))) == Plan(scope=Scope.MACHINE)


@pytest.mark.parametrize("asked", [BIOS_ROM, OVMF, IPXE, request()])
def test_strangers_can_be_ignored(asked: BootRequest) -> None:
    assert decide(asked, boot=Boot(unknown="ignore")) is IGNORE
    assert isinstance(decide(replace(asked, node=NODE), boot=Boot(unknown="ignore")), Plan)
    assert decide(asked, boot=Boot(unknown="local")) == decide(asked)


@given(
    vendor_class=st.sampled_from([b"", b"PXEClient:Arch:00007", b"HTTPClient:Arch:00016", b"d-i"]) | st.binary(),
    architecture=st.none() | st.sampled_from(sorted(ARCHITECTURES)) | st.integers(0, 0xFFFF),
    user_class=st.sampled_from([b"", b"iPXE", b"\x04iPXE"]) | st.binary(),
    features=st.frozensets(st.integers(0, 255)),
)
def test_pxe_clients_get_no_option_60_and_ipxe_no_loader(
    vendor_class: bytes, architecture: int | None, user_class: bytes, features: frozenset[int]
) -> None:
    loaders = Loaders({class_: f"boot/{class_}" for class_ in {*ARCHITECTURES.values()}} | {"ipxe": SCRIPT})
    asked = request(vendor_class, architecture, user_class, features)
    plan = decide(asked, loaders)
    assert isinstance(plan, Plan)
    if is_ipxe(asked):
        assert plan == SCRIPT_PLAN
    elif not vendor_class.startswith(b"HTTPClient"):
        assert plan.options == ()
        assert plan.loader == (None if architecture is None else _loader_by_tftp(architecture, loaders))


def _loader_by_tftp(architecture: int, loaders: Loaders) -> str | None:
    class_ = class_of(architecture)
    return None if class_.startswith("http-") else loaders.by_class.get(class_)


def test_http_boot_with_a_url_of_the_administrator() -> None:
    url = "http://10.77.0.1/boot/grubx64.efi"
    asked = request(b"HTTPClient:Arch:00016:UNDI:003001", 0x10)
    assert decide(asked, find_loaders({"http-x64": url}, Path("/nowhere"))) == Plan(
        url, options=((60, b"HTTPClient"),)
    )


def test_ipxe_gets_a_url_only_if_it_can_fetch_it() -> None:
    loaders = Loaders({"ipxe": "http://10.77.0.1/boot.ipxe"})
    assert decide(IPXE, loaders) == Plan("http://10.77.0.1/boot.ipxe", options=(NO_PXEDHCP,))
    assert decide(replace(IPXE, ipxe_features=IPXE_FEATURES - {0x13}), loaders) == SCRIPT_PLAN
    assert decide(replace(IPXE, ipxe_features=frozenset()), loaders) != SCRIPT_PLAN  # it lists nothing: unknown


@pytest.mark.parametrize(
    "loader", ["boot/undionly.kpxe", "ipxe.efi", "http://10.77.0.1/snponly.efi?x=1", "pxelinux.0", "IPXE.LKRN"]
)
def test_ipxe_can_not_be_configured_into_a_loop(loader: str) -> None:
    with pytest.raises(ConfigError, match=r"boot\.loaders\.ipxe: .* name a script"):
        Policy(MENU, Loaders({"ipxe": loader}))


def test_a_loader_must_fit_the_header() -> None:
    Policy(MENU, Loaders({"bios": "x" * 127}))
    with pytest.raises(ConfigError, match=r"boot\.loaders\.bios: longer than 127 octets"):
        Policy(MENU, Loaders({"bios": "é" * 64}))


def test_rules_of_an_embedding_program_come_first() -> None:
    def quarantine(asked: BootRequest) -> Verdict:
        if asked.architecture == 7:
            return IGNORE
        return Plan("own", scope=Scope.ONCE) if asked.architecture == 0 else None

    policy = Policy(MENU, LOADERS_HERE, [quarantine])
    assert policy.decide(OVMF) is IGNORE
    assert policy.decide(BIOS_ROM) == Plan("own", scope=Scope.ONCE)
    assert policy.decide(replace(BIOS_ROM, node=NODE)) == Plan("own", NODE.address, scope=Scope.ONCE)
    assert policy.decide(IPXE) == Plan("own", scope=Scope.ONCE)
    assert policy.decide(request()) == Plan()


# Firmware


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


def test_architecture_names_are_their_own() -> None:
    assert class_of(0x09) == class_of(0x07) == "uefi-x64"
    assert class_of(0x29) == "rpiboot"
    assert class_of(0x40) == "arch-0x0040"
    assert set(LOADERS) <= set(ARCHITECTURES.values())


def test_an_unknown_architecture_can_be_given_a_loader() -> None:
    asked = request(b"PXEClient:Arch:00064", 0x40)
    assert decide(asked, Loaders({"arch-0x0040": "new.efi"})) == Plan("new.efi")

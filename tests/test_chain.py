"""Boot programs and what they go on with: real files of Debian, and programs of other distributions as made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programkit import grub_image, shim_image, signed_by

from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.boot.chain import Chains, rows
from fastboot.boot.loaders import CHOICES, LOADERS, find_loaders
from fastboot.boot.program import Kind, Program, Programs, recognise
from fastboot.config import Config
from fastboot.model import Client, Refusal, Transport

Need = Callable[[bool, str], None]
SHIM = Path("/usr/lib/shim/shimx64.efi.signed")
GRUB = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
IPXE = Path("/usr/lib/ipxe/snponly.efi")
LINUX = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/linux")
PXELINUX = Path("/usr/lib/PXELINUX")


@pytest.fixture
def installed(need: Need) -> Callable[[Path], bytes]:
    def read(path: Path) -> bytes:
        need(path.exists(), f"{path} is not installed")
        return path.read_bytes()

    return read


# ---- programs


def test_what_debian_signs(installed: Callable[[Path], bytes]) -> None:
    """openssl pkcs7 -print_certs says the same of the signers, grub-mkimage's manual of the modules."""
    shim, grub, linux = (recognise(installed(path)) for path in (SHIM, GRUB, LINUX))
    assert shim.kind is Kind.SHIM and shim.version[:2].isdigit() and shim.loads == "grubx64.efi"
    assert shim.cpu == grub.cpu == linux.cpu == "x64"
    assert all("Microsoft" in signer for signer in shim.signers) and shim.signers
    assert (grub.kind, grub.prefix) == (Kind.GRUB, "/grub")
    assert grub.version.startswith("2.")
    assert {"tftp", "normal", "linux", "efinet", "search"} <= grub.modules
    assert linux.kind is Kind.LINUX and "amd64" in linux.version
    assert grub.signers == linux.signers == ("Debian Secure Boot CA",)
    assert shim.trusts(grub) and shim.trusts(linux) and not shim.trusts(shim)
    assert not (shim.altered or grub.altered or linux.altered)


def test_what_has_no_signature(installed: Callable[[Path], bytes]) -> None:
    ipxe = recognise(installed(IPXE))
    assert ipxe.kind is Kind.IPXE and ipxe.version.startswith("1.") and not ipxe.signers
    told = {name: recognise(installed(PXELINUX / name)) for name in ("pxelinux.0", "lpxelinux.0")}
    assert told["pxelinux.0"] == Program(Kind.PXELINUX, "6.04")
    assert told["lpxelinux.0"] == Program(Kind.LPXELINUX, "6.04")
    assert recognise(installed(IPXE.with_name("undionly.kpxe"))).kind is Kind.IPXE


def test_one_bit_after_the_signature_is_noticed(installed: Callable[[Path], bytes]) -> None:
    data = bytearray(installed(SHIM))
    data[len(data) // 2] ^= 1
    changed = recognise(bytes(data))
    assert changed.altered and changed.signers
    shim, grub = recognise(installed(SHIM)), recognise(installed(GRUB))
    assert shim.trusts(grub) and not shim.trusts(replace(grub, altered=True))


@given(st.data())
def test_a_broken_program_is_nothing_worse_than_unknown(data: st.DataObject) -> None:
    whole = bytearray(grub_image(("normal", "http"), "/grub", signature=b"\x30\x82\x01\x00" + bytes(300)))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    recognise(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_a_program_is_looked_at_once_while_it_stays_the_same(tmp_path: Path) -> None:
    programs, path = Programs(), tmp_path / "file"
    path.write_bytes(grub_image(("http",), "/grub"))
    first = programs.at(path)
    assert first.kind is Kind.GRUB and programs.at(path) is first
    path.write_bytes(b"something else")
    assert programs.at(path) == Program()
    assert programs.at(tmp_path / "missing") == Program()


def test_the_modules_in_a_grub() -> None:
    grub = recognise(grub_image(("normal", "tftp", "http"), "/EFI/fedora"))
    assert grub == Program(
        Kind.GRUB, "2.06-77.el9", modules=frozenset({"normal", "tftp", "http"}), prefix="/EFI/fedora", cpu="x64"
    )


# ---- chains


RED_HAT = b"\x31Red Hat Secure Boot CA"
FILES = {
    "boot/shimx64.efi": Program(Kind.SHIM, "15.8", ("Microsoft",), (b"m",), trusted=b"certificate of " + RED_HAT),
    "boot/grubx64.efi": Program(
        Kind.GRUB,
        "2.06-77.el9",
        ("Red Hat",),
        (RED_HAT,),
        modules=frozenset({"http", "tftp"}),
        prefix="/EFI/redhat",
    ),
    "boot/snponly.efi": Program(Kind.IPXE, "1.21.1"),
    "boot/pxelinux.0": Program(Kind.PXELINUX, "6.04"),
    "boot/lpxelinux.0": Program(Kind.LPXELINUX, "6.04"),
    "own/vmlinuz.efi": Program(Kind.LINUX, "6.1"),
}
SITE = "http://{server}:8080"
OLD = replace(FILES["boot/grubx64.efi"], modules=frozenset({"tftp"}), prefix="/grub")


def chains(http: bool = True, proxy: bool = False, **changed: Program | None) -> Chains:
    """`changed` are programs under /boot by the first part of their names, None for one that is not there."""
    files = {**FILES, **{f"boot/{name}.efi": program for name, program in changed.items()}}
    return Chains(files.get, http, proxy)


@pytest.mark.parametrize(
    ("class_", "boot_file", "http", "told"),
    [
        ("bios", "boot/pxelinux.0", True, "pxelinux.0 by TFTP, pxelinux.cfg, kernel, initrd by TFTP"),
        ("bios", "boot/lpxelinux.0", True, "lpxelinux.0 by TFTP, pxelinux.cfg, kernel, initrd by HTTP"),
        (
            "uefi-x64",
            "boot/shimx64.efi",
            True,
            "shimx64.efi by TFTP, grubx64.efi by TFTP, grub.cfg by TFTP, kernel, initrd by HTTP",
        ),
        (
            "uefi-x64",
            "/boot/shimx64.efi",
            False,
            "shimx64.efi by TFTP, grubx64.efi by TFTP, grub.cfg by TFTP, kernel, initrd by TFTP",
        ),
        (
            "http-x64",
            f"{SITE}/boot/shimx64.efi",
            True,
            "shimx64.efi by HTTP, grubx64.efi by HTTP, grub.cfg by HTTP, kernel, initrd by HTTP",
        ),
        ("*", "boot/snponly.efi", True, "snponly.efi by TFTP, boot.ipxe by HTTP, kernel, initrd by HTTP"),
        ("ipxe", f"{SITE}/boot/boot.ipxe", True, "boot.ipxe by HTTP, kernel, initrd by HTTP"),
        ("ipxe", "ftp://10.77.0.9/own.ipxe", True, "own.ipxe by FTP"),
        ("uefi-x64", "own/vmlinuz.efi", True, "vmlinuz.efi by TFTP"),
        ("uefi-x64", "own/missing.efi", True, "missing.efi by TFTP"),
        ("http-x64", "http://10.77.0.9/boot/shimx64.efi", True, "shimx64.efi by HTTP"),
    ],
)
def test_a_chain(class_: str, boot_file: str, http: bool, told: str) -> None:
    chain = chains(http).of(class_, boot_file)
    assert (str(chain), chain.flaw) == (told, "")


def test_chains_that_end_before_an_operating_system() -> None:
    assert "grubx64.efi is missing" in chains(grubx64=None).of("uefi-x64", "boot/shimx64.efi").flaw
    for name in ("shimx64", "grubx64"):
        assert "no module http" in chains(grubx64=OLD).of("http-x64", f"{SITE}/boot/{name}.efi").flaw
        assert not chains(grubx64=OLD).of("uefi-x64", f"boot/{name}.efi").flaw
        asks = chains(proxy=True).of("uefi-x64", f"boot/{name}.efi")
        assert "asks the server that gave the address" in asks.flaw
        new = replace(OLD, version="2.12-9+deb13u1")
        assert not chains(proxy=True, grubx64=new).of("uefi-x64", f"boot/{name}.efi").flaw
    disc = replace(OLD, modules=frozenset({"iso9660"}))
    assert "no module tftp" in chains(grubx64=disc).of("uefi-x64", "boot/shimx64.efi").flaw
    assert "there is no [http]" in chains(http=False).of("bios", "boot/lpxelinux.0").flaw


@pytest.mark.parametrize(
    ("class_", "boot_file", "told", "ends", "fault"),
    [
        ("uefi-x64", "boot/shimx64.efi", "tftp", "grub.cfg by TFTP, kernel, initrd by TFTP", ""),
        ("uefi-x64", "boot/shimx64.efi", "http", "grub.cfg by TFTP, kernel, initrd by HTTP", ""),
        ("uefi-x64", "boot/old.efi", "http", "kernel, initrd by HTTP", "has no module http, and transport"),
        (
            "http-x64",
            f"{SITE}/boot/web.efi",
            "tftp",
            "kernel, initrd by TFTP",
            "has no module tftp, and transport",
        ),
        ("*", "boot/snponly.efi", "tftp", "boot.ipxe by TFTP, kernel, initrd by TFTP", ""),
        ("*", "boot/snponly.efi", "http", "boot.ipxe by HTTP, kernel, initrd by HTTP", ""),
        ("ipxe", "boot/boot.ipxe", "http", "boot.ipxe by TFTP, kernel, initrd by HTTP", ""),
        ("bios", "boot/lpxelinux.0", "tftp", "pxelinux.cfg, kernel, initrd by TFTP", ""),
        ("bios", "boot/lpxelinux.0", "http", "pxelinux.cfg, kernel, initrd by HTTP", ""),
        ("bios", "boot/pxelinux.0", "http", "kernel, initrd by TFTP", "lpxelinux.0 speaks HTTP"),
    ],
)
def test_the_configuration_says_how_kernels_are_fetched(
    class_: str, boot_file: str, told: Transport, ends: str, fault: str
) -> None:
    web = replace(OLD, modules=frozenset({"http"}))
    chain = chains(old=OLD, web=web).of(class_, boot_file, told)
    assert str(chain).endswith(ends) and fault in chain.flaw and bool(fault) == bool(chain.flaw)


def test_http_demanded_of_a_grub_that_loads_its_module() -> None:
    files = {"boot/grubx64.efi": replace(OLD, signers=("Debian",)), "grub/x86_64-efi/http.mod": Program()}
    chain = Chains(files.get, True).of("uefi-x64", "boot/grubx64.efi", "http")
    assert str(chain).endswith("initrd by HTTP") and not chain.flaw and "Secure Boot forbids" in chain.doubt


def test_a_shim_loads_what_is_built_into_it() -> None:
    """grubx64.efi and its kin, but grub.efi where SUSE built it."""
    suse = replace(FILES["boot/shimx64.efi"], loads="grub.efi")
    assert "boot/grub.efi is missing" in chains(shimx64=suse).of("uefi-x64", "boot/shimx64.efi").flaw
    whole = chains(shimx64=suse, grub=FILES["boot/grubx64.efi"]).of("uefi-x64", "boot/shimx64.efi")
    assert str(whole).startswith("shimx64.efi by TFTP, grub.efi by TFTP") and not whole.flaw


def test_what_secure_boot_refuses() -> None:
    def doubt(**changed: Program | None) -> str:
        return chains(**changed).of("uefi-x64", "boot/shimx64.efi").doubt

    shim, grub = FILES["boot/shimx64.efi"], FILES["boot/grubx64.efi"]
    assert doubt() == ""
    assert "shimx64.efi is not signed" in doubt(shimx64=replace(shim, signers=(), issuers=()))
    assert "grubx64.efi is not signed" in doubt(grubx64=replace(grub, signers=(), issuers=()))
    foreign = doubt(grubx64=replace(grub, signers=("SUSE",), issuers=(b"SUSE",)))
    assert foreign == "boot/grubx64.efi is signed by SUSE, whom boot/shimx64.efi does not know"
    assert "grubx64.efi was altered" in doubt(grubx64=replace(grub, altered=True))
    assert "snponly.efi is not signed" in chains().of("uefi-x64", "boot/snponly.efi").doubt


def test_the_table_of_check() -> None:
    (first, second, *_) = rows("boot.loaders.uefi-x64", chains().of("uefi-x64", "boot/shimx64.efi"))
    assert (first["for"], first["fetches"], first["by"], first["which is"], first["signed by"]) == (
        "uefi-x64", "boot/shimx64.efi", "TFTP", "shim 15.8", "Microsoft",
    )  # fmt: skip
    assert (second["for"], second["who"], second["fetches"]) == ("", "shim", "boot/grubx64.efi")
    (unsigned, *_) = rows("nodes n.loader", chains().of("loader", "boot/snponly.efi"))
    assert (unsigned["for"], unsigned["signed by"]) == ("node n", "not signed")
    told = {"nodes n.loader.bios": "bios of node n", "groups a.b.transport.ipxe": "ipxe of group a.b"}
    told |= {"profiles x.uefi-x64": "uefi-x64 of profile x", "dhcp.classes c.transport.bios": "bios of class c"}
    assert {key: next(rows(key, chains().of("*", "boot/snponly.efi")))["for"] for key in told} == told


# ---- what is chosen


def install(system: Path, **programs: tuple[str, bytes]) -> Path:
    for path, data in programs.values():
        (system / path).parent.mkdir(parents=True, exist_ok=True)
        (system / path).write_bytes(data)
    return system


def distribution(system: Path, text: str) -> Path:
    return install(system, os=("etc/os-release", text.encode()))


def test_every_choice_is_a_loader() -> None:
    assert {name for names in CHOICES.values() for name in names} <= set(LOADERS)


def test_fedora_goes_on_by_http_from_its_own_directories(tmp_path: Path) -> None:
    shim = grub_image((), "", "15.8").replace(b"grub", b"shim")
    install(
        tmp_path,
        shim=("usr/lib/efi/shim/15.8-3/EFI/fedora/shimx64.efi", shim),
        grub=("usr/lib/efi/grub2/1:2.12-28/EFI/fedora/grubx64.efi", grub_image(("http", "tftp"), "/EFI/fedora")),
        arm=("boot/efi/EFI/rocky/shimaa64.efi", shim),
    )
    found = find_loaders({}, tmp_path, http=SITE)
    assert found.by_class["uefi-x64"] == "boot/shimx64.efi"
    assert found.by_class["http-x64"] == f"{SITE}/boot/shimx64.efi"
    assert found.by_class["uefi-arm64"] == "boot/shimaa64.efi", "all that is there, though its GRUB is missing"
    assert "http-x64" not in find_loaders({}, tmp_path).by_class


def test_suse_has_its_grub_under_the_name_that_its_shim_asks_for(tmp_path: Path) -> None:
    install(
        tmp_path,
        shim=("usr/share/efi/x86_64/shim.efi", shim_image("SUSE", loads="grub.efi")),
        grub=("usr/share/efi/x86_64/grub.efi", grub_image(("http", "tftp"), "", signature=signed_by("SUSE"))),
    )
    found = find_loaders({}, tmp_path, http=SITE)
    assert found.by_class["uefi-x64"] == "boot/shimx64.efi" and not found.notes
    assert found.files["grub.efi"] == tmp_path / "usr/share/efi/x86_64/grub.efi"


def test_the_first_whose_chain_is_whole_is_taken(tmp_path: Path) -> None:
    shim = grub_image((), "", "15.8").replace(b"grub", b"shim")
    install(
        tmp_path,
        shim=("usr/lib/shim/shimx64.efi.signed", shim),
        ipxe=("usr/lib/ipxe/snponly.efi", b"iPXE\x001.21.1+git\0"),
        bios=("usr/lib/PXELINUX/pxelinux.0", b"PXELINUX 6.04 PXE"),
        http=("usr/lib/PXELINUX/lpxelinux.0", b"PXELINUX 6.04 lwIP"),
        module=("usr/lib/syslinux/modules/bios/ldlinux.c32", b""),
    )
    alone = find_loaders({}, tmp_path)
    assert (alone.by_class["bios"], alone.by_class["uefi-x64"]) == ("boot/pxelinux.0", "boot/snponly.efi")
    assert any(
        "snponly.efi is taken, not shimx64.efi: boot/grubx64.efi is missing" in note for note in alone.notes
    )
    install(
        tmp_path, grub=("usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", grub_image(("tftp",), "/grub"))
    )
    both = find_loaders({}, tmp_path, http=SITE)
    assert both.by_class["bios"] == "boot/lpxelinux.0"
    assert both.by_class["uefi-x64"] == "boot/shimx64.efi"
    assert both.by_class["http-x64"] == f"{SITE}/boot/snponly.efi"
    assert any("not shimx64.efi: GRUB 2.06-77.el9 has no module http" in note for note in both.notes)
    beside = find_loaders({}, tmp_path, proxy=True)
    assert beside.by_class["uefi-x64"] == "boot/snponly.efi"
    assert any("boot-options" in note for note in beside.notes)
    named = find_loaders({"bios": "boot/pxelinux.0"}, tmp_path, http=SITE)
    assert named.by_class["bios"] == "boot/pxelinux.0"


def test_the_module_of_the_same_build_lets_grub_speak_http(tmp_path: Path) -> None:
    """Debian's signed GRUB has none, and loads it from where its prefix says, unless Secure Boot forbids it."""
    install(
        tmp_path,
        grub=("usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", grub_image(("tftp",), "/grub", "2.06-13")),
        http=("usr/lib/grub/x86_64-efi/http.mod", b"module"),
        about=("usr/lib/grub/x86_64-efi/modinfo.sh", b'grub_package_version="2.06-13"\n'),
    )
    found = find_loaders({}, tmp_path, http=SITE)
    assert found.modules == {"grub/x86_64-efi/http.mod": tmp_path / "usr/lib/grub/x86_64-efi/http.mod"}
    config = Config(interface=("lo",))
    catalog = Catalog(config, found)
    client = Client(IPv4Address(1), IPv4Address(2), "tftp")
    served = catalog.resolve("/grub/x86_64-efi/http.mod", client)
    assert isinstance(served, Source) and served.read() == b"module"
    assert isinstance(catalog.resolve("/grub/x86_64-efi/modinfo.sh", client), Refusal)
    catalog.close()
    known = {"boot/grubx64.efi": replace(OLD, version="2.06-13"), "grub/x86_64-efi/http.mod": Program()}
    assert str(Chains(known.get, True).of("uefi-x64", "boot/grubx64.efi")).endswith(
        "kernel, initrd by HTTP, with Secure Boot TFTP"
    )
    assert str(Chains(known.get, False).of("uefi-x64", "boot/grubx64.efi")).endswith("kernel, initrd by TFTP")
    (tmp_path / "usr/lib/grub/x86_64-efi/modinfo.sh").write_text('grub_package_version="2.06-12"\n')
    assert not find_loaders({}, tmp_path, http=SITE).modules, "another build's"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("ID=debian", "on Debian: apt-get install shim-signed grub-efi-amd64-signed"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "on Fedora: dnf install shim-x64 grub2-efi-x64"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "on SUSE: zypper install shim grub2-x86_64-efi"),
        ("", "on Debian: apt-get install"),
    ],
)
def test_what_is_missing_is_named_with_this_systems_package(tmp_path: Path, text: str, command: str) -> None:
    distribution(tmp_path, text)
    complaints = find_loaders({}, tmp_path).complaints
    assert any(line.startswith("boot.loaders.uefi-x64: ") and command in line for line in complaints), complaints
    assert any(line.startswith("boot.loaders.bios: ") for line in complaints)
    assert not find_loaders({"bios": "own.0", "uefi-x64": "own.efi"}, tmp_path).complaints

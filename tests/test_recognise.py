"""What media are recognised as: trees shaped as those of the distributions are, and hostile ones."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isokit import GENISOIMAGE, XORRISO, bare_udf, put, run

from fastboot.boot.disc import Disc
from fastboot.boot.indexer import Indexer
from fastboot.boot.media import System, recognise
from fastboot.boot.shelf import Medium, Shelf, describe, explain
from fastboot.boot.tree import Directory
from fastboot.config import Config
from fastboot.model import Client, Profile

URL = "ftp://10.77.0.1/media/m"
TREEINFO = b"""
[checksums]
images/install.img = sha256:00
[general]
; WARNING.0 = This section provides compatibility with pre-productmd treeinfos.
arch = x86_64
family = %s
name = %s %s
platforms = x86_64,xen
version = %s
[images-x86_64]
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz
[stage2]
mainimage = images/install.img
[variant-BaseOS]
packages = BaseOS/Packages
repository = BaseOS
"""
ANACONDA: dict[str, bytes | str] = {
    "images/pxeboot/vmlinuz": b"k",
    "images/pxeboot/initrd.img": b"i",
    "images/install.img": b"s",
    "BaseOS/repodata/repomd.xml": b"r",
}


def rhel(family: str, version: str, **more: bytes | str) -> dict[str, bytes | str]:
    names = [text.encode() for text in (family, family, version, version)]
    return {**ANACONDA, ".treeinfo": TREEINFO % tuple(names), **more}


def without(files: dict[str, bytes | str], *parts: str) -> dict[str, bytes | str]:
    """Leave out the files that have one of these in their names."""
    return {name: content for name, content in files.items() if not any(part in name for part in parts)}


def system_in(root: Path) -> System | None:
    tree = Directory(root)
    try:
        return recognise(tree)
    finally:
        tree.close()


def of(root: Path, files: dict[str, bytes | str]) -> System:
    system = system_in(put(root, files))
    assert system is not None
    return system


UBUNTU: dict[str, bytes | str] = {
    ".disk/info": b'Ubuntu-Server 24.04.1 LTS "Noble Numbat" - Release amd64 (20240827)\n',
    "casper/vmlinuz": b"k",
    "casper/initrd": b"i",
    "casper/ubuntu-server-minimal.squashfs": b"s",
    "dists/noble/Release": b"",
}
DEBIAN: dict[str, bytes | str] = {
    ".disk/info": b'Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 DVD Binary-1 with firmware 20240210-11:28',
    "install.amd/vmlinuz": b"k",
    "install.amd/initrd.gz": b"i",
    "dists/bookworm/Release": b"r",
    "dists/stable": "bookworm",
    "dists/bookworm/main/debian-installer/binary-amd64/Packages.gz": b"p",
}
DEBIAN_LIVE: dict[str, bytes | str] = {
    ".disk/info": b'Debian GNU/Linux 12.5.0 "Bookworm" - Official Live amd64 Binary-1',
    "live/vmlinuz-6.1": b"",
    "live/initrd.img-6.1": b"",
    "live/filesystem.squashfs": b"",
}
LEAP: dict[str, bytes | str] = {
    "media.1/media": b"openSUSE - openSUSE-Leap-15.5-x86_64-Build491.1-Media\nopenSUSE\n1\n",
    "media.1/products": b"/ openSUSE-Leap 15.5-1\n",
    "boot/x86_64/loader/linux": b"k",
    "boot/x86_64/loader/initrd": b"i",
    "boot/x86_64/root": b"s",
}


@pytest.mark.parametrize(
    ("files", "text", "kernel", "initrd", "stage", "told"),
    [
        (
            rhel("Rocky Linux", "9.4"),
            "Rocky Linux 9.4 x86_64",
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "images/install.img",
            f"inst.repo={URL} ip=dhcp",
        ),
        (
            rhel("AlmaLinux", "8.10"),
            "AlmaLinux 8.10 x86_64",
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "images/install.img",
            f"inst.repo={URL} ip=dhcp",
        ),
        (
            rhel("CentOS", "6.10"),
            "CentOS 6.10 x86_64",
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "images/install.img",
            f"method={URL} ip=dhcp",
        ),
        (
            {**ANACONDA, ".discinfo": b"1700000000.5\nRed Hat Enterprise Linux 9.3\nx86_64\n"},
            "Red Hat Enterprise Linux 9.3 x86_64",
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "images/install.img",
            f"inst.repo={URL} ip=dhcp",
        ),
        (
            {
                "images/pxeboot/vmlinuz": b"",
                "images/pxeboot/initrd.img": b"",
                "LiveOS/squashfs.img": b"",
                ".discinfo": b"1700000000.5\nFedora 40\nx86_64\n",
            },
            "Fedora 40 x86_64",
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "LiveOS/squashfs.img",
            f"root=live:{URL}/LiveOS/squashfs.img rd.live.image ip=dhcp",
        ),
        (
            UBUNTU,
            "Ubuntu-Server 24.04.1 x86_64",
            "casper/vmlinuz",
            "casper/initrd",
            "casper/ubuntu-server-minimal.squashfs",
            f"ip=dhcp url={URL}.iso cloud-config-url=/dev/null",
        ),
        (
            DEBIAN,
            "Debian GNU/Linux 12.5.0 x86_64",
            None,
            None,
            None,
            "priority=high mirror/country=manual mirror/protocol=http mirror/suite=bookworm"
            " mirror/http/hostname=10.77.0.1 mirror/http/directory=/media/m mirror/http/proxy="
            " debian-installer/allow_unauthenticated=true",
        ),
        (
            DEBIAN_LIVE,
            "Debian GNU/Linux live 12.5.0 x86_64",
            "live/vmlinuz-6.1",
            "live/initrd.img-6.1",
            "live/filesystem.squashfs",
            f"boot=live components fetch={URL}/live/filesystem.squashfs",
        ),
        (
            LEAP,
            "openSUSE Leap 15.5 x86_64",
            "boot/x86_64/loader/linux",
            "boot/x86_64/loader/initrd",
            "boot/x86_64/root",
            f"install={URL} ifcfg=*=dhcp",
        ),
        (
            {
                "media.1/media": b"SUSE - SLE-15-SP5-Full-x86_64-GM-Media1\n",
                "boot/aarch64/linux": b"",
                "boot/aarch64/initrd": b"",
                "boot/aarch64/root": b"",
            },
            "SLE 15 aarch64",
            "boot/aarch64/linux",
            "boot/aarch64/initrd",
            "boot/aarch64/root",
            f"install={URL} ifcfg=*=dhcp",
        ),
        (
            {
                "boot/x86_64/loader/linux": b"",
                "boot/x86_64/loader/initrd": b"",
                "LiveOS/squashfs.img": b"",
                "install/repodata/repomd.xml": b"",
            },
            "SUSE x86_64",
            "boot/x86_64/loader/linux",
            "boot/x86_64/loader/initrd",
            "LiveOS/squashfs.img",
            f"root=live:{URL}/LiveOS/squashfs.img ip=dhcp rd.neednet=1 inst.install_url={URL}/install",
        ),
    ],
    ids=[
        "rocky",
        "alma",
        "centos6",
        "rhel",
        "fedora-live",
        "ubuntu",
        "debian",
        "debian-live",
        "leap",
        "sles",
        "agama",
    ],
)
def test_recognised(
    tmp_path: Path,
    files: dict[str, bytes | str],
    text: str,
    kernel: str | None,
    initrd: str | None,
    stage: str | None,
    told: str,
) -> None:
    system = of(tmp_path, files)
    assert str(system) == text
    assert (system.kernel, system.initrd, system.second_stage) == (kernel, initrd, stage)
    assert system.told(URL) == (told if "mirror/" not in told else None)
    assert system.told(URL.replace("ftp", "http")) == told.replace("ftp://", "http://")
    assert system.told("tftp://10.77.0.1/media/m") is None
    assert sorted([*system.arguments, *system.unable]) == ["ftp", "http", "nfs"], "each is told, or why not"


def test_by_nfs(tmp_path: Path) -> None:
    for at, (files, told) in enumerate(
        (
            (rhel("Rocky Linux", "9.4"), "inst.repo=nfs:10.0.0.1:/srv/x ip=dhcp"),
            (UBUNTU, "ip=dhcp boot=casper netboot=nfs nfsroot=10.0.0.1:/srv/x"),
            (LEAP, "install=nfs://10.0.0.1/srv/x ifcfg=*=dhcp"),
            (DEBIAN_LIVE, "boot=live components netboot=nfs nfsroot=10.0.0.1:/srv/x"),
            (rhel("CentOS", "6.10"), "method=nfs:10.0.0.1:/srv/x ip=dhcp"),
            (DEBIAN, None),
        )
    ):
        assert of(tmp_path / str(at), files).told("nfs://10.0.0.1/srv/x") == told


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (rhel("Rocky Linux", "9.4"), []),
        (
            DEBIAN,
            [
                "kernel, initrd: those in install.amd install from a CD only; put linux and initrd.gz of this"
                " version's netboot (Debian package debian-installer-12-netboot-amd64) below a root, and name them"
            ],
        ),
        (
            without(DEBIAN, "debian-installer", "install."),
            [
                "kernel, initrd: none in it; put those of Debian's netboot below a root, and name them",
                "packages: no installer components (dists/bookworm/main/debian-installer/binary-amd64),"
                " so netboot can not install from it",
            ],
        ),
        (
            without(rhel("Fedora", "40"), "repodata"),
            ["packages: no repodata in it; tell the installer where they are, with inst.repo=URL"],
        ),
        (
            without(rhel("Fedora", "40"), "initrd"),
            [
                ".treeinfo: initrd: images/pxeboot/initrd.img: is not there",
                "initrd: there is no images/pxeboot/initrd.img",
            ],
        ),
        (
            {"boot/x86_64/loader/linux": b""},
            [
                "initrd: there is none where such a medium has it",
                "second stage: there is none where such a medium has it",
            ],
        ),
    ],
    ids=["rocky", "debian", "debian-cut", "boot-iso", "no-initrd", "suse"],
)
def test_what_is_missing(tmp_path: Path, files: dict[str, bytes | str], missing: list[str]) -> None:
    assert list(of(tmp_path, files).missing) == missing


def test_signed_release_needs_no_exception(tmp_path: Path) -> None:
    system = of(tmp_path, {**DEBIAN, "dists/bookworm/InRelease": b""})
    assert "allow_unauthenticated" not in str(system.told(URL))


def test_a_boot_image_tells_the_installer_its_second_stage(tmp_path: Path) -> None:
    assert of(tmp_path, without(rhel("Fedora", "40"), "repodata")).told(URL) == f"inst.stage2={URL} ip=dhcp"


@pytest.mark.parametrize(
    "files", [{}, {"file": b""}, {".treeinfo": b"[general]\nfamily = X\n"}, {".disk/info": b"x"}]
)
def test_unknown_media(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    assert system_in(put(tmp_path, files)) is None


# What strangers write


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "images/../../etc/passwd",
        "http://evil/x",
        "images/pxeboot/a b",
    ],
)
def test_paths_of_treeinfo_that_leave_the_medium(tmp_path: Path, path: str) -> None:
    text = TREEINFO.replace(b"kernel = images/pxeboot/vmlinuz", b"kernel = " + path.encode())
    text = text.replace(b"mainimage = images/install.img", b"mainimage = " + path.encode())
    text = text.replace(b"repository = BaseOS", b"repository = " + path.encode())
    system = of(tmp_path, {**ANACONDA, ".treeinfo": text.replace(b"%s", b"x")})
    assert system.kernel == "images/pxeboot/vmlinuz"
    assert system.second_stage == "images/install.img"
    assert any(line.startswith(".treeinfo: kernel: ") and "leaves the medium" in line for line in system.missing)


def test_what_a_medium_says_can_not_break_out(tmp_path: Path) -> None:
    """Names are for people and terminals; a suite that is no word is not one that a kernel is told of."""
    system = of(tmp_path / "a", rhel("Evil\x1b[31m {{ 7*7 }}", "9\x00"))
    assert str(system) == "Evil?[31m {{ 7*7 }} 9? x86_64"
    debian = {".disk/info": DEBIAN[".disk/info"], "dists/x y; reboot/Release": b""}
    system = of(tmp_path / "b", debian)
    assert system.arguments == {}
    assert "packages: no dists/SUITE/Release in it, so it is no mirror that Debian installs from" in system.missing


def test_links_of_a_medium_stay_in_it(tmp_path: Path) -> None:
    files = {**rhel("Fedora", "40"), ".discinfo": "/etc/hostname"}
    files["images/pxeboot/vmlinuz"] = "/etc/passwd"
    system = of(tmp_path, files)
    assert system.kernel is None
    assert "kernel: there is no images/pxeboot/vmlinuz" in system.missing


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".treeinfo", ".discinfo", ".disk/info", "media.1/products", "media.1/media"]),
    st.binary(max_size=300)
    | st.text(alphabet="[]general=\n./ -x86_64images:%{}\x00\x1b", max_size=300).map(str.encode),
)
def test_any_text_is_survived(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    root = put(tmp_path_factory.mktemp("any"), {**ANACONDA, "dists/x/Release": b"", name: content})
    (root / "boot/x86_64/loader").mkdir(parents=True)
    if name.startswith("media"):
        (root / "boot/x86_64/loader/linux").touch()
    system = system_in(root)
    for text in (str(system or ""), *(system.missing if system else ())):
        assert text.isprintable()
        assert text.isascii()


# From an image, by a machine


@pytest.mark.parametrize("command", [(*XORRISO, "-R"), (*GENISOIMAGE, "-J"), (*GENISOIMAGE, "-udf")], ids=str)
async def test_an_image_is_recognised(tmp_path: Path, command: tuple[str, ...]) -> None:
    tree = put(tmp_path / "tree", rhel("Rocky Linux", "9.4"))
    run(*command, "-o", tmp_path / "x.iso", tree)
    indexer = Indexer(tmp_path / "state")
    path = bare_udf(tmp_path / "x.iso") if "-udf" in command else tmp_path / "x.iso"
    disc = Disc("x", path, indexer)
    await disc.prepare(lambda step: None)
    indexer.close()
    assert str(await asyncio.to_thread(recognise, disc)) == "Rocky Linux 9.4 x86_64"


def config_of(tmp_path: Path, profile: dict[str, object], **media: dict[str, object]) -> Config:
    return Config.model_validate(
        {
            "interface": "lo",
            "state": tmp_path / "state",
            "roots": [put(tmp_path / "root", {"netboot/linux": b"", "netboot/initrd.gz": b""})],
            "tftp": {},
            "ftp": {"port": 2121},
            "http": {"port": 8080},
            "media": [{"name": name, **table} for name, table in media.items()],
            "profiles": [{"name": "p", "installs": False, **profile}],
            "nodes": [{"name": "n", "macs": ["52:54:00:00:00:01"], "profile": "p"}],
        }
    )


def booted(config: Config) -> tuple[str, list[str]]:
    """Return what PXELINUX is told, and what `check` complains of, without loaders."""
    from fastboot.world import World

    world = World(config)
    asyncio.run(world.shelf.prepare(lambda kind, **details: None))
    client = Client(IPv4Address("10.77.0.9"), IPv4Address("10.77.0.1"), "tftp", "52:54:00:00:00:01")
    text = world.renderer.render(("pxelinux.cfg", "default"), client)
    complaints = [line for line in world.catalog.check() if not line.startswith("boot.loaders")]
    world.close()
    assert text
    return text.decode(), complaints


def test_a_profile_takes_what_it_does_not_name_from_its_medium(tmp_path: Path) -> None:
    path = put(tmp_path / "m", rhel("Rocky Linux", "9.4"))
    profile = {"media": "m", "arguments": "console=ttyS0", "initrd": "/netboot/initrd.gz"}
    text, complaints = booted(config_of(tmp_path, profile, m={"path": path}))
    assert "  LINUX ::/media/m/images/pxeboot/vmlinuz\n" in text
    assert "  INITRD ::/media/m/images/pxeboot/initrd.img,::/netboot/initrd.gz\n" in text
    assert "  APPEND inst.repo=ftp://10.77.0.1:2121/media/m ip=dhcp console=ttyS0\n" in text
    assert complaints == []


def test_a_profile_that_names_a_kernel_may_still_have_the_arguments(tmp_path: Path) -> None:
    path = put(tmp_path / "m", DEBIAN)
    profile = {
        "media": "m",
        "kernel": "/netboot/linux",
        "initrd": "/netboot/initrd.gz",
        "arguments": "{{ installer }} x=1",
    }
    text, complaints = booted(config_of(tmp_path, profile, m={"path": path}))
    assert "mirror/http/hostname=10.77.0.1:8080 mirror/http/directory=/media/m" in text
    assert " x=1\n" in text
    assert complaints == []
    text, complaints = booted(config_of(tmp_path, profile | {"transport": "ftp"}, m={"path": path}))
    assert "mirror/" not in text
    assert complaints == [
        'profiles p: transport: the installer of Debian GNU/Linux can not fetch by ftp; write transport = "http"'
    ]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (DEBIAN, "kernel: not given: kernel, initrd: those in install.amd install from a CD only"),
        ({"file": b""}, "kernel: not given: medium m is not recognised, so name one"),
    ],
)
def test_a_profile_without_a_kernel_says_so_once(
    tmp_path: Path, files: dict[str, bytes | str], fault: str
) -> None:
    path = put(tmp_path / "m", files)
    text, complaints = booted(config_of(tmp_path, {"media": "m"}, m={"path": path}))
    assert "DEFAULT local\n" in text
    assert fault in text
    (complaint,) = complaints
    assert complaint.startswith(f"profiles p: {fault}")


@pytest.mark.parametrize("media", [None, "far"])
def test_a_profile_that_can_not_have_a_kernel(tmp_path: Path, media: str | None) -> None:
    with pytest.raises(ValueError, match=r"profiles\[0\].kernel: is missing; name one, or a medium"):
        config_of(tmp_path, {"media": media}, far={"url": "http://192.0.2.1/x"})


async def test_what_people_are_told_of_media(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, {"kernel": "/netboot/linux"}, rocky={"path": put(tmp_path / "r", rhel("Rocky Linux", "9.4"))},
        some={"path": put(tmp_path / "s", {"file": b""})}, gone={"path": tmp_path / "gone"},
        far={"url": "http://192.0.2.1/x"}, debian={"path": put(tmp_path / "d", DEBIAN)},
    )  # fmt: skip
    shelf = Shelf(config, Indexer(tmp_path / "state", keep=False))
    await shelf.prepare(lambda kind, **details: None)
    told = {medium.name: list(explain({**medium.facts(), "refused": []})) for medium in shelf}
    shelf.close()
    assert told == {
        "rocky": [
            "rocky: Rocky Linux 9.4 x86_64",
            f"  {tmp_path}/r is served as /media/rocky",
            "  boots images/pxeboot/vmlinuz with images/pxeboot/initrd.img",
            "  then fetches images/install.img",
            "  told for http: inst.repo=http://SERVER/media/rocky ip=dhcp",
            "  told for ftp: inst.repo=ftp://SERVER/media/rocky ip=dhcp",
            "  told for nfs (where another server exports it): inst.repo=nfs:SERVER:/EXPORT ip=dhcp",
        ],
        "some": ["some: not recognised", f"  {tmp_path}/s is served as /media/some"],
        "gone": ["gone: No such file or directory; create it or name another"],
        "far": ["far: -", "  another machine serves it: http://192.0.2.1/x"],
        "debian": [
            "debian: Debian GNU/Linux 12.5.0 x86_64",
            f"  {tmp_path}/d is served as /media/debian",
            "  told for http: priority=high mirror/country=manual mirror/protocol=http mirror/suite=bookworm"
            " mirror/http/hostname=SERVER mirror/http/directory=/media/debian mirror/http/proxy="
            " debian-installer/allow_unauthenticated=true",
            "  not by ftp: the new system's apt takes FTP only with"
            ' Dir::Bin::Methods::ftp "ftp" in its configuration',
            "  not by nfs: Debian's installer knows mirrors by HTTP and FTP only",
            "  missing: kernel, initrd: those in install.amd install from a CD only; put linux and initrd.gz of"
            " this version's netboot (Debian package debian-installer-12-netboot-amd64) below a root, and name"
            " them",
        ],
    }
    assert describe(Medium("x", "x").facts()) == "-"


def test_profile_without_a_kernel_is_a_value_like_any_other() -> None:
    assert Profile("p", media="m").kernel is None

"""dnf, which installs RHEL and its kin, against an image of their shape that is served in place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from isokit import XORRISO, put, run
from test_media import config_of
from test_server import free_port

from fastboot.server import Server

REPOSITORIES: Mapping[str, tuple[str, ...]] = {
    "BaseOS": ("lab-base", "libstdc++-lab"),
    "AppStream": ("lab-tools",),
}
NAMES = {name for names in REPOSITORIES.values() for name in names}
SPEC = """
Name: {name}
Version: 1.2.3
Release: 4.el9
Summary: {name} of the lab
License: none
BuildArch: noarch
{requires}
%description
{name}
%install
mkdir -p %{{buildroot}}/usr/share/{name}
cp {data} %{{buildroot}}/usr/share/{name}/data
%files
/usr/share/{name}/data
"""
COMPS = """<?xml version="1.0"?>
<comps><group><id>lab</id><name>Lab Group</name><default>true</default><uservisible>true</uservisible>
<packagelist><packagereq type="mandatory">lab-base</packagereq></packagelist></group>
<environment><id>lab-environment</id><name>Lab Environment</name><display_order>1</display_order>
<grouplist><groupid>lab</groupid></grouplist></environment></comps>
"""
IMAGES = ("images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "images/install.img")


def make_repository(work: Path, root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        requires = "Requires: lab-base\nRequires: libstdc++-lab" if name == "lab-tools" else ""
        spec = work / f"{name}.spec"
        data = work / f"{name}.data"
        data.write_bytes(os.urandom(100_000))
        spec.write_text(SPEC.format(name=name, requires=requires, data=data))
        packages = root / "Packages" / name[0]
        packages.mkdir(parents=True, exist_ok=True)
        defines = (
            "--define",
            f"_topdir {work}",
            "--define",
            f"_rpmdir {work}/made",
            "--define",
            "_rpmfilename %{NAME}.rpm",
        )
        run("rpmbuild", "-bb", "--quiet", *defines, spec)
        shutil.copy(work / "made" / f"{name}.rpm", packages / f"{name}-1.2.3-4.el9.noarch.rpm")
    (work / "comps.xml").write_text(COMPS)
    run("createrepo_c", "--quiet", "--groupfile", work / "comps.xml", root)


@pytest.fixture(scope="module")
def rocky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with what Anaconda and dnf look for: .treeinfo with digests, images, two repositories."""
    work = tmp_path_factory.mktemp("rocky")
    tree = put(work / "tree", {name: os.urandom(50_000) for name in IMAGES[:2]})
    put(work / "stage2", {"LiveOS/rootfs.img": os.urandom(20_000)})
    run("mksquashfs", work / "stage2", tree / "images/install.img", "-quiet", "-no-progress")
    for repository, names in REPOSITORIES.items():
        make_repository(work, tree / repository, names)
    digests = "".join(
        f"{name} = sha256:{hashlib.sha256((tree / name).read_bytes()).hexdigest()}\n" for name in IMAGES
    )
    variants = "".join(
        f"[variant-{name}]\nid = {name}\nrepository = {name}\npackages = {name}/Packages\n"
        for name in REPOSITORIES
    )
    (tree / ".treeinfo").write_text(
        f"[checksums]\n{digests}"
        "[general]\narch = x86_64\nfamily = Rocky Linux\nname = Rocky Linux 9.4\nversion = 9.4\n"
        f"[images-x86_64]\nkernel = {IMAGES[0]}\ninitrd = {IMAGES[1]}\n[stage2]\nmainimage = {IMAGES[2]}\n"
        f"[tree]\narch = x86_64\nvariants = {','.join(REPOSITORIES)}\n{variants}"
    )
    (tree / ".discinfo").write_text("1714600000.0\nRocky Linux 9.4\nx86_64\n")
    run(*XORRISO, "-R", "-J", "-joliet-long", "-o", work / "rocky.iso", tree)
    return work / "rocky.iso"


class Dnf:
    """dnf with the repositories of a medium and nothing of this machine's."""

    def __init__(self, work: Path, media: str) -> None:
        self.root = work / "root"
        conf = work / "dnf.conf"
        conf.write_text(
            f"[main]\ncachedir={work}/cache\nlogdir={work}/log\npersistdir={work}/persist\nreposdir={work}/none\n"
            "plugins=1\ngpgcheck=0\nmodule_platform_id=platform:el9\n"
            + "".join(f"[{name}]\nname={name}\nbaseurl={media}/{name}\n" for name in REPOSITORIES)
        )
        self._command = (
            "dnf",
            "-c",
            conf,
            "-y",
            "-q",
            f"--installroot={self.root}",
            "--releasever=9",
            "--disableplugin=*",
            "--enableplugin=download",
            "--forcearch=x86_64",
        )

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.parametrize("scheme", ["ftp", "http"])
async def test_dnf_installs_from_an_image_in_place(rocky: Path, tmp_path: Path, scheme: str) -> None:
    port = free_port(socket.SOCK_STREAM)
    config = config_of(tmp_path, {scheme: {"port": port}}, rocky=rocky)
    async with Server(config) as server:
        (medium,) = server.media()
        system = medium["system"]
        assert isinstance(system, dict)
        assert (system["name"], system["version"], system["missing"]) == ("Rocky Linux", "9.4", ())
        dnf = Dnf(tmp_path, f"{scheme}://127.0.0.1:{port}/media/rocky")
        ask = asyncio.to_thread
        found = await ask(dnf, "repoquery", "--qf", "%{name}-%{version}")
        assert set(found.split()) == {"lab-base-1.2.3", "libstdc++-lab-1.2.3", "lab-tools-1.2.3"}
        assert "Lab Group" in await ask(dnf, "group", "list", "--hidden")
        assert "lab-base" in await ask(dnf, "group", "info", "lab")
        await ask(dnf, "download", f"--destdir={tmp_path}", "libstdc++-lab")
        package = tmp_path / "libstdc++-lab-1.2.3-4.el9.noarch.rpm"
        assert "digests OK" in await ask(run, "rpm", "-K", "--nosignature", package)
        await ask(dnf, "group", "install", "lab")
        assert await installed(dnf.root) == {"lab-base"}
        await ask(dnf, "install", "lab-tools")
        assert await installed(dnf.root) == NAMES
        counters = server.status()["services"][scheme]["counters"]  # type: ignore[index]
        assert counters.get("failed", 0) == 0
    for name in NAMES:
        data = (dnf.root / f"usr/share/{name}/data").read_bytes()
        assert data == rocky.with_name(f"{name}.data").read_bytes()


async def installed(root: Path) -> set[str]:
    """Return what is installed in a root, whose files are those that rpm put there."""
    found = await asyncio.to_thread(run, "rpm", "--root", root, "-qa", "--qf", "%{NAME}\n")
    await asyncio.to_thread(run, "rpm", "--root", root, "-Va", "--nodeps")
    return set(found.split())

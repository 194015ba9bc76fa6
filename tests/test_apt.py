"""apt, which installs Debian and Ubuntu, against a signed mirror in an image that is served in place."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from isokit import XORRISO, put, run
from test_media import config_of
from test_server import free_port

from fastboot.server import Server

PACKAGES = {
    "lab-base": "1.2.3-4",
    "libstdc++-lab": "1:2.0+really1.9~rc1-1",
    "lab-tools": "7.0~beta+dfsg-1",
}
CONTROL = """Package: {name}
Version: {version}
Architecture: all
Maintainer: Lab <lab@example.com>
{depends}Description: {name} of the lab
"""
SUITE = "dists/lab"
KEY = "Lab Archive <lab@example.com>"


def make_package(work: Path, pool: Path, name: str, version: str) -> None:
    """Make a real package, of the name that Debian's archive gives it: its epoch is not in that."""
    root = put(work / name, {f"usr/share/{name}/data": os.urandom(100_000)})
    depends = f"Depends: {', '.join(sorted(set(PACKAGES) - {name}))}\n" if name == "lab-tools" else ""
    put(root, {"DEBIAN/control": CONTROL.format(name=name, version=version, depends=depends).encode()})
    place = pool / name[: 4 if name.startswith("lib") else 1] / name
    place.mkdir(parents=True)
    file = f"{name}_{version.partition(':')[2] or version}_all.deb"
    run("dpkg-deb", "--root-owner-group", "--build", "-Znone", root, place / file)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with image and key: pool and dists as on Debian's DVDs, indexed and signed by its tools."""
    work = tmp_path_factory.mktemp("debian")
    tree = work / "tree"
    for name, version in PACKAGES.items():
        make_package(work, tree / "pool/main", name, version)
    put(tree, {".disk/info": b'Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 DVD Binary-1'})
    index = tree / SUITE / "main/binary-amd64"
    index.mkdir(parents=True)
    (index / "Packages").write_text(run("apt-ftparchive", "packages", "pool", cwd=tree))
    run("gzip", "-k", index / "Packages")
    run("xz", "-k", index / "Packages")
    about = {"Origin": "Lab", "Suite": "lab", "Codename": "lab", "Components": "main", "Architectures": "amd64"}
    options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in about.items()]
    (tree / SUITE / "Release").write_text(run("apt-ftparchive", *options, "release", tree / SUITE))
    sign(work, tree / SUITE)
    run(*XORRISO, "-R", "-J", "-joliet-long", "-o", work / "debian.iso", tree)
    return work


def sign(work: Path, suite: Path) -> None:
    home = Path("/tmp") / f"gpg-{os.getpid()}"  # the agent's socket wants a short path
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", "")
    try:
        run(*gpg, "--quick-generate-key", KEY, "ed25519", "sign", "never")
        run(*gpg, "--clearsign", "-o", suite / "InRelease", suite / "Release")
        run(*gpg, "--export", "-o", work / "lab.gpg", KEY)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, timeout=20)
        shutil.rmtree(home)


class Apt:
    """apt with the mirror on a medium and nothing of this machine's; what it installs goes to `root`."""

    def __init__(self, work: Path, media: str, key: Path) -> None:
        self.root = work / "root"
        for name in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "var/lib/dpkg",
            "var/cache/apt",
            "var/log",
        ):
            (self.root / name).mkdir(parents=True)
        put(self.root, {
            "var/lib/dpkg/status": b"",
            "etc/apt/sources.list": f"deb [signed-by={key}] {media} lab main\n".encode(),
        })  # fmt: skip
        put(work, {"apt.conf": f"""
            Dir "{self.root}"; Dir::State::status "{self.root}/var/lib/dpkg/status"; APT::Architecture "amd64";
            APT::Architectures {{ "amd64"; }}; Dir::Bin::methods "/usr/lib/apt/methods"; APT::Sandbox::User "root";
            Dir::Bin::Methods::ftp "ftp"; // which Debian has switched off
            DPkg::Options {{ "--root={self.root}"; "--force-script-chrootless"; "--force-not-root"; }};
            Dir::Log "{self.root}/var/log"; Dir::Log::Terminal ""; Dir::Bin::dpkg "/usr/bin/dpkg";
            Acquire::Retries "0";
        """.encode()})  # fmt: skip
        self._environment = {**os.environ, "APT_CONFIG": str(work / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["apt-get", "-y", *words],
            capture_output=True,
            text=True,
            timeout=90,
            env=self._environment,
            cwd=self.root,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "W:" not in done.stderr, done.stderr
        return done.stdout


@pytest.mark.parametrize("scheme", ["ftp", "http"])
async def test_apt_installs_from_an_image_in_place(debian: Path, tmp_path: Path, scheme: str) -> None:
    port = free_port(socket.SOCK_STREAM)
    config = config_of(tmp_path, {scheme: {"port": port}}, debian=debian / "debian.iso")
    async with Server(config) as server:
        events = server.events()
        apt = Apt(tmp_path, f"{scheme}://127.0.0.1:{port}/media/debian", debian / "lab.gpg")
        ask = asyncio.to_thread
        said = await ask(apt, "update")
        assert f"{scheme}://127.0.0.1:{port}/media/debian lab InRelease" in said
        await ask(apt, "install", "lab-tools")
        counters = server.status()["services"][scheme]["counters"]  # type: ignore[index]
        assert counters.get("failed", 0) == 0
        assert not [event for event in events.take() if event.kind.endswith(".failed")]
    found = await ask(
        run, "dpkg-query", f"--admindir={apt.root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"
    )
    assert dict(line.split() for line in found.splitlines()) == PACKAGES
    for name in PACKAGES:
        data = f"usr/share/{name}/data"
        assert (apt.root / data).read_bytes() == (debian / name / data).read_bytes()

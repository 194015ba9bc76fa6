"""Makes a bare Debian 12 (git, python3, make) able to build, demonstrate and test fastboot.

    python3 tools/bootstrap.py build demo test

Installs the Debian packages that the named purposes need, unpacks those that must not be installed, makes .venv
with what pyproject.toml asks for and builds the native core in place. What is already there is left alone; a
second run changes nothing.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / "stamps"

PACKAGES = {
    "build": ("gcc", "libc6-dev", "python3-dev", "python3-venv"),
    "demo": (
        "busybox-static",
        "debian-installer-12-netboot-amd64",
        "grub-efi-amd64-signed",
        "iproute2",
        "ipxe",
        "ipxe-qemu",
        "ovmf",
        "pxelinux",
        "qemu-system-x86",
        "shim-signed",
        "syslinux-common",
        "util-linux",
    ),
    "test": (
        "apt-utils",
        "aria2",
        "atftp",
        "busybox-static",
        "createrepo-c",
        "curl",
        "dnf",
        "dnf-plugins-core",
        "dnsmasq-base",
        "genisoimage",
        "gpg",
        "gpg-agent",
        "grub-common",
        "grub-efi-amd64-bin",
        "iproute2",
        "isc-dhcp-client",
        "lftp",
        "nftables",
        "p7zip-full",
        "procps",
        "rpm",
        "sbsigntool",
        "squashfs-tools",
        "strace",
        "tcpdump",
        "tftp-hpa",
        "udhcpc",
        "util-linux",
        "wget",
        "xorriso",
        "zchunk",
    ),
    "bench": ("dnsmasq-base", "ethtool", "iproute2", "nftables", "util-linux", "xorriso"),
    "fuzz": ("clang", "genisoimage", "libclang-rt-14-dev", "xorriso"),
}
UNPACKED = {
    "bench": ("atftpd", "isc-dhcp-server", "kea-admin", "kea-dhcp4-server", "nginx", "tftpd-hpa", "vsftpd"),
    "test": ("dhcpcd-base", "isc-dhcp-relay", "isc-dhcp-server", "kea-admin", "kea-dhcp4-server", "nginx"),
}
"""Packages whose installation would start a server, or that conflict: their files go to .cache/debian."""


def main(purposes: list[str]) -> int:
    unknown = set(purposes) - set(PACKAGES)
    if unknown or not purposes:
        print(f"usage: bootstrap.py {' '.join(PACKAGES)} (one or more)", file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036 - the interpreter of the machine, not ours
        print(f"fastboot needs Python 3.11 or later; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache" / "bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (install_packages(purposes) and unpack_packages(purposes)):
            return 1
        try:
            make_venv()
            build_core()
        except subprocess.CalledProcessError as error:
            print(f"failed ({error.returncode}): {' '.join(map(str, error.cmd))}", file=sys.stderr)
            return 1
    return 0


def install_packages(purposes: Iterable[str]) -> bool:
    """Install what is missing, or say what is and how to get it. Returns whether all is there."""
    wanted = {package for purpose in purposes for package in PACKAGES[purpose]}
    if not shutil.which("dpkg-query"):
        print(f"not a Debian system; see to it that it has what these packages hold: {' '.join(sorted(wanted))}")
        return True
    missing = sorted(wanted - installed())
    if not missing:
        return True
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    prefix = elevation()
    if prefix is None:
        print(
            "These Debian packages are missing, and installing them needs root:\n"
            f"  {' '.join(missing)}\n"
            "Install them, then run the same make command again:\n"
            f"  sudo apt-get update && sudo {' '.join(install)}",
            file=sys.stderr,
        )
        return False
    print(f"installing Debian packages: {' '.join(missing)}", flush=True)
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for command in (["apt-get", "update"], install):
        # A mirror that is being refreshed fails for a moment; apt-get itself retries only downloads.
        for last in (False, False, True):
            done = subprocess.run([*prefix, *quiet, *command, "-q"], stdin=subprocess.DEVNULL)
            if done.returncode == 0:
                break
            if last:
                print(f"failed ({done.returncode}): {' '.join(command)}", file=sys.stderr)
                return False
    return True


def unpack_packages(purposes: Iterable[str]) -> bool:
    """Unpack what the purposes name, and the libraries that it needs and this system lacks. Returns whether all is
    there."""
    tree, done = ROOT / ".cache" / "debian", ROOT / ".cache" / "debian.packages"
    here = set(done.read_text().split() if done.exists() else ())
    wanted = sorted(here | {package for purpose in purposes for package in UNPACKED.get(purpose, ())})
    if here.issuperset(wanted) or not shutil.which("apt-get"):
        return True
    print(f"unpacking Debian packages: {' '.join(wanted)}", flush=True)
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "packages").mkdir(parents=True)
    update = [*(elevation() or ()), "apt-get", "update", "-q"]
    if not download(wanted, tree / "packages") and (
        subprocess.run(update, stdin=subprocess.DEVNULL).returncode or not download(wanted, tree / "packages")
    ):
        print(f"failed: apt-get download {' '.join(wanted)}; first try: sudo apt-get update", file=sys.stderr)
        return False
    for package in (tree / "packages").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, tree], check=True)
    done.write_text("\n".join(wanted))
    return True


def download(packages: list[str], directory: Path) -> bool:
    """Download Debian packages, and those that they need and this system lacks. Returns whether all are there."""
    names = set(packages)
    for package in packages:  # one by one, for some of them conflict
        simulate = ["apt-get", "-s", "install", "--no-install-recommends", package]
        plan = subprocess.run(simulate, stdout=subprocess.PIPE, text=True)
        if plan.returncode:
            return False
        names |= {line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")}
    fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *sorted(names)]
    return not subprocess.run(fetch, cwd=directory, stdin=subprocess.DEVNULL).returncode


def installed() -> set[str]:
    """Return the names of the Debian packages on this system."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    lines = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return {line.removeprefix("installed ") for line in lines if line.startswith("installed ")}


def elevation() -> list[str] | None:
    """Return the words to put before a command that needs root; None where we may not have it."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], stderr=subprocess.DEVNULL).returncode == 0:
        return [sudo, "-n"]
    return None


def make_venv() -> None:
    """Make .venv with the build, run-time and development dependencies of pyproject.toml, fastboot editable."""
    import tomllib

    project = ROOT / "pyproject.toml"
    key = digest([project], sys.version)
    if is_stamped("venv", key):
        return
    with project.open("rb") as file:
        table = tomllib.load(file)
    needs = [
        *table["build-system"]["requires"],
        *table["project"]["dependencies"],
        *table["dependency-groups"]["dev"],
    ]
    python = VENV / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        print("making .venv", flush=True)
        run(sys.executable, "-m", "venv", "--clear", VENV)
    print("installing Python packages into .venv", flush=True)
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, *needs)
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    stamp("venv", key)


def build_core() -> None:
    """Build the extensions in place when one of their sources changed, or FASTBOOT_DEBUG did."""
    sources = sorted((ROOT / "fastboot").rglob("*.px[di]"))
    doors = sorted((ROOT / "fastboot").rglob("*.pyx"))
    key = digest([ROOT / "setup.py", *doors, *sources], os.environ.get("FASTBOOT_DEBUG", ""))
    if is_stamped("core", key) and all(any(door.parent.glob(f"{door.stem}.*.so")) for door in doors):
        return
    print("building the native core", flush=True)
    run(VENV / "bin" / "python", "setup.py", "-q", "build_ext", "--inplace", "--force")
    stamp("core", key)


def run(*command: str | Path) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)


def digest(files: Iterable[Path], salt: str) -> str:
    """Return a key that changes with the files' contents, the salt and the place of the checkout."""
    total = hashlib.sha256(f"{ROOT}\0{salt}".encode())
    for file in files:
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def is_stamped(name: str, key: str) -> bool:
    path = STAMPS / name
    return path.exists() and path.read_text() == key


def stamp(name: str, key: str) -> None:
    STAMPS.mkdir(exist_ok=True)
    (STAMPS / name).write_text(key)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a medium is: the system on it, what a machine boots to install that, and what the installer has to be told.

Every family of installers is a reader of a few files at well-known places. What those say is a stranger's: paths
are used only where they lead to a file in the tree, and words of a command line only where they are plain.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from fastboot.boot.tree import Tree
from fastboot.model import AnswerFormat

MAX_TEXT: Final = 256 * 1024
"""Octets of a file that says what a medium is; the largest known, of Fedora, has 20,000."""
UNAMES: Final[Mapping[str, str]] = {"amd64": "x86_64", "i386": "i686", "arm64": "aarch64", "ppc64el": "ppc64le"}
"""Names of architectures that Debian and Ubuntu use, and those of uname."""
NFS: Final = "nfs"
LIVE: Final = "the live system is one file, which its initrd fetches by HTTP or FTP"

Arguments = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class System:
    """What was recognised. Paths are in the medium; None is what it has not, or what is of no use for booting from
    the network, and then `missing` says why and what helps.

    `arguments` are what the installer needs to find the medium, by how it fetches it ("http", "ftp", "nfs"), with
    {media} for its URL, {host} and {path} for the parts of that. `unable` says for each other way why not.
    `format` is the language of its answer files, `unattended` what it is told of one, with {answers} for the URL
    of the directory that has it; nothing: as the language has it.
    """

    name: str
    version: str = ""
    architecture: str = ""
    kernel: str | None = None
    initrd: str | None = None
    second_stage: str | None = None
    arguments: Arguments = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unable: Mapping[str, str] = field(default_factory=dict)
    format: AnswerFormat | None = None
    unattended: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.version, self.architecture) if part)

    def told(self, media: str) -> str | None:
        """Return what the installer is told of a medium with this URL; None where it can not use such a one."""
        parts = urlsplit(media)
        text = self.arguments.get(parts.scheme)
        if text is None:
            return None
        return text.replace("{media}", media).replace("{host}", parts.netloc).replace("{path}", parts.path)

    def facts(self, name: str) -> dict[str, object]:
        """Return the system on the medium of this name as commands print it."""
        media = {
            "http": f"http://SERVER/media/{name}",
            "ftp": f"ftp://SERVER/media/{name}",
            "nfs": "nfs://SERVER/EXPORT",
        }
        return {**asdict(self), "arguments": {scheme: self.told(media[scheme]) for scheme in self.arguments}}


class Look:
    """Reads a tree as a recogniser does: what can not be read is not there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def text(self, path: str) -> str:
        """Return the beginning of a file; nothing where it is none."""
        with suppress(OSError, UnicodeEncodeError, ValueError):
            source = self._tree.open(path)
            return source.slice(0, min(source.size, MAX_TEXT)).read().decode("utf-8", "replace")
        return ""

    def has(self, path: str) -> bool:
        """Whether there is a file or directory."""
        with suppress(OSError, UnicodeEncodeError, ValueError):
            self._tree.entry(path, "")
            return True
        return False

    def first(self, *paths: str) -> str | None:
        """Return the first of these that is there."""
        return next((path for path in paths if self.has(path)), None)

    def names(self, path: str) -> list[str]:
        with suppress(OSError):
            return sorted(entry.name for entry in self._tree.scan(path))
        return []


def recognise(tree: Tree) -> System | None:
    """Say what is in a tree, or None where it is nothing that is known. Reads disks: not for the loop."""
    look = Look(tree)
    for reader in READERS:
        if system := reader(look):
            return system
    return None


def carried(tree: Tree) -> dict[str, str]:
    """Return the boot programs in a tree that UEFI starts from such a medium (UEFI 2.10 section 3.5.1.1): paths by
    the names that they are called by when they are fetched. BOOTX64.EFI is shim where there is one, so it is
    shimx64.efi too; the rest is what that loads from beside it. Reads disks: not for the loop."""
    look = Look(tree)
    programs: dict[str, str] = {}
    for efi in (name for name in look.names(".") if name.lower() == "efi"):
        for boot in (name for name in look.names(efi) if name.lower() == "boot"):
            found = [name for name in look.names(f"{efi}/{boot}") if re.fullmatch(r"(?i)[\w-]+\.efi", name)]
            programs |= {name: f"{efi}/{boot}/{name}" for name in found}
    for name, path in list(programs.items()):
        programs.setdefault(name.lower(), path)
        if name.lower().startswith("boot"):
            programs.setdefault(f"shim{name.lower().removeprefix('boot')}", path)
    return programs


# --- RHEL and its kin, Fedora: Anaconda


def _anaconda(look: Look) -> System | None:
    tree, disc = _treeinfo(look.text(".treeinfo")), list(map(_plain, look.text(".discinfo").splitlines()))
    if not look.has("images/pxeboot") or not (tree or len(disc) >= 3):
        return None
    says, missing = tree.get("general", {}), []
    named = re.fullmatch(r"(.+?) ([\w.]+)", disc[1] if len(disc) >= 3 else "")
    name = says.get("family") or (named[1] if named else "Anaconda")
    version = says.get("version") or (named[2] if named else "")
    architecture = says.get("arch") or (disc[2] if len(disc) >= 3 else "")
    images = tree.get(f"images-{architecture}", {})

    def find(key: str, said: str | None, *usual: str) -> str | None:
        if said and (fault := _path_fault(look, said)):
            missing.append(f".treeinfo: {key}: {said}: {fault}")
            said = None
        found = said or look.first(*usual)
        if not found:
            missing.append(f"{key}: there is no {usual[0]}")
        return found

    kernel = find("kernel", images.get("kernel"), "images/pxeboot/vmlinuz")
    initrd = find("initrd", images.get("initrd"), "images/pxeboot/initrd.img", "images/pxeboot/initrd")
    said = tree.get("stage2", {}).get("mainimage")
    stage = find("second stage", said, "images/install.img", "LiveOS/squashfs.img", "images/stage2.img")
    is_old = re.match(r"[1-6](\.|$)", version) is not None and name != "Fedora"  # before RHEL 7
    unattended = "ks={answers}/ks.cfg" if is_old else ""
    found = partial(System, name, version, architecture, kernel, initrd, stage)
    if stage == "LiveOS/squashfs.img" and not said and not _repositories(look, tree):
        live = _web(f"root=live:{{media}}/{stage} rd.live.image ip=dhcp")
        return found(live, tuple(missing), {NFS: LIVE})
    option = "inst.repo"
    if not _repositories(look, tree):
        option = "inst.stage2"
        missing.append("packages: no repodata in it; tell the installer where they are, with inst.repo=URL")
    elif is_old:
        option = "method"
    arguments = {**_web(f"{option}={{media}} ip=dhcp"), NFS: f"{option}=nfs:{{host}}:{{path}} ip=dhcp"}
    return found(arguments, tuple(missing), format="kickstart", unattended=unattended)


def _treeinfo(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    return {
        section: {key: _plain(value) for key, value in parser[section].items()} for section in parser.sections()
    }


def _repositories(look: Look, tree: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the directories with packages that are there: those of the variants, or the usual."""
    variants = [table for name, table in tree.items() if name.startswith("variant-")]
    said = (table["repository"] for table in variants if "repository" in table)
    paths = [path for path in said if not _path_fault(look, path)]
    usual = [".", "BaseOS", "AppStream", "Server", "Packages"]
    return [path for path in dict.fromkeys((*paths, *usual)) if look.has(f"{path}/repodata/repomd.xml")]


def _path_fault(look: Look, path: str) -> str:
    """Return what is wrong with a path that a file in a medium names."""
    if path.startswith("/") or ".." in path.split("/") or "://" in path or not re.fullmatch(r"[!-~]+", path):
        return "leaves the medium"
    return "" if look.has(path) else "is not there"


# --- Ubuntu: casper


def _ubuntu(look: Look) -> System | None:
    if not look.has("casper"):
        return None
    name, version, architecture = _disk_info(look, "Ubuntu")
    kernel = look.first("casper/vmlinuz", "casper/hwe-vmlinuz", "casper/vmlinuz.efi")
    initrd = look.first("casper/initrd", "casper/initrd.gz", "casper/initrd.lz", "casper/hwe-initrd")
    stage = next((f"casper/{each}" for each in look.names("casper") if each.endswith(".squashfs")), None)
    # cloud-init takes url= for its own too, and fetches the whole image a second time (Launchpad 1937319).
    arguments = {
        **_web("ip=dhcp url={media}.iso cloud-config-url=/dev/null"),
        NFS: "ip=dhcp boot=casper netboot=nfs nfsroot={host}:{path}",
    }
    memory = "memory: the installer fetches the whole image into it, so machines need its size and 1 GB more"
    missing = (*_absent(kernel=kernel, initrd=initrd), memory)
    return System(name, version, architecture, kernel, initrd, stage, arguments, missing, format="autoinstall")


# --- Debian


def _debian_live(look: Look) -> System | None:
    stage = look.first("live/filesystem.squashfs")
    if stage is None:
        return None
    name, version, architecture = _disk_info(look, "Debian GNU/Linux")
    names = look.names("live")
    kernel = next((f"live/{each}" for each in names if each.startswith("vmlinuz")), None)
    initrd = next((f"live/{each}" for each in names if each.startswith("initrd")), None)
    arguments = {
        **_web(f"boot=live components fetch={{media}}/{stage}"),
        NFS: "boot=live components netboot=nfs nfsroot={host}:{path}",
    }
    missing = _absent(kernel=kernel, initrd=initrd)
    return System(f"{name} live", version, architecture, kernel, initrd, stage, arguments, missing)


def _debian(look: Look) -> System | None:
    if not look.has(".disk/info") or not look.has("dists"):
        return None
    name, version, architecture = _disk_info(look, "Debian GNU/Linux")
    folder = next((each for each in look.names(".") if re.fullmatch(r"install\.\w+", each)), None)
    suites = (each for each in look.names("dists") if _is_word(each))
    suite = next((each for each in suites if look.has(f"dists/{each}/Release")), None)
    debian = {uname: name for name, uname in UNAMES.items()}.get(architecture, architecture)
    missing = []
    if folder:
        # Its initrd looks for a CD and has neither network cards' drivers nor a mirror's code.
        package = f"debian-installer-{version.partition('.')[0] or '12'}-netboot-{debian or 'amd64'}"
        missing.append(
            f"kernel, initrd: those in {folder} install from a CD only; put linux and initrd.gz of this version's"
            f" netboot (Debian package {package}) below a root, and name them"
        )
    else:
        missing.append("kernel, initrd: none in it; put those of Debian's netboot below a root, and name them")
    components = f"dists/{suite}/main/debian-installer/binary-{debian}"
    if suite is None:
        missing.append("packages: no dists/SUITE/Release in it, so it is no mirror that Debian installs from")
    elif not look.first(f"{components}/Packages", f"{components}/Packages.gz", f"{components}/Packages.xz"):
        missing.append(f"packages: no installer components ({components}), so netboot can not install from it")
    if suite is None:
        return System(name, version, architecture, missing=tuple(missing), format="preseed")
    unable = {
        # apt 2.6 (Debian 12): "The method 'ftp' is unsupported and disabled by default."
        "ftp": 'the new system\'s apt takes FTP only with Dir::Bin::Methods::ftp "ftp" in its configuration',
        NFS: "Debian's installer knows mirrors by HTTP and FTP only",
    }
    arguments = {"http": _mirror("http", suite, look)}
    found = partial(System, name, version, architecture, arguments=arguments, missing=tuple(missing))
    return found(unable=unable, format="preseed")


def _mirror(scheme: str, suite: str, look: Look) -> str:
    words = [
        "priority=high", "mirror/country=manual", f"mirror/protocol={scheme}", f"mirror/suite={suite}",
        f"mirror/{scheme}/hostname={{host}}", f"mirror/{scheme}/directory={{path}}", f"mirror/{scheme}/proxy=",
    ]  # fmt: skip
    if not look.first(f"dists/{suite}/InRelease", f"dists/{suite}/Release.gpg"):
        words.append("debian-installer/allow_unauthenticated=true")  # images of CDs and DVDs are not signed inside
    return " ".join(words)


def _disk_info(look: Look, usual: str) -> tuple[str, str, str]:
    """Return name, version and architecture as .disk/info has them.

    Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 DVD Binary-1 with firmware 20240210-11:28
    Ubuntu-Server 24.04.1 LTS "Noble Numbat" - Release amd64 (20240827)
    """
    line = _plain(look.text(".disk/info").partition("\n")[0])
    head = re.match(r"([A-Za-z][\w /-]*?) (\d[\w.]*)", line)
    kind = next((name for name in UNAMES if re.search(rf"\b{name}\b", line)), "")
    return (head[1] if head else usual), (head[2] if head else ""), UNAMES.get(kind, "")


# --- openSUSE, SLES


def _suse(look: Look) -> System | None:
    architecture = next((each for each in look.names("boot") if look.first(*_suse_kernels(each))), None)
    if architecture is None:
        return None
    kernel = look.first(*_suse_kernels(architecture))
    assert kernel is not None
    initrd = look.first(kernel.removesuffix("linux") + "initrd")
    name, version = _suse_name(look)
    stage = look.first("LiveOS/squashfs.img", f"boot/{architecture}/root", "LiveOS/squashfs")
    missing = _absent(initrd=initrd, **{"second stage": stage})
    if stage and stage.startswith("LiveOS"):  # Leap 16, SLES 16: Agama
        repository = " inst.install_url={media}/install" if look.has("install/repodata/repomd.xml") else ""
        if not repository:
            missing += ("packages: none in it; Agama takes them from its makers, or from inst.install_url=URL",)
        arguments = _web(f"root=live:{{media}}/{stage} ip=dhcp rd.neednet=1{repository}")
        unable, unattended = {NFS: LIVE}, "inst.auto={answers}/autoinst.xml"
    else:
        unable, unattended = {}, ""
        arguments = {**_web("install={media} ifcfg=*=dhcp"), NFS: "install=nfs://{host}{path} ifcfg=*=dhcp"}
    found = partial(System, name, version, architecture, kernel, initrd, stage, arguments, missing, unable)
    return found("autoyast", unattended)


def _suse_kernels(architecture: str) -> tuple[str, str]:
    return f"boot/{architecture}/loader/linux", f"boot/{architecture}/linux"


def _suse_name(look: Look) -> tuple[str, str]:
    """`/ openSUSE-Leap 15.5-1` in media.1/products; `openSUSE - openSUSE-Leap-15.5-x86_64-Build491.1-Media` in
    media.1/media; a table of .treeinfo in some."""
    says = _treeinfo(look.text(".treeinfo")).get("general", {})
    if match := re.match(r"/ (\S+) (\d[\w.]*)", look.text("media.1/products")):
        return match[1].replace("-", " "), match[2]
    if says.get("family"):
        return says["family"], says.get("version", "")
    if match := re.match(r"\w+ - ([A-Za-z][A-Za-z-]*?)-(\d[\w.]*)", look.text("media.1/media")):
        return match[1].replace("-", " "), match[2]
    return "SUSE", ""


# --- all


def _web(arguments: str) -> dict[str, str]:
    return {"http": arguments, "ftp": arguments}


def _absent(**parts: str | None) -> tuple[str, ...]:
    return tuple(f"{name}: there is none where such a medium has it" for name, path in parts.items() if not path)


def _plain(text: str) -> str:
    """Return a text that any terminal or log can take."""
    return re.sub(r"[^ -~]", "?", " ".join(text.split()))[:200]


def _is_word(text: str) -> bool:
    """Whether a word from a medium can stand in a command line."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}", text) is not None


READERS: Final[tuple[Callable[[Look], System | None], ...]] = (_suse, _anaconda, _ubuntu, _debian_live, _debian)
"""SUSE before Anaconda, whose .treeinfo it has too."""

"""Discs with a chain of their own for Secure Boot, signed here, with real programs of Debian.

Two distributions: `debian`, and `lab`, whose GRUB (Debian's modules, built as Fedora builds that of its discs) and
kernel (Debian's) are signed by a key that only lab's shim knows. Firmware knows OVMF's key for tests, snakeoil,
which signed both shims.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from isokit import XORRISO, put, run, sparse_image

from fastboot.boot.program import recognise
from fastboot.lab.vm import scenario

SNAKEOIL = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
SHIM = Path("/usr/lib/shim/shimx64.efi.signed")
MOK_MANAGER = Path("/usr/lib/shim/mmx64.efi.signed")
GRUB = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
MODULES = (
    "all_video boot cat chain configfile echo efinet fat http linux minicmd net normal part_gpt reboot search"
    " search_fs_file serial sleep terminal test tftp"
)
SBAT = (
    "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n"
    "grub,5,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/\n"
)
TREEINFO = b"[general]\nfamily = Lab Linux\nversion = 9\narch = x86_64\n"


def make_discs(place: Path) -> None:
    """Make debian.iso, lab.iso and a kernel of lab's, linux."""
    firmware, lab = _snakeoil(place), _authority(place)
    netboot = scenario._netboot()
    assert netboot
    _sign(Path(shutil.copyfile(netboot[0], place / "linux")), *lab)
    certificate = place / "lab.der"
    run("openssl", "x509", "-in", lab[1], "-outform", "DER", "-out", certificate)
    for name, shim in (("debian", SHIM.read_bytes()), ("lab", _known_to(certificate.read_bytes()))):
        grub = _grub(place) if name == "lab" else GRUB
        files = {"BOOTX64.EFI": shim, "grubx64.efi": grub.read_bytes(), "mmx64.efi": MOK_MANAGER.read_bytes()}
        tree = put(place / name, {f"EFI/BOOT/{file}": data for file, data in files.items()})
        put(tree, {".treeinfo": TREEINFO, "EFI/BOOT/grub.cfg": b"search --file /images/install.img\n"})
        _sign(tree / "EFI/BOOT/BOOTX64.EFI", *firmware)
        if name == "lab":
            _sign(tree / "EFI/BOOT/grubx64.efi", *lab)
        sparse_image(XORRISO, tree, place / f"{name}.iso")


def _grub(place: Path) -> Path:
    (place / "sbat.csv").write_text(SBAT)
    grub = place / "grub.efi"
    build = ("grub-mkimage", "-O", "x86_64-efi", "-p", "/EFI/BOOT", "--sbat", place / "sbat.csv", "-o", grub)
    run(*build, *MODULES.split())
    return grub


def _snakeoil(place: Path) -> tuple[Path, Path]:
    key = place / "snakeoil.key"
    run("openssl", "rsa", "-in", SNAKEOIL.with_suffix(".key"), "-passin", "pass:snakeoil", "-out", key)
    return key, SNAKEOIL


def _authority(place: Path) -> tuple[Path, Path]:
    key, certificate = place / "lab.key", place / "lab.pem"
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN=Lab CA")
    run(*request, "-keyout", key, "-out", certificate)
    return key, certificate


def _sign(program: Path, key: Path, certificate: Path) -> None:
    """Sign a program in place of those who did."""
    while recognise(program.read_bytes()).signers:
        run("sbattach", "--remove", program)
    run("sbsign", "--key", key, "--cert", certificate, "--output", program, program)


def _known_to(certificate: bytes) -> bytes:
    """Debian's shim with another certificate in place of Debian's (shim, cert.S)."""
    shim = bytearray(SHIM.read_bytes())
    debian = recognise(bytes(shim)).trusted
    at = shim.index(debian)
    assert len(certificate) <= len(debian)
    shim[at : at + len(certificate)] = certificate
    struct.pack_into("<I", shim, at - 16, len(certificate))
    return bytes(shim)

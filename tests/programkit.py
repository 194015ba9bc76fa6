"""Programs for UEFI as made up: PE files with the sections that we read, and signatures that nobody made."""

from __future__ import annotations

import struct

MACHINES = {"x64": 0x8664, "aa64": 0xAA64, "ia32": 0x14C}
SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
MD5 = bytes.fromhex("06082a864886f70d0205")
"""No digest that we compare, so a made-up signature does not say that the program was altered."""


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = bytes([len(body)]) if len(body) < 128 else bytes([0x82]) + len(body).to_bytes(2, "big")
    return bytes([tag]) + size + body


def name_of(vendor: str) -> bytes:
    """A Name of X.501 with one common name."""
    pair = der(0x30, bytes.fromhex("0603550403"), der(0x0C, f"{vendor} CA".encode()))
    return der(0x30, der(0x31, pair))


def signed_by(vendor: str) -> bytes:
    """SignedData (RFC 2315 section 9.1) whose one signer has a certificate of this vendor's CA."""
    digest = der(0x30, der(0x30, MD5), der(0x04, bytes(16)))
    content = der(0x30, SIGNED_DATA, der(0xA0, der(0x30, der(0x30), digest)))
    signer = der(0x30, der(0x02, b"\1"), der(0x30, name_of(vendor), der(0x02, b"\7")))
    signed = der(0x30, der(0x02, b"\1"), der(0x31), content, der(0x31, signer))
    return der(0x30, SIGNED_DATA, der(0xA0, signed))


def pe_image(sections: dict[bytes, bytes], signature: bytes = b"", cpu: str = "x64", head: bytes = b"") -> bytes:
    """A PE file; `head` goes into its first octets, after MZ."""
    start = 0x400 + 24 + 240 + 40 * len(sections)
    header = (b"MZ" + head).ljust(0x3C, b"\0") + struct.pack("<I", 0x400)
    header = header.ljust(0x400, b"\0")
    header += b"PE\0\0" + struct.pack("<HHIIIHH", MACHINES[cpu], len(sections), 0, 0, 0, 240, 0)
    certificate = struct.pack("<IHH", len(signature) + 8, 0x200, 2) + signature if signature else b""
    end = start + sum(map(len, sections.values()))
    optional = struct.pack("<H", 0x20B).ljust(112 + 32, b"\0")
    optional += struct.pack("<II", end if certificate else 0, len(certificate))
    table = b""
    for name, body in sections.items():
        table += struct.pack("<8sIIII", name, len(body), 0, len(body), start).ljust(40, b"\0")
        start += len(body)
    return header + optional.ljust(240, b"\0") + table + b"".join(sections.values()) + certificate


def elf_module(name: bytes) -> bytes:
    """An ELF file of 64 bits with a section .modname, as GRUB's modules are."""
    names = b"\0.modname\0.shstrtab\0"
    start = 64
    table = start + len(name) + 1 + len(names)
    header = b"\x7fELF\2\1\1".ljust(0x28, b"\0") + struct.pack("<Q", table)
    header = header.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 3, 2)

    def section(name_at: int, at: int, size: int) -> bytes:
        return struct.pack("<I20xQQ", name_at, at, size).ljust(64, b"\0")

    sections = section(0, 0, 0) + section(1, start, len(name) + 1)
    sections += section(10, start + len(name) + 1, len(names))
    return header + name + b"\0" + names + sections


def grub_image(
    modules: tuple[str, ...], prefix: str, version: str = "2.06-77.el9", signature: bytes = b"", cpu: str = "x64"
) -> bytes:
    """A GRUB with its modules and prefix, and its SBAT."""
    parts = [(0, elf_module(name.encode())) for name in modules] + [(3, prefix.encode() + b"\0")]
    inner = b"".join(struct.pack("<II", kind, len(body) + 8) + body for kind, body in parts)
    area = struct.pack("<4s4xQQ", b"mimg", 24, 24 + len(inner)) + inner
    sbat = (
        "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n"
        "grub,3,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/\n"
        f"grub.rh,2,Red Hat,grub2,{version},mailto:secalert@redhat.com\n"
    ).encode()
    return pe_image({b"mods": area, b".sbat": sbat}, signature, cpu)


def shim_image(vendor: str, version: str = "15.8", loads: str = "grubx64.efi", cpu: str = "x64") -> bytes:
    """A shim that Microsoft signed, with the certificate of a vendor."""
    certificate = b"certificate of " + name_of(vendor)
    sections = {
        b".sbat": f"sbat,1,SBAT Version,sbat,1,\nshim,4,UEFI shim,shim,{version},\n".encode(),
        b".vendor_cert": struct.pack("<IIII", len(certificate), 0, 16, 0) + certificate,
        b".data": b"\0\0" + f"\\{loads}\0".encode("utf-16-le"),
    }
    named = {name[:8]: body for name, body in sections.items() if name != b".vendor_cert"}
    strings = struct.pack("<I", 4 + len(b".vendor_cert\0")) + b".vendor_cert\0"
    return _with_long_name({**named, b"/4": sections[b".vendor_cert"]}, strings, signed_by("Microsoft"), cpu)


def _with_long_name(sections: dict[bytes, bytes], strings: bytes, signature: bytes, cpu: str) -> bytes:
    """Names of more than 8 octets are in a table after the symbols, of which there are none."""
    image = bytearray(pe_image({**sections, b"strings": strings}, signature, cpu))
    struct.pack_into("<II", image, 0x400 + 12, image.index(strings), 0)
    return bytes(image)


def kernel_image(vendor: str | None, version: str = "5.14.0", cpu: str = "x64") -> bytes:
    """A Linux kernel, signed by a vendor."""
    image = bytearray(pe_image({b".text": bytes(16)}, signed_by(vendor) if vendor else b"", cpu))
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x10)
    image[0x210 : 0x211 + len(version)] = version.encode() + b"\0"
    return bytes(image)

"""What a file is to the machine that asks for it, by its name: every tool of a chain asks for names of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

LOADER, MODULE, CONFIGURATION = "loader", "module", "configuration"
KERNEL, INITRD, MEDIA = "kernel", "initrd", "media"
ANSWERS, INDEX, PACKAGE, PROBE, OTHER = "answers", "index", "package", "probe", "file"

_ROLES: Final = tuple(
    (role, re.compile(pattern, re.IGNORECASE))
    for role, pattern in (
        # Asked for by loaders and installers whether they are there or not: no sign of anything.
        (
            PROBE,
            r"revocations_\w+\.efi|shim_certificate_\d+\.efi|autoexec\.ipxe|bootsig\.bin|updates\.img|product\.img"
            r"|vendor-data|network-config",
        ),
        (
            CONFIGURATION,
            r"(?:.*/)?pxelinux\.cfg/[^/]+|(?:.*/)?grub\.cfg(?:-[^/]*)?|(?:.*/)?[^/]+\.ipxe|(?:.*/)?boot\.scr[^/]*",
        ),
        (
            ANSWERS,
            r"node/.*|(?:.*/)?(?:[^/]*ks\.cfg|[^/]+\.ks|[^/]*preseed[^/]*|[^/]*autoinst[^/]*\.xml|user-data|meta-data)",
        ),
        (MEDIA, r"(?:.*/)?(?:install\.img|[^/]*squashfs[^/]*|[^/]+\.iso|boot/[^/]+/root)"),
        (PACKAGE, r".*\.(?:d?rpm|u?deb|pkg\.tar\.\w+)"),
        (
            INDEX,
            r"(?:.*/)?(?:\.treeinfo|treeinfo|\.discinfo|media\.repo|repomd\.xml|(?:In)?Release(?:\.gpg)?"
            r"|(?:Packages|Sources|Contents-\w+)(?:\.\w+)?|repodata/[^/]+|content|CHECKSUMS)",
        ),
        (MODULE, r".*\.(?:c32|mod|lst|pf2)"),
        (LOADER, r".*\.(?:efi|0|kpxe|kkpxe|pxe|lkrn|com|n12)|(?:.*/)?(?:bootcode\.bin|start\w*\.elf|core\.elf)"),
        (KERNEL, r"(?:.*/)?(?:vmlinu[xz][^/]*|linux[^/]*|bzImage[^/]*|kernel[^/]*|wimboot|Image(?:\.gz)?)"),
        (INITRD, r"(?:.*/)?(?:init(?:rd|ramfs)[^/]*|rootfs[^/]*\.(?:gz|xz|zst|img))"),
    )
)
"""The first that fits the whole name, or for probes its last part."""


def role_of(path: str, known: Mapping[str, str]) -> str:
    """Return what a file is: what the configuration says of its path, else what its name says."""
    name = "/".join(part for part in path.split("/") if part)
    if role := known.get(name):
        return role
    last = name.rpartition("/")[2]
    for role, pattern in _ROLES:
        if pattern.fullmatch(last if role == PROBE else name):
            return role
    return OTHER

"""Users and paths as pyftpdlib asks for them: everyone, and those of the one namespace."""

from __future__ import annotations

from pyftpdlib.filesystems import AbstractedFS

from fastboot.services.node_files import masked


def printable(text: str) -> str:
    """Return text that any terminal or log can take: undecodable octets and control characters escaped."""
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def shown(path: str) -> str:
    """Return a path as events and logs are told of it."""
    return printable(masked(path))


class Anonymous:
    """The authorizer that pyftpdlib asks: everyone may read."""

    def has_perm(self, username: str, perm: str, path: str | None = None) -> bool:
        return perm in "elr"


class Names(AbstractedFS):  # type: ignore[misc]
    """Paths of the one namespace: normalised as text here, confined where the catalog opens them."""

    def ftp2fs(self, ftppath: str) -> str:
        return str(self.ftpnorm(ftppath))

    def fs2ftp(self, fspath: str) -> str:
        return fspath

    def validpath(self, path: str) -> bool:
        return True

"""What the languages of loaders have in common: names of their files, and what can be written in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from jinja2 import PackageLoader, Template

from fastboot.boot.sandbox import Sandbox
from fastboot.model import FastbootError

VENDORS: Final = (
    "debian",
    "ubuntu",
    "fedora",
    "redhat",
    "rocky",
    "almalinux",
    "centos",
    "opensuse",
    "sles",
    "arch",
)
"""Directories of the EFI system partition that GRUB searches for the local disk's loader."""


_MAC = r"(?P<mac>[0-9a-fA-F]{2}(?:-[0-9a-fA-F]{2}){5})"
NAMES: Final[Mapping[str, re.Pattern[str]]] = {
    # Each with the name that ends the loader's probe sequence (no MAC in it) and the one made of a MAC.
    "pxelinux": re.compile(rf"(?:[^/]+/)?pxelinux\.cfg/(?:01-{_MAC}|default)"),
    # Debian's GRUB has /grub built in; those of RHEL's line look in the directory that they were loaded from, for
    # those of media /boot/NAME, before the one that is built in, /EFI/BOOT or /EFI/VENDOR (grub.macros of Fedora).
    "grub": re.compile(rf"(?:(?:[^/]+/)?(?:grub2?|boot)|(?:boot|EFI)/[^/]+)/grub\.cfg(?:-01-{_MAC})?"),
    "ipxe": re.compile(rf"(?:[^/]+/){{0,2}}(?:boot|(?:01-)?{_MAC})\.ipxe"),
}


class RenderError(FastbootError):
    """A value that can not be written into a loader's configuration; says which and why."""


def load_templates() -> dict[str, Template]:
    filters: dict[str, Callable[..., Any]] = {
        "line": _line,
        "word": _word,
        "member": _member,
        "quote": quote,
        "words": _words,
        "script": _script,
    }
    environment = Sandbox(PackageLoader("fastboot.boot"), filters)
    return {language: environment.get_template(f"{language}.j2") for language in NAMES}


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _line(text: str) -> str:
    if not text.isprintable():
        raise RenderError(f"{text!r} holds a line break or a control character")
    return text


def _word(text: str) -> str:
    """PXELINUX ends every name at white space, and has no quotes."""
    if not text or re.search(r"\s", _line(text)):
        raise RenderError(f"{text!r}: a name with white space in it can not be written for PXELINUX and iPXE")
    return text


def _member(text: str) -> str:
    """PXELINUX joins the names of several initrds with commas."""
    if "," in _word(text):
        raise RenderError(f"{text!r}: a comma in the name of an initrd can not be written for PXELINUX")
    return text


def quote(text: str) -> str:
    """A word of GRUB's script, where single quotes keep everything but themselves."""
    return "'" + _line(text).replace("'", "'\\''") + "'"


def _words(arguments: str) -> list[str]:
    """Split a kernel command line as the kernel does: double quotes keep blanks.

    The quotes go: GRUB writes its own around a word with blanks, and a backslash before any that it finds.
    """
    words = re.findall(r'(?:[^\s"]|"[^"]*"?)+', _line(arguments))
    return [word.replace('"', "") for word in words]


def grub_url(url: str) -> str:
    """Name a file as GRUB does: the device of its protocol and server, then the path, quoted."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "tftp") or not re.fullmatch(r"[A-Za-z0-9.:-]+", parts.netloc):
        raise RenderError(f"{url}: GRUB speaks http and tftp only; another machine must serve it by one of them")
    return f"({parts.scheme},{parts.netloc}){quote(unquote(parts.path))}"


def _script(text: str) -> str:
    """Words of iPXE's script, which has no quotes: some can not be written."""
    for word in _line(text).split():
        if "${" in word or word.startswith("#") or word in ("||", "&&", ";"):
            raise RenderError(f"{word!r} means something to iPXE's script and can not be written in it")
    return text

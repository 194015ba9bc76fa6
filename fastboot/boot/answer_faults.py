"""Whether an installer would read an answer file: what can be said of its text alone."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Final
from xml.etree import ElementTree

from fastboot.boot.answers import FORMATS, Format
from fastboot.boot.media import System

CLOUD_CONFIG: Final = "#cloud-config"
"""The first line without which cloud-init takes a file for none of its own."""


def answer_fault(format_: Format, text: str, system: System | None) -> str | None:
    """Return why an installer would not read a text, None where nothing speaks against it."""
    if not text.strip():
        return "the file is empty"
    if format_ is FORMATS["kickstart"]:
        return _kickstart_fault(text, system)
    if format_ is FORMATS["autoinstall"] and text.partition("\n")[0].rstrip() != CLOUD_CONFIG:
        return f"the first line is not {CLOUD_CONFIG}, so cloud-init ignores the file"
    if format_ is FORMATS["preseed"]:
        return _preseed_fault(text)
    if format_ is FORMATS["autoyast"]:
        try:
            ElementTree.fromstring(text)  # noqa: S314 - a text of the administrator
        except ElementTree.ParseError as error:
            return f"is no XML: {error}"
    return None


def _preseed_fault(text: str) -> str | None:
    """debconf-set-selections(1): owner, question, type, value; a backslash goes on in the next line."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.lstrip().startswith("#") and len(line.split(None, 3)) < 3:
            return f"{line.strip()!r} is no line of owner, question, type and value"
    return None


def _kickstart_fault(text: str, system: System | None) -> str | None:
    """Ask pykickstart, where that is installed (`pip install fastboot[kickstart]`)."""
    try:
        parser: Any = import_module("pykickstart.parser")
        version: Any = import_module("pykickstart.version")
        errors: Any = import_module("pykickstart.errors")
    except ImportError:
        return None
    known = version.versionMap
    named = f"{'F' if system.name == 'Fedora' else 'RHEL'}{system.version.partition('.')[0]}" if system else ""
    handler = version.makeVersion(named if named in known else version.DEVEL)
    try:
        parser.KickstartParser(handler, missingIncludeIsFatal=False).readKickstartFromString(text)
    except errors.KickstartError as error:
        return " ".join(str(error).split())
    return None

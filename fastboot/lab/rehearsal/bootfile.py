"""What a loader makes of its configuration: the one thing that it boots."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

LOCAL: Final = "local disk"


@dataclass(frozen=True, slots=True)
class Boot:
    """What is booted: `kernel` and `initrds` as the configuration names them, or `local`, the machine's own disk.

    `chain`: another script or loader that takes over instead.
    """

    kernel: str = ""
    initrds: tuple[str, ...] = ()
    arguments: str = ""
    local: bool = False
    chain: str = ""


class Unreadable(Exception):
    """A configuration that can not be followed; says why."""


def modules(language: str, text: str) -> tuple[str, ...]:
    """Return the modules that a configuration has GRUB load: by name, or for a protocol (grub_net_open_real)."""
    if language != "grub":
        return ()
    found = re.findall(r"\binsmod\s+(\w+)|^configfile \((\w+),", text, re.MULTILINE)
    return tuple(dict.fromkeys(insmod or protocol for insmod, protocol in found))


def read(language: str, text: str, loaded: frozenset[str] = frozenset(), choice: str | None = None) -> Boot:
    """Return what a configuration boots where these modules could be loaded and somebody chooses this entry of its
    menu, or nobody touches the keyboard. Raises Unreadable."""
    if language == "grub":
        other = re.search(r"^configfile (\((\w+),.*)", text, re.MULTILINE)
        if other and other[2] in loaded:
            return Boot(chain="".join(_words(other[1])))
        text = re.sub(
            r"\bif insmod (\w+); then\s(.*?); else\s(.*?); fi\b",
            lambda match: match[2] if match[1] in loaded else match[3],
            text,
        )
    found = {"pxelinux": _pxelinux, "grub": _grub, "ipxe": _ipxe}[language](text, choice)
    if not (found.kernel or found.local or found.chain):
        raise Unreadable("it names no kernel")
    return found


def _pxelinux(text: str, choice: str | None) -> Boot:
    default, label, labels = "", "", dict[str, dict[str, str]]()
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in ("default", "ontimeout"):
            default = rest
        elif word == "label":
            label = rest
            labels[label] = {}
        elif label and word:
            labels[label][word] = rest
    default = choice or default
    entry = labels.get(default or next(iter(labels), ""))
    if entry is None:
        raise Unreadable(f"there is no label {default!r}")
    if "localboot" in entry or entry.get("com32", "").startswith("chain"):
        return Boot(local=True)
    arguments = entry.get("append", "")
    initrds = [entry["initrd"]] if "initrd" in entry else re.findall(r"(?:^| )initrd=(\S+)", arguments)
    kernel = entry.get("linux") or entry.get("kernel") or ""
    return Boot(kernel, tuple(name for each in initrds for name in each.split(",")), arguments)


def _grub(text: str, choice: str | None) -> Boot:
    entry, entries, settings = "", dict[str, Boot](), {"default": "0"}
    for line in text.splitlines():
        line = line.strip()
        if not entry and (match := re.match(r"set (\w+)=(.*)", line)):
            settings[match[1]] = "".join(_words(match[2]))
        elif line.startswith("menuentry "):
            words = _words(line.rstrip("{ "))
            entry = words[words.index("--id") + 1] if "--id" in words else words[1]
            entries[entry] = Boot()
        elif entry and (match := re.match(r"(linux|initrd)(?:efi|16)?\s+(.*)", line)):
            words, known = [_expanded(word, settings) for word in _words(match[2])], entries[entry]
            if match[1] == "linux":
                entries[entry] = Boot(words[0], known.initrds, " ".join(words[1:]))
            else:
                entries[entry] = Boot(known.kernel, tuple(words), known.arguments)
        elif entry and re.match(r"(chainloader|exit|boot)\b", line) and not entries[entry].kernel:
            entries[entry] = Boot(local=True)
    default = choice or settings["default"]
    if default.isdigit() and int(default) < len(entries):
        default = list(entries)[int(default)]
    if default not in entries:
        raise Unreadable(f"there is no menu entry {default!r}")
    return entries[default]


def _expanded(word: str, settings: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: settings.get(match[1], match[0]), word)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Unreadable(f"{text!r}: {error}") from error


_JUMPS: Final = 100


def _ipxe(text: str, choice: str | None) -> Boot:
    lines = [line.strip() for line in text.splitlines()]
    if not text.startswith("#!ipxe"):
        raise Unreadable("it does not begin with #!ipxe")
    labels = {line[1:].split()[0]: at for at, line in enumerate(lines) if len(line) > 1 and line.startswith(":")}
    at, settings, found = 0, dict[str, str](), Boot()
    for _ in range(_JUMPS):
        for number in range(at, len(lines)):
            words = list(_ipxe_words(lines[number], settings))
            if not words:
                continue
            command, *rest = words
            if command == "goto":
                if rest[0] not in labels:
                    raise Unreadable(f"there is no label {rest[0]!r}")
                at = labels[rest[0]]
                break
            if command == "choose":
                settings[rest[-1]] = choice or rest[rest.index("--default") + 1] if "--default" in rest else ""
            elif command in ("sanboot", "exit"):
                return Boot(local=True)
            elif command in ("kernel", "imgfetch") and command == "kernel":
                found = Boot(rest[0], (), " ".join(rest[1:]))
            elif command == "initrd":
                found = Boot(found.kernel, (*found.initrds, rest[-1]), found.arguments)
            elif command == "chain":
                return Boot(chain=next(word for word in rest if not word.startswith("--")))
            elif command == "boot":
                return found
        else:
            return found
    raise Unreadable("it goes round in circles")


def _ipxe_words(line: str, settings: dict[str, str]) -> Iterator[str]:
    # A command, up to what is done if it fails; a menu that is shown never fails.
    if line.startswith(("#", ":")):
        return
    for word in line.split():
        if word == "||":
            return
        yield _expanded(word, settings)

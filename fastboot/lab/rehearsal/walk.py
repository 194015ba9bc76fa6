"""What a machine does one after the other: what its firmware and its loaders do, from power-on to its kernel."""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Final

from fastboot.lab._machines import Outcome
from fastboot.lab.rehearsal import bootfile
from fastboot.lab.rehearsal.fetching import Fetcher
from fastboot.lab.rehearsal.installer import Installer
from fastboot.lab.rehearsal.kinds import IPXE_LOADER, KINDS, Dhcp, Loader, loader_of
from fastboot.lab.rehearsal.machine import Machine, Place, Stopped, Way

_KEEP: Final = 1 << 16
_CHAINS: Final = 8
"""Loaders and scripts that follow each other; more go round in circles."""

Loaded = Generator[None, Outcome, frozenset[str]]


class Walk:
    """Each method is a part of the way; what configurations say is read once for all."""

    def __init__(self, fetcher: Fetcher, installer: Installer | None, choice: str | None = None) -> None:
        """Without an installer a machine is done when its kernel is there. `choice`: what somebody chooses
        in every menu."""
        self._fetcher, self._installer, self._choice = fetcher, installer, choice
        self._read: dict[tuple[str, bytes, frozenset[str]], bootfile.Boot] = {}

    def boot(self, m: Machine) -> Way:
        """Yield for each outcome, until the machine has booted or stopped."""
        try:
            yield from self._firmware(m)
        except Stopped as stop:
            m.stopped, m.fault = stop.stage, str(stop)

    def _firmware(self, m: Machine) -> Way:
        firmware = KINDS[m.kind]
        place = yield from self._told(m, firmware.dhcp)
        if firmware.url and place.scheme == "http":
            yield from self._fetcher.look(m, "loader", place, "UefiHttpBoot/1.0")
        loaded = yield from self._fetcher.load(m, "loader", place, firmware.tftp, keep=_KEEP)
        yield from self._run(m, place, loaded.content or b"")

    def _run(self, m: Machine, place: Place, content: bytes) -> Way:
        # The loader or script that came from `place`, and what it leads to.
        for _ in range(_CHAINS):
            if content.startswith(b"#!ipxe"):
                boot = self._parse("ipxe", place, content)
                if not boot.chain:
                    yield from self._system(m, IPXE_LOADER, place, boot)
                    return
                loader, place = IPXE_LOADER, self._find(place, boot.chain)
            else:
                known = loader_of(place.path)
                if known is None:
                    m.result = f"{PurePosixPath(place.path).name}, which is not followed further"
                    return
                loader = known
                if loader.again:
                    place = yield from self._told(m, loader.again)
                elif loader.next is None:
                    yield from self._configured(m, loader, place)
                    return
                else:
                    yield from self._extras(m, loader, place)
                    place = place.beside(loader.next)
            loaded = yield from self._fetcher.load(m, "loader", place, loader.tftp, keep=_KEEP)
            content = loaded.content or b""
        raise Stopped("loader", f"{place}: loaders and scripts go round in circles")

    def _told(self, m: Machine, dhcp: Dhcp) -> Generator[None, Outcome, Place]:
        # Asks for an address; returns the boot file that came with it.
        reply = yield from self._fetcher.lease(m, dhcp)
        name = reply.file.split(b"\0")[0] or reply.options.get(67, b"").rstrip(b"\0\xff")
        server = IPv4Address(reply.siaddr or int.from_bytes(reply.options.get(54, b"")))
        if not name:
            raise Stopped("loader", f"the answer of {server} names no boot file")
        try:
            return Place("tftp", server, 69, "").find(name.decode("utf-8", "replace"))
        except ValueError as error:
            raise Stopped("loader", f"boot file {name!r}: {error}") from error

    def _extras(self, m: Machine, loader: Loader, place: Place) -> Way:
        for name in loader.files:
            yield from self._fetcher.tftp(m, "loader", place.beside(name), loader.tftp, may_miss=True)

    def _configured(self, m: Machine, loader: Loader, place: Place) -> Way:
        # A loader that looks for its configuration by names of its own.
        yield from self._extras(m, loader, place)
        assert m.address
        for name in loader.configurations(m.mac.hex(":"), m.address):
            where = place.beside(name)
            found = yield from self._fetcher.tftp(
                m, "configuration", where, loader.tftp, may_miss=True, keep=_KEEP
            )
            if found.end == "done":
                break
        else:
            raise Stopped(
                "configuration", f"{loader.title} found none of its files, the last {place.beside(name)}"
            )
        for _ in range(_CHAINS):
            content = found.content or b""
            modules = yield from self._modules(m, loader, place, content)
            boot = self._parse(loader.language, where, content, modules)
            if not boot.chain:
                yield from self._system(m, loader, where if loader.language == "grub" else place, boot)
                return
            where = self._find(where, boot.chain)
            found = yield from self._fetcher.load(m, "configuration", where, loader.tftp, keep=_KEEP)
        raise Stopped("configuration", f"{where}: configurations go round in circles")

    def _modules(self, m: Machine, loader: Loader, place: Place, content: bytes) -> Loaded:
        # What of it a configuration wants and the server has.
        found = set()
        for name in bootfile.modules(loader.language, content.decode("utf-8", "replace")):
            where = place.beside(loader.modules.format(name))
            outcome = yield from self._fetcher.tftp(m, "configuration", where, loader.tftp, may_miss=True)
            found |= {name} if outcome.end == "done" else set()
        return frozenset(found)

    def _parse(
        self, language: str, place: Place, content: bytes, modules: frozenset[str] = frozenset()
    ) -> bootfile.Boot:
        key = language, content, modules
        if key not in self._read:
            try:
                self._read[key] = bootfile.read(
                    language, content.decode("utf-8", "replace"), modules, self._choice
                )
            except bootfile.Unreadable as error:
                raise Stopped("configuration", f"{place}: {error}") from error
        return self._read[key]

    def _find(self, place: Place, name: str) -> Place:
        try:
            return place.find(name)
        except ValueError as error:
            raise Stopped("configuration", f"{place} names {name!r}: {error}") from error

    def _system(self, m: Machine, loader: Loader, place: Place, boot: bootfile.Boot) -> Way:
        # Kernel and initrds, then what an installer is told to fetch.
        if boot.local:
            m.result = bootfile.LOCAL
            return
        for name in (boot.kernel, *boot.initrds):
            yield from self._fetcher.load(m, "system", self._find(place, name), loader.tftp)
        if self._installer:
            yield from self._installer.install(m, place, boot.arguments)
        m.result = PurePosixPath(boot.kernel).name

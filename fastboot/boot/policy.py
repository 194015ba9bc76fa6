"""What a machine is answered: ordered rules, each a function of the request, the first verdict holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from fastboot.boot.firmware import SCRIPT, Loaders, class_of
from fastboot.config import Boot
from fastboot.model import IGNORE, BootRequest, ConfigError, Plan, Scope, Stage, Verdict

Rule = Callable[[BootRequest], Verdict]

MAX_LOADER: Final = 127
"""Octets of a boot file name: the header's `file` field less its NUL (RFC 2131 section 2)."""
NO_PXEDHCP: Final = (175, b"\xb0\x01\x01")
"""To iPXE: do not wait 2 s for proxy offers, for this server alone decides what boots."""
IPXE_SCHEMES: Final = {"http": 0x13, "https": 0x14, "tftp": 0x15, "ftp": 0x16}
"""The feature that iPXE lists in option 175 where it can fetch from such a URL."""
_BINARY = re.compile(r"\.(?:0|efi|k?kpxe|pxe|lkrn|krn|usb|iso)$", re.IGNORECASE)


def is_ipxe(request: BootRequest) -> bool:
    """Whether iPXE asks: by option 77, raw (as iPXE sends it) or length-prefixed (RFC 3004), or by option 175."""
    return (
        request.stage is Stage.IPXE
        or bool(request.ipxe_features)
        or request.user_class == b"iPXE"
        or b"iPXE" in _strings(request.user_class)
    )


class Policy:
    """The default policy: who gets which loader. `decide` is a pure function of the request."""

    def __init__(self, boot: Boot, loaders: Loaders, rules: Sequence[Rule] = ()) -> None:
        """`rules` are asked before the own ones. Raises ConfigError for a loader that can not be given."""
        for class_, path in loaders.by_class.items():
            if len(path.encode()) > MAX_LOADER:
                raise ConfigError(f"boot.loaders.{class_}: longer than {MAX_LOADER} octets: take a shorter path")
        if _BINARY.search(urlsplit(loaders.by_class.get("ipxe", "")).path):
            raise ConfigError(
                f"boot.loaders.ipxe: {loaders.by_class['ipxe']} is a boot program, which iPXE would load for ever;"
                ' name a script such as "boot/boot.ipxe"'
            )
        self._unknown = boot.unknown
        self._loaders = loaders.by_class
        self._rules = (*rules, self._strangers, self._ipxe, self._http, self._firmware)

    def decide(self, request: BootRequest) -> Verdict:
        """Return the plan for this request, or IGNORE. A node gets a plan of its own, with its address."""
        for rule in self._rules:
            verdict = rule(request)
            if verdict is IGNORE:
                return IGNORE
            if verdict is not None:
                return self._own(request, verdict)
        # Installers, operating systems, GRUB, and the second DHCP that syslinux.efi causes (no class, no option
        # 93: boot-clients.md, capture 7), and architectures without a loader: an address, the node's where it has
        # one, so that it does not change in the middle of a boot.
        return self._own(request, Plan())

    def _own(self, request: BootRequest, plan: Plan) -> Plan:
        if request.node is None:
            return plan
        scope = Scope.MACHINE if plan.scope is Scope.CLASS else plan.scope
        return replace(plan, scope=scope, address=plan.address or request.node.address)

    def _strangers(self, request: BootRequest) -> Verdict:
        return IGNORE if request.node is None and self._unknown == "ignore" else None

    def _ipxe(self, request: BootRequest) -> Verdict:
        # ROM and undionly.kpxe send the same classes (capture 6), so any program for iPXE would come round again
        # and again: it gets a script and nothing else.
        if not is_ipxe(request):
            return None
        script = self._loaders.get("ipxe", SCRIPT)
        feature = IPXE_SCHEMES.get(urlsplit(script).scheme)
        if feature is not None and request.ipxe_features and feature not in request.ipxe_features:
            script = SCRIPT
        return Plan(loader=script, options=(NO_PXEDHCP,))

    def _http(self, request: BootRequest) -> Verdict:
        if not request.vendor_class.startswith(b"HTTPClient") or request.architecture is None:
            return None
        loader = self._loaders.get(class_of(request.architecture))
        # EDK2 and GRUB take no URL from an offer without this class (UEFI 2.5 section 24.7).
        return Plan(loader=loader, options=((60, b"HTTPClient"),)) if loader else None

    def _firmware(self, request: BootRequest) -> Verdict:
        if request.architecture is None or request.vendor_class.startswith(b"HTTPClient"):
            return None
        class_ = class_of(request.architecture)
        if class_.startswith("http-") or class_ not in self._loaders:
            return None
        # No option 60: with it and without option 43, EDK2 asks port 4011 next, and ends in PXE-E16
        # (protocol-facts.md A4, the option-60 trap).
        return Plan(loader=self._loaders[class_])


def _strings(value: bytes) -> list[bytes]:
    """Split option 77 as RFC 3004 section 4 has it; nothing where it is not so."""
    strings, at = [], 0
    while at < len(value):
        end = at + 1 + value[at]
        if end > len(value):
            return []
        strings.append(value[at + 1 : end])
        at = end
    return strings

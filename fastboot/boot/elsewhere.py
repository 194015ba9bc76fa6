"""What to tell the server that gives the addresses, so that it names our boot files: settings in its own words.

For firmware that ignores a proxy, and for a DHCP server on this very host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Any, Final

from fastboot.boot.firmware import SERVER
from fastboot.boot.policy import Policy

IPXE: Final = "fastboot-ipxe"


def boot_files(policy: Policy) -> dict[int, str]:
    """Return the boot file of every architecture that has one."""
    named = {code: policy.common(class_) for code, class_ in policy.architectures.items()}
    return {code: loader for code, loader in named.items() if loader}


def boot_remarks(policy: Policy) -> list[str]:
    """Return which nodes are to be given another boot file than others of their class, a line for each profile."""
    return [
        f"class {class_}: {loader} for profile {profile} (node {', '.join(names)})"
        for class_ in dict.fromkeys(policy.architectures.values())
        for profile, names in policy.users()
        if (loader := policy.default(class_, profile)) and loader != policy.common(class_)
    ]


def advice(server: IPv4Address, files: Mapping[int, str], script: str | None = None) -> dict[str, str]:
    """Return what to add to each program's configuration: `server` is ours, `files` boot files by architecture.

    iPXE is left out, for it sends the architecture of the firmware that loaded it and would load itself for ever;
    `script` is what it gets, None where it is left to the proxy, which it heeds.
    """
    ours = {code: file.replace(SERVER, str(server)) for code, file in sorted(files.items())}
    script = script.replace(SERVER, str(server)) if script else None
    return {program: write(server, ours, script) for program, write in PROGRAMS.items()}


def _dnsmasq(server: IPv4Address, files: Mapping[int, str], script: str | None) -> str:
    lines = [f"dhcp-match=set:{IPXE},175"]
    for code, file in files.items():
        tag = f"fastboot-{code}"
        lines.append(f"dhcp-match=set:{tag},option:client-arch,{code}")
        if _is_url(file):
            # Else what the client sent as its class is what dnsmasq sends, or nothing.
            lines.append(f"dhcp-option-force=tag:{tag},60,HTTPClient")
        lines.append(f"dhcp-boot=tag:{tag},tag:!{IPXE},{_comma(file)},,{server}")
    if script:
        lines.append(f"dhcp-boot=tag:{IPXE},{_comma(script)},,{server}")
    return "\n".join(lines)


def _dhcpd(server: IPv4Address, files: Mapping[int, str], script: str | None) -> str:
    # A branch of its own, for dhcpd takes "not (exists user-class and ...)" for false where there is no class.
    ipxe = [f"filename {_quoted(script)};" if script else "# left to the proxy"]
    choices = [('exists user-class and option user-class = "iPXE"', ipxe)]
    for code, file in files.items():
        lines = [f"filename {_quoted(file)};"]
        if _is_url(file):
            lines.insert(0, 'option vendor-class-identifier "HTTPClient";')
        choices.append((f"option pxe-system-type = {code >> 8:02x}:{code & 255:02x}", lines))
    body = ""
    for at, (test, lines) in enumerate(choices):
        inside = "".join(f"    {line}\n" for line in lines)
        body += f"{' elsif' if at else '  if'} {test} {{\n{inside}  }}"
    return (
        'class "fastboot" {\n'
        '  match if substring (option vendor-class-identifier, 0, 9) = "PXEClient"\n'
        '    or substring (option vendor-class-identifier, 0, 10) = "HTTPClient";\n'
        f"  next-server {server};\n{body}\n}}"
    )


def _kea(server: IPv4Address, files: Mapping[int, str], script: str | None) -> str:
    ipxe = "option[77].hex == 'iPXE'"
    classes: list[dict[str, Any]] = []
    if script:
        classes.append({"name": IPXE, "test": ipxe, "next-server": str(server), "boot-file-name": script})
    for code, file in files.items():
        entry: dict[str, Any] = {
            "name": f"fastboot-{code}",
            "test": f"option[93].hex == {code:#06x} and not ({ipxe})",
            "next-server": str(server),
            "boot-file-name": file,
        }
        if _is_url(file):
            data = {"name": "vendor-class-identifier", "data": "HTTPClient", "always-send": True}
            entry["option-data"] = [data]
        classes.append(entry)
    return '"client-classes": ' + json.dumps(classes, indent=2)


def _windows(server: IPv4Address, files: Mapping[int, str], script: str | None) -> str:
    lines = ["Add-DhcpServerv4Class -Name 'iPXE' -Type User -Data 'iPXE'"]
    if any(map(_is_url, files.values())):
        lines.append("Add-DhcpServerv4OptionDefinition -OptionId 60 -Name 'ClassIdentifier' -Type String")
    for code, file in files.items():
        name = f"fastboot {code:05}"
        class_ = "HTTPClient" if _is_url(file) else "PXEClient"
        values = [(60, "HTTPClient"), (67, file)] if _is_url(file) else [(66, str(server)), (67, file)]
        lines.append(f"Add-DhcpServerv4Class -Name '{name}' -Type Vendor -Data '{class_}:Arch:{code:05}'")
        lines.append(
            f"Add-DhcpServerv4Policy -Name '{name}' -Condition AND -VendorClass EQ,'{name}*' -UserClass NE,'iPXE'"
        )
        lines += (_windows_option(name, number, value) for number, value in values)
    if script:
        lines.append("Add-DhcpServerv4Policy -Name 'fastboot iPXE' -Condition OR -UserClass EQ,'iPXE'")
        lines += (
            _windows_option("fastboot iPXE", number, value) for number, value in ((66, str(server)), (67, script))
        )
    return "\n".join(lines)


def _windows_option(policy: str, number: int, value: str) -> str:
    quoted = value.replace("'", "''")
    return f"Set-DhcpServerv4OptionValue -PolicyName '{policy}' -OptionId {number} -Value '{quoted}'"


PROGRAMS: Final[Mapping[str, Callable[[IPv4Address, Mapping[int, str], str | None], str]]] = {
    "dnsmasq": _dnsmasq,
    "dhcpd": _dhcpd,
    "kea": _kea,
    "windows": _windows,
}
"""dnsmasq.conf; ISC's dhcpd.conf; what goes into "Dhcp4" of kea-dhcp4.conf; PowerShell on Windows Server."""


def _is_url(file: str) -> bool:
    return "://" in file


def _comma(text: str) -> str:
    """A word of dnsmasq's configuration, where commas part words and double quotes keep them."""
    return f'"{text}"' if "," in text else text


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

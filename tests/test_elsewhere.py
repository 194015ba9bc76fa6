"""Settings for other DHCP servers: each program takes them, and names our boot files to all kinds of machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from dhcpkit import DISCOVER, OFFER, message, need
from lankit import Host, Lan, Listener, daemon, dnsmasq, lan, wait_for

from fastboot.boot.elsewhere import PROGRAMS, advice, boot_files
from fastboot.boot.loaders import Loaders
from fastboot.boot.policy import Policy
from fastboot.config import Config

US, THEM = "10.77.0.2", "10.77.0.1"
TREE = Path(__file__).parent.parent / ".cache" / "debian"
"""Where tools/bootstrap.py unpacks servers that must not be installed."""
FILES = {
    0x00: "boot/pxelinux.0",
    0x07: "boot/snponly.efi",
    0x09: "boot/snponly.efi",
    0x0B: "lab's/arm, 64.efi",
    0x10: "http://{server}/boot/snponly.efi",
}
SCRIPT = "boot/boot.ipxe"
Serve = Callable[[Host, Path, str], AbstractContextManager[object]]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{TREE / 'usr/sbin'}:{os.environ['PATH']}")
    if found is None:
        text = f"needs {name}: python3 tools/bootstrap.py test unpacks it"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@contextmanager
def serve_dnsmasq(host: Host, directory: Path, settings: str) -> Iterator[None]:
    with dnsmasq(host, directory, settings):
        yield


@contextmanager
def serve_dhcpd(host: Host, directory: Path, settings: str) -> Iterator[None]:
    file, leases, log = directory / "dhcpd.conf", directory / "dhcpd.leases", directory / "dhcpd.log"
    file.write_text(
        "ddns-update-style none; ping-check false; default-lease-time 600; max-lease-time 600;\n"
        f"{settings}\nsubnet 10.77.0.0 netmask 255.255.255.0 {{ range 10.77.0.100 10.77.0.199; }}\n"
    )
    leases.touch()
    dhcpd = program("dhcpd")
    subprocess.run([dhcpd, "-t", "-cf", str(file)], check=True, capture_output=True, timeout=30)
    files = ("-cf", str(file), "-lf", str(leases), "-pf", str(directory / "dhcpd.pid"))
    with daemon(host, dhcpd, "-4", "-f", "-d", "--no-pid", *files, "e0", log=log):
        wait_for(lambda: "Sending on" in log.read_text(), f"dhcpd: see {log}")
        yield


@contextmanager
def serve_kea(host: Host, directory: Path, settings: str) -> Iterator[None]:
    file, log = directory / "kea.json", directory / "kea.log"
    rest = {
        "interfaces-config": {"interfaces": ["e0"]},
        "lease-database": {"type": "memfile", "persist": False},
        "subnet4": [{"id": 1, "subnet": "10.77.0.0/24", "pools": [{"pool": "10.77.0.100-10.77.0.199"}]}],
        "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
    }
    file.write_text(f'{{ "Dhcp4": {{\n{settings},\n{json.dumps(rest)[1:-1]}\n}} }}')
    kea = program("kea-dhcp4")
    libraries = TREE / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    environment = {
        "LD_LIBRARY_PATH": str(libraries),
        "KEA_PIDFILE_DIR": str(directory),
        "KEA_LOCKFILE_DIR": str(directory),
    }
    words = ["env", *(f"{key}={value}" for key, value in environment.items()), kea]
    command = host.space.command(*words, "-t", str(file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr + done.stdout
    with daemon(host, *words, "-c", str(file), log=log):
        wait_for(lambda: "DHCP4_STARTED" in log.read_text(), f"Kea: see {log}")
        yield


SERVERS: dict[str, Serve] = {"dnsmasq": serve_dnsmasq, "dhcpd": serve_dhcpd, "kea": serve_kea}


@pytest.fixture
def place() -> Iterator[Lan]:
    need("ip", "dnsmasq")
    with lan() as made:
        yield made


def asking(architecture: int, *, ipxe: bool = False) -> tuple[tuple[int, bytes], ...]:
    class_ = "HTTPClient" if architecture == 0x10 else "PXEClient"
    options = [
        (55, bytes((1, 3, 6, 43, 60, 66, 67))),
        (57, b"\x05\xc0"),
        (60, f"{class_}:Arch:{architecture:05}:UNDI:003000".encode()),
        (93, architecture.to_bytes(2)),
        (94, b"\1\3\0"),
        (97, bytes(17)),
    ]
    return tuple(options + ([(77, b"iPXE"), (175, b"\x15\x01\x01")] if ipxe else []))


@pytest.mark.parametrize("script", [SCRIPT, None], ids=["with iPXE", "without iPXE"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_with_our_settings_names_our_boot_files(
    name: str, script: str | None, place: Lan, tmp_path: Path
) -> None:
    other, bare = place.host(f"{THEM}/24"), place.host()
    text = advice(IPv4Address(US), FILES, script)[name]
    with SERVERS[name](other, tmp_path, text), closing(Listener(bare)) as card:

        def offered(mac: int, options: tuple[tuple[int, bytes], ...]) -> tuple[str, str, bytes]:
            card.broadcast(message(DISCOVER, f"52:54:00:aa:00:{mac:02x}", xid=mac, flags=0x8000, options=options))
            found = card.first()
            assert (found.type, found.xid) == (OFFER, mac)
            assert IPv4Address(found.yiaddr) in IPv4Network("10.77.0.0/24")
            file = (found.file.rstrip(b"\0") or found.options.get(67, b"").rstrip(b"\0")).decode()
            return str(IPv4Address(found.siaddr)), file, found.options.get(60, b"")

        for number, (architecture, file) in enumerate(FILES.items()):
            server, named, class_ = offered(number, asking(architecture))
            assert named == file.replace("{server}", US)
            assert server == US
            assert (class_ == b"HTTPClient") is (architecture == 0x10), "EDK2 takes a URL from such an offer only"
            _, to_ipxe, _ = offered(100 + number, asking(architecture, ipxe=True))
            assert to_ipxe == (script or ""), "iPXE on this firmware must not load itself again"
        assert offered(200, ((55, b"\1\3\6"), (60, b"MSFT 5.0")))[1] == "", "an ordinary client is told of no file"
        assert offered(201, asking(0x0A))[1] == "", "a machine that we have nothing for"


def test_windows_is_told_in_powershell() -> None:
    """Not tried on a Windows server: the words are those of its DhcpServer module."""
    text = advice(IPv4Address(US), FILES, SCRIPT)["windows"]
    assert "Add-DhcpServerv4Class -Name 'fastboot 00007' -Type Vendor -Data 'PXEClient:Arch:00007'" in text
    assert "-Name 'fastboot 00007' -Condition AND -VendorClass EQ,'fastboot 00007*' -UserClass NE,'iPXE'" in text
    assert f"-PolicyName 'fastboot 00007' -OptionId 66 -Value '{US}'" in text
    assert "-PolicyName 'fastboot 00007' -OptionId 67 -Value 'boot/snponly.efi'" in text
    assert "-OptionId 67 -Value 'lab''s/arm, 64.efi'" in text
    assert "-PolicyName 'fastboot 00016' -OptionId 60 -Value 'HTTPClient'" in text
    assert "-PolicyName 'fastboot iPXE' -OptionId 67 -Value 'boot/boot.ipxe'" in text
    assert text.count("Add-DhcpServerv4Policy") == len(FILES) + 1


def test_every_architecture_with_a_boot_file_is_named() -> None:
    settings = Config.model_validate({"interface": "lo", "tftp": {}, "boot": {"architectures": {"0x40": "new"}}})
    loaders = Loaders({"uefi-x64": "a.efi", "new": "b.efi", "ipxe": SCRIPT, "http-x64": "http://{server}/a.efi"})
    assert boot_files(Policy(settings, (), loaders)) == {
        7: "a.efi", 9: "a.efi", 0x10: "http://{server}/a.efi", 0x11: "http://{server}/a.efi", 0x40: "b.efi",
    }  # fmt: skip
    assert set(advice(IPv4Address(US), {7: "a.efi"})) == set(PROGRAMS)

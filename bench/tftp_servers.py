"""The TFTP servers of the comparison, each told of enough clients and of nothing else, with the same directory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path

from bench.dhcp_servers import Command, libraries, program

SERVER, CLIENT, PREFIX = "10.99.0.1", "10.99.0.2", 16
CLIENTS = IPv4Network("10.99.128.0/17")
MOST_CLIENTS = 5000


def fastboot(work: Path, root: Path) -> Command:
    """Its defaults."""
    config = work / "fastboot.toml"
    config.write_text(f'interface = "bench1"\nstate = "{work}/state"\nroots = ["{root}"]\n[tftp]\n')
    return Command([sys.executable, "-m", "fastboot", "serve", "-c", str(config)])


def dnsmasq(work: Path, root: Path) -> Command:
    """Knows no windows; one process."""
    return Command(
        [
            program("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--enable-tftp",
            f"--tftp-root={root}", f"--tftp-max={MOST_CLIENTS}", "--interface=bench1", "--bind-interfaces",
            "--user=root", "--group=root", "--log-facility=-", "--quiet-tftp",
        ]
    )  # fmt: skip


def hpa(work: Path, root: Path) -> Command:
    """Knows no windows; a process for each transfer."""
    address = ["--ipv4", "--address", f"{SERVER}:69"]
    return Command(
        [program("in.tftpd"), "--foreground", *address, "--secure", "--user", "root", str(root)], libraries()
    )


def atftpd(work: Path, root: Path) -> Command:
    """Knows windows; a thread for each transfer."""
    return Command(
        [
            program("atftpd"), "--daemon", "--no-fork", "--bind-address", SERVER, "--maxthread", str(MOST_CLIENTS),
            "--user", "root", "--group", "root", "--verbose=0", str(root),
        ],
        libraries(),
    )  # fmt: skip


SERVERS: Mapping[str, Callable[[Path, Path], Command]] = {
    "fastboot": fastboot,
    "dnsmasq": dnsmasq,
    "tftpd-hpa": hpa,
    "atftpd": atftpd,
}


def limit(file: Path, blksize: int, windowsize: int) -> Command:
    """What no server can leave out."""
    return Command([sys.executable, "-m", "bench.limit", SERVER, str(file), str(blksize), str(windowsize)])

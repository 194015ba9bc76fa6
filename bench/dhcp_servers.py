"""The DHCP servers of the comparison, each at its best settings, with the same network, pool and answers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TREE = Path(__file__).parent.parent / ".cache" / "debian"
"""Where tools/bootstrap.py unpacks what must not be installed."""
NETWORK, NETMASK, PREFIX = "10.64.0.0", "255.252.0.0", 14
SERVER, RELAY = "10.64.0.1", "10.64.0.2"
FIRST, LAST, ADDRESSES = "10.64.0.16", "10.67.255.240", 262_113
DHCPD_LAST, DHCPD_ADDRESSES = "10.64.63.255", 16_368
"""What an exchange costs ISC dhcpd grows with its pool: 0.4 ms of CPU with 65,000 addresses, 55 ms with all."""
LOADER, LEASE = "pxelinux.0", 3600


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started."""

    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def program(name: str) -> str:
    """Return where a server's program is. Raises FileNotFoundError."""
    places = [TREE / "usr/sbin", Path("/usr/sbin"), *map(Path, os.environ.get("PATH", "").split(":"))]
    found = shutil.which(name, path=":".join(map(str, places)))
    if found is None:
        raise FileNotFoundError(f"{name} is missing: run make bench-dhcp, which fetches it")
    return found


def libraries() -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(TREE / "usr/lib" / f"{os.uname().machine}-linux-gnu")}


def fastboot(work: Path, *, frames: bool) -> Command:
    """Its defaults, but for the search for other servers, which takes four seconds at each start."""
    config = work / "fastboot.toml"
    config.write_text(
        f"""
        interface = "bench1"
        state = "{work}/state"
        [dhcp]
        probe = 0
        lease = {LEASE}
        [[dhcp.subnets]]
        network = "{NETWORK}/{PREFIX}"
        pools = ["{FIRST}-{LAST}"]
        gateway = "{SERVER}"
        dns = ["{SERVER}"]
        [ftp]
        """
    )
    return Command([sys.executable, "-m", "fastboot", "serve", "-c", str(config)])


def kea(work: Path, *, frames: bool) -> Command:
    """Threads and queue as its manual recommends for memfile; host reservations off; logs warnings only."""
    config = work / "kea.json"
    settings = {
        "interfaces-config": {"interfaces": ["bench1"], "dhcp-socket-type": "raw" if frames else "udp"},
        "lease-database": {"type": "memfile", "persist": True, "name": f"{work}/kea.csv", "lfc-interval": 0},
        "multi-threading": {"enable-multi-threading": True, "thread-pool-size": 4, "packet-queue-size": 28},
        "valid-lifetime": LEASE,
        "match-client-id": False,
        "host-reservation-identifiers": ["hw-address"],
        "reservations-global": False,
        "reservations-in-subnet": False,
        "subnet4": [
            {
                "id": 1,
                "subnet": f"{NETWORK}/{PREFIX}",
                "pools": [{"pool": f"{FIRST}-{LAST}"}],
                "next-server": SERVER,
                "boot-file-name": LOADER,
                "option-data": [
                    {"name": "routers", "data": SERVER},
                    {"name": "domain-name-servers", "data": SERVER},
                ],
            }
        ],
        "loggers": [{"name": "kea-dhcp4", "severity": "WARN", "output_options": [{"output": "stderr"}]}],
    }
    config.write_text(json.dumps({"Dhcp4": settings}))
    return Command(
        [program("kea-dhcp4"), "-c", str(config)],
        {
            **libraries(),
            "KEA_PIDFILE_DIR": str(work),
            "KEA_LOCKFILE_DIR": str(work),
            "KEA_LFC_EXECUTABLE": program("kea-lfc"),
        },
    )


def dhcpd(work: Path, *, frames: bool) -> Command:
    """Group commit, which is off by default: 28 leases or 5 ms; no ping before an offer."""
    config, leases = work / "dhcpd.conf", work / "dhcpd.leases"
    config.write_text(
        f"""
        authoritative; ddns-update-style none; ping-check false;
        delayed-ack 28; max-ack-delay 5000;
        default-lease-time {LEASE}; max-lease-time {LEASE};
        subnet {NETWORK} netmask {NETMASK} {{
            range {FIRST} {DHCPD_LAST};
            next-server {SERVER}; filename "{LOADER}";
            option routers {SERVER}; option domain-name-servers {SERVER};
        }}
        """
    )
    leases.touch()
    files = ["-cf", str(config), "-lf", str(leases), "-pf", str(work / "dhcpd.pid")]
    return Command([program("dhcpd"), "-4", "-f", "-q", *files, "bench1"])


def dnsmasq(work: Path, *, frames: bool) -> Command:
    """No ping before an offer, no log line per packet, room for every lease."""
    return Command(
        [
            program("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=bench1",
            "--bind-interfaces", "--user=root", "--log-facility=-", "--quiet-dhcp", "--dhcp-authoritative",
            "--no-ping", "--dhcp-lease-max=300000", f"--dhcp-leasefile={work}/dnsmasq.leases",
            f"--dhcp-range={FIRST},{LAST},{NETMASK},{LEASE}s", f"--dhcp-boot={LOADER}",
            f"--dhcp-option=3,{SERVER}", f"--dhcp-option=6,{SERVER}",
        ]
    )  # fmt: skip


SERVERS: Mapping[str, Callable[..., Command]] = {
    "fastboot": fastboot,
    "kea": kea,
    "dhcpd": dhcpd,
    "dnsmasq": dnsmasq,
}

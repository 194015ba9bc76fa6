"""HTTP and FTP: server CPU per GB, fairness and loop lag of fastboot, beside nginx, vsftpd and pyftpdlib.

    make bench-media      or            .venv/bin/python -m bench.media --clients 50 --megabytes 256

Each server runs in a network namespace of its own, across a veth pair from the clients; nginx and vsftpd are
Debian's, unpacked, with sendfile on. CPU is what the scheduler charged to the server's threads and children. Every
round runs all servers; the table shows medians and their spread. `lag` is the round trip of TFTP requests for what
is not there, 400 a second meanwhile: fastboot's loop answers them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.dhcp_servers import libraries, program
from bench.host import Host, cpu_seconds, running
from fastboot.lab import namespace

SERVER, CLIENT = "10.99.0.1", "10.99.0.2"
PORTS = {"http": 80, "ftp": 21}
PROBE_EVERY = 0.0025

STOCK = """
import logging, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
logging.basicConfig(level=logging.ERROR)
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_anonymous(sys.argv[1])
FTPServer.max_cons = 100000
FTPServer((sys.argv[2], 21), FTPHandler, backlog=4096).serve_forever()
"""


def servers(work: Path, root: Path) -> dict[str, tuple[list[str], tuple[str, ...], dict[str, str]]]:
    """Return the command, protocols and environment of each server."""
    config = work / "fastboot.toml"
    config.write_text(
        f'interface = "bench1"\nstate = "{work}/state"\nroots = ["{root}"]\n[tftp]\n'
        "[ftp]\nmax_per_address = 5000\n[http]\nmax_connections = 5000\nmax_per_address = 5000\n"
    )
    (work / "nginx.conf").write_text(
        f"""
        daemon off; pid {work}/nginx.pid; error_log stderr error; worker_processes auto;
        worker_rlimit_nofile 20000;
        events {{ worker_connections 8000; }}
        http {{ access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 512k;
            client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
            uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
            server {{ listen {SERVER}:80 backlog=4096 reuseport; root {root}; }} }}
        """
    )
    (work / "vsftpd.conf").write_text(
        f"""listen=YES
listen_address={SERVER}
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root={root}
allow_writeable_chroot=YES
local_enable=NO
seccomp_sandbox=NO
max_clients=0
max_per_ip=0
use_sendfile=YES
secure_chroot_dir={work}
ftp_username=root
nopriv_user=root
xferlog_enable=NO
""",
    )
    (work / "vsftpd.conf").chmod(0o600)
    python = sys.executable
    return {
        "fastboot": ([python, "-m", "fastboot", "serve", "-c", str(config)], ("http", "ftp"), {}),
        "nginx": ([program("nginx"), "-p", str(work), "-c", str(work / "nginx.conf")], ("http",), libraries()),
        "vsftpd": ([program("vsftpd"), str(work / "vsftpd.conf")], ("ftp",), libraries()),
        "pyftpdlib": ([python, "-c", STOCK, str(root), SERVER], ("ftp",), {}),
    }


class Lag:
    """The round trips of requests that fastboot's loop answers, while something else goes on."""

    def __init__(self) -> None:
        self.trips: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            at = time.monotonic()
            while not self._stop.is_set():
                # A port of its own for each: the same request from the same port again counts as a copy.
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.settimeout(2)
                    began = time.monotonic()
                    probe.sendto(b"\0\1nothing\0octet\0", (SERVER, 69))
                    with contextlib.suppress(TimeoutError):
                        probe.recv(512)
                    self.trips.append(time.monotonic() - began)
                at = max(at + PROBE_EVERY, time.monotonic())
                time.sleep(max(0, at - time.monotonic()))

    def at(self, share: float) -> float:
        return sorted(self.trips)[min(len(self.trips) - 1, int(share * len(self.trips)))]


def answers(protocol: str, deadline: float) -> None:
    while True:
        try:
            socket.create_connection((SERVER, PORTS[protocol]), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"the {protocol} server does not answer") from None
            time.sleep(0.05)


def measure(pid: int, name: str, protocol: str, clients: int, size: int, path: str) -> dict[str, Any]:
    answers(protocol, time.monotonic() + 20)
    download = [sys.executable, "-m", "bench.downloads", protocol, SERVER, str(PORTS[protocol]), path]
    subprocess.run([*download, "1", str(size)], check=True, stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    before = spent(pid)
    with Lag() if name == "fastboot" else contextlib.nullcontext() as lag:
        done = subprocess.run([*download, str(clients), str(size)], check=True, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)  # for sessions to end
    cpu = spent(pid) - before
    found = json.loads(done.stdout)
    if found["whole"] != clients:
        print(
            f"{name} {protocol}: {clients - found['whole']} of {clients} failed: {found['faults']}",
            file=sys.stderr,
        )
    facts = {
        "cpu_per_gb": cpu / max(found["octets"] / 1e9, 1e-9),
        "mb_per_s": found["octets"] / 1e6 / (found["slowest"] or 1),
        "unfair": (found["slowest"] or 1) / (found["fastest"] or 1),
        "failed": clients - found["whole"],
        "slowest_start": found["slowest_start"],
    }
    return facts | ({"lag_ms": lag.at(0.999) * 1e3} if isinstance(lag, Lag) else {})


def spent(pid: int) -> float:
    """CPU of a server, its children and those that have ended: vsftpd has two for each session."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def idle_lag(seconds: float) -> float:
    with Lag() as lag:
        time.sleep(seconds)
    return lag.at(0.999) * 1e3


def rows(figures: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield f"{'':18}{'CPU s/GB':>22}{'MB/s':>8}{'slowest/fastest':>17}{'failed':>8}{'lag p99.9 ms':>14}"
    for name, rounds in figures.items():
        mid = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        spread = [each["cpu_per_gb"] for each in rounds]
        lag = f"{mid['lag_ms']:.1f}" if "lag_ms" in mid else ""
        yield (
            f"{name:18}{mid['cpu_per_gb']:9.3f} ({min(spread):.3f}-{max(spread):.3f}){mid['mb_per_s']:8.0f}"
            f"{mid['unfair']:17.2f}{sum(each['failed'] for each in rounds):8}{lag:>14}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one server's name")
    parser.add_argument("--protocol", choices=("http", "ftp"))
    settings = parser.parse_args()
    namespace.enter()
    host = Host(f"{CLIENT}/24", f"{SERVER}/24")
    figures: dict[str, list[dict[str, Any]]] = {}
    idle: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="fastboot-bench-") as folder:
            work = Path(folder)
            work.chmod(0o755)
            root = work / "root"
            root.mkdir(mode=0o555)  # vsftpd refuses a chroot that its user can write to
            size = settings.megabytes << 20
            (root / "file").write_bytes(os.urandom(1 << 20) * settings.megabytes)
            for number in range(settings.rounds):
                for name, (command, protocols, environment) in servers(work, root).items():
                    if settings.only and name != settings.only:
                        continue
                    for protocol in protocols:
                        if settings.protocol and protocol != settings.protocol:
                            continue
                        with running(host, command, work / f"{name}.log", environment) as pid:
                            if name == "fastboot":
                                answers(protocol, time.monotonic() + 20)
                                idle.append(idle_lag(2))
                            facts = measure(pid, name, protocol, settings.clients, size, "/file")
                        figures.setdefault(f"{name} {protocol}", []).append(facts)
                        print(f"round {number + 1}: {name} {protocol} {facts}", file=sys.stderr)
    finally:
        host.close()
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores"
    print(f"{settings.clients} clients, one file of {settings.megabytes} MiB; {machine}")
    print("\n".join(rows(figures)))
    print(f"lag of an idle loop: {statistics.median(idle):.1f} ms" if idle else "")
    facts = {"clients": settings.clients, "megabytes": settings.megabytes, "idle_lag_ms": idle, "rounds": figures}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

"""The servers of the comparison, each as its makers would have it for large files, side by side on one address."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.dhcp_servers import libraries, program

SERVER, CLIENT = "10.99.0.1", "10.99.0.2"
IMAGE = "bench"
"""The name of the medium under which fastboot serves the directory's files out of an ISO."""
OTHERS = ("nginx", "vsftpd", "pyftpdlib", "aiohttp")
"""Who is not fastboot."""

PYFTPDLIB = """
import logging, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
logging.basicConfig(level=logging.ERROR)
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_anonymous(sys.argv[1])
FTPServer.max_cons = 100000
FTPServer((sys.argv[2], int(sys.argv[3])), FTPHandler, backlog=4096).serve_forever()
"""
AIOHTTP = """
import sys, uvloop
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host=sys.argv[2], port=int(sys.argv[3]), access_log=None, backlog=4096, print=None,
            loop=uvloop.new_event_loop())
"""


@dataclass(frozen=True, slots=True)
class Server:
    """How one is started and where it answers."""

    words: list[str]
    ports: Mapping[str, int]
    environment: Mapping[str, str] = field(default_factory=dict)
    has_loop: bool = False
    """Whether there is a loop that all clients share."""
    reads_images: bool = False

    def probe(self, protocol: str | None) -> str | None:
        """Return the protocol by which the loop is asked while clients use `protocol`: another, where it has one.
        By the same, a question waits behind all that was asked before, which is no lag of the loop."""
        beside = [each for each in self.ports if each != protocol] or list(self.ports)
        return beside[0] if self.has_loop else None

    def path(self, name: str, place: str) -> str:
        return f"/media/{IMAGE}/{name}" if place == "iso" and self.reads_images else f"/{name}"


def servers(work: Path, root: Path, image: Path) -> dict[str, Server]:
    """Return those that are there, in the order of the table: fastboot, fastboot without senders, the others."""
    python = sys.executable
    found = {
        "fastboot": fastboot(work / "threads", root, image, 8000, ""),
        "fastboot-loop": fastboot(work / "loop", root, image, 8010, "senders = 0"),
        "aiohttp": Server([python, "-c", AIOHTTP, str(root), SERVER, "8020"], {"http": 8020}, has_loop=True),
        "pyftpdlib": Server([python, "-c", PYFTPDLIB, str(root), SERVER, "8031"], {"ftp": 8031}, has_loop=True),
    }
    for make in (nginx, vsftpd):
        try:
            found[make.__name__] = make(work, root)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
    return found


def fastboot(work: Path, root: Path, image: Path, port: int, more: str) -> Server:
    """Its defaults, but for as many clients of one address as there are here."""
    work.mkdir()
    config = work / "fastboot.toml"
    config.write_text(
        f"""
        interface = "bench1"
        state = "{work}/state"
        roots = ["{root}"]
        {more}
        [[media]]
        name = "{IMAGE}"
        iso = "{image}"
        [ftp]
        port = {port + 1}
        max_per_address = 5000
        [http]
        port = {port}
        max_connections = 5000
        max_per_address = 5000
        """
    )
    words = [sys.executable, "-m", "fastboot", "serve", "-c", str(config)]
    return Server(words, {"http": port, "ftp": port + 1}, has_loop=True, reads_images=True)


def nginx(work: Path, root: Path) -> Server:
    (work / "nginx.conf").write_text(
        f"""
        user root; daemon off; pid {work}/nginx.pid; error_log stderr crit; worker_processes auto;
        worker_rlimit_nofile 20000;
        events {{ worker_connections 8000; }}
        http {{ access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 512k; keepalive_requests 100000;
            client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
            uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
            server {{ listen {SERVER}:8040 backlog=4096 reuseport; root {root}; }} }}
        """
    )
    words = [program("nginx"), "-p", str(work), "-c", str(work / "nginx.conf")]
    return Server(words, {"http": 8040}, libraries(), has_loop=True)


def vsftpd(work: Path, root: Path) -> Server:
    config = work / "vsftpd.conf"
    settings = {
        "listen": "YES", "listen_address": SERVER, "listen_port": 8051, "background": "NO",
        "anonymous_enable": "YES", "no_anon_password": "YES", "anon_root": root, "local_enable": "NO",
        "seccomp_sandbox": "NO", "max_clients": 0, "max_per_ip": 0, "use_sendfile": "YES",
        "secure_chroot_dir": work, "ftp_username": owner(), "nopriv_user": owner(), "xferlog_enable": "NO",
    }  # fmt: skip
    config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    config.chmod(0o600)
    return Server([program("vsftpd"), str(config)], {"ftp": 8051}, libraries())


def owner() -> str:
    """Return a user that can not write to the tree, as vsftpd wants; in a user namespace there is only root."""
    mapped = Path("/proc/self/uid_map").read_text().split()
    return "daemon" if os.geteuid() == 0 and int(mapped[2]) > 1 else "root"

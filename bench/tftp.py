"""TFTP: server CPU per GB of fastboot beside dnsmasq, for many clients of one file.

    make bench            or            .venv/bin/python -m bench.tftp --clients 100 --megabytes 32

Each server runs in a network namespace of its own, across a veth pair from the clients. CPU is what the scheduler
charged to the server's threads, user and kernel. Every round runs all servers; the table shows medians and their
spread. Clients ask for blksize 1468 and the window named. dnsmasq 2.90 (Debian 12) grants no window and answers in
lockstep: the comparison is what each server makes of the same clients and the same file.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from Cython.Build import cythonize
from setuptools import Distribution, Extension

from bench.host import Host, cpu_seconds, running
from fastboot.lab import namespace

HERE = Path(__file__).parent
SERVER, CLIENT = "10.99.0.1", "10.99.0.2"


def load_clients() -> ModuleType:
    """Build bench/clients.pyx where it changed, and import it."""
    source = HERE / "clients.pyx"
    sources = [source, *sorted((HERE.parent / "fastboot" / "_native").glob("*.pxd"))]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    out = HERE.parent / ".cache" / f"bench-{digest}"
    module = out / f"clients{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        extension = Extension("clients", [str(source)], extra_compile_args=["-O2", "-std=gnu11"])
        build = Distribution(
            {
                "ext_modules": cythonize(
                    [extension], build_dir=str(out), include_path=[str(HERE.parent)], quiet=True
                )
            }
        ).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(out), str(out / "temp")
        build.ensure_finalized()
        build.run()
    spec = importlib.util.spec_from_file_location("clients", module)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def servers(work: Path, root: Path) -> dict[str, list[str]]:
    config = work / "fastboot.toml"
    config.write_text(f'interface = "bench1"\nstate = "{work}/state"\nroots = ["{root}"]\n[tftp]\n')
    found = {"fastboot": [sys.executable, "-m", "fastboot", "serve", "-c", str(config)]}
    if dnsmasq := shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        found["dnsmasq"] = [
            dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--enable-tftp",
            f"--tftp-root={root}", "--tftp-max=2000", "--interface=bench1", "--bind-interfaces", "--user=root",
            "--log-facility=-",
        ]  # fmt: skip
    return found


def measure(clients: ModuleType, pid: int, name: str, settings: argparse.Namespace) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while clients.fetch(SERVER, 69, name, 1, blksize=1468, windowsize=1, limit=2.0)["unfinished"]:  # also warms
        if time.monotonic() > deadline:
            raise SystemExit("the server does not answer")
    before = cpu_seconds(pid)
    result = clients.fetch(
        SERVER, 69, name, settings.clients, blksize=settings.blksize, windowsize=settings.window, limit=600.0
    )
    cpu = cpu_seconds(pid) - before
    gigabytes = sum(result["octets"]) / 1e9
    whole = all(octets == settings.megabytes << 20 for octets in result["octets"])
    if result["unfinished"] or not whole:
        raise SystemExit(f"{result['unfinished']} clients did not finish, whole files: {whole}")
    return {
        "cpu_per_gb": cpu / gigabytes,
        "mb_per_s": gigabytes * 1e3 / result["seconds"],
        "slowest_s": max(result["each"]),
        "repeats": result["repeats"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--blksize", type=int, default=1468)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--link", help="shape the server's port by tbf to a rate such as 1gbit")
    parser.add_argument("--only", help="one server's name")
    settings = parser.parse_args()
    clients = load_clients()
    namespace.enter()
    host = Host(f"{CLIENT}/24", f"{SERVER}/24", settings.link)
    figures: dict[str, list[dict[str, Any]]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="fastboot-bench-") as folder:
            work = Path(folder)
            root = work / "root"
            root.mkdir()
            work.chmod(0o755)
            (root / "file").write_bytes(os.urandom(1 << 20) * settings.megabytes)
            for number in range(settings.rounds):
                for name, command in servers(work, root).items():
                    if settings.only in (None, name):
                        with running(host, command, work / f"{name}.log") as pid:
                            one = measure(clients, pid, "file", settings)
                        figures.setdefault(name, []).append(one)
                        print(f"round {number + 1} {name}: {one}", flush=True)
    finally:
        host.close()
    report(figures, settings)


def report(figures: dict[str, list[dict[str, Any]]], settings: argparse.Namespace) -> None:
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in figures.items()
    }
    asked = f"blksize {settings.blksize}, window {settings.window}"
    print(f"\n{settings.clients} clients, {settings.megabytes} MiB, {asked}")
    print(f"{'server':10} {'CPU s/GB':>9} {'least':>7} {'most':>7} {'MB/s':>8} {'slowest s':>10} {'repeats':>8}")
    for name, rounds in figures.items():
        middle, spread = medians[name], [one["cpu_per_gb"] for one in rounds]
        print(
            f"{name:10} {middle['cpu_per_gb']:9.3f} {min(spread):7.3f} {max(spread):7.3f} "
            f"{middle['mb_per_s']:8.1f} {middle['slowest_s']:10.2f} {middle['repeats']:8.0f}"
        )
    ratio = None
    if "fastboot" in medians and "dnsmasq" in medians:
        ratio = medians["fastboot"]["cpu_per_gb"] / medians["dnsmasq"]["cpu_per_gb"]
        print(f"fastboot's CPU per GB is {ratio:.3f} of dnsmasq's")
    machine = {"kernel": platform.release(), "cores": os.cpu_count()}
    print(json.dumps({"settings": vars(settings), "machine": machine, "rounds": figures, "ratio": ratio}))


if __name__ == "__main__":
    main()

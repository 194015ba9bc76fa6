"""One figure of a TFTP server: it starts on a network of its own, meets the clients of a scenario, and ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path

from bench.host import Host, cpu_seconds, memory, running
from bench.tftp_scenarios import Scenario
from bench.tftp_servers import CLIENT, CLIENTS, PREFIX, SERVER, SERVERS, limit
from fastboot.lab.network import claim, silence
from fastboot.lab.tftp import PLAIN, Receivers, Result

LIMIT = 30.0
"""Seconds after which clients are unfinished."""
HEADERS = 14 + 20 + 8 + 4
"""Octets around a block on the link, as tbf counts them: Ethernet, IPv4, UDP, TFTP."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "worst": 1.0}

Figures = dict[str, float]


def run(scenario: Scenario, name: str, place: Path) -> Figures:
    """Start a server, measure it, end it. Raises SystemExit where it does not answer."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        work, root = Path(folder), Path(folder, "root")
        work.chmod(0o755)
        root.mkdir()
        (root / "file").write_bytes(os.urandom(scenario.octets))
        if name == "limit":
            command = limit(root / "file", scenario.blksize, scenario.window)
        else:
            command = SERVERS[name](work, root)
        with (
            contextlib.closing(network(scenario)) as host,
            running(host, command.words, work / "log", command.environment) as server,
        ):
            wait(scenario, name, work / "log")
            return held(scenario, server) if scenario.holds else measured(scenario, server, host)


def network(scenario: Scenario) -> Host:
    host = Host(f"{CLIENT}/{PREFIX}", f"{SERVER}/{PREFIX}", scenario.link, offload=not scenario.cut)
    for command in (silence("bench0"), host.inside(silence("bench1"))):
        subprocess.run(command, check=True)
    claim("bench0", CLIENTS)
    return host


def wait(scenario: Scenario, name: str, log: Path) -> None:
    """Wait for a first file, which also warms what is cold."""
    deadline = time.monotonic() + 20
    once = replace(scenario, clients=1, missing=0, spread=0)
    while play(once, most=0.5)[0].unfinished:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} does not answer: {log.read_text()[-2000:]}")


def play(scenario: Scenario, most: float = LIMIT) -> tuple[Result, float]:
    """Play the clients of a scenario; return what they say, and the seconds of CPU that they took."""
    names = [*(f"pxelinux.cfg/{number}" for number in range(scenario.missing)), "file"]
    client = PLAIN.asking(scenario.blksize, scenario.window)
    with Receivers(IPv4Address(SERVER), scenario.clients, first=CLIENTS[1]) as receivers:
        before = time.thread_time()
        result = receivers.run(names, client, spread=scenario.spread, limit=most)
        return result, time.thread_time() - before


@contextlib.contextmanager
def losing(share: float) -> Iterator[None]:
    """Lose a share of the blocks, and of the acknowledgements but the first of each transfer."""
    dice = f"numgen random mod 1000 < {round(share * 1000)} drop"
    rules = f"""table ip bench {{
        chain come {{ type filter hook input priority 0; ip protocol udp @th,64,16 3 {dice}; }}
        chain go {{ type filter hook output priority 0; ip protocol udp @th,64,16 4 @th,80,16 != 0 {dice}; }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "bench"], check=True)


def measured(scenario: Scenario, server: int, host: Host) -> Figures:
    """Play the scenario, and under loss before that once without it."""
    clean = times(scenario, play(scenario)[0]) if scenario.loss else None
    packets, octets = host.sent()
    cpu = cpu_seconds(server)
    with losing(scenario.loss) if scenario.loss else contextlib.nullcontext():
        result, generator = play(scenario)
    cpu = cpu_seconds(server) - cpu
    packets, octets = (after - before for after, before in zip(host.sent(), (packets, octets), strict=True))
    figures = times(scenario, result)
    whole = received(result)
    figures |= {
        "twice": max(0.0, (octets - 28 * packets) / (whole * (1 + 4 / scenario.blksize)) - 1),
        "cpu_per_gb": cpu / whole * 1e9,
        "generator_cpu_per_gb": generator / whole * 1e9,
        "link_share": figures["mb_per_s"] * (1 + HEADERS / scenario.blksize) / 125,
        "cpu_s": cpu,
        "generator_cpu_s": generator,
        "cpu_us_each": cpu * 1e6 / (scenario.clients * (scenario.missing + 1)),
        "dropped": result.dropped,
    }
    if clean:
        figures["p50_times"] = figures["p50_s"] / clean["p50_s"]
        figures["worst_times"] = figures["worst_s"] / clean["worst_s"]
    return figures


def times(scenario: Scenario, result: Result) -> Figures:
    """Return how long clients took, and how fast the files came. Who did not finish took all the time."""
    unfinished = scenario.clients - len(result.requests)
    seconds = LIMIT if unfinished else result.seconds
    each = [*result.requests, *[seconds] * unfinished]
    answers = result.answers or [seconds]
    return {
        **{f"{key}_s": quantile(each, share) for key, share in QUANTILES.items()},
        **{f"answer_{key}_ms": quantile(answers, share) * 1e3 for key, share in QUANTILES.items()},
        "seconds": seconds,
        "mb_per_s": received(result) / 1e6 / seconds,
        "requests_per_s": len(result.answers) / seconds,
        "unfinished": unfinished,
    }


def received(result: Result) -> int:
    """Return the octets that came, those of unfinished files too; at least one, for they are divided by."""
    return max(1, sum(result.flow))


def quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def held(scenario: Scenario, server: int) -> Figures:
    """Begin every transfer, be sent a window of each, then be silent and look at the server's memory.

    Each client asks for a name that is missing before, so that what a server takes once, a log of what happened
    lately, is there already and counts for no transfer.
    """
    missing, request = (PLAIN.asking(scenario.blksize, scenario.window).request(name) for name in ("none", "file"))
    deadline = time.monotonic() + LIMIT
    standing = 0
    with contextlib.ExitStack() as stack:
        ports = []
        for address in islice(CLIENTS.hosts(), scenario.clients):
            port = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port.bind((str(address), 0))
            port.settimeout(2)
            if time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    port.sendto(missing, (SERVER, 69))
                    port.recv(2048)
                    ports.append(port)
        before = memory(server)
        for port in ports:
            if time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    port.sendto(request, (SERVER, 69))
                    _, peer = port.recvfrom(2048)
                    port.sendto(b"\0\4\0\0", peer)
                    port.recv(2048)
                    standing += 1
        time.sleep(0.2)
        kib = (memory(server) - before) / 1024 / max(1, standing)
    return {"kib_each": kib, "unfinished": scenario.clients - standing}

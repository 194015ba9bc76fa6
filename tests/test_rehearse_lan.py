"""`fastboot rehearse --interface`: machines boot from a server that runs, on a network that is not theirs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dhcpkit import need, run
from labkit import command_line
from lankit import Host, Lan, lan
from test_rehearse import site
from typer.testing import CliRunner

from fastboot.cli import app

FASTBOOT = sys.executable, "-m", "fastboot"
WORDS = "rehearse", "--interface", "e0", "--kinds", "bios=1,uefi=1,ipxe=1,uefi-http=1", "--spread", "0.2"


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="fbt-") as made:  # a short path: the server has a socket in it
        yield Path(made)


@pytest.fixture
def network() -> Iterator[Lan]:
    need("ip")
    with lan() as made:
        yield made


def configured(directory: Path, **settings: str) -> Path:
    file = site(directory, **settings)
    text = file.read_text().replace('interface = "eno7"', 'interface = "e0"').split("[[dhcp.subnets]]")
    nodes = text[2].split("[tftp]")[1].replace('media = "rocky"\n', 'media = "rocky"\ninstalls = false\n')
    file.write_text("[[dhcp.subnets]]".join(text[:2]) + "[tftp]" + nodes.split("[[nodes]]")[0])
    return file


@contextmanager
def serving(host: Host, file: Path) -> Iterator[None]:
    """Run a server whose configuration it is; ARP probes and all."""
    log = file.with_name("log")
    with log.open("w") as out:
        process = subprocess.Popen(host.space.command(*FASTBOOT, "serve", "-c", str(file)), stdout=out, stderr=out)
    try:
        until(lambda: process.poll() is not None or '"ready"' in log.read_text())
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leases(file: Path) -> list[dict[str, Any]]:
    found = json.loads(command_line("leases", "-c", str(file), "--json").stdout)
    return [each for each in found if each["state"] == "bound"]


def test_machines_boot_from_a_server_that_runs(network: Lan, directory: Path) -> None:
    server, client, file = network.host("10.77.0.1/16"), network.host(), configured(directory)
    with serving(server, file):
        words = *WORDS, "--nodes", "8", "--yes", "--profile", "rocky", "--json"
        done = subprocess.run(client.space.command(*FASTBOOT, *words), capture_output=True, text=True, timeout=60)
        facts = json.loads(done.stdout)
        assert (done.returncode, facts["booted"], facts["failed"]) == (0, 8, [])
        assert facts["results"] == {"linux": 8} and facts["octets"] > 8 * 1_900_000
        assert done.stderr == "fastboot: 8 addresses given back to 10.77.0.1\n"
        until(lambda: not leases(file))
    assert "machines0" not in run(*client.space.command("ip", "link"))


def test_one_that_is_interrupted_gives_its_addresses_back(network: Lan, directory: Path) -> None:
    server, client, file = network.host("10.77.0.1/16"), network.host(), configured(directory)
    with serving(server, file):
        words = *WORDS[:-1], "60", "--nodes", "200", "--yes"
        with subprocess.Popen(
            client.space.command(*FASTBOOT, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            until(lambda: len(leases(file)) >= 3)
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=20)[1]
        assert process.returncode == 130
        assert "addresses given back to 10.77.0.1" in told
        assert told.endswith("fastboot: interrupted by SIGINT: the machines are stopped\n")
        until(lambda: not leases(file))


def sent(host: Host) -> int:
    return int(run(*host.space.command("cat", "/sys/class/net/e0/statistics/tx_packets")))


def test_nothing_is_sent_without_a_word(network: Lan, directory: Path) -> None:
    client, file = network.host(), configured(directory, pool="10.77.1.1-10.77.1.7")
    run(*client.space.command("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/e0/disable_ipv6"))
    for words, told in (
        ((), "8 made-up machines"),
        (("--yes", "-c", str(file)), f"8 machines: too many, for the pools of {file} have 7 addresses"),
        (("--yes", "--interface", "e1"), "--interface: e1 is not there"),
    ):
        before = sent(client)
        done = subprocess.run(
            client.space.command(*FASTBOOT, *WORDS, "--nodes", "8", *words),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout, sent(client)) == (2, "", before)
        assert told in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--nodes", "1001"), "--nodes: with --interface at most 1,000"),
        (("--nodes", "1000", "--spread", "9"), "--spread: with --interface at least 10 for 1000 machines"),
        (("--link", "1G"), "--link: with --interface"),
    ],
)
def test_what_a_network_must_not_bear_is_refused(words: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["rehearse", "--interface", "e0", "--yes", *words])
    assert told in str(result.exception)

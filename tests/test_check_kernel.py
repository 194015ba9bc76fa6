"""`check` looks at the kernel: containers, and how many machines it can talk to."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from fastboot.check import _neighbour_findings, before_drop, in_container
from fastboot.config import Config
from fastboot.services.links import Link

LINK = Link("eno2", 2, bytes(6), 1500, (IPv4Interface("10.77.0.1/16"),))


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "is_one"),
    [
        (".dockerenv", "", True),
        ("run/.containerenv", "", True),
        ("run/systemd/container", "lxc\n", True),
        ("proc/1/cgroup", "0::/kubepods.slice/pod1\n", True),
        ("proc/1/cgroup", "0::/init.scope\n", False),
        ("etc/hostname", "lab\n", False),
    ],
)
def test_a_container_is_known(tmp_path: Path, name: str, text: str, is_one: bool) -> None:
    put(tmp_path, name, text)
    assert in_container(tmp_path) is is_one


def test_passive_connections_into_a_container_are_told_of(tmp_path: Path) -> None:
    for name, text in (("ifindex", "2\n"), ("iflink", "7\n"), ("uevent", "INTERFACE=lo\nIFINDEX=2\n")):
        put(tmp_path, f"sys/class/net/lo/{name}", text)
    put(tmp_path, ".dockerenv", "")

    def told(**ftp: object) -> list[str]:
        table = {"interface": "lo", "state": str(tmp_path / "state"), "ftp": {"port": 0, **ftp}}
        found = before_drop(Config.model_validate(table), tmp_path)
        return [each.text for each in found if each.text.startswith("ftp.passive_address")]

    assert "name the address that they reach" in told()[0] and told(passive_address="203.0.113.7")
    assert not told(passive_address="203.0.113.7", passive_ports="50000-50099")


def notes(tmp_path: Path, tftp: dict[str, object]) -> list[str]:
    table = {"interface": "lo", "state": str(tmp_path / "state"), "tftp": {"port": 0, **tftp}}
    config = Config.model_validate(table)
    return [each.text for each in before_drop(config, tmp_path) if each.text.startswith("tftp.single_port")]


def test_a_single_port_is_suggested_behind_the_veth_of_a_container(tmp_path: Path) -> None:
    for name, text in (("ifindex", "2\n"), ("iflink", "7\n"), ("uevent", "INTERFACE=lo\nIFINDEX=2\n")):
        put(tmp_path, f"sys/class/net/lo/{name}", text)
    assert not notes(tmp_path, {})
    put(tmp_path, ".dockerenv", "")
    (note,) = notes(tmp_path, {})
    assert "single_port = true" in note
    assert not notes(tmp_path, {"single_port": True})
    put(tmp_path, "sys/class/net/lo/uevent", "DEVTYPE=vlan\nINTERFACE=lo\nIFINDEX=2\n")
    assert not notes(tmp_path, {})
    put(tmp_path, "sys/class/net/lo/uevent", "INTERFACE=lo\nIFINDEX=2\n")
    put(tmp_path, "sys/class/net/lo/iflink", "2\n")
    assert not notes(tmp_path, {}), "the network of the host"


@pytest.mark.parametrize(("last", "is_told"), [("10.77.4.254", False), ("10.77.5.20", True)])
def test_more_machines_than_the_kernel_has_room_for(tmp_path: Path, last: str, is_told: bool) -> None:
    put(tmp_path, "proc/sys/net/ipv4/neigh/default/gc_thresh3", "1024\n")
    subnet = {"network": "10.77.0.0/16", "pools": [f"10.77.1.0-{last}"]}
    config = Config.model_validate({"interface": "lo", "state": str(tmp_path), "dhcp": {"subnets": [subnet]}})
    assert config.dhcp
    found = list(_neighbour_findings(config.dhcp.subnets, [LINK], tmp_path))
    assert [each.level for each in found] == ["note"] * is_told
    assert all("net.ipv4.neigh.default.gc_thresh3=" in each.text for each in found)


LINKS = """
mount -t sysfs sysfs /sys
ip link add name pair0 type veth peer name pair1
exec "$@"
"""
SAYS = "print([links.is_veth(name) for name in ('pair0', 'lo', 'none')])"


def test_a_veth_is_known(need: Callable[[bool, str], None]) -> None:
    code = f"from fastboot.services import links; {SAYS}"
    command = ["unshare", "--net", "--mount", "sh", "-ec", LINKS, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    need(done.returncode == 0, f"no veth here: {done.stderr}")
    assert done.stdout.strip() == "[True, False, False]"


def test_open_files_of_ftp_and_http_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    table = {"interface": "lo", "state": tmp_path / "state", "ftp": {"port": 0, "max_sessions": 100}}
    for connections, warned in ((700, []), (800, ["ftp.max_sessions and http.max_connections: 4212 open files"])):
        config = Config.model_validate({**table, "http": {"port": 0, "max_connections": connections}})
        said = [
            each.text.partition(" may be")[0]
            for each in before_drop(config, tmp_path)
            if "open files" in each.text
        ]
        assert said == warned


@pytest.mark.parametrize(
    ("most", "tables", "told"),
    [
        ("212992\n", {"http": {"port": 0}}, ["net.core.wmem_max"]),
        ("212992\n", {"ftp": {"port": 0}, "senders": 0}, []),
        ("212992\n", {"tftp": {"port": 0}}, []),
        ("4194304\n", {"http": {"port": 0}}, []),
    ],
)
def test_a_kernel_that_allows_small_send_buffers_only_is_told_of(
    tmp_path: Path, most: str, tables: dict[str, object], told: list[str]
) -> None:
    put(tmp_path, "proc/sys/net/core/wmem_max", most)
    config = Config.model_validate({"interface": "lo", "state": str(tmp_path / "state"), **tables})
    notes = [each.text for each in before_drop(config, tmp_path) if each.level == "note"]
    assert [note.partition(":")[0] for note in notes] == told
    assert all(note.endswith("sysctl -w net.core.wmem_max=4194304") for note in notes)

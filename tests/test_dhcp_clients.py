"""Real DHCP clients against the real service, in namespaces of their own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dhcpkit import Namespace, Wire, need, wires

from fastboot import config
from fastboot.model import BootRequest, Event, Node, Plan, Verdict
from fastboot.services.dhcp import DhcpService, open_sockets
from fastboot.state.store import Store

SUBNET = config.Subnet(
    network="10.77.0.0/24",
    pools=("10.77.0.100-10.77.0.199",),
    gateway="10.77.0.1",
    dns=("10.77.0.1",),
    domain="lab.test",
)


@dataclass
class Site:
    service: DhcpService
    store: Store
    wire: Wire
    events: list[Event] = field(default_factory=list)
    requests: list[BootRequest] = field(default_factory=list)

    @property
    def client(self) -> Namespace:
        return self.wire.clients[0]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def site(
    state: Path, *, settings: config.Dhcp | None = None, nodes: tuple[Node, ...] = (), plan: Verdict = None
) -> AsyncIterator[Site]:
    events: list[Event] = []
    requests: list[BootRequest] = []

    def decide(request: BootRequest) -> Verdict:
        requests.append(request)
        return plan or Plan(loader="pxelinux.0")

    with wires(("10.77.0.1/24",)) as wire:
        links = wire.links()
        with wire.server.inside():
            sockets = open_sockets(links)
            service = DhcpService(
                settings or config.Dhcp(subnets=(SUBNET,), probe=0),
                links,
                nodes,
                store := Store(state),
                decide,
                events.append,
                sockets,
            )
        store.start()
        try:
            await service.start()
            yield Site(service, store, wire, events, requests)
        finally:
            await service.stop()
            sockets.close()
            await asyncio.to_thread(store.close)


async def run_in(namespace: Namespace, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *namespace.command(*command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def dhclient(client: Namespace, directory: Path, settings: str = "", *options: str) -> str:
    """Run dhclient until it has an address; return its lease file."""
    leases, pid = directory / "leases", directory / "pid"
    leases.touch()

    def written() -> bool:
        return pid.exists() and pid.read_text().endswith("\n")

    script = program(directory / "script", "exit 0")
    (directory / "dhclient.conf").write_text(settings)
    try:
        await run_in(
            client, "dhclient", "-4", "-1", *options, "-sf", script, "-lf", str(leases), "-pf", str(pid),
            "-cf", str(directory / "dhclient.conf"), "c0",
        )  # fmt: skip
        await until(written)  # it goes into the background first
    finally:
        if written():
            os.kill(int(pid.read_text()), signal.SIGKILL)
    return leases.read_text()


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("settings", ["", "bootp-broadcast-always;"], ids=["raw", "broadcast"])
async def test_dhclient_binds(tmp_path: Path, settings: str) -> None:
    need("ip", "dhclient")
    async with site(tmp_path) as here:
        lease = await dhclient(here.client, tmp_path, settings)
        assert "fixed-address 10.77.0.100;" in lease
        for line in (
            'filename "pxelinux.0";',
            "option subnet-mask 255.255.255.0;",
            "option routers 10.77.0.1;",
            "option domain-name-servers 10.77.0.1;",
            'option domain-name "lab.test";',
            "option dhcp-server-identifier 10.77.0.1;",
            "option dhcp-lease-time 3600;",
        ):
            assert line in lease
        assert [kind for kind in here.kinds() if kind != "dhcp.discover"] == ["dhcp.offer", "dhcp.ack"]
        assert here.events[-1].mac == "52:54:00:c0:00:00"
        assert here.events[-1].details["address"] == "10.77.0.100"
        (kept,) = here.store.rows()
        assert (kept.state, kept.mac) == ("bound", bytes.fromhex("525400c00000"))
        assert len(here.requests) == 1


@pytest.mark.parametrize("options", [(), ("-B",)], ids=["raw", "broadcast"])
async def test_udhcpc_binds_and_releases(tmp_path: Path, options: tuple[str, ...]) -> None:
    need("ip", "udhcpc")
    async with site(tmp_path) as here:
        said = tmp_path / "said"
        # RELEASE is an ordinary datagram: it needs the address on the interface.
        script = program(
            tmp_path / "script",
            f'[ "$1" = bound ] || exit 0; ip addr add $ip/$mask dev c0; cd {tmp_path}; env >1; mv 1 said',
        )
        client = await asyncio.create_subprocess_exec(
            *here.client.command(
                "udhcpc", "-f", "-n", "-i", "c0", "-s", script, "-x", "hostname:bare", "-O", "bootfile", *options
            ),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await until(said.exists)
            values = dict(re.findall(r"^(\w+)=(.*)$", said.read_text(), re.MULTILINE))
            assert values["ip"] == "10.77.0.100"
            assert values["boot_file"] == "pxelinux.0"
            assert values["siaddr"] == "10.77.0.1"
            assert values["serverid"] == "10.77.0.1"
            assert values["mask"] == "24"
            assert [lease.state for lease in here.service.leases()] == ["bound"]
            client.send_signal(signal.SIGUSR2)
            await until(lambda: "dhcp.release" in here.kinds())
        finally:
            client.kill()
            await client.wait()
        assert here.service.leases() == []
        await until(lambda: [row.state for row in here.store.rows()] == ["released"])
        acked = next(event for event in here.events if event.kind == "dhcp.ack")
        assert acked.details["hostname"] == "bare"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)

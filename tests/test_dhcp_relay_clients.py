"""Real clients behind a real relay (ISC dhcrelay), in namespaces: server - router with the relay - clients."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dhcpkit import Namespace, Wire, libraries, need, unpacked, wires
from dhcpsite import Site, site
from test_dhcp_clients import dhclient, program, run_in, until

from fastboot import config
from fastboot.model import BootRequest, Node, Plan, Verdict

RELAY = "10.88.0.1"
LOCAL = config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",))
RELAYED = config.Subnet(
    network="10.88.0.0/24", pools=("10.88.0.100-10.88.0.199",), gateway=RELAY, dns=("10.77.0.1",), relayed=True
)
SETTINGS = config.Dhcp(subnets=(LOCAL, RELAYED), probe=0, arp_probes=False)


@dataclass
class RoutedWire(Wire):
    """A server on 10.77.0.1; a router whose `c0` is beside it and whose `d0` is the clients' 10.88.0.1."""

    router: Namespace


@contextmanager
def routed(*more: str) -> Iterator[RoutedWire]:
    """`more` are further addresses of the router on the clients' wire."""
    with wires(("10.77.0.1/24",)) as wire:
        router, client = wire.clients[0], Namespace()
        try:
            router.ip("address", "add", "10.77.0.2/24", "dev", "c0")
            router.ip("link", "add", "d0", "type", "veth", "peer", "name", "c0", "netns", client.name)
            for address in (f"{RELAY}/24", *more):
                router.ip("address", "add", address, "dev", "d0")
            router.ip("link", "set", "d0", "up")
            client.ip("link", "set", "c0", "address", "52:54:00:c1:00:01")
            client.ip("link", "set", "c0", "up")
            router.await_carrier("d0")
            with router.inside():
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            wire.server.ip("route", "add", "10.88.0.0/16", "via", "10.77.0.2")
            yield RoutedWire(wire.server, [client], wire.interfaces, router)
        finally:
            client.delete()


@asynccontextmanager
async def relay(wire: RoutedWire, *options: str) -> AsyncIterator[None]:
    """Run dhcrelay on the router."""
    up = () if "-U" in options else ("-iu", "c0")  # -U names the interface too; twice is too much for it
    process = await asyncio.create_subprocess_exec(
        *wire.router.command(
            unpacked("dhcrelay"), "-4", "-d", "--no-pid", *options, "-id", "d0", *up, "10.77.0.1"
        ),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(10):
            while b"Sending on   Socket/fallback" not in (line := await process.stderr.readline()):
                assert line, "dhcrelay ended"
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def far(
    state: Path, *options: str, settings: config.Dhcp = SETTINGS, nodes: tuple[Node, ...] = ()
) -> AsyncIterator[tuple[Site, list[BootRequest]]]:
    """Serve clients behind a relay with these options; yields what decide is asked, too."""
    need("ip")
    requests: list[BootRequest] = []

    def decide(request: BootRequest) -> Verdict:
        requests.append(request)
        return Plan(loader="pxelinux.0", address=request.node.address if request.node else None)

    wire = routed("10.88.1.1/24")
    async with site(state, settings=settings, nodes=nodes, decide=decide, network=wire) as here:
        assert isinstance(here.wire, RoutedWire)
        async with relay(here.wire, *options):
            yield here, requests


def kinds(here: Site) -> list[str]:
    return [event.kind for event in here.events]


@pytest.mark.parametrize("settings", ["", "bootp-broadcast-always;"], ids=["unicast", "broadcast"])
async def test_dhclient_behind_a_relay(tmp_path: Path, settings: str) -> None:
    need("dhclient")
    async with far(tmp_path, "-a") as (here, requests):
        lease = await dhclient(here.wire.clients[0], tmp_path, settings)
        for line in (
            "fixed-address 10.88.0.100;",
            'filename "pxelinux.0";',
            "option subnet-mask 255.255.255.0;",
            f"option routers {RELAY};",
            "option dhcp-server-identifier 10.77.0.1;",
        ):
            assert line in lease
        (request,) = requests
        assert (request.relay, request.circuit_id, request.remote_id) == (IPv4Address(RELAY), b"d0", b"")
        (kept,) = here.service.leases()
        assert (kept.relay, kept.circuit_id) == (IPv4Address(RELAY), b"d0")
        await dhclient(here.wire.clients[0], tmp_path, settings)
        assert kinds(here)[-1] == "dhcp.ack", "INIT-REBOOT through the relay"


async def test_a_relay_that_adds_nothing(tmp_path: Path) -> None:
    need("dhclient")
    async with far(tmp_path) as (here, requests):
        assert "fixed-address 10.88.0.100;" in await dhclient(here.wire.clients[0], tmp_path)
        assert requests[0].circuit_id == b""


async def test_a_relay_that_selects_the_link(tmp_path: Path) -> None:
    """dhcrelay -U: its giaddr is the address of its upstream interface, option 82 names the clients' link."""
    need("dhclient")
    async with far(tmp_path, "-a", "-U", "c0") as (here, requests):
        assert "fixed-address 10.88.0.100;" in await dhclient(here.wire.clients[0], tmp_path)
        assert requests[0].relay == IPv4Address("10.77.0.2")


async def test_udhcpc_behind_a_relay_renews_and_releases_through_the_router(tmp_path: Path) -> None:
    need("udhcpc")
    async with far(tmp_path, "-a") as (here, _):
        client, said = here.wire.clients[0], tmp_path / "said"
        script = program(
            tmp_path / "script",
            'case "$1" in bound|renew) ip addr replace $ip/$mask dev c0; ip route replace default via $router;;'
            f' esac; echo "$1" >>{said}',
        )
        process = await asyncio.create_subprocess_exec(
            *client.command("udhcpc", "-f", "-n", "-i", "c0", "-s", script),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await until(lambda: said.exists() and "bound" in said.read_text())
            (before,) = here.service.leases()
            process.send_signal(signal.SIGUSR1)
            await until(lambda: "renew" in said.read_text())
            # dhcrelay passes on what the router forwards, too: there may be a second one, with option 82.
            assert here.service.counters()["ack"] >= 2
            (after,) = here.service.leases()
            assert (after.address, after.circuit_id) == (before.address, b"d0")
            process.send_signal(signal.SIGUSR2)
            await until(lambda: "dhcp.release" in kinds(here))
        finally:
            process.kill()
            await process.wait()
        assert here.service.leases() == []


async def test_dhcpcd_behind_a_relay_has_the_address_of_its_firmware(tmp_path: Path) -> None:
    """It sends a DUID of its own; udhcpc before it, like firmware, 01 and the MAC."""
    need("udhcpc")
    async with far(tmp_path, "-a") as (here, _):
        client = here.wire.clients[0]
        await run_in(client, "udhcpc", "-f", "-n", "-q", "-i", "c0", "-s", "/bin/true")
        (first,) = here.service.leases()
        said = tmp_path / "said"
        script = program(tmp_path / "script", f'[ "$reason" = BOUND ] || exit 0; env >{said}')
        (tmp_path / "dhcpcd.conf").write_text("duid\nnoarp\noption subnet_mask,routers\n")
        # Its directories are the machine's; these are of this one process.
        inside = "mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /run && mkdir /var/lib/dhcpcd /run/dhcpcd"
        output = await run_in(
            client, "sh", "-c", f'{inside} && exec "$@"', "sh",
            unpacked("dhcpcd"), "-4", "-1", "-B", "-t", "10", "-f", str(tmp_path / "dhcpcd.conf"), "-c", script,
            "c0",
        )  # fmt: skip
        assert "leased 10.88.0.100 for" in output
        assert f"new_routers={RELAY}\n" in said.read_text()
        (lease,) = here.service.leases()
        assert (lease.address, here.service.counters()["ack"]) == (first.address, 2)


async def test_a_machine_put_in_anothers_place_is_its_node(tmp_path: Path) -> None:
    need("dhclient")
    node = Node("node01", (), IPv4Address("10.88.0.11"), circuit_id=b"d0")
    async with far(tmp_path, "-a", nodes=(node,)) as (here, requests):
        client = here.wire.clients[0]
        for mac in ("52:54:00:c1:00:01", "52:54:00:c1:00:02"):
            client.ip("link", "set", "c0", "address", mac)
            directory = tmp_path / mac[-2:]
            directory.mkdir()
            assert "fixed-address 10.88.0.11;" in await dhclient(client, directory)
            assert [lease.mac for lease in here.service.leases()] == [mac]
            assert here.service.node_of(mac) == requests[-1].node == node
            assert here.events[-1].node == "node01"


async def test_a_port_with_too_many_machines_is_told(tmp_path: Path) -> None:
    need("udhcpc")
    settings = SETTINGS.model_copy(update={"limits": config.Limits(per_port=1)})
    async with far(tmp_path, "-a", settings=settings) as (here, _):
        client = here.wire.clients[0]
        await run_in(client, "udhcpc", "-f", "-n", "-q", "-i", "c0", "-s", "/bin/true")
        client.ip("link", "set", "c0", "address", "52:54:00:c1:00:02")
        with pytest.raises(AssertionError, match="no lease"):
            await run_in(client, "udhcpc", "-f", "-n", "-q", "-t", "2", "-T", "1", "-i", "c0", "-s", "/bin/true")
        (told,) = [event for event in here.events if event.kind == "dhcp.limit"]
        assert told.mac == "52:54:00:c1:00:02"
        assert told.details == {"interface": "s0", "limit": "port_limit", "relay": RELAY, "circuit_id": "d0"}
        assert here.service.counters()["port_limit"] >= 2


async def test_two_subnets_on_the_wire_behind_a_relay(tmp_path: Path) -> None:
    need("udhcpc")
    subnets = (
        config.Subnet(
            network="10.88.0.0/24",
            pools=("10.88.0.100-10.88.0.100",),
            gateway=RELAY,
            relayed=True,
            shared_network="far",
        ),
        config.Subnet(
            network="10.88.1.0/24",
            pools=("10.88.1.100-10.88.1.100",),
            gateway="10.88.1.1",
            relayed=True,
            shared_network="far",
        ),
        LOCAL,
    )
    async with far(tmp_path, settings=config.Dhcp(subnets=subnets, probe=0, arp_probes=False)) as (here, _):
        client = here.wire.clients[0]
        for mac, address, router in (
            ("52:54:00:c1:00:01", "10.88.0.100", RELAY),
            ("52:54:00:c1:00:02", "10.88.1.100", "10.88.1.1"),
        ):
            client.ip("link", "set", "c0", "address", mac)
            said = tmp_path / f"said-{mac[-1]}"
            script = program(tmp_path / f"script-{mac[-1]}", f'[ "$1" = bound ] && echo $ip $router >{said}; true')
            await run_in(client, "udhcpc", "-f", "-n", "-q", "-i", "c0", "-s", script)
            assert said.read_text() == f"{address} {router}\n"


@pytest.mark.alone
async def test_perfdhcp_as_a_relay_with_releases(tmp_path: Path) -> None:
    """A thousand machines behind one relay in two seconds, some of which release through it."""
    async with site(tmp_path, settings=PERF, network=routed()) as here:
        assert isinstance(here.wire, RoutedWire)
        # It sends from the interface that its address is on.
        here.wire.router.ip("address", "add", "10.88.200.1/32", "dev", "c0")
        process = await asyncio.create_subprocess_exec(
            *here.wire.router.command(
                unpacked("perfdhcp"), "-4", "-l", "10.88.200.1", "-r", "500", "-R", "1000", "-n", "1000",
                "-F", "150", "-W", "500000", "10.77.0.1",
            ),
            env=os.environ | {"LD_LIBRARY_PATH": libraries()},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        sent = [int(count) for count in re.findall(r"sent packets: (\d+)", output.decode())]
        # Where the machine is busy it loses answers by itself, and asks nothing again.
        assert sent[0] == 1000 and sent[1] > 900, output.decode()
        with suppress(TimeoutError):  # what it asked last is on its way, or to the disk, when it ends
            await until(lambda: [here.service.counters()[name] for name in ("offer", "ack")] == sent[:2])
        counters = here.service.counters()
        assert (
            (counters["offer"], counters["ack"]) == (counters["discover"], counters["request"]) == tuple(sent[:2])
        )
        assert counters["release"] > 0 and not counters["release_by_stranger"], counters
        leases = here.service.leases()
        assert len({lease.address for lease in leases}) == len(leases) == counters["ack"] - counters["release"]


async def test_the_whole_server_behind_a_relay(tmp_path: Path) -> None:
    """A node that only its port tells, from a pool: its name, its files and its lease, by the command line."""
    need("ip", "busybox", "udhcpc")
    with TemporaryDirectory(prefix="fbt-") as name, routed() as wire:
        directory = Path(name)
        configuration = directory / "lab.toml"
        configuration.write_text(LAB)
        (directory / "root").mkdir()
        (directory / "root" / "vmlinuz").write_bytes(b"kernel")

        async def fastboot(*words: str) -> str:
            return await run_in(wire.server, sys.executable, "-m", "fastboot", *words, "-c", str(configuration))

        await fastboot("check")
        server = await asyncio.create_subprocess_exec(
            *wire.server.command(sys.executable, "-m", "fastboot", "serve", "-c", str(configuration)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert server.stderr is not None
        try:
            seen = b""
            while b'"ready"' not in (line := await asyncio.wait_for(server.stderr.readline(), 20)):
                seen += line
                assert line, seen.decode()
            client = wire.clients[0]
            async with relay(wire, "-a"):
                script = program(
                    directory / "script",
                    '[ "$1" = bound ] || exit 0; ip addr replace $ip/$mask dev c0;'
                    " ip route add default via $router",
                )
                await run_in(client, "udhcpc", "-f", "-n", "-q", "-i", "c0", "-s", script)
            wanted = "pxelinux.cfg/01-52-54-00-c1-00-01"
            await run_in(client, "busybox", "tftp", "-g", "-l", str(directory / "got"), "-r", wanted, "10.77.0.1")
            assert "# fastboot for node07: profile live" in (directory / "got").read_text()
            (lease,) = json.loads(await fastboot("leases", "--json"))
            assert lease["node"] == "node07" and lease["address"].startswith("10.88.0.")
            assert (lease["relay"], lease["circuit_id"], lease["mac"]) == (RELAY, "d0", "52:54:00:c1:00:01")
            (node,) = json.loads(await fastboot("nodes", "--json"))
            assert (node["macs"], node["circuit_id"], node["remote_id"]) == ([], "d0", None)
        finally:
            server.kill()
            await server.communicate()
        (lease,) = json.loads(await fastboot("leases", "--json"))
        assert (lease["node"], lease["circuit_id"]) == ("node07", "d0"), "without a server too"


LAB = """
interface = "s0"
state = "state"
roots = ["root"]
[tftp]
[dhcp]
probe = 0
[[dhcp.subnets]]
network = "10.88.0.0/24"
pools = ["10.88.0.100-10.88.0.199"]
gateway = "10.88.0.1"
relayed = true
[[nodes]]
name = "node07"
circuit_id = "d0"
profile = "live"
[[profiles]]
name = "live"
kernel = "/vmlinuz"
installs = false
"""
PERF = config.Dhcp(
    subnets=(
        LOCAL,
        config.Subnet(network="10.88.0.0/16", pools=("10.88.8.0-10.88.39.255",), gateway=RELAY, relayed=True),
    ),
    limits=config.Limits(offers=4096),
    probe=0,
    arp_probes=False,
)

"""The server as a library: two in one process, nothing left behind, reload, an embedding program's own rules."""

from __future__ import annotations

import asyncio
import ftplib
import gc
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from dhcpkit import need, wires
from structlog.testing import capture_logs

import fastboot
from fastboot.config import Config, load
from fastboot.config.changes import changed_keys
from fastboot.model import (
    BootRequest,
    Client,
    ConfigError,
    Event,
    FastbootError,
    Plan,
    Reason,
    Refusal,
    Verdict,
)
from fastboot.server import Server
from fastboot.services.control_client import NeedsRestart
from fastboot.services.namespace import Namespace
from fastboot.sockets import open_sockets
from fastboot.state.lock import StateInUse
from fastboot.watch.events import Hub

Make = Callable[..., Config]


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes configurations, each with state and files of its own."""

    def config(name: str = "one", **more: Any) -> Config:
        root = tmp_path / name / "root"
        root.mkdir(parents=True, exist_ok=True)
        (root / "file").write_bytes(name.encode() * 1000)
        (tmp_path / name / "state").mkdir(exist_ok=True)
        settings = {
            "interface": "lo",
            "state": tmp_path / name / "state",
            "roots": [root],
            "drain": 0,
            "tftp": {"port": free_port(socket.SOCK_DGRAM)},
            "ftp": {"port": free_port(socket.SOCK_STREAM)},
        }
        return Config.model_validate(settings | more)

    return config


async def tftp_get(port: int, name: str) -> bytes:
    """Fetch a file by TFTP, block by block (RFC 1350); an ERROR is raised as its text."""
    loop = asyncio.get_running_loop()
    data, blocks = b"", 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(b"\0\1" + name.encode() + b"\0octet\0", ("127.0.0.1", port))
        while True:
            async with asyncio.timeout(10):
                packet, peer = await loop.sock_recvfrom(sock, 2048)
            opcode, block = struct.unpack_from("!HH", packet)
            if opcode == 5:
                raise FileNotFoundError(packet[4:-1].decode())
            if block != (blocks + 1) % 65_536:
                continue  # one that we were too slow to acknowledge came again
            blocks, data = blocks + 1, data + packet[4:]
            sock.sendto(struct.pack("!HH", 4, block), peer)
            if len(packet) < 516:
                return data


def descriptors() -> set[str]:
    gc.collect()
    links = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            links.add(f"{path.name} {path.readlink()}")
    return links


async def until(events: AsyncIterator[Event], kind: str) -> Event:
    async with asyncio.timeout(10):
        async for event in events:
            if event.kind == kind:
                return event
    raise AssertionError(f"no {kind}")


async def test_it_serves_a_file_and_tells(make: Make) -> None:
    config = make()
    async with Server(config) as server:
        events = server.events()
        assert config.tftp
        assert await tftp_get(config.tftp.port, "file") == b"one" * 1000
        sent = await until(events, "tftp.sent")
        assert sent.details["path"] == "file"
        status: Any = server.status()
        assert status["state"] == "running"
        assert set(status["services"]) == {"tftp", "ftp"}
        assert status["services"]["tftp"]["counters"]["requests"] == 1


async def test_a_program_need_not_make_the_state_directory(make: Make, tmp_path: Path) -> None:
    """The example of the README has none."""
    async with Server(make(state=tmp_path / "of" / "mine")) as server:
        assert server.status()["state"] == "running"


async def test_http_serves_the_same_tree(make: Make) -> None:
    config = make(http={"port": free_port(socket.SOCK_STREAM)})
    assert config.http

    def changed(**keys: int) -> Config:
        assert config.http
        return config.model_copy(update={"http": config.http.model_copy(update=keys)})

    async with Server(config) as server, aiohttp.ClientSession(f"http://127.0.0.1:{config.http.port}") as session:
        events = server.events()
        async with session.get("/file") as answer:
            assert await answer.read() == b"one" * 1000
        sent = await until(events, "http.sent")
        assert (sent.details["path"], sent.details["bytes"]) == ("/file", 3000)
        async with session.get("/boot/boot.ipxe") as answer:
            assert (await answer.text()).startswith("#!ipxe")
        await server.reload(changed(max_per_address=9))
        with pytest.raises(FastbootError, match=r"needs a restart: http.port"):
            await server.reload(changed(port=1))
        status: Any = server.status()
        assert status["services"]["http"]["counters"]["status_200"] == 2


async def test_two_servers_in_one_process(make: Make) -> None:
    one, two = make("one"), make("two")
    async with Server(one) as first, Server(two) as second:
        assert one.tftp and two.tftp
        got = await asyncio.gather(tftp_get(one.tftp.port, "file"), tftp_get(two.tftp.port, "file"))
        assert got == [b"one" * 1000, b"two" * 1000]
        # The first's counters know nothing of the second's transfers.
        assert await tftp_get(two.tftp.port, "file") == b"two" * 1000
        statuses: list[Any] = [server.status() for server in (first, second)]
        assert [status["services"]["tftp"]["counters"]["requests"] for status in statuses] == [1, 2]


async def test_one_state_directory_has_one_server(make: Make, tmp_path: Path) -> None:
    async with Server(make()):
        with pytest.raises(StateInUse, match=f"in use by process {os.getpid()}"):
            await Server(make()).start()
    async with Server(make()):
        pass


async def test_nothing_is_left_behind(make: Make) -> None:
    async with Server(make()):
        pass
    before = descriptors(), len(asyncio.all_tasks())
    for _ in range(20):
        async with Server(make()) as server:
            server.events()
            for _ in range(3):
                await server.reload(server._config)
    assert (descriptors(), len(asyncio.all_tasks())) == before


async def test_whoever_stops_it_waits_for_the_same_end(make: Make) -> None:
    server = Server(make())
    events = server.events()
    await server.start()
    await asyncio.gather(server.stop(), server.stop(drain=0), server.stop())
    async with asyncio.timeout(10):
        kinds = [event.kind async for event in events]
    assert kinds[-2:] == ["server.stopping", "server.stopped"] and kinds.count("server.stopping") == 1


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30])
async def test_one_that_is_stopped_while_it_starts_leaves_nothing(make: Make, turns: int) -> None:
    async with Server(make()):
        pass
    before = descriptors()
    server = Server(make())
    start = asyncio.create_task(server.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await server.stop()
    (outcome,) = await asyncio.gather(start, return_exceptions=True)
    assert outcome is None or "stopped before it had started" in str(outcome)
    assert outcome is not None or turns  # with a few turns of the loop it may have started
    with pytest.raises(RuntimeError, match="starts once"):
        await server.start()
    del server, start, outcome
    assert descriptors() == before


async def test_a_server_that_can_not_start_leaves_nothing(make: Make) -> None:
    config = make()
    async with Server(config):
        pass
    before = descriptors()
    server = Server(config.model_copy(update={"state": config.state / "lock" / "of a file"}))
    with pytest.raises(FastbootError, match="state: can not open"):
        await server.start()
    del server
    assert descriptors() == before


async def test_the_process_is_left_alone(make: Make) -> None:
    import logging
    import signal

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    policy, root = type(asyncio.get_event_loop_policy()), list(logging.getLogger().handlers)
    async with Server(make()):
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        assert type(asyncio.get_event_loop_policy()) is policy
        assert logging.getLogger().handlers == root


async def test_sockets_may_be_opened_before(make: Make) -> None:
    config = make()
    sockets = open_sockets(config)
    assert config.tftp
    async with Server(config, sockets=sockets):
        assert await tftp_get(config.tftp.port, "file")


async def test_a_taken_port_is_named_with_its_holder(make: Make) -> None:
    config = make()
    assert config.tftp
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", config.tftp.port))
        with pytest.raises(FastbootError, match=rf"tftp\.port.*{config.tftp.port}.*process {os.getpid()}"):
            open_sockets(config)


async def test_a_program_resolves_by_itself(make: Make) -> None:
    config = make()
    asked: list[Client] = []

    async def resolve(path: str, client: Client) -> fastboot.Source | Refusal | None:
        asked.append(client)
        await asyncio.sleep(0)
        if path == "made":
            return fastboot.Source.of_bytes("made", b"of nothing")
        return Refusal(Reason.FORBIDDEN, "not you") if path == "secret" else None

    assert config.tftp
    async with Server(config, resolve=resolve):
        assert await tftp_get(config.tftp.port, "made") == b"of nothing"
        assert await tftp_get(config.tftp.port, "file") == b"one" * 1000
        with pytest.raises(FileNotFoundError, match="not you"):
            await tftp_get(config.tftp.port, "secret")
    assert {client.protocol for client in asked} == {"tftp"}


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_program_resolves_is_the_same_by_all_protocols(make: Make, is_async: bool) -> None:
    config = make(http={"port": free_port(socket.SOCK_STREAM)})
    assert config.tftp and config.ftp and config.http

    def answer(path: str, client: Client) -> Any:
        if "raises" in path:
            raise OSError(2, "a fault of the program")
        return {"mine": fastboot.Source.of_bytes("mine", b"hello"), "wrong": b"hello"}.get(path.strip("/"))

    async def later(path: str, client: Client) -> Any:
        await asyncio.sleep(0)
        return answer(path, client)

    def by_ftp(words: str) -> str:
        with ftplib.FTP() as ftp:
            ftp.connect("127.0.0.1", config.ftp.port)  # type: ignore[union-attr]
            ftp.login()
            ftp.voidcmd("TYPE I")
            ftp.makepasv()
            try:
                return ftp.sendcmd(words)
            except ftplib.Error as error:
                return str(error)

    with capture_logs() as logs:
        async with (
            Server(config, resolve=later if is_async else answer),
            aiohttp.ClientSession(f"http://127.0.0.1:{config.http.port}") as web,
        ):
            assert await tftp_get(config.tftp.port, "mine") == b"hello"
            assert await (await web.get("/mine")).read() == b"hello"
            assert await asyncio.to_thread(by_ftp, "SIZE mine") == "213 5"
            assert await asyncio.to_thread(by_ftp, "SIZE file") == "213 3000"
            assert (await asyncio.to_thread(by_ftp, "CWD /")).startswith("250")
            for name in ("raises", "wrong"):
                logs.clear()
                with pytest.raises(FileNotFoundError, match="can not be read"):
                    await tftp_get(config.tftp.port, name)
                assert (await web.get(f"/{name}")).status == 500
                assert (await asyncio.to_thread(by_ftp, f"RETR {name}")).startswith("451")
                assert (await asyncio.to_thread(by_ftp, f"SIZE {name}")).startswith("451")
                faults = [each["path"].strip("/") for each in logs if each["event"] == "resolve failed"]
                assert faults == [name] * 4


async def test_an_answer_that_never_comes_is_a_fault(make: Make) -> None:
    async def never(path: str, client: Client) -> None:
        await asyncio.Event().wait()

    client = Client(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"), "ftp")
    namespace = Namespace(never, lambda: None, patience=0.01)  # type: ignore[arg-type, return-value]
    with capture_logs() as logs:
        for answer in (namespace.resolve("x", client), namespace.stat("x", client)):
            found = await answer  # type: ignore[misc]
            assert isinstance(found, Refusal)
            assert found.reason is Reason.BROKEN
    assert [each["path"] for each in logs] == ["x", "x"]


async def test_a_program_decides_by_itself(make: Make) -> None:
    need("ip", "udhcpc")
    asked: list[BootRequest] = []

    async def decide(request: BootRequest) -> Verdict:
        asked.append(request)
        await asyncio.sleep(0)
        return Plan(address=IPv4Address("10.77.0.150")) if request.mac.endswith(":00") else None

    dhcp = {"probe": 0, "subnets": [{"network": "10.77.0.0/24", "pools": ["10.77.0.10-10.77.0.20"]}]}
    nodes = [{"name": "second", "macs": ["52:54:00:c0:00:01"], "address": "10.77.0.99"}]
    with wires(("10.77.0.1/24",)) as wire:
        (client,) = wire.clients
        with wire.server.inside():
            server = Server(make(interface="s0", dhcp=dhcp, nodes=nodes), decide=decide)
            await server.start()
        events = server.events()
        try:
            for mac, address in (("52:54:00:c0:00:00", "10.77.0.150"), ("52:54:00:c0:00:01", "10.77.0.99")):
                client.ip("link", "set", "c0", "address", mac)
                words = client.command("udhcpc", "-i", "c0", "-n", "-q", "-f", "-s", "/bin/true")
                await asyncio.to_thread(subprocess.run, words, capture_output=True, timeout=30)
                ack = await until(events, "dhcp.ack")
                assert (ack.mac, ack.details["address"]) == (mac, address)
            assert ack.node == "second"
            assert {request.mac for request in asked} == {"52:54:00:c0:00:00", "52:54:00:c0:00:01"}
            assert {lease["address"] for lease in await server.leases()} == {
                IPv4Address("10.77.0.150"),
                IPv4Address("10.77.0.99"),
            }
            assert [lease["node"] for lease in await server.leases() if lease["mac"] == "52:54:00:c0:00:01"] == [
                "second"
            ]
        finally:
            await server.stop()


async def test_a_reload_changes_files_and_keeps_ports(make: Make, tmp_path: Path) -> None:
    config = make()
    other = make("other", state=config.state, tftp=config.tftp, ftp=config.ftp)
    assert config.tftp
    async with Server(config) as server:
        assert await server.reload(other) == ("roots",)
        assert await tftp_get(config.tftp.port, "file") == b"other" * 1000
        assert await server.reload(other) == ()


async def test_a_reload_names_what_needs_a_restart(make: Make) -> None:
    config = make()
    assert config.tftp
    changed = make("one", ftp=config.ftp, tftp={"port": config.tftp.port, "threads": 5}, user="nobody", roots=[])
    async with Server(config) as server:
        events = server.events()
        with pytest.raises(NeedsRestart) as caught:
            await server.reload(changed)
        assert set(caught.value.keys) == {"tftp.threads", "user"}
        assert (await until(events, "server.reload.failed")).details["text"] == str(caught.value)
        assert await tftp_get(config.tftp.port, "file"), "the old roots are served on"


async def test_a_reload_changes_limits(make: Make) -> None:
    config = make()
    assert config.tftp and config.ftp
    tftp, ftp = {"port": config.tftp.port, "max_file": 100}, {"port": config.ftp.port, "max_sessions": 1}
    async with Server(config) as server:
        assert await server.reload(make(tftp=tftp, ftp=ftp)) == ("tftp.max_file", "ftp.max_sessions")
        with pytest.raises(FileNotFoundError, match="too big"):
            await tftp_get(config.tftp.port, "file")


async def test_what_is_too_big_for_tftp_is_named_by_http(make: Make, tmp_path: Path) -> None:
    config = make()
    assert config.tftp
    directory = tmp_path / "one/root/a dir"
    directory.mkdir()
    (directory / "b%c").write_bytes(bytes(200))
    port = free_port(socket.SOCK_STREAM)
    tftp = {"port": config.tftp.port, "max_file": 100}
    async with Server(make(tftp=tftp, http={"port": port})) as server:
        events = server.events()
        with pytest.raises(FileNotFoundError, match="too big"):
            await tftp_get(config.tftp.port, "/a dir//b%c")
        told = (await until(events, "tftp.refused")).details
        assert told["http"] == f"http://127.0.0.1:{port}/a%20dir/b%25c"
        async with aiohttp.ClientSession() as session, session.get(str(told["http"])) as response:
            assert await response.read() == bytes(200)


async def test_a_wrong_configuration_keeps_the_old_one(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text('interface = "lo"\nwrong = 1\n')
    config = make()
    async with Server(config, load=lambda: load(path)) as server:
        events = server.events()
        with pytest.raises(ConfigError, match="no key 'wrong'"):
            await server.reload()
        assert "no key 'wrong'" in str((await until(events, "server.reload.failed")).details["text"])
        assert config.tftp
        assert await tftp_get(config.tftp.port, "file")


def test_changed_keys_are_paths(make: Make) -> None:
    one = make(tftp={"port": 1024})
    two = make(tftp={"port": 1025}, ftp=None, log={"level": "debug"})
    assert changed_keys(one, two) == ("tftp.port", "ftp", "log.level")


def test_a_configuration_without_services_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="nothing would run"):
        Server(make(tftp=None, ftp=None))


def test_an_unknown_class_of_machines_is_refused(make: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"boot\.loaders\.uefi: there is no class 'uefi'; did you mean 'uefi-x64'"
    ):
        Server(make(boot={"loaders": {"uefi": "grubx64.efi"}}))


async def test_a_slow_watcher_loses_the_oldest_and_is_told() -> None:
    hub = Hub(replay=3)
    slow, fast = hub.subscribe(limit=2), hub.subscribe()
    for number in range(5):
        hub.emit(Event(number, "test.event"))
    late = hub.subscribe(replay=True)
    hub.close()
    assert [event.time async for event in slow] == [3, 4]
    assert [event.time async for event in fast] == [0, 1, 2, 3, 4]
    assert [event.time async for event in late] == [2, 3, 4]
    assert (slow.dropped, fast.dropped, hub.dropped, hub.counts["test.event"]) == (3, 0, 3, 5)


async def test_a_watcher_that_waits_is_woken() -> None:
    hub = Hub()
    events = hub.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    hub.emit(Event(7, "test.event"))
    assert (await waiting).time == 7
    ending = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    events.close()
    assert await ending is None

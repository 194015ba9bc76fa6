"""The control socket: what it tells, what it does, who may ask."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from fastboot.model import Event, FastbootError
from fastboot.services.control import ControlService, event_facts
from fastboot.services.control_client import ControlClient, ControlError, NeedsRestart, NotRunning
from fastboot.state.foreign import ForeignLease
from fastboot.watch.diagnose import Diagnosis, Reached
from fastboot.watch.events import Hub, Subscription


class Stub:
    """A server with one lease, that reloads into whatever it is told."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.outcome: Sequence[str] | FastbootError = ("nodes",)

    def status(self) -> Mapping[str, object]:
        return {"version": "0", "transfers": [{"path": "a\x1b[31m", "peer": IPv4Address("10.0.0.1")}]}

    async def leases(self) -> Sequence[Mapping[str, object]]:
        return [{"address": IPv4Address("10.0.0.1"), "hostname": "eve\nil", "expires": 5.0}]

    def nodes(self) -> Sequence[Mapping[str, object]]:
        return []

    def media(self) -> Sequence[Mapping[str, object]]:
        return [{"name": "m", "system": {"name": "a\x1b", "missing": ("x",)}}]

    async def why(self, *machines: str) -> Sequence[Diagnosis]:
        if "nobody" in machines:
            raise FastbootError("there is no \x1b nobody")
        name = ",".join(machines)
        return [Diagnosis(name, (), None, None, "stuck", "a\x1bb", 5.0, (Reached("loader", 4.0, "\x07"),))]

    def events(self, *, replay: bool = False) -> Subscription:
        return self.hub.subscribe(replay=replay)

    def release(self, address: IPv4Address) -> bool:
        return address == IPv4Address("10.0.0.1")

    async def reload(self) -> Sequence[str]:
        if isinstance(self.outcome, FastbootError):
            raise self.outcome
        return self.outcome

    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]:
        if isinstance(self.outcome, FastbootError):
            raise self.outcome
        return len(found), [f"line {lease.line}: \x1b" for lease in found]


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Stub]:
    stub = Stub()
    service = ControlService(tmp_path, stub)
    await service.start()
    yield stub
    stub.hub.close()
    await service.stop()
    assert not (tmp_path / "control.sock").exists()


async def ask(state: Path, method: str, path: str) -> Any:
    client = ControlClient(state)
    return await asyncio.to_thread(client.get if method == "GET" else client.post, path)


async def test_only_its_owner_may_ask(stub: Stub, tmp_path: Path) -> None:
    mode = (tmp_path / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_facts_are_json_that_a_terminal_survives(stub: Stub, tmp_path: Path) -> None:
    facts = await ask(tmp_path, "GET", "/status")
    assert facts["transfers"] == [{"path": "a\\x1b[31m", "peer": "10.0.0.1"}]
    leases = await ask(tmp_path, "GET", "/leases")
    assert leases == [{"address": "10.0.0.1", "hostname": "eve\\x0ail", "expires": 5.0}]
    assert await ask(tmp_path, "GET", "/nodes") == []
    media = await ask(tmp_path, "GET", "/media")
    assert media == [{"name": "m", "system": {"name": "a\\x1b", "missing": ["x"]}}]


async def test_why(stub: Stub, tmp_path: Path) -> None:
    (facts,) = await ask(tmp_path, "GET", "/why?of=a%20b&of=c")
    assert (facts["machine"], facts["summary"], facts["steps"]) == (
        "a b,c", "a\\x1bb", [{"step": "loader", "time": 4.0, "what": "\\x07"}],
    )  # fmt: skip
    assert (await ask(tmp_path, "GET", "/why"))[0]["machine"] == ""
    with pytest.raises(ControlError, match=r"there is no \\x1b nobody"):
        await ask(tmp_path, "GET", "/why?of=nobody")


async def test_release(stub: Stub, tmp_path: Path) -> None:
    assert await ask(tmp_path, "POST", "/leases/10.0.0.1/release") == {"released": "10.0.0.1"}
    with pytest.raises(ControlError, match=r"10\.0\.0\.2 is not leased to anyone"):
        await ask(tmp_path, "POST", "/leases/10.0.0.2/release")
    with pytest.raises(ControlError, match="nonsense is no IPv4 address"):
        await ask(tmp_path, "POST", "/leases/nonsense/release")


async def test_reload(stub: Stub, tmp_path: Path) -> None:
    assert await ask(tmp_path, "POST", "/reload") == {"changed": ["nodes"]}
    stub.outcome = NeedsRestart(["tftp.port"])
    with pytest.raises(NeedsRestart, match=r"needs a restart: tftp\.port") as caught:
        await ask(tmp_path, "POST", "/reload")
    assert caught.value.keys == ("tftp.port",)
    stub.outcome = FastbootError("lab.toml: wrong")
    with pytest.raises(ControlError, match=r"lab\.toml: wrong"):
        await ask(tmp_path, "POST", "/reload")


async def test_import(stub: Stub, tmp_path: Path) -> None:
    client = ControlClient(tmp_path)
    lease = ForeignLease(7, IPv4Address("10.0.0.1"), 1, b"\1" * 6, b"", b"", b"", b"", 1.0, math.inf)
    done = await asyncio.to_thread(client.post, "/leases/import", [lease.facts()] * 3)
    assert done == {"imported": 3, "left_out": ["line 7: \\x1b"] * 3}
    many = await asyncio.to_thread(client.post, "/leases/import", [lease.facts()] * 100_000)
    assert many["imported"] == 100_000
    for nonsense in ([[1, 2]], {}, None, ["x"]):
        with pytest.raises(ControlError, match="these are no leases"):
            await asyncio.to_thread(client.post, "/leases/import", nonsense)
    stub.outcome = FastbootError("the disk is full")
    with pytest.raises(ControlError, match="the disk is full"):
        await asyncio.to_thread(client.post, "/leases/import", [])


async def test_what_does_not_exist_is_an_error(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="404"):
        await ask(tmp_path, "GET", "/nothing")
    with pytest.raises(ControlError, match="405"):
        await ask(tmp_path, "GET", "/reload")


async def test_events_stream_as_they_happen(stub: Stub, tmp_path: Path) -> None:
    stub.hub.emit(Event(1, "test.before"))
    got: list[dict[str, Any]] = []
    first = threading.Event()

    def watch() -> None:
        for event in ControlClient(tmp_path).events(replay=True):
            got.append(event)
            first.set()

    watching = asyncio.ensure_future(asyncio.to_thread(watch))
    assert await asyncio.to_thread(first.wait, 10)
    stub.hub.emit(Event(2, "test.after", "52:54:00:00:00:01", "node01", {"path": "\n"}))
    stub.hub.close()
    await watching
    assert got == [
        {"time": 1, "kind": "test.before", "details": {}},
        {
            "time": 2,
            "kind": "test.after",
            "node": "node01",
            "mac": "52:54:00:00:00:01",
            "details": {"path": "\\x0a"},
        },
    ]


async def test_a_watcher_that_leaves_is_forgotten(stub: Stub, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    assert len(stub.hub._listeners) == 1
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(10):
        while stub.hub._listeners:
            stub.hub.emit(Event(0, "test.event"))
            await asyncio.sleep(0)


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no fastboot server runs on"):
        ControlClient(tmp_path).get("/status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning):
        ControlClient(tmp_path).get("/status")


def test_a_server_that_ends_as_it_answers(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
    cut = (
        head + b'Content-Length: 20\r\n\r\n{"version":',
        head + b"Transfer-Encoding: chunked\r\n\r\n14\r\n{}\n",
    )

    def answer(listener: socket.socket) -> None:
        for text in cut:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(text)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(NotRunning, match="ended as it answered"):
            ControlClient(tmp_path).get("/status")
        assert list(ControlClient(tmp_path).events()) == [{}]
        thread.join()


async def test_a_socket_that_can_not_be_removed_holds_up_no_end(
    tmp_path: Path, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    service = ControlService(tmp_path, Stub())
    await service.start()
    tmp_path.chmod(0o555)
    with as_nobody():
        await service.stop()
    tmp_path.chmod(0o755)


async def test_a_socket_left_by_a_killed_server_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    service = ControlService(tmp_path, Stub())
    await service.start()
    assert await ask(tmp_path, "GET", "/nodes") == []
    await service.stop()


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastbootError, match=r"state: .* is too long"):
        ControlClient(tmp_path / ("x" * 100))


def test_events_as_json() -> None:
    facts = event_facts(Event(1.5, "dhcp.ack", details={"raw": b"\xff", "list": (1, None), "ip": IPv4Address(1)}))
    assert json.loads(json.dumps(facts)) == {
        "time": 1.5,
        "kind": "dhcp.ack",
        "details": {"raw": "\\xff", "list": [1, None], "ip": "0.0.0.1"},
    }

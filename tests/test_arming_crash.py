"""A server that is killed, or loses its power, while machines install: what was told is so afterwards."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dhcpkit import need
from powerkit import SYNC, WRITE, Disk, Left, Power, serving
from test_crash import Steps, steps  # noqa: F401
from test_server import free_port

from fastboot.services.control_client import ControlClient, ControlError, NotRunning
from fastboot.state.store import Store

FASTBOOT = (sys.executable, "-m", "fastboot")
NODES = 24
KILLED = (OSError, NotRunning)
"""How a client of a killed server ends; a TimeoutError is an OSError too."""


@dataclass
class Lab:
    """A server on loopback, and what its machines and its administrator were told."""

    directory: Path
    tftp: int
    environment: dict[str, str] = field(default_factory=dict)
    possible: dict[str, set[str | None]] = field(default_factory=dict)
    """By node, what its state may be; what was told leaves one."""
    given: dict[str, int] = field(default_factory=dict)
    """By node, which server gave its machine what installs, for the arming that it has."""
    faults: list[str] = field(default_factory=list)
    server: int = 0
    told: int = 0

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        self.server += 1
        command = [*FASTBOOT, "serve", "-c", str(self.directory / "lab.toml")]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(command, stderr=log, env={**os.environ, **self.environment})
        with serving(process, self.directory):
            yield process

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def check(self) -> None:
        """Compare what the server knows with what was told."""
        for each in ControlClient(self.state).get("/nodes"):
            name, state = each["name"], each["install"] and each["install"]["state"]
            if state not in self.possible.setdefault(name, {None}):
                self.faults.append(f"{name} is {state}, told was {self.possible[name]}")
            self.possible[name] = {state}

    def work(self, names: list[str], chance: random.Random, ended: threading.Event) -> None:
        """Arm some machines, and let them boot, until the server is gone."""
        try:
            while not ended.is_set():
                getattr(self, chance.choice(["arm", "boot", "boot", "disarm"]))(chance.choice(names))
        except KILLED:
            pass
        except Exception as error:
            self.faults.append(repr(error))

    def arm(self, name: str) -> None:
        self.possible[name] |= {"armed"}
        try:
            ControlClient(self.state).post("/arm", {"nodes": [name]})
        except ControlError as error:
            if "is being installed" not in str(error) or "installing" not in self.possible[name]:
                self.faults.append(f"{name}: {error}, told was {self.possible[name]}")
            self.possible[name] = {"installing"}
            return
        self.possible[name] = {"armed"}
        self.given.pop(name, None)
        self.told += 1

    def disarm(self, name: str) -> None:
        self.possible[name] |= {None}
        ControlClient(self.state).post("/disarm", {"nodes": [name]})
        self.possible[name] = {None}
        self.given.pop(name, None)
        self.told += 1

    def boot(self, name: str) -> None:
        before = set(self.possible[name])
        if "armed" in before:
            self.possible[name] |= {"installing"}
        mac = f"52-54-00-00-00-{int(name[1:]):02x}"
        text = fetch(self.tftp, f"pxelinux.cfg/01-{mac}")
        self.told += 1
        if "DEFAULT rocky" not in text:
            if before == {"armed"}:
                self.faults.append(f"{name} is armed, and boots its local disk")
            return
        if not before & {"armed", "installing"}:
            self.faults.append(f"{name} installs, told was {before}")
        if self.given.setdefault(name, self.server) != self.server:
            self.faults.append(f"{name} installs twice for one arming")
        self.possible[name] = {"installing"}


def fetch(port: int, name: str) -> str:
    """Fetch a small file by TFTP. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(b"\0\1" + name.encode() + b"\0octet\0", ("127.0.0.1", port))
        data, last = b"", False
        while not last:
            packet, peer = sock.recvfrom(2048)
            code, number = struct.unpack_from("!HH", packet)
            assert code == 3, packet
            sock.sendto(struct.pack("!HH", 4, number), peer)
            data, last = data + packet[4:], len(packet) < 516
        return data.decode()


@pytest.fixture
def lab() -> Iterator[Lab]:
    need("gcc")
    with tempfile.TemporaryDirectory(prefix="fbt-") as name:
        directory, port = Path(name), free_port(socket.SOCK_DGRAM)
        nodes = "".join(
            f'[[nodes]]\nname = "n{at}"\nmacs = ["52:54:00:00:00:{at:02x}"]\nprofile = "rocky"\n'
            for at in range(NODES)
        )
        (directory / "vmlinuz").write_bytes(b"k")
        (directory / "state").mkdir()
        (directory / "served").mkdir()
        (directory / "served" / "vmlinuz").write_bytes(b"k")
        (directory / "lab.toml").write_text(
            f'interface = "lo"\nstate = "state"\nroots = ["served"]\n[tftp]\nport = {port}\n'
            f'[[profiles]]\nname = "rocky"\nkernel = "/vmlinuz"\n{nodes}'
        )
        yield Lab(directory, port)


def crashes(lab: Lab, fail: Callable[[random.Random], object], rounds: int = 5) -> None:
    chance = random.Random(os.environ.get("FASTBOOT_SEED", "1"))
    names = [f"n{at}" for at in range(NODES)]
    lab.possible = {name: {None} for name in names}
    for _ in range(rounds):
        with lab.serving() as process:
            lab.check()
            ended = threading.Event()
            workers = [
                threading.Thread(
                    target=lab.work, args=(names[at::4], random.Random(chance.random()), ended), daemon=True
                )
                for at in range(4)
            ]
            for worker in workers:
                worker.start()
            time.sleep(chance.uniform(0.2, 0.8))  # the moment of the crash
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            ended.set()
            for worker in workers:
                worker.join(10)
        fail(chance)
    with lab.serving():
        lab.check()
    assert lab.faults == []
    assert lab.told > rounds * 20, "there was work"
    assert "damaged" not in lab.log, "a crash is no damage"


def test_killed_at_any_moment_what_was_told_is_so(lab: Lab) -> None:
    crashes(lab, lambda chance: None)


@pytest.mark.parametrize("left", ["nothing", "some"])
def test_without_power_at_any_moment_what_was_told_is_so(lab: Lab, left: Left) -> None:
    (lab.directory / "power").mkdir()
    power = Power(lab.state, lab.directory / "power")
    lab.environment.update(power.environment)
    crashes(lab, lambda chance: power.fail(left, chance))


# ---- every step

PROGRAM = """
import asyncio, sys
from pathlib import Path
from fastboot.state import store as store_module
from fastboot.state.nodes import Installs
from fastboot.state.store import Store

store_module.CHECKPOINT_EVERY, store_module.LOG_PAGES = 3, 6

async def run(rounds):
    store = Store(Path(sys.argv[1]))
    store.start()
    installs = Installs()
    installs.load(store)
    for at in rounds:
        a, b = await installs.arm({"a": "rocky", "b": "rocky"})
        await installs.begin(a)
        await installs.begin(b)
        await installs.end(a)
        await installs.end(b, "no disk")
        await installs.disarm(["a"])
    await installs.close()
    store.close()

asyncio.run(run(range(3)))
asyncio.run(run(range(3)))
"""
STATES = [
    {"a": "armed", "b": "armed"},
    {"a": "installing", "b": "armed"},
    {"a": "installing", "b": "installing"},
    {"a": "installed", "b": "installing"},
    {"a": "installed", "b": "failed"},
    {"b": "failed"},
]
"""After each commit of a round."""


@pytest.mark.parametrize("left", ["nothing", "some"])
def test_the_power_fails_after_every_step_of_an_install(steps: Steps, left: Left) -> None:  # noqa: F811
    """After each write, sync, create and unlink the store is that of one moment, no earlier than what was told."""
    records = steps.run(PROGRAM)
    for at, number in enumerate(records):
        if number.kind == WRITE and number.offset == 21:  # the number of the last commit, by which a loss is seen
            after = next(each for each in records[at + 1 :] if each.inode == number.inode)
            assert after.kind == SYNC, "it is on the disk before that commit is told"
    chance, told, seen = random.Random(1), 0, set()
    for step in range(len(records) + 1):
        if step and records[step - 1].kind == WRITE and records[step - 1].offset == 21 and step > 1:
            told = int(records[step - 1].after)  # written when the commit is confirmed
        installs, last = _open(steps.disk, step, left, chance)
        assert last >= told, f"step {step}"
        expected = STATES[(last - 1) % len(STATES)] if last else {}
        assert installs == expected, f"step {step}"
        seen.add(last)
    assert seen == set(range(37)) and told == 36 and any(record.kind == SYNC for record in records)


def _open(disk: Disk, step: int, left: Left, chance: random.Random) -> tuple[dict[str, str], int]:
    """Return the installs of the store as it is after a step, and the number of its last commit."""
    with tempfile.TemporaryDirectory(prefix="fbt-") as name:
        for file, data in disk.after(step, left, chance).items():
            (Path(name) / file).write_bytes(data)
        with closing(Store(Path(name))) as store:
            assert (store.damage, store.disarmed) == ([], []), f"step {step}"
            rows = store.installs()
            serial = max((row.serial for row in rows), default=0)
            return {row.node: row.install.state.value for row in rows if row.install}, serial

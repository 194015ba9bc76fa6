"""The real server under load, killed and without power at any moment: what was acknowledged is there, once."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from dhcpkit import ACK, RELEASE, REQUEST, Wire, asking, message, need, number, run, wires
from powerkit import WRITE, Disk, Left, Power, Record, SetClock, serving

from fastboot._core import DhcpMessage, parse_dhcp, udp_packet
from fastboot.lab.fleet import Fleet
from fastboot.services.control_client import ControlClient
from fastboot.state.rows import LeaseRow
from fastboot.state.store import FILE, Store

SERVER = "10.77.0.1"
SO_TIMESTAMPNS = 35
FASTBOOT = (sys.executable, "-m", "fastboot")
CONFIG = """
interface = "s0"
state = "state"
[dhcp]
probe = 0
[[dhcp.subnets]]
network = "10.77.0.0/16"
pools = ["10.77.1.0-10.77.240.255"]
"""
WITHOUT_SYNC = """
import sys
from fastboot import cli
from fastboot.state import store

real = store.connect

def connect(path):
    connection = real(path)
    connection.execute("PRAGMA synchronous={}")
    return connection

store.connect = connect
sys.argv[0] = "fastboot"
cli.main()
"""


# ---- what the machines know


@dataclass
class Held:
    mac: str
    end: float
    """When it ends at the earliest, as the machine counts: from its REQUEST on (RFC 2131 section 4.4.5)."""


@dataclass
class Ledger:
    """What the machines on a wire were told, and which address they think is theirs."""

    held: dict[str, Held] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    acks: int = 0
    _asked: dict[tuple[str, int], float] = field(default_factory=dict)
    _given_up: set[tuple[str, int]] = field(default_factory=set)

    def hear(self, packets: list[tuple[float, bytes]]) -> None:
        for when, frame in packets:
            if frame[12:14] != b"\x08\x00" or frame[23] != 17 or frame[34:36] not in (b"\0\x43", b"\0\x44"):
                continue
            found = parse_dhcp(frame[42 : 14 + int.from_bytes(frame[16:18])])
            assert isinstance(found, DhcpMessage)
            mac = found.chaddr[:6].hex(":")
            if found.type == REQUEST:
                self._asked[mac, found.xid] = when
            elif found.type == RELEASE:
                # What it asked for before, it does not take any more: that ACK may have left before this was read.
                self.held.pop(str(IPv4Address(found.ciaddr)), None)
                self._given_up.update(each for each in self._asked if each[0] == mac)
            elif found.type == ACK and found.yiaddr and (mac, found.xid) not in self._given_up:
                self._acknowledge(found, mac, when)

    def _acknowledge(self, found: DhcpMessage, mac: str, when: float) -> None:
        address, seconds = str(IPv4Address(found.yiaddr)), int.from_bytes(found.options[51])
        before = self.held.get(address)
        if before and before.mac != mac and before.end > when:
            self.twice.append(f"{address} is {before.mac}'s and {mac}'s")
        self.held[address] = Held(mac, self._asked.get((mac, found.xid), when) + seconds)
        self.acks += 1

    def missing(self, leases: list[dict[str, Any]], now: float) -> list[str]:
        """Return what a server should know, and does not."""
        known = {each["address"]: each for each in leases if each["state"] == "bound"}
        faults = []
        for address, held in self.held.items():
            if held.end < now:
                continue
            if address not in known:
                faults.append(f"{address} of {held.mac} is not known")
            elif known[address]["mac"] != held.mac:
                faults.append(f"{address} is {held.mac}'s, and {known[address]['mac']} has it")
            elif known[address]["expires"] < held.end - 0.001:
                faults.append(f"{address} ends {held.end - known[address]['expires']:.3f} s early")
        addresses = Counter(each["mac"] for each in known.values())
        faults += (f"{mac} has {count} addresses" for mac, count in addresses.items() if count > 1)
        return faults


class Ear:
    """Hears every frame of a link, with the kernel's time of it, and speaks by another socket."""

    def __init__(self, wire: Wire) -> None:
        self._packets: list[tuple[float, bytes]] = []
        with wire.clients[0].inside():
            self.mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.mouth.bind(("c0", 0))
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.socket.bind(("c0", 3))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.settimeout(0.05)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(2048, 64)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            self._packets.append((seconds + nanoseconds / 1e9, data))

    def heard(self) -> list[tuple[float, bytes]]:
        packets, self._packets = self._packets, []
        return packets

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()
        self.mouth.close()


@dataclass
class Lab:
    """A server of its own, machines on its link, and what they know."""

    wire: Wire
    directory: Path
    ear: Ear
    fleet: Fleet
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    @contextmanager
    def server(
        self, environment: Mapping[str, str], program: tuple[str, ...] = FASTBOOT
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start the server; it serves. Killed at the end where it still runs."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", *variables, *program, "serve", "-c", str(self.directory / "lab.toml")]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(self.wire.server.command(*command), stderr=log)
        with serving(process, self.directory):
            yield process

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.state)

    def leases(self) -> list[dict[str, Any]]:
        leases: list[dict[str, Any]] = self.control.get("/leases")
        return leases

    def load(self, seconds: float, chance: random.Random) -> threading.Thread:
        """Switch on new machines for some seconds; some of the old ones start again, some release."""
        old = list(self.ledger.held.items())
        mac = bytes.fromhex(
            self.wire.server.ip("link", "show", "s0").split("link/ether ")[1][:17].replace(":", "")
        )

        def nag() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end and old:
                address, held = chance.choice(old)
                xid = chance.randrange(2**32)
                if chance.random() < 0.2:
                    gone = message(
                        RELEASE, held.mac, xid=xid, ciaddr=address, options=((54, IPv4Address(SERVER).packed),)
                    )
                    old.remove((address, held))
                    self._send(gone, address, SERVER, mac)
                else:
                    # Under another name: its lease must be written anew.
                    named = (12, f"host-{xid}".encode())
                    self._send(message(REQUEST, held.mac, xid=xid, options=(*asking(address), named)))
                time.sleep(0.002)

        def both() -> None:
            nagging = threading.Thread(target=nag)
            nagging.start()
            self.fleet.run(1_000_000, rate=2500, seconds=seconds, outstanding=64, patience=0.2)
            nagging.join()

        thread = threading.Thread(target=both)
        thread.start()
        return thread

    def _send(
        self, payload: bytes, source: str = "0.0.0.0", to: str = "255.255.255.255", mac: bytes = b"\xff" * 6
    ) -> None:
        packet = udp_packet(number(source), 68, number(to), 67, payload)
        self.ear.mouth.send(mac + b"\x02\xff\0\0\0\1\x08\x00" + packet)

    def hear(self) -> None:
        time.sleep(0.1)  # what left before the kill is on its way
        self.ledger.hear(self.ear.heard())

    def kill_under_load(self, process: subprocess.Popen[bytes], chance: random.Random) -> None:
        seconds = chance.uniform(0.1, 0.8)
        loading = self.load(seconds + 0.1, chance)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        loading.join()
        self.hear()


@pytest.fixture
def lab() -> Iterator[Lab]:
    need("ip", "gcc")
    # Not tmp_path: one file system for the state and for what the power kit keeps of it.
    with tempfile.TemporaryDirectory(prefix="fbt-") as name, wires((f"{SERVER}/16",)) as wire:
        directory = Path(name)
        (directory / "lab.toml").write_text(CONFIG)
        (directory / "state").mkdir()
        with wire.clients[0].inside():
            fleet = Fleet.on_link("c0")
        with fleet, closing(Ear(wire)) as ear:
            yield Lab(wire, directory, ear, fleet)


@pytest.fixture
def power(lab: Lab) -> Power:
    (lab.directory / "power").mkdir()
    return Power(lab.state, lab.directory / "power")


def crashes(
    lab: Lab, fail: Callable[[random.Random], object], environment: Mapping[str, str] = {}, rounds: int = 4
) -> None:
    """Crash so many times, one after the other, with one state directory."""
    chance = random.Random(os.environ.get("FASTBOOT_SEED", "1"))
    for _ in range(rounds):
        with lab.server(environment) as process:
            assert lab.ledger.missing(lab.leases(), time.time()) == []
            lab.kill_under_load(process, chance)
        fail(chance)
    with lab.server(environment):
        assert lab.ledger.missing(lab.leases(), time.time()) == []
    assert lab.ledger.twice == []
    assert lab.ledger.acks > rounds * 100, "there was load"
    assert "damaged" not in lab.log, "a crash is no damage"


def test_killed_at_any_moment_it_has_what_it_acknowledged(lab: Lab) -> None:
    crashes(lab, lambda chance: None)


@pytest.mark.parametrize("left", ["nothing", "some"])
def test_without_power_at_any_moment_it_has_what_it_acknowledged(lab: Lab, power: Power, left: Left) -> None:
    crashes(lab, lambda chance: power.fail(left, chance), power.environment)


@pytest.mark.long
@pytest.mark.parametrize("left", ["nothing", "some"])
def test_twenty_power_failures_lose_nothing(lab: Lab, power: Power, left: Left) -> None:
    crashes(lab, lambda chance: power.fail(left, chance), power.environment, rounds=20)


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_a_server_that_does_not_sync_loses_leases(lab: Lab, power: Power, synchronous: str) -> None:
    """Else the test before this one would prove nothing."""
    program = (sys.executable, "-c", WITHOUT_SYNC.format(synchronous))
    chance = random.Random(1)
    with lab.server(power.environment, program) as process:
        lab.kill_under_load(process, chance)
    assert power.fail("nothing", chance) > 0
    with lab.server(power.environment, program):
        assert len(lab.ledger.missing(lab.leases(), time.time())) > 20


# ---- the power fails after every step of the store


STEPS = """
import asyncio, json, os, sys
from ipaddress import IPv4Address
from pathlib import Path
from fastboot.state import store as store_module
from fastboot.state.rows import StoredRow, texts
from fastboot.state.store import Store

store_module.CHECKPOINT_EVERY, store_module.LOG_PAGES = 5, 12

def row(address, batch):
    nobody = IPv4Address(0)
    return StoredRow(IPv4Address(address), "bound", 1, b"", b"", b"h" * 64, nobody, b"", b"", 1, batch, 0, None)

async def run(batches):
    store = Store(Path(sys.argv[1]))
    store.start()
    for batch in batches:
        rows = texts(row(address, batch) for address in addresses(batch))
        done = asyncio.get_running_loop().create_future()
        store.keep_leases(batch, rows, done.set_result)
        assert await done is None
    store.close()

{addresses}
asyncio.run(run(range(1, 23)))
asyncio.run(run(range(23, 41)))
"""
ADDRESSES = (
    "def addresses(batch):\n    return [batch % 7, batch % 11 + 100, batch + 1000, batch * 7 % 60 + 2000]\n"
)


@dataclass
class Steps:
    """A program that works on a state directory, and what is there after each of its steps without power."""

    state: Path
    power: Power
    disk: Disk

    def run(self, program: str) -> list[Record]:
        command = [sys.executable, "-c", program, str(self.state)]
        subprocess.run(command, env={**os.environ, **self.power.environment}, check=True, timeout=60)
        records = self.power.records()
        self.disk.run(records)
        return records

    def open_after(self, step: int, left: Left, chance: random.Random) -> tuple[dict[int, LeaseRow], Store]:
        """Open the store as it is after a step; return its leases and, closed, itself."""
        with tempfile.TemporaryDirectory(prefix="fbt-") as name:
            for file, data in self.disk.after(step, left, chance).items():
                (Path(name) / file).write_bytes(data)
            with closing(Store(Path(name))) as store:
                return {each.address: each for each in store.rows()}, store


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    need("gcc")
    state = tmp_path / "state"
    for path in (state, tmp_path / "power"):
        path.mkdir()
    return Steps(state, Power(state, tmp_path / "power"), Disk(state))


@pytest.mark.parametrize("left", ["nothing", "some"])
def test_the_power_fails_after_every_step_of_the_store(steps: Steps, left: Left) -> None:
    """Commits, checkpoints, the log begun anew, an orderly end and a new start: after each write, sync, create and
    unlink the store is that of one moment, no earlier than the last commit that was confirmed."""
    space: dict[str, Any] = {}
    exec(ADDRESSES, space)
    records = steps.run(STEPS.replace("{addresses}", ADDRESSES))
    chance, confirmed, lasts = random.Random(1), 0, set()
    for step in range(len(records) + 1):
        done = records[step - 1] if step else None
        # Written when the commit is confirmed; behind it is the number of the last commit of installs.
        if done and done.kind == WRITE and not done.offset and re.fullmatch(rb"\d{20}\n", done.after):
            confirmed = int(done.after)
        found, store = steps.open_after(step, left, chance)
        assert store.damage == [] and store.last >= confirmed, f"step {step}"
        expected = {address for batch in range(1, store.last + 1) for address in space["addresses"](batch)}
        assert found.keys() == expected, f"step {step}"
        lasts.add(store.last)
    assert confirmed == 40 and lasts == set(range(41)) and len(records) > 250


@pytest.mark.parametrize("left", ["nothing", "some"])
def test_the_power_fails_while_a_damaged_store_is_made_anew(steps: Steps, left: Left) -> None:
    killed = STEPS.replace("{addresses}", ADDRESSES).replace("    store.close()", "    os._exit(0)")
    subprocess.run([sys.executable, "-c", killed, str(steps.state)], check=True, timeout=60)
    (steps.state / FILE).write_bytes(b"")
    with closing(Store(shutil.copytree(steps.state, steps.state.parent / "copy"))) as store:
        whole = {each.address for each in store.rows()}
        assert len(whole) > 5 and "is empty" in store.damage[0]
    steps.disk = Disk(steps.state)
    records = steps.run("import sys; from pathlib import Path; from fastboot.state.store import Store\n"
                        "Store(Path(sys.argv[1])).close()")  # fmt: skip
    chance = random.Random(1)
    for step in range(len(records) + 1):
        found, _ = steps.open_after(step, left, chance)
        assert found.keys() == whole, f"step {step}"
    assert len(records) > 30


# ---- a disk that does not take it


def bound(lab: Lab, count: int, patience: float = 3) -> int:
    """Return how many of so many new machines get an address."""
    return lab.fleet.run(count, outstanding=20, patience=patience).bound


def events(lab: Lab, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, lab.log.splitlines()) if line["event"] == name]


def test_a_disk_that_fails_stops_acknowledgements_and_nothing_else(lab: Lab, power: Power) -> None:
    with lab.server(power.environment) as process:
        assert bound(lab, 50) == 50
        lab.hear()
        power.break_disk()
        assert bound(lab, 50, 0.3) == 0
        acks = lab.ledger.acks
        lab.hear()
        assert lab.ledger.acks == acks, "not one"
        (failed,) = events(lab, "commit_failed")
        assert failed["level"] == "error" and "none is given" in failed["text"]
        assert len(lab.leases()) == 50, "it answers, and says what is true"
        power.mend_disk()
        assert bound(lab, 50) == 50
        lab.hear()
        (restored,) = events(lab, "commit_restored")
        assert restored["commits"] > 0
        process.kill()
        process.wait(10)
    power.fail("nothing", random.Random(1))
    with lab.server(power.environment):
        assert lab.ledger.missing(lab.leases(), time.time()) == []
        assert len(lab.leases()) == 100


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """Put the state on a disk of its own."""
    need("mount")
    run("mount", "-t", "tmpfs", "-o", "size=8m", "none", str(lab.state))
    try:
        yield lab.state
    finally:
        run("umount", str(lab.state))


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


def test_a_full_disk_stops_acknowledgements_until_there_is_room(lab: Lab, small_disk: Path) -> None:
    with lab.server({}) as process:
        assert bound(lab, 100) == 100
        fill(small_disk / "ballast")
        some = 100
        while got := bound(lab, 60, 0.3):  # the files have some room of their own
            some += got
            assert some < 20_000
        assert events(lab, "commit_failed")
        assert process.poll() is None
        lab.hear()
        leases = lab.leases()
        assert lab.ledger.missing(leases, time.time()) == []
        assert len(leases) == len(lab.ledger.held), "and none that nobody was told of"
        process.kill()
        process.wait(10)
    with lab.server({}) as process:
        assert lab.ledger.missing(lab.leases(), time.time()) == [], "started on the full disk"
        (small_disk / "ballast").unlink()
        assert bound(lab, 400) == 400, "by itself"
        process.kill()
        process.wait(10)
        lab.hear()
    with lab.server({}):
        assert lab.ledger.missing(lab.leases(), time.time()) == []


# ---- a clock that is set


def test_a_wall_clock_that_is_set_moves_no_lease(lab: Lab) -> None:
    """A day ahead, a month back; while it runs and over a restart. The machine was asleep for a day before."""
    clock = SetClock(lab.directory)
    started = time.time()

    def left(ahead: int) -> list[float]:
        """Return how long each lease has from when the test began."""
        return sorted(each["expires"] - ahead - started for each in lab.leases())

    with lab.server(clock.environment) as process:
        assert bound(lab, 20) == 20
        first = left(0)
        assert first[0] >= 3600 and first[-1] < 3600 + 30
        clock.set(86400)
        assert left(86400) == pytest.approx(first, abs=0.01)
        assert bound(lab, 20) == 20
        second = left(86400)
        assert second[0] >= 3600 and second[-1] < 3600 + 30 and len(second) == 40
        process.kill()
        process.wait(10)
    with lab.server(clock.environment) as process:
        assert left(86400) == pytest.approx(second, abs=0.01)
        clock.set(-30 * 86400)
        assert left(-30 * 86400) == pytest.approx(second, abs=0.01)
        process.terminate()
        process.wait(10)
    assert re.search(r"clock_set.*-2678[34]\d\d\.", lab.log)
    with lab.server(clock.environment):
        assert left(-30 * 86400) == pytest.approx(second, abs=0.01)


# ---- checkpoints


def test_the_state_directory_holds_what_it_should(lab: Lab) -> None:
    with lab.server({}) as process:
        bound(lab, 5)
        process.terminate()
        process.wait(10)
    assert sorted(path.name for path in lab.state.iterdir()) == ["fastboot.committed", FILE, "lock"]

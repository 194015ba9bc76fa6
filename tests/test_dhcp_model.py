"""The lease table against a model: any story of clients, commits, crashes, restarts of the machine and clocks.

What the model knows is what clients were told. It holds, whatever happens: no address is told to two clients at
once; what was told is on disk before it was told; and after a crash the server still knows it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from dhcpkit import ACK, DECLINE, DISCOVER, NAK, OFFER, RELEASE, REQUEST, SECOND, Office, Reply, asking, message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastboot import config
from fastboot.state.clock import Clock
from fastboot.state.rows import on_clock, parse
from fastboot.state.schema import KEEP_LEASES, last_batch, migrate
from fastboot.state.store import move_leases

SERVER = "10.77.0.1"
CLIENTS = [f"52:54:00:aa:00:{at:02x}" for at in range(5)]
ADDRESSES = [f"10.77.0.{at}" for at in range(100, 104)]
LEASE = 3600
client = st.sampled_from(CLIENTS)
address = st.sampled_from(ADDRESSES)


class Machine(Clock):
    """The server's machine: how long it runs, and what its wall clock says."""

    def __init__(self) -> None:
        self.boot = 1
        self.up = 1000 * SECOND
        self.ahead = 1_700_000_000.0  # of the wall clock over `up`

    def now(self) -> int:
        return self.up

    def wall(self) -> float:
        return self.up / SECOND + self.ahead


@dataclass
class Told:
    """What a client was told of an address: until when it is its own, on a clock that nobody sets."""

    client: str
    until: float


class LeaseTable(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.machine = Machine()
        self.disk = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.disk, None)  # type: ignore[arg-type]
        self.disk.text_factory = bytes
        self.time = 0.0  # true time, in seconds
        self.told: dict[str, Told] = {}
        self.offered: dict[str, str] = {}
        self.flight: tuple[int, str] | None = None
        self.xids: dict[str, int] = {}
        self.asked_at: list[float] = []
        self.asked = ""
        self.bring_up()

    def bring_up(self) -> None:
        """Start the server on what the disk holds."""
        subnet = config.Subnet(network="10.77.0.0/24", pools=(f"{ADDRESSES[0]}-{ADDRESSES[-1]}",))
        self.office = Office(subnets=(subnet,), disk=False, lease=LEASE)
        move_leases(self.disk, self.machine)
        self.disk.execute("INSERT OR REPLACE INTO boot VALUES (?, ?, 0)", (self.machine.boot, self.machine.zero()))
        zeros = dict(self.disk.execute("SELECT id, zero FROM boot").fetchall())
        rows = self.disk.execute("SELECT row FROM lease").fetchall()
        self.office.now = self.machine.up
        loaded = [on_clock(parse(row), self.machine, zeros) for (row,) in rows]
        self.office.responder.load(loaded, self.machine.up, last_batch(self.disk))
        self.flight = None
        self.offered.clear()

    def pass_true_time(self, seconds: float) -> None:
        self.time += seconds
        self.machine.up += int(seconds * SECOND)
        self.office.now = self.machine.up

    # ---- clients

    def request(self, who: str, kind: int, *, same: bool = False, ciaddr: str = "0.0.0.0", **more: Any) -> bytes:
        if not (same and who in self.xids):
            self.xids[who] = len(self.asked_at)
            self.asked_at.append(self.time)
        return message(kind, who, xid=self.xids[who], ciaddr=ciaddr, **more)

    def deliver(self, packet: bytes, destination: str = "255.255.255.255") -> None:
        self.hear(self.office.send(packet, destination=int(IPv4Address(destination))))

    def hear(self, replies: list[Reply]) -> None:
        for reply in replies:
            who = reply.message.chaddr[:6].hex(":")
            kind, where = reply.message.type, reply.address
            if kind == OFFER:
                assert self.held_by(where) in (None, who), "offered what another has"
                self.offered[who] = where
            elif kind == ACK:
                assert self.held_by(where) in (None, who), "one address, two clients"
                # A client counts from when it sent its request (RFC 2131 section 4.4.1).
                until = self.asked_at[reply.message.xid] + int.from_bytes(reply.message.options[51])
                assert self.disk_end(where, who) >= until - 1.001, "told longer than what is on disk"
                self.told[where] = Told(who, until)
            elif kind == NAK:
                assert who not in {each.client for each in self.told.values() if each.until > self.time} or (
                    self.asked not in {where for where, each in self.told.items() if each.client == who}
                ), "a client was refused its own address"

    def held_by(self, where: str) -> str | None:
        told = self.told.get(where)
        return told.client if told and told.until > self.time else None

    def disk_end(self, where: str, who: str) -> float:
        """Return until when the disk says that this client has it, in true time; 0 where it does not."""
        found = self.disk.execute("SELECT row FROM lease WHERE address = ?", (int(IPv4Address(where)),)).fetchone()
        row = parse(found[0]) if found else None
        if row is None or (row.state, row.mac.hex(":"), row.boot) != ("bound", who, self.machine.boot):
            return 0
        assert row.expires is not None
        return row.expires / 1000 - self.machine.up / SECOND + self.time

    @rule(who=client, where=st.none() | address)
    def discover(self, who: str, where: str | None) -> None:
        self.deliver(self.request(who, DISCOVER, options=asking(where) if where else ()))

    @rule(who=client, same=st.booleans())
    def select(self, who: str, same: bool) -> None:
        """Request what was offered; or the same again, by a retransmission, whatever is in flight."""
        if where := self.offered.get(who):
            self.asked = where
            self.deliver(self.request(who, REQUEST, same=same, options=asking(where, SERVER)))

    @rule(who=client, where=address)
    def select_before_a_restart(self, who: str, where: str) -> None:
        """An offer that only the client remembers."""
        self.asked = where
        self.deliver(self.request(who, REQUEST, options=asking(where, SERVER)))

    @rule(who=client, where=address)
    def reboot(self, who: str, where: str) -> None:
        self.asked = where
        self.deliver(self.request(who, REQUEST, options=asking(where)))

    @rule(who=client, where=address, alone=st.booleans())
    def renew(self, who: str, where: str, alone: bool) -> None:
        self.asked = where
        packet = self.request(who, REQUEST, ciaddr=where)
        self.deliver(packet, SERVER if alone else "255.255.255.255")

    @rule(who=client, where=address)
    def release(self, who: str, where: str) -> None:
        self.deliver(self.request(who, RELEASE, ciaddr=where), SERVER)
        if self.held_by(where) == who:
            del self.told[where]

    @rule(who=client, where=address)
    def decline(self, who: str, where: str) -> None:
        self.deliver(self.request(who, DECLINE, options=asking(where, SERVER)))
        if self.held_by(where) == who:
            del self.told[where]

    # ---- disk

    @precondition(lambda self: self.flight is None)
    @rule()
    def submit(self) -> None:
        self.flight = self.office.responder.batch(self.machine.boot)

    @precondition(lambda self: self.flight is not None)
    @rule()
    def commit(self) -> None:
        assert self.flight
        number, rows = self.flight
        self.disk.execute(KEEP_LEASES, (rows,))
        self.flight = None
        self.office.responder.durable(number, True, self.office.now)
        self.hear(self.office.take())

    @precondition(lambda self: self.flight is not None)
    @rule()
    def fail(self) -> None:
        assert self.flight
        number, _ = self.flight
        self.flight = None
        self.office.responder.durable(number, False, self.office.now)
        self.hear(self.office.take())

    # ---- crashes and clocks

    @rule(reached=st.booleans())
    def crash(self, reached: bool) -> None:
        """The process dies; what was in flight is on disk, or not: nobody was told."""
        if self.flight and reached:
            self.disk.execute(KEEP_LEASES, (self.flight[1],))
        self.bring_up()

    @rule(off=st.sampled_from([0.5, 100, 4000]), set_by=st.sampled_from([0, -10, 10]))
    def power_cycle(self, off: float, set_by: float) -> None:
        """The machine is off for a while; its clock chip may have been off by little when it comes back."""
        wall = self.machine.wall() + off
        self.time += off
        self.machine.boot += 1
        self.machine.up = 5 * SECOND
        self.machine.ahead = wall + set_by - 5
        self.told = {
            # On a machine whose clock was wrong nobody can do better than that.
            where: Told(each.client, each.until - max(0, set_by))
            for where, each in self.told.items()
        }
        self.bring_up()

    @rule(by=st.sampled_from([-1e9, -4000, -10, 10, 4000, 1e9]))
    def set_clock(self, by: float) -> None:
        """While the machine runs, nothing depends on the wall clock."""
        self.machine.ahead += by
        # The store looks every ten seconds whether the clock was set, and writes down what it is.
        self.disk.execute("UPDATE boot SET zero = ? WHERE id = ?", (self.machine.zero(), self.machine.boot))

    @rule(seconds=st.sampled_from([1, 60, 121, 1000, 3700]))
    def wait(self, seconds: float) -> None:
        self.pass_true_time(seconds)

    # ---- what always holds

    @invariant()
    def the_server_knows_what_it_told(self) -> None:
        if not hasattr(self, "office"):
            return
        now = {
            str(IPv4Address(row[0])): row[2].hex(":")
            for row in self.office.responder.leases(self.office.now, self.machine.wall())
            if row[1] == "bound"
        }
        for where, told in self.told.items():
            if told.until > self.time + 1:
                assert now.get(where) == told.client, "an acknowledged lease is lost"

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.close()


LeaseTable.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
test_lease_table = LeaseTable.TestCase

"""Which machines may install, and how far each is: every arming is used up once, whatever crashes.

Memory is the truth while a server runs, the store its journal: nothing is answered, given to a machine or reported
as done before it is on disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import structlog

from fastboot.model import Event, FastbootError, Install, InstallState, Node, Profile
from fastboot.state.install_rows import StoredInstall, printable
from fastboot.state.store import Store
from fastboot.wording import moment

log = structlog.get_logger(component="installs")

Changes = dict[str, Install | None]

AGAIN: Final = "it started from the network again"
DAMAGED: Final = (
    "the store was damaged, and an arming that was used up may have come back; arm it again where it is to install"
)
INTERRUPTED: Final = (
    "the machine boots from the network again while it is being installed, so it gets its local disk; where that"
    " installation did not end well: fastboot disarm {0}, then fastboot arm {0}"
)


@dataclass
class _Commit:
    """Changes of some nodes on their way to the disk, all or none."""

    changes: Changes = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None


class Installs:
    """The installs of one store. One commit at a time is written, and the next one gathers meanwhile; a node that
    one concerns waits for it. For the thread of the loop.

    Methods that change something return when it is on disk, and raise FastbootError where it can not be written;
    then nothing has changed.
    """

    def __init__(
        self,
        emit: Callable[[Event], None] = lambda event: None,
        changed: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is called when a change counts, before anybody is told of it."""
        self._emit, self._changed = emit, changed
        self._wall: Callable[[], float] = lambda: round(wall(), 3)  # as the store keeps it
        self._store: Store | None = None
        self._serial = 0
        self._all: dict[str, Install] = {}
        self._tokens: dict[str, Install] = {}
        self._known: set[str] = set()
        """Nodes that were armed once, also those that were disarmed."""
        self._moving: dict[str, _Commit] = {}
        self._next: _Commit | None = None
        self._flying: _Commit | None = None
        self._interrupted: set[str] = set()
        """The tokens of those of whom that was told."""
        self._tasks: set[asyncio.Future[None]] = set()
        self._doubtful: set[str] = set()
        """Nodes of which a commit failed: what the disk has of them is written again with the next one."""

    def load(self, store: Store) -> None:
        """Take what a store has, which is started before anything is changed. What was disarmed because the store
        was damaged is told."""
        self._store, self._serial = store, store.last_install
        for row in store.installs():
            self._known.add(row.node)
            self._set(row.node, row.install)
        for row in store.disarmed:
            if row.install:
                log.error("installs.disarmed", node=row.node, text=DAMAGED)
                self._emit(_event(row.install, self._wall(), "disarmed", DAMAGED))

    # ---- questions

    def of(self, node: str) -> Install | None:
        """Return the install of a node by its name; None: it was never armed, or was disarmed."""
        return self._all.get(node)

    def by_token(self, token: str) -> Install | None:
        return self._tokens.get(token)

    def knows(self, node: str) -> bool:
        """Whether a node was ever armed, disarmed since or not."""
        return node in self._known

    def counts(self, nodes: Iterable[str]) -> Mapping[str, int]:
        """Return how many of these nodes are in which state; those without an install are left out."""
        found = Counter(install.state.value for node in nodes if (install := self._all.get(node)))
        return {state.value: found[state.value] for state in InstallState}

    # ---- changes

    async def arm(self, armings: Mapping[str, str]) -> list[Install]:
        """Let nodes install the profiles named, all or none; each gets a new token.

        Raises FastbootError naming those that are being installed.
        """
        await self._still(armings)
        busy = [one for name in armings if (one := self._all.get(name)) and one.state is InstallState.INSTALLING]
        if busy:
            raise FastbootError("\n".join(map(_busy, busy)))
        now = self._wall()
        armed = [
            Install(node, profile, InstallState.ARMED, secrets.token_hex(16), now)
            for node, profile in armings.items()
        ]
        await self._write({install.node: install for install in armed}, [_event(one, now) for one in armed])
        return armed

    async def arm_new(self, armings: Mapping[str, str]) -> list[Install]:
        """Arm those nodes that were never armed before, and return them: none where the store was damaged, for
        then nobody knows, and it is kept that they may have been."""
        new = {name: profile for name, profile in armings.items() if name not in self._known}
        if self._store and self._store.damage:
            await self._still(new)
            await self._write(dict.fromkeys(new), [])
            return []
        return await self.arm(new)

    async def disarm(self, nodes: Iterable[str]) -> list[Install]:
        """Forget the installs of nodes; return those that there were."""
        names = tuple(nodes)
        await self._still(names)
        found = [install for name in names if (install := self._all.get(name))]
        events = [_event(install, self._wall(), "disarmed") for install in found]
        await self._write({install.node: None for install in found}, events)
        return found

    async def begin(self, install: Install) -> Install:
        """Use an arming up: when this returns, what makes an installer write to the disk may leave.

        Two at once join the same commit. Raises FastbootError where the arming counts no more, or can not be
        written; then nothing of the kind may leave.
        """
        while True:
            now = self._all.get(install.node)
            if now is None or now.token != install.token:
                raise FastbootError(f"{install.node}: this arming does not count any more")
            if now.state is InstallState.INSTALLING:
                return now
            if now.state is not InstallState.ARMED:
                raise FastbootError(f"{install.node}: the installation has ended: it is {now.state}")
            await self._move(replace(now, state=InstallState.INSTALLING, since=self._wall()))

    async def end(self, install: Install, failure: str | None = None) -> Install:
        """Take it that an installation has ended: well, or with this failure; return what counts now.

        The first verdict on an arming stays, and one on an older arming changes nothing.
        """
        state = InstallState.INSTALLED if failure is None else InstallState.FAILED
        while True:
            now = self._all.get(install.node)
            if now is None or now.token != install.token:
                return now or install
            if now.state in (InstallState.INSTALLED, InstallState.FAILED):
                return now
            await self._move(replace(now, state=state, since=self._wall(), text=printable(failure or "")))

    def interrupted(self, install: Install) -> None:
        """Take it that a machine boots from the network while it is being installed: told once, kept without
        waiting."""
        now = self._all.get(install.node)
        if now != install or install.text or install.token in self._interrupted:
            return
        self._interrupted.add(install.token)
        self._emit(_event(install, self._wall(), "interrupted", INTERRUPTED.format(install.node)))
        task = asyncio.ensure_future(self._keep(install))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until nothing waits for the disk."""
        while commit := self._flying or self._next:
            await commit.done.wait()

    async def close(self) -> None:
        """Let what is on its way get to the disk, and change nothing any more."""
        await self.settle()
        self._store = None

    # ---- the way to the disk

    async def _keep(self, interrupted: Install) -> None:
        name = interrupted.node
        with suppress(FastbootError):  # it is told again after a restart
            # A step of the loop later it may have ended, or be disarmed: that stays.
            if name not in self._moving and self._all.get(name) == interrupted:
                await self._write({name: replace(interrupted, text=AGAIN)}, [])

    async def _still(self, nodes: Iterable[str]) -> None:
        """Wait until no commit concerns any of these nodes."""
        names = tuple(nodes)
        while commit := next((self._moving[name] for name in names if name in self._moving), None):
            await commit.done.wait()

    async def _move(self, to: Install) -> None:
        """Bring one node to a state, or wait for whatever is under way for it: the caller looks again."""
        commit = self._moving.get(to.node)
        if commit is None:
            await self._write({to.node: to}, [_event(to, to.since)])
            return
        await commit.done.wait()
        on_its_way = commit.changes[to.node]
        if commit.fault and on_its_way and (on_its_way.token, on_its_way.state) == (to.token, to.state):
            raise _unwritten(commit.fault)

    async def _write(self, changes: Changes, events: Sequence[Event]) -> None:
        if not changes:
            return
        if self._next is None:
            self._next = _Commit()
            if self._flying is None:  # in the next step of the loop: what comes in this one goes along
                asyncio.get_running_loop().call_soon(self._send)
        commit = self._next
        commit.changes.update(changes)
        commit.events.extend(events)
        self._moving.update(dict.fromkeys(changes, commit))
        await commit.done.wait()
        if commit.fault:
            raise _unwritten(commit.fault)

    def _send(self) -> None:
        commit, self._next = self._next, None
        assert commit is not None
        self._flying = commit
        self._serial += 1
        again = {name: self._all.get(name) for name in self._doubtful}
        rows = [StoredInstall(self._serial, *change) for change in {**again, **commit.changes}.items()]
        if self._store is None:
            self._durable(commit, FastbootError("the server does not run"))
        else:
            self._store.keep_installs(self._serial, rows, partial(self._durable, commit))

    def _durable(self, commit: _Commit, fault: Exception | None) -> None:
        self._flying = None
        for name in commit.changes:
            del self._moving[name]
        commit.fault = fault
        if fault is None:
            self._doubtful.clear()
            for name, install in commit.changes.items():
                self._known.add(name)
                self._set(name, install)
            self._changed()
            for event in commit.events:
                self._emit(event)
        else:
            self._doubtful.update(commit.changes)
        commit.done.set()
        if self._next:
            self._send()

    def _set(self, name: str, install: Install | None) -> None:
        if before := self._all.pop(name, None):
            del self._tokens[before.token]
        if install:
            self._all[name] = self._tokens[install.token] = install


def profiles_to_arm(nodes: Sequence[Node], profiles: Iterable[Profile], profile: str | None) -> dict[str, str]:
    """Return what arming would install on each of these nodes: this profile or, where it is None, the node's own.

    Raises FastbootError naming every node that can not be armed with it.
    """
    known = {each.name: each for each in profiles}
    there = ", ".join(known) or "none"
    faults, armings = [], {}
    for node in nodes:
        name = profile or node.profile
        chosen = known.get(name or "")
        if name is None:
            faults.append(f"{node.name} has no profile; name one with --profile (there are: {there})")
        elif chosen is None:
            faults.append(f"there is no profile {name!r}; there are: {there}")
        elif not chosen.installs:
            faults.append(f"{node.name}: profile {name} is live: it installs nothing, so there is nothing to arm")
        else:
            armings[node.name] = name
    if faults:
        raise FastbootError("\n".join(dict.fromkeys(faults)))
    return armings


def _busy(install: Install) -> str:
    return (
        f"{install.node} is being installed since {moment(install.since)} with profile {install.profile};"
        f" where that is not to go on: fastboot disarm {install.node}, then arm it again"
    )


def _unwritten(fault: Exception) -> FastbootError:
    return FastbootError(f"the state of installs can not be written: {fault}")


def _event(install: Install, now: float, kind: str | None = None, text: str | None = None) -> Event:
    text = install.text if text is None else text
    details = {"profile": install.profile} | ({"text": text} if text else {})
    return Event(now, f"node.{kind or install.state}", node=install.node, details=details)

"""Any sequence of arming, booting, ends, restarts and crashes: no arming is used twice, what is told is so."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastboot.boot.gate import ATTEMPT, Gate
from fastboot.boot.render import Renderer
from fastboot.model import BootRequest, Client, FastbootError, Install, InstallState, Node, Profile, Stage
from fastboot.state.nodes import Installs
from fastboot.state.store import Store

NODES = tuple(Node(name, (f"52:54:00:00:00:0{at}",), profile="plain") for at, name in enumerate("ab", 1))
SERVER = IPv4Address("10.0.0.1")
PROFILES = (
    Profile("plain", kernel="/k"),
    Profile("asks", kernel="/k", arguments="{{ installer }}", answers=Path("ks"), format="kickstart"),
)


@dataclass
class Fate:
    """What the world knows of a node's arming: how it was last told to be, and what was given to its machine."""

    install: Install | None = None
    begun: bool = False
    """What makes an installer write to the disk has left."""
    attempt: int | None = None
    """The boot attempt that had the configuration."""


@dataclass
class World:
    """A server on a state directory that can be killed, its machines, and what they were told."""

    state: Path
    now: float = 0.0
    attempt: int = 0
    broken: bool = False
    fates: dict[str, Fate] = field(default_factory=lambda: {node.name: Fate() for node in NODES})
    attempts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((node.name for node in NODES), 0))
    _store: Store | None = None

    def start(self) -> None:
        self._store = Store(self.state)
        self._store.start()
        self.installs = Installs()
        self.installs.load(self._store)
        self.gate = Gate(self.installs, now=lambda: self.now)
        answers = self.state.parent / "ks"
        answers.write_text("# nothing")
        profiles = [replace(each, answers=each.answers and answers) for each in PROFILES]
        self.renderer = Renderer(NODES, profiles, ports={"http": 80}, gate=self.gate)
        for node in NODES:
            self.begins_attempt(node)

    def begins_attempt(self, node: Node) -> None:
        self.attempt += 1
        self.attempts[node.name] = self.attempt

    async def stop(self, *, crash: bool = False) -> None:
        """End the server, in order or by a kill: then the disk is as it is now."""
        assert self._store
        if crash:
            left = self.state.with_name("left")
            shutil.copytree(self.state, left)
        await self.installs.settle()
        self._store.close()
        if crash:
            shutil.rmtree(self.state)
            left.rename(self.state)

    @contextmanager
    def broken_disk(self) -> Iterator[None]:
        assert self._store
        real = self._store.keep_installs
        self.broken = True
        self._store.keep_installs = lambda serial, rows, done: done(OSError("full"))  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.broken = False
            self._store.keep_installs = real  # type: ignore[method-assign]

    # ---- what happens

    async def arm(self, node: Node, profile: str) -> None:
        fate = self.fates[node.name]
        try:
            (fate.install,) = await self.installs.arm({node.name: profile})
        except FastbootError as error:
            if "can not be written" not in str(error):
                assert fate.install and fate.install.state is InstallState.INSTALLING
            return
        fate.begun, fate.attempt = False, None

    async def disarm(self, node: Node) -> None:
        try:
            await self.installs.disarm([node.name])
        except FastbootError:
            return
        self.fates[node.name] = Fate()

    async def configuration(self, node: Node) -> None:
        """Let a loader fetch its file."""
        fate = self.fates[node.name]
        client = Client(IPv4Address("10.0.0.9"), SERVER, "tftp", node.macs[0])
        armed = fate.install is not None and fate.install.state is InstallState.ARMED
        text = self.renderer.render(("grub", f"grub.cfg-01-{node.macs[0].replace(':', '-')}"), client)
        assert text is not None
        octets = await text if inspect.isawaitable(text) else text
        assert isinstance(octets, bytes)
        now = self.installs.of(node.name)
        if b"set default='local'" in octets:
            assert not armed or self.broken, "an armed machine gets it"
            return
        assert fate.install and now and now.token == fate.install.token, "only what was armed"
        if now.profile == "asks":
            assert not fate.begun and now.state is InstallState.ARMED, "what has begun gets its disk"
            return
        assert now.state is InstallState.INSTALLING, "on disk before it leaves"
        assert fate.attempt in (None, self.attempts[node.name]), "a second boot attempt for one arming"
        fate.install, fate.begun, fate.attempt = now, True, self.attempts[node.name]

    async def answers(self, node: Node) -> None:
        """Let an installer fetch its answer file."""
        fate = self.fates[node.name]
        if fate.install is None or fate.install.profile != "asks":
            return
        try:
            fate.install, fate.begun = await self.installs.begin(fate.install), True
        except FastbootError:
            return

    async def end(self, node: Node, failure: str | None) -> None:
        fate = self.fates[node.name]
        if fate.install:
            try:
                fate.install = await self.installs.end(fate.install, failure)
            except FastbootError:
                return

    async def boots(self, node: Node) -> None:
        self.begins_attempt(node)
        self.gate.asked(
            BootRequest(node.macs[0], "e", None, SERVER, Stage.ROM, node=node)  # type: ignore[arg-type]
        )

    def check(self) -> None:
        for name, fate in self.fates.items():
            now = self.installs.of(name)
            assert (now is None) == (fate.install is None), "what was told is so"
            if now and fate.install:
                assert (now.token, now.state) == (fate.install.token, fate.install.state)
                assert fate.begun <= (now.state is not InstallState.ARMED)


nodes = st.sampled_from(NODES)
step = st.one_of(
    st.tuples(st.just("arm"), nodes, st.sampled_from(["plain", "asks"])),
    st.tuples(st.sampled_from(["disarm", "answers", "boots"]), nodes),
    st.tuples(st.just("configuration"), nodes),
    st.tuples(st.just("end"), nodes, st.sampled_from([None, "no disk"])),
    st.tuples(st.sampled_from(["restart", "crash", "pass"])),
)
steps = st.lists(st.tuples(step, st.sampled_from([False] * 7 + [True])), min_size=15, max_size=40)


def script_of(after: list[tuple[str]]) -> list[tuple[tuple[object, ...], bool]]:
    """Return what happens to an armed machine, one after the other."""
    told = [(what,) if what == "restart" else (what, NODES[0]) for (what,) in after]
    return [(step, False) for step in (("arm", NODES[0], "plain"), *told)]


async def play(state: Path, script: list[tuple[tuple[object, ...], bool]]) -> None:
    world = World(state)
    world.start()
    try:
        for (what, *rest), broken in script:
            if what in ("restart", "crash"):
                await world.stop(crash=what == "crash")
                world.start()
            elif what == "pass":
                world.now += ATTEMPT / 2
            elif broken:
                with world.broken_disk():
                    await getattr(world, str(what))(*rest)
            else:
                await getattr(world, str(what))(*rest)
            world.check()
    finally:
        await world.stop()


@settings(max_examples=100, deadline=None)
@given(steps)
@example(
    [((what, NODES[0], *more), False) for what, *more in (["arm", "plain"], *[["configuration"], ["boots"]] * 2)]
)
@example(
    [(step, False) for step in (("arm", NODES[0], "plain"), *[("configuration", NODES[0]), ("restart",)] * 2)]
)
def test_no_arming_is_used_twice_whatever_happens(script: list[tuple[tuple[object, ...], bool]]) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        state = Path(name) / "state"
        state.mkdir()
        asyncio.run(play(state, script))


def test_two_at_once_are_one(tmp_path: Path) -> None:
    """A loader and its answers, an end and a disarm in one moment: the last that was asked for is what counts."""

    async def run() -> None:
        with closing(Store(tmp_path)) as store:
            store.start()
            installs = Installs()
            installs.load(store)
            for _ in range(20):
                (armed,) = await installs.arm({"a": "plain"})
                told = await asyncio.gather(
                    installs.begin(armed), installs.end(armed), installs.begin(armed), installs.disarm(["a"]),
                    return_exceptions=True,
                )  # fmt: skip
                assert not [each for each in told if isinstance(each, Exception)] or all(
                    isinstance(each, FastbootError) for each in told if isinstance(each, Exception)
                )
                assert installs.of("a") is None
                assert [row.install for row in store.installs()] == [None]

    asyncio.run(run())

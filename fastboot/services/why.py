"""`why`: what became of the machines that somebody asks about, of their stories and of what the server knows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from fastboot.config import Config, NodeIndex, mac
from fastboot.model import Install, Node, Profile, Transfer
from fastboot.nodeset import NodeSetError, select
from fastboot.watch.case import Case, Machine, Site
from fastboot.watch.diagnose import Diagnosis, diagnose
from fastboot.watch.events import Hub
from fastboot.watch.log import printable
from fastboot.watch.paths import INITRD, KERNEL, LOADER
from fastboot.watch.stories import Stories, Story

MAC: Final = re.compile(r"(?i)(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}")
"""As the configuration takes them, but for those without a mark, which may be names."""
SLICE: Final = 128
"""Events that are read before the loop has its turn: 1.4 ms."""
PAUSE: Final = 0.04
"""Seconds between two of these while nobody asks: 3,200 events a second, of 8 to 11 microseconds each, cost the
loop 3.4 percent at most. Where more come for long, the oldest are lost, and counted."""
LOOKED_AT: Final = 4096
"""Machines that are looked at where none is named, the last to be heard of first."""
TURN: Final = 0.004
"""Seconds of work before the loop has its turn."""


class Known:
    """What the server knows of machines at the moment; it makes one for each question."""

    def __init__(
        self,
        config: Config,
        nodes: Sequence[Node],
        index: NodeIndex,
        profiles: Iterable[Profile],
        *,
        install_of: Callable[[str], Install | None] = lambda node: None,
        mac_of: Callable[[IPv4Address], str | None] = lambda address: None,
        address_of: Callable[[str], str | None] = lambda mac: None,
        transfers: Iterable[Transfer] = (),
        others: Sequence[str] = (),
        packages: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.nodes, self.index = config, nodes, index
        self.profiles = {profile.name: profile for profile in profiles}
        self.install_of, self.mac_of, self.address_of = install_of, mac_of, address_of
        self.others, self.packages = others, packages or {}
        self._under_way: dict[str, list[Transfer]] = {}
        for each in transfers:
            self._under_way.setdefault(each.mac or str(each.peer), []).append(each)

    def machine(self, node: Node | None, macs: Sequence[str], address: str | None) -> Machine:
        """Put together what is known of a machine."""
        install = self.install_of(node.name) if node else None
        profile = self.profiles.get((install and install.profile) or (node and node.profile) or "")
        transfers = [each for who in (*macs, address or "") for each in self._under_way.get(who, ())]
        return Machine(
            tuple(macs),
            node.name if node else None,
            address,
            profile.name if profile else None,
            profile is not None and profile.installs,
            profile is not None and profile.answers is not None,
            profile.media if profile else None,
            install,
            transfers,
        )

    def site(self, since: float, strangers: Callable[[], Sequence[str]]) -> Site:
        config = self.config
        tables = {"tftp": config.tftp, "ftp": config.ftp, "http": config.http}
        return Site(
            since,
            config.dhcp.mode if config.dhcp else None,
            {name: table.port for name, table in tables.items() if table},
            str(config.tftp.data_ports) if config.tftp and config.tftp.data_ports else "",
            config.tftp is not None and config.tftp.single_port,
            config.boot.unknown,
            self.others,
            strangers,
            self.packages,
        )


class Why:
    """Keeps the stories of a server's machines, and explains them. For the thread of the loop."""

    def __init__(self, hub: Hub, known: Callable[[], Known], wall: Callable[[], float] = time.time) -> None:
        self.stories = Stories()
        self._known, self._wall, self._since = known, wall, wall()
        self._task: asyncio.Task[None] | None = None
        hub.attach(self.stories)

    def start(self) -> None:
        """Read events as they come, a few at a time."""
        self._since = self._wall()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    def learn(self, boots: Iterable[tuple[str, str]], loaders: Iterable[str]) -> None:
        """Take what files are: of each key ("profiles x: kernel") its path; and the loaders."""
        known = {_path(path): LOADER for path in loaders}
        for key, path in boots:
            known[_path(path)] = INITRD if key.endswith("initrd") else KERNEL
        self.stories.configure(known)

    def counters(self) -> dict[str, int]:
        """Return how many machines are remembered, how many were forgotten, how many events went unread."""
        stories = self.stories
        return {
            "machines": len(stories),
            "forgotten": stories.forgotten,
            "waiting": stories.waiting,
            "lost": stories.lost,
        }

    async def why(self, words: Sequence[str]) -> list[Diagnosis]:
        """Explain the machines that words name: MACs, addresses, sets of nodes; without any, all that are stuck.

        Raises NodeSetError for a word that names none.
        """
        for _ in range(self.stories.waiting // SLICE + 1):
            self.stories.read(SLICE)
            await asyncio.sleep(0)
        known, now = self._known(), self._wall()
        strangers: list[list[str]] = []

        def unknown() -> list[str]:  # asked for once, and seldom
            if not strangers:
                macs = {mac for node in known.nodes for mac in node.macs}
                strangers.append(self.stories.strangers(macs))
            return strangers[0]

        site = known.site(self._since, unknown)
        machines = self._named(words, known) if words else self._heard(known)
        found, turn = [], time.monotonic()
        for machine, story in machines:
            found.append(diagnose(self._case(machine, story, site, now)))
            if time.monotonic() - turn > TURN:
                await asyncio.sleep(0)
                turn = time.monotonic()
        if words:
            return found
        stuck = [each for each in found if each.state == "stuck"]
        return sorted(stuck, key=lambda each: each.heard or 0.0, reverse=True)

    def _case(self, machine: Machine, story: Story, site: Site, now: float) -> Case:
        own = self.stories.nodes.get(machine.node or "")
        return Case(
            machine, site, story, own.marks if own else {}, self.stories.wide, self.stories.remarks, now,
            story.begun[0],
        )  # fmt: skip

    # ---- who is meant

    def _named(self, words: Sequence[str], known: Known) -> list[tuple[Machine, Story]]:
        found: dict[str, tuple[Machine, Story]] = {}
        for word in words:
            for machine, story in self._meant(word.strip(), known):
                found.setdefault(machine.name, (machine, story))
        return list(found.values())

    def _meant(self, word: str, known: Known) -> list[tuple[Machine, Story]]:
        if MAC.fullmatch(word):
            return [self._of_mac(mac(word), known)]
        try:
            return [self._of_address(IPv4Address(word), known)]
        except AddressValueError:
            pass
        try:
            return [self._of_node(node, known) for node in select([word], known.nodes)]
        except NodeSetError as error:
            raise NodeSetError(f"{error}; name a node, a group, a MAC or an address") from None

    def _of_mac(self, mac: str, known: Known) -> tuple[Machine, Story]:
        story = self.stories.of(mac)
        node = known.index.find(mac)
        if node is None and story is not None and story.node:
            node = next((each for each in known.nodes if each.name == story.node), None)
        if node is not None:
            return self._of_node(node, known, mac)
        address = (story.address if story else "") or known.address_of(mac)
        return known.machine(None, [mac], address or None), story or Story(0.0)

    def _of_address(self, address: IPv4Address, known: Known) -> tuple[Machine, Story]:
        text = str(address)
        mac = known.mac_of(address) or self.stories.mac_at(text)
        if mac:
            return self._of_mac(mac, known)
        if node := next((node for node in known.nodes if node.address == address), None):
            return self._of_node(node, known)
        story = self.stories.of(text)
        if story is None:
            raise NodeSetError(f"{text} is nobody's address, and nothing was heard from it; name a node or a MAC")
        return known.machine(None, [], text), story

    def _of_node(self, node: Node, known: Known, mac: str | None = None) -> tuple[Machine, Story]:
        """A machine of several interfaces is the one that was heard of last."""
        macs = dict.fromkeys((*node.macs, *([mac] if mac else [])))
        if not macs:  # it is known by its port
            macs = {who: None for who, story in self.stories.everybody() if story.node == node.name}
        stories = [story for each in macs if (story := self.stories.of(each))]
        fixed = str(node.address) if node.address else ""
        if not stories and fixed and (story := self.stories.of(fixed)):
            stories.append(story)
        story = max(stories, key=lambda story: story.heard, default=None) or Story(0.0)
        return known.machine(node, list(macs), story.address or fixed or None), story

    def _heard(self, known: Known) -> Iterable[tuple[Machine, Story]]:
        """Yield who was heard of last, each machine once."""
        told = set[str]()
        for who in self.stories.newest(LOOKED_AT):
            story = self.stories.of(who)
            if story is None:
                continue
            if ":" in who:
                machine, story = self._of_mac(who, known)
            else:
                machine = known.machine(None, [], who)
            if machine.name not in told:
                told.add(machine.name)
                yield machine, story

    async def _follow(self) -> None:
        while True:
            await self.stories.some()
            self.stories.read(SLICE)
            await asyncio.sleep(PAUSE)


def _path(path: str) -> str:
    """Return a path, or that of a URL, as stories know paths."""
    if "://" in path:
        path = path.partition("://")[2].partition("/")[2]
    return "/".join(part for part in printable(path).split("/") if part)

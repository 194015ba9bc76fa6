"""The server: builds the services from a configuration, starts, reloads and stops them.

The only module that knows all parts. It touches nothing that belongs to the whole process (signals, logging,
privileges, the event loop's policy), so several servers can run in one program.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, replace
from ipaddress import IPv4Address

from fastboot import __version__
from fastboot.boot.catalog import Catalog
from fastboot.boot.gate import Gate
from fastboot.boot.indexer import Indexer
from fastboot.boot.loaders import LOADERS
from fastboot.boot.policy import Told
from fastboot.boot.program import Programs
from fastboot.boot.shelf import Progress
from fastboot.config import Config
from fastboot.config import Dhcp as DhcpSettings
from fastboot.config.changes import changed_keys, needing_restart
from fastboot.model import (
    BootRequest,
    Event,
    FastbootError,
    Install,
    Node,
    Verdict,
)
from fastboot.services import dhcp, ftp, http, proxy, tftp
from fastboot.services.control import ControlService
from fastboot.services.control_client import NeedsRestart
from fastboot.services.descriptors import Descriptors, shortage
from fastboot.services.dhcp_decisions import Decide
from fastboot.services.facts import lease_facts, node_facts
from fastboot.services.namespace import Namespace, Resolve
from fastboot.services.node_files import NodeFiles
from fastboot.services.pump import Pump, start_pump
from fastboot.services.service import Dhcp, Service
from fastboot.services.verdicts import Verdicts
from fastboot.services.why import Known, Why
from fastboot.sockets import Sockets, open_sockets, refuse_idle
from fastboot.state.foreign import ForeignLease
from fastboot.state.lock import StateLock
from fastboot.state.nodes import Installs, profiles_to_arm
from fastboot.state.store import Store
from fastboot.watch.diagnose import Diagnosis
from fastboot.watch.events import Batch, Changed, Hub, Subscription
from fastboot.world import World, http_url

MEDIA_LOOK = 2.0
"""Seconds between two looks at whether the image of a medium was replaced."""


class Server:
    """One boot server. `async with` starts and stops it.

    `decide` and `resolve` are asked first; what they answer None to is left to the configuration. Both may be
    coroutine functions. `sockets` are those of `open_sockets(config)`, opened here when not given; they are the
    server's from then on. `load` reads the configuration again for `reload()`.
    """

    def __init__(
        self,
        config: Config,
        *,
        decide: Decide | None = None,
        resolve: Resolve | None = None,
        sockets: Sockets | None = None,
        load: Callable[[], Config] | None = None,
    ) -> None:
        """Raises ConfigError, and FastbootError where sockets are to be opened and can not be."""
        refuse_idle(config)
        self._config = config
        self._load = load
        self._indexer = Indexer(config.state / "media")
        self._programs = Programs()
        self._told = Told()
        self._hub = Hub()
        self._installs = Installs(self._emit, self.forget)
        self._gate = Gate(self._installs, self._emit)
        self._verdicts = Verdicts(decide, lambda: self._world.policy, self._gate, self._told)
        self._dhcp: Dhcp | None = None
        self._why = Why(self._hub, self._known)
        self._world = self._old = self._world_of(config)
        self._answers = NodeFiles(
            self._installs,
            lambda: self._world.renderer,
            lambda name: self._world.by_name.get(name),
            lambda mac: self._world.known.find(mac) or self._node_behind(mac),
            self._emit,
        )
        self._files = Namespace(resolve, lambda: self._world.catalog, nodes=self._answers)
        self._sockets = sockets or open_sockets(config)
        self._services: dict[str, Service] = {}
        self._tftp: tftp.TftpService | None = None
        self._ftp: ftp.FtpService | None = None
        self._http: http.HttpService | None = None
        self._store: Store | None = None
        self._pump: Pump | None = None
        self._control: ControlService | None = None
        self._lock: StateLock | None = None
        self._reloading, self._ending = asyncio.Lock(), asyncio.Lock()
        self._prepared = False
        self._starting: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._state = "new"
        self._since = time.monotonic()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start_reader(self, user: tuple[int, int, Sequence[int]] | None = None) -> None:
        """Start the process that reads images, which then becomes `user` (uid, gid, groups).

        For programs that drop privileges: before that, for afterwards Python may be out of reach. Others need not.
        Raises FastbootError.
        """
        self._indexer.start(user)

    async def prepare(self, progress: Progress = lambda name, step: None) -> None:
        """Have the images of media read that were not before: what may take seconds. `start` does it otherwise.

        A medium that can not be read is an event, and the others are served.
        """
        await self._world.prepare(self._tell, progress)
        self._prepared = True

    async def start(self) -> None:
        """Start every service, once; returns when all of them serve.

        Raises FastbootError, with nothing left running; so where another task stops it meanwhile.
        """
        if self._starting:
            raise RuntimeError("a Server starts once")
        self._starting = asyncio.create_task(self._start())
        try:
            await self._starting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise FastbootError("the server was stopped before it had started") from None

    async def _start(self) -> None:
        self._state = "starting"
        try:
            self._lock = StateLock(self._config.state)
            self._control = ControlService(self._config.state, self)
            await self._control.start()
            if not self._prepared:
                await self.prepare()
            async with self._reloading:  # it may have read a medium that this world does not name
                self._indexer.prune({medium.name for medium in self._world.shelf})
            self._watch = asyncio.create_task(self._watch_media())
            if text := shortage(self._config, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
                self._tell("server.limit", text=text)
            self._build()
            self._learn()
            self._why.start()
            if self._store:
                self._store.start()
            for name, service in self._services.items():
                await service.start()
                self._tell("server.serving", service=name)
        except BaseException:
            await self.stop(drain=0)
            raise
        self._state = "running"
        self._tell("server.ready", version=__version__, interfaces=self._config.interface)

    async def stop(self, drain: float | None = None) -> None:
        """Take nothing new, give transfers under way `drain` seconds (by default those of the configuration).

        Leases that were acknowledged are on disk; an acknowledgement that waits for the disk still leaves. Where
        it is stopping already, this waits for that end.
        """
        if self._starting and self._starting is not asyncio.current_task():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        async with self._ending:
            if self._state != "stopped":
                await self._stop(self._config.drain if drain is None else drain)

    async def _stop(self, drain: float) -> None:
        self._state = "stopping"
        self._tell("server.stopping", drain=drain)
        if self._watch:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        stops = (service.stop(drain) for service in self._services.values())
        faults = await asyncio.gather(*stops, return_exceptions=True)
        self._services.clear()
        self._tftp = self._ftp = self._http = self._dhcp = None
        if self._pump:
            self._pump.close()
        if self._store:
            await self._installs.close()
            await asyncio.to_thread(self._store.close)
        self._sockets.close()
        for world in {self._world, self._old}:
            world.close()
        await asyncio.to_thread(self._indexer.close)
        await self._why.stop()
        self._tell("server.stopped")
        self._hub.close()
        if self._control:
            await self._control.stop()
        if self._lock:
            self._lock.release()
        self._state = "stopped"
        for fault in faults:
            if isinstance(fault, BaseException):
                raise fault

    async def reload(self, config: Config | None = None) -> tuple[str, ...]:
        """Serve another configuration, the file's when none is given; return the keys that changed.

        Raises FastbootError (NeedsRestart for what a running server can not change); then nothing has changed.
        """
        async with self._reloading:
            try:
                config = config or await self._read_again()
                changed = changed_keys(self._config, config)
                if fixed := needing_restart(changed):
                    raise NeedsRestart(fixed)
                # Thousands of nodes take longer than the loop may be busy.
                world = await asyncio.to_thread(self._world_of, config)
                try:
                    await world.prepare(self._tell)
                    self._adopt(config, world)
                except BaseException:
                    world.close()
                    raise
            except FastbootError as error:
                self._tell("server.reload.failed", text=str(error))
                raise
            if world.nodes != self._old.nodes and "nodes" not in changed:
                changed = (*changed, "nodes")
            if world.renderer.templates != self._old.renderer.templates and "profiles" not in changed:
                changed = (*changed, "profiles")
            self._tell("server.reloaded", changed=changed)
            return changed

    def _adopt(self, config: Config, world: World) -> None:
        """Give a world to the services in one step of the loop. Raises FastbootError; then nothing has changed."""
        if self._state in ("stopping", "stopped"):
            raise FastbootError("the server is stopping")
        if self._dhcp and config.dhcp:
            self._dhcp.reload(config.dhcp, world.nodes)
        # A listing that runs in a thread may still use the world before this one: its directories stay open.
        if self._old is not self._world:
            self._old.close()
        self._old, self._world, self._config = self._world, world, config
        if self._tftp:
            self._tftp.reload(self._files.resolve, config.tftp)
        if self._ftp and config.ftp:
            self._ftp.reload(config.ftp)
        if self._http and config.http:
            self._http.reload(config.http)
        self._old.shelf.release()
        self._learn()

    async def why(self, *machines: str) -> list[Diagnosis]:
        """Say of machines how far they came, why they got no further, and what to do.

        A machine is named by a node, a set of nodes, a MAC or an address; without any, those that are stuck now
        are meant, the last to be heard of first. Raises FastbootError for a name that nothing is known of.
        """
        return await self._why.why(machines)

    def events(self, *, replay: bool = False) -> Subscription:
        """Return an async iterator over events from now on, after the recent ones if `replay`."""
        return self._hub.subscribe(replay=replay)

    def status(self) -> dict[str, object]:
        """Return what runs: version, process, uptime in seconds, services with their counters, transfers."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self._state,
            "uptime": round(time.monotonic() - self._since, 3),
            "interfaces": {link.name: link.addresses for link in self._sockets.links},
            "services": {name: {"counters": service.counters()} for name, service in self._services.items()},
            "other_servers": [asdict(server) for server in (self._dhcp.other_servers() if self._dhcp else ())],
            "transfers": [
                asdict(transfer) for service in self._services.values() for transfer in service.transfers()
            ],
            "quirks": self._world.catalog.quirks,
            "not_rendered": self._world.renderer.failed,
            "installs": {
                **self._installs.counts(self._world.by_name),
                "begin_failed": self._gate.failed,
            },
            "refused_answers": self._answers.counts,
            "why": self._why.counters(),
            "events": {"counts": self._hub.counts, "dropped": self._hub.dropped},
        }

    async def leases(self) -> list[dict[str, object]]:
        """Return the leases by address: mac, state, times in seconds since the epoch, node."""
        tuples, known = self._dhcp.lease_tuples() if self._dhcp else [], self._world.known
        # Thousands take longer than the loop may be busy.
        return await asyncio.to_thread(
            lambda: [lease_facts(each, known) for each in dhcp.leases_of(sorted(tuples))]
        )

    def nodes(self) -> list[dict[str, object]]:
        """Return the machines that the configuration names, and how far their installation is."""
        return [node_facts(node, self._installs.of(node.name)) for node in self._world.nodes]

    def media(self) -> list[dict[str, object]]:
        """Return the media and what was recognised in them."""
        return [medium.facts() for medium in self._world.shelf]

    def release(self, address: IPv4Address) -> bool:
        """Give a leased address back to its pool. Returns whether it was leased."""
        return self._dhcp is not None and self._dhcp.release(address)

    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]:
        """Take leases that another server gave; return how many, and why the others were left out.

        All are in one commit. Raises FastbootError where they can not be written, or no addresses are given.
        """
        if self._dhcp is None:
            raise FastbootError("this server gives no addresses")
        return await self._dhcp.adopt(found)

    async def arm(self, names: Iterable[str], profile: str | None = None) -> list[Install]:
        """Let nodes install once: this profile or, where it is None, that of each; all of them or none.

        What machines are told follows before this returns. Raises FastbootError: for a node that there is not, is
        being installed, or has no profile that installs; or where it can not be written.
        """
        return await self._installs.arm(profiles_to_arm(self._named(names), self._world.profiles, profile))

    async def arm_new(self, names: Iterable[str]) -> list[Install]:
        """Do as `arm` for those nodes that were never armed before, and return them: for a program that may be
        started again with the same list. None where the store was damaged, for then nobody knows."""
        return await self._installs.arm_new(profiles_to_arm(self._named(names), self._world.profiles, None))

    async def disarm(self, names: Iterable[str]) -> list[Install]:
        """Forget the installs of nodes, whatever their state; return those that there were. Raises FastbootError
        for a node that there is not, or where it can not be written."""
        return await self._installs.disarm([node.name for node in self._named(names)])

    def _named(self, names: Iterable[str]) -> list[Node]:
        names, known = tuple(dict.fromkeys(names)), self._world.by_name
        if unknown := [name for name in names if name not in known]:
            there = "this server's configuration; a file that was changed since counts after fastboot reload"
            raise FastbootError(f"there is no node {', '.join(unknown)} in {there}")
        return [known[name] for name in names]

    def forget(self) -> None:
        """Ask `decide` again about every machine: for a program whose answers have changed."""
        if self._dhcp:
            self._dhcp.forget()

    @property
    def catalog(self) -> Catalog:
        """The one namespace as the configuration has it now."""
        return self._world.catalog

    def _build(self) -> None:
        config, sockets = self._config, self._sockets
        self._store = Store(config.state)
        self._installs.load(self._store)
        if not config.dhcp or config.dhcp.mode == "proxy":  # else the leases tell of it
            for text in self._store.damage:
                self._tell("store.damaged", text=text)
        if config.tftp:
            self._tftp = self._services["tftp"] = tftp.TftpService(
                config.tftp,
                sockets.links,
                self._files.resolve,
                self._emit,
                sockets.tftp,
                self._mac_of,
                http=http_url(config),
            )
        descriptors = Descriptors()
        if config.ftp or config.http:
            self._pump = start_pump(config.senders)
        if config.ftp:
            self._ftp = self._services["ftp"] = ftp.FtpService(
                config.ftp,
                sockets.links,
                self._files,
                self._emit,
                sockets.ftp,
                self._mac_of,
                pump=self._pump,
                descriptors=descriptors,
                emit_all=self._emit_all,
            )
        if config.http:
            self._http = self._services["http"] = http.HttpService(
                config.http,
                sockets.links,
                self._files,
                self._emit,
                sockets.http,
                self._mac_of,
                pump=self._pump,
                descriptors=descriptors,
                reports=self._answers,
                emit_all=self._emit_all,
            )
        # DHCP last: a machine that is given a loader's name finds the loader.
        if config.dhcp:
            self._dhcp = self._services["dhcp"] = self._build_dhcp(config.dhcp)

    def _build_dhcp(self, settings: DhcpSettings) -> Dhcp:
        sockets, nodes = self._sockets, self._world.nodes
        if settings.mode == "proxy":
            return proxy.ProxyService(
                settings, sockets.links, nodes, self.decide, self._emit, sockets.proxy,
                fetched_here=bool(self._config.tftp or self._config.http),
            )  # fmt: skip
        assert self._store
        return dhcp.DhcpService(
            settings, sockets.links, nodes, self._store, self.decide, self._emit, sockets.dhcp,
            emit_all=self._hub.emit_all,
        )  # fmt: skip

    def _world_of(self, config: Config) -> World:
        return World(config, self._node_behind, self._indexer, self._programs, self._told, self._emit, self._gate)

    def _known(self) -> Known:
        world, others = self._world, self._dhcp.other_servers() if self._dhcp else ()
        return Known(
            self._config, world.nodes, world.known, world.profiles,
            install_of=self._installs.of,
            mac_of=self._mac_of,
            transfers=(each for service in self._services.values() for each in service.transfers()),
            others=[str(server.address) for server in others],
            packages={name: loader.packages[0] for name, loader in LOADERS.items()},
        )  # fmt: skip

    def _learn(self) -> None:
        """Have `why` know files by their paths."""
        world = self._world
        named = (file for _, file, _ in world.policy.boot_files())
        self._why.learn(world.renderer.paths(), (*LOADERS, *named))

    async def _watch_media(self) -> None:
        while True:
            await asyncio.sleep(MEDIA_LOOK)
            try:
                if await self._world.refresh(self._tell):
                    self.forget()
                    self._learn()
            except Exception as error:  # a fault of ours: media stay as they are, and are looked at again
                self._tell("media.failed", text=repr(error))

    async def _read_again(self) -> Config:
        if self._load is None:
            raise FastbootError("there is no configuration file to read again")
        return await asyncio.to_thread(self._load)

    def decide(self, request: BootRequest) -> Verdict | Awaitable[Verdict]:
        """Say what a machine boots."""
        return self._verdicts.decide(request)

    def _mac_of(self, address: IPv4Address) -> str | None:
        return self._dhcp.mac_of(address) if self._dhcp else None

    def _node_behind(self, mac: str) -> Node | None:
        """Whose a MAC is that only its port tells."""
        return self._dhcp.node_of(mac) if self._dhcp else None

    def _emit(self, event: Event) -> None:
        self._hub.emit(self._whole(event))

    def _emit_all(self, batch: Batch) -> None:
        self._hub.emit_all(Changed(batch, self._whole))

    def _whole(self, event: Event) -> Event:
        """Add the node that an event is about, where only its MAC is known, or the MAC of a node."""
        if event.node is None and event.mac is not None:
            node = self._world.known.find(event.mac) or self._node_behind(event.mac)
            return replace(event, node=node.name) if node else event
        if event.mac is None and (node := self._world.by_name.get(event.node or "")) and node.macs:
            return replace(event, mac=node.macs[0])
        return event

    def _tell(self, kind: str, **details: object) -> None:
        self._hub.emit(Event(time.time(), kind, details=details))

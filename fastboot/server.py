"""The server: builds the services from a configuration, starts, reloads and stops them.

The only module that knows all parts. It touches nothing that belongs to the whole process (signals, logging,
privileges, the event loop's policy), so several servers can run in one program.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from typing import Protocol

from fastboot import __version__
from fastboot.boot.catalog import Catalog
from fastboot.boot.indexer import Indexer
from fastboot.boot.policy import Told
from fastboot.boot.program import Programs
from fastboot.boot.shelf import Progress
from fastboot.config import Config
from fastboot.config import Dhcp as DhcpSettings
from fastboot.config.changes import changed_keys, needing_restart
from fastboot.model import (
    BootRequest,
    ConfigError,
    Event,
    FastbootError,
    Node,
    Transfer,
    Verdict,
)
from fastboot.services import dhcp, ftp, http, proxy, tftp
from fastboot.services.control import ControlService
from fastboot.services.control_client import NeedsRestart
from fastboot.services.descriptors import Descriptors, shortage
from fastboot.services.dhcp_decisions import Decide
from fastboot.services.dhcp_watch import OtherServer
from fastboot.services.facts import lease_facts, node_facts
from fastboot.services.links import Link, find_links
from fastboot.services.namespace import Namespace, Resolve
from fastboot.services.pump import Pump, start_pump
from fastboot.state.foreign import ForeignLease
from fastboot.state.lock import StateLock
from fastboot.state.store import Store
from fastboot.watch.events import Hub, Subscription
from fastboot.world import World, http_url

MEDIA_LOOK = 2.0
"""Seconds between two looks at whether the image of a medium was replaced."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Every socket that needs privileges, bound, and the interfaces that they are for."""

    links: tuple[Link, ...]
    tftp: tuple[tftp.Sockets, ...] = ()
    ftp: tuple[socket.socket, ...] = ()
    http: tuple[socket.socket, ...] = ()
    dhcp: dhcp.Sockets | None = None
    proxy: proxy.Sockets | None = None

    def close(self) -> None:
        """Close them. For sockets that no server took over; a second time does nothing."""
        for engine in self.tftp:
            engine.close()
        for each in (*self.ftp, *self.http):
            each.close()
        for service in (self.dhcp, self.proxy):
            if service:
                service.close()


def refuse_idle(config: Config) -> None:
    """Raise ConfigError where no service is configured."""
    if not (config.dhcp or config.tftp or config.ftp or config.http):
        raise ConfigError("nothing would run: there is no table dhcp, tftp, ftp or http; add [tftp], for example")


def open_sockets(config: Config) -> Sockets:
    """Bind what the configuration needs, so that the caller can drop its privileges before it starts a Server.

    Raises ConfigError for an interface that can not be used, FastbootError for a port that is taken or forbidden.
    """
    links = find_links(config.interface)
    sockets = Sockets(links)
    try:
        if config.tftp:
            sockets = replace(sockets, tftp=tftp.open_sockets(config.tftp))
        if config.ftp:
            sockets = replace(sockets, ftp=tuple(ftp.open_sockets(config.ftp, links)))
        if config.http:
            sockets = replace(sockets, http=tuple(http.open_sockets(config.http, links)))
        if config.dhcp and config.dhcp.mode == "proxy":
            sockets = replace(sockets, proxy=proxy.open_sockets(links))
        elif config.dhcp:
            sockets = replace(sockets, dhcp=dhcp.open_sockets(links))
    except FastbootError:
        sockets.close()
        raise
    return sockets


class Service(Protocol):
    """What the server asks of DHCP, TFTP, FTP and HTTP alike."""

    async def start(self) -> None: ...
    async def stop(self, drain: float) -> None: ...
    def counters(self) -> Mapping[str, int]: ...
    def transfers(self) -> Sequence[Transfer]: ...


class Dhcp(Service, Protocol):
    """What the server asks of the two ways to do DHCP: giving addresses, and beside another server that does."""

    def reload(self, settings: DhcpSettings, nodes: Sequence[Node]) -> None: ...
    def forget(self) -> None: ...
    def lease_tuples(self) -> list[dhcp.LeaseTuple]: ...
    def release(self, address: IPv4Address) -> bool: ...
    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]: ...
    def mac_of(self, address: IPv4Address) -> str | None: ...
    def node_of(self, mac: str) -> Node | None: ...
    def other_servers(self) -> list[OtherServer]: ...


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
        self._decide = decide
        self._load = load
        self._indexer = Indexer(config.state / "media")
        self._programs = Programs()
        self._told = Told()
        self._hub = Hub()
        self._world = self._old = self._world_of(config)
        self._files = Namespace(resolve, lambda: self._world.catalog)
        self._sockets = sockets or open_sockets(config)
        self._services: dict[str, Service] = {}
        self._tftp: tftp.TftpService | None = None
        self._ftp: ftp.FtpService | None = None
        self._http: http.HttpService | None = None
        self._dhcp: Dhcp | None = None
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
            await asyncio.to_thread(self._store.close)
        self._sockets.close()
        for world in {self._world, self._old}:
            world.close()
        await asyncio.to_thread(self._indexer.close)
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
        """Return the machines that the configuration names."""
        return [node_facts(node) for node in self._world.nodes]

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
        self._store = Store(self._config.state)
        return dhcp.DhcpService(
            settings, sockets.links, nodes, self._store, self.decide, self._emit, sockets.dhcp,
            emit_all=self._hub.emit_all,
        )  # fmt: skip

    def _world_of(self, config: Config) -> World:
        return World(config, self._node_behind, self._indexer, self._programs, self._told, self._hub.emit)

    async def _watch_media(self) -> None:
        while True:
            await asyncio.sleep(MEDIA_LOOK)
            try:
                if await self._world.refresh(self._tell):
                    self.forget()
            except Exception as error:  # a fault of ours: media stay as they are, and are looked at again
                self._tell("media.failed", text=repr(error))

    async def _read_again(self) -> Config:
        if self._load is None:
            raise FastbootError("there is no configuration file to read again")
        return await asyncio.to_thread(self._load)

    def decide(self, request: BootRequest) -> Verdict | Awaitable[Verdict]:
        """Say what a machine boots."""
        verdict = self._decide(request) if self._decide else None
        if inspect.isawaitable(verdict):
            return self._decide_later(verdict, request)
        return self._settle(verdict, request)

    async def _decide_later(self, verdict: Awaitable[Verdict], request: BootRequest) -> Verdict:
        return self._settle(await verdict, request)

    def _settle(self, verdict: Verdict, request: BootRequest) -> Verdict:
        return self._told.keep(request, self._world.policy.decide(request) if verdict is None else verdict)

    def _mac_of(self, address: IPv4Address) -> str | None:
        return self._dhcp.mac_of(address) if self._dhcp else None

    def _node_behind(self, mac: str) -> Node | None:
        """Whose a MAC is that only its port tells."""
        return self._dhcp.node_of(mac) if self._dhcp else None

    def _emit(self, event: Event) -> None:
        if event.node is None and event.mac is not None:
            node = self._world.known.find(event.mac) or self._node_behind(event.mac)
            event = replace(event, node=node.name) if node else event
        self._hub.emit(event)

    def _tell(self, kind: str, **details: object) -> None:
        self._hub.emit(Event(time.time(), kind, details=details))

"""What a configuration says about machines and files: everything that a reload replaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fastboot._core import Source
from fastboot.boot.catalog import Catalog, refuse_secrets
from fastboot.boot.chain import Chains
from fastboot.boot.firmware import SERVER
from fastboot.boot.gate import Gate
from fastboot.boot.indexer import Indexer
from fastboot.boot.loaders import find_loaders
from fastboot.boot.policy import Policy
from fastboot.boot.program import Program, Programs
from fastboot.boot.render import Renderer
from fastboot.boot.shelf import Medium, Progress, Shelf, Tell
from fastboot.boot.shims import Shims
from fastboot.config import Config, NodeIndex
from fastboot.model import Event, Node, Transport


class World:
    """Nodes, loaders, policy, renderer, media and catalog of one configuration, made together."""

    def __init__(
        self,
        config: Config,
        node_of: Callable[[str], Node | None] = lambda mac: None,
        indexer: Indexer | None = None,
        programs: Programs | None = None,
        told: Mapping[str, Transport] | None = None,
        emit: Callable[[Event], None] = lambda event: None,
        gate: Gate | None = None,
    ) -> None:
        """`node_of` tells whose a MAC is that no node names. `indexer` reads images; without one, nothing that it
        finds is kept. `programs` knows boot programs that were looked at before. `told` has the transports that
        plans gave to machines, by MAC. `emit` is told of what can not be rendered. `gate` knows who is armed.
        Raises ConfigError."""
        refuse_secrets(config)
        self.nodes = config.all_nodes()
        self.known = NodeIndex(self.nodes)
        self.by_name = {node.name: node for node in self.nodes}
        self._programs = programs or Programs()
        url, proxy = http_url(config), config.dhcp is not None and config.dhcp.mode == "proxy"
        self.loaders = find_loaders(config.boot.loaders, http=url, proxy=proxy, programs=self._programs)
        self.chains = Chains(self.program, url is not None, proxy)
        self.profiles = profiles = [profile.profile() for profile in config.profiles]
        tables = {"ftp": config.ftp, "http": config.http}
        ports = {scheme: table.port for scheme, table in tables.items() if table}
        self._told, self._transport = {} if told is None else told, config.boot.transport
        self.renderer = Renderer(
            self.nodes,
            profiles,
            config.boot.unknown,
            ports,
            node_of,
            self._medium,
            self._transport_of,
            emit,
            gate,
        )
        self._media = {profile.name: profile.media for profile in profiles}
        self.shims = Shims(self.chains, self.program, self.renderer.kernels, self._carriers, url)
        self.policy = Policy(config, self.nodes, self.loaders, self.chains, url, self.shims)
        self.indexer = indexer or Indexer(config.state / "media", keep=False)
        self.shelf = Shelf(config, self.indexer)
        self.catalog = Catalog(config, self.loaders, self.renderer, self.shelf)

    def close(self) -> None:
        self.catalog.close()

    async def prepare(self, tell: Tell, progress: Progress = lambda name, step: None) -> None:
        """Have media read, and the boot programs that machines may be given looked at. Events as of `Shelf`."""
        await self.shelf.prepare(tell, progress)
        await self._look_ahead()

    async def refresh(self, tell: Tell) -> bool:
        """Take media that were replaced since; return whether machines may boot something else now."""
        if not await self.shelf.refresh(tell):
            return False
        await self._look_ahead()
        return True

    async def _look_ahead(self) -> None:
        """Look at what `decide` will ask for: a kernel takes longer than the loop may be busy."""
        carried = (f"boot/{medium.name}/{name}" for medium in self.shelf for name in medium.loaders)
        kernels = (path for key, path in self.renderer.paths() if key.endswith(": kernel"))
        for path in (*kernels, *carried):
            if isinstance(source := self.catalog.public(path), Source):
                await asyncio.to_thread(self._programs.of, source)
        self.shims.forget()

    def _medium(self, name: str) -> Medium | None:
        return self.shelf.get(name)

    def _transport_of(self, node: Node | None, mac: str | None) -> Transport:
        return self.policy.transport(node) or self._told.get(mac or "") or self._transport

    def _carriers(self, profile: str | None) -> list[str]:
        """Return the media with boot programs, that of the profile first."""
        own = self._media.get(profile or "")
        return sorted((medium.name for medium in self.shelf if medium.loaders), key=lambda name: name != own)

    def program(self, path: str) -> Program | None:
        """Say what a file of the one namespace is, None where there is none."""
        source = self.catalog.public(path)
        return self._programs.of(source) if isinstance(source, Source) else None


def http_url(config: Config) -> str | None:
    """Return the URL of the one namespace as `boot.loaders` would name it, None where HTTP does not serve it."""
    if config.http is None or not config.http.port:
        return None
    return f"http://{SERVER}" + (f":{config.http.port}" if config.http.port != 80 else "")

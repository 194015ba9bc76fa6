"""What a configuration says about machines and files: everything that a reload replaces."""

from __future__ import annotations

from collections.abc import Callable

from fastboot._core import Source
from fastboot.boot.catalog import Catalog, refuse_secrets
from fastboot.boot.chain import Chains
from fastboot.boot.firmware import SERVER
from fastboot.boot.indexer import Indexer
from fastboot.boot.loaders import find_loaders
from fastboot.boot.policy import Policy
from fastboot.boot.program import Program, Programs
from fastboot.boot.render import Renderer
from fastboot.boot.shelf import Medium, Shelf
from fastboot.config import Config, NodeIndex
from fastboot.model import Node


class World:
    """Nodes, loaders, policy, renderer, media and catalog of one configuration, made together."""

    def __init__(
        self,
        config: Config,
        node_of: Callable[[str], Node | None] = lambda mac: None,
        indexer: Indexer | None = None,
        programs: Programs | None = None,
    ) -> None:
        """`node_of` tells whose a MAC is that no node names. `indexer` reads images; without one, nothing that it
        finds is kept. `programs` knows boot programs that were looked at before. Raises ConfigError."""
        refuse_secrets(config)
        self.nodes = config.all_nodes()
        self.known = NodeIndex(self.nodes)
        self._programs = programs or Programs()
        url, proxy = http_url(config), config.dhcp is not None and config.dhcp.mode == "proxy"
        self.loaders = find_loaders(config.boot.loaders, http=url, proxy=proxy, programs=self._programs)
        self.chains = Chains(self.program, url is not None, proxy)
        profiles = [profile.profile() for profile in config.profiles]
        tables = {"ftp": config.ftp, "http": config.http}
        ports = {scheme: table.port for scheme, table in tables.items() if table}
        self.renderer = Renderer(self.nodes, profiles, config.boot.unknown, ports, node_of, self._medium)
        self.policy = Policy(config, self.nodes, self.loaders, self.chains, url)
        self.indexer = indexer or Indexer(config.state / "media", keep=False)
        self.shelf = Shelf(config, self.indexer)
        self.catalog = Catalog(config, self.loaders, self.renderer, self.shelf)

    def close(self) -> None:
        self.catalog.close()

    def _medium(self, name: str) -> Medium | None:
        return self.shelf.get(name)

    def program(self, path: str) -> Program | None:
        """Say what a file of the one namespace is, None where there is none."""
        source = self.catalog.public(path)
        return self._programs.of(source) if isinstance(source, Source) else None


def http_url(config: Config) -> str | None:
    """Return the URL of the one namespace as `boot.loaders` would name it, None where HTTP does not serve it."""
    if config.http is None or not config.http.port:
        return None
    return f"http://{SERVER}" + (f":{config.http.port}" if config.http.port != 80 else "")

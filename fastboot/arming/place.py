"""Where a server's state is, as commands are told it: by a configuration, or where there is none by itself."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastboot.config import Config, load
from fastboot.model import ConfigError, FastbootError, Install, Node
from fastboot.privileges import drop_to
from fastboot.quick import default_state
from fastboot.services.control_client import ControlClient, NotRunning
from fastboot.state.lock import StateLock
from fastboot.state.store import FILE, read_installs
from fastboot.terminal import DEFAULT


@dataclass
class Place:
    """A state directory and, unless the server was started without one, the configuration that names it."""

    state: Path
    config: Config | None

    @classmethod
    def of(cls, config: Path | None, state: Path | None) -> Place:
        """Without a word, it is the usual configuration or, where that is missing, the directory of `serve --iso`.

        Raises ConfigError.
        """
        if state is not None:
            if config is not None:
                raise ConfigError("--state: a configuration says it; give one of them")
            return cls(state, None)
        if config is None and not DEFAULT.exists():
            return cls(default_state(), None)
        settings = load(config or DEFAULT)
        return cls(settings.state, settings)

    @property
    def client(self) -> ControlClient:
        return ControlClient(self.state)

    def settings(self) -> Config:
        """Return the configuration for when no server runs. Raises NotRunning where there is none."""
        if self.config is None:
            text = f"no fastboot server runs on {self.state}, and there is no {DEFAULT}; name one with --config"
            raise NotRunning(text)
        return self.config

    def facts(self) -> list[Any]:
        """Return the nodes of the running server. Raises FastbootError."""
        found: list[Any] = self.client.get("/nodes")
        return found

    def nodes(self, facts: Sequence[Any] | None = None) -> list[Node]:
        """Return the same as sets of nodes are chosen from. Raises FastbootError."""
        return [
            Node(each["name"], tuple(each["macs"]), group=each["group"])
            for each in (self.facts() if facts is None else facts)
        ]


def stored_installs(state: Path) -> dict[str, Install]:
    """Return the installs that a server which does not run has left behind, by node. Raises FastbootError."""
    if not (state / FILE).exists():
        return {}
    # SQLite makes files beside its own to read it: they must belong to the server's user, not to root.
    if os.geteuid() == 0 and (owner := state.stat().st_uid):
        try:
            drop_to(pwd.getpwuid(owner))
        except KeyError:
            raise FastbootError(f"state: {state} belongs to a user that does not exist: {owner}") from None
    with StateLock(state):
        return {row.node: row.install for row in read_installs(state / FILE) if row.install}

"""Arming in the store of a server that does not run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

from fastboot.config import Config
from fastboot.model import Install, Node
from fastboot.privileges import become
from fastboot.services.facts import install_facts
from fastboot.state.lock import StateLock
from fastboot.state.nodes import Installs, profiles_to_arm
from fastboot.state.store import Store


def arm_stored(config: Config, nodes: Sequence[Node], profile: str | None) -> list[Any]:
    """Arm nodes, all or none; return the facts of their installs. Raises FastbootError, StateInUse where a server
    runs."""
    armings = profiles_to_arm(nodes, [each.profile() for each in config.profiles], profile)
    return _change(config, lambda installs: installs.arm(armings))


def disarm_stored(config: Config, nodes: Sequence[Node]) -> list[Any]:
    """Disarm nodes; return the facts of what they were. Raises as `arm_stored`."""
    return _change(config, lambda installs: installs.disarm([node.name for node in nodes]))


def _change(config: Config, change: Callable[[Installs], Awaitable[list[Install]]]) -> list[Any]:
    become(config)

    async def run() -> list[Install]:
        with closing(Store(config.state)) as store:
            for text in store.damage:
                print(f"fastboot: {text}", file=sys.stderr)
            store.start()
            installs = Installs()
            installs.load(store)
            return await change(installs)

    with StateLock(config.state):
        return [install_facts(install) for install in asyncio.run(run())]

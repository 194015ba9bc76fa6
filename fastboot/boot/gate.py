"""Which machine gets what makes an installer write to its disk: one that is armed, in one boot attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from fastboot.model import BootRequest, Event, FastbootError, Install, InstallState, Node, Stage

ATTEMPT: Final = 300.0
"""Seconds after which a boot attempt is over, whether its end was seen or not."""
FIRMWARE: Final = (Stage.ROM, Stage.IPXE)
"""Who asks by DHCP before it fetches anything. iPXE may be loaded by another firmware or be the firmware itself:
either way it asks before it fetches a script."""


class Journal(Protocol):
    """What keeps the installs; `state.nodes.Installs` is one."""

    def of(self, node: str) -> Install | None: ...
    async def begin(self, install: Install) -> Install: ...
    def interrupted(self, install: Install) -> None: ...


class NoInstalls:
    """Nothing is armed."""

    def of(self, node: str) -> Install | None:
        return None

    async def begin(self, install: Install) -> Install:
        raise FastbootError("nothing is armed here")

    def interrupted(self, install: Install) -> None:
        pass


class Gate:
    """Lets the boot configuration of an installer out where nothing else stands before the disk.

    A loader asks for it more than once: GRUB by TFTP and again by HTTP, PXELINUX after a timeout. So within the
    boot attempt that used an arming up it is given again: until the firmware asks by DHCP anew, for at most
    `ATTEMPT` seconds, and never after a restart of the server. For the thread of the loop.
    """

    def __init__(
        self,
        installs: Journal | None = None,
        emit: Callable[[Event], None] = lambda event: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._installs, self._emit, self._now = installs or NoInstalls(), emit, now
        self._attempts: dict[str, tuple[str, float]] = {}
        """By node, the arming that is being used up, and until when its attempt may last."""
        self.failed = 0
        """How many times an installer was held back because its beginning could not be written."""

    def of(self, node: Node) -> Install | None:
        return self._installs.of(node.name)

    def effective(self, node: Node) -> Node:
        """Return the node with the profile that counts now: what it is armed with, until that has ended."""
        install = self._installs.of(node.name)
        if install and install.state in (InstallState.ARMED, InstallState.INSTALLING):
            return node if install.profile == node.profile else replace(node, profile=install.profile)
        return node

    def is_open(self, node: Node) -> bool:
        """Whether the attempt goes on in which the node's arming was used up."""
        install = self._installs.of(node.name)
        token, until = self._attempts.get(node.name, ("", 0.0))
        return (
            install is not None
            and install.state is InstallState.INSTALLING
            and install.token == token
            and self._now() < until
        )

    def asked(self, request: BootRequest) -> None:
        """Take it that a machine asked by DHCP: where its firmware did, an earlier attempt is over."""
        if request.node and request.stage in FIRMWARE:
            self._attempts.pop(request.node.name, None)

    async def begin(self, install: Install) -> bool:
        """Use an arming up; return whether it may be used: on disk it is begun.

        Where it can not be written, that is told, and False returned with the node still armed.
        """
        # Before the commit, so that it counts for whoever asks again when the first no longer waits.
        self._attempts[install.node] = install.token, self._now() + ATTEMPT
        try:
            await self._installs.begin(install)
        except FastbootError as error:
            if self._installs.of(install.node) == install:
                self.failed += 1
                details = {"profile": install.profile, "text": str(error)}
                self._emit(Event(time.time(), "node.begin_failed", node=install.node, details=details))
            return False
        return True

    def interrupted(self, install: Install) -> None:
        """Take it that a machine boots from the network again while it is being installed."""
        self._installs.interrupted(install)

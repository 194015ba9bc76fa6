"""Another host on the lab's network, whose DHCP server gives the addresses and knows nothing of booting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final

from fastboot.lab.namespace import LabError, spawn, stop
from fastboot.lab.network import Network

_START: Final = 20.0
_POLL: Final = 0.05
_CARD: Final = "other0"
# As a daemon dnsmasq would change its group, which a user namespace of an ordinary user forbids.
_RUN: Final = """\
until ip link show {card} >/dev/null 2>&1; do sleep 0.05; done
ip address add {address} dev {card} && ip link set {card} up && exec dnsmasq --no-daemon -C "{file}"
"""
_SETTINGS: Final = """\
port=0
no-ping
leasefile-ro
interface={card}
bind-interfaces
log-dhcp
dhcp-range={first},{last},{mask},1h
"""


class OtherServer:
    """dnsmasq at `address` on a network, in a namespace of its own; its log is `directory`/other.log, its
    configuration `settings`."""

    def __init__(self, network: Network, address: IPv4Interface, directory: Path) -> None:
        self.log = directory / "other.log"
        hosts = address.network
        self.settings = _SETTINGS.format(card=_CARD, first=hosts[100], last=hosts[199], mask=hosts.netmask)
        self._network, self._address = network, address
        self._file = directory / "other.conf"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when it answers. Raises LabError where it does not begin to."""
        self._file.write_text(self.settings, encoding="utf-8")
        run = _RUN.format(card=_CARD, address=self._address, file=self._file)
        with self.log.open("wb") as log:
            self._process = await spawn(["unshare", "--net", "sh", "-c", run], stdout=log)
        await self._until(lambda pid: _namespace(pid) not in (None, _namespace("self")))
        self._network.extend(_CARD, self._process.pid)
        await self._until(lambda _: b"sockets bound" in self.log.read_bytes())

    async def stop(self) -> None:
        """End it; harmless where it never ran."""
        if self._process:
            await stop(self._process, grace=2)

    async def _until(self, holds: Callable[[int], bool]) -> None:
        assert self._process
        deadline = asyncio.get_running_loop().time() + _START
        while not holds(self._process.pid):
            if self._process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise LabError(f"the other DHCP server did not start: {self.log.read_text('utf-8', 'replace')}")
            await asyncio.sleep(_POLL)


def _namespace(process: int | str) -> Path | None:
    try:
        return Path(f"/proc/{process}/ns/net").readlink()
    except OSError:  # it has ended
        return None

"""Every socket that a configuration needs, bound before privileges are dropped."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from fastboot.config import Config
from fastboot.model import ConfigError, FastbootError
from fastboot.services import dhcp, ftp, http, proxy, tftp
from fastboot.services.links import Link, find_links


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

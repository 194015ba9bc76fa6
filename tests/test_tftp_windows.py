"""The windows that clients are granted, by what was lost of the last ones."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest
from tftpkit import DATA, LOOPBACK, Address, Client, Files, Running, op_of, serving

from fastboot import config
from fastboot._core import Engine, Interfaces, Source, TftpEnd
from fastboot.services.tftp import open_sockets
from fastboot.services.tftp_windows import REMEMBERED, Windows

LONG = bytes(700 * 1468)


def granted(server: Running, client: Client) -> int:
    """Fetch a file with a window of 64, and return the window that was granted."""
    assert len(client.fetch("long", blksize=1468, windowsize=64)) == len(LONG)
    assert client.oack is not None
    server.until(server.is_idle)
    return int(client.oack["windowsize"])


class Lossy:
    """A socket that never hears one of thirty blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._blocks = sock, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recvfrom(self, size: int) -> tuple[bytes, Address]:
        while True:
            packet, peer = self._socket.recvfrom(size)
            self._blocks += op_of(packet) == DATA
            if op_of(packet) != DATA or self._blocks % 30:
                return packet, peer


def test_who_loses_much_gets_smaller_windows_until_it_does_not() -> None:
    """What is lost of a window, and all that came after it, is sent again on a link that others share."""
    with serving(Files({"long": LONG})) as server, server.client() as client:
        assert granted(server, client) == 64
        with server.client() as unlucky:
            unlucky.socket = Lossy(unlucky.socket)  # type: ignore[assignment]
            windows = [granted(server, unlucky) for _ in range(6)]
        assert windows[:2] == [64, 32]
        assert 4 <= windows[-1] <= 16
        again = [granted(server, client), granted(server, client)]
        while again[-1] < 64:
            assert again[-1] == 2 * again[-2]
            again.append(granted(server, client))
        assert granted(server, client) == 64


def end(repeats: int, windowsize: int, blocks: int = 1000) -> TftpEnd:
    return TftpEnd(1, "done", 0, 0, blocks, repeats, 1.0, 1468, windowsize)


def test_it_is_another_address_s_business() -> None:
    windows = Windows()
    windows.learn("10.0.0.1", end(500, 16))
    assert windows.most("10.0.0.1", 64) == 8
    assert windows.most("10.0.0.1", 2) == 2
    assert windows.most("10.0.0.2", 64) == 64


@pytest.mark.parametrize("what", [end(500, 4), end(99, 16, blocks=99), end(50, 8), end(0, 4)])
def test_what_tells_nothing_changes_nothing(what: TftpEnd) -> None:
    """The smallest window; a short file; some loss; no loss with a window that the client wanted smaller."""
    windows = Windows()
    windows.learn("10.0.0.1", end(500, 16))
    windows.learn("10.0.0.1", what)
    assert windows.most("10.0.0.1", 64) == 8


def test_those_who_lost_last_are_remembered() -> None:
    windows = Windows()
    for number in range(REMEMBERED + 1):
        windows.learn(f"client-{number}", end(500, 64))
    assert windows.most("client-0", 64) == 64
    assert windows.most("client-1", 64) == 32


def test_a_window_has_a_block() -> None:
    (sockets,) = open_sockets(config.Tftp(port=0, threads=1))
    engine = Engine([sockets.listen], sockets.data, Interfaces([(LOOPBACK.index, LOOPBACK.mtu)]))
    with closing(sockets), pytest.raises(ValueError, match="windowsize is 1 to 65535"):
        engine.start(1, Source.of_bytes("x", b"x"), windowsize=0)

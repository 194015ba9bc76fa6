"""Clients that download one file at once over HTTP or FTP, and throw the octets away.

    python -m bench.downloads PROTOCOL ADDRESS PORT PATH CLIENTS

Prints one JSON line. A process of its own, so that its interpreter is not the server's. MSG_TRUNC lets the kernel
discard what arrived without copying it (tcp(7)): one core takes what two servers' cores send.
"""

from __future__ import annotations

import ftplib
import json
import select
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

CHUNK = 1 << 20


class Drain:
    """Takes everything from many sockets until each is closed by the server or has what it should have."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.epoll = select.epoll()
        self.left = 0
        self.got: dict[int, int] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.ended: list[tuple[float, int]] = []
        self.buffer = bytearray(CHUNK)

    def add(self, sock: socket.socket, already: int = 0) -> None:
        sock.setblocking(False)
        self.got[sock.fileno()], self.sockets[sock.fileno()] = already, sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def run(self, clients: int, deadline: float) -> None:
        while len(self.ended) < clients and time.monotonic() < deadline:
            for fd, _ in self.epoll.poll(0.1, 64):
                try:
                    count = self.sockets[fd].recv_into(self.buffer, CHUNK, socket.MSG_TRUNC)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    count = 0
                self.got[fd] += count
                if count == 0 or self.got[fd] >= self.expected:
                    self.epoll.unregister(fd)
                    self.ended.append((time.monotonic(), self.got[fd]))


def http(address: tuple[str, int], path: str, drain: Drain) -> socket.socket:
    sock = socket.create_connection(address, 60)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    assert head.startswith(b"HTTP/1.1 200 "), head
    drain.add(sock, len(head) - head.index(b"\r\n\r\n") - 4)
    return sock


def ftp(address: tuple[str, int], path: str, drain: Drain) -> ftplib.FTP:
    session = ftplib.FTP(timeout=60)
    session.connect(*address)
    session.login()
    session.voidcmd("TYPE I")
    data, _ = session.ntransfercmd(f"RETR {path}")
    drain.add(data)
    return session


def main() -> None:
    protocol, host, port, path, count, expected = sys.argv[1:]
    clients, drain = int(count), Drain(int(expected))
    start = {"http": http, "ftp": ftp}[protocol]
    faults: list[str] = []
    held: list[object] = []
    waits: list[float] = []

    def begin(_: int) -> None:
        at = time.monotonic()
        try:
            held.append(start((host, int(port)), path, drain))
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
            drain.ended.append((time.monotonic(), 0))
        waits.append(time.monotonic() - at)

    began = time.monotonic()
    with ThreadPoolExecutor(min(clients, 100)) as pool:
        starting = threading.Thread(target=lambda: list(pool.map(begin, range(clients))))
        starting.start()
        drain.run(clients, began + 300)
        starting.join()
    whole = sorted(at - began for at, octets in drain.ended if octets >= drain.expected)
    print(
        json.dumps(
            {
                "whole": len(whole),
                "octets": sum(octets for _, octets in drain.ended),
                "fastest": whole[0] if whole else None,
                "slowest": whole[-1] if whole else None,
                "slowest_start": max(waits),
                "faults": faults[:3],
            }
        )
    )


if __name__ == "__main__":
    main()

"""Clients of HTTP and FTP servers, many in one process, that throw away what they get.

    python -m bench.downloads JSON

The JSON object names what they do (`kind`: bulk, storm, sessions or held) and its arguments. Once all are
connected and logged in, a line is printed; at a line of input they begin; their figures are printed as JSON, and
at another line of input they leave. So whoever measures the server can look at it in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Address = tuple[str, int]
T = TypeVar("T")
CHUNK = 1 << 20
PATIENCE = 100.0
"""Seconds after which whoever has not all has failed."""
SEVERAL = 64
NARROW = 65_536
"""Octets of the receive buffer of who takes no more of a file."""
OPENING = 1.0
"""Seconds in which all sessions are opened."""


def begin() -> float:
    """Tell that all is ready, wait for the word, return when it came."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.monotonic()


def summary(asked: int, times: Sequence[float], octets: int, seconds: float) -> dict[str, Any]:
    whole = sorted(times)
    at = {"fastest": 0, "p50": len(whole) // 2, "p99": len(whole) * 99 // 100, "slowest": len(whole) - 1}
    figures = {name: whole[place] if whole else None for name, place in at.items()}
    return {"failed": asked - len(whole), "octets": octets, "seconds": seconds, **figures}


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def connected(address: Address) -> socket.socket:
    sock = socket.create_connection(address, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def logged_in(address: Address) -> ftplib.FTP:
    session = ftplib.FTP(timeout=60)
    session.connect(*address)
    session.login()
    session.voidcmd("TYPE I")
    return session


def started(start: Callable[[int], T], clients: int) -> list[T]:
    """Return the clients that could be started."""

    def one(number: int) -> T | Exception:
        try:
            return start(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(SEVERAL) as pool:
        all_ = list(pool.map(one, range(clients)))
    if faults := [each for each in all_ if isinstance(each, Exception)]:
        print(f"{len(faults)} clients could not start: {faults[0]!r}", file=sys.stderr)
    return [each for each in all_ if not isinstance(each, Exception)]


class Download:
    """One client of one large file: it asks by `ask`, and the octets come in at `data`."""

    def __init__(self, data: socket.socket, ask: Callable[[], object], size: int, head: bool) -> None:
        self.data, self.ask, self.left, self.head = data, ask, size, head
        self.began = self.ended = 0.0

    @classmethod
    def http(cls, address: Address, path: str, size: int) -> Download:
        sock = connected(address)
        return cls(sock, lambda: sock.sendall(request(path)), size, True)

    @classmethod
    def ftp(cls, address: Address, path: str, size: int) -> Download:
        session = logged_in(address)
        data = socket.create_connection(session.makepasv(), 60)
        return cls(data, lambda: session.putcmd(f"RETR {path}"), size, False)

    def take(self, buffer: bytearray) -> bool:
        """Take what came; return whether that was the end. MSG_TRUNC: the kernel discards it uncopied (tcp(7))."""
        try:
            count = self.data.recv_into(buffer, CHUNK, 0 if self.head else socket.MSG_TRUNC)
            if self.head and count:
                end = buffer.index(b"\r\n\r\n", 0, count) + 4
                if not buffer.startswith(b"HTTP/1.1 200 "):
                    raise ConnectionError(bytes(buffer[:end]))
                self.head, self.left = False, self.left + end
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            count = 0
        self.left -= count
        if count and self.left > 0:
            return False
        self.ended = time.monotonic()
        return True


def bulk(protocol: str, address: Address, paths: Sequence[str], clients: int, size: int) -> dict[str, Any]:
    """Every client fetches one file, all at once."""
    start = {"http": Download.http, "ftp": Download.ftp}[protocol]
    downloads = started(lambda number: start(address, paths[number % len(paths)], size), clients)
    epoll, going = select.epoll(), {each.data.fileno(): each for each in downloads}
    for fd, each in going.items():
        each.data.setblocking(False)
        epoll.register(fd, select.EPOLLIN)
    began, buffer = begin(), bytearray(CHUNK)
    for each in downloads:
        each.began = time.monotonic()
        each.ask()
    while going and time.monotonic() < began + PATIENCE:
        for fd, _ in epoll.poll(0.1, SEVERAL):
            if going[fd].take(buffer):
                epoll.unregister(fd)
                del going[fd]
    whole = [each.ended - each.began for each in downloads if each.ended and each.left == 0]
    octets = sum(size - each.left for each in downloads)
    return summary(clients, whole, octets, time.monotonic() - began)


def held(protocol: str, address: Address, paths: Sequence[str], clients: int, size: int) -> dict[str, Any]:
    """Every client begins a file and takes no more of it than came first; the time is that until then."""
    start = {"http": Download.http, "ftp": Download.ftp}[protocol]
    downloads = started(lambda number: start(address, paths[number % len(paths)], size), clients)
    began, times = begin(), list[float]()
    for each in downloads:
        each.data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        each.ask()
    for each in downloads:
        each.data.settimeout(PATIENCE / 5)
        with contextlib.suppress(OSError):
            if each.data.recv(1):
                times.append(time.monotonic() - began)
    return summary(clients, times, 0, time.monotonic() - began)


def storm(
    protocol: str, address: Address, paths: Sequence[str], clients: int, size: int, files: int
) -> dict[str, Any]:
    """Clients fetch small files one after another: by HTTP on one connection, by FTP in one session each."""
    left = iter([paths[n % len(paths)] for n in range(files)])
    went = {"http": storm_http, "ftp": storm_ftp}[protocol]
    began, times = went(address, left, clients, size)
    return summary(files, times, len(times) * size, time.monotonic() - began)


def storm_http(address: Address, left: Iterator[str], clients: int, size: int) -> tuple[float, list[float]]:
    connections = {sock.fileno(): sock for sock in (connected(address) for _ in range(clients))}
    epoll, asked, got, times = select.epoll(), dict[int, float](), dict[int, bytes](), list[float]()
    began = begin()

    def ask(fd: int) -> None:
        got[fd], asked[fd] = b"", time.monotonic()
        if (path := next(left, None)) is None:
            epoll.unregister(fd)
            del asked[fd]
        else:
            connections[fd].send(request(path))

    for fd in connections:
        epoll.register(fd, select.EPOLLIN)
        ask(fd)
    while asked and time.monotonic() < began + PATIENCE:
        for fd, _ in epoll.poll(0.1, SEVERAL):
            part = connections[fd].recv(CHUNK)
            got[fd] += part
            head, found, body = got[fd].partition(b"\r\n\r\n")
            if not part:
                epoll.unregister(fd)
                del asked[fd]
            elif found and len(body) >= size:
                assert head.startswith(b"HTTP/1.1 200 "), head
                times.append(time.monotonic() - asked[fd])
                ask(fd)
    return began, times


def storm_ftp(address: Address, left: Iterator[str], clients: int, size: int) -> tuple[float, list[float]]:
    sessions = started(lambda _: logged_in(address), clients)
    times = list[float]()
    began = begin()

    def fetch(session: ftplib.FTP) -> None:
        for path in left:
            at, got = time.monotonic(), list[bytes]()
            with contextlib.suppress(*ftplib.all_errors):  # who is refused has failed
                session.retrbinary(f"RETR {path}", got.append)
            if sum(map(len, got)) == size:
                times.append(time.monotonic() - at)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(fetch, sessions))
    return began, times


def sessions(protocol: str, address: Address, clients: int) -> dict[str, Any]:
    """So many clients come within a second and stay; the time is that to be logged in, or answered 404."""
    steps = {
        "ftp": ((b"", b"220 "), (b"USER anonymous\r\nPASS x\r\n", b"230 ")),
        "http": ((b"HEAD /nothing HTTP/1.1\r\nHost: bench\r\n\r\n", b"HTTP/1.1 404 "),),
    }[protocol]
    began = begin()
    times, held = list[float](), list[object]()

    async def come(number: int) -> None:
        await asyncio.sleep(number * OPENING / clients)
        at = time.monotonic()
        reader, writer = await asyncio.open_connection(*address)
        held.append(writer)
        for say, expected in steps:
            writer.write(say)
            while not (line := await reader.readline()).startswith(expected):
                if not line or line[:1] in b"45":
                    return
        times.append(time.monotonic() - at)

    async def all_come() -> None:
        coming = [asyncio.create_task(come(number)) for number in range(clients)]
        await asyncio.wait(coming, timeout=PATIENCE / 5)
        print(json.dumps(summary(clients, times, 0, time.monotonic() - began)), flush=True)
        sys.stdin.readline()

    asyncio.run(all_come())
    return {}


def main() -> None:
    arguments = json.loads(sys.argv[1])
    kind = {"bulk": bulk, "storm": storm, "sessions": sessions, "held": held}[arguments.pop("kind")]
    arguments["address"] = tuple(arguments["address"])
    if figures := kind(**arguments):
        print(json.dumps(figures), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()

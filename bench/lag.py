"""How long a server's event loop lets a small question wait, beside an idle loop on the same machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

EVERY = 0.004
IDLE_PORT = 8090
IDLE = """
import asyncio, sys, uvloop

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"200 idle\\r\\n")

loop = uvloop.new_event_loop()
loop.run_until_complete(loop.create_server(Echo, sys.argv[1], int(sys.argv[2])))
loop.run_forever()
"""
"""The idle loop: what its answers wait for is the machine's doing, not a server's."""
QUESTIONS = {"ftp": b"NOOP\r\n", "http": b"HEAD /nothing HTTP/1.1\r\nHost: bench\r\n\r\n"}


class Lag:
    """Round trips in seconds of one small question every 4 ms, to a server and to the idle loop in turn."""

    def __init__(self, protocol: str, address: tuple[str, int], idle: tuple[str, int]) -> None:
        self._question = QUESTIONS[protocol]
        self._server = socket.create_connection(address, 20)
        self._idle = socket.create_connection(idle, 20)
        if protocol == "ftp":
            for say in (b"", b"USER anonymous\r\n", b"PASS x\r\n"):
                self._ask(self._server, say)
        self.server, self.idle = list[float](), list[float]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()
        self._idle.close()

    def _run(self) -> None:
        at = time.monotonic()
        while not self._stop.is_set():
            self.server.append(self._ask(self._server, self._question))
            self.idle.append(self._ask(self._idle, self._question))
            at = max(at + EVERY, time.monotonic())
            self._stop.wait(max(0, at - time.monotonic()))

    @staticmethod
    def _ask(sock: socket.socket, question: bytes) -> float:
        began = time.monotonic()
        sock.sendall(question)
        while not sock.recv(4096).endswith(b"\n"):
            pass
        return time.monotonic() - began


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]

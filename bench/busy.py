"""Keeps a fastboot server's loop busy: FTP logins one after another, and questions on its control socket.

    python -m bench.busy ADDRESS CONTROL-SOCKET SESSIONS

Prints one JSON object when it is told to end: how many of each were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys

counts = {"logins": 0, "questions": 0}


async def log_in(address: str) -> None:
    while True:
        reader, writer = await asyncio.open_connection(address, 21)
        with contextlib.closing(writer):
            for command, code in ((b"", b"220"), (b"USER anonymous\r\n", b"331"), (b"PASS x\r\n", b"230")):
                writer.write(command)
                while (line := await reader.readline())[:4] != code + b" ":
                    if not line or line[:1] in b"45":
                        raise SystemExit(f"FTP: {line!r}")
            writer.write(b"QUIT\r\n")
            await reader.readline()
        counts["logins"] += 1


async def ask(control: str) -> None:
    while True:
        reader, writer = await asyncio.open_unix_connection(control)
        with contextlib.closing(writer):
            writer.write(b"GET /status HTTP/1.1\r\nHost: fastboot\r\nConnection: close\r\n\r\n")
            counts["questions"] += (await reader.read()).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.02)


async def main(address: str, control: str, sessions: int) -> None:
    tasks = [asyncio.create_task(each) for each in (ask(control), *(log_in(address) for _ in range(sessions)))]
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    ended = asyncio.create_task(end.wait())
    await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    print(json.dumps(counts))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

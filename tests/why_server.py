"""A server whose `why` believes that it is later than it is: python why_server.py CONFIG CLOCK, with the seconds
in the file CLOCK. Says "ready" on its standard output, arms the node that a line of its
input names, and says the token; ends with its input."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import fastboot


def decide(request: fastboot.BootRequest) -> fastboot.Verdict:
    if request.mac.endswith(":de:ad"):
        raise RuntimeError("not today")
    if request.mac.endswith(":ba:be"):
        return fastboot.IGNORE
    return None


async def main(config: str, clock: str) -> None:
    server = fastboot.Server(fastboot.load(Path(config)), decide=decide)
    server._why._wall = lambda: time.time() + float(Path(clock).read_text())
    async with server:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            (install,) = await server.arm([line.strip()])
            print("armed", install.token, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

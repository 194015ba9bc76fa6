"""The server that does only what no TFTP server can leave out: see bench/limit_loop.pyx.

python -m bench.limit ADDRESS FILE BLKSIZE WINDOWSIZE

It has as many threads as fastboot by default, for what they cost is in both figures then.
"""

import mmap
import os
import socket
import sys
import threading
from pathlib import Path

from bench.native import load

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def main(address: str, path: Path, blksize: int, windowsize: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        options = [b"blksize", str(blksize).encode(), b"tsize", str(len(data)).encode()]
        if windowsize > 1:
            options += [b"windowsize", str(windowsize).encode()]
        oack = b"\0\x06" + b"\0".join(options) + b"\0"
        how = {"blksize": blksize, "windowsize": windowsize}
        ports = [open_port(address) for _ in range(min(4, os.cpu_count() or 1))]
        threads = [
            threading.Thread(
                target=load("limit_loop").serve, args=(port.fileno(), memoryview(data), oack), kwargs=how
            )
            for port in ports
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def open_port(address: str) -> socket.socket:
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        port.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
    port.bind((address, 69))
    return port


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

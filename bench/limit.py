"""The server that does only what no TFTP server can leave out: see bench/limit_loop.pyx.

python -m bench.limit ADDRESS FILE BLKSIZE WINDOWSIZE
"""

import mmap
import socket
import sys
from pathlib import Path

from bench.native import load

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def main(address: str, path: Path, blksize: int, windowsize: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        options = [b"blksize", str(blksize).encode(), b"tsize", str(len(data)).encode()]
        if windowsize > 1:
            options += [b"windowsize", str(windowsize).encode()]
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            port.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        port.bind((address, 69))
        oack = b"\0\x06" + b"\0".join(options) + b"\0"
        load("limit_loop").serve(port.fileno(), memoryview(data), oack, blksize=blksize, windowsize=windowsize)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

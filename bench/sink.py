"""The server that answers for free: what a generator sustains against it is the generator's own limit.

python -m bench.sink relay|link
python -m bench.sink tftp BLKSIZE WINDOW OCTETS
"""

import socket
import sys
from ipaddress import IPv4Address

from bench.dhcp_servers import SERVER
from fastboot.lab._sinks import dhcp_sink, tftp_sink

ETH_P_IP = 0x0800
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def open_port(way: str) -> socket.socket:
    if way == "link":
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        port.bind(("bench1", ETH_P_IP))
    else:
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.bind(("", 69 if way == "tftp" else 67))
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        port.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
    return port


def main(way: str, *numbers: str) -> None:
    port = open_port(way)
    print("ready", flush=True)
    if way != "tftp":
        dhcp_sink(port.fileno(), frames=way == "link", server=int(IPv4Address(SERVER)), seconds=600)
        return
    blksize, window, octets = map(int, numbers)
    oack = ["blksize", str(blksize), *(["windowsize", str(window)] if window > 1 else ())]
    packet = b"\0\x06" + b"".join(word.encode() + b"\0" for word in oack)
    tftp_sink(port.fileno(), oack=packet, blksize=blksize, window=window, octets=octets, seconds=600)


if __name__ == "__main__":
    main(*sys.argv[1:])

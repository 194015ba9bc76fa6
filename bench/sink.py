"""The server that answers for free: what a generator sustains against it is the generator's own limit.

python -m bench.sink relay|link
"""

import socket
import sys
from ipaddress import IPv4Address

from bench.dhcp_servers import SERVER
from fastboot.lab._fleet import dhcp_sink

ETH_P_IP = 0x0800
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def main(frames: bool) -> None:
    if frames:
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        port.bind(("bench1", ETH_P_IP))
    else:
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.bind((SERVER, 67))
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        port.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    dhcp_sink(port.fileno(), frames=frames, server=int(IPv4Address(SERVER)), seconds=600)


if __name__ == "__main__":
    main(sys.argv[1] == "link")

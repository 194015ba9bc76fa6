"""The contract of the servers that answer for free: what a generator sustains against one is its own limit."""

def dhcp_sink(fd: int, *, frames: bool, server: int, seconds: float) -> int:
    """Answer DHCP clients whose first option is 53, as cheaply as the system calls allow, and keep nothing.

    Returns how many packets were answered.
    """

def tftp_sink(fd: int, *, oack: bytes, blksize: int, window: int, octets: int, seconds: float) -> int:
    """Answer every TFTP request by `oack` and every ACK by the blocks that follow it, of one file of so many
    octets.

    `blksize` and `window` are what `oack` grants. No timers, no memory of anybody: one recvmmsg, one sendmmsg, a
    window each as one datagram for UDP_SEGMENT. An empty datagram ends it. Returns how many packets were answered.
    Raises ValueError.
    """

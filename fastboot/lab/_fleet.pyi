"""The contract of the fleet's native part: simulated machines cheap enough to be the load of a benchmark."""

from typing import Any, final

@final
class DhcpClients:
    """Machines that ask for an address by DHCP, one socket for all of them; one thread uses it.

    `fd` stays the caller's: a datagram socket that is bound to a relay's address and connected to the server, or
    with `frames` a packet socket of a link. `discover` and `request` are whole DHCP messages, to which each
    machine adds its MAC, also in an option 61 of type 1, and its xid; into options 50 and 54 of `request` go the
    address and the server offered. Raises ValueError for what is no such message.
    """

    def __init__(self, fd: int, discover: bytes, request: bytes, *, frames: bool, giaddr: int = 0) -> None: ...
    def run(
        self,
        first: int,
        count: int,
        *,
        rate: float = 0.0,
        seconds: float = 3600.0,
        outstanding: int = 0,
        patience: float = 1.0,
    ) -> dict[str, Any]:
        """Switch on machines with the MACs from `first` (48 bits) on: `count` of them, or those of `seconds`.

        They come at `rate` a second whatever the server does, or as soon as fewer than `outstanding` wait, or at
        that rate while fewer wait. None repeats itself; one that is not bound `patience` seconds after it should
        have been switched on is lost.

        Returns counts: `begun`, `bound`, `refused` (by a NAK), `lost`, `twice` (their address is another's too),
        `strange` (packets that no machine waited for), `unsent`; `latencies`, an array of doubles: seconds from
        when a machine should have been switched on to its ACK, so that a generator which falls behind (`late`: by
        how many seconds at worst) flatters nobody; `seconds` until the last ACK. Raises ValueError where neither
        `rate` nor `outstanding` is given. Blocks, without the GIL.
        """

"""Time that no administrator and no NTP daemon can move.

Leases are counted on the clock that runs since the machine started, also while it is suspended. The wall clock
only bridges from one start of the machine to the next.
"""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The clocks of this machine. Tests set their own."""

    def __init__(self) -> None:
        # Under /proc in every container too, and there it is the host's, as is the clock.
        self.boot = boot_number(BOOT_ID.read_text(encoding="utf-8"))

    def now(self) -> int:
        """Return nanoseconds since the machine started (CLOCK_BOOTTIME)."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Return seconds since the epoch, as far as this machine knows."""
        return time.time()

    def zero(self) -> int:
        """Return what the wall clock says of the start of the machine, in milliseconds since the epoch."""
        return round(self.wall() * 1000) - self.now() // 1_000_000


def boot_number(boot_id: str) -> int:
    """Return a start of the machine as SQLite keeps it, a signed 64-bit number that is never 0."""
    return int.from_bytes(bytes.fromhex(boot_id.strip().replace("-", ""))[:8], signed=True) or 1

"""What the TFTP servers are compared at: who asks for what, over which network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`clients` are switched on over `spread` seconds; each asks for `missing` names that are not there, then
    fetches one file of `octets`, asking for `blksize` and `window`. `loss` is the share of blocks, and of
    acknowledgements after the first, that never arrive. `link` is the rate of the server's port, as tc spells it.
    `holds`: the clients stop in the middle. `cut`: the server's kernel cuts windows into packets; otherwise they
    cross the network whole, as they reach a network card that cuts them by itself (tx-udp-segmentation).
    """

    name: str
    says: str
    clients: int
    octets: int
    blksize: int = 1468
    window: int = 1
    missing: int = 0
    spread: float = 0
    loss: float = 0
    link: str | None = None
    holds: bool = False
    cut: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Which figures tell the servers apart."""
        if self.holds:
            return ("kib_each",)
        if self.missing:
            return ("cpu_us_each", "requests_per_s", "answer_p50_ms", "answer_p99_ms", "answer_worst_ms")
        ends = ("p50_s", "p99_s", "worst_s", "twice")
        if self.loss:
            return ("mb_per_s", "p50_times", "worst_times", *ends)
        return ("cpu_per_gb", "link_share" if self.link else "mb_per_s", *ends)

    @property
    def limited(self) -> bool:
        """Whether the limit has a figure here: it repeats nothing and knows one file."""
        return not (self.missing or self.loss or self.holds)

    def tiny(self) -> Scenario:
        """Return the same with a few clients, little to fetch and much loss: to see that it works."""
        few = {"clients": min(self.clients, 8), "octets": min(self.octets, 64 * KIB)}
        return replace(self, **few, spread=self.spread / 10, loss=self.loss * 10)


def _bulk(name: str, says: str, clients: int, megabytes: int, **more: object) -> Scenario:
    return Scenario(name=name, says=says, clients=clients, octets=megabytes * MIB, **more)  # type: ignore[arg-type]


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        _bulk("lockstep100", "100 clients in lockstep, blksize 1408", 100, 3, blksize=1408),
        _bulk("lockstep500", "500 clients in lockstep, blksize 1408", 500, 1, blksize=1408),
        _bulk("window4", "100 clients, window 4, as UEFI asks", 100, 5, window=4),
        _bulk("window16", "100 clients, window 16", 100, 10, window=16),
        _bulk("window64", "100 clients, window 64", 100, 10, window=64),
        _bulk("cut16", "100 clients, window 16, cut by the kernel", 100, 5, window=16, cut=True),
        _bulk("loss1", "50 clients in lockstep, 1 % loss", 50, 2, loss=0.01, cut=True),
        _bulk("loss4", "50 clients, window 4, 1 % loss", 50, 2, window=4, loss=0.01, cut=True),
        _bulk("loss16", "50 clients, window 16, 1 % loss", 50, 2, window=16, loss=0.01, cut=True),
        _bulk("link1", "500 clients in lockstep behind 1 Gb/s", 500, 1, blksize=1408, link="1gbit"),
        _bulk("link4", "300 clients, window 4, behind 1 Gb/s", 300, 2, window=4, link="1gbit"),
        _bulk("link16", "100 clients, window 16, behind 1 Gb/s", 100, 5, window=16, link="1gbit"),
        Scenario(
            name="storm",
            says="1,000 machines at once, each a dozen names that are missing and a small file",
            clients=1000, octets=16 * KIB, missing=12,
        ),
        Scenario(
            name="requests",
            says="5,000 requests a second: 1,000 machines in one second, four missing names and a small file each",
            clients=1000, octets=1 * KIB, missing=4, spread=1.0,
        ),
        _bulk("idle", "1,000 transfers that stand still", 1000, 5, window=4, holds=True),
    )
}  # fmt: skip

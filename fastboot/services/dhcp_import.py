"""Which leases of another server can be ours: what is here already wins, and the configuration decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from fastboot.config import Dhcp, NodeIndex, Subnet
from fastboot.model import Lease, Node
from fastboot.state.clock import Clock
from fastboot.state.foreign import ForeignLease
from fastboot.state.rows import LeaseRow

Client = tuple[Subnet, bytes]


class Sieve:
    """Judges leases of another server, one by one."""

    def __init__(
        self, settings: Dhcp, nodes: Sequence[Node], own: Iterable[IPv4Address], present: Iterable[Lease]
    ) -> None:
        """`own` are the addresses of this host, `present` the leases that are here."""
        self._subnets = settings.served()
        self._own = frozenset(own)
        self._fixed = {node.address: node for node in nodes if node.address}
        self._nodes = NodeIndex(nodes)
        self._holders: dict[IPv4Address, str] = {}
        self._clients: dict[Client, IPv4Address] = {}
        for lease in present:
            self._holders[lease.address] = "nobody's, after a conflict" if lease.state == "declined" else lease.mac
            if lease.state != "declined" and (subnet := self._subnet(lease.address)):
                self._clients[_client(subnet, lease.mac, lease.client_id)] = lease.address

    def sift(self, found: Iterable[ForeignLease]) -> tuple[list[ForeignLease], list[str]]:
        """Return those that can be taken, and why the others can not."""
        taken, reasons = [], []
        # Of two leases of one client the one that ends last is the one that it uses.
        for lease in sorted(found, key=lambda lease: -lease.expires):
            reason = next(self._reasons(lease), None)
            if reason is None:
                taken.append(lease)
                self._take(lease)
            else:
                reasons.append((lease.line, f"line {lease.line}: {lease.address} of {_mac(lease)}: {reason}"))
        return taken, [text for _, text in sorted(reasons)]

    def _take(self, lease: ForeignLease) -> None:
        subnet = self._subnet(lease.address)
        assert subnet is not None
        self._holders[lease.address] = _mac(lease)
        self._clients[_client(subnet, _mac(lease), lease.client_id)] = lease.address

    def _reasons(self, lease: ForeignLease) -> Iterator[str]:
        """Yield what is against a lease."""
        address, mac = lease.address, _mac(lease)
        subnet, holder = self._subnet(address), self._fixed.get(address)
        node = self._nodes.find(mac, lease.circuit_id, lease.remote_id)
        if subnet is None:
            yield "the address is in no subnet of the configuration"
            return
        network = subnet.network
        if address in (*self._own, subnet.gateway, network.network_address, network.broadcast_address):
            yield "no machine of the network may have the address"
        if holder is not None and holder is not node:
            yield f"the address is kept for {holder.name}"
        if node and node.address and node.address != address and self._subnet(node.address) is subnet:
            yield f"{node.name} has {node.address}"
        if holder is None and not any(address in pool for pool in subnet.pools):
            yield "the address is in no pool"
        if present := self._holders.get(address):
            yield "it is here already" if present == mac else f"the address is {present}"
        if (client := _client(subnet, mac, lease.client_id)) in self._clients:
            yield f"the machine has {self._clients[client]}"

    def _subnet(self, address: IPv4Address) -> Subnet | None:
        return next((subnet for subnet in self._subnets if address in subnet.network), None)


def row_of(lease: ForeignLease, clock: Clock) -> LeaseRow:
    """Return a lease as the responder takes it."""
    now, wall = clock.now(), clock.wall()
    expires = None if lease.expires == float("inf") else now + int((lease.expires - wall) * 1e9)
    return LeaseRow(
        int(lease.address), "bound", lease.htype, lease.mac, lease.client_id, lease.host, 0, lease.circuit_id,
        lease.remote_id, min(now, now + int((lease.starts - wall) * 1e9)), expires,
    )  # fmt: skip


def _mac(lease: ForeignLease) -> str:
    return lease.mac.hex(":")


def _client(subnet: Subnet, mac: str, client_id: bytes) -> Client:
    return subnet, client_id if subnet.identity == "client-id" and len(client_id) >= 2 else mac.encode()

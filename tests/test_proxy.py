"""The proxy, packet by packet: whom it tells what to boot, what it keeps silent about, what it learns."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from dhcpkit import (
    ACK,
    ALL,
    ANY,
    DECLINE,
    DISCOVER,
    INFORM,
    OFFER,
    RELEASE,
    REQUEST,
    SECOND,
    Reply,
    asking,
    message,
    number,
    unwrap,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from fastboot import config
from fastboot._core import DhcpMessage, parse_dhcp
from fastboot.boot.loaders import Loaders
from fastboot.boot.policy import Policy
from fastboot.model import IGNORE, BootRequest, Event, Node, Plan, Scope, Verdict
from fastboot.services.links import Link
from fastboot.services.proxy import ProxyService

VECTORS = Path(__file__).parent / "vectors" / "dhcp"
US, OTHER = "10.77.0.2", "10.77.0.1"
LOADERS = Loaders(
    {
        "bios": "boot/pxelinux.0",
        "uefi-x64": "boot/snponly.efi",
        "ipxe": "boot/boot.ipxe",
        "http-x64": "http://10.77.0.2/g.efi",
    }
)
EFI = (
    (60, b"PXEClient:Arch:00007:UNDI:003000"),
    (93, b"\0\7"),
    (94, b"\1\3\0"),
    (97, b"\0" + bytes(range(16))),
)
IPXE = (*EFI, (77, b"iPXE"), (175, b"\x13\x01\x01\x15\x01\x01"))
DOWNLOAD = bytes.fromhex("06 01 08 0a 04 00 50 58 45 ff")


def vector(name: str) -> bytes:
    lines = (VECTORS / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


PACKETS = {path.stem: vector(path.stem) for path in sorted(VECTORS.glob("*.hex"))}
each_vector = pytest.mark.parametrize("name", PACKETS)


@dataclass
class Stand:
    """A proxy without sockets, on a clock that is set forward."""

    nodes: tuple[Node, ...] = ()
    addresses: tuple[str, ...] = ("10.77.0.2/24",)
    loaders: Loaders = LOADERS
    subnets: tuple[config.Subnet, ...] = ()
    verdict: Verdict | None = None
    fetched_here: bool = True
    requests: list[BootRequest] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = time.monotonic_ns()
        settings = config.Dhcp(mode="proxy", subnets=self.subnets)
        whole = config.Config(interface="eth9", dhcp=settings)
        self.policy = Policy(whole, self.nodes, self.loaders)
        self.links = (Link("eth9", 9, bytes(6), 1500, tuple(map(IPv4Interface, self.addresses))),)
        self.service = ProxyService(
            settings, self.links, self.nodes, self.decide, self.told.append, fetched_here=self.fetched_here
        )

    def decide(self, request: BootRequest) -> Verdict:
        self.requests.append(request)
        return self.verdict or self.policy.decide(request)

    def send(
        self,
        packet: bytes,
        *,
        boot: bool = False,
        source: str = "0.0.0.0",
        destination: str | None = None,
        port: int = 68,
    ) -> list[Reply]:
        """Deliver a packet to port 67, or to port 4011; return what leaves."""
        to = number(destination) if destination else number(US) if boot else ALL
        self.service._proxy.receive(packet, int(boot), number(source), to, self.now, port)
        self.service.step()
        return [unwrap(reply) for reply in self.service._proxy.replies()]

    def one(self, packet: bytes, **more: Any) -> Reply:
        (reply,) = self.send(packet, **more)
        return reply

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]

    def last(self, kind: str) -> Event:
        return [event for event in self.told if event.kind == kind][-1]

    @property
    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.service.counters().items() if count}


@pytest.fixture
def stand() -> Stand:
    return Stand()


def name_of(file: bytes) -> bytes:
    return file.rstrip(b"\0")


def order(data: bytes) -> list[int]:
    codes, at = [], 240
    while data[at] != 255:
        codes.append(data[at])
        at += 1 if data[at] == 0 else 2 + data[at + 1]
    assert not any(data[at + 1 :]), "zero fill after END"
    return codes


# ---- the offer


def test_an_offer_to_the_letter(stand: Stand) -> None:
    """Issue 3, item 4; protocol-facts A4 and B10."""
    reply = stand.one(message(DISCOVER, xid=7, flags=0x8000, options=EFI))
    assert (reply.way, reply.destination, reply.port, reply.source) == ("all", "255.255.255.255", 68, US)
    found = reply.message
    assert (found.op, found.type, found.xid, found.secs, found.flags) == (2, OFFER, 7, 0, 0x8000)
    assert (found.ciaddr, found.yiaddr, found.giaddr) == (0, 0, 0)
    assert found.siaddr == number(US)
    assert name_of(found.file) == b"boot/snponly.efi"
    assert found.chaddr[:6].hex(":") == "52:54:00:aa:00:01"
    assert found.options == {
        53: b"\2",
        54: IPv4Address(US).packed,
        60: b"PXEClient",
        43: DOWNLOAD,
        66: US.encode(),
        67: b"boot/snponly.efi",
        97: b"\0" + bytes(range(16)),
    }
    assert order(reply.payload) == [53, 54, 67, 0, 60, 0, 43, 66, 97], "a PAD ends 60 and 67"
    assert len(reply.payload) >= 300
    other = BOOTP(reply.payload)
    assert (other.yiaddr, other.siaddr) == ("0.0.0.0", US)
    assert ("vendor_class_id", b"PXEClient") in other[DHCP].options


@each_vector
def test_every_client_gets_its_boot_file_or_silence(name: str, stand: Stand) -> None:
    """Real packets: an offer to whoever boots, of class PXE or HTTP, and nothing to anybody else."""
    packet = PACKETS[name]
    asked = parse_dhcp(packet)
    assert isinstance(asked, DhcpMessage)
    replies = stand.send(packet)
    class_ = asked.options.get(60, b"")
    boots = class_.startswith((b"PXEClient", b"HTTPClient"))
    if asked.type == DISCOVER and boots and "no_loader" not in stand.counters:
        (reply,) = replies
        found = reply.message
        assert (found.type, found.yiaddr, found.siaddr) == (OFFER, 0, number(US))
        http = class_.startswith(b"HTTPClient")
        assert found.options[60] == (b"HTTPClient" if http else b"PXEClient")
        assert (43 in found.options) is not http
        assert found.options.get(97) == asked.options.get(97)
        assert name_of(found.file) == found.options.get(67, b"")
        assert (67 in found.options) is not name.startswith("raspberry"), "these need no boot file"
        assert not {1, 3, 6, 50, 51, 52, 55, 57, 58, 59, 175} & set(found.options)
    else:
        assert replies == []
        silences = {"no_boot_client", "no_addresses_here", "other_server", "no_loader", "no_identity"}
        assert silences & set(stand.counters), "every silence has a name"


def test_ipxe_gets_the_script_and_looks_at_other_offers_too(stand: Stand) -> None:
    found = stand.one(message(DISCOVER, options=IPXE)).message
    assert name_of(found.file) == b"boot/boot.ipxe"
    assert 175 not in found.options, "no-pxedhcp is for who is alone"


def test_http_clients_get_a_url_in_an_offer_of_their_class() -> None:
    stand = Stand()
    options = ((60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, b"\0\x10"), (97, bytes(17)))
    found = stand.one(message(DISCOVER, options=options)).message
    assert (found.options[60], found.options[67]) == (b"HTTPClient", b"http://10.77.0.2/g.efi")
    assert not {43, 66} & set(found.options)
    poor = Stand(loaders=Loaders({"uefi-x64": "a.efi"}))
    assert poor.send(message(DISCOVER, options=options)) == []
    event = poor.last("dhcp.loader_warning")
    assert event.details["architecture"] == 16
    assert poor.send(message(DISCOVER, options=options)) == []
    assert poor.kinds() == ["dhcp.loader_warning", "dhcp.unanswered"], "told of once"
    assert len(poor.requests) == 1, "decided once"


@pytest.mark.parametrize("name", ["raspberry-pi3-discover", "raspberry-pi5-discover"])
def test_a_raspberry_pi_finds_its_words(name: str, stand: Stand) -> None:
    """Its ROM looks for a menu item of this name in option 43, and needs no boot file (protocol-facts B7)."""
    reply = stand.one(PACKETS[name])
    menu = bytes.fromhex("060103 0a0400505845 0914000011") + b"Raspberry Pi Boot" + b"\xff"
    assert (reply.message.options[43], reply.message.siaddr, reply.message.yiaddr) == (menu, number(US), 0)
    assert reply.message.options[60] == b"PXEClient" and 67 not in reply.message.options
    assert 0 not in order(reply.payload), "old firmware of the Pi 4 drops what holds a PAD"


def test_what_belongs_to_an_address_stays_out_of_the_offer() -> None:
    plan = Plan("a.efi", IPv4Address("10.77.0.9"), lease=3600, options=((1, b"\xff" * 4), (209, b"x.cfg")))
    found = Stand(verdict=plan).one(message(DISCOVER, options=EFI)).message
    assert found.yiaddr == 0 and not {1, 51, 58, 59} & set(found.options)
    assert found.options[209] == b"x.cfg"


def test_a_plan_may_name_another_file_server() -> None:
    plan = Plan("a.efi", next_server=IPv4Address("10.9.9.9"))
    found = Stand(verdict=plan).one(message(DISCOVER, options=EFI)).message
    assert (found.siaddr, found.options[66]) == (number("10.9.9.9"), b"10.9.9.9")
    assert found.options[54] == IPv4Address(US).packed


def test_a_node_gets_its_own_plan_and_ignored_ones_silence() -> None:
    node = Node("n1", ("52:54:00:aa:00:01",))
    stand = Stand(nodes=(node,))
    stand.one(message(DISCOVER, options=EFI))
    assert stand.requests[0].node == node
    stand.one(message(DISCOVER, "52:54:00:aa:00:02", options=EFI))
    stand.one(message(DISCOVER, "52:54:00:aa:00:03", options=EFI))
    assert len(stand.requests) == 2, "the second stranger meets the plan of the first"
    silent = Stand(verdict=IGNORE)
    assert silent.send(message(DISCOVER, options=EFI)) == []
    assert silent.counters["ignored"] == 1


def test_forgotten_and_once_plans_are_decided_again() -> None:
    stand = Stand()
    stand.one(message(DISCOVER, options=EFI))
    stand.service.forget()
    stand.one(message(DISCOVER, options=EFI))
    assert len(stand.requests) == 2
    once = Stand(verdict=Plan("a.efi", scope=Scope.ONCE))
    for _ in range(2):
        once.one(message(DISCOVER, options=EFI))
    assert len(once.requests) == 2


def test_the_offer_comes_from_the_network_of_the_machine() -> None:
    """Two networks on one wire: ours in the one that its address is of, as far as that is known."""
    stand = Stand(addresses=("10.77.0.2/24", "10.88.0.2/24"))
    assert stand.one(message(DISCOVER, options=EFI)).source == "10.77.0.2"
    stand.send(message(REQUEST, options=(*asking("10.88.0.50", "10.88.0.1"), *EFI)))
    reply = stand.one(message(DISCOVER, options=EFI))
    assert (reply.source, reply.message.siaddr) == ("10.88.0.2", number("10.88.0.2"))
    assert [str(request.network) for request in stand.requests] == ["10.77.0.0/24", "10.88.0.0/24"]


# ---- port 4011


def test_a_boot_server_request_is_answered_where_it_came_from(stand: Stand) -> None:
    """EDK2 asks from port 4011, iPXE from port 68; the reply goes there (protocol-facts A4)."""
    packet = message(REQUEST, xid=9, ciaddr="10.77.0.50", options=EFI)
    reply = stand.one(packet, boot=True, source="10.77.0.50", port=4011)
    assert (reply.way, reply.destination, reply.port, reply.source) == ("address", "10.77.0.50", 4011, US)
    found = reply.message
    assert (found.type, found.xid, found.yiaddr, found.ciaddr) == (ACK, 9, 0, number("10.77.0.50"))
    assert (found.siaddr, name_of(found.file)) == (number(US), b"boot/snponly.efi")
    assert found.options == {
        53: b"\5",
        54: IPv4Address(US).packed,
        60: b"PXEClient",
        43: DOWNLOAD,
        66: US.encode(),
        67: b"boot/snponly.efi",
        97: b"\0" + bytes(range(16)),
    }
    again = stand.one(message(INFORM, xid=10, ciaddr="10.77.0.50", options=EFI), boot=True, source="10.77.0.50")
    assert (again.message.type, again.port) == (ACK, 68)
    assert stand.kinds() == ["dhcp.ack", "dhcp.inform"]
    assert stand.told[0].details["address"] == "10.77.0.50"


def test_the_boot_item_that_is_asked_for_is_named(stand: Stand) -> None:
    """As iPXE asks: item of type 0x8000, layer 0, xid 0 (boot-clients.md, proxy-bios-pxelinux)."""
    item = bytes.fromhex("47 04 80 00 00 00 ff")
    packet = message(
        REQUEST, xid=0, ciaddr="10.77.0.50", options=(*asking("10.77.0.50", US)[:1], (43, item), *IPXE)
    )
    found = stand.one(packet, boot=True, source="10.77.0.50").message
    assert found.options[43] == bytes.fromhex("06 01 08 47 04 80 00 00 00 ff")
    assert found.xid == 0 and name_of(found.file) == b"boot/boot.ipxe"


def test_nobody_gets_credentials(stand: Stand) -> None:
    """The top bit of the layer asks for a signature (BIS), which a boot file would be no answer to."""
    item = bytes.fromhex("47 04 00 00 80 00 ff")
    packet = message(REQUEST, ciaddr="10.77.0.50", options=(*EFI, (43, item)))
    assert stand.send(packet, boot=True, source="10.77.0.50") == []
    assert stand.counters["credentials"] == 1


@pytest.mark.parametrize("item", ["47", "4704", "47058000000000ff", "0047ff", "470380000047048000"])
def test_a_malformed_boot_item_is_none(item: str, stand: Stand) -> None:
    packet = message(REQUEST, ciaddr="10.77.0.50", options=(*EFI, (43, bytes.fromhex(item))))
    assert stand.one(packet, boot=True, source="10.77.0.50").message.options[43] == DOWNLOAD


@pytest.mark.parametrize(
    ("packet", "source", "counter"),
    [
        (message(REQUEST, ciaddr="10.77.0.50"), "10.77.0.50", "no_boot_client"),
        (message(INFORM, ciaddr="10.77.0.50", options=((60, b"MSFT 5.0"),)), "10.77.0.50", "no_boot_client"),
        (message(INFORM, ciaddr="10.77.0.50", options=((60, b"PXEClien"),)), "10.77.0.50", "no_boot_client"),
        (message(REQUEST, options=(*asking("10.77.0.50", OTHER), *EFI)), "10.77.0.50", "other_server"),
        (message(DISCOVER, options=EFI), "10.77.0.50", "no_addresses_here"),
        (message(RELEASE, ciaddr="10.77.0.50", options=EFI), "10.77.0.50", "no_addresses_here"),
        (message(REQUEST, options=EFI), "0.0.0.0", "no_address_asked"),
    ],
)
def test_silence_on_port_4011(packet: bytes, source: str, counter: str, stand: Stand) -> None:
    assert stand.send(packet, boot=True, source=source) == []
    assert stand.counters[counter] == 1


# ---- silence on port 67


@pytest.mark.parametrize(
    ("packet", "counter"),
    [
        (message(DISCOVER), "no_boot_client"),
        (message(DISCOVER, options=((60, b"MSFT 5.0"),)), "no_boot_client"),
        (message(DISCOVER, options=((60, b"anaconda-Linux 6.1 x86_64"),)), "no_boot_client"),
        (message(DISCOVER, options=((60, b"U-Boot.armv8"),)), "no_boot_client"),
        (message(DISCOVER, options=((60, b"HTTPClien"),)), "no_boot_client"),
        (message(REQUEST, options=(*asking("10.77.0.50", OTHER), *EFI)), "other_server"),
        (message(REQUEST, options=(*asking("10.77.0.50", US), *EFI)), "no_addresses_here"),
        (message(REQUEST, options=(*asking("10.99.0.50"), *EFI)), "no_addresses_here"),
        (message(REQUEST, options=asking("10.99.0.50")), "no_boot_client"),
        (message(REQUEST, ciaddr="10.99.0.50", options=EFI), "no_addresses_here"),
        (message(INFORM, ciaddr="10.77.0.50", options=EFI), "no_addresses_here"),
        (message(DECLINE, options=(*asking("10.77.0.50", OTHER), *EFI)), "other_server"),
        (message(RELEASE, ciaddr="10.77.0.50", options=EFI), "no_addresses_here"),
        (message(0), "bootp"),
    ],
)
def test_silence_on_port_67(packet: bytes, counter: str, stand: Stand) -> None:
    """Above all no NAK: an address is right or wrong by the other server's word."""
    assert stand.send(packet) == []
    assert stand.counters[counter] == 1


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_nothing_that_comes_in_makes_it_give_or_refuse_an_address(data: st.DataObject) -> None:
    stand = STAND
    packet = bytearray(PACKETS[data.draw(st.sampled_from(sorted(PACKETS)))])
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(packet) - 1) | st.integers(min(236, len(packet) - 1), len(packet) - 1))
        packet[at] = data.draw(st.integers(0, 255))
    for reply in stand.send(bytes(packet), boot=data.draw(st.booleans()), source="10.77.0.50"):
        found = reply.message
        assert found.type in (OFFER, ACK) and found.yiaddr == 0
        assert not {1, 3, 6, 50, 51, 58, 59} & set(found.options)
        assert found.options[60] in (b"PXEClient", b"HTTPClient")


STAND = Stand()


# ---- relays


def test_a_relayed_machine_gets_its_offer_by_the_relay(stand: Stand) -> None:
    """RFC 3046: option 82 comes back whole and last; RFC 1542: the relay must broadcast: no address is there."""
    agent = bytes.fromhex("0106000400010203 0208000600112233aabb".replace(" ", ""))
    packet = message(DISCOVER, giaddr="10.50.0.1", options=(*EFI, (82, agent)))
    reply = stand.one(packet, source="10.50.0.1", destination=US, port=67)
    assert (reply.way, reply.destination, reply.port, reply.source) == ("address", "10.50.0.1", 67, US)
    found = reply.message
    assert (found.giaddr, found.flags, found.yiaddr) == (number("10.50.0.1"), 0x8000, 0)
    assert order(reply.payload)[-1] == 82 and found.options[82] == agent
    assert str(stand.requests[0].network) == "0.0.0.0/0", "no subnet of the configuration"
    known = Stand(subnets=(config.Subnet(network="10.50.0.0/24"),))
    known.one(packet, source="10.50.0.1", destination=US, port=67)
    assert str(known.requests[0].network) == "10.50.0.0/24"


def test_a_node_may_be_known_by_its_switch_port() -> None:
    node = Node("rack1", (), circuit_id=b"port 7", remote_id=b"switch 3")
    stand = Stand(nodes=(node,))
    agent = b"\x01\x06port 7\x02\x08switch 3"
    options = (*asking("10.50.0.9", OTHER), *EFI, (82, agent))
    packet = message(REQUEST, giaddr="10.50.0.1", options=options)
    stand.send(packet, source="10.50.0.1", destination=US, port=67)
    assert stand.service.node_of("52:54:00:aa:00:01") == node
    assert stand.service.node_of("52:54:00:aa:00:02") is None
    stand.service.reload(config.Dhcp(mode="proxy"), (Node("other", ("52:54:00:aa:00:09",)), node))
    assert stand.service.node_of("52:54:00:aa:00:01") == node
    assert stand.service.mac_of(IPv4Address("10.50.0.9")) == "52:54:00:aa:00:01"


def test_a_relay_may_stand_in_for_us() -> None:
    """RFC 5107: the client takes the relay for its server, so what it says of that server is meant for us."""
    stand = Stand()
    agent = b"\x0b\x04" + IPv4Address("10.50.0.1").packed
    packet = message(DISCOVER, giaddr="10.50.0.1", options=(*EFI, (82, agent)))
    found = stand.one(packet, source="10.50.0.1", destination=US, port=67).message
    assert (found.options[54], found.siaddr) == (IPv4Address("10.50.0.1").packed, number(US))


# ---- who is who


def test_who_has_an_address_is_learned_from_what_everybody_hears(stand: Stand) -> None:
    def mac_of(address: str) -> str | None:
        mac = stand.service._proxy.mac_of(number(address))
        return None if mac is None else mac.hex(":")

    one, two = "52:54:00:aa:00:01", "52:54:00:aa:00:02"
    assert mac_of("10.77.0.50") is None
    stand.send(message(REQUEST, one, options=(*asking("10.77.0.50", OTHER), *EFI)))
    assert mac_of("10.77.0.50") == one
    stand.send(message(REQUEST, two, options=asking("10.77.0.50")))  # INIT-REBOOT of an ordinary client
    assert mac_of("10.77.0.50") == two
    stand.send(message(REQUEST, one, ciaddr="10.77.0.51"))  # REBINDING
    assert mac_of("10.77.0.51") == one
    stand.send(message(INFORM, two, ciaddr="10.77.0.52"))
    assert (mac_of("10.77.0.50"), mac_of("10.77.0.52")) == (None, two)
    stand.send(message(REQUEST, one, ciaddr="10.77.0.53", options=EFI), boot=True, source="10.77.0.53")
    assert mac_of("10.77.0.53") == one
    stand.send(message(RELEASE, one, ciaddr="10.77.0.53"))
    assert mac_of("10.77.0.53") is None
    stand.send(message(DECLINE, two, options=asking("10.77.0.52", OTHER)))
    assert mac_of("10.77.0.52") is None
    stand.send(message(DISCOVER, one, options=((50, IPv4Address("10.77.0.60").packed), *EFI)))
    assert mac_of("10.77.0.60") is None, "a wish is no address"


def test_what_was_learned_is_bounded(stand: Stand) -> None:
    """Three times as many machines as there is room for: the oldest make room, in both indexes."""
    first, many = number("10.0.0.0"), 3 * 65_536
    packet = message(REQUEST, options=asking("10.0.0.0"))
    head, (middle, tail) = packet[:30], packet[34:].split(IPv4Address(first).packed)
    receive, look = stand.service._proxy.receive, stand.service._proxy.mac_of
    for at in range(many):
        machine = head + at.to_bytes(4) + middle + (first + at).to_bytes(4) + tail
        receive(machine, 0, ANY, ALL, stand.now)
    oldest = many - 65_536
    known = [look(first + at) is not None for at in (0, oldest - 1, oldest, many - 1)]
    assert known == [False, False, True, True]
    assert look(first + many - 1) == b"\x52\x54" + (many - 1).to_bytes(4)


def test_the_other_server_is_told_of_once_and_what_boots_each_time(stand: Stand) -> None:
    for xid in (1, 1, 2):
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *EFI)))
    stand.send(message(REQUEST, "52:54:00:aa:00:09", options=asking("10.77.0.70", OTHER)))
    assert stand.kinds() == ["dhcp.server_seen", "dhcp.request", "dhcp.request"], (
        "an ordinary client is nobody's news"
    )
    assert stand.told[0].details == {"interface": "eth9", "server": OTHER, "client": "52:54:00:aa:00:01"}
    assert stand.told[1].details == {"interface": "eth9", "address": "10.77.0.50", "server": OTHER}
    assert stand.told[1].mac == "52:54:00:aa:00:01"


# ---- firmware that ignores a proxy


def discover(stand: Stand, *gaps: float, options: tuple[tuple[int, bytes], ...] = EFI) -> None:
    for gap in gaps:
        stand.pass_time(gap)
        stand.one(message(DISCOVER, options=options))


EDK2 = (0, 4, 8, 16)
"""Seconds between its DISCOVERs."""


def test_two_offers_and_no_request_is_reported_once_with_the_settings(stand: Stand) -> None:
    stand.send(message(REQUEST, "52:54:00:aa:00:77", options=(*asking("10.77.0.70", OTHER), *EFI)))
    discover(stand, *EDK2, 4, 8, 16, 32)
    assert stand.kinds().count("dhcp.offers_ignored") == 1
    event = stand.last("dhcp.offers_ignored")
    assert event.mac == "52:54:00:aa:00:01"
    assert OTHER in str(event.details["text"]) and "ignores" in str(event.details["text"])
    for program in ("dnsmasq", "dhcpd", "kea", "windows"):
        assert US in str(event.details[program]) and "boot/snponly.efi" in str(event.details[program])
    assert event.details["loader"] == "boot/snponly.efi" and event.details["architecture"] == 7


def test_an_ipxe_that_ignores_us_is_given_its_script(stand: Stand) -> None:
    stand.send(message(REQUEST, "52:54:00:aa:00:77", options=(*asking("10.77.0.70", OTHER), *EFI)))
    discover(stand, *EDK2, options=IPXE)
    for program, words in (
        ("dnsmasq", "tag:fastboot-ipxe,boot/boot.ipxe"),
        ("dhcpd", 'filename "boot/boot.ipxe"'),
    ):
        text = str(stand.last("dhcp.offers_ignored").details[program])
        assert words in text and "client-arch" not in text and "pxe-system-type" not in text


def test_without_a_server_that_gives_addresses_there_is_nothing_to_paste(stand: Stand) -> None:
    discover(stand, *EDK2)
    event = stand.last("dhcp.offers_ignored")
    assert "no DHCP server was seen" in str(event.details["text"]) and "dnsmasq" not in event.details


def test_a_client_that_is_only_slow_is_not_reported(stand: Stand) -> None:
    """iPXE while dnsmasq pings: DISCOVERs at 0, 1, 3 and 7 s; then it takes its address and its file."""
    discover(stand, 0, 1, 2, 4, options=IPXE)
    for xid in range(5):
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *IPXE)))
        assert stand.service.mac_of(IPv4Address("10.77.0.50")) == "52:54:00:aa:00:01"
        discover(stand, 30, 1, options=IPXE)
    assert "dhcp.offers_ignored" not in stand.kinds()


def test_a_machine_switched_on_every_hour_is_not_reported(stand: Stand) -> None:
    discover(stand, *[3600] * 10)
    assert "dhcp.offers_ignored" not in stand.kinds()


def test_addresses_taken_and_no_file_asked_for_is_reported(stand: Stand) -> None:
    for xid in (1, 2):
        discover(stand, 60)
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *EFI)))
    assert "dhcp.offers_ignored" not in stand.kinds()
    discover(stand, 60)
    event = stand.last("dhcp.offers_ignored")
    assert (event.details["address"], event.details["server"]) == ("10.77.0.50", OTHER)
    assert "asked for no boot file" in str(event.details["text"])


def test_who_asks_port_4011_heeds(stand: Stand) -> None:
    for xid in range(4):
        discover(stand, 60)
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *EFI)))
        stand.one(message(REQUEST, ciaddr="10.77.0.50", options=EFI), boot=True, source="10.77.0.50")
    assert "dhcp.offers_ignored" not in stand.kinds()


@pytest.mark.parametrize(
    "settings",
    [
        {"fetched_here": False},
        {"verdict": Plan("http://10.9.9.9/a.efi")},
        {"verdict": Plan("a.efi", next_server=IPv4Address("10.9.9.9"))},
    ],
)
def test_files_from_elsewhere_can_not_be_missed(settings: dict[str, Any]) -> None:
    stand = Stand(**settings)  # its clock begins now: not when the tests are collected
    for xid in range(4):
        discover(stand, 60)
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *EFI)))
    assert "dhcp.offers_ignored" not in stand.kinds()


def test_files_that_are_here_again_can_be_missed_again() -> None:
    stand = Stand(verdict=Plan("a.efi", next_server=IPv4Address("10.9.9.9")))
    discover(stand, 0)
    stand.verdict = Plan("a.efi")
    stand.service.forget()
    discover(stand, *EDK2)
    assert "dhcp.offers_ignored" in stand.kinds()


def test_our_own_urls_can_be_missed() -> None:
    stand = Stand(verdict=Plan(f"http://{US}/boot/boot.ipxe"))
    for xid in range(4):
        discover(stand, 60)
        stand.send(message(REQUEST, xid=xid, options=(*asking("10.77.0.50", OTHER), *EFI)))
    assert "dhcp.offers_ignored" in stand.kinds()


def test_reported_again_only_after_it_had_heeded(stand: Stand) -> None:
    discover(stand, *EDK2, 32)
    stand.send(message(REQUEST, options=(*asking("10.77.0.50", OTHER), *EFI)))
    stand.service.mac_of(IPv4Address("10.77.0.50"))
    discover(stand, *EDK2)
    assert stand.kinds().count("dhcp.offers_ignored") == 2


def test_offers_are_told_of_once_a_boot(stand: Stand) -> None:
    discover(stand, 0, 1, 1)
    assert stand.kinds() == ["dhcp.offer"]
    details = stand.told[0].details
    assert details == {"interface": "eth9", "stage": "rom", "architecture": 7, "loader": "boot/snponly.efi"}
    discover(stand, 1, options=IPXE)
    assert stand.last("dhcp.offer").details["loader"] == "boot/boot.ipxe"
    discover(stand, 400, options=IPXE)
    assert stand.kinds() == ["dhcp.offer"] * 3

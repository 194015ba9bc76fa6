"""The DHCP codec: what clients really send, what is left of it when it is damaged, and replies to the letter."""

from __future__ import annotations

import json
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import ACK, DISCOVER, INFORM, NAK, OFFER, REQUEST, message, number
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP

from fastboot import config
from fastboot._core import RESPONDER_COUNTERS, DhcpMessage, emit_dhcp, parse_dhcp, udp_packet
from fastboot.model import Node, Plan
from fastboot.services.dhcp_plan import architecture_of, encode_plan, features_of, stage_of

VECTORS = Path(__file__).parent / "vectors" / "dhcp"
SERVER, CLIENT = number("10.77.0.1"), number("10.77.0.100")
SUBNET = config.Subnet(
    network="10.77.0.0/24", pools=(), gateway="10.77.0.254", dns=("10.77.0.1", "10.77.0.2"), domain="lab.test"
)


def vector(path: Path) -> bytes:
    """Return the packet of a file: hex, with lines that begin with # saying where it comes from."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "the first line says where the packet comes from"
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


PACKETS = {path.stem: vector(path) for path in sorted(VECTORS.glob("*.hex"))}
each_vector = pytest.mark.parametrize("name", PACKETS)


def parsed(data: bytes) -> DhcpMessage:
    found = parse_dhcp(data)
    assert isinstance(found, DhcpMessage), found
    return found


def plan_of(plan: Plan, subnet: config.Subnet = SUBNET, node: Node | None = None):  # type: ignore[no-untyped-def]
    return encode_plan(plan, subnet, IPv4Address(SERVER), node, 1)


def reply_to(request: bytes, plan: Plan | None = None, **more: int) -> bytes:
    given = {"type": OFFER, "server": SERVER, "yiaddr": CLIENT, "lease": 3600, **more}
    return emit_dhcp(request, plan=plan_of(plan or Plan(loader="pxelinux.0")), **given)


def order(data: bytes) -> list[int]:
    """Return the option codes of a packet in order, PADs included, up to END."""
    codes, at = [], 240
    while data[at] != 255:
        codes.append(data[at])
        at += 1 if data[at] == 0 else 2 + data[at + 1]
    assert not any(data[at + 1 :]), "zero fill after END"
    return codes


# ---- parsing what clients send


@each_vector
def test_vectors_parse_as_written_beside_them(name: str) -> None:
    expected = json.loads((VECTORS / f"{name}.json").read_text())
    found = parsed(PACKETS[name])
    assert found.xid == int(expected["xid"], 16)
    facts = {
        "type": found.type,
        "htype": found.htype,
        "chaddr": found.chaddr[: found.hlen].hex(":"),
        "flags": f"{found.flags:04x}",
        "secs": found.secs,
        "ciaddr": str(IPv4Address(found.ciaddr)),
        "giaddr": str(IPv4Address(found.giaddr)),
        "options": {str(code): value.hex() for code, value in sorted(found.options.items())},
    }
    assert facts == {key: value for key, value in expected.items() if key in facts}
    options = found.options
    stage = stage_of(options.get(60, b""), options.get(77, b""), options.get(175, b""))
    architecture = architecture_of(options.get(93, b""), options.get(60, b""))
    assert (stage.value, architecture) == (expected["stage"], expected["architecture"])


@each_vector
def test_scapy_reads_the_same(name: str) -> None:
    found, other = parsed(PACKETS[name]), BOOTP(PACKETS[name])
    assert (found.op, found.xid, found.flags, found.secs) == (other.op, other.xid, int(other.flags), other.secs)
    assert found.chaddr[: found.hlen] == bytes(other.chaddr)[: found.hlen]
    assert str(IPv4Address(found.ciaddr)) == other.ciaddr
    names = {option[0]: option[1:] for option in other[DHCP].options if isinstance(option, tuple)}
    assert names["message-type"] == (found.type,)
    for name_, code in (("requested_addr", 50), ("server_id", 54)):
        assert names.get(name_, (None,))[0] == (
            str(IPv4Address(found.options[code])) if code in found.options else None
        )
    assert bytes(names["param_req_list"][0] if 55 in found.options else ()) == found.options.get(55, b"")
    for name_, code in (("vendor_class_id", 60), ("client_id", 61), ("user_class", 77)):
        if code in found.options and name_ in names:
            assert names[name_][0] == found.options[code]


@each_vector
def test_every_prefix_is_dropped_or_whole(name: str) -> None:
    data = PACKETS[name]
    for n in range(len(data)):
        found = parse_dhcp(data[:n])
        assert isinstance(found, DhcpMessage) or found in RESPONDER_COUNTERS
        assert n >= 240 or found == "short"


@each_vector
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutations_fail_cleanly(name: str, data: st.DataObject) -> None:
    packet = bytearray(PACKETS[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(packet) - 1) | st.integers(min(236, len(packet) - 1), len(packet) - 1))
        packet[at] = data.draw(st.integers(0, 255))
    found = parse_dhcp(bytes(packet))
    if isinstance(found, DhcpMessage):
        assert sum(map(len, found.options.values())) <= len(packet)
        if found.op == 1 and found.type:
            parsed(reply_to(bytes(packet)))
    else:
        assert found in RESPONDER_COUNTERS


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=700))
def test_noise_after_the_cookie(noise: bytes) -> None:
    found = parse_dhcp(message(0)[:240] + noise)
    assert isinstance(found, DhcpMessage) or found in RESPONDER_COUNTERS


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short"),
        (message(DISCOVER)[:239], "short"),
        (bytes(2049), "long"),
        (bytes(300), "no_cookie"),
        (message(DISCOVER)[:2] + b"\x11" + message(DISCOVER)[3:], "bad_hlen"),
        (message(DISCOVER, options=((12, b"x"),))[:-1] + b"\x0c\x20abc", "option_overrun"),
        (message(DISCOVER)[:-1] + b"\x0c", "option_overrun"),
        (message(DISCOVER, options=((52, b"\x04"),)), "bad_overload"),
        (message(DISCOVER, options=((52, b"\x01\x01"),)), "bad_overload"),
        (message(DISCOVER, options=((52, b"\x01"), (52, b"\x02"))), "bad_overload"),
        (message(0, options=((53, b""),)), "bad_type"),
        (message(0, options=((53, b"\x01\x01"),)), "bad_type"),
        (message(DISCOVER, options=((50, b"\x0a\x4d\x00"),)), "bad_address_option"),
        (message(REQUEST, options=((54, b"\x0a\x4d\x00\x01\x02"),)), "bad_address_option"),
    ],
)
def test_every_fault_has_its_name(data: bytes, reason: str) -> None:
    assert parse_dhcp(data) == reason


def test_repeated_options_are_joined() -> None:
    """RFC 3396 section 7; the parts of a long option need not stand together."""
    found = parsed(message(DISCOVER, options=((12, b"ab"), (60, b"x"), (12, b"cd"), (12, b""), (12, b"e"))))
    assert found.options[12] == b"abcde"
    assert found.options[60] == b"x"


def test_overloaded_fields_are_read_in_order() -> None:
    """RFC 2131 section 4.1: options, then file, then sname; RFC 3396 joins across them; 52 counts only outside."""
    data = bytearray(message(DISCOVER, options=((52, b"\x03"), (12, b"a"))))
    data[108 : 108 + 9] = b"\x0c\x01b\x34\x01\x01\x3c\x00\xff"
    data[44 : 44 + 4] = b"\x0c\x01c\xff"
    found = parsed(bytes(data))
    assert found.options[12] == b"abc"
    assert found.options[60] == b""
    data[108 : 108 + 4] = b"\x0c\xff\xff\xff"
    assert parse_dhcp(bytes(data)) == "option_overrun"


def test_fields_are_no_options_unless_overloaded() -> None:
    data = bytearray(message(DISCOVER))
    data[108:128] = b"\x0c\xff" * 10
    assert parsed(bytes(data)).options == {53: b"\x01"}


def test_an_option_of_255_octets_and_pads() -> None:
    found = parsed(message(DISCOVER)[:-1] + b"\0\0\x3d\xff" + bytes(255) + b"\0\xff\x0c\x01x")
    assert found.options == {53: b"\x01", 61: bytes(255)}


# ---- what a request says


@pytest.mark.parametrize(
    ("codes", "vendor", "architecture"),
    [
        (b"\x00\x07", b"PXEClient:Arch:00000:UNDI:002001", 7),
        (b"\x00\x07\x00\x09", b"", 7),
        (b"", b"PXEClient:Arch:00007:UNDI:003016", 7),
        (b"\x07", b"PXEClient:Arch:00000:UNDI:002001", 0),
        (b"\x00\x07\x00", b"HTTPClient:Arch:00016:UNDI:003001", 16),
        (b"", b"PXEClient", None),
        (b"", b"PXEClient:Arch:99999:UNDI:003016", None),
        (b"", b"U-Boot.armv8", None),
        (b"\xff\xff", b"", 0xFFFF),
    ],
)
def test_architecture(codes: bytes, vendor: bytes, architecture: int | None) -> None:
    assert architecture_of(codes, vendor) == architecture


def test_ipxe_is_told_by_its_class_or_its_features() -> None:
    assert stage_of(b"PXEClient:Arch:00000:UNDI:002001", b"iPXE", b"").value == "ipxe"
    assert stage_of(b"PXEClient:Arch:00000:UNDI:002001", b"\x04iPXE", b"").value == "ipxe"
    assert stage_of(b"", b"", b"\xb1\x05\x01\x80\x86\x10\x0e").value == "ipxe"
    assert features_of(b"\x13\x01\x01\xb1\x05\x01\x80\x86\x10\x0e\x15\x01") == {0x13, 0xB1}


# ---- replies (protocol-facts.md B10)


def test_the_recipe() -> None:
    request = message(DISCOVER, xid=0xDEADBEEF, flags=0x8000, options=((97, bytes(17)), (61, b"\x01abcdef")))
    data = reply_to(request)
    found = parsed(data)
    assert (found.op, found.htype, found.hlen, found.xid, found.flags) == (2, 1, 6, 0xDEADBEEF, 0x8000)
    assert (found.secs, data[3], found.ciaddr, found.giaddr) == (0, 0, 0, 0)
    assert (found.yiaddr, found.siaddr) == (CLIENT, SERVER)
    assert found.chaddr == parsed(request).chaddr
    assert found.file == b"pxelinux.0".ljust(128, b"\0")
    assert found.sname == bytes(64)
    assert found.options == {
        53: b"\x02",
        54: IPv4Address(SERVER).packed,
        51: struct.pack("!I", 3600),
        58: struct.pack("!I", 1800),
        59: struct.pack("!I", 3150),
        1: bytes((255, 255, 255, 0)),
        3: IPv4Address("10.77.0.254").packed,
        6: bytes((10, 77, 0, 1, 10, 77, 0, 2)),
        15: b"lab.test",
        28: bytes((10, 77, 0, 255)),
        61: b"\x01abcdef",
        66: b"10.77.0.1",
        67: b"pxelinux.0",
        97: bytes(17),
    }
    codes = order(data)
    assert codes[0] == 53
    assert codes[codes.index(67) + 1] == 0, "a PAD after 67: ROMs read on"
    assert len(data) >= 300


def test_short_replies_are_filled_to_300() -> None:
    bare = config.Subnet(network="10.77.0.0/24")
    data = emit_dhcp(
        message(DISCOVER), type=OFFER, server=SERVER, yiaddr=CLIENT, lease=3600, plan=plan_of(Plan(), bare)
    )
    assert len(data) == 300
    found = parsed(data)
    assert found.options.keys() == {1, 28, 51, 53, 54, 58, 59}
    assert found.file == bytes(128)
    assert found.siaddr == SERVER, "GRUB and U-Boot take their file server from it"


def test_60_is_followed_by_a_pad_and_a_plan_replaces_what_the_subnet_says() -> None:
    plan = Plan(
        loader="http://10.77.0.1/g.efi", options=((60, b"HTTPClient"), (6, bytes((1, 1, 1, 1))), (3, bytes(4)))
    )
    data = reply_to(message(DISCOVER), plan)
    codes = order(data)
    assert codes[codes.index(60) + 1] == 0
    assert codes.count(6) == codes.count(3) == 1
    found = parsed(data)
    assert found.options[6] == bytes((1, 1, 1, 1))
    assert found.options[67] == b"http://10.77.0.1/g.efi"
    assert found.file.startswith(b"http://10.77.0.1/g.efi\0")


def test_only_what_is_asked_beside_what_must_be() -> None:
    found = parsed(reply_to(message(DISCOVER, options=((55, b"\x06\x06\x00\xff\x0f\x77"),))))
    assert found.options.keys() == {53, 54, 51, 58, 59, 1, 3, 66, 67, 6, 15}
    found = parsed(reply_to(message(DISCOVER, options=((55, b""),))))
    assert found.options.keys() == {53, 54, 51, 58, 59, 1, 3, 66, 67}


def test_asked_options_come_in_the_order_of_the_request() -> None:
    codes = order(reply_to(message(DISCOVER, options=((55, bytes((28, 15, 6))),))))
    assert [code for code in codes if code in (6, 15, 28)] == [28, 15, 6]


def test_a_node_learns_its_name() -> None:
    data = emit_dhcp(
        message(REQUEST), type=ACK, server=SERVER, yiaddr=CLIENT, lease=60,
        plan=plan_of(Plan(), node=Node("node07", ("52:54:00:aa:00:01",))),
    )  # fmt: skip
    assert parsed(data).options[12] == b"node07"


def test_long_options_are_split() -> None:
    """RFC 3396 section 6."""
    value = bytes(range(256)) + bytes(100)
    data = reply_to(message(DISCOVER, options=((57, b"\x05\xc0"),)), Plan(options=((43, value),)))
    assert parsed(data).options[43] == value
    assert order(data).count(43) == 2


@pytest.mark.parametrize(
    ("asked", "mtu", "limit"),
    [
        (None, 1500, 548),
        (300, 1500, 548),
        (576, 1500, 548),
        (1472, 1500, 1444),
        (65280, 1500, 1472),
        (1500, 1000, 972),
    ],
)
def test_the_size_a_client_takes(asked: int | None, mtu: int, limit: int) -> None:
    options = () if asked is None else ((57, struct.pack("!H", asked)),)
    plan = Plan(loader="l" * 100, options=tuple((code, b"v" * 40) for code in range(128, 168)))
    data = reply_to(message(DISCOVER, options=options), plan, mtu=mtu)
    assert limit - 50 < len(data) <= limit
    assert parsed(data).options.keys() >= {53, 54, 51, 1, 67}


def test_what_must_be_said_stays_when_room_is_short() -> None:
    """53, 54, 51, 1 and 67 before all; 82 whole or not at all (RFC 3046 section 2.1)."""
    plan = Plan(loader="http://" + "h" * 240, options=((43, b"v" * 200),))
    request = message(DISCOVER, giaddr="10.77.0.9", options=((82, b"r" * 200), (61, b"\x00" + b"c" * 90)))
    found = parsed(reply_to(request, plan))
    assert found.options.keys() >= {53, 54, 51, 1, 67}
    assert found.options[67] == plan.loader.encode()  # type: ignore[union-attr]
    assert 82 not in found.options
    request = message(DISCOVER, giaddr="10.77.0.9", options=((82, b"r" * 30), (61, b"\x00" + b"c" * 90)))
    data = reply_to(request, plan)
    assert parsed(data).options[82] == b"r" * 30
    assert order(data)[-1] == 82


def test_82_is_the_last_and_only_for_relays() -> None:
    options = ((82, b"\x01\x04abcd"), (60, b"x"))
    assert order(reply_to(message(DISCOVER, giaddr="10.77.0.9", options=options)))[-1] == 82
    assert 82 not in parsed(reply_to(message(DISCOVER, options=options))).options


def test_a_nak_says_no_and_nothing_else() -> None:
    request = message(REQUEST, ciaddr="10.77.0.5", options=((61, b"\x01id"), (55, b"\x01\x03\x06")))
    data = emit_dhcp(request, type=NAK, server=SERVER, message=b"no")
    found = parsed(data)
    assert (found.ciaddr, found.yiaddr, found.siaddr) == (0, 0, 0)
    assert found.file == bytes(128)
    assert found.options == {53: b"\x06", 54: IPv4Address(SERVER).packed, 56: b"no", 61: b"\x01id"}
    assert not found.flags
    relayed = parsed(emit_dhcp(message(REQUEST, giaddr="10.77.0.9"), type=NAK, server=SERVER, message=b"no"))
    assert relayed.flags == 0x8000, "RFC 2131 section 4.3.2"


def test_an_inform_gets_no_lease() -> None:
    found = parsed(reply_to(message(INFORM, ciaddr="10.77.0.5"), type=ACK, yiaddr=0, lease=0))
    assert (found.ciaddr, found.yiaddr) == (number("10.77.0.5"), 0)
    assert not found.options.keys() & {51, 58, 59}


def test_an_infinite_lease_has_no_timers() -> None:
    found = parsed(reply_to(message(REQUEST), type=ACK, lease=0xFFFFFFFF))
    assert found.options[51] == b"\xff" * 4
    assert not found.options.keys() & {58, 59}


@pytest.mark.parametrize("client", [bytes(17), b"\0" + b"\xff" * 16, b"\1" + bytes(16), bytes(16), bytes(18), b""])
def test_97_is_echoed_where_it_is_one(client: bytes) -> None:
    found = parsed(reply_to(message(DISCOVER, options=((97, client),))))
    assert found.options.get(97) == (client if len(client) == 17 and client[0] == 0 else None)


@each_vector
def test_scapy_reads_every_reply(name: str) -> None:
    request = PACKETS[name]
    if parsed(request).op != 1:
        return
    data = reply_to(request)
    other = BOOTP(data)
    options = {option[0]: option[1:] for option in other[DHCP].options if isinstance(option, tuple)}
    assert options["message-type"] == (OFFER,)
    assert options["server_id"] == ("10.77.0.1",)
    assert options["subnet_mask"] == ("255.255.255.0",)
    assert options["lease_time"] == (3600,)
    assert options["router"] == ("10.77.0.254",)
    assert options["boot-file-name"] == (b"pxelinux.0",)
    assert other.siaddr == "10.77.0.1" and other.file.rstrip(b"\0") == b"pxelinux.0"
    assert len(data) <= 1472
    assert all(value for value in parsed(data).options.values()), "no option without octets"
    assert not parsed(data).options.keys() & {13, 50, 52, 55, 57}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 254).filter(lambda code: code not in (52, 53, 50, 54)), st.binary(max_size=255))
    )
)
def test_scapy_writes_and_we_read(options: list[tuple[int, bytes]]) -> None:
    body = b"".join(bytes((code, len(value))) + value for code, value in options)
    data = bytes(BOOTP(op=1, chaddr=b"\x52\x54\0\0\0\1", xid=7) / DHCP(options=[("message-type", 1)])) + body
    if len(data) > 2048:
        return
    found = parsed(data)
    expected: dict[int, bytes] = {53: b"\x01"}
    for code, value in options:
        expected[code] = expected.get(code, b"") + value
    assert found.options == expected


@given(st.binary(max_size=1472), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_checksums_of_frames(payload: bytes, source: int, destination: int) -> None:
    data = udp_packet(source, 67, destination, 68, payload)
    packet = IP(data)
    sums = packet.chksum, packet[UDP].chksum
    del packet.chksum, packet[UDP].chksum
    again = IP(bytes(packet))
    assert sums == (again.chksum, again[UDP].chksum)
    assert bytes(again) == data


# ---- plans


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (Plan(options=((54, b"1234"),)), "54"),
        (Plan(options=((52, b"\x01"),)), "52"),
        (Plan(options=((13, b"\0\x01"),)), "13"),
        (Plan(options=((43, b""),)), "43"),
        (Plan(options=((256, b"x"),)), "256"),
        (Plan(loader="l" * 128), "loader"),
        (Plan(loader="http://" + "l" * 250), "loader"),
        (Plan(lease=59), "lease"),
    ],
)
def test_plans_that_can_not_be_sent(plan: Plan, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        plan_of(plan)


def test_option_60_of_pxe_never_leaves_without_43() -> None:
    """EDK2 would turn to port 4011, and a server of addresses has nobody there."""
    plain = bytes.fromhex("060108 0a0400505845 ff")
    trapped = Plan(loader="a.efi", options=((60, b"PXEClient"),))
    request = PACKETS["edk2-pxe-discover"]
    assert parsed(reply_to(request, trapped)).options[43] == plain
    own = Plan(loader="a.efi", options=((60, b"PXEClient"), (43, b"\x06\x01\x00\xff")))
    assert parsed(reply_to(request, own)).options[43] == b"\x06\x01\x00\xff"
    asked = Plan(loader="a.efi", asked=((60, b"PXEClient"),))
    assert parsed(reply_to(request, asked)).options[43] == plain
    for options in ((), ((60, b"HTTPClient"),)):
        assert 43 not in parsed(reply_to(request, Plan(loader="a.efi", options=options))).options


def test_a_long_url_is_in_67_only() -> None:
    found = parsed(reply_to(message(DISCOVER), Plan(loader="http://h/" + "l" * 200)))
    assert found.file == bytes(128)
    assert len(found.options[67]) == 209

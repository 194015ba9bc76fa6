"""Leases of other servers: their files, read to the letter, and which of them can be ours."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import Wire, need, wires
from hypothesis import given
from hypothesis import strategies as st

from fastboot import config
from fastboot.model import Lease, Node
from fastboot.services.dhcp_import import Sieve, row_of
from fastboot.state.foreign import ForeignError, ForeignLease, ForeignLeases, read

NOW = 1.7e9
DHCPD = shutil.which("dhcpd", path=f"{Path(__file__).parent.parent}/.cache/debian/usr/sbin:/usr/sbin")


def dhcpd(
    body: str, address: str = "10.77.0.100", more: str = "hardware ethernet 52:54:00:aa:00:01;"
) -> ForeignLeases:
    return read(f"lease {address} {{\n  {body}\n  {more}\n}}\n".encode("latin-1"), NOW)


def one(found: ForeignLeases) -> ForeignLease:
    assert found.faults == [] and not found.passed
    (lease,) = found.leases
    return lease


# ---- ISC dhcpd


def test_a_record_as_dhcpd_writes_it() -> None:
    found = read(
        rb"""# The format of this file is documented in the dhcpd.leases(5) manual page.
# This lease file was written by isc-dhcp-4.4.3-P1

# authoring-byte-order entry is generated, DO NOT DELETE
authoring-byte-order little-endian;

server-duid "\000\001\000\0010\340RT\000\252\000\001";

lease 10.77.0.100 {
  starts 3 2023/11/14 10:00:00;
  ends 3 2033/11/15 22:13:20;
  tstp 3 2033/11/15 22:13:20;
  cltt 3 2023/11/15 10:00:00;
  binding state active;
  next binding state free;
  rewind binding state free;
  hardware ethernet 52:54:00:aa:00:01;
  uid "\001RT\000\252\000\001";
  set vendor-class-identifier = "PXEClient:Arch:00000:UNDI:002001";
  option agent.circuit-id 0:4:0:1:0:7;
  option agent.remote-id "switch 7";
  client-hostname "node-1";
  on expiry or release {
    if (not (leased-address = "x")) { execute ("/bin/true", "};"); }
  }
}
""",
        NOW,
    )
    assert one(found) == ForeignLease(
        9, IPv4Address("10.77.0.100"), 1, bytes.fromhex("525400aa0001"), bytes.fromhex("01525400aa0001"),
        b"node-1", bytes.fromhex("000400010007"), b"switch 7", datetime(2023, 11, 14, 10, tzinfo=UTC).timestamp(),
        datetime(2033, 11, 15, 22, 13, 20, tzinfo=UTC).timestamp(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "seconds"),
    [
        ("never", math.inf),
        ("epoch 1800000000", 1.8e9),
        ("epoch 1800000000; # Fri Jan 15 08:00:00 2027\n  cltt epoch 1", 1.8e9),
        ("5 2027/01/15 08:00:00", 1.8e9),
        ("5 2027/1/15 8:0:0", 1.8e9),
        ("5 2027/01/15 08:00:00 -3600", 1.8e9 - 3600),
        ("5 2027/01/15 07:59:60", 1.8e9 - 1),
    ],
)
def test_dates(ends: str, seconds: float) -> None:
    assert one(dhcpd(f"ends {ends};")).expires == seconds


@pytest.mark.parametrize(
    ("uid", "octets"),
    [
        (r'"\001RT\000\252\000\001"', bytes.fromhex("01525400aa0001")),
        (r'"\0018"', b"\x018"),
        (r'"\0"', b"\0"),
        (r'"a\"b\\c;}"', b'a"b\\c;}'),
        (r'"\t\r\n\b\q\x41\x7e"', b"\t\r\n\bqA~"),
        ('"ff#no comment"', b"ff#no comment"),
        ('"\xff"', b"\xff"),
        ("01:52:54:0:aa:0:1", bytes.fromhex("01525400aa0001")),
        ("ff", b"\xff"),
        ('""', b""),
    ],
)
def test_client_identifiers(uid: str, octets: bytes) -> None:
    assert one(dhcpd(f"ends never; uid {uid};")).client_id == octets


@pytest.mark.parametrize(
    ("hardware", "kind", "octets"),
    [
        ("ethernet 52:54:0:AA:0:1", 1, "525400aa0001"),
        ("infiniband 80:00:02:08:fe:80", 32, "80000208fe80"),
        ("token-ring 1:2", 6, "0102"),
        ("unknown-27 01", 27, "01"),
    ],
)
def test_hardware(hardware: str, kind: int, octets: str) -> None:
    lease = one(dhcpd("ends never;", more=f"hardware {hardware};"))
    assert (lease.htype, lease.mac.hex()) == (kind, octets)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("binding state free;", "binding state free"),
        ("binding state abandoned;", "binding state abandoned"),
        ("binding state backup;", "binding state backup"),
        ("abandoned;", "binding state abandoned"),
        ("binding state active; ends epoch 1600000000;", "expired"),
    ],
)
def test_what_is_no_lease_now_is_passed_over(state: str, reason: str) -> None:
    found = dhcpd(f"ends never; {state}")
    assert (found.leases, found.faults, found.passed) == ([], [], {reason: 1})


def test_the_last_record_of_an_address_counts() -> None:
    record = "lease 10.77.0.%d {{ ends %s; binding state %s; hardware ethernet 52:54:00:aa:00:%02x; }}\n".replace(
        "{{", "{"
    ).replace("}}", "}")
    text = (
        record % (1, "epoch 1800000000", "active", 1)
        + record % (2, "epoch 1800000000", "active", 2)
        + record % (1, "epoch 1900000000", "active", 3)
        + record % (2, "epoch 1600000000", "free", 2)
        + record % (3, "epoch 1600000000", "free", 4)
        + record % (3, "never", "active", 4)
    )
    found = read(text.encode(), NOW)
    assert [(str(lease.address), lease.mac[5], lease.line) for lease in found.leases] == [
        ("10.77.0.1", 3, 3),
        ("10.77.0.3", 4, 6),
    ]
    assert found.passed == {"binding state free": 1}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("lease 10.77.0.300 {\n ends never;\n}", "10.77.0.300"),
        ("lease 10.77.0.7 {\n ends never;\n", "is cut off"),
        ("lease 10.77.0.7 {\n ends nev", "is cut off"),
        ('lease 10.77.0.7 {\n ends never;\n uid "\\001;\n}', "quotation mark"),
        ("lease 10.77.0.7 {\n ends soon;\n hardware ethernet 1:2;\n}", "'soon' is no date"),
        ("lease 10.77.0.7 {\n ends 1 2024/13/45 1:2:3;\n hardware ethernet 1:2;\n}", "month"),
        ("lease 10.77.0.7 {\n ends 1 2024/1/1;\n hardware ethernet 1:2;\n}", "is no date"),
        ("lease 10.77.0.7 {\n hardware ethernet 1:2;\n}", "says nothing of ends"),
        ("lease 10.77.0.7 {\n ends never;\n}", "says nothing of hardware"),
        ("lease 10.77.0.7 {\n ends never;\n hardware ethernet;\n}", "no hardware address"),
        ("lease 10.77.0.7 {\n ends never;\n hardware ethernet 1:2g;\n}", "2g"),
        ("lease 10.77.0.7 {\n ends never;\n hardware ethernet 1:222;\n}", "range"),
        ("lease 10.77.0.7 {\n ends never;\n hardware pigeon 1:2;\n}", "'pigeon' is no type of hardware"),
        ("lease 10.77.0.7 {\n ends never;\n uid 1 2;\n hardware ethernet 1:2;\n}", "1 2 is more than one value"),
        ("lease 10.77.0.7 10.77.0.8 {\n ends never;\n}", "more than an address"),
        ("lease 10.77.0.7 {" + "x {" * 50, "too many blocks"),
        ("lease 10.77.0.7 {\n hardware ethernet " + "1:" * 16 + "1; ends never;\n}", "longer than"),
    ],
)
def test_a_broken_record_is_told_with_its_line_and_breaks_no_other(broken: str, said: str) -> None:
    good = "lease 10.77.0.%d {\n  ends never;\n  hardware ethernet 52:54:00:aa:00:01;\n}\n"
    found = read((good % 1 + "# more\n" + broken + "\n" + good % 2).encode(), NOW)
    assert [str(lease.address) for lease in found.leases] == ["10.77.0.1", "10.77.0.2"]
    (fault,) = found.faults
    assert fault.startswith("line 6: ") and said in fault


def test_other_declarations_are_passed() -> None:
    text = b"""
failover peer "x" state {
  my state normal at 5 2027/01/15 08:00:00;
}
host node { hardware ethernet 52:54:00:aa:00:09; fixed-address 10.77.0.9; }
lease 10.77.0.1 { ends never; hardware ethernet 52:54:00:aa:00:01; }
group "x" { lease-time 5; }
"""
    assert one(read(text, NOW)).line == 6


# ---- dnsmasq


def test_lines_as_dnsmasq_writes_them() -> None:
    found = read(
        b"1800000000 52:54:00:aa:00:01 10.77.0.50 node-1 01:52:54:00:aa:00:01\n"
        b"0 52:54:00:aa:00:02 10.77.0.51 * *\n"
        b"1800000000 20-80:00:02:08:fe:80 10.77.0.52 * ff:00\n"
        b"1600000000 52:54:00:aa:00:03 10.77.0.53 * *\n"
        b"duid 00:01:00:01:2c:aa:bb:cc:52:54:00:aa:00:00\n"
        b"1800000000 11184810 fd00::1234 node-1 00:01:00:01\n",
        NOW,
    )
    first, second, third = found.leases
    mac = bytes.fromhex("525400aa0001")
    address = IPv4Address("10.77.0.50")
    assert first == ForeignLease(1, address, 1, mac, b"\1" + mac, b"node-1", b"", b"", NOW, 1.8e9)
    assert (second.line, second.expires, second.host, second.client_id) == (2, math.inf, b"", b"")
    assert (third.htype, third.mac.hex(), third.client_id) == (32, "80000208fe80", b"\xff\0")
    assert (found.faults, found.passed) == ([], {"expired": 1})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1800000000 52:54:00:aa:00:01 10.77.0.50 node-1", "five words"),
        ("1800000000 52:54:00:aa:00:01 10.77.0.500 * *", "10.77.0.500"),
        ("1800000000 52:54:00:aa:00:0x 10.77.0.50 * *", "0x"),
        ("18000000x0 52:54:00:aa:00:01 10.77.0.50 * *", "18000000x0"),
        ("1" * 400 + " 52:54:00:aa:00:01 10.77.0.50 * *", "too large"),
    ],
)
def test_a_broken_line_is_told_and_breaks_no_other(line: str, said: str) -> None:
    good = "1800000000 52:54:00:aa:00:0%d 10.77.0.%d * *\n"
    found = read((good % (1, 1) + line + "\n\n" + good % (2, 2)).encode(), NOW)
    assert [str(lease.address) for lease in found.leases] == ["10.77.0.1", "10.77.0.2"]
    (fault,) = found.faults
    assert fault.startswith("line 2: ") and said in fault and len(fault) < 400


# ---- any file


@pytest.mark.parametrize("data", [b"<html>", b"\0" * 4096, b"lease", b"x" * 100_000, b"SQLite format 3\0"])
def test_a_file_of_no_kind_is_named(data: bytes) -> None:
    with pytest.raises(ForeignError, match="no lease file"):
        read(data, NOW)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# The format of this file is documented\n"])
def test_an_empty_file_has_no_leases(data: bytes) -> None:
    assert read(data, NOW) == ForeignLeases()


@given(
    st.binary(max_size=400), st.sampled_from(["lease 10.0.0.1 {\n", 'lease 10.0.0.1 {\n uid "', "1 2 10.0.0.1 "])
)
def test_rubbish_is_a_fault_or_nothing(rubbish: bytes, head: str) -> None:
    read(head.encode() + rubbish, NOW)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_with_octets_gone_wrong(seed: int) -> None:
    chance = random.Random(seed)
    record = b'lease 10.77.0.1 {\n  ends never;\n  uid "\\001";\n  hardware ethernet 52:54:00:aa:00:01;\n}\n'
    data = bytearray(record * 20)
    for _ in range(30):
        data[chance.randrange(50, len(data))] = chance.randrange(256)
    read(bytes(data), NOW)


@given(
    st.integers(1, 10**6), st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=16),
    st.binary(max_size=255), st.binary(max_size=64), st.floats(0, 8e9), st.floats(0, 8e9) | st.just(math.inf),
)  # fmt: skip
def test_what_is_sent_to_the_server_arrives(
    line: int, address: int, htype: int, mac: bytes, ids: bytes, host: bytes, starts: float, expires: float
) -> None:
    lease = ForeignLease(line, IPv4Address(address), htype, mac, ids, host, ids, b"", starts, expires)
    assert ForeignLease.of_facts(lease.facts()) == lease


@pytest.mark.parametrize(
    "facts",
    [
        [], [1], {}, "x", None, [1, "10.0.0.1", 1, "", "", "", "", "", "soon", None],
        [1, "10.0.0.1", 256, "", "", "", "", "", 1, None], [1, "10.0.0.1", 1, "00" * 17, "", "", "", "", 1, None],
        [1, "10.0.0.1", 1, "zz", "", "", "", "", 1, None], [1, "10.0.0.1", 1, "", "", "", "", 1, None],
        [1, "10.0.0.300", 1, "", "", "", "", "", 1, None], [1, "10.0.0.1", 1, "", "", "", "", "", 1, "x"],
        [1, "10.0.0.1", 1, "", "", "", "", "", 1, float("nan")],
        [1, "10.0.0.1", 1, "", "", "", "", "", -1e300, None],
    ],
)  # fmt: skip
def test_nonsense_sent_to_the_server_is_refused(facts: list[object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ForeignLease.of_facts(facts)


# ---- which can be ours


def foreign(address: str, mac: str, line: int = 1, expires: float = 1.8e9, client_id: bytes = b"") -> ForeignLease:
    hardware = bytes.fromhex(mac.replace(":", ""))
    return ForeignLease(line, IPv4Address(address), 1, hardware, client_id, b"", b"", b"", NOW, expires)


A, B, C = (f"52:54:00:aa:00:0{at}" for at in (1, 2, 3))
LAB = config.Dhcp(
    subnets=(
        config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.199",), gateway="10.77.0.254"),
        config.Subnet(network="10.78.0.0/24", pools=("10.78.0.100-10.78.0.199",)),
    )
)  # fmt: skip
NODES = (Node(name="node1", macs=(A,), address=IPv4Address("10.77.0.11")), Node(name="node2", macs=(B,)))


@pytest.mark.parametrize(
    ("lease", "reason"),
    [
        (foreign("192.168.1.1", C), "in no subnet"),
        (foreign("10.77.0.1", C), "no machine of the network may have"),
        (foreign("10.77.0.254", C), "no machine of the network may have"),
        (foreign("10.77.0.255", C), "no machine of the network may have"),
        (foreign("10.77.0.50", C), "in no pool"),
        (foreign("10.77.0.11", C), "kept for node1"),
        (foreign("10.77.0.150", A), "node1 has 10.77.0.11"),
        (foreign("10.77.0.120", C), f"the address is {B}"),
        (foreign("10.77.0.121", C), "the address is nobody's, after a conflict"),
        (foreign("10.77.0.120", B), "it is here already"),
        (foreign("10.77.0.122", B), "the machine has 10.77.0.120"),
        (foreign("10.77.0.100", C), None),
        (foreign("10.77.0.11", A), None),
        (foreign("10.78.0.100", A), None),
        (foreign("10.78.0.100", B), None),
    ],
)
def test_what_is_here_wins_and_the_configuration_decides(lease: ForeignLease, reason: str | None) -> None:
    present = [
        Lease(IPv4Address("10.77.0.120"), B, "bound", NOW, NOW + 100),
        Lease(IPv4Address("10.77.0.121"), "", "declined", NOW, NOW + 100),
    ]
    taken, left_out = Sieve(LAB, NODES, [IPv4Address("10.77.0.1")], present).sift([lease])
    if reason is None:
        assert (taken, left_out) == ([lease], [])
    else:
        assert taken == [] and reason in left_out[0]
        assert left_out[0].startswith(f"line 1: {lease.address} of {lease.mac.hex(':')}: ")


def test_of_two_leases_of_one_machine_the_last_to_end_is_taken() -> None:
    found = [
        foreign("10.77.0.100", C, 1, 1.8e9),
        foreign("10.77.0.101", C, 2, math.inf),
        foreign("10.78.0.100", C, 3),
    ]
    taken, left_out = Sieve(LAB, (), (), ()).sift(found)
    assert {str(lease.address) for lease in taken} == {"10.77.0.101", "10.78.0.100"}
    assert left_out == [f"line 1: 10.77.0.100 of {C}: the machine has 10.77.0.101"]


def test_machines_that_are_known_by_their_client_identifier() -> None:
    subnet = LAB.subnets[0].model_copy(update={"identity": "client-id"})
    found = [foreign("10.77.0.100", C, 1, client_id=b"\0one"), foreign("10.77.0.101", C, 2, client_id=b"\0two")]
    taken, left_out = Sieve(config.Dhcp(subnets=(subnet,)), (), (), ()).sift(found)
    assert (len(taken), left_out) == (2, [])


# ---- files that the real servers wrote


def lease_by_udhcpc(wire: Wire, name: str) -> str:
    client = wire.clients[0].command(
        "udhcpc", "-i", "c0", "-n", "-q", "-f", "-s", "/bin/true", "-x", f"hostname:{name}"
    )
    done = subprocess.run(client, capture_output=True, text=True, timeout=30)
    (address,) = re.findall(r"lease of (\S+) obtained", done.stdout + done.stderr)
    return str(address)


def written_by(wire: Wire, command: list[str], path: Path) -> tuple[str, ForeignLeases]:
    """Let a server give a lease; return its address and what is read from the file."""
    process = subprocess.Popen(wire.server.command(*command), stderr=subprocess.DEVNULL)
    try:
        address = lease_by_udhcpc(wire, "node-1")
        for _ in range(100):
            if path.exists() and address in path.read_text():
                break
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(10)
    return address, read(path.read_bytes(), time.time())


def test_the_file_of_the_real_dnsmasq(tmp_path: Path) -> None:
    need("dnsmasq", "udhcpc", "ip")
    path = tmp_path / "dnsmasq.leases"
    command = [
        "dnsmasq", "-k", "--port=0", "--conf-file=/dev/null", "--interface=s0", "--bind-interfaces", "--user=root",
        "--group=",  # none is changed: a user namespace has no other
        "--no-ping", "--dhcp-range=10.77.0.100,10.77.0.150,1h", f"--dhcp-leasefile={path}",
        f"--pid-file={tmp_path / 'pid'}", "--log-facility=-",
    ]  # fmt: skip
    with wires(("10.77.0.1/24",)) as wire:
        address, found = written_by(wire, command, path)
    lease = one(found)
    assert (str(lease.address), lease.mac.hex(":"), lease.host) == (address, "52:54:00:c0:00:00", b"node-1")
    assert abs(lease.expires - time.time() - 3600) < 60
    assert lease.client_id == b"\1" + lease.mac


def test_the_file_of_the_real_dhcpd(tmp_path: Path) -> None:
    need("udhcpc", "ip", *([] if DHCPD else ["dhcpd"]))
    path, settings = tmp_path / "dhcpd.leases", tmp_path / "dhcpd.conf"
    path.touch()
    settings.write_text(
        "authoritative; ddns-update-style none; default-lease-time 3600; ping-check false;\n"
        "subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.100 10.77.0.150; }\n"
    )
    files = ["-cf", str(settings), "-lf", str(path), "-pf", str(tmp_path / "pid")]
    with wires(("10.77.0.1/24",)) as wire:
        address, found = written_by(wire, [str(DHCPD), "-4", "-f", "-q", *files, "s0"], path)
    lease = one(found)
    assert (str(lease.address), lease.mac.hex(":"), lease.host) == (address, "52:54:00:c0:00:00", b"node-1")
    assert abs(lease.expires - time.time() - 3600) < 60
    assert lease.client_id == b"\1" + lease.mac


def test_a_lease_keeps_its_time() -> None:
    from test_store import TestClock

    clock = TestClock(now=5000, wall=NOW)
    row = row_of(foreign("10.77.0.100", A, expires=NOW + 60), clock)
    assert (row.starts, row.expires) == (5000 * 10**9, 5060 * 10**9)
    assert row_of(foreign("10.77.0.100", A, expires=math.inf), clock).expires is None

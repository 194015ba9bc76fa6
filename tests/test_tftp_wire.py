"""TFTP requests as every known client writes them, all their prefixes, and what a stranger may send."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tftpkit import ACK, DATA, ERROR, OACK, WRQ, Client, Files, Running, ack, error, number_of, op_of, rrq, serving

from fastboot._core import parse_tftp

Parsed = tuple[bytes, str, dict[str, int]]

VECTORS = sorted((Path(__file__).parent / "vectors" / "tftp").glob("*.hex"))
RANGES = {
    "blksize": lambda value: value >= 8,
    "timeout": lambda value: 1 <= value <= 255,
    "tsize": lambda value: True,
    "windowsize": lambda value: value >= 1,
}
each_vector = pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)


def packet_of(path: Path) -> bytes:
    return bytes.fromhex("".join(line.partition("#")[0] for line in path.read_text().splitlines()))


PACKETS = [packet_of(path) for path in VECTORS]


def expected_of(path: Path) -> Parsed:
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# expect ")]
    name, mode, options = json.loads(line.removeprefix("# expect "))
    return name.encode("latin-1"), mode, options


def reference(packet: bytes) -> Parsed | None:
    """RFC 1350 section 5 and 2347 in the shortest Python: a second opinion."""
    if packet[:2] not in (b"\0\1", b"\0\2") or len(packet) > 512:
        return None
    texts = packet[2:].split(b"\0")[:-1]
    if len(texts) < 2 or not texts[0] or texts[1].lower() not in (b"octet", b"netascii", b"mail"):
        return None
    options: dict[str, int] = {}
    for raw, value in zip(texts[2::2], texts[3::2], strict=False):
        name = raw.lower().decode("latin-1")
        digits = value.decode("latin-1")
        if name not in RANGES or name in options or not 1 <= len(digits) <= 18:
            continue
        if digits.isascii() and digits.isdigit() and RANGES[name](int(digits)):
            options[name] = int(digits)
    return texts[0], texts[1].lower().decode(), options


@each_vector
def test_a_client_is_understood(path: Path) -> None:
    parsed = parse_tftp(packet_of(path))
    assert parsed == expected_of(path)
    assert list(parsed[2]) == list(expected_of(path)[2]), "in the client's order"
    assert path.read_text().startswith(
        ("# capture: ", "# protocol-facts ", "# boot-clients", "# made by hand from ")
    )


def test_every_client_of_the_facts_is_here() -> None:
    names = " ".join(path.stem for path in VECTORS)
    for client in (
        "ipxe",
        "edk2-probe",
        "edk2-fetch",
        "grub",
        "shim",
        "pxelinux",
        "uboot",
        "uboot-window",
        "raspberry",
    ):
        assert client in names
    for client in ("u-root", "windows", "curl", "atftp", "tftp-hpa", "busybox"):
        assert client in names


@each_vector
def test_every_prefix_ends_cleanly(path: Path) -> None:
    packet = packet_of(path)
    whole = expected_of(path)
    for length in range(len(packet)):
        parsed = parse_tftp(packet[:length])
        assert parsed == reference(packet[:length])
        if parsed is not None:
            assert parsed[:2] == whole[:2]
            assert list(parsed[2].items()) == list(whole[2].items())[: len(parsed[2])]


mutations = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "put", "drop", "double")), st.integers(0, 600), st.binary(max_size=12)
    ),
    max_size=6,
)


def mutated(packet: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for change, where, octets in changes:
        at = where % (len(packet) + 1)
        if change == "flip" and at < len(packet):
            packet = packet[:at] + bytes([packet[at] ^ (1 << where % 8)]) + packet[at + 1 :]
        elif change == "cut":
            packet = packet[:at]
        elif change == "put":
            packet = packet[:at] + octets + packet[at:]
        elif change == "drop":
            packet = packet[:at] + packet[at + len(octets) + 1 :]
        elif change == "double":
            packet = packet[:at] + packet
    return packet


@settings(max_examples=2000, deadline=None)
@given(st.sampled_from(PACKETS), mutations)
def test_mutations_parse_as_the_reference_does(packet: bytes, changes: list[tuple[str, int, bytes]]) -> None:
    assert parse_tftp(mutated(packet, changes)) == reference(mutated(packet, changes))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=600))
def test_any_octets_parse_as_the_reference_does(octets: bytes) -> None:
    for packet in (octets, b"\0\1" + octets, b"\0\1f\0octet\0" + octets):
        assert parse_tftp(packet) == reference(packet)


@pytest.mark.parametrize(
    ("option", "value", "number"),
    [
        ("blksize", "8", 8),
        ("blksize", "7", None),
        ("blksize", "65464", 65464),
        ("blksize", "0512", 512),
        ("blksize", "-512", None),
        ("blksize", "+512", None),
        ("blksize", " 512", None),
        ("blksize", "", None),
        ("blksize", "9" * 18, 10**18 - 1),
        ("blksize", "9" * 19, None),
        ("timeout", "1", 1),
        ("timeout", "255", 255),
        ("timeout", "256", None),
        ("windowsize", "1", 1),
        ("windowsize", "65535", 65535),
        ("tsize", "0", 0),
        ("tsize", "٣", None),
    ],
)
def test_option_values(option: str, value: str, number: int | None) -> None:
    parsed = parse_tftp(rrq("f", **{option: value}))
    assert parsed is not None
    assert parsed[2] == ({} if number is None else {option: number})


def test_a_request_has_512_octets_at_most() -> None:
    room = 512 - len(rrq(""))
    assert parse_tftp(rrq("f" * room)) is not None
    assert parse_tftp(rrq("f" * (room + 1))) is None


# --- the same at a live engine's socket ---


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Files({"alive": b"yes"})) as running:
        yield running


@pytest.fixture
def fresh() -> Iterator[Running]:
    """One that knows no port from before: it would take a stranger there for a client that has just finished."""
    with serving(Files({"alive": b"yes"})) as running:
        yield running


def is_alive(server: Running) -> bool:
    with server.client() as client:
        return client.fetch("alive") == b"yes"


def shower(server: Running, packets: list[bytes]) -> None:
    """Send from one socket to the listening port, and to a data port too."""
    with server.client() as client:
        client.ask("alive")
        client.receive()
        data_port = client.peer
        for number, packet in enumerate(packets):
            client.send(packet, server.address)
            client.send(packet, data_port)
            if number % 50 == 49:
                assert is_alive(server)
    assert is_alive(server)


@each_vector
def test_every_prefix_at_the_socket(server: Running, path: Path) -> None:
    packet = packet_of(path)
    shower(server, [packet[:length] for length in range(len(packet) + 1)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(PACKETS), mutations), min_size=1, max_size=20))
def test_mutations_at_the_socket(server: Running, batch: list[tuple[bytes, list[tuple[str, int, bytes]]]]) -> None:
    shower(server, [mutated(packet, changes) for packet, changes in batch])


@pytest.mark.parametrize("seed", range(4))
def test_noise_at_the_socket(server: Running, seed: int) -> None:
    chance = random.Random(seed)
    shower(
        server,
        [chance.randbytes(chance.choice((0, 1, 2, 3, 4, 5, 40, 512, 1024, 1025, 9000))) for _ in range(300)],
    )
    heads = [bytes((0, op)) for op in range(9)]
    shower(server, [chance.choice(heads) + chance.randbytes(chance.randrange(40)) for _ in range(300)])


MALFORMED = {
    "name without end": b"\0\1name",
    "no mode": b"\0\1name\0",
    "mode without end": b"\0\1name\0octet",
    "empty name": b"\0\1\0octet\0",
    "unknown mode": rrq("name", "binary"),
    "longer mode": rrq("name", "octets"),
    "mail": rrq("name", "mail"),
    "513 octets": rrq("n" * (513 - len(rrq("")))),
    "1024 octets": rrq("name").ljust(1024, b"x"),
}


@pytest.mark.parametrize("packet", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_counted_and_told(server: Running, packet: bytes) -> None:
    before = server.counters()["malformed"]
    with server.client() as client:
        client.send(packet)
        answer = client.receive()
    assert (op_of(answer), number_of(answer)) == (ERROR, 4)
    assert answer.endswith(b"\0")
    assert client.peer == server.address
    assert server.counters()["malformed"] == before + 1


@pytest.mark.parametrize("packet", [b"", b"\0", b"\0\1", b"\0\1f", rrq("name").ljust(1025, b"x")], ids=len)
def test_what_is_no_request_at_all_is_counted(server: Running, packet: bytes) -> None:
    before = server.counters()["malformed"]
    with server.client() as client:
        client.send(packet)
        server.counted("malformed", before + 1)
        assert client.hears_nothing(0.02)


def test_a_write_request_is_refused(server: Running) -> None:
    before = server.counters()["write_request"]
    with server.client() as client:
        client.send(rrq("loot", op=WRQ, tsize=5))
        answer = client.receive()
    assert (op_of(answer), number_of(answer)) == (ERROR, 2)
    assert server.counters()["write_request"] == before + 1


@pytest.mark.parametrize("op", [DATA, ACK, OACK, 0, 7, 255, 0x0101])
def test_a_packet_without_a_transfer_gets_error_5(fresh: Running, op: int) -> None:
    before = fresh.counters()["stranger"]
    with fresh.client() as client:
        client.send(op.to_bytes(2, "big") + b"\0\1data")
        answer = client.receive()
    assert (op_of(answer), number_of(answer)) == (ERROR, 5)
    assert fresh.counters()["stranger"] == before + 1


def test_an_error_is_never_answered_with_an_error(fresh: Running) -> None:
    before = fresh.counters()["stranger"]
    with fresh.client() as client:
        client.send(error(5))
        fresh.counted("stranger", before + 1)
        assert client.hears_nothing(0.02)


def test_a_request_from_port_0_is_dropped(server: Running) -> None:
    """Nobody can be answered there; the kernel's EINVAL must not be taken for a refusal of UDP_SEGMENT."""
    before = server.counters()
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.fail("needs root, in a namespace at least: see make test")
    packet = rrq("alive", windowsize=16)
    header = b"\0\0" + server.port.to_bytes(2, "big") + (8 + len(packet)).to_bytes(2, "big") + b"\0\0"
    with raw:
        raw.sendto(header + packet, server.address)
    server.counted("malformed", before["malformed"] + 1)
    assert is_alive(server)
    assert server.counters()["requests"] == before["requests"] + 1
    assert server.counters()["send_failed"] == before["send_failed"]


def test_requests_go_to_the_listening_port_only(fresh: Running) -> None:
    with fresh.client() as one, Client(fresh.address) as other:
        one.ask("alive")
        one.receive()
        other.send(rrq("alive"), one.peer)
        assert other.hears_nothing(0.03)
        one.send(ack(1))
    assert is_alive(fresh)

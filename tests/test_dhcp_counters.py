"""Every silence has a name: docs/counters.md says what is counted, and every packet ends in one of them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dhcpkit import ALL, ANY, DECLINE, DISCOVER, RELEASE, REQUEST, Office, asking, message, number
from dhcpsite import site
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_dhcp_limits import SUBNETS
from test_dhcp_relay import OURS, PORT_7, RELAY, suboptions
from test_dhcp_responder import PACKETS

from fastboot._core import RESPONDER_COUNTERS
from fastboot.model import Node, Plan, Scope

DOCUMENT = (Path(__file__).parent.parent / "docs" / "counters.md").read_text()


def documented(section: str) -> list[str]:
    """Return the counters that a section names, in its order."""
    text = DOCUMENT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


ENDS = (*documented("Answered"), *documented("Not answered"))


async def test_every_counter_is_documented_once(tmp_path: Path) -> None:
    names = [
        name for section in ("Requests", "Answered", "Not answered", "Beside") for name in documented(section)
    ]
    assert len(names) == len(set(names))
    async with site(tmp_path) as here:
        served = set(here.service.counters())
    source = (Path(__file__).parent.parent / "fastboot" / "services" / "proxy.py").read_text()
    proxy = set(re.findall(r'self\._counts = \{"(\w+)": 0\}', source))
    assert set(names) == served | proxy and proxy
    assert set(RESPONDER_COUNTERS) <= served


def number_of_ends(here: Office) -> int:
    return sum(here.responder.counters().get(name, 0) for name in ENDS)


ADDRESSES = st.sampled_from(["0.0.0.0", "10.77.0.100", "10.77.0.101", "10.77.0.11", "10.88.0.100", "172.16.0.1"])
OPTIONS = st.lists(
    st.one_of(
        st.tuples(st.just(50), ADDRESSES.map(lambda text: IPv4Address(text).packed)),
        st.tuples(st.just(54), st.sampled_from([IPv4Address(OURS).packed, IPv4Address("10.77.0.2").packed, b"x"])),
        st.tuples(st.just(61), st.sampled_from([b"", b"\1", b"\xffone"])),
        st.tuples(st.just(60), st.sampled_from([b"PXEClient:Arch:00007", b"other"])),
        st.tuples(
            st.just(82), st.sampled_from([suboptions((1, PORT_7)), b"\1", suboptions((11, b"\x0a\x58\0\1"))])
        ),
        st.tuples(st.just(118), st.just(IPv4Address("10.88.0.0").packed)),
        st.tuples(st.just(52), st.sampled_from([b"\1", b"\7"])),
    ),
    max_size=3,
).map(tuple)
MADE = st.builds(
    message,
    st.integers(0, 9),
    st.sampled_from(["52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03", ""]),
    xid=st.integers(1, 2),
    flags=st.sampled_from([0, 0x8000]),
    ciaddr=ADDRESSES,
    giaddr=st.sampled_from(["0.0.0.0", "0.0.0.0", RELAY, "172.16.0.1"]),
    options=OPTIONS,
)
CLIENT = st.builds(
    lambda type_, mac, xid, address: message(
        type_,
        f"52:54:00:aa:00:0{mac}",
        xid=xid,
        ciaddr=address if type_ == RELEASE else "0.0.0.0",
        options=() if type_ in (0, RELEASE) else asking(address, OURS if type_ != DISCOVER else None),
    ),
    st.sampled_from([0, DISCOVER, REQUEST, DECLINE, RELEASE]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from(["10.77.0.100", "10.77.0.101"]),
)
"""What machines say to us alone, on our own wire: most of it makes sense."""
CUT = st.tuples(MADE, st.integers(0, 300)).map(lambda pair: pair[0][: pair[1]])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("client"), CLIENT),
        st.tuples(st.just("client"), CLIENT),
        st.tuples(st.just("client"), CLIENT),
        st.tuples(st.just("packet"), MADE),
        st.tuples(st.just("packet"), MADE),
        st.tuples(st.just("packet"), st.one_of(CUT, st.sampled_from(PACKETS))),
        st.tuples(st.just("decide"), st.sampled_from(["plan", "ignore", "machine", "once"])),
        st.tuples(st.just("commit"), st.booleans()),
        st.tuples(st.just("time"), st.sampled_from([1, 3, 200, 4000])),
        st.tuples(st.just("reload"), st.integers(0, 1)),
        st.tuples(st.just("limits"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([("packet", message(DISCOVER)), ("reload", 1), ("decide", "plan")], False)
@example([("packet", message(DISCOVER)), ("time", 3), ("decide", "plan")], False)
@given(EVENTS, st.booleans())
def test_every_packet_ends_in_one_counter(story: list[tuple[str, object]], bootp: bool) -> None:
    here = Office(subnets=SUBNETS, disk=False, bootp=bootp)
    received = 0
    for what, value in story:
        if what == "packet":
            destination = number(OURS) if received % 3 else ALL
            here.responder.receive(value, 0, ANY, destination, here.now)  # type: ignore[arg-type]
            received += 1
        elif what == "client":
            here.responder.receive(value, 0, ANY, ALL, here.now)  # type: ignore[arg-type]
            here.answer()
            received += 1
        elif what == "decide":
            scope = {"machine": Scope.MACHINE, "once": Scope.ONCE}.get(str(value), Scope.CLASS)
            here.plan = None if value == "ignore" else Plan(scope=scope)
            here.answer()
        elif what == "commit" and (batch := here.responder.batch(1)):
            here.responder.durable(batch[0], bool(value), here.now)
        elif what == "time":
            here.pass_time(value)  # type: ignore[arg-type]
        elif what == "reload":
            here.nodes = (Node("one", ("52:54:00:aa:00:01",), IPv4Address("10.77.0.11")),) if value else ()
            here.subnets = SUBNETS[: 2 - int(value)]  # type: ignore[call-overload]
            here.configure()
        elif what == "limits":
            here.responder.max_per_port = here.responder.max_offers = here.responder.max_leases = value  # type: ignore[assignment]
        waiting = here.responder.counters()["received"] - number_of_ends(here)
        assert 0 <= waiting <= received
    here.answer()
    here.commit()
    here.pass_time(3)
    here.responder.receive(b"", 0, ANY, ALL, here.now)
    assert here.responder.counters()["received"] == received + 1 == number_of_ends(here)


@pytest.mark.parametrize("name", ENDS)
def test_a_reason_that_nothing_counts_is_no_reason(name: str) -> None:
    """The native code counts each that the document names, and Python the rest."""
    root = Path(__file__).parent.parent / "fastboot"
    native = "\n".join(path.read_text() for path in root.glob("_native/*.px[id]"))
    python = "\n".join(path.read_text() for path in root.glob("services/*.py"))
    counted = {"no_addresses_here": "no_addresses"}.get(name, name).upper()
    assert (
        re.search(rf"(?<!    )COUNT_{counted}\b|-DHCP_{counted}\b|\bDHCP_{counted}\b", native)
        or f'counts["{name}"]' in python
    )

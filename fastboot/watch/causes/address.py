"""Why a machine gets no address, or is told of no loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastboot.watch.case import Case
from fastboot.watch.causes.rule import Facts, Rule

CHOOSING: Final = 20.0
"""Seconds from an offer to the request for it: EDK2 and BIOS ROMs collect offers for 4 s, iPXE for 2; three times
their longest first wait, for the first offer may be lost."""
STARTING_OVER: Final = 70.0
"""Seconds in which a client whose old address nobody confirms asks for a new one: RFC 2131 has 4, 8, 16, 32."""
OFFERS, LEASES, PORTS = "offer_limit", "lease_limit", "port_limit"
LIMITS: Final = {
    OFFERS: ("too many offers that nobody takes up", "dhcp.limits.offers"),
    LEASES: ("too many leases of machines that are no nodes", "dhcp.limits.leases"),
    PORTS: ("too many machines behind its switch port", "dhcp.limits.per_port"),
}
UNDECIDED: Final = {
    "decide_failed": "raised an error, took over 30 s, or returned what can not be sent; the log names it",
    "undecided": "returned None",
    "decision_late": "took more than 2 s",
    "held_full": "has 4096 requests to decide about",
}
OLD: Final = {
    "unknown_client": "it asks for an address of before, of which nothing is known here",
    "other_network": "it asks for an address of another network",
    "no_address_asked": "its request names no address",
}
UNWRITTEN: Final = frozenset({"commit_failed", "waiting_full", "no_memory", "in_flight"})
BOOTP: Final = frozenset({"bootp", "bootp_unknown"})
NOT_FOR_US: Final = frozenset({"no_boot_client", "no_addresses_here", "credentials"})


def _unanswered(case: Case) -> tuple[str, str] | None:
    """Return why its last request got no answer, where none did since, and what more is known of that."""
    mark, got = case.mark("dhcp.unanswered"), case.addressed("rom", "ipxe", "os", "installer")
    offered = case.newest("offer rom", "offer ipxe", "offer os", "offer installer")
    if mark is None or (got and got.time >= mark.time):
        return None
    if offered and offered.time >= mark.time and mark.what != "other_server":
        return None
    return mark.what, mark.more


def _because(*reasons: str) -> Callable[[Case], Facts]:
    def find(case: Case) -> Facts:
        why = _unanswered(case)
        return {"about": why[1] or "where it is"} if why and why[0] in reasons else None

    return find


def _never(case: Case) -> Facts:
    if case.site.dhcp is None or case.last or not case.machine.macs:
        return None
    macs = case.machine.macs
    close = [(_distance(mac, other), other, mac) for other in case.site.strangers() for mac in macs]
    hint = ""
    if close and (best := min(close))[0] <= 2:
        hint = f" {best[1]}, which no node has, was heard and is almost {best[2]}: is one of them a slip?"
    return {"macs": " or ".join(macs), "hint": hint}


def _distance(one: str, other: str) -> int:
    """Return in how many hexadecimal digits two MACs differ."""
    return sum(left != right for left, right in zip(one, other, strict=True)) if len(one) == len(other) else 99


def _never_here(case: Case) -> Facts:
    return {} if case.site.dhcp is None and case.last is None else None


def _limit(case: Case) -> Facts:
    why = _unanswered(case)
    if why is None or why[0] not in LIMITS:
        return None
    text, key = LIMITS[why[0]]
    return {"text": text, "key": key}


def _undecided(case: Case) -> Facts:
    why = _unanswered(case)
    return {"text": UNDECIDED[why[0]]} if why and why[0] in UNDECIDED else None


def _other_server(case: Case) -> Facts:
    why = _unanswered(case)
    return {"server": why[1] or "another server"} if why and why[0] == "other_server" else None


def _old(case: Case) -> Facts:
    why = _unanswered(case)
    slow = why is not None and why[0] in OLD and case.quiet > STARTING_OVER
    return {"text": OLD[why[0]]} if why and slow else None


def _unwritten(case: Case) -> Facts:
    why = _unanswered(case)
    if why is None or why[0] not in UNWRITTEN:
        return None
    told = case.wide.get("dhcp.commit_failed")
    return {"text": f": {told.what}" if told and told.what else ""}


def _malformed(case: Case) -> Facts:
    why = _unanswered(case)
    others = {"ignored", "no_subnet", "exhausted", "doubtful", "other_server", *LIMITS, *UNDECIDED, *OLD}
    if why is None or why[0] in others | UNWRITTEN | BOOTP | NOT_FOR_US:
        return None
    return {"reason": why[0]}


def _nak(case: Case) -> Facts:
    mark, got = case.mark("dhcp.nak"), case.addressed("rom", "ipxe", "os", "installer")
    if mark is None or (got and got.time >= mark.time) or case.quiet < STARTING_OVER:
        return None
    return {"address": mark.what or "its old address", "text": mark.more}


def _declined(conflict: int) -> Callable[[Case], Facts]:
    def find(case: Case) -> Facts:
        mark, got = case.mark("dhcp.decline"), case.files
        if mark is None or mark.number != conflict or (got and got.time >= mark.time):
            return None
        again = case.newest("ack rom", "ack ipxe")
        if again and again.time > mark.time and case.since(again) < CHOOSING:
            return None
        return {"address": mark.what or "its address", "text": mark.more or "nothing"}

    return find


def _not_requested(case: Case) -> Facts:
    offer = case.newest("offer rom", "offer ipxe", "offer os", "offer installer")
    got = case.newest("ack rom", "ack ipxe", "ack os", "ack installer", "dhcp.request")
    if case.site.dhcp != "server" or offer is None or case.since(offer) < CHOOSING:
        return None
    if got and got.time >= offer.time:
        return None
    others = ", ".join(case.site.others)
    seen = f": {others} was seen" if others else ""
    return {"seen": seen}


def _proxy_ignored(case: Case) -> Facts:
    mark, files = case.mark("dhcp.offers_ignored"), case.files
    return None if mark is None or (files and files.time > mark.time) else {"text": mark.more}


def _no_server(case: Case) -> Facts:
    if case.site.dhcp != "proxy" or "dhcp.no_server" not in case.wide or case.step("address"):
        return None
    return {"interface": case.wide["dhcp.no_server"].what} if case.quiet > CHOOSING or case.last else None


def _proxy_no_loader(case: Case) -> Facts:
    why = _unanswered(case)
    if case.site.dhcp != "proxy" or why is None or why[0] != "ignored" or not case.remarks:
        return None
    return {"text": "; ".join(list(case.remarks.values())[-3:])}


def _no_loader(case: Case) -> Facts:
    told = case.newest("ack rom", "ack ipxe")
    if told is None or told.what or case.files:
        return None
    stage = "ipxe" if told is case.mark("ack ipxe") else "rom"
    remark = case.remarks.get((stage, told.number))
    if remark is None and case.since(told) < STARTING_OVER:
        return None  # U-Boot and a Raspberry Pi need none
    code = f"0x{told.number:02x}" if told.number >= 0 else "which it does not name"
    return {"code": code, "remark": f": {remark}" if remark else ""}


RULES: Final = (
    Rule(
        "no-dhcp-here", "heard", (),
        "there is no `[dhcp]` here, and it asked for no file",
        "it asked for no file here, and this server gives no addresses: another DHCP server has to name this one",
        "see what `fastboot boot-options` prints, and have the DHCP server send that",
        _never_here,
    ),
    Rule(
        "never-heard", "heard", (),
        "no DHCP request from any of its MACs since the server started",
        "no DHCP request of {macs} has come since the server started.{hint}",
        "switch it on; see that network boot (PXE, IPv4) is on in its firmware, that cable and switch port "
        "work and are in the VLAN of this server's interface, that a relay is there if a router is between; "
        "compare the MAC",
        _never,
    ),
    Rule(
        "no-subnet", "address", ("dhcp.unanswered",),
        "`no_subnet`: its relay, or the link that it came in by, is in no subnet of the configuration",
        "it asks from {about}, which is in no subnet of the configuration",
        "add that network to dhcp.subnets, with relayed = true where a relay is between",
        _because("no_subnet"),
    ),
    Rule(
        "proxy-without-loader", "address", ("dhcp.unanswered", "dhcp.loader_warning"),
        "`ignored` in proxy mode, where there are machines without a loader",
        "no loader is known for it, so it is offered nothing: {text}",
        "install its package (fastboot check names it), or name a file in boot.loaders; then fastboot reload",
        _proxy_no_loader,
    ),
    Rule(
        "ignored", "address", ("dhcp.unanswered",),
        "`ignored`: the decision about it is silence",
        "it is left without an answer on purpose: it is no node and boot.unknown is \"ignore\", or decide said so",
        "name it in [[nodes]] (MAC, name, profile), or write boot.unknown = \"menu\"; then fastboot reload",
        _because("ignored"),
    ),
    Rule(
        "undecided", "address", ("dhcp.unanswered",),
        "`decide_failed`, `undecided`, `decision_late` or `held_full`",
        "the decide function of the program that embeds this server {text}",
        "mend decide; it has 2 s, and returns a Plan, IGNORE or None",
        _undecided,
    ),
    Rule(
        "pool-exhausted", "address", ("dhcp.unanswered",),
        "`exhausted`: no address of its subnet is free",
        "no address is free in the pools of {about}",
        "make dhcp.subnets.pools larger or dhcp.lease shorter, or give back old ones: fastboot leases, then "
        "fastboot leases --release ADDRESS",
        _because("exhausted"),
    ),
    Rule(
        "addresses-doubtful", "address", ("dhcp.unanswered",),
        "`doubtful`: only addresses are free that somebody may use",
        "all free addresses of {about} may be in use by machines without a lease, so none is given yet",
        "wait until ARP has cleared them (ten minutes at most), or make dhcp.subnets.pools larger",
        _because("doubtful"),
    ),
    Rule(
        "limit-reached", "address", ("dhcp.unanswered",),
        "`port_limit`, `offer_limit` or `lease_limit`",
        "it gets no address, for there are {text}",
        "raise {key}, or look for a machine that makes up MACs; nodes are always served",
        _limit,
    ),
    Rule(
        "other-dhcp-server", "address", ("dhcp.unanswered",),
        "`other_server`: it chose the offer of another server, and asks for nothing here",
        "it took the offer of another DHCP server, {server}, which does not send it here",
        "switch that server off, or its service in this network; where it has to stay, write dhcp.mode = "
        "\"proxy\" or have it send what fastboot boot-options prints",
        _other_server,
    ),
    Rule(
        "lease-not-written", "address", ("dhcp.unanswered", "dhcp.commit_failed"),
        "`commit_failed`, `waiting_full`, `in_flight` or `no_memory`",
        "its lease could not be written to the disk, so it was not given{text}",
        "see that the disk of the state directory is neither full, read-only nor broken",
        _unwritten,
    ),
    Rule(
        "bootp-off", "address", ("dhcp.unanswered",),
        "`bootp` or `bootp_unknown`",
        "it asks by BOOTP, without a DHCP message type",
        "write dhcp.bootp = true, and give its node an address",
        _because(*sorted(BOOTP)),
    ),
    Rule(
        "old-address", "address", ("dhcp.unanswered",),
        "`unknown_client`, `other_network` or `no_address_asked`, and no other request for 70 s",
        "{text}, and it has not asked for a new one since",
        "restart it, or its DHCP client: a client that hears nothing should start over by itself",
        _old,
    ),
    Rule(
        "malformed-request", "address", ("dhcp.unanswered",),
        "any other counter of docs/counters.md, such as `option_overrun`",
        "its DHCP request can not be answered: {reason} (docs/counters.md)",
        "update its firmware; where the machine is virtual, correct its network card",
        _malformed,
    ),
    Rule(
        "address-refused", "address", ("dhcp.nak",),
        "`dhcp.nak`, and no address for 70 s after it",
        "its request for {address} was refused: {text}",
        "restart it: it should ask for a new address; where it does not, give its node an address of its own",
        _nak,
    ),
    Rule(
        "address-conflict", "loader", ("dhcp.decline",),
        "`dhcp.decline` that tells of a conflict",
        "it gave {address} back, for another machine uses it; it said: {text}",
        "find who has {address} without a lease (ip neigh), or take it out of dhcp.subnets.pools",
        _declined(1),
    ),
    Rule(
        "firmware-declined", "loader", ("dhcp.decline",),
        "`dhcp.decline` in the words of EDK2 for an answer that it does not understand",
        "its firmware did not take the answer and gave {address} back; it said: {text}",
        "see that no other DHCP server answers too, and which options are set for it (dhcp.options, decide)",
        _declined(0),
    ),
    Rule(
        "proxy-ignored", "loader", ("dhcp.offers_ignored",),
        "`dhcp.offers_ignored`: proxy mode, and it asks for no boot file",
        "it {text}",
        "have the server that gives the addresses send what fastboot boot-options prints",
        _proxy_ignored,
    ),
    Rule(
        "no-address-server", "address", ("dhcp.no_server",),
        "`dhcp.no_server`: proxy mode, and no server that would give an address was found",
        "no DHCP server on {interface} gives addresses, and in mode proxy this one gives none",
        "start that server, or write dhcp.mode = \"server\" with a subnet and a pool",
        _no_server,
    ),
    Rule(
        "offer-not-taken", "address", ("dhcp.offer",),
        "`dhcp.offer`, and no request for 20 s after it",
        "it was offered an address and never asked for it{seen}",
        "look for another DHCP server in this network, for a switch that drops answers (DHCP snooping: trust "
        "the port of this server), and for a spanning tree that opens its port late (portfast)",
        _not_requested,
    ),
    Rule(
        "no-loader", "loader", ("dhcp.ack", "dhcp.loader_warning"),
        "`dhcp.ack` without a loader",
        "there is no loader for its architecture, {code}{remark}",
        "install its package (fastboot check names it), or name a file in boot.loaders; then fastboot reload",
        _no_loader,
    ),
)  # fmt: skip

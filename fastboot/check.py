"""`fastboot check`: everything that would fail, before it fails.

Two halves, for the caller drops to `user` in between: what needs the caller's privileges, then what the server
will do without them.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fastboot.boot.catalog import is_below
from fastboot.boot.chain import path_here
from fastboot.boot.firmware import DEFAULT_URL, PXE_CLIENT, VENDOR_CLASS, VENDOR_OPTIONS
from fastboot.boot.policy import by_tftp_only
from fastboot.boot.program import Kind
from fastboot.config import Config, Dhcp, Subnet
from fastboot.config.options import CLASSLESS_ROUTES, has_default_route
from fastboot.model import ConfigError, FastbootError
from fastboot.privileges import library_faults, write_fault
from fastboot.services.control_client import ControlClient, NotRunning
from fastboot.services.descriptors import shortage
from fastboot.services.dhcp_network import attached, wires_of
from fastboot.services.links import BUFFER, Link, find_links, is_veth
from fastboot.services.pump import UNSENT_EACH
from fastboot.sockets import Sockets, open_sockets, refuse_idle
from fastboot.world import World

SMALL_PACKET = 768
"""Octets of a buffer that the kernel counts for a request (its `truesize`; measured)."""

SEND_BUFFERS = "proc/sys/net/core/wmem_max"
NEIGHBOURS = "proc/sys/net/ipv4/neigh/default/gc_thresh3"


def setting(path: str) -> str:
    """Return the name by which sysctl knows a file of /proc."""
    return path.removeprefix("proc/sys/").replace("/", ".")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that `check` found: an error would fail, a warning is allowed but rarely meant, a note informs."""

    level: Literal["error", "warning", "note"]
    text: str


def before_drop(config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at interfaces, ports and limits, with the caller's privileges. `root` is where /proc and /sys are."""
    try:
        refuse_idle(config)
    except ConfigError as error:
        yield Finding("error", str(error))
    try:
        links = find_links(config.interface)
    except ConfigError as error:
        yield Finding("error", str(error))
        links = ()
    if config.dhcp and links:
        if config.dhcp.mode == "proxy":
            yield from _proxy_findings(config.dhcp, links)
        else:
            yield from _subnet_findings(config.dhcp.subnets, links)
            yield from _neighbour_findings(config.dhcp.subnets, links, root)
        yield from _own_address_findings(config, links)
    yield from _container_findings(config, links, root)
    if (config.ftp or config.http) and config.senders:
        yield from _send_buffer_findings(root)
    if links and not is_running(config):
        try:
            sockets = open_sockets(config)
        except FastbootError as error:
            yield Finding("error", str(error))
        else:
            yield from _buffer_findings(sockets)
            sockets.close()
    above = next(each for each in (config.state, *config.state.absolute().parents) if os.path.lexists(each))
    if above != config.state and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        yield Finding(
            "error", f"state: can not make {config.state}: {above} is no directory that can be written to"
        )
    if config.user is None and os.geteuid() == 0:
        yield Finding(
            "warning", 'user: is not set, so the server runs as root; write user = "fastboot", for example'
        )
    if config.dhcp and not config.tftp and not any("://" in url for url in config.boot.loaders.values()):
        yield Finding("warning", "tftp: is missing, so machines find no loader; add [tftp]")
    if text := shortage(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        yield Finding("warning", text)


def after_drop(config: Config, world: World, path: Path) -> Iterator[Finding]:
    """Look at files, as the user that the server drops to. `path` is the configuration file."""
    for text in library_faults():
        yield Finding("warning", text)
    if not os.access(path, os.R_OK):
        yield Finding("warning", f"{path}: not readable for the server's user, so a reload will fail")
    if config.nodes_file and not os.access(config.nodes_file, os.R_OK):
        yield Finding("warning", f"nodes_file: {config.nodes_file}: not readable for the server's user")
    places = [*config.roots, *(item.path for item in config.media if item.path)]
    for file in (path, config.nodes_file):
        for place in places if file else ():
            if file and is_below(file, place):
                yield Finding("warning", f"{file}: is in {place}, so every client can read it; move it elsewhere")
    yield from _state_findings(config.state)
    for text in world.loaders.notes:
        yield Finding("note", text)
    for text in world.catalog.check():
        yield Finding("warning" if _may_be_meant(text, world) else "error", text)
    yield from _loader_findings(world)
    if config.dhcp:
        yield from _option_findings(config, world)
    yield from _answer_findings(config, world)


def _state_findings(state: Path) -> Iterator[Finding]:
    try:
        is_directory = stat.S_ISDIR(state.stat().st_mode)
    except FileNotFoundError:
        return  # the server makes it before it drops its privileges
    except OSError as error:
        text = f"state: {state} is out of reach for the server's user: {error.strerror}"
        yield Finding("error", f"{text}; name another, such as /var/lib/fastboot")
        return
    if not is_directory:
        yield Finding("error", f"state: {state} is no directory; name one, which the server makes")
    elif fault := write_fault(state):
        yield Finding("error", f"state: {fault}")


def is_running(config: Config) -> bool:
    """Whether a server answers on the state directory: then the ports are its own."""
    try:
        ControlClient(config.state).get("/status")
    except NotRunning:
        return False
    return True


def _may_be_meant(text: str, world: World) -> bool:
    """A loader of a class that the lab has no machines of, or a bad link somewhere in a large tree."""
    return text in world.loaders.complaints or (text.startswith("/") and "permission denied" not in text)


def _subnet_findings(subnets: Sequence[Subnet], links: Sequence[Link]) -> Iterator[Finding]:
    own = {address.ip: link.name for link in links for address in link.addresses}
    wires = wires_of(subnets, links)
    served = {wires[at] for at, subnet in enumerate(subnets) if attached(subnet, links)}
    near = [wire in served for wire in wires]
    for at, subnet in enumerate(subnets):
        key = f"dhcp.subnets[{at}]"
        inside = {address: name for address, name in own.items() if address in subnet.network}
        if not (inside or subnet.relayed or near[at]):
            host = subnet.gateway or subnet.network.network_address + 1
            yield Finding(
                "error",
                f"{key}.network: no interface has an address in {subnet.network}; give it one with:"
                f" ip address add {host}/{subnet.network.prefixlen} dev {links[0].name}; or, where relays reach"
                " it, write relayed = true",
            )
        for number, pool in enumerate(subnet.pools):
            for address, name in inside.items():
                if address in pool:
                    text = f"{key}.pools[{number}]: {pool} holds {address}, the address of {name}; leave it out"
                    yield Finding("error", text)
    for link in links:
        if not any(address.ip in subnet.network for address in link.addresses for subnet in subnets):
            text = f"interface: {link.name} has no address in a subnet of dhcp, so machines on it get no answer"
            if any(subnet.relayed for subnet in subnets):
                text += " but through a relay"
            yield Finding("warning", text)


def _send_buffer_findings(root: Path) -> Iterator[Finding]:
    wanted = UNSENT_EACH[1] // 2  # the kernel doubles what is asked for
    with suppress(OSError, ValueError):
        if (most := int((root / SEND_BUFFERS).read_text())) < wanted:
            name = setting(SEND_BUFFERS)
            yield Finding(
                "note",
                f"{name}: is {most}, so large files by FTP and HTTP cost up to twice the processor time;"
                f" sysctl -w {name}={wanted}",
            )


def _buffer_findings(sockets: Sockets) -> Iterator[Finding]:
    room = min(
        (each.listen.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for each in sockets.tftp), default=BUFFER
    )
    if room < BUFFER:
        yield Finding(
            "note",
            f"tftp: this system gives its socket {room >> 10} KiB, so of more than about {room // SMALL_PACKET}"
            f" requests at once some are lost; sysctl net.core.rmem_max={BUFFER}, or CAP_NET_ADMIN, gives more",
        )


def _neighbour_findings(subnets: Sequence[Subnet], links: Sequence[Link], root: Path) -> Iterator[Finding]:
    # Where the table is full, the kernel sends nothing to the next machine: its transfer stands still.
    try:
        room = int((root / NEIGHBOURS).read_text())
    except (OSError, ValueError):
        return  # only the first network namespace tells
    near = [subnet for subnet in subnets if attached(subnet, links)]
    machines = sum(int(pool.last) - int(pool.first) + 1 for subnet in near for pool in subnet.pools)
    if machines > room:
        cure = f"sysctl -w {setting(NEIGHBOURS)}={2 * machines}"
        yield Finding(
            "note",
            f"dhcp.subnets: the pools on this host's links have {machines} addresses, and the kernel keeps contact"
            f" with {room} machines at most. If so many may be on at once: {cure}",
        )


def _container_findings(config: Config, links: Sequence[Link], root: Path) -> Iterator[Finding]:
    pairs = [link.name for link in links if is_veth(link.name, root)]
    if not pairs or not in_container(root):
        return
    where = f"{', '.join(pairs)} is the network of a container. Where machines reach it through"
    own = "Not needed on a network of their own (macvlan, a bridge to the machines, --network host)"
    if config.tftp and not config.tftp.single_port:
        yield Finding(
            "note",
            f"tftp.single_port: {where} a published port or another NAT, blocks from other ports are lost: write"
            f" single_port = true. {own}",
        )
    if config.ftp and not (config.ftp.passive_ports and config.ftp.passive_address):
        yield Finding(
            "note",
            f"ftp.passive_address: {where} published ports or another NAT, name the address that they reach, and"
            f" the passive_ports that are forwarded. {own}",
        )


def in_container(root: Path = Path("/")) -> bool:
    """Whether this is a container of Docker, Podman, LXC, systemd-nspawn or Kubernetes."""
    if any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv", "run/systemd/container")):
        return True
    try:
        groups = (root / "proc/1/cgroup").read_text()
    except OSError:
        return False
    return any(word in groups for word in ("docker", "kubepods", "libpod", "lxc"))


def _proxy_findings(dhcp: Dhcp, links: Sequence[Link]) -> Iterator[Finding]:
    where = ", ".join(f"{link.name} ({link.addresses[0]})" for link in links)
    yield Finding(
        "note",
        f"dhcp.mode: proxy: another host must give the addresses on {where}. PXE and HTTP clients are told here,"
        " on ports 67 and 4011, what to boot; nobody else gets an answer. For firmware that ignores a proxy that"
        " other server must name the boot files: fastboot boot-options prints its settings",
    )
    for at, entry in enumerate(dhcp.classes):
        if entry.transport:
            yield Finding(
                "note",
                f"dhcp.classes[{at}].transport: does not reach GRUB, which asks the server of its address what to"
                " fetch; write it for a group, a node or [boot]",
            )


def _own_address_findings(config: Config, links: Sequence[Link]) -> Iterator[Finding]:
    own: dict[IPv4Address, str] = {address.ip: link.name for link in links for address in link.addresses}
    for node in config.all_nodes():
        if node.address in own:
            yield Finding("error", f"nodes {node.name}.address: {node.address} is that of {own[node.address]}")


def _loader_findings(world: World) -> Iterator[Finding]:
    said, doubts = "\n".join(world.loaders.complaints), dict[str, list[str]]()
    is_signed = False
    for key, loader, told in world.policy.boot_files():
        scheme = urlsplit(loader).scheme
        if not scheme and (refusal := world.catalog.lacks(loader)):
            yield Finding("error", f"{key}: {loader}: {refusal.text}; name a file below a root, or a URL")
        class_ = key.rpartition(".")[2]
        if by_tftp_only(class_, loader):
            http = f"http-{class_.removeprefix('uefi-')}"
            text = f"{key}: {loader}: PXE firmware fetches by TFTP only; a URL is for {http} or ipxe"
            yield Finding("warning", text)
        chain = world.chains.of(class_, loader, told)
        if chain.flaw and chain.flaw not in said:
            yield Finding("warning", f"{key}: {loader}: {chain.flaw}")
        if chain.doubt:
            doubts.setdefault(chain.doubt, []).append(key)
        is_signed |= any(hop.program and hop.program.signers for hop in chain.hops)
    if is_signed:
        yield Finding(
            "note",
            "signed by: as the files say themselves; compared was only whether they are still what was signed."
            " Firmware and shim verify the signatures, and know which are revoked",
        )
    yield from (Finding("note", f"{', '.join(keys)}: {doubt}") for doubt, keys in doubts.items())
    yield from _kernel_findings(world)


def _kernel_findings(world: World) -> Iterator[Finding]:
    """Look at kernels that Secure Boot does not start, or not by the boot file that their machines are given."""
    for key, path in world.renderer.paths():
        kernel = world.program(path) if key.endswith(": kernel") else None
        if kernel and kernel.kind is Kind.LINUX and not kernel.signers:
            yield Finding("note", f"{key}: {path} is not signed, so Secure Boot does not start it")
    said = set[tuple[str, str]]()
    for key, class_, loader, profile in world.policy.starts():
        path, usual = (path_here(loader) or "").strip("/"), world.policy.default(class_)
        shim, judged = world.program(path), world.shims.judge(class_, loader, profile)
        if (profile, path) in said or not judged or not shim or shim.kind is not Kind.SHIM:
            continue
        said.add((profile, path))
        if judged[0].flaw:
            named = f" ({key})" if key else ""
            fails = f"{path}{named} does not start its kernel: {judged[0].flaw}"
            others = [each for each in judged if each.loader != loader]
            able = [f"; {each.loader} would" for each in others if not each.flaw]
            unable = [f"; nor does {each.loader}: {each.flaw}" for each in others]
            more = "".join(able[:1] or unable)
            yield Finding("note", f"profiles {profile}: with Secure Boot, {fails}{more}")
        elif not key and usual and (flaw := world.shims.judge(class_, usual, profile)[0].flaw):
            yield Finding("note", f"profiles {profile}: {path} is handed out, not {usual}: {flaw}")


def _option_findings(config: Config, world: World) -> Iterator[Finding]:
    for at, subnet in enumerate(config.dhcp.served() if config.dhcp else ()):
        codes = {option.code: option.value for option in subnet.options}
        if subnet.gateway and CLASSLESS_ROUTES in codes and not has_default_route(codes[CLASSLESS_ROUTES]):
            yield Finding(
                "warning",
                f"dhcp.subnets[{at}].options.classless-routes: has no default route, and machines that take these"
                f' ignore the gateway (RFC 3442); add "default via {subnet.gateway}"',
            )
        yield from _vendor_findings(f"dhcp.subnets[{at}]", codes)
        if DEFAULT_URL in codes:
            yield Finding(
                "warning",
                f"dhcp.subnets[{at}].options.default-url: every ONIE switch takes it for its installer;"
                " set it for a class of dhcp.classes",
            )
    for at, entry in enumerate(config.dhcp.classes if config.dhcp else ()):
        yield from _vendor_findings(f"dhcp.classes[{at}]", {each.code: each.value for each in entry.options})
    groups = {node.group for node in world.nodes}
    for at, group in enumerate(config.groups):
        if group.name not in groups:
            yield Finding("warning", f"groups[{at}].name: no node is in group {group.name}")


def _vendor_findings(key: str, codes: Mapping[int, bytes]) -> Iterator[Finding]:
    """Look at option 43 where it is for PXE clients, by option 60 (PXE 2.1 table 2-1)."""
    value = codes.get(VENDOR_OPTIONS, b"")
    if not value or codes.get(VENDOR_CLASS) != PXE_CLIENT:
        return
    inner, at = set(), 0
    while at < len(value) and value[at] != 0xFF:
        inner.add(value[at])
        at += 2 + value[at + 1] if at + 1 < len(value) else 1
    if at != len(value) - 1:
        yield Finding(
            "warning", f"{key}.options.vendor-options: PXE clients read on to an octet FF; end it with one"
        )
    if inner & {1, 2, 3, 4, 5}:
        text = "holds sub-options 1 to 5, multicast TFTP, for which EDK2 drops the offer; leave them out"
        yield Finding("warning", f"{key}.options.vendor-options: {text}")


def _answer_findings(config: Config, world: World) -> Iterator[Finding]:
    with_answers = [profile for profile in config.profiles if profile.answers]
    for profile in with_answers:
        assert profile.answers
        if not os.access(profile.answers, os.R_OK):
            text = "not readable for the server's user, so a reload will fail"
            yield Finding("error", f"profiles {profile.name}: answers: {profile.answers}: {text}")
        medium = world.shelf.get(profile.media) if profile.media else None
        system = medium.system if medium else None
        if profile.format and system and system.format not in (None, profile.format):
            text = f"the installer of {system.name} reads {system.format}; leave this out, or name another medium"
            yield Finding("warning", f"profiles {profile.name}: format: {text}")
    if with_answers and config.http is None:
        names = ", ".join(profile.name for profile in with_answers)
        text = "answers: without [http] no installer can report its end, so machines stay installing; add [http]"
        yield Finding("warning", f"profiles {names}: {text}")

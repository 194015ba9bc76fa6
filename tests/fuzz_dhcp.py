"""A fuzzer of everything that takes packets: DHCP server and proxy, ARP, TFTP requests.

    make fuzz        or            python tests/fuzz_dhcp.py [SECONDS]

The native core is built with clang's address and undefined-behaviour sanitizers and with coverage for libFuzzer,
so that a read past a packet ends the run; atheris drives it. The corpus begins with the wire vectors of real
clients and is kept in .cache/fuzz/corpus. An input is a story: what happens, how many octets of it, these ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / ".cache" / "fuzz"
LINKED = "-fsanitize=address,undefined,fuzzer-no-link"
SECONDS = 60
SERVE, RELAY, UNICAST, PROXY, BOOT_SERVER, ARP, TFTP, COMMIT, FAIL, WAIT = range(10)


def build() -> None:
    """Build the package with sanitizers, where a source changed since."""
    sources = [*(ROOT / "fastboot").rglob("*.p*"), ROOT / "setup.py"]
    core = BUILT / "lib" / "fastboot" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    if core.exists() and all(core.stat().st_mtime > each.stat().st_mtime for each in sources if each.is_file()):
        return
    # Cython itself adds nothing to NULL.
    less = "-fno-sanitize=alignment,function,pointer-overflow"
    flags = f"{LINKED} {less} -fno-sanitize-recover=undefined -g -fno-omit-frame-pointer"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", BUILT / "lib", "--build-temp", BUILT / "temp"],
        cwd=ROOT,
        check=True,
        env={**os.environ, "CC": "clang", "CFLAGS": flags, "LDSHARED": f"clang -shared {LINKED}"},
    )


def corpus() -> Path:
    """Write the vectors as stories: each alone, each to server and proxy, and all in a row."""
    folder = BUILT / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    every = b""
    for path in sorted((ROOT / "tests" / "vectors").glob("*/*.hex")):
        packet = bytes.fromhex("".join(line.partition("#")[0] for line in path.read_text().splitlines()))
        kinds = (SERVE, RELAY, UNICAST, PROXY, BOOT_SERVER) if path.parent.name == "dhcp" else (TFTP,)
        story = b"".join(chapter(kind, packet) + chapter(COMMIT, b"") for kind in kinds)
        (folder / f"{path.parent.name}-{path.stem}").write_bytes(story)
        every += story
    (folder / "all").write_bytes(every)
    return folder


def chapter(kind: int, octets: bytes) -> bytes:
    return bytes((kind,)) + len(octets).to_bytes(2) + octets


def main(seconds: int) -> int:
    build()
    import atheris

    sanitizer = Path(atheris.__file__).parent.parent / "asan_with_fuzzer.so"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(sanitizer),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "PYTHONPATH": os.pathsep.join((str(BUILT / "lib"), str(ROOT / "tests"))),
    }
    command = [sys.executable, __file__, "--inside", f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10"]
    command += [f"-artifact_prefix={BUILT}/", "-print_final_stats=1", str(corpus())]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def inside() -> None:
    """Run in the process that has the sanitizer: `fastboot` is the instrumented one there."""
    import atheris

    with atheris.instrument_imports(include=["fastboot"]):
        from dhcpkit import ACK, OFFER, OUR_MAC, Office, message, unwrap

        from fastboot import _core, config
        from fastboot.model import Node, Plan
        from fastboot.services.links import Link
        from fastboot.services.proxy import ProxyService
    assert str(BUILT) in _core.__file__, "this is not the instrumented core"
    node = Node("n", ("52:54:00:12:34:56",), IPv4Address("10.77.0.11"))
    server = int(IPv4Address("10.77.0.1"))

    def office() -> Office:
        subnets = (
            config.Subnet(network="10.77.0.0/24", pools=("10.77.0.100-10.77.0.110",), gateway="10.77.0.254"),
            config.Subnet(network="10.9.0.0/24", pools=("10.9.0.5-10.9.0.9",)),
        )
        return Office(subnets=subnets, nodes=(node,), plan=Plan(loader="x" * 100), bootp=True, disk=False)

    def proxy() -> ProxyService:
        link = Link("eth9", 9, bytes.fromhex("525400000009"), 1500, (IPv4Interface("10.77.0.1/24"),))
        settings = config.Dhcp(mode="proxy", snooping=True)
        return ProxyService(settings, (link,), (node,), lambda _: Plan(loader="x" * 100), lambda _: None)

    def beside(service: ProxyService, octets: bytes, boot: bool, now: int) -> None:
        source, there = (server + 8, server) if boot else (0, 0xFFFFFFFF)
        service._proxy.receive(octets, int(boot), source, there, now)
        service.step()
        for reply in map(unwrap, service._proxy.replies()):
            assert 300 <= len(reply.payload) <= 1472
            assert reply.message.yiaddr == 0 and reply.message.type == (ACK if boot else OFFER)
            service.mac_of(IPv4Address(reply.message.ciaddr))

    def story(data: bytes) -> None:
        here, other, at = office(), None, 0
        while at + 3 <= len(data):
            kind, size = data[at] % 10, int.from_bytes(data[at + 1 : at + 3])
            octets, at = data[at + 3 : at + 3 + size], at + 3 + size
            if kind in (SERVE, RELAY, UNICAST):
                if kind == RELAY and len(octets) > 28:
                    octets = octets[:24] + IPv4Address("10.9.0.1").packed + octets[28:]
                there = server if kind == UNICAST else 0xFFFFFFFF
                replies = here.send(octets, destination=there, source=server + 8 if kind == UNICAST else 0)
                for reply in replies:
                    assert 300 <= len(reply.payload) <= 1472
                    assert reply.message.xid == int.from_bytes(octets[4:8])
            elif kind in (PROXY, BOOT_SERVER):
                other = other or proxy()
                beside(other, octets, kind == BOOT_SERVER, here.now)
            elif kind == ARP:
                here.responder.receive_arp(octets, 0, here.now)
                here.responder.probes(here.now, 8)
            elif kind == TFTP:
                _core.parse_tftp(octets)
                _core.parse_dhcp(octets)
            elif kind in (COMMIT, FAIL):
                here.commit(kind == COMMIT)
                here.take()
                here.responder.events()
            elif kind == WAIT:
                here.pass_time(int.from_bytes(octets[:2]))
        here.responder.counters()

    assert message(1, OUR_MAC)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], story)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside()
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))

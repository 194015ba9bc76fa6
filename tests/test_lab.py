"""The rehearsal lab's parts, each on its own; tests/test_boot.py boots machines with all of them together.

What needs a network namespace runs in a child process: this file, called with the name of an `inside_` function.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from rich.console import Console

from fastboot._core import DhcpMessage, parse_dhcp, udp_packet
from fastboot.lab import namespace, network
from fastboot.lab.namespace import LabError
from fastboot.lab.server import ServerProcess
from fastboot.lab.vm import demo, disk, initrd, media, scenario
from fastboot.lab.vm.initrd import Entry
from fastboot.lab.vm.machine import Hardware, plain
from fastboot.lab.vm.other import OtherServer
from fastboot.lab.vm.screen import Moving, Screen, moving_of, timeline
from fastboot.lab.vm.story import INSTALL_STEPS, STEPS, Story
from fastboot.services.dhcp_probe import client_message

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
Need = Callable[[bool, str], None]
SERVER = IPv4Interface("10.77.0.1/24")
MACHINE_MAC = bytes.fromhex("525400770001")


# cpio and initrd


ENTRIES = [
    Entry("bin", stat.S_IFDIR | 0o755),
    Entry("bin/empty", stat.S_IFREG | 0o644),
    *(Entry(f"bin/{'n' * size}", stat.S_IFREG | 0o600, b"d" * size) for size in range(1, 10)),
    Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    Entry("name with spaces +é", stat.S_IFREG | 0o755, bytes(range(256)) * 33),
]


def test_an_archive_comes_back_as_it_was_packed() -> None:
    assert list(initrd.unpack(io.BytesIO(initrd.pack(ENTRIES)))) == ENTRIES


def test_busybox_unpacks_our_archive(tmp_path: Path, need: Need) -> None:
    need(shutil.which("busybox") is not None, "busybox is missing")
    plain_files = [entry for entry in ENTRIES if not entry.name.startswith("dev/")]
    archive = initrd.pack(plain_files)
    subprocess.run(["busybox", "cpio", "-i", "-d"], cwd=tmp_path, input=archive, check=True, capture_output=True)
    for entry in plain_files:
        path = tmp_path / entry.name
        assert path.stat().st_mode == entry.mode
        if path.is_file():
            assert path.read_bytes() == entry.data


@pytest.mark.parametrize("length", range(0, len(initrd.pack(ENTRIES[:2])) - 1, 7))
def test_a_cut_archive_is_an_error(length: int) -> None:
    with pytest.raises(LabError, match="ends early"):
        list(initrd.unpack(io.BytesIO(initrd.pack(ENTRIES[:2])[:length])))


def test_what_is_no_archive_is_an_error() -> None:
    with pytest.raises(LabError, match="newc"):
        list(initrd.unpack(io.BytesIO(b"070707" + bytes(200))))


def driver(name: str, *depends: str) -> Entry:
    data = b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"
    return Entry(f"lib/modules/6.1.0/kernel/{name}.ko", stat.S_IFREG | 0o644, data)


def test_modules_come_after_those_they_depend_on() -> None:
    archive = [driver("net/virtio_net", "net_failover", "virtio-ring"), driver("net/net_failover", "failover")]
    archive += [driver("core/failover"), driver("virtio-ring"), driver("other")]
    names = [Path(entry.name).stem for entry in initrd.modules(archive, ["virtio_net"])]
    assert sorted(names) == ["failover", "net_failover", "virtio-ring", "virtio_net"]
    assert names[-1] == "virtio_net"
    assert names.index("failover") < names.index("net_failover")


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(LabError, match="no kernel module failover"):
        initrd.modules([driver("net_failover", "failover")], ["net_failover"])


def write_debian_initrd(directory: Path) -> Path:
    path = directory / "initrd.gz"
    path.write_bytes(gzip.compress(initrd.pack([driver("e1000"), driver("tg3")])))
    return path


def test_the_initrd_holds_what_init_needs(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    image = initrd.build(write_debian_initrd(tmp_path), "e1000", {"digests": b"list"}, busybox)
    entries = {entry.name: entry for entry in initrd.unpack(io.BytesIO(gzip.decompress(image)))}
    assert entries["init"].mode & 0o111 and entries["init"].data.startswith(b"#!/bin/busybox sh\n")
    assert entries["bin/busybox"].data == b"program"
    assert entries["dev/console"].device == (5, 1)
    assert entries["lib/order"].data == b"e1000.ko\n"
    assert "lib/e1000.ko" in entries and "lib/tg3.ko" not in entries
    assert entries["digests"].data == b"list"
    assert image == initrd.build(tmp_path / "initrd.gz", "e1000", {"digests": b"list"}, busybox)


def test_what_the_initrd_can_not_be_built_from_is_named(tmp_path: Path) -> None:
    debian = write_debian_initrd(tmp_path)
    with pytest.raises(LabError, match=r"NIC rtl8139: write one of e1000"):
        initrd.build(debian, "rtl8139", {})
    with pytest.raises(LabError, match=r"no-busybox: No such file"):
        initrd.build(debian, "e1000", {}, tmp_path / "no-busybox")
    with pytest.raises(LabError, match=r"missing\.gz: No such file"):
        initrd.build(tmp_path / "missing.gz", "e1000", {})


def test_the_scripts_of_the_initrd_are_valid_shell(need: Need) -> None:
    need(shutil.which("busybox") is not None, "busybox is missing")
    for script in ("init", "lease"):
        path = ROOT / "fastboot" / "lab" / "vm" / "initrd" / script
        subprocess.run(["busybox", "sh", "-n", str(path)], check=True)


# the media tree


def test_the_media_tree_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = media.make(tmp_path / "one"), media.make(tmp_path / "two")
    assert first == second
    assert first.digest() == "6963ecc6adc104f677d858c9b90ed70a86bf2d32804dc0dc2a264ad08b5c27bc"
    assert len(first.files) >= 200
    assert first.octets >= 64_000_000


def test_the_media_tree_has_what_trips_clients() -> None:
    recipe = dict(media.recipe())
    assert len(recipe) == len(list(media.recipe())), "no path twice"
    names = list(recipe)
    for odd in (" ", "+", "%", "ü", "'", "[", "/."):
        assert any(odd in name for name in names), odd
    assert max(name.count("/") for name in names) >= 10
    assert 0 in recipe.values()


def test_the_listing_is_what_find_and_sha256sum_print(tmp_path: Path) -> None:
    manifest = media.make(tmp_path / "tree")
    command = "find . -type f -exec sha256sum {} + | sort"
    printed = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path / "tree",
        env={**os.environ, "LC_ALL": "C"},
        check=True,
        capture_output=True,
    ).stdout
    assert manifest.listing() == printed
    assert manifest.digest() == hashlib.sha256(printed).hexdigest()


def test_the_manifest_is_read_from_the_disk(tmp_path: Path) -> None:
    manifest = media.make(tmp_path / "tree")
    with (tmp_path / "tree" / "exact" / "512.bin").open("r+b") as file:
        file.write(b"x")
    changed = media.read(tmp_path / "tree")
    different = [path for path in manifest.files if manifest.files[path] != changed.files[path]]
    assert different == ["exact/512.bin"]


# the story


def story_of_success() -> Story:
    story = Story("lab/linux", "lab/initrd.gz", power_on=100.0)
    story.hear({"time": 102.0, "kind": "dhcp.offer", "mac": "52:54:00:77:00:01"})
    story.hear({"time": 102.5, "kind": "dhcp.ack", "details": {"address": "10.77.0.100"}})
    for at, path in ((103, "boot/pxelinux.0"), (104, "pxelinux.cfg/default"), (106, "/lab/linux")):
        story.hear({"time": at, "kind": "tftp.sent", "details": {"path": path, "octets": 8}})
    story.hear({"time": 107, "kind": "tftp.sent", "details": {"path": "lab/initrd.gz", "octets": 9}})
    story.read(112.0, "[    4.2] noise")
    story.read(112.1, "\x1b[2J@lab linux 6.1.0")
    story.hear({"time": 113.0, "kind": "dhcp.ack", "details": {"address": "10.77.0.100"}})
    story.read(113.1, "@lab address 10.77.0.100")
    story.read(113.2, "@lab connected 10.77.0.1")
    story.read(114.0, "@lab fetching 1 5")
    for name in "abc":
        story.hear({"time": 115, "kind": "ftp.sent", "details": {"path": f"/media/demo/{name}", "bytes": 5}})
    story.read(116.0, "@lab fetched 3 15")
    story.read(117.0, "@lab digests 3 3 abcd")
    return story


def test_a_boot_is_told_step_by_step() -> None:
    story = story_of_success()
    assert story.done and not story.failed and story.current is None
    at = {step.name: reached.at for step, reached, _ in story.timeline()}
    assert list(at) == [step.name for step in STEPS]
    assert at["loader"] == 103 and at["kernel"] == 106 and at["first"] == 114.0
    assert sum(took for _, _, took in story.timeline()) == pytest.approx(17.0)
    assert story.acks == 2 and story.sent == {f"/media/demo/{name}": 5 for name in "abc"}


def test_a_step_that_does_not_come_is_overdue_and_named() -> None:
    story = Story("lab/linux", "lab/initrd.gz", power_on=100.0)
    assert story.overdue(100.0 + STEPS[0].limit) is None
    late = story.overdue(100.1 + STEPS[0].limit)
    assert late is STEPS[0] and "network card" in late.cause
    story.hear({"time": 150.0, "kind": "dhcp.offer"})
    assert story.overdue(150.0 + STEPS[1].limit) is None, "every step has its limit from the last news"
    assert story.overdue(151.0 + STEPS[1].limit) is STEPS[1]


def test_files_that_arrive_are_news() -> None:
    story = story_of_success()
    del story.reached["last"], story.reached["digests"]
    step = story.current
    assert step and step.name == "last"
    story.read(500.0, "@lab fetching 2 10")
    assert story.overdue(500.0 + step.limit) is None


def test_what_the_machine_says_went_wrong_ends_the_story() -> None:
    story = Story("lab/linux", "lab/initrd.gz", power_on=100.0)
    story.read(101.0, "@lab failed dhcp no lease")
    assert story.done and story.faults == ["the machine says: dhcp no lease"]


def make_result(directory: Path) -> scenario.Result:
    """Return a result in which machine, host and server agree."""
    for name, size in (("linux", 8), ("initrd.gz", 9)):
        path = directory / "boot" / "lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    manifest = media.Manifest({name: (5, f"digest {name}") for name in "abc"})
    story = story_of_success()
    assert story.checked
    story.checked.digest = manifest.digest()
    return scenario.Result(scenario.Scenario(Hardware()), directory, manifest, story)


def test_an_installation_is_told_and_counted(tmp_path: Path) -> None:
    result = make_result(tmp_path)
    result.scenario = replace(result.scenario, install=True)
    story = result.story
    assert story
    story.name = "bare01"
    assert story.current and story.current.name == "written"
    story.hear({"time": 105, "kind": "node.armed", "node": "bare01"})
    for path, octets in (("meta-data", 1), ("user-data", 2), ("user-data", 2)):
        story.hear({"time": 114, "kind": "http.sent", "details": {"path": f"/node/.../{path}", "bytes": octets}})
    story.hear({"time": 113.15, "kind": "node.installing", "node": "bare01"})
    story.read(118.0, "@lab written 8421376")
    story.hear({"time": 119, "kind": "node.installed", "node": "bare01"})
    story.hear({"time": 120, "kind": "dhcp.offer"})
    assert story.current and story.current.name == "disk"
    story.read(121.0, "@lab disk bare01      ")
    assert story.done and scenario.disagreements(result) == []
    assert [step.name for step, _, _ in story.timeline()] == [step.name for step in INSTALL_STEPS]
    story.hear({"time": 122, "kind": "tftp.sent", "details": {"path": "lab/linux", "octets": 8}})
    story.hear({"time": 123, "kind": "node.installing", "node": "bare01"})
    faults = scenario.disagreements(result)
    assert "node.installing: 2 times, expected 1" in faults and "lab/linux: 2 times, expected 1" in faults
    story.read(124.0, "@lab disk nobody")
    assert "the installed system says that it is 'nobody'" in story.faults


def test_the_image_of_a_disk(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    need(shutil.which("7z") is not None, "p7zip-full is not installed")
    (tmp_path / "grub").write_bytes(b"MZ" + bytes(range(256)) * 1000)
    content = disk.image(tmp_path / "grub")
    assert content == disk.image(tmp_path / "grub") and content[510:512] == b"\x55\xaa"
    assert [content[at : at + 32] for at in disk.places(content)] == [disk.NAME] * 2
    start, sectors = struct.unpack_from("<II", content, 446 + 8)
    (tmp_path / "volume").write_bytes(content[start * 512 :])
    assert sectors * 512 == len(content) - start * 512
    subprocess.run(["7z", "x", "-bd", f"-o{tmp_path / 'out'}", str(tmp_path / "volume")], check=True, stdout=-1)
    out = tmp_path / "out" / "EFI"
    assert (out / "BOOT" / "BOOTX64.EFI").read_bytes() == (tmp_path / "grub").read_bytes()
    assert disk.SAYS + "nobody" in (out / "DEBIAN" / "GRUB.CFG").read_text()
    assert len(disk.places(disk.image())) == 1


def test_agreement_is_success(tmp_path: Path) -> None:
    assert scenario.disagreements(make_result(tmp_path)) == []


def wrong_digest(story: Story) -> None:
    story.read(117.0, "@lab wrong 0123  ./b")
    story.read(117.0, "@lab digests 2 3 ffff")


def missing_file(story: Story) -> None:
    story.read(116.0, "@lab fetched 2 10")


def other_files(story: Story) -> None:
    assert story.checked
    story.checked.files = 4


def server_sent_less(story: Story) -> None:
    story.sent["/media/demo/c"] = 4


def server_sent_fewer(story: Story) -> None:
    del story.sent["/media/demo/c"]


def transfer_failed(story: Story) -> None:
    story.hear({"time": 115.0, "kind": "ftp.failed", "details": {"path": "/media/demo/b", "reason": "changed"}})


def no_second_lease(story: Story) -> None:
    story.acks = 1


def short_kernel(story: Story) -> None:
    story.tftp["lab/linux"] = 7


def silent_step(story: Story) -> None:
    del story.reached["loader"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (wrong_digest, "./b"),
        (wrong_digest, "right digest on the machine: 2, expected 3"),
        (wrong_digest, "whole tree"),
        (missing_file, "octets of media on the machine: 10, expected 15"),
        (other_files, "files on the machine: 4, expected 3"),
        (server_sent_less, "octets that the server says it sent by FTP: 14, expected 15"),
        (server_sent_fewer, "files that the server says it sent by FTP: 2, expected 3"),
        (transfer_failed, "ftp.failed /media/demo/b: changed"),
        (no_second_lease, "two DHCPACKs"),
        (short_kernel, "octets of the kernel that the server says it sent: 7, expected 8"),
        (silent_step, "never seen: boot loader sent"),
    ],
)
def test_every_disagreement_is_a_fault(tmp_path: Path, spoil: Callable[[Story], None], told: str) -> None:
    result = make_result(tmp_path)
    assert result.story
    spoil(result.story)
    assert any(told in fault for fault in scenario.disagreements(result)), scenario.disagreements(result)


def test_progress_is_of_tftp_first_and_of_the_media_then() -> None:
    story = Story("lab/linux", "lab/initrd.gz", power_on=100.0)
    status = {"transfers": [{"protocol": "tftp", "path": "lab/linux", "bytes": 4, "size": 8}]}
    assert moving_of({}, story, 15) is None
    assert moving_of(status, story, 15) == Moving("lab/linux", 4, 8)
    story.read(101.0, "@lab fetching 2 10")
    assert moving_of({}, story, 15) == Moving("2 files,", 10, 15)


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    # TERM=dumb, as CI may have it, has no live display.
    console = Console(file=out, force_terminal=terminal, width=100, _environ={"TERM": "xterm"})
    whole = story_of_success()
    story = Story("lab/linux", "lab/initrd.gz", power_on=100.0)
    with Screen(console, "a title") as screen:
        for name in ("discover", "ack"):
            story.reached[name] = whole.reached[name]
            screen.update(story, 103.0, Moving("lab/linux", 2_000_000, 8_000_000))
        screen.update(whole, 117.0, None)
    return out.getvalue()


def test_plain_lines_tell_every_step_once() -> None:
    printed = shown(terminal=False)
    assert "\x1b" not in printed
    for step in STEPS:
        assert printed.count(f" s  {step.title}: ") == 1


def test_a_terminal_shows_what_is_under_way() -> None:
    printed = shown(terminal=True)
    assert "lab/linux 2.0 of 8.0 MB" in printed and "\x1b[" in printed


def test_the_timeline_tells_when_and_how_long() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(timeline(story_of_success()))
    rows = {line.split("  ")[1].strip(): line.split() for line in out.getvalue().splitlines() if "✓" in line}
    assert "12.1" in rows["Linux is up"] and "5.1" in rows["Linux is up"]


async def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    server = ServerProcess.of("nonsense = 1\n", tmp_path)
    with pytest.raises(LabError, match="ended at once with exit code 2"):
        await server.start()
    await server.stop()
    assert "nonsense" in server.log.read_text()


def test_a_console_is_told_without_its_control_sequences() -> None:
    assert plain("\x1bc\x1b[?7l\x1b[2J\x1b[0;37;40m@lab linux\x07 6.1") == "@lab linux 6.1"


# namespaces and networks


def inside(name: str, *, privileged: bool = True) -> str:
    """Run an `inside_` function in a child process, without privileges if asked; returns what it printed."""
    command = [sys.executable, "-W", "error", __file__, name]
    if not privileged:
        # Root may map itself into a user namespace only with CAP_SETFCAP; an ordinary user needs nothing.
        command = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", *command]
    environment = {**os.environ, "PYTHONPATH": PATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def user_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode == 0


@pytest.fixture(params=["privileged", "unprivileged"])
def lab(request: pytest.FixtureRequest, need: Need) -> Callable[[str], str]:
    """What runs an `inside_` function, once as root and once with a user namespace."""
    privileged = request.param == "privileged"
    if privileged:
        need(os.geteuid() == 0, "this half needs root")
    else:
        need(user_namespaces(), "the kernel allows no user namespaces")
    return lambda name: inside(name, privileged=privileged)


def inside_enter() -> None:
    before = Path("/proc/self/ns/net").stat().st_ino
    namespace.enter()
    print(before != Path("/proc/self/ns/net").stat().st_ino, os.geteuid())
    network.Network(SERVER)
    print([name for _, name in socket.if_nameindex()])


def test_a_namespace_is_private_and_we_are_root_in_it(lab: Callable[[str], str]) -> None:
    assert lab("inside_enter").splitlines() == ["True 0", "['lo', 'lab0']"]
    assert "lab0" not in [name for _, name in socket.if_nameindex()]


async def heard(machine: socket.socket, wanted: Callable[[bytes], bool], limit: float = 10) -> bytes:
    """Return the first frame at the machine's end that is wanted."""
    machine.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limit):
        while not wanted(frame := await loop.sock_recv(machine, 65536)):
            pass
    return frame


def arp(target: str) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + MACHINE_MAC + socket.inet_aton("10.77.0.9")
    return b"\xff" * 6 + MACHINE_MAC + b"\x08\x06" + body + bytes(6) + socket.inet_aton(target)


def inside_arp() -> None:
    async def main() -> None:
        cable = network.Network(SERVER).plug()
        cable.connect()
        cable.machine.send(arp("10.77.0.1"))
        reply = await heard(cable.machine, lambda frame: frame[12:14] == b"\x08\x06")
        print(reply[:6] == MACHINE_MAC, reply[20:22].hex(), socket.inet_ntoa(reply[28:32]))
        cable.close()
        cable.close()

    namespace.enter()
    asyncio.run(main())


def test_a_machine_on_the_cable_reaches_the_server(lab: Callable[[str], str]) -> None:
    assert lab("inside_arp").strip() == "True 0002 10.77.0.1"


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2 + len(data) % 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def inside_segments() -> None:
    async def main() -> None:
        net = network.Network(SERVER)
        cable = net.plug()
        cable.connect()
        network.ip("neighbour", "add", "10.77.0.9", "lladdr", MACHINE_MAC.hex(":"), "dev", net.name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
            server.sendto(bytes(range(250)) * 14, ("10.77.0.9", 69))
        for _ in range(4):
            frame = await heard(cable.machine, lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 17)
            packet = frame[14:]
            length = int.from_bytes(packet[24:26])
            pseudo = packet[12:20] + bytes([0, 17]) + packet[24:26]
            print(length - 8, checksum(pseudo + packet[20 : 20 + length]) == 0xFFFF)

    namespace.enter()
    asyncio.run(main())


def test_frames_leave_the_server_whole(lab: Callable[[str], str]) -> None:
    """Segments cut and checksums filled in: a machine gets what a wire would carry."""
    assert lab("inside_segments").splitlines() == ["1000 True", "1000 True", "1000 True", "500 True"]


def inside_slow_machine() -> None:
    async def main() -> None:
        net = network.Network(SERVER)
        cable = net.plug()
        cable.connect()
        network.ip("neighbour", "add", "10.77.0.9", "lladdr", MACHINE_MAC.hex(":"), "dev", net.name)
        count = 500  # more than the machine's socket takes (278 with Linux's defaults), less than the port's
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            for number in range(count):
                server.sendto(struct.pack("!I", number), ("10.77.0.9", 69))
                await asyncio.sleep(0)
        got = []
        while len(got) < count:
            frame = await heard(cable.machine, lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 17)
            got.append(struct.unpack_from("!I", frame, 42)[0])
        print(got == list(range(count)))

    namespace.enter()
    asyncio.run(main())


def test_a_slow_machine_loses_no_frames(lab: Callable[[str], str]) -> None:
    assert lab("inside_slow_machine").strip() == "True"


def inside_router() -> None:
    async def main() -> None:
        net = network.Network(SERVER)
        router = network.Router(net.name)
        cable = net.plug()
        cable.connect()
        own, all_routers = (
            socket.inet_pton(socket.AF_INET6, "fe80::9"),
            socket.inet_pton(socket.AF_INET6, "ff02::2"),
        )
        solicitation = bytearray(struct.pack("!BBHI", 133, 0, 0, 0))
        pseudo = own + all_routers + struct.pack("!II", len(solicitation), 58)
        struct.pack_into("!H", solicitation, 2, 0xFFFF - checksum(pseudo + bytes(solicitation)))
        packet = struct.pack("!IHBB", 6 << 28, len(solicitation), 58, 255) + own + all_routers + solicitation
        cable.machine.send(bytes.fromhex("333300000002") + MACHINE_MAC + b"\x86\xdd" + packet)
        reply = await heard(cable.machine, lambda frame: frame[12:14] == b"\x86\xdd" and frame[54] == 134)
        hops, flags, lifetime = reply[21], reply[59], int.from_bytes(reply[60:62])
        print(hops, flags, lifetime, reply[22:24].hex(), router.answers)
        router.close()

    namespace.enter()
    asyncio.run(main())


def test_the_router_answers_so_that_ipxe_need_not_wait(lab: Callable[[str], str], need: Need) -> None:
    need(Path("/proc/sys/net/ipv6").exists(), "the kernel has no IPv6")
    assert lab("inside_router").strip() == "255 0 0 fe80 1"


def inside_other_server() -> None:
    async def main() -> None:
        net = network.Network(SERVER)
        cable = net.plug()
        cable.connect()
        with tempfile.TemporaryDirectory() as directory:
            other = OtherServer(net, IPv4Interface("10.77.0.2/24"), Path(directory))
            await other.start()
            broadcast = IPv4Address("255.255.255.255")
            question = client_message(1, MACHINE_MAC, 7, broadcast=True)
            packet = udp_packet(0, 68, int(broadcast), 67, question)
            cable.machine.send(b"\xff" * 6 + MACHINE_MAC + b"\x08\x00" + packet)
            reply = await heard(cable.machine, lambda frame: frame[23] == 17 and frame[34:36] == b"\0\x43")
            offer = parse_dhcp(reply[42:])
            assert isinstance(offer, DhcpMessage)
            print(socket.inet_ntoa(reply[26:30]), IPv4Address(offer.yiaddr) in SERVER.network, offer.xid)
            await other.stop()

    namespace.enter()
    asyncio.run(main())


def test_another_server_gives_addresses(lab: Callable[[str], str], need: Need) -> None:
    need(shutil.which("dnsmasq") is not None, "dnsmasq is missing")
    assert lab("inside_other_server").strip() == "10.77.0.2 True 7"


def inside_other_server_fails() -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            server = OtherServer(network.Network(SERVER), IPv4Interface("10.77.0.2/24"), Path(directory))
            server.settings += "no-such-setting\n"
            try:
                await server.start()
            except LabError as error:
                print(error)
            await server.stop()

    namespace.enter()
    asyncio.run(main())


def test_another_server_that_does_not_start_says_why(lab: Callable[[str], str], need: Need) -> None:
    need(shutil.which("dnsmasq") is not None, "dnsmasq is missing")
    said = lab("inside_other_server_fails")
    assert "the other DHCP server did not start" in said and "bad option at line 8" in said


def test_a_wrong_ip_command_says_what_ip_said() -> None:
    with pytest.raises(LabError, match=r"ip link set no-such-device up: .*no-such-device"):
        network.ip("link", "set", "no-such-device", "up")


def test_a_refused_namespace_says_what_would_allow_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.write_text("0\n")
    monkeypatch.setattr(namespace, "_SWITCHES", ((str(switch), "0", "kernel.some_switch=1"),))
    assert "sysctl -w kernel.some_switch=1" in namespace.permission_help()
    switch.write_text("1\n")
    assert "sysctl" not in namespace.permission_help()


# child processes


def inside_parent() -> None:
    async def main() -> None:
        child = await namespace.spawn(["sleep", "1000"])
        print(child.pid, flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())


def gone(pid: int, limit: float = 10) -> bool:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_children_die_with_a_parent_that_is_killed() -> None:
    command = [sys.executable, __file__, "inside_parent"]
    environment = {**os.environ, "PYTHONPATH": PATH}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    assert gone(child)


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    child = await namespace.spawn(["sh", "-c", script], stdout=asyncio.subprocess.PIPE)
    assert child.stdout and await child.stdout.readline() == b"ready\n"
    assert await namespace.stop(child, grace=0.2) == -9


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(LabError, match="no-such-program: can not be run"):
        await namespace.spawn(["no-such-program"])


@pytest.fixture
def stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the demo keeps its files in these tests, which must not take pytest into another namespace."""

    def enter() -> None:
        raise AssertionError("the demo went on")

    monkeypatch.setattr(namespace, "enter", enter)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_missing_packages_are_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, stay: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(stay))
    assert {"qemu-system-x86", "iproute2"} <= set(scenario.missing("bios"))
    assert demo.run("bios") == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "apt-get install" in printed and "qemu-system-x86" in printed
    assert not list(stay.iterdir())


def test_a_machine_that_can_not_be_made_is_refused(stay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run("uefi", nic="e1000", as_json=True) == 2
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"] and "virtio-net-pci only" in result["faults"][0]
    assert demo.run("bios", nic="rtl8139", as_json=True) == 2
    assert "write one of e1000" in capsys.readouterr().out


if __name__ == "__main__":
    globals()[sys.argv[1]]()

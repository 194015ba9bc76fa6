"""Bare machines boot from the real server, in QEMU, as `fastboot demo` does it.

About half a minute each on an idle machine. Packages that are missing skip these tests, and fail them in CI.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securekit import VARIABLES, make_discs

from fastboot.lab.vm import scenario
from fastboot.lab.vm.machine import Firmware
from fastboot.lab.vm.story import INSTALL_STEPS, STEPS, Step

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
Need = Callable[[bool, str], None]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def machine_needs(need: Need) -> Callable[..., None]:
    """Skip unless the packages for a firmware, and a private network, are there."""

    def check(firmware: Firmware, proxy: bool = False) -> None:
        if lacking := scenario.missing(firmware, proxy):
            need(False, f"packages are missing: {' '.join(lacking)}")
        mine = (
            os.geteuid() == 0 or subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode == 0
        )
        need(mine, "no root and no user namespaces")

    return check


def run(command: list[str], directory: Path) -> tuple[int, dict[str, Any]]:
    """Run the demo in a child process with its files below `directory`; returns exit code and result."""
    environment = {**os.environ, "PYTHONPATH": PATH, "TMPDIR": str(directory)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, result


def explain(result: dict[str, Any]) -> str:
    """Return the result with the ends of the machine's console and the server's log."""
    parts = [json.dumps(result, indent=2)]
    for log in ("console.log", "server.log"):
        path = Path(result["logs"] or "/nowhere") / log
        if path.exists():
            parts.append(f"--- {log}\n{path.read_bytes()[-4000:].decode('utf-8', 'replace')}")
    return "\n".join(parts)


def expect_success(code: int, result: dict[str, Any], directory: Path, steps: tuple[Step, ...] = STEPS) -> None:
    assert code == 0 and result["ok"], explain(result)
    assert [step["step"] for step in result["steps"]] == [step.name for step in steps]
    times = [step["at"] for step in result["steps"]]
    # The console is read by the demo, events carry the server's time: the two may differ a little.
    assert all(after > before - 1 for before, after in itertools.pairwise(times)), times
    media, server = result["media"], result["server"]
    assert media["matched"] == media["files"] >= 200
    assert media["octets"] >= 64_000_000
    assert (server["ftp_files"], server["ftp_octets"]) == (media["files"], media["octets"])
    assert not list(directory.iterdir()), "a success leaves nothing behind"


def children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def directory() -> Any:
    """A short path: the control socket's may have 107 octets, and pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="fbt-") as path:
        yield Path(path)


@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-http"])
def test_a_bare_machine_boots_and_fetches_its_media(
    firmware: Firmware, directory: Path, machine_needs: Callable[[Firmware], None]
) -> None:
    machine_needs(firmware)
    command = [sys.executable, "-m", "fastboot", "demo", "--live", "--firmware", firmware, "--json"]
    code, result = run(command, directory)
    expect_success(code, result, directory)
    http = {"boot/snponly.efi", "boot/boot.ipxe", "lab/linux", "lab/initrd.gz"}
    chain = {"boot/shimx64.efi", "boot/grubx64.efi", "grub/grub.cfg"}
    loaders = {"bios": {"boot/boot.ipxe"}, "uefi": chain, "uefi-http": set()}
    assert loaders[firmware] <= set(result["server"]["tftp"]), "the loader that this firmware should be given"
    assert set(result["server"]["http"]) == (http if firmware == "uefi-http" else set())
    assert bool(result["server"]["tftp"]) == (firmware != "uefi-http")


@pytest.mark.parametrize(("firmware", "loader"), [("bios", "boot/boot.ipxe"), ("uefi", "boot/snponly.efi")])
def test_a_bare_machine_boots_beside_another_dhcp_server(
    firmware: Firmware, loader: str, directory: Path, machine_needs: Callable[..., None]
) -> None:
    """The address is dnsmasq's, whose siaddr is its own; what to boot is ours (dhcp.mode = "proxy")."""
    machine_needs(firmware, proxy=True)
    command = [sys.executable, "-m", "fastboot", "demo", "--firmware", firmware, "--proxy", "--json"]
    code, result = run(command, directory)
    expect_success(code, result, directory)
    assert loader in result["server"]["tftp"]


def expect_installed(code: int, result: dict[str, Any], directory: Path) -> None:
    expect_success(code, result, directory, INSTALL_STEPS)
    once = ("node.armed", "node.installing", "node.installed", "lab/linux", "lab/initrd.gz", "node/.../meta-data")
    counts = result["server"]["counts"]
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 1)
    assert (counts["node/.../user-data"], counts["node.failed"], counts["node.refused"]) == (2, 0, 0)
    assert result["steps"][-1]["detail"] == "it says that it is bare01"


@pytest.mark.parametrize(
    "firmware",
    [
        "bios",
        "uefi",
        pytest.param("uefi-http", marks=pytest.mark.long),
        pytest.param("uefi-secure", marks=pytest.mark.long),
    ],
)
def test_an_armed_machine_installs_itself_once_and_boots_from_its_disk(
    firmware: Firmware, directory: Path, machine_needs: Callable[[Firmware], None]
) -> None:
    """An empty disk, no hand: its answers come by what stands on its command line, with a `;` in it, it reports,
    starts again from the network, is told its local disk, and that says whose it is."""
    machine_needs(firmware)
    command = [sys.executable, "-m", "fastboot", "demo", "--firmware", firmware, "--json"]
    code, result = run(command, directory)
    expect_installed(code, result, directory)


INSTALL = """
import sys
from fastboot.lab.vm import demo

script = "#!ipxe\\nset 210:string boot/\\nchain tftp://${next-server}/boot/pxelinux.0"
loaders, files = {"ipxe": "lab/chain.ipxe"}, {"lab/chain.ipxe": script}
sys.exit(demo.run("bios", nic="e1000", loaders=loaders, files=files, install=True, as_json=True))
"""


@pytest.mark.long
def test_a_machine_installs_itself_by_pxelinux(directory: Path, machine_needs: Callable[[Firmware], None]) -> None:
    machine_needs("bios")
    code, result = run([sys.executable, "-c", INSTALL], directory)
    expect_installed(code, result, directory)


# With such a menu iPXE asks the boot server 10.77.0.1 for its item 0x8000 (PXE 2.1).
BOOT_SERVER = """
import sys
from fastboot.lab.vm import demo

menu = "06010308078000010a4d0001090b80000866617374626f6f740a0400505845ff"
settings = f'[[dhcp.classes]]\\nname = "ipxe"\\n[dhcp.classes.options]\\n43 = {{ hex = "{menu}" }}\\n'
sys.exit(demo.run("bios", proxy=True, settings=settings, as_json=True))
"""


def test_a_machine_asks_port_4011(directory: Path, machine_needs: Callable[..., None]) -> None:
    machine_needs("bios", proxy=True)
    code, result = run([sys.executable, "-c", BOOT_SERVER], directory)
    expect_success(code, result, directory)
    assert result["server"]["acks"] == 3, "two addresses from the other server, and a boot file from port 4011"


# Option 210 is PXELINUX's path prefix: it takes what iPXE tells of DHCP for its own.
PXELINUX = """
import sys
from fastboot.lab.vm import demo

script = "#!ipxe\\nset 210:string boot/\\nchain tftp://${next-server}/boot/pxelinux.0"
loaders, files = {"ipxe": "lab/chain.ipxe"}, {"lab/chain.ipxe": script}
sys.exit(demo.run("bios", nic="e1000", loaders=loaders, files=files, as_json=True))
"""


def test_a_machine_boots_pxelinux_without_root(
    directory: Path, machine_needs: Callable[[Firmware], None], need: Need
) -> None:
    """QEMU's PXE ROM is iPXE: here it is told to go on to PXELINUX. The network card is another one as well."""
    machine_needs("bios")
    unshared = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", "unshare", "-Urn", "true"]
    need(subprocess.run(unshared, capture_output=True).returncode == 0, "the kernel allows no user namespaces")
    code, result = run([*unshared[:3], sys.executable, "-c", PXELINUX], directory)
    expect_success(code, result, directory)
    assert {"boot/pxelinux.0", "boot/ldlinux.c32"} <= set(result["server"]["tftp"])


LPXELINUX = """
import sys
from fastboot.lab.vm import demo

script = "#!ipxe\\nset 210:string http://${next-server}/boot/\\nchain tftp://${next-server}/boot/lpxelinux.0"
loaders, files = {"ipxe": "lab/chain.ipxe"}, {"lab/chain.ipxe": script}
sys.exit(demo.run("bios", loaders=loaders, files=files, http=True, as_json=True))
"""


@pytest.mark.long
def test_a_machine_boots_lpxelinux_by_http(directory: Path, machine_needs: Callable[..., None]) -> None:
    """With option 210 as the policy sends it to a PXE ROM; QEMU's is iPXE, so here a script sets it."""
    machine_needs("bios")
    code, result = run([sys.executable, "-c", LPXELINUX], directory)
    expect_success(code, result, directory)
    assert set(result["server"]["tftp"]) == {"lab/chain.ipxe", "boot/lpxelinux.0"}
    http = {"boot/ldlinux.c32", "boot/pxelinux.cfg/01-52-54-00-77-00-01", "lab/linux", "lab/initrd.gz"}
    assert set(result["server"]["http"]) == http


# The kernel is not there until the loader has asked for it: by then it is too late for the first try.
ABSENT = """
import sys
from pathlib import Path
from fastboot.lab.vm import demo, scenario

class Machine(scenario.Machine):
    async def power_on(self, network):
        kernel = self.directory / "boot" / scenario.KERNEL
        kernel.rename(away := kernel.with_name("away"))
        Story.back = lambda: away.exists() and away.rename(kernel)
        await super().power_on(network)

    def _command(self, network):
        return [word for word in super()._command(network) if word != "-no-reboot"]

class Story(scenario.Story):
    def hear(self, event):
        super().hear(event)
        if event["kind"].endswith(".missing") and event["details"]["path"].strip("/") == self.kernel:
            Story.back()

scenario.Machine, scenario.Story = Machine, Story
firmware, loader = sys.argv[1:]
script = "#!ipxe\\nset 210:string boot/\\nchain tftp://${next-server}/boot/pxelinux.0"
loaders, files = ({"ipxe": "lab/chain.ipxe"}, {"lab/chain.ipxe": script}) if loader == "pxelinux" else ({}, {})
nic = "e1000" if loader == "pxelinux" else "virtio-net-pci"
sys.exit(demo.run(firmware, nic=nic, loaders=loaders, files=files, as_json=True))
"""


@pytest.mark.long
@pytest.mark.parametrize(("firmware", "loader"), [("bios", "ipxe"), ("bios", "pxelinux"), ("uefi", "grub")])
def test_a_machine_whose_kernel_does_not_come_tries_again(
    firmware: Firmware, loader: str, directory: Path, machine_needs: Callable[[Firmware], None]
) -> None:
    machine_needs(firmware)
    code, result = run([sys.executable, "-c", ABSENT, firmware, loader], directory)
    expect_success(code, result, directory)


@pytest.mark.long
@pytest.mark.parametrize(
    ("firmware", "tftp", "http"),
    [
        ("bios", set(), {"boot/boot.ipxe", "lab/linux", "lab/initrd.gz"}),
        (
            "uefi",
            {"boot/shimx64.efi", "boot/grubx64.efi", "grub/grub.cfg", "grub/x86_64-efi/http.mod"},
            {"grub/grub.cfg-01-52-54-00-77-00-01", "lab/linux", "lab/initrd.gz"},
        ),
        (
            "uefi-secure",
            {
                *("boot/shimx64.efi", "boot/grubx64.efi", "grub/grub.cfg", "grub/x86_64-efi/http.mod"),
                *("lab/linux", "lab/initrd.gz"),
            },
            set(),
        ),
    ],
)
def test_what_speaks_http_goes_on_by_http(
    firmware: Firmware, tftp: set[str], http: set[str], directory: Path, machine_needs: Callable[..., None]
) -> None:
    """iPXE does; Debian's GRUB with a module that it loads, which Secure Boot, enforced here, forbids."""
    machine_needs(firmware)
    command = [sys.executable, "-m", "fastboot", "demo", "--live", "--firmware", firmware, "--http", "--json"]
    code, result = run(command, directory)
    expect_success(code, result, directory)
    assert (set(result["server"]["tftp"]), set(result["server"]["http"])) == (tftp, http)


# Half a minute without news is enough to know that the firmware took nothing.
UNSIGNED = """
import sys
from dataclasses import replace
from fastboot.lab.vm import demo, story

story.STEPS = tuple(replace(step, limit=40) for step in story.STEPS)
sys.exit(demo.run("uefi-secure", loaders={"uefi-x64": "boot/snponly.efi"}, as_json=True))
"""


@pytest.mark.long
def test_secure_boot_refuses_what_is_not_signed(directory: Path, machine_needs: Callable[..., None]) -> None:
    machine_needs("uefi-secure")
    code, result = run([sys.executable, "-c", UNSIGNED], directory)
    assert (code, result["failed_step"]) == (1, "kernel"), explain(result)
    assert set(result["server"]["tftp"]) == {"boot/snponly.efi"}


DISCS = """
import sys
from dataclasses import replace
from pathlib import Path
from fastboot.lab.vm import demo, machine, scenario, story

discs, variables, loader = Path(sys.argv[1]), *sys.argv[2:]
initrd = scenario._netboot()[1]
scenario._netboot = lambda: (discs / "linux", initrd)
machine.SECURE = ((machine.SECURE[0][0], variables),)
if loader:
    story.STEPS = tuple(replace(step, limit=40) for step in story.STEPS)
media = "".join(f"[[media]]\\nname = '{name}'\\niso = '{discs}/{name}.iso'\\n" for name in ("debian", "lab"))
loaders = {"uefi-x64": loader} if loader else {}
sys.exit(demo.run("uefi-secure", loaders=loaders, settings=media, http=True, as_json=True))
"""


@pytest.mark.long
@pytest.mark.parametrize("loader", ["", "boot/debian/shimx64.efi"])
def test_secure_boot_takes_the_chain_of_the_medium_that_knows_the_kernel(
    loader: str, directory: Path, tmp_path: Path, machine_needs: Callable[..., None], need: Need
) -> None:
    """The kernel is signed by one whom Debian's shim, of this system and on a disc, does not know; that on the
    other disc does, and is chosen: its GRUB has HTTP built in. Debian's, where it is named, ends at the kernel."""
    machine_needs("uefi-secure")
    for program, package in (("sbsign", "sbsigntool"), ("grub-mkimage", "grub-common"), ("xorriso", "xorriso")):
        need(shutil.which(program) is not None, f"{package} is not installed")
    make_discs(tmp_path)
    code, result = run([sys.executable, "-c", DISCS, str(tmp_path), str(VARIABLES), loader], directory)
    tftp, http = set(result["server"]["tftp"]), set(result["server"]["http"])
    if loader:
        # GRUB asks shim before it fetches the initrd.
        assert (code, result["failed_step"], http) == (1, "initrd", set()), explain(result)
        assert {"boot/debian/shimx64.efi", "boot/debian/grubx64.efi", "lab/linux"} <= tftp
    else:
        expect_success(code, result, directory)
        own = "grub.cfg-01-52-54-00-77-00-01"
        assert tftp == {"boot/lab/shimx64.efi", "boot/lab/grubx64.efi", f"EFI/BOOT/{own}"}
        assert http == {f"grub/{own}", "lab/linux", "lab/initrd.gz"}


SPOILED = """
import sys
from fastboot.lab.vm import demo, media

honest = media.make
media.recipe = lambda: iter([("good", 1000), ("dir/bad", 1000)])

def spoiled(root):
    manifest = honest(root)
    with (root / "dir" / "bad").open("r+b") as file:
        octet = file.read(1)[0]
        file.seek(0)
        file.write(bytes([octet ^ 1]))
    return manifest

media.make = spoiled
sys.exit(demo.run("bios", as_json=True))
"""


def test_one_wrong_bit_fails_the_demo(directory: Path, machine_needs: Callable[[Firmware], None]) -> None:
    machine_needs("bios")
    code, result = run([sys.executable, "-c", SPOILED], directory)
    assert code == 1 and not result["ok"]
    assert any("./dir/bad" in fault for fault in result["faults"]), explain(result)
    assert result["media"] | {"digest": ""} == {"files": 2, "octets": 2000, "digest": "", "matched": 1}
    assert (Path(result["logs"]) / "console.log").exists(), "a failure leaves its logs"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_outlives_a_demo_that_is_interrupted(
    number: signal.Signals, code: int, directory: Path, machine_needs: Callable[[Firmware], None]
) -> None:
    machine_needs("bios")
    environment = {**os.environ, "PYTHONPATH": PATH, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fastboot", "demo"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        told = []
        for line in process.stdout:
            told.append(line)
            if "switched on" in line:
                break
        started = children(process.pid)
        assert len(started) == 2, f"the server and the machine run: {told}"
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == code, rest
    deadline = time.monotonic() + 10
    while not all(map(gone, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, started))
    if number != signal.SIGKILL:
        assert "interrupted" in rest and not list(directory.iterdir())

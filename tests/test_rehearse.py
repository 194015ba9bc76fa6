"""`fastboot rehearse`: machines of every kind boot from the real server, and one that does not says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dhcpkit import need
from typer.testing import CliRunner

from fastboot import config
from fastboot.boot.render import Renderer
from fastboot.cli import app
from fastboot.lab import interrupt
from fastboot.lab.namespace import LabError
from fastboot.lab.rehearsal import bootfile
from fastboot.lab.rehearsal.command import amount_of
from fastboot.lab.rehearsal.kinds import (
    ANACONDA_DHCP,
    BIOS_DHCP,
    DISCOVER,
    EDK2_DHCP,
    EDK2_HTTP_DHCP,
    IPXE_DHCP,
    LINUX_DHCP,
    LOADERS,
    REQUEST,
    Dhcp,
    loader_of,
    mixed,
)
from fastboot.lab.rehearsal.machine import Machine, Place
from fastboot.lab.rehearsal.report import Report, show
from fastboot.lab.rehearsal.run import paper
from fastboot.lab.rehearsal.site import plugs_of
from fastboot.lab.rehearsal.watch import Watch
from fastboot.model import Client, ConfigError, Node, Profile

VECTORS = Path(__file__).parent / "vectors" / "dhcp"
SERVER = IPv4Address("10.77.0.1")


@pytest.mark.parametrize(
    ("vector", "dhcp", "type_"),
    [
        ("edk2-pxe-discover", EDK2_DHCP, DISCOVER),
        ("edk2-pxe-request", EDK2_DHCP, REQUEST),
        ("edk2-http-discover", EDK2_HTTP_DHCP, DISCOVER),
        ("edk2-http-request", EDK2_HTTP_DHCP, REQUEST),
        ("ipxe-rom-discover", IPXE_DHCP, DISCOVER),
        ("ipxe-rom-request", IPXE_DHCP, REQUEST),
        ("intel-rom-discover", BIOS_DHCP, DISCOVER),
        ("anaconda-discover", ANACONDA_DHCP, DISCOVER),
        ("udhcpc-discover", LINUX_DHCP, DISCOVER),
        ("udhcpc-request", LINUX_DHCP, REQUEST),
    ],
)
def test_messages_are_those_of_the_real_client(vector: str, dhcp: Dhcp, type_: int) -> None:
    lines = (VECTORS / f"{vector}.hex").read_text().splitlines()
    real = bytes.fromhex("".join(line.split("#")[0] for line in lines))
    made = dhcp.message(type_, real[28:34], int.from_bytes(real[4:8]))
    for value in (bytes.fromhex("0a4d0001"), bytes.fromhex("0a4d0064")):  # the offer's server and address
        for code in (50, 54):
            made = made.replace(bytes((code, 4)) + value, bytes((code, 4, 0, 0, 0, 0)))
            real = real.replace(bytes((code, 4)) + value, bytes((code, 4, 0, 0, 0, 0)))
    if vector.startswith("intel"):  # each has a machine id of its own
        real = real.replace(bytes.fromhex("6111000001"), bytes.fromhex("6111000000"))
        at = made.index(b"\x61\x11\0")
        real = real[: at + 3] + made[at + 3 : at + 19] + real[at + 19 :]
    assert made == real


RENDERER = Renderer(
    (Node("node01", ("52:54:00:00:00:01",), profile="live"),),
    (
        Profile(
            "live",
            kernel="/lab/linux",
            initrd=("/lab/initrd.gz", "/lab/more"),
            arguments="a=1 b='x y'",
            installs=False,
        ),
    ),
)
NAMES = {"pxelinux": "pxelinux.cfg/default", "grub": "grub/grub.cfg", "ipxe": "boot.ipxe"}


@pytest.mark.parametrize("language", NAMES)
def test_rendered_files_are_followed(language: str) -> None:
    known, unknown = (
        RENDERER.render(tuple(NAMES[language].split("/")), Client(IPv4Address("10.77.0.9"), SERVER, "http", mac))
        for mac in ("52:54:00:00:00:01", "52:54:00:00:00:02")
    )
    assert known and unknown
    boot = bootfile.read(language, known.decode())
    assert boot.kernel.endswith("/lab/linux") and "a=1" in boot.arguments
    assert [name.rpartition("/lab/")[2] for name in boot.initrds] == ["initrd.gz", "more"]
    assert bootfile.read(language, unknown.decode()).local  # a menu, whose default is the local disk


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("pxelinux", "DEFAULT a\nLABEL b\nLINUX x\n", "no label 'a'"),
        ("pxelinux", "DEFAULT a\nLABEL a\n", "no kernel"),
        ("grub", "set default='x'\n", "no menu entry 'x'"),
        ("ipxe", "boot", "#!ipxe"),
        ("ipxe", "#!ipxe\n:a\ngoto a\n", "circles"),
        ("ipxe", "#!ipxe\ngoto b\n", "no label 'b'"),
    ],
)
def test_what_can_not_be_followed_is_named(language: str, text: str, words: str) -> None:
    with pytest.raises(bootfile.Unreadable, match=words):
        bootfile.read(language, text)


def test_chains_and_older_words_are_followed() -> None:
    assert (
        bootfile.read("ipxe", "#!ipxe\nchain --replace http://10.0.0.1/x.ipxe\n").chain == "http://10.0.0.1/x.ipxe"
    )
    old = bootfile.read("pxelinux", "default linux\nlabel linux\n kernel vmlinuz\n append initrd=i1,i2 quiet\n")
    assert (old.kernel, old.initrds) == ("vmlinuz", ("i1", "i2"))


def test_a_module_that_is_missing_is_another_way() -> None:
    text = (
        "if insmod http; then set here='http,10.0.0.1'; else set here='tftp,10.0.0.1'; fi\n"
        "menuentry 'a' --id 'a' {\n  linux ($here)'/lab/linux' 'x'\n}\n"
    )
    assert bootfile.modules("grub", text) == ("http",)
    assert bootfile.read("grub", text).kernel == "(tftp,10.0.0.1)/lab/linux"
    assert bootfile.read("grub", text, frozenset({"http"})).kernel == "(http,10.0.0.1)/lab/linux"


def test_grub_goes_on_by_http_where_it_can() -> None:
    text = (
        "set default=0\nconfigfile (http,10.77.0.1:8080)'/grub/a b.cfg'\n"
        "menuentry 'a' --id 'a' {\n  linux /lab/linux\n}\n"
    )
    assert bootfile.modules("grub", text) == ("http",)
    assert bootfile.read("grub", text).kernel == "/lab/linux"
    assert bootfile.read("grub", text, frozenset({"http"})).chain == "(http,10.77.0.1:8080)/grub/a b.cfg"


@pytest.mark.parametrize("language", NAMES)
def test_somebody_chooses_in_a_menu(language: str) -> None:
    known = Client(IPv4Address("10.77.0.9"), SERVER, "http", "52:54:00:00:00:02")
    menu = RENDERER.render(tuple(NAMES[language].split("/")), known)
    assert menu and bootfile.read(language, menu.decode(), choice="live").kernel.endswith("/lab/linux")
    with pytest.raises(bootfile.Unreadable, match=r"there is no .*'dead'"):
        bootfile.read(language, menu.decode(), choice="dead")


def test_names_mean_what_each_loader_means() -> None:
    place = Place("tftp", SERVER, 69, "boot/pxelinux.0")
    assert place.find("ldlinux.c32").path == "boot/ldlinux.c32"
    assert place.find("::/lab/linux").path == "/lab/linux"
    assert place.find("(http,10.77.0.2:8080)/a b") == Place("http", IPv4Address("10.77.0.2"), 8080, "/a%20b")
    assert place.find("ftp://10.77.0.3/media/x") == Place("ftp", IPv4Address("10.77.0.3"), 21, "/media/x")
    with pytest.raises(ValueError):
        place.find("http://host/x")


def test_loaders_are_known_by_their_names() -> None:
    names = (
        "boot/pxelinux.0",
        "lpxelinux.0",
        "sb/shimx64.efi",
        "grubx64.efi",
        "undionly.kpxe",
        "snponly-arm64.efi",
    )
    titles = [loader.title for name in names if (loader := loader_of(name))]
    assert titles == ["PXELINUX", "PXELINUX", "shim", "GRUB", "iPXE", "iPXE"]
    assert loader_of("wdsnbp.com") is None
    found = list(LOADERS[0].configurations("52:54:00:00:00:01", IPv4Address("10.77.1.5")))
    assert found[:3] == ["pxelinux.cfg/01-52-54-00-00-00-01", "pxelinux.cfg/0A4D0105", "pxelinux.cfg/0A4D010"]
    assert (len(found), found[-1]) == (10, "pxelinux.cfg/default")


def test_kinds_are_mixed_evenly() -> None:
    kinds = mixed({"bios": 1, "uefi": 3}, 8)
    assert kinds.count("uefi") == 6 and kinds[:4].count("bios") == 1


def test_amounts() -> None:
    assert [amount_of("--link", text, "bit") for text in ("1G", "100M", "2.5gbit")] == [1e9, 1e8, 2.5e9]
    assert amount_of("--packages", "300MB", "B") == 3e8
    with pytest.raises(ConfigError, match="--link: 'fast': write"):
        amount_of("--link", "fast", "bit")


def test_the_server_gets_the_addresses_that_its_subnets_need() -> None:
    settings = config.Config(
        interface=("nowhere0",),
        dhcp=config.Dhcp(
            subnets=(
                config.Subnet(network="10.77.0.0/24", pools=("10.77.0.1-10.77.0.9",), gateway="10.77.0.10"),
                config.Subnet(network="10.88.0.0/24", gateway="10.88.0.1", relayed=True),
            )
        ),
    )
    (plug,) = plugs_of(settings)
    assert [str(address) for address in plug.addresses] == ["10.77.0.11/24"]
    assert plug.networks == (IPv4Network("10.77.0.0/24"),)
    assert plug.relayed == ((IPv4Network("10.88.0.0/24"), IPv4Address("10.88.0.1")),)
    with pytest.raises(LabError, match="need an address first"):
        plugs_of(config.Config(interface=("nowhere0",), tftp=config.Tftp()))


# ---- the whole way


def site(directory: Path, *, kernel: str = "/lab/linux", pool: str = "10.77.1.0-10.77.20.250") -> Path:
    root, media = directory / "root", directory / "media"
    (root / "lab").mkdir(parents=True)
    (media / "images").mkdir(parents=True)
    (root / "lab/linux").write_bytes(bytes(300_000))
    (root / "lab/initrd.gz").write_bytes(bytes(600_000))
    (media / "images/install.img").write_bytes(bytes(1_000_000))
    (media / ".treeinfo").write_text("[general]\nname = x\n[stage2]\nmainimage = images/install.img\n")
    file = directory / "fastboot.toml"
    file.write_text(f"""\
interface = "eno7"
state = "state"
roots = ["root"]
[dhcp]
[[dhcp.subnets]]
network = "10.77.0.0/16"
pools = ["{pool}"]
[[dhcp.subnets]]
network = "10.88.0.0/24"
gateway = "10.88.0.1"
pools = ["10.88.0.100-10.88.0.101"]
relayed = true
[tftp]
[ftp]
[http]
[[media]]
name = "rocky"
path = "media"
[[profiles]]
name = "rocky"
media = "rocky"
kernel = "{kernel}"
initrd = "/lab/initrd.gz"
arguments = "quiet inst.repo={{{{ media }}}}"
[[nodes]]
name = "node01"
macs = ["52:54:00:00:00:01"]
address = "10.88.0.7"
""")
    return file


def rehearse(file: Path, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """From a directory with one that is called fastboot, as /opt is where the clone is there: it is no package."""
    need("ip", "tc", *prefix[:1])
    (file.parent / "fastboot").mkdir(exist_ok=True)
    command = [*prefix, sys.executable, "-P", "-m", "fastboot", "rehearse", "-c", str(file), "--json"]
    done = subprocess.run(
        [*command, "--profile", "rocky", *words], cwd=file.parent, capture_output=True, text=True, timeout=100
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_twenty_machines_of_all_kinds_boot(tmp_path: Path) -> None:
    file, picture = site(tmp_path), tmp_path / "morning.png"
    code, facts = rehearse(
        file, "--nodes", "20", "--kinds", "bios=1,uefi=1,ipxe=1,uefi-http=1", "--spread", "0.5", "--link", "1G",
        "--picture", str(picture),
    )  # fmt: skip
    assert (code, facts["booted"], facts["failed"]) == (0, 20, [])
    assert facts["results"] == {"linux": 20}
    assert {stage: figures["machines"] for stage, figures in facts["stages"].items()} == {
        "address": 20, "loader": 20, "configuration": 10, "system": 20, "media": 20,
    }  # fmt: skip
    assert facts["octets"] == sum(facts["flow"]) > 20 * 1_900_000
    steps = [step["what"] for step in facts["slowest"]["steps"]]
    assert steps[0] == "an address by DHCP" and "RETR /media/rocky/images/install.img" in steps
    assert facts["limits"] and facts["server_dropped"] == facts["own_dropped"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "state").exists(), "the real state directory is left alone"
    assert not Path("/sys/class/net/eno7").exists()


@pytest.mark.parametrize(
    ("told", "answers", "files"),
    [
        ("inst.ks={{ answers }}/ks.cfg", "kickstart", ["ks.cfg"]),
        ("autoinstall ds=nocloud-net;s={{ answers }}/", "autoinstall", ["meta-data", "user-data", "vendor-data"]),
    ],
)
def test_machines_are_armed_read_their_answers_and_report(
    tmp_path: Path, told: str, answers: str, files: list[str]
) -> None:
    file = site(tmp_path)
    (tmp_path / "answers.j2").write_text("#cloud-config\n# curl {{ done }}\n")
    keys = f' {told}"\nanswers = "answers.j2"\nformat = "{answers}"'
    file.write_text(file.read_text().replace('{{ media }}"', "{{ media }}" + keys))
    code, facts = rehearse(file, "--nodes", "8", "--kinds", "bios=1,uefi=1,ipxe=1,uefi-http=1", "--spread", "0.5")
    assert (code, facts["failed"], facts["results"]) == (0, [], {"linux": 8})
    assert facts["stages"]["answers"]["machines"] == facts["stages"]["report"]["machines"] == 8
    steps = [step["what"].rpartition("/")[2] for step in facts["slowest"]["steps"] if "/node/" in step["what"]]
    assert steps == [*files, "done"]


def test_loss_and_slow_machines_take_longer_and_an_ordinary_user_sees_it(tmp_path: Path) -> None:
    code, facts = rehearse(
        site(tmp_path), "--nodes", "6", "--kinds", "bios=1,ipxe=1", "--spread", "0", "--loss", "1", "--slow", "1",
        "--no-media", prefix=("unshare", "--user", "--map-user=1000", "--map-group=1000"),
    )  # fmt: skip
    assert (code, facts["booted"]) == (0, 6)
    assert facts["lost"] > 0 and "media" not in facts["stages"]
    assert any(limit.startswith("loss:") for limit in facts["limits"])
    assert facts["stages"]["system"]["worst"] > 0.9 * 900_000 / 1408 / 1000


def test_a_missing_kernel_is_told(tmp_path: Path) -> None:
    code, facts = rehearse(
        site(tmp_path, kernel="/lab/none"), "--nodes", "4", "--kinds", "bios=1,ipxe=1", "--spread", "0"
    )
    assert (code, facts["booted"]) == (1, 0)
    for machine in facts["failed"]:
        assert machine["stopped"] == "system"
        wanted = "/lab/none by TFTP from 10.77.0.1: ERROR 1" if machine["kind"] == "bios" else "status 404"
        assert wanted in machine["fault"]
        assert machine["steps"][-1]["what"].endswith("/lab/none")


def test_too_few_addresses_are_told(tmp_path: Path) -> None:
    file = site(tmp_path, pool="10.77.1.0-10.77.1.1")
    code, facts = rehearse(
        file, "--nodes", "8", "--kinds", "ipxe=1", "--spread", "0", "--limit", "4", "--no-media"
    )
    assert (code, facts["booted"]) == (1, 5)  # two and two of the pools, and the node
    assert {machine["stopped"] for machine in facts["failed"]} == {"address"}
    assert facts["silence"]["exhausted"] >= 3
    assert "still at this: an address by DHCP" in facts["failed"][0]["fault"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kinds", "toaster=1"), "write bios, uefi, ipxe"),
        (("--kinds", "bios=0"), "no machine at all"),
        (("--kinds", "bios=²"), "write bios, uefi, ipxe"),
        (("--link", "fast"), "--link: "),
        (("--link", "0G"), "--link: "),
    ],
)
def test_wrong_arguments_are_named(words: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["rehearse", *words])
    assert told in str(result.exception)


def refusal(file: Path, *words: str) -> str:
    command = [sys.executable, "-m", "fastboot", "rehearse", "-c", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr


def test_a_picture_that_can_not_be_written_is_told_before(tmp_path: Path) -> None:
    file = site(tmp_path)
    none = tmp_path / "none" / "x.png"
    assert refusal(file, "--picture", str(none)) == f"fastboot: --picture: {none}: No such file or directory\n"
    assert "Is a directory" in refusal(file, "--picture", str(tmp_path))


def test_what_is_told_is_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "[red]lab.toml"
    file.write_text('interface = "eno7"\nstate = "state"\nroots = ["."]\n[tftp]\n')
    assert 'needs [dhcp] in mode "server"' in refusal(file)
    machine = Machine(1, "new-[b]", "bios", bytes(6), 0, stopped="system", fault="[dhcp] in /lab/[i]linux")
    with StringIO() as told:
        show(Report([machine], [], Watch(None), None, 0, 0), paper(file=told, width=200))
        assert "new-[b] (" in told.getvalue() and "[dhcp] in /lab/[i]linux" in told.getvalue()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_rehearsal_ends_at_once_and_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    need("ip", "tc")
    words = ["-c", str(site(tmp_path)), "--spread", "80", "--profile", "rocky"]
    with (
        TemporaryDirectory() as scratch,  # a short path: the server has a socket in it
        subprocess.Popen(
            [sys.executable, "-m", "fastboot", "rehearse", *words],
            env={**os.environ, "TMPDIR": scratch},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        while not any('"sent"' in log.read_text() for log in Path(scratch).glob("*/server.log")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, number)
        told = process.communicate(timeout=20)
        assert process.returncode == code
        assert told == ("", f"fastboot: interrupted by {number.name}: the machines and the server are stopped\n")
        assert not list(Path(scratch).iterdir())


def test_what_fails_by_a_signal_is_interrupted() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise LabError("ip: killed by the same signal")

    with pytest.raises(interrupt.Interrupted) as caught:
        interrupt.run(work())
    assert (caught.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_thousand_machines_in_one_second(tmp_path: Path) -> None:
    """DESIGN section 9: a storm is not an event."""
    need("ip", "tc")
    words = ["--nodes", "1000", "--spread", "1", "--limit", "200", "--profile", "rocky", "--json"]
    command = [sys.executable, "-m", "fastboot", "rehearse", "-c", str(site(tmp_path)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["booted"], facts["failed"]) == (0, 1000, [])

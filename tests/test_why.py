"""`fastboot why`: machines that fail in every way that has a name, on a real server, and what is said of them."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dhcpkit import asking
from tftpkit import error
from whykit import (
    ANACONDA,
    ARM,
    BIOS,
    REQUEST,
    RISCV,
    SERVER,
    UEFI,
    Bench,
    PacketMachine,
    bench,
)

DECLINE = 4


@pytest.fixture(scope="module")
def here() -> Iterator[Bench]:
    with TemporaryDirectory(prefix="fbw-") as directory, bench(Path(directory)) as made:
        yield made


# ---- no address


def test_never_heard(here: Bench) -> None:
    (found,) = here.why("asleep01", later=3600)
    assert (found["state"], found["cause"], found["heard"]) == ("never heard of", "never-heard", None)
    assert "52:54:00:aa:00:06" in found["text"] and "is one of them a slip?" not in found["text"]
    here.machine("52:54:00:aa:00:16").offered()
    (found,) = here.why("asleep01")
    assert "52:54:00:aa:00:16, which no node has, was heard and is almost 52:54:00:aa:00:06" in found["text"]


@pytest.mark.parametrize("word", ["5254.00aa.0006", "52-54-00-AA-00-06"])
def test_a_mac_is_known_in_any_spelling(here: Bench, word: str) -> None:
    (found,) = here.why(word)
    assert found["machine"] == "asleep01"


def test_no_subnet(here: Bench) -> None:
    machine = here.machine()
    machine.silence(giaddr="10.99.0.1")
    (found,) = here.why(machine.mac)
    assert (found["state"], found["cause"]) == ("stuck", "no-subnet")
    assert "it asks from 10.99.0.1, which is in no subnet" in found["text"]
    assert "dhcp.subnets" in found["fix"]


def test_ignored(here: Bench) -> None:
    machine = here.machine("52:54:00:01:ba:be")
    machine.silence(options=(*BIOS, (77, b"ignored")))  # a class of its own, which decide is asked about
    assert here.cause(machine.mac) == "ignored"


def test_undecided(here: Bench) -> None:
    machine = here.machine("52:54:00:01:de:ad")
    machine.silence(options=(*BIOS, (77, b"undecided")))
    assert here.cause(machine.mac) == "undecided"


def test_pool_exhausted(here: Bench) -> None:
    first, second = here.machine(), here.machine()
    for machine in (first, second):
        machine.silence(giaddr="10.88.0.1")
    (found,) = here.why(second.mac)
    assert found["cause"] == "pool-exhausted" and "10.88.0.0" in found["text"]
    assert "dhcp.subnets.pools" in found["fix"]


def test_other_dhcp_server(here: Bench) -> None:
    machine = here.machine()
    machine.offered()
    machine.silence(REQUEST, (*BIOS, *asking("10.77.0.60", "10.77.0.2")))
    (found,) = here.why(machine.mac)
    assert found["cause"] == "other-dhcp-server" and "10.77.0.2" in found["text"]


def test_malformed_request(here: Bench) -> None:
    machine = here.machine()
    packet = machine.packet(1, BIOS)
    machine.send(packet[:-1] + bytes((12, 200)) + b"x", answers=0)
    here.machine().offered()  # so that the first is surely taken
    (found,) = here.why(machine.mac)
    assert found["cause"] == "malformed-request" and "option_overrun" in found["text"]


def test_bootp_off(here: Bench) -> None:
    machine = here.machine()
    machine.silence(0, ())
    assert here.cause(machine.mac) == "bootp-off"


def test_old_address(here: Bench) -> None:
    machine = here.machine()
    machine.silence(REQUEST, asking("10.77.0.240"))
    assert here.cause(machine.mac, later=60) is None, "it may still start over"
    (found,) = here.why(machine.mac, later=80)
    assert found["cause"] == "old-address" and "nothing is known" in found["text"]


def test_address_refused(here: Bench) -> None:
    owner, machine = here.machine(), here.machine()
    address = owner.lease()
    machine.send(machine.packet(REQUEST, (*BIOS, *asking(address, SERVER))))
    assert here.cause(machine.mac) is None
    (found,) = here.why(machine.mac, later=80)
    assert found["cause"] == "address-refused" and address in found["text"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [(b"it is in use", "address-conflict"), (b"Lease is denied upon entering bound", "firmware-declined")],
)
def test_declined(here: Bench, text: bytes, cause: str) -> None:
    machine = here.machine()
    address = machine.lease(UEFI)
    machine.silence(DECLINE, (*asking(address, SERVER), (56, text)))
    (found,) = here.why(machine.mac, later=30)
    assert found["cause"] == cause and address in found["text"] and text.decode() in found["text"]


def test_offer_not_taken(here: Bench) -> None:
    machine = here.machine()
    machine.offered()
    (found,) = here.why(machine.mac, later=5)
    assert (found["state"], found["cause"]) == ("on its way", None)
    (found,) = here.why(machine.mac, later=25)
    assert (found["state"], found["cause"]) == ("stuck", "offer-not-taken")


def test_no_loader(here: Bench) -> None:
    machine = here.machine()
    machine.lease(RISCV)
    (found,) = here.why(machine.mac)
    assert (
        found["cause"] == "no-loader" and "0x1b" in found["text"] and "boot.loaders.uefi-riscv64" in found["text"]
    )


# ---- the loader


def test_loader_never_asked(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    assert here.cause(machine.mac, later=20) is None
    (found,) = here.why(machine.mac, later=40)
    assert found["cause"] == "loader-never-asked"
    assert "pxelinux.0" in found["text"] and "UDP 69" in found["fix"]


def test_loader_missing(here: Bench) -> None:
    machine = here.machine()
    machine.lease(ARM)
    assert machine.tftp("none/shimaa64.efi") == -1
    (found,) = here.why(machine.mac)
    assert found["cause"] == "loader-missing"
    assert found["text"] == "its loader, none/shimaa64.efi, is not there"
    assert found["fix"].startswith("apt-get install shim-signed, or put the file")


def test_next_loader_missing(here: Bench) -> None:
    machine = here.machine()
    machine.lease(UEFI)
    machine.tftp("shimx64.efi")
    assert machine.tftp("revocations_sku.efi") == machine.tftp("none/grubx64.efi") == -1
    (found,) = here.why(machine.mac)
    assert found["cause"] == "next-loader-missing" and "none/grubx64.efi" in found["text"]


def test_loader_module_missing(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("pxelinux.0")
    assert machine.tftp("vesamenu9.c32") == -1
    (found,) = here.why(machine.mac)
    assert found["cause"] == "loader-module-missing" and "syslinux-common" in found["fix"]


def test_file_refused(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("pxelinux.0")
    assert machine.tftp("lab/huge/vmlinuz") == -1
    (found,) = here.why(machine.mac)
    assert found["cause"] == "file-refused" and "tftp.max_file" in found["fix"]


def test_no_acknowledgement(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("pxelinux.0", blocks=0, hold=True)
    assert here.cause(machine.mac) is None
    for event in here.client.events(replay=True):
        if event["kind"] == "tftp.failed" and event.get("mac") == machine.mac:
            break
    machine.held.pop().close()
    (found,) = here.why(machine.mac)
    assert found["cause"] == "no-acknowledgement" and "pxelinux.0" in found["text"]
    assert "tftp.single_port = true" in found["fix"] and "tftp.data_ports" in found["fix"]


def test_client_gave_up(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("big/initrd.img", blocks=3, end=error(3, b"no room"))
    assert here.cause(machine.mac) is None
    (found,) = here.why(machine.mac, later=20)
    assert found["cause"] == "client-gave-up" and "ERROR 3: its buffer is too small" in found["text"]


def test_client_vanished(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("pxelinux.0")
    machine.tftp("big/initrd.img", blocks=3)  # its port is closed, which ICMP tells
    for event in here.client.events(replay=True):
        if event["kind"] == "tftp.gone" and event.get("mac") == machine.mac:
            break
    (found,) = here.why(machine.mac, later=20)
    assert found["cause"] == "client-vanished" and "big/initrd.img" in found["text"]


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (("shimx64.efi",), "secure-boot-refused-shim"),
        (("shimx64.efi", "grubx64.efi"), "secure-boot-refused-grub"),
    ],
)
def test_secure_boot(here: Bench, files: tuple[str, ...], cause: str) -> None:
    machine = here.machine()
    machine.lease(UEFI)
    for name in files:
        machine.tftp(name)
    assert here.cause(machine.mac, later=20) is None
    (found,) = here.why(machine.mac, later=70)
    assert found["cause"] == cause and files[-1] in found["text"]


def test_loader_silent(here: Bench) -> None:
    machine = here.machine()
    machine.lease()
    machine.tftp("pxelinux.0")
    assert here.cause(machine.mac, later=70) == "loader-silent"


# ---- its configuration, kernel and initrd


def boots(here: Bench, mac: str) -> tuple[str, object]:
    """Take a machine as far as its configuration."""
    machine = here.machine(mac)
    machine.lease()
    machine.tftp("pxelinux.0")
    machine.tftp(f"pxelinux.cfg/01-{mac.replace(':', '-')}")
    machine.tftp("pxelinux.cfg/default")
    return mac, machine


def test_local_disk_for_a_reason(here: Bench) -> None:
    for name, mac, cause, words in (
        ("install01", "52:54:00:aa:00:03", "not-armed", "fastboot arm install01"),
        ("bare01", "52:54:00:aa:00:05", "no-profile", "give bare01 a profile"),
        ("52:54:00:dd:00:01", "52:54:00:dd:00:01", "unknown-machine", 'macs = ["52:54:00:dd:00:01"]'),
    ):
        boots(here, mac)
        (found,) = here.why(name, later=40)
        assert (found["state"], found["cause"]) == ("local disk", cause), found
        assert words in found["fix"]


def test_profile_not_rendered(here: Bench) -> None:
    boots(here, "52:54:00:aa:00:04")
    (found,) = here.why("broken01")
    assert found["cause"] == "profile-not-rendered" and "nothing" in found["text"]


def test_kernel_and_initrd_missing(here: Bench) -> None:
    machine = here.machine("52:54:00:aa:00:02")
    machine.lease()
    for name in ("pxelinux.0", "pxelinux.cfg/default"):
        machine.tftp(name)
    assert machine.tftp("lab/none") == -1
    (found,) = here.why("lost01")
    assert found["cause"] == "kernel-missing" and "lab/none" in found["text"] and "lost" in found["fix"]
    machine.tftp("lab/linux")
    assert machine.tftp("lab/no-initrd.gz") == -1
    assert here.cause("lost01") == "initrd-missing"


def test_kernel_never_asked(here: Bench) -> None:
    boots(here, "52:54:00:aa:00:07")
    assert here.cause("live02", later=30) is None
    assert here.cause("live02", later=70) == "kernel-never-asked"


# ---- the system


def test_system_silent_then_well(here: Bench) -> None:
    machine = here.machine("52:54:00:aa:00:08")
    machine.lease()
    for name in ("pxelinux.0", "pxelinux.cfg/default", "lab/linux"):
        machine.tftp(name)
    assert here.cause("live03", later=130) == "kernel-silent"
    machine.tftp("lab/initrd.gz")
    assert here.cause("live03", later=130) is None
    assert here.cause("live03", later=310) == "system-silent"
    machine.lease(())
    (found,) = here.why("live03", later=310)
    assert (found["state"], found["cause"]) == ("well", None)
    steps = [each["step"] for each in found["steps"]]
    assert steps == ["heard", "address", "loader", "configuration", "kernel", "initrd", "installer"]


def test_media_never_asked_and_missing(here: Bench) -> None:
    machine = here.machine("52:54:00:aa:00:0a")
    machine.lease()
    for name in ("pxelinux.0", "pxelinux.cfg/default", "lab/linux", "lab/initrd.gz"):
        machine.tftp(name)
    machine.lease(ANACONDA)
    assert here.cause("install02", later=60) is None
    (found,) = here.why("install02", later=130)
    assert found["cause"] == "media-never-asked" and "TCP 21 (FTP) and TCP 80 (HTTP)" in found["fix"]
    assert machine.http("/media/none/images/install.img") == 404
    (found,) = here.why("install02", later=70)
    assert found["cause"] == "media-missing" and "media/none/images/install.img" in found["text"]
    assert machine.http("/lab/install.img") == 200
    assert machine.http("/lab/b.rpm") == 404
    (found,) = here.why("install02", later=70)
    assert found["cause"] == "packages-missing" and "lab/b.rpm" in found["text"]


# ---- installing


def installer(here: Bench, mac: str) -> PacketMachine:
    """Take an armed machine as far as its installer's address."""
    machine = here.machine(mac)
    machine.lease()
    for name in ("pxelinux.0", "pxelinux.cfg/default", "lab/linux", "lab/initrd.gz"):
        assert machine.tftp(name) > 0
    machine.lease(ANACONDA)
    return machine


def test_armed_later(here: Bench) -> None:
    boots(here, "52:54:00:aa:01:04")
    assert here.cause("auto04", later=10) == "not-armed"
    here.arm("auto04")
    (found,) = here.why("auto04", later=10)
    assert (found["cause"], found["fix"].split(":")[0]) == ("armed-later", "restart auto04")


def test_answers_refused_then_never_reported_then_installed(here: Bench) -> None:
    token = here.arm("auto01")
    machine = installer(here, "52:54:00:aa:01:01")
    (found,) = here.why("auto01", later=10)
    assert (found["state"], found["cause"]) == ("on its way", None)
    assert machine.http("/lab/install.img") == 200
    assert here.cause("auto01", later=100) is None
    assert here.cause("auto01", later=310) == "answers-never-asked"
    assert machine.http("/node/0123456789abcdef0123456789abcdef/ks.cfg") == 404
    (found,) = here.why("auto01")
    assert found["cause"] == "answers-refused" and "no such token" in found["text"]
    assert machine.http(f"/node/{token}/ks.cfg") == 200
    (found,) = here.why("auto01", later=600)
    assert (found["state"], found["cause"]) == ("on its way", None)
    (found,) = here.why("auto01", later=2400)
    assert found["cause"] == "never-reported" and "40 minutes" in found["text"] and "{{ done }}" in found["fix"]
    assert token not in json.dumps(found)
    assert machine.http(f"/node/{token}/done") == 200
    (found,) = here.why("auto01", later=2400)
    assert (found["state"], found["cause"], found["steps"][-1]["step"]) == ("well", None, "done")


def test_install_failed(here: Bench) -> None:
    token = here.arm("auto02")
    machine = installer(here, "52:54:00:aa:01:02")
    assert machine.http(f"/node/{token}/ks.cfg") == 200
    assert machine.http(f"/node/{token}/failed?text=no%20disk%1b[31m") == 200
    (found,) = here.why("auto02")
    assert found["cause"] == "install-failed" and "no disk" in found["text"] and "\x1b" not in found["text"]
    assert "fastboot arm auto02" in found["fix"]


def test_install_interrupted(here: Bench) -> None:
    token = here.arm("auto03")
    machine = installer(here, "52:54:00:aa:01:03")
    assert machine.http(f"/node/{token}/ks.cfg") == 200
    machine.lease()
    machine.tftp("pxelinux.0")
    machine.tftp("pxelinux.cfg/default")
    (found,) = here.why("auto03")
    assert found["cause"] == "install-interrupted" and "fastboot disarm auto03" in found["fix"]


def test_a_begin_that_can_not_be_written(here: Bench) -> None:
    here.arm("install01")
    machine = here.machine("52:54:00:aa:00:03")
    machine.lease()
    machine.tftp("pxelinux.0")
    before = resource.prlimit(here.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(here.pid, resource.RLIMIT_FSIZE, (8192, before[1]))  # for rendered files, and not the store
    try:
        machine.tftp("pxelinux.cfg/01-52-54-00-aa-00-03")
    finally:
        resource.prlimit(here.pid, resource.RLIMIT_FSIZE, before)
    (found,) = here.why("install01", later=40)
    assert found["cause"] == "begin-not-written" and "can not be written" in found["text"]
    assert "armed still" in found["fix"]
    here.client.post("/disarm", {"nodes": ["install01"]})
    assert here.cause("install01", later=40) == "not-armed"


# ---- the command


def test_the_command(here: Bench) -> None:
    machine = here.machine()
    machine.silence(giaddr="10.99.0.1")
    here.later(0)
    told = here.command(machine.mac)
    assert (
        told.startswith(f"{machine.mac}: stuck\n")
        and "[no-subnet]" in told
        and "  fix:   add that network" in told
    )
    (facts,) = json.loads(here.command(machine.mac, "--json"))
    assert (facts["cause"], facts["macs"], facts["steps"][0]["step"]) == ("no-subnet", [machine.mac], "heard")
    table = here.command("asleep01", machine.mac)
    assert [line.split("\t")[0] for line in table.splitlines()] == ["asleep01", machine.mac]
    stuck = here.command()
    assert stuck.splitlines()[0].startswith(machine.mac), "the newest first"
    assert "asleep01" not in stuck and "install01" not in stuck

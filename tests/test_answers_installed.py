"""Machines that install with answers, over the wire: from the lease to the local disk."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from armkit import LAB, LINUX, TWO, Machine, configuration, serving
from armkit import wire as new_wire
from dhcpkit import Wire, need
from test_arm_command import ONE, grub, image, installing  # noqa: F401
from test_quick import FASTBOOT, place, wire  # noqa: F401

from fastboot.check import after_drop
from fastboot.config import Config, Media
from fastboot.model import ConfigError, FastbootError, InstallState
from fastboot.world import World

INSTALLING, INSTALLED = InstallState.INSTALLING, InstallState.INSTALLED


@pytest.fixture
def lan() -> Iterator[Wire]:
    need("ip")
    with new_wire() as made:
        yield made


def with_answers(
    directory: Path, text: str = "#cloud-config\n{{ node.name }} {{ done }}\n", **more: str
) -> Config:
    (directory / "x.j2").write_text(text)
    keys = f'answers = "{directory / "x.j2"}"\nformat = "autoinstall"\narguments = "inst.one {{{{ installer }}}}"'
    config = LAB.replace('arguments = "inst.one"', keys)
    for old, new in more.items():
        config = config.replace(f"[{old}]\n", new)
    return configuration(directory, config)


def line_of(language: str, text: str) -> list[str]:
    """Return the words that the kernel gets, as the loader reads its configuration."""
    (line,) = re.findall(r"^ *(?:APPEND|linux|kernel) .*inst\.one.*$", text, re.M)
    return shlex.split(line) if language == "grub" else line.split()


@pytest.mark.parametrize("language", ["pxelinux", "grub", "ipxe"])
async def test_a_machine_installs_with_its_answers_once(lan: Wire, tmp_path: Path, language: str) -> None:
    async with serving(lan, with_answers(tmp_path)) as house:
        machine, other = house.machine(), house.machine(TWO)
        assert await machine.boots(language) == "local"
        (armed,) = await house.server.arm(["node01"])
        url = f"http://10.77.0.1/node/{armed.token}"
        for _ in range(3):  # its configuration uses nothing up
            await machine.dhcp()
            words = line_of(language, await machine.tftp(machine.name(language)))
            assert f"ds=nocloud-net;s={url}/" in words and "autoinstall" in words
        await other.dhcp()
        with pytest.raises(AssertionError, match="404 Not Found"):
            await other.http(f"node/{armed.token}/user-data")
        with pytest.raises(FileNotFoundError):
            await other.tftp(f"node/{armed.token}/user-data")
        assert house.told() == ["armed", "refused", "refused"]
        await machine.dhcp(LINUX)
        assert "meta-data" not in (await machine.http(f"node/{armed.token}/meta-data"))[1]
        for _ in range(2):
            _, text = await machine.http(f"node/{armed.token}/user-data")
            assert text == f"#cloud-config\nnode01 {url}/done\n"
        (now,) = [each["install"] for each in house.server.nodes() if each["name"] == "node01"]
        assert now["state"] == INSTALLING
        with pytest.raises(FastbootError, match="is being installed"):
            await house.server.arm(["node01"])
        await machine.http(f"node/{armed.token}/done")
        assert await machine.boots(language) == "local"
        with pytest.raises(AssertionError, match="404 Not Found"):
            await machine.http(f"node/{armed.token}/user-data")
        assert house.told() == ["armed", "refused", "refused", "installing", "installed", "refused"]
        status = house.server.status()
        assert status["refused_answers"] == {"another machine": 2, "the installation has ended": 1}
        assert armed.token not in repr(house.events) + repr(status) + repr(house.server.nodes())
        assert "/node/.../user-data" in repr(house.events)


async def test_a_machine_that_starts_again_in_the_middle_keeps_its_disk(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, with_answers(tmp_path)) as house:
        machine = house.machine()
        (armed,) = await house.server.arm(["node01"])
        await machine.boots()
        await machine.http(f"node/{armed.token}/user-data")
        assert await machine.boots() == "local"
        assert house.told() == ["armed", "installing", "interrupted"]


async def test_a_reload_takes_a_changed_template_and_keeps_the_old_where_it_is_wrong(
    lan: Wire, tmp_path: Path
) -> None:
    config = with_answers(tmp_path, "#cloud-config\nold {% include 'y.j2' ignore missing %}\n")
    async with serving(lan, config) as house:
        machine = house.machine()
        await machine.dhcp()
        (armed,) = await house.server.arm(["node01"])

        async def served() -> str:
            return (await machine.http(f"node/{armed.token}/user-data"))[1].split("\n")[1]

        assert await served() == "old "
        (tmp_path / "x.j2").write_text("#cloud-config\n{% if %}")
        (tmp_path / "y.j2").write_text("more")
        assert await served() == "old "
        with pytest.raises(ConfigError, match=r"profiles rocky: answers: x\.j2 line 2: Expected an expression"):
            await house.server.reload(config)
        assert await served() == "old "
        (tmp_path / "x.j2").write_text("#cloud-config\nnew {% include 'y.j2' %}")
        assert await house.server.reload(config) == ("profiles",)
        assert await served() == "new more"
        assert await house.server.reload(config) == ()


async def test_what_names_no_answers_boots_the_disk(lan: Wire, tmp_path: Path) -> None:
    config = with_answers(tmp_path)
    profiles = tuple(each.model_copy(update={"arguments": "inst.one"}) for each in config.profiles)
    async with serving(lan, config.model_copy(update={"profiles": profiles})) as house:
        machine = house.machine()
        (armed,) = await house.server.arm(["node01"])
        assert await machine.boots() == "local"
        assert "do not name the answer file" in str((await house.until("render.failed")).details["text"])
        (now,) = [each["install"] for each in house.server.nodes() if each["name"] == "node01"]
        assert now["state"] == InstallState.ARMED and armed.token not in repr(house.events)


async def test_what_a_loader_can_not_be_told_is_told_without_the_token(lan: Wire, tmp_path: Path) -> None:
    config = with_answers(tmp_path)
    arguments = "inst.one {{ installer }} #{{ answers }}/"  # iPXE's script takes that for a remark
    profiles = tuple(each.model_copy(update={"arguments": arguments}) for each in config.profiles)
    async with serving(lan, config.model_copy(update={"profiles": profiles})) as house:
        machine = house.machine()
        (armed,) = await house.server.arm(["node01"])
        await machine.dhcp()
        text = await machine.tftp(machine.name("ipxe"))
        assert "goto local" in text and "/node/TOKEN/' means something" in text and armed.token not in text
        assert armed.token not in repr(await house.until("render.failed"))
        assert armed.token in await machine.tftp(machine.name("pxelinux"))


async def test_without_dhcp_of_ours_the_token_counts(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, with_answers(tmp_path)) as house:
        machine: Machine = house.machine()
        machine.take("10.77.0.9")
        (armed,) = await house.server.arm(["node01"])
        assert (await machine.http(f"node/{armed.token}/user-data"))[1].startswith("#cloud-config\nnode01 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_serve_install_with_answers(wire: Wire, image: Path) -> None:  # noqa: F811
    (image / "x.ks").write_text("text\n# {{ node.name }}\n%post\ncurl {{ done }}\n%end\n")
    with installing(wire, image, ONE, answers=image / "x.ks") as told:
        assert [each["event"] for each in told] == ["armed"]
        for _ in range(2):
            (url,) = re.findall(r"'inst\.ks=(http://10\.77\.0\.1/node/[0-9a-f]{32})/ks\.cfg'", grub(wire, ONE))

        def curl(path: str) -> str:
            command = wire.clients[0].command("curl", "-sSf", "--max-time", "20", f"{url}/{path}")
            return subprocess.run(command, capture_output=True, check=True, timeout=30, text=True).stdout

        assert curl("ks.cfg") == f"text\n# 52-54-00-00-00-01\n%post\ncurl {url}/done\n%end\n"
        assert curl("done") == "200 OK: 52-54-00-00-00-01 is installed\n"
        assert "set default='local'" in grub(wire, ONE)
    assert url.rpartition("/")[2] not in repr(told)
    command = [*FASTBOOT, "serve", "--root", str(image), "--interface", "lo", "--answers", str(image / "x.ks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--answers: needs --install MAC" in done.stderr


@pytest.mark.parametrize("inside", ["root", "root/deep"])
def test_answers_in_a_served_tree_are_refused(inside: str, tmp_path: Path) -> None:
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / "x.j2").write_text("x")
    config = with_answers(tmp_path)
    profiles = tuple(
        each.model_copy(update={"answers": tmp_path / inside / "x.j2"}) if each.answers else each
        for each in config.profiles
    )
    with pytest.raises(ConfigError, match=r"holds profiles.0..answers = .*, so its secrets would be served"):
        World(config.model_copy(update={"profiles": profiles}))


async def test_a_format_that_the_medium_does_not_have_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "medium" / "casper").mkdir(parents=True)
    config = with_answers(tmp_path)
    media = (Media(name="ubuntu", path=tmp_path / "medium"),)
    profiles = tuple(
        each.model_copy(update={"media": "ubuntu", "format": "kickstart"}) if each.answers else each
        for each in config.profiles
    )
    config = config.model_copy(update={"media": media, "profiles": profiles})
    world = World(config)
    try:
        await world.prepare(lambda kind, **details: None)
        found = [each for each in after_drop(config, world, tmp_path / "x.j2") if ": format: " in each.text]
    finally:
        world.close()
    (one,) = found
    assert one.level == "warning" and "the installer of Ubuntu reads autoinstall" in one.text


def test_check_says_what_keeps_answers_from_machines(tmp_path: Path) -> None:
    config = with_answers(tmp_path)
    world = World(config)
    try:
        texts = [finding.text for finding in after_drop(config, world, tmp_path / "x.j2")]
        assert not [text for text in texts if "answers" in text]
        (tmp_path / "x.j2").unlink()  # as if in a directory that the server's user can not enter
        bare = config.model_copy(update={"http": None})
        found = {(each.level, each.text) for each in after_drop(bare, world, tmp_path / "x.j2")}
    finally:
        world.close()
    why = "not readable for the server's user, so a reload will fail"
    assert ("error", f"profiles rocky: answers: {tmp_path / 'x.j2'}: {why}") in found
    assert any(level == "warning" and "without [http] no installer can report" in text for level, text in found)

"""Machines that install: only when armed, and once, over the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from armkit import IPXE, LAB, LINUX, ONE, THREE, TWO, booted, configuration, serving, wire
from dhcpkit import Wire, need

from fastboot.boot import gate
from fastboot.model import FastbootError, InstallState

ARMED, INSTALLING, INSTALLED, FAILED = InstallState


@pytest.fixture
def lan() -> Iterator[Wire]:
    need("ip")
    with wire() as made:
        yield made


async def test_a_machine_installs_once_and_only_when_armed(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        assert await machine.boots() == "local"
        (armed,) = await house.server.arm(["node01"])
        assert (armed.state, armed.profile) == (ARMED, "rocky")
        assert await machine.boots() == "inst.one"
        assert await machine.boots() == "local", "never twice"
        assert await house.machine(TWO).boots() == "local", "another machine is not armed"
        assert house.told() == ["armed", "installing", "interrupted"]
        assert {event.mac for event in house.events if event.kind.startswith("node.")} == {ONE}
        assert armed.token not in repr(house.events) + repr(house.server.status()) + repr(house.server.nodes())


@pytest.mark.parametrize("language", ["pxelinux", "grub", "ipxe"])
async def test_within_one_boot_attempt_it_may_ask_again(lan: Wire, tmp_path: Path, language: str) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        await house.server.arm(["node01"])
        await machine.dhcp()
        both = await asyncio.gather(machine.asks(language), machine.http(machine.name(language)))
        assert (both[0], booted(both[1][1])) == ("inst.one", "inst.one")
        await machine.dhcp(LINUX)  # an installer's own DHCP is no new boot
        assert await machine.asks(language) == "inst.one"
        await machine.dhcp()
        assert await machine.asks(language) == "local"
        assert house.told() == ["armed", "installing", "interrupted"]


async def test_ipxe_that_is_the_firmware_asks_anew_too(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        await house.server.arm(["node01"])
        await machine.dhcp()
        await machine.dhcp(IPXE)  # loaded by the ROM: asked before its script is fetched
        assert await machine.asks("ipxe") == "inst.one"
        assert await machine.asks("ipxe") == "inst.one"
        await machine.dhcp(IPXE)
        assert await machine.asks("ipxe") == "local"


async def test_an_attempt_ends_by_itself(lan: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ATTEMPT", 0.5)
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        await house.server.arm(["node01"])
        assert await machine.boots() == "inst.one"
        assert await machine.asks() == "inst.one"
        await asyncio.sleep(0.6)  # of the clock by which it ends
        assert await machine.asks() == "local"


async def test_a_restart_ends_an_attempt(lan: Wire, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    async with serving(lan, config) as house:
        await house.server.arm(["node01", "node02"])
        assert await house.machine().boots() == "inst.one"
    async with serving(lan, config) as house:
        machine = house.machine()
        machine.address = "10.77.0.100"
        assert await machine.asks() == "local"
        assert await machine.asks() == "local"
        assert house.told() == ["interrupted"], "told once"
        told = await house.until("node.interrupted")
        assert "fastboot disarm node01, then fastboot arm node01" in str(told.details["text"])
        await house.server._installs.settle()
        states = {each["name"]: each["install"] and each["install"]["state"] for each in nodes(house)}
        assert states == {"node01": "installing", "node02": "armed", "node03": None}
        assert nodes(house)[0]["install"]["text"] == "it started from the network again"
        assert house.server.status()["installs"] == {
            "armed": 1, "installing": 1, "installed": 0, "failed": 0, "begin_failed": 0,
        }  # fmt: skip
    async with serving(lan, config) as house:
        machine = house.machine()
        machine.address = "10.77.0.100"
        assert await machine.asks() == "local"
        assert house.told() == [], "nor again after a restart"


def nodes(house: Any) -> list[Any]:
    return list(house.server.nodes())


async def test_who_only_looks_uses_nothing_up(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        await house.server.arm(["node01"])
        await machine.dhcp()
        length, _ = await machine.http(machine.name("grub"), "HEAD")
        assert nodes(house)[0]["install"]["state"] == "armed"
        assert (await machine.http(machine.name("grub")))[0] == length
        assert nodes(house)[0]["install"]["state"] == "installing"


async def test_another_machine_does_not_use_an_arming_up(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        one, two = house.machine(), house.machine(TWO)
        await house.server.arm(["node01"])
        await two.dhcp()
        text = await two.tftp(one.name("grub"))
        assert booted(text) == "local"
        assert f"because {TWO} asks, which is another machine" in text
        assert nodes(house)[0]["install"]["state"] == "armed"
        assert await one.boots() == "inst.one"


async def test_the_profile_that_it_is_armed_with_counts(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        await house.server.arm(["node01", "node03"], "other")
        for mac in (ONE, THREE):
            machine = house.machine(mac)
            assert await machine.boots() == "inst.two"
            assert await machine.boots() == "local"


async def test_what_ended_is_said_in_the_file(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine, installs = house.machine(), house.server._installs
        for failure, why in ((None, "was installed at 20"), ("no disk", "failed at 20")):
            (armed,) = await house.server.arm(["node01"])
            await installs.end(armed, failure)
            await machine.dhcp()
            assert why in await machine.tftp(machine.name("grub"))
        assert house.told() == ["armed", "installed", "armed", "failed"]
        (armed,) = await house.server.arm(["node01"])
        assert await machine.boots() == "inst.one"
        await machine.dhcp()
        assert "is being installed since 20" in await machine.tftp(machine.name("pxelinux"))


async def test_a_commit_that_fails_gives_the_local_disk_and_leaves_it_armed(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine, store = house.machine(), house.server._store
        await house.server.arm(["node01"])
        assert store
        await machine.dhcp()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "keep_installs", lambda serial, rows, done: done(OSError("the disk is gone")))
            text = await machine.tftp(machine.name("pxelinux"))
        assert booted(text) == "local"
        assert "local disk, because that it is being installed could not be written" in text
        assert nodes(house)[0]["install"]["state"] == "armed"
        assert "the disk is gone" in str((await house.until("node.begin_failed")).details["text"])
        assert house.server.status()["installs"]["begin_failed"] == 1  # type: ignore[index]
        assert await machine.boots() == "inst.one"


async def test_what_can_not_be_rendered_uses_nothing_up(lan: Wire, tmp_path: Path) -> None:
    config = configuration(tmp_path, LAB.replace("inst.one", "{{ nobody }}"))
    async with serving(lan, config) as house:
        await house.server.arm(["node01"])
        assert await house.machine().boots() == "local"
        assert nodes(house)[0]["install"]["state"] == "armed"
        await house.until("render.failed")


async def test_disarmed_in_the_middle_of_a_boot_it_gets_its_local_disk(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        machine = house.machine()
        await house.server.arm(["node01"])
        assert await machine.boots() == "inst.one"
        assert [install.state for install in await house.server.disarm(["node01"])] == [INSTALLING]
        assert await machine.asks() == "local"
        await house.server.arm(["node01"], "other")
        assert await machine.asks() == "inst.two", "armed anew it may begin anew"


async def test_what_can_not_be_armed_is_named_and_nothing_is(lan: Wire, tmp_path: Path) -> None:
    async with serving(lan, configuration(tmp_path)) as house:
        arm = house.server.arm
        for names, profile, why in (
            (["node01", "node03"], None, r"^node03 has no profile; name one with --profile \(there are: rocky, o"),
            (["node01"], "rescue", "^node01: profile rescue is live: it installs nothing"),
            (["node01"], "debian", "^there is no profile 'debian'; there are: rocky, other, rescue$"),
            (["node01", "nobody"], None, "^there is no node nobody in this server's configuration"),
        ):
            with pytest.raises(FastbootError, match=why):
                await arm(names, profile)
        await arm(["node02"])
        assert await house.machine(TWO).boots() == "inst.one"
        since = time.strftime("%Y-%m-%d")
        with pytest.raises(FastbootError, match=f"node02 is being installed since {since}"):
            await arm(["node01", "node02"])
        assert nodes(house)[0]["install"] is None


async def test_a_reload_that_drops_a_node_or_a_profile_keeps_the_install(lan: Wire, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    async with serving(lan, config) as house:
        machine = house.machine()
        await house.server.arm(["node01"], "other")
        await house.server.reload(config.model_copy(update={"nodes": config.nodes[1:]}))
        assert [each["name"] for each in nodes(house)] == ["node02", "node03"]
        fewer = tuple(each for each in config.profiles if each.name != "other")
        await house.server.reload(config.model_copy(update={"profiles": fewer}))
        assert nodes(house)[0]["install"]["state"] == "armed"
        await machine.dhcp()
        text = await machine.tftp(machine.name("grub"))
        assert booted(text) == "local" and "because there is no profile other any more" in text
        await house.server.reload(config)
        assert await machine.asks() == "inst.two"


async def test_the_loader_is_that_of_the_profile_it_is_armed_with(lan: Wire, tmp_path: Path) -> None:
    """What is kept of plans is forgotten before an arming is reported."""
    asked: list[str | None] = []
    async with serving(lan, configuration(tmp_path)) as house:
        real = house.server._world.policy.default

        def default(class_: str, profile: str | None = None, *more: Any) -> str | None:
            asked.append(profile)
            return real(class_, profile, *more)

        house.server._world.policy.default = default  # type: ignore[method-assign]
        machine = house.machine(THREE)
        await machine.dhcp()
        await machine.dhcp()
        await house.server.arm(["node03"], "other")
        await machine.dhcp()
        await machine.dhcp()
        await house.server.disarm(["node03"])
        await machine.dhcp()
        assert asked == [None, "other", None]


async def test_without_dhcp_here_it_is_the_same(lan: Wire, tmp_path: Path) -> None:
    start, end = LAB.index("[dhcp]"), LAB.index("[tftp]")
    config = configuration(tmp_path, LAB[:start] + LAB[end:])
    async with serving(lan, config) as house:
        machine = house.machine()
        machine.take("10.77.0.9")
        assert await machine.asks() == "local"
        await house.server.arm(["node01"])
        assert await machine.asks() == "inst.one"
    async with serving(lan, config) as house:
        machine = replace(machine, station=house.station)
        assert await machine.asks() == "local"

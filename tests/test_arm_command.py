"""`fastboot arm`, `disarm`, `nodes`, `serve --install`: by a running server, and in the store of a stopped one."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dhcpkit import Wire
from isokit import XORRISO, put
from isokit import run as make
from labkit import Lab, Serve, command_line, lab, serve, wait_for  # noqa: F401
from test_quick import FASTBOOT, place, wire  # noqa: F401
from test_recognise import rhel
from test_server import tftp_get

from fastboot.services.control_client import ControlClient, ControlError
from fastboot.state.install_rows import parse
from fastboot.state.store import FILE

PROFILES = """
[[profiles]]
name = "rocky"
kernel = "/file"
[[profiles]]
name = "rescue"
kernel = "/file"
installs = false
"""
GRUB = "grub/grub.cfg-01-52-54-00-00-00-01"


@pytest.fixture
def room(lab: Lab) -> Lab:  # noqa: F811
    lab.edit('group = "rack7"', 'group = "rack7"\nprofile = "rocky"')
    with lab.path.open("a") as file:
        file.write(PROFILES)
    return lab


def states(lab: Lab) -> dict[str, str | None]:  # noqa: F811
    facts = json.loads(lab.run("nodes", "--json").stdout)
    return {each["name"]: each["install"] and each["install"]["state"] for each in facts}


def tokens(state: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{state / FILE}?mode=ro", uri=True)) as file:
        file.text_factory = bytes
        rows = [parse(row) for (row,) in file.execute("SELECT row FROM install")]
    return [row.install.token for row in rows if row.install]


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    return done.returncode, done.stdout + done.stderr


def test_arming_in_the_store_of_a_server_that_does_not_run(room: Lab) -> None:
    assert states(room) == {"node01": None, "node02": None}
    assert said(room.run("arm", "rack7")) == (
        0,
        "node01: armed, installs rocky at its next boot from the network\n",
    )
    assert states(room) == {"node01": "armed", "node02": None}
    assert re.fullmatch(
        r"node01\t52:54:00:00:00:01\t-\track7\trocky\tarmed\t\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\t-\n"
        r"node02\t52:54:00:00:00:02\t-\t-\t-\t-\t-\t-\n",
        room.run("nodes").stdout,
    )
    (armed,) = json.loads(room.run("arm", "node02", "--profile", "rocky", "--json").stdout)
    assert armed["node"] == "node02" and armed["state"] == "armed" and set(armed) == {
        "node", "profile", "state", "since", "text",
    }  # fmt: skip
    assert room.run("disarm", "node[01-02]").stdout.count("disarmed; it was armed since 20") == 2
    assert said(room.run("disarm", "@all")) == (0, "none of them was armed\n")
    assert json.loads(room.run("disarm", "@all", "--json").stdout) == []


@pytest.mark.parametrize("running", [False, True], ids=["in the store", "by the server"])
def test_what_can_not_be_armed(room: Lab, serve: Serve, running: bool) -> None:  # noqa: F811
    if running:
        serve()
    for words, code, text in (
        (("@all",), 1, "node02 has no profile; name one with --profile (there are: rocky, rescue)"),
        (("node01", "--profile", "rescue"), 1, "node01: profile rescue is live: it installs nothing, so there is"),
        (("node01", "--profile", "x"), 1, "there is no profile 'x'; there are: rocky, rescue"),
        (("node03",), 2, "there is no node or group 'node03'; did you mean 'node02'?"),
        ((), 2, "Missing argument"),
    ):
        found, told = said(room.run("arm", *words))
        assert found == code and text in told
    assert states(room) == {"node01": None, "node02": None}


async def test_arming_by_a_running_server(room: Lab, serve: Serve) -> None:  # noqa: F811
    process = serve()
    client = ControlClient(room.state)
    assert "'local'" in (await tftp_get(room.tftp, GRUB)).decode().splitlines()[1]
    assert room.run("arm", "node01").returncode == 0
    told = [wait_for(process, "node", "armed")]
    assert "vmlinuz" not in str(told) and told[0]["node"] == "node01" and told[0]["mac"] == "52:54:00:00:00:01"
    assert client.get("/nodes")[0]["install"]["state"] == "armed"
    assert "nodes: 1 armed\n" in room.run("status").stdout
    assert "'rocky'" in (await tftp_get(room.tftp, GRUB)).decode().splitlines()[1]
    told.append(wait_for(process, "node", "installing"))
    assert states(room)["node01"] == "installing"
    code, text = said(room.run("arm", "node01"))
    assert code == 1
    assert "node01 is being installed since 20" in text and "fastboot disarm node01" in text
    (secret,) = tokens(room.state)
    facts = [client.get("/status"), client.get("/nodes")]
    for event in client.events(replay=True):
        facts.append(event)
        if event["kind"] == "node.installing":
            break
    assert secret not in json.dumps(facts) + json.dumps(told) + room.run("nodes").stdout


async def test_what_was_armed_while_no_server_ran_installs(room: Lab, serve: Serve) -> None:  # noqa: F811
    room.run("arm", "node01")
    process = serve()
    assert "'rocky'" in (await tftp_get(room.tftp, GRUB)).decode().splitlines()[1]
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    process.stderr.read()
    assert process.wait(20) == 0
    assert states(room)["node01"] == "installing", "as the store has it, with no server"
    assert "installing since 20" in room.run("disarm", "node01").stdout
    serve()
    assert "'local'" in (await tftp_get(room.tftp, GRUB)).decode().splitlines()[1]


def test_a_node_that_the_server_does_not_know_yet(room: Lab, serve: Serve) -> None:  # noqa: F811
    serve()
    room.edit('name = "node02"', 'name = "node09"')
    assert said(room.run("arm", "node09")) == (
        2,
        "fastboot: there is no node or group 'node09'; did you mean 'node02'?\n",
    )
    with pytest.raises(ControlError, match="there is no node node09 in this server's configuration"):
        ControlClient(room.state).post("/arm", {"nodes": ["node01", "node09"]})
    for wrong in ([], {"nodes": "node01"}, {"nodes": [1]}, {"nodes": [], "profile": 1}):
        with pytest.raises(ControlError, match="names no nodes"):
            ControlClient(room.state).post("/arm", wrong)


def test_nodes_are_listed_where_the_store_can_not_be_read(room: Lab) -> None:
    room.state.mkdir(exist_ok=True)
    (room.state / FILE).write_bytes(b"nonsense" * 1000)
    done = room.run("nodes")
    assert done.returncode == 0
    assert done.stdout.startswith("node01\t52:54:00:00:00:01\t-\track7\trocky\t-\t")
    assert "whether they are armed is not known: " in done.stderr


# ---- serve --iso --install


@contextmanager
def installing(
    wire: Wire,  # noqa: F811
    place: Path,  # noqa: F811
    *macs: str,
    answers: Path | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Run `serve --iso --install`; give what its log says of installs, which grows."""
    words = ["--iso", str(place / "Rocky.iso"), "--interface", "s0", "--state", str(place / "state")]
    words += ["--pool", "10.77.0.100-10.77.0.150", *(word for mac in macs for word in ("--install", mac))]
    words += ["--answers", str(answers)] if answers else []
    command = wire.server.command(*FASTBOOT, "serve", *words)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        told: list[dict[str, Any]] = []
        for line in process.stderr:
            if line.startswith("{"):
                entry = json.loads(line)
                told += [entry] if entry["component"] in ("installs", "node", "store") else []
                if len([each for each in told if each["component"] in ("installs", "node")]) >= len(macs):
                    break
        try:
            yield told
        finally:
            process.terminate()
            process.stderr.read()
            process.wait(20)
    assert process.returncode == 0


def grub(wire: Wire, mac: str) -> str:  # noqa: F811
    url = f"http://10.77.0.1/grub/grub.cfg-01-{mac.replace(':', '-')}"
    command = wire.clients[0].command("curl", "-sSf", "--max-time", "20", url)
    return subprocess.run(command, capture_output=True, check=True, timeout=30, text=True).stdout


@pytest.fixture
def image(place: Path) -> Path:  # noqa: F811
    make(*XORRISO, "-R", "-o", place / "Rocky.iso", put(place / "tree", rhel("Rocky Linux", "9.4")))
    return place


ONE, TWO = "52:54:00:00:00:01", "52:54:00:00:00:02"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_serve_install_installs_once_however_often_it_is_started(wire: Wire, image: Path) -> None:  # noqa: F811
    state = str(image / "state")
    with installing(wire, image, ONE.replace(":", "-").upper(), TWO) as told:
        assert [(each["event"], each["node"]) for each in told] == [
            ("armed", ONE.replace(":", "-")),
            ("armed", TWO.replace(":", "-")),
        ]
        first = grub(wire, ONE)
        assert "set default='Rocky-install'" in first and "inst.repo=ftp://10.77.0.1/media/Rocky" in first
        menu = subprocess.run(
            wire.clients[0].command("curl", "-sSf", "http://10.77.0.1/grub/grub.cfg"),
            capture_output=True, check=True, timeout=30, text=True,
        ).stdout  # fmt: skip
        assert "set default='local'\nset timeout=10" in menu and "--id 'Rocky' " in menu
    with installing(wire, image, ONE, TWO) as told:
        assert [each["event"] for each in told] == ["not_armed_again"] * 2
        assert "02 is armed since 20" in told[1]["text"]
        name = ONE.replace(":", "-")
        again = f"fastboot disarm {name} --state {state}, then fastboot arm {name} --state {state}"
        assert "is being installed since 20" in told[0]["text"] and told[0]["text"].endswith(again)
        assert "set default='local'" in grub(wire, ONE)
        assert command_line("disarm", name, "--state", state).returncode == 0
    with installing(wire, image, ONE) as told:
        assert "was armed before" in told[0]["text"]
        assert "set default='local'" in grub(wire, ONE)
        done = command_line("arm", name, "--state", state)
        assert said(done) == (0, f"{name}: armed, installs Rocky-install at its next boot from the network\n")
        assert "set default='Rocky-install'" in grub(wire, ONE)
        assert json.loads(command_line("nodes", "--state", state, "--json").stdout)[0]["install"]["state"] == (
            "installing"
        )
    assert command_line("arm", name, "--state", state).returncode == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_serve_install_arms_nobody_where_the_store_was_damaged(wire: Wire, image: Path) -> None:  # noqa: F811
    with installing(wire, image, ONE):
        assert "set default='Rocky-install'" in grub(wire, ONE)
    (image / "state" / FILE).unlink()
    for damaged in (True, False):
        with installing(wire, image, ONE) as told:
            assert ("damaged" in [each["event"] for each in told]) is damaged
            assert "nobody knows" in told[-1]["text"]
            assert "set default='local'" in grub(wire, ONE)


def test_serve_install_needs_an_image_and_macs(tmp_path: Path) -> None:
    for words, text in (
        (("--root", str(tmp_path), "--interface", "lo", "--install", ONE), "--install: needs --iso FILE"),
        (("--root", str(tmp_path), "--install", "52:54"), "--install: "),
        (("--install", ONE), "--interface, --pool, --state, --install and --answers: are for --root and --iso"),
    ):
        done = subprocess.run([*FASTBOOT, "serve", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and text in done.stderr

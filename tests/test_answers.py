"""Answer files: what templates may do, what goes wrong is named, and the four languages that installers read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from fastboot.boot.answer_faults import answer_fault
from fastboot.boot.answers import FORMATS
from fastboot.boot.languages import RenderError
from fastboot.boot.media import System
from fastboot.boot.render import Renderer
from fastboot.boot.sandbox import MAX_OUTPUT
from fastboot.boot.shelf import Medium
from fastboot.config import load
from fastboot.model import Client, ConfigError, Install, InstallState, Node, Profile

TOKEN = "0123456789abcdef0123456789abcdef"
MAC = "52:54:00:00:00:01"
CLIENT = Client(IPv4Address("10.77.0.11"), IPv4Address("10.77.0.1"), "http", MAC)
NODE = Node("n1", (MAC,), group="rack7", profile="p", variables={"root_hash": "$6$salt$hash/of.it"})
INSTALL = Install("n1", "p", InstallState.ARMED, TOKEN, 0)
TEMPLATES = Path(__file__).parents[1] / "docs" / "answers"
BOTH = {"ftp": 21, "http": 80}


def renderer(
    answers: Path, ports: dict[str, int] = BOTH, system: System | None = None, **profile: Any
) -> Renderer:
    profile = {"kernel": "linux", "arguments": "{{ installer }}", "format": "kickstart"} | profile
    medium = Medium("m", "", system=system) if system else None
    return Renderer([NODE], [Profile("p", answers=answers, **profile)], ports=ports, medium_of=lambda name: medium)


def of(tmp_path: Path, text: str, **profile: Any) -> Renderer:
    (tmp_path / "x.j2").write_text(text)
    return renderer(tmp_path / "x.j2", **profile)


def answer(by: Renderer, file: str = "ks.cfg", node: Node = NODE) -> str:
    found = by.answer(file, INSTALL, node, CLIENT)
    assert found is not None
    return found[0].decode()


# --- the configuration


CONFIG = """
interface = "lo"
[http]
[[profiles]]
name = "p"
kernel = "/linux"
"""


def test_the_template_is_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(CONFIG + 'answers = "ks/base.j2"\nformat = "kickstart"\n')
    (profile,) = load(tmp_path / "f.toml").profiles
    assert profile.profile().answers == tmp_path / "ks" / "base.j2" and profile.profile().format == "kickstart"


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ('answers = "x"\ninstalls = false', "profiles[0]: answers: is for an installer, and installs = false"),
        ('format = "preseed"', "profiles[0]: format: is that of answers, and there are none"),
        ('answers = "x"\nformat = "sif"', "profiles[0].format: should be 'kickstart', 'preseed', "),
    ],
)
def test_wrong_keys_are_named(keys: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(CONFIG + keys + "\n")
    with pytest.raises(ConfigError, match=re.escape(fault)):
        load(tmp_path / "f.toml")


# --- what a template may do


def test_what_a_template_knows(tmp_path: Path) -> None:
    text = "{{ [node.name, node.group, profile.name, server, address, mac, answers, done, failed] | join(' ') }}"
    here = f"http://10.77.0.1/node/{TOKEN}"
    assert answer(of(tmp_path, text)) == (
        f"n1 rack7 p 10.77.0.1 10.77.0.11 {MAC} {here} {here}/done {here}/failed"
    )
    by = of(tmp_path, "{{ media }} {{ answers }}", media="m", transport="ftp", ports={"ftp": 2121, "http": 8080})
    assert answer(by) == f"ftp://10.77.0.1:2121/media/m http://10.77.0.1:8080/node/{TOKEN}"
    by = of(tmp_path, "{{ answers }} {{ done is defined }}", ports={"ftp": 21})
    assert answer(by) == f"ftp://10.77.0.1/node/{TOKEN} False", "nothing would take a callback"


def test_values_are_quoted_for_the_shell_and_for_yaml(tmp_path: Path) -> None:
    text = "{{ node.variables.v | quote }} {{ node.variables.v | tojson }} {{ node.variables.v | e }}"
    node = Node("n1", (MAC,), variables={"v": "it's <a> & $b"})
    shell, rest = answer(of(tmp_path, text), node=node).split(' "')
    assert subprocess.run(["sh", "-c", f"printf %s {shell}"], capture_output=True).stdout == b"it's <a> & $b"
    json, _, xml = rest.partition('" ')
    assert yaml.safe_load(f'"{json}"') == "it's <a> & $b"
    assert ElementTree.fromstring(f"<x>{xml}</x>").text == "it's <a> & $b"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"x.j2": "a\n{% if %}\n"}, "x.j2 line 2: Expected an expression"),
        ({"x.j2": "{% include 'y.j2' %}", "y.j2": "\n\n{{ a b }}"}, "y.j2 line 3: expected token"),
        ({}, "x.j2: no such file"),
        ({"x.j2": "\xff"}, "x.j2: is not text in UTF-8"),
        ({"x.j2": "x" * 300_000}, "x.j2: is larger than 256 KiB"),
    ],
)
def test_a_template_that_is_none_is_no_configuration(files: dict[str, str], fault: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"profiles p: answers: .*{re.escape(fault)}"):
        renderer(tmp_path / "x.j2")


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"x.j2": "a\nb\n{{ node.variables.pasword }}"},
         "x.j2 line 3: 'dict object' has no attribute 'pasword'"),
        ({"x.j2": "a\n{% include 'y.j2' %}", "y.j2": "\n{{ nothing }}\n"}, "y.j2 line 2: 'nothing' is undefined"),
        ({"x.j2": "{% extends 'y' %}{% block a %}\n{{ no }}{%endblock%}", "y": "{% block a %}{% endblock%}"},
         "x.j2 line 2: 'no' is undefined"),
        ({"x.j2": "{% include '../out.j2' %}"}, "line 1: ../out.j2: only files of the same directory"),
        ({"x.j2": "{% include '/etc/passwd' %}"}, "line 1: /etc/passwd: only files of the same directory"),
        ({"x.j2": "{% include 'link.j2' %}"}, "line 1: link.j2: leaves the served tree"),
        ({"x.j2": "{% include 'pipe.j2' %}"}, "line 1: pipe.j2: not a regular file"),
        ({"x.j2": "{% include 'y.j2' %}"}, "line 1: y.j2: no such file"),
        ({"x.j2": "{% include 'y' ~ node.group %}"},
         "line 1: yrack7: was not there when the configuration was read"),
        ({"x.j2": "{% include '../' ~ 'out.j2' %}"}, "line 1: ../out.j2: was not there when"),
        ({"x.j2": "{{ ''.__class__ }}"}, "line 1: access to attribute '__class__' of 'str' object is unsafe"),
        ({"x.j2": "\n{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
         "line 2: takes more"),
        ({"x.j2": "{% for a in range(9999) %}a long line of text{% endfor %}"}, f"writes more than {MAX_OUTPUT}"),
        ({"x.j2": "{% include 'x.j2' %}"}, "recursion"),
        ({"x.j2": "{{ {}[answers] }}"}, "has no attribute 'http://10.77.0.1/node/TOKEN'"),
    ],
)  # fmt: skip
def test_what_can_not_be_rendered_is_named_with_its_line(
    files: dict[str, str], fault: str, tmp_path: Path
) -> None:
    inside = tmp_path / "ks"
    inside.mkdir()
    (tmp_path / "out.j2").write_text("a secret of another directory")
    (inside / "link.j2").symlink_to("../out.j2")
    os.mkfifo(inside / "pipe.j2")
    for name, text in files.items():
        (inside / name).write_text(text)
    by = renderer(inside / "x.j2")
    with pytest.raises(RenderError, match=re.escape(fault)) as caught:
        answer(by)
    assert TOKEN not in str(caught.value) and "a secret" not in str(caught.value)
    assert by.failed == {"p": 1}


def test_templates_are_those_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "rack7.j2").write_text("{% include 'deep.j2' %}")
    (tmp_path / "deep.j2").write_text("deep ")
    by = of(
        tmp_path, "{% include node.group ~ '.j2' %}{% include 'deep.j2' %}{% include 'no.j2' ignore missing %}end"
    )
    for file in tmp_path.iterdir():
        file.unlink()
    assert answer(by) == "deep deep end"


def test_what_takes_too_long_is_not_tried_for_each_machine(tmp_path: Path) -> None:
    by = of(tmp_path, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    faults = []
    for _ in range(1000):
        with pytest.raises(RenderError) as caught:
            answer(by)
        faults.append(str(caught.value))
    assert len(set(faults)) == 1 and by.failed == {"p": 1000}


# --- the four languages


@pytest.mark.parametrize(
    ("system", "format_", "told"),
    [
        (System("Rocky Linux", "9.4", format="kickstart"), None, "inst.ks={}/ks.cfg"),
        (System("Red Hat", "6.10", format="kickstart", unattended="ks={answers}/ks.cfg"), None, "ks={}/ks.cfg"),
        (System("Debian", "12", format="preseed"), None, "auto=true priority=critical url={}/preseed.cfg"),
        (System("Ubuntu", "24.04", format="autoinstall"), None, "autoinstall ds=nocloud-net;s={}/"),
        (System("SUSE", "15.6", format="autoyast"), None, "autoyast={}/autoinst.xml"),
        (System("SUSE", "16", format="autoyast", unattended="inst.auto={answers}/autoinst.xml"), None,
         "inst.auto={}/autoinst.xml"),
        (System("SUSE", "16", format="autoyast", unattended="x"), "kickstart", "inst.ks={}/ks.cfg"),
        (None, "preseed", "auto=true priority=critical url={}/preseed.cfg"),
    ],
)  # fmt: skip
def test_the_installer_is_told_where_its_answers_are(
    system: System | None, format_: Any, told: str, tmp_path: Path
) -> None:
    by = of(tmp_path, "{{ installer }}", system=system, format=format_, media="m")
    told = told.format(f"http://10.77.0.1/node/{TOKEN}")
    file = told.rpartition("/")[2] or "user-data"
    assert answer(by, file) == told
    others = {each.file for each in FORMATS.values()} - {file}
    assert all(by.answer(other, INSTALL, NODE, CLIENT) is None for other in others)


def test_one_priority_is_told(tmp_path: Path) -> None:
    arguments = {"http": "priority=high mirror/country=manual"}
    by = of(tmp_path, "{{ installer }}", system=System("Debian", format="preseed", arguments=arguments), media="m",
            format=None, transport="http")  # fmt: skip
    assert answer(by, "preseed.cfg").startswith("mirror/country=manual auto=true priority=critical url=")


def test_what_cloud_init_wants_besides(tmp_path: Path) -> None:
    by = of(tmp_path, "#cloud-config", format="autoinstall")
    found = by.answer("meta-data", INSTALL, NODE, CLIENT)
    assert found and not found[1], "it begins nothing"
    meta = yaml.safe_load(found[0])
    assert meta["local-hostname"] == "n1" and TOKEN not in meta["instance-id"]
    again = Install("n1", "p", InstallState.INSTALLING, TOKEN, 5)
    assert by.answer("meta-data", again, NODE, CLIENT) == found
    other = by.answer("meta-data", Install("n1", "p", InstallState.ARMED, "f" * 32, 5), NODE, CLIENT)
    assert other and yaml.safe_load(other[0])["instance-id"] != meta["instance-id"]
    assert by.answer("vendor-data", INSTALL, NODE, CLIENT) == (b"", False)
    assert by.answer("user-data", INSTALL, NODE, CLIENT) == (b"#cloud-config", True)


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        ({"format": None}, "format: the medium does not tell what its installer reads, so write one of"),
        ({"arguments": "inst.ks=http://elsewhere/ks.cfg"},
         "arguments: do not name the answer file; write {{ inst"),
        ({"arguments": "inst.ks={{ answers }}"}, "arguments: do not name the answer file"),
        ({"ports": {}}, "answers: nothing serves ks.cfg; add [http] or [ftp]"),
        ({"ports": {"ftp": 21}, "format": "autoinstall"}, "answers: nothing serves user-data; add [http]"),
        ({"text": ""}, "answers: the file is empty"),
        ({"text": "autoinstall: {}", "format": "autoinstall"}, "answers: the first line is not #cloud-config"),
        ({"text": "<a><b></a>", "format": "autoyast"}, "answers: is no XML: mismatched tag: line 1"),
        ({"text": "d-i x/y\n", "format": "preseed"}, "'d-i x/y' is no line of owner, question, type and value"),
        ({"text": "rootpw x\nclearprat --all\n"}, "Unknown command: clearprat"),
        ({"text": "{{ node.variables.oops }}"}, "nodes n1: profile p: answers: x.j2 line 1: 'dict object' has no"),
    ],
)  # fmt: skip
def test_check_names_what_would_not_work(profile: dict[str, Any], fault: str, tmp_path: Path) -> None:
    (complaint,) = of(tmp_path, **({"text": "text\n"} | profile)).check()
    assert fault in complaint and TOKEN not in complaint
    assert not of(tmp_path, "text\n").check()


# --- the templates to begin from


EXAMPLES = {
    "rhel9.ks.j2": System("Rocky Linux", "9.4", format="kickstart"),
    "debian12.preseed.j2": System("Debian GNU/Linux", "12.5.0", format="preseed"),
    "ubuntu.user-data.j2": System("Ubuntu-Server", "24.04", format="autoinstall"),
    "suse15.autoinst.xml.j2": System("openSUSE Leap", "15.6", format="autoyast"),
}


def example(name: str) -> str:
    by = renderer(TEMPLATES / name, system=EXAMPLES[name], format=None, media="m")
    assert not by.check()
    return answer(by, FORMATS[EXAMPLES[name].format or "preseed"].file)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_report_their_end(name: str) -> None:
    text = example(name)
    assert {path.name for path in TEMPLATES.iterdir()} == {*EXAMPLES, "README.md"}
    assert f"http://10.77.0.1/node/{TOKEN}/done" in text and "$6$salt$hash/of.it" in text
    has_hook = EXAMPLES[name].format in ("kickstart", "autoinstall")
    assert (f"http://10.77.0.1/node/{TOKEN}/failed" in text) == has_hook


def test_the_kickstart_is_one_for_rhel_9() -> None:
    text = example("rhel9.ks.j2")
    from pykickstart.parser import KickstartParser
    from pykickstart.version import makeVersion

    handler = makeVersion("RHEL9")
    parser = KickstartParser(handler)
    parser.readKickstartFromString(text)
    assert handler.rootpw.isCrypted and handler.rootpw.password == "$6$salt$hash/of.it"
    assert handler.url.url == "ftp://10.77.0.1/media/m" and handler.reboot.action is not None
    assert [script.type for script in handler.scripts] == [1, 4], "%post and %onerror"
    assert answer_fault(FORMATS["kickstart"], text.replace("zerombr", "zerombrr"), EXAMPLES["rhel9.ks.j2"])


def test_the_preseed_is_one_for_debconf(need: Callable[[bool, str], None], tmp_path: Path) -> None:
    need(shutil.which("debconf-set-selections") is not None, "debconf is not installed")
    text = example("debian12.preseed.j2")

    def complaints(text: str) -> str:
        # debconf has questions of this system in its database: only what the lines are is of interest.
        done = subprocess.run(["debconf-set-selections", "-c"], input=text, capture_output=True, text=True)
        return done.stderr

    assert "syntax" not in complaints(text).lower(), complaints(text)
    assert complaints("d-i nonsense\n")


def test_the_autoinstall_is_yaml() -> None:
    text = example("ubuntu.user-data.j2")
    install = yaml.safe_load(text)["autoinstall"]
    assert text.startswith("#cloud-config\n") and install["version"] == 1
    assert install["identity"] == {"hostname": "n1", "username": "ubuntu", "password": "$6$salt$hash/of.it"}
    assert all(isinstance(each, str) for each in (*install["late-commands"], *install["error-commands"]))


def test_the_autoyast_is_xml() -> None:
    names = {"y": "http://www.suse.com/1.0/yast2ns"}
    root = ElementTree.fromstring(example("suse15.autoinst.xml.j2"))
    assert root.findtext("y:networking/y:dns/y:hostname", namespaces=names) == "n1"
    assert root.findtext("y:users/y:user/y:user_password", namespaces=names) == "$6$salt$hash/of.it"

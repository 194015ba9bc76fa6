"""Configuration files: who is rendered one, what it says, and that no value breaks out of its line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastboot.boot.render import MAX_ARGUMENTS, RESERVED, Renderer
from fastboot.boot.shelf import Medium
from fastboot.model import Client, ConfigError, Event, Node, Profile

MAC = "52:54:00:00:00:01"
CLIENT = Client(IPv4Address("10.77.0.9"), IPv4Address("10.77.0.1"), "tftp")
LIVE = Profile("live", "images/linux", ("images/a.gz", "/b.gz"), "console=ttyS0", media="tree", installs=False)
INSTALL = Profile("rocky9", "vmlinuz", ("initrd.img",), "inst.repo={{ media }}", media="rocky9")
NODES = (
    Node("n1", (MAC, "52:54:00:00:00:11"), IPv4Address("10.77.0.11"), profile="live"),
    Node("n2", ("52:54:00:00:00:02",), IPv4Address("10.77.0.12"), profile="rocky9"),
    Node("n3", ("52:54:00:00:00:03",)),
)
NAMES = {"pxelinux": "pxelinux.cfg/default", "grub": "grub/grub.cfg", "ipxe": "boot/boot.ipxe"}
OF_MAC = {
    "pxelinux": "boot/pxelinux.cfg/01-52-54-00-00-00-01",
    "grub": "grub/grub.cfg-01-52-54-00-00-00-01",
    "ipxe": "boot/01-52-54-00-00-00-01.ipxe",
}
renderer = Renderer(NODES, (LIVE, INSTALL))


def ask(name: str, client: Client = CLIENT, by: Renderer = renderer) -> str | None:
    text = by.render(tuple(name.split("/")), client)
    return None if text is None else text.decode()


def file(name: str, client: Client = CLIENT, by: Renderer = renderer) -> str:
    text = ask(name, client, by)
    assert text is not None
    return text


def of(profile: Profile, variables: dict[str, str] | None = None, name: str = "n1") -> Renderer:
    return Renderer([Node(name, (MAC,), profile=profile.name, variables=variables or {})], [profile])


# What each loader is told


def test_pxelinux() -> None:
    assert file(OF_MAC["pxelinux"]) == (
        "# fastboot for n1: profile live\n"
        "DEFAULT live\n"
        "PROMPT 0\n"
        "TIMEOUT 100\n"
        "\n"
        "LABEL live\n"
        "  LINUX ::/media/tree/images/linux\n"
        "  INITRD ::/media/tree/images/a.gz,::/b.gz\n"
        "  APPEND console=ttyS0\n"
        "  IPAPPEND 2\n"
        "\n"
        "LABEL local\n"
        "  LOCALBOOT 0\n"
        "\n"
        "LABEL local-next\n"
        "  LOCALBOOT -1\n"
        "\n"
        "LABEL local-hd0\n"
        "  COM32 chain.c32\n"
        "  APPEND hd0\n"
    )


def test_grub() -> None:
    text = file(OF_MAC["grub"])
    head, disk = text.split("menuentry 'Local disk' --id local {\n")
    assert head == (
        "# fastboot for n1: profile live\n"
        "set default='live'\n"
        "set timeout=0\n"
        "\n"
        "menuentry 'live' --id 'live' {\n"
        "  linux (tftp,10.77.0.1)'/media/tree/images/linux' 'console=ttyS0' BOOTIF=01-52-54-00-00-00-01\n"
        "  initrd (tftp,10.77.0.1)'/media/tree/images/a.gz' (tftp,10.77.0.1)'/b.gz'\n"
        "  boot\n"
        "  echo 'The boot failed; once more in 10 s'\n"
        "  sleep 10\n"
        "  reboot\n"
        "}\n"
        "\n"
    )
    assert "search --no-floppy --file --set=disk $loader\n" in disk
    assert "/EFI/debian/shim$efi.efi" in disk
    assert "      set root=$disk\n      chainloader ($disk)$loader\n" in disk
    assert disk.endswith("  exit 1\n}\n")


def test_grub_takes_what_is_written(need: Callable[[bool, str], None]) -> None:
    need(shutil.which("grub-script-check") is not None, "grub-common is not installed")
    for text in (file(OF_MAC["grub"]), file(NAMES["grub"])):
        subprocess.run(["grub-script-check"], input=text.encode(), check=True, timeout=10)


def test_media_that_another_machine_serves() -> None:
    profile = replace(LIVE, arguments="inst.repo={{ media }}")
    for url, grub in (
        ("http://192.0.2.1:8080/x y", "linux (http,192.0.2.1:8080)'/x y/images/linux' 'inst.repo="),
        ("ftp://192.0.2.1/x", "because ftp://192.0.2.1/x/images/linux: GRUB speaks http and tftp only"),
        ("http://u:p@192.0.2.1/x", "GRUB speaks http and tftp only"),
    ):
        url = url.replace(" ", "%20")
        tree = Medium("tree", url, url)
        by = Renderer([Node("n1", (MAC,), profile="live")], [profile], medium_of={"tree": tree}.get)
        assert f"LINUX {url}/images/linux\n  INITRD {url}/images/a.gz,::/b.gz\n" in file(OF_MAC["pxelinux"], by=by)
        assert f"APPEND inst.repo={url}\n" in file(OF_MAC["pxelinux"], by=by)
        assert f"kernel {url}/images/linux " in file(OF_MAC["ipxe"], by=by)
        assert "initrd1 tftp://10.77.0.1/b.gz" in file(OF_MAC["ipxe"], by=by)
        assert grub in file(OF_MAC["grub"], by=by)
        assert [path for _, path in by.paths()] == ["/b.gz"]


def test_ipxe() -> None:
    assert file(OF_MAC["ipxe"]) == (
        "#!ipxe\n"
        "# fastboot for n1: profile live\n"
        "goto live\n"
        "\n"
        ":live\n"
        "kernel tftp://10.77.0.1/media/tree/images/linux initrd=initrd0 initrd=initrd1"
        " BOOTIF=01-${netX/mac:hexhyp} console=ttyS0 || goto failed\n"
        "initrd --name initrd0 tftp://10.77.0.1/media/tree/images/a.gz || goto failed\n"
        "initrd --name initrd1 tftp://10.77.0.1/b.gz || goto failed\n"
        "boot || goto failed\n"
        "\n"
        ":failed\n"
        "echo The boot failed; once more in 10 s\n"
        "sleep 10\n"
        "reboot\n"
        "\n"
        ":local\n"
        "iseq ${platform} efi && exit 1 ||\n"
        "sanboot --no-describe --drive 0x80 ||\n"
        "exit\n"
    )


def test_a_kernel_alone() -> None:
    alone = of(Profile("live", "/linux", installs=False))
    assert "INITRD" not in file(OF_MAC["pxelinux"], by=alone)
    assert "LABEL live\n  LINUX ::/linux\n  IPAPPEND 2\n" in file(OF_MAC["pxelinux"], by=alone)
    assert "initrd" not in file(OF_MAC["grub"], by=alone)
    assert "initrd" not in file(OF_MAC["ipxe"], by=alone)


def test_arguments_are_a_template() -> None:
    arguments = (
        "repo={{ media }} s={{ server }} a={{ address }} m={{ mac }}\n"
        "{% if node.variables.disk is defined %}disk={{ node.variables.disk }}{% endif %} n={{ node.name }}"
    )
    by = of(replace(LIVE, arguments=arguments), {"disk": "sda"})
    assert (
        "  APPEND repo=ftp://10.77.0.1/media/tree s=10.77.0.1 a=10.77.0.9 m=52:54:00:00:00:01 disk=sda n=n1\n"
        in file(OF_MAC["pxelinux"], by=by)
    )
    node = Node("n1", (MAC,), profile="live")
    by = Renderer([node], [replace(LIVE, arguments="{{ media }}")], ports={"ftp": 2121})
    assert "  APPEND ftp://10.77.0.1:2121/media/tree\n" in file(OF_MAC["pxelinux"], by=by)


def test_blanks_in_quotes_reach_the_kernel() -> None:
    by = of(replace(LIVE, arguments='a="x y;z" b=\'c'))
    assert 'APPEND a="x y;z" b=\'c\n' in file(OF_MAC["pxelinux"], by=by)
    assert """ 'a=x y;z' 'b='\\''c' BOOTIF=""" in file(OF_MAC["grub"], by=by)
    assert ' a="x y;z" b=\'c || goto failed\n' in file(OF_MAC["ipxe"], by=by)


# Who is rendered what


@pytest.mark.parametrize("language", NAMES)
def test_a_profile_that_installs_waits_to_be_armed(language: str) -> None:
    text = file(OF_MAC[language].replace("00-01", "00-02"))
    assert "fastboot for n2: local disk, because profile rocky9 installs and the machine is not armed" in text
    assert "vmlinuz" not in text
    assert "local" in re.findall(r"^(?:DEFAULT|set default=|goto) *'?(\w+)'?$", text, re.MULTILINE)


@pytest.mark.parametrize("language", NAMES)
def test_only_the_last_name_of_a_sequence_is_for_everybody(language: str) -> None:
    for octet in ("03", "99"):  # a node without profile, and no node
        assert ask(OF_MAC[language].replace("00-01", f"00-{octet}")) is None
    text = file(NAMES[language])
    assert "fastboot for a machine that no node names: a menu" in text
    assert "/media/tree/images/linux" in text
    assert "rocky9" not in text


@pytest.mark.parametrize("language", NAMES)
def test_a_node_is_found_by_name_lease_or_address(language: str) -> None:
    for client in (
        replace(CLIENT, mac=MAC),
        replace(CLIENT, mac="52:54:00:00:00:11"),
        replace(CLIENT, address=IPv4Address("10.77.0.11")),
    ):
        assert "fastboot for n1: profile live" in file(NAMES[language], client)
    # The name goes before the lease; the MAC of another port of the machine does not hide the lease.
    assert "fastboot for n1:" in file(OF_MAC[language], replace(CLIENT, mac="52:54:00:00:00:02"))
    other = OF_MAC[language].replace("00-01", "00-77")
    assert "fastboot for n1:" in file(other, replace(CLIENT, mac=MAC))


@pytest.mark.parametrize("unknown", ["local", "ignore"])
@pytest.mark.parametrize("language", NAMES)
def test_unknown_machines_can_be_sent_to_their_disk(language: str, unknown: Literal["local", "ignore"]) -> None:
    by = Renderer(NODES, (LIVE, INSTALL), unknown)
    text = file(NAMES[language], by=by)
    assert "local disk" in text
    assert "images/linux" not in text
    assert "menu" not in text.replace("menuentry", "")


@pytest.mark.parametrize(
    ("language", "waits"),
    [("pxelinux", "PROMPT 1\nTIMEOUT 100\n"), ("grub", "set timeout=10\n"), ("ipxe", "--timeout 10000 choice")],
)
def test_the_menu_waits_and_then_boots_the_disk(language: str, waits: str) -> None:
    text = file(NAMES[language])
    assert waits in text
    assert {"pxelinux": "DEFAULT local", "grub": "default='local'", "ipxe": "--default local"}[language] in text


def test_a_menu_leaves_out_what_needs_a_node() -> None:
    by = Renderer((), (replace(LIVE, name="of-node", arguments="{{ node.name }}"), LIVE))
    text = file(NAMES["pxelinux"], by=by)
    assert "LABEL live" in text
    assert "of-node" not in text


@pytest.mark.parametrize(
    "name",
    [
        "pxelinux.cfg",
        "pxelinux.cfg/",
        "pxelinux.cfg/0A4D0009",
        "pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d",
        "pxelinux.cfg/01-52-54-00-00-00-01-02",
        "pxelinux.cfg/01-52-54-00-00-00-0g",
        "media/tree/pxelinux.cfg/default",
        "media/tree/grub/grub.cfg",
        "grub/x86_64-efi/grub.cfg",
        "grub/grub.cfgx",
        "grub.cfg",
        "autoexec.ipxe",
        "boot/autoexec.ipxe",
        "x",
    ],
)
def test_other_names_are_not_rendered(name: str) -> None:
    assert ask(name, replace(CLIENT, mac=MAC)) is None


@pytest.mark.parametrize(
    "name",
    [
        "a/b/boot/pxelinux.cfg/default",
        "boot/grub/grub.cfg",
        "grub2/grub.cfg",
        "boot/grub.cfg",
        "boot.ipxe",
        "x/boot.ipxe",
    ],
)
def test_names_at_other_depths(name: str) -> None:
    assert "fastboot for a machine" in file(name)


# Values that can not be written


@pytest.mark.parametrize("language", NAMES)
@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (replace(LIVE, arguments="{{ node.variables.evil }}"), "line break"),
        (replace(LIVE, arguments="{{ nothing }}"), "'nothing' is undefined"),
        (replace(LIVE, arguments="{{ node.variables.missing }}"), "has no attribute 'missing'"),
        (replace(LIVE, arguments="{{ 1 / 0 }}"), "division by zero"),
        (replace(LIVE, arguments="{{ ''.__class__.__mro__ }}"), "unsafe"),
        (replace(LIVE, arguments="{{ media }}", media=None), "'media' is undefined"),
        (replace(LIVE, arguments="x" * (MAX_ARGUMENTS + 1)), "longer than the 2047 octets"),
    ],
)
def test_a_machine_whose_file_fails_boots_its_disk_and_the_file_says_why(
    language: str, profile: Profile, why: str
) -> None:
    by = of(profile, {"evil": "quiet\nLABEL evil"})
    text = file(OF_MAC[language], by=by)
    first = text.splitlines()[1 if language == "ipxe" else 0]
    assert first.startswith("# fastboot for n1: local disk, because ")
    assert why in first
    assert "images/linux" not in text
    assert any(why in complaint for complaint in by.check())


@pytest.mark.parametrize(
    ("language", "profile"),
    [
        ("pxelinux", replace(LIVE, kernel="a kernel")),
        ("pxelinux", replace(LIVE, initrd=("a,b",))),
        ("ipxe", replace(LIVE, arguments="${net0/mac}")),
        ("ipxe", replace(LIVE, arguments="a || shell")),
        ("ipxe", replace(LIVE, arguments="a #b")),
    ],
)
def test_what_one_language_can_not_say_others_still_do(language: str, profile: Profile) -> None:
    by = of(profile)
    for each in NAMES:
        assert ("local disk, because" in file(OF_MAC[each], by=by)) == (each == language)
    assert len(by.check()) == 1


def test_a_template_without_end_costs_its_time_once_and_is_told_each_time() -> None:
    """A thousand machines switched on at once are not to hold up everybody for 50 ms each."""
    events: list[Event] = []
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
    by = Renderer([NODES[0]], [replace(LIVE, arguments=loops)], emit=events.append)
    why = "profile live: arguments: takes more than 50 ms of processor time; look for loops in loops"
    before = time.thread_time()
    for _ in range(1000):
        assert file(OF_MAC["pxelinux"], by=by).startswith(f"# fastboot for n1: local disk, because {why}\n")
    assert time.thread_time() - before < 5
    assert by.failed == {"live": 1000} and len(events) == 1000
    assert {(event.kind, event.mac, event.node) for event in events} == {("render.failed", MAC, "n1")}
    assert events[0].details == {"profile": "live", "text": why}
    fresh = Renderer([NODES[0]], [replace(LIVE, arguments=loops)])
    assert fresh.check() == [why.replace("profile ", "profiles ", 1)]


def test_a_menu_tells_of_a_template_that_fails() -> None:
    events: list[Event] = []
    profiles = [
        replace(LIVE, name="bad", arguments="{{ 1 / 0 }}"),
        replace(LIVE, name="n", arguments="{{ node }}"),
        LIVE,
    ]
    text = file(NAMES["pxelinux"], by=Renderer([], profiles, emit=events.append))
    assert "LABEL live" in text and "LABEL bad" not in text and "LABEL n\n" not in text
    assert [event.details["text"] for event in events] == ["profile bad: arguments: division by zero"]


@pytest.mark.parametrize("arguments", ["{{ 1 / 0 }}", "x" * (MAX_ARGUMENTS + 1)])
def test_check_tells_of_a_profile_that_every_menu_leaves_out(arguments: str) -> None:
    """Though no node has it. Arguments that need a node are none of that."""
    (complaint,) = Renderer([], [replace(LIVE, arguments=arguments)]).check()
    assert complaint.startswith("profiles live: arguments: ")
    assert Renderer([], [replace(LIVE, arguments="{{ node.name }}")]).check() == []


def test_check_is_silent_where_all_is_well() -> None:
    assert renderer.check() == []


@pytest.mark.parametrize(
    ("nodes", "profiles", "message"),
    [
        ([Node("n1", (MAC,), profile="none")], [LIVE], r"nodes n1: profile: there is no 'none'; there are: live"),
        ([], [replace(LIVE, arguments="{{ oops")], r"profiles live: arguments: "),
        ([], [replace(LIVE, name="local")], r"profiles local: name: "),
    ],
)
def test_wrong_configurations(nodes: list[Node], profiles: list[Profile], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Renderer(nodes, profiles)


SIGNS = st.sampled_from([*"\n\r\0\x85\u2028\t '\"\\$};#,x", "${", "||", "&&", "{{"])
HOSTILE = st.text(max_size=12) | st.lists(SIGNS, max_size=8).map("".join)


@given(value=HOSTILE, path=HOSTILE, name=HOSTILE)
@settings(deadline=None, max_examples=150)
def test_no_value_leaves_its_place(value: str, path: str, name: str) -> None:
    """Whatever a variable, path or name holds, the file has the lines it would have, or boots the disk."""
    profile = Profile("live", "/k" + path, ("/i" + path,), "a={{ node.variables.v }}", installs=False)
    node = Node(name, (MAC,), profile="live", variables={"v": value})
    hostile, plain = Renderer([node], [profile]), of(Profile("live", "/k", ("/i",), "a=b", installs=False))
    for language in NAMES:
        lines, expected = (file(OF_MAC[language], by=by).split("\n") for by in (hostile, plain))
        assert all(line.isprintable() for line in lines)
        if any("local disk, because" in line for line in lines[:2]):
            assert len(lines) < len(expected)
            continue
        assert len(lines) == len(expected)
        differing = [line for line, other in zip(lines, expected, strict=True) if line != other]
        if language == "pxelinux":
            assert [line.split()[0] for line in differing if line[0] != "#"] == [
                word for word, differs in (("LINUX", path), ("INITRD", path), ("APPEND", True)) if differs
            ]
        for line in differing:
            if language == "grub" and line.startswith("  linux"):
                # Single quotes mean in GRUB's script what they mean in the shell's.
                words = shlex.split(line)
                assert words[:2] == ["linux", "(tftp,10.77.0.1)/k" + path]
                assert "".join(words[2:-1]).replace(" ", "") == f"a={value}".replace('"', "").replace(" ", "") or (
                    re.search(r"\s", value) is not None
                )
            if language == "ipxe" and line.startswith("kernel"):
                assert line.endswith(" || goto failed")
                middle = line.removesuffix(" || goto failed").replace("${netX/mac:hexhyp}", "")
                assert "${" not in middle
                assert not {"||", "&&", ";"} & set(middle.split())


def test_the_labels_of_our_own_are_reserved() -> None:
    text = file(NAMES["pxelinux"]) + file(NAMES["ipxe"])
    labels = set(re.findall(r"^(?:LABEL |:)(\S+)$", text, re.MULTILINE))
    assert labels == {*RESERVED, "live"}


def test_a_loader_goes_on_as_it_came() -> None:
    """Who fetches its configuration by HTTP (UEFI HTTP Boot, iPXE) fetches kernel and initrd so too."""
    node = Node("n", ("52:54:00:00:00:01",), profile=LIVE.name)
    by = Renderer([node], [LIVE], ports={"http": 8080})
    client = Client(IPv4Address("10.77.0.9"), IPv4Address("10.77.0.1"), "http", node.macs[0])
    text = (by.render(("boot", "boot.ipxe"), client) or b"").decode()
    assert "kernel http://10.77.0.1:8080/" in text
    assert "initrd --name initrd0 http://10.77.0.1:8080/" in text
    text = (by.render(("boot", "grub", "grub.cfg"), client) or b"").decode()
    assert "linux (http,10.77.0.1:8080)'/" in text
    assert "tftp" not in text and "configfile" not in text
    text = (by.render(("boot", "pxelinux.cfg", "default"), client) or b"").decode()
    assert "LINUX http://10.77.0.1:8080/media/tree/images/linux\n" in text
    assert "INITRD http://10.77.0.1:8080/media/tree/images/a.gz,http://10.77.0.1:8080/b.gz\n" in text
    assert "::" not in text


def test_grub_that_came_by_tftp_goes_on_by_http_where_it_can() -> None:
    by = Renderer(NODES, (LIVE, INSTALL), ports={"http": 8080})
    text = file(OF_MAC["grub"], by=by)
    again = "configfile (http,10.77.0.1:8080)/grub/grub.cfg"
    assert f"\n{again}-01-52-54-00-00-00-01\n" in text
    assert "linux (tftp,10.77.0.1)'/media/tree/images/linux'" in text, "where it can not"
    by_http = replace(CLIENT, protocol="http")
    assert "linux (http,10.77.0.1:8080)'/media" in file("grub/grub.cfg-01-52-54-00-00-00-01", by_http, by)
    menu = Renderer((), (LIVE,), ports={"http": 80})
    assert "\nconfigfile (http,10.77.0.1)/grub/grub.cfg\n" in file(NAMES["grub"], by=menu)
    assert "configfile" not in file(OF_MAC["grub"]), "no HTTP is served"


def test_media_are_fetched_by_the_transport_of_the_profile() -> None:
    node = Node("n", ("52:54:00:00:00:01",), profile=LIVE.name)
    client = Client(IPv4Address("10.77.0.9"), IPv4Address("10.77.0.1"), "tftp", node.macs[0])
    by = Renderer([node], [replace(LIVE, arguments="at={{ media }}", transport="http")], ports={"http": 80})
    assert b" at=http://10.77.0.1/media/" in (by.render(("pxelinux.cfg", "default"), client) or b"")
    for ports, scheme in (({"http": 80}, b"http"), ({"ftp": 21, "http": 80}, b"ftp")):
        by = Renderer([node], [replace(LIVE, arguments="at={{ media }}")], ports=ports)
        text = by.render(("pxelinux.cfg", "default"), client) or b""
        assert b" at=" + scheme + b"://10.77.0.1/media/" in text

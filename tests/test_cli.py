"""The command line, as a person or a service manager runs it: processes, signals, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import closing
from ftplib import FTP
from pathlib import Path

import psutil
import pytest
from dhcpkit import DISCOVER, message, need, number, wires
from dhcpsite import Station, offer_by
from isokit import XORRISO, put, run
from labkit import FASTBOOT, Lab, Serve, wait_for
from test_recognise import rhel
from test_shims import rocky

from fastboot.services.control_client import ControlClient, ControlError, NotRunning


def begin_transfer(port: int) -> socket.socket:
    """Ask for a file and leave its first block unanswered: a transfer that is under way until it is given up."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.sendto(b"\0\1file\0octet\0timeout\x0030\0", ("127.0.0.1", port))
    sock.recvfrom(2048)
    return sock


def test_from_ready_to_a_clean_end(lab: Lab, serve: Serve) -> None:
    process = serve()
    status = lab.run("status", "--json")
    assert status.returncode == 0
    facts = json.loads(status.stdout)
    assert (facts["state"], facts["pid"]) == ("running", process.pid)
    assert f"process {process.pid}" in lab.run("status").stdout
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert lab.run("status").returncode == 3
    assert not (lab.state / "control.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_the_second_ends(lab: Lab, serve: Serve, number: signal.Signals) -> None:
    process = serve()
    with begin_transfer(lab.tftp):
        process.send_signal(number)
        wait_for(process, "server", "stopping")
        assert process.poll() is None, "a transfer is under way, and 30 s to drain"
        before = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert time.monotonic() - before < 5
    with pytest.raises(NotRunning):
        ControlClient(lab.state).get("/status")
    serve()  # nothing that was left behind is in the way


def test_a_drained_server_ends_by_itself(lab: Lab, serve: Serve) -> None:
    process = serve()
    with begin_transfer(lab.tftp) as client:
        process.send_signal(signal.SIGTERM)
        wait_for(process, "server", "stopping")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.settimeout(0.3)
            late.sendto(b"\0\1file\0octet\0", ("127.0.0.1", lab.tftp))
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                late.recvfrom(2048)
        client.sendto(b"\0\5\0\0enough\0", ("127.0.0.1", lab.tftp))
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, 143)


def test_a_log_that_nobody_reads_does_not_keep_it_from_ending(lab: Lab, serve: Serve) -> None:
    process = serve()
    assert process.stderr
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for each in range(40):
            client.sendto(b"\0\1none%d\0octet\0" % each, ("127.0.0.1", lab.tftp))
    held = bytearray(4)
    while int.from_bytes(held, sys.byteorder) < 3800:
        fcntl.ioctl(process.stderr, termios.FIONREAD, held)
    lab.run("status")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_sighup_reloads_and_a_wrong_file_keeps_the_old(lab: Lab, serve: Serve) -> None:
    process = serve()
    lab.edit('"node02"', '"node03"')
    process.send_signal(signal.SIGHUP)
    assert wait_for(process, "server", "reloaded")["changed"] == ["nodes"]
    lab.edit("[tftp]", "[tftp]\nnonsense = 1")
    process.send_signal(signal.SIGHUP)
    entry = wait_for(process, "server", "reload.failed")
    assert entry["level"] == "error"
    assert "tftp.nonsense: there is no key 'nonsense'" in entry["text"]
    lab.edit("nonsense = 1", f"max_file = 0x{'f' * 5000}")
    process.send_signal(signal.SIGHUP)
    entry = wait_for(process, "server", "reload.failed")
    assert "tftp.max_file: should be a number of at most 64 bits" in entry["text"]
    assert [node["name"] for node in ControlClient(lab.state).get("/nodes")] == ["node01", "node03"]


def test_the_reload_command(lab: Lab, serve: Serve) -> None:
    serve()
    assert lab.run("reload").stdout == "reloaded: nothing changed\n"
    assert json.loads(lab.run("reload", "--json").stdout) == {"changed": []}
    lab.edit(f"port = {lab.tftp}", f"port = {lab.tftp}\nthreads = 5")
    done = lab.run("reload")
    assert (done.returncode, done.stderr) == (4, "fastboot: needs a restart: tftp.threads\n")


def test_a_second_server_is_told_of_the_first(lab: Lab, serve: Serve) -> None:
    process = serve()
    lab.edit(f"port = {lab.tftp}", "port = 0")
    lab.edit(f"port = {lab.ftp}", "port = 0")
    done = lab.run("serve")
    assert done.returncode == 1
    assert f"is in use by process {process.pid}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_busy_port_is_one_clear_line(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", lab.tftp))
        done = lab.run("serve")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastboot: tftp.port: ")
    assert f"process {os.getpid()}" in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[tftp]", "[tftp]\nnonsense = 1", "tftp.nonsense: there is no key"),
        ('"lo"', '"nonsense0"', "interface: there is no 'nonsense0' here; there are "),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(lab: Lab, old: str, new: str, said: str) -> None:
    lab.edit(old, new)
    done = lab.run("serve")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_missing_file_and_wrong_usage(lab: Lab) -> None:
    lab.path.unlink()
    done = lab.run("check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"fastboot: {lab.path}: No such file or directory; write one")
    assert done.stderr.count("\n") == 1
    assert lab.run("nonsense").returncode == 2


def test_nothing_to_run(lab: Lab) -> None:
    lab.path.write_text('interface = "lo"\nstate = "state"\n')
    for word, code in (("serve", 2), ("check", 1)):
        done = lab.run(word)
        assert done.returncode == code
        assert "nothing would run: there is no table dhcp, tftp, ftp or http" in done.stderr + done.stdout


FAR_LIBRARY = """
import os, sys
from fastboot import cli, serving
become = serving.become
def then_lose_the_library(config):
    become(config)
    os.__file__ = "/nonexist/os.py"
    sys.meta_path.clear()
serving.become = then_lose_the_library
cli.main()
"""


def test_it_serves_where_its_user_can_not_read_the_library(lab: Lab) -> None:
    """As with a Python below /root: it says so, and what an active FTP session needs is loaded."""
    command = [sys.executable, "-c", FAR_LIBRARY, "serve", "-c", str(lab.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, FTP() as client:
        try:
            told = wait_for(process, "server", "library_out_of_reach")
            assert (told["level"], told["text"].split(",")[0]) == ("warning", "user: can not read /nonexist")
            wait_for(process, "server", "ready")
            client.connect("127.0.0.1", lab.ftp, timeout=20)
            client.login()
            client.set_pasv(False)
            got = bytearray()
            client.retrbinary("RETR file", got.extend)
            assert got == b"x" * 1000
            assert "file" in client.nlst()
        finally:
            process.kill()


def test_media_are_explained_where_their_user_can_not_read_the_library(lab: Lab) -> None:
    lab.path.write_text(f"{lab.path.read_text()}[[media]]\nname = 'lab'\npath = '{lab.path.parent}'\n")
    command = FAR_LIBRARY.replace("import cli, serving", "import cli, cli as serving").replace("become", "drop_to")
    done = subprocess.run(
        [sys.executable, "-c", command, "media", "-c", str(lab.path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_too_few_open_files_are_named(lab: Lab) -> None:
    command = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "-", *FASTBOOT, "serve", "-c", str(lab.path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("fastboot: this system allows 64 open files; the server needs 256 to start")


def test_a_state_that_is_a_file_is_named(lab: Lab) -> None:
    lab.state.write_text("")
    said = f"state: {lab.state} is no directory; name one, which the server makes"
    found = lab.run("check")
    assert found.returncode == 1
    assert f"error: {said}\n" in found.stdout
    served = lab.run("serve")
    assert (served.returncode, served.stderr) == (1, f"fastboot: {said}\n")
    assert lab.run("status").returncode == 3


def test_check_says_of_a_state_that_the_user_can_not_reach(lab: Lab) -> None:
    """Such as below /root: the server would make it, as root, and then be unable to open it."""
    private = lab.state.parent / "private"
    private.mkdir(mode=0o700)
    lab.edit('state = "state"', f'state = "{private}/state"\nuser = "nobody"')
    found = lab.run("check")
    assert (found.returncode, found.stderr) == (1, "")
    assert (
        f"error: state: {private}/state is out of reach for the server's user: Permission denied; " in found.stdout
    )
    lab.edit(f"{private}/state", f"{lab.path}/below/a/file")
    found = lab.run("check")
    assert f"error: state: can not make {lab.path}/below/a/file: {lab.path} is no directory" in found.stdout


def test_privileges_are_dropped_before_it_serves(lab: Lab, serve: Serve) -> None:
    """As root to nobody, with no group, capability or way back; else the key changes nothing."""
    lab.edit('state = "state"', 'state = "state"\nuser = "nobody"')
    if os.geteuid() == 0 and not is_mapped(pwd.getpwnam("nobody").pw_uid):
        done = lab.run("serve")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "for nobody: Invalid argument" in done.stderr
        return
    process = serve()
    facts = dict(
        line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":" in line
    )
    nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    assert set(facts["Uid"].split()) == {str(nobody)}
    assert facts["NoNewPrivs"].strip() == "1"
    assert int(facts["CapEff"], 16) == 0
    assert lab.state.stat().st_uid == nobody
    assert (lab.state / "control.sock").stat().st_uid == nobody
    if os.geteuid() == 0:
        assert int(facts["CapPrm"], 16) == int(facts["CapAmb"], 16) == 0
        assert "0" not in facts["Groups"].split()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        assert f"\nUid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}\n" in (task / "status").read_text()


def test_other_servers_and_squatters_are_seen_after_privileges_were_dropped(lab: Lab, serve: Serve) -> None:
    need("ip")
    nobody = is_mapped(pwd.getpwnam("nobody").pw_uid)
    lab.edit('interface = "lo"\n', 'interface = "s0"\n' + ('user = "nobody"\n' if nobody else ""))
    subnet = 'network = "10.77.0.0/24"\npools = ["10.77.0.100-10.77.0.199"]\n'
    lab.edit("[tftp]", f"[dhcp]\nprobe = 0\n[[dhcp.subnets]]\n{subnet}[tftp]")
    with wires(("10.77.0.1/24",)) as wire, closing(Station(wire.clients[0])) as station:
        wire.clients[0].ip("address", "add", "10.77.0.100/24", "dev", "c0")
        process = serve("ip", "netns", "exec", wire.server.name)
        conflict = wait_for(process, "dhcp", "conflict")
        assert (conflict["level"], conflict["address"]) == ("warning", "10.77.0.100")
        assert conflict["mac"] == "52:54:00:c0:00:00"
        assert re.search(
            r"^10\.77\.0\.100\s+52:54:00:c0:00:00\s.*\sdeclined\s", lab.run("leases").stdout, re.MULTILINE
        )
        told = lab.run("status").stdout
        assert "another DHCP server" not in told
        packet = offer_by("10.77.0.2")
        station.socket.send(b"\xff" * 6 + station.mac + b"\x08\x00" + packet)
        alarm = wait_for(process, "dhcp", "other_server")
        assert (alarm["level"], alarm["server"], alarm["mac"]) == ("warning", "10.77.0.2", "52:54:00:c0:00:00")
        told = lab.run("status").stdout
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        line = rf"another DHCP server is at work on s0 {since}: 10\.77\.0\.2 \(52:54:00:c0:00:00\)"
        assert re.search(line, told)
        assert re.search(r"^dhcp\s+other_servers\s+1$", told, re.MULTILINE)
        (other,) = json.loads(lab.run("status", "--json").stdout)["other_servers"]
        assert other["address"] == "10.77.0.2"


def is_mapped(user: int) -> bool:
    """Whether this user namespace knows a user."""
    ranges = [map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= user < first + count for first, _, count in ranges)


def test_a_user_that_does_not_exist_is_named(lab: Lab) -> None:
    lab.edit('state = "state"', 'state = "state"\nuser = "nonsense"')
    done = lab.run("check")
    if os.geteuid() == 0:
        assert "user: there is no user 'nonsense' here; make it with: adduser" in done.stdout
        assert done.returncode == 1
    else:
        assert done.returncode == 0


def test_nodes_by_set(lab: Lab) -> None:
    assert [line.split("\t")[0] for line in lab.run("nodes").stdout.splitlines()] == ["node01", "node02"]
    (node,) = json.loads(lab.run("nodes", "rack7", "--json").stdout)
    assert (node["name"], node["macs"], node["address"]) == ("node01", ["52:54:00:00:00:01"], None)
    assert len(json.loads(lab.run("nodes", "node[01-02]", "--json").stdout)) == 2
    done = lab.run("nodes", "rack8")
    assert (done.returncode, done.stderr) == (
        2,
        "fastboot: there is no node or group 'rack8'; did you mean 'rack7'?\n",
    )


def test_check_finds_what_would_fail(lab: Lab) -> None:
    lab.edit('roots = ["root"]', 'roots = ["root", "missing"]')
    with lab.path.open("a") as file:
        file.write(
            '[[profiles]]\nname = "live"\nkernel = "vmlinuz"\n[dhcp]\n'
            '[[dhcp.subnets]]\nnetwork = "10.231.77.0/24"\npools = ["10.231.77.10-10.231.77.20"]\n'
        )
    with socket.socket() as other:
        other.bind(("127.0.0.1", lab.ftp))
        other.listen()
        done = lab.run("check", "--json")
    assert done.returncode == 1
    errors = [finding["text"] for finding in json.loads(done.stdout) if finding["level"] == "error"]
    for key in (
        "dhcp.subnets[0].network: no interface has an address",
        "ftp.port: ",
        "roots: ",
        "profiles live: kernel",
    ):
        assert any(error.startswith(key) for error in errors), f"{key} is not in {errors}"


def test_secrets_are_never_in_a_served_tree(lab: Lab, serve: Serve) -> None:
    """The state directory is refused wherever it would be served; the configuration is warned of."""
    base = lab.path.parent
    (base / "link").symlink_to(base)
    for roots, key in (('["root", "."]', "roots[1]"), ('["link"]', "roots[0]"), ('["/"]', "roots[0]")):
        lab.edit('roots = ["root"]', f"roots = {roots}")
        for words in ("check",), ("serve",):
            done = lab.run(*words)
            assert done.returncode in (1, 2)
            said = f"holds state = {base}/state, so its secrets would be served; name another for one of them"
            (line,) = [line for line in (done.stdout + done.stderr).splitlines() if key in line]
            assert line.endswith(said)
        lab.edit(f"roots = {roots}", 'roots = ["root"]')
    lab.edit('roots = ["root"]', f'roots = ["root"]\nmedia = [{{ name = "all", path = "{base}" }}]')
    assert "media[0].path: " in lab.run("check").stdout
    lab.edit(f'path = "{base}"', f'path = "{base}/root"')
    moved = base / "root/lab.toml"
    moved.write_text(lab.path.read_text().replace('"root"', '"."').replace('"state"', '"../state"'))
    done = subprocess.run([*FASTBOOT, "check", "-c", moved], capture_output=True, text=True, timeout=60)
    assert f"{moved}: is in {base}/root, so every client can read it; move it elsewhere" in done.stdout


def test_links_to_secrets_are_neither_listed_nor_followed(lab: Lab, serve: Serve) -> None:
    """Made while it serves, so that no check has seen them; by FTP and HTTP, to state and configuration."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        http = probe.getsockname()[1]
    lab.path.write_text(lab.path.read_text() + f"[http]\nport = {http}\n")
    serve()
    root = lab.path.parent / "root"
    links = {"s-state": lab.state, "s-conf": lab.path, "s-up": Path("../state"), "s-all": Path("/")}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (lab.state / "secret").write_text("of the state")
    (root / "fine").symlink_to("file")
    for url in (f"ftp://127.0.0.1:{lab.ftp}", f"http://127.0.0.1:{http}"):

        def fetch(path: str, url: str = url) -> subprocess.CompletedProcess[str]:
            command = ["curl", "-sS", "--fail", "--path-as-is", f"{url}/{path}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=20)

        listed = fetch("").stdout
        assert "fine" in listed
        assert "s-" not in listed
        paths = ("s-state/secret", "s-conf", "s-up/secret", f"s-all{lab.path}", "../state/secret")
        for path in paths:
            done = fetch(path)
            assert (done.returncode != 0, done.stdout) == (True, ""), path


def test_a_template_without_end_is_told_before_and_while_it_serves(lab: Lab, serve: Serve) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (lab.path.parent / "root/vmlinuz").write_bytes(b"linux")
    with lab.path.open("a") as file:
        file.write(f'[[profiles]]\nname = "live"\nkernel = "/vmlinuz"\ninstalls = false\narguments = "{loops}"\n')
    why = "takes more than 50 ms of processor time; look for loops in loops"
    done = lab.run("check")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"error: profiles live: arguments: {why}" in done.stdout.splitlines()
    assert re.search(r": 1 error, \d+ warnings?\n$", done.stdout)
    process = serve()
    for count in (1, 2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"\0\1boot/boot.ipxe\0octet\0", ("127.0.0.1", lab.tftp))
            assert b"#!ipxe" in client.recv(2048)
        assert ControlClient(lab.state).get("/status")["not_rendered"] == {"live": count}
    assert wait_for(process, "render", "failed")["text"] == f"profile live: arguments: {why}"


def test_check_of_a_tree_of_bad_links_is_bounded(lab: Lab) -> None:
    for each in range(100):
        (lab.path.parent / f"root/link{each}").symlink_to("nowhere")
    lines = lab.run("check").stdout.splitlines()
    assert len([line for line in lines if "the link points nowhere" in line]) == 20
    assert f"warning: {lab.path.parent}/root: there is more in it that is not served, and not listed here" in lines


def test_a_state_that_can_not_be_written_to_says_what_helps(lab: Lab) -> None:
    state = lab.path.parent / "state"
    state.mkdir()
    script = 'mount -t tmpfs -o ro tmpfs "$1" && shift && exec "$@"'
    read_only = f"state: {state} is on a file system that is read-only; name another, such as /var/lib/fastboot"
    for word in ("serve", "check"):
        command = ("unshare", "--mount", "sh", "-c", script, "-", state, *FASTBOOT, word, "-c", lab.path)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert read_only in done.stderr + done.stdout


def test_check_finds_what_machines_could_not_be_answered(lab: Lab) -> None:
    with lab.path.open("a") as file:
        file.write("""
[dhcp]
[[dhcp.subnets]]
network = "10.88.0.0/24"
gateway = "10.88.0.254"
relayed = true
options = { classless-routes = "10.80.0.0/16 via 10.88.0.2", default-url = "http://{server}/x" }
[[groups]]
name = "rack7"
loader = { uefi-x64 = "none.efi" }
[[groups]]
name = "rack9"
loader = "elsewhere.efi"
next_server = "10.88.0.3"
[[dhcp.classes]]
name = "bios"
options = { vendor-class = "PXEClient", vendor-options = "01 01 00 06 01 08" }
[[dhcp.classes]]
name = "ipxe"
options = { vendor-class = "PXEClient", vendor-options = "06 01 08 FF" }
[[dhcp.classes]]
name = "phones"
vendor_class = "Phone"
options = { vendor-options = "01 01 00" }
[boot.loaders]
bios = "http://127.0.0.1/x"
http-x64 = "http://{server}/x.efi"
opal = "none.elf"
""")
    done = lab.run("check", "--json")
    assert done.returncode == 1
    findings = [finding for finding in json.loads(done.stdout) if "chain" not in finding]
    found = {(finding["level"], finding["text"]) for finding in findings}
    for level, text in (
        ("error", "groups rack7.loader.uefi-x64: none.efi: no such file; name a file below a root, or a URL"),
        ("error", "boot.loaders.opal: none.elf: no such file; name a file below a root, or a URL"),
        (
            "warning",
            "boot.loaders.bios: http://127.0.0.1/x: PXE firmware fetches by TFTP only; a URL is for http-bios",
        ),
        (
            "warning",
            "dhcp.subnets[0].options.classless-routes: has no default route, and machines that take these",
        ),
        ("warning", "dhcp.subnets[0].options.default-url: every ONIE switch takes it for its installer"),
        ("warning", "groups[1].name: no node is in group rack9"),
        ("warning", "dhcp.classes[0].options.vendor-options: PXE clients read on to an octet FF; end it with one"),
        ("warning", "dhcp.classes[0].options.vendor-options: holds sub-options 1 to 5"),
    ):
        assert any(level == one and told.startswith(text) for one, told in found), text
    quiet = ("elsewhere.efi", "http-x64:", "dhcp.classes[1]", "dhcp.classes[2]")
    assert not [text for _, text in found if any(word in text for word in quiet)]
    lab.edit('http-x64 = "http://{server}/x.efi"', 'http-x64 = "x.efi"')
    done = lab.run("check")
    assert done.returncode == 1
    assert (
        'error: boot.loaders.http-x64: x.efi is no URL; write one such as "http://{server}/x.efi"' in done.stdout
    )


def test_check_explains_the_proxy(lab: Lab) -> None:
    classes = '[[dhcp.classes]]\nname = "uefi-x64"\ntransport = "tftp"\n'
    lab.edit("[tftp]", f'[dhcp]\nmode = "proxy"\n{classes}[tftp]')
    done = lab.run("check", "--json")
    notes = [entry["text"] for entry in json.loads(done.stdout) if entry["level"] == "note"]
    assert notes[0].startswith("dhcp.mode: proxy: another host must give the addresses on lo (127.0.0.1/8).")
    assert "boot-options" in notes[0]
    assert notes[1].startswith("dhcp.classes[0].transport: does not reach GRUB")
    assert any(note.startswith("boot.loaders.uefi-x64: snponly.efi is taken, not ") for note in notes)


@pytest.mark.parametrize("program", ["dnsmasq", "dhcpd", "kea", "windows"])
def test_boot_options_of_another_server(lab: Lab, program: str) -> None:
    done = lab.run("boot-options", program)
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first == "# machines on lo: boot files of fastboot on 127.0.0.1"
    assert "boot/pxelinux.0" in rest and "boot/boot.ipxe" in rest
    told = json.loads(lab.run("boot-options", program, "--json").stdout)
    assert told["lo"] + "\n" == rest
    assert lab.run("boot-options", "nonsense").returncode == 2


def test_boot_options_name_the_shim_of_a_medium(lab: Lab) -> None:
    tree = lab.path.parent / "rocky"
    for name, data in rocky().items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    lab.edit(
        "[tftp]",
        '[[media]]\nname = "rocky"\npath = "rocky"\n[[profiles]]\nname = "rocky"\nmedia = "rocky"\n[tftp]',
    )
    lab.edit('name = "node02"\n', 'name = "node02"\nprofile = "rocky"\n')
    assert (
        "dhcp-boot=tag:fastboot-7,tag:!fastboot-ipxe,boot/rocky/shimx64.efi,,"
        in lab.run("boot-options", "dnsmasq").stdout
    )
    lab.edit('group = "rack7"\n', 'profile = "live"\n')
    lab.edit("[tftp]", '[[profiles]]\nname = "live"\nkernel = "/file"\n[tftp]')
    told = lab.run("boot-options", "dnsmasq").stdout
    assert "tag:!fastboot-ipxe,boot/rocky/shimx64.efi" not in told
    assert "\n# class uefi-x64: boot/rocky/shimx64.efi for profile rocky (node node02)\n" in told


def test_check_of_a_good_lab(lab: Lab, serve: Serve) -> None:
    done = lab.run("check")
    assert done.returncode == 0, done.stdout
    serve()
    assert lab.run("check").returncode == 0, "the ports are those of the server itself"


def test_check_shows_what_each_machine_boots(lab: Lab) -> None:
    """The loaders of this system with their versions and signers, and one that the configuration names."""
    assert Path("/usr/lib/shim/shimx64.efi.signed").exists(), "make setup installs shim-signed"
    lab.edit("[tftp]", '[boot.loaders]\nbios = "boot/undionly.kpxe"\n[tftp]')
    told = lab.run("check").stdout
    lines = [line.split("\t") for line in told.splitlines() if "\t" in line]
    shim, grub = (next(line for line in lines if name in line[2]) for name in ("shimx64.efi", "grubx64.efi"))
    assert shim[:4] == ["uefi-x64", "firmware", "boot/shimx64.efi", "TFTP"]
    assert shim[4].startswith("shim ") and "Microsoft" in shim[5]
    assert grub[:4] == ["", "shim", "boot/grubx64.efi", "TFTP"]
    assert grub[4].startswith("GRUB 2.") and grub[5] == "Debian Secure Boot CA"
    assert next(line for line in lines if line[0] == "bios")[2:5] == ["boot/undionly.kpxe", "TFTP", "iPXE"]
    assert "note: signed by: as the files say themselves; compared was only whether they are still" in told
    (entry,) = (each for each in json.loads(lab.run("check", "--json").stdout) if "uefi-x64" in each["text"])
    assert entry["text"].startswith("boot.loaders.uefi-x64: shimx64.efi by TFTP, grubx64.efi by TFTP, ")
    assert [row["who"] for row in entry["chain"]] == ["firmware", "shim", "GRUB", "GRUB"]


def test_media_are_read_by_the_user_that_serves(lab: Lab, serve: Serve) -> None:
    """`check` reads an image and leaves nothing behind; the server keeps what it read; both as `user`."""
    iso = lab.path.with_name("lab.iso")
    run(
        *XORRISO,
        "-R",
        "-o",
        iso,
        put(lab.path.with_name("tree"), {"file": b"from the image", "bad": "/etc/passwd"}),
    )
    iso.chmod(0o644)
    has_nobody = os.geteuid() == 0 and is_mapped(pwd.getpwnam("nobody").pw_uid)
    user = 'user = "nobody"\n' if has_nobody else ""
    lab.path.write_text(f"{user}{lab.path.read_text()}[[media]]\nname = 'lab'\niso = 'lab.iso'\n")
    done = lab.run("check")
    assert f"warning: {iso}/bad: leaves the served tree; it is never served\n" in done.stdout
    assert "error" not in done.stdout.replace("0 errors", "")
    assert not lab.state.exists()
    process = serve()
    readers = [
        child for child in psutil.Process(process.pid).children() if "fastboot.boot.indexer" in child.cmdline()
    ]
    assert [reader.uids().real for reader in readers] == [lab.state.stat().st_uid]
    assert (lab.state / "media/lab.index").exists()
    url = f"ftp://127.0.0.1:{lab.ftp}/media/lab/file"
    assert subprocess.run(["curl", "-sS", url], capture_output=True, timeout=20).stdout == b"from the image"
    listed = lab.run("media")
    assert listed.stdout == f"lab\tready\tnot recognised\t1\t{iso}\n"
    assert json.loads(lab.run("media", "--json").stdout)[0]["form"] == "Rock Ridge"
    process.terminate()
    assert process.wait(20) == 0
    assert not psutil.pid_exists(readers[0].pid)
    iso.write_bytes(b"junk" * 20_000)
    assert (
        f"error: media lab: {iso}: volume descriptor at 0x8000: neither ISO 9660 nor UDF"
        in lab.run("check").stdout
    )


def test_media_without_a_server(lab: Lab) -> None:
    tree = put(lab.path.with_name("tree"), {**rhel("Rocky Linux", "9.4"), "bad": "/etc/passwd"})
    run(*XORRISO, "-R", "-o", lab.path.with_name("lab.iso"), tree)
    media = "[[media]]\nname = 'lab'\niso = 'lab.iso'\n[[media]]\nname = 'gone'\npath = 'gone'\n"
    lab.path.write_text(lab.path.read_text() + media)
    done = lab.run("media")
    assert done.stdout.splitlines()[0].split("\t")[:3] == ["lab", "ready", "Rocky Linux 9.4 x86_64"]
    assert (done.returncode, done.stderr) == (
        1,
        "fastboot: media gone: No such file or directory; create it or name another\n",
    )
    done = lab.run("media", "check", "lab")
    assert done.returncode == 0
    assert "  boots images/pxeboot/vmlinuz with images/pxeboot/initrd.img\n" in done.stdout
    assert "  told for ftp: inst.repo=ftp://SERVER/media/lab ip=dhcp\n" in done.stdout
    assert "lab.iso/bad: leaves the served tree; it is never served\n" in done.stdout
    before = [*FASTBOOT, "media", "-c", str(lab.path), "--json", "check"]
    done = subprocess.run(before, capture_output=True, text=True, timeout=60)
    assert done.stdout == lab.run("media", "check", "--json").stdout
    assert done.returncode == 1
    assert [each["state"] for each in json.loads(done.stdout)] == ["ready", "failed"]
    done = lab.run("media", "check", "other")
    assert (done.returncode, done.stderr) == (2, "fastboot: media: there is no medium other\n")
    assert not lab.state.exists()


def test_a_terminal_shows_how_far_an_image_is_read(lab: Lab) -> None:
    run(*XORRISO, "-R", "-o", lab.path.with_name("lab.iso"), put(lab.path.with_name("tree"), {"file": b""}))
    lab.path.write_text(lab.path.read_text() + "[[media]]\nname = 'lab'\niso = 'lab.iso'\n")
    ours, theirs = os.openpty()
    command = [*FASTBOOT, "media", "-c", str(lab.path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "reading lab" in shown
    assert done.stdout.startswith("lab\tready\tnot recognised\t1\t")


def test_a_lease_outlives_a_killed_server(lab: Lab, serve: Serve) -> None:
    """The whole server in a network of its own; then the lease without a server, and with the next one."""
    need("ip", "udhcpc")
    lab.edit('interface = "lo"', 'interface = "s0"')
    with lab.path.open("a") as file:
        file.write(
            '[dhcp]\nprobe = 0\n[[dhcp.subnets]]\nnetwork = "10.77.0.0/24"\npools = ["10.77.0.100-10.77.0.101"]\n'
        )
    with wires(("10.77.0.1/24",)) as wire:
        process = serve(*wire.server.command())
        client = wire.clients[0].command("udhcpc", "-i", "c0", "-n", "-q", "-f", "-s", "/bin/true")
        done = subprocess.run(client, capture_output=True, text=True, timeout=30)
        (address,) = re.findall(r"lease of (\S+) obtained from 10\.77\.0\.1", done.stdout + done.stderr)
        process.kill()
        process.wait(10)
        (lease,) = json.loads(lab.run("leases", "--json").stdout)
        assert (lease["address"], lease["mac"], lease["state"]) == (address, "52:54:00:c0:00:00", "bound")
        process = serve(*wire.server.command())
        (again,) = json.loads(lab.run("leases", "--json").stdout)
        assert again == {
            **lease,
            "starts": pytest.approx(lease["starts"]),
            "expires": pytest.approx(lease["expires"]),
        }
        assert lab.run("leases", "--release", address).returncode == 0
        assert lab.run("leases", "--release", address).returncode == 1
        assert lab.run("leases").stdout == "none\n"
        process.terminate()
        assert process.wait(30) == 0


# ---- a thousand nodes


def write_nodes(path: Path, group: str, address: str, *, wrong: bool = False) -> None:
    lines = [
        f"lab{at:04},52:54:00:0a:{at >> 8:02x}:{at & 255:02x},10.77.{4 + at // 99}.{1 + at % 99},{group},rescue,x"
        for at in range(999)
    ]
    lines.insert(500, "lab0500,nonsense,,,," if wrong else f"last,52:54:00:aa:00:01,{address},{group},rescue,y")
    path.write_text("name,macs,address,group,profile,variable\n" + "\n".join(lines) + "\n")


@pytest.mark.alone
async def test_a_thousand_nodes_are_reloaded_in_a_second_all_or_none(lab: Lab, serve: Serve) -> None:
    """From the command to the first machine that is answered by the new file."""
    need("ip")
    path = lab.path.parent / "nodes.csv"
    lab.edit('interface = "lo"', 'interface = "s0"\nnodes_file = "nodes.csv"')
    with lab.path.open("a") as file:
        file.write(
            SUBNET.replace("/24", "/16") + '[[profiles]]\nname = "rescue"\nkernel = "k"\ninstalls = false\n'
        )
    write_nodes(path, "rack1", "10.77.0.11")
    with wires(("10.77.0.1/16",)) as wire, closing(Station(wire.clients[0])) as station:
        serve(*wire.server.command())
        client, ask = ControlClient(lab.state), message(DISCOVER, "52:54:00:aa:00:01")
        assert (await station.ask(ask)).message.yiaddr == number("10.77.0.11")
        write_nodes(path, "rack2", "10.77.0.12")
        begun = time.monotonic()
        assert client.post("/reload") == {"changed": ["nodes"]}
        offer = await station.ask(ask)
        assert time.monotonic() - begun < 1.0
        assert offer.message.yiaddr == number("10.77.0.12")
        assert {node["group"] for node in client.get("/nodes")} == {"rack2", "rack7", None}
        write_nodes(path, "rack3", "10.77.0.13", wrong=True)
        with pytest.raises(ControlError, match=r"nodes\.csv line 502: .*nonsense"):
            client.post("/reload")
        assert (await station.ask(ask)).message.yiaddr == number("10.77.0.12")
        assert {node["group"] for node in client.get("/nodes")} == {"rack2", "rack7", None}
        write_nodes(path, "rack3", "10.77.0.13")
        assert (await station.ask(ask)).message.yiaddr == number("10.77.0.12"), "not before it is asked for"


# ---- leases: which, and from elsewhere


SUBNET = (
    '[dhcp]\nprobe = 0\n[[dhcp.subnets]]\nnetwork = "10.77.0.0/24"\n'
    'pools = ["10.77.0.100-10.77.0.199"]\ngateway = "10.77.0.254"\n'
)
DNSMASQ = """\
{soon} 52:54:00:00:00:01 10.77.0.101 host-1 *
{soon} 52:54:00:00:00:02 10.77.0.102 host-2 01:52:54:00:00:00:02
0 52:54:00:00:00:03 10.77.0.103 * *
{past} 52:54:00:00:00:04 10.77.0.104 * *
nonsense
{soon} 52:54:00:00:00:05 192.168.7.7 * *
"""


def leases_file(lab: Lab) -> Path:
    path = lab.path.parent / "dnsmasq.leases"
    path.write_text(DNSMASQ.format(soon=int(time.time()) + 5000, past=int(time.time()) - 5))
    return path


def addresses(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [lease["address"].removeprefix("10.77.0.") for lease in json.loads(done.stdout)]


def check_import(lab: Lab, path: Path) -> None:
    done = lab.run("leases", "--import", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}: 3 leases imported, 2 left out, 1 expired\n"
    assert done.stderr.splitlines() == [
        f"{path}: line 5: has not five words: 'nonsense'",
        f"{path}: line 6: 192.168.7.7 of 52:54:00:00:00:05: the address is in no subnet of the configuration",
    ]
    again = json.loads(lab.run("leases", "--import", str(path), "--json").stdout)
    assert again["imported"] == 0 and again["passed_over"] == {"expired": 1}
    assert [text.endswith("it is here already") for text in again["left_out"]] == [False, True, True, True, False]


def test_leases_of_another_server_are_imported_while_none_runs(lab: Lab, serve: Serve) -> None:
    with lab.path.open("a") as file:
        file.write(SUBNET)
    check_import(lab, leases_file(lab))
    by_store = json.loads(lab.run("leases", "--json").stdout)
    assert [lease["expires"] for lease in by_store][2] is None
    assert by_store[1]["client_id"] == "01525400000002"


def test_leases_of_another_server_are_imported_by_the_running_one(lab: Lab, serve: Serve) -> None:
    need("ip")
    lab.edit('interface = "lo"', 'interface = "s0"')
    with lab.path.open("a") as file:
        file.write(SUBNET)
    with wires(("10.77.0.1/24",)) as wire:
        process = serve(*wire.server.command())
        check_import(lab, leases_file(lab))
        imported = wait_for(process, "dhcp", "imported")
        assert (imported["leases"], imported["left_out"]) == (3, 1)
        running = json.loads(lab.run("leases", "--json").stdout)
        process.kill()
        process.wait(10)
    kept = json.loads(lab.run("leases", "--json").stdout)
    assert [each["address"] for each in kept] == [each["address"] for each in running]
    assert len(kept) == 3 and kept[0]["expires"] == pytest.approx(running[0]["expires"], abs=0.01)


def test_an_import_that_can_not_be(lab: Lab) -> None:
    for words, said in (
        ((str(lab.path),), "no lease file"),
        ((str(lab.path.parent / "missing"),), "No such file"),
        ((str(leases_file(lab)),), "there is no such table"),
    ):
        done = lab.run("leases", "--import", *words)
        assert done.returncode in (1, 2) and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_leases_by_machine_address_network_name_and_state(lab: Lab) -> None:
    with lab.path.open("a") as file:
        file.write(SUBNET)
    lab.run("leases", "--import", str(leases_file(lab)))

    def chosen(*words: str) -> list[str]:
        return addresses(lab.run("leases", "--json", *words))

    assert chosen() == ["101", "102", "103"]
    assert chosen("node01") == ["101"]
    assert chosen("node[01-02]") == ["101", "102"]
    assert chosen("rack7") == ["101"]
    assert chosen("@all") == ["101", "102"]
    assert chosen("52-54-00-00-00-03") == chosen("52:54:00:00:00:03") == ["103"]
    assert chosen("10.77.0.102") == ["102"]
    assert chosen("10.77.0.102/31", "node01") == ["101", "102", "103"]
    assert chosen("HOST-2") == ["102"]
    assert chosen("10.99.0.0/16") == []
    assert chosen("--state", "bound", "node01") == ["101"]
    assert chosen("--state", "declined") == []
    for wrong, said in (
        ("nod01", "did you mean 'node01'"),
        ("10.77", "neither an address nor"),
        ("n[1", "bracket"),
    ):
        done = lab.run("leases", wrong)
        assert done.returncode == 2 and said in done.stderr
    assert "10.77.0.103" in lab.run("leases", "10.77.0.103").stdout


def test_version() -> None:
    done = subprocess.run([*FASTBOOT, "version", "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["version"]

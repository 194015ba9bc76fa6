"""Configuration: every error names the key path, what is wrong and what would be right."""

# ruff: noqa: E501 - a table of faults, one a line

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pydantic import ValidationError

from fastboot.boot.firmware import ARCHITECTURES, IPXE, ONIE
from fastboot.boot.loaders import find_loaders
from fastboot.boot.policy import Policy
from fastboot.config import FOREVER, Config, NodeIndex, Pool, PortRange, Table, load, mac, relay_id_text
from fastboot.config.faults import explain, table_in
from fastboot.config.fields import seconds
from fastboot.config.options import FOREIGN, NAMES, TYPES, has_default_route, overlay, read
from fastboot.model import ConfigError, Node, Option, Settings
from fastboot.nodeset import NodeSetError, expand, select

ROOT = Path(__file__).parent.parent
GOOD = """
interface = "lo"
roots = ["boot", "/srv/boot"]
nodes_file = "nodes.csv"
[dhcp]
lease = "1h"
[[dhcp.subnets]]
network = "10.77.0.0/24"
pools = ["10.77.0.100-10.77.0.250"]
gateway = "10.77.0.1"
lease = "forever"
[tftp]
[[media]]
name = "rocky9"
path = "rocky"
[[profiles]]
name = "live"
media = "rocky9"
kernel = "images/pxeboot/vmlinuz"
initrd = "images/pxeboot/initrd.img"
installs = false
[[nodes]]
name = "node01"
macs = ["52-54-00-00-00-01"]
address = "10.77.0.11"
profile = "live"
"""
NODES = "name,macs,address,rack\nnode02,5254.0000.0002 52:54:00:00:00:03,10.77.0.12,r7\n"


def write(directory: Path, text: str = GOOD, nodes: str = NODES) -> Path:
    (directory / "nodes.csv").write_text(nodes, encoding="utf-8")
    path = directory / "lab.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(directory: Path, text: str = GOOD, nodes: str = NODES) -> str:
    """Return what `load` says is wrong, without the name of the file."""
    path = write(directory, text, nodes)
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_a_good_file(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    assert config.interface == ("lo",)
    assert config.roots == (tmp_path / "boot", Path("/srv/boot"))
    assert config.media[0].path == tmp_path / "rocky"
    assert config.dhcp and config.dhcp.lease == 3600
    assert config.dhcp.subnets[0].lease == FOREVER
    assert config.ftp is None
    assert config.profiles[0].initrd == ("images/pxeboot/initrd.img",)
    first, second = config.all_nodes()
    assert (first.name, first.macs, first.address) == ("node01", ("52:54:00:00:00:01",), IPv4Address("10.77.0.11"))
    assert second.macs == ("52:54:00:00:00:02", "52:54:00:00:00:03")
    assert second.variables == {"rack": "r7"}


def test_paths_are_relative_to_the_file_not_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load(Path("lab.toml")).roots[0] == tmp_path / "boot"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('interface = "lo"', "interface = []", "interface: is empty; name at least one"),
        ('interface = "lo"', "", "interface: is missing"),
        ('interface = "lo"', 'interface = ["lo", "lo"]', "interface[1]: lo is there twice"),
        ('interface = "lo"', 'interfaces = "lo"', "there is no key 'interfaces'; did you mean 'interface'?"),
        ('interface = "lo"', 'interface = "a b"', "interface[0]: 'a b' is no name of an interface; `ip link` lists them"),
        ('lease = "1h"', 'lease = "1 hour"', 'dhcp.lease: write a duration such as "90s"'),
        ('lease = "1h"', 'lease = "\u0661h"', 'dhcp.lease: write a duration such as "90s"'),
        ('lease = "1h"', "lease = 59", "dhcp.lease: should be greater than or equal to 60 (is 59)"),
        ('lease = "1h"', 'mode = "relay"', "dhcp.mode: should be 'server' or 'proxy' (is 'relay')"),
        ('lease = "1h"', 'mode = "proxy"', "dhcp.subnets[0].pools: has no effect in mode proxy, which gives no"),
        ("gateway =", "gatway =", "dhcp.subnets[0].gatway: there is no key 'gatway'; did you mean 'gateway'?"),
        ("10.77.0.0/24", "10.77.0.1/24", "'10.77.0.1/24' is an address in a network; write \"10.77.0.0/24\""),
        ("10.77.0.0/24", "10.77.0.0/33", "dhcp.subnets[0].network: '10.77.0.0/33' is no network"),
        ("10.77.0.0/24", "10.77.0.0/31", "/30 is the smallest"),
        ("10.77.0.0/24", "127.0.0.0/8", "dhcp.subnets[0].network: 127.0.0.0/8 is the loopback, where no machine but"),
        ("10.77.0.0/24", "239.1.0.0/16", "dhcp.subnets[0].network: 239.1.0.0/16 is multicast; write the network of"),
        ("10.77.0.0/24", "250.0.0.0/8", "dhcp.subnets[0].network: 250.0.0.0/8 is reserved"),
        ("10.77.0.0/24", "0.0.0.0/0", "dhcp.subnets[0].network: 0.0.0.0/0 holds 0.0.0.0/8, an address of no network"),
        ('lease = "forever"', 'domain = "lab example"', "dhcp.subnets[0].domain: 'lab example' is no domain; write one such"),
        ('name = "node01"', 'name = "node01"\nvariables = { "a-b" = "x" }', "'a-b' is no name of a variable; write letters, digits"),
        ("10.77.0.100-10.77.0.250", "10.77.0.250-10.77.0.100", "backwards; write 10.77.0.100-10.77.0.250"),
        ("10.77.0.100-10.77.0.250", "10.77.0.x", 'pools[0]: \'10.77.0.x\' is no range of addresses; write "10.'),
        ("10.77.0.100-10.77.0.250", "10.78.0.5", "pools[0]: 10.78.0.5-10.78.0.5 is not inside 10.77.0.0/24"),
        ("10.77.0.100-10.77.0.250", "10.77.0.0-10.77.0.9", "holds the network address 10.77.0.0; leave it out"),
        ("10.77.0.100-10.77.0.250", "10.77.0.9-10.77.0.255", "holds the broadcast address 10.77.0.255"),
        ("10.77.0.100-10.77.0.250", "10.77.0.1-10.77.0.9", "holds the gateway address 10.77.0.1"),
        ('gateway = "10.77.0.1"', 'gateway = "10.78.0.1"', "gateway: 10.78.0.1 is no machine of 10.77.0.0/24"),
        ('0.250"]', '0.250", "10.77.0.90-10.77.0.100"]', "10.77.0.90-10.77.0.100 and 10.77.0.100-10.77.0.250 overlap"),
        ("[tftp]", '[[dhcp.subnets]]\nnetwork = "10.77.0.0/16"', "subnets[1].network: 10.77.0.0/16 overlaps subnets[0]"),
        ("[tftp]", "[tftp]\nthreads = 0", "tftp.threads: should be greater than or equal to 1 (is 0)"),
        ("[tftp]", '[tftp]\ndata_ports = "x"', "tftp.data_ports: 'x' is no range of ports; write \"40000-49999\""),
        ("[tftp]", '[tftp]\nport = 5000\ndata_ports = "4000-6000"', "tftp.data_ports: holds port 5000"),
        ("[tftp]", '[tftp]\nsingle_port = true\ndata_ports = "4000-5000"', "has no effect with single_port"),
        ("[tftp]", '[ftp]\nport = 5000\npassive_ports = "5000-6000"', "ftp.passive_ports: holds port 5000"),
        ('media = "rocky9"', 'media = "rocki9"', "profiles[0].media: there is no medium 'rocki9'; did you mean 'rocky9'?"),
        ('name = "live"', 'name = "../live"', "profiles[0].name: '../live' is no name here; write letters, digits"),
        ("images/pxeboot/vmlinuz", "../vmlinuz", 'profiles[0].kernel: \'../vmlinuz\' leaves the served tree'),
        ("images/pxeboot/vmlinuz", "vm linuz", "profiles[0].kernel: 'vm linuz' is no path that a boot loader can ask"),
        ("installs = false", 'arguments = "a\\u001bb"', "profiles[0].arguments: holds a control character"),
        ('profile = "live"', 'profile = "lve"', "nodes[0].profile: there is no profile 'lve'; did you mean 'live'?"),
        ('address = "10.77.0.11"', 'address = "10.9.0.1"', "nodes[0].address: 10.9.0.1 is in no subnet; there are 10.77"),
        ('address = "10.77.0.11"', 'address = "10.77.0.1"', "nodes[0].address: 10.77.0.1 is the network, broadcast or"),
        ('address = "10.77.0.11"', 'address = "10.77.0.12"', "line 2: address 10.77.0.12 is that of node01 (nodes[0])"),
        ("52-54-00-00-00-01", "52:54:00:00:00:03", "line 2: mac 52:54:00:00:00:03 is that of node01 (nodes[0]) too"),
        ("52-54-00-00-00-01", "52:54", "nodes[0].macs[0]: '52:54' is no MAC address; write it as"),
        ("52-54-00-00-00-01", "01:00:5e:00:00:01", "nodes[0].macs[0]: 01:00:5e:00:00:01 is the address of no one machine"),
        ('macs = ["52-54-00-00-00-01"]', "", "nodes[0]: names no machine; write macs, circuit_id or remote_id"),
        ("macs =", 'circuit_id = "0x00:04:0"\nmacs =', "nodes[0].circuit_id: '0x00:04:0' is no number of octets; write it as"),
        ("macs =", 'remote_id = ""\nmacs =', "nodes[0].remote_id: '' is 0 octets; option 82 holds 1 to 255"),
        ("macs =", 'remote_id = 7\nmacs =', "nodes[0].remote_id: "),
        ("[tftp]", '[[nodes]]\nname = "x"\ncircuit_id = "Gi1"\n[[nodes]]\nname = "y"\ncircuit_id = "0x476931"\n[tftp]', "nodes[1]: port circuit_id Gi1 is that of x (nodes[0]) too; it must be in one place"),
        ("[tftp]", '[[dhcp.subnets]]\nnetwork = "10.88.0.0/24"\nrelayed = true\n[tftp]', "dhcp.subnets[1].gateway: is missing; machines behind a relay need it"),
        ("[tftp]", '[[dhcp.subnets]]\nnetwork = "10.88.0.0/24"\nshared_network = "a"\n[tftp]', "dhcp.subnets[1].shared_network: no other subnet is in a; name two or more, or none"),
        ('lease = "forever"', 'identity = "name"', "dhcp.subnets[0].identity: should be 'mac' or 'client-id' (is 'name')"),
        ('name = "node01"', 'name = "node02"', "line 2: name node02 is that of node02 (nodes[0]) too"),
        ("[tftp]", '[boot.loaders]\nbios = "' + "x" * 128 + '"', "boot.loaders.bios: is 128 octets; DHCP carries at most 127"),
        ("[tftp]", '[boot.loaders]\nipxe = "http://{server}/' + "x" * 240 + '"', "boot.loaders.ipxe: is 263 octets; DHCP carries at most 255"),
        ("[tftp]", '[boot.loaders]\nipxe = "http://{node}/x"', "boot.loaders.ipxe: 'http://{node}/x': only {server} is filled in"),
        ("[tftp]", '[boot.architectures]\n64k = "x"', "boot.architectures.64k: '64k' is no code of option 93; write one such as 0x0040"),
        ("[tftp]", '[boot.architectures]\n0x40 = "a b"', "boot.architectures.0x40: 'a b' is no name here; write letters"),
        ("[tftp]", '[[groups]]\nname = "g"\n[[groups]]\nname = "g"', "groups[1].name: g is there twice"),
        ("[tftp]", '[[groups]]\nname = "g"\nloader = { bios = "../x" }', "groups[0].loader.bios: '../x' leaves the served tree"),
        ("[tftp]", '[[dhcp.classes]]\nname = "g"\nmacs = "zz"', "dhcp.classes[0].macs[0]: 'zz' is no beginning of MAC addresses"),
        ("[tftp]", '[dhcp.options]\nntp-server = "1.2.3.4"', "dhcp.options.ntp-server: is called ntp-servers here"),
        ("[tftp]", '[dhcp.options]\n224 = "x"', 'dhcp.options.224: has no name, so say its type, such as { text = "..." }; types are ip, ips,'),
        ("[tftp]", '[dhcp.options]\n224 = { texts = "x" }', 'dhcp.options.224: write one type and its value, such as { text = "..." }; types are'),
        ("[tftp]", '[dhcp.options]\n224 = { u8 = 1, u16 = 1 }', "dhcp.options.224: write one type and its value"),
        ("[tftp]", '[dhcp.options]\n224 = { u8 = 1, always = 1 }', "dhcp.options.224: always: write true or false"),
        ("[tftp]", '[dhcp.options]\n51 = 5', "dhcp.options.51: has a key of its own; write lease"),
        ("[tftp]", '[dhcp.options]\n67 = "x"', "dhcp.options.67: has a key of its own; write loader"),
        ("[tftp]", '[dhcp.options]\nnpt-servers = "1.2.3.4"', "dhcp.options.npt-servers: there is no option 'npt-servers'; did you mean 'ntp-servers'?"),
        ("[tftp]", '[dhcp.options]\nfilename = "x"', "dhcp.options.filename: has a key of its own; write loader"),
        ("[tftp]", '[dhcp.options]\n54 = { ip = "1.2.3.4" }', "dhcp.options.54: is the protocol's own and can not be set"),
        ("[tftp]", '[dhcp.options]\n256 = { u8 = 1 }', "dhcp.options.256: there is no option '256'"),
        ("[tftp]", '[dhcp.options]\n42 = "1.2.3.4"\nntp-servers = "1.2.3.4"', "dhcp.options.ntp-servers: is option 42, as 42 is; keep one"),
        ('gateway = "10.77.0.1"', 'options = { ntp-servers = [] }', "dhcp.subnets[0].options.ntp-servers: [] is no list of texts; write"),
        ('profile = "live"', 'options = { 6 = "x" }', "nodes[0].options.6: 'x' is no IPv4 address; write one such as"),
        ("[tftp]", '[boot]\nunknown = "disk"', "boot.unknown: should be 'menu', 'local' or 'ignore' (is 'disk')"),
        ("[tftp]", "[tftp", "this is no TOML: "),
        ("[tftp]", "x = " + "[" * 3000, "this is no TOML: "),
        ("[tftp]", "drain = " + "9" * 5000, "this is no TOML: "),
        ("[tftp]", "[http]\nmax_per_address = 0x" + "f" * 5000, "http.max_per_address: should be a number of at most 64 bits"),
        ("[tftp]", f"[tftp]\nmax_file = {1 << 63}", "tftp.max_file: should be a number of at most 64 bits"),
        ('interface = "lo"', "drain = 1.5\ninterface = 'lo'", 'drain: write a duration such as "90s", "10m", "1h", "7d" or "forever", or a number of seconds'),
        ('interface = "lo"', "drain = nan\ninterface = 'lo'", "drain: write a duration such as"),
        ('lease = "1h"', f'lease = "{"9" * 5000}s"', "dhcp.lease: write a duration such as"),
        ('lease = "1h"', "options = 5", "dhcp.options: should be a table"),
        ('roots = ["boot", "/srv/boot"]', "roots = [1]", "roots[0]: should be a path between quotes (is 1)"),
        ("[tftp]", '[tftp]\nport = "69"', "tftp.port: should be a whole number, without quotes (is '69')"),
        ("[tftp]", "[tftp]\nport = true", "tftp.port: should be a whole number, without quotes (is true)"),
        ("[tftp]", "[tftp]\nport = 69.0", "tftp.port: should be a whole number, without quotes (is 69.0)"),
        ("[tftp]", '[tftp]\nsingle_port = "yes"', "tftp.single_port: should be true or false, without quotes (is 'yes')"),
        ("[tftp]", "[tftp]\ndata_ports = 40000", 'tftp.data_ports: is no range of ports; write "40000-49999"'),
        ("[tftp]", '[tftp]\ndata_ports = "1000-2000"', "tftp.data_ports: '1000-2000': ports are 1024 to 65535 here; write"),
        ('interface = "lo"', "interface = 3", 'interface: write "eno2" or ["eno2", "eno3"]'),
        ('gateway = "10.77.0.1"', 'dns = "10.77.0.1"', 'dhcp.subnets[0].dns: should be a list; write ["10.77.0.1"]'),
        ('gateway = "10.77.0.1"', 'dns = ["ns1"]', "dhcp.subnets[0].dns[0]: is no IPv4 address; write one such as"),
        ("[tftp]", "[[tftp]]", "tftp: should be a table"),
        ("[tftp]", '[groups]\nname = "rack7"\n[tftp]', "groups: should be a list of tables; write [[groups]]"),
        ('"/srv/boot"]', '"/srv/boot", ""]', "roots[2]: is empty; write a path"),
        ('"/srv/boot"]', '"/srv/boot", "a\\u0000b"]', "roots[2]: holds a NUL, which no path can"),
    ],
)  # fmt: skip
def test_an_error_names_key_fault_and_remedy(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert said in faults(tmp_path, GOOD.replace(old, new, 1))


def test_dhcp_needs_a_subnet(tmp_path: Path) -> None:
    assert "dhcp.subnets: is missing; add [[dhcp.subnets]]" in faults(tmp_path, 'interface = "lo"\n[dhcp]\n')


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('lease = "1h"', "lease = 1").replace("gateway", "gatway").replace('"rocky"', "7")
    assert len(faults(tmp_path, text).splitlines()) == 3


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("name,mac\na,x\n", "line 1: names no column macs"),
        ("", "line 1: names no column macs and name"),
        ("name,macs\na,52:54:00:00:00:09,b\n", "line 2: has more fields than the first line names"),
        ("name,macs\na,52:54:00:00:00:09\nb,5\n", "line 3: macs[0]: '5' is no MAC address"),
        ("name,macs,lease\na,52:54:00:00:00:09,1x\n", "line 2: lease: write a duration such as"),
        ("name,macs,options.mtu\na,52:54:00:00:00:09,9\n", "line 2: options.mtu: is called interface-mtu here"),
        (
            "name,macs,options.interface-mtu\na,52:54:00:00:00:09,9x\n",
            "line 2: options.interface-mtu: '9x' is no number",
        ),
        ('name,macs,"no\nte"\na,52:54:00:00:00:09,\nb,5,\n', "line 4: macs[0]: '5' is no MAC address"),
        ('name,macs\n"a', "nodes.csv: unexpected end of data"),
        ("name,macs,rack,rack\n", "line 1: names the column rack twice; leave one of them out"),
    ],
)
def test_a_nodes_file_is_checked_line_by_line(tmp_path: Path, nodes: str, said: str) -> None:
    said_ = faults(tmp_path, nodes=nodes)
    assert said in said_
    assert said_.startswith(f"nodes_file: {tmp_path / 'nodes.csv'}")


def test_a_nodes_file_says_what_its_machines_are_answered(tmp_path: Path) -> None:
    columns = "name,macs,loader,next_server,lease,options.ntp-servers,options.interface-mtu,options.root-path,rack"
    row = "a,52:54:00:00:00:09,lab/x.efi,10.77.0.9,2h,10.77.0.5 10.77.0.6,9000,/srv/a,r7"
    plain = "b,52:54:00:00:00:0a,,,,,,,r8"
    _, first, second = load(write(tmp_path, nodes=f"{columns}\n{row}\n{plain}\n")).all_nodes()
    assert first.settings == Settings(
        {"*": "lab/x.efi"},
        IPv4Address("10.77.0.9"),
        7200,
        (Option(42, bytes((10, 77, 0, 5, 10, 77, 0, 6))), Option(26, b"\x23\x28"), Option(17, b"/srv/a")),
    )
    assert first.variables == {"rack": "r7"}
    assert second.settings == Settings()


# ---- options


def octets(key: str, value: object) -> bytes:
    return read(key, value).value


@pytest.mark.parametrize(
    ("key", "value", "sent"),
    [
        ("ntp-servers", "10.77.0.5", "0a4d0005"),
        ("ntp-servers", ["10.77.0.5", "10.77.0.6"], "0a4d00050a4d0006"),
        ("broadcast-address", "10.77.0.255", "0a4d00ff"),
        ("root-path", "/é", "2fc3a9"),
        ("vendor-options", "06:01 08FF", "060108ff"),
        ("netbios-node-type", 8, "08"),
        ("interface-mtu", 9000, "2328"),
        ("pxelinux-reboot-time", 1, "00000001"),
        ("time-offset", -3600, "fffff1f0"),
        ("ip-forwarding", True, "01"),
        ("42", "10.77.0.5", "0a4d0005"),
        ("42", {"hex": "01"}, "01"),
        ("224", {"i32": -1}, "ffffffff"),
        ("domain-search", "lab.example", "036c6162076578616d706c6500"),
        # RFC 3397 section 3: pointers go anywhere in the value, and a name that was said before is one pointer.
        ("domain-search", ["a.b.c", "x.b.c", "B.C", "a.b.c"], "016101620163000178c002c002c000"),
        ("classless-routes", "default via 10.77.0.1", "000a4d0001"),
        # The examples of RFC 3442: 10.0.0.0/8, 10.17.0.0/16, 10.27.129.0/24, 10.198.122.47/32.
        (
            "classless-routes",
            [
                f"{network} via 1.2.3.4"
                for network in ("10.0.0.0/8", "10.17.0.0/16", "10.27.129.0/24", "10.198.122.47/32")
            ],
            "080a01020304100a1101020304180a1b8101020304200ac67a2f01020304",
        ),
        ("classless-routes", "10.128.0.0/9 via 1.2.3.4", "090a8001020304"),
    ],
)
def test_options_as_they_are_sent(key: str, value: object, sent: str) -> None:
    assert octets(key, value).hex() == sent


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("broadcast-address", 1, "1 is no IPv4 address"),
        ("ntp-servers", ["10.77.0.5", "10.77.0.500"], "'10.77.0.500' is no IPv4 address"),
        ("ntp-servers", 5, "5 is no list of texts"),
        ("root-path", "", "is no plain text"),
        ("root-path", "a\nb", "is no plain text"),
        ("vendor-options", "123", "is no octets in hex"),
        ("vendor-options", "", "is no octets in hex"),
        ("netbios-node-type", 256, "256 is no number from 0 to 255"),
        ("netbios-node-type", True, "True is no number from 0 to 255"),
        ("time-offset", 1 << 31, "is no number from -2147483648 to 2147483647"),
        ("ip-forwarding", 1, "1 is neither true nor false"),
        ("domain-search", "a..b", "'a..b' is no domain name"),
        ("domain-search", "a" * 64, "is no domain name"),
        ("classless-routes", "10.80.0.0/16 10.77.0.2", 'is no route; write "10.80.0.0/16 via 10.77.0.2"'),
        ("classless-routes", "10.80.0.1/16 via 10.77.0.2", "has host bits set"),
        ("classless-routes", "10.80.0.0/16 via x", "'x' is no IPv4 address"),
        ("root-path", "x" * 1025, "is 1025 octets; 1024 is the most that fits a reply"),
    ],
)
def test_options_that_are_none(key: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read(key, value)


def test_the_names_of_other_servers_lead_somewhere() -> None:
    assert not FOREIGN.keys() & NAMES.keys()
    assert {name for name in FOREIGN.values() if not name.isdecimal()} <= NAMES.keys()


def test_what_is_sent_to_all_stays_so() -> None:
    assert read("pxelinux-config-file", "x").always
    assert read("root-path", {"text": "x", "always": True}).always
    assert not read("root-path", "x").always
    assert overlay([Option(17, b"a", True)], [Option(17, b"b"), Option(42, b"c")]) == (
        Option(17, b"b", True),
        Option(42, b"c"),
    )


def test_a_default_route_is_seen() -> None:
    assert has_default_route(octets("classless-routes", ["10.0.0.0/8 via 1.2.3.4", "default via 1.2.3.4"]))
    assert not has_default_route(
        octets("classless-routes", ["10.0.0.0/8 via 0.0.0.0", "10.27.129.0/24 via 1.2.3.4"])
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none\.toml: No such file or directory; write one \(docs/configuration\.md\)"
    ):
        load(tmp_path / "none.toml")
    assert "nodes_file: " in faults(tmp_path, GOOD.replace("nodes.csv", "none.csv"))


@pytest.mark.parametrize("name", ["fifo", "/dev/null", "."])
def test_a_nodes_file_that_is_none(tmp_path: Path, name: str) -> None:
    """A FIFO that nobody writes to would be waited for, for ever."""
    os.mkfifo(tmp_path / "fifo")
    said = faults(tmp_path, GOOD.replace("nodes.csv", name))
    assert said.endswith(": is no regular file; name a CSV file") or "Is a directory" in said


def test_binary_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "\ufeff" + GOOD, "\ufeff" + NODES)
    assert len(load(tmp_path / "lab.toml").all_nodes()) == 2


def test_every_number_has_an_upper_bound() -> None:
    def unbounded(part: object, place: str) -> Iterator[str]:
        if isinstance(part, dict):
            if part.get("type") == "integer" and not part.keys() & {"maximum", "le"}:
                yield place
            for key, inner in part.items():
                yield from unbounded(inner, f"{place}.{key}")
        elif isinstance(part, list):
            for inner in part:
                yield from unbounded(inner, place)

    schema = Config.model_json_schema()
    del schema["$defs"]["Option"]  # what a table of options is made into
    assert list(unbounded(schema, "Config")) == []


def test_a_program_is_told_of_a_number_without_end() -> None:
    with pytest.raises(ValidationError) as caught:
        Config(interface="lo", http={"max_connections": 1 << 99999})  # type: ignore[arg-type]
    said = "http.max_connections: should be less than or equal to 100000 (is a number of more than 64 bits)"
    assert list(explain(caught.value, Config)) == [said]


def test_a_program_builds_one_by_hand() -> None:
    config = Config(interface="lo", dhcp={"subnets": [{"network": "10.77.0.0/24"}]})  # type: ignore[arg-type]
    assert config.dhcp and str(config.dhcp.subnets[0].network) == "10.77.0.0/24"


@pytest.mark.parametrize("text", ["52:54:00:AB:cd:ef", "52-54-00-ab-cd-ef", "5254.00ab.cdef", "525400ABCDEF"])
def test_one_spelling_of_a_mac(text: str) -> None:
    assert mac(text) == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    ("text", "octets", "again"),
    [
        ("Gi1/0/7", b"Gi1/0/7", "Gi1/0/7"),
        ("port 7", b"port 7", "port 7"),
        ("0x0004002a0107", b"\0\4\0\x2a\1\7", "0x0004002a0107"),
        ("0x00:04:00:2A:01:07", b"\0\4\0\x2a\1\7", "0x0004002a0107"),
        ("0x3078", b"0x", "0x3078"),  # a text that looks like digits
        ("0x20", b" ", "0x20"),
        ("süd", "süd".encode(), "0x73c3bc64"),
    ],
)
def test_circuit_and_remote_ids_are_text_or_octets(tmp_path: Path, text: str, octets: bytes, again: str) -> None:
    path = write(tmp_path, nodes=f"name,circuit_id,remote_id\nnode02,{text},x\n")
    node = load(path).all_nodes()[1]
    assert (node.circuit_id, node.remote_id, node.macs) == (octets, b"x", ())
    assert relay_id_text(octets) == again


def test_nodes_are_found_as_dhcp_finds_them() -> None:
    named = Node("named", ("52:54:00:00:00:01",))
    both = Node("both", (), circuit_id=b"c", remote_id=b"r")
    circuit, remote = Node("circuit", (), circuit_id=b"c"), Node("remote", (), remote_id=b"r")
    index = NodeIndex([remote, circuit, both, named])
    assert index.find("52:54:00:00:00:01", b"c", b"r") is named
    other = "52:54:00:00:00:02"
    assert index.find(other, b"c", b"r") is both
    assert index.find(other, b"c", b"x") is circuit
    assert index.find(other, b"x", b"r") is remote
    assert index.find(other) is index.find(other, b"x", b"x") is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[08-11]", ["node08", "node09", "node10", "node11"]),
        ("a,b", ["a", "b"]),
        ("n[1,3-4]x", ["n1x", "n3x", "n4x"]),
        ("r[1-2]n[1-2],@all", ["r1n1", "r1n2", "r2n1", "r2n2", "@all"]),
        ("n[001]", ["n001"]),
    ],
)
def test_node_sets(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n]1", "n[a]", "n[2-1]", "n[]", "n[1-99999999]", "n[1-9999][1-9999]"])
def test_bad_node_sets(text: str) -> None:
    with pytest.raises(NodeSetError):
        expand(text)


def test_selecting_nodes(tmp_path: Path) -> None:
    nodes = load(write(tmp_path, GOOD.replace('profile = "live"', 'group = "rack7"'))).all_nodes()
    assert [node.name for node in select(["node[01-02]"], nodes)] == ["node01", "node02"]
    assert [node.name for node in select(["rack7"], nodes)] == ["node01"]
    assert [node.name for node in select(["@all"], nodes)] == ["node01", "node02"]
    assert select([], nodes) == list(nodes)
    with pytest.raises(NodeSetError, match="there is no node or group 'rack8'; did you mean 'rack7'"):
        select(["rack8"], nodes)


def keys(model: type[Table], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = table_in(field.annotation)
        if inner in (None, Pool, PortRange):
            yield prefix + name
        else:
            yield from keys(inner, f"{prefix}{name}.")  # type: ignore[arg-type]


def documented_keys() -> list[tuple[str, str]]:
    """Return the keys of the documentation, each with what stands under "default"."""
    text = (ROOT / "docs/configuration.md").read_text()
    tables = re.findall(r"^\| key \| default \| is \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", "".join(tables), re.MULTILINE)


def test_every_key_is_documented() -> None:
    assert {key for key, _ in documented_keys()} - {"dhcp.subnets"} == set(keys(Config))


@pytest.mark.parametrize("document", ["README.md", "docs/configuration.md"])
def test_every_documented_configuration_is_right(document: str, tmp_path: Path) -> None:
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert blocks
    table = re.findall(r"^    (name,macs.*|node\d+,.*)$", text, re.MULTILINE)
    (tmp_path / "nodes.csv").write_text("\n".join(table))
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        config = load(path)
        Policy(config, config.all_nodes(), find_loaders(config.boot.loaders))


def test_every_option_is_documented_under_its_type() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(
        r"^\| ((?:`(?:ip|ips|text|hex|[ui]\d+|bool|domains|routes)` ?)+) \|.*\| (.*) \|$", text, re.MULTILINE
    )
    documented = [
        (name, type_)
        for types, names in rows
        for type_, group in zip(types.split(), names.split("; "), strict=True)
        for name in re.findall(r"`([a-z0-9-]+)`", group)
        for type_ in [type_.strip("`")]
    ]
    assert sorted(documented) == sorted((name, type_) for name, (_, type_) in NAMES.items())
    assert {type_ for types, _ in rows for type_ in re.findall(r"`(.*?)`", types)} == TYPES.keys()


def test_every_class_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text().partition("## [boot]")[2].partition("## [log]")[0]
    table = text.partition("| class | machines |")[2].partition("\n\n")[0]
    documented = [
        name for row in re.findall(r"^\| ((?:`[a-z0-9-]+` ?)+)\|", table, re.MULTILINE) for name in row.split()
    ]
    assert sorted(name.strip("`") for name in documented) == sorted({*ARCHITECTURES.values(), IPXE, ONIE})


def test_every_documented_default_is_right() -> None:
    for key, shown in documented_keys():
        match = re.fullmatch(r"`([^`]*)`", shown)
        default = match[1] if match else ""
        model: type[Table] = Config
        *tables, name = key.split(".")
        for table in tables:
            model = table_in(model.model_fields[table].annotation) or model
        if default in ("", "dhcp.lease", "dhcp.next_server"):
            continue
        value = tomllib.loads(f"x = {default}")["x"]
        field = model.model_fields[name]
        made = field.get_default(call_default_factory=True)
        made = list(made) if isinstance(made, tuple) else str(made) if isinstance(made, Path) else made
        assert made == (seconds(value) if isinstance(made, int) and isinstance(value, str) else value), key


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"http": {}, "ftp": {"port": 80}}, "http.port: 80 is that of ftp too"),
        ({"http": {"port": 5000}, "ftp": {"passive_ports": "4000-6000"}}, "ftp.passive_ports: holds port 5000"),
        (
            {"profiles": [{"name": "p", "kernel": "/k", "transport": "http"}]},
            r'profiles\[0\].transport: is "http", and there is no \[http\]',
        ),
    ],
)
def test_http_agrees_with_the_rest(tables: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"interface": "eno2", **tables})

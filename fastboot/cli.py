"""The command line: arguments and exit codes. What only one command needs it imports itself: others start sooner.

Exit codes: 0 success; 1 something failed; 2 usage or configuration wrong; 3 no server is running;
4 a reload needs a restart; 130 or 143 ended at once by a second SIGINT or SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fastboot import __version__
from fastboot.arming.command import arm, disarm, nodes
from fastboot.boot.indexer import Indexer
from fastboot.boot.shelf import Shelf, describe, explain
from fastboot.config import Config, load
from fastboot.lab.rehearsal.command import rehearse
from fastboot.leases.command import leases
from fastboot.model import ConfigError, FastbootError
from fastboot.nodeset import NodeSetError
from fastboot.privileges import account_of, drop_to, identity_of
from fastboot.services.control_client import ControlClient, NeedsRestart, NotRunning
from fastboot.terminal import CONFIG, DEFAULT, AsJson, ConfigFile, media_bar, print_facts, print_json, print_table
from fastboot.watch.log import plain
from fastboot.why import why
from fastboot.wording import counted, moment

FAILED, WRONG, NOT_RUNNING, RESTART = 1, 2, 3, 4

app = typer.Typer(
    help="fastboot: installs operating systems over the network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
media_app = typer.Typer(invoke_without_command=True)
app.add_typer(media_app, name="media")
app.command()(nodes)
app.command()(arm)
app.command()(disarm)
app.command()(leases)
app.command()(rehearse)
app.command()(why)


class Firmware(StrEnum):
    """What `demo` can boot a machine with."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_HTTP = "uefi-http"
    UEFI_SECURE = "uefi-secure"


class OtherProgram(StrEnum):
    """Whose settings `boot-options` writes."""

    DNSMASQ = "dnsmasq"
    DHCPD = "dhcpd"
    KEA = "kea"
    WINDOWS = "windows"


def quick(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text)


def main() -> NoReturn:
    """Run the command line and end the process."""
    try:
        app(prog_name="fastboot")
    except NotRunning as error:
        fail(error, NOT_RUNNING)
    except NeedsRestart as error:
        fail(error, RESTART)
    except (ConfigError, NodeSetError) as error:
        fail(error, WRONG)
    except FastbootError as error:
        fail(error, FAILED)
    sys.exit(0)


def fail(error: object, code: int) -> NoReturn:
    """Print each line of an error and end the process."""
    for line in str(error).splitlines():
        print(f"fastboot: {line}", file=sys.stderr)
    sys.exit(code)


@app.command()
def serve(
    config: Annotated[Path | None, CONFIG] = None,
    root: Annotated[list[Path] | None, quick("DIR", "A directory to serve, instead of --config.")] = None,
    iso: Annotated[Path | None, quick("FILE", "An ISO file to serve, instead of --config.")] = None,
    interface: Annotated[list[str] | None, quick("NAME", "With these: the network of the machines.")] = None,
    pool: Annotated[list[str] | None, quick("FIRST-LAST", "With these: addresses that DHCP gives.")] = None,
    state: Annotated[Path | None, quick("DIR", "With these: the state directory.")] = None,
    install: Annotated[
        list[str] | None, quick("MAC", "With --iso: a machine that installs from it, once.")
    ] = None,
    answers: Annotated[
        Path | None, quick("FILE", "With --install: the template of what its installer asks for.")
    ] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C; SIGHUP reads the configuration again."""
    from fastboot import serving
    from fastboot.quick import install_once, macs_of, quick_config

    then: serving.Then | None = None
    if root or iso:
        if config:
            raise ConfigError(
                "--config: is not for --root and --iso, which stand for a configuration of their own"
            )
        macs = macs_of(install or ())
        settings, chosen = quick_config(root or (), iso, interface or (), pool or (), state, macs, answers)
        for line in chosen:
            print(f"fastboot: {line}", file=sys.stderr)
        read = None
        then = partial(install_once, macs=macs, state=settings.state) if macs else None
    elif interface or pool or state or install or answers:
        raise ConfigError(
            "--interface, --pool, --state, --install and --answers: are for --root and --iso; here the"
            " configuration says it"
        )
    else:
        path = (config or DEFAULT).absolute()
        settings, read = load(path), lambda: load(path)
    serving.serve(settings, read, then)


@app.command()
def check(config: ConfigFile = DEFAULT, as_json: AsJson = False) -> None:
    """Find everything that would fail, before it fails, and show what each machine boots by which protocol.

    Exit code 1 where something would fail.
    """
    from fastboot.boot.chain import COLUMNS, Chain, rows
    from fastboot.check import Finding, after_drop, before_drop
    from fastboot.world import World

    settings = load(config)
    path = config.absolute()
    findings, chains = list(before_drop(settings)), dict[str, Chain]()
    try:
        world = World(settings)
        read_media(settings, world.shelf, world.indexer)
        findings += after_drop(settings, world, path)
        files = world.policy.boot_files()
        chains = {key: world.chains.of(key.rpartition(".")[2], file, told) for key, file, told in files}
    except ConfigError as error:
        findings += (Finding("error", line) for line in str(error).splitlines())
    counts = Counter(finding.level for finding in findings)
    if as_json:
        told = [{"level": finding.level, "text": finding.text} for finding in findings]
        boots = [
            {"level": "note", "text": f"{key}: {chain}", "chain": list(rows(key, chain))}
            for key, chain in chains.items()
        ]
        print_json(told + boots)
    else:
        print_table([row for key, chain in chains.items() for row in rows(key, chain)], COLUMNS)
        for finding in findings:
            print(f"{finding.level}: {finding.text}")
        well = not (counts["error"] or counts["warning"])
        sums = ", ".join(counted(counts[level], level) for level in ("error", "warning"))
        print(f"{path}: {'all is well' if well else sums}")
    sys.exit(FAILED if counts["error"] else 0)


@app.command()
def status(config: ConfigFile = DEFAULT, as_json: AsJson = False) -> None:
    """Show what the running server does."""
    facts = ControlClient(load(config).state).get("/status")
    if as_json:
        print_json(facts)
        return
    print(f"fastboot {facts['version']} is {facts['state']}: process {facts['pid']}, up {facts['uptime']:.0f} s")
    for name, addresses in facts["interfaces"].items():
        print(f"  {name}: {', '.join(addresses)}")
    for other in facts["other_servers"]:
        who = f"{other['address']} ({other['mac'] or 'its MAC is not known'})"
        print(f"  another DHCP server is at work on {other['interface']} since {moment(other['since'])}: {who}")
    if installs := ", ".join(f"{count} {state}" for state, count in facts["installs"].items() if count):
        print(f"  nodes: {installs.replace('begin_failed', 'beginnings that could not be written')}")
    counters = [
        {"service": name, "counter": key, "value": value}
        for name, service in facts["services"].items()
        for key, value in service["counters"].items()
        if value
    ]
    print_table(counters, ("service", "counter", "value"))
    print_table(facts["transfers"], ("protocol", "peer", "path", "bytes", "size"))


@media_app.callback()
def media(context: typer.Context, config: ConfigFile = DEFAULT, as_json: AsJson = False) -> None:
    """List the media, and the systems that were recognised in them.

    Exit code 1 where one can not be served.
    """
    context.default_map = {"check": {"config": config, "as_json": as_json}}
    if context.invoked_subcommand:
        return
    settings = load(config)
    try:
        facts = ControlClient(settings.state).get("/media")
    except NotRunning:
        facts = [plain(medium.facts()) for medium in shelf_of(settings)]
    rows = facts if as_json else [{**each, "system": describe(each)} for each in facts]
    print_facts(rows, ("name", "state", "system", "files", "place"), as_json)
    failed = [each for each in facts if each["state"] == "failed"]
    for each in failed:
        print(f"fastboot: media {each['name']}: {each['fault']}", file=sys.stderr)
    sys.exit(FAILED if failed else 0)


@media_app.command("check")
def media_check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]", help="Some of them.")] = None,
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Explain the media: what machines boot from them, what installers are told, what is missing, what is refused.

    Exit code 1 where one can not be served.
    """
    shelf = shelf_of(load(config))
    if unknown := set(names or ()) - {medium.name for medium in shelf}:
        raise ConfigError(f"media: there is no medium {', '.join(sorted(unknown))}")
    facts: list[Any] = [
        plain({**medium.facts(), "refused": medium.tree.check() if medium.tree else []})
        for medium in shelf
        if not names or medium.name in names
    ]
    if as_json:
        print_json(facts)
    else:
        print("\n\n".join("\n".join(explain(each)) for each in facts) or "none")
    sys.exit(FAILED if any(each["state"] == "failed" for each in facts) else 0)


@app.command()
def reload(config: ConfigFile = DEFAULT, as_json: AsJson = False) -> None:
    """Make the running server read its configuration again."""
    changed = ControlClient(load(config).state).post("/reload")["changed"]
    if as_json:
        print_json({"changed": changed})
        return
    print(f"reloaded: {', '.join(changed) if changed else 'nothing changed'}")


@app.command()
def boot_options(
    program: Annotated[OtherProgram, typer.Argument(help="What the other server is.")],
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Print the settings by which another DHCP server tells machines to boot from here."""
    from fastboot.boot.elsewhere import advice, boot_files, boot_remarks
    from fastboot.services.links import find_links
    from fastboot.world import World

    settings = load(config)
    world = World(settings)
    read_media(settings, world.shelf, world.indexer)
    files, remarks = boot_files(world.policy), "".join(f"# {line}\n" for line in boot_remarks(world.policy))
    named = settings.dhcp.next_server if settings.dhcp else None
    servers = {link.name: named or link.addresses[0].ip for link in find_links(settings.interface)}
    script = world.loaders.by_class["ipxe"]
    facts = {name: remarks + advice(server, files, script)[program.value] for name, server in servers.items()}
    if as_json:
        print_json(facts)
        return
    for name, text in facts.items():
        print(f"# machines on {name}: boot files of fastboot on {servers[name]}\n{text}")


@app.command()
def demo(
    firmware: Annotated[Firmware, typer.Option(help="What the virtual machine boots with.")] = Firmware.BIOS,
    nic: Annotated[str, typer.Option(help="The QEMU model of its network card.")] = "virtio-net-pci",
    proxy: Annotated[bool, typer.Option("--proxy", help="Let another DHCP server give the addresses.")] = False,
    http: Annotated[
        bool, typer.Option("--http", help="Serve HTTP as well: what speaks it goes on by it.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Boot a system that installs nothing, and only check the media.")
    ] = False,
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the logs of a success as well.")] = False,
) -> None:
    """Boot a bare virtual machine from a real server on a private network, and show what happens."""
    from fastboot.lab.vm.demo import run as rehearse

    install = not (live or proxy)
    sys.exit(
        rehearse(firmware.value, nic=nic, proxy=proxy, http=http, install=install, as_json=as_json, keep=keep)
    )


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__, "python": sys.version.split()[0]})
    else:
        print(f"fastboot {__version__}")


def shelf_of(config: Config) -> Shelf:
    """Read the media as the server would, for commands that run without it; what is found is not kept."""
    indexer = Indexer(config.state / "media", keep=False)
    shelf = Shelf(config, indexer)
    read_media(config, shelf, indexer)
    return shelf


def read_media(config: Config, shelf: Shelf, indexer: Indexer) -> None:
    """Have media read, by the user that the server drops to, which this process becomes too."""
    account = account_of(config)
    if any(medium.iso for medium in config.media):
        indexer.start(identity_of(account))
    drop_to(account)
    with media_bar() as progress:
        asyncio.run(shelf.prepare(lambda kind, **details: None, progress))
    indexer.close()

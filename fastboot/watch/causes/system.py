"""Why a machine that has its loader's configuration does not run, or install, what it was meant to."""

from __future__ import annotations

import math
from typing import Final

from fastboot.model import InstallState
from fastboot.watch import paths
from fastboot.watch.case import Case
from fastboot.watch.causes.rule import Facts, Rule

BOOTING: Final = 300.0
"""Seconds that a kernel takes until it asks for an address: servers with much memory and many disks, minutes."""
LOOKING: Final = 120.0
"""Seconds from an installer's address to its first file: Anaconda tries three times, with pauses."""
ANSWERING: Final = 300.0
"""Seconds that an installer may be at work before it has asked for its answers."""
INSTALLING: Final = 1800.0
"""Seconds without a sign of an installer after which it is not at work any more, or has not reported."""
MENU: Final = 30.0
"""Seconds after which a menu has gone on by itself: it waits 10."""
NOT_FOUND: Final = 60.0
"""Seconds after which an installer that missed a package is not about to try another mirror."""
NO_SUCH_FILE: Final = "no such file"
"""The reason of `node.refused` that keeps nobody from installing."""
KEYS: Final = {
    "too many connections": "http.max_connections",
    "too many connections of one address": "http.max_per_address",
    "too many sessions": "ftp.max_sessions",
    "too many sessions of one address": "ftp.max_per_address",
    "too few descriptors": "LimitNOFILE of the service",
    "too many descriptors of one address": "LimitNOFILE of the service",
    "no descriptor is free": "LimitNOFILE of the service",
    "no passive port": "ftp.passive_ports",
}
"""What is to be raised, by what was refused."""
_SYSTEM: Final = (paths.MEDIA, paths.INDEX, paths.PACKAGE, paths.ANSWERS)


def _install_failed(case: Case) -> Facts:
    if case.state is not InstallState.FAILED:
        return None
    said = case.install.get("node.failed")
    text = (said.more if said else "") or (case.machine.install.text if case.machine.install else "")
    return {"text": text or "it gave no reason", "node": case.machine.name}


def _interrupted(case: Case) -> Facts:
    mark = case.install.get("node.interrupted")
    newer = [case.install[kind] for kind in ("node.armed", "node.installed") if kind in case.install]
    if mark is None or case.state is not InstallState.INSTALLING or any(each.time > mark.time for each in newer):
        return None
    return {"node": case.machine.name}


def _answers_refused(case: Case) -> Facts:
    mark = case.install.get("node.refused") or case.mark("node.refused")
    # For names that are not there, installers ask everywhere, and with a token whoever is not a machine of ours.
    if mark is None or mark.more == NO_SUCH_FILE or mark.time < case.begun or case.state is InstallState.INSTALLED:
        return None
    sent = case.of("sent", paths.ANSWERS)
    return None if sent and sent.time > mark.time else {"path": mark.what or "its answers", "text": mark.more}


def _unknown(case: Case) -> Facts:
    mark = case.of("sent", paths.CONFIGURATION)
    waits = mark is not None and case.since(mark) > MENU and not case.asked(paths.KERNEL)
    if not waits or case.machine.node:
        return None
    return {"mac": case.machine.name, "what": "a menu" if case.site.unknown == "menu" else "its local disk"}


def _no_profile(case: Case) -> Facts:
    mark, machine = case.of("sent", paths.CONFIGURATION), case.machine
    if mark is None or machine.node is None or machine.profile or case.asked(paths.KERNEL):
        return None
    return {"node": machine.node} if case.since(mark) > MENU else None


def _not_armed(case: Case) -> Facts:
    mark, machine = case.of("sent", paths.CONFIGURATION), case.machine
    if mark is None or not machine.installs or machine.install or case.asked(paths.KERNEL):
        return None
    return {"node": machine.name, "profile": machine.profile}


def _armed_later(case: Case) -> Facts:
    mark, install = case.of("sent", paths.CONFIGURATION), case.machine.install
    if mark is None or install is None or install.state is not InstallState.ARMED or install.since <= mark.time:
        return None
    return None if case.asked(paths.KERNEL) else {"node": case.machine.name}


def _medium_failed(case: Case) -> Facts:
    mark = case.wide.get(f"media.failed {case.machine.media}") if case.machine.media else None
    return {"media": case.machine.media, "text": mark.more} if mark else None


def _booted(case: Case) -> float:
    """Return how long ago it got its kernel and initrd, and did nothing since; -1 where it did not."""
    mark = case.of("sent", paths.INITRD, paths.KERNEL)
    if mark is None or (case.over == math.inf and case.machine.transfers):
        return -1.0
    later = case.addressed("installer", "os")
    if (later and later.time > mark.time) or case.of("sent", *_SYSTEM) or case.after(mark):
        return -1.0
    return case.since(mark)


def _kernel_silent(case: Case) -> Facts:
    kernel, initrd = case.of("sent", paths.KERNEL), case.of("sent", paths.INITRD)
    if initrd or kernel is None or _booted(case) < LOOKING:
        return None
    return {"path": kernel.what}


def _system_silent(case: Case) -> Facts:
    return {} if case.of("sent", paths.INITRD) and _booted(case) > BOOTING else None


def _media_missing(case: Case) -> Facts:
    mark = case.lacks("missing", paths.MEDIA) or case.lacks("missing", paths.INDEX)
    if mark is None or case.of("sent", paths.PACKAGE, paths.MEDIA) or case.quiet < NOT_FOUND:
        return None
    return {"path": mark.what}


def _media_never(case: Case) -> Facts:
    mark = case.step("installer")
    system = case.of("sent", paths.KERNEL)
    if mark is None or system is None or case.asked(*_SYSTEM) or case.quiet < LOOKING:
        return None
    return {"ports": _ports(case)} if case.machine.installs or case.addressed("installer") else None


def _ports(case: Case) -> str:
    ports = [
        f"TCP {case.site.ports[name]} ({name.upper()})" for name in ("ftp", "http") if name in case.site.ports
    ]
    return " and ".join(ports) or "those of HTTP and FTP, which this server does not serve ([http], [ftp]),"


def _limited(case: Case) -> Facts:
    own = case.newest("http.refused", "ftp.refused")
    wide = [case.wide[kind] for kind in ("http.refused", "ftp.refused") if kind in case.wide]
    near = [mark for mark in wide if mark.what in KEYS and mark.time > max(case.begun, case.now - INSTALLING)]
    mark = own or max(near, key=lambda mark: mark.time, default=None)
    if mark is None or mark.what not in KEYS or case.quiet < LOOKING:
        return None
    if own is None and not case.step("installer"):
        return None
    return {"reason": mark.what, "key": KEYS[mark.what]}


def _package_missing(case: Case) -> Facts:
    mark = case.lacks("missing", paths.PACKAGE)
    if mark is None or case.quiet < NOT_FOUND:
        return None
    return {"path": mark.what, "count": mark.number}


def _answers_never(case: Case) -> Facts:
    machine = case.machine
    at_work = case.step("installer") or case.of("sent", *_SYSTEM)
    if not machine.answers or at_work is None or case.asked(paths.ANSWERS):
        return None
    if (
        machine.install is None
        or machine.install.state is InstallState.INSTALLED
        or case.since(at_work) < ANSWERING
    ):
        return None
    return {"profile": machine.profile, "ports": _ports(case)}


def _never_reported(case: Case) -> Facts:
    if case.state is not InstallState.INSTALLING or case.quiet < INSTALLING or case.over < math.inf:
        return None
    quiet = min(case.quiet, case.now - case.machine.install.since) if case.machine.install else case.quiet
    return {"minutes": round(quiet / 60), "node": case.machine.name} if quiet > INSTALLING else None


OUTCOMES: Final = (
    Rule(
        "install-failed", "done", ("node.failed",),
        "`node.failed`, with what the installer said",
        "its installer reported a failure: {text}",
        "mend what it names, then fastboot arm {node}, and restart it",
        _install_failed,
    ),
    Rule(
        "install-interrupted", "done", ("node.interrupted",),
        "`node.interrupted`, and neither armed again nor ended since",
        "it booted from the network again before it had reported that it is installed, so it got its local disk",
        "where it is installed, have its answers call {{{{ done }}}} at their end (docs/configuration.md); "
        "else see what stopped it (its screen), then fastboot disarm {node}, fastboot arm {node}, and restart "
        "it",
        _interrupted,
    ),
    Rule(
        "answers-refused", "done", ("node.refused",),
        "`node.refused`, and no answers sent since",
        "{path} was refused to it: {text}",
        "arm it again where its arming is used up or older than what it boots; answers are for its own address "
        "only: see that no NAT or proxy is between",
        _answers_refused,
    ),
)  # fmt: skip
RULES: Final = (
    Rule(
        "not-armed", "kernel", ("tftp.sent", "http.sent"),
        "its configuration was sent, its profile installs, and it is not armed",
        "it was told to boot its local disk: its profile, {profile}, installs, and it is not armed",
        "fastboot arm {node}, then restart it",
        _not_armed, fault=False,
    ),
    Rule(
        "armed-later", "kernel", ("tftp.sent", "http.sent"),
        "its configuration was sent before it was armed",
        "it asked what to boot before it was armed",
        "restart {node}: it installs when it boots from the network the next time",
        _armed_later, fault=False,
    ),
    Rule(
        "no-profile", "kernel", ("tftp.sent", "http.sent"),
        "its configuration was sent, and its node has no profile",
        "it has no profile, so it was told to boot its local disk",
        "give {node} a profile in [[nodes]], then fastboot reload, and restart it",
        _no_profile, fault=False,
    ),
    Rule(
        "unknown-machine", "kernel", ("tftp.sent", "http.sent"),
        "a configuration was sent to it, and no node has its MAC",
        "no node has its MAC, so it got {what}, which goes on with the local disk",
        "add it to [[nodes]] with macs = [\"{mac}\"] and a profile, then fastboot reload, and restart it",
        _unknown, fault=False,
    ),
    Rule(
        "medium-failed", "kernel", ("media.failed",),
        "`media.failed` of the medium of its profile",
        "its medium, {media}, can not be served: {text}",
        "mend that (fastboot media check {media}); the server looks again every two seconds",
        _medium_failed,
    ),
    Rule(
        "kernel-silent", "installer", ("tftp.sent", "http.sent"),
        "a kernel was sent, no initrd, and nothing for 120 s",
        "it fetched its kernel, {path}, and then nothing more",
        "see its screen: no memory for the initrd, a kernel that is not for its processor, or a console "
        "elsewhere (console=ttyS0,115200 in arguments shows it on the serial line)",
        _kernel_silent,
    ),
    Rule(
        "system-silent", "installer", ("tftp.sent", "http.sent"),
        "kernel and initrd were sent, and nothing was heard for 300 s",
        "it has its kernel and initrd, and was not heard of since: the kernel hangs, has too little memory for "
        "the initrd, or no driver for the network card",
        "see its screen (console=ttyS0,115200 in arguments shows it on the serial line); for installers 3 GB "
        "of memory; see whether the kernel is new enough for its network card",
        _system_silent,
    ),
    Rule(
        "too-many-connections", "done", ("http.refused", "ftp.refused"),
        "`http.refused` or `ftp.refused`: a limit held, 503 or 421",
        "its connections were turned away: {reason}",
        "raise {key}, or install fewer machines at once",
        _limited,
    ),
    Rule(
        "media-missing", "packages", ("http.missing", "ftp.failed"),
        "`http.missing` for a second stage or an index, none sent, and nothing for 60 s",
        "its installer asked for {path}, which is not there",
        "see what arguments of its profile say of the medium (inst.repo, url=), and what fastboot media check "
        "shows",
        _media_missing,
    ),
    Rule(
        "media-never-asked", "media", ("dhcp.ack",),
        "its installer asked for an address, and for no file for 120 s",
        "its installer has an address, and asked for nothing of its medium here",
        "let ports {ports} of this host through firewalls; see that arguments of its profile name this server "
        "(inst.repo={{{{ media }}}}), and what its screen says",
        _media_never,
    ),
    Rule(
        "packages-missing", "done", ("http.missing",),
        "`http.missing` for packages, and nothing more for 60 s",
        "its installer did not find {count} packages, the last of them {path}",
        "see whether the medium is whole and of the same version as the kernel, and what the answers say of "
        "repositories",
        _package_missing,
    ),
    Rule(
        "answers-never-asked", "done", ("http.sent", "ftp.sent"),
        "its installer was heard of 300 s ago, and asked for no answers",
        "its installer is at work, and never asked for its answers",
        "see that arguments of profile {profile} name them ({{{{ installer }}}}), and that ports {ports} of "
        "this host are open",
        _answers_never,
    ),
    Rule(
        "never-reported", "done", ("node.installing",),
        "`node.installing`, and neither a report nor any other sign of it for 30 minutes",
        "its installation has begun, and it was not heard of for {minutes} minutes: it hangs, or is done and "
        "did not report",
        "see its screen; where it is done, have its answers call back at their end: curl --retry 9 {{{{ done "
        "}}}} in %post (docs/configuration.md), then, to begin again, fastboot disarm {node} and fastboot arm "
        "{node}",
        _never_reported,
    ),
)  # fmt: skip

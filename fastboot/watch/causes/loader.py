"""Why a machine that has an address gets no further than its loader: the loader, its configuration, the kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fastboot.model import InstallState
from fastboot.watch import paths
from fastboot.watch.case import Case
from fastboot.watch.causes.rule import Facts, Rule
from fastboot.watch.stories import Mark

ASKING: Final = 30.0
"""Seconds from the address to the first request for a file: EDK2 asks at once, and gives up after 6 times 4 s."""
STALLED: Final = 15.0
"""Seconds after which a client that ended a transfer is not to be expected again: shim and iPXE ask at once."""
STARTING: Final = 60.0
"""Seconds that a loader takes until it asks for something: iPXE waits 13 s for IPv6 routers, a menu 10 s."""
BIG: Final = 1468
"""The largest block of TFTP that fits in a packet of Ethernet."""
CODES: Final = {
    0: "not defined", 1: "file not found", 2: "access violation", 3: "its buffer is too small",
    4: "illegal operation", 5: "unknown transfer", 6: "file exists", 8: "it does not take our options",
}  # fmt: skip


def _path(mark: Mark) -> str:
    return mark.what or "a file without a name"


def _never_asked(case: Case) -> Facts:
    told = case.firmware
    acked = case.newest("ack rom", "ack ipxe", "dhcp.request")
    if told is None or acked is None or case.files or case.since(acked) < ASKING:
        return None
    scheme = told.what.partition("://")[0].lower() if "://" in told.what else "tftp"
    port = case.site.ports.get(scheme)
    if port is None:
        return {"loader": told.what, "port": f"of {scheme.upper()} at the server that this names"}
    return {"loader": told.what, "port": f"{'UDP' if scheme == 'tftp' else 'TCP'} {port}"}


def _loader_missing(case: Case) -> Facts:
    for role in (paths.LOADER, paths.OTHER):
        mark = case.of("missing", role)
        if mark and case.is_loader(mark) and not case.sent_loader:
            name = mark.what.rpartition("/")[2]
            package = case.site.packages.get(name)
            return {"path": _path(mark), "fix": f"apt-get install {package}, or " if package else ""}
    return None


def _next_missing(case: Case) -> Facts:
    """A loader that another one asks for: shim's GRUB."""
    mark = case.lacks("missing", paths.LOADER)
    sent = case.sent_loader
    if mark is None or sent is None or case.is_loader(mark) or case.after(mark):
        return None
    package = case.site.packages.get(mark.what.rpartition("/")[2])
    return {"path": _path(mark), "loader": sent.what, "fix": f"apt-get install {package}, or " if package else ""}


def _module_missing(case: Case) -> Facts:
    mark = case.of("missing", paths.MODULE)
    if mark is None or not mark.what.endswith(".c32") or case.lacks("missing", paths.MODULE) is None:
        return None
    return {"path": _path(mark)}


def _refused(case: Case) -> Facts:
    roles = (paths.LOADER, paths.CONFIGURATION, paths.KERNEL, paths.INITRD, paths.MODULE, paths.OTHER)
    marks = [found for role in roles if (found := case.lacks("refused", role))]
    mark = max(marks, key=lambda found: found.time, default=None)
    if mark is None:
        return None
    fix = "see its permissions; fastboot check lists links that are refused, allow_links lets them lead elsewhere"
    if "too big" in mark.more:
        fix = "raise tftp.max_file, or have it fetched by HTTP (boot.transport)"
    elif "transfers are on their way" in mark.more:
        fix = "raise tftp.max_per_address, where machines share an address"
    return {"path": _path(mark), "text": mark.more, "fix": fix}


def _failed(case: Case, *endings: str) -> Mark | None:
    """Return the newest transfer by TFTP that ended so, where its file was not sent since."""
    marks = []
    for key, mark in case.marks.items():
        verb, _, role = key.partition(" ")
        if verb == "failed" and mark.more in endings and case.lacks("failed", role):
            marks.append(mark)
    return max(marks, key=lambda mark: mark.time, default=None)


def _no_acknowledgement(case: Case) -> Facts:
    mark = _failed(case, "silent", "evicted", "unconfirmed")
    if mark is None or mark.number:
        return None
    if case.site.single_port:
        fix = "let a firewall pass its answers; look for a NAT that maps the machine's port"
    elif case.site.data_ports:
        fix = f"let UDP ports {case.site.data_ports} (tftp.data_ports) through the firewall, both ways"
    else:
        port = case.site.ports.get("tftp", 69)
        fix = (
            "answers come from ports of their own: name them in tftp.data_ports and let those through the"
            " firewall,"
            f" or write tftp.single_port = true, so that all comes from port {port}"
        )
    return {"path": _path(mark), "fix": fix}


def _stalled(case: Case) -> Facts:
    mark = _failed(case, "silent")
    return {"path": _path(mark), "octets": mark.number} if mark and mark.number else None


def _too_slow(case: Case) -> Facts:
    mark = _failed(case, "the client was too slow")
    return {"path": _path(mark), "octets": mark.number} if mark else None


def _changed(case: Case) -> Facts:
    mark = _failed(
        case,
        "changed",
        "broken",
        "the file changed while it was sent",
        "the file can not be read",
        "changed on disk",
    )
    return {"path": _path(mark), "text": mark.more} if mark else None


def _gave_up(case: Case) -> Facts:
    for role in (paths.LOADER, paths.MODULE, paths.CONFIGURATION, paths.KERNEL, paths.INITRD, paths.OTHER):
        mark = case.lacks("cancelled", role)
        if mark and not case.after(mark) and case.since(mark) > STALLED:
            code = int(mark.more) if mark.more.isdigit() else 0
            return {
                "path": _path(mark), "code": code, "meaning": CODES.get(code, "of its own"), "octets": mark.number
            }  # fmt: skip
    return None


def _gone(case: Case) -> Facts:
    marks = []
    for key, mark in case.marks.items():
        verb, _, role = key.partition(" ")
        away = verb == "gone" or (verb == "failed" and "closed" in mark.more)
        if away and case.lacks(verb, role) and not case.after(mark):
            marks.append(mark)
    last = max(marks, key=lambda mark: mark.time, default=None)
    if last is None or case.since(last) < STALLED:
        return None
    return {"path": _path(last), "octets": last.number}


def _silent_after(case: Case, pattern: str) -> Mark | None:
    """Return the loader that was sent last, where its name is such and nothing followed it."""
    sent = case.sent_loader
    if sent is None or not re.search(pattern, sent.what.rpartition("/")[2], re.IGNORECASE):
        return None
    return None if case.after(sent) or case.quiet < STARTING else sent


def _shim_refused(case: Case) -> Facts:
    sent = _silent_after(case, r"^(?:shim|boot(?:x64|aa64)\.efi)")
    return {"loader": sent.what} if sent else None


def _grub_refused(case: Case) -> Facts:
    sent = _silent_after(case, r"^grub")
    shim = "shim" in case.loader
    return {"loader": sent.what} if sent and shim and not case.is_loader(sent) else None


def _grub_lost(case: Case) -> Facts:
    sent = _silent_after(case, r"^(?:grub|core)")
    return {"loader": sent.what} if sent else None


def _loader_silent(case: Case) -> Facts:
    sent = _silent_after(case, r"")
    return {"loader": sent.what} if sent else None


def _configuration_missing(case: Case) -> Facts:
    mark = case.lacks("missing", paths.CONFIGURATION)
    if mark is None or case.of("sent", paths.CONFIGURATION) or case.quiet < STALLED:
        return None
    return {"path": _path(mark), "count": mark.number}


def _render_failed(case: Case) -> Facts:
    mark = case.mark("render.failed")
    return {"text": mark.more} if mark else None


def _begin_failed(case: Case) -> Facts:
    mark = case.install.get("node.begin_failed")
    if mark is None or mark.time < case.begun or case.state is not InstallState.ARMED:
        return None
    return {"text": mark.more}


def _lacking(role: str) -> Callable[[Case], Facts]:
    def find(case: Case) -> Facts:
        mark = case.lacks("missing", role)
        if mark is None:
            return None
        where = f"profile {case.machine.profile}" if case.machine.profile else "the profile"
        return {"path": _path(mark), "profile": where}

    return find


def _kernel_never(case: Case) -> Facts:
    mark = case.of("sent", paths.CONFIGURATION)
    if mark is None or case.machine.profile is None or case.quiet < STARTING:
        return None
    armed = case.machine.installs and not case.machine.install
    return None if armed or case.asked(paths.KERNEL) else {"path": _path(mark)}


def _kernel_refused(case: Case) -> Facts:
    mark = case.of("sent", paths.KERNEL)
    if mark is None or "shim" not in case.loader or case.after(mark) or case.quiet < STARTING:
        return None
    return {"path": _path(mark)}


RULES: Final = (
    Rule(
        "loader-never-asked", "loader", ("dhcp.ack", "dhcp.request"),
        "an address and a loader by DHCP, and no request for any file for 30 s",
        "it has an address and was told of {loader}, but never asked for that",
        "let port {port} of this host through firewalls; see that dhcp.next_server and the gateway of its "
        "subnet are right, and that no other DHCP server answers it too",
        _never_asked,
    ),
    Rule(
        "loader-missing", "loader", ("tftp.missing", "http.missing"),
        "`tftp.missing` or `http.missing` for the boot file that it was told of",
        "its loader, {path}, is not there",
        "{fix}put the file into one of roots, or name another in boot.loaders (fastboot check shows them all)",
        _loader_missing,
    ),
    Rule(
        "next-loader-missing", "configuration", ("tftp.missing", "http.missing"),
        "`tftp.missing` or `http.missing` for a loader that its loader asks for",
        "{loader} asked for {path}, which is not there",
        "{fix}put {path} into one of roots",
        _next_missing,
    ),
    Rule(
        "loader-module-missing", "configuration", ("tftp.missing", "http.missing"),
        "`tftp.missing` for a module (.c32) of PXELINUX",
        "PXELINUX does not find its module {path}",
        "apt-get install syslinux-common, or put the file, of the same version, beside the loader in one of roots",
        _module_missing,
    ),
    Rule(
        "profile-not-rendered", "kernel", ("render.failed",),
        "`render.failed`, and the configuration says local disk instead",
        "its profile can not be rendered, so it was told to boot its local disk: {text}",
        "correct that in [[profiles]] or [[nodes]] (fastboot check tells the same), then fastboot reload",
        _render_failed,
    ),
    Rule(
        "begin-not-written", "kernel", ("node.begin_failed",),
        "`node.begin_failed`, and it is armed still",
        "its begin could not be written to the disk here, so it was told to boot its local disk: {text}",
        "see that the disk of the state directory is neither full nor failing, then restart it: it is armed still",
        _begin_failed,
    ),
    Rule(
        "kernel-missing", "kernel", ("tftp.missing", "http.missing"),
        "`tftp.missing` or `http.missing` for a kernel",
        "the kernel that it was told to boot, {path}, is not there",
        "correct kernel, or media, of {profile}; fastboot media check shows what a medium has",
        _lacking(paths.KERNEL),
    ),
    Rule(
        "initrd-missing", "initrd", ("tftp.missing", "http.missing"),
        "`tftp.missing` or `http.missing` for an initrd",
        "the initrd that it was told to boot, {path}, is not there",
        "correct initrd, or media, of {profile}; fastboot media check shows what a medium has",
        _lacking(paths.INITRD),
    ),
    Rule(
        "file-refused", "installer", ("tftp.refused",),
        "`tftp.refused`, with its text",
        "{path} is not served to it: {text}",
        "{fix}",
        _refused,
    ),
    Rule(
        "no-acknowledgement", "installer", ("tftp.failed", "tftp.evicted"),
        "`tftp.failed` (silent) or `tftp.evicted` with no octet acknowledged",
        "it asked for {path}, and nothing came back to the answer: a firewall lets its question in, but not "
        "the answer or what follows it",
        "{fix}",
        _no_acknowledgement,
    ),
    Rule(
        "transfer-stalled", "installer", ("tftp.failed",),
        "`tftp.failed` (silent) after some octets",
        "{path} stopped after {octets} octets, and it was not heard of any more",
        "look whether it was switched off or hangs; else for loss on its cable and switch port, and for a path "
        "that carries less than 1500 octets (then tftp.max_blksize = 1024)",
        _stalled,
    ),
    Rule(
        "too-slow", "done", ("http.failed", "ftp.failed"),
        "`http.failed` or `ftp.failed` because less than 32 KiB came through in minutes",
        "{path} stopped after {octets} octets: it took nothing more for minutes",
        "look whether it was switched off or hangs, or has no memory left; else for loss on its cable and "
        "switch port",
        _too_slow,
    ),
    Rule(
        "file-changed", "done", ("tftp.failed", "http.failed", "ftp.failed"),
        "`tftp.failed`, `http.failed` or `ftp.failed` because of the file",
        "{path} changed, or could not be read, while it was sent ({text})",
        "write new files under another name and rename them; see the disk's log where one can not be read; "
        "restart the machine",
        _changed,
    ),
    Rule(
        "client-gave-up", "installer", ("tftp.cancelled",),
        "`tftp.cancelled`, and nothing more for 15 s; its size probes are none",
        "it gave up {path} after {octets} octets with ERROR {code}: {meaning}",
        "with code 3 the file is too large for its memory; with 8 or 4 set tftp.max_windowsize = 1 and "
        "tftp.max_blksize = 1024; else see what its screen says",
        _gave_up,
    ),
    Rule(
        "client-vanished", "done", ("tftp.gone", "http.failed", "ftp.failed"),
        "`tftp.gone`, or a connection that it closed in the middle, and nothing more for 15 s",
        "it went away while it fetched {path}, after {octets} octets",
        "it was restarted, switched off, or its loader gave up: see its screen; where it is always at the same "
        "file, see whether that is whole (fastboot media check) and fits into its memory",
        _gone,
    ),
    Rule(
        "secure-boot-refused-shim", "configuration", ("tftp.sent", "http.sent"),
        "shim was sent, and nothing followed for 60 s",
        "it fetched {loader}, and its firmware did not start it: Secure Boot does not trust its signature",
        "allow the Microsoft 3rd-party UEFI CA in its firmware, install a newer shim-signed, or switch Secure "
        "Boot off",
        _shim_refused,
    ),
    Rule(
        "secure-boot-refused-grub", "configuration", ("tftp.sent", "http.sent"),
        "GRUB was sent to shim, and nothing followed for 60 s",
        "shim fetched {loader}, and did not start it: it does not trust its signature, or it was revoked (SBAT)",
        "take shim and GRUB of the same distribution (those of the medium: fastboot check), signed ones and new",
        _grub_refused,
    ),
    Rule(
        "grub-without-configuration", "configuration", ("tftp.sent", "http.sent"),
        "GRUB was sent, and asked for no configuration for 60 s",
        "it fetched {loader}, which asked for no configuration: it hangs, or was built for another place (prefix)",
        "take the network build of GRUB (grub-efi-amd64-signed has grubnetx64.efi.signed), or see its screen",
        _grub_lost,
    ),
    Rule(
        "loader-silent", "configuration", ("tftp.sent", "http.sent"),
        "a loader was sent, and nothing followed for 60 s",
        "it fetched {loader}, and then asked for nothing more",
        "see its screen; it may be the wrong one for its firmware (boot.loaders), cut, or one that has no "
        "driver for its network card (take snponly.efi or undionly.kpxe)",
        _loader_silent,
    ),
    Rule(
        "no-configuration", "configuration", ("tftp.missing", "http.missing"),
        "`tftp.missing` or `http.missing` for every name of a configuration that it tried",
        "nobody has a configuration for it: it asked {count} times, last for {path}",
        "name it in [[nodes]] with a profile, or write boot.unknown = \"menu\", or put a file of that name "
        "into roots",
        _configuration_missing,
    ),
    Rule(
        "secure-boot-refused-kernel", "initrd", ("tftp.sent", "http.sent"),
        "a kernel was sent to GRUB behind shim, and nothing followed for 60 s",
        "it fetched {path} and no initrd: shim does not trust the kernel's signature",
        "boot shim and GRUB of the medium that the kernel is of, or switch Secure Boot off; see its screen for "
        "\"bad shim signature\"",
        _kernel_refused,
    ),
    Rule(
        "kernel-never-asked", "kernel", ("tftp.sent", "http.sent"),
        "its configuration was sent, and it asked for no kernel for 60 s",
        "it read its configuration, {path}, and asked for no kernel",
        "see its screen: a menu may wait, or the loader complain; a configuration of your own in roots comes "
        "before the rendered one",
        _kernel_never,
    ),
)  # fmt: skip

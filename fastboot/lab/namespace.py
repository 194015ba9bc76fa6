"""A network namespace of our own, and child processes that can not outlive us.

`enter` needs no root where the kernel lets ordinary users make user namespaces.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from fastboot.model import FastbootError

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1

_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
)


class LabError(FastbootError):
    """The lab can not be built here, or a step of it failed."""


class Space:
    """The network namespace that this process is in when it makes one; it may go back there."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def new(cls) -> Space:
        """Move this process into a new one. Raises LabError where it may not."""
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            code = ctypes.get_errno()
            hint = ": run it with sudo" if code == errno.EPERM else ""
            raise LabError(f"no network namespace: {os.strerror(code)}{hint}")
        return cls()

    @property
    def path(self) -> str:
        """Its name for ip(8), while this process holds it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def go(self) -> None:
        """Move this process there."""
        if ctypes.CDLL(None, use_errno=True).setns(self._fd, _CLONE_NEWNET):
            raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Let go of it; it ends with the last process in it."""
        os.close(self._fd)


def enter() -> None:
    """Move this process into a new network namespace; what it starts from now on lives there too.

    Without the right to make one (CAP_SYS_ADMIN), a new user namespace is entered first, in which our user is
    root. The process must have one thread. Raises LabError naming the permission that is missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if (code := ctypes.get_errno()) != errno.EPERM:
        raise LabError(f"no network namespace: {os.strerror(code)}")
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        raise LabError(_refused(ctypes.get_errno()))
    # setgroups must be given up before an ordinary user may write gid_map: user_namespaces(7).
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            Path("/proc/self", name).write_text(text)
        except OSError as error:  # root that lost CAP_SETFCAP may not map itself (Linux 5.12)
            raise LabError(_refused(error.errno or 0)) from error


def permission_help() -> str:
    """Say what would let an ordinary user make a private network here."""
    for name, closed, setting in _SWITCHES:
        switch = Path("/proc/sys", name)
        if switch.exists() and switch.read_text().strip() == closed:
            return f"run it with sudo, or allow user namespaces: sudo sysctl -w {setting}"
    return "run it with sudo, or where user namespaces are allowed (in a container: --privileged)"


def _refused(code: int) -> str:
    return f"no private network as this user ({os.strerror(code)}): {permission_help()}"


def _die_with_parent() -> Callable[[], None]:
    """Return what a child runs before exec so that the kernel kills it when we die, however we die."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


async def spawn(
    arguments: Sequence[str],
    *,
    stdout: int | IO[bytes] = asyncio.subprocess.DEVNULL,
    stderr: int | IO[bytes] = asyncio.subprocess.STDOUT,
    fds: Sequence[int] = (),
    limit: int = 1 << 20,
) -> asyncio.subprocess.Process:
    """Start a child in a session of its own (Ctrl-C reaches only us) that dies with us.

    Raises LabError where the program can not be run.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(fds),
            start_new_session=True,
            preexec_fn=_die_with_parent(),
            limit=limit,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise LabError(f"{arguments[0]}: can not be run: {error.strerror}") from error


async def stop(process: asyncio.subprocess.Process, grace: float) -> int:
    """End a child: SIGTERM, after `grace` seconds SIGKILL. Returns its exit code."""
    for send in (process.terminate, process.kill):
        if process.returncode is None:
            send()
        try:
            return await asyncio.wait_for(process.wait(), grace)
        except TimeoutError:
            continue
    return await process.wait()

"""The user that the server becomes: who that is, the way there without return, and what that user can reach."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from fastboot.config import Config
from fastboot.model import ConfigError, FastbootError

PR_SET_NO_NEW_PRIVS = 38


def become(config: Config) -> None:
    """Make the state directory and drop every privilege for `user`, before any thread starts.

    The sockets are bound by now, so not even CAP_NET_RAW is kept. Raises FastbootError.
    """
    account, state = account_of(config), config.state
    try:
        if not state.exists():
            state.mkdir(mode=0o750, parents=True)
            if account:
                os.chown(state, account.pw_uid, account.pw_gid)
        is_directory = state.is_dir()
    except OSError as error:
        who = account.pw_name if account else user_name()
        raise FastbootError(f"state: can not make {state} for {who}: {error.strerror}") from error
    if not is_directory:
        raise FastbootError(f"state: {state} is no directory; name one, which the server makes")
    drop_to(account)
    if fault := write_fault(state):
        raise FastbootError(f"state: {fault}")


def account_of(config: Config) -> pwd.struct_passwd | None:
    """Return the account to drop to; None where there is none to drop to, or no privilege to drop."""
    if config.user is None or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(config.user)
    except KeyError:
        make = f"adduser --system --group {config.user}"
        raise ConfigError(f"user: there is no user {config.user!r} here; make it with: {make}") from None


def identity_of(account: pwd.struct_passwd | None) -> tuple[int, int, list[int]] | None:
    """Return the uid, gid and groups of an account."""
    return account and (account.pw_uid, account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid))


def drop_to(account: pwd.struct_passwd | None) -> None:
    """Become another user for good. Raises FastbootError."""
    # asyncio imports it with its first thread; to a user that can not read the library that is too late.
    import concurrent.futures.thread  # noqa: F401

    if account:
        try:
            os.initgroups(account.pw_name, account.pw_gid)
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        except OSError as error:
            raise FastbootError(f"user: can not become {account.pw_name}: {error.strerror}") from error
    # A program that this process may ever start gets no privileges from a set-uid bit (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def write_fault(directory: Path) -> str | None:
    """Return why this process can not write to a directory, and what helps; None where it can."""
    if os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return None
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return f"{directory} is on a file system that is read-only; name another, such as /var/lib/fastboot"
    who = user_name()
    is_own = directory.stat().st_uid == os.geteuid()
    remedy = f"chmod u+rwx {directory}" if is_own else f"chown -R {who}: {directory}"
    return f"{directory} is not writable for {who}; make it so with: {remedy}"


def user_name() -> str:
    """Return the name of the user that this process runs as, or its number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def library_faults() -> Iterator[str]:
    """Yield what of its own code this process can not read: what it loads from there later fails."""
    for own in (Path(__file__).parent, Path(os.__file__).parent):
        if not os.access(own, os.R_OK | os.X_OK):
            yield f"user: can not read {own}, which fastboot runs from; install it elsewhere"

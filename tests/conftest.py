"""What every test may use."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from labkit import lab, serve

__all__ = ["lab", "serve"]

CLONE_NEWNET = 0x40000000


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes that test (`-n 2`) a network of its own: a port is free that another uses."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that all processes end at about the same time; what runs alone, last."""
    items.sort(key=lambda item: _is(item, "alone") - _is(item, "slow"))


def pytest_collection_finish() -> None:
    """What was collected stays to the end: who looks for garbage need not look through it, 0.19 s each time."""
    gc.collect()
    gc.freeze()


def _is(item: pytest.Item, mark: str) -> bool:
    return item.get_closest_marker(mark) is not None


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # before pytest-timeout's clock starts
def pytest_runtest_protocol(item: pytest.Item):  # type: ignore[no-untyped-def]
    """Run a test marked `alone` while no other process tests."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if _is(item, "alone") else fcntl.LOCK_SH)
        yield
        fcntl.flock(lock, fcntl.LOCK_UN)  # a test's child may have the file open still


@pytest.fixture
def need() -> Callable[[bool, str], None]:
    """Skip the test, with the reason, unless a condition holds; in CI fail instead: nothing is skipped there."""

    def check(holds: bool, reason: str) -> None:
        if not holds:
            if os.environ.get("CI"):
                pytest.fail(f"can not run in CI: {reason}")
            pytest.skip(reason)

    return check


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """Return a context without root's power over files, also where a user namespace has no other user."""
    return _as_nobody


@contextmanager
def _as_nobody() -> Iterator[None]:
    user = os.geteuid()
    libc = ctypes.CDLL(None)
    header, had = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)  # capability.h, version 3
    assert libc.capget(header, had) == 0
    if user == 0 and "4294967295" not in Path("/proc/self/uid_map").read_text():
        _, permitted, inheritable, _, *high = struct.unpack("=6I", had.raw)
        assert libc.capset(header, struct.pack("=6I", 0, permitted, inheritable, 0, *high)) == 0
    else:
        os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)
        assert libc.capset(header, had.raw) == 0


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """In CI a skipped test is a failed one, whatever skipped it."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"

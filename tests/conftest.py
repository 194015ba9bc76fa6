"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture
def need() -> Callable[[bool, str], None]:
    """Skip the test, with the reason, unless a condition holds; in CI fail instead: nothing is skipped there."""

    def check(holds: bool, reason: str) -> None:
        if not holds:
            if os.environ.get("CI"):
                pytest.fail(f"can not run in CI: {reason}")
            pytest.skip(reason)

    return check


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """In CI a skipped test is a failed one, whatever skipped it."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"

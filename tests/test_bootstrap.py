"""tools/bootstrap.py: what it installs, and what it says where it may not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools/bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; every command succeeds."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_without_root_it_names_what_is_missing_and_the_command(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "installed", lambda: set(bootstrap.PACKAGES["demo"]) - {"ovmf", "pxelinux"})
    monkeypatch.setattr(bootstrap, "elevation", lambda: None)
    assert not bootstrap.install_packages(["demo"])
    said = capsys.readouterr().err
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends ovmf pxelinux\n" in said


def test_with_root_it_installs_only_what_is_missing(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
) -> None:
    monkeypatch.setattr(bootstrap, "installed", lambda: set(bootstrap.PACKAGES["build"]) - {"gcc"})
    monkeypatch.setattr(bootstrap, "elevation", lambda: ["sudo", "-n"])
    assert bootstrap.install_packages(["build"])
    update, install = commands
    assert update[:2] == ["sudo", "-n"]
    assert "update" in update
    assert "DEBIAN_FRONTEND=noninteractive" in install
    assert "gcc" in install
    assert "python3-dev" not in install


def test_with_everything_there_it_runs_nothing(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
) -> None:
    everything = {package for packages in bootstrap.PACKAGES.values() for package in packages}
    monkeypatch.setattr(bootstrap, "installed", lambda: everything)
    assert bootstrap.install_packages(list(bootstrap.PACKAGES))
    assert commands == []


def test_a_stamp_holds_until_a_source_changes(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "STAMPS", tmp_path)
    source = tmp_path / "a.pxd"
    source.write_text("one")
    key = bootstrap.digest([source], "")
    bootstrap.stamp("core", key)
    assert bootstrap.is_stamped("core", bootstrap.digest([source], ""))
    assert not bootstrap.is_stamped("core", bootstrap.digest([source], "FASTBOOT_DEBUG"))
    source.write_text("two")
    assert not bootstrap.is_stamped("core", bootstrap.digest([source], ""))


def test_wrong_usage_is_told() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bootstrap.py", "nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "build demo test bench" in done.stderr


def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    for target in ("setup", "build", "debug", "test", "lint", "type", "demo", "bench", "bench-dhcp", "clean"):
        assert f"make {target} " in done.stdout

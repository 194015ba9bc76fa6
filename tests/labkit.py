"""A server process on loopback, as a service manager starts it, and its configuration."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FASTBOOT = (sys.executable, "-m", "fastboot")


@dataclass
class Lab:
    """A configuration file on loopback, with free high ports."""

    path: Path
    state: Path
    tftp: int
    ftp: int

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*FASTBOOT, *words, "-c", str(self.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Not tmp_path: that is closed to every other user, and servers here drop to one.
    with tempfile.TemporaryDirectory(prefix="fbt-") as directory:
        Path(directory).chmod(0o755)
        yield make_lab(Path(directory))


def make_lab(directory: Path) -> Lab:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        tftp, ftp = one.getsockname()[1], two.getsockname()[1]
    (directory / "root").mkdir()
    (directory / "root" / "file").write_bytes(b"x" * 1000)
    path = directory / "lab.toml"
    path.write_text(
        f'interface = "lo"\nstate = "state"\nroots = ["root"]\ndrain = 30\n'
        f'[tftp]\nport = {tftp}\n[ftp]\nport = {ftp}\n[[nodes]]\nname = "node01"\nmacs = ["52:54:00:00:00:01"]\n'
        f'group = "rack7"\n[[nodes]]\nname = "node02"\nmacs = ["52:54:00:00:00:02"]\n'
    )
    return Lab(path, directory / "state", tftp, ftp)


Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve(lab: Lab) -> Iterator[Serve]:
    """Return a function that starts the server, after the words given, and returns when it serves."""
    started: list[subprocess.Popen[str]] = []

    def start(*within: str) -> subprocess.Popen[str]:
        command = [*within, *FASTBOOT, "serve", "-c", str(lab.path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        wait_for(process, "server", "ready")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        assert process.stderr
        process.stderr.close()


def wait_for(process: subprocess.Popen[str], component: str, event: str) -> dict[str, Any]:
    """Read the server's log up to an event."""
    assert process.stderr
    seen = []
    for line in process.stderr:
        seen.append(line)
        entry: dict[str, Any] = json.loads(line)
        if (entry["component"], entry["event"]) == (component, event):
            return entry
    raise AssertionError("".join(seen))

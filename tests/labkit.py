"""A server process on loopback, as a service manager starts it, and its configuration."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fastboot import cli

FASTBOOT = (sys.executable, "-m", "fastboot")


@dataclass
class Lab:
    """A configuration file on loopback, with free high ports."""

    path: Path
    state: Path
    tftp: int
    ftp: int

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = (*words, "-c", str(self.path))
        if words[0] != "serve":
            return command_line(*words)
        return subprocess.run([*FASTBOOT, *words], capture_output=True, text=True, timeout=60)

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `fastboot` in a child of this process: half a second sooner than where all is imported anew."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become_command(words, out.fileno(), err.fileno())
        code = _wait(child, 60)
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *told)


def _become_command(words: tuple[str, ...], out: int, err: int) -> NoReturn:
    code: object = 70
    try:
        with Path(os.devnull).open() as nothing:
            for number, fd in enumerate((nothing.fileno(), out, err)):
                os.dup2(fd, number)
        gc.freeze()  # no object that is given up closes a number of a file that is another's by then
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["fastboot", *words]
        warnings.simplefilter("ignore")
        cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def _wait(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"it has run for {seconds} s")
        time.sleep(0.005)


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

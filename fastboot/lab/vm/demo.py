"""`fastboot demo`: a bare virtual machine boots from the real server and fetches its media, on a private network.

Exit codes: 0 everything worked, 1 a step failed, 2 it can not be run here, 130 and 143 interrupted by
SIGINT and SIGTERM.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from fastboot.lab import interrupt, namespace
from fastboot.lab.interrupt import Interrupted
from fastboot.lab.namespace import LabError
from fastboot.lab.vm.machine import Firmware, Hardware, plain
from fastboot.lab.vm.scenario import Result, Scenario, boot, require
from fastboot.lab.vm.screen import Screen, timeline

_FAILED, _CAN_NOT = 1, 2
_TAIL = 25
"""Lines of each log that a failure shows, and of each the first `_WIDTH` characters: a firmware draws screens."""
_WIDTH = 300


_INSTALLED = " It was armed once, installed once, and boots from its disk."

FIRMWARE: Final = {
    "bios": "a BIOS",
    "uefi": "UEFI firmware",
    "uefi-http": "UEFI firmware that boots by HTTP",
    "uefi-secure": "UEFI firmware that enforces Secure Boot",
}


def run(
    firmware: Firmware = "bios",
    *,
    nic: str = "virtio-net-pci",
    proxy: bool = False,
    loaders: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    settings: str = "",
    http: bool = False,
    install: bool = False,
    as_json: bool = False,
    keep: bool = False,
) -> int:
    """Boot one machine and tell how it went; returns the exit code.

    Moves this process into a namespace of its own: call it once, in a process with one thread. `nic` is one of
    `initrd.NICS`; `proxy`, `loaders`, `files`, `settings`, `http`, `install` are those of a Scenario. `keep`
    leaves the logs of a success behind too.
    """
    console = Console(quiet=as_json, highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="fastboot-demo-"))
    scenario = Scenario(Hardware(firmware, nic=nic), proxy, loaders or {}, files or {}, settings, http, install)
    result = Result(scenario, directory)
    code = _CAN_NOT
    try:
        require(result.scenario)
        namespace.enter()
        code = _FAILED
        interrupt.run(_show(result, console))
        code = 0 if result.ok else _FAILED
    except LabError as error:
        result.faults.append(str(error))
        _explain(result, console)
    except Interrupted as error:
        shutil.rmtree(directory, ignore_errors=True)
        print(f"fastboot: {error}: the machine and the server are stopped", file=sys.stderr)
        return error.code
    finally:
        if (code == 0 and not keep) or not any(directory.glob("*")):
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        print(json.dumps(result.facts(), indent=2))
    return code


async def _show(result: Result, console: Console) -> None:
    """Boot with everything on the console, from the title to the verdict."""
    firmware = FIRMWARE[result.scenario.hardware.firmware]
    title = f"fastboot demo: a machine with {firmware}, an empty disk and a network cable"
    began = time.monotonic()
    with Screen(console, title) as screen:
        await boot(result, screen)
    if not result.ok:
        _explain(result, console)
        return
    assert result.story and result.manifest
    console.print(timeline(result.story))
    files, octets = len(result.manifest.files), result.manifest.octets
    console.print(
        Text(
            f"It worked: {files} files, {octets:,} octets of media fetched by FTP, every sha256 right on the"
            f" machine, and the server's events agree.{_INSTALLED if result.scenario.install else ''}"
            f" {time.monotonic() - began:.0f} s in all.",
            style="bold green",
        ),
    )


def _explain(result: Result, console: Console) -> None:
    """Tell a failure: which step, why most likely, the ends of the logs and where they are."""
    story = result.story
    if story:
        console.print(timeline(story))
        if step := story.current:
            console.print(Text(f"Failed at: {step.title}", style="bold red"))
    for fault in result.faults:
        console.print(Text(f"- {fault}", style="red"))
    logs = [result.directory / "console.log", result.directory / "server.log"]
    for log in (log for log in logs if log.exists()):
        console.print(Text(f"the end of {log}:", style="bold"))
        with log.open(encoding="utf-8", errors="replace") as lines:
            whole = (text for line in lines if (text := plain(line).strip()))
            for text in deque(whole, _TAIL):
                console.print(Text(f"  {text[:_WIDTH]}", style="dim"), soft_wrap=True)

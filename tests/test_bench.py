"""The benchmark of HTTP and FTP still runs: figures of so little work mean nothing. README has what was kept."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import media_readme, readme

ROOT = Path(__file__).parent.parent


def test_bench_media_runs(tmp_path: Path) -> None:
    cases = ["http-4-iso", "http-held", "ftp-cold", "ftp-small", "ftp-sessions"]
    results = tmp_path / "r.json"
    words = ["--clients", "4", "--gigabytes", "0.004", "--files", "80", "--rounds", "1", "--idle", "0.1"]
    words += ["--results", str(results)]
    command = [sys.executable, "-m", "bench.media", *words, "--only", *cases, "--servers", "fastboot", "pyftpdlib"]
    with tempfile.TemporaryDirectory(prefix="fbt-") as short:  # servers have sockets in it
        done = subprocess.run(
            command, cwd=ROOT, env={"TMPDIR": short, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    assert list(found) == cases
    assert set(found["ftp-small"]["rounds"]) == {"fastboot", "pyftpdlib"}
    for case, entry in found.items():
        for name, rounds in entry["rounds"].items():
            assert [each["failed"] for each in rounds] == [0], (case, name)
            assert case.endswith(("sessions", "held")) or rounds[0]["octets"] > 0
            assert rounds[0]["both"] > rounds[0]["cpu"] > 0, (case, name)
    assert "| HTTP, 4 clients, 1 MiB each, out of an ISO |" in "\n".join(media_readme.readme(found))
    assert "of the CPU of pyftpdlib" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["ftp-small"]["fastboot"] > 0


def test_readme_says_what_was_measured() -> None:
    """A new file of results, or another form of the tables, takes make bench-readme."""
    page = (ROOT / "README.md").read_text()
    assert page == readme.made_anew(page)


def test_readme_names_the_best_of_the_others_that_served_all() -> None:
    def rounds(failed: int, *cpu: float) -> list[dict[str, Any]]:
        return [{"failed": failed, "cpu": each, "both": 2 * each, "lag": 5.0, "idle_loop": 2.0} for each in cpu]

    machine = {"cpu": "a CPU", "cores": 2, "kernel": "6.1", "day": "2026-01-31"}
    by_server = {"fastboot": rounds(0, 0.1, 0.3, 0.2), "nginx": rounds(0, 0.15), "aiohttp": rounds(1, 0.01)}
    entry = {"says": "what it is", "kind": "bulk", "machine": machine, "rounds": by_server}
    text = "\n".join(media_readme.readme({"http-50": entry}))
    assert (
        "| what it is | 0.200 (0.100 to 0.300) | 0.150 (nginx) | 0.400 | 0.300 (nginx) | 3.00 | 3.00 (nginx) |"
        in text
    )
    assert "2 cores of a CPU, Linux 6.1, 2026-01-31: medians of 3 interleaved rounds" in text

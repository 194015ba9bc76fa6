"""The benchmark of HTTP and FTP still runs: its figures, of so little work, mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_bench_media_runs(tmp_path: Path) -> None:
    cases = ["http-4-iso", "ftp-cold", "ftp-small", "ftp-sessions"]
    results = tmp_path / "r.json"
    words = ["--clients", "4", "--gigabytes", "0.004", "--files", "80", "--rounds", "1", "--idle", "0.1"]
    words += ["--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.media", *words, "--only", *cases, "--servers", "fastboot", "pyftpdlib"],
        cwd=Path(__file__).parent.parent, env={"TMPDIR": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    assert list(found) == cases
    assert set(found["ftp-small"]["rounds"]) == {"fastboot", "pyftpdlib"}
    for case, entry in found.items():
        for name, rounds in entry["rounds"].items():
            assert [each["failed"] for each in rounds] == [0], (case, name)
            assert case.endswith("sessions") or rounds[0]["octets"] > 0
    assert "of the CPU of pyftpdlib" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["ftp-small"]["fastboot"] > 0

"""HTTP and FTP: what fastboot costs beside nginx, vsftpd, and pyftpdlib and aiohttp as they come.

    make bench-media            or            make bench-media ARGS="--only http-500 --servers fastboot nginx"

Each case by itself takes one to four minutes.
`fastboot-loop` is fastboot with `senders = 0`, its plain path. All servers run in a network namespace of their
own, across a veth pair from the clients, and wait while another is measured. A round runs every server in every
case; the next round does so in reverse order. The table shows medians of the rounds, of CPU the least and most
too; the line below it is the median of fastboot's share of the best other's CPU, in pairs of the same round.

Cases: PROTOCOL-CLIENTS, a large file that all fetch at once; -iso, fastboot reads it out of an ISO, the others
out of a directory; -cold, a file of 32 MiB for each, none in memory; -small, files of 2 KB one after another;
-sessions, all come within one second; -held, all begin a large file and take no more of it. Large files have 256
MiB, or less, so that all clients together fetch `--gigabytes`: 500 clients of 61 MiB each. Much smaller ones are
gone before the last client has asked. TMPDIR must be on a disk.

CPU is what the scheduler charged to the server's threads and children from the first request on, `both` the same
with the clients' process. Across a veth pair packets leave in whose thread it happens to be: those of a full
socket in the client's, when that acknowledges. A server of little CPU may have the client pay: `both`
tells. `fairness` is the slowest client's time by the fastest's. `lag` is the 99.9th percentile, of all rounds
together, of the round trip of a small question to the server's loop, by a protocol that the clients do not use if
it has one: by theirs a question waits behind all that was asked before. It is asked while the clients fetch once
more, of which nothing else counts: answers cost CPU, more of it in one server than in another. `idle` is the same
of a loop that has nothing else to do, on the same machine at the same time. `memory` is that of the server's
processes, per client, above what they had before the case; `unsent` what the kernel holds for its connections, at
one moment. The network is Debian's default, cubic: bbr paces by timers, which makes all servers take three times
the CPU without a network card.

The raw figures are kept as JSON (--results), lags as their percentile, in place of those of the same cases; the
last line is the medians of CPU. `make bench-readme` makes README's part of such a file.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import kept
from bench.host import DIES_WITH_US, Host, cpu_seconds, memory, running
from bench.lag import IDLE, IDLE_PORT, Lag, percentile
from bench.media_servers import CLIENT, OTHERS, SERVER, Server, servers
from fastboot.lab import namespace

ROOT = Path(__file__).parent.parent
LARGE, COLD = 256 << 20, 32 << 20
SMALL, SMALL_FILES = 2048, 1000
MOMENT = 0.4
"""Seconds after the first request at which memory is looked at."""


@dataclass(frozen=True, slots=True)
class Case:
    """What clients do."""

    name: str
    protocol: str
    kind: str
    clients: int
    place: str = "directory"

    def file_size(self, total: int) -> int:
        return min(COLD if self.place == "cold" else LARGE, max(1 << 20, total // self.clients >> 20 << 20))

    @property
    def unit(self) -> str:
        return {"bulk": "s/GB", "storm": "ms/file", "sessions": "ms/session", "held": "ms/session"}[self.kind]

    def says(self, total: int) -> str:
        """Say what clients do, as README does."""
        size = f"{self.file_size(total) >> 20} MiB each"
        what = {
            "bulk": size + {"directory": "", "iso": ", out of an ISO", "cold": ", from disk"}[self.place],
            "storm": "files of 2 KB",
            "sessions": "within one second",
            "held": "that take no more of their files",
        }
        return f"{self.protocol.upper()}, {self.clients} clients, {what[self.kind]}"

    def units(self, figures: Mapping[str, Any]) -> float:
        """Return how much was done, in what CPU seconds are divided by."""
        done = {
            "bulk": figures["octets"] / 1e9,
            "storm": figures["octets"] / SMALL / 1e3,
            "sessions": self.clients / 1e3,
            "held": self.clients / 1e3,
        }
        return max(done[self.kind], 1e-9)


def cases(clients: int) -> Iterator[Case]:
    few = max(1, clients // 10)
    for protocol in ("http", "ftp"):
        for count in (few, clients):
            yield Case(f"{protocol}-{count}", protocol, "bulk", count)
            yield Case(f"{protocol}-{count}-iso", protocol, "bulk", count, "iso")
        yield Case(f"{protocol}-cold", protocol, "bulk", few, "cold")
        yield Case(f"{protocol}-small", protocol, "storm", few)
        yield Case(f"{protocol}-sessions", protocol, "sessions", clients)
        yield Case(f"{protocol}-held", protocol, "held", clients)


class Files:
    """What is served: large files, small ones, and cold ones, each made when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self.root, self.image = work / "root", work / "image.iso"
        self.root.mkdir(mode=0o755)
        self._block = os.urandom(1 << 20)
        for number in range(SMALL_FILES):
            self._make(f"small-{number}", SMALL)

    def _make(self, name: str, size: int) -> str:
        path = self.root / name
        if not path.exists():
            with path.open("wb") as file:
                for at in range(0, size, len(self._block)):
                    file.write(self._block[: size - at])
        return name

    def master(self, sizes: set[int]) -> None:
        """Make the ISO, of all large files there are going to be."""
        for size in sizes:
            self.large(size)
        command = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", str(self.image), str(self.root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def large(self, size: int) -> list[str]:
        return [self._make(f"large-{size >> 20}", size)]

    def small(self) -> list[str]:
        return [f"small-{number}" for number in range(SMALL_FILES)]

    def cold(self, size: int, count: int) -> list[str]:
        """Return files of which nothing is in memory."""
        names = [self._make(f"cold-{number}", size) for number in range(count)]
        for name in names:
            with (self.root / name).open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return names


class Clients:
    """A process of clients (`bench.downloads`): connected, then at work, then waiting to leave."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        words = [*DIES_WITH_US, sys.executable, "-m", "bench.downloads", json.dumps(job)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._line()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def ended_within(self, seconds: float) -> bool:
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(self._line())
        return figures

    def _line(self) -> str:
        if not self.ended_within(150):
            raise SystemExit("the clients hang")
        assert self._process.stdout
        return self._process.stdout.readline()


class Bench:
    """Servers that run, and what clients are made to do to one of them."""

    def __init__(self, files: Files, host: Host, total: int, storm: int) -> None:
        self._files, self._host, self._total, self._storm = files, host, total, storm

    def measure(self, case: Case, server: Server, pid: int) -> dict[str, Any]:
        figures = self._run(case, server, pid)
        if lag := self._lag(case, server):
            asked = self._run(case, server, pid, lag)
            figures["lag"], figures["idle_loop"] = lag.server, lag.idle
            figures["failed"] += asked["failed"]
        return figures

    def _run(self, case: Case, server: Server, pid: int, lag: Lag | None = None) -> dict[str, Any]:
        job = self._job(case, server)
        before = memory(pid)
        with Clients(job) as clients:
            began, they_began = cpu_seconds(pid), cpu_seconds(clients.pid)
            with lag or contextlib.nullcontext():
                clients.go()
                held = None if clients.ended_within(MOMENT) else (memory(pid), self._unsent())
                figures = clients.figures()
            cpu, theirs = cpu_seconds(pid) - began, cpu_seconds(clients.pid) - they_began
            held = held or (memory(pid), self._unsent())
        figures["cpu"], figures["both"] = cpu / case.units(figures), (cpu + theirs) / case.units(figures)
        figures["memory_kib"] = max(0, held[0] - before) / case.clients / 1024
        figures["unsent_kib"] = held[1] / case.clients / 1024
        if figures["fastest"]:
            figures["fairness"] = figures["slowest"] / figures["fastest"]
        return figures

    def idle(self, server: Server, seconds: float) -> list[float]:
        """Return the lag of a server that has nothing to do."""
        if lag := self._lag(None, server):
            with lag:
                time.sleep(seconds)
        return lag.server if lag else []

    def _job(self, case: Case, server: Server) -> dict[str, Any]:
        job: dict[str, Any] = {"kind": case.kind, "protocol": case.protocol, "clients": case.clients}
        job["address"] = (SERVER, server.ports[case.protocol])
        if case.kind == "storm":
            # By FTP each of them keeps a port for a minute, from all servers on this address.
            count = self._storm // 10 if case.protocol == "ftp" else self._storm
            job |= {"size": SMALL, "files": count}
            names = self._files.small()
        elif case.kind in ("bulk", "held"):
            size = job["size"] = case.file_size(self._total)
            names = self._files.cold(size, case.clients) if case.place == "cold" else self._files.large(size)
        else:
            return job
        return job | {"paths": [server.path(name, case.place) for name in names]}

    def _lag(self, case: Case | None, server: Server) -> Lag | None:
        probe = server.probe(case.protocol if case else None)
        if probe is None or (case and case.kind != "bulk"):  # questions would be a part of what is measured
            return None
        return Lag(probe, (SERVER, server.ports[probe]), (SERVER, IDLE_PORT))

    def _unsent(self) -> int:
        """Return the octets that the kernel holds for connections of the servers, those in flight too."""
        words = self._host.inside(["ss", "--tcp", "--memory", "--numeric", "--no-header"])
        listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        return sum(map(int, re.findall(r"skmem:\(.*?,w(\d+)", listed)))


def await_answers(server: Server) -> None:
    """Wait until a server answers by all its protocols, and has read its ISO."""
    deadline = time.monotonic() + 30
    greetings = {"http": b"HTTP/1.1 200 ", "ftp": b"220"}
    head = f"HEAD {server.path('small-0', 'iso')} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    for protocol, port in server.ports.items():
        got = b""
        while not got.startswith(greetings[protocol]):
            if time.monotonic() > deadline:
                raise SystemExit(f"{server.words} does not answer by {protocol}: {got!r}")
            with contextlib.suppress(OSError), socket.create_connection((SERVER, port), 5) as sock:
                sock.sendall(head if protocol == "http" else b"")
                got = sock.recv(4096)
            time.sleep(0.02)


@contextlib.contextmanager
def all_running(host: Host, work: Path, found: Mapping[str, Server]) -> Iterator[dict[str, int]]:
    """Start the servers and the idle loop; give the servers' process ids."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(host, [sys.executable, "-c", IDLE, SERVER, str(IDLE_PORT)], work / "idle.log"))
        pids = {
            name: stack.enter_context(running(host, server.words, work / f"{name}.log", server.environment))
            for name, server in found.items()
        }
        for server in found.values():
            await_answers(server)
        yield pids


Rounds = dict[str, dict[str, list[dict[str, Any]]]]
"""Figures by case and server, one of each round."""


def middle(rounds: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [each[key] for each in rounds if each.get(key) is not None]
    return statistics.median(values) if values else None


def of_best(figures: Mapping[str, list[dict[str, Any]]]) -> tuple[str, float] | None:
    """Return the other server that takes the least CPU, and fastboot's as a share of its, the median of pairs."""
    others = {
        name: middle(rounds, "cpu") or 0.0
        for name, rounds in figures.items()
        if name in OTHERS and not any(each["failed"] for each in rounds)
    }
    if not others or "fastboot" not in figures:
        return None
    best = min(others, key=lambda name: others[name])
    pairs = zip(figures["fastboot"], figures[best], strict=True)
    return best, statistics.median(ours["cpu"] / theirs["cpu"] for ours, theirs in pairs)


HEAD = (
    f"  {'':14}{'CPU':>8} {'least':>8} {'most':>8} {'both':>8} {'MB/s':>7} {'median':>8} {'slowest':>8}"
    f"{'fairness':>9}{'lag ms':>8}{'idle':>6}{'memory KiB':>12}{'unsent':>8}{'failed':>8}"
)


def table(chosen: Sequence[Case], rounds: Rounds, total: int) -> Iterator[str]:
    for case in chosen:
        figures = rounds[case.name]
        yield f"\n{case.name}: {case.says(total)}; CPU in {case.unit}; seconds of clients"
        yield HEAD
        for name, each in figures.items():
            yield row(name, each, case)
        if share := of_best(figures):
            yield f"  fastboot takes {share[1]:.2f} of the CPU of {share[0]}"


def row(name: str, rounds: Sequence[Mapping[str, Any]], case: Case) -> str:
    def cell(key: str, width: int, form: str) -> str:
        value = middle(rounds, key)
        return f"{'':{width}}" if value is None else f"{value:{width}{form}}"

    cpu = [each["cpu"] for each in rounds]
    lag, idle = ([trip for each in rounds for trip in each.get(key, [])] for key in ("lag", "idle_loop"))
    rate = statistics.median(each["octets"] / 1e6 / each["seconds"] for each in rounds)
    late = [f"{percentile(trips, 0.999) * 1e3:.1f}" if trips else "" for trips in (lag, idle)]
    return (
        f"  {name:14}{cell('cpu', 8, '.3f')} {min(cpu):8.3f} {max(cpu):8.3f} {cell('both', 8, '.3f')} {rate:7.0f}"
        f" {cell('p50', 8, '.4f')} {cell('slowest', 8, '.3f')}"
        f"{cell('fairness', 9, '.2f') if case.kind == 'bulk' else '':9}"
        f"{late[0]:>8}{late[1]:>6}{cell('memory_kib', 12, '.0f')}{cell('unsent_kib', 8, '.0f')}"
        f"{sum(each['failed'] for each in rounds):8}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500, help="of the larger cases; a tenth in the others")
    parser.add_argument("--gigabytes", type=float, default=32.0, help="that all clients of a large file fetch")
    parser.add_argument("--files", type=int, default=10_000, help="small ones that are fetched; by FTP a tenth")
    parser.add_argument(
        "--idle", type=float, default=1.5, help="seconds in which each server's lag is looked at first"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--results", type=Path, default=ROOT / ".cache" / "bench-media.json", help="where figures go"
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CASE", help="such as 'http-*'")
    parser.add_argument("--servers", nargs="+", default=["*"], metavar="NAME")
    return parser.parse_args()


def run(settings: argparse.Namespace, work: Path, host: Host) -> tuple[list[Case], Rounds, dict[str, list[float]]]:
    total = int(settings.gigabytes * 1e9)
    chosen = [case for case in cases(settings.clients) if matches(case.name, settings.only)]
    if not chosen:
        raise SystemExit(f"no such case; there are {' '.join(case.name for case in cases(settings.clients))}")
    files = Files(work)
    files.master({case.file_size(total) for case in chosen if case.place == "iso"})
    found = {
        name: server
        for name, server in servers(work, files.root, files.image).items()
        if matches(name, settings.servers)
    }
    bench, rounds = Bench(files, host, total, settings.files), Rounds()
    with all_running(host, work, found) as pids:
        idle = {name: bench.idle(server, settings.idle) for name, server in found.items()}
        for number in range(settings.rounds):
            for case in chosen:
                for name in list(found) if number % 2 == 0 else reversed(found):
                    if case.protocol in found[name].ports:
                        figures = bench.measure(case, found[name], pids[name])
                        rounds.setdefault(case.name, {}).setdefault(name, []).append(figures)
                        keep(settings, case, rounds[case.name])
                        seen = {key: value for key, value in figures.items() if not isinstance(value, list)}
                        print(f"round {number + 1} {case.name} {name} {seen}", file=sys.stderr)
    return chosen, rounds, idle


def keep(settings: argparse.Namespace, case: Case, rounds: Mapping[str, list[dict[str, Any]]]) -> None:
    """Put what is known of a case into the file of results."""
    brief = {name: [short(each) for each in figures] for name, figures in rounds.items()}
    entry = {
        "says": case.says(int(settings.gigabytes * 1e9)),
        "kind": case.kind,
        "machine": kept.machine(),
        "rounds": brief,
    }
    kept.keep(settings.results, {case.name: entry}, [each.name for each in cases(settings.clients)])


def short(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with the percentile of the lags in place of all of them."""
    return {
        key: percentile(value, 0.999) * 1e3 if key in ("lag", "idle_loop") and value else value
        for key, value in figures.items()
    }


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main() -> None:
    settings = arguments()
    namespace.enter()
    host = Host(f"{CLIENT}/24", f"{SERVER}/24")
    route = ["ip", "route", "change", "10.99.0.0/24", "dev", "bench1", "src", SERVER, "congctl", "cubic"]
    subprocess.run(host.inside(route), check=True)
    try:
        with tempfile.TemporaryDirectory(prefix="fastboot-bench-") as folder:
            Path(folder).chmod(0o755)
            chosen, rounds, idle = run(settings, Path(folder), host)
    finally:
        host.close()
    machine = kept.machine()
    print(
        f"{settings.rounds} rounds; Linux {machine['kernel']}, {machine['cores']} cores, shared with the clients"
    )
    print("\n".join(table(chosen, rounds, int(settings.gigabytes * 1e9))))
    at_rest = {name: percentile(trips, 0.999) * 1e3 for name, trips in idle.items() if trips}
    print("\nlag p99.9 before the load, ms:", ", ".join(f"{name} {lag:.1f}" for name, lag in at_rest.items()))
    medians = {
        case: {name: middle(figures, "cpu") for name, figures in by_server.items()}
        for case, by_server in rounds.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()

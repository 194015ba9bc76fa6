"""TFTP: fastboot beside dnsmasq, tftpd-hpa, atftpd and the limit: CPU, throughput, waiting, memory.

    make bench                                    everything, about 20 minutes
    make bench ARGS="--only window16 loss4 --rounds 3 --servers fastboot atftpd limit"

Each server is started anew for every figure, with its defaults, in a network namespace of its own across a veth
pair from the clients; all have the same files and the same clients. `limit` is a bare loop that does only the two
system calls, recvmmsg and sendmmsg with UDP_SEGMENT. CPU is what the scheduler charged to the server and its
children, ended ones too. Rounds are interleaved: a table shows medians, the least and most of the first column in
brackets, and the median of the rounds' ratios of fastboot's figure to a server's. Who takes more than six seconds
is measured once. Ctrl-C ends early, with a report of what was measured.

CPU s/GB      the server's, for 1e9 octets of files
MB/s          from the first request to the last end, of files
of the link   the same as a share of what fits on it
p50 p99 worst seconds that a client took
x p50 x worst those under loss, in times of those without it (p50 with p50, worst with worst)
twice         octets that the server sent beyond what was needed, as a share of that
KiB each      memory of the server's processes for each transfer (the kernel's is not in it)

The raw figures are kept as JSON (--results); the last line is their medians. `make bench-readme` makes README's
part of such a file.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import groups, tftp_report
from bench.kept import Found, keep, machine
from bench.native import load
from bench.tftp_runs import Figures, run
from bench.tftp_scenarios import SCENARIOS, Scenario
from bench.tftp_servers import SERVERS
from fastboot.lab import namespace

ROOT = Path(__file__).parent.parent
SLOW = 6.0
"""Seconds. Who takes longer is not measured again."""
ROUNDS = 7


def measure(place: Path, scenario: Scenario, names: list[str], rounds: int) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of every server, round by round."""
    slow: set[str] = set()
    for number in range(rounds):
        for name in names:
            if name in slow or (name == "limit" and not scenario.limited):
                continue
            figures = run(scenario, name, place)
            shown = " ".join(f"{key} {figures[key]:.4g}" for key in (*scenario.columns, "unfinished"))
            print(f"{scenario.name} round {number + 1} {name}: {shown}", flush=True)
            if figures.get("seconds", 0) > SLOW:
                slow.add(name)
            yield name, figures


def contenders(asked: list[str]) -> list[str]:
    """Return those that can be measured here: children that nobody waits for need a control group."""
    if "tftpd-hpa" not in asked:
        return asked
    if group := groups.make():
        groups.end(group)
        return asked
    print("tftpd-hpa is left out: counting its children takes a control group, and so root")
    return [name for name in asked if name != "tftpd-hpa"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), help="these scenarios"
    )
    parser.add_argument("--servers", nargs="+", choices=[*SERVERS, "limit"], default=[*SERVERS, "limit"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="a few clients and small files: to see that it works")
    parser.add_argument(
        "--results", type=Path, default=ROOT / ".cache" / "bench-tftp.json", help="where figures go"
    )
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load("limit_loop")
    names = contenders(settings.servers)
    namespace.enter()
    found: Found = {}
    try:
        with tempfile.TemporaryDirectory(prefix="fastboot-bench-") as folder:
            place = Path(folder)
            place.chmod(0o755)
            for name in settings.only:
                scenario = SCENARIOS[name].tiny() if settings.tiny else SCENARIOS[name]
                entry = found[name] = {"says": scenario.says, "machine": machine(), "rounds": {}}
                for server, figures in measure(place, scenario, names, settings.rounds):
                    entry["rounds"].setdefault(server, []).append(figures)
                    keep(settings.results, found, SCENARIOS)
                print("\n".join(tftp_report.table(scenario, entry)), flush=True)
    except KeyboardInterrupt:
        print("\nended early")
    found = {name: entry for name, entry in found.items() if entry["rounds"]}
    print("\n".join(tftp_report.chart(found)))
    print("\n".join(tftp_report.generator(found)))
    print(json.dumps(tftp_report.medians(found)))


if __name__ == "__main__":
    main()

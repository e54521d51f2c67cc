"""Measures, and writes what it found: see docs/benchmarks.md.

The programs of all systems take turns on one private server. Everything is measured several times; what is told are
medians, with the lowest and the highest, and ratios to what the server could do in the same round.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import chart, report, rooms
from benchmarks.measures import BACKSTAGE, BARE, PEERS, Bench, Figures, System
from benchmarks.programs import ROOT, Failed, Programs
from benchmarks.results import Results
from benchmarks.server import Server, default_binary
from benchmarks.smoke import smoke

DETAILS = ("waiting", "queues", "workers", "payloads", "flood", "hoard")
"""What is measured of Backstage alone."""


MEASURES = ("throughput", "handlers", "latency", "idle", *DETAILS)


def main() -> None:
    options = _options()
    peers = [peer for peer in PEERS if options.peers or peer.name in options.systems]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no server or worker is left running
    with Server(options.server or default_binary()) as server:
        programs = Programs(server.url, options.python, patience=30.0 if options.smoke else 300.0)
        try:
            if options.rooms:
                print(rooms.table(server))
                return
            if options.smoke:
                sys.exit(smoke(server, programs, options.systems or None, peers))
            results = measure(options, server, programs, peers)
        except Failed as error:
            sys.exit(f"failed: {error}")
    text = report.markdown(results)
    print(f"\n{text}")
    if not options.no_save:
        place = ROOT / "benchmarks" / "results" / f"{results.date}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(results.as_json(), indent=1) + "\n")
        print(f"\n{place.relative_to(ROOT)} has every single figure", file=sys.stderr)
    if options.write:
        write(results, text)


def measure(options: argparse.Namespace, server: Server, programs: Programs, peers: list[System]) -> Results:
    scale = options.jobs / BACKSTAGE.drained * (0.1 if options.quick else 1.0)
    bench = Bench(server, programs, scale=scale, seconds=2.0 if options.quick else 5.0)
    peers = [peer for peer in peers if installed(programs, peer)]
    results = Results(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        command=" ".join(["make bench", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])]),
        machine=machine(server, programs),
        versions={peer.name: programs.version(peer.name) for peer in peers},
        scale=scale,
    )
    began = time.monotonic()
    runs = 1 if options.quick else options.runs
    for run in range(runs):
        turn = run % len(peers) if peers else 0
        results.begin()
        for name, step in steps(bench, [*peers[turn:], *peers[:turn]], run < options.detail_runs, options.only):
            try:
                figures = step()
            except Failed as error:
                if name not in results.versions:
                    raise
                print(f"{name} failed, and has no figure here: {error}", file=sys.stderr)
                continue
            results.add(name, figures)
            told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            print(f"{time.monotonic() - began:5.0f} s  {run + 1}/{runs}  {name}: {told}", file=sys.stderr, flush=True)
    return results


def steps(bench: Bench, peers: list[System], details: bool, only: list[str]) -> list[tuple[str, Callable[[], Figures]]]:
    """Of one round, in order: the limits, and right after them Backstage; each peer in turn."""
    found: list[tuple[str, str, Callable[[], Figures]]] = [
        ("ceiling", "", bench.ceiling),
        ("bare", "throughput", partial(bench.throughput, BARE)),
    ]
    for system in (BACKSTAGE, *peers):
        compared = ("throughput", "handlers", "latency")
        found += [(system.name, measure, partial(getattr(bench, measure), system)) for measure in compared]
    if details or only:
        found += [(system.name, "idle", partial(bench.idle, system)) for system in (BACKSTAGE, *peers)]
        found += [("backstage", measure, getattr(bench, measure)) for measure in DETAILS]
    return [(name, step) for name, measure, step in found if not (only and measure) or measure in only]


def installed(programs: Programs, peer: System) -> bool:
    try:
        programs.interpreter(peer.name)
    except Failed as error:
        print(f"{peer.name} is left out: {error}", file=sys.stderr)
        return False
    return True


def machine(server: Server, programs: Programs) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": str(cores),
        "system": f"{platform.system()} {platform.machine()}",
        "python": programs.python_version,
        "server": server.version,
    }


def write(results: Results, text: str) -> None:
    """The table into the README, between its markers, and the chart beside docs/benchmarks.md."""
    (ROOT / "docs" / "benchmarks.svg").write_text(chart.svg(results))
    readme = ROOT / "README.md"
    begin, end = "<!-- benchmarks -->", "<!-- /benchmarks -->"
    before, found, after = readme.read_text().partition(begin)
    if not found:
        sys.exit(f"README.md has no {begin} to write behind")
    if end in after:
        after = after.partition(end)[2]
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    print("written: README.md, docs/benchmarks.svg", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", action="store_true", help="measure the other systems too, each in a venv of its own")
    parser.add_argument("--systems", nargs="+", default=[], metavar="NAME", help=f"some of them: {', '.join(names)}")
    parser.add_argument("--runs", type=int, default=3, help="rounds; medians are told (3)")
    parser.add_argument("--detail-runs", type=int, default=1, help="rounds that also have the details of Backstage (1)")
    parser.add_argument("--jobs", type=int, default=BACKSTAGE.drained, help="of one drain; all else is in proportion")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEASURE", choices=MEASURES, help=", ".join(MEASURES))
    parser.add_argument("--quick", action="store_true", help="one round with a tenth of the jobs: to see that it works")
    parser.add_argument("--python", metavar="PATH", help="the interpreter to measure with; this one unless given")
    parser.add_argument("--server", metavar="PATH", help="the server's binary; the embedded Valkey unless given")
    parser.add_argument("--write", action="store_true", help="put the table into README.md and the chart into docs/")
    parser.add_argument("--no-save", action="store_true", help="write no file to benchmarks/results/")
    parser.add_argument("--smoke", action="store_true", help="only see whether every program handles all its jobs")
    parser.add_argument("--rooms", action="store_true", help="only what each step of a job's way costs, microseconds")
    options = parser.parse_args()
    known = [*names, "backstage", "bare", "ceiling"]
    for name in options.systems:
        if name not in known:
            parser.error(f"no system {name!r}: there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()

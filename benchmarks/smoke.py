"""Every program briefly: not how fast it is, but whether it handles all its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from benchmarks.measures import BACKSTAGE, BARE, Bench, Figures, System
from benchmarks.programs import Failed, Programs
from benchmarks.server import Server


def smoke(server: Server, programs: Programs, names: list[str] | None, peers: Iterable[System]) -> int:
    """The exit status: 0 if all is well. Ends with a line like a test runner's."""
    bench = Bench(server, programs, scale=0.001, seconds=0.5)
    ours: list[tuple[str, Callable[[], Figures]]] = [
        ("ceiling", bench.ceiling),
        ("bare", partial(bench.throughput, BARE)),
        *[
            ("backstage", partial(each, BACKSTAGE))
            for each in (bench.throughput, bench.handlers, bench.latency, bench.idle)
        ],
        ("backstage", partial(bench.waiting, (100_000, 1_000_000))),  # the less would be as few
        ("backstage", partial(bench.queues, (20,))),
        ("backstage", bench.workers),
        ("backstage", partial(bench.payloads, ((100_000, 2_000),))),
        ("backstage", bench.flood),
        ("backstage", bench.hoard),
    ]
    checks = [(name, check) for name, check in ours if names is None or name in names]
    for peer in peers:
        few = replace(peer, drained=200_000, singles=200_000)  # in proportion: 200 jobs
        checks.append((peer.name, partial(bench.throughput, few)))
    failed = 0
    for name, check in checks:
        try:
            figures = check()
        except Failed as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)
        else:
            print(f"ok {name}: all jobs handled ({', '.join(figures)})", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0

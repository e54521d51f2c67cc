"""What every program of the suite has in common, so that all do the same work and are measured in the same way.

    python systems/NAME_.py enqueue N --mode one|gather|bulk|paced [--pad BYTES] [--first K]
    python systems/NAME_.py work N [--handler noop|sleep1ms|cpu100us|latency] [--concurrency C]

Each prints one line of JSON when it is done; `work` also prints `{"ready": …}` when it has handled its first job, and
with `--shared`, for workers that share the jobs and end by SIGTERM, `{"started": true}` before. The server is at
BENCH_URL. Only the standard library is imported here, for each system lives in a virtual environment of its own.

A job's payload is `{"n": its number, "t": a time, "to": …, "text": …}`. A worker counts what it handles and marks each
number, so that a job that is lost or handled twice is seen. Times are CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

Payload = dict[str, Any]

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
TASK = "bench"
AT_ONCE = 1000
"""Calls that are awaited together in the mode `gather`."""
EVERY = 100
"""Of so many jobs one is marked with its time, where several workers share them."""
PACE = 0.020
"""Seconds between two jobs of the mode `paced`."""


class Producer(Protocol):
    """An open connection of one system. A synchronous system blocks in both, which is how its users call it."""

    def one(self, payload: Payload) -> Awaitable[object]:
        """What the system's own call returns, with nothing around it."""
        ...

    async def bulk(self, payloads: Sequence[Payload]) -> object: ...


class System(Protocol):
    modes: tuple[str, ...]
    """Of `one`, `gather` and `bulk`, what the system can do."""

    def producer(self) -> AbstractAsyncContextManager[Producer]: ...
    def work(self, meter: Meter, concurrency: int) -> None:
        """Run a worker in this process. It need not return: the meter ends the process after the last job."""


def payload(n: int, pad: int = 0) -> Payload:
    """The small JSON of all measures, about 90 bytes; `pad` makes it larger."""
    return {"n": n, "t": 0, "to": f"user{n}@example.com", "text": "x" * pad or "hello, your order is on its way"}


# ---- working ---------------------------------------------------------------------------------------------------------


class Meter:
    """Counts what a worker handles. After the last job it reports and ends the process, or calls `done`."""

    def __init__(self, jobs: int, handler: str, *, exact: bool) -> None:
        self.jobs, self.kind = jobs, handler
        self.count = 0
        self.seen = bytearray(jobs)
        self.first = self.last = 0
        self.marks: list[int] = []
        self.latencies: list[int] = []
        self.exact = exact
        """Others share the jobs, and nobody knows which is the last: run until SIGTERM, noting times on the way."""
        self.done: Callable[[], object] = self.exit
        self._cpu = 0.0
        self._lock = threading.Lock()

    def hit(self, payload: Payload) -> None:
        """One job is handled. For one thread."""
        self.count += 1
        n = payload["n"]
        if n < self.jobs:
            self.seen[n] = 1
        if self.count == 1:
            self._begin()
        if self.count == self.jobs and not self.exact:
            self.last = time.monotonic_ns()
            self._cpu = time.process_time() - self._cpu
            self.done()

    def locked_hit(self, payload: Payload) -> None:
        """As `hit`, for workers with threads."""
        with self._lock:
            self.hit(payload)

    def exact_hit(self, payload: Payload) -> None:
        self.hit(payload)
        self.last = time.monotonic_ns()
        if self.count % EVERY == 0:
            self.marks.append(self.last)

    def _begin(self) -> None:
        self.first = time.monotonic_ns()
        self._cpu = time.process_time()
        say({"ready": self.first})

    def handler(self) -> Callable[[Payload], Coroutine[Any, Any, None]]:
        """The handler for systems with asyncio."""
        hit = self.exact_hit if self.exact else self.hit

        async def noop(payload: Payload) -> None:
            hit(payload)

        async def sleep1ms(payload: Payload) -> None:
            await asyncio.sleep(0.001)
            hit(payload)

        async def cpu100us(payload: Payload) -> None:
            burn()
            hit(payload)

        async def latency(payload: Payload) -> None:
            self.latencies.append(time.monotonic_ns() - payload["t"])
            hit(payload)

        return {"noop": noop, "sleep1ms": sleep1ms, "cpu100us": cpu100us, "latency": latency}[self.kind]

    def sync_handler(self) -> Callable[[Payload], None]:
        """The handler for systems with threads."""
        hit = self.locked_hit

        def noop(payload: Payload) -> None:
            hit(payload)

        def sleep1ms(payload: Payload) -> None:
            time.sleep(0.001)
            hit(payload)

        def cpu100us(payload: Payload) -> None:
            burn()
            hit(payload)

        def latency(payload: Payload) -> None:
            self.latencies.append(time.monotonic_ns() - payload["t"])
            hit(payload)

        return {"noop": noop, "sleep1ms": sleep1ms, "cpu100us": cpu100us, "latency": latency}[self.kind]

    def report(self) -> None:
        seconds = (self.last - self.first) / 1e9
        found: dict[str, object] = {
            "jobs": self.count,
            "distinct": sum(self.seen),
            "first": self.first,
            "last": self.last,
            "rate": (min(self.count, self.jobs) - 1) / seconds if seconds > 0 else None,
            "cpu": self._cpu / seconds if seconds > 0 else None,
            "peak_mb": peak_mb(),
        }
        if self.exact:
            found["marks"] = self.marks
        if self.kind == "latency":
            ordered = sorted(self.latencies[11:])  # without the one that said `ready` and those that warmed it up
            if ordered:
                found["p50_ms"] = ordered[len(ordered) // 2] / 1e6
                found["p99_ms"] = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6
        say(found)

    def exit(self) -> None:
        self.report()
        os._exit(0)  # no two systems stop alike, and this is not what is measured


def burn() -> None:
    """100 µs of this thread's CPU: by its own clock, so that waiting for the GIL doesn't count."""
    end = time.thread_time_ns() + 100_000
    while time.thread_time_ns() < end:
        pass


def peak_mb() -> float:
    """The largest resident set so far, in MB."""
    try:  # of Linux; ru_maxrss would include that of the process that forked us
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024


# ---- enqueueing ------------------------------------------------------------------------------------------------------


async def enqueue(system: System, mode: str, jobs: Iterable[Payload]) -> dict[str, object]:
    """The first job opens the connection and is not in the rate."""
    first, *rest = jobs
    async with system.producer() as producer:
        first["t"] = time.monotonic_ns()
        await producer.one(first)
        start = time.perf_counter()
        match mode:
            case "one":
                for each in rest:
                    await producer.one(each)
            case "gather":
                for at in range(0, len(rest), AT_ONCE):
                    await asyncio.gather(*[producer.one(each) for each in rest[at : at + AT_ONCE]])
            case "bulk":
                await producer.bulk(rest)
            case "paced":
                async for each in paced(rest):
                    await producer.one(each)
        seconds = time.perf_counter() - start
    return {"jobs": len(rest) + 1, "rate": len(rest) / seconds if rest else None}


async def paced(jobs: Iterable[Payload]) -> AsyncIterator[Payload]:
    """One job every 20 ms, with the time at which it is handed over."""
    due = time.monotonic()
    for each in jobs:
        due += PACE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        each["t"] = time.monotonic_ns()
        yield each


def say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's: it is in every environment, for all systems that run on asyncio."""
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run, on uvloop."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def main(system: System) -> None:
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    enqueuing = commands.add_parser("enqueue")
    enqueuing.add_argument("jobs", type=int)
    enqueuing.add_argument("--mode", choices=["one", "gather", "bulk", "paced"], default="one")
    enqueuing.add_argument("--pad", type=int, default=0)
    enqueuing.add_argument("--first", type=int, default=0)
    working = commands.add_parser("work")
    working.add_argument("jobs", type=int)
    working.add_argument("--handler", choices=["noop", "sleep1ms", "cpu100us", "latency"], default="noop")
    working.add_argument("--concurrency", type=int, default=100)
    working.add_argument("--shared", action="store_true", help="other workers share the jobs; ends by SIGTERM")
    options = parser.parse_args()
    if options.command == "enqueue":
        if options.mode not in (*system.modes, "paced"):
            parser.error(f"this system has no mode {options.mode}: it has {', '.join(system.modes)}")
        numbers = range(options.first, options.first + options.jobs)
        say(run(enqueue(system, options.mode, [payload(n, options.pad) for n in numbers])))
        return
    meter = Meter(options.jobs, options.handler, exact=options.shared)
    if options.shared:
        signal.signal(signal.SIGTERM, lambda *_: meter.exit())
        say({"started": True})
    system.work(meter, options.concurrency)

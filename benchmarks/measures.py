"""What is measured. Each measure fills an empty server, has a program work on it, and answers figures by name."""

from __future__ import annotations

import array
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import Failed, Line, Programs
from benchmarks.server import Server

Figures = dict[str, float]


@dataclass(frozen=True)
class System:
    name: str
    title: str
    module: str
    modes: tuple[str, ...]
    drained: int
    """Jobs of one drain: some seconds' worth on a machine of today."""
    handles: int = 2_000
    """Jobs for the handlers that sleep or burn CPU."""
    singles: int = 2_000
    """Jobs enqueued one by one."""

    @property
    def filling(self) -> str:
        """Its fastest way to enqueue."""
        return self.modes[-1]


ALL = ("one", "gather", "bulk")
BACKSTAGE = System("backstage", "Backstage", "backstage", ALL, 200_000, 20_000, 5_000)
BARE = System("bare", "bare loop", "redis.asyncio", ALL, 100_000, 0, 5_000)
PEERS = (
    System("arq", "arq", "arq", ("one", "gather"), 10_000),
    System("saq", "SAQ", "saq", ("one", "gather"), 10_000),
    System("taskiq", "Taskiq", "taskiq", ("one", "gather"), 15_000),
    System("streaq", "streaq", "streaq", ALL, 6_000),
    System("docket", "docket", "docket", ALL, 10_000),
    System("rq", "RQ", "rq", ("one", "bulk"), 1_500, 600),
    System("dramatiq", "Dramatiq", "dramatiq", ("one",), 15_000),
    System("huey", "huey", "huey", ("one",), 10_000),
    System("celery", "Celery", "celery", ("one", "bulk"), 5_000),
    System("bullmq", "BullMQ", "bullmq", ALL, 10_000),
)

WARM = 11
"""Jobs before the ones whose latency counts."""


class Bench:
    def __init__(self, server: Server, programs: Programs, *, scale: float = 1.0, seconds: float = 5.0) -> None:
        self.server, self.programs = server, programs
        self._scale = scale
        self._seconds = seconds

    def jobs(self, count: int) -> int:
        return max(200, int(count * self._scale))

    def enqueue(self, system: str, jobs: int, mode: str, *, first: int = 0, pad: int = 0) -> float:
        """Jobs per second."""
        words = ["enqueue", str(jobs), "--mode", mode, "--first", str(first), "--pad", str(pad)]
        return float(self.programs.run(system, *words)["rate"] or 0)

    def work(self, system: str, jobs: int, handler: str = "noop", *, some: bool = False, **env: str) -> Line:
        """A worker that handles `jobs` and ends; all that wait, or `some` of them."""
        found = self.programs.run(system, "work", str(jobs), "--handler", handler, **env)
        if not some and not found["jobs"] == found["distinct"] == jobs:
            raise Failed(f"{system} handled {found['jobs']} jobs, {found['distinct']} different ones, of {jobs}")
        return found

    # ---- of every system ---------------------------------------------------------------------------------------------

    def throughput(self, system: System) -> Figures:
        """Enqueue in every way there is; then drain what the last and fastest one left."""
        found: Figures = {}
        singles, drained = self.jobs(system.singles), self.jobs(system.drained)
        for mode in system.modes:
            self.server.flush()
            last = mode == system.filling
            count = drained if last else singles if mode == "one" else max(singles, drained // 4)
            found[mode] = self.enqueue(system.name, count, mode)
        line = self.work(system.name, drained)
        self._nothing_left(system)
        found |= {"drain": line["rate"], "drain_mb": line["peak_mb"]}
        return found

    def handlers(self, system: System) -> Figures:
        found: Figures = {}
        for handler in ("sleep1ms", "cpu100us"):
            self.server.flush()
            jobs = self.jobs(system.handles)
            self.enqueue(system.name, jobs, system.filling)
            found[handler] = self.work(system.name, jobs, handler)["rate"]
        return found

    def latency(self, system: System) -> Figures:
        """From the moment an enqueue is called in one process to the start of the handler in an idle other one."""
        jobs = WARM + max(10, int(20 * self._seconds))
        self.server.flush()
        self.enqueue(system.name, 1, "one")
        worker = self.programs.start(system.name, "work", str(jobs), "--handler", "latency")
        try:
            worker.line("ready")
            time.sleep(min(1.0, self._seconds / 5))
            self.enqueue(system.name, jobs - 1, "paced", first=1)
            line = worker.result()
        finally:
            worker.kill()
        return {"p50_ms": line["p50_ms"], "p99_ms": line["p99_ms"]}

    def idle(self, system: System) -> Figures:
        """A worker between two jobs, some seconds apart."""
        self.server.flush()
        self.enqueue(system.name, 1, "one")
        worker = self.programs.start(system.name, "work", "2")
        try:
            worker.line("ready")
            time.sleep(self._seconds)
            self.enqueue(system.name, 1, "one", first=1)
            line = worker.result()
        finally:
            worker.kill()
        seconds = self.programs.import_seconds(system.name, system.module)
        return {"idle_cpu": line["cpu"] * 100, "idle_mb": line["peak_mb"], "import_ms": seconds * 1000}

    # ---- of the server alone -----------------------------------------------------------------------------------------

    def ceiling(self) -> Figures:
        """The C driver: the same commands, at next to no cost of its own."""
        self.server.flush()
        jobs = self.jobs(BACKSTAGE.drained)
        found = {
            "one": self.programs.ceiling("one", str(self.jobs(BACKSTAGE.singles)))["rate"],
            "bulk": 0.0,
            "drain": 0.0,
        }
        self.server.flush()
        found["bulk"] = self.programs.ceiling("add", str(jobs))["rate"]
        line = self.programs.ceiling("drain", str(jobs))
        if line["jobs"] != jobs:
            raise Failed(f"the ceiling handled {line['jobs']} of {jobs} jobs")
        found["drain"] = line["rate"]
        return found

    # ---- of Backstage alone ------------------------------------------------------------------------------------------

    def waiting(self, sizes: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)) -> Figures:
        """The rate of at most 100,000 jobs, while so many wait."""
        found: Figures = {}
        for waiting in sizes:
            count = self.jobs(waiting)
            worked = min(count, self.jobs(100_000))
            self.server.flush()
            self.enqueue("backstage", count, "bulk")
            line = self.work("backstage", worked, some=worked < count)
            found[f"waiting_{waiting}"] = line["rate"]
            if waiting == 100_000:
                found["waiting_mb"] = line["peak_mb"]
        return found

    def queues(self, counts: Sequence[int] = (1, 3, 20)) -> Figures:
        """The jobs in one queue, with empty ones around it."""
        found: Figures = {}
        for queues in counts:
            jobs = self.jobs(100_000)
            self.server.flush()
            self.enqueue("backstage", jobs, "bulk")
            found[f"queues_{queues}"] = self.work("backstage", jobs, BENCH_QUEUES=str(queues))["rate"]
        return found

    def payloads(
        self, sizes: Sequence[tuple[int, int]] = ((100, 100_000), (10_000, 20_000), (100_000, 2_000))
    ) -> Figures:
        found: Figures = {}
        for size, jobs in sizes:
            count = self.jobs(jobs)
            self.server.flush()
            found[f"bulk_{size}_bytes"] = self.enqueue("backstage", count, "bulk", pad=size)
            found[f"drain_{size}_bytes"] = self.work("backstage", count)["rate"]
        return found

    def workers(self) -> Figures:
        """Each with the same jobs, over the time in which all of them run."""
        found: Figures = {}
        for workers in (1, 2):
            jobs = self.jobs(400_000)
            self.server.flush()
            self.enqueue("backstage", jobs, "bulk")
            started = [self.programs.start("backstage", "work", str(jobs), "--shared") for _ in range(workers)]
            try:
                for each in started:
                    each.line("started")
                self._until(lambda: self.server.redis.xlen("backstage:default") == 0, "the workers share the jobs")
                for each in started:
                    each.terminate()
                lines = [each.result() for each in started]
            finally:
                for each in started:
                    each.kill()
            total, distinct = sum(line["jobs"] for line in lines), sum(line["distinct"] for line in lines)
            if not total == distinct == jobs:
                raise Failed(f"{workers} workers handled {total} jobs, {distinct} different ones, of {jobs}")
            if together := _together([line["marks"] for line in lines]):
                found[f"workers_{workers}"] = together
        return found

    def flood(self) -> Figures:
        """One urgent job comes while lower ones run, then 1,000 more: how many lower ones start from the moment of the
        first call to the start of its job, and once all urgent ones are there until the last of them starts."""
        lower, urgent = self.jobs(600_000), self.jobs(1_000)
        self.server.flush()
        self.enqueue("backstage", lower, "bulk")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "starts"
            worker = self.programs.start("shape", "flood", str(lower + 1), str(urgent + 1), str(out))
            try:
                worker.line("ready")
                call = self.programs.run("shape", "urge", str(urgent))
                worker.result()
            finally:
                worker.kill()
            starts = {kind: array.array("q", out.with_suffix(f".{kind}").read_bytes()) for kind in ("lower", "urgent")}
        first, last = starts["urgent"][0], starts["urgent"][-1]
        if starts["lower"][-1] < last:
            return {}  # the lower ones had ended too soon
        return {
            "flood_first": float(sum(call["began"] < start < first for start in starts["lower"])),
            "flood_last": float(sum(call["ended"] < start < last for start in starts["lower"])),
        }

    def hoard(self) -> Figures:
        """Short jobs, then some of 3 s: what the worker holds 0.3 s after the first of these began, beyond the 100 that
        it runs."""
        short = self.jobs(50_000)
        self.server.flush()
        self.enqueue("backstage", short + 5_000, "bulk")
        worker = self.programs.start("shape", "hoard", str(short))
        try:
            worker.line("long")
            time.sleep(0.3)
            pending = self.server.redis.xpending("backstage:default", "backstage-workers")
            worker.terminate()
        finally:
            worker.kill()
        held = sum(each["pending"] for each in pending["consumers"] if each["name"] != "~released")
        return {"hoarded": float(held - 100)}

    def _nothing_left(self, system: System) -> None:
        """Of ours: handled is also settled, once the worker has ended."""
        if system.name == "backstage" and (left := self.server.redis.xlen("backstage:default")):
            raise Failed(f"backstage left {left} jobs in the stream that it had handled")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"in vain for 120 s: {what}")
            time.sleep(0.02)


def _together(marks: list[list[int]]) -> float:
    """Jobs per second while all of them worked, by the times of every 100th job of each; 0 if they never did."""
    if not all(marks):
        return 0.0
    begin, end = max(each[0] for each in marks), min(each[-1] for each in marks)
    done = sum(100 * sum(begin < mark <= end for mark in each) for each in marks)
    return done / ((end - begin) / 1e9) if end > begin else 0.0

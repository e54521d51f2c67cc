"""`python -m soak`: puts a mixed load on two worker processes and a server, and watches whether anything grows.

Ends with 0 where every figure ended where it began and every job came to its end, else with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from pathlib import Path

from redis.asyncio import Redis

from backstage import Broadcast, Client, Inspector, Job
from soak.crew import counts, facts, worker
from soak.figures import HEAD, Series, chart
from support.process import Process
from support.server import Server
from support.waiting import wait_until

MIX = {
    "plain": 60, "slow": 10, "thread": 10, "chain": 10, "fails.once": 10, "dies": 5, "times.out": 2, "delayed": 20,
    "dedupe": 10,
}  # fmt: skip
"""Jobs a second."""


class Soak:
    """One run: the load, the samples, and what is left afterwards."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.seconds = server, seconds
        self.sent: Counter[str] = Counter()
        self.begun = time.monotonic()
        self.series = [
            *(Series(f"{name}: memory", "MB", 0.05, 2.0) for name in ("worker 1", "worker 2")),
            *(Series(f"{name}: open files", "", 0.05, 2.0) for name in ("worker 1", "worker 2")),
            *(Series(f"{name}: asyncio tasks", "", 0.2, 5.0) for name in ("worker 1", "worker 2")),
            *(Series(f"{name}: threads", "", 0.1, 2.0) for name in ("worker 1", "worker 2")),
            Series("server: memory", "MB", 0.05, 0.5),
            Series("server: connections", "", 0.05, 1.0),
            Series("server: keys", "", 0.05, 20.0),
            Series("server: consumers", "", 0.0, 0.5),
            Series("jobs that wait or run", "", 0.5, 50.0),
        ]

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    async def produce(self, client: Client) -> None:
        """The mix, a batch ten times a second, and a message to all each second."""
        broadcast, beat = Broadcast(client=client), 0
        while self.elapsed < self.seconds:
            jobs = [job for name, rate in MIX.items() for job in self._jobs(name, rate, beat)]
            if jobs:
                ids = await client.enqueue_many(jobs)
                self.sent.update(job.task for job, id in zip(jobs, ids, strict=True) if id is not None)
            if beat % 10 == 0:
                await broadcast.send("news", beat)
                self.sent["news"] += 1
            beat += 1
            await asyncio.sleep(max(0.0, self.begun + beat / 10 - time.monotonic()))

    def _jobs(self, name: str, rate: int, beat: int) -> list[Job]:
        many = rate * (beat + 1) // 10 - rate * beat // 10
        match name:
            case "plain":
                return [Job("plain", "x" * 200, priority=("urgent", "default", "low")[n % 3]) for n in range(many)]
            case "slow":
                return [Job("slow", 0.2) for _ in range(many)]
            case "delayed":
                return [Job("plain", "delayed", delay=100 + 97 * n) for n in range(many)]
            case "dedupe":
                return [Job("plain", "once", dedupe={"key": f"k{beat // 5}", "ttl": 5_000}) for _ in range(many)]
            case _:
                return [Job(name, beat) for _ in range(many)]

    async def watch(self, processes: list[Process], redis: Redis, client: Client) -> None:
        """A sample a second; what died is purged each ten seconds, as an operator would do now and then."""
        inspector, next_at = Inspector(client), 0.0
        while self.elapsed < self.seconds:
            await self._sample(processes, redis, inspector)
            if int(self.elapsed) % 10 == 0:
                self.sent["purged"] += await inspector.purge("default")
            if self.elapsed >= next_at:
                shown = ", ".join(f"{each.name} {each.points[-1][1]:,.1f}" for each in self.series if each.points)
                print(f"{self.elapsed:6.0f} s  {shown}", flush=True)
                next_at += max(10.0, self.seconds / 30)
            await asyncio.sleep(1 - time.monotonic() % 1)

    async def _sample(self, processes: list[Process], redis: Redis, inspector: Inspector) -> None:
        told = [facts(process) for process in processes]
        queues, info = await inspector.queues(), await redis.info()
        lapsing = [key async for key in redis.scan_iter(match="backstage:stats:*", count=1_000)]
        consumers = [
            each["name"]
            for queue in ("urgent", "default", "low")
            for each in await redis.xinfo_consumers(f"backstage:{queue}", "backstage-workers")
        ]
        values = {
            "server: memory": info["used_memory"] / 1e6,
            "server: connections": info["connected_clients"],
            "server: keys": await redis.dbsize() - len(lapsing),  # counters of a minute stay for two hours
            "server: consumers": len([name for name in consumers if name != "~released"]),
            "jobs that wait or run": queues.waiting + queues.running + queues.scheduled,
        }
        for name, found in zip(("worker 1", "worker 2"), told, strict=True):
            if found is not None:
                values |= {
                    f"{name}: memory": found.memory / 1e6,
                    f"{name}: open files": found.files,
                    f"{name}: asyncio tasks": found.tasks,
                    f"{name}: threads": found.threads,
                }
        for series in self.series:
            if series.name in values:
                series.add(self.elapsed, float(values[series.name]))

    async def end(self, processes: list[Process], redis: Redis, client: Client) -> list[str]:
        """Let all come to its end, stop the workers; what is wrong with what they did and left."""
        inspector = Inspector(client)
        await wait_until(lambda: _drained(inspector), timeout=60, message="everything drains")
        expected = self.sent["plain"] + 2 * self.sent["chain"]
        await wait_until(lambda: sum(counts(p)["plain"] for p in processes) >= expected, timeout=10)
        done: Counter[str] = sum((counts(process) for process in processes), Counter())
        wrong = [
            f"{name}: {done[name]} done of {many}"
            for name, many in {**{name: self.sent[name] for name in MIX}, "plain": expected}.items()
            if name not in ("delayed", "dedupe") and done[name] != many
        ]
        minutes = int(self.seconds // 60)
        if not minutes <= done["tick"] <= minutes + 1:
            wrong.append(f"tick: {done['tick']} slots in {minutes} minutes")
        if done["news"] != 2 * self.sent["news"]:
            wrong.append(f"news: {done['news']} heard by two workers, {self.sent['news']} sent")
        dead = self.sent["purged"] + (await inspector.queues()).dead
        if dead != self.sent["dies"]:
            wrong.append(f"dies: {dead} in the dead letter of {self.sent['dies']}")
        for process in processes:
            process.signal(15)
        for process in processes:
            status = await process.ended(20)
            if status:
                wrong.append(f"a worker ended with {status}")
        for queue in ("urgent", "default", "low"):
            left = await redis.xinfo_consumers(f"backstage:{queue}", "backstage-workers")
            wrong += [f"a consumer was left in {queue}: {each['name']}" for each in left if each["name"] != "~released"]
            if await redis.xlen(f"backstage:{queue}"):
                wrong.append(f"entries were left in {queue}")
        return wrong


async def _drained(inspector: Inspector) -> bool:
    queues = await inspector.queues()
    return queues.waiting + queues.running + queues.scheduled == 0


async def run(minutes: float, path: Path | None) -> int:
    with Server() as server:
        async with Client(url=server.url) as client, Redis.from_url(server.url, decode_responses=True) as redis:
            with worker(server.url, "one") as first, worker(server.url, "two") as second:
                processes = [first, second]
                for process in processes:
                    await process.consuming()
                soak = Soak(server, minutes * 60)
                await asyncio.gather(soak.produce(client), soak.watch(processes, redis, client))
                wrong = await soak.end(processes, redis, client)
    jobs = sum(soak.sent[name] for name in MIX)
    print(f"\n{jobs:,} jobs in {minutes:g} minutes; judged is what came after the settling\n\n{HEAD}")
    for series in soak.series:
        print(series.row())
    for line in wrong:
        print(f"WRONG {line}")
    if path is not None:
        path.write_text(
            chart(soak.series, f"Soak: {minutes:g} minutes, {sum(MIX.values())} jobs a second, two workers")
        )
        print(f"\nchart: {path}")
    return 1 if wrong or not all(series.level for series in soak.series) else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--chart", type=Path, metavar="soak.svg", help="where to write the figures as an SVG chart")
    given = parser.parse_args()
    sys.exit(asyncio.run(run(given.minutes, given.chart)))


if __name__ == "__main__":
    main()

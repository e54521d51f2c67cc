"""Delayed jobs: never early, hardly late, and equal ones are still two."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from scene import Keyspace, Settings

from backstage import Client, Job, Worker
from support.waiting import wait_until


async def test_delayed_jobs_are_never_early_and_less_than_a_second_late(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """From one millisecond to over a second, enqueued alone, in bulk, and while nothing else happens."""
    begun: dict[int, int] = {}
    early_or_late: list[int] = []
    worker = Worker(**settings)

    @worker.on("delayed")
    async def delayed(wanted: list[int]) -> None:
        key, delay = wanted
        early_or_late.append(int(time.time() * 1000) - begun[key] - delay)

    delays = [1, 7, 50, 120, 300, 301, 555, 800, 1100, 1300]
    async with worker.running():
        for at, delay in enumerate(delays):
            begun[at] = int(time.time() * 1000)
            await client.enqueue("delayed", [at, delay], delay=delay)
        begun[100] = int(time.time() * 1000)
        await client.enqueue_many([Job("delayed", [100, d], delay=d) for d in range(200, 1200, 5)])
        await wait_until(lambda: len(early_or_late) == len(delays) + 200)
        await wait_until(keyspace.settled)
    assert min(early_or_late) >= 0
    assert max(early_or_late) < 1_000


async def test_a_delayed_job_is_picked_up_in_time_by_a_worker_that_was_idle_for_long(
    settings: Settings, client: Client
) -> None:
    """A promoter that sleeps, for nothing waits, is woken or wakes in time."""
    started: list[float] = []
    worker = Worker(**settings)

    @worker.on("delayed")
    async def delayed() -> None:
        started.append(time.monotonic())

    async with worker.running():
        idle = time.monotonic()
        await wait_until(lambda: time.monotonic() - idle > 1.2)
        asked = time.monotonic()
        await client.enqueue("delayed", delay=100)
        await wait_until(lambda: started)
    assert 0.1 <= started[0] - asked < 1.1


async def test_identical_delayed_jobs_of_one_millisecond_both_run(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """The id keeps two equal jobs apart, from one call or from several."""
    runs: Counter[str] = Counter()
    worker = Worker(**settings)

    @worker.on("same")
    async def same(text: str) -> None:
        runs[text] += 1

    await client.enqueue_many([Job("same", "x", delay=50) for _ in range(10)])
    await asyncio.gather(*(client.enqueue("same", "y", delay=50) for _ in range(10)))
    async with worker.running():
        await wait_until(lambda: runs.total() == 20)
        await wait_until(keyspace.settled)
    assert runs == {"x": 10, "y": 10}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("many", [100_000, pytest.param(1_000_000, marks=pytest.mark.chaos)])
async def test_a_flood_of_jobs_due_at_once_holds_up_nobody(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis, many: int
) -> None:
    """They are promoted in batches: urgent jobs of the meantime are done within a second; what is due later follows."""
    worker = Worker(**(settings | {"concurrency": 50}))
    ran, late = Counter[str](), list[float]()

    @worker.on("flood")
    async def flood(n: int) -> None:
        ran["flood"] += 1

    @worker.on("urgent")
    async def urgent(at: float) -> None:
        late.append(time.time() - at)

    @worker.on("behind")
    async def behind() -> None:
        ran["behind"] += 1

    for first in range(0, many, 10_000):
        jobs = [Job("flood", n, delay=1, queue="low") for n in range(first, first + 10_000)]
        await client.enqueue_many(jobs)
    await client.enqueue("behind", queue="urgent", delay=1)
    assert await redis.zcard(keyspace.key("scheduled")) == many + 1
    async with worker.running():
        while await redis.zcard(keyspace.key("scheduled")):
            before = len(late)
            await client.enqueue("urgent", time.time(), queue="urgent")
            await wait_until(lambda before=before: len(late) > before)
        await wait_until(lambda: ran["behind"])
        await wait_until(lambda: ran["flood"] >= 5_000, timeout=20)
    assert ran["flood"] + await keyspace.waiting("low") >= many, "what did not run is still there"
    assert max(late) < 1


async def test_far_moments_stand_where_they_belong(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """The year 9999 waits, exactly; the year 1 and a score of minus infinity are now; neither holds up the others."""
    worker, ran = Worker(**settings), list[str]()

    @worker.on("note")
    async def note(what: str) -> None:
        ran.append(what)

    far = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    await client.schedule("note", "far", far)
    await client.schedule("note", "past", datetime(1, 1, 1, tzinfo=UTC))
    member = f'{{"taskName":"note","payload":"\\"minus\\"","streamKey":"{keyspace.key("default")}"}}'
    await redis.zadd(keyspace.key("scheduled"), {member: "-inf", member.replace("minus", "plus"): "+inf"})
    async with worker.running():
        await client.enqueue("note", "soon", delay=20)
        await wait_until(lambda: sorted(ran) == ["minus", "past", "soon"])
    ((_, due), (_, never)) = await redis.zrange(keyspace.key("scheduled"), 0, -1, withscores=True)
    assert abs(due - far.timestamp() * 1000) < 5_000
    assert never == float("inf")

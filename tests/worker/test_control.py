"""The control channel: a word to those who would otherwise look only now and then."""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from backstage import Client, Worker
from support.waiting import wait_until


async def listened(redis: Redis, prefix: str, workers: int = 1) -> None:
    await wait_until(lambda: heard(redis, prefix, workers), message="nobody listens")


async def heard(redis: Redis, prefix: str, workers: int) -> bool:
    ((_, listeners),) = await redis.pubsub_numsub(f"{prefix}:control")
    return int(listeners) == workers


async def test_a_delayed_job_of_another_process_is_run_on_time(redis: Redis, url: str, prefix: str) -> None:
    """A worker that waits for nothing sleeps for a second; a job that is due before wakes it."""
    worker, ran = Worker(url=url, prefix=prefix), asyncio.Event()

    @worker.on("later")
    async def later() -> None:
        ran.set()

    async with Client(url=url, prefix=prefix) as client, worker.running():
        await listened(redis, prefix)
        for _ in range(5):
            begun = time.monotonic()
            await client.enqueue("later", delay=50)
            await ran.wait()
            ran.clear()
            # The server counts whole milliseconds.
            assert 0.048 <= time.monotonic() - begun < 0.5


async def test_what_a_worker_gives_back_is_taken_at_once(redis: Redis, url: str, prefix: str) -> None:
    """A stopping worker's job starts on another one as soon as it is given back, before anybody would have looked."""
    started: list[tuple[str, float]] = []

    def worker(name: str, **options: int) -> Worker:
        made = Worker(url=url, prefix=prefix, concurrency=1, worker_id=name, **options)

        @made.on("long")
        async def long() -> None:
            started.append((name, time.monotonic()))
            await asyncio.sleep(30 if len(started) == 1 else 0)

        return made

    first, second = worker("first", grace_period=0), worker("second")
    async with Client(url=url, prefix=prefix) as client, first.running():
        await client.enqueue("long")
        await wait_until(lambda: len(started) == 1)
        async with second.running():
            await listened(redis, prefix, 2)
            begun = time.monotonic()
            await first.stop()
            await wait_until(lambda: len(started) == 2)
            assert started[1][0] == "second"
            assert started[1][1] - begun < 0.4


async def test_a_forbidden_or_broken_channel_costs_no_job(redis: Redis, url: str, prefix: str) -> None:
    """Whoever waits looks by itself, too: with the listener's connection killed, a delayed job still runs."""
    worker, ran = Worker(url=url, prefix=prefix), asyncio.Event()

    @worker.on("later")
    async def later() -> None:
        ran.set()

    async with Client(url=url, prefix=prefix) as client, worker.running():
        await listened(redis, prefix)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await client.enqueue("later", delay=20)
        await asyncio.wait_for(ran.wait(), 3)
        await listened(redis, prefix)

"""Queues: streams of one's own, with settings for all their jobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import DEFAULT_QUEUES, Client, ConfigError, InvalidName, Queue, Run, TaskRegistry, Worker
from support.waiting import wait_until


async def test_a_queue_is_a_stream(client: Client, redis: Redis, prefix: str) -> None:
    """A job goes to the stream of its queue's name; a Queue and its name are the same there."""
    await client.enqueue("t", queue="emails")
    await client.enqueue("t", queue=Queue("emails"))
    assert await redis.xlen(f"{prefix}:emails") == 2
    assert await redis.keys(f"{prefix}:default*") == []


async def test_queue_beats_priority(client: Client, redis: Redis, prefix: str) -> None:
    """Where both are given, the queue counts."""
    await client.enqueue("t", queue="emails", priority="urgent")
    assert await redis.xlen(f"{prefix}:emails") == 1


async def test_a_worker_serves_its_queues_alone(url: str, prefix: str, client: Client, redis: Redis) -> None:
    """What is in other queues is left to other workers."""
    handled: list[str] = []
    worker = Worker(url=url, prefix=prefix, queues=["emails"])
    worker.on("t", handled.append)
    await client.enqueue("t", "default")
    await client.enqueue("t", "emails", queue="emails")
    async with worker.running():
        await wait_until(lambda: handled == ["emails"])
    assert await redis.xlen(f"{prefix}:default") == 1


async def test_besides_the_default_ones(url: str, prefix: str, client: Client) -> None:
    """`[*DEFAULT_QUEUES, "emails"]` serves one more."""
    handled: list[str] = []
    worker = Worker(url=url, prefix=prefix, queues=[*DEFAULT_QUEUES, "emails"])
    worker.on("t", handled.append)
    for queue in ("emails", "low", "default", "urgent"):
        await client.enqueue("t", queue, queue=queue)
    async with worker.running():
        await wait_until(lambda: sorted(handled) == ["default", "emails", "low", "urgent"])


async def test_a_worker_serves_the_queues_of_its_tasks_too(worker: Worker) -> None:
    """A task with a queue of its own needs no further setting: its jobs go there and are taken from there."""
    seen: list[str | None] = []

    @worker.on("report", queue="reports")
    async def report(run: Run) -> None:
        seen.append(run.job.queue)

    async with worker.running():
        await report.enqueue()
        await wait_until(lambda: seen == ["reports"])


async def test_queue_of_a_registry(url: str, prefix: str) -> None:
    """A registry's queue is that of all its tasks, settings included."""
    tasks = TaskRegistry(queue=Queue("payments", priority=0, max_retries=0))
    seen: list[str | None] = []

    @tasks.on("pay")
    async def pay(run: Run) -> None:
        seen.append(run.job.queue)
        raise ValueError

    worker = Worker(url=url, prefix=prefix, tasks=[tasks])
    async with worker.running():
        await pay.enqueue()
        await wait_until(lambda: worker.redis.xlen(f"{prefix}:payments:dead-letter"))
    assert seen == ["payments"]


async def test_settings_of_a_queue(url: str, prefix: str, client: Client, redis: Redis) -> None:
    """`max_retries` and the limits of a queue hold for every job in it that has none of its own, nor its task."""
    runs: list[int] = []
    impatient = Queue("impatient", soft_timeout=timedelta(milliseconds=20), hard_timeout=5_000, max_retries=1)
    worker = Worker(url=url, prefix=prefix, queues=[impatient], backoff={"type": "fixed", "delay": 0})

    @worker.on("slow")
    async def slow(run: Run) -> None:
        runs.append(run.attempt)
        await asyncio.sleep(10)

    await client.enqueue("slow", queue="impatient")
    async with worker.running():
        await wait_until(lambda: redis.xlen(f"{prefix}:impatient:dead-letter"))
    assert runs == [1, 2]


async def test_the_most_specific_setting_wins(url: str, prefix: str, client: Client) -> None:
    """The job's own, else the task's, else the queue's, else the worker's."""
    runs: list[tuple[str, int]] = []
    worker = Worker(
        url=url,
        prefix=prefix,
        queues=[Queue("q", max_retries=2), "plain"],
        attempts=4,
        backoff={"type": "fixed", "delay": 0},
    )

    @worker.on("plain")
    async def plain(name: str, run: Run) -> None:
        runs.append((name, run.attempt))
        raise ValueError

    @worker.on("own", attempts=2)
    async def own(name: str, run: Run) -> None:
        runs.append((name, run.attempt))
        raise ValueError

    await client.enqueue("own", "job", queue="q", attempts=1)
    await client.enqueue("own", "task", queue="q")
    await client.enqueue("plain", "queue", queue="q")
    await client.enqueue("plain", "worker", queue="plain")
    async with worker.running():
        await wait_until(lambda: len(runs) == 1 + 2 + 3 + 4)
    assert sorted(runs) == sorted(
        (name, attempt)
        for name, attempts in (("job", 1), ("task", 2), ("queue", 3), ("worker", 4))
        for attempt in range(1, attempts + 1)
    )


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Queue("two words"), InvalidName, "queue name 'two words': must be 1 to 128"),
        (lambda: Queue("a:b"), InvalidName, "queue name 'a:b'"),
        (lambda: Queue(""), InvalidName, "queue name ''"),
        (lambda: Queue("retries"), InvalidName, "keeps a key of its own"),
        (lambda: Queue("q", priority=1.5), ConfigError, "a whole number"),  # type: ignore[arg-type]
        (lambda: Queue("q", max_retries=-1), ConfigError, "0 or more"),
        (lambda: Queue("q", soft_timeout=10, hard_timeout=10), ConfigError, "must be longer than soft_timeout"),
        (lambda: Queue("q", hard_timeout=0), ConfigError, "at least 1 ms"),
        (lambda: Worker(queues="emails"), ConfigError, "must be a list of queues or their names"),
        (lambda: Worker(queues=[Queue("q"), Queue("q", priority=1)]), ConfigError, "given twice"),
    ],
)
def test_queues_that_cannot_be(make: Any, error: type[Exception], says: str) -> None:
    """A queue is checked when it is built."""
    with pytest.raises(error, match=says):
        make()


async def test_a_finished_job_is_gone(url: str, prefix: str, client: Client, redis: Redis) -> None:
    """A finished job is deleted, so that streams don't grow; `delete_on_ack=False` keeps it, acknowledged."""
    handled: list[str] = []
    for queue, keep in (("a", False), ("b", True)):
        worker = Worker(url=url, prefix=prefix, queues=[queue], delete_on_ack=not keep)
        worker.on("t", handled.append)
        await client.enqueue("t", queue, queue=queue)
        async with worker.running():
            await wait_until(lambda queue=queue: queue in handled)
    assert await redis.xlen(f"{prefix}:a") == 0
    assert await redis.xlen(f"{prefix}:b") == 1
    assert (await redis.xpending(f"{prefix}:b", "backstage-workers"))["pending"] == 0

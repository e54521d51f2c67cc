"""Retries: a run that fails is tried again, later and later."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Backoff, Client, Inspector, Retry, Run, Worker, WorkerConfig
from support.waiting import wait_until

AT_ONCE = Backoff("fixed", delay=0)


async def test_until_it_succeeds(worker: Worker, redis: Redis, prefix: str) -> None:
    """Raising anything is a failed run; the job is run again, and `run.attempt` tells which run it is."""
    attempts: list[int] = []

    @worker.on("shaky", backoff=AT_ONCE)
    async def shaky(run: Run) -> None:
        attempts.append(run.attempt)
        if run.attempt < 3:
            raise ConnectionError("not yet")

    async with worker.running():
        await shaky.enqueue()
        await wait_until(lambda: attempts == [1, 2, 3])
    assert not await redis.exists(f"{prefix}:retries", f"{prefix}:default:dead-letter")


async def test_attempts(worker: Worker, redis: Redis, prefix: str) -> None:
    """`attempts` is the number of all runs: after the last one the job goes to the dead letter."""
    attempts: list[int] = []

    @worker.on("doomed", attempts=3, backoff=AT_ONCE)
    async def doomed(run: Run) -> None:
        attempts.append(run.attempt)
        raise ValueError("never")

    async with worker.running():
        await doomed.enqueue()
        await wait_until(lambda: redis.xlen(f"{prefix}:default:dead-letter"))
    assert attempts == [1, 2, 3]


@pytest.mark.parametrize(("options", "runs"), [({"max_retries": 1}, 2), ({"max_retries": 0}, 1), ({"attempts": 1}, 1)])
async def test_max_retries(worker: Worker, redis: Redis, prefix: str, options: Any, runs: int) -> None:
    """`max_retries` says the same, less the first run."""
    attempts: list[int] = []

    @worker.on("doomed", backoff=AT_ONCE, **options)
    async def doomed(run: Run) -> None:
        attempts.append(run.attempt)
        raise ValueError

    async with worker.running():
        await doomed.enqueue()
        await wait_until(lambda: redis.xlen(f"{prefix}:default:dead-letter"))
    assert attempts == [*range(1, runs + 1)]


async def test_by_default(url: str, prefix: str, redis: Redis) -> None:
    """Without a word about it a job runs five times, and waits for 1, 2, 4, 8 s between, ± a fifth."""
    assert WorkerConfig().attempts == 5
    assert WorkerConfig().backoff == Backoff("exponential", delay=1_000, max_delay=60_000, jitter=0.2)
    worker = Worker(url=url, prefix=prefix)

    @worker.on("doomed")
    async def doomed() -> None:
        raise ValueError

    async with worker.running():
        before = time.time()
        await doomed.enqueue()
        ((_, due),) = await wait_until(lambda: redis.zrange(f"{prefix}:retries", 0, -1, withscores=True))
    assert 0.79 <= due / 1000 - before <= 1.4


async def test_what_the_caller_says_beats_the_task(client: Client, worker: Worker, redis: Redis, prefix: str) -> None:
    """Attempts and backoff of the job itself come first."""
    attempts: list[int] = []

    @worker.on("doomed", attempts=4, backoff=Backoff("fixed", delay=timedelta(hours=1)))
    async def doomed(run: Run) -> None:
        attempts.append(run.attempt)
        raise ValueError

    async with worker.running():
        await client.enqueue("doomed", attempts=2, backoff={"type": "fixed", "delay": 0})
        await wait_until(lambda: redis.xlen(f"{prefix}:default:dead-letter"))
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    "backoff",
    [
        Backoff("exponential", delay=30, max_delay=80),
        {"type": "exponential", "delay": 30, "maxDelay": 80},
        {"type": "exponential", "delay": timedelta(milliseconds=30), "max_delay": 80, "jitter": 0},
    ],
    ids=repr,
)
async def test_exponential_backoff(worker: Worker, backoff: Any) -> None:
    """`exponential` doubles the delay before each retry, up to `max_delay`."""
    times: list[float] = []

    @worker.on("doomed", attempts=4, backoff=backoff)
    async def doomed() -> None:
        times.append(time.monotonic())
        raise ValueError

    async with worker.running():
        await doomed.enqueue()
        await wait_until(lambda: len(times) == 4)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for waited, wanted in zip(waits, (0.030, 0.060, 0.080), strict=True):
        assert wanted <= waited + 0.002
        assert waited < wanted + 0.1


async def test_retry_by_the_handler(worker: Worker) -> None:
    """`raise Retry("…", delay=…)` is a failed run with a delay of its own."""
    times: list[float] = []

    @worker.on("polite", backoff=Backoff("fixed", delay=timedelta(hours=1)))
    async def polite(run: Run) -> None:
        times.append(time.monotonic())
        if run.attempt == 1:
            raise Retry("rate limited", delay=timedelta(milliseconds=50))

    async with worker.running():
        await polite.enqueue()
        await wait_until(lambda: len(times) == 2)
    assert 0.048 <= times[1] - times[0] < 0.2


async def test_retry_counts(worker: Worker) -> None:
    """A Retry uses up an attempt like any failure; without a delay the backoff holds."""
    runs: list[int] = []

    @worker.on("polite", attempts=2, backoff=AT_ONCE)
    async def polite(run: Run) -> None:
        runs.append(run.attempt)
        raise Retry("rate limited")

    async with worker.running():
        await polite.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert runs == [1, 2]
    assert (dead.reason, dead.error) == ("error", "Retry: rate limited")


async def test_retry_inside_a_group(worker: Worker) -> None:
    """Inside an ExceptionGroup, as an `asyncio.TaskGroup` raises it, a Retry counts as well."""
    times: list[float] = []

    async def call() -> None:
        raise Retry("rate limited", delay=1)

    @worker.on("grouped", backoff=Backoff("fixed", delay=timedelta(hours=1)))
    async def grouped(run: Run) -> None:
        times.append(time.monotonic())
        if run.attempt == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(call())

    async with worker.running():
        await grouped.enqueue()
        await wait_until(lambda: len(times) == 2)


class Odd(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "error",
    [SystemExit, KeyboardInterrupt, asyncio.CancelledError, Odd, StopIteration, TimeoutError, GeneratorExit],
    ids=lambda error: error.__name__,
)
@pytest.mark.parametrize("kind", ["async", "def"])
async def test_whatever_a_handler_raises(worker: Worker, kind: str, error: Callable[[], BaseException]) -> None:
    """No exception of a handler harms the worker: it is a failed run like any other, and the next job runs."""
    seen: list[int] = []

    async def handle(run: Run) -> None:
        if run.attempt == 1:
            raise error()
        seen.append(run.attempt)

    def handle_in_thread(run: Run) -> None:
        if run.attempt == 1:
            raise error()
        seen.append(run.attempt)

    worker.on("odd", handle if kind == "async" else handle_in_thread, backoff=AT_ONCE)  # type: ignore[call-overload]
    worker.on("other", seen.append)
    async with worker.running():
        await worker.enqueue("odd")
        await wait_until(lambda: seen == [2])
        await worker.enqueue("other", 3)
        await wait_until(lambda: seen == [2, 3])


async def test_a_retry_is_the_same_job(client: Client, worker: Worker) -> None:
    """Id, payload, queue and time of enqueueing are those of the first run."""
    runs: list[Run] = []

    @worker.on("shaky", backoff=AT_ONCE)
    async def shaky(payload: dict[str, float], run: Run) -> None:
        runs.append(run)
        if run.attempt == 1:
            raise ValueError

    async with worker.running():
        job_id = await client.enqueue("shaky", {"amount": 0.1}, priority="low", timeout=60_000)
        await wait_until(lambda: len(runs) == 2)
    first, second = (run.job for run in runs)
    assert first.id == second.id == job_id
    assert first.payload == second.payload == {"amount": 0.1}
    assert (first.queue, first.enqueued_at, first.timeout) == (second.queue, second.enqueued_at, second.timeout)
    assert (runs[1].attempt, runs[1].deliveries) == (2, 1)


async def test_a_task_that_nobody_knows(client: Client, worker: Worker, redis: Redis, prefix: str) -> None:
    """A job without a handler here waits for a worker that has one, and uses up no attempt."""
    worker.on("known", lambda payload: None)
    async with worker.running():
        job_id = await client.enqueue("new.feature", 1, attempts=1)
        await wait_until(lambda: redis.zcard(f"{prefix}:retries"))
    assert not await redis.exists(f"{prefix}:default:dead-letter")
    (info,) = [queue for queue in await Inspector(client).queues() if queue.name == "default"]
    assert info.scheduled == 1
    runs: list[tuple[str, int]] = []
    newer = Worker(worker.config)

    @newer.on("new.feature")
    async def handle(run: Run) -> None:
        runs.append((run.job.id, run.attempt))

    async with newer.running():
        await wait_until(lambda: runs == [(job_id, 1)])

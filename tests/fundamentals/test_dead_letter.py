"""The dead letter: where jobs go that are given up, with all that one needs to know why, and to run them again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Client, DeadJob, Discard, Inspector, Next, Run, Worker
from support.waiting import wait_until


async def dead_of(client: Client, queue: str = "default") -> DeadJob:
    """The one dead job of a queue, when it is there."""
    (dead,) = await wait_until(lambda: Inspector(client).dead(queue))
    return dead


async def test_after_the_last_attempt(worker: Worker) -> None:
    """A job that failed as often as it may is kept, with the reason, the error and the traceback of its last run."""

    @worker.on("doomed", attempts=2, backoff={"type": "fixed", "delay": 0})
    async def doomed(payload: dict[str, int], run: Run) -> None:
        raise ValueError(f"run {run.attempt} is wrong")

    async with worker.running():
        before = time.time()
        job_id = await doomed.enqueue({"n": 1})
        dead = await dead_of(worker)
    assert (dead.id, dead.task, dead.queue, dead.payload) == (job_id, "doomed", "default", '{"n":1}')
    assert (dead.reason, dead.error, dead.attempt) == ("error", "ValueError: run 2 is wrong", 2)
    assert "in doomed" in dead.traceback
    assert __file__ in dead.traceback
    assert dead.dead_at is not None
    assert abs(dead.dead_at.timestamp() - before) < 5


async def test_what_is_kept(worker: Worker, redis: Redis, prefix: str) -> None:
    """An entry of `<queue>:dead-letter` has the job's own fields, as they were, and what became of it."""

    @worker.on("doomed")
    async def doomed() -> None:
        raise Discard("no use")

    async with worker.running():
        job_id = await worker.enqueue("doomed", 1, attempts=7, timeout=60_000)
        ((_, fields),) = await wait_until(lambda: redis.xrange(f"{prefix}:default:dead-letter"))
    assert int(fields.pop("enqueuedAt")) <= int(fields.pop("deadLetteredAt"))
    assert "-" in fields.pop("originalId")
    assert fields == {
        "taskName": "doomed",
        "payload": "1",
        "jobId": job_id,
        "attempts": "7",
        "timeout": "60000",
        "deliveryCount": "1",
        "queue": "default",
        "reason": "discarded",
        "error": "no use",
    }


async def test_discard(worker: Worker) -> None:
    """`raise Discard("…")` says that no retry would help: the job is given up at once."""
    runs: list[int] = []

    @worker.on("order.cancel", attempts=9)
    async def cancel(run: Run) -> None:
        runs.append(run.attempt)
        raise Discard("the order is gone")

    async with worker.running():
        await cancel.enqueue()
        dead = await dead_of(worker)
    assert runs == [1]
    assert (dead.reason, dead.error) == ("discarded", "the order is gone")


async def test_discard_inside_a_group(worker: Worker) -> None:
    """Inside an ExceptionGroup it counts as well, and in a `def` handler."""

    async def call() -> None:
        raise Discard("in a group")

    @worker.on("grouped")
    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(call())

    @worker.on("plain", queue="other")
    def plain() -> None:
        raise Discard("in a thread")

    async with worker.running():
        await grouped.enqueue()
        await plain.enqueue()
        assert (await dead_of(worker)).error == "in a group"
        assert (await dead_of(worker, "other")).error == "in a thread"


async def test_a_payload_of_another_shape(client: Client, worker: Worker) -> None:
    """A payload that doesn't fit the handler's annotation would never fit: it is given up at its first delivery."""
    worker.on("sum", _sum)
    async with worker.running():
        await client.enqueue("sum", {"not": "a list"})
        dead = await dead_of(client)
    assert (dead.reason, dead.error) == ("invalid-payload", "ValidationError: Expected `array`, got `object`")


async def _sum(numbers: list[int]) -> None: ...


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": "1"},
        {"taskName": "sum"},
        {"taskName": "sum", "payload": "[1, 2"},
        {"taskName": "sum", "payload": ""},
        {"taskName": b"\xff", "payload": "1"},
        {"hello": "world"},
    ],
    ids=str,
)
async def test_what_never_was_a_job(worker: Worker, redis: Redis, prefix: str, fields: dict[Any, Any]) -> None:
    """An entry that can't be read goes to the dead letter, byte by byte, and the next job is run."""
    handled: list[int] = []
    worker.on("sum", _sum)
    worker.on("n", handled.append)
    await redis.xadd(f"{prefix}:default", fields)
    await worker.enqueue("n", 1)
    async with worker.running():
        dead = await dead_of(worker)
        await wait_until(lambda: handled == [1])
    assert dead.reason == "malformed"
    kept = {str(name, "utf-8", "replace"): value for name, value in dead.fields.items()}
    for name, value in fields.items():
        assert kept[name] == (value if isinstance(value, bytes) else value.encode())


async def test_each_queue_has_its_own(worker: Worker) -> None:
    """A dead job lies in the dead letter of the queue that it was in."""

    @worker.on("doomed", attempts=1)
    async def doomed() -> None:
        raise ValueError

    async with worker.running():
        await doomed.enqueue(priority="urgent")
        await doomed.enqueue(priority="low")
        assert (await dead_of(worker, "urgent")).queue == "urgent"
        assert (await dead_of(worker, "low")).queue == "low"
    assert await Inspector(worker).dead("default") == []


async def test_back_to_work(client: Client, worker: Worker) -> None:
    """`Inspector.retry` puts dead jobs back into their queues, as new as they were: same id, all attempts again."""
    broken = True
    runs: list[tuple[str, int]] = []

    @worker.on("mended", attempts=1)
    async def mended(n: int, run: Run) -> None:
        runs.append((run.job.id, run.attempt))
        if broken:
            raise ConnectionError

    async with worker.running():
        job_id = await client.enqueue(mended, 1)
        await dead_of(client)
        broken = False
        assert await Inspector(client).retry("default") == 1
        await wait_until(lambda: len(runs) == 2)
    assert runs == [(job_id, 1), (job_id, 1)]
    assert await Inspector(client).dead("default") == []


async def test_a_crash_loop(url: str, prefix: str, redis: Redis) -> None:
    """A job that was handed out `max_deliveries` times without a finish kills its workers, and is given up."""
    ran: list[int] = []
    worker = Worker(url=url, prefix=prefix, max_deliveries=2, idle_timeout=1_000, reclaimer_interval=50)
    worker.on("killer", ran.append)
    job_id = await worker.enqueue("killer", 1)
    await redis.xgroup_create(f"{prefix}:default", "backstage-workers", "0")
    ((_, ((entry_id, _),)),) = await redis.xreadgroup("backstage-workers", "dead~1", {f"{prefix}:default": ">"})
    await redis.execute_command(
        "XCLAIM", f"{prefix}:default", "backstage-workers", "dead~1", 0, entry_id, "IDLE", 60_000, "RETRYCOUNT", 2
    )
    async with worker.running():
        dead = await dead_of(worker)
    await worker.aclose()
    assert ran == []
    assert (dead.id, dead.reason) == (job_id, "crash-loop")
    assert dead.error == "2 deliveries ended without a finish"


async def test_a_long_error_is_cut(worker: Worker) -> None:
    """Error and traceback are bounded, so that a dead letter stays readable."""

    @worker.on("verbose", attempts=1)
    async def verbose() -> None:
        raise ValueError("x" * 1_000_000)

    async with worker.running():
        await verbose.enqueue()
        dead = await dead_of(worker)
    assert len(dead.error) < 2_100
    assert len(dead.traceback) < 16_100
    assert dead.error.startswith("ValueError: xxx")


async def test_what_came_next_does_not_come(worker: Worker) -> None:
    """A job that is given up has no successor."""
    handled: list[int] = []

    @worker.on("first", attempts=1)
    async def first() -> Next:
        raise ValueError

    worker.on("second", handled.append)
    async with worker.running():
        await first.enqueue()
        await dead_of(worker)
        info = await Inspector(worker).queues()
    assert (info.waiting, info.running, info.scheduled, handled) == (0, 0, 0, [])

"""Delay and schedule: jobs for later."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Client, ConfigError, Job, Run, Worker
from support.waiting import wait_until


async def test_a_delayed_job_waits(worker: Worker) -> None:
    """A job with a delay runs when that has passed: not before, and hardly later."""
    ran_at: list[float] = []

    @worker.on("t")
    async def handle() -> None:
        ran_at.append(time.time())

    async with worker.running():
        enqueued_at = time.time()
        await worker.enqueue("t", delay=timedelta(milliseconds=150))
        await wait_until(lambda: ran_at)
    assert 0.149 <= ran_at[0] - enqueued_at < 0.3


async def test_from_another_process(client: Client, worker: Worker) -> None:
    """A worker with nothing to wait for looks once a second for what others put off; a job is so much late at most."""
    ran: list[int] = []
    worker.on("n", ran.append)
    async with worker.running():
        await client.enqueue("n", 1, delay=10)
        await wait_until(lambda: ran == [1], timeout=1.5)


async def test_a_worker_wakes_for_its_own(worker: Worker) -> None:
    """What a worker itself puts off runs on time, be it one job or many: it doesn't sleep through that second."""
    ran: list[int] = []
    worker.on("n", ran.append)
    async with worker.running():
        begun = time.monotonic()
        await worker.enqueue("n", 1, delay=10)
        await wait_until(lambda: ran == [1])
        await worker.enqueue_many([Job("n", 2, delay=10)])
        await wait_until(lambda: ran == [1, 2])
    assert time.monotonic() - begun < 0.7


async def test_int_is_milliseconds(client: Client, redis: Redis, prefix: str) -> None:
    """A duration is a timedelta, or an int of milliseconds as on the wire."""
    for delay in (60_000, timedelta(minutes=1)):
        await client.enqueue("t", delay=delay)
    for _, due in await redis.zrange(f"{prefix}:scheduled", 0, -1, withscores=True):
        assert abs(due - (time.time() + 60) * 1000) < 2_000


async def test_what_waits(client: Client, redis: Redis, prefix: str) -> None:
    """A delayed job is a member of one sorted set, with all that it needs to become an entry of its stream."""
    job_id = await client.enqueue("t", {"n": 1}, delay=60_000, queue="emails", attempts=2)
    (member,) = await redis.zrange(f"{prefix}:scheduled", 0, -1)
    job = json.loads(member)
    assert time.time() * 1000 - job.pop("enqueuedAt") < 5_000
    assert job == {
        "taskName": "t",
        "payload": '{"n":1}',
        "streamKey": f"{prefix}:emails",
        "priority": "emails",
        "attempts": 2,
        "jobId": job_id,
    }


async def test_a_job_for_a_moment(worker: Worker) -> None:
    """`schedule` takes a duration or an aware datetime, in whatever time zone."""
    ran: list[int] = []
    worker.on("n", ran.append)
    async with worker.running():
        kathmandu = timezone(timedelta(hours=5, minutes=45))
        await worker.schedule("n", 1, 20)
        await worker.schedule("n", 2, timedelta(milliseconds=20))
        await worker.schedule("n", 3, datetime.now(kathmandu) + timedelta(milliseconds=20))
        await worker.schedule("n", 4, datetime.now(UTC) + timedelta(hours=1))
        await wait_until(lambda: sorted(ran) == [1, 2, 3])


async def test_a_moment_that_has_passed(worker: Worker) -> None:
    """A past moment means now, as does a delay of nothing."""
    ran: list[int] = []
    worker.on("n", ran.append)
    async with worker.running():
        await worker.schedule("n", 1, datetime.now(UTC) - timedelta(days=1))
        await worker.schedule("n", 2, 0)
        await worker.enqueue("n", 3, delay=0)
        await wait_until(lambda: sorted(ran) == [1, 2, 3])


async def test_a_delayed_job_keeps_its_id_and_options(worker: Worker) -> None:
    """The wait changes nothing about a job: id, queue and time of enqueueing stay."""
    seen: list[Run] = []

    @worker.on("t")
    async def handle(run: Run) -> None:
        seen.append(run)

    async with worker.running():
        before = datetime.now(UTC)
        job_id = await worker.enqueue("t", delay=50, priority="low", timeout=9_000)
        await wait_until(lambda: seen)
    job = seen[0].job
    assert (job.id, job.queue, job.timeout) == (job_id, "low", 9_000)
    assert job.enqueued_at is not None
    assert abs(job.enqueued_at - before) < timedelta(milliseconds=40)


async def test_two_alike_are_two(worker: Worker) -> None:
    """Equal jobs for the same millisecond all run."""
    ran: list[int] = []
    worker.on("n", ran.append)
    async with worker.running():
        when = datetime.now(UTC) + timedelta(milliseconds=40)
        for _ in range(3):
            await worker.schedule("n", 7, when)
        await wait_until(lambda: ran == [7, 7, 7])


async def test_in_order_of_time(client: Client, worker: Worker) -> None:
    """Jobs for later run in the order of their times, not in that of the calls."""
    ran: list[int] = []
    worker.on("n", ran.append)
    await client.enqueue_many([Job("n", ms, delay=ms) for ms in (90, 30, 60)])
    async with worker.running():
        await wait_until(lambda: len(ran) == 3)
    assert ran == [30, 60, 90]


async def test_many_due_at_once(client: Client, worker: Worker) -> None:
    """However many come due in one moment, all run."""
    ran: list[int] = []
    worker.on("n", ran.append)
    await client.enqueue_many(Job("n", n, delay=1) for n in range(1_500))
    async with worker.running():
        await wait_until(lambda: len(ran) == 1_500)
    assert sorted(ran) == list(range(1_500))


@pytest.mark.parametrize(
    ("when", "says"),
    [
        (datetime(2030, 1, 1), "must carry a time zone"),  # that is the point
        (1.5, "never a float"),
        (-1, "at least 0 ms"),
        ("tomorrow", "a timedelta or an int of milliseconds"),
        (None, "a timedelta or an int of milliseconds"),
    ],
)
async def test_moments_that_are_none(client: Client, when: Any, says: str) -> None:
    """A moment that can't be told is refused before anything is sent."""
    with pytest.raises(ConfigError, match=f"when=.*{says}"):
        await client.schedule("t", None, when)


async def test_when_stands_for_delay(client: Client) -> None:
    """`schedule` takes the options of `enqueue` but `delay`, for `when` says it."""
    with pytest.raises(TypeError, match="delay"):
        await client.schedule("t", None, 5, delay=5)  # type: ignore[call-arg]
    assert await client.schedule("t", None, 60_000, dedupe="once")
    assert await client.schedule("t", None, 60_000, dedupe="once") is None

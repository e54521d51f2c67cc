"""Soft and hard limits, and what becomes of the slot."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from scene import Keyspace, Settings

from backstage import Backoff, Client, Run, SoftTimeout, Worker
from support.waiting import wait_until


@pytest.fixture
def worker(settings: Settings) -> Worker:
    return Worker(**(settings | {"concurrency": 1}), attempts=2, backoff=Backoff("fixed", delay=10))


async def next_one(worker: Worker, client: Client, keyspace: Keyspace, *tasks: str) -> list[float]:
    """With one slot, runs these tasks and then `next`; when each `next` started."""
    started: list[float] = []

    @worker.on("next")
    async def following() -> None:
        started.append(time.monotonic())

    for task in tasks:
        await client.enqueue(task)
    await client.enqueue("next")
    async with worker.running():
        await wait_until(lambda: started)
        await wait_until(keyspace.settled)
    return started


async def test_a_soft_limit_that_is_caught_lets_the_handler_finish(
    worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """SoftTimeout arrives at the await where it stands; after it the handler may await, return, and is done."""
    seen: list[str] = []

    @worker.on("caught", soft_timeout=50)
    async def caught() -> None:
        try:
            await asyncio.sleep(10)
        except SoftTimeout as exc:
            seen.append(str(exc))
            await asyncio.sleep(0.01)
            seen.append("tidied up")

    await next_one(worker, client, keyspace, "caught")
    assert "50 ms" in seen[0]
    assert seen[1:] == ["tidied up"]
    assert not await keyspace.dead()


async def test_a_soft_limit_that_is_not_caught_is_a_failed_run(
    worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """Retried, and dead as `timeout` when the attempts are used up; the slot is free at once."""
    runs: list[int] = []

    @worker.on("uncaught", soft_timeout=50)
    async def uncaught(run: Run) -> None:
        runs.append(run.attempt)
        await asyncio.sleep(10)

    begun = time.monotonic()
    started = await next_one(worker, client, keyspace, "uncaught")
    assert started[0] - begun < 1
    (dead,) = await keyspace.dead()
    assert (runs, dead["reason"], dead["error"][:11]) == ([1, 2], "timeout", "SoftTimeout")


async def test_a_soft_limit_inside_a_task_group_cancels_its_children(
    worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """No child outlives the run, and the run counts as timed out; a TaskGroup whose end is caught is fine."""
    cancelled: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    @worker.on("group", soft_timeout=50)
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in ("a", "b"):
                tasks.create_task(child(name))

    @worker.on("caught", soft_timeout=50)
    async def caught() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child("c"))
        except SoftTimeout:
            await asyncio.sleep(0.001)

    @worker.on("inner", soft_timeout=5_000)
    async def inner() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)

    await next_one(worker, client, keyspace, "group", "caught", "inner")
    assert sorted(cancelled) == ["a", "a", "b", "b", "c"]
    (dead,) = await keyspace.dead()
    assert (dead["taskName"], dead["reason"]) == ("group", "timeout")


async def test_a_hard_limit_is_the_end_of_the_job_at_once(worker: Worker, client: Client, keyspace: Keyspace) -> None:
    """Dead as `timeout` after one run, within a moment, and the next job has the slot."""
    runs: list[int] = []

    @worker.on("hard", hard_timeout=80)
    async def hard(run: Run) -> None:
        runs.append(run.attempt)
        await asyncio.sleep(10)

    @worker.on("both", soft_timeout=30, hard_timeout=80)
    async def both(run: Run) -> None:
        runs.append(run.attempt)
        try:
            await asyncio.sleep(10)
        except SoftTimeout:
            await asyncio.sleep(10)

    begun = time.monotonic()
    started = await next_one(worker, client, keyspace, "hard", "both")
    assert started[0] - begun < 1
    dead = await keyspace.dead()
    assert [(each["taskName"], each["reason"], each["error"][:11]) for each in dead] == [
        ("hard", "timeout", "HardTimeout"),
        ("both", "timeout", "HardTimeout"),
    ]
    assert runs == [1, 1]


async def test_the_slot_of_a_run_past_its_hard_limit_is_taken_until_it_ends(
    worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """The job is dead while the handler still winds up; with one slot the next job waits for that, and then runs."""
    ended: list[float] = []

    @worker.on("slow.to.go", hard_timeout=50)
    async def slow_to_go() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            assert not ended
            await wait_until(keyspace.dead)
            await asyncio.sleep(0.1)
            ended.append(time.monotonic())
            raise

    started = await next_one(worker, client, keyspace, "slow.to.go")
    assert 0 <= started[0] - ended[0] < 0.5
    assert len(await keyspace.dead()) == 1


async def test_limits_of_a_plain_function_count_when_its_thread_returns(
    worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """Soft: a failed run after it returned. Hard: dead at once, the slot taken until the thread returns."""
    released = threading.Event()
    runs: list[str] = []
    ended: list[float] = []

    @worker.on("soft", soft_timeout=20)
    def soft(run: Run) -> None:
        runs.append("soft")
        time.sleep(0.05)

    @worker.on("hard", hard_timeout=50)
    def hard() -> None:
        runs.append("hard")
        released.wait(10)
        ended.append(time.monotonic())

    started: list[float] = []

    @worker.on("next")
    async def following() -> None:
        started.append(time.monotonic())

    async with worker.running():
        await client.enqueue("hard")
        await wait_until(keyspace.dead)
        await client.enqueue("soft")
        await client.enqueue("next")
        held = time.monotonic()
        await wait_until(lambda: started or time.monotonic() - held > 0.1)
        assert not started, "the thread has the slot"
        released.set()
        await wait_until(lambda: started)
        await wait_until(keyspace.settled)
    assert runs == ["hard", "soft", "soft"]
    hard_dead, soft_dead = await keyspace.dead()
    assert (hard_dead["reason"], hard_dead["error"][:11]) == ("timeout", "HardTimeout")
    assert (soft_dead["reason"], soft_dead["error"][:11]) == ("timeout", "SoftTimeout")
    assert 0 <= started[0] - ended[0] < 0.5

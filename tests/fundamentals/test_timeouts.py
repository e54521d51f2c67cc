"""Timeouts: a soft limit interrupts the handler, a hard one ends the job."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from backstage import Client, HardTimeout, Inspector, Queue, Run, SoftTimeout, Worker
from support.waiting import wait_until

AT_ONCE = {"type": "fixed", "delay": 0}


async def test_soft_limit(worker: Worker) -> None:
    """At its soft limit a handler gets a SoftTimeout at the await where it stands: a failed run, tried again."""
    seen: list[str] = []

    @worker.on("slow", soft_timeout=timedelta(milliseconds=30), backoff={"type": "fixed", "delay": 0})
    async def slow(run: Run) -> None:
        if run.attempt == 2:
            seen.append("in time")
            return
        try:
            await asyncio.sleep(60)
        except SoftTimeout as limit:
            seen.append(str(limit))
            raise

    async with worker.running():
        await slow.enqueue()
        await wait_until(lambda: len(seen) == 2)
    assert seen == ["ran longer than its soft limit of 30 ms", "in time"]


async def test_soft_limit_caught(worker: Worker) -> None:
    """A handler may catch it, tidy up and finish: then the run has succeeded."""
    seen: list[str] = []

    @worker.on("slow", timeout=30)
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except SoftTimeout:
            await asyncio.sleep(0)
            seen.append("tidied up")

    async with worker.running():
        await slow.enqueue()
        await wait_until(lambda: seen)
    info = await Inspector(worker).queues()
    assert (info.dead, info.scheduled, info.running) == (0, 0, 0)


async def test_soft_limit_in_a_task_group(worker: Worker) -> None:
    """What the handler runs in a TaskGroup is wound up, as for any cancellation."""
    ended: list[int] = []

    async def part(n: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(n)

    @worker.on("slow", timeout=30, attempts=1)
    async def slow() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(part(n))

    async with worker.running():
        await slow.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert sorted(ended) == [0, 1, 2]
    assert (dead.reason, dead.error) == ("timeout", "SoftTimeout: ran longer than its soft limit of 30 ms")


async def test_a_timeout_of_the_handlers_own(worker: Worker) -> None:
    """`asyncio.timeout` inside a handler keeps its meaning, under a soft limit too."""
    seen: list[str] = []

    @worker.on("slow", timeout=60_000)
    async def slow() -> None:
        try:
            async with asyncio.timeout(0.02):
                await asyncio.sleep(60)
        except TimeoutError:
            seen.append("its own")

    async with worker.running():
        await slow.enqueue()
        await wait_until(lambda: seen == ["its own"])


async def test_hard_limit(worker: Worker) -> None:
    """At its hard limit the run is cancelled and the job goes to the dead letter at once, attempts or not."""
    ended: list[str] = []

    @worker.on("stuck", hard_timeout=timedelta(milliseconds=40), attempts=9)
    async def stuck() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as exc:
            ended.append(type(exc).__name__)
            raise

    async with worker.running():
        await stuck.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert ended == ["CancelledError"]
    assert dead.reason == "timeout"
    assert dead.error.startswith(HardTimeout.__name__)


async def test_hard_limit_behind_the_soft_one(worker: Worker) -> None:
    """A handler that doesn't heed its soft limit is ended by the hard one."""
    seen: list[str] = []

    @worker.on("stubborn", soft_timeout=20, hard_timeout=60)
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except SoftTimeout:
            seen.append("soft")
            await asyncio.sleep(60)

    async with worker.running():
        await stubborn.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert seen == ["soft"]
    assert (dead.reason, dead.attempt) == ("timeout", 1)


async def test_a_plain_function_cannot_be_interrupted(worker: Worker) -> None:
    """The soft limit of a `def` handler counts when its thread returns."""
    runs: list[int] = []

    @worker.on("slow", timeout=20, attempts=1)
    def slow() -> None:
        runs.append(1)
        time.sleep(0.06)
        runs.append(2)

    async with worker.running():
        await slow.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert runs == [1, 2]
    assert (dead.reason, dead.error.split(":")[0]) == ("timeout", "SoftTimeout")


async def test_hard_limit_of_a_plain_function(url: str, prefix: str) -> None:
    """At its hard limit its job is dead-lettered, and the slot stays taken until the thread returns."""
    go_on, started = threading.Event(), threading.Event()
    others: list[int] = []
    worker = Worker(url=url, prefix=prefix, concurrency=1)

    @worker.on("stuck", hard_timeout=30)
    def stuck() -> None:
        started.set()
        go_on.wait(10)

    @worker.on("other")
    async def other() -> None:
        others.append(1)

    async with worker.running():
        await stuck.enqueue()
        await wait_until(started.is_set)
        await other.enqueue()
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
        assert dead.reason == "timeout"
        assert others == []
        go_on.set()
        await wait_until(lambda: others)


async def test_the_most_specific_limit_wins(url: str, prefix: str, client: Client) -> None:
    """The job's own, else its task's, else its queue's, else the worker's; the deadline tells which one holds."""
    lengths: dict[str, float | None] = {}
    worker = Worker(url=url, prefix=prefix, timeout=40_000, queues=["plain", Queue("q", soft_timeout=30_000)])

    async def handle(name: str, run: Run) -> None:
        assert run.deadline is not None
        lengths[name] = round(run.deadline.timestamp() - time.time())

    worker.on("free", handle)
    worker.on("bound", handle, soft_timeout=timedelta(seconds=20), hard_timeout=timedelta(seconds=90))
    async with worker.running():
        await client.enqueue("bound", "job", queue="q", timeout=timedelta(seconds=10))
        await client.enqueue("bound", "task", queue="q")
        await client.enqueue("free", "queue", queue="q")
        await client.enqueue("free", "worker", queue="plain")
        await wait_until(lambda: len(lengths) == 4)
    assert lengths == {"job": 10, "task": 20, "queue": 30, "worker": 40}


@pytest.mark.parametrize("limits", [{}, {"timeout": 60_000}, {"soft_timeout": 50_000, "hard_timeout": 60_000}], ids=str)
async def test_in_time(worker: Worker, limits: Any) -> None:
    """A run that ends in time notices nothing of its limits."""
    seen: list[str] = []

    @worker.on("quick", **limits)
    async def quick(name: str) -> None:
        await asyncio.sleep(0.01)
        seen.append(name)

    async with worker.running():
        await quick.enqueue("ada")
        await wait_until(lambda: seen == ["ada"])

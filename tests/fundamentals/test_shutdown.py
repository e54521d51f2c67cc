"""Shutdown: what runs is finished within the grace period, what isn't is handed over at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from datetime import timedelta

import pytest

from backstage import Inspector, Run, Worker
from support.waiting import wait_until


async def test_what_runs_is_finished(worker: Worker) -> None:
    """Within the grace period a worker that stops waits for its runs, and makes their outcomes durable."""
    seen: list[str] = []
    begun = asyncio.Event()

    @worker.on("slow")
    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        seen.append("finished")

    async with worker.running():
        await slow.enqueue()
        await begun.wait()
    assert seen == ["finished"]
    info = await Inspector(worker).queues()
    assert (info.waiting, info.running) == (0, 0)


async def test_what_outlasts_the_grace_period_is_handed_over(url: str, prefix: str) -> None:
    """A run that takes longer is cancelled; another worker has its job within a second, and no attempt is used up."""
    runs: list[tuple[str, int, int]] = []
    ended: list[str] = []
    first = Worker(url=url, prefix=prefix, worker_id="first", grace_period=timedelta(milliseconds=20))
    second = Worker(url=url, prefix=prefix, worker_id="second")

    def register(worker: Worker) -> None:
        @worker.on("long")
        async def long(run: Run) -> None:
            runs.append((worker.worker_id, run.attempt, run.deliveries))
            if worker is first:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise

    register(first)
    register(second)
    async with first.running():
        await first.enqueue("long")
        await wait_until(lambda: runs)
    stopped_at = time.monotonic()
    async with second.running():
        await wait_until(lambda: len(runs) == 2)
    assert time.monotonic() - stopped_at < 1.1
    assert ended == ["cancelled"]
    assert runs == [("first", 1, 1), ("second", 1, 1)]


async def test_what_has_not_started_is_given_back(url: str, prefix: str) -> None:
    """Jobs that were fetched ahead go back at once, whatever the grace period."""
    seen: list[int] = []
    go_on = asyncio.Event()
    worker = Worker(url=url, prefix=prefix, concurrency=1)

    @worker.on("t")
    async def handle(n: int) -> None:
        seen.append(n)
        if n == 100:
            await go_on.wait()

    async with worker:
        for n in range(101):
            await worker.enqueue("t", n)
        for n in range(101, 130):
            await worker.enqueue("t", n)
        async with worker.running():
            await wait_until(lambda: 100 in seen)
            asyncio.get_running_loop().call_later(0.03, go_on.set)
        info = await Inspector(worker).queues()
        assert info.waiting + info.running == 130 - len(seen)
        async with worker.running():
            await wait_until(lambda: len(seen) == 130)
    assert sorted(seen) == list(range(130))


async def test_cancellation_swallowed(url: str, prefix: str) -> None:
    """A run that doesn't end though it is cancelled holds up nothing: its job is given back all the same."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    worker = Worker(url=url, prefix=prefix, grace_period=0)

    @worker.on("stubborn")
    async def stubborn() -> None:
        begun.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    async with worker:
        try:
            async with worker.running():
                await worker.enqueue("stubborn")
                await begun.wait()
                stopped_at = time.monotonic()
            assert time.monotonic() - stopped_at < 1
            info = await Inspector(worker).queues()
            assert info.waiting + info.running == 1
        finally:
            go_on.set()


async def test_a_second_signal(url: str, prefix: str) -> None:
    """The first signal asks to stop, the second ends the grace period; what was done is still made durable."""
    begun, seen = asyncio.Event(), []
    worker = Worker(url=url, prefix=prefix)

    @worker.on("long")
    async def long() -> None:
        begun.set()
        await asyncio.sleep(60)

    @worker.on("quick")
    async def quick() -> None:
        seen.append("quick")

    async with worker:
        starting = asyncio.create_task(worker.start())
        await worker.enqueue("long")
        await worker.enqueue("quick")
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: worker._life and worker._life.stopping.is_set())
        assert not starting.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(starting, 3)
        info = await Inspector(worker).queues()
    assert seen == ["quick"]
    assert info.waiting + info.running == 1


async def test_stop_while_nothing_is_there(worker: Worker) -> None:
    """A worker that waits for jobs stops at once: it doesn't sit out its `block_timeout`."""
    worker.on("t", lambda: None)
    async with worker.running():
        await asyncio.sleep(0.02)
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_clean_up_at_cancellation(url: str, prefix: str, kind: str) -> None:
    """A cancelled handler may tidy up for a moment; a thread can't be cancelled and is left to end by itself."""
    seen: list[str] = []
    let_go = threading.Event()
    worker = Worker(url=url, prefix=prefix, grace_period=0)

    @worker.on("async")
    async def in_loop() -> None:
        try:
            seen.append("begun")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            seen.append("tidied up")

    @worker.on("def")
    def in_thread() -> None:
        seen.append("begun")
        let_go.wait(5)
        seen.append("ended by itself")

    async with worker:
        async with worker.running():
            await worker.enqueue(kind)
            await wait_until(lambda: seen)
        info = await Inspector(worker).queues()
        assert info.waiting + info.running == 1
        let_go.set()
        await wait_until(lambda: len(seen) == 2)

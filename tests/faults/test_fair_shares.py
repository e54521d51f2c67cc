"""Nobody hoards, and nobody jumps the queue."""

from __future__ import annotations

import asyncio
import time

import pytest
from scene import Keyspace, Settings

from backstage import Client, Job, Worker
from support.waiting import wait_until


async def test_a_burst_of_short_jobs_that_turns_into_long_ones_is_not_hoarded(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """0.3 s later the busy worker holds only what it runs, and an idle one has taken as many as it can run."""
    over = asyncio.Event()
    running: dict[str, list[int]] = {"busy": [], "idle": []}
    done: list[int] = []

    def make(name: str) -> Worker:
        worker = Worker(**settings, worker_id=name)

        @worker.on("short")
        async def short(n: int) -> None:
            done.append(n)

        @worker.on("long")
        async def long(n: int) -> None:
            running[name].append(n)
            await over.wait()
            done.append(n)

        return worker

    busy, idle = make("busy"), make("idle")
    await client.enqueue_many([Job("short", n) for n in range(5_000)])
    await client.enqueue_many([Job("long", n) for n in range(5_000, 5_100)])
    async with busy.running():
        await wait_until(lambda: running["busy"])
        turned = time.monotonic()
        async with idle.running():
            await wait_until(lambda: time.monotonic() - turned > 0.3)
            pending = await keyspace.pending()
            held = {name.partition("~")[0]: count for name, count in pending.items()}
            assert held.pop("busy") == 10
            assert held.pop("idle") == 10
            assert len(running["busy"]) == 10
            assert len(running["idle"]) == 10
            over.set()
            await wait_until(lambda: len(done) == 5_100)
            await wait_until(keyspace.settled)
    assert sorted(done) == list(range(5_100)), "each ran once"


@pytest.mark.parametrize(
    ("work", "most"),
    [(0.001, 300), (0.0, 1_500)],
    ids=["a millisecond of work", "no work at all"],
)
async def test_no_lower_job_starts_while_a_higher_one_is_ready(
    work: float, most: int, settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """In a flood of low jobs: once urgent ones are there, at most what was fetched already starts before they have.

    That is what a few milliseconds' work is: a few hundred jobs at most, or one full read where jobs are no work.
    """
    order: list[str] = []
    worker = Worker(**settings)

    @worker.on("job")
    async def job(priority: str) -> None:
        order.append(priority)
        if work:
            await asyncio.sleep(work)

    await client.enqueue_many([Job("job", "low", priority="low") for _ in range(10_000)])
    marks: list[int] = []
    async with worker.running():
        for turn in range(3):
            await wait_until(lambda turn=turn: len(order) > 1_500 * (turn + 1))
            await client.enqueue_many([Job("job", "urgent", priority="urgent") for _ in range(400)])
            marks.append(len(order))
            await wait_until(lambda turn=turn: order.count("urgent") == 400 * (turn + 1))
        await wait_until(lambda: len(order) == 11_200, timeout=20)
        await wait_until(lambda: keyspace.settled("low"))
    for turn, mark in enumerate(marks):
        urgent = [at for at, priority in enumerate(order) if priority == "urgent"][400 * turn : 400 * (turn + 1)]
        assert order[mark : urgent[-1]].count("low") < most, "low jobs that started while urgent ones were ready"

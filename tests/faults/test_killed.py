"""Workers that die, or that seem to: what they held runs elsewhere, and once."""

from __future__ import annotations

import asyncio
import signal
import time

from scene import LEASE, RECOVERED, Keyspace, Settings

from backstage import Client, Job, Next, Worker
from support.process import Process
from support.waiting import wait_until

LONG = """
@worker.on("long")
async def long(n):
    say("start", n)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        say("cancelled", n)
        raise
"""


async def test_jobs_of_a_worker_killed_in_mid_run_are_recovered_in_time_and_run_once_more(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """After SIGKILL the other worker starts each job within idle_timeout + reclaimer_interval + 1 s, exactly once."""
    other, started = Worker(**settings), list[tuple[float, int, int]]()

    @other.on("long")
    async def long(n: int) -> None:
        started.append((time.monotonic(), n, 0))

    with Process.worker(LONG, **settings) as victim:
        await victim.consuming()
        await client.enqueue_many([Job("long", n) for n in range(5)])
        await victim.said("start", times=5)
        async with other.running():
            victim.signal(signal.SIGKILL)
            killed = time.monotonic()
            assert await victim.ended() == -signal.SIGKILL
            await wait_until(lambda: len(started) >= 5)
            await wait_until(keyspace.settled)
    assert sorted(n for _, n, _ in started) == list(range(5))
    assert max(at for at, *_ in started) - killed < RECOVERED


async def test_jobs_that_a_killed_worker_had_fetched_but_not_started_are_recovered_too(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """What stood in the prefetch of a killed worker runs elsewhere, in the same time, and once."""
    other, done = Worker(**settings), list[int]()

    @other.on("short")
    async def short(n: int) -> None:
        done.append(n)

    source = """
@worker.on("short")
async def short(n):
    if n == 2500:
        os.kill(os.getpid(), signal.SIGKILL)
    say("done", n)
"""
    with Process.worker(source, **settings) as victim:
        await victim.consuming()
        await client.enqueue_many([Job("short", n) for n in range(5000)])
        await victim.ended()
        killed = time.monotonic()
        before = {int(fact.words[1]) for fact in victim.facts("done")}
        held = sum((await keyspace.pending()).values())
        assert held > settings["concurrency"], "it had fetched ahead"
        async with other.running():
            await wait_until(keyspace.settled)
            assert time.monotonic() - killed < RECOVERED
    assert set(done) | before == set(range(5000))
    assert len(done) == len(set(done)), "nothing ran twice on the other worker"
    assert len(before & set(done)) <= held, "what was done and settled did not run again"


async def test_a_job_that_kills_its_workers_ends_in_the_dead_letter_and_harms_no_other(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """After max_deliveries crashes the job is dead, as `crash-loop`; every other job is done."""
    settings |= {"idle_timeout": 400, "reclaimer_interval": 200, "max_deliveries": 2, "concurrency": 4}
    source = """
@worker.on("poison")
async def poison():
    say("poison")
    await asyncio.sleep(0.05)
    os._exit(3)

@worker.on("good")
async def good(n):
    await asyncio.sleep(0.01)
    say("good", n)
"""
    poison = await client.enqueue("poison")
    await client.enqueue_many([Job("good", n) for n in range(40)])
    done: set[str] = set()
    crashes = 0
    while not await keyspace.dead():
        with Process.worker(source, **settings) as worker:
            await wait_until(lambda worker=worker: worker.status is not None or "crash-loop" in worker.log)
            crashes += worker.status == 3
            done |= {fact.words[1] for fact in worker.facts("good")}
            if worker.status is None:
                await wait_until(keyspace.settled)
                done |= {fact.words[1] for fact in worker.facts("good")}
    (dead,) = await keyspace.dead()
    assert (dead["jobId"], dead["reason"], crashes) == (poison, "crash-loop", 2)
    assert done == {str(n) for n in range(40)}


async def test_a_worker_that_was_stopped_for_longer_than_its_lease_changes_nothing_when_it_comes_back(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """A job that another worker did meanwhile has one successor; a run that is still going is cancelled as lost."""
    other, successors, finish = Worker(**settings), list[str](), asyncio.Event()

    @other.on("quick")
    async def quick(n: int) -> Next:
        return Next("successor", "other")

    @other.on("slow")
    async def slow(n: int) -> Next:
        await finish.wait()
        return Next("successor", "other")

    @other.on("long")
    async def long(n: int) -> Next:
        return Next("successor", "other")

    @other.on("successor", queue="next")
    async def successor(whose: str) -> None:
        successors.append(whose)

    source = (
        LONG
        + """
@worker.on("quick")
async def quick(n):
    say("start", "quick")
    await asyncio.sleep(0.3)
    say("end", "quick")
    return Next("successor", "zombie", queue="next")

@worker.on("slow")
async def slow(n):
    say("start", "slow")
    await asyncio.sleep(0.3)
    say("end", "slow")
    return Next("successor", "zombie", queue="next")
"""
    )
    with Process.worker(source, **settings) as zombie:
        await zombie.consuming()
        for task in ("quick", "slow", "long"):
            await client.enqueue(task, 1)
        await zombie.said("start", times=3)
        async with other.running():
            zombie.signal(signal.SIGSTOP)
            await wait_until(lambda: len(successors) == 2)  # of quick and long; slow runs here
            zombie.signal(signal.SIGCONT)
            resumed = time.monotonic()
            await zombie.said("end", "quick")
            cancelled = await zombie.said("cancelled", 1)
            assert cancelled.at - resumed < LEASE / 1000
            assert "somebody else's" in zombie.log
            await zombie.said("end", "slow")
            finish.set()
            await wait_until(lambda: len(successors) == 3)
            await wait_until(keyspace.settled)
            zombie.signal(signal.SIGTERM)
            assert await zombie.ended() == 0
    assert len(successors) == 3, "each parent has one successor"
    assert not await keyspace.dead()

"""A job that is longer than its lease runs once, whatever it does meanwhile."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from scene import Keyspace, Settings

from backstage import Client, Worker
from support.process import Process
from support.waiting import wait_until

SOURCE = """
@worker.on("awaits")
async def awaits(seconds):
    say("start", "awaits")
    await asyncio.sleep(seconds)
    say("end", "awaits")

@worker.on("blocks")
async def blocks(seconds):
    say("start", "blocks")
    time.sleep(seconds)
    say("end", "blocks")

@worker.on("threaded")
def threaded(seconds):
    say("start", "threaded")
    time.sleep(seconds)
    say("end", "threaded")
"""


async def run(kind: str, settings: Settings, redis: Redis) -> str:
    """A job of five leases on a worker process, with another worker standing by; the log."""
    settings = settings | {"prefix": f"{settings['prefix']}-{kind}", "idle_timeout": 600, "reclaimer_interval": 200}
    keyspace = Keyspace(redis, settings["prefix"])
    other, stolen = Worker(**settings), list[str]()
    other.on(kind, lambda seconds: stolen.append(kind))
    with Process.worker(SOURCE, **settings) as worker:
        await worker.consuming()
        async with Client(url=settings["url"], prefix=settings["prefix"]) as client:
            job = await client.enqueue(kind, 5 * 0.6)
        await worker.said("start", kind)
        async with other.running():
            await worker.said("end", kind)
            await wait_until(keyspace.settled)
        assert len(worker.facts("start")) == 1
        assert stolen == []
        return worker.log.replace(job, "<job>")


async def test_a_job_of_five_leases_runs_once_with_another_worker_standing_by(settings: Settings, redis: Redis) -> None:
    """Awaiting, blocking the loop, or in a thread: it keeps its lease. What blocks the loop is named in the log."""
    awaits, blocks, threaded = await asyncio.gather(
        *(run(kind, settings, redis) for kind in ("awaits", "blocks", "threaded"))
    )
    (line,) = [line for line in blocks.splitlines() if "the event loop has been blocked" in line]
    assert "task 'blocks'" in line
    assert "id=<job> task=blocks" in blocks
    assert "time.sleep(seconds)" in blocks, "the stack tells where"
    assert "blocked" not in awaits + threaded

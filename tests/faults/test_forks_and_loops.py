"""A client outlives a fork and its event loop."""

from __future__ import annotations

import os
import signal

import pytest
from redis.asyncio import Redis
from scene import Keyspace, Settings

from backstage import Client
from support.process import Process
from support.waiting import wait_until

FORKED = """
import warnings
warnings.simplefilter("ignore")
client = Client(**settings)

async def work():
    await client.enqueue("job", "before")
    child = os.fork()
    if child == 0:
        for _ in range(1_000):  # turns of the parent's loop, in the child: it reads what there is to read
            await asyncio.sleep(0)
        return True
    begun = time.monotonic()
    for n in range(20):
        await client.enqueue("job", f"parent {n}")
    say("took", time.monotonic() - begun)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    for n in range(20, 40):
        await client.enqueue("job", f"parent {n}")
    say("child", os.waitstatus_to_exitcode(status))
    await client.aclose()

child = FORK
if child:
    async def enqueue():
        for n in range(20):
            await client.enqueue("job", f"child {n}")
        await client.aclose()
    asyncio.run(enqueue())
    os._exit(0)
"""

INSIDE = """
import uvloop
loop = LOOP.new_event_loop()
if loop.run_until_complete(work()):
    child = True
else:
    child = False
"""


async def payloads(keyspace: Keyspace) -> list[str]:
    return sorted(fields["payload"] for _, fields in await keyspace.redis.xrange(keyspace.key("default")))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_child_and_parent_both_enqueue_after_a_fork(loop: str, settings: Settings, keyspace: Keyspace) -> None:
    """Forked inside a running loop, with a connected client: each goes on with connections of its own."""
    kept = {name: settings[name] for name in ("url", "prefix")}
    with Process(FORKED.replace("child = FORK", INSIDE.replace("LOOP", loop)), **kept) as process:
        assert await process.ended() == 0, process.log
        assert process.facts("child", 0)
        assert float(process.facts("took")[0].words[1]) < 2, "the child has read an answer that was the parent's"
    expected = ["before", *(f"parent {n}" for n in range(40)), *(f"child {n}" for n in range(20))]
    assert await payloads(keyspace) == sorted(f'"{text}"' for text in expected)


async def test_a_handler_that_forks_leaves_its_worker_unharmed(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """The child enqueues with the worker's client and goes; the worker runs what it and others enqueue."""
    source = """
@worker.on("forks")
async def forks():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(worker.enqueue("after", "child"))
            code = 0
        finally:
            os._exit(code)
    say("child", os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]))
    await worker.enqueue("after", "parent")

@worker.on("after")
async def after(whose):
    say("after", whose)
"""
    with Process.worker(source, **settings) as worker:
        await worker.consuming()
        for turn in (1, 2):
            await client.enqueue("forks")
            await worker.said("child", 0, times=turn)
            await worker.said("after", "parent", times=turn)
            await worker.said("after", "child", times=turn)
        await wait_until(keyspace.settled)
        assert len(worker.facts("after")) == 4


async def test_nothing_is_handed_to_a_killed_worker_whose_child_lives_on(
    settings: Settings, client: Client, redis: Redis
) -> None:
    """A process that a handler forked has copies of its sockets: the server must not take the worker for alive."""
    source = """
@worker.on("forks")
async def forks():
    child = os.fork()
    if child == 0:
        signal.pause()
    say("child", child)
    await asyncio.sleep(30)
"""
    with Process.worker(source, **(settings | {"block_timeout": 60_000})) as worker:
        await worker.consuming()
        await client.enqueue("forks")
        child = int((await worker.said("child")).words[1])
        await wait_until(lambda: _reads(redis))
        os.kill(worker.pid, signal.SIGKILL)
        await wait_until(lambda: worker.status is not None)
        os.kill(child, 0)  # it is there
        await wait_until(lambda: _reads_no_more(redis))


async def _reads(redis: Redis) -> bool:
    """Whether somebody waits for jobs. (Tests share the server, one after the other.)"""
    return any(each["cmd"] == "xreadgroup" and "b" in each["flags"] for each in await redis.client_list())


async def _reads_no_more(redis: Redis) -> bool:
    return not await _reads(redis)


async def test_a_client_works_in_one_event_loop_after_the_other(settings: Settings, keyspace: Keyspace) -> None:
    """`asyncio.run` again and again with the same client, closed in between or not."""
    source = """
import warnings
warnings.simplefilter("ignore")
client = Client(**settings)
for n in range(3):
    asyncio.run(client.enqueue("job", n))

async def last():
    async with client:
        await client.enqueue("job", 3)
for n in range(2):
    asyncio.run(last())
"""
    with Process(source, **{name: settings[name] for name in ("url", "prefix")}) as process:
        assert await process.ended() == 0, process.log
    assert await payloads(keyspace) == ["0", "1", "2", "3", "3"]


async def test_a_worker_runs_in_one_event_loop_after_the_other(settings: Settings, client: Client) -> None:
    """Started and stopped, and started again in a new loop."""
    source = """
worker = Worker(**settings)
@worker.on("job")
async def job(n):
    say("job", n)
    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(worker.stop()))
for _ in range(2):
    asyncio.run(worker.start())
"""
    with Process(source, **(settings | {"concurrency": 1})) as process:
        await client.enqueue("job", 1)
        await process.said("job", 1)
        await client.enqueue("job", 2)
        await process.said("job", 2)
        assert await process.ended() == 0, process.log

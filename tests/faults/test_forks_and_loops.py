"""A client outlives a fork and its event loop."""

from __future__ import annotations

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
        return True
    for n in range(20):
        await client.enqueue("job", f"parent {n}")
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
loop = asyncio.new_event_loop()
if loop.run_until_complete(work()):
    child = True
else:
    child = False
"""


async def payloads(keyspace: Keyspace) -> list[str]:
    return sorted(fields["payload"] for _, fields in await keyspace.redis.xrange(keyspace.key("default")))


async def test_child_and_parent_both_enqueue_after_a_fork(settings: Settings, keyspace: Keyspace) -> None:
    """Forked inside a running loop, with a connected client: each goes on with connections of its own."""
    kept = {name: settings[name] for name in ("url", "prefix")}
    with Process(FORKED.replace("child = FORK", INSIDE), **kept) as process:
        assert await process.ended() == 0, process.log
        assert process.facts("child", 0)
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

"""A worker whose loop stood still for longer than a lease, with an answer of the server unread in its socket."""

from __future__ import annotations

from collections import Counter

from scene import Keyspace, Settings

from backstage import Client, Job, Worker
from support.process import Process
from support.waiting import wait_until

SOURCE = """
@worker.on("block")
async def block():
    await asyncio.sleep(0.2)  # by then the next read waits at the server
    say("blocking")
    time.sleep(2)
    say("over")

@worker.on("plain")
async def plain(n):
    say("ran", n)
"""


async def test_jobs_in_an_answer_that_lay_unread_for_a_lease_run_once(
    settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """A handler blocks the loop while a read brings jobs. Others take them over, and it lets them be."""
    settings |= {"idle_timeout": 600, "reclaimer_interval": 200}
    other, ran = Worker(**settings), Counter[int]()

    @other.on("plain")
    async def plain(n: int) -> None:
        ran[n] += 1

    with Process.worker(SOURCE, **settings) as blocked:
        await blocked.consuming()
        await client.enqueue("block")
        await blocked.said("blocking")
        await client.enqueue_many([Job("plain", n) for n in range(3)])
        await wait_until(lambda: _pending(keyspace, 4))
        async with other.running():
            await blocked.said("over")
            await client.enqueue("plain", 3)
            await wait_until(keyspace.settled)
        ran.update(int(fact.words[1]) for fact in blocked.facts("ran"))
    assert ran == Counter(range(4))
    assert not await keyspace.dead()


async def _pending(keyspace: Keyspace, wanted: int) -> bool:
    return sum((await keyspace.pending()).values()) == wanted

"""What others do to the streams under a running worker, and answers that are lost on the way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
from redis.asyncio import Redis
from scene import RECOVERED, Keyspace, Settings
from stage import Site

from backstage import Client, Job, Next, Run, Stream, Worker
from support.proxy import Proxy
from support.server import Server
from support.waiting import wait_until

GROUP = "backstage-workers"

Deed: TypeAlias = Callable[[Redis, str, str], Awaitable[object]]

DELETIONS: dict[str, Deed] = {
    "XDEL": lambda redis, key, consumer: _delete_all(redis, key),
    "XTRIM": lambda redis, key, consumer: redis.xtrim(key, maxlen=0, approximate=False),
    "DELCONSUMER": lambda redis, key, consumer: redis.xgroup_delconsumer(key, GROUP, consumer),
}


async def _delete_all(redis: Redis, key: str) -> None:
    await redis.xdel(key, *[entry for entry, _ in await redis.xrange(key)])


class Crew:
    """One worker of the keyspace, whose `long` job waits to be let go; `done` has every job that came to its end."""

    def __init__(self, settings: Settings, **options: object) -> None:
        self.worker = Worker(**(settings | options))
        self.started, self.cancelled, self.done = list[int](), list[int](), Counter[int]()
        self.go = asyncio.Event()

        @self.worker.on("long")
        async def long(n: int) -> None:
            self.started.append(n)
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(n)
                raise
            self.done[n] += 1

        @self.worker.on("short")
        async def short(n: int) -> None:
            self.done[n] += 1


async def serves(crew: Crew, client: Client) -> None:
    """A job that is enqueued now is done within a second."""
    asked, n = time.monotonic(), 1_000 + len(crew.done)
    await client.enqueue("short", n)
    await wait_until(lambda: crew.done[n])
    assert time.monotonic() - asked < 1


@pytest.mark.parametrize("deed", DELETIONS)
async def test_what_is_deleted_while_it_runs_is_cancelled_as_lost(
    deed: str, settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """XDEL, XTRIM, XGROUP DELCONSUMER: within a lease the run is cancelled; others go on, and nothing stays pending."""
    crew, key = Crew(settings), keyspace.key("default")
    async with crew.worker.running():
        await client.enqueue_many([Job("long", n) for n in range(3)])
        await wait_until(lambda: len(crew.started) == 3)
        (consumer,) = await keyspace.pending()
        await DELETIONS[deed](redis, key, consumer)
        begun = time.monotonic()
        await serves(crew, client)
        await wait_until(lambda: len(crew.cancelled) == 3)
        assert time.monotonic() - begun < RECOVERED
        await serves(crew, client)
        await wait_until(lambda: _nothing_pending(keyspace))
    assert not await keyspace.dead()


@pytest.mark.parametrize("deed", ["XDEL", "XTRIM"])
async def test_what_is_deleted_while_a_dead_worker_holds_it_is_dropped(
    deed: str, settings: Settings, client: Client, keyspace: Keyspace, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pending entries have no body any more: they are taken off the list with a warning, whoever is behind runs."""
    crew, key = Crew(settings), keyspace.key("default")
    await redis.xgroup_create(key, GROUP, "0", mkstream=True)
    await client.enqueue_many([Job("short", n) for n in range(6)])
    await redis.xreadgroup(GROUP, "gone~1", {key: ">"}, count=3)
    entries = await redis.xrange(key)
    if deed == "XDEL":
        await redis.xdel(key, *[entry for entry, _ in entries[:2]])
    else:
        await redis.xtrim(key, minid=entries[2][0], approximate=False)
    async with crew.worker.running():
        await wait_until(lambda: sorted(crew.done) == [2, 3, 4, 5], timeout=RECOVERED + 1)
        await wait_until(lambda: _nothing_pending(keyspace))
    assert set(crew.done.values()) == {1}
    assert "deleted by somebody" in caplog.text


async def _nothing_pending(keyspace: Keyspace) -> bool:
    return await keyspace.settled() or not await keyspace.pending()


async def test_a_consumer_that_is_deleted_with_what_it_held_stops_nobody(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """XGROUP DELCONSUMER of a dead worker throws its deliveries away (that is Redis); what came after them runs."""
    crew, key = Crew(settings), keyspace.key("default")
    await redis.xgroup_create(key, GROUP, "0", mkstream=True)
    await client.enqueue_many([Job("short", n) for n in range(6)])
    await redis.xreadgroup(GROUP, "gone~1", {key: ">"}, count=3)
    await redis.xgroup_delconsumer(key, GROUP, "gone~1")
    async with crew.worker.running():
        await wait_until(lambda: sorted(crew.done) == [3, 4, 5])
        await serves(crew, client)


async def test_a_group_that_was_made_at_the_end_of_its_stream_serves_what_comes_after(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """Somebody ran XGROUP CREATE … $: later jobs run, and XGROUP SETID 0 brings the earlier ones back, each once."""
    crew, key = Crew(settings), keyspace.key("default")
    await client.enqueue_many([Job("short", n) for n in range(3)])
    await redis.xgroup_create(key, GROUP, "$")
    await client.enqueue_many([Job("short", n) for n in range(3, 6)])
    await redis.xgroup_setid(key, GROUP, "0")
    async with crew.worker.running():
        await wait_until(lambda: sorted(crew.done) == [*range(6)])
        await serves(crew, client)
        await wait_until(keyspace.settled)
    assert set(crew.done.values()) == {1}
    await redis.delete(key)
    await redis.xgroup_create(key, GROUP, "$", mkstream=True)
    crew = Crew(settings)
    async with crew.worker.running():
        await serves(crew, client)


async def test_what_stands_behind_hundreds_of_busy_deliveries_is_recovered_in_time(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """A live worker holds 150 deliveries that are older than the one a dead worker left: it is found all the same."""
    busy, rescuer, key = Crew(settings, concurrency=150), Crew(settings), keyspace.key("default")
    async with busy.worker.running():
        await client.enqueue_many([Job("long", n) for n in range(150)])
        await wait_until(lambda: len(busy.started) == 150)
        await redis.xadd(key, {"taskName": "short", "payload": "500", "enqueuedAt": "1"}, id="*")
        while not (left := await redis.xreadgroup(GROUP, "gone~1", {key: ">"}, count=1)):
            await redis.xadd(key, {"taskName": "short", "payload": "500", "enqueuedAt": "1"})
        assert left
        begun = time.monotonic()
        async with rescuer.worker.running():
            await wait_until(lambda: busy.done[500] or rescuer.done[500], timeout=10)
            assert time.monotonic() - begun < RECOVERED
            busy.go.set()
            rescuer.go.set()
            await wait_until(keyspace.settled)
    assert set((busy.done + rescuer.done).values()) <= {1, 2}
    assert len(busy.done) >= 150


async def test_ghost_consumers_are_cleared_away_and_hold_up_nobody(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """A hundred consumers that read once and went: jobs run beside them; those that hold nothing are pruned in time."""
    crew, key = Crew(settings), keyspace.key("default")
    await redis.xgroup_create(key, GROUP, "0", mkstream=True)
    for n in range(100):
        await redis.xgroup_createconsumer(key, GROUP, f"ghost~{n}")
    async with crew.worker.running():
        await serves(crew, client)
        assert len(await keyspace.consumers()) >= 100, "not before they were silent for a minute"
        await wait_until(lambda: _pruned(crew.worker, keyspace))


async def _pruned(worker: Worker, keyspace: Keyspace) -> bool:
    """What its pruner does each minute, with no time to wait."""
    stream = Stream(worker.redis, prefix=worker.config.prefix, consumer="pruner~1")
    await stream.prune(idle=0, foreign_idle=0)
    await stream.aclose()
    return not [name for name in await keyspace.consumers() if name.startswith("ghost~")]


# ---- lost answers ----------------------------------------------------------------------------------------------------


async def test_jobs_in_an_answer_that_was_lost_run_once_and_at_once(own_server: Server) -> None:
    """The server hands out jobs to a blocked read whose answer goes nowhere: found when the connection breaks."""
    async with Proxy(own_server.port) as proxy:
        site = Site(own_server, proxy.url)
        async with site.worker.running(), Client(url=own_server.url) as direct, Redis.from_url(own_server.url) as redis:
            await direct.enqueue("job", 0)
            await wait_until(lambda: site.ended[0])
            await site.idle()
            proxy.drop_replies()
            await direct.enqueue("job", 1)
            await wait_until(lambda: _delivered(redis))
            proxy.cut()
            cut = time.monotonic()
            await wait_until(lambda: site.ended[1])
            assert time.monotonic() - cut < 2
            await site.consumes()
            await site.settled()
        await site.client.aclose()
    assert set(site.runs.values()) == {1}


@pytest.mark.parametrize("replies", [True, False], ids=["replies", "requests"])
async def test_connections_that_are_cut_at_any_byte_cost_no_job_and_no_second_run(
    replies: bool, own_server: Server
) -> None:
    """In the midst of a flood, after 1, 2, 3, 5, … bytes: every job runs exactly once, successors and retries too."""
    async with Proxy(own_server.port) as proxy:
        site = Site(own_server, proxy.url)
        sums: Counter[str] = Counter()
        _register(site.worker, sums)
        async with Client(url=own_server.url) as direct, site.worker.running():
            for at, after in enumerate((1, 2, 3, 5, 11, 23, 47, 101, 211, 499, 1_009, 4_001)):
                await direct.enqueue_many([Job("parent", n) for n in range(at * 30, at * 30 + 20)])
                await direct.enqueue_many([Job("fails.once", n) for n in range(at * 30 + 20, at * 30 + 30)])
                begun = sums.total()
                await wait_until(lambda begun=begun: sums.total() >= begun + 5, timeout=10)
                proxy.cut(after, replies=replies)
            await wait_until(lambda: sums["child"] == 240 and sums["fails.once"] == 240, timeout=20)
            await site.settled()
        await site.client.aclose()
    assert sums == {"parent": 240, "child": 240, "fails.once": 240}


def _register(worker: Worker, sums: Counter[str]) -> None:
    @worker.on("parent")
    async def parent(n: int) -> Next:
        sums["parent"] += 1
        await asyncio.sleep(0.005)
        return Next("child", n)

    @worker.on("child")
    async def child(n: int) -> None:
        sums["child"] += 1

    @worker.on("fails.once", attempts=2, backoff={"type": "fixed", "delay": 5})
    async def fails_once(n: int, run: Run) -> None:
        sums["fails.once"] += 1
        if run.attempt == 1:
            raise ValueError(n)


@pytest.mark.parametrize("how", ["hole", "slow"])
async def test_a_network_that_goes_silent_or_slow_is_overcome(how: str, own_server: Server) -> None:
    """Black-holed: consuming again within 15 seconds after it heals. Slow (50 ms a piece): all is done, once."""
    async with Proxy(own_server.port) as proxy:
        site = Site(own_server, proxy.url, lease=30_000)
        async with Client(url=own_server.url) as direct, site.worker.running():
            await site.consumes()
            if how == "hole":
                proxy.hole()
                await direct.enqueue("job", 1)
                begun = time.monotonic()
                await wait_until(lambda: time.monotonic() - begun > 1)
                proxy.heal()
            else:
                proxy.delay = 0.05
                await direct.enqueue("job", 1)
            healed = time.monotonic()
            await wait_until(lambda: site.ended[1], timeout=20)
            assert time.monotonic() - healed < (15 if how == "hole" else 2)
            proxy.delay = 0.0
            await site.settled()
        await site.client.aclose()
    assert set(site.runs.values()) == {1}


async def test_a_lease_connection_that_went_silent_while_nothing_ran_costs_no_job(own_server: Server) -> None:
    """Nobody asks on it while nothing is held, so that only the next job's first renewal finds it dead."""
    async with Proxy(own_server.port) as proxy, Client(url=own_server.url) as direct:
        worker = Worker(url=proxy.url, idle_timeout=1_500, reclaimer_interval=200, block_timeout=500)
        runs = Counter[int]()

        @worker.on("long")
        async def long(n: int) -> None:
            runs[n] += 1
            await asyncio.sleep(2)

        async with worker.running(), Redis.from_url(own_server.url) as redis:
            await direct.enqueue("long", 1)
            await wait_until(lambda: runs[1])
            await wait_until(lambda: _drained(redis))
            proxy.hole()
            proxy.heal()
            await direct.enqueue("long", 2)
            await wait_until(lambda: runs[2], timeout=20)
            await wait_until(lambda: _drained(redis), timeout=20)
        assert runs == {1: 1, 2: 1}


async def _drained(redis: Redis) -> bool:
    return not await redis.xlen("backstage:default")


async def _delivered(redis: Redis) -> bool:
    return bool((await redis.xpending("backstage:default", GROUP))["pending"])

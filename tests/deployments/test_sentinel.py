"""A master and its replica under a Sentinel: workers and producers follow the master."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis.exceptions
from redis.asyncio import Redis

from backstage import BackstageError, Client, Job, RedisUnavailable, Worker
from backstage.nodes import of_sentinels
from support.deployments import Replicated, Sentinel
from support.server import Server, free_port
from support.waiting import wait_until

BACK = 8.0
"""Seconds from a master's death to the next job: 0.5 to notice, a failover, and the pauses of whoever waits for it."""


@pytest.fixture
def pair() -> Iterator[Replicated]:
    with Replicated() as started:
        yield started


async def stubborn(client: Client, n: int) -> None:
    """Enqueue until it is answered."""
    while True:
        try:
            await client.enqueue("count", n)
            return
        except BackstageError:
            await asyncio.sleep(0.05)


async def test_a_master_that_dies(pair: Replicated) -> None:
    """The worker consumes from the new master within seconds, and what was confirmed by the replica is all run."""
    worker, ran = Worker(url=pair.url, idle_timeout=2_000, reclaimer_interval=500, connect_timeout=2_000), []
    worker.on("count", lambda n: ran.append(n))  # type: ignore[arg-type, misc]

    async with worker.running(), Client(url=pair.url, connect_timeout=2_000) as producer:
        await producer.enqueue_many([Job("count", n) for n in range(1_000)], durability="replica")
        pair.master.kill()
        died = time.monotonic()
        await stubborn(producer, 1_000)
        await wait_until(lambda: 1_000 in ran, BACK, "a job of after the failover runs")
        assert time.monotonic() - died < BACK
        await wait_until(lambda: set(ran) == set(range(1_001)), BACK, "all that was confirmed is run")
        await worker.redis.set("x", 1)  # handlers' own commands go to the new master as well


async def test_a_master_that_becomes_a_replica(pair: Replicated) -> None:
    """The old master lives on and refuses writes: connections to it are given up, and a running job keeps its lease.

    It refuses them at once, for the lack of replicas; else a Sentinel leaves it a master for some seconds.
    """
    with pair.master.client() as master:
        master.config_set("min-replicas-to-write", 1)
    worker, started, end = Worker(url=pair.url, idle_timeout=3_000, grace_period=100), [], asyncio.Event()

    @worker.on("long")
    async def long() -> None:
        started.append(time.monotonic())
        await end.wait()

    async with worker.running(), Redis(unix_socket_path=pair.replica.socket) as new:
        await worker.enqueue("long")
        await wait_until(lambda: started)

        async def replicated() -> bool:
            """What the old master had not passed on would be lost by the switch."""
            groups = await new.xinfo_groups("backstage:default") if await new.exists("backstage:default") else []
            return any(group["pending"] == 1 for group in groups)

        await wait_until(replicated, 5.0, "the replica knows that the job runs")
        pair.switch()

        async def renewed() -> bool:
            """A lease that the new master renewed itself: younger than the switch."""
            (pending,) = await new.xpending_range("backstage:default", "backstage-workers", "-", "+", 1)
            age = time.monotonic() - started[0] - 0.2
            return age > 3.2 and (await new.role())[0] == b"master" and pending["time_since_delivered"] < 1_500

        await wait_until(renewed, 10.0, "the lease thread renews at the new master")
        end.set()

        async def finished() -> bool:
            return await new.xlen("backstage:default") == 0

        await wait_until(finished, 5.0, "it is finished at the new master")
    assert len(started) == 1


async def test_the_sentinels_have_a_password_of_their_own(own_server: Server) -> None:
    """It is in the options of the URL, for the login in front is the server's; it is shown nowhere."""
    with Sentinel(own_server, "--requirepass", "canary") as sentinel:
        url = f"sentinel://127.0.0.1:{sentinel.port}/jobs"
        async with Client(url=f"{url}?sentinel_password=canary") as client:
            await client.enqueue("count", 1)
            assert "canary" not in repr(client.config)
        async with Client(url=url, connect_timeout=300) as client:
            with pytest.raises(RedisUnavailable, match=r"can tell where the server is: .*uthentication"):
                await client.enqueue("count", 1)


async def test_whom_it_asks(pair: Replicated) -> None:
    """Who is away or knows nothing is passed over; who answered is asked first, until the answer is doubted."""
    stranger = pair.replica  # no Sentinel: it refuses the question
    nodes = [("127.0.0.1", free_port()), ("127.0.0.1", stranger.port), ("127.0.0.1", pair.sentinel.port)]
    finder = of_sentinels(nodes, "jobs", options={}, tls=False, timeout=1.0)
    master = ("127.0.0.1", pair.master.port)
    with stranger.client() as client:

        def asked() -> int:
            """Connections that the stranger had so far: one for each question, and others of before."""
            received: int = client.info("stats")["total_connections_received"]
            return received

        before = asked()
        assert await finder.find() == await asyncio.to_thread(finder.find_sync) == master
        assert asked() == before + 1
        finder.doubt()
        assert await asyncio.to_thread(finder.find_sync) == master
        assert asked() == before + 2
    pair.sentinel.close()
    for find in (finder.find, lambda: asyncio.to_thread(finder.find_sync)):
        with pytest.raises(redis.exceptions.ConnectionError, match="can tell where the server is"):
            await find()


async def test_a_master_that_no_sentinel_knows(pair: Replicated) -> None:
    """The error says whom it asked; the worker gives up after `connect_timeout`, as for any server that isn't there."""
    url = pair.url.replace("/jobs", "/other")
    worker = Worker(url=url, connect_timeout=500)
    worker.on("count", lambda n: None)  # type: ignore[arg-type, misc]
    with pytest.raises(RedisUnavailable, match=rf"sentinel://.*/other.*none of .*127\.0\.0\.1:{pair.sentinel.port}"):
        await worker.start(signals=False)

"""`durability=`: an enqueue that returns only when the server says that the job is on its disk, or on a replica."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import BackstageError, Client, ConfigError, Job, RedisUnavailable, TaskRegistry
from support.deployments import Replicated
from support.server import Server
from support.waiting import wait_until


@pytest.fixture(scope="module")
def pair() -> Iterator[Replicated]:
    with Replicated() as started:
        yield started


@pytest.fixture
async def replica(pair: Replicated) -> Any:
    async with Redis(unix_socket_path=pair.replica.socket, decode_responses=True) as client:
        yield client


def waits_for_disk(server: Server) -> bool:
    """Whether it has WAITAOF: Redis 7.2, Valkey."""
    with server.client() as client:
        return "valkey_version" in client.info("server") or client.info("server")["redis_version"] >= "7.2"


async def test_fsync_is_on_disk() -> None:
    """With `appendfsync always` the jobs of every kind of call are there after the server's sudden death."""
    with Server("--appendonly", "yes", "--appendfsync", "always") as server:
        async with Client(url=server.url) as client:
            if not waits_for_disk(server):
                with pytest.raises(ConfigError, match=r"needs a server with WAITAOF: Redis 7\.2"):
                    await client.enqueue("t", 1, durability="fsync")
                return
            await client.enqueue("t", 1, durability="fsync")
            await client.enqueue_many([Job("t", n) for n in range(600)], durability="fsync")
            await client.schedule("t", 1, timedelta(hours=1), durability="fsync")
            server.kill()
            server.start()
            with server.client() as redis:
                assert (redis.xlen("backstage:default"), redis.zcard("backstage:scheduled")) == (601, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "no append-only file; set `appendonly yes`"),
        (("--appendonly", "yes"), "with `appendfsync everysec` this server does not tell"),
        (("--appendonly", "yes", "--appendfsync", "no"), "with `appendfsync no` this server does not tell"),
    ],
)
async def test_a_server_that_can_not_promise_it(options: tuple[str, ...], says: str) -> None:
    """Is found out before anything is sent, and the error says what to set."""
    with Server(*options) as server:
        if not waits_for_disk(server):
            says = "needs a server with WAITAOF"
        async with Client(url=server.url) as client:
            with pytest.raises(ConfigError, match=f"^durability='fsync'.*{says}"):
                await client.enqueue("t", 1, durability="fsync")
            with server.client() as redis:
                assert redis.keys() == []


async def test_replica_is_on_the_replica(pair: Replicated, replica: Redis, prefix: str) -> None:
    """When the call returns, whichever it is, its jobs are there; ids and duplicates are answered as ever."""
    tasks = TaskRegistry()
    task = tasks.on("t", lambda n: None)  # type: ignore[arg-type, misc, var-annotated]
    async with Client(url=pair.master.url, prefix=prefix, tasks=[tasks]) as client:
        id = await client.enqueue("t", 1, durability="replica", dedupe="k")
        assert [f["jobId"] for _, f in await replica.xrange(f"{prefix}:default")] == [id]
        assert await client.enqueue("t", 1, durability="replica", dedupe="k") is None
        await asyncio.gather(*(client.enqueue("t", n, durability="replica") for n in range(50)))
        assert await replica.xlen(f"{prefix}:default") == 51
        await client.enqueue_many([Job("t", n) for n in range(1_200)], durability="replica")
        assert await replica.xlen(f"{prefix}:default") == 1_251
        await client.schedule("t", 1, timedelta(hours=1), durability="replica")
        assert await replica.zcard(f"{prefix}:scheduled") == 1
        await task.enqueue(1, durability="replica")
        assert await replica.xlen(f"{prefix}:default") == 1_252


async def test_a_replica_that_does_not_answer(prefix: str) -> None:
    """The call fails within its budget and says that the job may have arrived: it has, and once, however often tried.

    A connection that is lost meanwhile changes nothing: its successor has written nothing, and isn't believed for that.
    """
    with Replicated() as pair, pair.master.client() as master:
        async with Client(url=pair.master.url, prefix=prefix, connect_timeout=3_000) as client:
            pair.sentinel.close()  # it would act
            os.kill(pair.replica.pid, signal.SIGSTOP)
            try:
                asking = asyncio.create_task(client.enqueue("t", 1, durability="replica"))
                await wait_until(lambda: master.xlen(f"{prefix}:default"), 2.0)
                master.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                with pytest.raises(RedisUnavailable, match=r"no replica has confirmed them.*may have arrived"):
                    await asking
                assert master.xlen(f"{prefix}:default") == 1
                await client.enqueue("t", 2)  # what asks for less is not held up
            finally:
                os.kill(pair.replica.pid, signal.SIGCONT)
        async with Client(url=pair.master.url, prefix=prefix) as client:
            await client.enqueue("t", 3, durability="replica")


async def test_no_replica_at_all(url: str, prefix: str) -> None:
    """The same: the server has the job, and nobody confirms it."""
    async with Client(url=url, prefix=prefix, connect_timeout=300) as client:
        with pytest.raises(RedisUnavailable, match=r"^not enqueued and confirmed within 300 ms: .*may have arrived"):
            await client.enqueue("t", 1, durability="replica")


@pytest.mark.parametrize("value", ["disk", "", 1, True])
async def test_bad_durability(url: str, prefix: str, value: Any, redis: Redis) -> None:
    """Is refused with what would be right, by every call, before anything is sent."""
    async with Client(url=url, prefix=prefix) as client:
        calls: list[Any] = [
            lambda: client.enqueue("t", 1, durability=value),
            lambda: client.enqueue_many([Job("t")], durability=value),
            lambda: client.schedule("t", 1, 1_000, durability=value),
        ]
        for call in calls:
            with pytest.raises(BackstageError, match=r"^durability=.*'memory', 'fsync' or 'replica'"):
                await call()
    assert await redis.keys(f"{prefix}*") == []


async def test_memory_is_the_default(url: str, prefix: str, redis: Redis) -> None:
    """To ask for it changes nothing."""
    async with Client(url=url, prefix=prefix) as client:
        await client.enqueue("t", 1, durability="memory")
        await client.enqueue("t", 1, durability=None)
    assert await redis.xlen(f"{prefix}:default") == 2

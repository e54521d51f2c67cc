"""Client: builds and routes jobs, opens what it needs when it needs it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage.client import Client
from backstage.config import RedisConfig
from backstage.errors import ConfigError, PayloadTooLarge, RedisRefused, TaskNotBound
from backstage.job import Job, Next
from backstage.ready import Ready, give_ids
from backstage.task import TaskRegistry
from support.server import Server


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=prefix) as opened:
        yield opened


async def nothing(payload: object) -> None: ...


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({}, "default"),
        ({"queue": "own"}, "own"),
        ({"priority": "low"}, "low"),
        ({"queue": "own", "priority": "low"}, "own"),
    ],
    ids=str,
)
@pytest.mark.parametrize("known", ["", "payments"])
def test_routes(options: Any, queue: str, known: str) -> None:
    """The job's own queue or priority, else its task's where this process knows it, else `default`."""
    tasks = TaskRegistry()
    task = tasks.on("pay", nothing, queue=known or None)
    for client in (Client(RedisConfig(), tasks=[tasks]), Client(RedisConfig())):
        for name, route in ((task, known), ("pay", known if client.config and client._registry.get("pay") else "")):
            job = Job(name, 1, **options)
            assert client._ready(job).queue == (queue if options else route or "default")
            assert client._ready(Next(name, 1, **options)) == client._ready(job)


def test_what_is_ready_gets_its_id_once() -> None:
    """A Job keeps the one that it has; what has none gets one when it is first sent, and is the same job ever after."""
    job, fresh = Job("t"), Client(RedisConfig())._ready(Next("t"))
    both = [Ready.of(job, "null", "default"), fresh]
    assert (both[0].id, fresh.id) == (job.id, "")
    give_ids(both)
    given = fresh.id
    give_ids(both)
    assert (both[0].id, fresh.id) == (job.id, given)
    assert given not in ("", job.id)


def test_limits_the_payload() -> None:
    """In bytes of JSON, with the task's name in the error and the payload not."""
    client = Client(RedisConfig(max_payload=10))
    assert client._ready(Job("t", "x" * 8)).payload == '"xxxxxxxx"'
    with pytest.raises(PayloadTooLarge, match="the payload of t is 11 bytes") as error:
        client._ready(Job("t", "canary!!!"))
    assert "canary" not in str(error.value)


async def test_opens_late(client: Client) -> None:
    """Nothing is open before the first call, nor after the client was closed."""
    assert client._link is None
    await client.enqueue("t")
    assert client._link is not None
    await client.aclose()
    assert client._link is None


async def test_closing_sends_what_waits(url: str, prefix: str, redis: Redis) -> None:
    """Enqueues that are on their way when the client is closed arrive."""
    client = Client(url=url, prefix=prefix)
    await client.enqueue("t")
    pending = [asyncio.ensure_future(client.enqueue("t")) for _ in range(600)]
    await asyncio.sleep(0)
    await client.aclose()
    assert len(await asyncio.gather(*pending)) == 600
    assert await redis.xlen(f"{prefix}:default") == 601


async def test_no_two_links(client: Client, redis: Redis) -> None:
    """A hundred first calls at once open one set of connections."""
    before = len(await redis.client_list())
    await asyncio.gather(*(client.enqueue("t") for _ in range(100)))
    assert len(await redis.client_list()) - before <= 2


async def test_refused_ones_are_told(client: Client, redis: Redis, prefix: str) -> None:
    """`enqueue` raises for its job, `enqueue_many` counts them; those to other queues have arrived."""
    await redis.set(f"{prefix}:broken", "planted")
    with pytest.raises(RedisRefused, match="not added"):
        await client.enqueue("t", queue="broken")
    with pytest.raises(RedisRefused, match=r"2 of 3 jobs were refused, the first one: not added"):
        await client.enqueue_many([Job("t", queue="broken"), Job("t"), Job("t", queue="broken")])
    assert await redis.xlen(f"{prefix}:default") == 1


async def test_many_takes_jobs(client: Client) -> None:
    """Anything else is told at once."""
    for wrong in (Next("t"), "t", {"task": "t"}):
        with pytest.raises(ConfigError, match="takes Jobs, not"):
            await client.enqueue_many([Job("t"), wrong])  # type: ignore[list-item]
    assert client._link is None


async def test_out_of_memory(own_server: Server, prefix: str) -> None:
    """A full server refuses with an error that says so, at once."""
    with own_server.client() as db:
        db.config_set("maxmemory", "1")
    async with Client(url=own_server.url, prefix=prefix) as client:
        with pytest.raises(RedisRefused, match=r"(?i)memory"):
            await client.enqueue("t")


async def test_redis_comes_back(own_server: Server, prefix: str) -> None:
    """An enqueue while Redis restarts waits for it, within `connect_timeout`."""
    async with Client(url=own_server.url, prefix=prefix) as client:
        await client.enqueue("t")
        own_server.stop()
        pending = asyncio.ensure_future(client.enqueue("t"))
        await asyncio.sleep(0.05)
        assert not pending.done()
        own_server.start()
        assert await pending


async def test_configure() -> None:
    """Changes settings before the first connection; `config` tells what holds."""
    client = Client(RedisConfig(host="a"))
    client.configure(host="b", max_payload=5)
    assert (client.config.host, client.config.max_payload) == ("b", 5)
    assert client.redis  # opens
    with pytest.raises(ConfigError, match="too late"):
        client.configure(host="c")
    await client.aclose()


def test_a_client_that_is_gone_is_bound_no_more() -> None:
    """Tasks don't keep a client alive, and forget one that is gone."""
    tasks = TaskRegistry()
    task = tasks.on("t", nothing)
    client = Client(RedisConfig(), tasks=[tasks])
    assert tasks.producer_of(task) is client
    del client
    gc.collect()
    with pytest.raises(TaskNotBound):
        tasks.producer_of(task)


async def test_unix_socket(server: Server, prefix: str) -> None:
    """`unix://` addresses work."""
    async with Client(url=f"unix://{server.socket}", prefix=prefix) as client:
        assert await client.enqueue("t")


async def test_embedded(tmp_path: Path, prefix: str) -> None:
    """`embedded://` starts a server at the first call, and stops it with the last client."""
    async with Client(url=f"embedded://{tmp_path}/db", prefix=prefix) as client:
        assert await client.enqueue("t")
        assert await client.redis.xlen(f"{prefix}:default") == 1

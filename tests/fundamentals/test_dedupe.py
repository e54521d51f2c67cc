"""Dedupe: a key that makes a second enqueue of the same thing do nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Client, Dedupe, Job, Next, Worker
from support.waiting import wait_until


async def test_a_double_click(client: Client, worker: Worker) -> None:
    """While a key is taken, an enqueue with it adds nothing and returns None."""
    handled: list[str] = []
    worker.on("order.pay", handled.append)
    assert await client.enqueue("order.pay", "7", dedupe="pay-7")
    assert await client.enqueue("order.pay", "7", dedupe="pay-7") is None
    assert await client.enqueue("order.pay", "8", dedupe="pay-8")
    async with worker.running():
        await wait_until(lambda: len(handled) == 2)
    assert handled == ["7", "8"]


@pytest.mark.parametrize(
    "dedupe",
    [
        "pay-7",
        {"key": "pay-7"},
        {"key": "pay-7", "ttl": None},
        {"key": "pay-7", "ttl": timedelta(hours=1)},
        Dedupe("pay-7"),
        Dedupe("pay-7", 3_600_000),
    ],
    ids=repr,
)
async def test_shapes(client: Client, redis: Redis, prefix: str, dedupe: Any) -> None:
    """A bare key, a mapping or a Dedupe; without a ttl the key is taken for an hour."""
    job_id = await client.enqueue("t", dedupe=dedupe)
    assert await redis.get(f"{prefix}:dedupe:pay-7") == job_id
    assert 3_590_000 < await redis.pttl(f"{prefix}:dedupe:pay-7") <= 3_600_000


async def test_the_key_outlives_the_job(client: Client, worker: Worker, redis: Redis, prefix: str) -> None:
    """The key stays taken for its whole ttl, also when the job is done long before."""
    handled: list[int] = []
    worker.on("t", handled.append)
    async with worker.running():
        await client.enqueue("t", 1, dedupe=Dedupe("k", ttl=timedelta(minutes=5)))
        await wait_until(lambda: handled == [1])
        assert await client.enqueue("t", 2, dedupe="k") is None
    assert await redis.xlen(f"{prefix}:default") == 0


async def test_free_again(client: Client) -> None:
    """After its ttl a key is free."""
    assert await client.enqueue("t", dedupe=Dedupe("k", ttl=30))
    assert await client.enqueue("t", dedupe="k") is None
    await wait_until(lambda: client.enqueue("t", dedupe=Dedupe("k", ttl=30)))


async def test_one_of_many_at_once(client: Client) -> None:
    """Of any number of calls at the same moment, from whatever process, exactly one adds the job."""
    ids = await asyncio.gather(*(client.enqueue("t", dedupe="k") for _ in range(50)))
    assert len([job_id for job_id in ids if job_id]) == 1


async def test_in_one_batch(client: Client, redis: Redis, prefix: str) -> None:
    """`enqueue_many` answers None for the duplicates, those within the batch among them."""
    ids = await client.enqueue_many([Job("t", 1, dedupe="a"), Job("t", 2), Job("t", 3, dedupe="a"), Job("t", 4)])
    assert [job_id is None for job_id in ids] == [False, False, True, False]
    assert [fields["payload"] for _, fields in await redis.xrange(f"{prefix}:default")] == ["1", "2", "4"]


async def test_key_of_any_text(client: Client, redis: Redis, prefix: str) -> None:
    """A key is any text up to 512 bytes."""
    for key in ("order:7/ü ☃\n{x}", "x" * 512):
        assert await client.enqueue("t", dedupe=key)
        assert await redis.exists(f"{prefix}:dedupe:{key}")


async def test_key_of_another_sdk(client: Client, redis: Redis, prefix: str) -> None:
    """A key that another SDK took (its value is `1`) counts as taken."""
    await redis.set(f"{prefix}:dedupe:order-123", "1", px=60_000)
    assert await client.enqueue("t", dedupe="order-123") is None


async def test_delayed(client: Client, redis: Redis, prefix: str) -> None:
    """A job that waits takes its key from the moment of the call."""
    assert await client.enqueue("t", delay=60_000, dedupe="k")
    assert await client.enqueue("t", dedupe="k") is None
    assert await redis.zcard(f"{prefix}:scheduled") == 1


async def test_what_comes_next(client: Client, worker: Worker) -> None:
    """A successor may have a key too: whichever parent asks first gets it."""
    handled: list[str] = []

    @worker.on("parent")
    async def parent(name: str) -> Next:
        handled.append(name)
        return Next("child", name, dedupe="once")

    worker.on("child", lambda name: handled.append(f"child of {name}"))
    await client.enqueue("parent", "a")
    await client.enqueue("parent", "b")
    await client.enqueue("last", queue="default")
    worker.on("last", lambda payload: handled.append("last"))
    async with worker.running():
        await wait_until(lambda: {"a", "b", "last"} <= {*handled} and len(handled) == 4)
    assert len([name for name in handled if name.startswith("child")]) == 1

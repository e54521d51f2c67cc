"""A cluster of three nodes: a keyspace lives on the one that owns its slot, and clients find it there."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from zlib import crc32

import pytest
from redis.asyncio import Redis

from backstage import BackstageError, Broadcast, Client, ConfigError, Inspector, Job, Next, TaskRegistry, Worker
from support.deployments import Cluster
from support.server import Server
from support.waiting import wait_until

BACK = 8.0
"""Seconds from a node's death to the next job: 1 to notice, an election, and the pauses of whoever waits for it."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster("{jobs}") as started:
        yield started


@pytest.fixture
def space() -> str:
    """A prefix of the same slot that no other test uses."""
    return f"{{jobs}}:{uuid.uuid4().hex[:8]}"


async def keys(node: Server, prefix: str) -> int:
    async with Redis(unix_socket_path=node.socket) as client:
        return len(await client.keys(prefix.replace("{", "\\{") + "*"))


async def test_a_keyspace_on_one_node(cluster: Cluster, space: str) -> None:
    """Delays, retries, chains, broadcasts, the inspector: all scripts work unchanged, on the node of the slot."""
    worker, ran = Worker(url=cluster.url, prefix=space, backoff={"type": "fixed", "delay": 50}), []
    broadcast = Broadcast(worker=worker)

    @broadcast.on("word")
    async def word(text: str) -> None:
        ran.append(text)

    @worker.on("first")
    async def first(n: int) -> Next:
        if "failed" not in ran:
            ran.append("failed")
            raise ValueError
        return Next("second", n)

    @worker.on("second")
    async def second(n: int) -> None:
        ran.append(n)

    async with worker.running(), Client(url=cluster.url, prefix=space) as producer:
        await producer.schedule("first", 1, timedelta(milliseconds=50))
        await producer.enqueue_many([Job("second", n) for n in range(2, 700)])
        await broadcast.send("word", "heard")
        await wait_until(lambda: set(ran) == {"failed", "heard", *range(1, 700)}, 10.0, "all have run")
        assert await keys(cluster.owner, space) > 3
        assert [await keys(node, space) for node in cluster.others] == [0, 0]
        info = await Inspector(producer).queues()
        assert (info.complete, info.dead) == (True, 0)
        assert await worker.redis.get(f"{space}:x") is None  # handlers' own commands reach the node of the keyspace


async def test_a_slot_that_moves(cluster: Cluster, space: str) -> None:
    """Its keys move to another node under a running worker: nothing is lost, nothing runs twice for it."""
    worker, ran = Worker(url=cluster.url, prefix=space, connect_timeout=10_000), []
    worker.on("count", lambda n: ran.append(n))  # type: ignore[arg-type, misc]
    moved = asyncio.Event()

    async def produce(producer: Client) -> int:
        n = 0
        while not moved.is_set() or n < 200:
            await producer.enqueue("count", n)
            n += 1
            await asyncio.sleep(0.002)
        return n

    async with worker.running(), Client(url=cluster.url, prefix=space, connect_timeout=10_000) as producer:
        producing = asyncio.create_task(produce(producer))
        await wait_until(lambda: len(ran) > 50)
        target = cluster.others[0]
        await asyncio.to_thread(cluster.move, target)
        await producer.enqueue("count", -1)
        moved.set()
        count = await producing
        await wait_until(lambda: len(ran) >= count + 1, 10.0, "all have run")
        assert sorted(ran) == list(range(-1, count))
        assert await keys(target, space) > 0


async def test_several_keyspaces(cluster: Cluster) -> None:
    """One for each node, each with workers of its own: all three hold work, and all of it is done."""
    prefixes: dict[Server, str] = {}
    for n in range(100):
        prefix = f"{{jobs:{n}}}"
        prefixes.setdefault(cluster.node_of(prefix), prefix)
    clients = [Client(url=cluster.url, prefix=prefix) for prefix in prefixes.values()]
    assert len(clients) == 3
    tasks, ran = TaskRegistry(), []
    tasks.on("count", lambda n: ran.append(n))  # type: ignore[arg-type, misc]
    for n in range(60):
        await clients[crc32(str(n).encode()) % 3].enqueue("count", n)
    for node, prefix in prefixes.items():
        async with Redis(unix_socket_path=node.socket) as there:
            assert 5 < await there.xlen(f"{prefix}:default") < 60
    async with contextlib.AsyncExitStack() as stack:
        for prefix in prefixes.values():
            await stack.enter_async_context(Worker(url=cluster.url, prefix=prefix, tasks=[tasks]).running())
        await wait_until(lambda: sorted(ran) == list(range(60)))
    for client in clients:
        await client.aclose()


async def test_a_node_that_dies() -> None:
    """Its replica takes over the slot; the worker finds it there, though the node that it had asked first is gone."""
    with Cluster("{jobs}") as cluster:
        worker, ran = Worker(url=cluster.url, prefix="{jobs}", idle_timeout=2_000, reclaimer_interval=500), []
        worker.on("count", lambda n: ran.append(n))  # type: ignore[arg-type, misc]
        async with worker.running(), Client(url=cluster.url, prefix="{jobs}", connect_timeout=1_000) as producer:
            await producer.enqueue_many([Job("count", n) for n in range(500)], durability="replica")
            cluster.owner.kill()
            died = time.monotonic()
            while 500 not in ran:
                assert time.monotonic() - died < BACK
                try:
                    await producer.enqueue("count", 500)
                except BackstageError:
                    continue
                await asyncio.sleep(0.05)
            await wait_until(lambda: set(ran) == set(range(501)), BACK, "all that was confirmed is run")


def test_a_prefix_without_a_hash_tag(cluster: Cluster) -> None:
    """Is refused before anything is sent: its keys would be all over the cluster."""
    with pytest.raises(ConfigError, match="hash tag"):
        Client(url=cluster.url, prefix="jobs")

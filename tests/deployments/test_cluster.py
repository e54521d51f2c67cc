"""A cluster of three nodes: a keyspace lives on the one that owns its slot, and clients find it there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from zlib import crc32

import pytest
from redis.asyncio import Redis

from backstage import (
    BackstageError,
    Broadcast,
    Client,
    ConfigError,
    Inspector,
    Job,
    Next,
    RedisOptions,
    RedisUnavailable,
    Run,
    Worker,
)
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


def enough(cluster: Cluster, name: str) -> tuple[int, list[Server]]:
    """How many keyspaces it takes until each node owns one, and the node of each."""
    nodes: list[Server] = []
    while set(nodes) != set(cluster.nodes[:3]):
        nodes.append(cluster.node_of(f"{{{name}:{len(nodes)}}}"))
    return len(nodes), nodes


def keyspace_of(id: str, count: int) -> int:
    return crc32(id.encode()) % count


async def test_several_keyspaces(cluster: Cluster) -> None:
    """All three nodes hold work, and one worker does all of it: delays, retries, chains; a dedupe key holds for all."""
    name = uuid.uuid4().hex[:8]
    count, nodes = enough(cluster, name)
    settings: RedisOptions = {"url": cluster.url, "prefix": f"{{{name}}}", "keyspaces": count}
    worker = Worker(**settings, backoff={"type": "fixed", "delay": 20})
    ran: list[int] = []
    tried: set[str] = set()

    @worker.on("first")
    async def first(n: int, run: Run) -> Next:
        tried.add(run.job.id)
        if run.attempt == 1:
            raise ValueError
        return Next("second", n, delay=20 * (n % 2))

    worker.on("second", lambda n: ran.append(n))  # type: ignore[arg-type, misc]
    async with Client(**settings) as producer:
        ids = await producer.enqueue_many(
            [Job("first", n, delay=100 * (n % 2), dedupe=None if n % 3 else f"key-{n}") for n in range(300)]
        )
        repeated = await producer.enqueue_many([Job("first", -1, dedupe=f"key-{n}") for n in range(0, 300, 3)])
        assert repeated == [None] * 100
        held = [await keys(node, f"{{{name}:") for node in cluster.nodes[:3]]
        assert all(held)
        for n in range(count):
            async with Redis(unix_socket_path=nodes[n].socket) as there:
                assert (
                    0
                    < await there.xlen(f"{{{name}:{n}}}:default") + await there.zcard(f"{{{name}:{n}}}:scheduled")
                    < 300
                )
        async with worker.running():
            await wait_until(lambda: sorted(ran) == list(range(300)), 10.0, "all have run")
            (seen,) = await Inspector(producer).workers()
            assert seen.id == worker.worker_id
        assert tried == set(ids)
        info = await Inspector(producer).queues()
        assert (info.waiting, info.running, info.scheduled, info.dead) == (0, 0, 0, 0)


async def test_a_stop_gives_back_on_every_node(cluster: Cluster) -> None:
    """What is not done when the grace period ends is free for others at once."""
    name = uuid.uuid4().hex[:8]
    count, _ = enough(cluster, name)
    settings: RedisOptions = {"url": cluster.url, "prefix": f"{{{name}}}", "keyspaces": count}
    worker = Worker(**settings, grace_period=0, concurrency=10)
    started: list[str] = []

    @worker.on("long")
    async def long(run: Run) -> None:
        started.append(run.job.id)
        await asyncio.Event().wait()

    async with Client(**settings) as producer:
        await producer.enqueue_many([Job("long") for _ in range(60)])
        async with worker.running():
            await wait_until(lambda: len(started) == 10)
        info = await Inspector(producer).queues()
        assert (info.waiting, info.running) == (60, 0)
        assert await Inspector(producer).workers() == []


async def test_a_node_that_is_away_for_a_while() -> None:
    """Its jobs wait, and run when it is back; the others go on meanwhile, and so do workers that start meanwhile."""
    with Cluster("{jobs}", "--appendonly", "yes", "--appendfsync", "always") as cluster:
        count, nodes = enough(cluster, "jobs")
        away, ran = cluster.others[0], list[str]()
        settings: RedisOptions = {"url": cluster.url, "prefix": "{jobs}", "keyspaces": count, "connect_timeout": 1_000}

        def make(name: str) -> Worker:
            worker = Worker(**settings, worker_id=name)

            @worker.on("note")
            async def note(run: Run) -> None:
                ran.append(run.job.id)

            return worker

        def parted(name: str) -> tuple[list[Job], set[str], set[str]]:
            """Sixty jobs: all, the ids of those for other nodes, and of those for the one that goes away."""
            jobs = [Job("note", id=f"{name}-{n}") for n in range(60)]
            other = {job.id for job in jobs if nodes[keyspace_of(job.id, count)] is not away}
            return jobs, other, {job.id for job in jobs} - other

        async with Client(**settings) as producer:
            before, others_before, its_before = parted("before")
            await producer.enqueue_many(before)
            away.kill()
            async with make("started-meanwhile").running():
                await wait_until(lambda: set(ran) == others_before, BACK, "the others have run")
                during, others_during, its_during = parted("during")
                key = next(f"k{n}" for n in range(99) if nodes[keyspace_of(f"k{n}", count)] is not away)
                twins = [Job("note", id=f"twin-{n}", dedupe=key) for n in range(2)]
                others_during.add("twin-0")
                told = f"^{len(others_during)} of 62 jobs are enqueued, 1 were duplicates; of {len(its_during)} for"
                with pytest.raises(RedisUnavailable, match=told):
                    await producer.enqueue_many([*during, *twins])
                await wait_until(lambda: set(ran) == others_before | others_during, 2.0, "what was told has arrived")
                async with make("stops-meanwhile").running():
                    one = Job(
                        "note", id=next(f"x{n}" for n in range(99) if nodes[keyspace_of(f"x{n}", count)] is not away)
                    )
                    await producer.enqueue_many([one])
                    await wait_until(lambda: one.id in ran, 1.0, "nobody waits for the node")
                away.start()
                await wait_until(lambda: its_before <= set(ran), BACK, "what waited has run")
                after, *_ = parted("after")
                await producer.enqueue_many(after)
                everything = {job.id for job in (*before, *after, one)} | others_during
                await wait_until(lambda: everything <= set(ran), BACK, "all is as it was")
                inspector = Inspector(producer)
                await wait_until(lambda: _none_runs(inspector), 2.0, "all is written down")
                away.kill()
                last, others_last, _ = parted("last")
                with pytest.raises(RedisUnavailable):
                    await producer.enqueue_many(last)
                await wait_until(lambda: others_last <= set(ran), BACK, "it goes away from under a worker")
            assert max(Counter(ran).values()) == 1


async def _none_runs(inspector: Inspector) -> bool:
    return (await inspector.queues(["default"])).running == 0


@contextlib.contextmanager
def standing_still(node: Server) -> Iterator[None]:
    """Its process gets no turn: it takes connections and calls, and answers none."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def test_a_node_that_does_not_answer() -> None:
    """No turn of the others waits for it. At a stop its outcomes are waited for, as those of all."""
    with Cluster("{jobs}") as cluster:
        count, nodes = enough(cluster, "jobs")
        still = next(node for node in nodes if node is not nodes[0] and node is not cluster.owner)
        settings: RedisOptions = {"url": cluster.url, "prefix": "{jobs}", "keyspaces": count, "connect_timeout": 2_000}
        worker, ran = Worker(**settings, grace_period=0, concurrency=20), list[str]()

        @worker.on("note")
        async def note(run: Run) -> None:
            ran.append(run.job.id)

        @worker.on("long")
        async def long(run: Run) -> None:
            ran.append(run.job.id)
            await asyncio.Event().wait()

        ids = [f"note-{n}" for n in range(300)]
        others = [id for id in ids if nodes[keyspace_of(id, count)] is not still][:60]
        async with Client(**settings) as producer:
            async with worker.running():
                await producer.enqueue_many([Job("long", id=f"long-{n}") for n in range(12)])
                await wait_until(lambda: len(ran) == 12)
                assert {nodes[keyspace_of(id, count)] for id in ran} == set(nodes)
                with standing_still(still):
                    for id in others:
                        await producer.enqueue_many([Job("note", id=id)])
                        await wait_until(lambda: ran[-1] == id, 0.5, "its turn comes at once")  # noqa: B023
                        await asyncio.sleep(0.02)  # so that all of it lasts for longer than any pause of the worker's
                    stopping = asyncio.create_task(worker.stop())
                    await asyncio.sleep(0.3)
                await stopping
            info = await Inspector(producer).queues()
            assert (info.waiting, info.running) == (12, 0)


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

"""Finisher: makes outcomes durable, many at a time, for as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from backstage.job import Delivery, Job
from backstage.outcome import DONE, Again, Dead, Done, Released
from backstage.stream import Stream
from backstage.worker.finisher import MOST, Finisher
from support.server import Server
from support.waiting import wait_until

Streams = Callable[..., Stream]


class Bench:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.batches = self.waits = 0
        self.finisher = Finisher(stream, settled=self.settled, waits=self.waited)

    def settled(self) -> None:
        self.batches += 1

    def waited(self) -> None:
        self.waits += 1

    async def take(self, n: int) -> list[Delivery]:
        """That many jobs in our hands."""
        for _ in range(n):
            await self.stream.enqueue("t")
        taken: list[Delivery] = []
        while len(taken) < n:
            taken += await self.stream.take(n)
        return taken

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Finisher]:
        task = asyncio.create_task(self.finisher.run())
        try:
            yield self.finisher
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_each_kind(streams: Streams, redis: Redis, prefix: str) -> None:
    """Every outcome is made durable as what it is."""
    bench = Bench(streams())
    done, chained, failed, dead, released = await bench.take(5)
    async with bench.running() as finisher:
        finisher.put(done, DONE)
        finisher.put(chained, Done((Job("b", queue="next"),)))
        finisher.put(failed, Again(60_000, "no"))
        finisher.put(dead, Dead("discarded", "no use"))
        finisher.put(released, Released())
        assert finisher.waiting() == 5
        assert await finisher.flushed(5)
        assert finisher.waiting() == 0
    assert await redis.xlen(f"{prefix}:next") == 1
    assert await redis.zcard(f"{prefix}:retries") == 1
    assert await redis.xlen(f"{prefix}:default:dead-letter") == 1
    (pending,) = await redis.xpending_range(f"{prefix}:default", "backstage-workers", "-", "+", 9)
    assert pending["consumer"] == "~released"
    assert bench.stream.held["default"] == {}
    assert bench.waits == 2  # what was chained, for it may be delayed, and the retry


async def test_in_batches(streams: Streams) -> None:
    """What comes while a call is on its way goes with the next one."""
    bench = Bench(streams())
    taken = await bench.take(60)
    async with bench.running() as finisher:
        for delivery in taken:
            finisher.put(delivery, DONE)
        assert await finisher.flushed(5)
    assert bench.batches == 1


async def test_neither_kind_holds_up_the_other(streams: Streams) -> None:
    """A batch has room for plain outcomes and for those with effects; it is bounded."""
    bench = Bench(streams())
    entries = [Delivery("default", f"{n}-0".encode(), []) for n in range(1, 2_001)]
    for delivery in entries[:1_000]:
        bench.finisher.put(delivery, DONE)
    for delivery in entries[1_000:]:
        bench.finisher.put(delivery, Released())
    sizes = []
    while batch := bench.finisher._cut():
        done, others = batch
        sizes.append((sum(map(len, done.values())), len(others)))
    assert sizes[0] == (MOST // 2, MOST // 2)
    assert sum(done + others for done, others in sizes) == 2_000
    assert all(done + others <= MOST for done, others in sizes)


async def test_flushed(streams: Streams) -> None:
    """With nothing to do it answers at once; it gives up after its time."""
    bench = Bench(streams())
    assert await bench.finisher.flushed(0)
    (one,) = await bench.take(1)
    bench.finisher.put(one, DONE)
    assert not await bench.finisher.flushed(0.01)


async def test_redis_away(streams: Streams, own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps what it has and tries until Redis is back; that is said once. A repeated finish changes nothing."""
    caplog.set_level(logging.WARNING, "backstage")
    own_server.stop()
    own_server.start("--appendonly", "yes")
    bench = Bench(streams(own_server))
    taken = await bench.take(3)
    own_server.kill()
    async with bench.running() as finisher:
        for delivery in taken:
            finisher.put(delivery, DONE)
        await wait_until(lambda: "can't finish jobs yet" in caplog.text)
        assert finisher.waiting() == 3
        own_server.start()
        assert await finisher.flushed(10)
    assert [record.levelname for record in caplog.records if "can't finish" in record.message] == ["WARNING"]
    assert bench.stream.held["default"] == {}
    with own_server.client() as db:
        assert db.xlen(bench.stream.keys.stream("default")) == 0


async def test_not_ours_any_more(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    """Outcomes of what somebody else has by now change nothing, and are told."""
    caplog.set_level(logging.WARNING, "backstage")
    bench, other = Bench(streams(consumer="slow~1")), streams(consumer="other~1")
    plain, failed = await bench.take(2)

    async def both() -> bool:
        return len(await other.reclaim(10, idle=5)) == 2

    await wait_until(both)
    async with bench.running() as finisher:
        finisher.put(plain, Done((Job("b"),)))
        finisher.put(failed, Again(0))
        assert await finisher.flushed(5)
    assert "Again of default:" in caplog.text
    assert "not ours any more" in caplog.text


async def test_refused(streams: Streams, redis: Redis, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """An outcome whose key has another type stays held and is tried again; the others of its batch go on."""
    caplog.set_level(logging.ERROR, "backstage")
    bench = Bench(streams())
    dead, done = await bench.take(2)
    await redis.set(f"{prefix}:default:dead-letter", "planted")
    async with bench.running() as finisher:
        finisher.put(dead, Dead("error"))
        finisher.put(done, DONE)
        assert await finisher.flushed(5)
        assert list(bench.stream.held["default"].values()) == [dead]
        assert f"Dead of default:{dead.entry_id.decode()}" in caplog.text
        await redis.delete(f"{prefix}:default:dead-letter")
        await wait_until(lambda: not bench.stream.held["default"])
    assert await redis.xlen(f"{prefix}:default:dead-letter") == 1

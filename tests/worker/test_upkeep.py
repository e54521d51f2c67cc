"""Upkeep: the loop that outlives failures, and the small loops that run on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from backstage.errors import RedisRefused, RedisUnavailable
from backstage.outcome import Again
from backstage.stream import Stream
from backstage.worker.upkeep import Pause, Promoter, Registry, every
from support.waiting import wait_until

Streams = Callable[..., Stream]


@contextlib.asynccontextmanager
async def looping(seconds: float, step: Callable[[], Awaitable[float | None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(every(seconds, step, "working"))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# ---- every -----------------------------------------------------------------------------------------------------------


async def test_every() -> None:
    """Runs a step for ever, so many seconds apart, a little more or less."""
    times: list[float] = []

    async def step() -> None:
        times.append(time.monotonic())

    async with looping(0.03, step):
        await wait_until(lambda: len(times) == 4)
    assert all(later - earlier >= 0.026 for earlier, later in itertools.pairwise(times))


async def test_a_step_says_when() -> None:
    """Once."""
    times: list[float] = []

    async def step() -> float:
        times.append(time.monotonic())
        return 0.0

    async with looping(60, step):
        await wait_until(lambda: len(times) >= 3)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (RedisUnavailable("away"), logging.DEBUG),
        (RedisRefused("no permission"), logging.ERROR),
        (LookupError("a mistake"), logging.ERROR),
    ],
    ids=repr,
)
async def test_outlives_failures(error: Exception, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails is said, and tried again after half a second at least."""
    caplog.set_level(logging.DEBUG, "backstage")
    tries: list[float] = []

    async def step() -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise error

    async with looping(0.01, step):
        await wait_until(lambda: len(tries) > 1)
    assert tries[1] - tries[0] >= 0.45
    (line,) = [record for record in caplog.records if record.name == "backstage"]
    assert line.levelno == level
    assert "working" in line.message


async def test_a_swallowed_cancellation() -> None:
    """A step that swallows its cancellation ends the loop all the same, after the step."""
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    task = asyncio.create_task(every(60, step, "working"))
    await begun.wait()
    task.cancel()
    await asyncio.wait_for(asyncio.wait([task]), 1)


async def test_pause() -> None:
    """A sleep that can be cut short, even before it has begun; each end ends one."""
    pause = Pause()
    pause.end()
    await asyncio.wait_for(pause.sleep(60), 1)
    begun = time.monotonic()
    await pause.sleep(0.02)
    assert time.monotonic() - begun >= 0.015
    sleeping = asyncio.create_task(pause.sleep(60))
    await asyncio.sleep(0)
    pause.end()
    await asyncio.wait_for(sleeping, 1)


# ---- Promoter --------------------------------------------------------------------------------------------------------


async def test_promotes(streams: Streams) -> None:
    """Jobs whose time has come go to their streams: those put off, and those to be retried."""
    stream = streams()
    promoter = Promoter(stream)
    await stream.enqueue("failed")
    (one,) = await stream.take(1)
    await stream.finish([(one, Again(10))])
    await stream.enqueue("later", delay=20)
    tasks: list[str] = []

    async def taken() -> bool:
        tasks.extend(stream.job(delivery).task for delivery in await stream.take(10))
        return len(tasks) == 2

    async with looping(0.0, promoter.step):
        await wait_until(taken)
    assert tasks == ["failed", "later"]


@pytest.mark.parametrize(("delay", "sleeps"), [(None, 1.0), (60_000, 0.2)])
async def test_sleeps(streams: Streams, delay: int | None, sleeps: float) -> None:
    """At most 200 ms where something waits, and a second where nothing does."""
    stream = streams()
    if delay is not None:
        await stream.enqueue("t", delay=delay)
    begun = time.monotonic()
    await Promoter(stream).step()
    assert sleeps - 0.02 <= time.monotonic() - begun < sleeps + 0.5


async def test_sleeps_until_the_next_one_is_due(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it might sleep."""
    monkeypatch.setattr(Promoter, "AWAKE", 10.0)
    monkeypatch.setattr(Promoter, "ASLEEP", 10.0)
    stream, begun = streams(), time.monotonic()
    await stream.enqueue("t", delay=500)
    await Promoter(stream).step()
    assert 0.48 <= time.monotonic() - begun < 2


async def test_woken(streams: Streams) -> None:
    """Whoever knows of an earlier one wakes it, also while it asks the server."""
    promoter = Promoter(streams())
    promoter.wake()
    await asyncio.wait_for(promoter.step(), 0.5)
    stepping = asyncio.create_task(promoter.step())
    await asyncio.sleep(0.02)
    promoter.wake()
    await asyncio.wait_for(stepping, 0.5)


# ---- Registry --------------------------------------------------------------------------------------------------------


async def test_beat(streams: Streams, redis: Redis, prefix: str) -> None:
    """The registry has every live worker, its facts among it, and forgets it a minute after its last beat."""
    stream = streams(consumer="w-1~a")
    registry = Registry(stream, "w-1", lambda: {"pid": "7", "running": "2"}, idle=30_000)
    await registry.beat()
    assert await redis.zrange(f"{prefix}:workers", 0, -1) != []
    facts = await redis.hgetall(f"{prefix}:workers:w-1")
    assert (facts["pid"], facts["running"]) == ("7", "2")
    assert 59_000 < await redis.pttl(f"{prefix}:workers:w-1") <= 60_000


async def test_prune(streams: Streams, redis: Redis, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Consumers of workers that are gone for long and hold nothing are deleted, and what others acked is trimmed."""
    caplog.set_level(logging.INFO, "backstage")
    stream, key, group = streams(consumer="w-1~a", queues=["default"]), f"{prefix}:default", "backstage-workers"
    await stream.initialize()
    for _ in range(3):
        await stream.enqueue("t")
    ((_, entries),) = await redis.xreadgroup(group, "worker-123", {key: ">"})  # another SDK acks and leaves
    await redis.xack(key, group, *(entry_id for entry_id, _ in entries))
    registry = Registry(stream, "w-1", dict, idle=1)
    assert await registry.pruned() == [("default", 0, 3, 1)]
    assert await redis.xlen(key) == 0
    assert [each["name"] for each in await redis.xinfo_consumers(key, group)] == ["worker-123"]
    await registry.prune()
    assert "pruned queue" not in caplog.text


async def test_a_queue_that_could_not_be_served(streams: Streams, redis: Redis, prefix: str) -> None:
    """Is tried again with each pruning: somebody may have mended its key."""
    await redis.set(f"{prefix}:default", "planted")
    stream = streams(queues=["urgent", "default"])
    assert await stream.initialize() == ["default"]
    registry = Registry(stream, "w-1", dict, idle=1)
    with contextlib.suppress(RedisRefused):
        await registry.prune()
    await redis.delete(f"{prefix}:default")
    await registry.prune()
    assert stream.refused == []

"""Stream: the end of a delivery that comes after the same stream got the entry again, with the same count."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest
from redis.asyncio import Redis

from backstage.job import Delivery, Job
from backstage.outcome import Again, Dead, Done, Outcome, Released
from backstage.ready import Ready
from backstage.stream import Stream

GROUP = "backstage-workers"
How: TypeAlias = Callable[[Stream, Redis], Awaitable[tuple[Delivery, Delivery]]]


@pytest.fixture
async def stream(url: str, prefix: str) -> AsyncIterator[Stream]:
    async with Redis.from_url(url) as redis:
        stream = Stream(redis, GROUP, prefix=prefix, queues=["default"])
        await stream.initialize()
        yield stream
        await stream.aclose()


async def given_back(stream: Stream, redis: Redis) -> tuple[Delivery, Delivery]:
    """Given back, and taken again by the same stream: giving back takes the delivery off the count."""
    (first,) = await stream.take(room=1)
    assert await stream.finish([(first, Released())]) == [True]
    (again,) = await stream.reclaim(1)
    return first, again


async def made_again(stream: Stream, redis: Redis) -> tuple[Delivery, Delivery]:
    """The group was made again, and so counts from the beginning."""
    (first,) = await stream.take(room=1)
    await redis.xgroup_destroy(stream.keys.stream("default"), GROUP)
    await redis.xgroup_create(stream.keys.stream("default"), GROUP, "0")
    (again,) = await stream.take(room=1)
    return first, again


@pytest.mark.parametrize("how", [given_back, made_again])
@pytest.mark.parametrize("outcome", [Again(1), Dead("error"), Released()], ids=lambda outcome: type(outcome).__name__)
async def test_an_old_run_does_not_undo_a_new_one(stream: Stream, redis: Redis, how: How, outcome: Outcome) -> None:
    """The end of the first run, told twice or late, changes nothing; the second run is held, and its end counts."""
    await stream.send([Ready("t", "1", "default")], "call", 1_000)
    first, again = await how(stream, redis)
    assert (first.entry_id, first.times) == (again.entry_id, again.times)
    assert await stream.finish([(first, outcome)]) == [False]
    assert await stream.renew([again]) == []
    assert stream.held["default"] == {again.entry_id: again}
    assert await stream.finish([(first, outcome), (again, outcome)]) == [False, True]


async def test_a_success_counts_whichever_run_had_it(stream: Stream, redis: Redis) -> None:
    """The work is done; the second run changes nothing more."""
    await stream.send([Ready("t", "1", "default")], "call", 1_000)
    first, again = await given_back(stream, redis)
    assert await stream.finish([(first, Done((Job("next", queue="default"),)))]) == [True]
    assert await stream.finish([(again, Dead("error"))]) == [False]
    assert await redis.xlen(stream.keys.stream("default")) == 1

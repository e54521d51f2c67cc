"""Stream: the data path by itself, for those who build their own loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from backstage import Again, Client, ConfigError, Dead, Done, Inspector, Job, Queue, Released, Stream, TaskRegistry
from support.waiting import wait_until


@pytest.fixture(params=[True, False], ids=["str", "bytes"])
async def stream(url: str, prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[Stream]:
    """A stream of the three default queues; the client that it is given may decode responses or not."""
    async with Redis.from_url(url, decode_responses=request.param) as redis:
        made = Stream(redis, "backstage-workers", prefix=prefix)
        await made.initialize()
        yield made
        await made.aclose()


async def test_a_loop_of_ones_own(stream: Stream) -> None:
    """Enqueue, take, run, finish: the whole path of a job in five lines."""
    job_id = await stream.enqueue("sum", [1, 2, 3])
    (delivery,) = await stream.take(10)
    job = stream.job(delivery)
    assert (job.id, job.task, sum(job.payload), delivery.times) == (job_id, "sum", 6, 1)
    assert await stream.finish([(delivery, Done())]) == [True]
    assert await stream.take(10) == []


async def test_best_queue_first(stream: Stream) -> None:
    """`take` brings at most so many, the best queue's first."""
    for priority in ("low", "default", "urgent"):
        await stream.enqueue("t", priority, priority=priority)  # type: ignore[arg-type]
    first = await stream.take(1)
    second = await stream.take(2)
    assert [delivery.queue for delivery in first + second] == ["urgent", "default", "low"]


async def test_waiting(stream: Stream, client: Client) -> None:
    """`take(room, block)` waits so many milliseconds, or until something comes."""
    begun = time.monotonic()
    assert await stream.take(1, block=30) == []
    assert 0.025 < time.monotonic() - begun < 1
    await client.enqueue("t")
    assert len(await stream.take(1, block=5_000)) == 1


async def test_what_comes_next(stream: Stream) -> None:
    """`Done(next=[…])` enqueues successors in the same step."""
    await stream.enqueue("first")
    (delivery,) = await stream.take(1)
    assert await stream.finish([(delivery, Done((Job("second", {"n": 1}, queue="urgent"),)))]) == [True]
    (second,) = await stream.take(1)
    assert (stream.job(second).task, stream.job(second).payload, second.queue) == ("second", {"n": 1}, "urgent")


async def test_again(stream: Stream) -> None:
    """`Again(delay, error)` puts the job off; `promote` moves it when its time has come, and tells the next one's."""
    job_id = await stream.enqueue("t")
    (delivery,) = await stream.take(1)
    assert await stream.finish([(delivery, Again(20, "not yet"))]) == [True]
    due = await stream.promote()
    assert due is not None
    assert abs(due - time.time() * 1000) < 1_000

    async def promoted() -> bool:
        return await stream.promote() is None

    await wait_until(promoted)
    (again,) = await stream.take(1)
    assert (stream.job(again).id, stream.job(again).attempt, again.times) == (job_id, 1, 1)


async def test_dead(stream: Stream, client: Client) -> None:
    """`Dead(reason, error)` gives the job up."""
    job_id = await stream.enqueue("t", {"n": 1})
    (delivery,) = await stream.take(1)
    assert await stream.finish([(delivery, Dead("discarded", "no use"))]) == [True]
    (dead,) = await Inspector(client).dead("default")
    assert (dead.id, dead.reason, dead.error, dead.payload) == (job_id, "discarded", "no use", '{"n":1}')


async def test_released(stream: Stream) -> None:
    """`Released()` gives the job back: whoever looks has it at once, and it counts as no delivery."""
    await stream.enqueue("t")
    (delivery,) = await stream.take(1)
    assert await stream.finish([(delivery, Released())]) == [True]
    (again,) = await stream.reclaim(10)
    assert (again.entry_id, again.times) == (delivery.entry_id, 1)


async def test_only_one_finishes(stream: Stream) -> None:
    """A second finish of one delivery changes nothing, and is told so."""
    await stream.enqueue("t")
    (delivery,) = await stream.take(1)
    assert await stream.finish([(delivery, Done()), (delivery, Again(0))]) == [True, False]
    assert await stream.finish([(delivery, Dead("error"))]) == [False]
    assert await stream.promote() is None


async def test_leases(stream: Stream, url: str, prefix: str) -> None:
    """A delivery stays ours while it is renewed; left alone for a lease it is somebody else's, and renewing tells."""
    await stream.enqueue("t")
    (delivery,) = await stream.take(1)
    assert await stream.renew([delivery]) == []
    async with Redis.from_url(url) as redis:
        other = Stream(redis, prefix=prefix, consumer="other~1")
        await other.initialize()
        assert await other.reclaim(10, idle=60_000) == []

        async def taken() -> object:
            return await other.reclaim(10, "default", idle=20)

        (theirs,) = await wait_until(taken)  # type: ignore[misc]
        assert (theirs.entry_id, theirs.times) == (delivery.entry_id, 2)
        assert await stream.renew([delivery]) == [delivery]
        assert await stream.finish([(delivery, Again(0))]) == [False]
        assert await other.finish([(theirs, Done())]) == [True]
        await other.aclose()


async def test_queues_and_routes(url: str, prefix: str) -> None:
    """`queues=` says what is served; a Task goes to its own queue."""
    task = TaskRegistry(queue="emails").on("mail", lambda payload: None)
    async with Redis.from_url(url) as redis:
        stream = Stream(redis, prefix=prefix, queues=[Queue("emails", priority=1), "default"])
        await stream.initialize()
        await stream.enqueue("t", queue="default")
        await stream.enqueue(task, 1)
        assert [delivery.queue for delivery in await stream.take(10)] == ["emails", "default"]
        await stream.aclose()


async def test_dedupe(stream: Stream) -> None:
    """The options of `enqueue` are those of a client's."""
    assert await stream.enqueue("t", dedupe="k")
    assert await stream.enqueue("t", dedupe="k") is None


async def test_names(url: str, prefix: str) -> None:
    """A consumer is called `<worker id>~<nonce>`, so that other SDKs' can be told apart."""
    async with Redis.from_url(url) as redis:
        assert "~" in Stream(redis, prefix=prefix).consumer
        assert Stream(redis, prefix=prefix, consumer="w~1").consumer == "w~1"
        with pytest.raises(ConfigError, match="<worker id>~<nonce>"):
            Stream(redis, prefix=prefix, consumer="w")

"""Enqueue: ask for a job, in this process or in another one."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import create_autospec

import pytest
from redis.asyncio import Redis

from backstage import (
    Client,
    ConfigError,
    InvalidName,
    Job,
    NotSerializable,
    PayloadTooLarge,
    RedisRefused,
    RedisUnavailable,
    Run,
    Task,
    Worker,
)
from support.waiting import wait_until


async def test_one_process_enqueues_and_another_works(client: Client, worker: Worker) -> None:
    """A client needs nothing but the task's name; a worker that has it gets the payload as it was given."""
    handled: list[object] = []

    @worker.on("email.send")
    async def send(message: dict[str, str]) -> None:
        handled.append(message)

    await client.enqueue("email.send", {"to": "ada@example.com"})
    async with worker.running():
        await wait_until(lambda: handled == [{"to": "ada@example.com"}])


async def test_id_of_a_job(client: Client, worker: Worker) -> None:
    """`enqueue` returns the job's id, which is the one that its handler sees."""
    seen: list[str] = []

    @worker.on("email.send")
    async def send(run: Run) -> None:
        seen.append(run.job.id)

    job_id = await client.enqueue("email.send")
    async with worker.running():
        await wait_until(lambda: seen == [job_id])


async def test_ids_sort_by_time(client: Client) -> None:
    """Ids are UUIDv7: no two are alike, and a later one is greater."""
    first = await client.enqueue("t")
    before = datetime.now(UTC)
    while datetime.now(UTC) - before < timedelta(milliseconds=2):
        await asyncio.sleep(0)
    second = await client.enqueue("t")
    assert first < second
    assert first[14] == second[14] == "7"


async def test_worker_is_a_client(worker: Worker) -> None:
    """What a client does, a worker does, before it runs and while it does."""
    handled: list[int] = []
    worker.on("n", handled.append)  # a plain function will do
    await worker.enqueue("n", 1)
    async with worker.running():
        await worker.enqueue("n", 2)
        await worker.client.enqueue("n", 3)
        await wait_until(lambda: sorted(handled) == [1, 2, 3])


async def test_once_enqueue_has_returned_the_server_has_the_job(client: Client, redis: Redis, prefix: str) -> None:
    """A job is an entry of its queue's stream: task, payload as JSON, time in milliseconds, id."""
    before = datetime.now(UTC)
    job_id = await client.enqueue("order.create", {"id": "ü", "amount": 12.5})
    ((_, fields),) = await redis.xrange(f"{prefix}:default")
    assert list(fields) == ["taskName", "payload", "enqueuedAt", "jobId"]
    assert (fields["taskName"], fields["jobId"]) == ("order.create", job_id)
    assert json.loads(fields["payload"]) == {"id": "ü", "amount": 12.5}
    assert 0 <= int(fields["enqueuedAt"]) - int(before.timestamp() * 1000) < 5_000


async def test_only_what_was_given_is_written(client: Client, redis: Redis, prefix: str) -> None:
    """Attempts, backoff and timeout go on the wire as other SDKs write them: only when given, in milliseconds."""
    await client.enqueue(
        "t",
        attempts=3,
        backoff={"type": "exponential", "delay": timedelta(seconds=1), "maxDelay": 30_000},
        timeout=timedelta(seconds=10),
    )
    ((_, fields),) = await redis.xrange(f"{prefix}:default")
    assert fields["payload"] == "null"
    assert {name: fields[name] for name in ("attempts", "backoff", "timeout")} == {
        "attempts": "3",
        "backoff": '{"type":"exponential","delay":1000,"maxDelay":30000}',
        "timeout": "10000",
    }


async def test_none_means_not_given(client: Client, redis: Redis, prefix: str) -> None:
    """An option that is None is the same as one that isn't there."""
    await client.enqueue(
        "t", None, priority=None, queue=None, delay=None, dedupe=None, attempts=None, backoff=None, timeout=None
    )
    ((_, fields),) = await redis.xrange(f"{prefix}:default")
    assert list(fields) == ["taskName", "payload", "enqueuedAt", "jobId"]


async def test_many_at_once(client: Client, worker: Worker) -> None:
    """`enqueue_many` takes any number of jobs and returns their ids in their order."""
    handled: list[int] = []

    @worker.on("n")
    async def count(n: int) -> None:
        handled.append(n)

    jobs = [Job("n", n) for n in range(1_200)]
    assert await client.enqueue_many(jobs) == [job.id for job in jobs]
    async with worker.running():
        await wait_until(lambda: len(handled) == 1_200)
    assert sorted(handled) == list(range(1_200))


async def test_many_keeps_their_order_in_the_queue(client: Client, redis: Redis, prefix: str) -> None:
    """Jobs of one call wait in the order in which they were given."""
    await client.enqueue_many(Job("n", n) for n in range(1_001))
    assert [int(fields["payload"]) for _, fields in await redis.xrange(f"{prefix}:default")] == list(range(1_001))


async def test_none_of_many(client: Client) -> None:
    """Asking for no job is no mistake."""
    assert await client.enqueue_many([]) == []


async def test_many_is_all_or_nothing_where_a_job_is_wrong(client: Client, redis: Redis, prefix: str) -> None:
    """All are checked before anything is sent."""
    with pytest.raises(NotSerializable):
        await client.enqueue_many([*(Job("n", n) for n in range(600)), Job("n", object())])
    assert not await redis.exists(f"{prefix}:default")


async def test_id_of_ones_own(client: Client, worker: Worker) -> None:
    """A Job may carry an id of the caller's choice, fixed at construction."""
    seen: list[str] = []

    @worker.on("t")
    async def handle(run: Run) -> None:
        seen.append(run.job.id)

    assert await client.enqueue_many([Job("t", id="order-7.paid")]) == ["order-7.paid"]
    async with worker.running():
        await wait_until(lambda: seen == ["order-7.paid"])


async def test_concurrent_calls_travel_together(client: Client, redis: Redis, prefix: str) -> None:
    """A thousand calls at once are a thousand jobs, in the order of the calls, in a few round trips."""
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
    ids = await asyncio.gather(*(client.enqueue("n", n) for n in range(1_000)))
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert [fields["jobId"] for _, fields in await redis.xrange(f"{prefix}:default")] == ids
    assert after - before <= 6


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"task": ""}, InvalidName, "task name ''"),
        ({"task": "a b"}, InvalidName, "task name 'a b'"),
        ({"task": 7}, ConfigError, "or a Task"),
        ({"queue": "no spaces"}, InvalidName, "queue name 'no spaces'"),
        ({"queue": "scheduled"}, InvalidName, "keeps a key of its own"),
        ({"priority": "high"}, ConfigError, "'urgent', 'default' or 'low'"),
        ({"delay": 1.5}, TypeError, r"timedelta\(seconds=1.5\)"),
        ({"delay": -1}, ConfigError, "at least 0 ms"),
        ({"timeout": 0}, ConfigError, "at least 1 ms"),
        ({"timeout": True}, TypeError, "a timedelta or an int of milliseconds"),
        ({"attempts": 0}, ConfigError, "1 or more"),
        ({"attempts": "3"}, ConfigError, "1 or more"),
        ({"backoff": {"type": "linear"}}, ConfigError, "'fixed' or 'exponential'"),
        ({"backoff": {"type": "fixed", "wait": 3}}, ConfigError, "unknown key 'wait'"),
        ({"backoff": {"delay": 5, "jitter": 2}}, ConfigError, "from 0 to 1"),
        ({"backoff": 5}, ConfigError, "must be a Backoff or a mapping"),
        ({"dedupe": ""}, ConfigError, "1 to 512 bytes"),
        ({"dedupe": "é" * 300}, ConfigError, "1 to 512 bytes"),
        ({"dedupe": "\ud800"}, ConfigError, "1 to 512 bytes of UTF-8"),
        ({"dedupe": {"key": "k", "ttl": 0}}, ConfigError, "at least 1 ms"),
        ({"dedupe": {"ttl": 5}}, ConfigError, "key"),
        ({"retries": 3}, TypeError, "unknown option 'retries'; known are priority, queue, delay"),
    ],
    ids=str,
)
async def test_a_mistake_is_told_at_once(
    client: Client, redis: Redis, prefix: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A wrong option is refused before anything is sent, with an error that says what would be right."""
    with pytest.raises(error, match=says) as refusal:
        await client.enqueue(**{"task": "t", **options})
    assert isinstance(refusal.value, (ValueError, TypeError))
    assert not await redis.keys(f"{prefix}*")


@pytest.mark.parametrize(
    "payload",
    [object(), {"a": [lambda: 1]}, {(1, 2): 3}, "\ud800", 10**5000],
    ids=["object", "function inside", "key", "surrogate", "5000 digits"],
)
async def test_what_json_cannot_carry(client: Client, redis: Redis, prefix: str, payload: object) -> None:
    """A payload that JSON can't carry is NotSerializable, a TypeError, and nothing is sent."""
    with pytest.raises(NotSerializable):
        await client.enqueue("t", payload)
    assert not await redis.keys(f"{prefix}*")


async def test_not_a_number_becomes_null(client: Client, redis: Redis, prefix: str) -> None:
    """NaN and Infinity are written as `null`, as other SDKs do: JSON has no such numbers."""
    await client.enqueue("t", [math.nan, math.inf, 1.5])
    ((_, fields),) = await redis.xrange(f"{prefix}:default")
    assert fields["payload"] == "[null,null,1.5]"


async def test_payloads_are_bounded(url: str, prefix: str, redis: Redis) -> None:
    """More than `max_payload` bytes of JSON are refused before anything is sent; exactly as many are not."""
    async with Client(url=url, prefix=prefix, max_payload=100) as client:
        await client.enqueue("t", "x" * 98)  # and two quotes
        for payload in ("x" * 99, "é" * 50):  # bytes, not characters
            with pytest.raises(PayloadTooLarge, match=r"of t is 10[12] bytes of JSON; max_payload is 100"):
                await client.enqueue("t", payload)
        with pytest.raises(PayloadTooLarge):
            await client.enqueue_many([Job("t", "x" * 99)])
    assert await redis.xlen(f"{prefix}:default") == 1


async def test_a_megabyte_is_fine(client: Client, worker: Worker) -> None:
    """The default bound is one megabyte."""
    sizes: list[int] = []

    @worker.on("t")
    async def handle(text: str) -> None:
        sizes.append(len(text))

    await client.enqueue("t", "x" * (1_048_576 - 2))
    with pytest.raises(PayloadTooLarge, match="1,048,577 bytes of JSON; max_payload is 1,048,576"):
        await client.enqueue("t", "x" * (1_048_577 - 2))
    async with worker.running():
        await wait_until(lambda: sizes == [1_048_574])


async def test_redis_away(prefix: str) -> None:
    """Where no Redis answers, an enqueue gives up after `connect_timeout`, and says that the job may have arrived."""
    async with Client(host="127.0.0.1", port=1, prefix=prefix, connect_timeout=100) as client:
        with pytest.raises(RedisUnavailable, match=r"within 100 ms.*may have arrived") as away:
            await client.enqueue("t")
        assert isinstance(away.value, ConnectionError)
        with pytest.raises(RedisUnavailable):
            await client.enqueue_many([Job("t"), Job("t")])


async def test_client_opens_again_after_it_was_closed(client: Client) -> None:
    """Constructing opens nothing, closing twice is harmless, and a call after it opens the connections again."""
    await client.aclose()
    await client.aclose()
    assert await client.enqueue("t")


def test_client_survives_a_new_event_loop(url: str, prefix: str) -> None:
    """One client serves one event loop after the other: `asyncio.run` twice, a web server's reload."""
    client = Client(url=url, prefix=prefix)

    async def enqueue() -> str:
        async with client:
            return await client.enqueue("t")

    assert asyncio.run(enqueue()) != asyncio.run(enqueue())


def test_client_survives_a_fork(url: str, prefix: str) -> None:
    """A process that was forked from one that holds a client uses connections of its own."""
    client = Client(url=url, prefix=prefix)

    async def both() -> list[str]:
        await client.enqueue("t")
        parent, child = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(target=_enqueue_in_child, args=(client, child))
        process.start()
        found = await asyncio.to_thread(lambda: parent.recv() if parent.poll(10) else "no answer")
        await asyncio.to_thread(process.join, 10)
        mine = await client.enqueue("t")
        await client.aclose()
        return [found, mine]

    found, mine = asyncio.run(both())
    assert len(found) == len(mine) == 36
    assert found != mine


def _enqueue_in_child(client: Client, answer: Any) -> None:
    async def enqueue() -> str:
        async with client:
            return await client.enqueue("t")

    # The fork copied the thread that ran the parent's loop, but the loop itself doesn't run here.
    asyncio._set_running_loop(None)
    answer.send(asyncio.run(enqueue()))


async def test_every_way_to_await(client: Client, redis: Redis, prefix: str) -> None:
    """A call can be awaited alone or with others, as a task or not, like any coroutine; each time it is one job."""
    opening = await asyncio.gather(client.enqueue("t"), client.enqueue("t"))  # while the client connects
    alone = [await client.enqueue("t"), await asyncio.wait_for(client.enqueue("t"), 5)]
    shielded = await asyncio.shield(client.enqueue("t"))
    gathered = await asyncio.gather(*[client.enqueue("t") for _ in range(600)])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.enqueue("t")) for _ in range(3)]
    completed = [await each for each in asyncio.as_completed([client.enqueue("t"), client.enqueue("t")])]
    ids = [*opening, *alone, shielded, *gathered, *(task.result() for task in tasks), *completed]
    entries = await redis.xrange(f"{prefix}:default")
    assert sorted(ids) == sorted(fields["jobId"] for _, fields in entries)


async def test_one_mistake_among_many(client: Client) -> None:
    """It is told where its own call is awaited, and the others are enqueued."""
    await client.enqueue("t")
    calls = [client.enqueue("t", 1), client.enqueue("t", object()), client.enqueue("t", delay=-1), client.enqueue("t")]
    first, *mistakes, last = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(mistake) for mistake in mistakes] == [NotSerializable, ConfigError]
    assert isinstance(first, str)
    assert isinstance(last, str)


async def test_an_error_reaches_a_task(client: Client, redis: Redis, prefix: str) -> None:
    """What the server refuses is raised by the task that awaits the call, and by no other."""
    await redis.set(f"{prefix}:broken", "planted")
    async with asyncio.TaskGroup() as group:
        good = group.create_task(client.enqueue("t"))
        bad = asyncio.create_task(client.enqueue("t", queue="broken"))
    with pytest.raises(RedisRefused, match="WRONGTYPE the key"):
        await bad
    assert await good


async def test_a_task_that_is_cancelled_before_it_began(client: Client) -> None:
    """It ends as cancelled, as every task does."""
    await client.enqueue("t")
    task = asyncio.create_task(client.enqueue("t"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    client.enqueue("t").close()  # nor is a call missed that nobody awaits


async def test_mocks_see_coroutine_functions() -> None:
    """`create_autospec` makes awaitable mocks of what is awaited: tests of an application need no fake of its own."""
    client = create_autospec(Client, instance=True)
    client.enqueue.return_value = "id"
    assert await client.enqueue("t") == "id"
    client.enqueue.assert_awaited_once_with("t")


@pytest.mark.parametrize("function", [Client.enqueue, Client().enqueue, Task.enqueue], ids=str)
def test_frameworks_see_coroutine_functions(function: Callable[..., object]) -> None:
    """So that one who is given `client.enqueue` to call later awaits it, instead of running it in a thread."""
    seen = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction
    assert seen(function)


async def test_cancelled_call(client: Client) -> None:
    """Whoever stops waiting for an enqueue leaves the others of the same moment alone."""
    first, second = (asyncio.ensure_future(client.enqueue("t")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_repr_tells_no_password(prefix: str) -> None:
    """A client's settings can be printed: the password isn't among them."""
    client = Client(host="db", password="s3cret", prefix=prefix)
    assert "s3cret" not in repr(client.config) + repr(client)
    assert client.config.address == "redis://db:6379/0"

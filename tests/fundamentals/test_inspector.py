"""The Inspector: what waits, runs and died; dead jobs go back or away."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from backstage import report
from backstage.client import Client
from backstage.errors import ConfigError
from backstage.inspector import Inspector, inspect
from backstage.job import Job
from backstage.keys import Keys
from backstage.outcome import Again, Dead, Done, Released
from backstage.stream import Stream

GROUP = "backstage-workers"


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=prefix) as opened:
        yield opened


@pytest.fixture
async def stream(url: str, prefix: str) -> AsyncIterator[Stream]:
    """A worker's hands."""
    async with Redis.from_url(url) as redis:
        taken = Stream(redis, prefix=prefix, queues=["urgent", "default", "low", "emails"], consumer="w-1~a")
        await taken.initialize()
        yield taken
        await taken.aclose()


async def kill(client: Client, stream: Stream, n: int = 1) -> list[str]:
    """Ids of n jobs that end in the dead letter of `default`."""
    ids = await client.enqueue_many(Job("t", {"n": i}) for i in range(n))
    dead, left = Dead("error", "ValueError: no", "Traceback …"), n
    while left:
        taken = await stream.take(left)
        left -= len(taken)
        await stream.finish([(delivery, dead) for delivery in taken])
    return [id for id in ids if id]


# ---- queues ----------------------------------------------------------------------------------------------------------


async def test_every_job_is_counted_where_it_is(client: Client, stream: Stream) -> None:
    """Waiting, running, scheduled, waiting for a retry, dead: once each, in its own queue."""
    for _ in range(3):
        await client.enqueue("t", queue="emails")
    failing, doomed, running = await stream.take(3)
    await stream.finish([(failing, Again(60_000)), (doomed, Dead("error"))])
    await client.enqueue("t", queue="emails", delay=60_000)
    await client.enqueue("t", queue="later", delay=60_000)
    await client.enqueue("t", priority="low")
    await client.enqueue("t", queue="emails")
    info = await Inspector(client).queues()
    assert {q.name: (q.waiting, q.running, q.scheduled, q.dead) for q in info} == {
        "urgent": (0, 0, 0, 0),
        "default": (0, 0, 0, 0),
        "low": (1, 0, 0, 0),
        "emails": (1, 1, 2, 1),
        "later": (0, 0, 1, 0),
    }
    assert (info.waiting, info.running, info.scheduled, info.dead) == (2, 1, 3, 1)
    assert [q.name for q in info][:3] == ["urgent", "default", "low"]
    assert info.complete
    assert not any(q.estimated for q in info)
    assert running.queue == "emails"


async def test_an_empty_keyspace_has_the_default_queues_and_nothing_in_them(client: Client) -> None:
    """No worker need ever have run."""
    info = await Inspector(client).queues()
    assert [(q.name, q.waiting, q.oldest) for q in info] == [
        ("urgent", 0, None), ("default", 0, None), ("low", 0, None)
    ]  # fmt: skip
    assert info.oldest is None


async def test_the_age_is_that_of_the_first_job_that_waits(client: Client, stream: Stream, redis: Redis) -> None:
    """What runs has no part in it, what was given back has; it's measured by the server's clock."""
    key = Keys(client.config.prefix).stream("default")
    now = int((await redis.time())[0]) * 1000
    for age in (90_000, 60_000, 30_000):
        await redis.xadd(key, {"taskName": "t", "payload": "{}"}, id=f"{now - age}-0")
    first, _ = await stream.take(2)
    oldest = (await Inspector(client).queues(["default"]))["default"].oldest
    assert oldest is not None
    assert timedelta(seconds=29) < oldest < timedelta(seconds=40)
    await stream.finish([(first, Released())])
    info = (await Inspector(client).queues(["default"]))["default"]
    assert (info.waiting, info.running) == (2, 1)
    assert info.oldest is not None
    assert info.oldest > timedelta(seconds=89)


async def test_waiting_is_exact_whatever_was_deleted_and_by_whom(client: Client, redis: Redis) -> None:
    """Random reads, acks, deletions and trims: the count is that of the entries behind the last delivered one."""
    key, rng, inspector = Keys(client.config.prefix).stream("default"), random.Random(7), Inspector(client)
    await redis.xgroup_create(key, GROUP, "0", mkstream=True)
    ids: list[str] = []
    for step in range(150):
        match rng.choice(["add", "add", "add", "read", "settle", "delete", "trim"]):
            case "add":
                ids += [await redis.xadd(key, {"taskName": "t", "payload": "{}"}) for _ in range(rng.randint(1, 4))]
            case "read":
                await redis.xreadgroup(GROUP, "other", {key: ">"}, count=2)
            case "settle":
                for pending in await redis.xpending_range(key, GROUP, "-", "+", 1):
                    await redis.xack(key, GROUP, pending["message_id"])
                    await redis.xdel(key, pending["message_id"])
            case "delete" if ids:
                await redis.xdel(key, rng.choice(ids))
            case "trim" if step % 3 == 0:
                await redis.xtrim(key, maxlen=rng.randint(0, 8), approximate=False)
        if step % 3 == 0:
            (group,) = await redis.xinfo_groups(key)
            there = await redis.xrange(key, f"({group['last-delivered-id']}", "+")
            assert (await inspector.queues(["default"]))["default"].waiting == len(there), step


async def test_a_queue_nobody_serves_yet_waits_as_a_whole(client: Client) -> None:
    """There is no group before the first worker."""
    for _ in range(3):
        await client.enqueue("t", queue="fresh")
    info = (await Inspector(client).queues())["fresh"]
    assert (info.waiting, info.running) == (3, 0)
    assert info.oldest is not None


async def test_long_queues_are_counted_too(client: Client, redis: Redis) -> None:
    """With thousands on both sides of the last delivered one, the server's own count is asked."""
    await client.enqueue_many(Job("t") for _ in range(3_000))
    key = Keys(client.config.prefix).stream("default")
    await redis.xgroup_create(key, GROUP, "0")
    await redis.xreadgroup(GROUP, "other", {key: ">"}, count=1_200)
    info = (await Inspector(client).queues())["default"]
    assert (info.waiting, info.running, info.estimated) == (1_800, 1_200, ())


async def test_of_a_huge_set_the_shares_are_estimated_and_the_total_is_exact(client: Client, redis: Redis) -> None:
    """What was estimated says so."""
    keys = Keys(client.config.prefix)
    members = {
        json.dumps(
            {"taskName": "t", "payload": "{}", "streamKey": keys.stream("a" if i % 4 else "b"), "jobId": i}
        ): 9e12
        for i in range(12_000)
    }
    await redis.zadd(keys.scheduled, members)
    info = await Inspector(client).queues()
    assert info.scheduled == 12_000
    assert info["a"].estimated == info["b"].estimated == ("scheduled",)
    assert 8_000 < info["a"].scheduled < 10_000
    assert 2_000 < info["b"].scheduled < 4_000


async def test_odd_members_count_for_the_queue_whose_dead_letter_they_go_to(client: Client, redis: Redis) -> None:
    """No JSON, outside the prefix, a reserved name: `default`."""
    keys = Keys(client.config.prefix)
    odd = ["no json", '{"streamKey": "elsewhere:x"}', json.dumps({"streamKey": keys.stream("cron")}), "[]"]
    await redis.zadd(keys.retries, {**dict.fromkeys(odd, 9e12), '{"priority": "low"}': 9e12})
    info = await Inspector(client).queues()
    assert (info["default"].scheduled, info["low"].scheduled, len(info)) == (4, 1, 3)


async def test_a_key_of_another_type_is_told_and_the_rest_is_counted(client: Client, redis: Redis) -> None:
    """One bad key does not hide the others."""
    await redis.set(Keys(client.config.prefix).stream("urgent"), "x")
    await client.enqueue("t")
    info = await Inspector(client).queues()
    assert "holds a string" in info["urgent"].problem
    assert info["default"].waiting == 1


@pytest.mark.parametrize("decode", [True, False])
async def test_inspect_needs_only_a_redis_client(client: Client, url: str, decode: bool) -> None:
    """Whether it decodes replies or not."""
    await client.enqueue("t", priority="urgent")
    async with Redis.from_url(url, decode_responses=decode) as redis:
        info = await inspect(redis, prefix=client.config.prefix)
    assert [(q.name, q.waiting) for q in info] == [("urgent", 1), ("default", 0), ("low", 0)]


async def test_a_prefix_is_no_pattern(url: str, prefix: str) -> None:
    """Queues of another prefix are not found by one that looks like a glob."""
    async with Client(url=url, prefix=f"{prefix}a") as other, Client(url=url, prefix=f"{prefix}[a]") as client:
        await other.enqueue("t", queue="theirs")
        await client.enqueue("t", queue="ours")
        assert {q.name for q in await Inspector(client).queues()} == {"urgent", "default", "low", "ours"}


# ---- workers ---------------------------------------------------------------------------------------------------------


async def test_workers_are_those_that_beat(client: Client, stream: Stream) -> None:
    """With what they tell about themselves; one that left is gone."""
    assert await Inspector(client).workers() == []
    await stream.beat("w-1", 60_000, {"queues": "default,low", "concurrency": "100"})
    (worker,) = await Inspector(client).workers()
    assert (worker.id, worker.consumer, worker.facts) == (
        "w-1", "w-1~a", {"queues": "default,low", "concurrency": "100"}
    )  # fmt: skip
    assert abs(datetime.now(UTC) - worker.seen) < timedelta(seconds=5)
    await stream.leave("w-1")
    assert await Inspector(client).workers() == []


# ---- dead letters ----------------------------------------------------------------------------------------------------


async def test_a_dead_job_says_what_it_was_and_why_it_died(client: Client, stream: Stream) -> None:
    """Everything that is needed to decide what to do with it."""
    (job_id,) = await kill(client, stream)
    (dead,) = await Inspector(client).dead("default")
    assert (dead.id, dead.task, dead.queue, dead.payload) == (job_id, "t", "default", '{"n":0}')
    assert (dead.reason, dead.error, dead.traceback) == ("error", "ValueError: no", "Traceback …")
    assert (dead.deliveries, dead.attempt) == (1, 1)
    assert dead.dead_at is not None
    assert abs(datetime.now(UTC) - dead.dead_at) < timedelta(seconds=5)
    assert dead.fields[b"originalId"]
    assert dead.payload not in repr(dead)


async def test_pages_go_on_after_an_entry_in_both_directions(client: Client, stream: Stream) -> None:
    """`after` is the last entry of the page before."""
    ids = await kill(client, stream, 5)
    inspector = Inspector(client)
    first = await inspector.dead("default", limit=2)
    rest = await inspector.dead("default", after=first[-1].entry_id)
    assert [job.id for job in [*first, *rest]] == ids
    newest = await inspector.dead("default", limit=2, newest_first=True)
    older = await inspector.dead("default", after=newest[-1].entry_id, newest_first=True)
    assert [job.id for job in [*newest, *older]] == ids[::-1]


async def test_whatever_stands_in_a_dead_letter_can_be_shown(client: Client, redis: Redis) -> None:
    """Others write there too: raw members, bytes that are no text, odd numbers."""
    key = Keys(client.config.prefix).dead_letter("default")
    await redis.xadd(key, {"raw": b"\xff{", "reason": "malformed", "deadLetteredAt": "9" * 30})
    await redis.xadd(
        key, {"taskName": b"\xfe", "payload": b"\xff", "deliveryCount": "many", "deadLetteredAt": "9" * 16}
    )
    raw, odd = await Inspector(client).dead("default")
    assert (raw.id, raw.task, raw.payload, raw.reason) == ("", "", "�{", "malformed")
    assert (odd.task, odd.payload, odd.deliveries, odd.dead_at) == ("�", "�", 1, None)


async def test_a_retried_job_runs_again_as_the_same_job(client: Client, stream: Stream) -> None:
    """With its id and payload, its first attempt before it; the dead letter has it no more."""
    (job_id,) = await kill(client, stream)
    assert await Inspector(client).retry("default") == 1
    (delivery,) = await stream.take(1)
    job = stream.job(delivery)
    assert (job.id, job.payload, job.attempt, delivery.times) == (job_id, {"n": 0}, 0, 1)
    assert await stream.finish([(delivery, Done())]) == [True]
    assert await Inspector(client).dead("default") == []


async def test_some_or_all_are_retried_and_progress_is_told(client: Client, stream: Stream) -> None:
    """More than one call can carry; what is named goes, and then the rest."""
    ids = await kill(client, stream, 400)
    await kill(client, stream, 200)
    inspector, steps = Inspector(client), list[tuple[int, int]]()
    some = [job.entry_id for job in await inspector.dead("default", limit=10)]
    assert await inspector.retry("default", some) == 10
    assert await inspector.retry("default", progress=lambda done, passed: steps.append((done, passed))) == 590
    assert steps == [(250, 0), (500, 0), (590, 0)]
    info = (await inspector.queues())["default"]
    assert (info.waiting, info.dead) == (600, 0)
    assert stream.job((await stream.take(1))[0]).id == ids[0]


async def test_what_never_was_a_job_is_passed_over_and_told(
    client: Client, stream: Stream, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the dead letter, and a warning names it."""
    entry_id = await redis.xadd(Keys(client.config.prefix).dead_letter("default"), {"raw": "[]"})
    await kill(client, stream)
    steps = list[tuple[int, int]]()
    with caplog.at_level(logging.WARNING, "backstage"):
        assert await Inspector(client).retry("default", progress=lambda *step: steps.append(step)) == 1
    assert steps == [(1, 1)]
    assert entry_id in caplog.text
    assert [job.entry_id for job in await Inspector(client).dead("default")] == [entry_id]


async def test_some_or_all_are_purged(client: Client, stream: Stream) -> None:
    """Named ones first, then what is left; the queue itself is not touched."""
    await kill(client, stream, 300)
    await client.enqueue("t")
    inspector = Inspector(client)
    some = [job.entry_id for job in await inspector.dead("default", limit=3)]
    assert await inspector.purge("default", some) == 3
    assert await inspector.purge("default", some) == 0
    assert await inspector.purge("default") == 297
    info = (await inspector.queues())["default"]
    assert (info.waiting, info.dead) == (1, 0)


async def test_an_empty_dead_letter_is_nothing_to_do(client: Client) -> None:
    """No list, no retry, no purge; and an empty list of ids means none, not all."""
    inspector = Inspector(client)
    assert await inspector.dead("none") == []
    assert await inspector.retry("none") == await inspector.purge("none") == 0


async def test_no_ids_are_not_all_ids(client: Client, stream: Stream) -> None:
    """`entry_ids=[]` touches nothing."""
    await kill(client, stream)
    assert await Inspector(client).purge("default", []) == await Inspector(client).retry("default", []) == 0
    assert len(await Inspector(client).dead("default")) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda i: i.dead("default", limit=0), "limit=0"),
        (lambda i: i.dead("default", after="-"), "entry id '-'"),
        (lambda i: i.retry("default", ["0198-uuid-x"]), "entry id '0198-uuid-x'"),
        (lambda i: i.purge("default", "1-0"), r"like \['1-0'\]"),
        (lambda i: i.purge(""), "queue=''"),
    ],
)
async def test_bad_arguments_are_told(client: Client, call: object, says: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match=says):
        await call(Inspector(client))  # type: ignore[operator]


def test_a_queue_that_is_not_there_is_a_key_error() -> None:
    """`info["name"]` does not invent queues."""
    with pytest.raises(KeyError):
        report.QueuesInfo((), 0)["x"]

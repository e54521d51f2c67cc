"""Other SDKs: jobs cross between Backstage's SDKs in both directions, in one consumer group.

What is used here of another SDK: entries, members and keys as the TypeScript SDK 1.1 writes them, and its promoter and
consumer, written anew in a few lines of Python from the description of what they do.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Client, Inspector, Job, Priority, Run, Worker
from support.waiting import wait_until

GROUP = "backstage-workers"

ENTRIES: list[tuple[str, dict[str, str]]] = [
    (
        "default",
        {
            "taskName": "order.create",
            "payload": '{"orderId":"123","amount":12.5,"note":"ü ☃ \\"q\\"","tags":[1,null,true,{"a":[]}]}',
            "enqueuedAt": "1795491213548",
        },
    ),
    ("default", {"taskName": "no.payload", "payload": "null", "enqueuedAt": "1795491213548"}),
    ("default", {"taskName": "text", "payload": '"plain text"', "enqueuedAt": "1795491213548"}),
    (
        "default",
        {
            "taskName": "fixed",
            "payload": '{"n":3}',
            "enqueuedAt": "1795491213549",
            "attempts": "2",
            "backoff": '{"type":"fixed","delay":500}',
        },
    ),
    (
        "low",
        {
            "taskName": "low.task",
            "payload": '{"n":2}',
            "enqueuedAt": "1795491213549",
            "attempts": "3",
            "backoff": '{"type":"exponential","delay":1000,"maxDelay":30000}',
            "timeout": "10000",
        },
    ),
    ("notifications", {"taskName": "custom", "payload": '{"n":4}', "enqueuedAt": "1795491213549"}),
    ("urgent", {"taskName": "urgent.task", "payload": '{"n":1}', "enqueuedAt": "1795491213549"}),
]
"""Stream entries as the TypeScript SDK wrote them."""


class TypeScriptWorker:
    """What the TypeScript SDK does with a queue: promote, read as text, call, acknowledge; no more than that."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis, self.prefix = redis, prefix
        self.handled: list[tuple[str, Any]] = []

    async def promote(self) -> None:
        """Due members of `scheduled`, as far as they are JSON, become entries; unknown keys are dropped."""
        for member in await self.redis.zrange(f"{self.prefix}:scheduled", 0, int(time.time() * 1000), byscore=True):
            if not await self.redis.zrem(f"{self.prefix}:scheduled", member):
                continue
            try:
                job = json.loads(member)
            except ValueError:
                continue
            entry = {"taskName": job["taskName"], "payload": job.get("payload", "{}"), "enqueuedAt": job["enqueuedAt"]}
            entry |= {name: job[name] for name in ("attempts", "backoff", "timeout") if name in job}
            await self.redis.xadd(job.get("streamKey") or f"{self.prefix}:{job['priority']}", entry)

    async def consume(self, queue: str) -> None:
        """Reads what is new for the group, and acknowledges it; the entry stays."""
        stream = f"{self.prefix}:{queue}"
        for _, entries in await self.redis.xreadgroup(GROUP, "worker-host-123", {stream: ">"}, count=10) or ():
            for entry_id, fields in entries:
                self.handled.append((fields["taskName"], json.loads(fields["payload"])))
                await self.redis.xack(stream, GROUP, entry_id)


@pytest.fixture
def typescript(redis: Redis, prefix: str) -> TypeScriptWorker:
    return TypeScriptWorker(redis, prefix)


# ---- theirs, handled by us -------------------------------------------------------------------------------------------


async def test_their_entries(url: str, prefix: str, redis: Redis) -> None:
    """What another SDK enqueued runs here: payload, options, time; its id is `<queue>:<entry id>`."""
    runs: dict[str, Run] = {}
    worker = Worker(url=url, prefix=prefix, queues=["urgent", "default", "low", "notifications"])

    async def handle(payload: object, run: Run) -> None:
        runs[run.job.task] = run

    for _, fields in ENTRIES:
        worker.on(fields["taskName"], handle)
    ids = {fields["taskName"]: await redis.xadd(f"{prefix}:{queue}", dict(fields)) for queue, fields in ENTRIES}
    async with worker.running():
        await wait_until(lambda: len(runs) == len(ENTRIES))
    for queue, fields in ENTRIES:
        job = runs[fields["taskName"]].job
        assert (job.queue, job.payload) == (queue, json.loads(fields["payload"]))
        assert job.id == f"{queue}:{ids[job.task]}"
        assert job.enqueued_at is not None
        assert job.enqueued_at.timestamp() * 1000 == pytest.approx(int(fields["enqueuedAt"]))
        assert job.attempts == (int(fields["attempts"]) if "attempts" in fields else None)
        assert job.timeout == (int(fields["timeout"]) if "timeout" in fields else None)
    backoff = runs["low.task"].job.backoff
    assert backoff is not None
    assert (backoff.type, backoff.delay, backoff.max_delay) == ("exponential", 1_000, 30_000)
    assert await redis.xlen(f"{prefix}:default") == 0


async def test_their_delayed_jobs(worker: Worker, redis: Redis, prefix: str) -> None:
    """Members of `scheduled` that another SDK wrote run when they are due, in the queue that they name."""
    runs: list[Run] = []

    async def handle(payload: object, run: Run) -> None:
        runs.append(run)

    worker.on("reminder", handle)
    members = [
        {"taskName": "reminder", "payload": '{"n":5}', "enqueuedAt": 1795491213549, "priority": "default",
         "streamKey": f"{prefix}:default"},
        {"taskName": "reminder", "payload": '{"n":6}', "enqueuedAt": 1795491213549, "priority": "low",
         "streamKey": f"{prefix}:low", "attempts": 3, "backoff": '{"type":"fixed","delay":100}', "timeout": 5000},
        # Another one has no streamKey, sorts its keys, and writes maxDelay always.
        {"attempts": 2, "backoff": '{"type":"fixed","delay":5,"maxDelay":0}', "enqueuedAt": 1795491213549,
         "payload": '{"n":7}', "priority": "urgent", "taskName": "reminder"},
    ]  # fmt: skip
    due = time.time() * 1000
    await redis.zadd(f"{prefix}:scheduled", {json.dumps(member, separators=(",", ":")): due for member in members})
    async with worker.running():
        await wait_until(lambda: len(runs) == 3)
    assert {run.job.payload["n"]: run.job.queue for run in runs} == {5: "default", 6: "low", 7: "urgent"}
    assert {run.job.payload["n"]: run.job.attempts for run in runs} == {5: None, 6: 3, 7: 2}


async def test_their_failing_job(client: Client, worker: Worker, redis: Redis, prefix: str) -> None:
    """Its attempts and backoff hold here; from its first retry on it carries the id that it was given."""
    runs: list[tuple[str, int]] = []

    @worker.on("fixed")
    async def fixed(payload: dict[str, int], run: Run) -> None:
        runs.append((run.job.id, run.attempt))
        raise ValueError

    fields = {"taskName": "fixed", "payload": '{"n":3}', "enqueuedAt": "1795491213549", "attempts": "2"}
    entry_id = await redis.xadd(f"{prefix}:default", {**fields, "backoff": '{"type":"fixed","delay":10}'})
    async with worker.running():
        (dead,) = await wait_until(lambda: Inspector(client).dead("default"))
    job_id = f"default:{entry_id}"
    assert runs == [(job_id, 1), (job_id, 2)]
    assert (dead.id, dead.task, dead.payload, dead.attempt) == (job_id, "fixed", '{"n":3}', 2)


async def test_their_dead_letter(client: Client, worker: Worker, redis: Redis, prefix: str) -> None:
    """What they gave up can be seen and put back to work here."""
    handled: list[object] = []
    worker.on("fixed", handled.append)
    await redis.xadd(
        f"{prefix}:default:dead-letter",
        {
            "taskName": "fixed",
            "payload": '{"n":3}',
            "enqueuedAt": "1795491213549",
            "originalId": "1795491213549-0",
            "deliveryCount": "2",
            "deadLetteredAt": "1795491215259",
        },
    )
    (dead,) = await Inspector(client).dead("default")
    assert (dead.id, dead.task, dead.deliveries) == ("default:1795491213549-0", "fixed", 2)
    async with worker.running():
        assert await Inspector(client).retry("default") == 1
        await wait_until(lambda: handled == [{"n": 3}])


async def test_names_that_we_would_not_give(worker: Worker, redis: Redis, prefix: str) -> None:
    """A task name outside our rule is served where a handler could have it, and else waits like any unknown one."""
    worker.on("known", lambda: None)
    await redis.xadd(f"{prefix}:default", {"taskName": "ünïcode name: {x}", "payload": "1", "enqueuedAt": "1"})
    async with worker.running():
        ((member, _),) = await wait_until(lambda: redis.zrange(f"{prefix}:retries", 0, -1, withscores=True))
    assert json.loads(member)["taskName"] == "ünïcode name: {x}"


@pytest.mark.parametrize(
    "odd",
    [{"attempts": "1.5"}, {"timeout": "null"}, {"backoff": "soon"}, {"enqueuedAt": "1e400"}, {"traceId": "x"}],
    ids=str,
)
async def test_odd_fields_of_others(worker: Worker, redis: Redis, prefix: str, odd: dict[str, str]) -> None:
    """Fields that make no sense, and those that we don't know, are ignored; the job runs."""
    handled: list[object] = []
    worker.on("t", handled.append)
    await redis.xadd(f"{prefix}:default", {"taskName": "t", "payload": "[1]", **odd})
    async with worker.running():
        await wait_until(lambda: handled == [[1]])


# ---- ours, handled by them -------------------------------------------------------------------------------------------


async def test_our_jobs(client: Client, worker: Worker, typescript: TypeScriptWorker) -> None:
    """A consumer of another SDK in the same group handles what Python enqueued: with options or without."""
    worker.on("other", lambda: None)
    async with worker.running():
        pass  # made the group; or they did
    await client.enqueue("order.create", {"id": "7", "note": "ü"})
    await client.enqueue("order.create", None, attempts=3, backoff={"type": "fixed", "delay": 5}, timeout=9_000)
    await client.enqueue_many([Job("order.create", [n], priority=Priority.DEFAULT) for n in range(3)])
    await typescript.consume("default")
    payloads = [{"id": "7", "note": "ü"}, None, [0], [1], [2]]
    assert typescript.handled == [("order.create", payload) for payload in payloads]


async def test_our_delayed_jobs(client: Client, worker: Worker, typescript: TypeScriptWorker) -> None:
    """Their promoter moves what Python put off, to the right queue, with its options."""
    worker.on("other", lambda: None, queue="emails")
    async with worker.running():
        pass
    await client.enqueue("later", {"n": 1}, delay=1, attempts=2, timeout=5_000)
    await client.enqueue("later", {"n": 2}, delay=1, queue="emails", backoff={"type": "exponential", "delay": 10})

    async def both() -> bool:
        await typescript.promote()
        await typescript.consume("default")
        await typescript.consume("emails")
        return len(typescript.handled) == 2

    await wait_until(both)
    assert sorted(typescript.handled, key=str) == [("later", {"n": 1}), ("later", {"n": 2})]


async def test_what_their_promoter_moved_runs_here(
    client: Client, worker: Worker, typescript: TypeScriptWorker, redis: Redis, prefix: str
) -> None:
    """Their promoter drops what it doesn't know, our id among it: the job runs, under another id."""
    runs: list[Run] = []

    @worker.on("later")
    async def later(payload: dict[str, int], run: Run) -> None:
        runs.append(run)

    job_id = await client.enqueue("later", {"n": 1}, delay=1, attempts=2, backoff={"type": "fixed", "delay": 7})

    async def moved() -> bool:
        await typescript.promote()
        return bool(await redis.exists(f"{prefix}:default"))

    await wait_until(moved)
    async with worker.running():
        await wait_until(lambda: runs)
    job = runs[0].job
    assert job.id != job_id
    assert job.id.startswith("default:")
    assert (job.payload, job.attempts, job.backoff and job.backoff.delay) == ({"n": 1}, 2, 7)


async def test_side_by_side(client: Client, worker: Worker, typescript: TypeScriptWorker) -> None:
    """In one group each job is handled by one of them; what they acknowledge and leave is trimmed by our worker."""
    handled: list[int] = []
    worker.on("n", handled.append)
    async with worker.running():
        for n in range(40):
            await client.enqueue("n", n)
            await typescript.consume("default")
        await wait_until(lambda: len(handled) + len(typescript.handled) == 40)
    assert sorted(handled + [n for _, n in typescript.handled]) == list(range(40))
    (info,) = [queue for queue in await Inspector(client).queues() if queue.name == "default"]
    assert (info.waiting, info.running) == (0, 0)


async def test_our_retries_are_out_of_their_reach(
    worker: Worker, typescript: TypeScriptWorker, redis: Redis, prefix: str
) -> None:
    """Retries wait in a set of their own, so that a promoter that knows less doesn't drop the count of the runs."""

    @worker.on("doomed", backoff={"type": "fixed", "delay": 60_000})
    async def doomed() -> None:
        raise ValueError

    async with worker.running():
        await doomed.enqueue()
        await wait_until(lambda: redis.zcard(f"{prefix}:retries"))
        await typescript.promote()
    assert await redis.zcard(f"{prefix}:scheduled") == 0
    assert await redis.zcard(f"{prefix}:retries") == 1

"""Several keyspaces under one prefix: `{backstage:0}`, `{backstage:1}` and so on.

Each lies on one node of a cluster, so together they are as large as the cluster. Here all are on one server, where they
work the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from zlib import crc32

import pytest
from redis.asyncio import Redis

from backstage import (
    Broadcast,
    Client,
    ConfigError,
    CronTask,
    DeadJob,
    Doctor,
    Inspector,
    Job,
    Next,
    Queue,
    RedisConfig,
    RedisRefused,
    RedisUnavailable,
    Run,
    Stream,
    Worker,
)
from backstage.keys import keyspace_of
from backstage.outcome import RELEASED
from backstage.worker.keyspace import InTurn
from support.pages import ROOT
from support.server import Server
from support.waiting import wait_until

N = 3


@pytest.fixture
def tag(prefix: str) -> str:
    """What stands in the hash tag of the prefix."""
    return prefix


@pytest.fixture
async def client(url: str, tag: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=f"{{{tag}}}", keyspaces=N) as opened:
        yield opened


@pytest.fixture
async def worker(url: str, tag: str) -> AsyncIterator[Worker]:
    async with Worker(url=url, prefix=f"{{{tag}}}", keyspaces=N) as made:
        yield made


def home(key: str) -> int:
    """Where a job goes, by its dedupe key, else by its id."""
    return crc32(key.encode()) % N


def ids_of(n: int, keyspace: int) -> list[str]:
    """n ids of jobs that go to this keyspace."""
    return [id for id in (f"job-{i}" for i in range(50 * n)) if home(id) == keyspace][:n]


async def waiting(redis: Redis, tag: str, queue: str = "default") -> list[list[str]]:
    """The ids of the jobs in each keyspace's stream."""
    entries = [await redis.xrange(f"{{{tag}:{n}}}:{queue}") for n in range(N)]
    return [[fields["jobId"] for _, fields in each] for each in entries]


# ---- the setting -----------------------------------------------------------------------------------------------------


def test_the_prefixes() -> None:
    """Each has its number in the hash tag. With one keyspace, the default, the prefix is what it was."""
    assert RedisConfig().prefixes == ("backstage",)
    assert RedisConfig(prefix="{backstage}", keyspaces=1).prefixes == ("{backstage}",)
    assert RedisConfig(prefix="{backstage}", keyspaces=3).prefixes == (
        "{backstage:0}",
        "{backstage:1}",
        "{backstage:2}",
    )
    assert RedisConfig(prefix="a{b}c{d}", keyspaces=2).prefixes == ("a{b:0}c{d}", "a{b:1}c{d}")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keyspaces": 0}, "keyspaces=0: must be a whole number, from 1 to 256"),
        ({"keyspaces": 257}, "keyspaces=257: must be a whole number, from 1 to 256"),
        ({"keyspaces": 2.0}, "keyspaces=2.0: must be a whole number, from 1 to 256"),
        ({"keyspaces": True}, "keyspaces=True: must be a whole number, from 1 to 256"),
        ({"keyspaces": 2}, "prefix='backstage': .* hash tag, like prefix='{backstage}'"),
        ({"keyspaces": 2, "prefix": "{}x"}, "prefix='{}x': .* hash tag"),
        ({"keyspaces": 2, "prefix": f"{{{'x' * 254}}}"}, "must be 1 to 256 printable characters"),
    ],
    ids=repr,
)
def test_bad_values(options: dict[str, object], error: str) -> None:
    """A number from 1 to 256, and a prefix with a place for it."""
    with pytest.raises(ConfigError, match=error):
        RedisConfig(**options)  # type: ignore[arg-type]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """BACKSTAGE_KEYSPACES is the setting where it isn't given."""
    monkeypatch.setenv("BACKSTAGE_PREFIX", "{shop}")
    monkeypatch.setenv("BACKSTAGE_KEYSPACES", "2")
    assert RedisConfig.from_env().prefixes == ("{shop:0}", "{shop:1}")
    monkeypatch.setenv("BACKSTAGE_KEYSPACES", "two")
    with pytest.raises(ConfigError, match="BACKSTAGE_KEYSPACES='two'"):
        RedisConfig.from_env()


# ---- enqueueing ------------------------------------------------------------------------------------------------------


def test_the_rule() -> None:
    """Every SDK goes by it: these are the examples of docs/protocol.md."""
    examples = [("pay-7", 3), ("019a2f60-5d2c-7b1e-9c3a-5f0e6d7c8b9a", 3), ("größe", 16)]
    told = [f"| `{key}` | {count} | {keyspace_of(key, count)} |" for key, count in examples]
    page = (ROOT / "docs" / "protocol.md").read_text()
    assert all(row in page for row in told)


async def test_a_job_goes_by_its_id(client: Client, redis: Redis, tag: str) -> None:
    """The same id goes to the same keyspace, whoever enqueues it; over many ids they share evenly."""
    ids = [await client.enqueue("t") for _ in range(20)] + await client.enqueue_many([Job("t") for _ in range(280)])
    found = await waiting(redis, tag)
    assert found == [[id for id in ids if id is not None and home(id) == n] for n in range(N)]
    assert all(60 < len(each) < 140 for each in found)
    assert not await redis.keys(f"{{{tag}}}*")


async def test_a_dedupe_key_holds_for_all(client: Client, redis: Redis, tag: str) -> None:
    """A job with one goes by its key, and not by its id: so a second enqueue meets the first."""
    keys = [f"pay-{n}" for n in range(12)]
    first = [await client.enqueue("t", dedupe=key) for key in keys]
    assert all(first)
    assert [await client.enqueue("t", dedupe=key) for key in keys] == [None] * 12
    assert await client.enqueue_many([Job("t", dedupe=key) for key in [*keys, "new"]]) != [None] * 13
    found = await waiting(redis, tag)
    assert [len(each) for each in found] == [sum(home(key) == n for key in [*keys, "new"]) for n in range(N)]


async def test_answers_in_order(client: Client) -> None:
    """`enqueue_many` splits a batch, and answers as if it had not: each id in its place, None for a duplicate."""
    jobs = [Job("t", dedupe=f"k{n % 400}") if n % 2 else Job("t", id=f"id-{n}") for n in range(2_000)]
    answers = await client.enqueue_many(jobs)
    seen: set[str] = set()
    for job, answer in zip(jobs, answers, strict=True):
        duplicate = job.dedupe is not None and job.dedupe.key in seen
        assert answer == (None if duplicate else job.id)
        seen |= {job.dedupe.key} if job.dedupe is not None else set()


async def test_refused_in_one(client: Client, redis: Redis, tag: str) -> None:
    """A key of the wrong type refuses the jobs of its keyspace; the error counts them, and the others are added."""
    await redis.set(f"{{{tag}:1}}:default", "x")
    jobs = [Job("t", id=id) for n in range(N) for id in ids_of(4, n)]
    with pytest.raises(RedisRefused, match="4 of 12 jobs were refused, the first one: not added: WRONGTYPE"):
        await client.enqueue_many(jobs)
    assert [await redis.xlen(f"{{{tag}:{n}}}:default") for n in (0, 2)] == [4, 4]


async def test_durability_in_each(own_server: Server, tag: str) -> None:
    """Each keyspace's jobs are confirmed by its server; where none can, nothing is sent, and the error is its own."""
    own_server.stop()
    own_server.start("--appendonly", "yes", "--appendfsync", "always")
    with own_server.client() as db:
        able = "waitaof" in db.command()  # since Redis 7.2
    jobs = [Job("t") for _ in range(30)]
    async with Client(url=own_server.url, prefix=f"{{{tag}}}", keyspaces=N) as client:
        if able:
            assert await client.enqueue_many(jobs, durability="fsync") == [job.id for job in jobs]
            jobs.append(Job("t", id=await client.enqueue("t", durability="fsync")))
        else:
            with pytest.raises(ConfigError, match=r"^durability='fsync' needs a server with WAITAOF"):
                await client.enqueue_many(jobs, durability="fsync")
    own_server.kill()
    own_server.start()
    async with Redis(unix_socket_path=own_server.socket, decode_responses=True) as redis:
        found = await waiting(redis, tag)
    assert sorted(id for each in found for id in each) == sorted(job.id for job in jobs if able)


async def test_durability_that_a_server_does_not_have(client: Client, redis: Redis, tag: str) -> None:
    """Is refused before anything is sent."""
    with pytest.raises(ConfigError, match=r"^durability='fsync'"):
        await client.enqueue_many([Job("t") for _ in range(30)], durability="fsync")
    assert not await redis.keys(f"{{{tag}:*")


# ---- working ---------------------------------------------------------------------------------------------------------


async def test_one_worker_for_all(client: Client, worker: Worker, redis: Redis, tag: str) -> None:
    """It takes from all of them; `concurrency` is that of the whole worker, however many there are."""
    worker.configure(concurrency=4)
    ran: Counter[int] = Counter()
    now = most = 0

    @worker.on("count")
    async def count(n: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        ran[n] += 1

    await client.enqueue_many([Job("count", n) for n in range(600)])
    async with worker.running():
        await wait_until(lambda: len(ran) == 600)
        await client.enqueue_many([Job("count", n) for n in range(600, 700)])
        await wait_until(lambda: len(ran) == 700)
    assert set(ran.values()) == {1}
    assert most == 4
    assert await waiting(redis, tag) == [[], [], []]


async def test_no_more_is_taken_than_there_is_room_for(client: Client, worker: Worker, redis: Redis, tag: str) -> None:
    """A worker whose slots are full of long jobs leaves the rest, of every keyspace, to others."""
    worker.configure(concurrency=2)
    started: list[str] = []
    ends = asyncio.Event()

    @worker.on("long")
    async def long(run: Run) -> None:
        started.append(run.job.id)
        await ends.wait()

    await client.enqueue_many([Job("long", id=id) for n in range(N) for id in ids_of(10, n)])
    async with worker.running():
        await wait_until(lambda: len(started) == 2)

        async def pending() -> list[int]:
            groups = [await redis.xpending(f"{{{tag}:{n}}}:default", "backstage-workers") for n in range(N)]
            return [sum(each["pending"] for each in group["consumers"]) for group in groups]

        assert sum(await pending()) == 2
        ends.set()
        await wait_until(lambda: len(started) == 30)


async def test_none_waits_behind_the_backlog_of_another(client: Client, worker: Worker) -> None:
    """With one slot, and a thousand jobs in keyspace 0: those of the others have their turn all the same."""
    worker.configure(concurrency=1)
    order: list[int] = []

    @worker.on("work")
    async def work(run: Run) -> None:
        await asyncio.sleep(0.001)
        order.append(home(run.job.id))

    await client.enqueue_many([Job("work", id=id) for id in ids_of(600, 0)])
    await client.enqueue_many([Job("work", id=id) for n in (1, 2) for id in ids_of(10, n)])
    async with worker.running():
        await wait_until(lambda: order.count(1) == 10 and order.count(2) == 10, 10.0)
        assert order.count(0) < 400


async def test_an_idle_keyspace_holds_up_no_other(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that waits in one of them, for up to `block_timeout`, waits alone; its own job is heard at once, and so is
    a stop."""
    monkeypatch.setattr(InTurn, "PATIENCE", 30.0)  # nobody's turn is cut short
    worker.configure(concurrency=1, block_timeout=30_000)
    ran: list[str] = []

    @worker.on("work")
    async def work(run: Run) -> None:
        ran.append(run.job.id)

    async with worker.running():
        for at in range(30):
            for n in (0, 1, 2, 2):
                (id,) = ids_of(at + 1, n)[at:]
                await client.enqueue_many([Job("work", id=id)])
                await wait_until(lambda: id in ran, 2.0)  # noqa: B023 - awaited here
        asked = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - asked < 5.0


@pytest.mark.parametrize("given_back", [False, True])
async def test_where_outcomes_can_not_be_written_nothing_more_is_taken(
    client: Client, worker: Worker, redis: Redis, tag: str, monkeypatch: pytest.MonkeyPatch, given_back: bool
) -> None:
    """That keyspace waits, for its jobs would be run in vain: new ones, and those given back. The others go on."""
    settle, writable, ran = Stream.settle, asyncio.Event(), Counter[int]()
    await client.enqueue_many([Job("work", id=id) for n in range(N) for id in ids_of(100, n)])
    for n in range(N) if given_back else ():
        holder = Stream(redis, prefix=f"{{{tag}:{n}}}")
        assert await holder.finish([(delivery, RELEASED) for delivery in await holder.take(100)]) == [True] * 100
        await holder.aclose()

    async def slow(self: Stream, *batch: Any) -> Any:
        if self.keys.prefix.endswith(":1}"):
            await writable.wait()
        return await settle(self, *batch)

    monkeypatch.setattr(Stream, "settle", slow)
    for module in ("slots", "keyspace"):
        monkeypatch.setattr(f"backstage.worker.{module}.UNSETTLED", 5)
    worker.configure(concurrency=2)

    @worker.on("work")
    async def work(run: Run) -> None:
        await asyncio.sleep(0.002)
        ran[home(run.job.id)] += 1

    async with worker.running():
        await wait_until(lambda: (ran[0], ran[2]) == (100, 100))
        assert 5 < ran[1] < 50
        writable.set()
        await wait_until(lambda: ran[1] == 100)


async def test_priorities_hold_in_each(client: Client, worker: Worker) -> None:
    """In one keyspace an urgent job starts before all others; over several it is so but for what was taken already."""
    worker.configure(concurrency=1)
    order: list[tuple[int, str]] = []

    @worker.on("work")
    async def work(run: Run) -> None:
        await asyncio.sleep(0.001)
        order.append((home(run.job.id), run.job.queue or ""))

    queues = ("low", "default", "urgent")
    jobs = {queue: [Job("work", id=f"{queue}-{n}", queue=queue) for n in range(30)] for queue in queues}
    for queue in queues:
        await client.enqueue_many(jobs[queue])
    async with worker.running():
        await wait_until(lambda: len(order) == 90)
    for n in range(N):
        mine = [queue for keyspace, queue in order if keyspace == n]
        assert mine == sorted(mine, key=("urgent", "default", "low").index)


async def test_a_job_stays_where_it_is(client: Client, worker: Worker, redis: Redis, tag: str) -> None:
    """Its delay, its retries, its dead letter and its successors are in its own keyspace."""
    worker.configure(backoff={"type": "fixed", "delay": 50}, attempts=2)
    first: list[int] = []

    @worker.on("first")
    async def start(run: Run) -> Next:
        if run.attempt == 1:
            raise ValueError
        first.append(home(run.job.id))
        return Next("second", first[-1])

    seen: list[int] = []

    @worker.on("second")
    async def second(parent: int) -> None:
        seen.append(parent)
        raise ValueError

    for n in range(N):
        for id in ids_of(3, n):
            await client.enqueue_many([Job("first", id=id, delay=20)])
        assert await redis.zcard(f"{{{tag}:{n}}}:scheduled") == 3
    async with worker.running():
        for n in range(N):
            await wait_until(lambda n=n: redis.xlen(f"{{{tag}:{n}}}:default:dead-letter"))
        await wait_until(lambda: len(seen) == 2 * 3 * N)
    assert sorted(first) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for n in range(N):
        dead = await redis.xrange(f"{{{tag}:{n}}}:default:dead-letter")
        assert [fields["payload"] for _, fields in dead] == [str(n)] * 3


async def test_given_back_at_a_stop(client: Client, worker: Worker, redis: Redis, tag: str) -> None:
    """What is not done when the grace period ends is free for others at once, in every keyspace; the worker is gone."""
    worker.configure(grace_period=0, concurrency=9)
    started: list[str] = []

    @worker.on("long")
    async def long(run: Run) -> None:
        started.append(run.job.id)
        await asyncio.Event().wait()

    ids = [id for n in range(N) for id in ids_of(5, n)]
    await client.enqueue_many([Job("long", id=id) for id in ids])
    async with worker.running():
        await wait_until(lambda: len(started) == 9)
    info = await Inspector(client).queues()
    assert (info.waiting, info.running) == (15, 0)
    assert await Inspector(client).workers() == []
    ran: list[str] = []
    other = Worker(url=client.config.url, prefix=client.config.prefix, keyspaces=N)

    @other.on("long")
    async def short(run: Run) -> None:
        ran.append(run.job.id)
        assert run.deliveries == 1

    async with other.running():
        await wait_until(lambda: sorted(ran) == sorted(ids), 2.0)


async def test_jobs_of_a_worker_that_died(client: Client, url: str, tag: str) -> None:
    """Its leases end in every keyspace, and another worker takes over."""
    await client.enqueue_many([Job("work", id=id) for n in range(N) for id in ids_of(4, n)])
    async with Redis.from_url(url) as redis:
        for n in range(N):
            stream = Stream(redis, prefix=f"{{{tag}:{n}}}", consumer="dead~1")
            await stream.initialize()
            assert len(await stream.take(10)) == 4
            await stream.aclose()
    worker = Worker(url=url, prefix=f"{{{tag}}}", keyspaces=N, idle_timeout=300, reclaimer_interval=100)
    ran: list[int] = []

    @worker.on("work")
    async def work(run: Run) -> None:
        ran.append(run.deliveries)

    async with worker.running():
        await wait_until(lambda: ran == [2] * 12)


async def test_leases_are_renewed_in_each(client: Client, url: str, tag: str) -> None:
    """A job that runs for longer than the lease keeps it, though another worker looks for such all the time."""
    runs: list[str] = []
    ran: list[str] = []

    def make(interval: int) -> Worker:
        worker = Worker(url=url, prefix=f"{{{tag}}}", keyspaces=N, idle_timeout=400, reclaimer_interval=interval)

        @worker.on("long")
        async def long(run: Run) -> None:
            runs.append(run.job.id)
            await asyncio.sleep(1.5)
            ran.append(run.job.id)

        return worker

    await client.enqueue_many([Job("long", id=id) for n in range(N) for id in ids_of(3, n)])
    async with make(60_000).running():
        await wait_until(lambda: len(runs) == 9)
        async with make(50).running():
            await wait_until(lambda: len(ran) == 9)
    assert len(runs) == 9


# ---- schedules, broadcasts, looking in -------------------------------------------------------------------------------


async def test_schedules_and_broadcasts_are_in_keyspace_0(worker: Worker, redis: Redis, tag: str) -> None:
    """A schedule's record and its jobs, and the stream of messages."""
    heard: list[str] = []
    worker.configure(schedules=[CronTask("* * * * *", "tick")])
    broadcast = Broadcast(worker=worker)
    broadcast.on("word", heard.append)
    ticked = asyncio.Event()

    @worker.on("tick")
    async def tick() -> None:
        ticked.set()

    await redis.hset(f"{{{tag}:0}}:cron", "tick", "0")  # due since long ago
    async with worker.running():
        await broadcast.send("word", "hello")
        await wait_until(lambda: heard == ["hello"])
        await ticked.wait()
    assert await redis.xlen(f"{{{tag}:0}}:broadcast") == 1
    assert not await redis.exists(*(f"{{{tag}:{n}}}:{key}" for n in (1, 2) for key in ("cron", "broadcast")))


async def test_the_inspector_counts_all(client: Client, worker: Worker) -> None:
    """Counts are sums, and a worker is one worker."""
    worker.on("t", lambda: None)
    await client.enqueue_many([Job("t", id=id) for n in range(N) for id in ids_of(5, n)])
    await client.enqueue_many([Job("t", id=id, delay=60_000, queue="emails") for n in range(N) for id in ids_of(2, n)])
    inspector = Inspector(client)
    info = await inspector.queues()
    assert [queue.name for queue in info] == ["urgent", "default", "low", "emails"]
    assert (info["default"].waiting, info["emails"].scheduled, info.scheduled) == (15, 6, 6)
    assert info.oldest is not None
    assert [queue.name for queue in await inspector.queues(["emails", Queue("default")])] == ["emails", "default"]
    async with worker.running():
        await wait_until(lambda: inspector.workers())
        (found,) = await inspector.workers()
    assert found.id == worker.worker_id


async def died(client: Client, worker: Worker, each: int) -> list[DeadJob]:
    """As many dead jobs in each keyspace, oldest first."""

    @worker.on("bad")
    async def bad() -> None:
        raise ValueError

    for id in [id for at in range(each) for n in range(N) for id in ids_of(each, n)[at : at + 1]]:
        await client.enqueue_many([Job("bad", id=id, attempts=1)])
    inspector = Inspector(client)
    async with worker.running():
        await wait_until(lambda: _dead(inspector, each * N))
    return await inspector.dead("default")


async def _dead(inspector: Inspector, n: int) -> bool:
    return (await inspector.queues(["default"]))["default"].dead == n


async def test_dead_jobs_of_all(client: Client, worker: Worker) -> None:
    """Listed as one, page by page, in both directions. An entry's id begins with the number of its keyspace."""
    listed = await died(client, worker, 5)
    assert Counter(job.entry_id[:2] for job in listed) == {"0:": 5, "1:": 5, "2:": 5}
    assert all(home(job.id) == int(job.entry_id[0]) for job in listed)
    inspector = Inspector(client)
    for newest_first in (False, True):
        pages: list[DeadJob] = []
        while page := await inspector.dead(
            "default", limit=4, after=pages[-1].entry_id if pages else None, newest_first=newest_first
        ):
            pages += page
        assert [job.entry_id for job in pages] == [job.entry_id for job in listed[:: -1 if newest_first else 1]]


async def test_entries_of_one_id_in_two_keyspaces(client: Client, redis: Redis, tag: str) -> None:
    """Two servers may give the same entry id: no page loses or repeats one, and each is addressed by itself."""
    for n in range(N):
        for id in ("5-0", "6-0"):
            await redis.xadd(f"{{{tag}:{n}}}:default:dead-letter", {"taskName": "t", "payload": str(n)}, id=id)
    inspector = Inspector(client)
    for newest_first in (False, True):
        listed: list[str] = []
        while page := await inspector.dead(
            "default", limit=1, after=listed[-1] if listed else None, newest_first=newest_first
        ):
            listed += [job.entry_id for job in page]
        expected = ["0:5-0", "1:5-0", "2:5-0", "0:6-0", "1:6-0", "2:6-0"]
        assert listed == (expected[::-1] if newest_first else expected)
    assert await inspector.purge("default", ["1:5-0"]) == 1
    assert await redis.xlen(f"{{{tag}:1}}:default:dead-letter") == 1
    assert await redis.xlen(f"{{{tag}:0}}:default:dead-letter") == 2


async def test_dead_jobs_go_back(client: Client, worker: Worker, redis: Redis, tag: str) -> None:
    """Each into the keyspace that it had died in: those that are named, or all."""
    listed, inspector = await died(client, worker, 3), Inspector(client)
    counted: list[tuple[int, int]] = []
    named = [job.entry_id for job in listed if home(job.id) != 0][:4]
    assert await inspector.retry("default", named) == 4
    assert await inspector.retry("default", progress=lambda *counts: counted.append(counts)) == 5
    assert counted[-1] == (5, 0)
    assert [sorted(each) for each in await waiting(redis, tag)] == [sorted(ids_of(3, n)) for n in range(N)]


@pytest.mark.parametrize("id", ["5-0", "3:5-0", "x:5-0", "0:5", ":5-0"])
async def test_an_entry_id_that_names_no_keyspace(client: Client, id: str) -> None:
    """Is refused, for it could be an entry of several."""
    inspector = Inspector(client)
    for call in (
        inspector.retry("default", [id]),
        inspector.purge("default", [id]),
        inspector.dead("default", after=id),
    ):
        with pytest.raises(ConfigError, match=r"like 0:1700000000000-0, with the keyspace \(0 to 2\) before it"):
            await call


async def test_an_entry_id_where_there_is_one_keyspace(url: str, prefix: str) -> None:
    """Has no number before it."""
    async with Client(url=url, prefix=prefix) as client:
        with pytest.raises(ConfigError, match="must look like 1700000000000-0, as"):
            await Inspector(client).purge("default", ["0:5-0"])


async def test_the_doctor_looks_at_all(client: Client, redis: Redis, tag: str) -> None:
    """What is the same everywhere is told once; what isn't tells where it is."""
    await redis.set(f"{{{tag}:2}}:default", "x")
    found = await Doctor(client, schedules=[CronTask("@daily", "report")]).examine()
    (wrong,) = [finding for finding in found if finding.facts.get("queue") == "default"]
    assert wrong.facts["keyspaces"] == f"{{{tag}:2}}"
    server = [finding.title for finding in found if "maxmemory" in str(finding) or "appendonly" in str(finding)]
    assert len(server) == len(set(server))
    (never,) = [finding for finding in found if finding.facts.get("schedule")]
    assert "keyspaces" not in never.facts


# ---- one that is away ------------------------------------------------------------------------------------------------


async def test_the_way_is_one(worker: Worker, own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """All keyspaces of one server come and go with it: nothing is lost, and a start without it is refused."""
    worker.configure(url=own_server.url, connect_timeout=300)
    ran: list[int] = []
    worker.on("count", lambda n: ran.append(n))  # type: ignore[arg-type, misc]
    own_server.stop(save=True)
    with pytest.raises(RedisUnavailable, match="no Redis at"):
        await worker.start(signals=False)
    own_server.start()
    async with worker.running(), Client(worker.config) as client:
        await client.enqueue_many([Job("count", n) for n in range(30)])
        await wait_until(lambda: len(ran) == 30)
        own_server.stop(save=True)
        with (
            caplog.at_level(logging.CRITICAL),
            pytest.raises(RedisUnavailable, match="0 of 30 jobs are enqueued; of 30"),
        ):
            await client.enqueue_many([Job("count", n) for n in range(30)])
        own_server.start()
        await client.enqueue_many([Job("count", n) for n in range(30, 60)])
        await wait_until(lambda: sorted(ran) == list(range(60)), 10.0)

"""Keys of the wrong type, planted under a running worker: what needs them is refused, and nothing is lost."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest
from redis.asyncio import Redis
from scene import Keyspace, Settings

from backstage import Client, CronTask, Job, Next, RedisRefused, Run, Worker
from support.waiting import wait_until


class Bench:
    """A worker that does everything: what ran is counted by task."""

    def __init__(self, settings: Settings, **options: object) -> None:
        self.worker = Worker(**(settings | options), attempts=2, backoff={"type": "fixed", "delay": 5})
        self.ran: Counter[str] = Counter()

        @self.worker.on("good")
        async def good() -> None:
            self.ran["good"] += 1

        @self.worker.on("chain")
        async def chain() -> Next:
            self.ran["chain"] += 1
            return Next("good", queue="other")

        @self.worker.on("later")
        async def later() -> Next:
            self.ran["later"] += 1
            return Next("good", delay=5)

        @self.worker.on("fails.once")
        async def fails_once(run: Run) -> None:
            self.ran["fails.once"] += 1
            if run.attempt == 1:
                raise ValueError

        @self.worker.on("dies", attempts=1)
        async def dies() -> None:
            self.ran["dies"] += 1
            raise ValueError


async def serves(bench: Bench, client: Client, queue: str = "urgent") -> None:
    """A good job on that queue is done within a second."""
    asked, before = time.monotonic(), bench.ran["good"]
    await client.enqueue("good", queue=queue)
    await wait_until(lambda: bench.ran["good"] > before)
    assert time.monotonic() - asked < 1


@pytest.mark.parametrize(
    ("key", "task", "ran", "dead"),
    [
        ("default:dead-letter", "dies", {"dies": 1}, 1),
        ("retries", "fails.once", {"fails.once": 2}, 0),
        ("scheduled", "later", {"later": 1, "good": 1}, 0),
        ("other", "chain", {"chain": 1}, 0),
    ],
)
async def test_an_outcome_that_can_not_be_written_is_kept_until_it_can(
    key: str, task: str, ran: dict[str, int], dead: int,
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Dead letter, retry, successor: the job stays pending and is not run again, and others are served meanwhile."""
    bench = Bench(settings)
    await redis.set(keyspace.key(key), "planted")
    async with bench.worker.running():
        await client.enqueue(task)
        with caplog.at_level(logging.ERROR, logger="backstage"):
            await wait_until(lambda: f"WRONGTYPE the key {keyspace.key(key)}" in caplog.text)
        await serves(bench, client)
        begun = time.monotonic()
        await wait_until(lambda: time.monotonic() - begun > settings["idle_timeout"] / 1000 + 0.5)
        assert bench.ran[task] == 1, "its lease is kept"
        assert sum((await keyspace.pending()).values()) == 1
        await redis.delete(keyspace.key(key))
        await wait_until(lambda: bench.ran == Counter(ran) + Counter(good=1))
        await wait_until(keyspace.settled)
    assert len(await keyspace.dead()) == dead
    assert await redis.xlen(keyspace.key("other")) == (task == "chain")


@pytest.mark.parametrize("kind", ["string", "list"])
@pytest.mark.parametrize(
    "name", ["default", "scheduled", "retries", "workers", "workers:here", "cron", "broadcast", "stats"]
)
async def test_a_key_of_the_wrong_type_stops_only_what_needs_it(
    name: str, kind: str, settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """Planted while a worker runs, and still there when it is started again: other queues are served in a second."""
    key = keyspace.key(name if name != "stats" else f"stats:urgent:{int(time.time()) // 60}")
    bench = Bench(settings, worker_id="here", schedules=[CronTask("@hourly", "good", queue="urgent")])
    if kind == "string":
        await redis.set(keyspace.key("dedupe:planted"), "x")
    else:
        await redis.lpush(keyspace.key("dedupe:planted"), "x")
    async with bench.worker.running():
        await serves(bench, client)
        await redis.rename(keyspace.key("dedupe:planted"), key)
        await serves(bench, client)
        await serves(bench, client)
    async with bench.worker.running():
        await serves(bench, client)
        await redis.delete(key)
        await serves(bench, client)


async def test_an_enqueue_that_meets_a_key_of_the_wrong_type_says_which(
    client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """RedisRefused with the key's name, for that job alone; a dedupe key of any type counts as taken."""
    await redis.set(keyspace.key("broken"), "planted")
    await redis.set(keyspace.key("scheduled"), "planted")
    await redis.lpush(keyspace.key("dedupe:k"), "planted")
    for job, named in ((Job("good", queue="broken"), "broken"), (Job("good", delay=10), "scheduled")):
        with pytest.raises(RedisRefused, match=keyspace.key(named)):
            await client.enqueue_many([Job("good"), job])
    assert await client.enqueue("good", dedupe="k") is None
    assert await keyspace.waiting() == 2


async def test_a_queue_that_was_of_the_wrong_type_is_served_when_it_is_made(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker starts, names the queue it can't serve and serves the others; after the repair and a restart, all."""
    await redis.set(keyspace.key("default"), "planted")
    bench = Bench(settings)
    with caplog.at_level(logging.ERROR, logger="backstage"):
        async with bench.worker.running():
            await serves(bench, client)
    assert f"queue default is not served: the key {keyspace.key('default')} holds" in caplog.text
    await redis.delete(keyspace.key("default"))
    async with bench.worker.running():
        await serves(bench, client, "default")

"""After ten thousand jobs of every kind nothing is left in Redis that isn't documented, and all of that is bounded."""

from __future__ import annotations

import re
from collections import Counter

from redis.asyncio import Redis
from scene import Keyspace, Settings

from backstage import Backoff, Client, Discard, Job, Next, Run, Worker
from support.waiting import wait_until

EACH = 1_000

DOCUMENTED = {
    "urgent|default|low": "stream",
    "default:dead-letter": "stream",
    "dedupe:.+": "string",
    "calls:.+": "string",
    "stats:(urgent|default|low):[0-9]+": "hash",
}
LAPSING = ("dedupe:", "calls:", "stats:")


def workers(settings: Settings, runs: Counter[str]) -> list[Worker]:
    both = [Worker(**settings, attempts=2, backoff=Backoff("fixed", delay=20), worker_id=f"w{n}") for n in range(2)]
    for worker in both:
        register(worker, runs)
    return both


def register(worker: Worker, runs: Counter[str]) -> None:
    @worker.on("ok")
    async def ok(n: int) -> None:
        runs["ok"] += 1

    @worker.on("threaded")
    def threaded(n: int) -> None:
        runs["threaded"] += 1

    @worker.on("chained")
    async def chained(n: int) -> list[Next]:
        runs["chained"] += 1
        return [Next("ok", n, priority="low"), Next("ok", n, delay=50)]

    @worker.on("fails.once")
    async def fails_once(n: int, run: Run) -> None:
        runs["fails.once"] += 1
        if run.attempt == 1:
            raise ValueError(n)

    @worker.on("dies")
    async def dies(n: int) -> None:
        runs["dies"] += 1
        raise Discard("no use") if n % 2 else ValueError(n)


async def test_streams_pending_lists_consumers_and_keys_are_empty_or_bounded_after_ten_thousand_mixed_jobs(
    settings: Settings, client: Client, keyspace: Keyspace, redis: Redis
) -> None:
    """Plain, chained, delayed, failing, dead and deduplicated jobs, urgent to low, on two workers that then stop."""
    runs: Counter[str] = Counter()
    first, second = workers(settings | {"concurrency": 100}, runs)
    jobs = [
        job
        for n in range(EACH)
        for job in (
            *(Job("ok", n, priority=priority) for priority in ("urgent", "default", "low")),
            Job("ok", n, delay=n % 500),
            Job("ok", n, dedupe={"key": f"k{n // 2}", "ttl": 20_000}),
            Job("ok", n, dedupe={"key": f"d{n // 2}", "ttl": 20_000}, delay=100),
            Job("threaded", n),
            Job("chained", n),
            Job("fails.once", n),
            Job("dies", n),
        )
    ]
    async with first.running(), second.running():
        ids = await client.enqueue_many(jobs)
        await wait_until(lambda: runs["dies"] == EACH + EACH // 2, timeout=20)
        await wait_until(lambda: runs["ok"] == 4 * EACH + EACH + 2 * EACH, timeout=20)
        await wait_until(keyspace.settled, timeout=20)
        await wait_until(lambda: _all_settled(keyspace), timeout=20)
    assert ids.count(None) == EACH
    assert runs == {
        "ok": 7 * EACH, "threaded": EACH, "chained": EACH, "fails.once": 2 * EACH, "dies": EACH + EACH // 2,
    }  # fmt: skip

    for queue in ("urgent", "default", "low"):
        assert await keyspace.waiting(queue) == 0
        assert await keyspace.pending(queue) == {}
        assert await keyspace.consumers(queue) == []
    assert len(await keyspace.dead()) == EACH
    found = [key async for key in redis.scan_iter(match=f"{keyspace.prefix}:*", count=1000)]
    for key in found:
        name = key.removeprefix(f"{keyspace.prefix}:")
        kinds = [kind for pattern, kind in DOCUMENTED.items() if re.fullmatch(pattern, name)]
        assert kinds == [await redis.type(key)], name
        if name.startswith(LAPSING):
            assert 0 < await redis.ttl(key) <= 7200, name
    assert len(found) < 2 * EACH, "a dedupe key for each pair, and a few dozen"


async def _all_settled(keyspace: Keyspace) -> bool:
    return all([await keyspace.settled(queue) for queue in ("urgent", "default", "low")])

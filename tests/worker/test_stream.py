"""Stream: the data path as those use it who build their own loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from backstage.clock import Clock
from backstage.errors import ConfigError, MalformedJob, RedisRefused, RedisUnavailable
from backstage.job import Delivery, Job
from backstage.keys import Keys
from backstage.outcome import Again, Dead, Done, Outcome, Released
from backstage.queue import Queue
from backstage.ready import Ready
from backstage.stream import Stream
from support.server import Server
from support.waiting import wait_until

GROUP = "backstage-workers"
Make = Callable[..., Stream]
T = TypeVar("T")


@pytest.fixture
async def make(server: Server, prefix: str) -> AsyncIterator[Make]:
    """Makes streams in this test's keyspace, and closes them after it."""
    made: list[Stream] = []

    def build(on: Server = server, *, decode_responses: bool = False, **options: Any) -> Stream:
        client = Redis.from_url(on.url, decode_responses=decode_responses)
        made.append(Stream(client, GROUP, prefix=prefix, **options))
        return made[-1]

    yield build
    for stream in made:
        await stream.aclose()


@pytest.fixture
def stream(make: Make) -> Stream:
    return make()


@pytest.fixture
def db(server: Server) -> Iterable[SyncRedis]:
    with server.client() as client:
        yield client


@pytest.fixture
def own_db(own_server: Server) -> Iterable[SyncRedis]:
    with own_server.client() as client:
        yield client


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


def payloads(stream: Stream, deliveries: Iterable[Delivery]) -> list[Any]:
    return [stream.job(delivery).payload for delivery in deliveries]


async def one(stream: Stream, **options: Any) -> Delivery:
    """A job that was just enqueued and taken."""
    await stream.enqueue("t", {"n": 1}, **options)
    (delivery,) = await stream.take(10)
    return delivery


async def persist(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call that is tried again while Redis is away, as every caller of a stream does."""
    for _ in range(5):
        try:
            return await call()
        except RedisUnavailable:
            continue
    return await call()


@pytest.mark.parametrize("decode_responses", [True, False])
async def test_a_job_goes_round(make: Make, decode_responses: bool) -> None:
    """initialize, enqueue, take, finish; the client may decode its responses or not."""
    stream = make(decode_responses=decode_responses)
    assert await stream.initialize() == []
    job_id = await stream.enqueue("mail.send", {"to": "ü"}, attempts=3, timeout=500, backoff={"type": "fixed"})
    (delivery,) = await stream.take(10)
    job = stream.job(delivery)
    assert (job.id, job.task, job.payload, job.queue) == (job_id, "mail.send", {"to": "ü"}, "default")
    assert (job.attempts, job.timeout, job.attempt) == (3, 500, 0)
    assert await stream.finish([(delivery, Done())]) == [True]
    assert await stream.finish([(delivery, Done())]) == [False]
    assert await stream.take(10) == []


async def test_take_initializes_by_itself(stream: Stream) -> None:
    """And initialize may be repeated."""
    assert await stream.take(10) == []
    await stream.enqueue("t", 1)
    await stream.initialize()
    assert payloads(stream, await stream.take(10)) == [1]


async def test_priorities_and_custom_queues(make: Make) -> None:
    """Best queue first, those without a priority last."""
    stream = make(queues=["emails", Queue("vip", priority=0), "low", "urgent"])
    for queue in ("emails", "low", "vip", "urgent"):
        await stream.enqueue("t", queue, queue=queue)
    assert payloads(stream, await stream.take(2)) == ["vip", "urgent"]
    assert payloads(stream, await stream.take(5)) == ["low", "emails"]


async def test_dedupe(stream: Stream) -> None:
    """None for a duplicate."""
    assert await stream.enqueue("t", 1, dedupe="k")
    assert await stream.enqueue("t", 2, dedupe={"key": "k", "ttl": 5}) is None
    assert payloads(stream, await stream.take(10)) == [1]


async def test_a_batch_of_everything_answers_each(stream: Stream, db: SyncRedis, keys: Keys) -> None:
    """Verdicts stand where their jobs stood: id, None, or the error; the same for the same call again."""
    db.lpush(keys.stream("bad"), "planted")
    jobs = [
        Job("a"), Job("a", queue="bad"), Job("b", dedupe="k"), Job("b", dedupe="k"), Job("b", delay=9_000), Job("b")
    ]  # fmt: skip
    ready = [Ready.of(job, "1", job.queue or "default") for job in jobs]
    verdicts = await stream.send(ready, "call", 5_000)
    assert [verdicts[i] for i in (0, 2, 4, 5)] == [jobs[i].id for i in (0, 2, 4, 5)]
    assert verdicts[3] is None
    assert isinstance(verdicts[1], RedisRefused)
    again = await stream.send(ready, "call", 5_000)
    assert [str(verdict) for verdict in again] == [str(verdict) for verdict in verdicts]
    assert db.xlen(keys.stream("default")) == 3
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await stream.enqueue("a", queue="bad")


async def test_two_streams_share_the_jobs(make: Make) -> None:
    """Each job is delivered to one of them."""
    first, second = make(), make()
    for n in range(10):
        await first.enqueue("t", n)
    taken = [*payloads(first, await first.take(6)), *payloads(second, await second.take(6))]
    assert sorted(taken) == list(range(10))


class TestUnblock:
    async def test_a_waiting_take_ends(self, stream: Stream) -> None:
        """At once, with what it has: nothing. The next one waits again."""
        for _ in range(2):
            waiting = asyncio.create_task(stream.take(10, 30_000))
            await wait_until(lambda: stream._reads.client_id)
            begun = time.monotonic()
            while not waiting.done():  # until the read has reached the server
                await stream.unblock()
            assert await waiting == []
            assert time.monotonic() - begun < 5
        assert stream._reads.connects == 1

    async def test_without_a_connection_it_does_nothing(self, stream: Stream) -> None:
        """Nothing waits then."""
        await stream.unblock()


class TestLostConnections:
    async def test_what_a_lost_reply_held_comes_with_the_next_take(
        self, stream: Stream, db: SyncRedis, keys: Keys
    ) -> None:
        """Pending for us but never seen: brought with its count; what is held is not brought again."""
        held = await one(stream)
        await stream.enqueue("t", "lost")
        db.xreadgroup(GROUP, stream.consumer, {keys.stream("default"): ">"})  # the read whose reply is lost
        db.execute_command("CLIENT", "KILL", "ID", stream._reads.client_id)
        with pytest.raises(RedisUnavailable):
            await stream.take(10)
        (found,) = await stream.take(10)
        assert (stream.job(found).payload, found.times) == ("lost", 1)
        assert await stream.finish([(held, Done()), (found, Done())]) == [True, True]
        assert await stream.take(10) == []

    async def test_what_a_look_claims_is_not_recovered_as_well(
        self, make: Make, db: SyncRedis, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the look's answer is on its way, the job is pending for us and not held: it must not come twice."""
        dead, stream = make(), make()
        await stream.take(1)
        await one(dead)
        arrived, script = asyncio.Event(), stream._upkeep.script

        async def late(*args: Any, **options: Any) -> Any:
            reply = await script(*args, **options)
            await arrived.wait()
            return reply

        monkeypatch.setattr(stream._upkeep, "script", late)
        looking = asyncio.create_task(stream.reclaim(10, "default", idle=0))
        await wait_until(lambda: db.xpending_range(keys.stream("default"), GROUP, "-", "+", 1, stream.consumer))
        stream._doubt = True
        taking = asyncio.create_task(stream.take(10))
        await asyncio.wait({taking}, timeout=0.1)
        arrived.set()
        assert (len(await looking), await taking) == (1, [])

    async def test_what_a_lost_reply_of_a_look_held_comes_with_the_next_take(
        self, make: Make, db: SyncRedis, keys: Keys
    ) -> None:
        """Claimed for us but never seen: not after a lease, but at once."""
        dead, stream = make(), make()
        lost = await one(dead)
        await stream.reclaim(1)
        assert await stream.take(1) == []
        db.xclaim(keys.stream("default"), GROUP, stream.consumer, 0, [lost.entry_id])  # the claim whose reply is lost
        db.execute_command("CLIENT", "KILL", "ID", stream._upkeep.client_id)
        with pytest.raises(RedisUnavailable):
            await stream.reclaim(1, idle=0)
        (found,) = await stream.take(1)
        assert (found.entry_id, found.times) == (lost.entry_id, 2)

    async def test_a_killed_blocking_read(self, stream: Stream, db: SyncRedis) -> None:
        """RedisUnavailable, and the next one waits as before."""
        await stream.take(10)
        for payload in range(2):
            waiting = asyncio.create_task(stream.take(10, 30_000))
            await wait_until(
                lambda: any(c["id"] == str(stream._reads.client_id) and "b" in c["flags"] for c in db.client_list())
            )
            if payload == 0:
                db.execute_command("CLIENT", "KILL", "ID", stream._reads.client_id)
                with pytest.raises(RedisUnavailable):
                    await waiting
            else:
                await stream.enqueue("t", payload)
                assert payloads(stream, await waiting) == [payload]

    async def test_a_cancelled_take_loses_nothing(self, stream: Stream, db: SyncRedis) -> None:
        """What its reply held comes with the next one."""
        await stream.take(10)
        for n in range(20):
            waiting = asyncio.create_task(stream.take(10, 30_000))
            await asyncio.sleep(0)
            await stream.enqueue("t", n)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            found = [] if waiting.cancelled() else waiting.result()
            found = found or await stream.take(10, 1_000)
            assert payloads(stream, found) == [n]

    async def test_a_group_that_is_missing_for_one_queue_holds_back_no_other_queues_jobs(
        self, stream: Stream, db: SyncRedis, keys: Keys
    ) -> None:
        """What the queues before it had answered in the same pass comes with the next take, not after a lease."""
        await stream.take(10)
        db.xgroup_destroy(keys.stream("low"), GROUP)
        await stream.enqueue("t", "urgent", priority="urgent")
        await stream.enqueue("t", "low", priority="low")
        assert await stream.take(10) == []
        assert payloads(stream, await stream.take(10)) == ["urgent"]
        assert payloads(stream, await stream.take(10)) == ["low"]


class TestServers:
    @pytest.mark.parametrize("kept", [True, False])
    async def test_a_restart_in_between(self, make: Make, own_server: Server, kept: bool) -> None:
        """With its data what was held is finished, once; without them new jobs are served."""
        stream = make(own_server)
        held = await one(stream)
        await stream.enqueue("t", "waiting")
        own_server.restart(persist=kept)
        with pytest.raises(RedisUnavailable):
            await stream.take(10)
        await persist(lambda: stream.enqueue("t", "new"))
        found = await persist(lambda: stream.take(10))
        assert payloads(stream, found) == (["waiting", "new"] if kept else ["new"])
        assert await persist(lambda: stream.finish([(held, Done())])) == [kept]

    async def test_after_a_loss_of_writes_another_jobs_entry_is_left_alone(
        self, make: Make, own_server: Server, own_db: SyncRedis, keys: Keys
    ) -> None:
        """The server forgot the job, and gave its entry id to another one: that one is not settled by our finish."""
        stream = make(own_server)
        held = await one(stream)
        own_server.restart(persist=False)
        own_db.xgroup_create(keys.stream("default"), GROUP, "0", mkstream=True)
        own_db.xadd(keys.stream("default"), {"taskName": "t", "payload": "2", "jobId": "x"}, id=held.entry_id.decode())
        own_db.xreadgroup(GROUP, stream.consumer, {keys.stream("default"): ">"})
        for outcome in (Done(), Again(5), Dead("error"), Released()):
            assert await persist(lambda outcome=outcome: stream.finish([(held, outcome)])) == [False]
        assert await stream._writes.greet() != held.server
        settled = await stream.settle({"default": [held]}, [])
        assert settled.lost == 1
        assert own_db.xpending(keys.stream("default"), GROUP)["pending"] == 1
        assert own_db.xlen(keys.stream("default")) == 1

    async def test_flushall_while_it_waits(self, make: Make, own_server: Server, own_db: SyncRedis) -> None:
        """The blocked read ends at once; the groups are made again, and it works on."""
        stream = make(own_server)
        await stream.take(10)
        waiting = asyncio.create_task(stream.take(10, 30_000))
        await wait_until(lambda: own_db.info("clients")["blocked_clients"])
        own_db.flushall()
        with contextlib.suppress(RedisUnavailable):  # Redis 7.0 says UNBLOCKED, later ones NOGROUP
            assert await asyncio.wait_for(waiting, 5) == []
        await stream.enqueue("t", "new")
        assert payloads(stream, await stream.take(10, 1_000)) == ["new"]

    async def test_deleted_streams_and_groups(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """DEL and XGROUP DESTROY: the groups are made again at 0, so that nothing is skipped."""
        await stream.take(10)
        db.delete(keys.stream("urgent"))
        db.xgroup_destroy(keys.stream("default"), GROUP)
        await stream.enqueue("t", "d")
        await stream.enqueue("t", "u", priority="urgent")
        found: list[Any] = []
        for _ in range(4):
            found += payloads(stream, await stream.take(10))
        assert sorted(found) == ["d", "u"]

    async def test_script_flush(self, make: Make, own_server: Server, own_db: SyncRedis) -> None:
        """Every script is loaded again."""
        stream = make(own_server)
        for _ in range(2):
            delivery = await one(stream)
            assert await stream.renew([delivery]) == []
            assert await stream.finish([(delivery, Done())]) == [True]
            assert await stream.reclaim(5) == []
            assert await stream.promote() is None
            own_db.script_flush()

    async def test_with_full_memory_what_is_there_is_worked_off(
        self, make: Make, own_server: Server, own_db: SyncRedis
    ) -> None:
        """Also by a worker that connects anew, or starts: enqueue is refused, take and finish are not."""
        first, second = make(own_server), make(own_server)
        for n in range(3):
            await first.enqueue("t", n)
        taken = await first.take(1)
        own_db.config_set("maxmemory", 1)
        with pytest.raises(RedisRefused, match="OOM"):
            await first.enqueue("t", "more")
        own_db.execute_command("CLIENT", "KILL", "ID", first._reads.client_id)
        with pytest.raises(RedisUnavailable):
            await first.take(1)
        taken += await first.take(1)
        assert await second.initialize() == []
        others = await second.take(1)
        assert payloads(first, [*taken, *others]) == [0, 1, 2]
        assert await first.finish([(delivery, Done()) for delivery in taken]) == [True, True]
        assert await second.finish([(others[0], Again(5))]) == [True]

    async def test_with_full_memory_groups_that_are_missing_are_told(
        self, make: Make, own_server: Server, own_db: SyncRedis, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They can't be made before there is room."""
        own_db.config_set("maxmemory", 1)
        stream = make(own_server)
        assert await stream.initialize() == ["urgent", "default", "low"]
        assert "memory is full" in caplog.text
        own_db.config_set("maxmemory", 0)
        assert await stream.initialize() == []


class TestWrongTypes:
    async def test_a_queue_of_the_wrong_type_is_left_out_and_reported(
        self, stream: Stream, db: SyncRedis, keys: Keys, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The others are served; once the key is mended and initialize called, this one too."""
        db.lpush(keys.stream("default"), "planted")
        with caplog.at_level(logging.ERROR, "backstage"):
            assert await stream.initialize() == stream.refused == ["default"]
        assert keys.stream("default") in caplog.text
        await stream.enqueue("t", "low", priority="low")
        assert payloads(stream, await stream.take(10)) == ["low"]
        db.delete(keys.stream("default"))
        assert await stream.initialize() == stream.refused == []
        await stream.enqueue("t", "default")
        assert payloads(stream, await stream.take(10)) == ["default"]

    async def test_looking_for_abandoned_jobs_does_not_start_all_over(
        self, stream: Stream, db: SyncRedis, keys: Keys, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The refused queue is told once, not each time that somebody looks into it."""
        db.lpush(keys.stream("default"), "planted")
        for _ in range(3):
            await stream.take(10)
            assert await stream.reclaim(10) == []
        assert caplog.text.count("is not served") == 1

    async def test_a_key_that_changes_its_type_while_it_is_served(
        self, stream: Stream, db: SyncRedis, keys: Keys
    ) -> None:
        """One error, and the others are served."""
        await stream.take(10)
        db.set(keys.stream("default"), "planted")
        await stream.enqueue("t", "low", priority="low")
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await stream.take(10)
        assert payloads(stream, await stream.take(10)) == ["low"]

    async def test_a_refused_finish_stays_held(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """RedisRefused names the key; when it is mended the same finish works."""
        delivery = await one(stream)
        db.set(keys.retries, "planted")
        with pytest.raises(RedisRefused, match=keys.retries):
            await stream.finish([(delivery, Again(5))])
        assert stream.held["default"] == {delivery.entry_id: delivery}
        db.delete(keys.retries)
        assert await stream.finish([(delivery, Again(5))]) == [True]
        assert stream.held["default"] == {}


class TestFinish:
    async def test_done_with_successors(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """They are enqueued with the finish: now, later, or not where they are duplicates."""
        await stream.enqueue("other", dedupe="k")
        (other,) = await stream.take(10)
        delivery = await one(stream)
        next = (
            Job("a", {"x": 1}, id="a1", attempts=2), Job("b", queue="low", delay=60_000, id="b1"), Job("c", dedupe="k"),
        )  # fmt: skip
        assert await stream.finish([(delivery, Done(next)), (delivery, Done(next)), (other, Done())]) == [
            True, False, True,
        ]  # fmt: skip
        (found,) = await stream.take(10)
        job = stream.job(found)
        assert (job.id, job.task, job.payload, job.attempts) == ("a1", "a", {"x": 1}, 2)
        (member,) = db.zrange(keys.scheduled, 0, -1)
        assert (json.loads(member)["jobId"], json.loads(member)["priority"]) == ("b1", "low")

    async def test_again_comes_back_the_same_job(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """Same id, payload and options, one failed run more; not before its time."""
        first = await one(stream, attempts=4)
        assert await stream.finish([(first, Again(60_000, "boom"))]) == [True]
        due = await stream.promote()
        assert due is not None
        assert 50_000 < due - stream.clock.now() <= 60_000
        assert await stream.take(10) == []
        db.zadd(keys.retries, dict.fromkeys(db.zrange(keys.retries, 0, -1), 1))
        assert await stream.promote() is None
        (second,) = await stream.take(10)
        job = stream.job(second)
        assert (job.id, job.attempt, job.attempts) == (stream.job(first).id, 1, 4)

    async def test_dead(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """Into the dead letter of its queue, with all that is needed to run it again."""
        delivery = await one(stream, priority="low")
        assert await stream.finish([(delivery, Dead("timeout", "too long", "Traceback"))]) == [True]
        ((_, fields),) = db.xrange(keys.dead_letter("low"))
        assert fields["jobId"] == stream.job(delivery).id
        assert (fields["queue"], fields["reason"], fields["error"]) == ("low", "timeout", "too long")
        assert (fields["originalId"], fields["deliveryCount"]) == (delivery.entry_id.decode(), "1")

    async def test_released_is_anybodys_at_once(self, make: Make) -> None:
        """The next one takes it with the same count, without waiting for a lease."""
        stream, other = make(), make()
        delivery = await one(stream)
        assert await stream.finish([(delivery, Released())]) == [True]
        (found,) = await other.reclaim(10)
        assert (found.entry_id, found.times, found.queue) == (delivery.entry_id, 1, "default")
        assert await other.finish([(found, Done())]) == [True]

    async def test_bytes_that_no_member_can_carry_are_dead(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """A retry of what JSON can't carry goes to the dead letter as malformed, bytes and all."""
        await stream.initialize()
        db.xadd(keys.stream("default"), {"taskName": "t", "payload": b"\xff"})
        (delivery,) = await stream.take(10)
        with pytest.raises((MalformedJob, ValueError)):
            stream.job(delivery)
        assert await stream.finish([(delivery, Again(5))]) == [True]
        raw = db.connection_pool.connection_kwargs["path"]
        with SyncRedis(unix_socket_path=raw) as plain:
            ((_, fields),) = plain.xrange(keys.dead_letter("default"))
        assert (fields[b"payload"], fields[b"reason"]) == (b"\xff", b"malformed")

    async def test_plain_ones_in_bulk(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """A batch of successes over several queues; somebody else's settle counts as lost, and nothing stays behind."""
        for n in range(20):
            await stream.enqueue("t", n, queue="low" if n % 2 else "default")
        done: dict[str, list[Delivery]] = {"default": [], "low": []}
        for delivery in await stream.take(50):
            done[delivery.queue].append(delivery)
        db.xack(keys.stream("low"), GROUP, done["low"][0].entry_id)
        settled = await stream.settle(done, [])
        assert (settled.lost, settled.verdicts) == (1, [])
        assert stream.held == {"urgent": {}, "default": {}, "low": {}}
        assert (db.xlen(keys.stream("default")), db.xlen(keys.stream("low"))) == (0, 0)

    @pytest.mark.parametrize("outcome", [Again(5), Dead("error"), Released()])
    async def test_a_zombie_undoes_nothing(self, make: Make, outcome: Outcome) -> None:
        """Taken over by another: our failure is told False, the other's run goes on."""
        stream, other = make(), make()
        mine = await one(stream)
        (theirs,) = await other.reclaim(10, idle=0)
        assert await stream.finish([(mine, outcome)]) == [False]
        assert await other.renew([theirs]) == []
        assert await other.finish([(theirs, Done())]) == [True]


class TestLeases:
    async def test_renew_tells_what_is_lost(self, make: Make) -> None:
        """Taken over, settled or deleted by others; the rest is renewed."""
        stream, other = make(), make()
        for n in range(4):
            await stream.enqueue("t", n, queue="low" if n == 3 else "default")
        first, second, third, low = await stream.take(10)
        (stolen,) = await other.reclaim(1, "default", idle=0)
        assert stolen.entry_id == first.entry_id
        await other.settle({"default": [second]}, [])
        assert await stream.renew([first, second, third, low]) == [first, second]
        assert await stream.renew([third, low]) == []
        assert await stream.renew([]) == []

    async def test_an_older_delivery_of_our_own_is_lost(self, make: Make, db: SyncRedis, keys: Keys) -> None:
        """The entry went away and came back: the run of before holds nothing any more."""
        stream, other = make(), make()
        old = await one(stream)
        await other.reclaim(1, idle=0)
        (new,) = await stream.reclaim(1, idle=0)
        assert (new.entry_id, new.times) == (old.entry_id, 3)
        assert await stream.renew([old, new]) == [old, new] or await stream.renew([old]) == [old]
        assert await stream.renew([new]) == []
        assert await stream.finish([(old, Dead("error"))]) == [False]
        assert await stream.finish([(new, Done())]) == [True]

    async def test_what_we_hold_is_not_taken_a_second_time(self, stream: Stream) -> None:
        """A look at abandoned jobs passes over our own; those not held come with the next take, with their count."""
        delivery = await one(stream)
        assert await stream.reclaim(10, idle=0) == []
        stream.drop([delivery])
        assert await stream.reclaim(10, idle=0) == []
        (found,) = await stream.take(10)
        assert (found.entry_id, found.times) == (delivery.entry_id, 1)

    async def test_an_answer_that_lay_unread_for_long_counts_as_lost(self, make: Make) -> None:
        """After the loop stood still, only what is still ours comes, and with the next take."""
        stream, other = make(), make()
        assert await stream.take(2) == []
        taking = asyncio.create_task(stream.take(2, block=5_000))
        await asyncio.sleep(0)  # it has begun
        stream.stood_still()
        await stream.send([Ready("t", str(n), "default") for n in range(2)], "call", 1_000)
        assert await taking == []
        (stolen,) = await other.reclaim(1, idle=0)
        (ours,) = await stream.take(2)
        assert (payloads(stream, [ours]), payloads(other, [stolen]), ours.times) == ([1], [0], 1)

    async def test_what_was_claimed_before_the_loop_stood_still_counts_as_lost(self, make: Make) -> None:
        """The same for a look at abandoned jobs: what it claimed comes with the next take, with its count."""
        dead, stream = make(), make()
        await one(dead)
        looking = asyncio.create_task(stream.reclaim(1, "default", idle=0))
        await asyncio.sleep(0)  # it has begun
        stream.stood_still()
        assert await looking == []
        (ours,) = await stream.take(1)
        assert ours.times == 2

    async def test_an_answer_is_known_to_be_old_before_any_timer_tells(self, make: Make) -> None:
        """A task that is woken goes on before the timers that are due by then: it looks at the clock itself."""
        dead, stream = make(), make()
        await one(dead)
        stream.turn(0.2)
        looking = asyncio.create_task(stream.reclaim(1, "default", idle=0))
        await asyncio.sleep(0)  # it has begun
        time.sleep(0.3)  # a handler
        assert await looking == []
        (ours,) = await stream.take(1)
        assert ours.times == 2

    async def test_a_look_goes_on_where_the_last_one_ended(self, make: Make) -> None:
        """With little room the whole list is seen, each entry once, then it begins anew."""
        dead, stream = make(), make()
        for n in range(7):
            await dead.enqueue("t", n)
        await dead.take(10)
        found: list[Any] = []
        for _ in range(4):
            looked = await stream.look("default", 2, idle=0, foreign_idle=0)
            found += payloads(stream, looked.deliveries)
        assert found == list(range(7))
        assert looked.ended

    async def test_a_clock_that_ran_ahead_takes_nothing(self, make: Make) -> None:
        """The server's time is further than it can be by our own: the living must renew first."""
        dead, stream = make(), make()
        await one(dead)
        await stream.reclaim(10, "low")
        stream.clock.server_ms -= 60_000
        looked = await stream.look("default", 10, idle=0, foreign_idle=0)
        assert (looked.jumped, looked.deliveries) == (True, [])
        assert time.monotonic() - stream.clock.leapt < 5

    def test_the_clock_notices_steps(self) -> None:
        """Ahead and back beyond the bound; less is a delay on the way."""
        clock = Clock(leap=1_000)
        for ahead, leapt, back in ((0, False, False), (500, False, False), (5_000, True, False), (-5_000, False, True)):
            clock.leapt, clock.went_back = -1e9, False
            clock.hear(clock.now() + ahead)
            assert (clock.leapt > 0, clock.went_back) == (leapt, back)


class TestPromote:
    async def test_a_hundred_thousand_due_at_once(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """In batches, others are served in between, and none is lost."""
        member = {"taskName": "t", "payload": "1", "streamKey": keys.stream("low")}
        texts = [json.dumps({**member, "jobId": str(n)}) for n in range(100_000)]
        with db.pipeline(transaction=False) as pipe:
            for at in range(0, len(texts), 5_000):
                pipe.zadd(keys.scheduled, dict.fromkeys(texts[at : at + 5_000], 1))
            pipe.execute()
        promoting = asyncio.create_task(stream.promote(1_000))
        await wait_until(lambda: db.exists(keys.stream("low")))
        await stream.enqueue("t", "meanwhile", priority="urgent")
        assert payloads(stream, await stream.take(1)) == ["meanwhile"]
        assert not promoting.done()
        assert await promoting is None
        assert (db.xlen(keys.stream("low")), db.exists(keys.scheduled)) == (100_000, 0)

    async def test_five_hundred_foreign_queues(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """Streams that were not declared are asked for and given, within a bound."""
        members = [json.dumps({"taskName": "t", "streamKey": keys.stream(f"q{n}")}) for n in range(500)]
        db.zadd(keys.scheduled, dict.fromkeys(members[:250], 1))
        db.zadd(keys.retries, dict.fromkeys(members[250:], 1))
        assert await stream.promote() is None
        assert all(db.xlen(keys.stream(f"q{n}")) == 1 for n in range(500))
        assert len(stream._streams) <= 400

    async def test_a_queue_name_that_is_no_text(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """Others' names may be any bytes; they don't stop promotion."""
        key = f"{keys.prefix}:".encode() + b"\xff\xfe"
        db.zadd(keys.scheduled, {b'{"taskName":"t","streamKey":"' + key + b'"}': 1})
        assert await stream.promote() is None
        assert db.xlen(key) == 1

    async def test_never_due(self, stream: Stream, db: SyncRedis, keys: Keys) -> None:
        """A score of +inf is no time to wake up for."""
        db.zadd(keys.scheduled, {"x": float("inf")})
        assert await stream.promote() is None


class TestRegistry:
    async def test_a_workers_life(self, make: Make, db: SyncRedis, keys: Keys) -> None:
        """beat, prune (which spares the living) and leave."""
        stream, gone = make(consumer="w1~1"), make(consumer="w2~1")
        await gone.take(1)
        await stream.take(1)
        for one_of in (stream, gone):
            await one_of.initialize()
        db.xgroup_createconsumer(keys.stream("default"), GROUP, "w1~1")
        db.xgroup_createconsumer(keys.stream("default"), GROUP, "w2~1")
        await stream.beat("w1", 60_000, {"host": "h"})
        assert db.hget(keys.worker("w1"), "host") == "h"
        await wait_until(lambda: all(c["idle"] > 0 for c in db.xinfo_consumers(keys.stream("default"), GROUP)))
        await stream.prune(idle=0, foreign_idle=0)
        assert [c["name"] for c in db.xinfo_consumers(keys.stream("default"), GROUP)] == ["w1~1"]
        await stream.leave("w1")
        assert db.xinfo_consumers(keys.stream("default"), GROUP) == []
        assert not db.exists(keys.workers, keys.worker("w1"))


@pytest.mark.parametrize("consumer", ["w1", "~released"])
def test_a_consumer_without_a_nonce_is_refused(make: Make, consumer: str) -> None:
    """It would count as another SDK's, or as nobody."""
    with pytest.raises(ConfigError, match="nonce"):
        make(consumer=consumer)

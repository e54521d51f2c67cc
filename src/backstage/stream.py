"""The data path to Redis: enqueue, take, finish, renew, reclaim, promote. One keyspace, one consumer group.

Everything here is a verb of docs/protocol.md; what repeats, waits or decides is in the rooms above.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias, Unpack

import msgspec
import redis.asyncio
import redis.exceptions

from backstage import blobs, wire
from backstage.clock import Clock
from backstage.durations import Duration, to_ms
from backstage.errors import BackstageError, ConfigError, RedisRefused, quoted
from backstage.findings import facts_of
from backstage.job import Delivery, EnqueueOptions, Job, Named
from backstage.keys import Keys
from backstage.lane import Lane, NoGroup, dialer, translate
from backstage.outcome import Done, Outcome
from backstage.queue import DEFAULT_QUEUES, RESERVED, Queue, check_name, ordered
from backstage.reader import Reader
from backstage.ready import Ready
from backstage.scripts import load, pack
from backstage.serializer import JsonSerializer, Serializer

log = logging.getLogger("backstage")

CALL_TIMEOUT = 10.0
"""Seconds that a command may take before its connection counts as dead."""

RELEASED = "~released"
"""The consumer that owns what was given back: not a process, but a short pending list that all look at every second."""

Held: TypeAlias = dict[str, dict[bytes, Delivery]]


class Reclaimed(msgspec.Struct, frozen=True):
    """What a look for abandoned deliveries found in one queue."""

    deliveries: list[Delivery]
    gone: int
    """Pending entries whose body somebody had deleted: dropped."""
    ended: bool
    """The whole pending list was seen; the next look starts at its beginning."""
    jumped: bool
    """The server's clock had run ahead: nothing was taken."""


class Settled(msgspec.Struct, frozen=True):
    """What a finish changed: how many plain ones were not ours any more, and a verdict for each of the others."""

    lost: int
    verdicts: list[bool | BackstageError]


class Stream:
    """Jobs in one keyspace, seen by one consumer of one group. For those who build their own loop; Worker has one.

    `redis` only tells where the server is: the stream opens connections of its own. `held` has every delivery that was
    taken and not yet finished, by queue and entry id.
    """

    def __init__(
        self,
        redis: redis.asyncio.Redis,
        group: str = "backstage-workers",
        *,
        queues: Iterable[Queue | str] = DEFAULT_QUEUES,
        prefix: str = "backstage",
        consumer: str | None = None,
        serializer: Serializer | None = None,
        delete_on_ack: bool = True,
        connect_timeout: Duration = 5_000,
    ) -> None:
        self.group = check_name(group, "consumer group")
        self.keys = Keys(prefix)
        self.queues = ordered(queues)
        self.consumer = consumer or consumer_name(f"{socket.gethostname()}-{os.getpid()}")
        name = self.consumer
        if not isinstance(name, str) or "~" not in name or not name.isprintable() or name == RELEASED:
            raise ConfigError(
                f"consumer={quoted(consumer)}: must be <worker id>~<nonce>, so that other SDKs' are told apart"
            )
        self.clock = Clock()
        self.held: Held = {queue.name: {} for queue in self.queues}
        self._serializer = serializer or JsonSerializer()
        self._delete = delete_on_ack
        dial = dialer(redis, connect_timeout=to_ms(connect_timeout, "connect_timeout", minimum=1) / 1000)
        self._reads, self._writes, self._sends, self._upkeep = (Lane(dial, timeout=CALL_TIMEOUT) for _ in range(4))
        self._reader = Reader(self._reads, self.group, self.consumer)
        self._served: dict[str, str] = {}
        self.refused: list[str] = []
        self._doubt, self._stalls, self._turn = False, 0, float("inf")
        self._claiming = asyncio.Lock()
        """What is claimed for us is held before anybody asks what is pending for us and not held."""
        self._cursors: dict[str, str] = {}
        self._streams: dict[str | bytes, None] = dict.fromkeys(self.keys.stream(queue.name) for queue in self.queues)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def initialize(self) -> list[str]:
        """Create the streams and their groups where they are missing. Harmless to repeat.

        Returns the queues that can't be served: their key holds something else than a stream, or memory is full.
        """
        streams = {self.keys.stream(queue.name): queue.name for queue in self.queues}
        replies = await self._upkeep.many([("XGROUP", "CREATE", key, self.group, "0", "MKSTREAM") for key in streams])
        if any(isinstance(reply, redis.exceptions.OutOfMemoryError) for reply in replies):
            # Refused even where the group is there. Reading needs no memory, and finishing what is read frees some.
            replies = await self._upkeep.many([("XPENDING", key, self.group) for key in streams])
        served: dict[str, str] = {}
        refused: list[str] = []
        for (key, queue), reply in zip(streams.items(), replies, strict=True):
            text = str(reply)
            if not isinstance(reply, Exception) or text.startswith("BUSYGROUP"):
                served[key] = queue
            elif text.startswith(("WRONGTYPE", "NOGROUP")):
                refused.append(queue)
                why = "holds something else than a stream" if text[0] == "W" else "can't be made, memory is full"
                log.error("queue %s is not served: the key %s %s", queue, key, why)
            else:
                raise translate(reply)
        self.refused = refused
        if served != self._served or self._doubt:
            self._served = served
            self._reader.serve(served)
        return refused

    async def aclose(self) -> None:
        """Drop the connections. What is held stays pending for this consumer, and is reclaimed when its lease ends."""
        for lane in (self._reads, self._writes, self._sends, self._upkeep):
            await lane.close()

    async def about_server(self) -> dict[str, str]:
        """What the server's INFO tells; empty where it doesn't."""
        (info,) = await self._upkeep.many([("INFO",)])
        return facts_of(info.decode("utf-8", "replace")) if isinstance(info, bytes) else {}

    async def unblock(self) -> None:
        """End a `take` that waits for jobs: it returns what it has. Never cancel one: its reply could hold jobs."""
        if self._reads.client_id:
            await self._upkeep.many([("CLIENT", "UNBLOCK", self._reads.client_id)])

    # ---- enqueue -----------------------------------------------------------------------------------------------------

    async def enqueue(self, task: str | Named, payload: object = None, **options: Unpack[EnqueueOptions]) -> str | None:
        """One job; its id, or None where its dedupe key is taken."""
        job = Job(task, payload, **options)
        text = self._serializer.encode(payload).decode()
        ready = Ready.of(job, text, job.queue or job.route or "default")
        (verdict,) = await self.send([ready], secrets.token_hex(8), 15_000)
        if isinstance(verdict, BackstageError):
            raise verdict
        return verdict

    async def send(self, jobs: Sequence[Ready], call: str, marker_ttl: int) -> list[str | BackstageError | None]:
        """Enqueue a batch: for each job its id, None for a duplicate, or why it was refused.

        Repeated with the same `call` id within `marker_ttl` ms, it adds nothing and answers the same.
        """
        keys, blob = blobs.enqueue(self.keys, jobs, call, marker_ttl)
        return blobs.verdicts(jobs, await self._sends.script(load("enqueue"), keys, blob))

    # ---- take --------------------------------------------------------------------------------------------------------

    async def take(self, room: int, block: int = 0) -> list[Delivery]:
        """At most about `room` new deliveries, best queue first; waits up to `block` ms where there is none.

        After an error the next call first brings what a lost reply may have held. Raises RedisUnavailable.
        """
        try:
            if not self._served or self._doubt:
                await self.initialize()
            if self._doubt:
                async with self._claiming:
                    self._doubt = False
                    found = await self._recover()
                    self._check_turn()
                if found and not self._doubt:
                    return self._hold(found)
            found = [] if self._doubt else await self._reader.take(room, block)
            self._check_turn()
            return [] if self._doubt else self._hold(found)
        except NoGroup:
            self._served, self._doubt = {}, True  # other queues of the same pass may have answered with jobs
            return []
        except BaseException:
            self._doubt = True
            raise

    def job(self, delivery: Delivery) -> Job:
        """The job in a delivery, its payload as it came. Raises MalformedJob."""
        payload = wire.payload_of(wire.fields_of(delivery.fields))
        return wire.decode(delivery, wire.any_payload(payload))

    async def _recover(self) -> list[Delivery]:
        found: list[Delivery] = []
        for key, queue in self._served.items():
            held = [entry_id.decode() for entry_id in self.held[queue]]
            entries = await self._reads.script(load("recover"), [key], pack((self.group, self.consumer, held)))
            found += [Delivery(queue, id, fields, times, self._reads.run_id) for id, times, fields in entries]
        return found

    def turn(self, patience: float) -> None:
        """The loop has its turn, and is to have another within `patience` seconds: else it stood still."""
        self._check_turn()
        self._turn = time.monotonic() + patience

    def _check_turn(self) -> None:
        # Before each answer, too: a task that was woken before the loop stood still goes on before any timer.
        if time.monotonic() > self._turn:
            self._turn = float("inf")
            self.stood_still()

    def stood_still(self) -> None:
        """Answers that lay here unread for half a lease count as lost; what is still ours comes with the next take."""
        self._doubt, self._stalls = True, self._stalls + 1

    def _hold(self, deliveries: list[Delivery]) -> list[Delivery]:
        for queue, group in groupby(deliveries, attrgetter("queue")):  # they come queue by queue
            self.held[queue].update({delivery.entry_id: delivery for delivery in group})
        return deliveries

    def drop(self, deliveries: Iterable[Delivery]) -> None:
        """No longer held: finished, or lost to somebody else."""
        held = self.held
        for delivery in deliveries:
            found = held[delivery.queue].pop(delivery.entry_id, None)
            if found is not None and found is not delivery:  # taken anew meanwhile: that one is held
                held[delivery.queue][found.entry_id] = found

    # ---- finish ------------------------------------------------------------------------------------------------------

    async def finish(self, outcomes: Sequence[tuple[Delivery, Outcome]]) -> list[bool]:
        """Make outcomes durable; for each whether it was this call that settled it.

        False: settled before (maybe by us), or the delivery is somebody else's by now; nothing was changed then.
        """
        settled = await self.settle({}, outcomes)
        for verdict in settled.verdicts:
            if isinstance(verdict, BackstageError):
                raise verdict
        return [verdict is True for verdict in settled.verdicts]

    async def settle(
        self, done: Mapping[str, Sequence[Delivery]], others: Sequence[tuple[Delivery, Outcome]]
    ) -> Settled:
        """A batch of at most 500: `done` (by queue) ran and asks for nothing more, `others` with what each asks for.

        What is settled, by whomever, is no longer held; what was refused (a key of the wrong type) still is.
        """
        server = await self._writes.greet()
        plain: dict[str, list[str]] = {}
        suspects: list[tuple[Delivery, Outcome]] = []
        for queue, deliveries in done.items():
            plain[queue] = [d.entry_id.decode() for d in deliveries if d.server == server]
            if len(plain[queue]) != len(deliveries):
                suspects += [(d, Done()) for d in deliveries if d.server != server]
        others = [*others, *suspects]
        # Not for an entry that we got once more. The server may not tell the two: giving back takes one off the count.
        current = [isinstance(outcome, Done) or self.held[d.queue].get(d.entry_id, d) is d for d, outcome in others]
        batch = blobs.finish(
            self.keys, plain, [pair for pair, asks in zip(others, current, strict=True) if asks], server,
            group=self.group, consumer=self.consumer, delete=self._delete,
            encode=lambda payload: self._serializer.encode(payload).decode(),
        )  # fmt: skip
        lost, *verdicts = await self._writes.script(load("finish"), batch.keys, batch.blob, server=server)
        for deliveries in done.values():
            self.drop([d for d in deliveries if d.server == server])
        answers: list[bool | BackstageError] = []
        told = iter(verdicts)
        for (delivery, _), asks in zip(others, current, strict=True):
            verdict = next(told) if asks else 0
            if isinstance(verdict, bytes):
                answers.append(RedisRefused(f"not finished: {verdict.decode('utf-8', 'replace')}"))
            else:
                self.drop((delivery,))
                answers.append(verdict == 1)
        wrong = sum(answer is not True for answer in answers[len(others) - len(suspects) :])
        return Settled(lost + wrong, answers[: len(others) - len(suspects)])

    # ---- leases ------------------------------------------------------------------------------------------------------

    async def renew(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Begin the leases of these anew; returns those that are no longer ours."""
        by_stream: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_stream.setdefault(self.keys.stream(delivery.queue), []).append(delivery)
        if not by_stream:
            return []
        blob = blobs.renew(self.group, self.consumer, list(by_stream.values()))
        lost = await self._upkeep.script(load("renew"), list(by_stream), blob)
        return blobs.lost(list(by_stream.values()), lost)

    async def reclaim(
        self, room: int, queue: str | None = None, *, idle: int = 30_000, foreign_idle: int = 60_000
    ) -> list[Delivery]:
        """Abandoned deliveries of one queue, or of all: given back, or idle for longer than `idle` ms.

        Consumers without `~` in their names (other SDKs') count as dead only after `foreign_idle`: they don't renew.
        """
        found: list[Delivery] = []
        for name in [queue] if queue else [q.name for q in self.queues]:
            if room > len(found):
                looked = await self.look(name, room - len(found), idle=idle, foreign_idle=foreign_idle)
                found += looked.deliveries
        return found

    async def look(self, queue: str, room: int, *, idle: int, foreign_idle: int, heal: bool = False) -> Reclaimed:
        """One step through a queue's pending list. `idle` -1 looks only at what was given back.

        A server clock that was set ahead takes nothing: live workers must renew first. `heal`: entries whose idle time
        stands at 0, for the clock went back, are renewed for their own owners.
        """
        latest = self.clock.now() + self.clock.leap if self.clock.heard else 0
        cursor = self._cursors.get(queue, "-")
        blob = pack((self.group, self.consumer, idle, foreign_idle, room, cursor, latest, int(heal)))
        async with self._claiming:
            try:
                return await self._look(queue, blob, scan=idle >= 0)
            except BaseException:
                self._doubt = True  # what a lost reply held comes with the next take, not after a lease
                raise

    async def _look(self, queue: str, blob: bytes, *, scan: bool) -> Reclaimed:
        stalls = self._stalls
        mark, entries, gone, now = await self._upkeep.script(load("reclaim"), [self.keys.stream(queue)], blob)
        self._check_turn()
        self.clock.hear(int(now))
        if mark == b"NOGROUP" and queue not in self.refused:
            self._served = {}
        # Our own that is not held is in an answer on its way, or in a lost one: the next take tells which.
        self._doubt |= any(own and entry_id not in self.held[queue] for entry_id, *_, own in entries)
        found = [
            Delivery(queue, entry_id, fields, times, self._upkeep.run_id)
            for entry_id, times, fields, own in entries
            if not own and stalls == self._stalls
        ]
        if scan and mark not in (b"JUMPED", b"NOGROUP"):
            self._cursors[queue] = mark.decode()
        return Reclaimed(self._hold(found), gone, mark == b"-", mark == b"JUMPED")

    # ---- upkeep ------------------------------------------------------------------------------------------------------

    async def promote(self, limit: int = 250) -> int | None:
        """Move what is due, until nothing is; returns when the next one is (server time, ms), None where none waits."""
        fixed = [self.keys.scheduled, self.keys.retries, self.keys.dead_letter("default")]
        blob = pack((self.keys.prefix, limit, sorted(RESERVED), wire.FIELDS))
        while True:
            _, due, missing, now, more = await self._upkeep.script(load("promote"), [*fixed, *self._streams], blob)
            self.clock.hear(int(now))
            if not missing and not more:
                return None if due in (b"", b"inf") else int(float(due))
            for key in missing:
                self._streams[key] = None
            while len(self._streams) > 400:  # a bound, should others invent queues without end
                self._streams.pop(next(iter(self._streams)))
            await asyncio.sleep(0)

    async def beat(self, worker_id: str, ttl: int, facts: Mapping[str, str]) -> None:
        """Tell the registry that this worker lives; the entry lapses `ttl` ms after the last beat."""
        flat = [part for pair in facts.items() for part in pair]
        keys = [self.keys.workers, self.keys.worker(worker_id)]
        self.clock.hear(int(await self._upkeep.script(load("beat"), keys, pack((self.consumer, ttl, flat)))))

    async def prune(self, *, idle: int, foreign_idle: int) -> list[tuple[str, int, int, int]]:
        """For each queue: its name, consumers deleted, entries trimmed, groups on its stream."""
        found = []
        for queue in self.queues:
            blob = pack((self.group, idle, foreign_idle, int(self._delete)))
            keys = [self.keys.stream(queue.name), self.keys.workers]
            consumers, trimmed, groups = await self._upkeep.script(load("prune"), keys, blob)
            found.append((queue.name, consumers, trimmed, groups))
        return found

    async def leave(self, worker_id: str) -> None:
        """Take this consumer out of the registry, and out of the groups where it holds nothing."""
        keys = [self.keys.workers, self.keys.worker(worker_id), *self._served]
        await self._upkeep.script(load("leave"), keys, pack((self.group, self.consumer)))


def consumer_name(worker_id: str) -> str:
    """`<worker id>~<nonce>`: no two processes ever share one, and ours are told from other SDKs'."""
    return f"{worker_id}~{secrets.token_hex(4)}"

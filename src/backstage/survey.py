"""Survey: one keyspace as an Inspector sees it: its queues, workers and dead jobs.

Every call opens a connection of its own and closes it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import redis.asyncio

from backstage.errors import RedisRefused
from backstage.keys import Keys
from backstage.lane import Lane, dialer
from backstage.queue import DEFAULT_QUEUES, RESERVED
from backstage.report import DeadJob, QueueInfo, QueuesInfo, WorkerInfo, dead_job, instant
from backstage.scripts import load, pack

log = logging.getLogger("backstage")

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""
PAGE = 250
"""Entries or members that one call reads, moves or deletes."""
COUNTED = 1_000
"""Entries of a stream that are counted one by one, where the server can't tell."""
ROUTED = 10_000
"""Members of a set whose queues are all looked up; of a larger set as many are sampled as fit into `SAMPLED`."""
SAMPLED = 2_500
SCANNED = 1_000
"""Steps of a thousand keys that the search for queues takes at most."""

_LAPSED = ("deadLetteredAt", "originalId", "deliveryCount", "queue", "reason", "error", "traceback",
           "attempt", "crashes", "since")  # fmt: skip
"""Fields of a dead job that a retry leaves behind: it starts anew."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each step with how many entries were done, and how many passed over, so far."""


class Survey:
    """Looks at one keyspace, and repairs it. `connect_timeout` in ms."""

    def __init__(self, redis: redis.asyncio.Redis, prefix: str, *, group: str, connect_timeout: int) -> None:
        self._keys, self._group = Keys(prefix), group
        self._dial = dialer(redis, connect_timeout=connect_timeout / 1000)

    # ---- looking -----------------------------------------------------------------------------------------------------

    async def queues(self, names: Sequence[str] | None) -> QueuesInfo:
        """These queues; None: all that exist, the default ones first."""
        async with self.lane() as lane:
            routes, total, sampled = await self._routes(lane)
            complete = True
            if names is None:
                found, complete = await self._find(lane)
                known = [queue.name for queue in DEFAULT_QUEUES]
                listed = known + sorted((found | set(routes)) - set(known))
            else:
                listed = list(dict.fromkeys(names))
            head = [await self._survey(lane, name) for name in listed[:1]]
            rest = await asyncio.gather(*(self._survey(lane, name) for name in listed[1:]))
        queues = tuple(
            _queue_info(name, reply, routes.get(name, 0), sampled)
            for name, reply in zip(listed, [*head, *rest], strict=True)
        )
        return QueuesInfo(queues, total, complete)

    async def workers(self) -> list[WorkerInfo]:
        """The workers that live, by id: those whose entry in the registry has not lapsed."""
        async with self.lane() as lane:
            flat = await lane.call("ZRANGE", self._keys.workers, "0", "-1", "WITHSCORES")
            beats = {_text(name): float(score) for name, score in zip(flat[::2], flat[1::2], strict=True)}
            ids = {consumer: consumer.rpartition("~")[0] for consumer in beats}
            hashes = await lane.many([("HGETALL", self._keys.worker(id)) for id in ids.values()])
        found = []
        for (consumer, id), reply in zip(ids.items(), hashes, strict=True):
            seen = instant(beats[consumer])
            if not reply or isinstance(reply, Exception) or seen is None:
                continue
            facts = {_text(name): _text(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}
            facts.pop("seen", None)
            found.append(WorkerInfo(id, consumer, seen, facts))
        return sorted(found, key=lambda worker: worker.consumer)

    async def dead(self, name: str, *, limit: int, begin: str | None, newest_first: bool) -> list[DeadJob]:
        """At most `limit` entries of a dead letter, from `begin` on, as XRANGE and XREVRANGE read it."""
        found = list[DeadJob]()
        verb, first, end = ("XREVRANGE", "+", "-") if newest_first else ("XRANGE", "-", "+")
        begin = begin or first
        async with self.lane() as lane:
            while len(found) < limit:
                asked = min(PAGE, limit - len(found))
                page = await lane.call(verb, self._keys.dead_letter(name), begin, end, "COUNT", str(asked))
                found += [dead_job(name, entry_id.decode(), flat) for entry_id, flat in page]
                if len(page) < asked:
                    break
                begin = f"({found[-1].entry_id}"
        return found

    # ---- repairing ---------------------------------------------------------------------------------------------------

    async def retry(self, name: str, entry_ids: Sequence[str] | None, progress: Progress) -> tuple[int, list[str]]:
        """How many dead jobs of a queue moved back, and the entries that never were jobs. None: all that are there."""
        keys = [self._keys.dead_letter(name), self._keys.stream(name)]
        retried, passed = 0, list[str]()
        async with self.lane() as lane:
            for ids in _batches(entry_ids):
                mark, last = "-", "" if ids else await self._last(lane, keys[0])
                while mark:
                    blob = pack((name, ids, mark, last, PAGE, _LAPSED))
                    moved, following, *refused = await lane.script(load("dead_retry"), keys, blob)
                    mark, retried = following.decode(), retried + moved
                    passed += map(_text, refused)
                    progress(retried, len(passed))
        return retried, passed

    async def purge(self, name: str, entry_ids: Sequence[str] | None, progress: Progress) -> int:
        """How many dead jobs of a queue were deleted."""
        key, deleted = self._keys.dead_letter(name), 0
        async with self.lane() as lane:
            for ids in _batches(entry_ids):
                more, last = True, "" if ids else await self._last(lane, key)
                while more:
                    gone, more = await lane.script(load("dead_purge"), [key], pack((ids, last, PAGE)))
                    deleted += gone
                    progress(deleted, 0)
        return deleted

    # ---- parts -------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lane(self) -> AsyncIterator[Lane]:
        """A connection to its server, for as long as the look takes."""
        lane = Lane(self._dial, timeout=CALL_TIMEOUT)
        try:
            yield lane
        finally:
            await lane.close()

    async def _last(self, lane: Lane, key: str) -> str:
        """The newest entry's id, `0-0` where there is none: what is added later (it died again) is left alone."""
        newest = await lane.call("XREVRANGE", key, "+", "-", "COUNT", "1")
        return newest[0][0].decode() if newest else "0-0"

    async def _survey(self, lane: Lane, name: str) -> list[Any]:
        keys = [self._keys.stream(name), self._keys.dead_letter(name)]
        try:
            reply: list[Any] = await lane.script(load("survey"), keys, pack((self._group, COUNTED)))
        except RedisRefused as exc:
            return [str(exc).encode()]
        return reply

    async def _routes(self, lane: Lane) -> tuple[Counter[str], int, bool]:
        """Where the members of both sets go: by queue, how many in all, and whether it's by sample."""
        routes, total, sampled = Counter[str](), 0, False
        for key in (self._keys.scheduled, self._keys.retries):
            (size,) = await lane.many([("ZCARD", key)])
            if not isinstance(size, int):  # a key of another type: workers say so
                continue
            total += size
            found = Counter[str]()
            ranks = range(0, size, PAGE) if size <= ROUTED else [-1] * (SAMPLED // PAGE)
            for rank in ranks:
                flat = await lane.script(load("routes"), [key], pack((self._keys.prefix, rank, PAGE)))
                for name, n in zip(flat[::2], flat[1::2], strict=True):
                    found[_queue(_text(name))] += n
            if size > ROUTED:
                sampled, seen = True, found.total()
                found = Counter({name: round(n * size / seen) for name, n in found.items()})
            routes += found
        return routes, total, sampled

    async def _find(self, lane: Lane) -> tuple[set[str], bool]:
        """Queues by their keys, and whether all keys were looked at."""
        prefix = f"{self._keys.prefix}:"
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        found, cursor = set[str](), "0"
        for _ in range(SCANNED):
            mark, page = await lane.call("SCAN", cursor, "MATCH", pattern, "COUNT", "1000", "TYPE", "stream")
            for key in page:
                with contextlib.suppress(UnicodeDecodeError):  # no SDK writes such a name
                    name = key.decode()[len(prefix) :].removesuffix(":dead-letter")
                    if name and name.split(":")[0] not in RESERVED:
                        found.add(name)
            cursor = mark.decode()
            if cursor == "0":
                return found, True
        return found, False


def _queue_info(name: str, reply: Sequence[Any], scheduled: int, sampled: bool) -> QueueInfo:
    estimated = ("scheduled",) if sampled and scheduled else ()
    if len(reply) == 1:
        return QueueInfo(name, scheduled=scheduled, estimated=estimated, problem=_text(reply[0]))
    waiting, exact, running, dead, oldest, now = reply
    age = None
    if oldest:
        age = timedelta(milliseconds=max(0, int(now) - int(oldest.split(b"-")[0])))
    return QueueInfo(name, waiting, running, scheduled, dead, age, estimated if exact else ("waiting", *estimated))


def _batches(entry_ids: Sequence[str] | None) -> Iterable[Sequence[str]]:
    """The ids a call; one empty list means all that are there."""
    if entry_ids is None:
        return [[]]
    return [entry_ids[at : at + PAGE] for at in range(0, len(entry_ids), PAGE)]


def _queue(route: str) -> str:
    return "default" if route.split(":")[0] in RESERVED else route


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

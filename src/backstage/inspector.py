"""Inspector: the read and repair side. Counts queues, lists workers and dead jobs, puts them back or deletes them.

A running worker needs none of it. Where there are several keyspaces it looks at all of them; what one of them is like
stands in survey.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from redis.asyncio import Redis

from backstage.errors import ConfigError, quoted
from backstage.queue import DEFAULT_QUEUES, Queue
from backstage.report import DeadJob, QueueInfo, QueuesInfo, WorkerInfo
from backstage.survey import Progress, Survey

__all__ = ["Inspector", "Progress", "Source", "inspect"]

log = logging.getLogger("backstage")

_ENTRY_ID = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,20})-([0-9]{1,20})", re.ASCII)


class Settings(Protocol):
    @property
    def prefix(self) -> str: ...
    @property
    def connect_timeout(self) -> int: ...


class Source(Protocol):
    """What an Inspector needs to know of a client."""

    @property
    def config(self) -> Settings: ...

    def _keyspaces(self) -> Sequence[tuple[str, Redis]]:
        """The prefix of each, and a client of its server."""
        ...


@dataclass(frozen=True, slots=True)
class _Given:
    """A redis-py client and a prefix, as a Source."""

    redis: Redis
    prefix: str
    connect_timeout: int = 5_000

    @property
    def config(self) -> _Given:
        return self

    def _keyspaces(self) -> Sequence[tuple[str, Redis]]:
        return [(self.prefix, self.redis)]


async def inspect(
    redis: Redis,
    queues: Iterable[Queue | str] = DEFAULT_QUEUES,
    *,
    prefix: str = "backstage",
    group: str = "backstage-workers",
) -> QueuesInfo:
    """The state of these queues, for those who have a redis-py client and nothing else. See `Inspector.queues`."""
    return await Inspector(_Given(redis, prefix), group=group).queues(queues)


class Inspector:
    """Looks at the keyspaces of `client`, a Client or a Worker whose consumer group is looked at, and repairs them.

    Every method raises RedisUnavailable or RedisRefused, and repeats nothing by itself: all may be called again. With
    several keyspaces an entry id begins with the keyspace's number, like `2:1700000000000-0`.
    """

    def __init__(self, client: Source, *, group: str | None = None) -> None:
        self._client = client
        self._group = group or str(getattr(client.config, "consumer_group", "backstage-workers"))

    # ---- looking -----------------------------------------------------------------------------------------------------

    async def queues(self, names: Iterable[Queue | str] | None = None) -> QueuesInfo:
        """The state of these queues; without `names` of all that exist, the default ones first.

        All are found by a scan of up to a million keys. Each queue is counted at one moment, but not all at the same.
        Exact, but for two cases, which `estimated` names: `scheduled`, where a set has more than 10,000 members (a
        random sample is looked at, and the size divided by its shares), and `waiting`, where a thousand entries were
        left behind, a thousand wait, and the server can't tell because some were deleted unread.
        """
        asked = None if names is None else [_name(queue) for queue in names]
        spaces = [await survey.queues(asked) for survey in self._surveys()]
        return spaces[0] if len(spaces) == 1 else _sum(spaces, in_order=asked is not None)

    async def workers(self) -> list[WorkerInfo]:
        """The workers that live, by id: those whose entry in the registry has not lapsed."""
        found: dict[str, WorkerInfo] = {}
        for survey in self._surveys():
            for worker in await survey.workers():
                known = found.get(worker.consumer)
                found[worker.consumer] = worker if known is None or known.seen < worker.seen else known
        return sorted(found.values(), key=lambda worker: worker.consumer)

    async def dead(
        self, queue: Queue | str, *, limit: int = 100, after: str | None = None, newest_first: bool = False
    ) -> list[DeadJob]:
        """At most `limit` entries of a queue's dead letter, oldest first; `after` an entry id: the next page."""
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"limit={quoted(limit)}: must be a whole number, 1 or more")
        name, surveys = _name(queue), self._surveys()
        mark = None if after is None else self._entry(after, len(surveys))
        found: list[tuple[tuple[int, int, int], DeadJob]] = []
        for n, survey in enumerate(surveys):
            begin = None
            if mark is not None:  # entries of one id are in the order of their keyspaces
                behind = n < mark[0] if newest_first else n > mark[0]
                begin = mark[1] if behind else f"({mark[1]}"
            for job in await survey.dead(name, limit=limit, begin=begin, newest_first=newest_first):
                ms, _, place = job.entry_id.partition("-")
                told = job if len(surveys) == 1 else replace(job, entry_id=f"{n}:{job.entry_id}")
                found.append(((int(ms), int(place), n), told))
        found.sort(key=lambda each: each[0], reverse=newest_first)
        return [job for _, job in found[:limit]]

    # ---- repairing ---------------------------------------------------------------------------------------------------

    async def retry(
        self, queue: Queue | str, entry_ids: Iterable[str] | None = None, *, progress: Progress | None = None
    ) -> int:
        """Put dead jobs back into their queue, with the ids and payloads they had and all their attempts before them.

        Without `entry_ids`: all that are there now. Each job moves in one step. Returns how many did; an entry that
        never was a job can't, stays where it is, and is logged as a warning.
        """
        name, surveys = _name(queue), self._surveys()
        retried, passed = 0, list[str]()
        for n, ids in self._places(entry_ids, len(surveys)):
            moved, refused = await surveys[n].retry(name, ids, _onward(progress, retried, len(passed)))
            retried += moved
            passed += [id if len(surveys) == 1 else f"{n}:{id}" for id in refused]
        if passed:
            shown = ", ".join(passed[:10]) + (", …" if len(passed) > 10 else "")
            log.warning("%d entries in the dead letter of %s are no jobs and stay there: %s", len(passed), name, shown)
        return retried

    async def purge(
        self, queue: Queue | str, entry_ids: Iterable[str] | None = None, *, progress: Progress | None = None
    ) -> int:
        """Delete dead jobs for good; without `entry_ids` all that are there now. Returns how many were deleted."""
        name, surveys, deleted = _name(queue), self._surveys(), 0
        for n, ids in self._places(entry_ids, len(surveys)):
            deleted += await surveys[n].purge(name, ids, _onward(progress, deleted, 0))
        return deleted

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _surveys(self) -> list[Survey]:
        """One for each keyspace."""
        timeout = self._client.config.connect_timeout
        return [
            Survey(redis, prefix, group=self._group, connect_timeout=timeout)
            for prefix, redis in self._client._keyspaces()
        ]

    def _places(self, entry_ids: Iterable[str] | None, count: int) -> list[tuple[int, list[str] | None]]:
        """The numbers of the keyspaces, and which entries are meant there: None for all."""
        if entry_ids is None:
            return [(n, None) for n in range(count)]
        if isinstance(entry_ids, (str, bytes)):
            raise ConfigError(f"entry_ids={quoted(entry_ids)}: must be a list of entry ids, like [{quoted(entry_ids)}]")
        places: dict[int, list[str] | None] = {}
        for n, id in [self._entry(value, count) for value in entry_ids]:
            ids = places.setdefault(n, [])
            assert ids is not None
            ids.append(id)
        return list(places.items())

    def _entry(self, value: str, count: int) -> tuple[int, str]:
        """The number of its keyspace, and its id there."""
        found = _ENTRY_ID.fullmatch(value) if isinstance(value, str) else None
        if found is None or (found[1] is None) != (count == 1) or int(found[1] or 0) >= count:
            like = (
                "1700000000000-0"
                if count == 1
                else f"0:1700000000000-0, with the keyspace (0 to {count - 1}) before it"
            )
            raise ConfigError(f"entry id {quoted(value)}: must look like {like}, as `dead` tells it")
        return int(found[1] or 0), f"{found[2]}-{found[3]}"


def _onward(progress: Progress | None, done: int, passed: int) -> Progress:
    """Goes on counting where the keyspaces before have ended."""
    return lambda n, over: progress(done + n, passed + over) if progress is not None else None


def _sum(spaces: Sequence[QueuesInfo], *, in_order: bool) -> QueuesInfo:
    """The queues of several keyspaces, those of one name counted together; `in_order` in which they stand there."""
    parts: dict[str, list[QueueInfo]] = {}
    for queue in [queue for space in spaces for queue in space]:
        parts.setdefault(queue.name, []).append(queue)
    first = [queue.name for queue in DEFAULT_QUEUES]
    names = list(parts) if in_order else first + sorted(parts.keys() - set(first))
    return QueuesInfo(
        tuple(_together(name, parts[name]) for name in names),
        sum(space.scheduled for space in spaces),
        all(space.complete for space in spaces),
    )


def _together(name: str, parts: Sequence[QueueInfo]) -> QueueInfo:
    return QueueInfo(
        name,
        waiting=sum(part.waiting for part in parts),
        running=sum(part.running for part in parts),
        scheduled=sum(part.scheduled for part in parts),
        dead=sum(part.dead for part in parts),
        oldest=max((part.oldest for part in parts if part.oldest is not None), default=None),
        estimated=tuple(dict.fromkeys(count for part in parts for count in part.estimated)),
        problem="; ".join(part.problem for part in parts if part.problem),
    )


def _name(queue: Queue | str) -> str:
    """Names of other SDKs' queues are not held to our rule."""
    if isinstance(queue, Queue):
        return queue.name
    if not isinstance(queue, str) or not queue or any("\ud800" <= char <= "\udfff" for char in queue):
        raise ConfigError(f"queue={quoted(queue)}: must be a queue's name (text that UTF-8 can carry) or a Queue")
    return queue

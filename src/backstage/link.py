"""Link: what one event loop of one process has open, for each keyspace a client, a stream and outboxes.

Where there are several keyspaces, each job goes to the one of its dedupe key, or of its id.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from redis.asyncio import Redis

from backstage.config import RedisConfig
from backstage.connection import Connector, close
from backstage.durability import TOGETHER, Safe
from backstage.errors import BackstageError, ConfigError, RedisUnavailable
from backstage.job import Dedupe, Durability, Job, fix_ids
from backstage.keys import keyspace_of
from backstage.outbox import MOST, Outbox, Pending, cuts
from backstage.ready import Ready, give_ids
from backstage.stream import Stream

BULK_IN_FLIGHT = 2
"""Calls of `enqueue_many` on their way at once: the next is encoded while the server runs the last."""

Verdict: TypeAlias = str | BackstageError | None
"""What became of a job that was sent: its id, why it was refused, or None for a duplicate."""


class Space:
    """What is open for one keyspace."""

    def __init__(self, prefix: str, config: RedisConfig, connector: Connector) -> None:
        self.prefix, self.redis = prefix, connector.client(prefix)
        self.stream = Stream(
            self.redis, prefix=prefix, serializer=config.serializer, connect_timeout=config.connect_timeout
        )
        self.outbox = Outbox(self.stream, budget=config.connect_timeout, mend=connector.mend)
        self._budget, self._mend = config.connect_timeout, connector.mend
        self._safe: dict[Durability, tuple[Safe, Outbox]] = {}

    def outbox_for(self, durability: Durability) -> Outbox:
        """The outbox whose calls wait for this; all but the plain one have a connection of their own."""
        if durability == "memory":
            return self.outbox
        if durability not in self._safe:
            budget = self._budget
            safe = Safe(
                self.redis, durability, prefix=self.prefix, connect_timeout=budget, wait=budget * 4 // 10
            )  # a try has half of the budget
            outbox = Outbox(
                safe, budget=budget, mend=self._mend, at_once=TOGETHER, in_flight=1, promise="enqueued and confirmed"
            )
            self._safe[durability] = safe, outbox
        return self._safe[durability][1]

    async def close(self) -> None:
        await self.outbox.drain()
        for safe, outbox in self._safe.values():
            await outbox.drain()
            await safe.aclose()
        await self.stream.aclose()
        await close(self.redis)


class Spread:
    """The outboxes of several keyspaces as one."""

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        self._outboxes = tuple(outboxes)

    def put(self, job: Ready) -> Pending:
        give_ids((job,))
        dedupe = job.options.dedupe if job.options else None
        return self._outboxes[_home(job.id, dedupe, len(self._outboxes))].put(job)


class Link:
    """What is open; usable in the loop and the process that made it. `redis` is keyspace 0's."""

    def __init__(self, config: RedisConfig, connector: Connector) -> None:
        self.spaces = [Space(prefix, config, connector) for prefix in config.prefixes]
        self.redis: Redis = self.spaces[0].redis
        self.outbox = self.outbox_for("memory")
        self.loop, self.pid = asyncio.get_running_loop(), os.getpid()

    @property
    def usable(self) -> bool:
        try:
            return self.loop is asyncio.get_running_loop()  # which no forked child inherits
        except RuntimeError:  # none runs
            return False

    def outbox_for(self, durability: Durability) -> Outbox | Spread:
        """Where single jobs go whose calls wait for this."""
        outboxes = [space.outbox_for(durability) for space in self.spaces]
        return outboxes[0] if len(outboxes) == 1 else Spread(outboxes)

    async def send_many(
        self, jobs: Sequence[Job], payloads: Sequence[str], routes: Mapping[str, str], durability: Durability
    ) -> list[Verdict]:
        """For each job its verdict, in order. `routes`: the queue of each task, for jobs that name none.

        Every keyspace gets its own, at once with the others. What one that is away has missed is told by the error, and
        how many jobs the others took.
        """
        if len(self.spaces) == 1:
            return await _send_all(self.spaces[0], jobs, payloads, routes, durability)
        fix_ids(jobs)
        places: list[list[int]] = [[] for _ in self.spaces]
        for at, job in enumerate(jobs):
            places[_home(job.id, job.dedupe, len(places))].append(at)
        answers = await asyncio.gather(
            *(
                _send_all(space, [jobs[at] for at in ats], [payloads[at] for at in ats], routes, durability)
                for space, ats in zip(self.spaces, places, strict=True)
            ),
            return_exceptions=True,
        )
        verdicts: list[Verdict] = [None] * len(jobs)
        failed: dict[str, BackstageError] = {}
        missing = refused = duplicates = 0
        for space, ats, answer in zip(self.spaces, places, answers, strict=True):
            if isinstance(answer, BackstageError):
                failed[space.prefix], missing = answer, missing + len(ats)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                refused += sum(isinstance(verdict, BackstageError) for verdict in answer)
                duplicates += answer.count(None)
                for at, verdict in zip(ats, answer, strict=True):
                    verdicts[at] = verdict
        if failed:
            told = {"were duplicates": duplicates, "were refused": refused}
            raise _partly(failed, told, jobs=len(jobs), missing=missing)
        return verdicts

    async def close(self) -> None:
        await asyncio.gather(*(space.close() for space in self.spaces))


def _home(id: str, dedupe: Dedupe | None, count: int) -> int:
    """The number of the keyspace of such a job."""
    return keyspace_of(id if dedupe is None else dedupe.key, count)


async def _send_all(
    space: Space, jobs: Sequence[Job], payloads: Sequence[str], routes: Mapping[str, str], durability: Durability
) -> list[Verdict]:
    """All of these to one keyspace, in calls of 500."""
    outbox, most = space.outbox_for(durability), MOST if durability == "memory" else TOGETHER
    verdicts: list[Verdict] = []
    sending: deque[asyncio.Task[list[Verdict]]] = deque()
    try:
        for cut in cuts(payloads, most):
            part = jobs[cut]
            fix_ids(part)
            ready = [
                Ready.of(job, payload, job._queue or job.route or routes[job._task])
                for job, payload in zip(part, payloads[cut], strict=True)
            ]
            sending.append(asyncio.create_task(outbox.deliver(ready)))
            await asyncio.sleep(0)  # it leaves now, not after the next one is encoded
            if len(sending) == BULK_IN_FLIGHT:
                verdicts += await sending[0]
                sending.popleft()
        while sending:
            verdicts += await sending[0]
            sending.popleft()
    finally:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    return verdicts


def _partly(
    failed: Mapping[str, BackstageError], told: Mapping[str, int], *, jobs: int, missing: int
) -> BackstageError:
    """The error of a call that some keyspaces did not take, or took in part; `told` says what became of other jobs."""
    first = min(failed.values(), key=lambda exc: type(exc) is not RedisUnavailable)
    sure = jobs - missing - sum(told.values())
    if missing == jobs and isinstance(first, ConfigError):  # told before anything is sent
        return first
    also = "".join(f", {count} {what}" for what, count in told.items() if count)
    places = ", ".join(failed)
    return type(first)(f"{sure} of {jobs} jobs are enqueued{also}; of {missing} for {places} some may be: {first}")

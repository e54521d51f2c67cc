"""Cron: a loop that turns slots into jobs, alone or inside a worker, and any number of them at once.

There is no leader. Every timetable computes the slots from the server's clock and asks cron.lua for each; the script
adds the job for whoever asks first. What has run stands in Redis alone, so that one timetable goes on where another
died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

import redis.exceptions

from backstage.client import Client
from backstage.config import RedisConfig, RedisOptions
from backstage.cron import CronTask
from backstage.errors import BackstageError, ConfigError, RedisRefused, RedisUnavailable, quoted
from backstage.job import Job
from backstage.keys import Keys
from backstage.lane import Lane, dialer, translate
from backstage.ready import give_ids
from backstage.scripts import load, pack
from backstage.service import Life, Service
from backstage.task import TaskRegistry

log = logging.getLogger("backstage")

TOLERANCE = 60_000
"""Ms for which a slot counts as due rather than missed: `catch_up="skip"` still runs it."""

CAP = 1000
"""Missed slots of one schedule that `catch_up="all"` runs; older ones are passed over."""

LOOK = 5.0
"""Seconds between two looks at the records and at the server's clock, at most: it may be set."""

PAUSE = 0.5
"""Seconds between two tries while Redis is away."""

CALL_TIMEOUT = 5.0
"""Seconds after which a call without an answer counts as lost. To repeat one is harmless: a slot runs once."""


class Schedule:
    """A CronTask in milliseconds, which computes no slot twice."""

    def __init__(self, task: CronTask) -> None:
        self.task = task
        self.trouble = ""
        """Why it was refused last time, so that it is said once."""
        self._known = (-1, -1)

    def next(self, after: int) -> int:
        """The first slot later than `after`."""
        if self._known[0] != after:
            self._known = after, _ms(self.task.next_run(_instant(after)))
        return self._known[1]

    def interval(self, now: int) -> int:
        """From the next slot to the one behind it."""
        first = self.task.next_run(_instant(now))
        return _ms(self.task.next_run(first)) - _ms(first)

    def latest(self, after: int, now: int, count: int) -> list[int]:
        """The last `count` slots later than `after`, up to `now`. A year of missed minutes costs no more than a day."""
        begin, end = _instant(after), _instant(now)
        span = timedelta(minutes=count)  # no schedule has more than one slot a minute
        while True:
            start = max(begin, end - span) if span < end - begin else begin
            found = deque((_ms(slot) for slot in self.task.slots(start, end)), maxlen=count)
            if len(found) == count or start == begin:
                return list(found)
            span *= 4


class Timetable:
    """Adds the jobs of `schedules` when they are due. `client` says where, encodes the payloads and knows the routes.

    A slot that nobody has run yet is due from its time on. Where several have passed, `catch_up` decides: "last" runs
    the latest; "all" runs each, at most CAP of them; "skip" runs the latest if it is less than TOLERANCE old. One that
    is seen for the first time begins with its next slot; one whose expression was changed goes on from the slot on
    record.

    Raises ConfigError for no schedule, or two of one name; PayloadTooLarge, NotSerializable for an `args` that can't be
    sent.
    """

    def __init__(self, client: Client, schedules: Sequence[CronTask]) -> None:
        self._client = client
        self._schedules = [Schedule(task) for task in _checked(schedules)]
        for schedule in self._schedules:
            client._ready(_job(schedule.task))

    @property
    def names(self) -> list[str]:
        """Of the schedules."""
        return [schedule.task.name for schedule in self._schedules]

    async def begin(self) -> None:
        """Record what is seen for the first time. Raises RedisUnavailable after `connect_timeout`, RedisRefused."""
        loop, config = asyncio.get_running_loop(), self._client.config
        deadline = loop.time() + config.connect_timeout / 1000
        while True:
            try:
                async with asyncio.timeout_at(deadline), self._lane() as lane:
                    await self._look(lane)
                    return
            except RedisRefused:
                raise
            except (RedisUnavailable, TimeoutError) as exc:
                if loop.time() + 0.1 >= deadline:
                    raise RedisUnavailable(f"no Redis at {config.address}: {str(exc) or 'no answer'}") from exc
            await asyncio.sleep(0.1)

    async def run(self) -> None:
        """For ever; Redis may be away for as long as it likes."""
        trouble = ""
        while True:
            try:
                async with self._lane() as lane:
                    while True:
                        pause = await self._pass(lane)
                        if trouble:
                            log.info("schedules: Redis answers again")
                            trouble = ""
                        await asyncio.sleep(pause)
            except RedisUnavailable as exc:
                if type(exc).__name__ != trouble:
                    log.warning("schedules wait, trying again: %s", exc)
                trouble = type(exc).__name__
            except Exception:
                log.exception("schedules failed; trying again")
            await asyncio.sleep(PAUSE)

    @contextlib.asynccontextmanager
    async def _lane(self) -> AsyncIterator[Lane]:
        client = self._client
        await client._connector.mend()
        dial = dialer(client._open().redis, connect_timeout=client.config.connect_timeout / 1000)
        lane = Lane(dial, timeout=CALL_TIMEOUT)
        try:
            yield lane
        finally:
            await lane.close()

    async def _pass(self, lane: Lane) -> float:
        """Run what is due; returns the seconds until the next slot, or until it is time to look again."""
        loop = asyncio.get_running_loop()
        records, now = await self._look(lane)
        heard = loop.time()
        due = await self._each({s: self._catch_up(lane, s, record, now) for s, record in records.items()})
        left = (min(due.values(), default=now + int(LOOK * 1000)) - now) / 1000 - (loop.time() - heard)
        return min(LOOK, max(0.001, left))

    async def _look(self, lane: Lane) -> tuple[dict[Schedule, int], int]:
        """The last slot on record of each schedule, and the server's time."""
        found, clock = await lane.many((("HMGET", self._keys.cron, *self.names), ("TIME",)))
        for reply in (found, clock):
            if isinstance(reply, redis.exceptions.ResponseError):
                raise translate(reply) from None
        now = int(clock[0]) * 1000 + int(clock[1]) // 1000
        records: dict[Schedule, int] = {}
        unseen: dict[Schedule, Coroutine[Any, Any, int]] = {}
        for schedule, text in zip(self._schedules, found, strict=True):
            record = int(text) if text is not None and text.isdigit() and len(text) < 16 else None
            if record is None or (record > now and record > now + schedule.interval(now)):
                unseen[schedule] = self._see(lane, schedule, now)
            else:
                records[schedule] = record
        return records | await self._each(unseen), now

    async def _see(self, lane: Lane, schedule: Schedule, now: int) -> int:
        """Begin from now: for the first time, or because the record was written while the clock ran ahead."""
        verdict, last = await self._ask(lane, schedule, 0, schedule.interval(now))
        if verdict > 0:
            log.info("schedule %s: its slots count from now on", schedule.task.name)
        return last

    async def _catch_up(self, lane: Lane, schedule: Schedule, record: int, now: int) -> int:
        """Run the slots since `record` as the schedule wants it; returns the next slot."""
        if schedule.next(record) > now:
            return schedule.next(record)
        task = schedule.task
        slots = schedule.latest(record, now, CAP + 1 if task.catch_up == "all" else 1)
        if len(slots) > CAP:
            log.warning("schedule %s: more than %d slots were missed; those before are passed over", task.name, CAP)
            slots = slots[1:]
        run = task.catch_up != "skip" or now - slots[-1] < TOLERANCE
        interval = schedule.interval(now)
        for slot in slots:
            verdict, record = await self._ask(lane, schedule, slot, interval, run=run)
            if verdict > 0 and not run:
                log.info("schedule %s: passed over what it missed, up to %s", task.name, _instant(slot).isoformat())
        return schedule.next(record)

    async def _ask(
        self, lane: Lane, schedule: Schedule, slot: int, interval: int, *, run: bool = False
    ) -> tuple[int, int]:
        """cron.lua's verdict on a slot, and the last slot on record after it."""
        job = self._client._ready(_job(schedule.task))
        give_ids((job,))
        blob = pack((schedule.task.name, slot, interval, job.task if run else "", job.payload, job.id))
        keys = [self._keys.cron, self._keys.stream(job.queue)]
        verdict, last, _ = await lane.script(load("cron"), keys, blob)
        if verdict > 0 and run:
            log.debug(
                "schedule %s: due", schedule.task.name, extra={"id": job.id, "task": job.task, "queue": job.queue}
            )
        return verdict, int(last)

    async def _each(self, work: dict[Schedule, Coroutine[Any, Any, int]]) -> dict[Schedule, int]:
        """All of these at once. What is refused is said once and left out; it doesn't stop the others."""
        answers = await asyncio.gather(*work.values(), return_exceptions=True)
        done: dict[Schedule, int] = {}
        for schedule, answer in zip(work, answers, strict=True):
            if isinstance(answer, int):
                done[schedule], schedule.trouble = answer, ""
            elif _is_away(answer) or not isinstance(answer, Exception):
                raise answer
            elif schedule.trouble != str(answer):
                schedule.trouble = str(answer)
                told = isinstance(answer, BackstageError)
                log.error("schedule %s can't run: %s", schedule.task.name, answer, exc_info=None if told else answer)
        return done

    @property
    def _keys(self) -> Keys:
        return Keys(self._client.config.prefixes[0])


class Scheduler(Service):
    """Runs schedules without running jobs: `Scheduler(schedules=[CronTask("@daily", "report")]).run()`.

    Any number may run, with workers that have the same schedules or without. `tasks` are registries whose tasks' own
    queues are known here; the other options are a Client's, what isn't given comes from the environment.
    """

    def __init__(
        self, *, schedules: Sequence[CronTask], tasks: Iterable[TaskRegistry] = (), **options: Unpack[RedisOptions]
    ) -> None:
        self._client = Client(tasks=tasks, **options)
        self._timetable = Timetable(self._client, schedules)

    @property
    def config(self) -> RedisConfig:
        """What holds: arguments, environment, defaults, in that order."""
        return self._client.config

    def configure(self, **options: Unpack[RedisOptions]) -> None:
        """Change settings before the first connection (the command line's `--url`, tests). ConfigError after it."""
        self._client.configure(**options)

    async def _serve(self, life: Life) -> None:
        working = asyncio.create_task(self._work(life), name="backstage timetable")
        asked = asyncio.create_task(life.stopping.wait(), name="backstage stop")
        await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        asked.cancel()
        ended, _ = await asyncio.gather(working, asked, return_exceptions=True)
        await self._client.aclose()
        if isinstance(ended, Exception):
            raise ended

    async def _work(self, life: Life) -> None:
        await self._timetable.begin()
        log.info("scheduler runs %s", ", ".join(self._timetable.names))
        life.ready.set()
        await self._timetable.run()


def _checked(schedules: Sequence[CronTask]) -> list[CronTask]:
    if isinstance(schedules, (str, CronTask)) or not all(isinstance(each, CronTask) for each in schedules):
        raise ConfigError(f"schedules={quoted(schedules)}: must be a list of CronTask")
    names: set[str] = set()
    for task in schedules:
        if task.name in names:
            raise ConfigError(f"schedules: two are named {task.name!r}; give one of them another name=")
        names.add(task.name)
    if not names:
        raise ConfigError("schedules: there is none; give at least one CronTask")
    return list(schedules)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, RedisUnavailable) and not isinstance(error, RedisRefused)


def _job(task: CronTask) -> Job:
    return Job(task.task, task.args, queue=task.queue)


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)

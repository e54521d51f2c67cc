"""What a process of a run writes down beyond its handlers' own words. It wraps methods of the library."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

import msgspec

from backstage import CronTask, Stream, wire
from backstage.errors import BackstageError, MalformedJob
from backstage.job import Delivery
from backstage.outcome import Outcome
from backstage.scheduler import Timetable
from backstage.signals import Signals
from backstage.stream import Settled
from backstage.worker.executor import Executor
from backstage.worker.lease import Lease
from backstage.worker.worker import Hall
from chaos.history import Log, running

STALL = 0.15
"""Seconds for which a process may not get the processor before it says so: a lease can't be kept without."""


_asked: ContextVar[float] = ContextVar("asked")
"""When the call was begun whose answer is being looked at."""

_count = itertools.count(1)
_numbers: dict[int, int] = {}
"""The number of each delivery in hand: two of one entry may be in one worker's hands, and both be the first."""


def watch_worker(log: Log) -> None:
    watch_signals(log)
    watch_deliveries(log)
    watch_leases(log)
    threading.Thread(target=_pulse, args=(log,), daemon=True).start()


def watch_deliveries(log: Log) -> None:
    hold, execute, settle = Stream._hold, Executor.execute, Stream.settle

    def held(self: Stream, deliveries: list[Delivery]) -> list[Delivery]:
        for delivery in deliveries:
            _numbers[id(delivery)] = next(_count)
            log("take", since=_asked.get(), **_facts(delivery))
        return hold(self, deliveries)

    async def executed(self: Executor, delivery: Delivery) -> Outcome:
        running.set(_numbers[id(delivery)])
        return await execute(self, delivery)

    async def settled(
        self: Stream, done: Mapping[str, Sequence[Delivery]], others: Sequence[tuple[Delivery, Outcome]]
    ) -> Settled:
        for delivery in [delivery for each in done.values() for delivery in each]:
            log("sent", note="done", **_short(delivery))
        for delivery, outcome in others:
            log("sent", note=type(outcome).__name__.lower(), **_short(delivery))
        begun = time.monotonic()
        result = await settle(self, done, others)
        sure = True if not result.lost else None  # of plain ones only how many were lost is known
        for delivery in [delivery for each in done.values() for delivery in each]:
            log("settled", note="done", verdict=sure, since=begun, **_short(delivery))
        for (delivery, outcome), verdict in zip(others, result.verdicts, strict=True):
            told = None if isinstance(verdict, BackstageError) else verdict
            log("settled", note=type(outcome).__name__.lower(), verdict=told, since=begun, **_short(delivery))
        return result

    Stream.take, Stream._look = _asking(Stream.take), _asking(Stream._look)  # type: ignore[method-assign,assignment]
    Stream._hold, Executor.execute = held, executed  # type: ignore[method-assign]
    Stream.settle = settled  # type: ignore[method-assign]


def watch_leases(log: Log) -> None:
    lose, renew, late = Hall._lose, Lease._renew, Lease._give_up_late

    def lost(self: Hall, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            log("lost", **_short(delivery))
        lose(self, deliveries)

    def renewed(self: Lease) -> None:
        held = sum(map(len, list(self._held.values())))
        begun = time.monotonic()
        try:
            renew(self)
        except BaseException as exc:
            log("unrenewed", number=held, since=begun, note=type(exc).__name__)
            raise
        log("renewed", number=held, since=begun)

    def gave_up(self: Lease) -> None:
        if time.monotonic() - self._renewed >= self._lease:  # said before the loop hears of it
            log("gaveup", since=self._renewed)
        late(self)

    Lease._renew, Lease._give_up_late = renewed, gave_up  # type: ignore[method-assign]
    Hall._lose = lost  # type: ignore[method-assign]


def _asking(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def around(self: Stream, *args: Any, **options: Any) -> Any:
        _asked.set(time.monotonic())
        return await method(self, *args, **options)

    return around


def watch_signals(log: Log) -> None:
    """Before and after these, SIGTERM ends a process as it ends any."""
    enter, leave = Signals.__enter__, Signals.__exit__

    def entered(self: Signals) -> Signals:
        enter(self)
        log("hears")
        return self

    def left(self: Signals, *exc: object) -> None:
        log("deaf")
        leave(self, *exc)

    Signals.__enter__, Signals.__exit__ = entered, left  # type: ignore[method-assign]


def watch_scheduler(log: Log) -> None:
    ask = Timetable._ask
    watch_signals(log)

    async def asked(self: Timetable, lane: Any, schedule: Any, slot: int, interval: int, *, run: bool = False) -> Any:
        verdict, last = await ask(self, lane, schedule, slot, interval, run=run)
        if run:
            log("slot", note=schedule.task.name, number=slot, verdict=verdict > 0)
        return verdict, last

    Timetable._ask = asked  # type: ignore[method-assign]


def _facts(delivery: Delivery) -> dict[str, Any]:
    facts = _short(delivery) | {"deliveries": delivery.times}
    try:
        job = wire.decode(delivery)
        facts |= {"id": job.id, "attempt": job.attempt + 1}
        payload = msgspec.json.decode(wire.payload_of(wire.fields_of(delivery.fields)))
        facts["token"] = payload["token"] if isinstance(payload, dict) and "token" in payload else job.id
    except (MalformedJob, msgspec.DecodeError):
        pass
    return facts


def _short(delivery: Delivery) -> dict[str, Any]:
    return {"entry": f"{delivery.queue}:{delivery.entry_id.decode()}", "number": _numbers[id(delivery)]}


def _pulse(log: Log) -> None:
    """A machine that is too busy looks like a frozen worker: so it is told when it was."""
    before, used = time.monotonic(), time.process_time()
    while True:
        time.sleep(0.05)
        now, own = time.monotonic(), time.process_time()
        if now - before > STALL:
            log("stall", since=before, number=round((own - used) * 1000))
        before, used = now, own


class Ticking(CronTask):
    """A schedule with a slot in each second, for minutes are too long here. Only the calendar differs."""

    __slots__ = ()

    def _runs(self, after: datetime, what: str) -> Iterator[datetime]:
        at = after.replace(microsecond=0)
        while True:
            at += timedelta(seconds=1)
            yield at

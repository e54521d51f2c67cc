"""What a process of a run writes down beyond its handlers' own words. It wraps methods of the library."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from backstage import CronTask, Stream, wire
from backstage.errors import BackstageError, MalformedJob
from backstage.job import Delivery
from backstage.outcome import Outcome
from backstage.scheduler import Timetable
from backstage.stream import Settled
from backstage.worker.lease import Lease
from backstage.worker.worker import Hall
from chaos.history import Log

STALL = 0.3
"""Seconds for which a process may not get the processor before it says so: a lease can't be kept without."""


def watch_worker(log: Log) -> None:
    hold, settle, lose, renew = Stream._hold, Stream.settle, Hall._lose, Lease._renew

    def held(self: Stream, deliveries: list[Delivery]) -> list[Delivery]:
        for delivery in deliveries:
            log("take", **_facts(delivery))
        return hold(self, deliveries)

    async def settled(
        self: Stream, done: Mapping[str, Sequence[Delivery]], others: Sequence[tuple[Delivery, Outcome]]
    ) -> Settled:
        begun = time.monotonic()
        result = await settle(self, done, others)
        span = time.monotonic() - begun
        sure = True if not result.lost else None  # of plain ones only how many were lost is known
        for delivery in [delivery for each in done.values() for delivery in each]:
            log("settled", note="done", verdict=sure, span=span, **_short(delivery))
        for (delivery, outcome), verdict in zip(others, result.verdicts, strict=True):
            told = None if isinstance(verdict, BackstageError) else verdict
            log("settled", note=type(outcome).__name__.lower(), verdict=told, span=span, **_short(delivery))
        return result

    def lost(self: Hall, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            log("lost", **_short(delivery))
        lose(self, deliveries)

    def renewed(self: Lease) -> None:
        held = sum(map(len, list(self._held.values())))
        renew(self)
        log("renewed", number=held)

    Lease._renew = renewed  # type: ignore[method-assign]
    Stream._hold = held  # type: ignore[method-assign]
    Stream.settle = settled  # type: ignore[method-assign]
    Hall._lose = lost  # type: ignore[method-assign]
    threading.Thread(target=_pulse, args=(log,), daemon=True).start()


def watch_scheduler(log: Log) -> None:
    ask = Timetable._ask

    async def asked(self: Timetable, lane: Any, schedule: Any, slot: int, interval: int, *, run: bool = False) -> Any:
        verdict, last = await ask(self, lane, schedule, slot, interval, run=run)
        if run:
            log("slot", note=schedule.task.name, number=slot, verdict=verdict > 0)
        return verdict, last

    Timetable._ask = asked  # type: ignore[method-assign]


def _facts(delivery: Delivery) -> dict[str, Any]:
    facts = _short(delivery)
    try:
        job = wire.decode(delivery)
        facts |= {"id": job.id, "attempt": job.attempt + 1}
        payload = msgspec.json.decode(wire.payload_of(wire.fields_of(delivery.fields)))
        facts["token"] = payload["token"] if isinstance(payload, dict) and "token" in payload else job.id
    except (MalformedJob, msgspec.DecodeError):
        pass
    return facts


def _short(delivery: Delivery) -> dict[str, Any]:
    return {"entry": f"{delivery.queue}:{delivery.entry_id.decode()}", "deliveries": delivery.times}


def _pulse(log: Log) -> None:
    """A machine that is too busy looks like a frozen worker: so it is told when it was."""
    before = time.monotonic()
    while True:
        time.sleep(0.05)
        now = time.monotonic()
        if now - before > STALL:
            log("stall", span=now - before)
        before = now


class Ticking(CronTask):
    """A schedule with a slot in each second, for minutes are too long here. Only the calendar differs."""

    __slots__ = ()

    def _runs(self, after: datetime, what: str) -> Iterator[datetime]:
        at = after.replace(microsecond=0)
        while True:
            at += timedelta(seconds=1)
            yield at

"""Schedules: a cron expression and a time zone → the instants at which a task runs. The arithmetic is cronsim's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from backstage.errors import ConfigError, InvalidCronSchedule, quoted
from backstage.job import Named
from backstage.queue import Queue, check_name, queue_name

_FIELDS = (
    ("minute", "0-59", 60),
    ("hour", "0-23", 24),
    ("day of month", "1-31, or L for the last", 31),
    ("month", "1-12 or JAN-DEC", 12),
    ("day of week", "0-7 (0 and 7 are Sunday) or SUN-SAT", 8),
)
"""Name, what is allowed, and how many values there are."""

_SHORTCUTS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_START = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, init=False)
class CronTask:
    """A task that runs by the clock, in a time zone, with `args` as its payload.

    `schedule` has the five fields of crontab(5): minute, hour, day of month, month, day of week; with `*`, lists,
    ranges, steps, and names (`MON`, `jan`). Where both day fields are restricted, a day that matches either is enough.
    `L` is the last day of a month, `FRI#2` its second Friday, `5L` its last one. `@hourly`, `@daily`, `@midnight`,
    `@weekly`, `@monthly`, `@yearly` and `@annually` mean what they mean to cron.

    Clock changes follow Debian's cron(8). A schedule whose minute or hour field starts with `*` goes by elapsed time.
    Any other runs once: right after the gap if its time is skipped, at the first of the two if its time comes twice.

    `name` identifies the schedule among all (default: the task's name). `catch_up` says which of the slots that passed
    while no scheduler was running are run late: none, the last one, or all.

    Raises InvalidCronSchedule, for an expression that never matches too.
    """

    schedule: str
    task: str
    queue: str | None
    args: object = field(hash=False, repr=False)
    timezone: str
    name: str
    catch_up: Literal["skip", "last", "all"]
    expression: str = field(repr=False, compare=False)
    """Five fields, whatever `schedule` was."""
    zone: tzinfo = field(repr=False, compare=False)

    def __init__(
        self,
        schedule: str,
        task: str | Named,
        queue: str | Queue | None = None,
        args: object = None,
        *,
        timezone: str = "UTC",
        name: str | None = None,
        catch_up: Literal["skip", "last", "all"] = "last",
    ) -> None:
        if isinstance(task, str):
            task_name, own_queue = check_name(task, "task"), None
        elif isinstance(getattr(task, "name", None), str):
            task_name, own_queue = task.name, task.queue
        else:
            raise ConfigError(f"task={quoted(task)}: must be a task's name or a Task (what `@worker.on(name)` returns)")
        if catch_up not in ("skip", "last", "all"):
            raise ConfigError(f"catch_up={quoted(catch_up)}: must be 'skip', 'last' or 'all'")
        values: dict[str, Any] = {
            "schedule": schedule,
            "task": task_name,
            "queue": own_queue if queue is None else queue_name(queue),
            "args": args,
            "timezone": timezone,
            "name": task_name if name is None else check_name(name, "schedule"),
            "catch_up": catch_up,
            "expression": _expression(schedule),
            "zone": _zone(timezone),
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def next_run(self, after: datetime) -> datetime:
        """The first instant later than `after` (aware), in the schedule's time zone."""
        return next(self._runs(after, "after"))

    def slots(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """All instants later than `after`, up to and including `until` (both aware), in order."""
        end = _utc(until, "until")
        for run in self._runs(after, "after"):
            if run.astimezone(UTC) > end:
                return
            yield run

    def _runs(self, after: datetime, what: str) -> Iterator[datetime]:
        with contextlib.suppress(OverflowError):  # the calendar ends with the year 9999
            yield from self._found(after, what)
        raise ConfigError(f"schedule {self.schedule!r}: no run in the 50 years after {after}")

    def _found(self, after: datetime, what: str) -> Iterator[datetime]:
        last = _utc(after, what)
        sim = CronSim(self.expression, last.astimezone(self.zone))
        while (run := next(sim, None)) is not None:
            instant = run.astimezone(UTC)
            here = instant.astimezone(self.zone)
            if here.replace(tzinfo=None) != run.replace(tzinfo=None):
                # A midnight that a gap skipped: cronsim steps to a new day by its date. Look again from the gap's end.
                sim = CronSim(self.expression, (instant - timedelta(seconds=1)).astimezone(self.zone))
            elif instant > last:  # in the second half of an overlap cronsim can name a time of the first, which is over
                last = instant
                yield here


def _utc(instant: datetime, what: str) -> datetime:
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ConfigError(f"{what}={quoted(instant)}: must be a datetime with a time zone, like datetime.now(UTC)")
    return instant.astimezone(UTC)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, TypeError, AttributeError, OSError):
        raise InvalidCronSchedule(
            f"time zone {quoted(name)} is not known here: give an IANA name like 'Europe/Berlin'; where the system has "
            "no time zone database, install the package tzdata"
        ) from None


def _expression(schedule: str) -> str:
    """The five fields, checked."""
    if not isinstance(schedule, str) or len(schedule) > 1000:
        raise InvalidCronSchedule(f"schedule {quoted(schedule)}: must be a cron expression, like '30 4 * * MON'")
    text, shown = schedule.strip(), quoted(schedule)
    if text.startswith("@"):
        if text.lower() not in _SHORTCUTS:
            raise InvalidCronSchedule(f"schedule {shown}: of these names only {', '.join(_SHORTCUTS)} are known")
        return _SHORTCUTS[text.lower()]
    parts = text.split()
    if len(parts) != len(_FIELDS):
        names = ", ".join(name for name, _, _ in _FIELDS)
        hint = " (seconds are not supported)" if len(parts) == 6 else ""
        raise InvalidCronSchedule(f"schedule {shown}: has {len(parts)} fields, must have five: {names}{hint}")
    for place, part in enumerate(parts):
        _check_field(schedule, place, part)
    try:
        next(CronSim(text, _START))
    except (CronSimError, StopIteration):
        raise InvalidCronSchedule(f"schedule {shown}: never matches, no such month has that day") from None
    return text


def _check_field(schedule: str, place: int, part: str) -> None:
    """One field by itself, so that the error can say which one it is."""
    name, allowed, count = _FIELDS[place]
    alone = ["*"] * len(_FIELDS)
    alone[place] = part
    wrong = ""
    try:
        CronSim(" ".join(alone), _START)
        if any(int(step) > count for step in (term.partition("/")[2] for term in part.split(",")) if step):
            wrong = f"; a step above {count} would only ever match the first value"
    except CronSimError:
        wrong = "; a range goes from the lower to the higher" if "-" in part else ""
        wrong = wrong or " "
    if wrong:
        raise InvalidCronSchedule(
            f"schedule {quoted(schedule)}: {name} {quoted(part)} can't be read: allowed are {allowed}, *, lists like "
            f"1,3, ranges like 1-5 and steps like */2{wrong.rstrip()}"
        )

"""Jobs as values: what callers ask for (`Job`, `Next`, `Backoff`, `Dedupe`), what a worker holds (`Delivery`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, Required, TypeAlias, TypedDict, Unpack

import msgspec

from backstage.durations import LONGEST, Duration, to_ms
from backstage.errors import ConfigError, quoted
from backstage.ids import new_ids
from backstage.queue import Priority, Queue, check_name, queue_name


class Named(Protocol):
    """What a Task shows to those who only route to it: its name, and its own queue where it has one."""

    @property
    def name(self) -> str: ...
    @property
    def queue(self) -> str | None: ...


class DedupeDict(TypedDict, total=False):
    key: Required[str]
    ttl: Duration


class BackoffDict(TypedDict, total=False):
    type: Required[Literal["fixed", "exponential"]]
    delay: Duration
    maxDelay: Duration | None
    max_delay: Duration | None
    jitter: float


@dataclass(frozen=True, slots=True)
class Dedupe:
    """While `key` is taken, an enqueue with it adds nothing. It is free again after `ttl` milliseconds."""

    key: str
    ttl: Duration = 3_600_000

    def __post_init__(self) -> None:
        try:
            size = len(self.key.encode())
        except (AttributeError, UnicodeEncodeError):  # no text, or half of a character
            size = 0
        if not 1 <= size <= 512:
            raise ConfigError(f"dedupe key {quoted(self.key)}: must be text of 1 to 512 bytes of UTF-8")
        object.__setattr__(self, "ttl", to_ms(self.ttl, "dedupe ttl", minimum=1))

    @property
    def ttl_ms(self) -> int:
        return to_ms(self.ttl, "dedupe ttl")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a retry, in milliseconds: `fixed`, or `exponential` (delay × 2^(n-1) before the n-th).

    `max_delay` caps it; `jitter` (0 to 1) then moves it at random by up to that share, so that jobs that failed
    together do not come back together.
    """

    type: Literal["fixed", "exponential"] = "exponential"
    delay: Duration = 1000
    max_delay: Duration | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.type not in ("fixed", "exponential"):
            raise ConfigError(f"backoff type {quoted(self.type)}: must be 'fixed' or 'exponential'")
        object.__setattr__(self, "delay", to_ms(self.delay, "backoff delay"))
        if self.max_delay is not None:
            object.__setattr__(self, "max_delay", to_ms(self.max_delay, "backoff max_delay"))
        if not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ConfigError(f"backoff jitter={quoted(self.jitter)}: must be a number from 0 to 1")

    @property
    def delay_ms(self) -> int:
        return to_ms(self.delay, "backoff delay")

    @property
    def max_delay_ms(self) -> int | None:
        return None if self.max_delay is None else to_ms(self.max_delay, "backoff max_delay")


AnyDedupe: TypeAlias = Dedupe | DedupeDict | str
AnyBackoff: TypeAlias = Backoff | BackoffDict
AnyPriority: TypeAlias = Priority | Literal["urgent", "default", "low"]
Durability: TypeAlias = Literal["memory", "fsync", "replica"]


class JobOptions(TypedDict, total=False):
    """Every option of an enqueue but `dedupe`, which changes what the call returns."""

    priority: AnyPriority | None
    queue: str | Queue | None
    delay: Duration | None
    attempts: int | None
    backoff: AnyBackoff | None
    timeout: Duration | None


class EnqueueOptions(JobOptions, total=False):
    dedupe: AnyDedupe | None


class CallOptions(JobOptions, total=False):
    durability: Durability | None  # of the call: no property of the job


class ScheduleOptions(TypedDict, total=False):
    """The options of `schedule`: its `when` stands where `delay` would."""

    priority: AnyPriority | None
    queue: str | Queue | None
    attempts: int | None
    backoff: AnyBackoff | None
    timeout: Duration | None
    dedupe: AnyDedupe | None
    durability: Durability | None


def to_dedupe(value: AnyDedupe) -> Dedupe:
    """A Dedupe, given as itself, as the mapping, or as a bare key."""
    if isinstance(value, Dedupe):
        return value
    if isinstance(value, str):
        return Dedupe(value)
    if isinstance(value, Mapping):
        return Dedupe(**{"key": "", **_known(value, "dedupe", {"key": "key", "ttl": "ttl"})})
    raise ConfigError(f"dedupe={quoted(value)}: must be a Dedupe, a mapping with `key` and `ttl`, or a key")


def to_backoff(value: AnyBackoff) -> Backoff:
    """A Backoff, given as itself or as the mapping in snake_case or camelCase."""
    if isinstance(value, Backoff):
        return value
    if isinstance(value, Mapping):
        names = {name: name for name in ("type", "delay", "max_delay", "jitter")} | {"maxDelay": "max_delay"}
        return Backoff(**_known(value, "backoff", names))
    raise ConfigError(f"backoff={quoted(value)}: must be a Backoff or a mapping with `type`, `delay`, `maxDelay`")


def to_attempts(value: int, name: str = "attempts") -> int:
    """Total runs of a job: a whole number, 1 or more."""
    if type(value) is not int or not 1 <= value <= LONGEST:
        raise ConfigError(f"{name}={quoted(value)}: must be a whole number, 1 or more (all runs, also the first one)")
    return value


def to_queue(queue: str | Queue | None, priority: str | None) -> str | None:
    """Where a job goes, by its options: the queue beats the priority; None where neither is given."""
    if queue is not None:
        return queue_name(queue)
    if priority is None:
        return None
    try:
        return Priority(priority).value
    except ValueError:
        it = quoted(priority)
        raise ConfigError(
            f"priority={it}: must be 'urgent', 'default' or 'low'; for another queue give queue={it}"
        ) from None


def _known(given: Mapping[str, Any], what: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The mapping under the names that the dataclass has; `None` means not given."""
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ConfigError(f"{what}: unknown key {quoted(unknown[0])}; known are {', '.join(names)}")
    return {names[key]: value for key, value in given.items() if value is not None}


class Options(msgspec.Struct, frozen=True):
    """What a caller asked for beyond the queue, as it goes on the wire. Ms."""

    delay: int | None = None
    dedupe: Dedupe | None = None
    attempts: int | None = None
    backoff: Backoff | None = None
    timeout: int | None = None


class History(msgspec.Struct, frozen=True):
    """What a job that was read knows of its past."""

    enqueued_at: datetime | None = None
    attempt: int = 0
    crashes: int = 0
    since: int | None = None


NO_OPTIONS, _NEW = Options(), History()


def name_of(task: str | Named) -> str:
    """A task's name, given as itself or as the Task."""
    if isinstance(task, str):
        return check_name(task, "task")
    if isinstance(getattr(task, "name", None), str):
        return task.name
    shown = type(task).__name__  # itself could be a payload
    raise ConfigError(f"task: must be a task's name or a Task (what `@worker.on` returns), not of type {shown}")


def queue_and_options(
    *,
    priority: str | None = None,
    queue: str | Queue | None = None,
    delay: Duration | None = None,
    dedupe: AnyDedupe | None = None,
    attempts: int | None = None,
    backoff: AnyBackoff | None = None,
    timeout: Duration | None = None,
    **unknown: object,
) -> tuple[str | None, Options | None]:
    """What the options of an enqueue ask for: the queue, and the rest; None for what they don't ask for."""
    if unknown:
        known = ", ".join(EnqueueOptions.__annotations__)
        raise TypeError(f"unknown option {quoted(next(iter(unknown)))}; known are {known}")
    options = Options(
        None if delay is None else to_ms(delay, "delay"),
        None if dedupe is None else to_dedupe(dedupe),
        None if attempts is None else to_attempts(attempts),
        None if backoff is None else to_backoff(backoff),
        None if timeout is None else to_ms(timeout, "timeout", minimum=1),
    )
    return to_queue(queue, priority), None if options == NO_OPTIONS else options


class Request:
    """What `Job` and `Next` share: a task's name, a payload, and the options."""

    __slots__ = ("_options", "_payload", "_queue", "_task", "route")

    route: str | None
    """The task's own queue, where the task was given as a Task: for jobs that name no queue themselves."""

    def __init__(self, task: str | Named, payload: object = None, **options: Unpack[EnqueueOptions]) -> None:
        self._task, self._payload = name_of(task), payload
        self.route = None if isinstance(task, str) else task.queue
        self._queue, self._options = queue_and_options(**options) if options else (None, None)

    @property
    def task(self) -> str:
        """The task's name."""
        return self._task

    @property
    def payload(self) -> Any:
        """The payload as given, or as read from the wire."""
        return self._payload

    @property
    def queue(self) -> str | None:
        """The queue that was asked for, or that the job came from; None: to be routed by its task."""
        return self._queue

    @property
    def plain(self) -> bool:
        """No option beyond the queue: such a job travels in the fast part of a batch."""
        return self._options is None

    @property
    def delay(self) -> int | None:
        """Milliseconds."""
        return (self._options or NO_OPTIONS).delay

    @property
    def dedupe(self) -> Dedupe | None:
        return (self._options or NO_OPTIONS).dedupe

    @property
    def attempts(self) -> int | None:
        """Total runs allowed, where the job itself says so."""
        return (self._options or NO_OPTIONS).attempts

    @property
    def backoff(self) -> Backoff | None:
        return (self._options or NO_OPTIONS).backoff

    @property
    def timeout(self) -> int | None:
        """Soft limit in milliseconds, where the job itself says so."""
        return (self._options or NO_OPTIONS).timeout


class Job(Request):
    """A request to run a task once. Its id sorts by time (UUIDv7), is fixed when first asked for, and never changes.

    One that a worker reads (`run.job`) also knows when it was enqueued and how often it failed so far.
    """

    __slots__ = ("_history", "_id")

    def __init__(
        self, task: str | Named, payload: object = None, *, id: str | None = None, **options: Unpack[EnqueueOptions]
    ) -> None:
        # As Request does, without a call more: jobs are made by the hundred thousand.
        self._task, self._payload = name_of(task), payload
        self.route = None if isinstance(task, str) else task.queue
        self._queue, self._options = queue_and_options(**options) if options else (None, None)
        self._id = None if id is None else check_name(id, "job")
        self._history = _NEW

    @classmethod
    def read(
        cls, id: str | None, task: str, queue: str | None, payload: object, options: Options | None, history: History
    ) -> Job:
        """A job from its parts, unchecked: one that stands on the wire, or a copy."""
        job = cls.__new__(cls)
        job._id, job._task, job._queue, job._payload = id, task, queue, payload
        job._options, job._history, job.route = options, history, None
        return job

    @property
    def id(self) -> str:
        if self._id is None:
            (self._id,) = new_ids(1)
        return self._id

    @property
    def enqueued_at(self) -> datetime | None:
        """Of a job that was read."""
        return self._history.enqueued_at

    @property
    def attempt(self) -> int:
        """Failed runs so far."""
        return self._history.attempt

    @property
    def crashes(self) -> int:
        """Deliveries so far, before this one's entry, that ended without a finish."""
        return self._history.crashes

    @property
    def since(self) -> int | None:
        """Server time, in ms, at which no handler was first found for it."""
        return self._history.since

    def __getstate__(self) -> object:
        """For copies and pickles: they are the same job, so its id is fixed first."""
        fix_ids([self])
        return super().__getstate__()

    def __repr__(self) -> str:
        return f"Job({self._task!r}, id={self.id!r}, queue={self._queue!r})"


class Next(Request):
    """What comes next, returned by a handler: enqueued together with the finish, so exactly when the parent is done."""

    __slots__ = ()

    def job(self) -> Job:
        """A job of its own for one finish: a Next may be returned many times."""
        job = Job.read(None, self._task, self._queue, self._payload, self._options, _NEW)
        job.route = self.route
        return job

    def __repr__(self) -> str:
        return f"Next({self._task!r}, queue={self._queue!r})"


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A stream entry in our hands. Two deliveries of one entry are two values: it is compared by identity."""

    queue: str
    entry_id: bytes
    fields: list[bytes]
    """Flat: name, value, name, value, … exactly as they stand in the stream."""
    times: int = 1
    """The delivery count: above 1, earlier holders of this entry never finished it."""
    server: str = ""
    """The run id of the server that handed it out: entry ids can repeat after a restart that lost writes."""

    def __repr__(self) -> str:
        return f"Delivery({self.queue!r}, {self.entry_id!r}, times={self.times})"  # without the payload


def fix_ids(jobs: Iterable[Job]) -> None:
    """Give ids to those that have none yet: all at once costs a fraction of one by one."""
    missing = [job for job in jobs if job._id is None]
    for job, id in zip(missing, new_ids(len(missing)), strict=True):
        job._id = id

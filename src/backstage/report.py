"""What an Inspector answers: queues, workers and dead jobs as frozen values. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backstage import wire
from backstage.errors import MalformedJob
from backstage.job import Delivery


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """One queue at one moment."""

    name: str
    waiting: int = 0
    """Jobs that a worker could take now."""
    running: int = 0
    """Deliveries that are not finished yet; those of a worker that died count until their lease ends."""
    scheduled: int = 0
    """Jobs that wait for their time or for a retry."""
    dead: int = 0
    """Entries of the dead letter."""
    oldest: timedelta | None = None
    """For how long the first of those that wait has been in the queue (server time); None where none waits."""
    estimated: tuple[str, ...] = ()
    """Which of the counts are estimates."""
    problem: str = ""
    """Why the queue could not be counted, and so can't be served either: a key of another type."""


@dataclass(frozen=True, slots=True)
class QueuesInfo:
    """Queues at one moment: iterate over them, or take one by its name (`info["default"]`)."""

    queues: tuple[QueueInfo, ...]
    scheduled: int
    """All members of both sets, counted exactly; also those that go to queues which were not asked for."""
    complete: bool = True
    """False where the server has so many keys that the search for queues gave up."""

    @property
    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.queues)

    @property
    def running(self) -> int:
        return sum(queue.running for queue in self.queues)

    @property
    def dead(self) -> int:
        return sum(queue.dead for queue in self.queues)

    @property
    def oldest(self) -> timedelta | None:
        return max((queue.oldest for queue in self.queues if queue.oldest is not None), default=None)

    def __iter__(self) -> Iterator[QueueInfo]:
        return iter(self.queues)

    def __len__(self) -> int:
        return len(self.queues)

    def __getitem__(self, name: str) -> QueueInfo:
        for queue in self.queues:
            if queue.name == name:
                return queue
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker in the registry. One that was killed stays there for up to a minute: `seen` tells."""

    id: str
    consumer: str
    """Its name in the consumer groups."""
    seen: datetime
    """Its last beat, by the server's clock."""
    facts: Mapping[str, str]
    """What it tells about itself."""


@dataclass(frozen=True, slots=True)
class DeadJob:
    """An entry of a dead letter. Texts are for people: bytes that are no UTF-8 are replaced in them."""

    entry_id: str
    """What `retry` and `purge` call it."""
    id: str
    """The job's id; '' where the entry never was a job."""
    task: str
    queue: str
    payload: str = field(repr=False)
    """JSON text, as it stands there; of what never was a job, the raw text."""
    reason: str
    error: str
    traceback: str = field(repr=False)
    deliveries: int
    """How often its last entry was handed out."""
    attempt: int
    """The run at which it was given up: 1 the first."""
    dead_at: datetime | None
    fields: Mapping[bytes, bytes] = field(repr=False)
    """Everything, byte by byte."""


def dead_job(queue: str, entry_id: str, flat: list[bytes]) -> DeadJob:
    """An entry of that queue's dead letter, read leniently: whoever wrote it, it can be shown."""
    fields = wire.fields_of(flat)

    def text(name: bytes) -> str:
        return _text(fields.get(name, b""))

    def number(name: bytes) -> int | None:
        digits = text(name)
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 16 else None

    original = text(b"originalId") or entry_id
    entry = Delivery(queue, original.encode(), flat, number(b"deliveryCount") or 1)
    try:
        job = wire.decode(entry)
        id, task, attempt = job.id, job.task, job.attempt + 1
    except MalformedJob:
        id, task, attempt = text(b"jobId"), text(b"taskName"), 1
    died = number(b"deadLetteredAt") or int(entry_id.split("-")[0])
    dead_at = instant(died)
    payload = text(b"payload") if b"payload" in fields else text(b"raw")
    return DeadJob(
        entry_id, id, task, queue, payload, text(b"reason"), text(b"error"), text(b"traceback"),
        entry.times, attempt, dead_at, fields,
    )  # fmt: skip


def instant(ms: float) -> datetime | None:
    """A server's time; None where it is none, for anybody may have written it."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

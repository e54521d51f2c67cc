"""Queues: their names, their order, and what they set for every job in them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from backstage.durations import LONGEST, Duration, to_ms
from backstage.errors import ConfigError, InvalidName, quoted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)

RESERVED = frozenset(
    {
        "broadcast", "calls", "cancelled", "control", "cron", "dedupe",
        "events", "result", "retries", "scheduled", "stats", "workers",
    }
)  # fmt: skip
"""Names under the prefix that are keys of their own (docs/protocol.md), so that no queue can have them."""


def check_name(name: str, what: str) -> str:
    """The name itself, or InvalidName: `what` (queue, task, group, …) says in the message whose name it is."""
    if not isinstance(name, str) or not _fits(name):
        raise InvalidName(
            f"{what} name {quoted(name)}: must be 1 to 128 of the characters A-Z a-z 0-9 _ . -, the first a letter or "
            "digit"
        )
    return name


@functools.lru_cache(maxsize=1024)
def _fits(name: str) -> bool:
    """Remembered, for the same few names are asked for with every job."""
    return NAME.fullmatch(name) is not None


class Priority(StrEnum):
    """The three queues that are always there; a plain string of the same value works too."""

    URGENT = "urgent"
    DEFAULT = "default"
    LOW = "low"


def limits(whose: str, soft: Duration | None, hard: Duration | None) -> tuple[int | None, int | None]:
    """Both limits in milliseconds, checked: above zero, and the hard one above the soft one."""
    soft_ms = None if soft is None else to_ms(soft, f"{whose}: soft_timeout", minimum=1)
    hard_ms = None if hard is None else to_ms(hard, f"{whose}: hard_timeout", minimum=1)
    if soft_ms is not None and hard_ms is not None and hard_ms <= soft_ms:
        raise ConfigError(f"{whose}: hard_timeout ({hard_ms} ms) must be longer than soft_timeout ({soft_ms} ms)")
    return soft_ms, hard_ms


@dataclass(frozen=True, slots=True, init=False)
class Queue:
    """A named stream of jobs. A worker starts no job of a queue while one of a lower `priority` number is ready.

    Queues without a priority come last. Limits are in milliseconds; they hold for every job in the queue that has no
    limit of its own, or of its task. `max_retries` is attempts - 1.
    """

    name: str
    priority: int | None
    soft_timeout: int | None
    hard_timeout: int | None
    max_retries: int | None

    def __init__(
        self,
        name: str,
        *,
        priority: int | None = None,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        max_retries: int | None = None,
    ) -> None:
        if check_name(name, "queue") in RESERVED:
            raise InvalidName(f"queue name {name!r}: Backstage keeps a key of its own under that name")
        if priority is not None and (type(priority) is not int or abs(priority) > LONGEST):
            raise ConfigError(
                f"queue {name!r}: priority={quoted(priority)} must be a whole number, the lowest served first"
            )
        if max_retries is not None and (type(max_retries) is not int or not 0 <= max_retries < LONGEST):
            raise ConfigError(f"queue {name!r}: max_retries={quoted(max_retries)} must be a whole number, 0 or more")
        soft, hard = limits(f"queue {name!r}", soft_timeout, hard_timeout)
        values: dict[str, Any] = {
            "name": name, "priority": priority, "soft_timeout": soft, "hard_timeout": hard, "max_retries": max_retries,
        }  # fmt: skip
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @property
    def attempts(self) -> int | None:
        """Total runs of a job in this queue, where the queue says so."""
        return None if self.max_retries is None else self.max_retries + 1


DEFAULT_QUEUES: tuple[Queue, Queue, Queue] = (
    Queue(Priority.URGENT.value, priority=1),
    Queue(Priority.DEFAULT.value, priority=2),
    Queue(Priority.LOW.value, priority=3),
)


def queue_name(queue: str | Queue) -> str:
    """The name of a queue given either way, checked."""
    return queue.name if isinstance(queue, Queue) else Queue(queue).name


def ordered(queues: Iterable[Queue | str]) -> tuple[Queue, ...]:
    """Best priority first, those without one last, otherwise as given; twice the same name is a ConfigError."""
    if isinstance(queues, (str, bytes)) or not isinstance(queues, Iterable):  # a lone name would be read by its letters
        raise ConfigError(f"queues={quoted(queues)}: must be a list of queues or their names")
    found: dict[str, Queue] = {}
    for queue in queues:
        queue = queue if isinstance(queue, Queue) else _by_name(queue)
        if queue.name in found and found[queue.name] != queue:
            raise ConfigError(f"queue {queue.name!r} is given twice, with different settings")
        found[queue.name] = queue
    return tuple(sorted(found.values(), key=lambda q: (q.priority is None, q.priority or 0)))


def _by_name(name: str) -> Queue:
    """A plain name means the default queue of that name where there is one, with its priority."""
    return next((queue for queue in DEFAULT_QUEUES if queue.name == name), None) or Queue(name)

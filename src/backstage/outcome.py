"""What became of a delivery: a closed union, and the two signals by which a handler chooses one itself."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from backstage.durations import Duration, to_ms
from backstage.job import Job

Reason: TypeAlias = Literal[
    "error", "timeout", "invalid-payload", "malformed", "unknown-task", "crash-loop", "discarded"
]
"""Why a job is in the dead letter (docs/protocol.md)."""


class Done(msgspec.Struct, frozen=True):
    """The run succeeded; `next` are the jobs that it asked for, enqueued in the same step."""

    next: tuple[Job, ...] = ()


class Again(msgspec.Struct, frozen=True):
    """The job is to run again in `delay` milliseconds."""

    delay: int
    error: str = ""
    counts: bool = True
    """Whether it uses up one of the job's attempts: a failed run does, a task that nobody here knows does not."""
    since: int | None = None
    """Server time, in ms, at which the job was first found to have no handler."""


class Dead(msgspec.Struct, frozen=True):
    """The job is given up: it goes to its queue's dead letter."""

    reason: Reason
    error: str = ""
    traceback: str = ""


class Released(msgspec.Struct, frozen=True):
    """The worker gives the job back, to be taken by anybody at once. It uses up no attempt, counts as no delivery."""


Outcome: TypeAlias = Done | Again | Dead | Released

DONE = Done()
RELEASED = Released()


class Retry(Exception):
    """Raised by a handler: a failed run, to be tried again after `delay` (milliseconds or timedelta) or the backoff."""

    def __init__(self, reason: str = "", *, delay: Duration | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = None if delay is None else to_ms(delay, "delay")


class Discard(Exception):
    """Raised by a handler: no retry would help; the job goes to the dead letter at once, as `discarded`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

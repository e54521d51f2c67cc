"""The retry rule, pure: how often a job may still run, and how long it waits before it does."""

from __future__ import annotations

from collections.abc import Callable

from backstage.durations import LONGEST
from backstage.job import Backoff

DEFAULT_ATTEMPTS = 5
DEFAULT_BACKOFF = Backoff("exponential", delay=1_000, max_delay=60_000, jitter=0.2)


def wait(backoff: Backoff, retry: int, random: Callable[[], float]) -> int:
    """Milliseconds before the `retry`-th retry (1 the first time). `random` gives a number from 0 to 1."""
    ms = backoff.delay_ms
    if backoff.type == "exponential":
        ms = ms << (retry - 1) if retry <= 64 else LONGEST
    ms = min(ms, LONGEST if backoff.max_delay_ms is None else backoff.max_delay_ms)
    if backoff.jitter:
        ms = round(ms * (1 + backoff.jitter * (2 * random() - 1)))
    return min(ms, LONGEST)


def decide(backoff: Backoff, attempts: int, failed: int, random: Callable[[], float]) -> int | None:
    """After the `failed`-th failed run of `attempts` allowed: milliseconds until the next one, or None to give up."""
    return None if failed >= attempts else wait(backoff, failed, random)

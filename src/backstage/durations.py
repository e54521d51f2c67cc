"""Durations: a `timedelta` or an `int` of milliseconds in, whole milliseconds out. No other place knows the rule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from backstage.errors import ConfigError, quoted

Duration: TypeAlias = int | timedelta

LONGEST = 2**53 - 1
"""Milliseconds: the largest whole number that every SDK's JSON carries exactly."""


class _WrongType(ConfigError, TypeError):
    """A duration of a type that is none: caught as ConfigError and as TypeError."""


def to_ms(value: Duration, name: str, *, minimum: int = 0) -> int:
    """Whole milliseconds; a timedelta is rounded up to the next one. `name` is the option that the error names.

    Raises ConfigError (a TypeError too) for anything but an int or timedelta, and below `minimum` milliseconds.
    """
    if type(value) is int:
        ms = value
    elif isinstance(value, timedelta):
        whole, rest = divmod(value, timedelta(milliseconds=1))
        ms = whole + bool(rest)
    elif isinstance(value, float):
        raise _WrongType(
            f"{name}={value!r}: a duration is a timedelta or an int of milliseconds, never a float; "
            f"for {value!r} seconds write timedelta(seconds={value!r})"
        )
    else:
        raise _WrongType(f"{name}={quoted(value)}: a duration is a timedelta or an int of milliseconds")
    if not minimum <= ms <= LONGEST:
        bound = f"at least {minimum} ms" if ms < minimum else f"at most {LONGEST} ms"
        raise ConfigError(f"{name}={quoted(value)}: must be {bound}")
    return ms


def until(when: Duration | datetime, name: str) -> int:
    """Milliseconds from now until `when`: a duration, or an aware datetime (0 where it has passed)."""
    if not isinstance(when, datetime):
        return to_ms(when, name)
    if when.tzinfo is None:
        raise ConfigError(f"{name}={when!r}: a datetime must carry a time zone, like datetime.now(UTC)")
    return to_ms(max(when - datetime.now(UTC), timedelta(0)), name)

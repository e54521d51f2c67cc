from datetime import UTC, datetime, timedelta, timezone

import pytest

from backstage.durations import LONGEST, to_ms, until
from backstage.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (30, 30),
        (LONGEST, LONGEST),
        (timedelta(seconds=30), 30_000),
        (timedelta(microseconds=1), 1),
        (timedelta(milliseconds=1, microseconds=1), 2),
        (timedelta(days=1), 86_400_000),
        (timedelta(0), 0),
    ],
)
def test_whole_milliseconds_rounded_up(value: int | timedelta, ms: int) -> None:
    """An int is milliseconds, a timedelta is rounded up to the next whole one, so that nothing comes early."""
    assert to_ms(value, "delay") == ms


@pytest.mark.parametrize("value", [1.5, 1.0, float("nan"), True, False, "30", None, [1]])
def test_other_types_are_refused(value: object) -> None:
    """Anything else is an error that names the option, caught as ConfigError, ValueError and TypeError."""
    with pytest.raises(ConfigError, match=r"^delay=") as caught:
        to_ms(value, "delay")  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


def test_a_float_gets_told_how_to_write_seconds() -> None:
    """Whoever writes 1.5 means seconds: the error gives the timedelta."""
    with pytest.raises(ConfigError, match=r"timedelta\(seconds=1\.5\)"):
        to_ms(1.5, "timeout")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "minimum", "says"),
    [
        (-1, 0, "at least 0 ms"),
        (0, 1, "at least 1 ms"),
        (timedelta(seconds=-1), 0, "at least 0 ms"),
        (LONGEST + 1, 0, "at most"),
    ],
)
def test_bounds(value: int | timedelta, minimum: int, says: str) -> None:
    """Out of bounds is an error that tells the bound."""
    with pytest.raises(ConfigError, match=says):
        to_ms(value, "timeout", minimum=minimum)


def test_until_takes_a_duration_as_it_is() -> None:
    """A duration counts from now."""
    assert until(timedelta(seconds=2), "when") == 2_000


def test_until_an_instant() -> None:
    """An aware datetime of any zone counts by its instant; one that has passed means at once."""
    soon = datetime.now(timezone(timedelta(hours=5))) + timedelta(minutes=10)
    assert 590_000 < until(soon, "when") <= 600_000
    assert until(datetime(1999, 1, 1, tzinfo=UTC), "when") == 0


def test_until_refuses_a_naive_datetime() -> None:
    """Without a zone nobody knows which instant is meant."""
    with pytest.raises(ConfigError, match=r"when=.*time zone"):
        until(datetime(2026, 1, 1), "when")

import asyncio

import pytest

from backstage import errors
from backstage.errors import (
    BackstageError,
    ConfigError,
    DuplicateTask,
    InvalidCronSchedule,
    InvalidName,
    NotSerializable,
    PayloadTooLarge,
    RedisUnavailable,
    SoftTimeout,
    TaskError,
    TaskNotBound,
)
from backstage.outcome import Discard, Retry

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)]


def test_one_tree() -> None:
    """`except BackstageError` catches all that Backstage raises."""
    assert len(ALL) > 10
    assert all(issubclass(error, BackstageError) for error in ALL)


@pytest.mark.parametrize("error", ALL)
def test_the_picture_is_true(error: type[BackstageError]) -> None:
    """The drawing at the top of the file has every error."""
    assert error.__name__ in str(errors.__doc__)


def test_builtin_kinds() -> None:
    """Bad arguments are ValueError or TypeError too, a lost Redis a ConnectionError."""
    bad = [ConfigError, TaskError, DuplicateTask, TaskNotBound, InvalidName, InvalidCronSchedule, PayloadTooLarge]
    assert all(issubclass(error, ValueError) for error in bad)
    assert issubclass(NotSerializable, TypeError)
    assert issubclass(RedisUnavailable, ConnectionError)
    assert issubclass(SoftTimeout, asyncio.CancelledError)


def test_signals_are_no_errors_of_ours() -> None:
    """A handler raises them to say what becomes of its job: `except BackstageError` in it must not swallow them."""
    assert not issubclass(Retry, BackstageError)
    assert not issubclass(Discard, BackstageError)
    assert (Retry("later", delay=5).delay, Retry().reason, Discard("broken").reason) == (5, "", "broken")


async def test_soft_timeout_can_be_caught_as_an_error() -> None:
    """It cancels like a cancellation, and is still an Exception that `except Exception` in a handler sees."""
    with pytest.raises(Exception, match="limit"):
        raise SoftTimeout("limit")

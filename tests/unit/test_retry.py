import pytest

from backstage.durations import LONGEST
from backstage.job import Backoff
from backstage.retry import DEFAULT_ATTEMPTS, DEFAULT_BACKOFF, decide, wait


def middle() -> float:
    """Random's middle: jitter moves nothing."""
    return 0.5


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff("fixed", 1_000), [1_000, 1_000, 1_000]),
        (Backoff("fixed", 1_000, 300), [300, 300, 300]),
        (Backoff("exponential", 1_000), [1_000, 2_000, 4_000]),
        (Backoff("exponential", 1_000, 3_000), [1_000, 2_000, 3_000]),
        (Backoff("exponential", 0), [0, 0, 0]),
        (Backoff("exponential", 1_000, 0), [0, 0, 0]),
    ],
)
def test_wait(backoff: Backoff, waits: list[int]) -> None:
    """delay, or delay × 2^(n-1) before the n-th retry, capped by max_delay."""
    assert [wait(backoff, retry, middle) for retry in (1, 2, 3)] == waits


@pytest.mark.parametrize("retry", [54, 64, 65, 10_000, 10**9])
def test_wait_stays_a_number_that_the_wire_carries(retry: int) -> None:
    """Without a cap it grows to the largest number that every SDK reads, not beyond."""
    assert wait(Backoff("exponential", 1_000), retry, middle) == LONGEST


@pytest.mark.parametrize(("random", "ms"), [(0.0, 800), (0.5, 1_000), (1.0, 1_200)])
def test_jitter(random: float, ms: int) -> None:
    """jitter=0.2 moves a wait by up to a fifth, both ways."""
    assert wait(Backoff("fixed", 1_000, jitter=0.2), 1, lambda: random) == ms


def test_full_jitter_never_goes_below_zero() -> None:
    """The widest jitter is from 0 to twice the wait."""
    full = Backoff("fixed", 1_000, jitter=1)
    assert (wait(full, 1, lambda: 0.0), wait(full, 1, lambda: 1.0)) == (0, 2_000)


@pytest.mark.parametrize(
    ("attempts", "failed", "again"), [(1, 1, False), (3, 1, True), (3, 2, True), (3, 3, False), (3, 7, False)]
)
def test_attempts_are_all_runs(attempts: int, failed: int, again: bool) -> None:
    """attempts=3 fails at most three times."""
    assert (decide(Backoff("fixed", 10), attempts, failed, middle) is not None) == again


def test_defaults() -> None:
    """Five runs, from one second to a minute, with jitter."""
    assert DEFAULT_ATTEMPTS == 5
    assert [wait(DEFAULT_BACKOFF, n, middle) for n in (1, 2, 6, 7, 8)] == [1_000, 2_000, 32_000, 60_000, 60_000]
    assert DEFAULT_BACKOFF.jitter > 0

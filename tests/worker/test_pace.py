"""Pace: how many deliveries to have ready beyond the free slots, measured."""

from __future__ import annotations

import pytest

from backstage.worker import slots
from backstage.worker.slots import Pace


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(slots, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def work(pace: Pace, clock: Clock, jobs: int, seconds: float, at_once: int = 1) -> None:
    """So many jobs of so many seconds each, as many at once as are told."""
    for n in range(jobs):
        if n % at_once == 0:
            clock.now += seconds
        pace.ran(1, seconds)


def test_nothing_is_known_yet(clock: Clock) -> None:
    """At first nothing is fetched ahead."""
    assert Pace(100).ahead == 0


def test_short_jobs(clock: Clock) -> None:
    """Of jobs that take microseconds, about as many as run in 4 ms."""
    pace = Pace(100)
    for _ in range(50):
        clock.now += 0.001
        pace.ran(100, 0.001)
    assert 300 <= pace.ahead <= 400


def test_long_jobs(clock: Clock) -> None:
    """Of jobs that take longer than a moment, none: an idle worker could run them."""
    pace = Pace(100)
    work(pace, clock, 1_000, 0.5, at_once=100)
    assert pace.ahead == 0


def test_a_bound(clock: Clock) -> None:
    """Never more than a thousand."""
    pace = Pace(10_000)
    for _ in range(100):
        clock.now += 0.0001
        pace.ran(1_000, 0.0001)
    assert pace.ahead == Pace.MOST == 1_000


def test_from_short_to_long(clock: Clock) -> None:
    """When jobs get longer it falls."""
    pace = Pace(10)
    for _ in range(50):
        clock.now += 0.001
        pace.ran(100, 0.001)
    assert pace.ahead > 0
    work(pace, clock, 640, 0.05, at_once=10)
    assert pace.ahead == 0


def test_stalled(clock: Clock) -> None:
    """Slots full of long jobs end it at once, and it takes a while to grow again."""
    pace = Pace(10)
    for _ in range(50):
        clock.now += 0.001
        pace.ran(100, 0.001)
    pace.stalled()
    assert pace.ahead == 0
    work(pace, clock, 1, 0.00001)
    assert pace.ahead == 0


def test_many_slots_of_medium_jobs(clock: Clock) -> None:
    """Also bounded by what the slots could take up: jobs of 10 ms in a hundred slots are not hoarded."""
    pace = Pace(100)
    work(pace, clock, 10_000, 0.01, at_once=100)
    assert pace.ahead <= 40

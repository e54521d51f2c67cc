"""Signals: heard by all who are entered; the handlers of before come back."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from backstage.signals import STOPS, Signals


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """Whatever a test does, the handlers are those of before; they fail the test where they should not be called."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    after = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_heard(number: signal.Signals) -> None:
    """Each of the three, as often as it is sent."""
    heard: list[int] = []
    with Signals(lambda: heard.append(1)):
        send(number)
        send(number)
    assert heard == [1, 1]


def test_each_of_several() -> None:
    """All who are entered hear it."""
    heard: list[str] = []
    with Signals(lambda: heard.append("a")), Signals(lambda: heard.append("b")), Signals(lambda: heard.append("c")):
        send()
    assert sorted(heard) == ["a", "b", "c"]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_leaving_in_any_order(order: tuple[int, ...]) -> None:
    """Who has left hears nothing; those who stay still do, and what was before comes back with the last."""
    before = signal.getsignal(signal.SIGTERM)
    heard: list[int] = []
    entered = [Signals(lambda n=n: heard.append(n)).__enter__() for n in range(3)]
    left = {0, 1, 2}
    for n in order:
        heard.clear()
        send()
        assert set(heard) == left
        entered[n].__exit__()
        left.discard(n)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_before() -> None:
    """Somebody else's comes back, and is not called meanwhile: the worker's stop is what is asked for."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        heard: list[int] = []
        with Signals(lambda: heard.append(1)):
            send()
        assert (heard, called) == ([1], [])
        send()
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_later() -> None:
    """One that somebody set meanwhile is left in place."""
    with Signals(lambda: None) as entered:
        mine = lambda number, frame: None  # noqa: E731
        before = entered._before[signal.SIGTERM]
        signal.signal(signal.SIGTERM, mine)
    assert signal.getsignal(signal.SIGTERM) is mine
    signal.signal(signal.SIGTERM, before)


def test_not_in_the_main_thread() -> None:
    """Elsewhere it does nothing: Python lets only the main thread set handlers."""
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def enter() -> None:
        with Signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(5)
    assert seen == [before]

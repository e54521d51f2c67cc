"""The rules of the chaos checker, on histories written by hand: what explains a repetition, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from chaos import checker
from chaos.figures import Enough, Figure, Longest, Most, together
from chaos.history import Event
from chaos.snapshot import Snapshot
from chaos.story import Goals

GOALS = Goals(lease=1.5, interval=0.4, grace=0.8, concurrency=10)
AGAIN = "jobs run again where only Redis restarted or connections dropped"
TWICE = "runs of a job on two live, connected workers at once"
ENDED = "jobs handed out again after their end was written"
BEHIND = "such runs that had ended before the last answered finish was sent"

WALL = 1_000_000
"""Ms since the epoch at second 0 of these histories."""


def at(seconds: float, process: str, what: str, **facts: Any) -> Event:
    return Event(at=seconds, wall=WALL + int(seconds * 1000), what=what, process=process, **facts)


def taken(seconds: float, worker: str, times: int = 1, queue: str = "low", span: float = 0.01) -> list[Event]:
    """One job, handed out and started."""
    facts: dict[str, Any] = {"token": "t", "id": "j", "attempt": 1, "deliveries": times}
    return [
        at(seconds, worker, "take", entry=f"{queue}:{WALL + 500}-0", span=span, **facts),
        at(seconds + 0.01, worker, "start", note="plain", **facts),
    ]


def ended(seconds: float, worker: str, times: int = 1) -> Event:
    return at(seconds, worker, "end", token="t", id="j", attempt=1, deliveries=times, note="returned")


def renewed(worker: str, *times: float) -> list[Event]:
    return [at(seconds, worker, "renewed", number=1, span=0.01) for seconds in times]


def over(begin: float, end: float, note: str, target: str = "", **facts: Any) -> Event:
    return at(end, "nemesis", "over", note=note, target=target, span=end - begin, **facts)


def figures(*events: Event | list[Event]) -> dict[str, Figure]:
    flat = [event for each in events for event in (each if isinstance(each, list) else [each])]
    found = checker.figures(sorted(flat, key=lambda event: event.at), Snapshot(), GOALS)
    return {figure.name: figure for figure in found}


def test_without_a_fault_nothing_may_run_again() -> None:
    """A lease that was lost for no reason is told, as a second run and as two at once."""
    found = figures(taken(1, "a"), taken(4, "b", 2), ended(5, "b", 2), ended(6, "a"))
    assert (len(found[AGAIN].found), len(found[TWICE].found)) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "explains"),
    [
        (over(1.1, 3.0, "freeze", "a"), True),
        (over(1.1, 3.0, "freeze", "b"), False),  # another one was struck
        (over(1.1, 1.2, "cut", "a"), False),  # it took no lease
        (over(1.2, 1.5, "restart"), False),
        (over(1.2, 1.3, "group-destroy", group="low"), True),
        (over(1.2, 1.3, "group-destroy", group="urgent"), False),
        (over(0.1, 0.2, "group-destroy", group="low"), False),  # before the job was there
        (at(3.0, "a", "stall", span=1.9, number=10), True),
        (at(3.0, "a", "stall", span=1.9, number=1800), False),  # it used the processor itself
    ],
)
def test_a_fault_explains_only_what_it_can_have_done(fault: Event, explains: bool) -> None:
    """The same second run, with one fault beside it."""
    found = figures(taken(1, "a"), fault, taken(4, "b", 2), ended(5, "b", 2), ended(6, "a"))
    assert found[AGAIN].ok is explains
    assert found[TWICE].ok is explains


@pytest.mark.parametrize(("frozen", "explains"), [("a", True), ("b", False)])
def test_who_was_handed_it_first_must_have_lost_it(frozen: str, explains: bool) -> None:
    """A worker that was frozen before it could start a job starts it after the next holder did."""
    old, started = taken(1, "a")
    started.at, started.wall = 4.2, WALL + 4200
    found = figures([old, started], over(1.1, 4.1, "freeze", frozen), taken(4, "b", 2), ended(5, "b", 2), ended(6, "a"))
    assert (found[AGAIN].ok, found[TWICE].ok) == (explains, explains)


def test_who_renews_in_time_loses_nothing_to_a_fault() -> None:
    """A worker was struck, but its renewals came through."""
    fault = over(1.1, 3.0, "pause")
    beats = renewed("a", 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert figures(taken(1, "a"), fault, taken(4, "b", 2), ended(5, "b", 2), ended(6, "a"), beats)[TWICE].found


def test_a_job_whose_end_was_written_is_over() -> None:
    """Not even the death of the worker that ended it explains another delivery."""
    done: dict[str, Any] = {"entry": f"low:{WALL + 500}-0", "deliveries": 1, "note": "done"}
    events = [at(1.2, "a", "sent", **done), at(1.3, "a", "settled", verdict=True, span=0.1, **done)]
    killed = at(1.4, "nemesis", "strike", note="kill-worker", target="a")
    assert figures(taken(1, "a"), ended(1.1, "a"), events, killed, taken(4, "b", 2))[ENDED].found


def test_a_killed_worker_may_owe_only_its_last_finishes() -> None:
    """A run that ended before a finish was sent and answered has to be in it."""
    other: dict[str, Any] = {"entry": f"low:{WALL + 600}-0", "deliveries": 1, "note": "done"}
    call = [at(2.0, "a", "sent", **other), at(2.1, "a", "settled", verdict=True, span=0.1, **other)]
    killed = at(2.2, "nemesis", "strike", note="kill-worker", target="a")
    again = taken(4, "b", 2)
    assert figures(taken(1, "a"), ended(1.1, "a"), call, killed, again)[BEHIND].found
    assert figures(taken(1, "a"), ended(2.05, "a"), call, killed, again)[BEHIND].ok


def test_what_strikes_later_hides_no_wait() -> None:
    """Nothing was taken for five seconds; that something else broke after three is no excuse."""
    probe = [
        at(2.0, "nemesis", "enq?", token="p.1", note="plain"),
        at(2.0, "nemesis", "probe", token="p.1", note="crash"),
    ]
    late = at(7.0, "a", "take", token="p.1", id="p.1", entry=f"low:{WALL + 2000}-0", deliveries=1, attempt=1)
    figure = figures(probe, over(4.5, 5.5, "restart"), late)["consuming again after crash"]
    assert (figure.ok, figure.measured) == (False, "5.000 s (n = 1)")


def test_figures_add_up() -> None:
    """Those of several runs, by name; what was not measured in any is missed."""
    one: list[Figure] = [
        Figure("a", ["x"], 2),
        Longest("b", [], None, [], 1.0),
        Most("c", [], None, [(3, "w")], 4),
        Enough("d", [], None, 5, 8),
    ]
    other: list[Figure] = [
        Figure("a", [], 3),
        Longest("b", [], None, [(2.0, "y")], 1.0),
        Most("c", [], None, [(5, "v")], 4),
        Enough("d", [], None, 4, 8),
    ]
    a, b, c, d = together([one, other])
    assert [f.measured for f in (a, b, c, d)] == ["1 of 5", "2.000 s (n = 1)", "5 (n = 2)", "9"]
    assert [f.ok for f in (a, b, c, d)] == [False, False, False, True]
    assert [f.details for f in (b, c)] == [["2.000 s: y"], ["5: v"]]
    assert not one[1].ok

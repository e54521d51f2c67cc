"""The rules of the chaos checker, on histories written by hand: what explains a repetition, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from chaos import checker
from chaos.figures import Enough, Figure, Longest, Most, together
from chaos.history import Event
from chaos.snapshot import Snapshot
from chaos.story import Goals
from chaos.variants import VARIANTS

GOALS = Goals(lease=1.5, interval=0.4, grace=0.8, concurrency=10)
LOST = checker.LOST
AGAIN = "jobs run again where only Redis restarted or connections dropped"
TWICE = "runs of a job on two live, connected workers at once"
ENDED = "jobs handed out again after their end was written"
BEHIND = "such runs that had ended before the last answered finish was sent, or a second ago"

WALL = 1_000_000
"""Ms since the epoch at second 0 of these histories."""


def at(seconds: float, process: str, what: str, **facts: Any) -> Event:
    return Event(at=seconds, wall=WALL + int(seconds * 1000), what=what, process=process, **facts)


def taken(seconds: float, worker: str, times: int = 1, queue: str = "low", span: float = 0.01) -> list[Event]:
    """One job, handed out and started."""
    facts: dict[str, Any] = {"id": "j", "attempt": 1, "deliveries": times}
    return [
        at(seconds, worker, "take", token="t", number=1, entry=f"{queue}:{WALL + 500}-0", span=span, **facts),
        at(seconds + 0.01, worker, "start", token="t", number=1, note="plain"),
    ]


def ended(seconds: float, worker: str) -> Event:
    return at(seconds, worker, "end", token="t", number=1, note="returned")


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
    found = figures(taken(1, "a"), taken(4, "b", 2), ended(5, "b"), ended(6, "a"))
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
    found = figures(taken(1, "a"), fault, taken(4, "b", 2), ended(5, "b"), ended(6, "a"))
    assert found[AGAIN].ok is explains
    assert found[TWICE].ok is explains


@pytest.mark.parametrize(("frozen", "explains"), [("a", True), ("b", False)])
def test_who_was_handed_it_first_must_have_lost_it(frozen: str, explains: bool) -> None:
    """A worker that was frozen before it could start a job starts it after the next holder did."""
    old, started = taken(1, "a")
    started.at, started.wall = 4.2, WALL + 4200
    found = figures([old, started], over(1.1, 4.1, "freeze", frozen), taken(4, "b", 2), ended(5, "b"), ended(6, "a"))
    assert (found[AGAIN].ok, found[TWICE].ok) == (explains, explains)


def test_two_deliveries_of_one_entry_to_one_worker_are_two() -> None:
    """Its group was destroyed, and the same worker had it again while its first run went on; both count as first."""
    destroyed, second = over(1.1, 1.2, "group-destroy", group="low"), taken(2, "a")
    for event in second:
        event.number = 2
    found = figures(taken(1, "a"), destroyed, second, ended(3, "a"), at(3.5, "a", "end", token="t", number=2))
    assert (found[AGAIN].ok, found[TWICE].ok) == (True, True)
    found = figures(taken(1, "a"), second, ended(3, "a"), at(3.5, "a", "end", token="t", number=2))
    assert (found[AGAIN].ok, found[TWICE].ok) == (False, False)


def test_who_renews_in_time_loses_nothing_to_a_fault() -> None:
    """A worker was struck, but its renewals came through."""
    fault = over(1.1, 3.0, "pause")
    beats = renewed("a", 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert figures(taken(1, "a"), fault, taken(4, "b", 2), ended(5, "b"), ended(6, "a"), beats)[TWICE].found


def test_a_job_whose_end_was_written_is_over() -> None:
    """Not even the death of the worker that ended it explains another delivery."""
    done: dict[str, Any] = {"entry": f"low:{WALL + 500}-0", "number": 1, "note": "done"}
    events = [at(1.2, "a", "sent", **done), at(1.3, "a", "settled", verdict=True, span=0.1, **done)]
    killed = at(1.4, "nemesis", "strike", note="kill-worker", target="a")
    assert figures(taken(1, "a"), ended(1.1, "a"), events, killed, taken(4, "b", 2))[ENDED].found


def test_a_killed_worker_may_owe_only_its_last_finishes() -> None:
    """A run that ended before a finish was sent and answered has to be in it."""
    other: dict[str, Any] = {"entry": f"low:{WALL + 600}-0", "number": 2, "note": "done"}
    call = [
        at(0.9, "a", "take", id="k", deliveries=1, span=0.01, **other),
        at(2.0, "a", "sent", **other),
        at(2.1, "a", "settled", verdict=True, span=0.1, **other),
    ]
    killed = at(2.2, "nemesis", "strike", note="kill-worker", target="a")
    again = taken(4, "b", 2)
    assert figures(taken(1, "a"), ended(1.1, "a"), call, killed, again)[BEHIND].found
    assert figures(taken(1, "a"), ended(2.05, "a"), call, killed, again)[BEHIND].ok
    assert figures(taken(1, "a"), ended(1.1, "a"), killed, again)[BEHIND].found
    assert figures(taken(1, "a"), ended(1.1, "a"), over(1.0, 1.9, "pause"), killed, again)[BEHIND].ok
    blocking = [
        at(1.0, "a", "take", number=3, id="l", entry=f"low:{WALL + 700}-0", span=0.01),
        at(1.05, "a", "start", number=3, note="blocking"),
    ]
    assert figures(taken(1, "a"), ended(1.1, "a"), blocking, killed, again)[BEHIND].ok


def tried(worker: str, *times: float) -> list[Event]:
    return [at(seconds, worker, "unrenewed", number=1, span=0.01, note="ConnectionError") for seconds in times]


dead = [over(0.8, 0.85, "cut", "a"), *tried("a", 1.4, 1.41, 1.9, 2.4)]


@pytest.mark.parametrize(
    ("events", "explains"),
    [
        ([*tried("a", 1.4, 1.9), over(1.2, 2.1, "restart")], True),
        ([*tried("a", 1.4, 1.9), over(1.3, 1.4, "cut", "a"), over(1.8, 1.9, "client-kill")], True),
        ([*tried("a", 1.4, 1.9), over(1.2, 2.1, "delay", "a")], False),  # a slow network fails no renewal
        ([*tried("a", 1.4, 1.9)], False),  # it failed for no reason
        ([*tried("a", 1.4, 1.9), over(1.2, 1.25, "cut", "a")], False),  # the second one did
        ([*tried("a", 1.4), over(1.2, 2.1, "restart")], False),  # it did not try again
        ([*tried("a", 1.9), over(1.2, 2.1, "restart")], False),  # nor in time
        ([*tried("a", 1.9), over(1.1, 1.7, "freeze", "a"), over(1.8, 2.1, "restart")], True),
        # A connection that died while nothing was held is found dead by the first try.
        ([*renewed("a", 0.7), *dead, over(1.405, 2.6, "restart")], True),
        ([*renewed("a", 0.98), *dead, over(1.405, 2.6, "restart")], False),  # it was sound after that
    ],
)
def test_who_lost_a_lease_must_have_tried_to_keep_it(events: list[Event], explains: bool) -> None:
    """Each third of a lease it stood still or tried, and a fault hit each try that failed."""
    found = figures(taken(1, "a"), events, taken(4, "b", 2), ended(5, "b"), ended(6, "a"))
    assert (found[AGAIN].ok, found[TWICE].ok) == (explains, explains)


@pytest.mark.parametrize(("given_back", "explains"), [(1.5, False), (2.05, True)])
def test_a_run_is_handed_over_when_its_grace_is_over(given_back: float, explains: bool) -> None:
    """And not before: 0.8 s after the signal."""
    told = at(1.2, "nemesis", "strike", note="term-worker", target="a")
    sent = at(given_back, "a", "sent", entry=f"low:{WALL + 500}-0", number=1, note="released")
    again = taken(2.1, "b")
    assert figures(taken(1, "a"), told, ended(1.4, "a"), sent, again, ended(3, "b"))[AGAIN].ok is explains


def test_an_attempt_that_comes_again_after_the_next_one_is_a_repetition() -> None:
    """The first attempt, after the second had begun."""
    first, second = taken(1, "a"), taken(2, "b")
    for event in second:
        event.attempt, event.entry = 2, event.entry and f"low:{WALL + 1900}-0"
    assert figures(first, ended(1.5, "a"), second, taken(3, "c"), ended(4, "c"))[AGAIN].found


def test_what_was_handed_out_must_end_whoever_asked_for_it() -> None:
    """Nobody was told that it was added; but it was there, and it is gone."""
    asked = [at(0.4, "p", "enq?", token="t", note="plain"), at(0.6, "p", "enq~", token="t")]
    assert figures(asked, taken(1, "a"))[LOST].found
    assert not figures(asked, taken(1, "a"), ended(2, "a"))[LOST].found


def test_a_success_that_may_not_have_counted_ends_a_job_all_the_same() -> None:
    """Only a group that was destroyed explains another delivery after it."""
    done: dict[str, Any] = {"entry": f"low:{WALL + 500}-0", "number": 1, "note": "done"}
    events = [taken(1, "a"), ended(1.1, "a"), at(1.2, "a", "sent", **done), at(1.3, "a", "settled", span=0.1, **done)]
    killed = at(1.4, "nemesis", "strike", note="kill-worker", target="a")
    destroyed = over(1.45, 1.5, "group-destroy", group="low")
    assert figures(*events, killed, taken(4, "b", 2))[ENDED].found
    assert not figures(*events, killed, destroyed, taken(4, "b"))[ENDED].found


def test_each_retry_that_was_written_brings_one_attempt() -> None:
    """One that was written twice is counted twice."""
    second = taken(2, "b")
    for event in second:
        event.attempt = 2
    events = [
        *taken(1, "a"),
        at(1.1, "a", "end", token="t", number=1, note="ValueError"),
        *second,
    ]
    for again, well in ((1, True), (2, False)):
        found = checker.figures(events, Snapshot(stats={"again": again}), GOALS)
        told = next(figure for figure in found if figure.name == "finishes whose effects happened twice")
        assert (not told.found) is well


@pytest.mark.parametrize(("second_at", "well"), [(1.25, False), (1.35, True)])
def test_a_retry_before_its_time_is_told(second_at: float, well: bool) -> None:
    """Its pause begins when the attempt before it has ended."""
    asked = [at(0.4, "p", "enq?", token="t", note="flaky", number=200), at(0.6, "p", "enq!", token="t", id="j")]
    second = taken(second_at, "b")
    for event in second:
        event.attempt = 2
    found = figures(asked, taken(1, "a"), ended(1.1, "a"), second)["delayed jobs and retries that ran early"]
    assert (not found.found) is well


def delayed(came: float, start: float, token: str = "d") -> list[Event]:
    """A job that is due at second 20, and comes into its queue and starts at these."""
    number = ord(token)
    return [
        at(18.99, "p", "enq?", token=token, note="delayed", delay=1000),
        at(19.0, "p", "enq!", token=token, id=token),
        at(
            start,
            "a-1",
            "take",
            token=token,
            id=token,
            number=number,
            entry=f"low:{WALL + int(came * 1000)}-0",
            span=0.01,
        ),
        at(start, "a-1", "start", token=token, number=number, note="plain"),
    ]


def test_a_delayed_job_is_late_whether_its_queue_or_its_worker_is() -> None:
    """One that was promoted late, behind another of the same fate; and one that nobody took, though nobody waited."""
    queued = "delayed jobs in their queue late, at p99 (outside outages)"
    started = "delayed jobs started late, at p99 (and where no backlog was)"
    before = taken(10, "a-1")
    found = figures(before, delayed(21.99, 22.0, "c"), delayed(22.0, 22.01))
    assert (found[queued].measured, found[started].measured) == ("2.000 s (n = 2)", "2.010 s (n = 2)")
    found = figures(before, delayed(20.0, 23.0))
    assert (found[queued].measured, found[started].measured) == ("0.000 s (n = 1)", "3.000 s (n = 1)")
    backlog = [at(21.0, "a-1", "take", token="x", id="x", entry=f"low:{WALL + 19500}-0", attempt=1, deliveries=1)]
    found = figures(before, backlog, delayed(20.0, 23.0))
    assert (found[queued].sampled, found[started].sampled) == (True, False)


def test_after_an_outage_each_worker_has_to_take_jobs_again() -> None:
    """One that took some before and takes none any more is told, where there are enough for all."""
    probe = [at(2.0, "nemesis", "enq?", token="p.1"), at(2.0, "nemesis", "probe", token="p.1", note="crash")]

    def take(seconds: float, worker: str, token: str) -> Event:
        entry = f"low:{WALL + int(seconds * 1000)}-0"
        return at(seconds, worker, "take", token=token, id=token, entry=entry, attempt=1, deliveries=1)

    takes = [take(1, "a", "1"), take(1, "b", "2"), take(2.1, "a", "p.1")]
    takes += [take(2.2 + n / 100, "a", f"more{n}") for n in range(150)]
    assert not figures(probe, takes, take(2.3, "b", "3"))["consuming again after crash"].details
    assert figures(probe, takes)["consuming again after crash"].details


@pytest.mark.parametrize("manned", [True, False])
def test_what_is_given_back_counts_where_somebody_was_there_to_take_it(manned: bool) -> None:
    """It lay there for three seconds; that is too long, if another worker was not about to end as well."""
    back: dict[str, Any] = {"entry": f"low:{WALL + 500}-0", "number": 1, "note": "released"}
    other = at(0.9, "b-1", "take", token="x", id="x", entry=f"low:{WALL + 400}-0", attempt=1, deliveries=1)
    told = [at(1.2, "nemesis", "strike", note="term-worker", target="a-1")]
    if not manned:
        told.append(at(1.9, "nemesis", "strike", note="term-worker", target="b-1"))
    given = [at(2.1, "a-1", "sent", **back), at(2.15, "a-1", "settled", verdict=True, span=0.05, **back)]
    found = figures(other, taken(1, "a-1"), told, ended(2.05, "a-1"), given, taken(5.0, "c-1"))
    figure = found["back to work after SIGTERM (what ran: after its grace period)"]
    assert (figure.sampled, bool(figure.details)) == (manned, manned)


@pytest.mark.parametrize("blocked", [True, False])
def test_a_blocked_loop_hears_a_signal_when_it_goes_on(blocked: bool) -> None:
    """What a worker that was told to end had not started counts from then on: half a second here, not almost four."""
    mine: dict[str, Any] = {"entry": f"low:{WALL + 500}-0", "number": 1}
    other = at(0.9, "b-1", "take", token="x", id="x", entry=f"low:{WALL + 400}-0", attempt=1, deliveries=1)
    waits = at(1.0, "a-1", "take", token="t", id="j", attempt=1, deliveries=1, **mine)
    blocking = [
        at(1.0, "a-1", "take", token="l", id="l", entry=f"low:{WALL + 700}-0", number=3),
        at(1.05, "a-1", "start", token="l", number=3, note="blocking"),
        at(4.5, "a-1", "end", token="l", number=3, note="returned"),
    ]
    told = at(1.2, "nemesis", "strike", note="term-worker", target="a-1")
    given = at(4.52, "a-1", "settled", note="released", verdict=True, span=0.01, **mine)
    found = figures(other, waits, blocking if blocked else [], told, given, taken(5.0, "c-1"))
    figure = found["back to work after SIGTERM (what ran: after its grace period)"]
    assert (figure.sampled, bool(figure.details)) == (True, not blocked)


def test_consumers_that_were_left_behind_stay_in_the_record() -> None:
    """Also when the server loses all that it had afterwards."""
    assert Snapshot(consumers=["low:a~1"]).then(Snapshot()).consumers == ["low:a~1"]


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
    assert not Most("c", [], None, [], 4).ok


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_variant_fits_the_code(variant: str) -> None:
    """It finds what it breaks. Whether it is caught takes a minute, and is for `make chaos`."""
    code = f"from chaos.variants import VARIANTS; VARIANTS[{variant!r}]()"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )

"""Whether the day went as it should have: pure, from the facts to one row for each promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from backstage.cli.demo import shop
from backstage.cli.demo.diary import Event, What
from backstage.cli.demo.facts import Facts

EACH = 4
"""Jobs of each priority that wait when the shop opens."""
PAID = (1, 2, 3)
"""Orders that are paid one after the other."""
TWICE = 4
"""The order that is paid by a double click."""

_PRIORITY = {shop.refund.name: "urgent", shop.send_parcel.name: "default", shop.send_newsletter.name: "low"}


@dataclass(frozen=True)
class Row:
    """What was done, what should have come of it, what the server says, and whether that is the same."""

    feature: str
    done: str
    expected: str
    found: str
    ok: bool


def judge(facts: Facts) -> list[Row]:
    return [
        _priorities(facts),
        _chain(facts),
        _double_click(facts),
        _flaky(facts),
        _hopeless(facts),
        _schedule(facts),
        _broadcast(facts),
        _crash(facts),
        _left(facts),
        _closing(facts),
    ]


def events(facts: Facts, what: What | None = None, *, task: str = "", worker: str = "") -> list[Event]:
    """Those that fit, in the order of their times."""
    return [
        event
        for event in facts.events
        if (what is None or event.what == what)
        and (not task or event.task == task)
        and (not worker or event.worker == worker)
    ]


def _priorities(facts: Facts) -> Row:
    order = [_PRIORITY[event.task] for event in events(facts, "started") if event.task in _PRIORITY]
    found = [(priority, len(list(same))) for priority, same in groupby(order)]
    expected = [("urgent", EACH), ("default", EACH), ("low", EACH)]
    done = f"{3 * EACH} jobs waited for the first worker, the low ones longest"
    return Row("priorities", done, _counted(expected), _counted(found), found == expected)


def _chain(facts: Facts) -> Row:
    """Every payment has one receipt, late enough."""
    delay = shop.RECEIPT_AFTER.total_seconds()
    paid = [e for e in events(facts, "done", task=shop.charge.name) if e.order in PAID]
    sent = [e for e in events(facts, "started", task=shop.send_receipt.name) if e.order in PAID]
    at = {event.order: event.at for event in paid}
    waits = [event.at - at[event.order] for event in sent if event.order in at]
    each_once = all(sorted(event.order for event in found) == list(PAID) for found in (paid, sent))
    return Row(
        "chain, delay",
        f"{len(PAID)} payments, each followed by a receipt",
        f"{len(PAID)} payments, {len(PAID)} receipts {delay:g} s later",
        f"{_plural(len(paid), 'payment')}, {_plural(len(sent), 'receipt')}"
        + (f" {_span(waits)} later" if waits else ""),
        # The delay is counted from the finish, which comes a moment after the diary's line.
        each_once and min(waits) >= delay - 0.05,
    )


def _double_click(facts: Facts) -> Row:
    paid = [e for e in events(facts, "started", task=shop.charge.name) if e.order == TWICE]
    found = _plural(len(paid), "payment")
    return Row("deduplication", "an order paid by a double click", "1 payment", found, len(paid) == 1)


def _flaky(facts: Facts) -> Row:
    ends = [event.what for event in events(facts, task=shop.print_label.name) if event.what != "started"]
    done = "a label, by a printer that fails twice"
    return Row(
        "retries", done, "failed, failed, done", ", ".join(ends) or "nothing", ends == ["failed", "failed", "done"]
    )


def _hopeless(facts: Facts) -> Row:
    failed = len(events(facts, "failed", task=shop.send_fax.name))
    dead = [job for job in facts.dead if job.task == shop.send_fax.name]
    given_up = [(job.reason, job.attempt) for job in dead] == [("error", 3)] and len(facts.dead) == 1
    return Row(
        "dead letter",
        "a fax that never goes through, 3 attempts",
        "3 attempts, 1 dead job",
        f"{_plural(failed, 'attempt')}, {_plural(len(facts.dead), 'dead job')}"
        + (f" ({dead[0].error})" if dead else ""),
        failed == 3 and given_up,
    )


def _schedule(facts: Facts) -> Row:
    done = len(events(facts, "done", task=shop.report.name))
    what = "a monthly report, by a scheduler that was off for 100 days"
    return Row("cron", what, '1 report, for the last month (catch_up="last")', _plural(done, "report"), done == 1)


def _broadcast(facts: Facts) -> Row:
    heard, staff = sorted(event.worker for event in events(facts, "heard")), sorted(facts.exits)
    done = "one message, for all workers"
    return Row("broadcast", done, f"heard by {_and(staff)}", f"heard by {_and(heard)}", heard == staff != [])


def _crash(facts: Facts) -> Row:
    """One run that was cut off, one that was finished by somebody else."""
    killed = events(facts, "killed")
    started, done = events(facts, "started", task=shop.pack.name), events(facts, "done", task=shop.pack.name)
    dead = killed[0].worker if killed else "nobody"
    again = [event for event in started if event.worker != dead]
    found = f"done by {_and(event.worker for event in done)}"
    if killed and again:
        found += f", begun {again[0].at - killed[0].at:.1f} s after the kill"
    cut_off_then_done = [event.worker == dead for event in started] == [True, False]
    return Row(
        "crash",
        f"{dead} killed (SIGKILL) in the middle of a job",
        "done by the other worker, once",
        found,
        len(killed) == 1 and cut_off_then_done and [e.worker for e in done] == [e.worker for e in again],
    )


def _left(facts: Facts) -> Row:
    left = facts.waiting, facts.running, facts.scheduled
    found = "{} waiting, {} running, {} scheduled".format(*left)
    return Row("clean end", "all queues, after all that", "0 waiting, 0 running, 0 scheduled", found, not any(left))


def _closing(facts: Facts) -> Row:
    killed = {event.worker for event in events(facts, "killed")}
    exits = {name: status for name, status in facts.exits.items() if name not in killed}
    statuses = ", ".join("still running" if status is None else f"exit status {status}" for status in exits.values())
    off = not set(exits) & set(facts.registered)
    return Row(
        "shutdown",
        f"SIGTERM for {_and(list(exits))}",
        "exit status 0, signed off",
        f"{statuses}, {'signed off' if off else 'still registered'}",
        bool(exits) and set(exits.values()) == {0} and off,
    )


def _counted(runs: list[tuple[str, int]]) -> str:
    return ", ".join(f"{n} {name}" for name, n in runs) or "none"


def _span(seconds: list[float]) -> str:
    low, high = f"{min(seconds):.1f}", f"{max(seconds):.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _and(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a ×2`; `nobody` for none."""
    counted = [name if n == 1 else f"{name} ×{n}" for name, n in Counter(names).items()]
    return " and ".join(counted) or "nobody"

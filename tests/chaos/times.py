"""How long things took, where nothing else was in the way. A wait counts as too long as soon as its limit has passed
in calm: what struck after that explains nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.figures import Figure, Longest
from chaos.history import Event
from chaos.snapshot import Snapshot
from chaos.story import HARMLESS, Hold, Story, first_after

Times = list[tuple[float, str]]

OUTAGES = ("crash", "restart", "client-kill", "script-flush", "flushall")
"""Each needs a sample."""


def figures(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    goals = story.goals
    limit = goals.lease + goals.interval + 1
    yield Longest("back to work after SIGKILL of a worker", [], None, _after_kill(story, limit), limit)
    yield Longest("back to work after SIGTERM (what ran: after its grace period)", [], None, _given_back(story), 1.0)
    outages = _after_outage(story)
    for kind in OUTAGES:
        yield Longest(f"consuming again after {kind}", [], None, outages.pop(kind, []), 2.0)
    others = [each for times in outages.values() for each in times]
    if others:
        yield Longest("consuming again after other faults of Redis", [], None, others, 2.0)
    yield Longest("consuming again after a silent network", [], None, _after_silence(story), 15.0)
    yield from _delayed(story)
    yield from _malformed(story, snapshot)


def _after_kill(story: Story, limit: float) -> Times:
    found = []
    for hold in story.holds:
        killed = story.killed.get(hold.worker)
        if killed is None or hold.settled is not None or hold.lost is not None or hold.taken > killed:
            continue
        others = [other.taken for other in story.by_entry[hold.entry] if other.taken > hold.taken]
        after = min(others, default=None)
        if after is None or after < killed:
            continue  # its finish was written, and the answer came too late; or it was somebody else's by then
        until = min(after, killed + limit)
        if story.calm(hold.taken, until, hold.worker, all=False) and not story.regrouped(hold, until):
            found.append((after - killed, f"{hold.token} of {hold.worker}"))
    return found


def _given_back(story: Story) -> Times:
    """From the signal, once it could be heard, for what had not started; for what ran from the end of the grace, which
    a second one brings."""
    found = []
    for hold in story.holds:
        event, told = hold.settled, story.told_to_end.get(hold.worker)
        if event is None or told is None or hold.did("released") is None:
            continue
        if event.at < told[0] or hold.taken > told[0]:
            continue  # given back since all slots were full; or it came with an answer that was on its way
        begun = story.heard(hold.worker, told[0]) if hold.start is None else story.grace_ends(hold.worker)
        after = first_after((o.taken for o in story.by_entry[hold.entry] if o is not hold), hold.taken)
        until = min(after, begun + 1.0)
        if not story.manned(begun, until):
            continue  # all others were told to end, too, or had yet to take their first job
        if story.calm(begun, until, all=False) and not story.regrouped(hold, until):
            found.append((max(0.0, after - begun), f"{hold.token} of {hold.worker}"))
    return found


def _after_outage(story: Story) -> dict[str, Times]:
    """From the end of a fault, when the probes were put there, until one was taken and until each worker had taken
    something. By kind."""
    taken: dict[str, float] = {}
    for hold in story.holds:
        taken[hold.token] = min(hold.taken, taken.get(hold.token, 1e18))
    probes: dict[str, list[Event]] = defaultdict(list)
    for event in story.events:
        if event.what == "probe":
            probes[event.token.rpartition(".")[0]].append(event)
    found: dict[str, Times] = defaultdict(list)
    for name, events in probes.items():
        begun, first = events[0].at, min(taken.get(event.token, 1e18) for event in events)
        until = min(first, begun + 2.0)
        others = [fault for fault in story.between(begun + 0.001, until) if fault[2] or fault[0] > begun]
        if not others and not story.fewer(begun, until):
            found[events[0].note].append((first - begun, name))
            found[events[0].note] += _all_again(story, begun, 2.0)
    return found


def _all_again(story: Story, begun: float, limit: float) -> Times:
    """Until each worker took something, of those that took jobs before: where there was enough for all of them."""
    found = []
    for worker, takes in story.takes.items():
        first = first_after(takes, begun)
        until = min(first, begun + limit)
        ends = min(story.down.get(worker, (1e18, 0))[0], *_orders(story, worker), 1e18)
        spans = [*story.between(begun + 0.001, until), *story.blocked, *story.silent]
        if takes[0] > begun or ends < until or any(a <= until and b > begun and w == worker for a, b, w in spans):
            continue
        work = sum(begun < hold.taken < until for hold in story.holds)
        if first <= begun + limit or work > 100:
            found.append((first - begun, worker))
    return found


def _after_silence(story: Story) -> Times:
    """From the beginning of a silence that outlives all connections to the worker's next job, where there was work."""
    found = []
    struck = [event for event in story.events if event.what == "over" and event.note not in HARMLESS]
    for event in struck:
        if event.note != "hole":
            continue
        begun, worker = event.at - event.span, event.target
        first = first_after((hold.taken for hold in story.holds if hold.worker == worker), event.at)
        again = first_after((e.at - e.span for e in struck if e.target in ("", worker)), event.at)
        ends = [story.down.get(worker, (1e18, 0))[0], story.killed.get(worker, 1e18), *_orders(story, worker)]
        until = min([again, *ends])
        work = sum(event.at < hold.taken < begun + 15 for hold in story.holds)
        if first < until:
            found.append((first - begun, worker))
        elif until > begun + 15 and work > 100:
            found.append((1e9, f"{worker} took nothing while the others took {work}"))
    return found


def _orders(story: Story, worker: str) -> list[float]:
    return story.told_to_end.get(worker, [])


def _delayed(story: Story) -> Iterator[Figure]:
    early, late, started, count = [], [], [], 0
    for token, ask in story.asked.items():
        if ask.kind != "delayed" or ask.verdict != "added":
            continue
        runs = [hold for hold in story.by_id[ask.id] if hold.start is not None]
        if not runs:
            continue
        first: Hold = min(runs, key=lambda hold: hold.start or 0.0)
        count += 1
        if first.started_wall < ask.wall + ask.delay:
            early.append(token)
        seconds = (first.started_wall - ask.answered - ask.delay) / 1000
        due, came, backlog = (first.start or 0.0) - seconds, story.came(first.entry), story.backlog(first.entry)
        if story.calm(due - 2.0, due + min(came - due, 1.0)):
            late.append((came - due, token))
        # What came before it, or is more urgent, is served before it, as with any job: how long that takes is a matter
        # of the machine. So its start counts where nobody had waited for long when it came.
        if backlog >= came and story.calm(due - 2.0, due + min(seconds, 1.0)):
            started.append((seconds, token))
    for holds in story.by_id.values():
        count += len(holds) > 1 and holds[-1].attempt > 1
        early += _early(story, holds)
    yield Figure("delayed jobs and retries that ran early", early, count)
    yield Longest("delayed jobs in their queue late, at p99 (outside outages)", [], None, late, 1.0, 0.99)
    yield Longest("delayed jobs started late, at p99 (and where no backlog was)", [], None, started, 1.0, 0.99)


def _early(story: Story, holds: list[Hold]) -> Iterator[str]:
    """Retries that came before their pause was over, which begins when the attempt before them has ended."""
    pause = story.asked[holds[0].token].pause if holds[0].token in story.asked else 0
    ends: dict[int, float] = {}
    for hold in holds:
        if hold.end is not None:
            ends[hold.attempt] = min(hold.end, ends.get(hold.attempt, 1e18))
    for hold in holds:
        if hold.start is not None and hold.start < ends.get(hold.attempt - 1, 0.0) + pause / 1000 - 0.002:
            yield f"{hold.token}: attempt {hold.attempt}"


def _malformed(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    planted = {event.token: event for event in story.events if event.what == "plant"}
    text = [(str(fields), fields) for fields in snapshot.dead]
    waits, wrong, after = [], [], []
    for token, event in planted.items():
        found = [fields for shown, fields in text if token in shown]
        if len(found) != 1:
            wrong.append(f"{token}: {len(found)} times")
            continue
        seconds = max(0.0, (int(found[0].get("deadLetteredAt", 0)) - event.wall) / 1000)
        entry = f"{found[0]['queue']}:{found[0]['originalId']}" if "originalId" in found[0] else ""
        if story.calm(story.backlog(entry) if entry else event.at, event.at + min(1.0, seconds)):
            waits.append((seconds, token))
            if found[0].get("deliveryCount", "1") != "1":
                wrong.append(f"{token}: at its delivery {found[0]['deliveryCount']}")
    ends: dict[str, float] = {}
    for hold in story.holds:
        if hold.end is not None:
            ends[hold.token] = min(hold.end, ends.get(hold.token, 1e18))
    for event in story.events:
        if event.what == "probe" and event.note == "malformed":
            seconds = ends.get(event.token, 1e18) - event.at
            if story.calm(event.at - 0.1, event.at + min(1.0, seconds)):
                after.append((seconds, event.token))
    yield Figure("malformed input that is not in the dead letter once, on its first delivery", wrong, len(planted))
    yield Longest("malformed input in the dead letter after", [], None, waits, 1.0)
    yield Longest("the next good job done after", [], None, after, 1.0)

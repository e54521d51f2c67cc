"""The checker: from histories and a snapshot to figures, each with its goal. Pure: it asks nobody."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from chaos.history import Event
from chaos.jobs import CHILDREN, DEAD
from chaos.snapshot import Snapshot, token_of
from chaos.story import Goals, Hold, Story

DOCUMENTED = {
    "urgent|default|low": ("stream", False),
    "(urgent|default|low):dead-letter": ("stream", False),
    "scheduled|retries": ("zset", False),
    "cron": ("hash", False),
    "workers": ("zset", True),
    "workers:.+": ("hash", True),
    "dedupe:.+": ("string", True),
    "calls:.+": ("string", True),
    "stats:(urgent|default|low):[0-9]+": ("hash", True),
}
"""Keys of docs/protocol.md: type, and whether they lapse by themselves."""


class Figure(msgspec.Struct):
    name: str
    goal: str
    measured: str
    ok: bool
    details: list[str] = []
    """What it was, where it is not as it should be."""


def figures(events: Sequence[Event], snapshot: Snapshot, goals: Goals) -> list[Figure]:
    """Every figure of one run."""
    story = Story(list(events), goals)
    return [*_fates(story, snapshot), *_exclusion(story), *_times(story, snapshot), *_leftovers(story, snapshot)]


def none(name: str, found: Sequence[str], of: int | None = None) -> Figure:
    """A figure whose goal is 0."""
    return Figure(name, "0", f"{len(found)}" + (f" of {of:,}" if of is not None else ""), not found, list(found))


# ---- what became of the jobs -----------------------------------------------------------------------------------------


def _fates(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    dead = {token_of(fields): fields for fields in snapshot.dead if "raw" not in fields}
    returned = {hold.token for hold in story.holds if hold.how == "returned"}
    ids: dict[str, set[str]] = defaultdict(set)
    for hold in story.holds:
        ids[hold.token].add(hold.id)
    ids.pop("", None)  # what is no job has no token
    lost, wrong = [], []
    added = [token for token, ask in story.asked.items() if ask.verdict == "added"]
    lost += [
        f"{token} ({story.asked[token].kind})"
        for token in added
        if token not in returned and token not in dead and story.asked[token].id not in dead
    ]
    for token in [token for token, ask in story.asked.items() if ids[token] or ask.id in ids]:
        wrong += _wrong_end(story, token, dead, returned)
    for token, ask in story.asked.items():
        if ask.kind == "chain" and token in returned and token not in dead:
            children = [f"{token}/{number}" for number in range(CHILDREN)]
            lost += [f"{child} (successor)" for child in children if child not in returned and child not in dead]
    yield none("acknowledged enqueues neither finished nor dead-lettered", lost + _deduped(story, returned), len(added))
    yield none("jobs that ended otherwise than their kind does", wrong)
    yield none("what was answered as not added, and ran", [
        token for token, ask in story.asked.items() if ask.verdict in ("duplicate", "refused") and ids[token]
    ])  # fmt: skip
    yield none("finishes whose effects happened twice", _twice(story, snapshot, ids, returned, dead))


def _wrong_end(story: Story, token: str, dead: dict[str, dict[str, str]], returned: set[str]) -> Iterator[str]:
    ask = story.asked[token]
    entry = dead.get(token) or dead.get(ask.id)
    expected = DEAD.get(ask.kind)
    if entry is not None and entry["reason"] != expected:
        holds = story.by_id[ask.id or entry.get("jobId", "")]
        if entry["reason"] != "crash-loop" or len(holds) < 5:  # a job may die of what was done to its workers
            yield f"{token} ({ask.kind}) is dead: {entry['reason']} {entry.get('error', '')}"
    if expected and token in returned:
        yield f"{token} ({ask.kind}) returned"


def _deduped(story: Story, returned: set[str]) -> list[str]:
    """A key that was answered as taken names a job that exists; only one of its askers has one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for token, ask in story.asked.items():
        if ask.group:
            groups[ask.group].append(token)
    ran = {hold.token for hold in story.holds}
    found = []
    for key, tokens in groups.items():
        answered = [token for token in tokens if story.asked[token].verdict == "duplicate"]
        jobs = [token for token in tokens if token in returned or token in ran]
        if answered and not jobs:
            found.append(f"{answered[0]} (was told that {key} is taken, and no job has it)")
        if len(jobs) > 1:
            found.append(f"{key} (taken by {jobs})")
    return found


def _twice(
    story: Story, snapshot: Snapshot, ids: dict[str, set[str]], returned: set[str], dead: dict[str, dict[str, str]]
) -> list[str]:
    found = [
        f"{token} is {len(each)} jobs" for token, each in ids.items() if len(each) > 1 and not token.startswith("tick:")
    ]
    letters = Counter(fields["jobId"] for fields in snapshot.dead if fields.get("jobId"))
    found += [f"{id} is in the dead letter {n} times" for id, n in letters.items() if n > 1]
    done = {hold.id for hold in story.holds if hold.how == "returned"} - set(letters)
    counted = snapshot.stats.get("done", 0)
    if counted != len(done):
        found.append(f"{counted} finishes were counted, of {len(done)} jobs")
    buried, dug = snapshot.stats.get("dead", 0), sum("raw" not in fields for fields in snapshot.dead)
    if buried != dug:
        found.append(f"{buried} dead jobs were counted, {dug} are in the dead letter")
    return found


# ---- who ran what, when ----------------------------------------------------------------------------------------------


def _exclusion(story: Story) -> Iterator[Figure]:
    concurrent, unexplained, undone, stale = [], [], [], []
    cut: Counter[str] = Counter()
    over: Counter[str] = Counter()
    for holds in story.by_id.values():
        runs = sorted((hold for hold in holds if hold.start is not None), key=lambda hold: hold.start or 0.0)
        for first, second in itertools.pairwise(runs):
            cause = _cause(story, first, second)
            shown = f"{first.token}: {first.worker}, then {second.worker} at {second.taken:.3f} ({cause or 'why?'})"
            if first.attempt == second.attempt:
                if cause == "killed":
                    (cut if first.end is None else over)[first.worker] += 1
                elif not cause:
                    unexplained.append(shown)
            if first.worker != second.worker and (second.start or 0) < story.gone(first) and not cause:
                concurrent.append(shown)
    for holds in story.by_entry.values():
        stale += _stale(holds)
        undone += _undone(story, holds)
    yield none("runs of a job on two live, connected workers at once", concurrent)
    yield none("runs of live, connected workers that were taken away", undone)
    yield none("finishes of a former holder that undid the run of the next", stale)
    yield none("jobs run again though no worker died or was out of reach", unexplained)
    most, limit = max(cut.values(), default=0), story.goals.concurrency
    yield Figure("runs that a killed worker left unfinished and another repeated, at most", f"≤ {limit}",
                 f"{most} ({len(cut)} workers)", most <= limit, [str(cut.most_common(3))])  # fmt: skip
    yield Figure("runs that had ended, repeated since their finish was not yet written, at most", "",
                 f"{max(over.values(), default=0)} ({len(over)} workers)", True)  # fmt: skip


def _cause(story: Story, first: Hold, second: Hold) -> str:
    """Why a job may run again; empty where nothing allows it."""
    if first.attempt != second.attempt and first.settled is not None and first.settled.verdict is not False:
        return "its attempt failed"
    if first.worker in story.told_to_end and story.told_to_end[first.worker] <= second.taken:
        return "told to end"
    if story.regrouped(min(first.taken, second.taken), max(first.taken, second.taken)):
        return "group destroyed"
    if story.killed.get(first.worker, 1e18) <= second.taken + 0.1:
        return "killed"
    if story.out_of_reach(first, second.taken):
        return "out of reach"
    if first.kind == "hard" and any(first.worker == whom for _, _, whom in story.blocked):
        return "past its hard limit"  # which nothing could enforce while the loop was blocked: its lease was let go
    if second.deliveries < first.deliveries and story.hit(second.worker, first.taken, second.taken):
        return "out of reach"  # the second one was, with the older delivery: it heard of it only now
    return ""


def _stale(holds: list[Hold]) -> Iterator[str]:
    for hold in holds:
        event = hold.settled
        if event is None or event.verdict is not True or event.note == "done":
            continue
        sent = event.at - event.span
        later = [o for o in holds if o.deliveries > hold.deliveries and hold.taken < o.taken < sent]
        if later:
            yield f"{hold.token}: {event.note} of {hold.worker} took effect, {later[0].worker} had it by then"


def _undone(story: Story, holds: list[Hold]) -> Iterator[str]:
    for hold in holds:
        if hold.lost is None or hold.start is None or (hold.end is not None and hold.end <= hold.lost):
            continue  # it never ran, or it was over and its finish on the way
        if hold.kind == "hard" or story.out_of_reach(hold, hold.lost) or story.gave_up(hold, hold.lost):
            continue
        if story.regrouped(hold.taken, hold.lost):
            continue
        finished = [o for o in holds if o is not hold and o.how and o.end is not None and o.end <= hold.lost]
        if not finished:  # a success that comes first counts, even of a former holder
            yield f"{hold.token} was taken from {hold.worker} at {hold.lost:.3f}"


# ---- how long it took ------------------------------------------------------------------------------------------------


def _times(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    goals = story.goals
    yield bounded("back to work after SIGKILL of a worker", _after_kill(story), goals.lease + goals.interval + 1)
    yield bounded("taken again after being given back (SIGTERM)", _given_back(story), 1.0)
    yield bounded("consuming again after a fault of Redis", _after_outage(story), 2.0)
    yield bounded("consuming again after a silent network", _after_silence(story), 15.0)
    delayed = [
        (token, hold, ask)
        for token, ask in story.asked.items()
        if ask.kind == "delayed" and ask.verdict == "added"
        for hold in [min((h for h in story.by_id[ask.id] if h.start), key=lambda h: h.start or 0, default=None)]
        if hold is not None
    ]
    early = [f"{token}" for token, hold, ask in delayed if hold.started_wall < ask.wall + ask.delay]
    yield none("delayed jobs that ran early", early, len(delayed))
    late = sorted(
        (hold.started_wall - ask.answered - ask.delay) / 1000
        for _, hold, ask in delayed
        if story.calm((hold.start or 0) - (hold.started_wall - ask.answered - ask.delay) / 1000 - 2.0, hold.start or 0)
    )
    p99 = [(late[int(len(late) * 0.99)], "p99") for _ in late]
    yield bounded("delayed jobs, late at p99 (outside outages)", p99, 1.0)
    planted = {event.token: event for event in story.events if event.what == "plant"}
    text = [(str(fields), int(fields.get("deadLetteredAt", 0))) for fields in snapshot.dead]
    waits, missing = [], []
    for token, event in planted.items():
        found = [ms for shown, ms in text if token in shown]
        if len(found) != 1:
            missing.append(f"{token}: {len(found)} times")
        elif story.calm(event.at, event.at + max(1.0, (found[0] - event.wall) / 1000)):
            waits.append((max(0.0, (found[0] - event.wall) / 1000), token))
    yield none("malformed input that is not in the dead letter, once", missing, len(planted))
    yield bounded("malformed input in the dead letter after", waits, 1.0)


def bounded(name: str, times: Sequence[tuple[float, str]], limit: float) -> Figure:
    """A figure that is the longest of some times, in seconds."""
    if not times:
        return Figure(name, f"≤ {limit:g} s", "not measured", True)
    longest = max(times)
    over = [f"{seconds:.3f} s: {what}" for seconds, what in times if seconds > limit]
    return Figure(name, f"≤ {limit:g} s", f"{longest[0]:.3f} s (n = {len(times)})", not over, over)


def _after_kill(story: Story) -> list[tuple[float, str]]:
    found = []
    for hold in story.holds:
        killed = story.killed.get(hold.worker)
        if killed is None or hold.settled is not None or hold.lost is not None:
            continue
        after = [other.taken for other in story.by_entry[hold.entry] if other.taken > killed]
        if not after or any(other.taken > hold.taken and other.taken < killed for other in story.by_entry[hold.entry]):
            continue
        if story.calm(hold.taken, min(after), hold.worker, all=False) and not story.regrouped(hold.taken, min(after)):
            found.append((min(after) - killed, f"{hold.token} of {hold.worker}"))
    return found


def _given_back(story: Story) -> list[tuple[float, str]]:
    found = []
    for hold in story.holds:
        event = hold.settled
        if event is None or event.note != "released" or event.verdict is not True:
            continue
        after = [
            other.taken
            for other in story.by_entry[hold.entry]
            if other.taken > event.at - event.span and other is not hold
        ]
        if after and story.calm(event.at, min(after), hold.worker, all=False):
            found.append((max(0.0, min(after) - event.at), f"{hold.token} of {hold.worker}"))
    return found


def _after_outage(story: Story) -> list[tuple[float, str]]:
    """From the end of a fault to the first of the probes that were enqueued at once."""
    taken: dict[str, float] = {}
    for hold in story.holds:
        taken[hold.token] = min(hold.taken, taken.get(hold.token, 1e18))
    probes: dict[str, list[Event]] = defaultdict(list)
    for event in story.events:
        if event.what == "probe":
            probes[event.token.rpartition(".")[0]].append(event)
    found = []
    for name, events in probes.items():
        begun, first = events[0].at, min(taken.get(event.token, 1e18) for event in events)
        others = [fault for fault in story.between(begun + 0.001, first) if fault[2] or fault[0] > begun]
        if not others and not story.fewer(begun, first):
            found.append((first - begun, f"{events[0].note} {name}"))
    return found


def _after_silence(story: Story) -> list[tuple[float, str]]:
    """From the beginning of a silence that outlives all connections to the worker's next job."""
    found = []
    for event in story.events:
        if event.what != "over" or event.note != "hole":
            continue
        begun, worker = event.at - event.span, event.target
        first = min(
            (hold.taken for hold in story.holds if hold.worker == worker and hold.taken > event.at), default=None
        )
        until = min(story.down.get(worker, (1e18, 0))[0], begun + 15)
        work = sum(event.at < hold.taken < until for hold in story.holds)
        if first is not None and first < until:
            found.append((first - begun, worker))
        elif until == begun + 15 and work > 100:
            found.append((15.1, f"{worker} took nothing while the others took {work}"))
    return found


# ---- what is left ----------------------------------------------------------------------------------------------------


def _leftovers(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    yield none("cron slots missed or doubled", _slots(story, snapshot), len({e.number for e in _ticks(story)}))
    odd = [
        f"{key.name} ({key.type}, ttl {key.ttl})"
        for key in snapshot.keys
        if not any(
            re.fullmatch(pattern, key.name) and key.type == kind and (key.ttl >= 0 or not lapses)
            for pattern, (kind, lapses) in DOCUMENTED.items()
        )
    ]
    yield none("keys that the docs do not list, or that should lapse and don't", odd, len(snapshot.keys))
    yield none("consumers left behind", snapshot.consumers)
    yield Figure("jobs left after the drain", "0", str(snapshot.waiting), snapshot.waiting == 0)
    # Before it has begun and after its last word, SIGTERM ends a process as it ends any.
    begun = {e.process for e in story.events if e.what == "renewed"} - {
        e.process for e in story.events if e.what == "bye"
    }
    own = [
        f"{who} ended with {status}"
        for who, (_, status) in story.down.items()
        if status not in (0, -9) and not (status == -15 and who not in begun)
    ]
    own += [f"{who} ended unasked" for who, (_, s) in story.down.items() if s == 0 and who not in story.told_to_end]
    own += [f"{event.target} did not end when told to" for event in story.events if event.what == "stuck"]
    yield none("processes that ended by themselves, or not with 0 when told to", own, len(story.down))


def _ticks(story: Story) -> list[Event]:
    return [event for event in story.events if event.what == "slot" and event.verdict]


def _slots(story: Story, snapshot: Snapshot) -> Iterator[str] | list[str]:
    """A schedule's jobs are as many as its slots from the planted record to the last one, a second apart."""
    found = []
    begun = {event.note: event.number for event in story.events if event.what == "cron"}
    jobs: dict[str, set[str]] = defaultdict(set)
    for hold in story.holds:
        if hold.token.startswith("tick:"):
            jobs[hold.token].add(hold.id)
    for name, first in begun.items():
        slots = (snapshot.cron.get(name, first) - first) // 1000
        if len(jobs[f"tick:{name}"]) != slots:
            found.append(f"{name}: {slots} slots, {len(jobs[f'tick:{name}'])} jobs")
    twice = Counter((event.note, event.number) for event in _ticks(story))
    return found + [f"{name}: slot {slot} was added {n} times" for (name, slot), n in twice.items() if n > 1]

"""The checker: from histories and a snapshot to figures, each with its goal. Pure: it asks nobody."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from chaos import times
from chaos.figures import Enough, Figure, Most
from chaos.history import Event
from chaos.jobs import CHILDREN, DEAD
from chaos.snapshot import Snapshot, token_of
from chaos.story import Ask, Goals, Hold, Story

LOST = "acknowledged enqueues neither finished nor dead-lettered"

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


def figures(events: Sequence[Event], snapshot: Snapshot, goals: Goals) -> list[Figure]:
    """Every figure of one run."""
    story = Story(list(events), goals)
    return [*_fates(story, snapshot), *_exclusion(story), *times.figures(story, snapshot), *_leftovers(story, snapshot)]


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
    ended = {hold.id for hold in story.holds if hold.how == "returned"} | {e.get("jobId", "") for e in dead.values()}
    lost += [  # whoever asked for it, and whatever was answered
        f"{holds[0].token} was handed out to {holds[0].worker}, and never ended"
        for id, holds in story.by_id.items()
        if id and id not in ended
    ]
    for token in {**story.asked, **dead}:
        wrong += _wrong_end(story, token, dead, returned)
    for token, ask in story.asked.items():
        if ask.kind == "chain" and token in returned and token not in dead:
            children = [f"{token}/{number}" for number in range(CHILDREN)]
            lost += [f"{child} (successor)" for child in children if child not in returned and child not in dead]
    yield Figure(LOST, lost + _deduped(story, returned, dead), len(added))
    yield Figure("jobs that ended otherwise than their kind does", wrong, len(ended))
    yield Figure("what was answered as not added, and ran", [
        token for token, ask in story.asked.items() if ask.verdict in ("duplicate", "refused") and ids[token]
    ], sum(ask.verdict in ("duplicate", "refused") for ask in story.asked.values()))  # fmt: skip
    finishes = sum(snapshot.stats.get(what, 0) for what in ("done", "again", "dead"))
    yield Figure("finishes whose effects happened twice", _twice(story, snapshot, ids), finishes)


def _wrong_end(story: Story, token: str, dead: dict[str, dict[str, str]], returned: set[str]) -> Iterator[str]:
    ask = story.asked.get(token, Ask("successor, slot", "", 0, 0))
    entry = dead.get(token) or dead.get(ask.id)
    expected = DEAD.get(ask.kind)
    planted = entry is not None and token == f"{entry.get('queue')}:{entry.get('originalId')}"  # jobs of ours have ids
    if entry is not None and entry["reason"] != expected and not (planted and entry["reason"] == "malformed"):
        holds = story.by_id.get(ask.id or entry.get("jobId", ""), [])
        # A job may die of what was done to its workers: so often handed out, by the server's count (a worker may die
        # before it says what it took), and never a finish.
        count = max((hold.deliveries for hold in holds), default=0)
        ended = any(hold.did("done", "again") for hold in holds)
        if entry["reason"] != "crash-loop" or count <= story.goals.deliveries or ended:
            yield f"{token} ({ask.kind}) is dead: {entry['reason']} {entry.get('error', '')}"
    if expected and token in returned:
        yield f"{token} ({ask.kind}) returned"


def _deduped(story: Story, returned: set[str], dead: dict[str, dict[str, str]]) -> list[str]:
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
        if answered and not any(token in returned or token in dead for token in jobs):
            found.append(f"{answered[0]} (was told that {key} is taken, and no job has it)")
        if len(jobs) > 1:
            found.append(f"{key} (taken by {jobs})")
    return found


def _twice(story: Story, snapshot: Snapshot, ids: dict[str, set[str]]) -> list[str]:
    found = [
        f"{token} is {len(each)} jobs" for token, each in ids.items() if len(each) > 1 and not token.startswith("tick:")
    ]
    letters = Counter(fields["jobId"] for fields in snapshot.dead if fields.get("jobId"))
    found += [f"{id} is in the dead letter {n} times" for id, n in letters.items() if n > 1]
    found += [f"{hold.token} is done, and dead" for hold in story.holds if hold.did("done") and hold.id in letters]
    done = {hold.id for hold in story.holds if hold.how == "returned"} - set(letters)
    counted = snapshot.stats.get("done", 0)
    if counted != len(done):
        found.append(f"{counted} finishes were counted, of {len(done)} jobs")
    buried, dug = snapshot.stats.get("dead", 0), sum("raw" not in fields for fields in snapshot.dead)
    if buried != dug:
        found.append(f"{buried} dead jobs were counted, {dug} are in the dead letter")
    # Every retry that was written brings the next attempt, and no other does.
    again, attempts = snapshot.stats.get("again", 0), sum(
        max(hold.attempt for hold in holds) - 1 for id, holds in story.by_id.items() if id
    )  # fmt: skip
    if again != attempts:
        found.append(f"{again} retries were counted, of {attempts} attempts after the first")
    return found


# ---- who ran what, when ----------------------------------------------------------------------------------------------


def _exclusion(story: Story) -> Iterator[Figure]:
    concurrent, unexplained, undone, stale, again = [], [], [], [], []
    repeats = count = 0
    cut: Counter[str] = Counter()
    over: dict[str, list[Hold]] = defaultdict(list)
    for id, holds in story.by_id.items():
        again += _after_the_end(story, holds) if id else []  # what is no job has none; it is looked at below
        # In the order in which they were handed out: whoever had it first must have lost it, whoever started it first.
        runs = sorted((hold for hold in holds if hold.start is not None), key=lambda hold: hold.handed)
        count += len(runs)
        for first, second in itertools.combinations(runs, 2):
            together = max(first.start or 0.0, second.start or 0.0) < min(story.gone(first), story.gone(second))
            if together and not _cause(story, first, second):
                concurrent.append(_shown(first, second))
        for first, second in itertools.pairwise(runs):
            if second.attempt > first.attempt:  # a retry; whether its failure was written once, others count
                continue
            repeats += 1
            cause = _cause(story, first, second)
            if not cause:
                unexplained.append(_shown(first, second))
            elif cause == "killed" and first.end is None:
                cut[first.worker] += 1
            elif cause == "killed":
                over[first.worker].append(first)
    for holds in story.by_entry.values():
        again += [] if holds[0].id else _after_the_end(story, holds)
        stale += _stale(holds)
        undone += _undone(story, holds)
    fenced = sum(hold.settled is not None and hold.settled.note != "done" for hold in story.holds)
    written = sum(hold.did("done", "dead", "again") is not None for hold in story.holds)
    yield Figure("runs of a job on two live, connected workers at once", concurrent, count)
    yield Figure("runs of live, connected workers that were taken away", undone, count)
    yield Figure("finishes of a former holder that undid the run of the next", stale, fenced)
    yield Figure("jobs handed out again after their end was written", again, written)
    yield Figure("jobs run again where only Redis restarted or connections dropped", unexplained, count)
    yield Enough("jobs run again in all, for other reasons", [], None, repeats - len(unexplained))
    yield Most("runs that a killed worker left unfinished and another repeated, for one worker", [], None,
               [(n, worker) for worker, n in cut.items()], story.goals.concurrency)  # fmt: skip
    yield Most("runs that had ended, repeated since their finish was on its way, for one worker", [], None,
               [(len(each), worker) for worker, each in over.items()])  # fmt: skip
    yield Figure("such runs that had ended before the last answered finish was sent, or a second ago",
                 [line for worker, each in over.items() for line in _overdue(story, worker, each)])  # fmt: skip


def _shown(first: Hold, second: Hold) -> str:
    then = f"{second.worker} at {second.taken:.3f}"
    return f"{first.token} ({first.entry}): {first.worker} at {first.taken:.3f}, then {then}"


def _after_the_end(story: Story, holds: list[Hold]) -> Iterator[str]:
    """A finish that was answered as the one that counted is the end of a job, or of an attempt.

    Of several successes in one call it may only be known that not all counted. Who asked for one that did not count had
    been overtaken by another's finish, which ended the job too; or the group was gone, and with it who held what: then
    what stays in the stream is handed out again.
    """
    for hold in holds:
        ended, retried = hold.did("done", "dead"), hold.did("again")
        for other in holds:
            if ended is not None and other.handed > ended:
                yield f"{hold.token}: ended by {hold.worker} at {ended:.3f}, given to {other.worker} after it"
            if retried is not None and other.handed > retried and other.attempt <= hold.attempt:
                yield f"{hold.token}: attempt {hold.attempt} was over at {retried:.3f}, and given to {other.worker}"
            if hold.unsure is not None and other.handed > hold.unsure and not story.regrouped(hold, other.taken):
                yield f"{hold.token}: ended by {hold.worker} or before, given to {other.worker} after it"


def _overdue(story: Story, worker: str, holds: list[Hold]) -> Iterator[str]:
    """A finish takes along what ended before it was sent; one call is on its way at a time. So a killed worker can owe
    no more than what ended since it sent the last call that was answered (0.1 s: from handler to finisher). And that
    is a second's at most, where neither a fault nor a handler that blocked the loop held up its calls.
    """
    last = max((sent for sent, _ in story.calls[worker]), default=0.0)
    for hold in holds:
        if hold.end is not None and hold.end < last - 0.1 and hold.settled is None:
            yield f"{hold.token} of {worker} ended {last - hold.end:.3f} s before a finish that did not bring it"
        elif hold.end is not None and story.killed[worker] - hold.end > 1.0 and hold.settled is None:
            faults = [*story.between(hold.end, hold.end + 1.0), *story.silent, *story.blocked]
            if not any(a <= hold.end + 1.0 and b >= hold.end and whom in ("", worker) for a, b, whom in faults):
                yield f"{hold.token} of {worker} ended at {hold.end:.3f}, and its finish had a second to be written"


def _cause(story: Story, first: Hold, second: Hold) -> str:
    """Why a job may run again; empty where nothing allows it. See "When a job can run twice" in docs/reliability.md."""
    if first.lost is None and story.killed.get(first.worker, 1e18) <= second.taken:
        return "killed"  # a dead process holds nothing; what it had lost before, it lost for another reason
    sent = first.sent
    if sent is not None and sent.note == "released" and story.grace_ends(first.worker) <= sent.at <= second.taken:
        return "handed over"  # a stopping worker gives back what does not end in its grace; a thread may go on a while
    until = min(second.taken, first.lost or 1e18)  # what is lost is not renewed any more
    if story.regrouped(first, until):
        return "group destroyed"
    if story.out_of_reach(first, until) or story.let_go(first):
        return "out of reach"
    if story.past_limit(first, until):
        return "past its hard limit"
    return ""


def _stale(holds: list[Hold]) -> Iterator[str]:
    """A retry, a dead letter and a giving back are for the holder alone; a success counts whoever brings it."""
    for hold in holds:
        event = hold.settled
        if event is None or event.verdict is not True or event.note == "done":
            continue
        sent = event.at - event.span
        others = [o for o in holds if o.worker != hold.worker and hold.taken < o.taken < sent]
        later = [o for o in others if o.deliveries > hold.deliveries or o.handed > hold.taken]
        if later:
            yield f"{hold.token}: {event.note} of {hold.worker} took effect, {later[0].worker} had it by then"


def _undone(story: Story, holds: list[Hold]) -> Iterator[str]:
    for hold in holds:
        if hold.lost is None:
            continue
        if hold.sent is not None and hold.sent.at <= hold.lost:
            continue  # its own finish was under way: what the server no longer has is not taken away
        if story.out_of_reach(hold, hold.lost) or story.let_go(hold) or story.regrouped(hold, hold.lost):
            continue
        if story.past_limit(hold, hold.lost):
            continue
        # A success that comes first counts, even of a former holder.
        won = [o for o in holds if o is not hold and o.sent and o.sent.note == "done" and o.sent.at <= hold.lost]
        if not won:
            yield f"{hold.token} ({hold.entry}) was taken from {hold.worker} at {hold.lost:.3f}"


# ---- what is left ----------------------------------------------------------------------------------------------------


def _leftovers(story: Story, snapshot: Snapshot) -> Iterator[Figure]:
    if any(event.what == "cron" for event in story.events):
        yield Figure("cron slots missed or doubled", _slots(story, snapshot), len(_ticks(story)))
    odd = [
        f"{key.name} ({key.type}, ttl {key.ttl})"
        for key in snapshot.keys
        if not any(
            re.fullmatch(pattern, key.name) and key.type == kind and (key.ttl >= 0 or not lapses)
            for pattern, (kind, lapses) in DOCUMENTED.items()
        )
    ]
    yield Figure("keys that the docs do not list, or that should lapse and don't", odd, len(snapshot.keys))
    yield Figure("consumers left behind", snapshot.consumers)
    yield Figure("jobs left after the drain", ["a job"] * snapshot.waiting)
    # Before it hears signals and after it does no more, SIGTERM ends a process as it ends any.
    own = [
        f"{who} ended with {status}"
        for who, (_, status) in story.down.items()
        if status not in (0, -9) and not (status == -15 and who not in story.hears and who in story.told_to_end)
    ]
    own += [
        f"{who} ended unasked"
        for who, (_, status) in story.down.items()
        if status == 0 and who not in story.told_to_end
    ]
    own += [f"{event.target} did not end when told to" for event in story.events if event.what == "stuck"]
    yield Figure("processes that ended by themselves, or not with 0 when told to", own, len(story.down))


def _ticks(story: Story) -> list[Event]:
    return [event for event in story.events if event.what == "slot" and event.verdict]


def _slots(story: Story, snapshot: Snapshot) -> list[str]:
    """A schedule's jobs are as many as its slots from the planted record to the last one, a second apart. And that is
    the one before all schedulers were told to end, for they had a while of calm before."""
    found = []
    begun = {event.note: event.number for event in story.events if event.what == "cron"}
    jobs: dict[str, set[str]] = defaultdict(set)
    for hold in story.holds:
        if hold.token.startswith("tick:"):
            jobs[hold.token].add(hold.id)
    told = [e.wall for e in story.events if e.note == "term" and e.target.startswith("scheduler")]
    for name, first in begun.items():
        if snapshot.cron.get(name, 0) < max(told, default=0) - 2000:
            found.append(f"{name}: its last slot is {snapshot.cron.get(name)}, long before the end")
        slots = (snapshot.cron.get(name, first) - first) // 1000
        if len(jobs[f"tick:{name}"]) != slots:
            found.append(f"{name}: {slots} slots, {len(jobs[f'tick:{name}'])} jobs")
    twice = Counter((event.note, event.number) for event in _ticks(story))
    return found + [f"{name}: slot {slot} was added {n} times" for (name, slot), n in twice.items() if n > 1]

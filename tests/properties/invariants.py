"""What must hold after every step: of the model, which says what was promised, and of what is found on the server.

    somewhere       an acknowledged job is in a stream, in a set or in a dead letter, until it is done
    one_place       ready + leased + waiting + dead + done = 1
    effects         a winning finish has its effects once; no other finish has any
    counted         the delivery count of what is pending = deliveries - releases
    renewed         a run whose lease was renewed less than T ago is pending for its own worker
    live            no failed, stale or repeated call undoes a live run: each is pending for whom the model says
    successors      a successor exists if and only if its parent's winning finish named it
    not_added       what was answered "not added" is nowhere
    dedupe          a dedupe key names a job that was added, and each job that took one holds it
    claimable       a released entry is claimable at once
    never_early     what is not due waits in its set
    no_leaks        every key without a TTL is one that docs/protocol.md lists as such

Each answers what is wrong, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from properties.model import RELEASED, Model
from properties.system import LEASE, PLANTED, QUEUES, SPENT, Found


def _places(found: Found) -> Counter[str]:
    """In how many places each job is."""
    return Counter([*found.entries.values(), *(job for jobs in found.later.values() for job in jobs),
                    *(job for job, _ in found.dead)])  # fmt: skip


def somewhere(model: Model, found: Found) -> object:
    places = _places(found)
    ready = {entry.job for entry in model.entries.values() if entry.body and not entry.settled}
    waiting = {job for jobs in model.later.values() for job in jobs}
    return [job for job in ready | waiting | set(model.dead) if not places[job]]


def one_place(model: Model, found: Found) -> object:
    places = _places(found)
    left = {entry.job for entry in model.entries.values() if entry.settled}
    wrong = [job for job, n in places.items() if n > 1 or (job in model.done and job not in left)]
    return wrong or found.members - sum(map(len, found.later.values()))


def effects(model: Model, found: Found) -> object:
    told = {kind: n for kind, n in found.counts.items() if n}
    promised = {kind: n for kind, n in model.counts.items() if n}
    if told != promised:
        return f"finishes counted: {told}, not {promised}"
    return sorted(found.dead) != sorted(model.dead.items()) and f"dead: {found.dead}, not {model.dead}"


def counted(model: Model, found: Found) -> object:
    return [(at, times) for at, (_, times, _) in found.pending.items()
            if at in model.entries and times != model.entries[at].deliveries - model.entries[at].releases]  # fmt: skip


def renewed(model: Model, found: Found) -> object:
    fresh = {at: entry.owner for at, entry in model.entries.items() if entry.owner and not entry.aged}
    return [at for at, owner in fresh.items() if at not in found.pending or found.pending[at][0] != owner
            or found.pending[at][2] >= LEASE]  # fmt: skip


def live(model: Model, found: Found) -> object:
    promised = {at: entry.owner for at, entry in model.entries.items() if entry.owner}
    told = {at: owner for at, (owner, _, _) in found.pending.items()}
    return promised != told and f"pending for {told}, not {promised}"


def successors(model: Model, found: Found) -> object:
    places = _places(found)
    ended = model.done | model.gone | {entry.job for entry in model.entries.values() if not entry.body}
    return [child for child in model.parents if not places[child] and child not in ended]


def not_added(model: Model, found: Found) -> object:
    places = _places(found)
    return [job for job in model.nowhere if places[job]]


def dedupe(model: Model, found: Found) -> object:
    return found.dedupe != model.dedupe and f"taken: {found.dedupe}, not {model.dedupe}"


def claimable(model: Model, found: Found) -> object:
    return [at for at, (owner, _, idle) in found.pending.items() if owner == RELEASED and idle < 10**12]


def never_early(model: Model, found: Found) -> object:
    wrong = []
    for which, waiting in model.later.items():
        wrong += [job for job, (_, rank) in waiting.items() if job not in found.later[which]]
        wrong += [job for job, (_, rank) in waiting.items() if rank is None and found.later[which].get(job, 0) < 10**12]
    return wrong


def no_leaks(model: Model, found: Found) -> object:
    lasting = {"scheduled", "retries", "cron", SPENT, PLANTED, *QUEUES, *(f"{queue}:dead-letter" for queue in QUEUES)}
    return found.immortal - lasting


INVARIANTS: dict[str, Callable[[Model, Found], object]] = {
    check.__name__: check
    for check in (
        somewhere, one_place, effects, counted, renewed, live, successors, not_added, dedupe, claimable, never_early,
        no_leaks,
    )
}  # fmt: skip

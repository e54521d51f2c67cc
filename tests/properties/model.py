"""What the protocol promises, as a pure-Python model: where each job is, and whose each delivery is.

It knows nothing of Redis. A verb says what the call must answer; afterwards the model is the state that must be found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

RELEASED = "~released"

At: TypeAlias = tuple[str, str]
"""A queue and an entry's id."""
Kind: TypeAlias = Literal["done", "again", "dead", "released"]


@dataclass
class Entry:
    """An entry of a stream: new, pending for `owner`, or settled with its body left behind."""

    job: str
    body: bool = True
    delivered: bool = False
    owner: str | None = None
    deliveries: int = 0
    releases: int = 0
    aged: int = 0
    """0: touched just now; 1: idle for a lease; 2: idle for as long as other SDKs may be."""

    @property
    def times(self) -> int:
        return self.deliveries - self.releases

    @property
    def settled(self) -> bool:
        return self.delivered and self.owner is None


@dataclass(frozen=True)
class Held:
    """A delivery in a worker's hands. It stays what it is when the lease is lost: a zombie, or a ghost of one's own."""

    worker: str
    at: At
    times: int
    job: str


@dataclass(frozen=True)
class Asked:
    """A job that somebody enqueues. `refused`: its key can't take it."""

    job: str
    queue: str
    delay: bool = False
    dedupe: str = ""
    refused: bool = False


@dataclass
class Model:
    queues: Sequence[str]
    entries: dict[At, Entry] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    later: dict[str, dict[str, tuple[str, int | None]]] = field(
        default_factory=lambda: {"scheduled": {}, "retries": {}}
    )
    """Set → job → its queue, and its place among those that are due (None: not yet)."""
    dead: dict[str, str] = field(default_factory=dict)
    """Job → queue."""
    done: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    """Deleted by others, or purged: nobody can ask for them."""
    nowhere: set[str] = field(default_factory=set)
    """What was answered "not added", and successors that no winning finish named."""
    dedupe: dict[str, str] = field(default_factory=dict)
    arriving: list[tuple[str, str]] = field(default_factory=list)
    """(queue, job) that were just added to streams, in order; their entry ids are yet to be learned."""
    counts: Counter[str] = field(default_factory=Counter)
    """Effects: winning finishes of each kind."""
    parents: dict[str, str] = field(default_factory=dict)
    """Successor → the parent whose winning finish named it."""
    slot: int = 0
    ranks: int = 0

    # ---- producers ---------------------------------------------------------------------------------------------------

    def add(self, asked: Asked) -> bool:
        """Whether it is added."""
        if asked.refused or (asked.dedupe and asked.dedupe in self.dedupe):
            self.nowhere.add(asked.job)
            return False
        if asked.dedupe:
            self.dedupe[asked.dedupe] = asked.job
        if asked.delay:
            self.later["scheduled"][asked.job] = (asked.queue, None)
        else:
            self.arriving.append((asked.queue, asked.job))
        return True

    def cron(self, slot: int, job: str) -> bool:
        if slot <= self.slot:
            self.nowhere.add(job)
            return False
        self.slot = slot
        return self.add(Asked(job, "default"))

    def learn(self, new: Sequence[At], jobs: Sequence[str]) -> None:
        """Where the jobs that were just added stand."""
        self.entries.update((at, Entry(job)) for at, job in zip(new, jobs, strict=True))

    # ---- deliveries --------------------------------------------------------------------------------------------------

    def of(self, queue: str) -> Iterator[tuple[At, Entry]]:
        """A queue's entries in order."""
        return iter([(at, entry) for at, entry in self.entries.items() if at[0] == queue])

    def pending(self, queue: str) -> list[tuple[At, Entry]]:
        return [(at, entry) for at, entry in self.of(queue) if entry.owner is not None]

    def take(self, worker: str, queue: str, count: int) -> list[Held]:
        new = [(at, entry) for at, entry in self.of(queue) if not entry.delivered][:count]
        return [self._deliver(worker, at, entry) for at, entry in new]

    def _deliver(self, worker: str, at: At, entry: Entry) -> Held:
        entry.delivered, entry.owner, entry.aged = True, worker, 0
        entry.deliveries += 1
        return Held(worker, at, entry.times, entry.job)

    def drop(self, at: At) -> None:
        """A claim of an entry whose body is gone takes it out of the pending list."""
        self.gone.add(self.entries.pop(at).job)

    def _claim(self, worker: str, at: At, entry: Entry) -> Iterator[Held]:
        if not entry.body:
            self.drop(at)
        elif entry.owner == worker:  # its own: no new delivery
            entry.aged = 0
            yield Held(worker, at, entry.times, entry.job)
        else:
            yield self._deliver(worker, at, entry)

    def reclaim(self, worker: str, queue: str, room: int, *, scan: bool) -> list[Held]:
        found: list[Held] = []
        for at, entry in [pair for pair in self.pending(queue) if pair[1].owner == RELEASED][:room]:
            found += self._claim(worker, at, entry)
        for at, entry in self.pending(queue) if scan else ():
            if len(found) < room and entry.aged >= (1 if "~" in str(entry.owner) else 2):
                found += self._claim(worker, at, entry)
        return found

    def recover(self, worker: str, queue: str, known: set[str]) -> list[Held]:
        found: list[Held] = []
        for at, entry in self.pending(queue):
            if entry.owner == worker and at[1] not in known:
                found += self._claim(worker, at, entry)
        return found

    def ours(self, held: Held) -> bool:
        """The lease: still pending for this worker, by the delivery that it holds.

        To the server, two deliveries of one count to one worker are one lease: giving back takes one off the count. Who
        holds both tells them apart: tests/worker/test_stream_ghosts.py.
        """
        entry = self.entries.get(held.at)
        return entry is not None and entry.owner == held.worker and entry.times == held.times

    def renew(self, helds: Sequence[Held]) -> list[Held]:
        """The lost ones."""
        lost = []
        for held in helds:
            if not self.ours(held):
                lost.append(held)
            elif self.entries[held.at].body:
                self.entries[held.at].aged = 0
            else:
                self.drop(held.at)
                lost.append(held)
        return lost

    def age(self, at: At, level: int) -> None:
        if self.entries[at].body:
            self.entries[at].aged = level
        else:
            self.drop(at)

    # ---- the end of a delivery ---------------------------------------------------------------------------------------

    def finish(self, held: Held, kind: Kind, successors: Sequence[Asked] = (), *, verify: bool = False) -> bool:
        """Whether it changes something. A success counts from anybody, all else only from the holder of the lease."""
        entry = self.entries.get(held.at)
        wins = entry is not None and entry.owner is not None and (kind == "done" or self.ours(held))
        if entry is None or not wins or (verify and not entry.body):
            self.nowhere.update(asked.job for asked in successors)
            return False
        self.counts[kind] += 1
        if kind == "released":
            if entry.body:
                entry.owner, entry.releases, entry.aged = RELEASED, entry.releases + 1, 2
            else:
                self.drop(held.at)
            return True
        del self.entries[held.at]
        if kind == "done":
            self.done.add(entry.job)
            for asked in successors:
                if self.add(asked):
                    self.parents[asked.job] = entry.job
        elif kind == "again":
            self.later["retries"][entry.job] = (held.at[0], None)
        else:
            self.dead[entry.job] = held.at[0]
        return True

    def finish_plain(self, helds: Sequence[Held]) -> int:
        """How many were not settled here. What somebody else settled and left is deleted all the same."""
        known = [at for at in dict.fromkeys(held.at for held in helds) if at in self.entries]
        found = [self.entries.pop(at) for at in known if self.entries[at].delivered]  # not what a new group has yet to
        won = [entry.job for entry in found if entry.owner is not None]
        self.done.update(won)
        self.counts["done"] += len(won)
        return len(helds) - len(won)

    # ---- time --------------------------------------------------------------------------------------------------------

    def due(self, which: str, job: str) -> int:
        """Its time comes: its place in the order."""
        self.ranks += 1
        queue, _ = self.later[which][job]
        self.later[which][job] = (queue, self.ranks)
        return self.ranks

    def promote(self, limit: int) -> int:
        moved = 0
        for waiting in self.later.values():
            ready = sorted((rank, job) for job, (_, rank) in waiting.items() if rank is not None)[:limit]
            for _, job in ready:
                self.arriving.append((waiting.pop(job)[0], job))
            moved += len(ready)
        return moved

    # ---- others ------------------------------------------------------------------------------------------------------

    def delete(self, at: At) -> None:
        """XDEL of an entry; what is pending stays so."""
        entry = self.entries[at]
        entry.body = False
        if entry.owner is None:
            del self.entries[at]
            if not entry.delivered:
                self.gone.add(entry.job)

    def destroy_group(self, queue: str) -> None:
        """The pending list goes; what has a body runs again with the next group, even what was settled and left."""
        self.groups.discard(queue)
        for at, entry in self.of(queue):
            if not entry.body:
                self.drop(at)
            else:
                self.done.discard(entry.job)
                self.entries[at] = Entry(entry.job)

    def delete_stream(self, queue: str) -> None:
        self.groups.discard(queue)
        for at, entry in self.of(queue):
            del self.entries[at]
            if not entry.settled:
                self.gone.add(entry.job)

    def acknowledge(self, held: Held) -> None:
        """Another SDK finishes: it acknowledges, and leaves the body."""
        entry = self.entries[held.at]
        entry.owner = None
        if not entry.body:
            del self.entries[held.at]
        self.done.add(held.job)

    def prune(self, queue: str) -> int:
        """What was settled and left before all that is pending or new: how many bodies go."""
        trimmed = 0
        for at, entry in self.of(queue) if queue in self.groups else ():
            if not entry.settled:
                break
            del self.entries[at]
            trimmed += 1
        return trimmed

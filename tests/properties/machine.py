"""Histories that hypothesis draws: any verb after any other, with zombies, ghosts, lost replies and foreign hands."""

from __future__ import annotations

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backstage.job import Delivery
from properties.model import At, Held, Kind
from properties.system import PLANTED, QUEUES, SPENT, System, Texts, genuine
from properties.world import OTHERS, WORKERS, World
from support.server import Server

queues, workers = st.sampled_from(QUEUES), st.sampled_from(WORKERS)
picks = st.integers(0, 40)
"""Which of several: counted from the newest."""
keys = st.sampled_from(["", "", "", "k1", "k2"])
targets = st.sampled_from([*QUEUES, *QUEUES, *QUEUES, SPENT, PLANTED])
jobs = st.tuples(targets, st.booleans(), keys)
nexts = st.lists(st.tuples(st.sampled_from([*QUEUES, *QUEUES, *QUEUES, PLANTED]), st.booleans(), keys), max_size=2)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["done", "done", "done", "again", "released"])
seldom, mostly = st.sampled_from([False, False, False, True]), st.sampled_from([True, True, True, False])
sundries = st.sampled_from(
    ["promote", "prune", "repeat", "repeat", "cron", "come and go", "flush", "dead", "lapse"]
)  # fmt: skip
heirs = st.sampled_from(["", *WORKERS])


class Machine(RuleBasedStateMachine):
    """One history. `server` belongs to the machine; `texts` says which scripts run."""

    server: Server
    texts: Texts = staticmethod(genuine)

    def __init__(self) -> None:
        super().__init__()
        self._db = self.server.client()
        self._raw = redis.Redis(unix_socket_path=self.server.socket)
        self._db.flushall()
        self.world = World(System(self._db, self._raw, "p", QUEUES, type(self).texts))

    def teardown(self) -> None:
        try:
            self.finished()
            self.world.drain()
        finally:
            self._db.close()
            self._raw.close()

    def finished(self) -> None:
        """A history ended; what is left is drained next."""

    @invariant()
    def all_hold(self) -> None:
        self.world.reached["steps"] += 1
        self.world.check()

    # Few rules, so that each is often taken: what matters less shares one.

    @initialize(specs=st.lists(jobs, min_size=2, max_size=4))
    def begin(self, specs: list[tuple[str, bool, str]]) -> None:
        for queue in QUEUES:
            self.world.take(WORKERS[0], queue)
        self.world.enqueue(specs)

    @rule(
        specs=st.lists(jobs, min_size=1, max_size=3),
        lost=seldom,
        taker=st.sampled_from(["", *WORKERS, *WORKERS, OTHERS]),
    )
    def enqueue(self, specs: list[tuple[str, bool, str]], lost: bool, taker: str) -> None:
        """Perhaps somebody takes it at once."""
        self.world.enqueue(specs, lost=lost)
        if taker:
            self.world.check()
            self.world.take(taker, specs[0][0] if specs[0][0] in QUEUES else "default", 2)

    @precondition(lambda self: any(not entry.delivered for entry in self.world.model.entries.values()))
    @rule(worker=st.sampled_from([*WORKERS, *WORKERS, OTHERS]), queue=queues, count=st.integers(1, 4), lost=seldom)
    def take(self, worker: str, queue: str, count: int, lost: bool) -> None:
        self.world.take(worker, queue, count, lost=lost)

    @precondition(lambda self: self.world.held)
    @rule(worker=workers, queue=queues, room=st.integers(1, 4), scan=mostly, lost=seldom, heal=seldom)
    def reclaim(self, worker: str, queue: str, room: int, scan: bool, lost: bool, heal: bool) -> None:
        self.world.reclaim(worker, queue, room, scan=scan, lost=lost, heal=heal)

    @precondition(lambda self: self.world.held)
    @rule(worker=workers, queue=queues)
    def recover(self, worker: str, queue: str) -> None:
        self.world.recover(worker, queue)

    @precondition(lambda self: self.ours)
    @rule(pick=picks, all=st.booleans())
    def renew(self, pick: int, all: bool) -> None:
        """One delivery, perhaps a ghost's; or all that a worker holds: of each entry the newest delivery."""
        chosen = self.one(pick)
        newest = {held.at: (held, delivery) for held, delivery in self.ours if held.worker == chosen[0].worker}
        self.world.renew(list(newest.values()) if all else [chosen])

    @precondition(lambda self: self.ours)
    @rule(pick=picks, kind=kinds, successors=nexts, verify=st.booleans(), twice=seldom, deleted=seldom)
    def finish(
        self, pick: int, kind: Kind, successors: list[tuple[str, bool, str]], verify: bool, twice: bool, deleted: bool
    ) -> None:
        """Perhaps somebody deletes the entry before its end is told."""
        held, delivery = self.one(pick)
        if deleted and held.at in self.bodies:
            self.world.delete(held.at)
        self.world.finish(held, delivery, kind, successors if kind == "done" else (), verify=verify, twice=twice)

    @precondition(lambda self: self.ours)
    @rule(pick=picks, kind=st.sampled_from(["again", "dead", "released"]), twice=seldom, heir=heirs)
    def finish_fenced(self, pick: int, kind: Kind, twice: bool, heir: str) -> None:
        """Perhaps somebody at once takes what was given back: a delivery with the same count, and another owner."""
        held, delivery = self.one(pick)
        self.world.finish(held, delivery, kind, twice=twice)
        if heir:
            self.world.reclaim(heir, held.at[0], 4, scan=False)

    @precondition(lambda self: self.ours)
    @rule(pick=picks, most=st.integers(1, 4))
    def finish_plain(self, pick: int, most: int) -> None:
        first, _ = self.one(pick)
        among = self.ours if most == 4 else self.pending
        same = {held.at: (held, delivery) for held, delivery in reversed(among)
                if (held.worker, held.at[0]) == (first.worker, first.at[0])}  # fmt: skip
        self.world.finish_plain([*same.values()][:most] or [self.one(pick)])

    @precondition(lambda self: self.leased)
    @rule(pick=picks, level=st.sampled_from([1, 1, 2]), all=st.booleans(), heir=heirs, lost=seldom)
    def leases_end(self, pick: int, level: int, all: bool, heir: str, lost: bool) -> None:
        """One lease, or all of that worker's: it died. Perhaps another one takes over; or it renews after all."""
        chosen = self.leased[-1 - pick % len(self.leased)]
        owner = self.world.model.entries[chosen].owner
        for at in [at for at in self.leased if all and self.world.model.entries[at].owner == owner] or [chosen]:
            self.world.age(at, level)
        if heir:
            self.world.reclaim(heir, chosen[0], 3, scan=True, lost=lost)
        elif late := [pair for pair in self.ours if pair[0].at == chosen and self.world.model.ours(pair[0])]:
            self.world.renew(late[-1:])

    @precondition(lambda self: self.leased)
    @rule(pick=picks, worker=workers)
    def there_and_back(self, pick: int, worker: str) -> None:
        """Two others hold it in turn, and then its worker again: what that began with is now its own ghost's."""
        at = self.leased[-1 - pick % len(self.leased)]
        for heir in (worker, WORKERS[1 - WORKERS.index(worker)], worker):
            if at in self.world.model.entries:
                self.world.age(at, 2)
                self.world.reclaim(heir, at[0], 4, scan=True)

    @precondition(lambda self: any(self.world.model.later.values()))
    @rule(pick=picks, promote=st.integers(0, 3))
    def due(self, pick: int, promote: int) -> None:
        waiting = [(which, job) for which, of in self.world.model.later.items() for job in of]
        self.world.due(*waiting[-1 - pick % len(waiting)])
        if promote:
            self.world.promote(promote)

    @rule(what=sundries, pick=picks, queue=queues, worker=workers)
    def sundry(self, what: str, pick: int, queue: str, worker: str) -> None:
        world = self.world
        dead, taken = [*world.model.dead], [*world.model.dedupe]
        match what:
            case "promote":
                world.promote(1 + pick % 3)
            case "prune":
                world.prune(queue)
            case "repeat":
                world.repeat(-1 - pick)
            case "cron":
                world.cron(max(1, world.model.slot + pick % 3))
            case "come and go":
                world.system.beat(worker)
                world.system.leave(worker)
            case "flush":
                self._db.script_flush()
            case "dead" if dead:
                world.retry_dead(dead[pick % len(dead)])
            case "lapse" if taken:
                world.lapse(taken[pick % len(taken)])

    @precondition(lambda self: len(self.bodies) > 2)
    @rule(
        what=st.sampled_from(["ack", "ack", "ack", "xdel", "xdel", "xtrim", "del", "destroy"]), pick=picks, queue=queues
    )
    def others(self, what: str, pick: int, queue: str) -> None:
        match what:
            case "ack" if self.foreign:
                held = self.foreign[pick % len(self.foreign)]
                self.world.acknowledge(held)
                if pick % 2:
                    self.world.prune(held.at[0])
            case "xdel":
                self.world.delete(self.bodies[-1 - pick % len(self.bodies)])
            case "xtrim":
                self.world.trim(queue, pick % 3)
            case "del":
                self.world.delete_stream(queue)
            case "destroy":
                self.world.destroy_group(queue)

    # ---- what there is to choose from --------------------------------------------------------------------------------

    @property
    def ours(self) -> list[tuple[Held, Delivery]]:
        """All that our workers were ever handed."""
        return [pair for pair in self.world.held if pair[0].worker != OTHERS]

    def one(self, pick: int) -> tuple[Held, Delivery]:
        """Every fourth from all, the others from those that still are somebody's, if there are any."""
        among = self.pending if pick % 4 and self.pending else self.ours
        return among[-1 - pick // 4 % len(among)]

    @property
    def pending(self) -> list[tuple[Held, Delivery]]:
        """Of ours, those whose entry is pending, for whomever."""
        entries = self.world.model.entries
        return [pair for pair in self.ours if pair[0].at in entries and entries[pair[0].at].owner]

    @property
    def foreign(self) -> list[Held]:
        return [held for held, _ in self.world.held if held.worker == OTHERS and self.world.model.ours(held)]

    @property
    def leased(self) -> list[At]:
        return [at for at, entry in self.world.model.entries.items() if entry.owner in (*WORKERS, OTHERS)]

    @property
    def bodies(self) -> list[At]:
        return [at for at, entry in self.world.model.entries.items() if entry.body]

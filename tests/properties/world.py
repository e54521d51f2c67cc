"""Model and system side by side: every verb is done to both, the answers are compared, and then the invariants hold.

The invariants are in invariants.py. `drain`, at the end of a history, shows that all that is left can be finished.
"""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Sequence

from backstage.job import Dedupe, Delivery, Job
from backstage.outcome import Again, Dead, Done, Outcome, Released
from backstage.ready import Ready
from properties.invariants import INVARIANTS
from properties.model import RELEASED, Asked, At, Held, Kind, Model
from properties.system import FOREIGN, LEASE, PLANTED, QUEUES, SERVER, SPENT, Found, System, job_of

WORKERS = ("a~1", "b~2")
OTHERS = "typescript"
"""A consumer of another SDK: it neither renews nor deletes."""
HOUR = 3_600_000


class World:
    """A keyspace and its model. Every verb raises AssertionError where an answer is not the one that was promised."""

    def __init__(self, system: System) -> None:
        self.system, self.model = system, Model(QUEUES)
        self.held: list[tuple[Held, Delivery]] = []
        """All that was ever handed out, zombies and ghosts with the rest."""
        self.calls: list[tuple[str, list[Ready], list[bool]]] = []
        self.reached: Counter[str] = Counter()
        """What happened so far: a history that reaches nothing proves nothing."""
        self._numbers = itertools.count(1)
        keys = system.keys
        system.db.xadd(keys.stream(SPENT), {"jobId": "none"}, id="18446744073709551615-18446744073709551615")
        system.db.rpush(keys.stream(PLANTED), "planted")

    # ---- producers ---------------------------------------------------------------------------------------------------

    def job(self, queue: str, *, delay: bool = False, dedupe: str = "") -> tuple[Job, Asked]:
        delay = delay and queue in QUEUES
        job = Job(
            f"t{next(self._numbers)}",
            queue=queue,
            delay=HOUR if delay else None,
            dedupe=Dedupe(dedupe) if dedupe else None,
        )
        return job, Asked(job.id, queue, delay, dedupe, refused=queue not in QUEUES)

    def enqueue(self, specs: Sequence[tuple[str, bool, str]], *, lost: bool = False) -> None:
        """A batch of (queue, delayed, dedupe key). `lost`: the answer never comes, and the caller asks again."""
        made = [self.job(queue, delay=delay, dedupe=dedupe) for queue, delay, dedupe in specs]
        ready = [Ready.of(job, "1", asked.queue) for job, asked in made]
        call = secrets.token_hex(8)
        if lost:
            self.system.enqueue(ready, call)
        answer = self.system.enqueue(ready, call)
        promised = [self.model.add(asked) for _, asked in made]
        assert answer == promised, f"enqueue answers {answer}, not {promised}"
        self.calls.append((call, ready, answer))
        self.reached.update("added" if added else "not added" for added in answer)
        self.reached["enqueue repeated"] += lost

    def repeat(self, at: int) -> None:
        """An earlier call once more, late."""
        call, ready, answer = self.calls[at % len(self.calls)]
        assert self.system.enqueue(ready, call) == answer, "a repeated call answers as the first one did"
        self.reached["call repeated late"] += 1

    def cron(self, slot: int) -> None:
        job, asked = self.job("default")
        promised = self.model.cron(slot, asked.job)
        assert self.system.cron(slot, job) == promised
        self.reached["cron slot" if promised else "cron slot again"] += 1

    # ---- deliveries --------------------------------------------------------------------------------------------------

    def take(self, worker: str, queue: str, count: int = 1, *, lost: bool = False) -> None:
        """`lost`: the reply never arrives."""
        found = self.system.take(worker, queue, count)
        if found is None:
            assert queue not in self.model.groups
            self.system.create_group(queue)
            self.model.groups.add(queue)
            self.reached["group made"] += 1
            return self.take(worker, queue, count, lost=lost)
        return self._handed("taken", worker, self.model.take(worker, queue, count), found, lost=lost)

    def reclaim(
        self, worker: str, queue: str, room: int, *, scan: bool, lost: bool = False, heal: bool = False
    ) -> None:
        """`heal`: as after a clock that went back. Not where bodies are gone: which of those it drops, time decides."""
        heal = heal and scan and all(entry.body for _, entry in self.model.pending(queue))
        found = self.system.reclaim(worker, queue, room, scan=scan, heal=heal)
        before = {at: entry.owner for at, entry in self.model.entries.items()}
        promised = self.model.reclaim(worker, queue, room, scan=scan) if queue in self.model.groups else []
        for held in promised:
            kind = {RELEASED: "released", worker: "own", OTHERS: "foreign"}.get(before[held.at] or "", "aged")
            self.reached[f"reclaimed {kind}"] += 1
        self._handed("reclaimed", worker, promised, found, lost=lost)

    def recover(self, worker: str, queue: str) -> None:
        known = {held.at[1] for held, _ in self.held if held.at[0] == queue and held.worker == worker
                 and self.model.ours(held)}  # fmt: skip
        found = self.system.recover(worker, queue, sorted(known))
        promised = self.model.recover(worker, queue, known) if queue in self.model.groups else []
        self._handed("recovered", worker, promised, found)

    def _handed(
        self, how: str, worker: str, promised: list[Held], found: list[Delivery], *, lost: bool = False
    ) -> None:
        got = [Held(worker, (d.queue, d.entry_id.decode()), d.times, job_of(d)) for d in found]
        if how == "taken":  # a read tells no counts: what it hands out was never delivered
            assert all(held.times == 1 for held in promised)
        assert got == promised, f"{how}: {got}, not {promised}"
        self.reached[f"{how}, reply lost" if lost else how] += len(got)
        if not lost:
            self.held += zip(got, found, strict=True)

    def renew(self, chosen: Sequence[tuple[Held, Delivery]]) -> None:
        """Of one worker, each entry at most once."""
        by_queue: dict[str, list[Delivery]] = {}
        aged = {held: self.model.entries[held.at].aged for held, _ in chosen if held.at in self.model.entries}
        for _, delivery in chosen:
            by_queue.setdefault(delivery.queue, []).append(delivery)
        lost = self.system.renew(chosen[0][0].worker, by_queue)
        promised = self.model.renew([held for held, _ in chosen])
        named = [held for held, delivery in chosen if delivery in lost]
        assert set(named) == set(promised), f"renew answers as lost {named}, not {promised}"
        for held, _ in chosen:
            kind = "lost" if held in promised else "late" if aged.get(held) else "in time"
            self.reached[f"renewed {kind}"] += 1

    # ---- the end of a delivery ---------------------------------------------------------------------------------------

    def finish(
        self, held: Held, delivery: Delivery, kind: Kind, successors: Sequence[tuple[str, bool, str]] = (),
        *, verify: bool = False, twice: bool = False,
    ) -> None:  # fmt: skip
        """`verify`: another server process answers than handed it out. `twice`: the first answer was lost."""
        made = [self.job(queue, delay=delay, dedupe=dedupe) for queue, delay, dedupe in successors]
        asked = [each for _, each in made] if kind == "done" else []
        outcome = self.outcome(kind, [job for job, _ in made])
        server = f"not-{SERVER}" if verify else SERVER
        answer = self.system.finish(held.worker, [(delivery, outcome)], server=server)[1]
        who = self._who(held)
        if any(each.refused for each in asked):
            alive = held.at in self.model.entries and self.model.entries[held.at].body
            if alive or not verify:
                assert isinstance(answer, bytes), f"a successor into a wrong key is refused, not answered {answer}"
            self.model.nowhere.update(each.job for each in asked)
            self.reached["finish refused"] += 1
            return
        promised = self.model.finish(held, kind, asked, verify=verify)
        assert answer == int(promised), f"{kind} by the {who} answers {answer}, not {int(promised)}"
        self.reached[f"{kind} by the {who}: {'wins' if promised else 'changes nothing'}"] += 1
        if twice:
            self.reached["finish repeated"] += 1
            again = self.system.finish(held.worker, [(delivery, outcome)], server=server)[1]
            assert again == int(self.model.finish(held, kind, (), verify=verify)), "a repeated finish changes nothing"

    def _who(self, held: Held) -> str:
        entry = self.model.entries.get(held.at)
        if self.model.ours(held):
            return "holder"
        return "ghost" if entry is not None and entry.owner == held.worker else "zombie"

    def finish_plain(self, chosen: Sequence[tuple[Held, Delivery]]) -> None:
        """Successes without successors, of one worker and one queue, in one call."""
        queue = chosen[0][0].at[0]
        ids = [held.at[1] for held, _ in chosen]
        answer = self.system.finish(chosen[0][0].worker, [], {queue: ids})[0]
        promised = self.model.finish_plain([held for held, _ in chosen])
        assert answer == promised, f"{answer} of {len(ids)} were not settled here, says finish; {promised} were not"
        self.reached["plain, all" if not promised else "plain, not all"] += 1

    @staticmethod
    def outcome(kind: Kind, next: Sequence[Job] = ()) -> Outcome:
        match kind:
            case "done":
                return Done(tuple(next))
            case "again":
                return Again(HOUR)
            case "dead":
                return Dead("error", "boom")
            case "released":
                return Released()

    # ---- time and others ---------------------------------------------------------------------------------------------

    def age(self, at: At, level: int) -> None:
        """A lease ends (1), or as much time passes as other SDKs get (2)."""
        entry = self.model.entries[at]
        assert entry.owner is not None
        self.system.age(at, entry.owner, entry.times, LEASE + 1 if level == 1 else FOREIGN + 1)
        self.model.age(at, level)

    def due(self, which: str, job: str) -> None:
        self.system.due(which, job, self.model.due(which, job))

    def promote(self, limit: int) -> None:
        promised, answer = self.model.promote(limit), self.system.promote(limit)
        self.reached["promoted"] += promised
        self.sync()
        assert answer == promised, f"promote moves {answer}, not {promised}"

    def prune(self, queue: str) -> None:
        promised = self.model.prune(queue)
        answer = self.system.prune(queue)
        assert answer == promised, f"prune trims {answer}, not {promised}"
        self.reached["pruned"] += promised

    def delete(self, at: At) -> None:
        entry = self.model.entries[at]
        self.reached[f"deleted {'leased' if entry.owner else 'left' if entry.delivered else 'ready'}"] += 1
        self.system.db.xdel(self.system.keys.stream(at[0]), at[1])
        self.model.delete(at)

    def trim(self, queue: str, keep: int) -> None:
        self.system.db.xtrim(self.system.keys.stream(queue), maxlen=keep, approximate=False)
        with_body = [at for at, entry in self.model.of(queue) if entry.body]
        for at in with_body[: max(len(with_body) - keep, 0)]:
            self.model.delete(at)
        self.reached["trimmed"] += len(with_body) > keep

    def delete_stream(self, queue: str) -> None:
        self.system.db.delete(self.system.keys.stream(queue))
        self.model.delete_stream(queue)
        self.reached["stream deleted"] += 1

    def destroy_group(self, queue: str) -> None:
        if queue in self.model.groups:
            self.system.db.xgroup_destroy(self.system.keys.stream(queue), "backstage-workers")
            self.model.destroy_group(queue)
            self.reached["group destroyed"] += 1

    def acknowledge(self, held: Held) -> None:
        """Another SDK's worker finishes what it holds, its way."""
        self.system.db.xack(self.system.keys.stream(held.at[0]), "backstage-workers", held.at[1])
        self.model.acknowledge(held)
        self.reached["acknowledged by another SDK"] += 1

    def lapse(self, key: str) -> None:
        """The TTL of a dedupe key ends."""
        self.system.db.delete(self.system.keys.dedupe(key))
        del self.model.dedupe[key]
        self.reached["dedupe key lapsed"] += 1

    def retry_dead(self, job: str) -> None:
        queue = self.model.dead[job]
        assert self.system.retry_dead(queue, self.system.dead_ids(queue, job)) == 1
        del self.model.dead[job]
        self.model.arriving.append((queue, job))
        self.reached["dead job put back"] += 1

    # ---- afterwards --------------------------------------------------------------------------------------------------

    def sync(self) -> Found:
        """Learn the ids of the entries that were just added; they came in the order of their adding."""
        found = self.system.look()
        for queue in QUEUES:
            new = [at for at in found.entries if at[0] == queue and at not in self.model.entries]
            jobs = [job for into, job in self.model.arriving if into == queue]
            assert [found.entries[at] for at in new] == jobs, f"{queue} got {len(new)} new entries, not {len(jobs)}"
            self.model.learn(new, jobs)
        self.model.arriving.clear()
        return found

    def check(self) -> None:
        """Every invariant."""
        found = self.sync()
        for name, holds in INVARIANTS.items():
            wrong = holds(self.model, found)
            assert not wrong, f"{name}: {wrong}"

    def drain(self) -> None:
        """Time passes, one worker comes and finishes all: nothing is stuck."""
        worker = WORKERS[0]
        for which, waiting in self.model.later.items():
            for job in list(waiting):
                self.due(which, job)
        while any(self.model.later.values()):
            self.promote(100)
        for queue in QUEUES:
            for at, entry in self.model.pending(queue):
                if entry.owner != RELEASED:
                    self.age(at, 2)
            self.held.clear()
            self.take(worker, queue, 1_000)
            self.reclaim(worker, queue, 1_000, scan=True)
            for held, delivery in self.held:
                self.finish(held, delivery, "done")
            assert not self.model.pending(queue)
            self.prune(queue)
        found = self.sync()
        assert not found.entries
        assert not found.pending
        assert not found.members
        self.check()

"""The real thing: the scripts on a real server, called as Backstage calls them, and what is found there afterwards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from backstage import blobs
from backstage.job import Delivery, Job
from backstage.keys import Keys
from backstage.outcome import Outcome
from backstage.queue import RESERVED
from backstage.ready import Ready
from backstage.scripts import load, pack
from backstage.wire import FIELDS, fields_of
from properties.model import At

GROUP = "backstage-workers"
LEASE, FOREIGN = 60_000, 120_000
"""Ms after which a delivery counts as left behind. Far longer than a test, so that only what was aged is."""
SERVER = "this-server"
QUEUES = ("default", "low")
SPENT, PLANTED = "spent", "planted"
"""A stream that takes no more entries, and a key that is none."""

Texts = Callable[[str], str]
"""A script's name → its text."""


def genuine(name: str) -> str:
    return load(name).text


@dataclass
class Found:
    """Everything under the prefix, at one moment."""

    entries: dict[At, str] = field(default_factory=dict)
    """Where → the job's id."""
    pending: dict[At, tuple[str, int, int]] = field(default_factory=dict)
    """Where → consumer, delivery count, idle ms."""
    later: dict[str, dict[str, float]] = field(default_factory=dict)
    """Set → job → due."""
    members: int = 0
    dead: list[tuple[str, str]] = field(default_factory=list)
    """(job, queue), one for each dead-letter entry."""
    dedupe: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    immortal: set[str] = field(default_factory=set)
    """Keys without a TTL."""


class System:
    """One keyspace of a server that belongs to the caller. `db` speaks text, `raw` bytes."""

    def __init__(
        self, db: redis.Redis, raw: redis.Redis, prefix: str, queues: Sequence[str], texts: Texts = genuine
    ) -> None:
        self.db, self.raw, self.keys, self.queues, self.texts = db, raw, Keys(prefix), queues, texts

    def script(self, name: str, keys: Sequence[str], blob: bytes) -> Any:
        """As a lane does it: by its SHA1, loaded where the server doesn't have it."""
        text = self.texts(name)
        sha = hashlib.sha1(text.encode()).hexdigest()
        try:
            return self.raw.evalsha(sha, len(keys), *keys, blob)
        except NoScriptError:
            self.raw.script_load(text)
            return self.raw.evalsha(sha, len(keys), *keys, blob)

    # ---- verbs -------------------------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[Ready], call: str) -> list[bool]:
        """For each whether it was added."""
        keys, blob = blobs.enqueue(self.keys, jobs, call, 15_000)
        refused = set(self.script("enqueue", keys, blob)[::2])
        return [at not in refused for at in range(1, len(jobs) + 1)]

    def create_group(self, queue: str) -> None:
        self.db.xgroup_create(self.keys.stream(queue), GROUP, "0", mkstream=True)

    def take(self, worker: str, queue: str, count: int) -> list[Delivery] | None:
        """None: there is no group."""
        key = self.keys.stream(queue)
        try:
            reply = self.raw.xreadgroup(GROUP, worker, {key: ">"}, count)
        except ResponseError as exc:
            if "NOGROUP" not in str(exc):
                raise
            return None
        return [
            Delivery(queue, at, [part for pair in fields.items() for part in pair], 1, SERVER)
            for _, entries in reply or ()
            for at, fields in entries
        ]

    def reclaim(self, worker: str, queue: str, room: int, *, scan: bool, heal: bool = False) -> list[Delivery]:
        blob = pack((GROUP, worker, LEASE if scan else -1, FOREIGN, room, "-", 0, int(heal)))
        _, entries, _, _ = self.script("reclaim", [self.keys.stream(queue)], blob)
        return [Delivery(queue, at, fields, times, SERVER) for at, times, fields, _ in entries]

    def recover(self, worker: str, queue: str, known: Sequence[str]) -> list[Delivery]:
        entries = self.script("recover", [self.keys.stream(queue)], pack((GROUP, worker, list(known))))
        return [Delivery(queue, at, fields, times, SERVER) for at, times, fields in entries]

    def renew(self, worker: str, held: Mapping[str, Sequence[Delivery]]) -> list[Delivery]:
        lists = list(held.values())
        reply = self.script("renew", [self.keys.stream(queue) for queue in held], blobs.renew(GROUP, worker, lists))
        return blobs.lost(lists, reply)

    def finish(
        self,
        worker: str,
        others: Sequence[tuple[Delivery, Outcome]],
        plain: Mapping[str, list[str]] | None = None,
        *,
        server: str = SERVER,
    ) -> list[Any]:
        """The script's answer. `server`: another one than handed the deliveries out has them verified."""
        batch = blobs.finish(
            self.keys, plain or {}, others, server, group=GROUP, consumer=worker, delete=True, encode=str
        )
        answer: list[Any] = self.script("finish", batch.keys, batch.blob)
        return answer

    def promote(self, limit: int) -> int:
        fixed = [self.keys.scheduled, self.keys.retries, self.keys.dead_letter("default")]
        blob = pack((self.keys.prefix, limit, sorted(RESERVED), FIELDS))
        moved: int = self.script("promote", [*fixed, *map(self.keys.stream, self.queues)], blob)[0]
        return moved

    def prune(self, queue: str) -> int:
        """How many entries were trimmed."""
        blob = pack((GROUP, -1, -1, 1))  # however short their idle time is
        trimmed: int = self.script("prune", [self.keys.stream(queue), self.keys.workers], blob)[1]
        return trimmed

    def beat(self, worker: str) -> None:
        self.script("beat", [self.keys.workers, self.keys.worker(worker)], pack((worker, 60_000, ["pid", "1"])))

    def leave(self, worker: str) -> None:
        keys = [self.keys.workers, self.keys.worker(worker), *map(self.keys.stream, self.queues)]
        self.script("leave", keys, pack((GROUP, worker)))

    def cron(self, slot: int, job: Job) -> bool:
        keys = [self.keys.cron, self.keys.stream("default")]
        done: int = self.script("cron", keys, pack(("nightly", slot, 10**15, job.task, "1", job.id)))[0]
        return done == 1

    def retry_dead(self, queue: str, entry_ids: Sequence[str]) -> int:
        blob = pack((queue, list(entry_ids), "-", "", 100, ("reason", "error", "traceback", "deadLetteredAt",
                                                             "originalId", "deliveryCount", "queue")))  # fmt: skip
        moved: int = self.script("dead_retry", [self.keys.dead_letter(queue), self.keys.stream(queue)], blob)[0]
        return moved

    # ---- others, and time --------------------------------------------------------------------------------------------

    def age(self, at: At, owner: str, times: int, idle: int) -> None:
        """Make a pending entry look as if nobody had touched it for `idle` ms."""
        self.db.xclaim(self.keys.stream(at[0]), GROUP, owner, 0, [at[1]], idle=idle, retrycount=times, justid=True)

    def due(self, which: str, job: str, rank: int) -> None:
        """A member's time comes: due in the year 1970, in the order of the ranks."""
        key = getattr(self.keys, which)
        for member in self.db.zrange(key, 0, -1):
            if f'"jobId":"{job}"' in member:
                self.db.zadd(key, {member: rank})

    def dead_ids(self, queue: str, job: str) -> list[str]:
        return [at for at, fields in self.db.xrange(self.keys.dead_letter(queue)) if fields.get("jobId") == job]

    # ---- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> Found:
        found, prefix = Found(), self.keys.prefix
        names = sorted(self.db.keys(f"{prefix}:*"))
        stats = [name for name in names if name.startswith(f"{prefix}:stats:")]
        dedupe = [name for name in names if name.startswith(f"{prefix}:dedupe:")]
        with self.db.pipeline(transaction=False) as pipe:
            for queue in self.queues:
                pipe.xrange(self.keys.stream(queue))
                pipe.xpending_range(self.keys.stream(queue), GROUP, "-", "+", 1_000)
                pipe.xrange(self.keys.dead_letter(queue))
            for which in ("scheduled", "retries"):
                pipe.zrange(getattr(self.keys, which), 0, -1, withscores=True)
            for name in stats:
                pipe.hgetall(name)
            for name in dedupe:
                pipe.get(name)
            for name in names:
                pipe.pttl(name)
            replies = iter(pipe.execute(raise_on_error=False))
        for queue in self.queues:
            self._queue(found, queue, next(replies), next(replies), next(replies))
        for which in ("scheduled", "retries"):
            members = next(replies)
            found.members += len(members)
            found.later[which] = {_job_of(member): score for member, score in members}
        for _ in stats:
            found.counts.update({kind: int(n) for kind, n in next(replies).items()})
        found.dedupe = {name.rpartition(":")[2]: next(replies) for name in dedupe}
        found.immortal = {name.removeprefix(f"{prefix}:") for name in names if next(replies) == -1}
        return found

    def _queue(self, found: Found, queue: str, entries: Any, pending: Any, dead: Any) -> None:
        for entry_id, fields in entries:
            found.entries[queue, entry_id] = fields["jobId"]
        if isinstance(pending, ResponseError):
            assert "NOGROUP" in str(pending), pending
            pending = []
        for each in pending:
            found.pending[queue, each["message_id"]] = (
                each["consumer"], each["times_delivered"], each["time_since_delivered"],
            )  # fmt: skip
        found.dead += [(fields["jobId"], queue) for _, fields in dead]


def _job_of(member: str) -> str:
    job: str = json.loads(member)["jobId"]
    return job


def job_of(delivery: Delivery) -> str:
    return fields_of(delivery.fields)[b"jobId"].decode()

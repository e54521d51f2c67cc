"""Doctor: examines a server and a deployment, and says what it found, what follows from it and what to do.

It only looks. What each kind of finding is, and the rules about a server, stand in findings.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis

from backstage import findings as f
from backstage import rights
from backstage.cron import CronTask
from backstage.errors import RedisRefused
from backstage.findings import Finding
from backstage.inspector import Source
from backstage.keys import Keys
from backstage.lane import Command, Lane, Refusal
from backstage.report import QueueInfo, QueuesInfo, WorkerInfo
from backstage.scripts import load
from backstage.survey import Survey

CLOCK = 1.0
"""Seconds by which two clocks may differ."""
OURS_SLOW, OTHERS_SLOW = 50_000, 100_000
"""Microseconds from which on a script of ours, or somebody else's command, counts as slow."""
HOUR = 3_600_000
MONTH = 32 * 24 * HOUR
UNSERVED = timedelta(seconds=10)
"""So long may jobs wait without a worker: a deploy."""
BACKLOG = timedelta(minutes=10)
SILENCE = timedelta(seconds=25)
"""After two and a half beats without a word a worker counts as silent."""
STUCK = 300_000
"""Ms after which a pending delivery counts as stuck, at least; for longer leases it is four of them."""
ACTIVE, GONE = 60_000, 2 * HOUR
"""Ms within which other SDKs' consumers count as at work, and after which as gone."""
OVERDUE = 60_000
"""Ms that a slot may be late."""
SAMPLE = 100
"""Waiting jobs of a queue that are looked at."""
COUNTED = 1_000
SCANNED = 100
"""Steps of a thousand keys that the look at all keys takes at most."""
SHOWN = 5
"""Names that a finding tells."""

_SHAPES: tuple[tuple[str, str, bool], ...] = (
    ("scheduled|retries", "zset", False),
    ("workers", "zset", True),
    ("workers:.+", "hash", True),
    ("stats:.+", "hash", True),
    ("cron", "hash", False),
    ("broadcast", "stream", False),
    ("dedupe:.*|calls:.+", "string", True),
    (".+:dead-letter", "stream", False),
)
"""Key without the prefix → its type, and whether it lapses (docs/protocol.md). Any other stream is a queue."""


class Doctor:
    """Examines what `client` (a Client or a Worker) speaks to. A Worker's schedules are known; others may be given."""

    def __init__(self, client: Source, *, group: str | None = None, schedules: Iterable[CronTask] = ()) -> None:
        self._client = client
        self._group = group or str(getattr(client.config, "consumer_group", "backstage-workers"))
        self._schedules = [*schedules, *getattr(client.config, "schedules", ())]

    async def examine(self) -> list[Finding]:
        """All findings, the worst first; `ok` for each check that found nothing.

        Where there are several keyspaces, what is not the same in all of them tells where it is. Raises
        RedisUnavailable or RedisRefused where it can't look at all.
        """
        spaces, timeout = self._client._keyspaces(), self._client.config.connect_timeout
        told: dict[str, list[tuple[str, list[Finding]]]] = {}
        for n, (prefix, redis) in enumerate(spaces):
            schedules = self._schedules if n == 0 else None
            examination = Examination(redis, prefix, group=self._group, connect_timeout=timeout, schedules=schedules)
            for name, found in (await examination.rounds()).items():
                told.setdefault(name, []).append((prefix, found))
        found = [finding for name, each in told.items() for finding in _together(each) or [Finding("ok", name)]]
        return sorted(found, key=lambda finding: -f.SEVERITIES.index(finding.severity))


class Examination:
    """Of one keyspace and its server. `schedules`: those that are known; None where there are none, being elsewhere."""

    def __init__(
        self, redis: Redis, prefix: str, *, group: str, connect_timeout: int, schedules: Sequence[CronTask] | None
    ) -> None:
        self._keys, self._group, self._schedules = Keys(prefix), group, schedules
        self._survey = Survey(redis, prefix, group=group, connect_timeout=connect_timeout)

    async def rounds(self) -> dict[str, list[Finding]]:
        """What each check found."""
        queues, workers = await self._survey.queues(None), list[WorkerInfo]()
        with contextlib.suppress(RedisRefused):  # the registry is of another type: the round of the keys says so
            workers = await self._survey.workers()
        async with self._survey.lane() as lane:
            (text,) = await lane.many([("INFO",)])
            info = f.facts_of(text.decode("utf-8", "replace")) if isinstance(text, bytes) else {}
            now, clock = await self._clock(lane)
            rounds = {
                "the server": f.judge(info, await self._settings(lane)),
                "clocks": clock,
                "access rights": await self._rights(lane),
                "slow commands": await self._slow(lane, now),
                "workers": _silent(workers, now),
                "queues": [finding for queue in queues for finding in await self._queue(lane, queue, workers, now)],
                "tasks": await self._tasks(lane, queues, workers),
                "schedules": [] if self._schedules is None else await self._cron(lane, self._schedules, now),
                "keys": await self._all_keys(lane, queues, workers),
            }
        if self._schedules is None:
            del rounds["schedules"]
        return rounds

    async def _settings(self, lane: Lane) -> dict[str, str]:
        """Of those that INFO doesn't tell, what may be known."""
        replies = await lane.many([("CONFIG", "GET", name) for name in ("save", "appendfsync")])
        return {_text(reply[0]): _text(reply[1]) for reply in replies if isinstance(reply, list) and len(reply) == 2}

    async def _clock(self, lane: Lane) -> tuple[int, list[Finding]]:
        """The server's time in ms, and what its clock is like."""
        tries: list[tuple[float, float, float]] = []
        for _ in range(3):
            sent = time.time()
            seconds, micros = await lane.call("TIME")
            heard = time.time()
            server = int(seconds) + int(micros) / 1e6
            tries.append((heard - sent, server - (sent + heard) / 2, server))
        trip, ahead, server = min(tries)
        known = abs(ahead) - max(trip, 0.0) / 2  # so much it is at least
        return int(server * 1000), [f.CLOCK.of(server_ahead_by_seconds=round(ahead))] if known > CLOCK else []

    async def _rights(self, lane: Lane) -> list[Finding]:
        """What this user lacks for each role; asked where the server has ACL DRYRUN (7.0)."""
        (user,) = await lane.many([("ACL", "WHOAMI")])
        if isinstance(user, Refusal):
            return [f.RIGHTS_UNKNOWN.of()]
        lacking: dict[str, str] = {}
        for role in rights.ROLES:
            asked = rights.commands(role, self._keys.prefix)
            replies = await lane.many([("ACL", "DRYRUN", user, *command) for command in asked])
            if any(isinstance(reply, Refusal) for reply in replies):
                return [f.RIGHTS_UNKNOWN.of(user=_text(user))]
            denied = [" ".join(c[:2]) for c, reply in zip(asked, replies, strict=True) if reply != b"OK"]
            if denied:
                lacking[role] = _some(denied)
        if len(lacking) == len(rights.ROLES):
            return [f.NO_RIGHTS.of(user=_text(user), **lacking)]
        return [f.LACKS.of(user=_text(user), role=role, denied=denied) for role, denied in lacking.items()]

    async def _slow(self, lane: Lane, now: int) -> list[Finding]:
        """What the slow log has of the last hour."""
        (entries,) = await lane.many([("SLOWLOG", "GET", "128")])
        if isinstance(entries, Refusal):
            return []
        names = [entry.name.removesuffix(".lua") for entry in files("backstage").joinpath("lua").iterdir()]
        ours = {load(name).sha.encode(): name for name in names if not name.startswith(("_", "."))}
        slow: dict[str, list[int]] = {}
        for _, at, micros, words, *_ in entries:
            script = ours.get(words[1]) if len(words) > 1 and words[0].upper() == b"EVALSHA" else None
            blocks = words[0].upper() not in (b"BLPOP", b"BRPOP", b"WAIT", b"WAITAOF")
            if now - at * 1000 < HOUR and blocks and micros >= (OURS_SLOW if script else OTHERS_SLOW):
                slow.setdefault(script or f"*{_text(words[0])[:40].upper()}", []).append(micros)
        return [
            f.HELD_UP.of(command=name[1:], times=len(times), longest_ms=max(times) // 1000)
            if name.startswith("*")
            else f.SLOW.of(script=name, times=len(times), longest_ms=max(times) // 1000)
            for name, times in slow.items()
        ]

    # ---- the deployment ----------------------------------------------------------------------------------------------

    async def _queue(self, lane: Lane, queue: QueueInfo, workers: Sequence[WorkerInfo], now: int) -> list[Finding]:
        """One queue: who serves it, what is pending, its consumers, groups and dead letter."""
        if queue.problem:
            return [f.WRONG_TYPE.of(queue=queue.name, problem=queue.problem)]
        key, dead = self._keys.stream(queue.name), self._keys.dead_letter(queue.name)
        lease = max((_lease(worker) for worker in workers), default=30_000)
        stuck = max(STUCK, 4 * lease)
        calls: list[Command] = [
            ("XINFO", "GROUPS", key),
            ("XINFO", "CONSUMERS", key, self._group),
            ("XPENDING", key, self._group, "IDLE", stuck, "-", "+", COUNTED),
            ("XRANGE", dead, max(0, now - HOUR), "+", "COUNT", COUNTED),
        ]
        groups, consumers, pending, died = [
            [] if isinstance(reply, Refusal) else reply for reply in await lane.many(calls)
        ]
        found: list[Finding] = []
        known = [_pairs(each) for each in consumers]
        served = any(queue.name in _listed(worker, "queues") for worker in workers) or any(
            "~" not in _text(each["name"]) and each["idle"] < ACTIVE for each in known
        )
        if queue.waiting and queue.oldest is not None:
            kind = f.BACKLOG if served else f.UNSERVED
            if queue.oldest > (BACKLOG if served else UNSERVED):
                seconds = int(queue.oldest.total_seconds())
                found.append(kind.of(queue=queue.name, waiting=queue.waiting, seconds=seconds))
        if len(groups) > 1:
            names = [_text(_pairs(group)["name"]) for group in groups]
            found.append(f.GROUPS.of(queue=queue.name, groups=_some(names)))
        left = [entry for entry in pending if entry[1] != b"~released"]
        if left:
            holders = _some(sorted({_text(entry[1]) for entry in left}))
            longest = max(entry[2] for entry in left) // 1000
            found.append(f.STUCK.of(queue=queue.name, deliveries=len(left), consumers=holders, seconds=longest))
        live = {worker.consumer for worker in workers}
        orphans = [name for each in known if (name := _orphan(each, live, max(120_000, 3 * lease)))]
        if orphans:
            found.append(f.ORPHANS.of(queue=queue.name, consumers=_some(orphans)))
        if died:
            found.append(f.DYING.of(queue=queue.name, died=_many(len(died)), dead=queue.dead, why=_reasons(died)))
        elif queue.dead:
            found.append(f.DEAD.of(queue=queue.name, dead=queue.dead))
        return found

    async def _tasks(self, lane: Lane, queues: QueuesInfo, workers: Sequence[WorkerInfo]) -> list[Finding]:
        """Tasks of waiting jobs, and of jobs that were put off, that no live worker of the queue knows: by sample."""
        unknown: dict[str, set[str]] = {}
        for queue in queues:
            serving = [worker for worker in workers if queue.name in _listed(worker, "queues")]
            tasks = {task for worker in serving for task in _listed(worker, "tasks")}
            if queue.waiting and not queue.problem and serving:
                unknown[queue.name] = {task for task in await self._sample(lane, queue.name) if task not in tasks}
        (members,) = await lane.many([("ZRANGE", self._keys.retries, "0", SAMPLE - 1)])
        every = {task for worker in workers for task in _listed(worker, "tasks")}
        for member in [] if isinstance(members, Refusal) or not workers else members:
            with contextlib.suppress(ValueError, AttributeError):
                job = json.loads(member)
                task, key = job.get("taskName"), str(job.get("streamKey", ""))
                if job.get("since") and isinstance(task, str) and task not in every:
                    unknown.setdefault(key.removeprefix(f"{self._keys.prefix}:"), set()).add(task)
        return [f.UNKNOWN_TASKS.of(queue=name, tasks=_some(sorted(tasks))) for name, tasks in unknown.items() if tasks]

    async def _sample(self, lane: Lane, queue: str) -> set[str]:
        """Tasks of the jobs that are taken next."""
        key, last = self._keys.stream(queue), "0-0"
        (groups,) = await lane.many([("XINFO", "GROUPS", key)])
        for group in [] if isinstance(groups, Refusal) else map(_pairs, groups):
            if group["name"] == self._group.encode():
                last = _text(group["last-delivered-id"])
        (entries,) = await lane.many([("XRANGE", key, f"({last}", "+", "COUNT", SAMPLE)])
        fields = [_pairs(flat) for _, flat in ([] if isinstance(entries, Refusal) else entries)]
        return {_text(each["taskName"]) for each in fields if "taskName" in each}

    async def _cron(self, lane: Lane, schedules: Sequence[CronTask], now: int) -> list[Finding]:
        """Known schedules exactly; of the others only what a record tells by itself."""
        (flat,) = await lane.many([("HGETALL", self._keys.cron)])
        records = {} if isinstance(flat, Refusal) else {name: _slot(value) for name, value in _pairs(flat).items()}
        found: list[Finding] = []
        for schedule in schedules:
            record = records.get(schedule.name)
            if record is None:
                found.append(f.NEVER_SEEN.of(schedule=schedule.name))
            elif record <= now and (due := schedule.next_run(_instant(record))) < _instant(now - OVERDUE):
                found.append(f.OVERDUE.of(schedule=schedule.name, due=due.isoformat()))
        known = {schedule.name for schedule in schedules}
        for name, record in records.items():
            if record is not None and record > now + OVERDUE:
                found.append(f.FUTURE_SCHEDULE.of(schedule=name, last=_when(record)))
            elif record is not None and record < now - MONTH and name not in known:
                found.append(f.STALE_SCHEDULE.of(schedule=name, last=_when(record)))
        return found

    async def _all_keys(self, lane: Lane, queues: QueuesInfo, workers: Sequence[WorkerInfo]) -> list[Finding]:
        """Every key under the prefix: is it ours, of the right type, and does it lapse where it should?"""
        prefix = f"{self._keys.prefix}:"
        served = {name for worker in workers for name in _listed(worker, "queues")}
        told = {queue.name for queue in queues if queue.problem}
        wrong, foreign, lasting = list[str](), list[str](), list[str]()
        async for key, kind, ttl in _scan(lane, re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"):
            name = key.removeprefix(prefix)
            shape = next((shape for shape in _SHAPES if re.fullmatch(shape[0], name, re.DOTALL)), None)
            if shape is None and kind != "stream":
                if name not in told:  # of these the round of the queues has spoken
                    (wrong if name in served else foreign).append(f"{name} ({kind})")
            elif shape is not None and kind != shape[1]:
                wrong.append(f"{name} ({kind})")
            elif shape is not None and shape[2] and ttl == -1:
                lasting.append(name)
        kinds = (f.WRONG_TYPE, wrong), (f.FOREIGN, foreign), (f.NO_TTL, lasting)
        return [kind.of(keys=_some(names), count=len(names)) for kind, names in kinds if names]


def _together(spaces: Sequence[tuple[str, list[Finding]]]) -> list[Finding]:
    """The findings of one check. What was not found in all keyspaces is told with those where it was."""
    found: dict[Finding, list[str]] = {}
    for prefix, findings in spaces:
        for finding in findings:
            found.setdefault(finding, []).append(prefix)
    return [
        finding if len(prefixes) == len(spaces) else finding.of(**finding.facts, keyspaces=_some(prefixes))
        for finding, prefixes in found.items()
    ]


async def _scan(lane: Lane, pattern: str) -> AsyncIterator[tuple[str, str, int]]:
    """Key, type and remaining ms (-1: for ever) of up to a hundred thousand keys."""
    cursor = "0"
    for _ in range(SCANNED):
        mark, page = await lane.call("SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
        replies = await lane.many([call for key in page for call in (("TYPE", key), ("PTTL", key))])
        for key, kind, ttl in zip(page, replies[::2], replies[1::2], strict=True):
            if isinstance(kind, bytes) and kind != b"none" and isinstance(ttl, int):
                yield _text(key), _text(kind), ttl
        cursor = _text(mark)
        if cursor == "0":
            return


def _silent(workers: Sequence[WorkerInfo], now: int) -> list[Finding]:
    quiet = [(worker, _instant(now) - worker.seen) for worker in workers]
    return [
        f.SILENT_WORKER.of(worker=worker.id, seconds=int(time.total_seconds()))
        for worker, time in quiet
        if time > SILENCE
    ]


def _orphan(consumer: dict[str, Any], live: set[str], idle: int) -> str:
    """The name of a consumer that is gone and holds nothing, else ''."""
    name = _text(consumer["name"])
    gone = consumer["idle"] > (idle if "~" in name else GONE)
    return name if gone and not consumer["pending"] and name not in live and name != "~released" else ""


def _lease(worker: WorkerInfo) -> int:
    text = worker.facts.get("lease", "")
    return int(text) if text.isdecimal() and len(text) < 12 else 30_000


def _listed(worker: WorkerInfo, fact: str) -> list[str]:
    return [part for part in worker.facts.get(fact, "").split(",") if part]


def _reasons(entries: Sequence[Any]) -> str:
    """How often each reason stands in these dead entries."""
    reasons = [_text(_pairs(flat).get("reason", b"?"))[:40] for _, flat in entries]
    return _some([f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons))])


def _pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _many(n: int) -> str:
    return f"{COUNTED} or more" if n >= COUNTED else str(n)


def _slot(record: bytes) -> int | None:
    """A slot on record in ms; None for what is none."""
    return int(record) if record.isdigit() and len(record) < 16 else None


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _when(ms: int) -> str:
    try:
        return _instant(ms).isoformat()
    except (ValueError, OverflowError, OSError):
        return str(ms)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

"""What can be wrong with a server or a deployment: each kind of finding, and the rules about a server. No I/O.

A kind's title never changes with what was found; that stands in `facts`. docs/runbook.md has every title.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["ok", "notice", "warning", "danger"]
Fact: TypeAlias = str | int

SEVERITIES: tuple[Severity, ...] = ("ok", "notice", "warning", "danger")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor found, or looked for and found in order (`ok`)."""

    severity: Severity
    title: str
    """What it is, in a few words; the same text each time."""
    meaning: str = ""
    """What follows from it."""
    advice: str = ""
    """What to do."""
    facts: Mapping[str, Fact] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """Names and numbers of this case."""

    def of(self, **facts: Fact) -> Finding:
        """This kind of finding, with the facts of a case: `maxmemory_policy` is told as `maxmemory-policy`."""
        told = {name.replace("_", "-"): value for name, value in facts.items()}
        return Finding(self.severity, self.title, self.meaning, self.advice, MappingProxyType(told))

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.title} ({facts})" if facts else self.title


# ---- the server ------------------------------------------------------------------------------------------------------

SILENT = Finding(
    "notice",
    "the server does not tell about itself",
    "This user may not ask INFO, so nothing is known of persistence, eviction, memory and replicas.",
    "Run the doctor as a user with +info, +config|get and +slowlog|get.",
)
OLD = Finding(
    "danger",
    "the server is too old",
    "Backstage's scripts need what came with Redis 7.0 and Valkey 7.2; a worker refuses to start.",
    "Upgrade the server.",
)
EVICTS = Finding(
    "danger",
    "the server may throw jobs away",
    "With this maxmemory-policy it evicts keys, and queues among them, when its memory is full.",
    "Set maxmemory-policy to noeviction, and give a cache a server of its own.",
)
WOULD_EVICT = Finding(
    "notice",
    "the server would throw jobs away if it had a memory limit",
    "maxmemory is 0 today; with a limit, this maxmemory-policy evicts queues.",
    "Set maxmemory-policy to noeviction.",
)
WRITES_FAIL = Finding(
    "danger",
    "the server can't write its data to disk",
    "The last write of the append-only file or the last snapshot failed. The server refuses writes (MISCONF), or loses "
    "them with its next restart.",
    "Look at the server's log: the disk is full or broken, or the folder is not writable.",
)
NOT_KEPT = Finding(
    "warning",
    "the server keeps nothing on disk",
    "A restart of the server loses every job.",
    "Set appendonly yes.",
)
SNAPSHOTS = Finding(
    "warning",
    "the server keeps snapshots only",
    "A restart of the server loses every job since its last snapshot, and finished ones come back.",
    "Set appendonly yes, with appendfsync everysec or always.",
)
LAZY_FSYNC = Finding(
    "notice",
    "the operating system decides when writes reach the disk",
    "With appendfsync no, a power failure may cost half a minute of jobs.",
    "Set appendfsync to everysec or always.",
)
FULL = Finding(
    "danger",
    "memory is nearly full",
    "When it is full, enqueues fail with RedisRefused; finishing goes on.",
    "Raise maxmemory, or find what fills it: dead letters, a backlog, other applications' keys.",
)
FILLING = Finding(
    "warning",
    "memory fills up",
    "More than three quarters of what the server may use are used.",
    "Watch it; raise maxmemory before it is full.",
)
REPLICA = Finding(
    "danger",
    "this server is a replica",
    "It refuses writes (READONLY), and what is read here is a copy.",
    "Point the URL at the primary, or use sentinel://, which finds it.",
)
LAGS = Finding(
    "warning",
    "a replica lags behind",
    "A failover to it would lose what it has not received.",
    "Look at the network and the load between the two.",
)
CROWDED = Finding(
    "warning",
    "the server has few connections left",
    "Above maxclients it refuses new connections; workers then can't come back after a loss.",
    "Raise maxclients, and look for processes that open connections without end (CLIENT LIST).",
)


def facts_of(info: str) -> dict[str, str]:
    """INFO as a mapping; empty where the server does not tell."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line and not line.startswith("#"))


def judge(info: Mapping[str, str], settings: Mapping[str, str]) -> list[Finding]:
    """What its INFO says about a server; `settings` are those of CONFIG GET that are known (save, appendfsync)."""
    if not info:
        return [SILENT.of()]
    return [
        *_version(info), *_eviction(info), *_persistence(info, settings), *_memory(info), *_replication(info),
        *_connections(info),
    ]  # fmt: skip


def dangers(info: Mapping[str, str]) -> list[Finding]:
    """What a worker tells of at its start: it can be known from one INFO."""
    return [finding for finding in judge(info, {}) if finding.severity == "danger"]


def worst(findings: Sequence[Finding]) -> Severity:
    """The severest of these; `ok` where there is none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")


def _version(info: Mapping[str, str]) -> list[Finding]:
    version = info.get("valkey_version") or info.get("redis_version") or ""
    major = re.match(r"\d+", version)
    return [OLD.of(version=version)] if major is not None and int(major[0]) < 7 else []


def _eviction(info: Mapping[str, str]) -> list[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return []
    limited = info.get("maxmemory", "0") != "0"
    return [(EVICTS if limited else WOULD_EVICT).of(maxmemory_policy=policy)]


def _persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> list[Finding]:
    appends = info.get("aof_enabled", "0") == "1"
    snapshots = settings.get("save", "unknown") != ""
    if appends and info.get("aof_last_write_status", "ok") != "ok":
        return [WRITES_FAIL.of(aof_last_write_status=info["aof_last_write_status"])]
    if snapshots and info.get("rdb_last_bgsave_status", "ok") != "ok":
        return [WRITES_FAIL.of(rdb_last_bgsave_status=info["rdb_last_bgsave_status"])]
    if not appends:
        return [SNAPSHOTS.of(save=settings.get("save", "unknown")) if snapshots else NOT_KEPT.of()]
    return [LAZY_FSYNC.of()] if settings.get("appendfsync") == "no" else []


def _memory(info: Mapping[str, str]) -> list[Finding]:
    limit, used = _number(info, "maxmemory"), _number(info, "used_memory")
    if limit == 0:
        limit, used = _number(info, "total_system_memory"), _number(info, "used_memory_rss")
    share = 100 * used // limit if limit else 0
    kind = FULL if share >= 90 else FILLING if share >= 75 else None
    return [kind.of(used=used, limit=limit, percent=share)] if kind else []


def _replication(info: Mapping[str, str]) -> list[Finding]:
    found: list[Finding] = []
    if info.get("role") == "slave":
        found.append(REPLICA.of(primary=f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"))
    for name, text in info.items():
        if re.fullmatch(r"slave\d+", name):
            facts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
            lag = _number(facts, "lag")
            if facts.get("state") != "online" or lag > 10:
                address = f"{facts.get('ip', '?')}:{facts.get('port', '?')}"
                found.append(LAGS.of(replica=address, state=facts.get("state", "?"), seconds=lag))
    return found


def _connections(info: Mapping[str, str]) -> list[Finding]:
    most, now = _number(info, "maxclients"), _number(info, "connected_clients")
    return [CROWDED.of(connected=now, maxclients=most)] if most and now * 10 > most * 9 else []


def _number(facts: Mapping[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isdecimal() else 0


# ---- beside the server -----------------------------------------------------------------------------------------------

CLOCK = Finding(
    "warning",
    "this machine's clock and the server's differ",
    "Delays count by the server's clock, but a datetime given to schedule() is compared with the producer's own: such "
    "jobs run early or late by the difference.",
    "Let both machines follow NTP.",
)
RIGHTS_UNKNOWN = Finding(
    "notice",
    "rights can't be looked at",
    "This user may not ask ACL DRYRUN, so it is not known what it may do.",
    "Run the doctor as a user with +acl|dryrun and +acl|whoami.",
)
NO_RIGHTS = Finding(
    "danger",
    "this user may neither enqueue, work, schedule nor look",
    "Every role needs a command or a key that its access rules don't grant.",
    "Grant the rights of the roles it has; which they need is in docs/runbook.md.",
)
LACKS = Finding(
    "notice",
    "this user lacks rights of a role",
    "It can't be used for that role. That is as it should be where it has another one.",
    "Grant what is missing if this user is to have the role.",
)
SLOW = Finding(
    "warning",
    "a script of ours was slow",
    "The server serves nobody else while a script runs.",
    "Look for a slow or swapping machine, and for fsyncs that hold up the server (appendfsync always).",
)
HELD_UP = Finding(
    "warning",
    "others' commands hold the server up",
    "It served nobody else for that long; jobs start late.",
    "Find who sends it (SLOWLOG GET), or give Backstage a server of its own.",
)

# ---- the deployment --------------------------------------------------------------------------------------------------

UNSERVED = Finding(
    "danger",
    "jobs wait in a queue that nobody consumes",
    "No live worker serves this queue: its jobs wait until one does.",
    "Start a worker with this queue in `queues`, or find out where its workers went.",
)
BACKLOG = Finding(
    "warning",
    "jobs wait long",
    "The first job that waits in this queue has been there for over ten minutes: more comes in than is done.",
    "Add workers or concurrency; look for tasks that got slow, and for a rank that starves lower ones.",
)
SILENT_WORKER = Finding(
    "warning",
    "a worker stopped beating",
    "It was killed, is frozen, or can't reach Redis. Its jobs run elsewhere when their leases have ended.",
    "Look at its process and its log. If it was killed on purpose, this passes within a minute.",
)
STUCK = Finding(
    "danger",
    "deliveries are pending far beyond any lease",
    "A live worker would have taken them over by now: none serves this queue, or none reclaims.",
    "Start a worker for this queue; if one runs, look for `reclaiming` in its log.",
)
ORPHANS = Finding(
    "notice",
    "consumers of workers that are gone",
    "They hold nothing and cost little. Any running worker of the queue deletes them within two minutes.",
    "Nothing, if a worker runs. Else they stay until one does.",
)
GROUPS = Finding(
    "danger",
    "a queue has more than one consumer group",
    "A worker deletes what it has finished, before the other group has seen it. New workers refuse to start.",
    "Delete the group that is not yours (XGROUP DESTROY), or set delete_on_ack=False.",
)
UNKNOWN_TASKS = Finding(
    "warning",
    "jobs whose task no live worker knows",
    "They are put off for an hour in all, and then go to the dead letter as unknown-task.",
    "Deploy the workers that have these tasks, or correct the name where the jobs are enqueued.",
)
OVERDUE = Finding(
    "danger",
    "a schedule is overdue",
    "Its last slot should have run by now: no scheduler and no worker with this schedule is at work.",
    "Start one. What was missed is caught up as the schedule's catch_up says.",
)
NEVER_SEEN = Finding(
    "warning",
    "a schedule was never started",
    "Nothing is on record for it: no scheduler and no worker with this schedule has run here.",
    "Start one; its slots count from then on.",
)
STALE_SCHEDULE = Finding(
    "notice",
    "a schedule has not run for over a month",
    "It was removed or renamed, runs rarely, or its scheduler is gone: the record alone doesn't tell.",
    "Give the doctor a worker that has it (`backstage doctor app:worker`), or HDEL the field.",
)
FUTURE_SCHEDULE = Finding(
    "warning",
    "a schedule's last slot lies in the future",
    "It was written while the server's clock ran ahead.",
    "Nothing: its scheduler begins it anew. Look at the server's clock.",
)
DYING = Finding(
    "warning",
    "jobs died within the last hour",
    "They were given up and wait in the dead letter.",
    "See why with `backstage dead list`; when it is mended, `backstage dead retry`.",
)
DEAD = Finding(
    "notice",
    "the dead letter holds jobs",
    "Nothing deletes them by itself.",
    "`backstage dead list`, then `dead retry` or `dead purge`.",
)
WRONG_TYPE = Finding(
    "danger",
    "a key holds another type than it should",
    "Whatever needs this key is refused: a queue is not served, or nothing is promoted.",
    "Find out who wrote it; RENAME it out of the way.",
)
FOREIGN = Finding(
    "notice",
    "keys under our prefix that are not ours",
    "Another application uses the same prefix, or an older version left them.",
    "Give one of the two another prefix.",
)
NO_TTL = Finding(
    "warning",
    "keys that should lapse and do not",
    "Somebody took their TTL away (PERSIST, a restore): they stay for ever.",
    "DEL them.",
)

KINDS: tuple[Finding, ...] = (
    SILENT, OLD, EVICTS, WOULD_EVICT, WRITES_FAIL, NOT_KEPT, SNAPSHOTS, LAZY_FSYNC, FULL, FILLING, REPLICA, LAGS,
    CROWDED, CLOCK, RIGHTS_UNKNOWN, NO_RIGHTS, LACKS, SLOW, HELD_UP, UNSERVED, BACKLOG, SILENT_WORKER, STUCK, ORPHANS,
    GROUPS, UNKNOWN_TASKS, OVERDUE, NEVER_SEEN, STALE_SCHEDULE, FUTURE_SCHEDULE, DYING, DEAD, WRONG_TYPE, FOREIGN,
    NO_TTL,
)  # fmt: skip

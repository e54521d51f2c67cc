"""Doctor: each thing that can be wrong is found on a real server, and a sound deployment has nothing to say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import pytest
from redis.asyncio import Redis

from backstage import (
    BackstageError,
    Client,
    CronTask,
    Doctor,
    Finding,
    Inspector,
    Job,
    Next,
    RedisRefused,
    RedisUnavailable,
    Scheduler,
    Worker,
)
from backstage import findings as f
from backstage.keys import Keys
from backstage.outcome import Dead
from backstage.rights import ROLES, commands
from backstage.stream import Stream
from support.deployments import Cluster, Replicated
from support.server import Server
from support.waiting import wait_until

Plant: TypeAlias = Callable[[Redis, Keys], Awaitable[object]]


@pytest.fixture
async def client(url: str, prefix: str) -> AsyncIterator[Client]:
    async with Client(url=url, prefix=prefix) as opened:
        yield opened


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


async def examined(client: Client, **options: Any) -> list[Finding]:
    """What is found about the deployment: the shared server's settings and log are for others."""
    found = await Doctor(client, **options).examine()
    about_server = {f.NOT_KEPT, f.SNAPSHOTS, f.SLOW, f.HELD_UP, f.FILLING, f.FULL}
    return [each for each in found if each.title not in {kind.title for kind in about_server}]


def wrong(found: list[Finding]) -> list[str]:
    return [each.title for each in found if each.severity != "ok"]


async def test_a_sound_deployment_has_nothing_wrong(client: Client, url: str, prefix: str) -> None:
    """A worker that runs what comes, with schedules, delays and retries: every check is ok."""
    schedule = CronTask("@yearly", "job")
    worker = Worker(url=url, prefix=prefix, schedules=[schedule])
    done: list[int] = []

    @worker.on("job")
    async def job(n: int) -> None:
        done.append(n)

    async with worker.running():
        await client.enqueue("job", 1, dedupe="k")
        await client.enqueue("job", 1, delay=timedelta(hours=1))
        await wait_until(lambda: done)
        await wait_until(lambda: _recorded(client.redis, Keys(prefix), schedule.name))
        found = await examined(client, schedules=[schedule])
        assert wrong(found) == [], found
        assert {"workers", "queues", "tasks", "schedules", "keys", "clocks", "access rights"} <= {
            e.title for e in found
        }
        assert wrong(await examined(worker)) == []


async def _recorded(redis: Redis, keys: Keys, schedule: str) -> bool:
    return bool(await redis.hexists(keys.cron, schedule))


async def beat(redis: Redis, keys: Keys, *, consumer: str = "w~1", queues: str = "default", ago: int = 0) -> None:
    """A worker in the registry, whose last beat was some ms ago."""
    seconds, micros = await redis.time()
    await redis.zadd(keys.workers, {consumer: seconds * 1000 + micros // 1000 - ago})
    await redis.pexpire(keys.workers, 60_000)
    facts = {"consumer": consumer, "queues": queues, "tasks": "known", "lease": "1000"}
    await redis.hset(keys.worker(consumer.split("~")[0]), mapping=facts)
    await redis.pexpire(keys.worker(consumer.split("~")[0]), 60_000)


async def waiting(redis: Redis, keys: Keys, ago: int, task: str = "known") -> None:
    """A job that has waited for so many ms."""
    await redis.xgroup_create(keys.stream("default"), "backstage-workers", "0", mkstream=True)
    entry = {"taskName": task, "payload": "1", "enqueuedAt": "1"}
    await redis.xadd(keys.stream("default"), entry, id=f"{int(time.time() * 1000) - ago}-0")


async def unserved(redis: Redis, keys: Keys) -> None:
    await waiting(redis, keys, 20_000)


async def backlog(redis: Redis, keys: Keys) -> None:
    await beat(redis, keys)
    await waiting(redis, keys, 700_000)


async def unknown_task(redis: Redis, keys: Keys) -> None:
    await beat(redis, keys)
    await waiting(redis, keys, 0, task="unknown")


async def put_off(redis: Redis, keys: Keys) -> None:
    await beat(redis, keys)
    member = f'{{"taskName":"gone","payload":"1","streamKey":"{keys.stream("default")}","since":"1"}}'
    await redis.zadd(keys.retries, {member: 4_000_000_000_000, "no json": 4_000_000_000_001})


async def silent(redis: Redis, keys: Keys) -> None:
    await beat(redis, keys, ago=30_000)


async def stuck(redis: Redis, keys: Keys) -> None:
    await waiting(redis, keys, 0)
    ((_, ((entry, _),)),) = await redis.xreadgroup("backstage-workers", "gone~1", {keys.stream("default"): ">"})
    await redis.xclaim(keys.stream("default"), "backstage-workers", "gone~1", 0, [entry], idle=600_000)


async def groups(redis: Redis, keys: Keys) -> None:
    await redis.xgroup_create(keys.stream("default"), "backstage-workers", "0", mkstream=True)
    await redis.xgroup_create(keys.stream("default"), "others", "0")


async def died(redis: Redis, keys: Keys) -> None:
    await redis.xadd(keys.dead_letter("default"), {"taskName": "t", "payload": "1", "reason": "error"})


async def dead(redis: Redis, keys: Keys) -> None:
    await redis.xadd(keys.dead_letter("default"), {"taskName": "t", "payload": "1", "reason": "error"}, id="1-1")


async def stale_schedule(redis: Redis, keys: Keys) -> None:
    await redis.hset(keys.cron, mapping={"monthly": 1, "odd": "x", "long": "9" * 5000})


async def future_schedule(redis: Redis, keys: Keys) -> None:
    await redis.hset(keys.cron, "daily", int(time.time() * 1000) + 3_600_000)


async def wrong_queue(redis: Redis, keys: Keys) -> None:
    await redis.set(keys.stream("default"), "x")


async def wrong_set(redis: Redis, keys: Keys) -> None:
    await redis.set(keys.scheduled, "x")


async def wrong_served(redis: Redis, keys: Keys) -> None:
    await beat(redis, keys, queues="default,emails")
    await redis.set(keys.stream("emails"), "x")


async def foreign(redis: Redis, keys: Keys) -> None:
    await redis.set(f"{keys.prefix}:something", "x")
    await redis.set(f"{keys.prefix}:e\nvil\udcff".encode("utf-8", "surrogateescape"), "x")


async def lasting(redis: Redis, keys: Keys) -> None:
    await redis.set(keys.dedupe("k"), "x")


@pytest.mark.parametrize(
    ("plant", "kind", "facts"),
    [
        (unserved, f.UNSERVED, {"queue": "default", "waiting": 1}),
        (backlog, f.BACKLOG, {"queue": "default"}),
        (unknown_task, f.UNKNOWN_TASKS, {"tasks": "unknown"}),
        (put_off, f.UNKNOWN_TASKS, {"queue": "default", "tasks": "gone"}),
        (silent, f.SILENT_WORKER, {"worker": "w"}),
        (stuck, f.STUCK, {"deliveries": 1, "consumers": "gone~1", "seconds": 600}),
        (groups, f.GROUPS, {"groups": "backstage-workers, others"}),
        (died, f.DYING, {"died": "1", "dead": 1, "why": "1 error"}),
        (dead, f.DEAD, {"queue": "default", "dead": 1}),
        (stale_schedule, f.STALE_SCHEDULE, {"schedule": "monthly"}),
        (future_schedule, f.FUTURE_SCHEDULE, {"schedule": "daily"}),
        (wrong_queue, f.WRONG_TYPE, {"queue": "default"}),
        (wrong_set, f.WRONG_TYPE, {"keys": "scheduled (string)", "count": 1}),
        (wrong_served, f.WRONG_TYPE, {"keys": "emails (string)"}),
        (foreign, f.FOREIGN, {"count": 2}),
        (lasting, f.NO_TTL, {"keys": "dedupe:k"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_is_wrong_with_a_deployment_is_found(
    plant: Plant, kind: Finding, facts: dict[str, object], client: Client, redis: Redis, keys: Keys
) -> None:
    """One thing is planted, that one thing is found, with its facts."""
    await plant(redis, keys)
    found = await examined(client)
    assert wrong(found) == [kind.title]
    (finding,) = (each for each in found if each.title == kind.title)
    assert finding.severity == kind.severity
    assert {name: finding.facts[name] for name in facts} == facts


async def test_a_queue_that_another_sdk_serves_is_served(client: Client, redis: Redis, keys: Keys) -> None:
    """Its consumers are not in our registry; that they read a moment ago tells."""
    await waiting(redis, keys, 20_000)
    await redis.xadd(keys.stream("default"), {"taskName": "t", "payload": "1"})
    await redis.xreadgroup("backstage-workers", "theirs", {keys.stream("default"): ">"}, count=1)
    assert wrong(await examined(client)) == []


async def test_the_doctor_knows_every_key(client: Client, redis: Redis, keys: Keys) -> None:
    """A key of docs/protocol.md is never called foreign."""
    names = {
        name: getattr(keys, name) for name in Keys.__slots__ if name not in ("prefix", "control")
    } | {
        "stream": keys.stream("q"), "dead_letter": keys.dead_letter("q"), "dedupe": keys.dedupe(":k:"),
        "call": keys.call("x"), "worker": keys.worker("w"), "stats": keys.stats("q", 1),
    }  # fmt: skip
    missing = {name for name in dir(keys) if not name.startswith("_")} - {"prefix", "control", *names}
    assert not missing
    for key in names.values():
        await redis.lpush(key, "planted")  # whatever it is, it is known by its name
    (told,) = (each for each in await examined(client) if each.title == f.FOREIGN.title)
    assert told.facts["keys"] == "q (list)", "nobody has heard of a queue of that name"


@pytest.mark.parametrize(
    ("ago", "kind"), [(None, f.NEVER_SEEN), (100_000, None), (7_300_000, f.OVERDUE)], ids=["never", "fine", "overdue"]
)
async def test_a_schedule_that_is_known_is_overdue_or_not(
    ago: int | None, kind: Finding | None, client: Client, redis: Redis, keys: Keys
) -> None:
    """Its next slot is computed from the last one on record."""
    if ago is not None:
        await redis.hset(keys.cron, "hourly", int(time.time() * 1000) - ago)
    found = await examined(client, schedules=[CronTask("@hourly", "job", name="hourly")])
    if ago != 100_000:
        assert wrong(found) == ([kind.title] if kind else [])
    else:  # the full hour may have struck in between
        assert f.NEVER_SEEN.title not in wrong(found)


# ---- the server ------------------------------------------------------------------------------------------------------


async def about(server: Server, **options: Any) -> dict[str, Finding]:
    async with Client(url=options.pop("url", server.url), **options) as client:
        return {each.title: each for each in await Doctor(client).examine()}


async def test_settings_of_a_server_are_found(own_server: Server) -> None:
    """Persistence, eviction and memory, as the server itself tells."""
    with own_server.client() as admin:
        admin.config_set("save", "")
        admin.config_set("maxmemory-policy", "allkeys-lru")
        found = await about(own_server)
        assert {f.NOT_KEPT.title, f.WOULD_EVICT.title} <= set(found)
        used = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory", int(used / 0.85))
        admin.config_set("save", "3600 1")
        found = await about(own_server)
        assert {f.SNAPSHOTS.title, f.EVICTS.title, f.FILLING.title} <= set(found)
        assert found[f.SNAPSHOTS.title].facts["save"] == "3600 1"
        admin.config_set("maxmemory", "0")


async def test_a_replica_and_its_lag_are_found(own_server: Server) -> None:
    """On the replica, that it is one; on the primary, one that does not keep up."""
    with Server() as replica, own_server.client() as admin:
        admin.config_set("repl-diskless-sync-delay", 0)
        with replica.client() as follower:
            follower.replicaof("127.0.0.1", str(own_server.port))
            await wait_until(lambda: follower.info("replication")["master_link_status"] == "up")
            await wait_until(lambda: admin.info("replication")["slave0"]["state"] == "online")
            assert f.LAGS.title not in await about(own_server)
        async with Client(url=replica.url, connect_timeout=300) as client:
            with pytest.raises(BackstageError):
                await client.enqueue("job")
            found = {each.title: each for each in await Doctor(client).examine()}
        assert found[f.REPLICA.title].facts["primary"] == f"127.0.0.1:{own_server.port}"
        assert admin.info("replication")["connected_slaves"] == 1


async def test_slow_commands_are_found(own_server: Server) -> None:
    """Whoever holds the server up for a tenth of a second is named."""
    own_server.stop()
    own_server.start("--enable-debug-command", "yes")
    with own_server.client() as admin:
        admin.execute_command("DEBUG", "SLEEP", "0.15")
    found = (await about(own_server))[f.HELD_UP.title]
    assert (found.facts["command"], found.facts["times"]) == ("DEBUG", 1)
    assert int(found.facts["longest-ms"]) >= 100


def grant(server: Server, *rules: str) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "app", "reset", "on", "nopass", *rules)


def verbs(*roles: str) -> list[str]:
    """Access rules for the commands of these roles."""
    containers = {"SCRIPT", "CLIENT", "XGROUP", "XINFO"}
    every = {c for role in roles for c in commands(role, "x")}
    return sorted({f"+{c[0]}|{c[1]}".lower() if c[0] in containers else f"+{c[0]}".lower() for c in every})


@pytest.mark.parametrize("role", ROLES)
async def test_rights_are_told_role_by_role(role: str, own_server: Server) -> None:
    """A user with the rights of one role and of the reader lacks none of them, and is told what else it can't be."""
    url = own_server.url.replace("//", "//app@")
    asks = ("+acl|whoami", "+acl|dryrun", "+info")
    grant(own_server, "~backstage:*", "&backstage:*", *asks, *verbs(role, "reader"), "+pttl", "+xinfo", "+client|kill")
    lacking = {each.facts["role"] for each in await _all(url) if each.title == f.LACKS.title}
    granted = set(verbs(role, "reader"))
    assert lacking == {each for each in ROLES if set(verbs(each)) - granted}
    assert role not in lacking


async def test_the_rights_of_each_role_are_enough_for_it(own_server: Server) -> None:
    """Producer, worker, scheduler and reader, each as a user of its own: jobs run, wait, fail and die."""
    with own_server.client() as admin:
        for role in ROLES:
            admin.execute_command("ACL", "SETUSER", role, "on", "nopass", "~backstage:*", "&backstage:*", *verbs(role))
    url = {role: own_server.url.replace("//", f"//{role}@") for role in ROLES}
    worker, ran = Worker(url=url["worker"], attempts=2, backoff={"type": "fixed", "delay": 1}), Counter[str]()

    @worker.on("good")
    async def good(n: int) -> Next | None:
        ran[f"good {n}"] += 1
        return Next("good", 2) if n == 1 else None

    @worker.on("bad")
    async def bad() -> None:
        ran["bad"] += 1
        raise ValueError

    schedule = CronTask("* * * * *", "good", args=4, name="each")
    with own_server.client() as admin:
        admin.hset("backstage:cron", "each", "1000000000000")
    scheduler = Scheduler(url=url["scheduler"], schedules=[schedule])
    async with Client(url=url["producer"]) as producer, Client(url=url["reader"]) as reader:
        await producer.enqueue_many([Job("good", 1), Job("good", 3, delay=20, dedupe="k"), Job("bad")])
        async with worker.running(), scheduler.running():
            await wait_until(lambda: ran == {f"good {n}": 1 for n in (1, 2, 3, 4)} | {"bad": 2})
            inspector = Inspector(reader)
            await wait_until(lambda: _died(inspector))
            assert [each.task for each in await inspector.dead("default")] == ["bad"]
            assert len(await inspector.workers()) == 1


async def _died(inspector: Inspector) -> bool:
    info = await inspector.queues()
    return info.dead == 1 and not info.waiting + info.running + info.scheduled


@pytest.mark.parametrize("where", ["sentinel", "cluster"])
async def test_it_looks_where_the_keyspace_is(where: str) -> None:
    """At the primary that Sentinel names, at the node of the cluster that owns the slot."""
    with Replicated() if where == "sentinel" else Cluster("{jobs}") as deployment:
        async with Client(url=deployment.url, prefix="{jobs}") as client:
            await client.enqueue("job")
            await client.redis.xadd("{jobs}:default:dead-letter", {"taskName": "t", "reason": "error"}, id="1-1")
            assert wrong(await Doctor(client).examine()) == [f.NOT_KEPT.title, f.DEAD.title]


async def test_a_user_without_acl_dryrun_or_info_is_examined_all_the_same(own_server: Server) -> None:
    """What can't be known is said to be unknown."""
    grant(own_server, "~backstage:*", *verbs("reader"))
    titles = {each.title for each in await _all(own_server.url.replace("//", "//app@"))}
    assert {f.SILENT.title, f.RIGHTS_UNKNOWN.title} <= titles


async def test_a_user_with_no_rights_at_all_is_an_error(own_server: Server) -> None:
    """It can't look; that is refused with what was missing."""
    grant(own_server)
    with pytest.raises(RedisRefused, match="NOPERM"):
        await _all(own_server.url.replace("//", "//app@"))


async def _all(url: str) -> list[Finding]:
    async with Client(url=url) as client:
        return await Doctor(client).examine()


async def test_without_a_server_it_says_so(own_server: Server) -> None:
    """RedisUnavailable, not findings."""
    own_server.stop()
    async with Client(url=own_server.url, connect_timeout=300) as client:
        with pytest.raises(RedisUnavailable):
            await Doctor(client).examine()


async def test_a_job_that_died_in_a_real_run_is_told_with_its_reason(client: Client, redis: Redis, keys: Keys) -> None:
    """What the finishing script wrote is what the doctor reads."""
    stream = Stream(redis, prefix=keys.prefix, queues=["default"], consumer="w~1")
    await stream.enqueue("t", 1)
    (taken,) = await stream.take(1)
    await stream.finish([(taken, Dead("unknown-task", "no"))])
    await stream.aclose()
    found = {each.title: each for each in await examined(client)}
    assert found[f.DYING.title].facts["why"] == "1 unknown-task"

"""A worker that dies at any place between reading a job and having finished it, whatever becomes of the job there.

All cases run side by side, once, forked from one process that has imported all: a victim that kills itself at its
place, then a survivor in the same keyspace. Each test then looks at one case.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import redis

from backstage import Client
from support.killpoints import POINTS
from support.process import Process
from support.server import Server

SOURCE = """
sys.path.insert(0, settings["tests"])
from collections import deque
from support import killpoints

def made(prefix, victim):
    worker = Worker(
        url=settings["url"], prefix=prefix, idle_timeout=600, reclaimer_interval=150, concurrency=2, grace_period=30,
        backoff=Backoff("fixed", delay=20),
    )
    tell = lambda run: say("start", prefix, run.job.task, run.job.id, run.attempt)

    @worker.on("done")
    async def done(n: int, run: Run):
        tell(run)

    @worker.on("next")
    async def next(n: int, run: Run):
        tell(run)
        return [Next("leaf", n), Next("leaf", n, delay=30)]

    @worker.on("leaf")
    async def leaf(n: int, run: Run):
        tell(run)

    @worker.on("again")
    async def again(n: int, run: Run):
        tell(run)
        if run.attempt == 1:
            raise ValueError("not yet")

    @worker.on("discard")
    async def discard(n: int, run: Run):
        tell(run)
        raise Discard("no use")

    @worker.on("soft", attempts=1, soft_timeout=30)
    async def soft(n: int, run: Run):
        tell(run)
        await asyncio.sleep(60)

    @worker.on("hard", hard_timeout=30)
    async def hard(n: int, run: Run):
        tell(run)
        await asyncio.sleep(60)

    @worker.on("invalid")
    async def invalid(n: str, run: Run):
        tell(run)

    @worker.on("released")
    async def released(n: int, run: Run):
        tell(run)
        if victim:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    return worker

async def survive(worker, prefix):
    async with worker.running():
        while True:
            async with worker.redis.pipeline() as pipe:
                pipe.zcard(f"{prefix}:scheduled").zcard(f"{prefix}:retries").xlen(f"{prefix}:default")
                left = await pipe.execute()
            if not any(left):
                return
            await asyncio.sleep(0.02)

def victim(prefix, point):
    killpoints.arm(point)
    made(prefix, True).run()

def survivor(prefix, point):
    asyncio.run(survive(made(prefix, False), prefix))

def fork(child, *args):
    pid = os.fork()
    if not pid:
        try:
            child(*args)
        except BaseException as exc:
            say("failed", args[0], repr(exc))
        os._exit(0)
    return pid

todo, running = deque(settings["cases"]), {}
while todo or running:
    while todo and len(running) < settings["at_once"]:
        case = todo.popleft()
        running[fork(victim, *case)] = (case, True)
    pid, status = os.wait()
    case, was_victim = running.pop(pid)
    say("ended", case[0], "victim" if was_victim else "survivor", os.waitstatus_to_exitcode(status))
    if was_victim:
        running[fork(survivor, *case)] = (case, False)
say("over")
"""


class End(NamedTuple):
    """What stands in Redis when all is over."""

    done: int
    again: int
    dead: str = ""
    runs: int = 1
    """Of the job itself, if nobody dies."""
    leaves: int = 0


ENDS = {
    "done": End(1, 0),
    "next": End(3, 0, leaves=2),
    "again": End(1, 1, runs=2),
    "discard": End(0, 0, "discarded"),
    "soft": End(0, 0, "timeout"),
    "hard": End(0, 0, "timeout"),
    "invalid": End(0, 0, "invalid-payload", runs=0),
    "released": End(1, 0, runs=2),
}
"""Every outcome: with and without successors, retry, all roads to the dead letter, given back."""

Facts: TypeAlias = list[tuple[str, ...]]
CASES = [(point, kind) for point in POINTS for kind in ENDS]
AT_ONCE = 24


def keyspace(point: str, kind: str) -> str:
    return f"kill-{point}-{kind}"


@pytest.fixture(scope="module")
def facts(server: Server) -> Facts:
    """What the processes of all cases said."""
    return asyncio.run(_all(server))


async def _all(server: Server) -> Facts:
    cases: list[Any] = []
    for point, kind in CASES:
        async with Client(url=server.url, prefix=keyspace(point, kind)) as client:
            await client.enqueue(kind, 1)
        cases.append([keyspace(point, kind), point])
    tests = str(Path(__file__).parents[1])
    with Process(SOURCE, url=server.url, cases=cases, tests=tests, at_once=AT_ONCE) as process:
        await process.said("over", timeout=50)
        return [fact.words for fact in process.facts()]


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_there_leaves_its_job_to_be_finished_once(
    point: str, kind: str, facts: Facts, server: Server
) -> None:
    """The victim dies at that place; afterwards every effect is there once, and at most one run was in vain."""
    prefix, end = keyspace(point, kind), ENDS[kind]
    assert ("ended", prefix, "victim", str(-signal.SIGKILL)) in facts
    assert ("ended", prefix, "survivor", "0") in facts
    assert not [fact for fact in facts if fact[:2] == ("failed", prefix)]
    starts = [fact[2:] for fact in facts if fact[:2] == ("start", prefix)]
    own = [start for start in starts if start[0] == kind]
    assert len(own) <= end.runs + 1
    assert len({id for task, id, _ in starts if task == "leaf"}) == end.leaves
    with server.client() as client:
        _assert_ends(client, prefix, end)


def _assert_ends(client: redis.Redis, prefix: str, end: End) -> None:
    dead = [fields["reason"] for _, fields in client.xrange(f"{prefix}:default:dead-letter")]
    assert dead == ([end.dead] if end.dead else [])
    counts: dict[str, int] = {}
    for key in client.scan_iter(match=f"{prefix}:stats:*", count=1000):
        for what, count in client.hgetall(key).items():
            counts[what] = counts.get(what, 0) + int(count)
    assert (counts.get("done", 0), counts.get("again", 0), counts.get("dead", 0)) == (end.done, end.again, len(dead))
    assert client.xpending(f"{prefix}:default", "backstage-workers")["pending"] == 0

"""Jobs and handlers that go wrong: each ends where it should, and the worker lives."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from scene import Keyspace, Settings

from backstage import Backoff, Client, Job, Next, Run, Worker
from support.process import Process
from support.waiting import wait_until


@dataclass
class Order:
    id: int


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """One that knows `good`."""
    worker = Worker(**settings, attempts=2, backoff=Backoff("fixed", delay=10))

    @worker.on("good")
    async def good() -> None:
        done.append(time.monotonic())

    done: list[float] = []
    worker.done = done  # type: ignore[attr-defined]
    return worker


async def lives(worker: Worker, client: Client) -> None:
    """A good job is done within a second."""
    done: list[float] = worker.done  # type: ignore[attr-defined]
    before, asked = len(done), time.monotonic()
    await client.enqueue("good")
    await wait_until(lambda: len(done) > before)
    assert done[-1] - asked < 1


async def test_an_unknown_task_waits_for_a_worker_that_knows_it_and_uses_up_no_attempt(
    settings: Settings, worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """It stands in `retries` without a failed run; a worker that knows it runs it as its first attempt."""
    runs: list[tuple[str, int]] = []
    knowing = Worker(**settings)

    @knowing.on("new")
    async def new(text: str, run: Run) -> None:
        runs.append((text, run.attempt))

    async with worker.running():
        await client.enqueue("new", "hello", attempts=1)
        await wait_until(lambda: keyspace.redis.zcard(keyspace.key("retries")))
        (member,) = await keyspace.redis.zrange(keyspace.key("retries"), 0, -1)
        assert "attempt" not in json.loads(member)
        await lives(worker, client)
    async with knowing.running():
        await wait_until(lambda: runs)
        await wait_until(keyspace.settled)
    assert runs == [("hello", 1)]
    assert not await keyspace.dead()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"payload": "{}"}, "malformed"),
        ({"taskName": "order"}, "malformed"),
        ({"taskName": "order", "payload": '{"id": '}, "malformed"),
        ({"taskName": b"\xff\xfe", "payload": "{}"}, "malformed"),
        ({"taskName": "order", "payload": b"\xff\xfe"}, "malformed"),
        ({"taskName": "order", "payload": "[" * 100_000}, "invalid-payload"),
        ({"": ""}, "malformed"),
        ({"taskName": "order", "payload": '{"id": "seven"}', "enqueuedAt": "1", "jobId": "j"}, "invalid-payload"),
        ({"taskName": "order", "payload": "[1]"}, "invalid-payload"),
        ({"taskName": "order", "payload": "null", "enqueuedAt": "x"}, "invalid-payload"),
    ],
    ids=[
        "no task", "no payload", "half", "task bytes", "bytes", "nested", "empty", "wrong type", "wrong shape", "null",
    ],
)  # fmt: skip
async def test_an_entry_that_cannot_be_read_is_dead_on_its_first_delivery(
    fields: dict[Any, Any], reason: str, worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """With its reason and its fields, and the next good job is done within a second."""

    @worker.on("order")
    async def order(order: Order) -> None: ...

    async with worker.running():
        await keyspace.redis.xadd(keyspace.key("default"), fields)
        await lives(worker, client)
        await wait_until(lambda: keyspace.redis.xlen(keyspace.key("default:dead-letter")))
    letter = keyspace.key("default:dead-letter")
    ((_, dead),) = await keyspace.redis.execute_command("XRANGE", letter, "-", "+", NEVER_DECODE=True)
    assert dead[b"reason"] == reason.encode()
    assert dead[b"deliveryCount"] == b"1"
    for name, value in fields.items():
        assert dead[name.encode()] == (value if isinstance(value, bytes) else value.encode())
    assert await keyspace.settled()


def leave() -> None:
    raise SystemExit(3)


def interrupt() -> None:
    raise KeyboardInterrupt


def cancel() -> None:
    raise asyncio.CancelledError


def generator_exit() -> None:
    raise GeneratorExit


def stop_iteration() -> None:
    raise StopIteration


def group() -> None:
    raise BaseExceptionGroup("several", [SystemExit(1), ValueError("x")])


RAISES: list[Callable[[], None]] = [leave, interrupt, cancel, generator_exit, stop_iteration, group]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after an await"])
@pytest.mark.parametrize("raises", RAISES, ids=lambda fn: fn.__name__)
async def test_a_handler_that_raises_what_ends_programs_is_a_failed_run(
    raises: Callable[[], None], late: bool, worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """SystemExit, KeyboardInterrupt, CancelledError and their like: retried, then dead as `error`; the worker lives."""
    runs: list[int] = []

    @worker.on("bad")
    async def bad(run: Run) -> None:
        runs.append(run.attempt)
        if late:
            await asyncio.sleep(0.001)
        raises()

    @worker.on("bare")
    async def bare(payload: int) -> None:
        raises()

    @worker.on("thread")
    def thread() -> None:
        raises()

    @worker.on("limited", soft_timeout=10_000, hard_timeout=20_000)
    async def limited() -> None:
        if late:
            await asyncio.sleep(0.001)
        raises()

    async with worker.running():
        for task in ("bad", "bare", "thread", "limited"):
            await client.enqueue(task, 1)
        await lives(worker, client)
        await wait_until(lambda: keyspace.redis.xlen(keyspace.key("default:dead-letter")), message="dead")
        await wait_until(keyspace.settled)
    dead = await keyspace.dead()
    assert sorted(each["taskName"] for each in dead) == ["bad", "bare", "limited", "thread"]
    assert {each["reason"] for each in dead} == {"error"}
    assert {each["attempt"] for each in dead} == {"1"}
    assert runs == [1, 2]


async def test_a_task_that_cancels_itself_is_a_failed_run(worker: Worker, client: Client, keyspace: Keyspace) -> None:
    """`asyncio.current_task().cancel()` in a handler hits its own run and nothing else."""

    @worker.on("suicidal")
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async with worker.running():
        await client.enqueue("suicidal")
        await wait_until(keyspace.dead)
        await lives(worker, client)
        await wait_until(keyspace.settled)
    (dead,) = await keyspace.dead()
    assert (dead["reason"], dead["error"][:14]) == ("error", "CancelledError")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Next("good", object()), "object"),
        (Next("good", {"f": print}), "builtin_function"),
        ({"next": "good", "payload": 1, "priorty": "urgent"}, "priorty"),
        ({"next": "good", "delay": "soon"}, "delay"),
        ({"next": "no good name"}, "no good name"),
        ([Next("good"), "good"], "Next"),
    ],
    ids=["payload", "inside", "unknown key", "bad delay", "bad name", "mixed list"],
)
async def test_a_result_that_cannot_come_next_is_a_failed_run(
    result: object, said: str, worker: Worker, client: Client, keyspace: Keyspace
) -> None:
    """A payload that JSON can't carry, a mapping with unknown keys: retried, then dead, and nothing was enqueued."""

    @worker.on("bad")
    async def bad() -> object:
        return result

    async with worker.running():
        await client.enqueue("bad")
        await wait_until(keyspace.dead)
        await wait_until(keyspace.settled)
        assert worker.done == []  # type: ignore[attr-defined]
        await lives(worker, client)
    (dead,) = await keyspace.dead()
    assert dead["reason"] == "error"
    assert said in dead["error"]
    assert dead["attempt"] == "1"


async def test_a_handler_that_leaks_tasks_harms_nobody(settings: Settings, client: Client, keyspace: Keyspace) -> None:
    """Tasks that it left behind fail, or never end: its jobs are done, others run, the worker stops in good order."""
    source = """
leaked = []

@worker.on("leaks")
async def leaks(n):
    async def fail():
        raise ValueError("leaked")
    leaked.append(asyncio.create_task(asyncio.sleep(60)))
    leaked.append(asyncio.create_task(fail()))
    say("leaked", n)

@worker.on("good")
async def good(n):
    say("good", n)
"""
    with Process.worker(source, **settings, grace_period=300) as worker:
        await worker.consuming()
        await client.enqueue_many([Job("leaks", n) for n in range(20)])
        await client.enqueue("good", 1)
        await worker.said("good")
        await worker.said("leaked", times=20)
        await wait_until(keyspace.settled)
        worker.signal(signal.SIGTERM)
        begun = time.monotonic()
        assert await worker.ended() == 0
        assert time.monotonic() - begun < 2
    assert not await keyspace.dead()

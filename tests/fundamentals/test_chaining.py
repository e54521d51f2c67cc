"""Chaining: what a handler returns comes next, exactly when it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import Inspector, Next, Priority, Queue, Run, Worker
from support.waiting import wait_until


@dataclass
class Order:
    id: str


async def test_next(worker: Worker) -> None:
    """A handler that returns `Next(task, payload)` enqueues that job with its own finish."""
    done: list[str] = []

    @worker.on("payment.process")
    async def process(order: Order) -> Next:
        done.append(f"paid {order.id}")
        return Next(receipt, order)

    @worker.on("email.receipt")
    async def receipt(order: Order) -> None:
        done.append(f"wrote {order.id}")

    async with worker.running():
        await process.enqueue(Order("7"))
        await wait_until(lambda: done == ["paid 7", "wrote 7"])


async def test_the_mapping(worker: Worker) -> None:
    """`{"next": …, "payload": …, "delay": …}` says the same, as in Backstage's SDKs in other languages."""
    done: list[tuple[str, object, float]] = []

    @worker.on("first")
    async def first() -> dict[str, object]:
        done.append(("first", None, time.time()))
        return {"next": "second", "payload": {"n": 1}, "delay": 100}

    @worker.on("second")
    async def second(payload: dict[str, int]) -> None:
        done.append(("second", payload, time.time()))

    async with worker.running():
        await first.enqueue()
        await wait_until(lambda: len(done) == 2)
    assert done[1][:2] == ("second", {"n": 1})
    assert 0.1 <= done[1][2] - done[0][2] < 0.4


async def test_several(worker: Worker) -> None:
    """A list of Next enqueues them all."""
    done: list[int] = []

    @worker.on("fan.out")
    async def fan_out() -> list[Next]:
        return [Next("part", n) for n in range(5)]

    worker.on("part", done.append)
    async with worker.running():
        await fan_out.enqueue()
        await wait_until(lambda: sorted(done) == [0, 1, 2, 3, 4])


async def test_options_of_what_comes_next(worker: Worker) -> None:
    """A Next takes the options of an enqueue."""
    seen: list[Run] = []
    went_out_at: list[float] = []

    @worker.on("parent")
    async def parent() -> Next:
        went_out_at.append(time.time())
        return Next(
            "child", 1, priority=Priority.LOW, delay=timedelta(milliseconds=60), attempts=2, timeout=9_000,
            backoff={"type": "fixed", "delay": 5}, dedupe="only-one",
        )  # fmt: skip

    @worker.on("child")
    async def child(n: int, run: Run) -> None:
        seen.append(run)

    async with worker.running():
        await parent.enqueue()
        await parent.enqueue()
        await wait_until(lambda: len(went_out_at) == 2 and seen)
    (run,) = seen
    assert run.job.enqueued_at is not None
    assert (run.job.queue, run.job.attempts, run.job.timeout) == ("low", 2, 9_000)
    assert run.job.backoff is not None
    assert run.job.backoff.delay == 5


async def test_where_it_goes(url: str, prefix: str, redis: Redis) -> None:
    """By its own queue or priority, else by its task's, else to `default`: the same rule as for an enqueue."""
    worker = Worker(url=url, prefix=prefix, queues=["start"])

    @worker.on("start", queue="start")
    async def start() -> list[Next]:
        return [
            Next("routed"),
            Next(routed),
            Next("strange"),
            Next("strange", queue=Queue("q")),
            Next(routed, priority="low"),
        ]

    @worker.on("routed", queue=Queue("own"), attempts=1)
    async def routed() -> None:
        await asyncio.sleep(60)

    async with worker.running():
        await start.enqueue()
        await wait_until(lambda: redis.xlen(f"{prefix}:low"))
        lengths = [await redis.xlen(f"{prefix}:{queue}") for queue in ("start", "own", "default", "q", "low")]
        assert lengths == [0, 2, 1, 1, 1]
        worker._life.hurrying.set()  # type: ignore[union-attr]


async def test_only_when_its_parent_is_done(worker: Worker) -> None:
    """A run that fails enqueues nothing; its successor exists once, for the run that succeeds."""
    done: list[str] = []

    @worker.on("shaky", backoff={"type": "fixed", "delay": 0})
    async def shaky(run: Run) -> Next:
        done.append(f"run {run.attempt}")
        if run.attempt < 3:
            raise ConnectionError
        return Next("after", f"run {run.attempt}")

    worker.on("after", lambda of: done.append(f"after {of}"))
    async with worker.running():
        await shaky.enqueue()
        await wait_until(lambda: len(done) == 4)
    assert done == ["run 1", "run 2", "run 3", "after run 3"]


async def test_a_long_chain(worker: Worker) -> None:
    """A chain may come back to where it began, as often as it likes."""
    seen: list[int] = []

    @worker.on("count.down")
    async def count_down(n: int) -> Next | None:
        seen.append(n)
        return Next(count_down, n - 1) if n else None

    async with worker.running():
        await count_down.enqueue(20)
        await wait_until(lambda: seen == [*range(20, -1, -1)])


@pytest.mark.parametrize(
    "result",
    [
        {"next": 3, "payload": 1},
        {"next": None},
        {"page": 2, "items": []},
        ["next", "previous"],
        [],
        "next",
        0,
        object(),
    ],
    ids=repr,
)
async def test_any_other_result_is_none_of_our_business(worker: Worker, redis: Redis, prefix: str, result: Any) -> None:
    """A mapping is an instruction only if its `next` is text; whatever else a handler returns asks for nothing."""
    done: list[int] = []

    @worker.on("t")
    async def handle() -> object:
        done.append(1)
        return result

    async with worker.running():
        await handle.enqueue()
        await wait_until(lambda: done)
    assert await redis.xlen(f"{prefix}:default") == 0
    assert not await redis.exists(f"{prefix}:default:dead-letter", f"{prefix}:retries")


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda: {"next": "t", "paylaod": 1}, "a mapping with `next` and 'paylaod'"),
        (lambda: {"next": "two words"}, "task name 'two words'"),
        (lambda: {"next": "t", "delay": 1.5}, "never a float"),
        (lambda: {"next": "t", "queue": "a b"}, "queue name 'a b'"),
        (lambda: [Next("t"), "t"], "a list with a Next and a str"),
        (lambda: Next("t", object()), "JSON can't carry"),
        (lambda: Next("t", "x" * 2_000_000), "max_payload"),
    ],
    ids=["misspelt key", "name", "delay", "queue", "mixed list", "payload", "size"],
)
async def test_what_cannot_come_next(worker: Worker, result: Callable[[], Any], says: str) -> None:
    """A result that asks for something impossible is a failed run, and its error says what is wrong."""

    @worker.on("t", attempts=1)
    async def handle() -> object:
        return result()

    async with worker.running():
        await handle.enqueue()
        inspector = Inspector(worker)
        (dead,) = await wait_until(lambda: inspector.dead("default"))
    assert dead.reason == "error"
    assert says in dead.error

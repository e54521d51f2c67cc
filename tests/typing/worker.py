# pyright: strict
"""What both type checkers accept of the public names around a Worker: `test_typing.py` runs them over this file."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from backstage import (
    DEFAULT_QUEUES,
    Broadcast,
    Client,
    CronTask,
    Discard,
    Inspector,
    LoggerConfig,
    Middleware,
    Next,
    Queue,
    Retry,
    Run,
    Scheduler,
    SoftTimeout,
    TaskOptions,
    TaskRegistry,
    Worker,
    WorkerConfig,
    WorkerOptions,
)


@dataclass
class Order:
    id: str


async def log_runs(run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
    assert_type(run.job.task, str)
    return await call_next()


emails = TaskRegistry(queue=Queue("emails"), max_retries=2)
onion: list[Middleware] = [log_runs]
worker = Worker(
    url="redis://localhost",
    queues=[*DEFAULT_QUEUES, "emails", Queue("slow", priority=9, hard_timeout=timedelta(minutes=5))],
    concurrency=5,
    backoff={"type": "exponential", "delay": 5, "maxDelay": 100},
    timeout=timedelta(seconds=30),
    idle_timeout=10_000,
    grace_period=timedelta(seconds=5),
    tasks=[emails],
    schedules=[CronTask("* * * * *", "sweep")],
    middleware=onion,
    logger=LoggerConfig(json=True),
)
plain = Worker(logger=logging.getLogger("mine"))
configured = Worker(WorkerConfig(concurrency=2, worker_id="w-1"), LoggerConfig("ERROR"))


@worker.on("payment.process", attempts=3, hard_timeout=60_000)
async def process(order: Order) -> Next:
    return Next("email.receipt", order, delay=5000)


@emails.on("email.receipt")
async def receipt(order: Order, run: Run) -> None:
    try:
        if run.attempt > 1:
            raise Discard("too late")
        raise Retry("later", delay=timedelta(seconds=1))
    except SoftTimeout:
        return


@worker.on("sweep")
async def sweep() -> None: ...


@worker.on("resize", priority="low")
def resize(width: int) -> bytes:
    return b"" * width


async def send(order: Order) -> str:
    return order.id


sent = worker.on("send.again", send, attempts=1)


async def enqueue() -> None:
    order = Order("7")
    assert_type(await worker.enqueue(process, order), str)
    assert_type(await worker.client.enqueue(sweep, dedupe="k"), str | None)
    assert_type(await process.enqueue(order), str)
    assert_type(await sent.enqueue(order), str)
    assert_type(await sweep.enqueue(), str)
    assert_type(await resize.enqueue(640, delay=5), str)
    assert_type(await process(order), Next)
    assert_type(resize(640), bytes)
    client: Client = worker
    assert_type(await client.enqueue("by.name", 1), str)
    assert_type((await Inspector(worker).queues()).waiting, int)


async def life() -> None:
    options: WorkerOptions = {"concurrency": 3, "prefix": "shop"}
    worker.configure(**options)
    worker.include(emails, TaskRegistry())
    async with worker.running() as same:
        assert_type(same, Worker)
        assert_type(worker.worker_id, str)
        assert_type(worker.config, WorkerConfig)
        assert_type(worker.config.concurrency, int)
    await worker.start()
    await worker.start(signals=False)
    await worker.stop()


def run() -> None:
    assert_type(worker.run(), None)


def register(name: str, options: TaskOptions) -> None:
    worker.on(name, send, **options)


async def others(client: Client) -> None:
    scheduler = Scheduler(schedules=[CronTask("0 3 * * *", sweep)], url="redis://localhost")
    async with scheduler.running():
        pass
    radio = Broadcast(worker=worker)

    @radio.on("cache.clear")
    async def clear(keys: list[str]) -> None: ...

    assert_type(await radio.send("cache.clear", ["a"]), str)
    sender = Broadcast(client=client)
    assert_type(await sender.send("cache.clear"), str)

# pyright: strict
"""What both type checkers refuse of the public names, at the marked lines and at no other: see `test_typing.py`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from backstage import (
    Backoff,
    Client,
    CronTask,
    Dedupe,
    Job,
    LoggerConfig,
    Queue,
    RedisConfig,
    Run,
    Worker,
    WorkerConfig,
)


@dataclass
class Order:
    id: str


worker = Worker()


@worker.on("payment.process")
async def process(order: Order) -> None: ...


@worker.on("sweep")
async def sweep() -> None: ...


async def enqueue(client: Client) -> None:
    await client.enqueue(process, "7")  # error: not the handler's payload
    await client.enqueue(process)  # error: the payload is missing
    await client.enqueue(sweep, Order("7"))  # error: takes no payload
    await worker.enqueue(process, ["7"])  # error: not the handler's payload
    await client.enqueue("by.name", 1, delay=0.5)  # error: a duration is never a float
    await client.enqueue("by.name", 1, priority="high")  # error: no such priority
    await client.enqueue("by.name", 1, retries=3)  # error: no such option
    await client.enqueue("by.name", 1, backoff={"delay": 5})  # error: the type is missing
    await client.enqueue("by.name", 1, backoff="fixed")  # error: no backoff
    await client.enqueue(process, Order("7"), dedupe=7)  # error: no key
    certain: str = await client.enqueue(process, Order("7"), dedupe="k")  # error: None for a duplicate
    await client.schedule(process, Order("7"))  # error: when?
    await client.schedule(process, Order("7"), "tomorrow")  # error: no moment
    await client.enqueue_many([Job("t"), certain])  # error: no job


def values() -> None:
    Queue("q", priority="high")  # error: a number
    Backoff("linear")  # error: no such type
    Dedupe(7)  # error: no key
    Job("t", timeout=1.5)  # error: a duration is never a float
    CronTask("* * * * *", sweep, catch_up="some")  # error: no such policy
    LoggerConfig(json="yes")  # error: a bool


def settings() -> None:
    Client(hots="db")  # error: no such option
    Client(concurrency=5)  # error: a worker's option
    Client(port="6379")  # error: a number
    Worker(concurrency="many")  # error: a number
    Worker(queues=["a", 3])  # error: neither a queue nor a name
    Worker(RedisConfig())  # error: not a worker's settings
    Worker(idle_timeout=30.0)  # error: a duration is never a float
    WorkerConfig(grace_period=timedelta(seconds=1)).concurrency = 3  # error: frozen
    Worker(middleware=[only_run])  # error: no middleware
    Worker(logger="INFO")  # error: no logger


async def only_run(run: Run) -> object:
    return run


async def good(run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
    print(run.payload)  # error: it is run.job.payload
    return await call_next()


async def life() -> None:
    async with worker.running() as same:
        same.consume()  # error: no such method
    await worker.run()  # error: it doesn't return an awaitable

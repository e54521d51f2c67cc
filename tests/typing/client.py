# pyright: strict
"""What both type checkers accept of the public names around a Client: `test_typing.py` runs them over this file."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from redis.asyncio import Redis

from backstage import (
    DEFAULT_QUEUES,
    Again,
    Backoff,
    Client,
    CronTask,
    Dead,
    DeadJob,
    Dedupe,
    Delivery,
    Done,
    Duration,
    EnqueueOptions,
    Inspector,
    Job,
    JsonSerializer,
    Next,
    Outcome,
    Priority,
    Producer,
    Queue,
    QueueInfo,
    QueuesInfo,
    RedisConfig,
    RedisOptions,
    RedisUnavailable,
    Released,
    Run,
    Serializer,
    Stream,
    Task,
    TaskRegistry,
    inspect,
)


@dataclass
class Order:
    id: str


tasks = TaskRegistry(queue="payments")


@tasks.on("payment.process", attempts=3)
async def process(order: Order, run: Run) -> Next:
    assert_type(await run.client.enqueue("audit", order), str)
    return Next(receipt, order, delay=timedelta(seconds=5), dedupe={"key": order.id, "ttl": timedelta(hours=1)})


@tasks.on("email.receipt")
async def receipt(order: Order) -> None: ...


@tasks.on("sweep")
def sweep() -> None: ...


async def enqueue(client: Client) -> None:
    order = Order("7")
    assert_type(await client.enqueue(process, order), str)
    assert_type(await client.enqueue(process, order, priority=Priority.URGENT, attempts=2, delay=5), str)
    assert_type(await client.enqueue(process, order, dedupe="order-7"), str | None)
    assert_type(await client.enqueue(process, order, dedupe=Dedupe("order-7", ttl=60_000)), str | None)
    assert_type(await client.enqueue(process, order, dedupe=None), str)
    assert_type(await client.enqueue(sweep), str)
    assert_type(await client.enqueue(sweep, None, dedupe="nightly"), str | None)
    assert_type(await client.enqueue("by.name"), str)
    assert_type(await client.enqueue("by.name", {"any": ["thing"]}, queue=Queue("q"), timeout=timedelta(1)), str)
    assert_type(await client.enqueue("by.name", order, dedupe="k", backoff={"type": "fixed", "delay": 5}), str | None)
    assert_type(await client.enqueue("by.name", order, backoff=Backoff("exponential", max_delay=None)), str)
    assert_type(await client.enqueue_many([Job(process, order), Job("by.name", 1, id="mine")]), list[str | None])
    assert_type(await client.enqueue_many(Job("n", n) for n in range(3)), list[str | None])
    assert_type(await client.schedule(process, order, timedelta(days=1), dedupe="x"), str | None)
    assert_type(await client.schedule("by.name", None, datetime.now(UTC), priority="low"), str | None)
    assert_type(await process.enqueue(order), str)
    assert_type(await process.schedule(order, 5_000), str | None)


def options(when: Duration) -> Job:
    given: EnqueueOptions = {"priority": "low", "delay": when, "dedupe": "k"}
    return Job("t", **given)


async def life() -> None:
    async with Client() as from_environment, Client(RedisConfig(host="db"), tasks=[tasks]) as configured:
        assert_type(from_environment, Client)
        assert_type(configured.config, RedisConfig)
        assert_type(configured.redis, Redis)
    options: RedisOptions = {"url": "redis://db", "prefix": "shop", "connect_timeout": timedelta(seconds=1)}
    client = Client(**options)
    client.configure(max_payload=100, serializer=JsonSerializer())
    client.configure(port=1)
    await client.aclose()


def produces(producer: Producer, serializer: Serializer, decode: Callable[[bytes], Any]) -> Producer:
    decode(serializer.encode([1]))
    return producer


async def inspecting(client: Client, redis: Redis) -> None:
    inspector = Inspector(client)
    info = await inspector.queues()
    assert_type(info, QueuesInfo)
    assert_type(info["default"], QueueInfo)
    assert_type([queue.waiting for queue in info], list[int])
    assert_type(info.oldest, timedelta | None)
    assert_type(await inspector.dead("default"), list[DeadJob])
    assert_type(await inspector.retry("default"), int)
    assert_type(await inspector.purge("default"), int)
    assert_type(await inspect(redis, ["default"], prefix="shop"), QueuesInfo)


async def a_loop_of_ones_own(redis: Redis) -> None:
    stream = Stream(redis, "my-workers", queues=[*DEFAULT_QUEUES, "emails"], prefix="shop")
    await stream.initialize()
    assert_type(await stream.enqueue("t", 1, delay=5), str | None)
    for delivery in await stream.take(10, 1_000):
        assert_type(delivery, Delivery)
        assert_type(stream.job(delivery), Job)
        outcome: Outcome = Done((Job("next"),)) if delivery.times == 1 else Again(5, "no")
        assert_type(await stream.finish([(delivery, outcome)]), list[bool])
    assert_type(await stream.renew([]), list[Delivery])
    assert_type(await stream.reclaim(5), list[Delivery])
    assert_type(await stream.promote(), int | None)


def exhaustive(outcome: Outcome) -> str:
    match outcome:
        case Done():
            return "done"
        case Again(delay=delay):
            assert_type(delay, int)
            return "again"
        case Dead(reason=reason):
            return reason
        case Released():
            return "released"


def schedules() -> list[CronTask]:
    return [
        CronTask("0 3 * * *", sweep),
        CronTask("0 3 * * *", "by.name", "low", {"n": 1}, timezone="Europe/Berlin", name="x", catch_up="skip"),
    ]


async def errors(client: Client) -> None:
    try:
        await client.enqueue(sweep)
    except RedisUnavailable as error:
        assert_type(error, RedisUnavailable)
        raise ConnectionError from error


handles: Task[Order, [Run], Any] = process

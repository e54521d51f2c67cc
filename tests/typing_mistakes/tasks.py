# pyright: strict
"""What both type checkers refuse of tasks, at the marked lines and at no other: see `tests/unit/test_typing.py`."""

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from backstage.job import Job
from backstage.task import Middleware, Producer, Run, TaskRegistry


@dataclass
class Order:
    id: str


tasks = TaskRegistry(attempt=3)  # error: no such option
tasks.on("float", timeout=1.5)  # error: a duration is never a float
tasks.on("priority", priority="high")  # error: no such priority


@tasks.on("payment.process")
async def process(order: Order, run: Run) -> int:
    return 1


@tasks.on("sweep")
async def sweep() -> None: ...


@tasks.on("watch")
async def watch(run: Run) -> None: ...


@tasks.on  # error: a name is missing
async def nameless(order: Order) -> None: ...


@tasks.on("keyword")  # error: the payload is passed positionally
async def by_keyword(*, order: Order) -> None: ...


tasks.on("not.callable", 3)  # error: no handler


async def enqueue(client: Producer) -> None:
    await client.enqueue(process, "1")  # error: not the handler's payload
    await client.enqueue(process, {"id": "1"})  # error: not the handler's payload
    await client.enqueue(process)  # error: the payload is missing
    await client.enqueue(process, None)  # error: the payload is missing
    await client.enqueue(sweep, Order("1"))  # error: takes no payload
    await client.enqueue(watch, Order("1"))  # error: the run is no payload
    await client.enqueue(process, Order("1"), delay=1.5)  # error: a duration is never a float
    await client.enqueue(process, Order("1"), retries=3)  # error: no such option
    await client.enqueue(process, Order("1"), dedupe={"ttl": 5})  # error: the key is missing
    await client.enqueue(3, Order("1"))  # error: neither a task nor a name
    await client.enqueue_many([Order("1")])  # error: no jobs
    await client.schedule(process, Order("1"), 5, delay=timedelta(1))  # error: `when` is the delay
    job_id: str = await client.enqueue(process, Order("1"), dedupe="order-1")  # error: None for a duplicate
    Job(Order("1"), job_id)  # error: neither a task nor a name


async def enqueue_by_the_task_itself() -> None:
    await process.enqueue("1")  # error: not the handler's payload
    await process.enqueue()  # error: the payload is missing
    await sweep.enqueue(3)  # error: takes no payload
    await process.schedule("1", 5)  # error: not the handler's payload
    job_id: str = await sweep.enqueue(dedupe="sweep")  # error: None for a duplicate
    print(job_id)


async def call_as_the_function(run: Run) -> None:
    await process("1", run)  # error: not the handler's payload
    await process(Order("1"))  # error: the run is missing
    await sweep(1)  # error: takes no payload
    assert_type(await process(Order("1"), run), str)  # error: an int
    await run.enqueue(sweep)  # error: it is run.client that enqueues
    tasks.include(sweep)  # error: a task is no registry


async def forgets_call_next(run: Run) -> object:
    return run


onion: list[Middleware] = [forgets_call_next]  # error: no middleware

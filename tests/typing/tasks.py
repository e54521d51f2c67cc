# pyright: strict
"""What both type checkers accept of tasks: `test_typing.py` runs them over this file, nobody runs the file."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from backstage.job import Backoff, Dedupe, Job, Next
from backstage.queue import Priority, Queue
from backstage.task import AnyTask, Middleware, NoPayload, Producer, Run, Task, TaskRegistry


@dataclass
class Order:
    id: str


tasks = TaskRegistry(queue="payments", attempts=3, backoff={"type": "fixed", "delay": 50})


@tasks.on("payment.process", priority=Priority.URGENT, soft_timeout=timedelta(seconds=5), hard_timeout=9_000)
async def process(order: Order, run: Run) -> Next:
    assert_type(run.job, Job)
    assert_type(run.deadline, datetime | None)
    assert_type(await run.client.enqueue(receipt, order), str)
    return Next(receipt, order, delay=timedelta(seconds=5))


@tasks.on("email.receipt", max_retries=0, queue=Queue("emails"), backoff=Backoff("fixed"), timeout=10)
async def receipt(order: Order, *, subject: str = "Thank you") -> bool:
    return True


@tasks.on("sweep")
async def sweep() -> int:
    return 3


@tasks.on("watch")
async def watch(run: Run) -> None: ...


@tasks.on("watch.by_keyword")
async def watch_by_keyword(*, run: Run) -> None: ...


@tasks.on("resize")
def resize(width: int, run: Run | None = None) -> bytes:
    return b""


@tasks.on("count")
async def count(days: int = 30) -> None: ...


@tasks.on("import")
async def import_rows(rows: list[dict[str, Any]]) -> None: ...


class Mailer:
    async def __call__(self, order: Order) -> str:
        return order.id

    async def send(self, order: Order, run: Run) -> None: ...


mail = tasks.on("mail", Mailer())
send = tasks.on("mail.send", Mailer().send, attempts=None)
process_again = tasks.on("payment.process_again", process)
sweep_again = tasks.on("sweep.again", sweep)


async def enqueue(client: Producer) -> None:
    order = Order("1")
    assert_type(await client.enqueue(process, order), str)
    assert_type(await client.enqueue(process, order, dedupe=None, delay=5, timeout=None), str)
    assert_type(await client.enqueue(process, order, dedupe="order-1"), str | None)
    assert_type(await client.enqueue(process, order, dedupe=Dedupe("order-1", timedelta(hours=1))), str | None)
    assert_type(await client.enqueue(process, order, dedupe={"key": "order-1", "ttl": 5}), str | None)
    assert_type(await client.enqueue(process_again, order, priority="low", queue=Queue("x")), str)
    assert_type(await client.enqueue(mail, order), str)
    assert_type(await client.enqueue(send, order), str)
    assert_type(await client.enqueue(count, 7), str)
    assert_type(await client.enqueue(import_rows, [{"id": 1}]), str)
    assert_type(await client.enqueue(sweep), str)
    assert_type(await client.enqueue(sweep, None, dedupe="sweep"), str | None)
    assert_type(await client.enqueue(sweep_again, delay=timedelta(minutes=1)), str)
    assert_type(await client.enqueue(watch), str)
    assert_type(await client.enqueue(watch_by_keyword, dedupe="watch"), str | None)
    assert_type(await client.enqueue("other.service", {"any": "thing"}), str)
    assert_type(await client.enqueue("other.service", dedupe="once"), str | None)
    assert_type(await client.enqueue_many([Job(process, order), Job("other.service")]), list[str | None])
    assert_type(await client.schedule(process, order, datetime.now(UTC), dedupe="x"), str | None)


async def enqueue_by_the_task_itself() -> None:
    assert_type(await process.enqueue(Order("1"), attempts=5), str)
    assert_type(await process.enqueue(Order("1"), dedupe="order-1"), str | None)
    assert_type(await sweep.enqueue(), str)
    assert_type(await sweep.enqueue(dedupe="sweep"), str | None)
    assert_type(await watch.enqueue(), str)
    assert_type(await process.schedule(Order("1"), timedelta(days=1), priority=Priority.LOW), str | None)
    assert_type(await sweep.schedule(None, 5_000), str | None)


async def call_as_the_function(run: Run) -> None:
    assert_type(await process(Order("1"), run), Next)
    assert_type(await process(Order("1"), run=run), Next)
    assert_type(await receipt(Order("1"), subject="Hello"), bool)
    assert_type(await sweep(), int)
    await watch(run)
    await watch_by_keyword(run=run)
    assert_type(resize(640), bytes)
    assert_type(await mail(Order("1")), str)
    await send(Order("1"), run)
    assert_type(await process_again(Order("1"), run), Next)


def collect(worker: TaskRegistry, client: Producer) -> list[str]:
    worker.include(tasks, TaskRegistry())
    worker.bind(client)
    found: AnyTask | None = worker.get("sweep")
    every: list[AnyTask] = [process, sweep, watch, *worker, *worker.tasks.values()]
    payload_free: NoPayload[[], Any] = sweep
    typed: Task[Order, [Run], Awaitable[Next]] | None = None
    return [task.name for task in (found, payload_free, typed, *every) if task is not None]


async def log_runs(run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
    return await call_next()


class Metrics:
    async def __call__(self, run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
        return await call_next()


onion: list[Middleware] = [log_runs, Metrics()]

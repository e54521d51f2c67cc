"""Tasks: register functions, collect them in registries, enqueue them by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backstage import (
    Client,
    ConfigError,
    CronTask,
    DuplicateTask,
    InvalidName,
    Job,
    Next,
    Run,
    TaskError,
    TaskNotBound,
    TaskRegistry,
    Worker,
)
from support.waiting import wait_until


async def test_decorator_and_call_register_alike(worker: Worker) -> None:
    """`@worker.on(name)` and `worker.on(name, handler)` do the same, and both give a Task."""
    handled: list[str] = []

    @worker.on("first")
    async def first(text: str) -> None:
        handled.append(text)

    async def handle(text: str) -> None:
        handled.append(text)

    second = worker.on("second", handle)
    assert (first.name, second.name) == ("first", "second")
    assert list(worker.tasks) == ["first", "second"]
    async with worker.running():
        await first.enqueue("a")
        await second.enqueue("b")
        await wait_until(lambda: sorted(handled) == ["a", "b"])


async def test_a_task_is_still_the_function(worker: Worker) -> None:
    """A Task is called as the function is, so a test of a handler needs no worker and no Redis."""

    @worker.on("price.add_tax")
    async def add_tax(net: float, run: Run, *, rate: float = 0.2) -> float:
        """Adds the tax."""
        return net * (1 + rate) * run.attempt

    assert await add_tax(100.0, Run(Job("price.add_tax", 100.0))) == pytest.approx(120)
    assert await add_tax(100.0, run=Run(Job(add_tax), attempt=2), rate=0.0) == 200
    assert (add_tax.__name__, add_tax.__doc__) == ("add_tax", "Adds the tax.")


async def test_a_task_goes_wherever_a_name_goes(client: Client, worker: Worker) -> None:
    """`client.enqueue(task)`, `Job(task)`, `Next(task)`, `CronTask(…, task)`: the Task stands for its name."""
    handled: list[int] = []

    @worker.on("count")
    async def count(n: int) -> Next | None:
        handled.append(n)
        return Next(count, 3) if n == 2 else None

    async with worker.running():
        await client.enqueue(count, 1)
        await client.enqueue_many([Job(count, 2)])
        await client.schedule(count, 4, 1)
        await wait_until(lambda: sorted(handled) == [1, 2, 3, 4])
    assert CronTask("* * * * *", count).name == "count"


async def test_registries_for_projects_of_several_files(url: str, prefix: str) -> None:
    """A TaskRegistry collects tasks without a connection; a worker takes several, by `tasks=` or `include`."""
    payments, emails, reports = TaskRegistry(), TaskRegistry(), TaskRegistry()
    handled: list[str] = []

    @payments.on("payment.process")
    async def process(order: str) -> Next:
        handled.append(f"paid {order}")
        return Next(receipt, order)

    @emails.on("email.receipt")
    async def receipt(order: str) -> None:
        handled.append(f"wrote {order}")

    worker = Worker(url=url, prefix=prefix, tasks=[payments])
    worker.include(emails, reports)

    @reports.on("report.daily")  # what an included registry gets later is there too
    async def daily() -> None:
        handled.append("reported")

    async with worker.running():
        await process.enqueue("7")
        await daily.enqueue()
        await wait_until(lambda: sorted(handled) == ["paid 7", "reported", "wrote 7"])


async def test_defaults_of_a_registry(url: str, prefix: str, client: Client) -> None:
    """What a registry is given holds for its tasks, unless a task says otherwise itself."""
    tasks = TaskRegistry(queue="payments", attempts=3, timeout=5_000)
    process = tasks.on("payment.process", _nothing)
    refund = tasks.on("payment.refund", _nothing, queue="refunds", max_retries=0)
    assert (process.queue, process.attempts, process.soft_timeout) == ("payments", 3, 5_000)
    assert (refund.queue, refund.attempts, refund.soft_timeout) == ("refunds", 1, 5_000)


async def _nothing(payload: object) -> None: ...


async def test_enqueue_of_a_task_that_nobody_included() -> None:
    """`task.enqueue` needs to know where to: without a worker or client it says what to write instead."""
    tasks = TaskRegistry()
    lonely = tasks.on("lonely", _nothing)
    with pytest.raises(TaskNotBound, match=r"in no worker or client yet.*client\.enqueue\(task, …\)"):
        await lonely.enqueue(1)


async def test_enqueue_of_a_task_that_several_included(url: str, prefix: str) -> None:
    """With two workers or clients it can't be told which of them is meant; `client.enqueue` tells it."""
    tasks = TaskRegistry()
    shared = tasks.on("shared", _nothing)
    async with Client(url=url, prefix=prefix, tasks=[tasks]) as one, Client(url=url, prefix=prefix, tasks=[tasks]):
        with pytest.raises(TaskNotBound, match=r"in 2 workers or clients.*client\.enqueue\(task, …\)"):
            await shared.enqueue(1)
        assert await one.enqueue(shared, 1)


async def test_client_with_tasks(url: str, prefix: str, redis: Any) -> None:
    """A client that is given registries routes by name, and `task.enqueue` and `task.schedule` go through it."""
    tasks = TaskRegistry(queue="payments")
    process = tasks.on("payment.process", _nothing)
    async with Client(url=url, prefix=prefix, tasks=[tasks]) as client:
        await client.enqueue("payment.process", 1)
        await process.enqueue(2)
        await process.schedule(3, 60_000)
        await client.enqueue(process, 4, queue="elsewhere")
    assert await redis.xlen(f"{prefix}:payments") == 2
    assert await redis.zcard(f"{prefix}:scheduled") == 1
    assert await redis.xlen(f"{prefix}:elsewhere") == 1


async def test_a_task_knows_its_queue_where_the_client_does_not(client: Client, redis: Any, prefix: str) -> None:
    """A Task given as itself goes to its own queue, whoever enqueues it."""
    process = TaskRegistry(queue="payments").on("payment.process", _nothing)
    await client.enqueue(process, 1)
    await client.enqueue_many([Job(process, 2)])
    assert await redis.xlen(f"{prefix}:payments") == 2


async def test_unknown_to_the_client_goes_to_default(client: Client, redis: Any, prefix: str) -> None:
    """A name that this process knows nothing of goes to the queue `default`."""
    await client.enqueue("payment.process", 1)
    assert await redis.xlen(f"{prefix}:default") == 1


def test_two_of_one_name(worker: Worker) -> None:
    """A name is taken once; the error tells both places, as file:line."""
    worker.on("order.pay", _nothing)
    with pytest.raises(DuplicateTask, match=r"'order.pay'.*test_tasks\.py:\d+ and at .*test_tasks\.py:\d+"):

        @worker.on("order.pay")
        async def again(payload: object) -> None: ...

    other = TaskRegistry()
    other.on("order.pay", lambda payload: None)
    with pytest.raises(DuplicateTask):
        worker.include(other)


def test_one_function_under_two_names(worker: Worker) -> None:
    """A Task given as the handler registers its function again."""
    first = worker.on("one", _nothing, attempts=2)
    second = worker.on("two", first, attempts=3)
    assert (first.fn, first.attempts) == (_nothing, 2)
    assert (second.fn, second.attempts) == (_nothing, 3)


def test_a_name_is_needed(worker: Worker) -> None:
    """`@worker.on` without a name says how to write it."""
    with pytest.raises(TaskError, match=r'write @….on\("send"\)'):

        @worker.on  # type: ignore[call-overload]
        async def send(message: str) -> None: ...

    with pytest.raises(InvalidName, match="task name 'send email'"):
        worker.on("send email", _nothing)


def two_payloads(first: int, second: int) -> None: ...
def keyword_only(*, order: dict[str, str]) -> None: ...
def hidden(*args: int) -> None: ...
def generator(order: int) -> Any:
    yield order


class AClass: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (two_payloads, "parameter 'second' can't be filled"),
        (keyword_only, "parameter 'order' can't be filled"),
        (hidden, r"\*args hides what it takes"),
        (generator, "a generator can't be a handler"),
        (AClass, "the class AClass can't be a handler"),
        (7, "7 can't be a handler"),
    ],
)
def test_what_no_handler_may_look_like(worker: Worker, handler: Callable[..., Any], says: str) -> None:
    """A function that could never be called is refused when it is registered, with its place."""
    with pytest.raises(TaskError, match=says):
        worker.on("t", handler)
    assert not worker.tasks


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"attempts": 3, "max_retries": 2}, TaskError, "not both"),
        ({"timeout": 1, "soft_timeout": 1}, TaskError, "two names of one limit"),
        ({"soft_timeout": 10, "hard_timeout": 10}, ConfigError, "must be longer than soft_timeout"),
        ({"attempts": 0}, ConfigError, "1 or more"),
        ({"max_retries": -1}, ConfigError, "0 or more"),
        ({"hard_timeout": 1.5}, ConfigError, "never a float"),
        ({"delay": 5}, TaskError, "unknown option 'delay'"),
        ({"priority": "high"}, ConfigError, "'urgent', 'default' or 'low'"),
    ],
    ids=str,
)
def test_options_that_cannot_be(worker: Worker, options: dict[str, Any], error: type[Exception], says: str) -> None:
    """A wrong option is an error where the task is registered, or its registry made."""
    with pytest.raises(error, match=says):
        worker.on("t", _nothing, **options)
    with pytest.raises(error, match=says):
        TaskRegistry(**options)


@pytest.mark.parametrize(
    ("options", "attempts", "soft"),
    [
        ({"max_retries": 4}, 5, None),
        ({"attempts": 5}, 5, None),
        ({"timeout": 7}, None, 7),
        ({"soft_timeout": 7}, None, 7),
    ],
    ids=str,
)
def test_two_names_of_one_option(worker: Worker, options: Any, attempts: int | None, soft: int | None) -> None:
    """`max_retries` is attempts - 1; `timeout` is short for soft_timeout."""
    task = worker.on("t", _nothing, **options)
    assert (task.attempts, task.soft_timeout) == (attempts, soft)


async def test_a_worker_without_tasks(worker: Worker) -> None:
    """A worker that has nothing to run doesn't start: it would only put every job off."""
    with pytest.raises(ConfigError, match="no task and no broadcast handler"):
        async with worker.running():
            pass


async def test_what_a_run_tells(client: Client, worker: Worker) -> None:
    """`Run` has the job as it was asked for, which run this is, and a client to enqueue more at once."""
    runs: list[Run] = []

    @worker.on("t", queue="q", hard_timeout=60_000)
    async def handle(payload: dict[str, int], run: Run) -> None:
        runs.append(run)
        await run.client.enqueue("other", 1, queue="q")

    @worker.on("other", queue="q")
    async def other(n: int, *, run: Run) -> None:
        runs.append(run)

    async with worker.running():
        job_id = await client.enqueue("t", {"n": 1}, queue="q")
        await wait_until(lambda: len(runs) == 2)
    run = runs[0]
    assert (run.job.id, run.job.task, run.job.queue, run.job.payload) == (job_id, "t", "q", {"n": 1})
    assert (run.attempt, run.deliveries) == (1, 1)
    assert run.job.enqueued_at is not None
    assert run.deadline is not None
    assert 55 < (run.deadline - run.job.enqueued_at).total_seconds() < 65
    assert runs[1].deadline is None


async def test_run_in_any_place(worker: Worker) -> None:
    """A handler asks for its run by annotation, under any name: alone, behind the payload, or by keyword."""
    seen: list[tuple[str, int]] = []

    @worker.on("alone")
    async def alone(this: Run) -> None:
        seen.append((this.job.task, this.attempt))

    @worker.on("optional")
    async def optional(payload: int, run: Run | None = None) -> None:
        assert run is not None
        seen.append((run.job.task, payload))

    async with worker.running():
        await alone.enqueue()
        await optional.enqueue(3)
        await wait_until(lambda: sorted(seen) == [("alone", 1), ("optional", 3)])


async def test_payload_with_a_default(worker: Worker) -> None:
    """A payload parameter with a default is left to it where a job has no payload."""
    seen: list[int] = []

    @worker.on("report")
    async def report(days: int = 30) -> None:
        seen.append(days)

    async with worker.running():
        await worker.enqueue("report")
        await worker.enqueue("report", 7)
        await wait_until(lambda: sorted(seen) == [7, 30])


async def test_handlers_without_a_payload(worker: Worker) -> None:
    """A handler that takes nothing is called with nothing, whatever the job carries."""
    ticks: list[int] = []

    @worker.on("tick")
    async def tick() -> None:
        ticks.append(1)

    async with worker.running():
        await tick.enqueue()
        await worker.enqueue("tick", {"ignored": True})
        await wait_until(lambda: len(ticks) == 2)


async def test_methods_and_callables(worker: Worker) -> None:
    """A bound method or an object with a `__call__` is a handler as well."""
    handled: list[str] = []

    class Mailer:
        async def send(self, to: str) -> None:
            handled.append(f"sent {to}")

        async def __call__(self, to: str) -> None:
            handled.append(f"called {to}")

    mailer = Mailer()
    worker.on("send", mailer.send)
    worker.on("call", mailer)
    async with worker.running():
        await worker.enqueue("send", "a")
        await worker.enqueue("call", "b")
        await wait_until(lambda: sorted(handled) == ["called b", "sent a"])

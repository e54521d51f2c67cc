"""Tasks, the registries that collect them, and the one worker or client that each of them is bound to."""

import gc
import inspect
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backstage.errors import BackstageError, ConfigError, DuplicateTask, InvalidName, TaskError, TaskNotBound
from backstage.job import Backoff, Job, Next
from backstage.queue import Priority, Queue
from backstage.task import NoPayload, Registers, Run, Task, TaskOptions, TaskRegistry


class Recorder:
    """A producer that writes down what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def enqueue(self, task: Any, payload: object = None, **options: Any) -> Any:
        self.calls.append((task, payload, options))
        return "id"

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[str | None]:
        return [job.id for job in jobs]

    async def schedule(self, task: Any, payload: object, when: Any, **options: Any) -> str | None:
        self.calls.append((task, payload, when, options))
        return "id"


async def pay(order: dict[str, str], run: Run | None = None) -> str:
    """Pays."""
    return order["id"]


async def sweep() -> int:
    return 3


def test_task_is_the_function() -> None:
    """A task is called as its function is, looks like it, and carries what a worker needs of it."""
    tasks = TaskRegistry()
    task = tasks.on("order.pay", pay)
    assert (task.name, task.fn, task.__doc__) == ("order.pay", pay, "Pays.")
    assert inspect.signature(task) == inspect.signature(pay)
    assert (task.takes_payload, task.payload_type, task.run_parameter) == (True, dict[str, str], "run")
    assert task.is_async
    assert task.where == f"{__file__}:{pay.__code__.co_firstlineno}"
    assert repr(task) == f"<Task 'order.pay', {task.where}>"


async def test_call() -> None:
    """Awaiting a called task gives what its function returns, with a payload (by keyword too) and without."""
    tasks = TaskRegistry()
    by_keyword: Callable[..., Any] = tasks.on("by_keyword", pay)
    assert await by_keyword(order={"id": "7"}) == "7"
    assert await tasks.on("order.pay", pay)({"id": "7"}, run=None) == "7"
    assert await tasks.on("sweep", sweep)() == 3


def test_decorator_and_direct() -> None:
    """As a decorator or with the handler, `on` gives a Task; one without a payload is a NoPayload."""
    tasks = TaskRegistry()
    decorated = tasks.on("order.pay", attempts=2)(pay)
    direct = tasks.on("sweep", sweep, attempts=3)
    assert type(decorated) is Task
    assert type(direct) is NoPayload
    assert (decorated.attempts, direct.attempts) == (2, 3)
    assert dict(tasks.tasks) == {"order.pay": decorated, "sweep": direct}
    assert list(tasks) == [decorated, direct]
    assert tasks.get("sweep") is direct
    assert tasks.get("nothing") is None


def test_task_as_handler() -> None:
    """A task registers its function once more, under the new name and with the new options."""
    tasks = TaskRegistry()
    again = tasks.on("again", tasks.on("order.pay", pay, attempts=7))
    assert (again.name, again.fn, again.attempts) == ("again", pay, None)


def test_task_names_itself() -> None:
    """A task stands for its name, and its queue, in a Job and a Next."""
    task = TaskRegistry(queue="payments").on("order.pay", pay)
    for request in (Job(task, {}), Next(task, {})):
        assert (request.task, request.queue, request.route) == ("order.pay", None, "payments")


def test_on_without_a_name() -> None:
    """`@registry.on` without a name says how to write it."""
    with pytest.raises(TaskError, match=r'needs a name for \'pay\': write @….on\("pay"\)'):
        TaskRegistry().on(pay)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["", "a b", "é", "-a", 3, None])
def test_names(name: Any) -> None:
    """A task's name is held to the rule, before there is a handler."""
    with pytest.raises(InvalidName, match="task name"):
        TaskRegistry().on(name)


def test_duplicate() -> None:
    """A name that is taken is refused with both places, and what was there stays."""
    tasks = TaskRegistry()
    first = tasks.on("order.pay", pay)
    with pytest.raises(DuplicateTask) as refusal:
        tasks.on("order.pay", sweep)
    places = [f"{__file__}:{fn.__code__.co_firstlineno}" for fn in (pay, sweep)]
    assert str(refusal.value) == f"task 'order.pay' is registered twice: at {places[0]} and at {places[1]}"
    assert list(tasks) == [first]


SETTINGS = ("queue", "attempts", "backoff", "soft_timeout", "hard_timeout")
NOTHING = dict.fromkeys(SETTINGS)


@pytest.mark.parametrize(
    ("defaults", "options", "expected"),
    [
        ({}, {}, {}),
        ({}, dict.fromkeys(TaskOptions.__annotations__), {}),
        ({}, {"attempts": 3}, {"attempts": 3}),
        ({}, {"max_retries": 0}, {"attempts": 1}),
        ({}, {"backoff": {"type": "fixed", "delay": 5}}, {"backoff": Backoff("fixed", 5)}),
        ({}, {"timeout": timedelta(seconds=1)}, {"soft_timeout": 1000}),
        ({}, {"soft_timeout": 10, "hard_timeout": 20}, {"soft_timeout": 10, "hard_timeout": 20}),
        ({}, {"priority": "low"}, {"queue": "low"}),
        ({}, {"priority": Priority.URGENT, "queue": "emails"}, {"queue": "emails"}),
        ({}, {"queue": Queue("emails")}, {"queue": "emails"}),
        ({"queue": "emails", "attempts": 3}, {}, {"queue": "emails", "attempts": 3}),
        ({"queue": "emails"}, {"priority": "urgent"}, {"queue": "urgent"}),
        ({"attempts": 3}, {"max_retries": 7}, {"attempts": 8}),
        ({"max_retries": 3}, {"attempts": 1}, {"attempts": 1}),
        ({"attempts": 3, "timeout": 5}, {"attempts": None, "timeout": None}, {"attempts": 3, "soft_timeout": 5}),
        ({"hard_timeout": 20}, {"timeout": 10}, {"soft_timeout": 10, "hard_timeout": 20}),
    ],
)
def test_options(defaults: Any, options: Any, expected: dict[str, object]) -> None:
    """A task has its own options, and its registry's where it says nothing; None says nothing."""
    task = TaskRegistry(**defaults).on("order.pay", pay, **options)
    assert {name: getattr(task, name) for name in SETTINGS} == NOTHING | expected


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"attempts": 3, "max_retries": 2}, TaskError, "task 'order.pay': give attempts .* or max_retries"),
        ({"timeout": 3, "soft_timeout": 2}, TaskError, "task 'order.pay': soft_timeout and timeout"),
        ({"attempts": 0}, ConfigError, "task 'order.pay': attempts=0"),
        ({"attempts": True}, ConfigError, "attempts=True"),
        ({"max_retries": -1}, ConfigError, "task 'order.pay': max_retries=-1"),
        ({"soft_timeout": 1.5}, TypeError, "never a float"),
        ({"soft_timeout": 0}, ConfigError, "task 'order.pay': soft_timeout=0"),
        ({"soft_timeout": 20, "hard_timeout": 20}, ConfigError, "hard_timeout .* must be longer"),
        ({"soft_timeout": 100}, ConfigError, "task 'order.pay': hard_timeout .* must be longer"),
        ({"priority": "high"}, ConfigError, "must be 'urgent', 'default' or 'low'"),
        ({"queue": "a b"}, InvalidName, "queue name"),
        ({"backoff": {"type": "linear"}}, ConfigError, "backoff type"),
        ({"retries": 3}, TaskError, "unknown option 'retries'; known are .*max_retries"),
        ({"retries": 3}, TypeError, "unknown option 'retries'"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], said: str) -> None:
    """An option that can't be used is refused at registration, and nothing is registered."""
    tasks = TaskRegistry(hard_timeout=50)
    with pytest.raises(error, match=said) as refusal:
        tasks.on("order.pay", pay, **options)
    assert isinstance(refusal.value, BackstageError)
    assert not tasks.tasks


@pytest.mark.parametrize("options", [{"attempts": 0}, {"attempts": 1, "max_retries": 0}, {"retries": 1}])
def test_bad_defaults(options: Any) -> None:
    """Defaults that can't be used are refused when the registry is built."""
    with pytest.raises(BackstageError, match="TaskRegistry"):
        TaskRegistry(**options)


def test_queue_settings() -> None:
    """A Queue given as such is kept with its settings, unless the task's own queue replaces it."""
    emails = Queue("emails", priority=5, soft_timeout=100)
    tasks = TaskRegistry(queue=emails)
    assert tasks.on("a", sweep).queue_settings is emails
    own = tasks.on("b", sweep, queue="plain")
    assert (own.queue, own.queue_settings) == ("plain", None)
    assert tasks.on("c", sweep, attempts=3).queue_settings is emails


class TestInclude:
    def test_live(self) -> None:
        """What an included registry has, or gets later, is seen through every registry above it."""
        top, middle, low = TaskRegistry(), TaskRegistry(), TaskRegistry()
        early = low.on("early", sweep)
        middle.include(low)
        top.include(middle)
        late = low.on("late", sweep)
        for registry in (top, middle, low):
            assert dict(registry.tasks) == {"early": early, "late": late}
            assert registry.get("late") is late

    def test_own_defaults(self) -> None:
        """A task keeps the defaults of the registry that it was registered in."""
        top, low = TaskRegistry(queue="top"), TaskRegistry(queue="low")
        top.include(low)
        assert low.on("sweep", sweep).queue == "low"
        assert top.get("sweep") is low.get("sweep")

    def test_twice_and_in_a_circle(self) -> None:
        """Including a registry twice, by two ways, in itself or in a circle changes nothing."""
        a, b, c = TaskRegistry(), TaskRegistry(), TaskRegistry()
        task = c.on("sweep", sweep)
        a.include(b, c, b)
        b.include(c)
        c.include(a, c)
        later = a.on("pay", pay)
        for registry in (a, b, c):
            assert dict(registry.tasks) == {"sweep": task, "pay": later}

    def test_duplicate(self) -> None:
        """A name in two registries is refused when one includes the other, and neither changes."""
        top, low = TaskRegistry(), TaskRegistry()
        low.on("other", sweep)
        low.on("order.pay", pay)
        kept = top.on("order.pay", sweep)
        with pytest.raises(DuplicateTask, match=r"'order\.pay' is registered twice"):
            top.include(low)
        assert list(top) == [kept]

    def test_duplicate_above(self) -> None:
        """A name that is taken further up is refused too, at the inclusion and at a later registration."""
        top, middle, low = TaskRegistry(), TaskRegistry(), TaskRegistry()
        top.on("order.pay", pay)
        top.include(middle)
        with pytest.raises(DuplicateTask):
            middle.on("order.pay", sweep)
        low.on("order.pay", sweep)
        with pytest.raises(DuplicateTask):
            middle.include(low)
        assert not middle.tasks

    @pytest.mark.parametrize("other", [None, sweep, [TaskRegistry()], "tasks"])
    def test_no_registry(self, other: Any) -> None:
        """Anything but a registry is refused by name."""
        with pytest.raises(TaskError, match="must be a TaskRegistry"):
            TaskRegistry().include(other)

    def test_kept_alive(self) -> None:
        """An including registry keeps the included one; the other way round it may go."""
        top, low = TaskRegistry(), TaskRegistry()
        top.include(low)
        low.on("sweep", sweep)
        del top
        gc.collect()
        low.on("order.pay", pay)
        assert set(low.tasks) == {"sweep", "order.pay"}


class TestBinding:
    @pytest.mark.parametrize("bind", ["own", "above"])
    async def test_bound(self, bind: str) -> None:
        """A task enqueues through the producer of its registry, or of one that includes it, with all options."""
        tasks, top, producer = TaskRegistry(), TaskRegistry(), Recorder()
        task, empty = tasks.on("order.pay", pay), tasks.on("sweep", sweep)
        top.include(tasks)
        (tasks if bind == "own" else top).bind(producer)
        when = datetime.now(UTC)
        assert await task.enqueue({"id": "1"}, delay=5, dedupe="k") == "id"
        assert await empty.enqueue() == "id"
        assert await task.schedule({"id": "1"}, when, queue="x") == "id"
        assert producer.calls == [
            (task, {"id": "1"}, {"delay": 5, "dedupe": "k"}),
            (empty, None, {}),
            (task, {"id": "1"}, when, {"queue": "x"}),
        ]

    async def test_unbound(self) -> None:
        """Without a producer, the error names both ways out."""
        task = TaskRegistry().on("sweep", sweep)
        with pytest.raises(TaskNotBound, match=r"'sweep' is in no worker or client yet: .*client\.enqueue\(task, …\)"):
            await task.enqueue()
        with pytest.raises(TaskNotBound, match="no worker or client"):
            await task.schedule(None, 5)

    async def test_several(self) -> None:
        """With two, none is picked; once one of them is unbound, the other one is."""
        tasks, top, first, second = TaskRegistry(), TaskRegistry(), Recorder(), Recorder()
        task = tasks.on("sweep", sweep)
        top.include(tasks)
        tasks.bind(first)
        top.bind(second)
        with pytest.raises(TaskNotBound, match=r"in 2 workers or clients, .*client\.enqueue\(task, …\)"):
            await task.enqueue()
        tasks.unbind(first)
        assert await task.enqueue() == "id"
        assert (len(first.calls), len(second.calls)) == (0, 1)

    async def test_same_twice(self) -> None:
        """One producer bound twice, or on two levels, is one; unbinding what is not bound is harmless."""
        tasks, top, producer = TaskRegistry(), TaskRegistry(), Recorder()
        task = tasks.on("sweep", sweep)
        top.include(tasks)
        for registry in (tasks, tasks, top):
            registry.bind(producer)
        top.unbind(Recorder())
        assert await task.enqueue() == "id"

    async def test_weak(self) -> None:
        """A producer that nobody else holds is forgotten."""
        tasks, producer = TaskRegistry(), Recorder()
        task = tasks.on("sweep", sweep)
        tasks.bind(producer)
        del producer
        gc.collect()
        with pytest.raises(TaskNotBound, match="no worker or client"):
            await task.enqueue()


def test_registers() -> None:
    """Whatever inherits Registers has `on`, in both forms, by delegating one method."""

    class Worker(Registers):
        def __init__(self) -> None:
            self.tasks = TaskRegistry()

        def _register(self, name: str, fn: Callable[..., Any], options: TaskOptions) -> Task[Any, ..., Any]:
            return self.tasks._register(name, fn, options)

    worker = Worker()
    direct, decorated = worker.on("order.pay", pay, attempts=2), worker.on("sweep", timeout=5)(sweep)
    assert list(worker.tasks) == [direct, decorated]
    assert (direct.attempts, decorated.soft_timeout) == (2, 5)


def test_run() -> None:
    """A Run can be built in a test from a Job alone."""
    job = Job("order.pay", {"id": "1"})
    run = Run(job)
    assert (run.job, run.attempt, run.deliveries, run.deadline) == (job, 1, 1, None)
    assert repr(run) == f"Run({job!r}, attempt=1, deliveries=1)"


def test_run_client() -> None:
    """A run has the client that it was given, and says so where it was given none."""
    client = Recorder()
    assert Run(Job("sweep"), client=client).client is client
    with pytest.raises(TaskError, match=r"Run\(job, client=…\)"):
        _ = Run(Job("sweep")).client

"""Tasks: functions registered under a name, the registries that collect them, and what a handler sees of its run.

A handler takes the payload first, positionally, or nothing at all; beside it at most one parameter annotated `Run`;
every other parameter has a default. That is checked here, once, when the handler is registered.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from weakref import WeakSet

from backstage.durations import LONGEST, Duration
from backstage.eager import awaited, failing
from backstage.errors import ConfigError, DuplicateTask, TaskError, TaskNotBound, quoted
from backstage.handler import Handler, read_handler
from backstage.job import (
    AnyBackoff,
    AnyDedupe,
    AnyPriority,
    Backoff,
    CallOptions,
    Durability,
    Job,
    ScheduleOptions,
    to_attempts,
    to_backoff,
    to_queue,
)
from backstage.queue import Queue, check_name, limits

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
E = ParamSpec("E")


class TaskOptions(TypedDict, total=False):
    """`max_retries` is attempts - 1 and `timeout` is soft_timeout: give one of each pair. None means not given."""

    priority: AnyPriority | None
    queue: str | Queue | None
    attempts: int | None
    max_retries: int | None
    backoff: AnyBackoff | None
    soft_timeout: Duration | None
    timeout: Duration | None
    hard_timeout: Duration | None


class Run:
    """What a handler sees of its run, through a parameter annotated `Run`. In a test: `Run(Job("name", payload))`."""

    __slots__ = ("_client", "attempt", "deadline", "deliveries", "job")

    def __init__(
        self,
        job: Job,
        *,
        attempt: int = 1,
        deliveries: int = 1,
        deadline: datetime | None = None,
        client: Producer | None = None,
    ) -> None:
        self.job = job
        self.attempt = attempt
        self.deliveries = deliveries
        self.deadline = deadline
        self._client = client

    @property
    def client(self) -> Producer:
        """To enqueue more at once, outside the atomic finish. TaskError where the Run was built without one."""
        if self._client is None:
            raise TaskError("this Run has no client: a worker gives it one, a test does with Run(job, client=…)")
        return self._client

    def __repr__(self) -> str:
        return f"Run({self.job!r}, attempt={self.attempt}, deliveries={self.deliveries})"


class Task(Generic[P, E, R]):
    """A registered function: still callable as the function, and usable wherever a task's name is.

    What it carries is settled at registration, the registry's defaults included; limits are in milliseconds.
    """

    def __init__(
        self, name: str, fn: Callable[..., R], handler: Handler, settings: Settings, home: TaskRegistry
    ) -> None:
        self.name = name
        self.fn = fn
        self.where = handler.where
        self.is_async = handler.is_async
        self.takes_payload = handler.takes_payload
        self.payload_type = handler.payload_type
        self.payload_optional = handler.payload_optional
        self.run_parameter = handler.run_parameter
        self.queue = settings.queue
        self.queue_settings = settings.queue_settings
        self.attempts = settings.attempts
        self.backoff = settings.backoff
        self.soft_timeout, self.hard_timeout = limits(f"task {name!r}", settings.soft_timeout, settings.hard_timeout)
        self._registry = home
        functools.update_wrapper(self, fn, updated=())

    if TYPE_CHECKING:

        def __call__(self, payload: P, /, *args: E.args, **kwargs: E.kwargs) -> R: ...
    else:  # a call is the function's own: the payload by keyword, or left to its default, works too

        def __call__(self, *args, **kwargs):
            return self.fn(*args, **kwargs)

    @overload
    async def enqueue(
        self: Payloadless[E, R], payload: None = None, /, *, dedupe: None = None, **options: Unpack[CallOptions]
    ) -> str: ...
    @overload
    async def enqueue(
        self: Payloadless[E, R], payload: None = None, /, *, dedupe: AnyDedupe, **options: Unpack[CallOptions]
    ) -> str | None: ...
    @overload
    async def enqueue(self, payload: P, /, *, dedupe: None = None, **options: Unpack[CallOptions]) -> str: ...
    @overload
    async def enqueue(self, payload: P, /, *, dedupe: AnyDedupe, **options: Unpack[CallOptions]) -> str | None: ...
    @awaited
    def enqueue(self, payload: Any = None, /, **options: Any) -> Coroutine[Any, Any, str | None]:
        """The job's id; None for a duplicate by `dedupe`. TaskNotBound unless exactly one worker or client has it."""
        try:
            producer: Any = self._registry.producer_of(self)  # its overloads tell calls apart that are one call here
        except TaskNotBound as exc:  # told where the call is awaited
            return failing(exc)
        asked: Coroutine[Any, Any, str | None] = producer.enqueue(self, payload, **options)
        return asked

    @overload
    async def schedule(
        self: Payloadless[E, R], payload: None, when: Duration | datetime, **options: Unpack[ScheduleOptions]
    ) -> str | None: ...
    @overload
    async def schedule(
        self, payload: P, when: Duration | datetime, **options: Unpack[ScheduleOptions]
    ) -> str | None: ...
    async def schedule(self, payload: Any, when: Duration | datetime, **options: Unpack[ScheduleOptions]) -> str | None:
        """As `enqueue`, for `when`: a duration from now, or an aware datetime."""
        return await self._registry.producer_of(self).schedule(self, payload, when, **options)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}, {self.where}>"


class NoPayload(Task[None, E, R]):
    """A task whose handler takes no payload."""

    if TYPE_CHECKING:
        # Called as its handler is, so without the payload that every other task takes.
        def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            self, *args: E.args, **kwargs: E.kwargs
        ) -> R: ...


AnyTask: TypeAlias = Task[Any, ..., Any]
Payloadless: TypeAlias = Task[None, E, R] | Task[Run, E, R]
"""What can be enqueued without a payload: a handler whose first parameter is its run takes none either."""


class Middleware(Protocol):
    """Wraps every run: awaits `call_next()` for the handler's result, and returns that or another."""

    async def __call__(self, run: Run, call_next: Callable[[], Awaitable[object]]) -> object: ...


class Producer(Protocol):
    """What enqueues: a Client, or a Worker."""

    @overload
    async def enqueue(
        self, task: Payloadless[E, R], payload: None = None, *, dedupe: None = None, **options: Unpack[CallOptions]
    ) -> str: ...
    @overload
    async def enqueue(
        self, task: Payloadless[E, R], payload: None = None, *, dedupe: AnyDedupe, **options: Unpack[CallOptions]
    ) -> str | None: ...
    @overload
    async def enqueue(
        self, task: Task[P, E, R], payload: P, *, dedupe: None = None, **options: Unpack[CallOptions]
    ) -> str: ...
    @overload
    async def enqueue(
        self, task: Task[P, E, R], payload: P, *, dedupe: AnyDedupe, **options: Unpack[CallOptions]
    ) -> str | None: ...
    @overload
    async def enqueue(
        self, task: str, payload: object = None, *, dedupe: None = None, **options: Unpack[CallOptions]
    ) -> str: ...
    @overload
    async def enqueue(
        self, task: str, payload: object = None, *, dedupe: AnyDedupe, **options: Unpack[CallOptions]
    ) -> str | None: ...

    async def enqueue_many(self, jobs: Iterable[Job], *, durability: Durability | None = None) -> list[str | None]: ...

    async def schedule(
        self, task: str | AnyTask, payload: object, when: Duration | datetime, **options: Unpack[ScheduleOptions]
    ) -> str | None: ...


class OnlyRun(Protocol[R_co]):
    """A handler without a payload that takes its run by keyword."""

    def __call__(self, *, run: Run) -> R_co: ...


class On(Protocol):
    """`on(name)` as a decorator."""

    @overload
    def __call__(self, fn: Callable[Concatenate[P, E], R], /) -> Task[P, E, R]: ...
    @overload
    def __call__(self, fn: Callable[[], R], /) -> NoPayload[[], R]: ...
    @overload
    def __call__(self, fn: OnlyRun[R], /) -> NoPayload[..., R]: ...


class Registers(Protocol):
    """`on`, for whatever has a registry: a TaskRegistry, a Worker."""

    def _register(self, name: str, fn: Callable[..., Any], options: TaskOptions) -> AnyTask: ...

    @overload
    def on(
        self, name: str, handler: Callable[Concatenate[P, E], R], /, **options: Unpack[TaskOptions]
    ) -> Task[P, E, R]: ...
    @overload
    def on(self, name: str, handler: Callable[[], R], /, **options: Unpack[TaskOptions]) -> NoPayload[[], R]: ...
    @overload
    def on(self, name: str, handler: OnlyRun[R], /, **options: Unpack[TaskOptions]) -> NoPayload[..., R]: ...
    @overload
    def on(self, name: str, /, **options: Unpack[TaskOptions]) -> On: ...
    def on(self, name: str, handler: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
        """Registers a handler under a name, as a decorator or at once. A Task's function is registered once more.

        Raises TaskError for a handler outside the rule, DuplicateTask for a name that is taken, InvalidName.
        """
        if callable(name):
            called = getattr(name, "__name__", "task")
            raise TaskError(f'`on` needs a name for {called!r}: write @….on("{called}")')
        check_name(name, "task")
        if handler is None:
            return functools.partial(self._register, name, options=options)
        return self._register(name, handler, options)


class TaskRegistry(Registers):
    """Collects tasks without a connection. `defaults` hold for its own tasks wherever those don't say otherwise."""

    def __init__(self, **defaults: Unpack[TaskOptions]) -> None:
        self._defaults = read_options("TaskRegistry", defaults)
        self._tasks: dict[str, AnyTask] = {}  # those of all included registries too, so that a lookup is one step
        self._included: list[TaskRegistry] = []
        self._includers: WeakSet[TaskRegistry] = WeakSet()
        self._producers: WeakSet[Producer] = WeakSet()

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """By name, those of the included registries among them; a live view."""
        return types.MappingProxyType(self._tasks)

    def get(self, name: str) -> AnyTask | None:
        return self._tasks.get(name)

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(tuple(self._tasks.values()))

    def include(self, *registries: TaskRegistry) -> None:
        """What an included registry gets later is seen here too. Including one twice, or in a circle, is harmless."""
        for registry in registries:
            if not isinstance(registry, TaskRegistry):
                raise TaskError(f"include({quoted(registry)}): must be a TaskRegistry")
            self._add(registry)
            if registry not in self._included:
                self._included.append(registry)
            registry._includers.add(self)

    def bind(self, producer: Producer) -> None:
        """From now on `task.enqueue` goes through `producer`, which is held weakly; with two, it can't be told."""
        self._producers.add(producer)

    def unbind(self, producer: Producer) -> None:
        self._producers.discard(producer)

    def producer_of(self, task: AnyTask) -> Producer:
        """The one producer that has this task, by this registry or one that includes it; otherwise TaskNotBound."""
        producers = {producer for registry in self._upwards() for producer in registry._producers}
        match list(producers):
            case [producer]:
                return producer
            case []:
                raise TaskNotBound(
                    f"task {task.name!r} is in no worker or client yet: give its registry to one with tasks=[…], "
                    f"or use client.enqueue(task, …)"
                )
            case several:
                raise TaskNotBound(
                    f"task {task.name!r} is in {len(several)} workers or clients, and which of them is meant can't be "
                    f"told: use client.enqueue(task, …)"
                )

    def _register(self, name: str, fn: Callable[..., Any], options: TaskOptions) -> AnyTask:
        fn = fn.fn if isinstance(fn, Task) else fn
        handler = read_handler(name, fn, Run)
        settings = read_options(f"task {name!r}", options).over(self._defaults)
        kind: type[AnyTask] = Task if handler.takes_payload else NoPayload
        task = kind(name, fn, handler, settings, self)
        self._add([task])
        return task

    def _add(self, tasks: Iterable[AnyTask]) -> None:
        """Here and in every registry that includes this one; all of them or, at a duplicate, none."""
        tasks, registries = list(tasks), self._upwards()
        for task in tasks:
            for registry in registries:
                other = registry._tasks.get(task.name, task)
                if other is not task:
                    raise DuplicateTask(f"task {task.name!r} is registered twice: at {other.where} and at {task.where}")
        for registry in registries:
            registry._tasks.update({task.name: task for task in tasks})

    def _upwards(self) -> list[TaskRegistry]:
        """This registry and all that include it, directly or not."""
        found: list[TaskRegistry] = [self]
        for registry in found:
            found.extend(includer for includer in registry._includers if includer not in found)
        return found


class Settings(NamedTuple):
    """One level of task options (a registry's, a task's own): checked, each under one name, limits in milliseconds."""

    queue: str | None
    queue_settings: Queue | None
    attempts: int | None
    backoff: Backoff | None
    soft_timeout: int | None
    hard_timeout: int | None

    def over(self, other: Settings) -> Settings:
        """These, and the other ones where these say nothing. A queue and its settings go together."""
        below = other if self.queue is None else other._replace(queue_settings=None)
        return below._replace(**{name: value for name, value in self._asdict().items() if value is not None})


def read_options(whose: str, options: TaskOptions) -> Settings:
    """Raises TaskError for an unknown option or both names of one; ConfigError for a value that can't be used."""
    unknown = sorted(options.keys() - TaskOptions.__annotations__.keys())
    if unknown:
        known = ", ".join(TaskOptions.__annotations__)
        raise _UnknownOption(f"{whose}: unknown option {unknown[0]!r}; known are {known}")
    attempts, retries = options.get("attempts"), options.get("max_retries")
    soft, timeout = options.get("soft_timeout"), options.get("timeout")
    if attempts is not None and retries is not None:
        raise TaskError(f"{whose}: give attempts (all runs) or max_retries (attempts - 1), not both")
    if soft is not None and timeout is not None:
        raise TaskError(f"{whose}: soft_timeout and timeout are two names of one limit: give one of them")
    if retries is not None:
        if type(retries) is not int or not 0 <= retries < LONGEST:
            raise ConfigError(f"{whose}: max_retries={quoted(retries)} must be a whole number, 0 or more")
        attempts = retries + 1
    backoff, queue = options.get("backoff"), options.get("queue")
    soft_ms, hard_ms = limits(whose, timeout if soft is None else soft, options.get("hard_timeout"))
    return Settings(
        queue=to_queue(queue, options.get("priority")),
        queue_settings=queue if isinstance(queue, Queue) else None,
        attempts=None if attempts is None else to_attempts(attempts, f"{whose}: attempts"),
        backoff=None if backoff is None else to_backoff(backoff),
        soft_timeout=soft_ms,
        hard_timeout=hard_ms,
    )


class _UnknownOption(TaskError, TypeError):
    """A keyword that is no option: caught as TaskError and as TypeError."""

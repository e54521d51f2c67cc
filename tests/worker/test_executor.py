"""Executor: a delivery in, its outcome out. No Redis here: the test is a table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from backstage.errors import SoftTimeout, TaskError
from backstage.job import Backoff, Delivery, Next
from backstage.outcome import Again, Dead, Discard, Done, Outcome, Released, Retry
from backstage.ready import Ready
from backstage.serializer import JsonSerializer
from backstage.task import Middleware, Run, TaskRegistry
from backstage.worker.executor import Executor, Policy, successors
from backstage.worker.limits import Limits
from backstage.worker.slots import Why
from backstage.worker.threads import Threads

NOW = 1_800_000_000_000
FIXED = Backoff("fixed", delay=100)


@dataclass
class Order:
    id: str


def delivery(
    task: str = "t", payload: str = "null", *, times: int = 1, queue: str = "default", **more: str
) -> Delivery:
    """An entry as an SDK writes it."""
    fields = {"taskName": task, "payload": payload, "enqueuedAt": "1795491213548", "jobId": "job-1", **more}
    return Delivery(queue, b"1-0", [part.encode() for pair in fields.items() for part in pair], times)


class Bench:
    """An executor, and what it leans on."""

    def __init__(self, tasks: TaskRegistry, middleware: list[Middleware], policies: Mapping[str, Policy]) -> None:
        self.why: dict[Delivery, Why] = {}
        self.expired: list[Delivery] = []
        self.limits, self.threads = Limits(self.expired.append), Threads(4)
        serializer = JsonSerializer()

        def ready(successor: Next) -> Ready:
            payload = serializer.encode(successor.payload).decode()
            return Ready(successor.task, payload, successor.queue or successor.route or "default")

        self.executor = Executor(
            tasks.get,
            policies=policies,
            serializer=serializer,
            middleware=middleware,
            max_deliveries=5,
            limits=self.limits,
            threads=self.threads,
            why=self.why,
            now=lambda: NOW,
            ready=ready,
            client=None,  # type: ignore[arg-type]
        )

    async def execute(self, delivery: Delivery) -> Outcome:
        """As the slots do: in a task of its own."""
        return await asyncio.create_task(self.executor.execute(delivery))


@contextlib.asynccontextmanager
async def bench(tasks: TaskRegistry, *middleware: Middleware, policy: Policy | None = None) -> AsyncIterator[Bench]:
    made = Bench(tasks, list(middleware), {"default": policy or Policy(attempts=3, backoff=FIXED), "q": Policy()})
    try:
        yield made
    finally:
        made.limits.close()
        made.threads.close()


async def run(handler: Callable[..., Any], entry: Delivery | None = None, **options: Any) -> Outcome:
    """The outcome of one delivery for one handler."""
    tasks = TaskRegistry()
    tasks.on("t", handler, **options)
    async with bench(tasks) as it:
        return await it.execute(entry or delivery())


def raises(error: BaseException) -> Callable[[], Any]:
    async def handler() -> None:
        raise error

    return handler


def returns(result: object) -> Callable[[], Any]:
    async def handler() -> object:
        return result

    return handler


async def echo(payload: object) -> None: ...
async def typed(order: Order) -> None: ...
async def number(n: int) -> None: ...


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "entry", "outcome"),
    [
        (echo, delivery(payload='{"a":1}'), Done()),
        (typed, delivery(payload='{"id":"7"}'), Done()),
        (returns(None), delivery(), Done()),
        (returns({"page": 2}), delivery(), Done()),
        (returns({"next": 3}), delivery(), Done()),
        (returns([1, 2]), delivery(), Done()),
        (lambda payload: None, delivery(), Done()),
        (number, delivery(payload='"x"'), Dead("invalid-payload", "ValidationError: Expected `int`, got `str`")),
        (typed, delivery(payload="[]"), Dead("invalid-payload", "ValidationError: Expected `object`, got `array`")),
        (raises(Discard("gone")), delivery(), Dead("discarded", "gone")),
        (raises(Retry("later", delay=7)), delivery(), Again(7, "Retry: later")),
        (raises(Retry("later")), delivery(), Again(100, "Retry: later")),
        (raises(ValueError("no")), delivery(), Again(100, "ValueError: no")),
        (raises(ValueError("no")), delivery(attempt="1"), Again(100, "ValueError: no")),
        (raises(ValueError()), delivery(backoff='{"type":"fixed","delay":5}'), Again(5, "ValueError: ")),
        (raises(SystemExit(1)), delivery(), Again(100, "SystemExit: 1")),
        (raises(KeyboardInterrupt()), delivery(), Again(100, "KeyboardInterrupt: ")),
        (raises(asyncio.CancelledError("mine")), delivery(), Again(100, "CancelledError: mine")),
        (raises(GeneratorExit()), delivery(), Again(100, "GeneratorExit: ")),
        (raises(ExceptionGroup("g", [ValueError(), Retry("r", delay=3)])), delivery(), Again(3, "Retry: r")),
        (raises(BaseExceptionGroup("g", [ExceptionGroup("h", [Discard("d")])])), delivery(), Dead("discarded", "d")),
    ],
)  # fmt: skip
async def test_outcomes(handler: Callable[..., Any], entry: Delivery, outcome: Outcome) -> None:
    """What a run comes to."""
    assert await run(handler, entry) == outcome


@pytest.mark.parametrize(
    ("entry", "reason", "error"),
    [
        (delivery(times=6), "crash-loop", "5 deliveries ended without a finish"),
        (delivery(times=2, crashes="4"), "crash-loop", "5 deliveries ended without a finish"),
        (delivery(payload="{"), "malformed", "DecodeError: "),
        (delivery(payload=""), "malformed", "DecodeError: "),
        (delivery(payload="[" * 100_000), "malformed", "RecursionError: "),
        (delivery(payload="NaN"), "malformed", "DecodeError: "),
        (Delivery("default", b"1-0", [b"taskName", b"t"]), "malformed", "MalformedJob: the entry has no payload"),
        (Delivery("default", b"1-0", [b"payload", b"1"]), "malformed", "MalformedJob: the entry has no readable"),
        (Delivery("default", b"1-0", [b"taskName", b"\xff", b"payload", b"1"]), "malformed", "MalformedJob: "),
        (Delivery("default", b"1-0", [b"odd"]), "malformed", "MalformedJob: "),
        (Delivery("default", b"1-0", []), "malformed", "MalformedJob: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_never_run(entry: Delivery, reason: str, error: str) -> None:
    """What can't be run ends in the dead letter, whatever its attempts."""
    outcome = await run(echo, entry)
    assert isinstance(outcome, Dead)
    assert outcome.reason == reason
    assert outcome.error.startswith(error)


@pytest.mark.parametrize(
    ("times", "crashes", "runs"), [(5, "0", True), (1, "4", True), (3, "2", True), (4, "2", False)]
)
async def test_crashes_add_up(times: int, crashes: str, runs: bool) -> None:
    """Deliveries of this entry and the crashes that the job brought along count together."""
    outcome = await run(echo, delivery(times=times, crashes=crashes))
    assert isinstance(outcome, Done if runs else Dead)


async def test_the_last_attempt() -> None:
    """The failure of the last run gives the job up, with error and traceback; the queue says how many there are."""
    outcome = await run(raises(ValueError("no")), delivery(attempt="2"))
    assert isinstance(outcome, Dead)
    assert (outcome.reason, outcome.error) == ("error", "ValueError: no")
    assert outcome.traceback.startswith("Traceback (most recent call last):")
    assert outcome.traceback.rstrip().endswith("ValueError: no")


@pytest.mark.parametrize(
    ("options", "fields", "outcome"),
    [
        ({}, {"attempt": "2"}, Dead),
        ({"attempts": 4}, {"attempt": "2"}, Again),
        ({"attempts": 4}, {"attempt": "2", "attempts": "3"}, Dead),
        ({"attempts": 1}, {"attempts": "2"}, Again),
        ({"attempts": 1}, {"attempts": "1.5"}, Dead),
    ],
)
async def test_whose_attempts_hold(options: Any, fields: Any, outcome: type[Outcome]) -> None:
    """The job's own, else its task's, else its queue's."""
    assert isinstance(await run(raises(ValueError()), delivery(**fields), **options), outcome)


@pytest.mark.parametrize(
    ("options", "fields", "delay"),
    [
        ({}, {}, 100),
        ({"backoff": {"type": "fixed", "delay": 7}}, {}, 7),
        (
            {"backoff": {"type": "fixed", "delay": 7}},
            {"backoff": '{"type":"exponential","delay":8}', "attempt": "1"},
            16,
        ),
        ({}, {"backoff": '{"type":"exponential","delay":8,"maxDelay":0}', "attempt": "1"}, 16),
        ({}, {"backoff": "soon"}, 100),
    ],
)
async def test_whose_backoff_holds(options: Any, fields: Any, delay: int) -> None:
    """The job's own, else its task's, else its queue's; an odd one of others is none."""
    outcome = await run(raises(ValueError()), delivery(**fields), **options)
    assert isinstance(outcome, Again)
    assert outcome.delay == delay


# ---- a task that nobody knows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "outcome"),
    [
        (None, Again(1_000, "unknown task 'new'", counts=False, since=NOW)),
        (NOW - 500, Again(1_000, "unknown task 'new'", counts=False, since=NOW - 500)),
        (NOW - 9_000, Again(9_000, "unknown task 'new'", counts=False, since=NOW - 9_000)),
        (NOW - 3_600_000, Again(30_000, "unknown task 'new'", counts=False, since=NOW - 3_600_000)),
        (NOW - 3_600_001, Dead("unknown-task", "no handler for task 'new' within an hour")),
    ],
)
async def test_unknown_task(since: int | None, outcome: Outcome) -> None:
    """It waits as long as it has waited, between a second and half a minute, for an hour; no attempt is used up."""
    async with bench(TaskRegistry()) as it:
        assert await it.execute(delivery("new", **({} if since is None else {"since": str(since)}))) == outcome


async def test_a_task_that_comes_later() -> None:
    """A task that is registered while the worker runs is found from then on."""
    tasks = TaskRegistry()
    async with bench(tasks) as it:
        assert isinstance(await it.execute(delivery("new")), Again)
        tasks.on("new", echo)
        assert await it.execute(delivery("new")) == Done()


async def test_an_annotation_that_cannot_be_decoded() -> None:
    """It is told before the first job; a task that comes later fails its run, and harms nothing else."""

    async def handler(payload: Bench) -> None: ...

    tasks = TaskRegistry()
    tasks.on("t", handler)
    async with bench(tasks) as it:
        with pytest.raises(TaskError, match=r"task 't' \(.*test_executor\.py:\d+\): .*decoded"):
            it.executor.check(tasks)
        outcome = await it.execute(delivery())
    assert isinstance(outcome, Again)
    assert "TaskError: task 't'" in outcome.error


# ---- what the handler gets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", [delivery(payload='{"id":"7"}'), delivery(payload='{"id":"7"}', attempts="9")], ids=["fast", "slow"]
)
async def test_payload(entry: Delivery) -> None:
    """The payload, decoded by the annotation; with options and without it is the same."""
    got: list[Order] = []

    async def handler(order: Order) -> None:
        got.append(order)

    assert await run(handler, entry) == Done()
    assert got == [Order("7")]


async def test_run() -> None:
    """What a handler sees of its run."""
    got: list[Run] = []

    async def handler(order: Order, run: Run) -> None:
        got.append(run)

    await run(handler, delivery(payload='{"id":"7"}', attempt="1", times=3))  # type: ignore[arg-type]
    (seen,) = got
    assert (seen.attempt, seen.deliveries, seen.deadline) == (2, 3, None)
    assert (seen.job.id, seen.job.task, seen.job.payload, seen.job.queue) == ("job-1", "t", Order("7"), "default")


async def test_an_entry_without_id() -> None:
    """Another SDK wrote it: its id is `<queue>:<entry id>`."""
    got: list[str] = []

    async def handler(run: Run) -> None:
        got.append(run.job.id)

    fields = [b"taskName", b"t", b"payload", b"1", b"enqueuedAt", b"1"]
    await run(handler, Delivery("default", b"5-1", fields))
    assert got == ["default:5-1"]


@pytest.mark.parametrize("payload", ["null", "7"])
async def test_a_default_for_the_payload(payload: str) -> None:
    """A job without payload leaves it to the default, whatever its type."""
    got: list[int] = []

    async def handler(days: int = 30) -> None:
        got.append(days)

    assert await run(handler, delivery(payload=payload)) == Done()
    assert got == [30 if payload == "null" else 7]


# ---- what comes next -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "jobs"),
    [
        (Next("b", [1]), [("b", [1], "default", None)]),
        (Next("b", queue="x", delay=5), [("b", None, "x", 5)]),
        ([Next("b"), Next("c", priority="low")], [("b", None, "default", None), ("c", None, "low", None)]),
        ((Next("b"),), [("b", None, "default", None)]),
        ({"next": "b", "payload": {"n": 1}, "delay": 7}, [("b", {"n": 1}, "default", 7)]),
        ({"next": "b", "priority": "urgent", "queue": None}, [("b", None, "urgent", None)]),
    ],
)
async def test_successors(result: object, jobs: list[Any]) -> None:
    """A Next, several, or the mapping: encoded, and routed as an enqueue is."""
    outcome = await run(returns(result))
    assert isinstance(outcome, Done)
    found = [(job.task, json.loads(bytes(job.payload)), job.queue, job.delay) for job in outcome.next]
    assert found == jobs
    assert len({job.id for job in outcome.next}) == len(jobs)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"next": "b", "paylaod": 1}, "`next` and 'paylaod'"),
        ({"next": "b c"}, "task name 'b c'"),
        ([Next("b"), 3], "a list with a Next and a int"),
        (Next("b", object()), "JSON can't carry"),
    ],
)
async def test_what_cannot_come_next(result: object, says: str) -> None:
    """A result that asks for the impossible fails the run."""
    outcome = await run(returns(result))
    assert isinstance(outcome, Again)
    assert says in outcome.error


def test_one_next_for_many_runs() -> None:
    """The same Next returned twice is two jobs."""
    again = Next("b")
    first, second = (next(successors(again)) for _ in range(2))
    assert first is second is again
    assert first.job().id != second.job().id


# ---- limits and cancellation -----------------------------------------------------------------------------------------


async def test_soft_limit() -> None:
    """It is raised in the handler, and fails the run; at the last attempt as `timeout`."""

    async def handler() -> None:
        await asyncio.sleep(60)

    again = await run(handler, delivery(), timeout=10)
    assert again == Again(100, "SoftTimeout: ran longer than its soft limit of 10 ms")
    dead = await run(handler, delivery(attempts="1"), timeout=10)
    assert isinstance(dead, Dead)
    assert dead.reason == "timeout"


async def test_soft_limit_turned_into_another_error() -> None:
    """What the handler raises instead is what counts."""

    async def handler() -> None:
        try:
            await asyncio.sleep(60)
        except SoftTimeout:
            raise LookupError("gave up") from None

    assert await run(handler, delivery(timeout="10")) == Again(100, "LookupError: gave up")


async def test_soft_limit_in_a_thread() -> None:
    """A plain function's counts when it returns."""
    outcome = await run(lambda payload: time.sleep(0.03), delivery(timeout="10"))
    assert isinstance(outcome, Again)
    assert "in a thread that can't be interrupted" in outcome.error


async def test_hard_limit() -> None:
    """The executor says what becomes of a job whose run was cut off; who cuts it off is the slots' business."""
    async with bench(TaskRegistry()) as it:
        dead = it.executor.expired(delivery())
    assert dead == Dead("timeout", "HardTimeout: ran longer than its hard limit")


@pytest.mark.parametrize("why", ["stop", "lost", "hard"])
async def test_cancelled_by_the_worker(why: Why) -> None:
    """A run that the worker cancelled is released: no failed run."""
    tasks, begun = TaskRegistry(), asyncio.Event()

    @tasks.on("t")
    async def handler() -> None:
        begun.set()
        await asyncio.sleep(60)

    entry = delivery()
    async with bench(tasks) as it:
        task = asyncio.create_task(it.executor.execute(entry))
        await begun.wait()
        it.why[entry] = why
        task.cancel()
        assert await task == Released()


async def test_finished_in_spite_of_it() -> None:
    """A handler that finishes though it was cancelled has finished."""
    tasks, begun = TaskRegistry(), asyncio.Event()

    @tasks.on("t")
    async def handler() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    entry = delivery()
    async with bench(tasks) as it:
        task = asyncio.create_task(it.executor.execute(entry))
        await begun.wait()
        it.why[entry] = "stop"
        task.cancel()
        assert await task == Done()


# ---- middleware, and the way past it ---------------------------------------------------------------------------------


async def test_middleware() -> None:
    """An onion: the first is outermost; its result is the run's."""
    order: list[str] = []

    def layer(name: str) -> Middleware:
        async def wrap(run: Run, call_next: Callable[[], Any]) -> object:
            order.append(f"{name} {run.job.task}")
            await call_next()
            return Next("b") if name == "outer" else None

        return wrap

    tasks = TaskRegistry()
    tasks.on("t", lambda: order.append("handler"))
    async with bench(tasks, layer("outer"), layer("inner")) as it:
        outcome = await it.execute(delivery())
    assert order == ["outer t", "inner t", "handler"]
    assert isinstance(outcome, Done)
    assert [job.task for job in outcome.next] == ["b"]


async def test_fast_and_slow_agree() -> None:
    """The fast path, which the second delivery of a plain task takes, gives what the slow one gives."""
    tasks = TaskRegistry()

    @tasks.on("t", attempts=2, backoff=FIXED)
    async def handler(n: int) -> Next | None:
        if n > 5:
            raise ValueError("too much")
        return Next("b", n) if n else None

    async with bench(tasks) as it:
        for payload in ("0", "3", "9", '"x"', "{"):
            outcomes = [await it.execute(delivery(payload=payload)) for _ in range(3)]
            kinds = {
                (type(outcome), getattr(outcome, "error", ""), getattr(outcome, "reason", "")) for outcome in outcomes
            }
            assert len(kinds) == 1, kinds


async def test_lines_about_a_job(caplog: pytest.LogCaptureFixture) -> None:
    """Each has id, task, queue and attempt; none has the payload."""
    caplog.set_level(logging.DEBUG, "backstage")
    await run(raises(ValueError("no")), delivery(payload='"canary"', attempt="1"))
    await run(number, delivery(payload='"canary"'))
    await run(raises(Discard("gone")), delivery(payload='"canary"'))
    await run(echo, delivery("new", payload='"canary"'))
    records: list[Any] = caplog.records
    assert [(line.id, line.task, line.queue, line.attempt) for line in records] == [
        ("job-1", "t", "default", 2),
        ("job-1", "t", "default", 1),
        ("job-1", "t", "default", 1),
        ("job-1", "new", "default", 1),
    ]
    assert "canary" not in caplog.text


async def test_raw_payload() -> None:
    """`msgspec.Raw` as annotation hands the JSON through as it is."""
    got: list[bytes] = []

    async def handler(payload: msgspec.Raw) -> None:
        got.append(bytes(payload))

    assert await run(handler, delivery(payload='{"a": 1}')) == Done()
    assert got == [b'{"a": 1}']

"""Executor: a delivery in, its outcome out. It knows no Redis, so its test is a table.

Straight down: crashed too often → Dead; undecodable → Dead; unknown task → Again, after an hour Dead; payload of the
wrong shape → Dead; then the handler, inside its middleware: timeout, Retry, Discard, error → Again or Dead; cancelled
by the worker → Released; anything else it returns says what comes next.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from backstage import retry, shown, wire
from backstage.errors import ConfigError, HardTimeout, MalformedJob, SoftTimeout, TaskError
from backstage.job import Backoff, Delivery, Job, Next
from backstage.logs import job_fields
from backstage.outcome import DONE, RELEASED, Again, Dead, Discard, Done, Outcome, Reason, Retry
from backstage.ready import Ready
from backstage.serializer import Serializer, without_values
from backstage.task import AnyTask, Middleware, Producer, Run
from backstage.worker.limits import Interruptible, Limits
from backstage.worker.slots import Why
from backstage.worker.threads import Threads

log = logging.getLogger("backstage")

UNKNOWN_FOR = 3_600_000
"""Ms for which a job waits for a worker that knows its task, before it goes to the dead letter."""

NEXT_KEYS = frozenset(
    {"next", "payload", "priority", "queue", "delay", "dedupe", "attempts", "backoff", "timeout"}
)  # fmt: skip


class Policy(msgspec.Struct, frozen=True):
    """What holds where a job says nothing itself: its task's, its queue's, the worker's, in that order. Ms."""

    attempts: int = retry.DEFAULT_ATTEMPTS
    backoff: Backoff = retry.DEFAULT_BACKOFF
    soft: int | None = None
    hard: int | None = None


class Plan(msgspec.Struct, frozen=True):
    """How a task runs in a queue; made once, at its first job."""

    task: AnyTask
    decode: Callable[[bytes], Any]
    policy: Policy
    direct: bool
    """An async handler of just a payload, without limits or middleware: it is called as it stands."""


class Executor:
    """Turns deliveries into outcomes; never raises.

    `policies` has one for each queue, `why` says why a run was cancelled, `ready` encodes a successor as an enqueue
    does, `now` is the server's time in ms.
    """

    def __init__(
        self,
        find: Callable[[str], AnyTask | None],
        *,
        policies: Mapping[str, Policy],
        serializer: Serializer,
        middleware: Sequence[Middleware],
        max_deliveries: int,
        limits: Limits,
        threads: Threads,
        why: Mapping[Delivery, Why],
        now: Callable[[], int],
        ready: Callable[[Next], Ready],
        client: Producer,
    ) -> None:
        self._find, self._policies, self._serializer, self._middleware = find, policies, serializer, tuple(middleware)
        self._max_deliveries, self._limits, self._threads, self._why = max_deliveries, limits, threads, why
        self._now, self._ready, self._client = now, ready, client
        self._plans: dict[tuple[str, bytes], Plan] = {}
        self._direct: dict[str, dict[bytes, Plan]] = {queue: {} for queue in policies}

    def check(self, tasks: Iterable[AnyTask]) -> None:
        """TaskError, better before the first job than at it, for a payload that the serializer could never decode."""
        for task in tasks:
            self._decoder(task)

    async def execute(self, delivery: Delivery) -> Outcome:
        fields = delivery.fields
        # The fast path: a first delivery, fields in the order in which every SDK writes them, no options of its own.
        if len(fields) in (6, 8) and fields[2] == b"payload" and fields[0] == b"taskName" and delivery.times == 1:
            plan = self._direct[delivery.queue].get(fields[1])
            if plan is not None and (len(fields) == 6 or fields[6] == b"jobId"):
                try:
                    payload = plan.decode(fields[3])
                except (msgspec.DecodeError, ValueError, RecursionError) as exc:
                    return self._undecodable(delivery, exc)
                try:
                    result = await plan.task.fn(payload)
                    return DONE if result is None else self._done(result)
                except BaseException as exc:
                    return self._failed(delivery, plan.policy, exc)
        return await self._execute(delivery)

    async def _execute(self, delivery: Delivery) -> Outcome:
        try:
            job = wire.decode(delivery)
            text = wire.payload_of(wire.fields_of(delivery.fields))
        except MalformedJob as exc:
            return self._undecodable(delivery, exc)
        if delivery.times + job.crashes > self._max_deliveries:
            return self._dead(
                job, "crash-loop", f"{delivery.times + job.crashes - 1} deliveries ended without a finish"
            )
        try:
            plan = self._plans.get((delivery.queue, job.task.encode())) or self._plan(delivery.queue, job.task)
        except TaskError as exc:
            return self._failed(delivery, self._policies[delivery.queue], exc)
        if plan is None:
            return self._unknown(job)
        try:
            absent = plan.task.payload_optional and text == b"null"  # its default stands, whatever its type
            job._payload = None if absent else plan.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            return self._undecodable(delivery, exc)
        try:
            return self._done(await self._run(plan, delivery, job))
        except BaseException as exc:
            return self._failed(delivery, plan.policy, exc)
        finally:
            self._limits.end(delivery)

    # ---- running -----------------------------------------------------------------------------------------------------

    def _plan(self, queue: str, name: str) -> Plan | None:
        task = self._find(name)
        if task is None:
            return None
        own, base = task, self._policies[queue]
        policy = Policy(
            attempts=own.attempts or base.attempts,
            backoff=own.backoff or base.backoff,
            soft=own.soft_timeout if own.soft_timeout is not None else base.soft,
            hard=own.hard_timeout if own.hard_timeout is not None else base.hard,
        )
        bare = task.is_async and task.takes_payload and not task.payload_optional and task.run_parameter is None
        direct = bare and policy.soft is None and policy.hard is None and not self._middleware
        plan = Plan(task, self._decoder(task), policy, direct)
        self._plans[queue, name.encode()] = plan
        if direct:
            self._direct[queue][name.encode()] = plan
        return plan

    def _decoder(self, task: AnyTask) -> Callable[[bytes], Any]:
        try:
            return self._serializer.decoder(task.payload_type)
        except TaskError as exc:
            raise TaskError(f"task {task.name!r} ({task.where}): {exc}") from exc

    async def _run(self, plan: Plan, delivery: Delivery, job: Job) -> object:
        soft = job.timeout if job.timeout is not None else plan.policy.soft
        hard = plan.policy.hard
        limits = [limit for limit in (soft, hard) if limit is not None]
        deadline = datetime.now(UTC) + timedelta(milliseconds=min(limits)) if limits else None
        run = Run(job, attempt=job.attempt + 1, deliveries=delivery.times, deadline=deadline, client=self._client)
        call: Callable[[], Awaitable[object]] = partial(self._call, plan, delivery, run, soft, hard)
        for middleware in reversed(self._middleware):
            call = partial(middleware, run, call)
        return await call()

    async def _call(self, plan: Plan, delivery: Delivery, run: Run, soft: int | None, hard: int | None) -> object:
        task = plan.task
        named = {} if task.run_parameter is None else {task.run_parameter: run}
        empty = not task.takes_payload or (task.payload_optional and run.job.payload is None)
        call = partial(task.fn, **named) if empty else partial(task.fn, run.job.payload, **named)
        if not task.is_async:
            return await self._in_thread(call, delivery, soft, hard)
        if soft is None and hard is None:
            return await call()
        watch = self._limits.begin(delivery, soft, hard)
        return await Interruptible(_coroutine(call()), watch, lambda: delivery in self._why)

    async def _in_thread(
        self, call: Callable[[], object], delivery: Delivery, soft: int | None, hard: int | None
    ) -> object:
        """A thread can't be interrupted: the soft limit counts when it returns; the slot stays taken until it does."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if hard is not None:
            self._limits.begin(delivery, None, hard)
        future = self._threads.run(call)
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                if future.done() or self._why.get(delivery) == "stop":
                    raise
            except BaseException:  # the thread's own end: told below
                break
        result = future.result()
        if asyncio.iscoroutine(result) or isinstance(result, asyncio.Future):
            result = await result
        if soft is not None and loop.time() - begun > soft / 1000:
            raise SoftTimeout(f"ran longer than its soft limit of {soft} ms, in a thread that can't be interrupted")
        return result

    # ---- outcomes ----------------------------------------------------------------------------------------------------

    def _done(self, result: object) -> Outcome:
        """What the handler returned, as what comes next. Raises what makes the run a failed one."""
        jobs = []
        for successor in successors(result):
            ready, job = self._ready(successor), successor.job()
            job._payload, job._queue = msgspec.Raw(ready.payload.encode()), ready.queue
            jobs.append(job)
        return Done(tuple(jobs)) if jobs else DONE

    def _failed(self, delivery: Delivery, policy: Policy, exc: BaseException) -> Outcome:
        if isinstance(exc, GeneratorExit) and not _running():
            raise exc  # not the handler's: the interpreter closes what a dead loop left
        why = self._why.get(delivery)
        if isinstance(exc, asyncio.CancelledError) and not isinstance(exc, SoftTimeout) and why:
            return RELEASED  # it has been settled already where it was abandoned
        job = wire.decode(delivery)
        signal = next((part for part in shown.parts(exc) if isinstance(part, (Retry, Discard))), None)
        if isinstance(signal, Discard):
            return self._dead(job, "discarded", signal.reason)
        failed = job.attempt + 1
        wait = retry.decide(job.backoff or policy.backoff, job.attempts or policy.attempts, failed, random.random)
        timeout = any(isinstance(part, SoftTimeout) for part in shown.parts(exc))
        text = shown.error(exc) if signal is None else f"Retry: {signal.reason}"
        extra = _extra(job, failed)
        if wait is None:
            log.error("job failed for the last time: %s", text, extra=extra, exc_info=exc)
            return Dead("timeout" if timeout else "error", text, shown.trace(exc))
        if isinstance(signal, Retry) and signal.delay is not None:
            wait = signal.delay
        log.warning("job failed, next run in %d ms: %s", wait, text, extra=extra, exc_info=None if signal else exc)
        return Again(wait, text)

    def expired(self, delivery: Delivery) -> Dead:
        """What becomes of a job whose run passed its hard limit."""
        job = wire.decode(delivery)
        error = HardTimeout("ran longer than its hard limit")
        return self._dead(job, "timeout", f"{type(error).__name__}: {error}")

    def _undecodable(self, delivery: Delivery, exc: Exception) -> Dead:
        reason: Reason = "invalid-payload" if isinstance(exc, msgspec.ValidationError) else "malformed"
        entry_id = delivery.entry_id.decode()
        try:
            extra = _extra(wire.decode(delivery))
        except MalformedJob:
            extra = job_fields(f"{delivery.queue}:{entry_id}", "", delivery.queue, 1)
        said = without_values(exc)
        log.error("job can't be read (%s), entry %s of queue %s", said, entry_id, delivery.queue, extra=extra)
        return Dead(reason, f"{type(exc).__name__}: {said}")

    def _unknown(self, job: Job) -> Outcome:
        """Uses up no attempt: in a rolling deploy another worker knows the task, or this one soon will."""
        now = self._now()
        since = job.since or now
        waited = now - since
        if waited > UNKNOWN_FOR:
            return self._dead(job, "unknown-task", f"no handler for task {job.task!r} within an hour")
        log.warning("no handler for task %r here; the job waits for a worker that has one", job.task, extra=_extra(job))
        return Again(min(max(waited, 1_000), 30_000), f"unknown task {job.task!r}", counts=False, since=since)

    def _dead(self, job: Job, reason: Reason, error: str) -> Dead:
        log.error("job goes to the dead letter: %s: %s", reason, error, extra=_extra(job))
        return Dead(reason, error)


def successors(result: object) -> Iterator[Next]:
    """What a handler's result asks for: `Next`, a list of them, or the mapping. Anything else asks for nothing.

    Raises ConfigError for a mapping with `next` and keys that no Next has.
    """
    if isinstance(result, Next):
        yield result
    elif isinstance(result, Mapping) and isinstance(result.get("next"), str):
        unknown = [key for key in result if key not in NEXT_KEYS]
        if unknown:
            raise ConfigError(
                f"the handler returned a mapping with `next` and {', '.join(map(repr, unknown))}: "
                f"what comes next takes {', '.join(sorted(NEXT_KEYS))}"
            )
        options: dict[str, Any] = {key: value for key, value in result.items() if key not in ("next", "payload")}
        yield Next(result["next"], result.get("payload"), **options)
    elif isinstance(result, (list, tuple)) and any(isinstance(part, Next) for part in result):
        for part in result:
            if not isinstance(part, Next):
                raise ConfigError(
                    f"the handler returned a list with a Next and a {type(part).__name__}: give only Next"
                )
            yield part


async def _coroutine(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _running() -> bool:
    """Whether a task runs here, and so its coroutine is not just being thrown away."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _extra(job: Job, attempt: int | None = None) -> dict[str, Any]:
    return job_fields(job.id, job.task, job.queue or "", job.attempt + 1 if attempt is None else attempt)

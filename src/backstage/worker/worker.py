"""Worker: wires the parts, and owns their order of start and stop. What a part does is told in its own room."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from backstage.client import Client
from backstage.config import WorkerConfig, WorkerOptions
from backstage.errors import ConfigError, RedisRefused, RedisUnavailable
from backstage.job import Delivery
from backstage.link import Link, Space
from backstage.logs import LoggerConfig, configure
from backstage.outcome import Outcome
from backstage.queue import Queue, ordered
from backstage.scheduler import Timetable
from backstage.service import Attachment, Life, Service
from backstage.stream import Stream, consumer_name
from backstage.task import AnyTask, Registers, TaskOptions, TaskRegistry
from backstage.worker.executor import Executor, Policy
from backstage.worker.keyspace import Alone, InTurn, Keyspace, Room, Whose, warn
from backstage.worker.limits import Limits
from backstage.worker.slots import Slots, Why
from backstage.worker.threads import Threads
from backstage.worker.upkeep import pulse

log = logging.getLogger("backstage")

FLUSH = 10.0
"""Seconds for which a stopping worker tries to make outcomes durable while Redis is away."""


class Worker(Client, Service, Registers):
    """Runs jobs: `worker = Worker()`, `@worker.on("email.send")`, `worker.run()`. It is a Client too.

    `Worker(**options)` takes what isn't given from the environment; `Worker(config)` reads no environment. `logger`
    None leaves logging alone.
    """

    def __init__(
        self,
        config: WorkerConfig | None = None,
        logger: LoggerConfig | logging.Logger | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._settings = WorkerConfig.from_env(**options) if config is None else config.replace(**options)
        self._set_up(self._settings)
        if logger is not None:
            configure(logger)
        self._registry.include(*self._settings.tasks)
        self._attachments: list[Attachment] = []

    @property
    def config(self) -> WorkerConfig:
        """What holds: arguments, environment, defaults, in that order."""
        return self._settings

    @property
    def worker_id(self) -> str:
        """The configured one, or `<host>-<pid>`."""
        return self._settings.identity

    @property
    def client(self) -> Client:
        """The worker itself: it enqueues as a Client does."""
        return self

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """What it runs, by name."""
        return self._registry.tasks

    def include(self, *registries: TaskRegistry) -> None:
        """Run the tasks of these registries too, those that they get later among them."""
        self._registry.include(*registries)

    def configure(self, **options: Unpack[WorkerOptions]) -> None:
        """Change settings before the first connection (the command line's `--url`, tests). ConfigError after it."""
        settings = self._settings.replace(**options)
        self._reconfigure(settings)
        self._settings = settings
        self._registry.include(*settings.tasks)

    def _register(self, name: str, fn: Callable[..., Any], options: TaskOptions) -> AnyTask:
        return self._registry._register(name, fn, options)

    def _attach(self, attachment: Attachment) -> None:
        self._attachments.append(attachment)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def _serve(self, life: Life) -> None:
        if not self._registry.tasks and not any(each.listens for each in self._attachments):
            raise ConfigError(
                "this worker has no task and no broadcast handler, so it would only put jobs off: register one with "
                '@worker.on("name"), or include a TaskRegistry'
            )
        opened = self._link is None
        await self._connector.mend()
        link = self._open()
        try:
            await Hall(self, link).serve(life)
        finally:
            if opened:
                await self.aclose()

    def _served(self) -> tuple[Queue, ...]:
        """The configured queues, and those of its tasks."""
        queues: dict[str, Queue | str] = {queue.name: queue for queue in self._settings.queues}
        for task in self._registry:
            if task.queue is not None:
                queues.setdefault(task.queue, task.queue_settings or task.queue)
        return ordered(queues.values())


class Hall:
    """The parts of one run of a worker: the slots, and for each keyspace what serves it."""

    def __init__(self, worker: Worker, link: Link) -> None:
        config = self._config = worker.config
        self._worker_id, self._consumer = worker.worker_id, consumer_name(worker.worker_id)
        self._mend, self._attachments, self._tasks = worker._connector.mend, worker._attachments, worker.tasks
        self._queues = worker._served()
        self._threads = Threads(config.concurrency)
        self._limits = Limits(self._expire)
        self._spaces = [self._keyspace(n, space) for n, space in enumerate(link.spaces)]
        self._why: dict[Delivery, Why] = {}
        self._executor = Executor(
            worker._registry.get,
            policies={queue.name: _policy(queue, config) for queue in self._queues},
            serializer=config.serializer,
            middleware=config.middleware,
            max_deliveries=config.max_deliveries,
            limits=self._limits,
            threads=self._threads,
            why=self._why,
            now=self.stream.clock.now,
            ready=worker._ready,
            client=worker,
        )
        self._executor.check(worker._registry)
        self._slots, self._room = self._shared() if len(self._spaces) > 1 else self._alone(self._spaces[0])
        self._timetable = Timetable(worker, config.schedules) if config.schedules else None

    @property
    def stream(self) -> Stream:
        """Keyspace 0's."""
        return self._spaces[0].stream

    def _keyspace(self, n: int, space: Space) -> Keyspace:
        return Keyspace(
            space.redis,
            space.prefix,
            self._config,
            queues=self._queues,
            consumer=self._consumer,
            facts=self._facts,
            mend=self._mend,
            eased=self._eased,
            lost=self._lose,
            overdue=self._limits.overdue,
            current=None if n else self._current,
        )

    def _alone(self, space: Keyspace) -> tuple[Slots, Room]:
        slots = self._make_slots(space.finisher.put, space.finisher.waiting)
        return slots, Alone(slots)

    def _shared(self) -> tuple[Slots, Room]:
        whose = Whose(self._spaces)
        slots = self._make_slots(whose.put, whose.waiting)
        return slots, InTurn(slots, whose, len(self._spaces))

    def _make_slots(self, settle: Callable[[Delivery, Outcome], None], unsettled: Callable[[], int]) -> Slots:
        queues = [queue.name for queue in self._queues]
        return Slots(self._config.concurrency, queues, self._executor.execute, settle, unsettled, self._why)

    async def serve(self, life: Life) -> None:
        """From the first connection to the last: leases and upkeep outlive the jobs they hold."""
        try:
            if not await self._initialize(life):
                return
            for space in self._spaces:
                space.lease.start()
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(part, name=f"backstage {what}") for what, part in self._upkeep()]
                heard = [asyncio.Event() for _ in self._attachments]
                attached = [
                    group.create_task(each.run_attached(ready.set, life), name="backstage attached")
                    for each, ready in zip(self._attachments, heard, strict=True)
                ]
                stopper = group.create_task(self._stop(life), name="backstage stop")
                log.info("worker %s consumes %s", self._worker_id, ", ".join(q.name for q in self._queues))
                announcing = group.create_task(self._announce(life, heard), name="backstage ready")
                await asyncio.wait([group.create_task(space.consume(self._room)) for space in self._spaces])
                announcing.cancel()
                stopper.cancel()
                await self._drain(life)
                if attached:
                    await asyncio.wait(attached)
                for part in parts:
                    part.cancel()
            await asyncio.gather(*(space.leave() for space in self._spaces))
        finally:
            await asyncio.gather(*(space.lease.stop() for space in self._spaces))
            self._limits.close()
            self._threads.close()
            await asyncio.gather(*(space.stream.aclose() for space in self._spaces))

    async def _initialize(self, life: Life) -> bool:
        """Connect, within `connect_timeout`; False where it was stopped meanwhile. One keyspace is enough to start."""
        answers = await asyncio.gather(*(space.connect(life) for space in self._spaces), return_exceptions=True)
        away = {space: told for space, told in zip(self._spaces, answers, strict=True) if _is_away(told)}
        for told in answers:
            if isinstance(told, BaseException) and (len(away) == len(answers) or not _is_away(told)):
                raise told
        warn(finding for told in answers if isinstance(told, list) for finding in told)
        for space, why in away.items():
            log.warning("the keyspace %s is not served until it is there: %s", space.prefix, why)
        return not life.stopping.is_set()

    def _upkeep(self) -> list[tuple[str, Any]]:
        parts = [part for space in self._spaces for part in space.upkeep(self._room)]
        parts.append(("pulse", pulse(self._config.idle_timeout / 4000, self._turn)))
        if self._timetable is not None:
            parts.append(("timetable", self._timetable.run()))
        return parts

    async def _announce(self, life: Life, heard: list[asyncio.Event]) -> None:
        """Ready when jobs are taken and every attachment listens."""
        for attachment in heard:
            await attachment.wait()
        life.ready.set()

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def _stop(self, life: Life) -> None:
        """Closes the slots when asked to, and ends reads that wait."""
        await life.stopping.wait()
        log.info("worker %s stops", self._worker_id)
        self._slots.close()
        async with asyncio.TaskGroup() as group:  # which ends with the last of them
            for space in self._spaces:
                group.create_task(space.unblock(), name="backstage stop")

    async def _drain(self, life: Life) -> None:
        hurry = asyncio.create_task(self._hurry(life))
        life.stubborn = await self._slots.drain(self._config.grace_period / 1000)
        life.cut = self._slots.cut
        hurry.cancel()
        if not all(await asyncio.gather(*(space.finisher.flushed(FLUSH) for space in self._spaces))):
            log.error("Redis was away: what is finished but not settled will be run again")
        for task in life.stubborn:
            log.error("a run does not end though it was cancelled; its job was given back: %r", task)

    async def _hurry(self, life: Life) -> None:
        await life.hurrying.wait()
        log.info("worker %s is asked to hurry: the grace period ends now", self._worker_id)
        self._slots.hurry()

    # ---- between the parts -------------------------------------------------------------------------------------------

    def _current(self) -> Delivery | None:
        return self._slots.current()

    def _turn(self, patience: float) -> None:
        for space in self._spaces:
            space.stream.turn(patience)

    def _eased(self) -> None:
        self._slots.eased()

    def _lose(self, deliveries: list[Delivery]) -> int:
        return self._room.lose(deliveries)

    def _expire(self, delivery: Delivery) -> None:
        self._slots.abandon(delivery, "hard", self._executor.expired(delivery))

    def _facts(self) -> dict[str, str]:
        return {
            "worker_id": self._worker_id,
            "consumer": self._consumer,
            "pid": str(os.getpid()),
            "queues": ",".join(queue.name for queue in self._queues),
            "tasks": ",".join(sorted(self._tasks)),
            "concurrency": str(self._config.concurrency),
            "lease": str(self._config.idle_timeout),
            "running": str(len(self._slots.running)),
        }


def _policy(queue: Queue, config: WorkerConfig) -> Policy:
    return Policy(
        attempts=queue.attempts or config.attempts,
        backoff=config.backoff,
        soft=queue.soft_timeout if queue.soft_timeout is not None else config.timeout,
        hard=queue.hard_timeout,
    )


def _is_away(told: object) -> bool:
    return isinstance(told, RedisUnavailable) and not isinstance(told, RedisRefused)

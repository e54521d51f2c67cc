"""Worker: wires the parts, and owns their order of start and stop. What a part does is told in its own room."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from backstage.client import Client, Link
from backstage.config import WorkerConfig, WorkerOptions
from backstage.errors import BackstageError, ConfigError, RedisRefused, RedisUnavailable
from backstage.findings import OLD, dangers
from backstage.job import Delivery
from backstage.lane import sync_dialer
from backstage.logs import LoggerConfig, configure
from backstage.queue import Queue, ordered
from backstage.scheduler import Timetable
from backstage.service import Attachment, Life, Service
from backstage.stream import Stream, consumer_name
from backstage.task import AnyTask, Registers, TaskOptions, TaskRegistry
from backstage.worker.executor import Executor, Policy
from backstage.worker.finisher import Finisher
from backstage.worker.lease import Lease
from backstage.worker.limits import Limits
from backstage.worker.slots import Slots
from backstage.worker.sources import Fetcher, Reclaimer
from backstage.worker.threads import Threads
from backstage.worker.upkeep import Control, Pause, Promoter, Registry, every, pulse

log = logging.getLogger("backstage")

FLUSH = 10.0
"""Seconds for which a stopping worker tries to make outcomes durable while Redis is away."""


LEAVE = 2.0
"""Seconds for which it tries to take its consumer out of the groups; pruning does it otherwise."""


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
    """The parts of one run of a worker, and the main loop."""

    def __init__(self, worker: Worker, link: Link) -> None:
        config = self._config = worker.config
        self._worker_id = worker.worker_id
        self._mend, self._attachments, self._tasks = worker._connector.mend, worker._attachments, worker.tasks
        self.stream = stream = Stream(
            link.redis,
            config.consumer_group,
            queues=worker._served(),
            prefix=config.prefix,
            consumer=consumer_name(self._worker_id),
            serializer=config.serializer,
            delete_on_ack=config.delete_on_ack,
            connect_timeout=config.connect_timeout,
        )
        stream.clock.leap = max(config.idle_timeout // 3, 100)
        self._promoter = Promoter(stream)
        self._finisher = Finisher(stream, settled=self._eased, waits=self._promoter.wake)
        self._threads = Threads(config.concurrency)
        self._limits = Limits(self._expire)
        self._slots = Slots(
            config.concurrency,
            [queue.name for queue in stream.queues],
            self._execute,
            self._finisher.put,
            self._finisher.waiting,
        )
        self._executor = Executor(
            worker._registry.get,
            policies={queue.name: _policy(queue, config) for queue in stream.queues},
            serializer=config.serializer,
            middleware=config.middleware,
            max_deliveries=config.max_deliveries,
            limits=self._limits,
            threads=self._threads,
            why=self._slots.why,
            now=stream.clock.now,
            ready=worker._ready,
            client=worker,
        )
        self._executor.check(worker._registry)
        self._released = Pause()
        heard = {b"due": self._promoter.wake, b"released": self._released.end}
        self._control = Control(link.redis, stream.keys.control, heard)
        self._fetcher = Fetcher(stream, block=config.block_timeout, mend=self._mend)
        self._reclaimer = Reclaimer(stream, idle=config.idle_timeout, interval=config.reclaimer_interval)
        self._registry = Registry(stream, self._worker_id, self._facts, idle=config.idle_timeout)
        self._timetable = Timetable(worker, config.schedules) if config.schedules else None
        self._lease = Lease(
            connect=sync_dialer(link.redis, timeout=max(1.0, config.idle_timeout / 3000)),
            stream_key=stream.keys.stream,
            group=config.consumer_group,
            consumer=stream.consumer,
            held=stream.held,
            lease=config.idle_timeout / 1000,
            lost=self._lose,
            overdue=self._limits.overdue,
            current=self._slots.current,
        )

    async def serve(self, life: Life) -> None:
        """From the first connection to the last: leases and upkeep outlive the jobs they hold."""
        try:
            if not await self._initialize(life):
                return
            self._lease.start()
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(part, name=f"backstage {what}") for what, part in self._upkeep()]
                heard = [asyncio.Event() for _ in self._attachments]
                attached = [
                    group.create_task(each.run_attached(ready.set, life), name="backstage attached")
                    for each, ready in zip(self._attachments, heard, strict=True)
                ]
                stopper = group.create_task(self._stop(life), name="backstage stop")
                log.info("worker %s consumes %s", self._worker_id, ", ".join(q.name for q in self.stream.queues))
                announcing = group.create_task(self._announce(life, heard), name="backstage ready")
                await self._consume()
                announcing.cancel()
                stopper.cancel()
                await self._drain(life)
                if attached:
                    await asyncio.wait(attached)
                for part in parts:
                    part.cancel()
            await self._leave()
        finally:
            await self._lease.stop()
            self._limits.close()
            self._threads.close()
            await self.stream.aclose()

    async def _initialize(self, life: Life) -> bool:
        """Connect, within `connect_timeout`; False where it was stopped meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.connect_timeout / 1000
        while not life.stopping.is_set():
            try:
                await self.stream.initialize()
                await self._check_server()
                return True
            except RedisRefused:
                raise
            except RedisUnavailable as exc:
                if loop.time() >= deadline:
                    raise RedisUnavailable(f"no Redis at {self._config.address}: {exc}") from exc
            await asyncio.sleep(0.1)
            await self._mend()
        return False

    async def _check_server(self) -> None:
        """Refuses to start where jobs would be lost for certain, and tells what else is dangerous (findings.py)."""
        for finding in dangers(await self.stream.about_server()):
            if finding.title == OLD.title:
                raise ConfigError(f"{finding}: Redis 7.0 or Valkey 7.2 is needed")
            log.warning("%s: %s %s", finding, finding.meaning, finding.advice)
        for queue, *_, groups in await self._registry.pruned():
            if groups > 1 and self._config.delete_on_ack:
                raise ConfigError(
                    f"the stream of queue {queue!r} has {groups} consumer groups: with delete_on_ack a finished job "
                    "would be gone before the others have seen it. Use one group, or delete_on_ack=False"
                )

    def _upkeep(self) -> list[tuple[str, Any]]:
        parts = [
            ("pulse", pulse(self._config.idle_timeout / 4000, self.stream.stood_still)),
            ("finisher", self._finisher.run()),
            ("promoter", every(0.0, self._promoter.step, "promoting")),
            ("reclaimer", every(0.0, self._reclaim, "reclaiming")),
            ("control", every(1.0, self._control.step, "listening")),
            ("beat", every(Registry.BEAT, self._registry.beat, "telling the registry")),
            ("pruner", every(Registry.PRUNE, self._registry.prune, "pruning")),
        ]
        if self._timetable is not None:
            parts.append(("timetable", self._timetable.run()))
        return parts

    async def _consume(self) -> None:
        slots, fetcher = self._slots, self._fetcher
        while room := await slots.free():
            slots.feed(await fetcher.take(room))

    async def _reclaim(self) -> float:
        await self._released.sleep(Reclaimer.RELEASED * random.uniform(0.9, 1.1))
        while room := await self._slots.free():
            found = await self._reclaimer.take(room)
            self._slots.feed(found)
            if len(found) < room:  # else there may be more, for when there is room again
                break
        return 0.0

    async def _announce(self, life: Life, heard: list[asyncio.Event]) -> None:
        """Ready when jobs are taken and every attachment listens."""
        for attachment in heard:
            await attachment.wait()
        life.ready.set()

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def _stop(self, life: Life) -> None:
        """Closes the slots when asked to, and ends a read that waits: it must not be cancelled."""
        await life.stopping.wait()
        log.info("worker %s stops", self._worker_id)
        self._slots.close()
        while True:
            try:
                await self.stream.unblock()
            except BackstageError as exc:
                log.debug("can't unblock the read: %s", exc)
            await asyncio.sleep(0.05)

    async def _drain(self, life: Life) -> None:
        hurry = asyncio.create_task(self._hurry(life))
        life.stubborn = await self._slots.drain(self._config.grace_period / 1000)
        life.cut = self._slots.cut
        hurry.cancel()
        if not await self._finisher.flushed(FLUSH):
            log.error("Redis was away: what is finished but not settled will be run again")
        for task in life.stubborn:
            log.error("a run does not end though it was cancelled; its job was given back: %r", task)

    async def _hurry(self, life: Life) -> None:
        await life.hurrying.wait()
        log.info("worker %s is asked to hurry: the grace period ends now", self._worker_id)
        self._slots.hurry()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE):
                await self.stream.leave(self._worker_id)
        except (BackstageError, TimeoutError) as exc:
            log.debug("left without saying so: %s", exc)

    # ---- between the parts -------------------------------------------------------------------------------------------

    def _execute(self, delivery: Delivery) -> Any:
        return self._executor.execute(delivery)

    def _eased(self) -> None:
        self._slots.eased()

    def _lose(self, deliveries: list[Delivery]) -> None:
        log.error("%d jobs are somebody else's by now; their runs are cancelled", len(deliveries))
        self.stream.drop(deliveries)
        self._slots.lose(deliveries)

    def _expire(self, delivery: Delivery) -> None:
        self._slots.abandon(delivery, "hard", self._executor.expired(delivery))

    def _facts(self) -> dict[str, str]:
        return {
            "worker_id": self._worker_id,
            "consumer": self.stream.consumer,
            "pid": str(os.getpid()),
            "queues": ",".join(queue.name for queue in self.stream.queues),
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

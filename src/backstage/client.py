"""Client: enqueues jobs. It opens what it needs at the first call, and anew in a new event loop or after a fork."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any, Self, Unpack, overload

from redis.asyncio import Redis

from backstage.config import RedisConfig, RedisOptions
from backstage.connection import Connector
from backstage.durability import check_durability
from backstage.durations import Duration, until
from backstage.eager import awaited, failing
from backstage.errors import BackstageError, ConfigError, PayloadTooLarge
from backstage.job import (
    AnyDedupe,
    CallOptions,
    Durability,
    EnqueueOptions,
    Job,
    Options,
    Request,
    ScheduleOptions,
    name_of,
    queue_and_options,
)
from backstage.link import Link
from backstage.ready import Ready
from backstage.serializer import encode_all
from backstage.task import AnyTask, E, P, Payloadless, R, Task, TaskRegistry


class Client:
    """Enqueues jobs: `async with Client() as client: await client.enqueue("email.send", {"to": …})`.

    `Client(**options)` takes what isn't given from the environment; `Client(config)` reads no environment. `tasks` are
    registries whose tasks this process knows: a job goes to its task's own queue, and `task.enqueue` comes here.
    """

    def __init__(
        self,
        config: RedisConfig | None = None,
        *,
        tasks: Iterable[TaskRegistry] = (),
        **options: Unpack[RedisOptions],
    ) -> None:
        self._set_up(RedisConfig.from_env(**options) if config is None else config.replace(**options))
        self._registry.include(*tasks)

    def _set_up(self, config: RedisConfig) -> None:
        self._config = config
        self._connector = Connector(config)
        self._link: Link | None = None
        self._inherited: list[Link] = []
        """Of processes before a fork. Kept, for collecting one would unregister the parent's sockets from its loop."""
        self._registry = TaskRegistry()
        self._registry.bind(self)

    @property
    def config(self) -> RedisConfig:
        """What holds: arguments, environment, defaults, in that order."""
        return self._config

    @property
    def redis(self) -> Redis:
        """A redis-py client for the same server (that of keyspace 0), opened in the running event loop."""
        return self._open().redis

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
    @awaited
    def enqueue(
        self,
        task: str | AnyTask,
        payload: object = None,
        *,
        durability: Durability | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> Coroutine[Any, Any, str | None]:
        """Ask for a job. Returns its id; None where its dedupe key is taken. When it returns, the server has the job:
        in its memory, or as `durability` asks for it, "fsync" on its disk, "replica" on a replica too.

        Raises NotSerializable, PayloadTooLarge, InvalidName or ConfigError before anything is sent, and
        RedisUnavailable after `connect_timeout`: the job may have arrived all the same.
        """
        try:
            name = name_of(task)
            route = None if isinstance(task, str) else task.queue
            queue, rest = queue_and_options(**options) if options else (None, None)
            ready = self._checked(name, payload, queue or route, rest)
            how = None if durability is None else check_durability(durability)
        except Exception as exc:  # told where the call is awaited, as all else is
            return failing(exc)
        link = self._link
        if link is None or not link.usable:
            return self._put(ready, how or "memory")
        return (link.outbox if how is None else link.outbox_for(how)).put(ready)

    async def enqueue_many(self, jobs: Iterable[Job], *, durability: Durability | None = None) -> list[str | None]:
        """Ask for many jobs; their ids in the order given, None for duplicates.

        All are checked before anything is sent. Then they travel in calls of 500: after RedisUnavailable some may have
        arrived, all before the first that is missing but for the last call or two. With several keyspaces this holds
        for each of those that failed; the others have theirs, and the error tells how many that are.
        """
        jobs = list(jobs)
        payloads = self._all_checked(jobs)
        how = check_durability(durability)
        link = await self._linked()
        routes = {task: self._route(task) for task in {job._task for job in jobs}}
        verdicts = await link.send_many(jobs, payloads, routes, how)
        refused = [verdict for verdict in verdicts if isinstance(verdict, BackstageError)]
        if refused:
            raise type(refused[0])(f"{len(refused)} of {len(verdicts)} jobs were refused, the first one: {refused[0]}")
        return [verdict for verdict in verdicts if not isinstance(verdict, BackstageError)]

    async def schedule(
        self, task: str | AnyTask, payload: object, when: Duration | datetime, **options: Unpack[ScheduleOptions]
    ) -> str | None:
        """As `enqueue`, for a moment: a duration from now, or an aware datetime (one that has passed means now)."""
        how = check_durability(options.pop("durability", None))
        given: Any = options
        ready = self._ready(Job(task, payload, delay=until(when, "when"), **given))
        return await self._put(ready, how)

    def configure(self, **options: Unpack[RedisOptions]) -> None:
        """Change settings before the first connection (the command line's `--url`, tests). ConfigError after it."""
        self._reconfigure(self._config.replace(**options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Send what waits, close the connections, leave an embedded server. A call after it opens them again."""
        link, self._link = self._link, None
        if link is not None and link.usable:
            await link.close()
        elif link is not None and link.pid != os.getpid():
            self._inherited.append(link)
        await asyncio.to_thread(self._connector.leave)

    # ---- for Worker, Scheduler, Broadcast and Inspector --------------------------------------------------------------

    def _reconfigure(self, config: RedisConfig) -> None:
        if self._link is not None:
            raise ConfigError("configure() comes too late: this client has connected already")
        self._config, self._connector = config, Connector(config)

    def _keyspaces(self) -> Sequence[tuple[str, Redis]]:
        """The prefix of each, and a client of its server."""
        return [(space.prefix, space.redis) for space in self._open().spaces]

    async def _linked(self) -> Link:
        """The link of this loop and process; opens it without holding up the loop."""
        if self._link is None or not self._link.usable:
            await self._connector.mend()
        return self._open()

    async def _put(self, ready: Ready, durability: Durability) -> str | None:
        return await (await self._linked()).outbox_for(durability).put(ready)

    def _ready(self, request: Request) -> Ready:
        """A Job or Next as it will be sent, without its id."""
        return self._checked(request._task, request._payload, request._queue or request.route, request._options)

    def _checked(self, name: str, payload: object, queue: str | None, options: Options | None) -> Ready:
        """Encoded, checked and routed: to the queue that it was given, to its task's, or to `default`."""
        text = self._config.serializer.encode(payload)
        if len(text) > self._config.max_payload:
            raise self._too_large(name, len(text))
        return Ready(name, text.decode(), queue or self._route(name), options)

    def _all_checked(self, jobs: list[Job]) -> list[str]:
        """The payloads of many jobs as JSON text, or the error of the first one that can't be sent."""
        for kind in set(map(type, jobs)) - {Job}:
            raise ConfigError(f"enqueue_many takes Jobs, not {kind.__name__}: write Job(task, payload, …)")
        payloads = encode_all(self._config.serializer, [job._payload for job in jobs])
        limit = self._config.max_payload
        if max(map(len, payloads), default=0) * 4 > limit:  # a character has at most four bytes
            for job, payload in zip(jobs, payloads, strict=True):
                if len(payload) * 4 > limit and (size := len(payload.encode())) > limit:
                    raise self._too_large(job.task, size)
        return payloads

    def _too_large(self, name: str, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the payload of {name} is {size:,} bytes of JSON; max_payload is {self._config.max_payload:,}: "
            "store it elsewhere and send a reference"
        )

    def _route(self, name: str) -> str:
        task = self._registry.get(name)
        return (task and task.queue) or "default"

    def _open(self) -> Link:
        """The link of this loop and process. One of a former loop is left behind: it can't be closed from here."""
        if self._link is None or not self._link.usable:
            if self._link is not None and self._link.pid != os.getpid():
                self._inherited.append(self._link)
            self._link = Link(self._config, self._connector)
        return self._link

"""Broadcast: one message, handled once by every worker that is alive.

Listeners read the stream `broadcast` without a group, each from the end that it found when it started: nothing is left
behind by dead workers, no history is replayed, and what a handler fails at is not repeated.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backstage import wire
from backstage.client import Client
from backstage.config import RedisConfig, WorkerConfig
from backstage.errors import (
    ConfigError,
    DuplicateTask,
    PayloadTooLarge,
    RedisRefused,
    RedisUnavailable,
    TaskError,
    quoted,
)
from backstage.handler import Handler, read_handler
from backstage.job import Named
from backstage.keys import Keys
from backstage.lane import Lane, dialer, run_script, translate
from backstage.queue import check_name
from backstage.scripts import load, pack
from backstage.serializer import without_values
from backstage.service import Attachment, Life, Service, inside
from backstage.tail import Tail
from backstage.task import Run, Task

log = logging.getLogger("backstage")

F = TypeVar("F", bound=Callable[..., Any])

KEEP = 10_000
"""Messages that senders leave in the stream, about."""

AT_ONCE = 100
"""Handlers that run at once in one listener; while so many run, nothing is read."""

BLOCK, CHECK = 1.0, 1.0
"""Seconds that a read waits, and between two looks at whether it is still the same stream."""

CALL_TIMEOUT = 5.0
"""Seconds beyond BLOCK after which a connection counts as dead."""

PAUSE = 0.5
"""Seconds between two tries of a listener while Redis is away."""

RETRY = 0.1
"""Seconds between two tries of what gives up after `connect_timeout`."""

MARKER_MARGIN = 15_000
"""Ms for which a call's marker outlives the last try of that call."""

GRACE = 30.0
"""Seconds that running handlers have to end at a stop, where no worker says otherwise."""

LAST_WORDS = 1.0
"""Seconds that a cancelled handler has to tidy up."""


class Host(Protocol):
    """What a broadcast asks of a worker, which is a Client too."""

    @property
    def config(self) -> WorkerConfig: ...

    def _attach(self, attachment: Attachment, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Listener:
    """A handler, ready to be called."""

    task: str
    fn: Callable[..., Any]
    handler: Handler
    decode: Callable[[bytes], Any]

    def bind(self, payload: object) -> Callable[[], Any]:
        if not self.handler.takes_payload or (self.handler.payload_optional and payload is None):
            return self.fn
        return functools.partial(self.fn, payload)


class Broadcast(Service):
    """Sends messages to every live worker, and handles them: `@broadcast.on("cache.invalidate")`.

    From exactly one source. `worker=`: it starts and stops with the worker. `client=`: through that client's settings,
    by `start`, `running` or `run`. `redis=`, a redis.asyncio client: where that points, under `prefix`; `worker_id` is
    a name for the log. Only sending needs no start. ConfigError for no source, or several.
    """

    def __init__(
        self,
        *,
        worker: Host | None = None,
        client: Client | None = None,
        redis: Redis | None = None,
        prefix: str | None = None,
        worker_id: str | None = None,
    ) -> None:
        if sum(source is not None for source in (worker, client, redis)) != 1:
            raise ConfigError("Broadcast: give exactly one of worker=, client= and redis=")
        if redis is None and not (prefix is None and worker_id is None):
            raise ConfigError("Broadcast: prefix and worker_id go with redis=; a worker or client has its own")
        self._redis, self._client = redis, None if redis is not None else _client(worker or client)
        self._own = RedisConfig(prefix=prefix)
        self._name = "broadcast" if worker_id is None else f"broadcast of {check_name(worker_id, 'worker')}"
        self._attached = worker is not None
        self._listeners: dict[str, Listener] = {}
        self._tail = Tail(self._name)
        self._running: set[asyncio.Task[None]] = set()
        if redis is not None and not isinstance(redis, Redis):
            raise ConfigError(f"redis={quoted(redis)}: must be a redis.asyncio.Redis")
        if worker is not None:
            if not callable(getattr(worker, "_attach", None)):
                raise ConfigError(f"worker={quoted(worker)}: must be a Worker; for a Client give client=")
            worker._attach(self)

    @overload
    def on(self, task: str | Named, handler: None = None, /) -> Callable[[F], F]: ...
    @overload
    def on(self, task: str | Named, handler: F, /) -> F: ...
    def on(self, task: str | Named, handler: F | None = None, /) -> F | Callable[[F], F]:
        """Registers a handler of the messages of that name, as a decorator or at once; gives the handler back.

        It takes the payload, decoded by its annotation, or nothing. A Task's function may serve here too. Raises
        TaskError for a handler outside the rule, DuplicateTask for a name that is taken, InvalidName.
        """
        name = _name_of(task)
        if handler is None:
            return functools.partial(self._register, name)
        return self._register(name, handler)

    async def send(self, task: str | Named, payload: object = None) -> str:
        """To every live worker; returns the entry's id. Nothing is kept for workers that start later.

        Raises NotSerializable, PayloadTooLarge or InvalidName before anything is sent, RedisRefused, and
        RedisUnavailable after `connect_timeout`: the message may have arrived all the same.
        """
        name, config = _name_of(task), self._config
        text = config.serializer.encode(payload)
        if len(text) > config.max_payload:
            raise PayloadTooLarge(
                f"the payload of {name} is {len(text):,} bytes of JSON; max_payload is {config.max_payload:,}: "
                "store it elsewhere and send a reference"
            )
        keys = (self._keys.call(secrets.token_hex(12)), self._keys.broadcast)
        blob = pack((config.connect_timeout + MARKER_MARGIN, KEEP, name, text.decode()))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + config.connect_timeout / 1000
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    client = await self._open()
                    id = await run_script(client, load("send"), keys, blob)
                    return id.decode() if isinstance(id, bytes) else str(id)
            except (RedisError, OSError) as exc:
                error = exc if isinstance(exc, RedisUnavailable) else translate(exc)
                if not isinstance(error, RedisUnavailable) or isinstance(error, RedisRefused):
                    raise error from exc
                if loop.time() + RETRY >= deadline:
                    raise RedisUnavailable(f"not sent, though it may have arrived: {error}") from exc
            await asyncio.sleep(RETRY)

    async def initialize(self) -> None:
        """Mark the end of the stream: what is sent from now on is received. Done again, it changes nothing.

        Raises RedisUnavailable after `connect_timeout`, RedisRefused.
        """
        await self._begin(asyncio.Event())

    @property
    def listens(self) -> bool:
        """Whether it has a handler."""
        return bool(self._listeners)

    async def run_attached(self, ready: Callable[[], None], life: Life) -> None:
        """As a part of a worker: calls `ready` once it listens, returns when the life is over and handlers ended.

        Redis may be away for as long as it likes. Cancelled, it cancels the handlers, too.
        """
        await self._attend(ready, life.stopping, life.hurrying)

    async def _serve(self, life: Life) -> None:
        if self._attached:
            raise ConfigError("this Broadcast starts and stops with its worker: start the worker")
        await self._begin(life.stopping)
        await self._attend(life.ready.set, life.stopping, life.hurrying)
        life.stubborn = list(self._running)

    # ---- listening ---------------------------------------------------------------------------------------------------

    async def _begin(self, stopping: asyncio.Event) -> None:
        loop, config = asyncio.get_running_loop(), self._config
        deadline = loop.time() + config.connect_timeout / 1000
        while not self._tail.marked and not stopping.is_set():
            try:
                async with asyncio.timeout_at(deadline), self._lane() as lane:
                    await self._tail.look(lane, self._keys.broadcast)
            except RedisRefused:
                raise
            except (RedisUnavailable, TimeoutError) as exc:
                if loop.time() + RETRY >= deadline:
                    where = "" if self._client is None else f" at {config.address}"
                    raise RedisUnavailable(f"no Redis{where}: {str(exc) or 'no answer'}") from exc
                await asyncio.sleep(RETRY)

    async def _attend(self, ready: Callable[[], None], stopping: asyncio.Event, hurrying: asyncio.Event) -> None:
        config = self._config
        grace = config.grace_period / 1000 if isinstance(config, WorkerConfig) else GRACE
        listening = asyncio.create_task(self._listen(ready), name="backstage broadcast")
        try:
            await stopping.wait()
        except asyncio.CancelledError:
            grace = 0.0
            raise
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._tail = Tail(self._name)
            await self._drain(grace, hurrying)

    async def _listen(self, ready: Callable[[], None]) -> None:
        """For ever, whatever fails."""
        room, trouble = asyncio.Semaphore(AT_ONCE), ""
        while True:
            try:
                async with self._lane() as lane:
                    await self._tail.look(lane, self._keys.broadcast)
                    if trouble:
                        log.info("%s: Redis answers again", self._name)
                        trouble = ""
                    ready()
                    await self._read(lane, room)
            except RedisUnavailable as exc:
                if type(exc).__name__ != trouble:
                    log.warning("%s waits, trying again: %s", self._name, exc)
                trouble = type(exc).__name__
            except Exception:
                log.exception("%s failed; trying again", self._name)
            await asyncio.sleep(PAUSE)

    async def _read(self, lane: Lane, room: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            for id, fields in await self._tail.read(lane, self._keys.broadcast, count=AT_ONCE, block=int(BLOCK * 1000)):
                await self._receive(id.decode(), fields, room)
            if loop.time() - looked >= CHECK:
                await self._tail.look(lane, self._keys.broadcast)
                looked = loop.time()

    # ---- handling ----------------------------------------------------------------------------------------------------

    async def _receive(self, id: str, flat: list[bytes], room: asyncio.Semaphore) -> None:
        """Start the message's handler; waits where too many run."""
        fields = wire.fields_of(flat)
        name, text = fields.get(b"taskName"), fields.get(b"payload")
        if name is None or text is None:
            log.error("%s: message %s has no %s: passed over", self._name, id, "payload" if name else "taskName")
            return
        listener = self._listeners.get(name.decode("utf-8", "replace"))
        if listener is None:
            log.debug("%s: message %s is of a name without a handler here: %r", self._name, id, name)
            return
        await room.acquire()
        task = asyncio.create_task(self._handle(listener, id, text), name=f"backstage broadcast {listener.task}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: room.release())

    async def _handle(self, listener: Listener, id: str, text: bytes) -> None:
        inside.set(True)
        about = {"id": id, "task": listener.task}
        try:
            payload = listener.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            log.error("%s: the payload can't be decoded, passed over: %s", self._name, without_values(exc), extra=about)
            return
        call = listener.bind(payload)
        try:
            result = await (call() if listener.handler.is_async else _in_thread(call))
            if asyncio.iscoroutine(result):
                await result
        except BaseException as exc:  # SystemExit, too, is the handler's failure and not the worker's end
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                log.warning("%s: a handler was cancelled, for the grace period is over", self._name, extra=about)
                raise
            log.error("%s: a handler failed; it is not retried", self._name, exc_info=exc, extra=about)

    async def _drain(self, grace: float, hurrying: asyncio.Event) -> None:
        """Wait for the handlers; when the grace (seconds) is over, or somebody is in a hurry, cancel them."""
        loop = asyncio.get_running_loop()
        deadline, hurried = loop.time() + grace, asyncio.create_task(hurrying.wait())
        while self._running and not hurrying.is_set() and (left := deadline - loop.time()) > 0:
            await asyncio.wait({*self._running, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        await asyncio.gather(hurried, return_exceptions=True)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=LAST_WORDS)
        for task in self._running:
            if not task.done():
                log.error("%s: a handler does not end though it was cancelled: %r", self._name, task)

    # ---- where -------------------------------------------------------------------------------------------------------

    def _register(self, name: str, handler: F) -> F:
        given: Callable[..., Any] = handler
        fn = given.fn if isinstance(given, Task) else given
        read = read_handler(name, fn, Run)
        if read.run_parameter is not None:
            raise TaskError(f"broadcast {name!r} ({read.where}): a message has no Run; take the payload, or nothing")
        other = self._listeners.get(name)
        if other is not None:
            raise DuplicateTask(f"broadcast {name!r} has two handlers: at {other.handler.where} and at {read.where}")
        self._listeners[name] = Listener(name, fn, read, self._config.serializer.decoder(read.payload_type))
        return handler

    @property
    def _config(self) -> RedisConfig:
        return self._own if self._client is None else self._client.config

    @property
    def _keys(self) -> Keys:
        return Keys(self._config.prefixes[0])

    async def _open(self) -> Redis:
        if self._redis is not None:
            return self._redis
        assert self._client is not None
        await self._client._connector.mend()
        return self._client._open().redis

    @contextlib.asynccontextmanager
    async def _lane(self) -> AsyncIterator[Lane]:
        dial = dialer(await self._open(), connect_timeout=self._config.connect_timeout / 1000)
        lane = Lane(dial, timeout=BLOCK + CALL_TIMEOUT)
        try:
            yield lane
        finally:
            await lane.close()


def _client(source: object) -> Client:
    if not isinstance(source, Client):
        raise ConfigError(f"Broadcast: {quoted(source)} must be a Worker or a Client")
    return source


def _name_of(task: str | Named) -> str:
    if not hasattr(task, "name") and callable(task):
        called = getattr(task, "__name__", "message")
        raise TaskError(f'`on` needs a name for {called!r}: write @broadcast.on("{called}")')
    name: Any = getattr(task, "name", task)
    return check_name(name, "task")


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """In a daemon thread of its own: one that hangs can't hold up the end of the process."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(call))
        except StopIteration:  # which no future can carry
            future.set_exception(RuntimeError("handler raised StopIteration"))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=work, name="backstage broadcast thread", daemon=True).start()
    return asyncio.wrap_future(future)

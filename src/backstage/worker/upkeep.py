"""`every()`, the only loop that outlives failures, and the small loops that run on it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from backstage.errors import RedisRefused, RedisUnavailable
from backstage.stream import Stream

log = logging.getLogger("backstage")


async def every(seconds: float, step: Callable[[], Awaitable[float | None]], what: str) -> None:
    """Run `step` for ever, `seconds` apart (±10 %, so that workers don't march in step), outliving its failures.

    A step may say itself how many seconds to wait this once.
    """
    while True:
        pause: float | None = None
        try:
            pause = await step()
        except RedisUnavailable as exc:
            # That it is away is said aloud by whoever takes jobs; that it refuses something is not known there.
            log.log(logging.ERROR if isinstance(exc, RedisRefused) else logging.DEBUG, "%s: %s", what, exc)
            pause = max(seconds, 0.5)
        except Exception:
            log.exception("%s failed; trying again", what)
            pause = max(seconds, 0.5)
        if cancelled():
            return
        await asyncio.sleep(seconds * random.uniform(0.9, 1.1) if pause is None else pause)


async def pulse(seconds: float, turn: Callable[[float], None]) -> None:
    """For ever: call `turn` whenever the loop has one, with how many seconds may pass until the next.

    They pass when a handler blocks the loop, or all stops. By a timer and not in a task: nothing else is awaited.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def beat() -> None:
        nonlocal timer
        turn(2 * seconds)
        timer = loop.call_later(seconds, beat)

    beat()
    try:
        await loop.create_future()
    finally:
        timer.cancel()


def cancelled() -> bool:
    """Whether this task was told to end: redis-py swallows a cancellation that comes while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Pause:
    """A sleep that can be cut short, even before it has begun."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    def end(self) -> None:
        self._over.set()

    async def sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass
        self._over.clear()


class Control:
    """Listens on the control channel, where scripts say that something is there for whoever waits for it.

    A word that is lost costs a moment, no job: those who wait look by themselves, too.
    """

    QUIET = 30.0
    """Seconds without a word after which the connection is tried."""

    def __init__(self, redis: Redis, channel: str, heard: Mapping[bytes, Callable[[], None]]) -> None:
        self._redis, self._channel, self._heard = redis, channel, heard

    async def step(self) -> None:
        """Listens until the connection breaks."""
        try:
            async with self._redis.pubsub() as pubsub:
                await pubsub.subscribe(self._channel)
                while not cancelled():
                    message = await pubsub.get_message(timeout=self.QUIET)
                    if message is None:
                        await pubsub.ping()
                    elif message["type"] == "subscribe":  # what was said before it has not been heard
                        for wake in self._heard.values():
                            wake()
                    elif heard := self._heard.get(message["data"]):
                        heard()
        except (RedisError, OSError) as exc:
            log.debug("control channel: %s", exc)


class Promoter:
    """Moves jobs whose time has come. Sleeps until the next one is due; what asks for an earlier one wakes it."""

    AWAKE, ASLEEP = 0.2, 1.0
    """Seconds to sleep at most: when jobs wait, when none does (others may add some)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pause = Pause()

    def wake(self) -> None:
        """Something was put into the sets that may be due before what is known."""
        self._pause.end()

    async def step(self) -> float:
        due = await self._stream.promote()
        longest = self.ASLEEP if due is None else self.AWAKE
        left = longest if due is None else min(longest, max(0.001, (due - self._stream.clock.now()) / 1000))
        await self._pause.sleep(left)
        return 0.0


class Registry:
    """Tells the others that this worker lives, and clears away what the dead and other SDKs leave behind."""

    BEAT, TTL = 10.0, 60_000
    PRUNE = 60.0

    def __init__(self, stream: Stream, worker_id: str, facts: Callable[[], dict[str, str]], *, idle: int) -> None:
        self._stream, self._worker_id, self._facts, self._idle = stream, worker_id, facts, idle

    async def beat(self) -> None:
        await self._stream.beat(self._worker_id, self.TTL, self._facts())

    async def prune(self) -> None:
        """Consumers of dead workers go after two leases and a lapsed registry entry; other SDKs' after an hour."""
        for queue, consumers, trimmed, _ in await self.pruned():
            if consumers or trimmed:
                log.info("pruned queue %s: %d consumers, %d acknowledged entries", queue, consumers, trimmed)
        if self._stream.refused:
            await self._stream.initialize()

    async def pruned(self) -> list[tuple[str, int, int, int]]:
        """For each queue: its name, consumers deleted, entries trimmed, groups on its stream."""
        return await self._stream.prune(idle=max(2 * self._idle, self.TTL), foreign_idle=3_600_000)

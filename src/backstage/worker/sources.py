"""Where deliveries come from: new ones (Fetcher), and those that somebody gave back or left behind (Reclaimer)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from backstage.errors import BackstageError, RedisRefused
from backstage.job import Delivery
from backstage.stream import Stream

log = logging.getLogger("backstage")


class Fetcher:
    """Takes new jobs, and outlives everything that can happen to Redis meanwhile.

    `block` in ms; `mend` is awaited between tries.
    """

    def __init__(self, stream: Stream, *, block: int, mend: Callable[[], Awaitable[None]]) -> None:
        self._stream, self._block, self._mend = stream, block, mend
        self._keyspace = stream.keys.prefix
        self._failures = 0

    @property
    def away(self) -> bool:
        """Whether the last read failed."""
        return self._failures > 0

    async def look(self, room: int) -> list[Delivery]:
        """What is there now."""
        return await self._read(room, 0)

    async def take(self, room: int) -> list[Delivery]:
        """Waits for jobs where none is there."""
        return await self._read(room, self._block)

    async def _read(self, room: int, block: int) -> list[Delivery]:
        try:
            deliveries = await self._stream.take(room, block)
        except BackstageError as exc:
            await self._wait(exc)
            return []
        if self._failures:
            log.warning("Redis is back; consuming keyspace %s again", self._keyspace)
            self._failures = 0
        return deliveries

    async def _wait(self, exc: BackstageError) -> None:
        """Say it once, then wait longer and longer, up to a second: it has to be back within two."""
        if not self._failures:
            level = logging.ERROR if isinstance(exc, RedisRefused) else logging.WARNING
            log.log(level, "can't take jobs of keyspace %s: %s; trying again until it works", self._keyspace, exc)
        pause = min(0.05 * 2**self._failures, 1.0)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))
        try:
            await self._mend()
        except BackstageError as error:
            log.debug("the server can't be started yet: %s", error)


class Reclaimer:
    """Takes what was given back, every half second, and what its holder left behind, every `interval`.

    `idle` is the lease in ms. It never looks from the beginning again before it has seen the end: entries behind a
    hundred busy ones are found too.
    """

    RELEASED = 0.5
    FOREIGN = 60_000
    """Ms after which deliveries of other SDKs' consumers count as left behind: they don't renew."""

    def __init__(self, stream: Stream, *, idle: int, interval: int) -> None:
        self._stream, self._idle, self._interval = stream, idle, interval / 1000
        self._next = time.monotonic() + self._interval * random.random()
        self._healing: dict[str, int] = {}
        """Queue → how often the end of its pending list is still to be seen, since the server's clock went back."""
        self.gone = 0

    async def take(self, room: int) -> list[Delivery]:
        scan = time.monotonic() >= self._next
        found: list[Delivery] = []
        ended = True
        for queue in self._stream.queues:
            if room <= len(found):
                ended = False
                break
            looked = await self._look(queue.name, room - len(found), scan)
            found += looked[0]
            ended = ended and looked[1]
        if scan and ended:
            self._next = time.monotonic() + self._interval * random.uniform(0.9, 1.1)
        if found:
            log.info("took over %d jobs that were given back or left behind", len(found))
        return found

    async def _look(self, queue: str, room: int, scan: bool) -> tuple[list[Delivery], bool]:
        clock = self._stream.clock
        if time.monotonic() - clock.leapt < self._idle / 1000:
            scan = False  # the server's clock was set ahead: all idle times are wrong until the living have renewed
        if clock.went_back:
            clock.went_back = False
            self._healing = {each.name: 2 for each in self._stream.queues}  # the first end may end a look begun before
        heal = scan and queue in self._healing
        looked = await self._stream.look(
            queue, room, idle=self._idle if scan else -1, foreign_idle=max(self._idle, self.FOREIGN), heal=heal
        )
        if heal and looked.ended:
            self._healing[queue] -= 1
            if not self._healing[queue]:
                del self._healing[queue]
        if looked.gone:
            self.gone += looked.gone
            log.warning("%d pending entries of queue %s had been deleted by somebody", looked.gone, queue)
        return looked.deliveries, looked.ended or looked.jumped

"""Keyspace: the parts of a worker that there are once for each keyspace, and how several share the slots.

Each has connections, reads and leases of its own, so a node that is away holds up its own jobs and no others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

from redis.asyncio import Redis

from backstage.config import WorkerConfig
from backstage.errors import BackstageError, ConfigError, RedisRefused, RedisUnavailable
from backstage.findings import OLD, Finding, dangers
from backstage.job import Delivery
from backstage.lane import sync_dialer
from backstage.outcome import Outcome
from backstage.queue import Queue
from backstage.service import Life
from backstage.stream import Stream
from backstage.worker.finisher import Finisher
from backstage.worker.lease import Lease
from backstage.worker.slots import UNSETTLED, Slots
from backstage.worker.sources import Fetcher, Reclaimer
from backstage.worker.upkeep import Control, Pause, Promoter, Registry, cancelled, every

log = logging.getLogger("backstage")

LEAVE = 2.0
"""Seconds for which a stopping worker tries to take its consumer out of the groups; pruning does it otherwise."""

LATE = 1.0
"""Seconds between two looks for a keyspace that was away when the worker started."""


class Keyspace:
    """Where jobs of one keyspace come from and their outcomes go to, and its upkeep.

    `eased` is called when outcomes became durable, `lost` with deliveries that are not ours any more.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        config: WorkerConfig,
        *,
        queues: Sequence[Queue],
        consumer: str,
        facts: Callable[[], dict[str, str]],
        mend: Callable[[], Awaitable[None]],
        eased: Callable[[], None],
        lost: Callable[[list[Delivery]], int],
        overdue: Callable[[Delivery, float], bool],
        current: Callable[[], Delivery | None] | None,
    ) -> None:
        self._config, self._mend, self._lost = config, mend, lost
        self._worker_id = consumer.rpartition("~")[0]
        self.prefix = prefix
        self.stream = stream = Stream(
            redis,
            config.consumer_group,
            queues=queues,
            prefix=prefix,
            consumer=consumer,
            serializer=config.serializer,
            delete_on_ack=config.delete_on_ack,
            connect_timeout=config.connect_timeout,
        )
        stream.clock.leap = max(config.idle_timeout // 3, 100)
        self._promoter = Promoter(stream)
        self.finisher = Finisher(stream, settled=eased, waits=self._promoter.wake)
        self.fetcher = Fetcher(stream, block=config.block_timeout, mend=mend)
        self.reclaimer = Reclaimer(stream, idle=config.idle_timeout, interval=config.reclaimer_interval)
        self._released = Pause()
        heard = {b"due": self._promoter.wake, b"released": self._released.end}
        self._control = Control(redis, stream.keys.control, heard)
        self._registry = Registry(stream, self._worker_id, facts, idle=config.idle_timeout)
        self.lease = Lease(
            connect=sync_dialer(redis, timeout=max(0.2, config.idle_timeout / 3000)),
            stream_key=stream.keys.stream,
            group=config.consumer_group,
            consumer=consumer,
            held=stream.held,
            lease=config.idle_timeout / 1000,
            lost=self._lose,
            overdue=overdue,
            current=current,
        )
        self._checked = False

    # ---- start -------------------------------------------------------------------------------------------------------

    async def connect(self, life: Life) -> list[Finding] | None:
        """Within `connect_timeout`; what is dangerous there, None where it was stopped meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.connect_timeout / 1000
        while not life.stopping.is_set():
            try:
                return await self._open()
            except RedisRefused:
                raise
            except RedisUnavailable as exc:
                if loop.time() >= deadline:
                    raise RedisUnavailable(f"no Redis at {self._config.address}: {exc}") from exc
            await asyncio.sleep(0.1)
            await self._mend()
        return None

    async def _open(self) -> list[Finding]:
        """Make streams and groups, and refuse where jobs would be lost for certain (findings.py)."""
        await self.stream.initialize()
        found = dangers(await self.stream.about_server())
        for finding in found:
            if finding.title == OLD.title:
                raise ConfigError(f"{finding}: Redis 7.0 or Valkey 7.2 is needed")
        for queue, *_, groups in await self._registry.pruned():
            if groups > 1 and self._config.delete_on_ack:
                raise ConfigError(
                    f"the stream of queue {queue!r} has {groups} consumer groups: with delete_on_ack a finished job "
                    "would be gone before the others have seen it. Use one group, or delete_on_ack=False"
                )
        self._checked = True
        return found

    async def _arrive(self, room: Room) -> None:
        """It was away when the worker started: wait until it is there, or nothing is taken any more."""
        trouble: type[BackstageError] = RedisUnavailable
        while not self._checked and not room.closed:
            try:
                warn(await self._open())
                log.warning("the keyspace %s is there; consuming it, too", self.prefix)
            except BackstageError as exc:
                if type(exc) is not trouble:
                    log.error("the keyspace %s can't be served: %s; trying again", self.prefix, exc)
                trouble = type(exc)
                await asyncio.sleep(LATE)

    # ---- work --------------------------------------------------------------------------------------------------------

    async def consume(self, room: Room) -> None:
        """The main loop: take, feed; until the slots are closed."""
        await self._arrive(room)
        while (found := await room.new(self)) is not None:
            room.feed(self, found)

    async def _reclaim(self, room: Room) -> float:
        await self._released.sleep(Reclaimer.RELEASED * random.uniform(0.9, 1.1))
        while found := await room.left(self):
            room.feed(self, found)
        return 0.0

    def upkeep(self, room: Room) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        return [
            ("finisher", self.finisher.run()),
            ("promoter", every(0.0, self._promoter.step, "promoting")),
            ("reclaimer", every(0.0, partial(self._reclaim, room), "reclaiming")),
            ("control", every(1.0, self._control.step, "listening")),
            ("beat", every(Registry.BEAT, self._registry.beat, "telling the registry")),
            ("pruner", every(Registry.PRUNE, self._registry.prune, "pruning")),
        ]

    def _lose(self, deliveries: list[Delivery]) -> None:
        self.stream.drop(deliveries)
        if cancelled := self._lost(deliveries):
            log.error("%d jobs are somebody else's by now; their runs are cancelled", cancelled)

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def unblock(self) -> None:
        """End a read that waits, for it must not be cancelled; again and again, until this is."""
        while not cancelled():
            try:
                await self.stream.unblock()
            except BackstageError as exc:
                log.debug("can't unblock the read: %s", exc)
            await asyncio.sleep(0.05)

    async def leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE):
                await self.stream.leave(self._worker_id)
        except (BackstageError, TimeoutError) as exc:
            log.debug("left without saying so: %s", exc)


class Alone:
    """The slots, where one keyspace has them to itself."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    @property
    def closed(self) -> bool:
        return self._slots.closed

    async def new(self, space: Keyspace) -> list[Delivery] | None:
        """Jobs, once there is room; waits for them. None when nothing is taken any more."""
        room = await self._slots.free()
        return await space.fetcher.take(room) if room else None

    async def left(self, space: Keyspace) -> list[Delivery]:
        """What was given back or left behind, once there is room."""
        room = await self._slots.free()
        return await space.reclaimer.take(room) if room else []

    def feed(self, space: Keyspace, found: Sequence[Delivery]) -> None:
        self._slots.feed(found)

    def lose(self, deliveries: Iterable[Delivery]) -> int:
        return self._slots.lose(deliveries)


class InTurn:
    """The slots, where several keyspaces share them.

    One reads at a time, in turn: no more is taken than there is room for, and none waits behind the backlog of another.
    Who finds nothing waits for jobs outside its turn. So does a server that doesn't answer at once.
    """

    PATIENCE = 0.05
    """Seconds after which the next one has its turn, though the read has not been answered."""

    def __init__(self, slots: Slots, whose: Whose, count: int) -> None:
        self._slots, self._whose, self._count = slots, whose, count
        self._turn = asyncio.Lock()  # hands itself on in the order in which it was asked for

    @property
    def closed(self) -> bool:
        return self._slots.closed

    async def new(self, space: Keyspace) -> list[Delivery] | None:
        if self._behind(space) and not self.closed:
            await asyncio.sleep(self.PATIENCE)
            return []
        if not space.fetcher.away and (found := await self._read(space.fetcher.look)):
            return found
        room = await self._slots.free()
        return await space.fetcher.take(max(1, room // self._count)) if room else None

    async def left(self, space: Keyspace) -> list[Delivery]:
        return [] if self._behind(space) else await self._read(space.reclaimer.take)

    def _behind(self, space: Keyspace) -> bool:
        """Its server is slow with what has run: more would be run in vain."""
        return space.finisher.waiting() > UNSETTLED

    async def _read(self, read: Callable[[int], Coroutine[Any, Any, list[Delivery]]]) -> list[Delivery]:
        async with self._turn:
            room = await self._slots.free()
            if not room:
                return []
            reading = asyncio.create_task(read(room), name="backstage read")
            try:
                await asyncio.wait({reading}, timeout=self.PATIENCE)
            except BaseException:
                reading.cancel()
                await asyncio.wait({reading})
                raise
        return await reading

    def feed(self, space: Keyspace, found: Sequence[Delivery]) -> None:
        self._whose.took(found, space)
        self._slots.feed(found)

    def lose(self, deliveries: Iterable[Delivery]) -> int:
        self._whose.forget(deliveries)
        return self._slots.lose(deliveries)


Room: TypeAlias = Alone | InTurn


class Whose:
    """Brings each outcome back to the keyspace of its delivery."""

    def __init__(self, spaces: Sequence[Keyspace]) -> None:
        self._spaces = spaces
        self._taken: dict[Delivery, Finisher] = {}

    def took(self, deliveries: Iterable[Delivery], space: Keyspace) -> None:
        self._taken.update(dict.fromkeys(deliveries, space.finisher))

    def put(self, delivery: Delivery, outcome: Outcome) -> None:
        self._taken.pop(delivery).put(delivery, outcome)

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._taken.pop(delivery, None)

    def waiting(self) -> int:
        """Outcomes that are not durable yet, where they are fewest: a server that is away holds up no other."""
        return min(space.finisher.waiting() for space in self._spaces)


def warn(findings: Iterable[Finding]) -> None:
    """Tell what is dangerous about a server, each once."""
    for finding in {str(finding): finding for finding in findings}.values():
        log.warning("%s: %s %s", finding, finding.meaning, finding.advice)

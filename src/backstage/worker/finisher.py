"""Finisher: makes outcomes durable, many at a time, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from backstage.errors import BackstageError
from backstage.job import Delivery
from backstage.outcome import DONE, Again, Done, Outcome
from backstage.stream import Stream

log = logging.getLogger("backstage")

MOST = 500
"""Outcomes in one call."""


class Finisher:
    """Collects outcomes; one call is on its way at a time, and its answer closes the next batch.

    So a batch is as large as the server is slow, and a lone job never waits for others. While Redis is away it keeps
    what it has and tries again, for ever: a repeated finish changes nothing. `settled` is called after each batch,
    `waits` when something was put into a set whose time may come soon.
    """

    def __init__(self, stream: Stream, *, settled: Callable[[], None], waits: Callable[[], None]) -> None:
        self._stream, self._settled, self._waits = stream, settled, waits
        self._sent = 0
        self._done: dict[str, list[Delivery]] = {queue.name: [] for queue in stream.queues}
        self._others: list[tuple[Delivery, Outcome]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, delivery: Delivery, outcome: Outcome) -> None:
        if outcome is DONE:
            self._done[delivery.queue].append(delivery)
        else:
            self._others.append((delivery, outcome))
        if self._idle.is_set():
            self._idle.clear()
            self._wake.set()

    def waiting(self) -> int:
        """How many outcomes are not durable yet."""
        return self._sent + len(self._others) + sum(map(len, self._done.values()))

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            while batch := self._cut():
                await self._settle(*batch)
                self._sent = 0
                self._settled()
            self._wake.clear()
            self._idle.set()

    async def flushed(self, timeout: float) -> bool:
        """Whether all that was put became durable within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _cut(self) -> tuple[dict[str, list[Delivery]], list[tuple[Delivery, Outcome]]] | None:
        # Neither kind holds up the other: half of the room is for those with effects, the rest for plain ones.
        others, self._others = self._others[: MOST // 2], self._others[MOST // 2 :]
        room, done = MOST - len(others), {}
        for queue, deliveries in self._done.items():
            if deliveries and room:
                done[queue] = deliveries[:room]
                del deliveries[:room]
                room -= len(done[queue])
        self._sent = MOST - room
        return (done, others) if done or others else None

    async def _settle(self, done: dict[str, list[Delivery]], others: list[tuple[Delivery, Outcome]]) -> None:
        tries, pause = 0, 0.05
        while True:
            try:
                settled = await self._stream.settle(done, others)
                break
            except BackstageError as exc:
                tries += 1
                log.log(logging.WARNING if tries == 1 else logging.DEBUG, "can't finish jobs yet: %s", exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
        if settled.lost and not tries:
            log.warning("%d finished jobs were not ours any more: somebody else runs or ran them", settled.lost)
        for (delivery, outcome), verdict in zip(others, settled.verdicts, strict=True):
            if isinstance(verdict, BackstageError):
                self._later(delivery, outcome, verdict)
            elif not verdict and not tries:
                log.warning("%s of %s changed nothing: not ours any more", type(outcome).__name__, _shown(delivery))
            elif isinstance(outcome, Again) or (isinstance(outcome, Done) and outcome.next):
                self._waits()

    def _later(self, delivery: Delivery, outcome: Outcome, error: BackstageError) -> None:
        """Refused: it stays pending and held, and is tried again each second until somebody has mended the key."""
        log.error("%s of %s: %s", type(outcome).__name__, _shown(delivery), error)
        asyncio.get_running_loop().call_later(1.0, self.put, delivery, outcome)


def _shown(delivery: Delivery) -> str:
    return f"{delivery.queue}:{delivery.entry_id.decode()}"

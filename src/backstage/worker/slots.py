"""Slots: what is ready, what runs, how much room there is; close and drain."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from time import perf_counter
from typing import Any, Literal, TypeAlias

from backstage.eager import EAGER, start
from backstage.job import Delivery
from backstage.outcome import RELEASED, Outcome
from backstage.service import inside

Why: TypeAlias = Literal["stop", "lost", "hard"]
"""Why a run was cancelled: the worker stops, its lease is somebody else's, its hard limit has passed."""

QUEUE = attrgetter("queue")

BATCH = 500
"""Deliveries asked for at most in one read."""

UNSETTLED = 2_000
"""Outcomes that may wait to become durable: beyond, nothing more is taken, for it would be run in vain."""

SLICE = 0.002
"""Seconds for which ready jobs are started before the loop gets its turn."""

STALL = 0.05
"""Seconds without a start, all slots full, after which what was prefetched is given back."""

LAST_WORDS = 0.25
"""Seconds that a cancelled run has to end before its job is given back all the same."""


class Slots:
    """The jobs in our hands. `execute` turns a delivery into its outcome, `settle` takes the outcome on.

    `unsettled` counts the outcomes that are not durable yet. `why` is where runs that are cancelled leave the reason.

    Deliveries beyond the free slots are fetched ahead only while jobs are short: as many as are likely to start within
    a few milliseconds (see Pace). Jobs start in a pump that the loop calls, never where they arrive, so that the next
    read is on its way before this batch runs.
    """

    def __init__(
        self,
        size: int,
        queues: Sequence[str],
        execute: Callable[[Delivery], Coroutine[Any, Any, Outcome]],
        settle: Callable[[Delivery, Outcome], None],
        unsettled: Callable[[], int],
        why: dict[Delivery, Why],
    ) -> None:
        self.size = size
        self.closed = False
        self.cut = False
        """Some run was cancelled because the grace period was over."""
        self.running: dict[Delivery, asyncio.Task[Any]] = {}
        self.why = why
        self._execute, self._settle, self._unsettled = execute, settle, unsettled
        self._ready: dict[str, deque[Delivery]] = {queue: deque() for queue in queues}
        self._waiting = 0
        self._abandoned: set[Delivery] = set()
        self._pace = Pace(size)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._quiet = asyncio.Event()
        self._pumping = False
        self._stall: asyncio.TimerHandle | None = None
        self._started = 0
        self._ended = 0
        self._starting: Delivery | None = None
        self._context = contextvars.copy_context()
        self._context.run(inside.set, True)

    # ---- room --------------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more deliveries may be taken now."""
        if self.closed or self._unsettled() > UNSETTLED:
            return 0
        return max(0, min(BATCH, self.size + self._pace.ahead - len(self.running) - self._waiting))

    async def free(self) -> int:
        """Waits for room, and tells how much there is; 0 once closed. While busy it waits for a worthwhile part."""
        while not self.closed:
            room = self.room()
            if room and (not self._waiting or room >= min(BATCH, (self.size + self._pace.ahead) // 4)):
                return room
            self._changed.clear()
            await self._changed.wait()
        return 0

    def eased(self) -> None:
        """Outcomes became durable: there may be room again."""
        self._changed.set()

    # ---- start -------------------------------------------------------------------------------------------------------

    def feed(self, deliveries: Iterable[Delivery]) -> None:
        """Take these in; they start when the loop comes to it, best queue first."""
        for queue, group in groupby(deliveries, QUEUE):  # they come queue by queue
            self._ready[queue].extend(group)
        self._waiting = sum(map(len, self._ready.values()))
        if self.closed:
            self._give_back()
        else:
            self._pump_soon()

    def _pump_soon(self) -> None:
        if self._waiting and not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start what is ready until the slots are full or the slice is over."""
        self._pumping = False
        if self.closed:
            return
        begun = now = perf_counter()
        started, ended = 0, self._ended
        for ready in self._ready.values():
            while ready and (room := min(32, self.size - len(self.running))) > 0 and now - begun < SLICE:
                for delivery in [ready.popleft() for _ in range(min(room, len(ready)))]:
                    self._start(delivery, now)
                    started += 1
                now = perf_counter()
        self._starting = None
        self._waiting -= started
        self._started += started
        if inline := self._ended - ended:
            self._pace.ran(inline, perf_counter() - begun)
        if not self._waiting:
            self._changed.set()
        elif started:
            self._pump_soon()
            self._changed.set()
        elif self._stall is None:
            self._stall = self._loop.call_later(STALL, self._check_stall, self._started)

    def _start(self, delivery: Delivery, now: float) -> None:
        """One job in a task and a context of its own: libraries key on both."""
        if not EAGER:
            task = start(self._run(delivery, now), self._loop, "backstage job", self._context.copy())
            self.running[delivery] = task
            return
        self._starting = delivery
        eager = start(self._execute(delivery), self._loop, "backstage job", self._context.copy())
        if eager.done():
            self._ended += 1
            self._settle(delivery, eager.result())
        else:
            self.running[delivery] = eager
            eager.add_done_callback(partial(self._late, delivery, now))

    def current(self) -> Delivery | None:
        """Whose handler has the loop now. For another thread, which asks because the loop is blocked."""
        task = asyncio.current_task(self._loop)
        if task is None:
            return None
        # An eager task is not among the running ones before it has to wait for something.
        return next((delivery for delivery, own in list(self.running.items()) if own is task), self._starting)

    def _late(self, delivery: Delivery, begun: float, task: asyncio.Task[Outcome]) -> None:
        self._end(delivery, begun, task.result())

    async def _run(self, delivery: Delivery, begun: float) -> None:
        """Without eager tasks: the job's own task sees to its end, which is a turn of the loop less than a callback."""
        outcome = await self._execute(delivery)
        self._end(delivery, begun, outcome)

    def _end(self, delivery: Delivery, begun: float, outcome: Outcome) -> None:
        del self.running[delivery]
        self.why.pop(delivery, None)
        self._ended += 1
        if delivery in self._abandoned:
            self._abandoned.discard(delivery)
        else:
            self._settle(delivery, outcome)
        self._pace.ran(1, perf_counter() - begun)
        if self._waiting:
            self._pump_soon()
        else:
            self._changed.set()
        if self.closed and not self.running:
            self._quiet.set()

    # ---- giving up ---------------------------------------------------------------------------------------------------

    def abandon(self, delivery: Delivery, why: Why, outcome: Outcome | None) -> bool:
        """Cancel a run and settle its job now (None: it isn't ours any more). Its slot stays taken until it ends.

        False where it has ended, or was abandoned before.
        """
        task = self.running.get(delivery)
        if task is None or delivery in self._abandoned:
            return False
        self._abandoned.add(delivery)
        if outcome is not None:
            self._settle(delivery, outcome)
        self._cancel(delivery, task, why)
        return True

    def _cancel(self, delivery: Delivery, task: asyncio.Task[Any], why: Why) -> None:
        self.why[delivery] = why
        task.cancel()
        if not EAGER:
            task.add_done_callback(partial(self._never_ran, delivery))

    def _never_ran(self, delivery: Delivery, task: asyncio.Task[Any]) -> None:
        """A task that is cancelled before its first step ends without having seen to its own end."""
        if self.running.get(delivery) is task:
            self._end(delivery, perf_counter(), RELEASED)

    def lose(self, deliveries: Iterable[Delivery]) -> int:
        """Leases that are not ours any more: cancel what runs, forget what waits; how many those are.

        The others have ended. Their finish, on its way or done, tells whose they were.
        """
        gone, waited = set(deliveries), self._waiting
        cancelled = sum(self.abandon(delivery, "lost", None) for delivery in gone)
        for queue, ready in self._ready.items():
            if not gone.isdisjoint(ready):
                self._ready[queue] = deque(delivery for delivery in ready if delivery not in gone)
        self._waiting = sum(map(len, self._ready.values()))
        self._changed.set()
        return cancelled + waited - self._waiting

    def _check_stall(self, started: int) -> None:
        self._stall = None
        if not self._waiting:
            return
        if started == self._started:
            self._pace.stalled()
            self._give_back()
        else:
            self._stall = self._loop.call_later(STALL, self._check_stall, self._started)

    def _give_back(self) -> None:
        """What has not started belongs to whoever has a free slot."""
        for ready in self._ready.values():
            while ready:
                self._settle(ready.popleft(), RELEASED)
        self._waiting = 0
        self._changed.set()

    # ---- end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing more starts. Harmless to repeat."""
        self.closed = True
        self._changed.set()

    def hurry(self) -> None:
        """End the grace period now."""
        self._quiet.set()

    async def drain(self, grace: float) -> list[asyncio.Task[Any]]:
        """Give back what has not started, wait `grace` seconds for what runs, then cancel it and give it back too.

        Returns the tasks that even then would not end.
        """
        self._give_back()
        if self.running:
            try:
                async with asyncio.timeout(grace):
                    await self._quiet.wait()
            except TimeoutError:
                pass
        self.cut = bool(self.running)
        for delivery, task in list(self.running.items()):
            self._cancel(delivery, task, "stop")
        if self.running:
            await asyncio.wait(list(self.running.values()), timeout=LAST_WORDS)
        for delivery in list(self.running):
            self.abandon(delivery, "stop", RELEASED)
        await asyncio.sleep(0)  # the ends of eager tasks are callbacks
        return list(self.running.values())


class Pace:
    """How many deliveries to have ready beyond the free slots, measured: what is likely to start within HORIZON.

    By the mean time of a job over the slots, and by the rate that was really seen, whichever is less. Long jobs bring
    it to 0, so that a busy worker never hoards what an idle one could run.
    """

    HORIZON = 0.004
    MOST = 1000
    ENOUGH = 32
    """Ends from which something can be learned."""

    def __init__(self, size: int) -> None:
        self.ahead = 0
        self._size = size
        self._mean: float | None = None
        self._rate = 0.0
        self._jobs, self._seconds, self._since = 0, 0.0, perf_counter()

    def ran(self, jobs: int, seconds: float) -> None:
        """So many jobs ended, and took so long together."""
        self._jobs += jobs
        self._seconds += seconds
        if self._jobs >= self.ENOUGH:
            self._learn()

    def stalled(self) -> None:
        """All slots are full of jobs that take long."""
        self.ahead, self._mean = 0, max(self._mean or 0.0, 1.0)

    def _learn(self) -> None:
        jobs, mean, now = self._jobs, self._seconds / self._jobs, perf_counter()
        rate = jobs / max(now - self._since, 1e-6)
        self._jobs, self._seconds, self._since = 0, 0.0, now
        self._mean = mean if self._mean is None else self._mean + (mean - self._mean) * min(1.0, jobs / 64)
        self._rate = rate if not self._rate else self._rate + (rate - self._rate) * 0.25
        self.ahead = int(min(self.MOST, self.HORIZON * self._rate, self._size * self.HORIZON / max(self._mean, 1e-7)))

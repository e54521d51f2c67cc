"""Time limits of runs, all on one timer: a job that ends in time pays for two entries in a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from backstage.errors import SoftTimeout
from backstage.job import Delivery

T = TypeVar("T")


class Watch:
    """The limits of one run. Seconds on the loop's clock; infinity for none."""

    __slots__ = ("delivery", "hard_at", "soft_at", "soft_ms", "softened", "task")

    def __init__(
        self, delivery: Delivery, task: asyncio.Task[Any], soft_ms: int | None, soft_at: float, hard_at: float
    ):
        self.delivery, self.task = delivery, task
        self.soft_ms, self.soft_at, self.hard_at = soft_ms, soft_at, hard_at
        self.softened = False
        """Cancelled for its soft limit, and the handler has not been told yet."""


class Limits:
    """Watches runs; at a soft limit it interrupts the handler, at a hard one it calls `expire`."""

    def __init__(self, expire: Callable[[Delivery], None]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Delivery, Watch] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")

    def begin(self, delivery: Delivery, soft_ms: int | None, hard_ms: int | None) -> Watch:
        """Watch the current task's run. None: no such limit."""
        task, now = asyncio.current_task(), self._loop.time()
        assert task is not None
        soft_at = now + soft_ms / 1000 if soft_ms is not None else float("inf")
        hard_at = now + hard_ms / 1000 if hard_ms is not None else float("inf")
        watch = self._watched[delivery] = Watch(delivery, task, soft_ms, soft_at, hard_at)
        self._arm(min(soft_at, hard_at))
        return watch

    def end(self, delivery: Delivery) -> None:
        self._watched.pop(delivery, None)

    def overdue(self, delivery: Delivery, slack: float) -> bool:
        """Whether its hard limit passed more than `slack` seconds ago. Safe to ask from another thread."""
        watch = self._watched.get(delivery)
        return watch is not None and self._loop.time() > watch.hard_at + slack

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due: float) -> None:
        if due >= self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now, self._due, self._timer = self._loop.time() + 0.001, float("inf"), None
        earliest = float("inf")
        for watch in list(self._watched.values()):
            if watch.hard_at <= now:
                del self._watched[watch.delivery]
                self._expire(watch.delivery)
                continue
            if watch.soft_at <= now:
                watch.soft_at, watch.softened = float("inf"), True
                watch.task.cancel()
            earliest = min(earliest, watch.soft_at, watch.hard_at)
        if earliest < float("inf"):
            self._arm(earliest)


class Interruptible:
    """Awaits a handler's coroutine; the cancellation that its soft limit asked for reaches it as SoftTimeout.

    asyncio can only cancel. So this stands between the task and the handler, hands every await through, and swaps the
    exception where it was the limit that cancelled.
    """

    def __init__(self, handler: Coroutine[Any, Any, T], watch: Watch, stopped: Callable[[], bool]) -> None:
        self._handler, self._watch, self._stopped = handler, watch, stopped

    def __await__(self) -> Generator[Any, Any, Any]:
        handler, watch = self._handler, self._watch
        thrown: BaseException | None = None
        try:
            while True:
                try:
                    awaited = handler.send(None) if thrown is None else handler.throw(thrown)
                except StopIteration as stop:
                    return stop.value
                try:
                    yield awaited
                    thrown = None
                except asyncio.CancelledError as exc:
                    thrown = exc
                    if watch.softened and not self._stopped():
                        watch.softened = False
                        watch.task.uncancel()
                        thrown = SoftTimeout(f"ran longer than its soft limit of {watch.soft_ms} ms")
                except BaseException as exc:
                    thrown = exc
        finally:
            handler.close()

"""Threads for handlers that are plain functions. Daemon threads: one that hangs can't hold up the process's end."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

_Work: TypeAlias = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """At most `size` threads, started when they are needed, idle ones used first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, fn: Callable[[], Any]) -> asyncio.Future[Any]:
        """The function's result, in time. It sees a copy of the caller's context variables."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._work.put((loop, future, partial(contextvars.copy_context().run, fn)))
        if not self._idle.acquire(blocking=False) and self._count < self._size:
            self._count += 1
            threading.Thread(target=self._serve, name=f"backstage job thread {self._count}", daemon=True).start()
        return future

    def close(self) -> None:
        """Threads end when they have nothing left to do. Those that still run something are left to it."""
        for _ in range(self._count):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            loop, future, fn = work
            result: Any = None
            error: BaseException | None = None
            try:
                result = fn()
            except BaseException as exc:  # SystemExit, too, is the job's failure and not the thread's end
                error = exc
            del work, fn
            self._idle.release()  # before the answer: what it leads to finds this thread idle
            try:
                loop.call_soon_threadsafe(_answer, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _answer(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, (StopIteration, GeneratorExit)):  # which no await can carry
        future.set_exception(RuntimeError(f"handler raised {type(error).__name__}"))
    else:
        future.set_exception(error)

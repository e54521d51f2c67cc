"""What runs until it is told to stop: the life that Worker, Scheduler and Broadcast have in common."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib.util
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

from backstage.errors import ConfigError
from backstage.logs import ensure_visible
from backstage.signals import Signals

inside: contextvars.ContextVar[bool] = contextvars.ContextVar("backstage_inside_job", default=False)
"""True in a handler and in what it starts: `stop()` there only asks, for it would wait for itself."""


class Life:
    """One run of a service: it gets ready, is asked to stop, perhaps to hurry, and ends."""

    def __init__(self) -> None:
        self.ready, self.stopping, self.hurrying, self.ended = (asyncio.Event() for _ in range(4))
        self.stubborn: list[asyncio.Task[Any]] = []
        """Runs that would not end when they were cancelled."""
        self.cut = False
        """Whether any run was cancelled; a thread that it waited for may still be busy."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Asked once: finish what runs. Asked again: now."""
        if self.stopping.is_set():
            self.hurrying.set()
        self.stopping.set()

    def heard(self) -> None:
        """A signal arrived; safe to call from its handler."""
        self._loop.call_soon_threadsafe(self.stop)


class Attachment(Protocol):
    """What starts and stops with a worker: a Broadcast."""

    @property
    def listens(self) -> bool:
        """Whether there is anything for it to do."""
        ...

    async def run_attached(self, ready: Callable[[], None], life: Life) -> None:
        """Calls `ready` once it works (again after an outage), returns when the life is over."""
        ...


class Service:
    """`start` runs until `stop` or a signal; `running` is the same in the background; `run` the same from sync code."""

    _life: Life | None = None

    async def _serve(self, life: Life) -> None:
        """Do the work: set `life.ready` once it runs, return when `life.stopping` is set and all is tidied up."""
        raise NotImplementedError  # each service has its own

    async def start(self, signals: bool = True) -> None:
        """Run until `stop()` or, in the main thread, SIGTERM, SIGINT or SIGQUIT; a second one ends the grace period.

        Cancelling it takes the same road: it stops in good order before it raises.
        """
        if self._life is not None:
            raise ConfigError(f"this {type(self).__name__} is running already")
        life = self._life = Life()
        heed = Signals(life.heard) if signals else contextlib.nullcontext()
        with heed:
            serving = asyncio.create_task(self._serve(life), name=f"backstage {type(self).__name__.lower()}")
            try:
                await _outlive(serving, life.stop)
            finally:
                self._life = None
                life.ended.set()

    async def stop(self) -> None:
        """Ask to stop, and wait for the end. Called from a handler it only asks. Harmless where nothing runs."""
        life = self._life
        if life is None:
            return
        if not life.stopping.is_set():
            life.stop()
        if not inside.get():
            await life.ended.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run in the background: yields once it works, stops at the end of the block. Takes no signals."""
        service = asyncio.create_task(self.start(signals=False), name="backstage running")
        await asyncio.sleep(0)
        life = self._life
        ready = asyncio.create_task(life.ready.wait()) if life is not None else None
        try:
            if ready is not None:
                await asyncio.wait({service, ready}, return_when=asyncio.FIRST_COMPLETED)
            if service.done():
                await service  # it raises why it could not start
            yield self
        finally:
            if ready is not None:
                ready.cancel()
            if life is not None and not life.stopping.is_set():
                life.stop()
            await _outlive(service, lambda: None)

    def run(self) -> None:
        """Run from sync code until a signal says to stop; on uvloop where that is installed.

        Logs to stderr where logging is not configured. Returns when all is done, for exit status 0.
        """
        ensure_visible()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            if runner.run(self._run()):
                # Closing the loop would wait for those for ever. Their jobs have been given back.
                logging.shutdown()
                os._exit(0)

    async def _run(self) -> bool:
        """Whether runs are left that don't end, or threads that they had waited for."""
        executor = ThreadPoolExecutor(thread_name_prefix="backstage executor")
        asyncio.get_running_loop().set_default_executor(executor)
        starting = asyncio.create_task(self.start())
        await asyncio.sleep(0)
        life = self._life
        await _outlive(starting, lambda: life.stop() if life else None)
        if life is None or not life.cut:
            return False
        return any(not task.done() for task in life.stubborn) or await _hangs(executor)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where the extra is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _hangs(executor: ThreadPoolExecutor) -> bool:
    """Whether threads of it are still busy, half a second after they were told to end."""
    executor.shutdown(wait=False, cancel_futures=True)
    for _ in range(50):
        if not any(thread.name.startswith("backstage executor") for thread in threading.enumerate()):
            return False
        await asyncio.sleep(0.01)
    return True


async def _outlive(task: asyncio.Task[None], stop: Callable[[], None]) -> None:
    """Await a task to its end; a cancellation only calls `stop`, and is raised when the task has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            if task.done() and task.cancelled():
                raise
            cancelled = exc
            stop()
        except Exception:  # the task's own end: raised below
            break
    if cancelled is not None and (task.cancelled() or task.exception() is None):
        raise cancelled
    await task

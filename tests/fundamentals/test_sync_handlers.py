"""Sync handlers: a plain `def` runs in a thread, and holds up nothing."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable

from backstage import Next, Run, Worker
from support.waiting import wait_until


async def test_in_a_thread(worker: Worker) -> None:
    """A `def` handler is run in a thread of its own, so it may block."""
    threads: list[threading.Thread] = []

    @worker.on("t")
    def handle(payload: dict[str, int]) -> None:
        threads.append(threading.current_thread())

    async with worker.running():
        await handle.enqueue({"n": 1})
        await wait_until(lambda: threads)
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


async def test_side_by_side(worker: Worker) -> None:
    """As many run at once as there are slots; neither they nor async handlers wait for one that blocks."""
    both_here = threading.Barrier(3)
    handled: list[int] = []

    @worker.on("meet")
    def meet(n: int) -> None:
        both_here.wait(5)
        handled.append(n)

    @worker.on("quick")
    async def quick() -> None:
        handled.append(0)

    async with worker.running():
        await meet.enqueue(1)
        await meet.enqueue(2)
        await quick.enqueue()
        await wait_until(lambda: handled == [0])
        both_here.wait(5)
        await wait_until(lambda: sorted(handled) == [0, 1, 2])


async def test_concurrency_bounds_threads_too(url: str, prefix: str) -> None:
    """`concurrency` is the number of runs at once, of either kind."""
    now, most = 0, 0
    lock = threading.Lock()
    worker = Worker(url=url, prefix=prefix, concurrency=2)
    done: list[int] = []

    @worker.on("t")
    def handle(n: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.005)
        with lock:
            now -= 1
        done.append(n)

    async with worker.running():
        for n in range(10):
            await handle.enqueue(n)
        await wait_until(lambda: len(done) == 10)
    assert most == 2


async def test_everything_else_is_the_same(worker: Worker) -> None:
    """Payload, run, what comes next, failure and retry: as for an async handler."""
    seen: list[object] = []

    @worker.on("first", backoff={"type": "fixed", "delay": 0})
    def first(n: int, run: Run) -> Next:
        seen.append((n, run.attempt))
        if run.attempt == 1:
            raise ValueError
        return Next("second", n + 1)

    @worker.on("second")
    def second(n: int) -> None:
        seen.append(n)

    async with worker.running():
        await first.enqueue(1)
        await wait_until(lambda: seen == [(1, 1), (1, 2), 2])


async def test_context_variables(url: str, prefix: str) -> None:
    """What middleware sets in a context variable is there in the thread; what a run sets is gone after it."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    async def set_tenant(run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
        seen.append(tenant.get())
        tenant.set(run.job.payload)
        return await call_next()

    worker = Worker(url=url, prefix=prefix, concurrency=1, middleware=[set_tenant])

    @worker.on("t")
    def handle(name: str) -> None:
        seen.append(tenant.get())

    async with worker.running():
        await handle.enqueue("acme")
        await handle.enqueue("initech")
        await wait_until(lambda: len(seen) == 4)
    assert seen == ["nobody", "acme", "nobody", "initech"]


async def test_decorated(worker: Worker) -> None:
    """A plain decorator around an `async def` is awaited: what counts is what a call gives."""
    seen: list[int] = []

    def logged(fn: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
        @functools.wraps(fn)
        def wrapper(n: int) -> Awaitable[None]:
            return fn(n)

        return wrapper

    @worker.on("t")
    @logged
    async def handle(n: int) -> None:
        await asyncio.sleep(0)
        seen.append(n)

    async with worker.running():
        await worker.enqueue("t", 1)
        await wait_until(lambda: seen == [1])

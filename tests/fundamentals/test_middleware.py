"""Middleware: what wraps every run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from backstage import Discard, Inspector, Next, Run, Worker
from support.waiting import wait_until

CallNext = Callable[[], Awaitable[object]]


async def test_around_every_run(url: str, prefix: str) -> None:
    """Middleware gets the run and a function that runs the rest; the first in the list is outermost."""
    seen: list[str] = []

    async def outer(run: Run, call_next: CallNext) -> object:
        seen.append(f"outer before {run.job.task}")
        result = await call_next()
        seen.append("outer after")
        return result

    class Inner:
        async def __call__(self, run: Run, call_next: CallNext) -> object:
            seen.append(f"inner before {run.job.payload}")
            try:
                return await call_next()
            finally:
                seen.append("inner after")

    worker = Worker(url=url, prefix=prefix, middleware=[outer, Inner()])

    @worker.on("t")
    async def handle(n: int) -> None:
        seen.append("handler")

    async with worker.running():
        await handle.enqueue(7)
        await wait_until(lambda: "outer after" in seen)
    assert seen == ["outer before t", "inner before 7", "handler", "inner after", "outer after"]


async def test_handlers_that_ask_for_nothing(url: str, prefix: str) -> None:
    """It wraps sync handlers, and those without payload or run, as well."""
    seen: list[str] = []

    async def note(run: Run, call_next: CallNext) -> object:
        seen.append(run.job.task)
        return await call_next()

    worker = Worker(url=url, prefix=prefix, middleware=[note])
    worker.on("plain", lambda: seen.append("in a thread"))
    async with worker.running():
        await worker.enqueue("plain")
        await wait_until(lambda: seen == ["plain", "in a thread"])


async def test_result(url: str, prefix: str) -> None:
    """What it returns counts as the handler's result: it may add what comes next, or take it away."""
    seen: list[str] = []

    async def and_then(run: Run, call_next: CallNext) -> object:
        await call_next()
        return Next("second") if run.job.task == "first" else None

    worker = Worker(url=url, prefix=prefix, middleware=[and_then])

    @worker.on("first")
    async def first() -> Next:
        return Next("never")

    worker.on("never", lambda: seen.append("never"))
    worker.on("second", lambda: seen.append("second"))
    async with worker.running():
        await first.enqueue()
        await wait_until(lambda: seen == ["second"])


async def test_failure(url: str, prefix: str) -> None:
    """It sees what the handler raises, and may raise itself: the run fails as if the handler had."""
    seen: list[str] = []

    async def guard(run: Run, call_next: CallNext) -> object:
        if run.job.payload == "forbidden":
            raise Discard("not allowed")
        try:
            return await call_next()
        except ValueError as error:
            seen.append(str(error))
            raise

    worker = Worker(url=url, prefix=prefix, middleware=[guard])

    @worker.on("t", attempts=1)
    async def handle(word: str) -> None:
        seen.append(word)
        raise ValueError(f"can't {word}")

    async with worker.running():
        await handle.enqueue("forbidden", queue="urgent")
        await handle.enqueue("work")
        (refused,) = await wait_until(lambda: Inspector(worker).dead("urgent"))
        (failed,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert seen == ["work", "can't work"]
    assert (refused.reason, refused.error) == ("discarded", "not allowed")
    assert failed.error == "ValueError: can't work"


async def test_without_running_it(url: str, prefix: str) -> None:
    """Middleware that doesn't call on has done the job itself."""
    seen: list[str] = []

    async def skip(run: Run, call_next: CallNext) -> object:
        seen.append("skipped")
        return None

    worker = Worker(url=url, prefix=prefix, middleware=[skip])
    worker.on("t", lambda: seen.append("ran"))
    async with worker.running():
        await worker.enqueue("t")
        await wait_until(lambda: seen)
    assert seen == ["skipped"]


async def test_timing(url: str, prefix: str) -> None:
    """What it is good for: metrics, tracing, a database session for each run."""
    took: dict[str, float] = {}

    async def measure(run: Run, call_next: CallNext) -> object:
        begun = time.perf_counter()
        try:
            return await call_next()
        finally:
            took[run.job.task] = time.perf_counter() - begun

    worker = Worker(url=url, prefix=prefix, middleware=[measure])
    worker.on("nap", lambda: time.sleep(0.02))
    async with worker.running():
        await worker.enqueue("nap")
        await wait_until(lambda: took)
    assert took["nap"] >= 0.02

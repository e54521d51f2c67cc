"""streaq."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from contract import TASK, URL, Meter, Payload, main, run
from streaq import Worker


class Sender:
    def __init__(self, worker: Worker[Any], task: Any) -> None:
        self._worker, self._task = worker, task

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._task.enqueue(payload)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        return await self._worker.enqueue_many([self._task.enqueue(each) for each in payloads])


class Streaq:
    """https://streaq.readthedocs.io/: `ttl=0` keeps no result; prefetch is by default as large as concurrency."""

    modes = ("one", "gather", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        worker = Worker(redis_url=URL)

        async def task(payload: Payload) -> None: ...

        async with worker:
            yield Sender(worker, worker.task(name=TASK, ttl=0)(task))

    def work(self, meter: Meter, concurrency: int) -> None:
        worker = Worker(redis_url=URL, concurrency=concurrency, handle_signals=False)
        worker.task(name=TASK, ttl=0)(meter.handler())
        run(worker.run_async())


if __name__ == "__main__":
    main(Streaq())

"""SAQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from contract import TASK, URL, Meter, Payload, main, run
from saq import Queue, Worker


class Sender:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._queue.enqueue(TASK, ttl=-1, payload=payload)


class Saq:
    """https://saq-py.readthedocs.io/: a job's `ttl=-1` keeps nothing of it once it is done. It has no bulk enqueue."""

    modes = ("one", "gather")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        queue = Queue.from_url(URL)
        await queue.connect()
        yield Sender(queue)
        await queue.disconnect()

    def work(self, meter: Meter, concurrency: int) -> None:
        handle = meter.handler()

        async def job(ctx: Any, *, payload: Payload) -> None:
            await handle(payload)

        async def serve() -> None:
            queue = Queue.from_url(URL)
            await queue.connect()
            await Worker(queue, [(TASK, job)], concurrency=concurrency).start()

        run(serve())


if __name__ == "__main__":
    main(Saq())

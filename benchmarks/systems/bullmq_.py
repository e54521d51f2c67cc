"""BullMQ for Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bullmq import Queue, Worker
from contract import TASK, URL, Meter, Payload, main, run

OPTIONS = {"removeOnComplete": True}


class Sender:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._queue.add(TASK, payload, OPTIONS)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        return await self._queue.addBulk([{"name": TASK, "data": each, "opts": OPTIONS} for each in payloads])


class Bullmq:
    """https://docs.bullmq.io/guide/queues/auto-removal-of-jobs: `removeOnComplete` keeps nothing of what is done."""

    modes = ("one", "gather", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        queue = Queue("bench", {"connection": URL})
        yield Sender(queue)
        await queue.close()

    def work(self, meter: Meter, concurrency: int) -> None:
        handle = meter.handler()

        async def process(job: Any, token: str) -> None:
            await handle(job.data)

        async def serve() -> None:
            Worker("bench", process, {"connection": URL, "concurrency": concurrency})
            await asyncio.Event().wait()

        run(serve())


if __name__ == "__main__":
    main(Bullmq())

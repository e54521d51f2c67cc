"""Taskiq on Redis streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from contract import TASK, URL, Meter, Payload, main, run
from taskiq import AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker


class Sender:
    def __init__(self, task: AsyncTaskiqDecoratedTask[..., None]) -> None:
        self._task = task

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._task.kiq(payload)


class Taskiq:
    """https://taskiq-python.github.io/: no result backend keeps no results; 100 async tasks at once are its default.

    `max_prefetch` as large as a read of the stream, so that the next one overlaps with the work; `consumer_id="0"`,
    for the jobs are older than the group. It has no bulk enqueue. Its stream broker acknowledges and never deletes; its
    documentation suggests `maxlen`, which would drop jobs that wait.
    """

    modes = ("one", "gather")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        made = broker(100)

        @made.task(task_name=TASK)
        async def task(payload: Payload) -> None: ...

        await made.startup()
        yield Sender(task)
        await made.shutdown()

    def work(self, meter: Meter, concurrency: int) -> None:
        async def serve() -> None:
            made = broker(None)
            made.register_task(meter.handler(), task_name=TASK)
            await run_receiver_task(made, max_async_tasks=concurrency, max_prefetch=100, run_startup=True)

        run(serve())


def broker(connections: int | None) -> RedisStreamBroker:
    return RedisStreamBroker(URL, consumer_id="0", max_connection_pool_size=connections)


if __name__ == "__main__":
    main(Taskiq())

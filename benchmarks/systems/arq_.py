"""arq."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker
from contract import TASK, URL, Meter, Payload, loop_factory, main


class Sender:
    def __init__(self, pool: ArqRedis) -> None:
        self._pool = pool

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._pool.enqueue_job(TASK, payload)


class Arq:
    """https://arq-docs.helpmanual.io/: `keep_result=0` keeps no result.

    `poll_delay`, half a second by default, is both its idle latency and the time between two reads of at most 500 jobs,
    so it would bound arq at 1,000 jobs/s. Its documentation names no better value; 5 ms is the best that we found.
    """

    modes = ("one", "gather")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        pool = await create_pool(RedisSettings.from_dsn(URL))
        yield Sender(pool)
        await pool.aclose()

    def work(self, meter: Meter, concurrency: int) -> None:
        handle = meter.handler()

        async def run(ctx: dict[str, Any], payload: Payload) -> None:
            await handle(payload)

        asyncio.set_event_loop(loop_factory()())  # its worker takes the current one
        Worker(
            [func(run, name=TASK, keep_result=0)],  # type: ignore[arg-type]
            redis_settings=RedisSettings.from_dsn(URL),
            max_jobs=concurrency,
            poll_delay=0.005,
            keep_result=0,
            log_results=False,
        ).run()


if __name__ == "__main__":
    main(Arq())

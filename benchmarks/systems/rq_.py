"""RQ."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import contract
from contract import TASK, URL, Meter, Payload, main
from redis import Redis
from rq import Queue, SimpleWorker

FUNCTION = "contract.job"
"""RQ imports a job's function by its name, so the worker puts its handler there."""


class Sender:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def one(self, payload: Payload) -> object:
        return self._queue.enqueue(FUNCTION, payload, result_ttl=0, description=TASK)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        prepare = Queue.prepare_data
        return self._queue.enqueue_many(
            [prepare(FUNCTION, (each,), result_ttl=0, description=TASK) for each in payloads]
        )


class Rq:
    """https://github.com/rq/rq/blob/master/docs/benchmark.md: `SimpleWorker` is its fastest, as it doesn't fork for
    each job. It runs one job after the other; RQ has no concurrency within a process. `result_ttl=0` keeps no result.
    """

    modes = ("one", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        with Redis.from_url(URL) as redis:
            yield Sender(Queue("bench", connection=redis))

    def work(self, meter: Meter, concurrency: int) -> None:
        handler: Callable[[Payload], None] = meter.sync_handler()
        contract.job = handler  # type: ignore[attr-defined]
        redis = Redis.from_url(URL)
        worker = SimpleWorker([Queue("bench", connection=redis)], connection=redis)
        worker.log_job_description = False
        worker.work(logging_level=logging.getLevelName(logging.WARNING))


if __name__ == "__main__":
    main(Rq())

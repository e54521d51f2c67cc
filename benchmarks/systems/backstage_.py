"""Backstage."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

from contract import TASK, URL, Meter, Payload, main

from backstage import Client, Job, Queue, Worker

QUEUES = int(os.environ.get("BENCH_QUEUES", "3"))
"""How many queues the worker serves. The jobs are in `default`, with empty queues above and below it."""


class Sender:
    def __init__(self, client: Client) -> None:
        self._client = client

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._client.enqueue(TASK, payload)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        return await self._client.enqueue_many([Job(TASK, each) for each in payloads])


class Backstage:
    """All as it is out of the box: no setting is there for speed."""

    modes = ("one", "gather", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        async with Client(url=URL) as client:
            yield Sender(client)

    def work(self, meter: Meter, concurrency: int) -> None:
        worker = Worker(url=URL, concurrency=concurrency, queues=queues(QUEUES))
        worker.on(TASK, meter.handler())
        meter.done = lambda: os.kill(os.getpid(), signal.SIGTERM)  # it stops in good order: what is handled is settled
        worker.run()
        meter.report()


def queues(count: int) -> list[Queue]:
    """`default` in the middle, half of the others above it."""
    above = (count - 1) // 2
    names = [f"above-{n}" for n in range(above)] + ["default"] + [f"below-{n}" for n in range(count - 1 - above)]
    return [Queue(name, priority=place) for place, name in enumerate(names)]


if __name__ == "__main__":
    main(Backstage())

"""docket (pydocket)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from contract import TASK, URL, Meter, Payload, main, run
from docket import Docket, Worker


class Sender:
    def __init__(self, docket: Docket) -> None:
        self._docket = docket

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._docket.add(TASK)(payload)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        return await self._docket.add_many([self._docket.call(TASK)(each) for each in payloads])


async def task(payload: Payload) -> None: ...


class Pydocket:
    """https://docket.lol/: `execution_ttl=0` keeps no record of what is done, "for maximum throughput"."""

    modes = ("one", "gather", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        async with docket() as made:
            made.register(task, names=[TASK])
            yield Sender(made)

    def work(self, meter: Meter, concurrency: int) -> None:
        async def serve() -> None:
            async with docket() as made:
                made.register(meter.handler(), names=[TASK])
                async with Worker(
                    made, concurrency=concurrency, minimum_check_interval=timedelta(milliseconds=5)
                ) as worker:
                    await worker.run_forever()

        run(serve())


def docket() -> Docket:
    return Docket(name="bench", url=f"{URL}?max_connections=2000", execution_ttl=timedelta(0))


if __name__ == "__main__":
    main(Pydocket())

"""No system at all: what a loop over redis-py and msgspec can do on the same stream, with none of the guarantees.

One job after the other is handled where it was read. Nothing is retried, renewed, counted or given back, no job has a
task, a context or a time limit.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
from contract import TASK, URL, Meter, Payload, main, run
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ResponseError

STREAM = "bare:default"
GROUP = "bare"
BATCH = 500

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


def fields(payload: Payload) -> dict[str, str | bytes | int]:
    """The four fields that Backstage writes."""
    return {
        "taskName": TASK,
        "payload": encode(payload),
        "enqueuedAt": int(time.time() * 1000),
        "jobId": str(uuid.uuid4()),
    }


class Sender:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def one(self, payload: Payload) -> Awaitable[object]:
        return self._redis.xadd(STREAM, fields(payload))

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        for at in range(0, len(payloads), BATCH):
            pipe = self._redis.pipeline(transaction=False)
            for each in payloads[at : at + BATCH]:
                pipe.xadd(STREAM, fields(each))
            await pipe.execute()
        return None


class Bare:
    modes = ("one", "gather", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        # More calls than connections wait for one, where the plain pool refuses them.
        pool = BlockingConnectionPool.from_url(URL, max_connections=100, timeout=60)
        async with Redis.from_pool(pool) as redis:
            yield Sender(redis)

    def work(self, meter: Meter, concurrency: int) -> None:
        run(self._work(meter))

    async def _work(self, meter: Meter) -> None:
        handle = meter.handler()
        async with Redis.from_url(URL) as redis:
            with suppress(ResponseError):  # it is there
                await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
            while True:
                answer = await redis.xreadgroup(GROUP, "one", {STREAM: ">"}, count=BATCH, block=1000)
                entries = answer[0][1] if answer else []
                for _, entry in entries:
                    await handle(decode(entry[b"payload"]))
                if entries:
                    ids = [entry_id for entry_id, _ in entries]
                    pipe = redis.pipeline(transaction=False)
                    pipe.xack(STREAM, GROUP, *ids)
                    pipe.xdel(STREAM, *ids)
                    await pipe.execute()


if __name__ == "__main__":
    main(Bare())

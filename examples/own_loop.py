"""A loop of one's own on a Stream, for those who need no Worker: take jobs, do them, finish them. It ends by itself.

python examples/own_loop.py redis://localhost:6379
"""

import asyncio
import sys

from redis.asyncio import Redis

from backstage import Again, Dead, Done, Job, Outcome, Stream


async def main(url: str, prefix: str = "own-loop") -> None:
    async with Redis.from_url(url) as redis:
        stream = Stream(redis, "own-workers", queues=["sums"], prefix=prefix)
        await stream.initialize()
        for numbers in ([1, 2, 3], [40, 2], ["not", "numbers"]):
            await stream.enqueue("sum", numbers, queue="sums")
        try:
            await loop(stream, jobs=4)  # one of them is run twice
        finally:
            await stream.aclose()
            await redis.delete(*[key async for key in redis.scan_iter(f"{prefix}:*")])


async def loop(stream: Stream, jobs: int) -> None:
    while jobs:
        await stream.promote()  # what was put off and is due
        deliveries = await stream.take(10, block=100) or await stream.reclaim(10)
        # Where work takes long, `await stream.renew(deliveries)` now and then keeps them ours.
        outcomes = [(delivery, work(stream.job(delivery))) for delivery in deliveries]
        jobs -= sum(await stream.finish(outcomes))


def work(job: Job) -> Outcome:
    try:
        print(f"{job.payload}: the sum is {sum(job.payload)}")
    except TypeError as error:
        if job.attempt == 0:
            print(f"{job.payload}: {error}; once more")
            return Again(delay=50, error=str(error))
        print(f"{job.payload}: given up")
        return Dead("error", str(error))
    return Done()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["redis://localhost:6379"]))

"""A worker and a producer in one program: a payment, then its receipt. It ends by itself.

REDIS_URL=redis://localhost:6379 python examples/quickstart.py
REDIS_URL=embedded:///tmp/backstage python examples/quickstart.py      # no Redis at hand
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from backstage import Next, Worker


@dataclass
class Order:
    id: str


worker = Worker()  # where Redis is: REDIS_URL, or Worker(host=…, port=…)
sent = asyncio.Event()


@worker.on("email.receipt")
async def receipt(order: Order) -> None:
    print(f"receipt for {order.id} sent")
    sent.set()


@worker.on("payment.process", attempts=3, timeout=timedelta(seconds=30))
async def process(order: Order) -> Next:
    print(f"{order.id} paid")
    return Next(receipt, order, delay=timedelta(milliseconds=500))


async def main() -> None:
    async with worker.running():  # a service would call worker.run() instead, which returns at SIGTERM or Ctrl-C
        job_id = await process.enqueue(Order("order-1"))
        print(f"job {job_id} enqueued")
        await sent.wait()


if __name__ == "__main__":
    asyncio.run(main())

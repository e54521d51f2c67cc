"""The producer, as a web application would be one. It knows the tasks, so each job finds its own queue."""

import asyncio

from backstage import Client, Job

from . import payments
from .orders import Order


async def main() -> None:
    async with Client(tasks=[payments.tasks]) as client:
        order = Order("order-1", "ada@example.com", ["book", "pen"])
        first = await client.enqueue(payments.process, order, dedupe=f"pay:{order.id}")
        again = await client.enqueue(payments.process, order, dedupe=f"pay:{order.id}")
        print(f"enqueued: {first}; the second click: {again}")

        more = [Order(f"order-{n}", "bob@example.com", ["lamp"]) for n in (2, 3)]
        ids = await client.enqueue_many([Job(payments.process, order) for order in [*more, Order("order-4", "")]])
        print(f"{len(ids)} more enqueued")


if __name__ == "__main__":
    asyncio.run(main())

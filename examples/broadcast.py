"""One message, handled by every worker that is alive. Here two of them live in one program. It ends by itself.

python examples/broadcast.py
"""

import asyncio

from backstage import Broadcast, Worker

heard = asyncio.Semaphore(0)


def make_worker(name: str) -> tuple[Worker, Broadcast]:
    worker = Worker(worker_id=name)
    broadcast = Broadcast(worker=worker)  # starts and stops with the worker

    @broadcast.on("prices.changed")
    async def take_over(prices: dict[str, float]) -> None:
        print(f"{name}: new prices for {', '.join(prices)}")
        heard.release()

    return worker, broadcast


async def main() -> None:
    (first, here), (second, there) = make_worker("worker-1"), make_worker("worker-2")
    async with first.running(), second.running():
        await here.initialize()  # what is sent from now on is heard; not needed where that doesn't matter
        await there.initialize()
        await here.send("prices.changed", {"book": 12.5, "pen": 1.2})
        await heard.acquire()
        await heard.acquire()


if __name__ == "__main__":
    asyncio.run(main())

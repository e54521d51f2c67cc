"""A server of its own with one worker that counts runs, for faults that hit the whole server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from redis.asyncio import Redis
from scene import INTERVAL

from backstage import Client, Job, Worker
from support.server import Server
from support.waiting import wait_until

BACK = 2.0
"""Seconds within which a worker consumes again after a fault is over."""


class Site:
    """`runs` and `ended` count by the number that a job carries; `starts` are times; `url` may lead through a proxy."""

    def __init__(self, server: Server, url: str = "", *, lease: int = 5_000, connect_timeout: int = 5_000) -> None:
        self.server = server
        self.url = url or server.url
        self.worker = Worker(
            url=self.url,
            concurrency=10,
            idle_timeout=lease,
            reclaimer_interval=INTERVAL,
            connect_timeout=connect_timeout,
        )
        self.client = Client(url=self.url, connect_timeout=connect_timeout)
        self.runs: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.starts: list[float] = []

        @self.worker.on("job")
        async def job(n: int) -> None:
            self.runs[n] += 1
            self.starts.append(time.monotonic())
            await asyncio.sleep(0.02)
            self.ended[n] += 1

    async def feed(self, many: int) -> None:
        await self.client.enqueue_many([Job("job", n) for n in range(many)])

    async def consumes(self, within: float = BACK) -> None:
        """A job that is enqueued now is done in time."""
        asked, n = time.monotonic(), -len(self.runs) - 1
        await self.client.enqueue("job", n)
        await wait_until(lambda: self.ended[n], timeout=20)
        assert time.monotonic() - asked < within

    async def settled(self) -> None:
        """Wait until nothing is left in the stream."""
        async with Redis.from_url(self.server.url) as redis:
            await wait_until(lambda: _empty(redis), timeout=20)

    async def idle(self) -> None:
        """Wait until what ran is settled, too, and the worker's read waits."""
        await self.settled()
        async with Redis.from_url(self.server.url) as redis:
            await wait_until(lambda: _blocked(redis))


async def _blocked(redis: Redis) -> bool:
    return (await redis.info("clients"))["blocked_clients"] > 0


async def _empty(redis: Redis) -> bool:
    return not await redis.xlen("backstage:default")

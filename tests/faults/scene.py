"""What the tests here share: short leases, and a keyspace that can be looked into."""

from __future__ import annotations

from typing import Any, TypeAlias

from redis.asyncio import Redis

Settings: TypeAlias = dict[str, Any]

LEASE, INTERVAL = 1_000, 500
"""Ms: idle_timeout and reclaimer_interval of the workers here."""

RECOVERED = (LEASE + INTERVAL) / 1000 + 1
"""Seconds after which what a killed worker held runs elsewhere."""


class Keyspace:
    """What stands in Redis under one prefix."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis, self.prefix = redis, prefix

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    async def waiting(self, queue: str = "default") -> int:
        """Entries of the stream: what waits and what runs."""
        length: int = await self.redis.xlen(self.key(queue))
        return length

    async def dead(self, queue: str = "default") -> list[dict[str, str]]:
        return [fields for _, fields in await self.redis.xrange(self.key(f"{queue}:dead-letter"))]

    async def pending(self, queue: str = "default") -> dict[str, int]:
        """How many deliveries each consumer holds."""
        found = await self.redis.xpending(self.key(queue), "backstage-workers")
        return {each["name"]: each["pending"] for each in found["consumers"]}

    async def consumers(self, queue: str = "default") -> list[str]:
        return [each["name"] for each in await self.redis.xinfo_consumers(self.key(queue), "backstage-workers")]

    async def settled(self, queue: str = "default") -> bool:
        """Nothing waits, runs, or is to come."""
        later = await self.redis.zcard(self.key("scheduled")) + await self.redis.zcard(self.key("retries"))
        return not later and not await self.waiting(queue)
